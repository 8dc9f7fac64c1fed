"""The E-step of RA3 (arXiv 2509.25810): learn *when* to think, and *what*, over expert lines that are forced.

    q(z_t | s_t, z_<t):  the decision before line t is one token: `#` (<think>, then the comment's tokens, up to a newline) or not (<act>)
    r_t  = log pi(a_t | s_t, z_t) - c 1[z_t != <act>]                       the expert's line is forced, pi is frozen       (reward)
    J(q) = E_{z ~ q} sum_t r_t                                                                                           (objective)
    dJ   = E sum_t A_t d log q(z_t | s_t, z_<t),     z_t: the decision token and the thought's tokens                     (gradient)

Two ways to credit a decision; both leave the expectation of the gradient as it is (at discount 1; tested by enumeration):

    group    A_t = R_t - mean of R_t over the other rollouts of the snippet,    R_t = sum_{s>=t} discount^{s-t} r_s      (the paper's)
    prefix   delta_t = V(s_t, z_<=t) - V(s_t, z_<t) - c 1[z_t != <act>],        A_t = sum_{s>=t} discount^{s-t} delta_s
             V(prefix) = sum_{s>=t} log pi(a_s | prefix, no thought from here on)
             and again less the mean of the others. delta_t is what the thought at t did for *all* lines from t on, measured before
             anything later is thought; it is 0 for <act>. The differences telescope: at discount 1, A_t = R_t - V(prefix before t), so V
             is a baseline that knows which thoughts stand in the context already, where a mean over the group does not.

Latents are drawn from q exactly as line by line, in few forwards, and rewarded by pi, V included: rollouts.py.

Departures from the paper
1. The comment stands at the indentation of its line, and before a line at most one. 2. log pi of a line is conditional on the decision
(elbo.py, departure 1). 3. The group's mean leaves the rollout itself out, which keeps the gradient unbiased; a thought's tokens are compared
with other thoughts only; advantages are divided by their deviation over the *batch* (a scale; never by the group's, which blows up groups that
hardly differ). 4. The credit by prefix is ours. 5. `kl` adds KL(q || pi) on the tokens of thoughts, not on decisions: the decision is
learned within ten steps, and without this the noise of its gradient unlearns meanwhile what thoughts should say (README, "What was tried").
It is the KL of the bound for a prior whose thoughts come from pi instead of U. 6. `estep=best-of-n` optimises the same bound without a gradient: of G
rollouts of the frozen model keep the one with the best sum r_t. 7. `horizon=1`: one latent a snippet, before its first line: BRiTE.
8. `gain_floor` bounds what one bad thought can cost. A wrong worked note costs five nats, a right one brings two: without the floor, thinking dies
before lines where two notes in three are right. The M-step does not get such a note anyway, because one of several is chosen by reward.

Shapes: B snippets, G rollouts each, N = B*G rows, L lines, T tokens, D width, M events (a decision, a thought's token, its end).
"""
import math

import numpy as np
import torch

import parallel
from elbo import iw_bound, line_rewards, log1mexp, token_kl, token_logprobs
from rollouts import ACT, END, TOKEN


# ---------------------------------------------------------------- advantages and the update

def advantages(line_logp, gain, think, valid, G, c, credit="prefix", discount=1.0, normalise=True, floor=math.inf):
    """A_t of every decision and of every thought's content: (2, N, L) float64. line_logp, gain (N, L) nats; think, valid (N, L) bool; the
    rows of a group are adjacent. floor: with credit by prefix, a thought's loss counts as so many nats at most (departure 8).

    Return Q_t: see the module's docstring for the two credits. A decision is compared with the mean Q_t of the *other* rollouts of its
    snippet. The tokens after the `#` are chosen when the decision is made already, so they are compared with other
    thoughts only: the other rollouts of the snippet that think before this line, or, if there is none, the thoughts of all
    other rollouts of the batch. No baseline holds anything of the rollout itself, so none biases the gradient.
    """
    r = line_rewards(torch.as_tensor(line_logp), torch.as_tensor(think), c).numpy() if credit == "group" else np.maximum(gain, -floor) - c * think
    Q, run = np.zeros_like(r), np.zeros(len(r))
    for t in reversed(range(r.shape[1])):                                  # Q_t = sum_{s>=t} discount^{s-t} r_s
        run = r[:, t] + discount * run
        Q[:, t] = run
    grouped, thinks = Q.reshape(-1, G, Q.shape[1]), think.reshape(-1, G, Q.shape[1])        # (B, G, L)
    decision = grouped - (grouped.sum(1, keepdims=True) - grouped) / max(1, G - 1)
    total = (Q * think).sum()                                              # over all thoughts of the batch
    elsewhere = (total - (Q * think).sum(1)) / np.maximum(1, think.sum() - think.sum(1))    # (N,): mean Q of other rollouts' thoughts
    n = (thinks.sum(1, keepdims=True) - thinks)                            # other thinking rollouts at this line
    others = ((grouped * thinks).sum(1, keepdims=True) - grouped * thinks) / np.maximum(1, n)
    content = grouped - np.where(n > 0, others, elsewhere.reshape(-1, G, 1))
    A = np.stack([np.where(valid, decision.reshape(Q.shape), 0.0), np.where(think, content.reshape(Q.shape), 0.0)])
    return A / (A[0][valid].std() + 1e-6) if normalise else A


def hidden_before(model, rows, events, amp=False):
    """The states that predict each event: (M, D). rows: N lists of ids; events (M, 5) as in Rollouts."""
    T = max(len(ids) for ids in rows)
    ids = torch.zeros(len(rows), T, dtype=torch.int64)                                      # (N, T)
    for n, row in enumerate(rows):
        ids[n, :len(row)] = torch.tensor(row)
    n, j = torch.as_tensor(events[:, 0], device=model.device), torch.as_tensor(events[:, 1], device=model.device)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=amp):
        return model(ids.to(model.device))[n, j - 1]


def event_logprobs(q, tok, hidden, events, amp=False):
    """log q of each event from the states that predict it, with gradient: (M,). <act> is log(1 - P(a comment begins)), the end of a
    thought the log of the mass of all tokens that end it. hidden (M, D); events (M, 5)."""
    _, _, kind, _, token = torch.as_tensor(events, device=q.device).T
    with torch.autocast(q.device.type, torch.bfloat16, enabled=amp):
        logp, begin, end = token_logprobs(hidden, q.head_weight, token, (tok.thought_ids, tok.stop_ids))
    return torch.where(kind == ACT, log1mexp(begin), torch.where(kind == END, end, logp))


def policy_gradient(q, pi, tok, rolls, A, kl=0.0, amp=False, tokens_at_once=6000):
    """Accumulate in q's parameters the gradient of

        -1/N sum_n sum_t A_t log q(z_t | s_t, z_<t)  +  kl/N sum over the thoughts' tokens of KL( q(. | ...) || pi(. | ...) )

    A (2, N, L) as from `advantages`. Returns (loss, mean KL a token, trained tokens, largest |log q now - log q recorded|). Rows are read
    up to their last event, and equal ones once. With several ranks each takes its share of the rows, and all give them all.
    """
    loss, total_kl, tokens, gap, contents = 0.0, 0.0, 0, 0.0, 0
    ends = np.zeros(len(rolls.rows), dtype=np.int64)
    np.maximum.at(ends, rolls.events[:, 0], rolls.events[:, 1])                             # (N,) nothing is learned from what follows the last event
    alike = {}                                                                              # rows that are the same are read once: those that never think
    for n in np.flatnonzero(ends).tolist():
        alike.setdefault(tuple(rolls.rows[n].ids[:ends[n]]), []).append(n)
    order = parallel.mine(sorted(alike, key=len))                                           # rows of one length together
    rows_at_once = max(1, tokens_at_once // max(map(len, order), default=1))
    for ids in parallel.turns(q, [order[start:start + rows_at_once] for start in range(0, len(order), rows_at_once)]):
        where = {n: i for i, row in enumerate(ids) for n in alike[row]}
        mine = np.isin(rolls.events[:, 0], list(where))
        events = rolls.events[mine].copy()
        content = events[:, 2] >= TOKEN
        weight = torch.as_tensor(A[content.astype(int), events[:, 0], events[:, 3]], dtype=torch.float32, device=q.device)
        events[:, 0] = [where[n] for n in events[:, 0]]
        hidden = hidden_before(q, ids, events, amp)                                         # (m, D)
        logp = event_logprobs(q, tok, hidden, events, amp)                                  # (m,)
        part = -(weight * logp).sum() / len(rolls.rows)                                     # gradient
        if kl and content.any():
            with torch.no_grad():
                some, at = np.unique(events[content, 0], return_inverse=True)               # the rows that think
                other = hidden_before(pi, [ids[i] for i in some], np.column_stack([at, events[content, 1:]]), amp)
            with torch.autocast(q.device.type, torch.bfloat16, enabled=amp):
                away = token_kl(hidden[torch.as_tensor(content)], q.head_weight, other, pi.head_weight)
            part = part + kl * away.sum() / len(rolls.rows)
            total_kl += float(away.detach().sum())
            contents += int(content.sum())
        parallel.backward(part)
        loss += float(part.detach())
        tokens += sum(len(row) for row in ids)
        gap = max(gap, float((logp.detach().cpu().double() - torch.as_tensor(rolls.logq[mine])).abs().max()))
    *sums, gaps = zip(*parallel.everyone((loss, total_kl, contents, tokens, gap)))
    loss, total_kl, contents, tokens = map(sum, sums)
    return loss, total_kl / max(1, contents), tokens, max(gaps)


# ---------------------------------------------------------------- what the bound says

def summary(rolls, c, hard=None):
    """What the rollouts say of the bound and of the thoughts, as a dict of floats (every name is defined in the README).
    hard: for each of the B snippets the indices of its hard lines, where they are known. What gains are is left out where they were not measured."""
    think, valid = rolls.think, rolls.valid
    code = sum(len(r.snip.ids) - r.snip.first[0] for r in rolls.rows)                       # code tokens, over all rows
    logp = np.array([r.line_logp.sum() for r in rolls.rows])                                # (N,)
    reward = logp - c * think.sum(1)                                                        # (N,) sum_t r_t
    gains = np.array([r.gain[t] for r in rolls.rows for t in sorted(r.thoughts)])
    lengths = [len(ids) for r in rolls.rows for ids in r.thoughts.values()]
    several = iw_bound(torch.from_numpy(reward.reshape(-1, rolls.G)), dim=1)                # (B,)
    out = {"elbo": float(reward.mean()), "elbo_no_think": float(np.mean([b.sum() for b in rolls.base_logp])),
           f"elbo_{rolls.G}_samples": float(several.mean()), "ce_code": float(-logp.sum() / code),
           "think_share": float(think.sum() / valid.sum()), "think_len": float(np.mean(lengths)) if lengths else 0.0,
           "duration": float(np.mean([d for r in rolls.rows for d in durations(sorted(r.thoughts), len(r.first))] or [0.0]))}
    if not np.isnan(gains).any():
        out |= {"gain": float(gains.mean()) if len(gains) else 0.0, "gain_above_c": float((gains > c).mean()) if len(gains) else 0.0}
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
