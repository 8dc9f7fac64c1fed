"""A run's folder: corpora in, checkpoints and metrics out.

NAME.pt is a finished model, NAME.state an unfinished stage: weights, optimizer and position; NAME.docs, beside it, is what its M-step trains on. There is
no state of random generators to keep, because every batch and every draw is a function of (seed, stage, iteration, step). Both are written whole or not at all.
"""

import dataclasses
import json
import os
import random
import sys
import time

import numpy as np
import torch
from tqdm import tqdm

import data
import hf
import parallel
import tasks
import tokenizer
from config import UserError
from corpus import prepare, sizes, split
from decontaminate import checker, line
from model import device_of
from weights import load_model, save_model, write_whole


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
        self.tok = self.tokenizer()
        if stage != "rlvr":
            self.prepare()

    @parallel.alone
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

    def tokenizer(self):
        if self.cfg.preset != "tiny":
            return hf.open_tokenizer(hf.find(self.cfg))
        if os.path.exists(self.path("tokenizer.txt")):
            return tokenizer.load_tokenizer(self.path("tokenizer.txt"))
        rng = random.Random("tokenizer")
        return tokenizer.train_tokenizer(
            ["".join(tasks.base_text(rng)) for _ in range(2000)], self.cfg.vocab_size
        )

    def prepare(self):
        """Expert and held-out snippets. Nothing is written in the run's folder."""
        cfg = self.cfg
        if cfg.data == "domain":

            def cut(split, n):
                found = [tasks.expert_task(cfg.seed, i, split) for i in range(n)]
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
            whole = prepared(cfg, self.tok)
            self.contamination = whole.contamination()
            tqdm.write(
                line(self.contamination)
                if cfg.decontaminate
                else f"corpus {cfg.data}: not checked against any benchmark (--decontaminate false)",
                file=sys.stderr,
            )
            self.expert, self.heldout = split(whole, cfg.seed, cfg.n_expert, cfg.n_heldout)
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
            np.concatenate(both) for both in zip(sizes(self.expert), sizes(self.heldout))
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

    @parallel.alone
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
        if state and state["settings"] != self.settings:
            other = [
                f"{k}={v!r}" for k, v in state["settings"].items() if v != getattr(self.cfg, k)
            ]
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
            parallel.alone(self.forget)(name)
        self.lines = state["lines"] if state else 0
        self.keep_metrics(name, self.lines)
        return state

    @parallel.alone
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

    def log(self, name, **metrics):
        if parallel.rank() == 0:
            with open(self.path("metrics.jsonl"), "a") as f:
                f.write(json.dumps({"model": name, **metrics}) + "\n")
        self.lines += 1

    @parallel.alone
    def save_state(self, name, **state):
        write_whole(
            {**state, "settings": self.settings, "lines": self.lines}, self.path(f"{name}.state")
        )


def prepared(cfg, tok):
    """The corpus.Corpus of the settings; of several ranks the first makes it, and the others open it."""
    given = (
        cfg.data,
        tok,
        cfg.max_tokens,
        cfg.min_lines,
        cfg.unit,
        cfg.docstrings,
        cfg.keep_comments,
        cfg.near_duplicate,
        cfg.text_column,
        checker(cfg.data_dir) if cfg.decontaminate else None,
        cfg.cache,
    )
    if parallel.world() > 1:
        parallel.alone(prepare)(*given)
    return prepare(*given)


RLVR_FIELDS = (
    "init",
    "suite",
    "eval_suite",
    "n_rl",
    "rl_steps",
    "prompts",
    "completions",
    "rl_lr",
    "rl_warmup",
    "epochs",
    "minibatches",
    "micro_tokens",
    "clip_low",
    "clip_high",
    "rl_norm",
    "rl_std",
    "rl_kl",
    "mask_overlong",
    "rounds",
    "reward",
    "reward_time",
    "thoughts",
    "eval_every",
    "eval_samples",
)


def rlvr_settings(cfg):
    """All settings that decide what RLVR computes, besides the model that it starts from."""
    return {
        k: getattr(cfg, k)
        for k in RLVR_FIELDS
        + (
            "preset",
            "model",
            "weights",
            "seed",
            "max_new",
            "temperature",
            "bf16",
            "rollout_bf16",
            "grad_clip",
            "decontaminate",
            "data_dir",
            "eval_tasks",
            "eval_split",
        )
    }


def stage_settings(cfg):
    """All settings that decide what another stage computes."""
    free = {
        "resume",
        "out",
        "cache",
        "save_every",
        "threads",
        "shard",
        "device",
        "models",
        "compile",
        "checkpoint",
        "eval_tasks",
        "eval_split",
        "samples",
        "temperature",
        "max_new",
        "elbo_samples",
        *RLVR_FIELDS,
    }
    return {k: v for k, v in dataclasses.asdict(cfg).items() if k not in free}


def steps_bar(desc, start, steps):
    return tqdm(
        range(start, steps), desc=desc, initial=start, total=steps, unit="step", mininterval=0.5
    )
