"""Log-probabilities, KL and entropy of tokens, without holding their logits.

    log p(v | h) = x_v - log sum_u exp(x_u),       x = h W^T                      (log-probability)
    log p(v | h, v not in E) = x_v - log sum_{u not in E} exp(x_u)                     (conditional)
    H = -sum_v p_v log p_v,      KL(p || p') = sum_v p_v (log p_v - log p'_v)     (entropy and KL)

The conditional distribution leaves the columns of E out of the softmax. The difference
log p(v) - log(1 - p(E)) is the same number, and loses all its digits in float32 as p(E) nears 1.

Shapes: N tokens, D width, V vocabulary, C columns of a block.
"""

import bisect
import functools
import math
import typing

import torch

from model import to_device

# torch.compile for elementwise work: True, False, or None: on a GPU only.
# Its gain on a CPU: speed/logprobs.py
COMPILE = None

# Bytes of logits, at most, that are kept for the backward pass; the others are computed again.
KEEP = 2**29


def token_logprobs(hidden, weight, targets, sets=(), chunk=None, entropy=False, without=()):
    """Log-probabilities of target tokens -> (1 + len(sets) + entropy, N) float32.

    hidden   (N, D) the states that predict; weight (V, D); targets (N,).
    sets     lists of token ids, whose probabilities are summed.
    chunk    states and tokens of a block of logits. Default: 2,048 x 1,024; GPU: 8,192 x 8,192.
    without  token ids left out of the softmax: all is given that the next token is none of them.

    Row 0: log p(target). Row i: log of the summed probability of the ids in sets[i-1].
    With entropy=True one more row: the entropy of each distribution (nats, detached).
    Float64 factors give float64. Matrix products are in the type of their factors, or in autocast's
    where that is on; `exact_on_gpu` has an exception. All else is in float32. Memory does not grow
    with N times V. Differentiable.
    An id outside the vocabulary gives nan, an id of `without` gives -inf.
    """
    ids = [i for group in sets for i in group]
    against = () if entropy else None
    grad = torch.is_grad_enabled()
    lse, picked, negentropy = Softmax.apply(
        hidden, weight, targets, ids, without, against, chunk, grad
    )
    if without:
        every = to_device(torch.tensor(ids, dtype=targets.dtype), targets.device)
        picks = torch.cat((targets[:, None], every.expand(len(targets), -1)), 1)  # (N, 1 + ids)
        outside = torch.isin(picks, to_device(torch.tensor(list(without)), targets.device))
        picked = picked.masked_fill(outside, -math.inf)
    logit, *of_sets = picked.split([1] + [len(group) for group in sets], 1)  # (N, 1), (N, ids)
    rows = [logit[:, 0] - lse]  # log p(target)
    rows += [logits.logsumexp(1) - lse for logits in of_sets]  # log p(any token of the set)
    if entropy:
        rows.append(-negentropy.detach())
    return torch.stack(rows)  # (1 + sets + entropy, N)


def none_logprobs(hidden, weight, ids, chunk=None):
    """log P(the next token is none of `ids`): (N,), differentiable.

    Two normalisers are subtracted, so it is exact where the probability of `ids` is nearly 1.
    """
    none = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
    grad = torch.is_grad_enabled()
    others, everything = (
        Softmax.apply(hidden, weight, none, [], without, None, chunk, grad)[0]
        for without in (ids, ())
    )
    return others - everything


def token_kl(hidden, weight, other, other_weight, chunk=None, without=()):
    """KL(q || p) of the next-token distributions at N states, in nats: (N,).

    hidden, other (N, D), weights (V, D) of q and of p. The gradient goes to q.
    Types, memory and `without` (of both distributions) are as in token_logprobs.
    """
    none = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
    against = (other.detach(), other_weight.detach())
    grad = torch.is_grad_enabled()
    return Softmax.apply(hidden, weight, none, [], without, against, chunk, grad)[2]


class Softmax(torch.autograd.Function):
    """What log-probabilities need of the logits x = hidden weight^T (N, V), block by block.

    Everything that takes N V operations is here. Sums run over the columns not in `without`.

    lse (N,)                  log sum_v exp(x_v), so that log p = x - lse;    d lse / d x_v = p_v
    picked (N, 1 + len(ids))  x of the target and of `ids`
    S (N,)                    sum_v p_v (log p_v - log p'_v)
                              d S / d x_v = p_v (log p_v - log p'_v - S)

    against: None, no S; (), log p' = 0 and S is the negative entropy; (other, weight'),
    p' = softmax(other weight'^T) and S is KL(p || p').
    A block fits the processor's cache. Sums over blocks, gradients too, are in float32.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, ids, without, against, chunk, grad):
        device = hidden.device
        ctx.dtype = product_type(hidden, weight)
        ctx.against = against
        ctx.kept = {}
        ctx.block = block_size(chunk, device)
        blocks = cuts(len(weight), ctx.block[1])
        ctx.picks = Picks.of(ids, device)
        ctx.allowed = allowed_columns(set(without), blocks, device)
        room = KEEP if grad and any(ctx.needs_input_grad) else 0
        lse = hidden.new_full(
            hidden.shape[:1], -math.inf, dtype=torch.promote_types(ctx.dtype, torch.float32)
        )
        lse_q = lse.clone()  # of p'
        S = torch.zeros_like(lse)
        picked = lse.new_full((len(lse), 1 + len(ids)), math.nan)
        for cols in blocks:
            place, column = ctx.picks.within(cols)
            allowed = ctx.allowed.get(cols.start)
            for rows in cuts(len(hidden), ctx.block[0]):
                x, y = Softmax.logits(ctx, hidden, weight, rows, cols)  # (n, C)
                if room >= x.nbytes:
                    room -= x.nbytes
                    ctx.kept[rows.start, cols.start] = x
                index, inside = column_of(targets[rows], cols)
                target = x.gather(1, index[:, None])[:, 0]
                picked[rows, 0] = torch.where(inside, target, picked[rows, 0])
                if len(place):
                    picked[rows, place] = x[:, column].to(lse.dtype)
                x, y = select_columns(allowed, x, y)  # (n, C less those without)
                if x.shape[1]:
                    lse[rows], lse_q[rows], S[rows] = fused(add_block, device)(
                        lse[rows], lse_q[rows], S[rows], x, y, against is not None
                    )
        ctx.save_for_backward(hidden, weight, targets, lse, lse_q, S)
        ctx.set_materialize_grads(False)
        return lse, picked, S

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_lse, d_picked, d_S):
        hidden, weight, _, lse, _, _ = ctx.saved_tensors
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        d_lse = torch.zeros_like(lse) if d_lse is None else d_lse
        d_hidden = torch.zeros_like(hidden, dtype=lse.dtype)
        d_weight = torch.empty_like(weight) if need_weight else None
        for cols in cuts(len(weight), ctx.block[1]):
            w = weight[cols].to(ctx.dtype)  # (C, D)
            d_w = torch.zeros_like(weight[cols], dtype=lse.dtype)  # (C, D)
            for rows in cuts(len(hidden), ctx.block[0]):
                d = Softmax.logit_gradient(ctx, rows, cols, d_lse, d_picked, d_S)  # (n, C)
                if need_hidden:
                    d_hidden[rows] += d @ w
                if need_weight:
                    d_w += d.T @ hidden[rows].to(ctx.dtype)
            if need_weight:
                d_weight[cols] = d_w
        d_hidden = d_hidden.to(hidden.dtype) if need_hidden else None
        return d_hidden, d_weight, None, None, None, None, None, None

    @staticmethod
    def logit_gradient(ctx, rows, cols, d_lse, d_picked, d_S):
        """The gradient with respect to a block of logits, in the type of the products: (n, C)."""
        hidden, weight, targets, lse, lse_q, S = ctx.saved_tensors
        full, y = Softmax.logits(ctx, hidden, weight, rows, cols)  # (n, C)
        allowed = ctx.allowed.get(cols.start)
        x, y = select_columns(allowed, full, y)  # (n, C less those without)
        d_S_rows = None if d_S is None else d_S[rows]
        d = fused(block_gradient, hidden.device)(
            lse[rows], lse_q[rows], S[rows], d_lse[rows], d_S_rows, x, y
        )
        if allowed is not None:
            d = d.new_zeros(full.shape).index_copy_(1, allowed, d)  # (n, C)
        if d_picked is not None:
            index, inside = column_of(targets[rows], cols)
            d.scatter_add_(1, index[:, None], (d_picked[rows, 0] * inside)[:, None])
            place, column = ctx.picks.within(cols)
            if len(place):
                d.index_add_(1, column, d_picked[rows, place])
        return d.to(ctx.dtype)

    @staticmethod
    def logits(ctx, hidden, weight, rows, cols):
        """A block of x, and of the logits of p', if there is one: (n, C)."""

        def product(h, w):
            if exact_on_gpu(h, w) and ctx.dtype == torch.float32:
                return torch.mm(h[rows].to(w.dtype), w[cols].T, out_dtype=torch.float32)
            return h[rows].to(ctx.dtype) @ w[cols].to(ctx.dtype).T

        x = ctx.kept.pop((rows.start, cols.start), None)
        x = product(hidden, weight) if x is None else x
        return x, product(*ctx.against) if ctx.against else None


# ---------------------------------------------------------------- blocks


def product_type(hidden, weight):
    """The type of the matrix products."""
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    if torch.is_autocast_enabled(hidden.device.type) and dtype != torch.float64:
        return torch.get_autocast_dtype(hidden.device.type)
    return dtype


def exact_on_gpu(hidden, weight):
    """Are the factors float32 states and a bfloat16 weight on a GPU?

    Such states are those of a bfloat16 model, bfloat16 numbers too. There the product of bfloat16
    tensors with a float32 result is the float32 product, from tensor cores.
    """
    return hidden.is_cuda and (hidden.dtype, weight.dtype) == (torch.float32, torch.bfloat16)


def block_size(chunk, device):
    """(states, tokens) of a block of logits."""
    if chunk:
        return chunk, chunk
    return (8192, 8192) if device.type == "cuda" else (2048, 1024)


def cuts(n, size):
    """range(n) in slices of nearly one length, at most `size`. Example: cuts(5, 3) -> [0:2, 2:5]"""
    k = -(-n // size)
    return [slice(n * i // k, n * (i + 1) // k) for i in range(k)]


def column_of(targets, cols):
    """The columns of targets (n,) in a block (0 for targets outside), and which are inside.

    Example: [5, 9], 8:16 -> [0, 1], [False, True]
    """
    inside = (targets >= cols.start) & (targets < cols.stop)
    return (targets - cols.start) * inside, inside


class Picks(typing.NamedTuple):
    """Token ids whose logits are picked out, in ascending order."""

    ids: list
    places: torch.Tensor  # (len(ids),) the column of `picked` that each goes to
    columns: torch.Tensor  # (len(ids),) the ids, on the same device

    @staticmethod
    def of(ids, device):
        order = sorted(range(len(ids)), key=lambda k: ids[k])
        ascending = [ids[k] for k in order]
        both = torch.tensor([[1 + k for k in order], ascending], dtype=torch.int64)
        return Picks(ascending, *to_device(both, device))

    def within(self, cols):
        """Columns of those of the ids in a block of columns: in `picked`, and in the block."""
        first, last = (bisect.bisect_left(self.ids, i) for i in (cols.start, cols.stop))
        if first == last:
            return self.places[:0], self.columns[:0]
        return self.places[first:last], self.columns[first:last] - cols.start


def allowed_columns(without, blocks, device):
    """{first column of a block: those of its columns that are not in a set of ids}.

    Blocks without ids of the set are left out: all columns are allowed.
    """
    allowed = {}
    for cols in blocks:
        outside = [i for i in without if cols.start <= i < cols.stop]
        if outside:
            columns = torch.ones(cols.stop - cols.start, dtype=torch.bool)
            columns[[i - cols.start for i in outside]] = False
            allowed[cols.start] = to_device(columns.nonzero()[:, 0], device)
    return allowed


def select_columns(allowed, x, y):
    """The allowed columns of x and y (n, C); y may be None."""
    if allowed is None:
        return x, y
    return x[:, allowed], None if y is None else y[:, allowed]


def add_block(lse, lse_q, S, x, y, want_S):
    """lse, that of p', and S (n,) of the columns so far -> the same with further columns.

    x, y (n, C): logits of p and p' in those columns.
    """
    logp, lse, seen, block = join(lse, x)
    if want_S:  # S = sum over both parts of P (S given the part + log P - log P')
        logq, lse_q, seen_q, block_q = (0, lse_q, 0, 0) if y is None else join(lse_q, y)
        so_far = torch.where(seen == -math.inf, 0, seen.exp() * (S + seen - seen_q))
        S = so_far + block.exp() * ((logp.exp() * (logp - logq)).sum(-1) + block - block_q)
    return lse, lse_q, S


def join(lse, x):
    """-> log p given the block (n, C); lse of all columns; log P of those before, and of the block.

    The last three are (n,).
    """
    x = x.to(lse.dtype)
    logp = x.log_softmax(-1)
    block = x[:, 0] - logp[:, 0]  # lse of the block; on the CPU logsumexp takes twice as long
    both = torch.logaddexp(lse, block)
    return logp, both, lse - both, block - both


def block_gradient(lse, lse_q, S, d_lse, d_S, x, y):
    """The gradient with respect to a block of logits, without those of `picked`: (n, C)."""
    logp = x.to(lse.dtype).sub_(lse[:, None])  # (n, C); x is not needed again
    if d_S is None:  # exp2 takes half the time of exp on the CPU
        return logp.mul_(1 / math.log(2)).exp2_().mul_(d_lse[:, None])
    against = 0 if y is None else y.to(lse.dtype) - lse_q[:, None]  # log p'
    return logp.exp() * (d_lse[:, None] + d_S[:, None] * (logp - against - S[:, None]))


compiled = functools.cache(functools.partial(torch.compile, dynamic=True))


def fused(function, device):
    """The function as one kernel, where COMPILE says so; one version serves all sizes."""
    if COMPILE or COMPILE is None and device.type == "cuda":
        return compiled(function)
    return function
