"""A decoder-only transformer of the Llama family, from the laptop-sized model to Llama and Qwen.

    x <- x + Attention(RMSNorm(x));   x <- x + SwiGLU(RMSNorm(x));   logits = RMSNorm(x) W_head^T

RMSNorm (arXiv 1910.07467), rotary positions (2104.09864, half-split layout), grouped-query
attention (2305.13245), SwiGLU (2002.05202), optional biases on q, k, v, tied or untied head.
`forward` stops at the last hidden state. Log-probabilities of tokens are computed in one place
only, `logprobs.token_logprobs`, which never holds the logits of a long batch.

The key/value cache is indexed by position: the token at position p of a row is in slot p, and a
query at position p attends to slots 0..p. To cut a row back to n tokens, write from position n
again. Rows may have any lengths. Slots filled by padding are overwritten before a query reaches
them.

Training has no padding: documents follow one another in a long row, and attention goes document
by document (`Documents`).

Shapes: B batch, T new tokens, S slots of the cache, D width, F width of the feed-forward layer,
H query heads, K key/value heads, E head width, V vocabulary, N = B T tokens of packed rows.
"""

import dataclasses
import functools
import inspect
import math
import typing

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint


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
    # Llama 3.1's slower frequencies: factor, low_freq_factor, high_freq_factor and the original
    # number of positions; (): plain ones
    rope_llama3: tuple = ()
    norm_eps: float = 1e-5
    qkv_bias: bool = False
    tied: bool = True  # the head is the embedding matrix

    def __post_init__(self):
        if self.d_model % self.n_head or self.n_head % self.n_kv_head:
            raise ValueError(
                f"d_model={self.d_model} must be a multiple of n_head={self.n_head}, "
                f"and n_head a multiple of n_kv_head={self.n_kv_head}"
            )


def attention_bias(mask, dtype):
    """The bias of `attention` for a mask: 0 where a query attends, -inf elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


# ---------------------------------------------------------------- cache


class Cache:
    """Keys and values of B rows. Slot = position. `k[l]`, `v[l]`: (B, K, S, E) of layer l."""

    def __init__(self, cfg, rows, slots, like):
        shape = (rows, cfg.n_kv_head, slots, cfg.d_model // cfg.n_head)
        self.k = [like.new_zeros(shape) for _ in range(cfg.n_layer)]
        self.v = [like.new_zeros(shape) for _ in range(cfg.n_layer)]

    @property
    def slots(self):
        return self.k[0].shape[2]

    def reserve(self, slots):
        """Make room for at least `slots` positions; grows by half, so that growing stays rare."""
        if slots > self.slots:
            self.fit(max(slots, self.slots * 3 // 2))

    def fit(self, slots):
        """Resize to exactly this many slots: cut, or filled up with zeros."""
        padding = (0, 0, 0, slots - self.slots)
        self.k = [F.pad(k, padding) for k in self.k]
        self.v = [F.pad(v, padding) for v in self.v]

    def select(self, rows):
        """A copy with these rows, in any order and with repeats. rows: (B',) int64."""
        copy = object.__new__(Cache)
        copy.k = [k[rows] for k in self.k]
        copy.v = [v[rows] for v in self.v]
        return copy

    def put(self, rows, source):
        """Write the rows of `source`, of at most as many slots, into `rows`: (B',) int64."""
        for target, values in zip(self.k + self.v, source.k + source.v, strict=True):
            target[rows, :, : values.shape[2]] = values.to(target.dtype)

    def update(self, layer, k, v, pos):
        """Write new keys and values k, v (B, T, K, E) at slots pos (B, T)."""
        row = torch.arange(len(pos), device=pos.device)[:, None]  # (B, 1)
        self.k[layer][row, :, pos] = k.to(self.k[layer].dtype)
        self.v[layer][row, :, pos] = v.to(self.v[layer].dtype)

    def first_slots(self, layer, slots, dtype):
        """Keys and values of the first slots, in a dtype: two of (B, S, K, E)."""
        k = self.k[layer][:, :, :slots].transpose(1, 2)
        v = self.v[layer][:, :, :slots].transpose(1, 2)
        return k.to(dtype), v.to(dtype)


# ---------------------------------------------------------------- attention


class Bucket(typing.NamedTuple):
    """Documents of nearly one length, padded to the longest."""

    documents: int
    queries: int  # tokens of the longest document
    keys: int  # tokens that it attends to
    bias: torch.Tensor | None  # (documents, 1, queries, keys) of `attention`; None: causal


class Padded(typing.NamedTuple):
    """Packed rows as padded batches, for attention where varlen_attn is not."""

    buckets: list  # Buckets of like length
    # (C,) the token in each cell of the buckets, one bucket after the other. Cells behind the end
    # of a document repeat its last token; their result is not used
    cells: torch.Tensor
    key_cells: torch.Tensor  # the same for attended tokens
    home: torch.Tensor  # (N,) the cell of each token: cells[home] is 0..N-1


class Documents:
    """Layout of packed rows: where documents begin, and what their tokens attend to.

    A token attends to the tokens listed in `before`, which may belong to other documents, and to
    the earlier tokens of its own document. The rows are taken end to end: token n of N = B T.
    Built once a batch, on the CPU; a GPU gets copies that nobody waits for.

    bounds       (documents + 1,) int32: the first token of each document, and N
    longest      tokens of the longest document
    key_bounds   the same as bounds for the attended tokens of each document
    longest_keys attended tokens of the document that has the most
    keys         (attended tokens,) their numbers; None: every document attends to itself only
    padded       Padded
    """

    def __init__(self, doc, before=None, device="cpu"):
        """doc (B, T), on the CPU: a document is a run of one number within a row; so is padding.

        before: None, or for each document the numbers of earlier tokens, (m,), on the CPU.
        """
        self.device = torch.device(device)
        self.layout = document_layout(doc, before)  # bounds, keys, key bounds, on the CPU
        bounds, keys, key_bounds = self.layout
        self.longest = int(bounds.diff().max())
        self.longest_keys = int(key_bounds.diff().max())
        self.bounds = to_device(bounds, self.device)
        self.keys = None if keys is None else to_device(keys, self.device)
        self.key_bounds = self.bounds if keys is None else to_device(key_bounds, self.device)

    @functools.cached_property
    def padded(self):
        """Worked out when it is asked for, which varlen_attn never does."""
        bounds, keys, key_bounds = self.layout
        begin = bounds[:-1].long()
        length = bounds.diff()
        key_begin = key_bounds[:-1].long()
        key_length = key_bounds.diff().long()
        sizes, order = length.sort(descending=True, stable=True)
        sizes = sizes.tolist()
        buckets, cells, key_cells, real = [], [], [], []
        for first, last in like_lengths(sizes):
            rows = order[first:last]
            place = torch.arange(sizes[first])  # (L,)
            cells.append(padded_runs(begin[rows], length[rows], place))
            real.append((place < length[rows, None]).flatten())
            slots = sizes[first]
            bias = None
            if keys is not None:
                slots = int(key_length[rows].max())
                cell = padded_runs(key_begin[rows], key_length[rows], torch.arange(slots))
                key_cells.append(keys[cell])
                ahead = (key_length - length)[rows]  # (n,) attended tokens before its own
                bias = bucket_bias(to_device(ahead, self.device), sizes[first], slots)
            buckets.append(Bucket(last - first, sizes[first], slots, bias))
        cells = torch.cat(cells)
        real = torch.cat(real).nonzero()[:, 0]
        home = torch.empty_like(real)
        home[cells[real]] = real
        key_cells = torch.cat(key_cells) if key_cells else cells
        return Padded(buckets, *(to_device(x, self.device) for x in (cells, key_cells, home)))


def to_device(x, device):
    """A tensor of the CPU on a device. A GPU copies it from pinned memory, and nobody waits."""
    if device.type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def document_layout(doc, before):
    """The bounds, keys and key bounds of `Documents`, on the CPU."""
    bounds = bounds_of(doc)
    if before is None:
        return bounds, None, bounds
    length = bounds.diff()
    tokens = torch.arange(doc.numel()).split(length.tolist())
    keys = torch.cat([x for pair in zip(before, tokens, strict=True) for x in pair])
    key_length = length + torch.tensor([len(b) for b in before])
    return bounds, keys, F.pad(key_length.cumsum(0), (1, 0)).int()


def bucket_bias(ahead, queries, keys):
    """The bias of a Bucket: (n, 1, L, S). ahead (n,): attended tokens before each document's own.

    Query l attends to the first ahead + l + 1 keys.
    """
    place = torch.arange(queries, device=ahead.device)  # (L,)
    slot = torch.arange(keys, device=ahead.device)  # (S,)
    mask = slot <= (ahead[:, None] + place)[..., None]  # (n, L, S)
    return attention_bias(mask, torch.float32)[:, None]  # (n, 1, L, S)


def bounds_of(doc):
    """The first token of each document of packed rows (B, T), and B T: (documents + 1,) int32.

    Example: [[0, 0, 1]] -> [0, 2, 3]
    """
    first = torch.ones_like(doc, dtype=torch.bool)
    first[:, 1:] = doc[:, 1:] != doc[:, :-1]
    return F.pad(first.flatten().nonzero()[:, 0], (0, 1), value=doc.numel()).int()


def like_lengths(sizes):
    """Ranges of like sizes, at least 0.8 of their first one. sizes: from the largest down.

    Example: [10, 9, 4] -> (0, 2), (2, 3)
    """
    first = 0
    while first < len(sizes):
        last = first + sum(size >= 0.8 * sizes[first] for size in sizes[first:])
        yield first, last
        first = last


def padded_runs(begin, length, place):
    """Runs of numbers from `begin` on, padded with their last one. begin, length (n,); place (L,).

    Example: begin [3, 7], length [2, 1], place [0, 1] -> [3, 4, 7, 7]
    """
    return (begin[:, None] + place.minimum(length[:, None] - 1)).flatten()  # (n L,)


def attention(q, k, v, bias):
    """softmax(q k^T / sqrt(E) + bias) v with grouped heads -> (B, T, H, E).

    q (B, T, H, E); k, v (B, S, K, E); bias (1|B, 1, T, S), 0 or -inf; None: causal, T = S. On a
    CPU two plain matrix products are faster than torch's fused kernel, forward and backward. On a
    GPU only flash attention takes grouped heads, and it takes neither a bias nor float32. What
    takes those, memory-efficient attention, gets the queries of a group in a row as one head with
    a bias; without one it gets repeated keys. (cuDNN: `machine.device_of`.)
    """
    if q.device.type == "cpu":
        return causal_attention_cpu(q, k, v) if bias is None else attention_cpu(q, k, v, bias)
    B, T, H, E = q.shape
    K = k.shape[2]
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, heads, T or S, E)
    if H != K and bias is not None:
        q = q.reshape(B, K, H // K * T, E)
        bias = bias.repeat(1, 1, H // K, 1)  # (1|B, 1, H/K * T, S)
    elif H != K and q.dtype == torch.float32:
        k = k.repeat_interleave(H // K, 1)  # (B, H, S, E)
        v = v.repeat_interleave(H // K, 1)
    y = F.scaled_dot_product_attention(
        q, k, v, attn_mask=bias, is_causal=bias is None, enable_gqa=q.shape[1] != k.shape[1]
    )
    return y.reshape(B, H, T, E).transpose(1, 2)  # (B, T, H, E)


def attention_cpu(q, k, v, bias):
    """`attention` by two matrix products. The query heads of a group share their keys."""
    B, T, H, E = q.shape
    S, K = k.shape[1:3]
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, heads, T or S, E)
    with torch.autocast("cpu", enabled=False):  # the softmax stays in q's type
        q = (q * E**-0.5).reshape(B, K, H // K * T, E)  # (B, K, H/K * T, E)
        scores = q @ k.transpose(-1, -2)  # (B, K, H/K * T, S)
        scores = scores.view(B, K, H // K, T, S) + bias[:, :, None]
        p = scores.view(B, K, H // K * T, S).softmax(-1)
        return (p @ v).view(B, H, T, E).transpose(1, 2)  # (B, T, H, E)


def causal_attention_cpu(q, k, v):
    """Causal `attention` in blocks of about 128 queries, each with the keys up to its end."""
    T = q.shape[1]
    n = -(-T // max(1, round(T / 128)))
    bias = torch.full((T, T), float("-inf"), dtype=q.dtype).triu(1)[None, None]  # (1, 1, T, T)
    blocks = []
    for first in range(0, T, n):
        last = first + n
        part = bias[..., first:last, :last]
        blocks.append(attention_cpu(q[:, first:last], k[:, :last], v[:, :last], part))
    return torch.cat(blocks, 1)  # (B, T, H, E)


@functools.cache
def varlen_kernel():
    """torch's flash attention over documents of any length, or None. It takes a second to import.

    -> (the function, does it take grouped heads?). torch 2.11's does not.
    """
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None, False
    return varlen_attn, "enable_gqa" in inspect.signature(varlen_attn).parameters


def attend_documents(q, k, v, docs):
    """Causal attention within each document. q (B, T, H, E); k, v (B, T, K, E) -> (B, T, H, E)."""
    shape = q.shape
    q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)  # (N, heads, E)
    if q.is_cuda and q.dtype != torch.float32 and varlen_kernel()[0]:
        return flash_documents(q, k, v, docs).view(shape)
    buckets, cells, key_cells, home = docs.padded
    q = q.index_select(0, cells).split([b.documents * b.queries for b in buckets])
    sizes = [b.documents * b.keys for b in buckets]
    k = k.index_select(0, key_cells).split(sizes)
    v = v.index_select(0, key_cells).split(sizes)
    rows = []
    for bucket, qi, ki, vi in zip(buckets, q, k, v, strict=True):
        qi = qi.unflatten(0, (bucket.documents, bucket.queries))  # (n, L, H, E)
        ki = ki.unflatten(0, (bucket.documents, bucket.keys))  # (n, S, K, E)
        vi = vi.unflatten(0, (bucket.documents, bucket.keys))
        bias = None if bucket.bias is None else bucket.bias.to(qi.dtype)
        rows.append(attention(qi, ki, vi, bias).flatten(0, 1))  # (n L, H, E)
    return torch.cat(rows).index_select(0, home).view(shape)


def flash_documents(q, k, v, docs):
    """`attend_documents` by torch's kernel. q (N, H, E); k, v (N, K, E) -> (N, H, E)."""
    kernel, takes_groups = varlen_kernel()
    group = q.shape[1] // k.shape[1]
    groups = {"enable_gqa": True} if takes_groups else {}
    if docs.keys is not None:
        k = k.index_select(0, docs.keys)
        v = v.index_select(0, docs.keys)
    if group > 1 and not groups:
        k = k.repeat_interleave(group, 1)
        v = v.repeat_interleave(group, 1)
    lengths = (docs.longest, docs.longest_keys)
    bounds = (docs.bounds, docs.key_bounds)
    return kernel(q, k, v, *bounds, *lengths, window_size=(-1, 0), **groups)


# ---------------------------------------------------------------- rotary positions


def rotary(cfg):
    """The rotary tables (cos, sin), each (max_len, E/2): angle = position * theta^(-2i/E).

    Llama 3.1 (arXiv 2407.21783) divides the frequencies of waves longer than
    original / low_freq_factor positions by `factor`, keeps those of waves shorter than
    original / high_freq_factor, and interpolates between, linearly in original / wave length.
    """
    E = cfg.d_model // cfg.n_head
    freq = cfg.rope_theta ** (-torch.arange(0, E, 2).float() / E)  # (E/2,)
    if cfg.rope_llama3:
        factor, low, high, original = cfg.rope_llama3
        share = (original * freq / (2 * math.pi) - low) / (high - low)  # of the plain frequency
        share = share.clamp(0, 1)
        freq = share * freq + (1 - share) * freq / factor
    angle = torch.outer(torch.arange(cfg.max_len).float(), freq)  # (max_len, E/2)
    return angle.cos(), angle.sin()


def rotate(x, rope):
    """Rotary positions, half-split. x (B, T, heads, E); rope: cos and sin, (1|B, T, 1, E/2)."""
    cos, sin = rope
    a, b = x.chunk(2, dim=-1)  # (B, T, heads, E/2)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)  # (B, T, heads, E)


# ---------------------------------------------------------------- layers


class RMSNorm(nn.RMSNorm):
    """RMSNorm in the residual stream's type, at least float32; the result in the weights' type."""

    def forward(self, x):
        y = F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)
        return y.to(self.weight.dtype)


def narrow(x):
    """Cast to autocast's type where it is on: once, and not in each product that reads x."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def block(x, layer, attend):
    """One block of the transformer, in training and in the fast paths: x (..., D) -> (..., D).

    layer   a `Block`, or its weights in another layout (engine/layers.py)
    attend  rotates and attends: what layer.qkv returns -> (..., H E)
    """
    x = x + layer.o(attend(layer.qkv(layer.attn_norm(x))))
    gate, up = layer.gate_up(layer.mlp_norm(x))  # (..., F)
    return x + layer.down(F.silu(gate) * up)


class Block(nn.Module):
    """The weights of one block, and `block` with attention within a batch or to a cache."""

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

    def qkv(self, h):
        """h (B, T, D) -> q (B, T, H, E), k and v (B, T, K, E)."""
        h = narrow(h)
        q = self.q(h).unflatten(-1, (self.cfg.n_head, -1))
        k = self.k(h).unflatten(-1, (self.cfg.n_kv_head, -1))
        v = self.v(h).unflatten(-1, (self.cfg.n_kv_head, -1))
        return q, k, v

    def gate_up(self, h):
        h = narrow(h)
        return self.gate(h), self.up(h)

    def forward(self, x, rope, seen, cache=None, layer=0, pos=None):
        """x (B, T, D) -> (B, T, D).

        rope   cos and sin of the tokens' positions, as `rotate` takes them
        seen   what a token attends to: a bias of `attention`, None (causal), or Documents
        cache  a Cache, with the number of this layer and the positions pos (B, T), or None
        """

        def attend(qkv):
            q, k, v = qkv
            q = rotate(q, rope)
            k = rotate(k, rope)
            if cache is not None:
                cache.update(layer, k, v, pos)
                k, v = cache.first_slots(layer, seen.shape[-1], q.dtype)  # (B, S, K, E)
            if isinstance(seen, Documents):
                y = attend_documents(q, k, v, seen)
            else:
                y = attention(q, k, v, None if seen is None else seen.to(q.dtype))
            return y.flatten(2)  # (B, T, H E)

        return block(x, self, attend)


# ---------------------------------------------------------------- the model


class Transformer(nn.Module):
    """The network: `forward` gives hidden states, `head_weight` turns them into logits."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        # training: keep only a block's input, and compute its rest again in the backward pass
        self.checkpoint = False
        self.embed = nn.Embedding(cfg.vocab_size, cfg.d_model)
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layer))
        self.norm = RMSNorm(cfg.d_model, eps=cfg.norm_eps)
        self.head = None if cfg.tied else nn.Linear(cfg.d_model, cfg.vocab_size, bias=False)
        cos, sin = rotary(cfg)  # (max_len, E/2)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def _apply(self, fn, *args):
        """Behind .to(), .float() and .bfloat16(): tables that were rounded are computed again."""
        super()._apply(fn, *args)
        self.cos, self.sin = (table.to(self.cos) for table in rotary(self.cfg))
        return self

    def init_weights(self, seed=0):
        """Draw weights from Normal(0, 1/sqrt(fan_in)).

        Layers that write to the residual stream are scaled down by sqrt(2 n_layer).
        """
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

    def embeddings(self, ids):
        """The residual stream before the first block, at least float32. ids (...) -> (..., D)."""
        return self.embed(ids).to(torch.promote_types(self.dtype, torch.float32))

    def forward(self, ids, pos=None, docs=None, cache=None, reach=None):
        """Last hidden states. ids (B, T) int64 -> (B, T, D).

        pos     (B, T) positions; default 0..T-1 in every row
        docs    the Documents of packed rows
        cache   a Cache; needs `pos`. New keys are written at slots `pos`, and a query at position
                p attends to slots 0..p
        reach   with a cache: slots that any query may need (default all); fewer are faster

        Right padding needs no mask: no real token attends to its right. Raises ValueError if the
        rows are longer than max_len.
        """
        T = ids.shape[1]
        if T > self.cfg.max_len and pos is None:
            raise ValueError(
                f"{T} tokens do not fit max_len={self.cfg.max_len}; "
                "shorten the input or raise max_len"
            )
        if pos is None:
            rope = self.cos[None, :T, None], self.sin[None, :T, None]  # (1, T, 1, E/2)
        else:
            rope = self.cos[pos][:, :, None], self.sin[pos][:, :, None]  # (B, T, 1, E/2)
        x = self.embeddings(ids)  # (B, T, D)
        seen = docs  # None: causal
        if cache is not None:
            S = cache.slots if reach is None else reach
            mask = torch.arange(S, device=ids.device) <= pos[:, None, :, None]  # (B, 1, T, S)
            seen = attention_bias(mask, x.dtype)
        for layer, part in enumerate(self.blocks):
            if cache is not None:  # `forward` itself: torch.compile is for training
                x = part.forward(x, rope, seen, cache, layer, pos)
            elif self.checkpoint and torch.is_grad_enabled():
                x = checkpoint(part, x, rope, seen, use_reentrant=False)
            else:
                x = part(x, rope, seen)
        return self.norm(x)


def hollow(cfg, dtype=torch.float32, device="cpu"):
    """A Transformer without weights: nothing is allocated or drawn.

    The weights come by `load_state_dict(weights, assign=True)`.
    """
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
    head = model.head_weight.numel() if model.cfg.tied else 0
    return count_params(model, embedding=False) + head
