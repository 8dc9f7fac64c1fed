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

**Rollouts, exactly, in few forwards.** Code is never decoded, it is known. (1) One forward of the whole snippet scores every decision. (2)
Draw them in order; up to the first <think> everything is what sampling line by line would have given. (3) Decode that thought, batched
over the rows that think. (4) Forward the rest of the lines with the thought in the context, and go on from (2). Sequential
forwards: one a thought, not one a token. The first forward is shared by the G rollouts of a snippet. The same forwards of pi are V.
The randomness is drawn beforehand, so the result is that of token-by-token sampling with the same numbers (tested).

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
import dataclasses
import math

import numpy as np
import torch
from tqdm import tqdm

import parallel
from decoder import pick
from elbo import iw_bound, line_rewards, log1mexp, token_kl, token_logprobs

ACT, FIRST, TOKEN, END = range(4)             # events: <act>; the first token of a thought; a further one; its end


@dataclasses.dataclass
class Row:
    """One rollout in the making."""
    snip: object
    group: int                                # index of the snippet in the call
    uniforms: tuple                           # (L,) for the decisions, (L, think_max + 1) for the thoughts' tokens
    ids: list                                 # as known now: thoughts so far, and the rest of the code without thoughts
    first: list                               # (L,) where in ids the decision of line t falls
    line_logp: np.ndarray                     # (L,) log pi(a_t | s_t, z_t), nats
    thoughts: dict                            # line -> token ids
    gain: np.ndarray                          # (L,) V(s_t, z_<=t) - V(s_t, z_<t): nats a thought adds to all lines from t on; 0 for <act>
    next: int = 0                             # the first line not decided yet
    known: int = 0                            # tokens of ids whose keys are in q's cache


@dataclasses.dataclass
class Rollouts:
    rows: list                                # N finished Rows, the G rollouts of a snippet next to each other
    G: int
    base_logp: list                           # B arrays (L,): log pi of the lines when nothing is ever thought
    events: np.ndarray                        # (M, 5) int: row, index in ids of what the event predicts, kind, line, token
    logq: np.ndarray                          # (M,) log q of each event, recorded while sampling
    forward_tokens: int                       # real tokens that went through q or pi

    def lines(self, what):
        """A field of the rows as one padded array. what: row -> (L,). Returns (N, Lmax), zeros where a row has no such line."""
        out = np.zeros((len(self.rows), max(len(r.first) for r in self.rows)))
        for n, row in enumerate(self.rows):
            out[n, :len(row.first)] = what(row)
        return out

    @property
    def think(self):                          # (N, Lmax) bool
        return self.lines(lambda r: [t in r.thoughts for t in range(len(r.first))]) > 0

    @property
    def valid(self):                          # (N, Lmax) bool
        return self.lines(lambda r: np.ones(len(r.first))) > 0


def merge(parts):
    """Rollouts of several snippets or batches of snippets, with the same G, as one."""
    before = np.cumsum([0] + [len(p.rows) for p in parts])                                  # rows before those of each part
    events = np.concatenate([p.events + [n, 0, 0, 0, 0] for n, p in zip(before, parts)])
    return Rollouts([r for p in parts for r in p.rows], parts[0].G, [b for p in parts for b in p.base_logp], events,
                    np.concatenate([p.logq for p in parts]), sum(p.forward_tokens for p in parts))


def split(rolls):
    """The inverse of `merge`: Rollouts of a snippet each. The forwards, which they shared, count as the first one's."""
    G, of = rolls.G, rolls.events[:, 0] // rolls.G                                          # (M,): snippet of each event
    return [Rollouts(rolls.rows[b * G:(b + 1) * G], G, [base], rolls.events[of == b] - [b * G, 0, 0, 0, 0], rolls.logq[of == b],
                     0 if b else rolls.forward_tokens) for b, base in enumerate(rolls.base_logp)]


def draw_uniforms(seed, number, g, n_lines, think_max):
    """The randomness of rollout g of snippet `number`: (L,) for decisions, (L, think_max + 1) for tokens. seed: ints."""
    rng = np.random.default_rng([*seed, number, g])
    return rng.random(n_lines), rng.random((n_lines, think_max + 1))


def extend(model, cache, rows):
    """Forward ids[start:] of each row on its cache. rows: [(ids, start)] -> hidden (N, T, D) of the tokens from `start` on."""
    T = max(len(ids) - start for ids, start in rows)
    cache.reserve(max(len(ids) for ids, _ in rows) + 1)                    # the last slot takes what padding writes
    reach = max(len(ids) for ids, _ in rows) + 1
    ids = torch.zeros(len(rows), T, dtype=torch.int64)                     # (N, T)
    for n, (row, start) in enumerate(rows):
        ids[n, :len(row) - start] = torch.tensor(row[start:])
    start = torch.tensor([s for _, s in rows])[:, None]                    # (N, 1)
    pos = (start + torch.arange(T)).clamp(max=reach - 1)                   # (N, T)
    return model(ids.to(model.device), pos=pos.to(model.device), cache=cache, reach=reach)


def decision_logp(model, hidden, rows, tok):
    """Log-probabilities of every token that begins a comment, at every line from `next` on. rows: [(row, start)], hidden (N, T, D) of
    the tokens from `start` on. -> list of arrays (lines left, H), H = len(tok.thought_ids)."""
    at = [(n, row.first[t] - 1 - start) for n, (row, start) in enumerate(rows) for t in range(row.next, len(row.first))]
    n, j = torch.tensor(at, dtype=torch.int64, device=hidden.device).view(-1, 2).T          # none where no line is left
    logp = token_logprobs(hidden[n, j].float(), model.head_weight.float(), torch.zeros_like(n), [[i] for i in tok.thought_ids])[1:].T
    return np.split(logp.double().cpu().numpy(), np.cumsum([len(row.first) - row.next for row, _ in rows])[:-1])


def line_logprobs(model, hidden, rows, tok):
    """log pi(a_t | s_t, z_t) of every line from the row's `next` - 1 on (from line 0 if `next` is 0). Same arguments.
    -> list of arrays. The first token of a line is conditional on not beginning a comment (elbo.py, departure 1)."""
    at, targets, line, opens, sizes = [], [], [], [], []
    for n, (row, start) in enumerate(rows):
        begin = max(row.next - 1, 0)
        ends = row.first[1:] + [len(row.ids)]
        for t in range(begin, len(row.first)):
            span = range(row.first[t], ends[t])
            at += [(n, j - 1 - start) for j in span]
            targets += row.ids[span.start:span.stop]
            line += [sum(sizes) + t - begin] * len(span)
            opens += [True] + [False] * (len(span) - 1)
        sizes.append(len(row.first) - begin)
    n, j = torch.tensor(at, device=hidden.device).T
    logp, mass = token_logprobs(hidden[n, j].float(), model.head_weight.float(), torch.tensor(targets, device=n.device), [tok.thought_ids])
    logp = logp - torch.where(torch.tensor(opens, device=n.device), log1mexp(mass), 0.0)
    total = torch.zeros(sum(sizes), dtype=torch.float64).index_add_(0, torch.tensor(line), logp.double().cpu())
    return np.split(total.numpy(), np.cumsum(sizes)[:-1])


@torch.inference_mode()
def rollout(q, pi, tok, snippets, G, think_max, seed, rate=None, horizon=0, numbers=None):
    """G rollouts of latents over each snippet -> Rollouts.

    q, pi      Transformers; pass the same one twice and each forward is done once.
    seed       a tuple of ints; numbers: one int a snippet (default its index), which with seed and g fixes its randomness.
    think_max  a thought's length in tokens at most, its `#` included.
    rate       probability of <think> before every line, instead of q's own (thoughts still come from q).
    horizon    the number of first lines that may take a thought; 0: all.
    Raises ValueError if a snippet with the longest possible thoughts would not fit the model's max_len.
    """
    same = q is pi
    rows, events, logq, forwards = [], [], [], 0
    for b, s in enumerate(snippets):
        most = len(s.ids) + sum(think_max + len(sep) for sep in s.sep) + 1
        if most > q.cfg.max_len:
            raise ValueError(f"snippet {s.name or b} may grow to {most} tokens with its thoughts; max_len is {q.cfg.max_len}")

    # (1) the trunk: every snippet once, without thoughts
    trunk = [Row(s, b, None, list(s.ids), list(s.first), None, {}, np.zeros(len(s.first))) for b, s in enumerate(snippets)]
    ahead = [(row, 0) for row in trunk]
    slots = max(len(s.ids) for s in snippets) + 1
    q_cache = q.new_cache(len(trunk), slots)
    hidden = extend(q, q_cache, [(row.ids, 0) for row in trunk])                       # (B, T, D)
    hashes = decision_logp(q, hidden, ahead, tok)                                           # B x (L, H)
    if not same:
        pi_cache = pi.new_cache(len(trunk), slots)
        hidden = extend(pi, pi_cache, [(row.ids, 0) for row in trunk])
    base = line_logprobs(pi, hidden, ahead, tok)                                            # B x (L,)
    forwards += (2 - same) * sum(len(s.ids) for s in snippets)
    for b, s in enumerate(snippets):
        for g in range(G):
            uniforms = draw_uniforms(seed, b if numbers is None else numbers[b], g, len(s.first), think_max)
            rows.append(Row(s, b, uniforms, list(s.ids), list(s.first), base[b].copy(), {}, np.zeros(len(s.first))))

    def decide(n, logp):
        """(2) Draw row n's decisions in order up to its first <think>; logp (lines left, H). Returns whether it thinks."""
        row = rows[n]
        mass = np.logaddexp.reduce(logp, axis=1)                                            # log P(<think>) by line
        for i, t in enumerate(range(row.next, len(row.first))):
            p = 0.0 if horizon and t >= horizon else np.exp(mass[i]) if rate is None else rate
            if row.uniforms[0][t] < p:
                pick_from = np.cumsum(np.exp(logp[i] - mass[i]))
                k = min(int(np.searchsorted(pick_from, row.uniforms[1][t, 0] * pick_from[-1], side="right")), len(pick_from) - 1)
                row.thoughts[t] = [tok.thought_ids[k]]
                events.append((n, row.first[t], FIRST, t, tok.thought_ids[k]))
                logq.append(logp[i, k])
                row.next, row.known = t + 1, row.first[t]
                return True
            if not (horizon and t >= horizon):
                events.append((n, row.first[t], ACT, t, row.ids[row.first[t]]))
                logq.append(np.log1p(-np.exp(min(mass[i], -1e-7))))
        return False

    active = [n for n in range(len(rows)) if decide(n, hashes[rows[n].group])]
    if active:
        source = torch.tensor([rows[n].group for n in active], device=q.device)
        q_cache, pi_cache = q_cache.select(source), None if same else pi_cache.select(source)
    while active:
        forwards += think(q, tok, [rows[n] for n in active], active, q_cache, think_max, events, logq)     # (3)
        # (4) the rest of the lines, with the thought in the context
        old = []
        for n in active:
            row, t = rows[n], rows[n].next - 1
            old.append(row.first[t])
            insert = row.thoughts[t] + row.snip.sep[t]
            row.ids[row.first[t]:row.first[t]] = insert
            row.first[t:] = [f + len(insert) for f in row.first[t:]]
        ahead = [(rows[n], rows[n].known) for n in active]
        hidden = extend(q, q_cache, [(row.ids, start) for row, start in ahead])        # (N', T', D)
        hashes = decision_logp(q, hidden, ahead, tok)
        forwards += sum(len(row.ids) - start for row, start in ahead)
        if not same:
            ahead = [(rows[n], o) for n, o in zip(active, old)]
            hidden = extend(pi, pi_cache, [(row.ids, start) for row, start in ahead])
            forwards += sum(len(row.ids) - start for row, start in ahead)
        for n, new in zip(active, line_logprobs(pi, hidden, ahead, tok)):
            row, t = rows[n], rows[n].next - 1
            row.gain[t] = new.sum() - row.line_logp[t:].sum()                               # V(s_t, z_<=t) - V(s_t, z_<t)
            row.line_logp[t:] = new
        stay = [i for i, n in enumerate(active) if decide(n, hashes[i])]
        active = [active[i] for i in stay]
        if active:
            source = torch.tensor(stay, device=q.device)
            q_cache, pi_cache = q_cache.select(source), None if same else pi_cache.select(source)
    order = sorted(range(len(events)), key=lambda i: events[i][0])
    return Rollouts(rows, G, base, np.array(events, dtype=np.int64).reshape(-1, 5)[order], np.array(logq)[order], forwards)


def rollouts(q, pi, tok, snippets, G, think_max, seed, numbers, at_once, desc="", **how):
    """`rollout` for any number of snippets, at_once of them in a call, with a progress bar if that takes a while -> Rollouts. Ranks share the snippets
    out, and all get all rollouts."""
    snippets, numbers = parallel.mine(snippets), parallel.mine(numbers)
    parts = [rollout(q, pi, tok, snippets[i:i + at_once], G, think_max, seed, numbers=numbers[i:i + at_once], **how)
             for i in tqdm(range(0, len(snippets), at_once), desc=desc, unit="batch", delay=2, leave=False, disable=len(snippets) <= at_once)]
    return merge(parallel.gather([one for part in parts for one in split(part)]))


def think(q, tok, rows, numbers, cache, think_max, events, logq):
    """Decode the thought that each row has begun, token by token, all rows at once. Appends to row.thoughts[t], moves row.known to
    behind what the cache holds, and records the events. Returns the number of tokens forwarded."""
    head, stop = q.head_weight.float(), torch.tensor(tok.stop_ids, device=q.device)
    live, forwards = list(range(len(rows))), 0
    for k in range(1, think_max + 1):
        if k == think_max or not live:                   # a thought of the greatest length ends by itself: no event
            break
        tokens = torch.tensor([rows[i].thoughts[rows[i].next - 1][-1] if i in set(live) else 0 for i in range(len(rows))])
        pos = torch.tensor([row.known for row in rows])
        cache.reserve(int(pos.max()) + 2)
        hidden = q(tokens[:, None].to(q.device), pos=pos[:, None].to(q.device), cache=cache, reach=int(pos.max()) + 1)[:, 0]
        logits = hidden[live].float() @ head.T                                              # (live, V)
        picked, logp = pick(logits, [rows[i].uniforms[1][rows[i].next - 1, k] for i in live], 1.0, 1.0)
        ends = logits.index_select(1, stop).logsumexp(1) - logits.logsumexp(1)              # log P(the thought ends here)
        forwards += len(live)
        still = []
        for i, token, lp, end in zip(live, picked.tolist(), logp.tolist(), ends.tolist()):
            row, t = rows[i], rows[i].next - 1
            row.known += 1
            done = token in tok.stop_ids
            events.append((numbers[i], row.first[t] + k, END if done else TOKEN, t, token))
            logq.append(end if done else lp)
            if not done:
                row.thoughts[t].append(token)
                still.append(i)
        live = still
    return forwards


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

    A (2, N, L) as from `advantages`. Returns (loss, mean KL a token, trained tokens, largest |log q now - log q recorded|). With several ranks
    each takes its share of the rows, and all give them all.
    """
    loss, total_kl, tokens, gap, contents = 0.0, 0.0, 0, 0.0, 0
    order = parallel.mine(sorted(range(len(rolls.rows)), key=lambda n: len(rolls.rows[n].ids)))            # rows of one length together
    rows_at_once = max(1, tokens_at_once // max((len(rolls.rows[n].ids) for n in order), default=1))
    parts = [order[start:start + rows_at_once] for start in range(0, len(order), rows_at_once)]
    for chosen in parallel.turns(q, [part for part in parts if np.isin(rolls.events[:, 0], part).any()]):
        where = {n: i for i, n in enumerate(chosen)}
        mine = np.isin(rolls.events[:, 0], chosen)
        events = rolls.events[mine].copy()
        content = events[:, 2] >= TOKEN
        weight = torch.as_tensor(A[content.astype(int), events[:, 0], events[:, 3]], dtype=torch.float32, device=q.device)
        events[:, 0] = [where[n] for n in events[:, 0]]
        ids = [rolls.rows[n].ids for n in chosen]
        hidden = hidden_before(q, ids, events, amp)                                         # (m, D)
        logp = event_logprobs(q, tok, hidden, events, amp)                                  # (m,)
        part = -(weight * logp).sum() / len(rolls.rows)                                     # gradient
        if kl and content.any():
            with torch.no_grad():
                other = hidden_before(pi, ids, events[content], amp)
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
    hard: for each of the B snippets the indices of its hard lines, where they are known."""
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
           "duration": float(np.mean([d for r in rolls.rows for d in durations(sorted(r.thoughts), len(r.first))] or [0.0])),
           "gain": float(gains.mean()) if len(gains) else 0.0,
           "gain_above_c": float((gains > c).mean()) if len(gains) else 0.0}
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
