"""Problem sets for reinforcement learning: training problems, less what benchmarks hold; held-out.

A suite's tests may be rewards if TRAINING names it.
"""

import zlib

from tqdm import tqdm

from benchmarks import suites
from config import UserError, stages_of
from corpus.decontaminate import checker
from domain import domain_tasks

# suites whose tests may be rewards: name -> the suite that is taken under it
TRAINING = {name: suite.trained_as for name, suite in suites.SUITES.items() if suite.trained_as}


def problems(cfg, tok, max_len):
    """(training problems, held-out problems, counts to print). Raises UserError."""
    train = []
    heldout = []
    counts = {}
    for name in dict.fromkeys(TRAINING.get(n, n) for n in cfg.suite.split(",") if n):
        of_suite, aside = training_suite(cfg, name)
        counts[name] = len(of_suite)
        train += of_suite
        heldout += aside[: cfg.eval_tasks]
    for name in (n for n in cfg.eval_suite.split(",") if n):
        heldout += evaluation_suite(cfg, name)[: cfg.eval_tasks]
    room = max_len - cfg.max_new
    fitting = that_fit(train, tok, room)
    counts["too long"] = len(train) - len(fitting)
    if not fitting:
        raise UserError(
            f"--suite {cfg.suite}: no problem is left of {len(train)}, with prompts of at most "
            f"{room} tokens; give other problems or a smaller --max-new"
        )
    return fitting, that_fit(heldout, tok, room), counts


def training_suite(cfg, name):
    """A suite of --suite -> (problems to train on, problems set aside). Raises UserError."""
    if name == "domain":
        aside = [] if cfg.eval_suite else evaluation_suite(cfg, name)
        return domain_tasks(cfg.seed, cfg.n_rl, "rl", stages_of(cfg.stages)), aside
    if name not in TRAINING.values() and not name.endswith(".jsonl"):
        hint = "; that one is there to be evaluated on" if name in suites.SUITES else ""
        raise UserError(
            f"--suite {name}: expected domain, leetcode, mbpp-train or a .jsonl file{hint}"
        )
    tasks = suites.load(name, cfg.data_dir)
    if cfg.decontaminate:
        tasks = decontaminated(name, tasks, cfg.data_dir)
    if cfg.eval_suite:
        return tasks, []
    by_side = {True: [], False: []}
    for task in tasks:  # by checksum: a problem is on one side in every run
        by_side[zlib.crc32(task.prompt.encode()) % 10 == 0].append(task)
    return by_side[False], by_side[True]


def decontaminated(name, tasks, data_dir):
    """The problems that hold no problem of a benchmark. Prints the account."""
    check = checker(data_dir)
    check.forget_phrases([task.prompt + task.solution for task in tasks])
    clean = [task for task in tasks if not check(task.entry_point, task.prompt + task.solution)]
    tqdm.write(f"{name}: {check.line()}")
    return clean


def evaluation_suite(cfg, name):
    """Problems to evaluate on. Raises UserError."""
    if name == "domain":
        return domain_tasks(cfg.seed, cfg.eval_tasks, cfg.eval_split, stages_of(cfg.stages))
    suites.check_suite(name, ["domain"])
    return suites.load(name, cfg.data_dir)


def that_fit(tasks, tok, room):
    """The problems whose prompts are not empty and have at most `room` tokens."""
    return [task for task in tasks if task.prompt and len(tok.start(task.prompt)[0]) <= room]
