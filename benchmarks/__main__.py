"""Benchmarks: problem sets of the field read into tasks, with the field's own names and tests.

    python -m benchmarks --list                                     every suite, as a table
    python -m benchmarks --references humaneval,mbpp                grade the reference solutions
    python -m benchmarks --mutants humaneval,mbpp --per-problem 10  which wrong programs pass?

What holds for all suites is in suites.py.
"""

from benchmarks.files import FILES
from benchmarks.mutation import mutation_scores, references
from benchmarks.suites import SUITES, gradable, load
from config import Parser, UserError, command

WITH_REFERENCES = [name for name, suite in SUITES.items() if suite.references]
COLUMNS = "suite items gradable references trained checked origin".split()


def list_suites(data_dir=""):
    """Print every suite as a Markdown table, with what its record says and what its files hold.

    references: --references grades its solutions by default.
    trained: RLVR may take its tests as rewards.
    checked: training data is searched for its problems.
    """
    rows = [COLUMNS, [""] * len(COLUMNS), *(suite_row(name, data_dir) for name in SUITES)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[-1] = 0  # the last column may be long
    rows[1] = ["-" * max(3, width) for width in widths]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print(f"| {' | '.join(cells)} |")


def suite_row(name, data_dir):
    """The cells of a suite's row in the table."""
    suite = SUITES[name]
    origins = dict.fromkeys(FILES[file].origin for file in suite.files)
    origin = "; ".join(origins) or "see livecodebench.py"
    items, usable = "-", "-"
    try:
        tasks, dropped = gradable(name, data_dir)
        usable = str(len(tasks))
        items = str(len(tasks) + sum(map(len, dropped.values())))
        origin += "".join(f"; {len(names)} {reason}" for reason, names in dropped.items())
    except UserError as e:
        origin += f"; not usable: {e}"
    flags = (suite.references, suite.trained_as == name, suite.checked)
    return [name, items, usable, *("yes" if flag else "" for flag in flags), origin]


def benchmark_options(argv):
    """The command line. Raises UserError."""
    parser = Parser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--list", action="store_true", help="every suite, as a Markdown table")
    parser.add_argument(
        "--references",
        nargs="?",
        const=",".join(WITH_REFERENCES),
        metavar="SUITES",
        help="grade the reference solutions of suites (commas between; default: all that have any)",
    )
    parser.add_argument(
        "--mutants",
        nargs="?",
        const="humaneval,mbpp",
        metavar="SUITES",
        help="grade mutated references (default humaneval,mbpp)",
    )
    numbers = {
        "--per-problem": (int, 10, "mutants of a problem, at most (default 10)"),
        "--seed": (int, 0, "which of them are drawn (default 0)"),
        "--show": (int, 0, "mutants to print that no test notices"),
        "--workers": (int, None, "programs at a time (default: the cores)"),
        "--patience": (float, 1.0, "factor on time limits, for a busy machine (default 1)"),
    }
    for option, (kind, default, text) in numbers.items():
        parser.add_argument(option, type=kind, default=default, help=text)
    parser.add_argument(
        "--data-dir",
        default="",
        help="folder of the data (default shared/data beside the project's folder)",
    )
    return parser.parse_args(argv)


def main(argv):
    args = benchmark_options(argv)
    if not (args.list or args.references or args.mutants):
        raise UserError("nothing to do: expected --list, --references or --mutants; see --help")
    if args.list:
        list_suites(args.data_dir)
    if args.references:
        loaded = ((name, load(name, args.data_dir)) for name in args.references.split(","))
        references(loaded, args.workers, args.patience)
    for name in args.mutants.split(",") if args.mutants else []:
        also = SUITES[name].also if name in SUITES else ()
        suites = {tests: load(tests, args.data_dir) for tests in (name, *also)}
        mutation_scores(suites, args.per_problem, args.seed, args.show, args.workers, args.patience)


if __name__ == "__main__":
    command(main)
