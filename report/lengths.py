"""The figure of `report.experiments lengths`: hard lines a program, against what compute brings.

A curve is GRPO from one start in one folder: rows of phase rlvr-heldout, whose `flops` are those of
mid-training and of GRPO together. Of every folder all starts are compared at the FLOPs at which
GRPO from RA3 begins, and at those at which it ends.
"""

import typing

import numpy as np

from report.curves import column, markdown_table, spread
from report.figures import new_figure, png_of

LAST = "ra3"  # all are compared at the FLOPs at which GRPO from it begins and ends
RATE = 0.9
COLOURS = {
    "base": "C0",
    "ntp": "C1",
    "best-of-20": "C2",
    "best-of-20-a-line": "C4",
    "best-of-8-a-line": "C6",
    "group": "C5",
    "ra3-a-line": "C8",
    "ra3": "C3",
}


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


class Measures(typing.NamedTuple):
    """A curve in three numbers."""

    begins: float  # pass@1 at the FLOPs at which GRPO from RA3 begins: all for mid-training
    ends: float  # the same where it ends
    tflop: float  # to a pass rate of RATE; NaN: not reached


def measures(curves):
    """What is drawn, of curves {start: {(stages, seed): rows}} -> the same with Measures."""
    compared = {
        key: (rows[0]["flops"], rows[-1]["flops"]) for key, rows in curves.get(LAST, {}).items()
    }
    return {
        start: {
            key: Measures(*(pass_rate_at(rows, x) for x in compared[key]), flops_to(rows) / 1e12)
            for key, rows in of_start.items()
            if key in compared
        }
        for start, of_start in curves.items()
    }


def lengths_table(curves):
    """One row a number of stages and start, in Markdown."""
    title = [f"pass@1 where GRPO from RA3 {word}" for word in ("begins", "ends")]
    lines = [["hard lines", "GRPO from", "seeds", *title, f"TFLOP to {RATE}", "seeds that get it"]]
    values = measures(curves)
    for stages in sorted({stages for of_start in values.values() for stages, _ in of_start}):
        for start, of_start in values.items():
            found = [measured for key, measured in of_start.items() if key[0] == stages]
            if not found:
                continue
            columns = [[x for x in xs if np.isfinite(x)] for xs in zip(*found, strict=True)]
            forms = ("{:.3f}", "{:.3f}", "{:.1f}")
            cells = [
                spread(xs, form) if xs else "-" for xs, form in zip(columns, forms, strict=True)
            ]
            lines.append([str(stages), start, str(len(found)), *cells, str(len(columns[-1]))])
    return markdown_table(lines)


def lengths_figure(rates, curves):
    """The bytes of the figure: after mid-training, at equal total compute, the compute to RATE.

    rates: {model: {(stages, seed): pass@1}} after mid-training
    """
    figure = new_figure(13, 4)
    axes = figure.subplots(1, 3)
    reached, compute = (
        {
            start: {key: getattr(measured, name) for key, measured in of_start.items()}
            for start, of_start in measures(curves).items()
        }
        for name in ("ends", "tflop")
    )
    draw_panel(axes[0], rates, "", "pass@1 after mid-training")
    draw_panel(axes[1], reached, "GRPO from ", "pass@1 at the compute of GRPO from RA3")
    draw_panel(axes[2], compute, "GRPO from ", f"TFLOP to a pass@1 of {RATE} (triangles: more)")
    for aside, (start, of_start) in side_by_side(compute):
        ends = [
            (stages + aside, curves[start][stages, seed][-1]["flops"] / 1e12)
            for (stages, seed), tflop in of_start.items()
            if not np.isfinite(tflop)
        ]
        if ends:
            axes[2].plot(*zip(*ends, strict=True), "^", color=COLOURS.get(start), fillstyle="none")
    axes[2].set_ylim(bottom=0)
    return png_of(figure)


def side_by_side(values):
    """Items of a dict, each with how many hard lines it is drawn aside, so that none hides one."""
    return [(0.1 * (i - (len(values) - 1) / 2), item) for i, item in enumerate(values.items())]


def draw_panel(axis, values, prefix, title):
    """A point a seed of {model: {(stages, seed): number}}, and lines of means with deviations."""
    for aside, (model, numbers) in side_by_side(values):
        by_length = {}  # numbers of each length, those that are there
        for (stages, _), number in sorted(numbers.items()):
            if np.isfinite(number):
                by_length.setdefault(stages, []).append(number)
        means = [np.mean(rates) for rates in by_length.values()]
        deviations = [np.std(rates, ddof=len(rates) > 1) for rates in by_length.values()]
        style = dict(
            color=COLOURS.get(model),
            linewidth=2,
            capsize=3,
            label=prefix + model.replace("ra3", "RA3"),
        )
        axis.errorbar([stages + aside for stages in by_length], means, deviations, **style)
        for stages, rates in by_length.items():
            axis.plot(
                [stages + aside] * len(rates), rates, ".", color=COLOURS.get(model), alpha=0.5
            )
    axis.set(title=title, xlabel="hard lines a program")
    axis.locator_params(axis="x", integer=True)
    axis.grid(alpha=0.2)
    axis.legend(frameon=False)
