"""Curves of held-out pass rates: read from metrics.jsonl, averaged over seeds, as a table.

__main__.py defines the numbers.
"""

import os

import numpy as np

from benchmarks.rates import seed_interval
from config import UserError
from report.files import json_lines

HELD = "rlvr-heldout"  # phases of metrics.jsonl
TRAIN = "rlvr"
NEEDED = {HELD: ("step", "sampled_tokens", "cpu_s", "flops", "pass@1"), TRAIN: ("step",)}


# ---------------------------------------------------------------- files


def read_metrics(folder, max_step=np.inf):
    """{phase: {model: rows by step}} of a folder's metrics, up to a step. Raises UserError."""
    path = os.path.join(folder, "metrics.jsonl")
    phases = {HELD: {}, TRAIN: {}}
    for number, row in json_lines(path):
        try:
            if row["phase"] in NEEDED:
                row.update({key: float(row[key]) for key in NEEDED[row["phase"]]})
                if row["step"] <= max_step:
                    phases[row["phase"]].setdefault(row["model"], []).append(row)
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"{path}, line {number}: expected an object with model, phase and (phase {HELD}) "
                f"numbers {', '.join(NEEDED[HELD])}"
            ) from None
    return phases


def select(runs, phase, model):
    """The curve of a model, {folder: rows}, over the folders that have it.

    runs: {folder: read_metrics(folder)}. Raises UserError if no folder has the model.
    """
    curve = {
        folder: phases[phase][model] for folder, phases in runs.items() if model in phases[phase]
    }
    if not curve:
        known = sorted({name for phases in runs.values() for name in phases[phase]})
        raise UserError(
            f"{model}: no lines of phase {phase} in {', '.join(runs)}; there are: "
            f"{', '.join(known) or 'none'}"
        )
    return curve


# ---------------------------------------------------------------- numbers


def column(rows, key):
    return np.array([row[key] for row in rows], float)


def area(x, y):
    """Mean of y over the range of x, by the trapezoid rule.

    Example: [0, 10, 30], [0, .4, .6] -> .4
    """
    return float(np.trapezoid(y, x) / (x[-1] - x[0]) if x[-1] > x[0] else y[0])


def first_step(rows, threshold):
    """First step with a pass rate of at least threshold, or None."""
    return next((row["step"] for row in rows if row["pass@1"] >= threshold), None)


def over_seeds(seeds):
    """Mean and deviation of seeds [(x, y), ...] -> grid, mean, deviation.

    The grid is where all of them have values, interpolated.
    Example: [([0, 2], [0, 2]), ([1, 3], [3, 5])] -> [1, 2], [2, 3], [1.41, 1.41]
    """
    grid = np.unique(np.concatenate([x for x, _ in seeds]))
    start = max(x[0] for x, _ in seeds)
    end = min(x[-1] for x, _ in seeds)
    grid = grid[(grid >= start) & (grid <= end)]
    ys = np.array([np.interp(grid, x, y) for x, y in seeds])  # (seeds, points)
    return grid, ys.mean(0), ys.std(0, ddof=1) if len(ys) > 1 else np.zeros(len(grid))


def spread(values, form="{:.3f}"):
    """Mean and standard deviation (n - 1).

    Example: [.1, .3] -> "0.200 ± 0.141"; [.1] -> "0.100"
    """
    mean = form.format(np.mean(values))
    if len(values) < 2:
        return mean
    return f"{mean} ± {form.format(np.std(values, ddof=1))}"


def steps_to(curve, thresholds):
    """When a curve reaches its folders' thresholds.

    Example: "23 (2 of 3)": two of three seeds do, after 23 steps in the mean.
    """
    hits = [
        first_step(rows, thresholds[folder])
        for folder, rows in curve.items()
        if folder in thresholds
    ]
    if not hits:
        return "-"
    steps = [step for step in hits if step is not None]
    mean = f"{np.mean(steps):.0f}" if steps else "never"
    return f"{mean} ({len(steps)} of {len(hits)})"


def bounds_over_seeds(values, limits):
    """95% interval of the mean, cut off at its limits; None for values that do not differ.

    Example: [.1, .3], limits (0, 1) -> [0, 1]
    """
    if np.ptp(values) < 1e-9:  # but for rounding
        return None
    return np.clip(seed_interval(values), *limits)


def paired_over_seeds(a, b, names):
    """One line: differences of the final pass rates of two curves over the folders that have both.

    Raises UserError if there is no such folder.
    """
    differences = {
        folder: a[folder][-1]["pass@1"] - b[folder][-1]["pass@1"] for folder in a if folder in b
    }
    if not differences:
        raise UserError(f"--paired {','.join(names)}: no folder has both of them")
    values = list(differences.values())
    mean = spread(values, "{:+.3f}").replace("± +", "± ")
    each = ", ".join(f"{folder} {value:+.3f}" for folder, value in differences.items())
    line = f"{names[0]} - {names[1]}, pass rate at the end: {mean}"
    bounds = bounds_over_seeds(values, (-1, 1))
    if bounds is not None:
        line += ", 95% [{:+.3f}, {:+.3f}]".format(*bounds)
    return f"{line} over {len(values)} seeds ({each})"


# ---------------------------------------------------------------- the table


def curve_table(curves, thresholds, goal):
    """Lines of cells: a heading, then a line a model.

    thresholds: {folder: pass rate that steps are counted to}; goal: what that is, in words.
    """
    heading = [
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
    return [heading, *(curve_cells(model, curves[model], thresholds) for model in curves)]


def curve_cells(model, curve, thresholds):
    """The cells of a model's line."""
    ends = {key: np.array([rows[-1][key] for rows in curve.values()]) for key in NEEDED[HELD]}
    steps = sorted({ends["step"].min(), ends["step"].max()})
    areas = [area(column(rows, "step"), column(rows, "pass@1")) for rows in curve.values()]
    return [
        model,
        str(len(curve)),
        " to ".join(f"{step:.0f}" for step in steps),
        spread([rows[0]["pass@1"] for rows in curve.values()]),
        spread(ends["pass@1"]),
        spread(areas),
        steps_to(curve, thresholds),
        spread(ends["sampled_tokens"] / 1e6, "{:.2f}"),
        spread(ends["flops"] / 1e12, "{:.1f}"),
        spread(ends["cpu_s"], "{:.0f}"),
    ]


def markdown_table(lines):
    """Lines of cells, the first one the heading, as a Markdown table."""
    rule = ["---"] * len(lines[0])
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])
