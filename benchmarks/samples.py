"""Completions and verdicts in files: a JSON line each, and the settings that they were made with in a file beside it."""

import json
import os

from config import UserError


def read_completions(path, tasks):
    """{task_id: [completions]} of a .jsonl such as `solve_suite` writes, for those of the tasks that it holds. Raises UserError."""
    found, line = {}, 0
    try:
        with open(path) as f:
            for line, text in enumerate(f, 1):
                row = json.loads(text)
                found.setdefault(row["task_id"], []).append(row["completion"] + "")
    except OSError as e:
        raise UserError(
            f"--completions {path}: cannot be read ({e.strerror}); give a .jsonl of task_id and completion, as --samples-out writes it"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"--completions {path}: line {line} is no object with task_id and completion; give a .jsonl as --samples-out writes it"
        ) from None
    found = {task.name: found[task.name] for task in tasks if task.name in found}
    if len({len(texts) for texts in found.values()}) != 1:
        raise UserError(
            f"--completions {path}: expected equally many completions for each problem of the suite that it holds; there are "
            + (", ".join(map(str, sorted({len(x) for x in found.values()}))) or "none at all")
        )
    return found


def beside(path):
    return path + ".settings.json"


def write_samples(path, rows, settings):
    """Write rows, and the settings beside them. Raises UserError."""
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path + ".part", "w") as f:
            f.writelines(json.dumps(row) + "\n" for row in rows)
        with open(beside(path), "w") as f:
            json.dump(settings, f)
        os.replace(path + ".part", path)
    except OSError as e:
        raise UserError(
            f"--samples-out {path}: cannot be written ({e.strerror}); give another path"
        ) from None


def path_of(cfg, args, suite, several):
    """Where the rows of a suite go: sampled, greedy and graded ones, and those of several models or suites, to files of their own."""

    def stem(path, ending):
        return os.path.basename(path).removesuffix(ending)

    suite = stem(suite, ".jsonl")  # which may be a file
    if args.samples_out:
        start, ending = os.path.splitext(args.samples_out)
        return f"{start}-{suite}{ending}" if several else args.samples_out
    given = args.completions or args.checkpoint
    words = (
        [stem(args.completions, ".jsonl"), "graded"]
        if args.completions
        else ["samples" if cfg.temperature else "greedy", stem(args.checkpoint, ".pt")]
    )
    return os.path.join(
        args.out or (os.path.dirname(given) if given else cfg.out),
        "-".join(word for word in [*words, suite] if word) + ".jsonl",
    )
