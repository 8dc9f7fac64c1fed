"""Codeforces as tasks: prompts, stop sequences, tests. suites.py says what holds for all suites."""

import re

from benchmarks.files import read_rows
from benchmarks.leetcode import statement
from tasks import Task

SCRIPT_STOPS = ('\n"""', "\n```")
INTERACTIVE = re.compile(r"\binteractive\b|Output Format: (Time Limit|$)", re.I)
TOLERANCE = re.compile("(absolute|relative) or (absolute|relative)", re.I)
ANY_ANSWER = re.compile(r"\b(print|output|report) any\b(?! case)|\bpick any of them", re.I)
ANY_OUTPUT = re.compile(
    r"\bany (of the|other|such|valid|suitable|permutation|string|fountain|array)\b|in any order"
    r"|multiple (solutions|answers)",
    re.I,
)


def codeforces(data_dir=""):
    """rllm's 408 Codeforces problems (from CodeElo, arXiv 2501.01257), without references.

    **Sample tests only**: 378 problems have one.
    The prompt is the statement as a docstring, without its tags, which tell the method.
    The program reads stdin. Answers are compared as they stand, so where a statement allows yEs for
    YES we do not. See `doubt`.
    """
    return [
        Task(
            f"Codeforces/{i}",
            statement(re.sub(r"Tags:\n\[.*?\]\n", "", row["problem"])),
            "",
            row["tests"],
            "",
            kind="stdio",
            prefix="",
            stops=SCRIPT_STOPS,
        )
        for i, row in enumerate(read_rows("rllm/codeforces_test.json.gz", data_dir))
    ]


def doubt(task):
    """Why a comparison with one expected answer cannot grade a task; "" if it can. By keywords."""
    text = " ".join(task.prompt.split())
    if INTERACTIVE.search(text):
        return "interactive"
    if TOLERANCE.search(text):
        return "answers within a tolerance"
    if ANY_ANSWER.search(text) or ANY_OUTPUT.search(text.split("Output Format:")[-1]):
        return "several right answers"
    return ""
