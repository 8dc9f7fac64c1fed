"""Log-probabilities of tokens, the prior over latents, the KL, and the temporal variational bound of RA3 (arXiv 2509.25810).

    log pi(a_{0:T} | s_0)  >=  E_{z ~ q} [ sum_t  log pi(a_t | s_t, z_t)  -  KL( q(z_t | s_t, z_{<t}) || p(z_t | s_t, z_{t-1}) ) ]     (bound)
    p(z_t | s_t, z_{t-1}) = alpha delta(z_t = <act>) + (1 - alpha) U(z_t)                                                            (prior)
    KL = KL( Bern(q_act) || Bern(alpha) ) + (1 - q_act) ( log|Z| - H( q(. | <think>) ) )                                       (Prop. 5.1)
    in practice  KL ~ c * 1[z_t != <act>]                                                                                    (penalty)
    log pi(a_{0:T} | s_0)  >=  E log 1/K sum_k w_k,   w_k = prod_t pi(a_t | s_t, z_t) p(z_t) / q(z_t)                   (K-sample bound)

Departures from the paper
1. pi(a_t | s_t, z_t) is the probability of the expert's line *given that the decision has been made*: the model's mass on tokens that
   begin a comment is taken out of the first token of a line, `log p(a) - log(1 - p('#'))`. Without this, a model that likes to think
   would be paid for thinking by the prior it gives to `#`, and not by what the thought does for the line.
2. The K-sample bound (arXiv 1509.00519) is ours; it says how loose the bound is.

Shapes: N tokens, D width, V vocabulary, L lines, G rollouts, K samples.
"""
import math

import torch
from torch.utils.checkpoint import checkpoint


# ---------------------------------------------------------------- log-probabilities of tokens

def _chunk_logprobs(hidden, weight, targets, sets, entropy):
    logits = (hidden @ weight.T).float()                                              # (n, V)
    lse = logits.logsumexp(-1)                                                        # (n,)
    out = [logits.gather(1, targets[:, None])[:, 0] - lse]                            # log p(target)
    out += [logits[:, ids].logsumexp(-1) - lse for ids in sets]                       # log p(any token of the set)
    if entropy:
        scaled = logits.detach() - lse.detach()[:, None]                              # (n, V): log p
        out.append(-(scaled.exp() * scaled).sum(-1))
    return torch.stack(out)                                                           # (1 + sets + entropy, n)


def token_logprobs(hidden, weight, targets, sets=(), chunk=1024, entropy=False):
    """Log-probabilities of target tokens, the only place where they are computed (a sampler reads its own off the distribution it draws from).

    hidden (N, D) the states that predict; weight (V, D); targets (N,) -> (1 + len(sets) + entropy, N) float32: row 0 is log p(target), row i
    the log of the total mass of the token ids sets[i-1], the last one with `entropy` that of each distribution, in nats and without gradient.
    Differentiable. Works through `chunk` states at a time and recomputes their logits on the way back, so that memory does not grow with N times
    V. Autocast, where it is on, applies to the product.
    """
    if torch.is_grad_enabled() and hidden.requires_grad and hidden.shape[0] > chunk:
        parts = [checkpoint(_chunk_logprobs, h, weight, t, sets, entropy, use_reentrant=False)
                 for h, t in zip(hidden.split(chunk), targets.split(chunk))]
    else:
        parts = [_chunk_logprobs(h, weight, t, sets, entropy) for h, t in zip(hidden.split(chunk), targets.split(chunk))]
    return torch.cat(parts, 1) if parts else hidden.new_zeros(1 + len(sets) + entropy, 0, dtype=torch.float32)


def _chunk_kl(hidden, weight, other, other_weight):
    logq = (hidden @ weight.T).float().log_softmax(-1)                                # (n, V)
    logp = (other @ other_weight.T).float().log_softmax(-1)                           # (n, V)
    return (logq.exp() * (logq - logp)).sum(-1)                                       # (n,)


def token_kl(hidden, weight, other, other_weight, chunk=1024):
    """KL(q || p) of the next-token distributions at N states, in nats: (N,). hidden, other (N, D), weights (V, D) of q and of p. The
    gradient goes to q; logits are recomputed on the way back, like those of token_logprobs."""
    parts = [checkpoint(_chunk_kl, h, weight, o, other_weight, use_reentrant=False)
             for h, o in zip(hidden.split(chunk), other.split(chunk))]
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)


def log1mexp(x):
    """log(1 - exp(x)) for x < 0, to full precision. Example: log1mexp(log .25) -> log .75"""
    x = x.clamp(max=-1e-7)
    return torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


# ---------------------------------------------------------------- prior, KL, bound

def log_prior(think, alpha, log_z):
    """log p(z_t): log alpha for <act>, log(1 - alpha) - log|Z| for any thought. think (...) bool -> (...) float."""
    act = torch.full(think.shape, math.log(alpha) if alpha > 0 else -math.inf, dtype=torch.float64, device=think.device)
    thought = (math.log1p(-alpha) if alpha < 1 else -math.inf) - log_z
    return torch.where(think, torch.full_like(act, thought), act)


def kl_exact(q_act, entropy, alpha, log_z):
    """Prop. 5.1. q_act (...) the probability of <act>; entropy (...) in nats of q over thoughts given <think>; log_z = log|Z|."""
    xlogy = torch.special.xlogy
    bern = xlogy(q_act, q_act) - xlogy(q_act, alpha) + xlogy(1 - q_act, 1 - q_act) - xlogy(1 - q_act, 1 - alpha)
    return bern + (1 - q_act) * (log_z - entropy)


def line_rewards(line_logp, think, c):
    """r_t = log pi(a_t | s_t, z_t) - c 1[z_t != <act>]. line_logp, think (..., L) -> (..., L). The bound is their sum."""
    return torch.where(think, line_logp - c, line_logp)


def iw_bound(log_w, dim=0):
    """log 1/K sum_k w_k over `dim`: K = 1 is the bound, K -> infinity is log p(x). log_w (K, ...) -> (...)."""
    return log_w.logsumexp(dim) - math.log(log_w.shape[dim])
