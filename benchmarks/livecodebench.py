"""LiveCodeBench as tasks: prompts, stop sequences, tests.

`suites.py` says what holds for all suites.
"""

import base64
import io
import json
import os
import pickle
import zlib

from benchmarks.codeforces import SCRIPT_STOPS
from benchmarks.files import data_folder, read_rows
from benchmarks.leetcode import IN_CLASS_STOPS, after, leetcode_parts, statement
from config import UserError
from tasks import Task

# LiveCodeBench puts these before every program (lcb_runner/evaluation/testing_util.py)
LIVECODEBENCH_IMPORTS = "".join(
    f"from {m} import *\n"
    for m in (
        "string re datetime collections heapq bisect copy math random "
        "statistics itertools functools operator io sys json builtins typing"
    ).split()
)
LIVECODEBENCH_IMPORTS += "".join(
    f"import {m}\n"
    for m in (
        "string re datetime collections heapq bisect copy math random "
        "statistics itertools functools operator io sys json"
    ).split()
)
LIVECODEBENCH_IMPORTS += "sys.setrecursionlimit(50000)\n"


def livecodebench(data_dir="", window=""):
    """LiveCodeBench (arXiv 2403.07974): the 879 problems of release v5 that could be found.

    **Public tests only** (1 to 6 a problem): numbers are upper bounds, not comparable with
    published ones.
    window: "2024-08" gives the 279 problems from August 2024 on.
    Functional problems have docstring and starter code, and tests check(candidate). The 293 that
    are in LeetCodeDataset too get its reference, and 98 (all of the window) the tests of v0.3.1.
    Others have the statement as a docstring, then a program that reads stdin.
    LiveCodeBench's imports stand before every program.
    """
    versions = ("v0.2.0-train", "v0.2.0-test", "v0.3.1-test")
    known = {
        row["task_id"]: row
        for v in versions
        for row in read_rows(f"leetcode/LeetCodeDataset-{v}.jsonl.gz", data_dir)
    }
    rows = read_rows("livecodebench/lcb_release_v5_public.jsonl.gz", data_dir)
    return [
        livecodebench_task(row, known.get(row.get("leetcodedataset", {}).get("task_id")))
        for row in rows
        if row["split"].startswith(window)
    ]


def livecodebench_official(data_dir=""):
    """LiveCodeBench release v5 with its private tests.

    The files are test.jsonl to test5.jsonl of
    huggingface.co/datasets/livecodebench/code_generation_lite, put into livecodebench/.
    We could not fetch them, so neither their sha256 nor a result is known here.
    """
    tasks = []
    for i in ("", 2, 3, 4, 5):
        path = os.path.join(data_folder(data_dir), "livecodebench", f"test{i}.jsonl")
        try:
            with open(path) as f:
                tasks += [livecodebench_task(json.loads(line)) for line in f]
        except OSError:
            raise UserError(
                f"{path} is not there: it is test{i}.jsonl of "
                f"huggingface.co/datasets/livecodebench/code_generation_lite; put it "
                "there, or use the suite livecodebench (public tests)"
            ) from None
        except ValueError as e:
            raise UserError(
                f"{path} is damaged ({e}): expected a JSON record a line; fetch it again"
            ) from None
    return tasks


def livecodebench_task(row, known=None):
    """A task from a record; fields are JSON texts in the original, values in our file.

    known: LeetCodeDataset's record of the problem, or None.
    """
    cases = decoded(row["public_test_cases"]) + private_tests(row.get("private_test_cases", "[]"))
    name = f"LiveCodeBench/{row.get('lcb_index', row['question_id'])}"
    starter = row["starter_code"].rstrip()
    text = f"{row['question_title']}\n\n{row['question_content']}"
    if not starter:
        return Task(
            name,
            statement(text),
            "",
            [{"input": c["input"], "output": c["output"]} for c in cases],
            "",
            kind="stdio",
            prefix=LIVECODEBENCH_IMPORTS,
            stops=SCRIPT_STOPS,
        )
    method = decoded(row["metadata"])["func_name"]
    return Task(
        name,
        statement(text, starter),
        after(starter, leetcode_parts(known)[3], method) if known else "",
        functional_tests(cases, known),
        f"Solution().{method}",
        prefix=f"{LIVECODEBENCH_IMPORTS}\n\n{starter}",
        stops=IN_CLASS_STOPS,
    )


def decoded(value):
    """A field, which may be a JSON text."""
    return json.loads(value) if isinstance(value, str) else value


def functional_tests(cases, known):
    """A function check(candidate): the public tests, and those of LeetCodeDataset v0.3.1."""
    values = [
        ([json.loads(line) for line in c["input"].split("\n")], json.loads(c["output"]))
        for c in cases
    ]
    hidden = ""
    if known and "starter_code" in known:  # v0.3.1
        hidden = known["test"].replace("def check(", "def hidden(")
    tests = (
        "from math import inf, nan\n\ndef public(candidate):\n"
        f"    for given, exp in {values!r}:\n"
        "        out = candidate(*given)\n"
        "        assert (list(out) if isinstance(out, tuple) else out) == exp\n\n"
        f"{hidden}\ndef check(candidate):\n    public(candidate)\n"
    )
    return tests + ("    hidden(candidate)\n" if hidden else "")


class TextOnly(pickle.Unpickler):
    """Reads a pickle of a text, and refuses every pickle that would import something."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def private_tests(text):
    """LiveCodeBench's private tests: JSON, or base64 of zlib of a pickle of JSON text.

    Raises UserError; never runs what a pickle asks for.
    """
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        inner = TextOnly(io.BytesIO(zlib.decompress(base64.b64decode(text)))).load()
        return json.loads(inner)
    except (
        ValueError,
        TypeError,
        zlib.error,
        pickle.UnpicklingError,
        EOFError,
        IndexError,
        KeyError,
        AttributeError,
    ) as e:
        raise UserError(
            f"private_test_cases cannot be read ({e}): expected JSON, or base64 of "
            f"zlib of a pickled JSON text; "
            "fetch the file again"
        ) from None
