"""From what a model wrote to a program.

Stop sequences, EvalPlus's sanitize, the longest span that parses.
"""

import random

from benchmarks.sanitise import longest_span, sanitise
from data import syntax_tree
from tasks import until_stop


def test_until_stop():
    assert until_stop("a\nb\nc", ["\nc", "\nb"]) == "a"
    assert until_stop("abc", ["\n"]) == "abc"
    assert until_stop("abc", []) == "abc"
    assert until_stop("\nx", ["\nx"]) == ""


ANSWER = '''Here is the function.

import os, sys
from math import *
LIMIT: int = 3
unused = 4

def helper(x):
    # keep me
    return x + LIMIT      # and me

def prints(x):
    print(x)

@staticmethod
def solve(x):
    """Doc."""
    # a thought
    prints(x)
    return helper(x)

def solve(x):
    return 0

# at the top
class Box:
    pass

print(solve(1))
```
That is all.'''


def test_sanitise():
    """An answer with prose, helpers, prints and a second definition, against what is left of it, by
    hand.
    """
    wanted = (
        "import os, sys\nfrom math import *\nLIMIT: int = 3\ndef helper(x):\n"
        "    # keep me\n    return x + LIMIT\n"
        "def prints(x):\n    print(x)\n"
        '@staticmethod\ndef solve(x):\n    """Doc."""\n'
        "    # a thought\n    prints(x)\n    return helper(x)"
    )
    assert sanitise(ANSWER, "solve") == wanted
    assert (
        sanitise("x = 1; y = 2\nclass A:\n    def f(self):\n        return y", "A().f")
        == "y = 2\nclass A:\n    def f(self):\n        return y"
    )
    assert (
        sanitise("a, b = 1, 2\ndef é(ü): return b + a", "é")
        == "a, b = 1, 2\ndef é(ü): return b + a"
    )
    assert (
        sanitise("not python at all", "f") == ""
        and sanitise("", "f") == ""
        and sanitise("def f(x):\n    return x\x00", "f") == ""
    )


def test_longest_span():
    """Against every span tried, on 300 texts of lines drawn from code and prose."""

    def by_trying(text):
        lines, best = text.split("\n"), []
        for i in range(len(lines)):
            for j in range(i + 1, len(lines) + 1):
                try:
                    syntax_tree("\n".join(lines[i:j]))
                except SyntaxError:
                    continue
                full = [line for line in lines[i:j] if line.strip()]
                best = full if len(full) > len(best) else best
        return best

    pool = [
        *ANSWER.split("\n"),
        "x = (1,",
        ")",
        '"""',
        "'''",
        "    y = 2",
        "if x:",
        "else:",
        "try:",
        "a = [",
        "]",
        "x = \\",
        "f(x for x in y, 1)",
    ]
    rng = random.Random(0)
    for _ in range(300):
        text = "\n".join(rng.choices(pool, k=rng.randrange(1, 12)))
        assert [line for line in longest_span(text).split("\n") if line.strip()] == by_trying(
            text
        ), text
