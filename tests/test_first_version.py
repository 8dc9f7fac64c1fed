"""What the first version of the project wrote is still read: a run of it that was stopped.

data/first-version holds base.pt, ntp.pt and an E-step stopped after two of four steps, of a model
of width 8. SETTINGS are those that it was made with.
"""

import json
import shutil

import pytest
import torch

import train
from formats.checkpoints import load_model
from formats.tokenizers import load_tokenizer
from worlds import HERE

FOLDER = HERE / "tests" / "data" / "first-version"
SETTINGS = (
    "--stage em --threads 1 --device cpu --n-layer 1 --n-head 1 --d-model 8 --d-ff 16 "
    "--vocab-size 280 --max-len 4096 --pretrain-steps 2 --rows 2 --n-expert 12 --n-heldout 2 "
    "--iters 1 --estep-steps 4 --snippets 2 --group 2 --think-max 4 --mstep-steps 2 --infuse 12 "
    "--eval-tasks 2 --samples 1 --max-new 8 --elbo-samples 2 --save-every 2 --report false"
).split()
LOGPROBS = [
    -5.87012,
    -5.98006,
    -7.92242,
    -6.25023,
    -6.77611,
    -4.74918,
    -5.36206,
    -5.25822,
    -6.13091,
]  # of ids 21 to 29 behind 20, as the first version computed them


def test_a_checkpoint():
    model, extra = load_model(FOLDER / "base.pt")
    with torch.no_grad():
        hidden = model(torch.arange(20, 30)[None])[0]  # (10, D)
    logprobs = (hidden @ model.head_weight.T).log_softmax(-1)  # (10, V)
    assert logprobs[:9, 21:30].diagonal().tolist() == pytest.approx(LOGPROBS, abs=1e-4)
    assert extra["settings"]["pretrain_steps"] == 2


def test_a_tokenizer():
    tok = load_tokenizer(FOLDER / "tokenizer.txt")
    assert tok.decode(tok.encode("def f(xs):\n    return xs")) == "def f(xs):\n    return xs"


def test_an_unfinished_run_goes_on(tmp_path):
    """Its E-step goes on at the third step; base and NTP are not made again."""
    out = tmp_path / "run"
    shutil.copytree(FOLDER, out)
    ntp = (out / "ntp.pt").read_bytes()
    train.main([*SETTINGS, "--estep", "reinforce", "--out", str(out), "--resume"])
    rows = [json.loads(line) for line in open(out / "metrics.jsonl")]
    steps = [row["step"] for row in rows if (row["model"], row["phase"]) == ("ra3", "estep")]
    assert steps == [0, 1, 2, 3]
    assert (out / "ra3.pt").exists() and not (out / "ra3.state").exists()
    assert (out / "ntp.pt").read_bytes() == ntp
    assert {"base", "ntp", "ra3"} <= json.loads((out / "results.json").read_text()).keys()
