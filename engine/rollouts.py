"""Rollouts of latents over given expert lines: line-by-line sampling in few, large forward passes.

    before line t:  u_t < P_q(`#` | s_t, z_<t)  ?  <think>, a comment token by token  :  <act>
    then the expert's line, whatever it is
    V(prefix) = sum over the lines left of log pi(a_s | prefix, no thought from here on)
    gain_t    = V(s_t, z_<=t) - V(s_t, z_<t)                                      (gain, nats)

`rollout` gives what estep.py computes by definition. Code is never decoded, and all uniforms are
drawn beforehand. So:

1. *Trunk.* One forward pass per snippet, without thoughts, gives the probability of every decision
   and the likelihood of every line. Up to its first thought each rollout is the trunk. Its keys are
   never copied: a row attends to the trunk's up to its first thought.
2. *Thoughts* of all rows that begin one, over all snippets, are decoded as one batch (decoder.py).
3. *Lines.* After a thought, many code lines run in one forward pass: up to the first line where u_t
   is below the latest estimate of P(think). The pass gives the true P(think) of these lines. If one
   of them turns out to be <think>, everything computed after it is thrown away; otherwise the next
   lines follow. A wrong guess costs time and changes no result. Then 2 again, until no row thinks.
4. *Rewards*, when all latents are known: one forward pass of pi over each row from its first
   thought on, again on the trunk's keys. Where q is pi, 1 to 3 have computed them. The pass crosses
   the thoughts too: pi's hidden states there can be stored, for KL(q || pi).
5. *Gains*, if wanted: for each thought but a row's first, one forward pass over the code from its
   line on, on the keys of the trunk and of the finished row. V before the first thought of a row is
   the trunk's; V after its last thought is the row's own.

A forward pass takes rows of like length together, and its matrix products see no padding. Its cost
is counted: `forward_tokens`.

In bfloat16 a likelihood depends a little on the shapes of the forward pass. Trunk, rows and values
go through the same function (`Reader.read`), with the same stacked weights, a float32 residual
stream and a float32 head. With random weights the shape then makes no difference (NOISE in
speed/estep.py); with real weights this was not measured.

Shapes: B snippets, G rollouts each, N = B*G rows, L lines, H tokens that begin a comment, D width,
M events (a decision, a token of a thought, its end).
"""

import dataclasses
import functools
import math
import typing

import numpy as np
import torch

from config import progress_bar, seed_of
from data import ends_itself, inserted
from elbo import code_logprobs_apart, code_tokens, decision_logprobs, reward
from engine import parallel
from engine.decoder import Decoder, decoder_for
from engine.machine import download, rows_at_once, upload
from engine.reader import Reader, device_batches

# kinds of events: <act>; the first token of a thought; a further token; its end
ACT, FIRST, TOKEN, END = range(4)
EVENT = np.dtype([(name, np.int64) for name in ("row", "position", "kind", "line", "token")])


@dataclasses.dataclass
class Row:
    """One rollout, in the making or finished."""

    snip: object
    group: int  # index of its snippet in the Rollouts
    uniforms: tuple  # (L,) for the decisions, (L, think_max + 1) for the tokens of thoughts
    ids: list  # as known so far: thoughts, and the remaining code without thoughts
    first: list  # (L,) index in ids of each line's content, where its decision falls
    line_logp: np.ndarray  # (L,) log pi(a_t | s_t, z_t), nats; NaN if not asked for
    thoughts: dict  # line -> token ids
    gain: np.ndarray  # (L,) nats; 0 for <act>; NaN for thoughts if not asked for
    logq: np.ndarray = None  # (L,) log q(z_t | s_t, z_<t), nats; 0 for lines behind the horizon
    p_think: np.ndarray = None  # (L,) the latest estimate of P(think)
    free: int = 0  # the first lines, that may take a thought
    next: int = 0  # the first line that is not decided yet
    prefix: int = 0  # tokens of the trunk that it attends to: up to its first thought
    known: int = 0  # tokens of ids whose keys q has
    # line -> (n, D), on the CPU: pi's states behind each token of its thought, if asked for
    states: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Rollouts:
    """Finished rollouts of B snippets."""

    rows: list  # N Rows, the G rollouts of a snippet next to each other
    G: int
    base_logp: list  # B arrays (L,): log pi of the lines without any thought
    # (M,) of dtype EVENT; position: index in the row's ids of the token that the event predicts
    events: np.ndarray
    logq: np.ndarray  # (M,) log q of each event, recorded while sampling
    # tokens that went through q or pi: discarded ones too, padding and ended rows not
    forward_tokens: int

    def lines(self, field):
        """A field of the rows as one array (N, Lmax), zeros where a row has no such line.

        field: a function, row -> (L,).
        """
        out = np.zeros((len(self.rows), max(len(row.first) for row in self.rows)))
        for n, row in enumerate(self.rows):
            out[n, : len(row.first)] = field(row)
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
    def think(self):
        """Lines with a thought: (N, Lmax) bool."""
        return self.lines(lambda row: [t in row.thoughts for t in range(len(row.first))]) > 0

    @property
    def valid(self):
        """Lines that there are: (N, Lmax) bool."""
        return self.lines(lambda row: np.ones(len(row.first))) > 0


def merge(parts):
    """Rollouts of several snippets or batches of snippets, with the same G, as one."""
    before = np.cumsum([0] + [len(p.rows) for p in parts])  # rows before those of each part
    events = np.concatenate([p.events for p in parts])
    events["row"] += np.repeat(before[:-1], [len(p.events) for p in parts])
    rows = [row for p in parts for row in p.rows]
    for n, row in enumerate(rows):
        row.group = n // parts[0].G
    return Rollouts(
        rows=rows,
        G=parts[0].G,
        base_logp=[base for p in parts for base in p.base_logp],
        events=events,
        logq=np.concatenate([p.logq for p in parts]),
        forward_tokens=sum(p.forward_tokens for p in parts),
    )


def split(rolls):
    """The inverse of `merge`: Rollouts of one snippet each.

    The forward passes, which they shared, count as the first one's.
    """
    G = rolls.G
    group = rolls.events["row"] // G  # (M,)
    events = rolls.events.copy()
    events["row"] %= G
    return [
        Rollouts(
            rows=rolls.rows[b * G : (b + 1) * G],
            G=G,
            base_logp=[base],
            events=events[group == b],
            logq=rolls.logq[group == b],
            forward_tokens=0 if b else rolls.forward_tokens,
        )
        for b, base in enumerate(rolls.base_logp)
    ]


def rollouts(q, pi, tok, snippets, G, think_max, seed, *, numbers, at_once, desc="", **settings):
    """`rollout` for any number of snippets, at_once of them in a call -> Rollouts.

    A progress bar appears if that takes long. Under torchrun each rank works on its share of the
    snippets, and all ranks get all rollouts. settings: those of `rollout`.
    """
    snippets = parallel.shard(snippets)
    numbers = parallel.shard(numbers)
    parts = []
    starts = range(0, len(snippets), at_once)
    silent = len(snippets) <= at_once
    for i in progress_bar(starts, desc=desc, unit="batch", delay=2, leave=False, disable=silent):
        batch = snippets[i : i + at_once]
        settings["numbers"] = numbers[i : i + at_once]
        parts += split(rollout(q, pi, tok, batch, G, think_max, seed, **settings))
    return merge(parallel.unshard(parts))


def draw_uniforms(seed, number, g, n_lines, think_max):
    """The randomness of rollout g of snippet `number`. seed: the beginning of one, as ints.

    (L,) for decisions, (L, think_max + 1) for tokens.
    """
    rng = np.random.default_rng(seed_of(*seed, number, g))
    return rng.random(n_lines), rng.random((n_lines, think_max + 1))


# ---------------------------------------------------------------- rollout


@torch.inference_mode()
def rollout(
    q,
    pi,
    tok,
    snippets,
    G,
    think_max,
    seed,
    *,
    rate=None,
    horizon=0,
    numbers=None,
    need="gains",
    states=False,
    window=0,
):
    """G rollouts of latents over each snippet -> Rollouts.

    q, pi      Transformers; pass the same one twice, and each forward pass runs once
    think_max  tokens of a thought at most, its `#` included
    seed       a tuple of ints. With it, the number of a snippet and g fix the randomness
    rate       probability of <think> before every line, instead of q's own; q writes the thoughts
    horizon    the first lines, that may take a thought; 0: all
    numbers    one int per snippet (default: its index)
    need       latents: pi is not run, line_logp and base_logp are NaN; rewards: the gain of a
               thought is NaN; gains: everything
    states     store pi's states at the thoughts, for `gradients.policy_gradient` with a KL. Only
               where pi is another model and rewards are asked for
    window     lines run at once after a thought; 0: up to the next expected thought. The result
               does not depend on it

    Raises ValueError if a snippet with the longest possible thoughts does not fit max_len.
    """
    longest = check_lengths(q, snippets, think_max)
    trunk_length = max(len(s.ids) for s in snippets)
    synonyms = list(tok.stop_ids)
    decoder = decoder_for(
        q, len(snippets) * G, len(snippets), trunk_length, longest, synonyms=synonyms
    )
    rewards = need != "latents"
    rows = new_rows(snippets, G, think_max, seed, numbers, horizon)
    sampling = Sampling(
        reader=Reader(q, decoder.weights.layers),
        decoder=decoder,
        rows=rows,
        tok=tok,
        think_max=think_max,
        rate=rate,
        window=window,
        scored=rewards and q is pi,
    )
    base = sample_latents(sampling, snippets)
    tokens = sampling.forward_tokens
    thinkers = [n for n, row in enumerate(rows) if row.thoughts]
    gains = need == "gains"
    if rewards and q is not pi:
        base, count = score_rows(Reader(pi), tok, snippets, rows, gains, states)
        tokens += count
    elif gains and thinkers:
        context = decoder_context(sampling)
        tokens += set_gains(sampling.reader, tok, [rows[n] for n in thinkers], base, context)
    if not gains:
        for row in rows:
            row.gain[list(row.thoughts)] = math.nan
    return sampling.finished(G, base, tokens)


def check_lengths(q, snippets, think_max):
    """The length of the longest snippet with the longest possible thoughts.

    Raises ValueError if it does not fit the model's max_len.
    """
    longest = 0
    for b, s in enumerate(snippets):
        length = len(s.ids) + sum(think_max + len(sep) for sep in s.sep) + 1
        if length > q.cfg.max_len:
            raise ValueError(
                f"snippet {s.name or b} may grow to {length} tokens with its thoughts; "
                f"max_len is {q.cfg.max_len}"
            )
        longest = max(longest, length)
    return longest


def rows_of_rollouts(model, snippets, think_max):
    """Rows of a batch of rollouts over these snippets, as `rows_at_once` has them."""
    cfg = model.cfg
    kv = 2 * cfg.n_layer * cfg.n_kv_head * (cfg.d_model // cfg.n_head) * model.dtype.itemsize
    longest = check_lengths(model, snippets, think_max)
    return rows_at_once(model.device, kv * longest)


def new_rows(snippets, G, think_max, seed, numbers, horizon):
    """The Rows of G rollouts of each snippet, before anything is drawn."""
    rows = []
    for b, s in enumerate(snippets):
        number = b if numbers is None else numbers[b]
        L = len(s.first)
        for g in range(G):
            rows.append(
                Row(
                    snip=s,
                    group=b,
                    uniforms=draw_uniforms(seed, number, g, L, think_max),
                    ids=list(s.ids),
                    first=list(s.first),
                    line_logp=np.full(L, math.nan),
                    thoughts={},
                    gain=np.zeros(L),
                    logq=np.zeros(L),
                    p_think=np.zeros(L),
                    free=min(L, horizon or L),
                )
            )
    return rows


@dataclasses.dataclass
class Sampling:
    """What the steps of sampling share, and what they record."""

    reader: Reader  # of q
    decoder: Decoder
    rows: list
    tok: object
    think_max: int
    rate: float | None
    window: int
    scored: bool  # q is pi, and likelihoods are wanted: they come on the way
    events: list = dataclasses.field(default_factory=list)  # arrays of dtype EVENT
    logq: list = dataclasses.field(default_factory=list)  # arrays, as long as those
    forward_tokens: int = 0

    def record(self, events, logq):
        self.events.append(events)
        self.logq.append(logq)

    def finished(self, G, base, forward_tokens):
        """The Rollouts, with events in the order of rows; sets logq of each row's lines."""
        events = np.concatenate(self.events)
        logq = np.concatenate(self.logq)
        for n, t, event_logq in zip(events["row"], events["line"], logq, strict=True):
            self.rows[n].logq[t] += event_logq
        order = np.argsort(events["row"], kind="stable")
        return Rollouts(self.rows, G, base, events[order], logq[order], forward_tokens)


def sample_latents(sampling, snippets):
    """Draw the latents of all rows -> log pi of the lines of each snippet without thoughts.

    Where sampling.scored is not set, these are NaN, and so is line_logp of the rows.
    """
    rows = sampling.rows
    decoder = sampling.decoder
    trunk = read_trunk(
        sampling.reader, decoder.shared, snippets, sampling.tok, sampling.scored, decided=True
    )
    sampling.forward_tokens += trunk.tokens
    thinking = []
    for n, row in enumerate(rows):
        row.line_logp[:] = trunk.line_logp[row.group]
        if decide(sampling, n, trunk.decisions[row.group][: row.free]):
            row.prefix = row.known
            row.line_logp[row.next - 1 :] = 0 if sampling.scored else math.nan
            thinking.append(n)
    groups = np.array([row.group for row in rows])
    decoder.share(groups, np.array([row.prefix for row in rows]))
    while thinking:
        write_thoughts(sampling, thinking)
        thinking = read_lines(sampling, thinking)
    return trunk.line_logp


class Trunk(typing.NamedTuple):
    """What the forward passes over snippets without thoughts give."""

    line_logp: list  # B arrays (L,): log pi of the lines, or NaN
    decisions: list  # B arrays (L, 1 + H) as from `decision_logp`, or None
    tokens: int


def read_trunk(reader, cache, snippets, tok, scored=False, decided=False):
    """Run snippets into the rows of a cache -> Trunk.

    The last token of a snippet, which predicts nothing, is left out.
    """
    line_logp = [np.full(len(s.first), math.nan) for s in snippets]
    decisions = [None] * len(snippets)
    tokens = 0
    zeros = np.zeros(len(snippets), int)
    target = cache, np.arange(len(snippets)), zeros
    looks, lines = Look(), Look()
    for numbers, offsets, hidden in reader.read([s.ids[:-1] for s in snippets], zeros, keep=target):
        batch = [snippets[b] for b in numbers]
        tokens += len(hidden)
        if decided:
            before = [np.array(s.first) - 1 + o for s, o in zip(batch, offsets, strict=True)]
            looks.add(numbers, *decision_logp(reader, hidden, before, tok))
        if scored:
            pieces = [
                Piece(s.ids, s.first, s.first[0] - 1, len(s.ids) - 1, o + s.first[0] - 1)
                for s, o in zip(batch, offsets, strict=True)
            ]
            lines.add(numbers, *piece_logp(reader, hidden, pieces, tok))
    for b, logp in looks.values():
        decisions[b] = logp
    for b, logp in lines.values():
        line_logp[b] = logp[: len(line_logp[b])]
    return Trunk(line_logp, decisions, tokens)


class Look:
    """What is computed on the device for the host: fetched by one copy, when all is queued."""

    def __init__(self):
        self.names = []
        self.tensors = []
        self.readings = []

    def add(self, names, tensor, reading):
        """reading: the function of the tensor as an array that gives a value for each name."""
        self.names.append(names)
        self.tensors.append(tensor)
        self.readings.append(reading)

    def values(self):
        """Yields (name, value). Waits for the device, if anything was added."""
        arrays = download(*self.tensors) if self.tensors else []
        for names, array, reading in zip(self.names, arrays, self.readings, strict=True):
            yield from zip(names, reading(array), strict=True)


class Piece(typing.NamedTuple):
    """A stretch of code in a row, and where its hidden states are: `elbo.line_logprobs`."""

    ids: list  # of the row
    first: list  # where its lines begin
    begin: int  # its states are those of tokens begin to end - 1: they predict the tokens after
    end: int
    offset: int  # of the state of token `begin`


def decision_logp(reader, hidden, before, tok):
    """Log-probabilities of <act> and of every token that begins a comment, for a `Look`.

    hidden (M, D); before: for each row the indices of the states before its decisions. The value
    of a row is (decisions, 1 + H) float64.
    """
    (states,) = upload(hidden.device, np.concatenate(before))
    logp = decision_logprobs(hidden[states].float(), reader.head, tok.thought_ids)  # (M, 1 + H)
    ends = np.cumsum([len(x) for x in before])
    return logp, functools.partial(np.split, indices_or_sections=ends[:-1])


def piece_logp(reader, hidden, pieces, tok):
    """`elbo.line_logprobs` for a `Look`. The value of a piece is (Lmax,)."""
    code = code_tokens(pieces)
    targets, states, first, further = upload(hidden.device, *code[:4])
    states = hidden[states].float()  # (tokens, D)
    logp = code_logprobs_apart(states, reader.head, targets, first, further, tok.thought_ids)
    return logp, code.sum_lines


def decide(sampling, n, logp):
    """Draw the next decisions of row n in order, up to its first <think> -> whether it thinks.

    logp (lines, 1 + H), as from `decision_logp`.
    """
    row = sampling.rows[n]
    u_decision, u_token = row.uniforms
    act = logp[:, 0]  # (lines,)
    opening = logp[:, 1:]  # (lines, H)
    log_think = np.logaddexp.reduce(opening, axis=1)  # (lines,)
    here = slice(row.next, row.next + len(logp))
    row.p_think[here] = np.exp(log_think) if sampling.rate is None else sampling.rate
    hits = np.flatnonzero(u_decision[here] < row.p_think[here])
    acts = int(hits[0]) if len(hits) else len(logp)
    events = [
        (n, row.first[t], ACT, t, row.ids[row.first[t]]) for t in range(row.next, row.next + acts)
    ]
    logq = act[:acts]
    row.next += acts
    if len(hits):
        cdf = np.cumsum(np.exp(opening[acts] - log_think[acts]))
        k = int(np.searchsorted(cdf, u_token[row.next, 0] * cdf[-1], side="right"))
        k = min(k, len(cdf) - 1)
        token = sampling.tok.thought_ids[k]
        row.thoughts[row.next] = [token]
        row.known = row.first[row.next]
        events.append((n, row.known, FIRST, row.next, token))
        logq = np.append(logq, opening[acts, k])
        row.next += 1
    sampling.record(np.array(events, EVENT), logq)
    return len(hits) > 0


# ---------------------------------------------------------------- thoughts and lines


def write_thoughts(sampling, thinking):
    """Decode the thoughts that rows have begun, all rows at once, and write them into their ids.

    A thought of maximal length, or with a closing token, has no end event.
    """
    rows = sampling.rows
    decoder = sampling.decoder
    think_max = sampling.think_max
    thinking = np.array(thinking)
    line = np.array([row.next - 1 for row in rows])  # (N,)
    known = np.array([row.known - row.prefix for row in rows])  # (N,)
    tokens = np.array([rows[n].thoughts[line[n]][0] for n in thinking])
    uniforms = np.stack([rows[n].uniforms[1][line[n], 1:think_max] for n in thinking])
    decoder.start(thinking, tokens, uniforms, known)
    going = thinking
    k = 1  # tokens of each thought so far
    while len(going) and k < think_max:
        decoder.keep(going)
        steps = decoder.next(going, min(decoder.look, think_max - k))
        goes_on = np.ones(len(going), bool)
        for tokens, logq in zip(*steps, strict=True):
            here = goes_on.copy()  # others have ended since the last look
            goes_on[here] = add_tokens(sampling, going[here], line, k, tokens[here], logq[here])
            k += 1
        going = going[goes_on]
    for n in thinking:
        insert_thought(sampling, rows[n])


def add_tokens(sampling, going, line, k, tokens, logq):
    """Add token k to the thoughts of rows, or their ends -> which thoughts go on, (n,) bool.

    going (n,): the rows. line (N,): of each row, the line that its thought stands before.
    """
    rows = sampling.rows
    sampling.forward_tokens += len(going)
    ended = np.isin(tokens, sampling.tok.stop_ids)
    events = np.zeros(len(going), EVENT)
    events["row"] = going
    events["position"] = [rows[n].first[line[n]] + k for n in going]
    events["kind"] = np.where(ended, END, TOKEN)
    events["line"] = line[going]
    events["token"] = tokens
    sampling.record(events, logq)
    for n, token in zip(going[~ended], tokens[~ended].tolist(), strict=True):
        rows[n].thoughts[line[n]].append(token)
    return ~(ended | np.isin(tokens, sampling.tok.closing_ids))


def insert_thought(sampling, row):
    """Write the last thought of a row into its ids. `known` moves behind what the cache holds."""
    t = row.next - 1
    thought = row.thoughts[t]
    # a thought that ended by itself has a last token that was not run
    row.known += len(thought) - ends_itself(sampling.tok, thought, sampling.think_max)
    insert = inserted(sampling.tok, thought, row.snip.sep[t])
    row.ids[row.first[t] : row.first[t]] = insert
    row.first[t:] = [f + len(insert) for f in row.first[t:]]


def read_lines(sampling, going):
    """Take rows from behind a thought to their next one or to their end -> rows that think."""
    rows = sampling.rows
    thinking = []
    while True:
        ends = {n: read_until(sampling, rows[n]) for n in going}
        going = np.array([n for n in going if ends[n] > rows[n].known], dtype=np.int64)
        if not len(going):
            return thinking
        begin = np.array([rows[n].known for n in going])
        prefix = np.array([rows[n].prefix for n in going])
        reach = max(ends[n] - rows[n].prefix for n in going)
        context = sampling.decoder.context(going, begin - prefix, reach)
        chunks = [rows[n].ids[rows[n].known : ends[n]] for n in going]
        batches = list(sampling.reader.read(chunks, begin, context, context[1]))
        going = decide_batches(sampling, going, ends, batches, thinking)


def decide_batches(sampling, going, ends, batches, thinking):
    """Draw the decisions of rows whose lines were read -> rows that do not think.

    ends: up to where each row was read; batches: of `Reader.read`. Rows that think are appended to
    `thinking`. Likelihoods come in the same passes, where they are wanted.
    """
    rows = sampling.rows
    reader = sampling.reader
    tok = sampling.tok
    decisions, lines = Look(), Look()
    for numbers, offsets, hidden in batches:
        sampling.forward_tokens += len(hidden)
        batch = going[numbers]
        before = [
            lines_before(rows[n], ends[n]) - 1 - rows[n].known + offset
            for n, offset in zip(batch, offsets, strict=True)
        ]
        decisions.add(batch, *decision_logp(reader, hidden, before, tok))
    logps = dict(decisions.values())
    acting = []
    for numbers, offsets, hidden in batches:
        batch = going[numbers]
        pieces = []
        for n, offset in zip(batch, offsets, strict=True):
            thinks, piece = decide_lines(sampling, n, ends[n], offset, logps[n])
            pieces.append(piece)
            (thinking if thinks else acting).append(n)
        if sampling.scored:
            lines.add(batch, *piece_logp(reader, hidden, pieces, tok))
    for n, logp in lines.values():
        rows[n].line_logp += logp[: len(rows[n].first)]
    return acting


def read_until(sampling, row):
    """Up to which of a row's ids to run for now; 0: none are left.

    That is the decision where the next thought is expected, or else the row's last decision; its
    end, if likelihoods are wanted.
    """
    t = row.next + sampling.window - 1
    if not sampling.window:
        undecided = slice(row.next, row.free)
        expected = np.flatnonzero(row.uniforms[0][undecided] < row.p_think[undecided])
        t = row.next + expected[0] if len(expected) else row.free
    if t < row.free:
        return row.first[t]
    if sampling.scored:
        return len(row.ids) - 1
    return row.first[row.free - 1] if row.next < row.free else 0


def lines_before(row, end):
    """The decisions of a row, not drawn yet, before token `end` or at it: indices in its ids."""
    decisions = [f for f in row.first[row.next : row.free] if f <= end]
    return np.array(decisions, dtype=np.int64)


def decide_lines(sampling, n, end, offset, logp):
    """Draw the decisions of row n among tokens that were run, from `known` to `end`.

    Moves `known` to the next thought, or else to `end`. Returns whether the row thinks, and the
    Piece of code up to there.
    """
    row = sampling.rows[n]
    begin = max(row.known, row.first[row.next - 1] - 1)  # the first state that predicts code
    offset += begin - row.known
    thinks = decide(sampling, n, logp)
    if not thinks:
        row.known = end
    return thinks, Piece(row.ids, row.first, begin, row.known - thinks, offset)


# ---------------------------------------------------------------- rewards and gains


def begin_of(tok, row, t):
    """Where in a finished row's ids the thought before line t begins."""
    return row.first[t] - len(inserted(tok, row.thoughts[t], row.snip.sep[t]))


class Context(typing.NamedTuple):
    """The caches with the keys of finished rows."""

    trunk: object  # Cache of the snippets, a row per group
    own: object  # Cache of rows from their first thoughts on
    slots: np.ndarray  # (rows,) the row of `own` of each row


def decoder_context(sampling):
    """The Context of the rows that think: what the decoder has of them."""
    thinkers = np.array([n for n, row in enumerate(sampling.rows) if row.thoughts])
    (trunk, *_), (own, slots, _) = sampling.decoder.context(thinkers, None, 0)
    return Context(trunk, own, slots)


def score_rows(reader, tok, snippets, rows, gains, states):
    """Score finished rows with pi: likelihoods, and gains and states if wanted.

    Returns (log pi of the lines of each snippet without thoughts, tokens run).
    """
    cache = reader.model.new_cache(len(snippets), max(len(s.ids) for s in snippets))
    base, _, tokens = read_trunk(reader, cache, snippets, tok, scored=True)
    for row in rows:
        row.line_logp[:] = base[row.group]
    thinkers = [row for row in rows if row.thoughts]
    sizes = np.array([len(row.ids) - row.prefix for row in thinkers])
    for numbers in device_batches(sizes, reader.model.device, times=4):
        batch = [thinkers[i] for i in numbers]
        context = Context(cache, None, np.arange(len(batch)))
        if gains:
            longest = max(len(row.ids) - 1 - row.prefix for row in batch)
            context = context._replace(own=reader.model.new_cache(len(batch), longest))
        tokens += score_thinkers(reader, tok, batch, context, states)
        if gains:
            tokens += set_gains(reader, tok, batch, base, context)
    return base, tokens


def score_thinkers(reader, tok, rows, context, states):
    """Likelihoods of rows from their first thoughts on, and pi's states there if wanted.

    New keys go to context.own, if there is one. Returns the number of tokens run.
    """
    tokens = 0
    prefix = np.array([row.prefix for row in rows])
    seen = [(context.trunk, [row.group for row in rows], prefix)]
    target = context.own and (context.own, context.slots, np.zeros(len(rows), int))
    chunks = [row.ids[row.prefix : -1] for row in rows]
    lines, thoughts = Look(), []
    for numbers, offsets, hidden in reader.read(chunks, prefix, seen, target):
        tokens += len(hidden)
        begins = offsets - prefix[numbers]  # of the rows' tokens 0
        pieces, owners = [], []
        for i, begin in zip(numbers, begins, strict=True):
            parts = code_pieces(tok, rows[i], begin)
            pieces += parts
            owners += [i] * len(parts)
            rows[i].line_logp[min(rows[i].thoughts) :] = 0
        lines.add(owners, *piece_logp(reader, hidden, pieces, tok))
        if states:
            thoughts.append(thought_states(tok, [rows[i] for i in numbers], begins, hidden))
    for i, logp in lines.values():
        rows[i].line_logp += logp[: len(rows[i].first)]
    if states:
        keys, tensors = zip(*thoughts, strict=True)
        store_states(sum(keys, []), torch.cat(tensors).to("cpu", reader.model.dtype))
    return tokens


def thought_states(tok, rows, begins, hidden):
    """The states of a batch at its thoughts -> ([(row, line)], (n, D), thought after thought).

    begins: of each row, the state of its token 0.
    """
    keys, indices = [], []
    for row, begin in zip(rows, begins, strict=True):
        for t, thought in row.thoughts.items():
            keys.append((row, t))
            indices.append(begin + begin_of(tok, row, t) + np.arange(len(thought)))
    (index,) = upload(hidden.device, np.concatenate(indices))
    return keys, hidden[index]


def store_states(keys, states):
    """Give rows their states (n, D), as `thought_states` lists them."""
    parts = states.split([len(row.thoughts[t]) for row, t in keys])
    for (row, t), part in zip(keys, parts, strict=True):
        row.states[t] = part.clone()  # not a view: rows travel between processes


def code_pieces(tok, row, offset):
    """The Pieces of code behind the thoughts of a finished row. offset: of its token 0."""
    lines = sorted(row.thoughts)
    ends = [begin_of(tok, row, t) for t in lines[1:]] + [len(row.ids)]
    return [
        Piece(row.ids, row.first, row.first[t] - 1, end - 1, offset + row.first[t] - 1)
        for t, end in zip(lines, ends, strict=True)
    ]


def set_gains(reader, tok, rows, base, context):
    """Set gain_t of the thoughts of finished rows -> tokens run. base: B arrays (L,), see Trunk."""
    later = [(i, t) for i, row in enumerate(rows) for t in sorted(row.thoughts)[1:]]
    values, tokens = later_values(reader, tok, rows, later, context)
    for i, row in enumerate(rows):
        lines = sorted(row.thoughts)
        before = base[row.group][lines[0] :].sum()  # V(s_t, z_<t): the trunk's at the first thought
        for t, after in zip(lines, lines[1:] + [None], strict=True):
            until_next = row.line_logp[t:after].sum()
            value = values.get((i, after), 0.0)  # V before the next thought
            row.gain[t] = until_next + value - before
            before = value
    return tokens


def later_values(reader, tok, rows, later, context):
    """V(s_t, z_<t) before thoughts that are not the first of their row.

    later: [(index of the row, line t)]. Returns ({(index, t): nats}, tokens run).
    """
    tokens = 0
    if not later:
        return {}, tokens
    index = np.array([i for i, _ in later])
    begin = np.array([begin_of(tok, rows[i], t) - 1 for i, t in later])
    prefix = np.array([rows[i].prefix for i in index])
    groups = np.array([rows[i].group for i in index])
    seen = [
        (context.trunk, groups, prefix),
        (context.own, context.slots[index], begin - prefix),
    ]
    # the code from line t on, and a token before it
    codes = []
    for (i, t), b in zip(later, begin, strict=True):
        codes.append([rows[i].ids[b], *rows[i].snip.ids[rows[i].snip.first[t] :]])
    lines = Look()
    for numbers, offsets, hidden in reader.read([c[:-1] for c in codes], begin, seen):
        tokens += len(hidden)
        pieces = []
        for j, offset in zip(numbers, offsets, strict=True):
            i, t = later[j]
            first = np.array(rows[i].snip.first[t:])
            first = first - first[0] + 1
            pieces.append(Piece(codes[j], first, 0, len(codes[j]) - 1, offset))
        lines.add(numbers, *piece_logp(reader, hidden, pieces, tok))
    values = {later[j]: logp.sum() for j, logp in lines.values()}
    return values, tokens
