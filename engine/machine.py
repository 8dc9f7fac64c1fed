"""The machine: device, threads, memory, torch.compile, progress bars, and its measured speed."""

import ctypes
import functools
import math
import os
import resource
import sys
import time
import typing

import numpy as np
import torch

import logprobs
import model
from config import UserError, cores, progress_bar
from model import to_device

# ---------------------------------------------------------------- settings


def compile_blocks(net, cfg):
    """torch.compile every block of a Transformer in place, if the settings say so.

    Graphs end at attention; they serve every layer and length.
    """
    if cfg.compile == "true" or cfg.compile == "auto" and net.device.type == "cuda":
        end_graphs_at_attention()
        for block in net.blocks:
            block.compile(dynamic=True)


@functools.cache
def end_graphs_at_attention():
    """Leave attention over documents out of graphs: its shapes are never the same twice.

    No decorator says so in model.py, because that takes every command a second to import.
    """
    model.attend_documents = torch.compiler.disable(model.attend_documents)


def graphs():
    """How many graphs torch.compile has made in this process so far."""
    if "torch._dynamo" not in sys.modules:
        return 0
    return sys.modules["torch._dynamo"].utils.counters["stats"]["unique_graphs"]


def compile_seconds():
    """Seconds that torch.compile has taken in this process so far."""
    if "torch._dynamo" not in sys.modules:
        return 0.0
    spent = sys.modules["torch._dynamo"].utils.calculate_time_spent()
    return spent.get("total_wall_time", 0.0)


def compile_postfix():
    """What a progress bar tells of torch.compile: its seconds so far, once it has taken some."""
    seconds = compile_seconds()
    return {"compile_s": f"{seconds:.0f}"} if seconds >= 1 else {}


def device_of(cfg):
    """The torch device of the settings. Raises UserError if it is not there.

    A GPU with a number becomes the current one, where graphs are recorded and kernels of our own
    run. Attention never goes to cuDNN from then on: it makes a plan for every new shape, and
    rollouts bring new shapes at every step.
    """
    cuda = torch.cuda.is_available()
    name = cfg.device
    if name == "auto":
        name = "cuda" if cuda else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError):
        expected = "cpu or cuda" if cuda else "cpu"
        raise UserError(f"--device {name}: not available here; expected {expected}") from None
    device = torch.device(name)
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
        if device.index is not None:
            torch.cuda.set_device(device)
    return device


def tokens_at_once(device):
    """Tokens of a forward pass over given ones, padding too, that keep the device busy."""
    return 32768 if device.type == "cuda" else 4096


ROOM = 2**32  # bytes that the keys and values of a batch on a GPU may take


def rows_at_once(device, row_bytes=0):
    """Rows of a batch that samples, that keep the device busy.

    row_bytes: of a row's keys and values; on a GPU a batch takes no more than ROOM.
    """
    if device.type != "cuda":
        return 128
    return max(1, min(512, ROOM // row_bytes)) if row_bytes else 512


def upload(device, *arrays):
    """NumPy arrays of one type as tensors on a device.

    On a GPU it is one copy, from pinned memory: nothing waits for it.
    """
    flat = torch.from_numpy(np.concatenate([np.ravel(array) for array in arrays]))
    flat = to_device(flat, device)
    parts = flat.split([np.size(array) for array in arrays])
    return [part.view(np.shape(array)) for part, array in zip(parts, arrays, strict=True)]


def download(*tensors):
    """Tensors of floats as float64 arrays: one copy from their device."""
    flat = torch.cat([tensor.double().flatten() for tensor in tensors]).cpu().numpy()
    ends = np.cumsum([tensor.numel() for tensor in tensors])
    parts = np.split(flat, ends[:-1])
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


# weights of a feed-forward matrix; below that, threads wait for one another longer than they work
SMALL = 2**18


def set_up(cfg):
    """Threads, memory, and whether log-probabilities are compiled, as the settings say."""
    set_threads(cfg)
    logprobs.COMPILE = {"auto": None, "true": True, "false": False}[cfg.compile]


def set_threads(cfg):
    """Threads of the CPU, and memory as a training loop wants it.

    As many as `--threads` or OMP_NUM_THREADS says. Otherwise one for the small model that the
    built-in domain trains, and for others as many as this process has cores.
    """
    small = cfg.preset == "tiny" and cfg.d_model * cfg.d_ff < SMALL
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    default = 1 if small else cores()
    if wanted.isdecimal() and int(wanted):
        default = int(wanted)
    torch.set_num_threads(cfg.threads or default)
    settle_memory()


def settle_memory():
    """On a CPU, before the first product: freed memory stays, in huge pages; fewer kernels stay.

    glibc returns blocks of some MB to the system at once, and the next ones cost a page fault every
    4 KiB: an eighth of a training step of SmolLM2. (Other C libraries are left as they are.) oneDNN
    caches the kernels of the last 1,024 shapes, of up to 3 MB each. Without padding every step
    brings new shapes, so a long run would fill that cache.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD, bytes: smaller blocks come from the heap,
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: and the heap never shrinks
        use_huge_pages(libc)


def use_huge_pages(libc):
    """Ask for pages of 2 MiB in as much of the heap as half of the machine's memory.

    The heap grows by blocks that are freed at once, so nothing is in use but addresses. In a
    virtual machine a step of the built-in domain's model takes .5 s with such pages, and .55 to
    2.5 s with pages of 4 KiB: each miss of the table of pages is looked up twice, and the more
    slowly the busier the host is.
    """
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size, page = 2**29, 2**21  # bytes; a block of the heap, so less than M_MMAP_THRESHOLD
    blocks = [libc.malloc(size) for _ in range(physical_memory() // 2 // size)]
    for block in filter(None, blocks):
        start = -(-block // page) * page
        libc.madvise(start, size - page, 14)  # MADV_HUGEPAGE; refused where there are none
    for block in blocks:
        libc.free(block)


def physical_memory():
    """Bytes of the machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def steps_bar(desc, start, steps):
    """A progress bar over the steps from `start` on."""
    bar = functools.partial(progress_bar, unit="step", mininterval=0.5)
    return bar(range(start, steps), desc=desc, initial=start, total=steps)


# ---------------------------------------------------------------- speed


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
    """CPU time so far, of this process and of the children that it waited for.

    (os.times counts in hundredths of a second.)
    """
    usage = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in usage)


def timed(function):
    """(wall seconds, CPU seconds) of a call. CPU: as `cpu_seconds` counts."""
    cpu = cpu_seconds()
    begin = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin, cpu_seconds() - cpu


def device_seconds(function, device, wall=True):
    """Seconds of a call: between two events on a GPU, where a launch would count on the host's
    clock; else as `timed` has them.
    """
    if device.type != "cuda":
        return timed(function)[0 if wall else 1]
    begin = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)
    begin.record()
    function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def machine_rates(device, wall):
    """The Rates of this machine, on random data; the best of eight measurements each.

    Products of 8,192 (on a CPU 2,048) square matrices, and reads of 1 GiB (256 MiB).
    """
    cuda = device.type == "cuda"
    size = 8192 if cuda else 2048
    numbers = 2**28 if cuda else 2**26

    def seconds(function):
        return min(device_seconds(function, device, wall) for _ in range(8))

    def product_rate(dtype):
        a = torch.randn(size, size, device=device, dtype=dtype)
        b = torch.randn(size, size, device=device, dtype=dtype)
        return 2 * size**3 / seconds(lambda: a @ b)

    bfloat16 = product_rate(torch.bfloat16)
    float32 = product_rate(torch.float32)
    values = torch.randn(numbers, device=device)
    return Rates(bfloat16, float32, 4 * numbers / seconds(values.sum), wall, device)
