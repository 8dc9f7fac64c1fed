"""Codeforces as tasks: prompts, stop sequences, tests. `suites.py` says what holds for all suites."""

import re

from benchmarks.files import read_rows
from benchmarks.leetcode import statement
from tasks import Task

SCRIPT_STOPS = ('\n"""', "\n```")


def codeforces(data_dir=""):
    """rllm's 408 Codeforces problems (from CodeElo, arXiv 2501.01257), **sample tests only** (378 have one), no references. The statement as a
    docstring, without its tags, which tell the method; a program that reads stdin. Answers are compared as they stand, so where a statement
    allows yEs for YES we do not. See `not_gradable`."""
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
