"""Where code comes from: what --data may name, read as a stream of items.

    stdlib                            the running Python's library, without its tests
    sympy, scikit-learn, json         an installed package, by its name or its import name
                                      (of the standard library too), without its tests
    my/project                        a folder of .py files; or, if it holds none, of record files
    a.py                              one file
    a.jsonl  a.jsonl.gz  a.parquet    records, with source code in the column --text-column
    stdlib,sympy,my/project,a.jsonl   several; a function in two of them counts for the first

An item is a file or a record. A faulty item never ends the reading: it is counted under one of BAD.
Files are listed; records are read in order and never held together.
"""

import dataclasses
import gzip
import importlib.metadata
import io
import json
import os
import pathlib
import re
import sys
import sysconfig
import tokenize
import zlib

from tqdm import tqdm

from config import UserError, nearest

SKIP_STDLIB = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "lib2to3",
    "turtledemo",
    "__pycache__",
}
SKIP_PACKAGE = {"test", "tests", "doc", "docs", "__pycache__"}
SKIP_FOLDER = {"site-packages", "node_modules", "__pycache__"}  # and names that begin with a dot
RECORDS = (".jsonl", ".jsonl.gz", ".parquet")
BAD = ("undecodable", "giant", "bad_record", "python2", "syntax_error")
GIANT = 4 << 20  # characters of a file or record, at most
LONG_LINE = 100_000  # characters of one of its lines, at most
CHUNK = 1 << 20  # bytes of items that are worked on together, about
SAMPLE = 1000  # lines of a .jsonl that are searched for an object
EXPECTED = (
    "expected 'stdlib', an installed package, a folder of .py files, a .py file, or a .jsonl, "
    ".jsonl.gz or .parquet with a text column"
)
PYTHON2 = re.compile(
    r"""
    ^[ \t]* (
        print [ \t]+ [^\s(=.,:)\]]
      | exec [ \t]+ ['"\w]
      | except [ \t]+ [\w.()]+ [ \t]* , [ \t]* \w+ [ \t]* :
      | raise [ \t]+ [\w.]+ [ \t]* ,
    )
    """,
    re.MULTILINE | re.VERBOSE,
)
PERMISSIVE = re.compile(
    r"\b(mit|mit-0|0?bsd|apache|isc|zlib|psf|python software foundation|python-2\.0|cnri"
    r"|unlicense|cc0|public domain|boost|bsl-1\.0|hpnd"
    r"|permission is hereby granted, free of charge"
    r"|redistribution and use in source and binary forms)\b",
    re.IGNORECASE,
)
TEXT_TYPE = re.compile(
    r"(large_)?string|string_view|dictionary<values=(large_)?string, .*>"
)  # of a .parquet's column
COPYLEFT = re.compile(r"\b([al]?gpl|gnu|mpl|mozilla|epl|eupl|copyleft|proprietary)", re.IGNORECASE)


@dataclasses.dataclass
class Source:
    spec: str  # as in --data
    files: list  # (name, path, bytes) in a fixed order
    about: dict  # kind; of a package its version, licence, and whether that is permissive


@dataclasses.dataclass
class Item:
    name: str
    path: pathlib.Path = None  # a file yet to be read,
    text: str = None  # or a record's text,
    bad: str = ""  # or why there is none: one of BAD


# ---------------------------------------------------------------- what --data names


def sources(spec, column="text"):
    """The sources of a comma-separated spec -> list of Source.

    Raises UserError for a source that does not exist or lacks the column, or if all are empty.
    """
    names = dict.fromkeys(name.strip() for name in spec.split(",") if name.strip())
    result = [source(name) for name in names]
    for origin in result:
        if origin.about["kind"] == "records" and origin.files:
            check_column(origin.files[0][1], column)
    if not any(origin.files for origin in result):
        raise UserError(f"corpus {spec!r}: nothing in it; {EXPECTED}")
    return result


def source(spec):
    """One Source. Raises UserError."""
    path = pathlib.Path(spec).expanduser()
    if spec == "stdlib":
        return stdlib(spec)
    if path.is_dir():
        return folder_source(spec, path)
    if path.is_file() and path.name.endswith((".py",) + RECORDS):
        kind = "file" if path.suffix == ".py" else "records"
        return Source(spec, [(path.name, path, path.stat().st_size)], {"kind": kind})
    if path.exists():
        raise UserError(f"corpus {spec!r}: not a kind of file known here; {EXPECTED}")
    return package(spec)


def folder_source(spec, path):
    """The .py files of a folder; if it holds none, its files of records."""

    def wanted(name):
        return name.endswith((".py",) + RECORDS) and not name.startswith(".")

    files = list(walk(path, SKIP_FOLDER, wanted))
    code = [file for file in files if file[0].endswith(".py")]
    if code and len(code) < len(files):
        left_out = next(name for name, _, _ in files if not name.endswith(".py"))
        tqdm.write(
            f"corpus {spec}: its .py files are read and its files of records are not ({left_out}, "
            f"{len(files) - len(code)} in all); name them in --data to read them",
            file=sys.stderr,
        )
    return Source(spec, code or files, {"kind": "records" if files and not code else "folder"})


def stdlib(spec):
    """The standard library, or one module or package of it."""
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    files = []
    for file in walk(root, SKIP_STDLIB, lambda name: name.endswith(".py")):
        if spec in ("stdlib", file[0].split("/")[0].removesuffix(".py")):
            files.append(file)
    about = {
        "kind": "package",
        "version": ".".join(map(str, sys.version_info[:3])),
        "licence": "PSF-2.0",
        "permissive": True,
    }
    return Source(spec, files, about)


def walk(root, skip, wanted, prefix=""):
    """Files below a folder, in alphabetical order -> yields (name, path, bytes).

    An unreadable folder counts as empty.
    """
    try:
        entries = sorted(os.scandir(root), key=lambda e: e.name)
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            hidden = skip is SKIP_FOLDER and entry.name.startswith(".")
            if entry.name not in skip and not hidden:
                yield from walk(entry.path, skip, wanted, f"{prefix}{entry.name}/")
        elif wanted(entry.name) and entry.is_file():
            yield prefix + entry.name, pathlib.Path(entry.path), entry.stat().st_size


def package(spec):
    """The .py files of an installed package. Raises UserError if there is none of that name."""
    module = None
    try:
        dist = importlib.metadata.distribution(spec)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        if spec in sys.stdlib_module_names:
            return stdlib(spec)
        module = spec
        dist = importlib.metadata.distribution(distribution_of(spec))
    files = package_files(dist, module)
    if not files:
        raise UserError(
            f"corpus {spec!r}: the installed package {dist.metadata['Name']} records no .py file; "
            "give its folder"
        )
    about = {"kind": "package", "version": dist.version, **licence(dist.metadata)}
    return Source(spec, files, about)


def distribution_of(module):
    """The distribution that brought a module. Raises UserError, which names the nearest one."""
    known = importlib.metadata.packages_distributions()
    if module in known:
        return known[module][0]
    installed = (str(d.metadata["Name"]) for d in importlib.metadata.distributions())
    names = {*known, *sys.stdlib_module_names, *installed}
    near = nearest(module, names)
    hint = f" (did you mean {near}?)" if near else ""
    raise UserError(
        f"corpus {module!r}: no such file or folder, and no installed package of that name{hint}; "
        f"{EXPECTED}"
    ) from None


def package_files(dist, module):
    """(name, path, bytes) of a distribution's .py files, tests apart; of one module if not None."""
    result = []
    for file in sorted(dist.files or []):
        if file.suffix != ".py" or ".." in file.parts or SKIP_PACKAGE & set(file.parts):
            continue
        if module is not None and file.parts[0].removesuffix(".py") != module:
            continue
        path = pathlib.Path(dist.locate_file(file))
        if path.is_file():
            result.append((str(file), path, path.stat().st_size))
    return result


def licence(meta):
    """A package's licence according to its metadata -> {licence, permissive}.

    Permissive are MIT, BSD, Apache, ISC, zlib, PSF, Unlicense, CC0, Boost and HPND.
    Of "A AND B" both must be permissive, of "A OR B" one.
    """
    text = meta.get("License-Expression") or licence_classifiers(meta) or meta.get("License") or ""
    lines = [line.strip()[:100] for line in text.split("\n") if line.strip()]
    return {
        "licence": lines[0] if lines else "not given",
        "permissive": all(map(permissive, text.split(" AND "))),
    }


def licence_classifiers(meta):
    """The licence in a package's classifiers. Example: "MIT License AND BSD License" """
    names = []
    for classifier in meta.get_all("Classifier") or []:
        name = classifier.split(" :: ")[-1]
        if classifier.startswith("License ::") and name != "OSI Approved":
            names.append(name)
    return " AND ".join(names)


def permissive(text):
    """Is one of these alternatives a permissive licence? Example: "MIT OR GPL-3.0" -> True"""
    for alternative in text.split(" OR "):
        if PERMISSIVE.search(alternative) and not COPYLEFT.search(alternative):
            return True
    return False


# ---------------------------------------------------------------- items


def chunks(source, column="text"):
    """The items of a source in batches -> yields (bytes read of its files, list of Item)."""
    batch = []
    size = 0
    for n, item in items(source, column):
        batch.append(item)
        size += n
        if size >= CHUNK or len(batch) >= 1000:
            yield size, batch
            batch = []
            size = 0
    if batch:
        yield size, batch


def items(source, column):
    """The items of a source -> yields (bytes, Item). Records count from 1, by line in a .jsonl."""
    for name, path, size in source.files:
        if name.endswith(".py"):
            yield size, Item(name, path=path)
        else:
            yield from records(name, path, size, column)


def records(name, path, size, column):
    """The records of a file -> yields (bytes, Item).

    A damaged archive is read up to the damage, which is told and counted.
    """
    reader = parquet if name.endswith(".parquet") else jsonl
    done = 0
    n = 0
    try:
        for n, position, text, bad in reader(path, size, column):  # noqa: B007 (n is used below)
            yield position - done, Item(f"{name}:{n}", text=text, bad=bad)
            done = position
    except (OSError, EOFError, zlib.error, ValueError, UserError) as e:
        reason = " ".join(str(e).split())[:200]
        tqdm.write(
            f"corpus {str(path)!r}: read up to record {n} ({type(e).__name__}: {reason})",
            file=sys.stderr,
        )
        yield size - done, Item(f"{name}:{n + 1}", bad="undecodable")


def jsonl(path, size, column):
    """Records of a .jsonl or .jsonl.gz -> yields (line, bytes so far, text or None, problem)."""
    with open(path, "rb") as raw, unpacked(path, raw) as file:
        n = 0
        while line := file.readline(2 * GIANT):
            n += 1
            if len(line) == 2 * GIANT and not line.endswith(b"\n"):
                skip_line(file)
                yield n, raw.tell(), None, "giant"
            elif line.strip():
                yield n, raw.tell(), *text_of(line, column)


def unpacked(path, raw):
    """An open file of lines, decompressed if its name says so."""
    return gzip.open(raw) if path.name.endswith(".gz") else raw


def skip_line(file):
    """Read on to the end of a line."""
    while (line := file.readline(2 * GIANT)) and not line.endswith(b"\n"):
        pass


def text_of(line, column):
    """The text of a JSON line -> (text, "") or (None, "bad_record")."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None, "bad_record"
    text = record.get(column) if isinstance(record, dict) else None
    return (text, "") if isinstance(text, str) else (None, "bad_record")


def parquet(path, size, column):
    """Records of a .parquet file -> yields as jsonl."""
    check_column(path, column)
    file = open_parquet(path)
    n = 0
    for batch in file.iter_batches(batch_size=256, columns=[column]):
        for value in batch.column(0):
            n += 1
            bad = ""
            try:
                text = value.as_py()
            except UnicodeDecodeError:
                text = None
                bad = "undecodable"
            if not isinstance(text, str):
                text = None
                bad = bad or "bad_record"
            yield n, size * n // file.metadata.num_rows, text, bad


def open_parquet(path):
    """A pyarrow ParquetFile. Raises UserError without the package, or if the file is another."""
    try:
        import pyarrow.lib
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            f"corpus {str(path)!r}: reading .parquet needs the package pyarrow (extra corpora): "
            "pip install pyarrow==26.0.1, or give a .jsonl"
        ) from None
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.lib.ArrowException, OSError) as e:
        reason = str(e).splitlines()[0]
        raise UserError(f"corpus {str(path)!r}: cannot be read as .parquet ({reason})") from None


def check_column(path, column):
    """Raises UserError if a file of records has no such column, or one that holds no text.

    A .jsonl is judged by its first object.
    """
    is_parquet = path.name.endswith(".parquet")
    columns = parquet_columns(path) if is_parquet else jsonl_columns(path)
    if columns is None:
        return  # no object: each line will be counted
    if column not in columns:
        raise UserError(
            f"corpus {str(path)!r}: no column {column!r}; it has "
            f"{', '.join(map(str, columns)) or 'none'}; give one of them as --text-column"
        )
    if is_parquet and not TEXT_TYPE.fullmatch(columns[column]):
        listed = ", ".join(f"{name} ({kind})" for name, kind in columns.items())
        raise UserError(
            f"corpus {str(path)!r}: column {column!r} holds {columns[column]}, expected text; "
            f"it has {listed}; give another one as --text-column"
        )


def parquet_columns(path):
    """{column: its type} of a .parquet. Raises UserError."""
    return {field.name: str(field.type) for field in open_parquet(path).schema_arrow}


def jsonl_columns(path):
    """{column: its type} of the first object of a .jsonl, or None. Raises UserError."""
    try:
        with open(path, "rb") as raw, unpacked(path, raw) as file:
            for _ in range(SAMPLE):
                line = file.readline(2 * GIANT)
                if not line:
                    break
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    record = None
                if isinstance(record, dict):
                    return {key: type(value).__name__ for key, value in record.items()}
            return None
    except (OSError, EOFError, zlib.error) as e:
        raise UserError(f"corpus {str(path)!r}: cannot be read ({e})") from None


def read_item(item):
    """The text of an item, newlines as "\\n" -> (text or None, its bytes, problem: one of BAD)."""
    if item.bad:
        return None, b"", item.bad
    try:
        if item.path is None:
            text = item.text
            raw = text.encode()
        else:
            if item.path.stat().st_size > GIANT:
                return None, b"", "giant"
            raw = item.path.read_bytes()
            text = raw.decode(tokenize.detect_encoding(io.BytesIO(raw).readline)[0])
            text.encode()  # raises for lone surrogates
    except (UnicodeError, LookupError, OSError, SyntaxError):  # SyntaxError: an unknown coding
        return None, b"", "undecodable"
    text = text.removeprefix("\ufeff")  # in a file its decoder has dropped it
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if len(text) > GIANT or len(text) > LONG_LINE and max(map(len, text.split("\n"))) > LONG_LINE:
        return None, raw, "giant"
    return text, raw, ""


def python2(text):
    """Does a text that is no Python look like Python 2? Example: "print 'x'\\n" -> True."""
    return PYTHON2.search(text) is not None
