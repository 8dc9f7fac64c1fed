"""`--engine false`: the plain code from a base to trained models, against the fast code."""

import shutil

import pytest
import torch

import train
from config import UserError, make
from engine.backend import FAST
from worlds import TINY, metrics, weights

torch.set_num_threads(1)
FLOAT32 = (
    "--bf16 false --rollout-bf16 false --n-expert 12 --iters 1 --infuse 6 --snippets 3".split()
)


def run(out, *more):
    train.main([*TINY, *FLOAT32, "--out", str(out), *more])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base model of the built-in domain."""
    out = tmp_path_factory.mktemp("runs") / "base"
    run(out, "--stage", "pretrain")
    return out


def both(base, tmp_path, name, *argv):
    """The weights and metrics of a stage's model, computed fast and plainly."""
    results = []
    for engine in ("true", "false"):
        out = tmp_path / engine
        shutil.copytree(base, out)
        run(out, "--engine", engine, *argv)
        results.append((weights(out / f"{name}.pt"), metrics(out)))
    return results


def assert_equal(fast, plain, before):
    """Equal weights to rounding, and not those before."""
    moved = 0.0
    for key, x in fast.items():
        scale = float(x.abs().max())
        assert float((x - plain[key]).abs().max()) < 1e-4 * scale, key
        moved = max(moved, float((x - before[key]).abs().max()) / scale)
    assert moved > 1e-3


@pytest.mark.parametrize("prior", ["penalty", "exact"])
def test_em(base, tmp_path, prior):
    """E-step, infusion, M-step and the bound of one EM iteration."""
    argv = f"--stage em --estep reinforce --estep-steps 2 --kl-prior {prior}".split()
    argv += "--eval-tasks 1 --samples 1 --n-heldout 2 --elbo-samples 1 --models base".split()
    (fast, lines), (plain, plain_lines) = both(base, tmp_path, "ra3", *argv)
    assert_equal(fast, plain, weights(base / "base.pt"))
    esteps = [[line for line in m if line["phase"] == "estep"] for m in (lines, plain_lines)]
    assert len(esteps[0]) == 2 and esteps[0][0]["think_share"] > 0
    for a, b in zip(*esteps, strict=True):
        for key in ("reward", "loss", "kl", "grad_norm", "think_share", "gain"):
            assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-4), key


@pytest.mark.parametrize("thoughts", ["true", "false"])
def test_rlvr(base, tmp_path, thoughts):
    """Two steps of GRPO with two epochs and a KL."""
    argv = (
        "--stage rlvr --init base --rl-steps 2 --prompts 2 --completions 3 --reward random".split()
    )
    argv += (
        f"--epochs 2 --rl-kl 0.1 --mask-overlong false --eval-every 0 --thoughts {thoughts}".split()
    )
    (fast, lines), (plain, plain_lines) = both(
        base, tmp_path, "rlvr-base", *argv, "--rl-lr", "1e-3"
    )
    assert_equal(fast, plain, weights(base / "base.pt"))
    steps = [[line for line in m if line["phase"] == "rlvr"] for m in (lines, plain_lines)]
    for a, b in zip(*steps, strict=True):
        for key in ("loss", "entropy", "kl_start", "length", "reward"):
            assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-5), key


def test_every_function_has_a_twin():
    """No function of the plain backend is the fast one."""
    for name, fast, plain in zip(FAST._fields, FAST, train.PLAIN, strict=True):
        assert fast is not plain, name


def test_what_has_no_twin():
    with pytest.raises(UserError, match="--engine false --estep hindsight: expected"):
        make(engine=False, estep="hindsight")
