"""Benchmarks.

Files and their hashes, prompts, tests that are rewritten, references and mutants in the grader.

What needs the data is skipped where it is not beside the project; a sample of the references is
graded, all of them with RA3_ALL=1.
"""

import base64
import gzip
import hashlib
import importlib.util
import json
import os
import pickle
import re
import zlib

import pytest

from benchmarks import __main__ as benchmarks_command
from benchmarks import files, suites
from benchmarks.files import BESIDE, FILES, HUMAN_EVAL, read_rows
from benchmarks.humaneval_mbpp import CODEX_STOPS, mbpp_task, mbpp_tests, plus_tests
from benchmarks.leetcode import after
from benchmarks.livecodebench import private_tests
from benchmarks.mutation import mutants, mutation_scores
from benchmarks.suites import gradable, load
from config import UserError
from corpus.decontaminate import CHECKED
from corpus.problems import TRAINING
from grader.grade import Job, grade
from tasks import Task, job_of, program_of, until_stop

needs_data = pytest.mark.skipif(
    not os.path.isdir(BESIDE), reason=f"the data is not there: {BESIDE}"
)
COUNTS = {
    "humaneval": 164,
    "humaneval+": 164,
    "mbpp": 500,
    "mbpp-3shot": 500,
    "mbpp-train": 374,
    "mbpp-all": 974,
    "mbpp-sanitized": 427,
    "mbpp+": 378,
    "leetcode": 200,
    "leetcode-train": 1889,
    "leetcode-v0.3.1": 228,
    "livecodebench": 858,
    "livecodebench-2024-08": 271,
    "codeforces": 344,
}


def verdicts(jobs):
    return [result.verdict for result in grade(jobs, workers=1)]


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


# ---------------------------------------------------------------- files


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """Writes records as one of the known files, whose hash becomes theirs -> the folder."""

    def write(file, rows):
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        known = FILES[file]._replace(sha256=hashlib.sha256(text).hexdigest(), items=len(rows))
        monkeypatch.setitem(FILES, file, known)
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(text) if file.endswith(".gz") else text)
        return str(tmp_path)

    return write


def test_missing_file_names_its_origin(tmp_path, monkeypatch):
    """Every suite without its files.

    One line with the file, the repository, the commit and what to do.
    """
    monkeypatch.setattr(files, "HUMAN_EVAL", "")
    for name, suite in suites.SUITES.items():
        names = suite.files
        with pytest.raises(UserError) as error:
            load(name, str(tmp_path))
        text = one_line(error)
        if names and not name.startswith("livecodebench"):  # those read LeetCodeDataset first
            known = FILES[names[0]]
            assert names[-1] in text or names[0] in text
            assert known.repository in text and known.commit in text and "--data-dir" in text


MBPP = "mbpp/mbpp.jsonl.gz"
ROW = {
    "task_id": 12,
    "text": "Add one.",
    "code": "import math\r\ndef add(x):\r\n    # a note\r\n    return x + 1",
    "test_setup_code": "",
    "test_list": ["assert add(1) == 2", "assert add(-1) == 0", "assert add(5) == 6"],
    "challenge_test_list": [],
}


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda data: data[:-20], "cannot be read"),
        (lambda data: b"\x1f\x8b" + data[2:30], "cannot be read"),
        (
            lambda data: gzip.compress(gzip.decompress(data).replace(b"Add one", b"Add two")),
            "sha256 of its text is",
        ),
        (lambda data: b"", "sha256 of its text is"),
        (lambda data: b"<html>not found</html>", "sha256 of its text is"),
    ],
)
def test_bad_file(pretend, damage, words):
    """Truncated, damaged, changed, empty and other files.

    One line with the file, what is wrong and where it can be had.
    """
    folder = pretend(MBPP, [ROW])
    path = os.path.join(folder, MBPP)
    with open(path, "rb") as f:
        data = f.read()
    with open(path, "wb") as f:
        f.write(damage(data))
    with pytest.raises(UserError) as error:
        load("mbpp", folder)
    text = one_line(error)
    assert words in text and path in text and FILES[MBPP].repository in text
    if "sha256" in words:
        assert FILES[MBPP].sha256 in text


def test_plain_file_will_do(pretend):
    """A file that is not packed, under its name without .gz."""
    folder = pretend(MBPP, [ROW])
    path = os.path.join(folder, MBPP)
    with gzip.open(path) as f, open(path.removesuffix(".gz"), "wb") as out:
        out.write(f.read())
    os.remove(path)
    assert [task.name for task in load("mbpp", folder)] == ["Mbpp/12"]


def test_unknown_suite():
    with pytest.raises(
        UserError,
        match=(
            r"suite humanevol: expected one of humaneval, humaneval\+, .*did you "
            r"mean humaneval\?"
        ),
    ):
        load("humanevol")


@needs_data
def test_hashes_and_items_of_the_manifest():
    """The table against the manifest beside the data, and the records that are read against the
    number of items.
    """
    with open(os.path.join(BESIDE, "MANIFEST.json")) as f:
        manifest = {entry["file"]: entry for entry in json.load(f)}
    for file, (sha, items, repo, commit, *_) in FILES.items():
        assert (sha, items) == (manifest[file]["sha256_plain"], manifest[file]["items"])
        assert repo in manifest[file]["repo"] and commit in manifest[file]["commit"]
        assert len(read_rows(file)) == items


# ---------------------------------------------------------------- a user's file

OWN = {
    "task_id": "double",
    "prompt": "def double(x):\n",
    "entry_point": "double",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}


def test_own_file(tmp_path):
    """Two problems with all fields and with the least, blank lines between.

    Prompts and solutions by convention 1, stop sequences, verdicts.
    """
    full = {
        **OWN,
        "task_id": 7,
        "test": "assert double(2) == 4\nassert double(0) == 0",
        "canonical_solution": "    return 2 * x\n",
        "stops": ["\n\n", "END"],
    }
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(OWN) + "\n\n  \n" + json.dumps(full))
    least, most = load(str(path))
    check_tasks([least, most])
    assert (least.name, least.prompt, least.solution, least.stops) == (
        "double",
        "def double(x):",
        "",
        CODEX_STOPS,
    )
    assert (most.name, most.prompt, most.solution, most.stops) == (
        "7",
        "def double(x):",
        "\n    return 2 * x",
        ("\n\n", "END"),
    )
    assert verdicts(
        [
            job_of(task, text)
            for task in (least, most)
            for text in ("\n    return 2 * x", "\n    return x * x", "\n    return x")
        ]
    ) == ["passed", "passed", "wrong_answer", "passed", "passed", "wrong_answer"]


def without(key):
    return json.dumps({k: v for k, v in OWN.items() if k != key})


BAD_LINES = {
    '{"task_id": "x", "prompt"': "Expecting",
    '["a list"]': "",
    '"a text"': "",
    "null": "",
    without("task_id"): "no 'task_id'",
    without("prompt"): "no 'prompt'",
    without("entry_point"): "no 'entry_point'",
    without("test"): "no 'test'",
    json.dumps({**OWN, "prompt": 3}): "",
    json.dumps({**OWN, "entry_point": None}): "",
    json.dumps({**OWN, "test": ["assert True"]}): "no tests",
    json.dumps({**OWN, "canonical_solution": None}): "",
    json.dumps({**OWN, "test": "  \n"}): "no tests: everything would pass",
    json.dumps({**OWN, "test": "double(2)"}): "assert nothing",
    json.dumps({**OWN, "entry_point": " "}): "needs an entry_point",
    json.dumps({**OWN, "test": "assert double(2) =="}): "do not compile",
    json.dumps({**OWN, "entry_point": "double("}): "do not compile",
    json.dumps({**OWN, "stops": "\n\n"}): "stops",
    json.dumps({**OWN, "stops": [""]}): "stops",
    json.dumps({**OWN, "stops": [1]}): "stops",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_bad_line_of_an_own_file(line, tmp_path):
    """A bad third line after a good one and a blank.

    One line with the file, its number, what is wrong and what was expected.
    """
    path = tmp_path / "own.jsonl"
    path.write_text(f"{json.dumps(OWN)}\n\n{line}\n")
    with pytest.raises(UserError) as error:
        load(str(path))
    text = one_line(error)
    assert (
        text.startswith(f"{path}:3: ")
        and BAD_LINES[line] in text
        and "expected a JSON object with task_id, prompt, entry_point and test" in text
    )


def test_bad_own_file(tmp_path):
    """No file, a folder, bytes that are no text, no problem, and a problem that is there twice."""
    path = tmp_path / "own.jsonl"
    for content, words in (
        (None, "cannot be read (No such file"),
        (b"\xff\xfe", "cannot be read ("),
        (b"\n \n", "no problem in it"),
        (b"", "no problem in it"),
        (
            (
                f"{json.dumps(OWN)}\n{json.dumps({**OWN, 'task_id': 'other'})}\n{json.dumps(OWN)}"
            ).encode(),
            "task_id double is there 2 times",
        ),
    ):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError) as error:
            load(str(path))
        assert one_line(error).startswith(f"{path}: ") and words in one_line(error)
    with pytest.raises(UserError, match="cannot be read"):
        os.mkdir(tmp_path / "folder.jsonl")
        load(str(tmp_path / "folder.jsonl"))


# ---------------------------------------------------------------- tasks


def check_tasks(tasks):
    """Conventions 1 and 2, and names that are told apart."""
    assert len({task.name for task in tasks}) == len(tasks)
    for task in tasks:
        assert (
            task.prompt
            and not task.prompt.endswith("\n")
            and (not task.solution or task.solution.startswith("\n"))
        ), task.name
        assert not any(stop.strip().startswith("#") or stop == "\n" for stop in task.stops), (
            task.name
        )
        assert "sortedcontainers" not in (task.prefix or ""), (
            task.name
        )  # no program needs it, only some references do
        assert task.kind == "stdio" or task.entry_point and "import numpy" not in task.tests, (
            task.name
        )
        assert (
            until_stop("\n    # a thought\n    return 1\n# another\n", task.stops)
            == "\n    # a thought\n    return 1\n# another\n"
        )


def test_humaneval_comes_with_the_project(tmp_path):
    """164 problems; prompts lose their last newline; every 8th canonical solution passes."""
    with gzip.open(HUMAN_EVAL) as f:
        read = {row["task_id"]: row for row in map(json.loads, f)}
    assert "MIT" in open(os.path.join(os.path.dirname(HUMAN_EVAL), "HumanEval.LICENSE")).read()
    tasks = load("humaneval", str(tmp_path))
    check_tasks(tasks)
    assert [task.name for task in tasks] == list(read) and len(tasks) == 164
    assert all(
        task.prompt == read[task.name]["prompt"].rstrip("\n")
        and task.tests == read[task.name]["test"]
        for task in tasks
    )
    assert verdicts([job_of(task, task.solution) for task in tasks[::8]]) == ["passed"] * 21
    assert set(verdicts([job_of(task, "\n    return None") for task in tasks[::8]])) <= {
        "wrong_answer",
        "exception",
    }


@needs_data
@pytest.mark.parametrize("suite", COUNTS)
def test_counts(suite):
    tasks, without = gradable(suite)
    check_tasks(tasks)
    assert len(tasks) == COUNTS[suite]
    whole = {
        "codeforces": 408,
        "leetcode-train": 1890,
        "livecodebench": 879,
        "livecodebench-2024-08": 279,
    }.get(suite, COUNTS[suite])
    assert len(tasks) + sum(map(len, without.values())) == whole
    assert not {task.name for task in tasks} & {
        name for names in without.values() for name in names
    }


@needs_data
@pytest.mark.parametrize("suite", benchmarks_command.WITH_REFERENCES)
def test_references(suite):
    """Every 20th reference that is not slow passes.

    With RA3_ALL=1 every one, LeetCode's where sortedcontainers is installed.
    """
    tasks, everything = (
        [task for task in load(suite) if task.solution],
        os.environ.get("RA3_ALL") == "1",
    )
    if not importlib.util.find_spec("sortedcontainers"):
        tasks = [task for task in tasks if "import Sorted" not in task.solution]
    sample = tasks if everything else [task for task in tasks[::20] if not task.time_limit]
    found = verdicts([job_of(task, task.solution, 4) for task in sample])
    assert {
        task.name: verdict
        for task, verdict in zip(sample, found, strict=True)
        if verdict != "passed"
    } == {}
    assert len(sample) >= (len(tasks) if everything else len(tasks) // 25)


@needs_data
def test_prompts():
    """Prompts of some problems against texts put together by hand."""
    mbpp, shots = load("mbpp"), load("mbpp-3shot")
    assert mbpp[0].prompt == (
        '"""\nWrite a python function to remove first and last occurrence '
        "of a given character from the string.\n"
        'assert remove_Occ("hello","l") == "heo"\n"""'
    )
    assert (mbpp[0].name, mbpp[0].entry_point, mbpp[-1].name) == (
        "Mbpp/11",
        "remove_Occ",
        "Mbpp/510",
    )
    first = (
        "You are an expert Python programmer, and here is your task: Write a "
        "function to find the similar elements from the given two "
        "tuple lists. Your code should pass these tests:\n\n"
        "assert similar_elements((3, 4, 5, 6),(5, 7, 4, 10)) == (4, 5)\n"
    )
    assert all(
        task.prompt.startswith(first)
        and task.prompt.endswith("\n[BEGIN]")
        and task.prompt.count("[DONE]\n\nYou are") == 3
        for task in shots
    )
    assert all("\r" not in task.prompt + task.solution + task.tests for task in mbpp + shots)
    assert (
        program_of(shots[0], "\nx = 1") == "\nx = 1\n"
        and program_of(mbpp[0], "\nx = 1") == mbpp[0].prompt + "\nx = 1\n"
    )
    task = load("leetcode")[3]
    assert task.prompt.startswith('"""\nYou are given a binary string s that contains')
    assert task.prompt.endswith(
        '"""\nclass Solution:\n    def maximumOddBinaryNumber(self, s: str) -> str:'
    )
    assert task.entry_point == "Solution().maximumOddBinaryNumber" and task.solution.startswith(
        '\n        cnt = s.count("1")\n'
    )
    assert not any(
        "Tags:" in task.prompt or "Output Format:" not in task.prompt for task in load("codeforces")
    )


def test_mbpp_task(pretend):
    """One synthetic problem.

    Line ends, prompt, program, tests, and what the grader says to right and wrong programs.
    """
    (task,) = load("mbpp", pretend(MBPP, [ROW, {**ROW, "task_id": 600}]))
    assert (
        task.prompt == '"""\nAdd one.\nassert add(1) == 2\n"""'
        and task.solution == "\nimport math\ndef add(x):\n    # a note\n    return x + 1"
    )
    assert task.tests == (
        "def check(candidate):\n    add = candidate\n    assert add(1) == 2\n"
        "    assert add(-1) == 0\n    assert add(5) == 6\n"
    )
    right, wrong = "\ndef add(x):\n    return 1 + x", "\ndef add(x):\n    return abs(x) + 1"
    assert verdicts(
        [job_of(task, c) for c in (task.solution, right, wrong, "\n", "\ndef add(")]
    ) == ["passed", "passed", "wrong_answer", "exception", "syntax_error"]


def test_mbpp_tests_that_need_classes():
    """Tests that take a class from the program stay plain text; setup code comes after the program.

    Modules are imported.
    """
    row = {
        "task_id": 1,
        "code": "class Node:\n    def __init__(self, x): self.x = x\ndef value(n): return n.x",
        "test_setup_code": "n = Node(3)",
        "test_list": ["assert value(n) == 3"],
    }
    assert mbpp_tests(row) == "n = Node(3)\nassert value(n) == 3"
    task = mbpp_task(row, "x = 1")
    assert verdicts(
        [job_of(task, task.solution), job_of(task, task.solution.replace("n.x", "n.x + 1"))]
    ) == ["passed", "wrong_answer"]
    row = {
        "task_id": 1,
        "code": "import sys\ndef size(x): return sys.getsizeof(x)",
        "test_list": ["assert size(1) == sys.getsizeof(1)"],
    }
    assert mbpp_tests(row) == (
        "def check(candidate):\n    import sys\n    size = candidate\n"
        "    assert size(1) == sys.getsizeof(1)\n"
    )


# ---------------------------------------------------------------- plus tests

ORIGIN = """import numpy as np

def is_floats(x) -> bool:
    return isinstance(x, float)

def assertion(out, exp, atol):
    exact_match = out == exp
    assert exact_match

{reference}
def check(candidate):
    inputs = {inputs}
{results}    for i, (inp, exp) in enumerate(zip(inputs, results)):
        assertion(candidate(*inp), exp, {atol})
"""


def plus(name, inputs, results, body, atol=0, reference=""):
    """The Job of `def f(x)` with a body, of tests made from an OriginFmt text."""
    results = f"    results = {results}\n" if results is not None else ""
    text = ORIGIN.format(inputs=inputs, results=results, atol=atol, reference=reference)
    return Job(f"import math\ndef f(*x):\n    {body}", plus_tests(name, text), "f")


def wrong_verdicts(cases):
    """[(program, verdict, what was expected)] of the pairs (Job, verdict) that go wrong."""
    results = verdicts([job for job, _ in cases])
    return [
        (job.program, verdict, expected)
        for (job, expected), verdict in zip(cases, results, strict=True)
        if verdict != expected
    ]


def test_plus_comparison():
    """EvalPlus's rule on [[1], [2]].

    Equal, or floats within 1e-6 (or the problem's tolerance) and of one type and length.
    """
    cases = [
        ([1, 2], "return x[0]", 0, "passed"),
        ([1, 3], "return x[0]", 0, "wrong_answer"),
        ([1, 2], "return float(x[0])", 0, "passed"),
        ([1.0, 2.0], "return x[0] + 1e-7", 0, "passed"),
        ([1.0, 2.0], "return x[0] + 1e-5", 0, "wrong_answer"),
        ([1, 2], "return x[0] + 1e-7", 0, "wrong_answer"),  # tolerance for floats only
        ([1.0, 2.0], "return x[0] + 5e-5", 1e-4, "passed"),
        ([1.0, 2.0], "return x[0] + 5e-4", 1e-4, "wrong_answer"),
        ([1.0, 2.0], "return [x[0]]", 0, "wrong_answer"),
        ([1.0, 2.0], "return str(x[0])", 0, "wrong_answer"),
        ([[1.0], [2.0]], "return [x[0] + 1e-8]", 0, "passed"),
        ([[1.0], [2.0]], "return [x[0], x[0]]", 0, "wrong_answer"),
        ([[], []], "return [5.0]", 0, "wrong_answer"),  # numpy would broadcast this to nothing
        ([(1, 2), (2, 4)], "return x[0], 2 * x[0]", 0, "passed"),
        ([(1, 2), (2, 4)], "return [x[0], 2 * x[0]]", 0, "wrong_answer"),
        ([float("inf"), 2.0], "return math.inf if x[0] == 1 else 2.0", 0, "passed"),
        ([float("inf"), 2.0], "return 2.0", 0, "wrong_answer"),
        ([1.0, 2.0], "return math.inf", 0, "wrong_answer"),
        ([1.0, 2.0], "return math.nan", 0, "wrong_answer"),
    ]
    jobs = [
        (plus("HumanEval/0", [[1], [2]], results, body, atol), verdict)
        for results, body, atol, verdict in cases
    ]
    assert wrong_verdicts(jobs) == []


def test_plus_oracles():
    """The problems with an oracle of their own.

    A root by its value, order that does not count, found or not, two readings of a text.
    """
    cases = [
        # x - 6 = 0; the recorded result is not asked for
        ("HumanEval/32", [[[-6, 1]]], [5.0], "return 6.0", "passed"),
        ("HumanEval/32", [[[-6, 1]]], [5.0], "return 5.9", "wrong_answer"),
        ("Mbpp/2", [[1]], [(4, 5)], "return 5, 4", "passed"),
        ("Mbpp/2", [[1]], [(4, 5)], "return 5, 5", "wrong_answer"),
        (
            "Mbpp/737",
            [["a"], ["b"]],
            [True, False],
            "return 7 if x[0] == 'a' else None",
            "passed",
        ),
        ("Mbpp/737", [["a"], ["b"]], [True, False], "return x[0] == 'a'", "passed"),
        ("Mbpp/737", [["a"], ["b"]], [True, False], "return None", "wrong_answer"),
        # 9 and 10: |9 - 1|, or |0 - 1| + |9 - 0|
        ("Mbpp/558", [[9, 10]], [8], "return 8", "passed"),
        ("Mbpp/558", [[9, 10]], [8], "return 10", "passed"),
        ("Mbpp/558", [[9, 10]], [8], "return 9", "wrong_answer"),
        ("Mbpp/581", [[3, 4]], [33], "return 33", "passed"),
        ("Mbpp/581", [[3, 4]], [33], "return 35", "passed"),
        ("Mbpp/581", [[3, 4]], [33], "return 34", "wrong_answer"),
    ]
    assert wrong_verdicts([(plus(*case), verdict) for *case, verdict in cases]) == []


def test_plus_reference_function():
    """No results but a reference.

    It sees its own copy of an input, before a program that changes it.
    """
    reference = (
        "from math import sqrt\ndef ref_func(xs):\n    xs.append(1)\n"
        "    return len(xs) + int(sqrt(4))\n\n"
    )
    cases = [
        (plus("HumanEval/14", [[[5]]], None, body, reference=reference), verdict)
        for body, verdict in (
            ("x[0].clear(); return 4", "passed"),
            ("x[0].clear(); return 3", "wrong_answer"),
        )
    ]
    assert wrong_verdicts(cases) == []


# ---------------------------------------------------------------- LeetCode and contests

STARTER = "class Solution:\n    def twice(self, xs: List[int], k: int) -> int:"


@pytest.mark.parametrize(
    "code, wanted",
    [
        (
            STARTER + "\n        # a note\n        return 2 * k\n",
            "\n        # a note\n        return 2 * k",
        ),
        (
            (
                "class Solution:\n    def twice(\n        self, xs: List[int], k: int\n"
                "    ) -> int:\n        return 2 * k"
            ),
            "\n        return 2 * k",
        ),
        (
            "from heapq import heappush\n\n\n# Definition\nclass Heap:\n    pass\n\n\n"
            + STARTER
            + "\n        return 2 * k",
            "\n        return 2 * k\n\n\nfrom heapq import heappush\n\n\nclass Heap:\n    pass",
        ),
        (
            (
                "class Solution:\n  def twice(self, xs, k):\n    if k:\n"
                "      return 2 * k\n    return 0"
            ),
            "\n        if k:\n            return 2 * k\n        return 0",
        ),
        (
            STARTER + "\n        return self.f(k)\n\n    def f(self, k):\n        return 2 * k",
            "\n        return self.f(k)\n\n    def f(self, k):\n        return 2 * k",
        ),
    ],
)
def test_after_the_starter(code, wanted):
    """References, cut by hand to what follows the starter code.

    The program does what the reference does.
    """
    assert after(STARTER, code, "twice") == wanted
    scope = {}
    exec("from typing import List\n" + STARTER + wanted, scope)
    assert scope["Solution"]().twice([], 4) == 8


def test_after_another_method():
    """A reference whose method is not the first of the class, or has other arguments.

    All of it, after a starter that does nothing.
    """
    for code in (
        "class Solution:\n    k = 2\n    def twice(self, xs, k):\n        return 2 * k",
        "class Solution:\n    def twice(self, ys, n):\n        return 2 * n",
    ):
        assert after(STARTER, code, "twice") == "\n        pass\n\n\n" + code


CASES = [
    {"input": "[1, 2]\n3", "output": "9", "testtype": "functional"},
    {"input": "[]\n0", "output": "0", "testtype": "functional"},
]
OFFICIAL = {
    "question_title": "Sum",
    "question_content": 'Add """all""" of it.',
    "platform": "leetcode",
    "question_id": "77",
    "contest_id": "1",
    "contest_date": "2024-09-01T00:00:00",
    "starter_code": "class Solution:\n    def total(self, xs: List[int], k: int) -> int:\n        ",
    "difficulty": "easy",
    "public_test_cases": json.dumps(CASES[:1]),
    "metadata": '{"func_name": "total"}',
}


def packed(text):
    return base64.b64encode(zlib.compress(pickle.dumps(text))).decode()


def test_private_tests():
    """JSON, and the packed form, written here; nothing there is no test."""
    assert (
        private_tests(json.dumps(CASES)) == private_tests(packed(json.dumps(CASES))) == CASES
        and private_tests("[]") == []
    )


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_private_tests_run_nothing(tmp_path):
    """A pickle that would make a folder is refused, and makes none.

    So are damaged texts, and pickles of other things.
    """
    path = str(tmp_path / "made")
    with pytest.raises(UserError, match="it asks for (posix|os|nt).mkdir"):
        private_tests(packed(Evil(path)))
    assert not os.path.exists(path)
    junk = base64.b64encode(zlib.compress(b"\x80\x04junk")).decode()
    for text in (
        "",
        "!!",
        packed(json.dumps(CASES))[:-9],
        packed(12),
        packed(["[]"]),
        packed("{"),
        junk,
    ):
        with pytest.raises(UserError) as error:
            private_tests(text)
        assert one_line(error).startswith("private_test_cases cannot be read")


def test_livecodebench_official(tmp_path):
    """Two records as the project ships them, functional and stdin, with private tests that notice
    what the public ones let pass.
    """
    stdin = {
        **OFFICIAL,
        "question_id": "abc_1",
        "starter_code": "",
        "metadata": "{}",
        "public_test_cases": json.dumps([{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]),
        "private_test_cases": packed(
            json.dumps([{"input": "5 5\n", "output": "10\n", "testtype": "stdin"}])
        ),
    }
    (tmp_path / "livecodebench").mkdir()
    for i, rows in (
        ("", [{**OFFICIAL, "private_test_cases": packed(json.dumps(CASES[1:]))}]),
        (2, [stdin]),
        (3, []),
        (4, []),
        (5, []),
    ):
        (tmp_path / "livecodebench" / f"test{i}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows)
        )
    function, script = load("livecodebench-official", str(tmp_path))
    check_tasks([function, script])
    assert (function.name, script.name, script.kind) == (
        "LiveCodeBench/77",
        "LiveCodeBench/abc_1",
        "stdio",
    )
    assert function.prompt == (
        "\"\"\"\nSum\n\nAdd '''all''' of it.\n\"\"\"\nclass Solution:\n"
        "    def total(self, xs: List[int], k: int) -> int:"
    )
    body = "\n        return k * (sum(xs){})"
    assert verdicts(
        [
            job_of(function, body.format("")),
            job_of(function, body.format(" + (k == 0)")),
            job_of(function, "\n        return 9"),
            job_of(script, "\nprint(sum(map(int, input().split())))"),
            job_of(script, "\nprint(3)"),
        ]
    ) == ["passed", "passed", "wrong_answer", "passed", "wrong_answer"]
    (tmp_path / "livecodebench" / "test2.jsonl").write_text(json.dumps(stdin)[:-5])
    with pytest.raises(UserError, match="test2.jsonl is damaged"):
        load("livecodebench-official", str(tmp_path))


def test_codeforces_that_cannot_be_graded(pretend):
    """Statements written for the purpose: which are left out, and why.

    Letter case and `any` in the story do not count.
    """
    texts = {
        "Pick any pair.\n\nOutput Format:\nPrint the sum. You may print YES in any case.": None,
        "This is an interactive problem.\n\nOutput Format:\nFlush.": "interactive",
        "Guess.\n\nOutput Format:\n\n\nTime Limit: 1 ms": "interactive",
        (
            "Story.\n\nOutput Format:\nIf there are multiple solutions, print any of them."
        ): "several right answers",
        "Story.\n\nOutput Format:\nThe indices in any order.": "several right answers",
        (
            "Story.\n\nOutput Format:\n"
            "Your answer passes if its absolute or relative error is below 1e-6."
        ): "answers within a tolerance",
    }
    folder = pretend(
        "rllm/codeforces_test.json.gz",
        [
            {
                "problem": text + "\n\nTags:\n['dp', 'greedy']\n\nTime Limit: 1000 ms\n",
                "tests": [{"input": "1", "output": "2"}],
            }
            for text in texts
        ],
    )
    tasks, without = gradable("codeforces", folder)
    reasons = {name: reason for reason, names in without.items() for name in names}
    assert [reasons.get(f"Codeforces/{i}") for i in range(len(texts))] == list(texts.values())
    assert (
        [task.name for task in tasks] == ["Codeforces/0"]
        and "Tags" not in tasks[0].prompt
        and "dp" not in tasks[0].prompt
    )
    assert verdicts(
        [job_of(tasks[0], "\nprint(int(input()) + 1)"), job_of(tasks[0], "\nprint(1)")]
    ) == ["passed", "wrong_answer"]


# ---------------------------------------------------------------- mutants

SUM = (
    "def total(xs):\n    '''Doc 1.'''\n    s = 0\n    for x in xs:\n"
    "        if x > 2:\n            s += x\n    return s\n"
)


def test_mutants():
    """All mutants of a small function against a list by hand.

    The same seed draws the same, another other ones; each differs in one place.
    """
    changes = {
        ("s = 0", "s = 1"),
        ("s = 0", "s = -1"),
        ("x > 2", "x >= 2"),
        ("x > 2", "x <= 2"),
        ("x > 2", "x > 3"),
        ("x > 2", "x > 1"),
        ("if x > 2", "if not x > 2"),
        ("s += x", "s -= x"),
        ("return s", "return None"),
        ("    s = 0", "    pass"),
        ("            s += x", "            pass"),
        ("        if x > 2:\n            s += x", "        pass"),
        ("    for x in xs:\n        if x > 2:\n            s += x", "    pass"),
    }
    whole = SUM.replace("'''Doc 1.'''", '"""Doc 1."""').rstrip()
    other = "def other():\n    return 1 + 1\n\n"
    assert {source for source, _ in mutants(SUM, "total", 99)} == {
        whole.replace(a, b) for a, b in changes
    }
    assert all(
        source.startswith(other) for source, _ in mutants(other + SUM, "total", 99)
    )  # the entry point's code only
    assert (
        mutants(SUM, "total", 5, 1) == mutants(SUM, "total", 5, 1) != mutants(SUM, "total", 5, 2)
        and len(mutants(SUM, "total", 5)) == 5
    )


def test_mutants_are_noticed(tmp_path, capsys):
    """Ten mutants each of five problems of HumanEval.

    The tests notice most; the verdicts are those of the grader.
    """
    tasks = load("humaneval", str(tmp_path))[:5]
    jobs = [
        Job(source, task.tests, task.entry_point, time_limit=3)
        for task in tasks
        for source, _ in mutants(program_of(task, task.solution), task.entry_point, 10)
    ]
    found = verdicts(jobs)
    assert (
        len(jobs) >= 30
        and found.count("passed") <= len(jobs) // 5
        and {"wrong_answer"} <= set(found)
    )


def test_mutation_scores(pretend, capsys):
    """Two references, one of which fails its own tests and does not count.

    What is printed against the verdicts that are returned.
    """
    folder = pretend(
        MBPP,
        [
            {**ROW, "code": SUM, "test_list": ["assert total([1, 2, 3]) == 3"] * 3},
            {**ROW, "task_id": 13, "code": "def add(x):\n    return x"},
        ],
    )
    pretend("mbpp_plus/MbppPlus-v0.2.0.jsonl.gz", [])
    pretend("mbpp_plus/MbppPlus-OriginFmt-v0.2.0.jsonl.gz", [])
    verdict = mutation_scores(
        {name: load(name, folder) for name in ("mbpp", "mbpp+")}, n=20, show=1, workers=1
    )["mbpp"]
    text = capsys.readouterr().out
    noticed = sum(v != "passed" for v in verdict.values())
    assert (
        len(verdict) == 13
        and f"notice {noticed} of 13" in text
        and "left out, as the reference fails: Mbpp/13" in text
    )
    for (name, source, _), v in verdict.items():
        assert name == "Mbpp/12" and (v == "passed") == (outcome(source, [1, 2, 3]) == 3)


def outcome(source, xs):
    scope = {}
    exec(source, scope)
    try:
        return scope["total"](xs)
    except Exception:
        return None


# ---------------------------------------------------------------- command line


def test_references_table(pretend, capsys):
    """A right and a wrong reference: the table's row names the wrong one."""
    folder = pretend(MBPP, [ROW, {**ROW, "task_id": 13, "code": "def add(x):\n    return x"}])
    benchmarks_command.main(["--references", "mbpp", "--data-dir", folder, "--workers", "1"])
    assert re.search(
        r"^mbpp +2 +2 +1 +\d+   Mbpp/13 \(wrong_answer\)$", capsys.readouterr().out, re.M
    )


def test_list(pretend, capsys):
    """Suites that are there and suites that are not, a line each."""
    row = {
        "task_id": 2,
        "prompt": "Add one.",
        "code": ROW["code"],
        "test_imports": [],
        "test_list": ROW["test_list"],
    }
    benchmarks_command.main(["--list", "--data-dir", pretend("mbpp/sanitized-mbpp.json", [row])])
    lines = capsys.readouterr().out.strip().split("\n")
    assert len(lines) == 2 + len(suites.SUITES)
    cells = {line.split("|")[1].strip(): re.sub(" +", " ", line) for line in lines}
    assert cells["mbpp-sanitized"] == (
        "| mbpp-sanitized | 1 | 1 | yes | | yes | mrigankpawagi/PropertyEval b2be813d (CC-BY-4.0) |"
    )
    assert cells["mbpp-train"].startswith("| mbpp-train | - | - | | yes | | ")
    assert re.match(r"\| leetcode \| - \| - .*not usable: .*is not there", cells["leetcode"])


def test_list_names_no_folder_of_the_machine(monkeypatch, capsys):
    """Where the data is not there, its folder is named as seen from here."""
    monkeypatch.setattr("benchmarks.files.BESIDE", os.path.join(os.getcwd(), "..", "nowhere"))
    benchmarks_command.main(["--list"])
    table = capsys.readouterr().out
    assert "not usable: ../nowhere/livecodebench/test.jsonl is not there" in table
    assert len(re.findall(r"not usable: \.\./nowhere/", table)) == len(suites.SUITES) - 1
    assert os.path.dirname(os.getcwd()) not in table


def test_registries_follow_from_the_records():
    """What may be trained on is checked against what is evaluated; names lead to suites."""
    for name, suite in suites.SUITES.items():
        assert all(file in FILES for file in suite.files)
        assert set(suite.also) <= set(suites.SUITES)
        if suite.trained_as:
            assert suites.SUITES[suite.trained_as].trained_as == suite.trained_as
            assert not suites.SUITES[suite.trained_as].checked
        assert name in benchmarks_command.WITH_REFERENCES or not suite.references
    assert TRAINING == {name: name for name in ("leetcode-train", "mbpp-train")} | {
        "leetcode": "leetcode-train"
    }
    assert {"humaneval", "mbpp+", "livecodebench", "codeforces"} < set(CHECKED)


def test_a_new_suite_is_one_record(monkeypatch, capsys):
    """A record of SUITES is read, listed, limited in time, and less what cannot be graded."""
    tasks = [Task(name, "def f():", "\n    return 1", "assert f() == 1", "f") for name in "abcd"]
    record = suites.Suite(
        lambda data_dir: tasks,
        (),
        slow={"b": 5.0},
        not_gradable={"c": "it is random"},
        doubt=lambda task: "it is odd" if task.name == "d" else "",
    )
    for module in (suites, benchmarks_command):  # to list all suites takes long
        monkeypatch.setattr(module, "SUITES", {"new": record})
    assert [(task.name, task.time_limit) for task in load("new")] == [("a", 0.0), ("b", 20.0)]
    assert gradable("new")[1] == {"it is random": ["c"], "it is odd": ["d"]}
    benchmarks_command.list_suites()
    assert re.search(r"\| new +\| 4 +\| 2 .*1 it is random; 1 it is odd", capsys.readouterr().out)


@pytest.mark.parametrize(
    "argv, words",
    [
        ([], "nothing to do"),
        (["--referencs"], "did you mean --references"),
        (["--references", "nosuch"], r"suite nosuch: expected one of humaneval, .*jsonl file$"),
    ],
)
def test_command_line_mistakes(argv, words):
    with pytest.raises(UserError, match=words):
        benchmarks_command.main(argv)
