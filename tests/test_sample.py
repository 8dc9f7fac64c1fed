"""Sampling against the naive loop and transformers, in any batch, with too little memory."""

import pytest
import torch

from benchmarks.files import read_rows
from config import UserError
from engine import decoder
from engine.decoder import Decoder, pick
from engine.sample import generate
from model import ModelConfig, Transformer

torch.set_num_threads(1)
V, EOS, NO_EOS = 29, 0, -1
PROMPTS = [[5], [1, 2, 3, 4, 5, 6, 7], [9, 8, 7], [9, 8], [3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3], [2, 4]]


@pytest.fixture(scope="module")
def model():
    cfg = ModelConfig(
        vocab_size=V, n_layer=2, n_head=4, n_kv_head=2, d_model=32, d_ff=48, max_len=40
    )
    return Transformer(cfg).init_weights(1)


def text(ids):
    return "".join(chr(ord("a") + i) for i in ids)


@torch.no_grad()
def logprobs(model, ids):
    """(T, V): row t is the distribution of token t + 1."""
    return (model(torch.tensor([ids]))[0] @ model.head_weight.T).log_softmax(-1)


def naive(model, prompt, max_new, eos):
    new = []
    while len(new) < max_new and (not new or new[-1] != eos):
        new.append(logprobs(model, prompt + new)[-1].argmax().item())
    return new


def ids(completions):
    return [[c.ids for c in row] for row in completions]


def test_end_tokens_are_a_set(model):
    """Rows end at the first of several end tokens, as rows without an end are cut at it."""
    free = generate(model, PROMPTS, 25, NO_EOS, n=6)
    ends = {3, 7, V + 5}  # the last one is out of the vocabulary
    got = generate(model, PROMPTS, 25, ends, n=6)
    cut = 0
    for row, of_prompt in zip(free, got, strict=True):
        for whole, c in zip(row, of_prompt, strict=True):
            first = next((k for k, i in enumerate(whole.ids) if i in ends), None)
            cut += first is not None
            assert c.finished == (first is not None)
            assert c.ids == (whole.ids if first is None else whole.ids[: first + 1])
    assert cut > 10
    assert ids(generate(model, PROMPTS, 25, [EOS], n=3)) == ids(
        generate(model, PROMPTS, 25, EOS, n=3)
    )


def test_a_stop_string_may_begin_before_the_completion(model):
    """A stop string that the head of a completion begins: its row ends, and others go on."""
    free = generate(model, PROMPTS, 12, NO_EOS, n=4)
    heads = ["?" if k % 2 else "" for k in range(len(PROMPTS))]
    stops = {f"?{text(c.ids[:2])}" for row in free[1:3] for c in row}  # first two tokens of some
    got = generate(model, PROMPTS, 12, NO_EOS, n=4, stop=list(stops), decode=text, heads=heads)
    ended = 0
    for head, row, of_prompt in zip(heads, free, got, strict=True):
        for whole, c in zip(row, of_prompt, strict=True):
            stopped = f"{head}{text(whole.ids[:2])}" in stops
            ended += stopped
            assert c.ids == whole.ids[: 2 if stopped else 12] and c.finished == stopped
    assert 4 <= ended < 24
    later = generate(model, PROMPTS, 12, NO_EOS, n=4, stop=["?" * 9], decode=text, heads=heads)
    assert ids(later) == ids(free)


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_greedy_is_the_naive_loop(model, batch):
    eos = naive(model, PROMPTS[1], 8, NO_EOS)[5]
    got = generate(model, PROMPTS, 12, eos, temperature=0, batch=batch)
    assert ids(got) == [[naive(model, p, 12, eos)] for p in PROMPTS]


def test_samples_do_not_depend_on_the_batch(model):
    for top_p in (1.0, 0.8):
        want = generate(model, PROMPTS, 15, EOS, n=5, seed=3, top_p=top_p)
        for batch in (1, 2, 7, 16):
            got = generate(model, PROMPTS, 15, EOS, n=5, seed=3, top_p=top_p, batch=batch)
            assert ids(got) == ids(want)
            for a, b in zip(sum(got, []), sum(want, []), strict=True):
                assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)
        alone = generate(
            model, [PROMPTS[4], PROMPTS[0]], 15, EOS, n=3, seed=3, seeds=[4, 0], top_p=top_p
        )
        assert ids(alone) == [ids(want)[4][:3], ids(want)[0][:3]]


def test_samples_differ_and_repeat(model):
    a, b, c = (ids(generate(model, [PROMPTS[1]] * 2, 12, NO_EOS, n=4, seed=s)) for s in (0, 0, 1))
    assert a == b != c
    assert len({tuple(x) for x in a[0] + a[1]}) == 8


@pytest.mark.parametrize(
    "settings", [{}, dict(temperature=0.7), dict(top_p=0.6), dict(temperature=0)]
)
def test_recorded_logprobs(model, settings):
    rows = generate(model, PROMPTS, 12, EOS, n=3, batch=5, **settings)
    for prompt, row in zip(PROMPTS, rows, strict=True):
        for c in row:
            full = logprobs(model, prompt + c.ids)[len(prompt) - 1 : -1]
            assert c.logprobs == pytest.approx(full[range(len(c.ids)), c.ids].tolist(), abs=1e-4)


def test_eos_ends_a_row(model):
    rows = sum(generate(model, PROMPTS, 25, EOS, n=20), [])
    assert {c.finished for c in rows} == {True, False}
    for c in rows:
        assert EOS not in c.ids[:-1]
        assert c.finished == (c.ids[-1] == EOS) and (c.finished or len(c.ids) == 25)
        assert len(c.ids) == len(c.logprobs)


def test_stop_across_tokens(model):
    free = generate(model, PROMPTS, 20, NO_EOS, n=6)
    stops = [text(free[1][2].ids[4:7]), text(free[3][0].ids[9:11]), "never"]
    stopped = generate(model, PROMPTS, 20, NO_EOS, n=6, stop=stops, decode=text)
    for f, c in zip(sum(free, []), sum(stopped, []), strict=True):
        ends = [text(f.ids).find(s) + len(s) for s in stops if s in text(f.ids)]
        assert c.ids == f.ids[: min(ends, default=20)]
        assert c.finished == bool(ends)


def test_room(model):
    got = generate(model, [[1] * 39, [1] * 30, [1]], 15, NO_EOS, n=2)
    assert [[len(c.ids) for c in row] for row in got] == [[1, 1], [10, 10], [15, 15]]
    assert not any(c.finished for row in got for c in row)
    assert generate(model, [], 5, EOS) == []


def test_pick():
    logits = torch.tensor([[0.1, 0.2, 0.0, 0.3, 0.4]]).log()
    for u, token in (
        (0, 0),
        (0.09, 0),
        (0.11, 1),
        (0.29, 1),
        (0.31, 3),
        (0.61, 4),
        (1 - 2**-53, 4),
    ):
        assert pick(logits, [u], 1, 1)[0].item() == token
    for u, token in (
        (0, 4),
        (0.57, 4),
        (0.58, 3),
        (1 - 2**-53, 3),
    ):  # the nucleus of .6 is {4, 3}: .4 and .3 of .7
        assert pick(logits, [u], 1, 0.6)[0].item() == token
    assert pick(logits, [0.99], 1, 1e-9)[0].item() == pick(logits, [0.99], 0, 1)[0].item() == 4
    assert pick(logits, [0.9], 2, 0.6)[1].exp().item() == pytest.approx(0.3)


def test_frequencies(model):
    want = logprobs(model, PROMPTS[2])[-1].exp()
    first = torch.tensor(
        [c.ids[0] for c in generate(model, [PROMPTS[2]], 1, EOS, n=4000, batch=512)[0]]
    )
    assert (torch.bincount(first, minlength=V) / 4000 - want).abs().max() < 0.03


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(prompts=[[1], []]), "prompt 1 has 0 tokens"),
        (dict(prompts=[[1] * 40]), "prompt 0 has 40 tokens"),
        (dict(max_new=0), "max_new=0"),
        (dict(n=0), "n=0"),
        (dict(temperature=-1), "temperature=-1"),
        (dict(top_p=0), "top_p=0"),
        (dict(seeds=[1]), "1 seeds for 6 prompts"),
        (dict(stop=["a"]), "decode"),
        (dict(stop=[""], decode=text), "must not be empty"),
    ],
)
def test_errors(model, change, words):
    with pytest.raises(ValueError, match=words):
        generate(model, **{"prompts": PROMPTS, "max_new": 4, "eos": EOS, **change})


def test_progress(model):
    got = generate(model, PROMPTS, 6, NO_EOS, n=2, progress=True)
    assert all(len(c.ids) == 6 and max(c.logprobs) <= 0 for row in got for c in row)


def test_forbidden_tokens(model):
    """The distribution is the model's, given that none of these tokens comes."""
    forbid = [3, 7, 11, 20]
    for temperature in (1.0, 0):
        for prompt, row in zip(
            PROMPTS,
            generate(model, PROMPTS, 12, NO_EOS, n=3, temperature=temperature, forbid=forbid),
            strict=True,
        ):
            for c in row:
                assert not set(c.ids) & set(forbid)
                full = logprobs(model, prompt + c.ids)[len(prompt) - 1 : -1]  # (T, V)
                allowed = torch.log1p(-full[:, forbid].exp().sum(1))  # (T,)
                assert c.logprobs == pytest.approx(
                    (full[range(len(c.ids)), c.ids] - allowed).tolist(), abs=1e-4
                )


def test_told_as_they_end(model):
    told = []
    out = generate(
        model, PROMPTS, 12, EOS, n=3, batch=4, on_done=lambda i, j, c: told.append((i, j, c))
    )
    assert sorted((i, j) for i, j, _ in told) == [
        (i, j) for i in range(len(PROMPTS)) for j in range(3)
    ]
    assert all(out[i][j] is c for i, j, c in told)


# ---------------------------------------------------------------- the decoder


class Kept(Decoder):
    """Notes every decoder that is made."""

    made = []

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.made.append(self)


class Bucketed(Kept):
    """As on a GPU: buffers that stay where they are, counts rounded up, a look in eight steps."""

    grow_buffers = property(lambda self: False, lambda self, value: None)


@pytest.fixture
def made(monkeypatch):
    monkeypatch.setattr(Kept, "made", [])
    monkeypatch.setattr(decoder, "Decoder", Kept)
    return Kept.made


@pytest.mark.parametrize(
    "settings",
    [
        dict(batch=1),
        dict(batch=4),
        dict(batch=7, temperature=0.9, top_p=0.9),
        dict(batch=64, temperature=0),
    ],
)
def test_shapes_change_nothing(model, made, monkeypatch, settings):
    """The steps of a GPU give what those of a CPU give, and there are few of them."""
    eager = generate(model, PROMPTS, 25, EOS, n=5, **settings)
    monkeypatch.setattr(decoder, "Decoder", Bucketed)
    rounded = generate(model, PROMPTS, 25, EOS, n=5, **settings)
    assert ids(eager) == ids(rounded)
    for a, b in zip(sum(eager, []), sum(rounded, []), strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5) and a.finished == b.finished
    exact, fixed = made
    assert (exact.look, fixed.look) == (1, 8)
    assert exact.own.slots < 128 == fixed.own.slots == fixed.shared.slots
    assert set(fixed.steps) <= {1, 2, 4, 8, 16, 32, 64, fixed.rows}
    assert len(fixed.steps) <= sum(fixed.steps.values()) / 2


def test_samples_of_a_prompt_are_those_of_its_copies(model, made):
    """n samples of one prompt are the samples of n equal prompts."""
    want = generate(model, PROMPTS, 15, EOS, n=4, seed=5)
    assert made[0].shared.k[0].shape[0] == len(PROMPTS)  # one slot a prompt
    for i, row in enumerate(want):
        for j, c in enumerate(row):
            (alone,) = generate(model, [PROMPTS[i]], 15, EOS, n=j + 1, seed=5, seeds=[i])
            assert alone[j].ids == c.ids and alone[j].logprobs == pytest.approx(
                c.logprobs, abs=1e-5
            )


def test_prompts_are_read_once(model, monkeypatch):
    read = []
    forward = Transformer.forward
    monkeypatch.setattr(
        Transformer,
        "forward",
        lambda self, ids, **rest: read.append(len(ids)) or forward(self, ids, **rest),
    )
    generate(model, PROMPTS, 15, EOS, n=9, batch=5)
    assert sum(read) == len(PROMPTS)


def test_one_token_rows_and_queues(model):
    """Rows of one token, with more samples than slots.

    The queue outlasts the slots of its prompts.
    """
    got = generate(model, PROMPTS, 1, EOS, n=7, batch=3)
    want = generate(model, PROMPTS, 15, EOS, n=7, batch=64)
    assert ids(got) == [[c.ids[:1] for c in row] for row in want]


@pytest.mark.parametrize("fail", ["forward", "step"])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_halves_the_batch(model, monkeypatch, capsys, fail, error):
    want, told, calls = generate(model, PROMPTS, 15, EOS, n=5), [], []
    forward, step = Transformer.forward, Decoder.step

    def small_forward(self, ids, **rest):
        if fail == "forward" and len(ids) > 2:
            raise error
        return forward(self, ids, **rest)

    def small_step(self, B):
        calls.append(B)
        if fail == "step" and B > 4 and len(calls) > 8:  # some rows have ended by then
            raise error
        return step(self, B)

    monkeypatch.setattr(Transformer, "forward", small_forward)
    monkeypatch.setattr(Decoder, "step", small_step)
    got = generate(
        model,
        PROMPTS,
        15,
        EOS,
        n=5,
        batch=16,
        on_done=lambda i, j, c: told.append((i, j)),
        desc="try",
    )
    assert ids(got) == ids(want)
    assert sorted(told) == [
        (i, j) for i in range(len(PROMPTS)) for j in range(5)
    ]  # each once: what had ended was not lost
    assert "try: out of memory; going on with 8 rows at once" in capsys.readouterr().err


def test_no_memory_for_one_row(model, monkeypatch):
    def step(self, B):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Decoder, "step", step)
    with pytest.raises(UserError, match="one row of 26 tokens, which needs about .* MiB"):
        generate(model, PROMPTS, 15, EOS, n=3, batch=4)
    monkeypatch.setattr(
        Decoder, "step", lambda self, B: (_ for _ in ()).throw(RuntimeError("another error"))
    )
    with pytest.raises(RuntimeError, match="another error"):
        generate(model, PROMPTS, 15, EOS)


@pytest.mark.parametrize(
    "bias, tied, dtype",
    [(True, False, torch.float32), (True, True, torch.bfloat16), (False, False, torch.bfloat16)],
)
def test_other_models(bias, tied, dtype):
    """Biases, an untied head, bfloat16 weights: recorded as scored."""
    cfg = ModelConfig(
        vocab_size=V,
        n_layer=2,
        n_head=4,
        n_kv_head=1,
        d_model=32,
        d_ff=48,
        max_len=40,
        qkv_bias=bias,
        tied=tied,
    )
    model = Transformer(cfg).init_weights(2)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(p, std=0.3)
    model = model.to(dtype)
    rows = generate(model, PROMPTS, 12, EOS, n=3, batch=5)
    for prompt, row in zip(PROMPTS, rows, strict=True):
        for c in row:
            with torch.no_grad():
                full = (
                    model(torch.tensor([prompt + c.ids]))[0].float() @ model.head_weight.float().T
                ).log_softmax(-1)[len(prompt) - 1 : -1]
            assert c.logprobs == pytest.approx(
                full[range(len(c.ids)), c.ids].tolist(), abs=1e-4 if dtype == torch.float32 else 0.1
            )


def test_top_p_of_a_large_vocabulary():
    """The nucleus of a few tokens, and one of more tokens than are looked at first."""
    flat, steep = torch.zeros(1, 1000), torch.arange(1000.0)[None].neg() / 5
    for logits in (flat, steep, torch.cat((flat, steep))):
        token, _ = pick(logits, [0.95] * len(logits), 1, 0.9)
        probs, names = logits.softmax(-1).sort(dim=-1, descending=True)
        at = [(names[b] == token[b]).nonzero().item() for b in range(len(logits))]
        assert all((probs[b].cumsum(0) - probs[b])[at[b]] < 0.9 for b in range(len(logits)))
    assert pick(steep, [0.0], 1, 0.9)[0].item() == 0


# ---------------------------------------------------------------- against transformers


def test_greedy_is_that_of_transformers(smollm2):
    """Token for token, in float32, on 50 prompts of HumanEval in one ragged batch."""
    ours, tok, theirs = smollm2
    problems = read_rows("humaneval/HumanEval.jsonl.gz")
    prompts = sorted((tok.encode(p["prompt"]) for p in problems), key=len)[:50]
    T = max(map(len, prompts))
    padded = torch.tensor(
        [[tok.eos] * (T - len(p)) + p for p in prompts]
    )  # (50, T), padded on the left
    mask = torch.tensor([[0] * (T - len(p)) + [1] * len(p) for p in prompts])
    want = theirs.generate(
        padded, attention_mask=mask, max_new_tokens=16, do_sample=False, pad_token_id=tok.eos
    )[:, T:].tolist()
    rows = generate(ours, prompts, 16, tok.eos, temperature=0, batch=50)
    for (c,), w in zip(rows, want, strict=True):
        assert c.ids == w[: len(c.ids)] and (len(c.ids) == 16 or c.ids[-1] == tok.eos)
