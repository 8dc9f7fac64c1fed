"""The built-in domain: it shows in minutes what thinking before a line does.

A task is a small pipeline over a list of digits:

    def bend(xs):                               xs = list(xs)
        \"\"\"                                     ys = []
        shift: a eight b flip c tri d up        for x in xs:
        drop: e two f neg g dec h jump              ys.append((x + 6) % 10)      <- hard
        return xs                               xs = ys
        \"\"\"                                     xs = [x for x in xs if x != 2]  <- hard
                                                return xs

Every stage of it is given as a chain of labelled steps on a digit (`STEPS`, all bijections): start
at eight, flip it to 1, triple it to 3, up to 6. The expert writes the folded constant and no
comment. Most lines are boilerplate that the docstring's words determine. The lines with a folded
constant, one a stage, are *hard*: a small network cannot fold three steps in one pass, but it can
restate them one by one in a comment, one hop a token,

        # shift: a eight b flip 1 c tri 3 d up 6

and then copy the last digit. A guess is right one time in ten, and a program with three hard lines
one time in a thousand: the reward of a program is sparse, the reward of a line is not. A program
has two or three stages, or as many as `--stages` says.

**The base corpus** (what "pre-training" sees) is broad: worked exercises (a note and its line),
such functions with comments before some lines, and other functions. The comments are useful (a
worked chain before its line), misplaced (a worked chain before some other line), wrong (a chain
with a slip in it) and useless ("# next step"). **The expert corpus** has no comment at all. Nothing
tells training which comments help, nor which lines are hard: `hard` and `notes` of a task serve the
oracle row and the figures only.

Held-out tasks are disjoint by construction: a chain belongs to one split, by a checksum of its text
(`split_of`). Of the 10,000 chains a fourth is the test split's; a seed's 100 tasks take about 250.
Settings are tuned on `val`. No chain of `test` stood in a task that was looked at while they were.
"""

import itertools
import random
import string
import zlib

from tasks import Task

SPLITS = {
    "rl": range(6, 10),
    "val": range(20, 24),
    "test": range(24, 32),
    "train": (*range(0, 6), *range(10, 20)),
}  # checksum mod 32

STEPS = {
    "inc": [(x + 1) % 10 for x in range(10)],
    "dec": [(x - 1) % 10 for x in range(10)],
    "up": [(x + 3) % 10 for x in range(10)],
    "down": [(x - 3) % 10 for x in range(10)],
    "jump": [(x + 5) % 10 for x in range(10)],
    "tri": [x * 3 % 10 for x in range(10)],
    "sept": [x * 7 % 10 for x in range(10)],
    "neg": [-x % 10 for x in range(10)],
    "flip": [9 - x for x in range(10)],
    "swap": [x ^ 1 for x in range(10)],
}  # name -> what it makes of each digit, a bijection

N_STEPS = 3  # of a chain
STARTS = "zero one two three four five six seven eight nine".split()


def random_chain(rng):
    """A start digit and N_STEPS steps. Example: (8, ("flip", "tri", "up"))"""
    return rng.randrange(10), tuple(rng.choices(sorted(STEPS), k=N_STEPS))


def split_of(chain):
    """The split that owns a chain. No chain is in two splits, whatever the seeds."""
    checksum = zlib.crc32(repr(chain).encode()) % 32
    return next(name for name, owned in SPLITS.items() if checksum in owned)


def fold(chain):
    """The values after the start and after each step. Example: (8, ("flip", "tri")) -> [8, 1, 3]"""
    values = [chain[0]]
    for step in chain[1]:
        values.append(STEPS[step][values[-1]])
    return values


def spell(verb, chain, labels):
    """The chain as a line of a docstring. Example: "shift: a eight b flip c tri" """
    pairs = zip(labels[1:], chain[1], strict=False)
    steps = "".join(f" {label} {step}" for label, step in pairs)
    return f"{verb}: {labels[0]} {STARTS[chain[0]]}{steps}"


# Each stage of the pipeline: its lines, with {k} for the folded constant.
# The first line with {k} is the hard one.
STAGES = {
    "shift": ["ys = []", "for x in xs:", "    ys.append((x + {k}) % 10)", "xs = ys"],
    "lift": ["for i in range(len(xs)):", "    if xs[i] < {k}:", "        xs[i] += {k}"],
    "drop": ["xs = [x for x in xs if x != {k}]"],
    "append": ["last = {k}", "xs.append(last)"],
    "cut": ["top = {k}", "xs = [min(x, top) for x in xs]"],
    "mark": ["for i, x in enumerate(xs):", "    if x == {k}:", "        xs[i] = -1"],
    "count": ["n = sum(x == {k} for x in xs)", "xs.append(n)"],
    "scale": ["ys = []", "for x in xs:", "    ys.append(x * 10 + {k})", "xs = ys"],
    "front": ["head = {k}", "xs = [head] + xs"],
}

LENGTHS = (2, 3)  # stages of a function, unless it is told

RETURNS = ["return xs", "return xs[::-1]", "return tuple(xs)"]

NAMES = [
    "bend",
    "fuse",
    "glide",
    "mend",
    "pack",
    "quell",
    "roam",
    "spin",
    "turn",
    "veer",
    "warp",
    "yield_all",
]

JUNK = [
    "next step",
    "see below",
    "check this",
    "fast path",
    "keep it simple",
    "works in place",
    "note the order",
    "old version",
    "same as before",
    "loop over all",
    "not needed now",
    "result so far",
    "careful here",
    "main part",
    "set up",
    "final part",
]


def random_function(rng, split, lengths=LENGTHS):
    """What a function is made of: (name, stages, return line).

    lengths   numbers of stages, one of which is drawn; at most len(STAGES)

    A stage is (verb, chain, labels of its start and steps).
    """
    stages = []
    for i, verb in enumerate(rng.sample(sorted(STAGES), rng.choice(lengths))):
        while split_of(chain := random_chain(rng)) != split:
            pass
        first = (N_STEPS + 1) * i
        stages.append((verb, chain, string.ascii_letters[first : first + N_STEPS + 1]))
    return rng.choice(NAMES), stages, rng.choice(RETURNS)


def body_lines(stages, constants, form):
    """The lines of a function's body, and the indices of its hard lines, one a stage."""
    body = ["xs = list(xs)"]
    hard = []
    for (verb, _, _), k in zip(stages, constants, strict=True):
        hard.append(len(body) + next(j for j, line in enumerate(STAGES[verb]) if "{k}" in line))
        body += [line.format(k=k) for line in STAGES[verb]]
    return body + [form], hard


def worked(verb, chain, labels, slip=None):
    """The chain worked out, one step after the other.

    slip   a random.Random: one value is made wrong, and the steps after it go on from there

    Example: "shift: a eight b flip 1 c tri 3"
    """
    values = fold(chain)
    if slip:
        wrong = slip.randrange(1, len(values))
        values[wrong] = (values[wrong] + slip.randrange(1, 10)) % 10
        for i in range(wrong + 1, len(values)):
            values[i] = STEPS[chain[1][i - 1]][values[i - 1]]
    triples = zip(labels[1:], chain[1], values[1:], strict=False)
    steps = "".join(f" {label} {step} {value}" for label, step, value in triples)
    return f"{verb}: {labels[0]} {STARTS[values[0]]}{steps}"


def prompt_text(name, stages, form):
    chains = [spell(*stage) for stage in stages]
    doc = "".join(f"    {line}\n" for line in ['"""', *chains, form])
    return f'def {name}(xs):\n{doc}    """'


def solution_text(body):
    return "".join(f"\n    {line}" for line in body)


def expert_task(seed, index, split, lengths=LENGTHS, tests=False):
    """Task number `index` of a split, deterministic in (seed, index, split, lengths).

    tests   give it unit tests; the result is None if no tests can tell its constants apart
    """
    rng = random.Random(f"{seed}/{split}/{index}")
    name, stages, form = random_function(rng, split, lengths)
    constants = [fold(chain)[-1] for _, chain, _ in stages]
    body, hard = body_lines(stages, constants, form)
    notes = tuple((line, worked(*stage)) for line, stage in zip(hard, stages, strict=True))
    checks = unit_tests(rng, name, stages, constants, form) if tests else ""
    if checks is None:
        return None
    return Task(
        f"{split}/{index}",
        prompt_text(name, stages, form),
        solution_text(body),
        checks,
        name,
        tuple(hard),
        notes,
    )


def unit_tests(rng, name, stages, constants, form):
    """Assertions with the results of the expert's solution.

    The inputs are three lists with every digit, some digits more than once, and the empty list.
    None if some other value of one constant passes them too: a `mark` of a digit that a `drop`
    took out cannot be seen.
    """
    inputs = [rng.sample([*range(10), *rng.choices(range(10), k=6)], 16) for _ in range(3)]
    inputs.append([])

    variables = [f"k{i}" for i in range(len(stages))]  # in the place of the constants
    body, _ = body_lines(stages, variables, form)
    scope = {}
    exec(f"def {name}(xs, {', '.join(variables)}):" + solution_text(body), scope)
    function = scope[name]
    pairs = [(x, function(x, *constants)) for x in inputs]
    for i in range(len(constants)):
        for digit in set(range(10)) - {constants[i]}:
            changed = constants[:i] + [digit] + constants[i + 1 :]
            if all(function(x, *changed) == y for x, y in pairs):
                return None
    return "".join(f"assert {name}({x}) == {y!r}\n" for x, y in pairs)


def domain_tasks(seed, n, split, lengths=LENGTHS):
    """n tasks of a split with unit tests, which every change of a single folded constant fails."""
    candidates = (expert_task(seed, i, split, lengths, tests=True) for i in itertools.count())
    return list(itertools.islice(filter(None, candidates), n))


def base_text(rng, exercises=0.15, useful=0.3, lengths=LENGTHS):
    """One text of the base corpus, from chains of the training split -> (prompt, rest).

    exercises   share of worked exercises; an eighth of the other texts are `other_function`s
    useful      share of the hard lines that have their worked note before them
    """
    kind = rng.random()
    if kind < exercises:
        return exercise(rng, lengths)
    if kind < exercises + (1 - exercises) / 8:
        return other_function(rng)
    name, stages, form = random_function(rng, "train", lengths)
    body, hard = body_lines(stages, [fold(chain)[-1] for _, chain, _ in stages], form)
    lines = []
    for i, line in enumerate(body):
        stage = stages[hard.index(i)] if i in hard else None
        comment = base_comment(rng, stage, stages, useful)
        indent = line[: len(line) - len(line.lstrip())]
        if comment:
            lines.append(f"{indent}# {comment}")
        lines.append(line)
    return prompt_text(name, stages, form), solution_text(lines)


def base_comment(rng, stage, stages, useful):
    """The comment before a line of the base corpus, or None.

    stage   of a hard line, its stage; None for another line

    Before a hard line: its note (`useful`), a wrong note (a fifteenth of that), a useless comment
    (.06). Before another line: a useless comment (.06), the note of some stage (.03).
    """
    r = rng.random()
    if stage is None:
        if r < 0.06:
            return rng.choice(JUNK)
        return worked(*rng.choice(stages)) if r < 0.09 else None
    wrong = useful / 15
    if r < wrong:
        return worked(*stage, slip=rng)
    if r < useful + wrong:
        return worked(*stage)
    return rng.choice(JUNK) if r < useful + wrong + 0.06 else None


def exercise(rng, lengths=LENGTHS):
    """A worked exercise -> (prompt, rest): chains, then for each its note and its hard line.

    Here a note is followed by its line every time, so a small network learns to *read* notes while
    it learns to write them. In functions three hard lines in ten have a note; from these alone some
    seeds learned to read notes late, or not at all, and to such a base no thought is worth
    anything.
    """
    _, stages, _ = random_function(rng, "train", lengths)
    chains = "\n".join(spell(*stage) for stage in stages)
    rest = ""
    for verb, chain, labels in stages:
        line = next(line for line in STAGES[verb] if "{k}" in line).strip()
        line = line.format(k=fold(chain)[-1]) + " pass" * line.endswith(":")
        rest += f"\n# {worked(verb, chain, labels)}\n{line}"
    return f'"""\n{chains}\n"""', rest


OTHER = [
    ("total", "add the items", ["s = 0", "for x in xs:", "    s += x", "return s"]),
    (
        "largest",
        "the largest item",
        ["best = xs[0]", "for x in xs:", "    if x > best:", "        best = x", "return best"],
    ),
    ("evens", "keep the even items", ["return [x for x in xs if x % 2 == 0]"]),
    (
        "index_of",
        "where the digit {k} stands",
        ["for i, x in enumerate(xs):", "    if x == {k}:", "        return i", "return -1"],
    ),
    (
        "above",
        "count the items above {k}",
        ["n = 0", "for x in xs:", "    if x > {k}:", "        n += 1", "return n"],
    ),
    (
        "plus",
        "add {k} to every item",
        ["ys = []", "for x in xs:", "    ys.append(x + {k})", "return ys"],
    ),
]


def other_function(rng):
    """A simple function of another kind, as (prompt, rest)."""
    name, doc, body = rng.choice(OTHER)
    k = rng.randrange(10)
    lines = []
    for line in body:
        indent = line[: len(line) - len(line.lstrip())]
        lines += [f"{indent}# {rng.choice(JUNK)}"] * (rng.random() < 0.1) + [line.format(k=k)]
    return f'def {name}(xs):\n    """{doc.format(k=k)}"""', solution_text(lines)
