"""The runner of the tables: what it runs, what it leaves alone, and the table's figures."""

import dataclasses
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest

import config
import train
from config import UserError
from report import experiments

HERE = pathlib.Path(__file__).resolve().parent.parent


def arguments(name):
    """Arguments of train.py, of every command of an experiment."""
    for folder, options in experiments.folders_of(name, 3, "runs").items():
        for row in experiments.EXPERIMENTS[name]:
            for argv in experiments.commands_of(row, folder, options):
                yield argv[2:]


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_every_command_is_one_of_train(name):
    """Each parses, and names its seed; each row's last one is like no other."""
    for argv in arguments(name):
        cfg, _ = config.parse(argv, train.OPTIONS, "")
        assert cfg.seed == 3
    last = [row.command.split(" && ")[-1] for row in experiments.EXPERIMENTS[name]]
    assert len(set(last)) == len(last)


def test_seeds():
    assert experiments.seeds_of("0-3,7") == [0, 1, 2, 3, 7]
    assert experiments.seeds_of("2,0-2,2") == [2, 0, 1]
    for text in ("1,x", "1-2-5", "3-1", "", "-1"):
        with pytest.raises(UserError, match=f"--seeds {text}: expected"):
            experiments.seeds_of(text)


def test_rows_bring_what_they_need():
    """A base and NTP are made by the row's own commands, another start by its row."""
    needed = {
        "rlvr-base": ["rlvr-base"],
        "rlvr-ntp": ["rlvr-ntp"],
        "rlvr-group": ["group", "rlvr-group"],
        "rlvr-ra3,best-of-20": ["best-of-20", "ra3", "rlvr-ra3"],
    }
    for text, models in needed.items():
        assert [row.model for row in experiments.rows_of("lengths", text)] == models
    rows = {row.model: row for row in experiments.EXPERIMENTS["lengths"]}
    stages = [command.split()[1] for command in rows["rlvr-ntp"].command.split(" && ")]
    assert stages == ["pretrain", "ntp", "rlvr"]


def test_models_of_other_settings_are_refused(tmp_path, monkeypatch):
    """A folder of `default` serves `penalty`, which has its row, and not `weak-notes`."""
    for row in ("ra3", "best-of-20"):
        values = dict(name=row, estep="best-of-n", best_of=20) if row != "ra3" else {}
        settings = dataclasses.asdict(config.make(seed=0, **values))
        (tmp_path / "0").mkdir(exist_ok=True)
        (tmp_path / "0" / f"settings-{row}.json").write_text(json.dumps(settings))
    calls = []
    monkeypatch.setattr(experiments.Running, "run", fake_train(calls))
    for name in ("default", "penalty"):
        experiments.main([name, "--rows", "ra3", "--seeds", "0", "--out", str(tmp_path)])
        assert (tmp_path / f"{name}.md").exists() and len(calls) == 1
    with pytest.raises(UserError, match=r"0: best-of-20 was made with useful=0.3 and not 0.1"):
        experiments.main(["weak-notes", "--rows", "ra3", "--seeds", "0", "--out", str(tmp_path)])
    assert not (tmp_path / "weak-notes.md").exists() and len(calls) == 1
    settings = tmp_path / "0" / "settings-ra3.json"
    longer = dict(json.loads(settings.read_text()), iters=5)
    settings.write_text(json.dumps(longer))
    experiments.main(["default", "--rows", "ra3", "--seeds", "0", "--out", str(tmp_path)])
    settings.write_text(json.dumps(dict(longer, iters=1)))
    with pytest.raises(UserError, match=r"0: ra3 was made with iters=1 and not 2"):
        experiments.main(["default", "--rows", "ra3", "--seeds", "0", "--out", str(tmp_path)])


def test_a_result_without_its_figure_is_made_again(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(experiments.Running, "run", fake_train(calls))
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "results.json").write_text('{"ra3": {"elbo": -1.0}}')
    experiments.main(["default", "--rows", "ra3", "--seeds", "0", "--out", str(tmp_path)])
    assert len(calls) == 1 and "| ra3 | 1 | 0.900 |" in (tmp_path / "default.md").read_text()


def fake_train(calls, fails=()):
    """A stand-in for Running.run: leaves a result in the folder, or fails."""

    def run(self, argv, **options):
        calls.append(shlex.join(argv[2:]))
        name = argv[argv.index("--name") + 1] if "--name" in argv else "ra3"
        if name in fails:
            return 2
        folder = pathlib.Path(argv[argv.index("--out") + 1])
        seed = int(argv[argv.index("--seed") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        for made in ("base.pt", "tokenizer.txt", "settings-base.json"):
            (folder / made).write_text("base")
        path = folder / "results.json"
        results = json.loads(path.read_text()) if path.exists() else {}
        rate = {"ra3": 0.9 + seed / 100, "best-of-20": 0.8}.get(name, 0.5)
        results[name] = {"pass@1": rate, "flops": 2e12}
        path.write_text(json.dumps(results))
        return 0

    return run


def test_a_table_from_nothing(tmp_path, monkeypatch, capsys):
    """Stopped by a failure it names the log; given again it runs what is missing, no more."""
    calls = []
    argv = ["default", "--seeds", "0-2", "--out", str(tmp_path / "runs")]
    monkeypatch.setattr(experiments.Running, "run", fake_train(calls, ["best-of-20-a-line"]))
    with pytest.raises(UserError, match=r"0: best-of-20-a-line: exit status 2; see .*0-best-of-20"):
        experiments.main(argv)
    monkeypatch.setattr(experiments.Running, "run", fake_train(calls))
    before = len(calls)
    experiments.main(argv)
    assert all("best-of-20-a-line" in call and "--resume" in call for call in calls[before:])
    assert len(calls) == before + 3
    experiments.main(argv)
    assert len(calls) == before + 3
    text = (tmp_path / "runs" / "default.md").read_text()
    assert "| best-of-20 | 3 | 0.800 | 0.800 ± 0.000 |" in text
    assert "| ra3 | 3 | 0.900 | 0.910 ± 0.010 |" in text and "| 2.0 ± 0.0 |" in text
    assert "- ra3 - best-of-20: +11.0 points of pass@1, 95% [+8.5, +13.5], 3 seeds" in text


def test_lengths_share_a_base(tmp_path, monkeypatch):
    """The second length of a seed begins with the first one's base model."""
    calls = []
    monkeypatch.setattr(experiments.Running, "run", fake_train(calls))
    argv = ["lengths", "--seeds", "4", "--rows", "ra3,best-of-20", "--out", str(tmp_path)]
    experiments.main([*argv, "--stages", "4,6"])
    assert len(calls) == 4
    experiments.main([*argv, "--stages", "1,4"])
    assert len(calls) == 6
    for stages in (1, 4, 6):
        for name in ("base.pt", "tokenizer.txt", "settings-base.json"):
            assert (tmp_path / f"{stages}-stages" / "4" / name).read_text() == "base"
    assert "--stages 6 " in calls[3] and "--stages 1 " in calls[5]
    assert "--resume" in calls[2]  # the folder is there before its first command
    (tmp_path / "2-stages" / "4").mkdir(parents=True)  # stopped before its first result
    experiments.main([*argv, "--stages", "1,4"])
    assert len(calls) == 6
    table = (tmp_path / "lengths.md").read_text()
    assert "4-stages" in table and "8-stages" not in table and "group" not in table
    assert "2-stages" not in table


STOPPED = """
import os, signal, sys, train
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run behind a &
from config import command
from report import experiments
def commands_of(row, folder, options):
    os.write(1, folder.encode() + bytes([10]))  # in one piece, from several threads
    yield [sys.executable, "-c", "import time; time.sleep(60)"]
experiments.commands_of = commands_of
command(experiments.main, "stopped")
"""


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_ends_what_it_runs(tmp_path, number, status):
    """At once, whether the terminal tells all processes or only this one; no seed follows."""
    argv = ["default", "--seeds", "0-3", "--jobs", "2", "--out", str(tmp_path)]
    words = [sys.executable, "-c", STOPPED, *argv]
    options = dict(stdout=subprocess.PIPE, text=True, cwd=HERE, start_new_session=True)
    with subprocess.Popen(words, **options) as process:
        begun = {process.stdout.readline().strip() for _ in range(2)}
        time.sleep(0.5)  # both children are there
        process.send_signal(number)
        rest, _ = process.communicate(timeout=20)
    assert process.returncode == status and not rest
    assert begun == {str(tmp_path / seed) for seed in "01"}
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_rows_and_stages_that_are_not_there():
    with pytest.raises(UserError, match="--rows ra3,ra4: expected some of best-of-20,"):
        experiments.main(["lengths", "--rows", "ra3,ra4"])
    with pytest.raises(UserError, match="--stages 5: expected some of 1,2,3"):
        experiments.main(["lengths", "--stages", "5"])
    with pytest.raises(UserError, match="--stages 2: .*for the experiment lengths"):
        experiments.main(["default", "--stages", "2"])
    with pytest.raises(UserError, match="--rows : expected some of"):
        experiments.main(["default", "--rows", ""])
    with pytest.raises(UserError, match="no experiment: expected one of default,"):
        experiments.main(["--seeds", "1"])
    with pytest.raises(UserError, match="--rows ,: expected some of"):
        experiments.main(["default", "--rows", ","])


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for out in ("file", "file/below"):
        with pytest.raises(UserError, match=f"--out .*{out}: cannot be written"):
            experiments.main(["default", "--seeds", "0", "--out", str(tmp_path / out)])


def test_the_list_of_one_experiment(capsys):
    experiments.main(["rlvr", "--list", "--rows", "rlvr-ra3-silent"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "rlvr:" and len(lines) == 3 and "--stage em" in lines[1]
