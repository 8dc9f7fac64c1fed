"""The tester: runs the tests, in an interpreter that never loads the program, and says the verdict.

It calls the program's functions over a socket. Plain data crosses by pickle, read by an unpickler that makes plain types only; arguments that were
changed in place come back, exceptions too. Where that is not enough, it has the tests run in the program's process, and the verdict says so.
"""

import builtins
import importlib
import io
import marshal
import os
import pickle
import select
import signal
import sys
import threading
import traceback

from grader.messages import VERDICTS, HarnessError, TooLong, ended_by, receive, send
from grader.walls import prctl

MESSAGE = 1 << 28  # bytes of an answer of the program, at most
PLAIN = {
    ("collections", "Counter"),
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("collections", "deque"),
    ("decimal", "Decimal"),
    ("fractions", "Fraction"),
    *(("datetime", name) for name in ("date", "datetime", "time", "timedelta", "timezone")),
    *(
        ("builtins", name)
        for name in (
            "bool",
            "bytearray",
            "bytes",
            "complex",
            "dict",
            "float",
            "frozenset",
            "int",
            "list",
            "range",
            "set",
            "slice",
            "str",
            "tuple",
        )
    ),
}
NAN = pickle.dumps(float("nan"))[2:-1][-9:]


class InOneProcess(BaseException):
    """The run needs values that are not plain data."""


class Ended(BaseException):
    """The program's process ended."""


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
            old[:] = [restore(a, b) for a, b in zip(old, new)] + new[len(old) :]
            return old
        if isinstance(old, (dict, set)):
            kept = (
                {k: restore(old[k], v) if k in old else v for k, v in new.items()}
                if isinstance(old, dict)
                else set(new)
            )
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
        self.channel, self.watch, self.number, self.raised, self.trouble, self.lossy, self.turn = (
            channel,
            watch,
            0,
            {},
            None,
            False,
            threading.Lock(),
        )
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
        except InOneProcess:  # the frame of an answer is plain, whatever the value in it
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
            if self.trouble:  # the tests swallowed it
                raise self.trouble
            try:
                with self.turn:  # tests may have threads
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
        self.lossy = self.lossy or NAN in blob  # whose identity matters, and is lost
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
        said = (
            os.read(self.watch, 64) if poll.poll(1000) else b"S256"
        )  # it lives, and closed the channel
        if not said:
            raise HarnessError("the keeper ended")
        if said[:1] in b"MN":
            return "memory_limit" if said[:1] == b"M" else "abnormal_exit"
        code = os.waitstatus_to_exitcode(int(said[1:]))
        return {
            0: "passed",
            -getattr(signal, "SIGSYS", 0): "memory_limit",
            -signal.SIGXFSZ: "output_limit",
        }.get(code, "abnormal_exit")


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
        os.write(writing, b"R")  # the clock runs; what goes wrong now is the program's fault
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
        return (
            "memory_limit" if peak > memory else verdict if verdict in VERDICTS else "abnormal_exit"
        )
    text, code, entry, wanted, named, direct, imports = body
    (said,) = peer.ask("load", text, imports)
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
        if (
            verdict == "in_process"
            or verdict in ("wrong_answer", "exception")
            and ("<shares>" in named or peer.lossy)
        ):
            return "in_process"
    (peak,) = peer.ask("peak")
    return "memory_limit" if peak > memory else verdict


def judge_apart(peer, code, wanted, named, direct, entry):
    """Run the tests here; the program's functions are called in its own process. -> a verdict, or "in_process"."""
    begun, held = [], []
    space = {
        "__name__": "tests",
        "<begun>": lambda: begun.append(1),
        "<held>": lambda: held.append(1),
    }
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
            if (
                entry
                and "check" in space
                and "check" not in wanted
                and "<calls check>" not in named
            ):
                (said,) = peer.ask("bind", entry)
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
    if (
        begun != held and "<no failure is caught>" in named
    ):  # a callback's, swallowed by the program
        return "wrong_answer"
    return "passed" if held >= direct else "abnormal_exit"
