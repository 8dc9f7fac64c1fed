"""What CONTRIBUTING.md promises: a source, a setting, a reward is added in one place.

A suite: tests/test_benchmarks.py, test_a_new_suite_is_one_record.
"""

import concurrent.futures
import dataclasses
import json
import pathlib

import pytest

import config
import rlvr
from corpus import sources
from corpus.prepare import prepare_corpus
from grader.grade import Result


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
    with pytest.raises(config.UserError, match="--warp 0: expected a number of at least 1"):
        config.parse(["--warp", "0"], {}, "")
    with pytest.raises(config.UserError, match="--warp x: expected a whole number"):
        config.parse(["--warp", "x"], {}, "")
    assert "warp" in config.deciding("rlvr") and "warp" not in config.deciding("em")
    with pytest.raises(SystemExit):
        config.parse(["--help"], {}, "")
    assert "a number of one's own" in capsys.readouterr().out


def finished(verdict):
    """The Future of a program that was graded."""
    future = concurrent.futures.Future()
    future.set_result(Result(verdict, 0.1, "process", "separate"))
    return future


def test_a_reward_is_one_function(monkeypatch):
    """A function in the table of rewards; --reward takes its name, and refuses any other."""

    def short_and_right(samples, cfg, grader):
        return [(s.verdict == "passed") / len(s.ids) for s in samples]

    monkeypatch.setitem(rlvr.REWARDS, "short", short_and_right)
    cfg, _ = config.parse(["--reward", "short", "--completions", "2"], {}, "")
    rlvr.check_reward(cfg)
    with pytest.raises(config.UserError, match="--reward brief: expected one of pass, .*short"):
        rlvr.check_reward(config.make(reward="brief"))
    verdicts = ["passed", "wrong_answer", "passed", "timeout"]
    samples = [
        rlvr.Sample(None, [1], [2] * (i + 1), [-1.0] * (i + 1), True, i // 2, "", finished(verdict))
        for i, verdict in enumerate(verdicts)
    ]
    graded, _ = rlvr.grade_samples(samples, cfg, None)
    assert [s.reward for s in graded] == [1.0, 0.0, 1 / 3, 0.0]
    assert list(rlvr.credit_samples(graded, cfg)) == [True] * 4
    assert graded[0].advantage > 0 > graded[1].advantage
