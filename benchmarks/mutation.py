"""How good are a benchmark's tests? References must pass them; of mutants, wrong programs made by one change to a reference, how many are noticed?"""

import ast
import dataclasses
import difflib
import importlib.util
import random
import sys
import time

from data import syntax_tree
from grader.grade import grade
from tasks import job_of, program_of


def references(suites, workers=None, patience=1.0):
    """Grades every reference solution of suites, pairs of a name and its tasks; prints a row a suite and names what fails. Returns {suite: {name: Result}}."""
    results = {}
    print(f"{'suite':<24}{'items':>6}{'references':>12}{'pass':>6}{'seconds':>9}   failures")
    for suite, tasks in suites:
        start = time.perf_counter()
        known = [task for task in tasks if task.solution]
        without = (
            []
            if importlib.util.find_spec("sortedcontainers")
            else [t.name for t in known if "import Sorted" in t.solution]
        )
        graded = [task for task in known if task.name not in without]
        found = grade(
            [job_of(task, task.solution, patience) for task in graded],
            workers=workers,
            progress=sys.stderr.isatty(),
        )
        results[suite] = {task.name: result for task, result in zip(graded, found)}
        failed = [
            f"{name} ({result.verdict})"
            for name, result in results[suite].items()
            if result.verdict != "passed"
        ]
        print(
            f"{suite:<24}{len(tasks):>6}{len(graded):>12}{len(graded) - len(failed):>6}{time.perf_counter() - start:>9.0f}   "
            + (", ".join(failed) or "-"),
            flush=True,
        )
        if without:
            print(
                f"  {len(without)} not graded, because they need the package sortedcontainers (pip install it): {', '.join(without)}"
            )
    return results


SWAPS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
FLIPS = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}


def changes(node):
    """(field, new value, kind) of every mutation of a node of a syntax tree."""
    if isinstance(node, (ast.BinOp, ast.AugAssign, ast.BoolOp)) and type(node.op) in SWAPS:
        yield "op", SWAPS[type(node.op)](), "operator"
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            for other in FLIPS[type(op)]:
                yield "ops", node.ops[:i] + [other()] + node.ops[i + 1 :], "comparison"
    if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float, str)):
        value = node.value
        others = (
            (not value,)
            if isinstance(value, bool)
            else (value + "x",)
            if isinstance(value, str)
            else (value + 1, value - 1)
        )
        for other in others:
            yield "value", other, "constant"
    if isinstance(node, (ast.If, ast.While, ast.IfExp)):
        yield "test", ast.UnaryOp(ast.Not(), node.test), "condition"
    if isinstance(node, ast.Return) and node.value:
        yield "value", ast.Constant(None), "return"
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "range":
        for i, bound in enumerate(node.args):
            for op in (ast.Add(), ast.Sub()):
                yield (
                    "args",
                    node.args[:i] + [ast.BinOp(bound, op, ast.Constant(1))] + node.args[i + 1 :],
                    "off by one",
                )
    for field in ("body", "orelse", "finalbody"):
        block = getattr(node, field, None)
        for i, statement in enumerate(block if isinstance(block, list) else []):
            if not isinstance(
                statement, (ast.Pass, ast.Return, ast.FunctionDef, ast.Import, ast.ImportFrom)
            ) and not is_text(statement):
                yield field, block[:i] + [ast.Pass()] + block[i + 1 :], "dropped statement"


def is_text(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def mutants(program, entry_point, n, seed=0):
    """Up to n wrong versions of a program, [(source, kind)]: one change each, inside the entry point's function, no two alike, drawn by the seed.
    Some do what the original does: nobody can tell which without proof."""
    tree, found = syntax_tree(program), {}
    function = next(
        f
        for f in reversed(list(ast.walk(tree)))
        if isinstance(f, ast.FunctionDef) and f.name == entry_point.split(".")[-1]
    )
    spared = {
        id(part)
        for node in ast.walk(function)
        if is_text(node) or isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
    }
    original = ast.unparse(tree)
    for node in ast.walk(function):
        for field, new, kind in (
            () if id(node) in spared else changes(node)
        ):  # docstrings and f-strings stay
            old = getattr(node, field)
            setattr(node, field, new)
            found.setdefault(ast.unparse(ast.fix_missing_locations(tree)), kind)
            setattr(node, field, old)
    found.pop(original, None)
    drawn = sorted(found)
    random.Random(f"{seed}/{entry_point}").shuffle(drawn)
    return [(source, found[source]) for source in drawn[:n]]


def mutation_scores(suites, n=10, seed=0, show=0, workers=None, patience=1.0):
    """Mutates the references of a suite, and prints which share of the mutants its tests notice, and those of other suites with the same problems. suites:
    {name: tasks}, the one that is mutated first. Only mutants of references that pass the tests in question count. A mutant has four times its reference's
    time of this run, and at least a second. Returns {suite of the tests: {(task, source, kind): verdict}}."""
    suite = next(iter(suites))
    tasks = {task.name: task for task in suites[suite] if task.solution and task.kind == "assert"}
    whole = {name: program_of(task, task.solution) for name, task in tasks.items()}
    made = {name: mutants(whole[name], task.entry_point, n, seed) for name, task in tasks.items()}
    few = sum(len(m) < n for m in made.values())
    print(
        f"{suite}: {sum(map(len, made.values()))} mutants of {len(tasks)} references, at most {n} each; {few} have fewer",
        flush=True,
    )
    verdicts = {}
    for tests in suites:
        testers = {task.name: task for task in suites[tests] if task.name in tasks}

        def run(programs, limits):
            jobs = [
                dataclasses.replace(
                    job_of(testers[name], ""), program=program, time_limit=limits[name]
                )
                for name, program in programs
            ]
            return grade(jobs, workers=workers, progress=sys.stderr.isatty())

        limits = {name: patience * (task.time_limit or 10.0) for name, task in testers.items()}
        first = dict(zip(testers, run([(name, whole[name]) for name in testers], limits)))
        unsound = [name for name, result in first.items() if result.verdict != "passed"]
        here = [(name, *mutant) for name in testers if name not in unsound for mutant in made[name]]
        limits = {name: max(patience, 4 * result.seconds) for name, result in first.items()}
        verdicts[tests] = {
            m: result.verdict for m, result in zip(here, run([m[:2] for m in here], limits))
        }
        found, before = (
            sum(verdicts[t][m] != "passed" for m in here)
            for t in (tests, suite if set(here) <= set(verdicts[suite]) else tests)
        )
        print(
            f"  tests of {tests}: notice {found} of {len(here)} = {found / max(1, len(here)):.1%}"
            + f", {sum(verdict == 'timeout' for verdict in verdicts[tests].values())} of them by their time"
            + (
                f"; of the same mutants {suite}: {before} = {before / max(1, len(here)):.1%}"
                if tests != suite
                else ""
            )
            + (f"; left out, as the reference fails: {', '.join(unsound)}" if unsound else ""),
            flush=True,
        )
    alive = [
        m for m in verdicts[suite] if all(v.get(m, "passed") == "passed" for v in verdicts.values())
    ]
    for name, source, kind in alive[:show]:
        lines = difflib.unified_diff(
            ast.unparse(syntax_tree(whole[name])).split("\n"), source.split("\n"), lineterm="", n=0
        )
        shown = [line for line in lines if line[:2] not in ("--", "++", "@@")]
        print(f"  {name} ({kind}), noticed by no test, perhaps equivalent:", *shown, sep="\n      ")
    return verdicts
