"""Evaluation: pass@k, scores, stop sequences, and the bound of a model on held-out code."""

import json
import math
import random
import types

import pytest
import torch

import config
import data
import domain
import evaluate
import tasks
from elbo import prior_of, summary
from engine.rollouts import rollout
from engine.sample import Completion
from formats import tokenizers
from worlds import thinker

torch.set_num_threads(1)


def test_pass_at_k():
    """Against 1 - C(n - c, k) / C(n, k) in exact binomials, for every n up to 10."""
    for n in range(1, 11):
        for c in range(n + 1):
            for k in range(1, n + 1):
                assert evaluate.pass_at_k(n, c, k) == pytest.approx(
                    1 - math.comb(n - c, k) / math.comb(n, k), abs=1e-12
                )
    assert evaluate.pass_at_k(5, 2, 1) == pytest.approx(0.4) and evaluate.pass_at_k(
        200, 1, 100
    ) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="pass@5 needs at least 5 samples a problem; there are 4"):
        evaluate.pass_at_k(4, 1, 5)


def test_score():
    """Two problems of five samples, three and none passed, against the mean of the two estimates; a k above n is left out."""
    rows = [{"verdict": "passed" if i in (0, 2, 4) else "wrong_answer"} for i in range(10)]
    assert evaluate.score(rows, 5, (1, 2, 5, 10)) == {
        "pass@1": pytest.approx(0.3),
        "pass@2": pytest.approx((1 - 1 / 10) / 2),
        "pass@5": 0.5,
    }
    assert evaluate.score(rows, 1) == {"pass@1": pytest.approx(0.3)}


BYTES = types.SimpleNamespace(
    eos=256,
    encode=lambda text: list(text.encode()),
    start=lambda text: (list(text.encode()), ""),
    decode=lambda ids: bytes(i for i in ids if i < 256).decode(),
)


def test_stop_sequences(monkeypatch):
    """Completions cut by hand at the first stop sequence, against those that are returned and graded, in order, n a task."""
    written = [
        "\n    return 1\ndef g():\n    pass\nclass A: pass",
        "\n    return 1",
        "\nclass A:\n  x = 1\ndef g(): pass",
        "\n    # def in a comment\n    return 1\nprint(1)",
    ]
    wanted = ["\n    return 1", "\n    return 1", "", "\n    # def in a comment\n    return 1"]
    monkeypatch.setattr(
        evaluate,
        "generate",
        lambda model, prompts, *a, n, **k: [
            [Completion(BYTES.encode(written[2 * i + j]) + [BYTES.eos], [], True) for j in range(n)]
            for i in range(len(prompts))
        ],
    )
    stops = ("\nclass ", "\ndef ", "\nif ", "\nprint")
    problems = [
        tasks.Task(name, f"def {name}():", "", f"assert {name}() == 1", name, stops=stops)
        for name in ("f", "h")
    ]
    model = types.SimpleNamespace(cfg=types.SimpleNamespace(max_len=100))
    rows = evaluate.solve(model, BYTES, problems, 2, 0.8, 50, 0)
    assert [r["completion"] for r in rows] == wanted and [r["task_id"] for r in rows] == [
        "f",
        "f",
        "h",
        "h",
    ]
    assert [r["verdict"] for r in rows] == ["passed", "passed", "syntax_error", "passed"]
    with pytest.raises(
        config.UserError, match="f: its prompt has 8 tokens; the model's max_len is 8"
    ):
        evaluate.solve(
            types.SimpleNamespace(cfg=types.SimpleNamespace(max_len=8)),
            BYTES,
            problems,
            1,
            0.8,
            50,
            0,
        )


def test_interval():
    """One sample a problem: the bootstrap mean is a binomial over N, whose quantiles are known exactly."""
    rows = [{"verdict": "passed" if i < 30 else "timeout"} for i in range(100)]
    chance = [math.comb(100, k) * 0.3**k * 0.7 ** (100 - k) for k in range(101)]
    exact = [next(k for k in range(101) if sum(chance[: k + 1]) >= q) / 100 for q in (0.025, 0.975)]
    assert evaluate.interval(rows, 1, 1) == pytest.approx(exact, abs=0.011)
    assert evaluate.interval(rows[:30], 1, 1) == (1.0, 1.0)
    low, high = evaluate.interval(
        [rows[i % 2 * 99] for i in range(40)], 2, 2
    )  # one of two samples right everywhere: pass@2 is certain
    assert (low, high) == (1.0, 1.0)


def test_an_interrupted_evaluation_goes_on(monkeypatch, tmp_path):
    """Killed after the first part, with a cut line at the end: --resume samples only the rest, and the file is that of a whole run."""
    asked = []

    def written(model, prompts, *a, n, seeds, **k):
        asked.append(list(seeds))
        return [
            [
                Completion(BYTES.encode(f"\n    return {seed % 3}") + [BYTES.eos], [], True)
                for _ in range(n)
            ]
            for seed in seeds
        ]

    monkeypatch.setattr(evaluate, "generate", written)
    problems = [
        tasks.Task(f"T/{i}", f"def f{i}():", "", f"assert f{i}() == 1", f"f{i}") for i in range(5)
    ]
    model, path = (
        types.SimpleNamespace(cfg=types.SimpleNamespace(max_len=100)),
        str(tmp_path / "runs" / "samples.jsonl"),
    )
    cfg = config.make(temperature=0.8)
    whole = evaluate.solve_suite(model, BYTES, problems, 256, cfg, path, {"a": 1})
    assert asked == [[0, 1], [2, 3], [4]] and [r["verdict"] == "passed" for r in whole[::256]] == [
        False,
        True,
        False,
        False,
        True,
    ]
    lines = open(path).read().splitlines(True)
    assert len(lines) == 1280 and {*json.loads(lines[0])} == {
        "task_id",
        "completion",
        "verdict",
        "seconds",
    }
    with open(path, "w") as f:
        f.writelines(lines[:600] + [lines[600][:20]])
    asked.clear()
    again = evaluate.solve_suite(
        model, BYTES, problems, 256, config.make(temperature=0.8, resume=True), path, {"a": 1}
    )
    bare = [(r["task_id"], r["completion"], r["verdict"]) for r in whole]
    assert (
        asked == [[2, 3], [4]]
        and [(r["task_id"], r["completion"], r["verdict"]) for r in again] == bare
    )
    assert [
        (r["task_id"], r["completion"], r["verdict"]) for r in map(json.loads, open(path))
    ] == bare
    with pytest.raises(config.UserError, match="samples.jsonl: made with a=1 and not 2"):
        evaluate.solve_suite(model, BYTES, problems, 256, config.make(resume=True), path, {"a": 2})
    with pytest.raises(config.UserError, match="its rows are not those of this suite"):
        evaluate.solve_suite(
            model, BYTES, problems[1:], 256, config.make(resume=True), path, {"a": 1}
        )


def test_given_completions_are_graded(monkeypatch, tmp_path, capsys):
    """Completions of a file are run with the suite's tests, with and without --sanitise; problems that the file lacks are left out; mistakes are named."""
    suite = [
        tasks.Task(f"T/{i}", f"def f{i}():\n", "", f"assert f{i}() == 1", f"f{i}") for i in range(3)
    ]
    monkeypatch.setattr(evaluate.suites, "load", lambda name, data_dir: suite)
    path = tmp_path / "given.jsonl"
    texts = {
        "T/2": ["    return 1\n", "    return 2\n"],
        "T/0": ["    return 1\n\ndef g(:", "    return 1"],
        "X/9": ["", "", ""],
    }
    path.write_text(
        "".join(
            json.dumps({"task_id": name, "completion": text}) + "\n"
            for name, some in texts.items()
            for text in some
        )
    )
    said = {}
    for more, verdicts in (
        ([], ["syntax_error", "passed", "passed", "wrong_answer"]),
        (["--sanitise"], ["passed", "passed", "passed", "wrong_answer"]),
    ):
        evaluate.main(["--suite", "mine", "--completions", str(path), *more])
        said = json.loads(capsys.readouterr().out)
        rows = list(map(json.loads, open(tmp_path / "given-graded-mine.jsonl")))
        assert [r["task_id"] for r in rows] == ["T/0", "T/0", "T/2", "T/2"] and [
            r["verdict"] for r in rows
        ] == verdicts
        assert (
            said["problems"] == 2
            and said["samples"] == 2
            and said["pass@1"] == verdicts.count("passed") / 4
        )
    for text, message in (
        ("{}\n", "line 1 is no object"),
        ('{"task_id": "T/0", "completion": 3}\n', "line 1 is no object"),
        ("", "there are none at all"),
        (path.read_text() + '{"task_id": "T/0", "completion": ""}\n', "there are 2, 3"),
    ):
        (tmp_path / "bad.jsonl").write_text(text)
        with pytest.raises(config.UserError, match=message):
            evaluate.main(["--suite", "mine", "--completions", str(tmp_path / "bad.jsonl")])
    with pytest.raises(config.UserError, match="this is what --completions reads"):
        evaluate.main(["--suite", "mine", "--completions", str(path), "--samples-out", str(path)])
    with pytest.raises(config.UserError, match="none.jsonl: cannot be read"):
        evaluate.main(["--suite", "mine", "--completions", str(tmp_path / "none.jsonl")])


def test_where_samples_go(monkeypatch, tmp_path, capsys):
    """A greedy and a sampled evaluation of one model and suite go to files of their own, beside the checkpoint, which either can resume."""
    suite, model = (
        [tasks.Task("T/0", "def f():", "", "assert f() == 1", "f")],
        types.SimpleNamespace(cfg=types.SimpleNamespace(max_len=100)),
    )
    monkeypatch.setattr(evaluate.suites, "load", lambda name, data_dir: suite)
    monkeypatch.setattr(evaluate, "open_model", lambda cfg, checkpoint: (model, BYTES))
    monkeypatch.setattr(evaluate, "inference_copy", lambda model, cfg: model)
    monkeypatch.setattr(
        evaluate,
        "generate",
        lambda model, prompts, most, eos, temperature, *, n, **k: [
            [
                Completion(
                    BYTES.encode(f"\n    return {i + (temperature == 0)}") + [BYTES.eos], [], True
                )
                for i in range(n)
            ]
            for _ in prompts
        ],
    )
    checkpoint = ["--checkpoint", str(tmp_path / "elsewhere" / "ntp.pt"), "--samples", "2"]
    for resume in ([], ["--resume"]):
        for temperature, verdicts, name in (
            ("0", ["passed"], "greedy-ntp-mine.jsonl"),
            ("0.8", ["wrong_answer", "passed"], "samples-ntp-mine.jsonl"),
        ):
            evaluate.main(
                ["--suite", "folder/mine.jsonl", *checkpoint, "--temperature", temperature, *resume]
            )
            assert json.loads(capsys.readouterr().out)["file"] == str(tmp_path / "elsewhere" / name)
            assert [
                json.loads(line)["verdict"] for line in open(tmp_path / "elsewhere" / name)
            ] == verdicts
    monkeypatch.chdir(tmp_path)
    for more, wanted in (
        (["--temperature", "0"], "runs/tiny-3/greedy-mine.jsonl"),
        (["--temperature", "1"], "runs/tiny-3/samples-mine.jsonl"),
        ([*checkpoint, "--out", "here"], "here/samples-ntp-mine.jsonl"),
        (["--suite", "mine,yours", "--samples-out", "./a"], "./a-mine"),
    ):
        evaluate.main(["--suite", "mine", "--seed", "3", *more])
        assert (
            json.loads(capsys.readouterr().out.split("\n")[0])["file"] == wanted
            and (tmp_path / wanted).exists()
        )


@pytest.fixture(scope="module")
def world():
    rng = random.Random(1)
    tok = tokenizers.train_tokenizer(["".join(domain.base_text(rng)) for _ in range(100)], 400)
    found = [domain.expert_task(0, i, "val") for i in range(5)]
    return (
        tok,
        thinker(tok, 3),
        [data.snippet(tok, t.prompt + t.solution, len(t.prompt)) for t in found],
        [t.hard for t in found],
    )


@pytest.mark.parametrize("samples", [2, 60, 200])  # all snippets at once, two at a time, one by one
def test_bound(world, samples):
    """The bound of five snippets against the summary of a single call of `rollout`, however many snippets go at once."""
    tok, model, snips, hard = world
    cfg = config.make(elbo_samples=samples, think_max=4, seed=3, rollout_bf16=False)
    got = evaluate.bound(model, tok, snips, cfg, hard)
    prior = prior_of(cfg, tok, model.cfg.vocab_size)
    want = summary(rollout(model, model, tok, snips, samples, 4, (3, 77)), prior, hard)
    assert got.keys() == want.keys() and want["think_share"] > 0.1
    assert all(got[k] == pytest.approx(want[k], rel=1e-4, abs=1e-4) for k in want)


def test_bound_at_infinite_c(world):
    """At c = inf nothing is thought: the bound is the likelihood without thoughts, and a number."""
    tok, model, snips, hard = world
    got = evaluate.bound(model, tok, snips, config.make(elbo_samples=2, c=float("inf")), hard)
    assert (
        got["elbo"] == pytest.approx(got["elbo_no_think"])
        and got["think_share"] == 0
        and all(math.isfinite(v) for v in got.values())
    )


def test_open_model_needs_weights():
    """The small preset has no weights of its own: the mistake names what to give."""
    with pytest.raises(
        config.UserError, match="--preset tiny has no weights of its own: give --checkpoint"
    ):
        evaluate.open_model(config.make())
