"""Fast inference over given tokens: many tokens per row, on caches that rows share.

`Decoder` (decoder.py) draws one new token per row and step; `Reader` runs tokens that are known.
Matrix products see no padding, only attention does. Weights are stacked once (layers.py).

Shapes: N continuations, T tokens of the longest, M tokens of all of them, S tokens that one attends
to (its own included), D width, H query heads, K key/value heads, E head width, V vocabulary.
"""

import functools
import typing

import numpy as np
import torch

from engine.layers import scoring_head, stacked_layers
from engine.machine import tokens_at_once
from model import attention, attention_bias, block, rotate


class Layout(typing.NamedTuple):
    """Where the tokens of a batch of continuations stand."""

    ids: torch.Tensor  # (M,)
    row: torch.Tensor  # (M,) the continuation of each token
    place: torch.Tensor  # (M,) its place in the continuation
    cell: torch.Tensor  # (M,) its place in the padded batch (N, T)
    rope: tuple  # cos and sin, (1, M, 1, E/2) each
    reach: list  # of each cache: the slots that any continuation attends to
    bias: torch.Tensor  # (N, 1, T, S)


class Reader:
    """A model that runs given tokens on caches that rows share, in few and full batches.

    layers  StackedLayers of the model, if there are any already
    head    (V, D) as `scoring_head` has it
    """

    def __init__(self, model, layers=None):
        self.model = model
        self.layers = layers or stacked_layers(model)
        self.head = scoring_head(model)

    def read(self, tokens, start, seen=(), keep=None):
        """Run lists of tokens, each the continuation of a row of caches.

        tokens      N lists of ids, none empty
        start       (N,) ints: the position of the first token of each
        seen        [(Cache, rows (N,), lengths (N,))]: continuation i attends to the first
                    lengths[i] slots of row rows[i] of each cache, and to itself
        keep        (Cache, rows (N,), slots (N,)): the new keys are written to row rows[i], from
                    slot slots[i] on; None: they are dropped

        Yields (numbers (n,), offsets (n,), hidden (M, D)) per batch: the states of
        tokens[numbers[i]] begin at hidden[offsets[i]].
        """
        sizes = np.array([len(ids) for ids in tokens])
        for numbers in length_batches(sizes, tokens_at_once(self.model.device)):
            hidden = self.forward(
                [tokens[i] for i in numbers],
                self._select(start, numbers),
                [
                    (cache, self._select(rows, numbers), self._select(lengths, numbers))
                    for cache, rows, lengths in seen
                ],
                keep and (keep[0], self._select(keep[1], numbers), self._select(keep[2], numbers)),
            )
            yield numbers, np.cumsum(sizes[numbers]) - sizes[numbers], hidden

    def _select(self, values, numbers):
        return torch.as_tensor(np.asarray(values)[numbers], device=self.model.device)

    def forward(self, tokens, start, seen, keep):
        """One batch of `read` -> (M, D), the states of tokens[0], tokens[1], ... end to end."""
        layout = self._layout(tokens, start, seen)
        x = self.model.embeddings(layout.ids)  # (M, D)
        for number, layer in enumerate(self.layers):
            attend = functools.partial(self._attend, number, layout, seen, keep)
            x = block(x, layer, attend)
        return self.model.norm(x)  # (M, D)

    def _layout(self, tokens, start, seen):
        """The Layout of a batch, on the model's device."""
        model = self.model
        sizes = [len(ids) for ids in tokens]
        N, T = len(sizes), max(sizes)
        row = torch.from_numpy(np.repeat(np.arange(N), sizes)).to(model.device)  # (M,)
        place = np.concatenate([np.arange(size) for size in sizes])  # (M,)
        place = torch.from_numpy(place).to(model.device)
        pos = start[row] + place  # (M,)
        rope = model.cos[pos][None, :, None], model.sin[pos][None, :, None]  # (1, M, 1, E/2)
        reach = [int(lengths.max()) for *_, lengths in seen]
        masks = []
        for slots, (*_, lengths) in zip(reach, seen, strict=True):
            inside = torch.arange(slots, device=model.device) < lengths[:, None]  # (N, slots)
            masks.append(inside[:, None].expand(N, T, slots))
        causal = torch.ones(T, T, dtype=torch.bool, device=model.device).tril()
        mask = torch.cat([*masks, causal.expand(N, T, T)], -1)  # (N, T, S)
        bias = attention_bias(mask, model.dtype)[:, None]  # (N, 1, T, S)
        ids = torch.from_numpy(np.concatenate(tokens)).to(model.device)
        return Layout(ids, row, place, row * T + place, rope, reach, bias)

    def _attend(self, number, layout, seen, keep, qkv):
        """Attention of layer `number`: qkv (M, (H + 2 K) E) -> (M, H E)."""
        H, K = self.model.cfg.n_head, self.model.cfg.n_kv_head
        heads = qkv.view(1, len(qkv), H + 2 * K, -1)  # (1, M, heads, E)
        q, k, v = heads.split((H, K, K), 2)
        q = rotate(q, layout.rope)[0]  # (M, H, E)
        k = rotate(k, layout.rope)[0]  # (M, K, E)
        v = v[0]
        if keep:
            cache, rows, slots = keep
            target = rows[layout.row], slice(None), slots[layout.row] + layout.place
            cache.k[number][target] = k
            cache.v[number][target] = v
        ks, vs = [], []
        for slots, (cache, rows, _) in zip(layout.reach, seen, strict=True):
            ks.append(cache.k[number][:, :, :slots].index_select(0, rows))  # (N, K, slots, E)
            vs.append(cache.v[number][:, :, :slots].index_select(0, rows))
        q = pad_heads(q, layout)  # (N, H, T, E)
        k = torch.cat([*ks, pad_heads(k, layout)], 2)  # (N, K, S, E)
        v = torch.cat([*vs, pad_heads(v, layout)], 2)  # (N, K, S, E)
        y = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), layout.bias)
        return y.flatten(2).flatten(0, 1).index_select(0, layout.cell)  # (M, H E)


def pad_heads(x, layout):
    """Heads of the tokens (M, heads, E), padded to a batch: (N, heads, T, E)."""
    N, _, T, _ = layout.bias.shape
    cells = x.new_zeros(N * T, *x.shape[1:]).index_copy_(0, layout.cell, x)  # (N T, heads, E)
    return cells.view(N, T, *x.shape[1:]).transpose(1, 2)


def length_batches(sizes, max_tokens):
    """Indices of rows, batch by batch: of like size, at most max_tokens padded tokens.

    No row is shorter than three quarters of the longest of its batch, unless all are short.
    Example: length_batches(np.array([10, 300, 290]), 4096) -> [1, 2], [0]
    """
    order = np.argsort(-sizes, kind="stable")
    begin = 0
    while begin < len(order):
        longest = sizes[order[begin]]
        shortest = min(longest - 16, 3 * longest // 4)
        alike = np.searchsorted(-sizes[order[begin:]], -shortest, side="right")
        count = min(max(1, max_tokens // longest), int(alike))
        yield order[begin : begin + count]
        begin += count
