"""What a run will take, printed before it starts: memory, tokens, hours.

    python train.py --stage em --preset qwen2.5-1.5b --dry-run              on the device found here
    python train.py --stage em --preset qwen2.5-1.5b --dry-run h100         h100, h200, a100 or 4090
    python train.py --stage em --preset qwen2.5-1.5b --dry-run 80GiB,700TFLOP/s,3000GB/s

Computed from the settings and the model's shape. The speed of the device here is measured, that of
another taken from its data sheet, or given: what a large bfloat16 product and a read reach. No
weights are needed. The corpus is read if it is prepared.

    parameter, float32 weights       4 bytes + 4 gradient + 8 moments of Adam
                                     (+ 2 for the copy that autocast multiplies with)
               --weights bfloat16    2       + 2          + 4
    activation of a token and layer  28 D + 8 F bytes: the residual stream and its norms in float32,
                                     twice; inputs of matrix products and attention in bfloat16
               --checkpoint          4 D, and one layer's activations at a time
    key and value of a token         2 layers K E numbers

    attended keys                    4 H E bytes a token and layer, where the kernel takes no
                                     grouped heads; with beginnings that are read once they are
                                     gathered first, SEEN a token

The E-step holds pi and q. While it samples it also holds what the decoder needs of both: stacked
weights of the blocks, caches, and on a CPU heads in float32. On a GPU buffers do not grow: each row
has room for the longest snippet with all the thoughts that it may take. Assumptions are printed:
how often thoughts come, and which share of the matrix product's speed a stage reaches. Not counted:
several GPUs, the disk (a checkpoint of an unfinished stage is as large as weights and moments), and
outside sampling a decoder that stays, at most a twentieth of the memory.

Letters: D width, F width of the feed-forward layers, H heads, K key/value heads, E head width, V
vocabulary.
Units: bytes, unless said otherwise.
"""

import dataclasses
import functools
import math
import os
import re
import typing

import torch

from config import UserError, estep_of, option_of, selection_of
from engine.machine import Rates, device_of, machine_rates, physical_memory, rows_at_once
from formats import huggingface
from model import ModelConfig, Transformer, count_params, varlen_kernel, work_size

GIB = 2**30
# stored logits, at most, and a block of them with what is computed from it
LOGITS = 2**29 + 5 * 4 * 8192**2
CONTEXT = 1.0 * GIB  # of the driver
SPARE = 0.95  # the share of the rest that can be filled before memory is too fragmented
TRAIN = 0.4  # assumed: share of the matrix product's speed in training
READ = 0.3  # assumed: the same in the forward passes of rollouts
LINE = 10.5  # assumed: tokens a line
THINKS = 0.3  # assumed: share of lines with a thought (the paper: fewer than 0.4)
INFUSED = 256  # rows of a batch of the infusion, as estep.proposals has them
SEEN = 1.7  # assumed: keys that a token's document attends to, a token, where beginnings are shared
PROBLEM = 200  # assumed: tokens of a problem of RLVR
WRITTEN = 0.5  # assumed: share of --max-new that a completion takes
NARROW = 256  # width of a model whose products a CPU does not do at the rate of large ones
SLOWER = 0.25  # and the share of that rate; the default command takes that (docs/results-domain.md)
PRODUCT = 0.8  # assumed: share of the data sheet's rate that a large product reaches
STREAM = 0.9  # assumed: the same of the memory's rate
FLOAT32 = 16  # assumed: a float32 product takes so many times as long, where it is not known


class Card(typing.NamedTuple):
    """A device that is not here."""

    name: str
    gib: float  # memory as torch tells it
    flops: float = 0.0  # a second of a dense bfloat16 product, sums in float32; 0: not known
    bytes: float = 0.0  # a second of memory
    flops32: float = 0.0  # of a float32 product; 0: not known
    measured: bool = False  # what is reached, and not what the data sheet says

    def rates(self):
        """The Rates that it is expected to reach, or None."""
        if not self.flops or not self.bytes:
            return None
        product, stream = (1.0, 1.0) if self.measured else (PRODUCT, STREAM)
        device = torch.device("cuda")
        flops32 = self.flops32 or self.flops / FLOAT32
        return Rates(product * self.flops, product * flops32, stream * self.bytes, True, device)


# What takes memory and changes, at its smallest.
SMALLEST = {
    "weights": "bfloat16",
    "checkpoint": True,
    "micro_tokens": 1024,
    "snippets": 1,
    "prompts": 1,
}

# From the makers' data sheets, in the order in which names are looked up.
CARDS = {
    "h200": Card("H200", 139.8, 989e12, 4.8e12, 67e12),
    "h100": Card("H100 SXM", 79.2, 989e12, 3.35e12, 67e12),
    "a100": Card("A100 SXM, 80 GB", 79.2, 312e12, 2.04e12, 19.5e12),
    "4090": Card("RTX 4090", 23.6, 165e12, 1.01e12, 82.6e12),
}


def card_named(name):
    """The Card of a device's name, or None. Example: "NVIDIA H100 80GB HBM3" -> CARDS["h100"]"""
    return next((card for key, card in CARDS.items() if key in name.lower()), None)


UNITS = {"gib": ("gib", 1), "tflop/s": ("flops", 1e12), "gb/s": ("bytes", 1e9)}


def planned_device(text):
    """The Card of --dry-run: a name, or what is known of a device; None for "", the one here.

    Example: "24" -> 24 GiB and no rates; "80GiB,700TFLOP/s,3000GB/s" -> all three
    Raises UserError.
    """
    if not text:
        return None
    if text.lower() in CARDS:
        return CARDS[text.lower()]
    parts = text.lower().split(",")
    parts = [re.fullmatch(r"([\d.]+) *([a-z/]*)", part.strip()) for part in parts]
    try:
        units = [UNITS[part[2] or "gib"] for part in parts]
        known = {
            name: float(part[1]) * scale for part, (name, scale) in zip(parts, units, strict=True)
        }
        if len(known) < len(parts):
            raise ValueError("a quantity twice")
        if not all(known.values()):
            raise ValueError("nothing of a quantity")
        return Card(f"a device of {text}", **known, measured=True)
    except (KeyError, ValueError, TypeError):
        raise UserError(
            f"--dry-run {text}: expected {', '.join(CARDS)}, or a device such as "
            "80GiB,700TFLOP/s,3000GB/s, or its memory such as 24GiB"
        ) from None


LLAMA = dict(rope_theta=5e5, norm_eps=1e-5, max_len=131072)
QWEN = dict(rope_theta=1e6, norm_eps=1e-6, qkv_bias=True)
SMOLLM2 = ModelConfig(49152, 30, 9, 3, 576, 1536, 8192, 1e5, tied=True)
SHAPES = {  # as published, for presets whose model is not here
    "smollm2": SMOLLM2,
    "smollm2-gpu": SMOLLM2,
    "qwen2.5-0.5b": ModelConfig(151936, 24, 14, 2, 896, 4864, 32768, tied=True, **QWEN),
    "qwen2.5-1.5b": ModelConfig(151936, 28, 12, 2, 1536, 8960, 131072, tied=True, **QWEN),
    "qwen2.5-3b": ModelConfig(151936, 36, 16, 2, 2048, 11008, 32768, tied=True, **QWEN),
    "qwen2.5-7b": ModelConfig(152064, 28, 28, 4, 3584, 18944, 131072, tied=False, **QWEN),
    "llama-3.2-1b": ModelConfig(
        128256, 16, 32, 8, 2048, 8192, tied=True, rope_llama3=(32.0, 1.0, 4.0, 8192.0), **LLAMA
    ),
    "llama-3.1-8b": ModelConfig(
        128256, 32, 32, 8, 4096, 14336, tied=False, rope_llama3=(8.0, 1.0, 4.0, 8192.0), **LLAMA
    ),
}


def shape(cfg):
    """The ModelConfig of the settings, and whether the model is here."""
    if cfg.preset == "tiny":
        heads = cfg.n_head, cfg.n_head
        sizes = cfg.d_model, cfg.d_ff, cfg.max_len
        return ModelConfig(cfg.vocab_size, cfg.n_layer, *heads, *sizes), True
    try:
        path = huggingface.find(cfg, download=False)
    except UserError:
        return SHAPES[cfg.preset], False
    if os.path.isdir(path):
        return huggingface.read_config(path), True
    return huggingface.open_pretrained(path).cfg, True


def sizes(net):
    """{"all", "blocks", "head", "work"}: numbers of parameters; work: P of the FLOP count."""
    rope = tuple(net.rope_llama3)
    return sizes_of(dataclasses.astuple(dataclasses.replace(net, rope_llama3=rope)))


@functools.cache
def sizes_of(shape):
    """`sizes` of a ModelConfig with these values, counted once."""
    with torch.device("meta"):
        model = Transformer(ModelConfig(*shape))
    return {
        "all": count_params(model),
        "blocks": sum(p.numel() for p in model.blocks.parameters()),
        "head": model.head_weight.numel(),
        "work": work_size(model),
    }


# ---------------------------------------------------------------- memory


def activations(net, tokens, checkpoint):
    """Bytes that training under bfloat16 autocast stores of these tokens for the backward pass."""
    layer = 28 * net.d_model + 8 * net.d_ff
    stored = net.n_layer * 4 * net.d_model + layer if checkpoint else net.n_layer * layer
    return tokens * stored


def repeated_keys(net, tokens, seen):
    """Bytes of a layer's keys and values as the attention kernel gets them, beyond the token's own.

    seen: keys that a token's document attends to, a token; 1: its own alone.
    """
    heads = net.n_kv_head if varlen_kernel()[1] else net.n_head
    if seen == 1 and heads == net.n_kv_head:
        return 0
    return 4 * heads * (net.d_model // net.n_head) * seen * tokens


def longest_row(cfg):
    """Tokens that a row of a rollout may grow to: each line takes the longest thought."""
    return min(cfg.max_len, round(cfg.max_tokens * (1 + (cfg.think_max + 1) / LINE)))


def memory_plan(cfg, net, stage="em", gpu=True):
    """{phase: {item: bytes}} of a run on one device."""
    W = 2 if cfg.weights == "bfloat16" else 4
    copy = 2 if cfg.rollout_bf16 or W == 2 else 4  # bytes a number of the sampling model
    n = sizes(net)["all"]
    copies = copy * n if W == 4 and cfg.rollout_bf16 else 0
    frozen = {
        "weights": 2 * W * n,
        "Adam's moments": 2 * W * n,
    }  # q or pi besides the trained model
    sampling = functools.partial(sampling_memory, net, gpu=gpu)
    if stage == "rlvr":
        rows = cfg.prompts * cfg.completions
        drawing = sampling(rows, cfg.prompts, 1024, cfg.max_new, size=copy)
        tokens = min(cfg.micro_tokens, rows * (1024 + cfg.max_new))
        update = training_memory(cfg, net, tokens, 2, SEEN, gpu)
        return {
            "sampling": {**frozen, "bfloat16 copies": copies, **drawing},
            "update": {**update, "weights": 2 * W * n},
        }
    own = longest_row(cfg) if gpu else cfg.block
    phases = {}
    if stage != "eval":
        tokens = min(cfg.micro_tokens, cfg.rows * cfg.block)
        phases["next-token training"] = training_memory(cfg, net, tokens, 1, gpu=gpu)
    if stage in ("em", "all"):
        rows = cfg.snippets * cfg.group
        drawing = sampling(rows, cfg.snippets, cfg.max_tokens, own, size=copy, both=True)
        tokens = min(cfg.micro_tokens, rows * own)
        update = training_memory(cfg, net, tokens, 2, SEEN, gpu)
        phases["E-step, rollouts"] = {**frozen, "bfloat16 copies": 2 * copies, **drawing}
        if gradient_steps(cfg):
            phases["E-step, update"] = {**update, "weights": 2 * W * n, "bfloat16 copies": copies}
    if stage in ("em", "all", "eval"):
        kv = 8 * net.n_layer * net.n_kv_head * (net.d_model // net.n_head)  # bytes a token
        rows = rows_at_once(torch.device("cuda" if gpu else "cpu"), kv * own)
        prompts = max(1, rows // cfg.elbo_samples)
        drawing = sampling(rows, prompts, cfg.max_tokens, own, size=4)
        # in float32, whatever the weights
        phases["held-out bound"] = {"weights": (4 if W == 4 else 6) * n, **drawing}
    return phases


def training_memory(cfg, net, tokens, logits, seen=1.0, gpu=True):
    """{item: bytes} of a micro-batch.

    logits: how many distributions a token needs; seen: as `repeated_keys` takes it.
    """
    n = sizes(net)["all"]
    W = 2 if cfg.weights == "bfloat16" else 4
    layers = 1 if cfg.checkpoint else net.n_layer
    return {
        "weights": W * n,
        "gradients": W * n,
        "Adam's moments": 2 * W * n,
        "bfloat16 casts": 2 * n if W == 4 and cfg.bf16 else 0,
        "activations": activations(net, tokens, cfg.checkpoint) * (1 if cfg.bf16 else 2),
        "attended keys": layers * repeated_keys(net, tokens, seen) if gpu and cfg.bf16 else 0,
        "logits": min(logits * LOGITS, 12 * tokens * net.vocab_size),
    }


def sampling_memory(net, rows, prompts, prefix, own, *, size, both=False, gpu=True):
    """{item: bytes} of rows that draw `own` tokens each, at prompts of `prefix` tokens.

    size: bytes a number; both: pi scores what q draws.
    """
    n = sizes(net)
    models = 2 if both else 1
    kv = 2 * net.n_layer * net.n_kv_head * (net.d_model // net.n_head)
    slots = models * prompts * prefix + rows * own
    heads = 0 if gpu and size == 2 else (models + 1) * 4 * n["head"]
    return {
        "stacked weights": models * size * n["blocks"] + heads,
        "keys and values": size * kv * slots,
        "drawing": 16 * rows * net.vocab_size,
    }


# ---------------------------------------------------------------- hours


def step_seconds(net, rates):
    """Seconds of a decode step beyond its products: the weights are read, kernels are launched."""
    return 2 * sizes(net)["work"] / rates.bytes + net.n_layer * 3e-5


def rollout_seconds(cfg, net, snippets, G, tokens, rates, scored=True):
    """Seconds of G rollouts over snippets of these tokens each.

    scored: pi, another model than q, gives rewards and gains; else q alone draws latents.
    """
    work = sizes(net)["work"]
    thoughts = THINKS * tokens / LINE  # of a rollout
    trunks = 2 if scored else 1
    lines = 2.5 if scored and thoughts > 1 else 1.0  # of each rollout: its lines, rewards, values
    read = snippets * (trunks + lines * G) * tokens
    drawn = snippets * G * thoughts * cfg.think_max
    steps = thoughts * cfg.think_max  # one after the other
    return 2 * work * (read + drawn) / (READ * rates.flops) + steps * step_seconds(net, rates)


def hindsight_seconds(cfg, net, snippets, tokens, rates):
    """Seconds of proposing and weighing thoughts in hindsight.

    At each line tried its context is read once by the models that write. Each proposal is written
    and then read in both contexts, with the lines that it reaches.
    """
    work = sizes(net)["work"]
    lines = tokens / LINE
    tried = snippets * cfg.tried * lines
    reach = LINE * min(cfg.reach or lines / 2, lines / 2)
    read = snippets * tokens + tried * (tokens + cfg.proposals * (2 * cfg.think_max + reach))
    drawn = tried * cfg.proposals * cfg.think_max
    rows = rows_at_once(rates.device)
    steps = tried * cfg.proposals / rows * cfg.think_max  # one after the other, so many rows each
    return 2 * work * (read + drawn) / (READ * rates.flops) + steps * step_seconds(net, rates)


def hours(cfg, net, stage, tokens, rates):
    """{part: (steps, tokens trained or sampled over, hours)}. tokens: of a snippet, on average."""
    batch = cfg.rows * cfg.block
    step = training_hours(cfg, net, batch, rates)
    plan = {}
    if stage in ("pretrain", "em", "all") and cfg.preset == "tiny":
        steps = cfg.pretrain_steps
        plan["pre-training"] = steps, steps * batch, steps * step
    steps = cfg.iters * cfg.mstep_steps
    mstep = steps, steps * batch, steps * step
    if stage in ("ntp", "em", "all"):
        plan["NTP"] = mstep
    if stage in ("em", "all"):
        plan["E-steps"] = estep_hours(cfg, net, tokens, rates)
        plan["infusion"] = infusion_hours(cfg, net, tokens, rates)
        plan["M-steps"] = mstep
        plan["evaluation"] = evaluation_hours(cfg, net, 3, cfg.iters, tokens, rates)
    if stage == "eval":
        plan["a model"] = evaluation_hours(cfg, net, 1, 0, tokens, rates)
    if stage == "rlvr":
        plan["GRPO"] = grpo_hours(cfg, net, rates)
    return plan


def training_hours(cfg, net, tokens, rates):
    """Hours of a forward and backward pass over these tokens."""
    work = sizes(net)["work"]
    return (8 if cfg.checkpoint else 6) * work * tokens / (TRAIN * rates.flops) / 3600


def gradient_steps(cfg):
    """E-steps by policy gradient of all EM iterations, at most."""
    esteps = [estep_of(cfg, i) for i in range(cfg.iters)]
    return cfg.estep_steps * sum(way in ("auto", "reinforce") for way in esteps)


def estep_hours(cfg, net, tokens, rates):
    """(steps, tokens sampled over, hours) of all E-steps by policy gradient."""
    rows, steps = cfg.snippets * cfg.group, gradient_steps(cfg)
    rollouts = rollout_seconds(cfg, net, cfg.snippets, cfg.group, tokens, rates) / 3600
    update = training_hours(cfg, net, rows * tokens, rates)
    return steps, steps * rows * tokens, steps * (rollouts + update)


def grpo_hours(cfg, net, rates):
    """(steps, tokens sampled, hours) of GRPO; the longest completion of a step has --max-new."""
    work = sizes(net)["work"]
    written = round(WRITTEN * cfg.max_new * cfg.prompts * cfg.completions)
    prompts = cfg.prompts * PROBLEM  # tokens, each once for all its completions
    products = 2 * work * (prompts + written) / (READ * rates.flops)
    sampling = (products + cfg.max_new * step_seconds(net, rates)) / 3600
    update = training_hours(cfg, net, cfg.epochs * (prompts + written), rates)
    return cfg.rl_steps, cfg.rl_steps * written, cfg.rl_steps * (sampling + update)


def infusion_hours(cfg, net, tokens, rates):
    """(times, tokens sampled over, hours) of writing thoughts for the M-steps."""
    samples = {"best-of-n": cfg.best_of, "reinforce": cfg.resample, "auto": cfg.resample}
    G = sum(samples.get(estep_of(cfg, i), 1) for i in range(cfg.iters)) / cfg.iters  # on average
    times = cfg.iters
    if cfg.estep == "hindsight":
        batch = max(1, INFUSED // cfg.proposals)
        seconds = hindsight_seconds(cfg, net, batch, tokens, rates)
        # nothing is proposed in iterations that only act
        times -= sum(selection_of(cfg, i) == "act" for i in range(cfg.iters))
    else:
        batch = max(1, round(INFUSED / G))
        seconds = rollout_seconds(cfg, net, batch, G, tokens, rates, scored=G > 1)
    snippets = times * cfg.infuse
    return times, snippets * G * tokens, snippets / batch * seconds / 3600


def evaluation_hours(cfg, net, models, more, tokens, rates):
    """(models and times, tokens read or written, hours) of evaluation at the end.

    more: times that the held-out bound is computed besides, after an EM iteration. It is computed
    in float32, whatever the weights.
    """
    K, n = cfg.elbo_samples, cfg.n_heldout
    precise = rates._replace(flops=rates.flops32)
    seconds = (models + more) * rollout_seconds(cfg, net, n, K, tokens, precise)
    count = (models + more) * n * K * tokens
    if cfg.data == "domain":
        written = models * round(WRITTEN * cfg.max_new * cfg.eval_tasks * (cfg.samples + 1))
        count += written
        seconds += 2 * sizes(net)["work"] * written / (READ * rates.flops)
        seconds += models * 2 * cfg.max_new * step_seconds(net, rates)  # sampled, and greedy
    return models + more, count, seconds / 3600


# ---------------------------------------------------------------- the page


def print_plan(cfg, stage, card=None, run=None):
    """Print the plan.

    card: a Card of a device that is not here; None: the one found. run: the Run, with the corpus
    if it is prepared; None where the model is not here.
    """
    net, here = shape(cfg)
    device = None if card else device_of(cfg)
    tokens = print_settings(cfg, net, stage, here, run)
    gpu = card is not None or device.type == "cuda"
    phases = memory_plan(cfg, net, stage, gpu)
    print_memory(phases)
    memory = card.gib * GIB if card else device_memory(device)
    name = card.name if card else f"{device} with {memory / GIB:.1f} GiB"
    largest = max(sum(phase.values()) for phase in phases.values())
    helps = what_helps(cfg, net, stage, gpu, room_of(memory))
    print(fit_message(largest, memory, name, helps))
    rates = card.rates() if card else slowed(net, machine_rates(device, True))
    print_hours(cfg, net, stage, tokens, rates, card or device)


def narrow_on_a_cpu(net, rates):
    return rates.device.type == "cpu" and net.d_model < NARROW


def slowed(net, rates):
    """The Rates of this machine for a model that may be small."""
    if not narrow_on_a_cpu(net, rates):
        return rates
    return rates._replace(flops=SLOWER * rates.flops, flops32=SLOWER * rates.flops32)


def print_hours(cfg, net, stage, tokens, rates, device):
    """Print steps, tokens and hours of each part. rates: None where only memory is known."""
    if rates is None:
        print("\nhours: not known; give TFLOP/s and GB/s as well, or the name of a card")
        rates = Rates(math.nan, math.nan, math.nan, True, torch.device("cuda"))
    else:
        print(f"\nexpected on {speed_words(rates, device, net)}; {assumptions(stage)}")
    parts = hours(cfg, net, stage, tokens, rates)
    for part, (steps, count, time) in parts.items():
        unit, millions = "step " if steps == 1 else "steps", count / 1e6
        print(f"{part.ljust(14)}{steps:8,} {unit}{millions:12,.2f} M tokens{hour_cell(time):>14}")
    total = sum(time for *_, time in parts.values())
    print(f"{'together'.ljust(45)}{hour_cell(total):>14}")


def hour_cell(time):
    """A time in hours, or in minutes or seconds if it is short."""
    if math.isnan(time):
        return "-"
    if time >= 0.1:
        return f"{time:.2f} h"
    return f"{60 * time:.1f} min" if 60 * time >= 1 else f"{3600 * time:.0f} s"


def speed_words(rates, device, net):
    """A device with its rates, and where they are from. device: a Card, or torch's."""
    product = "a large bfloat16 product"
    if narrow_on_a_cpu(net, rates):
        product = f"{SLOWER:.0%} of {product}, as the model is narrow"
    name = device.name if isinstance(device, Card) else str(device)
    source = "measured"
    if isinstance(device, Card):
        source = "given" if device.measured else f"{PRODUCT:.0%} and {STREAM:.0%} of its data sheet"
    return (
        f"{name}, at {rates.flops / 1e12:.4g} TFLOP/s ({product}) and "
        f"{rates.bytes / 1e9:.0f} GB/s ({source})"
    )


def assumptions(stage):
    """What the hours rest on, in words."""
    if stage == "rlvr":
        return (
            f"assumed: the update reaches {TRAIN:.0%} of it and sampling {READ:.0%}, problems of "
            f"{PROBLEM} tokens, completions of {WRITTEN:.0%} of --max-new; grading and the curve "
            "not counted"
        )
    return (
        f"assumed: training reaches {TRAIN:.0%} of it and rollouts {READ:.0%}, {THINKS:.0%} of "
        "lines take a thought, the held-out bound is computed in float32; grading not counted"
    )


def print_settings(cfg, net, stage, here, run):
    """Print model, corpus and settings -> tokens of a snippet, on average."""
    n = sizes(net)
    origin = "" if here else f" ({cfg.model or 'its model'} is not here: published shape)"
    print(
        f"{cfg.preset}{origin}: {n['all'] / 1e6:,.1f} M parameters, "
        f"{n['blocks'] / 1e6:,.1f} M of them in {net.n_layer} layers; "
        f"width {net.d_model}, {net.vocab_size:,} ids"
    )
    tokens = cfg.max_tokens / 2
    if stage != "rlvr":
        tokens = print_corpus(cfg, run)
    print(
        f"settings: --weights {cfg.weights} --checkpoint {str(cfg.checkpoint).lower()} "
        f"--micro-tokens {cfg.micro_tokens}; {step_words(cfg, stage)}"
    )
    return tokens


def print_corpus(cfg, run):
    """Print how large the corpus is -> tokens of a snippet, on average."""
    if run is not None and hasattr(run, "expert"):
        snippets = [run.expert[i] for i in range(min(1000, len(run.expert)))]
        tokens = sum(len(snip.ids) for snip in snippets) / len(snippets)
        print(
            f"corpus {cfg.data}: {len(run.expert):,} snippets to train on, about "
            f"{tokens * len(run.expert) / 1e6:,.2f} M tokens, {tokens:.0f} a snippet; "
            f"{len(run.heldout)} held out"
        )
        return tokens
    tokens = cfg.max_tokens / 2
    bound = f", so at most {tokens * cfg.n_expert / 1e6:,.1f} M tokens" if cfg.n_expert else ""
    state = "its tokenizer is not here" if run is None else "not prepared (python -m corpus)"
    print(
        f"corpus {cfg.data}: {state}; assumed {tokens:.0f} tokens a snippet, "
        f"half of --max-tokens{bound}"
    )
    return tokens


def step_words(cfg, stage):
    """What a step of the stage takes, in words."""
    if stage == "rlvr":
        return (
            f"a step of {cfg.prompts} problems x {cfg.completions} completions "
            f"of at most {cfg.max_new} tokens"
        )
    if stage == "eval":
        return f"{cfg.elbo_samples} rollouts a held-out snippet"
    batch = cfg.rows * cfg.block
    words = f"a step of {batch:,} tokens in {-(-batch // cfg.micro_tokens)} micro-batches"
    if stage in ("em", "all"):
        words += f"; a step of an E-step: {cfg.snippets} snippets x {cfg.group} rollouts"
    return words


def print_memory(phases):
    """Print the table of `memory_plan`: a column a phase."""
    items = list(dict.fromkeys(item for phase in phases.values() for item in phase))
    width = max(map(len, phases)) + 4
    print("\nmemory, GiB".ljust(21) + "".join(phase.rjust(width) for phase in phases))
    for item in items:
        line = item.ljust(20)
        for phase in phases.values():
            size = phase.get(item)
            line += (f"{size / GIB:.2f}" if size else "-").rjust(width)
        print(line)
    totals = [f"{sum(phase.values()) / GIB:.2f}" for phase in phases.values()]
    print("together".ljust(20) + "".join(total.rjust(width) for total in totals))


def device_memory(device):
    """Bytes of memory of a device that is here."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return physical_memory()


def room_of(memory):
    """Bytes that can be filled of a device's memory."""
    return max(0.0, (memory - CONTEXT) * SPARE)


def fit_message(need, memory, name, helps):
    """Does it fit, and if not, what would help? One line. helps: settings, as `what_helps`."""
    room = room_of(memory)
    if need <= room:
        return f"fits: {need / GIB:.1f} of the {room / GIB:.1f} GiB that can be filled of {name}"
    advice = f"what helps: {', '.join(helps)}"
    if not helps:
        options = ", ".join(option_of(name) for name in SMALLEST)
        advice = f"{options} do not suffice; expected more memory, or a smaller model"
    return (
        f"does not fit: {need / GIB:.1f} GiB, and {room / GIB:.1f} GiB can be filled of {name}; "
        f"{advice}"
    )


def what_helps(cfg, net, stage, gpu, room):
    """The settings that shrink a phase which does not fit. []: all together are not enough."""

    def totals(**settings):
        phases = memory_plan(dataclasses.replace(cfg, **settings), net, stage, gpu)
        return {phase: sum(items.values()) for phase, items in phases.items()}

    large = {phase: size for phase, size in totals().items() if size > room}
    shrunk = {}
    for name, least in SMALLEST.items():
        size = totals(**{name: least})
        if any(size[phase] < large[phase] for phase in large):
            shrunk[name] = least
    if any(size > room for size in totals(**shrunk).values()):
        return []
    return [advice_of(cfg, name) for name in shrunk]


def advice_of(cfg, name):
    """How a setting is made smaller. Example: snippets -> "--snippets below 64" """
    least = SMALLEST[name]
    if isinstance(least, int) and not isinstance(least, bool):
        return f"{option_of(name)} below {getattr(cfg, name)}"
    return f"{option_of(name)} {str(least).lower()}"
