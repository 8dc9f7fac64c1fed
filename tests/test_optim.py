"""AdamW in bfloat16 against torch's in float32: rounding, small steps, training and resuming."""

import os
import sys

import pytest
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import config
import mstep
from config import UserError
from engine import training
from engine.optim import CHUNK, RoundedAdamW, rounded
from model import ModelConfig, Transformer

torch.set_num_threads(1)


def test_rounding_is_unbiased_and_to_a_neighbour():
    gen = torch.Generator().manual_seed(0)
    for x in (1 + 2**-9, -1 - 3 * 2**-9, 0.3, 1e-30, -7e20, 0.0):
        many = rounded(torch.full((200_000,), x), 1).double()
        near = torch.tensor(x).bfloat16().double()
        assert (
            len(many.unique()) <= 2
            and ((many - x).abs() <= abs(x) * 2**-7).all()
            and (near == many).any()
        )
        assert abs(many.mean() - x) <= 4 * abs(x) * 2**-8 / 200_000**0.5
    x = torch.randn(1000, generator=gen).bfloat16()
    assert torch.equal(rounded(x.float(), 2), x)  # what is a bfloat16 stays
    y = torch.randn(1000, generator=gen)
    assert torch.equal(rounded(y, 3), rounded(y, 3)) and not torch.equal(
        rounded(y, 3), rounded(y, 4)
    )


def test_a_step_is_that_of_adamw(monkeypatch):
    """From the same bfloat16 state and gradient: within one bfloat16 of torch's float32 result.

    The parameter is updated in several chunks.
    """
    monkeypatch.setattr("engine.optim.CHUNK", 100)
    gen = torch.Generator().manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(33, 31, generator=gen).bfloat16())
    theirs = torch.nn.Parameter(ours.detach().float())
    a, b = (
        RoundedAdamW([ours], 1e-2, weight_decay=0.1),
        torch.optim.AdamW([theirs], 1e-2, betas=(0.9, 0.95), weight_decay=0.1),
    )
    for _ in range(3):
        grad = torch.randn(33, 31, generator=gen).bfloat16()
        ours.grad, theirs.grad = grad, grad.float()
        a.step(), b.step()
        assert ((ours - theirs).abs() <= theirs.abs() * 2**-6 + 1e-3).all()
        theirs.data.copy_(ours.float())
    assert ours.dtype == a.state[ours]["exp_avg"].dtype == torch.bfloat16 and CHUNK > 1000


def test_small_steps_are_not_lost():
    """A thousand steps of 1e-4 in one direction move the mean weight as in float32.

    Rounding to the nearest never moves it.
    """
    nearest, ours = (torch.nn.Parameter(torch.ones(4000).bfloat16()) for _ in range(2))
    for p, opt in (
        (nearest, torch.optim.AdamW([nearest], 1e-4, betas=(0.9, 0.95), weight_decay=0.0)),
        (ours, RoundedAdamW([ours], 1e-4)),
    ):
        for _ in range(1000):
            p.grad = torch.ones_like(p)
            opt.step()
    assert (nearest == 1).all() and abs(ours.float().mean().item() - 0.9) < 0.002


def trained(weights, steps, resume_at=None):
    """Losses of next-token training on one small batch of random documents."""
    cfg = config.make(bf16=False, weights=weights)
    net = (
        Transformer(ModelConfig(50, 2, 2, 2, 32, 64, 64))
        .init_weights(0)
        .to(getattr(torch, weights))
    )
    opt, gen = training.adamw(net, 3e-3, 0.1), torch.Generator().manual_seed(1)
    docs = [torch.randint(50, (20,), generator=gen).tolist() for _ in range(8)]
    kinds, losses = [[1] * 20] * 8, []
    for n in range(steps):
        if n == resume_at:
            weights_, state = {k: v.clone() for k, v in net.state_dict().items()}, opt.state_dict()
            net = Transformer(net.cfg).to(net.dtype)
            net.load_state_dict(weights_)
            opt = training.adamw(net, 3e-3, 0.1)
            opt.load_state_dict(state)
        losses.append(mstep.ntp_step(net, opt, docs, kinds, 3e-3, cfg)["loss"])
    return losses, net


def test_training_goes_as_in_float32():
    (full, _), (half, net) = trained("float32", 60), trained("bfloat16", 60)
    assert net.dtype == torch.bfloat16 and all(
        s["exp_avg_sq"].dtype == torch.bfloat16 for s in training.adamw(net, 1, 1).state.values()
    )
    assert (
        full[-1] < 0.3 * full[0]
        and abs(half[-1] - full[-1]) < 0.1 * full[0]
        and half[-1] < 0.35 * half[0]
    )


def test_resumed_is_the_same():
    (one, a), (two, b) = trained("bfloat16", 12), trained("bfloat16", 12, resume_at=5)
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    assert one == two and all(torch.equal(x, y) for x, y in pairs)


def test_not_with_shards():
    with pytest.raises(UserError, match="--weights bfloat16 --shard"):
        config.make(weights="bfloat16", shard=True)


# ---------------------------------------------------------------- seeds of the rounding


def test_runs_and_stages_round_apart():
    """One step from the same weights: equal seeds round alike; another run, stage, iteration, step
    or weight does not."""
    gen = torch.Generator().manual_seed(3)
    start = torch.randn(4096, generator=gen).bfloat16()
    gradient = torch.randn(4096, generator=gen).bfloat16()

    def stepped(seed, steps=1):
        weight = torch.nn.Parameter(start.clone())
        opt = RoundedAdamW([weight], 1e-4, seed=seed)
        for _ in range(steps):
            weight.data.copy_(start)
            weight.grad = gradient.clone()
            opt.step()
        return weight.detach()

    seeds = [(s, config.ROUNDING, *counters) for s in (0, 1) for counters in ((1,), (2,), (2, 1))]
    weights = [stepped(seed) for seed in seeds] + [stepped(seeds[0], 2)]
    assert torch.equal(stepped(seeds[0]), weights[0])
    for i, one in enumerate(weights):
        for other in weights[:i]:
            assert 100 < (one != other).sum() < 4000
    noise = RoundedAdamW([torch.nn.Parameter(start)], 1e-4).noise_seed
    assert (
        len({noise(n, number, k) for n in range(9) for number in range(9) for k in (0, 1)}) == 162
    )


def test_steps_that_round_apart_add_up_as_a_random_walk():
    """Ten stages of a step each spread as independent roundings do: sqrt(10) times one's."""
    start = torch.full((20_000,), 1.0).bfloat16()

    def walked(stages, same):
        weight = torch.nn.Parameter(start.clone())
        for stage in range(stages):
            opt = RoundedAdamW([weight], 2e-4, seed=(0, config.ROUNDING, 0 if same else stage))
            weight.grad = torch.ones_like(weight)
            opt.step()
        return weight.detach().float().std().item()

    assert walked(10, same=False) == pytest.approx(10**0.5 * walked(1, same=False), rel=0.1)
    assert walked(10, same=True) > 1.5 * walked(10, same=False)
