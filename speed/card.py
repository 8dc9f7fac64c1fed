"""The stage `rates`: speed on one GPU beside the peers that are installed, in one process.

The rows are those of `python -m speed` at a GPU's sizes, in order of value, and rates.json is a
file for its --markdown. Each side of a row is made, called twice, timed, and dropped before the
next, so that two models of 1.5 B parameters need not fit beside each other. A side that fails is a
note.

MFU         work / (seconds x rate of a bfloat16 product, measured); "of the data sheet" likewise
MBU         bytes that must be read / (seconds x rate of a read, measured)
memory_mb   the most that the process held, of which weights, gradients and moments are a part

training    16,384 tokens a step in documents of 64 to 448; NTP, and an M-step with 14 tokens of
            thoughts in 50. Peer: transformers on right-padded rows
grading     programs a second on all cores, alone and while the GPU samples; and what that costs the
            sampling
"""

import functools
import gc
import statistics
import threading
import time
import traceback

import numpy as np
import torch

from config import cores, make
from data import CODE, THOUGHT
from engine.machine import Rates, machine_rates, timed
from engine.plan import SHAPES, card_named, training_memory
from model import ModelConfig, Transformer
from speed import estep, grading, logprobs, rlvr
from speed.ceilings import about, copy_rate, products
from speed.measure import absent, installed, write_results_file
from speed.sampling import hf_model, peers_of, random_prompts, sampling_row
from speed.training import our_step, padded_loss, stepped, training_limit

SMALL = ModelConfig(vocab_size=512, n_layer=2, n_head=4, n_kv_head=2, d_model=64, d_ff=96)
LEAST = 6.0  # seconds without which a row is not begun


def timed_apart(makers, repeats, device):
    """{name: median seconds}, {name: MB at most}, and notes, of functions made one at a time.

    makers   {name: () -> function}
    """
    seconds = {}
    memory = {}
    notes = []
    for name, maker in makers.items():
        release(device)
        try:
            call = maker()
            first = timed(call)[0]
            timed(call)
            seconds[name] = statistics.median(timed(call)[0] for _ in range(repeats))
            notes.append(f"{name}: first call {first:.1f} s")
        except (RuntimeError, ImportError) as e:  # no memory, no kernel
            notes.append(f"{name} failed: {type(e).__name__}: {str(e)[:200]}")
        call = None
        if device.type == "cuda":
            memory[name] = torch.cuda.max_memory_allocated(device) / 2**20
    release(device)
    return seconds, memory, notes


def release(device):
    """Give back what is no longer used, and begin to count memory anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def with_shares(row, rates):
    """A row whose limit is one of products alone, with the MFU."""
    if "ours" not in row["seconds"]:
        return row
    share = row["limit_s"] / row["seconds"]["ours"]
    values = {**row.get("values", {}), "MFU": share}
    if (card := data_sheet(rates)) is not None:
        values["MFU of the data sheet"] = share * rates.flops / card.flops
    return {**row, "values": values}


def data_sheet(rates):
    """The Card of the device that rates are of, if it is a known one."""
    if rates.device.type != "cuda":
        return None
    return card_named(torch.cuda.get_device_name(rates.device))


# ---------------------------------------------------------------- rows


def shapes_of(job):
    """{name: ModelConfig} of the two models."""
    if job.tiny:
        return {"small": SMALL}
    return {"SmolLM2-135M": SHAPES["smollm2-gpu"], "Qwen2.5-1.5B": SHAPES["qwen2.5-1.5b"]}


def logprobs_on_card(job, rates):
    """Log-probabilities at both vocabularies."""
    names = ["ours", "plain"]
    if installed("cut_cross_entropy") and installed("triton"):
        names.append("cut-cross-entropy")
    heads = [(512, 64)] if job.tiny else [(49152, 576), (151936, 1536)]
    for V, D in heads:
        for gradient in (False, True):
            row = logprobs.logprobs_row(V, D, gradient, names, job.tiny, rates)
            yield with_shares(row, rates)


def random_documents(tokens, vocab, thoughts, longest=448):
    """Documents of random ids with kinds -> (docs, kinds). thoughts: 14 tokens in 50 are one's."""
    rng = np.random.default_rng(0)
    docs = []
    kinds = []
    while sum(map(len, docs)) < tokens:
        ids = rng.integers(1, vocab, rng.integers(longest // 7, longest + 1)).tolist()
        docs.append(ids)
        kinds.append([THOUGHT if thoughts and i % 50 >= 36 else CODE for i in range(len(ids))])
    return docs, kinds


def their_step(cfg, docs, device, parts):
    """() -> one step of transformers on right-padded rows, in so many micro-batches."""
    model = hf_model(cfg).to(device)
    opt = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    losses = [padded_loss(model, docs[i::parts], device) for i in range(parts)]

    last = stepped(model, opt, losses[-1])

    def step():
        for loss in losses[:-1]:
            with torch.autocast(device.type, torch.bfloat16):
                value = loss()
            value.backward()
        last()

    return step


def training_on_card(job, rates):
    """NTP and M-steps of both models."""
    tokens = 300 if job.tiny else 16_384
    for name, cfg in shapes_of(job).items():
        parts = 1 if cfg.d_model < 1024 else 2  # ours; theirs has parts ** 3
        for stage, thoughts in (("NTP", False), ("M-step", True)):
            docs, kinds = random_documents(tokens, cfg.vocab_size, thoughts)
            settings = dict(micro_tokens=tokens // parts, compile=job.compile)
            ours = functools.partial(our_step, cfg, docs, kinds, rates.device, **settings)
            makers = {"ours": ours}
            if not thoughts and installed("transformers"):
                theirs = functools.partial(their_step, cfg, docs, rates.device, parts**3)
                makers["transformers padded"] = theirs
            seconds, memory, notes = timed_apart(makers, rates.repeats, rates.device)
            planned = training_memory(make("smollm2-gpu", **settings), cfg, tokens // parts, 1)
            row = {
                "row": f"{stage}, {name}, {sum(map(len, docs)):,} tokens",
                "work": sum(map(len, docs)),
                "unit": "tokens",
                "seconds": seconds,
                "limit_s": training_limit(cfg, docs, rates),
                "memory_mb": memory,
                "values": {"planned MB": sum(planned.values()) / 2**20},
                "note": "; ".join(filter(None, [*notes, absent("transformers")])),
            }
            yield with_shares(row, rates)


def rollouts_on_card(job, rates):
    """Rollouts with rewards and gains, against line by line and token by token."""
    cfg = shapes_of(job).popitem()[1] if job.tiny else SHAPES["smollm2-gpu"]
    model = estep.a_model(cfg, rates.device).bfloat16()
    theirs = None
    if installed("transformers"):
        theirs = hf_model(cfg).bfloat16().eval().to(rates.device)
    n = 60 if job.tiny else 250
    yield from estep.rollout_case(model, theirs, n, 2 if job.tiny else 8, 0.4, job.tiny, rates)


def estep_on_card(job, rates):
    """The whole E-step in NTP steps."""
    settings = make("smollm2-gpu")
    cfg = SMALL if job.tiny else SHAPES["smollm2-gpu"]
    sizes = (1, 2) if job.tiny else (settings.snippets, settings.group)
    yield estep.estep_row(cfg, *sizes, settings, rates.repeats, rates)


def sampling_on_card(job, rates):
    """Sampling at several batches."""
    cfg = SMALL if job.tiny else SHAPES["smollm2-gpu"]
    model = Transformer(cfg).init_weights(0).bfloat16().to(rates.device)
    peers, note = peers_of(model, rates)
    gen = torch.Generator().manual_seed(0)
    new = 8 if job.tiny else 64
    for B in (1, 4) if job.tiny else (64, 256, 1, 1024, 16):
        if job.left() < LEAST:
            return
        n = min(B, 16)
        prompts = random_prompts([128] * (B // n), cfg.vocab_size, gen)
        name = f"sampling, batch {B}, {new} new tokens"
        yield {**sampling_row(name, model, peers, prompts, n, new, 3, rates), "note": note}


def grpo_on_card(job, rates):
    """A step of GRPO, with TRL if it is installed."""
    if job.tiny:
        return
    cfg = make("smollm2-gpu", prompts=rlvr.PROMPTS, completions=rlvr.G, max_new=rlvr.NEW)
    yield rlvr.step_row(cfg, False, rates)


def grading_on_card(job, rates):
    """Programs a second on all cores, alone and while the device samples."""
    n = 20 if job.tiny else 2000
    cfg = SMALL if job.tiny else SHAPES["smollm2-gpu"]
    model = Transformer(cfg).init_weights(0).bfloat16().to(rates.device)
    ours = peers_of(model, rates)[0]["ours"]
    prompts = random_prompts([128] * 4, cfg.vocab_size, torch.Generator().manual_seed(0))
    sample = functools.partial(ours, prompts, 16, 8 if job.tiny else 64)
    sample()
    alone = timed(lambda: grading.our_grading(n))[0]
    sampling_alone = timed(sample)[0]
    ended = []

    def grade():
        began = time.perf_counter()
        grading.our_grading(n)
        ended.append(time.perf_counter() - began)

    thread = threading.Thread(target=grade)
    thread.start()
    calls = [timed(sample)[0]]
    while thread.is_alive():
        calls.append(timed(sample)[0])
    thread.join()
    yield {
        "row": "grading while the device samples, trivial programs",
        "work": n,
        "unit": "runs",
        "seconds": {"ours": ended[0], "alone": alone},
        "values": {
            "cores": cores(),
            "sampling, x its time alone": statistics.median(calls) / sampling_alone,
        },
    }


ROWS = (
    logprobs_on_card,
    training_on_card,
    rollouts_on_card,
    estep_on_card,
    sampling_on_card,
    grpo_on_card,
    grading_on_card,
)

# ---------------------------------------------------------------- the stage


def card_rates(job, device):
    """The Rates of the device; in a rehearsal those of small products and reads."""
    if not job.tiny:
        return machine_rates(device, True)
    flops = products(device, 256)
    reads = copy_rate(device, 2**18)
    return Rates(1e12 * flops["bfloat16"], 1e12 * flops["float32"], 1e9 * reads, True, device)


def rates_stage(job):
    """Measure all rows, and write rates.json after each.

    A group that fails leaves its traceback, and the next one goes on.
    """
    device = job.torch_device()
    rates = card_rates(job, device)._replace(repeats=1 if job.tiny else 5, budget=4.0)
    facts = dict(flops=rates.flops, flops32=rates.flops32, bytes=rates.bytes, unit=rates.unit)
    results = {"machine": {**about(device), **facts}, "rows": []}
    for group in ROWS:
        if job.left() < LEAST:
            print(f"rates: no time for {group.__name__}")
            continue
        try:
            for row in group(job, rates):
                results["rows"].append({"group": group.__name__, **row})
                write_results_file(job.out / "rates.json", results)
                print(f"rates: {job.left():.0f} s left: {row}", flush=True)
        except Exception:
            with open(job.out / "rates.traceback", "a") as f:
                f.write(f"{group.__name__}\n{traceback.format_exc()}\n")
        release(device)
