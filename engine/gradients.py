"""The gradients of the three losses, fast: the twins of the plain ones in estep, mstep and rlvr.

Rows share the tokens that they begin with, documents are packed without padding, and no logits are
held (logprobs.py). Under torchrun each rank works on its share, and every call needs all ranks.

Shapes: N rows, L lines, T tokens of a packed row, M events or tokens of completions, D width.
"""

import dataclasses

import numpy as np
import torch

from data import PROMPT, THOUGHT
from engine import parallel
from engine.machine import download, upload
from engine.packing import hidden_before, micro_batches, pack, shared_parts
from engine.rollouts import ACT, END, TOKEN, begin_of
from logprobs import none_logprobs, token_kl, token_logprobs
from model import Documents, to_device

# ---------------------------------------------------------------- the E-step (estep.row_loss)


@dataclasses.dataclass
class GradientStats:
    """What a policy gradient was computed from."""

    loss: float = 0.0
    kl: float = 0.0  # mean KL(q || pi) over the tokens of thoughts, nats
    tokens: int = 0  # that q read
    logq_gap: float = 0.0  # largest |log q now - log q recorded| of an event, nats


def policy_gradient(q, pi, tok, rolls, A, think_max=0, *, kl=0.0, amp=False, micro_tokens=6000):
    """Accumulate in q's parameters the gradient of

        -1/N sum_n sum_t A_t log q(z_t | s_t, z_<t) + kl/N sum over thoughts' tokens of KL(q || pi)

    and return its GradientStats. A (2, N, L) as from `estep.credit`; think_max is not needed here.

    Each row is run up to its last event; shared prefixes are run once, micro_tokens tokens at a
    time. Equal events after equal prefixes are scored once, with their weights summed. pi is not
    run: its hidden states were kept by the rollouts. Under torchrun, pass all rows on every rank.
    Raises ValueError if kl > 0 and the rollouts were made without `states`.
    """
    if kl and any(row.thoughts.keys() != row.states.keys() for row in rolls.rows):
        raise ValueError(
            "kl needs rollouts made with states=True, and with another model than q as pi"
        )
    N = len(rolls.rows)
    stats = GradientStats()
    results = []  # of each micro-batch, on the device: loss, KL, log q of the distinct events
    recorded = []  # of each micro-batch: which of these each event is, log q of the events
    contents = 0
    last = np.zeros(N, dtype=np.int64)  # tokens before a row's last event
    np.maximum.at(last, rolls.events["row"], rolls.events["position"])
    share = [n for n in parallel.shard_block(range(N)) if last[n]]
    ids = [rolls.rows[n].ids[: last[n]] for n in share]
    for batch in parallel.synced_batches(q, shared_parts(ids, micro_tokens)):
        rows = np.array([share[i] for i in batch])
        index = np.isin(rolls.events["row"], rows)
        events, weight = select_events(rolls.events[index], rows, A)  # (m,), (m,)
        states, node = hidden_before(
            q, [ids[i] for i in batch], events["row"], events["position"], amp
        )  # (T, D), (m,)
        first, same = merge_equal(node, events)  # (u,), (m,)
        hidden = states[to_device(node[first], q.device)]  # (u, D)
        logp = event_logprobs(q, tok, hidden, events[first], amp)  # (u,)
        summed = torch.as_tensor(np.bincount(same, weight), dtype=logp.dtype)  # (u,)
        loss = -(to_device(summed, q.device) * logp).sum() / N  # gradient
        away = logp.new_zeros(())
        if kl and (events["kind"] >= TOKEN).any():
            away = kl_to_pi(
                q, pi, tok, [rolls.rows[n] for n in rows], hidden, events, first, same, amp
            )
            loss = loss + kl * away / N
            contents += int((events["kind"] >= TOKEN).sum())
        parallel.backward(loss)
        stats.tokens += len(states)
        results.append(torch.cat((loss.detach()[None], away.detach()[None], logp.detach())))
        recorded.append((same, rolls.logq[index]))
    total_kl = add_results(stats, results, recorded)
    return over_ranks(stats, total_kl, contents)


def add_results(stats, results, recorded):
    """Add loss and gap of the micro-batches of `policy_gradient` to its stats -> the sum of KLs.

    One copy from the device for all of them.
    """
    total_kl = 0.0
    for values, (same, logq) in zip(download(*results) if results else [], recorded, strict=True):
        stats.loss += float(values[0])
        total_kl += float(values[1])
        gap = values[2:][same] - logq
        stats.logq_gap = max(stats.logq_gap, float(np.abs(gap).max()))
    return total_kl


def select_events(events, rows, A):
    """The events of some rows, their rows numbered by the place in `rows`, and each one's A_t."""
    events = events.copy()  # (m,)
    content = events["kind"] >= TOKEN
    weight = A[content.astype(int), events["row"], events["line"]]  # (m,)
    order = np.argsort(rows)
    events["row"] = order[np.searchsorted(rows[order], events["row"])]
    return events, weight


def merge_equal(node, events):
    """Events that are one and the same -> (one of each (u,), and for every event which one (m,)).

    They are equal after equal prefixes: the same node of the tree, kind and token.
    """
    key = np.stack([node.numpy(), events["kind"], events["token"]], 1)  # (m, 3)
    _, first, same = np.unique(key, axis=0, return_index=True, return_inverse=True)
    return first, same.reshape(-1)


def event_logprobs(q, tok, hidden, events, amp=False):
    """log q of each event from the states that predict it, with gradient: (M,).

    <act>: no comment begins. The end of a thought: any of the stop tokens.
    hidden (M, D); events (M,), of dtype EVENT.
    """
    is_act = events["kind"] == ACT
    other = events[~is_act]
    places = np.flatnonzero(is_act), np.flatnonzero(~is_act)
    acts, others, token, kind = upload(q.device, *places, other["token"], other["kind"])
    with torch.autocast(q.device.type, torch.bfloat16, enabled=amp):
        act = none_logprobs(hidden[acts], q.head_weight, tok.thought_ids)
        logp, end = token_logprobs(hidden[others], q.head_weight, token, [tok.stop_ids])
    logp = torch.where(kind == END, end, logp)
    return logp.new_empty(len(events)).index_copy(0, others, logp).index_copy(0, acts, act)


def kl_to_pi(q, pi, tok, rows, hidden, events, first, same, amp):
    """sum over the tokens of thoughts of KL(q || pi), from pi's states that the rows kept.

    hidden (u, D): q's states of the distinct events; events, first, same: see `merge_equal`.
    """
    distinct = events[first]
    content = np.flatnonzero(distinct["kind"] >= TOKEN)  # (contents,)
    times = torch.from_numpy(np.bincount(same)[content])  # rows of each
    others = []
    for event in distinct[content]:
        row = rows[event["row"]]
        line = int(event["line"])
        others.append(row.states[line][event["position"] - 1 - begin_of(tok, row, line)])
    other = to_device(torch.stack(others), q.device)  # (contents, D)
    content = to_device(torch.from_numpy(content), q.device)
    with torch.autocast(q.device.type, torch.bfloat16, enabled=amp):
        kl = token_kl(hidden[content], q.head_weight, other, pi.head_weight)  # (contents,)
    return (to_device(times, q.device) * kl).sum()


def over_ranks(stats, total_kl, contents):
    """The GradientStats of all ranks together."""
    parts = parallel.all_gather((stats, total_kl, contents))
    return GradientStats(
        loss=sum(part.loss for part, _, _ in parts),
        kl=sum(kl for _, kl, _ in parts) / max(1, sum(n for _, _, n in parts)),
        tokens=sum(part.tokens for part, _, _ in parts),
        logq_gap=max(part.logq_gap for part, _, _ in parts),
    )


# ---------------------------------------------------------------- M-step (mstep.next_token_loss)


def ntp_loss(model, ids, pos, doc, kind):
    """-log p of each predicted token of packed rows -> (loss (M,) with gradient, kind (M,)).

    ids, pos, doc, kind (1, T) on the CPU, as from `pack`; the kinds returned are there too. A token
    is predicted from the earlier tokens of its own document. The first of a document is not
    predicted, nor is padding, nor the prompt.
    """
    predicts = predicting(doc, kind)  # (M,)
    docs = Documents(doc, device=model.device)
    ids, pos, state = (to_device(x, model.device) for x in (ids, pos, predicts))
    hidden = model(ids, pos, docs)[0].index_select(0, state)  # (M, D)
    targets = ids[0, 1:].index_select(0, state)  # (M,)
    loss = -token_logprobs(hidden, model.head_weight, targets)[0]  # (M,): J
    return loss, kind[0, 1:][predicts]


def predicting(doc, kind):
    """Which tokens predict the one behind them: (M,). doc, kind (1, T), on the CPU.

    Example: doc [[0, 0, 0, 1]], kind [[PROMPT, CODE, CODE, CODE]] -> [0, 1]
    """
    inside = (doc[0, 1:] == doc[0, :-1]) & (kind[0, 1:] > PROMPT)  # (T-1,)
    return inside.nonzero()[:, 0]


def ntp_gradient(model, docs, kinds, count, cfg):
    """Accumulate the gradient of 1/count sum of -log p over the documents' predicted tokens.

    -> (3,) sums of -log p in nats: of all tokens, of code, of thoughts. cfg.micro_tokens tokens at
    a time. Under torchrun, pass all documents on every rank; the sums are of all of them.
    """
    order = sorted(range(len(docs)), key=lambda i: -len(docs[i]))  # so that shares are alike
    share = [parallel.shard([xs[i] for i in order]) for xs in (docs, kinds)]
    sums = torch.zeros(3, device=model.device)
    multiple = 256 if model.device.type == "cuda" else 1
    for batch in parallel.synced_batches(model, micro_batches(*share, cfg.micro_tokens)):
        with torch.autocast(model.device.type, torch.bfloat16, enabled=cfg.bf16):
            loss, kind = ntp_loss(model, *pack(*batch, multiple=multiple))
        parallel.backward(loss.sum() / count)
        loss = loss.detach()
        code, thought = (
            to_device(where.nonzero()[:, 0], model.device)
            for where in (kind != THOUGHT, kind == THOUGHT)
        )
        sums += torch.stack([loss.sum(), loss[code].sum(), loss[thought].sum()])
    return torch.stack(parallel.all_gather(sums.cpu())).sum(0)


# ---------------------------------------------------------------- RLVR (rlvr.plain_scores)


@dataclasses.dataclass
class CompletionScores:
    """What a model says of the tokens of completions, one completion after the other."""

    logp: torch.Tensor  # (M,) log pi of each token, with gradient
    entropy: torch.Tensor  # (M,) of pi there, nats
    kl: torch.Tensor  # (m,) KL(pi || start) at the tokens of the measured completions
    measured: torch.Tensor  # (m,) the tokens of the measured completions
    tokens: int  # that pi read
    start_tokens: int = 0  # that start read


def score_completions(model, samples, forbid=(), amp=False, start=None, measured=(), kl_grad=False):
    """Score the tokens of completions -> CompletionScores.

    samples    each with a `prompt` and `ids`, lists of token ids; shared prefixes are run once
    forbid     token ids that are left out of all distributions
    start      the model that the KL is taken to, at the completions that `measured` marks (bools)
    kl_grad    whether a gradient goes through the KL
    """
    device = model.device
    hidden, read = hidden_of(model, samples, amp)  # (M, D)
    targets = to_device(torch.tensor([i for s in samples for i in s.ids]), device)  # (M,)
    with torch.autocast(device.type, enabled=False):  # logits in float32, as the sampler's are
        logp, entropy = token_logprobs(
            hidden.float(), model.head_weight.float(), targets, entropy=True, without=forbid
        )
    scores = CompletionScores(
        logp, entropy.detach(), logp.new_zeros(0), measured_tokens(samples, measured, device), read
    )
    if any(measured):
        marked = [s for s, mark in zip(samples, measured, strict=True) if mark]
        with torch.no_grad():
            other, scores.start_tokens = hidden_of(start, marked, amp)  # (m, D)
        with (
            torch.autocast(device.type, torch.bfloat16, enabled=amp),
            torch.set_grad_enabled(kl_grad),
        ):
            scores.kl = token_kl(
                hidden[scores.measured],
                model.head_weight,
                other,
                start.head_weight,
                without=forbid,
            )
    return scores


def measured_tokens(samples, measured, device):
    """The tokens of the completions that `measured` marks, of all of them end to end: (m,)."""
    marks = list(measured) or [False] * len(samples)
    by_token = np.repeat(marks, [len(s.ids) for s in samples])  # (M,) bool
    return to_device(torch.from_numpy(np.flatnonzero(by_token)), device)


def hidden_of(model, samples, amp):
    """The states that predict the tokens of completions -> ((M, D), number of tokens read)."""
    row = np.repeat(np.arange(len(samples)), [len(s.ids) for s in samples])  # (M,)
    position = np.concatenate([len(s.prompt) + np.arange(len(s.ids)) for s in samples])  # (M,)
    ids = [s.prompt + s.ids for s in samples]
    states, node = hidden_before(model, ids, row, position, amp)  # (T, D), (M,)
    return states[to_device(node, model.device)], len(states)
