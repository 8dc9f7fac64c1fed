"""Problems: a prompt, an expert solution, unit tests; and the job that grades a completion.

The built-in domain is in domain.py, the readers of the benchmarks in benchmarks/suites.py.
"""

import ast
import dataclasses

from grader.grade import Job


@dataclasses.dataclass
class Task:
    """A problem.

    name         unlike that of any other problem of its set
    prompt       what the model goes on from, such as signature and docstring; ends where a line
                 ends, without the newline
    solution     what the expert writes next, from its first newline on; "" where none is known
    tests        kind assert: Python text, assertions or a function check(candidate);
                 kind stdio: [{"input": ..., "output": ...}]
    entry_point  the function that is tested
    hard         indices of the solution's lines that need a computation
    notes        (line index, text of the worked note) for each of them, for the oracle
    kind         assert: the program's function is called; stdio: the program is run, its output
                 compared
    prefix       what stands before a completion in the tested program; None: the prompt
    stops        texts that end a completion, and are no part of it
    time_limit   seconds for all its tests; 0: the grader's default
    """

    name: str
    prompt: str
    solution: str
    tests: object
    entry_point: str
    hard: tuple = ()
    notes: tuple = ()
    kind: str = "assert"
    prefix: str | None = None
    stops: tuple = ()
    time_limit: float = 0.0


def program_of(task, completion):
    """The program that is tested."""
    return (task.prompt if task.prefix is None else task.prefix) + completion + "\n"


def until_stop(text, stops):
    """The text up to the first of the stop sequences.

    Example: until_stop("a\\nb\\nc", ["\\nc", "\\nb"]) -> "a"
    """
    places = [text.find(stop) for stop in stops if stop in text]
    return text[: min(places, default=len(text))]


def job_of(task, completion, patience=1.0):
    """The job that grades a completion of a task. patience: a factor on its time limit."""
    return Job(
        program_of(task, completion),
        task.tests,
        task.entry_point,
        task.kind,
        task.name,
        patience * (task.time_limit or 10.0),
        preamble_of(task),
    )


def preamble_of(task):
    """What stands in front of a completion, and is not the model's; "" for a script."""
    if task.kind != "assert":
        return ""
    return task.prompt if task.prefix is None else task.prefix


# ---------------------------------------------------------------- partial credit


def parts(task):
    """The task once for each of its tests, for partial credit.

    kind stdio: one of its inputs each.
    kind assert: one assertion each, of those at the top level or in check(), together with every
    statement there that is no assertion.
    Tests without such an assertion, in loops for instance, stay in one piece.
    """
    if task.kind == "stdio":
        return [dataclasses.replace(task, tests=[test]) for test in task.tests]
    count = len(assertions(ast.parse(task.tests)))
    if not count:
        return [task]
    return [dataclasses.replace(task, tests=with_one(task.tests, i)) for i in range(count)]


def assertions(tree):
    """(statements, index) of every assertion at the top level and in check()."""
    checks = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "check"]
    return [
        (body, i)
        for body in (tree.body, *(check.body for check in checks))
        for i, node in enumerate(body)
        if isinstance(node, ast.Assert)
    ]


def with_one(tests, number):
    """The text of the tests, with only one of its assertions. number: which one."""
    tree = ast.parse(tests)
    for k, (body, i) in enumerate(assertions(tree)):
        if k != number:
            body[i] = ast.Pass()
    return ast.unparse(tree)
