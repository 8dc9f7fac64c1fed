"""Every path of the project on a GPU that is not there: the CPU's numbers, and no device mixed."""

import contextlib
import copy
import json

import numpy as np
import pytest
import torch

import data
import domain
import logprobs
import mstep
import pretended_cuda
import rlvr
import run as runs
import train
from config import make
from engine import training
from engine.gradients import policy_gradient
from engine.rollouts import rollout
from engine.sample import generate
from estep import credit, line_credit, prior_of
from hindsight.propose import least_likely, propose
from model import Documents, attend_documents
from worlds import TINY, Stop, credited, metrics, same_weights, thinker, weights

torch.set_num_threads(1)
THINK_MAX = 6


@pytest.fixture(scope="module")
def snips(tok):
    """Six functions of the built-in domain."""
    tasks = [domain.expert_task(0, i, "train") for i in range(6)]
    return [data.snippet(tok, t.prompt + t.solution, len(t.prompt)) for t in tasks]


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    """Nothing is compiled: torch.compile asks a driver that is not there."""
    monkeypatch.setattr(logprobs, "COMPILE", False)


def there(device):
    """A context in which a device is there."""
    return pretended_cuda.on() if device == "cuda" else contextlib.nullcontext()


def on_both(function):
    """function("cpu"), and function("cuda") on the GPU that is not there."""
    results = []
    for device in ("cpu", "cuda"):
        with there(device):
            results.append(function(device))
    return results


# ---------------------------------------------------------------- the pretence itself


def test_what_a_gpu_refuses():
    with pretended_cuda.on() as log:
        x = torch.arange(4.0, device="cuda")
        assert torch.cuda.is_available() and x.is_cuda and (x + 1).device == x.device
        with pytest.raises(RuntimeError, match="at least two devices"):
            x + torch.ones(4)
        with pytest.raises(RuntimeError, match="at least two devices"):
            torch.where(torch.ones(4, dtype=torch.bool), x, 0)
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
        with pytest.raises(TypeError, match="numpy"):
            np.asarray(x)
        with pytest.raises(RuntimeError, match="capturing"), torch.cuda.graph(graph()):
            x.sum().item()
        assert (x + torch.tensor(1.0)).tolist() == [1, 2, 3, 4]
    assert log.graphs == [] and not torch.cuda.is_available()


def graph():
    return torch.cuda.CUDAGraph()


def test_what_counts():
    """A synchronisation is counted once, at the line that asks for it."""
    waits = [
        (1, lambda x: x.sum().item()),
        (1, lambda x: x.tolist()),
        (1, lambda x: x.cpu()),
        (1, lambda x: x[x > 1]),
        (1, lambda x: (x > 1).nonzero()),
        (1, lambda x: x[torch.tensor([0, 1])]),
        (1, lambda x: torch.tensor([1, 2], device="cuda")),
        (1, lambda x: torch.ones(2).to("cuda", non_blocking=True)),
        (1, lambda x: torch.cuda.synchronize()),
        (0, lambda x: torch.ones(2).pin_memory().to("cuda", non_blocking=True)),
        (0, lambda x: torch.ones(2, device="cuda") + x[:2] * 3),
        (0, lambda x: x.to("cpu", non_blocking=True)),
        (0, lambda x: x.index_select(0, torch.zeros(2, dtype=torch.int64, device="cuda"))),
    ]
    with pretended_cuda.on() as log:
        x = torch.zeros(4, device="cuda")
        for count, function in waits:
            log.reset()
            function(x)
            assert log.synchronisations == count, log.table(log.syncs)
            assert all(name.startswith("tests/test_pretended") for _, name in log.syncs)


def test_a_graph_is_recorded_and_not_run():
    with pretended_cuda.on() as log:
        x = torch.zeros(3, device="cuda")
        step = torch.cuda.CUDAGraph()
        with torch.cuda.graph(step):
            x += 1
            y = x * 2
        assert x.tolist() == [0, 0, 0] and np.isnan(y.tolist()).all()
        step.replay()
        step.replay()
        assert (x.tolist(), y.tolist()) == ([2, 2, 2], [4, 4, 4])
        x = torch.zeros(3, device="cuda")  # the graph keeps the memory that it was recorded on
        step.replay()
        assert (x.tolist(), y.tolist()) == ([0, 0, 0], [6, 6, 6])
    assert (len(log.graphs), log.replays) == (1, 3)


@pytest.mark.parametrize("before", [False, True])
def test_attention_kernels(before):
    """The stand-in of varlen_attn against attention in padded buckets, forward and backward."""
    torch.manual_seed(0)
    doc = torch.tensor([[0] * 3 + [1] * 4 + [2] * 2])  # (1, 9)
    shared = [torch.arange(n) for n in (0, 2, 1)] if before else None
    inputs = [torch.randn(1, 9, heads, 8, requires_grad=True) for heads in (4, 2, 2)]
    expected = attend_documents(*inputs, Documents(doc, shared))  # (1, 9, 4, 8)
    gradients = torch.autograd.grad(expected.sin().sum(), inputs)
    with pretended_cuda.on() as log:
        low = [x.detach().cuda().bfloat16().requires_grad_() for x in inputs]
        y = attend_documents(*low, Documents(doc, shared, "cuda"))
        d = torch.autograd.grad(y.float().sin().sum(), low)
        kernels = {name for name, _ in log.kernels}
        assert {"_varlen_attn", "_varlen_attn_backward"} <= kernels
        near(y, expected, 2e-2)
        for a, b in zip(d, gradients, strict=True):
            near(a, b, 4e-2)


def near(x, y, tolerance):
    x, y = (v.detach().cpu().tolist() if isinstance(v, torch.Tensor) else v for v in (x, y))
    np.testing.assert_allclose(np.array(x, float), np.array(y, float), tolerance, tolerance)


# ---------------------------------------------------------------- training


@pytest.mark.parametrize(
    "dtype, amp, tolerance",
    [(torch.float32, False, 1e-5), (torch.float32, True, 2e-2), (torch.bfloat16, True, 3e-2)],
    ids=["float32", "autocast", "bfloat16"],
)
def test_ntp(tok, snips, dtype, amp, tolerance):
    """Two steps of next-token training, in several micro-batches."""

    def steps(device):
        cfg = make(bf16=amp, micro_tokens=300, compile="false")
        model = thinker(tok, 0).to(device, dtype)
        model, opt = training.prepare_training(model, cfg, lambda m: training.adamw(m, 1e-3, 0.1))
        docs, kinds = zip(*(data.infuse(tok, s, {}) for s in snips), strict=True)
        metrics = [mstep.ntp_step(model, opt, docs, kinds, 1e-3, cfg) for _ in range(2)]
        return [[m["loss"], m["ce_code"], m["grad_norm"]] for m in metrics]

    near(*on_both(steps), tolerance)


@pytest.mark.parametrize("without", [(), (3, 5)])
def test_token_logprobs(without):
    """Log-probabilities, sums over sets, entropy and KL, in blocks, with their gradients."""
    torch.manual_seed(0)
    inputs = [torch.randn(shape) for shape in ((13, 8), (50, 8), (13, 8), (50, 8))]
    targets = torch.randint(6, 50, (13,))

    def values(device):
        h, w, other, other_w = (x.to(device).requires_grad_() for x in inputs)
        rows = logprobs.token_logprobs(
            h, w, targets.to(device), [[7, 9], [11]], 7, entropy=True, without=without
        )
        none = logprobs.none_logprobs(h, w, [4, 40], 7)
        kl = logprobs.token_kl(h, w, other, other_w, 7, without)
        total = rows.sum() + none.sum() + kl.sum()
        parts = [x.flatten() for x in (rows, none, kl, *torch.autograd.grad(total, (h, w)))]
        return torch.cat(parts).detach().cpu()

    near(*on_both(values), 1e-5)


# ---------------------------------------------------------------- sampling


def completions(tok, snips, device, dtype=torch.float32, **settings):
    model = thinker(tok, 0).to(device, dtype)
    prompts = [s.ids[: s.first[0]] for s in snips[:5]]
    settings = dict(seed=3, n=3, batch=6, stop=["\n    x", "\ndef"], decode=tok.decode) | settings
    return generate(model, prompts, 20, tok.eos, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        dict(temperature=0.0),
        dict(forbid=[3, 4]),
        dict(temperature=0.8, top_p=0.9, batch=16),
    ],
    ids=str,
)
def test_sampling(tok, snips, settings):
    """The same tokens, through recorded graphs."""
    expected = completions(tok, snips, "cpu", **settings)
    with pretended_cuda.on() as log:
        groups = completions(tok, snips, "cuda", **settings)
    assert log.replays > 10
    for group, twins in zip(groups, expected, strict=True):
        for completion, twin in zip(group, twins, strict=True):
            assert (completion.ids, completion.finished) == (twin.ids, twin.finished)
            near(completion.logprobs, twin.logprobs, 1e-4)


def test_sampling_in_bfloat16(tok, snips):
    with pretended_cuda.on() as log:
        groups = completions(tok, snips, "cuda", torch.bfloat16)
    assert log.replays > 10
    assert all(np.isfinite(c.logprobs).all() for group in groups for c in group)


# ---------------------------------------------------------------- rollouts and the E-step


def rollouts_on(tok, snips, device, same=False, dtype=torch.float32, **settings):
    q = thinker(tok, 0).to(device, dtype)
    pi = q if same else thinker(tok, 1).to(device, dtype)
    settings = dict(need="gains", states=not same) | settings
    return rollout(q, pi, tok, snips, 3, THINK_MAX, (5,), **settings)


def assert_alike(rolls, expected):
    """The same latents, with the same numbers."""
    assert rolls.think.any()
    assert (rolls.events == expected.events).all()
    near(rolls.logq, expected.logq, 1e-4)
    for row, twin in zip(rolls.rows, expected.rows, strict=True):
        assert (row.ids, row.thoughts) == (twin.ids, twin.thoughts)
        near(row.line_logp, twin.line_logp, 1e-3)
        near(row.gain, twin.gain, 1e-3)
        for t, states in twin.states.items():
            near(row.states[t], states, 1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        dict(same=True),
        dict(rate=0.5),
        dict(horizon=2, need="rewards"),
        dict(same=True, need="latents"),
    ],
    ids=str,
)
def test_rollouts(tok, snips, settings):
    expected, rolls = on_both(lambda device: rollouts_on(tok, snips[:3], device, **settings))
    assert_alike(rolls, expected)


def test_rollouts_with_closing_tokens(tok, snips):
    """Tokens that end a thought and belong to it."""
    tok = copy.copy(tok)
    others = set(range(0, tok.vocab_size, 2)) - {*tok.stop_ids, *tok.thought_ids}
    tok.closing_ids = sorted(others)
    expected, rolls = on_both(lambda d: rollouts_on(tok, snips[:2], d, rate=0.5))
    assert any(z[-1] in others for row in rolls.rows for z in row.thoughts.values())
    assert_alike(rolls, expected)


def test_rollouts_in_bfloat16(tok, snips):
    with pretended_cuda.on():
        rolls = rollouts_on(tok, snips[:2], "cuda", dtype=torch.bfloat16)
    assert rolls.think.any() and np.isfinite(rolls.lines(lambda row: row.line_logp)).all()


@pytest.mark.parametrize("kl", [0.0, 0.3])
@pytest.mark.parametrize("amp, tolerance", [(False, 2e-4), (True, 5e-2)])
def test_policy_gradient(tok, snips, kl, amp, tolerance):
    rolls = rollouts_on(tok, snips[:4], "cpu")
    cfg = make()
    r = line_credit(rolls, prior_of(cfg, tok, tok.vocab_size), "prefix", cfg.gain_floor)
    A = credit(r, rolls.think, rolls.possible, rolls.G, cfg.discount, cfg.normalise)

    def gradient(device):
        q = thinker(tok, 0).to(device)
        pi = thinker(tok, 1).to(device).requires_grad_(False)
        stats = policy_gradient(q, pi, tok, rolls, A, kl=kl, amp=amp, micro_tokens=500)
        norms = [float(p.grad.norm()) for p in q.parameters()]
        return [stats.loss, stats.kl, stats.tokens, *norms]

    near(*on_both(gradient), tolerance)


def test_hindsight(tok, snips):
    def proposed(device):
        model = thinker(tok, 0).to(device)
        return propose(model, tok, snips[:3], least_likely(0.4), 2, 2, THINK_MAX)

    expected, proposals = on_both(proposed)
    assert proposals.thoughts == expected.thoughts
    near(proposals.logp, expected.logp, 1e-4)
    near(proposals.given, expected.given, 1e-3)


# ---------------------------------------------------------------- RLVR


def credited_samples(tok, snips, forbid):
    """Three completions each of four prompts, one of them paid."""
    prompts = [s.ids[: s.first[0]] for s in snips[:4]]
    groups = generate(thinker(tok, 0), prompts, 16, tok.eos, n=3, seed=1, forbid=forbid)
    return credited(prompts, groups)


@pytest.mark.parametrize("kl, epochs, forbids", [(0.0, 1, False), (0.1, 2, True)])
def test_grpo_update(tok, snips, kl, epochs, forbids):
    forbid = tuple(tok.thought_ids) if forbids else ()
    samples = credited_samples(tok, snips, forbid)
    cfg = make(rl_kl=kl, epochs=epochs, minibatches=epochs, micro_tokens=400, bf16=False)

    def update(device):
        model = thinker(tok, 0).to(device)
        start = thinker(tok, 1).to(device).requires_grad_(False)
        opt = training.adamw(model, 1e-3, 0.0)
        m = rlvr.update(model, start, opt, samples, cfg, 0, forbid)
        assert m["updates"] == epochs * epochs
        names = "loss grad_norm entropy clip_low clip_high logp_gap kl_start trained scored"
        return [m[name] for name in names.split()]

    near(*on_both(update), 2e-3)


# ---------------------------------------------------------------- budgets: how often the host waits


def test_ntp_waits_twice_a_step(tok, snips):
    """For the losses and the norm of the gradient, however many micro-batches there are."""
    docs, kinds = zip(*(data.infuse(tok, s, {}) for s in snips), strict=True)
    for size in (300, 10000):
        cfg = make(bf16=True, micro_tokens=size, compile="false")
        with pretended_cuda.on() as log:
            model = thinker(tok, 0).to("cuda")
            opt = training.adamw(model, 1e-3, 0.1)
            mstep.ntp_step(model, opt, docs, kinds, 1e-3, cfg)
            log.reset()
            mstep.ntp_step(model, opt, docs, kinds, 1e-3, cfg)
        assert log.synchronisations <= 2, log.table(log.syncs)


@pytest.mark.parametrize("kl", [0.0, 0.3])
def test_policy_gradient_waits_once(tok, snips, kl):
    """For all losses, KLs and log q together."""
    rolls = rollouts_on(tok, snips[:4], "cpu")
    A = np.ones((2, *rolls.think.shape))
    with pretended_cuda.on() as log:
        q = thinker(tok, 0).to("cuda")
        pi = thinker(tok, 1).to("cuda").requires_grad_(False)
        log.reset()
        policy_gradient(q, pi, tok, rolls, A, kl=kl, amp=True, micro_tokens=300)
    assert log.synchronisations <= 1, log.table(log.syncs)


@pytest.mark.parametrize("kl, epochs, forbids", [(0.0, 1, False), (0.1, 2, True)])
def test_grpo_waits_once_a_micro_batch(tok, snips, kl, epochs, forbids):
    """For its sums; and once an update for the norm of the gradient."""
    forbid = tuple(tok.thought_ids) if forbids else ()
    samples = credited_samples(tok, snips, forbid)
    cfg = make(rl_kl=kl, epochs=epochs, minibatches=epochs, micro_tokens=100, bf16=True)
    plan = rlvr.plan_minibatches(samples, cfg, 0)
    micro_batches = epochs * sum(map(len, plan))
    assert micro_batches > 2 * epochs
    with pretended_cuda.on() as log:
        model = thinker(tok, 0).to("cuda")
        start = thinker(tok, 1).to("cuda").requires_grad_(False)
        opt = training.adamw(model, 1e-3, 0.0)
        log.reset()
        updates = rlvr.update(model, start, opt, samples, cfg, 0, forbid)["updates"]
    assert log.synchronisations <= micro_batches + updates, log.table(log.syncs)


# ---------------------------------------------------------------- commands, from end to end

FLOAT32 = "--bf16 false --rollout-bf16 false --compile false".split()
SMALL = "--pretrain-steps 60 --n-expert 8 --iters 1 --estep-steps 2 --mstep-steps 3".split()
EM = ["--stage", "em"]
GRPO = "--stage rlvr --init ra3 --rl-steps 2 --prompts 2 --completions 4 --rl-kl 0.1".split()


def command(out, device, *more):
    """train.main at the smallest size, in a folder."""
    with there(device):
        train.main([*TINY, *FLOAT32, *SMALL, "--device", device, "--out", str(out), *more])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folders of `--stage em` and then `--stage rlvr`, by device."""
    out = {device: tmp_path_factory.mktemp("runs") / device for device in ("cpu", "cuda")}
    for device in out:
        command(out[device], device, *EM)
        command(out[device], device, *GRPO)
    return out


@pytest.mark.slow
def test_stages_are_the_cpus(trained):
    """Pre-training, NTP, EM, evaluation and RLVR: the same weights and metrics, to rounding."""
    lines, expected = metrics(trained["cuda"]), metrics(trained["cpu"])
    assert [line["phase"] for line in lines] == [line["phase"] for line in expected]
    for line, twin in zip(lines, expected, strict=True):
        assert line.keys() == twin.keys()
        for key in ("loss", "reward", "elbo", "gain", "grad_norm", "kl_start", "pass@1"):
            if line.get(key) is not None:
                assert line[key] == pytest.approx(twin[key], rel=1e-2, abs=1e-3), (key, line)
    for name in ("base", "ntp", "ra3", "rlvr-ra3"):
        twins = weights(trained["cpu"] / f"{name}.pt")
        for key, x in weights(trained["cuda"] / f"{name}.pt").items():
            near(x, twins[key], 2e-3)


@pytest.mark.slow
def test_resume(trained, tmp_path, monkeypatch):
    """A run on a GPU that stopped in every stage, against the uninterrupted one: bit for bit."""
    log = runs.Run.log
    stops = [("ra3", "estep", 1), ("ra3", "mstep", 1), ("rlvr-ra3", "rlvr", 2)]

    def log_and_stop(self, name, **m):
        log(self, name, **m)
        if (name, m["phase"], m.get("step")) in stops:
            stops.remove((name, m["phase"], m["step"]))
            raise Stop

    monkeypatch.setattr(runs.Run, "log", log_and_stop)
    options = ["--save-every", "1", "--resume"]
    for stage, stopped in ((EM, 2), (GRPO, 1)):
        for _ in range(stopped):
            with pytest.raises(Stop):
                command(tmp_path, "cuda", *stage, *options)
        command(tmp_path, "cuda", *stage, *options)
    assert not stops
    for name in ("ntp", "ra3", "rlvr-ra3"):
        assert same_weights(trained["cuda"] / f"{name}.pt", tmp_path / f"{name}.pt"), name


@pytest.mark.slow
def test_evaluation(trained):
    """`--stage eval` on a GPU of what a CPU trained."""
    results = []
    for device in ("cpu", "cuda"):
        command(trained["cpu"], device, "--stage", "eval")
        results.append(json.loads((trained["cpu"] / "results.json").read_text()))
    assert results[0].keys() == results[1].keys() and results[0]
    for name, result in results[0].items():
        for key, value in result.items():
            if isinstance(value, float) and key not in ("seconds", "cpu_s"):
                assert results[1][name][key] == pytest.approx(value, rel=1e-2, abs=1e-2), key
