"""Runs programs that a model wrote against their tests, and gives each a verdict.

    python sandbox.py            # grades one right and one wrong program and prints milliseconds a program

The promise: a program passes if and only if all of its tests ran to their end, within the limits; runs do not share an
interpreter, a directory or a process group; a fault of the grader raises an error and is never a score.

Each job gets a fresh interpreter in its own session, started by exec (a trainer full of tensors is never forked), an empty 0700
directory as cwd, HOME and TMPDIR, a clean environment (UTF-8, hash seed 0), stdin and output at /dev/null, limits on time, address
space and file size. The job and a random token arrive over a socket; the verdict counts only behind that token, which the child
sends after the last test. So none of these pass: printing "passed", an exit status of 0 by any route, os._exit or SystemExit inside
a tested function, exit handlers, swallowing every exception, replaced builtins (restored before the tests), a shadowed `len` or
`all` (not visible to the tests), forking (only the first process may answer), and results whose class says yes to every comparison.

Conventions
1. The program runs as the module `program`, so a `__main__` block does not run; it may print, start threads, write small files.
2. The tests see the program's names, except those of builtins, unless the name is the entry point.
3. A result of the entry point that holds an object whose class the program gave its own comparisons is a wrong answer,
   unless the tests name that class.

What it does not protect from: code that means harm. The tests run in the program's interpreter, so a program that walks the
frames finds the token, and one that changes a library module (`math.isclose`) changes it for the tests; a value that is
yielded, or comes from a method, is not checked (3). A child that leaves the session survives (until its CPU limit, if it
computes). There is no wall around the network, other files or other processes of the same user, no limit on the number of
processes, and the memory limit is per process; root can lift its own limits. macOS does not enforce the memory limit.
"""
import concurrent.futures
import dataclasses
import inspect
import marshal
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

VERDICTS = {
    "passed": "every test ran to its end and held",
    "wrong_answer": "an assertion failed while the tests ran",
    "exception": "the program, or a call that the tests made, raised something else",
    "syntax_error": "the program does not compile",
    "timeout": "no verdict within the time limit",
    "memory_limit": "a MemoryError ended the program or the tests",
    "abnormal_exit": "the process ended, or tried to end, before the tests did",
}
START_LIMIT = 60.0      # seconds for an interpreter to start; more is a fault of the machine, not of the program
FILE_LIMIT = 64 << 20   # bytes of any one file
SLICE = 0.05            # seconds between two looks at a silent child
PACKAGES = [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]


@dataclasses.dataclass
class Job:
    program: str
    tests: str              # plain assertions, or text that defines check(candidate), called with the entry point
    entry_point: str = ""   # the tested name, or an expression such as Solution().twoSum


@dataclasses.dataclass
class Result:
    verdict: str            # a key of VERDICTS
    seconds: float          # wall time from the start of the program, as the grader saw it


def child_main():
    """The child's side; its source is sent to `python -c`. It imports only what costs nothing, since every program pays for it.

    Everything needed after the program ran is a local: a program can change builtins and modules, but not these by accident.
    """
    import builtins, marshal, posix, resource, sys
    fd, parts = int(sys.argv[1]), []
    while part := posix.read(fd, 1 << 16):
        parts.append(part)
    token, program, tests, entry, seconds, memory, file_size, packages = marshal.loads(b"".join(parts))
    write, leave, getpid, pid, pristine = posix.write, posix._exit, posix.getpid, posix.getpid(), dict(vars(builtins))
    space, settrace, setprofile = vars(builtins), sys.settrace, sys.setprofile
    comparisons = "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__sub__", "__rsub__", "__contains__"

    def say(verdict):
        if getpid() == pid:                      # a fork of the program runs the tests too, but has no say
            write(fd, token + verdict + b"\n")
        leave(0)                                 # no exit handlers, no waiting for threads

    def failure(e, at_assert):
        kind = type(e)
        if issubclass(kind, MemoryError):
            return b"memory_limit"
        if issubclass(kind, SystemExit):
            return b"abnormal_exit"
        return at_assert if issubclass(kind, AssertionError) else b"exception"

    def guarded(function):                       # convention 3
        def call(*args, **kwargs):
            out = function(*args, **kwargs)
            todo, seen = [out], set()
            while todo:
                value = todo.pop()
                kind = type(value)
                if kind in (int, float, str, bool, bytes, complex, type(None)):
                    continue
                if isinstance(value, (list, tuple, set, frozenset, dict)) and id(value) not in seen:
                    seen.add(id(value))
                    todo.extend(value)
                    if isinstance(value, dict):
                        todo.extend(value.values())
                assert kind.__module__ != "unittest.mock", "the result compares equal to anything"
                for base in kind.__mro__:
                    if any(getattr(base.__dict__.get(m), "__globals__", None) is own for m in comparisons):
                        assert base.__name__ in tests, "the result brings its own comparisons"
            return out
        call.__wrapped__ = function
        return call

    for limit, value in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, file_size), (resource.RLIMIT_CORE, 0),
                         (resource.RLIMIT_CPU, int(2 * seconds) + 2)):
        hard = resource.getrlimit(limit)[1]
        if limit != resource.RLIMIT_AS or sys.platform != "darwin":
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(limit, (value, value))
    write(fd, b"R")                              # ready: the clock runs, and what goes wrong is the program's fault
    try:
        tests_code = compile(tests, "<tests>", "exec", dont_inherit=True)
        entry_code = compile(entry.strip() or "None", "<entry point>", "eval", dont_inherit=True)
    except Exception:
        say(b"bad_tests")                        # but not this
    sys.path.extend(packages)
    sys.argv[:] = ["program"]
    module = sys.modules["program"] = type(sys)("program")
    own = vars(module)
    try:
        code = compile(program, "<program>", "exec", dont_inherit=True)
    except BaseException:
        say(b"syntax_error")
    try:
        exec(code, own)
    except BaseException as e:
        say(failure(e, b"exception"))
    settrace(None), setprofile(None)
    space.clear(), space.update(pristine)
    names = {k: v for k, v in own.items() if k == entry or k not in pristine and k != "__builtins__"}
    names["__name__"] = "tests"
    try:
        if callable(names.get(entry)) and not isinstance(names[entry], type):
            names[entry] = guarded(names[entry])
        check = names.get("check")
        exec(tests_code, names)
        if entry and names.get("check") is not check:    # the tests define it, not the program
            candidate = eval(entry_code, names)
            names["check"](candidate if entry in names or isinstance(candidate, type) else guarded(candidate))
    except BaseException as e:
        say(failure(e, b"wrong_answer"))
    say(b"passed")


CHILD = inspect.getsource(child_main) + "\nchild_main()\n"


class HarnessError(RuntimeError):
    """The grader failed, not the program."""


def grade(jobs, workers=None, time_limit=10.0, memory_limit=2 << 30, progress=False, desc="grading"):
    """A Result for each Job, in order. Equal jobs run once. `workers` children at a time; default: the cores this process may use.

    Raises ValueError for tests that cannot fail (empty, or a check() that nobody calls) or do not compile, HarnessError
    where a child could not be started, twice. Ctrl-C and errors leave no child and no directory.
    """
    jobs = list(jobs)
    if time_limit <= 0 or memory_limit <= 0 or (workers is not None and workers < 1):
        raise ValueError(f"time_limit={time_limit}, memory_limit={memory_limit} and workers={workers} must be positive")
    for i, job in enumerate(jobs):
        if not job.tests.strip():
            raise ValueError(f"job {i} has no tests: everything would pass")
        defined, called = (re.search(form, job.tests, re.M) for form in (r"^def check\(", r"^check\("))
        if defined and not called and not job.entry_point:
            raise ValueError(f"job {i}: its tests define check(candidate), so it needs an entry_point")
    if not jobs:
        return []
    keys = [(job.program, job.tests, job.entry_point) for job in jobs]
    distinct = list(dict.fromkeys(keys))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    root, stop, results = tempfile.mkdtemp(prefix="ra3-grade-"), threading.Event(), {}
    pool = concurrent.futures.ThreadPoolExecutor(min(workers or cores, len(distinct)))
    bar = None
    try:
        if progress:
            import tqdm
            bar = tqdm.tqdm(total=len(distinct), desc=desc, unit="program")
        futures = {pool.submit(run, key, os.path.join(root, str(i)), time_limit, memory_limit, stop): key
                   for i, key in enumerate(distinct)}
        for future in concurrent.futures.as_completed(futures):
            try:
                results[futures[future]] = future.result()
            except Exception as e:
                e.add_note(f"while grading job {keys.index(futures[future])}")
                raise
            if bar:
                bar.update()
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        remove(root)
        if bar:
            bar.close()
    return [dataclasses.replace(results[key]) for key in keys]


def run(key, cwd, time_limit, memory_limit, stop):
    """Grade one (program, tests, entry_point) in the new directory `cwd`; a start that fails is tried once more."""
    for attempt in range(2):
        os.mkdir(cwd, 0o700)
        try:
            return run_child(key, cwd, time_limit, memory_limit, stop)
        except (HarnessError, OSError):
            if attempt or stop.is_set():
                raise
        finally:
            remove(cwd)


def run_child(key, cwd, time_limit, memory_limit, stop):
    token = secrets.token_bytes(16)
    job = marshal.dumps((token, *key, float(time_limit), memory_limit, FILE_LIMIT, PACKAGES))
    env = dict(PATH="/usr/local/bin:/usr/bin:/bin", HOME=cwd, TMPDIR=cwd, LANG="C.UTF-8", PYTHONHASHSEED="0", PYTHONUTF8="1",
               PYTHONSAFEPATH="1", PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            child = subprocess.Popen([sys.executable, "-s", "-S", "-c", CHILD, str(theirs.fileno())], cwd=cwd, env=env,
                                     pass_fds=[theirs.fileno()], start_new_session=True, stdin=subprocess.DEVNULL,
                                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return converse(child, ours, job, token, time_limit, stop)
        finally:
            try:
                os.killpg(child.pid, signal.SIGKILL)    # not reaped yet, so the number is still ours
            except ProcessLookupError:
                pass
            child.wait()


def converse(child, sock, job, token, time_limit, stop):
    """Send the job, wait for "R" and then for token + verdict. Silence, a wrong token or an early end are verdicts too."""
    sock.settimeout(START_LIMIT)
    try:
        sock.sendall(job)
        sock.shutdown(socket.SHUT_WR)
    except OSError as e:
        raise HarnessError(f"the child took no job (exit status {child.poll()})") from e
    sock.settimeout(SLICE)
    start, ready, said = time.perf_counter(), False, b""
    while True:
        gone = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None    # looks, does not reap
        try:
            part = sock.recv(4096)
        except TimeoutError:
            part = None
        except ConnectionError:
            part = b""
        said += part or b""
        if not ready and said[:1] == b"R":
            ready, said, start = True, said[1:], time.perf_counter()
        seconds = time.perf_counter() - start
        if said[:len(token)] == token and said.endswith(b"\n"):
            verdict = said[len(token):-1].decode()
            if verdict == "bad_tests":
                raise ValueError("the tests or the entry point do not compile")
            return Result(verdict, seconds)
        if stop.is_set():
            raise HarnessError("grading was interrupted")
        if part == b"" or (gone and part is None) or len(said) > 4096:
            if not ready:
                raise HarnessError(f"the child ended before it ran the program (exit status {child.poll()})")
            return Result("abnormal_exit", seconds)
        if seconds > (time_limit if ready else START_LIMIT):
            if not ready:
                raise HarnessError(f"the child did not start within {START_LIMIT} s")
            return Result("timeout", seconds)


def remove(path):
    """Delete a directory whatever its inner permissions are, and while killed processes may still be ending in it."""
    for _ in range(20):
        shutil.rmtree(path, ignore_errors=True)
        if not os.path.lexists(path):
            return
        for folder, _, _ in os.walk(path):
            os.chmod(folder, 0o700)
        time.sleep(0.01)
    raise HarnessError(f"could not remove {path}")


if __name__ == "__main__":
    right = [Job(f"def add(a, b):\n    return a + b  # {i}", "assert add(1, 2) == 3", "add") for i in range(200)]
    begin, cpu = time.perf_counter(), os.times()
    verdicts = {r.verdict for r in grade(right, progress=True)}
    wall, now = time.perf_counter() - begin, os.times()
    spent = sum(now[:4]) - sum(cpu[:4])
    print(verdicts, f"{1000 * wall / len(right):.1f} ms wall, {1000 * spent / len(right):.1f} ms CPU a program")
    print(grade([Job("def add(a, b):\n    return a - b", "assert add(1, 2) == 3", "add")]))
