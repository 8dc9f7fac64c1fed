"""How good a model is: pass@k by running what it writes, and the bound on held-out expert code.

    pass@k = 1 - C(n - c, k) / C(n, k),    n samples of a problem, c of them correct (arXiv 2107.03374; unbiased)

    python evaluate.py --suite humaneval --preset smollm2                              SmolLM2 as loaded, greedy
    python evaluate.py --suite humaneval --preset smollm2 --checkpoint runs/smollm2-0/ra3.pt --samples 20 --temperature 0.8
    python evaluate.py --suite domain --checkpoint runs/tiny-0/ra3.pt                 the built-in domain's held-out tasks

The bound is estimated with the model as its own q: thoughts are sampled as it would think, and the same model scores the expert's lines.
Its difference to `elbo_no_think`, the same model's log-likelihood when nothing is ever thought, is what thinking is worth to it.
"""
import copy
import json
import math
import os
import sys

import numpy as np
from tqdm import tqdm

from config import UserError, parse
from data import gguf_tokenizer, load_tokenizer
from estep import merge, rollout, summary
from model import device_of, load_gguf, load_model, set_threads, smollm2_path
from sample import generate
from sandbox import Job, grade
from tasks import HUMANEVAL_STOPS, domain_tasks, humaneval, program_of


def pass_at_k(n, c, k):
    """Unbiased probability that one of k samples is correct. Example: pass_at_k(5, 2, 1) -> 0.4.   Raises ValueError if n < k."""
    if n < k:
        raise ValueError(f"pass@{k} needs at least {k} samples a problem; there are {n}")
    return 1.0 if n - c < k else float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def open_model(cfg, checkpoint=""):
    """(model, tokenizer) of a checkpoint, or of the preset as loaded if none is given. Raises UserError."""
    if cfg.preset == "smollm2":
        path = smollm2_path()
        tok = gguf_tokenizer(path)
        model = load_model(checkpoint)[0] if checkpoint else load_gguf(path)[0]
    elif checkpoint:
        model, path = load_model(checkpoint)[0], os.path.join(os.path.dirname(checkpoint), "tokenizer.txt")
        if not os.path.exists(path):
            raise UserError(f"{checkpoint}: no tokenizer.txt beside it; expected a model of the built-in domain (of SmolLM2: --preset smollm2)")
        tok = load_tokenizer(path)
    else:
        raise UserError("--preset tiny has no weights of its own: give --checkpoint, such as runs/tiny-0/ra3.pt")
    if model.cfg.vocab_size < tok.vocab_size:
        raise UserError(f"{checkpoint}: its vocabulary has {model.cfg.vocab_size} ids, the tokenizer of --preset {cfg.preset} {tok.vocab_size}; "
                        "give the preset that the checkpoint was made with")
    return model.to(device_of(cfg)), tok


def for_rollouts(model, cfg):
    """The model that samples and scores: itself, or a bfloat16 copy."""
    return copy.deepcopy(model).bfloat16() if cfg.rollout_bf16 else model


def solve(model, tok, tasks, n, temperature, max_new, seed, stops=(), desc="sampling"):
    """Sample n programs a task and run their tests -> list of {task_id, completion, verdict, seconds}, n a task, in order."""
    prompts = [tok.encode(task.prompt) for task in tasks]
    for task, prompt in zip(tasks, prompts):
        if len(prompt) >= model.cfg.max_len:
            raise UserError(f"{task.name}: its prompt has {len(prompt)} tokens; the model's max_len is {model.cfg.max_len}")
    done = generate(model, prompts, max_new, tok.eos, temperature, seed=seed, n=n, stop=list(stops), decode=tok.decode,
                    progress=True, desc=desc, batch=128)
    out = []
    for task, completions in zip(tasks, done):
        for completion in completions:
            text = tok.decode(completion.ids)
            cut = min((i for s in stops if (i := text.find(s)) >= 0), default=len(text))
            out.append({"task_id": task.name, "completion": text[:cut]})
    jobs = [Job(program_of(task, row["completion"]), task.tests, task.entry_point)
            for task, row in zip((t for t in tasks for _ in range(n)), out)]
    for row, result in zip(out, grade(jobs, progress=True, desc="grading")):
        row.update(verdict=result.verdict, seconds=round(result.seconds, 3))
    return out


def score(rows, n, ks=(1, 5)):
    """{pass@k: mean over problems} of solve's rows, for every k <= n."""
    passed = np.array([row["verdict"] == "passed" for row in rows]).reshape(-1, n).sum(1)
    return {f"pass@{k}": float(np.mean([pass_at_k(n, int(c), k) for c in passed])) for k in ks if k <= n}


def rollouts_of(model, tok, snippets, G, cfg, seed, desc):
    """G rollouts of a model over each snippet, with itself as q, in float32 and with a progress bar -> Rollouts. At c = inf it never thinks."""
    at_once = max(1, 128 // G)
    return merge([rollout(model, model, tok, snippets[i:i + at_once], G, cfg.think_max, seed, horizon=cfg.horizon,
                          rate=0.0 if cfg.c == math.inf else None, numbers=list(range(len(snippets)))[i:i + at_once])
                  for i in tqdm(range(0, len(snippets), at_once), desc=desc, unit="batch", delay=2, leave=False)])


def bound(model, tok, snippets, cfg, hard=None):
    """The bound of a model on held-out snippets, with itself as q -> dict of floats (names defined in the README).
    hard: for each snippet the indices of its hard lines, if known."""
    rolls = rollouts_of(model, tok, snippets, cfg.elbo_samples, cfg, (cfg.seed, 77), "bound")
    return summary(rolls, 0.0 if cfg.c == math.inf else cfg.c, hard)         # inf times no thoughts is not a number


def main(argv):
    cfg, args = parse(argv, {
        "--suite": dict(default="humaneval", choices=["humaneval", "domain"], help="problems (default humaneval)"),
        "--checkpoint": dict(default="", metavar="FILE", help="model to evaluate; default: the preset's model as loaded"),
        "--samples-out": dict(default="", metavar="FILE", help="write completions and verdicts there, a JSON line each"),
    }, __doc__.split("\n")[0])
    set_threads(cfg)
    model, tok = open_model(cfg, args.checkpoint)
    if args.suite == "domain":
        tasks, stops = domain_tasks(cfg.seed, cfg.eval_tasks, cfg.eval_split), ()
    else:
        tasks, stops = humaneval(), HUMANEVAL_STOPS
    n = 1 if cfg.temperature == 0 else cfg.samples               # greedy samples are all the same
    try:
        out = open(args.samples_out or os.devnull, "w")
    except OSError as e:
        raise UserError(f"--samples-out {args.samples_out}: cannot be written ({e.strerror}); give another path") from None
    rows = solve(for_rollouts(model, cfg), tok, tasks, n, cfg.temperature, cfg.max_new, cfg.seed, stops)
    with out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    scores = score(rows, n, (1, 5, 10))
    error = math.sqrt(scores["pass@1"] * (1 - scores["pass@1"]) / len(tasks))
    verdicts = {v: sum(r["verdict"] == v for r in rows) for v in sorted({r["verdict"] for r in rows})}
    print(json.dumps({"suite": args.suite, "problems": len(tasks), "samples": n, "temperature": cfg.temperature,
                      **{k: round(v, 4) for k, v in scores.items()}, "standard_error": round(error, 4), "verdicts": verdicts}))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as e:
        print(f"evaluate.py: {e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
