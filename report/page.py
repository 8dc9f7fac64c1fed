"""A page to look at: figures, table, settings and samples, all in one file."""

import base64
import html
import json
import os

from config import UserError
from report.curves import json_file, json_lines

STYLE = """body { font: 15px/1.5 sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; font-size: 13px }
td, th { border-bottom: 1px solid #ddd; padding: .2em .7em; text-align: left }
img { max-width: 100% } mark { background: #ffe9a8 }
pre { background: #f6f6f6; padding: .7em; overflow-x: auto }"""


def html_table(lines):
    """Lines of cells, the first one the heading, as an HTML table."""
    rows = [html_row(lines[0], "th"), *(html_row(line, "td") for line in lines[1:])]
    return "\n".join(["<table>", *rows, "</table>"])


def html_row(cells, tag):
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


def last_rows(curves):
    """Lines of cells: of each model and folder the last held-out evaluation."""
    lines = [["model", "folder", "last row"]]
    for model, curve in curves.items():
        for folder, rows in curve.items():
            values = {
                key: value for key, value in rows[-1].items() if key not in ("model", "phase")
            }
            for key, value in values.items():
                if isinstance(value, float):
                    values[key] = round(value, 4)
            lines.append([model, folder, json.dumps(values)])
    return lines


def settings_table(folders):
    """Lines of cells: each setting, once if it is the same in all folders."""
    settings = [json_file(os.path.join(folder, "settings.json")) for folder in folders]
    lines = [["setting", "value"]]
    for key in dict.fromkeys(key for of_folder in settings for key in of_folder):
        values = [str(of_folder.get(key, "-")) for of_folder in settings]
        lines.append([key, values[0] if len(set(values)) == 1 else " / ".join(values)])
    return lines


def marked(text):
    """A program as HTML, its thoughts highlighted.

    Example: "x = 1\\n# two" -> "x = 1\\n<mark># two</mark>"
    """
    lines = []
    for line in text.strip("\n").split("\n"):
        escaped = html.escape(line)
        lines.append(f"<mark>{escaped}</mark>" if line.lstrip().startswith("#") else escaped)
    return "\n".join(lines)


def samples_section(model, folders, n=6):
    """The first n programs of a model as HTML, from the first folder that has any.

    train.py --stage eval writes them. Raises UserError for rows of another form.
    """
    paths = [os.path.join(folder, f"samples-{model}.jsonl") for folder in folders]
    path = next((path for path in paths if os.path.exists(path)), None)
    rows = json_lines(path)[:n] if path else []
    programs = []
    try:
        for _, row in rows:
            title = f"{html.escape(row['task_id'])}: {html.escape(row['verdict'])}"
            programs.append(f"<p>{title}</p>\n<pre>{marked(row['completion'])}</pre>")
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: expected rows with task_id, verdict and completion") from None
    if not programs:
        return ""
    return "\n".join([f"<h3>{html.escape(f'{model}, {path}')}</h3>", *programs])


def page(figures, table, notes, curves, folders):
    """The whole page, with nothing outside it.

    figures: {name: bytes of a PNG}; table: lines of cells; notes: lines of text.
    """
    images = []
    for name, image in figures.items():
        data = base64.b64encode(image).decode()
        images.append(f'<p><img alt="{name}" src="data:image/png;base64,{data}"></p>')
    sections = [samples_section(model, curve) for model, curve in curves.items()]
    programs = [section for section in sections if section]
    if not programs:
        programs = ["<p>none; train.py --stage eval writes them</p>"]
    images = "\n".join(images)
    programs = "\n".join(programs)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>RLVR</title><style>
{STYLE}
</style></head><body>
<h1>RLVR from {len(curves)} models</h1>
{images}
{html_table(table)}
{"".join(f"<p>{html.escape(note)}</p>" for note in notes)}
<h2>Last held-out evaluation</h2>
{html_table(last_rows(curves))}
<h2>Samples</h2>
{programs}
<h2>Settings</h2>
<details><summary>of the last command in {html.escape(", ".join(folders))}</summary>
{html_table(settings_table(folders))}
</details>
</body></html>
"""
