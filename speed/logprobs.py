"""Log-probabilities of 4,096 target tokens from their states, bfloat16.

Without and with the gradient to states and head.
Two sizes of head: SmolLM2-135M's (V = 49,152, D = 576) and Qwen2.5-1.5B's (V = 151,936, D = 1,536).
Peers: `plain`, (h @ w.T).float().log_softmax(-1) at the targets; cut-cross-entropy with
impl="torch_compile", which is the plain one compiled, and what that package has for a CPU; and
ourselves with logprobs.COMPILE on. On a GPU ours is compiled as it is, and cut-cross-entropy takes
its own kernel, impl="cce". Liger's kernels are CUDA only. Limit: 2 N V D / F, and 6 N V D /
F with gradient (8 where the logits are computed twice). Memory: what a call adds to the peak, in a
process of its own, compiled code warmed up on a few tokens.

What was tried (core-seconds; V = 49,152, D = 576, AMD EPYC with avx512_bf16 and without AMX, where
the product alone is 1.1 to 1.3 and 85% of the forward time)
    blocks of states and of vocabulary
        1,024 x 1,024 logits: everything elementwise runs in the cache; 4,096 x 2,048: 0.17 -> 0.84
        (kept)
    sides of 512, 1,024, 2,048
        forward 1.46, 1.38, 1.34, with gradient 4.61, 4.34, 4.19; 2,048 takes four times the memory
    2,048 states x 1,024 tokens, less allocated
        forward 1.65 -> 1.56, with gradient 4.69 -> 4.51 (another day): the gradient's blocks in
        place (kept)
    normaliser of a block as x_0 - log_softmax(x)_0
        0.17, against 0.24 by logsumexp: one pass that torch has vectorised (kept)
    exp2 in the gradient
        0.10, against 0.20 by exp (kept)
    logits kept, up to 512 MiB
        with gradient 5.7 -> 4.3: one product in four is saved; memory stays bounded (kept)
    torch.compile of what is elementwise, CPU
        forward 1.38 -> 1.38, with gradient 4.34 -> 3.92 (before exp2); 5 to 9 s to compile (on
        request)
    torch's own linear_cross_entropy
        forward 1.77, and its loss a token is bfloat16 (11.5625 for 11.535): no ratios from that
        (not kept)
    float32 logits of bfloat16 factors
        torch.mm(out_dtype=...) has no CPU kernel; CUDA: not measured
    freed memory kept (machine.settle_memory)
        two idle cores, wall time: 0.87 -> 0.84 s; the plain way, which asks for gigabytes, 1.36 ->
        0.78 (kept)
    packed weights
        not tried: products of blocks already run at 95 to 99% of a large one's rate
"""

import functools
import os
import pathlib

import torch

import logprobs
from speed.measure import absent, installed, interleaved, peak_mb

N = 4096  # tokens


def plain_logprobs(hidden, weight, targets):
    return (hidden @ weight.T).float().log_softmax(-1).gather(1, targets[:, None])[:, 0]


def cut_logprobs(hidden, weight, targets):
    from cut_cross_entropy import linear_cross_entropy

    impl = "cce" if hidden.device.type == "cuda" else "torch_compile"  # its kernel is CUDA only
    return -linear_cross_entropy(hidden, weight, targets, impl=impl, reduction="none")


def our_logprobs(hidden, weight, targets):
    return logprobs.token_logprobs(hidden, weight, targets)[0]


FUNCTIONS = {
    "ours": our_logprobs,
    "ours, compiled": our_logprobs,
    "plain": plain_logprobs,
    "cut-cross-entropy": cut_logprobs,
}


def calls(V, D, gradient, names, device="cpu"):
    """{name: call}, each warmed up on a few tokens."""
    gen = torch.Generator().manual_seed(0)

    def random(n, scale):
        x = torch.randn(n, D, generator=gen).to(device, torch.bfloat16)
        return x.mul_(scale).requires_grad_(gradient)

    hidden = random(N, 1)
    weight = random(V, D**-0.5)
    targets = torch.randint(V, (N,), generator=gen).to(device)

    def call(name, n):
        logprobs.COMPILE = True if name == "ours, compiled" else None
        logp = FUNCTIONS[name](hidden[:n], weight, targets[:n])
        if gradient:
            logp.sum().backward()
            hidden.grad = weight.grad = None

    for name in names:
        call(name, 60)
        call(name, 61)
    return {name: functools.partial(call, name, N) for name in names}


def peak_of(name, V, D, gradient):
    """MB that a call adds to the peak."""
    root = str(pathlib.Path(__file__).parent.parent)
    code = (
        f"sys.path.insert(0, {root!r})\nfrom speed.logprobs import calls\n"
        "V, D, gradient, name = argv\n"
        "call = calls(int(V), int(D), gradient == 'True', [name])[name]"
    )
    return peak_mb(code, V, D, gradient, name)


def logprobs_rows(quick, rates, args):
    names = ["ours", "plain"]
    if not quick and rates.device.type == "cpu":  # on a GPU ours is compiled as it is
        names = ["ours", "ours, compiled", "plain"]
    # "plain" comes after "ours, compiled": it leaves logprobs.COMPILE as it was
    if installed("cut_cross_entropy") and installed("triton"):  # it imports triton, used or not
        names.append("cut-cross-entropy")
    heads = ((49152, 576), (151936, 1536))
    for V, D in heads[:1] if quick else heads:
        for gradient in (False, True):
            yield logprobs_row(V, D, gradient, names, quick, rates)


def logprobs_row(V, D, gradient, names, quick, rates):
    limit = (6 if gradient else 2) * N * V * D / rates.flops
    functions = calls(V, D, gradient, names, rates.device)
    repeats = 1 if quick else 5
    seconds = interleaved(functions, repeats, rates, "log-probs", warm=False)
    if gradient:
        target = {"plain": 2, "cut-cross-entropy": 1}
    else:
        target = {"plain": 2.4 if V < 100_000 else 1.8, "cut-cross-entropy": 1.2}
    row = {
        "row": f"log-probs{', with gradient' if gradient else ''}, V={V} D={D}",
        "work": N,
        "unit": "tokens",
        "limit_s": limit,
        "seconds": seconds,
        "target": target,
    }
    if rates.device.type == "cpu" and not quick and os.path.exists("/proc/self/clear_refs"):
        row["memory_mb"] = {name: peak_of(name, V, D, gradient) for name in names}
    notes = [
        f"at the limit it would be {seconds['plain'] / limit:.2f} x plain",
        absent("cut-cross-entropy", "triton"),
    ]
    row["note"] = "; ".join(filter(None, notes))
    return row
