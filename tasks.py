"""Problems: a prompt, an expert solution, unit tests; and the job that grades a completion.

The built-in domain is in domain.py, the readers of the benchmarks in benchmarks/suites.py.
"""

import ast
import dataclasses

from grader.grade import Job


@dataclasses.dataclass
class Task:
    name: str
    prompt: str  # what the model is given: signature and docstring; ends where a line ends, without the newline
    solution: (
        str  # what the expert writes next, from its first newline on; empty where none is known
    )
    tests: object  # kind assert: Python text, assertions or a function check(candidate); stdio: [{"input": ..., "output": ...}]
    entry_point: str
    hard: tuple = ()  # indices of the solution's lines that need a computation
    notes: tuple = ()  # (line index, text of the worked note), for the oracle
    kind: str = "assert"  # assert: the program's function is called; stdio: the program is run, its output compared
    prefix: str | None = (
        None  # what stands before a completion in the program that is tested; None: the prompt
    )
    stops: tuple = ()  # texts that end a completion, and are not part of it
    time_limit: float = 0.0  # seconds for all its tests; 0: the grader's default


def program_of(task, completion):
    """The program that is tested."""
    return (task.prompt if task.prefix is None else task.prefix) + completion + "\n"


def parts(task):
    """The task once for each of its tests, for partial credit: a test of kind stdio; an assertion at the top level or in check(), with everything
    there that is no assertion. Tests without such an assertion, in loops say, stay in one piece."""
    if task.kind == "stdio":
        return [dataclasses.replace(task, tests=[test]) for test in task.tests]

    def assertions():
        tree = ast.parse(task.tests)
        bodies = [tree.body] + [
            node.body
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.name == "check"
        ]
        return tree, [
            (body, i)
            for body in bodies
            for i, node in enumerate(body)
            if isinstance(node, ast.Assert)
        ]

    found = []
    for one in range(len(assertions()[1])):
        tree, places = assertions()
        for k, (body, i) in enumerate(places):
            if k != one:
                body[i] = ast.Pass()
        found.append(dataclasses.replace(task, tests=ast.unparse(tree)))
    return found or [task]


def cut(text, stops):
    """The text up to the first of the stop sequences. Example: cut("a\\nb\\nc", ["\\nc", "\\nb"]) -> "a" """
    return text[: min((i for stop in stops if (i := text.find(stop)) >= 0), default=len(text))]


def job_of(task, completion, patience=1.0):
    """The job that grades a completion of a task. patience: a factor on its time limit."""
    return Job(
        program_of(task, completion),
        task.tests,
        task.entry_point,
        task.kind,
        task.name,
        patience * (task.time_limit or 10.0),
    )
