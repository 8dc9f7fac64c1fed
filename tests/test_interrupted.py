"""An infusion that is killed goes on where it was; states are not written too often; no GPU is
touched before the corpora are prepared."""

import collections

import pytest
import torch

import estep
import mstep
import run as run_module
import train
from config import UserError, make
from engine import documents
from worlds import TINY, Stop, metrics, same_weights

torch.set_num_threads(1)
SETTINGS = {"seed": 0, "c": float("inf"), "iteration": 1}


class World:
    """Snippets that are numbers; a proposal is the number, and counts ten tokens."""

    def __init__(self, monkeypatch, stop_at=None):
        self.calls = []
        self.stop_at = stop_at
        self.stats = collections.Counter()
        monkeypatch.setattr(mstep, "write", self.write)

    def propose(self, snippets, numbers):
        if len(self.calls) == self.stop_at:
            raise Stop
        self.calls.append(list(numbers))
        self.stats["forward_tokens"] += 10 * len(snippets)
        return snippets

    def write(self, tok, snip, thoughts, block, stats):
        stats["lines"] += snip
        return [snip, thoughts], [1, 2]

    def infused(self, saved):
        numbers = list(range(10))
        return list(
            mstep.infuse_corpus(None, numbers, numbers, self.propose, 3, 99, self.stats, saved)
        )


def test_an_interrupted_infusion_goes_on(tmp_path, monkeypatch):
    """Documents and counts of all batches, those of before the interruption among them."""
    whole = World(monkeypatch)
    docs = whole.infused(None)
    stopped = World(monkeypatch, stop_at=2)
    with pytest.raises(Stop):
        stopped.infused(documents.Batches(tmp_path / "ra3.docs", SETTINGS))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ra3.docs.0", "ra3.docs.3"]
    (tmp_path / "ra3.docs.3").write_bytes(b"half a file")
    resumed = World(monkeypatch)
    assert resumed.infused(documents.Batches(tmp_path / "ra3.docs", SETTINGS)) == docs
    assert resumed.calls == [[3, 4, 5], [6, 7, 8], [9]]
    assert resumed.stats == whole.stats == {"forward_tokens": 100, "lines": 45}


def test_batches_of_other_settings_are_not_taken(tmp_path, monkeypatch):
    World(monkeypatch).infused(documents.Batches(tmp_path / "ra3.docs", SETTINGS))
    other = World(monkeypatch)
    other.infused(documents.Batches(tmp_path / "ra3.docs", {**SETTINGS, "iteration": 2}))
    assert len(other.calls) == 4


def test_a_run_goes_on_in_the_infusion(tmp_path, monkeypatch):
    """Best-of-n, killed in the second batch of its first infusion, where there is no state yet."""
    best = "--estep best-of-n --best-of 20 --models ra3".split()
    argv = [*TINY, *best, "--pretrain-steps", "4", "--iters", "1"]
    argv += "--eval-tasks 1 --samples 1 --max-new 8 --elbo-samples 1".split()
    train.main([*argv, "--out", str(tmp_path / "whole")])
    calls = []
    best_of_n = estep.PROPOSALS["best-of-n"]

    def stopping(source, snippets, numbers):
        calls.append(len(snippets))
        if len(calls) == 2:
            raise Stop
        return best_of_n(source, snippets, numbers)

    monkeypatch.setitem(estep.PROPOSALS, "best-of-n", stopping)
    out = tmp_path / "run"
    with pytest.raises(Stop):
        train.main([*argv, "--out", str(out)])
    assert (out / "ra3.docs.0").exists() and not (out / "ra3.docs.12").exists()
    train.main([*argv, "--out", str(out), "--resume"])
    assert calls == [12, 12, 12] and same_weights(out / "ra3.pt", tmp_path / "whole" / "ra3.pt")
    assert metrics(out) == metrics(tmp_path / "whole")
    assert [p.name for p in out.glob("ra3.*")] == ["ra3.pt"]


def test_states_take_a_twentieth_of_the_time(tmp_path, monkeypatch):
    clock = StoppedClock()
    monkeypatch.setattr(run_module.time, "monotonic", clock.monotonic)
    cfg = make(out=str(tmp_path), n_expert=4, n_heldout=1, save_every=2)
    run = run_module.Run(cfg, "pretrain")
    run.lines = 0
    assert [run.save_due(step) for step in range(4)] == [False, True, False, True]
    monkeypatch.setattr(run_module, "write_whole", lambda record, path: clock.go_on(3.0))
    run.save_state("base", weights={})
    clock.go_on(59.0)
    assert not run.save_due(1)
    clock.go_on(1.0)
    assert run.save_due(1) and not run.save_due(2) and not run.save_due(1, 4)


class StoppedClock:
    """A clock that goes on when it is told to."""

    def __init__(self):
        self.seconds = 0.0

    def go_on(self, seconds):
        self.seconds += seconds

    def monotonic(self):
        return self.seconds


def test_a_gpu_is_not_touched_before_the_corpora(monkeypatch, tmp_path):
    order = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        run_module, "device_of", lambda cfg: order.append("device") or torch.device("cpu")
    )
    prepare = run_module.Run.prepare_domain

    def noted(run):
        order.append("corpora")
        prepare(run)

    monkeypatch.setattr(run_module.Run, "prepare_domain", noted)
    run = run_module.Run(make(out=str(tmp_path), n_expert=4, n_heldout=1))
    assert order == ["corpora"] and run.device.type == "cpu" and order == ["corpora", "device"]
    assert run.device is run.device


def test_a_missing_gpu_is_told_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(run_module.Run, "prepare", None)
    with pytest.raises(UserError, match="--device cuda: not available here"):
        run_module.Run(make(out=str(tmp_path), device="cuda"))
