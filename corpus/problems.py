"""Problem sets for reinforcement learning: suites whose tests may be rewards, less what a benchmark holds, and a held-out part."""

import zlib

from tqdm import tqdm

from benchmarks import suites
from config import UserError
from corpus.decontaminate import checker
from domain import domain_tasks

# suites whose tests may be rewards: name -> the suite that is taken under it
TRAINING = {name: suite.trained_as for name, suite in suites.SUITES.items() if suite.trained_as}


def problems(cfg, tok, max_len):
    """(training problems, held-out problems, counts to print). Raises UserError."""
    train, held, counts = [], [], {}
    for name in dict.fromkeys(TRAINING.get(n, n) for n in cfg.suite.split(",") if n):
        if name == "domain":
            found = domain_tasks(cfg.seed, cfg.n_rl, "rl")
            held += [] if cfg.eval_suite else domain_tasks(cfg.seed, cfg.eval_tasks, cfg.eval_split)
        elif name in TRAINING or name.endswith(".jsonl"):
            found = suites.load(name, cfg.data_dir)
            if cfg.decontaminate:
                check = checker(cfg.data_dir)
                check.forget_phrases([task.prompt + task.solution for task in found])
                found = [
                    task
                    for task in found
                    if not check(task.entry_point, task.prompt + task.solution)
                ]
                tqdm.write(f"{name}: {check.line()}")
            if not cfg.eval_suite:  # by checksum: a problem is on one side in every run
                aside = [zlib.crc32(task.prompt.encode()) % 10 == 0 for task in found]
                held += [task for task, a in zip(found, aside) if a][: cfg.eval_tasks]
                found = [task for task, a in zip(found, aside) if not a]
        else:
            raise UserError(
                f"--suite {name}: expected domain, leetcode, mbpp-train or a .jsonl file"
                + ("; that one is there to be evaluated on" if name in suites.SUITES else "")
            )
        counts[name] = len(found)
        train += found
    for name in (n for n in cfg.eval_suite.split(",") if n):
        found = (
            domain_tasks(cfg.seed, cfg.eval_tasks, cfg.eval_split)
            if name == "domain"
            else suites.load(name, cfg.data_dir)
        )
        held += found[: cfg.eval_tasks]
    room = max_len - cfg.max_new
    kept = [
        [task for task in some if task.prompt and len(tok.start(task.prompt)[0]) <= room]
        for some in (train, held)
    ]
    counts["too long"] = len(train) - len(kept[0])
    if not kept[0]:
        raise UserError(
            f"--suite {cfg.suite}: no problem is left of {len(train)}, with prompts of at most {room} tokens; give other problems or a smaller "
            "--max-new"
        )
    return *kept, counts
