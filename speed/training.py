"""Training: tokens a second of whole optimizer steps (forward, backward, clipping, AdamW) in bfloat16 autocast with float32 weights.

step, 10.7M / 124M    16 x 256 tokens in nanoGPT's Shakespeare shape, 2 x 512 in GPT-2's, random ids, against nanoGPT's own classes under autocast
                      (which its script leaves out on a CPU), its dropout off. Ours has as many parameters to within 2%: SwiGLU and RMSNorm, no learned positions
M-step, SmolLM2       functions of at most 512 tokens of four modules of the standard library, SmolLM2's shape, random weights: *real* tokens, against transformers with
                      these functions as one right-padded batch, and as one row with positions and a block-diagonal mask
M-step, tiny          the step of `train.py --stage ntp`: the built-in domain, 0.8 M parameters

Limit: sum over documents of T (6 P + 6 layers D T) / F: P parameters without the embedding and with the head, T real tokens of the document (a causal query
sees half of them), F the measured bfloat16 product. The share of it is the MFU; padding is no work, so it counts against whoever pads.

What was tried (core-milliseconds of one core, AMD EPYC, avx512_bf16 without AMX; forward and backward of a layer of SmolLM2's shape on 2,034 tokens in
14 functions, unless said otherwise; repeats differ by up to 20%)
    documents by buckets of nearly one length       attention 46, as 4 packed rows of 512 with a mask 68; tiny model 21, was 31         kept
    all buckets gathered at once                    46 -> 41: one scatter on the way back instead of one a bucket and a sum            kept
    blocks of about 128 queries                     two functions of 570 tokens 92 -> 50; 16 x 256, six heads: 78 -> 69                kept
    steps of so many real tokens, not of rows       the tiny model's rows were full to 89%                                             kept
    scaled_dot_product_attention in each bucket     96 in bfloat16, 74 in float32, against 52                                      not kept
    float32 scores and softmax                      96 against 52                                                                  not kept
    scale and mask inside the product (baddbmm)     46 against 46                                                                  not kept
    bfloat16 copies of the weights, cached          casts of weights 1.0 and of gradients 1.6 of a block's 336: autocast's cache will do   not kept
    rotation with a backward of its own             8.2 against 8.4, of 336                                                        not kept
    torch.compile of the blocks                     a step of 30 layers on 1,468 tokens 14.4 -> 11.3 s, on 2,048 15.4 -> 14.0; tiny model 0.386 -> 0.374 s;
                                                    it costs 20 to 40 s at the start: a setting, which `auto` turns on on a GPU only   kept
    the products of q, k, v (gate, up) as one       205 against 207 GFLOP a core-second forward: they are at the machine's rate    not kept
    all of the above, tiny model's steps            2.02 -> 2.20 a core-second, and 10,439 -> 12,678 tokens: there are more in a step
    freed memory kept (machine.settle_memory)            core-seconds: SmolLM2's step on 500 tokens 3.5 -> 3.1, an E-step 30.6 -> 29.5, log-probabilities (small V)
                                                    1.9 -> 1.5, with gradient 4.5 -> 4.5, sampling at batch 1 1.9 -> 1.6, at 64 none                 kept
    huge pages (THP_MEM_ALLOC_ENABLE) as well       nothing but noise; without the line above, clearing them costs 2 to 3 times the small pages  not kept
    micro-batches                                   4 layers of width 256, 16 x 256 tokens: at most 4,096, 1,024, 512 tokens take 324, 166, 108 MB; one of
                                                    4,096 with --checkpoint 219 MB                                                  settings

Without AMX a product takes so long that nanoGPT runs at 64% of the limit itself (10.7M): no more than 1.6 times that is possible there.
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


def limit_s(cfg, docs, rates):
    """The time of the work at the rate of a matrix product: see the module's docstring."""
    with torch.device("meta"):
        P = work_size(Transformer(cfg))
    return (
        sum(len(d) * (6 * P + 6 * cfg.n_layer * cfg.d_model * len(d)) for d in docs) / rates.flops
    )


def ours(cfg, docs, kinds, device, **settings):
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
    spec.loader.exec_module(lib := importlib.util.module_from_spec(spec))
    with contextlib.redirect_stdout(None):  # it tells its number of parameters
        model = lib.GPT(
            lib.GPTConfig(
                block_size=ids.shape[1] - 1,
                vocab_size=cfg.vocab_size,
                n_layer=cfg.n_layer,
                n_head=cfg.n_head,
                n_embd=cfg.d_model,
                dropout=0.0,
                bias=False,
            )
        ).to(device)
        opt = model.configure_optimizers(0.1, 1e-4, (0.9, 0.95), device.type)
    x, y = ids[:, :-1].contiguous().to(device), ids[:, 1:].contiguous().to(device)
    return stepped(model, opt, lambda: model(x, y)[1])


def padded(model, docs, device):
    """() -> loss of transformers on documents as right-padded rows."""
    T = max(map(len, docs))
    ids, mask, labels = (
        torch.tensor([list(d) + [pad] * (T - len(d)) for d in xs], device=device)
        for xs, pad in ((docs, 0), ([[1] * len(d) for d in docs], 0), (docs, -100))
    )
    return lambda: model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss


def packed(model, docs, device):
    """() -> loss of transformers on documents as one row: positions that start anew, and a mask of blocks."""
    ids, pos, doc, _ = (x.to(device) for x in packing.pack(docs))
    mask = ((doc[:, :, None] == doc[:, None, :]).tril())[:, None]  # (1, 1, T, T)
    labels = ids.masked_fill(pos == 0, -100)
    return lambda: (
        model(
            input_ids=ids, position_ids=pos, attention_mask=mask, labels=labels, use_cache=False
        ).loss
    )


def against_nanogpt(name, cfg, B, T, repeats, rates, args, compiled):
    ids = torch.randint(cfg.vocab_size, (B, T + 1), generator=torch.Generator().manual_seed(0))
    docs = ids[:, :T].tolist()
    kinds = [[data.CODE] * T] * B
    calls = {"ours": ours(cfg, docs, kinds, rates.device)}
    if compiled:
        calls["ours compiled"] = ours(cfg, docs, kinds, rates.device, compile="true")
    if args.nanogpt:
        calls["nanoGPT"] = nanogpt(args.nanogpt, cfg, ids, rates.device)
    return {
        "row": name,
        "work": B * T,
        "unit": "tokens",
        "seconds": interleaved(calls, repeats, rates, name),
        "limit_s": limit_s(cfg, docs, rates),
        "target": {"nanoGPT": 1.3, "limit": 0.35},
        "note": "" if args.nanogpt else "nanoGPT: give its folder with --nanogpt",
    }


def real_functions(n):
    """Token ids of n functions of the standard library, SmolLM2's tokenizer. Raises UserError without its package."""
    tok = tokenizers.gguf_tokenizer(smollm2_path())
    found = [
        text
        for module in (heapq, textwrap, statistics, argparse)
        for _, text, _ in functions(inspect.getsource(module))
        if text
    ]
    return random.Random(0).sample(
        [ids for text in found if len(ids := data.snippet(tok, text, 0).ids) <= 512], n
    )


def rows(quick, rates, args):
    cuda, repeats = rates.device.type == "cuda", 1 if quick else 5
    yield against_nanogpt(
        "training step, 10.7M, 16 x 256",
        NANO,
        64 if cuda else 16,
        256,
        repeats,
        rates,
        args,
        not quick or cuda,
    )
    if not quick or cuda:
        yield against_nanogpt(
            "training step, 124M, 2 x 512", GPT2, 16 if cuda else 2, 512, 5, rates, args, cuda
        )

    name, n = "M-step, SmolLM2's shape", 64 if cuda else 6 if quick else 16
    cfg = dataclasses.replace(SMOLLM2, n_layer=4) if quick and not cuda else SMOLLM2
    name += f", {cfg.n_layer} layers, {n} functions"
    try:
        docs = real_functions(n)
    except UserError as e:
        yield {"row": name, "note": str(e)}
        return
    kinds, total = [[data.CODE] * len(d) for d in docs], sum(map(len, docs))
    calls = {"ours": ours(cfg, docs, kinds, rates.device)}
    if not quick:
        calls["ours compiled"] = ours(cfg, docs, kinds, rates.device, compile="true")
    if installed("transformers"):
        model = hf_model(cfg).to(rates.device)
        opt = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
        calls |= {
            "transformers padded": stepped(model, opt, padded(model, docs, rates.device)),
            "transformers packed": stepped(model, opt, packed(model, docs, rates.device)),
        }
    yield {
        "row": name,
        "work": total,
        "unit": "tokens",
        "seconds": interleaved(calls, 1 if quick else 5, rates, name),
        "limit_s": limit_s(cfg, docs, rates),
        "target": {"transformers padded": 3.5, "transformers packed": 1.8, "limit": 0.35},
        "values": {
            "mean tokens": round(total / n),
            "real share of a padded batch": round(total / (n * max(map(len, docs))), 2),
        },
        "note": absent("transformers"),
    }

    rng, settings = random.Random(1), config.make()
    tok = tokenizers.train_tokenizer(
        ["".join(domain.base_text(rng)) for _ in range(300)], settings.vocab_size
    )
    snips = [
        data.snippet(tok, t.prompt + t.solution, len(t.prompt))
        for t in (domain.expert_task(0, i, "train") for i in range(200))
    ]
    chosen = [
        snips[i]
        for i in documents.step_documents(
            [len(s.ids) for s in snips], settings.rows * settings.block, (0, 0)
        )(0)
    ]
    docs, kinds = zip(*documents.Code(tok, chosen, [len(s.ids) for s in chosen]))
    cfg = ModelConfig(
        tok.vocab_size,
        settings.n_layer,
        settings.n_head,
        settings.n_head,
        settings.d_model,
        settings.d_ff,
        settings.max_len,
    )
    seconds = interleaved({"ours": ours(cfg, docs, kinds, rates.device)}, 10, rates, "tiny")
    yield {
        "row": "M-step, tiny",
        "work": sum(map(len, docs)),
        "unit": "tokens",
        "seconds": seconds,
        "limit_s": limit_s(cfg, docs, rates),
        "values": {"steps/s": round(1 / seconds["ours"], 2)},
    }
