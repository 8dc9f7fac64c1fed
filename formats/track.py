"""Metrics mirrored to TensorBoard, Weights & Biases or trackio: --track.

    python train.py --stage em --track tensorboard
    tensorboard --logdir runs/tiny-0/tensorboard

metrics.jsonl stays the record. The mirror of a model holds the settings and the numbers of all
lines of the model; words are left out. After a --resume it begins with those that were there
before. A line is a step, numbered from 0. A figure is called PHASE/KEY, such as estep/reward.
"""

import atexit
import dataclasses
import json
import os
import shutil

from config import UserError

PROJECT = "ra3"
INSTALL = {
    "tensorboard": "tensorboard==2.21.0",
    "wandb": "wandb==0.31.0",
    "trackio": "trackio==0.43.0",
}  # tracker -> the package that pip installs


def tracker_library(tracker):
    """What writes the mirrors: a writer's class, or a module. Raises UserError if it is missing."""
    try:
        if tracker == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter as library
        elif tracker == "wandb":
            import wandb as library
        else:
            import trackio as library
    except ImportError:
        raise UserError(
            f"--track {tracker} needs the package {tracker} (extra track): "
            f"pip install {INSTALL[tracker]}"
        ) from None
    return library


def check_tracker(tracker):
    """Raises UserError if a tracker is not installed, or Weights & Biases knows no account."""
    if tracker == "none":
        return
    library = tracker_library(tracker)
    if tracker == "wandb" and library.setup().settings.mode == "online":
        try:
            library.login()
        except library.errors.UsageError as e:
            raise UserError(f"--track wandb: {e} Or set WANDB_MODE=offline") from None


def open_mirror(cfg, name):
    """The mirror of a model -> a function that sends a line of metrics.jsonl to it.

    The function takes the line, a dict, and its number among the model's lines.
    """
    library = tracker_library(cfg.track)
    if cfg.track == "tensorboard":
        return tensorboard_mirror(library, cfg, name)
    folder = os.path.basename(os.path.abspath(cfg.out))
    options = dict(project=PROJECT, name=f"{folder}/{name}", group=folder)
    if cfg.track == "wandb":
        options.update(dir=cfg.out, reinit="create_new")
    mirror = library.init(**options, config=dataclasses.asdict(cfg))
    atexit.register(mirror.finish)
    return lambda row, step: mirror.log({**tagged_numbers(row), "wall_s": row["wall_s"]}, step=step)


def tensorboard_mirror(writer_of, cfg, name):
    """`open_mirror` of TensorBoard: OUT/tensorboard/NAME, in place of what was there."""
    folder = os.path.join(cfg.out, "tensorboard", name)
    shutil.rmtree(folder, ignore_errors=True)
    writer = writer_of(folder, flush_secs=10)
    atexit.register(writer.close)
    settings = json.dumps(dataclasses.asdict(cfg), indent=1)
    writer.add_text("settings", f"```json\n{settings}\n```")

    def send(row, step):
        for tag, value in tagged_numbers(row).items():
            writer.add_scalar(tag, value, step, row["wall_s"])

    return send


def tagged_numbers(row):
    """The numbers of a line by tag. Words, and what was not measured, are left out.

    Example: {"model": "ra3", "phase": "estep", "reward": 0.5} -> {"estep/reward": 0.5}
    """
    values = {}
    for key, value in row.items():
        if isinstance(value, dict):
            values.update({f"{key}/{part}": number for part, number in value.items()})
        elif key != "wall_s":
            values[key] = value
    numbers = {key: value for key, value in values.items() if isinstance(value, (int, float))}
    return {f"{row['phase']}/{key}": number for key, number in numbers.items()}
