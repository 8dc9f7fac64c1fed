"""Models in Hugging Face's format, read and written: config.json, *.safetensors, tokenizer.json.

    python train.py --stage em --preset qwen2.5-1.5b --model FOLDER
    python -m formats export runs/qwen2.5-1.5b-0/ra3.pt FOLDER

The first trains the model of a folder. The second writes a trained one, for transformers, vLLM,
llama.cpp's converter, ...

Read are the architectures `llama` (Llama 3, SmolLM2) and `qwen2`, in float32, bfloat16 or float16.
Written are the keys that the published folders have (`rope_theta` and `rope_scaling` rather than
the newer `rope_parameters`, which older programs do not know), and the tokenizer's files as they
were. Both halves of a rotary pair lie E/2 apart there as in model.py, so weights change their names
only.

A tensor that is not read must equal what stands for it: the head of a tied model, the rotary
frequencies. A field that is not read must have the value that changes nothing.
"""

import importlib.util
import json
import os
import shutil

import torch

from config import UserError, make
from formats import fields, tokenizers
from formats.card import write_card
from formats.checkpoints import load_model
from formats.gguf import check_heads, load_gguf, smollm2_path
from model import ModelConfig, hollow, rotary

MODULES = {
    "attn_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
}
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "chat_template.jinja",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
)  # files of a model's folder that an export takes over
MAPPED = 16 << 20  # bytes of a file that are mapped at once, about
TYPES = ("F32", "BF16", "F16")
# Fields of config.json that may be there with the value that changes nothing.
NEUTRAL_FIELDS = {
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "use_sliding_window": False,
    "quantization_config": None,
    "partial_rotary_factor": 1.0,
}
LLAMA3_FIELDS = (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
)
DROPPED_FIELDS = (
    "rope_parameters",
    "dtype",
    "torch_dtype",
    "quantization_config",
    "_name_or_path",
)  # fields of the base model's config.json that an export writes anew or leaves out


def their_name(name):
    """Example: blocks.3.q.weight -> model.layers.3.self_attn.q_proj.weight"""
    *block, module, kind = name.split(".")
    if block:
        return f"model.layers.{block[1]}.{MODULES[module]}.{kind}"
    return f"{MODULES[module]}.{kind}"


# ---------------------------------------------------------------- where a model is


def find(cfg, download=True):
    """Where the settings' model is: a folder in Hugging Face's format or a .gguf file.

    A name on the hub (owner/model) is downloaded, or taken from an earlier download, if the package
    huggingface_hub is installed. download=False: only the latter.
    Raises UserError, which says what to download.
    """
    if not cfg.model:
        return smollm2_path()
    if os.path.isdir(cfg.model) or os.path.isfile(cfg.model) and cfg.model.endswith(".gguf"):
        return cfg.model
    if cfg.model.count("/") != 1 or cfg.model.startswith((".", "/", "~")):
        raise UserError(
            f"--model {cfg.model}: no such folder; expected one with config.json, *.safetensors "
            "and tokenizer.json, a .gguf file, or owner/model"
        )
    reason = "the package huggingface_hub (extra hf) is not installed"
    if importlib.util.find_spec("huggingface_hub"):
        import huggingface_hub

        try:
            return huggingface_hub.snapshot_download(
                cfg.model,
                local_files_only=not download,
                allow_patterns=[
                    "config.json",
                    "*.safetensors",
                    "*.safetensors.index.json",
                    *COPIED,
                ],
            )
        except Exception as e:  # no network, no such model, a licence not agreed to: many types
            reason = f"the hub gave {type(e).__name__}"
    raise UserError(
        f"--model {cfg.model}: not here, and {reason}; download config.json, *.safetensors and the "
        f"tokenizer*.json of https://huggingface.co/{cfg.model} into a folder and give "
        "--model FOLDER"
    )


def open_tokenizer(path):
    """The Tokenizer of a folder or of a .gguf file. Raises UserError."""
    if os.path.isdir(path):
        return tokenizers.folder_tokenizer(path)
    return tokenizers.gguf_tokenizer(path)


def open_pretrained(path, dtype=torch.float32, device="cpu"):
    """The Transformer of a folder or of a .gguf file. Raises UserError."""
    if os.path.isdir(path):
        return read_model(path, dtype, device)
    return load_gguf(path, dtype)[0].to(device)


# ---------------------------------------------------------------- reading


def read_json(path, content):
    """A JSON object. content: what it is, for the message. Raises UserError."""
    try:
        with open(path, encoding="utf-8") as f:
            record = json.load(f)
        if not isinstance(record, dict):
            raise ValueError
        return record
    except (OSError, ValueError, RecursionError) as e:
        problem = "no such file" if isinstance(e, FileNotFoundError) else "something else"
        raise UserError(
            f"{path}: expected {content}, found {problem}; "
            "give the folder of a model in Hugging Face's format"
        ) from None


def read_config(folder):
    """The ModelConfig of a folder's config.json.

    Raises UserError for a model that model.py cannot represent.
    """
    path = os.path.join(folder, "config.json")
    record = read_json(path, "a model's configuration")
    kind = record.get("model_type")
    if kind not in ("llama", "qwen2"):
        raise fields.wrong_field(path, "model_type", kind, "llama or qwen2")
    fields.expect_neutral(record, NEUTRAL_FIELDS, path)
    layers = record.get("layer_types") or []
    if not isinstance(layers, list) or any(layer != "full_attention" for layer in layers):
        raise fields.wrong_field(path, "layer_types", layers, "full_attention in all layers")
    heads = fields.whole_number(record, "num_attention_heads", path)
    kv_heads = fields.whole_number(record, "num_key_value_heads", path, heads)
    d_model = fields.whole_number(record, "hidden_size", path)
    check_heads(path, d_model, heads, kv_heads)
    width = d_model // heads
    if fields.whole_number(record, "head_dim", path, width) != width:
        expected = f"hidden_size / num_attention_heads = {width}"
        raise fields.wrong_field(path, "head_dim", record["head_dim"], expected)
    theta, slow = read_rope(record, path)
    return ModelConfig(
        vocab_size=fields.whole_number(record, "vocab_size", path),
        n_layer=fields.whole_number(record, "num_hidden_layers", path),
        n_head=heads,
        n_kv_head=kv_heads,
        d_model=d_model,
        d_ff=fields.whole_number(record, "intermediate_size", path),
        max_len=fields.whole_number(record, "max_position_embeddings", path, 2048),
        rope_theta=theta,
        rope_llama3=slow,
        norm_eps=fields.real_number(record, "rms_norm_eps", path, 1e-6),
        qkv_bias=kind == "qwen2",
        tied=fields.boolean(record, "tie_word_embeddings", path, False),
    )


def read_rope(record, path):
    """(rope_theta, rope_llama3) of a config.json in the older or the newer form.

    Raises UserError.
    """
    key = "rope_parameters" if record.get("rope_parameters") else "rope_scaling"
    rope = fields.mapping(record, key, path, {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise fields.wrong_field(path, key, rope, "one of type default or llama3")
    fields.expect_neutral(rope, {"partial_rotary_factor": 1.0}, path)
    source = rope if "rope_theta" in rope else record
    theta = fields.real_number(source, "rope_theta", path, 10000.0)
    if kind == "default":
        return theta, ()
    return theta, tuple(fields.real_number(rope, name, path) for name in LLAMA3_FIELDS)


def safetensors_library():
    """The package safetensors. Raises UserError if it is missing."""
    try:
        import safetensors.torch
    except ImportError:
        raise UserError(
            "weights in Hugging Face's format need the package safetensors (extra hf): "
            "pip install safetensors==0.8.0"
        ) from None
    return safetensors


def weight_files(folder):
    """{tensor's name in the files: path of its file}.

    Raises UserError for files that are missing or damaged, and for a tensor in two of them.
    """
    safetensors = safetensors_library()
    result = {}
    for file in listed_files(folder):
        path = os.path.join(folder, file)
        if not os.path.exists(path):
            raise UserError(
                f"{path}: no such file; expected the weights there; download it "
                "(weights in *.bin are not read)"
            )
        try:
            with safetensors.safe_open(path, "pt") as f:
                names = list(f.keys())
        except (safetensors.SafetensorError, OSError) as e:
            raise UserError(
                f"{path}: expected weights, found a file that is cut or something else ({e}); "
                "download it again"
            ) from None
        for name in names:
            if name in result:
                raise UserError(
                    f"{path}: it holds {name}, and so does {result[name]}; "
                    "expected each tensor in one file"
                )
            result[name] = path
    return result


def listed_files(folder):
    """The names of a folder's files of weights: model.safetensors, else those of the index.

    Raises UserError for an index that is none.
    """
    single = "model.safetensors"
    index = os.path.join(folder, f"{single}.index.json")
    if os.path.exists(os.path.join(folder, single)) or not os.path.exists(index):
        return [single]
    record = read_json(index, "an index of weights")
    names = fields.mapping(record, "weight_map", index).values()
    bad = [name for name in names if not isinstance(name, str) or os.path.basename(name) != name]
    if bad or not names:
        raise UserError(
            f"{index}: expected the names of files beside it, "
            f"found {json.dumps(bad[0]) if bad else 'none'}; download the folder again"
        )
    return sorted(set(names))


def read_model(folder, dtype=torch.float32, device="cpu"):
    """The model of a folder -> Transformer of that dtype on that device. Raises UserError.

    Files are mapped a piece at a time and each tensor goes straight to its place, so memory never
    holds much more than the weights.
    """
    cfg = read_config(folder)
    stored = weight_files(folder)
    names = {published_name(name): name for name in stored}  # name in full -> name in the files
    model = hollow(cfg, dtype, device)
    wanted = {their_name(name): (name, p.shape) for name, p in model.named_parameters()}
    if cfg.tied and EMBEDDING not in names and HEAD in names:
        names[EMBEDDING] = names.pop(HEAD)  # saved once, under the head's name
    check_names(folder, wanted, names, cfg)
    weights = {}
    for full in sorted(wanted, key=lambda full: (stored[names[full]], full)):
        name, shape = wanted[full]
        weights[name] = torch.empty(shape, dtype=dtype, device=device)
        check_tensor(stored[names[full]], names[full], shape)
        for rows, piece in pieces(stored[names[full]], names[full], shape):
            weights[name][rows] = piece
    model.load_state_dict(weights, assign=True)
    check_unread(folder, stored, names, wanted, cfg)
    return model


def published_name(name):
    """The name of a tensor in a full model. Example: norm.weight -> model.norm.weight"""
    return name if name.startswith(("model.", "lm_head.")) else f"model.{name}"


def check_names(folder, wanted, names, cfg):
    """Raises UserError for tensors that are missing, or have no place in the model."""
    if missing := sorted(set(wanted) - set(names)):
        raise UserError(
            f"{folder}: its weights lack {missing[0]} and {len(missing) - 1} more; "
            "expected those of its config.json"
        )
    known = {*wanted, HEAD} if cfg.tied else set(wanted)
    unknown = [n for n in set(names) - known if not n.endswith("rotary_emb.inv_freq")]
    if unknown:
        raise UserError(
            f"{folder}: it holds {min(unknown)} and {len(unknown) - 1} more that its config.json "
            "has no place for; expected a plain llama or qwen2"
        )


def check_tensor(path, name, shape):
    """Raises UserError for a tensor of another shape, or of a type that is not read."""
    from safetensors import safe_open

    with safe_open(path, "pt") as f:
        tensor = f.get_slice(name)
        if tuple(tensor.get_shape()) != tuple(shape) or tensor.get_dtype() not in TYPES:
            raise UserError(
                f"{path}: {name} is {tuple(tensor.get_shape())} of {tensor.get_dtype()}; "
                f"expected {tuple(shape)} of F32, BF16 or F16"
            )


def pieces(path, name, shape):
    """A tensor of a file, some rows at a time -> yields (slice of rows, tensor)."""
    from safetensors import safe_open

    size = max(1, MAPPED * shape[0] // (4 * shape.numel()))
    for row in range(0, shape[0], size):
        rows = slice(row, row + size)
        with safe_open(path, "pt") as f:  # opened each time, or all pages read would count as ours
            yield rows, f.get_slice(name)[rows]


def check_unread(folder, stored, names, wanted, cfg):
    """Raises UserError if a tensor that is not read differs from what stands for it."""
    for full in sorted(set(names) - set(wanted)):
        path = stored[names[full]]
        if full == HEAD:
            same = same_tensors(path, names[full], stored[names[EMBEDDING]], names[EMBEDDING])
            twin = f"{names[EMBEDDING]}, which tie_word_embeddings puts in its place"
        else:
            same = same_frequencies(path, names[full], cfg)
            twin = "the frequencies of config.json's rope_theta and rope_scaling"
        if not same:
            raise UserError(
                f"{folder}: {names[full]} differs from {twin}; expected equal values, or a "
                "config.json without it"
            )


def same_tensors(path, name, other_path, other_name):
    """Are two matrices of files equal?"""
    from safetensors import safe_open

    with safe_open(path, "pt") as f, safe_open(other_path, "pt") as g:
        shape = torch.Size(f.get_slice(name).get_shape())
        if shape != torch.Size(g.get_slice(other_name).get_shape()):
            return False
    both = zip(pieces(path, name, shape), pieces(other_path, other_name, shape), strict=True)
    return all(torch.equal(a.float(), b.float()) for (_, a), (_, b) in both)


def same_frequencies(path, name, cfg):
    """Does a stored inv_freq (E/2,) give the model's rotary tables, as far as its type tells?"""
    from safetensors import safe_open

    with safe_open(path, "pt") as f:
        stored = f.get_tensor(name)
    cos, sin = rotary(cfg)
    freq = (
        torch.atan2(sin[1], cos[1]) if cfg.max_len > 1 else stored.float()
    )  # angles of position 1
    if stored.shape != freq.shape or not stored.is_floating_point():
        return False
    tolerance = max(1e-4, 2 * torch.finfo(stored.dtype).eps)
    return torch.allclose(stored.float(), freq, rtol=tolerance, atol=1e-7)


# ---------------------------------------------------------------- writing


def config_json(cfg, dtype, base=None):
    """The config.json of a model.

    base: that of the model it was trained from, whose other keys stay (eos_token_id and the like).
    """
    kind = "qwen2" if cfg.qkv_bias else "llama"
    rope = None
    if cfg.rope_llama3:
        rope = dict(zip(LLAMA3_FIELDS, cfg.rope_llama3, strict=True), rope_type="llama3")
        rope["original_max_position_embeddings"] = int(cfg.rope_llama3[3])
    return {
        **{key: value for key, value in (base or {}).items() if key not in DROPPED_FIELDS},
        "architectures": [{"qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}[kind]],
        "model_type": kind,
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.d_model,
        "intermediate_size": cfg.d_ff,
        "num_hidden_layers": cfg.n_layer,
        "num_attention_heads": cfg.n_head,
        "num_key_value_heads": cfg.n_kv_head,
        "max_position_embeddings": cfg.max_len,
        "hidden_act": "silu",
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope_theta,
        "rope_scaling": rope,
        "tie_word_embeddings": cfg.tied,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def write_model(model, folder, base=None, dtype=None, shard_bytes=5 * 10**9):
    """Write config.json and the weights into a folder.

    base: the config.json (a dict) of the model that it was trained from, if any.
    dtype: None for the model's own. shard_bytes: largest size of a file of weights.
    """
    save_file = safetensors_library().torch.save_file
    dtype = dtype or model.dtype
    config = os.path.join(folder, "config.json")
    write_json(config_json(model.cfg, dtype, base), config)
    shards = cut_into_shards(model, dtype, shard_bytes)
    n = len(shards)
    files = [f"model-{i + 1:05}-of-{n:05}.safetensors" for i in range(n)]
    if n == 1:
        files = ["model.safetensors"]
    weight_map = {}
    for file, shard in zip(files, shards, strict=True):
        tensors = {name: p.detach().to("cpu", dtype).contiguous() for name, p in shard.items()}
        path = os.path.join(folder, file)
        save_file(tensors, path, {"format": "pt"})
        shutil.copymode(config, path)  # save_file leaves it to the owner alone
        weight_map |= dict.fromkeys(shard, file)
    if n > 1:
        size = sum(p.numel() for p in model.parameters()) * dtype.itemsize
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        write_json(index, os.path.join(folder, "model.safetensors.index.json"))


def cut_into_shards(model, dtype, shard_bytes):
    """The parameters in order, in parts of at most shard_bytes -> list of {name: tensor}."""
    shards = [{}]
    size = 0
    for name, p in model.named_parameters():
        nbytes = p.numel() * dtype.itemsize
        if shards[-1] and size + nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][their_name(name)] = p
        size += nbytes
    return shards


def write_json(record, path):
    """Write a JSON file."""
    with open(path, "w", encoding="utf-8") as f:
        json.dump(record, f, indent=2, ensure_ascii=False)


def tokenizer_json(tok):
    """The tokenizer.json of a Tokenizer that has none: the built-in domain's, or a GGUF file's.

    The pattern stands in it as it is.
    """
    ranks = {token: i for token, i in tok.enc._mergeable_ranks.items() if i < tok.vocab_size}
    special = sorted((i, text) for text, i in tok.enc._special_tokens.items() if i < tok.vocab_size)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    split = {
        "type": "Split",
        "pattern": {"Regex": tok.enc._pat_str},
        "behavior": "Isolated",
        "invert": False,
    }
    ascending = sorted(ranks, key=ranks.get)
    merges = [two_parts(token, ranks) for token in ascending if len(token) > 1]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(tok, i, text) for i, text in special],
        "normalizer": {"type": tok.normal} if tok.normal else None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [split, {**level, "use_regex": False}],
        },
        "post_processor": post_processor(tok),
        "decoder": {**level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: i for i, text in special}
            | {spelling(token): i for token, i in ranks.items()},
            "merges": [" ".join(map(spelling, parts)) for parts in merges],
        },
    }


def spelling(token):
    """Bytes as byte-level BPE's vocabularies spell them: the inverse of tokenizers.bytes_of."""
    return "".join(SPELLED[b] for b in token)


SPELLED = {b: c for c, b in tokenizers.BYTE_OF.items()}


def two_parts(token, ranks):
    """The merge that makes a token: its bytes merged by tokens of lower rank until two are left."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        candidates = []
        for i in range(len(parts) - 1):
            rank = ranks.get(parts[i] + parts[i + 1])
            if rank is not None:
                candidates.append((rank, i))
        _, i = min(candidates)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def added_token(tok, i, text):
    """The entry of a token that no merge makes."""
    return {
        "id": i,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": text in tok.added_normal,
        "special": text not in tok.added and text not in tok.added_normal,
    }


def post_processor(tok):
    """The step that puts bos before a text, or None."""
    if not tok.bos:
        return None
    name = token_names(tok)[tok.bos[0]]
    piece = {"SpecialToken": {"id": name, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [piece, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            piece,
            {"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {name: {"id": name, "ids": tok.bos, "tokens": [name]}},
    }


def token_names(tok):
    """{id: text} of the tokens that no merge makes."""
    return {i: text for text, i in tok.enc._special_tokens.items()}


def write_tokenizer(tok, folder):
    """tokenizer.json and tokenizer_config.json of a Tokenizer that has none."""
    names = token_names(tok)
    write_json(tokenizer_json(tok), os.path.join(folder, "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": names[tok.eos],
        "pad_token": names[tok.eos],
        "clean_up_tokenization_spaces": False,
    }
    if tok.bos:
        settings["bos_token"] = names[tok.bos[0]]
    write_json(settings, os.path.join(folder, "tokenizer_config.json"))


def export(checkpoint, folder, dtype=None, source=None, shard_bytes=5 * 10**9):
    """Write a checkpoint of a run as a folder that other programs read: whole or not at all.

    source: where its base model came from; None: as the run's settings say. Raises UserError.
    """
    if os.path.exists(folder):
        raise UserError(f"{folder}: exists already; give the name of a new folder")
    model, extra = load_model(checkpoint)
    trained_here = os.path.join(os.path.dirname(checkpoint), "tokenizer.txt")
    if source is None and not os.path.exists(trained_here):
        source = source_of_run(os.path.dirname(checkpoint))
    if "tokenizer" in extra:
        tok = open_tokenizer(source) if source else tokenizers.load_tokenizer(trained_here)
        tokenizers.check_checkpoint(checkpoint, extra, tok, source or "tiny")
    partial = f"{folder.rstrip('/')}.part"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        os.makedirs(partial)
        base = write_tokenizer_files(source, trained_here, partial)
        write_model(model, partial, base, dtype, shard_bytes)
        weights = sum(p.numel() for p in model.parameters())
        rounded = str(dtype).removeprefix("torch.") if dtype not in (None, model.dtype) else ""
        write_card(checkpoint, extra, weights, source, partial, rounded)
        os.replace(partial, folder)
    except OSError as e:
        raise UserError(f"{folder}: cannot be written ({e.strerror}); give another path") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def source_of_run(folder):
    """Where the base model of a run came from. Raises UserError."""
    path = os.path.join(folder, "settings.json")
    settings = read_json(path, "the run's settings")
    preset = settings.get("preset")
    model = settings.get("model", "")
    if not isinstance(preset, str) or not isinstance(model, str):
        raise UserError(f"{path}: expected the run's settings, found no preset; give --model")
    return find(make(preset, model=model))


def write_tokenizer_files(source, trained_here, folder):
    """Write the tokenizer of an export -> the config.json of the base model, or what stands for it.

    source: a folder, whose files are copied, a .gguf file, or None: the tokenizer trained_here.
    """
    if source and os.path.isdir(source):
        for file in COPIED:
            if os.path.exists(os.path.join(source, file)):
                shutil.copy(os.path.join(source, file), folder)
        return read_json(os.path.join(source, "config.json"), "a model's configuration")
    tok = open_tokenizer(source) if source else tokenizers.load_tokenizer(trained_here)
    write_tokenizer(tok, folder)
    return {
        "bos_token_id": tok.bos[0] if tok.bos else None,
        "eos_token_id": tok.end_ids if len(tok.end_ids) > 1 else tok.eos,
    }
