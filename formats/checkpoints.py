"""Checkpoints of our own: config, weights, and plain values beside them. GGUF files: gguf.py; Hugging Face's format: huggingface.py."""

import dataclasses
import os
import pickle

import torch

from config import UserError
from model import ModelConfig, hollow

# ---------------------------------------------------------------------------------------------------------------- checkpoints


def save_model(model, path, **extra):
    """Write config, weights and `extra` (plain values, tensors, lists and dicts of them) to path, whole or not at all."""
    write_whole(
        {"config": dataclasses.asdict(model.cfg), "weights": model.state_dict(), "extra": extra},
        path,
    )


def write_whole(record, path):
    """torch.save to path, whole or not at all: a temporary file in the same folder, flushed to the disk, then renamed."""
    part = f"{path}.{os.getpid()}.part"
    try:
        with open(part, "wb") as f:
            torch.save(record, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    finally:
        if os.path.exists(part):
            os.remove(part)


def load_model(path, cfg=None, mmap=False):
    """Read what `save_model` wrote -> (Transformer on the CPU, in the dtype it was saved in; extra).

    cfg: the ModelConfig that the caller needs, if any. mmap: leave the weights in the file until they are used. Raises UserError if there is no such file, if it is no checkpoint, or of another shape.
    """

    def refuse(found, do="give a file that save_model wrote"):
        return UserError(f"{path}: expected a checkpoint, found {found}; {do}")

    try:
        record = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        have, weights, extra = record["config"], record["weights"], record["extra"]
        model = hollow(ModelConfig(**have), weights["embed.weight"].dtype)
    except FileNotFoundError:
        raise refuse("no such file") from None
    except (
        OSError,
        EOFError,
        RuntimeError,
        pickle.UnpicklingError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
    ) as e:
        raise refuse(f"something else ({type(e).__name__})") from None
    want = have if cfg is None else dataclasses.asdict(cfg)
    other = [f"{k}={have[k]!r} and not {want[k]!r}" for k in have if have[k] != want[k]]
    if other:
        raise refuse(
            f"one of another shape: {', '.join(other)}", "use the settings it was made with"
        )
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError:
        raise refuse("weights that do not fit the config beside them") from None
    return model, extra
