"""A script for the grader's walls: run a program on its tests, and say how far it came.

It reads one JSON object from its standard input, with the program, its tests and the name of the
tested function, or the program and its input. It writes one to its standard output:

    error   the exception that ended it, in words; not there if nothing did
    line    number of the program's line that was running then
    test    the assertion that was running then
    value   what the left side of that assertion is; of a program with an input, its output

faults.py starts it. What it says is a help to the reader and no verdict: a program can lie here,
and wins nothing by it.
"""

import ast
import io
import json
import os
import signal
import sys

LONGEST = 300  # characters of a text


class Late(BaseException):
    """The time is over."""


def stop_late(*_):
    raise Late("still running")


def frames_of(error, file):
    """[(frame, line number)] of an exception's traceback that are in a file, outermost first."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            frames.append((trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    return frames


def describe_test(tests, frame, line):
    """The assertion of a line, and the value of its left side, worked out once more."""
    record = {}
    for node in ast.walk(ast.parse(tests)):
        if isinstance(node, ast.Assert) and node.lineno <= line <= node.end_lineno:
            record["test"] = ast.unparse(node)[:LONGEST]
            if isinstance(node.test, ast.Compare):
                code = compile(ast.Expression(node.test.left), "<again>", "eval")
                try:
                    value = eval(code, frame.f_globals, frame.f_locals)
                    record["value"] = repr(value)[:LONGEST]
                except BaseException as e:
                    record["value"] = type(e).__name__
    return record


def run_tests(job):
    names = {"__name__": "program"}
    exec(compile(job["program"], "<program>", "exec"), names)
    exec(compile(job["tests"], "<tests>", "exec"), names)
    if "check" in names:
        exec(compile(f"check({job['entry_point']})", "<call>", "exec"), names)


def run_script(job):
    sys.stdin = io.StringIO(job["input"])
    names = {"__name__": "__main__"}
    exec(compile(job["program"], "<program>", "exec"), names)


def examine(job):
    """Run a program -> what there is to say of it, a dict."""
    record = {}
    printed = sys.stdout = io.StringIO()
    signal.signal(signal.SIGALRM, stop_late)
    signal.setitimer(signal.ITIMER_REAL, job["seconds"])
    try:
        run_script(job) if "input" in job else run_tests(job)
    except BaseException as e:
        record["error"] = f"{type(e).__name__}: {e}".removesuffix(": ")[:LONGEST]
        if frames := frames_of(e, "<program>"):
            record["line"] = frames[-1][1]
        if frames := frames_of(e, "<tests>"):
            record |= describe_test(job["tests"], *frames[-1])
    signal.setitimer(signal.ITIMER_REAL, 0)
    if "input" in job:
        record["value"] = printed.getvalue()[:LONGEST]
    return record


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "w") as out:
        out.write(json.dumps(examine(json.loads(sys.stdin.read()))))
