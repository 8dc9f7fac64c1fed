import os
import pathlib
import random
import sys

import pytest
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
torch.set_num_threads(2)


@pytest.fixture(scope="module")
def tok():
    """A small tokenizer of the built-in domain."""
    import tasks
    import tokenizer

    rng = random.Random(1)
    return tokenizer.train_tokenizer(["".join(tasks.base_text(rng)) for _ in range(100)], 400)


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2 in float32: (our model, our tokenizer, transformers' model)."""
    import tokenizer
    import weights
    from config import UserError

    transformers = pytest.importorskip("transformers")
    (
        pytest.importorskip("gguf"),
        pytest.importorskip("accelerate", reason="transformers needs it to read GGUF files"),
    )
    try:
        path = weights.smollm2_path()
    except UserError as e:
        pytest.skip(str(e))
    folder, file = os.path.split(path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.float32
    ).eval()
    return weights.load_gguf(path)[0], tokenizer.gguf_tokenizer(path), theirs
