"""Log-probabilities, KL and entropy of tokens, without holding their logits.

Shapes: N tokens, D width, V vocabulary, C columns of a block.
"""

import functools
import math

import torch

COMPILE = None  # torch.compile for what is elementwise: True, False, or None: on a GPU only. What it gains on a CPU: speed/logprobs.py

KEEP = (
    2**29
)  # bytes of logits, at most, that are kept for the way back; the others are computed anew there


def token_logprobs(hidden, weight, targets, sets=(), chunk=None, entropy=False):
    """Log-probabilities of target tokens, the only place where they are computed (a sampler reads its own off the distribution it draws from).

    hidden (N, D) the states that predict; weight (V, D); targets (N,) -> (1 + len(sets) + entropy, N) float32 (float64 from float64): row 0 is
    log p(target), row i the log of the total mass of the token ids sets[i-1], the last one with `entropy` that of each distribution, in nats and
    without gradient. Differentiable. Products are in the type of their factors, or in autocast's where that is on, and all else in float32.
    Logits are computed in blocks of `chunk` x `chunk` (default: 2,048 states x 1,024 tokens, on a GPU 8,192 x 8,192), so that memory does not grow with
    N times V. An id outside the vocabulary gives nan.
    """
    flat = [i for ids in sets for i in ids]
    lse, picked, negentropy = Softmax.apply(
        hidden, weight, targets, flat, () if entropy else None, chunk, torch.is_grad_enabled()
    )
    logit, *of_sets = picked.split([1] + [len(ids) for ids in sets], 1)  # (N, 1), (N, ids) each
    out = [logit[:, 0] - lse]  # log p(target)
    out += [logits.logsumexp(1) - lse for logits in of_sets]  # log p(any token of the set)
    if entropy:
        out.append(-negentropy.detach())
    return torch.stack(out)  # (1 + sets + entropy, N)


def token_kl(hidden, weight, other, other_weight, chunk=None):
    """KL(q || p) of the next-token distributions at N states, in nats: (N,). hidden, other (N, D), weights (V, D) of q and of p. The
    gradient goes to q. Types and memory are as in token_logprobs."""
    none = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
    return Softmax.apply(
        hidden,
        weight,
        none,
        [],
        (other.detach(), other_weight.detach()),
        chunk,
        torch.is_grad_enabled(),
    )[2]


class Softmax(torch.autograd.Function):
    """What log-probabilities need of the logits x = hidden weight^T (N, V), block by block: everything that takes N V operations is here.

    lse (N,)                  log sum_v exp(x_v), so that log p = x - lse;    d lse / d x_v = p_v
    picked (N, 1 + len(ids))  x of the target and of `ids`
    S (N,)                    sum_v p_v (log p_v - log p'_v);                 d S / d x_v = p_v (log p_v - log p'_v - S)

    against: None, no S; (), log p' = 0 and S is the negative entropy; (other, weight'), p' = softmax(other weight'^T) and S is KL(p || p').
    A block fits the processor's cache. What is summed over blocks, both gradients included, is summed in float32.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, ids, against, chunk, grad):
        device, ctx.dtype = hidden.device, torch.promote_types(hidden.dtype, weight.dtype)
        if torch.is_autocast_enabled(device.type) and ctx.dtype != torch.float64:
            ctx.dtype = torch.get_autocast_dtype(device.type)
        ctx.ids, ctx.against, ctx.kept = ids, against, {}
        ctx.block = (
            (chunk, chunk) if chunk else (8192, 8192) if device.type == "cuda" else (2048, 1024)
        )
        room = KEEP if grad and any(ctx.needs_input_grad) else 0
        lse = torch.full(
            hidden.shape[:1],
            -math.inf,
            dtype=torch.promote_types(ctx.dtype, torch.float32),
            device=device,
        )
        other, S, picked = (
            lse.clone(),
            torch.zeros_like(lse),
            lse.new_full((len(lse), 1 + len(ids)), math.nan),
        )
        for cols in cuts(len(weight), ctx.block[1]):
            some, at_some = columns_of(ids, cols, device)
            for rows in cuts(len(hidden), ctx.block[0]):
                x, y = Softmax.logits(ctx, hidden, weight, rows, cols)  # (n, C)
                if room >= x.nbytes:
                    room, ctx.kept[rows.start, cols.start] = room - x.nbytes, x
                at, inside = column_of(targets[rows], cols)
                picked[rows, 0] = torch.where(
                    inside, x.gather(1, at[:, None])[:, 0], picked[rows, 0]
                )
                picked[rows, some] = x[:, at_some].to(lse.dtype)
                lse[rows], other[rows], S[rows] = fused(add_block, device)(
                    lse[rows], other[rows], S[rows], x, y, against is not None
                )
        ctx.save_for_backward(hidden, weight, targets, lse, other, S)
        ctx.set_materialize_grads(False)
        return lse, picked, S

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_lse, d_picked, d_S):
        hidden, weight, targets, lse, other, S = ctx.saved_tensors
        device, (need_h, need_w) = hidden.device, ctx.needs_input_grad[:2]
        d_lse = torch.zeros_like(lse) if d_lse is None else d_lse
        d_hidden, d_weight = (
            torch.zeros_like(hidden, dtype=lse.dtype),
            torch.empty_like(weight) if need_w else None,
        )
        for cols in cuts(len(weight), ctx.block[1]):
            w, d_w = (
                weight[cols].to(ctx.dtype),
                torch.zeros_like(weight[cols], dtype=lse.dtype),
            )  # (C, D)
            some, at_some = columns_of(ctx.ids, cols, device)
            for rows in cuts(len(hidden), ctx.block[0]):
                x, y = Softmax.logits(ctx, hidden, weight, rows, cols)  # (n, C)
                d = fused(block_gradient, device)(
                    lse[rows],
                    other[rows],
                    S[rows],
                    d_lse[rows],
                    None if d_S is None else d_S[rows],
                    x,
                    y,
                )
                if d_picked is not None:
                    at, inside = column_of(targets[rows], cols)
                    d.scatter_add_(1, at[:, None], (d_picked[rows, 0] * inside)[:, None])
                    d.index_add_(1, at_some, d_picked[rows, some])
                d = d.to(ctx.dtype)
                if need_h:
                    d_hidden[rows] += d @ w
                if need_w:
                    d_w += d.T @ hidden[rows].to(ctx.dtype)
            if need_w:
                d_weight[cols] = d_w
        return d_hidden.to(hidden.dtype) if need_h else None, d_weight, None, None, None, None, None

    @staticmethod
    def logits(ctx, hidden, weight, rows, cols):
        """A block of x, and of the logits of p', if there is one: (n, C)."""
        product = lambda h, w: h[rows].to(ctx.dtype) @ w[cols].to(ctx.dtype).T
        x = ctx.kept.pop((rows.start, cols.start), None)
        return product(hidden, weight) if x is None else x, product(
            *ctx.against
        ) if ctx.against else None


def cuts(n, size):
    """range(n) in slices of nearly one length, at most `size`. Example: cuts(5, 3) -> [0:2, 2:5]"""
    k = -(-n // size)
    return [slice(n * i // k, n * (i + 1) // k) for i in range(k)]


def column_of(targets, cols):
    """Where targets (n,) stand in a block of columns (0 for those that do not), and which do. Example: [5, 9], 8:16 -> [0, 1], [False, True]"""
    inside = (targets >= cols.start) & (targets < cols.stop)
    return (targets - cols.start) * inside, inside


def columns_of(ids, cols, device):
    """Which of some ids, a list, stand in a block of columns: their columns in `picked`, and in the block."""
    found = [(1 + k, i - cols.start) for k, i in enumerate(ids) if cols.start <= i < cols.stop]
    return torch.tensor(found, dtype=torch.int64, device=device).view(-1, 2).unbind(1)


def add_block(lse, other, S, x, y, want_S):
    """lse, that of p', and S of the columns so far, (n,) each -> the same with a block of further columns. x, y (n, C): logits of p and p'."""
    logp, lse, old, new = join(lse, x)
    if want_S:  # S = sum over both parts of P (S given the part + log P - log P')
        logq, other, old_q, new_q = (0, other, 0, 0) if y is None else join(other, y)
        so_far = torch.where(old == -math.inf, 0, old.exp() * (S + old - old_q))
        S = so_far + new.exp() * ((logp.exp() * (logp - logq)).sum(-1) + new - new_q)
    return lse, other, S


def join(lse, x):
    """-> log p given the block (n, C); lse of all columns; log P of those before, and of the block: (n,) each."""
    x = x.to(lse.dtype)
    logp = x.log_softmax(-1)
    here = x[:, 0] - logp[:, 0]  # lse of the block; on the CPU logsumexp takes twice as long
    both = torch.logaddexp(lse, here)
    return logp, both, lse - both, here - both


def block_gradient(lse, other, S, d_lse, d_S, x, y):
    """The gradient with respect to a block of logits, but for what is picked: (n, C)."""
    logp = x.to(lse.dtype).sub_(lse[:, None])  # (n, C); x is not needed again
    if d_S is None:
        return (
            logp.mul_(1 / math.log(2)).exp2_().mul_(d_lse[:, None])
        )  # on the CPU exp takes twice as long
    return logp.exp() * (
        d_lse[:, None]
        + d_S[:, None]
        * (logp - (0 if y is None else y.to(lse.dtype) - other[:, None]) - S[:, None])
    )


compiled = functools.cache(functools.partial(torch.compile, dynamic=True))


def fused(function, device):
    """The function as one kernel, where COMPILE says so; one version serves all sizes."""
    return (
        compiled(function) if (device.type == "cuda" if COMPILE is None else COMPILE) else function
    )


def log1mexp(x):
    """log(1 - exp(x)) for x < 0, to full precision. Example: log1mexp(log .25) -> log .75"""
    x = x.clamp(max=-1e-7)
    return torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
