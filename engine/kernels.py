"""Attention of a decode step as one kernel: rotation, write to the cache, prompt and own tokens.

    q, k <- rotated;   own cache[position] <- k, v
    y = softmax(q [prompt's keys; own keys]^T / sqrt(E)) [prompt's values; own values]

The lengths are read on the GPU, so that a recorded step serves all of them. A program of the kernel
takes a row and a key/value head. It goes over the keys in blocks, with a running softmax in float32
(arXiv 1805.02867, 2205.14135). Without Triton, which comes with torch for CUDA, and with `--compile
false`, torch's operations compute the same (`plain_attention`). On a CPU neither is used
(`Decoder._attend_by_prompt`).

Shapes: B slots in use, Sp slots of prompts, Sn slots of own tokens, H query heads, K key/value
heads, G = H/K, E head width.
"""

import typing

import torch

import logprobs
from model import attention, attention_bias, rotate

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None


class Rows(typing.NamedTuple):
    """Where the rows of a step stand, and the rotary tables."""

    prompt: torch.Tensor  # (B,) the prompt's row in its cache
    length: torch.Tensor  # (B,) tokens of the prompt that are attended to
    count: torch.Tensor  # (B,) own tokens, at least 1: the one that is run included
    cos: torch.Tensor  # (max_len, E/2)
    sin: torch.Tensor


def step_attention(qkv, rows, own, shared):
    """Attention of one layer to prompts and own tokens: qkv (B, (H + 2K) E) -> (B, H E).

    own, shared  (keys, values) of a layer: (rows, K, Sn, E) and (prompts, K, Sp, E). The new key
                 and value are written to own at slot count - 1. A row that has ended may be at the
                 last slot, or behind it.
    """
    if triton is None or not qkv.is_cuda or logprobs.COMPILE is False:
        return plain_attention(qkv, rows, own, shared)
    return fused_attention(qkv, rows, own, shared)


def fused_attention(qkv, rows, own, shared):
    """`step_attention` by the kernel."""
    B = len(qkv)
    _, K, Sn, E = own[0].shape
    H = qkv.shape[1] // E - 2 * K
    y = qkv.new_empty(B, H * E)
    width = max(16, triton.next_power_of_2(E))  # the least of a matrix product
    group = max(16, triton.next_power_of_2(H // K))
    block = 64 if qkv.dtype.itemsize == 2 else 32  # more keys would not fit in registers
    sizes = dict(H=H, K=K, E=E, WIDTH=width, GROUP=group, BLOCK=block)
    attention_kernel[B, K](
        qkv, *rows, *own, *shared, y, Sn, shared[0].shape[2], len(rows.cos), E**-0.5, **sizes
    )
    return y


def plain_attention(qkv, rows, own, shared):
    """`step_attention` by torch's operations, over all slots."""
    B = len(qkv)
    _, K, Sn, E = own[0].shape
    Sp = shared[0].shape[2]
    q, k, v = qkv.view(B, -1, E).split((qkv.shape[1] // E - 2 * K, K, K), 1)  # (B, heads, E)
    position = (rows.count - 1).clamp(max=Sn - 1)  # (B,)
    place = (rows.length + rows.count - 1).clamp(max=len(rows.cos) - 1)
    rope = (rows.cos[place][:, None, None], rows.sin[place][:, None, None])  # (B, 1, 1, E/2)
    number = torch.arange(B, device=qkv.device)
    own[0][number, :, position] = rotate(k[:, None], rope)[:, 0]
    own[1][number, :, position] = v
    in_prompt = torch.arange(Sp, device=qkv.device) < rows.length[:, None]  # (B, Sp)
    in_own = torch.arange(Sn, device=qkv.device) <= position[:, None]  # (B, Sn)
    bias = attention_bias(torch.cat((in_prompt, in_own), 1), qkv.dtype)[:, None, None]
    keys, values = (
        torch.cat((far.index_select(0, rows.prompt), near[:B]), 2).transpose(1, 2)
        for far, near in zip(shared, own, strict=True)
    )  # (B, Sp + Sn, K, E)
    return attention(rotate(q[:, None], rope), keys, values, bias).flatten(1)  # (B, H E)


if triton:

    @triton.jit
    def attention_kernel(
        qkv,
        prompts,
        lengths,
        counts,
        cos,
        sin,
        own_k,
        own_v,
        shared_k,
        shared_v,
        y,
        own_slots,
        shared_slots,
        max_len,
        scale,
        H: tl.constexpr,
        K: tl.constexpr,
        E: tl.constexpr,
        WIDTH: tl.constexpr,  # E, GROUP: G, rounded up
        GROUP: tl.constexpr,
        BLOCK: tl.constexpr,  # keys
    ):
        row = tl.program_id(0).to(tl.int64)
        head = tl.program_id(1)
        length = tl.load(lengths + row).to(tl.int32)
        count = tl.load(counts + row).to(tl.int32)
        position = tl.minimum(count - 1, own_slots - 1)
        place = tl.minimum(length + count - 1, max_len - 1)
        G = H // K
        half = E // 2
        e = tl.arange(0, WIDTH)
        real = e < E
        turned = tl.where(e < half, e + half, e - half)  # the other half of a head
        angle = place * half + tl.where(e < half, e, e - half)
        c = tl.load(cos + angle, mask=real, other=0).to(tl.float32)
        s = tl.load(sin + angle, mask=real, other=0).to(tl.float32)
        s = tl.where(e < half, -s, s)
        heads = qkv + row * (H + 2 * K) * E
        # the new key and value
        new = heads + (H + head) * E
        k = turn(new + e, new + turned, c, s, real).to(own_k.dtype.element_ty)
        v = tl.load(new + K * E + e, mask=real, other=0)
        own = (row * K + head) * own_slots * E
        tl.store(own_k + own + position * E + e, k, mask=real)
        tl.store(own_v + own + position * E + e, v, mask=real)
        # the queries of the group
        g = tl.arange(0, GROUP)[:, None]
        inside = (g < G) & real[None, :]
        group = (head * G + g) * E
        q = turn(heads + group + e[None, :], heads + group + turned[None, :], c, s, inside)
        q = (q * scale).to(own_k.dtype.element_ty)  # (GROUP, WIDTH)
        # the new token, then the prompt and the own tokens before it
        score = tl.sum(q.to(tl.float32) * k.to(tl.float32)[None, :], 1)  # (GROUP,)
        values = tl.zeros((GROUP, WIDTH), tl.float32) + v.to(tl.float32)[None, :]
        state = (score, tl.full((GROUP,), 1.0, tl.float32), values)
        far = (tl.load(prompts + row) * K + head) * shared_slots * E
        state = attend_to(q, shared_k + far, shared_v + far, length, state, E, WIDTH, BLOCK)
        state = attend_to(q, own_k + own, own_v + own, position, state, E, WIDTH, BLOCK)
        target = y + row * H * E + group + e[None, :]
        tl.store(target, (state[2] / state[1][:, None]).to(y.dtype.element_ty), mask=inside)

    @triton.jit
    def turn(x, turned, c, s, mask):
        """Rotated heads: what is at x, and in the other half of its head."""
        straight = tl.load(x, mask=mask, other=0).to(tl.float32)
        return straight * c + tl.load(turned, mask=mask, other=0).to(tl.float32) * s

    @triton.jit
    def attend_to(
        q, keys, values, length, state, E: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
    ):
        """Add keys 0 .. length - 1 to a running softmax: state (largest score, sum, values)."""
        top, total, mean = state
        e = tl.arange(0, WIDTH)
        for begin in range(0, length, BLOCK):
            slot = begin + tl.arange(0, BLOCK)
            cell = slot[:, None] * E + e[None, :]
            there = (slot < length)[:, None] & (e < E)[None, :]
            k = tl.load(keys + cell, mask=there, other=0)  # (BLOCK, WIDTH)
            v = tl.load(values + cell, mask=there, other=0)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee")  # (GROUP, BLOCK)
            scores = tl.where((slot < length)[None, :], scores, float("-inf"))
            higher = tl.maximum(top, tl.max(scores, 1))
            fade = tl.exp(top - higher)
            p = tl.exp(scores - higher[:, None])
            total = total * fade + tl.sum(p, 1)
            mean = mean * fade[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
            top = higher
        return top, total, mean
