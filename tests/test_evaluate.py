"""Evaluation: pass@k, intervals, stop sequences, files, and the bound on held-out code."""

import contextlib
import json
import math
import os
import random
import types

import numpy as np
import pytest
import torch

import config
import data
import domain
import evaluate
import tasks
from benchmarks import rates, samples
from elbo import prior_of, summary
from engine.rollouts import rollout
from engine.sample import Completion
from formats import checkpoints, huggingface, tokenizers
from worlds import thinker, write_with

torch.set_num_threads(1)

# ---------------------------------------------------------------- rates and intervals


def test_pass_at_k():
    """Against 1 - C(n - c, k) / C(n, k) in exact binomials, for every n up to 10."""
    for n in range(1, 11):
        for c in range(n + 1):
            for k in range(1, n + 1):
                exact = 1 - math.comb(n - c, k) / math.comb(n, k)
                assert rates.pass_at_k(n, c, k) == pytest.approx(exact, abs=1e-12)
    assert rates.pass_at_k(5, 2, 1) == pytest.approx(0.4)
    assert rates.pass_at_k(200, 1, 100) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="pass@5 needs at least 5 samples a problem; there are 4"):
        rates.pass_at_k(4, 1, 5)


def test_mean_pass_at_k():
    """Two problems of five samples, three and none passed; a k above n is left out."""
    rows = [{"verdict": "passed" if i in (0, 2, 4) else "wrong_answer"} for i in range(10)]
    assert rates.mean_pass_at_k(rows, 5, (1, 2, 5, 10)) == {
        "pass@1": pytest.approx(0.3),
        "pass@2": pytest.approx((1 - 1 / 10) / 2),
        "pass@5": 0.5,
    }
    assert rates.mean_pass_at_k(rows, 1) == {"pass@1": pytest.approx(0.3)}


def test_interval_by_hand():
    """Wilson's interval as published: Newcombe 1998 gives 81 of 263 and 0 of 20."""
    passed = np.repeat([1.0, 0.0], (81, 263 - 81))
    assert rates.rate_interval(passed, 1) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert rates.rate_interval(np.zeros(20), 1) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert rates.rate_interval(np.ones(20), 1) == pytest.approx((1 - 0.1611, 1.0), abs=5e-5)
    # one of five samples right at each of 20 problems: as 20 of 100 problems
    fifths = rates.rate_interval(np.repeat([1.0, 0.0], (20, 80)), 1)
    assert rates.rate_interval(np.full(20, 0.2), 5) == pytest.approx(fifths)


def drawn_rates(rng, N, n, mean, concentration):
    """Rates of N problems from n samples each; a problem's own rate is Beta with that mean."""
    p = rng.beta(mean * concentration, (1 - mean) * concentration, N)
    return rng.binomial(n, p) / n


@pytest.mark.parametrize("N, n", [(20, 1), (164, 1), (20, 5), (164, 5)])
def test_interval_covers(N, n):
    """Over 1,000 draws of each population the interval holds the mean in 90% or more.

    The percentile bootstrap holds it in less than 40% for 20 problems at a rate of .02.
    """
    rng = np.random.default_rng(0)
    for mean, concentration in ((0.02, 50), (0.1, 0.5), (0.5, 0.3), (0.5, 50), (0.98, 1)):
        draws = [drawn_rates(rng, N, n, mean, concentration) for _ in range(1000)]
        held = [low <= mean <= high for low, high in (rates.rate_interval(d, n) for d in draws)]
        assert np.mean(held) >= (0.9 if n > 1 else 0.93), (mean, concentration)


def test_interval_is_not_wide():
    """Where it can be compared with the normal interval, it is hardly wider."""
    rng = np.random.default_rng(1)
    for n in (1, 5):
        each = drawn_rates(rng, 400, n, 0.5, 2.0)
        low, high = rates.rate_interval(each, n)
        assert high - low < 1.02 * 2 * 1.96 * each.std(ddof=1) / 20


@pytest.mark.parametrize("N, n", [(20, 1), (164, 1), (20, 5), (164, 5)])
def test_paired_interval_covers(N, n):
    """Two models on the same problems, some hard for both: the difference is held in 90%."""
    rng = np.random.default_rng(0)
    for p, q in ((0.05, 0.05), (0.3, 0.2), (0.02, 0.1), (0.95, 0.9)):
        held = []
        for _ in range(1000):
            hardness = rng.random(N)
            a = rng.binomial(n, 0.9 * (hardness < p) + 0.1 * p) / n
            b = rng.binomial(n, 0.9 * (hardness < q) + 0.1 * q) / n
            low, high = rates.paired_interval(a, b, n)
            held.append(low <= p - q <= high)
        assert np.mean(held) >= 0.9, (p, q)


def test_pairing_narrows_the_interval():
    """Equal models on problems of two kinds: narrower than two intervals side by side."""
    rng = np.random.default_rng(2)
    easy = rng.random(200) < 0.5
    a, b = (np.where(rng.random(200) < 0.1, ~easy, easy).astype(float) for _ in range(2))
    low, high = rates.paired_interval(a, b, 1)
    alone = rates.rate_interval(a, 1)
    assert low < a.mean() - b.mean() < high
    assert high - low < 0.8 * 2**0.5 * (alone[1] - alone[0])
    assert rates.paired_interval(a, a, 1) == pytest.approx((0.0, 0.0), abs=0.01)


# ---------------------------------------------------------------- programs

BYTES = types.SimpleNamespace(
    eos=256,
    end_ids=[256, 257],
    encode=lambda text: list(text.encode()),
    start=lambda text: (list(text.encode()), ""),
    decode=lambda ids: bytes(i for i in ids if i < 256).decode(),
)
SMALL = types.SimpleNamespace(cfg=types.SimpleNamespace(max_len=100))
STOPS = ("\nclass ", "\ndef ", "\nif ", "\nprint")


def completion(text):
    return Completion(BYTES.encode(text) + [BYTES.eos], [], True)


def adder(name):
    """A problem that `return 1` solves."""
    return tasks.Task(name, f"def {name}():", "", f"assert {name}() == 1", name, stops=STOPS)


def test_stop_sequences(monkeypatch):
    """Completions cut by hand at the first stop sequence, against those that are graded."""
    written = [
        "\n    return 1\ndef g():\n    pass\nclass A: pass",
        "\n    return 1",
        "\nclass A:\n  x = 1\ndef g(): pass",
        "\n    # def in a comment\n    return 1\nprint(1)",
    ]
    wanted = ["\n    return 1", "\n    return 1", "", "\n    # def in a comment\n    return 1"]

    def generate(model, prompts, *args, n, **keywords):
        texts = iter(written)
        return [[completion(next(texts)) for _ in range(n)] for _ in prompts]

    write_with(monkeypatch, generate)
    problems = [adder("f"), adder("h")]
    rows = evaluate.sample_and_grade(SMALL, BYTES, problems, n=2, max_new=50)
    assert [row["completion"] for row in rows] == wanted
    assert [row["task_id"] for row in rows] == ["f", "f", "h", "h"]
    assert [row["verdict"] for row in rows] == ["passed", "passed", "syntax_error", "passed"]
    short = types.SimpleNamespace(cfg=types.SimpleNamespace(max_len=8))
    message = "f: its prompt has 8 tokens; the model's max_len is 8"
    with pytest.raises(config.UserError, match=message):
        evaluate.sample_and_grade(short, BYTES, problems, n=1, max_new=50)


def test_each_problem_has_its_own_stop_sequences(monkeypatch):
    """A script that prints its answer, behind and before a function that stops at a print.

    Each is sampled with its own stop sequences and seed, and cut at them; order is kept.
    """
    script = tasks.Task("script", "x = 1", "", [{"input": "", "output": "1"}], "", kind="stdio")
    texts = {"f": "\n    return 1\nprint(f())", "script": "\nprint(x)\ndef g(): pass"}
    problems = [adder("f"), script, adder("h")]
    texts["h"] = texts["f"]
    asked = []

    def generate(model, prompts, *args, stop, seeds, n, on_done, **keywords):
        asked.append((stop, seeds))
        names = [problems[seed - 7].name for seed in seeds]
        found = [[completion(texts[name])] * n for name in names]
        for k, of_prompt in enumerate(found):
            for j, one in enumerate(of_prompt):
                if on_done:
                    on_done(k, j, one)
        return found

    write_with(monkeypatch, generate)
    rows = evaluate.sample_and_grade(SMALL, BYTES, problems, n=2, max_new=9, numbers=[7, 8, 9])
    assert asked == [(list(STOPS), [7, 9]), ([], [8])]
    assert [row["task_id"] for row in rows] == ["f", "f", "script", "script", "h", "h"]
    assert {row["verdict"] for row in rows} == {"passed"}
    assert rows[2]["completion"] == texts["script"] and rows[4]["completion"] == "\n    return 1"

    seen = {}
    programs = evaluate.sample_programs(
        SMALL,
        BYTES,
        problems,
        max_new=9,
        seeds=[7, 8, 9],
        n=2,
        on_program=lambda i, j, program: seen.update({(i, j): program}),
    )
    assert seen == {(i, j): programs[i][j] for i in range(3) for j in range(2)}
    assert [program.prompt for program, _ in programs] == [
        BYTES.encode(task.prompt) for task in problems
    ]


@pytest.mark.parametrize("end", [256, 257])
def test_a_program_ends_before_the_end_token(monkeypatch, end):
    """Either end token ends a program; all are handed to the sampler; none becomes text."""
    asked = []

    def generate(model, prompts, max_new, eos, **keywords):
        asked.append(eos)
        return [[Completion(BYTES.encode("\n    return 1") + [end], [], True)]]

    tok = types.SimpleNamespace(**vars(BYTES))
    tok.decode = lambda ids: "".join("<end>" if i > 255 else chr(i) for i in ids)
    write_with(monkeypatch, generate)
    rows = evaluate.sample_and_grade(SMALL, tok, [adder("f")], n=1, max_new=9)
    assert rows[0]["completion"] == "\n    return 1" and rows[0]["verdict"] == "passed"
    assert asked == [[256, 257]]


# ---------------------------------------------------------------- files


def bare(rows):
    return [(row["task_id"], row["completion"], row["verdict"]) for row in rows]


def lines_of(path):
    with open(path) as f:
        return [json.loads(line) for line in f]


def sampled(path, problems, resume=False, **settings):
    """A suite of 256 samples a problem, into a file."""

    def rows_of(some_tasks, start):
        numbers = list(range(start, start + len(some_tasks)))
        return evaluate.sample_and_grade(
            SMALL, BYTES, some_tasks, n=256, max_new=50, numbers=numbers
        )

    file = samples.SampleFile(str(path), settings, 256)
    return evaluate.collect_rows(file, problems, resume, rows_of)


@pytest.fixture
def numbered(monkeypatch):
    """`generate` writes `return seed % 3` -> the seeds that it was asked for, a call."""
    asked = []

    def generate(model, prompts, *args, n, seeds, **keywords):
        asked.append(list(seeds))
        return [[completion(f"\n    return {seed % 3}")] * n for seed in seeds]

    write_with(monkeypatch, generate)
    return asked


def test_an_interrupted_evaluation_goes_on(numbered, monkeypatch, tmp_path):
    """Killed after the first part, with a cut line at the end: --resume samples only the rest."""
    problems = [adder(f"f{i}") for i in range(5)]
    path = tmp_path / "runs" / "samples.jsonl"
    unfinished = tmp_path / "runs" / "samples.jsonl.unfinished"
    whole = sampled(path, problems, a=1).rows
    assert numbered == [[0, 1], [2, 3], [4]]
    passed = [row["verdict"] == "passed" for row in whole[::256]]
    assert passed == [False, True, False, False, True]
    assert bare(lines_of(path)) == bare(whole) and len(whole) == 1280
    assert {*lines_of(path)[0]} == {"task_id", "completion", "verdict", "seconds"}
    assert not unfinished.exists()

    lines = path.read_text().splitlines(True)
    path.unlink()
    unfinished.write_text("".join(lines[:600]) + lines[600][:20])
    os.rename(f"{path}.settings.json", f"{unfinished}.settings.json")
    numbered.clear()
    again = sampled(path, problems, resume=True, a=1)
    assert numbered == [[2, 3], [4]]
    assert bare(again.rows) == bare(lines_of(path)) == bare(whole)
    numbered.clear()
    assert bare(sampled(path, problems, resume=True, a=1).rows) == bare(whole) and not numbered
    with pytest.raises(config.UserError, match="samples.jsonl: made with a=1 and not 2"):
        sampled(path, problems, resume=True, a=2)
    with pytest.raises(config.UserError, match="its rows are not those of this suite"):
        sampled(path, problems[1:], resume=True, a=1)


def test_an_interruption_leaves_the_former_result(numbered, monkeypatch, tmp_path):
    """Ctrl-C in the second part: the old file is as it was, the first part's rows are there."""
    problems = [adder(f"f{i}") for i in range(5)]
    path = tmp_path / "samples.jsonl"
    sampled(path, problems, a=1)
    before = path.read_text()
    grade = evaluate.grade_completions

    def stop_at_third(some_tasks, *args):
        if some_tasks[0].name == "f2":
            raise KeyboardInterrupt
        return grade(some_tasks, *args)

    monkeypatch.setattr(evaluate, "grade_completions", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        sampled(path, problems, a=2)
    assert path.read_text() == before
    assert json.loads((tmp_path / "samples.jsonl.settings.json").read_text()) == {"a": 1}
    assert len(lines_of(f"{path}.unfinished")) == 512
    monkeypatch.setattr(evaluate, "grade_completions", grade)
    numbered.clear()
    sampled(path, problems, resume=True, a=2)
    assert numbered == [[2, 3], [4]] and len(lines_of(path)) == 1280
    assert json.loads((tmp_path / "samples.jsonl.settings.json").read_text()) == {"a": 2}


def test_a_full_disk_loses_no_score(numbered, monkeypatch, tmp_path, capsys):
    """No space from the second part on: the score is printed, then one line says what is lost."""
    problems = [adder(f"f{i}") for i in range(5)]
    path = tmp_path / "samples.jsonl"
    append = samples.SampleFile.append

    def until_full(self, rows):
        if rows[0]["task_id"] == "f2":
            monkeypatch.setattr("builtins.open", full_disk)
        append(self, rows)

    def full_disk(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(samples.SampleFile, "append", until_full)
    with monkeypatch.context():
        file = sampled(path, problems, suite="mine")
        with pytest.raises(config.UserError, match="cannot be written .No space left on device."):
            evaluate.print_score(file, {})
    score = json.loads(capsys.readouterr().out)
    assert score["pass@1"] == 0.4 and score["problems"] == 5 and not path.exists()


def test_given_completions_are_graded(monkeypatch, tmp_path, capsys):
    """Completions of a file are run with the suite's tests, with and without --sanitise."""
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
    rows = [{"task_id": name, "completion": x} for name, of_task in texts.items() for x in of_task]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for more, verdicts in (
        ([], ["syntax_error", "passed", "passed", "wrong_answer"]),
        (["--sanitise"], ["passed", "passed", "passed", "wrong_answer"]),
    ):
        evaluate.main(["--suite", "mine.jsonl", "--completions", str(path), *more])
        score = json.loads(capsys.readouterr().out)
        rows = lines_of(tmp_path / "given-graded-mine.jsonl")
        assert [row["task_id"] for row in rows] == ["T/0", "T/0", "T/2", "T/2"]
        assert [row["verdict"] for row in rows] == verdicts
        assert score["problems"] == 2 and score["samples"] == 2
        assert score["pass@1"] == verdicts.count("passed") / 4


def test_given_solutions_are_whole_programs(monkeypatch, tmp_path, capsys):
    """As EvalPlus writes them: the prompt is not put before them; graded rows can be read again."""
    suite = [tasks.Task("T/0", "def f():\n    x = 1\n", "", "assert f() == 1", "f")]
    monkeypatch.setattr(evaluate.suites, "load", lambda name, data_dir: suite)
    path = tmp_path / "given.jsonl"
    programs = ["import math\n\ndef f():\n    return 1", "    return x"]
    rows = [{"task_id": "T/0", "solution": program} for program in programs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for source in (path, tmp_path / "given-graded-mine.jsonl"):
        evaluate.main(["--suite", "mine.jsonl", "--completions", str(source)])
        graded = lines_of(json.loads(capsys.readouterr().out)["file"])
        assert [row["solution"] for row in graded] == programs
        assert [row["verdict"] for row in graded] == ["passed", "syntax_error"]


def test_mistakes_on_the_command_line():
    for argv, message in (
        ("--suite nosuch", r"suite nosuch: expected one of domain, humaneval, .*, or a .jsonl fil"),
        ("--suite domian", "did you mean domain"),
        ("--suite ,", "--suite ,: expected at least one name, such as humaneval$"),
        ("--limit -1", "--limit -1: expected a number of at least 0; 0: all problems$"),
    ):
        with pytest.raises(config.UserError, match=message):
            evaluate.main(argv.split())


def test_mistakes_in_given_completions(monkeypatch, tmp_path):
    suite = [tasks.Task("T/0", "def f():\n", "", "assert f() == 1", "f")]
    monkeypatch.setattr(evaluate.suites, "load", lambda name, data_dir: suite)
    row = '{"task_id": "T/0", "completion": ""}\n'
    other = '{"task_id": "T/1", "completion": ""}\n'
    suite.append(tasks.Task("T/1", "def f():\n", "", "assert f() == 1", "f"))
    path = tmp_path / "bad.jsonl"
    for text, message in (
        ("{}\n", "line 1 is no object"),
        ('{"task_id": "T/0"}\n', "line 1 holds neither completion nor solution"),
        (row + row.replace("}", ', "solution": ""}'), "line 2 holds both completion and solution"),
        (row + row.replace("completion", "solution"), "lines with completion and lines with sol"),
        ('{"task_id": "T/0", "completion": 3}\n', "line 1 is no object"),
        (row + "{", "line 2 is no object"),
        ("", "there are none at all"),
        (row + row + other, "there are 1, 2"),
    ):
        path.write_text(text)
        with pytest.raises(config.UserError, match=message):
            evaluate.main(["--suite", "mine.jsonl", "--completions", str(path)])
    path.write_bytes(b"\x1f\x8b\xff")
    with pytest.raises(config.UserError, match="bad.jsonl: cannot be read .no text: .* give a"):
        evaluate.main(["--suite", "mine.jsonl", "--completions", str(path)])
    path.write_text(row)
    with pytest.raises(config.UserError, match="this is what --completions reads"):
        evaluate.main(
            ["--suite", "mine.jsonl", "--completions", str(path), "--samples-out", str(path)]
        )
    with pytest.raises(config.UserError, match="none.jsonl: cannot be read"):
        evaluate.main(["--suite", "mine.jsonl", "--completions", str(tmp_path / "none.jsonl")])


@pytest.fixture
def returns_zero_and_one(monkeypatch):
    """A suite of one problem that needs a 1; greedy programs return 1, sampled ones 0, 1, ..."""

    def generate(model, prompts, *args, n, temperature, **keywords):
        numbers = range(n) if temperature else [1]
        return [[completion(f"\n    return {i}") for i in numbers] for _ in prompts]

    suite = [adder("f")]
    monkeypatch.setattr(evaluate.suites, "load", lambda name, data_dir: suite)
    monkeypatch.setattr(evaluate, "open_checkpoint", lambda cfg, checkpoint: (SMALL, BYTES))
    monkeypatch.setattr(evaluate, "inference_copy", lambda model, cfg: model)
    write_with(monkeypatch, generate)


def test_where_samples_go(returns_zero_and_one, monkeypatch, tmp_path, capsys):
    """Greedy and sampled rows go to files of their own beside the checkpoint; either resumes."""
    folder = tmp_path / "elsewhere"
    checkpoint = ["--checkpoint", str(folder / "ntp.pt"), "--samples", "2"]
    for resume in ([], ["--resume"]):
        for temperature, verdicts, name in (
            ("0", ["passed"], "greedy-ntp-mine.jsonl"),
            ("0.8", ["wrong_answer", "passed"], "samples-ntp-mine.jsonl"),
        ):
            command = ["--suite", "folder/mine.jsonl", *checkpoint, "--temperature", temperature]
            evaluate.main([*command, *resume])
            assert json.loads(capsys.readouterr().out)["file"] == str(folder / name)
            assert [row["verdict"] for row in lines_of(folder / name)] == verdicts
    monkeypatch.chdir(tmp_path)
    for more, wanted in (
        (["--temperature", "0"], "runs/tiny-3/greedy-mine.jsonl"),
        (["--temperature", "1"], "runs/tiny-3/samples-mine.jsonl"),
        ([*checkpoint, "--out", "here"], "here/samples-ntp-mine.jsonl"),
        (["--suite", "mine.jsonl,yours.jsonl", "--samples-out", "./a"], "./a-mine"),
    ):
        evaluate.main(["--suite", "mine.jsonl", "--seed", "3", *more])
        assert json.loads(capsys.readouterr().out.split("\n")[0])["file"] == wanted
        assert (tmp_path / wanted).exists()


# ---------------------------------------------------------------- the bound


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


@pytest.mark.parametrize("rows, at_once", [(128, 5), (16, 2), (4, 1)])
def test_bound(world, monkeypatch, rows, at_once):
    """The bound of five snippets, however many at once, against one call of `rollout`."""
    tok, model, snips, hard = world
    count = 8
    monkeypatch.setattr(evaluate, "rows_of_rollouts", lambda *_: rows)
    assert min(5, max(1, rows // count)) == at_once
    cfg = config.make(elbo_samples=count, think_max=4, seed=3, rollout_bf16=False)
    got = evaluate.heldout_elbo(model, tok, snips, cfg, hard)
    prior = prior_of(cfg, tok, model.cfg.vocab_size)
    want = summary(rollout(model, model, tok, snips, count, 4, (3, config.BOUND)), prior, hard)
    assert got.keys() == want.keys() and want["think_share"] > 0.1
    assert all(got[k] == pytest.approx(want[k], rel=1e-4, abs=1e-4) for k in want)


def test_bound_at_infinite_c(world):
    """At c = inf nothing is thought: the bound is the likelihood without thoughts, and a number."""
    tok, model, snips, hard = world
    got = evaluate.heldout_elbo(
        model, tok, snips, config.make(elbo_samples=2, c=float("inf")), hard
    )
    assert (
        got["elbo"] == pytest.approx(got["elbo_no_think"])
        and got["think_share"] == 0
        and all(math.isfinite(v) for v in got.values())
    )


def test_rows_of_thoughts_are_the_rollouts(world):
    """Text, nats, P(think), gains and rewards of the rows of a .jsonl, against the rollouts."""
    tok, model, snips, hard = world
    cfg = config.make(elbo_samples=3, think_max=6, seed=3, c=0.5)
    rolls = evaluate.heldout_rollouts(model, tok, snips, cfg)
    prior = prior_of(cfg, tok, model.cfg.vocab_size)
    rows = json.loads(json.dumps(evaluate.thought_rows(tok, rolls, prior, hard)))
    assert [(len(row["rollouts"]), tuple(row["hard"])) for row in rows] == [(3, h) for h in hard]
    thoughts = 0
    for b, (row, snip) in enumerate(zip(rows, snips, strict=True)):
        text = tok.decode(snip.ids[:-1])
        assert "\n".join([row["prompt"], *row["lines"]]) == text
        assert row["never"] == pytest.approx(rolls.base_logp[b], abs=1e-4)
        for record, drawn in zip(row["rollouts"], rolls.rows[3 * b : 3 * b + 3], strict=True):
            written = [line for line, *_ in record["thoughts"]]
            assert written == sorted(drawn.thoughts)
            assert record["nats"] == pytest.approx(drawn.line_logp, abs=1e-4)
            assert record["reward"] == pytest.approx(
                sum(record["nats"]) - 0.5 * len(written), abs=0.01
            )
            acts = [t for t in range(len(snip.first)) if t not in drawn.thoughts]
            p_act = np.exp(drawn.logq[acts])
            assert 1 - np.array(record["p_think"])[acts] == pytest.approx(p_act, abs=1e-3)
            for line, text, gain in record["thoughts"]:
                assert text == tok.decode(drawn.thoughts[line]).strip() and text[0] == "#"
                assert gain == pytest.approx(drawn.gain[line], abs=1e-4)
                thoughts += 1
    assert thoughts > 10


def test_intervals_of_the_bound_are_over_snippets(world):
    tok, model, snips, _ = world
    cfg = config.make(elbo_samples=2, think_max=4, c=0.5)
    prior = prior_of(cfg, tok, model.cfg.vocab_size)
    rolls = evaluate.heldout_rollouts(model, tok, snips, cfg)
    means = rolls.rewards(prior).sum(1).reshape(5, 2).mean(1)
    got = evaluate.bound_intervals(rolls, prior)
    half = 2.776 * np.std(means, ddof=1) / 5**0.5  # Student's t, 4 degrees of freedom
    assert got["elbo"] == pytest.approx([means.mean() - half, means.mean() + half])
    assert sum(got["elbo_no_think"]) / 2 == pytest.approx(
        np.mean([x.sum() for x in rolls.base_logp])
    )
    assert (
        evaluate.bound_intervals(evaluate.heldout_rollouts(model, tok, snips[:1], cfg), prior) == {}
    )


def test_lines_of_indented_code_in_words_of_its_own(world):
    """A line of several physical lines, blank ones between, no indentation, characters of bytes."""
    tok = world[0]
    text = "x = [\n  1,\n]\n\n\nif x:\n    é = 'ü'\n    return\n"
    prompt, lines = evaluate.text_lines(tok, data.snippet(tok, text, 12))
    assert prompt == "x = [\n  1,\n]"
    assert lines == ["if x:", "    é = 'ü'", "    return"]


@pytest.fixture
def run_of(tmp_path):
    """A run's folder that needs no model: a function of settings."""

    def make(**settings):
        cfg = config.make(out=str(tmp_path), **settings)
        return types.SimpleNamespace(
            cfg=cfg, path=lambda name: str(tmp_path / name), exclusive=contextlib.nullcontext
        )

    return make


def test_entries_say_how_they_were_measured(run_of, tmp_path, capsys):
    """Two commands with unlike settings: both entries stay, the second one names the difference."""
    for settings, name in ((dict(data="a"), "base"), (dict(data="b", elbo_samples=1), "ra3")):
        run = run_of(**settings)
        entry = {"elbo": -3.0, "measured": evaluate.measured(run.cfg)}
        evaluate.print_unlike(evaluate.write_results(run, {name: entry}), run.cfg)
    line = "base in results.json is measured otherwise: "
    assert capsys.readouterr().out == (f"{line}data='a' and not 'b', elbo_samples=8 and not 1\n")
    record = json.loads((tmp_path / "results.json").read_text())
    assert [record[name]["measured"]["elbo_samples"] for name in ("base", "ra3")] == [8, 1]
    run = run_of(data="a")
    evaluate.print_unlike({"old": {"elbo": -1.0}, "base": record["base"]}, run.cfg)
    out = capsys.readouterr().out
    assert out.startswith("old in results.json is measured otherwise: data='unknown' and not 'a'")
    assert out.count("\n") == 1
    assert set(evaluate.MEASURED) <= set(vars(config.make()))


def test_a_checkpoint_knows_its_tokenizer(world, tmp_path):
    """Evaluated with another tokenizer of the same size, one line; an old one by its preset."""
    tok, model, *_ = world
    rng = random.Random(2)
    other = tokenizers.train_tokenizer(["".join(domain.base_text(rng)) for _ in range(50)], 400)
    assert other.vocab_size == tok.vocab_size
    path = tmp_path / "ra3.pt"
    cfg = config.make()
    noted = dict(tokenizer=tokenizers.digest(tok), preset="smollm2")
    for extra, beside, settings, message in (
        (noted, tok, None, None),
        (noted, other, None, "ra3.pt: made with another tokenizer of --preset smollm2 and not"),
        ({}, other, None, None),  # nothing is known of it
        ({}, tok, {"preset": "tiny"}, None),
        ({}, tok, {"preset": "smollm2"}, "of --preset smollm2 and not with that of --preset tiny"),
    ):
        checkpoints.save_model(model, str(path), **extra)
        tokenizers.save_tokenizer(beside, str(tmp_path / "tokenizer.txt"))
        (tmp_path / "settings.json").write_text(json.dumps(settings))
        if message:
            with pytest.raises(config.UserError, match=message) as error:
                evaluate.open_checkpoint(cfg, str(path))
            assert "\n" not in str(error.value)
        else:
            assert evaluate.open_checkpoint(cfg, str(path))[1].vocab_size == tok.vocab_size
    checkpoints.save_model(model, str(path), **noted)
    tokenizers.save_tokenizer(other, str(tmp_path / "tokenizer.txt"))
    with pytest.raises(config.UserError, match="made with another tokenizer"):
        huggingface.export(str(path), str(tmp_path / "folder"))
    assert not (tmp_path / "folder").exists()


def test_open_checkpoint_needs_weights():
    """The small preset has no weights of its own: the mistake names what to give."""
    with pytest.raises(
        config.UserError, match="--preset tiny has no weights of its own: give --checkpoint"
    ):
        evaluate.open_checkpoint(config.make())
