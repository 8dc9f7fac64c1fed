"""The page of a run: numbers by hand, faults of programs, and the page in a real browser."""

import html
import html.parser
import json
import re
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.rates import paired_interval, pass_rates, seed_interval
from config import UserError
from domain import domain_tasks
from report import __main__ as report_command
from report import figures
from report.charts import Series, chart, decades, thinned, ticks
from report.compare import comparison_page, em_charts
from report.faults import Examiner, first_difference
from report.files import Folder, model_and_suite, open_folder
from report.markup import number
from report.page import run_page
from report.picture import BROWSERS, WIDTH
from report.programs import marked
from report.results import figure_of
from report.snippets import first_word, frequent_table
from tasks import Task
from worlds import HERE

PNG = b"\x89PNG\r\n\x1a\n"
TASKS = domain_tasks(0, 3, "test")
MODELS = ("base", "ntp", "ra3")
MEASURED = {"seed": 0, "eval_tasks": 3, "eval_split": "test", "data": "domain"}
EVIL = "# <script>alert(1)</script> " + "x" * 300  # a thought, or a program's comment


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def metrics():
    """Two steps of every phase but RLVR."""
    rows = [("base", "pretrain", dict(step=s, ce_code=6.0 / (s + 1))) for s in range(400)]
    rows.append(("base", "skill", dict(lap=0, notes=9, notes_right=0.5, note_nats=2.25)))
    for step in range(4):
        it = step // 2
        rows.append(("ntp", "mstep", dict(iteration=it, step=step % 2, ce_code=0.1)))
        rows.append(("ra3", "mstep", dict(iteration=it, step=step % 2, ce_code=0.1 / (1 + step))))
        estep = dict(
            reward=-4.0 + step, elbo_no_think=-6.0, think_hard=0.25 * step, gain=1.0 * step
        )
        rows.append(("ra3", "estep", dict(iteration=it, step=step % 2, think_easy=0.1, **estep)))
    diagnosis = dict(iteration=0, think_share=0.25, gain=-0.5, estep="best-of-n")
    rows.append(("ra3", "diagnose", diagnosis))
    for it in range(2):
        heldout = dict(elbo=-2.0 + it, elbo_no_think=-9.0, think_hard=0.9, think_easy=0.0, gain=3.0)
        rows.append(("ra3", "heldout", dict(iteration=it, **heldout)))
    return [dict(model=model, phase=phase, **values) for model, phase, values in rows]


def thoughts(model):
    """Rollouts of three snippets, two each; ra3 thinks before the lines 1 and 3."""
    rows = []
    for n, task in enumerate(TASKS):
        lines = task.solution.strip("\n").split("\n")
        latents = [[1, "# why: it helps", 2.5], [3, EVIL, -0.25]] if model == "ra3" else []
        rollout = {
            "reward": -1.0 - n,
            "nats": [-0.25] * len(lines),
            "p_think": [0.5] * len(lines),
            "thoughts": latents,
        }
        rows.append(
            {
                "name": task.name,
                "prompt": task.prompt,
                "lines": lines,
                "hard": list(task.hard),
                "never": [-0.5] * len(lines),
                "rollouts": [rollout, {**rollout, "p_think": None, "reward": -3.0 - n}],
            }
        )
    return rows


def programs(model):
    """ra3 passes; ntp is wrong in one constant; base raises an exception."""
    rows = []
    for task in TASKS:
        text = task.solution
        if model == "ntp":
            text = wrong(task)
        elif model == "base":
            text = f"\n    {EVIL}\n    return xs[99]\n"
        verdict = {"ra3": "passed", "ntp": "wrong_answer", "base": "exception"}[model]
        rows.append({"task_id": task.name, "completion": text, "verdict": verdict, "seconds": 0.1})
    return rows


def wrong(task):
    """The solution with another digit in its first hard line."""
    lines = task.solution.strip("\n").split("\n")
    digit = re.findall(r"\d+", lines[task.hard[0]])[-1]
    lines[task.hard[0]] = lines[task.hard[0]].replace(digit, str((int(digit) + 1) % 10))
    return "\n" + "\n".join(lines)


def result(model):
    figures = {"elbo": -3.0, "elbo_no_think": -4.0, "think_share": 0.0, "gain": 0.0, "flops": 1e12}
    if model == "ra3":
        figures |= {"think_share": 0.3, "think_hard": 0.9, "think_easy": 0.1, "gain": 2.5}
        figures |= {"intervals": {"pass@1": [0.25, 0.75]}}
        figures |= {"gain_above_c": 0.5, "duration": 2.0, "think_len": 4.0}
    return {"pass@1": {"ra3": 1.0}.get(model, 0.0), **figures, "measured": MEASURED}


@pytest.fixture
def run_folder(tmp_path):
    """A finished run of the built-in domain, made by hand."""
    path = tmp_path / "tiny-0"
    path.mkdir()
    write_rows(path / "metrics.jsonl", metrics())
    (path / "settings.json").write_text(json.dumps({"preset": "tiny", "seed": 0, "c": 0.25}))
    (path / "results.json").write_text(json.dumps({model: result(model) for model in MODELS}))
    for model in MODELS:
        write_rows(path / f"thoughts-{model}.jsonl", thoughts(model))
        write_rows(path / f"samples-{model}.jsonl", programs(model))
        write_rows(path / f"samples-{model}-domain.jsonl", programs(model) * 1)
    return path


class Outline(html.parser.HTMLParser):
    """Headings, and elements that are not closed."""

    EMPTY = ("meta", "link", "br")

    def __init__(self, text):
        super().__init__()
        self.open = []
        self.sections = []
        self.wrong = []
        self.feed(text)
        self.wrong += self.open

    def handle_starttag(self, tag, attributes):
        if tag not in self.EMPTY:
            self.open.append(tag)
        if tag == "section":
            self.sections.append(dict(attributes)["id"])

    def handle_endtag(self, tag):
        if self.open[-1:] == [tag]:
            self.open.pop()
        else:
            self.wrong.append(f"/{tag}")


# ---------------------------------------------------------------- the page


def test_sections_of_a_finished_run(run_folder, capfd):
    report_command.main([str(run_folder)])
    assert capfd.readouterr().out.strip() == str(run_folder / "report.html")
    text = (run_folder / "report.html").read_text()
    outline = Outline(text)
    assert outline.wrong == []
    assert outline.sections == "results curves snippets frequent programs settings".split()
    assert "<script" not in text and "&lt;script&gt;" in text and "http" not in text
    assert text.count("<figure>") == 8  # no KL, and no thoughts in M-steps: not measured
    assert "KL(q" not in text and "RLVR" not in text
    assert "c</th><td>0.25" in text.split("other than")[-1]  # a setting that is not the preset's
    assert "9 worked notes" in text and "worth +2.25 nats" in text


def test_what_was_not_measured_is_not_there(run_folder):
    for file in run_folder.glob("*.jsonl"):
        if file.name != "metrics.jsonl":
            file.unlink()
    (run_folder / "results.json").unlink()
    write_rows(run_folder / "metrics.jsonl", metrics()[:3])
    text = run_page(open_folder(str(run_folder)))
    assert Outline(text).sections == ["curves", "settings"] and text.count("<figure>") == 1
    write_rows(run_folder / "metrics.jsonl", [])
    (run_folder / "settings.json").unlink()
    assert Outline(run_page(open_folder(str(run_folder)))).sections == []


def test_an_estep_without_a_gradient(run_folder):
    """Of selection there are no E-steps, but what thoughts were worth before it."""
    rows = [row for row in metrics() if row["phase"] != "estep"]
    write_rows(run_folder / "metrics.jsonl", rows)
    text = run_page(open_folder(str(run_folder)))
    group = text.split('id="curves-estep"')[1].split('id="curves-mstep"')[0]
    assert "thinks before 25.0% of the lines" in group and "<figure" not in group
    assert "a thought gains −0.50 nats. Thoughts are found by best-of-n." in group
    assert "thinks before" not in run_page(Folder("x", {}, {}, rows[:2], {}, {}, {}))


def test_intervals_and_differences(run_folder):
    rows = [row for row in programs("ra3") for _ in range(4)]
    rows[0] = {**rows[0], "verdict": "exception"}
    write_rows(run_folder / "samples-ra3-domain.jsonl", rows)
    wrong_rows = [row for row in programs("ntp") for _ in range(4)]
    write_rows(run_folder / "samples-ntp-domain.jsonl", wrong_rows)
    text = run_page(open_folder(str(run_folder)))
    assert text.count("<td>1.000<small>[0.250, 0.750]</small>") == 1  # as results.json has them
    low, high = paired_interval(pass_rates(rows, 4, 1), np.zeros(3), 4)
    assert f"RA3 beside NTP: pass@1 +0.917 [+{low:.3f}, +{high:.3f}]" in text
    assert "RA3 beside NTP: bound +0.00 [+0.00, +0.00]" in text
    assert "RA3 beside base: pass@1" not in text  # other numbers of samples


def test_snippets_say_where_and_how_long(run_folder):
    text = run_page(open_folder(str(run_folder)))
    ra3 = text.split('aria-label="RA3, ')[1].split("</article>")[0]
    n = len(TASKS[0].solution.strip("\n").split("\n"))
    assert re.findall("holds [^<]*", ra3) == ["holds 2 lines", f"holds {n - 3} lines"]
    assert re.findall(r"gain [^<]*", ra3) == ["gain +2.50", "gain −0.25"]
    stripes = re.findall(r'<td class="intent(?: c(\d))?">(\d?)</td>', ra3)
    assert stripes == [("", "")] + [("0", "1")] * 3 + [("1", "2")] * (n - 2)
    assert ra3.count("−0.50 → −0.25 ▲") == n and ra3.count(">50%<") == n
    assert ra3.count(">hard<") == len(TASKS[0].hard)


def test_without_p_think(run_folder):
    """The plain E-step does not record it: its column stays empty."""
    rows = thoughts("ra3")
    for row in rows:
        row["rollouts"][0]["p_think"] = None
    write_rows(run_folder / "thoughts-ra3.jsonl", rows)
    text = run_page(open_folder(str(run_folder)))
    ra3 = text.split('aria-label="RA3, ')[1].split("</article>")[0]
    assert "--p:" not in ra3 and ra3.count('<td class="p"></td>') == ra3.count("▲") > 0


def test_models_measured_unlike_are_not_compared(run_folder):
    """As after an evaluation of ra3 alone on programs of another length."""
    results = {model: result(model) for model in MODELS}
    assert "ntp" in MODELS
    text = run_page(open_folder(str(run_folder)))
    assert "RA3 beside NTP: pass@1" in text and "Not measured alike" not in text
    for model in ("base", "ntp"):
        results[model]["measured"] = {**MEASURED, "stages": "8"}
    results["ra3"]["measured"] = {**MEASURED, "stages": "3"}
    (run_folder / "results.json").write_text(json.dumps(results))
    text = run_page(open_folder(str(run_folder)))
    assert "Not measured alike: stages differ." in text
    assert "RA3 beside NTP" not in text


def test_problems_of_long_programs_are_shown(run_folder):
    """Problems are drawn again with the number of stages that the models were measured with."""
    long = domain_tasks(0, 3, "test", (6,))
    results = {model: result(model) for model in MODELS}
    for model in MODELS:
        results[model]["measured"] = {**MEASURED, "stages": "6"}
        rows = [
            {"task_id": task.name, "completion": task.solution, "verdict": "passed", "seconds": 0.1}
            for task in long
        ]
        write_rows(run_folder / f"samples-{model}.jsonl", rows)
    (run_folder / "results.json").write_text(json.dumps(results))
    text = html.unescape(run_page(open_folder(str(run_folder))))
    assert all(task.prompt in text for task in long)


def test_frequent_thoughts_by_hand():
    pairs = [("# a: 1", 2.0), ("# b", -1.0), ("# a: 2", 4.0), ("#", 0.5)]
    text = frequent_table(pairs, first_word, "title")
    rows = re.findall("<tr>(<th scope=.row.*?)</tr>", text)
    assert [re.findall("<td>(.*?)</td>", row) for row in rows] == [
        ["2", "50.0%", "+3.00"],
        ["1", "25.0%", "−1.00"],
        ["1", "25.0%", "+0.50"],
    ]
    assert "# a: 1" in rows[0] and "(empty)" in rows[2]


def test_several_runs_are_compared(run_folder, tmp_path, capfd):
    other = shutil.copytree(run_folder, tmp_path / "tiny-1")
    results = {model: result(model) for model in MODELS}
    results["ra3"] |= {"pass@1": 0.5, "elbo": -2.5}
    results["ra3"]["measured"] = {**MEASURED, "seed": 1, "data": "else"}
    (other / "results.json").write_text(json.dumps(results))
    (other / "settings.json").write_text(json.dumps({"preset": "tiny", "seed": 1}))
    report_command.main([str(run_folder), str(other)])
    text = (tmp_path / "report.html").read_text()
    assert Outline(text).wrong == []
    assert Outline(text).sections == ["results", "curves", "settings"]
    assert "<td>0.750<small>[0.000, 1.000]</small><small>1.000, 0.500</small>" in text
    assert "RA3 beside NTP: pass@1 +0.750 [−1.000, +1.000] over 2 runs" in text
    low, high = seed_interval([0.0, 0.5])
    assert f"RA3 beside NTP: bound +0.25 [{number(low, '{:+.2f}')}, +{high:.2f}]" in text
    assert "Not measured alike: data differ" in text
    assert text.count('class="s0 faint"') == 2 * len(re.findall("<figure>", text))
    assert "seed</th><td>0</td><td>1</td>" in text and "c</th><td>0.25" in text


def test_a_comparison_claims_no_more_than_it_knows(run_folder, tmp_path):
    """Equal values have no interval, a difference of rates is at most 1, a gap is named."""
    folders = [open_folder(str(run_folder))]
    for seed in (1, 2):
        path = shutil.copytree(run_folder, tmp_path / f"tiny-{seed}")
        results = {model: result(model) for model in MODELS[: 4 - seed]}
        results["base"]["pass@1"] = 0.25
        if "ra3" in results:
            results["ra3"]["pass@1"] = 0.75
        (path / "results.json").write_text(json.dumps(results))
        folders.append(open_folder(str(path)))
    text = comparison_page(folders)
    assert "<td>0.000<small>0.000, 0.000, 0.000</small>" in text  # pass@1 of NTP
    assert "RA3 beside base: pass@1 +0.750 [−1.000, +1.000] over 2 runs" in text
    assert "RA3 beside NTP: bound +0.00 over 2 runs" in text
    assert "No results of: tiny-2 (RA3)." in text and "No results" not in comparison_page(
        folders[:2]
    )


@pytest.mark.parametrize(
    "name, text, shown",
    [
        ("metrics.jsonl", "[1]\n", "line 1: expected an object with model"),
        ("thoughts-ra3.jsonl", "{}\n", "thoughts-ra3.jsonl, line 1: expected an object with name"),
        ("samples-ra3.jsonl", '{"task_id": 1}\n', "samples-ra3.jsonl, line 1: expected"),
        ("results.json", "[", "results.json: cannot be read as a JSON object"),
        ("results.json", "[]", "results.json: cannot be read as a JSON object"),
        ("results.json", '{"ra3": {"elbo": "x"}}', 'results.json: ra3, elbo is "x"; expected a n'),
        ("results.json", '{"ra3": 3}', "ra3 is 3; expected an object of figures"),
        ("results.json", '{"ra3": {"measured": 3}}', "ra3, measured is 3; expected an object"),
        ("results.json", '{"ra3": {"intervals": {"elbo": [1]}}}', "elbo is .1.; expected two num"),
        ("results.json", '{"ra3": {"intervals": {"elbo": [1, "x"]}}}', "expected a number"),
    ],
)
def test_damaged_files_are_one_line(name, text, shown, run_folder):
    (run_folder / name).write_text(text)
    with pytest.raises(UserError, match=shown) as e:
        report_command.main([str(run_folder)])
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "name, key, value",
    [
        ("thoughts-ra3.jsonl", "name", 3),
        ("thoughts-ra3.jsonl", "hard", None),
        ("thoughts-ra3.jsonl", "never", [1.0]),
        ("thoughts-ra3.jsonl", "rollouts", []),
        ("thoughts-ra3.jsonl", "rollouts", [{"reward": 1.0, "nats": [], "thoughts": []}]),
        ("samples-ra3.jsonl", "completion", 3),
        ("samples-ra3-domain.jsonl", "verdict", None),
    ],
)
def test_a_row_of_another_form_is_one_line(name, key, value, run_folder):
    first, *rows = (run_folder / name).read_text().splitlines()
    damaged = json.dumps({**json.loads(first), key: value})
    (run_folder / name).write_text("\n".join([damaged, *rows]) + "\n")
    with pytest.raises(UserError, match=f"{name}, line 1: expected an object with"):
        report_command.main([str(run_folder)])


def test_real_code_has_no_hard_lines_and_no_tasks(run_folder):
    text = run_page(open_folder(str(run_folder)))
    assert "“hard” marks lines" in text and "Intervals of pass rates are over tasks" in text
    for model in MODELS:
        rows = [{**row, "hard": []} for row in thoughts(model)]
        write_rows(run_folder / f"thoughts-{model}.jsonl", rows)
    results = {model: {**result(model), "pass@1": None} for model in MODELS}
    (run_folder / "results.json").write_text(json.dumps(results))
    text = run_page(open_folder(str(run_folder)))
    assert "“hard” marks lines" not in text and "Intervals of the bound are over" in text


def test_a_base_that_was_trained_elsewhere_took_no_compute_here():
    assert figure_of({"flops": 0.0}, "flops") is None and figure_of({"flops": 2.0}, "flops") == 2
    assert figure_of({"pass@1": 0.0}, "pass@1") == 0


def test_a_check_of_notes_without_figures(run_folder):
    rows = [{"model": "base", "phase": "skill"}, *metrics()[-3:]]
    write_rows(run_folder / "metrics.jsonl", rows)
    assert "worked notes" not in run_page(open_folder(str(run_folder)))


def test_whose_programs_a_file_holds():
    models = ["base", "best-of-20", "rlvr-ra3"]
    for name, kind, wanted in [
        ("base", "samples", ("base", "domain", True)),
        ("best-of-20", "samples", ("best-of-20", "domain", True)),
        ("best-of-20-domain", "samples", ("best-of-20", "domain", False)),
        ("ra3-mbpp+", "greedy", ("ra3", "mbpp+", True)),
        ("rlvr-ra3", "samples", ("rlvr-ra3", "domain", True)),
    ]:
        assert model_and_suite(name, kind, models) == wanted, name


# ---------------------------------------------------------------- charts


def test_ticks_and_thinning_by_hand():
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(-8.9, -0.5) == [-8, -6, -4, -2]
    assert decades(0.05, 20) == pytest.approx([0.1, 1, 10])
    assert thinned([(0, 1.0), (1, 3.0), (2, 5.0)], 2) == [(0.5, 2.0), (2, 5.0)]
    assert len(thinned([(i, 0.0) for i in range(1001)])) <= 300


def test_a_chart_leaves_out_what_was_not_measured():
    nan = float("nan")
    gaps = Series("a", [(1, None), (2, 1.0), (3, nan), (4, -2.0)])
    assert gaps.points == [(2, 1.0), (4, -2.0)]
    assert chart("t", "u", [Series("a", [(1, None)]), Series("b", [])], "x") == ""
    text = chart("t", "u", [gaps, Series("b", [(1, 0.5)], 1)], "x", log=True)
    assert "a from 1 to −2; b 0.5." in text and text.count("<polyline") == 1
    assert "<circle" in text and "logarithmic" not in text  # not with a negative value
    assert text.count('class="series"') == 2
    far = chart("t", "u", [Series("a", [(1, 0.01), (2, 1.0)])], "x", log=True)
    share = chart("t", "share of lines", [Series("a", [(1, 0.5), (2, 0.5)])], "x", log=True)
    assert "logarithmic" in far and "logarithmic" not in share
    assert re.findall('class="tick-y">([^<]*)<', share) == ["0", "0.2", "0.4", "0.6", "0.8", "1"]


def test_a_gain_of_no_thoughts_is_no_gain(run_folder):
    rows = [{**row, "think_share": 0.0} for row in metrics() if row["phase"] == "estep"]
    write_rows(run_folder / "metrics.jsonl", rows)
    text = run_page(open_folder(str(run_folder)))
    assert "<b>Reward</b>" in text and "<b>Gain</b>" not in text


# ---------------------------------------------------------------- figures


def test_figures_of_em_have_every_seed(run_folder, tmp_path, capfd):
    other = shutil.copytree(run_folder, tmp_path / "tiny-1")
    charts = em_charts([open_folder(str(path)) for path in (run_folder, other)])
    named = {title: lines for title, _, lines, _, _ in charts}
    assert list(named) == ["Pre-training", "Reward", "P(think)", "Gain", "M-step", "Bound"]
    assert named["Gain"] == [("mean gain", [[(n + 1, float(n)) for n in range(4)]] * 2)]
    assert [label for label, _ in named["M-step"]] == ["NTP, code", "RA3, code"]
    pytest.importorskip("matplotlib")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "png_of", lambda figure: figure)
        bound = figures.em_figure(charts).axes[-1]
    assert bound.get_xlabel() == "EM iterations" and set(bound.get_xticks() % 1) == {0}
    report_command.main([str(run_folder), str(other), "--figures", str(tmp_path)])
    assert (tmp_path / "em.png").read_bytes().startswith(PNG)
    assert not (tmp_path / "rlvr.png").exists()  # nothing was measured for it


@pytest.mark.parametrize(
    "options, shown",
    [
        ("--figures {tmp}/no", "--figures .*no: expected a folder"),
        ("{tmp} --picture {tmp}/x.png", "--picture .*x.png: expected one run"),
        ("--picture {tmp}/no/x.png", "--picture .*expected a file"),
    ],
)
def test_mistakes_with_figures(options, shown, run_folder, tmp_path):
    with pytest.raises(UserError, match=shown):
        report_command.main([str(run_folder), *options.format(tmp=tmp_path).split()])


# ---------------------------------------------------------------- why a program failed


@pytest.fixture(scope="module")
def examiner():
    with Examiner() as examiner:
        yield examiner


def a_task(tests, **fields):
    return Task("t", "def f(x):", "", tests, "f", **fields)


@pytest.mark.parametrize(
    "task, text, wanted",
    [
        (
            a_task("assert f(1) == 2\nassert f(2) == 5\n"),
            "\n    return x + 1",
            dict(test="assert f(2) == 5", value="3", error="AssertionError", line=None),
        ),
        (
            a_task(
                "def check(candidate):\n    for x in (0, 3):\n        assert candidate(x) == x\n"
            ),
            "\n    y = 1\n    # z\n    return y / x",
            dict(
                error="ZeroDivisionError: division by zero", line=3, test="assert candidate(x) == x"
            ),
        ),
        (a_task("assert f(1)"), "\n    return (", dict(line=1)),
        (
            a_task("assert f(1)"),
            "\n    while x:\n        x += 1",
            dict(error="Late: still running"),
        ),
        (
            a_task([{"input": "4\n", "output": "8\n"}], kind="stdio", prefix=""),
            "\nx = int(input())\nprint(x + x + 1)",
            dict(value="9\n", test="input '4\\n', expected output '8\\n'", line=None),
        ),
        (
            a_task([{"input": "4", "output": "8"}], kind="stdio", prefix=""),
            "\n\nint(input()) / 0",
            dict(error="ZeroDivisionError: division by zero", line=2),
        ),
    ],
)
def test_faults(task, text, wanted, examiner, monkeypatch):
    monkeypatch.setattr("report.faults.SECONDS", 0.3)
    fault = examiner.fault(task, {"completion": text, "verdict": "wrong_answer"})
    assert {key: getattr(fault, key) for key in wanted} == wanted


def test_a_wrong_constant_is_found(examiner):
    for task in TASKS:
        row = {"completion": wrong(task), "verdict": "wrong_answer"}
        fault = examiner.fault(task, row)
        assert fault.line == task.hard[0] + 1 and fault.test in task.tests
        assert fault.expert == task.solution.strip("\n").split("\n")[task.hard[0]].strip()
        assert fault.value != fault.test.split(" == ")[1]
        assert "✗" in marked(row["completion"], fault.line).split("\n")[task.hard[0]]
    assert examiner.fault(TASKS[0], {"completion": "", "verdict": "passed"}) is None
    gone = {"completion": "\n    import os\n    os._exit(0)", "verdict": "abnormal_exit"}
    fault = examiner.fault(TASKS[0], gone)  # it says nothing, and is unlike the expert's
    assert (fault.error, fault.line) == ("", 1) and fault.expert == "xs = list(xs)"


def test_first_difference_by_hand():
    solution = "\n    x = 1\n    y = 2\n    return y"
    assert first_difference("\n    x = 1\n    # why\n    y = 3\n    return y", solution) == (
        3,
        "y = 2",
    )
    assert first_difference("\n    x = 1", solution) == (1, "y = 2")
    assert first_difference(solution + "\n    z = 1", solution) == (4, "nothing more")
    assert first_difference(solution, solution) == (None, "")


# ---------------------------------------------------------------- in a browser

# The contrast of each text with what is behind it (WCAG 2), where it is too small.
FAINT = """() => {
  const channel = c => { c /= 255; return c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4 }
  const light = c => .2126 * channel(c[0]) + .7152 * channel(c[1]) + .0722 * channel(c[2])
  const rgb = text => text.match(/[\\d.]+/g).map(Number)
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor)
      if (c.length < 4 || c[3] > 0) return c
    }
    return [255, 255, 255]
  }
  const wrong = []
  for (const e of document.querySelectorAll('main *, header *, nav *')) {
    const own = [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim())
    if (!own || !e.getClientRects().length || e.closest('svg')) continue
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))]
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05)
    if (ratio < 4.5) wrong.push(e.className + ' ' + e.textContent.slice(0, 30) + ' ' + ratio)
  }
  return wrong
}"""


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    with playwright.sync_playwright() as p:
        try:
            chromium = p.chromium.launch(executable_path=path)
        except playwright.Error as e:
            pytest.skip(f"no Chromium that starts: {str(e).splitlines()[0]}")
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, run_folder):
    """A function (width, colour scheme) -> the page, opened; nothing may go wrong in it."""
    report_command.main([str(run_folder)])
    troubles = []

    def open_page(width, scheme="light", path=run_folder / "report.html"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda r: r.url.startswith("file:") or troubles.append(r.url))
        page.goto(f"file://{path}")
        return page

    yield open_page
    assert troubles == []


@pytest.mark.parametrize("width, scheme", [(320, "dark"), (400, "light"), (1280, "light")])
def test_in_a_browser(opened, width, scheme):
    """Sections present, everything readable, no sideways scrolling, all folds open."""
    page = opened(width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(FAINT) == []
    for link in page.query_selector_all("nav a"):
        target = page.query_selector(link.get_attribute("href"))
        assert target.query_selector("h2").is_visible()
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 27)"
    assert dark == (scheme == "dark")


def test_by_keyboard(opened):
    """Tab reaches the way past the menu first, then links, tables and folds; Enter opens a fold."""
    page = opened(400)
    names = []
    for _ in range(60):
        page.keyboard.press("Tab")
        focus = page.evaluate(
            "[document.activeElement.tagName, document.activeElement.className, "
            "getComputedStyle(document.activeElement).outlineStyle]"
        )
        names.append((focus[0], focus[1]))
        assert focus[2] != "none"
        if focus[0] == "SUMMARY" and not page.evaluate("document.activeElement.parentElement.open"):
            page.keyboard.press("Enter")
            assert page.evaluate("document.activeElement.parentElement.open")
            break
    assert names[0] == ("A", "skip") and names[1][0] == "A"
    assert ("DIV", "scroll") in names and names[-1][0] == "SUMMARY"


def test_a_picture_of_the_page(browser, run_folder, tmp_path):
    """In a process of its own, as a process has one playwright at a time."""
    path = tmp_path / "page.png"
    command = [sys.executable, "-m", "report", str(run_folder), "--picture", str(path)]
    subprocess.run(command, cwd=HERE, check=True)
    image = path.read_bytes()
    width, height = struct.unpack(">II", image[16:24])
    assert image.startswith(PNG) and width == WIDTH and 600 < height < 2000


def test_the_comparison_in_a_browser(opened, run_folder, tmp_path):
    other = shutil.copytree(run_folder, tmp_path / "tiny-1")
    report_command.main([str(run_folder), str(other)])
    page = opened(400, path=tmp_path / "report.html")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert page.evaluate(FAINT) == []
