"""Runs programs that a model wrote against their tests, and gives each a verdict.

    python -m grader FILE.jsonl     # one JSON line for each row, in order
    # the rows: {"name", "kind", "program", "tests", "entry_point"}

    grade([Job("def add(a, b): return a + b", "assert add(1, 2) == 3")])[0].verdict == "passed"

The promise: a program passes if and only if every assertion completed, and held, within the limits.
A fault of the grader raises an error and is never a score. Runs do not affect each other or the
machine. Nothing is left of a run: no process, no file.

**Processes.** The trainer holds many GB and is never forked. A thread of it talks over a socket to
one small *server*. The server is started by exec, and imports the usual modules once. A run is two
forks and takes some milliseconds:

    trainer --exec--> server --fork--> tester       the tests, the verdict
                      (clock)           |  link
                        +--clone--> keeper --fork--> program      loads the program, answers calls
                                    (watches it, ends what is left of it)

The *keeper* sees neither tests nor programs, so a program's process starts clean. The *tester*
never loads the program. It runs the tests in its own interpreter, and asks the program's process
for values over the *link*. No test and no expected value is ever in the program's process. So none
of these can turn a wrong value into a right one: builtins that the program replaces; what it finds
by walking frames, modules or objects; what it prints; how it exits.

A program of kind stdio runs once a test, as `__main__`. Its output is compared in the trainer, by
the rule of LiveCodeBench.

What is exact, what is not, and what `Result.apart` says: docs/grader.md.

The files of `grader/`, in reading order:

    messages.py                verdicts, levels, and what goes over the sockets
    assertions.py, client.py   the trainer's side: tests made ready; a server started, and spoken to
    boot.py, server.py         the server
    keeper.py, program.py      the keeper; the program's process
    tester.py, surroundings.py the tester; what the tests import
    link.py                    values and calls between the two
    values.py                  plain data
    mirrors.py                 stand-ins for all other data, and what they may decide
    operations.py              what one process may ask of the other
    walls.py, semaphores.py    what keeps a program in: namespaces, Landlock, seccomp, limits
    leftovers.py               what ends processes and removes directories

The level of the walls is told once, and stands in every result.

Conventions. In kind assert the program runs as the module `program`, so a `__main__` block does not
run. Tests see its names. They do not see those that are names of builtins, unless one is the entry
point. An AssertionError raised by the program itself is an exception, not a wrong answer.

What it does not protect from: code that means harm. The program can read what the user can read,
files of tests too. At level `process` it can write what its user can write. Limits on memory are
per process.

It runs on Linux. On macOS (not tested) it runs at level `process`, without the watch on memory and
on signals.

No library does this. Those that isolate (bubblewrap, nsjail) start an interpreter a run, at several
times the cost, and give no verdict.
"""

import dataclasses
import pickle
import queue
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed

from config import cores, progress_bar
from grader.assertions import check_job, is_limit, prepare, same_output
from grader.client import Server
from grader.messages import HarnessError


@dataclasses.dataclass(frozen=True)
class Job:
    program: str
    # assert: plain assertions, or text that defines check(candidate)
    # stdio: [{"input": str, "output": str}]
    tests: object = ""
    entry_point: str = ""  # assert: the tested name, or an expression such as Solution().twoSum
    kind: str = "assert"
    name: str = ""
    time_limit: float | None = None  # seconds (stdio: a test); None: that of the call
    # assert: what stands in front of the program and is not the program's; it is in `program`, too
    preamble: str = ""


@dataclasses.dataclass
class Result:
    verdict: str  # a key of VERDICTS
    seconds: float  # wall time from the start of the program, as the grader saw it
    isolation: str  # one of grader.messages.LEVELS
    mode: str  # separate, stdio
    apart: bool = True  # no truth was decided by a method of the program's classes


def grade(jobs, **settings):
    """A Result for each Job, in order. Settings: see `Grader`; errors: see `graded`."""
    jobs = list(jobs)
    results = [None] * len(jobs)
    for i, result in graded(jobs, **settings):
        results[i] = result
    return results


def graded(jobs, progress=False, desc="grading", **settings):
    """Grade jobs in parallel, and yield (index, Result) as they finish.

    Equal jobs run once. Settings: those of `Grader`.

    Raises ValueError for bad settings, and for tests that do not compile or cannot fail. Tests that
    cannot fail are empty, or define a check() that nobody calls. Raises HarnessError where a run
    failed twice for a reason that is not the program's. Ctrl-C and errors leave no process and no
    directory.
    """
    jobs = list(jobs)
    for i, job in enumerate(jobs):
        check_job(job, f"job {i}" + (f" ({job.name})" if job.name else ""))
    same, bar = {}, None
    for i, job in enumerate(jobs):
        same.setdefault(
            pickle.dumps(
                (job.program, job.tests, job.entry_point, job.kind, job.time_limit, job.preamble)
            ),
            [],
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
    """Servers that stay, for jobs that come one by one.

    `submit(job)` gives a Future of its Result at once. Use a Grader in a `with` block, or close()
    it. Closing ends the jobs that still run, and drops the jobs that wait.

    workers         servers, each with one run at a time, started when first needed;
                    default: the cores that this process may use
    time_limit      seconds of a run; Job.time_limit goes before it
    memory_limit    bytes of address space
    output_limit    bytes of output, and of any file

    Raises ValueError for bad settings. Errors of a run, as in `graded`, come with its Future.
    """

    def __init__(self, workers=None, time_limit=10.0, memory_limit=2 << 30, output_limit=64 << 20):
        check_limits(
            time_limit=time_limit,
            memory_limit=memory_limit,
            output_limit=output_limit,
            workers=1 if workers is None else workers,
        )
        self.limits = (time_limit, int(memory_limit), int(output_limit))
        self.stop = threading.Event()
        self.servers = [Server() for _ in range(workers or cores())]
        self.idle = queue.LifoQueue()  # the last one used is taken first: few servers for few jobs
        for server in self.servers:
            self.idle.put(server)
        self.pool = ThreadPoolExecutor(len(self.servers))

    def submit(self, job):
        check_job(job, job.name or "the job")
        try:
            return self.pool.submit(self.run, job)
        except RuntimeError as e:  # the machine is full; or the pool was closed
            if "thread" not in str(e):
                raise
            raise HarnessError(f"{e}: the machine has no room; end other work") from None

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


def check_limits(**limits):
    """Raises ValueError unless all are finite numbers above zero.

    Limits of memory and output must also fit the system's numbers.
    """
    for name, value in limits.items():
        if not is_limit(value) or name != "time_limit" and not 1 <= value < 1 << 62:
            raise ValueError(f"{name}={value} must be a positive, finite number")
    if limits["workers"] != int(limits["workers"]):
        raise ValueError(f"workers={limits['workers']} must be a whole number")


def run_job(server, job, limits, stop):
    """The Result of one job: one run, or two (in one process), or one a test."""
    if job.kind == "assert":
        tests = prepare(job.tests, job.entry_point.strip(), job.preamble)
        numpy = "numpy" in job.tests
        verdict, seconds, _, apart = server.run(
            "separate", (job.program, *tests), limits, numpy, stop
        )
        return Result(verdict, seconds, server.level, "separate", apart)
    total = 0.0
    for test in job.tests:
        verdict, seconds, output, _ = server.run(
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
