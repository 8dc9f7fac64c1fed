"""What every training loop shares: the prepared model, its optimizer, the learning rate."""

import copy

import torch

from config import ROUNDING
from engine import parallel
from engine.machine import compile_blocks
from engine.optim import RoundedAdamW


def inference_copy(model, cfg):
    """The model that samples and scores: itself, or a bfloat16 copy; replicated on every rank."""
    model = parallel.unwrap(model)
    if cfg.rollout_bf16 and model.dtype != torch.bfloat16:
        return copy.deepcopy(model).bfloat16()
    return model


def learning_rate(step, steps, peak, warmup):
    """Linear warm-up, a plateau, and linear decay over the last 40% of the steps.

    Example: half-way through the decay -> peak / 2
    """
    rise = (step + 1) / max(1, warmup)
    decay = (steps - step) / max(1.0, 0.4 * steps)
    return peak * min(1.0, rise, decay)


def adamw(model, lr, weight_decay, seed=(0, ROUNDING)):
    """AdamW with decay on matrices only; optim.py's, with this seed, for weights in bfloat16."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if model.dtype == torch.bfloat16:
        return RoundedAdamW(groups, lr, seed=seed)
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)


def prepare_training(model, cfg, optimizer, state=None, weights="weights"):
    """Prepare a model for training -> (model, optimizer).

    Loads the weights, compiles, wraps for DDP or FSDP, makes the optimizer and restores it.
    Do not use the model passed in afterwards; `parallel.unwrap` gives it back.

    optimizer  a function, model -> Optimizer
    state      of an unfinished stage, with `opt` and the weights under this name; or None
    """
    if state:
        model.load_state_dict(state[weights])
    model.checkpoint = cfg.checkpoint
    compile_blocks(model, cfg)
    model = parallel.wrap(model, cfg.shard)
    opt = optimizer(model)
    if state:
        parallel.restore_optimizer(opt, state["opt"])
    return model, opt
