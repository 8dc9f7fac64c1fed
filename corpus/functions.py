"""Python source to functions: what an item of a corpus (a file, a record) holds, with and without its comments.

A function is dedented and keeps its decorators, signature and docstring, which are what a model is given; its comments go, unless they are asked for. Nothing
that can be wrong with an item is an error: it is counted, under the names of COUNTED.
"""

import ast
import hashlib
import inspect
import io
import tokenize

from tqdm import tqdm

from corpus.sources import BAD, chunks, python2, read, sources
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


def strip_comments(text):
    """Python without its comments: lines that held only a comment vanish, blanks before a trailing comment go. Docstrings stay.

    Example: "# a\n\nx = 1  # b\n" -> "\nx = 1\n".   Raises SyntaxError or tokenize.TokenError.
    """
    if "#" not in text:
        return text
    lines = text.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip() or None
    return "\n".join(line for line in lines if line is not None)


def meaning(node):
    """What a function or a module does, as text that is blind to the indentation of its docstrings."""
    for sub in ast.walk(node):
        if (
            isinstance(sub, DEFS + (ast.ClassDef,))
            and ast.get_docstring(sub, clean=False) is not None
        ):
            sub.body[0].value.value = inspect.cleandoc(sub.body[0].value.value)
    return ast.dump(node)


def functions(source, unit="definitions", keep_comments=False):
    """Functions of a module and methods of its classes -> (name, text, prompt_chars) each, dedented, without comments or final newline.

    text[:prompt_chars] is what is given: decorators, signature and docstring, up to the end of a line. A function whose syntax tree would
    change (a string whose lines lose indentation) is yielded with text None. unit: "functions" or "methods" only, or "files": the module as
    it is, under the name "". Raises SyntaxError, ValueError or RecursionError where `source` is not Python.
    """
    lines = source.split("\n")

    def visit(body, prefix):
        for node in body:
            if isinstance(node, ast.ClassDef) and unit != "functions":
                yield from visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, DEFS) and (prefix or unit != "methods"):
                begin = min(n.lineno for n in [node] + node.decorator_list) - 1
                text = lines[begin : node.end_lineno]
                margin = text[0][: len(text[0]) - len(text[0].lstrip())]
                yield (
                    prefix + node.name,
                    *plain("\n".join(line.removeprefix(margin) for line in text), node),
                )

    def plain(text, node):
        try:
            text = (text if keep_comments else strip_comments(text)).rstrip()
            tree = syntax_tree(text)
            new = tree if isinstance(node, ast.Module) else tree.body[0]
            return (text, header(text, new)) if meaning(node) == meaning(new) else (None, 0)
        except (SyntaxError, tokenize.TokenError, RecursionError):
            return None, 0

    def header(text, node):
        rows = text.split("\n")
        if ast.get_docstring(node, clean=False) is not None:
            return len("\n".join(rows[: node.body[0].end_lineno]))
        if isinstance(node, ast.Module):
            return 0  # then the first statement is what is given (data.snippet)
        first = min(n.lineno for n in [node.body[0]] + getattr(node.body[0], "decorator_list", []))
        return len("\n".join(rows[: max(first - 1, node.lineno)]).rstrip())

    tree = syntax_tree(source)
    if unit != "files":
        yield from visit(tree.body, "")
    elif tree.body:
        yield "", *plain(source, tree)


def documented(text, unit="definitions"):
    """Has a function, or with unit "files" a module, a docstring?"""
    tree = syntax_tree(text)
    return ast.get_docstring(tree if unit == "files" else tree.body[0]) is not None


def units(item, counts, unit="definitions", keep_comments=False):
    """What an item holds -> (list of (name, text or None, prompt_chars), the bytes it was read from). Counts the item, and what is wrong with it."""
    text, raw, bad = read(item)
    counts["items"] += 1
    found = []
    try:
        for name, part, prompt in [] if bad else functions(text, unit, keep_comments):
            found.append((f"{item.name}:{name}" if name else item.name, part, prompt))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        bad = "python2" if python2(text) else "syntax_error"
    if bad:
        counts[bad] += 1
    counts["found"] += len(found)
    return found, raw


def distinct(spec, counts, column="text", progress=True):
    """Functions in `spec`, each text once -> yields a list of (name, text, prompt_chars) an item. counts: a dict of COUNTED, kept up to date."""
    seen, found = set(), sources(spec, column)
    with tqdm(
        total=sum(size for one in found for _, _, size in one.files),
        desc="reading",
        unit="B",
        unit_scale=True,
        disable=not progress,
        delay=2,
        leave=False,
    ) as bar:
        for one in found:
            for size, some in chunks(one, column):
                for item in some:
                    kept = []
                    for name, text, prompt in units(item, counts)[0]:
                        key = text and checksum(text)
                        if text is None or key in seen:
                            counts["rewritten" if text is None else "duplicate"] += 1
                        else:
                            seen.add(key)
                            kept.append((name, text, prompt))
                    yield kept
                bar.update(size)


def checksum(text):
    """64 bits of a text, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
