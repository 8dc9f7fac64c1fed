"""Where code comes from: what --data may name, read as a stream of items.

    stdlib                            the running Python's library, without its tests
    sympy, scikit-learn, json         an installed package, by its name or the name it is imported by (of the standard library too), without its tests
    my/project                        a folder of .py files; or, if it holds none, of record files
    a.py                              one file
    a.jsonl  a.jsonl.gz  a.parquet    records, with source code in the column --text-column
    stdlib,sympy,my/project,a.jsonl   several; a function that stands in two of them counts for the first

An item is a file or a record. Nothing that can be wrong with one ends the reading: it is counted under one of BAD. Files are listed, records are
read in order and never held together.
"""

import dataclasses
import difflib
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

from config import UserError

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
SKIP_FOLDER = {"site-packages", "node_modules", "__pycache__"}  # and those that begin with a dot
RECORDS = (".jsonl", ".jsonl.gz", ".parquet")
BAD = ("undecodable", "giant", "bad_record", "python2", "syntax_error")
GIANT, LONG_LINE = 4 << 20, 100_000  # characters of a file or record; of one of its lines
CHUNK = 1 << 20  # bytes of items that are worked on together, about
PYTHON2 = re.compile(
    r"^[ \t]*(print[ \t]+[^\s(=.,:)\]]|exec[ \t]+['\"\w]|except[ \t]+[\w.()]+[ \t]*,[ \t]*\w+[ \t]*:|raise[ \t]+[\w.]+[ \t]*,)",
    re.MULTILINE,
)
PERMISSIVE = re.compile(
    r"\b(mit|mit-0|0?bsd|apache|isc|zlib|psf|python software foundation|python-2\.0|cnri|unlicense|cc0|public domain|boost"
    r"|bsl-1\.0|hpnd|permission is hereby granted, free of charge|redistribution and use in source and binary forms)\b",
    re.IGNORECASE,
)
COPYLEFT = re.compile(r"\b([al]?gpl|gnu|mpl|mozilla|epl|eupl|copyleft|proprietary)", re.IGNORECASE)


@dataclasses.dataclass
class Source:
    spec: str  # as given
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
    """Sources of a comma-separated spec -> list of Source. Raises UserError for one that is not there, that has no such column, or if all are empty."""
    names = list(dict.fromkeys(part.strip() for part in spec.split(",") if part.strip()))
    found = [source(name) for name in names]
    for one in found:
        for _, path, _ in one.files[:1] if one.about["kind"] == "records" else []:
            check_column(path, column)
    if not any(one.files for one in found):
        raise UserError(f"corpus {spec!r}: nothing in it; {EXPECTED}")
    return found


EXPECTED = "expected 'stdlib', an installed package, a folder of .py files, a .py file, or a .jsonl, .jsonl.gz or .parquet with a text column"


def source(spec):
    """One Source. Raises UserError."""
    path = pathlib.Path(spec).expanduser()
    if spec == "stdlib":
        return stdlib(spec)
    if path.is_dir():
        files = list(
            walk(
                path,
                SKIP_FOLDER,
                lambda name: name.endswith((".py",) + RECORDS) and not name.startswith("."),
            )
        )
        code = [f for f in files if f[0].endswith(".py")]
        return Source(spec, code or files, {"kind": "records" if files and not code else "folder"})
    if path.is_file() and path.name.endswith((".py",) + RECORDS):
        return Source(
            spec,
            [(path.name, path, path.stat().st_size)],
            {"kind": "file" if path.suffix == ".py" else "records"},
        )
    if path.exists():
        raise UserError(f"corpus {spec!r}: not a kind of file known here; {EXPECTED}")
    return package(spec)


def stdlib(spec):
    """The standard library, or one module or package of it."""
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    files = [
        f
        for f in walk(root, SKIP_STDLIB, lambda name: name.endswith(".py"))
        if spec in ("stdlib", f[0].split("/")[0].removesuffix(".py"))
    ]
    version = ".".join(map(str, sys.version_info[:3]))
    return Source(
        spec,
        files,
        {"kind": "package", "version": version, "licence": "PSF-2.0", "permissive": True},
    )


def walk(root, skip, wanted, prefix=""):
    """Files below a folder -> yields (name, path, bytes), folders and files of a folder in one alphabet. A folder that cannot be read is empty."""
    try:
        entries = sorted(os.scandir(root), key=lambda e: e.name)
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in skip and not (skip is SKIP_FOLDER and entry.name.startswith(".")):
                yield from walk(entry.path, skip, wanted, f"{prefix}{entry.name}/")
        elif wanted(entry.name) and entry.is_file():
            yield prefix + entry.name, pathlib.Path(entry.path), entry.stat().st_size


def package(spec):
    """The .py files that an installed package brought. Raises UserError if there is none of that name."""
    only = None
    try:
        dist = importlib.metadata.distribution(spec)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        if spec in sys.stdlib_module_names:
            return stdlib(spec)
        known = importlib.metadata.packages_distributions()
        if spec not in known:
            names = {
                *known,
                *sys.stdlib_module_names,
                *(str(d.metadata["Name"]) for d in importlib.metadata.distributions()),
            }
            near = difflib.get_close_matches(spec, names, 1)
            raise UserError(
                f"corpus {spec!r}: no such file or folder, and no installed package of that name"
                + (f" (did you mean {near[0]}?)" if near else "")
                + f"; {EXPECTED}"
            ) from None
        dist, only = importlib.metadata.distribution(known[spec][0]), spec
    files = [
        f
        for f in dist.files or []
        if f.suffix == ".py" and ".." not in f.parts and not SKIP_PACKAGE & set(f.parts)
    ]
    files = [
        (str(f), pathlib.Path(dist.locate_file(f)))
        for f in sorted(files)
        if only is None or f.parts[0].removesuffix(".py") == only
    ]
    files = [(name, path, path.stat().st_size) for name, path in files if path.is_file()]
    if not files:
        raise UserError(
            f"corpus {spec!r}: the installed package {dist.metadata['Name']} records no .py file; give its folder"
        )
    return Source(
        spec, files, {"kind": "package", "version": dist.version, **licence(dist.metadata)}
    )


def licence(meta):
    """A package's licence, as its metadata has it -> {licence, permissive}. Permissive: MIT, BSD, Apache, ISC, zlib, PSF, Unlicense, CC0, Boost, HPND;
    of "A AND B" both must be, of "A OR B" one."""
    given = meta.get("License-Expression")
    if not given:
        classes = [
            c.split(" :: ")[-1]
            for c in meta.get_all("Classifier") or []
            if c.startswith("License ::")
        ]
        given = " AND ".join(c for c in classes if c != "OSI Approved")
    given = given or meta.get("License") or ""
    good = all(
        any(PERMISSIVE.search(one) and not COPYLEFT.search(one) for one in part.split(" OR "))
        for part in given.split(" AND ")
    )
    return {
        "licence": next(
            (line.strip()[:100] for line in given.split("\n") if line.strip()), "not given"
        ),
        "permissive": good,
    }


# ---------------------------------------------------------------- items


def chunks(source, column="text"):
    """The items of a source, some at a time -> yields (bytes read of the source's files, list of Item)."""
    some, size = [], 0
    for n, item in items(source, column):
        some.append(item)
        size += n
        if size >= CHUNK or len(some) >= 1000:
            yield size, some
            some, size = [], 0
    if some:
        yield size, some


def items(source, column):
    """Yields (bytes, Item). Records are counted from 1, by line in a .jsonl."""
    for name, path, size in source.files:
        if name.endswith(".py"):
            yield size, Item(name, path=path)
            continue
        read, before, n = parquet if name.endswith(".parquet") else jsonl, 0, 0
        try:
            for n, at, text, bad in read(path, size, column):
                yield at - before, Item(f"{name}:{n}", text=text, bad=bad)
                before = at
        except (
            OSError,
            EOFError,
            zlib.error,
            ValueError,
            UserError,
        ) as e:  # a damaged archive: what came before it stays
            tqdm.write(
                f"corpus {str(path)!r}: read up to record {n} ({type(e).__name__}: {' '.join(str(e).split())[:200]})",
                file=sys.stderr,
            )
            yield size - before, Item(f"{name}:{n + 1}", bad="undecodable")


def jsonl(path, size, column):
    """Records of a .jsonl or .jsonl.gz -> yields (line, bytes so far, text or None, why there is none)."""
    with open(path, "rb") as raw, gzip.open(raw) if path.name.endswith(".gz") else raw as f:
        n = 0
        while line := f.readline(2 * GIANT):
            n += 1
            text, bad = None, ""
            if len(line) == 2 * GIANT and not line.endswith(b"\n"):
                bad = "giant"
                while (line := f.readline(2 * GIANT)) and not line.endswith(b"\n"):
                    pass
            elif not line.strip():
                continue
            else:
                try:
                    record = json.loads(line)
                    text = record.get(column) if isinstance(record, dict) else None
                    text, bad = (text, "") if isinstance(text, str) else (None, "bad_record")
                except (ValueError, RecursionError):
                    bad = "bad_record"
            yield n, raw.tell(), text, bad


def parquet(path, size, column):
    """Records of a .parquet file -> yields as jsonl."""
    check_column(path, column)
    file, n = open_parquet(path), 0
    for batch in file.iter_batches(batch_size=256, columns=[column]):
        for value in batch.column(0):
            n += 1
            try:
                text = value.as_py()
                text, bad = (text, "") if isinstance(text, str) else (None, "bad_record")
            except UnicodeDecodeError:
                text, bad = None, "undecodable"
            yield n, size * n // file.metadata.num_rows, text, bad


def open_parquet(path):
    """A pyarrow ParquetFile. Raises UserError if the package is missing, or the file is something else."""
    try:
        import pyarrow.lib
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            f"corpus {str(path)!r}: reading .parquet needs the package pyarrow; pip install pyarrow==26.0.1, or give a .jsonl"
        ) from None
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.lib.ArrowException, OSError) as e:
        raise UserError(
            f"corpus {str(path)!r}: cannot be read as .parquet ({str(e).splitlines()[0]})"
        ) from None


def check_column(path, column):
    """Raises UserError if a file of records has no such column, or it holds something else than text. A .jsonl is judged by its first object."""
    if path.name.endswith(".parquet"):
        columns = {field.name: str(field.type) for field in open_parquet(path).schema_arrow}
    else:
        columns = {}
        try:
            with open(path, "rb") as raw, gzip.open(raw) if path.name.endswith(".gz") else raw as f:
                for _, line in zip(range(1000), iter(lambda: f.readline(2 * GIANT), b"")):
                    try:
                        record = json.loads(line)
                    except (ValueError, RecursionError):
                        continue
                    if isinstance(record, dict):
                        columns = {
                            key: "string" if isinstance(value, str) else type(value).__name__
                            for key, value in record.items()
                        }
                        break
                else:
                    return  # no object: each line will be counted
        except (OSError, EOFError, zlib.error) as e:
            raise UserError(f"corpus {str(path)!r}: cannot be read ({e})") from None
    if column not in columns:
        raise UserError(
            f"corpus {str(path)!r}: no column {column!r}; it has {', '.join(map(str, columns)) or 'none'}; give one of them as "
            "--text-column"
        )
    if path.name.endswith(".parquet") and "string" not in columns[column]:
        raise UserError(
            f"corpus {str(path)!r}: column {column!r} holds {columns[column]}, expected text; it has "
            f"{', '.join(f'{k} ({v})' for k, v in columns.items())}; give another one as --text-column"
        )


def read(item):
    """The text of an item, newlines as "\\n", and the bytes it came from -> (text or None, bytes, why there is no text)."""
    if item.bad:
        return None, b"", item.bad
    try:
        if item.path is None:
            text, raw = item.text, item.text.encode()
        else:
            if item.path.stat().st_size > GIANT:
                return None, b"", "giant"
            raw = item.path.read_bytes()
            text = raw.decode(tokenize.detect_encoding(io.BytesIO(raw).readline)[0])
            text.encode()  # or lone surrogates would come up later
    except (
        UnicodeError,
        LookupError,
        OSError,
        SyntaxError,
    ):  # SyntaxError: a coding line with an unknown name
        return None, b"", "undecodable"
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if len(text) > GIANT or len(text) > LONG_LINE and max(map(len, text.split("\n"))) > LONG_LINE:
        return None, raw, "giant"
    return text, raw, ""


def python2(text):
    """Does a text that is no Python look like Python 2? Example: "print 'x'\\n" -> True."""
    return PYTHON2.search(text) is not None
