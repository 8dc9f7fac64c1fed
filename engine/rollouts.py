"""Rollouts of latents over expert lines that are forced: exactly what sampling line by line gives, in few and full forwards.

    before line t:  u_t < P_q(`#` | s_t, z_<t)  ?  <think>, a comment token by token  :  <act>;       then the expert's line, whatever it is
    V(prefix) = sum over the lines left of log pi(a_s | prefix, no thought from here on)                                        (value)
    gain_t    = V(s_t, z_<=t) - V(s_t, z_<t)                                      nats a thought is worth to all lines from its own on

Code is never decoded, it is known; and all uniforms are drawn beforehand. So

1. *Trunk.* One forward a snippet, without thoughts, gives every decision's probability and every line's likelihood. Up to its first thought
   each rollout is the trunk, and goes on reading its keys: they are never copied, a row sees them up to its first thought.
2. *Thoughts* of all rows that begin one, over all snippets, are decoded as one batch (decoder.py): a row's keys are the trunk's, read by all rows
   of the snippet together, and its own.
3. *Lines* after a thought are forwarded at once, as far as the row is expected to go before it thinks again: to the first line whose u_t is
   below P(think) as last seen, in the trunk to begin with. Decisions are drawn from what this forward says; what lies behind the first
   <think> is discarded; if there is none, the next lines follow. A wrong guess costs tokens and changes nothing. Then 2 again, until no row thinks.
4. *Rewards*, when all latents are known: one forward of pi over each row from its first thought on, again on the trunk's keys. Where q is pi this is
   what 1 to 3 computed already. It passes the thoughts too: what pi would have said there can be kept, for KL(q || pi).
5. *Values*, if wanted: for each thought but a row's first, one forward of the code from its line on, on the keys of the trunk and
   of the finished row. They depend on nothing sequential. V before a row's first thought is the trunk's, V after its last the row's own.

A forward takes continuations of like length together and runs its matrix products without padding. What it costs is counted: `forward_tokens`.

In bfloat16 a likelihood depends a little on the shapes of the forward it comes from. Trunk, rows and values go through the same function (`Reader.read`)
with the same packed weights, a float32 residual stream and a float32 head. With random weights the shape then makes no difference (NOISE in
speed/estep.py); how much of a gain is rounding with a real model's weights has not been measured.

Shapes: B snippets, G rollouts each, N = B*G rows, L lines, H tokens that begin a comment, D width, M events (a decision, a thought's token, its end).
"""

import dataclasses
import math

import numpy as np
import torch
from tqdm import tqdm

from data import ends_itself, inserted
from elbo import decision_logprobs, line_logprobs, reward
from engine import parallel
from engine.decoder import Decoder
from engine.reader import Reader, batches, packed

ACT, FIRST, TOKEN, END = range(
    4
)  # events: <act>; the first token of a thought; a further one; its end
EVENT = np.dtype([(name, np.int64) for name in ("row", "position", "kind", "line", "token")])
NEEDS = ("latents", "rewards", "gains")  # what a rollout is for; each includes those before it


@dataclasses.dataclass
class Row:
    """One rollout, in the making or finished."""

    snip: object
    group: int  # index of the snippet in the call
    uniforms: tuple  # (L,) for the decisions, (L, think_max + 1) for the thoughts' tokens
    ids: list  # as known now: thoughts so far, and the rest of the code without thoughts
    first: list  # (L,) where in ids the decision of line t falls (a finished row: its content, behind the thought)
    line_logp: np.ndarray  # (L,) log pi(a_t | s_t, z_t), nats; NaN if not asked for
    thoughts: dict  # line -> token ids
    gain: (
        np.ndarray
    )  # (L,) V(s_t, z_<=t) - V(s_t, z_<t), nats; 0 for <act>; NaN for thoughts if not asked for
    logq: np.ndarray = None  # (L,) log q(z_t | s_t, z_<t), nats; 0 for lines behind the horizon
    p_think: np.ndarray = None  # (L,) P(think) as last seen
    free: int = 0  # the number of first lines that may take a thought
    next: int = 0  # the first line not decided yet
    prefix: int = 0  # tokens of the trunk that it sees: up to its first thought
    known: int = 0  # tokens of ids whose keys q has
    states: dict = dataclasses.field(
        default_factory=dict
    )  # line -> (n, D), on the CPU: pi's states behind each token of its thought, if asked for


@dataclasses.dataclass
class Rollouts:
    rows: list  # N finished Rows, the G rollouts of a snippet next to each other
    G: int
    base_logp: list  # B arrays (L,): log pi of the lines when nothing is ever thought
    events: (
        np.ndarray
    )  # (M,) of dtype EVENT; position: index in the row's ids of the token that the event predicts
    logq: np.ndarray  # (M,) log q of each event, recorded while sampling
    forward_tokens: int  # tokens that went through q or pi: discarded ones too, padding and ended rows' seats not

    def lines(self, what):
        """A field of the rows as one padded array. what: row -> (L,). Returns (N, Lmax), zeros where a row has no such line."""
        out = np.zeros((len(self.rows), max(len(r.first) for r in self.rows)))
        for n, row in enumerate(self.rows):
            out[n, : len(row.first)] = what(row)
        return out

    def rewards(self, prior):
        """r_t of each line, nats: (N, Lmax). Lines behind the horizon pay nothing."""
        logp = self.lines(lambda row: row.line_logp)
        return np.where(self.possible, reward(logp, self.think, prior, self.line_logq), logp)

    @property
    def line_logq(self):
        """log q(z_t | s_t, z_{<t}): (N, Lmax)."""
        return self.lines(lambda row: row.logq)

    @property
    def possible(self):
        """Lines that may take a thought: (N, Lmax) bool."""
        return self.lines(lambda row: np.arange(len(row.first)) < row.free) > 0

    @property
    def think(self):  # (N, Lmax) bool
        return self.lines(lambda r: [t in r.thoughts for t in range(len(r.first))]) > 0

    @property
    def valid(self):  # (N, Lmax) bool
        return self.lines(lambda r: np.ones(len(r.first))) > 0


def merge(parts):
    """Rollouts of several snippets or batches of snippets, with the same G, as one."""
    before = np.cumsum([0] + [len(p.rows) for p in parts])  # rows before those of each part
    events = np.concatenate([p.events for p in parts])
    events["row"] += np.repeat(before[:-1], [len(p.events) for p in parts])
    return Rollouts(
        [r for p in parts for r in p.rows],
        parts[0].G,
        [b for p in parts for b in p.base_logp],
        events,
        np.concatenate([p.logq for p in parts]),
        sum(p.forward_tokens for p in parts),
    )


def split(rolls):
    """The inverse of `merge`: Rollouts of a snippet each. The forwards, which they shared, count as the first one's."""
    G, of = rolls.G, rolls.events["row"] // rolls.G  # (M,): snippet of each event
    events = rolls.events.copy()
    events["row"] %= G
    return [
        Rollouts(
            rolls.rows[b * G : (b + 1) * G],
            G,
            [base],
            events[of == b],
            rolls.logq[of == b],
            0 if b else rolls.forward_tokens,
        )
        for b, base in enumerate(rolls.base_logp)
    ]


def rollouts(q, pi, tok, snippets, G, think_max, seed, numbers, at_once, desc="", **how):
    """`rollout` for any number of snippets, at_once of them in a call, with a progress bar if that takes a while -> Rollouts. Ranks share the snippets
    out, and all get all rollouts."""
    snippets, numbers = parallel.shard(snippets), parallel.shard(numbers)
    parts = [
        rollout(
            q,
            pi,
            tok,
            snippets[i : i + at_once],
            G,
            think_max,
            seed,
            numbers=numbers[i : i + at_once],
            **how,
        )
        for i in tqdm(
            range(0, len(snippets), at_once),
            desc=desc,
            unit="batch",
            delay=2,
            leave=False,
            disable=len(snippets) <= at_once,
        )
    ]
    return merge(parallel.unshard([one for part in parts for one in split(part)]))


def draw_uniforms(seed, number, g, n_lines, think_max):
    """The randomness of rollout g of snippet `number`: (L,) for decisions, (L, think_max + 1) for tokens. seed: ints."""
    rng = np.random.default_rng([*seed, number, g])
    return rng.random(n_lines), rng.random((n_lines, think_max + 1))


# ---------------------------------------------------------------- what hidden states say


def decision_logp(net, hidden, at, tok):
    """Log-probabilities of <act> and of every token that begins a comment. hidden (M, D); at: for each row the indices of the states before its
    decisions -> for each row (decisions, 1 + H) float64."""
    which = torch.from_numpy(np.concatenate(at)).to(hidden.device)
    logp = decision_logprobs(hidden[which].float(), net.head, tok.thought_ids)  # (M, 1 + H)
    return np.split(logp.double().cpu().numpy(), np.cumsum([len(x) for x in at])[:-1])


# ---------------------------------------------------------------- rollouts


@torch.inference_mode()
def rollout(
    q,
    pi,
    tok,
    snippets,
    G,
    think_max,
    seed,
    rate=None,
    horizon=0,
    numbers=None,
    need="gains",
    states=False,
    window=0,
):
    """G rollouts of latents over each snippet -> Rollouts.

    q, pi      Transformers; pass the same one twice and each forward is done once.
    seed       a tuple of ints; numbers: one int a snippet (default its index), which with seed and g fixes its randomness.
    think_max  a thought's length in tokens at most, its `#` included.
    rate       probability of <think> before every line, instead of q's own (thoughts still come from q).
    horizon    the number of first lines that may take a thought; 0: all.
    need       latents: pi is not asked, line_logp and base_logp are NaN; rewards: they are known, a thought's gain is NaN; gains: all of it.
    states     whether to keep pi's states at the thoughts, for `estep.policy_gradient` with a KL; only where pi is another model and rewards are asked for.
    window     lines forwarded at once after a thought; 0: up to where the next thought is expected. The result does not depend on it.
    Raises ValueError if a snippet with the longest possible thoughts would not fit the model's max_len.
    """
    B, rewards = len(snippets), NEEDS.index(need) > 0
    scored = rewards and q is pi  # q's forwards are pi's: rewards on the way
    longest = [len(s.ids) + sum(think_max + len(sep) for sep in s.sep) + 1 for s in snippets]
    for b, (s, most) in enumerate(zip(snippets, longest)):
        if most > q.cfg.max_len:
            raise ValueError(
                f"snippet {s.name or b} may grow to {most} tokens with its thoughts; max_len is {q.cfg.max_len}"
            )
    decoder = Decoder(
        q, B * G, B, max(len(s.ids) for s in snippets), max(longest), 1.0, 1.0, (), tok.stop_ids
    )
    net, said, rows = Reader(q, decoder.layers, q.head_weight.float()), [], []
    base, begins, forwards = trunk(net, decoder.shared, snippets, tok, scored, decided=True)  # 1
    for b, s in enumerate(snippets):
        for g in range(G):
            uniforms, L = (
                draw_uniforms(
                    seed, b if numbers is None else numbers[b], g, len(s.first), think_max
                ),
                len(s.first),
            )
            rows.append(
                Row(
                    s,
                    b,
                    uniforms,
                    list(s.ids),
                    list(s.first),
                    base[b].copy(),
                    {},
                    np.zeros(L),
                    np.zeros(L),
                    np.zeros(L),
                    min(L, horizon or L),
                )
            )
    thinkers = thinking = [
        n
        for n, row in enumerate(rows)
        if decide(n, row, begins[row.group][: row.free], rate, tok, said)
    ]
    for row in (rows[n] for n in thinkers):
        row.prefix = row.known
        row.line_logp[row.next - 1 :] = 0 if scored else math.nan
    seats = Seats(decoder, rows)
    while thinking:
        forwards += think(seats, thinking, think_max, tok, said)  # 2
        thinking, count = go_on(net, seats, thinking, rate, tok, scored, window, said)  # 3
        forwards += count
    if rewards and not scored:  # 4, 5
        net, cache = (
            Reader(pi, packed(pi, pi.dtype), pi.head_weight.float()),
            pi.new_cache(B, max(len(s.ids) for s in snippets)),
        )
        base, _, count = trunk(net, cache, snippets, tok, scored=True)
        forwards += count
        for row in rows:
            row.line_logp[:] = base[row.group]
        forwards += finish(
            net, cache, [rows[n] for n in thinkers], base, tok, need == "gains", states
        )
    elif need == "gains":
        forwards += values(
            net,
            decoder.shared,
            decoder.own,
            seats.of[thinkers],
            [rows[n] for n in thinkers],
            base,
            tok,
        )
    if need != "gains":
        for row in rows:
            row.gain[list(row.thoughts)] = math.nan
    events = np.concatenate([events for events, _ in said])
    logq = np.concatenate([logq for _, logq in said])
    by_line = zip(events["row"].tolist(), events["line"].tolist(), logq.tolist(), strict=True)
    for n, t, log_probability in by_line:
        rows[n].logq[t] += log_probability
    order = np.argsort(events["row"], kind="stable")
    return Rollouts(rows, G, base, events[order], logq[order], forwards)


def trunk(net, cache, snippets, tok, scored=False, decided=False):
    """Forward the snippets into the rows of a cache, each without its last token, which predicts nothing -> (B x (L,) log pi of the lines or NaN,
    B x (L, H) log-probabilities of comments' first tokens before each line, or None; tokens)."""
    base, begins, count = (
        [np.full(len(s.first), math.nan) for s in snippets],
        [None] * len(snippets),
        0,
    )
    rows, zeros = np.arange(len(snippets)), np.zeros(len(snippets), int)
    for which, at, hidden in net.read(
        [s.ids[:-1] for s in snippets], zeros, keep=(cache, rows, zeros)
    ):
        some, count = [snippets[b] for b in which], count + len(hidden)
        if decided:
            for b, logp in zip(
                which,
                decision_logp(
                    net, hidden, [np.array(s.first) - 1 + a for s, a in zip(some, at)], tok
                ),
            ):
                begins[b] = logp
        if scored:
            pieces = [
                (s.ids, s.first, s.first[0] - 1, len(s.ids) - 1, a + s.first[0] - 1)
                for s, a in zip(some, at)
            ]
            for b, logp in zip(which, line_logprobs(net, hidden, pieces, tok)):
                base[b] = logp[: len(base[b])]
    return base, begins, count


def decide(n, row, logp, rate, tok, said):
    """Draw row n's next decisions in order, up to its first <think>. logp (lines, 1 + H) as from `decision_logp`. Returns whether it thinks."""
    act, logp = logp[:, 0], logp[:, 1:]  # (lines,), (lines, H)
    t, mass = row.next, np.logaddexp.reduce(logp, axis=1)  # (lines,) log P(<think>)
    row.p_think[t : t + len(mass)] = np.exp(mass) if rate is None else rate
    hits = np.flatnonzero(row.uniforms[0][t : t + len(mass)] < row.p_think[t : t + len(mass)])
    acts = int(hits[0]) if len(hits) else len(mass)
    events = [(n, row.first[s], ACT, s, row.ids[row.first[s]]) for s in range(t, t + acts)]
    logq = act[:acts]
    row.next = t + acts
    if len(hits):
        pick_from = np.cumsum(np.exp(logp[acts] - mass[acts]))
        k = min(
            int(
                np.searchsorted(
                    pick_from, row.uniforms[1][row.next, 0] * pick_from[-1], side="right"
                )
            ),
            len(pick_from) - 1,
        )
        row.thoughts[row.next] = [tok.thought_ids[k]]
        events.append((n, row.first[row.next], FIRST, row.next, tok.thought_ids[k]))
        logq = np.append(logq, logp[acts, k])
        row.known = row.first[row.next]
        row.next += 1
    said.append((np.array(events, EVENT), logq))
    return len(hits) > 0


class Seats:
    """Which row sits where in the decoder."""

    def __init__(self, decoder, rows):
        self.decoder, self.rows = decoder, rows
        self.of, self.who = (
            np.arange(len(rows)),
            np.arange(len(rows)),
        )  # seat of a row, row of a seat
        if decoder.exact:
            decoder.shared.fit(
                decoder.round(max(row.prefix for row in rows) or 1)
            )  # of the trunk only what is still read
        decoder.Sp, decoder.slot_of = (
            decoder.shared.slots,
            {b: b for b in {row.group for row in rows if row.prefix}},
        )

    def front(self, some):
        """Give some rows the first seats -> those rows, by seat."""
        self.who = self.who[self.decoder.front(self.of[some].tolist())]
        self.of[self.who] = np.arange(len(self.who))
        prompt_of = np.full(self.decoder.bucket(len(some)), -1)
        prompt_of[: len(some)] = [self.rows[n].group for n in self.who[: len(some)]]
        self.decoder.arrange(prompt_of)
        return self.who[: len(some)]


def think(seats, thinking, think_max, tok, said):
    """Decode the thoughts that some rows have begun, token by token, all rows at once, and write them into their ids. `known` moves behind what the
    cache holds. Returns the number of tokens forwarded. A thought of the greatest length ends by itself, and so does one with a closing token: no event."""
    decoder, rows, stop, closing, forwards = (
        seats.decoder,
        seats.rows,
        np.array(tok.stop_ids),
        np.array(tok.closing_ids),
        0,
    )
    live = seats.front(thinking)
    every = [rows[n] for n in seats.who]  # idle seats may write behind what they know
    own = np.array([row.known - row.prefix for row in every])
    most = int(own.max()) + think_max + 1
    decoder.reserve(most)
    put = lambda x: torch.from_numpy(np.ascontiguousarray(x)).to(decoder.model.device)
    decoder.length[:], decoder.count[:] = (
        put(np.array([max(1, row.prefix) for row in every])),
        put(own + 1),
    )
    decoder.token[: len(live)] = put(
        np.array([row.thoughts[row.next - 1][0] for row in every[: len(live)]])
    )
    uniforms = np.stack(
        [row.uniforms[1][row.next - 1, 1:think_max] for row in every[: len(live)]]
    ).astype(np.float32)  # (B, think_max - 1)
    where = own[: len(live), None] + 1 + np.arange(think_max - 1)
    decoder.uniforms[put(np.arange(len(live)))[:, None], put(where)] = put(uniforms)
    going = np.ones(len(live), bool)
    for k in range(1, think_max):
        token, logq = decoder.next(most)[:, : len(live)]
        token, forwards = token.astype(np.int64), forwards + int(going.sum())
        done, n = np.isin(token, stop)[going], live[going]
        line = np.array([rows[i].next - 1 for i in n])
        first = np.array([rows[i].first[t] for i, t in zip(n, line)])
        events = np.zeros(len(n), EVENT)
        events["row"] = n
        events["position"] = first + k
        events["kind"] = np.where(done, END, TOKEN)
        events["line"] = line
        events["token"] = token[going]
        said.append((events, logq[going]))
        for i, t, x in zip(n[~done], line[~done], token[going][~done].tolist()):
            rows[i].thoughts[t].append(x)
        going[going] = ~(done | np.isin(token[going], closing))
        if not going.any():
            break
        if 4 * going.sum() <= 3 * decoder.B and decoder.bucket(int(going.sum())) < decoder.B:
            live = seats.front(live[going])
            going = np.ones(len(live), bool)
    for row in (rows[n] for n in thinking):
        t = row.next - 1
        z = row.thoughts[t]
        row.known += len(z) - ends_itself(tok, z, think_max)  # the last token of these was not read
        insert = inserted(tok, z, row.snip.sep[t])
        row.ids[row.first[t] : row.first[t]] = insert
        row.first[t:] = [f + len(insert) for f in row.first[t:]]
    return forwards


def until(row, scored, window):
    """How many of a row's ids to forward for now: to before its next thought, if one is expected; or to its last decision; if scored, to its end."""
    expected = np.flatnonzero(
        row.uniforms[0][row.next : row.free] < row.p_think[row.next : row.free]
    )
    t = row.next + (window - 1 if window else expected[0] if len(expected) else row.free)
    return (
        row.first[t]
        if t < row.free
        else len(row.ids) - 1
        if scored
        else row.first[row.free - 1]
        if row.next < row.free
        else 0
    )


def go_on(net, seats, some, rate, tok, scored, window, said):
    """Take rows from behind a thought to the next one or to their end -> (rows that think, tokens forwarded)."""
    decoder, rows, thinking, count = seats.decoder, seats.rows, [], 0
    while True:
        ends = {n: until(rows[n], scored, window) for n in some}
        some = [n for n in some if ends[n] > rows[n].known]
        if not some:
            return thinking, count
        decoder.reserve(max(ends[n] - rows[n].prefix for n in some))
        begin, prefix = (
            np.array([rows[n].known for n in some]),
            np.array([rows[n].prefix for n in some]),
        )
        mine = decoder.own, seats.of[some], begin - prefix
        seen = [(decoder.shared, [rows[n].group for n in some], prefix), mine]
        going = []
        for which, at, hidden in net.read(
            [rows[n].ids[rows[n].known : ends[n]] for n in some], begin, seen, mine
        ):
            where, pieces, part, count = [], [], [some[i] for i in which], count + len(hidden)
            for n, a in zip(part, at):
                row = rows[n]
                where.append(
                    np.array(
                        [f for f in row.first[row.next : row.free] if f <= ends[n]], dtype=np.int64
                    )
                    - 1
                    - row.known
                    + a
                )
            for n, a, logp in zip(part, at, decision_logp(net, hidden, where, tok)):
                row, known = rows[n], rows[n].known
                lo = max(known, row.first[row.next - 1] - 1)  # the first state that predicts code
                thinks = decide(n, row, logp, rate, tok, said)
                if not thinks:
                    row.known = ends[n]
                (thinking if thinks else going).append(n)
                pieces.append((row.ids, row.first, lo, row.known - thinks, a + lo - known))
            if scored:
                for n, logp in zip(part, line_logprobs(net, hidden, pieces, tok)):
                    rows[n].line_logp += logp[: len(rows[n].first)]
        some = going


# ---------------------------------------------------------------- rewards and values


def begin_of(tok, row, t):
    """Where in a finished row's ids the thought before line t begins."""
    return row.first[t] - len(inserted(tok, row.thoughts[t], row.snip.sep[t]))


def finish(net, cache, rows, base, tok, gains, states):
    """Likelihoods, and gains and states if wanted, of finished rows that think, on the trunk's cache. base: B x (L,). Returns the number of tokens
    forwarded."""
    count = 0
    for chosen in batches(np.array([len(row.ids) - row.prefix for row in rows]), 4 * 4096):
        part = [rows[i] for i in chosen]
        at, prefix, sizes = (
            np.arange(len(part)),
            np.array([row.prefix for row in part]),
            [len(row.ids) - 1 - row.prefix for row in part],
        )
        own = net.model.new_cache(len(part), max(sizes)) if gains else None
        for which, offsets, hidden in net.read(
            [row.ids[row.prefix : -1] for row in part],
            prefix,
            [(cache, [row.group for row in part], prefix)],
            (own, at, np.zeros(len(part), int)) if gains else None,
        ):
            pieces, of, count = [], [], count + len(hidden)
            for i, a in zip(which, offsets):
                row, lines = part[i], sorted(part[i].thoughts)
                row.line_logp[lines[0] :] = 0
                for t, after in zip(
                    lines, [begin_of(tok, row, s) for s in lines[1:]] + [len(row.ids)]
                ):
                    pieces.append(
                        (
                            row.ids,
                            row.first,
                            row.first[t] - 1,
                            after - 1,
                            a + row.first[t] - 1 - row.prefix,
                        )
                    )
                    of.append(row)
                    if states:
                        begin = a + begin_of(tok, row, t) - row.prefix
                        row.states[t] = hidden[begin : begin + len(row.thoughts[t])].to(
                            "cpu", net.model.dtype, copy=True
                        )
            for row, logp in zip(of, line_logprobs(net, hidden, pieces, tok)):
                row.line_logp += logp[: len(row.first)]
        if gains:
            count += values(net, cache, own, at, part, base, tok)
    return count


def values(net, cache, own, at, rows, base, tok):
    """gain_t of the thoughts of some finished rows, whose keys are in the rows `at` of the cache `own`. Returns the number of tokens forwarded."""
    lines, count = [sorted(row.thoughts) for row in rows], 0
    V = {
        (i, t): base[row.group][t:].sum()
        for i, (row, ts) in enumerate(zip(rows, lines))
        for t in ts[:1]
    }  # before the thought at t
    later = [(i, t) for i, ts in enumerate(lines) for t in ts[1:]]
    if later:
        i = np.array([i for i, _ in later])
        begin, prefix = (
            np.array([begin_of(tok, rows[i], t) - 1 for i, t in later]),
            np.array([row.prefix for row in rows])[i],
        )
        ids = [
            [rows[i].ids[b]] + rows[i].snip.ids[rows[i].snip.first[t] :]
            for (i, t), b in zip(later, begin)
        ]  # code on from line t, and a token before
        seen = [
            (cache, np.array([row.group for row in rows])[i], prefix),
            (own, at[i], begin - prefix),
        ]
        for which, offsets, hidden in net.read([x[:-1] for x in ids], begin, seen):
            pieces, count = [], count + len(hidden)
            for j, a in zip(which, offsets):
                first = rows[later[j][0]].snip.first[later[j][1] :]
                pieces.append((ids[j], [f - first[0] + 1 for f in first], 0, len(ids[j]) - 1, a))
            for j, logp in zip(which, line_logprobs(net, hidden, pieces, tok)):
                V[later[j]] = logp.sum()
    for i, (row, ts) in enumerate(zip(rows, lines)):
        for t, after in zip(ts, ts[1:] + [None]):
            row.gain[t] = row.line_logp[t:after].sum() + V.get((i, after), 0.0) - V[i, t]
    return count
