"""Proposals in hindsight, against enumeration of every thought in a real tokenizer's vocabulary."""

import collections
import copy
import dataclasses
import math

import numpy as np
import pytest
import torch

import config
import domain
import estep
from config import UserError
from data import canonical, infuse, snippet
from elbo import code_logprobs
from hindsight import __main__ as hindsight_command
from hindsight.judge import RATES, best_rate, format_table, judge_thoughts
from hindsight.propose import (
    Proposals,
    choose,
    first_token,
    hindsight_context,
    hindsight_job,
    least_likely,
    log_weights,
    make_attempt,
    propose,
)
from model import ModelConfig, Transformer
from worlds import infused

torch.set_num_threads(1)
TEXT, PROMPT, THINK_MAX, LINE = "def f(x):\n    y = x + 1\n    return y", len("def f(x):"), 2, 0


@pytest.fixture(scope="module")
def snip(tok):
    return snippet(tok, TEXT, PROMPT)


@pytest.fixture(scope="module")
def model(tok):
    cfg = ModelConfig(
        vocab_size=tok.vocab_size,
        n_layer=2,
        n_head=2,
        n_kv_head=1,
        d_model=16,
        d_ff=24,
        max_len=400,
    )
    m = Transformer(cfg).init_weights(3).double()
    with torch.no_grad():
        m.embed.weight *= 2.0  # far from uniform
    return m


def softmaxed(model, ids):
    return (model(torch.tensor([ids]))[0] @ model.head_weight.T).log_softmax(-1).detach()  # (T, V)


@pytest.fixture(scope="module")
def world(tok, snip, model):
    """Every thought before line LINE and its log-probabilities, by hand, and those of <act>.

    log p(z | s), log q_h(z | s, a), and log pi(a | s, z) of the line and of all lines.
    """
    h, at, sep = first_token(tok, snip, LINE), snip.first[LINE], snip.sep[LINE]
    ends, begins = tok.stop_ids, tok.thought_ids

    def lines(ids, first):
        logp, out = softmaxed(model, ids), []
        for a, b in zip(first, first[1:] + [len(ids)], strict=True):
            out.append(
                sum(logp[j - 1, ids[j]] for j in range(a, b))
                - (1 - logp[a - 1, begins].exp().sum()).log()
            )
        return float(out[0]), float(sum(out))

    def density(context, z):  # of what follows the `#`, which ends the context
        logp = softmaxed(model, context + z[1:])
        i = len(context) - 1
        return float(logp[i, z[1]]) if len(z) == THINK_MAX else float(logp[i, ends].logsumexp(0))

    thoughts = [[h]] + [[h, w] for w in range(tok.vocab_size) if w not in ends]
    after = tok.encode("def f(x):\n    y = x + 1  #")
    think = float(softmaxed(model, snip.ids[:at])[-1, h])
    p = np.array([think + density(snip.ids[:at] + [h], z) for z in thoughts])
    q = np.array([density(after, z) for z in thoughts])
    pi = np.array(
        [
            lines(
                snip.ids[:at] + z + sep + snip.ids[at:],
                [at + len(z + sep), snip.first[1] + len(z + sep)],
            )
            for z in thoughts
        ]
    )
    act = float((1 - softmaxed(model, snip.ids[:at])[-1, begins].exp().sum()).log())
    return thoughts, p, q, pi, act, lines(snip.ids, snip.first)


def weighed(model, tok, snip, thoughts, n_hindsight, n_own):
    return propose(
        model,
        tok,
        [snip],
        lambda b, logp: [LINE],
        n_hindsight,
        n_own,
        THINK_MAX,
        thoughts=[thoughts],
    )


def test_context_of_a_proposal(tok, snip):
    """The text up to the end of the line's code and a trailing `#`, for both lines.

    The first token is that of the comment before the line.
    """
    assert [tok.decode(hindsight_context(tok, snip, t)) for t in (0, 1)] == [
        "def f(x):\n    y = x + 1  #",
        TEXT + "  #",
    ]
    deep = snippet(tok, "def f(x):\n if x:\n     y = 1\n     return y\nz = 1", PROMPT)
    for s, columns in ((snip, [4, 4]), (deep, [1, 5, 5, 0])):
        for t, column in enumerate(columns):
            text = tok.decode(infuse(tok, s, {t: [first_token(tok, s, t)] + tok.encode(" x")})[0])
            assert [line for line in text.split("\n") if "#" in line] == [" " * column + "# x"]


@pytest.mark.parametrize("n_hindsight, n_own", [(1, 0), (1, 1), (3, 1), (0, 1)])
def test_weights_are_unbiased(tok, snip, model, world, n_hindsight, n_own):
    """The mean weight under the proposals' mixture is sum_z p(z | s) pi(a | s, z).

    The sum over every thought is by hand, for the line and for all lines.
    """
    thoughts, p, q, pi, act, never = world
    found = weighed(model, tok, snip, thoughts, n_hindsight, n_own)
    assert np.exp(q).sum() == pytest.approx(1, abs=1e-9) and np.exp(p).sum() == pytest.approx(
        math.exp(found.think[0]), abs=1e-9
    )
    assert (
        np.abs(found.logp[0] - p).max() < 1e-5
        and np.abs(found.given[0] - pi).max() < 1e-4
        and np.abs(found.base[0] - never).max() < 1e-4
    )
    assert np.abs(found.lines[0].sum() - never[1]) < 1e-4
    share = n_hindsight / (n_hindsight + n_own)
    m = share * np.exp(q) + (1 - share) * np.exp(p - found.think[0])
    assert np.abs(np.exp(found.logm[0]) - m).max() < 1e-6
    for part in (0, 1):
        log_w = log_weights(found, part=part)[0]
        assert log_w[0] == pytest.approx(act + never[part], abs=1e-4)
        want, got = (
            np.logaddexp.reduce(p + pi[:, part]),
            np.logaddexp.reduce(np.log(m) + log_w[1:]) + math.log(len(thoughts)),
        )
        assert got == pytest.approx(want, abs=1e-3)
        assert abs(np.logaddexp.reduce(q + pi[:, part]) - want) > 0.1  # the weights do something


def test_draws_are_the_posterior(tok, snip, model, world):
    """Resampling among K proposals draws from the posterior over <act> and every thought.

    The shares are over many sets of proposals. The weights of `penalty` follow its definition.
    """
    thoughts, p, q, pi, act, never = world
    joint = np.concatenate(([act + never[1]], p + pi[:, 1]))
    joint[0] += (
        np.logaddexp.reduce(joint[1:]) - joint[0]
    )  # as much <act> as thoughts, or neither would be seen
    posterior = np.exp(joint - np.logaddexp.reduce(joint))
    found = weighed(model, tok, snip, thoughts, 1, 0)
    log_w = log_weights(found)[0]
    log_w[0] = joint[0]
    rng, K, sets = np.random.default_rng(0), 200, 4000
    drawn = rng.choice(len(thoughts), (sets, K), p=np.exp(q) / np.exp(q).sum())
    w = np.concatenate(
        (np.full((sets, 1), log_w[0]), log_w[1:][drawn] + math.log(len(thoughts) / K)), 1
    )
    picked = (w + rng.gumbel(size=w.shape)).argmax(1)
    which = np.where(picked == 0, 0, 1 + drawn[np.arange(sets), picked - 1])
    share = np.bincount(which, minlength=len(posterior)) / sets
    assert abs(share[0] - 0.5) < 0.03
    likely = posterior.argsort()[::-1][:12]
    assert (
        np.abs(share - posterior)[likely].max() < 0.025
        and np.abs(share - posterior).sum()
        < np.abs(np.append(0.5, np.exp(q) / 2) - posterior).sum() / 2
    )
    assert np.allclose(
        log_weights(found, "penalty", 0.3)[0], [never[1], *(pi[:, 1] - 0.3)], atol=1e-4
    )


def test_floor(tok, snip, model, world):
    """A floor above P(think) gives the weights of the same model with P(think) at the floor.

    A floor below P(think) changes nothing.
    """
    found = weighed(model, tok, snip, world[0], 1, 0)
    rate = 1 - math.exp(found.act[0])  # by whatever token
    assert math.exp(found.think[0]) < rate < 0.4 and np.array_equal(
        log_weights(found, floor=rate / 2), log_weights(found)
    )
    moved = (log_weights(found, floor=0.4) - log_weights(found))[0]
    assert np.allclose(moved[1:], math.log(0.4 / rate)) and moved[0] == pytest.approx(
        math.log(0.6) - found.act[0]
    )


def test_a_floor_never_lowers():
    """P(<think>) is .5, of it .25 by the usual token: at a floor of .3 the weights stay."""
    one = np.zeros((1, 1))
    found = Proposals(
        snip=[0],
        line=[0],
        thoughts=[[[1]]],
        act=np.log([0.5]),
        think=np.log([0.25]),
        logp=np.log([[0.25]]),
        logq=one,
        logm=one,
        base=np.zeros((1, 2)),
        given=np.zeros((1, 1, 2)),
        lines=[],
        forward_tokens=0,
    )
    plain = log_weights(found)
    for floor in (0.1, 0.3, 0.49):
        assert np.array_equal(log_weights(found, floor=floor), plain)
    lifted = log_weights(found, floor=0.8)
    assert np.allclose(np.exp(lifted), [[0.2, 0.4]])


def test_a_context_begins_as_the_snippet_does(tok, snip):
    """With bos where the tokenizer has one; so the cache of the snippet serves the proposal."""
    with_bos = dataclasses.replace(tok, bos=[tok.eos], marks={})
    begun = snippet(with_bos, TEXT, PROMPT)
    for t in (0, 1):
        context = hindsight_context(with_bos, begun, t)
        assert context == [tok.eos, *hindsight_context(tok, snip, t)]
        attempt = make_attempt(with_bos, begun, 0, t)
        job = hindsight_job(with_bos, begun, attempt, [attempt.head], 3)
        assert job.start > begun.first[t] and job.ids[: job.start] == begun.ids[: job.start]


def test_bfloat16_models_are_scored_in_float32(tok, snip, model):
    """States and head in float32, as in rollouts: the sums are those of elbo.line_logprobs."""
    rounded = copy.deepcopy(model).bfloat16()
    found = weighed(rounded, tok, snip, [[first_token(tok, snip, LINE)]], 0, 1)
    with torch.inference_mode():
        hidden = rounded(torch.tensor([snip.ids]))[0].float()
        head = rounded.head_weight.float()
        for a, b, got in zip(
            snip.first, snip.first[1:] + [len(snip.ids)], found.lines[0], strict=True
        ):
            opens = torch.arange(a, b) == a
            target = torch.tensor(snip.ids[a:b])
            logp = code_logprobs(hidden[a - 1 : b - 1], head, target, opens, tok.thought_ids)
            assert got == pytest.approx(float(logp.double().sum()), abs=1e-5)


def test_judged_in_hindsight_nothing_is_called_a_bound(tok, model):
    found = [domain.expert_task(0, i, "val") for i in range(2)]
    snips = [snippet(tok, t.prompt + t.solution, len(t.prompt)) for t in found]
    cfg = config.make(think_max=4)
    figures, _ = judge_thoughts(model, tok, snips, cfg, K=2, per=1, in_hindsight=True)
    assert not {"forced", "forced_rest", "lifted", "lifted_rest"} & set(figures)
    heads = format_table({"ntp": figures})[0]
    assert "bound - never" in heads and "forced" not in heads and "rate" not in heads


def test_sampled_proposals(tok, snip, model, world):
    """Thoughts drawn in hindsight, or before the line, have the frequencies of their densities."""
    thoughts, p, q, *_ = world
    found = propose(model, tok, [snip], lambda b, logp: [LINE], 1500, 1500, THINK_MAX, seed=(4,))
    at = {tuple(z): i for i, z in enumerate(thoughts)}
    for some, logp in (
        (found.thoughts[0][:1500], q),
        (found.thoughts[0][1500:], p - found.think[0]),
    ):
        share = np.bincount([at[tuple(z)] for z in some], minlength=len(thoughts)) / 1500
        assert np.abs(share - np.exp(logp)).max() < 0.03
    each = [at[tuple(z)] for z in found.thoughts[0]]
    assert (
        np.abs(found.logq[0] - q[each]).max() < 1e-5
        and np.abs(found.logp[0] - p[each]).max() < 1e-5
    )


def test_reach_and_batches(tok, model):
    """A snippet's weights do not depend on the other snippets, nor on the batches.

    `reach` limits the sum over lines to that many lines from the thought on.
    """
    found = [domain.expert_task(0, i, "train") for i in range(3)]
    snips = [snippet(tok, t.prompt + t.solution, len(t.prompt)) for t in found]

    def lines(b, logp):
        return [0, 2, len(logp) - 1]

    together = propose(model, tok, snips, lines, 2, 1, 5, reach=2, seed=(1,), numbers=[7, 8, 9])
    alone = propose(model, tok, snips[1:2], lines, 2, 1, 5, reach=2, seed=(1,), numbers=[8])
    assert together.thoughts[3:6] == alone.thoughts and any(len(z) > 1 for z in alone.thoughts[0])
    for name in ("logp", "logq", "logm", "base", "given"):
        assert np.abs(getattr(together, name)[3:6] - getattr(alone, name)).max() < 1e-4
    assert np.allclose(alone.base[:2, 1], [alone.lines[0][t : t + 2].sum() for t in (0, 2)])
    z = [alone.thoughts[0][0]]
    rest = propose(model, tok, snips[1:2], lambda b, logp: [0], 1, 0, 5, thoughts=[z])
    first = propose(model, tok, snips[1:2], lambda b, logp: [0], 1, 0, 5, reach=1, thoughts=[z])
    assert (
        np.allclose(first.given[0, 0], rest.given[0, 0, 0])
        and rest.given[0, 0, 1] < rest.given[0, 0, 0]
    )


@pytest.mark.parametrize("which", ["exact", "penalty", "best"])
def test_choose_and_infuse(tok, model, which):
    """Each tried line gets at most one thought, canonical in its place, and the code is unchanged.

    The same seed gives the same documents. At a penalty that no thought is worth, none is chosen.
    """
    found = [domain.expert_task(0, i, "train") for i in range(4)]
    snips = [snippet(tok, t.prompt + t.solution, len(t.prompt)) for t in found]
    cfg = config.make(
        estep="hindsight",
        selection=which,
        proposals=4,
        own=1,
        tried=0.4,
        think_max=6,
        block=1000,
        c=0.0,
        floor=0.9,
    )
    stats = collections.Counter()
    written = [*infused(model, tok, snips, cfg, (0, 1), [3, 4, 5, 6], stats)]
    assert stats["think"] > 0 and stats["not_canonical"] == 0
    for s, (ids, kind) in zip(snips, written, strict=True):
        assert canonical(tok, ids)
        assert [i for i, k in zip(ids, kind, strict=True) if k != 2] == s.ids
    assert written == [*infused(model, tok, snips, cfg, (0, 1), [3, 4, 5, 6], stats)]
    chosen, _ = choose(model, tok, snips, cfg, which, (0, 1), [3, 4, 5, 6])
    pairs = zip(chosen, snips, strict=True)
    assert all(len(z) <= math.ceil(0.4 * len(s.first)) for z, s in pairs)
    assert choose(model, tok, snips, cfg, "act", (0, 1), [3, 4, 5, 6]) == ([{}] * 4, 0)
    if which != "exact":
        cfg.c = 1e6
        assert not any(choose(model, tok, snips, cfg, which, (0, 1), [3, 4, 5, 6])[0])


def test_iterations_have_their_own_weights(tok, model, monkeypatch):
    """`--selection best,exact`: best at first, exact from the second iteration on."""
    seen = []
    monkeypatch.setattr(estep, "choose", lambda *a: (seen.append(a[4]), ([{}], 0))[1])
    t = domain.expert_task(0, 0, "train")
    snips = [snippet(tok, t.prompt + t.solution, len(t.prompt))]
    cfg = config.make(estep="hindsight", selection="best,exact", block=1000)
    for iteration in range(3):
        list(
            infused(
                model,
                tok,
                snips,
                cfg,
                (0, 1),
                [0],
                collections.Counter(),
                iteration=iteration,
            )
        )
    assert seen == ["best", "exact", "exact"]


def test_least_likely():
    assert least_likely(0.5)(0, np.array([-1.0, -5.0, -2.0])) == [1, 2] and least_likely(1.0)(
        0, np.array([-1.0, -2.0])
    ) == [0, 1]


def test_judge(tok, model):
    """Sums by snippet are those of the proposals; never thinking is one forward pass.

    The table has a row for each model.
    """
    found = [domain.expert_task(0, i, "val") for i in range(3)]
    snips = [snippet(tok, t.prompt + t.solution, len(t.prompt)) for t in found]
    cfg = config.make(think_max=5)
    said, kept = judge_thoughts(model, tok, snips, cfg, K=3, per=0, batch=2)
    assert len(kept) == 3 * sum(len(s.first) for s in snips)
    logp = softmaxed(model, snips[2].ids)
    never = sum(
        float(logp[j - 1, snips[2].ids[j]]) for j in range(snips[2].first[0], len(snips[2].ids))
    )
    never -= sum(
        float((1 - logp[a - 1, tok.thought_ids].exp().sum()).log()) for a in snips[2].first
    )
    assert said["code"][2] == pytest.approx(never, abs=1e-3)
    assert said["never"][2] == pytest.approx(never, abs=1e-3)
    lines = [(x[0], x[1]) for x in kept if x[3] == 2]
    assert np.allclose([said["line"][2], said["rest"][2]], np.sum(lines, 0) / 3)
    gain = np.array([x[0] for x in kept if x[3] == 2]).reshape(-1, 3)
    assert np.allclose(
        said["lifted"][2], [np.log(1 - r + r * np.exp(gain).mean(1)).sum() for r in RATES]
    )
    assert np.allclose(said["lifted"][:, -1], said["forced"]) and best_rate(
        np.array([[0, 1.0], [5, 0], [0, 2.0], [7, 0]])
    )[0].tolist() == [0, 0, 0, 0]
    assert (said["forced"] <= said["best_line"]).all() and (said["forced"] >= said["line"]).all()
    assert len(format_table({"ntp": said, "ra3": said})) == 3
    other, mixed = judge_thoughts(model, tok, snips, cfg, K=3, per=0, shuffle=True)
    assert np.allclose(other["never"], said["never"])
    for b in range(3):  # none of its own, all of the others', but by chance
        mine, theirs = (
            {tuple(x[5][1:]) for x in kept if (x[3] == b) == own and len(x[5]) > 3}
            for own in (True, False)
        )
        assert (
            mine - theirs
            and {tuple(x[5][1:]) for x in mixed if x[3] == b and len(x[5]) > 3} <= theirs
        )


@pytest.mark.parametrize(
    "given, said",
    [
        (dict(selection="exact,worst"), "worst"),
        (dict(own=9), "--own 9"),
        (dict(tried=1.5), "--tried 1.5"),
        (dict(tried=0.0), "--tried 0.0"),
        (dict(floor=1.0), "--floor 1.0"),
    ],
)
def test_settings_out_of_range(given, said):
    with pytest.raises(config.UserError, match=said):
        config.make(estep="hindsight", **given)


@pytest.mark.parametrize(
    "given",
    ["--thoughts-a-line 0", "--limit -1", "--per -1", "--soften 0", "--json nowhere/figures.json"],
)
def test_a_mistake_on_the_command_line_is_told_before_the_work(given):
    with pytest.raises(UserError, match=given):
        hindsight_command.main(given.split())


def test_best_is_the_largest(tok, snip, model, world, monkeypatch):
    """`best` takes the thought with the largest gain if the gain exceeds c; else <act>.

    Only thoughts that leave the text canonical count. All are enumerated.
    """
    thoughts, _, _, pi, _, never = world
    ok = np.array([canonical(tok, infuse(tok, snip, {LINE: z})[0]) for z in thoughts])
    found = weighed(model, tok, snip, thoughts, 1, 0)
    monkeypatch.setattr("hindsight.propose.propose", lambda *a, **k: found)
    best = max(np.flatnonzero(ok), key=lambda i: pi[i, 1])
    gain = pi[best, 1] - never[1]
    assert not ok.all() and gain > 0
    for c, want in ((gain - 0.1, {LINE: thoughts[best]}), (gain + 0.1, {})):
        assert choose(model, tok, [snip], config.make(estep="hindsight", c=c), "best", (0,), [0])[
            0
        ] == [want]
