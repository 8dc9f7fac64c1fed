"""Figures of EM and of RLVR over runs, drawn by matplotlib."""

import io

import numpy as np

from config import UserError
from report.curves import column, over_seeds

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


def new_figure(*size):
    """An empty figure, drawn by Agg: no display is needed. Raises UserError."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            "figures need the package matplotlib (extra report): pip install matplotlib==3.11.2"
        ) from None
    return Figure(size, layout="constrained")


def draw(axis, seeds, colour, label, marker=""):
    """Draw seeds [(x, y), ...] as thin lines, and their mean with its band."""
    for x, y in seeds:
        axis.plot(x, y, color=colour, linewidth=0.7, alpha=0.4, marker=marker, markersize=2)
    grid, mean, deviation = over_seeds(seeds)
    axis.plot(grid, mean, color=colour, linewidth=2, label=label)
    axis.fill_between(
        grid, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0
    )


def png(figure, axis):
    """The bytes of a figure, with the legend of one of its panels under it."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return png_of(figure)


def png_of(figure):
    """The bytes of a figure."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=130)
    return out.getvalue()


def em_figure(charts):
    """Panels of a run's EM, three a row: seeds, their mean and its band.

    charts: [(title, unit, [(label, [[(x, y), ...], ...])], x axis, is the y axis logarithmic)],
    where a label has the points of every seed
    """
    rows = -(-len(charts) // 3)
    figure = new_figure(12, 3 * rows)
    axes = figure.subplots(rows, 3, squeeze=False).flatten()
    for axis, (title, unit, lines, x_title, log) in zip(axes, charts, strict=False):
        for i, (label, seeds) in enumerate(lines):
            draw(axis, [tuple(np.array(points).T) for points in seeds], f"C{i}", label)
        axis.set(title=title, xlabel=x_title, ylabel=unit, yscale="log" if log else "linear")
        axis.locator_params(axis="x", integer=True)
        axis.grid(alpha=0.2)
        if len(lines) > 1:
            axis.legend(frameon=False)
    for axis in axes[len(charts) :]:
        axis.remove()
    return png_of(figure)


def curves_figure(curves):
    """The held-out pass rate against steps, tokens, seconds and FLOPs. curves: {model: curve}."""
    figure = new_figure(10, 7)
    axes = figure.subplots(2, 2, sharey=True).flatten()
    for axis, (key, unit, title) in zip(axes, PANELS, strict=True):
        for i, (model, curve) in enumerate(curves.items()):
            seeds = [(column(rows, key) / unit, column(rows, "pass@1")) for rows in curve.values()]
            draw(axis, seeds, f"C{i}", model, "o")
        axis.set(xlabel=title)
        axis.grid(alpha=0.2)
    for axis in axes[::2]:
        axis.set(ylabel="held-out pass rate")
    return png(figure, axes[0])


def training_figure(curves):
    """The training metrics against steps. A metric that is null or missing leaves a gap."""
    figure = new_figure(12, 9)
    axes = figure.subplots(3, 3).flatten()
    for axis, key in zip(axes, TRAINING, strict=True):
        for i, (model, curve) in enumerate(curves.items()):
            measured = [
                [row for row in rows if isinstance(row.get(key), (int, float))]
                for rows in curve.values()
            ]
            seeds = [(column(rows, "step"), column(rows, key)) for rows in measured if rows]
            if seeds:
                draw(axis, seeds, f"C{i}", model)
        axis.set(title=key, xlabel="RL steps")
        axis.grid(alpha=0.2)
    return png(figure, axes[0])
