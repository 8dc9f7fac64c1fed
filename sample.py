"""Write on from a prompt: the sampling loop, plainly, and a command.

    python sample.py --checkpoint runs/tiny-0/ra3.pt --prompt FILE        a file, or the text itself
    echo 'def f(x):' | python sample.py --checkpoint runs/tiny-0/ra3.pt     standard input
    python sample.py --checkpoint runs/tiny-0/ra3.pt --interactive          prompt after prompt

    y_k ~ softmax(logits(x, y_<k) / temperature), cut to its top_p nucleus               (sampling)

Thoughts (comments that the model writes) are in colour on a terminal. NO_COLOR=1 turns that off.
Sample j of prompt i draws its uniforms from a generator seeded by (seed, i, j) and picks tokens by
inverse CDF. engine/sample.py draws the same tokens for many prompts at once (tests/test_sample.py).

Shapes: V vocabulary.
"""

import dataclasses
import json
import os
import re
import sys

import numpy as np
import torch

from config import UserError, command, parse, sample_seed
from engine.machine import set_up
from engine.sample import Completion
from evaluate import open_checkpoint

# ---------------------------------------------------------------- the loop


@torch.inference_mode()
def write_on(model, ids, uniforms, temperature=1.0, top_p=1.0, forbid=()):
    """Yield (token, log-probability) one at a time, at most len(uniforms) (sampling).

    ids      token ids to go on from, at least one
    forbid   token ids that the model cannot write

    The log-probability is at temperature 1, uncut, given that the token is none of `forbid`.
    """
    cache = model.new_cache(1, len(ids) + len(uniforms))
    unread = list(ids)
    read = 0
    for u in uniforms:
        pos = torch.arange(read, read + len(unread), device=model.device)[None]
        tokens = torch.tensor([unread], device=model.device)
        hidden = model(tokens, pos=pos, cache=cache, reach=read + len(unread))[0, -1]  # (D,)
        read += len(unread)
        logits = hidden.float() @ model.head_weight.float().T  # (V,)
        if len(forbid):
            logits[list(forbid)] = -torch.inf
        token = pick_token(logits, u, temperature, top_p)
        unread = [token]
        yield token, float(logits.softmax(-1)[token].log())


def pick_token(logits, u, temperature=1.0, top_p=1.0):
    """The token at which the cumulative distribution passes u; the likeliest at temperature 0.

    Example: log [.5, .5, 0], .7 -> 1
    """
    if temperature == 0:
        return int(logits.argmax())
    probs = logits.softmax(-1) if temperature == 1 else (logits / temperature).softmax(-1)  # (V,)
    names = torch.arange(len(probs), device=probs.device)
    if top_p < 1:  # the smallest set of likeliest tokens that holds top_p
        probs, names = probs.sort(descending=True)
        probs = probs.masked_fill(probs.cumsum(-1) - probs >= top_p, 0)
    cdf = probs.cumsum(-1)
    u = torch.tensor(u, dtype=cdf.dtype, device=cdf.device).clamp(max=1 - 2**-24)
    k = int(torch.searchsorted(cdf, u * cdf[-1], right=True))
    return int(names[min(k, len(cdf) - 1)])


def plain_generate(
    model,
    prompts,
    max_new,
    eos,
    *,
    temperature=1.0,
    top_p=1.0,
    seed=0,
    seeds=None,
    n=1,
    stop=None,
    decode=None,
    forbid=(),
    on_done=None,
    heads=None,
    **unused,
):
    """n Completions for each prompt, one after the other: a list of lists.

    The twin of engine.sample.generate, with its arguments; what makes that fast is unused here.
    """
    stop = [stop] if isinstance(stop, str) else list(stop or [])
    end_ids = {eos} if isinstance(eos, int) else set(eos)
    everything = []
    for i, prompt in enumerate(prompts):
        everything.append([])
        head = heads[i] if heads else ""
        for j in range(n):
            rng = np.random.default_rng(sample_seed(seed, i if seeds is None else seeds[i], j))
            uniforms = rng.random(min(max_new, model.cfg.max_len - len(prompt)))
            done = Completion([], [], False)
            for token, logprob in write_on(model, prompt, uniforms, temperature, top_p, forbid):
                done.ids.append(token)
                done.logprobs.append(logprob)
                done.finished = token in end_ids or has_stop(head, done.ids, stop, decode)
                if done.finished:
                    break
            everything[-1].append(done)
            if on_done:
                on_done(i, j, done)
    return everything


def has_stop(head, ids, stop, decode):
    """Does the text of these ids hold a stop string? head: the text that a string may begin in."""
    return bool(stop) and any(text in head + decode(ids) for text in stop)


# ---------------------------------------------------------------- the command

DIM, RESET = "\x1b[36m", "\x1b[0m"  # cyan; off


def wants_colour(stream):
    """On a terminal, unless NO_COLOR is set."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


class Printer:
    """Prints tokens as text, those of thoughts in colour."""

    def __init__(self, tok, stream):
        self.tok = tok
        self.stream = stream
        self.colour = wants_colour(stream)
        self.unshown = []  # tokens that end within a character
        self.thinking = False

    def token(self, token):
        self.thinking = self.thinking or token in self.tok.thought_ids
        self.thinking = self.thinking and token not in self.tok.stop_ids
        self.unshown.append(token)
        text = self.tok.decode(self.unshown)
        if not text.endswith("\ufffd"):
            self.unshown = []
            self.text(text, self.thinking)
        self.thinking = self.thinking and token not in self.tok.closing_ids

    def text(self, text, thinking=False):
        marked = f"{DIM}{text}{RESET}" if thinking and self.colour and text else text
        self.stream.write(marked)
        self.stream.flush()


def read_prompt(prompt):
    """The text of --prompt: a file's, the text itself, or standard input's. Raises UserError."""
    if prompt is None:
        if sys.stdin.isatty():
            raise UserError(
                "no prompt: expected --prompt FILE or text, standard input, or --interactive"
            )
        return "".join(stdin_lines(sys.stdin))
    if not os.path.exists(prompt):
        if re.fullmatch(r"\S+(/\S+|\.(py|txt|md|jsonl?))", prompt):
            raise UserError(
                f"--prompt {prompt}: no such file; give a file's path, or the text itself"
            )
        return prompt
    try:
        with open(prompt, encoding="utf-8") as f:
            return f.read()
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(
            f"--prompt {prompt}: cannot be read as text ({e}); give a text file"
        ) from None


def stdin_lines(stream):
    """Yield the lines of standard input. Raises UserError if they are no text."""
    try:
        yield from stream
    except UnicodeDecodeError as e:
        raise UserError(f"standard input: cannot be read as text ({e}); give text") from None


def interactive_prompts(stream):
    """Yield prompts from a terminal, each ended by an empty line, until the end of input."""
    lines = []
    print("a prompt, then an empty line; Ctrl-D ends", file=sys.stderr)
    for line in stdin_lines(stream):
        if line.strip():
            lines.append(line)
        elif lines:
            yield "".join(lines)
            lines = []
    if lines:
        yield "".join(lines)


def with_preset_of(cfg, checkpoint):
    """The settings with the preset and the model that a checkpoint's folder notes, if it does."""
    path = os.path.join(os.path.dirname(checkpoint), "settings.json")
    if cfg.preset != "tiny" or not os.path.exists(path):
        return cfg
    with open(path) as f:
        noted = json.load(f)
    return dataclasses.replace(cfg, preset=noted["preset"], model=noted["model"])


def print_samples(model, tok, text, cfg, number):
    """Print cfg.samples continuations of a prompt, the prompt before each. Raises UserError.

    The prompt loses the newlines at its end, as in training: the model writes newline and
    indentation as one token.
    """
    text = text.rstrip("\n")
    ids, head = tok.start(text)
    if not text.strip():
        raise UserError("the prompt is empty: expected some code to write on from")
    if len(ids) >= model.cfg.max_len:
        raise UserError(
            f"the prompt has {len(ids)} tokens, and the model {model.cfg.max_len} positions; "
            "give a shorter one"
        )
    for j in range(cfg.samples):
        if cfg.samples > 1:
            print(f"--- sample {j + 1} of {cfg.samples}")
        printer = Printer(tok, sys.stdout)
        printer.text(text + head)
        rng = np.random.default_rng(sample_seed(cfg.seed, number, j))
        uniforms = rng.random(min(cfg.max_new, model.cfg.max_len - len(ids)))
        for token, _ in write_on(model, ids, uniforms, cfg.temperature):
            if token in tok.end_ids:
                break
            printer.token(token)
        print()


OPTIONS = {
    "--checkpoint": dict(
        default="", metavar="FILE", help="the model; default: the preset's, as loaded"
    ),
    "--prompt": dict(
        metavar="FILE",
        help="a file, or the text itself; default: standard input; newlines at its end are left "
        "out, because the model writes its own",
    ),
    "--samples": dict(
        type=int, default=1, metavar="N", help="continuations of a prompt (default 1)"
    ),
    "--greedy": dict(action="store_true", help="the likeliest token each time; as --temperature 0"),
    "--interactive": dict(
        action="store_true", help="read prompt after prompt, each ended by an empty line"
    ),
}


def main(argv):
    cfg, args = parse(argv, OPTIONS, __doc__)
    if args.samples < 1:
        raise UserError(f"--samples {args.samples}: expected at least 1")
    if args.interactive and args.prompt is not None:
        raise UserError("--interactive --prompt: expected one of the two; leave one out")
    cfg.samples = args.samples
    cfg.temperature = 0.0 if args.greedy else cfg.temperature
    set_up(cfg)
    prompts = interactive_prompts(sys.stdin) if args.interactive else [read_prompt(args.prompt)]
    model, tok = open_checkpoint(with_preset_of(cfg, args.checkpoint), args.checkpoint)
    for number, text in enumerate(prompts):
        try:
            print_samples(model, tok, text, cfg, number)
        except UserError as e:
            if not args.interactive:
                raise
            print(e, file=sys.stderr)


if __name__ == "__main__":
    command(main)
