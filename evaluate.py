"""How good a model is: pass@k by running what it writes, and the bound on held-out expert code.

    pass@k = 1 - C(n - c, k) / C(n, k),    n samples of a problem, c of them correct (arXiv 2107.03374; unbiased)

    python evaluate.py --suite humaneval --preset smollm2                              SmolLM2 as loaded, greedy
    python evaluate.py --suite humaneval,humaneval+,mbpp,mbpp+ --preset smollm2 --checkpoint runs/smollm2-0/ra3.pt --samples 20 --temperature 0.8
    python evaluate.py --suite humaneval --completions runs/smollm2-0/samples-ra3-humaneval+.jsonl          the same samples, by another suite's tests
    python evaluate.py --suite domain --checkpoint runs/tiny-0/ra3.pt                 the built-in domain's held-out tasks

Suites: see benchmarks/suites.py (`python -m benchmarks --list`); intervals are 95% bootstrap intervals over problems. Samples and verdicts go to a .jsonl,
{"task_id", "completion", "verdict", "seconds"} a line, as they are graded: with --resume an interrupted evaluation goes on where it stopped.

The bound is estimated with the model as its own q: thoughts are sampled as it would think, and the same model scores the expert's lines.
Its difference to `elbo_no_think`, the same model's log-likelihood when nothing is ever thought, is what thinking is worth to it.
"""

import contextlib
import copy
import json
import os
import sys

import numpy as np
import torch

from benchmarks import suites
from benchmarks.samples import beside, path_of, read_completions, write_samples
from benchmarks.sanitise import sanitised
from config import UserError, parse
from domain import domain_tasks
from elbo import never_thinks, prior_of, summary
from engine import parallel
from engine.machine import device_of, set_threads
from engine.rollouts import rollouts
from engine.sample import generate
from engine.training import inference_copy
from formats import huggingface
from formats.checkpoints import load_model
from formats.tokenizers import load_tokenizer
from grader.grade import grade
from grader.messages import HarnessError
from tasks import cut, job_of


def pass_at_k(n, c, k):
    """Unbiased probability that one of k samples is correct. Example: pass_at_k(5, 2, 1) -> 0.4.   Raises ValueError if n < k."""
    if n < k:
        raise ValueError(f"pass@{k} needs at least {k} samples a problem; there are {n}")
    return 1.0 if n - c < k else float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def open_model(cfg, checkpoint=""):
    """(model, tokenizer) of a checkpoint, or of the preset as loaded if none is given. Raises UserError."""
    if cfg.preset != "tiny":
        path = huggingface.find(cfg)
        tok = huggingface.open_tokenizer(path)
        model = load_model(checkpoint)[0] if checkpoint else huggingface.open_model(path)
    elif checkpoint:
        model, path = (
            load_model(checkpoint)[0],
            os.path.join(os.path.dirname(checkpoint), "tokenizer.txt"),
        )
        if not os.path.exists(path):
            raise UserError(
                f"{checkpoint}: no tokenizer.txt beside it; expected a model of the built-in domain (of another: its --preset, such as smollm2)"
            )
        tok = load_tokenizer(path)
    else:
        raise UserError(
            "--preset tiny has no weights of its own: give --checkpoint, such as runs/tiny-0/ra3.pt"
        )
    if model.cfg.vocab_size < tok.vocab_size:
        raise UserError(
            f"{checkpoint}: its vocabulary has {model.cfg.vocab_size} ids, the tokenizer of --preset {cfg.preset} {tok.vocab_size}; "
            "give the preset that the checkpoint was made with"
        )
    return model.to(device_of(cfg)), tok


def solve(
    model,
    tok,
    tasks,
    n,
    temperature,
    max_new,
    seed,
    numbers=None,
    sanitise=False,
    desc="sampling",
    forbid=(),
    progress=True,
):
    """Sample n programs a task and run their tests -> list of {task_id, completion, verdict, seconds}, n a task, in order.
    numbers: one int a task (default its index), which with the seed fixes its samples; forbid: token ids that are never written. Ranks share the tasks
    out, and all get all rows."""
    prompts = [tok.start(task.prompt) for task in tasks]  # ids, and what begins the completion
    for task, (prompt, _) in zip(tasks, prompts):
        if len(prompt) >= model.cfg.max_len:
            raise UserError(
                f"{task.name}: its prompt has {len(prompt)} tokens; the model's max_len is {model.cfg.max_len}"
            )
    stops = tasks[0].stops if tasks else ()
    numbers = list(range(len(tasks))) if numbers is None else numbers
    tasks, prompts, numbers = (
        parallel.shard(tasks),
        parallel.shard(prompts),
        parallel.shard(numbers),
    )
    done = generate(
        model,
        [ids for ids, _ in prompts],
        max_new,
        tok.eos,
        temperature,
        seed=seed,
        seeds=numbers,
        n=n,
        stop=list(stops),
        decode=tok.decode,
        progress=progress,
        desc=desc,
        batch=128,
        forbid=forbid,
    )
    return grade_completions(
        tasks,
        [
            [cut(head + tok.decode(completion.ids), task.stops) for completion in completions]
            for task, (_, head), completions in zip(tasks, prompts, done)
        ],
        sanitise,
        progress,
    )


def grade_completions(tasks, completions, sanitise=False, progress=True):
    """Run the tests of a rank's own tasks and completions, a list of texts a task -> the rows of all ranks, as `solve` returns them."""
    pairs = [(task, text) for task, texts in zip(tasks, completions) for text in texts]
    jobs = [job_of(*pair) for pair in pairs]
    results = grade(
        [sanitised(job) for job in jobs] if sanitise else jobs,
        progress=progress,
        desc="grading",
        workers=parallel.workers(),
    )
    rows = iter(
        [
            {
                "task_id": task.name,
                "completion": text,
                "verdict": result.verdict,
                "seconds": round(result.seconds, 3),
            }
            for (task, text), result in zip(pairs, results)
        ]
    )
    return [
        row
        for of_task in parallel.unshard([[next(rows) for _ in texts] for texts in completions])
        for row in of_task
    ]


def solve_suite(model, tok, tasks, n, cfg, path, settings, sanitise=False, desc="sampling"):
    """`solve` for a whole suite, the rows appended to `path` a few tasks at a time. With cfg.resume what is there is kept, if the file beside it says
    that it was made with the same settings. Raises UserError."""
    rows, at_once = [], max(1, 512 // n)
    if cfg.resume and os.path.exists(path):
        try:
            with open(beside(path)) as f:
                made = json.load(f)
        except (OSError, ValueError):
            made = {}
        other = [
            f"{k}={made.get(k)!r} and not {v!r}" for k, v in settings.items() if made.get(k) != v
        ]
        if other:
            raise UserError(
                f"{path}: made with {', '.join(other)}; leave out --resume to start over, or give another --samples-out"
            )
        with open(path) as f:
            for line in f:
                with contextlib.suppress(ValueError):  # the last line may be cut
                    rows.append(json.loads(line))
        whole = len(rows) // n  # tasks that are done
        rows = rows[: whole * n]
        if [row.get("task_id") for row in rows] != [
            task.name for task in tasks[:whole] for _ in range(n)
        ]:
            raise UserError(
                f"{path}: its rows are not those of this suite; leave out --resume to start over, or give another --samples-out"
            )
    parallel.rank0_only(write_samples)(path, rows, settings)
    for start in range(len(rows) // n, len(tasks), at_once):
        some = tasks[start : start + at_once]
        new = solve(
            model,
            tok,
            some,
            n,
            cfg.temperature,
            cfg.max_new,
            cfg.seed,
            list(range(start, start + len(some))),
            sanitise,
            f"{desc} {start}-{start + len(some)} of {len(tasks)}",
        )
        if parallel.rank() == 0:
            with open(path, "a") as f:
                f.writelines(json.dumps(row) + "\n" for row in new)
        rows += new
    return rows


def rates(rows, n, k):
    """pass@k of each problem: (problems,)."""
    passed = np.array([row["verdict"] == "passed" for row in rows]).reshape(-1, n).sum(1)
    return np.array([pass_at_k(n, int(c), k) for c in passed])


def score(rows, n, ks=(1, 5)):
    """{pass@k: mean over problems} of solve's rows, for every k <= n."""
    return {f"pass@{k}": float(np.mean(rates(rows, n, k))) for k in ks if k <= n}


def interval(rows, n, k, draws=10_000):
    """A 95% bootstrap interval of pass@k over problems: (low, high). Percentiles of the mean over problems drawn with replacement."""
    each = rates(rows, n, k)
    means = each[np.random.default_rng(0).integers(len(each), size=(draws, len(each)))].mean(1)
    return tuple(float(x) for x in np.percentile(means, (2.5, 97.5)))


def rollouts_of(model, tok, snippets, G, cfg, seed, desc):
    """G rollouts of a model over each snippet, with itself as q, in float32 and with a progress bar -> Rollouts. At c = inf it never thinks."""
    model = model if model.dtype == torch.float32 else copy.deepcopy(model).float()
    return rollouts(
        model,
        model,
        tok,
        snippets,
        G,
        cfg.think_max,
        seed,
        list(range(len(snippets))),
        max(1, 128 // G),
        desc,
        horizon=cfg.horizon,
        rate=0.0 if never_thinks(cfg) else None,
    )


def bound(model, tok, snippets, cfg, hard=None):
    """The bound of a model on held-out snippets, with itself as q -> dict of floats (names defined in the README).
    hard: for each snippet the indices of its hard lines, if known."""
    rolls = rollouts_of(model, tok, snippets, cfg.elbo_samples, cfg, (cfg.seed, 77), "bound")
    return summary(rolls, prior_of(cfg, tok, model.cfg.vocab_size), hard)


def main(argv):
    cfg, args = parse(
        argv,
        {
            "--suite": dict(
                default="humaneval",
                metavar="NAME[,NAME...]",
                help="domain, or suites of `python -m benchmarks --list` (default humaneval)",
            ),
            "--checkpoint": dict(
                default="",
                metavar="FILE",
                help="model to evaluate; default: the preset's model as loaded",
            ),
            "--out": dict(
                default="",
                metavar="FOLDER",
                help="folder of what is written (default: that of --completions or of the checkpoint, else runs/PRESET-SEED)",
            ),
            "--samples-out": dict(
                default="",
                metavar="FILE",
                help="completions and verdicts; the suite's name is added where there are several (default: in --out "
                "samples-MODEL-SUITE.jsonl, at temperature 0 greedy-MODEL-SUITE.jsonl, of --completions FILE-graded-SUITE.jsonl)",
            ),
            "--completions": dict(
                default="",
                metavar="FILE",
                help="grade these with the suite's tests instead of sampling: a .jsonl of task_id and completion, as "
                "--samples-out writes it; problems that it does not hold are left out (humaneval's tests for samples of humaneval+, or with --sanitise)",
            ),
            "--sanitise": dict(
                action="store_true",
                help="as EvalPlus: of the program, keep what the entry point needs of the longest part that parses",
            ),
            "--limit": dict(
                type=int,
                default=0,
                metavar="N",
                help="the first N problems of each suite only; 0: all",
            ),
        },
        __doc__.split("\n")[0],
    )
    parallel.settle(cfg)
    set_threads(cfg)
    names = [name for name in args.suite.split(",") if name]
    if not names or args.limit < 0:
        raise UserError(
            f"--suite {args.suite} --limit {args.limit}: expected at least one name, and a limit that is not negative"
        )
    problem_sets = {
        name: (
            domain_tasks(cfg.seed, cfg.eval_tasks, cfg.eval_split)
            if name == "domain"
            else suites.load(name, cfg.data_dir)
        )
        for name in names
    }
    if not args.completions:
        model, tok = open_model(cfg, args.checkpoint)
        model = inference_copy(model, cfg)
    n = 1 if cfg.temperature == 0 else cfg.samples  # greedy samples are all the same
    for name, tasks in problem_sets.items():
        tasks = tasks[: args.limit or None]
        path = path_of(cfg, args, name, len(problem_sets) > 1)
        if args.completions:
            given, made = (
                read_completions(args.completions, tasks),
                {"completions": args.completions},
            )
            if os.path.realpath(path) == os.path.realpath(args.completions):
                raise UserError(
                    f"--samples-out {path}: this is what --completions reads; give another path"
                )
            tasks, n = (
                [task for task in tasks if task.name in given],
                len(next(iter(given.values()))),
            )
            settings = dict(suite=name, **made, samples=n, sanitise=args.sanitise)
            parallel.rank0_only(write_samples)(
                path, [], settings
            )  # before the work: can it be written?
            rows = grade_completions(
                parallel.shard(tasks),
                parallel.shard([given[task.name] for task in tasks]),
                args.sanitise,
            )
            parallel.rank0_only(write_samples)(path, rows, settings)
        else:
            made = {"temperature": cfg.temperature}
            settings = dict(
                suite=name,
                checkpoint=args.checkpoint,
                preset=cfg.preset,
                samples=n,
                **made,
                max_new=cfg.max_new,
                seed=cfg.seed,
                bf16=cfg.rollout_bf16,
                sanitise=args.sanitise,
            )
            rows = solve_suite(model, tok, tasks, n, cfg, path, settings, args.sanitise, name)
        said = {}
        for k in (1, 5, 10):
            if k <= n:
                said[f"pass@{k}"] = round(score(rows, n, (k,))[f"pass@{k}"], 4)
                said[f"pass@{k} 95%"] = [round(x, 4) for x in interval(rows, n, k)]
        verdicts = {
            v: sum(r["verdict"] == v for r in rows) for v in sorted({r["verdict"] for r in rows})
        }
        print(
            json.dumps(
                {
                    "suite": name,
                    "problems": len(tasks),
                    "samples": n,
                    **made,
                    **said,
                    "verdicts": verdicts,
                    "file": path,
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    try:
        with parallel.ranks():
            main(sys.argv[1:])
    except UserError as e:
        print(f"evaluate.py: {e}", file=sys.stderr)
        sys.exit(2)
    except HarnessError as e:
        print(f"evaluate.py: the grader failed: {e}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nstopped; the same command with --resume goes on", file=sys.stderr)
        sys.exit(130)


def evaluate(run, names):
    """Evaluate models of the run's folder, print a table, merge the figures into results.json."""
    cfg = run.cfg
    problems = (
        domain_tasks(cfg.seed, cfg.eval_tasks, cfg.eval_split) if cfg.data == "domain" else []
    )
    results, shown = {}, {}
    for name in names:
        model, extra = run.load(name)
        said = {"pass@1": None, "pass@5": None}
        if problems:
            for key, n, temperature in (("", cfg.samples, cfg.temperature), ("greedy", 1, 0.0)):
                rows = solve(
                    inference_copy(model, cfg),
                    run.tok,
                    problems,
                    n,
                    temperature,
                    cfg.max_new,
                    cfg.seed,
                    desc=f"{name}: {key or 'sampling'}",
                )
                said.update({"greedy": score(rows, 1)["pass@1"]} if key else score(rows, n))
            shown[name] = rows  # the greedy ones
            write_programs(run, name, rows)
        said.update(bound(model, run.tok, run.heldout, cfg, run.hard), flops=extra["flops"])
        results[name] = said
    write_results(run, results)
    print_table(results)
    print_programs(run, names[-1], problems, shown.get(names[-1], []))
    return results


@parallel.rank0_only
def write_programs(run, name, rows):
    with open(run.path(f"samples-{name}.jsonl"), "w") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)


@parallel.rank0_only
def write_results(run, results):
    path = run.path("results.json")
    try:
        kept = json.load(open(path))
    except (OSError, ValueError):
        kept = {}
    with open(path + ".part", "w") as f:
        json.dump({**kept, **results}, f, indent=1)
    os.replace(path + ".part", path)


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
    """A line a model; ELBO in nats a snippet, CE in nats a token, gain in nats a thought, length in tokens, duration in lines."""
    table = [["", *(title for title, _, _ in COLUMNS)]]
    for name, said in results.items():
        value = {**said, "flops": said["flops"] / 1e12}
        table.append(
            [name]
            + [
                form.format(value[key]) if value.get(key) is not None else "-"
                for _, key, form in COLUMNS
            ]
        )
    width = [max(map(len, column)) for column in zip(*table)]
    print(
        "\n" + "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, width)) for line in table)
    )


def print_programs(run, name, problems, rows):
    """Two held-out programs of a model with their thoughts; if there are no problems, two held-out snippets with sampled thoughts."""
    for task, row in list(zip(problems, rows))[:2]:
        print(f"\n--- {task.name}: {row['verdict']}\n{task.prompt}{row['completion']}")
    if not problems:
        for row in rollouts_of(
            run.load(name)[0], run.tok, run.heldout[:2], 1, run.cfg, (run.cfg.seed, 78), "samples"
        ).rows:
            print(f"\n--- {row.snip.name}\n{run.tok.decode(row.ids)}")
