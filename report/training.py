"""The curves of a run: pre-training, E-steps, M-steps, the held-out bound, RLVR."""

from report.charts import Series, chart
from report.curves import HELD, TRAIN
from report.markup import element, escape, number, paragraph, section
from report.results import figure_of, title_of

# title, unit, ((key, name in the legend), ...); of the rows of an E-step
ESTEP_CHARTS = (
    (
        "Reward",
        "nats a snippet",
        (("reward", "with its thoughts"), ("elbo_no_think", "never thinking")),
    ),
    (
        "P(think)",
        "share of lines with a thought",
        (("think_hard", "hard lines"), ("think_easy", "easy lines")),
    ),
    ("Gain", "nats a thought", (("gain", "mean gain"),)),
    ("KL(q, π)", "nats a token of a thought", (("kl", "KL"),)),
)
RLVR_CHARTS = (
    ("reward", "Reward", "mean over completions"),
    ("entropy", "Entropy", "nats a token"),
    ("kl_start", "KL to the start", "nats a token"),
    ("no_signal", "No signal", "share of groups"),
    ("length", "Length", "tokens a completion"),
    ("thought_tokens", "Thoughts", "share of tokens"),
)


def curves_section(folder):
    """All charts of what was measured; "" without any."""
    groups = [
        ("base", "Base model", [pretraining_chart(folder)], base_in_words(folder)),
        (
            "estep",
            "E-step: learning when to think",
            estep_charts(folder),
            diagnosis_in_words(folder),
        ),
        ("mstep", "M-step: training on code with thoughts", mstep_charts(folder), ""),
        ("heldout", "Held-out code, by EM iteration", heldout_charts(folder), ""),
        ("rl", "Reinforcement learning from tests (RLVR)", rlvr_charts(folder), ""),
    ]
    content = []
    for name, title, charts, words in groups:
        charts = [text for text in charts if text]
        if charts or words:
            heading = element("h3", escape(title)) + (paragraph(words) if words else "")
            charts = element("div", *charts, cls="charts") if charts else ""
            content.append(element("div", heading, charts, cls="group", id=f"curves-{name}"))
    return section("curves", "Curves", *content) if content else ""


def pretraining_chart(folder):
    rows = folder.rows("base", "pretrain")
    points = [(n, row.get("ce_code")) for n, row in enumerate(rows)]
    series = [Series("code", points)]
    return chart("Pre-training", "cross-entropy, nats a token", series, "steps", log=True)


def base_in_words(folder):
    """What the base can do with notes, as its last check measured."""
    rows = folder.rows("base", "skill")
    if not rows or not {"notes", "notes_right", "note_nats"} <= rows[-1].keys():
        return ""
    skill = rows[-1]
    return (
        f"{skill['notes_right']:.0%} of the {skill['notes']} worked notes that it writes are "
        f"right; a right one is worth {number(skill['note_nats'], '{:+.2f}')} nats to its line."
    )


def diagnosis_in_words(folder):
    """What the thoughts of the model before the first E-step are worth."""
    models = folder.models_of("diagnose")
    if not models:
        return ""
    row = folder.rows(models[0], "diagnose")[0]
    way = f" Thoughts are found by {row['estep']}." if "estep" in row else ""
    return (
        f"Before it, the model thinks before {row['think_share']:.1%} of the lines; "
        f"a thought gains {number(row['gain'], '{:+.2f}')} nats.{way}"
    )


def estep_charts(folder):
    """A chart a metric; a model's lines have its name where there are several."""
    models = folder.models_of("estep")
    charts = []
    for title, unit, keys in ESTEP_CHARTS:
        series = []
        borders = set()
        for model in models:
            rows = folder.rows(model, "estep")
            borders |= starts(rows)
            prefix = f"{title_of(model)}, " if len(models) > 1 else ""
            for key, name in with_share(keys, rows):
                points = [(n, figure_of(row, key)) for n, row in enumerate(rows, 1)]
                series.append(Series(prefix + name, points, len(series)))
        charts.append(chart(title, unit, series, "E-steps", borders=sorted(borders)))
    return charts


def with_share(keys, rows):
    """The keys, or the share of all lines where hard lines are not known."""
    if keys[0][0] == "think_hard" and not any("think_hard" in row for row in rows):
        return (("think_share", "all lines"),)
    return keys


def starts(rows):
    """Where a next EM iteration begins, between two steps. Example: 4 steps of two -> {2.5}"""
    pairs = zip(rows, rows[1:], strict=False)
    changes = [a.get("iteration") != b.get("iteration") for a, b in pairs]
    return {n + 0.5 for n, change in enumerate(changes, 1) if change}


def mstep_charts(folder):
    """Cross-entropy of code, and of the thoughts in it."""
    charts = []
    for key, title in (("ce_code", "Code"), ("ce_thought", "Thoughts")):
        series = []
        borders = set()
        for style, model in enumerate(folder.models_of("mstep")):
            rows = folder.rows(model, "mstep")
            borders |= starts(rows)
            points = [(n, row.get(key)) for n, row in enumerate(rows, 1)]
            series.append(Series(title_of(model), points, style))
        unit = "cross-entropy, nats a token"
        charts.append(chart(title, unit, series, "steps", log=True, borders=sorted(borders)))
    return charts


def heldout_points(folder, model, key):
    """A figure by EM iteration, that of the base as iteration 0: [(iteration, value)]."""
    base = folder.results.get("base", {})
    last = folder.results.get(model, {})
    comparable = base.get("measured") == last.get("measured")
    points = [(0, figure_of(base, key))] if comparable and base else []
    rows = folder.rows(model, "heldout")
    return points + [(row["iteration"] + 1, figure_of(row, key)) for row in rows]


def heldout_charts(folder):
    """The bound, and where the model thinks, after each EM iteration."""
    charts = []
    models = folder.models_of("heldout")
    for title, unit, keys in (
        ("Bound", "nats a snippet", (("elbo", "bound"), ("elbo_no_think", "never thinking"))),
        ESTEP_CHARTS[1],
        ("Gain", "nats a thought", (("gain", "mean gain"),)),
    ):
        series = []
        for model in models:
            prefix = f"{title_of(model)}, " if len(models) > 1 else ""
            for key, name in with_share(keys, folder.rows(model, "heldout")):
                points = heldout_points(folder, model, key)
                series.append(Series(prefix + name, points, len(series)))
        charts.append(chart(title, unit, series, "EM iterations; 0: the base"))
    return charts


def rlvr_charts(folder):
    """The held-out pass rate, and the metrics of the steps."""
    series = []
    for style, model in enumerate(folder.models_of(HELD)):
        rows = folder.rows(model, HELD)
        series.append(
            Series(model, [(row.get("step", 0), row.get("pass@1")) for row in rows], style)
        )
    charts = [chart("Held-out pass rate", "pass@1", series, "GRPO steps")]
    for key, title, unit in RLVR_CHARTS:
        series = []
        for style, model in enumerate(folder.models_of(TRAIN)):
            rows = folder.rows(model, TRAIN)
            points = [(row.get("step", 0), row.get(key)) for row in rows]
            series.append(Series(model, points, style))
        charts.append(chart(title, unit, series, "GRPO steps"))
    return charts
