"""The base model of the built-in domain: its corpus, its skill, and how a run sums up."""

import json
import random
import types

import numpy as np
import pytest
import torch

import config
import data
import domain
import estep
import train
from engine import machine
from engine.rollouts import rollout
from model import ModelConfig, Transformer
from worlds import TINY

torch.set_num_threads(1)


class World:
    """As much of a run as the base's functions ask for."""

    def __init__(self, tok, **settings):
        self.tok = tok
        self.backend = None
        self.cfg = config.make(think_max=6, **settings)


# ---------------------------------------------------------------- the base corpus


def test_an_exercise_is_a_note_and_its_line():
    """A note is the worked chain of the docstring, and the line below it holds its last digit."""
    rng = random.Random(0)
    for _ in range(100):
        prompt, rest = domain.exercise(rng)
        compile(prompt + rest, "exercise", "exec")
        lines = rest.split("\n")[1:]
        assert len(lines) == 2 * len(prompt.split("\n")[1:-1])
        for chain, note, line in zip(
            prompt.split("\n")[1:-1], lines[::2], lines[1::2], strict=True
        ):
            verb, _, first, *steps = chain.split()
            digit = domain.STARTS.index(first)
            for step in steps[1::2]:
                digit = domain.STEPS[step][digit]
            assert note.startswith(f"# {verb} ") and note.endswith(f" {digit}")
            assert str(digit) in line


def exercises_in(world, lap, step, tries=40):
    """The share of exercises in the batches of a step, measured with several seeds."""
    share = []
    for seed in range(tries):
        world.cfg.seed = seed
        docs, kinds = train.base_batch(world, lap, step)
        assert all(len(ids) <= world.cfg.block for ids in docs)
        assert all(len(ids) == len(kind) for ids, kind in zip(docs, kinds, strict=True))
        share += [world.tok.decode(ids).startswith('"""') for ids in docs]
    return np.mean(share)


def test_the_mixture_has_no_cliff(tok):
    """The share of exercises falls in a straight line, and stays low; in further laps too."""
    world = World(tok, pretrain_steps=100, exercises=0.5, rows=4)
    shares = [exercises_in(world, 0, step) for step in (0, 35, 70, 99)]
    assert shares == pytest.approx([0.5, 0.4, 0.3, 0.3], abs=0.05)
    assert exercises_in(world, 1, 0) == pytest.approx(0.3, abs=0.05)


def test_batches_of_laps_differ(tok):
    world = World(tok, rows=2)
    assert train.base_batch(world, 0, 3) == train.base_batch(world, 0, 3)
    assert train.base_batch(world, 0, 3)[0] != train.base_batch(world, 1, 3)[0]


# ---------------------------------------------------------------- its skill


def test_the_skill_is_counted_task_by_task(tok, monkeypatch):
    """With notes put in the model's mouth, every third one right: against their own count."""
    world = World(tok, seed=5)
    model = Transformer(ModelConfig(tok.vocab_size, 1, 2, 2, 32, 64, 1024)).init_weights(3)
    tasks = [domain.expert_task(5, i, "val") for i in range(48)]
    snippets = [data.snippet(tok, t.prompt + t.solution, len(t.prompt)) for t in tasks]
    rolls = rollout(model, model, tok, snippets, 4, 6, (1, 2), rate=0.0)
    spoken, nats = 0, []
    for n, row in enumerate(rolls.rows):
        for line, note in tasks[n // 4].notes:
            spoken += 1
            row.thoughts[line] = tok.encode(" # cut: wrong" if spoken % 3 else f" # {note}")
            row.line_logp[line] += n  # so that rows differ
            if spoken % 3 == 0:
                nats.append(n)
        row.thoughts[0] = tok.encode(" # see below")  # before a line that is not hard
    monkeypatch.setattr(train, "rollouts_of", lambda *a: rolls)
    skill = train.note_skill(world, model)
    assert skill["notes"] == spoken
    assert skill["notes_right"] == pytest.approx((spoken // 3) / spoken)
    assert skill["note_nats"] == pytest.approx(np.mean(nats), rel=1e-6)


def test_a_base_that_falls_short_is_trained_on_and_then_refused(tmp_path, monkeypatch):
    """Laps go on until the skill is there; without it the run ends in one line, with no base.pt."""
    skills = [{"notes": 9, "notes_right": r, "note_nats": 2.0} for r in (0.1, 0.5, 0.9)]
    monkeypatch.setattr(train, "note_skill", lambda run, model: skills.pop(0))
    short = "--stage pretrain --pretrain-steps 3 --base-check true".split()
    train.main([*TINY, "--out", str(tmp_path / "good"), *short])
    rows = [json.loads(line) for line in open(tmp_path / "good" / "metrics.jsonl")]
    steps = [(row["lap"], row["step"]) for row in rows if row["phase"] == "pretrain"]
    assert steps == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0)]
    assert (tmp_path / "good" / "base.pt").exists()

    monkeypatch.setattr(
        train, "note_skill", lambda run, model: {"notes": 9, "notes_right": 0.5, "note_nats": 2.0}
    )
    with pytest.raises(config.UserError, match="seed 0.*50% of its 9 worked notes.*at least 80%"):
        train.main([*TINY, "--out", str(tmp_path / "bad"), *short])
    assert not (tmp_path / "bad" / "base.pt").exists()


def test_a_row_too_short_for_the_base_corpus_is_refused(tmp_path):
    """The functions that do not fit would be left out, in silence."""
    short = "--stage pretrain --pretrain-steps 1 --stages 2 --base-stages 8 --block 288".split()
    with pytest.raises(config.UserError, match=r"--block 288: .*--base-stages 8.* up to \d+ tok"):
        train.main([*TINY, "--out", str(tmp_path / "short"), *short])
    assert not (tmp_path / "short" / "base.pt").exists()


# ---------------------------------------------------------------- where a gradient is worth it


@pytest.mark.parametrize(
    "settings, credit, way",
    [
        ({}, 0.9, "reinforce"),
        ({}, -0.1, "best-of-n"),
        ({}, -1.0, "best-of-n"),
        ({"estep": "reinforce"}, -1.0, "reinforce"),
        ({"estep": "best-of-n,auto"}, 0.9, "best-of-n"),
        ({"estep": "hindsight"}, 0.9, "hindsight"),
    ],
)
def test_auto_selects_where_thoughts_do_not_pay(monkeypatch, settings, credit, way):
    logged = []
    run = types.SimpleNamespace(
        cfg=config.make(**settings), log=lambda name, **row: logged.append(row)
    )
    monkeypatch.setattr(estep, "diagnose", lambda run, pi: {"gain": 0.0, "credit": credit})
    assert estep.way_of(run, "ra3", None, 0, None) == way
    asked = settings.get("estep", "auto") in ("auto", "reinforce")
    assert [row["estep"] for row in logged] == [way] * asked


def test_an_estep_that_has_begun_goes_on(monkeypatch):
    """In the midst of a policy gradient nothing is asked anew."""
    monkeypatch.setattr(estep, "diagnose", None)
    run = types.SimpleNamespace(cfg=config.make())
    assert estep.way_of(run, "ra3", None, 0, {"phase": "estep", "step": 3}) == "reinforce"


# ---------------------------------------------------------------- the last line


class Finished:
    def __init__(self, rows=()):
        self.cfg, self.rows = config.make(), rows

    def metrics(self, name):
        return self.rows


def test_the_verdict():
    good = {"pass@1": 0.95, "think_share": 0.3, "think_hard": 0.98, "think_easy": 0.01}
    results = {"base": {"pass@1": 0.1}, "ntp": {"pass@1": 0.0}, "ra3": good}
    assert train.closing_words(Finished(), results) == (
        "ra3 solves 95.0% of the held-out tasks: +95.0 points against ntp, "
        "+85.0 points against base; "
        "it thinks before 98% of the hard lines and 1% of the others"
    )
    alone = train.closing_words(Finished(), {"ra3": good})
    assert alone.startswith("ra3 solves 95.0% of the held-out tasks; it thinks before 98%")


def test_the_verdict_where_thinking_died():
    rows = [
        {"phase": "diagnose", "think_share": 0.16, "gain": -0.2},
        {"phase": "estep", "iteration": 0, "step": 0, "think_share": 0.15},
        {"phase": "estep", "iteration": 0, "step": 1, "think_share": 0.01},
        {"phase": "heldout", "think_share": 0.0},
    ]
    results = {"ra3": {"pass@1": 0.01, "think_share": 0.0, "think_hard": 0.0, "think_easy": 0.0}}
    words = train.closing_words(Finished(rows), results)
    assert "thinking died out since E-step 1, step 1: before 0.0% of the lines at the end" in words
    assert "the base's own thoughts were worth -0.20 nats each; try --c 0" in words


# ---------------------------------------------------------------- threads


@pytest.mark.parametrize(
    "settings, environment, threads",
    [
        ({}, "", 1),  # the built-in domain's small model
        ({"d_model": 512, "d_ff": 1536}, "", 6),
        ({"preset": "smollm2"}, "", 6),
        ({"preset": "smollm2"}, "3", 3),
        ({}, "4", 4),
        ({"threads": 2}, "4", 2),
        ({}, "nonsense", 1),
    ],
)
def test_threads(monkeypatch, settings, environment, threads):
    seen = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    monkeypatch.setattr(machine, "cores", lambda: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", environment)
    machine.set_threads(config.make(**settings))
    assert seen == [threads]
