"""RLVR: the loss against its equation written out token by token, the gradient against enumeration,
rewards, exact resume, and mistakes.
"""

import copy
import dataclasses
import itertools
import json
import math
import re
import signal
import statistics
import subprocess
import sys
import zlib
from concurrent.futures import Future

import numpy as np
import pytest
import torch

import config
import domain
import rlvr
import run as runs
import train
from benchmarks.files import read_rows
from config import UserError
from corpus.problems import problems
from engine import training
from engine.backend import FAST
from engine.gradients import score_completions
from grader.grade import Grader, Result
from rlvr import (
    Sample,
    batches,
    group_advantages,
    problem_order,
    sample_groups,
    surrogate,
    thought_share,
    token_weights,
    update,
)
from tasks import Task
from worlds import (
    HASH,
    HERE,
    TINY,
    Stop,
    V,
    listing,
    metrics,
    same_weights,
    softmaxed,
    thinker,
    tiny_model,
)

torch.set_num_threads(1)
PROMPT, EOS = [2, 3], 1


def settings(**given):
    return config.make(
        **{
            "bf16": False,
            "rollout_bf16": False,
            "grad_clip": 1e9,
            "max_new": 6,
            "micro_tokens": 20,
            **given,
        }
    )


def collect(model, tok, tasks, cfg, first, grader):
    """Sample and grade -> (samples, seconds waited)."""
    samples = rlvr.sample_completions(model, tok, tasks, cfg, first, grader)
    return rlvr.grade_samples(samples, cfg, grader)


def set_rewards(samples, cfg, grader):
    for s, reward in zip(samples, rlvr.REWARDS[cfg.reward](samples, cfg, grader), strict=True):
        s.reward = reward


def with_advantages(samples, std):
    """Samples with the advantages of their groups, which have three completions each."""
    R = np.array([s.reward for s in samples]).reshape(-1, 3)
    for s, A in zip(samples, group_advantages(R, std).flatten(), strict=False):
        s.advantage = float(A)
    return samples


# ---------------------------------------------------------------- advantages and normalisers


def test_advantages():
    """Worked by hand: one of four, two of four with the population's deviation, shares of tests;
    nothing where all rewards are equal.
    """
    assert group_advantages(np.array([[1.0, 0, 0, 0]]), std=False).tolist() == [
        [0.75, -0.25, -0.25, -0.25]
    ]
    root = 3**0.5
    assert group_advantages(np.array([[1.0, 0, 0, 0], [1, 1, 0, 0]])) == pytest.approx(
        np.array([[root, -1 / root, -1 / root, -1 / root], [1, 1, -1, -1]]), abs=1e-5
    )
    assert group_advantages(np.array([[0, 0.5, 1]])) == pytest.approx(
        np.array([[-(1.5**0.5), 0, 1.5**0.5]]), abs=1e-5
    )
    for G, value in itertools.product(
        (2, 3, 5, 6, 7, 8, 12), (0, 0.1, 0.2, 1 / 3, 0.4, 0.7, 1)
    ):  # means of equal numbers are not always that number
        for std in (True, False):
            assert not group_advantages(np.full((2, G), value), std).any(), (G, value)


def test_token_weights():
    """Lengths 3, 1 and 4 by hand, with max_new 5; and what must add up: token: the tokens weigh 1
    together, sequence: each completion weighs 1/N, constant: the weight of a token knows no length.
    """
    lengths = [3, 1, 4]
    assert token_weights(lengths, "token", 5).tolist() == pytest.approx([1 / 8] * 3)
    assert token_weights(lengths, "sequence", 5).tolist() == pytest.approx([1 / 9, 1 / 3, 1 / 12])
    assert token_weights(lengths, "constant", 5).tolist() == pytest.approx([1 / 15] * 3)
    rng = np.random.default_rng(0)
    for n in (1, 2, 17):
        lengths = rng.integers(1, 50, n)
        assert (lengths * token_weights(lengths, "token", 50)).sum() == pytest.approx(1)
        assert lengths * token_weights(lengths, "sequence", 50) == pytest.approx(np.full(n, 1 / n))
        assert token_weights(lengths, "constant", 50) == pytest.approx(
            token_weights([1] * n, "constant", 50)
        )


def test_surrogate():
    """min(rho A, clip(rho) A) and the flags with the range .8 to 1.28, by hand: clipped are only
    ratios that already went where A pulls them.
    """
    cases = [
        (0.5, 1, 0.5, 0, 0),
        (0.5, -1, -0.8, 1, 0),
        (0.9, 2, 1.8, 0, 0),
        (0.9, -2, -1.8, 0, 0),
        (1, 3, 3, 0, 0),
        (1.2, 1, 1.2, 0, 0),
        (1.25, 1, 1.25, 0, 0),
        (1.25, -1, -1.25, 0, 0),
        (1.5, 2, 2.56, 0, 1),
        (1.5, -2, -3, 0, 0),
        (1.5, 0, 0, 0, 0),
        (0.5, 0, 0, 0, 0),
    ]
    rho, A, value, below, above = torch.tensor(cases, dtype=torch.float64).T
    logp = (rho.log() - 1).requires_grad_()
    got = surrogate(logp, torch.full_like(rho, -1), A, 0.2, 0.28)
    assert (
        torch.allclose(got[0], value, rtol=0, atol=1e-12)
        and got[1].tolist() == below.bool().tolist()
        and got[2].tolist() == above.bool().tolist()
    )
    got[0].sum().backward()  # no gradient where it was clipped, rho A elsewhere
    assert torch.allclose(
        logp.grad, torch.where((below + above) > 0, 0.0, rho * A), rtol=0, atol=1e-12
    )


# ---------------------------------------------------------------- the loss and its gradient,
# against the equation


def some_samples():
    """Two groups of three completions of one to six tokens, one of each unfinished; none holds a
    token that begins a comment.
    """
    rows = [
        (0, PROMPT, [3, 2, 1], True, 1.0),
        (0, PROMPT, [2, 1], True, 0.0),
        (0, PROMPT, [3, 3, 2, 2, 3, 2], False, 0.0),
        (1, [3, 0, 2, 4], [1], True, 0.5),
        (1, [3, 0, 2, 4], [2, 3, 3, 1], True, 0.0),
        (1, [3, 0, 2, 4], [2, 2, 2, 2, 3, 2], False, 1.0),
    ]
    return [
        Sample(None, prompt, ids, [-1.5] * len(ids), finished, group, "", None, reward)
        for group, prompt, ids, finished, reward in rows
    ]


def given_none_of(logp, forbid):
    """log p of a distribution (V,) given that none of some tokens comes."""
    return logp.index_fill(0, torch.tensor(forbid, dtype=torch.int64), -torch.inf).log_softmax(0)


def log_pi(model, s, forbid=()):
    """log pi of each token of a completion, one prefix at a time."""
    return [
        given_none_of(softmaxed(model, s.prompt + s.ids[:t])[-1], forbid)[token]
        for t, token in enumerate(s.ids)
    ]


def kl_to(start, model, s, t, forbid):
    """KL(pi || start) of token t of a completion, both given that none of `forbid` comes."""
    q, p = (
        given_none_of(softmaxed(m, s.prompt + s.ids[:t])[-1], forbid)[
            [i for i in range(V) if i not in forbid]
        ]
        for m in (model, start)
    )
    return (q.exp() * (q - p.detach())).sum()


def entropy_of(logp):
    """-sum p log p; a token that cannot come counts nothing."""
    p = logp.exp()
    return -(p * logp.masked_fill(p == 0, 0.0)).sum()


def objective(model, old, start, samples, cfg, forbid):
    """J of the module's docstring, with advantages by the statistics module, and counts of tokens
    clipped from below and above.
    """
    J, below, above = 0.0, 0, 0
    in_loss = [s for s in samples if s.finished or not cfg.mask_overlong]
    Z = {
        "token": sum(len(s.ids) for s in in_loss),
        "sequence": len(in_loss),
        "constant": len(in_loss) * cfg.max_new,
    }[cfg.rl_norm]
    for s in in_loss:
        R = [other.reward for other in samples if other.group == s.group]
        A = s.reward - statistics.mean(R)
        A /= statistics.pstdev(R) + 1e-6 if cfg.rl_std else 1
        w = 1 / len(s.ids) if cfg.rl_norm == "sequence" else 1
        for t, (logp, was) in enumerate(zip(log_pi(model, s, forbid), old[id(s)], strict=False)):
            rho = (logp - was).exp()
            clipped = min(max(float(rho.detach()), 1 - cfg.clip_low), 1 + cfg.clip_high)
            J = J + w / Z * (rho * A if rho * A <= clipped * A else clipped * A)
            below, above = (
                below + (A < 0 and clipped > float(rho.detach())),
                above + (A > 0 and clipped < float(rho.detach())),
            )
            J = J - cfg.rl_kl * w / Z * kl_to(start, model, s, t, forbid)
    return J, below, above


def updates_by_hand(model, start, samples, cfg, forbid, lr, order):
    """Plain gradient steps up J, `epochs` times over the groups in each of `order` -> losses,
    shares of tokens clipped.
    """
    old = {id(s): [float(x.detach()) for x in log_pi(model, s, forbid)] for s in samples}
    losses, below, above, tokens = [], 0, 0, 0
    for groups in [groups for _ in range(cfg.epochs) for groups in order]:
        mine = [s for s in samples if s.group in groups]
        J, low, high = objective(model, old, start, mine, cfg, forbid)
        grads = torch.autograd.grad(J, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=False):
                p += lr * g
        losses.append(-float(J.detach()))
        below, above, tokens = (
            below + low,
            above + high,
            tokens + sum(len(s.ids) for s in mine if s.finished or not cfg.mask_overlong),
        )
    return losses, below / tokens, above / tokens


def parameters(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def near(a, b, before):
    """Are two results of an update the same, up to float32 in the logits?"""
    return float((a - b).abs().max()) < 1e-5 * float((a - before).abs().max())


ONE_UPDATE = [
    dict(rl_norm=norm, rl_std=std)
    for norm in ("token", "sequence", "constant")
    for std in (True, False)
] + [
    dict(rl_kl=0.3),
    dict(rl_kl=0.3, rl_norm="sequence", mask_overlong=False),
    dict(mask_overlong=False),
    dict(mask_overlong=False, rl_norm="constant"),
    dict(thoughts=False),
    dict(thoughts=False, rl_kl=0.3, rl_norm="constant", rl_std=False),
    dict(micro_tokens=1),
    dict(micro_tokens=10**6),
]
MORE = [
    dict(epochs=2),
    dict(epochs=3, rl_norm="sequence", mask_overlong=False),
    dict(epochs=3, clip_low=0.01, clip_high=0.3, thoughts=False),
    dict(epochs=2, minibatches=2, rl_kl=0.3),
    dict(epochs=2, minibatches=2, rl_norm="constant", mask_overlong=False),
]


def label(given):
    return " ".join(f"{k}={v}" for k, v in given.items())


@pytest.mark.parametrize("given", ONE_UPDATE + MORE, ids=label)
def test_update_is_the_equation(given):
    """Weights after one update, or several, by plain gradient steps, and the metrics, against J in
    float64, one token of one completion at a time. With two minibatches of a group each, either may
    come first, and keeps its place. The fast code and the plain.
    """
    cfg, several = settings(**given), given in MORE
    forbid, lr = () if cfg.thoughts else HASH, 0.1
    start, samples = tiny_model(1), with_advantages(some_samples(), cfg.rl_std)
    start.requires_grad_(False)
    orders = [[{0}, {1}], [{1}, {0}]] if cfg.minibatches == 2 else [[{0, 1}]]
    by_hand = []
    for order in orders:
        wanted = tiny_model(0)
        by_hand.append((wanted, *updates_by_hand(wanted, start, samples, cfg, forbid, lr, order)))
    before = parameters(tiny_model(0))
    for backend in (FAST, train.PLAIN):
        model = tiny_model(0)
        opt = torch.optim.SGD(model.parameters(), lr)
        m = update(model, start, opt, samples, cfg, seed=0, forbid=forbid, backend=backend)
        after = parameters(model)
        fits = [result for result in by_hand if near(parameters(result[0]), after, before)]
        assert len(fits) == 1 and m["updates"] == cfg.epochs * cfg.minibatches
        _, losses, below, above = fits[0]
        assert m["loss"] == pytest.approx(np.mean(losses), abs=1e-6)
        assert (m["clip_low"], m["clip_high"]) == pytest.approx((below, above))
        assert (below + above > 0) == several
        if not several:
            assert m["grad_norm"] * lr == pytest.approx(float((after - before).norm()), rel=1e-5)
            assert_seen_by_one_update(m, start, samples, cfg, forbid)
        if not several and backend is FAST:  # beginnings once
            in_loss = [s for s in samples if s.finished or not cfg.mask_overlong]
            micro_batches = batches(in_loss, cfg.micro_tokens)
            assert m["trained"] == sum(nodes([in_loss[i] for i in at]) for at in micro_batches)


def assert_seen_by_one_update(m, start, samples, cfg, forbid):
    """The metrics of an update of `tiny_model(0)` that are of the model as it was before."""
    in_loss = [s for s in samples if s.finished or not cfg.mask_overlong]
    start_at, rows = tiny_model(0), [(s, t) for s in in_loss for t in range(len(s.ids))]
    dists = [
        given_none_of(softmaxed(start_at, s.prompt + s.ids[:t])[-1].detach(), forbid)
        for s, t in rows
    ]
    assert m["entropy"] == pytest.approx(float(np.mean([entropy_of(d) for d in dists])), abs=1e-5)
    gaps = [float(d[s.ids[t]]) + 1.5 for d, (s, t) in zip(dists, rows, strict=True)]
    assert m["logp_gap"] == pytest.approx(np.mean(np.abs(gaps)), abs=1e-5)
    assert m["logp_gap_max"] == pytest.approx(np.max(np.abs(gaps)), abs=1e-5)
    off = [not 0.9 <= math.exp(gap) <= 1.1 for gap in gaps]
    assert 0 < m["ratio_off"] < 1 and m["ratio_off"] == pytest.approx(np.mean(off))
    kls = [float(kl_to(start, start_at, s, t, forbid).detach()) for s, t in rows]
    if cfg.rl_kl:
        assert m["kl_start"] == pytest.approx(np.mean(kls), abs=1e-5)
    else:  # of one completion a group
        each = {
            id(s): [x for x, (other, _) in zip(kls, rows, strict=False) if other is s]
            for s in in_loss
        }
        pairs = itertools.product(
            *[[each[id(s)] for s in in_loss if s.group == group] for group in (0, 1)]
        )
        assert any(m["kl_start"] == pytest.approx(np.mean(a + b), abs=1e-5) for a, b in pairs)


def test_the_cases_differ():
    """The comparison above has power: every setting in it changes the result."""
    results = []
    for given in ONE_UPDATE[:-2] + MORE:
        cfg, model = settings(**given), tiny_model(0)
        update(
            model,
            tiny_model(1).requires_grad_(False),
            torch.optim.SGD(model.parameters(), 1.0),
            with_advantages(some_samples(), cfg.rl_std),
            cfg,
            0,
            () if cfg.thoughts else HASH,
        )
        results.append(parameters(model))
    for a, b in itertools.combinations(results, 2):
        assert float((a - b).abs().max()) > 1e-4


@pytest.mark.parametrize("bf16", [False, True])
def test_first_ratio_is_one(monkeypatch, bf16):
    """With three epochs the surrogate of the first update is A bit for bit, and nothing is clipped;
    afterwards it is not. A thousand tokens and more in a micro-batch, so that their logits are made
    in pieces.
    """
    model, rng, seen = thinker_of(29), np.random.default_rng(0), []
    samples = [
        Sample(
            None,
            [5] * (1 + i % 4),
            rng.integers(29, size=40).tolist(),
            [-3.0] * 40,
            True,
            i // 4,
            "",
            None,
            0.0,
            "",
            (-1.0) ** i,
        )
        for i in range(40)
    ]
    monkeypatch.setattr(
        rlvr,
        "surrogate",
        lambda logp, old, A, *rest: seen.append((surrogate(logp, old, A, *rest), A)) or seen[-1][0],
    )
    cfg = settings(bf16=bf16, epochs=3, micro_tokens=10**6, max_new=40)
    m = update(
        model, copy.deepcopy(model), torch.optim.SGD(model.parameters(), 3.0), samples, cfg, 0
    )
    (first, A), *later = seen
    assert (
        len(A) == 1600
        and len(seen) == 3
        and torch.equal(first[0], A)
        and not (first[1] | first[2]).any()
    )
    assert (
        all(not torch.equal(value[0], A) for value, A in later)
        and 0 < m["clip_low"] < 1
        and 0 < m["clip_high"] < 1
    )


def thinker_of(V):
    """A random float32 model with V tokens, in the manner of test_estep."""
    return thinker(type("Tok", (), dict(vocab_size=V, thought_ids=[3, 7], stop_ids=[0, 1])), 1)


def test_nothing_to_learn():
    """All rewards equal, or all completions with an advantage unfinished: weights bit for bit as
    before, no metric, no state of the optimizer.
    """
    for given, reward, finished in (
        (dict(), 1.0, None),
        (dict(rl_kl=0.3, epochs=2), 0.1, None),
        (dict(), None, False),
    ):
        cfg, model, samples = settings(**given), tiny_model(0), some_samples()
        for s in samples:
            s.reward, s.finished = (
                s.reward if reward is None else reward,
                s.finished if finished is None else finished,
            )
        opt, before = training.adamw(model, 1e-2, 0.0), parameters(model)
        m = update(model, tiny_model(1), opt, with_advantages(samples, True), cfg, 0)
        assert torch.equal(parameters(model), before) and not opt.state_dict()["state"]
        assert m["updates"] == m["trained"] == m["scored"] == 0 and {
            m[k] for k in ("loss", "grad_norm", "entropy", "kl_start", "logp_gap_max")
        } == {None}


def test_a_minibatch_without_signal():
    """Of two minibatches the one whose rewards are all equal takes no step, with a KL too."""
    for backend in (FAST, train.PLAIN):
        cfg = settings(minibatches=2, rl_kl=0.3, mask_overlong=False)
        samples = some_samples()
        for s in samples[3:]:
            s.reward = 1.0
        results = []
        for part in (samples, samples[:3]):
            model = tiny_model(0)
            opt = training.adamw(model, 1e-2, 0.0)
            start = tiny_model(1).requires_grad_(False)
            m = update(model, start, opt, with_advantages(part, True), cfg, 0, backend=backend)
            assert m["updates"] == 1
            results.append(parameters(model))
        assert torch.equal(*results) and not torch.equal(results[0], parameters(tiny_model(0)))


def nodes(samples):
    """Tokens of the samples, what some begin with alike counted once."""
    return len(
        {
            tuple((s.prompt + s.ids)[:k])
            for s in samples
            for k in range(1, len(s.prompt + s.ids) + 1)
        }
    )


def test_micro_batches():
    """Every completion once, those of a prompt next to each other, and at most so many tokens,
    prompts counted once, unless one alone has more.
    """
    rng = np.random.default_rng(0)
    samples = [
        Sample(None, [int(p)] * int(1 + p % 7), [0] * int(b) + [k], [], True, 0, "", None)
        for k, (p, b) in enumerate(rng.integers(1, 30, (50, 2)))
    ]
    for most in (1, 40, 100, 10**6):
        found = batches(samples, most)
        assert sorted(itertools.chain(*found)) == list(range(50))
        prompts = [tuple(samples[i].prompt) for some in found for i in some]
        assert len(list(itertools.groupby(prompts))) == len(set(prompts))
        for some in found:
            assert nodes([samples[i] for i in some]) <= most or len(some) == 1
        assert len(found) == {1: 50, 10**6: 1}.get(most, len(found))


# ---------------------------------------------------------------- the gradient, by enumeration


def completions(max_new, forbid):
    """All there are: up to EOS, or max_new tokens."""
    words = [i for i in range(V) if i not in forbid]
    ends = [
        p + (EOS,)
        for n in range(max_new)
        for p in itertools.product([i for i in words if i != EOS], repeat=n)
    ]
    return [
        list(ids)
        for ids in ends + list(itertools.product([i for i in words if i != EOS], repeat=max_new))
    ]


@pytest.mark.parametrize("forbid", [(), HASH])
def test_expected_gradient(forbid):
    """One update of two completions, averaged over all pairs of completions by their probability,
    against autograd's gradient of the expected reward, the sum over all completions: with the
    constant normaliser and no deviation it is (G - 1) / (G max_new) of it; with a length in it, it
    points elsewhere.
    """
    model, every = tiny_model(0), completions(2, forbid)
    rng = np.random.default_rng(3)
    reward = rng.integers(0, 2, len(every)).astype(float)
    done = [
        Sample(None, PROMPT, ids, [0.0] * len(ids), ids[-1] == EOS, 0, "", None, r)
        for ids, r in zip(every, reward, strict=False)
    ]
    p = torch.stack([sum(log_pi(model, s, forbid)).exp() for s in done])
    assert float(p.detach().sum()) == pytest.approx(1, abs=1e-12) and 0.2 < reward.mean() < 0.8
    want = torch.cat(
        [
            g.flatten()
            for g in torch.autograd.grad((p * torch.tensor(reward)).sum(), list(model.parameters()))
        ]
    )

    def expected(norm):
        cfg, total = settings(rl_norm=norm, rl_std=False, mask_overlong=False, max_new=2), 0.0
        for i, j in itertools.combinations(range(len(done)), 2):
            if reward[i] != reward[j]:  # otherwise nothing is done (tested above)
                pair = [copy.copy(done[i]), copy.copy(done[j])]
                for s, A in zip(
                    pair,
                    group_advantages(np.array([[s.reward for s in pair]]), False)[0],
                    strict=False,
                ):
                    s.advantage = float(A)
                moved = tiny_model(0)
                update(moved, model, torch.optim.SGD(moved.parameters(), 1.0), pair, cfg, 0, forbid)
                total = total + 2 * float(p[i].detach() * p[j].detach()) * (
                    parameters(moved) - parameters(model)
                )
        return total

    got = expected("constant")
    assert float((got - want / 4).abs().max()) < 1e-5 * float(want.abs().max())
    if forbid:  # the smaller world
        assert torch.cosine_similarity(expected("sequence"), want, 0) < 0.999


# ---------------------------------------------------------------- sampling


@pytest.fixture(scope="module")
def model(tok):
    return thinker(tok, 1)


class Judge:
    """A grader of a function: what it says of a program and its tests is the verdict, at once."""

    def __init__(self, passes):
        self.passes, self.jobs = passes, []

    def submit(self, job):
        run = Future()
        self.jobs.append(job)
        run.set_result(
            Result("passed" if self.passes(job) else "wrong_answer", 0.01, "none", "separate")
        )
        return run


def by_checksum(job):
    return zlib.crc32(job.program.encode()) % 2 == 0


TASKS = [
    Task("a", "n = 0 #", "", "assert n == 0", "n"),
    Task("b", "def f(x):\n    return x", "", "assert f(1) == 1", "f", stops=("\n", " x")),
    Task("c", "k = 1", "", "assert k == 1", "k"),
    Task("d", "m = 2\nm += 1", "", "assert m == 3", "m", stops=("\n", " x")),
]


def draws(samples):
    return [(s.task.name, s.group, s.ids) for s in samples]


def test_collect(tok, model):
    """G completions a task, next to each other, in the order of the tasks although two of them stop
    elsewhere; each text is what its ids say, up to a stop, and its program was graded; the same
    draws whatever the batch, and for tasks asked for alone.
    """
    cfg, judge = settings(prompts=4, completions=3, max_new=10), Judge(by_checksum)
    samples, waited = collect(model, tok, TASKS, cfg, 10, judge)
    assert [(s.task.name, s.group) for s in samples] == [
        (t.name, 10 + i) for i, t in enumerate(TASKS) for _ in range(3)
    ] and waited >= 0
    for s in samples:
        whole = tok.decode(s.ids)
        assert s.prompt == tok.encode(s.task.prompt) and 0 < len(s.ids) == len(s.logprobs) <= 10
        assert whole.startswith(s.text) and not any(stop in s.text for stop in s.task.stops)
        assert s.finished == (s.ids[-1] == tok.eos or s.text != whole) and (
            s.finished or len(s.ids) == 10
        )
        assert (
            (s.verdict == "passed")
            == bool(s.reward)
            == by_checksum(
                next(j for j in judge.jobs if j.program == s.task.prompt + s.text + "\n")
            )
        )
    assert (
        sum(s.text != tok.decode(s.ids) for s in samples if s.task.stops)
        and len({tuple(s.ids) for s in samples}) > 8
    )
    for prompts in (1, 2):  # the batch has prompts x completions seats
        assert draws(
            collect(
                model,
                tok,
                TASKS,
                settings(prompts=prompts, completions=3, max_new=10),
                10,
                Judge(by_checksum),
            )[0]
        ) == draws(samples)
    assert (
        draws(collect(model, tok, TASKS[2:], cfg, 12, Judge(by_checksum))[0]) == draws(samples)[6:]
    )
    again, other = (
        draws(
            collect(
                model,
                tok,
                TASKS,
                settings(prompts=4, completions=3, max_new=10, seed=seed),
                first,
                Judge(by_checksum),
            )[0]
        )
        for seed, first in ((1, 10), (0, 11))
    )
    assert draws(samples)[0][2] != again[0][2] and draws(samples)[0][2] != other[0][2]


@pytest.mark.parametrize("thoughts", [True, False])
def test_sampled_is_scored(tok, model, thoughts):
    """What the sampler recorded against what the trainer computes for the same tokens, in float32;
    nothing forbidden is written, and it would be.
    """
    cfg, forbid = (
        settings(prompts=4, completions=4, max_new=25, thoughts=thoughts),
        () if thoughts else tuple(tok.thought_ids),
    )
    samples, _ = collect(model, tok, TASKS, cfg, 0, Judge(by_checksum))
    assert any(set(s.ids) & set(tok.thought_ids) for s in samples) == thoughts
    with torch.no_grad():
        logp = score_completions(model, samples, forbid).logp
    recorded = torch.tensor([x for s in samples for x in s.logprobs])
    assert logp.shape == recorded.shape and float((logp - recorded).abs().max()) < 1e-4
    with_advantages(samples[:12], True)
    samples[0].advantage = 1.0
    m = update(
        copy.deepcopy(model),
        model,
        torch.optim.SGD(model.parameters(), 0.0),
        samples,
        cfg,
        0,
        forbid,
    )
    assert 0 <= m["logp_gap"] <= m["logp_gap_max"] < 1e-4
    if not thoughts:  # without the condition they would differ
        with torch.no_grad():
            assert float((score_completions(model, samples).logp - recorded).abs().max()) > 0.05


def test_drawn():
    """Every problem once an epoch, whatever the step's size; epochs differ; draws are a function of
    seed and number.
    """
    whole = problem_order(7, 0, 0, 28)
    assert [sorted(whole[i : i + 7]) for i in range(0, 28, 7)] == [list(range(7))] * 4 and len(
        {tuple(whole[i : i + 7]) for i in range(0, 28, 7)}
    ) > 1
    assert [
        i for first in range(0, 28, 4) for i in problem_order(7, 0, first, 4)
    ] == whole and problem_order(7, 0, 5, 20) == whole[5:25]
    assert problem_order(7, 1, 0, 28) != whole and problem_order(1, 0, 3, 2) == [0, 0]


@pytest.mark.parametrize("reward", ["pass", "tests"])
def test_rounds(tok, model, reward):
    """Groups without signal are dropped, and as many others sampled in their place as rounds allow;
    with one round they stay. Of the problems "a" all completions pass, of "c" none.
    """
    train_set = [
        dataclasses.replace(TASKS[i], name=f"{TASKS[i].name}{k}")
        for k in range(5)
        for i in (0, 2, 1, 3)
    ]

    def passes(job):
        return job.name[0] == "a" or job.name[0] in "bd" and by_checksum(job)

    def signal(group):
        return len({s.reward for s in group}) > 1

    counts = []
    for rounds in (1, 2, 3, 20):
        cfg = settings(prompts=4, completions=6, max_new=8, rounds=rounds, reward=reward, seed=1)
        kept, everything, waited = sample_groups(model, tok, train_set, cfg, 8, Judge(passes))
        groups = [everything[i : i + 6] for i in range(0, len(everything), 6)]
        assert [s.group for s in everything] == [
            8 + i for i in range(len(groups)) for _ in range(6)
        ]  # none drawn twice, none left out
        assert [g[0].task for g in groups] == [
            train_set[i] for i in problem_order(len(train_set), 1, 8, len(groups))
        ]
        assert all(signal(g) == any(s.advantage for s in g) for g in groups)
        assert [id(s) for s in kept] == [
            id(s) for g in groups for s in g if rounds == 1 or signal(g)
        ]
        size, have = 0, 0  # of each round, what is missing; until nothing is
        for _ in range(rounds):
            size += 4 - have
            have = sum(map(signal, groups[:size]))
            if have == 4:
                break
        assert len(groups) == (4 if rounds == 1 else size)
        counts.append(len(groups))
    assert counts[0] == 4 < counts[1] - 1 < counts[2] < counts[3] and have == 4


def test_equal_shares_are_no_signal(tok, model):
    """Six completions that all pass one test of ten: the mean of six times .1 is not quite .1, and
    yet there is nothing to learn.
    """
    task = Task("tenth", "n = 0", "", "".join(f"assert n == {i}\n" for i in range(10)), "n")
    for G in (3, 5, 6, 7):
        cfg = settings(prompts=2, completions=G, max_new=4, rounds=2, reward="tests")
        kept, everything, _ = sample_groups(
            model,
            tok,
            [task] * 4,
            cfg,
            0,
            Judge(lambda job: job.tests.count("assert") == 1 and "n == 0" in job.tests),
        )
        assert (
            {s.reward for s in everything} == {0.1}
            and kept == []
            and len(everything) == 4 * G
            and not any(s.advantage for s in everything)
        )


# ---------------------------------------------------------------- rewards


def of_texts(task, texts, grader, cfg):
    """Samples with these completions, their verdicts known, their rewards given."""
    samples = [
        Sample(
            task, [0], [0], [0.0], True, i, text, grader.submit(rlvr.training_job(task, text, cfg))
        )
        for i, text in enumerate(texts)
    ]
    for s in samples:
        s.verdict = s.run.result().verdict
    set_rewards(samples, cfg, grader)
    return [s.reward for s in samples], [s.verdict for s in samples]


def test_rewards():
    """In the grader: programs that pass three, two, one and none of three assertions in check(),
    and one that does not compile; the same for stdin.
    """
    check = (
        "def check(candidate):\n    assert candidate(0) == 0\n    y = 4\n"
        "    assert candidate(2) == y\n    assert candidate(3) == 9\n"
    )
    task = Task("square", "def f(x):", "", check, "f")
    texts = [
        "\n    return x * x",
        "\n    return x + x",
        "\n    return 0",
        "\n    return None",
        "\n    return (",
        "\n    return 9 if x else 1 / x",
    ]
    stdio = Task(
        "add",
        "",
        "",
        [{"input": "1 2", "output": "3"}, {"input": "2 2", "output": "4"}],
        "",
        kind="stdio",
        prefix="",
    )
    # each alone, not together
    once = "\n    f.calls = getattr(f, 'calls', 0) + 1\n    return x * x if f.calls < 3 else None"
    with Grader(workers=1) as grader:
        rewards, verdicts = of_texts(task, texts, grader, settings(reward="tests"))
        assert rewards == pytest.approx([1, 2 / 3, 1 / 3, 0, 0, 1 / 3])
        assert verdicts == [
            "passed",
            "wrong_answer",
            "wrong_answer",
            "wrong_answer",
            "syntax_error",
            "exception",
        ]
        assert of_texts(task, texts, grader, settings(reward="pass"))[0] == [1, 0, 0, 0, 0, 0]
        assert of_texts(task, [once], grader, settings(reward="tests")) == (
            [2 / 3],
            ["wrong_answer"],
        )
        rewards, _ = of_texts(
            stdio,
            ["print(sum(map(int, input().split())))", "print(4)", "print(5)"],
            grader,
            settings(reward="tests"),
        )
        assert rewards == [1, 0.5, 0]


def test_random_rewards():
    """A coin, whatever the verdict: fair, the same for the same seed, group and number, and another
    one for others.
    """

    def coins(seed, first=0):
        samples = [
            Sample(
                None, [], [], [], True, first + i // 4, "", None, 0.0, ("passed", "timeout")[i % 2]
            )
            for i in range(2000)
        ]
        set_rewards(samples, settings(reward="random", completions=4, seed=seed), None)
        return np.array([s.reward for s in samples])

    a = coins(0)
    assert (
        set(a) == {0, 1}
        and abs(a.mean() - 0.5) < 0.05
        and abs(a[::2].mean() - a[1::2].mean()) < 0.1
    )
    assert (coins(0) == a).all() and (coins(0, 100)[:1600] == a[400:]).all()
    assert abs((coins(1) == a).mean() - 0.5) < 0.05 and (a.reshape(-1, 4).std(1) > 0).mean() > 0.8


def test_time_limit():
    """A suite's own time goes before the setting."""
    task = TASKS[0]
    assert rlvr.training_job(task, "", settings(reward_time=3.0)).time_limit == 3
    assert (
        rlvr.training_job(
            dataclasses.replace(task, time_limit=7.0), "", settings(reward_time=3.0)
        ).time_limit
        == 7
    )


def test_thought_share(tok):
    """Tokens from `#` to the end of its line, counted by hand; a newline is none of them."""
    note, line, end = tok.encode(" # no x"), tok.encode(" x = x"), tok.encode("\n")
    assert (
        note[0] in tok.thought_ids
        and end[0] in tok.stop_ids
        and len(end) == 1
        and not set(line) & {*tok.thought_ids, *tok.stop_ids}
    )
    n, k = len(note), len(line)
    assert thought_share(tok, line + note + end + line) == pytest.approx(n / (n + 2 * k + 1))
    assert (
        thought_share(tok, note + note + [tok.eos]) == pytest.approx(2 * n / (2 * n + 1))
        and thought_share(tok, note) == 1
    )
    assert thought_share(tok, line + end) == thought_share(tok, []) == 0


def test_it_learns(tok):
    """Twelve steps on "write no newline", which one completion in five manages at first."""
    model, task = thinker(tok, 1), Task("one line", "n = 0", "", "assert True", "n")
    cfg = settings(prompts=4, completions=8, max_new=8, mask_overlong=False, micro_tokens=2000)
    start, opt, means, at = (
        copy.deepcopy(model).requires_grad_(False),
        training.adamw(model, 1e-2, 0.0),
        [],
        0,
    )
    kl = 0.0
    for step in range(12):
        samples, everything, _ = sample_groups(
            model, tok, [task], cfg, at, Judge(lambda job: job.program.count("\n") == 1)
        )
        at += len(everything) // 8
        m = update(model, start, opt, samples, cfg, step)
        means.append(np.mean([s.reward for s in everything]))
        kl = m["kl_start"] or kl  # None where all rewards are equal, as in the end
    assert means[0] < 0.5 and np.mean(means[-2:]) > 0.9 and kl > 0.01, means


# ---------------------------------------------------------------- problems


def own_file(path, n=2, **more):
    """A .jsonl of problems that a program passes if what follows its first line is no error."""
    rows = [
        {
            "task_id": f"own/{i}",
            "prompt": f"def f{i}(x): return x + {i} #",
            "entry_point": f"f{i}",
            "canonical_solution": " right",
            "test": f"assert f{i}(1) == {i + 1}\nassert f{i}(2) == {i + 2}\n",
            "stops": [],
            **more,
        }
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_problems(tok, tmp_path):
    """A mixture of the domain and a file: all of both, the held-out apart; a problem of a file is
    on one side whatever else is there, and all are trained on where held-out ones are named.
    """
    path = own_file(tmp_path / "own.jsonl", 60)
    cfg = settings(suite=f"domain,{path}", n_rl=5, eval_tasks=30, decontaminate=False)
    train_set, held, counts = problems(cfg, tok, 512)
    prompts = [{t.prompt for t in some} for some in (train_set, held)]
    own = [
        {p for p in side if p.startswith("def f")}
        & {f"def f{i}(x): return x + {i} #" for i in range(60)}
        for side in prompts
    ]
    assert (
        not prompts[0] & prompts[1]
        and len(own[0] | own[1]) == 60
        and 0 < len(own[1]) < 20
        and counts == {"domain": 5, path: len(own[0]), "too long": 0}
    )
    assert [t for t in train_set if t.name.startswith("rl/")] == domain.domain_tasks(
        0, 5, "rl"
    ) and len(train_set) == 5 + len(own[0])
    assert [t for t in held if t.name.startswith("test/")] == domain.domain_tasks(0, 30, "test")
    half = own_file(tmp_path / "half.jsonl", 30)
    (tmp_path / "half.jsonl").write_text(
        "\n".join(open(half).read().split("\n")[::-1])
    )  # in another order
    train_half, held_half, _ = problems(settings(suite=half, decontaminate=False), tok, 512)
    assert (
        {t.prompt for t in train_half} <= own[0]
        and {t.prompt for t in held_half} <= own[1]
        and len(train_half) + len(held_half) == 30
    )
    train_all, held_named, _ = problems(
        settings(suite=path, eval_suite=f"domain,{half}", eval_tasks=3, decontaminate=False),
        tok,
        512,
    )
    assert len(train_all) == 60 and [t.name for t in held_named] == [
        f"test/{t.name.split('/')[1]}" for t in held_named[:3]
    ] + ["own/29", "own/28", "own/27"]


def test_long_prompts_are_left_out(tok, tmp_path):
    """A problem whose prompt and max_new tokens do not fit the model is counted and gone; none left
    is an error.
    """
    path = own_file(tmp_path / "own.jsonl")
    with open(path, "a") as f:
        f.write(
            json.dumps(
                {
                    "task_id": "long",
                    "prompt": "x = 1\n" * 100,
                    "entry_point": "x",
                    "test": "assert x == 1",
                }
            )
            + "\n"
        )
    cfg = settings(suite=path, eval_suite="domain", eval_tasks=1, decontaminate=False, max_new=6)
    train_set, _, counts = problems(cfg, tok, 300)
    assert [t.name for t in train_set] == ["own/0", "own/1"] and counts["too long"] == 1
    with pytest.raises(
        UserError, match="no problem is left of 3, with prompts of at most 4 tokens; .*--max-new"
    ):
        problems(cfg, tok, 10)


def test_benchmark_problems_are_dropped(tok, tmp_path):
    """A problem of HumanEval in the file: dropped, unless the check is switched off."""
    path, row = tmp_path / "own.jsonl", read_rows("humaneval/HumanEval.jsonl.gz")[3]
    own_file(path)
    with open(path, "a") as f:
        f.write(json.dumps({**row, "task_id": "mine"}) + "\n")
    for decontaminate, names in ((True, {"own/0", "own/1"}), (False, {"own/0", "own/1", "mine"})):
        train_set, held, _ = problems(
            settings(suite=str(path), decontaminate=decontaminate, data_dir=str(tmp_path)), tok, 512
        )
        assert {t.name for t in train_set + held} == names


# ---------------------------------------------------------------- the stage

SMALL = (
    "--stage rlvr --init base --n-rl 3 --rl-steps 5 --prompts 3 --completions 4 --max-new 12 "
    "--rl-lr 3e-3 --rl-warmup 2 --mask-overlong false "
    "--eval-every 2 --eval-samples 1 --eval-tasks 1 --save-every 2 --decontaminate false"
).split()
WAYS = {
    "plain": "",
    "all": "--epochs 2 --minibatches 2 --rounds 2 --reward tests --rl-kl 0.1 --thoughts false "
    "--rl-std false --rl-norm constant --rollout-bf16 false --seed 5",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a base model that was trained for a few steps, and a file of problems beside
    it.
    """
    out = tmp_path_factory.mktemp("rlvr") / "base"
    train.main([*TINY, "--out", str(out), "--stage", "pretrain", "--pretrain-steps", "3"])
    own_file(out.parent / "own.jsonl")
    return out


def copy_of(base, out):
    out.mkdir()
    for name in ("base.pt", "tokenizer.txt", "metrics.jsonl", "settings.json"):
        (out / name).write_bytes((base / name).read_bytes())
    return out


def given_to(base, out, way):
    return [
        *TINY,
        *SMALL,
        *WAYS[way].split(),
        "--suite",
        f"domain,{base.parent / 'own.jsonl'}",
        "--out",
        str(out),
    ]


@pytest.fixture(scope="module")
def whole(base):
    """An uninterrupted run of each way."""
    made = {}
    for way in WAYS:
        made[way] = copy_of(base, base.parent / way)
        train.main([*given_to(base, made[way], way), "--save-every", "1000"])
    return made


KILLED = """
import sys, time, train, run as runs
log = runs.Run.log
def stall(run, name, **m):
    log(run, name, **m)
    if m["phase"] == "rlvr" and m["step"] == 4:
        print("there", flush=True)
        time.sleep(600)
runs.Run.log = stall
train.main(sys.argv[1:])
"""


def compare(base, whole, out, way):
    assert same_weights(whole[way] / "rlvr-base.pt", out / "rlvr-base.pt") and metrics(
        out
    ) == metrics(whole[way])
    extras = [torch.load(p / "rlvr-base.pt", weights_only=True)["extra"] for p in (whole[way], out)]
    assert extras[0]["flops"] == extras[1]["flops"] > 0 and not list(out.glob("*.state")) + list(
        out.glob("*.part")
    )


def stopped_at(step, log):
    """Run.log that raises Stop after the line of a step."""

    def log_and_stop(self, name, **m):
        log(self, name, **m)
        if (m["phase"], m["step"]) == step:
            raise Stop

    return log_and_stop


def kill(argv):
    """A process of its own, killed after the line of step 4."""
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, *argv],
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as child:
        while (line := child.stdout.readline()) not in (b"there\n", b""):
            pass
        child.send_signal(signal.SIGKILL)
    assert line == b"there\n"


@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_resume_in_the_middle_of_a_line(base, whole, tmp_path, monkeypatch, killed):
    """Ended after four of five steps, with half a line written, the last state being of two: with
    --resume weights and metrics, but for times, are bit for bit those of the whole run.

    By an exception, or by SIGKILL. (tests/test_train.py kills a run that pretrains.)
    """
    out = copy_of(base, tmp_path / "run")
    argv = given_to(base, out, "plain")
    if killed:
        kill(argv)
    else:
        with monkeypatch.context() as patch, pytest.raises(Stop):
            patch.setattr(runs.Run, "log", stopped_at(("rlvr", 4), runs.Run.log))
            train.main(argv)
    assert (out / "rlvr-base.state").exists() and not (out / "rlvr-base.pt").exists()
    with open(out / "metrics.jsonl", "a") as f:
        f.write('{"model": "rlvr-base", "ph')
    train.main([*argv, "--resume"])
    compare(base, whole, out, "plain")


def test_resume_at_every_point(base, whole, tmp_path, monkeypatch):
    """Stopped after a step's line, after a line of the curve and before any state, with several
    epochs, minibatches and rounds; other settings are refused and change nothing; once done there
    is nothing left to do.
    """
    out, log = copy_of(base, tmp_path / "run"), runs.Run.log
    argv = [*given_to(base, out, "all"), "--resume"]
    for stop in (("rlvr-heldout", 0), ("rlvr", 1), ("rlvr", 3), ("rlvr-heldout", 4)):
        monkeypatch.setattr(runs.Run, "log", stopped_at(stop, log))
        with pytest.raises(Stop):
            train.main(argv)
    monkeypatch.setattr(runs.Run, "log", log)
    before = listing(out)
    for other in ("--rl-lr", "--completions", "--clip-low"):
        with pytest.raises(UserError, match=f"{other[2:].replace('-', '_')}=.*same settings"):
            train.main([*argv, other, "1"])
    assert listing(out) == before
    train.main(argv)
    compare(base, whole, out, "all")
    made = (out / "rlvr-base.pt").stat().st_mtime_ns
    train.main(argv)
    assert (out / "rlvr-base.pt").stat().st_mtime_ns == made


def test_the_run_learns_something(base, whole):
    """The comparisons above would be empty if nothing were trained: rewards differ within groups,
    weights move, no thought is written where none may be; tokens, problems and curve add up.
    """
    for way, folder in whole.items():
        lines = [json.loads(line) for line in open(folder / "metrics.jsonl")]
        steps, curve = (
            [line for line in lines if line["phase"] == phase] for phase in ("rlvr", "rlvr-heldout")
        )
        assert [line["step"] for line in steps] == [1, 2, 3, 4, 5] and [
            line["step"] for line in curve
        ] == [0, 2, 4, 5]
        assert not same_weights(folder / "rlvr-base.pt", folder / "base.pt") and same_weights(
            folder / "base.pt", base / "base.pt"
        )
        assert any(line["updates"] for line in steps) and any(
            0 < line["pass_rate"] < 1 for line in steps
        )
        assert all((line["grad_norm"] or 0) > 0 for line in steps if line["updates"]) and all(
            line["no_signal"] == 1 for line in steps if not line["updates"]
        )
        assert all(
            sum(line["verdicts"].values()) == 4 * (line["drawn"] - was["drawn"])
            and line["sampled_tokens"] - was["sampled_tokens"]
            == pytest.approx(line["length"] * sum(line["verdicts"].values()))
            for was, line in zip([dict(drawn=0, sampled_tokens=0), *steps], steps, strict=False)
        )
        assert [line["lr"] for line in steps] == pytest.approx([1.5e-3, 3e-3, 3e-3, 3e-3, 3e-3])
        assert all(a["flops"] < b["flops"] for a, b in zip(steps, steps[1:], strict=False))
        assert all(
            0 <= line["pass@1"] <= 1 and sum(line["verdicts"].values()) >= 1 for line in curve
        )
        assert all(line["thought_tokens"] == 0 for line in steps) == (way == "all")
        assert (
            0 < max(line["logp_gap_max"] for line in steps if line["updates"]) < 0.2
        )  # trained under bfloat16 autocast
    plain, everything = (
        [line for line in metrics(whole[way]) if line["phase"] == "rlvr"]
        for way in ("plain", "all")
    )
    assert {line["updates"] for line in plain} <= {0, 1} and max(
        line["updates"] for line in everything
    ) == 4
    assert plain[-1]["drawn"] == 15 < everything[-1]["drawn"]


MISTAKES = {  # what is given -> what the answer names
    "--suite humaneval": "--suite humaneval: expected domain, .*evaluated on",
    "--suite livecodebench": "--suite livecodebench: expected domain, .*evaluated on",
    "--suite domian": r"--suite domian: expected domain, leetcode, mbpp-train or a .jsonl file$",
    "--suite domain,nowhere.jsonl": "nowhere.jsonl: cannot be read.*No such file",
    "--suite mbpp-train --data-dir {tmp}": "mbpp.jsonl.gz is not there",
    "--suite {tmp}/empty.jsonl": "empty.jsonl: no problem in it",
    "--suite {tmp}/third.jsonl": "third.jsonl:3: no 'test'",
    "--suite domain --eval-suite humanevol": "suite humanevol: expected one of .*did you mean "
    "humaneval",
    "--suite domain --max-new 4090": "--suite domain: no problem is left of 3, with prompts of at "
    "most 6 tokens.*--max-new",
    "--init rlvr-base": "--init rlvr-base: .*holds no rlvr-base.pt",
    "--init ra4 --suite humaneval": "--init ra4: .*holds no ra4.pt",
    "--name ntp": "--name ntp: .*another stage's result",
    "--rl-norm tokens": "--rl-norm tokens.*sequence",
    "--reward coin": "--reward coin.*random",
    "--completions 0": "--completions 0.*at least 1",
    "--clip-low -1": "--clip-low -1.*at least 0",
}


@pytest.mark.parametrize("given", MISTAKES)
def test_a_mistake_is_one_line_and_changes_nothing(base, given, tmp_path, capfd):
    """Each mistake beside a model that is there: one line that names what was given, nothing else
    on stderr, and the disk as it was.
    """
    (tmp_path / "empty.jsonl").write_text("\n")
    own_file(tmp_path / "third.jsonl")
    with open(tmp_path / "third.jsonl", "a") as f:
        f.write('{"task_id": 3, "prompt": "x = 1", "entry_point": "x"}\n')
    before = listing(base)
    with pytest.raises(UserError) as e:
        train.main([*TINY, *SMALL, "--out", str(base), *given.format(tmp=tmp_path).split()])
    assert (
        re.search(MISTAKES[given], str(e.value))
        and "\n" not in str(e.value)
        and capfd.readouterr().err == ""
    )
    assert listing(base) == before
