"""All settings: one dataclass with a help text a field, presets as dictionaries, the command line.

    python train.py --stage em --preset tiny --c 0.1 --group 16

Dashes and underscores are alike on the command line. A setting's value is the one on the command
line, else the preset's, else its default.
"""

import argparse
import contextlib
import dataclasses
import difflib
import errno
import json
import math
import os
import signal
import sys
import time


class UserError(Exception):
    """A mistake of the user, told in one line: what was given, what was expected, what to do."""


RESULTS = {
    "base": ("pretrain", "base"),
    "ntp": ("base", "ntp"),
    "em": ("base", "ntp", "em"),
    "rlvr": ("rlvr",),
}  # what is computed -> the settings that decide it, by the word `of`


@dataclasses.dataclass(frozen=True)
class Limits:
    """The numbers that a setting allows."""

    least: float = 0
    above: float = -math.inf
    most: float = math.inf
    below: float = math.inf
    infinite: bool = False  # is inf allowed?

    def expected(self, value):
        """What is expected instead of a value; "" where it is allowed.

        Example: Limits(most=1), 3.0 -> "at most 1"
        """
        if value == math.inf:
            return "" if self.infinite else "a finite number"
        if value > self.most:
            return f"at most {self.most}"
        if value >= self.below:
            return f"a number below {self.below}"
        if self.above >= self.least and not value > self.above:
            return f"a number above {self.above}"
        return "" if value >= self.least else f"a number of at least {self.least}"


def setting(default, text, choices=None, *, of, grows=False, **limits):
    """A field of Config.

    of       words of RESULTS: the results that the setting decides; "": it changes no result
    grows    a result can go on with a larger number than it was begun with
    limits   the numbers allowed, as `Limits` has them
    """
    decides = tuple(of.split())
    words = {word for decided_by in RESULTS.values() for word in decided_by}
    if unknown := set(decides) - words:
        raise ValueError(f"of={of!r}: {', '.join(sorted(unknown))} is none of {', '.join(words)}")
    if type(default) is int:
        limits = {"most": 2**31 - 1, **limits}
    about = dict(help=text, choices=choices, of=decides, grows=grows, limits=Limits(**limits))
    return dataclasses.field(default=default, metadata=about)


UNITS = ("definitions", "functions", "methods", "files")


ESTEPS = ("auto", "reinforce", "best-of-n", "hindsight", "none", "random", "oracle")


@dataclasses.dataclass
class Config:
    # the run
    preset: str = setting(
        "tiny",
        "tiny: a small model on the built-in domain; smollm2: SmolLM2-135M on real Python, on a "
        "laptop; smollm2-gpu: the same on a GPU; "
        "qwen2.5-0.5b, qwen2.5-1.5b, qwen2.5-3b, qwen2.5-7b, llama-3.2-1b, llama-3.1-8b: those, "
        "likewise",
        (
            "tiny",
            "smollm2",
            "smollm2-gpu",
            "qwen2.5-0.5b",
            "qwen2.5-1.5b",
            "qwen2.5-3b",
            "qwen2.5-7b",
            "llama-3.2-1b",
            "llama-3.1-8b",
        ),
        of="ntp rlvr",
    )
    model: str = setting(
        "",
        "the base model: a folder in Hugging Face's format, a .gguf file, or a name on the hub; "
        "default: the preset's",
        of="ntp rlvr",
    )
    out: str = setting("", "folder of the run; default runs/PRESET-SEED", of="")
    name: str = setting(
        "", "name of the result in the run's folder; default: the stage's (base, ntp, ra3)", of="em"
    )
    seed: int = setting(
        0,
        "seeds the initial weights, the corpora, the order of the data and every draw",
        of="base rlvr",
        most=2**63 - 1,
    )
    device: str = setting("auto", "cpu, cuda, cuda:1, ...; auto: a GPU if there is one", of="")
    threads: int = setting(
        0,
        "CPU threads; 0: OMP_NUM_THREADS if that is set, else one for a small model and as many "
        "as there are cores for others",
        of="",
        most=1024,
    )
    shard: bool = setting(
        False,
        "under torchrun: share weights, gradients and optimizer out over the ranks (FSDP2); "
        "false: a whole model on each (DDP)",
        of="",
    )
    resume: bool = setting(
        False, "go on where a killed run stopped; stages that are done are not repeated", of=""
    )
    track: str = setting(
        "none",
        "mirror metrics.jsonl and the settings to TensorBoard, Weights & Biases or trackio",
        ("none", "tensorboard", "wandb", "trackio"),
        of="",
    )
    save_every: int = setting(
        5,
        "steps between checkpoints (pretraining: five times as many), or more: writing them takes "
        "at most a twentieth of the time",
        of="",
        least=1,
    )
    compile: str = setting(
        "auto",
        "torch.compile in training, of blocks and log-probabilities: true, false, or auto: on a "
        "GPU; false: no kernel of our own there either",
        ("auto", "true", "false"),
        of="",
    )
    checkpoint: bool = setting(
        False,
        "training: keep each block's input only and compute the rest again on the way back: less "
        "memory, more work",
        of="",
    )
    micro_tokens: int = setting(
        6400, "tokens of a micro-batch: less memory, same result up to rounding", of="rlvr", least=1
    )
    engine: bool = setting(
        True,
        "the fast code of engine/; false: the plain code of the top folder, slow; in float32 the "
        "same result up to rounding",
        of="",
    )
    bf16: bool = setting(
        True,
        "train under bfloat16 autocast (weights and optimizer stay as `weights` says)",
        of="base rlvr",
    )
    weights: str = setting(
        "float32",
        "weights in training; bfloat16: gradients and Adam's moments too, the weights rounded at "
        "random (engine/optim.py): half the memory",
        ("float32", "bfloat16"),
        of="base rlvr",
    )
    rollout_bf16: bool = setting(
        True,
        "E-step: sample and score thoughts with a bfloat16 copy of the weights; programs too (the "
        "bound is always float32)",
        of="em rlvr",
    )

    # the corpora
    data: str = setting(
        "domain",
        "expert code: domain (built-in), or, several with commas: stdlib, an installed package, a "
        "folder of .py files, a .py, .jsonl, .jsonl.gz or .parquet file",
        of="ntp",
    )
    text_column: str = setting(
        "text", "column of .jsonl and .parquet that holds the code", of="ntp"
    )
    unit: str = setting(
        "definitions",
        "what a snippet of real code is: definitions (functions and methods), functions, methods, "
        "files",
        UNITS,
        of="ntp",
    )
    docstrings: bool = setting(
        False,
        "real code: functions without a docstring (files, with --unit files) are left out",
        of="ntp",
    )
    keep_comments: bool = setting(
        False,
        "real code: leave its comments where they are; false: every comment is a thought's to "
        "write",
        of="ntp",
    )
    near_duplicate: float = setting(
        0.8,
        "real code: snippets so similar (Jaccard, runs of five tokens) to one before them are "
        "left out; 0: all stay",
        of="ntp",
        most=1,
    )
    cache: str = setting(
        "", "folder of prepared corpora; default: corpora, beside the run's folder", of=""
    )
    stages: str = setting(
        "2,3",
        "built-in domain: hard lines of a program, one a stage, 1 to 9; several numbers with "
        "commas: one of them, drawn for each program; above 3, block, rows, max_new, snippets and "
        "infuse follow unless given",
        of="ntp rlvr",
    )
    base_stages: str = setting(
        "2,3",
        "the same for the functions of the base corpus, which makes room likewise; --stages alone "
        "changes both",
        of="pretrain",
    )
    n_expert: int = setting(4000, "expert snippets, at most; real code: 0: all", of="ntp")
    n_heldout: int = setting(
        64, "held-out expert snippets for the bound; never trained on", of="ntp", least=1
    )
    max_tokens: int = setting(160, "real code: longer snippets are left out", of="ntp", least=1)
    min_lines: int = setting(
        2, "real code: so are snippets with fewer lines that can take a thought", of="ntp", least=1
    )
    decontaminate: bool = setting(
        True,
        "real code: drop functions that hold a benchmark's problem or solution; false: train on "
        "the corpus unchecked",
        of="ntp rlvr",
    )
    data_dir: str = setting(
        "",
        "folder of the benchmarks' files; default: shared/data beside the project's folder",
        of="ntp rlvr",
    )

    # the small model (other presets bring their own)
    n_layer: int = setting(4, "layers", of="base", least=1)
    n_head: int = setting(4, "attention heads", of="base", least=1)
    d_model: int = setting(128, "width", of="base", least=1)
    d_ff: int = setting(384, "width of the feed-forward layers", of="base", least=1)
    vocab_size: int = setting(
        512, "ids of the tokenizer that is trained on the built-in domain, at most", of="base"
    )
    max_len: int = setting(
        1024, "positions; a snippet with all its thoughts must fit", of="base", least=1
    )

    # next-token training: pretrain, ntp, and the M-step
    useful: float = setting(
        0.3,
        "base corpus: share of hard lines with their worked note before them; small: thoughts are "
        "rare at first",
        of="pretrain",
        most=1,
    )
    rows: int = setting(20, "a step takes about rows x block tokens", of="base", least=1)
    block: int = setting(
        288,
        "tokens of a document, at most, so at least max_tokens and room for thoughts",
        of="base",
        least=1,
    )
    pretrain_steps: int = setting(400, "steps of the base model", of="pretrain")
    pretrain_lr: float = setting(3e-3, "its peak learning rate", of="pretrain", above=0)
    exercises: float = setting(
        0.8,
        "base corpus: share of worked exercises at the first step; falls to .3 at seven tenths of "
        "the steps, without a jump",
        of="pretrain",
        most=1,
    )
    base_check: bool = setting(
        True,
        "built-in domain: a base that cannot write or read notes is trained on, and if that does "
        "not help, the run stops; false: go on with it",
        of="pretrain",
    )
    mstep_steps: int = setting(
        60, "M-steps an EM iteration; NTP takes iters times as many", of="ntp"
    )
    lr: float = setting(1e-3, "peak learning rate of NTP and of the M-step", of="ntp", above=0)
    warmup: int = setting(
        20, "steps of linear warm-up; then constant, and linear decay over the last 40%%", of="ntp"
    )
    weight_decay: float = setting(0.1, "of AdamW, on matrices", of="base", most=1)
    grad_clip: float = setting(
        1.0, "largest norm of a gradient", of="base rlvr", above=0, infinite=True
    )
    match: str = setting(
        "",
        "ntp: train for as many FLOPs as this model of the run's folder took (its E-steps "
        "included)",
        of="ntp",
    )

    # EM
    iters: int = setting(
        2, "EM iterations; --resume goes on with more", of="ntp", least=1, grows=True
    )
    keep_iterations: bool = setting(
        False, "keep the model of each EM iteration, as NAME-iteration-1.pt, ...", of=""
    )
    estep: str = setting(
        "auto,best-of-n",
        "how thoughts are found: reinforce (policy gradient), best-of-n (selection, no gradient), "
        "auto (best-of-n where a gradient would end the model's thoughts, else reinforce), "
        "hindsight (proposed after seeing the line, then weighed), none (the model's own, "
        "unselected), random (the model's own, at `rate`), oracle (built-in domain only); with "
        "commas one an EM iteration, the last one for all later",
        of="em",
    )
    best_of: int = setting(
        8,
        "best-of-n: rollouts a snippet, of which the one with the best reward is kept",
        of="em",
        least=1,
    )
    proposals: int = setting(6, "hindsight: thoughts proposed at a line, K", of="em", least=1)
    own: int = setting(
        3, "hindsight: of the proposals, how many the model writes before it sees the line", of="em"
    )
    tried: float = setting(
        0.3,
        "hindsight: share of a snippet's lines at which thoughts are proposed, the least likely "
        "ones",
        of="em",
        above=0,
        most=1,
    )
    selection: str = setting(
        "exact",
        "hindsight: how one of <act> and the proposals is taken: exact (importance weights "
        "against the model's own prior), penalty (in proportion to exp(reward)), best (the "
        "largest reward), act (always <act>: NTP); with commas one an EM iteration, the last one "
        "for all later",
        of="em",
    )
    reach: int = setting(
        3, "hindsight: lines from the thought on whose likelihood counts; 0: all", of="em"
    )
    floor: float = setting(
        0.3, "hindsight, selection=exact: lower bound on P(think) in the weights", of="em", below=1
    )
    resample: int = setting(
        4,
        "rollouts of q a snippet, of which one is written in, drawn in proportion to exp(reward); "
        "1: a plain sample of q",
        of="em",
        least=1,
    )
    choose_by: str = setting(
        "snippet",
        "what is chosen among these rollouts, or those of best-of-n: a rollout as it is (snippet), "
        "or before each line the latent of one of them (line)",
        ("snippet", "line"),
        of="em",
    )
    infuse: int = setting(
        1200,
        "expert snippets of an iteration's M-step, which goes over them as often as its steps need",
        of="ntp",
        least=1,
    )
    estep_steps: int = setting(12, "policy-gradient steps an iteration", of="em")
    snippets: int = setting(16, "snippets a step, B", of="em", least=1)
    group: int = setting(8, "rollouts a snippet, G", of="em", least=1)
    c: float = setting(
        0.05,
        "penalty of a thought, nats; inf: nothing is ever thought, and the M-step is NTP",
        of="em",
        infinite=True,
    )
    kl_prior: str = setting(
        "penalty",
        "KL of the bound: penalty (c a thought), or exact (Prop. 5.1: <act> with probability "
        "alpha, else uniform over thoughts)",
        ("penalty", "exact"),
        of="em",
    )
    alpha: float = setting(
        0.9,
        "kl-prior=exact: the prior's probability of <act>; 1 never thinks",
        of="em",
        above=0,
        most=1,
    )
    think_max: int = setting(20, "longest thought, tokens, its # included", of="em", least=1)
    credit: str = setting(
        "prefix",
        "baseline of a decision: prefix (the likelihood without further thoughts) or group (the "
        "group's mean only)",
        ("prefix", "group"),
        of="em",
    )
    discount: float = setting(1.0, "discount of the return over lines", of="em", most=1)
    gain_floor: float = setting(
        1.0,
        "with credit=prefix: nats that one bad thought can cost at most; inf: all of it",
        of="em",
        infinite=True,
    )
    normalise: bool = setting(True, "divide advantages by their deviation over the batch", of="em")
    estep_lr: float = setting(
        7e-4,
        "peak learning rate of the policy gradient; linear decay over the last 40%%",
        of="em",
        above=0,
    )
    kl: float = setting(
        0.3,
        "weight of KL(q || pi) on the tokens of thoughts: what a thought says stays near what pi "
        "would say",
        of="em",
    )
    estep_lr_decay: float = setting(
        0.5,
        "factor on estep_lr for each later EM iteration: q starts near its optimum then, and "
        "noise outweighs signal",
        of="em",
        above=0,
    )
    horizon: int = setting(
        0, "first lines that may take a thought; 0: all; 1: one latent a snippet (BRiTE)", of="em"
    )
    rate: float = setting(
        0.5, "probability of a thought before every line, with estep=random", of="em", most=1
    )

    # reinforcement learning with verifiable rewards (--stage rlvr)
    init: str = setting(
        "ra3", "model of the run's folder to start from: base, ntp, ra3, ...", of="rlvr"
    )
    suite: str = setting(
        "domain",
        "problems, several with commas: domain (built-in), leetcode, mbpp-train, a .jsonl in "
        "HumanEval's format",
        of="rlvr",
    )
    eval_suite: str = setting(
        "",
        "held-out problems of the curve; default: other tasks of the domain, or a tenth of each "
        "suite by checksum",
        of="rlvr",
    )
    n_rl: int = setting(2000, "problems of the built-in domain's RL split", of="rlvr", least=1)
    rl_steps: int = setting(
        80, "GRPO steps; --resume of an unfinished run goes on with more", of="rlvr", grows=True
    )
    prompts: int = setting(16, "problems a step, B", of="rlvr", least=1)
    completions: int = setting(8, "completions a problem, G", of="rlvr", least=1)
    rl_lr: float = setting(2e-4, "learning rate, constant after the warm-up", of="rlvr", above=0)
    rl_warmup: int = setting(5, "steps of linear warm-up", of="rlvr")
    epochs: int = setting(
        1,
        "passes over the completions of a step; with more than one, importance ratios differ from "
        "1",
        of="rlvr",
        least=1,
    )
    minibatches: int = setting(1, "optimizer steps a pass", of="rlvr", least=1)
    clip_low: float = setting(
        0.2, "importance ratios are clipped below 1 - clip_low", of="rlvr", most=1
    )
    clip_high: float = setting(0.28, "and above 1 + clip_high (DAPO's clip-higher)", of="rlvr")
    rl_norm: str = setting(
        "token",
        "the loss is a mean over all tokens (token; DAPO), over completions of the mean over "
        "their tokens (sequence; GRPO), or a sum over tokens divided by completions x max_new "
        "(constant; Dr. GRPO)",
        ("token", "sequence", "constant"),
        of="rlvr",
    )
    rl_std: bool = setting(
        True,
        "divide advantages by the group's standard deviation (GRPO); false: do not (Dr. GRPO)",
        of="rlvr",
    )
    rl_kl: float = setting(0.0, "weight of KL(pi || start)", of="rlvr")
    mask_overlong: bool = setting(
        True, "leave completions that ran into max_new out of the loss", of="rlvr"
    )
    rounds: int = setting(
        1,
        "with more than one: drop groups without signal, and sample others in their place up to "
        "so many times (DAPO's dynamic sampling)",
        of="rlvr",
        least=1,
    )
    reward: str = setting(
        "pass",
        "pass: 1 if all tests pass; tests: the share of tests that pass; random: a coin (a check "
        "of the recipe)",
        of="rlvr",
    )
    reward_apart: bool = setting(
        False,
        "true: nothing for a pass that a method of the program's own classes decided "
        "(docs/grader.md)",
        of="rlvr",
    )
    reward_time: float = setting(
        10.0,
        "seconds a program has for its tests, unless its suite says otherwise",
        of="rlvr",
        above=0,
        most=86_400,
    )
    thoughts: bool = setting(
        True,
        "false: no comment can be written while sampling, in training and in the curve",
        of="rlvr",
    )
    eval_every: int = setting(
        10, "steps between held-out evaluations, with two samples shown; 0: none", of="rlvr"
    )
    eval_samples: int = setting(
        2, "programs a held-out problem there, at `temperature`", of="rlvr", least=1
    )

    # evaluation
    eval_tasks: int = setting(100, "held-out tasks of the built-in domain", of="rlvr", least=1)
    eval_split: str = setting(
        "test", "their split: test, or val for tuning", ("test", "val"), of="rlvr"
    )
    samples: int = setting(5, "programs sampled a task, for pass@k", of="", least=1)
    temperature: float = setting(0.8, "of these samples", of="rlvr")
    max_new: int = setting(320, "tokens a program, at most", of="rlvr", least=1)
    models: str = setting(
        "base,ntp,ra3", "models of the run's folder that --stage eval evaluates", of=""
    )
    elbo_samples: int = setting(8, "rollouts a held-out snippet for the bound", of="", least=1)
    report: bool = setting(
        True, "--stage em: at the end, a page to look at, report.html in the run's folder", of=""
    )


SECTIONS = {
    "preset": "the run",
    "data": "the corpora",
    "n_layer": "the small model (other presets bring their own)",
    "useful": "next-token training: --stage pretrain, ntp, and EM's M-step",
    "iters": "EM: --stage em",
    "init": "reinforcement learning with verifiable rewards: --stage rlvr",
    "eval_tasks": "evaluation: --stage eval, and at the end of em",
}  # first setting of each section of --help -> its title


def deciding(result):
    """Names of the settings that decide a result, one of RESULTS.

    Example: deciding("rlvr") -> ["preset", "model", "seed", ...]
    """
    words = set(RESULTS[result])
    return [f.name for f in dataclasses.fields(Config) if words & set(f.metadata["of"])]


def differences(settings, cfg, names, grown=False):
    """Which of the settings `names` differ between an earlier run and cfg.

    settings   those of the earlier run; a setting that it did not know yet counts as its default,
               and one that no longer exists does not count
    grown      leave out a setting that may grow, and did

    Returns texts such as "seed=1 and not 0".
    """
    texts = []
    for f in dataclasses.fields(Config):
        earlier, now = settings.get(f.name, f.default), getattr(cfg, f.name)
        has_grown = grown and f.metadata["grows"] and earlier < now
        if f.name in names and earlier != now and not has_grown:
            texts.append(f"{f.name}={earlier!r} and not {now!r}")
    return texts


# Presets for one GPU. From the paper: these models, c = 0.05, thoughts of a few tokens.
# Learning rates: fine-tuning of Llama 3, 1e-5 (arXiv 2407.21783); reinforcement learning as in
# DAPO, 1e-6 (arXiv 2503.14476), for the E-step too. Corpus, batch and steps are ours: ten million
# tokens an M-step, where the paper has a billion in all. `--dry-run` says what a run takes.
LARGE = dict(
    data="stdlib",
    n_expert=100_000,
    n_heldout=256,
    max_tokens=512,
    max_len=2048,
    rows=64,
    block=1024,
    micro_tokens=8192,
    mstep_steps=150,
    lr=1e-5,
    warmup=10,
    save_every=25,
    infuse=20_000,
    iters=2,
    estep="reinforce",
    estep_steps=40,
    snippets=64,
    group=8,
    think_max=16,
    estep_lr=1e-6,
    max_new=768,
    samples=5,
    suite="leetcode,mbpp-train",
    rl_steps=100,
    prompts=64,
    completions=8,
    rl_lr=1e-6,
    eval_samples=1,
)
PRESETS = {
    "tiny": {},
    "smollm2": dict(
        data="stdlib",
        n_expert=4000,
        n_heldout=48,
        max_tokens=256,
        max_len=2048,
        rows=4,
        block=512,
        mstep_steps=8,
        lr=5e-5,
        warmup=3,
        save_every=4,
        infuse=80,
        estep="reinforce",
        iters=1,
        estep_steps=8,
        snippets=6,
        group=4,
        think_max=16,
        estep_lr=1e-5,
        rollout_bf16=True,
        max_new=512,
        samples=1,
        temperature=0.0,
        elbo_samples=8,
        suite="mbpp-train",
        rl_steps=10,
        prompts=8,
        completions=4,
        rl_lr=2e-6,
        micro_tokens=2560,
        eval_samples=1,
    ),
    "smollm2-gpu": dict(
        LARGE,
        max_tokens=256,
        n_expert=0,
        micro_tokens=32_768,
        lr=5e-5,
        save_every=1000,
        estep_lr=1e-5,
        snippets=32,
        mstep_steps=16,
        infuse=4000,
        estep_steps=16,
    ),
    "qwen2.5-0.5b": dict(LARGE, model="Qwen/Qwen2.5-0.5B", lr=2e-5),
    "qwen2.5-1.5b": dict(LARGE, model="Qwen/Qwen2.5-1.5B"),
    "qwen2.5-3b": dict(LARGE, model="Qwen/Qwen2.5-3B", checkpoint=True),
    "qwen2.5-7b": dict(LARGE, model="Qwen/Qwen2.5-7B", checkpoint=True, weights="bfloat16"),
    "llama-3.2-1b": dict(LARGE, model="meta-llama/Llama-3.2-1B"),
    "llama-3.1-8b": dict(
        LARGE,
        model="meta-llama/Llama-3.1-8B",
        checkpoint=True,
        weights="bfloat16",
        snippets=32,
        max_tokens=384,
        block=768,
        prompts=32,
    ),
}

# ---------------------------------------------------------------- the command line


def option_of(name):
    """The option of a setting. Example: n_expert -> --n-expert"""
    return "--" + name.replace("_", "-")


def convert(key, kind, text):
    """The value of a setting from the command line.

    Raises UserError with the key, the text and what was expected.
    """
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    try:
        return words[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        expected = {int: "a whole number", float: "a number", bool: "true or false"}[kind]
        raise UserError(f"{option_of(key)} {text}: expected {expected}") from None


def estep_of(cfg, iteration):
    """cfg.estep of an EM iteration, the last one named for all later.

    Example: "best-of-n,reinforce", 1 -> "reinforce"
    """
    ways = cfg.estep.split(",")
    return ways[min(iteration, len(ways) - 1)]


def selection_of(cfg, iteration):
    """cfg.selection of an EM iteration, the last one named for all later.

    Example: "best,exact", 5 -> "exact"
    """
    names = cfg.selection.split(",")
    return names[min(iteration, len(names) - 1)]


def program_name():
    """The command as it was typed.

    Example: python -m grader ... -> "python -m grader"
    Example: python train.py ... -> "train.py"
    """
    spec = sys.modules["__main__"].__spec__
    if spec is None:
        return os.path.basename(sys.argv[0])
    return f"python -m {spec.name.removesuffix('.__main__')}"


def nearest(word, words):
    """The one of the words that is so like a word that it may be meant; "" if none is.

    Example: "gruop", ["group", "groups"] -> "group"
    """
    return next(iter(difflib.get_close_matches(word, words, 1, cutoff=0.75)), "")


class Parser(argparse.ArgumentParser):
    """argparse, with a mistake told in one line and the nearest setting named."""

    def __init__(self, **keywords):
        super().__init__(**{"prog": program_name(), **keywords})

    def error(self, message):
        if message.startswith("unrecognized arguments: "):
            message = self.no_such_setting(message.removeprefix("unrecognized arguments: "))
        raise UserError(message)

    def no_such_setting(self, arguments):
        """One line about the first argument that is not known, with the nearest option."""
        unknown = arguments.split()[0]
        options = [option for action in self._actions for option in action.option_strings]
        words = {option.lstrip("-"): option for option in options}
        near = nearest(unknown.split("=")[0].replace("_", "-").lstrip("-"), words)
        suggestion = f"; did you mean {words[near]}?" if near else ""
        return f"{unknown}: no such setting{suggestion}; see --help"


def command(main, stopped=""):
    """Run main(argv) as a script.

    A mistake, or a disk that is full, is one line and exit status 2. Ctrl-C is exit status 130.
    A pipe that its reader closed ends the program without a word, with the status of SIGPIPE.
    Lines go out as they come, into a file or a pipe too: so a killed run has them in its log.
    stopped   what to print after Ctrl-C, if there is something to say
    """
    sys.stdout.reconfigure(line_buffering=True)
    try:
        try:
            main(sys.argv[1:])
        finally:
            sys.stdout.flush()
    except UserError as e:
        print(f"{program_name()}: {e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        if stopped:
            print(f"\n{stopped}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # or Python would complain when it flushes at exit
        sys.exit(128 + signal.SIGPIPE)
    except OSError as e:
        if e.errno not in FULL:
            raise
        print(f"{program_name()}: {e.strerror}; {MAKE_ROOM}", file=sys.stderr)
        sys.exit(2)


@contextlib.contextmanager
def ended_by_signals():
    """Within: SIGTERM and SIGHUP leave by SystemExit, so that what the command began can be ended.

    One that is ignored, as under nohup, stays so.
    """

    def leave(number, frame):
        raise SystemExit(128 + number)

    numbers = [signal.SIGTERM, signal.SIGHUP]
    numbers = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, the quota, the largest file
MAKE_ROOM = "make room; --resume, where a command has it, goes on"


@contextlib.contextmanager
def writing(path, option="", advice=MAKE_ROOM):
    """Around what writes a file: a failure is told in one line. Raises UserError.

    option   the option that named the path, if one did
    """
    try:
        yield
    except (OSError, RuntimeError) as e:
        # torch.save hides the system's error behind one of its own.
        cause = e if isinstance(e, OSError) else e.__context__
        if not isinstance(cause, OSError) or isinstance(cause, BrokenPipeError):
            raise
        name = f"{option} {path}".strip()
        raise UserError(
            f"{name}: cannot be written ({cause.strerror or cause}); {advice}"
        ) from None


def check_output(option, path, ending=""):
    """Raises UserError if a path, where one is given, cannot be that of a file so called."""
    if path and (os.path.isdir(path) or not os.path.isdir(os.path.dirname(path) or ".")):
        raise UserError(
            f"{option} {path}: expected a file in a folder that exists; give another path"
        )
    if path and not path.endswith(ending):
        raise UserError(f"{option} {path}: expected a name that ends in {ending}")


def write_output(path, option, content):
    """Write bytes to a file, all or nothing. Raises UserError."""
    with writing(path, option, "give another path"):
        with open(f"{path}.part", "wb") as f:
            f.write(content)
        os.replace(f"{path}.part", path)


def read_object(path):
    """The object of a .json file; {} where there is none. Raises UserError."""
    try:
        with open(path, encoding="utf-8") as f:
            record = json.load(f)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        record = None
    if not isinstance(record, dict):
        raise UserError(f"{path}: cannot be read as a JSON object; write it again, or remove it")
    return record


def parse(argv, extra, description):
    """Settings from the command line -> (Config, argparse.Namespace of the extra options).

    extra   {option: add_argument's keywords} of the command itself; one with the name of a
            setting takes its place

    Raises UserError.
    """
    parser = Parser(
        description=description,
        usage="%(prog)s [--setting value ...]",
        allow_abbrev=False,
        formatter_class=help_formatter,
    )
    for option, keywords in extra.items():
        parser.add_argument(option, **keywords)
    add_settings(parser, extra)
    args = parser.parse_args([with_dashes(argument) for argument in argv])
    values = {}
    for f in dataclasses.fields(Config):
        text = None if option_of(f.name) in extra else vars(args).pop(f.name)
        if text is not None:
            values[f.name] = convert(f.name, f.type, text)
    return make(**values), args


def help_formatter(prog):
    """argparse's formatter with a column for options that is wide enough for ours."""
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=32)


def add_settings(parser, options):
    """Add the settings to a parser, apart from those in `options`, a group of --help a section."""
    for f in dataclasses.fields(Config):
        if f.name in SECTIONS:
            group = parser.add_argument_group(SECTIONS[f.name])
        if option_of(f.name) in options:
            continue
        flag = dict(nargs="?", const="true") if f.type is bool else {}
        group.add_argument(
            option_of(f.name),
            metavar=f.type.__name__.upper(),
            help=f"{f.metadata['help']} (default {f.default!r})",
            **flag,
        )


def with_dashes(argument):
    """An argument with the dashes of options.

    Example: --n_expert=my_value -> --n-expert=my_value
    """
    if not argument.startswith("--"):
        return argument
    option, equals, value = argument.partition("=")
    return "--" + option[2:].replace("_", "-") + equals + value


def make(preset="tiny", **values):
    """A Config: defaults, then the preset, then `values`.

    Raises UserError for a value out of range.
    """
    if preset not in PRESETS:
        raise UserError(f"--preset {preset}: expected one of {', '.join(PRESETS)}")
    cfg = Config(**{"preset": preset, **PRESETS[preset], **values})
    fit_stages(cfg, values)
    cfg.out = cfg.out or f"runs/{cfg.preset}-{cfg.seed}"
    beside = os.path.dirname(os.path.normpath(cfg.out)) or "."
    cfg.cache = cfg.cache or os.path.join(beside, "corpora")
    for f in dataclasses.fields(Config):
        check_value(f, getattr(cfg, f.name))
    check_corpus(cfg)
    check_model(cfg)
    check_thoughts(cfg)
    check_engine(cfg)
    return cfg


def stages_of(text, option="--stages"):
    """The numbers of stages in a setting. Example: "2,3" -> (2, 3). Raises UserError."""
    try:
        lengths = tuple(int(number) for number in text.split(","))
    except ValueError:
        lengths = (0,)
    if not all(1 <= n <= MOST_STAGES for n in lengths):
        raise UserError(
            f"{option} {text}: expected whole numbers from 1 to {MOST_STAGES}, with commas between"
        )
    return lengths


# Each stage of a program has a verb of its own, and domain.STAGES has so many.
MOST_STAGES = 9
# Room for a stage with its notes. The default's block has it three times.
TOKENS_A_STAGE = 96


def fit_stages(cfg, values):
    """Make room for long programs: settings that were not given follow from the longest one.

    Rows are longer and snippets fewer then: steps have as many tokens as with three stages.
    """
    if "base_stages" not in values:
        cfg.base_stages = cfg.stages
    longest = max(stages_of(cfg.stages))
    longest_row = max(longest, *stages_of(cfg.base_stages, "--base-stages"))
    if cfg.preset != "tiny" or longest_row <= 3:
        return
    room = TOKENS_A_STAGE * longest_row
    rows = Config.rows * Config.block // max(1, values.get("block", room))
    fitting = {"block": room, "rows": max(1, rows), "max_new": room}
    for name in ("snippets", "infuse") * (cfg.data == "domain"):
        fitting[name] = 3 * getattr(cfg, name) // max(3, longest)
    for name, value in fitting.items():
        if name not in values:
            setattr(cfg, name, value)


def check_value(field, value):
    """Raises UserError if a value is none of a field's choices, or no number that it allows."""
    option, choices = option_of(field.name), field.metadata["choices"]
    if choices and value not in choices:
        raise UserError(f"{option} {value}: expected one of {', '.join(choices)}")
    if field.type in (int, float):
        check_number(option, value, field.metadata["limits"])


def check_number(option, value, limits):
    """Raises UserError for a number that its limits do not allow."""
    if expected := limits.expected(value):
        raise UserError(f"{option} {value}: expected {expected}")


def check_corpus(cfg):
    """Raises UserError for settings of the corpora that do not go together."""
    if cfg.block < cfg.max_tokens:
        raise UserError(
            f"--block {cfg.block}: expected at least --max-tokens {cfg.max_tokens}, "
            "because no snippet is cut"
        )
    if cfg.data == "domain" and not cfg.n_expert:
        raise UserError("--n-expert 0: expected at least 1, because the built-in domain has no end")


def check_model(cfg):
    """Raises UserError for settings of the model that do not go together."""
    if cfg.weights == "bfloat16" and cfg.shard:
        raise UserError(
            "--weights bfloat16 --shard true: expected one of the two, because its random "
            "rounding knows unsharded weights only"
        )
    if cfg.model and cfg.preset == "tiny":
        raise UserError(
            f"--model {cfg.model}: --preset tiny trains its own model; give another preset, "
            "such as smollm2"
        )


def check_engine(cfg):
    """Raises UserError for settings that the plain code does not know."""
    if not cfg.engine and "hindsight" in cfg.estep.split(","):
        raise UserError(
            "--engine false --estep hindsight: expected an E-step of the top folder, such as "
            "reinforce; leave out --engine false"
        )


def check_thoughts(cfg):
    """Raises UserError for settings of the E-step that do not go together."""
    if unknown := set(cfg.selection.split(",")) - {"exact", "penalty", "best", "act"}:
        raise UserError(
            f"--selection {cfg.selection}: {', '.join(sorted(unknown))!r} is unknown; expected "
            "exact, penalty, best or act, or several with commas"
        )
    if cfg.own > cfg.proposals:
        raise UserError(f"--own {cfg.own}: expected at most --proposals {cfg.proposals}")
    ways = cfg.estep.split(",")
    if unknown := set(ways) - set(ESTEPS):
        raise UserError(
            f"--estep {cfg.estep}: {', '.join(sorted(unknown))!r} is unknown; expected "
            f"{', '.join(ESTEPS)}, or several with commas"
        )
    if "oracle" in ways and cfg.data != "domain":
        raise UserError(
            f"--estep oracle: only the built-in domain knows its own notes; --data is {cfg.data}"
        )


def cores():
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


# ---------------------------------------------------------------- seeds

# What a draw is for: the second word of its seed, after the run's own.
PRETRAIN = 0  # texts of the base corpus
ESTEP = 1  # rollouts of the policy gradient
MSTEP = 2  # order of the M-step's documents
INFUSE = 3  # thoughts of the M-step's documents
DIAGNOSE = 4  # thoughts of a model as it is
RLVR = 5  # completions
COIN = 6  # rewards of --reward random
SHUFFLE = 7  # minibatches of GRPO
CORPUS = 8  # order of the expert snippets
EXPERT_PART = 9  # snippets of an M-step
ESTEP_BATCH = 10  # snippets of an E-step's step
PROBLEMS = 11  # order of RLVR's problems
RLVR_HELDOUT = 12  # programs of RLVR's curve
EVALUATE = 13  # programs of an evaluation
BOUND = 14  # rollouts of the bound
SHOW = 15  # rollouts that are printed
JUDGE = 16  # lines and thoughts that are judged
EXCHANGE = 17  # thoughts of other snippets
SAMPLE = 18  # anything else that is sampled
ROUNDING = 19  # weights rounded to bfloat16: (purpose of the training, iteration, step, ...)
THEORY = 20  # tasks and demonstrations of theory.py
COUNTERS = 8  # the most counters of a seed


def seed_of(seed, purpose, *counters):
    """The seed of one stream of random numbers, for numpy -> a list of 32-bit words.

    seed      the run's own
    purpose   one of the words above
    counters  whole numbers such as iteration and step; how many there are is part of the seed

    numpy pads a short seed with zeros, and cuts a large number into words of 32 bits: to it [s, 2]
    and [s, 2, 0] are one stream, and so are [2**32, 1] and [0, 1, 1]. Here every number takes two
    words and every seed has the same length, so two streams are equal only if all is equal.

    Raises ValueError for a number that is negative or too large, and for too many counters.
    """
    padding = [0] * (COUNTERS - len(counters))
    numbers = [int(n) for n in (seed, purpose, len(counters), *counters, *padding)]
    if len(counters) > COUNTERS or not all(0 <= n < 2**64 for n in numbers):
        raise ValueError(f"{numbers}: expected at most {COUNTERS} counters from 0 to 2**64 - 1")
    return [word for n in numbers for word in (n % 2**32, n // 2**32)]


def sample_seed(seed, prompt, sample):
    """The seed of one completion. seed: an int, or the beginning of a seed: (seed, purpose, ...)"""
    beginning = (seed, SAMPLE) if isinstance(seed, int) else seed
    return seed_of(*beginning, prompt, sample)


# ---------------------------------------------------------------- progress on standard error

LOG_EVERY = 30.0  # seconds between lines, at least
LOG_SHARE = 0.05  # of the time so far, at least: a day makes some 120 lines
LOG_LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


def progress_bar(iterable=None, **options):
    """A tqdm, or where standard error is no terminal a `PlainProgress`.

    options   those of tqdm: total, desc, unit, leave, disable, ...
    """
    if not sys.stderr.isatty():
        return PlainProgress(iterable, **options)
    from tqdm import tqdm  # here and below: loading it takes time, and not all commands need it

    return tqdm(iterable, **options)


class PlainProgress:
    """What a log file gets instead of a bar.

    A line is written every LOG_EVERY seconds, and later every LOG_SHARE of the time so far.
    With `leave`, a last line is written at the end. Options that concern a bar alone are ignored.
    """

    def __init__(
        self,
        iterable=None,
        *,
        total=None,
        desc="",
        unit="it",
        unit_scale=False,
        initial=0,
        leave=True,
        disable=False,
        **_,
    ):
        self.iterable = iterable
        self.total = len(iterable) if total is None and hasattr(iterable, "__len__") else total
        self.n = initial
        self.leave = leave
        self.disable = disable
        self.options = dict(prefix=desc, unit=unit, unit_scale=unit_scale, initial=initial)
        self.postfix = ""
        self.started = time.monotonic()
        self.due = self.started + LOG_EVERY

    def __iter__(self):
        with self:
            for item in self.iterable:
                yield item
                self.update()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def update(self, n=1):
        self.n += n
        now = time.monotonic()
        if now >= self.due:
            self.write()
            self.due = now + max(LOG_EVERY, LOG_SHARE * (now - self.started))

    def set_postfix(self, **values):
        """Figures to print behind the progress, as texts."""
        self.set_postfix_str(", ".join(f"{name}={value}" for name, value in values.items()))

    def set_postfix_str(self, text, refresh=True):
        self.postfix = text

    @property
    def format_dict(self):
        return {"elapsed": time.monotonic() - self.started}

    def write(self):
        """Print a line as tqdm would."""
        if self.disable:
            return
        from tqdm import tqdm

        elapsed = self.format_dict["elapsed"]
        format = dict(postfix=self.postfix, bar_format=LOG_LINE, **self.options)
        line = tqdm.format_meter(self.n, self.total, elapsed, **format)
        print(line, file=sys.stderr, flush=True)

    def close(self):
        """The last line, once."""
        if self.leave:
            self.write()
        self.disable = True
