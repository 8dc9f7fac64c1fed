"""How good a model is: pass@k by running what it writes, and the bound on held-out expert code.

    python evaluate.py --suite humaneval --preset smollm2            SmolLM2 as loaded, greedy
    python evaluate.py --suite humaneval,mbpp+ --preset smollm2 \\
        --checkpoint runs/smollm2-0/ra3.pt --samples 20 --temperature 0.8
    python evaluate.py --suite humaneval \\
        --completions runs/smollm2-0/samples-ra3-humaneval+.jsonl    the same samples, other tests
    python evaluate.py --suite domain --checkpoint runs/tiny-0/ra3.pt

Suites: `python -m benchmarks --list`. pass@k and its intervals: benchmarks/rates.py.
Samples and verdicts go to a .jsonl, {"task_id", "completion", "verdict", "seconds"} a line.
They are written as they are graded: --resume goes on where an interrupted evaluation stopped.

The bound is estimated with the model as its own q: thoughts are sampled as it would think, and the
same model scores the expert's lines. What thinking is worth to it is the difference to
`elbo_no_think`, the same model's log-likelihood when nothing is ever thought.
"""

import collections
import contextlib
import copy
import dataclasses
import functools
import json
import os
import sys
import typing

import torch

from benchmarks import suites
from benchmarks.rates import (
    intervals_at_k,
    mean_pass_at_k,
    pass_rates,
    rate_interval,
    seed_interval,
)
from benchmarks.samples import SampleFile, path_of, read_completions
from benchmarks.sanitise import sanitised
from config import (
    BOUND,
    EVALUATE,
    SHOW,
    UserError,
    command,
    parse,
    program_name,
    read_object,
    stages_of,
    writing,
)
from domain import domain_tasks
from elbo import never_thinks, prior_of, summary
from engine import parallel
from engine.backend import FAST
from engine.machine import device_of, set_up
from engine.rollouts import rows_of_rollouts
from engine.sample import Completion
from engine.training import inference_copy
from formats import huggingface
from formats.checkpoints import load_model
from formats.tokenizers import check_checkpoint, load_tokenizer
from grader.grade import grade
from grader.messages import HarnessError
from tasks import job_of, until_stop

# ---------------------------------------------------------------- programs


class SampledProgram(typing.NamedTuple):
    """What a model wrote for a task."""

    prompt: list  # token ids
    completion: Completion
    text: str  # what is graded, after the prompt


def sample_programs(
    model, tok, tasks, *, max_new, seeds, on_program=None, backend=FAST, **sampling
):
    """Sample programs for tasks, each up to its own task's stop sequences -> [[SampledProgram]].

    seeds        one int a task, which with sampling["seed"] fixes its samples
    on_program   called as on_program(task index, sample index, SampledProgram) once it is written
    sampling     what `generate` takes: n, temperature, seed, batch, forbid, progress, desc
    Tasks with the same stop sequences are sampled together.
    Raises UserError for a prompt that leaves no room.
    """
    prompts = [tok.start(task.prompt) for task in tasks]  # ids, and what begins the completion
    check_room(tasks, prompts, model.cfg.max_len)
    programs = [[] for _ in tasks]

    def program(i, completion):
        ids, head = prompts[i]
        written = completion.ids
        if written and written[-1] in tok.end_ids:
            written = written[:-1]
        return SampledProgram(
            ids, completion, until_stop(head + tok.decode(written), tasks[i].stops)
        )

    for stops in dict.fromkeys(task.stops for task in tasks):
        indices = [i for i, task in enumerate(tasks) if task.stops == stops]

        def on_done(k, j, completion, indices=indices):
            on_program(indices[k], j, program(indices[k], completion))

        completions = backend.generate(
            model,
            [prompts[i][0] for i in indices],
            max_new,
            tok.end_ids,
            seeds=[seeds[i] for i in indices],
            stop=list(stops),
            heads=[prompts[i][1] for i in indices],
            decode=tok.decode,
            on_done=on_done if on_program else None,
            **sampling,
        )
        for i, of_task in zip(indices, completions, strict=True):
            programs[i] = [program(i, completion) for completion in of_task]
    return programs


def check_room(tasks, prompts, max_len):
    """Raise UserError for a prompt that leaves no room. prompts: what tok.start gives, a task."""
    for task, (ids, _) in zip(tasks, prompts, strict=True):
        if len(ids) >= max_len:
            raise UserError(
                f"{task.name}: its prompt has {len(ids)} tokens; the model's max_len is {max_len}"
            )


def sample_and_grade(
    model, tok, tasks, *, n, numbers=None, sanitise=False, progress=True, **sampling
):
    """Sample n programs a task and run their tests -> rows, n a task, in order.

    numbers     one int a task (default its index), which with the seed fixes its samples
    sampling    temperature, max_new, seed, forbid, desc, as `generate` takes them
    A row is {"task_id", "completion", "verdict", "seconds"}.
    Ranks share the tasks out, and all get all rows.
    """
    numbers = list(range(len(tasks))) if numbers is None else numbers
    tasks = parallel.shard(tasks)
    programs = sample_programs(
        model,
        tok,
        tasks,
        n=n,
        seeds=parallel.shard(numbers),
        progress=progress,
        **sampling,
    )
    texts = [[program.text for program in of_task] for of_task in programs]
    return grade_completions(tasks, texts, sanitise, progress)


def grade_completions(tasks, completions, sanitise=False, progress=True, kind="completion"):
    """Run the tests of this rank's share of tasks -> the rows of all ranks, in order.

    completions   a list of texts a task
    kind          what a text is: "completion", or "solution": a whole program
    """
    pairs = [(task, text) for task, texts in zip(tasks, completions, strict=True) for text in texts]
    jobs = [job_of(task, text) for task, text in pairs]
    if kind == "solution":
        jobs = [
            dataclasses.replace(job, program=f"{text}\n")
            for job, (_, text) in zip(jobs, pairs, strict=True)
        ]
    if sanitise:
        jobs = [sanitised(job) for job in jobs]
    results = grade(jobs, progress=progress, desc="grading", workers=parallel.workers())
    rows = iter(
        [
            {
                "task_id": task.name,
                kind: text,
                "verdict": result.verdict,
                "seconds": round(result.seconds, 3),
            }
            for (task, text), result in zip(pairs, results, strict=True)
        ]
    )
    by_task = parallel.unshard([[next(rows) for _ in texts] for texts in completions])
    return [row for of_task in by_task for row in of_task]


def count_verdicts(rows):
    """Example: {"passed": 3, "timeout": 1}"""
    counts = collections.Counter(row["verdict"] for row in rows)
    return {verdict: counts[verdict] for verdict in sorted(counts)}


# ---------------------------------------------------------------- the bound


def rollouts_of(model, tok, snippets, G, cfg, seed, desc, backend=FAST):
    """G rollouts of a model over each snippet, with itself as q, in float32 -> Rollouts.

    At c = inf it never thinks.
    """
    model = model if model.dtype == torch.float32 else copy.deepcopy(model).float()
    return backend.rollouts(
        model,
        model,
        tok,
        snippets,
        G,
        cfg.think_max,
        seed,
        numbers=list(range(len(snippets))),
        at_once=max(1, rows_of_rollouts(model, snippets, cfg.think_max) // G),
        desc=desc,
        horizon=cfg.horizon,
        rate=0.0 if never_thinks(cfg) else None,
    )


def heldout_rollouts(model, tok, snippets, cfg, backend=FAST):
    """The rollouts that the bound is a mean of: cfg.elbo_samples a snippet -> Rollouts."""
    seed = (cfg.seed, BOUND)
    return rollouts_of(model, tok, snippets, cfg.elbo_samples, cfg, seed, "bound", backend)


def heldout_elbo(model, tok, snippets, cfg, hard=None, backend=FAST):
    """The bound of a model on held-out snippets, with itself as q -> dict of floats.

    hard: for each snippet the indices of its hard lines, if known.
    """
    rolls = heldout_rollouts(model, tok, snippets, cfg, backend)
    return summary(rolls, prior_of(cfg, tok, model.cfg.vocab_size), hard)


# ---------------------------------------------------------------- the command


def open_checkpoint(cfg, checkpoint=""):
    """(model, tokenizer) of a checkpoint, or of the preset as loaded if none is given.

    Raises UserError.
    """
    if cfg.preset == "tiny" and not checkpoint:
        raise UserError(
            "--preset tiny has no weights of its own: give --checkpoint, such as runs/tiny-0/ra3.pt"
        )
    model, extra = load_model(checkpoint) if checkpoint else (None, {})
    if cfg.preset == "tiny":
        tok = domain_tokenizer(checkpoint)
    else:
        path = huggingface.find(cfg)
        tok = huggingface.open_tokenizer(path)
        model = model or huggingface.open_pretrained(path)
    if checkpoint:
        check_checkpoint(checkpoint, extra, tok, cfg.preset)
    if model.cfg.vocab_size < tok.vocab_size:
        raise UserError(
            f"{checkpoint}: its vocabulary has {model.cfg.vocab_size} ids, the tokenizer of "
            f"--preset {cfg.preset} {tok.vocab_size}; give the preset that the checkpoint was made "
            "with"
        )
    return model.to(device_of(cfg)), tok


def domain_tokenizer(checkpoint):
    """The tokenizer beside a checkpoint of the built-in domain. Raises UserError."""
    path = os.path.join(os.path.dirname(checkpoint), "tokenizer.txt")
    if not os.path.exists(path):
        raise UserError(
            f"{checkpoint}: no tokenizer.txt beside it; expected a model of the built-in domain "
            "(of another: its --preset, such as smollm2)"
        )
    return load_tokenizer(path)


OPTIONS = {
    "--suite": dict(
        default="humaneval",
        metavar="NAME[,NAME...]",
        help="domain, suites of `python -m benchmarks --list`, or .jsonl files in HumanEval's "
        "format (default humaneval)",
    ),
    "--checkpoint": dict(
        default="",
        metavar="FILE",
        help="model to evaluate; default: the preset's model as loaded",
    ),
    "--out": dict(
        default="",
        metavar="FOLDER",
        help="folder of what is written (default: that of --completions or of the checkpoint, "
        "else runs/PRESET-SEED)",
    ),
    "--samples-out": dict(
        default="",
        metavar="FILE",
        help="completions and verdicts; the suite's name is added where there are several "
        "(default: in --out samples-MODEL-SUITE.jsonl, at temperature 0 "
        "greedy-MODEL-SUITE.jsonl, of --completions FILE-graded-SUITE.jsonl)",
    ),
    "--completions": dict(
        default="",
        metavar="FILE",
        help="grade these with the suite's tests instead of sampling: a .jsonl of task_id and "
        "completion, as --samples-out writes it, or of task_id and solution, a whole program, as "
        "EvalPlus writes it; problems that it does not hold are left out "
        "(humaneval's tests for samples of humaneval+, or with --sanitise)",
    ),
    "--sanitise": dict(
        action="store_true",
        help="as EvalPlus: of the program, keep what the entry point needs of the longest part "
        "that parses",
    ),
    "--limit": dict(
        type=int,
        default=0,
        metavar="N",
        help="the first N problems of each suite only; 0: all",
    ),
}


def main(argv):
    cfg, args = parse(argv, OPTIONS, __doc__.split("\n")[0])
    parallel.settle(cfg)
    set_up(cfg)
    names = [name for name in args.suite.split(",") if name]
    if not names:
        raise UserError(f"--suite {args.suite}: expected at least one name, such as humaneval")
    if args.limit < 0:
        raise UserError(f"--limit {args.limit}: expected a number of at least 0; 0: all problems")
    problem_sets = {name: load_problems(name, cfg)[: args.limit or None] for name in names}
    paths = {name: path_of(cfg, args, name, len(names) > 1) for name in names}
    if args.completions:
        for name, tasks in problem_sets.items():
            print_score(*grade_suite(name, tasks, cfg, args, paths[name]))
        return
    model, tok = open_checkpoint(cfg, args.checkpoint)
    model = inference_copy(model, cfg)
    for name, tasks in problem_sets.items():
        print_score(*sample_suite(model, tok, name, tasks, cfg, args, paths[name]))


def load_problems(name, cfg):
    """The problems of a suite, of a file, or of the built-in domain. Raises UserError."""
    if name == "domain":
        return domain_tasks(cfg.seed, cfg.eval_tasks, cfg.eval_split, stages_of(cfg.stages))
    suites.check_suite(name, ["domain"])
    return suites.load(name, cfg.data_dir)


def grade_suite(name, tasks, cfg, args, path):
    """Grade the completions of a file -> (its SampleFile, how they were made). Raises UserError."""
    kind, completions = read_completions(args.completions, tasks)
    if os.path.realpath(path) == os.path.realpath(args.completions):
        raise UserError(
            f"--samples-out {path}: this is what --completions reads; give another path"
        )
    tasks = [task for task in tasks if task.name in completions]
    n = len(completions[tasks[0].name])
    source = {"completions": args.completions}
    settings = dict(suite=name, **source, samples=n, sanitise=args.sanitise)

    def grade_some(some_tasks, start):
        texts = [completions[task.name] for task in some_tasks]
        return grade_completions(
            parallel.shard(some_tasks), parallel.shard(texts), args.sanitise, kind=kind
        )

    return collect_rows(SampleFile(path, settings, n), tasks, cfg.resume, grade_some), source


def sample_suite(model, tok, name, tasks, cfg, args, path):
    """Sample and grade a suite -> (its SampleFile, how it was sampled). Raises UserError."""
    n = 1 if cfg.temperature == 0 else cfg.samples  # greedy samples are all the same
    source = {"temperature": cfg.temperature}
    settings = dict(
        suite=name,
        checkpoint=args.checkpoint,
        preset=cfg.preset,
        samples=n,
        **source,
        max_new=cfg.max_new,
        seed=cfg.seed,
        bf16=cfg.rollout_bf16,
        sanitise=args.sanitise,
    )

    def sample_some(some_tasks, start):
        return sample_and_grade(
            model,
            tok,
            some_tasks,
            n=n,
            temperature=cfg.temperature,
            max_new=cfg.max_new,
            seed=(cfg.seed, EVALUATE),
            numbers=list(range(start, start + len(some_tasks))),
            sanitise=args.sanitise,
            desc=f"{name} {start}-{start + len(some_tasks)} of {len(tasks)}",
        )

    return collect_rows(SampleFile(path, settings, n), tasks, cfg.resume, sample_some), source


def collect_rows(file, tasks, resume, rows_of):
    """Fill a SampleFile, a few tasks at a time -> the file.

    rows_of: (tasks, number of the first) -> their rows.
    With `resume` the rows that an interrupted evaluation left are taken over. Raises UserError.
    """
    if resume:
        file.resume(tasks)
    parallel.rank0_only(file.start)()
    size = max(1, 512 // file.n)
    for start in range(len(file.rows) // file.n, len(tasks), size):
        rows = rows_of(tasks[start : start + size], start)
        parallel.rank0_only(file.append)(rows)
        file.rows += rows
    parallel.rank0_only(file.finish)()
    return file


def print_score(file, source):
    """Print a suite's scores as a line of JSON. Raises UserError if its rows cannot be written.

    source: how the completions were made.
    """
    score = {}
    for k in (1, 5, 10):
        if k <= file.n:
            rates = pass_rates(file.rows, file.n, k)
            score[f"pass@{k}"] = round(float(rates.mean()), 4)
            score[f"pass@{k} 95%"] = [round(x, 4) for x in rate_interval(rates, file.n)]
    line = {
        "suite": file.settings["suite"],
        "problems": len(file.rows) // file.n,
        "samples": file.n,
        **source,
        **score,
        "verdicts": count_verdicts(file.rows),
        "file": file.path,
    }
    print(json.dumps(line), flush=True)
    file.check()


GO_ON = "the same command with --resume goes on"


def on_all_ranks(main, argv):
    """main, joined to torchrun's ranks. A failure of the grader is one line, and exit status 1."""
    try:
        with parallel.ranks():
            main(argv)
    except HarnessError as e:
        print(f"{program_name()}: the grader failed: {e}; {GO_ON}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    command(functools.partial(on_all_ranks, main), f"stopped; {GO_ON}")


# ---------------------------------------------------------------- the stage `eval` of train.py


def evaluate(run, names):
    """Evaluate models of the run's folder -> {model: {name: figure}}.

    Print a table, and merge the figures into results.json.
    """
    problems = load_problems("domain", run.cfg) if run.cfg.data == "domain" else []
    results = {}
    programs = []  # greedy ones, of the last model
    for name in names:
        model, extra = run.load(name)
        results[name] = {"pass@1": None, "pass@5": None}
        intervals = {}
        if problems:
            rates, intervals, programs = solve_problems(run, name, model, problems)
            results[name].update(rates)
        rolls = heldout_rollouts(model, run.tok, run.heldout, run.cfg, run.backend)
        prior = prior_of(run.cfg, run.tok, model.cfg.vocab_size)
        elbo = summary(rolls, prior, run.hard)
        results[name].update(elbo, flops=extra["flops"], measured=measured(run.cfg))
        results[name]["intervals"] = intervals | bound_intervals(rolls, prior)
        thoughts = thought_rows(run.tok, rolls, prior, run.hard)
        write_rows(run.path(f"thoughts-{name}.jsonl"), thoughts)
    earlier = write_results(run, results)
    print_table(results)
    print_unlike(earlier, run.cfg)
    if problems:
        print_programs(problems, programs)
    else:
        print_thoughts(run, names[-1])
    return results


def solve_problems(run, name, model, problems):
    """Sampled and greedy programs of a model -> (rates, their intervals, rows of the greedy ones).

    The greedy ones are written to samples-NAME.jsonl, the others to samples-NAME-domain.jsonl.
    """
    cfg = run.cfg
    model = inference_copy(model, cfg)
    limits = dict(max_new=cfg.max_new, seed=(cfg.seed, EVALUATE), backend=run.backend)
    rows = sample_and_grade(
        model,
        run.tok,
        problems,
        n=cfg.samples,
        temperature=cfg.temperature,
        desc=f"{name}: sampling",
        **limits,
    )
    greedy = sample_and_grade(
        model, run.tok, problems, n=1, temperature=0.0, desc=f"{name}: greedy", **limits
    )
    write_rows(run.path(f"samples-{name}.jsonl"), greedy)
    write_rows(run.path(f"samples-{name}-domain.jsonl"), rows)
    rates = mean_pass_at_k(rows, cfg.samples)
    rates["greedy"] = mean_pass_at_k(greedy, 1)["pass@1"]
    intervals = intervals_at_k(rows, cfg.samples)
    intervals["greedy"] = intervals_at_k(greedy, 1)["pass@1"]
    return rates, intervals, greedy


def bound_intervals(rolls, prior):
    """95% intervals of the bound over snippets, by Student's t -> {metric: a list of two}.

    {} of one snippet.
    """
    if len(rolls.base_logp) < 2:
        return {}
    rewards = rolls.rewards(prior).sum(1).reshape(-1, rolls.G).mean(1)  # (B,)
    no_think = [float(lines.sum()) for lines in rolls.base_logp]
    return {
        "elbo": list(seed_interval(rewards)),
        "elbo_no_think": list(seed_interval(no_think)),
    }


def thought_rows(tok, rolls, prior, hard=None):
    """What rollouts say of each snippet, as rows of a .jsonl; numbers in nats.

    name, prompt, lines   the snippet's text; a line stands there with its indentation
    hard                  indices of its hard lines, where they are known
    never                 log pi of each line when nothing is ever thought
    rollouts              what `rollout_record` gives of each
    """
    rewards = rolls.rewards(prior).sum(1)  # (N,) sum_t r_t
    rows = []
    for b, base in enumerate(rolls.base_logp):
        snip = rolls.rows[b * rolls.G].snip
        prompt, lines = text_lines(tok, snip)
        rows.append(
            {
                "name": snip.name,
                "prompt": prompt,
                "lines": lines,
                "hard": list(hard[b]) if hard else [],
                "never": decimals(base),
                "rollouts": [
                    rollout_record(tok, rolls.rows[n], float(rewards[n]))
                    for n in range(b * rolls.G, (b + 1) * rolls.G)
                ],
            }
        )
    return rows


def rollout_record(tok, row, reward):
    """One rollout as a dict.

    reward     sum_t r_t
    nats       log pi of each line
    p_think    before each line; None where it was not recorded
    thoughts   [[line, text, gain], ...]
    """
    return {
        "reward": round(reward, 4),
        "nats": decimals(row.line_logp),
        "p_think": None if row.p_think is None else decimals(row.p_think),
        "thoughts": [
            [line, tok.decode(ids).strip(), round(float(row.gain[line]), 4)]
            for line, ids in sorted(row.thoughts.items())
        ],
    }


def decimals(values):
    """Example: array([-0.12345]) -> [-0.1235]"""
    return [round(float(value), 4) for value in values]


def text_lines(tok, snip):
    """A snippet's prompt, and its lines as they stand, with their indentation -> (str, [str])."""
    text = tok.decode(snip.ids[len(tok.bos) : -1])
    begins = [len(tok.decode(snip.ids[len(tok.bos) : first])) for first in snip.first]
    begins = [text.rfind("\n", 0, begin) + 1 for begin in begins] + [len(text)]
    lines = [text[a:b].rstrip("\n") for a, b in zip(begins, begins[1:], strict=False)]
    return text[: begins[0]].rstrip("\n"), lines


@parallel.rank0_only
def write_rows(path, rows):
    """Write a JSON line a row, whole or not at all. Raises UserError."""
    with writing(path):
        with open(f"{path}.{os.getpid()}.part", "w") as f:
            f.writelines(json.dumps(row) + "\n" for row in rows)
        os.replace(f.name, path)


# settings that decide what the figures of a model are figures of
MEASURED = (
    "data unit docstrings keep_comments max_tokens min_lines n_heldout seed eval_split eval_tasks "
    "stages samples temperature max_new rollout_bf16 elbo_samples c kl_prior alpha think_max "
    "horizon"
).split()


def measured(cfg):
    """How figures are measured: the settings that decide it."""
    return {key: getattr(cfg, key) for key in MEASURED}


def write_results(run, results):
    """Merge figures into results.json -> the entries of other models there.

    Each entry has its own `measured`, so that unlike ones can be told apart.
    """
    path = run.path("results.json")
    with run.exclusive():
        earlier = {}
        with contextlib.suppress(UserError):  # a damaged file is written anew
            earlier = read_object(path)
        parallel.rank0_only(write_record)(path, {**earlier, **results})
    return {name: entry for name, entry in earlier.items() if name not in results}


def write_record(path, record):
    with writing(path):
        with open(path + ".part", "w") as f:
            json.dump(record, f, indent=1)
        os.replace(path + ".part", path)


def print_unlike(entries, cfg):
    """Say which entries of results.json must not be set beside those that this command makes.

    entries: {name: entry} of other models.
    """
    for name, entry in entries.items():
        before = entry.get("measured", {})
        unlike = [
            f"{key}={before.get(key, 'unknown')!r} and not {value!r}"
            for key, value in measured(cfg).items()
            if before.get(key, "unknown") != value
        ]
        if unlike:
            print(f"{name} in results.json is measured otherwise: {', '.join(unlike)}")


COLUMNS = (
    ("pass@1", "pass@1", "{:.3f}"),
    ("pass@5", "pass@5", "{:.3f}"),
    ("greedy", "greedy", "{:.3f}"),
    ("CE of code", "ce_code", "{:.4f}"),
    ("ELBO", "elbo", "{:.3f}"),
    ("never thinking", "elbo_no_think", "{:.3f}"),
    ("lines with a thought", "think_share", "{:.1%}"),
    ("hard", "think_hard", "{:.1%}"),
    ("easy", "think_easy", "{:.1%}"),
    ("gain", "gain", "{:+.2f}"),
    ("length", "think_len", "{:.1f}"),
    ("lasts", "duration", "{:.1f}"),
    ("TFLOP", "flops", "{:.0f}"),
)


def print_table(results):
    """Print a line a model.

    Units: ELBO nats a snippet, CE nats a token, gain nats a thought, length tokens, duration lines.
    """
    table = [["", *(title for title, _, _ in COLUMNS)]]
    for name, result in results.items():
        values = {**result, "flops": result["flops"] / 1e12}
        cells = [
            "-" if values.get(key) is None else form.format(values[key]) for _, key, form in COLUMNS
        ]
        table.append([name, *cells])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print()
    for line in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def print_programs(problems, rows):
    """Print two held-out programs of a model with their thoughts."""
    for task, row in list(zip(problems, rows, strict=True))[:2]:
        print(f"\n--- {task.name}: {row['verdict']}\n{task.prompt}{row['completion']}")


def print_thoughts(run, name):
    """Print two held-out snippets with thoughts that a model samples."""
    model = run.load(name)[0]
    seed = (run.cfg.seed, SHOW)
    rolls = rollouts_of(model, run.tok, run.heldout[:2], 1, run.cfg, seed, "samples", run.backend)
    for row in rolls.rows:
        print(f"\n--- {row.snip.name}\n{run.tok.decode(row.ids)}")
