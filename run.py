"""A run's folder: corpora in, checkpoints and metrics out.

NAME.pt is a finished model. NAME.state is an unfinished stage: weights, optimizer and position.
NAME.docs, beside it, is what its M-step trains on. There is no state of random generators to keep,
because every batch and every draw is a function of (seed, stage, iteration, step). Files are
written all or nothing.
"""

import dataclasses
import json
import os
import re
import sys
import time

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
from engine.backend import FAST
from engine.machine import device_of
from formats.checkpoints import load_model, save_model, write_whole
from formats.tokenizers import check_checkpoint, digest
from model import ModelConfig


class Run:
    """A run's folder, its corpora and its models."""

    backend = FAST  # the functions that it computes with; train.py sets it

    def __init__(self, cfg, stage="em"):
        self.cfg = cfg
        self.out = cfg.out
        self.device = device_of(cfg)
        self.settings = rlvr_settings(cfg) if stage == "rlvr" else stage_settings(cfg)
        self.started = time.time()
        if os.path.exists(self.out) and not os.path.isdir(self.out):
            raise UserError(f"--out {self.out}: expected a folder, found a file; give another path")
        self.hard = None  # hard lines of the held-out snippets, where they are known
        self.expert_hard = None  # and of the expert snippets
        self.expert_tasks = ()  # the tasks that these come from, likewise
        self.contamination = None
        self.problems = None
        self.longest = 0  # tokens of the longest snippet with its thoughts
        self.tok = tokenizer_of(cfg)
        if stage != "rlvr":
            self.prepare()

    @parallel.rank0_only
    def begin(self):
        """Make the folder and note the settings. `check` comes first. Raises UserError."""
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

    # ------------------------------------------------------------ corpora

    def prepare(self):
        """Expert and held-out snippets. Nothing is written in the run's folder."""
        if self.cfg.data == "domain":
            self.prepare_domain()
        else:
            self.prepare_code()
        self.check_lengths()

    def prepare_domain(self):
        """The built-in domain's snippets and hard lines."""
        cfg = self.cfg
        self.expert_tasks, self.expert = self.domain_snippets("train", cfg.n_expert)
        heldout_tasks, self.heldout = self.domain_snippets(cfg.eval_split, cfg.n_heldout)
        self.expert_hard = [task.hard for task in self.expert_tasks]
        self.hard = [task.hard for task in heldout_tasks]

    def domain_snippets(self, split, n):
        """(tasks, snippets) number 0 .. n-1 of a split of the built-in domain."""
        tasks = [domain.expert_task(self.cfg.seed, i, split) for i in range(n)]
        snippets = [
            data.snippet(self.tok, task.prompt + task.solution, len(task.prompt), task.name)
            for task in tasks
        ]
        return tasks, snippets

    def prepare_code(self):
        """The snippets of real code. Of several ranks the first prepares, and the others open."""
        cfg = self.cfg
        arguments = arguments_of(cfg, self.tok)
        if parallel.world() > 1:
            parallel.rank0_only(prepare_corpus)(**arguments)
        corpus = prepare_corpus(**arguments)
        self.contamination = corpus.contamination()
        unchecked = f"corpus {cfg.data}: not checked against any benchmark (--decontaminate false)"
        tqdm.write(line(self.contamination) if cfg.decontaminate else unchecked, file=sys.stderr)
        self.expert, self.heldout = split_heldout(corpus, cfg.seed, cfg.n_expert, cfg.n_heldout)
        if not len(self.expert) or not len(self.heldout):
            raise UserError(
                f"--data {cfg.data}: {len(corpus)} usable functions, of which {len(self.heldout)} "
                "fall to the held-out tenth; expected at least one on either side; give more code"
            )
        counts = ", ".join(f"{key} {n}" for key, n in corpus.manifest["counts"].items() if n)
        print(
            f"corpus {cfg.data}: {len(self.expert)} snippets to train on, "
            f"{len(self.heldout)} held out; {counts}"
        )

    def check_lengths(self):
        """Raises UserError if the longest snippet does not fit, alone or with its thoughts."""
        cfg = self.cfg
        longest = 0
        for snippets in (self.expert, self.heldout):
            tokens, lines, separators = snippet_sizes(snippets)
            with_thoughts = tokens + lines * cfg.think_max + separators
            self.longest = max(self.longest, int(with_thoughts.max()) + 1)
            if snippets is self.expert:
                longest = int(tokens.max())
        if longest > cfg.block:
            raise UserError(
                f"--block {cfg.block}: the longest snippet has {longest} tokens, and none is cut; "
                "expected at least that"
            )
        if self.longest > cfg.max_len:
            raise UserError(
                f"--max-len {cfg.max_len}: a snippet may grow to {self.longest} tokens with its "
                "thoughts; expected at least that, or a smaller --think-max or --max-tokens"
            )

    def training_problems(self):
        """Problems of --stage rlvr, read once -> (to train on, held out, counts to print).

        Raises UserError.
        """
        if not self.problems:
            self.problems = problems(self.cfg, self.tok, self.about(self.cfg.init)[0].max_len)
        return self.problems

    def expert_snippets(self, numbers):
        """Expert snippets of these numbers, in this order, and their lengths in tokens (n,)."""
        snippets = take(self.expert, numbers)
        return snippets, snippet_sizes(snippets)[0]

    # ------------------------------------------------------------ checkpoints

    def settings_of(self, fields):
        return {name: getattr(self.cfg, name) for name in fields}

    def has(self, name):
        """Is there a finished model of that name?"""
        return os.path.exists(self.path(f"{name}.pt"))

    def load(self, name, like=None):
        """(model, extra) of the run's folder.

        Raises UserError if it is missing, or of another shape than `like`.
        """
        if not self.has(name):
            raise UserError(
                f"{self.path(name + '.pt')}: no such model; run the stage that makes it first, "
                "or give --out"
            )
        model, extra = load_model(self.path(f"{name}.pt"), like)
        check_checkpoint(self.path(f"{name}.pt"), extra, self.tok, self.cfg.preset)
        return model.to(self.device, getattr(torch, self.cfg.weights)), extra

    def about(self, name):
        """(ModelConfig, extra) of a model of the run's folder; its weights are not read."""
        model, extra = load_model(self.path(f"{name}.pt"), mmap=True)
        return model.cfg, extra

    @parallel.rank0_only
    def save(self, name, model, **extra):
        """Write a finished model, and remove its unfinished stage."""
        extra = dict(extra, tokenizer=digest(self.tok), preset=self.cfg.preset)
        save_model(model, self.path(f"{name}.pt"), **extra, seconds=time.time() - self.started)
        self.forget(name)

    def forget(self, name):
        """Remove what an unfinished stage left."""
        for ending in ("state", "docs"):
            if os.path.exists(self.path(f"{name}.{ending}")):
                os.remove(self.path(f"{name}.{ending}"))

    def unfinished(self, name, **options):
        """With --resume, the state that an unfinished stage saved last; else None.

        options   of torch.load

        Raises UserError if its settings were others.
        """
        path = self.path(f"{name}.state")
        if not self.cfg.resume or not os.path.exists(path):
            return None
        state = torch.load(path, map_location="cpu", weights_only=True, **options)
        names = deciding("base") if name == "base" else self.settings
        changed = differences(state["settings"], self.cfg, names)
        if changed:
            raise UserError(
                f"{path}: the unfinished run was made with {', '.join(changed)}; give the same "
                "settings with --resume, or leave it out to start over"
            )
        return state

    def restore(self, name):
        """Load NAME.state to go on with a stage, and drop metrics logged after it was saved.

        Without --resume: return None and delete NAME.state and NAME.docs, so that an old state
        never meets new documents.
        """
        state = self.unfinished(name)
        if not state:
            parallel.rank0_only(self.forget)(name)
        self.lines = state["lines"] if state else 0
        self.keep_metrics(name, self.lines)
        return state

    @parallel.rank0_only
    def save_state(self, name, **state):
        """Write NAME.state: what the stage gives, its settings and the metrics lines so far."""
        settings = dataclasses.asdict(self.cfg)
        record = {**state, "settings": settings, "lines": self.lines}
        write_whole(record, self.path(f"{name}.state"))

    # ------------------------------------------------------------ metrics

    @parallel.rank0_only
    def keep_metrics(self, name, n):
        """Keep the first n metrics lines of a model, and all of other models."""
        path = self.path("metrics.jsonl")
        if not os.path.exists(path):
            return
        rows, seen = [], 0
        with open(path) as f:
            for row in f:
                model = model_of(row)
                seen += model == name
                if model is not None and (model != name or seen <= n):
                    rows.append(row)
        with open(path + ".part", "w") as f:
            f.writelines(rows)
        os.replace(path + ".part", path)

    def metrics(self, name):
        """The lines of metrics.jsonl of a model, as dicts, in order."""
        with open(self.path("metrics.jsonl")) as f:
            rows = [json.loads(line) for line in f]
        return [row for row in rows if row["model"] == name]

    def log(self, name, **metrics):
        """Add a line to metrics.jsonl."""
        if parallel.rank() == 0:
            with open(self.path("metrics.jsonl"), "a") as f:
                f.write(json.dumps({"model": name, **metrics}) + "\n")
        self.lines += 1


def model_of(row):
    """The model that a line of metrics.jsonl is about; None for half a line of a killed run."""
    try:
        return json.loads(row)["model"]
    except (ValueError, KeyError):
        return None


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


# ---------------------------------------------------------------- is all there that a stage needs?


def check(run, stage):
    """Is all that the stage needs there, and made with the same settings? Raises UserError."""
    check_name(run.cfg, stage)
    check_needs(run, stage)
    if run.cfg.preset == "tiny" and stage in ("pretrain", "em", "all"):
        check_base(run)
    if stage != "pretrain" and run.has("base"):
        check_fit(run)
    check_resume(run, stage)


def check_name(cfg, stage):
    """Raises UserError for a --name that another stage uses, and for --models without names."""
    own = {"ntp": "ntp", "em": "ra3", "all": "ra3"}.get(stage)
    reserved = {"base", "ntp", "ra3"} - {own}
    if cfg.name and (not re.fullmatch(r"[\w.-]+", cfg.name) or cfg.name in reserved):
        raise UserError(
            f"--name {cfg.name}: expected letters, digits, '.', '_' or '-', and not the name of "
            "another stage's result"
        )
    if not names_to_evaluate(cfg, stage):
        raise UserError(
            f"--models {cfg.models}: expected at least one name; give base,ntp,ra3 or some of them"
        )


def check_needs(run, stage):
    """Raises UserError if a model that the stage reads, and does not make, is missing."""
    cfg = run.cfg
    makes, needs = set(), names_to_evaluate(cfg, stage)
    setting = f"--models {cfg.models}"
    if stage == "pretrain":
        needs = []
    elif stage == "ntp":
        needs = ["base", cfg.match or "base"]
        setting = f"--match {cfg.match}" if cfg.match else "--stage ntp"
    elif stage == "rlvr":
        needs = [cfg.init]
        makes = {"base"} if cfg.preset != "tiny" else set()  # loaded, not trained
        setting = f"--init {cfg.init}"
    elif stage in ("em", "all"):
        makes = {"base", "ntp", cfg.name or "ra3"}
    missing = [n for n in dict.fromkeys(needs) if n not in makes and not run.has(n)]
    if missing:
        raise UserError(
            f"{setting}: {run.out} holds no {', '.join(n + '.pt' for n in missing)}; run the stage "
            "that makes it first, or give another --out or name"
        )


def check_base(run):
    """Raises UserError if base.pt, finished or not, was trained with other settings."""
    shape = base_shape(run)
    if not run.has("base"):
        run.unfinished("base", mmap=True)
        return
    settings = run.load("base", shape)[1]["settings"]
    names = [name for name in deciding("base") if name in settings]
    changed = differences(settings, run.cfg, names)
    if changed:
        raise UserError(
            f"{run.path('base.pt')}: made with {', '.join(changed)}; give the same settings, "
            "another --out, or delete it"
        )


def check_fit(run):
    """Raises UserError if base.pt is another model than --model, or too small for the data."""
    cfg = run.cfg
    base, extra = run.about("base")
    source = extra["settings"].get("model", cfg.model)
    if source != cfg.model:
        raise UserError(
            f"{run.path('base.pt')}: made from --model {source} and not {cfg.model}; give the "
            "same, or another --out"
        )
    if base.vocab_size < run.tok.vocab_size or base.max_len < run.longest:
        raise UserError(
            f"{run.path('base.pt')}: {base.vocab_size} ids and {base.max_len} positions; --preset "
            f"{cfg.preset} with this data needs {run.tok.vocab_size} and {run.longest}; give the "
            "preset that it was made with, or another --out"
        )


def check_resume(run, stage):
    """Raises UserError if what --resume would go on with was made with other settings."""
    cfg = run.cfg
    if stage == "ntp":
        run.unfinished(ntp_name(cfg), mmap=True)
    elif stage == "rlvr":
        run.unfinished(rlvr_name(cfg), mmap=True)
        if run.has(cfg.init):  # or it is about to be loaded
            run.training_problems()
    elif stage in ("em", "all"):
        name = cfg.name or "ra3"
        state = run.unfinished(name, mmap=True)
        finished = cfg.resume and run.has(name) and not state
        if finished and not current(run, name, stage_settings(cfg)):
            raise UserError(
                f"{run.path(name + '.pt')}: finished with other settings, so there is nothing to "
                "resume; leave out --resume to start over, or give another --name"
            )
        if not current(run, "ntp", deciding("ntp")):
            run.unfinished("ntp", mmap=True)


def current(run, name, fields):
    """Is there a finished model of that name, made with these settings?"""
    return run.has(name) and not differences(run.about(name)[1]["settings"], run.cfg, fields)


def done(run, name, fields):
    """With --resume: is there nothing left to do?"""
    unfinished = os.path.exists(run.path(f"{name}.state"))
    return run.cfg.resume and not unfinished and current(run, name, fields)


def ntp_name(cfg):
    """What --stage ntp makes: --name, or ntp, or with --match NAME ntp-as-NAME."""
    return cfg.name or (f"ntp-as-{cfg.match}" if cfg.match else "ntp")


def rlvr_name(cfg):
    """What --stage rlvr makes."""
    return cfg.name or f"rlvr-{cfg.init}"


def names_to_evaluate(cfg, stage):
    """--models, and the stage's own: after --stage em --name NAME it takes the place of ra3."""
    own = (cfg.name or "ra3") if stage in ("em", "all") else cfg.name
    names = [own if name == "ra3" and stage != "eval" else name for name in cfg.models.split(",")]
    return [name for name in dict.fromkeys([*names, own]) if name]
