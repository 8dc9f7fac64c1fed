"""HTML by functions: elements, tables, and numbers as a reader wants them."""

import html

from config import UserError

MINUS = "\u2212"


def escape(text):
    return html.escape(str(text))


def element(name, *content, **attributes):
    """An HTML element.

    content      HTML: text goes through `escape` first
    attributes   `cls` is the class; None is left out, True stands without a value
    Example: element("td", "1", cls="n") -> '<td class="n">1</td>'
    """
    return f"<{name}{attribute_text(attributes)}>{''.join(content)}</{name}>"


def attribute_text(attributes):
    """Example: {"cls": "n", "open": True, "id": None} -> ' class="n" open'"""
    text = ""
    for key, value in attributes.items():
        key = "class" if key == "cls" else key.replace("_", "-")
        if value is True:
            text += f" {key}"
        elif value is not None:
            text += f' {key}="{escape(value)}"'
    return text


def section(anchor, title, *content):
    """A section with its heading, which the page's menu leads to."""
    heading = element("h2", escape(title), id=f"{anchor}-title")
    return element("section", heading, *content, id=anchor, aria_labelledby=f"{anchor}-title")


def paragraph(text, cls=None):
    return element("p", escape(text), cls=cls)


def html_table(lines, caption, cls=None):
    """Lines of cells (HTML), the first one the heading, the first cell of each the row's name."""
    heading, *rows = lines
    head = element("tr", *(element("th", cell, scope="col") for cell in heading))
    body = [
        element("tr", element("th", cells[0], scope="row"), *(element("td", c) for c in cells[1:]))
        for cells in rows
    ]
    title = element("caption", escape(caption))
    content = element("table", title, element("thead", head), element("tbody", *body), cls=cls)
    return scrolled(content, caption)


def scrolled(content, label):
    """What may be wider than a telephone: it scrolls by itself, by keyboard too."""
    return element("div", content, cls="scroll", tabindex="0", role="region", aria_label=label)


def disclosure(title, *content, open=None):
    return element("details", element("summary", escape(title)), *content, open=open)


def number(value, form="{:.3f}"):
    """A number with a minus sign that is as wide as a plus; "-" where there is none.

    Example: -0.5, "{:+.1f}" -> "−0.5"
    """
    if value is None:
        return "-"
    try:
        text = form.format(value)
    except (TypeError, ValueError):
        raise UserError(f"{value!r}: expected a number; make results.json again") from None
    if float(text.strip("%")) == 0:
        text = text.replace("-", "")
    return text.replace("-", MINUS)


def bounds_text(bounds, form="{:.3f}"):
    """Example: (0.25, 0.5) -> "[0.250, 0.500]" """
    return f"[{number(bounds[0], form)}, {number(bounds[1], form)}]"
