"""The E-step: gradients against enumeration, rollouts against token-by-token sampling, and its
limits.
"""

import copy
import heapq
import inspect
import itertools
import random

import numpy as np
import pytest
import torch

import data
import domain
from corpus import functions
from elbo import Prior, durations, reward, summary
from engine.gradients import event_logprobs, policy_gradient
from engine.packing import hidden_before
from engine.rollouts import ACT, END, EVENT, FIRST, TOKEN, Rollouts, Row, draw_uniforms, rollout
from estep import credit, draw_latents, line_credit, log_q, plain_policy_gradient, plain_rollouts
from formats import tokenizers
from speed.estep import token_by_token
from worlds import (
    HASH,
    LATENTS,
    NEWLINE,
    SNIP,
    TOK,
    log_pi,
    random_q,
    score,
    sequential,
    softmaxed,
    thinker,
    tiny_model,
    with_thoughts,
)
from worlds import (
    THINK_MAX as TINY_MAX,
)

torch.set_num_threads(1)
G, THINK_MAX, C = 4, 6, 0.3


# ---------------------------------------------------------------- the gradient, by enumeration (the
# world of test_elbo.py)

PAIRS = list(itertools.product(range(len(LATENTS)), repeat=2))  # every (z_0, z_1): 121


@pytest.fixture(scope="module")
def enumerated():
    """log pi of the lines, whether they think, and by definition what each thought gains:

    (121, 2) each.
    """
    logpi = log_pi(tiny_model(0)).numpy()  # (Z, Z, 2)
    line_logp = logpi.reshape(-1, 2)
    think = np.array(PAIRS) > 0
    gain = np.array(
        [[logpi[i, 0].sum() - logpi[0, 0].sum(), logpi[i, j, 1] - logpi[i, 0, 1]] for i, j in PAIRS]
    )
    return line_logp, gain, think


def line_rewards(kind, line_logp, gain, think):
    """r_t or delta_t, as the credit `kind` has it."""
    return reward(line_logp if kind == "group" else gain, think, Prior(C))


def gradient(objective, parameters):
    return torch.autograd.grad(objective, parameters, retain_graph=True)


@pytest.mark.parametrize("kind", ["group", "prefix"])
@pytest.mark.parametrize("rows, size", [(1, 1), (2, 2), (2, 1)])
def test_expected_gradient(enumerated, kind, rows, size):
    """The score-function estimator, averaged over all batches of one rollout, one group of two, or
    two groups of one, equals autograd's gradient of J(q) = sum_z q(z) sum_t r_t. A decision and the
    content of a thought have their own advantages.
    """
    line_logp, gain, think = enumerated
    tables = random_q(5)
    logq = [x.log_softmax(-1) for x in tables]
    i, j = torch.tensor(PAIRS).T
    steps = torch.stack([logq[0][i], logq[1][i, j]], 1)  # (121, 2) log q(z_t | z_<t)
    act = torch.stack(
        [logq[0][0].expand(len(PAIRS)), logq[1][i, 0]], 1
    )  # (121, 2) log q(<act> | z_<t)
    decision = torch.where(torch.tensor(think), torch.log1p(-act.exp()), act)
    content = steps - decision  # log q(z_t | z_<t, <think>); 0 for <act>
    reward = torch.tensor((line_logp - C * think).sum(1))
    J = (steps.sum(1).exp() * reward).sum()

    batches = np.array(list(itertools.product(range(len(PAIRS)), repeat=rows)))  # (121^rows, rows)
    A = np.stack(
        [
            credit(
                line_rewards(kind, line_logp[n], gain[n], think[n]),
                think[n],
                np.ones_like(think[n]),
                size,
                normalise=False,
            )
            for n in batches
        ],
        1,
    )
    A = torch.tensor(A)  # (2, 121^rows, rows, 2)
    per_batch = (
        (A[0] * decision[batches] + A[1] * content[batches]).sum(2).mean(1)
    )  # 1/N sum_n sum_t A_t log q
    weight = steps.sum(1).detach()[batches].sum(1).exp()  # probability of the batch
    for got, want in zip(
        gradient((weight * per_batch).sum(), tables), gradient(J, tables), strict=False
    ):
        assert want.abs().max() > 1e-3 and (got - want).abs().max() < 1e-9


@pytest.mark.parametrize("kind", ["group", "prefix"])
def test_expected_policy_gradient(enumerated, kind):
    """policy_gradient over every latent sequence of the token model q, weighted by q(z), equals
    autograd's gradient of the enumerated J, in which log q is summed token by token from a plain
    softmax. And q's probabilities of all latents sum to one.
    """
    line_logp, gain, think = enumerated
    q = tiny_model(1)
    rows, events, logq = [], [], []
    for n, (i, j) in enumerate(PAIRS):
        z = LATENTS[i], LATENTS[j]
        ids, latents, _ = with_thoughts(*z)
        logp, total = softmaxed(q, ids), 0.0
        for t, (a, b) in enumerate(latents):
            if a == b:
                events.append((n, a, ACT, t, ids[a]))
                total = total + (1 - logp[a - 1, list(HASH)].exp().sum()).log()
                continue
            for k in range(a, b):
                events.append((n, k, FIRST if k == a else TOKEN, t, ids[k]))
                total = total + logp[k - 1, ids[k]]
            if b - a < TINY_MAX:
                events.append((n, b, END, t, NEWLINE))
                total = total + logp[b - 1, NEWLINE]
        logq.append(total)
        rows.append(
            Row(SNIP, 0, None, ids, None, None, {t: list(x) for t, x in enumerate(z) if x}, None)
        )
    logq = torch.stack(logq)  # (121,)
    assert float(logq.detach().logsumexp(0)) == pytest.approx(0, abs=1e-9)
    want = gradient(
        (logq.exp() * torch.tensor((line_logp - C * think).sum(1))).sum(), list(q.parameters())
    )

    rolls = Rollouts(rows, 1, [], np.array(events, EVENT), np.zeros(len(events)), 0)
    A = np.concatenate(
        [
            credit(
                line_rewards(kind, *(x[n : n + 1] for x in (line_logp, gain, think))),
                think[n : n + 1],
                np.ones((1, 2), bool),
                1,
                normalise=False,
            )
            for n in range(len(rows))
        ],
        1,
    )  # (2, 121, 2): each alone, no baseline
    policy_gradient(
        q, q, TOK, rolls, A * logq.detach().exp().numpy()[:, None] * len(rows), micro_tokens=500
    )
    scale = max(float(g.abs().max()) for g in want)
    for p, g in zip(q.parameters(), want, strict=False):
        assert (p.grad + g).abs().max() < 1e-5 * scale


def test_rollouts_in_the_enumerated_world(enumerated):
    """A rollout's log q, line likelihoods and gains are the entries of the enumerated tables for
    the latents that it drew.
    """
    line_logp, gain, _ = enumerated
    q, pi = tiny_model(1), tiny_model(0)
    rolls = rollout(q, pi, TOK, [SNIP], 64, TINY_MAX, (0,))
    seen = set()
    for row in rolls.rows:
        z = tuple(tuple(row.thoughts.get(t, ())) for t in range(2))
        at = PAIRS.index((LATENTS.index(z[0]), LATENTS.index(z[1])))
        seen.add(at)
        assert row.ids == with_thoughts(*z)[0]
        assert np.allclose(row.line_logp, line_logp[at], atol=1e-5) and np.allclose(
            row.gain, gain[at], atol=1e-5
        )
    assert len(seen) > 15


# ---------------------------------------------------------------- token-by-token sampling, written
# a second time


@pytest.fixture(scope="module")
def tok():
    rng = random.Random(0)
    return tokenizers.train_tokenizer(
        ["".join(domain.base_text(rng)) for _ in range(300)] + [inspect.getsource(heapq)], 400
    )


@pytest.fixture(scope="module")
def snips(tok):
    """Four functions of the built-in domain, three of the standard library, and code in column 0; 2
    to 11 lines.
    """
    found = [
        data.snippet(tok, t.prompt + t.solution, len(t.prompt))
        for t in (domain.expert_task(0, i, "train") for i in (0, 1, 4, 7))
    ]
    found += [
        data.snippet(tok, text, chars, name)
        for name, text, chars in functions.functions(inspect.getsource(heapq))
        if name in ("heappush", "heappop", "_siftdown")
    ]
    return found + [data.snippet(tok, "x = [1]\nfor i in x:\n    y = i\nz = x\n", 7)]


@pytest.fixture(scope="module")
def models(tok):
    return thinker(tok, 1), thinker(tok, 2)


@pytest.mark.parametrize(
    "settings, same",
    [
        ({}, False),
        ({"rate": 0.5}, True),
        ({"rate": 1.0}, False),
        ({"horizon": 2}, True),
        ({"think_max": 1}, False),
    ],
    ids=str,
)
def test_rollouts_are_sequential_sampling(tok, snips, models, same, settings):
    """Thoughts, ids, log q, the lines' likelihoods and the gains of `rollout` against the slow
    sampler with the same uniforms.
    """
    q, pi = models[0], models[0] if same else models[1]
    settings = {"think_max": THINK_MAX, **settings}
    rolls = rollout(q, pi, tok, snips, 3, seed=(3, 1), **settings)
    plain = [score(pi, tok, snip, {}) for snip in snips]
    for n, row in enumerate(rolls.rows):
        b, g = divmod(n, 3)
        snip, L = snips[b], len(snips[b].first)
        uniforms = draw_uniforms((3, 1), b, g, L, settings["think_max"])
        ids, thoughts, logq = sequential(q, tok, snip, uniforms, **settings)
        assert (row.snip, row.group, row.thoughts, row.ids) == (snip, b, thoughts, ids)
        mine = rolls.events["row"] == n
        assert np.allclose(rolls.logq[mine], logq, rtol=0, atol=1e-4)
        lines = sorted(thoughts)  # scored with none of the thoughts, the first, the first two, ...
        logp = [plain[b]]
        for k in range(1, len(lines) + 1):
            logp.append(score(pi, tok, snip, {s: thoughts[s] for s in lines[:k]}))
        assert np.allclose(row.line_logp, logp[-1], rtol=0, atol=1e-3)
        gains = np.zeros(L)
        for k, t in enumerate(lines):
            gains[t] = logp[k + 1][t:].sum() - logp[k][t:].sum()
        assert np.allclose(row.gain, gains, rtol=0, atol=1e-3)
    assert (
        rolls.think.sum() > 10 and np.abs(rolls.lines(lambda r: r.gain)).max() > 0.5
    )  # the test sees what it should


def alike(rolls, slow, logq, reward):
    """Rollouts against what `token_by_token` returned for the same uniforms."""
    for n, (row, (ids, thoughts, logs, lines)) in enumerate(zip(rolls.rows, slow, strict=True)):
        assert (row.ids, row.thoughts) == (ids, thoughts)
        assert np.allclose(rolls.logq[rolls.events["row"] == n], logs, rtol=0, atol=logq)
        assert np.allclose(row.line_logp, lines, rtol=0, atol=reward)


@pytest.mark.parametrize("rate, same", [(None, False), (0.1, True), (0.4, False), (1.0, True)])
def test_windows_change_nothing(tok, snips, models, same, rate):
    """Any look-ahead gives the thoughts, log q, likelihoods and gains of one token at a time;
    shorter ones read fewer tokens that are discarded.
    """
    q, pi = models[0], models[0] if same else models[1]
    slow = token_by_token(q, tok, snips, 3, THINK_MAX, (5,), rate)
    if not same:  # the same latents, scored by the other
        slow = [(*row[:3], score(pi, tok, snips[n // 3], row[1])) for n, row in enumerate(slow)]
    runs = {
        w: rollout(q, pi, tok, snips, 3, THINK_MAX, (5,), rate=rate, window=w)
        for w in (0, 1, 3, 1000)
    }
    for rolls in runs.values():
        alike(rolls, slow, 1e-4, 1e-3)
        for a, b in zip(rolls.rows, runs[0].rows, strict=False):
            assert np.allclose(a.gain, b.gain, rtol=0, atol=1e-3)
    read = {w: rolls.forward_tokens for w, rolls in runs.items()}
    assert (
        read[1] <= read[3] <= read[1000]
        and read[0] <= read[1000]
        and (rate is None or read[0] == read[1])
    )


def test_only_what_is_needed(tok, snips, models):
    """need: the latents are the same ones, nothing is measured that was not asked for, and less is
    read; rewards cost no more than the finished rows.
    """
    for pi in models:
        whole, some, few = (
            rollout(models[0], pi, tok, snips, 3, THINK_MAX, (5,), need=need)
            for need in ("gains", "rewards", "latents")
        )
        for a, b, c in zip(whole.rows, some.rows, few.rows, strict=False):
            assert (
                a.ids == b.ids == c.ids
                and np.allclose(a.line_logp, b.line_logp, rtol=0, atol=1e-4)
                and np.isnan(c.line_logp).all()
            )
            assert all(
                np.flatnonzero(np.isnan(row.gain)).tolist() == sorted(row.thoughts)
                for row in (b, c)
            )
        rows = sum(len(row.ids) - 1 - row.prefix for row in some.rows if row.thoughts) + sum(
            len(s.ids) - 1 for s in snips
        )
        assert some.forward_tokens - few.forward_tokens <= rows and (
            pi is models[0] or some.forward_tokens - few.forward_tokens == rows
        )
        later = [(row, t) for row in whole.rows for t in sorted(row.thoughts)[1:]]
        assert (
            whole.forward_tokens - some.forward_tokens
            == sum(len(row.snip.ids) - row.snip.first[t] for row, t in later)
            > 0
        )
        assert "gain" in summary(whole, Prior(C)) and "gain" not in summary(some, Prior(C))


def test_rollouts_of_a_real_model(smollm2):
    """SmolLM2 in float32, two functions of the standard library of different lengths: rollouts are
    what one token at a time gives.
    """
    model, tok, _ = smollm2
    some = [
        data.snippet(tok, text, chars, name)
        for name, text, chars in functions.functions(inspect.getsource(heapq))
        if name in ("heappush", "heappop")
    ]
    for rate, part, G in (
        (None, some[:1], 1),
        (0.1, some[:1], 2),
        (0.4, some, 2),
        (1.0, some[:1], 1),
    ):
        rolls = rollout(model, model, tok, part, G, 3, (6,), rate=rate)
        alike(rolls, token_by_token(model, tok, part, G, 3, (6,), rate), 1e-4, 1e-3)
        assert len(some) == 2 and (rate is None or rate < 0.4 or rolls.think.any())


@pytest.fixture(scope="module")
def rolls(tok, snips, models):
    return rollout(*models, tok, snips, G, THINK_MAX, (7,), states=True)


def test_events(tok, rolls):
    """The record of events: the token that stands at its index, in the order of the row, and one
    decision a line.
    """
    lengths = [len(z) for r in rolls.rows for z in r.thoughts.values()]
    assert (
        len(set(lengths)) > 3 and max(lengths) == THINK_MAX
    )  # some end by themselves, some are cut
    for n, row in enumerate(rolls.rows):
        mine = rolls.events[rolls.events["row"] == n]
        kinds = mine["kind"]
        decisions = mine[np.isin(kinds, (ACT, FIRST))]
        assert (np.diff(mine["position"]) > 0).all() and decisions["line"].tolist() == list(
            range(len(row.first))
        )
        assert all(row.ids[j] == token for _, j, kind, _, token in mine if kind != END)
        assert all(token in tok.stop_ids for *_, kind, _, token in mine if kind == END)
        for t, z in row.thoughts.items():
            assert mine[(mine["line"] == t) & (kinds != END)]["token"].tolist() == z
            assert ((mine["line"] == t) & (kinds == END)).sum() == (len(z) < THINK_MAX)


def test_sampled_is_scored(tok, models, rolls):
    """log q recomputed from the finished rows equals what the sampler recorded, so the first
    importance ratio is 1; padding changes nothing.
    """
    q = models[0]
    with torch.no_grad():
        states, node = hidden_before(
            q, [r.ids for r in rolls.rows], rolls.events["row"], rolls.events["position"]
        )
        scored = event_logprobs(q, tok, states[node], rolls.events).double().numpy()
    assert np.abs(scored - rolls.logq).max() < 1e-4
    for n in (0, len(rolls.rows) - 1):
        mine = rolls.events["row"] == n
        with torch.no_grad():
            events = rolls.events[mine]
            states, node = hidden_before(
                q, [rolls.rows[n].ids], np.zeros_like(events["row"]), events["position"]
            )
            alone = event_logprobs(q, tok, states[node], events).numpy()
        assert np.abs(alone - scored[mine]).max() < 1e-5
    q.zero_grad()
    A = np.stack([rolls.valid * 1.0] * 2)
    stats = policy_gradient(q, q, tok, rolls, A, micro_tokens=10**6)
    loss, read, gap = stats.loss, stats.tokens, stats.logq_gap
    to = [rolls.events[rolls.events["row"] == n]["position"].max() for n in range(len(rolls.rows))]
    assert gap < 1e-4
    assert read == len(
        {tuple(r.ids[:k]) for r, j in zip(rolls.rows, to, strict=False) for k in range(1, j + 1)}
    )  # to the last event, beginnings once
    assert policy_gradient(q, q, tok, rolls, A, micro_tokens=600).loss == pytest.approx(
        loss, rel=1e-5
    )
    assert loss == pytest.approx(-rolls.logq.sum() / len(rolls.rows), rel=1e-5)
    q.zero_grad()


def test_rollouts_do_not_depend_on_the_batch(tok, snips, models, rolls):
    """A snippet alone, with its number, gets the rollouts it had among the others."""
    for i in (0, 4, len(snips) - 1):
        alone = rollout(*models, tok, [snips[i]], G, THINK_MAX, (7,), numbers=[i])
        batch = rolls.rows[G * i : G * i + G]
        assert [(r.ids, r.thoughts) for r in alone.rows] == [(r.ids, r.thoughts) for r in batch]
        for a, b in zip(alone.rows, batch, strict=False):
            assert np.allclose(a.line_logp, b.line_logp, atol=1e-3) and np.allclose(
                a.gain, b.gain, atol=1e-3
            )
        assert np.allclose(alone.logq, rolls.logq[rolls.events["row"] // G == i], atol=1e-4)
    each = [
        rollout(*models, tok, [s], G, THINK_MAX, (7,), numbers=[i]).forward_tokens
        for i, s in enumerate(snips)
    ]
    assert sum(each) == rolls.forward_tokens
    other = rollout(*models, tok, snips[:1], G, THINK_MAX, (8,))
    assert [r.ids for r in other.rows] != [r.ids for r in rolls.rows[:G]] and len(
        {tuple(r.ids) for r in other.rows}
    ) > 1


def test_thoughts_are_inserted(tok, rolls):
    """A row's ids are data.infuse of its thoughts; without the tokens of kind THOUGHT they are the
    snippet's.
    """
    for row in rolls.rows:
        ids, kinds = data.infuse(tok, row.snip, row.thoughts)
        assert ids == row.ids
        assert [
            i for i, kind in zip(row.ids, kinds, strict=False) if kind != data.THOUGHT
        ] == row.snip.ids
        assert [row.ids[f] for f in row.first] == [row.snip.ids[f] for f in row.snip.first]


# ---------------------------------------------------------------- limits


def test_never_thinking(tok, snips, models):
    """rate = 0: the expert's code, its plain likelihood, no gain, and one forward of q and of pi a
    snippet.
    """
    q, pi = models
    rolls = rollout(q, pi, tok, snips, 2, THINK_MAX, (0,), rate=0)
    assert rolls.forward_tokens == 2 * sum(len(s.ids) - 1 for s in snips)
    assert (
        not rolls.think.any()
        and (rolls.events["kind"] == ACT).all()
        and len(rolls.logq) == rolls.valid.sum()
    )
    for row in rolls.rows:
        assert row.ids == row.snip.ids and not row.gain.any()
        assert (row.line_logp == rolls.base_logp[row.group]).all()
        assert np.allclose(row.line_logp, score(pi, tok, row.snip, {}), atol=1e-3)


@pytest.mark.parametrize("same", [False, True])
def test_always_thinking(tok, snips, models, same):
    """rate = 1: a thought before every line, also where all rows have their last line behind a
    thought.
    """
    rolls = rollout(
        models[0], models[not same], tok, snips[:1] + snips[-1:], 2, THINK_MAX, (0,), rate=1
    )
    assert (rolls.think == rolls.valid).all() and not (rolls.events["kind"] == ACT).any()


def test_too_long_a_snippet(tok, snips, models):
    """What may outgrow the positions of the model is refused before anything is sampled."""
    with pytest.raises(ValueError, match="max_len is 512"):
        rollout(*models, tok, snips[:1], 1, 50, (0,))


@pytest.mark.parametrize("kind", ["group", "prefix"])
def test_horizon_one_is_brite(tok, snips, models, kind):
    """horizon = 1 against the single-step estimator: one latent z a snippet, its reward the
    likelihood of the whole code less c. The baseline of the decision is the mean of the group's
    others, that of what is thought the mean of the others that think (of the group, or else of the
    batch); the loss is -advantage * log q, averaged over the rollouts.
    """
    q, pi = models
    rolls = rollout(q, pi, tok, snips, G, THINK_MAX, (1,), horizon=1)
    z = [row.thoughts.get(0, []) for row in rolls.rows]
    assert all(set(row.thoughts) <= {0} for row in rolls.rows) and 0 < sum(map(bool, z)) < len(z)

    reward = np.array(
        [
            score(pi, tok, row.snip, row.thoughts).sum() - C * bool(x)
            for row, x in zip(rolls.rows, z, strict=False)
        ]
    )
    if (
        kind == "prefix"
    ):  # the same for all rollouts of a snippet, so no other estimator in the mean
        reward -= [rolls.base_logp[row.group].sum() for row in rolls.rows]
    loss = 0.0
    for n, (row, x) in enumerate(zip(rolls.rows, z, strict=False)):
        others = [m for m in range(len(z)) if m // G == n // G and m != n]
        thinkers = [m for m in others if z[m]] or [m for m in range(len(z)) if z[m] and m != n]
        at = row.snip.first[0]
        logp = (q(torch.tensor([row.snip.ids[:at] + x]))[0] @ q.head_weight.T).log_softmax(-1)[
            at - 1 :
        ]  # (len(x) + 1, V)
        first = logp[0, x[0]] if x else torch.log1p(-logp[0].exp()[tok.thought_ids].sum())
        rest = sum(logp[k, token] for k, token in enumerate(x) if k)
        if 0 < len(x) < THINK_MAX:
            rest = rest + logp[-1, tok.stop_ids].logsumexp(0)
        loss = loss - (
            (reward[n] - reward[others].mean()) * first
            + (reward[n] - reward[thinkers].mean()) * rest
        ) / len(z)
    want = gradient(loss, list(q.parameters()))

    q.zero_grad()
    r = line_credit(rolls, Prior(C), kind)
    A = credit(r, rolls.think, rolls.possible, G, normalise=False)
    got_loss = policy_gradient(q, q, tok, rolls, A).loss
    assert got_loss == pytest.approx(float(loss.detach()), rel=1e-4, abs=1e-4)
    scale = max(float(g.abs().max()) for g in want)
    for p, g in zip(q.parameters(), want, strict=False):
        assert (p.grad - g).abs().max() < 1e-5 * max(scale, 1)
    q.zero_grad()


# ---------------------------------------------------------------- by hand


def hand_made():
    """Two rollouts of a snippet of three lines, 6 tokens of code; the second thinks before lines 0
    and 2.
    """
    snip = data.Snippet(list(range(8)), 1, [2, 4, 6], [[9]] * 3)
    plain = Row(snip, 0, None, snip.ids, snip.first, np.array([-1.0, -2.0, -3.0]), {}, np.zeros(3))
    plain.logq = np.array([-0.5, -0.5, -0.5])
    plain.free = 3
    other = Row(
        snip,
        0,
        None,
        None,
        [5, 7, 11],
        np.array([-1.0, -1.0, -1.0]),
        {0: [5, 5], 2: [5]},
        np.array([2.5, 0.0, 0.5]),
    )
    other.logq = np.array([-2.0, -0.5, -3.0])
    other.free = 3
    return Rollouts(
        [plain, other], 2, [np.array([-1.0, -2.0, -3.0])], np.zeros((0, 5), int), np.zeros(0), 0
    )


def test_summary():
    """Every entry of the summary, worked out by hand: c = 0.75, rewards -6 and -3 - 2 c = -4.5."""
    assert durations([1, 4], 6) == [3, 2] and durations([0], 3) == [3] and durations([], 3) == []
    got = summary(hand_made(), Prior(0.75))
    assert got == pytest.approx(
        {
            "elbo": -5.25,
            "elbo_no_think": -6.0,
            "elbo_2_samples": np.log((np.exp(-6) + np.exp(-4.5)) / 2),
            "ce_code": 9 / 12,
            "think_share": 2 / 6,
            "think_len": 1.5,
            "duration": 1.5,
            "gain": 1.5,
            "gain_above_c": 0.5,
        }
    )


def test_advantages():
    """Both credits, with a discount, on the same two rollouts; padding gets none, and the scale is
    the deviation over the batch.
    """
    rolls = hand_made()
    think = rolls.think
    full = rolls.possible
    group, prefix = (line_credit(rolls, Prior(0.75), kind) for kind in ("group", "prefix"))
    # Returns: group, discount 1/2: [-2.75, -3.5, -3], [-2.6875, -1.875, -1.75].
    # prefix: zeros, [1.6875, -0.125, -0.25].
    # Only the second thinks, so its thoughts have no others to be compared with.
    A = credit(group, think, full, 2, 0.5, normalise=False)
    assert A.tolist() == [
        [[-0.0625, -1.625, -1.25], [0.0625, 1.625, 1.25]],
        [[0, 0, 0], [-2.6875, 0, -1.75]],
    ]
    A = credit(prefix, think, full, 2, 0.5, normalise=False)
    assert A.tolist() == [
        [[-1.6875, 0.125, 0.25], [1.6875, -0.125, -0.25]],
        [[0, 0, 0], [1.6875, 0, -0.25]],
    ]
    assert np.allclose(credit(prefix, think, full, 2, 0.5), A / A[0].std(), rtol=1e-5)
    # two groups of two: thoughts at line 0 by rows 1 (R = 1), 2 (R = 3) and 3 (R = 2); row 1 is
    # compared with the other group's
    r = np.array([[0.0], [1.0], [3.0], [2.0]])
    A = credit(r, r > 0, r >= 0, 2, normalise=False)
    assert A[:, :, 0].tolist() == [[-1, 1, 1, -1], [0, 1 - 2.5, 1, -1]]


def test_impossible_decisions_do_not_count():
    """With a horizon of one, the scale is the deviation over first lines alone."""
    rolls = hand_made()
    for row in rolls.rows:
        row.free = 1
    r = line_credit(rolls, Prior(0.75), "group")
    assert r.tolist() == [[-1, -2, -3], [-1.75, -1, -1]]  # the second thought pays nothing here
    A = credit(r, rolls.think & rolls.possible, rolls.possible, 2, normalise=False)
    assert A[0].tolist() == [[-2.25, 0, 0], [2.25, 0, 0]]
    scaled = credit(r, rolls.think & rolls.possible, rolls.possible, 2)
    assert np.allclose(scaled[0], [[-1, 0, 0], [1, 0, 0]], atol=1e-5)


def test_gain_floor():
    """By prefix a thought that loses 2.5 nats costs the floor; by group it costs all."""
    rolls = hand_made()
    rolls.rows[1].gain = np.array([-2.5, 0.0, 0.5])
    assert line_credit(rolls, Prior(0.75), "prefix", 1.0).tolist() == [[0, 0, 0], [-1.75, 0, -0.25]]
    assert line_credit(rolls, Prior(0.75), "prefix").tolist()[1] == [-3.25, 0, -0.25]


def test_line_credit_with_the_exact_kl():
    """A latent pays log q - log p, <act> too; by prefix and by group."""
    rolls = hand_made()
    prior = Prior(0.0, True, 0.5, 2.0)
    half = float(np.log(0.5))
    act = -0.5 - half
    paid = np.array([[act] * 3, [-2 - half + 2, act, -3 - half + 2]])
    logp = np.array([[-1, -2, -3], [-1, -1, -1]])
    assert np.allclose(line_credit(rolls, prior, "group"), logp - paid)
    gain = np.array([[0, 0, 0], [2.5, 0, 0.5]])
    assert np.allclose(line_credit(rolls, prior, "prefix"), gain - paid)


# ---------------------------------------------------------------- the definition and the fast code


@pytest.mark.parametrize(
    "settings",
    [{}, {"rate": 0.5}, {"horizon": 2}, {"think_max": 1}, {"need": "rewards"}],
    ids=str,
)
def test_rollouts_by_definition(tok, snips, models, settings):
    """Latents, log q, likelihoods and gains of the definition and of the fast code."""
    settings = {"think_max": THINK_MAX, "seed": (3, 2), "numbers": [5, 6, 7], **settings}
    chosen = [snips[i] for i in (0, 4, 7)]
    fast = rollout(*models, tok, chosen, 3, **settings)
    plain = plain_rollouts(*models, tok, chosen, 3, **settings)
    assert plain.think.sum() > 2 or settings["think_max"] == 1
    for a, b in zip(plain.rows, fast.rows, strict=True):
        assert (a.thoughts, a.ids, a.first, a.free) == (b.thoughts, b.ids, b.first, b.free)
        assert a.group == b.group and a.snip is b.snip
        for name in ("logq", "line_logp", "gain"):
            pair = getattr(a, name), getattr(b, name)
            assert np.allclose(*pair, rtol=0, atol=1e-4, equal_nan=True), name
    for a, b in zip(plain.base_logp, fast.base_logp, strict=True):
        assert np.allclose(a, b, rtol=0, atol=1e-4)
    for prior in (Prior(C), Prior(0.0, True, 0.9, 20.0)):
        assert np.allclose(plain.rewards(prior), fast.rewards(prior), rtol=0, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"horizon": 2}], ids=str)
@pytest.mark.parametrize("kl", [0.0, 0.3])
def test_gradient_by_definition(tok, snips, models, kl, settings):
    """Loss, KL and gradient of the definition and of the fast code, on the same rollouts."""
    q, pi = models
    chosen = [snips[i] for i in (0, 4, 7)]
    rolls = rollout(q, pi, tok, chosen, 3, THINK_MAX, (4,), states=True, **settings)
    r = line_credit(rolls, Prior(C), "prefix", 1.0)
    A = credit(r, rolls.think, rolls.possible, 3)
    results = []
    for function in (plain_policy_gradient, policy_gradient):
        q.zero_grad()
        stats = function(q, pi, tok, rolls, A, THINK_MAX, kl=kl)
        results.append((stats, [p.grad.clone() for p in q.parameters()]))
    q.zero_grad()
    (plain, wanted), (fast, got) = results
    assert plain.loss == pytest.approx(fast.loss, rel=1e-4, abs=1e-5)
    assert plain.kl == pytest.approx(fast.kl, rel=1e-4) and (plain.kl > 0.01) == (kl > 0)
    assert max(plain.logq_gap, fast.logq_gap) < 1e-4
    scale = max(float(g.abs().max()) for g in wanted)
    for a, b in zip(wanted, got, strict=True):
        assert (a - b).abs().max() < 1e-4 * scale


def test_log_q_sums_to_one():
    """By definition: the probabilities of all 11 latents of a line, and of what may be drawn."""
    q = tiny_model(1)
    total = 0.0
    for z in LATENTS:
        thoughts = {0: list(z)} if z else {}
        ids = data.infuse(TOK, SNIP, thoughts)[0]
        logits = q(torch.tensor([ids]))[0] @ q.head_weight.T
        decisions, tokens = log_q(logits, TOK, SNIP, thoughts, TINY_MAX, 1)
        total += (decisions.sum() + sum(tokens.values())).exp().item()
    assert total == pytest.approx(1, abs=1e-9)
    uniforms = draw_uniforms((0,), 0, 0, 2, TINY_MAX)
    thoughts, logq = draw_latents(q, TOK, SNIP, uniforms, TINY_MAX, horizon=1)
    assert set(thoughts) <= {0} and logq[1] == 0 > logq[0]


def test_kl_of_thoughts(tok, snips, models, rolls):
    """The KL term: its value against the distributions, its gradient against a weighted sum of its
    own, and none for q = pi; pi's states are needed.
    """
    q, pi = models
    content = rolls.events[rolls.events["kind"] >= TOKEN]
    want = 0.0
    for n in np.unique(content["row"]):
        before = content["position"][content["row"] == n] - 1
        logq, logp = (softmaxed(m, rolls.rows[n].ids)[before] for m in (q, pi))
        want = want + (logq.exp() * (logq - logp.detach())).sum()
    grads = gradient(want / len(rolls.rows), list(q.parameters()))
    q.zero_grad()
    nothing = np.zeros((2, *rolls.valid.shape))
    stats = policy_gradient(q, pi, tok, rolls, nothing, kl=1.0)
    loss, mean = stats.loss, stats.kl
    assert mean == pytest.approx(
        float(want.detach()) / len(content), rel=1e-4
    ) and loss == pytest.approx(float(want.detach()) / len(rolls.rows), rel=1e-4)
    scale = max(float(g.abs().max()) for g in grads)
    for p, g in zip(q.parameters(), grads, strict=False):
        assert (p.grad - g).abs().max() < 1e-4 * scale
    q.zero_grad()
    same = rollout(q, copy.deepcopy(q), tok, snips[:2], G, THINK_MAX, (7,), states=True)
    assert (
        policy_gradient(q, q, tok, same, nothing[:, : 2 * G], kl=1.0).kl
        == pytest.approx(0, abs=1e-6)
        and same.think.any()
    )
    for kept in (
        rollout(q, q, tok, snips[:2], G, THINK_MAX, (7,), states=True),
        rollout(q, pi, tok, snips[:2], G, THINK_MAX, (7,)),
    ):
        with pytest.raises(ValueError, match="states=True"):
            policy_gradient(q, pi, tok, kept, nothing[:, : 2 * G], kl=1.0)
    q.zero_grad()
