"""The results of a run as a table with intervals, and what sets its models apart.

Intervals are 95%: of pass rates over tasks (benchmarks/rates.py), of the bound over held-out
snippets (Student's t).
"""

import numpy as np

from benchmarks.rates import paired_interval, pass_rates, seed_interval
from report.markup import bounds_text, element, escape, html_table, number, paragraph, section

PERCENT = "{:.1%}"
# Without any thought these are not measured.
OF_THOUGHTS = ("gain", "gain_above_c", "think_len", "duration", "kl")
# title, key of results.json, form, meaning
FIGURES = (
    ("pass@1", "pass@1", "{:.3f}", "one sampled program passes its tests"),
    ("pass@5", "pass@5", "{:.3f}", "one of five does"),
    ("greedy", "greedy", "{:.3f}", "the likeliest program does"),
    ("bound (ELBO)", "elbo", "{:.3f}", "nats a held-out snippet, its own thoughts written in"),
    ("never thinking", "elbo_no_think", "{:.3f}", "nats a snippet, without any thought"),
    ("code", "ce_code", "{:.4f}", "cross-entropy, nats a token, with its thoughts"),
    ("thinks", "think_share", PERCENT, "share of lines with a thought before them"),
    ("before hard lines", "think_hard", PERCENT, "share of lines that need a computation"),
    ("before easy lines", "think_easy", PERCENT, "share of the others"),
    ("gain", "gain", "{:+.2f}", "nats that a thought adds to all lines from its own on"),
    ("pays", "gain_above_c", PERCENT, "share of thoughts that gain more than they cost"),
    ("length", "think_len", "{:.1f}", "tokens of a thought"),
    ("holds", "duration", "{:.1f}", "lines until the next thought"),
    ("compute", "flops", "{:.1f}", "TFLOP; of the base: its pre-training"),
)


def title_of(model):
    """A model's name as a reader knows it. Example: "ra3" -> "RA3" """
    return model.upper() if model in ("ntp", "ra3") else model


def results_section(folder):
    """The table, and the differences; "" where nothing was evaluated."""
    if not folder.results:
        return ""
    models = [model for model in folder.models if model in folder.results]
    lines = [["", *(escape(title_of(model)) for model in models)]]
    for title, key, form, meaning in FIGURES:
        cells = [figure_cell(folder, model, key, form) for model in models]
        if any(cell != "-" for cell in cells):
            lines.append([escape(title) + element("small", escape(meaning)), *cells])
    words = [element("li", escape(line)) for line in differences_in_words(folder, models)]
    unlike = unlike_in_words(folder.results.values())
    return section(
        "results",
        "Results",
        html_table(lines, "Figures of each model, with 95% intervals in brackets", "figures"),
        element("ul", *words) if words else "",
        paragraph(unlike, "down") if unlike else "",
        paragraph(intervals_in_words(folder, models), "note"),
    )


def unlike_in_words(entries, ignored=()):
    """Which settings of measuring differ between entries of results.json; "" for none."""
    measured = [entry["measured"] for entry in entries if "measured" in entry]
    keys = dict.fromkeys(key for settings in measured for key in settings if key not in ignored)
    unlike = [key for key in keys if len({str(settings.get(key)) for settings in measured}) > 1]
    return f"Not measured alike: {', '.join(unlike)} differ." if unlike else ""


def intervals_in_words(folder, models):
    """What the intervals are over; those of pass rates only where there are any."""
    rates = any(folder.results[model].get("pass@1") is not None for model in models)
    over = "Intervals of the bound are over held-out snippets."
    if rates:
        over = "Intervals of pass rates are over tasks, those of the bound over held-out snippets."
    return f"{over} What another seed would give is not in them."


def figure_cell(folder, model, key, form):
    """A figure, with its interval where that was measured."""
    value = figure_of(folder.results[model], key)
    if value is None:
        return "-"
    text = number(value / 1e12 if key == "flops" else value, form)
    bounds = folder.results[model].get("intervals", {}).get(key)
    if not bounds:
        return escape(text)
    return escape(text) + element("small", escape(bounds_text(bounds, form)))


def figure_of(result, key):
    """A figure of an entry of results.json, or of a line of metrics.jsonl.

    None where it is not there, of no thought at all, or of a base that was trained elsewhere.
    """
    if key in OF_THOUGHTS and result.get("think_share") == 0:
        return None
    if key == "flops" and result.get("flops") == 0:
        return None
    return result.get(key)


# ---------------------------------------------------------------- differences


def differences_in_words(folder, models):
    """Lines: the last model beside the ones before it, with paired intervals.

    Only beside those that were measured alike.
    """
    lines = []
    for baseline in models[:-1]:
        if unlike_in_words([folder.results[baseline], folder.results[models[-1]]]):
            continue
        pair = f"{title_of(models[-1])} beside {title_of(baseline)}"
        for key, title, form in (("pass@1", "pass@1", "{:+.3f}"), ("elbo", "bound", "{:+.2f}")):
            if bounds := paired_bounds(folder, models[-1], baseline, key):
                difference, bounds = bounds
                figures = f"{number(difference, form)} {bounds_text(bounds, form)}"
                lines.append(f"{pair}: {title} {figures}")
    return lines


def paired_bounds(folder, a, b, key):
    """(mean difference, its interval) over the tasks or snippets of both.

    None where they have not equally many of them, each with equally many samples.
    """
    pair = solved_rates if key == "pass@1" else bounds_of_snippets
    values_a, n = pair(folder, a)
    values_b, n_b = pair(folder, b)
    if len(values_a) < 2 or (len(values_a), n) != (len(values_b), n_b):
        return None
    differences = np.array(values_a) - np.array(values_b)
    if key == "pass@1":
        return float(differences.mean()), paired_interval(values_a, values_b, n)
    return float(differences.mean()), seed_interval(differences)


def solved_rates(folder, model):
    """pass@1 of each task, and the samples of a task -> (rates, n); ([], 0) without rows."""
    rows = folder.samples.get((model, "domain"), [])
    tasks = len({row["task_id"] for row in rows})
    n = len(rows) // max(1, tasks)
    if not n or n * tasks != len(rows):
        return [], 0
    return pass_rates(rows, n, 1), n


def bounds_of_snippets(folder, model):
    """The mean reward of each held-out snippet, and the rollouts of a snippet."""
    rows = folder.thoughts.get(model, [])
    rewards = [[rollout["reward"] for rollout in row["rollouts"]] for row in rows]
    return [float(np.mean(values)) for values in rewards], len(rewards[0]) if rewards else 0


# ---------------------------------------------------------------- the headline


def headline(folder):
    """Four figures of the last mid-trained model, as tiles; "" without results."""
    models = [model for model in folder.models if not model.startswith("rlvr-")]
    model = models[-1] if models else None
    result = folder.results.get(model)
    if not result:
        return ""
    tiles = []
    if result.get("pass@1") is not None:
        others = [m for m in models[:-1] if folder.results.get(m, {}).get("pass@1") is not None]
        beside = ", ".join(f"{title_of(m)} {folder.results[m]['pass@1']:.1%}" for m in others)
        tiles.append((number(result["pass@1"], PERCENT), "of held-out tasks solved", beside))
    if "think_hard" in result:
        easy = f"{result['think_easy']:.1%} of the easy ones do"
        tiles.append((number(result["think_hard"], PERCENT), "of hard lines have a thought", easy))
    elif "think_share" in result:
        tiles.append((number(result["think_share"], PERCENT), "of lines have a thought", ""))
    if result.get("think_share"):
        pays = f"{result['gain_above_c']:.0%} of them gain more than they cost"
        tiles.append((number(result["gain"], "{:+.2f}") + " nats", "is what a thought adds", pays))
        length = f"a thought has {result['think_len']:.0f} tokens"
        tiles.append((number(result["duration"], "{:.1f}") + " lines", "an intent holds", length))
    return element("div", *(tile(*texts) for texts in tiles), cls="tiles")


def tile(figure, title, note):
    return element(
        "div",
        element("b", escape(figure)),
        element("span", escape(title)),
        element("small", escape(note)),
        cls="tile",
    )
