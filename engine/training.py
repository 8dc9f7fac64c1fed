"""What every training loop shares: a model prepared for training, its optimizer, the learning rate; and its copy for inference."""

import copy

import torch

from engine import parallel
from engine.machine import compile_blocks
from engine.optim import RoundedAdamW


def inference_copy(model, cfg):
    """The model that samples and scores: itself, or a bfloat16 copy; whole on every rank."""
    model = parallel.unwrap(model)
    return (
        copy.deepcopy(model).bfloat16()
        if cfg.rollout_bf16 and model.dtype != torch.bfloat16
        else model
    )


def learning_rate(step, steps, peak, warmup):
    """Linear warm-up, constant, linear decay over the last 40% of the steps. Example: half-way through the decay -> peak / 2"""
    return peak * min(1.0, (step + 1) / max(1, warmup), (steps - step) / max(1.0, 0.4 * steps))


def adamw(model, lr, weight_decay):
    """AdamW with decay on matrices only; for bfloat16 weights that of optim.py."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if model.dtype == torch.bfloat16:
        return RoundedAdamW(groups, lr)
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)


def prepare_training(model, cfg, optimizer, state=None, weights="weights"):
    """(the model as it is trained, its optimizer), both as in a state, if there is one. optimizer: model -> Optimizer. What the model was before
    must not be used until `parallel.unwrap` gives it back."""
    if state:
        model.load_state_dict(state[weights])
    model.checkpoint = cfg.checkpoint
    compile_blocks(model, cfg)
    model = parallel.wrap(model, cfg.shard)
    opt = optimizer(model)
    if state:
        parallel.restore(opt, state["opt"])
    return model, opt
