"""Next-token fine-tuning."""
import torch

from data import PROMPT, batch_rows, pack
from elbo import token_logprobs


def ntp_loss(model, ids, pos, doc, kind, prompts=False):
    inside = (doc[:, 1:] == doc[:, :-1]) & (kind[:, 1:] > (PROMPT if not prompts else PROMPT - 1))      # (B, T-1)
    hidden = model(ids, pos, doc)[:, :-1][inside]
    return -token_logprobs(hidden, model.head_weight, ids[:, 1:][inside])[0], kind[:, 1:][inside]
