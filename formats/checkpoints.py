"""Checkpoints of our own: config, weights, and plain values beside them.

GGUF files: gguf.py; Hugging Face's format: huggingface.py.
"""

import dataclasses
import os
import pickle

import torch

from config import UserError, writing
from model import ModelConfig, hollow

DAMAGED = (
    OSError,
    EOFError,
    RuntimeError,
    pickle.UnpicklingError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
)  # what reading a file that is no checkpoint may raise


def save_model(model, path, **extra):
    """Write config, weights and `extra` to path, whole or not at all.

    extra: plain values, tensors, lists and dicts of them.
    """
    record = {
        "config": dataclasses.asdict(model.cfg),
        "weights": model.state_dict(),
        "extra": extra,
    }
    write_whole(record, path)


def write_whole(record, path):
    """torch.save to path, whole or not at all.

    A temporary file in the same folder is flushed to the disk, then renamed.
    """
    partial = f"{path}.{os.getpid()}.part"
    try:
        with writing(path), open(partial, "wb") as f:
            torch.save(record, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def load_model(path, cfg=None, mmap=False):
    """Read what `save_model` wrote -> (Transformer on the CPU, in its saved dtype; extra).

    cfg: the ModelConfig that the caller needs, if any. mmap: leave the weights in the file until
    they are used. Raises UserError if there is no such file, if it is no checkpoint, or of another
    shape.
    """
    try:
        record = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        stored = record["config"]
        weights = record["weights"]
        extra = record["extra"]
        model = hollow(ModelConfig(**stored), weights["embed.weight"].dtype)
    except FileNotFoundError:
        raise no_checkpoint(path, "no such file") from None
    except DAMAGED as e:
        raise no_checkpoint(path, f"something else ({type(e).__name__})") from None
    wanted = stored if cfg is None else dataclasses.asdict(cfg)
    different = [
        f"{k}={stored[k]!r} and not {wanted[k]!r}" for k in stored if stored[k] != wanted[k]
    ]
    if different:
        raise no_checkpoint(
            path,
            f"one of another shape: {', '.join(different)}",
            "use the settings it was made with",
        )
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError:
        raise no_checkpoint(path, "weights that do not fit the config beside them") from None
    return model, extra


def no_checkpoint(path, found, advice="give a file that save_model wrote"):
    """The UserError for a file that is no checkpoint of the model wanted."""
    return UserError(f"{path}: expected a checkpoint, found {found}; {advice}")
