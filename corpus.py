"""Corpora of real Python: files to functions to snippets.

Comments are stripped, so that every comment is a latent; docstrings stay. What is given of a function (s_0) is its decorators, signature and
docstring. Nothing that can be wrong with a file ends the reading: it is counted.
"""
import ast
import inspect
import io
import json
import pathlib
import random
import sysconfig
import tokenize
import warnings

from tqdm import tqdm

from config import UserError
from data import snippet

SKIP = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3", "turtledemo", "__pycache__"}    # folders of the standard library
DEFS = (ast.FunctionDef, ast.AsyncFunctionDef)
COUNTED = ("files", "functions", "kept", "undecodable", "syntax_error", "bad_json", "rewritten", "duplicate", "too_long", "too_short", "no_line")


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
    """What a function does, as text that is blind to the indentation of its docstrings."""
    for sub in ast.walk(node):
        if isinstance(sub, DEFS + (ast.ClassDef,)) and ast.get_docstring(sub, clean=False) is not None:
            sub.body[0].value.value = inspect.cleandoc(sub.body[0].value.value)
    return ast.dump(node)


def functions(source):
    """Functions of a module and methods of its classes -> (name, text, prompt_chars) each, dedented, without comments or final newline.

    text[:prompt_chars] is what is given: decorators, signature and docstring, up to the end of a line. A function whose syntax tree would
    change (a string whose lines lose indentation) is yielded with text None. Raises SyntaxError, ValueError or RecursionError
    where `source` is not Python.
    """
    lines = source.split("\n")

    def visit(body, prefix):
        for node in body:
            if isinstance(node, ast.ClassDef):
                yield from visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, DEFS):
                begin = min(n.lineno for n in [node] + node.decorator_list) - 1
                text = lines[begin:node.end_lineno]
                margin = text[0][:len(text[0]) - len(text[0].lstrip())]
                text = "\n".join(line.removeprefix(margin) for line in text)
                try:
                    text = strip_comments(text).rstrip()
                    new = ast.parse(text).body[0]
                    same = meaning(node) == meaning(new)
                except (SyntaxError, tokenize.TokenError):
                    same = False
                yield prefix + node.name, *((text, header(text, new)) if same else (None, 0))

    def header(text, node):
        rows = text.split("\n")
        if ast.get_docstring(node, clean=False) is not None:
            return len("\n".join(rows[:node.body[0].end_lineno]))
        first = min(n.lineno for n in [node.body[0]] + getattr(node.body[0], "decorator_list", []))
        return len("\n".join(rows[:max(first - 1, node.lineno)]).rstrip())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                      # invalid escapes in strings are not ours to report
        yield from visit(ast.parse(source).body, "")


def sources(spec, seed, shuffle):
    """Sources of a corpus -> list of (name, function that returns the text). Raises UserError where there is none."""
    def read(path):
        raw = path.read_bytes()
        try:
            text = raw.decode(tokenize.detect_encoding(io.BytesIO(raw).readline)[0])
        except SyntaxError as e:                             # a coding line with an unknown name
            raise LookupError(str(e)) from None
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def field(line):
        record = json.loads(line)
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise KeyError("text")
        return record["text"].replace("\r\n", "\n").replace("\r", "\n")

    expected = "expected 'stdlib', a folder of .py files, a .py file or a .jsonl file with a field 'text'"
    path = pathlib.Path(sysconfig.get_path("stdlib") if spec == "stdlib" else spec).expanduser()
    if path.is_dir():
        skip = SKIP if spec == "stdlib" else {"__pycache__"}
        files = [p for p in path.rglob("*.py") if not skip & set(p.relative_to(path).parts)]
        found = [(str(p.relative_to(path)), lambda p=p: read(p)) for p in sorted(files) if p.is_file()]
    elif path.suffix == ".py" and path.is_file():
        found = [(path.name, lambda: read(path))]
    elif path.suffix == ".jsonl" and path.is_file():
        found = [(f"{path.name}:{n}", lambda line=line: field(line)) for n, line in enumerate(path.read_bytes().split(b"\n"), 1) if line.strip()]
    else:
        raise UserError(f"corpus {spec!r}: {'not a kind of file known here' if path.exists() else 'no such file or folder'}; {expected}")
    if not found:
        raise UserError(f"corpus {spec!r}: nothing in it; {expected}")
    if shuffle:
        random.Random(seed).shuffle(found)
    return found


def distinct(spec, counts, seed=0, shuffle=False, progress=True):
    """Functions in `spec`, each text once -> yields a list of (name, text, prompt_chars) a file. counts: a dict of COUNTED, kept up to date."""
    seen = set()
    for name, read in tqdm(sources(spec, seed, shuffle), desc="reading", unit="file", disable=not progress, delay=2, leave=False):
        counts["files"] += 1
        found = []
        try:
            text = read()
            text.encode()
            for function, text, prompt in functions(text):
                counts["functions"] += 1
                if text is None:
                    counts["rewritten"] += 1
                elif text in seen:
                    counts["duplicate"] += 1
                else:
                    seen.add(text)
                    found.append((f"{name}:{function}", text, prompt))
        except (json.JSONDecodeError, KeyError):
            counts["bad_json"] += 1
        except (UnicodeError, LookupError, OSError):
            counts["undecodable"] += 1
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            counts["syntax_error"] += 1
        yield found


def corpus(spec, tok, max_tokens, min_lines=2, max_snippets=None, seed=0, progress=True, check=None):
    """Snippets of the functions in `spec` -> (list of Snippet, counts). Same arguments, same files: same list.

    spec        'stdlib' (the running Python's library, without its tests), a folder of .py files, a .py file, or a .jsonl file whose
                lines hold source code in a field `text`.
    max_tokens  longer snippets are left out (eos counts); min_lines: so are those with fewer lines that can take a thought.
    max_snippets  a sample of that many, drawn with `seed`: files in random order until there are four times as many functions.
    check       says of a function's (name, text) whether it is to be dropped (`decontaminate.Checker`), each before it is chosen; None: all stay.
    counts      files, functions, kept, and what was left out: contaminated (if there is a check), undecodable, syntax_error, bad_json, rewritten
                (text would not mean the same), duplicate (same text), too_long, too_short, no_line (no line can take a thought).
    Raises UserError if nothing is left.
    """
    counts, found = dict.fromkeys(COUNTED + ("contaminated",) * (check is not None), 0), []
    for some in distinct(spec, counts, seed, max_snippets is not None, progress):
        found += some
        if max_snippets is not None and len(found) >= 4 * max_snippets:
            break
    if max_snippets is not None:
        random.Random(seed).shuffle(found)
    kept = []
    for name, text, prompt in tqdm(found, desc="cutting into lines", unit="function", disable=not progress, delay=2, leave=False):
        if max_snippets is not None and len(kept) >= max_snippets:
            break
        if check is not None and check(name, text):
            counts["contaminated"] += 1
            continue
        if len(text) > max_tokens and len(tok.encode(text)) >= max_tokens:
            counts["too_long"] += 1
            continue
        snip = snippet(tok, text, prompt, name)
        if snip is None or len(snip.ids) > max_tokens or len(snip.first) < min_lines:
            counts["no_line" if snip is None else "too_long" if len(snip.ids) > max_tokens else "too_short"] += 1
        else:
            kept.append(snip)
    counts["kept"] = len(kept)
    if not kept:
        said = ", ".join(f"{k} {n}" for k, n in counts.items() if n)
        raise UserError(f"corpus {spec!r}: no function of {min_lines} or more lines and at most {max_tokens} tokens ({said}); "
                        "give other code, or change max_tokens or min_lines")
    return kept, counts
