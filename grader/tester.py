"""The tester: runs the tests, in an interpreter that never loads the program, and says the verdict.

It calls the program's functions over a link (link.py), and gets values, or stand-ins for objects
that stay with the program (mirrors.py). Every assertion is decided here.
"""

import contextlib
import importlib
import marshal
import os
import resource
import select
import signal
import traceback

from grader.link import Ended, Link
from grader.messages import VERDICTS, HarnessError, ended_by
from grader.mirrors import Function, Mirror
from grader.operations import guarded
from grader.surroundings import Surroundings, share_states
from grader.walls import prctl

MESSAGE = 1 << 28  # bytes of an answer of the program, at most
HERE = os.path.dirname(__file__)
NEAR = {  # modules whose functions the tests use from the program's names as their own
    *"math cmath collections itertools functools operator heapq bisect copy string re json".split(),
    *"statistics typing fractions decimal datetime numbers".split(),
}


LINK = Link(host=True)  # of the one run that a process has
LINK.operations = guarded(LINK)


class Peer:
    """The program's process, as the tester sees it."""

    def __init__(self, channel, watch):
        self.watch = watch
        self.link = LINK.open(channel, MESSAGE)

    def ask(self, operation, *values):
        return self.link.ask(operation, *values)

    def ready(self):
        try:
            return self.link.answer(0) == "ready"
        except Ended:
            return False

    def end(self):
        """How the program's process ended, as a verdict. Raises HarnessError."""
        poll = select.poll()
        poll.register(self.watch, select.POLLIN)
        # no answer within a second: it lives, and closed the channel
        ending = os.read(self.watch, 64) if poll.poll(1000) else b"S256"
        if not ending:
            raise HarnessError("the keeper ended")
        if ending[:1] in b"MN":
            return "memory_limit" if ending[:1] == b"M" else "abnormal_exit"
        code = os.waitstatus_to_exitcode(int(ending[1:]))
        return {
            0: "passed",
            -getattr(signal, "SIGSYS", 0): "memory_limit",
            -signal.SIGXFSZ: "output_limit",
        }.get(code, "abnormal_exit")


def test(body, writing, peer, mode, memory, feed, size):
    """The tester: says (verdict, apart, detail) on the pipe `writing`. Never returns.

    size: bytes of address space that it has to begin with.
    """
    status = 1
    try:
        prctl(1, signal.SIGKILL)
        if not peer.ready():
            raise HarnessError(f"the program's process did not get ready: {peer.end()}")
        os.write(writing, b"R")  # the clock runs; what goes wrong now is the program's fault
        limit_memory(memory + size)
        peer.link.most = min(MESSAGE, memory)
        answer = (*judged(peer, mode, marshal.loads(body), memory, feed), "")
    except BaseException:
        answer = "harness_error", True, traceback.format_exc()
    try:
        os.write(writing, marshal.dumps(answer))
        status = 0
    finally:
        os._exit(status)


def limit_memory(size):
    """Of address space: the tests, and what the program hands over, have a limit, too."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


def judged(peer, mode, body, memory, feed):
    """(verdict, was every truth decided apart from the program?) of one run."""
    try:
        verdict = judge_script(peer, body, feed) if mode == "stdio" else judge(peer, body)
        if mode == "stdio":
            verdict, peak = verdict
        else:
            peak = peer.ask("peak") if peer.link.trouble is None else 0
        if type(peak) is int and peak > memory:
            verdict = "memory_limit"
    except Ended:
        verdict = peer.end()
        verdict = "abnormal_exit" if verdict == "passed" else verdict
    except MemoryError:
        verdict = "memory_limit"
    return verdict, peer.link.apart


def judge_script(peer, body, feed):
    """(verdict, peak memory) of a program that runs as a script."""
    text, stdin = body
    os.pwrite(feed, stdin.encode("utf-8", "surrogatepass"), 0)
    try:
        verdict, peak = peer.ask("script", text)
    except Ended:  # before its last line: by os._exit, say
        return peer.end(), 0
    except (TypeError, ValueError):
        return "abnormal_exit", 0
    return verdict if verdict in VERDICTS else "abnormal_exit", peak


def judge(peer, body):
    """The verdict on a program of kind assert."""
    text, *tests = body
    run = TestRun(peer, tests)
    share_states(peer.link, run.uses, text)
    answer = peer.ask("load", text, list(peer.link.shareable))
    if answer != "loaded":
        known = isinstance(answer, str) and answer in VERDICTS and answer != "passed"
        return answer if known else "abnormal_exit"
    return run.verdict()


class TestRun:
    """One run of the tests: what they see, what they count."""

    def __init__(self, peer, tests):
        (self.code, self.entry, self.calls_check, self.wanted, self.direct, self.any_assertion) = (
            tests[:6]
        )
        (self.catches, self.judges, self.dynamic, self.constants, self.uses) = tests[6:11]
        preamble, borrowed = tests[11:]
        self.peer = peer
        self.link = peer.link
        self.begun = []
        self.held = []
        self.names = self.borrow(preamble, borrowed) if borrowed else {}

    def borrow(self, preamble, borrowed):
        """Names that the tests need and that stand in front of the program, defined here."""
        space = {"__name__": "preamble"}
        exec(marshal.loads(preamble), space)
        self.link.shareable = {
            name: value
            for name, value in space.items()
            if isinstance(value, type) and value.__module__ == "preamble" and name == value.__name__
        }
        return {name: space[name] for name in borrowed if name in space}

    def space(self):
        """The names that the tests see."""
        surroundings = Surroundings(self.link, self.uses, self.constants)
        space = Names(self) if self.has_variables() else {}
        space.update(
            {
                "__name__": "tests",
                "__builtins__": surroundings.builtins,
                "<begun>": lambda: self.begun.append(1),
                "<held>": lambda: self.held.append(1),
                "<method>": surroundings.method,
                **self.found,
            }
        )
        return space

    def has_variables(self):
        """Look the wanted names up. Are there any that the program may bind anew?"""
        self.found, variable = dict(self.names), self.dynamic
        names = [name for name in self.wanted if name not in self.found]
        if self.dynamic:
            names += [
                n for n in self.peer.ask("names") if type(n) is str and not n.startswith("__")
            ]
        for name in names:
            answer = self.look_up(name)
            if answer:
                self.found[name] = answer[0]
                variable = variable or not callable(answer[0])
        if variable:
            fixed = {n for n, v in self.found.items() if n in self.names or callable(v)}
            self.found = {n: v for n, v in self.found.items() if self.dynamic or n in fixed}
        return variable and not self.dynamic

    def look_up(self, name):
        """[what a name of the program is], or []."""
        answer = self.peer.ask("find", name)
        if type(answer) is Function:
            return [answer]
        if type(answer) is not tuple or not answer:
            raise Ended
        kind, *facts = answer
        if kind == "module" and facts[0].split(".")[0] in NEAR | {
            "numpy",
            "random",
            "os",
            "sys",
            "io",
        }:
            return [Surroundings.stand_in(self.link, facts[0])]
        if kind == "import" and facts[0] in NEAR and facts[1] == name and name not in self.entry:
            return [getattr(importlib.import_module(facts[0]), name)]
        if kind in ("module", "import"):
            return [self.link.request("eval", name)]
        if kind == "value" and isinstance(facts[0], Mirror) and name in self.judges:
            self.link.judges.add(facts[0])
        return facts if kind == "value" else []

    def verdict(self):
        try:
            try:
                self.run()
            finally:
                if self.link.trouble:  # the tests swallowed it
                    raise self.link.trouble
        except Ended:
            raise
        except BaseException as e:
            known = id(e) in {id(error()) for error in self.link.imports.values()}
            wrong = isinstance(e, AssertionError) and not known
            return "wrong_answer" if wrong else ended_by(e)
        return self.ended_well()

    def run(self):
        space = self.space()
        exec(marshal.loads(self.code), space)
        if self.calls_check and "check" in space:
            space["check"](self.peer.ask("bind", self.entry))

    def ended_well(self):
        """The verdict on tests that ran to their end: did every assertion complete, and hold?"""
        if any(map(vanished, self.link.stopped)):
            return "exception"
        begun, held = len(self.begun), len(self.held)
        if begun != held and not self.catches:  # a callback's, swallowed by the program
            return "wrong_answer"
        if self.any_assertion and not begun:
            return "wrong_answer"
        return "passed" if held >= self.direct else "abnormal_exit"


class Names(dict):
    """The tests' names; those of the program as they are at the moment."""

    def __init__(self, run):
        super().__init__()
        self.run = run

    def __missing__(self, name):
        if name in self.run.wanted:
            for value in self.run.look_up(name):
                return value
        raise KeyError(name)


def vanished(error):
    """Did a StopIteration end in the interpreter, and not in a line of the tests?"""
    trace = error.__traceback__
    return trace is None or trace.tb_frame.f_code.co_filename.startswith(HERE)
