"""The stage `midtrain`: a model mid-trained four ways, compared at equal tokens and equal compute.

With a pack: SmolLM2-135M on the corpus that was packed. Without: the built-in domain's small base.
A round is one seed:

    base                   the model as it is loaded
    ntp                    next-token training, no thoughts
    ra3                    thoughts by policy gradient
    best-of-n, hindsight   thoughts by selection; proposed after seeing the line
    ntp-as-NAME            next-token training for as many FLOPs as NAME took, E-steps included

ntp and the three below it have equal M-step tokens. Every model's bound and cross-entropy on
held-out code follow its training. Programs with a 95% interval follow, of the first five before
the last three are trained. Lines of midtrain.jsonl: seed, model, what, seconds, figures. More time
makes the first round larger, and rounds with new seeds follow while one more fits.
"""

import dataclasses
import functools
import pathlib
import time
import traceback

import numpy as np

from benchmarks import suites
from benchmarks.rates import pass_rates, rate_interval
from config import EVALUATE, UserError, make
from corpus.store import Corpus, split_heldout
from domain import domain_tasks
from engine.training import inference_copy
from evaluate import count_verdicts, heldout_elbo, sample_and_grade
from formats.gguf import smollm2_path
from run import Run
from speed.pack import PROGRAMS
from train import em, ntp, pretrain

METHODS = {"ra3": "reinforce", "best-of-n": "best-of-n", "hindsight": "hindsight"}  # -> --estep
TINY = dict(
    rows=2,
    n_heldout=3,
    mstep_steps=2,
    warmup=1,
    infuse=6,
    iters=1,
    estep_steps=1,
    snippets=2,
    group=2,
    resample=2,
    best_of=2,
    proposals=2,
    own=1,
    tried=0.2,
    think_max=6,
    elbo_samples=1,
    max_new=8,
    samples=1,
)
TINY_BASE = dict(
    n_layer=1,
    n_head=2,
    d_model=32,
    d_ff=64,
    vocab_size=400,
    max_len=4096,
    pretrain_steps=4,
    base_check=False,
    n_expert=24,
)
ROUND = 180.0  # seconds for which the sizes below are meant


def round_size(job):
    """Settings of a round of SmolLM2, larger with more time."""
    if job.tiny:
        return dict(TINY, n_expert=8, max_tokens=96, block=128, micro_tokens=512)
    scale = max(1, round(job.left() / ROUND))
    return dict(
        n_heldout=128,
        rows=32,
        block=512,
        infuse=600 * scale,
        mstep_steps=8 * scale,
        iters=1,
        estep_steps=8 * scale,
        best_of=8,
        tried=0.2,
        elbo_samples=4,
        max_new=160,
        samples=1,
        temperature=0.0,
        save_every=100_000,
    )


def round_settings(job, seed, size):
    """(Config of a round, its Corpus or None). Raises UserError."""
    common = dict(seed=seed, device=job.device, compile=job.compile)
    common["out"] = str(job.work / f"midtrain-{seed}")
    folder = job.packed / "corpus" if job.packed else None
    if folder is None or not folder.exists():
        small = {**TINY, **TINY_BASE} if job.tiny else {"n_expert": 2000}
        return make("tiny", **common, **small), None
    smollm2_path()  # raises UserError where the weights are not
    return make("smollm2-gpu", **common, **size), Corpus(folder)


def run_of(cfg, corpus, stage, name="", **settings):
    """A Run of a round's folder, with the packed corpus."""
    run = Run(dataclasses.replace(cfg, name=name, **settings), stage, prepare=corpus is None)
    if corpus is not None:
        fitting = corpus.take(np.flatnonzero(corpus.sizes()[0] <= cfg.max_tokens))
        run.expert, run.heldout = split_heldout(fitting, cfg.seed, cfg.n_expert, cfg.n_heldout)
        run.check_lengths()
    run.begin()
    return run


def train_model(cfg, corpus, name):
    """Make a model of a round -> the Run that it is in."""
    if name in METHODS:
        run = run_of(cfg, corpus, "em", name, estep=METHODS[name])
        em(run)
        return run
    run = run_of(cfg, corpus, "pretrain" if name == "base" else "ntp")
    if name == "base":
        pretrain(run)
    else:
        ntp(run, name, name.removeprefix("ntp-as-") if name.startswith("ntp-as-") else "")
    return run


def problem_sets(job, cfg, corpus):
    """{suite: tasks} of what programs are asked for."""
    limit = 1 if job.tiny else None
    if corpus is None:
        return {"domain": domain_tasks(cfg.seed, cfg.eval_tasks, cfg.eval_split)[:limit]}
    tasks = {}
    for suite in PROGRAMS:
        try:
            tasks[suite] = suites.load(suite, str(job.packed / "data"))[:limit]
        except UserError as e:
            job.write("midtrain", what=suite, note=str(e))
    return tasks


def programs(run, name, tasks):
    """Greedy programs of a model -> its figures."""
    model = inference_copy(run.load(name)[0], run.cfg)
    rows = sample_and_grade(
        model,
        run.tok,
        tasks,
        n=1,
        temperature=0.0,
        max_new=run.cfg.max_new,
        seed=(run.cfg.seed, EVALUATE),
        progress=False,
    )
    rates = pass_rates(rows, 1, 1)
    low, high = rate_interval(rates, 1)
    figures = {"pass@1": float(rates.mean()), "low": low, "high": high}
    return {**figures, "problems": len(tasks), "verdicts": count_verdicts(rows)}


class Round:
    """The models of one seed; a step that fails is told and leaves the others."""

    def __init__(self, job, cfg, corpus):
        self.job = job
        self.cfg = cfg
        self.corpus = corpus
        self.runs = {}  # name -> Run of each model that is done
        self.failed = 0  # steps

    def step(self, model, what, function):
        """Write the figures that a function returns, with the seconds that it took."""
        began = time.monotonic()
        row = dict(seed=self.cfg.seed, model=model, what=what)
        try:
            figures = function()
        except Exception as e:
            self.failed += 1
            figures = {"error": f"{type(e).__name__}: {e}"}
            with open(self.job.out / "midtrain.traceback", "a") as f:
                f.write(f"{row}\n{traceback.format_exc()}\n")
        self.job.write("midtrain", **row, seconds=time.monotonic() - began, **figures)

    def train(self, name):
        self.runs[name] = train_model(self.cfg, self.corpus, name)
        flops = self.runs[name].about(name)[1]["flops"]
        figures = {"tflop": flops / 1e12}
        if name != "base":
            rows = self.runs[name].metrics(name)
            mstep = [row["tokens"] for row in rows if row["phase"] == "mstep"]
            figures["mstep_tokens"] = sum(mstep)
        return figures

    def bound(self, name):
        run = self.runs[name]
        return heldout_elbo(run.load(name)[0], run.tok, run.heldout, run.cfg, run.hard)

    def run_all(self):
        problems = problem_sets(self.job, self.cfg, self.corpus)
        for names in (["base", "ntp", *METHODS], [f"ntp-as-{name}" for name in METHODS]):
            for name in names:
                self.step(name, "training", functools.partial(self.train, name))
                if name in self.runs:
                    self.step(name, "held out", functools.partial(self.bound, name))
            for suite, tasks in problems.items():
                for name in [name for name in names if name in self.runs]:
                    write = functools.partial(programs, self.runs[name], name, tasks)
                    self.step(name, suite, write)

    def drop_weights(self):
        """Remove the models of the round."""
        for path in pathlib.Path(self.cfg.out).glob("*.pt"):
            path.unlink()


def midtrain_stage(job):
    """Rounds of new seeds, while there is time for one more.

    Raises RuntimeError in the end if a step failed.
    """
    size = round_size(job)
    longest = 0.0
    seed = failed = 0
    while seed == 0 or job.left() > longest and not job.tiny:
        began = time.monotonic()
        cfg, corpus = round_settings(job, seed, size)
        models = Round(job, cfg, corpus)
        models.run_all()
        models.drop_weights()
        failed += models.failed
        longest = max(longest, time.monotonic() - began)
        seed += 1
    if failed:
        raise RuntimeError(f"{failed} steps failed (above, and the lines with an error)")
