"""Functions of a Python source: what an item of a corpus holds, with and without its comments.

A function is dedented and keeps its decorators, signature and docstring, which are the prompt.
Its comments are removed unless they are asked for.
A faulty item is never an error: it is counted, under the names of COUNTED.
"""

import ast
import hashlib
import inspect
import io
import tokenize

from config import progress_bar
from corpus.sources import BAD, chunks, python2, read_item, sources
from data import syntax_tree

DEFS = (ast.FunctionDef, ast.AsyncFunctionDef)
DROPPED = (
    "rewritten",
    "duplicate",
    "contaminated",
    "no_docstring",
    "too_long",
    "too_short",
    "no_line",
    "near_duplicate",
)
COUNTED = ("items", *BAD, "found", *DROPPED, "kept", "tokens")
UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)  # what the parser may raise


def strip_comments(text):
    """Python without its comments: comment lines and blanks before a trailing comment go too.

    So does a backslash that joined a line to a comment.     Docstrings stay.
    Raises SyntaxError or tokenize.TokenError.
    Example: "# a\n\nx = 1  # b\n" -> "\nx = 1\n".
    """
    if "#" not in text:
        return text
    lines = text.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            code = lines[row - 1][:column].rstrip()
            lines[row - 1] = code or None
            if not code and row > 1 and (lines[row - 2] or "").endswith("\\"):
                lines[row - 2] = lines[row - 2][:-1].rstrip()
    return "\n".join(line for line in lines if line is not None)


def meaning(node):
    """The syntax tree of a function or a module as text, blind to indentation in docstrings."""
    for child in ast.walk(node):
        if not isinstance(child, DEFS + (ast.ClassDef,)):
            continue
        if ast.get_docstring(child, clean=False) is not None:
            literal = child.body[0].value
            literal.value = inspect.cleandoc(literal.value)
    return ast.dump(node)


def functions(source, unit="definitions", keep_comments=False):
    """Functions of a module and methods of its classes -> yields (name, text, prompt_chars).

    source         Python source. The text of a unit is dedented, without a final newline.
    unit           "definitions"; "functions" or "methods" only; "files": the module, named "".
    keep_comments  leave comments in the text.

    text[:prompt_chars] is the prompt: decorators, signature and docstring, up to a line's end.
    The text is None if dedenting would change the syntax tree, as in a string of several lines.
    Raises SyntaxError, ValueError or RecursionError if the source is not Python.
    """
    tree = syntax_tree(source)
    if unit != "files":
        lines = source.split("\n")
        for name, node in definitions(tree.body, unit):
            yield name, *clean_text(dedented(lines, node), node, keep_comments)
    elif tree.body:
        yield "", *clean_text(source, tree, keep_comments)


def definitions(body, unit, prefix=""):
    """Outermost functions and methods of these statements -> yields (dotted name, node)."""
    for node in body:
        if isinstance(node, ast.ClassDef) and unit != "functions":
            yield from definitions(node.body, unit, f"{prefix}{node.name}.")
        elif isinstance(node, DEFS) and (prefix or unit != "methods"):
            yield prefix + node.name, node


def dedented(lines, node):
    """The source of a function, decorators included, without the indentation of its first line."""
    begin = min(n.lineno for n in [node] + node.decorator_list) - 1
    rows = lines[begin : node.end_lineno]
    margin = rows[0][: len(rows[0]) - len(rows[0].lstrip())]
    return "\n".join(row.removeprefix(margin) for row in rows)


def clean_text(text, node, keep_comments):
    """(text without comments, prompt_chars), or (None, 0) if its syntax tree is not `node`."""
    try:
        text = (text if keep_comments else strip_comments(text)).rstrip()
        tree = syntax_tree(text)
    except (SyntaxError, tokenize.TokenError, RecursionError):
        return None, 0
    if not isinstance(node, ast.Module):
        tree = tree.body[0]
    try:
        same = meaning(node) == meaning(tree)
    except RecursionError:
        return None, 0
    return (text, header_chars(text, tree)) if same else (None, 0)


def header_chars(text, node):
    """Characters of a unit's prompt: its docstring's end, else the end of its signature."""
    rows = text.split("\n")
    if ast.get_docstring(node, clean=False) is not None:
        return len("\n".join(rows[: node.body[0].end_lineno]))
    if isinstance(node, ast.Module):
        return 0  # data.snippet then takes the first statement as the prompt
    statement = node.body[0]
    first = min(n.lineno for n in [statement] + getattr(statement, "decorator_list", []))
    return len("\n".join(rows[: max(first - 1, node.lineno)]).rstrip())


def documented(text, unit="definitions"):
    """Has a function, or with unit "files" a module, a docstring?"""
    tree = syntax_tree(text)
    return ast.get_docstring(tree if unit == "files" else tree.body[0]) is not None


def units(item, counts, unit="definitions", keep_comments=False):
    """The units of an item -> (list of (name, text or None, prompt_chars), the item's bytes).

    counts: a dict of COUNTED; the item and what is wrong with it are added.
    """
    text, raw, problem = read_item(item)
    counts["items"] += 1
    result = []
    if not problem:
        try:
            for name, code, prompt in functions(text, unit, keep_comments):
                full_name = f"{item.name}:{name}" if name else item.name
                result.append((full_name, code, prompt))
        except UNREADABLE:
            problem = "python2" if python2(text) else "syntax_error"
    if problem:
        counts[problem] += 1
    counts["found"] += len(result)
    return result, raw


def distinct(spec, counts, column="text", progress=True):
    """Functions of the sources in `spec`, each text once -> yields (name, text, prompt_chars).

    They come as one list an item. counts: a dict of COUNTED, kept up to date.
    """
    seen = set()
    origins = sources(spec, column)
    with progress_bar(
        total=sum(size for origin in origins for _, _, size in origin.files),
        desc="reading",
        unit="B",
        unit_scale=True,
        disable=not progress,
        delay=2,
        leave=False,
    ) as bar:
        for origin in origins:
            for size, batch in chunks(origin, column):
                for item in batch:
                    yield first_seen(units(item, counts)[0], seen, counts)
                bar.update(size)


def first_seen(found, seen, counts):
    """Units whose text is not in `seen`, a set of checksums, which grows; others are counted."""
    result = []
    for name, text, prompt in found:
        if text is None:
            counts["rewritten"] += 1
        elif (key := checksum(text)) in seen:
            counts["duplicate"] += 1
        else:
            seen.add(key)
            result.append((name, text, prompt))
    return result


def checksum(text):
    """64 bits of a text, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
