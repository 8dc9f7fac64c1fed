"""Grade programs of a file:   python -m grader FILE.jsonl"""

import argparse
import contextlib
import json
import sys

from config import program_name
from grader.assertions import check_job
from grader.grade import Job, graded
from grader.messages import VERDICTS, HarnessError


def read_rows(path):
    """Jobs of a .jsonl file. Raises ValueError, OSError."""
    jobs = []
    with contextlib.nullcontext(sys.stdin) if path == "-" else open(path, encoding="utf-8") as f:
        for number, line in enumerate(f, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                    job = Job(
                        row["program"],
                        row["tests"],
                        row.get("entry_point") or "",
                        row.get("kind", "assert"),
                        str(row.get("name", "")),
                        row.get("time_limit"),
                    )
                    if not isinstance(job.program, str) or not isinstance(job.entry_point, str):
                        raise ValueError("program and entry_point are texts")
                    check_job(job, f"row {job.name!r}")
                except (ValueError, KeyError, TypeError, AttributeError) as e:
                    raise ValueError(
                        f"{path}, line {number}: {f'no field {e}' if isinstance(e, KeyError) else e}; expected "
                        '{"name", "kind", "program", "tests", "entry_point"}'
                    ) from None
                jobs.append(job)
    return jobs


def main(argv):
    parser = argparse.ArgumentParser(
        prog=program_name(),
        description="Grade programs: a JSON line each with its verdict, in order. "
        + "; ".join(f"{k}: {v}" for k, v in VERDICTS.items()),
    )
    parser.add_argument(
        "file",
        help='.jsonl with rows {"name", "kind": "assert" | "stdio", "program", "tests", "entry_point"}; - for stdin',
    )
    parser.add_argument("--workers", type=int, help="runs at a time (default: the cores)")
    parser.add_argument(
        "--time-limit",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="of a run; of a test for kind stdio (default 10)",
    )
    parser.add_argument(
        "--memory-limit",
        type=float,
        default=2048,
        metavar="MIB",
        help="address space (default 2048)",
    )
    parser.add_argument(
        "--output-limit",
        type=float,
        default=64,
        metavar="MIB",
        help="output, and any file (default 64)",
    )
    args = parser.parse_args(argv)
    try:
        jobs = read_rows(args.file)
        waiting, following = {}, 0
        for i, result in graded(
            jobs,
            workers=args.workers,
            time_limit=args.time_limit,
            memory_limit=int(args.memory_limit * 2**20),
            output_limit=int(args.output_limit * 2**20),
            progress=sys.stderr.isatty(),
        ):
            waiting[i] = result
            while following in waiting:
                said = waiting.pop(following)
                print(
                    json.dumps(
                        {
                            "name": jobs[following].name,
                            "verdict": said.verdict,
                            "seconds": round(said.seconds, 4),
                            "isolation": said.isolation,
                            "mode": said.mode,
                        }
                    ),
                    flush=True,
                )
                following += 1
    except (ValueError, OSError) as e:
        print(f"{program_name()}: {e}", file=sys.stderr)
        return 2
    except HarnessError as e:
        print(
            f"{program_name()}: harness error: {e} {' '.join(getattr(e, '__notes__', []))}",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
