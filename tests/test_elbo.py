"""The bound against the sum over every latent, and token log-probabilities against the full softmax.

The world of the enumeration: five tokens, two of which begin a comment; two lines; thoughts of at most two tokens. That makes 11
latents a line and 121 latent sequences, all of which are visited.
"""

import math

import pytest
import torch

from elbo import iw_bound, kl_exact, line_rewards, log_prior
from logprobs import log1mexp, token_logprobs
from worlds import (
    LATENTS,
    log_pi,
    random_q,
    tiny_model,
)

torch.set_num_threads(1)
THINKS = torch.tensor([len(z) > 0 for z in LATENTS])  # (Z,)
LOG_Z = math.log(len(LATENTS) - 1)


def exact_elbo(logpi, logq0, logq1, alpha):
    """sum_z q(z) [ sum_t log pi(a_t | s_t, z_t) - KL_t ], the KL of each step in closed form (Prop. 5.1)."""

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
    """ELBO <= log p(x) = log sum_z p(z) pi(x | z); the gap is KL(q || posterior); it closes at the posterior."""
    prior = log_prior(THINKS, alpha, LOG_Z)  # (Z,)
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
    """E log 1/K sum w over all K-tuples of latent sequences: the ELBO at K = 1, grows with K, stays below log p(x)."""
    alpha = 0.6
    prior = log_prior(THINKS, alpha, LOG_Z)
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
    p = log_prior(THINKS, alpha, LOG_Z).exp()
    assert float(p.sum()) == pytest.approx(1, abs=1e-12) and float(p[0]) == pytest.approx(
        alpha, abs=1e-12
    )


def test_kl_exact():
    """Prop. 5.1 against sum_z q log(q / p); its limits: q = p, and alpha = 1 (never thinking is free, thinking costs infinitely much)."""
    gen = torch.Generator().manual_seed(0)
    logq = (3 * torch.randn(50, len(LATENTS), generator=gen, dtype=torch.float64)).log_softmax(-1)
    thought = logq[:, 1:] - logq[:, 1:].logsumexp(-1, keepdim=True)
    entropy = -(thought.exp() * thought).sum(-1)
    for alpha in (0.05, 0.5, 0.99):
        want = (logq.exp() * (logq - log_prior(THINKS, alpha, LOG_Z))).sum(-1)
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


def test_line_rewards():
    """The penalty is paid by the lines with a thought only."""
    r = line_rewards(torch.tensor([[-1.0, -2.0, -3.0]]), torch.tensor([[True, False, True]]), 0.25)
    assert r.tolist() == [[-1.25, -2.0, -3.25]]


# ---------------------------------------------------------------- log-probabilities of tokens


@pytest.mark.parametrize("chunk", [3, 1024])
def test_token_logprobs(chunk):
    """Values and gradients equal those of one log_softmax over all logits, in float64, for targets and for sets of tokens."""
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
    for want, got in zip(*results):
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
    """The last row equals -sum p log p of the full softmax in float64, from nearly even to nearly certain distributions; the other rows and their gradients
    are those without it, and it has none of its own."""
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


def test_log1mexp():
    """log(1 - exp(x)) in float32 against math in float64, from 1e-6 below 0 to -inf; its gradient is finite at both ends."""
    x = torch.tensor([-1e-6, -1e-3, -0.1, -math.log(2), -1.0, -10.0, -60.0])
    want = [math.log(-math.expm1(v)) if v > -1 else math.log1p(-math.exp(v)) for v in x.tolist()]
    assert torch.allclose(log1mexp(x), torch.tensor(want), rtol=1e-5, atol=0)
    assert float(log1mexp(torch.tensor(math.log(0.25)))) == pytest.approx(math.log(0.75), rel=1e-6)
    ends = torch.tensor([0.0, -1e-9, -200.0, -math.inf], requires_grad=True)
    out = log1mexp(ends)
    out.sum().backward()
    assert torch.isfinite(out).all() and torch.isfinite(ends.grad).all()
