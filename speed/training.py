"""Training: tokens a second of whole optimizer steps, bfloat16 autocast on float32 weights.

A step is forward, backward, clipping and AdamW.

step, 10.7M / 124M
    16 x 256 tokens in nanoGPT's Shakespeare shape, 2 x 512 in GPT-2's, random ids, against
    nanoGPT's own classes under autocast (which its script leaves out on a CPU), its dropout off.
    Ours has as many parameters to within 2%: SwiGLU and RMSNorm, no learned positions
M-step, SmolLM2
    functions of at most 512 tokens of four modules of the standard library, SmolLM2's shape, random
    weights: *real* tokens, against transformers with these functions as one right-padded batch, and
    as one row with positions and a block-diagonal mask
M-step, tiny
    the step of `train.py --stage ntp`: the built-in domain, 0.8 M parameters

Limit: sum over documents of T (6 P + 6 layers D T) / F: P parameters without the embedding and with
the head, T real tokens of the document (a causal query sees half of them), F the measured bfloat16
product. The share of it is the MFU; padding is no work, so it counts against whoever pads.

What was tried (core-milliseconds of one core, AMD EPYC, avx512_bf16 without AMX; forward and
backward of a layer of SmolLM2's shape on 2,034 tokens in 14 functions, unless said otherwise;
repeats differ by up to 20%)
    documents by buckets of nearly one length
        attention 46, as 4 packed rows of 512 with a mask 68; tiny model 21, was 31 (kept)
    all buckets gathered at once
        46 -> 41: one scatter on the way back instead of one a bucket and a sum (kept)
    blocks of about 128 queries
        two functions of 570 tokens 92 -> 50; 16 x 256, six heads: 78 -> 69 (kept)
    steps of so many real tokens, not of rows
        the tiny model's rows were full to 89% (kept)
    scaled_dot_product_attention in each bucket
        96 in bfloat16, 74 in float32, against 52 (not kept)
    float32 scores and softmax
        96 against 52 (not kept)
    scale and mask inside the product (baddbmm)
        46 against 46 (not kept)
    bfloat16 copies of the weights, cached
        casts of weights 1.0 and of gradients 1.6 of a block's 336: autocast's cache will do (not
        kept)
    rotation with a backward of its own
        8.2 against 8.4, of 336 (not kept)
    torch.compile of the blocks
        a step of 30 layers on 1,468 tokens 14.4 -> 11.3 s, on 2,048 15.4 -> 14.0; tiny model 0.386
        -> 0.374 s; it costs 20 to 40 s at the start: a setting, which `auto` turns on on a GPU only
        (kept)
    the products of q, k, v (gate, up) as one
        205 against 207 GFLOP a core-second forward: they are at the machine's rate (not kept)
    all of the above, tiny model's steps
        2.02 -> 2.20 a core-second, and 10,439 -> 12,678 tokens: there are more in a step
    freed memory kept (machine.settle_memory)
        core-seconds: SmolLM2's step on 500 tokens 3.5 -> 3.1, an E-step 30.6 -> 29.5,
        log-probabilities (small V) 1.9 -> 1.5, with gradient 4.5 -> 4.5, sampling at batch 1 1.9 ->
        1.6, at 64 none (kept)
    huge pages (THP_MEM_ALLOC_ENABLE) as well
        nothing but noise; without the line above, clearing them costs 2 to 3 times the small pages
        (not kept)
    micro-batches
        4 layers of width 256, 16 x 256 tokens: at most 4,096, 1,024, 512 tokens take 324, 166, 108
        MB; one of 4,096 with --checkpoint 219 MB (settings)

Without AMX a product takes so long that nanoGPT runs at 64% of the limit itself (10.7M): no more
than 1.6 times that is possible there.
"""

import argparse
import contextlib
import dataclasses
import heapq
import importlib.util
import inspect
import os
import random
import statistics
import textwrap

import torch

import config
import data
import domain
import mstep
from config import UserError
from corpus.functions import functions
from engine import documents, packing, training
from formats import tokenizers
from formats.gguf import smollm2_path
from model import ModelConfig, Transformer, work_size
from speed.measure import absent, installed, interleaved
from speed.sampling import SMOLLM2, hf_model

NANO = ModelConfig(
    vocab_size=65, n_layer=6, n_head=6, n_kv_head=6, d_model=384, d_ff=1024, max_len=256
)
GPT2 = ModelConfig(
    vocab_size=50304, n_layer=12, n_head=12, n_kv_head=12, d_model=768, d_ff=2048, max_len=1024
)


def training_limit(cfg, docs, rates):
    """The time of the work at the rate of a matrix product: see the module's docstring."""
    with torch.device("meta"):
        P = work_size(Transformer(cfg))
    work = sum(len(d) * (6 * P + 6 * cfg.n_layer * cfg.d_model * len(d)) for d in docs)
    return work / rates.flops


def our_step(cfg, docs, kinds, device, **settings):
    """() -> one step of ours on these documents."""
    settings = config.make(**{"micro_tokens": 8192, **settings})
    model, opt = training.prepare_training(
        Transformer(cfg).init_weights(0).to(device),
        settings,
        lambda m: training.adamw(m, 1e-4, 0.1),
    )
    return lambda: mstep.ntp_step(model, opt, docs, kinds, 1e-4, settings)


def stepped(model, opt, loss_of):
    """() -> one step of a peer. loss_of: () -> loss."""

    def step():
        with torch.autocast(next(model.parameters()).device.type, torch.bfloat16):
            loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)

    return step


def nanogpt(folder, cfg, ids, device):
    """() -> one step of nanoGPT, of a checkout, on ids (B, T + 1)."""
    spec = importlib.util.spec_from_file_location("nanogpt", os.path.join(folder, "model.py"))
    lib = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lib)
    shape = lib.GPTConfig(
        block_size=ids.shape[1] - 1,
        vocab_size=cfg.vocab_size,
        n_layer=cfg.n_layer,
        n_head=cfg.n_head,
        n_embd=cfg.d_model,
        dropout=0.0,
        bias=False,
    )
    with contextlib.redirect_stdout(None):  # it tells its number of parameters
        model = lib.GPT(shape).to(device)
        opt = model.configure_optimizers(0.1, 1e-4, (0.9, 0.95), device.type)
    if device.type == "cuda":
        model = torch.compile(model)  # as its script does
    x = ids[:, :-1].contiguous().to(device)
    y = ids[:, 1:].contiguous().to(device)
    return stepped(model, opt, lambda: model(x, y)[1])


def padded_loss(model, docs, device):
    """() -> loss of transformers on documents as right-padded rows."""
    T = max(map(len, docs))

    def rows_of(lists, pad):
        return torch.tensor([list(x) + [pad] * (T - len(x)) for x in lists], device=device)

    ids = rows_of(docs, 0)  # (B, T)
    mask = rows_of([[1] * len(d) for d in docs], 0)
    labels = rows_of(docs, -100)
    return lambda: model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss


def packed_loss(model, docs, device):
    """() -> loss of transformers on documents as one row with a mask of blocks.

    Positions start anew at each document.
    """
    ids, pos, doc, _ = (x.to(device) for x in packing.pack(docs))
    mask = ((doc[:, :, None] == doc[:, None, :]).tril())[:, None]  # (1, 1, T, T)
    labels = ids.masked_fill(pos == 0, -100)
    inputs = dict(input_ids=ids, position_ids=pos, attention_mask=mask, labels=labels)
    return lambda: model(**inputs, use_cache=False).loss


# ---------------------------------------------------------------- rows


def against_nanogpt(name, cfg, B, T, repeats, rates, *, folder, compiled):
    """A step of ours and of nanoGPT, on random ids. folder: of nanoGPT, or ""."""
    ids = torch.randint(cfg.vocab_size, (B, T + 1), generator=torch.Generator().manual_seed(0))
    docs = ids[:, :T].tolist()
    kinds = [[data.CODE] * T] * B
    calls = {"ours": our_step(cfg, docs, kinds, rates.device)}
    if compiled:
        calls["ours compiled"] = our_step(cfg, docs, kinds, rates.device, compile="true")
    if folder:
        calls["nanoGPT"] = nanogpt(folder, cfg, ids, rates.device)
    return {
        "row": name,
        "work": B * T,
        "unit": "tokens",
        "seconds": interleaved(calls, repeats, rates, name),
        "limit_s": training_limit(cfg, docs, rates),
        "target": {"nanoGPT": 1.3, "limit": 0.35},
        "note": "" if folder else "nanoGPT: give its folder with --nanogpt",
    }


def real_functions(n):
    """Token ids of n functions of the standard library, SmolLM2's tokenizer.

    Raises UserError without its package.
    """
    tok = tokenizers.gguf_tokenizer(smollm2_path())
    texts = [
        text
        for module in (heapq, textwrap, statistics, argparse)
        for _, text, _ in functions(inspect.getsource(module))
        if text
    ]
    ids = [data.snippet(tok, text, 0).ids for text in texts]
    return random.Random(0).sample([x for x in ids if len(x) <= 512], n)


def training_rows(quick, rates, args):
    cuda = rates.device.type == "cuda"
    name = "training step, 10.7M, 16 x 256"
    yield against_nanogpt(
        name,
        NANO,
        64 if cuda else 16,
        256,
        1 if quick else 5,
        rates,
        folder=args.nanogpt,
        compiled=not quick and not cuda,
    )
    if not quick or cuda:
        name = "training step, 124M, 2 x 512"
        B = 16 if cuda else 2
        yield against_nanogpt(name, GPT2, B, 512, 5, rates, folder=args.nanogpt, compiled=False)
    yield smollm2_row(quick, rates)
    yield tiny_row(rates)


def smollm2_row(quick, rates):
    """An M-step of SmolLM2's shape on real functions, ours and two of transformers."""
    cuda = rates.device.type == "cuda"
    cfg = dataclasses.replace(SMOLLM2, n_layer=4) if quick and not cuda else SMOLLM2
    n = 6 if quick else 16
    n = 64 if cuda else n
    name = f"M-step, SmolLM2's shape, {cfg.n_layer} layers, {n} functions"
    try:
        docs = real_functions(n)
    except UserError as e:
        return {"row": name, "note": str(e)}
    kinds = [[data.CODE] * len(d) for d in docs]
    total = sum(map(len, docs))
    calls = {"ours": our_step(cfg, docs, kinds, rates.device)}
    if not quick and not cuda:
        calls["ours compiled"] = our_step(cfg, docs, kinds, rates.device, compile="true")
    if installed("transformers"):
        model = hf_model(cfg).to(rates.device)
        opt = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
        for form, loss in (("padded", padded_loss), ("packed", packed_loss)):
            calls[f"transformers {form}"] = stepped(model, opt, loss(model, docs, rates.device))
    return {
        "row": name,
        "work": total,
        "unit": "tokens",
        "seconds": interleaved(calls, 1 if quick else 5, rates, name),
        "limit_s": training_limit(cfg, docs, rates),
        "target": {"transformers padded": 3.5, "transformers packed": 1.8, "limit": 0.35},
        "values": {
            "mean tokens": round(total / n),
            "real share of a padded batch": round(total / (n * max(map(len, docs))), 2),
        },
        "note": absent("transformers"),
    }


def tiny_row(rates):
    """The step of `train.py --stage ntp` on the built-in domain."""
    rng = random.Random(1)
    settings = config.make()
    texts = ["".join(domain.base_text(rng)) for _ in range(300)]
    tok = tokenizers.train_tokenizer(texts, settings.vocab_size)
    tasks = [domain.expert_task(0, i, "train") for i in range(200)]
    snips = [data.snippet(tok, t.prompt + t.solution, len(t.prompt)) for t in tasks]
    draw = documents.step_documents(
        [len(s.ids) for s in snips], settings.rows * settings.block, (0, 0)
    )
    drawn = [snips[i] for i in draw(0)]
    code = documents.Code(tok, drawn, [len(s.ids) for s in drawn])
    docs, kinds = zip(*code, strict=True)
    cfg = ModelConfig(
        tok.vocab_size,
        settings.n_layer,
        settings.n_head,
        settings.n_head,
        settings.d_model,
        settings.d_ff,
        settings.max_len,
    )
    calls = {"ours": our_step(cfg, docs, kinds, rates.device)}
    seconds = interleaved(calls, 10, rates, "tiny")
    return {
        "row": "M-step, tiny",
        "work": sum(map(len, docs)),
        "unit": "tokens",
        "seconds": seconds,
        "limit_s": training_limit(cfg, docs, rates),
        "values": {"steps/s": round(1 / seconds["ours"], 2)},
    }
