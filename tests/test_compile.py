"""torch.compile: how many graphs a stage makes, what is kept of them, and what a GPU gets."""

import functools
import importlib
import os
import subprocess
import sys

import pytest
import torch
import torch._dynamo

import data
import domain
import logprobs
import mstep
import rlvr
from config import make
from engine import machine, training
from engine.gradients import policy_gradient
from engine.rollouts import rollout
from engine.sample import generate
from worlds import HERE, credited, thinker

torch.set_num_threads(1)


@pytest.fixture
def without_code(monkeypatch):
    """torch.compile that traces and makes no code -> a function, the graphs made since."""
    compile_eager = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", compile_eager)
    kernels = functools.cache(functools.partial(compile_eager, dynamic=True))
    monkeypatch.setattr(logprobs, "compiled", kernels)
    monkeypatch.setattr(logprobs, "COMPILE", True)
    torch._dynamo.reset()
    before = machine.graphs()
    yield lambda: machine.graphs() - before
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def snips(tok):
    """Twenty functions of the built-in domain."""
    tasks = [domain.expert_task(0, i, "train") for i in range(20)]
    return [data.snippet(tok, t.prompt + t.solution, len(t.prompt)) for t in tasks]


def compiled(model, lr=1e-3, **settings):
    """A model with compiled blocks, its optimizer, and the settings."""
    cfg = make(compile="true", **settings)
    model, opt = training.prepare_training(model, cfg, lambda m: training.adamw(m, lr, 0.1))
    return model, opt, cfg


def count_of_steps(made, step, steps):
    """Graphs after each of some steps of a stage."""
    counts = []
    for number in range(steps):
        step(number)
        counts.append(made())
    return counts


def assert_no_storm(counts):
    """At most 12 graphs in a stage, and none once three steps have brought their shapes."""
    assert 0 < counts[-1] <= 12 and counts[2] == counts[-1], counts
    assert machine.compile_seconds() > 0


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", [False, True])
def test_graphs_of_an_m_step(tok, snips, without_code, checkpoint):
    """Documents of other lengths in other numbers at every step, with thoughts and without."""
    model, opt, cfg = compiled(thinker(tok, 0), micro_tokens=500, checkpoint=checkpoint)

    def step(number):
        batch = snips[number * 3 : number * 3 + 4 + number]
        thoughts = {1: tok.encode(" # a b c")[: 1 + number]} if number % 2 else {}
        docs, kinds = zip(*(data.infuse(tok, s, thoughts) for s in batch), strict=True)
        mstep.ntp_step(model, opt, docs, kinds, 1e-3, cfg)

    assert_no_storm(count_of_steps(without_code, step, 5))


@pytest.mark.slow
def test_graphs_of_an_e_step(tok, snips, without_code):
    """Rollouts and policy gradients with a KL, and rollouts of a model over itself."""
    q, _, cfg = compiled(thinker(tok, 0), micro_tokens=500)
    pi = thinker(tok, 1).requires_grad_(False)

    def step(number):
        batch = snips[number * 3 : number * 3 + 3]
        rollout(pi, pi, tok, batch[:2], 2, 6, (number,), rate=0.3)
        rolls = rollout(q, pi, tok, batch, 3, 6, (number,), rate=0.3, states=True)
        A = 1.0 * rolls.think[None].repeat(2, 0)
        policy_gradient(q, pi, tok, rolls, A, kl=0.3, amp=True, micro_tokens=500)

    assert_no_storm(count_of_steps(without_code, step, 5))


@pytest.mark.slow
@pytest.mark.parametrize("forbids", [False, True])
def test_graphs_of_grpo(tok, snips, without_code, forbids):
    """Completions of other lengths at every step, scored before and measured against the start."""
    forbid = tuple(tok.thought_ids) if forbids else ()
    settings = dict(rl_kl=0.1, epochs=2, minibatches=2, micro_tokens=300)
    model, opt, cfg = compiled(thinker(tok, 0), **settings)
    start = thinker(tok, 1).requires_grad_(False)

    def step(number):
        prompts = [s.ids[: s.first[0]] for s in snips[number * 3 : number * 3 + 3]]
        groups = generate(model, prompts, 8 + number, tok.eos, n=3, seed=number, forbid=forbid)
        rlvr.update(model, start, opt, credited(prompts, groups), cfg, number, forbid)

    assert_no_storm(count_of_steps(without_code, step, 5))


# ---------------------------------------------------------------- what is kept

KEPT = """
import torch, torch._dynamo
from engine import machine
import logprobs
logprobs.COMPILE = True
logits = [torch.zeros(5), torch.zeros(5), torch.zeros(5), torch.randn(5, 7)]
logprobs.fused(logprobs.add_block, torch.device("cpu"))(*logits, None, False)
print(torch._dynamo.utils.counters["aot_autograd"]["autograd_cache_miss"], machine.graphs())
"""


@pytest.mark.slow
def test_the_next_run_finds_what_was_compiled(tmp_path):
    """torch keeps it between processes, and the next one makes no code."""
    env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    told = [
        subprocess.run(
            [sys.executable, "-c", KEPT], cwd=HERE, env=env, capture_output=True, text=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert told == [["1", "1"], ["0", "1"]]


@pytest.mark.slow
@pytest.mark.skipif(torch.version.cuda is None, reason="needs torch for CUDA: its Triton's ptxas")
def test_machine_code_of_an_h100():
    """All that is compiled on a GPU also compiles to sm_90, without one."""
    told = subprocess.run(
        [sys.executable, "tests/sm90.py"], cwd=HERE, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    kernels = [int(line.split(": ")[1].split()[0]) for line in told.stdout.splitlines()]
    assert len(kernels) == 12 and min(kernels) > 0, told.stdout


def test_every_command_compiles_as_it_is_told(monkeypatch):
    """--compile holds for log-probabilities wherever they are computed."""
    monkeypatch.setattr(logprobs, "COMPILE", None)
    for setting, expected in (("false", False), ("true", True), ("auto", None)):
        machine.set_up(make(compile=setting, threads=1))
        assert logprobs.COMPILE is expected
    for command in ("train", "evaluate", "sample", "hindsight.__main__"):
        assert importlib.import_module(command).set_up is machine.set_up


def test_seconds_in_the_progress_bar(monkeypatch):
    monkeypatch.setattr(machine, "compile_seconds", lambda: 0.2)
    assert machine.compile_postfix() == {}
    monkeypatch.setattr(machine, "compile_seconds", lambda: 12.3)
    assert machine.compile_postfix() == {"compile_s": "12"}
