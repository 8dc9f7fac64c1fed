"""Many given tokens a row, forwarded on caches that rows share, with weights that are packed once a call.

Shapes: N continuations, T tokens of the longest, M of them all, S slots that one sees (itself included), D width, H query heads, K key/value heads,
E head width, V vocabulary.
"""

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F

from model import attend, rotate


def packed(model, dtype):
    """The blocks' weights as `linear` has them: a list of (norm, qkv, out, mlp_norm, gate_up, down)."""
    return [
        (
            b.attn_norm,
            linear([b.q, b.k, b.v], dtype),
            linear([b.o], dtype),
            b.mlp_norm,
            linear([b.gate, b.up], dtype),
            linear([b.down], dtype),
        )
        for b in model.blocks
    ]


@dataclasses.dataclass
class Reader:
    """A model that reads given tokens, on caches that rows share, in as few and as full batches as memory allows."""

    model: object
    layers: list  # as from `packed`
    head: object  # (V, D) float32

    def read(self, tokens, start, seen=(), keep=None, most=4096):
        """Forward lists of tokens, each the continuation of a row of some caches. Yields (which (n,), offsets (n,), hidden (M, D)) a batch: the
        states of tokens[which[i]] are hidden[offsets[i]:offsets[i] + len(tokens[which[i]])].

        tokens  N lists of ids, none empty; start (N,) int, the position of each one's first token.
        seen    [(Cache, rows (N,), lengths (N,))]: continuation i sees the first lengths[i] slots of row rows[i] of each cache, then itself.
        keep    (Cache, rows (N,), slots (N,)): the new keys go into row rows[i] from slot slots[i] on.
        most    padded tokens a batch. Only attention is padded; a batch holds continuations of like length.
        """
        sizes = np.array([len(x) for x in tokens])
        for which in batches(sizes, most):
            part = lambda x: torch.as_tensor(np.asarray(x)[which], device=self.model.device)
            hidden = self.forward(
                [tokens[i] for i in which],
                part(start),
                [(cache, part(rows), part(n)) for cache, rows, n in seen],
                keep and (keep[0], part(keep[1]), part(keep[2])),
            )
            yield which, np.cumsum(sizes[which]) - sizes[which], hidden

    def forward(self, tokens, start, seen, keep):
        """A batch of `read` -> (M, D), the states of tokens[0], tokens[1], ... end to end."""
        model, cfg, device = self.model, self.model.cfg, self.model.device
        N, T, H, K = len(tokens), max(map(len, tokens)), cfg.n_head, cfg.n_kv_head
        row = torch.from_numpy(np.repeat(np.arange(N), [len(x) for x in tokens])).to(
            device
        )  # (M,) each token's row
        nth = torch.from_numpy(np.concatenate([np.arange(len(x)) for x in tokens])).to(
            device
        )  # (M,) and place in it
        pos, cell = start[row] + nth, row * T + nth  # (M,), (M,)
        rope = model.cos[pos][None, :, None], model.sin[pos][None, :, None]  # (1, M, 1, E/2)
        ids = torch.from_numpy(np.concatenate(tokens)).to(device)
        x = model.embed(ids).to(torch.promote_types(model.dtype, torch.float32))  # (M, D)
        reach = [int(n.max()) for *_, n in seen]
        masks = [
            (torch.arange(s, device=device) < n[:, None])[:, None].expand(N, T, s)
            for s, (*_, n) in zip(reach, seen)
        ]
        mask = torch.cat(
            [*masks, torch.ones(T, T, dtype=torch.bool, device=device).tril().expand(N, T, T)], -1
        )  # (N, T, S)
        bias = torch.zeros(mask.shape, dtype=model.dtype, device=device).masked_fill_(
            ~mask, -torch.inf
        )[:, None]  # (N, 1, T, S)
        for layer, (norm, qkv, out, mlp_norm, gate_up, down) in enumerate(self.layers):
            q, k, v = (
                qkv(norm(x)).view(1, len(x), H + 2 * K, -1).split((H, K, K), 2)
            )  # (1, M, heads, E)
            q, k, v = rotate(q, rope)[0], rotate(k, rope)[0], v[0]  # (M, heads, E)
            if keep:
                cache, rows, slots = keep
                (
                    cache.k[layer][rows[row], :, slots[row] + nth],
                    cache.v[layer][rows[row], :, slots[row] + nth],
                ) = k, v
            q, k, v = (
                y.new_zeros(N * T, *y.shape[1:])
                .index_copy_(0, cell, y)
                .view(N, T, *y.shape[1:])
                .transpose(1, 2)
                for y in (q, k, v)
            )
            k = torch.cat(
                [c.k[layer][:, :, :s].index_select(0, rows) for s, (c, rows, _) in zip(reach, seen)]
                + [k],
                2,
            )  # (N, K, S, E)
            v = torch.cat(
                [c.v[layer][:, :, :s].index_select(0, rows) for s, (c, rows, _) in zip(reach, seen)]
                + [v],
                2,
            )
            y = (
                attend(*(x.transpose(1, 2) for x in (q, k, v)), bias)
                .reshape(N * T, -1)
                .index_select(0, cell)
            )  # (M, H*E)
            x = x + out(y)
            gate, up = gate_up(mlp_norm(x)).chunk(2, -1)
            x = x + down(F.silu(gate) * up)
        return model.norm(x)  # (M, D)


def batches(sizes, most):
    """Indices of rows in batches of like size: at most `most` padded tokens, and no row under three quarters of the longest unless all are short.

    Example: batches(np.array([10, 300, 290]), 4096) -> [1, 2], [0]
    """
    order, begin = np.argsort(-sizes, kind="stable"), 0
    while begin < len(order):
        longest = sizes[order[begin]]
        end = begin + max(1, most // longest)
        end = min(
            end,
            begin
            + int(
                np.searchsorted(
                    -sizes[order[begin:]], -min(longest - 16, 3 * longest // 4), side="right"
                )
            ),
        )
        yield order[begin:end]
        begin = end


def linear(modules, dtype):
    """x -> x W^T + b for the stacked weights of some modules, in a dtype; on the CPU in the layout of its matrix product."""
    with torch.no_grad():
        w = torch.cat([m.weight for m in modules]).to(dtype)
        b = (
            None
            if getattr(modules[0], "bias", None) is None
            else torch.cat([m.bias for m in modules]).to(dtype)
        )
    if (
        w.device.type != "cpu"
        or not torch.backends.mkldnn.is_available()
        or not (
            torch.ops.mkldnn._is_mkldnn_bf16_supported()
            if dtype == torch.bfloat16
            else w.numel() >= 2**20
        )
    ):
        return lambda x: F.linear(x, w, b)
    packed = torch.ops.mkldnn._reorder_linear_weight(w)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, b, "none", [], "")
