"""The bound against the sum over every latent, and token log-probabilities against the full
softmax.

The world of the enumeration: five tokens, two of which begin a comment; two lines; thoughts of at
most two tokens. That makes 11 latents a line and 121 latent sequences, all of which are visited.
"""

import itertools
import math

import numpy as np
import pytest
import torch

from elbo import (
    Prior,
    code_logprobs,
    decision_logprobs,
    iw_bound,
    kl_exact,
    kl_sample,
    log_prior,
    log_thoughts,
    reward,
)
from logprobs import none_logprobs, token_kl, token_logprobs
from worlds import (
    LATENTS,
    log_pi,
    random_q,
    tiny_model,
)

torch.set_num_threads(1)
THINKS = np.array([len(z) > 0 for z in LATENTS])  # (Z,)
LOG_Z = math.log(len(LATENTS) - 1)


def exact_elbo(logpi, logq0, logq1, alpha):
    """sum_z q(z) [ sum_t log pi(a_t | s_t, z_t) - KL_t ], the KL of each step in closed form (Prop.
    5.1).
    """

    def kl(logq):
        thought = logq[..., 1:] - logq[..., 1:].logsumexp(-1, keepdim=True)  # q(. | <think>)
        return kl_exact(logq[..., 0].exp(), -(thought.exp() * thought).sum(-1), alpha, LOG_Z)

    return ((logq0[:, None] + logq1).exp() * (logpi.sum(-1) - kl(logq0) - kl(logq1)[:, None])).sum()


@pytest.fixture(scope="module")
def logpi():
    return log_pi(tiny_model(0))


@pytest.mark.parametrize("alpha", [0.1, 0.6, 0.95])
@pytest.mark.parametrize("seed", range(3))
def test_bound(logpi, alpha, seed):
    """ELBO <= log p(x) = log sum_z p(z) pi(x | z); the gap is KL(q || posterior); it closes at the
    posterior.
    """
    prior = torch.from_numpy(log_prior(THINKS, alpha, LOG_Z))  # (Z,)
    joint = prior[:, None] + prior + logpi.sum(-1)  # (Z, Z) log p(x, z)
    log_px, posterior = joint.logsumexp((0, 1)), joint - joint.logsumexp((0, 1))
    logq0, logq1 = (x.detach().log_softmax(-1) for x in random_q(seed))
    bound = exact_elbo(logpi, logq0, logq1, alpha)
    logq = logq0[:, None] + logq1
    gap = (logq.exp() * (logq - posterior)).sum()
    assert gap > 0.01 and bound < log_px
    assert (log_px - bound - gap).abs() < 1e-9

    best0 = posterior.logsumexp(1)  # q(z_0), q(z_1 | z_0) of the posterior
    assert (exact_elbo(logpi, best0, posterior - best0[:, None], alpha) - log_px).abs() < 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_k_sample_bound(logpi, seed):
    """E log 1/K sum w over all K-tuples of latent sequences: the ELBO at K = 1, grows with K, stays
    below log p(x).
    """
    alpha = 0.6
    prior = torch.from_numpy(log_prior(THINKS, alpha, LOG_Z))
    logq0, logq1 = (x.detach().log_softmax(-1) for x in random_q(seed))
    logq = (logq0[:, None] + logq1).flatten()  # (Z*Z,)
    joint = (prior[:, None] + prior + logpi.sum(-1)).flatten()
    log_w, expected = joint - logq, []
    for K in (1, 2, 3):
        shapes = [[-1 if i == k else 1 for i in range(K)] for k in range(K)]
        w = torch.stack(
            torch.broadcast_tensors(*[log_w.view(s) for s in shapes])
        )  # (K, Z*Z, ..., Z*Z)
        p = sum(logq.view(s) for s in shapes).exp()
        expected.append(float((p * iw_bound(w)).sum()))
    assert expected[0] == pytest.approx(float(exact_elbo(logpi, logq0, logq1, alpha)), abs=1e-9)
    log_px = joint.logsumexp(0)
    assert expected[0] + 1e-3 < expected[1] < expected[2] - 1e-4 < float(log_px)
    assert torch.allclose(
        iw_bound(log_px.expand(3, 7)), log_px.expand(7), rtol=0, atol=1e-12
    )  # q the posterior: w = p(x) whatever K
    assert float(iw_bound(log_w + logq + math.log(len(logq)))) == pytest.approx(
        float(log_px), abs=1e-9
    )  # every z once, q uniform


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0])
def test_prior_sums_to_one(alpha):
    """The prior over <act> and all thoughts has mass one, alpha of it on <act>."""
    p = np.exp(log_prior(THINKS, alpha, LOG_Z))
    assert float(p.sum()) == pytest.approx(1, abs=1e-12) and float(p[0]) == pytest.approx(
        alpha, abs=1e-12
    )


def test_kl_exact():
    """Prop. 5.1 against sum_z q log(q / p); its limits: q = p, and alpha = 1 (never thinking is
    free, thinking costs infinitely much).
    """
    gen = torch.Generator().manual_seed(0)
    logq = (3 * torch.randn(50, len(LATENTS), generator=gen, dtype=torch.float64)).log_softmax(-1)
    thought = logq[:, 1:] - logq[:, 1:].logsumexp(-1, keepdim=True)
    entropy = -(thought.exp() * thought).sum(-1)
    for alpha in (0.05, 0.5, 0.99):
        want = (logq.exp() * (logq - torch.from_numpy(log_prior(THINKS, alpha, LOG_Z)))).sum(-1)
        assert torch.allclose(
            kl_exact(logq[:, 0].exp(), entropy, alpha, LOG_Z), want, rtol=0, atol=1e-12
        )
        assert float(
            kl_exact(torch.tensor(alpha), torch.tensor(LOG_Z), alpha, LOG_Z)
        ) == pytest.approx(0, abs=1e-6)
    assert kl_exact(torch.tensor([1.0, 0.9]), torch.tensor(0.0), 1.0, LOG_Z).tolist() == [
        0,
        math.inf,
    ]


def test_number_of_thoughts():
    """|Z| against thoughts written out: of the enumerated world, and with closing tokens."""
    assert log_thoughts(2, 4, 0, 2) == pytest.approx(LOG_Z, abs=1e-12)
    first, words, closing = "#*", "#*ab", "."
    for think_max in (1, 2, 3, 4):
        thoughts = set()
        for n in range(think_max):
            for body in itertools.product(words, repeat=n):
                thoughts |= {h + "".join(body) for h in first}
                if n:
                    thoughts |= {h + "".join(body[1:]) + e for h in first for e in closing}
        assert log_thoughts(2, 4, 1, think_max) == pytest.approx(math.log(len(thoughts)), abs=1e-12)


@pytest.mark.parametrize("alpha", [0.3, 0.9])
def test_one_sample_of_the_kl(alpha):
    """The mean over q of kl_t is Prop. 5.1's KL, and the mean of -log q(z | <think>) is H."""
    logq = random_q(7)[1].detach().log_softmax(-1).numpy()  # (Z, Z), a q in each row
    prior = Prior(0.05, True, alpha, LOG_Z)
    paid = (np.exp(logq) * kl_sample(THINKS, logq, prior)).sum(-1)
    thought = logq[:, 1:] - np.logaddexp.reduce(logq[:, 1:], 1)[:, None]
    entropy = -(np.exp(thought) * thought).sum(-1)
    q_act = torch.from_numpy(np.exp(logq[:, 0]))
    want = kl_exact(q_act, torch.from_numpy(entropy), alpha, LOG_Z)
    assert np.allclose(paid, want, rtol=0, atol=1e-12) and paid.min() > 0.01
    assert kl_sample(THINKS, logq, Prior(0.05)).tolist() == [0] + [0.05] * 10


@pytest.mark.parametrize("alpha", [0.3, 0.9])
def test_gradient_of_the_exact_bound(logpi, alpha):
    """The score function with r_t, and no gradient through kl_t, is the gradient of the bound."""
    tables = random_q(2)
    logq0, logq1 = (x.log_softmax(-1) for x in tables)
    want = torch.autograd.grad(exact_elbo(logpi, logq0, logq1, alpha), tables, retain_graph=True)
    logq = logq0[:, None] + logq1  # (Z, Z)
    prior = Prior(0.0, True, alpha, LOG_Z)
    lines = logpi.numpy()
    total = reward(lines[..., 0], THINKS[:, None], prior, logq0.detach().numpy()[:, None])
    total = total + reward(lines[..., 1], THINKS, prior, logq1.detach().numpy())
    weight = (logq.exp().detach() * torch.from_numpy(total)).detach()
    for got, expected in zip(torch.autograd.grad((weight * logq).sum(), tables), want, strict=True):
        assert expected.abs().max() > 1e-3 and (got - expected).abs().max() < 1e-10


def test_reward():
    """The penalty is paid by the lines with a thought only."""
    r = reward(np.array([[-1.0, -2.0, -3.0]]), np.array([[True, False, True]]), Prior(0.25))
    assert r.tolist() == [[-1.25, -2.0, -3.25]]


# ---------------------------------------------------------------- log-probabilities of tokens


@pytest.mark.parametrize("chunk", [3, 1024])
def test_token_logprobs(chunk):
    """Values and gradients equal those of one log_softmax over all logits, in float64, for targets
    and for sets of tokens.
    """
    gen = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 8, generator=gen, dtype=torch.float64) for n in (10, 30))
    targets, sets = torch.randint(30, (10,), generator=gen), ([4], [0, 7, 29], list(range(30)))
    mix = torch.randn(4, 10, generator=gen, dtype=torch.float64)

    def full(hidden, weight):
        logp = (hidden @ weight.T).log_softmax(-1)
        return torch.stack(
            [logp[range(10), targets]] + [logp[:, s].exp().sum(-1).log() for s in sets]
        )

    results = []
    for f, dtype in (
        (full, torch.float64),
        (lambda h, w: token_logprobs(h, w, targets, sets, chunk=chunk), torch.float32),
    ):
        h, w = (x.detach().to(dtype, copy=True).requires_grad_() for x in (hidden, weight))
        out = f(h, w)
        (out * mix.to(dtype)).sum().backward()
        results.append((out.detach(), h.grad, w.grad))
    for want, got in zip(*results, strict=False):
        assert got.dtype == torch.float32 and torch.allclose(
            got.double(), want, rtol=1e-5, atol=1e-5
        )
    with torch.no_grad():
        assert torch.allclose(
            token_logprobs(hidden, weight, targets, sets, chunk=chunk).double(),
            results[0][0],
            atol=1e-5,
        )
        assert token_logprobs(hidden[:0], weight, targets[:0], sets).shape == (4, 0)


@pytest.mark.parametrize("chunk", [3, 1024])
def test_entropy_of_the_distributions(chunk):
    """The last row equals -sum p log p of the full softmax in float64, from nearly even to nearly
    certain distributions; the other rows and their gradients are those without it, and it has none
    of its own.
    """
    gen = torch.Generator().manual_seed(1)
    hidden, weight = (
        torch.randn(12, 8, generator=gen) * torch.logspace(-2, 1.7, 12)[:, None],
        torch.randn(30, 8, generator=gen),
    )
    targets, logp = (
        torch.randint(30, (12,), generator=gen),
        (hidden.double() @ weight.double().T).log_softmax(-1),
    )
    want = -(logp.exp() * logp).sum(-1)
    assert want[0] > 3.39 and want.min() < 0.1  # log 30 is 3.40
    rows = []
    for entropy in (False, True):
        h = hidden.clone().requires_grad_()
        out = token_logprobs(h, weight, targets, [[4, 5]], chunk=chunk, entropy=entropy)
        assert out.shape == (2 + entropy, 12)
        out.sum().backward()  # the entropy's part of it must not count
        rows.append((out.detach(), h.grad))
    assert torch.allclose(rows[1][0][2].double(), want, rtol=1e-4, atol=1e-4)
    assert torch.equal(rows[0][0], rows[1][0][:2]) and torch.equal(rows[0][1], rows[1][1])
    huge = token_logprobs(
        torch.eye(8)[:1] * 1e4, weight, targets[:1], entropy=True
    )  # all mass on one token: p log p is 0 where p is
    assert huge[1].tolist() == [0]


@pytest.mark.parametrize("chunk", [3, 1024])
def test_columns_left_out(chunk):
    """Values and gradients with columns left out are those of a softmax over the others."""
    gen = torch.Generator().manual_seed(2)
    hidden, weight, other, other_weight = (
        torch.randn(n, 8, generator=gen, dtype=torch.float64) for n in (10, 30, 10, 30)
    )
    without = [0, 3, 4, 5, 17, 29]  # with blocks of three columns, one whole block
    targets = torch.tensor([1, 2, 6, 7, 8, 9, 28, 16, 18, 10])
    allowed = [i for i in range(30) if i not in without]
    mix = torch.randn(4, 10, generator=gen, dtype=torch.float64)

    def plain(h, w):
        logits = h @ w.T
        logp = logits.index_fill(1, torch.tensor(without), -torch.inf).log_softmax(1)
        logq = (other @ other_weight.T)[:, allowed].log_softmax(1)
        p = logp[:, allowed]
        return torch.stack(
            [
                logp[range(10), targets],
                logp[:, [1, 2]].logsumexp(1),
                (p.exp() * (p - logq)).sum(1),
                logits[:, allowed].logsumexp(1) - logits.logsumexp(1),
            ]
        ), -(p.exp() * p).sum(1)

    def blocks(h, w):
        target, pair, entropy = token_logprobs(
            h, w, targets, [[1, 3, 2]], chunk, entropy=True, without=without
        )
        kl = token_kl(h, w, other, other_weight, chunk, without)
        return torch.stack([target, pair, kl, none_logprobs(h, w, without, chunk)]), entropy

    results = []
    for function in (plain, blocks):
        h, w = (x.clone().requires_grad_() for x in (hidden, weight))
        rows, entropy = function(h, w)
        (rows * mix).sum().backward()
        results.append((rows.detach(), entropy.detach(), h.grad, w.grad))
    for want, got in zip(*results, strict=True):
        assert torch.allclose(got, want, rtol=0, atol=1e-10)
    forbidden = token_logprobs(hidden, weight, torch.full((10,), 17), chunk=chunk, without=without)
    assert forbidden[0].tolist() == [-math.inf] * 10


@pytest.mark.parametrize("bias", [0.0, 12.0, 20.0])
def test_code_given_a_likely_thought(bias):
    """In float32, where P(#) nears 1: log pi of code and log q(<act>) against float64."""
    gen = torch.Generator().manual_seed(3)
    hidden, weight = (torch.randn(n, 8, generator=gen) for n in (40, 30))
    hidden[:, 0] = weight[:, 0] = 0
    hidden[:, 0] = 1
    weight[[3, 7], 0] = bias
    targets = torch.arange(40) % 3  # none of them begins a comment
    opens = torch.arange(40) % 2 > 0
    logits = hidden.double() @ weight.double().T
    others = logits.index_fill(1, torch.tensor([3, 7]), -torch.inf)
    want = torch.where(opens[:, None], others, logits).log_softmax(1)[range(40), targets]
    got = code_logprobs(hidden, weight, targets, opens, [3, 7])
    assert torch.allclose(got.double(), want, rtol=0, atol=2e-5)
    decision = decision_logprobs(hidden, weight, [3, 7]).double()  # (40, 3)
    want = torch.stack(
        [others.logsumexp(1) - logits.logsumexp(1), *logits.log_softmax(1)[:, [3, 7]].T], 1
    )
    assert torch.allclose(decision, want, rtol=0, atol=2e-5)
    if bias == 20:
        assert decision[:, 0].max() < -10  # 1 - P(#) is below what float32 resolves beside 1
