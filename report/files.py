"""Files of a run's folder, read with as little as there is.

Lines of metrics.jsonl: docs/metrics.md. Rows of samples-NAME.jsonl and thoughts-NAME.jsonl:
evaluate.py. What is not there is empty.
"""

import dataclasses
import json
import os
import re
import sys

from config import UserError, read_object
from formats.results import read_entries

HALF_A_LINE = "half a last line is left out; the run is being written, or was killed"
FIRST_MODELS = ("base", "ntp", "ra3")
# What a row has, and of which type.
PROGRAM_FIELDS = {"task_id": str, "verdict": str, "completion": str}
SNIPPET_FIELDS = {"name": str, "prompt": str, "lines": list, "hard": list, "never": list}
SNIPPET_FIELDS |= {"rollouts": list}
ROLLOUT_FIELDS = {"reward": (int, float), "nats": list, "thoughts": list}


def json_lines(path, quiet=False, expected="the folder of a run"):
    """[(line number, row)] of a .jsonl file. Raises UserError.

    A last line that was cut off is left out, with a note unless `quiet`.
    expected: what the path should have led to, for the message
    """
    try:
        with open(path, errors="replace") as f:
            lines = f.read().split("\n")  # after a whole last line comes an empty one
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror}); expected {expected}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows += [(number, json.loads(line))] if line else []
        except ValueError:
            if number < len(lines):
                raise UserError(
                    f"{path}, line {number}: not JSON; expected one object a line"
                ) from None
            if not quiet:
                print(f"{path}: {HALF_A_LINE}", file=sys.stderr)
    return rows


# ---------------------------------------------------------------- a run's folder


@dataclasses.dataclass
class Folder:
    """What a run's folder says, without its weights."""

    path: str
    settings: dict  # of the last command
    results: dict  # {model: {figure: value}}
    metrics: list  # lines of metrics.jsonl, as dicts
    thoughts: dict  # {model: rows of thoughts-NAME.jsonl}
    programs: dict  # {(model, suite): rows of greedy programs}
    samples: dict  # {(model, suite): rows of sampled programs}

    @property
    def name(self):
        """The folder's own name. Example: runs/tiny-0 -> tiny-0"""
        return os.path.basename(os.path.abspath(self.path))

    @property
    def models(self):
        """Names of the models that have results or thoughts: base, ntp and ra3 first."""
        names = [*self.results, *self.thoughts]
        return sorted(dict.fromkeys(names), key=lambda name: (rank_of(name), names.index(name)))

    def rows(self, model, phase):
        """The metrics of a model in a phase, in order."""
        return [row for row in self.metrics if row["model"] == model and row["phase"] == phase]

    def models_of(self, phase):
        """Names of the models that have metrics of a phase."""
        names = dict.fromkeys(row["model"] for row in self.metrics if row["phase"] == phase)
        return sorted(names, key=rank_of)


def rank_of(model):
    """Example: "ntp" -> 1; any other name -> 3"""
    return FIRST_MODELS.index(model) if model in FIRST_MODELS else len(FIRST_MODELS)


def open_folder(path):
    """Read a run's folder -> Folder. Raises UserError."""
    metrics = []
    for number, row in json_lines(os.path.join(path, "metrics.jsonl"), quiet=True):
        if not isinstance(row, dict) or not {"model", "phase"} <= row.keys():
            raise UserError(
                f"{path}/metrics.jsonl, line {number}: expected an object with model and phase"
            )
        metrics.append(row)
    results = read_entries(os.path.join(path, "results.json"))
    models = {*results, *FIRST_MODELS, *(row["model"] for row in metrics)}
    thoughts = {}
    programs = {}
    samples = {}
    for name in sorted(os.listdir(path)):
        if match := re.fullmatch(r"thoughts-(.+)\.jsonl", name):
            thoughts[match[1]] = objects(os.path.join(path, name), SNIPPET_FIELDS)
        elif match := re.fullmatch(r"(samples|greedy)-(.+)\.jsonl", name):
            model, suite, greedy = model_and_suite(match[2], match[1], models)
            rows = objects(os.path.join(path, name), PROGRAM_FIELDS)
            (programs if greedy else samples)[model, suite] = rows
    settings = read_object(os.path.join(path, "settings.json"))
    return Folder(path, settings, results, metrics, thoughts, programs, samples)


def model_and_suite(name, kind, models):
    """Whose programs a file holds -> (model, suite, whether they are greedy).

    models: names of the run's models
    Example: "ra3", "samples" -> ("ra3", "domain", True)     train.py
    Example: "ra3-domain", "samples" -> ("ra3", "domain", False)
    Example: "base-mbpp+", "greedy" -> ("base", "mbpp+", True)     evaluate.py
    """
    if kind == "samples" and (name in models or "-" not in name):
        return name, "domain", True
    known = [model for model in models if name.startswith(f"{model}-")]
    model = max(known, key=len, default=name.split("-")[0])
    return model, name[len(model) + 1 :], kind == "greedy"


def objects(path, types):
    """The rows of a .jsonl, each with fields of these types. Raises UserError."""
    rows = []
    for number, row in json_lines(path):
        if not has_fields(row, types) or types is SNIPPET_FIELDS and not has_rollouts(row):
            raise UserError(
                f"{path}, line {number}: expected an object with {', '.join(types)}; "
                "train.py --stage eval writes the file again"
            )
        rows.append(row)
    return rows


def has_fields(row, types):
    """Is it an object whose fields are of these types?

    Example: {"verdict": 3}, {"verdict": str} -> False
    """
    return isinstance(row, dict) and all(isinstance(row.get(key), t) for key, t in types.items())


def has_rollouts(row):
    """Has a row of thoughts-NAME.jsonl a rollout, and each a number of nats for every line?"""
    n = len(row["lines"])
    return (
        len(row["never"]) == n
        and len(row["rollouts"]) > 0
        and all(has_fields(rollout, ROLLOUT_FIELDS) for rollout in row["rollouts"])
        and all(len(rollout["nats"]) == n for rollout in row["rollouts"])
        and all(len(rollout.get("p_think") or row["lines"]) == n for rollout in row["rollouts"])
        and all(
            isinstance(thought, list) and len(thought) == 3
            for rollout in row["rollouts"]
            for thought in rollout["thoughts"]
        )
    )
