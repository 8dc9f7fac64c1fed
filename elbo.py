"""The prior over latents, the KL, the reward of a line, and the temporal variational bound of RA3.

RA3 is arXiv 2509.25810. z_t is <act> or a thought; s_t includes the earlier latents.

    log pi(a_{0:T} | s_0) >= E_{z ~ q} sum_t [ log pi(a_t | s_t, z_t) - KL_t ]               (bound)
    KL_t = KL( q(z_t | s_t, z_{<t}) || p(z_t | s_t, z_{t-1}) )
    p(z_t | s_t, z_{t-1}) = alpha 1[z_t = <act>] + (1 - alpha) U(z_t)                        (prior)
    KL_t = KL( Bern(q_act) || Bern(alpha) )
           + (1 - q_act) ( log|Z| - H( q(. | <think>) ) )                                (Prop. 5.1)
    r_t = log pi(a_t | s_t, z_t) - kl_t                                                     (reward)
    kl_t = c 1[z_t != <act>]                                       `--kl-prior penalty`    (penalty)
    kl_t = log q(z_t | s_t, z_{<t}) - log p(z_t | s_t, z_{t-1})    `--kl-prior exact`   (one sample)
    log pi(a_{0:T} | s_0) >= E log 1/K sum_k w_k                                    (K-sample bound)
    w_k = prod_t pi(a_t | s_t, z_t) p(z_t) / q(z_t) = exp sum_t r_t

The prior precisely: U is uniform over Z, the thoughts that can be sampled. A thought is a sequence
of at most think_max tokens. Its first token begins a comment; it ends before a stop token, with a
closing token, or at think_max. |Z| is their number (`log_thoughts`). <act> is not one of them.

log|Z| - H in practice: H( q(. | <think>) ) is the entropy of a token sequence, a sum over all of Z.
The chain rule makes it a mean over sampled thoughts,

    H( q(. | <think>) ) = E_z sum_k H( q(. | <think>, z_{<k}) ) = E_z [ -log q(z | <think>) ],

so that one drawn latent gives kl_t, whose mean over q is Prop. 5.1's KL_t (tests/test_elbo.py sums
over all latents). E_q d log q = 0, so the gradient of the bound needs r_t alone, without a gradient
through kl_t. log|Z| is about think_max log V, 170 to 190 nats with a real vocabulary: under this
prior a thought must win as much back. The penalty c is what replaces it in practice.

Departures from the paper
1. pi(a_t | s_t, z_t) is the probability of the line *given that the decision has been made*.
   The tokens that begin a comment are left out of the softmax at the first token of a line.
   Otherwise a model that likes to think would be paid for thinking by its own prior for `#`.
2. The K-sample bound (arXiv 1509.00519) is ours; it says how loose the bound is. With the penalty,
   exp sum_t r_t is w_k of the prior q(z_t) exp(-c 1[z_t != <act>]), which is not normalised.
3. With a horizon, lines behind it have no latent, and pay nothing.

Shapes: M states, D width, B snippets, L lines, G rollouts, N = B*G rows, K samples, H first tokens.
"""

import dataclasses
import math
import typing

import numpy as np
import torch

from logprobs import none_logprobs, token_logprobs

# ---------------------------------------------------------------- prior and KL


@dataclasses.dataclass(frozen=True)
class Prior:
    """The prior over latents, and the form in which its KL is paid."""

    c: float  # penalty of a thought, nats
    exact: bool = False  # pay the KL of Prop. 5.1, by one sample, and not c
    alpha: float = 0.9  # p(<act>)
    log_z: float = 0.0  # log|Z|, the number of thoughts


def prior_of(cfg, tok, vocab_size):
    """The Prior of the settings, for a model that can write `vocab_size` ids."""
    if never_thinks(cfg):
        return Prior(0.0)  # nothing is ever paid; inf times no thoughts is not a number
    words = vocab_size - len(tok.stop_ids) - len(tok.closing_ids)
    log_z = log_thoughts(len(tok.thought_ids), words, len(tok.closing_ids), cfg.think_max)
    return Prior(cfg.c, cfg.kl_prior == "exact", cfg.alpha, log_z)


def never_thinks(cfg):
    """Does the prior forbid thoughts? Then the M-step is next-token training, bit for bit."""
    return cfg.alpha == 1 if cfg.kl_prior == "exact" else cfg.c == math.inf


def log_thoughts(first, words, closing, think_max):
    """log|Z|: the number of thoughts of at most think_max tokens.

    first: tokens that begin one; words: tokens that go on; closing: tokens that are its last.
    Example: 2 first, 4 words, 0 closing, at most 2 tokens -> log(2 + 2 * 4)
    """
    open_ended = [math.log(first) + k * math.log(words) for k in range(think_max)]
    closed = [x + math.log(closing) for x in open_ended[:-1]] if closing else []
    return float(np.logaddexp.reduce(open_ended + closed))


def log_prior(think, alpha, log_z):
    """log p(z_t): log alpha for <act>, log(1 - alpha) - log|Z| for a thought (prior).

    think (...) bool -> (...) float64.
    """
    log_act = math.log(alpha) if alpha > 0 else -math.inf
    log_think = (math.log1p(-alpha) if alpha < 1 else -math.inf) - log_z
    return np.where(think, log_think, log_act)


def kl_exact(q_act, entropy, alpha, log_z):
    """KL_t in closed form (Prop. 5.1): the mean over q of what `kl_sample` gives under `exact`.

    Runs take the sample: over thoughts, which are texts, the entropy has no closed form.

    q_act    (...) the probability of <act>
    entropy  (...) in nats of q over thoughts given <think>
    """
    xlogy = torch.special.xlogy
    act = xlogy(q_act, q_act) - xlogy(q_act, alpha)
    think = xlogy(1 - q_act, 1 - q_act) - xlogy(1 - q_act, 1 - alpha)
    return act + think + (1 - q_act) * (log_z - entropy)


def kl_sample(think, logq, prior):
    """kl_t, what each drawn latent pays: (...), nats (penalty, or one sample of Prop. 5.1).

    think (...) bool; logq (...) log q(z_t | s_t, z_{<t}), not read with the penalty.
    """
    if prior.exact:
        return logq - log_prior(think, prior.alpha, prior.log_z)
    return prior.c * think


# ---------------------------------------------------------------- reward and bound


def reward(line_logp, think, prior, logq=None):
    """r_t = log pi(a_t | s_t, z_t) - kl_t of each line (reward).

    line_logp, think, logq (..., L) -> (..., L). The bound is the mean of their sum over lines.
    """
    return line_logp - kl_sample(think, logq, prior)


def bound(rewards):
    """The mean over rollouts of sum_t r_t (bound). rewards (N, L) -> float."""
    return float(rewards.sum(-1).mean())


def iw_bound(log_w, dim=0):
    """log 1/K sum_k w_k over `dim` (K-sample bound). log_w (K, ...) -> (...).

    K = 1 is the bound, K -> infinity is log p(x).
    """
    return log_w.logsumexp(dim) - math.log(log_w.shape[dim])


def summary(rolls, prior, hard=None):
    """What rollouts say of the bound and of the thoughts -> {metric: float}.

    hard: for each of the B snippets the indices of its hard lines, where they are known.
    Every name is defined in the list of metrics. Gains are left out where they were not measured.
    """
    think = rolls.think  # (N, Lmax)
    rewards = rolls.rewards(prior)  # (N, Lmax)
    logp = np.array([row.line_logp.sum() for row in rolls.rows])  # (N,)
    several = iw_bound(torch.from_numpy(rewards.sum(1).reshape(-1, rolls.G)), dim=1)  # (B,)
    lengths = [len(ids) for row in rolls.rows for ids in row.thoughts.values()]
    lasting = [d for row in rolls.rows for d in durations(sorted(row.thoughts), len(row.first))]
    code = sum(len(row.snip.ids) - row.snip.first[0] for row in rolls.rows)  # tokens, all rows
    metrics = {
        "elbo": bound(rewards),
        "elbo_no_think": float(np.mean([lines.sum() for lines in rolls.base_logp])),
        f"elbo_{rolls.G}_samples": float(several.mean()),
        "ce_code": float(-logp.sum() / code),
        "think_share": float(think.sum() / rolls.valid.sum()),
        "think_len": float(np.mean(lengths)) if lengths else 0.0,
        "duration": float(np.mean(lasting)) if lasting else 0.0,
    }
    return metrics | gain_metrics(rolls, prior) | hard_metrics(rolls, hard)


def gain_metrics(rolls, prior):
    """The mean gain of a thought, and the share of thoughts that gain more than they pay."""
    think = rolls.think
    gain = rolls.lines(lambda row: row.gain)[think]  # (thoughts,)
    if np.isnan(gain).any():  # not measured
        return {}
    if not len(gain):
        return {"gain": 0.0, "gain_above_c": 0.0}
    paid = np.broadcast_to(kl_sample(think, rolls.line_logq, prior), think.shape)[think]
    return {"gain": float(gain.mean()), "gain_above_c": float((gain > paid).mean())}


def hard_metrics(rolls, hard):
    """The shares of hard and of easy lines with a thought. hard: as in `summary`."""
    if not hard:
        return {}
    is_hard = np.zeros_like(rolls.valid)
    for n in range(len(rolls.rows)):
        is_hard[n, list(hard[n // rolls.G])] = True
    think_hard = rolls.think[is_hard].mean()
    think_easy = rolls.think[rolls.valid & ~is_hard].mean()
    return {"think_hard": float(think_hard), "think_easy": float(think_easy)}


def durations(lines, n_lines):
    """How many lines each intent lasts: to the next thought, or to the end.

    Example: durations([1, 4], 6) -> [3, 2]
    """
    ends = lines[1:] + [n_lines]
    return [end - begin for begin, end in zip(lines, ends, strict=False)]


# ---------------------------------------------------------------- likelihood of code


def code_logprobs(hidden, weight, targets, opens, thought_ids):
    """log pi of code tokens, given the decisions: (M,).

    opens (M,) bool: the token is the first of a line. There the tokens that begin a comment are
    left out of the softmax, because the decision was <act>, or the thought is over (departure 1).
    """
    first, further = (where.nonzero()[:, 0] for where in (opens, ~opens))
    return code_logprobs_apart(hidden, weight, targets, first, further, thought_ids)


def code_logprobs_apart(hidden, weight, targets, first, further, thought_ids):
    """`code_logprobs`, where the first tokens of lines and the further tokens are numbers."""
    logp = token_logprobs(hidden[further], weight, targets[further])[0]
    given_act = token_logprobs(hidden[first], weight, targets[first], without=thought_ids)[0]
    return logp.new_empty(len(targets)).index_copy(0, further, logp).index_copy(0, first, given_act)


def decision_logprobs(hidden, weight, thought_ids):
    """log q of the decision before a line, in two parts -> (M, 1 + H).

    Column 0: log q(<act>), that no comment begins. The others: log q of each token that begins one.
    """
    none = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
    opening = token_logprobs(hidden, weight, none, [[i] for i in thought_ids])[1:]  # (H, M)
    act = none_logprobs(hidden, weight, thought_ids)  # (M,)
    return torch.cat((act[None], opening)).T  # (M, 1 + H)


class CodeTokens(typing.NamedTuple):
    """The tokens of pieces of code, as NumPy arrays."""

    targets: np.ndarray  # (M,) their ids
    states: np.ndarray  # (M,) the numbers of the states that predict them
    first: np.ndarray  # the numbers, among 0..M-1, of first tokens of lines
    further: np.ndarray  # and of the others
    cells: np.ndarray  # (M,) piece * Lmax + line
    shape: tuple  # (pieces, Lmax)

    def sum_lines(self, logp):
        """(pieces, Lmax) sums of logp (M,) float64 by line."""
        return np.bincount(self.cells, logp, math.prod(self.shape)).reshape(self.shape)


def code_tokens(pieces):
    """The CodeTokens of pieces, as `line_logprobs` takes them."""
    targets, states, opens, cells = [], [], [], []
    longest = max(len(first) for _, first, *_ in pieces)
    for n, (ids, first, lo, hi, offset) in enumerate(pieces):
        position = np.arange(lo + 1, hi + 1)  # of the predicted tokens
        line = np.searchsorted(first, position, side="right") - 1
        targets.append(ids[lo + 1 : hi + 1])
        states.append(offset + np.arange(hi - lo))
        opens.append(np.asarray(first)[line] == position)
        cells.append(n * longest + line)
    targets, states, opens, cells = map(np.concatenate, (targets, states, opens, cells))
    parts = np.flatnonzero(opens), np.flatnonzero(~opens)
    return CodeTokens(targets, states, *parts, cells, (len(pieces), longest))


def line_logprobs(net, hidden, pieces, tok):
    """log pi(a_t | s_t, z_t), summed by line -> (pieces, Lmax) float64, zeros where a piece has no
    part in a line.

    hidden  (M, D)
    pieces  [(ids, first, lo, hi, offset)]: hidden[offset:offset + hi - lo] are the states of the
            tokens lo to hi - 1 of a row `ids`, whose lines begin at `first`. They predict code.
    """
    tokens = code_tokens(pieces)
    targets, states, first, further = (torch.from_numpy(x).to(hidden.device) for x in tokens[:4])
    hidden = hidden[states].float()
    logp = code_logprobs_apart(hidden, net.head, targets, first, further, tok.thought_ids)
    return tokens.sum_lines(logp.double().cpu().numpy())
