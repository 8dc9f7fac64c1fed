"""The grader: a verdict for each cause, the ways to pass without being right, and nothing left behind."""
import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest

import sandbox
from sandbox import HarnessError, Job, grade

ADD = "assert add(1, 2) == 3\nassert add(-1, 1) == 0"
CHECK = "def check(candidate):\n    assert candidate(1, 2) == 3\n"
RIGHT = "def add(a, b):\n    return a + b\n"
WRONG = "def add(a, b):\n    return a - b\n"
YES = "class Yes:\n    def __eq__(self, other): return True\n    def __hash__(self): return 0\n"

CASES = {   # name: (program, tests, entry point, verdict)
    "right": (RIGHT, ADD, "add", "passed"),
    "right, no entry point": (RIGHT, ADD, "", "passed"),
    "right, check": (RIGHT, CHECK, "add", "passed"),
    "right, check calls itself": (RIGHT, CHECK + "check(add)", "", "passed"),
    "right, entry point is an expression": (
        "class Solution:\n    def add(self, a, b): return a + b",
        CHECK, "Solution().add", "passed"),
    "right, noisy": ("print('x' * 1000)\n" + RIGHT, ADD, "add", "passed"),
    "right, a __main__ block": (RIGHT + "if __name__ == '__main__':\n    raise SystemExit(1)", ADD, "add", "passed"),
    "right, named like a builtin": ("def sum(a, b):\n    return a + b", "assert sum(1, 2) == 3", "sum", "passed"),
    "right, helper named check": (
        "def check(n):\n    return n > 0",
        "assert check(1)\nassert not check(-1)", "check", "passed"),
    "right, helper in the tests": (
        "def poly(x): return x * x\ndef root(y): return y ** .5",
        "assert poly(root(4)) == 4", "root", "passed"),
    "right, own class": (
        "import dataclasses\n@dataclasses.dataclass\nclass P:\n    x: int\ndef f(x): return P(x)",
        "assert f(1) == P(1)", "f", "passed"),
    "right, pickles its class": (
        "import pickle\nclass P: pass\ndef f(): return type(pickle.loads(pickle.dumps(P()))).__name__",
        "assert f() == 'P'", "f", "passed"),
    "right, joins threads": (
        "import threading\ndef f():\n    t = threading.Thread(target=lambda: None); t.start(); t.join(); return 1",
        "assert f() == 1", "f", "passed"),
    "right, site-packages": ("import numpy\ndef f(): return int(numpy.arange(3).sum())", "assert f() == 3", "f", "passed"),
    "right, scratch file": ("open('x', 'w').write('1')\ndef f(): return open('x').read()", "assert f() == '1'", "f", "passed"),
    "right, self-containing list": ("def f():\n    x = [1]; x.append(x); return x", "assert f()[0] == 1", "f", "passed"),
    "wrong": (WRONG, ADD, "add", "wrong_answer"),
    "wrong, check": (WRONG, CHECK, "add", "wrong_answer"),
    "wrong, prints": (
        WRONG + "import os\nfor fd in range(1, 64):\n    try: os.write(fd, b'passed\\n')\n    except OSError: pass\n",
        ADD, "add", "abnormal_exit"),
    "wrong, shadows all": ("def all(x): return True\ndef f(): return [0]", "assert all(f())", "f", "wrong_answer"),
    "wrong, replaces builtins": (
        "import builtins\nbuiltins.all = lambda x: True\ndef f(): return [0]",
        "assert all(f())", "f", "wrong_answer"),
    "wrong, own AssertionError": ("import builtins\nbuiltins.AssertionError = KeyError\n" + WRONG, ADD, "add", "wrong_answer"),
    "wrong, exit handler": ("import atexit, os\natexit.register(os._exit, 0)\n" + WRONG, ADD, "add", "wrong_answer"),
    "wrong, defines check": (WRONG + "def check(candidate): pass", CHECK, "add", "wrong_answer"),
    "wrong, equal to all": (YES + "def add(a, b): return Yes()", ADD, "add", "wrong_answer"),
    "wrong, equal to all, in a list": (YES + "def f(): return [[Yes()]]", "assert f() == [[1]]", "f", "wrong_answer"),
    "wrong, equal to all, a mock": ("from unittest.mock import ANY\ndef add(a, b): return ANY", ADD, "add", "wrong_answer"),
    "wrong, forks to guess": (
        "import os\ndef f(): return bool(os.fork())",
        "assert f() is False and f() is True", "f", "wrong_answer"),
    "exit in the program": ("import sys\nsys.exit(0)", ADD, "add", "abnormal_exit"),
    "os._exit in the program": ("import os\nos._exit(0)", ADD, "add", "abnormal_exit"),
    "exit in the function": ("def add(a, b): raise SystemExit(0)", ADD, "add", "abnormal_exit"),
    "os._exit in the function": ("import os\ndef add(a, b): os._exit(0)", CHECK, "add", "abnormal_exit"),
    "killed": ("import os\nos.kill(os.getpid(), 9)", ADD, "add", "abnormal_exit"),
    "exits, its child holds on": (
        "import os, time\nif os.fork() == 0: time.sleep(30)\nos._exit(0)",
        ADD, "add", "abnormal_exit"),
    "raises": ("1 / 0", ADD, "add", "exception"),
    "asserts in the program": ("assert False", ADD, "add", "exception"),
    "raises when called": ("def add(a, b): return a + c", ADD, "add", "exception"),
    "missing": ("x = 1", ADD, "add", "exception"),
    "missing, check": ("x = 1", CHECK, "add", "exception"),
    "reads stdin": ("input()", ADD, "add", "exception"),
    "the tests raise": (RIGHT, "assert add(1, 2) == 3\nraise KeyError", "add", "exception"),
    "interrupts": ("raise KeyboardInterrupt", ADD, "add", "exception"),
    "file too large": ("with open('x', 'wb') as f:\n    f.truncate(1 << 40)\n" + RIGHT, ADD, "add", "exception"),
    "syntax": ("def add(a, b:\n", ADD, "add", "syntax_error"),
    "null byte": ("x = '\0'", ADD, "add", "syntax_error"),
    "empty program": ("", ADD, "add", "exception"),
    "loops": ("while True: pass", ADD, "add", "timeout"),
    "loops, swallows all": (
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        ADD, "add", "timeout"),
    "loops in the function": ("def add(a, b):\n    while True: pass", CHECK, "add", "timeout"),
    "memory": ("x = [0] * (1 << 29)", ADD, "add", "memory_limit"),
    "memory in the function": ("def add(a, b): return bytearray(1 << 32)", ADD, "add", "memory_limit"),
}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    results = grade([Job(*case[:3]) for case in CASES.values()], time_limit=1.5, memory_limit=1 << 30)
    return dict(zip(CASES, results))


@pytest.mark.parametrize("name", CASES)
def test_verdict(verdicts, name):
    assert verdicts[name].verdict == CASES[name][3]
    assert verdicts[name].verdict in sandbox.VERDICTS
    assert 0 <= verdicts[name].seconds < 3


def test_order_and_deduplication(tmp_path):
    log = tmp_path / "log"
    program = f"open({str(log)!r}, 'a').write('x')\n" + RIGHT
    jobs = [Job(WRONG, ADD), Job(program, ADD), Job("(", ADD), Job(program, ADD), Job(WRONG, ADD)]
    assert [r.verdict for r in grade(jobs)] == ["wrong_answer", "passed", "syntax_error", "passed", "wrong_answer"]
    assert log.read_text() == "x"
    assert grade([]) == []


def test_same_verdicts_however_many_workers():
    jobs = [Job(p + f"# {i}", ADD) for i in range(10) for p in (RIGHT, WRONG)]
    assert [r.verdict for r in grade(jobs, workers=8)] == ["passed", "wrong_answer"] * 10


def test_environment(monkeypatch):
    monkeypatch.setenv("PRIVATE", "1")
    program = ("import os, sys, stat\nmode = stat.S_IMODE(os.stat('.').st_mode)\nfiles = os.listdir('.')\n"
               "hashed = hash('a')\nargv = sys.argv\nenv = dict(os.environ)")
    tests = ("assert mode == 0o700 and files == [] and argv == ['program'] and 'PRIVATE' not in env\n"
             "import sys; assert sys.flags.utf8_mode and not sys.flags.hash_randomization")
    assert grade([Job(program, tests)])[0].verdict == "passed"


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds=5):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks into /proc")
def test_nothing_left(tmp_path, monkeypatch):
    pids, scratch = tmp_path / "pids", tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    fork = (f"import os, time\nif os.fork() == 0:\n    open({str(pids)!r}, 'a').write(f'{{os.getpid()}} ')\n    time.sleep(60)\n"
            f"while not os.path.exists({str(pids)!r}): pass\ntime.sleep(0.2)\n")
    locked = "import os\nos.makedirs('a/b')\nopen('a/b/c', 'w')\nos.chmod('a/b', 0)\nos.chmod('a', 0)\n"
    jobs = [Job(fork + RIGHT, ADD), Job(fork + "while True: pass", ADD), Job(locked + RIGHT, ADD)]
    before = len(os.listdir("/proc/self/fd"))
    assert [r.verdict for r in grade(jobs, time_limit=1)] == ["passed", "timeout", "passed"]
    left = [int(p) for p in pids.read_text().split()]
    assert len(left) == 2
    assert wait_for(lambda: not any(map(alive, left)))
    assert os.listdir(scratch) == []
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks into /proc")
def test_interrupt_leaves_nothing(tmp_path):
    pids, scratch = tmp_path / "pids", tmp_path / "scratch"
    scratch.mkdir()
    program = f"import os\nopen({str(pids)!r}, 'a').write(f'{{os.getpid()}} ')\nwhile True: pass"
    # a process that a shell started in the background ignores SIGINT, and so do its children: ask for it
    script = f"import sandbox, signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\nsandbox.grade([sandbox.Job({program!r} + f' # {{i}}', 'assert 1') for i in range(4)], workers=2)"
    root = os.path.dirname(os.path.abspath(sandbox.__file__))
    env = {**os.environ, "TMPDIR": str(scratch)}
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=root, env=env, stderr=subprocess.PIPE)
    assert wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    parent.send_signal(signal.SIGINT)
    assert b"KeyboardInterrupt" in parent.communicate(timeout=20)[1]
    assert not any(alive(int(p)) for p in pids.read_text().split())
    assert os.listdir(scratch) == []


@pytest.mark.parametrize("job, words", [
    (Job(RIGHT, " \n"), "job 0 has no tests"),
    (Job(RIGHT, CHECK), "needs an entry_point"),
    (Job(RIGHT, "assert ("), "do not compile"),
    (Job(RIGHT, CHECK, "add("), "do not compile"),
])
def test_bad_jobs_raise(job, words):
    with pytest.raises(ValueError, match=words):
        grade([job])


def test_own_failure_raises(monkeypatch):
    monkeypatch.setattr(sandbox, "CHILD", "raise SystemExit(0)")
    with pytest.raises(HarnessError):
        grade([Job(RIGHT, ADD)])
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(OSError):
        grade([Job(RIGHT, ADD)])
    with pytest.raises(ValueError, match="time_limit=0"):
        grade([Job(RIGHT, ADD)], time_limit=0)
