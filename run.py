"""A run's folder: corpora in, checkpoints and metrics out.

NAME.pt is a finished model. NAME.state is an unfinished stage: weights, optimizer and position.
NAME.docs, beside it, is what its M-step trains on. There is no state of random generators to keep,
because every batch and every draw is a function of (seed, stage, iteration, step). Files are
written all or nothing.

Several processes may work in one folder, each on models of other names: NAME is locked by the file
.NAME.lock as long as a process makes it, or --stage eval evaluates it. metrics.jsonl and
results.json are for all, and .lock is held while one of them is written. The system opens the locks
of a process that ends, however it ends.
"""

import contextlib
import dataclasses
import fcntl
import functools
import json
import math
import os
import re
import sys
import time

import torch
from tqdm import tqdm

import data
import domain
from config import UserError, deciding, differences, read_object, stages_of, writing
from corpus.decontaminate import line
from corpus.prepare import arguments_of, prepare_corpus, tokenizer_of
from corpus.problems import problems
from corpus.store import snippet_sizes, split_heldout, take
from engine import parallel
from engine.backend import FAST
from engine.machine import device_of
from formats.checkpoints import load_model, save_model, write_whole
from formats.tokenizers import check_checkpoint, digest
from formats.track import check_tracker, open_mirror
from model import ModelConfig

SAVE_SHARE = 20  # a state is written again after so many times the seconds that it took


class Run:
    """A run's folder, its corpora and its models."""

    backend = FAST  # the functions that it computes with; train.py sets it

    def __init__(self, cfg, stage="em", prepare=True):
        self.cfg = cfg
        self.stage = stage
        self.out = cfg.out
        self.locks = []  # open files
        self.mirrors = {}  # of --track, by model
        if not torch.cuda.is_available():  # a mistake is told before the corpora are prepared
            device_of(cfg)
        self.settings = rlvr_settings(cfg) if stage == "rlvr" else stage_settings(cfg)
        self.started = time.time()
        if os.path.exists(self.out) and not os.path.isdir(self.out):
            raise UserError(f"--out {self.out}: expected a folder, found a file; give another path")
        self.hard = None  # hard lines of the held-out snippets, where they are known
        self.expert_hard = None  # and of the expert snippets
        self.expert_tasks = ()  # the tasks that these come from, likewise
        self.contamination = None
        self.sources = None  # of a corpus of real code: what they are, and their licences
        self.problems = None
        self.saved = (-math.inf, 0.0)  # when the last state was written, and the seconds it took
        self.longest = 0  # tokens of the longest snippet with its thoughts
        self.tok = tokenizer_of(cfg)
        if prepare and stage != "rlvr":
            self.prepare()

    @functools.cached_property
    def device(self):
        """The device of the models; a GPU is not touched before the corpora are prepared."""
        return device_of(self.cfg)

    @parallel.rank0_only
    def begin(self):
        """Make the folder, lock what this stage makes or evaluates, and note the settings.

        With nothing to make nothing is noted. `checked_run` comes first. Raises UserError.
        """
        with writing(self.out, "--out", "give another path"):
            os.makedirs(self.out, exist_ok=True)
            names = names_to_make(self, self.stage)
            for name in names_to_lock(self, self.stage):
                self.lock(name)
            for name in names:
                self.remove_parts(name)
            if not names:
                return
            settings = dataclasses.asdict(self.cfg)
            self.write_json("settings.json", settings)  # of the last command
            for name in names:
                self.write_json(f"settings-{name}.json", settings)
            if self.contamination:
                self.write_json("contamination.json", self.contamination)
            if self.sources:
                self.write_json("sources.json", {"sources": self.sources})

    def path(self, name):
        return os.path.join(self.out, name)

    def write_json(self, name, record):
        partial = self.path(f"{name}.{os.getpid()}.part")
        with open(partial, "w") as f:
            json.dump(record, f, indent=1)
        os.replace(partial, self.path(name))

    # ------------------------------------------------------------ several processes

    def lock(self, name):
        """Keep other processes from making or evaluating NAME, until this one ends.

        Raises UserError.
        """
        f = open(self.path(f".{name}.lock"), "a")
        try:
            fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            f.close()
            raise UserError(
                f"--out {self.out}: another process works on {name} there; wait for it, or give "
                "another --name, --models or --out"
            ) from None
        self.locks.append(f)

    @contextlib.contextmanager
    def exclusive(self):
        """Alone with the files that all models share: metrics.jsonl, results.json."""
        if parallel.rank():
            yield
            return
        with open(self.path(".lock"), "a") as f:
            fcntl.lockf(f, fcntl.LOCK_EX)
            yield

    def remove_parts(self, name):
        """Remove half the files of NAME that a killed process left."""
        name = re.escape(name)
        partial = re.compile(rf"({name}\.(pt|state|docs)|settings-{name}\.json)(\.\d+)*\.part")
        for file in os.listdir(self.out):
            if partial.fullmatch(file):
                os.remove(self.path(file))

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
        lengths = stages_of(self.cfg.stages)
        tasks = [domain.expert_task(self.cfg.seed, i, split, lengths) for i in range(n)]
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
        self.sources = corpus.manifest["sources"]
        unchecked = f"corpus {cfg.data}: not checked against any benchmark (--decontaminate false)"
        tqdm.write(line(self.contamination) if cfg.decontaminate else unchecked, file=sys.stderr)
        self.expert, self.heldout = split_heldout(corpus, cfg.seed, cfg.n_expert, cfg.n_heldout)
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
        """Write a finished model; remove its unfinished stage and results of earlier weights."""
        extra = dict(extra, tokenizer=digest(self.tok), preset=self.cfg.preset)
        save_model(model, self.path(f"{name}.pt"), **extra, seconds=time.time() - self.started)
        self.forget(name)
        self.forget_results(name)

    def forget_results(self, name):
        """Remove the entry of a model from results.json."""
        with self.exclusive(), contextlib.suppress(UserError):  # a damaged file is left alone
            results = read_object(self.path("results.json"))
            if results.pop(name, None):
                self.write_json("results.json", results)

    def forget(self, name, batches=True):
        """Remove what an unfinished stage left. batches: those of an infusion too."""
        for ending in ("state", "docs"):
            if os.path.exists(self.path(f"{name}.{ending}")):
                os.remove(self.path(f"{name}.{ending}"))
        if batches:
            self.forget_batches(name)

    def forget_batches(self, name):
        """Remove the batches of an infusion (documents.Batches)."""
        batch = re.compile(rf"{re.escape(name)}\.docs\.\d+")
        for file in os.listdir(self.out) if os.path.isdir(self.out) else []:
            if batch.fullmatch(file):
                os.remove(self.path(file))

    def unfinished(self, name, **options):
        """With --resume, the state that an unfinished stage saved last; else None.

        options   of torch.load

        Raises UserError if its settings were others.
        """
        path = self.path(f"{name}.state")
        if not self.cfg.resume or not os.path.exists(path):
            return None
        state = torch.load(path, map_location="cpu", weights_only=True, **options)
        changed = differences(state["settings"], self.cfg, self.deciding(name), grown=True)
        if changed:
            raise UserError(
                f"{path}: the unfinished run was made with {', '.join(changed)}; give the same "
                "settings with --resume, or leave it out to start over"
            )
        return state

    def deciding(self, name):
        """Names of the settings that decide what a model of this stage is."""
        if name == "base":
            return deciding("base")
        if self.stage == "rlvr":
            return deciding("rlvr")
        return deciding("ntp" if self.stage == "ntp" or name == "ntp" else "em")

    def grown(self, name):
        """With --resume, is NAME finished, and would go on with more iterations?"""
        if not self.cfg.resume or not self.has(name):
            return False
        settings = self.about(name)[1]["settings"]
        changed = differences(settings, self.cfg, self.deciding(name))
        return bool(changed) and not differences(
            settings, self.cfg, self.deciding(name), grown=True
        )

    def reopened(self, name):
        """The state from which a finished model goes on with more iterations."""
        model, extra = load_model(self.path(f"{name}.pt"))
        lines = len(self.metrics(name)) if os.path.exists(self.path("metrics.jsonl")) else 0
        return dict(
            phase="estep",
            iteration=extra["settings"]["iters"],
            step=0,
            flops=extra["flops"],
            seconds=extra.get("em_seconds", 0.0),
            weights=model.state_dict(),
            lines=lines,
        )

    def restore(self, name, may_grow=False):
        """Load NAME.state to go on with a stage, and drop metrics logged after it was saved.

        Without --resume: return None and delete NAME.state and NAME.docs, so that an old state
        never meets new documents.
        may_grow   a finished model goes on, too, if --iters asks for more iterations
        """
        state = self.unfinished(name)
        if not state and may_grow and self.grown(name):
            state = self.reopened(name)
        if not state:
            parallel.rank0_only(self.forget)(name, batches=not self.cfg.resume)
        self.lines = state["lines"] if state else 0
        self.keep_metrics(name, self.lines)
        return state

    def save_due(self, step, every=0):
        """Is a state to be written after this step? The ranks agree on it.

        Every `every` steps (0: cfg.save_every), but not so often that writing takes more than a
        twentieth of the time.
        """
        if (step + 1) % (every or self.cfg.save_every):
            return False
        written, seconds = self.saved
        due = time.monotonic() - written >= SAVE_SHARE * seconds
        return parallel.all_gather(due)[0]

    @parallel.rank0_only
    def save_state(self, name, **state):
        """Write NAME.state: what the stage gives, its settings and the metrics lines so far."""
        began = time.monotonic()
        settings = dataclasses.asdict(self.cfg)
        record = {**state, "settings": settings, "lines": self.lines}
        write_whole(record, self.path(f"{name}.state"))
        self.saved = (time.monotonic(), time.monotonic() - began)

    # ------------------------------------------------------------ metrics

    @parallel.rank0_only
    def keep_metrics(self, name, n):
        """Keep the first n metrics lines of a model, and all of other models."""
        path = self.path("metrics.jsonl")
        with writing(path), self.exclusive():
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
            return [json.loads(row) for row in f if model_of(row) == name]

    def log(self, name, **metrics):
        """Add a line to metrics.jsonl, with the time of day."""
        row = {"model": name, **metrics, "wall_s": round(time.time(), 3)}
        if parallel.rank() == 0:
            path = self.path("metrics.jsonl")
            with writing(path), self.exclusive(), open(path, "a") as f:
                f.write(json.dumps(row) + "\n")
            self.mirror(name, row)
        self.lines += 1

    def mirror(self, name, row):
        """Send a line of metrics.jsonl to --track; the first time, all lines of the model."""
        if self.cfg.track == "none":
            return
        if name in self.mirrors:
            self.mirrors[name](row, self.lines)
            return
        self.mirrors[name] = open_mirror(self.cfg, name)
        for step, logged in enumerate(self.metrics(name)):
            self.mirrors[name](logged, step)


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


def run_to_plan(cfg, stage):
    """The Run of a dry run, with its corpus if that is prepared: nothing is prepared here."""
    run = Run(cfg, stage, prepare=False)
    there = cfg.data == "domain" or prepare_corpus(**arguments_of(cfg, run.tok), make=False)
    if stage != "rlvr" and there:
        run.prepare()
    return run


def checked_run(cfg, stage):
    """The run's folder, if all is there that the stage needs, made with the same settings.

    Checks that cost nothing come first, and corpora are prepared in between. Raises UserError.
    """
    run = Run(cfg, stage, prepare=False)
    if cfg.resume and not os.path.isdir(run.out):
        raise UserError(
            f"--resume: nothing to resume in {run.out}, which is no folder; give the --out of the "
            "run, or leave out --resume to start one"
        )
    check_name(cfg, stage)
    check_tracker(cfg.track)
    check_needs(run, stage)
    if cfg.preset == "tiny" and stage in ("pretrain", "em", "all"):
        check_base(run)
    if stage != "pretrain" and run.has("base"):
        check_source(run)
    check_resume(run, stage)
    if stage != "rlvr":
        run.prepare()
    if stage != "pretrain" and run.has("base"):
        check_fit(run)
    if stage == "rlvr" and run.has(cfg.init):  # or it is about to be loaded
        run.training_problems()
    return run


def check_name(cfg, stage):
    """Raises UserError for a --name that another stage uses, and for --models without names."""
    own_name = {"ntp": "ntp", "em": "ra3", "all": "ra3"}.get(stage)
    reserved = {"base", "ntp", "ra3"} - {own_name}
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
    settings = load_model(run.path("base.pt"), shape, mmap=True)[1]["settings"]
    names = [name for name in deciding("base") if name in settings]
    changed = differences(settings, run.cfg, names)
    if changed:
        raise UserError(
            f"{run.path('base.pt')}: made with {', '.join(changed)}; give the same settings, "
            "another --out, or delete it"
        )


def check_source(run):
    """Raises UserError if base.pt is another model than --model."""
    cfg = run.cfg
    source = run.about("base")[1]["settings"].get("model", cfg.model)
    if source != cfg.model:
        raise UserError(
            f"{run.path('base.pt')}: made from --model {source} and not {cfg.model}; give the "
            "same, or another --out"
        )


def check_fit(run):
    """Raises UserError if base.pt is too small for the tokenizer or the data."""
    cfg = run.cfg
    base = run.about("base")[0]
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
        check_unfinished(run, ntp_name(cfg), may_grow=not cfg.match, again=bool(cfg.match))
    elif stage == "rlvr":
        check_unfinished(run, rlvr_name(cfg))
    elif stage in ("em", "all"):
        check_unfinished(run, cfg.name or "ra3", may_grow=True)
        if not current(run, "ntp", deciding("ntp")):
            run.unfinished("ntp", mmap=True)


def check_unfinished(run, name, may_grow=False, again=False):
    """Raises UserError if --resume finds NAME, finished or not, made with other settings.

    may_grow   a finished model goes on with more iterations
    again      a finished model is made again, whatever its settings
    """
    if run.unfinished(name, mmap=True) or not run.cfg.resume or not run.has(name) or again:
        return
    if not current(run, name, run.deciding(name)) and not (may_grow and run.grown(name)):
        raise UserError(
            f"{run.path(name + '.pt')}: finished with other settings, so there is nothing to "
            "resume; leave out --resume to start over, or give another --name"
        )


def names_to_make(run, stage):
    """The models that a stage is about to write. Example: em, first time -> [base, ntp, ra3]"""
    cfg = run.cfg
    base = [] if run.has("base") else ["base"]
    if stage == "pretrain":
        return base
    if stage == "ntp":
        again = cfg.match or not done(run, ntp_name(cfg), deciding("ntp"))
        return [ntp_name(cfg)] if again else []
    if stage == "rlvr":
        base = base if cfg.init == "base" else []
        return base if done(run, rlvr_name(cfg), run.settings) else [*base, rlvr_name(cfg)]
    if stage in ("em", "all"):
        ntp = [] if current(run, "ntp", deciding("ntp")) else ["ntp"]
        name = cfg.name or "ra3"
        ra3 = [] if done(run, name, stage_settings(cfg)) else [name]
        return [*base, *ntp, *ra3]
    return []


def names_to_lock(run, stage):
    """The models that no other process may make or evaluate meanwhile."""
    if stage == "eval":
        return names_to_evaluate(run.cfg, stage)
    evaluated = [run.cfg.name or "ra3"] if stage in ("em", "all") else []
    return list(dict.fromkeys([*names_to_make(run, stage), *evaluated]))


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
    own_name = (cfg.name or "ra3") if stage in ("em", "all") else cfg.name
    names = [
        own_name if name == "ra3" and stage != "eval" else name for name in cfg.models.split(",")
    ]
    return [name for name in dict.fromkeys([*names, own_name]) if name]
