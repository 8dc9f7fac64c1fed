"""Batched sampling: one engine for evaluation and for reinforcement learning.

    y_k ~ softmax(logits(x, y_<k) / temperature), cut to its top_p nucleus;    recorded: log softmax(logits(x, y_<k))[y_k]

Rows are independent. Sample j of prompt i draws its uniforms from a generator seeded by (seed, i, j) and picks tokens by inverse
CDF, so a completion depends neither on the batch it was made in nor on the number of samples asked for (up to float rounding,
which in fp32 practically never moves a draw across a boundary; in bf16 it may).

A finished row leaves its seat, and once a quarter of the seats is free, waiting samples take them; when nobody waits, the rows move
together instead. Longest prompts go first. Out of memory halves the batch: finished rows stay, the others begin again, and because
of the seeds nothing changes. What happens in a step, and how it is made fast, is in decoder.py.

Drawing needs the whole distribution, so the log-probability of a drawn token is read off here; in fp32 it equals the trainer's.

Shapes: B seats, N rows that get a token, V vocabulary.
"""

import dataclasses
import sys

import numpy as np
import torch
from tqdm import tqdm

from config import UserError
from engine.decoder import Decoder


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
    temperature=1.0,
    top_p=1.0,
    seed=0,
    seeds=None,
    n=1,
    batch=64,
    stop=None,
    decode=None,
    progress=False,
    desc="sampling",
    forbid=(),
    on_done=None,
):
    """n Completions for each prompt: a list of lists, in the order of `prompts`.

    prompts      lists of token ids, of any lengths. A prompt and its completion together never exceed model.cfg.max_len.
    eos          the token id that ends a row.
    temperature  0 is greedy.
    seeds        one int a prompt, used instead of its index: so that a prompt keeps its samples when others are left out.
    batch        rows sampled at once; halved as often as memory runs out.
    stop         strings; a row ends with the token that completes one (the caller cuts the text). Needs `decode`: ids -> str.
    forbid       token ids that the model cannot write: the distribution is the model's, given that the next token is none of them.
    on_done      called as on_done(prompt index, sample index, Completion) as soon as a row ends.
    Raises ValueError for an empty prompt, one of max_len tokens or more, and settings out of range; UserError if memory does not even
    suffice for one row.
    """
    stop = [stop] if isinstance(stop, str) else list(stop or [])
    check(model, prompts, max_new, temperature, top_p, seeds, n, batch, stop, decode)
    out = [[None] * n for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    bar = tqdm(total=len(prompts) * n, desc=desc, unit="sample", disable=not progress)

    def done(i, j, completion):
        out[i][j] = completion
        if on_done:
            on_done(i, j, completion)
        bar.update()

    def uniforms(i, j):
        return np.random.default_rng([seed, i if seeds is None else seeds[i], j]).random(
            min(max_new, model.cfg.max_len - len(prompts[i]))
        )

    ends = Ends(stop, decode, eos, model.cfg.vocab_size)
    try:
        while queue := [(i, j) for i in order for j in range(n) if out[i][j] is None][
            ::-1
        ]:  # the next one is the last
            batch = min(batch, len(queue))
            try:
                prefix, new = (
                    len(prompts[queue[-1][0]]),
                    min(max_new, model.cfg.max_len - len(prompts[queue[0][0]])),
                )
                decoder = Decoder(
                    model, batch, min(batch, len(prompts)), prefix, new, temperature, top_p, forbid
                )
                serve(decoder, prompts, queue, uniforms, ends, done, bar)
            except RuntimeError as e:  # torch.OutOfMemoryError is one
                if not (
                    isinstance(e, torch.OutOfMemoryError)
                    or "can't allocate memory" in str(e)
                    or "DefaultCPUAllocator" in str(e)
                ):
                    raise
                if batch == 1:
                    raise UserError(
                        f"out of memory with one row of {prefix + new} tokens, which needs about {row_bytes(model, prefix + new) >> 20} "
                        "MiB besides the model; expected shorter prompts, a smaller max_new or more memory"
                    ) from None
                decoder = None
            else:
                break
            batch //= 2  # here nothing holds the tensors of the failed attempt any more
            tqdm.write(
                f"{desc}: out of memory; going on with {batch} rows at once", file=sys.stderr
            )
            if model.device.type == "cuda":
                torch.cuda.empty_cache()
    finally:
        bar.close()
    return out


def serve(decoder, prompts, queue, uniforms, ends, done, bar):
    """Sample the whole queue, [(prompt index, sample index)], from its end; tell done(i, j, Completion) of each."""
    B, tokens = decoder.rows, 0
    who = np.full((B, 2), -1)  # prompt index and sample index of a seat's row; -1: free
    ids, logprobs = np.zeros((B, decoder.new), np.int64), np.zeros((B, decoder.new), np.float32)
    count, limit = (
        np.zeros(B, np.int64),
        np.zeros(B, np.int64),
    )  # tokens that a row has, and may have

    def note(seats, said):
        """One more token for each of the seats: said (2, N), tokens and log-probabilities. A row that ends gives up its seat."""
        nonlocal tokens
        token = said[0].astype(np.int64)
        ids[seats, count[seats]], logprobs[seats, count[seats]] = token, said[1]
        count[seats] += 1
        tokens += len(seats)
        for k in seats[ends.may(token) | (count[seats] == limit[seats])]:
            finished = ends.here(ids[k, : count[k]])
            if finished or count[k] == limit[k]:
                i, j = who[k].tolist()
                who[k] = -1
                done(
                    i,
                    j,
                    Completion(
                        ids[k, : count[k]].tolist(), logprobs[k, : count[k]].tolist(), finished
                    ),
                )
                if not bar.disable:
                    bar.set_postfix_str(
                        f"{tokens / max(bar.format_dict['elapsed'], 1e-9):.0f} tokens/s{decoder.told()}",
                        refresh=False,
                    )

    while queue or (who >= 0).any():
        live = np.flatnonzero(who[:B, 0] >= 0)
        if queue and 4 * len(live) <= 3 * B:
            taken = np.flatnonzero(who[:B, 0] < 0)[: len(queue)]
            who[taken] = [queue.pop() for _ in taken]
            drawn = [uniforms(*pair) for pair in who[taken].tolist()]
            count[taken], limit[taken] = 0, [len(u) for u in drawn]
            note(taken, decoder.seat(taken, who[:B, 0], prompts, drawn))
        elif 4 * len(live) <= 3 * B and decoder.bucket(len(live)) < B:
            B = decoder.bucket(len(live))
            for x in (who, ids, logprobs, count, limit):
                x[: len(live)] = x[live]
            who[len(live) :] = -1
            decoder.move(live, who[:B, 0])
        else:
            note(live, decoder.next(int(count[live].max()))[:, live])


class Ends:
    """What ends a row: the EOS or a stop string. Text is decoded only at tokens that could complete a stop string."""

    def __init__(self, stop, decode, eos, vocab):
        self.stop, self.decode, self.eos = stop, decode, eos
        self.tail = (
            max((len(s.encode()) for s in stop), default=0) + 4
        )  # tokens that surely hold a stop string: one has at least a byte
        self.rests = tuple(s[k:] for s in stop for k in range(1, len(s)))
        self.kind = np.full(
            vocab, 2 if stop else 0, np.int8
        )  # (V,) 0: ends nothing, 1: may, 2: not known yet
        if 0 <= eos < vocab:
            self.kind[eos] = 1

    def may(self, tokens):
        """Whether each token may end its row: (N,) bool. It completes a stop string only if it contains it or begins with the end of it."""
        for t in set(tokens[self.kind[tokens] == 2].tolist()):
            text = self.decode(
                [t]
            )  # "" or "\\ufffd": a part of a character, or a blank that decode strips
            self.kind[t] = (
                not text
                or "\ufffd" in text
                or contains(text, self.stop)
                or text.startswith(self.rests)
            )
        return self.kind[tokens] > 0

    def here(self, ids):
        """Whether the last of the ids (n,) ends the row."""
        return (
            bool(ids[-1] == self.eos)
            or bool(self.stop)
            and contains(self.decode(ids[-self.tail :].tolist()), self.stop)
        )


def row_bytes(model, tokens):
    """About what sampling a row of so many tokens takes besides the model: packed weights, keys and values, logits."""
    size, cfg = model.dtype.itemsize, model.cfg
    return (
        sum(p.numel() for p in model.blocks.parameters()) * size
        + model.head_weight.numel() * 4
        + cfg.vocab_size * 16
        + 2 * cfg.n_layer * cfg.n_kv_head * cfg.d_model // cfg.n_head * size * tokens
    )


def contains(text, stop):
    """Example: contains("x\\ndef", ["\\ndef"]) -> True"""
    return any(s in text for s in stop)


def check(model, prompts, max_new, temperature, top_p, seeds, n, batch, stop, decode):
    for i, prompt in enumerate(prompts):
        if not 0 < len(prompt) < model.cfg.max_len:
            raise ValueError(
                f"prompt {i} has {len(prompt)} tokens; it must have 1 to max_len - 1 = {model.cfg.max_len - 1}"
            )
    for name, value, low in (
        ("max_new", max_new, 1),
        ("n", n, 1),
        ("batch", batch, 1),
        ("temperature", temperature, 0),
    ):
        if value < low:
            raise ValueError(f"{name}={value} must be at least {low}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} must be above 0 and at most 1")
    if seeds is not None and len(seeds) != len(prompts):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one a prompt")
    if stop and (decode is None or "" in stop):
        raise ValueError("stop strings must not be empty, and need decode: ids -> str")
