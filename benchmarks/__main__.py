"""Benchmarks: problem sets of the field read into tasks, with the field's own names, prompts, references and tests; a user's own file of problems.

    python -m benchmarks --list                                            every suite: items, gradable, origin, licence, found or not
    python -m benchmarks --references humaneval,mbpp                       grade the reference solutions; without names: of every suite
    python -m benchmarks --mutants humaneval,mbpp --per-problem 10         how many wrong programs do the tests notice?

What holds for all suites is in suites.py.
"""

from benchmarks.files import FILES
from benchmarks.mutation import mutation_scores, references
from benchmarks.suites import SUITES, gradable, load
from config import Parser, UserError, command

ALSO = {
    "humaneval": ["humaneval+"],
    "mbpp": ["mbpp+"],
    "mbpp-sanitized": ["mbpp+"],
    "humaneval+": ["humaneval"],
    "mbpp+": ["mbpp-sanitized"],
}  # other tests of the same problems

WITH_REFERENCES = (
    "humaneval",
    "humaneval+",
    "mbpp-all",
    "mbpp-sanitized",
    "mbpp+",
    "leetcode",
    "leetcode-train",
    "leetcode-v0.3.1",
    "livecodebench",
)


def list_suites(data_dir=""):
    print(f"{'suite':<24}{'items':>6}{'gradable':>9}   origin and licence")
    for name, (_, files) in SUITES.items():
        origin = (
            "; ".join(
                dict.fromkeys(f"{FILES[f][2]} {FILES[f][3][:8]} ({FILES[f][5]})" for f in files)
            )
            or "see livecodebench.py"
        )
        try:
            tasks, without = gradable(name, data_dir)
            dropped = sum(map(len, without.values()))
            reasons = "".join(f"; {len(names)} {why}" for why, names in without.items())
            print(f"{name:<24}{len(tasks) + dropped:>6}{len(tasks):>9}   {origin}{reasons}")
        except UserError as e:
            print(f"{name:<24}{'-':>6}{'-':>9}   {origin}; not usable: {e}")


def main(argv):
    parser = Parser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--list", action="store_true", help="every suite, and whether its files were found"
    )
    parser.add_argument(
        "--references",
        nargs="?",
        const=",".join(WITH_REFERENCES),
        metavar="SUITES",
        help="grade the reference solutions of suites (commas between; default: of all that have some, each once)",
    )
    parser.add_argument(
        "--mutants",
        nargs="?",
        const="humaneval,mbpp",
        metavar="SUITES",
        help="grade mutated references (default humaneval,mbpp)",
    )
    parser.add_argument(
        "--per-problem", type=int, default=10, help="mutants of a problem, at most (default 10)"
    )
    parser.add_argument("--seed", type=int, default=0, help="which of them are drawn (default 0)")
    parser.add_argument("--show", type=int, default=0, help="mutants to print that no test notices")
    parser.add_argument(
        "--workers", type=int, default=None, help="programs at a time (default: the cores)"
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=1.0,
        help="factor on time limits, for a busy machine (default 1)",
    )
    parser.add_argument(
        "--data-dir",
        default="",
        help="folder of the data (default ../shared/data beside the project)",
    )
    args = parser.parse_args(argv)
    if not (args.list or args.references or args.mutants):
        raise UserError("nothing to do: expected --list, --references or --mutants; see --help")
    if args.list:
        list_suites(args.data_dir)
    if args.references:
        references(
            ((name, load(name, args.data_dir)) for name in args.references.split(",")),
            args.workers,
            args.patience,
        )
    for name in args.mutants.split(",") if args.mutants else []:
        suites = {tests: load(tests, args.data_dir) for tests in [name, *ALSO.get(name, [])]}
        mutation_scores(suites, args.per_problem, args.seed, args.show, args.workers, args.patience)


if __name__ == "__main__":
    command(main)
