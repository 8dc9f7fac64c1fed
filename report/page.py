"""The page of a run: results, curves, thoughts on held-out code, programs, all in one file.

It needs nothing beside it: no network, no server, no script. Sections without data are left out.
"""

import pathlib

from config import UserError, make
from report.files import Folder
from report.markup import disclosure, element, escape, html_table, paragraph, section
from report.programs import programs_section
from report.results import headline, results_section
from report.snippets import frequent_section, snippets_section
from report.training import curves_section

STYLE = pathlib.Path(__file__).with_name("page.css")


def run_page(folder: Folder, rlvr: str = "") -> str:
    """The page of one run. rlvr: HTML of its RLVR curves' table, where there are any."""
    settings = folder.settings
    subtitle = (
        f"preset {settings.get('preset', 'unknown')}, data {settings.get('data', 'unknown')}, "
        f"seed {settings.get('seed', 'unknown')}"
    )
    sections = {
        "results": ("results", results_section(folder)),
        "curves": ("curves", curves_section(folder)),
        "rlvr": ("RLVR", section("rlvr", "RLVR", rlvr) if rlvr else ""),
        "snippets": ("thoughts on held-out code", snippets_section(folder)),
        "frequent": ("what it says", frequent_section(folder)),
        "programs": ("programs", programs_section(folder)),
        "settings": ("settings", settings_section(settings)),
    }
    return whole_page(f"RA3: {folder.name}", subtitle, headline(folder), sections)


def whole_page(title, subtitle, top, sections):
    """A page with a menu of its sections, those that are not empty.

    top        HTML in front of them
    sections   {anchor: (title in the menu, HTML)}
    """
    sections = {anchor: entry for anchor, entry in sections.items() if entry[1]}
    items = [
        element("li", element("a", escape(name), href=f"#{anchor}"))
        for anchor, (name, _) in sections.items()
    ]
    head = element(
        "head",
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        '<link rel="icon" href="data:,">',
        element("title", escape(title)),
        element("style", STYLE.read_text(encoding="utf-8")),
    )
    body = element(
        "body",
        element("a", "skip the menu", href="#main", cls="skip"),
        element("header", element("h1", escape(title)), paragraph(subtitle, "note")),
        element("nav", element("ul", *items), aria_label="sections"),
        element("main", top, *(html for _, html in sections.values()), id="main", tabindex="-1"),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def settings_section(settings):
    """Settings that the command line changed, and below all others; "" without any."""
    if not settings:
        return ""
    try:
        usual = vars(make(settings.get("preset", "tiny")))
    except UserError:
        usual = {}
    changed = {key: value for key, value in settings.items() if usual.get(key, value) != value}
    others = {key: value for key, value in settings.items() if key not in changed}
    return section(
        "settings",
        "Settings of the last command",
        settings_table(changed, "other than the preset's") if changed else "",
        disclosure("the preset's", settings_table(others, "as the preset has them")),
    )


def settings_table(settings, caption):
    cells = [[escape(key), escape(repr(value))] for key, value in settings.items()]
    return html_table([["setting", "value"], *cells], caption, "plain")
