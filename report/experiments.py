"""The tables of the built-in domain, run again from nothing: every command, every seed, one table.

    python -m report.experiments --list                          the experiments and their commands
    python -m report.experiments default --seeds 0-9 --out runs/default
    python -m report.experiments lengths --seeds 0-2 --out runs/lengths --jobs 2
    python -m report.experiments lengths --stages 4,6 --rows ra3,rlvr-base,rlvr-ra3

A folder a seed (of `lengths`: one a number of stages and seed) and a log a command. What is
finished is not run again, and what was stopped goes on, so the same command can be given until all
of it is there. The table goes to OUT/NAME.md: means over the seeds, the lowest pass@1, and the
interval of the last row's difference to each other row, paired by seed (Student's t). Experiments
that share rows, such as default, controls and penalty, can share a folder.
"""

import argparse
import concurrent.futures
import dataclasses
import os
import shlex
import shutil
import subprocess
import sys
import threading

import numpy as np

from config import (
    Config,
    Parser,
    UserError,
    command,
    deciding,
    differences,
    ended_by_signals,
    parse,
    read_object,
    stages_of,
    write_output,
    writing,
)
from formats.results import read_entries
from report.curves import HELD, bounds_over_seeds, markdown_table, spread
from report.files import json_lines
from report.lengths import LAST, lengths_figure, lengths_table
from report.rows import DEFAULT, EXPERIMENTS, LENGTHS, LONG_BASE

STAGE = {"--stage": {}}  # the option of train.py that is no setting


def folders_of(name, seed, out, lengths=tuple(LENGTHS)):
    """{folder: options of every command in it that has none of its own} of a seed.

    They can share a base model.
    """
    if name != "lengths":
        return {os.path.join(out, str(seed)): f"--seed {seed}"}
    return {
        os.path.join(out, f"{stages}-stages", str(seed)): (
            f"--seed {seed} --stages {stages} --rl-steps {LENGTHS[stages]} {LONG_BASE}"
        )
        for stages in lengths
    }


def commands_of(row, folder, options):
    """The command lines that make a row, as lists."""
    for arguments in row.command.split(" && "):
        argv = ["train.py", *shlex.split(f"{options} {arguments}"), "--out", folder]
        yield [sys.executable, *argv, *["--resume"] * os.path.isdir(folder)]


def figures_of(folder, model):
    """What a folder's files say of a model: a dict, or None if it is not there yet."""
    if by_grpo(model):
        finished = os.path.exists(os.path.join(folder, f"{model}.pt"))
        return curve_of(folder, model)[-1] if finished else None
    figures = read_entries(os.path.join(folder, "results.json")).get(model)
    return figures if figures and figures.get("pass@1") is not None else None


def by_grpo(model):
    return model.startswith("rlvr-")


def curve_of(folder, model):
    """The held-out pass rates of an RLVR run: rows of metrics.jsonl."""
    rows = [row for _, row in json_lines(os.path.join(folder, "metrics.jsonl"), quiet=True)]
    return [row for row in rows if row["model"] == model and row["phase"] == HELD]


def run_seeds(name, seeds, out, rows, lengths, jobs):
    """Run what is missing of some seeds, so many commands at once. Raises UserError.

    Ended by Ctrl-C or a signal, it ends the commands that run, and begins no other.
    """
    running = Running()
    with ended_by_signals(), concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        try:
            arguments = (out, rows, lengths, running)
            waited = [pool.submit(run_seed, name, seed, *arguments) for seed in seeds]
            for job in concurrent.futures.as_completed(waited):
                job.result()
        except (KeyboardInterrupt, SystemExit):
            pool.shutdown(wait=False, cancel_futures=True)
            running.end()
            raise


class Running:
    """The commands that run at the moment, each in a thread's hands."""

    def __init__(self):
        self.ended = threading.Event()
        self.commands = set()

    def run(self, argv, **options):
        """Run a command to its end -> its exit status. Raises UserError once all were ended."""
        if self.ended.is_set():
            raise UserError("ended")
        with subprocess.Popen(argv, **options) as process:
            self.commands.add(process)
            if self.ended.is_set():  # meanwhile
                process.terminate()
            status = process.wait()
            self.commands.discard(process)
        return status

    def end(self):
        self.ended.set()
        for process in list(self.commands):
            process.terminate()


def run_seed(name, seed, out, rows, lengths, running):
    """Run what is missing of a seed, one command after the other. Raises UserError."""
    all_folders = folders_of(name, seed, out)
    for folder, options in folders_of(name, seed, out, lengths).items():
        for row in EXPERIMENTS[name]:
            check_made_by(row, folder, options)
        share_base(folder, all_folders)
        run_folder(folder, rows, options, running)


def check_made_by(row, folder, options):
    """Raises UserError if a model of the folder was made with other settings than its row's.

    Longer training than the row's will do.
    """
    settings = read_object(os.path.join(folder, f"settings-{row.model}.json"))
    if not settings:
        return
    made = [argv for argv in commands_of(row, folder, options) if "eval" not in argv][-1]
    cfg, _ = parse(made[2:], STAGE, "")
    result = "rlvr" if by_grpo(row.model) else "base" if row.model == "base" else "em"
    decide = {*deciding("base"), *deciding(result)}
    longer = {
        f.name
        for f in dataclasses.fields(Config)
        if f.metadata["grows"] and settings.get(f.name, f.default) > getattr(cfg, f.name)
    }
    if unlike := differences(settings, cfg, decide - longer):
        raise UserError(
            f"{folder}: {row.model} was made with {', '.join(unlike)}; give another --out"
        )


def run_folder(folder, rows, options, running):
    """Run what is missing in a folder. Raises UserError."""
    for row in rows:
        if figures_of(folder, row.model) is not None:
            continue
        os.makedirs(os.path.dirname(folder), exist_ok=True)
        log = f"{folder}-{row.model}.log"
        for argv in commands_of(row, folder, options):
            with open(log, "a") as f:
                print(shlex.join(argv[1:]), file=f, flush=True)
                status = running.run(argv, stdout=f, stderr=subprocess.STDOUT)
            if status:
                raise UserError(f"{folder}: {row.model}: exit status {status}; see {log}")


def share_base(folder, others):
    """Give a folder the base model of another, if it has none: the same seed and base corpus."""
    made = [other for other in others if os.path.exists(os.path.join(other, "base.pt"))]
    if not made or folder in made:
        return
    os.makedirs(folder, exist_ok=True)
    for name in ("tokenizer.txt", "settings-base.json", "base.pt"):
        shutil.copyfile(os.path.join(made[0], name), os.path.join(folder, name))


OF_GRPO = """pass@1 of rlvr-...: the last held-out pass rate, `--eval-samples` programs a task; of
the others: `--samples` programs a task.
"""
COLUMNS = (
    ("pass@1", "pass@1", "{:.3f}", 1),
    ("pass@5", "pass@5", "{:.3f}", 1),
    ("greedy", "greedy", "{:.3f}", 1),
    ("elbo", "ELBO", "{:.2f}", 1),
    ("elbo_no_think", "never thinking", "{:.2f}", 1),
    ("think_hard", "thinks: hard", "{:.2f}", 1),
    ("think_easy", "easy", "{:.2f}", 1),
    ("flops", "TFLOP", "{:.1f}", 1e12),
)


def markdown_of(folders, models):
    """The table over some folders, in Markdown: of the models that are there; "" without any."""
    lines = [["", "seeds", "lowest", *(title for _, title, _, _ in COLUMNS)]]
    rates = {}
    for model in models:
        entries = {folder: figures_of(folder, model) for folder in folders}
        entries = {folder: entry for folder, entry in entries.items() if entry}
        if not entries:
            continue
        rates[model] = {folder: entry["pass@1"] for folder, entry in entries.items()}
        cells = [model, str(len(entries)), f"{min(rates[model].values()):.3f}"]
        for key, _, form, unit in COLUMNS:
            values = [entry[key] / unit for entry in entries.values() if entry.get(key) is not None]
            cells.append(spread(values, form) if values else "-")
        lines.append(cells)
    if not rates:
        return ""
    return "\n".join([markdown_table(lines), "", *differences_in_points(rates)])


def differences_in_points(rates):
    """Lines: the last model beside each other one, paired over the folders that have both.

    GRPO's models are left out beside one that is not: their pass rates are of fewer programs.
    """
    *others, last = rates
    for other in others:
        if by_grpo(other) != by_grpo(last):
            continue
        both = rates[last].keys() & rates[other].keys()
        points = [100 * (rates[last][folder] - rates[other][folder]) for folder in both]
        if len(points) > 1:
            bounds = bounds_over_seeds(points, (-100, 100))
            interval = "" if bounds is None else ", 95% [{:+.1f}, {:+.1f}]".format(*bounds)
            yield (
                f"- {last} - {other}: {np.mean(points):+.1f} points of pass@1{interval}, "
                f"{len(points)} seeds"
            )


def write_tables(name, seeds, out):
    """Write OUT/NAME.md, and print it: a table, of `lengths` one a number of stages."""
    by_setting = [list(folders_of(name, seed, out)) for seed in seeds]
    models, tables = models_of(EXPERIMENTS[name]), []
    for folders in zip(*by_setting, strict=True):
        title = os.path.basename(os.path.dirname(folders[0])) if len(by_setting[0]) > 1 else name
        if table := markdown_of(folders, models):
            tables.append(f"## {title}\n\n{table}\n")
    if any(map(by_grpo, models)):
        tables.append(OF_GRPO)
    curves = curves_of_starts(seeds, out) if name == "lengths" else {}
    if curves:
        tables.append(f"## At equal total compute\n\n{lengths_table(curves)}\n")
    text = "\n".join(tables)
    write_output(os.path.join(out, f"{name}.md"), "--out", text.encode())
    print(text)
    if curves:
        rates = rates_of_models(seeds, out)
        write_output(os.path.join(out, "lengths.png"), "--out", lengths_figure(rates, curves))


def finished_at_lengths(seeds, out):
    """What `lengths` has finished: yields (model, (stages, seed), folder, its figures)."""
    for row in EXPERIMENTS["lengths"]:
        for seed in seeds:
            for stages, folder in zip(LENGTHS, folders_of("lengths", seed, out), strict=True):
                figures = figures_of(folder, row.model)
                if figures is not None:
                    yield row.model, (stages, seed), folder, figures


def rates_of_models(seeds, out):
    """{model: {(stages, seed): pass@1}} of what `lengths` has mid-trained."""
    rates = {}
    for model, key, _, figures in finished_at_lengths(seeds, out):
        if not by_grpo(model):
            rates.setdefault(model, {})[key] = figures["pass@1"]
    return rates


def curves_of_starts(seeds, out):
    """{start: {(stages, seed): rows}} of the GRPO runs of `lengths` that are finished."""
    curves = {}
    for model, key, folder, _ in finished_at_lengths(seeds, out):
        if by_grpo(model):
            curves.setdefault(model.removeprefix("rlvr-"), {})[key] = curve_of(folder, model)
    return curves if LAST in curves else {}


def models_of(rows):
    """The models of an experiment's table: those of its rows; ra3 makes base and ntp beside it."""
    names = [row.model for row in rows]
    return (["base", "ntp"] if DEFAULT in rows else []) + sorted(names, key="ra3".__eq__)


def seeds_of(text):
    """Example: "0-3,7" -> [0, 1, 2, 3, 7]; each once. Raises UserError."""
    try:
        seeds = []
        for part in text.split(","):
            first, _, last = part.partition("-")
            seeds += range(int(first), int(last or first) + 1)
        if not seeds:
            raise ValueError("an empty range")
        return list(dict.fromkeys(seeds))
    except ValueError:
        raise UserError(f"--seeds {text}: expected numbers and ranges, such as 0-3,7") from None


def rows_of(name, text):
    """The rows of an experiment that --rows names, and those they need; all without it.

    Raises UserError.
    """
    rows = {row.model: row for row in EXPERIMENTS[name]}
    wanted = list(rows) if text is None else text.split(",")
    if not rows.keys() >= set(wanted):
        raise UserError(f"--rows {text}: expected some of {', '.join(rows)}")
    wanted += [rows[model].needs for model in wanted]
    return [row for model, row in rows.items() if model in wanted]


def lengths_of(name, text):
    """The numbers of stages that --stages names; all without it. Raises UserError."""
    if text is None:
        return tuple(LENGTHS)
    lengths = stages_of(text)
    if name != "lengths" or not LENGTHS.keys() >= set(lengths):
        known = ",".join(map(str, LENGTHS))
        raise UserError(f"--stages {text}: expected some of {known}, for the experiment lengths")
    return lengths


def describe(experiments):
    """The commands of some experiments."""
    for name, rows in experiments.items():
        common = "" if name != "lengths" else f", each with --stages and --rl-steps, {LONG_BASE}"
        print(f"{name}{common}:")
        for row in rows:
            for arguments in row.command.split(" && "):
                print(f"    python train.py {arguments}")


def main(argv):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ", ".join(EXPERIMENTS)
    parser.add_argument("name", nargs="?", default="", help=f"one of {names}")
    parser.add_argument("--list", action="store_true", help="print commands, run nothing")
    parser.add_argument("--seeds", default="0-4", help="numbers and ranges (default 0-4)")
    parser.add_argument("--rows", help="only these rows and those they need, with commas between")
    parser.add_argument("--stages", help="lengths: only these numbers of stages")
    parser.add_argument("--out", default="", help="folder of the runs (default runs/NAME)")
    parser.add_argument("--jobs", type=int, default=1, help="commands at once (default 1)")
    args = parser.parse_args(argv)
    if args.name not in EXPERIMENTS and (args.name or not args.list):
        raise UserError(f"{args.name or 'no experiment'}: expected one of {names}, or --list")
    rows = rows_of(args.name, args.rows) if args.name else []
    if args.list:
        return describe({args.name: rows} if args.name else EXPERIMENTS)
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: expected a number of at least 1")
    seeds, lengths = seeds_of(args.seeds), lengths_of(args.name, args.stages)
    out = args.out or os.path.join("runs", args.name)
    with writing(out, "--out", "give another path"):
        os.makedirs(out, exist_ok=True)
    run_seeds(args.name, seeds, out, rows, lengths, args.jobs)
    write_tables(args.name, seeds, out)


if __name__ == "__main__":
    command(main, "stopped; the same command goes on")
