"""A page that compares runs: means over seeds with their intervals, and the curves of each seed.

Intervals are Student's t over the runs, 95%. Every folder counts as a seed. Runs that all have one
value say nothing of how far another would be from it: there is no interval then.
"""

import numpy as np

from report.charts import Series, chart
from report.curves import HELD, bounds_over_seeds, over_seeds
from report.markup import (
    bounds_text,
    disclosure,
    element,
    escape,
    html_table,
    number,
    paragraph,
    section,
)
from report.page import settings_table, whole_page
from report.results import FIGURES, figure_of, title_of, unlike_in_words
from report.training import ESTEP_CHARTS, heldout_points

UNLIMITED = (-np.inf, np.inf)
RATES = "pass@1 pass@5 greedy think_share think_hard think_easy gain_above_c".split()
# title, unit, phase, model, ((key, legend), ...), x axis, is the y axis logarithmic
CHARTS = (
    ("Pre-training", "nats a token", "pretrain", (("ce_code", "code"),), "steps", True),
    *((title, unit, "estep", keys, "E-steps", False) for title, unit, keys in ESTEP_CHARTS),
    ("M-step", "nats a token of code", "mstep", (("ce_code", "code"),), "steps", True),
    ("Bound", "nats a snippet, held out", "heldout", (("elbo", "bound"),), "EM iterations", False),
    ("Held-out pass rate", "pass@1", HELD, (("pass@1", "pass@1"),), "GRPO steps", False),
)


def comparison_page(folders, rlvr=""):
    """The page of several runs. rlvr: HTML of their RLVR curves' table, where there are any."""
    names = ", ".join(folder.name for folder in folders)
    sections = {
        "results": ("results", results_over_seeds(folders)),
        "curves": ("curves", curves_over_seeds(folders)),
        "rlvr": ("RLVR", section("rlvr", "RLVR", rlvr) if rlvr else ""),
        "settings": ("settings", settings_apart(folders)),
    }
    return whole_page(f"RA3: {len(folders)} runs", names, "", sections)


def models_in(folders):
    """Names of the models that any run has results of, in the order of `Folder.models`."""
    names = [name for folder in folders for name in folder.models if name in folder.results]
    return list(dict.fromkeys(names))


def values_over_seeds(folders, model, key):
    """A figure of each run that has it, as a list."""
    values = [figure_of(folder.results.get(model, {}), key) for folder in folders]
    unit = 1e12 if key == "flops" else 1
    return [value / unit for value in values if isinstance(value, (int, float))]


# ---------------------------------------------------------------- results


def results_over_seeds(folders):
    """Mean, interval and the value of each run; "" where nothing was evaluated."""
    models = models_in(folders)
    if not models:
        return ""
    lines = [["", *(escape(title_of(model)) for model in models)]]
    for title, key, form, meaning in FIGURES:
        columns = [values_over_seeds(folders, model, key) for model in models]
        cells = [mean_cell(values, form, key in RATES) for values in columns]
        if any(cell != "-" for cell in cells):
            lines.append([escape(title) + element("small", escape(meaning)), *cells])
    words = [element("li", escape(line)) for line in differences_over_seeds(folders, models)]
    entries = [entry for folder in folders for entry in folder.results.values()]
    warnings = [missing_in_words(folders, models), unlike_in_words(entries, ["seed"])]
    return section(
        "results",
        "Results",
        html_table(
            lines, "Means over the runs, 95% intervals in brackets, then each run", "figures"
        ),
        element("ul", *words) if words else "",
        *(paragraph(text, "down") for text in warnings if text),
        paragraph(
            "Intervals are Student's t over the runs: each counts as a seed. "
            "Where all have one value there is none.",
            "note",
        ),
    )


def mean_cell(values, form, is_rate):
    """Mean, interval, values. is_rate: the interval ends at 0 and 1.

    Example: [.1, .3], of a rate -> "0.200 [0.000, 1.000] 0.100, 0.300"
    """
    if not values:
        return "-"
    cell = escape(number(float(np.mean(values)), form))
    if bounds := interval_in_words(values, form, (0, 1) if is_rate else UNLIMITED):
        cell += element("small", escape(bounds))
    return cell + element("small", escape(", ".join(number(value, form) for value in values)))


def interval_in_words(values, form, limits):
    """The interval of the mean, cut off at its limits; "" for values that do not differ.

    Example: [.1, .3], limits (0, 1) -> "[0.000, 1.000]"
    """
    bounds = bounds_over_seeds(values, limits)
    return "" if bounds is None else bounds_text(bounds, form)


def differences_over_seeds(folders, models):
    """Lines: the last model beside the others, paired over the runs that have both."""
    for baseline in models[:-1]:
        for key, title, form in (("pass@1", "pass@1", "{:+.3f}"), ("elbo", "bound", "{:+.2f}")):
            pairs = [
                values_over_seeds([folder], models[-1], key)
                + values_over_seeds([folder], baseline, key)
                for folder in folders
            ]
            values = [pair[0] - pair[1] for pair in pairs if len(pair) == 2]
            if len(values) > 1:
                limits = (-1, 1) if key in RATES else UNLIMITED
                mean = number(float(np.mean(values)), form)
                figures = f"{mean} {interval_in_words(values, form, limits)}".strip()
                pair = f"{title_of(models[-1])} beside {title_of(baseline)}"
                yield f"{pair}: {title} {figures} over {len(values)} runs"


def missing_in_words(folders, models):
    """Which runs have no results of which models; "" where all are there.

    Example: "No results of: tiny-1 (NTP, RA3)."
    """
    gaps = []
    for folder in folders:
        names = [title_of(model) for model in models if model not in folder.results]
        if names:
            gaps.append(f"{folder.name} ({', '.join(names)})")
    return f"No results of: {'; '.join(gaps)}." if gaps else ""


# ---------------------------------------------------------------- curves


def curves_over_seeds(folders):
    """Each chart with a faint line a run, and the mean; "" without any."""
    charts = [chart_over_seeds(folders, *entry) for entry in CHARTS]
    charts = [text for text in charts if text]
    note = paragraph("Thin lines are runs, thick ones their mean where all have values.", "note")
    content = element("div", *charts, cls="charts")
    return section("curves", "Curves", note, content) if charts else ""


def chart_over_seeds(folders, title, unit, phase, keys, x_title, log):
    series = []
    for style, (label, curves) in enumerate(curves_of(folders, phase, keys)):
        series += lines_over_seeds(curves, label, style)
    return chart(title, unit, series, x_title, log=log)


def curves_of(folders, phase, keys):
    """[(label, points of every run that has any)] of each model's metrics in a phase.

    keys: ((metric, its name in the legend), ...)
    """
    lines = []
    models = list(dict.fromkeys(m for folder in folders for m in folder.models_of(phase)))
    for model in models:
        for key, name in keys:
            runs = [Series("", points_of(folder, model, phase, key)).points for folder in folders]
            label = name if len(models) == 1 else f"{title_of(model)}, {name}"
            if any(runs):
                lines.append((label, [points for points in runs if points]))
    return lines


def em_charts(folders):
    """What `figures.em_figure` draws: the charts of EM that anything was measured for."""
    charts = []
    for title, unit, phase, keys, x_title, log in CHARTS:
        lines = curves_of(folders, phase, keys)
        if lines and phase != HELD:
            charts.append((title, unit, lines, x_title, log))
    return charts


def points_of(folder, model, phase, key):
    """A metric of a run: against the step (RLVR), the iteration (held out) or the line's number."""
    if phase == "heldout":
        return heldout_points(folder, model, key)
    rows = folder.rows(model, phase)
    if phase == HELD:
        return [(row.get("step", 0), row.get(key)) for row in rows]
    return [(n, figure_of(row, key)) for n, row in enumerate(rows, 1)]


def lines_over_seeds(curves, label, style):
    """The runs' lines, and their mean. curves: [[(x, y), ...], ...]"""
    runs = [Series(label, points, style, faint=len(curves) > 1) for points in curves]
    if len(curves) == 1:
        return runs
    x, y, _ = over_seeds([tuple(zip(*points, strict=True)) for points in curves])
    return [*runs, Series(label, list(zip(x.tolist(), y.tolist(), strict=True)), style)]


# ---------------------------------------------------------------- settings


def settings_apart(folders):
    """Settings that differ between the runs, then those that are alike."""
    settings = [folder.settings for folder in folders]
    keys = list(dict.fromkeys(key for of_folder in settings for key in of_folder))
    lines = [["setting", *(escape(folder.name) for folder in folders)]]
    alike = {}
    for key in keys:
        values = [of_folder.get(key, "not there") for of_folder in settings]
        if len({repr(value) for value in values}) == 1:
            alike[key] = values[0]
        else:
            lines.append([escape(key), *(escape(repr(value)) for value in values)])
    if not keys:
        return ""
    return section(
        "settings",
        "Settings of the last commands",
        html_table(lines, "settings that differ", "plain"),
        disclosure("those that are alike", settings_table(alike, "in all runs")),
    )
