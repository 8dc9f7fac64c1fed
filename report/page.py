"""A page to look at: figures, table, settings and samples, all in one file."""

import base64
import html
import json
import os

from config import UserError
from report.curves import json_file, json_lines

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
