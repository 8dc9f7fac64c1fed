"""The program's process: a fork of the keeper that goes behind the walls, loads the program, and does what the tester asks over a socket."""

import atexit
import builtins
import contextlib
import importlib
import linecache
import marshal
import os
import pickle
import resource
import socket
import sys
import threading
import types

from grader.guard import guard
from grader.messages import ended_by, receive, send
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


def program(channel, mode, level, cwd, nobody, files, streams):
    """Does what the tester asks: loads the program, calls its functions, runs tests in here, or runs it as a script. Never returns. What it
    needs after the program was loaded it holds in locals: a program can replace builtins and modules, but not these."""
    os.setsid()
    os.chdir(cwd)
    for fd, target in zip(files, (0, 1, 2)):
        os.dup2(fd, target)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    at = min(
        1000, most - 1
    )  # out of the way of programs that close the descriptors they may have got
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
    os.register_at_fork(
        after_in_child=threading._after_fork
    )  # for the program's own forks: see boot.py
    own, pid, everyone = vars(module), os.getpid(), vars(builtins)
    pristine = dict(everyone) if mode == "in_process" else everyone
    real = globals()["__builtins__"]  # the grader's own: see boot.py
    load, dump, load_code, leave, getpid, stdout = (
        pickle.loads,
        pickle.dumps,
        marshal.loads,
        os._exit,
        os.getpid,
        sys.stdout,
    )
    mutable, copies, classes = (list, dict, set, bytearray), {}, {}

    def load_program(text, modules):
        for name in modules:  # what the tests import, before the program can change it
            with contextlib.suppress(ImportError):
                original = importlib.import_module(name)
                copies[name] = types.ModuleType(name)
                vars(copies[name]).update(vars(original))
                classes.update(
                    (c, dict(vars(c)))
                    for c in vars(original).values()
                    if isinstance(c, type) and c.__module__ == name
                )
        text = text.removeprefix("\ufeff")
        linecache.cache[source] = (len(text), None, text.splitlines(True), source)
        try:
            code = compile(text, source, "exec", dont_inherit=True)
        except BaseException:  # a MemoryError too: the parser's own, of what is nested too deeply
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
        if (
            isinstance(where, str)
            and isinstance(part, str)
            and where in sys.modules
            and where != "program"
            and "." not in part
        ):
            if (getattr(sys.modules[where], part, None) if part else sys.modules[where]) is it:
                return "import", where, part
        return "function" if callable(it) and not isinstance(it, type) else "other"

    def call(function, blob):
        """(value, value, which argument it is, arguments if they changed), or (raised, builtin class, its arguments, arguments if they changed), or
        (not plain,)."""
        try:
            args, kwargs = load(blob)
        except Exception:
            return ("not plain",)
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
            alias = next(
                (i for i, a in enumerate(args) if a is out and isinstance(a, mutable)), None
            )
            after = dump((args, kwargs))
            return (
                "value",
                dump(out if alias is None else None),
                alias,
                None if after == blob else after,
            )
        except BaseException:
            return ("not plain",)

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
        trust, safe = (
            guard(named),
            dict(
                pristine,
                __import__=lambda name, *rest: (
                    copies.get(name) or pristine["__import__"](name, *rest)
                ),
            ),
        )

        class Names(dict):  # the program's names, as they are at the moment
            def __missing__(self, name):
                if name != entry and name in pristine:
                    raise KeyError(name)
                return (
                    copies.get(own[name].__name__, own[name])
                    if isinstance(own[name], types.ModuleType)
                    else own[name]
                )

        space = Names(
            {
                "__name__": "tests",
                "__builtins__": safe,
                "<begun>": lambda: begun.append(1),
                "<held>": lambda: held.append(1),
                "<compare>": trust,
                "<truth>": trust,
            }
        )
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
        if getpid() != pid:  # a fork of the program came back here: it has no say
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
