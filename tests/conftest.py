import ast
import inspect
import os
import random

import pytest
import torch

import domain
from config import UserError
from engine import parallel
from formats import gguf, tokenizers

torch.set_num_threads(1)  # two wait for one another wherever a core is shared
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same for processes that tests start


@pytest.fixture(scope="session", autouse=True)
def one_grader():
    """Runs start one process that grades, as it starts more slowly than it grades a few programs.

    (tests/test_sandbox.py grades in several.)
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "workers", lambda: 1)
        yield


@pytest.fixture(scope="session")
def trained():
    """A tokenizer of the standard library's code, of 2,048 tokens."""
    return tokenizers.train_tokenizer([inspect.getsource(m) for m in (ast, random, inspect)], 2048)


@pytest.fixture(scope="session")
def tok():
    """A small tokenizer of the built-in domain."""
    rng = random.Random(1)
    return tokenizers.train_tokenizer(["".join(domain.base_text(rng)) for _ in range(100)], 400)


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2 in float32: (our model, our tokenizer, transformers' model)."""
    transformers = pytest.importorskip("transformers")
    (
        pytest.importorskip("gguf"),
        pytest.importorskip("accelerate", reason="transformers needs it to read GGUF files"),
    )
    try:
        path = gguf.smollm2_path()
    except UserError as e:
        pytest.skip(str(e))
    folder, file = os.path.split(path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.float32
    ).eval()
    return gguf.load_gguf(path)[0], tokenizers.gguf_tokenizer(path), theirs


def pytest_collection_modifyitems(items):
    """Tests on SmolLM2's weights are slow: loading them twice takes 20 seconds."""
    for item in items:
        if "smollm2" in item.fixturenames:
            item.add_marker(pytest.mark.slow)
