"""What all measurements share: clocks, repeats, the machine's own limits.

Seconds are wall time where at least 1.5 cores are idle (or on a GPU), and core-seconds otherwise:
CPU time of this process and of the children it waited for, on one thread, which other work on the
machine hardly changes. One run uses one of the two throughout and says which.
"""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time

from config import cores, progress_bar
from engine.machine import timed


def interleaved(functions, repeats, rates, desc="", warm=True):
    """Median seconds of some functions, called in turns -> {name: seconds}.

    functions: {name: function}; warm: call each once before that.
    """
    repeats = rates.repeats or repeats
    begin = time.perf_counter()
    seconds = {name: [] for name in functions}
    for k in progress_bar(range(-warm, repeats), desc=desc, unit="repeat", leave=False):
        for name, function in functions.items():
            wall, cpu = timed(function)
            if k >= 0:
                seconds[name].append(wall if rates.wall else cpu)
        if k >= 0 and time.perf_counter() - begin > rates.budget:
            break
    return {name: statistics.median(repeated) for name, repeated in seconds.items()}


def idle_seconds():
    """Seconds that all cores together had nothing to do, since the machine started. Linux only."""
    with open("/proc/stat") as f:
        return sum(map(int, f.readline().split()[4:6])) / os.sysconf("SC_CLK_TCK")


def idle_cores(seconds=1.0):
    """How many cores have nothing to do, measured over so many seconds."""
    try:
        start = idle_seconds()
        time.sleep(seconds)
        return min(cores(), (idle_seconds() - start) / seconds)
    except OSError:  # not Linux
        return cores() - os.getloadavg()[0]


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
    """Extra peak memory, in MB, of some Python in a process of its own. Linux only.

    The code finds its arguments in argv and sets `call`, a function.
    What is held before the call is not counted.
    """
    script = (
        f"import sys\nargv = sys.argv[1:]\n{code}\n"
        "def peak():\n"
        "    with open('/proc/self/status') as f:\n"
        "        return int(next(line for line in f if line.startswith('VmHWM')).split()[1])\n"
        "open('/proc/self/clear_refs', 'w').write('5')\n"
        "before = peak()\ncall()\nprint(peak() - before)"
    )
    command = [sys.executable, "-c", script, *map(str, argv)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"a measurement of memory failed: {done.stderr[-2000:]}")
    return int(done.stdout.split()[-1]) / 1024


def write_results_file(path, results):
    with open(path, "w") as f:
        json.dump(results, f, indent=1)
