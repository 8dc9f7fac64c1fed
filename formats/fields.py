"""Fields of a model's files, each checked: files are input.

A wrong field is a UserError of one line, which names file, field, value and what was expected.
"""

import json
import math

from config import UserError

REQUIRED = object()  # as a default: the field must be there


def wrong_field(path, key, value, expected):
    """The UserError for a field of a wrong value."""
    text = json.dumps(value, default=str)
    if len(text) > 80:
        text = f"{text[:80]}..."
    return UserError(f"{path}: {key} is {text}; expected {expected}")


def field_value(record, key, path, default, expected):
    """The value of a key. A key that is absent or null has the default. Raises UserError."""
    value = record.get(key)
    if value is None:
        if default is REQUIRED:
            raise wrong_field(path, key, None, expected)
        return default
    return value


def whole_number(record, key, path, default=REQUIRED, least=1):
    """A whole number. Raises UserError."""
    expected = f"a whole number of at least {least}"
    value = field_value(record, key, path, default, expected)
    if value is default:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise wrong_field(path, key, value, expected)
    return value


def real_number(record, key, path, default=REQUIRED):
    """A finite number above 0, as a float. Raises UserError."""
    expected = "a number above 0"
    value = field_value(record, key, path, default, expected)
    if value is default:
        return default
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good or not math.isfinite(value) or value <= 0:
        raise wrong_field(path, key, value, expected)
    return float(value)


def boolean(record, key, path, default):
    """True or false. Raises UserError."""
    value = field_value(record, key, path, default, "true or false")
    if not isinstance(value, bool):
        raise wrong_field(path, key, value, "true or false")
    return value


def text_list(record, key, path, default=REQUIRED):
    """A list of texts. Raises UserError."""
    value = field_value(record, key, path, default, "a list of texts")
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise wrong_field(path, key, value, "a list of texts")
    return value


def mapping(record, key, path, default=REQUIRED):
    """An object: names and values. Raises UserError."""
    value = field_value(record, key, path, default, "an object")
    if not isinstance(value, dict):
        raise wrong_field(path, key, value, "an object")
    return value


def id_list(record, key, path, size):
    """One token id or a list of them -> list, empty if the key is absent or null.

    size: ids are below it. Raises UserError.
    """
    value = record.get(key)
    if value is None:
        return []
    ids = value if isinstance(value, list) else [value]
    for i in ids:
        if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < size:
            raise wrong_field(path, key, value, f"token ids from 0 to {size - 1}")
    return ids


def expect_neutral(record, expected, path):
    """Raises UserError if a key is there with another value than {key: the only one known here}."""
    for key, value in expected.items():
        if record.get(key, value) not in (value, None):
            raise wrong_field(path, key, record[key], json.dumps(value))
