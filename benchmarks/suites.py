"""Benchmarks: problem sets of the field read into tasks, with the field's own names, prompts, references and tests; a user's own file of problems.

`load("mbpp+")` gives a list of `tasks.Task`: program_of(task, completion) is what the grader runs, and program_of(task, task.solution)
passes. The readers are in the other files of this folder; files.py knows their data.

Conventions of all suites
1. A prompt loses its last newline, so that the model writes newline and indentation as the token it knows, and every solution begins
   with a newline.
2. No stop sequence is a comment. The Codex paper's list has a newline followed by "#", which would cut a thought in column 0; without it a
   model that never comments gets the same score.
3. A program has 10 s for all its tests, or four times its reference's time where that is slow (files.SLOW). EvalPlus has the same factor, per test
   and with at least 4 s. (Fixed 3 s, as some harnesses have them, fail right answers to HumanEval+.)
"""

import difflib
import json
import re

from benchmarks.codeforces import codeforces
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
from config import UserError
from grader.assertions import check_job, prepare
from tasks import Task, job_of

# ---------------------------------------------------------------- suites

SUITES = {  # name: (reader, files)
    "humaneval": (humaneval, ("humaneval/HumanEval.jsonl.gz",)),
    "humaneval+": (humaneval_plus, ("humaneval_plus/HumanEvalPlus-OriginFmt-v0.1.10.jsonl.gz",)),
    "mbpp": (mbpp, ("mbpp/mbpp.jsonl.gz",)),
    "mbpp-3shot": (mbpp_3shot, ("mbpp/mbpp.jsonl.gz",)),
    "mbpp-train": (lambda data_dir: mbpp(data_dir, range(601, 975)), ("mbpp/mbpp.jsonl.gz",)),
    "mbpp-all": (lambda data_dir: mbpp(data_dir, range(1, 975)), ("mbpp/mbpp.jsonl.gz",)),
    "mbpp-sanitized": (mbpp_sanitized, ("mbpp/sanitized-mbpp.json",)),
    "mbpp+": (
        mbpp_plus,
        ("mbpp_plus/MbppPlus-v0.2.0.jsonl.gz", "mbpp_plus/MbppPlus-OriginFmt-v0.2.0.jsonl.gz"),
    ),
    "leetcode": (leetcode, ("leetcode/LeetCodeDataset-v0.2.0-test.jsonl.gz",)),
    "leetcode-train": (
        lambda data_dir: leetcode(data_dir, "v0.2.0-train"),
        ("leetcode/LeetCodeDataset-v0.2.0-train.jsonl.gz",),
    ),
    "leetcode-v0.3.1": (
        lambda data_dir: leetcode(data_dir, "v0.3.1-test"),
        ("leetcode/LeetCodeDataset-v0.3.1-test.jsonl.gz",),
    ),
    "livecodebench": (livecodebench, ("livecodebench/lcb_release_v5_public.jsonl.gz",)),
    "livecodebench-2024-08": (
        lambda data_dir: livecodebench(data_dir, "2024-08"),
        ("livecodebench/lcb_release_v5_public.jsonl.gz",),
    ),
    "livecodebench-official": (livecodebench_official, ()),
    "codeforces": (codeforces, ("rllm/codeforces_test.json.gz",)),
}
ANY_ANSWER = re.compile(r"\b(print|output|report) any\b(?! case)|\bpick any of them", re.I)
ANY_OUTPUT = re.compile(
    r"\bany (of the|other|such|valid|suitable|permutation|string|fountain|array)\b|in any order|multiple (solutions|answers)",
    re.I,
)


def not_gradable(name, tasks):
    """{reason: names} of the tasks that no comparison with one expected answer can grade. A guess by keywords for Codeforces."""
    found = {}
    for task in tasks:
        text = " ".join(task.prompt.split())
        if name == "leetcode-train" and task.name == "word-ladder-ii":
            found.setdefault("its reference fails its tests (order of the result)", []).append(
                task.name
            )
        elif name == "codeforces" and re.search(
            r"\binteractive\b|Output Format: (Time Limit|$)", text, re.I
        ):
            found.setdefault("interactive", []).append(task.name)
        elif name == "codeforces" and re.search(
            "(absolute|relative) or (absolute|relative)", text, re.I
        ):
            found.setdefault("answers within a tolerance", []).append(task.name)
        elif name == "codeforces" and (
            ANY_ANSWER.search(text) or ANY_OUTPUT.search(text.split("Output Format:")[-1])
        ):
            found.setdefault("several right answers", []).append(task.name)
    return found


def gradable(name, data_dir=""):
    """(tasks that can be graded, {reason: names of those that cannot}) of a suite. Raises UserError."""
    if name not in SUITES:
        near = difflib.get_close_matches(name, SUITES, 1)
        raise UserError(
            f"suite {name}: expected one of {', '.join(SUITES)}"
            + (f"; did you mean {near[0]}?" if near else "")
        )
    tasks = SUITES[name][0](data_dir)
    without = not_gradable(name, tasks)
    dropped = {n for names in without.values() for n in names}
    return [task for task in tasks if task.name not in dropped], without


def load(name, data_dir=""):
    """The tasks of a suite that can be graded, or of a .jsonl file (`own`). Raises UserError for an unknown name, and for files that are missing or
    not as we know them."""
    return own(name) if name.endswith(".jsonl") else gradable(name, data_dir)[0]


def own(path):
    """Tasks of a user's file, a JSON line each in HumanEval's format: task_id, prompt, entry_point, test (a check(candidate), or plain assertions), and if
    wanted canonical_solution and stops (default: the Codex paper's but for the comment). Raises UserError with the line's number."""
    tasks = []
    try:
        with open(path) as f:
            lines = f.read().split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(
            f"{path}: cannot be read ({getattr(e, 'strerror', None) or e}); expected a .jsonl of problems"
        ) from None
    for i, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            solution = row.get("canonical_solution", "").rstrip("\n")
            solution = "\n" * (solution[:1] not in ("", "\n")) + solution
            task = Task(
                str(row["task_id"]),
                row["prompt"].rstrip("\n"),
                solution,
                row["test"],
                row["entry_point"],
                stops=tuple(row.get("stops", CODEX_STOPS)),
            )
            if isinstance(row.get("stops"), str) or not all(
                isinstance(stop, str) and stop for stop in task.stops
            ):
                raise ValueError("stops is a list of texts, none of them empty")
            check_job(job_of(task, ""), f"{path}:{i}")
            prepare(task.tests, task.entry_point.strip(), False)
            if "assert" not in task.tests and "raise" not in task.tests:
                raise ValueError("its test asserts nothing: everything would pass")
            tasks.append(task)
        except (ValueError, LookupError, TypeError, AttributeError) as e:
            what = f"no {e}" if isinstance(e, KeyError) else str(e)
            raise UserError(
                f"{path}:{i}: {what}; expected a JSON object with task_id, prompt, entry_point and test"
            ) from None
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise UserError(
            f"{path}: task_id {max(names, key=names.count)} is there {names.count(max(names, key=names.count))} times; expected each once"
        )
    if not tasks:
        raise UserError(
            f"{path}: no problem in it; expected a JSON object a line with task_id, prompt, entry_point and test"
        )
    return tasks
