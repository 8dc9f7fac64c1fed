"""LeetCode, LiveCodeBench and Codeforces as tasks: prompts, stop sequences, tests. `benchmarks.py` says what holds for all suites."""

import ast
import base64
import io
import json
import os
import pickle
import re
import zlib

from benchmark_files import BESIDE, read_rows, time_limit
from config import UserError
from functions import syntax_tree
from tasks import Task

IN_CLASS_STOPS = ('\n"""', "\n```", "\nif __name__", "\nprint(", "\nassert", "\nclass Solution")
SCRIPT_STOPS = ('\n"""', "\n```")


def statement(text, starter=""):
    """A problem as a prompt: the text as a docstring, then the starter code without its last newline."""
    text = re.sub(
        r"\n\s*\n\s*\n+",
        "\n\n",
        text.replace("\r\n", "\n").replace("\xa0", " ").replace('"""', "'''"),
    ).strip()
    return f'"""\n{text}\n"""' + (f"\n{starter}" if starter else "")


def leetcode(data_dir="", version="v0.2.0-test"):
    """LeetCodeDataset (arXiv 2504.14655): the statement as a docstring, the starter code (class, method, signature), which the model goes on from.
    The dataset's helper preamble (imports, ListNode, TreeNode) stands before the program. The 200 problems v0.2.0-test are rllm's
    leetcode test set, v0.2.0-train its train set (equal but for spaces); both have 1 to 5 assertions each, the 228 of v0.3.1-test about 100."""
    tasks = []
    for row in read_rows(f"leetcode/LeetCodeDataset-{version}.jsonl.gz", data_dir):
        text, starter, preamble, code = leetcode_parts(row)
        needs = "from math import inf\n" if re.search(r"\binf\b", row["test"]) else ""
        tasks.append(
            Task(
                row["task_id"],
                statement(text, starter),
                after(starter, code, row["entry_point"].split(".")[-1]),
                needs + row["test"],
                row["entry_point"],
                prefix=f"{preamble}\n\n\n{starter}",
                stops=IN_CLASS_STOPS,
                time_limit=time_limit("leetcode-" + version.removesuffix("-test"), row["task_id"]),
            )
        )
    return tasks


def leetcode_parts(row):
    """(statement, starter code, preamble, reference). 17 preambles of v0.3.1 import SortedList; only the references that use it do so here, so that
    other programs need no sortedcontainers."""
    needed = "from sortedcontainers import SortedList\n"
    code = (
        needed + "\n\n" if needed in row["prompt"] and "SortedList" in row["completion"] else ""
    ) + row["completion"].lstrip("\n")
    if "starter_code" in row:
        text, starter = row["problem_description"], row["starter_code"]
    else:
        text, starter = row["query"].split(
            "Please complete the following python code precisely:\n```python\n"
        )
        starter = (
            starter.strip().removesuffix("```").replace(": reeNode", ": TreeNode")
        )  # a slip in count-nodes-equal-to-average-of-subtree
    return text, starter.rstrip(), row["prompt"].replace(needed, "").strip(), code


def after(starter, code, method):
    """What to write after the starter code so that it does what `code` does, which defines the class anew: the method's body and the rest of the
    class, then what stood before the class (imports, helpers). Where the method is not the first of the class, or has other arguments, or
    others of the class may need what stood before: `pass`, then all of the code, whose class replaces the starter's (18 of 2,317 problems)."""
    if re.search(r"^  def ", code, re.M):  # indented by two spaces; the starter by four
        code = re.sub(r"^ +", lambda m: 2 * m[0], code, flags=re.M)
    lines, arguments = code.rstrip().split("\n"), lambda f: [a.arg for a in f.args.args]
    node = next(
        n for n in syntax_tree(code).body if isinstance(n, ast.ClassDef) and n.name == "Solution"
    )
    ours, given = (
        node.body[0],
        next(
            n
            for n in ast.walk(syntax_tree(starter + "\n        pass"))
            if isinstance(n, ast.FunctionDef)
        ),
    )
    before = "\n".join(
        line for line in lines[: node.lineno - 1] if not line.startswith("#")
    ).strip()
    alone = (
        getattr(ours, "name", "") == method
        and not ours.decorator_list
        and not (before and len(node.body) > 1)
    )
    if not alone or arguments(ours) != arguments(given):
        return "\n        pass\n\n\n" + code.strip()
    ends = [ours.lineno, *(a.end_lineno for a in [*ours.args.args, ours.returns] if a)]
    end = next(
        i for i in range(max(ends), len(lines)) if lines[i - 1].rstrip().endswith(":")
    )  # lines of code up to the signature's colon
    return "\n" + "\n".join(lines[end:]) + (f"\n\n\n{before}" if before else "")


# LiveCodeBench puts these before every program (lcb_runner/evaluation/testing_util.py)
LIVECODEBENCH_IMPORTS = "".join(
    f"from {m} import *\n"
    for m in (
        "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json builtins typing"
    ).split()
)
LIVECODEBENCH_IMPORTS += "".join(
    f"import {m}\n"
    for m in (
        "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json"
    ).split()
)
LIVECODEBENCH_IMPORTS += "sys.setrecursionlimit(50000)\n"


def livecodebench(data_dir="", window=""):
    """LiveCodeBench (arXiv 2403.07974), the 879 problems of release v5 that could be found, **public tests only** (1 to 6 a problem): numbers
    are upper bounds, not comparable with published ones. window "2024-08" gives the 279 from August 2024 on. Functional problems: docstring and
    starter code, tests check(candidate); the 293 that are in LeetCodeDataset too get its reference, and 98 (all of the window) the tests of v0.3.1.
    Others: the statement as a docstring, then a program that reads stdin. LiveCodeBench's imports stand before every program."""
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
    """LiveCodeBench release v5 with its private tests: test.jsonl to test5.jsonl of huggingface.co/datasets/livecodebench/code_generation_lite, as
    the project ships them, put into livecodebench/. We could not fetch them, so neither their sha256 nor a result is known here."""
    tasks = []
    for i in ("", 2, 3, 4, 5):
        path = os.path.join(data_dir or BESIDE, "livecodebench", f"test{i}.jsonl")
        try:
            with open(path) as f:
                tasks += [livecodebench_task(json.loads(line)) for line in f]
        except OSError:
            raise UserError(
                f"{path} is not there: it is test{i}.jsonl of huggingface.co/datasets/livecodebench/code_generation_lite; put it "
                "there, or use the suite livecodebench (public tests)"
            ) from None
        except ValueError as e:
            raise UserError(
                f"{path} is damaged ({e}): expected a JSON record a line; fetch it again"
            ) from None
    return tasks


def livecodebench_task(row, known=None):
    """A task from a record; fields are JSON texts in the original, values in our file. known: LeetCodeDataset's record of the problem."""
    cases, more, metadata = (
        json.loads(v) if isinstance(v, str) else v
        for v in (row["public_test_cases"], "[]", row["metadata"])
    )
    cases = cases + private_tests(row.get("private_test_cases", "[]"))
    name, starter = (
        f"LiveCodeBench/{row.get('lcb_index', row['question_id'])}",
        row["starter_code"].rstrip(),
    )
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
    values = [
        ([json.loads(line) for line in c["input"].split("\n")], json.loads(c["output"]))
        for c in cases
    ]
    tests = (
        "from math import inf, nan\n\ndef public(candidate):\n"
        f"    for given, exp in {values!r}:\n"
        + (
            "        out = candidate(*given)\n        assert (list(out) if isinstance(out, tuple) else out) == exp\n\n"
        )
    )
    hidden = (
        known["test"].replace("def check(", "def hidden(")
        if known and "starter_code" in known
        else ""
    )  # v0.3.1
    tests += (
        f"{hidden}\ndef check(candidate):\n    public(candidate)\n"
        + "    hidden(candidate)\n" * bool(hidden)
    )
    return Task(
        name,
        statement(text, starter),
        after(starter, leetcode_parts(known)[3], metadata["func_name"]) if known else "",
        tests,
        f"Solution().{metadata['func_name']}",
        prefix=f"{LIVECODEBENCH_IMPORTS}\n\n{starter}",
        stops=IN_CLASS_STOPS,
        time_limit=time_limit("leetcode-v0.3.1", known["task_id"]) if known else 0.0,
    )


class TextOnly(pickle.Unpickler):
    """Reads a pickle of a text, and refuses every pickle that would import something."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def private_tests(text):
    """LiveCodeBench's private tests: JSON, or base64 of zlib of a pickle of JSON text. Raises UserError; never runs what a pickle asks for."""
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
            f"private_test_cases cannot be read ({e}): expected JSON, or base64 of zlib of a pickled JSON text; "
            "fetch the file again"
        ) from None


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
