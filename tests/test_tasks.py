"""The built-in domain: splits, solutions, tests, notes and corpora."""

import dataclasses
import random
import re

import pytest

import data
import domain
import tasks
from formats import tokenizers

SPLITS = ("train", "val", "test", "rl")
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


# What each named step makes of a digit, in words of its own.
MEANING = {
    "inc": lambda x: x + 1,
    "dec": lambda x: x - 1,
    "up": lambda x: x + 3,
    "down": lambda x: x - 3,
    "jump": lambda x: x + 5,
    "tri": lambda x: 3 * x,
    "sept": lambda x: 7 * x,
    "neg": lambda x: -x,
    "flip": lambda x: 9 - x,
    "swap": lambda x: x - 1 if x % 2 else x + 1,
}


@pytest.fixture(scope="module")
def problems():
    return domain.domain_tasks(1, 40, "test")


def chains_of(monkeypatch, make):
    """The chains of steps that a call spells out."""
    found, spell = set(), domain.spell
    with monkeypatch.context() as m:
        m.setattr(
            domain,
            "spell",
            lambda verb, chain, labels: (found.add(chain), spell(verb, chain, labels))[1],
        )
        make()
    return found


def test_splits_are_disjoint(monkeypatch):
    """The chains of 300 tasks a split, of two seeds, and of 300 texts of the base corpus.

    Each belongs to its split, none to two.
    """
    found = {
        split: chains_of(
            monkeypatch,
            lambda split=split: [
                domain.expert_task(seed, i, split) for seed in (0, 7) for i in range(150)
            ],
        )
        for split in SPLITS
    }
    found["base"] = chains_of(
        monkeypatch,
        lambda: [domain.base_text(rng) for rng in [random.Random(3)] for _ in range(300)],
    )
    for split, chains in found.items():
        assert len(chains) > 300 and {domain.split_of(chain) for chain in chains} == {
            "train" if split == "base" else split
        }
    for a in SPLITS:
        for b in (*SPLITS, "base"):
            assert a == b or {a, b} == {"train", "base"} or not found[a] & found[b]


def test_splits_cover_every_checksum_once():
    """The checksums that the splits own: 0 to 31, each once."""
    assert sorted(r for owned in domain.SPLITS.values() for r in owned) == list(range(32)) and set(
        domain.SPLITS
    ) == set(SPLITS)


def test_tasks_are_a_function_of_seed_split_and_index():
    """The same arguments twice, with other draws between.

    Another seed, split or index gives another task.
    """
    first = domain.expert_task(0, 5, "val")
    random.seed(1)
    assert domain.expert_task(0, 5, "val") == first
    assert (
        len(
            {
                domain.expert_task(*a).prompt
                for a in [(0, 5, "val"), (1, 5, "val"), (0, 6, "val"), (0, 5, "rl")]
            }
        )
        == 4
    )
    assert domain.domain_tasks(2, 8, "val")[:5] == domain.domain_tasks(2, 5, "val")


def passes(task, solution):
    scope = {}
    exec(task.prompt + solution, scope)
    try:
        exec(task.tests, scope)
    except AssertionError:
        return False
    return True


def test_solutions_pass_and_other_constants_fail(problems, monkeypatch):
    """Every expert solution run against its tests, and again with each folded constant replaced by
    each of the nine others.
    """
    made, body_lines = {}, domain.body_lines
    monkeypatch.setattr(
        domain,
        "body_lines",
        lambda *a: (made.setdefault(domain.solution_text(body_lines(*a)[0]), a), body_lines(*a))[1],
    )
    assert domain.domain_tasks(1, 40, "test") == problems
    for task in problems:
        assert passes(task, task.solution), task
        stages, constants, form = made[task.solution]
        assert len(task.hard) == len(stages) in (2, 3)
        for i, k in enumerate(constants):
            for other in set(range(10)) - {k}:
                wrong = domain.solution_text(
                    body_lines(stages, [*constants[:i], other, *constants[i + 1 :]], form)[0]
                )
                assert wrong != task.solution and not passes(task, wrong), (task, wrong)


def test_tasks_of_every_length():
    """One hard line a stage, told apart by the tests, with a label for every step."""
    for n in range(1, len(domain.STAGES) + 1):
        for task in domain.domain_tasks(3, 3, "test", lengths=(n,)):
            labels = re.findall(r" ([a-zA-Z]) (?=\w+)", task.prompt.split("return")[0])
            assert len(task.hard) == len(task.notes) == n
            assert len(labels) == len(set(labels)) == n * (domain.N_STEPS + 1)
            assert passes(task, task.solution)
    lengths = [len(domain.expert_task(0, i, "val", lengths=(1, 4)).hard) for i in range(60)]
    assert set(lengths) == {1, 4} and 15 < lengths.count(1) < 45


def test_test_chains_are_of_a_large_pool():
    """Two seeds' test tasks share few chains: at most one in six."""

    def chains(seed):
        tasks = [domain.expert_task(seed, i, "test") for i in range(100)]
        return {note.split(": ")[1] for task in tasks for _, note in task.notes}

    for seed in range(4):
        assert len(chains(seed) & chains(seed + 5)) <= len(chains(seed)) / 6


def test_steps_are_bijections():
    """The table of steps is arithmetic modulo 10; each step reaches every digit."""
    assert domain.STEPS == {name: [f(x) % 10 for x in range(10)] for name, f in MEANING.items()}
    assert all(sorted(table) == list(range(10)) for table in domain.STEPS.values())


def test_worked_notes_are_right():
    """Every note computed anew from the text of the docstring, by arithmetic.

    Its last digit stands in the hard line.
    """
    for i in range(60):
        task = domain.expert_task(4, i, "train")
        lines = task.solution.split("\n")[1:]
        assert [t for t, _ in task.notes] == list(task.hard)
        for t, note in task.notes:
            spelled = next(
                line.strip()
                for line in task.prompt.split("\n")
                if line.strip().startswith(note.split(":")[0] + ":")
            )
            verb, label, start, *steps = spelled.split()
            value, want = NUMBERS.index(start), f"{verb} {label} {start}"
            for label, step in zip(steps[::2], steps[1::2], strict=True):
                value = MEANING[step](value) % 10
                want += f" {label} {step} {value}"
            assert (
                note == want
                and len(steps) == 2 * domain.N_STEPS
                and str(value) in re.findall(r"\d", lines[t])
            )


def test_a_slip_is_wrong():
    """A note with a slip in it, against the right one.

    It ends in another digit, because every step is a bijection.
    """
    rng = random.Random(0)
    for _ in range(200):
        chain = domain.random_chain(rng)
        right, wrong = (
            domain.worked("v", chain, "abcd"),
            domain.worked("v", chain, "abcd", slip=rng),
        )
        assert right != wrong and right[-1] != wrong[-1]


def test_comments():
    """The expert corpus has none; of the base corpus' functions some have, and some have none."""
    assert not any(
        "#" in domain.expert_task(0, i, "train").solution + domain.expert_task(0, i, "train").prompt
        for i in range(200)
    )
    rng = random.Random(0)
    functions = [
        rest
        for prompt, rest in (domain.base_text(rng) for _ in range(300))
        if prompt.startswith("def")
    ]
    assert 0.2 < sum("#" in rest for rest in functions) / len(functions) < 0.98


def test_how_often_the_useful_notes_are_there():
    """A line that copies a constant is preceded by its right note, or by a wrong one, as often as
    asked.
    """

    def share(useful):
        rng, notes, hard = random.Random(5), 0, 0
        for _ in range(1500):
            prompt, rest = domain.base_text(rng, useful=useful)
            lines = rest.split("\n")[1:]
            if not rest.startswith("\n    xs = list(xs)"):
                continue
            verbs = [line.split(":")[0].strip() for line in prompt.split("\n") if ": " in line]
            hard += len(verbs)
            for (
                verb
            ) in verbs:  # each stage's constant is in the first line with a digit below its note
                notes += any(
                    line.strip().startswith(f"# {verb}: ") and any(c.isdigit() for c in below)
                    for line, below in zip(lines, lines[1:], strict=False)
                )
        return notes / hard

    shares = [share(useful) for useful in (0.0, 0.05, 0.3, 0.6)]
    assert shares[0] < 0.03 and all(
        abs(b - a - wanted) < 0.05
        for a, b, wanted in zip(shares, shares[1:], (0.053, 0.267, 0.32), strict=False)
    )


def test_base_texts_are_python():
    """Every text of the base corpus compiles, and a function in it has its prompt's docstring."""
    rng = random.Random(2)
    for _ in range(200):
        text = "".join(domain.base_text(rng))
        compile(text, "base", "exec")
        assert text.count('"""') == 2


def test_every_line_can_take_a_thought(problems):
    """Decision points of the snippet against the lines of the solution, so that `hard` and `notes`
    index the snippet's lines; and the prompt ends where the task's does.
    """
    rng = random.Random("tokenizer")
    tok = tokenizers.train_tokenizer(["".join(domain.base_text(rng)) for _ in range(300)], 512)
    for task in [*problems, *(domain.expert_task(0, i, "train") for i in range(40))]:
        snip = data.snippet(tok, task.prompt + task.solution, len(task.prompt))
        lines = task.solution.split("\n")[1:]
        assert len(snip.first) == len(lines) and tok.decode(snip.ids[: snip.prompt]) == task.prompt
        for line, a, b in zip(lines, snip.first, snip.first[1:] + [len(snip.ids)], strict=True):
            assert tok.decode(snip.ids[a:b]).strip() == line.strip()
        assert all(0 <= t < len(lines) for t in task.hard)


# ---------------------------------------------------------------- one task a test


def of_tests(tests, kind="assert"):
    return tasks.Task("t", "p", "s", tests, "f", kind=kind, stops=("x",), time_limit=3.0)


def passed_by(function, tests):
    """Do these tests, top level and check(), let a function pass?"""
    scope = {"f": function}
    try:
        exec(tests, scope)
        if "check" in scope:
            scope["check"](function)
    except AssertionError:
        return False
    return True


CHECKS = """import math

def helper(x):
    assert x != 99
    return x

def check(candidate):
    assert candidate(0) == 0, 'zero'
    k = 2
    for i in range(3):
        assert candidate(i) is not None
    assert candidate(k) == math.floor(helper(4.5))
    k = 3
    assert candidate(k) == 9
"""


FUNCTIONS = (lambda x: x * x, lambda x: x + x, lambda x: 0, lambda x: 9)


@pytest.mark.parametrize(
    "tests, count, shares",
    [
        ("assert f(0) == 0\ny = 4\nassert f(2) == y\ny = 9\nassert f(3) == y\n", 3, (3, 2, 1, 1)),
        (CHECKS, 3, (3, 2, 1, 1)),
        (
            "def check(candidate):\n    assert candidate(3) == 9\nassert f(0) == 0\n",
            2,
            (2, 1, 1, 1),
        ),
        ("for x in (0, 3):\n    assert f(x) == x * x\n", 1, (1, 0, 0, 0)),
        (
            "def check(candidate):\n    for x in (0, 3):\n        assert candidate(x) == x * x\n",
            1,
            (1, 0, 0, 0),
        ),
        ("def test():\n    assert f(3) == 9\ntest()\n", 1, (1, 0, 0, 1)),
    ],
)
def test_parts(tests, count, shares):
    """One task for each assertion at the top level and in check(), with all other statements there.

    Loops and other functions stay whole.
    A square passes all parts; a double, 0 and 9 those counted by hand.
    """
    task = of_tests(tests)
    parts = tasks.parts(task)
    assert (
        len(parts) == count
        and tuple(sum(passed_by(f, part.tests) for part in parts) for f in FUNCTIONS) == shares
    )
    for part in parts:
        assert dataclasses.replace(part, tests=tests) == task and (
            count == 1 or part.tests != tests
        )
    assert count > 1 or parts == [task]


def test_parts_of_stdio():
    cases = [{"input": "1", "output": "2"}, {"input": "2", "output": "3"}]
    assert [part.tests for part in tasks.parts(of_tests(cases, "stdio"))] == [
        [case] for case in cases
    ]


def test_parts_of_the_domain(problems):
    """Four parts a task; its solution passes each.

    Other programs pass the whole if and only if they pass all parts, and some pass some.
    """
    partly = 0
    for task in problems[:10]:
        parts = tasks.parts(task)
        assert len(parts) == 4 and all(passes(part, task.solution) for part in parts)
        for wrong in (
            "\n    return xs",
            "\n    return 0",
            task.solution.replace("return ", "return xs and "),
        ):
            each = [passes(part, wrong) for part in parts]
            assert all(each) == passes(task, wrong)
            partly += 0 < sum(each) < 4
    assert partly
