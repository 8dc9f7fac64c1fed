"""--track: what a mirror holds against metrics.jsonl, read back from each tracker's own files."""

import json
import os
import struct
import subprocess
import sys

import pytest

import run as runs
from config import UserError, make
from formats import track
from worlds import HERE

LINES = [
    {"phase": "diagnose", "gain": 0.25, "graphs": 0, "estep": "reinforce"},
    {"phase": "estep", "iteration": 0, "step": 0, "reward": -1.5, "kl": None},
    {"phase": "estep", "iteration": 0, "step": 1, "reward": -0.75, "flops": 2.0**50},
    {"phase": "rlvr", "step": 2, "verdicts": {"passed": 3, "wrong answer": 1}},
]
SERIES = {
    "diagnose/gain": [(0, 0.25)],
    "diagnose/graphs": [(0, 0.0)],
    "estep/iteration": [(1, 0.0), (2, 0.0)],
    "estep/step": [(1, 0.0), (2, 1.0)],
    "estep/reward": [(1, -1.5), (2, -0.75)],
    "estep/flops": [(2, 2.0**50)],
    "rlvr/step": [(3, 2.0)],
    "rlvr/verdicts/passed": [(3, 3.0)],
    "rlvr/verdicts/wrong answer": [(3, 1.0)],
}


def test_numbers_of_a_line():
    """Every line's, without any tracker: no words, nothing that is null."""
    series = {}
    for step, line in enumerate(LINES):
        for tag, number in track.tagged_numbers({"model": "ra3", **line, "wall_s": 1.5}).items():
            series.setdefault(tag, []).append((step, number))
    assert series == SERIES


def wait_for(package):
    return pytest.importorskip(package, reason=f"the package {package} (extra track) is missing")


# ---------------------------------------------------------------- TensorBoard


def log_lines(out, name, lines, before=0):
    """Let a process of its own log lines of a model, behind `before` lines that it keeps."""
    run = runs.Run(make(out=str(out), track="tensorboard", c=0.125), prepare=False)
    run.keep_metrics(name, before)
    run.lines = before
    for line in lines:
        run.log(name, **line)
    return run.metrics(name)


def test_tensorboard_holds_every_line(tmp_path, monkeypatch):
    """Of two models; one of them resumed, with a line dropped that is then logged again."""
    wait_for("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    closing = []
    monkeypatch.setattr(track.atexit, "register", closing.append)
    log_lines(tmp_path, "base", LINES[:1])
    log_lines(tmp_path, "ra3", LINES[:3])
    rows = log_lines(tmp_path, "ra3", LINES[2:], before=2)
    for close in closing:
        close()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "ra3")).Reload()
    tags = events.Tags()["scalars"]
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}
    assert scalars == SERIES
    times = [event.wall_time for event in events.Scalars("estep/reward")]
    assert times == [row["wall_s"] for row in rows[1:3]]
    settings = events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    assert '"c": 0.125' in settings and '"seed": 0' in settings
    of_base = EventAccumulator(str(tmp_path / "tensorboard" / "base")).Reload()
    assert of_base.Tags()["scalars"] == ["diagnose/gain", "diagnose/graphs"]


# ---------------------------------------------------------------- Weights & Biases, trackio

MIRROR = """
import json, sys, config
from formats import track
cfg = config.make(out=sys.argv[2], track=sys.argv[1], c=0.125)
track.check_tracker(cfg.track)
send = track.open_mirror(cfg, "ra3")
for step, line in enumerate(json.loads(sys.argv[3])):
    send({"model": "ra3", **line, "wall_s": 1.5 + step}, step)
"""


def mirror(tracker, out, **variables):
    """Mirror LINES in a process of its own."""
    subprocess.run(
        [sys.executable, "-c", MIRROR, tracker, str(out), json.dumps(LINES)],
        cwd=HERE,
        env={**os.environ, **variables},
        capture_output=True,
        check=True,
    )


def series_of(steps):
    """{tag: [(step, number)]} of {step: {tag: number}}; the clock's are looked at here."""
    assert [numbers["wall_s"] for numbers in steps.values()] == [1.5, 2.5, 3.5, 4.5]
    series = {}
    for step, numbers in steps.items():
        for tag in numbers.keys() & SERIES.keys():
            series.setdefault(tag, []).append((step, numbers[tag]))
    return series


def records(path):
    """The records of a .wandb file that is smaller than a block: LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    content = path.read_bytes()
    assert len(content) < 2**15
    position = 7
    while position < len(content):
        length, kind = struct.unpack_from("<HB", content, position + 4)
        assert kind == 1  # a whole record
        position += 7
        yield Record.FromString(content[position : position + length])
        position += length


def test_wandb_holds_every_line(tmp_path):
    wait_for("wandb")
    mirror("wandb", tmp_path, WANDB_MODE="offline", WANDB_SILENT="true")
    [path] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    steps, settings, run = {}, {}, None
    for record in records(path):
        if record.HasField("history"):
            items = record.history.item
            numbers = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
            steps[record.history.step.num] = numbers
        elif record.HasField("run"):
            run = record.run
            settings = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert series_of(steps) == SERIES
    assert settings["c"] == 0.125 and settings["seed"] == 0
    assert (run.project, run.run_group) == ("ra3", tmp_path.name)
    assert run.display_name == f"{tmp_path.name}/ra3"


READ = """
import json, sys
from trackio.sqlite_storage import SQLiteStorage
name = sys.argv[1] + "/ra3"
lines = SQLiteStorage.get_logs("ra3", name)
print(json.dumps([lines, SQLiteStorage.get_run_config("ra3", name)]))
"""


def test_trackio_holds_every_line(tmp_path):
    wait_for("trackio")
    variables = {"TRACKIO_DIR": str(tmp_path / "trackio")}
    mirror("trackio", tmp_path, **variables)
    read = subprocess.run(
        [sys.executable, "-c", READ, tmp_path.name],
        env={**os.environ, **variables},
        capture_output=True,
        check=True,
    )
    lines, settings = json.loads(read.stdout)
    assert series_of({line["step"]: line for line in lines}) == SERIES
    assert settings["c"] == 0.125


def test_wandb_without_an_account_is_one_line(tmp_path, monkeypatch):
    """Told before anything is prepared."""
    wait_for("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "nosuch"))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"--track wandb: [^\n]* set WANDB_MODE=offline$"):
        track.check_tracker("wandb")


def test_an_unknown_tracker():
    with pytest.raises(UserError, match="--track nosuch: expected one of none, tensorboard, "):
        make(track="nosuch")
