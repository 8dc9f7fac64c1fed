"""Two processes on the CPU (gloo) against one: the same losses, weights and results, with DDP and FSDP2, resumed with another number; mistakes."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import torch

import train
from worlds import TINY, Stop

pytestmark = pytest.mark.slow  # each test starts several processes that import torch

HERE = pathlib.Path(train.__file__).parent
FP32 = [*TINY, *"--pretrain-steps 60 --bf16 false --rollout-bf16 false".split()]
EM = [
    *FP32,
    *"--rows 3 --snippets 3 --n-heldout 3 --infuse 5 --eval-tasks 1 --samples 1 --estep-steps 4 --mstep-steps 4 --save-every 2".split(),
]
RLVR = [
    *FP32,
    *(
        "--stage rlvr --init base --n-rl 3 --rl-steps 4 --prompts 1 --completions 5 --max-new 12 --rl-lr 1e-3 --epochs 2 --rounds 2 "
        "--minibatches 2 --rl-kl 0.1 --micro-tokens 150 --mask-overlong false --eval-every 2 --eval-samples 1 --eval-tasks 1 --reward random "
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
    log = train.Run.log

    def log_and_stop(self, name, **m):
        log(self, name, **m)
        if stop == (name, m["phase"], m.get("iteration"), m["step"] if "step" in m else None):
            raise Stop

    if not stop:
        return train.main([*argv, "--out", str(out)])
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(train.Run, "log", log_and_stop)
        train.main([*argv, "--out", str(out)])


def script(tmp_path, text):
    path = tmp_path / "script.py"
    path.write_text(text)
    return path


# Rank 1 is killed once rank 0 may have written the line: what is left is what the last state says. The script is train.py otherwise.
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


def assert_same(a, b, names, most=1e-5):
    """Weights, metrics and results of two runs, but for what a clock and torch.compile's counter say, to within `most`; the E-step's surrogate, whose terms
    of some tens of nats cancel, to within ten times that. (The norm of its gradient is among the metrics.) A beginning that rows of two ranks share is
    read by both, so the tokens that b read, and its FLOPs, may be more."""
    read = lambda u, v: u <= v * (1 + 1e-9) <= 1.7 * u + 1e-9
    for name in names:
        x, y = (torch.load(p / f"{name}.pt", weights_only=True) for p in (a, b))
        assert x["weights"].keys() == y["weights"].keys() and read(
            x["extra"]["flops"], y["extra"]["flops"]
        )
        assert max((x["weights"][k] - y["weights"][k]).abs().max() for k in x["weights"]) < most, (
            name
        )
    lines = [[json.loads(line) for line in open(p / "metrics.jsonl")] for p in (a, b)]
    assert len(lines[0]) == len(lines[1])
    for u, v in zip(*lines):
        u, v = (
            {
                k: x
                for k, x in line.items()
                if k not in ("seconds", "cpu_s", "tokens_per_s", "graphs") and not k.endswith("_s")
            }
            for line in (u, v)
        )
        most_of = lambda k: 10 * most if (u["phase"], k) == ("estep", "loss") else most
        near = {
            k: pytest.approx(x, rel=most_of(k), abs=most)
            for k, x in v.items()
            if isinstance(x, float)
        }
        for key in {"flops", "tokens", "trained", "scored"} & u.keys():
            assert read(u[key], v[key]), (key, u, v)
            near[key] = u[key]
        assert u == {**v, **near}, (u, v)
    if (a / "results.json").exists():
        u, v = (json.load(open(p / "results.json")) for p in (a, b))
        for m in u:
            assert read(u[m].pop("flops"), v[m].pop("flops"))
            assert u[m].pop("measured") == v[m].pop("measured")
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
    """Pretraining, NTP and half an E-step with two ranks (DDP), killed; one process from there, stopped in the M-step; two ranks (FSDP2) to the end: all
    weights, metrics and results against one process that was never stopped."""
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
    """A problem a step (so a rank has none to sample), five completions, several micro-batches, minibatches, epochs and rounds: two ranks (FSDP2), killed,
    then one process, stopped, then two ranks (DDP), against one process."""
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
import copy, torch
from engine import parallel
from logprobs import token_logprobs
from model import ModelConfig, Transformer
torch.set_num_threads(1)

def loss(model, ids):
    return -token_logprobs(model(ids)[:, :-1].flatten(0, 1), model.head_weight, ids[:, 1:].flatten(), chunk=5).sum()          # in chunks, recomputed

with parallel.ranks():
    me = parallel.rank()
    torch.manual_seed(0)
    for n in range(6):
        xs = list(range(n))
        assert parallel.unshard(parallel.shard(xs)) == xs and parallel.shard(torch.arange(n)).tolist() == parallel.shard(xs) == xs[me::2]
    assert parallel.all_gather(me) == [0, 1]
    for tied, shard, counts in ((t, s, c) for t in (True, False) for s in (False, True) for c in ((3, 1), (0, 2), (1, 1), (0, 0))):
        cfg = ModelConfig(50, 2, 2, 1, 16, 32, 16, tied=tied, qkv_bias=True)
        alone = Transformer(cfg).init_weights(1)
        model = parallel.wrap(copy.deepcopy(alone), shard)
        opts = [torch.optim.AdamW(m.parameters(), 1e-2, fused=True) for m in (alone, model)]
        for step in range(3):
            ids = [torch.randint(50, (2, 7 + k), generator=torch.Generator().manual_seed(10 * step + k)) for k in range(sum(counts))]
            for part in ids:
                loss(alone, part).backward()
            with torch.no_grad():
                scores = [float(loss(model, part)) for part in parallel.synced_batches(model, parallel.shard(ids))]
                assert torch.allclose(torch.tensor(parallel.unshard(scores)), torch.tensor([float(loss(alone, part)) for part in ids]), atol=1e-4)
            for part in parallel.synced_batches(model, ids[:counts[0]] if me == 0 else ids[counts[0]:]):
                parallel.backward(loss(model, part))
            norm = torch.nn.utils.clip_grad_norm_(alone.parameters(), 1.0).item()
            assert abs(parallel.clip(model, 1.0).item() - norm) < 1e-4 * norm + 1e-9
            for opt in opts:
                opt.step()
                opt.zero_grad()
            if step == 1:                                    # what a checkpoint does
                saved = [parallel.all_gather(parallel.state(x))[0] for x in (model, opts[1])]
                model = Transformer(cfg)
                model.load_state_dict(saved[0])
                model = parallel.wrap(model, shard)
                opts[1] = torch.optim.AdamW(model.parameters(), 1e-2, fused=True)
                parallel.restore_optimizer(opts[1], saved[1])
        one = parallel.unwrap(model)
        assert type(one) is Transformer and torch.equal(one.cos, alone.cos)
        for (name, a), b in zip(alone.named_parameters(), one.parameters()):
            assert b.requires_grad and type(b) is torch.nn.Parameter and (a - b).abs().max() < 1e-5, (tied, shard, counts, name)
    print("all is well")
"""


def test_gradients_of_uneven_shares(tmp_path):
    """Two ranks with 3 and 1, 0 and 2, 1 and 1 and no micro-batches, of different lengths, through three steps of AdamW and a checkpoint, against one
    process that has them all; tied head and not, DDP and FSDP2. Scores without gradients in between."""
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
    """A mistake that all ranks see, and an error of one while the other waits for it: told once, and torchrun ends."""
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
