"""A decoder-only transformer of the Llama family: the laptop-sized model and SmolLM2 are the same forty lines of forward pass.

    x <- x + Attention(RMSNorm(x));   x <- x + SwiGLU(RMSNorm(x));   logits = RMSNorm(x) W_head^T

RMSNorm (arXiv 1910.07467), rotary positions (2104.09864, in the half-split layout), grouped-query attention (2305.13245),
SwiGLU (2002.05202), optional biases on q, k, v, tied or untied head. `forward` stops at the last hidden state: log-probabilities
of tokens are computed in one place only, `logprobs.token_logprobs`, which never holds the logits of a long batch.

The key/value cache is indexed by *position*: a token at position p of its row lives in slot p, and a query at position p sees slots
0..p. So "cut this row back to n tokens" is nothing but writing from position n again, rows may have any lengths, and
what padding leaves behind is never seen, because it is overwritten before any query reaches it.

Training has no padding: documents lie one behind the other in a long row, and attention goes document by document (`Documents`).

Shapes: B batch, T new tokens, S slots of the cache, D width, H query heads, K key/value heads, E head width, V vocabulary.
"""

import dataclasses
import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn
from torch.utils.checkpoint import checkpoint

try:
    from torch.nn.attention.varlen import (
        varlen_attn,
    )  # flash attention over documents of any length; CUDA only
except ImportError:
    varlen_attn = None


@dataclasses.dataclass
class ModelConfig:
    vocab_size: int
    n_layer: int = 4
    n_head: int = 4
    n_kv_head: int = 4
    d_model: int = 128
    d_ff: int = 384
    max_len: int = 1024  # positions; the rotary table is this long
    rope_theta: float = 10000.0
    rope_llama3: tuple = ()  # Llama 3.1's slower frequencies: factor, low_freq_factor, high_freq_factor, original positions; (): plain ones
    norm_eps: float = 1e-5
    qkv_bias: bool = False
    tied: bool = True  # the head is the embedding matrix

    def __post_init__(self):
        if self.d_model % self.n_head or self.n_head % self.n_kv_head:
            raise ValueError(
                f"d_model={self.d_model} must be a multiple of n_head={self.n_head}, "
                f"and n_head a multiple of n_kv_head={self.n_kv_head}"
            )


class Cache:
    """Keys and values of B rows, S slots each. Slot = position. `k[l]`, `v[l]`: (B, K, S, E) of layer l."""

    def __init__(self, cfg, rows, slots, like):
        shape = (rows, cfg.n_kv_head, slots, cfg.d_model // cfg.n_head)
        self.k = [
            torch.zeros(shape, dtype=like.dtype, device=like.device) for _ in range(cfg.n_layer)
        ]
        self.v = [
            torch.zeros(shape, dtype=like.dtype, device=like.device) for _ in range(cfg.n_layer)
        ]

    @property
    def slots(self):
        return self.k[0].shape[2]

    def reserve(self, slots):
        """Make room for at least `slots` positions; by half as much again, so that growing stays rare."""
        if slots > self.slots:
            self.fit(max(slots, self.slots * 3 // 2))

    def fit(self, slots):
        """Make it exactly so many slots: cut, or filled up with zeros."""
        self.k, self.v = (
            [F.pad(x, (0, 0, 0, slots - x.shape[2])) for x in xs] for xs in (self.k, self.v)
        )

    def select(self, rows):
        """The cache of some rows, in any order and with repeats. rows: (B',) int64. Returns a copy."""
        new = object.__new__(Cache)
        new.k, new.v = [k[rows] for k in self.k], [v[rows] for v in self.v]
        return new

    def put(self, rows, other):
        """Write the cache of `other`, which may have fewer slots, into `rows` (the inverse of select). rows: (B',) int64."""
        for mine, theirs in zip(self.k + self.v, other.k + other.v):
            mine[rows, :, : theirs.shape[2]] = theirs.to(mine.dtype)


class Documents:
    """Where the documents of packed rows lie, and what each sees; worked out once a batch, on its device. The rows are taken end to end: N = B T
    tokens. A document sees what stands `before` it, which may be tokens of other documents, and its own tokens up to each.

    bounds, longest    (documents + 1,) int32, the first token of each document, and N; length of the longest one: what varlen_attn asks for
    keys, key_bounds   the same for what each sees, by number of the token; keys None: the tokens themselves, as nothing stands before any document
    buckets            [(n, L, S, bias), ...] on the way without varlen_attn: n documents of nearly one length, filled up to the longest, L tokens that
                       see S; bias of `attend`, None: causal
    cells, key_cells   (C,) the token in each cell of the buckets, one bucket after the other. Cells behind a document's end repeat its last token: no
                       real token attends to them, and their own result is not used
    home               (N,) the cell of each token: cells[home] is 0..N-1
    """

    def __init__(self, doc, before=None):
        """doc (B, T): a document is a run of one number within a row; padding is one too. before: None, or numbers of tokens for each document, (m,)."""
        first = torch.ones_like(doc, dtype=torch.bool)
        first[:, 1:] = doc[:, 1:] != doc[:, :-1]
        self.bounds = F.pad(first.flatten().nonzero()[:, 0], (0, 1), value=doc.numel()).int()
        begin, length, device = self.bounds[:-1].long(), self.bounds.diff(), doc.device
        sees = (
            length.long()
            if before is None
            else length + torch.tensor([len(b) for b in before], device=device)
        )
        self.keys, self.key_bounds, self.most = None, self.bounds, int(sees.max())
        if before is not None:
            before = [torch.as_tensor(b, dtype=torch.int64, device=device) for b in before]
            own = torch.arange(doc.numel(), device=device).split(length.tolist())
            self.keys, self.key_bounds = (
                torch.cat([x for pair in zip(before, own) for x in pair]),
                F.pad(sees.cumsum(0), (1, 0)).int(),
            )
        sizes, order = length.sort(descending=True, stable=True)
        sizes = sizes.tolist()
        self.longest, self.buckets, cells, key_cells, real = sizes[0], [], [], [], []
        while sizes:
            L = sizes[0]
            n = sum(size >= 0.8 * L for size in sizes)
            some, order, sizes = order[:n], order[n:], sizes[n:]  # (n,)
            place = torch.arange(L, device=device)
            cells.append((begin[some, None] + place.minimum(length[some, None] - 1)).flatten())
            real.append((place < length[some, None]).flatten())
            S, bias = L, None
            if before is not None:
                S = int(sees[some].max())
                slot, ahead = (
                    torch.arange(S, device=device),
                    (sees - length)[some, None],
                )  # (S,), (n, 1)
                key_cells.append(
                    self.keys[
                        self.key_bounds[some, None] + slot.minimum(sees[some, None] - 1)
                    ].flatten()
                )
                seen = slot <= (ahead + place)[..., None]  # (n, L, S)
                bias = torch.zeros(seen.shape, device=device).masked_fill_(~seen, float("-inf"))[
                    :, None
                ]
            self.buckets.append((n, L, S, bias))
        self.cells, real = torch.cat(cells), torch.cat(real).nonzero()[:, 0]
        self.key_cells = torch.cat(key_cells) if key_cells else self.cells
        self.home = torch.empty_like(real)
        self.home[self.cells[real]] = real


def attend(q, k, v, bias):
    """softmax(q k^T / sqrt(E) + bias) v with grouped heads. q (B, T, H, E); k, v (B, S, K, E); bias (1|B, 1, T, S), 0 or -inf; or None: causal,
    T = S. Returns (B, T, H, E).

    On the CPU two plain matrix products are faster than torch's fused kernel, forward and backward; elsewhere the fused kernel is used.
    Both compute the same thing.
    """
    (B, T, H, E), (_, S, K, _) = q.shape, k.shape
    if (
        bias is None and q.device.type == "cpu"
    ):  # blocks of about 128 queries, each with the keys up to its end
        n = -(-T // max(1, round(T / 128)))
        bias = torch.full((T, T), float("-inf"), dtype=q.dtype).triu(1)[None, None]
        return torch.cat(
            [
                attend(q[:, a : a + n], k[:, : a + n], v[:, : a + n], bias[..., a : a + n, : a + n])
                for a in range(0, T, n)
            ],
            1,
        )
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, heads, T or S, E)
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, is_causal=bias is None, enable_gqa=H != K
        ).transpose(1, 2)
    with torch.autocast("cpu", enabled=False):  # the softmax stays in q's type
        q = (q * E**-0.5).reshape(B, K, H // K * T, E)  # the heads of a group share k and v
        scores = q @ k.transpose(-1, -2)  # (B, K, H/K * T, S)
        scores = (scores.view(B, K, H // K, T, S) + bias[:, :, None]).view(B, K, H // K * T, S)
        return (scores.softmax(-1) @ v).view(B, H, T, E).transpose(1, 2)


@torch.compiler.disable  # its shapes are never the same twice
def attend_documents(q, k, v, docs):
    """Causal attention within each document. q (B, T, H, E); k, v (B, T, K, E) -> (B, T, H, E)."""
    shape, (H, K) = q.shape, (q.shape[2], k.shape[2])
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))  # (N, heads, E)
    if varlen_attn and q.is_cuda and q.dtype != torch.float32:
        k, v = (
            x.repeat_interleave(H // K, 1) for x in (k, v)
        )  # torch 2.11 knows no grouped heads here
        k, v = (x if docs.keys is None else x.index_select(0, docs.keys) for x in (k, v))
        return varlen_attn(
            q, k, v, docs.bounds, docs.key_bounds, docs.longest, docs.most, window_size=(-1, 0)
        ).view(shape)
    q = q.index_select(0, docs.cells).split([n * L for n, L, _, _ in docs.buckets])
    k, v = (
        x.index_select(0, docs.key_cells).split([n * S for n, _, S, _ in docs.buckets])
        for x in (k, v)
    )
    y = [
        attend(
            qi.unflatten(0, (n, L)),
            ki.unflatten(0, (n, S)),
            vi.unflatten(0, (n, S)),
            bias if bias is None else bias.to(qi.dtype),
        ).flatten(0, 1)
        for (n, L, S, bias), qi, ki, vi in zip(docs.buckets, q, k, v)
    ]  # (n L, H, E) each
    return torch.cat(y).index_select(0, docs.home).view(shape)


class RMSNorm(nn.RMSNorm):
    """Computed in the type of the residual stream, which is at least float32; given out in the type of the weights."""

    def forward(self, x):
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps).to(
            self.weight.dtype
        )


def narrow(x):
    """In autocast's type, where it is on: once, and not again for each matrix product that reads it."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


class Block(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        E = cfg.d_model // cfg.n_head
        self.attn_norm = RMSNorm(cfg.d_model, eps=cfg.norm_eps)
        self.q = nn.Linear(cfg.d_model, cfg.n_head * E, bias=cfg.qkv_bias)
        self.k = nn.Linear(cfg.d_model, cfg.n_kv_head * E, bias=cfg.qkv_bias)
        self.v = nn.Linear(cfg.d_model, cfg.n_kv_head * E, bias=cfg.qkv_bias)
        self.o = nn.Linear(cfg.n_head * E, cfg.d_model, bias=False)
        self.mlp_norm = RMSNorm(cfg.d_model, eps=cfg.norm_eps)
        self.gate = nn.Linear(cfg.d_model, cfg.d_ff, bias=False)
        self.up = nn.Linear(cfg.d_model, cfg.d_ff, bias=False)
        self.down = nn.Linear(cfg.d_ff, cfg.d_model, bias=False)

    def forward(self, x, rope, seen, cache=None, layer=0, pos=None):
        """x (B, T, D); seen: what a token attends to, a bias of `attend`, or Documents."""
        B, T, D = x.shape
        h = narrow(self.attn_norm(x))
        q = rotate(self.q(h).view(B, T, self.cfg.n_head, -1), rope)  # (B, T, H, E)
        k = rotate(self.k(h).view(B, T, self.cfg.n_kv_head, -1), rope)  # (B, T, K, E)
        v = self.v(h).view(B, T, self.cfg.n_kv_head, -1)  # (B, T, K, E)
        if cache is not None:
            ck, cv = cache.k[layer], cache.v[layer]
            row = torch.arange(B, device=x.device)[:, None]  # (B, 1)
            ck[row, :, pos] = k.to(ck.dtype)  # slot = position
            cv[row, :, pos] = v.to(cv.dtype)
            S = seen.shape[-1]
            k, v = (c[:, :, :S].transpose(1, 2).to(q.dtype) for c in (ck, cv))  # (B, S, K, E)
        y = (
            attend_documents(q, k, v, seen)
            if isinstance(seen, Documents)
            else attend(q, k, v, None if seen is None else seen.to(q.dtype))
        )
        x = x + self.o(y.reshape(B, T, -1))  # (B, T, D)
        h = narrow(self.mlp_norm(x))
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def rotary(cfg):
    """The rotary tables (cos, sin), each (max_len, E/2) float32: angle = position * theta^(-2i/E).

    Llama 3.1 (arXiv 2407.21783) divides the frequencies of waves longer than original / low_freq_factor positions by `factor`, keeps those shorter than
    original / high_freq_factor, and in between goes from the one to the other linearly in original / wave length.
    """
    E = cfg.d_model // cfg.n_head
    freq = cfg.rope_theta ** (-torch.arange(0, E, 2).float() / E)  # (E/2,)
    if cfg.rope_llama3:
        factor, low, high, original = cfg.rope_llama3
        kept = ((original * freq / (2 * math.pi) - low) / (high - low)).clamp(
            0, 1
        )  # (E/2,) share of the plain frequency
        freq = kept * freq + (1 - kept) * freq / factor
    angle = torch.outer(torch.arange(cfg.max_len).float(), freq)  # (max_len, E/2)
    return angle.cos(), angle.sin()


def rotate(x, rope):
    """Rotary positions, half-split layout. x (B, T, heads, E); rope = (cos, sin), each (1|B, T, 1, E/2)."""
    cos, sin = rope
    a, b = x.chunk(2, dim=-1)  # (B, T, heads, E/2)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


class Transformer(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.checkpoint = (
            False  # training: keep a block's input only, and compute the rest again on the way back
        )
        self.embed = nn.Embedding(cfg.vocab_size, cfg.d_model)
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layer))
        self.norm = RMSNorm(cfg.d_model, eps=cfg.norm_eps)
        self.head = None if cfg.tied else nn.Linear(cfg.d_model, cfg.vocab_size, bias=False)
        for name, table in zip(("cos", "sin"), rotary(cfg)):
            self.register_buffer(name, table, persistent=False)  # (max_len, E/2)

    def _apply(self, fn, *args):
        """What .to(), .float() and .bfloat16() call: the rotary tables are made anew, because one rounded to bfloat16 would stay so."""
        super()._apply(fn, *args)
        self.cos, self.sin = (table.to(self.cos) for table in rotary(self.cfg))
        return self

    def init_weights(self, seed=0):
        """Normal(0, 1/sqrt(fan_in)); the layers that write to the residual stream are scaled down by sqrt(2 n_layer)."""
        gen = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            if p.dim() < 2:
                continue
            std = p.shape[-1] ** -0.5
            if name.endswith(("o.weight", "down.weight")):
                std /= math.sqrt(2 * self.cfg.n_layer)
            with torch.no_grad():
                p.copy_(torch.randn(p.shape, generator=gen) * std)
        return self

    @property
    def head_weight(self):  # (V, D)
        return self.embed.weight if self.head is None else self.head.weight

    @property
    def device(self):
        return self.embed.weight.device

    @property
    def dtype(self):
        return self.embed.weight.dtype

    def new_cache(self, rows, slots):
        """An empty cache for `rows` rows of `slots` positions."""
        return Cache(self.cfg, rows, slots, self.embed.weight)

    def forward(self, ids, pos=None, doc=None, cache=None, reach=None, before=None):
        """Last hidden states. ids (B, T) int64 -> (B, T, D).

        pos    (B, T) positions; default 0..T-1 in every row.
        doc    (B, T) document numbers of packed rows: a token sees only earlier tokens of its own document, a run of one number.
        before with `doc`: what else the tokens of each document see, as from `pack_shared`.
        cache  a Cache; then `pos` is required, new keys are written at slots `pos`, and a query at position p sees slots 0..p.
        reach  with a cache: how many slots any query may need (default: all); smaller is faster.
        Right padding needs no mask: no real token looks to its right.
        """
        B, T = ids.shape
        if T > self.cfg.max_len and pos is None:
            raise ValueError(
                f"{T} tokens do not fit max_len={self.cfg.max_len}; shorten the input or raise max_len"
            )
        if pos is None:
            rope = self.cos[None, :T, None], self.sin[None, :T, None]  # (1, T, 1, E/2)
        else:
            rope = self.cos[pos][:, :, None], self.sin[pos][:, :, None]  # (B, T, 1, E/2)
        x = self.embed(ids).to(
            torch.promote_types(self.dtype, torch.float32)
        )  # (B, T, D); see RMSNorm
        seen = None  # causal
        if doc is not None:
            seen = Documents(doc, before)
        elif cache is not None:
            S = cache.slots if reach is None else reach
            mask = torch.arange(S, device=ids.device) <= pos[:, None, :, None]  # (B, 1, T, S)
            seen = torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill_(
                ~mask, float("-inf")
            )
        for layer, block in enumerate(self.blocks):
            if cache is not None:
                x = block.forward(
                    x, rope, seen, cache, layer, pos
                )  # past `compile_blocks`, which is for training
            elif self.checkpoint and torch.is_grad_enabled():
                x = checkpoint(block, x, rope, seen, use_reentrant=False)
            else:
                x = block(x, rope, seen)
        return self.norm(x)


def hollow(cfg, dtype=torch.float32, device="cpu"):
    """A Transformer whose weights are not there: nothing is allocated or drawn. They come by `load_state_dict(weights, assign=True)`."""
    with torch.device("meta"):
        model = Transformer(cfg)
    model.cos, model.sin = (table.to(device, dtype) for table in rotary(cfg))
    return model


def count_params(model, embedding=True):
    """Number of parameters; without the embedding (and so without a tied head) if asked."""
    n = sum(p.numel() for p in model.parameters())
    return n if embedding else n - model.embed.weight.numel()


def work_size(model):
    """P of the FLOP count: parameters without the embedding, plus the head."""
    return count_params(model, embedding=False) + (
        model.head_weight.numel() if model.cfg.tied else 0
    )
