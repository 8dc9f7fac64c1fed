"""The prior over latents, the KL, and the temporal variational bound of RA3 (arXiv 2509.25810).

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

Shapes: M states, D width, L lines, G rollouts, K samples.
"""

import math

import numpy as np
import torch

from logprobs import log1mexp, token_logprobs

# ---------------------------------------------------------------- prior, KL, bound


def log_prior(think, alpha, log_z):
    """log p(z_t): log alpha for <act>, log(1 - alpha) - log|Z| for any thought. think (...) bool -> (...) float."""
    act = torch.full(
        think.shape,
        math.log(alpha) if alpha > 0 else -math.inf,
        dtype=torch.float64,
        device=think.device,
    )
    thought = (math.log1p(-alpha) if alpha < 1 else -math.inf) - log_z
    return torch.where(think, torch.full_like(act, thought), act)


def kl_exact(q_act, entropy, alpha, log_z):
    """Prop. 5.1. q_act (...) the probability of <act>; entropy (...) in nats of q over thoughts given <think>; log_z = log|Z|."""
    xlogy = torch.special.xlogy
    bern = (
        xlogy(q_act, q_act)
        - xlogy(q_act, alpha)
        + xlogy(1 - q_act, 1 - q_act)
        - xlogy(1 - q_act, 1 - alpha)
    )
    return bern + (1 - q_act) * (log_z - entropy)


def line_rewards(line_logp, think, c):
    """r_t = log pi(a_t | s_t, z_t) - c 1[z_t != <act>]. line_logp, think (..., L) -> (..., L). The bound is their sum."""
    return torch.where(think, line_logp - c, line_logp)


def iw_bound(log_w, dim=0):
    """log 1/K sum_k w_k over `dim`: K = 1 is the bound, K -> infinity is log p(x). log_w (K, ...) -> (...)."""
    return log_w.logsumexp(dim) - math.log(log_w.shape[dim])


def summary(rolls, c, hard=None):
    """What the rollouts say of the bound and of the thoughts, as a dict of floats (every name is defined in the README).
    hard: for each of the B snippets the indices of its hard lines, where they are known. What gains are is left out where they were not measured."""
    think, valid = rolls.think, rolls.valid
    code = sum(len(r.snip.ids) - r.snip.first[0] for r in rolls.rows)  # code tokens, over all rows
    logp = np.array([r.line_logp.sum() for r in rolls.rows])  # (N,)
    reward = rolls.reward(c)  # (N,)
    gains = np.array([r.gain[t] for r in rolls.rows for t in sorted(r.thoughts)])
    lengths = [len(ids) for r in rolls.rows for ids in r.thoughts.values()]
    several = iw_bound(torch.from_numpy(reward.reshape(-1, rolls.G)), dim=1)  # (B,)
    out = {
        "elbo": float(reward.mean()),
        "elbo_no_think": float(np.mean([b.sum() for b in rolls.base_logp])),
        f"elbo_{rolls.G}_samples": float(several.mean()),
        "ce_code": float(-logp.sum() / code),
        "think_share": float(think.sum() / valid.sum()),
        "think_len": float(np.mean(lengths)) if lengths else 0.0,
        "duration": float(
            np.mean(
                [d for r in rolls.rows for d in durations(sorted(r.thoughts), len(r.first))]
                or [0.0]
            )
        ),
    }
    if not np.isnan(gains).any():
        out |= {
            "gain": float(gains.mean()) if len(gains) else 0.0,
            "gain_above_c": float((gains > c).mean()) if len(gains) else 0.0,
        }
    if hard:
        is_hard = np.zeros_like(valid)
        for n in range(len(rolls.rows)):
            is_hard[n, list(hard[n // rolls.G])] = True
        out["think_hard"] = float(think[is_hard].mean())
        out["think_easy"] = float(think[valid & ~is_hard].mean())
    return out


def durations(lines, n_lines):
    """How many lines each intent lasts: to the next thought, or to the end. Example: durations([1, 4], 6) -> [3, 2]"""
    return [b - a for a, b in zip(lines, lines[1:] + [n_lines])]


def line_logprobs(net, hidden, pieces, tok):
    """log pi(a_t | s_t, z_t), summed by line. hidden (M, D). pieces: [(ids, first, lo, hi, at)]: the states of the tokens lo to hi - 1 of a row with
    these ids, whose lines begin at `first`, are hidden[at:at + hi - lo], and what they predict is code. -> (pieces, Lmax) float64, zeros where a piece
    has no part in a line. The first token of a line is conditional on not beginning a comment (elbo.py, departure 1)."""
    sizes = np.array([hi - lo for *_, lo, hi, _ in pieces])
    most = max(len(first) for _, first, *_ in pieces)
    pos = np.concatenate(
        [np.arange(lo + 1, hi + 1) for *_, lo, hi, _ in pieces]
    )  # (m,) where the predicted tokens stand
    line = np.concatenate(
        [
            np.searchsorted(first, np.arange(lo + 1, hi + 1), side="right") - 1
            for _, first, lo, hi, _ in pieces
        ]
    )
    opens = (
        np.concatenate([np.asarray(first) for _, first, *_ in pieces])[
            np.repeat(np.cumsum([0] + [len(first) for _, first, *_ in pieces[:-1]]), sizes) + line
        ]
        == pos
    )
    at = torch.from_numpy(
        np.concatenate([at + np.arange(hi - lo) for *_, lo, hi, at in pieces])
    ).to(hidden.device)
    targets = torch.from_numpy(
        np.concatenate([ids[lo + 1 : hi + 1] for ids, _, lo, hi, _ in pieces])
    ).to(hidden.device)
    logp, mass = token_logprobs(hidden[at].float(), net.head, targets, [tok.thought_ids]).cpu()
    logp = logp - torch.where(torch.from_numpy(opens), log1mexp(mass), 0.0)
    cell = np.repeat(np.arange(len(pieces)) * most, sizes) + line
    return np.bincount(cell, logp.double().numpy(), len(pieces) * most).reshape(-1, most)
