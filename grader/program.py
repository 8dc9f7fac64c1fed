"""The program's process: a fork of the keeper behind walls that does what the tester asks."""

import atexit
import builtins
import decimal
import gc
import importlib
import io
import itertools
import linecache
import os
import random
import resource
import socket
import sys
import threading
import traceback
import types

from grader.link import Link, importable, module_of
from grader.messages import ended_by
from grader.operations import operations_of
from grader.walls import (
    LINUX,
    MACHINE,
    NO_CAPABILITIES,
    PROCESSES,
    forbid_signals_out,
    landlock,
    libc,
    peak_memory,
    prctl,
)


class Program:
    """The loaded program, and what the tester may ask of it. One a process; made before the fork.

    No test is ever in this process: a program that changes what is here changes only what it hands
    over.
    """

    def __init__(self):
        self.link = Link(host=False)
        self.space = self.module = None  # the program's names
        self.source = ""  # path of its text
        self.streams = []
        self.usual = 0  # number of modules before it
        self.random_state = None
        # held here, as a program may replace them where they are
        self.shut_down_threads = threading._shutdown
        self.run_exit_handlers = atexit._run_exitfuncs
        self.link.operations = operations_of(self.link) | {
            "load": self.load,
            "script": self.script,
            "find": self.find,
            "names": lambda: [name for name in self.space if type(name) is str],
            "bind": lambda entry: eval(entry, self.space),
            "eval": lambda text, *scopes: eval(text, *(scopes or (self.space,))),
            "exec": lambda text, *scopes: exec(text, *(scopes or (self.space,))),
            "import": importlib.import_module,
            "peak": lambda: peak_memory("self"),
            "set_random": self.set_random,
            "random_changes": self.random_changes,
            "set_decimal": set_decimal,
        }

    def begin(self, channel, name, streams):
        """Set the interpreter up for the program, and serve the tester. name: of its module."""
        for stream_name, stream in zip(("stdin", "stdout", "stderr"), streams, strict=True):
            setattr(sys, stream_name, stream)
            setattr(sys, f"__{stream_name}__", stream)
        self.streams = streams
        self.source = sys.argv[0]
        sys.modules["__main__"] = types.ModuleType("__main__")
        self.module = sys.modules[name] = types.ModuleType(name)
        self.module.__file__ = self.source
        self.module.__builtins__ = builtins
        self.space = self.link.names = vars(self.module)
        self.usual = len(sys.modules)
        os.register_at_fork(after_in_child=threading._after_fork)  # for its own forks: see boot.py
        self.link.open(channel)
        self.link.send(0, "value", "ready")
        self.link.serve()

    def execute(self, text):
        """Run the program: None, or what it raised; "syntax_error" if it does not compile."""
        text = text.removeprefix("\ufeff")
        linecache.cache[self.source] = (len(text), None, text.splitlines(True), self.source)
        try:
            code = compile(text, self.source, "exec", dont_inherit=True)
        except BaseException:  # a MemoryError too: of a text that is nested too deeply
            return "syntax_error"
        try:
            exec(code, self.space)
        except BaseException as e:
            return e

    def load(self, text, shareable):
        """Load the program: "loaded", or a verdict. shareable: classes that cross by value."""
        self.link.shareable = dict.fromkeys(shareable, True)
        ending = self.execute(text)
        if ending is None:
            return "loaded"
        return ending if isinstance(ending, str) else ended_by(ending)

    def script(self, text):
        """Run the program as the interpreter does -> (verdict, peak memory)."""
        with open(self.source, "w", encoding="utf-8", errors="surrogatepass") as f:
            f.write(text)
        verdict = self.verdict_on(self.execute(text))
        trouble = self.wind_down()
        if trouble is not None and verdict == "passed":
            verdict = ended_by(trouble)
        return verdict, peak_memory("self")

    def verdict_on(self, ending):
        """The verdict on a script that ended so. What it raised is shown, as by the interpreter."""
        if ending is None or isinstance(ending, str):
            return ending or "passed"
        if isinstance(ending, SystemExit):
            status = ending.code
            failed = status & 255 if isinstance(status, int) else status is not None
            return "abnormal_exit" if failed else "passed"
        try:
            traceback.print_exception(ending, limit=-20, file=self.streams[2])
        except BaseException:
            pass  # a program that broke its own error output
        return ended_by(ending)

    def wind_down(self):
        """What the interpreter does at its end: threads, exit handlers, destructors, output.

        Returns the exception of a standard output that could not be written, or None.
        """
        trouble = None
        try:
            self.shut_down_threads()
            self.run_exit_handlers()
            if not getattr(sys.stdout, "closed", True):
                sys.stdout.flush()
        except BaseException as e:
            trouble = e
        imported = itertools.islice(reversed(sys.modules), max(0, len(sys.modules) - self.usual))
        for name in ["__main__", *imported]:
            sys.modules.pop(name, None)
        linecache.cache.clear()
        self.write_out()
        self.link.names = self.space = self.module = None
        gc.collect()
        self.write_out()
        return trouble

    def write_out(self):
        """Flush whatever is still open; text before the bytes under it."""
        text = [value for value in gc.get_objects() if type(value) is io.TextIOWrapper]
        data = [value for value in gc.get_objects() if type(value) in BUFFERS]
        for stream in (*text, *self.streams[1:], *data):
            try:
                stream.flush()
            except (OSError, ValueError):
                pass

    def find(self, name):
        """What a name of the program is.

        A function; or (missing,), (module, name), (import, module, name) or (value, it).
        """
        if name not in self.space:
            return ("missing",)
        value = self.space[name]
        if isinstance(value, types.ModuleType):
            if sys.modules.get(value.__name__) is value:
                return "module", value.__name__
        elif isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
            if importable(value):
                return "import", module_of(value), value.__qualname__
        return value if type(value) is types.FunctionType else ("value", value)

    def set_random(self, state):
        self.random_state = state
        random.setstate(state)

    def random_changes(self):
        """The state of `random`, if the program changed it; or None."""
        state = random.getstate()
        if state == self.random_state:
            return None
        self.random_state = state
        return state


def set_decimal(precision, rounding):
    context = decimal.getcontext()
    context.prec, context.rounding = precision, rounding


BUFFERS = {io.BufferedWriter, io.BufferedRandom}
PROGRAM = Program()


def program(channel, mode, level, cwd, nobody, files, streams):
    """Go behind the walls, and do what the tester asks. Never returns."""
    os.setsid()
    os.chdir(cwd)
    for fd, target in zip(files, (0, 1, 2), strict=False):
        os.dup2(fd, target)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    slot = min(1000, limit - 1)  # far from descriptors that a program may close
    os.dup2(channel, slot, inheritable=False)
    os.closerange(3, slot)
    os.closerange(slot + 1, limit)
    if nobody:
        os.setgroups([])
        os.setgid(nobody)
        os.setuid(nobody)
        resource.setrlimit(resource.RLIMIT_NPROC, (4 * PROCESSES, 4 * PROCESSES))
    if LINUX and level != "namespaces":
        prctl(4, 1)
        if level == "landlock":
            landlock(cwd)
        if MACHINE:
            forbid_signals_out(os.getpid())
    if LINUX:
        libc.capset(NO_CAPABILITIES, bytes(24))
    leave = os._exit
    name = "__main__" if mode == "stdio" else "program"
    PROGRAM.begin(socket.socket(fileno=slot), name, streams)
    leave(0)
