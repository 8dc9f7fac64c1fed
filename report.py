"""RLVR curves: figures, a table, a page to look at.

    python report.py runs/tiny-5 runs/tiny-6 --models rlvr-base,rlvr-ntp,rlvr-ra3 --out rlvr.png
    python report.py runs/tiny-5 runs/tiny-6 --paired rlvr-ra3,rlvr-ntp --training training.png --html report.html

A curve is the held-out pass rate of a model (`pass@1` of its lines of phase rlvr-heldout in metrics.jsonl); a folder is a seed. Drawn are every seed,
their mean, and a band of one standard deviation (n - 1) to either side, wherever all seeds have values; between its points a seed is interpolated.

    area        1 / (x_n - x_0) sum_i (x_i+1 - x_i) (y_i + y_i+1) / 2      mean pass rate y over the steps x; compare models of one length (--max-step)
    steps to    first evaluated step where a seed's pass rate is at least --threshold, or at least what --against ends with in the same folder: mean
                over the seeds that get there, and how many do
    TFLOP       of mid-training and RLVR; pre-training, which all models share, is not in the metrics
"""

import argparse
import base64
import html
import io
import json
import os
import sys

import numpy as np

from config import Parser, UserError, check_output, command, convert, write_output

HELD, TRAIN = "rlvr-heldout", "rlvr"  # phases
NEEDED = {HELD: ("step", "sampled_tokens", "cpu_s", "flops", "pass@1"), TRAIN: ("step",)}
PANELS = (
    ("step", 1, "RL steps"),
    ("sampled_tokens", 1e6, "sampled tokens, millions"),
    ("cpu_s", 1, "CPU seconds of RL training"),
    ("flops", 1e12, "TFLOP, mid-training included"),
)
TRAINING = (
    "reward",
    "entropy",
    "kl_start",
    "no_signal",
    "length",
    "unfinished",
    "thought_tokens",
    "grad_norm",
    "logp_gap",
)


# ---------------------------------------------------------------- reading


def json_lines(path):
    """[(line number, row)] of a .jsonl file; a last line that was cut off is left out, with a note. Raises UserError."""
    try:
        with open(path, errors="replace") as f:
            lines = f.read().split("\n")  # after a whole last line comes an empty one
    except OSError as e:
        raise UserError(
            f"{path}: cannot be read ({e.strerror}); expected the folder of a run"
        ) from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows += [(number, json.loads(line))] if line else []
        except ValueError:
            if number < len(lines):
                raise UserError(
                    f"{path}, line {number}: not JSON; expected one object a line"
                ) from None
            print(
                f"{path}: half a last line is left out; the run is being written, or was killed",
                file=sys.stderr,
            )
    return rows


def json_file(path):
    """The object of a .json file, {} if there is none. Raises UserError."""
    try:
        with open(path) as f:
            return dict(json.load(f))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError):
        raise UserError(
            f"{path}: cannot be read as a JSON object; write it again, or remove it"
        ) from None


def read(folder, max_step=np.inf):
    """{phase: {model: rows by step}} of a folder's metrics, up to a step. Raises UserError."""
    path, found = os.path.join(folder, "metrics.jsonl"), {HELD: {}, TRAIN: {}}
    for number, row in json_lines(path):
        try:
            if row["phase"] in NEEDED:
                row.update({key: float(row[key]) for key in NEEDED[row["phase"]]})
                if row["step"] <= max_step:
                    found[row["phase"]].setdefault(row["model"], []).append(row)
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"{path}, line {number}: expected an object with model, phase and (phase {HELD}) numbers "
                f"{', '.join(NEEDED[HELD])}"
            ) from None
    return found


def select(runs, phase, model):
    """The curve of a model, {folder: rows}, over the folders that have it. Raises UserError if none has. runs: {folder: read(folder)}"""
    curve = {folder: found[phase][model] for folder, found in runs.items() if model in found[phase]}
    if not curve:
        there = sorted({name for found in runs.values() for name in found[phase]})
        raise UserError(
            f"{model}: no lines of phase {phase} in {', '.join(runs)}; there are: {', '.join(there) or 'none'}"
        )
    return curve


# ---------------------------------------------------------------- numbers


def column(rows, key):
    return np.array([row[key] for row in rows], float)


def area(x, y):
    """Mean of y over the range of x, by the trapezoid rule. Example: [0, 10, 30], [0, .4, .6] -> .4"""
    return float(np.trapezoid(y, x) / (x[-1] - x[0]) if x[-1] > x[0] else y[0])


def first_step(rows, threshold):
    """First step with a pass rate of at least threshold, or None."""
    return next((row["step"] for row in rows if row["pass@1"] >= threshold), None)


def over_seeds(seeds):
    """Mean and deviation of seeds [(x, y), ...] wherever all of them have values, interpolated -> grid, mean, deviation.
    Example: [([0, 2], [0, 2]), ([1, 3], [3, 5])] -> [1, 2], [2, 3], [1.41, 1.41]"""
    grid = np.unique(np.concatenate([x for x, _ in seeds]))
    grid = grid[(grid >= max(x[0] for x, _ in seeds)) & (grid <= min(x[-1] for x, _ in seeds))]
    ys = np.array([np.interp(grid, x, y) for x, y in seeds])  # (seeds, points)
    return grid, ys.mean(0), ys.std(0, ddof=1) if len(ys) > 1 else np.zeros(len(grid))


def spread(values, form="{:.3f}"):
    """Mean and standard deviation (n - 1). Example: [.1, .3] -> "0.200 ± 0.141"; [.1] -> "0.100" """
    return form.format(np.mean(values)) + (
        f" ± {form.format(np.std(values, ddof=1))}" if len(values) > 1 else ""
    )


def steps_to(curve, thresholds):
    """When a curve reaches its folders' thresholds. Example: "23 (2 of 3)": two of three seeds do, after 23 steps in the mean."""
    hits = [
        first_step(rows, thresholds[folder])
        for folder, rows in curve.items()
        if folder in thresholds
    ]
    steps = [step for step in hits if step is not None]
    return (
        (f"{np.mean(steps):.0f}" if steps else "never") + f" ({len(steps)} of {len(hits)})"
        if hits
        else "-"
    )


def table(curves, thresholds, goal):
    """Lines of cells: a heading, then a line a model."""
    lines = [
        [
            "model",
            "seeds",
            "steps",
            "pass rate at the start",
            "at the end",
            "area",
            f"steps to {goal}",
            "sampled tokens, M",
            "TFLOP",
            "CPU seconds",
        ]
    ]
    for model, curve in curves.items():
        ends = {key: np.array([rows[-1][key] for rows in curve.values()]) for key in NEEDED[HELD]}
        lines.append(
            [
                model,
                str(len(curve)),
                " to ".join(
                    f"{step:.0f}" for step in sorted({ends["step"].min(), ends["step"].max()})
                ),
                spread([rows[0]["pass@1"] for rows in curve.values()]),
                spread(ends["pass@1"]),
                spread(
                    [area(column(rows, "step"), column(rows, "pass@1")) for rows in curve.values()]
                ),
                steps_to(curve, thresholds),
                spread(ends["sampled_tokens"] / 1e6, "{:.2f}"),
                spread(ends["flops"] / 1e12, "{:.1f}"),
                spread(ends["cpu_s"], "{:.0f}"),
            ]
        )
    return lines


def markdown(lines):
    return "\n".join(
        "| " + " | ".join(line) + " |" for line in [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    )


def paired(a, b, names):
    """One line: differences of the final pass rates of two curves over the folders that have both. Raises UserError."""
    differ = {
        folder: a[folder][-1]["pass@1"] - b[folder][-1]["pass@1"] for folder in a if folder in b
    }
    if not differ:
        raise UserError(f"--paired {','.join(names)}: no folder has both of them")
    mean = spread(list(differ.values()), "{:+.3f}").replace("± +", "± ")
    each = ", ".join(f"{folder} {d:+.3f}" for folder, d in differ.items())
    return (
        f"{names[0]} - {names[1]}, pass rate at the end: {mean} over {len(differ)} seeds ({each})"
    )


# ---------------------------------------------------------------- figures


def new_figure(*size):
    """An empty figure, drawn by Agg: no display is needed. Raises UserError."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            "figures need matplotlib, which is not installed; see requirements.txt"
        ) from None
    return Figure(size, layout="constrained")


def draw(axis, seeds, colour, label, marker=""):
    """Seeds [(x, y), ...] as thin lines; their mean and its band."""
    for x, y in seeds:
        axis.plot(x, y, color=colour, linewidth=0.7, alpha=0.4, marker=marker, markersize=2)
    grid, mean, deviation = over_seeds(seeds)
    axis.plot(grid, mean, color=colour, linewidth=2, label=label)
    axis.fill_between(
        grid, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0
    )


def png(figure, axis):
    """The bytes of a figure, with the legend of one of its panels under it."""
    figure.legend(
        *axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
    )
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=130)
    return out.getvalue()


def curves_figure(curves):
    figure = new_figure(10, 7)
    axes = figure.subplots(2, 2, sharey=True).flatten()
    for axis, (key, unit, title) in zip(axes, PANELS):
        for i, (model, curve) in enumerate(curves.items()):
            draw(
                axis,
                [(column(rows, key) / unit, column(rows, "pass@1")) for rows in curve.values()],
                f"C{i}",
                model,
                "o",
            )
        axis.set(xlabel=title)
        axis.grid(alpha=0.2)
    for axis in axes[::2]:
        axis.set(ylabel="held-out pass rate")
    return png(figure, axes[0])


def training_figure(curves):
    """The training metrics against steps; where nothing was measured (null), or a metric is missing, there is nothing to see."""
    figure = new_figure(12, 9)
    axes = figure.subplots(3, 3).flatten()
    for axis, key in zip(axes, TRAINING):
        for i, (model, curve) in enumerate(curves.items()):
            kept = [
                [row for row in rows if isinstance(row.get(key), (int, float))]
                for rows in curve.values()
            ]
            if any(kept):
                draw(
                    axis,
                    [(column(rows, "step"), column(rows, key)) for rows in kept if rows],
                    f"C{i}",
                    model,
                )
        axis.set(title=key, xlabel="RL steps")
        axis.grid(alpha=0.2)
    return png(figure, axes[0])


# ---------------------------------------------------------------- the page

STYLE = """body { font: 15px/1.5 sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em } table { border-collapse: collapse; font-size: 13px }
td, th { border-bottom: 1px solid #ddd; padding: .2em .7em; text-align: left } img { max-width: 100% } mark { background: #ffe9a8 }
pre { background: #f6f6f6; padding: .7em; overflow-x: auto }"""


def html_table(lines):
    row = lambda line, tag: (
        "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in line) + "</tr>"
    )
    return (
        "<table>\n"
        + "\n".join([row(lines[0], "th"), *(row(line, "td") for line in lines[1:])])
        + "\n</table>"
    )


def last_rows(curves):
    """Lines of cells: of each model and folder the last held-out evaluation."""
    value = lambda x: round(x, 4) if isinstance(x, float) else x
    said = lambda row: json.dumps(
        {key: value(x) for key, x in row.items() if key not in ("model", "phase")}
    )
    return [
        ["model", "folder", "last row"],
        *(
            [model, folder, said(rows[-1])]
            for model, curve in curves.items()
            for folder, rows in curve.items()
        ),
    ]


def settings(folders):
    """Lines of cells: each setting, once if it is the same in all folders."""
    made = [json_file(os.path.join(folder, "settings.json")) for folder in folders]
    values = {
        key: [str(some.get(key, "-")) for some in made]
        for key in dict.fromkeys(key for some in made for key in some)
    }
    return [["setting", "value"]] + [
        [key, " / ".join(each if len(set(each)) > 1 else each[:1])] for key, each in values.items()
    ]


def marked(text):
    """A program as HTML, its thoughts highlighted. Example: "x = 1\\n# two" -> "x = 1\\n<mark># two</mark>" """
    return "\n".join(
        f"<mark>{html.escape(line)}</mark>" if line.lstrip().startswith("#") else html.escape(line)
        for line in text.strip("\n").split("\n")
    )


def samples(model, folders, n=6):
    """The first n programs of a model, from the first folder that has any (train.py --stage eval writes them), as HTML."""
    path = next(
        (
            path
            for folder in folders
            if os.path.exists(path := os.path.join(folder, f"samples-{model}.jsonl"))
        ),
        None,
    )
    rows = json_lines(path)[:n] if path else []
    try:
        shown = [
            f"<p>{html.escape(row['task_id'])}: {html.escape(row['verdict'])}</p>\n<pre>{marked(row['completion'])}</pre>"
            for _, row in rows
        ]
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: expected rows with task_id, verdict and completion") from None
    return "\n".join([f"<h3>{html.escape(f'{model}, {path}')}</h3>", *shown]) if shown else ""


def page(figures, lines, notes, curves, folders):
    """The whole page, with nothing outside it."""
    images = "\n".join(
        f'<p><img alt="{name}" src="data:image/png;base64,{base64.b64encode(image).decode()}"></p>'
        for name, image in figures.items()
    )
    programs = (
        "\n".join(filter(None, (samples(model, curve) for model, curve in curves.items())))
        or "<p>none; train.py --stage eval writes them</p>"
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>RLVR</title><style>
{STYLE}
</style></head><body>
<h1>RLVR from {len(curves)} models</h1>
{images}
{html_table(lines)}
{"".join(f"<p>{html.escape(note)}</p>" for note in notes)}
<h2>Last held-out evaluation</h2>
{html_table(last_rows(curves))}
<h2>Samples</h2>
{programs}
<h2>Settings</h2>
<details><summary>of the last command in {html.escape(", ".join(folders))}</summary>
{html_table(settings(folders))}
</details>
</body></html>
"""


# ---------------------------------------------------------------- the command


def main(argv):
    parser = Parser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="folders of runs, a seed each")
    parser.add_argument(
        "--models",
        default="",
        metavar="NAME[,NAME...]",
        help="models to show (default: all that have a curve)",
    )
    parser.add_argument(
        "--out", default="rlvr.png", metavar="FILE", help="figure of the curves (default rlvr.png)"
    )
    parser.add_argument(
        "--training",
        default="",
        metavar="FILE",
        help="figure of the training metrics against steps",
    )
    parser.add_argument(
        "--html",
        default="",
        metavar="FILE",
        help="a page with figures, table, settings and samples, all in one file",
    )
    parser.add_argument(
        "--max-step", default="", metavar="N", help="cut everything after this step"
    )
    parser.add_argument(
        "--threshold",
        default="",
        metavar="RATE",
        help="pass rate that the steps are counted to; default: see --against",
    )
    parser.add_argument(
        "--against",
        default="",
        metavar="NAME",
        help="count the steps to this model's own final pass rate, by seed (default rlvr-ntp)",
    )
    parser.add_argument(
        "--paired",
        default="",
        metavar="A,B",
        help="print the difference of the final pass rates of two models, by seed",
    )
    args = parser.parse_args(argv)
    max_step = convert("max-step", int, args.max_step) if args.max_step else np.inf
    rate = convert("threshold", float, args.threshold) if args.threshold else None
    pair = [name for name in args.paired.split(",") if name]
    if max_step < 0:
        raise UserError(f"--max-step {args.max_step}: expected a number of at least 0")
    if rate is not None and (args.against or not 0 <= rate <= 1):
        raise UserError(
            f"--threshold {args.threshold}: expected a rate from 0 to 1"
            + ", and no --against beside it" * bool(args.against)
        )
    if args.paired and len(pair) != 2:
        raise UserError(
            f"--paired {args.paired}: expected two models, as in --paired rlvr-ra3,rlvr-ntp"
        )
    for option, path in (("--out", args.out), ("--training", args.training), ("--html", args.html)):
        check_output(option, path)
    folders = [os.path.normpath(folder) for folder in args.folders]
    if len({os.path.realpath(folder) for folder in folders}) < len(folders):
        raise UserError(f"{' '.join(args.folders)}: expected each folder once, as each is a seed")

    runs = {folder: read(folder, max_step) for folder in folders}
    models = (
        list(dict.fromkeys(args.models.split(",")))
        if args.models
        else sorted({model for found in runs.values() for model in found[HELD]})
    )
    if not models:
        raise UserError(
            f"{', '.join(folders)}: no lines of phase {HELD}; expected runs of train.py --stage rlvr"
        )
    curves = {model: select(runs, HELD, model) for model in models}
    against = args.against or "rlvr-ntp"
    known = args.against or any(against in found[HELD] for found in runs.values())
    thresholds = (
        {folder: rows[-1]["pass@1"] for folder, rows in select(runs, HELD, against).items()}
        if known and rate is None
        else {}
    )
    if rate is not None:
        thresholds = dict.fromkeys(folders, rate)
    lines = table(curves, thresholds, f"the end of {against}" if rate is None else args.threshold)
    notes = [paired(*(select(runs, HELD, name) for name in pair), pair)] if pair else []
    print("\n\n".join([markdown(lines), *notes]))

    figures = {"held-out pass rate": curves_figure(curves)}
    write_output(args.out, "--out", figures["held-out pass rate"])
    if args.training:
        figures["training"] = training_figure(
            {model: select(runs, TRAIN, model) for model in models}
        )
        write_output(args.training, "--training", figures["training"])
    if args.html:
        write_output(args.html, "--html", page(figures, lines, notes, curves, folders).encode())


if __name__ == "__main__":
    command(main)
