"""A run's folder: corpora in, checkpoints and metrics out.

NAME.pt is a finished model, NAME.state an unfinished stage: weights, optimizer and position; NAME.docs, beside it, is what its M-step trains on. There is
no state of random generators to keep, because every batch and every draw is a function of (seed, stage, iteration, step). Both are written whole or not at all.
"""

import dataclasses
import json
import os
import re
import sys
import time

import numpy as np
import torch
from tqdm import tqdm

import data
import domain
from config import UserError, deciding, differences
from corpus.decontaminate import line
from corpus.prepare import arguments_of, prepare_corpus, tokenizer_of
from corpus.problems import problems
from corpus.store import snippet_sizes, split_heldout, take
from engine import parallel
from engine.machine import device_of
from formats.checkpoints import load_model, save_model, write_whole
from model import ModelConfig


class Run:
    """A run's folder, its corpora and its models."""

    def __init__(self, cfg, stage="em"):
        self.cfg, self.out, self.device = cfg, cfg.out, device_of(cfg)
        self.settings = (
            rlvr_settings(cfg) if stage == "rlvr" else stage_settings(cfg)
        )  # what decides an unfinished stage
        self.started = time.time()
        if os.path.exists(self.out) and not os.path.isdir(self.out):
            raise UserError(f"--out {self.out}: expected a folder, found a file; give another path")
        self.hard = self.expert_hard = self.contamination = self.problems = None
        self.most = 0  # tokens of the longest snippet with its thoughts
        self.tok = tokenizer_of(cfg)
        if stage != "rlvr":
            self.prepare()

    @parallel.rank0_only
    def begin(self):
        """Make the folder and note the settings, once all that was given is known to be right (`check`)."""
        try:
            os.makedirs(self.out, exist_ok=True)
            for name in os.listdir(self.out):
                if name.endswith(".part"):  # half a file of a killed run
                    os.remove(self.path(name))
            with open(self.path("settings.json"), "w") as f:
                json.dump(dataclasses.asdict(self.cfg), f, indent=1)
            if self.contamination:
                with open(self.path("contamination.json"), "w") as f:
                    json.dump(self.contamination, f, indent=1)
        except OSError as e:
            raise UserError(
                f"--out {self.out}: cannot be written ({e.strerror}); give another path"
            ) from None

    def path(self, name):
        return os.path.join(self.out, name)

    def prepare(self):
        """Expert and held-out snippets. Nothing is written in the run's folder."""
        cfg = self.cfg
        if cfg.data == "domain":

            def cut(split, n):
                found = [domain.expert_task(cfg.seed, i, split) for i in range(n)]
                return found, [
                    data.snippet(self.tok, t.prompt + t.solution, len(t.prompt), t.name)
                    for t in found
                ]

            self.expert_tasks, self.expert = cut("train", cfg.n_expert)
            held, self.heldout = cut(cfg.eval_split, cfg.n_heldout)
            self.hard, self.expert_hard = (
                [t.hard for t in held],
                [t.hard for t in self.expert_tasks],
            )
        else:
            arguments = arguments_of(cfg, self.tok)
            if parallel.world() > 1:  # the first rank makes it, and the others open it
                parallel.rank0_only(prepare_corpus)(**arguments)
            whole = prepare_corpus(**arguments)
            self.contamination = whole.contamination()
            tqdm.write(
                line(self.contamination)
                if cfg.decontaminate
                else f"corpus {cfg.data}: not checked against any benchmark (--decontaminate false)",
                file=sys.stderr,
            )
            self.expert, self.heldout = split_heldout(whole, cfg.seed, cfg.n_expert, cfg.n_heldout)
            if not len(self.expert) or not len(self.heldout):
                raise UserError(
                    f"--data {cfg.data}: {len(whole)} usable functions, of which {len(self.heldout)} fall to the held-out tenth; "
                    "expected at least one on either side; give more code"
                )
            print(
                f"corpus {cfg.data}: {len(self.expert)} snippets to train on, {len(self.heldout)} held out; "
                + ", ".join(f"{k} {v}" for k, v in whole.manifest["counts"].items() if v)
            )
        tokens, lines, seps = (
            np.concatenate(both)
            for both in zip(snippet_sizes(self.expert), snippet_sizes(self.heldout))
        )
        longest, self.most = (
            int(tokens[: len(self.expert)].max()),
            int((tokens + lines * cfg.think_max + seps).max()) + 1,
        )
        if longest > cfg.block:
            raise UserError(
                f"--block {cfg.block}: the longest snippet has {longest} tokens, and none is cut; expected at least that"
            )
        if self.most > cfg.max_len:
            raise UserError(
                f"--max-len {cfg.max_len}: a snippet may grow to {self.most} tokens with its thoughts; expected at least that, or a "
                "smaller --think-max or --max-tokens"
            )

    def training_problems(self):
        """(training problems, held-out problems, counts to print) of --stage rlvr, read once. Raises UserError."""
        if not self.problems:
            self.problems = problems(self.cfg, self.tok, self.about(self.cfg.init)[0].max_len)
        return self.problems

    def expert_snippets(self, numbers):
        """Expert snippets of these numbers, in this order, and their lengths in tokens (n,)."""
        snippets = take(self.expert, numbers)
        return snippets, snippet_sizes(snippets)[0]

    # ------------------------------------------------------------ checkpoints and metrics

    def settings_of(self, fields):
        return {k: getattr(self.cfg, k) for k in fields}

    def load(self, name, like=None):
        """(model, extra) of the run's folder. Raises UserError if it is missing, or of another shape than `like`."""
        if not os.path.exists(self.path(f"{name}.pt")):
            raise UserError(
                f"{self.path(name + '.pt')}: no such model; run the stage that makes it first, or give --out"
            )
        model, extra = load_model(self.path(f"{name}.pt"), like)
        return model.to(self.device, getattr(torch, self.cfg.weights)), extra

    def about(self, name):
        """(ModelConfig, extra) of a model of the run's folder; its weights are not read."""
        model, extra = load_model(self.path(f"{name}.pt"), mmap=True)
        return model.cfg, extra

    @parallel.rank0_only
    def save(self, name, model, **extra):
        save_model(model, self.path(f"{name}.pt"), **extra, seconds=time.time() - self.started)
        self.forget(name)

    def forget(self, name):
        """Remove what an unfinished stage left."""
        for ending in ("state", "docs"):
            if os.path.exists(self.path(f"{name}.{ending}")):
                os.remove(self.path(f"{name}.{ending}"))

    def unfinished(self, name, **how):
        """The state of an unfinished stage, or None: what was saved last, if --resume is given. Raises UserError if its settings were others."""
        path = self.path(f"{name}.state")
        state = (
            torch.load(path, map_location="cpu", weights_only=True, **how)
            if self.cfg.resume and os.path.exists(path)
            else None
        )
        names = deciding("base") if name == "base" else self.settings
        other = differences(state["settings"], self.cfg, names) if state else []
        if other:
            raise UserError(
                f"{path}: the unfinished run was made with {', '.join(other)}; give the same settings with --resume, or leave "
                "it out to start over"
            )
        return state

    def restore(self, name):
        """The state of an unfinished stage; the metrics that it had written by then are kept, later ones dropped. Or None, and nothing is left of an earlier
        one: its state beside new documents would be taken for theirs."""
        state = self.unfinished(name)
        if not state:
            parallel.rank0_only(self.forget)(name)
        self.lines = state["lines"] if state else 0
        self.keep_metrics(name, self.lines)
        return state

    @parallel.rank0_only
    def keep_metrics(self, name, n):
        """Keep the first n metrics lines of a model, and all of other models."""
        path = self.path("metrics.jsonl")
        if os.path.exists(path):
            kept, seen = [], 0
            for row in open(path):
                try:
                    mine = json.loads(row)["model"] == name
                except (ValueError, KeyError):
                    continue  # half a line of a killed run
                seen += mine
                if not mine or seen <= n:
                    kept.append(row)
            with open(path + ".part", "w") as f:
                f.writelines(kept)
            os.replace(path + ".part", path)

    def metrics(self, name):
        """The lines of metrics.jsonl of a model, as dicts, in order."""
        with open(self.path("metrics.jsonl")) as f:
            rows = [json.loads(line) for line in f]
        return [row for row in rows if row["model"] == name]

    def log(self, name, **metrics):
        if parallel.rank() == 0:
            with open(self.path("metrics.jsonl"), "a") as f:
                f.write(json.dumps({"model": name, **metrics}) + "\n")
        self.lines += 1

    @parallel.rank0_only
    def save_state(self, name, **state):
        write_whole(
            {**state, "settings": dataclasses.asdict(self.cfg), "lines": self.lines},
            self.path(f"{name}.state"),
        )


def rlvr_settings(cfg):
    """All settings that decide what RLVR computes, besides the model that it starts from."""
    return {name: getattr(cfg, name) for name in deciding("rlvr")}


def stage_settings(cfg):
    """All settings that decide what another stage computes."""
    return {name: getattr(cfg, name) for name in deciding("em")}


def base_shape(run):
    """The ModelConfig of the built-in domain's base model."""
    cfg = run.cfg
    if cfg.d_model % (2 * cfg.n_head):
        raise UserError(
            f"--d-model {cfg.d_model}: expected a multiple of twice --n-head {cfg.n_head}"
        )
    return ModelConfig(
        run.tok.vocab_size, cfg.n_layer, cfg.n_head, cfg.n_head, cfg.d_model, cfg.d_ff, cfg.max_len
    )


def check(run, stage):
    """Is all that the stage needs there, and made with the same settings? Raises UserError."""
    cfg, name, em_too = run.cfg, run.cfg.name or "ra3", stage in ("em", "all")
    if not re.fullmatch(r"[\w.-]+", name) or cfg.name in {"base", "ntp", "ra3"} - {
        {"ntp": "ntp", "em": "ra3", "all": "ra3"}.get(stage)
    }:
        raise UserError(
            f"--name {cfg.name}: expected letters, digits, '.', '_' or '-', and not the name of another stage's result"
        )
    if not names_to_evaluate(cfg, stage):
        raise UserError(
            f"--models {cfg.models}: expected at least one name; give base,ntp,ra3 or some of them"
        )
    makes = {"base", "ntp", name} if em_too else set()
    makes |= {"base"} if stage == "rlvr" and cfg.preset != "tiny" else set()  # loaded, not trained
    needs = {"pretrain": [], "ntp": ["base", cfg.match or "base"], "rlvr": [cfg.init]}.get(
        stage, names_to_evaluate(cfg, stage)
    )
    needs = [n for n in needs if n not in makes]
    missing = [n for n in dict.fromkeys(needs) if not os.path.exists(run.path(f"{n}.pt"))]
    if missing:
        given = {
            "rlvr": f"--init {cfg.init}",
            "ntp": f"--match {cfg.match}" if cfg.match else "--stage ntp",
        }.get(stage, f"--models {cfg.models}")
        raise UserError(
            f"{given}: {run.out} holds no {', '.join(n + '.pt' for n in missing)}; run the stage that makes it first, or give "
            "another --out or name"
        )
    if cfg.preset == "tiny" and stage in ("pretrain", "em", "all"):
        shape = base_shape(run)
        if os.path.exists(run.path("base.pt")):
            made = run.load("base", shape)[1]["settings"]
            other = differences(made, cfg, [name for name in deciding("base") if name in made])
            if other:
                raise UserError(
                    f"{run.path('base.pt')}: made with {', '.join(other)}; give the same settings, another --out, or delete it"
                )
        else:
            run.unfinished("base", mmap=True)
    if stage != "pretrain" and os.path.exists(run.path("base.pt")):
        base, extra = run.about("base")
        if (made := extra["settings"].get("model", cfg.model)) != cfg.model:
            raise UserError(
                f"{run.path('base.pt')}: made from --model {made} and not {cfg.model}; give the same, or another --out"
            )
        if base.vocab_size < run.tok.vocab_size or base.max_len < run.most:
            raise UserError(
                f"{run.path('base.pt')}: {base.vocab_size} ids and {base.max_len} positions; --preset {cfg.preset} with this data needs "
                f"{run.tok.vocab_size} and {run.most}; give the preset that it was made with, or another --out"
            )
    if stage == "ntp":
        run.unfinished(ntp_name(cfg), mmap=True)
    if stage == "rlvr":
        run.unfinished(rlvr_name(cfg), mmap=True)
        if os.path.exists(run.path(f"{cfg.init}.pt")):  # or it is about to be loaded
            run.training_problems()
    if em_too:
        if (
            not run.unfinished(name, mmap=True)
            and cfg.resume
            and os.path.exists(run.path(f"{name}.pt"))
            and not current(run, name, stage_settings(cfg))
        ):
            raise UserError(
                f"{run.path(name + '.pt')}: finished with other settings, so there is nothing to resume; leave out --resume to start over, "
                "or give another --name"
            )
        if not current(run, "ntp", deciding("ntp")):
            run.unfinished("ntp", mmap=True)


def current(run, name, fields):
    """Is there a finished model of that name, made with these settings?"""
    if not os.path.exists(run.path(f"{name}.pt")):
        return False
    return not differences(run.about(name)[1]["settings"], run.cfg, fields)


def done(run, name, fields):
    """With --resume: is there nothing left to do?"""
    return (
        run.cfg.resume
        and not os.path.exists(run.path(f"{name}.state"))
        and current(run, name, fields)
    )


def ntp_name(cfg):
    """What --stage ntp makes: --name, or ntp, or with --match NAME ntp-as-NAME."""
    return cfg.name or (f"ntp-as-{cfg.match}" if cfg.match else "ntp")


def rlvr_name(cfg):
    """What --stage rlvr makes."""
    return cfg.name or f"rlvr-{cfg.init}"


def names_to_evaluate(cfg, stage):
    """--models, and the stage's own: after --stage em --name NAME it takes the place of ra3."""
    made = (cfg.name or "ra3") if stage in ("em", "all") else cfg.name
    names = [made if n == "ra3" and stage != "eval" else n for n in cfg.models.split(",")] + [made]
    return [n for n in dict.fromkeys(names) if n]
