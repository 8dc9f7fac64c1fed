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

Latents are drawn from q exactly as line by line, in few forwards, and rewarded by pi, V included: engine/rollouts.py.

Departures from the paper
1. The comment stands at the indentation of its line, and before a line at most one. 2. log pi of a line is conditional on the decision
(elbo.py, departure 1). 3. The group's mean leaves the rollout itself out, which keeps the gradient unbiased; a thought's tokens are compared
with other thoughts only; advantages are divided by their deviation over the *batch* (a scale; never by the group's, which blows up groups that
hardly differ). 4. The credit by prefix is ours. 5. `kl` adds KL(q || pi) on the tokens of thoughts, not on decisions: the decision is
learned within ten steps, and without this the noise of its gradient unlearns meanwhile what thoughts should say (docs/log.md).
It is the KL of the bound for a prior whose thoughts come from pi instead of U. 6. `estep=best-of-n` optimises the same bound without a gradient: of G
rollouts of the frozen model keep the one with the best sum r_t. 7. `horizon=1`: one latent a snippet, before its first line: BRiTE.
8. `gain_floor` bounds what one bad thought can cost. A wrong worked note costs five nats, a right one brings two: without the floor, thinking dies
before lines where two notes in three are right. The M-step does not get such a note anyway, because one of several is chosen by reward.

Shapes: B snippets, G rollouts each, N = B*G rows, L lines, T tokens, D width, M events (a decision, a thought's token, its end).
"""

import collections
import copy
import dataclasses
import functools
import math
import time

import numpy as np
import torch
from tqdm import tqdm

from config import DIAGNOSE, ESTEP, estep_of, selection_of
from elbo import Prior, never_thinks, prior_of, reward, summary
from engine import parallel, training
from engine.machine import steps_bar
from engine.packing import hidden_before, shared_parts
from engine.rollouts import ACT, END, TOKEN, begin_of, rollout, rollouts
from engine.training import inference_copy
from evaluate import rollouts_of
from hindsight.propose import choose
from logprobs import none_logprobs, token_kl, token_logprobs
from model import work_size

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
        reward(line_logp, think, Prior(c))
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


def event_logprobs(q, tok, hidden, events, amp=False):
    """log q of each event from the states that predict it, with gradient: (M,). <act> is log(1 - P(a comment begins)), the end of a
    thought the log of the mass of all stop tokens. hidden (M, D); events (M,), of dtype
    EVENT."""
    kind = torch.as_tensor(events["kind"], device=q.device)  # (M,)
    token = torch.as_tensor(events["token"], device=q.device)  # (M,)
    with torch.autocast(q.device.type, torch.bfloat16, enabled=amp):
        act = none_logprobs(hidden, q.head_weight, tok.thought_ids)
        logp, end = token_logprobs(hidden, q.head_weight, token, [tok.stop_ids])
    return torch.where(kind == ACT, act, torch.where(kind == END, end, logp))


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
    np.maximum.at(ends, rolls.events["row"], rolls.events["position"])
    mine = [n for n in parallel.shard_block(range(len(rolls.rows))) if ends[n]]
    rows = [rolls.rows[n].ids[: ends[n]] for n in mine]
    for part in parallel.synced_batches(q, shared_parts(rows, micro_tokens)):
        chosen = np.array([mine[i] for i in part])
        index = np.isin(rolls.events["row"], chosen)
        events = rolls.events[index].copy()  # (m,)
        content = events["kind"] >= TOKEN
        weight = A[content.astype(int), events["row"], events["line"]]  # (m,)
        order = np.argsort(chosen)
        events["row"] = order[
            np.searchsorted(chosen[order], events["row"])
        ]  # rows by their place in `part`
        hidden, node = hidden_before(
            q, [rows[i] for i in part], events["row"], events["position"], amp
        )  # (T, D), (m,)
        read += len(hidden)
        key = np.stack([node.cpu().numpy(), events["kind"], events["token"]], 1)
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
            some = events[first]["kind"] >= TOKEN  # (u,)
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
    *sums, gaps = zip(*parallel.all_gather((loss, total_kl, contents, read, gap)))
    loss, total_kl, contents, read = map(sum, sums)
    return loss, total_kl / max(1, contents), read, max(gaps)


def one_row(tok, snip, uniforms, think_max, rate=None, horizon=0):
    """Line by line and token by token, as the definition has it: a generator that yields tokens to read, gets the log-probabilities (V,) of the next
    one, and returns (ids, thoughts, log q of each event, log pi of each line)."""
    ids, thoughts, logq, lines = [], {}, [], np.zeros(len(snip.first))

    def read(tokens):
        ids.extend(tokens)
        return (yield tokens)

    def pick(logp, u):
        cdf = np.cumsum(np.exp(logp))
        return min(int(np.searchsorted(cdf, u * cdf[-1], side="right")), len(cdf) - 1)

    logp = yield from read(snip.ids[: snip.first[0]])
    for t, (a, b) in enumerate(zip(snip.first, snip.first[1:] + [len(snip.ids)])):
        if not horizon or t < horizon:
            begin = logp[tok.thought_ids]
            thinks = uniforms[0][t] < (np.exp(begin).sum() if rate is None else rate)
            logq.append(np.log1p(-np.exp(begin).sum()))
            if thinks:
                k = pick(begin, uniforms[1][t, 0])
                logq[-1], thoughts[t] = begin[k], [tok.thought_ids[k]]
                while len(thoughts[t]) < think_max:
                    logp = yield from read(thoughts[t][-1:])
                    token = pick(logp, uniforms[1][t, len(thoughts[t])])
                    if token in tok.stop_ids:
                        logq.append(np.log(np.exp(logp[tok.stop_ids]).sum()))
                        break
                    logq.append(logp[token])
                    thoughts[t].append(token)
                unread = thoughts[t][-1:] if len(thoughts[t]) == think_max else []
                logp = yield from read(unread + snip.sep[t])
        lines[t] = -np.log1p(-np.exp(logp[tok.thought_ids]).sum())
        for token in snip.ids[a:b]:
            lines[t] += logp[token]
            if len(ids) + 1 < len(snip.ids) + sum(
                len(z) + len(snip.sep[s]) for s, z in thoughts.items()
            ):  # nothing follows the last
                logp = yield from read([token])
    return ids + snip.ids[-1:], thoughts, logq, lines


def diagnose(run, pi):
    """What the model's own thoughts are worth before the E-step, printed: the rule of thumb is that a gain below c dies out."""
    cfg = run.cfg
    rolls = rollouts_of(pi, run.tok, run.expert[:32], 4, cfg, (cfg.seed, DIAGNOSE), "diagnose")
    s = summary(rolls, prior_of(cfg, run.tok, pi.cfg.vocab_size))
    words = {}
    for row in rolls.rows:
        for t, ids in row.thoughts.items():
            word = run.tok.decode(ids[1:3]).strip().split(" ")[0] or "(empty)"
            words.setdefault(word, []).append(row.gain[t])
    top = sorted(words.items(), key=lambda kv: -len(kv[1]))[:6]
    tqdm.write(
        f"thoughts of the model as it is: before {s['think_share']:.1%} of lines, gain {s['gain']:+.2f} nats each, "
        f"{s['gain_above_c']:.0%} of them above c = {cfg.c:g}; by first word: "
        + ", ".join(f"{w!r} {np.mean(g):+.2f} ({len(g)})" for w, g in top)
    )
    if s["gain"] < cfg.c:
        tqdm.write(
            f"warning: the mean gain is below c = {cfg.c:g}: the bound is served best by thinking less, and thinking may die out"
        )
    return {k: s[k] for k in ("think_share", "gain", "gain_above_c", "elbo", "elbo_no_think")}


def learn_q(run, name, pi, iteration, state, flops, seconds):
    """The E-step by policy gradient, from a copy of pi. Returns q and the FLOPs so far."""
    cfg, start = run.cfg, state["step"] if state else 0
    q, opt = training.prepare_training(
        copy.deepcopy(pi),
        cfg,
        lambda m: training.adamw(m, cfg.estep_lr, 0.0),
        state if start else None,
        "q",
    )
    if not start:
        run.log(name, phase="diagnose", iteration=iteration, **diagnose(run, pi))
    pi.requires_grad_(False)  # or the KL's gradient would wait in pi for the M-step's first step
    pi_fixed = inference_copy(pi, cfg)
    bar = steps_bar(f"{name}: E-step {iteration + 1}", start, cfg.estep_steps)
    for step in bar:
        began = time.time()
        for group in opt.param_groups:
            group["lr"] = training.learning_rate(
                step, cfg.estep_steps, cfg.estep_lr * cfg.estep_lr_decay**iteration, 1
            )
        mine = np.random.default_rng([cfg.seed, ESTEP, iteration, step]).choice(
            len(run.expert), min(cfg.snippets, len(run.expert)), replace=False
        )
        rolls = rollouts(
            inference_copy(q, cfg),
            pi_fixed,
            run.tok,
            [run.expert[i] for i in mine],
            cfg.group,
            cfg.think_max,
            (cfg.seed, ESTEP, iteration, step),
            numbers=mine.tolist(),
            at_once=cfg.snippets,
            horizon=cfg.horizon,
            need="gains" if cfg.credit == "prefix" else "rewards",
            states=cfg.kl > 0,
        )
        sampled = time.time()
        logp, gain = rolls.lines(lambda r: r.line_logp), rolls.lines(lambda r: r.gain)
        A = advantages(
            logp,
            gain,
            rolls.think,
            rolls.valid,
            cfg.group,
            cfg.c,
            cfg.credit,
            cfg.discount,
            cfg.normalise,
            cfg.gain_floor,
        )
        loss, away, trained, gap = policy_gradient(
            q, pi, run.tok, rolls, A, cfg.kl, cfg.bf16, cfg.micro_tokens
        )
        norm = parallel.clip(q, cfg.grad_clip).item()
        opt.step()
        opt.zero_grad(set_to_none=True)
        flops += work_size(q) * (2 * rolls.forward_tokens + 6 * trained)
        s = summary(
            rolls,
            prior_of(cfg, run.tok, pi.cfg.vocab_size),
            run.expert_hard and [run.expert_hard[i] for i in mine],
        )
        tokens = rolls.forward_tokens + trained
        run.log(
            name,
            phase="estep",
            iteration=iteration,
            step=step,
            flops=flops,
            reward=s["elbo"],
            loss=loss,
            kl=away,
            grad_norm=norm,
            logq_gap=gap,
            rollout_s=sampled - began,
            update_s=time.time() - sampled,
            tokens=tokens,
            tokens_per_s=tokens / (time.time() - began),
            **{k: s[k] for k in s if k not in ("elbo", "ce_code")},
        )
        bar.set_postfix(
            reward=f"{s['elbo']:.2f}",
            think=f"{s['think_share']:.2f}",
            gain=f"{s.get('gain', math.nan):+.2f}",
            tok_s=f"{tokens / (time.time() - began):.0f}",
        )
        if (step + 1) % cfg.save_every == 0:
            run.save_state(
                name,
                phase="estep",
                iteration=iteration,
                step=step + 1,
                flops=flops,
                q=parallel.state(q),
                opt=parallel.state(opt),
                weights=pi.state_dict(),
                seconds=seconds(),
            )
    pi.requires_grad_(True)
    return parallel.unwrap(q), flops


# ---------------------------------------------------------------- who proposes thoughts for the M-step


@dataclasses.dataclass
class Proposer:
    """Who thinks for the M-step, who scores, and what fixes their draws."""

    q: object  # the model that thinks
    pi: object  # the model that scores
    tok: object
    cfg: object
    seed: tuple  # ints; the other part of a draw's seed is the snippet's number
    stats: collections.Counter  # `forward_tokens` counts the tokens forwarded
    iteration: int = 0
    tasks: list = ()  # the built-in domain's tasks, by number of the snippet


def rolled_out(source, snippets, numbers, n, rate=None):
    """n rollouts of q over each snippet, with rewards if n > 1 -> Rollouts."""
    cfg = source.cfg
    rolls = rollout(
        source.q,
        source.pi,
        source.tok,
        snippets,
        n,
        cfg.think_max,
        source.seed,
        horizon=cfg.horizon,
        need="rewards" if n > 1 else "latents",
        rate=rate,
        numbers=numbers,
    )
    source.stats["forward_tokens"] += rolls.forward_tokens
    return rolls


def resampled(source, snippets, numbers):
    """One of cfg.resample rollouts of q, drawn in proportion to exp(sum_t r_t); of one: a plain sample of q."""
    n = source.cfg.resample
    rolls = rolled_out(source, snippets, numbers, n)
    prior = prior_of(source.cfg, source.tok, source.pi.cfg.vocab_size)
    total = rolls.rewards(prior).sum(1).reshape(-1, n)  # (B, n) sum_t r_t
    noise = [np.random.default_rng([*source.seed, i]).gumbel(size=n) for i in numbers]
    # Gumbel: argmax of reward + noise is a draw from softmax(reward)
    best = (total + np.array(noise)).argmax(1)
    return [rolls.rows[b * n + k].thoughts for b, k in enumerate(best)]


def best_of_n(source, snippets, numbers):
    """Of cfg.best_of rollouts of the frozen model (q is pi) the one with the largest sum_t r_t."""
    n = source.cfg.best_of
    rolls = rolled_out(source, snippets, numbers, n)
    prior = prior_of(source.cfg, source.tok, source.pi.cfg.vocab_size)
    best = rolls.rewards(prior).sum(1).reshape(-1, n).argmax(1)  # (B,)
    return [rolls.rows[b * n + k].thoughts for b, k in enumerate(best)]


def in_hindsight(source, snippets, numbers):
    """Thoughts proposed after seeing the line, weighed as cfg.selection says for this iteration."""
    which = selection_of(source.cfg, source.iteration)
    thoughts, tokens = choose(
        source.pi, source.tok, snippets, source.cfg, which, source.seed, numbers
    )
    source.stats["forward_tokens"] += tokens
    return thoughts


def sampled(source, snippets, numbers):
    """The model's own thoughts, one sample as it is."""
    return [row.thoughts for row in rolled_out(source, snippets, numbers, 1).rows]


def sampled_at_rate(source, snippets, numbers):
    """The model's own thoughts before each line with probability cfg.rate."""
    rolls = rolled_out(source, snippets, numbers, 1, source.cfg.rate)
    return [row.thoughts for row in rolls.rows]


def oracle(source, snippets, numbers):
    """The worked notes of the built-in domain's tasks."""
    encode = source.tok.encode
    return [{t: encode(f" # {note}") for t, note in source.tasks[i].notes} for i in numbers]


def never(source, snippets, numbers):
    """No thought at all, as with c = inf."""
    return [{} for _ in snippets]


PROPOSALS = {
    "reinforce": resampled,
    "best-of-n": best_of_n,
    "hindsight": in_hindsight,
    "none": sampled,
    "random": sampled_at_rate,
    "oracle": oracle,
}  # cfg.estep -> a function (source, snippets, numbers) -> [{line: ids}]


def proposals(source):
    """-> (a function (snippets, numbers) -> [{line: ids}], as cfg.estep says; how many snippets to give it at once)."""
    cfg = source.cfg
    way = estep_of(cfg, source.iteration)
    rows = {"best-of-n": cfg.best_of, "reinforce": cfg.resample, "hindsight": cfg.proposals}
    silent = never_thinks(cfg) and way != "oracle"
    propose = never if silent else PROPOSALS[way]
    return functools.partial(propose, source), max(1, 256 // rows.get(way, 1))
