"""Reinforcement learning with verifiable rewards (RLVR): GRPO, the reward of a program its unit tests, from any checkpoint.

    python train.py --stage rlvr --init ra3                                       the built-in domain, minutes on a laptop
    python train.py --stage rlvr --init base --preset smollm2 --suite leetcode,mine.jsonl

One step, with B problems x_b, G completions each:

    1. y_i ~ pi_old(. | x_b)                                            temperature 1, nothing cut off                           (sample)
    2. R_i = 1[the program x_b + y_i passes its unit tests]             graded while other completions are still being written   (reward)
    3. A_i = (R_i - mean_g R) / (std_g R + 1e-6)                        mean and deviation of the G rewards of its group g    (advantage)
    4. J = 1/Z sum_i w_i sum_t min(rho_it A_i, clip(rho_it, 1 - e_low, 1 + e_high) A_i) - beta KL(pi || pi_start)             (objective)
       rho_it = pi(y_it | x_b, y_i<t) / pi_old(y_it | x_b, y_i<t)       1 at the first update of a step
    5. one step of AdamW up J, or several: `epochs` x `minibatches`

GRPO is arXiv 2402.03300, DAPO 2503.14476, Dr. GRPO 2503.20783. The normaliser is a setting, over the completions that are in the loss (N of them,
y_i of |y_i| tokens, its EOS or stop sequence included, its prompt not):

    rl_norm=token      w_i = 1,        Z = sum_i |y_i|     every token counts alike (DAPO)
    rl_norm=sequence   w_i = 1/|y_i|,  Z = N               every completion counts alike (GRPO)
    rl_norm=constant   w_i = 1,        Z = N max_new       no length in it at all (Dr. GRPO, together with rl_std=false)

Departures from GRPO
1. The defaults are DAPO's where they differ: mean over tokens, e_high > e_low, no KL, completions that ran into max_new out of the loss (their
   rewards stay in the mean of their group).
2. pi_old is the trainer's own: with one update a step it is pi without its gradient; otherwise it is scored before the first update by the same code,
   in the same batches, so that the first ratio is 1 exactly. What the sampler recorded is compared with it (`logp_gap`) and not used.
3. The KL is the exact one over the vocabulary at every sampled state, and not GRPO's estimate from the sampled token.
4. With `rounds` > 1, groups without signal (all rewards equal) are dropped, and others sampled in their place, up to so many rounds (DAPO samples until
   the batch is full). With one round they stay, with A = 0, and count in Z. A step without any signal changes nothing.
5. `thoughts=false` samples from pi given that no token begins a comment; rho and its gradient are those of that distribution.

Shapes: N completions, B groups, G of each, M their tokens together, T tokens of a padded row, D width.
"""

import copy
import dataclasses
import time

import numpy as np
import torch
from tqdm import tqdm

from config import COIN, RLVR, SHUFFLE
from engine import parallel, training
from engine.machine import steps_bar
from engine.packing import hidden_before, shared_parts
from engine.training import inference_copy
from evaluate import count_verdicts, mean_pass_at_k, sample_and_grade, sample_programs
from grader.grade import Grader
from logprobs import token_kl, token_logprobs
from model import work_size
from tasks import job_of, parts


@dataclasses.dataclass
class Sample:
    """One completion."""

    task: object
    prompt: list  # token ids
    ids: list  # token ids, EOS or stop sequence included
    logprobs: list  # as recorded by the sampler
    finished: bool  # not by length
    group: int  # number of its problem in the order of drawing
    text: str  # what is graded
    run: object  # Future of its Result
    reward: float = 0.0
    verdict: str = ""
    advantage: float = 0.0
    seconds: float = 0.0  # that its program ran


# ---------------------------------------------------------------- the order of problems


def drawn(n, seed, first, count):
    """Indices of draws first .. first+count-1: epochs of a shuffled list of n, each in its own order."""
    at = np.arange(first, first + count)
    orders = {e: np.random.default_rng([seed, RLVR, e]).permutation(n) for e in set(at // n)}
    return [int(orders[i // n][i % n]) for i in at]


# ---------------------------------------------------------------- sampling and rewards


def collect(model, tok, tasks, cfg, first, grader):
    """Sample G completions for each task and grade them meanwhile -> list of Samples, a group's next to each other, and seconds waited for the grader
    after the last one was written. first: the number of the first task in the order of drawing, which with the seed fixes its draws. Ranks share the
    tasks out, and all get all samples (but not their runs)."""
    own = parallel.shard(range(len(tasks)))
    samples = {}
    bar = tqdm(
        total=len(own) * cfg.completions, desc="sampling", unit="sample", delay=5, leave=False
    )

    def submit(k, j, program):
        task = tasks[own[k]]
        prompt, completion, text = program
        samples[k, j] = Sample(
            task,
            prompt,
            completion.ids,
            completion.logprobs,
            completion.finished,
            first + own[k],
            text,
            grader.submit(training_job(task, text, cfg)),
        )
        bar.update()

    sample_programs(
        model,
        tok,
        [tasks[i] for i in own],
        max_new=cfg.max_new,
        seeds=[first + i for i in own],
        on_program=submit,
        seed=int(np.random.SeedSequence([cfg.seed, RLVR]).generate_state(1)[0]),
        n=cfg.completions,
        batch=cfg.prompts * cfg.completions,
        forbid=() if cfg.thoughts else tok.thought_ids,
    )
    bar.close()
    began = time.time()
    samples = [samples[key] for key in sorted(samples)]
    for s in samples:
        s.verdict, s.seconds = s.run.result().verdict, s.run.result().seconds
    rewards(samples, cfg, grader)
    waited, G = time.time() - began, cfg.completions
    if parallel.world() > 1:
        samples = [dataclasses.replace(s, run=None) for s in samples]
    return [
        s
        for group in parallel.unshard([samples[i : i + G] for i in range(0, len(samples), G)])
        for s in group
    ], waited


def training_job(task, text, cfg):
    return job_of(dataclasses.replace(task, time_limit=task.time_limit or cfg.reward_time), text)


def rewards(samples, cfg, grader):
    """R_i of each sample, once its verdict is known: see the setting `reward`."""
    for k, s in enumerate(samples):
        s.reward = float(s.verdict == "passed")
        if cfg.reward == "random":
            s.reward = float(
                np.random.default_rng([cfg.seed, COIN, s.group, k % cfg.completions]).random() < 0.5
            )
    if cfg.reward == "tests":
        failed = [
            (s, [grader.submit(training_job(part, s.text, cfg)) for part in parts(s.task)])
            for s in samples
            if s.verdict not in ("passed", "syntax_error")
        ]
        for s, runs in failed:
            passed = sum(run.result().verdict == "passed" for run in runs)
            s.reward = min(passed, len(runs) - 1) / len(
                runs
            )  # all of them alone, but not together: too slow, say


def advantages(R, std=True):
    """A of each completion from the rewards R (B, G) -> (B, G).   Example: [[1, 0, 0, 0]] -> [[1.73, -.58, -.58, -.58]], std=False: [[.75, -.25, ...]]"""
    A = np.where(signal(R)[:, None], R - R.mean(1, keepdims=True), 0.0)  # advantage
    return A / (R.std(1, keepdims=True) + 1e-6) if std else A


def signal(R):
    """Which groups have unequal rewards (the mean of equal ones may differ from them by rounding). R (B, G) -> (B,) bool."""
    return (R != R[:, :1]).any(1)


def token_weights(lengths, norm, max_new):
    """w_i / Z of each completion, by the lengths of those in the loss: (N,). Example: token, [3, 1] -> [1/4, 1/4]; sequence -> [1/6, 1/2]"""
    lengths = np.asarray(lengths, float)
    if norm == "sequence":
        return 1 / (lengths * len(lengths))
    return np.full(len(lengths), 1 / (lengths.sum() if norm == "token" else len(lengths) * max_new))


# ---------------------------------------------------------------- the update


def batches(samples, most):
    """Micro-batches of this rank's share: lists of indices, the completions of a prompt together, the prompt counted once."""
    mine = parallel.shard_block(range(len(samples)))
    return [
        [mine[i] for i in part]
        for part in shared_parts([samples[i].prompt + samples[i].ids for i in mine], most)
    ]


def hidden_of(model, samples, amp):
    """The states that predict the tokens of the completions, one completion after the other: (M, D), and how many tokens were read for them."""
    row = np.repeat(np.arange(len(samples)), [len(s.ids) for s in samples])  # (M,)
    position = np.concatenate([len(s.prompt) + np.arange(len(s.ids)) for s in samples])  # (M,)
    states, node = hidden_before(
        model, [s.prompt + s.ids for s in samples], row, position, amp
    )  # (T, D), (M,)
    return states[node], len(states)


def scored(model, hidden, samples, forbid):
    """log pi of every token of the completions (given that it is none of `forbid`), and the entropy of pi there: (M,), (M,). hidden (M, D)."""
    targets = torch.tensor([i for s in samples for i in s.ids], device=model.device)
    with torch.autocast(
        model.device.type, enabled=False
    ):  # logits in float32, as the sampler's are
        logp, entropy = token_logprobs(
            hidden.float(), model.head_weight.float(), targets, entropy=True, without=forbid
        )
    return logp, entropy.detach()


def surrogate(logp, old, A, low, high):
    """min(rho A, clip(rho) A) of every token, and which were clipped from below and above: three of (M,).   logp, old, A (M,)"""
    rho = (logp - old).exp()
    value = torch.minimum(rho * A, rho.clamp(1 - low, 1 + high) * A)  # objective
    return value, (rho < 1 - low) & (A < 0), (rho > 1 + high) & (A > 0)


def micro_loss(model, start, some, w, old, cfg, forbid, measured):
    """-J of a micro-batch with its gradient to come, and sums over its tokens. w: w_i / Z of each sample; old: log pi_old of their tokens (M,), or
    None where pi is pi_old; measured: samples whose KL is taken."""
    lengths = torch.tensor([len(s.ids) for s in some], device=model.device)
    each = lambda xs: torch.tensor(xs, dtype=torch.float32, device=model.device).repeat_interleave(
        lengths
    )
    w, A, recorded = (
        each(w),
        each([s.advantage for s in some]),
        torch.tensor([x for s in some for x in s.logprobs], device=model.device),
    )  # (M,)
    hidden, read = hidden_of(model, some, cfg.bf16)  # (M, D)
    logp, entropy = scored(model, hidden, some, forbid)  # (M,), (M,)
    old = logp.detach() if old is None else old
    value, below, above = surrogate(logp, old, A, cfg.clip_low, cfg.clip_high)  # (M,)
    loss = -(w * value).sum()  # objective
    gap = (old - recorded).abs()
    sums = {
        "entropy": entropy.sum(),
        "clip_low": below.sum(),
        "clip_high": above.sum(),
        "logp_gap": gap.sum(),
        "logp_gap_max": gap.max(),
        "ratio_off": ((old - recorded).expm1().abs() > 0.1).sum(),
        "tokens": lengths.sum(),
        "kl_tokens": 0,
        "kl_start": 0.0,
        "trained": read,
        "scored": 0,
    }
    theirs = [s for s in some if id(s) in measured]
    if theirs:
        chosen = each([id(s) in measured for s in some]) > 0  # (M,)
        with torch.no_grad():
            other, read = hidden_of(start, theirs, cfg.bf16)
        with (
            torch.autocast(model.device.type, torch.bfloat16, enabled=cfg.bf16),
            torch.set_grad_enabled(cfg.rl_kl > 0),
        ):
            kl = token_kl(
                hidden[chosen], model.head_weight, other, start.head_weight, without=forbid
            )
        if cfg.rl_kl:
            loss = loss + cfg.rl_kl * (w[chosen] * kl).sum()  # objective
        sums.update(kl_tokens=len(kl), kl_start=kl.detach().sum(), scored=read)
    return loss, {key: float(x) for key, x in sums.items()}


def update(model, start, opt, samples, cfg, seed, forbid=()):
    """`epochs` x `minibatches` optimizer steps up J on samples with their advantages -> metrics. start: the model that the KL is taken to.
    With rl_kl = 0 the KL is only measured, on one completion a group. Without any signal nothing is done, and nothing measured. With several ranks
    each takes its share of a minibatch, and all give all samples."""
    samples = [s for s in samples if s.finished or not cfg.mask_overlong]
    total = dict.fromkeys(
        (
            "entropy",
            "clip_low",
            "clip_high",
            "logp_gap",
            "ratio_off",
            "logp_gap_max",
            "tokens",
            "kl_tokens",
            "kl_start",
            "trained",
            "scored",
        ),
        0.0,
    )
    losses, norms = [], []
    if any(s.advantage for s in samples):
        groups = list(dict.fromkeys(s.group for s in samples))
        parts_of = np.array_split(
            np.random.default_rng(seed).permutation(groups), min(cfg.minibatches, len(groups))
        )
        minis = [[s for s in samples if s.group in set(some)] for some in parts_of]
        plan = [
            [[mini[i] for i in at] for at in batches(mini, cfg.micro_tokens)] for mini in minis
        ]  # minibatch -> micro-batch -> samples
        measured = (
            {id(s) for s in samples}
            if cfg.rl_kl
            else {id(s) for s in {s.group: s for s in samples}.values()}
        )
        old = {}
        if cfg.epochs * len(minis) > 1:
            with torch.no_grad():
                for m, k, some in (
                    (m, k, some)
                    for m, mini in enumerate(plan)
                    for k, some in enumerate(parallel.synced_batches(model, mini))
                ):
                    hidden, read = hidden_of(model, some, cfg.bf16)
                    old[m, k] = scored(model, hidden, some, forbid)[0]
                    total["scored"] += read
        for epoch in range(cfg.epochs):
            for m, mini in enumerate(plan):
                w = dict(
                    zip(
                        map(id, minis[m]),
                        token_weights([len(s.ids) for s in minis[m]], cfg.rl_norm, cfg.max_new),
                    )
                )
                losses.append(0.0)
                for k, some in enumerate(parallel.synced_batches(model, mini)):
                    loss, sums = micro_loss(
                        model,
                        start,
                        some,
                        [w[id(s)] for s in some],
                        old.get((m, k)),
                        cfg,
                        forbid,
                        measured,
                    )
                    parallel.backward(loss)
                    losses[-1] += loss.item()
                    for key, x in sums.items():
                        total[key] = max(total[key], x) if key == "logp_gap_max" else total[key] + x
                norms.append(parallel.clip(model, cfg.grad_clip).item())
                opt.step()
                opt.zero_grad(set_to_none=True)
    of_ranks = parallel.all_gather((total, losses))
    total = {
        key: (max if key == "logp_gap_max" else sum)(sums[key] for sums, _ in of_ranks)
        for key in total
    }
    losses = [sum(shares) for shares in zip(*(shares for _, shares in of_ranks))]
    mean = lambda key, by="tokens": (
        total[key] / total[by] if total[by] else None
    )  # None: nothing was measured
    return {
        "loss": float(np.mean(losses)) if losses else None,
        "grad_norm": float(np.mean(norms)) if norms else None,
        "updates": len(norms),
        **{key: mean(key) for key in ("entropy", "clip_low", "clip_high", "logp_gap", "ratio_off")},
        "logp_gap_max": total["logp_gap_max"] if norms else None,
        "kl_start": mean("kl_start", "kl_tokens"),
        "trained": int(total["trained"]),
        "scored": int(total["scored"]),
    }


def thought_share(tok, ids):
    """Share of tokens from one that begins with `#` to the end of its line."""
    inside, n = False, 0
    for i in ids:
        inside = (inside or i in tok.thought_ids) and i not in tok.stop_ids
        n += inside
        inside = inside and i not in tok.closing_ids
    return n / max(1, len(ids))


# ---------------------------------------------------------------- the stage


def held_out(model, tok, tasks, cfg):
    """Pass rate of a model on held-out problems, eval_samples programs each, and what these look like."""
    rows = sample_and_grade(
        inference_copy(model, cfg),
        tok,
        tasks,
        n=cfg.eval_samples,
        temperature=cfg.temperature,
        max_new=cfg.max_new,
        seed=cfg.seed,
        progress=False,
        forbid=() if cfg.thoughts else tok.thought_ids,
    )
    return {
        "pass@1": mean_pass_at_k(rows, cfg.eval_samples, (1,))["pass@1"],
        "comments": float(np.mean([row["completion"].count("#") for row in rows])),
        "verdicts": count_verdicts(rows),
    }


def show(s):
    """A completion with what it got, its thoughts marked."""
    marked = "\n".join(
        ("> " if line.lstrip().startswith("#") else "  ") + line
        for line in (s.task.prompt + s.text).split("\n")
    )
    return f"--- {s.task.name}: {s.verdict}, reward {s.reward:g}, advantage {s.advantage:+.2f}, {len(s.ids)} tokens\n{marked}"


def rollouts(model, tok, train, cfg, first, grader):
    """Samples for one update, in one round or several -> (samples in the loss, all samples, seconds waited for the grader after sampling)."""
    kept, everything, waited = [], [], 0.0
    for _ in range(cfg.rounds):
        wanted = cfg.prompts - len(kept) // cfg.completions
        if not wanted:
            break
        tasks = [
            train[i]
            for i in drawn(len(train), cfg.seed, first + len(everything) // cfg.completions, wanted)
        ]
        new, wait = collect(
            model, tok, tasks, cfg, first + len(everything) // cfg.completions, grader
        )
        R = np.array([s.reward for s in new]).reshape(-1, cfg.completions)  # (B, G)
        for s, A in zip(new, advantages(R, cfg.rl_std).flatten()):
            s.advantage = float(A)
        everything += new
        kept += (
            new
            if cfg.rounds == 1
            else [s for s, keep in zip(new, np.repeat(signal(R), cfg.completions)) if keep]
        )
        waited += wait
    return kept, everything, waited


def rlvr(run, name):
    """The stage: cfg.rl_steps of GRPO from the model cfg.init of the run's folder -> NAME.pt."""
    cfg, tok = run.cfg, run.tok
    start, extra = run.load(cfg.init)
    model = copy.deepcopy(start)
    start.requires_grad_(False)
    train, held, counts = run.training_problems()
    tqdm.write(
        f"{name}: from {cfg.init}; problems: "
        + ", ".join(f"{k} {n}" for k, n in counts.items() if n)
        + f"; {len(held)} held out"
    )
    forbid, work = () if cfg.thoughts else tuple(tok.thought_ids), work_size(model)
    at = dict(
        step=0,
        drawn=0,
        sampled_tokens=0,
        seconds=0.0,
        cpu_s=0.0,  # where the run stands
        flops=0.0 if cfg.init == "base" else extra["flops"],
    )  # of all that came after pre-training
    state = run.restore(name)
    model, opt = training.prepare_training(
        model, cfg, lambda m: training.adamw(m, cfg.rl_lr, 0.0), state
    )
    if state:
        at = {key: state[key] for key in at}

    def curve():
        if cfg.eval_every and held:
            said = held_out(model, tok, held, cfg)
            run.log(name, phase="rlvr-heldout", **at, **said)
            tqdm.write(
                f"{name}: after {at['step']} steps, {at['sampled_tokens']:,} tokens, {at['seconds']:.0f} s: "
                f"held-out pass rate {said['pass@1']:.3f}"
            )

    if not at["step"]:
        curve()
    bar = steps_bar(f"{name}: GRPO", at["step"], cfg.rl_steps)
    with Grader(parallel.workers()) as grader:
        for step in bar:
            began, cpu = time.time(), time.process_time()
            samples, everything, waited = rollouts(
                inference_copy(model, cfg), tok, train, cfg, at["drawn"], grader
            )  # sample, reward, advantage
            sampled = time.time()
            for group in opt.param_groups:
                group["lr"] = cfg.rl_lr * min(1.0, (step + 1) / max(1, cfg.rl_warmup))
            m = update(
                model, start, opt, samples, cfg, (cfg.seed, SHUFFLE, step), forbid
            )  # objective
            now, new = time.time(), sum(len(s.ids) for s in everything)
            R = np.array([s.reward for s in everything]).reshape(-1, cfg.completions)  # (groups, G)
            prompts = sum(len(s.prompt) for s in everything) // cfg.completions  # tokens, each once
            at.update(
                step=step + 1,
                drawn=at["drawn"] + len(R),
                sampled_tokens=at["sampled_tokens"] + new,
                seconds=at["seconds"] + now - began,
                cpu_s=at["cpu_s"] + sum(parallel.all_gather(time.process_time() - cpu)),
                flops=at["flops"] + work * (2 * (prompts + new + m["scored"]) + 6 * m["trained"]),
            )
            verdicts = [s.verdict for s in everything]
            run.log(
                name,
                phase="rlvr",
                **at,
                reward=float(R.mean()),
                pass_rate=float(np.mean([v == "passed" for v in verdicts])),
                no_signal=float(1 - signal(R).mean()),
                length=new / len(everything),
                unfinished=float(np.mean([not s.finished for s in everything])),
                thought_tokens=float(np.mean([thought_share(tok, s.ids) for s in everything])),
                lr=opt.param_groups[0]["lr"],
                sample_s=sampled - began - waited,
                grade_wait_s=waited,
                grade_s=sum(s.seconds for s in everything),
                update_s=now - sampled,
                sample_tokens_per_s=new / max(1e-9, sampled - began - waited),
                train_tokens_per_s=m["trained"] / max(1e-9, now - sampled),
                verdicts={v: verdicts.count(v) for v in sorted(set(verdicts))},
                **m,
            )
            bar.set_postfix(
                reward=f"{R.mean():.3f}",
                no_signal=f"{1 - signal(R).mean():.2f}",
                length=f"{new / len(everything):.0f}",
                tok_s=f"{new / max(1e-9, now - began):.0f}",
            )
            if cfg.eval_every and (step + 1) % cfg.eval_every == 0:
                best = sorted(everything, key=lambda s: (-s.reward, -s.advantage))
                tqdm.write(show(best[0]) + "\n" + show(best[-1]))
            if cfg.eval_every and (step + 1) % cfg.eval_every == 0 or step + 1 == cfg.rl_steps:
                curve()
            if (step + 1) % cfg.save_every == 0 and step + 1 < cfg.rl_steps:
                run.save_state(name, weights=parallel.state(model), opt=parallel.state(opt), **at)
    run.save(
        name,
        parallel.unwrap(model),
        flops=at["flops"],
        settings=run.settings,
        rl_seconds=at["seconds"],
    )
