"""Completions and verdicts in files: a JSON line each, and beside it the settings they come from.

An unfinished evaluation is FILE.unfinished; the file itself is replaced once the new one is whole.
"""

import contextlib
import json
import os

from config import UserError

KINDS = ("completion", "solution")  # what stands after the prompt; a whole program (EvalPlus)


def read_completions(path, tasks):
    """(which of KINDS, {task_id: [texts]}) of a .jsonl, for those of the tasks.

    Problems that the file does not hold are left out. Raises UserError.
    """
    texts, kinds = {}, set()
    for number, line in enumerate(text_lines_of(path), 1):
        kind, name, text = read_answer(line, f"--completions {path}: line {number}")
        texts.setdefault(name, []).append(text)
        kinds.add(kind)
    if len(kinds) > 1:
        raise UserError(
            f"--completions {path}: holds lines with completion and lines with solution; give a "
            "file with one of the two"
        )
    texts = {task.name: texts[task.name] for task in tasks if task.name in texts}
    counts = sorted({len(of_task) for of_task in texts.values()})
    if len(counts) != 1:
        raise UserError(
            f"--completions {path}: expected equally many completions for each problem of the "
            f"suite that it holds; there are {', '.join(map(str, counts)) or 'none at all'}"
        )
    return kinds.pop(), texts


def text_lines_of(path):
    """The lines of a text file. Raises UserError if it is none."""
    try:
        with open(path, encoding="utf-8") as f:
            return f.readlines()
    except (OSError, UnicodeDecodeError) as e:
        reason = getattr(e, "strerror", None) or f"no text: {e}"
        raise UserError(
            f"--completions {path}: cannot be read ({reason}); give a .jsonl of task_id and "
            "completion, as --samples-out writes it"
        ) from None


def read_answer(line, place):
    """(which of KINDS, task_id, text) of a line of --completions. Raises UserError."""
    try:
        row = json.loads(line)
        kinds = [kind for kind in KINDS if kind in row]
        name, texts = row["task_id"], [row[kind] + "" for kind in kinds]
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{place} is no object with task_id and completion; give a .jsonl as --samples-out "
            "writes it, or with solution in place of completion as EvalPlus does"
        ) from None
    if len(kinds) != 1:
        raise UserError(
            f"{place} holds {'both' if kinds else 'neither'} completion {'and' if kinds else 'nor'}"
            " solution; expected what stands after the prompt as completion, or a whole program as "
            "solution"
        )
    return kinds[0], name, texts[0]


def settings_path(path):
    return path + ".settings.json"


class SampleFile:
    """The file of a suite's rows, written as they come: n a task, in the order of the tasks.

    path         the file; None: rows are not written
    settings     what the rows are made with
    rows         those that are there already, of whole tasks
    failure      why rows could not be written, if so; rows are still collected
    """

    def __init__(self, path, settings, n):
        self.path = path
        self.settings = settings
        self.n = n
        self.rows = []
        self.failure = ""

    @property
    def unfinished(self):
        return self.path + ".unfinished"

    def resume(self, tasks):
        """Read the rows of an earlier evaluation with the same settings, if there is one.

        Raises UserError if there are only rows of other settings, or of other tasks.
        """
        paths = [path for path in (self.unfinished, self.path) if os.path.exists(path)]
        others = {path: self.differences(path) for path in paths}
        same = [path for path in paths if not others[path]]
        if paths and not same:
            raise UserError(
                f"{paths[0]}: made with {', '.join(others[paths[0]])}; leave out --resume to start "
                "over, or give another --samples-out"
            )
        if same:
            self.rows = whole_tasks(same[0], tasks, self.n)

    def differences(self, path):
        """How the settings beside a file differ. Example: ["seed=1 and not 2"]"""
        try:
            with open(settings_path(path)) as f:
                before = dict(json.load(f))
        except (OSError, ValueError, TypeError):
            before = {}
        return [
            f"{key}={before.get(key)!r} and not {value!r}"
            for key, value in self.settings.items()
            if before.get(key) != value
        ]

    def start(self):
        """Write the rows so far, and the settings, beside the file. Raises UserError."""
        try:
            os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
            with open(settings_path(self.unfinished), "w") as f:
                json.dump(self.settings, f)
            with open(self.unfinished, "w") as f:
                f.writelines(json.dumps(row) + "\n" for row in self.rows)
        except OSError as e:
            raise UserError(
                f"--samples-out {self.path}: cannot be written ({e.strerror}); give another path"
            ) from None

    def append(self, rows):
        """Write rows; where that fails, note it and write no more."""
        if self.failure:
            return
        try:
            with open(self.unfinished, "a") as f:
                f.writelines(json.dumps(row) + "\n" for row in rows)
        except OSError as e:
            self.failure = e.strerror or str(e)

    def finish(self):
        """All rows are written: take the place of the former file."""
        if self.failure:
            return
        try:
            os.replace(settings_path(self.unfinished), settings_path(self.path))
            os.replace(self.unfinished, self.path)
        except OSError as e:
            self.failure = e.strerror or str(e)

    def check(self):
        """Raise UserError if rows could not be written."""
        if self.failure:
            raise UserError(
                f"{self.path}: its rows cannot be written ({self.failure}); make room, and go on "
                f"with --resume from what {self.unfinished} holds"
            )


def whole_tasks(path, tasks, n):
    """The rows of a file up to the last task with all its n rows. Raises UserError."""
    rows = []
    with open(path) as f:
        for line in f:
            with contextlib.suppress(ValueError):  # the last line may be cut
                rows.append(json.loads(line))
    count = len(rows) // n
    rows = rows[: count * n]
    names = [task.name for task in tasks[:count] for _ in range(n)]
    if [row.get("task_id") for row in rows] != names:
        raise UserError(
            f"{path}: its rows are not those of this suite; leave out --resume to start over, or "
            "give another --samples-out"
        )
    return rows


def path_of(cfg, args, suite, several):
    """Where the rows of a suite go.

    Sampled, greedy and graded rows go to files of their own.
    So do those of several models or suites.
    """

    def stem(path, ending):
        return os.path.basename(path).removesuffix(ending)

    suite = stem(suite, ".jsonl")  # which may be a file
    if args.samples_out:
        start, ending = os.path.splitext(args.samples_out)
        return f"{start}-{suite}{ending}" if several else args.samples_out
    if args.completions:
        words = [stem(args.completions, ".jsonl"), "graded"]
    else:
        words = ["samples" if cfg.temperature else "greedy", stem(args.checkpoint, ".pt")]
    source = args.completions or args.checkpoint
    folder = args.out or (os.path.dirname(source) if source else cfg.out)
    return os.path.join(folder, "-".join(word for word in [*words, suite] if word) + ".jsonl")
