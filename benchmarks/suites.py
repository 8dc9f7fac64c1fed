"""Benchmarks: problem sets of the field read into tasks, with the field's own names and tests.

`load("mbpp+")` gives a list of `tasks.Task`.
The grader runs program_of(task, completion), and program_of(task, task.solution) passes.
The readers are in the other files of this folder; files.py knows their data.
A suite is one record of SUITES. Everything that differs between suites follows from it.

Conventions of all suites
1. A prompt loses its last newline, so that the model writes newline and indentation as the token
   it knows. Every solution begins with a newline.
2. No stop sequence is a comment. The Codex paper's list has a newline followed by "#", which would
   cut a thought in column 0. Without it a model that never comments gets the same score.
3. A program has 10 s for all its tests, or four times its reference's time where that is slow
   (`Suite.slow`). EvalPlus has the same factor, per test and with at least 4 s. (Fixed 3 s, as some
   harnesses have them, fail right answers to HumanEval+.)
"""

import collections
import dataclasses
import functools
import json
import typing

from benchmarks.codeforces import codeforces, doubt
from benchmarks.humaneval_mbpp import (
    CODEX_STOPS,
    humaneval,
    humaneval_plus,
    mbpp,
    mbpp_3shot,
    mbpp_plus,
    mbpp_sanitized,
)
from benchmarks.leetcode import leetcode
from benchmarks.livecodebench import livecodebench, livecodebench_official
from config import UserError, nearest
from grader.assertions import check_job, prepare
from tasks import Task, job_of, preamble_of


@dataclasses.dataclass(frozen=True)
class Suite:
    """A benchmark: how it is read, and what it may be used for."""

    reader: typing.Callable  # folder of the data -> tasks
    files: tuple  # names in files.FILES
    references: bool = False  # has reference solutions that no suite before it has
    also: tuple = ()  # suites with other tests of the same problems
    trained_as: str = ""  # the suite that RLVR takes under this name; "": tests are no rewards
    checked: bool = False  # training data that holds one of its problems is dropped
    slow: dict = dataclasses.field(default_factory=dict)  # problem -> seconds of its reference
    not_gradable: dict = dataclasses.field(default_factory=dict)  # problem -> reason
    doubt: typing.Callable = lambda task: ""  # the same for a task, by a rule


# Seconds of the references that take 2.5 s and more: python -m benchmarks --references --workers 1,
# on a two-core machine that also trained.
SLOW_MBPP = {"Mbpp/123": 4.2}
SLOW_LEETCODE = {
    "maximum-number-of-moves-to-kill-all-pawns": 21.5,
    "sorted-gcd-pair-queries": 4.6,
    "count-beautiful-numbers": 6.3,
    "find-the-number-of-possible-ways-for-an-event": 4.9,
    "total-characters-in-string-after-transformations-i": 5.9,
    "total-characters-in-string-after-transformations-ii": 3.5,
    "find-the-number-of-subsequences-with-equal-gcd": 41.3,
    "find-the-number-of-k-even-arrays": 2.9,
    "minimum-time-to-break-locks-i": 3.0,
}
SLOW_LIVECODEBENCH = {  # six of the same problems
    "LiveCodeBench/689": 21.5,
    "LiveCodeBench/707": 4.6,
    "LiveCodeBench/824": 5.9,
    "LiveCodeBench/825": 41.3,
    "LiveCodeBench/840": 4.9,
    "LiveCodeBench/855": 3.0,
}
MBPP_FILE = "mbpp/mbpp.jsonl.gz"
LIVECODEBENCH_FILE = "livecodebench/lcb_release_v5_public.jsonl.gz"

WITHIN_TOLERANCE = "262 269 276 304 320 427 715 720 784".split()
SEVERAL_ANSWERS = "246 268 314 350 395 399 543 617 661 665 675 799".split()
NO_ONE_ANSWER = {  # problems of LiveCodeBench, read one by one
    **{f"LiveCodeBench/{number}": "answers within a tolerance" for number in WITHIN_TOLERANCE},
    **{f"LiveCodeBench/{number}": "several right answers" for number in SEVERAL_ANSWERS},
}

SUITES = {
    "humaneval": Suite(
        humaneval,
        ("humaneval/HumanEval.jsonl.gz",),
        references=True,
        also=("humaneval+",),
        checked=True,
    ),
    "humaneval+": Suite(
        humaneval_plus,
        ("humaneval_plus/HumanEvalPlus-OriginFmt-v0.1.10.jsonl.gz",),
        references=True,
        also=("humaneval",),
        checked=True,
        slow={"HumanEval/15": 9.2, "HumanEval/130": 3.8, "HumanEval/139": 7.8},
    ),
    "mbpp": Suite(mbpp, (MBPP_FILE,), also=("mbpp+",), checked=True, slow=SLOW_MBPP),
    "mbpp-3shot": Suite(mbpp_3shot, (MBPP_FILE,), slow=SLOW_MBPP),
    "mbpp-train": Suite(
        functools.partial(mbpp, ids=range(601, 975)), (MBPP_FILE,), trained_as="mbpp-train"
    ),
    "mbpp-all": Suite(
        functools.partial(mbpp, ids=range(1, 975)), (MBPP_FILE,), references=True, slow=SLOW_MBPP
    ),
    "mbpp-sanitized": Suite(
        mbpp_sanitized,
        ("mbpp/sanitized-mbpp.json",),
        references=True,
        also=("mbpp+",),
        checked=True,
        slow=SLOW_MBPP,
    ),
    "mbpp+": Suite(
        mbpp_plus,
        ("mbpp_plus/MbppPlus-v0.2.0.jsonl.gz", "mbpp_plus/MbppPlus-OriginFmt-v0.2.0.jsonl.gz"),
        references=True,
        also=("mbpp-sanitized",),
        checked=True,
        slow={
            "Mbpp/123": 4.3,
            "Mbpp/255": 3.2,
            "Mbpp/271": 5.4,
            "Mbpp/392": 6.3,
            "Mbpp/589": 2.5,
            "Mbpp/592": 3.7,
            "Mbpp/599": 36.4,
            "Mbpp/603": 3.6,
        },
    ),
    "leetcode": Suite(
        leetcode,
        ("leetcode/LeetCodeDataset-v0.2.0-test.jsonl.gz",),
        references=True,
        trained_as="leetcode-train",
        checked=True,
    ),
    "leetcode-train": Suite(
        functools.partial(leetcode, version="v0.2.0-train"),
        ("leetcode/LeetCodeDataset-v0.2.0-train.jsonl.gz",),
        references=True,
        trained_as="leetcode-train",
        not_gradable={
            "word-ladder-ii": "its reference fails its tests (order of the result)",
        },
    ),
    "leetcode-v0.3.1": Suite(
        functools.partial(leetcode, version="v0.3.1-test"),
        ("leetcode/LeetCodeDataset-v0.3.1-test.jsonl.gz",),
        references=True,
        checked=True,
        slow=SLOW_LEETCODE,
    ),
    "livecodebench": Suite(
        livecodebench,
        (LIVECODEBENCH_FILE,),
        references=True,
        checked=True,
        slow=SLOW_LIVECODEBENCH,
        not_gradable=NO_ONE_ANSWER,
    ),
    "livecodebench-2024-08": Suite(
        functools.partial(livecodebench, window="2024-08"),
        (LIVECODEBENCH_FILE,),
        slow=SLOW_LIVECODEBENCH,
        not_gradable=NO_ONE_ANSWER,
    ),
    "livecodebench-official": Suite(livecodebench_official, ()),
    "codeforces": Suite(codeforces, ("rllm/codeforces_test.json.gz",), checked=True, doubt=doubt),
}


def check_suite(name, others=()):
    """Raises UserError for what is no suite, no .jsonl file and none of the other names allowed."""
    names = [*others, *SUITES]
    if name in names or name.endswith(".jsonl"):
        return
    near = nearest(name, names)
    hint = f"; did you mean {near}?" if near else ""
    raise UserError(f"suite {name}: expected one of {', '.join(names)}, or a .jsonl file{hint}")


def gradable(name, data_dir=""):
    """The tasks of a suite -> (tasks that can be graded, {reason: names of those that cannot}).

    A task cannot be graded where no comparison with one expected answer tells right from wrong.
    Raises UserError for an unknown name, and for files that are missing or not as we know them.
    """
    check_suite(name)
    suite = SUITES[name]
    tasks, dropped = [], {}
    for task in suite.reader(data_dir):
        reason = suite.not_gradable.get(task.name) or suite.doubt(task)
        if reason:
            dropped.setdefault(reason, []).append(task.name)
        else:
            slow = suite.slow.get(task.name, 0.0)
            tasks.append(dataclasses.replace(task, time_limit=4 * slow))
    return tasks, dropped


def load_checked(name, data_dir=""):
    """The tasks of a suite that training data is checked against: also those of `not_gradable`."""
    suite = SUITES[name]
    return [task for task in suite.reader(data_dir) if not suite.doubt(task)]


def load(name, data_dir=""):
    """The tasks of a suite that can be graded, or those of a .jsonl file (`load_jsonl`).

    Raises UserError for an unknown name, and for files that are missing or not as we know them.
    """
    return load_jsonl(name) if name.endswith(".jsonl") else gradable(name, data_dir)[0]


# ---------------------------------------------------------------- a user's file

FIELDS = "expected a JSON object with task_id, prompt, entry_point and test"


def load_jsonl(path):
    """Tasks of a user's file, a JSON object a line in HumanEval's format.

    Fields: task_id, prompt, entry_point, test (a check(candidate), or plain assertions).
    Fields that may be left out: canonical_solution, stops (default: CODEX_STOPS).
    Raises UserError with the number of a wrong line.
    """
    try:
        with open(path) as f:
            lines = f.read().split("\n")
    except (OSError, UnicodeDecodeError) as e:
        reason = getattr(e, "strerror", None) or e
        raise UserError(
            f"{path}: cannot be read ({reason}); expected a .jsonl of problems"
        ) from None
    tasks = []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                tasks.append(checked_task(json.loads(line), f"{path}:{number}"))
        except (ValueError, LookupError, TypeError, AttributeError) as e:
            reason = f"no {e}" if isinstance(e, KeyError) else str(e)
            raise UserError(f"{path}:{number}: {reason}; {FIELDS}") from None
    names = collections.Counter(task.name for task in tasks)
    if not tasks:
        raise UserError(
            f"{path}: no problem in it; expected a JSON object a line with task_id, prompt, "
            "entry_point and test"
        )
    name, count = names.most_common(1)[0]
    if count > 1:
        raise UserError(f"{path}: task_id {name} is there {count} times; expected each once")
    return tasks


def checked_task(row, place):
    """The task of a row of a user's file, whose tests compile and assert something.

    place: file and line, for messages.
    Raises ValueError, KeyError, TypeError or AttributeError, whichever the row leads to.
    """
    solution = row.get("canonical_solution", "").rstrip("\n")
    if solution and not solution.startswith("\n"):
        solution = "\n" + solution
    stops = row.get("stops", CODEX_STOPS)
    if isinstance(stops, str) or not all(isinstance(stop, str) and stop for stop in stops):
        raise ValueError("stops is a list of texts, none of them empty")
    task = Task(
        str(row["task_id"]),
        row["prompt"].rstrip("\n"),
        solution,
        row["test"],
        row["entry_point"],
        stops=tuple(stops),
    )
    check_job(job_of(task, ""), place)
    prepare(task.tests, task.entry_point.strip(), preamble_of(task))
    return task
