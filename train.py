"""RA3 (arXiv 2509.25810) from a base model to a table of results: stages, checkpoints, the command line.

    python train.py --stage em                                          the built-in domain, from nothing, in minutes on a laptop
    python train.py --stage em --preset smollm2 --data stdlib           SmolLM2-135M on the functions of Python's standard library
    python train.py --stage em --preset qwen2.5-1.5b --model FOLDER     a model in Hugging Face's format (hf.py)
    python train.py --stage em --preset llama-3.1-8b --dry-run          what that would take: memory, tokens, hours (plan.py)

    pretrain   train the base model (built-in domain), or load it (other presets)            -> base.pt
    ntp        next-token mid-training on the expert's code, the baseline                    -> ntp.pt
    em         RA3: E-step and M-step, repeated; makes base.pt and ntp.pt first if they are missing, evaluates all three at the end -> ra3.pt
    rlvr       GRPO with unit-test rewards from --init base, ntp or ra3 (rlvr.py)            -> rlvr-base.pt, rlvr-ntp.pt, rlvr-ra3.pt
    eval       evaluate the models of the run's folder                                       -> results.json
    all        the same as em

The run's folder holds settings.json, tokenizer.txt, checkpoints by name, metrics.jsonl (a line a step), results.json and samples-NAME.jsonl.
Every batch and every draw is a function of (seed, stage, iteration, step), so a checkpoint needs weights, optimizer and position only:
a killed run goes on with --resume as if nothing had happened, bit for bit on the CPU.

FLOPs are counted as 2 P a token forward and 6 P a token trained, P = parameters without the embedding, plus the head.
"""

import collections
import copy
import json
import math
import os
import random
import re
import sys
import time

import numpy as np
import torch
from tqdm import tqdm

import data
import elbo
import hf
import mstep
import parallel
import plan
import tasks
import tokenizer
from config import UserError, parse
from corpus import take
from estep import advantages, policy_gradient, summary
from evaluate import bound, for_rollouts, rollouts_of, score, solve
from model import ModelConfig, Transformer, set_threads, work_size
from rlvr import problems, rlvr
from rollouts import rollouts
from runs import Run, stage_settings, steps_bar
from sandbox import HarnessError

PRETRAIN, ESTEP, MSTEP, INFUSE, DIAGNOSE = range(
    5
)  # second word of every seed, after the run's own
MODEL_FIELDS = (
    "n_layer",
    "n_head",
    "d_model",
    "d_ff",
    "vocab_size",
    "max_len",
    "pretrain_steps",
    "pretrain_lr",
    "notes_share",
    "useful",
    "rows",
    "block",
    "weight_decay",
    "grad_clip",
    "bf16",
    "weights",
    "seed",
)  # what decides the base model
TUNE_FIELDS = MODEL_FIELDS + (
    "preset",
    "model",
    "data",
    "n_expert",
    "n_heldout",
    "max_tokens",
    "min_lines",
    "text_column",
    "unit",
    "docstrings",
    "keep_comments",
    "near_duplicate",
    "decontaminate",
    "data_dir",
    "infuse",
    "mstep_steps",
    "lr",
    "warmup",
    "iters",
    "match",
)  # what decides the NTP baseline


# ---------------------------------------------------------------- before anything is written


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
            other = [
                f"{k}={made[k]!r} and not {getattr(cfg, k)!r}"
                for k in made
                if made[k] != getattr(cfg, k)
            ]
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
            run.problems = problems(cfg, run.tok, run.about(cfg.init)[0].max_len)
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
        if not current(run, "ntp", TUNE_FIELDS):
            run.unfinished("ntp", mmap=True)


def current(run, name, fields):
    """Is there a finished model of that name, made with these settings?"""
    if not os.path.exists(run.path(f"{name}.pt")):
        return False
    made = run.about(name)[1]["settings"]
    return all(made.get(k) == getattr(run.cfg, k) for k in fields)


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


# ---------------------------------------------------------------- stages


def pretrain(run):
    """The base model: trained on the built-in domain's base corpus, or the preset's own. Nothing to do if base.pt is there."""
    cfg = run.cfg
    if cfg.preset != "tiny":
        if not os.path.exists(run.path("base.pt")):
            run.save(
                "base",
                hf.open_model(hf.find(cfg), getattr(torch, cfg.weights)),
                flops=0.0,
                settings=run.settings_of(("model",)),
            )
        return
    if os.path.exists(run.path("base.pt")):
        return
    parallel.alone(tokenizer.save_tokenizer)(run.tok, run.path("tokenizer.txt"))
    model = (
        Transformer(base_shape(run))
        .init_weights(cfg.seed)
        .to(run.device, getattr(torch, cfg.weights))
    )
    state, start, flops = run.restore("base"), 0, 0.0
    model, opt = mstep.trained(
        model, cfg, lambda m: mstep.adamw(m, cfg.pretrain_lr, cfg.weight_decay), state
    )
    if state:
        start, flops = state["step"], state["flops"]
    bar = steps_bar("pretrain", start, cfg.pretrain_steps)
    for step in bar:
        began = time.time()
        batch = base_batch(run, step)
        lr = mstep.learning_rate(step, cfg.pretrain_steps, cfg.pretrain_lr, 50)
        m = mstep.ntp_step(model, opt, *batch, lr, cfg)
        flops += 6 * work_size(model) * m["tokens"]
        m["tokens_per_s"] = m["tokens"] / (time.time() - began)
        run.log("base", phase="pretrain", step=step, **m)
        bar.set_postfix(loss=f"{m['loss']:.3f}", tok_s=f"{m['tokens_per_s']:.0f}")
        if (step + 1) % (5 * cfg.save_every) == 0:
            run.save_state(
                "base",
                weights=parallel.state(model),
                opt=parallel.state(opt),
                step=step + 1,
                flops=flops,
            )
    run.save("base", parallel.whole(model), flops=flops, settings=run.settings_of(MODEL_FIELDS))


def base_batch(run, step):
    """The documents and kinds of a pretraining step: fresh texts of the base corpus, their docstrings as context (they are random, and never asked for)."""
    cfg, docs, kinds = run.cfg, [], []
    rng = random.Random(f"{cfg.seed}/{PRETRAIN}/{step}")
    while sum(map(len, docs)) < 0.9 * cfg.rows * cfg.block:
        prompt, rest = tasks.base_text(rng, step < cfg.notes_share * cfg.pretrain_steps, cfg.useful)
        ids, given = run.tok.encode(prompt + rest) + [run.tok.eos], len(run.tok.encode(prompt))
        if len(ids) <= cfg.block:
            docs.append(ids)
            kinds.append([data.PROMPT] * given + [data.CODE] * (len(ids) - given))
    return docs, kinds


def expert_part(run, iteration):
    """Indices of the expert snippets of one M-step, cfg.infuse of them; the M-step goes over them as often as its steps need."""
    return np.random.default_rng([run.cfg.seed, MSTEP, iteration]).permutation(len(run.expert))[
        : run.cfg.infuse
    ]


def fine_tune(run, name, model, docs, iteration, steps, state, flops, keep=lambda: {}):
    """The M-step: `steps` of next-token training on docs, mstep.Code or mstep.Written. state: where to go on (it is emptied), or None; keep(): what else
    its checkpoints hold. Returns the model and the FLOPs so far."""
    cfg, start = run.cfg, 0
    model, opt = mstep.trained(
        model, cfg, lambda m: mstep.adamw(m, cfg.lr, cfg.weight_decay), state
    )
    if state:
        start, flops = state["step"], state["flops"]
        state.clear()  # or its weights would take memory until the end
    of_step = mstep.step_documents(
        docs.lengths, cfg.rows * cfg.block, (cfg.seed, MSTEP, iteration, 1)
    )
    bar = steps_bar(f"{name}: M-step {iteration + 1}", start, steps)
    for step in bar:
        began = time.time()
        some, kinds = zip(*(docs[i] for i in of_step(step)))
        m = mstep.ntp_step(
            model, opt, some, kinds, mstep.learning_rate(step, steps, cfg.lr, cfg.warmup), cfg
        )
        flops += 6 * work_size(model) * m["tokens"]
        m["tokens_per_s"] = m["tokens"] / (time.time() - began)
        run.log(name, phase="mstep", iteration=iteration, step=step, flops=flops, **m)
        bar.set_postfix(loss=f"{m['loss']:.3f}", tok_s=f"{m['tokens_per_s']:.0f}")
        if (step + 1) % cfg.save_every == 0 and step + 1 < steps:
            run.save_state(
                name,
                phase="mstep",
                iteration=iteration,
                step=step + 1,
                flops=flops,
                weights=parallel.state(model),
                opt=parallel.state(opt),
                **keep(),
            )
    return parallel.whole(model), flops


def ntp(run, name, match=""):
    """The baseline: the M-steps of EM with nothing written in. match: for as many FLOPs as that model took."""
    cfg, iters, steps = run.cfg, run.cfg.iters, run.cfg.mstep_steps
    model, _ = run.load("base")
    parts = [expert_part(run, iteration) for iteration in range(iters)]
    if match:  # all the expert code there is, in one go
        iters, parts = 1, [np.arange(len(run.expert))]
        steps = round(run.about(match)[1]["flops"] / (6 * work_size(model) * cfg.rows * cfg.block))
    state, flops = run.restore(name), 0.0
    for iteration in range(state["iteration"] if state else 0, iters):
        docs = mstep.Code(run.tok, take(run.expert, parts[iteration]))
        model, flops = fine_tune(run, name, model, docs, iteration, steps, state, flops)
        state = None
        if iteration + 1 < iters:
            run.save_state(
                name,
                phase="mstep",
                iteration=iteration + 1,
                step=0,
                flops=flops,
                weights=model.state_dict(),
                opt=mstep.adamw(model, cfg.lr, cfg.weight_decay).state_dict(),
            )
    run.save(name, model, flops=flops, settings=run.settings_of(TUNE_FIELDS))


def diagnose(run, pi):
    """What the model's own thoughts are worth before the E-step, printed: the rule of thumb is that a gain below c dies out."""
    cfg = run.cfg
    rolls = rollouts_of(pi, run.tok, run.expert[:32], 4, cfg, (cfg.seed, DIAGNOSE), "diagnose")
    s = summary(rolls, cfg.c)
    words = {}
    for row in rolls.rows:
        for t, ids in row.thoughts.items():
            word = run.tok.decode(ids[1:3]).strip().split(" ")[0] or "(empty)"
            words.setdefault(word, []).append(row.gain[t])
    top = sorted(words.items(), key=lambda kv: -len(kv[1]))[:6]
    tqdm.write(
        f"thoughts of the model as it is: before {s['think_share']:.1%} of lines, gain {s['gain']:+.2f} nats each, "
        f"{s['gain_above_c']:.0%} of them above c = {cfg.c:g}; by first word: "
        + ", ".join(f"{w!r} {np.mean(g):+.2f} ({len(g)})" for w, g in top)
    )
    if s["gain"] < cfg.c:
        tqdm.write(
            f"warning: the mean gain is below c = {cfg.c:g}: the bound is served best by thinking less, and thinking may die out"
        )
    return {k: s[k] for k in ("think_share", "gain", "gain_above_c", "elbo", "elbo_no_think")}


def em(run):
    """RA3: per iteration an E-step (learn q with pi frozen), then an M-step (write q's thoughts in, fine-tune pi)."""
    cfg, name = run.cfg, run.cfg.name or "ra3"
    pi, _ = run.load("base")
    state, flops, first, seconds = run.restore(name), 0.0, 0, 0.0
    if state:
        first, flops, seconds = state["iteration"], state["flops"], state["seconds"]
        pi.load_state_dict(state["weights"])
    began = time.time() - seconds
    for iteration in range(first, cfg.iters):
        if not (state and state["phase"] == "mstep"):
            q = pi
            if cfg.estep == "reinforce" and cfg.c < float("inf"):
                q, flops = learn_q(
                    run, name, pi, iteration, state, flops, lambda: time.time() - began
                )
            stats = infused(run, name, q, pi, iteration)
            q = None  # or its weights would take memory during the M-step
            flops += 2 * work_size(pi) * stats["forward_tokens"]
            run.log(
                name,
                phase="infuse",
                iteration=iteration,
                flops=flops,
                think_share=stats["think"] / max(1, stats["lines"]),
                think_len=stats["thought_tokens"] / max(1, stats["think"]),
                not_canonical=stats["not_canonical"],
                cut=stats["cut"],
            )
            state = {
                "step": 0,
                "flops": flops,
                "weights": pi.state_dict(),
                "opt": mstep.adamw(pi, cfg.lr, cfg.weight_decay).state_dict(),
            }
            run.save_state(
                name, phase="mstep", iteration=iteration, seconds=time.time() - began, **state
            )
        pi, flops = fine_tune(
            run,
            name,
            pi,
            mstep.Written(run.path(f"{name}.docs")),
            iteration,
            cfg.mstep_steps,
            state,
            flops,
            lambda: {"seconds": time.time() - began},
        )
        state = None
        said = bound(pi, run.tok, run.heldout, cfg, run.hard)
        run.log(name, phase="heldout", iteration=iteration, flops=flops, **said)
        tqdm.write(
            f"after EM iteration {iteration + 1}: held-out ELBO {said['elbo']:.2f} (never thinking: {said['elbo_no_think']:.2f}), "
            f"thoughts before {said['think_share']:.1%} of lines, gain {said['gain']:+.2f} nats each"
        )
        if iteration + 1 < cfg.iters:
            run.save_state(
                name,
                phase="estep",
                iteration=iteration + 1,
                step=0,
                flops=flops,
                weights=pi.state_dict(),
                seconds=time.time() - began,
            )
    run.save(name, pi, flops=flops, settings=stage_settings(cfg), em_seconds=time.time() - began)


def learn_q(run, name, pi, iteration, state, flops, seconds):
    """The E-step by policy gradient, from a copy of pi. Returns q and the FLOPs so far."""
    cfg, start = run.cfg, state["step"] if state else 0
    q, opt = mstep.trained(
        copy.deepcopy(pi),
        cfg,
        lambda m: mstep.adamw(m, cfg.estep_lr, 0.0),
        state if start else None,
        "q",
    )
    if not start:
        run.log(name, phase="diagnose", iteration=iteration, **diagnose(run, pi))
    pi.requires_grad_(False)  # or the KL's gradient would wait in pi for the M-step's first step
    pi_fixed = for_rollouts(pi, cfg)
    bar = steps_bar(f"{name}: E-step {iteration + 1}", start, cfg.estep_steps)
    for step in bar:
        began = time.time()
        for group in opt.param_groups:
            group["lr"] = mstep.learning_rate(
                step, cfg.estep_steps, cfg.estep_lr * cfg.estep_lr_decay**iteration, 1
            )
        mine = np.random.default_rng([cfg.seed, ESTEP, iteration, step]).choice(
            len(run.expert), min(cfg.snippets, len(run.expert)), replace=False
        )
        rolls = rollouts(
            for_rollouts(q, cfg),
            pi_fixed,
            run.tok,
            [run.expert[i] for i in mine],
            cfg.group,
            cfg.think_max,
            (cfg.seed, ESTEP, iteration, step),
            mine.tolist(),
            cfg.snippets,
            horizon=cfg.horizon,
            need="gains" if cfg.credit == "prefix" else "rewards",
            states=cfg.kl > 0,
        )
        sampled = time.time()
        logp, gain = rolls.lines(lambda r: r.line_logp), rolls.lines(lambda r: r.gain)
        A = advantages(
            logp,
            gain,
            rolls.think,
            rolls.valid,
            cfg.group,
            cfg.c,
            cfg.credit,
            cfg.discount,
            cfg.normalise,
            cfg.gain_floor,
        )
        loss, away, trained, gap = policy_gradient(
            q, pi, run.tok, rolls, A, cfg.kl, cfg.bf16, cfg.micro_tokens
        )
        norm = parallel.clip(q, cfg.grad_clip).item()
        opt.step()
        opt.zero_grad(set_to_none=True)
        flops += work_size(q) * (2 * rolls.forward_tokens + 6 * trained)
        s = summary(rolls, cfg.c, run.expert_hard and [run.expert_hard[i] for i in mine])
        tokens = rolls.forward_tokens + trained
        run.log(
            name,
            phase="estep",
            iteration=iteration,
            step=step,
            flops=flops,
            reward=s["elbo"],
            loss=loss,
            kl=away,
            grad_norm=norm,
            logq_gap=gap,
            rollout_s=sampled - began,
            update_s=time.time() - sampled,
            tokens=tokens,
            tokens_per_s=tokens / (time.time() - began),
            **{k: s[k] for k in s if k not in ("elbo", "ce_code")},
        )
        bar.set_postfix(
            reward=f"{s['elbo']:.2f}",
            think=f"{s['think_share']:.2f}",
            gain=f"{s.get('gain', math.nan):+.2f}",
            tok_s=f"{tokens / (time.time() - began):.0f}",
        )
        if (step + 1) % cfg.save_every == 0:
            run.save_state(
                name,
                phase="estep",
                iteration=iteration,
                step=step + 1,
                flops=flops,
                q=parallel.state(q),
                opt=parallel.state(opt),
                weights=pi.state_dict(),
                seconds=seconds(),
            )
    pi.requires_grad_(True)
    return parallel.whole(q), flops


def infused(run, name, q, pi, iteration):
    """Write the M-step's documents, expert code with the thoughts of cfg.estep, to NAME.docs. Returns counts: see mstep.infuse_corpus."""
    cfg, stats, chosen = run.cfg, collections.Counter(), expert_part(run, iteration)
    if cfg.estep == "oracle":
        docs = (
            mstep.write(
                run.tok,
                run.expert[i],
                {t: run.tok.encode(f" # {note}") for t, note in run.expert_tasks[i].notes},
                cfg.block,
                stats,
            )
            for i in chosen
        )
    else:
        scorer = for_rollouts(pi, cfg)
        thinker = scorer if q is pi else for_rollouts(q, cfg)
        docs = mstep.infuse_corpus(
            thinker,
            scorer,
            run.tok,
            take(run.expert, chosen),
            cfg,
            (cfg.seed, INFUSE, iteration),
            chosen,
            stats,
            iteration=iteration,
        )
    mstep.write_documents(run.path(f"{name}.docs"), docs)
    return stats


def evaluate(run, names):
    """Evaluate models of the run's folder, print a table, merge the figures into results.json."""
    cfg = run.cfg
    problems = (
        tasks.domain_tasks(cfg.seed, cfg.eval_tasks, cfg.eval_split) if cfg.data == "domain" else []
    )
    results, shown = {}, {}
    for name in names:
        model, extra = run.load(name)
        said = {"pass@1": None, "pass@5": None}
        if problems:
            for key, n, temperature in (("", cfg.samples, cfg.temperature), ("greedy", 1, 0.0)):
                rows = solve(
                    for_rollouts(model, cfg),
                    run.tok,
                    problems,
                    n,
                    temperature,
                    cfg.max_new,
                    cfg.seed,
                    desc=f"{name}: {key or 'sampling'}",
                )
                said.update({"greedy": score(rows, 1)["pass@1"]} if key else score(rows, n))
            shown[name] = rows  # the greedy ones
            write_samples(run, name, rows)
        said.update(bound(model, run.tok, run.heldout, cfg, run.hard), flops=extra["flops"])
        results[name] = said
    write_results(run, results)
    print_table(results)
    print_programs(run, names[-1], problems, shown.get(names[-1], []))


@parallel.alone
def write_samples(run, name, rows):
    with open(run.path(f"samples-{name}.jsonl"), "w") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)


@parallel.alone
def write_results(run, results):
    path = run.path("results.json")
    try:
        kept = json.load(open(path))
    except (OSError, ValueError):
        kept = {}
    with open(path + ".part", "w") as f:
        json.dump({**kept, **results}, f, indent=1)
    os.replace(path + ".part", path)


COLUMNS = (
    ("pass@1", "pass@1", "{:.3f}"),
    ("pass@5", "pass@5", "{:.3f}"),
    ("greedy", "greedy", "{:.3f}"),
    ("CE of code", "ce_code", "{:.4f}"),
    ("ELBO", "elbo", "{:.3f}"),
    ("never thinking", "elbo_no_think", "{:.3f}"),
    ("lines with a thought", "think_share", "{:.1%}"),
    ("hard", "think_hard", "{:.1%}"),
    ("easy", "think_easy", "{:.1%}"),
    ("gain", "gain", "{:+.2f}"),
    ("length", "think_len", "{:.1f}"),
    ("lasts", "duration", "{:.1f}"),
    ("TFLOP", "flops", "{:.0f}"),
)


def print_table(results):
    """A line a model; ELBO in nats a snippet, CE in nats a token, gain in nats a thought, length in tokens, duration in lines."""
    table = [["", *(title for title, _, _ in COLUMNS)]]
    for name, said in results.items():
        value = {**said, "flops": said["flops"] / 1e12}
        table.append(
            [name]
            + [
                form.format(value[key]) if value.get(key) is not None else "-"
                for _, key, form in COLUMNS
            ]
        )
    width = [max(map(len, column)) for column in zip(*table)]
    print(
        "\n" + "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, width)) for line in table)
    )


def print_programs(run, name, problems, rows):
    """Two held-out programs of a model with their thoughts; if there are no problems, two held-out snippets with sampled thoughts."""
    for task, row in list(zip(problems, rows))[:2]:
        print(f"\n--- {task.name}: {row['verdict']}\n{task.prompt}{row['completion']}")
    if not problems:
        for row in rollouts_of(
            run.load(name)[0], run.tok, run.heldout[:2], 1, run.cfg, (run.cfg.seed, 78), "samples"
        ).rows:
            print(f"\n--- {row.snip.name}\n{run.tok.decode(row.ids)}")


def main(argv):
    stages = ("pretrain", "ntp", "em", "rlvr", "eval", "all")
    cfg, args = parse(
        argv,
        {
            "--stage": dict(default="em", choices=stages, help="what to do (default em)"),
            "--dry-run": dict(
                nargs="?",
                type=float,
                const=0,
                metavar="GIB",
                help="only say what the run takes: memory, tokens, hours, and whether it fits the device "
                "(or one of so many GiB)",
            ),
        },
        __doc__,
    )
    parallel.settle(cfg)
    set_threads(cfg)
    elbo.COMPILE = {"auto": None, "true": True, "false": False}[cfg.compile]
    if args.dry_run is not None:
        plan.show(
            cfg, args.stage, args.dry_run, Run(cfg, args.stage) if plan.shape(cfg)[1] else None
        )
        return
    run = Run(cfg, args.stage)
    check(run, args.stage)
    if args.stage != "eval":
        run.begin()
    if args.stage in ("pretrain", "em", "all") or args.stage == "rlvr" and cfg.init == "base":
        pretrain(run)
    if args.stage == "ntp":
        name = ntp_name(cfg)
        if cfg.match or not done(run, name, TUNE_FIELDS):
            ntp(run, name, cfg.match)
    if args.stage in ("em", "all") and not current(run, "ntp", TUNE_FIELDS):
        ntp(run, "ntp")
    if args.stage in ("em", "all"):
        if not done(run, cfg.name or "ra3", stage_settings(cfg)):
            em(run)
    if args.stage == "rlvr" and not done(run, rlvr_name(cfg), run.settings):
        rlvr(run, rlvr_name(cfg))
    if args.stage in ("eval", "em", "all"):
        evaluate(run, names_to_evaluate(cfg, args.stage))
    print(f"\n{time.time() - run.started:.0f} s; everything is in {run.out}/")


if __name__ == "__main__":
    try:
        with parallel.ranks():
            main(sys.argv[1:])
    except UserError as e:
        print(f"train.py: {e}", file=sys.stderr)
        sys.exit(2)
    except HarnessError as e:
        print(
            f"train.py: the grader failed: {e}; the same command with --resume goes on",
            file=sys.stderr,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nstopped; the same command with --resume goes on", file=sys.stderr)
        sys.exit(130)
