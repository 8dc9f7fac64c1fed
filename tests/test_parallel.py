"""Two processes on the CPU (gloo) against one: losses, weights, results, resuming and mistakes.

With DDP and with FSDP2. A run is resumed with another number of processes.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import torch

import run as runs
import train
from worlds import TINY, Stop

pytestmark = pytest.mark.slow  # each test starts several processes that import torch

HERE = pathlib.Path(train.__file__).parent
FP32 = [*TINY, *"--pretrain-steps 60 --bf16 false --rollout-bf16 false".split()]
EM = [
    *FP32,
    *(
        "--rows 3 --snippets 3 --n-heldout 3 --infuse 5 --eval-tasks 1 --samples 1 "
        "--estep-steps 4 --mstep-steps 4 --save-every 2"
    ).split(),
]
RLVR = [
    *FP32,
    *(
        "--stage rlvr --init base --n-rl 3 --rl-steps 4 --prompts 1 --completions 5 --max-new 12 "
        "--rl-lr 1e-3 --epochs 2 --rounds 2 --minibatches 2 --rl-kl 0.1 --micro-tokens 150 "
        "--mask-overlong false --eval-every 2 --eval-samples 1 --eval-tasks 1 --reward random "
        "--save-every 2"
    ).split(),
]


def two(script, *argv):
    """A script under torchrun, two ranks -> (its status, what it said)."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            str(script),
            *map(str, argv),
        ],
        cwd=HERE,
        env={**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr


def one(out, argv, monkeypatch=None, stop=None):
    """train.py in this process; stopped after the metrics line `stop`, if one is given."""
    log = runs.Run.log

    def log_and_stop(self, name, **m):
        log(self, name, **m)
        if stop == (name, m["phase"], m.get("iteration"), m["step"] if "step" in m else None):
            raise Stop

    if not stop:
        return train.main([*argv, "--out", str(out)])
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(runs.Run, "log", log_and_stop)
        train.main([*argv, "--out", str(out)])


def script(tmp_path, text):
    path = tmp_path / "script.py"
    path.write_text(text)
    return path


# train.py, but rank 1 is killed after a line of metrics.
# Rank 0 may have written that line, so the last saved state decides where the run goes on.
KILLED = """
import os, runpy, signal, sys
from engine import parallel
from run import Run
log, stop = Run.log, eval(sys.argv.pop())
def log_and_die(run, name, **m):
    log(run, name, **m)
    if stop == (name, m["phase"], m.get("iteration"), m.get("step")) and parallel.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
Run.log = log_and_die
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""


def read_alike(u, v):
    """Are v the tokens, or FLOPs, of two ranks where u are those of one?

    Both ranks read a prefix that their rows share, so v may be larger, by a factor of 1.7.
    """
    return u <= v * (1 + 1e-9) <= 1.7 * u + 1e-9


def metric_tolerance(phase, key, tolerance):
    """Ten times larger for the E-step's surrogate, whose terms of tens of nats cancel."""
    cancels = phase == "estep" and key in ("loss", "grad_norm")
    return 10 * tolerance if cancels else tolerance


def assert_same(a, b, names, most=1e-5):
    """Weights, metrics and results of two runs are equal to within `most`.

    Times and torch.compile's counter are left out. The norm of the E-step's gradient is among the
    metrics. The tokens that b read, and its FLOPs, may be more: see `read_alike`.
    """
    for name in names:
        x, y = (torch.load(p / f"{name}.pt", weights_only=True) for p in (a, b))
        assert x["weights"].keys() == y["weights"].keys()
        assert read_alike(x["extra"]["flops"], y["extra"]["flops"])
        assert max((x["weights"][k] - y["weights"][k]).abs().max() for k in x["weights"]) < most, (
            name
        )
    lines = [[json.loads(line) for line in open(p / "metrics.jsonl")] for p in (a, b)]
    assert len(lines[0]) == len(lines[1])
    for u, v in zip(*lines, strict=True):
        u, v = (
            {
                k: x
                for k, x in line.items()
                if k not in ("seconds", "cpu_s", "tokens_per_s", "graphs") and not k.endswith("_s")
            }
            for line in (u, v)
        )
        near = {
            k: pytest.approx(x, rel=metric_tolerance(u["phase"], k, most), abs=most)
            for k, x in v.items()
            if isinstance(x, float)
        }
        for key in {"flops", "tokens", "trained", "scored"} & u.keys():
            assert read_alike(u[key], v[key]), (key, u, v)
            near[key] = u[key]
        assert u == {**v, **near}, (u, v)
    if (a / "results.json").exists():
        u, v = (json.load(open(p / "results.json")) for p in (a, b))
        for m in u:
            assert read_alike(u[m].pop("flops"), v[m].pop("flops"))
            assert u[m].pop("measured") == v[m].pop("measured")
            intervals, near = (entry[m].pop("intervals") for entry in (u, v))
            assert intervals == {k: pytest.approx(x, rel=most, abs=most) for k, x in near.items()}
            assert u[m] == {
                k: x if x is None else pytest.approx(x, rel=most, abs=most) for k, x in v[m].items()
            }
        assert u.keys() == v.keys()
    assert not list(b.glob("*.state")) + list(b.glob("*.part"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One process, uninterrupted: pretrain, ntp, two EM iterations, evaluation."""
    out = tmp_path_factory.mktemp("parallel") / "whole"
    one(out, EM)
    return out


def test_em_with_two_ranks(whole, tmp_path, monkeypatch):
    """All weights, metrics and results are those of one process that was never stopped.

    Two ranks (DDP) are killed in the middle of the first E-step. One process goes on from there and
    is stopped in the M-step. Two ranks (FSDP2) go on to the end.
    """
    out = tmp_path / "run"
    status, said = two(script(tmp_path, KILLED), *EM, "--out", out, ("ra3", "estep", 0, 2))
    assert (
        status
        and (out / "ntp.pt").exists()
        and torch.load(out / "ra3.state", weights_only=True)["step"] == 2
    ), said
    one(out, [*EM, "--resume"], monkeypatch, ("ra3", "mstep", 0, 2))
    status, said = two("train.py", *EM, "--resume", "--shard", "--out", out)
    assert (
        status == 0
        and said.count("everything is in") == 1
        and said.count("never thinking  lines") == 1
    ), said
    assert_same(whole, out, ("base", "ntp", "ra3"))
    lines = [json.loads(line) for line in open(out / "metrics.jsonl")]
    assert any(
        line["phase"] == "estep" and line["grad_norm"] > 0 and line["think_share"] > 0
        for line in lines
    )


def test_rlvr_with_two_ranks(whole, tmp_path, monkeypatch):
    """Two ranks (FSDP2), killed, then one process, stopped, then two ranks (DDP): as one process.

    A step has one problem, so one rank samples nothing. There are five completions and several
    micro-batches, minibatches, epochs and rounds.
    """
    runs = [tmp_path / name for name in ("one", "two")]
    for out in runs:
        out.mkdir()
        for name in ("base.pt", "tokenizer.txt"):
            shutil.copy(whole / name, out)
    one(runs[0], RLVR)
    status, said = two(
        script(tmp_path, KILLED), *RLVR, "--shard", "--out", runs[1], ("rlvr-base", "rlvr", None, 3)
    )
    assert status and torch.load(runs[1] / "rlvr-base.state", weights_only=True)["step"] == 2, said
    one(runs[1], [*RLVR, "--resume"], monkeypatch, ("rlvr-base", "rlvr", None, 3))
    status, said = two("train.py", *RLVR, "--resume", "--out", runs[1])
    assert status == 0, said
    assert_same(*runs, ["rlvr-base"])
    a, b = (
        torch.load(out / f"{name}.pt", weights_only=True)["weights"]["embed.weight"]
        for out, name in ((runs[0], "base"), (runs[0], "rlvr-base"))
    )
    assert (a - b).abs().max() > 1e-3


PARTS = """
import copy, itertools, torch
from engine import parallel
from logprobs import token_logprobs
from model import ModelConfig, Transformer
torch.set_num_threads(1)

def loss(model, ids):
    hidden = model(ids)[:, :-1].flatten(0, 1)
    targets = ids[:, 1:].flatten()
    logp = token_logprobs(hidden, model.head_weight, targets, chunk=5)  # in chunks, recomputed
    return -logp.sum()

with parallel.ranks():
    me = parallel.rank()
    torch.manual_seed(0)
    for n in range(6):
        xs = list(range(n))
        assert parallel.unshard(parallel.shard(xs)) == xs
        assert parallel.shard(torch.arange(n)).tolist() == parallel.shard(xs) == xs[me::2]
    assert parallel.all_gather(me) == [0, 1]
    cases = itertools.product((True, False), (False, True), ((3, 1), (0, 2), (1, 1), (0, 0)))
    for tied, shard, counts in cases:
        cfg = ModelConfig(50, 2, 2, 1, 16, 32, 16, tied=tied, qkv_bias=True)
        alone = Transformer(cfg).init_weights(1)
        model = parallel.wrap(copy.deepcopy(alone), shard)
        opts = [torch.optim.AdamW(m.parameters(), 1e-2, fused=True) for m in (alone, model)]
        for step in range(3):
            seeds = [10 * step + k for k in range(sum(counts))]
            gens = [torch.Generator().manual_seed(seed) for seed in seeds]
            ids = [torch.randint(50, (2, 7 + k), generator=gen) for k, gen in enumerate(gens)]
            for part in ids:
                loss(alone, part).backward()
            with torch.no_grad():
                batches = parallel.synced_batches(model, parallel.shard(ids))
                scores = torch.tensor(parallel.unshard([float(loss(model, x)) for x in batches]))
                expected = torch.tensor([float(loss(alone, x)) for x in ids])
                assert torch.allclose(scores, expected, atol=1e-4)
            share = ids[:counts[0]] if me == 0 else ids[counts[0]:]
            for part in parallel.synced_batches(model, share):
                parallel.backward(loss(model, part))
            norm = torch.nn.utils.clip_grad_norm_(alone.parameters(), 1.0).item()
            assert abs(parallel.clip(model, 1.0).item() - norm) < 1e-4 * norm + 1e-9
            for opt in opts:
                opt.step()
                opt.zero_grad()
            if step == 1:  # what a checkpoint does
                saved = [parallel.all_gather(parallel.state(x))[0] for x in (model, opts[1])]
                model = Transformer(cfg)
                model.load_state_dict(saved[0])
                model = parallel.wrap(model, shard)
                opts[1] = torch.optim.AdamW(model.parameters(), 1e-2, fused=True)
                parallel.restore_optimizer(opts[1], saved[1])
        one = parallel.unwrap(model)
        assert type(one) is Transformer and torch.equal(one.cos, alone.cos)
        for (name, a), b in zip(alone.named_parameters(), one.parameters()):
            assert b.requires_grad and type(b) is torch.nn.Parameter, (tied, shard, counts, name)
            assert (a - b).abs().max() < 1e-5, (tied, shard, counts, name)
    print("all is well")
"""


def test_gradients_of_uneven_shares(tmp_path):
    """Two ranks through three steps of AdamW and a checkpoint, against one process.

    The ranks have 3 and 1, 0 and 2, 1 and 1, or no micro-batches, of different lengths. The one
    process has them all. The head is tied or not, with DDP and FSDP2. Every step also computes
    scores without gradients.
    """
    status, said = two(script(tmp_path, PARTS))
    assert status == 0 and said.count("all is well") == 1, said


FAILS = """
import runpy, sys, mstep
from config import UserError
from engine import parallel
def fail(*_):
    if parallel.rank() == 1:
        raise UserError("only rank 1 cannot go on")
    parallel.all_gather(None)
mstep.ntp_step = fail
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""


def test_an_error_of_one_rank_ends_all(tmp_path):
    """An error of all ranks, or of one while the other waits, is told once and torchrun ends."""
    for path, argv, line in (
        (
            "train.py",
            ["--gruop", "4"],
            "train.py: --gruop: no such setting; did you mean --group?; see --help",
        ),
        (script(tmp_path, FAILS), [], "train.py: only rank 1 cannot go on"),
    ):
        status, said = two(path, *FP32, "--stage", "pretrain", "--out", tmp_path / "run", *argv)
        assert status == 1 and said.count(line + "\n") == said.count("train.py:") == 1, said
