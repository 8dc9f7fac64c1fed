"""Tokenizers, lines, infusion, packing and corpora.

The code is the standard library's: 400 functions, with a trained tokenizer and SmolLM2's.
"""

import ast
import inspect
import json
import os
import random
import sys

import pytest
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import data
from config import UserError
from corpus import functions, prepare
from engine import packing
from formats import gguf
from formats.tokenizers import (
    GGUF_PATTERNS,
    PATTERN,
    gguf_tokenizer,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from worlds import ODD, TEXT, some_thoughts

torch.set_num_threads(1)
QWEN = GGUF_PATTERNS["qwen2"]


CODE = "email,http,xml"  # of the standard library


@pytest.fixture(scope="module")
def smollm2():
    pytest.importorskip("gguf")
    try:
        return gguf_tokenizer(gguf.smollm2_path())
    except UserError as e:
        pytest.skip(str(e))


@pytest.fixture(scope="module", params=["trained", "smollm2"])
def stdlib(request, tmp_path_factory):
    tok = request.getfixturevalue(request.param)
    snips = prepare.prepare_corpus(
        CODE, tok, 2048, cache=tmp_path_factory.mktemp("corpora"), progress=False, cores=1
    )[:400]
    assert len(snips) == 400
    return tok, snips


# ---------------------------------------------------------------- tokenizers


def test_training_is_deterministic_and_files_round_trip(trained, tmp_path):
    first, again = (train_tokenizer([inspect.getsource(random)], 600) for _ in range(2))
    save_tokenizer(trained, tmp_path / "tok")
    back = load_tokenizer(tmp_path / "tok")
    assert trained.vocab_size == 2048 and trained.eos == 2047
    for text in ODD + [inspect.getsource(json)]:
        assert first.encode(text) == again.encode(text)
        assert trained.encode(text) == back.encode(text)
        assert trained.decode(trained.encode(text) + [trained.eos]) == text
    assert (back.eos, back.thought_ids, back.stop_ids) == (
        trained.eos,
        trained.thought_ids,
        trained.stop_ids,
    )


def test_what_starts_and_what_ends_a_thought(trained):
    hashes = [trained.encode(t) for t in (" #", "#")]
    assert all(len(h) == 1 and h[0] in trained.thought_ids for h in hashes)
    assert trained.eos in trained.stop_ids and trained.encode("\n    x")[0] in trained.stop_ids
    assert not set(trained.thought_ids) & set(trained.stop_ids)
    assert [trained.decode([i]) for i in trained.encode(" 12")][1:] == ["2"]  # digits never merge


def test_smallest_vocabulary(trained):
    tok = train_tokenizer(["x"], 258)
    assert (
        tok.vocab_size == 258
        and tok.decode(tok.encode("é #")) == "é #"
        and len(tok.encode(" #")) == 1
    )
    with pytest.raises(UserError, match="vocab_size=257.*258"):
        train_tokenizer(["x"], 257)


def test_smollm2_ids_are_those_of_hugging_face(smollm2, tmp_path):
    transformers, tokenizers = (
        pytest.importorskip("transformers"),
        pytest.importorskip("tokenizers"),
    )
    pre = tokenizers.pre_tokenizers
    folder, file = os.path.split(gguf.smollm2_path())
    theirs = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file).backend_tokenizer
    # the conversion from GGUF forgets that SmolLM2 splits off single digits first
    theirs.pre_tokenizer = pre.Sequence(
        [
            pre.Digits(individual_digits=True),
            pre.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    snips = prepare.prepare_corpus(
        f"{CODE},asyncio,logging", smollm2, 10_000, min_lines=1, cache=tmp_path, progress=False
    )[:1000]
    for text in ODD + [smollm2.decode(s.ids) for s in snips]:
        assert smollm2.encode(text) == theirs.encode(text, add_special_tokens=False).ids, text
    assert (
        smollm2.vocab_size == 49152 and max(smollm2.encode("\x04a\x06b\U000f0000")) < 49152
    )  # bytes it lacks are dropped
    assert (
        data.snippet(smollm2, "def f():\n    return '\x04'", 8) is None
    )  # and never silently in a snippet


# ---------------------------------------------------------------- lines and thoughts


@pytest.mark.parametrize("pattern", [PATTERN, QWEN])
def test_lines_of_a_function(pattern):
    tok = train_tokenizer([inspect.getsource(ast), TEXT], 1000, pattern)
    snip = data.snippet(tok, TEXT, TEXT.index('squares."""') + 11)
    assert snip.ids == tok.encode(TEXT) + [tok.eos]
    lines = [
        tok.decode(snip.ids[a:b]) for a, b in zip(snip.first, snip.first[1:] + [None], strict=False)
    ]
    assert [line.split()[0].strip(":") for line in lines] == [
        "sizes",
        "if",
        "total",
        "else",
        "return",
        "return",
    ]
    assert [tok.decode(sep) for sep in snip.sep] == [
        "\n   ",
        "\n   ",
        "\n       ",
        "\n   ",
        "\n       ",
        "\n   ",
    ]
    if pattern == QWEN:  # `"""\n` is one token there
        assert tok.decode(snip.ids[: snip.prompt]) in TEXT[: TEXT.index("\n    sizes")]
    else:
        assert tok.decode(snip.ids[: snip.prompt]).endswith('in squares."""')
        assert tok.decode(snip.ids[snip.prompt : snip.first[0]]) == "\n   "
    ids, kinds = data.infuse(tok, snip, {0: tok.encode(" # both sides"), 4: tok.encode(" # never")})
    assert tok.decode(ids) == TEXT.replace("    sizes", "    # both sides\n    sizes").replace(
        "        return None", "        # never\n        return None"
    )
    assert data.canonical(tok, ids) and kinds.count(data.PROMPT) == snip.prompt


def test_column_zero_and_no_lines(trained):
    snip = data.snippet(trained, "x = 1\ny = 2\n\nz = 3\n", 5)
    assert [trained.decode(s) for s in snip.sep] == ["\n", "\n"]
    ids, _ = data.infuse(trained, snip, [trained.encode("# a"), trained.encode("# b")])
    assert trained.decode(ids) == "x = 1\n# a\ny = 2\n\n# b\nz = 3\n"
    assert data.snippet(trained, "x = 1", 0) is None and data.snippet(trained, "", 0) is None
    assert not data.canonical(trained, trained.encode("re") + trained.encode("turn"))


def test_infused_text_minus_thoughts_is_the_experts(stdlib):
    tok, snips = stdlib
    rng, good, n = random.Random(0), 0, 0
    for snip in snips:
        text = tok.decode(snip.ids)
        assert snip.ids == tok.encode(text) + [tok.eos]
        ends = snip.first + [len(snip.ids)]
        assert (
            len(snip.sep) == len(snip.first)
            and all(a < b for a, b in zip(ends, ends[1:], strict=False))
            and snip.prompt < snip.first[0]
        )
        assert (
            tok.decode(snip.ids[snip.prompt : snip.first[0]]).strip() == ""
            and snip.ids[snip.prompt] in tok.stop_ids
        )
        thoughts = some_thoughts(tok, snip, rng)
        ids, kinds = data.infuse(tok, snip, thoughts)
        assert (
            len(ids) == len(kinds)
            and [i for i, k in zip(ids, kinds, strict=False) if k != data.THOUGHT] == snip.ids
        )
        assert data.infuse(tok, snip, dict(enumerate(thoughts))) == (ids, kinds)
        full = tok.decode(ids)
        assert ast.dump(ast.parse(full)) == ast.dump(
            ast.parse(text)
        )  # comments, and nothing else, were added
        assert functions.strip_comments(full).encode() == text.encode()  # byte for byte
        good, n = good + data.canonical(tok, ids), n + 1
    print(f"canonical after infusion: {good} of {n}")
    assert good / n >= 0.99


# ---------------------------------------------------------------- packing


def test_one_row():
    """Documents, kinds and positions cut out of the row again, with padding to several multiples
    and without; a row worked by hand; no documents.
    """
    rng = random.Random(0)
    docs = [[rng.randint(1, 50) for _ in range(rng.randint(1, 30))] for _ in range(40)]
    kinds = [[rng.randint(0, 2) for _ in d] for d in docs]
    total = sum(map(len, docs))
    for multiple, T in (
        (1, total),
        (total + 5, total + 5),
        (total - 1, 2 * total - 2),
        (total, total),
    ):
        ids, pos, doc, kind = packing.pack(docs, kinds, multiple)
        assert (
            ids.shape == pos.shape == doc.shape == kind.shape == (1, T)
            and kind.dtype == torch.int8
            and ids.dtype == pos.dtype == torch.int64
        )
        for n, d in enumerate(docs):
            at = doc[0] == n
            assert (
                ids[0, at].tolist() == d
                and kind[0, at].tolist() == kinds[n]
                and pos[0, at].tolist() == list(range(len(d)))
            )
        rest = doc[0] == -1
        assert (
            rest[total:].all()
            and not rest[:total].any()
            and (ids[0, rest] == 0).all()
            and (kind[0, rest] == -1).all()
        )
        assert pos[0, rest].tolist() == list(range(T - total))
    assert [x.tolist() for x in packing.pack([[5, 6], [7]])] == [
        [[5, 6, 7]],
        [[0, 1, 0]],
        [[0, 0, 1]],
        [[1, 1, 1]],
    ]
    assert packing.pack([])[0].shape == (1, 0)


@pytest.mark.parametrize("content", [None, b"", b"hello", b"\xff\xfe", b"aGk= zero\n"])
def test_bad_tokenizer_files(tmp_path, content):
    if content is not None:
        (tmp_path / "tok").write_bytes(content)
    with pytest.raises(UserError, match="expected a tokenizer"):
        load_tokenizer(tmp_path / "tok")
