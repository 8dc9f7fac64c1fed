"""What all measurements share: clocks, repeats, the machine's own limits.

Seconds are wall time where at least 1.5 cores are idle (or on a GPU), and core-seconds otherwise: CPU time of this process and of the children
it waited for, on one thread, which other work on the machine hardly changes. One run uses one of the two throughout and says which.
"""

import importlib.util
import math
import os
import resource
import statistics
import subprocess
import sys
import time
import typing

import torch
from tqdm import tqdm

from sandbox import cores


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


def interleaved(functions, repeats, rates, desc="", warm=True):
    """Median seconds of each of some functions, {name: function}, called in turns -> {name: seconds}. warm: one call of each before that."""
    repeats, begin = rates.repeats or repeats, time.perf_counter()
    said = {name: [] for name in functions}
    for k in tqdm(range(-warm, repeats), desc=desc, unit="repeat", leave=False):
        for name, function in functions.items():
            wall, cpu = timed(function)
            if k >= 0:
                said[name].append(wall if rates.wall else cpu)
        if k >= 0 and time.perf_counter() - begin > rates.budget:
            break
    return {name: statistics.median(some) for name, some in said.items()}


def idle_cores(seconds=1.0):
    """How many cores have nothing to do, over so many seconds."""

    def idle():
        with open("/proc/stat") as f:
            return sum(map(int, f.readline().split()[4:6])) / os.sysconf("SC_CLK_TCK")

    try:
        before = idle()
        time.sleep(seconds)
        return min(cores(), (idle() - before) / seconds)
    except OSError:  # not Linux
        return cores() - os.getloadavg()[0]


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


def installed(name):
    return importlib.util.find_spec(name) is not None


def absent(*names):
    """A note on packages that are not installed, or nothing."""
    return "; ".join(
        f"{name} is not installed"
        for name in names
        if not installed(name.removesuffix("-python").replace("-", "_"))
    )


def peak_mb(code, *argv):
    """Extra peak memory, in MB, of some Python in a process of its own. The code finds its arguments in argv and sets `call`, a function; what is held
    before the call is not counted. Linux only."""
    script = (
        f"import sys\nargv = sys.argv[1:]\n{code}\n"
        "peak = lambda: int(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])\n"
        "open('/proc/self/clear_refs', 'w').write('5')\nbefore = peak()\ncall()\nprint(peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, argv)], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"a measurement of memory failed: {done.stderr[-2000:]}")
    return int(done.stdout.split()[-1]) / 1024
