"""From a model's program to the part of it that the entry point needs, as EvalPlus does it."""

import ast
import dataclasses
import re

from data import syntax_tree
from grader.assertions import prepare


def sanitise(program, entry_point, needed=()):
    """What EvalPlus's sanitize (evalplus/sanitize.py) keeps of a text.

    Kept are, of the longest span of lines that parses, the imports, then the top-level functions,
    classes and assignments that the entry point reaches by name. Of two with one name the first is
    kept. Comments inside them stay.

    Departures from EvalPlus
    1. Decorators, annotated assignments and every target of an assignment count too.
    2. One line will do.
    3. A function without a return is kept where it is reached: a generator, for instance.
    4. Names that the tests need of the program (`needed`) count as reached.
    """
    source, imports, parts, name = longest_span(program), [], {}, re.match(r"\w*", entry_point)[0]
    lines = source.encode().split(b"\n")
    for node in syntax_tree(source).body:
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        text = lines[first - 1 : node.end_lineno]
        text[-1] = text[-1][: node.end_col_offset]
        text[0] = text[0][node.col_offset if first == node.lineno else 0 :]  # after a semicolon
        text = b"\n".join(text).decode()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            imports.append(text)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            parts.setdefault(node.name, (text, node))
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in (
                n
                for t in getattr(node, "targets", None) or [node.target]
                for n in ast.walk(t)
                if isinstance(n, ast.Name)
            ):
                parts.setdefault(target.id, (text, node))
    todo, reached = [name, *needed], set()
    while todo:
        if (at := todo.pop()) in parts and at not in reached:
            reached.add(at)
            todo += [
                n.id if isinstance(n, ast.Name) else n.attr
                for n in ast.walk(parts[at][1])
                if isinstance(n, (ast.Name, ast.Attribute))
            ]
    return "\n".join(
        imports + list(dict.fromkeys(text for n, (text, _) in parts.items() if n in reached))
    )


def sanitised(job):
    """The job with only what its tests need of its program; a script of kind stdio as it is."""
    if job.kind != "assert":
        return job
    needed = prepare(job.tests, job.entry_point.strip(), job.preamble).wanted
    return dataclasses.replace(job, program=sanitise(job.program, job.entry_point, needed))


def longest_span(text):
    """The longest span of lines that parses, in lines that are not empty; of several the first.

    A span that fails at a line fails with every other end at or after that line too, so one
    parse rules out many spans.
    """
    lines = text.split("\n")
    full = [0]
    for line in lines:
        full.append(full[-1] + bool(line.strip()))  # lines that are not empty before each
    best = (0, 0)
    for i in range(len(lines)):
        j = len(lines)
        while full[j] - full[i] > full[best[1]] - full[best[0]]:
            try:
                syntax_tree("\n".join(lines[i:j]))
                best = (i, j)
            except SyntaxError as e:
                j = min(j - 1, i + max(e.lineno or j, 1) - 1)
            except (ValueError, MemoryError, RecursionError):  # null bytes, too deep
                j -= 1
    return "\n".join(lines[best[0] : best[1]])
