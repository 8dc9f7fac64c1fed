"""Grade programs of a file:   python -m grader FILE.jsonl"""

import argparse
import contextlib
import dataclasses
import json
import sys

from config import program_name
from grader.assertions import check_job, prepare
from grader.grade import Job, check_limits, graded
from grader.messages import VERDICTS, HarnessError

EXPECTED = '{"name", "kind", "program", "tests", "entry_point"}'


def read_jobs(path):
    """(line number, Job) of each row of a .jsonl file. Raises ValueError, OSError."""
    jobs = []
    source = contextlib.nullcontext(sys.stdin) if path == "-" else open(path, encoding="utf-8")
    with source as lines:
        number = 0
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    jobs.append((number, job_of_row(json.loads(line))))
        except UnicodeDecodeError as e:
            raise ValueError(f"{path}, after line {number}: no UTF-8 text ({e.reason})") from None
        except RecursionError:
            raise ValueError(
                f"{path}, line {number}: nested too deeply; expected {EXPECTED}"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            why = f"no field {e}" if isinstance(e, KeyError) else e
            raise ValueError(f"{path}, line {number}: {why}; expected {EXPECTED}") from None
    return jobs


def job_of_row(row):
    """A Job from a row of a file. Raises ValueError, KeyError, TypeError, AttributeError."""
    job = Job(
        row["program"],
        row["tests"],
        row.get("entry_point") or "",
        row.get("kind", "assert"),
        str(row.get("name", "")),
        row.get("time_limit"),
        row.get("preamble") or "",
    )
    if not all(isinstance(text, str) for text in (job.program, job.entry_point, job.preamble)):
        raise ValueError("program, entry_point and preamble are texts")
    check_job(job, f"row {job.name!r}")
    return job


def compiling(path, rows):
    """The jobs whose tests can be run; a line on stderr for each of the others."""
    jobs = []
    for number, job in rows:
        try:
            if job.kind == "assert":
                prepare(job.tests, job.entry_point.strip(), job.preamble)
            jobs.append(job)
        except ValueError as e:
            print(
                f"{program_name()}: {path}, line {number}: row {job.name!r}: {e}", file=sys.stderr
            )
    return jobs


def arguments(argv):
    verdicts = "; ".join(f"{name}: {text}" for name, text in VERDICTS.items())
    parser = argparse.ArgumentParser(
        prog=program_name(),
        description=f"Grade programs: a JSON line each with its verdict, in order. {verdicts}",
    )
    parser.add_argument(
        "file",
        help='.jsonl with rows {"name", "kind": "assert" | "stdio", "program", "tests", '
        '"entry_point"}, and if wanted "preamble"; - for stdin',
    )
    parser.add_argument("--workers", type=int, help="runs at a time (default: the cores)")
    for name, default, unit, text in (
        ("time", 10.0, "SECONDS", "of a run; of a test for kind stdio"),
        ("memory", 2048.0, "MIB", "address space"),
        ("output", 64.0, "MIB", "output, and any file"),
    ):
        parser.add_argument(
            f"--{name}-limit",
            type=float,
            default=default,
            metavar=unit,
            help=f"{text} (default {default:g})",
        )
    return parser.parse_args(argv)


def print_graded(jobs, settings):
    """A JSON line for each job, in order, as soon as it can be said."""
    waiting, following = {}, 0
    for i, result in graded(jobs, progress=sys.stderr.isatty(), **settings):
        waiting[i] = result
        while following in waiting:
            fields = dataclasses.asdict(waiting.pop(following))
            fields["seconds"] = round(fields["seconds"], 4)
            print(json.dumps({"name": jobs[following].name, **fields}), flush=True)
            following += 1


def main(argv):
    args = arguments(argv)
    try:
        settings = dict(
            workers=args.workers,
            time_limit=args.time_limit,
            memory_limit=args.memory_limit * 2**20,
            output_limit=args.output_limit * 2**20,
        )
        check_limits(**(settings | {"workers": 1 if args.workers is None else args.workers}))
        rows = read_jobs(args.file)
        jobs = compiling(args.file, rows)
        print_graded(jobs, settings)
        return 0 if len(jobs) == len(rows) else 2
    except (ValueError, OSError) as e:
        print(f"{program_name()}: {e}", file=sys.stderr)
        return 2
    except HarnessError as e:
        notes = " ".join(getattr(e, "__notes__", []))
        print(f"{program_name()}: harness error: {e} {notes}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
