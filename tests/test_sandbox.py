"""The grader: the verdict of every program of the corpus, the same however it is run.

Nothing is left behind.
"""

import contextlib
import gc
import importlib.util
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types

import pytest

import programs
from grader import __main__ as grader_command
from grader import messages
from grader.grade import Grader, Job, grade, graded
from grader.messages import HarnessError
from programs import (
    ADD,
    CASES,
    CHECK,
    DAEMON,
    LEFT,
    MARK,
    NEEDS,
    RIGHT,
    SETTINGS,
    SUM,
    SUM_RIGHT,
    WRONG,
)

LEVELS = ("namespaces", "landlock", "process")  # strongest first
SMALL = [  # for every level and user
    "plain: right",
    "plain: wrong, check",
    "plain: right, a method",
    "plain: right, stdio",
    "plain: wrong, stdio",
    "exit: os._exit in the function",
    "exit: kills itself",
    "lie: in a list",
    "lie: from a method",
    "builtin replaced: all",
    "module replaced: math.isclose",
    "marker: every descriptor",
    "time: sleeps",
    "memory: one block",
    "output: one print",
    "process: a daemon",
    "process: 50 zombies",
    "thread: one stays",
    "files: scratch",
    "files: locked directories",
    "files: moves and links",
    "error: when called",
    "syntax: unclosed",
    "result: generator",
    "state: sorts in place",
    "class: stack",
    "input: fstat",
    "end: an error after the answer",
]
ROOT = pathlib.Path(__file__).resolve().parent.parent  # the project's folder
linux = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks into /proc")


def jobs_of(names):
    return [Job(**CASES[name][0]) for name in names]


def wrong_verdicts(names, verdicts):
    return {
        name: verdict
        for name, verdict in zip(names, verdicts, strict=True)
        if verdict not in CASES[name][1]
    }


def processes(folder=None):
    """Ids of the processes that are called MARK or belong to `folder`, without this one.

    A process belongs to a folder if its command line, environment or directory holds the path.
    """
    found = set()
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        if process.name != str(os.getpid()):
            with contextlib.suppress(OSError):
                if (process / "comm").read_text().strip() == MARK:
                    found.add(int(process.name))
                elif folder is not None:
                    text = (
                        (process / "cmdline").read_bytes()
                        + (process / "environ").read_bytes()
                        + os.fsencode(os.readlink(process / "cwd"))
                    )
                    if os.fsencode(folder) in text:
                        found.add(int(process.name))
    return found


def wait_for(condition, seconds=10):
    end = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return met


def outside():
    """The files that the corpus tries to leave."""
    return [
        path
        for path in (pathlib.Path(left).expanduser() for left in LEFT if not left.startswith(".."))
        if path.exists()
    ]


def own():
    """What a leak would add to."""
    return {"descriptors": len(os.listdir("/dev/fd")), "threads": threading.active_count()}


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """The directory of temporary files, of which no file and no process may be left."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    assert wait_for(lambda: not processes(folder))
    assert os.listdir(folder) == []


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """Every case graded, and a third of them again, in another order by more workers."""
    folder = tmp_path_factory.mktemp("scratch")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TMPDIR", str(folder))
            patch.setattr(tempfile, "tempdir", None)
            level = grade([Job(RIGHT, ADD)])[0].isolation
            names = [
                name
                for name in CASES
                if (level == "namespaces" or not name.startswith("kill: "))
                and (name not in NEEDS or importlib.util.find_spec(NEEDS[name]))
            ]
            gc.collect()  # files that earlier tests left to the garbage collector are not counted
            before = own()
            first = dict(zip(names, grade(jobs_of(names), workers=6, **SETTINGS), strict=True))
            names = random.Random(0).sample(names, len(names) // 3)
            second = dict(zip(names, grade(jobs_of(names), workers=8, **SETTINGS), strict=True))
        wait_for(lambda: not processes(folder))
        return types.SimpleNamespace(
            first=first,
            second=second,
            level=level,
            before=before,
            after=own(),
            files=os.listdir(folder),
            outside=outside(),
            processes=processes(folder),
        )
    finally:
        for path in outside():
            path.unlink()
        subprocess.run(["rm", "-rf", folder])  # a leftover may be too deep for shutil


def test_the_corpus():
    assert len(CASES) >= 150
    assert sum(verdicts == ("passed",) for _, verdicts in CASES.values()) >= 60
    assert {verdict for _, verdicts in CASES.values() for verdict in verdicts} == set(
        messages.VERDICTS
    )
    assert set(SMALL) <= set(CASES)


@linux
@pytest.mark.parametrize("name", CASES)
def test_verdict(batch, name):
    if name not in batch.first:
        pytest.skip(f"no {NEEDS[name]}" if name in NEEDS else f"level {batch.level}")
    result = batch.first[name]
    assert result.verdict in CASES[name][1]
    assert result.isolation == batch.level
    assert result.mode == ("stdio" if CASES[name][0]["kind"] == "stdio" else "separate")
    limit = CASES[name][0].get("time_limit", SETTINGS["time_limit"])
    assert (
        0
        <= result.seconds
        < (limit + 1) * (len(CASES[name][0]["tests"]) if result.mode == "stdio" else 1)
    )


@linux
def test_same_verdicts_shuffled(batch):
    assert wrong_verdicts(batch.second, (result.verdict for result in batch.second.values())) == {}


@linux
def test_apart(batch):
    """A method of the program decides comparisons of its own objects only.

    The result says so.
    """
    decided_by_the_program = {
        name
        for name, result in batch.first.items()
        if result.verdict == "passed" and not result.apart
    }
    assert decided_by_the_program == {"class: stack", "class: operators", "class: order"}


@linux
def test_the_corpus_leaves_nothing(batch):
    assert batch.processes == set()
    assert batch.files == []
    assert batch.after == batch.before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    if batch.level != "process":
        assert batch.outside == []


def test_order(scratch):
    jobs = [Job(program, ADD) for program in (WRONG, RIGHT, "(", RIGHT, WRONG)] + [
        Job(SUM_RIGHT, SUM, kind="stdio")
    ]
    expected = ["wrong_answer", "passed", "syntax_error", "passed", "wrong_answer", "passed"]
    assert [result.verdict for result in grade(jobs)] == expected
    seen = dict(graded(jobs, workers=3))
    assert len(list(graded(jobs))) == len(jobs)
    assert [seen[i].verdict for i in range(len(jobs))] == expected
    assert grade([]) == [] and list(graded([])) == []


def test_stopping_early_leaves_nothing(scratch):
    before = own()
    sleeper = Job(DAEMON + "daemon()\ntime.sleep(60)\n", ADD)
    for index, result in graded([Job(RIGHT, ADD), sleeper], workers=2, time_limit=60.0):
        assert (index, result.verdict) == (0, "passed")
        break
    assert wait_for(lambda: own() == before)


def test_jobs_one_by_one(scratch):
    """Futures in any order; closing ends what runs and drops what waits."""
    begin = time.perf_counter()
    with Grader(workers=1) as grader:
        first = [grader.submit(Job(RIGHT, f"assert add(1, 2) == {3 + i}")) for i in range(3)]
        assert [f.result().verdict for f in first] == ["passed", "wrong_answer", "wrong_answer"]
        with pytest.raises(ValueError, match="no tests"):
            grader.submit(Job("x = 1"))
        later = [
            grader.submit(Job(f"import time\ntime.sleep({100 + i})", "assert True", time_limit=200))
            for i in range(2)
        ]
        time.sleep(1)
    assert later[1].cancelled() and isinstance(later[0].exception(), HarnessError)
    assert time.perf_counter() - begin < 60


def test_limits(scratch):
    loop = "while True:\n    pass\n"
    grow = "x = bytearray(400 << 20)\n" + RIGHT
    speak = "print('x' * (3 << 20))\n" + RIGHT
    timed = grade(
        [Job(loop, ADD), Job(loop, ADD, time_limit=0.2), Job(loop, SUM, kind="stdio")],
        time_limit=1.0,
        workers=1,
    )
    assert [result.verdict for result in timed] == ["timeout"] * 3
    assert all(
        limit <= result.seconds < limit + 1
        for result, limit in zip(timed, (1.0, 0.2, 1.0), strict=True)
    )
    assert (
        grade([Job("import time\ntime.sleep(1)\n" + RIGHT, ADD, time_limit=30.0)], time_limit=0.5)[
            0
        ].verdict
        == "passed"
    )
    assert [
        grade([Job(grow, ADD)], memory_limit=limit << 20)[0].verdict for limit in (300, 1000)
    ] == ["memory_limit", "passed"]
    assert [grade([Job(speak, ADD)], output_limit=limit << 20)[0].verdict for limit in (2, 4)] == [
        "output_limit",
        "passed",
    ]


def test_environment(scratch, monkeypatch):
    monkeypatch.setenv("PRIVATE", "1")
    look = """
import os, stat, sys
def facts():
    return {
        "directory": (stat.S_IMODE(os.stat(".").st_mode), \
os.stat(".").st_uid == os.geteuid(), os.listdir(".")),
        "private": "PRIVATE" in os.environ,
        "python": (sys.flags.utf8_mode, sys.flags.hash_randomization, \
sys.stdout.encoding, open("x", "w").encoding.lower()),
        "stdin": (stat.S_ISREG(os.fstat(0).st_mode), sys.stdin.read()),
    }
"""
    expected = {
        "directory": (0o700, True, []),
        "private": False,
        "python": (1, 0, "utf-8", "utf-8"),
        "stdin": (True, ""),
    }
    assert grade([Job(look, f"assert facts() == {expected}", "facts")])[0].verdict == "passed"
    # of the directory, a stdio program sees nothing that another test left
    fresh = (
        "import os\n"
        "print('seen' if os.path.exists('mine') else 'fresh', 'PRIVATE' in os.environ)\n"
        "open('mine', 'w').close()\n"
    )
    assert (
        grade(
            [
                Job(
                    fresh,
                    [{"input": str(i), "output": "fresh False"} for i in range(2)],
                    kind="stdio",
                )
            ]
        )[0].verdict
        == "passed"
    )


@linux
def test_no_network(scratch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        call = f"""
import socket
def connects():
    try:
        return bool(socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 1))
    except OSError:
        return False
"""
        result = grade([Job(call, "assert connects() is False", "connects")])[0]
    if result.isolation != "namespaces":
        pytest.skip(f"level {result.isolation}")
    assert result.verdict == "passed"


def test_a_program_finds_nothing_of_the_grader(scratch):
    """No module of the grader or of the project is loaded, or can be imported, where programs run.

    No file that the server loaded shares its builtins with them.
    """
    files = {path.stem for path in (ROOT / "grader").glob("*.py")}
    look = f"""
import builtins, importlib.util, os, sys, types
HERE = {[str(ROOT), str(ROOT / "grader")]}
def below(file):
    return isinstance(file, str) and os.path.dirname(file) in HERE
def modules():
    found = [name for name in sys.modules if name.split(".")[0] in ("grade", "grader", "torch")]
    found += [name for name, module in sys.modules.items() \
if below(getattr(module, "__file__", None))]
    for name in \
{["config", "train", "grader", *sorted(files), *sorted(f"grader.{name}" for name in files)]}:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            continue
        if spec and below(spec.origin):
            found.append(name)
    return found
def builtins_of_files():
    frame, todo, seen = sys._getframe(), [], {{}}
    while frame:
        todo.append(frame.f_globals)
        frame = frame.f_back
    while todo:
        space = todo.pop()
        if below(space.get("__file__")) and space["__file__"] not in seen:
            own = space["__builtins__"]
            seen[space["__file__"]] = "shared" if own is builtins or own is vars(builtins) \
or own["__import__"] is not __import__ else "own"
            todo += [value.__globals__ for value in space.values() \
if isinstance(value, types.FunctionType)]
    return {{os.path.basename(file).removesuffix(".py"): said for file, said in seen.items()}}
def add():
    return modules(), builtins_of_files()
class P:
    add = staticmethod(add)
"""
    expected = (
        [],
        dict.fromkeys(
            sorted(files - {"__init__", "__main__", "assertions", "client", "grade"}), "own"
        )
        | {"boot": "shared"},
    )
    jobs = [
        Job(look, f"assert add() == {expected}"),
        Job(look, f"assert P().add() == {expected}"),
        Job(
            look + "said = add()\nprint(said[0], sorted(said[1].items()))\n",
            [{"input": "", "output": f"{expected[0]} {sorted(expected[1].items())}"}],
            kind="stdio",
        ),
    ]
    assert [(result.verdict, result.mode) for result in grade(jobs)] == [
        ("passed", mode) for mode in ("separate", "separate", "stdio")
    ]


def test_links_are_not_followed(scratch, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o750)
    (victim / "file").write_text("kept")
    link = (
        "import os\n"
        "os.mkdir('d')\n"
        f"os.symlink({str(victim)!r}, 'd/link')\n"
        f"os.symlink({str(victim / 'file')!r}, 'link')\n"
        "os.chmod('d', 0)\n"
    )
    assert grade([Job(link + RIGHT, ADD), Job(link + WRONG, ADD)])[0].verdict == "passed"
    assert victim.stat().st_mode & 0o777 == 0o750
    assert (victim / "file").read_text() == "kept"


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_trainer_leaves_nothing(scratch, number):
    program = DAEMON + "daemon()\ntime.sleep(60)\n"
    # A process that a shell started in the background ignores SIGINT, and so do its children.
    # The script asks for SIGINT.
    script = f"""
import signal
from grader import grade
signal.signal(signal.SIGINT, signal.default_int_handler)
grade.grade([grade.Job({program!r} + f"# {{i}}", "assert True") for i in range(4)], \
workers=2, time_limit=60.0)
"""
    trainer = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.PIPE)
    try:
        assert wait_for(lambda: len(processes()) >= 4, 20)  # two programs and their daemons
        trainer.send_signal(number)
        said = trainer.communicate(timeout=20)[1]
    finally:
        trainer.kill()
        trainer.wait()
    assert (
        b"KeyboardInterrupt" in said if number == signal.SIGINT else trainer.returncode == -number
    )
    # the fixture looks for what is left


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "grader", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_command_line(scratch, tmp_path):
    rows = [
        {"name": "right", "program": RIGHT, "tests": ADD, "entry_point": "add", "kind": "assert"},
        {"name": "wrong", "program": WRONG, "tests": CHECK, "entry_point": "add", "kind": "assert"},
        {"name": "stdio", "program": SUM_RIGHT, "tests": SUM, "kind": "stdio"},
        {"name": "slow", "program": "import time\ntime.sleep(3)\n" + RIGHT, "tests": ADD},
        {"name": "\u2713", "program": "class P:\n    x = 1\n", "tests": "assert P().x == 1"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = command(file, "--time-limit", 1, "--workers", 2)
    out = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert [list(row) for row in out] == [
        ["name", "verdict", "seconds", "isolation", "mode", "apart"]
    ] * len(rows)
    assert [row["name"] for row in out] == [row["name"] for row in rows]
    assert [row["verdict"] for row in out] == [
        "passed",
        "wrong_answer",
        "passed",
        "timeout",
        "passed",
    ]
    assert [row["mode"] for row in out] == [
        "separate",
        "separate",
        "stdio",
        "separate",
        "separate",
    ]
    assert (
        sum(out[0]["isolation"] in line for line in done.stderr.splitlines()) == 1
    )  # the level is told once
    done = command(tmp_path / "none.jsonl")
    assert (done.returncode, done.stdout) == (2, "") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        json.dumps({"name": "a", "tests": ADD}),
        json.dumps({"name": "a", "program": 3, "tests": ADD}),
        json.dumps({"name": "a", "program": RIGHT, "tests": ADD, "kind": "other"}),
        json.dumps({"name": "a", "program": RIGHT, "tests": ADD, "kind": "stdio"}),
        json.dumps({"name": "a", "program": RIGHT, "tests": [{"input": "1"}], "kind": "stdio"}),
        json.dumps({"name": "a", "program": RIGHT, "tests": ""}),
        json.dumps({"name": "a", "program": RIGHT, "tests": "assert ("}),
        json.dumps({"name": "a", "program": RIGHT, "tests": ADD}) + "\nnonsense",
    ],
)
def test_command_line_says_what_is_wrong(tmp_path, capsys, text):
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    assert grader_command.main([str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "job, settings, words",
    [
        (Job(RIGHT, " \n"), {}, "no tests"),
        (Job(RIGHT, CHECK), {}, "entry_point"),
        (Job(RIGHT, "assert ("), {}, "compile"),
        (Job(RIGHT, CHECK, "add("), {}, "compile"),
        (Job(SUM_RIGHT, [], kind="stdio"), {}, "tests"),
        (Job(SUM_RIGHT, "assert True", kind="stdio"), {}, "tests"),
        (Job(SUM_RIGHT, SUM, kind="other"), {}, "other"),
        (Job(RIGHT, ADD, time_limit=0.0), {}, "time_limit"),
        (Job(RIGHT, ADD), dict(time_limit=0.0), "time_limit"),
        (Job(RIGHT, ADD), dict(memory_limit=0), "memory_limit"),
        (Job(RIGHT, ADD), dict(output_limit=0), "output_limit"),
        (Job(RIGHT, ADD), dict(workers=0), "workers"),
    ],
)
def test_bad_jobs_and_settings_raise(scratch, job, settings, words):
    with pytest.raises(ValueError, match=words):
        grade([Job(RIGHT, ADD), job], **settings)


@pytest.mark.parametrize("executable", ["/nowhere/python", "/bin/true", "/bin/cat"])
def test_a_fault_of_the_grader_raises(scratch, monkeypatch, executable):
    before = own()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", executable)
        with pytest.raises(HarnessError):
            grade([Job(RIGHT, ADD)])
    assert grade([Job(RIGHT, ADD)])[0].verdict == "passed"
    assert own() == before


GRADE_SMALL = """
import json, sys
import programs
from grader import grade
jobs = [grade.Job(**programs.CASES[name][0]) for name in json.loads(sys.argv[1])]
print(json.dumps([(result.verdict, result.isolation) \
for result in grade.grade(jobs, workers=4, **programs.SETTINGS)]))
"""


def python_for(user):
    """A Python that the user can run, or None."""
    for python in (sys.executable, "/usr/local/bin/python3", "/usr/bin/python3"):
        with contextlib.suppress(OSError):
            test = subprocess.run(
                [python, "-c", "import sys; assert sys.version_info >= (3, 11)"],
                capture_output=True,
                cwd="/",
                **user,
            )
            if test.returncode == 0:
                return python


@linux
@pytest.mark.parametrize(
    "level, ordinary",
    [("namespaces", True), ("landlock", False), ("landlock", True), ("process", False)],
)
def test_every_level_and_user(level, ordinary):
    if ordinary and os.geteuid() != 0:
        pytest.skip("this user is an ordinary one")
    user = dict(user=65534, group=65534, extra_groups=[]) if ordinary else {}
    python = python_for(user)
    if python is None:
        pytest.skip("no Python that an ordinary user can run")
    folder = pathlib.Path(
        tempfile.mkdtemp(prefix="ra3-test-", dir="/tmp")
    )  # pytest's directories are closed to other users
    try:
        scratch = folder / "scratch"
        scratch.mkdir()
        for file in (ROOT / "config.py", programs.__file__):
            shutil.copy(file, folder)
        shutil.copytree(
            ROOT / "grader", folder / "grader", ignore=shutil.ignore_patterns("__pycache__")
        )
        for path, mode in (
            (folder, 0o755),
            (folder / "grader", 0o755),
            (scratch, 0o777),
            *((file, 0o644) for file in folder.rglob("*.py")),
        ):
            path.chmod(mode)
        env = {
            "PATH": os.environ["PATH"],
            "TMPDIR": str(scratch),
            "RA3_SANDBOX_LEVEL": level,
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        done = subprocess.run(
            [python, "-c", GRADE_SMALL, json.dumps(SMALL)],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            **user,
        )
        assert done.returncode == 0, done.stderr
        verdicts, levels = zip(*json.loads(done.stdout), strict=True)
        assert wrong_verdicts(SMALL, verdicts) == {}
        assert len(set(levels)) == 1 and levels[0] in LEVELS[LEVELS.index(level) :]
        assert wait_for(lambda: not processes(scratch))
        assert os.listdir(scratch) == []
    finally:
        subprocess.run(["rm", "-rf", folder])
