"""What CONTRIBUTING.md promises: a suite, a source, a setting, a reward is added in one place."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import pytest

import config
from corpus import sources
from corpus.prepare import prepare_corpus

ROOT = pathlib.Path(__file__).resolve().parent.parent  # the project's folder

SUITE = """
import contextlib, io, json
from benchmarks import suites
from tasks import Task
TESTS = "assert twice(2) == 4"
TASK = Task("own/0", "def twice(x):", "\\n    return 2 * x", TESTS, "twice")
suites.SUITES["own"] = suites.Suite(
    lambda data_dir: [TASK, TASK.__class__(**{**vars(TASK), "name": "own/1"})],
    (),
    references=True,
    trained_as="own",
    checked=True,
    slow={"own/0": 5.0},
    not_gradable={"own/1": "two right answers"},
)
from benchmarks import __main__ as command
from corpus import decontaminate
out = io.StringIO()
with contextlib.redirect_stdout(out):
    command.main(["--list", "--data-dir", "nowhere"])
    command.main(["--references", "own"])
print(json.dumps({
    "names": [task.name for task in suites.load("own")],
    "limits": [task.time_limit for task in suites.load("own")],
    "checked": "own" in decontaminate.CHECKED,
    "printed": out.getvalue(),
}))
"""


def run(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_suite_is_one_record():
    """Loading, the listed table, reference grading and decontamination follow from it."""
    seen = run(SUITE)
    assert seen["names"] == ["own/0"] and seen["limits"] == [20.0] and seen["checked"]
    row = next(line for line in seen["printed"].splitlines() if line.startswith("| own "))
    assert [cell.strip() for cell in row.split("|")[2:7]] == ["2", "1", "yes", "yes", "yes"]
    assert "two right answers" in row and "own" in seen["printed"].replace(row, "")


def test_a_source_is_one_function(tok, tmp_path, monkeypatch):
    """A source of a kind of its own: cells of notebooks, written out as files."""
    cells = ["def f(x):\n    y = x + 1\n    return y\n", "def g(x):\n    z = x * 2\n    return z\n"]
    (tmp_path / "a.ipynb").write_text(json.dumps(cells))

    def notebook(spec):
        files = []
        for i, cell in enumerate(json.loads(pathlib.Path(spec).read_text())):
            path = tmp_path / f"cell{i}.py"
            path.write_text(cell)
            files.append((path.name, path, path.stat().st_size))
        return sources.Source(spec, files, {"kind": "notebook"})

    known = sources.source
    monkeypatch.setattr(
        sources, "source", lambda spec: (notebook if spec.endswith(".ipynb") else known)(spec)
    )
    corpus = prepare_corpus(
        str(tmp_path / "a.ipynb"), tok, 200, near=0, cache=str(tmp_path), progress=False, cores=1
    )
    assert sorted(snip.name for snip in corpus) == ["cell0.py:f", "cell1.py:g"]


def test_a_setting_is_one_line(monkeypatch, capsys):
    """The command line, --help, its smallest value and the identity of results follow from it."""
    line = config.setting(3, "a number of one's own", of="rlvr", least=1)
    wider = dataclasses.make_dataclass("Config", [("warp", int, line)], bases=(config.Config,))
    monkeypatch.setattr(config, "Config", wider)
    assert config.parse([], {}, "")[0].warp == 3
    assert config.parse(["--warp", "5"], {}, "")[0].warp == 5
    with pytest.raises(config.UserError, match="--warp 0: expected at least 1"):
        config.parse(["--warp", "0"], {}, "")
    with pytest.raises(config.UserError, match="--warp x: expected a whole number"):
        config.parse(["--warp", "x"], {}, "")
    assert "warp" in config.deciding("rlvr") and "warp" not in config.deciding("em")
    with pytest.raises(SystemExit):
        config.parse(["--help"], {}, "")
    assert "a number of one's own" in capsys.readouterr().out
