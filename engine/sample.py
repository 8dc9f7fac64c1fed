"""Batched sampling, for evaluation and for reinforcement learning.

    y_k ~ softmax(logits(x, y_<k) / temperature), cut to its top_p nucleus
    recorded: log softmax(logits(x, y_<k))[y_k]

Rows are independent. Sample j of prompt i draws its uniforms from a generator seeded by
(seed, i, j), and picks tokens by inverse CDF. So a completion depends neither on its batch nor on
the number of samples, up to rounding, which in float32 practically never moves a draw across a
boundary; in bfloat16 it may.

When a row ends, its slot is free. Once a quarter of the slots are free they are refilled from the
queue; if the queue is empty, the batch shrinks. Longest prompts go first. Out of memory halves the
batch: finished rows stay, the others begin again, and because of the seeds nothing changes.
decoder.py has the step.

A draw needs the whole distribution, so the log-probability of a token is recorded at its draw; in
float32 it equals the trainer's.

Shapes: N rows that get a token, V vocabulary.
"""

import dataclasses
import sys

import numpy as np
import torch
from tqdm import tqdm

from config import UserError, progress_bar, sample_seed
from engine.decoder import STANDING, decoder_for
from engine.machine import rows_at_once


@dataclasses.dataclass
class Completion:
    ids: list  # as sampled: the EOS and the tokens of a stop string are included
    logprobs: list  # of each token, under the model's distribution at temperature 1, uncut
    finished: bool  # ended by EOS or a stop string, not by length


@torch.inference_mode()
def generate(
    model,
    prompts,
    max_new,
    eos,
    *,
    temperature=1.0,
    top_p=1.0,
    seed=0,
    seeds=None,
    n=1,
    batch=None,
    stop=None,
    decode=None,
    progress=False,
    desc="sampling",
    forbid=(),
    on_done=None,
    heads=None,
):
    """n Completions for each prompt: a list of lists, in the order of `prompts`.

    prompts      lists of token ids, of any lengths. A prompt and its completion together never
                 exceed model.cfg.max_len
    eos          the token id that ends a row, or several
    temperature  0 is greedy
    seed         an int, or the beginning of a seed, as `config.sample_seed` takes it
    seeds        one int per prompt, used instead of its index: a prompt keeps its samples when
                 others are left out
    batch        rows sampled at once, halved as often as memory runs out; None: as many as keep
                 the device busy
    stop         strings; a row ends with the token that completes one (the caller cuts the text).
                 Needs `decode`: ids -> str
    forbid       token ids that are not drawn: the distribution is the model's, given that the
                 next token is none of them
    on_done      called as on_done(prompt index, sample index, Completion) when a row ends
    heads        one text per prompt: the end of the prompt that a stop string may begin in

    Raises ValueError for an empty prompt, one of max_len tokens or more, and settings out of
    range; UserError if memory does not suffice for one row.
    """
    stop = [stop] if isinstance(stop, str) else list(stop or [])
    check_prompts(model, prompts, seeds)
    check_settings(max_new, temperature, top_p, n, batch)
    check_stops(stop, decode)
    out = [[None] * n for _ in prompts]
    bar = progress_bar(total=len(prompts) * n, desc=desc, unit="sample", disable=not progress)

    def record(i, j, completion):
        out[i][j] = completion
        if on_done:
            on_done(i, j, completion)
        bar.update()

    def uniforms(i, j):
        rng = np.random.default_rng(sample_seed(seed, i if seeds is None else seeds[i], j))
        return rng.random(min(max_new, model.cfg.max_len - len(prompts[i])))

    ends = Ends(stop, decode, eos, model.cfg.vocab_size, heads)
    draw = dict(temperature=temperature, top_p=top_p, forbid=list(forbid))
    try:
        while queue := waiting(out, prompts):
            batch = min(batch or rows_at_once(model.device), len(queue))
            prefix = len(prompts[queue[-1][0]])
            new = min(max_new, model.cfg.max_len - len(prompts[queue[0][0]]))
            try:
                decoder = decoder_for(model, batch, min(batch, len(prompts)), prefix, new, **draw)
                sample_queue(decoder, prompts, queue, uniforms, ends, record, bar)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                if batch == 1:
                    raise too_large(model, prefix + new) from None
                decoder = None
            else:
                break
            batch //= 2  # here nothing holds the tensors of the failed attempt any more
            halved(model, batch, desc)
    finally:
        bar.close()
    return out


def waiting(out, prompts):
    """[(prompt index, sample index)] of completions that are missing, the longest prompt last."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    missing = [(i, j) for i in order for j, c in enumerate(out[i]) if c is None]
    return missing[::-1]


def out_of_memory(error):
    """Is this RuntimeError a lack of memory, of a GPU or of the machine?"""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return any(s in str(error) for s in ("can't allocate memory", "DefaultCPUAllocator"))


def too_large(model, tokens):
    return UserError(
        f"out of memory with one row of {tokens} tokens, which needs about "
        f"{row_bytes(model, tokens) >> 20} MiB besides the model; "
        "expected shorter prompts, a smaller max_new or more memory"
    )


def halved(model, batch, desc):
    STANDING.clear()
    tqdm.write(f"{desc}: out of memory; going on with {batch} rows at once", file=sys.stderr)
    if model.device.type == "cuda":
        torch.cuda.empty_cache()


def row_bytes(model, tokens):
    """About what sampling a row takes besides the model: packed weights, keys, values, logits."""
    cfg = model.cfg
    size = model.dtype.itemsize
    weights = sum(p.numel() for p in model.blocks.parameters()) * size
    kv = 2 * cfg.n_layer * cfg.n_kv_head * cfg.d_model // cfg.n_head * size * tokens
    return weights + model.head_weight.numel() * 4 + cfg.vocab_size * 16 + kv


# ---------------------------------------------------------------- the loop


class Samples:
    """The rows of a decoder: which completion each makes, and its tokens so far."""

    def __init__(self, rows, new):
        self.prompt = np.full(rows, -1)  # prompt index; -1: the row is free
        self.number = np.zeros(rows, np.int64)  # sample index
        self.ids = np.zeros((rows, new), np.int64)
        self.logprobs = np.zeros((rows, new), np.float32)
        self.count = np.zeros(rows, np.int64)  # tokens so far
        self.limit = np.zeros(rows, np.int64)  # and at most

    def begin(self, rows, pairs, limits):
        """Give free rows the completions `pairs`, [(prompt index, sample index)]."""
        self.prompt[rows] = [i for i, _ in pairs]
        self.number[rows] = [j for _, j in pairs]
        self.count[rows] = 0
        self.limit[rows] = limits

    def add(self, rows, tokens, logprobs):
        self.ids[rows, self.count[rows]] = tokens
        self.logprobs[rows, self.count[rows]] = logprobs
        self.count[rows] += 1

    def full(self, rows):
        return self.count[rows] == self.limit[rows]

    def room(self, rows):
        """Tokens that a row may still get, at most."""
        return int((self.limit - self.count)[rows].max())

    def end(self, row, finished):
        """Free a row -> (prompt index, sample index, Completion)."""
        pair = int(self.prompt[row]), int(self.number[row])
        self.prompt[row] = -1
        count = self.count[row]
        ids = self.ids[row, :count].tolist()
        return *pair, Completion(ids, self.logprobs[row, :count].tolist(), finished)


def sample_queue(decoder, prompts, queue, uniforms, ends, record, bar):
    """Sample the whole queue, [(prompt index, sample index)], from its end.

    uniforms(i, j) gives those of a completion; record(i, j, Completion) takes it.
    """
    samples = Samples(decoder.rows, decoder.new)
    tokens = 0
    while queue or (samples.prompt >= 0).any():
        rows = np.flatnonzero(samples.prompt >= 0)
        if queue and 4 * len(rows) <= 3 * decoder.rows:
            rows = np.flatnonzero(samples.prompt < 0)[: len(queue)]
            pairs = [queue.pop() for _ in rows]
            noise = [uniforms(i, j) for i, j in pairs]
            samples.begin(rows, pairs, [len(u) for u in noise])
            drawn, logprobs = decoder.start_prompts(rows, samples.prompt, prompts, noise)
            steps = [(drawn, logprobs)]
        else:
            decoder.keep(rows)
            steps = zip(*decoder.next(rows, min(decoder.look, samples.room(rows))), strict=True)
        for drawn, logprobs in steps:
            going = samples.prompt[rows] >= 0  # others have ended since the last look
            add_drawn(samples, rows[going], drawn[going], logprobs[going], ends, record)
            tokens += going.sum()
            show_rate(bar, tokens, len(decoder.graphs))


def add_drawn(samples, rows, drawn, logprobs, ends, record):
    """Add a drawn token to each of the rows, and record and free those that end."""
    samples.add(rows, drawn, logprobs)
    for row in rows[ends.possible(drawn) | samples.full(rows)]:
        finished = ends.reached(samples.ids[row, : samples.count[row]], samples.prompt[row])
        if finished or samples.full(row):
            record(*samples.end(row, finished))


def show_rate(bar, tokens, graphs):
    if bar.disable:
        return
    rate = tokens / max(bar.format_dict["elapsed"], 1e-9)
    recorded = f", {graphs} graphs" if graphs else ""
    bar.set_postfix_str(f"{rate:.0f} tokens/s{recorded}", refresh=False)


class Ends:
    """What ends a row: an end token or a stop string.

    Text is decoded only at tokens that could complete a stop string.
    heads: texts that stand before the completion of each prompt, and count for stop strings.
    """

    def __init__(self, stop, decode, eos, vocab, heads=None):
        self.stop = stop
        self.decode = decode
        self.heads = heads
        self.eos = {eos} if isinstance(eos, int) else set(eos)
        # tokens that surely hold a stop string: a token has at least a byte
        self.tail = max((len(s.encode()) for s in stop), default=0) + 4
        self.rests = tuple(s[k:] for s in stop for k in range(1, len(s)))
        # (V,) 0: ends nothing, 1: may end a row, 2: not known yet
        self.kind = np.full(vocab, 2 if stop else 0, np.int8)
        self.kind[[i for i in self.eos if 0 <= i < vocab]] = 1

    def possible(self, tokens):
        """Whether each token may end its row: (N,) bool.

        It completes a stop string only if it contains it or begins with the end of it.
        """
        for t in set(tokens[self.kind[tokens] == 2].tolist()):
            text = self.decode([t])
            # "" or "\ufffd": a part of a character, or a blank that decode strips
            unclear = not text or "\ufffd" in text
            completes = contains(text, self.stop) or text.startswith(self.rests)
            self.kind[t] = unclear or completes
        return self.kind[tokens] > 0

    def reached(self, ids, prompt=0):
        """Whether the last of the ids (n,) ends the row. prompt: the index of its prompt."""
        if int(ids[-1]) in self.eos:
            return True
        if not self.stop:
            return False
        text = self.decode(ids[-self.tail :].tolist())
        if self.heads and len(ids) <= self.tail:
            text = self.heads[prompt] + text
        return contains(text, self.stop)


def contains(text, stop):
    """Does the text contain a stop string? Example: contains("x\\ndef", ["\\ndef"]) -> True"""
    return any(s in text for s in stop)


# ---------------------------------------------------------------- checks


def check_prompts(model, prompts, seeds):
    """Raise ValueError for prompts that are empty or too long, and for seeds that do not match."""
    longest = model.cfg.max_len - 1
    for i, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= longest:
            raise ValueError(
                f"prompt {i} has {len(prompt)} tokens; it must have 1 to max_len - 1 = {longest}"
            )
    if seeds is not None and len(seeds) != len(prompts):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one a prompt")


def check_stops(stop, decode):
    """Raise ValueError for an empty stop string, and for stop strings that cannot be looked for."""
    if stop and (decode is None or "" in stop):
        raise ValueError("stop strings must not be empty, and need decode: ids -> str")


def check_settings(max_new, temperature, top_p, n, batch):
    """Raise ValueError for settings out of range."""
    for name, value in (("max_new", max_new), ("n", n), ("batch", batch)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    if temperature < 0:
        raise ValueError(f"temperature={temperature} must be at least 0")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} must be above 0 and at most 1")
