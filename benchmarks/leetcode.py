"""LeetCodeDataset as tasks: prompts, stop sequences, tests.

`suites.py` says what holds for all suites.
"""

import ast
import re

from benchmarks.files import read_rows
from data import syntax_tree
from tasks import Task

IN_CLASS_STOPS = ('\n"""', "\n```", "\nif __name__", "\nprint(", "\nassert", "\nclass Solution")


def statement(text, starter=""):
    """A problem as a prompt: the text as a docstring, then the starter code.

    The starter code loses its last newline.
    """
    text = re.sub(
        r"\n\s*\n\s*\n+",
        "\n\n",
        text.replace("\r\n", "\n").replace("\xa0", " ").replace('"""', "'''"),
    ).strip()
    return f'"""\n{text}\n"""' + (f"\n{starter}" if starter else "")


def leetcode(data_dir="", version="v0.2.0-test"):
    """LeetCodeDataset (arXiv 2504.14655).

    The prompt is the statement as a docstring, then the starter code (class, method, signature).
    The dataset's helper preamble (imports, ListNode, TreeNode) stands before the program.
    The 200 problems v0.2.0-test are rllm's leetcode test set, v0.2.0-train its train set (equal
    but for spaces); both have 1 to 5 assertions each, the 228 of v0.3.1-test about 100.
    """
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
            )
        )
    return tasks


def leetcode_parts(row):
    """(statement, starter code, preamble, reference).

    17 preambles of v0.3.1 import SortedList; only the references that use it do so here, so
    that other programs need no sortedcontainers.
    """
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
    """Turn a whole-class solution into a continuation of the starter code.

    It is the method's body, the rest of the class, then imports and helpers.
    If that is not possible (18 of 2,317 problems), it is `pass` followed by the whole solution,
    whose class replaces the starter's. That is so where the method is not the first of the class,
    has other arguments, or where others of the class may need what stood before it.
    """
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
