"""The figure of `report.experiments lengths`: hard lines a program, against what compute brings.

A curve is GRPO from one start in one folder: rows of phase rlvr-heldout, whose `flops` are those of
mid-training and of GRPO together. Of every folder all starts are compared at the FLOPs at which
GRPO from RA3 ends.
"""

import numpy as np

from report.curves import column, markdown_table, spread
from report.figures import draw, new_figure, png_of

LAST = "ra3"  # the start whose end is the compute that all are compared at
RATE = 0.9


def pass_rate_at(rows, flops):
    """pass@1 of a curve at so many FLOPs, in a straight line between two measurements.

    NaN where the curve begins later: mid-training alone took more. Behind its end: its end.
    """
    return float(np.interp(flops, column(rows, "flops"), column(rows, "pass@1"), left=np.nan))


def flops_to(rows, rate=RATE):
    """FLOPs at which a curve first has a pass rate, in a straight line; NaN if it never has it.

    Example: (0, .5), (10, 1.0), rate .9 -> 8
    """
    flops, passed = column(rows, "flops"), column(rows, "pass@1")
    above = np.flatnonzero(passed >= rate)
    if not len(above):
        return np.nan
    last = above[0]
    if last == 0:
        return float(flops[0])
    part = (rate - passed[last - 1]) / (passed[last] - passed[last - 1])
    return float(flops[last - 1] + part * (flops[last] - flops[last - 1]))


def measures(curves):
    """What is drawn, of curves {start: {(stages, seed): rows}} -> the same with pairs of numbers.

    (pass@1 at the FLOPs of GRPO from RA3, TFLOP to a pass rate of RATE)
    """
    ends = {key: rows[-1]["flops"] for key, rows in curves.get(LAST, {}).items()}
    return {
        start: {
            key: (pass_rate_at(rows, ends[key]), flops_to(rows) / 1e12)
            for key, rows in of_start.items()
            if key in ends
        }
        for start, of_start in curves.items()
    }


def lengths_table(curves):
    """One row a number of stages and start, in Markdown."""
    lines = [
        ["hard lines", "GRPO from", "seeds", "pass@1", f"TFLOP to {RATE}", "seeds that get it"]
    ]
    values = measures(curves)
    for stages in sorted({stages for of_start in values.values() for stages, _ in of_start}):
        for start, of_start in values.items():
            pairs = [pair for key, pair in of_start.items() if key[0] == stages]
            if not pairs:
                continue
            rates, tflop = ([x for x in xs if np.isfinite(x)] for xs in zip(*pairs, strict=True))
            cells = [str(stages), start, str(len(pairs))]
            cells += [spread(rates) if rates else "-", spread(tflop, "{:.1f}") if tflop else "-"]
            lines.append([*cells, str(len(tflop))])
    return markdown_table(lines)


def lengths_figure(rates, curves):
    """The bytes of the figure: after mid-training, at equal total compute, the compute to RATE.

    rates: {model: {(stages, seed): pass@1}} after mid-training
    """
    figure = new_figure(13, 4)
    axes = figure.subplots(1, 3)
    pairs = measures(curves)
    draw_panel(axes[0], rates, "pass@1 after mid-training")
    for axis, n, title in (
        (axes[1], 0, "pass@1 at the compute of GRPO from RA3"),
        (axes[2], 1, f"TFLOP to a pass@1 of {RATE}"),
    ):
        values = {
            f"GRPO from {start}": {key: pair[n] for key, pair in of_start.items()}
            for start, of_start in pairs.items()
        }
        draw_panel(axis, values, title)
    axes[2].set_yscale("log")
    return png_of(figure)


def draw_panel(axis, values, title):
    """Lines of {label: {(stages, seed): number}}, one a label."""
    for i, (label, numbers) in enumerate(values.items()):
        seeds = points_of_seeds(numbers)
        if seeds:
            draw(axis, seeds, f"C{i}", label, marker="o")
    axis.set(title=title, xlabel="hard lines a program")
    axis.grid(alpha=0.2)
    axis.legend(frameon=False)


def points_of_seeds(numbers):
    """[(stages, numbers)] of each seed, without those that are not there."""
    seeds = []
    for seed in sorted({seed for _, seed in numbers}):
        points = sorted((stages, number) for (stages, s), number in numbers.items() if s == seed)
        points = [point for point in points if np.isfinite(point[1])]
        if points:
            seeds.append(tuple(np.array(points).T))
    return seeds
