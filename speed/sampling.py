"""Sampling: tokens a second, whole calls at temperature 1.

The model has SmolLM2-135M's shape with random bfloat16 weights: prompts of 128 tokens, 64 new ones
each, up to 16 samples of a prompt, B rows at once; and 64 prompts of 40 to 300 tokens with 200 new
ones each, as in a pass@k run. Peers: transformers' generate; llama.cpp (llama-cpp-python) with
SmolLM2's own weights at four bits, one prompt evaluation for all its samples.
Limit: 2 P T / F for the prompts, each once, and a step max(2 P B / F, (weights + cache) / W): P
parameters, T tokens, F and W the measured rates.

What was tried in the sampler (core-seconds; SmolLM2, batch 64, unless said otherwise)
    prompts read once for all samples
        attention 59 -> 30 ms a step, 352 -> 129 at batch 256 (kept)
    caches exactly as long as needed
        q k^T 10.2 -> 2.3 ms a step: what is sliced is copied first (kept)
    one softmax over both parts
        44 -> 33 ms a step, against merging by normalisers (logsumexp is slow) (kept)
    flat indices and index_select
        2.7 ms a step against indexing by several tensors (kept)
    packed weights
        layers 12 -> 7 ms a step at batch 1, 68 -> 63 at 64; the float32 head 67 -> 37 (kept)
    softmax, cumsum, searchsorted, 21 rows at once
        8 ms a step; log_softmax, exp and a double cumsum on all rows: 34 (kept)
    text decoded only where a stop string may end
        tiny model: 6% of the run (kept)
    float32 residual stream
        tokens off by a tenth 4.2 -> 1.3%; a norm 30 -> 26 us (kept)
    head in bfloat16
        17 ms a step less, tokens off by a tenth 1.3 -> 3.7% (not kept)
    float32 head with bf16 products inside (oneDNN)
        no gain without AMX, where it is ignored; with AMX not measured (not kept)
    scaled_dot_product_attention
        68 against 25 ms a step for the same attention (not kept)
    torch.compile of the step
        not tried: a step is 70% matrix products
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


def hf_model(cfg, **settings):
    """A transformers model of a config, with random weights: Llama's, or with biases Qwen2's."""
    import transformers

    transformers.logging.set_verbosity_error()
    if cfg.qkv_bias:
        classes = transformers.Qwen2Config, transformers.Qwen2ForCausalLM
    else:
        classes = transformers.LlamaConfig, transformers.LlamaForCausalLM
    shape = classes[0](
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
        **settings,
    )
    return classes[1](shape)


def hf_generate(model, prompts, n, new):
    """n samples a prompt by transformers, prompts padded on the left. prompts: token ids."""
    T = max(map(len, prompts))
    padded = [[0] * (T - len(p)) + p for p in prompts]
    real = [[0] * (T - len(p)) + [1] * len(p) for p in prompts]
    ids = torch.tensor(padded, device=model.device)  # (prompts, T)
    out = model.generate(
        ids,
        attention_mask=torch.tensor(real, device=model.device),
        max_new_tokens=new,
        do_sample=True,
        top_k=0,
        num_return_sequences=n,
    )
    assert out.shape == (n * len(prompts), T + new)


class LlamaCpp:
    """llama.cpp with SmolLM2: a sequence a row, the cache of a prompt shared by its samples."""

    def __init__(self, threads):
        import ctypes

        import llama_cpp

        self.lib = llama_cpp
        self.threads = threads
        self.quiet = llama_cpp.llama_log_callback(lambda *_: None)  # C holds no reference to it
        llama_cpp.llama_log_set(self.quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.use_extra_bufts = False  # its AMX code stops on machines without the instructions
        self.model = llama_cpp.llama_model_load_from_file(smollm2_path().encode(), params)

    def __call__(self, prompts, n, new):
        """Sample n completions of `new` tokens for each prompt."""
        lib = self.lib
        context = self.context(sum(map(len, prompts)), n * len(prompts), new)
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_dist(0))
        batch = lib.llama_batch_init(512, 0, 1)
        last, position = self.read_prompts(context, chain, batch, prompts, n)
        rows = range(len(last))
        for _ in range(new - 1):
            self.decode(context, batch, [(last[r], position[r], r, True) for r in rows])
            for r in rows:
                last[r] = lib.llama_sampler_sample(chain, context, r)
                position[r] += 1
        lib.llama_sampler_free(chain)
        lib.llama_batch_free(batch)
        lib.llama_free(context)

    def context(self, prompt_tokens, rows, new):
        params = self.lib.llama_context_default_params()
        params.n_ctx = prompt_tokens + rows * (new + 32)
        params.n_seq_max = rows
        params.kv_unified = True
        params.n_threads = self.threads
        params.n_threads_batch = self.threads
        return self.lib.llama_init_from_model(self.model, params)

    def decode(self, context, batch, entries):
        """entries: [(token, position, sequence, are logits wanted?)]"""
        batch.n_tokens = len(entries)
        for k, (token, position, sequence, wanted) in enumerate(entries):
            batch.token[k] = token
            batch.pos[k] = position
            batch.n_seq_id[k] = 1
            batch.seq_id[k][0] = sequence
            batch.logits[k] = wanted
        assert self.lib.llama_decode(context, batch) == 0

    def read_prompts(self, context, chain, batch, prompts, n):
        """Read each prompt once, and draw n first tokens -> (tokens, their positions), a row."""
        lib = self.lib
        memory = lib.llama_get_memory(context)
        last = []
        position = []
        for p, prompt in enumerate(prompts):
            entries = [(t, k, p * n, k == len(prompt) - 1) for k, t in enumerate(prompt)]
            for i in range(0, len(prompt), 512):
                self.decode(context, batch, entries[i : i + 512])
            for j in range(n):
                if j:
                    lib.llama_memory_seq_cp(memory, p * n, p * n + j, -1, -1)
                last.append(lib.llama_sampler_sample(chain, context, -1))
                position.append(len(prompt))
        return last, position


def peers_of(model, rates):
    """({name: (prompts, n, new) -> None}, note)"""

    def ours(prompts, n, new):
        generate(model, prompts, new, eos=-1, n=n, batch=n * len(prompts))

    peers = {"ours": ours}
    notes = [absent("transformers", "llama-cpp-python")]
    if installed("transformers"):
        theirs = hf_model(model.cfg).bfloat16().eval().to(model.device)
        peers["transformers"] = functools.partial(hf_generate, theirs)
    if installed("llama_cpp") and model.device.type == "cpu":
        try:
            peers["llama.cpp"] = LlamaCpp(torch.get_num_threads())
        except UserError as e:
            notes.append(f"llama.cpp: {e}")
    return peers, "; ".join(filter(None, notes))


def decoding_bytes(cfg, parameters, prompts, n, new):
    """Bytes that decoding must read, all steps together: weights and, on average, the cache."""
    kv = 2 * cfg.n_layer * cfg.n_kv_head * cfg.d_model // cfg.n_head * 2  # bytes a token
    slots = sum(map(len, prompts)) + n * len(prompts) * new / 2
    return (new - 1) * (2 * parameters + kv * slots)


def sampling_limit(model, rates, prompts, n, new):
    """Seconds that a call must take: see the top."""
    P = sum(p.numel() for p in model.parameters())
    B = n * len(prompts)
    T = sum(map(len, prompts))
    products = 2 * P * B / rates.flops * (new - 1)
    reads = decoding_bytes(model.cfg, P, prompts, n, new) / rates.bytes
    return 2 * (P - model.embed.weight.numel()) * T / rates.flops + max(products, reads)


AIMS = {
    1: {"transformers": 1.5},
    16: {"transformers": 2.5, "llama.cpp": 3},
    64: {"transformers": 5, "llama.cpp": 3},
    256: {"llama.cpp": 3},
}


def random_prompts(lengths, vocab, gen):
    """Prompts of random tokens, of these lengths."""
    return [torch.randint(1, vocab, (length,), generator=gen).tolist() for length in lengths]


def sampling_row(name, model, peers, prompts, n, new, repeats, rates):
    """n samples of `new` tokens for each prompt. peers: as `peers_of` gives them."""
    functions = {peer: functools.partial(f, prompts, n, new) for peer, f in peers.items()}
    B = n * len(prompts)
    gpu = rates.device.type == "cuda"
    seconds = interleaved(functions, repeats, rates, name, warm=gpu or repeats > 1 and B < 64)
    P = sum(p.numel() for p in model.parameters())
    reads = decoding_bytes(model.cfg, P, prompts, n, new) / rates.bytes
    return {
        "row": name,
        "work": B * new,
        "unit": "tokens",
        "limit_s": sampling_limit(model, rates, prompts, n, new),
        "values": {"MBU": reads / seconds["ours"]},
        "seconds": seconds,
    }


def sampling_rows(quick, rates, args):
    model = Transformer(SMOLLM2).init_weights(0).bfloat16().to(rates.device)
    peers, note = peers_of(model, rates)
    gpu = rates.device.type == "cuda"
    gen = torch.Generator().manual_seed(0)
    vocab = SMOLLM2.vocab_size
    new = 16 if quick else 64
    sizes = [1, 16, 64, 256] + [1024] * gpu
    for B in [16] if quick else sizes:
        n = min(B, 16)
        name = f"sampling, batch {B}, {new} new tokens"
        prompts = random_prompts([128] * (B // n), vocab, gen)
        row = sampling_row(name, model, peers, prompts, n, new, 1 if quick else 5, rates)
        target = {**AIMS.get(B, {}), **({"transformers": 10} if gpu and B == 64 else {})}
        yield {**row, "target": target, "note": note}
    if not quick:
        lengths = torch.randint(40, 300, (64,), generator=gen).tolist()
        name = "pass@k run, 64 ragged prompts x 200 tokens"
        prompts = random_prompts(lengths, vocab, gen)
        row = sampling_row(name, model, peers, prompts, 1, 200, 5, rates)
        yield {**row, "target": {"transformers": 10 if gpu else 4}, "note": note}
