"""The machine: device, threads and memory as the settings want them, torch.compile, progress bars, and what the machine does at its best."""

import ctypes
import math
import os
import resource
import sys
import time
import typing

import torch
from tqdm import tqdm

from config import UserError, cores


def compile_blocks(model, cfg):
    """torch.compile every block in place, if the settings say so: one graph before attention and one after it, for every layer and length."""
    if cfg.compile == "true" or cfg.compile == "auto" and model.device.type == "cuda":
        for block in model.blocks:
            block.compile(dynamic=True)


def graphs():
    """How many graphs torch.compile has made in this process so far."""
    return (
        sys.modules["torch._dynamo"].utils.counters["stats"]["unique_graphs"]
        if "torch._dynamo" in sys.modules
        else 0
    )


def device_of(cfg):
    """The torch device of the settings. Raises UserError if it is not there."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if cfg.device == "auto" else cfg.device
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError):
        raise UserError(
            f"--device {name}: not available here; expected cpu"
            + (" or cuda" if torch.cuda.is_available() else "")
        ) from None
    return torch.device(name)


SMALL = (
    2**18
)  # weights of a feed-forward matrix; below that threads wait for one another longer than they work


def set_threads(cfg):
    """Threads of the CPU, and memory as a training loop wants it.

    As many as `--threads` or OMP_NUM_THREADS says; else one for the small model that the built-in domain
    trains, and for others as many as this process has cores.
    """
    small = cfg.preset == "tiny" and cfg.d_model * cfg.d_ff < SMALL
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    default = int(wanted) if wanted.isdecimal() and int(wanted) else (1 if small else cores())
    torch.set_num_threads(cfg.threads or default)
    settle_memory()


def settle_memory():
    """On the CPU, before the first product: memory that tensors free stays with the process, and fewer kernels are kept.

    glibc gives blocks of some MB back to the system at once, and the next ones like them cost a page fault every 4 KiB: an eighth of a training step
    of SmolLM2. (Other C libraries are left as they are.) oneDNN keeps the last 1,024 shapes' kernels, of up to 3 MB each; without padding every step
    brings new shapes, so that is what a long run comes to.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD, bytes: what is smaller comes from the heap,
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: and the heap does not shrink


def steps_bar(desc, start, steps):
    return tqdm(
        range(start, steps), desc=desc, initial=start, total=steps, unit="step", mininterval=0.5
    )


class Rates(typing.NamedTuple):
    """What the machine does at its best, in this run."""

    flops: float  # a second of a bfloat16 matrix product
    flops32: float  # of a float32 one
    bytes: float  # a second of reading memory
    wall: bool  # seconds of wall time; False: core-seconds
    device: torch.device
    repeats: int = 0  # of every row, where they are given; 0: as each row has it
    budget: float = math.inf  # seconds of wall time after which a row's calls are not repeated

    @property
    def unit(self):
        return "s" if self.wall else "core-s"


def cpu_seconds():
    """CPU time so far, of this process and of the children that it waited for. (os.times counts in hundredths of a second.)"""
    return sum(
        u.ru_utime + u.ru_stime
        for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def timed(function):
    """(wall seconds, CPU seconds of this process and of the children that it waited for) of a call."""
    cpu, begin = cpu_seconds(), time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin, cpu_seconds() - cpu


def machine_rates(device, wall):
    """Rates: products of 4,096 (CPU: 2,048) square matrices, and reads of 1 GiB (256 MiB); the best of several, on random data."""
    size, many = (4096, 2**28) if device.type == "cuda" else (2048, 2**26)
    best = lambda f: min(timed(f)[0 if wall else 1] for _ in range(8))
    product = {
        dtype: best(
            lambda a=torch.randn(size, size, device=device, dtype=dtype), b=torch.randn(size, size, device=device, dtype=dtype): (
                a @ b
            )
        )
        for dtype in (torch.bfloat16, torch.float32)
    }
    reads = torch.randn(many, device=device)
    return Rates(
        2 * size**3 / product[torch.bfloat16],
        2 * size**3 / product[torch.float32],
        4 * many / best(lambda: reads.sum()),
        wall,
        device,
    )
