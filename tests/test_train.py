"""Runs end to end at the smallest size: exact resume, limits, results, mistakes."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch

import run as runs
import train
from config import SECTIONS, Config, UserError
from worlds import HERE, TINY, Stop, listing, metrics, same_weights


def run(out, *more):
    train.main([*TINY, "--out", str(out), *more])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One uninterrupted run from nothing: pretrain, ntp, two EM iterations, evaluation."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    run(out, "--save-every", "1000", "--report", "true")
    return out


# ---------------------------------------------------------------- exact resume

KILLED = """
import sys, time, train, run as runs
log = runs.Run.log
def stall(run, name, **m):
    log(run, name, **m)
    if m["step"] == 23:
        print("there", flush=True)
        time.sleep(600)
runs.Run.log = stall
train.main(sys.argv[1:])
"""
STOPS = [
    ("ntp", "mstep", 0, 4),
    ("ntp", "mstep", 1, 3),
    ("ra3", "diagnose", 0, None),
    ("ra3", "estep", 0, 2),
    ("ra3", "infuse", 0, None),
    ("ra3", "mstep", 0, 0),
    ("ra3", "mstep", 0, 3),
    ("ra3", "heldout", 0, None),
    ("ra3", "estep", 1, 3),
    ("ra3", "mstep", 1, 5),
]


def stop_after(stop, log, monkeypatch):
    """Let a run stop as soon as a line of metrics is written.

    stop   (model, phase, iteration, step) of the line
    log    Run.log as it is
    """

    def log_and_stop(self, name, **m):
        log(self, name, **m)
        if (name, m["phase"], m.get("iteration"), m.get("step")) == stop:
            raise Stop

    monkeypatch.setattr(runs.Run, "log", log_and_stop)


def test_resume_is_exact(whole, tmp_path, monkeypatch):
    """A run that is killed and stopped many times, against the uninterrupted run.

    It is killed in pretraining (SIGKILL, with half a line written), and after its resumes stopped
    in each phase of ntp and of both EM iterations. All weights are equal bit for bit, all metrics
    but times, all results.
    """
    out = tmp_path / "run"
    argv = ["--save-every", "2"]
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, *TINY, "--out", str(out), *argv],
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as child:
        assert child.stdout.readline() == b"there\n"
        child.send_signal(signal.SIGKILL)
    assert (out / "base.state").exists() and not (out / "base.pt").exists()
    with open(out / "metrics.jsonl", "a") as f:
        f.write('{"model": "base", "ph')

    log = runs.Run.log
    for stop in STOPS:
        stop_after(stop, log, monkeypatch)
        with pytest.raises(Stop):
            run(out, *argv, "--resume")
        if stop[1:3] == ("estep", 0):  # resumed with other settings: refused, nothing changed
            before = listing(out)
            for other in ("--estep-lr", "--mstep-steps"):
                with pytest.raises(
                    UserError, match=f"{other[2:].replace('-', '_')}=.*same settings"
                ):
                    run(out, *argv, "--resume", other, "1")
            assert listing(out) == before
    monkeypatch.setattr(runs.Run, "log", log)
    run(out, *argv, "--resume")

    for name in ("base", "ntp", "ra3"):
        assert same_weights(whole / f"{name}.pt", out / f"{name}.pt"), name
    assert metrics(out) == metrics(whole)
    assert json.load(open(out / "results.json")) == json.load(open(whole / "results.json"))
    assert not list(out.glob("*.state")) + list(out.glob("*.part"))

    done = {p: p.stat().st_mtime_ns for p in out.glob("*.pt")}  # once more: nothing is left to do
    run(out, *argv, "--resume", *"--eval-tasks 1 --samples 1 --elbo-samples 1".split())
    assert {p: p.stat().st_mtime_ns for p in out.glob("*.pt")} == done


def test_starting_over_forgets_what_was_unfinished(whole, tmp_path, monkeypatch):
    """An old state never meets new documents.

    Stopped in the second M-step, then started over without --resume and stopped with the first
    iteration's documents just written: the state of the second is not beside them.
    """
    out, log = copied(whole, tmp_path), runs.Run.log
    for stop, left in (
        (("ra3", "mstep", 1, 3), ["ra3.docs", "ra3.state"]),
        (("ra3", "infuse", 0, None), ["ra3.docs"]),
    ):
        stop_after(stop, log, monkeypatch)
        with pytest.raises(Stop):
            run(out, "--save-every", "2", "--estep", "none", "--models", "ra3")
        assert sorted(p.name for p in out.glob("ra3.*")) == left


def test_the_run_thinks(whole):
    """The comparison above is not empty: thoughts are trained on, and change the weights."""
    lines = [line for line in metrics(whole) if line["model"] == "ra3"]
    assert all(
        any(line["think_share"] > 0 for line in lines if line["phase"] == phase)
        for phase in ("estep", "infuse")
    )
    assert any(line.get("ce_thought") for line in lines) and not same_weights(
        whole / "ra3.pt", whole / "ntp.pt"
    )
    assert any(line["grad_norm"] > 0 for line in lines if line["phase"] == "estep")


# ---------------------------------------------------------------- limits and results


def copied(whole, tmp_path):
    out = tmp_path / "copy"
    out.mkdir()
    for name in ("base.pt", "ntp.pt", "tokenizer.txt", "metrics.jsonl"):
        shutil.copy(whole / name, out)
    return out


@pytest.mark.parametrize("how", ["--c inf", "--estep hindsight --selection act"])
def test_without_thoughts_it_is_ntp(whole, tmp_path, how):
    """RA3 at c = inf, and with hindsight that selects <act>, against NTP.

    The same weights bit for bit, the same losses, no thought; its results are numbers. A name of
    its own keeps it apart from ra3 and ntp.
    """
    out = copied(whole, tmp_path)
    run(out, *how.split(), "--name", "no-thoughts", "--models", "ntp")
    assert (
        same_weights(out / "no-thoughts.pt", whole / "ntp.pt")
        and same_weights(out / "ntp.pt", whole / "ntp.pt")
        and not (out / "ra3.pt").exists()
    )
    lines = {
        name: [
            line["loss"]
            for line in metrics(out)
            if line["model"] == name and line["phase"] == "mstep"
        ]
        for name in ("ntp", "no-thoughts")
    }
    assert lines["ntp"] == lines["no-thoughts"] and len(lines["ntp"]) == 12
    results = json.load(open(out / "results.json"))
    assert set(results) == {"ntp", "no-thoughts"}
    for result in results.values():
        limits = [limit for interval in result.pop("intervals").values() for limit in interval]
        figures = [value for key, value in result.items() if key != "measured"] + limits
        assert len(figures) > 10 and all(abs(figure) < float("inf") for figure in figures)


def test_results(whole):
    """The figures of three models are in results.json, and the programs they wrote beside it."""
    results = json.load(open(whole / "results.json"))
    assert list(results) == ["base", "ntp", "ra3"]
    for name, said in results.items():
        assert {
            "pass@1",
            "pass@5",
            "greedy",
            "ce_code",
            "elbo",
            "elbo_no_think",
            "think_share",
            "think_len",
            "duration",
            "flops",
        } <= set(said)
        how = said.pop("measured")
        assert how["data"] == "domain" and how["samples"] == 5
        intervals = said.pop("intervals")
        assert list(intervals) == ["pass@1", "pass@5", "greedy", "elbo", "elbo_no_think"]
        assert all(low <= said[key] <= high for key, (low, high) in intervals.items())
        assert all(isinstance(v, float) for v in said.values())
        assert 0 <= said["pass@1"] <= said["pass@5"] <= 1
        assert len(open(whole / f"samples-{name}.jsonl").readlines()) == 2
    assert results["ra3"]["flops"] > results["ntp"]["flops"] > 0


def test_the_page_at_the_end(whole):
    """report.html, with the sections of what was measured, and nothing outside it."""
    page = (whole / "report.html").read_text()
    titles = re.findall("<h2[^>]*>([^<]*)<", page)
    assert titles[:3] == ["Results", "Curves", "Thoughts on held-out expert code"]
    assert "Programs side by side" in titles and "RLVR" not in titles
    assert "http" not in page and "<script" not in page


def test_ntp_of_equal_compute(whole, tmp_path):
    """--match: the FLOPs of the baseline are those of the model it matches, to within a step."""
    out = copied(whole, tmp_path)
    shutil.copy(whole / "ra3.pt", out)
    run(out, "--stage", "ntp", "--match", "ra3", "--block", "400")
    flops = {
        name: torch.load(out / f"{name}.pt", weights_only=True)["extra"]["flops"]
        for name in ("ra3", "ntp-as-ra3")
    }
    assert 0.6 < flops["ntp-as-ra3"] / flops["ra3"] < 1.1


def test_every_metric_is_defined(whole, tmp_path):
    """Every key of metrics.jsonl and results.json is in docs/metrics.md, those of RLVR too."""
    defined = set(re.findall(r"`([^`\s]+)`", (HERE / "docs/metrics.md").read_text()))
    out = copied(whole, tmp_path)
    run(
        out,
        *"--stage rlvr --init base --rl-steps 1 --prompts 1 --completions 2".split(),
        *"--eval-every 1 --reward random --mask-overlong false".split(),
    )
    lines = [json.loads(line) for line in open(out / "metrics.jsonl")]
    assert {"rlvr", "rlvr-heldout"} <= {line["phase"] for line in lines}
    lines += [json.loads(line) for line in open(whole / "metrics.jsonl")]
    keys = {k for line in lines for k in line} | set(json.load(open(whole / "results.json"))["ra3"])
    keys = {re.sub(r"elbo_\d+_samples", "elbo_G_samples", k) for k in keys}
    assert keys <= defined, sorted(keys - defined)


# ---------------------------------------------------------------- mistakes


def test_help_lists_every_setting(capsys, monkeypatch):
    """--help against the fields of Config: each with its text and its default."""
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as stop:
        train.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0 and "--stage" in text and text.count("usage:") == 1
    assert "usage: " in text and "[--setting value ...]" in text
    assert all(f" {title}: " in text for title in SECTIONS.values())
    for f in dataclasses.fields(Config):
        meaning = f.metadata["help"].replace("%%", "%")
        assert f"--{f.name.replace('_', '-')} " in text, f.name
        assert f"{meaning} (default {f.default!r})" in text, f.name


MISTAKES = {  # what is given -> what the answer names
    "--gruop 4": "--gruop.*--group",
    "--group four": "--group four.*whole number",
    "--c much": "--c much.*a number",
    "--c nan": "--c nan.*at least 0",
    "--resume maybe": "--resume maybe.*true or false",
    "--estep best": "--estep best.*best-of-n",
    "--preset huge": "--preset huge.*tiny",
    "--stage train": "--stage.*train.*pretrain",
    "--group 0": "--group 0.*at least 1",
    "--block 90": "--block 90.*--max-tokens",
    "--block 60 --max-tokens 60": "--block 60.*longest snippet",
    "--max-len 100": "--max-len 100.*--think-max",
    "--d-model 33": "--d-model 33.*--n-head 2",
    "--vocab-size 10": "vocab_size=10.*258",
    "--device warp": "--device warp.*cpu",
    "--data nowhere": "nowhere.*no such file",
    "--data {tmp}/empty.py --decontaminate false": "empty.py.*no function",
    "--data stdlib --estep oracle": "--estep oracle.*stdlib",
    "--stage eval": "new.*base.pt, ntp.pt, ra3.pt",
    "--stage ntp": "new.*base.pt",
    "--models base,bse": "--models base,bse.*bse.pt",
    "--models nosuch --data stdlib": "--models nosuch.*nosuch.pt",
    "--resume": "nothing to resume in .*new",
    "--seed 18446744073709551616": "--seed 18446744073709551616: expected at most",
    "--threads 100000": "--threads 100000: expected at most 1024",
    "--lr inf": "--lr inf: expected a finite number",
    "--lr 0": "--lr 0.0: expected a number above 0",
    "--useful 3": "--useful 3.0: expected at most 1",
}


@pytest.mark.parametrize("given", MISTAKES)
def test_a_mistake_is_one_line_and_changes_nothing(given, tmp_path, capfd):
    """One line that names what was given, nothing else on stderr, and the disk as it was."""
    (tmp_path / "empty.py").write_text("x = 1\n")
    before = listing(tmp_path)
    with pytest.raises(UserError) as e:
        run(tmp_path / "new", "--n-expert", "4", *given.format(tmp=tmp_path).split())
    assert (
        re.search(MISTAKES[given], str(e.value))
        and "\n" not in str(e.value)
        and capfd.readouterr().err == ""
    )
    assert listing(tmp_path) == before


def test_a_model_of_another_shape(whole, tmp_path):
    """Models of other settings, missing ones and files that are none are refused and left alone."""
    before = listing(whole)
    for given, named in (
        ("--d-model 64", "base.pt.*d_model=32 and not 64"),
        ("--pretrain-steps 61", "base.pt.*pretrain_steps=60 and not 61"),
        ("--stage eval --models base,ra4", "ra4.pt"),
        ("--stage ntp --match ra4", "ra4.pt"),
    ):
        with pytest.raises(UserError, match=named) as e:
            run(whole, *given.split())
        assert "\n" not in str(e.value)
    assert listing(whole) == before
    out = copied(whole, tmp_path)
    (out / "base.pt").write_text("not weights")
    before = listing(out)
    with pytest.raises(UserError, match="base.pt: expected a checkpoint"):
        run(out)
    assert listing(out) == before
    with pytest.raises(UserError, match="metrics.jsonl: expected a folder"):
        run(out / "metrics.jsonl")


def test_exit_status(tmp_path):
    """The program itself, given a mistake: status 2, one line on stderr, no folder."""
    done = subprocess.run(
        [sys.executable, "train.py", *TINY, "--out", str(tmp_path / "new"), "--gruop", "4"],
        cwd=HERE,
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 2
        and done.stderr == "train.py: --gruop: no such setting; did you mean --group?; see --help\n"
    )
    assert done.stdout == "" and not os.listdir(tmp_path)
