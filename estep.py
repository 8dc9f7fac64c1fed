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
from data import one_tree, tree_parts
from elbo import iw_bound, line_rewards, log1mexp, token_kl, token_logprobs
from rollouts import ACT, END, TOKEN, begin_of


# ---------------------------------------------------------------- advantages and the update


def advantages(
    line_logp,
    gain,
    think,
    valid,
    G,
    c,
    credit="prefix",
    discount=1.0,
    normalise=True,
    floor=math.inf,
):
    """A_t of every decision and of every thought's content: (2, N, L) float64. line_logp, gain (N, L) nats; think, valid (N, L) bool; the
    rows of a group are adjacent. floor: with credit by prefix, a thought's loss counts as so many nats at most (departure 8).

    Return Q_t: see the module's docstring for the two credits. A decision is compared with the mean Q_t of the *other* rollouts of its
    snippet. The tokens after the `#` are chosen when the decision is made already, so they are compared with other
    thoughts only: the other rollouts of the snippet that think before this line, or, if there is none, the thoughts of all
    other rollouts of the batch. No baseline holds anything of the rollout itself, so none biases the gradient.
    """
    r = (
        line_rewards(torch.as_tensor(line_logp), torch.as_tensor(think), c).numpy()
        if credit == "group"
        else np.maximum(gain, -floor) - c * think
    )
    Q, run = np.zeros_like(r), np.zeros(len(r))
    for t in reversed(range(r.shape[1])):  # Q_t = sum_{s>=t} discount^{s-t} r_s
        run = r[:, t] + discount * run
        Q[:, t] = run
    grouped, thinks = Q.reshape(-1, G, Q.shape[1]), think.reshape(-1, G, Q.shape[1])  # (B, G, L)
    decision = grouped - (grouped.sum(1, keepdims=True) - grouped) / max(1, G - 1)
    total = (Q * think).sum()  # over all thoughts of the batch
    elsewhere = (total - (Q * think).sum(1)) / np.maximum(
        1, think.sum() - think.sum(1)
    )  # (N,): mean Q of other rollouts' thoughts
    n = thinks.sum(1, keepdims=True) - thinks  # other thinking rollouts at this line
    others = ((grouped * thinks).sum(1, keepdims=True) - grouped * thinks) / np.maximum(1, n)
    content = grouped - np.where(n > 0, others, elsewhere.reshape(-1, G, 1))
    A = np.stack(
        [
            np.where(valid, decision.reshape(Q.shape), 0.0),
            np.where(think, content.reshape(Q.shape), 0.0),
        ]
    )
    return A / (A[0][valid].std() + 1e-6) if normalise else A


def hidden_before(model, rows, at, amp=False):
    """Read rows, what they begin with alike only once -> (states (T, D), node (M,)): states[node[m]] predicts token j of row n, at[m] = (n, j, ...).
    rows: lists of ids; at (M, 2 or more) ints."""
    ids, pos, doc, before, where = one_tree(rows)  # (1, T)
    start = np.cumsum([0] + [len(w) for w in where])
    node = torch.cat(where)[start[at[:, 0]] + at[:, 1] - 1].to(model.device)  # (M,)
    ids, pos, doc = (x.to(model.device) for x in (ids, pos, doc))
    with torch.autocast(model.device.type, torch.bfloat16, enabled=amp):
        return model(ids, pos, doc, before=before)[0], node


def event_logprobs(q, tok, hidden, events, amp=False):
    """log q of each event from the states that predict it, with gradient: (M,). <act> is log(1 - P(a comment begins)), the end of a
    thought the log of the mass of all stop tokens. hidden (M, D); events (M, 5)."""
    _, _, kind, _, token = torch.as_tensor(events, device=q.device).T
    with torch.autocast(q.device.type, torch.bfloat16, enabled=amp):
        logp, begin, end = token_logprobs(
            hidden, q.head_weight, token, (tok.thought_ids, tok.stop_ids)
        )
    return torch.where(kind == ACT, log1mexp(begin), torch.where(kind == END, end, logp))


def policy_gradient(q, pi, tok, rolls, A, kl=0.0, amp=False, micro_tokens=6000):
    """Accumulate in q's parameters the gradient of

        -1/N sum_n sum_t A_t log q(z_t | s_t, z_<t)  +  kl/N sum over the thoughts' tokens of KL( q(. | ...) || pi(. | ...) )

    A (2, N, L) as from `advantages`. Returns (loss, mean KL a token, tokens read, largest |log q now - log q recorded|). Rows are read up to their last
    event, and what they begin with alike once: up to micro_tokens tokens at a time. Where rows agree on an event and on all before it, their weights are
    added. pi is not read: its states at the thoughts are those of the rollouts. With several ranks each takes its share of the rows, and all give them
    all. Raises ValueError if kl > 0 and the rollouts were made without `states`.
    """
    loss, total_kl, contents, read, gap = 0.0, 0.0, 0, 0, 0.0
    if kl and any(row.thoughts.keys() != row.states.keys() for row in rolls.rows):
        raise ValueError(
            "kl needs rollouts made with states=True, and with another model than q as pi"
        )
    ends = np.zeros(len(rolls.rows), dtype=np.int64)  # tokens before the last event
    np.maximum.at(ends, rolls.events[:, 0], rolls.events[:, 1])
    mine = [n for n in parallel.block(range(len(rolls.rows))) if ends[n]]
    rows = [rolls.rows[n].ids[: ends[n]] for n in mine]
    for part in parallel.turns(q, tree_parts(rows, micro_tokens)):
        chosen = np.array([mine[i] for i in part])
        index = np.isin(rolls.events[:, 0], chosen)
        events = rolls.events[index].copy()  # (m, 5)
        content = events[:, 2] >= TOKEN
        weight = A[content.astype(int), events[:, 0], events[:, 3]]  # (m,)
        order = np.argsort(chosen)
        events[:, 0] = order[
            np.searchsorted(chosen[order], events[:, 0])
        ]  # rows by their place in `part`
        hidden, node = hidden_before(q, [rows[i] for i in part], events, amp)  # (T, D), (m,)
        read += len(hidden)
        key = np.stack([node.cpu().numpy(), events[:, 2], events[:, 4]], 1)
        _, first, same = np.unique(
            key, axis=0, return_index=True, return_inverse=True
        )  # (u,), (m,): events that are one and the same
        same = torch.as_tensor(same.reshape(-1), device=q.device)
        states = hidden[node[torch.as_tensor(first, device=q.device)]]  # (u, D)
        logp = event_logprobs(q, tok, states, events[first], amp)  # (u,)
        weight = torch.as_tensor(
            np.bincount(same.cpu(), weight), dtype=logp.dtype, device=q.device
        )  # (u,)
        part_loss = -(weight * logp).sum() / len(rolls.rows)  # gradient
        if kl and content.any():
            some = events[first][:, 2] >= TOKEN  # (u,)
            times = same.bincount()[
                torch.as_tensor(some, device=q.device)
            ]  # how many rows each is of
            at = [(rolls.rows[chosen[n]], t, j) for n, j, _, t, _ in events[first][some].tolist()]
            other = torch.stack(
                [row.states[t][j - 1 - begin_of(tok, row, t)] for row, t, j in at]
            ).to(q.device)  # (contents, D)
            with torch.autocast(q.device.type, torch.bfloat16, enabled=amp):
                away = token_kl(
                    states[torch.as_tensor(some, device=q.device)],
                    q.head_weight,
                    other,
                    pi.head_weight,
                )
            part_loss = part_loss + kl * (times * away).sum() / len(rolls.rows)
            total_kl += float((times * away.detach()).sum())
            contents += int(content.sum())
        parallel.backward(part_loss)
        loss += float(part_loss.detach())
        gap = max(
            gap,
            float(
                (logp.detach()[same].cpu().double() - torch.as_tensor(rolls.logq[index]))
                .abs()
                .max()
            ),
        )
    *sums, gaps = zip(*parallel.everyone((loss, total_kl, contents, read, gap)))
    loss, total_kl, contents, read = map(sum, sums)
    return loss, total_kl / max(1, contents), read, max(gaps)


# ---------------------------------------------------------------- what the bound says


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
