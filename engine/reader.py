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
from engine.machine import tokens_at_once, upload
from model import attention, attention_bias, block, rotate


class Layout(typing.NamedTuple):
    """Where the tokens of a batch of continuations stand."""

    ids: torch.Tensor  # (M,)
    cell: torch.Tensor  # (M,) the place of each token in the padded batch (N, T)
    rope: tuple  # cos and sin, (1, M, 1, E/2) each
    seen: list  # (Cache, rows (N,), the slots that any continuation attends to)
    target: tuple | None  # Cache, rows (M,) and slots (M,) that new keys are written to
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
        for numbers in device_batches(sizes, self.model.device):
            hidden = self.forward(
                [tokens[i] for i in numbers],
                np.asarray(start)[numbers],
                [
                    (cache, np.asarray(rows)[numbers], np.asarray(lengths)[numbers])
                    for cache, rows, lengths in seen
                ],
                keep and (keep[0], *(np.asarray(x)[numbers] for x in keep[1:])),
            )
            yield numbers, np.cumsum(sizes[numbers]) - sizes[numbers], hidden

    def forward(self, tokens, start, seen, keep):
        """One batch of `read` -> (M, D), the states of tokens[0], tokens[1], ... end to end."""
        layout = self._layout(tokens, start, seen, keep)
        x = self.model.embeddings(layout.ids)  # (M, D)
        for number, layer in enumerate(self.layers):
            x = block(x, layer, functools.partial(self._attend, number, layout))
        return self.model.norm(x)  # (M, D)

    def _layout(self, tokens, start, seen, keep):
        """The Layout of a batch, on the model's device."""
        model = self.model
        sizes = [len(ids) for ids in tokens]
        N, T = len(sizes), max(sizes)
        row = np.repeat(np.arange(N), sizes)  # (M,)
        place = np.concatenate([np.arange(size) for size in sizes])  # (M,)
        arrays = [np.concatenate(tokens), start[row] + place, row * T + place]
        arrays += [x for _, *part in seen for x in part]  # (N,) each
        if keep:
            arrays += [keep[1][row], keep[2][row] + place]  # (M,) each
        ids, pos, cell, *rest = upload(model.device, *arrays)
        caches = list(zip((cache for cache, *_ in seen), rest[: 2 * len(seen) : 2], strict=True))
        lengths = rest[1 : 2 * len(seen) : 2]
        reach = [int(x.max()) for *_, x in seen]
        masks = []
        for slots, x in zip(reach, lengths, strict=True):
            inside = torch.arange(slots, device=model.device) < x[:, None]  # (N, slots)
            masks.append(inside[:, None].expand(N, T, slots))
        causal = torch.ones(T, T, dtype=torch.bool, device=model.device).tril()
        mask = torch.cat([*masks, causal.expand(N, T, T)], -1)  # (N, T, S)
        return Layout(
            ids=ids,
            cell=cell,
            rope=(model.cos[pos][None, :, None], model.sin[pos][None, :, None]),
            seen=[(cache, rows, slots) for (cache, rows), slots in zip(caches, reach, strict=True)],
            target=keep and (keep[0], *rest[-2:]),
            bias=attention_bias(mask, model.dtype)[:, None],
        )

    def _attend(self, number, layout, qkv):
        """Attention of layer `number`: qkv (M, (H + 2 K) E) -> (M, H E)."""
        H, K = self.model.cfg.n_head, self.model.cfg.n_kv_head
        heads = qkv.view(1, len(qkv), H + 2 * K, -1)  # (1, M, heads, E)
        turned = heads[:, :, : H + K]
        turned.copy_(rotate(turned, layout.rope))
        _, k, v = heads[0].split((H, K, K), 1)  # (M, heads, E) each
        if layout.target:
            cache, rows, slots = layout.target
            cache.k[number][rows, :, slots] = k
            cache.v[number][rows, :, slots] = v
        q, k, v = pad_heads(heads[0], layout).split((H, K, K), 1)  # (N, heads, T, E) each
        ks, vs = [], []
        for cache, rows, slots in layout.seen:
            ks.append(cache.k[number][:, :, :slots].index_select(0, rows))  # (N, K, slots, E)
            vs.append(cache.v[number][:, :, :slots].index_select(0, rows))
        k = torch.cat([*ks, k], 2)  # (N, K, S, E)
        v = torch.cat([*vs, v], 2)  # (N, K, S, E)
        y = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), layout.bias)
        return y.flatten(2).flatten(0, 1).index_select(0, layout.cell)  # (M, H E)


def pad_heads(x, layout):
    """Heads of the tokens (M, heads, E), padded to a batch: (N, heads, T, E)."""
    N, _, T, _ = layout.bias.shape
    cells = x.new_zeros(N * T, *x.shape[1:]).index_copy_(0, layout.cell, x)  # (N T, heads, E)
    return cells.view(N, T, *x.shape[1:]).transpose(1, 2)


def device_batches(sizes, device, times=1):
    """`length_batches` for a device, of `times` as many tokens as keep it busy.

    A CPU pays for padding in attention. A GPU pays more for further batches, each with the same
    launches: attention is a small part of their work.
    """
    alike = 0 if device.type == "cuda" else 0.75
    return length_batches(sizes, times * tokens_at_once(device), alike)


def length_batches(sizes, max_tokens, alike=0.75):
    """Indices of rows, batch by batch: of like size, at most max_tokens padded tokens.

    No row is shorter than this share of the longest of its batch, unless all are short.
    Example: length_batches(np.array([10, 300, 290]), 4096) -> [1, 2], [0]
    """
    order = np.argsort(-sizes, kind="stable")
    begin = 0
    while begin < len(order):
        longest = sizes[order[begin]]
        shortest = min(longest - 16, int(alike * longest))
        count = int(np.searchsorted(-sizes[order[begin:]], -shortest, side="right"))
        count = min(max(1, max_tokens // longest), count)
        yield order[begin : begin + count]
        begin += count
