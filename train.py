"""RA3 (arXiv 2509.25810) from a base model to a table of results: stages and the command line.

    python train.py --stage em                           the built-in domain, in minutes on a laptop
    python train.py --stage em --preset smollm2 --data stdlib              SmolLM2-135M, real Python
    python train.py --stage em --preset qwen2.5-1.5b --model FOLDER      a Hugging Face model folder
    python train.py --stage em --preset llama-3.1-8b --dry-run            its memory, tokens, hours

    pretrain   train the base model (built-in domain), or load it (other presets)   -> base.pt
    ntp        next-token mid-training on the expert's code, the baseline           -> ntp.pt
    em         RA3: E-step and M-step, repeated; makes base.pt and ntp.pt first if
               they are missing, evaluates all three at the end                     -> ra3.pt
    rlvr       GRPO with unit-test rewards from --init base, ntp or ra3 (rlvr.py)   -> rlvr-INIT.pt
    eval       evaluate the models of the run's folder                              -> results.json
    all        the same as em

The run's folder holds settings-NAME.json, checkpoints by name, metrics.jsonl (a line a step),
results.json, thoughts-NAME.jsonl (rollouts over held-out code) and report.html, a page of all that;
settings.json is of the last command that made a model. Of the built-in domain it also holds
tokenizer.txt, samples-NAME.jsonl (greedy programs) and samples-NAME-domain.jsonl (sampled ones), of
real code sources.json and contamination.json. Every batch and every draw is a function of
(seed, stage, iteration, step), so a checkpoint needs weights, optimizer and position only: a killed
run goes on with --resume as if nothing had happened, bit for bit on the CPU. A finished one goes on
with more --iters.

FLOPs are counted as 2 P a token forward and 6 P a token trained. P: parameters without the
embedding, plus the head.
"""

import collections
import functools
import os
import random
import subprocess
import sys
import time

import numpy as np
import torch
from tqdm import tqdm

import data
import domain
import estep
import mstep
import rlvr
from config import (
    DIAGNOSE,
    INFUSE,
    PRETRAIN,
    ROUNDING,
    UserError,
    command,
    deciding,
    parse,
    stages_of,
)
from elbo import never_thinks
from engine import documents, parallel, plan, training
from engine.backend import FAST, Backend
from engine.machine import compile_postfix, set_up, steps_bar
from engine.training import inference_copy
from evaluate import GO_ON, evaluate, heldout_elbo, on_all_ranks, rollouts_of
from formats import huggingface, tokenizers
from model import Transformer, work_size
from run import (
    base_shape,
    checked_run,
    current,
    done,
    names_to_evaluate,
    ntp_name,
    rlvr_name,
    run_to_plan,
    stage_settings,
)
from sample import plain_generate

# What --engine false runs on: the twins of engine.backend.FAST, with the same results.
PLAIN = Backend(
    rollout=estep.plain_rollouts,
    rollouts=estep.plain_rollouts,
    policy_gradient=estep.plain_policy_gradient,
    ntp_gradient=mstep.plain_ntp_gradient,
    generate=plain_generate,
    score_completions=rlvr.plain_scores,
)


def backend_of(cfg):
    """The functions that a run computes with. Raises UserError."""
    if not cfg.engine and parallel.world() > 1:
        raise UserError(
            "--engine false: the plain code runs in one process; leave out torchrun or the setting"
        )
    return FAST if cfg.engine else PLAIN


LATER_EXERCISES = 0.3  # share of worked exercises in the base corpus in the end
# What a base must be able to do before thoughts can be worth anything to it.
RIGHT_NOTES = 0.8  # share of its worked notes that are right
NOTE_NATS = 1.5  # what a right note is worth to its line
MORE_LAPS = 6  # of further training, if it falls short
SKILL_HELP = (
    f"expected at least {RIGHT_NOTES:.0%} and {NOTE_NATS:+.1f} nats, without which no thought can "
    "pay; give more --pretrain-steps, another --seed, or --base-check false to go on with this base"
)


# ---------------------------------------------------------------- stages


def pretrain(run):
    """The base model: the preset's own, or trained on the built-in domain.

    Nothing to do if base.pt is there. A base of the built-in domain that cannot write notes, or not
    read them, is trained on for up to MORE_LAPS laps; raises UserError if that does not help.
    """
    cfg = run.cfg
    if os.path.exists(run.path("base.pt")):
        return
    if cfg.preset != "tiny":
        model = huggingface.open_pretrained(huggingface.find(cfg), getattr(torch, cfg.weights))
        run.save("base", model, flops=0.0, settings=run.settings_of(("model",)))
        return
    check_base_block(run)
    parallel.rank0_only(tokenizers.save_tokenizer)(run.tok, run.path("tokenizer.txt"))
    model = Transformer(base_shape(run)).init_weights(cfg.seed)
    model = model.to(run.device, getattr(torch, cfg.weights))
    state = run.restore("base")
    seed = (cfg.seed, ROUNDING, PRETRAIN)
    model, optimizer = training.prepare_training(
        model, cfg, lambda m: training.adamw(m, cfg.pretrain_lr, cfg.weight_decay, seed), state
    )
    start = {"lap": 0, "step": 0, "flops": 0.0}
    progress = state.get("progress", {**start, **state}) if state else start
    while True:
        pretrain_lap(run, model, optimizer, progress)
        skill = note_skill(run, parallel.unwrap(model))
        run.log("base", phase="skill", lap=progress["lap"], **skill)
        tqdm.write(describe_skill(skill))
        if not cfg.base_check or skilled(skill):
            break
        if progress["lap"] == MORE_LAPS:
            raise UserError(f"seed {cfg.seed}: {describe_skill(skill)}; {SKILL_HELP}")
        progress.update(lap=progress["lap"] + 1, step=0)
    settings = run.settings_of(deciding("base"))
    run.save(
        "base", parallel.unwrap(model), flops=progress["flops"], settings=settings, skill=skill
    )


def check_base_block(run):
    """Raises UserError if a tenth of the base corpus' functions do not fit a row: none is cut."""
    cfg, rng = run.cfg, random.Random("base block")
    lengths = stages_of(cfg.base_stages)
    texts = ["".join(domain.base_text(rng, 0.0, cfg.useful, lengths)) for _ in range(300)]
    sizes = [len(run.tok.encode(text)) + 1 for text in texts]  # and the end of the text
    if np.mean([size > cfg.block for size in sizes]) > 0.1:
        raise UserError(
            f"--block {cfg.block}: functions of the base corpus (--base-stages {cfg.base_stages}) "
            f"have up to {max(sizes)} tokens, and those that do not fit would be left out; "
            "expected at least that"
        )


def pretrain_lap(run, model, optimizer, progress):
    """Train the base from progress["step"] on, and keep progress up to date.

    The first lap has cfg.pretrain_steps; further ones a third of that, at half the learning rate.
    """
    cfg = run.cfg
    first = progress["lap"] == 0
    steps = cfg.pretrain_steps if first else -(-cfg.pretrain_steps // 3)
    bar = steps_bar("pretrain" if first else "pretrain further", progress["step"], steps)
    for step in bar:
        began = time.time()
        batch = base_batch(run, progress["lap"], step)
        peak = cfg.pretrain_lr * (1.0 if first else 0.5)
        m = mstep.ntp_step(
            model,
            optimizer,
            *batch,
            training.learning_rate(step, steps, peak, 50),
            cfg,
            run.backend,
        )
        progress.update(step=step + 1, flops=progress["flops"] + 6 * work_size(model) * m["tokens"])
        m["tokens_per_s"] = m["tokens"] / (time.time() - began)
        run.log("base", phase="pretrain", lap=progress["lap"], step=step, **m)
        bar.set_postfix(
            loss=f"{m['loss']:.3f}", tok_s=f"{m['tokens_per_s']:.0f}", **compile_postfix()
        )
        if run.save_due(step, 5 * cfg.save_every):
            run.save_state(
                "base",
                weights=parallel.state(model),
                opt=parallel.state(optimizer),
                progress=dict(progress),
            )


def base_batch(run, lap, step):
    """The documents and kinds of a pre-training step: fresh texts of the base corpus.

    Docstrings are context: they are random, and never asked for. The share of exercises falls from
    cfg.exercises to LATER_EXERCISES in a straight line: where it fell at once, the loss rose from
    .005 to 8.9, and whether notes were learned again before the end was luck.
    """
    cfg, docs, kinds = run.cfg, [], []
    rng = random.Random(f"{cfg.seed}/{PRETRAIN}/{lap}/{step}")
    passed = 1.0 if lap else min(1.0, step / (0.7 * cfg.pretrain_steps))
    lengths = stages_of(cfg.base_stages)
    exercises = cfg.exercises + (LATER_EXERCISES - cfg.exercises) * passed
    while sum(map(len, docs)) < 0.9 * cfg.rows * cfg.block:
        prompt, rest = domain.base_text(rng, exercises, cfg.useful, lengths)
        ids = run.tok.encode(prompt + rest) + [run.tok.eos]
        context = len(run.tok.encode(prompt))
        if len(ids) <= cfg.block:
            docs.append(ids)
            kinds.append([data.PROMPT] * context + [data.CODE] * (len(ids) - context))
    return docs, kinds


def note_skill(run, model):
    """Can the model write worked notes, and read them? Measured on split `val` -> a dict.

    notes         worked notes that it writes before hard lines, of four rollouts of 48 tasks
    notes_right   share of them that is right
    note_nats     mean of log pi(line | its own right note) - log pi(line | no thought), nats
    right_by_stages   {stages of the program: notes_right among those programs}
    """
    lengths = stages_of(run.cfg.base_stages)
    tasks = [domain.expert_task(run.cfg.seed, i, "val", lengths) for i in range(48)]
    snippets = [data.snippet(run.tok, t.prompt + t.solution, len(t.prompt), t.name) for t in tasks]
    seed = (run.cfg.seed, DIAGNOSE, 0)
    rolls = rollouts_of(model, run.tok, snippets, 4, run.cfg, seed, "skill", run.backend)
    nats = []
    notes, right = collections.Counter(), collections.Counter()  # by stages of the program
    for n, row in enumerate(rolls.rows):
        worked = dict(tasks[n // rolls.G].notes)
        for line in row.thoughts.keys() & worked.keys():
            text = run.tok.decode(row.thoughts[line]).strip().removeprefix("#").strip()
            notes[len(worked)] += ":" in text
            if text == worked[line]:
                right[len(worked)] += 1
                nats.append(row.line_logp[line] - rolls.base_logp[n // rolls.G][line])
    return {
        "notes": notes.total(),
        "notes_right": right.total() / max(1, notes.total()),
        "note_nats": float(np.mean(nats)) if nats else 0.0,
        "right_by_stages": {n: right[n] / notes[n] for n in sorted(notes) if notes[n]},
    }


def skilled(skill):
    """Does the base reach both thresholds?"""
    return skill["notes_right"] >= RIGHT_NOTES and skill["note_nats"] >= NOTE_NATS


def describe_skill(skill):
    if not skill["notes"]:
        return "the base writes no worked notes"
    return (
        f"the base: {skill['notes_right']:.0%} of its {skill['notes']} worked notes are right, "
        f"a right note is worth {skill['note_nats']:+.2f} nats"
    )


def ntp(run, name, match=""):
    """The baseline: the M-steps of EM with nothing written in.

    match: the name of a model; train for as many FLOPs as it took, on all the expert code at once.
    """
    cfg, iters, steps = run.cfg, run.cfg.iters, run.cfg.mstep_steps
    model, _ = run.load("base")
    parts = [mstep.expert_part(run, iteration) for iteration in range(iters)]
    if match:
        iters, parts = 1, [np.arange(len(run.expert))]
        steps = round(run.about(match)[1]["flops"] / (6 * work_size(model) * cfg.rows * cfg.block))
    state, flops = run.restore(name, may_grow=not match), 0.0
    if state and "opt" not in state:  # of a finished model, which goes on with more iterations
        state["opt"] = mstep_start(model, cfg, flops)["opt"]
    for iteration in range(state["iteration"] if state else 0, iters):
        docs = documents.Code(run.tok, *run.expert_snippets(parts[iteration]))
        model, flops = mstep.mstep(run, name, model, docs, iteration, steps, state, flops)
        state = None
        if iteration + 1 < iters:
            start = mstep_start(model, cfg, flops)
            run.save_state(name, phase="mstep", iteration=iteration + 1, **start)
    run.save(name, model, flops=flops, settings=run.settings_of(deciding("ntp")))


def em(run):
    """RA3: per iteration an E-step (learn q with pi frozen), then an M-step (fine-tune pi).

    The M-step's documents are the expert's code with q's thoughts written in.
    """
    cfg, name = run.cfg, run.cfg.name or "ra3"
    pi, _ = run.load("base")
    state = run.restore(name, may_grow=True)
    flops = state["flops"] if state else 0.0
    began = time.time() - (state["seconds"] if state else 0.0)
    if state:
        pi.load_state_dict(state["weights"])

    def seconds():
        return time.time() - began

    for iteration in range(state["iteration"] if state else 0, cfg.iters):
        if not (state and state["phase"] == "mstep"):
            q = pi
            way = estep.way_of(run, name, pi, iteration, state)
            if way == "reinforce" and not never_thinks(cfg):
                q, flops = estep.estep(run, name, pi, iteration, state, flops, seconds)
            flops += infused(run, name, q, pi, way, iteration, flops)
            q = None  # its weights would take memory during the M-step
            state = mstep_start(pi, cfg, flops)
            run.save_state(name, phase="mstep", iteration=iteration, seconds=seconds(), **state)
        docs = documents.Written(run.path(f"{name}.docs"))
        position = (iteration, cfg.mstep_steps, state, flops)
        pi, flops = mstep.mstep(run, name, pi, docs, *position, lambda: {"seconds": seconds()})
        state = None
        tell_heldout(run, name, pi, iteration, flops)
        if cfg.keep_iterations:
            settings = {**stage_settings(cfg), "iters": iteration + 1}
            run.save(f"{name}-iteration-{iteration + 1}", pi, flops=flops, settings=settings)
        if iteration + 1 < cfg.iters:
            following = {"phase": "estep", "iteration": iteration + 1, "step": 0, "flops": flops}
            run.save_state(name, **following, weights=pi.state_dict(), seconds=seconds())
    run.save(name, pi, flops=flops, settings=stage_settings(cfg), em_seconds=seconds())


def mstep_start(model, cfg, flops):
    """Where an M-step begins: the weights, and an optimizer that has seen nothing."""
    optimizer = training.adamw(model, cfg.lr, cfg.weight_decay)
    weights, moments = model.state_dict(), optimizer.state_dict()
    return {"step": 0, "flops": flops, "weights": weights, "opt": moments}


def infused(run, name, q, pi, way, iteration, flops):
    """Write the M-step's documents, expert code with thoughts written in, to NAME.docs -> FLOPs."""
    cfg, counts, numbers = run.cfg, collections.Counter(), mstep.expert_part(run, iteration)
    scorer = inference_copy(pi, cfg)
    thinker = scorer if q is pi else inference_copy(q, cfg)
    seed = (cfg.seed, INFUSE, iteration)
    source = estep.Proposer(
        thinker, scorer, run.tok, cfg, seed, counts, way, iteration, run.expert_tasks, run.backend
    )
    snippets, _ = run.expert_snippets(numbers)
    path = run.path(f"{name}.docs")
    saved = documents.Batches(path, {**stage_settings(cfg), "iteration": iteration})
    docs = mstep.infuse_corpus(
        run.tok, snippets, numbers, *estep.proposals(source), cfg.block, counts, saved
    )
    documents.write_documents(path, docs)
    parallel.rank0_only(run.forget_batches)(name)
    work = 2 * work_size(pi) * counts["forward_tokens"]
    if counts["cut"]:
        tqdm.write(
            f"{name}: {counts['cut']} of {counts['cut'] + counts['think']} thoughts did not fit "
            f"--block {cfg.block} and are left out"
        )
    run.log(
        name,
        phase="infuse",
        iteration=iteration,
        flops=flops + work,
        think_share=counts["think"] / max(1, counts["lines"]),
        think_len=counts["thought_tokens"] / max(1, counts["think"]),
        not_canonical=counts["not_canonical"],
        cut=counts["cut"],
    )
    return work


def tell_heldout(run, name, model, iteration, flops):
    """Log and print the bound on held-out code after an EM iteration."""
    metrics = heldout_elbo(model, run.tok, run.heldout, run.cfg, run.hard, run.backend)
    run.log(name, phase="heldout", iteration=iteration, flops=flops, **metrics)
    tqdm.write(
        f"after EM iteration {iteration + 1}: held-out ELBO {metrics['elbo']:.2f} "
        f"(never thinking: {metrics['elbo_no_think']:.2f}), "
        f"thoughts before {metrics['think_share']:.1%} of lines, "
        f"gain {metrics['gain']:+.2f} nats each"
    )


# ---------------------------------------------------------------- how it went

DEAD = 0.02  # share of lines with a thought below which thinking has died out


def closing_words(run, results):
    """In words: what RA3 solves beside NTP and base, and where it thinks; or that it does not."""
    name = run.cfg.name or "ra3"
    result = results[name]
    lines = []
    if result.get("pass@1") is not None:
        others = [
            f"{100 * (result['pass@1'] - results[other]['pass@1']):+.1f} points against {other}"
            for other in ("ntp", "base")
            if other in results
        ]
        beside = f": {', '.join(others)}" if others else ""
        lines.append(f"{name} solves {result['pass@1']:.1%} of the held-out tasks{beside}")
    if result["think_share"] < DEAD:
        lines.append(epitaph(run, name))
    elif "think_hard" in result:
        lines.append(
            f"it thinks before {result['think_hard']:.0%} of the hard lines "
            f"and {result['think_easy']:.0%} of the others"
        )
    else:
        lines.append(f"it thinks before {result['think_share']:.1%} of the lines")
    return "; ".join(lines)


def epitaph(run, name):
    """That thinking died out: since when, what the base's thoughts were worth, what to try."""
    rows = [row for row in run.metrics(name) if "think_share" in row]
    first = next((row for row in rows if row["phase"] == "diagnose"), None)
    worth = f"the base's own thoughts were worth {first['gain']:+.2f} nats each; " if first else ""
    steps = [row for row in rows if row["phase"] == "estep"]
    dead = next((row for row in steps if row["think_share"] < DEAD), None)
    when = f" since E-step {dead['iteration'] + 1}, step {dead['step']}" if dead else ""
    return (
        f"thinking died out{when}: before {rows[-1]['think_share']:.1%} of the lines at the end; "
        f"{worth}try --c 0, --estep best-of-n, a larger --group or --resample, "
        "or a base that writes better notes"
    )


STAGES = ("pretrain", "ntp", "em", "rlvr", "eval", "all")
OPTIONS = {
    "--stage": {"default": "em", "choices": STAGES, "help": "what to do (default em)"},
    "--dry-run": {
        "nargs": "?",
        "const": "",
        "metavar": "DEVICE",
        "help": "only say what the run takes: memory, tokens, hours, and whether it fits the "
        "device, or another: h100, h200, a100, 4090, or such as 80GiB,700TFLOP/s,3000GB/s",
    },
}


def main(argv):
    cfg, args = parse(argv, OPTIONS, __doc__)
    stage = args.stage
    parallel.settle(cfg)
    set_up(cfg)
    rlvr.check_reward(cfg)
    if args.dry_run is not None:
        card = plan.planned_device(args.dry_run)
        plan.print_plan(cfg, stage, card, run_to_plan(cfg, stage) if plan.shape(cfg)[1] else None)
        return
    run = checked_run(cfg, stage)
    run.backend = backend_of(cfg)
    run.begin()
    if stage in ("pretrain", "em", "all") or stage == "rlvr" and cfg.init == "base":
        pretrain(run)
    if stage == "ntp" and (cfg.match or not done(run, ntp_name(cfg), deciding("ntp"))):
        ntp(run, ntp_name(cfg), cfg.match)
    if stage in ("em", "all"):
        mid_train(run)
    if stage == "rlvr" and not done(run, rlvr_name(cfg), run.settings):
        rlvr.rlvr(run, rlvr_name(cfg))
    if stage in ("eval", "em", "all"):
        results = evaluate(run, names_to_evaluate(cfg, stage))
    print(f"\n{time.time() - run.started:.0f} s; everything is in {run.out}/")
    if stage in ("em", "all"):
        print(closing_words(run, results))
        if cfg.report:
            write_report(run)


@parallel.rank0_only
def write_report(run):
    """report.html in the run's folder, by `python -m report`. Where that fails, it is only told."""
    folder = os.path.dirname(os.path.abspath(__file__))
    command = [sys.executable, "-m", "report", os.path.abspath(run.out)]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=False)
    again = f"python -m report {run.out}"
    if done.returncode:
        print(f"no page of the run was made (above); this makes it: {again}", file=sys.stderr)
    else:
        print(f"a page to look at: {run.path('report.html')}")


def mid_train(run):
    """NTP and RA3, where they are not done."""
    if not current(run, "ntp", deciding("ntp")):
        ntp(run, "ntp")
    if not done(run, run.cfg.name or "ra3", stage_settings(run.cfg)):
        em(run)


if __name__ == "__main__":
    stopped = f"stopped; {GO_ON}; an evaluation begins again"
    command(functools.partial(on_all_ranks, main), stopped)
