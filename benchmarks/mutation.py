"""How good are a benchmark's tests?

References must pass them. Of mutants, wrong programs made by one change to a reference, how many do
the tests notice?
"""

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

# ---------------------------------------------------------------- references


def references(suites, workers=None, patience=1.0):
    """Grade every reference solution of suites -> {suite: {name: Result}}.

    suites: pairs of a name and its tasks. Prints a row a suite and names what fails.
    """
    results = {}
    print(f"{'suite':<24}{'items':>6}{'references':>12}{'pass':>6}{'seconds':>9}   failures")
    for suite, tasks in suites:
        start = time.perf_counter()
        known = [task for task in tasks if task.solution]
        ungraded = []
        if not importlib.util.find_spec("sortedcontainers"):
            ungraded = [task.name for task in known if "import Sorted" in task.solution]
        graded = [task for task in known if task.name not in ungraded]
        jobs = [job_of(task, task.solution, patience) for task in graded]
        verdicts = grade(jobs, workers=workers, progress=sys.stderr.isatty())
        results[suite] = {task.name: r for task, r in zip(graded, verdicts, strict=True)}
        failed = [
            f"{name} ({result.verdict})"
            for name, result in results[suite].items()
            if result.verdict != "passed"
        ]
        passed = len(graded) - len(failed)
        seconds = time.perf_counter() - start
        print(
            f"{suite:<24}{len(tasks):>6}{len(graded):>12}{passed:>6}{seconds:>9.0f}   "
            f"{', '.join(failed) or '-'}",
            flush=True,
        )
        if ungraded:
            print(
                f"  {len(ungraded)} not graded, because they need the package sortedcontainers "
                f"(pip install it): {', '.join(ungraded)}"
            )
    return results


# ---------------------------------------------------------------- mutants

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
            for flipped in FLIPS[type(op)]:
                yield "ops", replaced(node.ops, i, flipped()), "comparison"
    if isinstance(node, ast.Constant):
        for value in other_constants(node.value):
            yield "value", value, "constant"
    if isinstance(node, (ast.If, ast.While, ast.IfExp)):
        yield "test", ast.UnaryOp(ast.Not(), node.test), "condition"
    if isinstance(node, ast.Return) and node.value:
        yield "value", ast.Constant(None), "return"
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "range":
        for i, bound in enumerate(node.args):
            for op in (ast.Add(), ast.Sub()):
                shifted = ast.BinOp(bound, op, ast.Constant(1))
                yield "args", replaced(node.args, i, shifted), "off by one"
    yield from dropped_statements(node)


def replaced(items, i, item):
    """The list with another item at i."""
    return items[:i] + [item] + items[i + 1 :]


def other_constants(value):
    """Example: 3 -> (4, 2); True -> (False,); "a" -> ("ax",); None -> ()"""
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, str):
        return (value + "x",)
    return (value + 1, value - 1) if isinstance(value, (int, float)) else ()


def dropped_statements(node):
    """The mutations that put `pass` in place of a statement of a node's blocks."""
    kept_kinds = (ast.Pass, ast.Return, ast.FunctionDef, ast.Import, ast.ImportFrom)
    for field in ("body", "orelse", "finalbody"):
        block = getattr(node, field, None)
        for i, statement in enumerate(block if isinstance(block, list) else []):
            if not isinstance(statement, kept_kinds) and not is_text(statement):
                yield field, replaced(block, i, ast.Pass()), "dropped statement"


def is_text(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def mutants(program, entry_point, n, seed=0):
    """Up to n wrong versions of a program -> [(source, kind)], drawn by the seed.

    Each has one change, inside the entry point's function. No two are alike.
    Some do what the original does: nobody can tell which without proof.
    """
    tree = syntax_tree(program)
    name = entry_point.split(".")[-1]
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    function = next(node for node in reversed(functions) if node.name == name)
    texts = [
        node for node in ast.walk(function) if is_text(node) or isinstance(node, ast.JoinedStr)
    ]
    spared = {id(part) for node in texts for part in ast.walk(node)}  # docstrings and f-strings
    original = ast.unparse(tree)
    kinds = {}  # source of a mutant -> kind
    for node in ast.walk(function):
        for field, value, kind in () if id(node) in spared else changes(node):
            before = getattr(node, field)
            setattr(node, field, value)
            kinds.setdefault(ast.unparse(ast.fix_missing_locations(tree)), kind)
            setattr(node, field, before)
    kinds.pop(original, None)
    sources = sorted(kinds)
    random.Random(f"{seed}/{entry_point}").shuffle(sources)
    return [(source, kinds[source]) for source in sources[:n]]


# ---------------------------------------------------------------- what tests notice


def mutation_scores(suites, n=10, seed=0, show=0, workers=None, patience=1.0):
    """Mutate the references of a suite; print which share of the mutants its tests notice.

    suites   {name: tasks}: the suite that is mutated first, then others with the same problems,
             whose tests are measured on the same mutants
    n        mutants of a problem, at most
    show     mutants to print that no test notices
    Only mutants of references that pass the tests in question count.
    Returns {suite of the tests: {(task, source, kind): verdict}}.
    """
    suite = next(iter(suites))
    tasks = {task.name: task for task in suites[suite] if task.solution and task.kind == "assert"}
    programs = {name: program_of(task, task.solution) for name, task in tasks.items()}
    mutated = {
        name: mutants(programs[name], task.entry_point, n, seed) for name, task in tasks.items()
    }
    total = sum(map(len, mutated.values()))
    fewer = sum(len(of_task) < n for of_task in mutated.values())
    print(
        f"{suite}: {total} mutants of {len(tasks)} references, at most {n} each; "
        f"{fewer} have fewer",
        flush=True,
    )
    verdicts = {}
    for tests, of_tests in suites.items():
        testers = {task.name: task for task in of_tests if task.name in tasks}
        verdicts[tests], unsound = noticed_by(testers, programs, mutated, workers, patience)
        compared = verdicts[suite] if set(verdicts[tests]) <= set(verdicts[suite]) else {}
        print_notices(tests, verdicts[tests], unsound, suite if compared else tests, compared)
    alive = [
        mutant
        for mutant in verdicts[suite]
        if all(found.get(mutant, "passed") == "passed" for found in verdicts.values())
    ]
    for mutant in alive[:show]:
        print_mutant(mutant, programs[mutant[0]])
    return verdicts


def noticed_by(testers, programs, mutated, workers, patience):
    """Grade references and mutants -> ({(task, source, kind): verdict}, references that fail).

    testers    {name: task}, whose tests are run
    programs   {name: reference}
    mutated    {name: mutants}
    A mutant has four times its reference's time of this run, and at least a second.
    """
    limits = {name: patience * (task.time_limit or 10.0) for name, task in testers.items()}
    pairs = [(name, programs[name]) for name in testers]
    graded = grade_programs(testers, pairs, limits, workers)
    unsound = [
        name for name, result in zip(testers, graded, strict=True) if result.verdict != "passed"
    ]
    limits = {
        name: max(patience, 4 * result.seconds)
        for name, result in zip(testers, graded, strict=True)
    }
    cases = [(name, *mutant) for name in testers if name not in unsound for mutant in mutated[name]]
    graded = grade_programs(testers, [case[:2] for case in cases], limits, workers)
    verdicts = {case: result.verdict for case, result in zip(cases, graded, strict=True)}
    return verdicts, unsound


def grade_programs(testers, pairs, limits, workers):
    """Results of programs. pairs: (name of the task, program); limits: {name: seconds}."""
    jobs = [
        dataclasses.replace(job_of(testers[name], ""), program=program, time_limit=limits[name])
        for name, program in pairs
    ]
    return grade(jobs, workers=workers, progress=sys.stderr.isatty())


def print_notices(tests, verdicts, unsound, suite, compared):
    """Print a line: how many mutants some tests notice.

    verdicts    {mutant: verdict} of these tests
    unsound     references that fail them
    suite       the suite that is compared with, and `compared`, its verdicts
    """
    count = len(verdicts)
    noticed = sum(verdict != "passed" for verdict in verdicts.values())
    late = sum(verdict == "timeout" for verdict in verdicts.values())
    line = (
        f"  tests of {tests}: notice {noticed} of {count} = {noticed / max(1, count):.1%}, {late} "
        "of them by their time"
    )
    if tests != suite:
        before = sum(compared[mutant] != "passed" for mutant in verdicts)
        line += f"; of the same mutants {suite}: {before} = {before / max(1, count):.1%}"
    if unsound:
        line += f"; left out, as the reference fails: {', '.join(unsound)}"
    print(line, flush=True)


def print_mutant(mutant, program):
    """Print how a mutant that no test notices differs from its reference."""
    name, source, kind = mutant
    reference = ast.unparse(syntax_tree(program))
    diff = difflib.unified_diff(reference.split("\n"), source.split("\n"), lineterm="", n=0)
    lines = [line for line in diff if line[:2] not in ("--", "++", "@@")]
    print(f"  {name} ({kind}), noticed by no test, perhaps equivalent:", *lines, sep="\n      ")
