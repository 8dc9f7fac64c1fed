"""What a device does at its best: the ceilings that all shares are of.

product    of 8,192 (rehearsed: 256) square matrices: bfloat16, float32, and float32 in tf32
copy       1 GiB (4 MiB) read and written
launch     an addition to a few numbers, called one by one, and replayed as a graph
attention  masked, grouped, as prompts are read: the first call of a shape that was never seen, and
           a later one
"""

import contextlib
import functools
import platform
import statistics
import time

import torch
import torch.nn.functional as F

from engine.machine import device_seconds
from model import attention_bias

REPEATS = 10


def best(function, device, repeats=REPEATS):
    """The least seconds of some calls, after one that does not count."""
    function()
    return min(device_seconds(function, device) for _ in range(repeats))


@contextlib.contextmanager
def tf32():
    """Float32 products in tf32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def products(device, size):
    """{what: TFLOP/s} of matrix products."""
    rates = {}
    for dtype in (torch.bfloat16, torch.float32):
        a = torch.randn(size, size, device=device, dtype=dtype)
        b = torch.randn(size, size, device=device, dtype=dtype)
        product = functools.partial(torch.mm, a, b)
        rates[str(dtype).removeprefix("torch.")] = 2 * size**3 / best(product, device) / 1e12
    with tf32():
        rates["tf32"] = 2 * size**3 / best(product, device) / 1e12
    return rates


def copy_rate(device, numbers):
    """GB/s of a copy of so many float32 numbers, reads and writes counted."""
    source = torch.randn(numbers, device=device)
    target = torch.empty_like(source)
    return 8 * numbers / best(lambda: target.copy_(source), device) / 1e9


def launches(device, n=1000):
    """{how: microseconds} of a small kernel, called one by one and in a graph."""
    x = torch.zeros(64, 576, device=device)

    def add():
        for _ in range(n):
            x.add_(1)

    seconds = {"eager": best(add, device, 3)}
    if device.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            add()
        seconds["graph"] = best(graph.replay, device, 3)
    return {how: 1e6 * s / n for how, s in seconds.items()}


def attention_calls(device, shapes):
    """{which call: milliseconds}, medians over shapes (rows, queries, keys) of SmolLM2's heads."""
    first = []
    later = []
    low = torch.bfloat16 if device.type == "cuda" else torch.float32
    for N, T, S in shapes:
        q = torch.randn(N, 9, T, 64, device=device, dtype=low)
        k = torch.randn(N, 3, S, 64, device=device, dtype=low)
        mask = torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)[None, None]
        bias = attention_bias(mask, low)
        call = functools.partial(
            F.scaled_dot_product_attention, q, k, k, attn_mask=bias, enable_gqa=True
        )
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        first.append(1000 * (time.perf_counter() - began))
        later.append(1000 * best(call, device, 3))
    return {"first": statistics.median(first), "later": statistics.median(later)}


def about(device):
    """What the machine is."""
    facts = {"torch": torch.__version__, "python": platform.python_version()}
    if device.type != "cuda":
        return {"name": platform.processor() or platform.machine(), **facts}
    memory = torch.cuda.get_device_properties(device).total_memory / 2**30
    libraries = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    name = torch.cuda.get_device_name(device)
    return {"name": name, "memory_gib": memory, **libraries, **facts}


def ceilings_stage(job):
    """Measure, and write ceilings.jsonl."""
    device = job.torch_device()
    job.write("ceilings", what="machine", **about(device))
    size = 256 if job.tiny else 8192
    job.write("ceilings", what="product, TFLOP/s", **products(device, size))
    numbers = 2**20 if job.tiny else 2**28
    job.write("ceilings", what="copy, GB/s", copy=copy_rate(device, numbers))
    job.write("ceilings", what="launch, us", **launches(device, 20 if job.tiny else 1000))
    shapes = [(5 + i, 201 + 17 * i, 333 + 29 * i) for i in range(2 if job.tiny else 5)]
    job.write("ceilings", what="attention, ms", **attention_calls(device, shapes))
