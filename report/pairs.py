"""Two files of evaluate.py's rows, compared problem by problem."""

import collections

import numpy as np

from benchmarks.rates import paired_interval, pass_rates
from config import UserError
from report.files import json_lines


def paired_over_problems(path_a, path_b):
    """A line for each k: the difference of two files' pass@k, paired over problems.

    k is 1, 5 and 10, as far as both have so many samples. Raises UserError.
    """
    a, b = read_rows_by_problem(path_a), read_rows_by_problem(path_b)
    n_a, n_b = samples_of(path_a, a), samples_of(path_b, b)
    names = [name for name in a if name in b]
    if not names:
        raise UserError(f"--rows {path_a} {path_b}: no problem is in both")
    alone = len(a.keys() ^ b.keys())
    rest = f", {alone} more in one of the files only" if alone else ""
    lines = []
    for k in (1, 5, 10):
        if k <= min(n_a, n_b):
            rates_a, rates_b = (
                np.concatenate([pass_rates(rows[name], n, k) for name in names])
                for rows, n in ((a, n_a), (b, n_b))
            )
            low, high = paired_interval(rates_a, rates_b, min(n_a, n_b))
            lines.append(
                f"{path_a} - {path_b}, pass@{k} over {len(names)} problems{rest}: "
                f"{rates_a.mean() - rates_b.mean():+.4f}, 95% [{low:+.4f}, {high:+.4f}] "
                f"({rates_a.mean():.4f} - {rates_b.mean():.4f})"
            )
    return "\n".join(lines)


def read_rows_by_problem(path):
    """{task_id: rows} of a file. Raises UserError."""
    by_problem = collections.defaultdict(list)
    for number, row in json_lines(path, expected="a file of evaluate.py's rows"):
        try:
            by_problem[row["task_id"]].append({"verdict": row["verdict"] + ""})
        except (KeyError, TypeError):
            raise UserError(
                f"{path}, line {number}: expected an object with task_id and verdict, as "
                "evaluate.py writes it"
            ) from None
    return by_problem


def samples_of(path, by_problem):
    """How many rows each problem has. Raises UserError if they have not equally many."""
    counts = sorted({len(rows) for rows in by_problem.values()})
    if len(counts) != 1:
        raise UserError(
            f"{path}: expected equally many rows for each problem; there are "
            f"{', '.join(map(str, counts)) or 'none at all'}"
        )
    return counts[0]
