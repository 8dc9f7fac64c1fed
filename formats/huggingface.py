"""Models in Hugging Face's format, read and written: a folder with config.json, *.safetensors and tokenizer.json.

    python train.py --stage em --preset qwen2.5-1.5b --model FOLDER        trains the model of a folder
    python -m formats export runs/qwen2.5-1.5b-0/ra3.pt FOLDER                  writes a trained one, for transformers, vLLM, llama.cpp's converter, ...

Read are the architectures `llama` (Llama 3, SmolLM2) and `qwen2`, in float32, bfloat16 or float16. What is written has the keys that the published folders have
(`rope_theta` and `rope_scaling` rather than the newer `rope_parameters`, which older programs do not know), and the files of the tokenizer as they were.
Both halves of a rotary pair lie E/2 apart there as in model.py, so weights change their names only.
"""

import importlib.util
import json
import os
import shutil

import torch

from config import UserError, make
from formats import tokenizers
from formats.checkpoints import load_model
from formats.gguf import load_gguf, smollm2_path
from model import ModelConfig, hollow

THEIRS = {
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
KEPT = (
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
AT_ONCE = 16 << 20  # bytes of a file that are mapped at once, about


def their_name(name):
    """Example: blocks.3.q.weight -> model.layers.3.self_attn.q_proj.weight"""
    *block, part, kind = name.split(".")
    return ".".join(
        ["model.layers", block[1], THEIRS[part], kind] if block else [THEIRS[part], kind]
    )


# ---------------------------------------------------------------- where a model is


def find(cfg, download=True):
    """Where the settings' model is: a folder in Hugging Face's format or a .gguf file. A name on the hub (owner/model) is downloaded, or taken from where
    an earlier download is, if the package huggingface_hub is there; download=False: only the latter. Raises UserError, which says what to download."""
    if not cfg.model:
        return smollm2_path()
    if os.path.isdir(cfg.model) or os.path.isfile(cfg.model) and cfg.model.endswith(".gguf"):
        return cfg.model
    if cfg.model.count("/") != 1 or cfg.model.startswith((".", "/", "~")):
        raise UserError(
            f"--model {cfg.model}: no such folder; expected one with config.json, *.safetensors and tokenizer.json, a .gguf file, or owner/model"
        )
    why = "the package huggingface_hub (extra hf) is not installed"
    if importlib.util.find_spec("huggingface_hub"):
        import huggingface_hub

        try:
            return huggingface_hub.snapshot_download(
                cfg.model,
                local_files_only=not download,
                allow_patterns=["config.json", "*.safetensors", "*.safetensors.index.json", *KEPT],
            )
        except Exception as e:  # no network, no such model, a licence not agreed to: of many types
            why = f"the hub gave {type(e).__name__}"
    raise UserError(
        f"--model {cfg.model}: not here, and {why}; download config.json, *.safetensors and the tokenizer*.json of "
        f"https://huggingface.co/{cfg.model} into a folder and give --model FOLDER"
    )


def open_tokenizer(path):
    """The Tokenizer of a folder or of a .gguf file. Raises UserError."""
    return (
        tokenizers.folder_tokenizer(path)
        if os.path.isdir(path)
        else tokenizers.gguf_tokenizer(path)
    )


def open_model(path, dtype=torch.float32, device="cpu"):
    """The Transformer of a folder or of a .gguf file. Raises UserError."""
    return (
        read_model(path, dtype, device)
        if os.path.isdir(path)
        else load_gguf(path, dtype)[0].to(device)
    )


# ---------------------------------------------------------------- reading


def read_json(path, what):
    """A JSON object. Raises UserError."""
    try:
        with open(path, encoding="utf-8") as f:
            record = json.load(f)
        if not isinstance(record, dict):
            raise ValueError
        return record
    except (OSError, ValueError) as e:
        raise UserError(
            f"{path}: expected {what}, found {'no such file' if isinstance(e, FileNotFoundError) else 'something else'}; give the folder of a "
            "model in Hugging Face's format"
        ) from None


def read_config(folder):
    """The ModelConfig that a folder's config.json says. Raises UserError for a model that model.py cannot represent."""
    path = os.path.join(folder, "config.json")
    said = read_json(path, "a model's configuration")

    def refuse(key, expected):
        raise UserError(f"{path}: {key} is {json.dumps(said.get(key))}; expected {expected}")

    kind = said.get("model_type")
    if kind not in ("llama", "qwen2"):
        refuse("model_type", "llama or qwen2")
    for key, expected in (
        ("attention_bias", False),
        ("mlp_bias", False),
        ("hidden_act", "silu"),
        ("use_sliding_window", False),
        ("quantization_config", None),
    ):
        if said.get(key, expected) != expected:
            refuse(key, json.dumps(expected))
    rope = said.get("rope_parameters") or {
        "rope_theta": said.get("rope_theta", 10000.0),
        **(said.get("rope_scaling") or {}),
    }
    how = rope.get("rope_type", rope.get("type", "default"))
    if how not in ("default", "llama3"):
        refuse(
            "rope_parameters" if "rope_parameters" in said else "rope_scaling",
            "one of type default or llama3",
        )
    try:
        heads, width = said["num_attention_heads"], said["hidden_size"]
        if (said.get("head_dim") or width // heads) * heads != width:
            refuse("head_dim", f"hidden_size / num_attention_heads = {width // heads}")
        slower = (
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        )
        return ModelConfig(
            said["vocab_size"],
            said["num_hidden_layers"],
            heads,
            said.get("num_key_value_heads") or heads,
            width,
            said["intermediate_size"],
            said.get("max_position_embeddings", 2048),
            float(rope["rope_theta"]),
            tuple(float(rope[key]) for key in slower) if how == "llama3" else (),
            float(said.get("rms_norm_eps", 1e-6)),
            kind == "qwen2",
            bool(said.get("tie_word_embeddings", False)),
        )
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(
            f"{path}: expected a model's configuration, found one without, or with a wrong, {e}"
        ) from None


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
    """{tensor's name in the files: path of its file}. Raises UserError."""
    safetensors = safetensors_library()
    index, files = os.path.join(folder, "model.safetensors.index.json"), ["model.safetensors"]
    if os.path.exists(index):
        where = read_json(index, "an index of weights").get("weight_map", {})
        files = sorted(set(where.values()))
        if not files or any(os.path.basename(file) != file for file in files):
            raise UserError(
                f"{index}: expected the names of files beside it, found {', '.join(files) or 'none'}; download the folder again"
            )
    found = {}
    for file in files:
        path = os.path.join(folder, file)
        if not os.path.exists(path):
            raise UserError(
                f"{path}: no such file; expected the weights there; download it (weights in *.bin are not read)"
            )
        try:
            with safetensors.safe_open(path, "pt") as f:
                found.update({name: path for name in f.keys()})
        except (safetensors.SafetensorError, OSError) as e:
            raise UserError(
                f"{path}: expected weights, found a file that is cut or something else ({e}); download it again"
            ) from None
    return found


def read_model(folder, dtype=torch.float32, device="cpu"):
    """The model of a folder -> Transformer of that dtype on that device. Raises UserError.

    Files are mapped a piece at a time and each tensor goes straight to its place, so memory never holds much more than the weights.
    """
    safetensors = safetensors_library()
    cfg, where = read_config(folder), weight_files(folder)
    model = hollow(cfg, dtype, device)
    todo = {their_name(name): (name, p.shape) for name, p in model.named_parameters()}
    if missing := sorted(set(todo) - set(where)):
        raise UserError(
            f"{folder}: its weights lack {missing[0]} and {len(missing) - 1} more; expected those of its config.json"
        )
    known = {*todo, "lm_head.weight"}  # some tied models hold the head all the same
    if other := sorted(
        name for name in set(where) - known if not name.endswith("rotary_emb.inv_freq")
    ):
        raise UserError(
            f"{folder}: it holds {other[0]} and {len(other) - 1} more that its config.json has no place for; expected a plain llama or qwen2"
        )
    weights = {}
    for theirs in sorted(todo, key=lambda name: (where[name], name)):
        (ours, shape), path = todo[theirs], where[theirs]
        weights[ours] = torch.empty(shape, dtype=dtype, device=device)
        rows = max(1, AT_ONCE * shape[0] // (4 * shape.numel()))
        for row in range(0, shape[0], rows):
            with safetensors.safe_open(
                path, "pt"
            ) as f:  # opened anew each time, or the pages that were read would count as ours
                part = f.get_slice(theirs)
                if tuple(part.get_shape()) != shape or part.get_dtype() not in (
                    "F32",
                    "BF16",
                    "F16",
                ):
                    raise UserError(
                        f"{path}: {theirs} is {tuple(part.get_shape())} of {part.get_dtype()}; expected {tuple(shape)} of F32, BF16 or F16"
                    )
                weights[ours][row : row + rows] = part[row : row + rows]
    model.load_state_dict(weights, assign=True)
    return model


# ---------------------------------------------------------------- writing


def config_json(cfg, dtype, said=None):
    """The config.json of a model. said: the one of the model that it was trained from, whose other keys stay (eos_token_id and the like)."""
    kind, slow = "qwen2" if cfg.qkv_bias else "llama", cfg.rope_llama3
    drop = ("rope_parameters", "dtype", "torch_dtype", "quantization_config", "_name_or_path")
    rope = (
        dict(
            zip(("factor", "low_freq_factor", "high_freq_factor"), slow),
            rope_type="llama3",
            original_max_position_embeddings=int(slow[3]),
        )
        if slow
        else None
    )
    return {
        **{key: value for key, value in (said or {}).items() if key not in drop},
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


def write_model(model, folder, said=None, dtype=None, shard_bytes=5 * 10**9):
    """Write config.json and the weights into a folder, several files where they are larger than shard_bytes.

    said: the config.json (a dict) of the model that it was trained from, if any; dtype: None for the model's own.
    """
    save_file = safetensors_library().torch.save_file
    dtype = dtype or model.dtype
    shards, size = [[]], 0
    for name, p in model.named_parameters():
        nbytes = p.numel() * dtype.itemsize
        if shards[-1] and size + nbytes > shard_bytes:
            shards, size = shards + [[]], 0
        shards[-1].append((name, p))
        size += nbytes
    files = (
        ["model.safetensors"]
        if len(shards) == 1
        else [f"model-{n + 1:05}-of-{len(shards):05}.safetensors" for n in range(len(shards))]
    )
    for file, shard in zip(files, shards):
        save_file(
            {their_name(name): p.detach().to("cpu", dtype).contiguous() for name, p in shard},
            os.path.join(folder, file),
            {"format": "pt"},
        )
    if len(shards) > 1:
        write_json(
            {
                "metadata": {
                    "total_size": sum(p.numel() for _, p in model.named_parameters())
                    * dtype.itemsize
                },
                "weight_map": {
                    their_name(name): file
                    for file, shard in zip(files, shards)
                    for name, _ in shard
                },
            },
            os.path.join(folder, "model.safetensors.index.json"),
        )
    write_json(config_json(model.cfg, dtype, said), os.path.join(folder, "config.json"))


def write_json(record, path):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(record, f, indent=2, ensure_ascii=False)


def tokenizer_json(tok):
    """The tokenizer.json of a Tokenizer that has none: the built-in domain's, or one that came in a GGUF file.

    A token's merge is found by merging its bytes by the tokens of lower rank until two parts are left. The pattern stands in it as it is.
    """
    ranks = {token: i for token, i in tok.enc._mergeable_ranks.items() if i < tok.vocab_size}
    shown = {b: c for c, b in tokenizers.BYTE_OF.items()}
    spell = lambda token: "".join(shown[b] for b in token)

    def two_parts(token):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            found = [
                (rank, i)
                for i in range(len(parts) - 1)
                if (rank := ranks.get(parts[i] + parts[i + 1])) is not None
            ]
            _, i = min(found)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        return parts

    special = sorted((i, text) for text, i in tok.enc._special_tokens.items() if i < tok.vocab_size)
    flags = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": text, **flags} for i, text in special],
        "normalizer": {"type": tok.normal} if tok.normal else None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": tok.enc._pat_str},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {**level, "use_regex": False},
            ],
        },
        "post_processor": None,
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
            "vocab": {
                **{text: i for i, text in special},
                **{spell(token): i for token, i in ranks.items()},
            },
            "merges": [
                " ".join(map(spell, two_parts(token)))
                for token, _ in sorted(ranks.items(), key=lambda kv: kv[1])
                if len(token) > 1
            ],
        },
    }


def write_tokenizer(tok, folder):
    """tokenizer.json and tokenizer_config.json of a Tokenizer that has none."""
    names = {i: text for text, i in tok.enc._special_tokens.items()}
    write_json(tokenizer_json(tok), os.path.join(folder, "tokenizer.json"))
    write_json(
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": names[tok.eos],
            "pad_token": names[tok.eos],
            "clean_up_tokenization_spaces": False,
        },
        os.path.join(folder, "tokenizer_config.json"),
    )


def export(checkpoint, folder, dtype=None, source=None, shard_bytes=5 * 10**9):
    """Write a checkpoint of a run as a folder that other programs read: whole or not at all. source: where its base model came from; None: what the run's
    settings say. Raises UserError."""
    if os.path.exists(folder):
        raise UserError(f"{folder}: exists already; give the name of a new folder")
    model, extra = load_model(checkpoint)
    beside = os.path.join(os.path.dirname(checkpoint), "tokenizer.txt")
    if source is None and not os.path.exists(beside):
        made = read_json(
            os.path.join(os.path.dirname(checkpoint), "settings.json"), "the run's settings"
        )
        source = find(make(made["preset"], model=made.get("model", "")))
    if "tokenizer" in extra:
        tok = open_tokenizer(source) if source else tokenizers.load_tokenizer(beside)
        tokenizers.check_checkpoint(checkpoint, extra, tok, source or "tiny")
    part = f"{folder.rstrip('/')}.part"
    shutil.rmtree(part, ignore_errors=True)
    try:
        os.makedirs(part)
        if source and os.path.isdir(source):
            said = read_json(os.path.join(source, "config.json"), "a model's configuration")
            for file in KEPT:
                if os.path.exists(os.path.join(source, file)):
                    shutil.copy(os.path.join(source, file), part)
        else:
            tok = tokenizers.gguf_tokenizer(source) if source else tokenizers.load_tokenizer(beside)
            said = {"bos_token_id": tok.bos[0] if tok.bos else None, "eos_token_id": tok.eos}
            write_tokenizer(tok, part)
        write_model(model, part, said, dtype, shard_bytes)
        os.replace(part, folder)
    except OSError as e:
        raise UserError(f"{folder}: cannot be written ({e.strerror}); give another path") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
