"""results.json of a run, read: what pages, cards and tables show.

An entry a model: figures by name, `measured` (the settings that they were measured with), and
`intervals` (docs/metrics.md). The file may have been edited, so each field is checked.
"""

from config import UserError, read_object
from formats.fields import wrong_field


def read_entries(path):
    """{model: entry} of the file; {} where there is none. Raises UserError."""
    results = read_object(path)
    for model, entry in results.items():
        if not isinstance(entry, dict):
            raise wrong_entry(path, model, entry, "an object of figures")
        for key, value in entry.items():
            if key not in ("measured", "intervals"):
                check_figure(path, f"{model}, {key}", value)
        for key in ("measured", "intervals"):
            if not isinstance(entry.get(key, {}), dict):
                raise wrong_entry(path, f"{model}, {key}", entry[key], "an object")
        for key, bounds in entry.get("intervals", {}).items():
            check_interval(path, f"{model}, interval of {key}", bounds)
    return results


def check_figure(path, name, value):
    """Raises UserError for what is neither a number nor null."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise wrong_entry(path, name, value, "a number")


def check_interval(path, name, bounds):
    """Raises UserError for what is neither two numbers nor null."""
    if bounds is None:
        return
    if not isinstance(bounds, list) or len(bounds) != 2 or None in bounds:
        raise wrong_entry(path, name, bounds, "two numbers")
    for bound in bounds:
        check_figure(path, name, bound)


def wrong_entry(path, name, value, expected):
    return UserError(f"{wrong_field(path, name, value, expected)}; make it again, or remove it")
