"""Corpora: what --data may name, the functions cut out of it, what is dropped, and the files.

A corpus is written completely or not at all, with the same bytes however often it is interrupted.
"""

import ast
import collections
import gzip
import inspect
import itertools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

import data
import train
from config import UserError, make
from corpus import __main__ as corpus_command
from corpus import functions, prepare, sources, store
from corpus.near import bands_of, signatures
from formats import tokenizers

HERE = pathlib.Path(__file__).resolve().parent.parent
GOOD = "def f(x):\n    y = x + 1\n    return y\n"


def prepared(spec, tok, cache, max_tokens=256, **how):
    return prepare.prepare_corpus(
        str(spec), tok, max_tokens, **{"cache": cache, "progress": False, "cores": 1, **how}
    )


def counted(whole):
    return {k: n for k, n in whole.manifest["counts"].items() if n and k != "tokens"}


def content(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


# ---------------------------------------------------------------- Python to functions


def test_comments_go_and_the_rest_stays():
    text = (
        'def f(x):  # why\n    # alone\n    """Doc # stays."""\n    y = "#"  # gone\n\n'
        "    return (y,  # a\n            # b\n            x)\n"
    )
    bare = functions.strip_comments(text)
    assert (
        bare == 'def f(x):\n    """Doc # stays."""\n    y = "#"\n\n    return (y,\n            x)\n'
    )
    assert ast.dump(ast.parse(bare)) == ast.dump(ast.parse(text))
    for module in (json, random, inspect):
        source = inspect.getsource(module)
        assert ast.dump(ast.parse(functions.strip_comments(source))) == ast.dump(ast.parse(source))


@pytest.mark.parametrize(
    "text, bare",
    [
        ("y = x \\\n    # why\nz = 1\n", "y = x\nz = 1\n"),
        ("y = x \\\n  \\\n# why\nz = 1\n", "y = x \\\n\nz = 1\n"),
        ("if x: \\\n  y = 1  # why\n", "if x: \\\n  y = 1\n"),
    ],
)
def test_a_comment_behind_a_backslash(text, bare):
    """The comment goes, and what it was joined to stays what it was."""
    assert functions.strip_comments(text) == bare
    assert ast.dump(ast.parse(bare)) == ast.dump(ast.parse(text))
    inside = "def f(x):\n" + textwrap.indent(text, "    ")
    ((_, kept, _),) = functions.functions(inside)
    assert "#" not in kept and ast.dump(ast.parse(kept)) == ast.dump(ast.parse(inside))


SOURCE = (
    "'''Top.'''\nclass A:\n    @property\n    def a(self):\n        '''One.\n\n        Two.'''\n"
    "        x = 1  # c\n        return x\n\n"
    "    def b(self):\n        return '''\n    kept'''\n\n"
    "async def f(\n    x,\n):\n    # why\n    @g\n    def h(): pass\n    return h\n"
)


def test_functions_of_a_module():
    found = {name: (text, prompt) for name, text, prompt in functions.functions(SOURCE)}
    text, prompt = found["A.a"]
    assert (
        text == "@property\ndef a(self):\n    '''One.\n\n    Two.'''\n    x = 1\n    return x"
        and text[:prompt].endswith("Two.'''")
    )
    assert found["A.b"] == (None, 0)  # dedenting would change a string
    text, prompt = found["f"]
    assert text[:prompt] == "async def f(\n    x,\n):" and list(found) == ["A.a", "A.b", "f"]


def test_units_and_kept_comments(trained):
    names = {
        unit: [name for name, _, _ in functions.functions(SOURCE, unit)]
        for unit in ("definitions", "functions", "methods", "files")
    }
    assert names == {
        "definitions": ["A.a", "A.b", "f"],
        "functions": ["f"],
        "methods": ["A.a", "A.b"],
        "files": [""],
    }
    ((_, text, prompt),) = functions.functions(SOURCE, "files")
    assert text == functions.strip_comments(SOURCE).rstrip() and text[:prompt] == "'''Top.'''"
    assert list(functions.functions("# nothing\n", "files")) == []
    kept = {name: text for name, text, _ in functions.functions(SOURCE, keep_comments=True)}
    assert "x = 1  # c\n" in kept["A.a"] and kept["f"] == SOURCE[SOURCE.index("async") :].rstrip()
    for name, text, prompt in functions.functions(
        inspect.getsource(random), keep_comments=True
    ):  # a thought goes in; the author's comments stay
        if text and (snip := data.snippet(trained, text, prompt, name)):
            thoughts = {
                t: trained.encode(" # a thought" if trained.decode(sep) != "\n" else "# a thought")
                for t, sep in enumerate(snip.sep)
            }
            full = trained.decode(data.infuse(trained, snip, thoughts)[0])
            assert [
                line for line in full.split("\n") if line.strip() != "# a thought"
            ] == text.split("\n")
            assert full.count("# a thought") == len(snip.first) and functions.strip_comments(
                full
            ) == functions.strip_comments(text)


def test_only_what_has_a_docstring(trained, tmp_path):
    """--docstrings true: what has none is counted."""
    doc = GOOD.replace("):\n", "):\n    'Says.'\n")
    for name, text in {
        "a.py": GOOD + "def g(x):\n" + doc.split("\n", 1)[1],
        "b.py": f"'Module.'\n{GOOD.replace('1', '2')}",
        "c.py": doc.replace("'Says.'", "x, 'Says.'"),
        "d.py": "class A:\n"
        + "".join(
            f"    {line}\n" for line in doc.replace("def f", "async def a").rstrip().split("\n")
        ),
    }.items():
        (tmp_path / name).write_text(text)
    for unit, names, without in (
        ("definitions", ["a.py:g", "d.py:A.a"], 3),
        ("functions", ["a.py:g"], 3),
        ("files", ["b.py"], 3),
    ):
        whole = prepared(tmp_path, trained, tmp_path / ".cache", unit=unit, docstrings=True)
        assert [s.name for s in whole] == names and counted(whole)["no_docstring"] == without
    assert "no_docstring" not in counted(prepared(tmp_path, trained, tmp_path / ".cache"))


# ---------------------------------------------------------------- everything that can be wrong


def bad_folder(path):
    """A folder with one file of each kind."""
    path.mkdir(exist_ok=True)
    for name, text in {
        "good.py": GOOD,
        "again.py": GOOD.replace("\n", "\r\n"),
        "syntax.py": "def f(:\n",
        "zero.py": "x = 1\0\n",
        "short.py": "def s(x):\n    return x\n",
        "long.py": "def l(x):\n" + "    x = x + 1\n" * 300,
        "empty.py": "",
        "line.py": f"x = '{'a' * 200_000}'\n",
        "wide.py": f"x = '{'a b ' * 22_000}'\n",
        "nested.py": f"x = {'(' * 300}{')' * 300}\n",
        "two.py": "print 'hello'\n",
        "three.py": "try:\n    pass\nexcept IOError, e:\n    raise\n",
        "coding.py": "# coding: nonsense\n",
        "dedent.py": "class A:\n    def b(self):\n        y = '''\n    kept'''\n        return y\n",
        "pass.py": "def t(): pass\n",
    }.items():
        (path / name).write_text(text)
    (path / "giant.py").write_bytes(b"x = 1\n" * 800_000)
    (path / "binary.py").write_bytes(b"x = '\xff\xfe'\n")
    (path / "latin.py").write_bytes(
        "# coding: latin-1\ndef g(x):\n    y = 'é'\n    return y\n".encode("latin-1")
    )
    (path / "folder.py").mkdir(exist_ok=True)
    (path / ".hidden").mkdir(exist_ok=True)
    (path / ".hidden" / "other.py").write_text(GOOD.replace("1", "2"))
    (path / "nothing").mkdir(exist_ok=True)
    if not (path / "broken.py").is_symlink():
        (path / "broken.py").symlink_to(path / "gone.py")
        (path / "round").symlink_to(path)
        os.mkfifo(path / "pipe.py")
    return path


@pytest.mark.parametrize("cores", [1, 2])
def test_what_cannot_be_used_is_counted(trained, tmp_path, cores):
    whole = prepared(bad_folder(tmp_path / "code"), trained, tmp_path / "cache", cores=cores)
    assert [s.name for s in whole] == ["again.py:f", "latin.py:g"]
    assert counted(whole) == {
        "items": 18,
        "found": 7,
        "undecodable": 2,
        "giant": 2,
        "syntax_error": 3,
        "python2": 2,
        "rewritten": 1,
        "duplicate": 1,
        "too_long": 1,
        "too_short": 1,
        "no_line": 1,
        "kept": 2,
    }
    assert len(prepared(tmp_path / "code" / "good.py", trained, tmp_path / "cache")) == 1


@pytest.mark.parametrize(
    "text",
    [
        f"def f(x):\n    y = {'-' * 90_000}1\n    return y\n",
        f"def f(x):\n    y = x{' + x' * 24_000}\n    return y\n",
        f"def f(x):\n    y = x{'.a' * 40_000}\n    return y\n",
        f"def f(x):\n    y = '{'a' * 90_000}'\n    return y\n",
        f"def f(x):\n    y = 1{'0' * 9_000}\n    return y\n",
        "def f(x):\n" + "".join(f"{' ' * i}if x:\n" for i in range(1, 150)),
    ],
)
def test_pathological_code(trained, tmp_path, text):
    """Whatever this Python's parser makes of it: the next file is read."""
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"text": text}) + "\n" + json.dumps({"text": GOOD})
    )
    for unit in ("definitions", "files"):
        whole = prepared(tmp_path / "a.jsonl", trained, tmp_path / "cache", unit=unit)
        assert len(whole) == 1 and whole[0].name.startswith("a.jsonl:2")


@pytest.mark.parametrize(
    "spec, said",
    [
        ("missing", "no such file or folder, and no installed package"),
        ("empty", "nothing in it"),
        ("text.txt", "not a kind of file"),
        ("nothing.py", "no function of 2 or more lines.*items 1"),
        ("bad.jsonl", "no function.*bad_record 1"),
        ("empty.jsonl", "nothing in it"),
        ("other.jsonl", "no column 'text'; it has code, n"),
        ("zip.jsonl.gz", "cannot be read"),
        ("no.parquet", "cannot be read as .parquet"),
        ("a.parquet", "no column 'text'; it has body, n"),
    ],
)
def test_bad_corpora_give_one_clear_line(trained, tmp_path, spec, said):
    (tmp_path / "empty").mkdir()
    for name, text in {
        "text.txt": "def f(): pass",
        "nothing.py": "x = 1\n",
        "bad.jsonl": "{\n",
        "empty.jsonl": "",
        "zip.jsonl.gz": "{}",
        "no.parquet": "PAR1",
        "other.jsonl": "[1]\n{\n" + json.dumps({"code": GOOD, "n": 1}),
    }.items():
        (tmp_path / name).write_text(text)
    if spec == "a.parquet":
        parquet({"body": [GOOD], "n": [1]}, tmp_path / spec)
    with pytest.raises(UserError, match=said) as e:
        prepared(tmp_path / spec, trained, tmp_path / "cache")
    assert spec in str(e.value) and "\n" not in str(e.value)


def test_other_mistakes(trained, tmp_path, capfd):
    with pytest.raises(UserError, match="did you mean asyncio"):
        prepared("asynciio", trained, tmp_path)
    (tmp_path / "folder").mkdir()
    for name, columns in (
        ("a", {"text": [GOOD]}),
        ("b", {"body": [GOOD]}),
        ("d", {"text": [GOOD.replace("y", "z")]}),
    ):
        parquet(columns, tmp_path / "folder" / f"{name}.parquet")
    (tmp_path / "folder" / "c.parquet").write_text("nothing")
    assert counted(prepared(tmp_path / "folder", trained, tmp_path / "cache", near=0)) == {
        "items": 4,
        "undecodable": 2,
        "found": 2,
        "kept": 2,
    }
    assert (
        "b.parquet': read up to record 0 (UserError: " in (err := capfd.readouterr().err)
        and "c.parquet" in err
        and err.count("\n") == 2
    )
    parquet({"text": [1, 2]}, tmp_path / "n.parquet")
    with pytest.raises(UserError, match="'text' holds int64, expected text"):
        prepared(tmp_path / "n.parquet", trained, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--cache .*file: cannot be used"):
        prepared("json", trained, tmp_path / "file")
    for given, said in (
        (dict(near_duplicate=1.5), "--near-duplicate 1.5"),
        (dict(n_expert=0), "--n-expert 0"),
        (dict(unit="lines"), "--unit lines: expected one of"),
    ):
        with pytest.raises(UserError, match=said):
            make(**given)
    assert make(n_expert=0, data="json", out="a/b/").cache == os.path.join("a", "corpora")


# ---------------------------------------------------------------- kinds of sources


def parquet(columns, path, **how):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(columns), path, **how)


def test_records_of_every_kind(trained, tmp_path):
    """The same texts as .jsonl, .jsonl.gz, .parquet or a folder of .parquet: the same snippets.

    Faulty records are counted by their fault.
    """
    texts = [inspect.getsource(m) for m in (random, json, textwrap)] + [GOOD, "def (", GOOD]
    lines = [json.dumps({"n": n, "code": text}) for n, text in enumerate(texts)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n\n")
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as f:
        f.write("\n".join(lines))
    parquet({"n": list(range(6)), "code": texts}, tmp_path / "a.parquet", row_group_size=2)
    (tmp_path / "folder").mkdir()
    parquet({"code": texts[:3]}, tmp_path / "folder" / "a.parquet")
    parquet({"code": texts[3:]}, tmp_path / "folder" / "b.parquet")
    found = [
        prepared(tmp_path / name, trained, tmp_path / "cache", column="code", near=0)
        for name in ("a.jsonl", "a.jsonl.gz", "a.parquet", "folder")
    ]
    plain = [[(s.ids, s.prompt, s.first, s.sep) for s in whole] for whole in found]
    assert all(some == plain[0] for some in plain[1:]) and len(plain[0]) > 20
    assert (
        all(counted(whole) == counted(found[0]) for whole in found)
        and counted(found[0])["items"] == 6
        and counted(found[0])["syntax_error"] == 1
    )
    assert found[0][0].name.startswith("a.jsonl:1:") and found[3][-1].name.startswith(
        "b.parquet:1:"
    )
    assert all(
        len(
            {one["sha256"] for one in whole.manifest["sources"]}
            | {one["sha256"] for one in found[0].manifest["sources"]}
        )
        == 1
        for whole in found
    )

    bad = [
        json.dumps({"text": GOOD}),
        "{broken",
        "[1]",
        json.dumps({"text": 3}),
        json.dumps({"text": "'\ud800'"}),
        json.dumps({"text": "def ("}),
        "{}",
        "\xff",
    ]
    (tmp_path / "c.jsonl").write_text("\n".join(bad) + "\n", encoding="latin-1")
    whole = prepared(tmp_path / "c.jsonl", trained, tmp_path / "cache")
    assert counted(whole) == {
        "items": 8,
        "bad_record": 5,
        "undecodable": 1,
        "syntax_error": 1,
        "found": 1,
        "kept": 1,
    }
    parquet({"text": [GOOD, None, "def ("]}, tmp_path / "c.parquet")
    assert counted(prepared(tmp_path / "c.parquet", trained, tmp_path / "cache")) == {
        "items": 3,
        "bad_record": 1,
        "syntax_error": 1,
        "found": 1,
        "kept": 1,
    }


def test_a_damaged_archive_and_a_giant_line(trained, tmp_path, monkeypatch):
    rng = random.Random(0)
    lines = [json.dumps({"text": GOOD.replace("1", str(rng.random()))}) for _ in range(4000)]
    packed = gzip.compress("\n".join(lines).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    whole = prepared(tmp_path / "a.jsonl.gz", trained, tmp_path / "cache", near=0)
    assert 1000 < len(whole) < 3000 and counted(whole)["undecodable"] == 1
    monkeypatch.setattr(sources, "GIANT", 1000)
    (tmp_path / "b.jsonl").write_text(
        "\n".join([lines[0], json.dumps({"text": "x = 1\n" * 5000}), lines[1]])
    )
    whole = prepared(tmp_path / "b.jsonl", trained, tmp_path / "cache", near=0)
    assert [s.name for s in whole] == ["b.jsonl:1:f", "b.jsonl:3:f"] and counted(whole)[
        "giant"
    ] == 1


def test_packages_by_both_names_and_their_licences(trained, tmp_path, monkeypatch, capfd):
    for name, licence in (
        ("free", "License-Expression: MIT OR GPL-3.0-only"),
        ("closed", "Classifier: License :: OSI Approved :: GNU General Public License v3 (GPLv3)"),
    ):
        (tmp_path / f"{name}_code" / "tests").mkdir(parents=True)
        (tmp_path / f"{name}_code" / "a.py").write_text(GOOD.replace("y", name))
        (tmp_path / f"{name}_code" / "tests" / "b.py").write_text(GOOD.replace("y", "test"))
        info = tmp_path / f"{name}_dist-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.4\nName: {name}-dist\nVersion: 1.2\n{licence}\n"
        )
        (info / "RECORD").write_text(
            f"{name}_code/a.py,,\n{name}_code/tests/b.py,,\n{name}_code/gone.py,,\n../../bin/x.py,,\n"
        )
        (info / "top_level.txt").write_text(f"{name}_code\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    whole = prepared("free-dist", trained, tmp_path / "cache")
    assert [s.name for s in whole] == ["free_code/a.py:f"] and capfd.readouterr().err == ""
    about = whole.manifest["sources"][0]
    assert (about["version"], about["licence"], about["permissive"]) == (
        "1.2",
        "MIT OR GPL-3.0-only",
        True,
    )
    whole = prepared("closed_code,free_code", trained, tmp_path / "cache")
    assert [s.name for s in whole] == ["closed_code/a.py:f", "free_code/a.py:f"]
    assert [one["permissive"] for one in whole.manifest["sources"]] == [False, True]
    assert (
        "corpus closed_code: its licence is 'GNU General Public License v3 (GPLv3)'"
        in (err := capfd.readouterr().err)
        and err.count("\n") == 1
    )


@pytest.mark.parametrize(
    "given, good",
    [
        ({"License-Expression": "BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0"}, True),
        ({"License-Expression": "MPL-2.0 AND MIT"}, False),
        ({}, False),
        ({"License": "MIT License\n\nCopyright"}, True),
        ({"License": "Copyright\nRedistribution and use in source and binary forms, with"}, True),
        ({"License": "Other"}, False),
        ({"Classifier": "License :: OSI Approved :: Apache Software License"}, True),
        ({"License": "LGPL, not BSD"}, False),
        ({"Classifier": "License :: OSI Approved", "License": "PSF-2.0"}, True),
        ({"Classifier": "License :: OSI Approved :: Limited License"}, False),
    ],
)
def test_licences(given, good):
    import email.message

    meta = email.message.Message()
    for key, value in given.items():
        meta[key] = value
    assert sources.licence(meta)["permissive"] is good


def test_several_sources_count_a_function_once(trained, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.py").write_text(
            (GOOD + GOOD.replace("f(", f"{name}(").replace("y", name * 3)).replace("    ", "   ")
        )
    whole = prepared(
        f"{tmp_path / 'a'}, {tmp_path / 'b'},json,", trained, tmp_path / "cache", near=0
    )
    assert [s.name for s in whole][:3] == ["a.py:f", "a.py:a", "b.py:b"] and whole[
        -1
    ].name.startswith("json/")
    assert list(whole)[3:] == list(
        prepared("json", trained, tmp_path / "cache", near=0)
    )  # with separators of their own
    first, second, third = (one["counts"] for one in whole.manifest["sources"])
    assert (first["kept"], second["kept"], second["duplicate"]) == (2, 1, 1) and third["kept"] > 5
    assert (
        whole.manifest["counts"]["tokens"]
        == sum(len(s.ids) for s in whole)
        == sum(of["tokens"] for of in (first, second, third))
    )


# ---------------------------------------------------------------- near-duplicates, held-out


def runs_of_five(snip):
    ids = snip.ids[:-1]
    return {tuple(ids[i : i + 5]) for i in range(max(1, len(ids) - 4))}


def similar(snippets, least):
    """All pairs (i, j), i < j, with J >= least, by counting common runs: {(i, j): J}."""
    sets, where, common = (
        [runs_of_five(s) for s in snippets],
        collections.defaultdict(list),
        collections.Counter(),
    )
    for i, some in enumerate(sets):
        for run in some:
            where[run].append(i)
    for at in where.values():
        common.update(itertools.combinations(at, 2))
    J = {(i, j): n / (len(sets[i]) + len(sets[j]) - n) for (i, j), n in common.items()}
    return {pair: x for pair, x in J.items() if x >= least}


@pytest.fixture(scope="module")
def both(trained, tmp_path_factory):
    """Code with and without its near-duplicates, which are copies with a few names changed."""
    folder = tmp_path_factory.mktemp("near")
    rng, lines = random.Random(2), []
    for module in (random, textwrap, inspect, subprocess):
        for _, text, _ in functions.functions(inspect.getsource(module)):
            lines.append(text)
            if text and rng.random() < 0.8:
                names = sorted({n.id for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name)})
                for name in rng.sample(names, min(len(names), rng.choice((1, 1, 1, 2)))):
                    text = text.replace(name, name + "_2", rng.choice((1, 1, 2)))
                lines.append(text)
    rng.shuffle(lines)
    (folder / "c.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in lines if text)
    )
    return [
        list(prepared(folder / "c.jsonl", trained, folder / "cache", 2048, near=near))
        for near in (0, 0.8)
    ]


def test_near_duplicates_are_dropped_and_nothing_else(both):
    """Against the exact Jaccard similarity of all pairs."""
    everything, left = both
    pairs, names = similar(everything, 0.8), {s.name: i for i, s in enumerate(everything)}
    kept = {names[s.name] for s in left}
    gone = set(range(len(everything))) - kept
    found = [pair for pair in pairs if not set(pair) <= kept]
    assert (
        len(pairs) > 40 and len(gone) > 30 and len(found) >= 0.97 * len(pairs)
    )  # what MinHash misses is just similar enough
    assert all(any((i, j) in pairs for i in range(j)) for j in gone)  # each has one before it
    everything, left = ([s.ids for s in some] for some in both)
    assert left == [
        ids for i, ids in enumerate(everything) if i in kept
    ]  # and the rest is as it was


def test_minhash_against_exact_similarity(both):
    """With bands of one row the mean share of equal bands is the similarity J.

    With B bands of R rows the share of pairs with an equal band is 1 - (1 - J^R)^B in the mean. The
    pairs have every similarity from 0.3 up.
    """
    everything, _ = both
    pairs = similar(everything, 0.3)
    raw = signatures(
        [s.ids[:-1] for s in everything], 0.02, np.dtype(np.uint16)
    )  # (n, 128): one row a band
    assert raw.shape[1] == 128
    error = [(raw[i] == raw[j]).mean() - J for (i, j), J in pairs.items()]
    assert (
        len(error) > 100 and abs(np.mean(error)) < 0.01 and np.abs(error).max() < 5 * 0.5 / 128**0.5
    )
    eight = signatures([s.ids[:-1] for s in everything], 0.8, np.dtype(np.uint16))  # (n, 16)
    expected = [1 - (1 - J**8) ** 16 for J in pairs.values()]
    assert abs(np.mean([(eight[i] == eight[j]).any() for i, j in pairs]) - np.mean(expected)) < 0.08


def test_bands():
    assert bands_of(0.8) == (16, 8) and bands_of(1) == (2, 64) and bands_of(0)[0] == 0
    for J in np.linspace(0.05, 1, 20):
        bands, rows = bands_of(J)
        assert bands * rows == 128 and 1 - (1 - J**rows) ** bands >= 0.94


def test_held_out_code_is_never_trained_on(trained, tmp_path):
    spec = "asyncio,email"
    whole = prepared(spec, trained, tmp_path, 400)
    expert, heldout = store.split_heldout(whole, 3)
    assert len(expert) + len(heldout) == len(whole) and 0.06 < len(heldout) / len(whole) < 0.14
    assert {s.name for s in expert} | {s.name for s in heldout} == {s.name for s in whole}
    across = [
        pair for pair in similar([*heldout, *expert], 0.8) if pair[0] < len(heldout) <= pair[1]
    ]
    assert len(across) <= 1 and len(heldout) > 50
    few, some = store.split_heldout(whole, 3, 10, 5)
    assert (
        list(few) == list(expert)[:10]
        and list(some) == list(heldout)[:5]
        and list(store.split_heldout(whole, 4, 10)[0]) != list(few)
    )
    one_side = whole.take(np.flatnonzero(~whole.held()))
    with pytest.raises(UserError, match="of which 0 fall to the held-out tenth"):
        store.split_heldout(one_side, 3)
    other = prepared(
        spec, tokenizers.train_tokenizer([inspect.getsource(ast)], 500), tmp_path, 1000
    )  # a text's side is the same whatever the tokenizer
    side = {s.name: held for s, held in zip(other, other.held(), strict=True)}
    pairs = [*zip(whole, whole.held(), strict=True)]
    assert sum(side[s.name] == held for s, held in pairs if s.name in side) > 500
    assert all(side[s.name] == held for s, held in pairs if s.name in side)


def test_order():
    assert (
        sorted(store.order(1000, 1)) == list(range(1000))
        and (store.order(1000, 1) == store.order(1000, 1, 0)).all()
    )
    assert len({tuple(store.order(1000, seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


# ---------------------------------------------------------------- the files


def test_a_corpus_is_as_a_list(trained, tmp_path):
    whole = prepared("json,random", trained, tmp_path)
    plain = list(whole)
    text = {
        f"random.py:{name}": (text, prompt)
        for name, text, prompt in functions.functions(inspect.getsource(random))
    }
    seen = [s for s in plain if s.name in text]
    assert len(seen) > 10 and all(s == data.snippet(trained, *text[s.name], s.name) for s in seen)
    assert (
        len(whole) == len(plain)
        and whole[0] == plain[0]
        and whole[-1] == plain[-1]
        and list(whole[3:9:2]) == plain[3:9:2]
    )
    assert (
        list(whole[5:].take([2, 0])) == [plain[7], plain[5]]
        and not len(whole[:0])
        and list(whole[:0]) == []
    )
    with pytest.raises(IndexError):
        whole[len(whole)]
    assert [x.tolist() for x in store.snippet_sizes(whole[2:20])] == [
        x.tolist() for x in store.snippet_sizes(plain[2:20])
    ]
    assert sum(len(s.ids) for s in plain) == whole.manifest["counts"]["tokens"]
    big = tokenizers.train_tokenizer(["x"], 258)
    big.nbytes = np.concatenate([big.nbytes, np.zeros(70_000, int)])  # ids that need four bytes
    assert (
        whole.manifest["dtype"] == "<u2"
        and prepared("json", big, tmp_path, 2000).manifest["dtype"] == "<u4"
    )


def test_a_folder_is_used_again_until_something_changes(trained, tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    path = tmp_path / "code" / "a.py"
    path.write_text(GOOD)
    first, calls = prepared(tmp_path / "code", trained, tmp_path / "cache"), []
    monkeypatch.setattr(
        prepare, "work", lambda *args, work=prepare.work: calls.append(args) or work(*args)
    )
    assert (
        prepared(tmp_path / "code", trained, tmp_path / "cache").folder == first.folder
        and not calls
    )
    assert (
        prepared(tmp_path / "code", trained, tmp_path / "cache", 255).folder != first.folder
        and len(calls) == 1
    )
    assert (
        prepared(
            tmp_path / "code", tokenizers.train_tokenizer([GOOD] * 9, 300), tmp_path / "cache"
        ).folder
        != first.folder
        and len(calls) == 2
    )
    path.write_text(GOOD.replace("1", "7"))
    os.utime(path, ns=(1, 1))
    second = prepared(tmp_path / "code", trained, tmp_path / "cache")
    assert second.folder != first.folder and second[0] != first[0]
    assert not [p for p in (tmp_path / "cache").iterdir() if p.name.endswith(".unfinished")]
    assert all(
        second.manifest["sha256"][name]
        == __import__("hashlib").sha256(content(second.folder)[name]).hexdigest()
        for name in ("ids.bin", "docs.npy")
    )


CHILD = """
import sys; sys.path.insert(0, {here!r})
import ast, inspect
from corpus import prepare, sources
from formats import tokenizers
sources.CHUNK = 5_000
tok = tokenizers.train_tokenizer([inspect.getsource(ast)], 300)
prepare.prepare_corpus("json,logging", tok, 400, cache={cache!r}, progress=False, cores=2)
"""


def test_killed_and_resumed_it_is_the_same(tmp_path, monkeypatch):
    """After SIGKILL in the middle there is no corpus, and no process is left.

    Finished parts are not prepared again. The bytes are the same in the end, and those of one
    process that does it all.
    """

    child = CHILD.format(here=str(HERE), cache=str(tmp_path / "a"))
    killed = subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
    while len(list(tmp_path.glob("a/*.unfinished/*.npz"))) < 3:
        assert killed.poll() is None
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    for _ in range(1000):  # its workers end by themselves
        try:
            os.killpg(killed.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.01)
    else:
        raise AssertionError("a worker outlived its parent")
    # only now: until they end they finish the parts that they are at
    parts = {p.name for p in tmp_path.glob("a/*.unfinished/*.npz")}
    assert not list(tmp_path.glob("a/*/manifest.json"))
    monkeypatch.setattr(sources, "CHUNK", 5_000)
    written, write_part = tmp_path / "written", prepare.write_part

    def noted(path, *rest):
        with open(written, "a") as f:  # workers are processes
            f.write(f"{path.name}\n")
        write_part(path, *rest)

    monkeypatch.setattr(prepare, "write_part", noted)
    trained = tokenizers.train_tokenizer([inspect.getsource(ast)], 300)
    one = prepared("json,logging", trained, tmp_path / "a", 400, cores=2).folder
    again = written.read_text().split()
    two = prepared("json,logging", trained, tmp_path / "b", 400, cores=1).folder
    every = written.read_text().split()[len(again) :]
    assert one.name == two.name and content(one) == content(two) and len(content(one)) == 7
    assert len(parts) >= 3 and sorted([*parts, *again]) == sorted(every)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [one.name, f"{one.name}.lock"]


MEMORY = """
import sys; sys.path.insert(0, sys.argv[1])
import json, os, pathlib, random, threading, time
import numpy as np
import data
from corpus import functions, prepare, sources, store
from formats import tokenizers
encoding = tokenizers.encoding({bytes([i]): i for i in range(256)})
tok = tokenizers.make_tokenizer(encoding, 256)
parts = pathlib.Path(sys.argv[2])
rng = np.random.default_rng(0)
N, settings = 1000, dict(near=0.8)
def make_snippet(i):
    ids = rng.integers(0, 256, 1500).tolist()
    return data.Snippet(ids, 10, [20, 100, 200], [[1], [2], [1]], f"s{i}")
docs = [(make_snippet(i), i % 10 == 0) for i in range(N)]
part = prepare.Part(0)
part.docs, part.fates = docs, dict.fromkeys(range(N), "kept")
prepare.write_part(parts / "0.npz", part, tok, 0.8)
del docs, part
for n in range(1, 20):
    with np.load(parts / "0.npz") as z:
        some = dict(z)
    some["keys"] = some["keys"] + np.uint64(n * N)
    some["bands"] = rng.integers(0, 2 ** 63, some["bands"].shape).astype(np.uint64)
    with open(parts / f"{n}.npz", "wb") as f:
        np.savez(f, **some)
some = None
peak = [0]
def own():
    return int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0]) / 1024
def watch():
    while True:
        peak[0] = max(peak[0], own()); time.sleep(0.002)
def measure(count):
    before = peak[0] = own()
    prepare.join_parts(parts, count, job)
    whole = store.Corpus(parts / "whole")
    train, held = store.split_heldout(whole, 0)
    tokens = sum(len(s.ids) for s in train[::7]) + int(store.snippet_sizes(train)[0].sum())
    written = int(whole.manifest["counts"]["tokens"])
    return [len(whole), len(held), written, peak[0] - before]
threading.Thread(target=watch, daemon=True).start()
job = prepare.Preparation([sources.Source("synthetic", [], {})], tok, settings, None, False, 1)
print(json.dumps([measure(1), measure(20)]))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_memory_does_not_grow_with_the_tokens(tmp_path):
    """Memory for joining parts and reading a corpus grows with its snippets, not with its tokens.

    The corpora have 1.5 and 30 million tokens. The larger takes 60 MB at two bytes a token.
    """

    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(HERE), str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    small, large = json.loads(done.stdout)
    assert small[:3] == [1000, 100, 1_500_000] and large[:3] == [20_000, 2000, 30_000_000]
    print(f"MB more than before: {small[3]:.0f} for 1.5 M tokens, {large[3]:.0f} for 30 M")
    assert large[3] - small[3] < 25


def test_the_command(tmp_path, capsys):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text(GOOD + "print 'x'\n")
    (tmp_path / "code" / "b.py").write_text(GOOD + GOOD)
    argv = [
        "--data",
        f"{tmp_path / 'code'},json",
        "--decontaminate",
        "false",
        "--out",
        str(tmp_path / "run"),
    ]
    corpus_command.main(argv)
    shown = capsys.readouterr().out
    assert (
        "json 3." in shown
        and "PSF-2.0" in shown
        and "python2 1, duplicate 1" in shown.replace("  ", " ")
        and str(tmp_path / "corpora") in shown
    )
    corpus_command.main(argv)
    assert capsys.readouterr().out == shown and not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="--data domain"):
        corpus_command.main([])


def test_a_run_on_two_packages(tmp_path, capsys):
    """Every stage takes its snippets from the files.

    Another run finds the same corpus there and draws the same snippets.
    """

    argv = (
        "--data json,random,logging --decontaminate false --threads 1 --device cpu --n-layer 1 "
        "--n-head 2 --d-model 32 --d-ff 64 --vocab-size 400 --max-len 4096 --pretrain-steps 2 "
        "--base-check false --rows 2 --n-expert 0 --n-heldout 2 --iters 1 --estep-steps 1 "
        "--snippets 2 --group 2 --think-max 4 --mstep-steps 2 --infuse 6 --elbo-samples 1 "
        "--max-tokens 280 --out"
    ).split()
    train.main([*argv, str(tmp_path / "one")])
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "corpora").rglob("*.bin")}
    train.main([*argv, str(tmp_path / "two")])
    assert len(files) == 4 and files == {
        p: p.stat().st_mtime_ns for p in (tmp_path / "corpora").rglob("*.bin")
    }
    one, two = (json.load(open(tmp_path / name / "results.json")) for name in ("one", "two"))
    assert (
        one == two
        and set(one) == {"base", "ntp", "ra3"}
        and "2 held out" in capsys.readouterr().out
    )


def test_a_byte_order_mark_is_no_code(trained, tmp_path):
    """The same text as a file and as a record of each kind: the same function."""
    (tmp_path / "a.py").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    line = json.dumps({"text": "\ufeff" + GOOD})
    (tmp_path / "b.jsonl").write_text(line)
    (tmp_path / "c.jsonl").write_bytes(b"\xef\xbb\xbf" + line.encode())
    with gzip.open(tmp_path / "d.jsonl.gz", "wt") as f:
        f.write(line)
    parquet({"text": ["\ufeff" + GOOD]}, tmp_path / "e.parquet")
    for name in ("a.py", "b.jsonl", "c.jsonl", "d.jsonl.gz", "e.parquet"):
        corpus = prepared(tmp_path / name, trained, tmp_path / "cache")
        assert corpus[0].ids[:-1] == trained.encode(GOOD.rstrip()), name


def test_columns_of_parquet_have_a_type(trained, tmp_path):
    pa = pytest.importorskip("pyarrow")
    for n, values in enumerate(
        (
            pa.array([[GOOD]]),
            pa.array([{"code": GOOD}]),
            pa.array([[("a", GOOD)]], pa.map_(pa.string(), pa.string())),
            pa.array([GOOD.encode()]),
        )
    ):
        path = tmp_path / f"bad{n}.parquet"
        parquet({"text": values}, path)
        with pytest.raises(UserError, match="column 'text' holds .*, expected text") as e:
            prepared(path, trained, tmp_path / "cache")
        assert "\n" not in str(e.value)
    texts = pa.array([GOOD])
    for n, values in enumerate((texts, texts.cast(pa.large_string()), texts.dictionary_encode())):
        parquet({"text": values}, tmp_path / f"good{n}.parquet")
        assert len(prepared(tmp_path / f"good{n}.parquet", trained, tmp_path / "cache")) == 1


def test_records_beside_code_are_named(trained, tmp_path, capfd):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "loader.py").write_text(GOOD)
    prepared(tmp_path / "set", trained, tmp_path / "cache")
    assert capfd.readouterr().err == ""
    (tmp_path / "set" / "train.jsonl").write_text(json.dumps({"text": GOOD}))
    prepared(tmp_path / "set", trained, tmp_path / "cache")
    shown = capfd.readouterr().err
    assert "files of records are not (train.jsonl, 1 in all)" in shown and shown.count("\n") == 1
