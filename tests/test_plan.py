"""--dry-run: sizes against published ones, memory against torch's, the verdict, nothing written."""

import itertools
import os
import sys

import pytest
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import config
import mstep
import run as runs
import train
from config import PRESETS, UserError
from engine import plan, training
from engine.machine import Rates
from formats import huggingface
from model import Documents, ModelConfig, Transformer

torch.set_num_threads(1)
H200 = Rates(790e12, 60e12, 4.3e12, True, torch.device("cuda"))


def test_published_shapes():
    """Millions of parameters, as on the models' cards.

    One card also gives the count without the embedding.
    """
    said = {
        "smollm2": 134.5,
        "smollm2-gpu": 134.5,
        "qwen2.5-0.5b": 494.0,
        "qwen2.5-1.5b": 1543.7,
        "qwen2.5-3b": 3085.9,
        "qwen2.5-7b": 7615.6,
        "llama-3.2-1b": 1235.8,
        "llama-3.1-8b": 8030.3,
    }
    assert {
        name: round(plan.sizes(net)["all"] / 1e6, 1) for name, net in plan.SHAPES.items()
    } == said
    assert round(plan.sizes(plan.SHAPES["qwen2.5-1.5b"])["blocks"] / 1e9, 2) == 1.31 and set(
        plan.SHAPES
    ) == set(PRESETS) - {"tiny"}


def saved(net, docs):
    """Bytes that a training forward saves for backward, without parameters and bfloat16 casts."""
    seen, own = {}, {p.untyped_storage().data_ptr() for p in net.parameters()}
    shapes = {tuple(sorted(p.shape)) for p in net.parameters() if p.dim() == 2}

    def pack(x):
        s = x.untyped_storage()
        if s.data_ptr() not in own and tuple(sorted(x.shape)) not in shapes:
            seen[s.data_ptr()] = s.nbytes(), x  # which keeps it alive
        return x

    ids = torch.zeros(1, docs * 16, dtype=torch.int64)
    number = torch.arange(docs * 16)[None]  # (1, T)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x),
        torch.autocast("cpu", torch.bfloat16),
    ):
        net(ids, number % 16, Documents(number // 16))
    return sum(n for n, _ in seen.values())


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("heads", [(2, 2), (8, 2)])
def test_activations(checkpoint, heads):
    """The difference of two depths, against what autograd saves on the CPU.

    Documents are short, because attention on the CPU keeps its probabilities.
    """
    nets = [ModelConfig(50, n, *heads, 128, 352, 64) for n in (2, 4)]
    found = []
    for net in nets:
        model = Transformer(net)
        model.checkpoint = checkpoint
        found.append(saved(model, 32))
    computed = [plan.activations(net, 512, checkpoint) for net in nets]
    assert 0.9 <= (found[1] - found[0]) / (computed[1] - computed[0]) <= 1.1


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_weights_gradients_and_moments(weights):
    cfg, net = config.make(weights=weights, bf16=False), ModelConfig(50, 2, 2, 2, 32, 64, 64)
    model = Transformer(net).to(getattr(torch, weights))
    opt = training.adamw(model, 1e-3, 0.1)
    docs = [[1, 2, 3, 4]] * 2
    mstep.ntp_step(model, opt, docs, [[1] * 4] * 2, 1e-3, cfg)
    moments = sum(x.nbytes for s in opt.state.values() for key, x in s.items() if key != "step")
    said = plan.memory_plan(cfg, net)["next-token training"]
    assert (
        said["weights"] == said["gradients"] == sum(p.nbytes for p in model.parameters())
        and said["Adam's moments"] == moments
    )
    assert not said["bfloat16 casts"]


def largest(preset, stage="em", **given):
    return max(
        sum(phase.values())
        for phase in plan.memory_plan(
            config.make(preset, **given), plan.SHAPES[preset], stage
        ).values()
    )


def test_what_fits_where():
    """The table of docs/gpus.md."""
    small = dict(
        weights="bfloat16",
        checkpoint=True,
        micro_tokens=4096,
        snippets=16,
        block=512,
        max_tokens=384,
    )

    def fits(gib, *args, **given):
        memory = largest(*args, **given)
        message = plan.fit_message(memory, gib * plan.GIB, "it", [])
        return message.startswith("fits")

    assert all(
        fits(24, name, **small) for name in ("qwen2.5-0.5b", "qwen2.5-1.5b", "llama-3.2-1b")
    ) and not fits(24, "qwen2.5-1.5b")
    assert all(
        fits(80, name) for name in ("qwen2.5-0.5b", "qwen2.5-1.5b", "llama-3.2-1b")
    ) and not fits(80, "llama-3.1-8b", **small)
    assert all(fits(139, name) and fits(139, name, "rlvr") for name in plan.SHAPES) and not fits(
        139, "llama-3.1-8b", weights="float32"
    )


def doc_rows(heading):
    """The cells of the table of docs/gpus.md whose heading begins so, row by row."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    with open(os.path.join(root, "docs", "gpus.md")) as f:
        lines = [line.strip() for line in f]
    first = next(n for n, line in enumerate(lines) if line.startswith(heading)) + 2
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[first:])
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_memory_in_the_docs():
    """Each figure of the table is that of the plan."""
    small = "--weights bfloat16 --checkpoint true --micro-tokens 4096 --snippets 16 --block 512"
    named = {"small": (small + " --max-tokens 384").split(), "`--weights float32`": ["--weights"]}
    named["`--weights float32`"] += ["float32"]
    rows = doc_rows("| preset | settings | M-step")
    for preset, settings, *cells, _ in rows:
        ways = settings.split(" / ")
        for n, way in enumerate(ways):
            argv = ["--preset", preset, *named.get(way, [])]
            cfg, _ = config.parse(argv, {}, "")
            phases = plan.memory_plan(cfg, plan.SHAPES[preset]).values()
            for cell, phase in zip(cells, phases, strict=True):
                figure = float(cell.split(" / ")[n])
                assert figure == pytest.approx(sum(phase.values()) / plan.GIB, abs=0.051), preset
    assert len(rows) == 8


def test_hours_in_the_docs():
    """Each row of the paper's set-up is that of the plan, with the settings that stand above it."""
    settings = (
        "--n-expert 3500000 --n-heldout 512 --infuse 1750000 --mstep-steps 7600 --iters 2 "
        "--estep reinforce --resample 1 --keep-iterations true"
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    with open(os.path.join(root, "docs", "gpus.md")) as f:
        assert settings in f.read()
    names = {"H100": "h100", "A100 (80 GB)": "a100"}
    rows = doc_rows("| computed, one card")[:-1]
    for title, memory, *cells in rows:
        preset, card = title.split(", ")
        cfg, _ = config.parse(["--preset", preset, *settings.split()], {}, "")
        net = plan.SHAPES[preset]
        phases = plan.memory_plan(cfg, net)
        need = max(sum(phase.values()) for phase in phases.values()) / plan.GIB
        room = plan.room_of(plan.CARDS[names[card]].gib * plan.GIB) / plan.GIB
        assert memory == f"{need:.1f} of {room:.1f}"
        rates = plan.CARDS[names[card]].rates()
        times = [hours for *_, hours in plan.hours(cfg, net, "em", 256, rates).values()]
        assert cells[:5] == [f"{time:.1f} h" for time in times]
        assert cells[5] == f"{sum(times):.0f} h"
    assert len(rows) == 4


def test_fewer_rows_tokens_and_bytes_take_less():
    whole = largest("qwen2.5-1.5b")
    assert (
        largest("qwen2.5-1.5b", checkpoint=True) < whole
        and largest("qwen2.5-1.5b", weights="bfloat16") < whole
    )
    assert largest("qwen2.5-1.5b", weights="bfloat16", checkpoint=True, snippets=8) < largest(
        "qwen2.5-1.5b", weights="bfloat16", checkpoint=True
    )


def test_hours_follow_the_work():
    cfg, net = config.make("qwen2.5-1.5b"), plan.SHAPES["qwen2.5-1.5b"]
    said = plan.hours(cfg, net, "em", 256, H200)
    steps, tokens, hours = said["M-steps"]
    assert (steps, tokens) == (300, 300 * 65536) and hours == pytest.approx(
        6 * 1.5437e9 * tokens / (plan.TRAIN * 790e12) / 3600, rel=1e-3
    )
    twice = plan.hours(config.make("qwen2.5-1.5b", group=16), net, "em", 256, H200)
    assert 1.5 < twice["E-steps"][2] / said["E-steps"][2] < 2 and twice["NTP"] == said["NTP"]
    assert set(plan.hours(cfg, net, "ntp", 256, H200)) == {"NTP"}
    few, many = (
        plan.hours(config.make("qwen2.5-1.5b", estep="hindsight", **more), net, "em", 256, H200)
        for more in ({}, {"proposals": 12, "own": 6})
    )
    assert 1.5 < many["infusion"][2] / few["infusion"][2] < 2 and few["E-steps"][2] == 0
    late = plan.hours(
        config.make("qwen2.5-1.5b", estep="hindsight", selection="act,exact"), net, "em", 256, H200
    )
    assert 2 * late["infusion"][2] == pytest.approx(few["infusion"][2])


def test_own_keys_and_repeated_keys_of_a_gpu(monkeypatch):
    """What docs/gpus.md's table lacked: rows with room for all thoughts, keys repeated a head."""
    cfg, net = config.make("qwen2.5-1.5b"), plan.SHAPES["qwen2.5-1.5b"]
    kv = 2 * 2 * 28 * 2 * 128  # bytes a token
    own = plan.longest_row(cfg)
    assert (
        own == round(512 * (1 + 17 / 10.5))
        and plan.longest_row(config.make(think_max=10**4)) == 1024
    )
    keys = plan.memory_plan(cfg, net)["E-step, rollouts"]["keys and values"]
    assert keys == kv * (2 * 64 * 512 + 512 * own)
    on_cpu = plan.memory_plan(cfg, net, gpu=False)["E-step, rollouts"]["keys and values"]
    assert on_cpu == kv * (2 * 64 * 512 + 512 * 1024)
    monkeypatch.setattr(plan, "varlen_kernel", lambda: (None, False))
    assert plan.repeated_keys(net, 1000, 1.7) == pytest.approx(1000 * 1.7 * 4 * 12 * 128)
    assert plan.repeated_keys(net, 1000, 1) == 1000 * 4 * 12 * 128
    repeated = plan.memory_plan(cfg, net)["E-step, update"]["attended keys"]
    monkeypatch.setattr(plan, "varlen_kernel", lambda: (None, True))
    assert plan.repeated_keys(net, 1000, 1) == 0
    assert plan.memory_plan(cfg, net)["E-step, update"]["attended keys"] == pytest.approx(
        repeated / 6
    )


def test_devices_of_a_dry_run():
    assert plan.planned_device("") is None and plan.planned_device("H100") is plan.CARDS["h100"]
    card = plan.planned_device("80GiB,700TFLOP/s,3000GB/s")
    assert (card.gib, card.flops, card.bytes) == (80, 700e12, 3e12)
    assert card.rates().flops == 700e12 and plan.planned_device("24").rates() is None
    card = plan.planned_device("80 GiB, 700 TFLOP/s, 3000 GB/s")
    assert (card.gib, card.flops, card.bytes) == (80, 700e12, 3e12)
    h200 = plan.CARDS["h200"].rates()
    assert h200.flops == pytest.approx(plan.PRODUCT * 989e12) and h200.bytes < 4.8e12
    assert plan.card_named("NVIDIA H100 80GB HBM3").name == "H100 SXM"
    assert plan.card_named("NVIDIA GeForce RTX 4090").gib < 24 and plan.card_named("L4") is None
    for text in (
        "much",
        "80GiB,3",
        "700TFLOP/s",
        "80GB",
        "1.2.3",
        "8GiB 9",
        "0",
        "80GiB,0TFLOP/s,3000GB/s",
        "80GiB,40GiB",
    ):
        with pytest.raises(UserError, match="--dry-run .*expected h200, h100"):
            plan.planned_device(text)


def test_what_helps_is_of_the_phase_that_does_not_fit():
    """Each piece of advice shrinks such a phase; there is none where all of it is not enough."""
    cfg, net = config.make("qwen2.5-1.5b"), plan.SHAPES["qwen2.5-1.5b"]
    training = ["--weights bfloat16", "--checkpoint true", "--micro-tokens below 8192"]

    def helps(stage, gib):
        return plan.what_helps(cfg, net, stage, True, gib * plan.GIB)

    assert helps("em", 60) == training and helps("em", 80) == []
    assert helps("em", 50) == [*training, "--snippets below 64"]
    assert helps("ntp", 24) == training
    assert helps("rlvr", 24) == [*training, "--prompts below 64"]
    assert helps("eval", 12) == helps("em", 8) == []
    assert "--prompts do not suffice" in plan.fit_message(2.0, plan.GIB, "it", [])


def test_a_micro_batch_is_no_larger_than_a_step():
    cfg, net = config.make(micro_tokens=10**6), plan.SHAPES["smollm2"]
    step = plan.memory_plan(cfg, net)["next-token training"]["activations"]
    assert step == plan.activations(net, cfg.rows * cfg.block, False)
    updates = [plan.memory_plan(cfg, net)["E-step, update"]]
    updates.append(plan.memory_plan(cfg, net, "rlvr")["update"])
    more = config.make(micro_tokens=10**7)
    assert updates[0] == plan.memory_plan(more, net)["E-step, update"]
    assert updates[1] == plan.memory_plan(more, net, "rlvr")["update"]


def test_a_page_is_of_its_stage(capsys):
    """RLVR names no corpus, no E-step; evaluation one model; a missing device: nothing at all."""
    cfg = config.make("qwen2.5-1.5b", model="my/folder")
    card = plan.planned_device("h100")
    pages = {}
    for stage in ("rlvr", "eval", "ntp", "em"):
        plan.print_plan(cfg, stage, card)
        pages[stage] = capsys.readouterr().out
    assert all("(my/folder is not here: published shape)" in page for page in pages.values())
    assert "64 problems x 8 completions of at most 768 tokens" in pages["rlvr"]
    assert "corpus" not in pages["rlvr"] and "E-step" not in pages["rlvr"]
    assert "a model" in pages["eval"] and "0.00 h" not in pages["eval"]
    assert "evaluation" in pages["em"] and "evaluation" not in pages["ntp"]
    assert "a step of an E-step" not in pages["ntp"] and "a step of an E-step" in pages["em"]
    with pytest.raises(UserError, match="--device nothing: not available here"):
        plan.print_plan(config.make(device="nothing"), "em")
    assert capsys.readouterr().out == ""


def test_hours_of_rlvr():
    """Twice the completions: less than twice the time, as decode steps are shared; steps count."""
    net = plan.SHAPES["qwen2.5-1.5b"]

    def grpo(**settings):
        return plan.hours(config.make("qwen2.5-1.5b", **settings), net, "rlvr", 256, H200)["GRPO"]

    steps, tokens, hours = grpo()
    assert (steps, tokens) == (100, 100 * 384 * 512) and hours > 0
    assert 1.2 < grpo(completions=16)[2] / hours < 2
    assert grpo(rl_steps=50)[2] == pytest.approx(hours / 2)


def test_hours_are_those_of_the_card(monkeypatch, capsys):
    """A laptop does not matter: nothing is measured, and a faster card takes less."""

    def never(device, wall):
        raise AssertionError("measured")

    monkeypatch.setattr(plan, "machine_rates", never)
    hours = {}
    for name in ("h200", "h100", "a100", "4090"):
        plan.print_plan(config.make("qwen2.5-1.5b"), "em", plan.planned_device(name))
        text = capsys.readouterr().out
        assert plan.CARDS[name].name in text and "of its data sheet" in text
        hours[name] = float(text.split()[-2])
    assert hours["h200"] < hours["h100"] < hours["a100"] < hours["4090"]


def test_no_gradient_no_update():
    """Where no iteration takes a gradient, its update takes no memory."""
    net = plan.SHAPES["qwen2.5-1.5b"]
    for estep, there in (("reinforce", 1), ("auto,none", 1), ("best-of-n", 0), ("hindsight", 0)):
        phases = plan.memory_plan(config.make("qwen2.5-1.5b", estep=estep), net)
        assert ("E-step, update" in phases) == there


def test_a_narrow_model_on_a_cpu_is_slow():
    rates = Rates(8e11, 4e11, 1e10, True, torch.device("cpu"))
    slowed = plan.slowed(plan.shape(config.make())[0], rates)
    assert slowed == rates._replace(flops=2e11, flops32=1e11)
    assert "25% of a large bfloat16 product" in plan.speed_words(
        slowed, torch.device("cpu"), plan.shape(config.make())[0]
    )
    assert plan.slowed(plan.SHAPES["smollm2"], rates) == rates
    assert [plan.hour_cell(h) for h in (25, 0.1, 0.05, 0.001)] == [
        "25.00 h",
        "0.10 h",
        "3.0 min",
        "4 s",
    ]


def test_hours_of_evaluation():
    """The bound of base, NTP, RA3 and after each iteration; a tenth of the draws, about that."""
    net, slow = plan.SHAPES["qwen2.5-1.5b"], H200._replace(flops32=H200.flops / 10)

    def evaluation(stage="em", rates=slow, **settings):
        cfg = config.make("qwen2.5-1.5b", elbo_samples=20, **settings)
        *_, last = plan.hours(cfg, net, stage, 256, rates).values()
        return last

    times, tokens, hours = evaluation()
    assert times == 5 and tokens == 5 * 20 * config.make("qwen2.5-1.5b").n_heldout * 256
    one = evaluation("eval")
    assert one[0] == 1 and one[2] == pytest.approx(hours / 5)
    assert evaluation("eval", H200._replace(flops32=H200.flops))[2] < 0.2 * one[2]
    assert evaluation("eval", n_heldout=8)[2] < one[2]
    assert evaluation("eval", data="domain")[1] > one[1]  # and its tasks are solved


def test_dry_run_prepares_nothing(monkeypatch, capsys, tmp_path):
    """Before the corpus is prepared its size is assumed, and told; then it is read."""
    monkeypatch.setattr(plan, "machine_rates", lambda device, wall: H200)
    monkeypatch.setattr(train, "set_up", lambda cfg: None)
    code = tmp_path / "code"
    code.mkdir()
    for i in range(60):
        lines = "".join(f"    x{j} = {i} * a + {j}\n" for j in range(4))
        (code / f"f{i}.py").write_text(f"def f{i}(a):\n{lines}    return x{i % 4}\n")
    settings = ["--data", str(code), "--cache", str(tmp_path / "cache"), "--near-duplicate", "1"]
    settings += ["--decontaminate", "false", "--out", str(tmp_path / "run")]
    argv = [*settings, "--n-expert", "20", "--n-heldout", "4", "--dry-run"]
    train.main(argv)
    assert "not prepared (python -m corpus); assumed" in capsys.readouterr().out
    assert os.listdir(tmp_path) == ["code"]
    cfg, _ = config.parse(argv, train.OPTIONS, "")
    runs.Run(cfg)
    capsys.readouterr()
    train.main(argv)
    assert "20 snippets to train on, about" in capsys.readouterr().out


def test_dry_run_writes_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(plan, "machine_rates", lambda device, wall: H200)
    monkeypatch.setattr(train, "set_up", lambda cfg: None)
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None
    )  # no hub, no package with weights
    monkeypatch.chdir(tmp_path)
    train.main(["--preset", "llama-3.1-8b", "--dry-run", "24"])
    said = capsys.readouterr().out
    assert (
        "8,030.3 M parameters" in said
        and "does not fit" in said
        and "a device of 24" in said
        and "hours: not known" in said
        and "E-steps" in said
        and "not here" in said
    )
    train.main(["--dry-run", "--n-expert", "20", "--n-heldout", "4"])
    said = capsys.readouterr().out
    assert "20 snippets to train on" in said and "\nfits:" in said and "pre-training" in said
    assert os.listdir(tmp_path) == []
    with pytest.raises(UserError, match="--dry-run"):
        train.main(["--dry-run", "much"])
    with pytest.raises(UserError, match="download config.json"):
        huggingface.find(config.make("llama-3.1-8b"))
