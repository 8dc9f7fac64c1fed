"""Decontamination: functions that hold a benchmark's problem are dropped before any training.

A function f, without its comments, is dropped if for some problem b of a benchmark

    (1) substring   norm(s) in norm(f)              s: b's docstring (whole, or up to its examples)
                                                    or solution, |norm(s)| >= 24 characters
    (2) 10-gram     grams(f) & grams(b) nonempty    grams(x): all runs of ten words of norm(x);
                                                    of b: prompt and solution
    (3) name        f, or a function inside it, bears the name of b's entry point, and
                    sim(f, b) = 2 M / (|t(f)| + |t(b)|) >= 0.6

norm(x) is x without comments, in lower case, with every run of whitespace as one blank.
Words are what blanks separate.
t(x) are the tokens of x's body without docstring, comments and layout; all names are alike but for
keywords, builtins and attributes.
M is how many tokens difflib.SequenceMatcher pairs (Ratcliff/Obershelp).
So (3) finds a solution whose variables have other names.

    python -m corpus.decontaminate --data stdlib --report report.json --show 20
    python -m corpus.decontaminate --data my/project --out clean.jsonl

The second writes the functions kept; train.py --data takes the file.

Sources. (1) is the rule of SantaCoder's and StarCoder's data, case-insensitive too
(github.com/bigcode-project/bigcode-dataset, decontamination/).
(2) is that of DeepSeek-Coder (arXiv 2401.14196) and Qwen2.5-Coder (2409.12186).
(3) is ours, for copies that were renamed.

Departures, and what is not covered:
1. BigCode searches the raw text and excepts four short solutions (such as "return x + y"). Here
   whitespace does not matter, and substrings below 24 characters are not searched: the solutions
   of twelve problems (nine of HumanEval or its plus form), one expression each, BigCode's four
   among them. The other rules hold for these problems too.
2. Ten-grams ignore case. They are taken of prompts and solutions, not of tests. Nine of 38,921
   library functions held a ten-gram of a test and none of a prompt or solution; in all nine it was
   a row of primes, of zeros or of 1, 2, 3, ...
3. Where there is no solution (Codeforces, two thirds of LiveCodeBench), statements count for (2)
   only.
4. Problem sets for RLVR are checked by the same rules, prompt and solution as one text. Ten-grams
   that three or more of the set's own problems share are not counted: statements of one site share
   many phrases. (Of 1,889 problems of LeetCode 731 would be dropped, and 421 are.)
5. A translation, or a rewriting under another name, is found by none of the rules. Nor is code
   outside functions, which is not trained on either.
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
from config import Parser, UserError, check_output, command, convert, progress_bar, write_output
from corpus import functions

SHORTEST = 24  # characters of a substring, at least
GRAM = 10  # words of a gram
ALIKE = 0.6  # similarity under the same name, at least
REASONS = ("substring", "10-gram", "name")
PLAIN_NAMES = {*dir(builtins), *keyword.kwlist}  # names that tell functions apart
EXAMPLES = re.compile(r">>>|\bexamples?\b", re.IGNORECASE)  # where a docstring's examples begin
DEFINITION = re.compile(r"\bdef\s+(\w+)")  # a function's name
TEST = re.compile(r"^assert .*$", re.MULTILINE)  # MBPP's prompts show one
CHECKED = tuple(name for name, suite in suites.SUITES.items() if suite.checked)


# ---------------------------------------------------------------- benchmarks


def checker(data_dir=""):
    """A Checker with all benchmarks that can be read: HumanEval, and those of data_dir.

    data_dir: the benchmarks' files (default: see benchmarks/suites.py).
    Raises UserError if there is none.
    """
    if data_dir and not os.path.isdir(data_dir):
        raise UserError(f"--data-dir {data_dir}: no such folder; expected the benchmarks' files")
    benchmarks = {}
    missing = {}
    for name in CHECKED:
        try:
            benchmarks[name] = suites.load_checked(name, data_dir)
        except UserError as e:
            missing[name] = str(e)
    if not benchmarks:
        raise UserError(
            "no benchmark to check the corpus against: expected "
            "benchmarks/data/HumanEval.jsonl.gz; "
            "put it back, give --data-dir (see python -m benchmarks --list), "
            "or train unchecked with --decontaminate false"
        )
    return Checker(benchmarks, missing)


# ---------------------------------------------------------------- normal forms


def bare(text):
    """Python without its comments; other text as it is."""
    try:
        return functions.strip_comments(text)
    except (SyntaxError, tokenize.TokenError):
        return text


def norm(text):
    """Lower case, one blank for whitespace. Example: "Return  X\\n" -> "return x"."""
    return " ".join(text.lower().split())


def grams(words):
    """All runs of ten words, each as one text."""
    return [" ".join(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)]


def defined(text, names):
    """All functions of these names in a text, outer ones first; none if it is no Python."""
    try:
        nodes = list(ast.walk(data.syntax_tree(text)))
    except (SyntaxError, ValueError, RecursionError):
        return []
    return [node for node in nodes if isinstance(node, functions.DEFS) and node.name in names]


def body_tokens(node):
    """t(x). Example: def f(a): return a.n + len(a) -> return _ . n + len ( _ )."""
    has_docstring = ast.get_docstring(node, clean=False) is not None
    code = ast.unparse(ast.Module(node.body[has_docstring:], []))
    result = []
    previous = ""
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if not token.string.strip():
            continue
        is_name = token.type == tokenize.NAME and token.string not in PLAIN_NAMES
        result.append("_" if is_name and previous != "." else token.string)
        previous = token.string
    return result


def alike(a, b):
    """sim of two lists of tokens, or 0 where it is certain to be below ALIKE."""
    match = difflib.SequenceMatcher(None, a, b, autojunk=False)
    if match.real_quick_ratio() < ALIKE or match.quick_ratio() < ALIKE:
        return 0.0
    return match.ratio()


# ---------------------------------------------------------------- the check


class Checker:
    """Says which functions to drop, and counts. The same benchmarks give the same answers."""

    def __init__(self, benchmarks, missing=()):
        """benchmarks: {name: list of Task}; missing: {name: why it cannot be read}."""
        self.benchmarks = benchmarks
        self.missing = dict(missing)
        self.seen = 0
        self.dropped = []
        self.problems = []  # (benchmark, problem) by number; filled in by ready()

    def ready(self):
        """Make the indices, once there is a function to look up."""
        if self.problems:
            return
        tasks = [(name, task) for name, tasks in self.benchmarks.items() for task in tasks]
        self.problems = [(name, task.name) for name, task in tasks]
        self.grams = {}  # gram -> problems
        self.entries = collections.defaultdict(list)  # name -> [(problem, function)]
        substrings = {}  # substring -> problems
        for number, (_, task) in enumerate(
            progress_bar(tasks, desc="indexing benchmarks", unit="problem", delay=8, leave=False)
        ):
            self.index_grams(number, task)
            for text in self.index_entry(number, task):
                substrings.setdefault(text, []).append(number)
        self.needles = by_rarest_word(substrings)

    def index_grams(self, number, task):
        """Enter a problem's ten-grams, with and without comments."""
        text = TEST.sub("", task.prompt) + task.solution
        for plain in {norm(text), norm(bare(text))}:
            for gram in grams(plain.split()):
                known = self.grams.setdefault(gram, [])
                if number not in known:
                    known.append(number)

    def index_entry(self, number, task):
        """Enter a problem's solution under its name -> the substrings to search for."""
        entry = task.entry_point.split(".")[-1]
        prompt = TEST.sub("", task.prompt)
        nodes = defined(bare(prompt + task.solution), {entry})
        if not task.solution or not nodes:
            return []
        self.entries[entry] += [(number, node) for node in nodes]
        doc = ast.get_docstring(nodes[0], clean=False) or prompt.strip("\"' \n")
        solutions = [task.solution]
        for node in defined(task.solution, {entry}):
            solutions.append(ast.get_source_segment(task.solution, node))
        texts = [doc, EXAMPLES.split(doc)[0], *map(bare, solutions)]
        plain = dict.fromkeys(map(norm, texts))
        return [text for text in plain if len(text) >= SHORTEST]

    def forget_phrases(self, texts, often=3):
        """Ten-grams that `often` or more of these texts share do not count from here on.

        They are phrases of a genre ("a subarray is a contiguous non-empty sequence ...").
        """
        self.ready()
        count = collections.Counter()
        for text in texts:
            count.update(set(grams(norm(bare(text)).split())))
        for gram, n in count.items():
            if n >= often:
                self.grams.pop(gram, None)

    def hits(self, text, comments=False):
        """Why to drop a function -> list of {reason, benchmark, problem, span}; empty: keep it.

        text      its source.
        comments  are they trained on? Then they are searched too.

        Of each reason and benchmark the strongest hit is listed.
        """
        self.ready()
        best = {}
        code = bare(text)
        plain_texts = [norm(code)]
        if comments:
            plain_texts.append(norm(text.replace("#", " ")))
        for plain in dict.fromkeys(plain_texts):
            self.find_substrings(plain, best)
            self.find_grams(plain.split(), best)
        self.find_names(code, best)
        return [hit for _, (_, hit) in sorted(best.items())]

    def note(self, best, reason, problems, strength, span):
        """Enter a hit into `best`, {(reason, benchmark): (strength, hit)}, if it is stronger."""
        for number in problems:
            benchmark, problem = self.problems[number]
            key = REASONS.index(reason), benchmark
            if key not in best or best[key][0] < strength:
                hit = dict(reason=reason, benchmark=benchmark, problem=problem, span=span)
                best[key] = strength, hit

    def find_substrings(self, plain, best):
        """Rule (1)."""
        for word in [None, *dict.fromkeys(plain.split())]:
            for needle, problems in self.needles.get(word, ()):
                if needle in plain:
                    self.note(best, "substring", problems, len(needle), needle)

    def find_grams(self, words, best):
        """Rule (2). The span is the run of words that consecutive ten-grams cover."""
        runs = {}  # problem -> (first word, word after the last) of the run being read
        for i, gram in enumerate(grams(words)):
            for number in self.grams.get(gram, ()):
                first, end = runs.get(number, (i, None))
                if end != i + GRAM - 1:
                    first = i
                runs[number] = first, i + GRAM
                span = " ".join(words[first : i + GRAM])
                self.note(best, "10-gram", [number], i + GRAM - first, span)

    def find_names(self, code, best):
        """Rule (3), for every function in the code, however deep."""
        names = self.entries.keys() & set(DEFINITION.findall(code))
        for node in defined(code, names) if names else ():
            tokens = body_tokens(node)
            for number, solution in self.entries[node.name]:
                similarity = alike(tokens, body_tokens(solution))
                if similarity >= ALIKE:
                    span = f"{node.name}, {similarity:.2f}: {' '.join(tokens)}"
                    self.note(best, "name", [number], similarity, span)

    def __call__(self, name, text):
        """Is the function to be dropped? Counts it."""
        self.seen += 1
        why = self.hits(text)
        if why:
            self.dropped.append({"name": name, "why": why, "text": text})
        return bool(why)

    def summary(self):
        """The account, for a manifest: benchmarks checked and missing; functions seen and dropped.

        `counts` are the functions dropped by reason and benchmark. One may have several reasons.
        """
        tally = collections.Counter()
        for dropped in self.dropped:
            tally.update((hit["reason"], hit["benchmark"]) for hit in dropped["why"])
        counts = {
            reason: {b: tally[reason, b] for b in self.benchmarks if tally[reason, b]}
            for reason in REASONS
        }
        return {
            "benchmarks": {name: len(tasks) for name, tasks in self.benchmarks.items()},
            "missing": self.missing,
            "functions": self.seen,
            "dropped": len(self.dropped),
            "counts": counts,
        }

    def report(self):
        """The account, with every function dropped, why, and its text."""
        return {**self.summary(), "why": self.dropped}

    def account(self, seen, dropped):
        """The report of functions that other processes checked: their number, those dropped."""
        self.seen = seen
        self.dropped = dropped
        return self.report()

    def line(self):
        """The account in one line."""
        return line(self.summary())


def by_rarest_word(substrings):
    """{rarest inner word: [(substring, problems)]}, under None those of less than three words.

    A text that holds a substring holds each of its inner words.
    So a substring is searched only where its rarest inner word is.
    """
    count = collections.Counter()
    for text in substrings:
        count.update(set(text.split()))
    result = collections.defaultdict(list)
    for text, problems in substrings.items():
        inner = text.split()[1:-1]
        rarest = min(inner, key=lambda word: (count[word], word), default=None)
        result[rarest].append((text, problems))
    return result


def line(summary):
    """An account in one line."""
    against = ", ".join(f"{name} ({n})" for name, n in summary["benchmarks"].items())
    reasons = []
    for reason, counts in summary["counts"].items():
        if counts:
            reasons.append(f"{reason}: " + ", ".join(f"{name} {n}" for name, n in counts.items()))
    because = f" ({'; '.join(reasons)})" if reasons else ""
    return (
        f"decontamination: {summary['functions']} functions checked against {against}; "
        f"missing or damaged: {', '.join(summary['missing']) or 'none'}; "
        f"dropped {summary['dropped']}{because}"
    )


# ---------------------------------------------------------------- the command


def options():
    """The command's parser."""
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
    return parser


def main(argv):
    args = options().parse_args(argv)
    show = convert("show", int, args.show)
    if show < 0:
        raise UserError(f"--show {show}: expected a number of at least 0")
    check_output("--out", args.out)
    check_output("--report", args.report)
    check = checker(args.data_dir)
    counts = dict.fromkeys(functions.COUNTED, 0)
    rows = []
    for batch in functions.distinct(args.data, counts, column=args.text_column):
        for name, text, _ in batch:
            if not check(name, text):
                rows.append(json.dumps({"name": name, "text": text}) + "\n")
    if not check.seen:
        account = ", ".join(f"{key} {n}" for key, n in counts.items() if n)
        raise UserError(f"corpus {args.data!r}: no function in it ({account}); give other code")
    tqdm.write(check.line(), file=sys.stderr)
    if args.out:
        write_output(args.out, "--out", "".join(rows).encode())
    if args.report:
        report = {"data": args.data, "corpus": counts, **check.report()}
        write_output(args.report, "--report", json.dumps(report, indent=1).encode())
    for dropped in check.dropped[:show]:
        print(dropped["name"])
        for hit in dropped["why"]:
            print(f"    {hit['reason']}: {hit['benchmark']} {hit['problem']}: {hit['span'][:200]}")


if __name__ == "__main__":
    command(main)
