"""Held-out snippets with the thoughts of each model, side by side; and its most frequent thoughts.

The rows are those of thoughts-NAME.jsonl. Shown is the first rollout of the first snippets: nothing
is selected. An intent is a thought and the lines until the next one; it has a number and a colour.
"""

import collections
import re

import numpy as np

from report.markup import disclosure, element, escape, html_table, number, paragraph, section
from report.results import title_of

SNIPPETS = 6  # that are shown
OPEN = 2  # of them unfolded
COLOURS = 6  # of intents, in page.css
CLEAR = 0.05  # nats of a line that count as a difference
FREQUENT = 12  # thoughts that are listed

LEGEND = (
    "Each column is one model on the same expert code, which is given. P is its probability "
    "of a thought before the line. Beside it is the line's log-likelihood in nats: with nothing "
    "ever thought, then, where it differs, with the thoughts as they stand (▲ likelier, ▼ less "
    "likely). A thought and the lines that it holds for, its intent, share a number and a colour. "
    "Its gain counts all lines from its own on."
)
OF_HARD_LINES = " “hard” marks lines that need a computation."


def shown_models(folder):
    """The models that stand side by side: base, NTP and the last mid-trained one."""
    names = [name for name in folder.models if folder.thoughts.get(name)]
    trained = [name for name in names if name not in ("base", "ntp") and "rlvr-" not in name]
    return [name for name in names if name in ("base", "ntp", *trained[-1:])]


def snippets_section(folder):
    """The first held-out snippets; "" where no rollouts were written."""
    models = shown_models(folder)
    if not models:
        return ""
    snippets = []
    names = [row["name"] for row in folder.thoughts[models[-1]]]
    for n, name in enumerate(names[:SNIPPETS]):
        rows = {model: row_of(folder, model, n, name) for model in models}
        panels = [panel(model, row) for model, row in rows.items() if row]
        title = f"{name or f'snippet {n}'}: {totals(rows)}"
        snippets.append(
            disclosure(title, element("div", *panels, cls="side"), open=n < OPEN or None)
        )
    hard = any(row["hard"] for model in models for row in folder.thoughts[model])
    note = paragraph(LEGEND + (OF_HARD_LINES if hard else ""), "note")
    return section("snippets", "Thoughts on held-out expert code", note, *snippets)


def row_of(folder, model, n, name):
    """Row n of a model, if it is of the same snippet; else None."""
    rows = folder.thoughts[model]
    return rows[n] if n < len(rows) and rows[n]["name"] == name else None


def totals(rows):
    """Log-likelihood of the snippet under each model. Example: "base −5.1, RA3 −0.2 nats" """
    return (
        ", ".join(
            f"{title_of(model)} {number(sum(row['rollouts'][0]['nats']), '{:.2f}')}"
            for model, row in rows.items()
            if row
        )
        + " nats"
    )


def panel(model, row):
    """One model on one snippet."""
    rollout = row["rollouts"][0]
    written = number(sum(rollout["nats"]), "{:.2f}")
    never = number(sum(row["never"]), "{:.2f}")
    words = f"{written} nats as it stands, {never} never thinking"
    heading = element("h3", escape(title_of(model)), element("small", escape(words)))
    prompt = element("pre", escape(row["prompt"]), cls="prompt")
    names = {"intent": "", "P(think)": "P", "nats": "nats", "code": "code"}
    head = [element("th", text, scope="col", aria_label=name) for name, text in names.items()]
    body = element("tbody", *code_rows(row, rollout))
    lines = element("table", element("thead", element("tr", *head)), body, cls="code")
    return element(
        "article", heading, prompt, lines, aria_label=f"{title_of(model)}, {row['name']}"
    )


def code_rows(row, rollout):
    """The lines of a rollout as rows of a table, each thought before its line."""
    thoughts = {line: (text, gain) for line, text, gain in rollout["thoughts"]}
    begins = sorted(thoughts)
    intent = 0
    for t, text in enumerate(row["lines"]):
        if t in thoughts:
            intent += 1
            later = [line for line in begins if line > t]
            lasts = (later[0] if later else len(row["lines"])) - t
            indent = text[: len(text) - len(text.lstrip())]
            yield thought_row(intent, indent + thoughts[t][0], thoughts[t][1], lasts)
        yield line_row(intent, text, t, row, rollout)


def intent_cell(intent):
    """The number and colour of the intent that a line stands under."""
    if not intent:
        return element("td", cls="intent")
    return element("td", str(intent), cls=f"intent c{(intent - 1) % COLOURS}")


def thought_row(intent, text, gain, lasts):
    """A thought: what it gains and how long it holds, then its text."""
    gains = element("div", escape(f"gain {number(gain, '{:+.2f}')}"))
    holds = element("div", "holds 1 line" if lasts == 1 else f"holds {lasts} lines")
    return element(
        "tr",
        intent_cell(intent),
        element("td", gains, holds, colspan="2", cls="worth"),
        element("td", escape(text), cls="line"),
        cls=f"thought c{(intent - 1) % COLOURS}",
    )


def line_row(intent, text, t, row, rollout):
    never = row["never"][t]
    nats = rollout["nats"][t]
    p = rollout["p_think"][t] if rollout["p_think"] else None
    sign = "▲" if nats - never > CLEAR else "▼" if nats - never < -CLEAR else ""
    likelihood = number(never, "{:.2f}")
    if number(nats, "{:.2f}") != likelihood:
        likelihood += f" → {number(nats, '{:.2f}')} {sign}"
    changed = {"▲": "nats up", "▼": "nats down"}.get(sign, "nats")
    hard = element("small", "hard", cls="hard") if t in row["hard"] else ""
    share = "" if p is None else f"--p:{p:.2f}"
    return element(
        "tr",
        intent_cell(intent),
        element("td", "" if p is None else f"{p:.0%}", cls="p", style=share or None),
        element("td", escape(likelihood.strip()), cls=changed),
        element("td", escape(text), hard, cls="line"),
    )


# ---------------------------------------------------------------- what it says


def frequent_section(folder):
    """The most frequent thoughts of each model, with their mean gain; "" without any."""
    content = []
    for model in shown_models(folder):
        rollouts = [r for row in folder.thoughts[model] for r in row["rollouts"]]
        thoughts = [(text, gain) for r in rollouts for _, text, gain in r["thoughts"]]
        if thoughts:
            title = f"{title_of(model)}: {len(thoughts)} thoughts in {len(rollouts)} rollouts"
            tables = [
                frequent_table(thoughts, first_word, f"{title}, by first word"),
                frequent_table(thoughts, str, f"{title}, word for word"),
            ]
            content.append(element("div", *tables, cls="side"))
    return section("frequent", "What it says", *content) if content else ""


def first_word(text):
    """Example: "# shift: a six" -> "shift:" """
    match = re.search(r"\w+\S*", text)
    return match[0] if match else "(empty)"


def frequent_table(thoughts, key, caption):
    """A line a kind of thought. thoughts: [(text, gain)]; key: text -> its kind."""
    gains = collections.defaultdict(list)
    examples = {}
    for text, gain in thoughts:
        gains[key(text)].append(gain)
        examples.setdefault(key(text), text)
    kinds = sorted(gains, key=lambda kind: -len(gains[kind]))[:FREQUENT]
    lines = [["thought", "times", "share", "mean gain, nats"]]
    for kind in kinds:
        example = "" if examples[kind] == kind else element("small", escape(examples[kind]))
        lines.append(
            [
                element("code", escape(kind)) + example,
                str(len(gains[kind])),
                f"{len(gains[kind]) / len(thoughts):.1%}",
                escape(number(float(np.mean(gains[kind])), "{:+.2f}")),
            ]
        )
    return html_table(lines, caption, "frequent")
