"""A run's folder: several processes in it, what older versions left, more iterations, checks."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch

import run as runs
import train
from config import RESULTS, UserError, command, deciding, differences, make
from worlds import HERE, TINY, Stop, listing, metrics, same_weights

SMALL = [*TINY, "--pretrain-steps", "20", "--save-every", "2", "--models", "base"]
SMALL += "--eval-tasks 1 --samples 1 --max-new 8 --elbo-samples 1 --n-expert 12".split()
SMALL += "--n-heldout 2 --snippets 2 --estep-steps 3".split()


def start(out, *more):
    train.main([*SMALL, "--out", str(out), *more])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of two iterations, each iteration's model kept."""
    out = tmp_path_factory.mktemp("runs") / "two"
    start(out, "--keep-iterations")
    return out


def copy_of(folder, tmp_path, *endings):
    """A copy of the files of a run's folder that end so."""
    out = tmp_path / "copy"
    out.mkdir()
    for path in folder.iterdir():
        if path.name.endswith(endings):
            (out / path.name).write_bytes(path.read_bytes())
    return out


BASE = ("base.pt", "ntp.pt", "tokenizer.txt", "metrics.jsonl")

# ---------------------------------------------------------------- what a folder holds


def test_settings_by_name(folder):
    """Each model has its settings beside it; a later stage leaves them alone."""
    names = {path.name for path in folder.glob("settings*.json")}
    assert names == {"settings.json", *(f"settings-{name}.json" for name in ("base", "ntp", "ra3"))}
    for name in names:
        assert json.load(open(folder / name))["iters"] == 2


def test_a_later_stage_changes_its_own_settings_only(folder, tmp_path):
    out = copy_of(folder, tmp_path, *BASE, ".json")
    before = {name: (out / name).read_bytes() for name in ("settings-base.json", "results.json")}
    start(out, "--stage", "ntp", "--name", "short", "--mstep-steps", "1")
    assert json.load(open(out / "settings-short.json"))["mstep_steps"] == 1
    assert json.load(open(out / "settings-ntp.json"))["mstep_steps"] == 6
    assert {name: (out / name).read_bytes() for name in before} == before


def test_results_of_earlier_weights_go(folder, tmp_path):
    """A model that is trained again has no results until it is measured; the others keep theirs."""
    out = copy_of(folder, tmp_path, "base.pt", "tokenizer.txt")
    (out / "results.json").write_text(json.dumps({"base": {"elbo": -1.0}, "ntp": {"elbo": -2.0}}))
    start(out, "--stage", "ntp", "--mstep-steps", "1")
    assert json.loads((out / "results.json").read_text()) == {"base": {"elbo": -1.0}}


def test_every_line_has_the_time(folder):
    times = [json.loads(line)["wall_s"] for line in open(folder / "metrics.jsonl")]
    assert times == sorted(times) and time.time() - 3600 < times[0] < times[-1] < time.time()


# ---------------------------------------------------------------- more iterations


def test_a_finished_run_goes_on_with_more_iterations(folder, tmp_path):
    """Two iterations, then --iters 3 --resume: bit for bit the run of three; NTP likewise."""
    three = copy_of(folder, tmp_path, "base.pt", "tokenizer.txt")
    more = ["--iters", "3", "--keep-iterations"]
    start(three, *more)
    (tmp_path / "other").mkdir()
    grown = copy_of(folder, tmp_path / "other", ".pt", ".txt", ".jsonl", ".json")
    with pytest.raises(UserError, match="ntp.pt: finished with other settings"):
        start(grown, "--resume", "--iters", "1", "--stage", "ntp")
    start(grown, *more, "--resume")
    for name in ("ntp", "ra3", *(f"ra3-iteration-{i}" for i in (1, 2, 3))):
        assert same_weights(three / f"{name}.pt", grown / f"{name}.pt"), name
    assert same_weights(grown / "ra3-iteration-2.pt", folder / "ra3.pt")
    assert not same_weights(grown / "ra3-iteration-1.pt", folder / "ra3.pt")
    without_base = [
        [line for line in metrics(out) if line["model"] != "base"] for out in (three, grown)
    ]
    assert sorted(map(json.dumps, without_base[0])) == sorted(map(json.dumps, without_base[1]))
    extra = torch.load(grown / "ra3.pt", weights_only=True)["extra"]
    assert extra["settings"]["iters"] == 3 and not list(grown.glob("*.state"))


def test_an_unfinished_run_goes_on_with_more_iterations(folder, tmp_path, monkeypatch):
    """Stopped in the last M-step of two iterations, and resumed with three."""
    out = copy_of(folder, tmp_path, *BASE)
    log = runs.Run.log

    def log_and_stop(self, name, **m):
        log(self, name, **m)
        if (m["phase"], m.get("iteration"), m.get("step")) == ("mstep", 1, 4):
            raise Stop

    monkeypatch.setattr(runs.Run, "log", log_and_stop)
    with pytest.raises(Stop):
        start(out)
    monkeypatch.setattr(runs.Run, "log", log)
    with pytest.raises(UserError, match="iters=2 and not 1"):
        start(out, "--resume", "--iters", "1")
    start(out, "--resume", "--iters", "3", "--keep-iterations")
    assert same_weights(out / "ra3-iteration-2.pt", folder / "ra3.pt")
    assert json.load(open(out / "settings-ra3.json"))["iters"] == 3


def test_other_settings_do_not_go_on(folder, tmp_path):
    out = copy_of(folder, tmp_path, ".pt", ".txt", ".jsonl")
    before = listing(out)
    with pytest.raises(UserError, match="ra3.pt: finished with other settings"):
        start(out, "--resume", "--iters", "3", "--c", "0.5")
    assert listing(out) == before


# ---------------------------------------------------------------- several processes

WORKER = """
import sys, time, train, run as runs
log = runs.Run.log
def stall(run, name, **m):
    log(run, name, **m)
    if name == "a" and m["phase"] == "mstep" and m["step"] == 2:
        print("there", flush=True)
        time.sleep(600)
runs.Run.log = stall
train.main(sys.argv[1:])
"""


def test_two_processes_in_one_folder(folder, tmp_path):
    """While one makes a: a again is refused in one line, b is made, and a's files stay."""
    out = copy_of(folder, tmp_path, *BASE)
    argv = [*SMALL, "--out", str(out), "--estep", "none"]
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, *argv, "--name", "a"],
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as child:
        try:
            assert child.stdout.readline() == b"there\n"
            for name in ("a.docs.part", "b.docs.part", "b.state.77.part"):
                (out / name).write_text("half")
            with pytest.raises(UserError) as refused:
                start(out, "--estep", "none", "--name", "a")
            assert re.fullmatch(
                r"--out \S+: another process works on a there; [^\n]*", str(refused.value)
            )
            start(out, "--estep", "none", "--name", "b")
            assert {"a.state", "a.docs", "a.docs.part"} <= set(os.listdir(out))
            assert not list(out.glob("b.*.part"))
        finally:
            child.send_signal(signal.SIGKILL)
    start(out, "--estep", "none", "--name", "a", "--resume")  # the lock of a dead process is open
    assert same_weights(out / "a.pt", out / "b.pt") and not list(out.glob("*.part"))
    steps = {
        name: [line["step"] for line in metrics(out) if line["model"] == name and "step" in line]
        for name in ("a", "b")
    }
    assert steps["a"] == steps["b"] != []


HOLDER = """
import fcntl, sys
f = open(sys.argv[1], "a")
fcntl.lockf(f, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


def test_an_evaluation_has_its_models_for_itself(folder, tmp_path):
    """Neither evaluated twice at once, nor made again meanwhile; other models may be evaluated."""
    out = copy_of(folder, tmp_path, ".pt", ".txt", ".jsonl", ".json")
    before = listing(out)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(out / ".ra3.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout.readline() == b"locked\n"
        for more in (["--stage", "eval", "--models", "ra3"], ["--resume"], ["--lr", "0.5"]):
            with pytest.raises(UserError, match="another process works on ra3 there; "):
                start(out, *more)
        after = {name: sum for name, sum in listing(out).items() if not name.endswith(".lock")}
        assert after == before
        start(out, "--stage", "eval", "--models", "base")
        child.stdin.close()
    start(out, "--stage", "eval", "--models", "ra3")


def test_nothing_is_noted_where_nothing_is_made(folder, tmp_path):
    """--resume of a finished run leaves the settings that its models were made with."""
    out = copy_of(folder, tmp_path, ".pt", ".txt", ".jsonl", ".json")
    before = {path.name: path.read_bytes() for path in out.glob("settings*.json")}
    for stage in ("pretrain", "ntp", "em"):
        start(out, "--resume", "--stage", stage, "--save-every", "7")
        assert {path.name: path.read_bytes() for path in out.glob("settings*.json")} == before


def test_names_to_make(folder, tmp_path):
    """What a stage writes: no model that is there already, or with --resume is done."""
    out = copy_of(folder, tmp_path, *BASE)

    def names(stage, *more):
        cfg = make(**{**read_settings(folder), "out": str(out), **dict(more)})
        return runs.names_to_make(runs.Run(cfg, stage, prepare=False), stage)

    assert names("em") == ["ra3"] and names("em", ("name", "x")) == ["x"]
    assert names("em", ("lr", 0.5)) == ["ntp", "ra3"]
    assert names("ntp") == ["ntp"] and names("ntp", ("resume", True)) == []
    assert names("pretrain") == names("eval") == []
    assert names("ntp", ("match", "ra3")) == ["ntp-as-ra3"]
    assert names("rlvr", ("init", "base")) == ["rlvr-base"]
    os.remove(out / "base.pt")
    assert names("rlvr", ("init", "base")) == ["base", "rlvr-base"]
    assert names("em") == ["base", "ra3"] and names("pretrain") == ["base"]


def read_settings(folder):
    return json.load(open(folder / "settings.json"))


# ---------------------------------------------------------------- older versions


def test_settings_of_an_older_version():
    """A setting that it did not know counts as its default, one that is gone does not count."""
    cfg = make(kl_prior="exact")
    settings = {name: getattr(cfg, name) for name in deciding("em")}
    del settings["kl_prior"]
    settings["notes_share"] = 0.7
    assert differences(settings, cfg, deciding("em")) == ["kl_prior='penalty' and not 'exact'"]
    assert differences(settings, make(), deciding("em")) == []


def test_iterations_may_only_grow():
    three, names = make(iters=3, rl_steps=9), [*deciding("em"), "rl_steps"]
    for settings, texts in (
        ({"iters": 2, "rl_steps": 8}, []),
        ({"iters": 4, "rl_steps": 9}, ["iters=4 and not 3"]),
        ({"iters": 2, "rl_steps": 8, "c": 1.0}, ["c=1.0 and not 0.05"]),
    ):
        assert differences({**vars(three), **settings}, three, names, grown=True) == texts
    assert differences({"iters": 2}, three, deciding("ntp")) == ["iters=2 and not 3"]


def older(state, *unknown):
    """A state as a version wrote it that stored fewer settings, and some that are gone."""
    settings = {key: value for key, value in state["settings"].items() if key not in unknown}
    return {**state, "settings": {**settings, "notes_share": 0.7}}


def test_an_unfinished_run_of_an_older_version(folder, tmp_path, monkeypatch):
    """A base, and an M-step, that were stopped by a version with fewer settings: they go on."""
    out = tmp_path / "old"
    log = runs.Run.log
    for stop, name in ((("pretrain", 12), "base"), (("mstep", 3), "ra3")):

        def log_and_stop(self, model, stop=stop, name=name, **m):
            log(self, model, **m)
            if model == name and (m["phase"], m.get("step")) == stop:
                raise Stop

        monkeypatch.setattr(runs.Run, "log", log_and_stop)
        with pytest.raises(Stop):
            start(out, "--resume" if name == "ra3" else "--resume=false", "--keep-iterations")
        state = older(torch.load(out / f"{name}.state"), "kl_prior", "engine", "alpha")
        if name == "base":  # it had no laps
            progress = state.pop("progress")
            state.update(step=progress["step"], flops=progress["flops"])
        torch.save(state, out / f"{name}.state")
    monkeypatch.setattr(runs.Run, "log", log)
    with pytest.raises(UserError, match="alpha=0.9 and not 0.5; give the same"):
        start(out, "--resume", "--alpha", "0.5")
    start(out, "--resume")
    assert same_weights(out / "ra3.pt", folder / "ra3.pt")


def test_a_finished_model_of_an_older_version(folder, tmp_path):
    out = copy_of(folder, tmp_path, *BASE)
    for name in ("base", "ntp"):
        record = torch.load(out / f"{name}.pt")
        record["extra"] = older(record["extra"], "exercises", "base_check", "kl_prior")
        torch.save(record, out / f"{name}.pt")
    before = (out / "ntp.pt").read_bytes()
    start(out, "--name", "later", "--estep", "none")
    assert (out / "ntp.pt").read_bytes() == before and (out / "later.pt").exists()


# ---------------------------------------------------------------- checks


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--stage eval --models nosuch", "--models nosuch: .* holds no nosuch.pt"),
        ("--stage ntp --match nosuch", "--match nosuch: .* holds no nosuch.pt"),
        ("--name base", "--name base: expected letters"),
        ("--d-model 64", "base.pt: expected a checkpoint, found one of another shape"),
        ("--pretrain-steps 21", "base.pt: made with pretrain_steps=20 and not 21"),
        ("--c 0.5 --resume", "ra3.pt: finished with other settings"),
    ],
)
def test_cheap_checks_come_before_corpora(folder, arguments, message, monkeypatch):
    def prepare(run):
        raise AssertionError("prepared before the cheap checks")

    monkeypatch.setattr(runs.Run, "prepare", prepare)
    before = listing(folder)
    with pytest.raises(UserError, match=message):
        start(folder, *arguments.split())
    assert listing(folder) == before
    with pytest.raises(AssertionError):
        start(folder, "--name", "fine")


@pytest.mark.parametrize("stage", ["pretrain", "ntp", "em", "eval"])
def test_nothing_to_resume(folder, tmp_path, stage):
    """A mistyped --out with --resume does not start anew."""
    with pytest.raises(UserError, match=r"nothing to resume in \S*mistyped, ") as e:
        start(tmp_path / "mistyped", "--resume", "--stage", stage)
    assert "\n" not in str(e.value) and not os.listdir(tmp_path)


def test_a_full_disk_is_one_line(folder, tmp_path, monkeypatch, capsys):
    """A run that may write no large file: one line, nothing half written, and --resume goes on."""
    out = copy_of(folder, tmp_path, *BASE)
    argv = ["train.py", *SMALL, "--out", str(out), "--estep", "none"]
    monkeypatch.setattr(sys, "argv", argv)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, unlimited[1]))
    try:
        with pytest.raises(SystemExit) as ended:
            command(train.main)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        signal.signal(signal.SIGXFSZ, ignored)
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"copy/\S+: cannot be written \(File too large\); make room", last)
    assert not list(out.glob("*.part*.part")) and not (out / "ra3.pt").exists()
    start(out, "--estep", "none", "--resume")
    assert (out / "ra3.pt").exists() and not list(out.glob("*.part"))


def test_settings_that_decide_no_result():
    """Whether iterations are kept, or how often is saved, makes no other run of it."""
    for name in ("keep_iterations", "resume", "save_every", "threads", "engine", "models"):
        assert all(name not in deciding(result) for result in RESULTS)
