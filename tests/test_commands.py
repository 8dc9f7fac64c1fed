"""What every command does at its edges: progress in a log, a closed pipe, a full disk, Ctrl-C."""

import io
import os
import signal
import subprocess
import sys

import pytest
import torch
import tqdm

import config
from formats import __main__ as formats_command
from formats.checkpoints import write_whole
from hindsight import __main__ as hindsight_command
from worlds import HERE

# ---------------------------------------------------------------- progress


class Clock:
    """A clock that goes on by a step whenever it is read."""

    def __init__(self, step):
        self.seconds = 0.0
        self.step = step

    def monotonic(self):
        self.seconds += self.step
        return self.seconds


def lines_of(monkeypatch, capsys, updates, step, **options):
    """The lines that so many updates print, step seconds apart."""
    monkeypatch.setattr(config, "time", Clock(step))
    for _ in config.progress_bar(range(updates), **options):
        pass
    return capsys.readouterr().err.splitlines()


def test_a_log_gets_plain_lines(monkeypatch, capsys):
    """A thousand steps of a second: some thirty lines, and no carriage return."""
    lines = lines_of(monkeypatch, capsys, 1000, 1.0, desc="pretrain", unit="step")
    assert 10 < len(lines) < 40 and not any("\r" in line for line in lines)
    assert lines[0].startswith("pretrain: 30/1000 [") and "s/step" in lines[0]
    assert lines[-1].startswith("pretrain: 1000/1000 [")


@pytest.mark.parametrize("hours, most", [(1, 65), (24, 130), (24 * 30, 200)])
def test_lines_grow_with_the_logarithm_of_the_time(monkeypatch, capsys, hours, most):
    lines = lines_of(monkeypatch, capsys, 36_000, hours / 10, desc="long")
    assert most / 3 < len(lines) < most


@pytest.mark.parametrize("options", [{"leave": False}, {"disable": True}])
def test_a_short_bar_leaves_no_line(monkeypatch, capsys, options):
    assert lines_of(monkeypatch, capsys, 20, 1.0, **options) == []


def test_progress_by_hand(monkeypatch, capsys):
    """update, figures behind the progress, bytes; and one last line, however often it is closed."""
    monkeypatch.setattr(config, "time", Clock(20.0))
    with config.progress_bar(total=4_000_000, desc="read", unit="B", unit_scale=True) as bar:
        bar.set_postfix(loss="1.25")
        bar.update(1_000_000)
        bar.update(3_000_000)
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" [")[0] for line in lines] == ["read: 4.00M/4.00M"] * 2
    assert all(line.endswith("loss=1.25]") for line in lines)


def test_a_terminal_gets_a_bar(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    bar = config.progress_bar(range(3), desc="steps")
    assert isinstance(bar, tqdm.tqdm) and list(bar) == [0, 1, 2]
    assert "\r" in terminal.getvalue()


# ---------------------------------------------------------------- how a command ends


def run_command(body, **options):
    """Run `body`, the text of a main(argv), as a command."""
    text = f"import config\ndef main(argv):\n    {body}\nconfig.command(main, 'stopped')\n"
    return subprocess.run(
        [sys.executable, "-c", text], cwd=HERE, stderr=subprocess.PIPE, text=True, **options
    )


@pytest.mark.parametrize("lines", [1, 100_000])  # noticed at the end, and in the midst
def test_a_closed_pipe_ends_quietly(lines):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        ended = run_command(f"[print('row', i) for i in range({lines})]", stdout=closed)
    assert ended.stderr == "" and ended.returncode == 128 + signal.SIGPIPE


def test_help_into_a_closed_pipe():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        ended = run_command("config.parse(['--help'], {}, 'text')", stdout=closed)
    # argparse itself says nothing of a pipe that is closed before its text is out.
    assert ended.stderr == "" and ended.returncode in (0, 128 + signal.SIGPIPE)


def test_lines_go_out_as_they_come():
    """Those of a run that is killed are in its log."""
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONUNBUFFERED"}
    body = "print('row'); import os; os._exit(9)"
    ended = run_command(body, stdout=subprocess.PIPE, env=environment)
    assert (ended.stdout, ended.returncode) == ("row\n", 9)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize(
    "body", ["print('row')", "import pathlib; pathlib.Path('/dev/full').write_text('row')"]
)
def test_a_full_disk_is_one_line(body):
    with open("/dev/full", "w") as full:
        ended = run_command(body, stdout=full)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert "No space left on device; make room" in ended.stderr


def test_other_errors_keep_their_traceback():
    ended = run_command("open('/nowhere/at/all')", stdout=subprocess.PIPE)
    assert ended.returncode == 1 and "FileNotFoundError" in ended.stderr


LIMITED = """
import resource, signal, sys, torch, config
from formats.checkpoints import write_whole
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
def main(argv):
    write_whole({"weights": torch.zeros(100_000)}, argv[0])
config.command(main)
"""


def test_a_checkpoint_that_does_not_fit_is_one_line(tmp_path):
    """torch.save fails with an error of its own; the file that was there stays, and no part."""
    path = tmp_path / "ra3.state"
    write_whole({"weights": torch.ones(3)}, path)
    ended = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], cwd=HERE, capture_output=True, text=True
    )
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert f"{path}: cannot be written (File too large); make room" in ended.stderr
    assert torch.load(path)["weights"].tolist() == [1, 1, 1] and len(os.listdir(tmp_path)) == 1


def test_writing_leaves_other_errors_alone():
    for error in (ValueError("no"), RuntimeError("no"), BrokenPipeError()):
        with pytest.raises(type(error)), config.writing("file"):
            raise error
    with pytest.raises(config.UserError, match=r"^--out file: cannot be written \(full\); wait$"):
        with config.writing("file", "--out", "wait"):
            raise OSError(28, "full")


# ---------------------------------------------------------------- a setting that may be meant


@pytest.mark.parametrize(
    "typed, meant",
    [
        ("--gruop", "--group"),
        ("--num_samples", "--samples"),
        ("--itres=3", "--iters"),
        ("--learning-rate", ""),
        ("--batch-size", ""),
        ("--verbose", ""),
        ("--nosuch", ""),
    ],
)
def test_a_suggestion_is_near(typed, meant):
    with pytest.raises(config.UserError) as error:
        config.parse([typed], {}, "text")
    hint = f"; did you mean {meant}?" if meant else ""
    assert str(error.value).endswith(f": no such setting{hint}; see --help")


# ---------------------------------------------------------------- numbers of other commands


@pytest.mark.parametrize(
    "main, argv, message",
    [
        (formats_command.main, "export a.pt b --shard-gb 0", "--shard-gb 0.0: .* above 0"),
        (formats_command.main, "export a.pt b --shard-gb nan", "--shard-gb nan: .* above 0"),
        (
            formats_command.main,
            "export a.pt b --shard-gb inf",
            "--shard-gb inf: .* a finite number",
        ),
        (hindsight_command.main, "--soften nan", "--soften nan: expected a number above 0"),
        (hindsight_command.main, "--soften inf", "--soften inf: expected a finite number"),
        (hindsight_command.main, "--per -1", "--per -1: expected a number of at least 0"),
    ],
)
def test_numbers_have_a_range(main, argv, message):
    with pytest.raises(config.UserError, match=message):
        main(argv.split())
