"""Reports: the numbers by hand, from metrics made by hand; figures, page and command."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.rates import paired_interval, seed_interval
from config import UserError
from report import __main__ as report_command
from report import figures
from report.curves import (
    HELD,
    area,
    bounds_over_seeds,
    column,
    first_step,
    over_seeds,
    paired_over_seeds,
    read_metrics,
    select,
    spread,
)

HERE = pathlib.Path(__file__).resolve().parent.parent
PNG = b"\x89PNG\r\n\x1a\n"


def held(model, steps, rates, tokens=1_000_000, seconds=10, flops=0.0):
    """Held-out lines: so many tokens and seconds, and a TFLOP, a step."""
    return [
        dict(
            model=model,
            phase="rlvr-heldout",
            step=step,
            sampled_tokens=tokens * step,
            cpu_s=seconds * step,
            flops=flops + 1e12 * step,
            **{"pass@1": rate},
            verdicts={"passed": 1},
        )
        for step, rate in zip(steps, rates, strict=True)
    ]


def training(model, steps):
    return [
        dict(
            model=model,
            phase="rlvr",
            step=step,
            reward=0.1 * step,
            entropy=None if step == 2 else 0.5,
            kl_start=0.0,
        )
        for step in range(1, steps + 1)
    ]


def folder(path, rows):
    path.mkdir()
    (path / "metrics.jsonl").write_text(
        "".join(
            json.dumps(row) + "\n"
            for row in [dict(model="base", phase="pretrain", step=0, loss=1.0), *rows]
        )
    )
    return path


@pytest.fixture
def two(tmp_path):
    """Two seeds: `a` runs longer than `rlvr-ntp`, which begins at 3 TFLOP; one of them has `c`."""
    one = (
        held("a", (0, 10, 20, 30), (0, 0.4, 0.6, 0.6))
        + held("rlvr-ntp", (0, 10, 20), (0.1, 0.2, 0.5), flops=3e12)
        + held("c", (0,), (0.3,))
    )
    other = held("a", (0, 10, 20, 30), (0.2, 0.2, 0.4, 0.8), tokens=2_000_000)
    other += held("rlvr-ntp", (0, 10, 20), (0.1, 0.9, 0.9), seconds=30, flops=3e12)
    folders = [
        folder(tmp_path / "s0", one + training("a", 3)),
        folder(tmp_path / "s1", other + training("a", 2)),
    ]
    (folders[0] / "settings.json").write_text(json.dumps({"seed": 0, "rl_lr": 2e-4}))
    (folders[1] / "settings.json").write_text(json.dumps({"seed": 1, "rl_lr": 2e-4}))
    programs = [
        {
            "task_id": f"t/{i}",
            "verdict": "passed",
            "completion": "\n    # a <b>\n    return x < 1\n",
        }
        for i in range(9)
    ]
    (folders[1] / "samples-a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in programs))
    return [str(f) for f in folders]


@pytest.fixture
def unseen(monkeypatch):
    """Figures are not drawn, which takes most of the time."""
    monkeypatch.setattr(report_command, "curves_figure", lambda curves: PNG)


def cells(text, model):
    return (
        next(line for line in text.splitlines() if line.startswith(f"| {model} |"))
        .strip("| ")
        .split(" | ")
    )


# ---------------------------------------------------------------- numbers


def test_area_threshold_and_spread_by_hand():
    assert area([0, 10, 30], [0, 0.4, 0.6]) == pytest.approx((10 * 0.2 + 20 * 0.5) / 30)
    assert area([5], [0.7]) == 0.7
    rows = held("a", (0, 10, 20, 30), (0.1, 0.4, 0.3, 0.5))
    assert [first_step(rows, t) for t in (0, 0.2, 0.4, 0.45, 0.6)] == [0, 10, 10, 30, None]
    assert (
        spread([0.1, 0.3]) == "0.200 ± 0.141" and spread([0.25]) == "0.250"
    )  # sqrt(.01 + .01) = .141


def test_interpolation_by_hand():
    grid, mean, deviation = over_seeds([([0, 2, 4], [0, 2, 0]), ([1, 3], [3, 5])])
    assert grid.tolist() == [1, 2, 3]  # where both have values
    assert mean.tolist() == [2, 3, 3] and deviation == pytest.approx(
        [2**0.5, 2**0.5, 8**0.5]
    )  # (1, 3), (2, 4), (1, 5)
    grid, mean, deviation = over_seeds([([0, 10], [0.5, 1])])
    assert (grid.tolist(), mean.tolist(), deviation.tolist()) == ([0, 10], [0.5, 1], [0, 0])
    assert [len(x) for x in over_seeds([([0, 1], [0, 1]), ([2, 3], [0, 1])])] == [
        0,
        0,
        0,
    ]  # nowhere do both


def test_table_by_hand(two, unseen, tmp_path, capfd):
    report_command.main([*two, "--out", str(tmp_path / "r.png"), "--paired", "a,rlvr-ntp"])
    shown = capfd.readouterr()
    # areas of a: (2 + 5 + 6) / 30 = .4333, (2 + 3 + 6) / 30 = .3667
    # the ends of rlvr-ntp are .5, which a reaches at 20, and .9, which it does not
    assert cells(shown.out, "a")[:7] == [
        "a",
        "2",
        "30",
        "0.100 ± 0.141",
        "0.700 ± 0.141",
        "0.400 ± 0.047",
        "20 (1 of 2)",
    ]
    assert cells(shown.out, "a")[7:] == ["45.00 ± 21.21", "30.0 ± 0.0", "300 ± 0"]
    assert cells(shown.out, "rlvr-ntp")[1:8] == [
        "2",
        "20",
        "0.100 ± 0.000",
        "0.700 ± 0.283",
        "0.475 ± 0.318",
        "15 (2 of 2)",
        "20.00 ± 0.00",
    ]
    assert cells(shown.out, "rlvr-ntp")[8:] == [
        "23.0 ± 0.0",
        "400 ± 283",
    ]  # 3 of mid-training and 20
    assert cells(shown.out, "c")[:7] == ["c", "1", "0", "0.300", "0.300", "0.300", "never (0 of 1)"]
    assert "steps to the end of rlvr-ntp" in shown.out and shown.err == ""
    # half a width of 12.706 x .141 / sqrt(2), cut off at the largest difference of rates
    assert shown.out.splitlines()[-2:] == [
        "a - rlvr-ntp, pass rate at the end: +0.000 ± 0.141, 95% [-1.000, +1.000] over 2 seeds "
        f"({two[0]} +0.100, {two[1]} -0.100)",
        os.path.relpath(tmp_path / "report.html"),
    ]
    report_command.main(
        [
            *two,
            "--models",
            "a",
            "--out",
            str(tmp_path / "r.png"),
            "--max-step",
            "25",
            "--threshold",
            ".3",
        ]
    )
    shown = capfd.readouterr().out
    assert (
        cells(shown, "a")[2:7]
        == ["20", "0.100 ± 0.141", "0.500 ± 0.141", "0.300 ± 0.071", "15 (2 of 2)"]
        and "steps to .3" in shown
    )
    assert "rlvr-ntp" not in shown


def test_no_model_to_compare_with_and_seeds_of_different_lengths(unseen, tmp_path, capfd):
    f = [
        folder(tmp_path / "0", held("a", (0, 10, 20), (0.1, 0.2, 0.3))),
        folder(tmp_path / "1", held("a", (0, 10), (0.1, 0.5))),
    ]
    report_command.main([*map(str, f), "--out", str(tmp_path / "r.png")])
    assert cells(capfd.readouterr().out, "a")[:7] == [
        "a",
        "2",
        "10 to 20",
        "0.100 ± 0.000",
        "0.400 ± 0.141",
        "0.250 ± 0.071",
        "-",
    ]


def test_seed_interval_covers():
    """Student's t over 2, 5 and 20 normal seeds holds the mean in 95% of 4,000 draws."""
    rng = np.random.default_rng(0)
    for n in (2, 5, 20):
        intervals = [seed_interval(values) for values in rng.normal(1.0, 2.0, (4000, n))]
        assert np.mean([low <= 1 <= high for low, high in intervals]) == pytest.approx(
            0.95, abs=0.01
        )
    assert seed_interval([1.0, 3.0]) == pytest.approx((2 - 12.706, 2 + 12.706))
    assert seed_interval(range(13)) == pytest.approx((6 - 2.3534, 6 + 2.3534), abs=2e-3)


def rows_file(path, verdicts):
    """Rows as evaluate.py writes them. verdicts: {problem: "p" or "f" for each sample}."""
    rows = [
        {"task_id": name, "verdict": "passed" if v == "p" else "wrong_answer", "completion": ""}
        for name, of_problem in verdicts.items()
        for v in of_problem
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_two_files_of_rows_are_compared_by_problem(tmp_path, capfd):
    """Files in another order, one with a problem more: the shared problems, paired by name."""
    a = rows_file(tmp_path / "a.jsonl", {"x": "p", "y": "p", "z": "f", "more": "p"})
    b = rows_file(tmp_path / "b.jsonl", {"z": "f", "x": "p", "y": "f"})
    report_command.main(["--rows", a, b])
    (line,) = capfd.readouterr().out.splitlines()
    low, high = paired_interval(np.array([1.0, 1, 0]), np.array([1.0, 0, 0]), 1)
    assert line == (
        f"{a} - {b}, pass@1 over 3 problems, 1 more in one of the files only: +0.3333, "
        f"95% [{low:+.4f}, {high:+.4f}] (0.6667 - 0.3333)"
    )
    five = rows_file(tmp_path / "5.jsonl", {"x": "ppfff", "y": "fffff"})
    report_command.main(["--rows", five, five])
    lines = capfd.readouterr().out.splitlines()
    assert ["pass@1" in lines[0], "pass@5" in lines[1], len(lines)] == [True, True, 2]


def test_differences_over_seeds_by_hand():
    """Of rates they are at most 1; where seeds agree they have no interval."""

    def ends(*rates):
        return {f"s{i}": held("m", (0, 10), (0, rate)) for i, rate in enumerate(rates)}

    line = paired_over_seeds(ends(1.0, 0.5), ends(0.0, 0.0), ("a", "b"))
    assert "+0.750 ± 0.354, 95% [-1.000, +1.000] over 2 seeds" in line
    line = paired_over_seeds(ends(0.3, 0.5), ends(0.1, 0.3), ("a", "b"))
    assert "at the end: +0.200 ± 0.000 over 2 seeds" in line
    assert bounds_over_seeds([0.1, 0.3], (0, 1)).tolist() == [0, 1]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "there are none at all"),
        (
            '{"task_id": "x", "verdict": "passed"}\n' * 2 + '{"task_id": "y", "verdict": "a"}',
            "1, 2",
        ),
        ('{"task_id": "x"}', "line 1: expected an object with task_id and verdict"),
        ('{"task_id": "q", "verdict": "passed"}', "no problem is in both"),
    ],
)
def test_rows_that_cannot_be_compared(text, message, tmp_path):
    good = rows_file(tmp_path / "a.jsonl", {"x": "p"})
    (tmp_path / "b.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        report_command.main(["--rows", str(tmp_path / "b.jsonl"), good])


# ---------------------------------------------------------------- figures and the page


def test_figures_and_page_are_written(two, tmp_path, capfd):
    out, plots, page = (tmp_path / name for name in ("r.png", "rlvr-training.png", "r.html"))
    report_command.main(
        [*two, "--models", "a", "--out", str(out), "--figures", str(tmp_path), "--html", str(page)]
    )
    assert out.read_bytes().startswith(PNG) and plots.read_bytes().startswith(PNG)
    assert min(len(p.read_bytes()) for p in (out, plots)) > 10_000
    assert (tmp_path / "rlvr.png").read_bytes() == out.read_bytes()
    text = page.read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', text)  # nothing outside it
    assert "<td>0.700 ± 0.141</td>" in text and "Held-out pass rate" in text
    assert re.search("seed</th><td>0</td><td>1</td>", text)
    assert re.search("rl_lr</th><td>0.0002</td>", text)


def test_figures_show_seeds_mean_and_band(two):
    runs = {f: read_metrics(f) for f in two}
    axis = figures.new_figure(4, 3).subplots()
    figures.draw(
        axis,
        [
            (column(rows, "step"), column(rows, "pass@1"))
            for rows in select(runs, HELD, "a").values()
        ],
        "C0",
        "a",
    )
    assert [line.get_ydata().tolist() for line in axis.lines[:2]] == [
        [0, 0.4, 0.6, 0.6],
        [0.2, 0.2, 0.4, 0.8],
    ]
    assert axis.lines[2].get_label() == "a" and axis.lines[2].get_ydata() == pytest.approx(
        [0.1, 0.3, 0.5, 0.7]
    )
    edge = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert (edge.min(), edge.max()) == pytest.approx((0.1 - 0.02**0.5, 0.7 + 0.02**0.5))
    axis = figures.new_figure(4, 3).subplots()
    figures.draw(axis, [([0], [0.5])], "C0", "one point")
    assert len(axis.lines) == 2


def test_without_matplotlib(two, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match="need the package matplotlib .extra report"):
        report_command.main([*two, "--out", str(tmp_path / "r.png")])
    assert cells(capfd.readouterr().out, "a")[1] == "2"  # the table comes first


# ---------------------------------------------------------------- mistakes


def test_half_a_last_line_is_left_out_with_a_note(two, unseen, tmp_path, capfd):
    with open(f"{two[0]}/metrics.jsonl", "a") as f:
        f.write('{"model": "a", "phase": "rlvr-heldout", "st')
    report_command.main([*two, "--models", "a", "--out", str(tmp_path / "r.png")])
    shown = capfd.readouterr()
    assert cells(shown.out, "a")[2] == "30"
    assert shown.err == (
        f"{two[0]}/metrics.jsonl: half a last line is left out; the run is being written, or was "
        "killed\n"
    )


@pytest.mark.parametrize(
    "line, shown",
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: expected an object"),
        ('{"model": "a", "phase": "rlvr-heldout", "step": 1}', "line 2: expected.*pass@1"),
        (
            '{"model": "a", "phase": "rlvr-heldout", "step": 1, "sampled_tokens": 1, "cpu_s": 1, '
            '"flops": 1, "pass@1": "x"}',
            "line 2: expected.*pass@1",
        ),
        ('{"phase": "rlvr", "step": 1}', "line 2: expected an object with model"),
    ],
)
def test_damaged_metrics(line, shown, tmp_path):
    f = folder(tmp_path / "run", [])
    with open(f / "metrics.jsonl", "a") as out:
        out.write(line + "\n")
    with pytest.raises(UserError, match=f"metrics.jsonl, {shown}") as e:
        report_command.main([str(f)])
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "given, shown",
    [
        ("", "expected RUN"),
        ("{tmp}/no", "no/metrics.jsonl: cannot be read"),
        ("{tmp}/s0 {tmp}/s0/", "each folder once"),
        ("{tmp}/plain --out {tmp}/r.png", "no lines of phase rlvr-heldout"),
        (
            "{tmp}/s0 {tmp}/s1 --models a,rlvr-x",
            "rlvr-x: no lines of phase rlvr-heldout in .*s0, .*s1; there are: a, c, rlvr-ntp",
        ),
        ("{tmp}/s0 --against b", "b: no lines"),
        ("{tmp}/s0 --paired a", "--paired a: expected two models"),
        ("{tmp}/s0 --paired a,b", "b: no lines"),
        ("{tmp}/s0 {tmp}/lone --paired c,d", "--paired c,d: no folder has both"),
        ("{tmp}/s0 --threshold x", "--threshold x: expected a number"),
        ("{tmp}/s0 --threshold 2", "--threshold 2: expected a rate"),
        ("{tmp}/s0 --threshold .5 --against a", "no --against beside it"),
        ("{tmp}/s0 --max-step -1", "--max-step -1: expected"),
        ("{tmp}/s0 --max-step x", "--max-step x: expected a whole number"),
        ("{tmp}/s0 --out {tmp}", "--out .*expected a file"),
        ("{tmp}/s0 --out {tmp}/r.pdf", "--out .*r.pdf: expected a name that ends in .png"),
        ("{tmp}/s0 --picture {tmp}/r.jpg", "--picture .*r.jpg: expected a name that ends"),
        ("--rows {tmp}/no.jsonl {tmp}/no.jsonl", "expected a file of evaluate.py's rows"),
        ("{tmp}/s0 --html {tmp}/no/r.html", "--html .*expected a file"),
        (
            "{tmp}/s0 --models c --out {tmp}/r.png --training {tmp}/t.png",
            "c: no lines of phase rlvr in",
        ),
        ("{tmp}/s0 --modles a", "did you mean --models"),
    ],
)
def test_mistakes_give_one_clear_line(given, shown, two, unseen, tmp_path):
    folder(tmp_path / "plain", [])
    folder(tmp_path / "lone", held("d", (0, 10), (0.1, 0.2)))
    with pytest.raises(UserError, match=shown) as e:
        report_command.main([a.format(tmp=tmp_path) for a in given.split()])
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "name, text, shown",
    [
        ("settings.json", "[1", "settings.json: cannot be read as a JSON object"),
        (
            "samples-a.jsonl",
            '{"task_id": 1}\n',
            "samples-a.jsonl, line 1: expected an object with task_id",
        ),
    ],
)
def test_damaged_files_of_the_page(name, text, shown, two, unseen, tmp_path):
    pathlib.Path(two[0], name).write_text(text)
    with pytest.raises(UserError, match=shown):
        report_command.main(
            [
                *two,
                "--models",
                "a",
                "--out",
                str(tmp_path / "r.png"),
                "--html",
                str(tmp_path / "r.html"),
            ]
        )


def test_exit_status(two, tmp_path):
    def command(*argv):
        argv = [sys.executable, "-m", "report", *argv]
        return subprocess.run(argv, cwd=HERE, capture_output=True, text=True)

    done = command(*two, "--out", str(tmp_path / "r.png"))
    assert (
        (done.returncode, done.stderr) == (0, "")
        and done.stdout.startswith("| model | seeds |")
        and (tmp_path / "r.png").stat().st_size > 0
    )
    done = command(str(tmp_path / "no"))
    assert (
        done.returncode == 2
        and done.stdout == ""
        and done.stderr.startswith("python -m report: ")
        and done.stderr.count("\n") == 1
    )
    done = command("--help")
    assert (
        done.returncode == 0
        and done.stderr == ""
        and "--max-step" in done.stdout
        and "mean pass rate y" in done.stdout
    )
