"""sample.py: the plain loop against the engine's sampler, and the command."""

import io
import sys

import numpy as np
import pytest
import torch

import sample
import train
from config import UserError
from engine.sample import generate
from formats.tokenizers import load_tokenizer
from worlds import TINY, thinker

torch.set_num_threads(1)
V = 29
PROMPTS = [[5], [1, 2, 3, 4, 5, 6, 7], [9, 8, 7]]


def text_of(ids):
    return "".join(chr(ord("a") + i) for i in ids)


@pytest.fixture(scope="module")
def model():
    return thinker(type("Tok", (), dict(vocab_size=V, thought_ids=[3, 7], stop_ids=[0, 1])), 1)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 0.7, "top_p": 0.8},
        {"forbid": [3, 7]},
        {"seeds": [4, 0, 9], "seed": 2},
        {"eos": [0, 1]},
        {"stop": ["ba", "d"], "heads": ["b", "", "a"]},
    ],
    ids=str,
)
def test_tokens_of_the_engine(model, settings):
    """Tokens, log-probabilities and ends are those of the batched sampler."""
    keywords = {"eos": 12, "n": 4, "decode": text_of, **settings}
    eos = keywords.pop("eos")
    calls = []
    plain = sample.plain_generate(
        model, PROMPTS, 12, eos, on_done=lambda i, j, done: calls.append((i, j)), **keywords
    )
    fast = generate(model, PROMPTS, 12, eos, **keywords)
    assert calls == [(i, j) for i in range(3) for j in range(4)]
    for row, other in zip(plain, fast, strict=True):
        for a, b in zip(row, other, strict=True):
            assert (a.ids, a.finished) == (b.ids, b.finished)
            assert np.allclose(a.logprobs, b.logprobs, rtol=0, atol=1e-4)
    assert len({tuple(c.ids) for row in plain for c in row}) > 2


def test_pick_token():
    logits = torch.tensor([0.2, 0.5, 0.3]).log()
    assert [sample.pick_token(logits, u) for u in (0.1, 0.3, 0.8, 1.0)] == [0, 1, 2, 2]
    assert sample.pick_token(logits, 0.99, temperature=0) == 1
    assert [sample.pick_token(logits, u, top_p=0.6) for u in (0.1, 0.99)] == [1, 2]


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "base"
    train.main([*TINY, "--pretrain-steps", "3", "--out", str(out), "--stage", "pretrain"])
    return out / "base.pt"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def written(monkeypatch, checkpoint, *argv, stdin="", terminal=False):
    """What the command prints."""
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
    sample.main(["--checkpoint", str(checkpoint), "--max-new", "12", *argv])
    monkeypatch.undo()
    return stream.getvalue()


def test_prompts(monkeypatch, checkpoint, tmp_path):
    """A file, the text itself and standard input give the same, and samples differ."""
    path = tmp_path / "prompt.py"
    path.write_text("def f(x):\n")
    by_file = written(monkeypatch, checkpoint, "--prompt", str(path))
    assert by_file.startswith("def f(x):") and len(by_file) > len("def f(x):\n")
    assert by_file == written(monkeypatch, checkpoint, "--prompt", "def f(x):")
    assert by_file == written(monkeypatch, checkpoint, stdin="def f(x):\n")
    assert by_file != written(monkeypatch, checkpoint, "--prompt", str(path), "--seed", "1")
    several = written(monkeypatch, checkpoint, "--prompt", str(path), "--samples", "2")
    first, second = several.split("--- sample 2 of 2\n")
    assert first == "--- sample 1 of 2\n" + by_file and second != by_file
    greedy = [written(monkeypatch, checkpoint, "--prompt", "x", "--greedy") for _ in range(2)]
    assert greedy[0] == greedy[1]
    assert greedy[0] == written(monkeypatch, checkpoint, "--prompt", "x", "--temperature", "0")


def test_interactive(monkeypatch, checkpoint):
    """Prompt after prompt, each ended by an empty line, the last by the end of input."""
    out = written(monkeypatch, checkpoint, "--interactive", stdin="def f():\n\nx = 1\ny = 2\n")
    assert out.startswith("def f():") and "x = 1\ny = 2" in out


def test_colour(checkpoint, monkeypatch):
    """On a terminal a thought is in colour, from its first token to before its end."""
    tok = load_tokenizer(checkpoint.parent / "tokenizer.txt")
    ids = tok.encode("\n    # why\n    x")
    coloured = f"\n   {sample.DIM} #{sample.RESET}"
    for stream, no_colour, wanted in (
        (Terminal(), "", True),
        (Terminal(), "1", False),
        (io.StringIO(), "", False),
    ):
        monkeypatch.setenv("NO_COLOR", no_colour)
        printer = sample.Printer(tok, stream)
        for i in ids:
            printer.token(i)
        out = stream.getvalue()
        assert out.startswith(coloured) == wanted
        assert out.replace(sample.DIM, "").replace(sample.RESET, "") == "\n    # why\n    x"
        assert not wanted or out.endswith("x") and sample.DIM not in out.rsplit("\n", 1)[1]


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--prompt", ""], "prompt is empty"),
        (["--prompt", "x = 1\n" * 4000], "positions; give a shorter one"),
        (["--samples", "0"], "--samples 0: expected at least 1"),
        (["--interactive", "--prompt", "x"], "expected one of the two"),
        (["--prompt", "."], "cannot be read as text"),
        (["--nonsense"], "no such setting"),
    ],
    ids=str,
)
def test_mistakes(monkeypatch, checkpoint, argv, message):
    with pytest.raises(UserError, match=message) as error:
        written(monkeypatch, checkpoint, *argv)
    assert "\n" not in str(error.value)[:300]


@pytest.mark.parametrize("more", [[], ["--interactive"]])
def test_standard_input_that_is_no_text(monkeypatch, checkpoint, more):
    binary = io.TextIOWrapper(io.BytesIO(b"def f():\n\n\xff\xfe\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", binary)
    with pytest.raises(UserError, match="standard input: cannot be read as text") as error:
        sample.main(["--checkpoint", str(checkpoint), "--max-new", "1", *more])
    assert "\n" not in str(error.value)


def test_no_prompt_on_a_terminal(monkeypatch, checkpoint):
    monkeypatch.setattr(sys, "stdin", Terminal())
    with pytest.raises(UserError, match="no prompt: expected --prompt"):
        sample.main(["--checkpoint", str(checkpoint)])
