"""Runs programs that a model wrote against their tests, and gives each a verdict.

    python -m grader FILE.jsonl          # rows {"name", "kind", "program", "tests", "entry_point"} -> one JSON line each, in order
    grade([Job("def add(a, b): return a + b", "assert add(1, 2) == 3")])[0].verdict == "passed"

The promise: a program passes if and only if every assertion completed, and held, within the limits. A fault of the grader raises an error
and is never a score. Runs do not affect each other or the machine, and nothing is left of them: no process, no file.

**Processes.** The trainer, many GB, is never forked. A thread of it talks over a socket to one small *server*, started by exec, which
imports the usual modules once. A run is two forks, some milliseconds:

    trainer --exec--> server --fork--> tester       the tests, the verdict
                      (clock)           |  socket
                        +--clone--> keeper --fork--> program      loads the program, answers calls
                                    (watches it, ends what is left of it)

The *keeper* sees neither tests nor programs, so a program's process starts clean. The *tester* never loads the program: it runs the tests in its own
interpreter, and calls the program's functions over a socket, which plain data crosses. So neither replaced builtins, nor what the program finds
by walking frames, modules or objects, nor what it prints or how it exits can turn a wrong value into a right one. Where values are not plain data
(classes, generators, callables), or where tests fail that look at something which they share with the program (files, `random`, stdout, identity),
the run is done over in one process (mode `in_process`): the tests get builtins and modules from before the program ran; comparisons and truth values
that the program's classes decide count only if the tests name the class, and not if it says yes to everything; the verdict comes with a token that is
sent after the program has loaded, and with the count of assertions that held. A program of kind stdio runs once a test, as `__main__`; its output is
compared in the trainer, by the rule of LiveCodeBench.

The files of `grader/`, in reading order:

    messages.py                verdicts, levels, and what goes over the sockets
    assertions.py, client.py   the trainer's side: tests made ready; a server started, and spoken to
    boot.py, server.py         the server
    keeper.py                  the keeper
    program.py, guard.py       the program's process; comparisons in one process
    tester.py                  the tester
    walls.py                   what keeps a program in: namespaces, Landlock, seccomp, limits. The level is told once, and in every result
    leftovers.py               what ends processes and removes directories

Conventions. In kind assert the program runs as the module `program`, so a `__main__` block does not run. Tests see its names but those of
builtins, unless it is the entry point. An AssertionError raised by the program itself is an exception, not a wrong answer.

What it does not protect from: code that means harm. What the user can read, the program can read, files of tests too. In one
process, a program that walks frames while the tests call it finds the token. At level `process` it can write what its user can. Limits on
memory are per process. It runs on Linux; on macOS (not tested) at level `process`, without the watch on memory and on signals.

No library does this: those that isolate (bubblewrap, nsjail) start an interpreter a run, at several times the cost, and give no verdict.
"""

import dataclasses
import pickle
import queue
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed

from config import cores, progress_bar
from grader.assertions import check_job, prepare, same_output
from grader.client import Server
from grader.messages import HarnessError


@dataclasses.dataclass(frozen=True)
class Job:
    program: str
    tests: object = ""  # assert: plain assertions, or text that defines check(candidate); stdio: [{"input": str, "output": str}]
    entry_point: str = ""  # assert: the tested name, or an expression such as Solution().twoSum
    kind: str = "assert"
    name: str = ""
    time_limit: float | None = None  # seconds (stdio: a test); None: that of the call


@dataclasses.dataclass
class Result:
    verdict: str  # a key of VERDICTS
    seconds: float  # wall time from the start of the program, as the grader saw it
    isolation: str  # one of grader.messages.LEVELS
    mode: str  # separate, in_process, stdio


def grade(jobs, **settings):
    """A Result for each Job, in order. Settings: see `Grader`; errors: see `graded`."""
    jobs = list(jobs)
    results = [None] * len(jobs)
    for i, result in graded(jobs, **settings):
        results[i] = result
    return results


def graded(jobs, progress=False, desc="grading", **settings):
    """Grade jobs in parallel, and yield (index, Result) as they finish. Equal jobs run once. Settings: those of `Grader`.

    Raises ValueError for bad settings, for tests that cannot fail (empty, or a check() that nobody calls) or do not compile; HarnessError where
    a run failed twice for a reason that is not the program's. Ctrl-C and errors leave no process and no directory.
    """
    jobs = list(jobs)
    for i, job in enumerate(jobs):
        check_job(job, f"job {i}" + (f" ({job.name})" if job.name else ""))
    same, bar = {}, None
    for i, job in enumerate(jobs):
        same.setdefault(
            pickle.dumps((job.program, job.tests, job.entry_point, job.kind, job.time_limit)), []
        ).append(i)
    with Grader(**settings) as grader:
        try:
            if progress:
                bar = progress_bar(total=len(same), desc=desc, unit="program")
            runs = {grader.submit(jobs[indices[0]]): indices for indices in same.values()}
            for run in as_completed(runs):
                indices = runs.pop(run)
                try:
                    result = run.result()
                except Exception as e:
                    e.add_note(f"while grading job {indices[0]} {jobs[indices[0]].name}")
                    raise
                if bar is not None:
                    bar.update()
                for i in indices:
                    yield i, dataclasses.replace(result)
        finally:
            if bar is not None:
                bar.close()


class Grader:
    """Servers that stay, for jobs that come one by one: `submit(job)` gives a Future of its Result at once. Use it in a `with` block, or close() it.

    workers         servers, each with one run at a time, started when first needed; default: the cores that this process may use
    time_limit      seconds of a run; Job.time_limit goes before it
    memory_limit    bytes of address space;     output_limit: bytes of output, and of any file

    Raises ValueError for bad settings. Errors of a run, as in `graded`, come with its Future. Closing ends what still runs, and drops what waits.
    """

    def __init__(self, workers=None, time_limit=10.0, memory_limit=2 << 30, output_limit=64 << 20):
        if min(time_limit, memory_limit, output_limit) <= 0 or (
            workers is not None and workers < 1
        ):
            raise ValueError(
                f"time_limit={time_limit}, memory_limit={memory_limit}, output_limit={output_limit} and workers={workers} must be positive"
            )
        self.limits, self.stop = (time_limit, memory_limit, output_limit), threading.Event()
        self.servers = [Server() for _ in range(workers or cores())]
        self.idle = queue.LifoQueue()  # the last one used is taken first: few servers for few jobs
        for server in self.servers:
            self.idle.put(server)
        self.pool = ThreadPoolExecutor(len(self.servers))

    def submit(self, job):
        check_job(job, job.name or "the job")
        return self.pool.submit(self.run, job)

    def run(self, job):
        server = self.idle.get()
        try:
            return run_job(
                server, job, (job.time_limit or self.limits[0], *self.limits[1:]), self.stop
            )
        except BaseException:
            server.close()
            raise
        finally:
            self.idle.put(server)

    def close(self):
        self.stop.set()
        for server in self.servers:
            server.hang_up()
        self.pool.shutdown(wait=True, cancel_futures=True)
        for server in self.servers:
            server.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def run_job(server, job, limits, stop):
    """The Result of one job: one run, or two (in one process), or one a test."""
    if job.kind == "assert":
        entry = job.entry_point.strip()
        for mode in ("separate", "in_process"):
            verdict, seconds, _ = server.run(
                mode,
                (job.program, *prepare(job.tests, entry, mode == "in_process")),
                limits,
                "numpy" in job.tests,
                stop,
            )
            if verdict != "in_process":
                return Result(verdict, seconds, server.level, mode)
        raise HarnessError("a run in one process asked for one")
    total = 0.0
    for test in job.tests:
        verdict, seconds, output = server.run(
            "stdio", (job.program, test["input"]), limits, False, stop
        )
        total += seconds
        if verdict == "passed" and not same_output(
            output.decode("utf-8", "replace"), test["output"]
        ):
            verdict = "wrong_answer"
        if verdict != "passed":
            break
    return Result(verdict, total, server.level, "stdio")
