"""Why a program failed: the test, what it gave instead, and the line that is to blame.

examine.py runs it behind the grader's walls once more. The line that is to blame is

    of an exception, or of a program that ran too long    the one that was running
    of text that is no Python                             the one that Python names
    of a wrong answer, on the built-in domain             the first one unlike the expert's
"""

import dataclasses
import json
import pathlib
import threading

from data import syntax_tree
from grader.client import Server
from grader.grade import same_output
from grader.messages import HarnessError
from tasks import program_of

SCRIPT = pathlib.Path(__file__).with_name("examine.py")
SECONDS = 2.0  # of a program, until it is asked where it is
LIMITS = (3 * SECONDS, 2 << 30, 1 << 20)  # seconds, bytes of memory, bytes of output


@dataclasses.dataclass
class Fault:
    """What is wrong with a program; "" and None where that is not known."""

    test: str = ""
    value: str = ""  # what it gave
    error: str = ""
    line: int | None = None  # index among the completion's lines
    expert: str = ""  # what the expert writes there


class Examiner:
    """One server of the grader, for programs one after the other. Use it in a `with` block."""

    def __init__(self):
        self.server = Server()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.close()

    def fault(self, task, row):
        """The Fault of a row of evaluate.py; None if it passed."""
        if row["verdict"] == "passed":
            return None
        program = program_of(task, row["completion"])
        offset = program.count("\n", 0, len(program) - len(row["completion"]) - 1)
        try:
            syntax_tree(program)
        except (SyntaxError, ValueError) as e:
            line = getattr(e, "lineno", None)
            return Fault(error=f"{type(e).__name__}: {e}", line=line and line - 1 - offset)
        fault = self.fault_of_run(task, program) or Fault()
        if fault.line is not None:
            fault.line -= offset
        elif task.notes:
            fault.line, fault.expert = first_difference(row["completion"], task.solution)
        return fault

    def fault_of_run(self, task, program):
        """The Fault of a program that parses; its line counts from the program's first."""
        job = {"program": program, "seconds": SECONDS}
        if task.kind == "assert":
            return self.record(job | {"tests": task.tests, "entry_point": task.entry_point})
        for test in task.tests:
            fault = self.record(job | {"input": test["input"]})
            if fault and (fault.error or not same_output(fault.value, test["output"])):
                fault.test = f"input {test['input']!r}, expected output {test['output']!r}"
                return fault
        return None

    def record(self, job):
        """What examine.py says of a job -> Fault, or None if it came to no end."""
        body = (SCRIPT.read_text(), json.dumps(job))
        try:
            _, _, output, _ = self.server.run("stdio", body, LIMITS, True, threading.Event())
            record = dict(json.loads(output))
        except (HarnessError, ValueError, TypeError):
            return None
        texts = {key: str(record.get(key, "")) for key in ("test", "value", "error")}
        line = record.get("line")
        return Fault(**texts, line=line - 1 if isinstance(line, int) else None)


def code_lines(text):
    """[(index, line)] of the lines that are neither blank nor comments."""
    lines = enumerate(text.split("\n"))
    return [(i, line) for i, line in lines if line.strip() and not line.lstrip().startswith("#")]


def first_difference(completion, solution):
    """The first line of code unlike the expert's -> (its index, the expert's line).

    (None, "") if there is none. A program that ends too early differs in its last line.
    Example: "\\nx = 1\\n# why\\ny = 2", "\\nx = 1\\ny = 3" -> (3, "y = 3")
    """
    written = code_lines(completion)
    expert = code_lines(solution)
    for (i, line), (_, wanted) in zip(written, expert, strict=False):
        if line.rstrip() != wanted.rstrip():
            return i, wanted.strip()
    if len(written) < len(expert):
        return (written[-1][0] if written else 0), expert[len(written)][1].strip()
    if len(written) > len(expert):
        return written[len(expert)][0], "nothing more"
    return None, ""
