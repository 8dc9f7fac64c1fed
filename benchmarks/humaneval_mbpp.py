"""HumanEval, MBPP and their plus forms (EvalPlus) as tasks: prompts, stop sequences, tests.

suites.py says what holds for all suites.
"""

import ast
import builtins
import re
import sys

from benchmarks.files import read_rows
from data import syntax_tree
from tasks import Task

CODEX_STOPS = ("\nclass ", "\ndef ", "\nif ", "\nprint")
BIGCODE_STOPS = ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n<|/", "\n```")
EVALPLUS_STOPS = (
    "<|endoftext|>",
    "<|endofmask|>",
    "</s>",
    "\nif __name__",
    "\ndef main(",
    "\nprint(",
)
HUMANEVAL_PLUS_STOPS = EVALPLUS_STOPS + ("\ndef ", "\nclass ", "\nimport ", "\nfrom ", "\nassert ")
MBPP_PLUS_STOPS = EVALPLUS_STOPS + ('\n"""', "\nassert")


def prompted_task(row, tests, stops):
    """A task from a record in HumanEval's format, by convention 1."""
    return Task(
        row["task_id"],
        row["prompt"].rstrip("\n"),
        "\n" + row["canonical_solution"].strip("\n"),
        tests,
        row["entry_point"],
        stops=stops,
    )


# ---------------------------------------------------------------- HumanEval


def humaneval(data_dir=""):
    """HumanEval (arXiv 2107.03374): zero-shot completion of the prompt.

    The test is check(entry_point) on prompt + completion.
    Stop sequences are the paper's but for the comment (convention 2).
    The project's own file is read where data_dir has none.
    """
    rows = read_rows("humaneval/HumanEval.jsonl.gz", data_dir)
    return [prompted_task(row, row["test"], CODEX_STOPS) for row in rows]


def humaneval_plus(data_dir=""):
    """HumanEval+ v0.1.10 (arXiv 2305.01210): base and plus tests, both must pass.

    Prompts (only HumanEval/115 differs from HumanEval), stop sequences and oracles are EvalPlus's;
    see `plus_tests`.
    """
    rows = read_rows("humaneval_plus/HumanEvalPlus-OriginFmt-v0.1.10.jsonl.gz", data_dir)
    return [
        prompted_task(row, plus_tests(row["task_id"], row["test"]), HUMANEVAL_PLUS_STOPS)
        for row in rows
    ]


# ---------------------------------------------------------------- MBPP


def mbpp(data_dir="", ids=range(11, 511)):
    """MBPP (arXiv 2108.07732), task ids 11 to 510, zero-shot.

    The prompt is a docstring of the text and the first test, as in InCoder and the bigcode harness,
    whose stop sequences these are.
    The tests are the setup code and three assertions, after the program.
    Line ends are \\n in place of \\r\\n.
    """
    rows = mbpp_rows("mbpp/mbpp.jsonl.gz", data_dir)
    return [mbpp_task(row, mbpp_prompt(row)) for row in rows if row["task_id"] in ids]


def mbpp_sanitized(data_dir=""):
    """The 427 problems of MBPP that its authors verified by hand, with their texts.

    Prompt and stop sequences are as in `mbpp`.
    """
    rows = mbpp_rows("mbpp/sanitized-mbpp.json", data_dir)
    return [mbpp_task(row, mbpp_prompt(row)) for row in rows]


def mbpp_3shot(data_dir=""):
    """MBPP with the three-shot prompt of the paper: tasks 2, 3 and 4 as shots.

    They are joined as lm-evaluation-harness does (but for its \\r\\n).
    The program is the completion alone, up to [DONE].
    """
    rows = {row["task_id"]: row for row in mbpp_rows("mbpp/mbpp.jsonl.gz", data_dir)}
    shots = "".join(f"{shot_prompt(rows[i])}\n{rows[i]['code']}\n[DONE]\n\n" for i in (2, 3, 4))
    return [
        mbpp_task(rows[i], shots + shot_prompt(rows[i]), prefix="", stops=("[DONE]",))
        for i in range(11, 511)
    ]


def shot_prompt(row):
    """The question of a problem in the three-shot prompt."""
    tests = "\n".join(row["test_list"])
    return (
        f"You are an expert Python programmer, and here is your task: {row['text']} "
        f"Your code should pass these tests:\n\n{tests}\n[BEGIN]"
    )


def mbpp_rows(file, data_dir):
    """The records of a file, \\r taken out of all their texts."""
    rows = read_rows(file, data_dir)
    return [{key: without_returns(value) for key, value in row.items()} for row in rows]


def without_returns(value):
    """Example: ["a\\r\\n", 1] -> ["a\\n", 1]"""
    if isinstance(value, list):
        return [without_returns(item) for item in value]
    return value.replace("\r", "") if isinstance(value, str) else value


def mbpp_prompt(row):
    return f'"""\n{row.get("text") or row["prompt"]}\n{row["test_list"][0]}\n"""'


def mbpp_task(row, prompt, prefix=None, stops=BIGCODE_STOPS):
    return Task(
        f"Mbpp/{row['task_id']}",
        prompt,
        "\n" + row["code"],
        mbpp_tests(row),
        mbpp_entry(row),
        prefix=prefix,
        stops=stops,
    )


def mbpp_entry(row):
    """The function of the reference that the first test calls.

    Example: "assert set(f(1)) == g" -> "f", if f is defined
    """
    body = syntax_tree(row["code"]).body
    defined = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    return next(
        node.func.id
        for node in ast.walk(syntax_tree(row["test_list"][0]))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in defined
    )


def mbpp_tests(row):
    """The assertions as a function check(candidate), which needs no program in its process.

    They stay plain text where they need more of the program than its function (classes of 367, 601
    and 927).
    """
    imports = row.get("test_imports", [])
    setup = row.get("test_setup_code", "")
    text = "\n".join([*imports, setup, *row["test_list"]]).strip()
    entry = mbpp_entry(row)
    free = free_names(text) - {entry}
    modules = sorted(free & sys.stdlib_module_names)  # Mbpp/596 takes sys from the program
    if free.difference(modules):
        return text
    lines = [
        *(f"import {module}" for module in modules),
        f"{entry} = candidate",
        *text.split("\n"),
    ]
    return "def check(candidate):\n" + "".join(f"    {line}\n" for line in lines)


def free_names(text):
    """The names that a text reads and neither assigns nor imports, builtins apart."""
    nodes = list(ast.walk(syntax_tree(text)))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    read = {node.id for node in names if isinstance(node.ctx, ast.Load)}
    assigned = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    imports = [node for node in nodes if isinstance(node, ast.Import)]
    imported = {alias.name for node in imports for alias in node.names}
    return read - assigned - imported - set(dir(builtins))


def mbpp_plus(data_dir=""):
    """MBPP+ v0.2.0: 378 of the sanitized problems; base and plus tests, both must pass.

    Prompts, stop sequences and oracles are EvalPlus's.
    224 of the problems are in MBPP's test split, 154 are not.
    """
    origin = read_rows("mbpp_plus/MbppPlus-OriginFmt-v0.2.0.jsonl.gz", data_dir)
    tests = {f"Mbpp/{row['task_id']}": row["test"] for row in origin}
    return [
        prompted_task(row, plus_tests(row["task_id"], tests[row["task_id"]]), MBPP_PLUS_STOPS)
        for row in read_rows("mbpp_plus/MbppPlus-v0.2.0.jsonl.gz", data_dir)
    ]


# ---------------------------------------------------------------- tests of EvalPlus

# EvalPlus's comparison (evalplus/eval at 26d6d00b), without numpy:
# equal, or of one type and as near as numpy.allclose asks for.
SAME = """import copy
import math
from math import inf, nan

def same(out, exp, atol):
    if out == exp:
        return True
    floats = isinstance(exp, (list, tuple)) and exp and all(isinstance(e, float) for e in exp)
    if atol == 0 and (isinstance(exp, float) or floats):
        atol = 1e-06
    return atol > 0 and type(out) == type(exp) and near(out, exp, atol)

def near(out, exp, atol):
    if isinstance(exp, (list, tuple)):
        alike = isinstance(out, (list, tuple)) and len(out) == len(exp)
        return alike and all(near(o, e, atol) for o, e in zip(out, exp))
    return out == exp or abs(out - exp) <= atol + 1e-07 * abs(exp) < inf
"""
SETS = {2, 7, 111, 140, 232, 249, 579, 769}  # MBPP: the order of the result does not count
FOUND = {737, 787, 794}  # MBPP: a result, or none
# One input of 112, with a result of 1.7 million tuples (1.1 GB), is left out.
HUGE = {"Mbpp/255": "len(given[0]) * given[1] > 350"}
ORACLES = {  # instead of same(...)
    "HumanEval/32": "abs(sum(k * math.pow(out, i) for i, k in enumerate(given[0]))) <= 0.0001",
    "Mbpp/558": (
        "out == exp or out == sum(abs(int(a) - int(b)) for a, b in "
        "zip(*(str(n).zfill(max(map(len, map(str, given)))) for n in given)))"
    ),
    "Mbpp/581": (
        "out == exp or out == "
        "round(given[0] ** 2 + 2 * given[0] * math.sqrt((given[0] / 2) ** 2 + given[1] ** 2))"
    ),
    **{f"Mbpp/{i}": "set(out) == set(exp)" for i in SETS},
    **{f"Mbpp/{i}": "exp == (out if isinstance(out, bool) else out is not None)" for i in FOUND},
}


def plus_tests(name, text):
    """EvalPlus's tests as a function check(candidate) without numpy, from its OriginFmt text.

    The inputs and results are those of the text (all of them, base and plus, less duplicates), the
    oracles those of EvalPlus's evaluator. OriginFmt's own oracles are
    - wrong for HumanEval/32 (order of arguments), and for Mbpp/737, 787 and 794 (no assertion:
      everything passes);
    - strict where the evaluator is not (Mbpp/558, 581).
    Nine problems with huge results bring a reference function instead of results.
    It gets its own copy of an input, before the program.
    """
    inputs, results = (re.search(rf"^ *{key} = (.*)$", text, re.M) for key in ("inputs", "results"))
    tolerance = re.search(r", ([-.\de]+)\)\s*$", text)
    oracle = ORACLES.get(name) or f"same(out, exp, {tolerance[1]})"
    lines = [f"inputs = {inputs[1]}"]
    if name in HUGE:
        lines.append(f"inputs = [given for given in inputs if not {HUGE[name]}]")
    if results:
        lines.append(f"results = {results[1]}")
    else:
        lines.append("results = (ref_func(*copy.deepcopy(given)) for given in inputs)")
    arguments = "copy.deepcopy(given)" if "given" in oracle else "given"
    lines += [
        "for given, exp in zip(inputs, results):",
        f"    out = candidate(*{arguments})",
        f"    assert {oracle}",
    ]
    reference = "" if results else reference_function(text)
    body = "".join(f"    {line}\n" for line in lines)
    return f"{SAME}\n{reference}\ndef check(candidate):\n{body}"


def reference_function(text):
    """The reference function of an OriginFmt text, with the imports that it needs."""
    nodes = [
        ast.unparse(node)
        for node in syntax_tree(text).body
        if isinstance(node, (ast.FunctionDef, ast.Import, ast.ImportFrom))
        and getattr(node, "name", "") not in ("is_floats", "assertion", "check")
    ]
    return "\n".join(node for node in nodes if node != "import numpy as np")
