"""Runs programs that a model wrote against their tests, and gives each a verdict.

    python sandbox.py FILE.jsonl          # rows {"name", "kind", "program", "tests", "entry_point"} -> one JSON line each, in order
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
interpreter, and calls the program's functions over a socket: plain data crosses by pickle, read by an unpickler that makes plain types only;
arguments that were changed in place come back, exceptions too. So neither replaced builtins, nor what the program finds by walking frames, modules or
objects, nor what it prints or how it exits can turn a wrong value into a right one. Where values are not plain data (classes, generators,
callables), or where tests fail that look at something which they share with the program (files, `random`, stdout, identity), the run is done
over in one process (mode `in_process`): the tests get builtins and modules from before the program ran;
comparisons and truth values that the program's classes decide count only if the tests name the class, and not if it says yes to
everything; the verdict comes with a token that is sent after the program has loaded, and with the count of assertions that held.
A program of kind stdio runs once a test, as `__main__`; its output is compared in the trainer, by the rule of LiveCodeBench.

**Walls**, the strongest that the machine offers; the level is told once, and in every result:

    namespaces  user, pid, mount, network, IPC: a read-only machine, a directory in memory that ends with the run, no network but loopback
    landlock    writes only below its own directory, no TCP, no signals to others
    process     signals only to itself and younger processes (seccomp), a sweep of all descendants (the keeper is their subreaper);
                root becomes `nobody` where that user can read Python, at this level and the one above

and always: no new privileges, no capabilities, limits on address space, files and processes. The memory limit is watched, and a seccomp
filter ends a program that asks for more than it at once, so that a failed allocation whose error was caught counts too.

Conventions. In kind assert the program runs as the module `program`, so a `__main__` block does not run. Tests see its names but those of
builtins, unless it is the entry point. An AssertionError raised by the program itself is an exception, not a wrong answer.

What it does not protect from: code that means harm. What the user can read, the program can read, files of tests too. In one
process, a program that walks frames while the tests call it finds the token. At level `process` it can write what its user can. Limits on
memory are per process. It runs on Linux; on macOS (not tested) at level `process`, without the watch on memory and on signals.

No library does this: those that isolate (bubblewrap, nsjail) start an interpreter a run, at several times the cost, and give no verdict.
"""
import argparse
import ast
import atexit
import builtins
import collections
import contextlib
import ctypes
import dataclasses
import decimal
import functools
import gc
import importlib
import io
import json
import linecache
import marshal
import operator
import os
import pickle
import queue
import re
import resource
import select
import shutil
import signal
import socket
import struct
import subprocess
import symtable
import sys
import tempfile
import threading
import time
import traceback
import types

VERDICTS = {                    # where several apply: the first of timeout, output_limit, memory_limit, abnormal_exit, then the rest
    "passed": "every assertion completed and held",
    "wrong_answer": "an assertion failed, or an output differs",
    "exception": "the program, or a call that the tests made, raised something else",
    "syntax_error": "the program does not compile",
    "timeout": "no verdict within the time limit",
    "memory_limit": "the program took, or asked for, more memory than the limit, whatever it did next",
    "output_limit": "it wrote more than the limit to its output or to a file",
    "abnormal_exit": "the process ended, or tried to end, before the tests did; a stdio program ended with a status other than 0",
}
LEVELS = ("namespaces", "landlock", "process")
START_LIMIT = 60.0              # seconds for a server or a run to start; more is a fault of the machine, not of the program
PROCESSES = 256                 # processes and threads of a run
STACK = 128 << 20               # bytes of the main thread's stack
MESSAGE = 1 << 28               # bytes of an answer of the program, at most
SHARED = set("""builtins contextlib decimal gc globals input inspect io locale locals logging open os pathlib print random signal sys tempfile threading
    time unittest vars warnings weakref""".split())             # what tests may change, or look at, in the interpreter that they share with a program
LINUX = sys.platform.startswith("linux")
USUAL = """abc array bisect calendar cmath collections.abc copy dataclasses datetime decimal enum fractions functools hashlib heapq itertools
    json math numbers operator os.path queue random re statistics string sys textwrap time traceback typing""".split()


@dataclasses.dataclass(frozen=True)
class Job:
    program: str
    tests: object = ""          # assert: plain assertions, or text that defines check(candidate); stdio: [{"input": str, "output": str}]
    entry_point: str = ""       # assert: the tested name, or an expression such as Solution().twoSum
    kind: str = "assert"
    name: str = ""
    time_limit: float | None = None     # seconds (stdio: a test); None: that of the call


@dataclasses.dataclass
class Result:
    verdict: str                # a key of VERDICTS
    seconds: float              # wall time from the start of the program, as the grader saw it
    isolation: str              # one of LEVELS
    mode: str                   # separate, in_process, stdio


class HarnessError(RuntimeError):
    """The grader failed, not the program."""


# ---------------------------------------------------------------- the trainer's side

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
    from concurrent.futures import as_completed              # here: the server, which runs this file too, needs none of it
    jobs = list(jobs)
    for i, job in enumerate(jobs):
        check_job(job, f"job {i}" + (f" ({job.name})" if job.name else ""))
    same, bar = {}, None
    for i, job in enumerate(jobs):
        same.setdefault(pickle.dumps((job.program, job.tests, job.entry_point, job.kind, job.time_limit)), []).append(i)
    with Grader(**settings) as grader:
        try:
            if progress:
                import tqdm
                bar = tqdm.tqdm(total=len(same), desc=desc, unit="program")
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
        if min(time_limit, memory_limit, output_limit) <= 0 or (workers is not None and workers < 1):
            raise ValueError(f"time_limit={time_limit}, memory_limit={memory_limit}, output_limit={output_limit} and workers={workers} must be positive")
        from concurrent.futures import ThreadPoolExecutor
        self.limits, self.stop = (time_limit, memory_limit, output_limit), threading.Event()
        self.servers = [Server() for _ in range(workers or cores())]
        self.idle = queue.LifoQueue()                        # the last one used is taken first: few servers for few jobs
        for server in self.servers:
            self.idle.put(server)
        self.pool = ThreadPoolExecutor(len(self.servers))

    def submit(self, job):
        check_job(job, job.name or "the job")
        return self.pool.submit(self.run, job)

    def run(self, job):
        server = self.idle.get()
        try:
            return run_job(server, job, (job.time_limit or self.limits[0], *self.limits[1:]), self.stop)
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


def cores():
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def check_job(job, who):
    """Raises ValueError if the job cannot be graded, or could not fail."""
    if job.kind == "stdio":
        if not isinstance(job.tests, (list, tuple)) or not job.tests:
            raise ValueError(f"{who}: kind stdio needs a list of at least one {{'input', 'output'}} as tests; with none, everything would pass")
        for test in job.tests:
            if not isinstance(test, dict) or not isinstance(test.get("input"), str) or not isinstance(test.get("output"), str):
                raise ValueError(f"{who}: a stdio test is {{'input': text, 'output': text}}; given {str(test)[:60]}")
    elif job.kind == "assert":
        if not isinstance(job.tests, str) or not job.tests.strip():
            raise ValueError(f"{who} has no tests: everything would pass")
        if re.search(r"^def check\(", job.tests, re.M) and not re.search(r"^check\(", job.tests, re.M) and not job.entry_point.strip():
            raise ValueError(f"{who}: its tests define check(candidate), so it needs an entry_point")
    else:
        raise ValueError(f"{who}: kind {job.kind!r}; expected assert or stdio")
    if job.time_limit is not None and not job.time_limit > 0:
        raise ValueError(f"{who}: time_limit={job.time_limit} must be positive")


def run_job(server, job, limits, stop):
    """The Result of one job: one run, or two (in one process), or one a test."""
    if job.kind == "assert":
        entry = job.entry_point.strip()
        for mode in ("separate", "in_process"):
            verdict, seconds, _ = server.run(mode, (job.program, *prepare(job.tests, entry, mode == "in_process")), limits, "numpy" in job.tests, stop)
            if verdict != "in_process":
                return Result(verdict, seconds, server.level, mode)
        raise HarnessError("a run in one process asked for one")
    total = 0.0
    for test in job.tests:
        verdict, seconds, output = server.run("stdio", (job.program, test["input"]), limits, False, stop)
        total += seconds
        if verdict == "passed" and not same_output(output.decode("utf-8", "replace"), test["output"]):
            verdict = "wrong_answer"
        if verdict != "passed":
            break
    return Result(verdict, total, server.level, "stdio")


class Instrument(ast.NodeTransformer):
    """Counts assertions that begin and that hold; with `guarded`, results, comparisons and truth values go through `guard`. Names in <> cannot be a program's."""

    def __init__(self, guarded):
        self.guarded = guarded

    def helper(self, node, name, *args):
        return ast.copy_location(ast.Call(ast.Name(name, ast.Load()), list(args), []), node)

    def visit_Assert(self, node):
        self.generic_visit(node)
        if self.guarded:
            node.test = self.helper(node, "<truth>", node.test)
        return [ast.copy_location(ast.Expr(self.helper(node, "<begun>")), node), node, ast.copy_location(ast.Expr(self.helper(node, "<held>")), node)]

    def visit_Call(self, node):
        self.generic_visit(node)
        return self.helper(node, "<truth>", node) if self.guarded else node

    def visit_UnaryOp(self, node):
        self.generic_visit(node)
        if self.guarded and isinstance(node.op, ast.Not):
            node.operand = self.helper(node, "<truth>", node.operand)
        return node

    def visit_Compare(self, node):
        self.generic_visit(node)
        if not self.guarded:
            return node
        kinds = ast.Tuple([ast.Constant(type(op).__name__) for op in node.ops], ast.Load())
        return self.helper(node, "<compare>", node.left, kinds, *node.comparators)


@functools.lru_cache(4096)
def prepare(tests, entry, guarded):
    """Tests as code that counts assertions -> (marshalled code, entry point, names it wants of the program, names and marks in it, assertions that
    must hold, modules it imports). Marks: "f." where an attribute of f is used; "<calls check>": the tests call check() themselves; "<shares>": they
    may depend on a state or an identity that is shared with the program; "<no failure is caught>": an assertion that fails ends them.
    Raises ValueError if they do not compile."""
    try:
        tree = ast.parse(tests)
        compile(entry or "None", "<entry point>", "eval", dont_inherit=True)
    except (SyntaxError, ValueError) as e:
        raise ValueError(f"the tests or the entry point do not compile: {e}") from None
    inside = list(ast.walk(tree))
    named = {n.id for n in inside if isinstance(n, ast.Name)} | {n.attr for n in inside if isinstance(n, ast.Attribute)}
    named |= {n.value.id + "." for n in inside if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)}
    named |= {n.id for n in ast.walk(ast.parse(entry or "None", mode="eval")) if isinstance(n, ast.Name)}
    imports = {a.name for n in inside if isinstance(n, ast.Import) for a in n.names} | {
        n.module for n in inside if isinstance(n, ast.ImportFrom) and n.module}
    named |= {name.split(".")[0] for name in imports}
    calls = [n.value.func.id for n in tree.body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call) and isinstance(n.value.func, ast.Name)]
    checks = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "check"]
    direct = sum(isinstance(n, ast.Assert) for n in tree.body)
    if checks and (entry or "check" in calls) and not any(isinstance(n, ast.Return) for n in ast.walk(checks[-1])):
        direct += sum(isinstance(n, ast.Assert) for n in checks[-1].body)
    if "check" in calls:
        named.add("<calls check>")
    if not any(isinstance(n, (ast.Try, ast.TryStar)) for n in inside) and not named & {"suppress", "raises", "assertRaises"}:
        named.add("<no failure is caught>")
    if named & SHARED or any(isinstance(n, ast.Compare) and any(
            isinstance(op, (ast.Is, ast.IsNot)) and not isinstance(c, ast.Constant) for op, c in zip(n.ops, n.comparators)) for n in inside):
        named.add("<shares>")
    imports |= named & set(sys.stdlib_module_names) & set(sys.modules)
    tables, free, bound = [symtable.symtable(tests, "<tests>", "exec")], set(), set()
    while tables:
        table = tables.pop()
        tables += table.get_children()
        top = table.get_type() == "module"
        for symbol in table.get_symbols():
            if top and (symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()):
                bound.add(symbol.get_name())
            if symbol.is_referenced() and (top or symbol.is_global()):
                free.add(symbol.get_name())
    wanted = {n for n in free - bound if n == entry or not hasattr(builtins, n)}
    tree = ast.fix_missing_locations(Instrument(guarded).visit(tree))
    code = marshal.dumps(compile(tree, "<tests>", "exec", dont_inherit=True))
    return code, entry, wanted, named, direct, sorted(imports) if guarded else []


def same_output(given, expected):
    """LiveCodeBench's comparison: as many lines, stripped; each equal, or equal token by token as decimal numbers.
    Example: ("1.50 2\\n", "1.5 2.0") -> True"""
    given, expected = ([line.strip() for line in text.strip().split("\n")] for text in (given, expected))
    if len(given) != len(expected):
        return False
    for a, b in zip(given, expected):
        if a != b:
            try:
                if [decimal.Decimal(x) for x in a.split()] != [decimal.Decimal(x) for x in b.split()]:
                    return False
            except decimal.InvalidOperation:
                return False
    return True


class Server:
    """A server process and the socket to it. Starts at the first run, and again after it died."""
    told = False                            # has this process told the level?

    def __init__(self):
        self.process = self.sock = self.level = self.folder = None

    def start(self, memory_limit, output_limit):
        self.sock, theirs = socket.socketpair()
        env = dict(PATH="/usr/local/bin:/usr/bin:/bin", LANG="C.UTF-8", PYTHONHASHSEED="0", PYTHONUTF8="1", PYTHONSAFEPATH="1",
                   PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1", MALLOC_ARENA_MAX="2",
                   TMPDIR=tempfile.gettempdir(), RA3_SANDBOX_LEVEL=os.environ.get("RA3_SANDBOX_LEVEL", LEVELS[0]))
        with theirs:
            try:
                self.process = subprocess.Popen([sys.executable, "-s", "-c", BOOT, os.path.abspath(__file__), str(theirs.fileno()),
                                                 str(memory_limit), str(output_limit)], env=env, cwd="/",
                                                pass_fds=[theirs.fileno()], start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            except OSError as e:
                raise HarnessError(f"the server could not be started with {sys.executable}: {e.strerror}") from e
        self.sock.settimeout(START_LIMIT)
        hello = receive(self.sock)
        if hello is None:
            raise HarnessError("the server ended before it was ready")
        self.level, self.folder, why = marshal.loads(hello)
        if not Server.told:
            Server.told = True
            print(f"sandbox: isolation level {self.level}{why}", file=sys.stderr, flush=True)

    def run(self, mode, body, limits, numpy, stop):
        """One run -> (verdict, seconds, output). Tried twice. Raises HarnessError."""
        for attempt in range(2):
            try:
                if self.process is None:
                    self.start(*limits[1:])
                send(self.sock, marshal.dumps((mode, limits[0], numpy)))
                send(self.sock, marshal.dumps(body))
                self.sock.settimeout(limits[0] + 2 * START_LIMIT)
                answer = receive(self.sock)
                if answer is None:
                    raise HarnessError("the server ended in the middle of a run")
                verdict, seconds, output, detail = marshal.loads(answer)
                if verdict == "harness_error":
                    raise HarnessError(detail)
                return verdict, seconds, output
            except (HarnessError, OSError) as e:
                self.close()
                if stop.is_set():
                    raise HarnessError("grading was interrupted") from None
                if attempt:
                    raise e if isinstance(e, HarnessError) else HarnessError(f"lost the server: {e}") from e

    def hang_up(self):
        """End the conversation; the server ends its run and leaves nothing. From any thread."""
        with contextlib.suppress(OSError, AttributeError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self):
        if self.process:
            self.hang_up()
            try:
                self.process.wait(START_LIMIT)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.sock.close()
            if self.folder:
                remove(self.folder)          # the server did, unless it was killed
        elif self.sock:
            self.sock.close()
        self.process = self.sock = self.folder = None


def remove(path):
    """Delete a directory whatever is in it: any depth, any permissions."""
    for _ in range(20):
        with contextlib.suppress(RecursionError):
            shutil.rmtree(path, ignore_errors=True)
        if not os.path.lexists(path):
            return
        for command in (["chmod", "-R", "u+rwx", path], ["rm", "-rf", path]):
            subprocess.run(command, stderr=subprocess.DEVNULL)
        time.sleep(0.01)
    raise HarnessError(f"could not remove {path}")


# ---------------------------------------------------------------- messages

def send(sock, data):
    sock.sendall(struct.pack("<Q", len(data)) + data)


def receive(sock, most=1 << 40, before=None):
    """The next message, or None at the end of the stream. before: called before each wait. Raises TooLong."""
    def exactly(size):
        parts = []
        while size:
            if before:
                before()
            part = sock.recv(min(size, 1 << 20))
            if not part:
                return None
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    head = exactly(8)
    size = head and struct.unpack("<Q", head)[0]
    if size and size > most:
        raise TooLong
    return head and exactly(size)


class TooLong(Exception):
    pass


# ---------------------------------------------------------------- the server

# What the server's interpreter runs. Room for deep recursion is laid out at exec. Without hooks at fork (random's reseeds, threading's looks for
# threads that a server without threads has not) a fork costs half; and a run is the same every time. This file is run with builtins of its own, which
# no program can replace.
BOOT = f"""
import os, resource, sys
soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
if sys.platform == "linux" and soft != {STACK} and (hard == resource.RLIM_INFINITY or hard >= {STACK}):
    resource.setrlimit(resource.RLIMIT_STACK, ({STACK}, hard))
    os.execv(sys.executable, sys.orig_argv)
register, os.register_at_fork = os.register_at_fork, lambda **hooks: None
import builtins, importlib.machinery
space = dict(__name__="sandbox", __file__=sys.argv[1], __builtins__=dict(vars(builtins)))
exec(importlib.machinery.SourceFileLoader("sandbox", sys.argv[1]).get_code("sandbox"), space)
space["serve"](register, *map(int, sys.argv[2:]))
"""


def serve(register_at_fork, fd, memory, most_output):
    """The server: one run after the other, until the trainer hangs up or dies."""
    sock = socket.socket(fileno=fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in USUAL:
        importlib.import_module(name)
    os.register_at_fork = register_at_fork
    level, nobody, why = choose_level()
    folder = None if level == "namespaces" else os.path.join(os.environ["TMPDIR"], f"ra3-grade-{os.urandom(8).hex()}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    gc.collect()
    gc.freeze()
    try:
        if folder:
            os.mkdir(folder, 0o711)
        control, theirs = socket.socketpair()
        if (clone(NEWPID | NEWNS) if level == "namespaces" else os.fork()) == 0:
            keep(theirs, memory, most_output, level, folder, nobody)
        theirs.close()
        prctl(4, 0)                                          # PR_SET_DUMPABLE: no other process of the user looks into this one
        send(sock, marshal.dumps((level, folder, why)))
        while header := receive(sock):
            mode, seconds, numpy = marshal.loads(header)
            if numpy:
                with contextlib.suppress(ImportError):
                    import numpy                             # once, not once a run
                    gc.freeze()
            answer = serve_run(sock, control, mode, seconds, memory, most_output, folder, nobody)
            if answer is None:
                break
            send(sock, marshal.dumps(answer))
    except OSError:                                          # the trainer died
        pass
    finally:
        sweep()
        if folder:
            remove(folder)


def serve_run(sock, control, mode, seconds_limit, memory, most_output, folder, nobody):
    """One run, watched from outside -> (verdict, seconds, output, detail); None if the trainer hung up meanwhile."""
    out, err, feed = (memory_file(name) for name in ("stdout", "stderr", "stdin"))
    reading, writing = os.pipe()
    watch, watched = os.pipe()
    ours, theirs = socket.socketpair()
    cwd = folder and os.path.join(folder, "run")             # with namespaces the keeper has one
    if cwd:
        os.mkdir(cwd, 0o700)
        if nobody:
            os.chown(cwd, nobody, nobody)
    pid = os.fork()
    if pid == 0:
        os.close(reading), control.close(), theirs.close(), os.close(watched)
        test(sock, writing, Peer(ours, watch), mode, memory, feed)
    socket.send_fds(control, [mode.encode()], [theirs.fileno(), watched, feed, out, err])        # after the fork: see forbid_signals_out
    os.close(writing), os.close(watch), os.close(watched), ours.close(), theirs.close()
    said, start, hung_up, timed_out = b"", None, False, False
    deadline = time.perf_counter() + START_LIMIT
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    poll.register(sock, getattr(select, "POLLRDHUP", 0))
    while True:
        ready = dict(poll.poll(max(0, 1000 * (deadline - time.perf_counter()))))
        if sock.fileno() in ready:
            hung_up = True
            break
        if reading in ready:
            part = os.read(reading, 1 << 16)
            if not part:
                break
            if start is None and part[:1] == b"R":
                part, start = part[1:], time.perf_counter()
                deadline = start + seconds_limit
            said += part
        elif time.perf_counter() >= deadline:
            timed_out = start is not None
            break
    seconds = time.perf_counter() - (start or deadline)
    if hung_up or timed_out or not said:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    os.close(reading)
    control.sendall(b"S")                                    # the keeper ends all that is left of the run
    control.settimeout(START_LIMIT)
    clean = control.recv(1) == b"C"
    output = os.pread(out, most_output + 1, 0) if mode == "stdio" else b""
    too_much = sum(os.fstat(f).st_size for f in (out, err)) > most_output
    os.close(out), os.close(err), os.close(feed)
    if cwd:
        remove(cwd)
    if hung_up:
        return None
    if not clean:
        raise OSError("the keeper ended")
    if timed_out:
        return "timeout", seconds, b"", ""
    if status or not said:                                   # a clean exit of the tester, and its one message
        return "harness_error", 0.0, b"", f"the tester ended with status {status} after {said[-300:]!r}" if start else "the run did not start"
    verdict, detail = marshal.loads(said)
    return ("output_limit" if too_much and verdict != "harness_error" else verdict), seconds, output, detail


def memory_file(name):
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    with tempfile.TemporaryFile() as f:
        return os.dup(f.fileno())


def sweep():
    """Kill whatever is left of a run, daemons included: its orphans become children of the process that calls this (their subreaper)."""
    while True:
        for pid in children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0 if LINUX else os.WNOHANG)
        except ChildProcessError:
            return


def children():
    """Process numbers of this process's children."""
    try:
        with open(f"/proc/self/task/{threading.get_native_id()}/children") as f:
            return [int(p) for p in f.read().split()]
    except OSError:
        pass
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc") if LINUX else ()):
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/stat") as f:
                if int(f.read().rsplit(")", 1)[1].split()[1]) == os.getpid():
                    found.append(int(pid))
    return found


# ---------------------------------------------------------------- walls

libc = ctypes.PyDLL(None, use_errno=True)                    # PyDLL: calls keep the interpreter's lock, so a clone() is whole
NEWNS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
NOSUID, NODEV, NOEXEC, RDONLY, REC, PRIVATE = 2, 4, 8, 1, 0x4000, 0x40000
NO_CAPABILITIES = struct.pack("=Ii", 0x20080522, 0)
MACHINE = {                                                  # numbers of system calls; signals: kill, tkill, tgkill, rt_sigqueueinfo, pidfd_open
    "x86_64": dict(arch=0xC000003E, mmap=9, mremap=25, clone=56, signals=(62, 200, 234, 129, 434), traces=(101, 310, 311)),
    "aarch64": dict(arch=0xC00000B7, mmap=222, mremap=216, clone=220, signals=(129, 130, 131, 138, 434), traces=(117, 270, 271)),
}.get(os.uname().machine)


def prctl(what, value):
    return libc.prctl(what, value, 0, 0, 0) if LINUX else -1


def system(result, what):
    """The result of a C call. Raises OSError if it failed."""
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def mount(source, target, kind, flags, data=None):
    system(libc.mount(source, target.encode(), kind, ctypes.c_ulong(flags), data), f"mount {target}")


def choose_level():
    """Build the strongest walls there are around the server -> (level, uid of nobody or None, why it is not the strongest)."""
    strongest = os.environ.get("RA3_SANDBOX_LEVEL", LEVELS[0])
    if strongest not in LEVELS:
        raise HarnessError(f"RA3_SANDBOX_LEVEL={strongest}: expected one of {', '.join(LEVELS)}")
    why = "" if strongest == LEVELS[0] else f" (asked for {strongest})"
    if strongest == "namespaces":
        trouble = trial(try_namespaces) if LINUX and MACHINE else "not Linux"
        if not trouble:
            enter_namespaces()
            return "namespaces", None, ""
        why = f" (no namespaces: {trouble})"
    nobody = None
    if LINUX and os.geteuid() == 0 and not trial(try_nobody):
        nobody = 65534
    if strongest != "process" and LINUX and libc.syscall(444, None, 0, 1) >= 1:      # landlock_create_ruleset: its version
        return "landlock", nobody, why
    return "process", nobody, why


def trial(function):
    """Run a function in a child; what it raised, as text, or "" if all went well."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            function()
        except BaseException as e:
            os.write(writing, (str(e) or repr(e)).encode()[:500])
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as f:
        said = f.read().decode()
    status = os.waitpid(pid, 0)[1]
    return said or (f"status {status}" if status else "")


def enter_namespaces():
    """Of the server: a read-only machine without network, in which this user seems privileged."""
    uid, gid = os.geteuid(), os.getegid()
    system(libc.unshare(NEWUSER | NEWNS | NEWNET | NEWIPC), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as f:
            f.write(text)
    mount(None, "/", None, REC | PRIVATE)
    attributes = struct.pack("4Q", RDONLY, 0, 0, 0)
    system(libc.syscall(442, -100, b"/", 0x8000, attributes, len(attributes)), "mount_setattr")      # recursively
    mount(b"ra3", "/dev/shm", b"tmpfs", NOSUID | NODEV, b"size=1m,mode=0755")                          # hides what is there
    import fcntl
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:                                        # loopback up
        fcntl.ioctl(s, 0x8914, struct.pack("16sh", b"lo", 1 | 64))


def enter_processes():
    """Of the keeper: a view of its own processes only, and a limit on their number."""
    try:
        mount(b"proc", "/proc", b"proc", NOSUID | NODEV | NOEXEC)
    except OSError:                                          # a container that masks parts of /proc forbids it: none, then
        mount(b"ra3", "/proc", b"tmpfs", NOSUID | NODEV | NOEXEC | RDONLY, b"size=4k")
    with contextlib.suppress(OSError):
        with open("/proc/sys/kernel/pid_max", "w") as f:                     # of this namespace, since Linux 6.14
            f.write(str(300 + PROCESSES))


def try_namespaces():
    enter_namespaces()
    pid = clone(NEWPID | NEWNS)
    if pid == 0:
        try:
            enter_processes()
            os._exit(0)
        except OSError as e:
            os._exit(e.errno or 1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, os.strerror(code) if code > 0 else f"signal {-code}")


def try_nobody():
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    for folder in {p for p in sys.path if os.path.isdir(p)} | {os.path.dirname(os.__file__)}:
        os.listdir(folder)
    importlib.import_module("colorsys")                      # of the standard library, and not imported yet


def clone(flags):
    """fork() into new namespaces."""
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = libc.syscall(MACHINE["clone"], ctypes.c_ulong(flags | signal.SIGCHLD), None, None, None, None)
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    else:
        ctypes.pythonapi.PyOS_AfterFork_Parent()
    return system(pid, "clone")


def landlock(cwd):
    """Of a program: from now on it writes below cwd and to /dev/null only, opens no TCP connection, and signals nobody outside."""
    version = libc.syscall(444, None, 0, 1)
    writes = sum(1 << bit for bit in (1, 4, 5, 6, 7, 8, 9, 10, 11, 12, *([13] * (version >= 2)), *([14] * (version >= 3))))
    ruleset = struct.pack("QQQ", writes, 3 if version >= 4 else 0, 3 if version >= 6 else 0)[:8 if version < 4 else 16 if version < 6 else 24]
    fd = system(libc.syscall(444, ruleset, len(ruleset), 0), "landlock")
    for path, allowed in ((cwd, writes), ("/dev/null", 2 | writes & 1 << 14)):
        beneath = os.open(path, os.O_PATH)
        system(libc.syscall(445, fd, 1, struct.pack("=Qi", allowed, beneath), 0), "landlock")
        os.close(beneath)
    system(libc.syscall(446, fd, 0), "landlock")
    os.close(fd)


LOAD, EQUAL, GREATER, AT_LEAST, RETURN, ALLOW, KILL, REFUSE = 0x20, 0x15, 0x25, 0x35, 0x06, 0x7FFF0000, 0x80000000, 0x50001     # of seccomp filters


def filter_calls(code):
    """Install a seccomp filter. code: (operation, jump if true, jump if false, operand), behind a check of the machine."""
    code = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, MACHINE["arch"]), (RETURN, 0, 0, ALLOW), (LOAD, 0, 0, 0), *code]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in code))
    rule = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(code)))
    system(libc.prctl(22, 2, rule, 0, 0), "seccomp")


def forbid_large_mappings(most):
    """A single mmap or mremap of more than `most` bytes ends the process with SIGSYS."""
    high, low = most >> 32, most & 0xFFFFFFFF

    def too_large(at, on):             # is the 64-bit argument at this offset larger? `on`: instructions from behind this to ALLOW
        return [(LOAD, 0, 0, at + 4), (GREATER, on + 4, 0, high), (EQUAL, 0, on + 2, high), (LOAD, 0, 0, at), (GREATER, on + 1, on, low)]

    filter_calls([(EQUAL, 1, 0, MACHINE["mmap"]), (EQUAL, 5, 10, MACHINE["mremap"]),
                  *too_large(24, 5), *too_large(32, 0), (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, KILL)])     # mmap's length, mremap's new one


def forbid_signals_out(pid):
    """Without a namespace of processes: signals only to oneself and to younger processes (all of the grader's are older), and to one's own groups."""
    never, asked = MACHINE["traces"], MACHINE["signals"]
    n = len(never) + len(asked)
    filter_calls([*((EQUAL, n - i + 5, 0, call) for i, call in enumerate(never)),                                      # to REFUSE
                  *((EQUAL, len(asked) - i, 0, call) for i, call in enumerate(asked)), (RETURN, 0, 0, ALLOW),           # to the next line
                  (LOAD, 0, 0, 16), (AT_LEAST, 2, 0, 0x80000000), (EQUAL, 3, 0, 0), (AT_LEAST, 2, 1, pid),
                  (GREATER, 0, 1, (1 << 32) - pid), (RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW)])


# ---------------------------------------------------------------- the keeper: parent of the programs

def keep(control, memory, most_output, level, folder, nobody):
    """Starts a process for each run, watches it, and ends all that is left of it. It never sees a program or a test, so a fork of it is clean. As
    init of its namespace of processes its kill(-1) reaches every process of a run; otherwise it is their subreaper. Never returns."""
    status = 1
    try:
        prctl(1, signal.SIGKILL)                             # PR_SET_PDEATHSIG: not without the server
        prctl(36, 1)                                         # PR_SET_CHILD_SUBREAPER
        if level == "namespaces":
            enter_processes()
        cwd = os.path.join(folder, "run") if folder else "/dev/shm/run"
        streams = dress(cwd, memory, most_output)
        prctl(4, 0)                                          # PR_SET_DUMPABLE: no other process of the user looks into this one
        gc.freeze()
        while True:
            mode, fds, _, _ = socket.recv_fds(control, 64, 5)
            if not mode:
                break
            channel, watch, *files = fds
            if level == "namespaces":
                mount(b"ra3", "/dev/shm", b"tmpfs", NOSUID | NODEV, b"size=512m,nr_inodes=20k,mode=0755")
                os.mkdir(cwd, 0o700)
            pid = os.fork()
            if pid == 0:
                try:
                    program(channel, mode.decode(), level, cwd, nobody, files, streams)
                except BaseException:
                    traceback.print_exc()
                os._exit(70)
            os.close(channel)
            for fd in files:
                os.close(fd)
            watch_run(control, watch, pid, memory, level)
            os.close(watch)
            if level == "namespaces":
                system(libc.umount2(b"/dev/shm", 2), "umount")
            control.sendall(b"C")
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def watch_run(control, watch, pid, memory, level):
    """Until the server says that the run is over. Says on `watch` how the program's process ended: S and its status, M if it took too much memory,
    N if it made too many processes. Then ends whatever is left."""
    poll, reason, status, over = select.poll(), b"S", None, False
    poll.register(control, select.POLLIN)
    handle = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None
    if handle is not None:
        poll.register(handle, select.POLLIN)
    while not over:
        ready = dict(poll.poll(50))
        if status is None:
            if peak_memory(pid) > memory:
                reason = b"M"
            elif level == "namespaces" and sum(map(str.isdigit, os.listdir("/proc"))) > PROCESSES:
                reason = b"N"
            if reason != b"S":
                os.kill(pid, signal.SIGKILL)
            ended, how = os.waitpid(pid, 0 if reason != b"S" else os.WNOHANG)
            if ended:
                status = how
                with contextlib.suppress(BrokenPipeError):   # the tester has its verdict already
                    os.write(watch, b"%s%d" % (reason, status))
                if handle is not None:
                    poll.unregister(handle)
        if control.fileno() in ready:
            over = True
            control.recv(1)                                  # at its end, too: the server is gone
    if handle is not None:
        os.close(handle)
    if level == "namespaces":
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()
    else:
        if not LINUX:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        sweep()


def dress(cwd, memory, most_output):
    """What all programs find, done once: limits, seccomp, environment, streams, signals. Returns the three streams."""
    seccomp = LINUX and MACHINE
    for limit, value in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, most_output + 1), (resource.RLIMIT_NOFILE, 4096),
                         (resource.RLIMIT_AS, 2 * memory + (64 << 20) if seccomp else memory)):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with contextlib.suppress(ValueError, OSError):       # macOS has no limit of address space
            resource.setrlimit(limit, (value, value))
    if LINUX:
        system(prctl(38, 1), "no new privileges")
    if seccomp:
        forbid_large_mappings(memory)
    for number in (signal.SIGTERM, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(PATH="/usr/local/bin:/usr/bin:/bin", HOME=cwd, TMPDIR=cwd, LANG="C.UTF-8", PYTHONHASHSEED="0", PYTHONUTF8="1",
                      OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    threading.stack_size(8 << 20)
    atexit._clear()
    sys.argv[:], sys.path[:0] = [os.path.join(cwd, "program.py")], [cwd]
    streams = []
    for fd, (name, how) in enumerate((("<stdin>", "r"), ("<stdout>", "w"), ("<stderr>", "w"))):
        stream = io.TextIOWrapper(open(fd, how + "b", closefd=False), "utf-8", "surrogateescape" if fd < 2 else "backslashreplace", "\n", fd == 2)
        stream.buffer.raw.name, stream.mode = name, how
        streams.append(stream)
    return streams


def peak_memory(pid):
    """The largest address space that a process had, bytes; 0 if it cannot be known."""
    try:
        with open(f"/proc/{pid}/status", "rb") as f:
            return 1024 * int(f.read().partition(b"VmPeak:")[2].split()[0])
    except (OSError, IndexError):
        return 0


# ---------------------------------------------------------------- the program's process

def program(channel, mode, level, cwd, nobody, files, streams):
    """Does what the tester asks: loads the program, calls its functions, runs tests in here, or runs it as a script. Never returns. What it
    needs after the program was loaded it holds in locals: a program can replace builtins and modules, but not these."""
    os.setsid()
    os.chdir(cwd)
    for fd, target in zip(files, (0, 1, 2)):
        os.dup2(fd, target)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    at = min(1000, most - 1)                                 # out of the way of programs that close the descriptors they may have got
    os.dup2(channel, at, inheritable=False)
    os.closerange(3, at), os.closerange(at + 1, most)
    channel = socket.socket(fileno=at)
    if nobody:
        os.setgroups([]), os.setgid(nobody), os.setuid(nobody)
        resource.setrlimit(resource.RLIMIT_NPROC, (4 * PROCESSES, 4 * PROCESSES))
    if LINUX and level != "namespaces":
        prctl(4, 1)
        if level == "landlock":
            landlock(cwd)
        if MACHINE:
            forbid_signals_out(os.getpid())
    if LINUX:
        libc.capset(NO_CAPABILITIES, bytes(24))
    for name, stream in zip(("stdin", "stdout", "stderr"), streams):
        setattr(sys, name, stream), setattr(sys, f"__{name}__", stream)
    source, name = sys.argv[0], "__main__" if mode == "stdio" else "program"
    sys.modules["__main__"] = types.ModuleType("__main__")
    module = sys.modules[name] = types.ModuleType(name)
    module.__file__, module.__builtins__ = source, builtins
    os.register_at_fork(after_in_child=threading._after_fork)                # see BOOT: for the program's own forks
    own, pid, everyone = vars(module), os.getpid(), vars(builtins)
    pristine = dict(everyone) if mode == "in_process" else everyone
    real = globals()["__builtins__"]                         # the server's own: see BOOT
    load, dump, load_code, leave, getpid, stdout = pickle.loads, pickle.dumps, marshal.loads, os._exit, os.getpid, sys.stdout
    mutable, copies, classes = (list, dict, set, bytearray), {}, {}

    def load_program(text, modules):
        for name in modules:                                 # what the tests import, before the program can change it
            with contextlib.suppress(ImportError):
                original = importlib.import_module(name)
                copies[name] = types.ModuleType(name)
                vars(copies[name]).update(vars(original))
                classes.update((c, dict(vars(c))) for c in vars(original).values() if isinstance(c, type) and c.__module__ == name)
        text = text.removeprefix("\ufeff")
        linecache.cache[source] = (len(text), None, text.splitlines(True), source)
        try:
            code = compile(text, source, "exec", dont_inherit=True)
        except BaseException:                                # a MemoryError too: the parser's own, of what is nested too deeply
            return "syntax_error"
        try:
            exec(code, own)
        except BaseException as e:
            if mode == "stdio":
                return e
            return ended_by(e)

    def run_script(text):
        """As the interpreter does: the exit status, the threads' end, exit handlers, the last output."""
        said, status = load_program(text, ()), 0
        if isinstance(said, SystemExit):
            status = said.code if isinstance(said.code, int) else said.code is not None
            said = "abnormal_exit" if status else None
        elif isinstance(said, BaseException):
            said = ended_by(said)
        try:
            threading._shutdown()
            atexit._run_exitfuncs()
            for stream in {id(s): s for s in (sys.stdout, stdout)}.values():
                if not getattr(stream, "closed", False):
                    stream.flush()
        except BaseException as e:
            said = said or ended_by(e)
        return said or "passed"

    def find(name):
        """What a name of the program is: missing, (import, module, name), function, other."""
        if name not in own:
            return "missing"
        it = own[name]
        where = it.__name__ if isinstance(it, types.ModuleType) else getattr(it, "__module__", None)
        part = "" if isinstance(it, types.ModuleType) else getattr(it, "__qualname__", None)
        if isinstance(where, str) and isinstance(part, str) and where in sys.modules and where != "program" and "." not in part:
            if (getattr(sys.modules[where], part, None) if part else sys.modules[where]) is it:
                return "import", where, part
        return "function" if callable(it) and not isinstance(it, type) else "other"

    def call(function, blob):
        """(value, value, which argument it is, arguments if they changed), or (raised, builtin class, its arguments, arguments if they changed), or
        (not plain,)."""
        try:
            args, kwargs = load(blob)
        except Exception:
            return "not plain",
        try:
            out = function(*args, **kwargs)
        except BaseException as e:
            kind = next(c for c in type(e).__mro__ if real.get(c.__name__) is c)
            try:
                if type(e) is kind:
                    details = dump(e.__reduce__()[1])
                else:
                    details = dump((str(e),))
                after = dump((args, kwargs))
            except BaseException:
                details, after = dump(()), blob
            return "raised", kind.__name__, details, None if after == blob else after
        try:
            alias = next((i for i, a in enumerate(args) if a is out and isinstance(a, mutable)), None)
            after = dump((args, kwargs))
            return "value", dump(out if alias is None else None), alias, None if after == blob else after
        except BaseException:
            return "not plain",

    def test_here(code, entry, named, token):
        """The tests in this process -> (token, verdict, assertions that began, assertions that held)."""
        sys.settrace(None), sys.setprofile(None)
        everyone.clear(), everyone.update(pristine)
        for name, copy in copies.items():
            vars(sys.modules.get(name, copy)).update(vars(copy))
        for kind, attributes in classes.items():
            for name, value in attributes.items():
                if vars(kind).get(name) is not value:
                    with contextlib.suppress(AttributeError, TypeError):
                        setattr(kind, name, value)
        begun, held = [], []
        trust, safe = guard(named), dict(pristine, __import__=lambda name, *rest: copies.get(name) or pristine["__import__"](name, *rest))

        class Names(dict):                                   # the program's names, as they are at the moment
            def __missing__(self, name):
                if name != entry and name in pristine:
                    raise KeyError(name)
                return copies.get(own[name].__name__, own[name]) if isinstance(own[name], types.ModuleType) else own[name]

        space = Names({"__name__": "tests", "__builtins__": safe, "<begun>": lambda: begun.append(1), "<held>": lambda: held.append(1),
                       "<compare>": trust, "<truth>": trust})
        try:
            exec(load_code(code), space)
            if entry and "check" in space and "<calls check>" not in named:
                space["check"](eval(entry, space))
        except BaseException as e:
            trace = e.__traceback__
            while trace.tb_next:
                trace = trace.tb_next
            wrong = isinstance(e, AssertionError) and trace.tb_frame.f_code.co_filename != source
            return token, "wrong_answer" if wrong else ended_by(e), len(begun), len(held)
        return token, "passed", len(begun), len(held)

    def say(number, *answer):
        if getpid() != pid:                                  # a fork of the program came back here: it has no say
            leave(0)
        send(channel, dump((number, *answer)))

    table = {}
    say(0, "ready")
    while request := receive(channel):
        number, what, *given = load(request)
        if what == "load":
            said = load_program(*given)
            say(number, said or "loaded")
        elif what == "find":
            say(number, find(*given))
        elif what == "bind":
            try:
                table[given[0]] = it = eval(given[0], own)
                say(number, "function" if callable(it) and not isinstance(it, type) else "other")
            except BaseException as e:
                say(number, ended_by(e))
        elif what == "call":
            say(number, *call(table[given[0]] if given[0] in table else own[given[0]], given[1]))
        elif what == "tests":
            say(number, *test_here(*given))
        elif what == "script":
            said = run_script(*given)
            say(number, said, peak_memory("self"))
            leave(0)
        elif what == "peak":
            say(number, peak_memory("self"))
    leave(0)


def ended_by(e):
    """The verdict on an exception that nobody caught."""
    kind = type(e)
    return "memory_limit" if issubclass(kind, MemoryError) else "abnormal_exit" if issubclass(kind, SystemExit) else "exception"


def guard(named):
    """What the tests' comparisons and truth values become in one process: they fail on a result whose class the program gave its own
    comparisons, if the tests do not name that class (named: a set of names) or if it says yes to everything.

    -> function(value) for a truth value, function(left, operators, *rights) for a comparison.
    """
    operators = {"Eq": operator.eq, "NotEq": operator.ne, "Lt": operator.lt, "LtE": operator.le, "Gt": operator.gt, "GtE": operator.ge,
                 "Is": operator.is_, "IsNot": operator.is_not, "In": lambda a, b: a in b, "NotIn": lambda a, b: a not in b}
    library = tuple(sorted({os.path.dirname(os.__file__), *(p for p in sys.path[1:] if p)}))
    deciding = ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__contains__", "__sub__", "__rsub__", "__bool__", "__len__", "__hash__")
    plain = (int, float, str, bool, bytes, complex, type(None))
    classes = type.__dict__["__mro__"].__get__

    def own(function):                     # is it the program's, and not C or a library's?
        code = getattr(function, "__code__", None)
        return function is not None and (code is not None and not code.co_filename.startswith(library) or code is None and callable(function)
                                         and not isinstance(function, (types.WrapperDescriptorType, types.MethodDescriptorType, types.BuiltinFunctionType)))

    def trust(value):
        todo, seen = [value], set()
        while todo:
            value = todo.pop()
            kind = type(value)
            if kind in plain or id(value) in seen:
                continue
            seen.add(id(value))
            for base in (list, tuple, set, frozenset, dict, collections.deque):
                if base in classes(kind):
                    todo.extend(base.__iter__(value))
                    if base is dict:
                        todo.extend(dict.values(value))
            if kind in (list, tuple, set, frozenset, dict, types.ModuleType, types.FunctionType, type):
                continue
            with contextlib.suppress(AttributeError):
                todo.extend(object.__getattribute__(value, "__dict__").values())
            for base in classes(kind):
                if base.__name__ not in named and any(own(type.__getattribute__(base, "__dict__").get(m)) for m in deciding):
                    raise AssertionError("the result brings its own comparisons")
            try:
                yes = (value == object()) is True
            except Exception:
                yes = False
            if yes:
                raise AssertionError("the result equals anything")

    def check(left, kinds=None, *rights):
        trust(left)
        if kinds is None:
            return left
        for kind, right in zip(kinds, rights):
            trust(right)
            said = operators[kind](left, right)
            if len(rights) > 1 and not said:
                return said
            left = right
        return said

    return check


# ---------------------------------------------------------------- the tester's process

class InOneProcess(BaseException):
    """The run needs values that are not plain data."""


class Ended(BaseException):
    """The program's process ended."""


PLAIN = {("collections", "Counter"), ("collections", "OrderedDict"), ("collections", "defaultdict"), ("collections", "deque"), ("decimal", "Decimal"),
         ("fractions", "Fraction"), *(("datetime", name) for name in ("date", "datetime", "time", "timedelta", "timezone")),
         *(("builtins", name) for name in ("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "range", "set",
                                            "slice", "str", "tuple"))}


NAN = pickle.dumps(float("nan"))[2:-1][-9:]


class PlainUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in PLAIN:
            raise InOneProcess
        return super().find_class(module, name)


def plain(data):
    """A value from bytes that the program wrote. Raises InOneProcess if it is anything but plain data."""
    try:
        return PlainUnpickler(io.BytesIO(data)).load()
    except Exception:
        raise InOneProcess from None


def restore(old, new):
    """Make old what new is, in place where it can be. Both came from the same argument. Returns the value to use."""
    if type(old) is type(new):
        if isinstance(old, list):
            old[:] = [restore(a, b) for a, b in zip(old, new)] + new[len(old):]
            return old
        if isinstance(old, (dict, set)):
            kept = {k: restore(old[k], v) if k in old else v for k, v in new.items()} if isinstance(old, dict) else set(new)
            old.clear()
            old.update(kept)
            return old
        if isinstance(old, bytearray):
            old[:] = new
            return old
        if isinstance(old, tuple) and len(old) == len(new):
            return tuple(map(restore, old, new))
    return new


class Peer:
    """The program, as the tester sees it."""

    def __init__(self, channel, watch):
        self.channel, self.watch, self.number, self.raised, self.trouble, self.lossy, self.turn = channel, watch, 0, {}, None, False, threading.Lock()
        self.poll = select.poll()
        self.poll.register(channel, select.POLLIN)
        self.poll.register(watch, select.POLLIN)

    def wait(self):
        ready = dict(self.poll.poll())
        if self.channel.fileno() not in ready:
            raise Ended

    def answer(self):
        """The next answer, a tuple of plain data. Raises Ended if there is none, or if it is not that of the last question."""
        try:
            data = receive(self.channel, MESSAGE, self.wait)
        except (TooLong, OSError):
            data = None
        try:
            said = plain(data) if data else None
        except InOneProcess:                                 # the frame of an answer is plain, whatever the value in it
            said = None
        if not isinstance(said, tuple) or not said or said[0] != self.number:
            raise Ended
        return said[1:]

    def ask(self, *question):
        self.number += 1
        try:
            send(self.channel, pickle.dumps((self.number, *question)))
        except OSError:
            raise Ended from None
        return self.answer()

    def function(self, name):
        """A function that calls the program's."""
        def call(*args, **kwargs):
            if self.trouble:                                 # the tests swallowed it
                raise self.trouble
            try:
                with self.turn:                              # tests may have threads
                    return self.call(name, args, kwargs)
            except (InOneProcess, Ended) as e:
                self.trouble = e
                raise
        call.__name__ = call.__qualname__ = name
        return call

    def call(self, name, args, kwargs):
        try:
            blob = pickle.dumps((args, kwargs))
        except Exception:
            raise InOneProcess from None
        self.lossy = self.lossy or NAN in blob               # whose identity matters, and is lost
        kind, *rest = self.ask("call", name, blob)
        if kind not in ("value", "raised"):
            raise InOneProcess
        first, second, after = rest
        if after is not None:
            new_args, new_kwargs = plain(after)
            for old, new in zip((*args, *kwargs.values()), (*new_args, *new_kwargs.values())):
                restore(old, new)
        if kind == "raised":
            kind, details = getattr(builtins, first), plain(second)
            try:
                e = kind(*details)
            except TypeError:
                e = kind.__new__(kind, *details)
            self.raised[id(e)] = e
            raise e
        return plain(first) if second is None else args[second]

    def end(self):
        """How the program's process ended: a verdict, `passed` for status 0. Raises HarnessError."""
        poll = select.poll()
        poll.register(self.watch, select.POLLIN)
        said = os.read(self.watch, 64) if poll.poll(1000) else b"S256"       # it lives, and closed the channel
        if not said:
            raise HarnessError("the keeper ended")
        if said[:1] in b"MN":
            return "memory_limit" if said[:1] == b"M" else "abnormal_exit"
        code = os.waitstatus_to_exitcode(int(said[1:]))
        return {0: "passed", -getattr(signal, "SIGSYS", 0): "memory_limit", -signal.SIGXFSZ: "output_limit"}.get(code, "abnormal_exit")


def test(sock, writing, peer, mode, memory, feed):
    """The tester: says its verdict on the pipe `writing`. Never returns."""
    status = 1
    try:
        prctl(1, signal.SIGKILL)
        try:
            ready = peer.answer() == ("ready",)
        except Ended:
            ready = False
        if not ready:
            raise HarnessError(f"the program's process did not get ready: {peer.end()}")
        os.write(writing, b"R")                              # the clock runs; what goes wrong now is the program's fault
        body = marshal.loads(receive(sock))
        try:
            said = judge(peer, mode, body, memory, feed)
        except Ended:
            said = peer.end()
            said = "abnormal_exit" if said == "passed" and mode != "stdio" else said
        except MemoryError:
            said = "memory_limit"
        said = said, ""
    except BaseException:
        said = "harness_error", traceback.format_exc()
    try:
        os.write(writing, marshal.dumps(said))
        status = 0
    finally:
        os._exit(status)


def judge(peer, mode, body, memory, feed):
    """The verdict on a program; or "in_process", if it must be tried so."""
    if mode == "stdio":
        text, given = body
        os.pwrite(feed, given.encode("utf-8", "surrogatepass"), 0)
        verdict, peak = peer.ask("script", text)
        return "memory_limit" if peak > memory else verdict if verdict in VERDICTS else "abnormal_exit"
    text, code, entry, wanted, named, direct, imports = body
    said, = peer.ask("load", text, imports)
    if said != "loaded":
        verdict = said if said in VERDICTS and said != "passed" else "abnormal_exit"
    elif mode == "in_process":
        token = os.urandom(16).hex()
        back, verdict, begun, held = peer.ask("tests", code, entry, named, token)
        if back != token or verdict not in VERDICTS:
            verdict = "abnormal_exit"
        elif verdict == "passed":
            verdict = ended_well(begun, held, direct, named)
    else:
        verdict = judge_apart(peer, marshal.loads(code), wanted, named, direct, entry)
        if verdict == "in_process" or verdict in ("wrong_answer", "exception") and ("<shares>" in named or peer.lossy):
            return "in_process"
    peak, = peer.ask("peak")
    return "memory_limit" if peak > memory else verdict


def judge_apart(peer, code, wanted, named, direct, entry):
    """Run the tests here; the program's functions are called in its own process. -> a verdict, or "in_process"."""
    begun, held = [], []
    space = {"__name__": "tests", "<begun>": lambda: begun.append(1), "<held>": lambda: held.append(1)}
    for name in sorted(wanted):
        kind, *where = peer.ask("find", name)
        if kind == "function" and f"{name}." not in named:
            space[name] = peer.function(name)
        elif kind == "import" and where[0].split(".")[0] in {*sys.stdlib_module_names, "numpy"}:
            module = importlib.import_module(where[0])
            space[name] = getattr(module, where[1]) if where[1] else module
        elif kind != "missing":
            return "in_process"
    try:
        try:
            exec(code, space)
            if entry and "check" in space and "check" not in wanted and "<calls check>" not in named:
                said, = peer.ask("bind", entry)
                if said == "other":
                    raise InOneProcess
                if said != "function":
                    return said if said in VERDICTS and said != "passed" else "abnormal_exit"
                space["check"](peer.function(entry))
        finally:
            if peer.trouble:
                raise peer.trouble
    except InOneProcess:
        return "in_process"
    except Ended:
        raise
    except BaseException as e:
        if isinstance(e, AssertionError) and id(e) not in peer.raised:
            return "wrong_answer"
        return ended_by(e)
    return ended_well(len(begun), len(held), direct, named)


def ended_well(begun, held, direct, named):
    """The verdict on tests that ran to their end: did every assertion complete, and hold?"""
    if begun != held and "<no failure is caught>" in named:  # a callback's, swallowed by the program
        return "wrong_answer"
    return "passed" if held >= direct else "abnormal_exit"


# ---------------------------------------------------------------- the command line

def read_rows(path):
    """Jobs of a .jsonl file. Raises ValueError, OSError."""
    jobs = []
    with contextlib.nullcontext(sys.stdin) if path == "-" else open(path, encoding="utf-8") as f:
        for number, line in enumerate(f, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                    job = Job(row["program"], row["tests"], row.get("entry_point") or "", row.get("kind", "assert"), str(row.get("name", "")),
                              row.get("time_limit"))
                    if not isinstance(job.program, str) or not isinstance(job.entry_point, str):
                        raise ValueError("program and entry_point are texts")
                    check_job(job, f"row {job.name!r}")
                except (ValueError, KeyError, TypeError, AttributeError) as e:
                    raise ValueError(f"{path}, line {number}: {f'no field {e}' if isinstance(e, KeyError) else e}; expected "
                                     '{"name", "kind", "program", "tests", "entry_point"}') from None
                jobs.append(job)
    return jobs


def main(argv):
    parser = argparse.ArgumentParser(description="Grade programs: a JSON line each with its verdict, in order. " + "; ".join(
        f"{k}: {v}" for k, v in VERDICTS.items()))
    parser.add_argument("file", help='.jsonl with rows {"name", "kind": "assert" | "stdio", "program", "tests", "entry_point"}; - for stdin')
    parser.add_argument("--workers", type=int, help="runs at a time (default: the cores)")
    parser.add_argument("--time-limit", type=float, default=10.0, metavar="SECONDS", help="of a run; of a test for kind stdio (default 10)")
    parser.add_argument("--memory-limit", type=float, default=2048, metavar="MIB", help="address space (default 2048)")
    parser.add_argument("--output-limit", type=float, default=64, metavar="MIB", help="output, and any file (default 64)")
    args = parser.parse_args(argv)
    try:
        jobs = read_rows(args.file)
        waiting, following = {}, 0
        for i, result in graded(jobs, workers=args.workers, time_limit=args.time_limit, memory_limit=int(args.memory_limit * 2 ** 20),
                                output_limit=int(args.output_limit * 2 ** 20), progress=sys.stderr.isatty()):
            waiting[i] = result
            while following in waiting:
                said = waiting.pop(following)
                print(json.dumps({"name": jobs[following].name, "verdict": said.verdict, "seconds": round(said.seconds, 4),
                                  "isolation": said.isolation, "mode": said.mode}), flush=True)
                following += 1
    except (ValueError, OSError) as e:
        print(f"sandbox.py: {e}", file=sys.stderr)
        return 2
    except HarnessError as e:
        print(f"sandbox.py: harness error: {e} {' '.join(getattr(e, '__notes__', []))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
