"""What a run will take, told before it starts: `python train.py --stage em --preset qwen2.5-1.5b --dry-run`. Computed from the settings and the model's shape; only
the speed of the device is measured, with a matrix product. No weights are needed; where the model's tokenizer is there, the corpus is read.

    parameter, float32 weights       4 bytes + 4 gradient + 8 moments of Adam (+ 2 for the copy that autocast multiplies with)
               --weights bfloat16    2       + 2          + 4
    activation of a token and layer  28 D + 8 F bytes: the residual stream and its norms in float32, twice; what the matrix products and attention read in
               --checkpoint          bfloat16.  4 D, and one layer's activations at a time
    key and value of a token         2 layers K E numbers

The E-step holds pi and q, and while it samples also what the decoder needs of both: stacked weights of the blocks, heads in float32, caches. What cannot be
known is assumed, and said: how often thoughts come, and which share of the matrix product's speed a stage reaches. Not counted: several GPUs, the
disk (a checkpoint of an unfinished stage is as large as weights and moments).

Letters: D width, F width of the feed-forward layers, K key/value heads, E head width, V vocabulary. Units: bytes, unless said otherwise.
"""

import os

import torch

from config import UserError, estep_of, selection_of
from engine.machine import device_of, machine_rates
from formats import huggingface
from model import ModelConfig, Transformer, count_params, work_size

GIB = 2**30
LOGITS = (
    2**29 + 5 * 4 * 8192**2
)  # logits that are kept, at most, and a block of them with what is computed from it
CONTEXT, SPARE = (
    1.0 * GIB,
    0.95,
)  # what the driver takes; the share of the rest that can be filled before fragments of memory are the limit
TRAIN, READ = (
    0.4,
    0.3,
)  # assumed: share of the matrix product's speed in training, and in the forwards of rollouts
LINE, THINKS = (
    10.5,
    0.3,
)  # assumed: tokens a line; share of lines with a thought (the paper: fewer than 0.4)

LLAMA = dict(rope_theta=5e5, norm_eps=1e-5, max_len=131072)
QWEN = dict(rope_theta=1e6, norm_eps=1e-6, qkv_bias=True)
SHAPES = {  # as published, for presets whose model is not here
    "smollm2": ModelConfig(49152, 30, 9, 3, 576, 1536, 8192, 1e5, tied=True),
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
        return ModelConfig(
            cfg.vocab_size, cfg.n_layer, cfg.n_head, cfg.n_head, cfg.d_model, cfg.d_ff, cfg.max_len
        ), True
    try:
        path = huggingface.find(cfg, download=False)
    except UserError:
        return SHAPES[cfg.preset], False
    return (
        huggingface.read_config(path) if os.path.isdir(path) else huggingface.open_pretrained(path).cfg
    ), True


def sizes(net):
    """{"all", "blocks", "head", "work"}: numbers of parameters of a ModelConfig; work: P of the FLOP count."""
    with torch.device("meta"):
        model = Transformer(net)
    return {
        "all": count_params(model),
        "blocks": sum(p.numel() for p in model.blocks.parameters()),
        "head": model.head_weight.numel(),
        "work": work_size(model),
    }


def activations(net, tokens, checkpoint):
    """Bytes that training under bfloat16 autocast keeps of so many tokens for the way back."""
    layer = 28 * net.d_model + 8 * net.d_ff
    return tokens * (net.n_layer * 4 * net.d_model + layer if checkpoint else net.n_layer * layer)


def memory(cfg, net, stage="em"):
    """{phase: {what: bytes}} of a run on one device."""
    n, W = sizes(net), 2 if cfg.weights == "bfloat16" else 4
    copy = 2 if cfg.rollout_bf16 or W == 2 else 4  # bytes a number of what samples
    kv = 2 * net.n_layer * net.n_kv_head * (net.d_model // net.n_head)
    cast = 2 * n["all"] if W == 4 and cfg.bf16 else 0

    def training(tokens, logits):
        return {
            "weights": W * n["all"],
            "gradients": W * n["all"],
            "Adam's moments": 2 * W * n["all"],
            "bfloat16 casts": cast,
            "activations": activations(net, tokens, cfg.checkpoint) * (1 if cfg.bf16 else 2),
            "logits": min(logits * LOGITS, 12 * tokens * net.vocab_size),
        }

    def sampling(rows, prompts, prompt, length, both, size):
        made = (2 if both else 1) * size * n["blocks"] + (3 if both else 2) * 4 * n["head"]
        slots = (2 if both else 1) * prompts * prompt + rows * length
        return {
            "stacked weights": made,
            "keys and values": size * kv * slots,
            "drawing": 16 * rows * net.vocab_size,
        }

    copies = copy * n["all"] if W == 4 and cfg.rollout_bf16 else 0
    out = {} if stage == "eval" else {"next-token training": training(cfg.micro_tokens, 1)}
    if stage in ("em", "all"):
        rows = cfg.snippets * cfg.group
        held = {"weights": 2 * W * n["all"], "Adam's moments": 2 * W * n["all"]}
        out["E-step, rollouts"] = {
            **held,
            "bfloat16 copies": 2 * copies,
            **sampling(rows, cfg.snippets, cfg.max_tokens, cfg.block, True, copy),
        }
        out["E-step, update"] = {
            **training(cfg.micro_tokens, 2),
            "weights": 2 * W * n["all"],
            "bfloat16 copies": copies,
        }
    if stage == "rlvr":
        held = {"weights": 2 * W * n["all"], "Adam's moments": 2 * W * n["all"]}
        out = {
            "sampling": {
                **held,
                "bfloat16 copies": copies,
                **sampling(
                    cfg.prompts * cfg.completions, cfg.prompts, 1024, cfg.max_new, False, copy
                ),
            },
            "update": {**training(cfg.micro_tokens, 2), "weights": 2 * W * n["all"]},
        }
    elif stage in ("em", "all", "eval"):
        rows, prompts = 128, max(1, 128 // cfg.elbo_samples)  # in float32, whatever the weights
        out["held-out bound"] = {
            "weights": (4 if W == 4 else 6) * n["all"],
            **sampling(rows, prompts, cfg.max_tokens, cfg.block, False, 4),
        }
    return out


def rollout_seconds(cfg, net, snippets, G, tokens, rates):
    """Seconds of G rollouts over snippets of so many tokens each, q and pi apart."""
    work, lines = sizes(net)["work"], tokens / LINE
    read = (
        snippets * (2 + (2.5 * G if THINKS * lines > 1 else G)) * tokens
    )  # trunk twice; rest, rewards and values of each rollout
    drawn, rounds = (
        snippets * G * THINKS * lines * cfg.think_max,
        THINKS * lines * cfg.think_max,
    )  # tokens of thoughts, steps one after the other
    return 2 * work * (read + drawn) / (READ * rates.flops) + rounds * (
        2 * work / rates.bytes + net.n_layer * 3e-5
    )


def hindsight_seconds(cfg, net, snippets, tokens, rates):
    """Seconds of proposing and weighing thoughts in hindsight: at each line tried its context, read by those that write, and each proposal, written and
    then read in both contexts, with the lines it reaches."""
    work, lines = sizes(net)["work"], tokens / LINE
    tried, reach = snippets * cfg.tried * lines, LINE * min(cfg.reach or lines / 2, lines / 2)
    read = snippets * tokens + tried * (tokens + cfg.proposals * (2 * cfg.think_max + reach))
    rounds = tried * cfg.proposals / 128 * cfg.think_max  # steps one after the other, 128 rows each
    return 2 * work * (read + tried * cfg.proposals * cfg.think_max) / (
        READ * rates.flops
    ) + rounds * (2 * work / rates.bytes + net.n_layer * 3e-5)


def hours(cfg, net, stage, tokens, rates):
    """{part: (steps, tokens trained or sampled over, hours)}. tokens: of a snippet, on average."""
    work, batch = sizes(net)["work"], cfg.rows * cfg.block
    step = (8 if cfg.checkpoint else 6) * work * batch / (TRAIN * rates.flops)
    out, iters = {}, cfg.iters
    if stage in ("pretrain", "em", "all") and cfg.preset == "tiny":
        out["pre-training"] = (
            cfg.pretrain_steps,
            cfg.pretrain_steps * batch,
            cfg.pretrain_steps * step / 3600,
        )
    if stage in ("ntp", "em", "all"):
        out["NTP"] = (
            iters * cfg.mstep_steps,
            iters * cfg.mstep_steps * batch,
            iters * cfg.mstep_steps * step / 3600,
        )
    if stage in ("em", "all"):
        rows = cfg.snippets * cfg.group
        update = (8 if cfg.checkpoint else 6) * work * rows * tokens / (TRAIN * rates.flops)
        ways = [estep_of(cfg, i) for i in range(iters)]
        e = cfg.estep_steps * ways.count("reinforce")
        out["E-steps"] = (
            e,
            e * rows * tokens,
            e * (rollout_seconds(cfg, net, cfg.snippets, cfg.group, tokens, rates) + update) / 3600,
        )
        rows_of = {"best-of-n": cfg.best_of, "reinforce": cfg.resample}
        G = sum(rows_of.get(way, 1) for way in ways) / iters  # the mean over iterations
        seconds = (
            hindsight_seconds(cfg, net, 64, tokens, rates)
            if cfg.estep == "hindsight"
            else rollout_seconds(cfg, net, 64, G, tokens, rates)
        )
        free = (
            sum(selection_of(cfg, i) == "act" for i in range(iters))
            if cfg.estep == "hindsight"
            else 0
        )  # nothing is proposed there
        out["infusion"] = (
            iters - free,
            (iters - free) * cfg.infuse * G * tokens,
            (iters - free) * cfg.infuse / 64 * seconds / 3600,
        )
        out["M-steps"] = out["NTP"]
    return out


def show(cfg, stage, gib=0, run=None):
    """Print the plan. gib: the memory of a device that is not here, in GiB; 0: of the one found. run: the Run with the corpus, or None."""
    net, here = shape(cfg)
    n, device = sizes(net), device_of(cfg)
    print(
        f"{cfg.preset}{'' if here else ' (its model is not here: published shape)'}: {n['all'] / 1e6:,.1f} M parameters, "
        f"{n['blocks'] / 1e6:,.1f} M of them in {net.n_layer} layers; width {net.d_model}, {net.vocab_size:,} ids"
    )
    if run is not None and hasattr(run, "expert"):
        some = [run.expert[i] for i in range(min(1000, len(run.expert)))]
        tokens = sum(len(snip.ids) for snip in some) / len(some)
        print(
            f"corpus {cfg.data}: {len(run.expert):,} snippets to train on, about {tokens * len(run.expert) / 1e6:,.2f} M tokens, {tokens:.0f} a snippet; "
            f"{len(run.heldout)} held out"
        )
    else:
        tokens = cfg.max_tokens / 2
        most = f", so at most {tokens * cfg.n_expert / 1e6:,.1f} M tokens" if cfg.n_expert else ""
        print(
            f"corpus {cfg.data}: not read; assumed {tokens:.0f} tokens a snippet, half of --max-tokens{most}"
        )
    batch = cfg.rows * cfg.block
    print(
        f"settings: --weights {cfg.weights} --checkpoint {str(cfg.checkpoint).lower()} --micro-tokens {cfg.micro_tokens}; a step of {batch:,} tokens in "
        f"{-(-batch // cfg.micro_tokens)} micro-batches; a step of an E-step: {cfg.snippets} snippets x {cfg.group} rollouts"
    )

    phases = memory(cfg, net, stage)
    names = list(dict.fromkeys(what for phase in phases.values() for what in phase))
    width = max(map(len, phases)) + 2
    print("\nmemory, GiB".ljust(21) + "".join(phase.rjust(width + 2) for phase in phases))
    for what in names:
        print(
            what.ljust(20)
            + "".join(
                (f"{phase[what] / GIB:.2f}" if phase.get(what) else "-").rjust(width + 2)
                for phase in phases.values()
            )
        )
    totals = [sum(phase.values()) for phase in phases.values()]
    print("together".ljust(20) + "".join(f"{total / GIB:.2f}".rjust(width + 2) for total in totals))
    found = (
        torch.cuda.get_device_properties(device).total_memory
        if device.type == "cuda"
        else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    )
    print(
        verdict(
            cfg,
            max(totals),
            gib * GIB or found,
            f"a device of {gib:g} GiB" if gib else f"{device} with {found / GIB:.1f} GiB",
        )
    )

    rates = machine_rates(device, True)
    said = hours(cfg, net, stage, tokens, rates)
    print(
        f"\nexpected on {device}, at {rates.flops / 1e12:.2f} TFLOP/s (a bfloat16 matrix product, measured) and {rates.bytes / 1e9:.0f} GB/s (a read, measured), if "
        f"training reaches {TRAIN:.0%} and rollouts {READ:.0%} of it and {THINKS:.0%} of lines take a thought (assumed); evaluation not counted"
    )
    for part, (steps, some, time) in said.items():
        print(f"{part.ljust(14)}{steps:8,} steps{some / 1e6:12,.2f} M tokens{time:12.2f} h")
    print(f"{'together'.ljust(47)}{sum(time for *_, time in said.values()):10.2f} h")


def verdict(cfg, need, whole, name):
    """Does it fit, and if not, what would help? One line."""
    room = (whole - CONTEXT) * SPARE
    if need <= room:
        return f"fits: {need / GIB:.1f} of the {room / GIB:.1f} GiB that can be filled of {name}"
    better = (
        ("weights", "bfloat16", cfg.weights),
        ("checkpoint", "true", str(cfg.checkpoint).lower()),
    )
    less = [f"--{key} {value}" for key, value, given in better if given != value]
    return (
        f"does not fit: {need / GIB:.1f} GiB, and {room / GIB:.1f} GiB can be filled of {name}; what helps: "
        + ", ".join(
            [*less, f"--micro-tokens below {cfg.micro_tokens}", f"--snippets below {cfg.snippets}"]
        )
    )
