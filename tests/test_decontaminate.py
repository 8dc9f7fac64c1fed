"""Decontamination: each rule by hand, with near misses, and the benchmarks' solutions as a corpus.

Also the command, and the check in a run.
"""

import json
import os
import pathlib
import random
import subprocess
import sys
import textwrap

import pytest

from benchmarks import suites
from config import UserError, make
from corpus import decontaminate, functions, prepare
from corpus.decontaminate import Checker, alike, bare, body_tokens, defined, norm
from run import Run
from tasks import Task

HERE = pathlib.Path(__file__).resolve().parent.parent
PROMPT = '''from typing import List


def spread(items: List[int]) -> int:
    """ Largest gap of neighbours in a list
    >>> spread([1, 5, 2])
    4
    """
'''
SOLUTION = """    widest = 0
    for left, right in zip(items, items[1:]):
        widest = max(widest, abs(right - left))  # so far
    return widest
"""
CLEAN = (
    "def weave(a, b):\n    '''Two strings, letter by letter.'''\n"
    "    return ''.join(x + y for x, y in zip(a, b))\n"
)


@pytest.fixture(scope="module")
def spread():
    return Checker({"toy": [Task("toy/0", PROMPT, SOLUTION, "", "spread")]})


@pytest.fixture(scope="module")
def full():
    """All benchmarks that there are."""
    check = decontaminate.checker()
    check.ready()
    return check


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """One problem for HumanEval, and no other benchmark. Returns a folder without files."""

    def load(name, data_dir=""):
        if name != "humaneval":
            raise UserError(f"{name} is not there")
        return [Task("HumanEval/0", PROMPT, SOLUTION, "", "spread")]

    monkeypatch.setattr(suites, "load_checked", load)
    (tmp_path / "none").mkdir()
    return str(tmp_path / "none")


def reasons(check, name, text):
    return [hit["reason"] for hit in check.hits(text)]


def test_comments_count_where_they_are_trained_on(spread):
    text = "def gap(xs):\n    # Largest gap\n    # of neighbours in a list\n    return None\n"
    assert not spread.hits(text) and [
        hit["reason"] for hit in spread.hits(text, comments=True)
    ] == ["substring"]


@pytest.mark.parametrize(
    "how, kept",
    [
        ({}, {"a.py:weave", "b.py:gap"}),
        ({"unit": "files"}, {"b.py"}),
        ({"keep_comments": True}, {"a.py:weave"}),
    ],
)
def test_whole_files_and_kept_comments(spread, tmp_path, how, kept, tok):
    """Under its own name a copy is found within a file too.

    A docstring in a comment counts if comments are kept.
    """
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text(
        CLEAN.replace("return", "c = 1\n    return") + "\n\n" + COPY
    )
    (tmp_path / "code" / "b.py").write_text(
        "def gap(xs):\n    # Largest gap\n    # of neighbours in a list\n    b = 2\n    return b\n"
    )
    whole = prepare.prepare_corpus(
        str(tmp_path / "code"),
        tok,
        1000,
        check=spread,
        cache=tmp_path / "cache",
        progress=False,
        **how,
    )
    assert {s.name for s in whole} == kept and whole.manifest["counts"][
        "contaminated"
    ] == whole.contamination()["dropped"] == 2 - (kept != {"a.py:weave"})


# ---------------------------------------------------------------- (1) substring


def test_a_docstring_is_found_whatever_case_whitespace_and_comments(spread):
    text = (
        "def gap(xs):\n    '''LARGEST gap\n\n"
        "      of neighbours   in a List, they say.'''\n    return None\n"
    )
    assert spread.hits(text) == [
        dict(
            reason="substring",
            benchmark="toy",
            problem="toy/0",
            span="largest gap of neighbours in a list",
        )
    ]
    assert not spread.hits(text.replace("neighbours", "neighbors"))
    assert not spread.hits(text.replace("gap\n\n", "gap-\n\n"))
    assert not spread.hits(
        "def gap(xs):\n    # Largest gap of neighbours in a list\n    return None\n"
    )  # comments are not trained on


def test_a_solution_is_found_without_its_comments():
    check = Checker(
        {
            "toy": [
                Task(
                    "toy/1",
                    'def f(s):\n    """Up."""\n',
                    "    s = s.strip()  # first\n    return s.swapcase()\n",
                    "",
                    "f",
                )
            ]
        }
    )
    assert reasons(check, "g", "def g(s):\n    S = s.strip()\n    return s.swapcase()\n") == [
        "substring"
    ]
    assert reasons(
        check, "g", "def g(s):\n    s = s.strip()  # other\n\n    return s.swapcase()\n"
    ) == ["substring"]
    assert reasons(check, "g", "def g(s):\n    s = s.strip()\n    return t.swapcase()\n") == []


def test_short_texts_are_not_searched():
    for solution, found in (
        ("    return x + y\n", []),
        (f"    return x + {'y' * 11}\n", []),
        (f"    return x + {'y' * 13}\n", ["substring"]),
    ):
        check = Checker(
            {"toy": [Task("toy/2", 'def f(x, y):\n    """Sum."""\n', solution, "", "f")]}
        )
        assert (
            len(norm(solution)) in (12, 22, 24)
            and reasons(check, "g", f"def g(x, y):\n{solution}") == found
        )


def test_the_index_finds_what_a_plain_search_finds(full):
    """The index finds in noise what a search for every substring finds.

    Substrings begin and end anywhere, also within a word.
    """
    rng, found = random.Random(0), 0
    needles = [(needle, at) for some in full.needles.values() for needle, at in some]
    for needle, _ in rng.sample(needles, 300) + full.needles[None]:
        text = f"x = {rng.choice(['', 'a', '('])}{needle}{rng.choice(['', 'b', ')'])} y"
        text = text if rng.random() < 0.8 else text.replace("e", "f", 1)
        plain = norm(bare(text))
        expected = {
            full.problems[at][0] for other, problems in needles if other in plain for at in problems
        }
        assert {
            hit["benchmark"] for hit in full.hits(text) if hit["reason"] == "substring"
        } == expected
        found += bool(expected)
    assert 200 < found < 300 + len(full.needles[None])


# ---------------------------------------------------------------- (2) ten-grams

TEN = Task(
    "toy/3",
    "",
    "\ndef f(k):\n    one = two + three * four\n    five = six - seven\n"
    "    eight = nine\n    return k\n",
    "",
    "f",
)


def test_ten_words_in_a_row_and_no_fewer():
    check = Checker({"toy": [TEN]})
    nine = "def g(q):\n    one = two + three * four\n    five = {}\n"
    assert reasons(check, "g", nine.format("0")) == []
    assert (
        reasons(check, "g", nine.format("0 - seven\n    eight = nine\n    return q")) == []
    )  # nine, and six elsewhere
    hits = check.hits(nine.format("SIX  # here\n"))
    assert [(h["reason"], h["span"]) for h in hits] == [
        ("10-gram", "one = two + three * four five = six")
    ]
    assert [
        h["span"] for h in check.hits(nine.format("six\\\n   - 1"))
    ] == []  # 'six\' is another word
    longer = check.hits(nine.format("six - seven\n    x = 0\n"))
    assert [h["span"] for h in longer] == [
        "one = two + three * four five = six - seven"
    ]  # the whole run


def test_phrases_of_a_genre_are_forgotten_and_nothing_else():
    phrase = "you are given an array of boats and each boat has a width"  # 13 words
    check = Checker(
        {
            "toy": [
                Task(
                    "toy/7",
                    f"{phrase} so count them while the moon is up and nobody rows",
                    "",
                    "",
                    "",
                )
            ]
        }
    )
    mine = f'def g():\n    """{phrase}, sort them."""\n'
    assert check.hits(mine)
    check.forget_phrases([mine, mine.replace("sort", "sink")])
    assert check.hits(mine)  # two are not three
    check.forget_phrases([mine, mine.replace("sort", "sink"), mine.replace("sort", "burn")])
    assert not check.hits(mine)
    assert check.hits(f'def g():\n    """{phrase} so count them while the moon is up"""\n')


def test_statements_count_for_ten_grams_only():
    check = Checker(
        {
            "toy": [
                Task(
                    "toy/4",
                    "Count the boats that a river of width w can carry at once.\n\nInput\n",
                    "",
                    "",
                    "",
                )
            ]
        }
    )
    assert reasons(check, "g", '"""\ncount the boats THAT a river\n of width w can not"""') == [
        "10-gram"
    ]
    assert reasons(check, "g", '"""\nCount the boats that a river of width w could"""') == []


def test_the_test_in_a_prompt_does_not_count():
    prompt = (
        '"""\nWrite a function to f.\nassert f([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]) == 3\n"""'
    )
    check = Checker({"toy": [Task("toy/6", prompt, "\ndef f(xs):\n    return 3\n", "", "f")]})
    assert (
        reasons(check, "g", "def g():\n    return [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]\n") == []
    )


def test_of_several_benchmarks_each_is_named():
    other = Task("twin/0", "", TEN.solution.replace("nine", "ten"), "", "f")
    check = Checker({"toy": [TEN, other], "twin": [other]})
    hits = check.hits(f"def g(k):\n    pass{TEN.solution.partition(':')[2]}")
    assert [(h["reason"], h["benchmark"], h["problem"]) for h in hits] == [
        ("10-gram", "toy", "toy/3"),
        ("10-gram", "twin", "twin/0"),
    ]


# ---------------------------------------------------------------- (3) the same name, a similar body

COPY = """def spread(self, numbers):
    '''Something else.'''
    big = 0
    for a, b in zip(numbers, numbers[1:]):
        big = max(big, abs(b - a))
    return big
"""


def test_a_renamed_copy_is_found_under_its_name_only(spread):
    assert (
        reasons(spread, "Lists.spread", COPY) == reasons(spread, "file.py:spread", COPY) == ["name"]
    )
    assert spread.hits(COPY)[0]["span"].startswith("spread, 1.00: _ = 0 for _ , _ in zip (")
    assert not spread.hits(COPY.replace("spread", "spreads"))
    assert not spread.hits(COPY.replace("spread", "Spread"))
    assert not spread.hits(
        "def spread(xs):\n"
        "    raise NotImplementedError('by the heirs of this class, each in its way')\n",
    )
    assert not spread.hits("def spread(:\n")  # not Python: no body


def test_similarity_at_the_threshold():
    """2 M / (a + b) is .6 exactly, then just below."""
    check = Checker(
        {"toy": [Task("toy/5", 'def f():\n    """Some."""\n', "    return -1\n", "", "f")]}
    )  # return - 1
    assert reasons(check, "f", "def f():\n    return -1 + 0 + 0\n") == ["name"]  # 2 * 3 / (3 + 7)
    assert reasons(check, "f", "def f():\n    return -1 + 0 + -0\n") == []  # 2 * 3 / (3 + 8)
    a, b = list(range(1000)), list(range(400, 1400))
    assert alike(a, b) == 0.6 and alike(a, b + [0]) < 0.6


def test_tokens_of_a_body():
    (node,) = defined(
        "def f(a, *, key=None) -> int:\n    'Doc.'\n"
        "    b: int = a.size  # why\n    return len(b) + math.pi",
        "f",
    )
    assert " ".join(body_tokens(node)) == "_ : int = _ . size return len ( _ ) + _ . pi"
    assert body_tokens(*defined("def f():\n    'Doc only.'", {"f"})) == []


# ---------------------------------------------------------------- real benchmarks, real code


@pytest.mark.parametrize("name", ["humaneval", "humaneval+", "mbpp", "mbpp+", "leetcode"])
def test_a_benchmark_as_a_corpus_is_dropped(name, full, tmp_path):
    """Every reference solution is dropped, read as training code is read.

    HumanEval's come with their docstrings, the others as they are.
    """
    if name not in full.benchmarks:
        pytest.skip(full.missing[name])
    tasks = full.benchmarks[name]
    assert (
        len(tasks)
        == {"humaneval": 164, "humaneval+": 164, "mbpp": 500, "mbpp+": 378, "leetcode": 200}[name]
    )
    for task in tasks:
        entry = task.entry_point.split(".")[-1]
        (tmp_path / "c.jsonl").write_text(
            json.dumps(
                {
                    "text": task.solution
                    if defined(task.solution, {entry})
                    else task.prompt + task.solution
                }
            )
        )
        (some,) = functions.distinct(
            str(tmp_path / "c.jsonl"), dict.fromkeys(functions.COUNTED, 0), progress=False
        )
        dropped = {n.split(".")[-1].split(":")[-1] for n, text, _ in some if full.hits(text)}
        assert entry in dropped, task.name


def test_humaneval_without_docstrings_and_under_other_names(full):
    """HumanEval's solutions without their prompts.

    Under another name the rules on text find most. Under its own name the name rule finds each.
    """
    if "humaneval" not in full.benchmarks:
        pytest.skip(full.missing["humaneval"])
    renamed = bodies = 0
    for task in full.benchmarks["humaneval"]:
        bodies += bool(full.hits(f"def other(x):\n{task.solution}"))
        text = f"def {task.entry_point}(x):\n{task.solution}"
        renamed += "name" in reasons(full, task.entry_point, text)
    assert renamed == 164 and bodies == 164 - 6  # six of the short ones


def test_library_code_stays(full):
    """Almost all of a sample of the standard library stays, and so does hand-made code.

    A second look gives the same result.
    """
    some = functions.distinct(
        "asyncio,email,http,unittest,random,statistics,heapq",
        dict.fromkeys(functions.COUNTED, 0),
        progress=False,
    )
    sample = [f for batch in some for f in batch]
    why = [full.hits(text) for name, text, _ in sample]
    assert len(sample) > 1000 and sum(map(bool, why)) < 0.002 * len(sample)
    assert why[::4] == [full.hits(text) for name, text, _ in sample[::4]] and not full.hits(CLEAN)


# ---------------------------------------------------------------- the command


def test_the_command(toy, tmp_path, capfd):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text(CLEAN + "\n\n" + COPY)
    (tmp_path / "code" / "b.py").write_text(PROMPT.replace("spread", "gap") + SOLUTION)
    out, report = tmp_path / "clean.jsonl", tmp_path / "report.json"
    decontaminate.main(
        [
            "--data",
            str(tmp_path / "code"),
            "--data-dir",
            toy,
            "--out",
            str(out),
            "--report",
            str(report),
            "--show",
            "20",
        ]
    )
    shown = capfd.readouterr()
    assert [json.loads(line) for line in open(out)] == [
        {"name": "a.py:weave", "text": CLEAN.rstrip()}
    ]
    said = json.load(open(report))
    assert (said["functions"], said["dropped"], said["benchmarks"]) == (3, 2, {"humaneval": 1})
    assert said["missing"]["mbpp"] == "mbpp is not there" and "humaneval" not in said["missing"]
    assert said["counts"] == {
        "substring": {"humaneval": 1},
        "10-gram": {"humaneval": 1},
        "name": {"humaneval": 1},
    }
    assert [(d["name"], [w["reason"] for w in d["why"]]) for d in said["why"]] == [
        ("a.py:spread", ["name"]),
        ("b.py:gap", ["substring", "10-gram"]),
    ]
    assert (
        shown.err.count("\n") == 1
        and "3 functions checked against humaneval (1); missing or damaged: humaneval+, mbpp,"
        in shown.err
    )
    assert (
        "dropped 2 (substring: humaneval 1; 10-gram: humaneval 1; name: humaneval 1)" in shown.err
    )
    assert "a.py:spread\n    name: humaneval HumanEval/0: spread, 1.00: _ = 0 for" in shown.out
    decontaminate.main(["--data", str(out), "--data-dir", toy])  # what was kept is clean
    assert "1 functions checked" in (err := capfd.readouterr().err) and err.endswith("dropped 0\n")


@pytest.mark.parametrize(
    "given, said",
    [
        ("", "--data"),
        ("--data nowhere", "nowhere.*no such file"),
        ("--data {tmp}/empty.py", "empty.py.*no function"),
        ("--data {tmp}/code.py --data-dir {tmp}/no", "--data-dir .*no: no such folder"),
        ("--data {tmp}/code.py --show x", "--show x: expected a whole number"),
        ("--data {tmp}/code.py --show -1", "--show -1: expected"),
        ("--data {tmp}/code.py --out {tmp}", "--out .*expected a file"),
        ("--data {tmp}/code.py --report {tmp}/no/r.json", "--report .*expected a file"),
        ("--data {tmp}/code.py --shwo 3", "did you mean --show"),
    ],
)
def test_mistakes_give_one_clear_line(given, said, toy, tmp_path):
    (tmp_path / "empty.py").write_text("x = 1\n")
    (tmp_path / "code.py").write_text(CLEAN)
    with pytest.raises(UserError, match=said) as e:
        decontaminate.main([a.format(tmp=tmp_path) for a in given.split()])
    assert "\n" not in str(e.value)


def test_exit_status_and_the_same_report_in_every_process(tmp_path, capfd):
    def command(*argv):
        return subprocess.run(
            [sys.executable, "-m", "corpus.decontaminate", *argv],
            cwd=HERE,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": "1"},
        )

    (tmp_path / "c.jsonl").write_text(
        "".join(
            json.dumps({"text": t.prompt + t.solution}) + "\n"
            for t in suites.load("humaneval")[:40]
        )
    )
    argv = [
        "--data-dir",
        str(tmp_path),
        "--data",
        str(tmp_path / "c.jsonl"),
        "--show",
        "40",
        "--report",
    ]
    done = command(*argv, str(tmp_path / "1"))
    decontaminate.main([*argv, str(tmp_path / "2")])
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        *capfd.readouterr(),
    ) and done.stdout.count("HumanEval/") >= 80
    assert (tmp_path / "1").read_text() == (tmp_path / "2").read_text()
    done = command("--data-dir", str(tmp_path), "--data", "nowhere")
    assert (
        done.returncode == 2
        and done.stdout == ""
        and done.stderr.startswith("python -m corpus.decontaminate: corpus 'nowhere'")
        and done.stderr.count("\n") == 1
    )


# ---------------------------------------------------------------- in a run


@pytest.fixture
def code(tmp_path):
    (tmp_path / "code").mkdir()
    lines = "\n".join(
        f"def f{i}(x):\n    y = x + {i}\n    z = y * {i}\n    return z\n" for i in range(60)
    )
    (tmp_path / "code" / "a.py").write_text(lines + PROMPT + SOLUTION)
    return dict(data=str(tmp_path / "code"), out=str(tmp_path / "run"))


def test_a_run_trains_on_what_is_left(toy, code, capfd):
    run = Run(make(**code))
    names = [s.name for s in [*run.expert, *run.heldout]]
    assert sorted(names) == sorted(f"a.py:f{i}" for i in range(60))
    assert (
        "61 functions checked against humaneval (1); missing or damaged: humaneval+"
        in capfd.readouterr().err
    )
    run.begin()
    said = json.load(open(run.path("contamination.json")))
    assert (
        said["dropped"] == 1
        and said["why"][0]["name"] == "a.py:spread"
        and json.load(open(run.path("settings.json")))["decontaminate"] is True
    )
    again = Run(make(**code))
    assert [s.ids for s in again.expert] == [
        s.ids for s in run.expert
    ] and again.contamination == run.contamination


def test_a_run_unchecked_says_so_and_one_that_cannot_check_is_refused(code, monkeypatch, capfd):
    def nothing(name, data_dir=""):
        raise UserError(f"{name} is not there")

    monkeypatch.setattr(suites, "load_checked", nothing)
    with pytest.raises(
        UserError,
        match="no benchmark to check the corpus against"
        ".*benchmarks/data/HumanEval.jsonl.gz.*--decontaminate false",
    ) as e:
        Run(make(**code))
    assert "\n" not in str(e.value)
    run = Run(make(**code, decontaminate=False))
    assert "a.py:spread" in [s.name for s in [*run.expert, *run.heldout]] and run.contamination == {
        "benchmarks": {}
    }
    assert "not checked against any benchmark (--decontaminate false)" in capfd.readouterr().err
    run.begin()
    assert json.load(open(run.path("settings.json")))["decontaminate"] is False
    assert (
        Run(make(out=code["out"], n_expert=4, n_heldout=2)).contamination is None
    )  # the built-in domain needs no check


@pytest.mark.parametrize(
    "around",
    [
        "def outer(y):\n{}\n    return spread(y)\n",
        "class A:\n{}\n",
        "if True:\n{}\n",
        "def a():\n    def b():\n        class C:\n{deep}\n",
    ],
)
def test_a_solution_is_found_by_its_name_however_deep(spread, around):
    """Also where the function that a corpus cuts out has another name."""
    text = around.format(textwrap.indent(COPY, "    "), deep=textwrap.indent(COPY, " " * 12))
    assert [hit["reason"] for hit in spread.hits(COPY)] == ["name"]
    assert [hit["reason"] for hit in spread.hits(text)] == ["name"]
    assert not spread.hits(text.replace("spread", "gap"))
