"""Sampling: tokens a second of a model of SmolLM2-135M's shape with random bfloat16 weights, at temperature 1, whole calls.

prompts of 128 tokens, 64 new ones each, up to 16 samples of a prompt, B rows at once; and 64 prompts of 40 to 300 tokens with 200 new ones each, as in a
pass@k run. Peers: transformers' generate; llama.cpp (llama-cpp-python) with SmolLM2's own weights at four bits, one prompt evaluation for all its samples.
Limit: 2 P T / F for the prompts, each once, and a step max(2 P B / F, (weights + cache) / W): P parameters, T tokens, F and W the measured rates.

What was tried in the sampler (core-seconds; SmolLM2, batch 64, unless said otherwise)
    prompts read once for all samples               attention 59 -> 30 ms a step, 352 -> 129 at batch 256                          kept
    caches exactly as long as needed                q k^T 10.2 -> 2.3 ms a step: what is sliced is copied first                    kept
    one softmax over both parts                     44 -> 33 ms a step, against merging by normalisers (logsumexp is slow)         kept
    flat indices and index_select                   2.7 ms a step against indexing by several tensors                              kept
    packed weights                                  layers 12 -> 7 ms a step at batch 1, 68 -> 63 at 64; the float32 head 67 -> 37      kept
    softmax, cumsum, searchsorted, 21 rows at once  8 ms a step; log_softmax, exp and a double cumsum on all rows: 34              kept
    text decoded only where a stop string may end   tiny model: 6% of the run                                                      kept
    float32 residual stream                         tokens off by a tenth 4.2 -> 1.3%; a norm 30 -> 26 us                          kept
    head in bfloat16                                17 ms a step less, tokens off by a tenth 1.3 -> 3.7%                     not kept
    float32 head with bf16 products inside (oneDNN) no gain without AMX, where it is ignored; with AMX not measured                not kept
    scaled_dot_product_attention                    68 against 25 ms a step for the same attention                                 not kept
    torch.compile of the step                       not tried: a step is 70% matrix products                                       -
"""

import functools

import torch

from config import UserError
from engine.sample import generate
from formats.gguf import smollm2_path
from model import ModelConfig, Transformer
from speed.measure import absent, installed, interleaved

SMOLLM2 = ModelConfig(
    vocab_size=49152, n_layer=30, n_head=9, n_kv_head=3, d_model=576, d_ff=1536, max_len=2048
)


def hf_model(cfg, **how):
    """A transformers model of a config, with random weights."""
    import transformers

    transformers.logging.set_verbosity_error()
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=cfg.vocab_size,
            num_hidden_layers=cfg.n_layer,
            num_attention_heads=cfg.n_head,
            num_key_value_heads=cfg.n_kv_head,
            hidden_size=cfg.d_model,
            intermediate_size=cfg.d_ff,
            max_position_embeddings=cfg.max_len,
            tie_word_embeddings=cfg.tied,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
            **how,
        )
    )


def hf_generate(model, prompts, n, new):
    """n samples a prompt by transformers, prompts padded on the left. prompts: lists of token ids."""
    T = max(map(len, prompts))
    ids = torch.tensor(
        [[0] * (T - len(p)) + p for p in prompts], device=model.device
    )  # (prompts, T)
    mask = torch.tensor([[0] * (T - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    out = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=new,
        do_sample=True,
        top_k=0,
        num_return_sequences=n,
    )
    assert out.shape == (n * len(prompts), T + new)


def llama_cpp(threads):
    """(prompts, n, new) -> None: samples by llama.cpp, a sequence a row, the cache of a prompt shared by its samples."""
    import ctypes

    import llama_cpp as lib

    quiet = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(quiet, ctypes.c_void_p(0))
    lib.llama_backend_init()
    how = lib.llama_model_default_params()
    how.use_extra_bufts = False  # its AMX code stops on machines without the instructions
    model = lib.llama_model_load_from_file(smollm2_path().encode(), how)

    def run(prompts, n, new):
        rows = n * len(prompts)
        how = lib.llama_context_default_params()
        how.n_ctx, how.n_seq_max, how.kv_unified, how.n_threads, how.n_threads_batch = (
            sum(map(len, prompts)) + rows * (new + 32),
            rows,
            True,
            threads,
            threads,
        )
        context = lib.llama_init_from_model(model, how)
        memory, batch = lib.llama_get_memory(context), lib.llama_batch_init(512, 0, 1)
        sampler = lib.llama_sampler_init_dist(0)
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        lib.llama_sampler_chain_add(chain, sampler)

        def decode(entries):  # [(token, position, sequence, wants logits)]
            batch.n_tokens = len(entries)
            for k, (token, pos, seq, wants) in enumerate(entries):
                batch.token[k], batch.pos[k], batch.n_seq_id[k], batch.logits[k] = (
                    token,
                    pos,
                    1,
                    wants,
                )
                batch.seq_id[k][0] = seq
            assert lib.llama_decode(context, batch) == 0

        last, at = [0] * rows, [0] * rows
        for p, prompt in enumerate(prompts):
            for i in range(0, len(prompt), 512):
                decode(
                    [
                        (t, i + k, p * n, i + k == len(prompt) - 1)
                        for k, t in enumerate(prompt[i : i + 512])
                    ]
                )
            for j in range(n):
                if j:
                    lib.llama_memory_seq_cp(memory, p * n, p * n + j, -1, -1)
                last[p * n + j], at[p * n + j] = (
                    lib.llama_sampler_sample(chain, context, -1),
                    len(prompt),
                )
        for _ in range(new - 1):
            decode([(last[r], at[r], r, True) for r in range(rows)])
            for r in range(rows):
                last[r] = lib.llama_sampler_sample(chain, context, r)
                at[r] += 1
        lib.llama_sampler_free(chain), lib.llama_batch_free(batch), lib.llama_free(context)

    run.keep = quiet  # C holds no reference to it
    return run


def peers_of(model, rates):
    """({name: (prompts, n, new) -> None}, note)"""
    out = {
        "ours": lambda prompts, n, new: generate(
            model, prompts, new, eos=-1, n=n, batch=n * len(prompts)
        )
    }
    note = absent("transformers", "llama-cpp-python")
    if installed("transformers"):
        out["transformers"] = functools.partial(
            hf_generate, hf_model(model.cfg).bfloat16().eval().to(model.device)
        )
    if installed("llama_cpp") and model.device.type == "cpu":
        try:
            out["llama.cpp"] = llama_cpp(torch.get_num_threads())
        except UserError as e:
            note = "; ".join(filter(None, (note, f"llama.cpp: {e}")))
    return out, note


def limit(model, rates, prompts, n, new):
    """Seconds that a call must take: see the top."""
    cfg, P, B, T = (
        model.cfg,
        sum(p.numel() for p in model.parameters()),
        n * len(prompts),
        sum(map(len, prompts)),
    )
    kv = 2 * cfg.n_layer * cfg.n_kv_head * cfg.d_model // cfg.n_head * 2  # bytes a token
    step = max(2 * P * B / rates.flops, (2 * P + kv * (T + B * new / 2)) / rates.bytes)
    return 2 * (P - model.embed.weight.numel()) * T / rates.flops + (new - 1) * step


def rows(quick, rates, args):
    model = Transformer(SMOLLM2).init_weights(0).bfloat16().to(rates.device)
    peers, note = peers_of(model, rates)
    gpu, gen = rates.device.type == "cuda", torch.Generator().manual_seed(0)
    aims = {
        1: {"transformers": 1.5},
        16: {"transformers": 2.5, "llama.cpp": 3},
        64: {"transformers": 10 if gpu else 5, "llama.cpp": 3},
        256: {"llama.cpp": 3},
    }

    def row(name, prompts, n, new, repeats, target):
        return {
            "row": name,
            "work": n * len(prompts) * new,
            "unit": "tokens",
            "limit_s": limit(model, rates, prompts, n, new),
            "target": target,
            "note": note,
            "seconds": interleaved(
                {peer: functools.partial(f, prompts, n, new) for peer, f in peers.items()},
                repeats,
                rates,
                name,
                warm=not quick and (gpu or n * len(prompts) < 64),
            ),
        }

    for B in (16,) if quick else (1, 16, 64, 256):
        n, new = min(B, 16), 16 if quick else 64
        prompts = torch.randint(1, SMOLLM2.vocab_size, (B // n, 128), generator=gen).tolist()
        yield row(
            f"sampling, batch {B}, {new} new tokens", prompts, n, new, 1 if quick else 5, aims[B]
        )
    if not quick:
        lengths = torch.randint(40, 300, (64,), generator=gen).tolist()
        prompts = [
            torch.randint(1, SMOLLM2.vocab_size, (T,), generator=gen).tolist() for T in lengths
        ]
        yield row(
            "pass@k run, 64 ragged prompts x 200 tokens",
            prompts,
            1,
            200,
            5,
            {"transformers": 10 if gpu else 4},
        )
