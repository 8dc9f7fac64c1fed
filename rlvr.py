"""Reinforcement learning with verifiable rewards (RLVR): GRPO, with unit tests as the reward.

    python train.py --stage rlvr --init ra3             the built-in domain, minutes on a laptop
    python train.py --stage rlvr --init base --preset smollm2 --suite leetcode,mine.jsonl

One step, with B problems x_b and G completions each:

    1. y_i ~ pi_old(. | x_b)                       temperature 1, nothing cut off         (sample)
    2. R_i = 1[the program x_b + y_i passes its tests]                                    (reward)
    3. A_i = (R_i - mean_g R) / (std_g R + 1e-6)       over the G rewards of group g    (advantage)
    4. J = 1/Z sum_i w_i sum_t min(rho_it A_i, clip(rho_it, 1 - e_low, 1 + e_high) A_i)
           - beta KL(pi || pi_start)                                                   (objective)
       rho_it = pi(y_it | x_b, y_i<t) / pi_old(y_it | x_b, y_i<t)                          (ratio)
    5. one step of AdamW up J, or several: `epochs` x `minibatches`

Programs are graded while other completions are still being written. GRPO is arXiv 2402.03300, DAPO
2503.14476, Dr. GRPO 2503.20783. The normaliser is a setting, over the N completions in the loss. A
completion y_i has |y_i| tokens: its EOS or stop sequence is among them, its prompt is not.

    rl_norm=token      w_i = 1,        Z = sum_i |y_i|    every token counts alike (DAPO)
    rl_norm=sequence   w_i = 1/|y_i|,  Z = N              every completion counts alike (GRPO)
    rl_norm=constant   w_i = 1,        Z = N max_new      lengths do not count (Dr. GRPO, with
                                                          rl_std=false)

Departures from GRPO
1. The defaults are DAPO's where they differ: mean over tokens, e_high > e_low, no KL. Completions
   that ran into max_new are out of the loss; their rewards stay in the mean of their group.
2. pi_old is the trainer's own. With one update a step it is pi without its gradient. Otherwise it
   is scored before the first update by the same code in the same batches, so that the first ratio
   is 1 exactly. The sampler's record is compared with it (`logp_gap`) and not used.
3. The KL is the exact one over the vocabulary at every sampled state, not GRPO's estimate from the
   sampled token.
4. The gradient of the KL lacks the score term: how pi changes which states are visited is left out.
5. With `rounds` > 1, groups without signal (all rewards equal) are dropped, and others are sampled
   in their place, for up to so many rounds. DAPO samples until the batch is full. With one round
   they stay, with A = 0, and count in Z.
6. A minibatch without any signal changes nothing: no step is taken, neither J's nor the KL's.
7. `thoughts=false` samples from pi given that no token begins a comment. The ratio, its gradient,
   the KL and the entropy are those of that distribution (of start's likewise).

Shapes: N completions, B groups, G of each, M their tokens together, m the measured ones, D width.
"""

import collections
import copy
import dataclasses
import time

import numpy as np
import torch
from tqdm import tqdm

from config import (
    COIN,
    PROBLEMS,
    RLVR,
    RLVR_HELDOUT,
    ROUNDING,
    SHUFFLE,
    UserError,
    progress_bar,
    seed_of,
)
from engine import parallel, training
from engine.backend import FAST
from engine.gradients import CompletionScores
from engine.machine import compile_postfix, steps_bar
from engine.packing import shared_parts
from engine.training import inference_copy
from evaluate import count_verdicts, mean_pass_at_k, sample_and_grade, sample_programs
from grader.grade import Grader
from model import to_device, work_size
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
    apart: bool = True  # no truth of its tests was decided by the program itself


# ---------------------------------------------------------------- 1. sample


def problem_order(n, seed, first, count):
    """Indices of draws first .. first+count-1 from epochs of n problems, each in its own order."""
    draws = np.arange(first, first + count)
    orders = {
        e: np.random.default_rng(seed_of(seed, PROBLEMS, e)).permutation(n) for e in set(draws // n)
    }
    return [int(orders[i // n][i % n]) for i in draws]


def sample_completions(model, tok, tasks, cfg, first, grader, backend=FAST):
    """Sample G completions for each task, each graded as soon as it ends (sample) -> Samples.

    first: the number of the first task in the order of drawing; with the seed it fixes the draws.
    A group's Samples are next to each other. Under torchrun they are those of this rank's tasks.
    """
    share = parallel.shard(range(len(tasks)))
    samples = {}
    bar = progress_bar(
        total=len(share) * cfg.completions, desc="sampling", unit="sample", delay=5, leave=False
    )

    def submit(k, j, program):
        task = tasks[share[k]]
        samples[k, j] = Sample(
            task=task,
            prompt=program.prompt,
            ids=program.completion.ids,
            logprobs=program.completion.logprobs,
            finished=program.completion.finished,
            group=first + share[k],
            text=program.text,
            run=grader.submit(training_job(task, program.text, cfg)),
        )
        bar.update()

    sample_programs(
        model,
        tok,
        [tasks[i] for i in share],
        max_new=cfg.max_new,
        seeds=[first + i for i in share],
        on_program=submit,
        backend=backend,
        seed=(cfg.seed, RLVR),
        n=cfg.completions,
        batch=cfg.prompts * cfg.completions,
        forbid=() if cfg.thoughts else tok.thought_ids,
    )
    bar.close()
    return [samples[key] for key in sorted(samples)]


def training_job(task, text, cfg):
    """The grader's job for a completion, within the time that training allows."""
    limited = dataclasses.replace(task, time_limit=task.time_limit or cfg.reward_time)
    return job_of(limited, text)


# ---------------------------------------------------------------- 2. reward


def all_tests_pass(samples, cfg, grader):
    """R_i = 1 if the program passes all its tests, else 0."""
    return [float(is_paid(s, cfg)) for s in samples]


def is_paid(result, cfg):
    """Is a Sample, or a Result of the grader, a pass that counts? See the setting reward_apart."""
    return result.verdict == "passed" and (result.apart or not cfg.reward_apart)


def share_of_tests(samples, cfg, grader):
    """R_i = the share of its tests that the program passes, each test run alone."""
    rewards = all_tests_pass(samples, cfg, grader)
    failed = [i for i, s in enumerate(samples) if s.verdict not in ("passed", "syntax_error")]
    runs_of = {
        i: [
            grader.submit(training_job(part, samples[i].text, cfg))
            for part in parts(samples[i].task)
        ]
        for i in failed
    }
    for i, runs in runs_of.items():
        passed = sum(is_paid(run.result(), cfg) for run in runs)
        # All pass alone, but not together (too slow in all, say): one counts as failed.
        rewards[i] = min(passed, len(runs) - 1) / len(runs)
    return rewards


def coin(samples, cfg, grader):
    """R_i = 0 or 1 at random, whatever was written: a check of the recipe."""
    seeds = [seed_of(cfg.seed, COIN, s.group, k % cfg.completions) for k, s in enumerate(samples)]
    return [float(np.random.default_rng(seed).random() < 0.5) for seed in seeds]


# cfg.reward -> a function (samples, cfg, grader) -> R_i of each, once all verdicts are known
REWARDS = {"pass": all_tests_pass, "tests": share_of_tests, "random": coin}


def check_reward(cfg):
    """Raises UserError for a --reward that is not in REWARDS."""
    if cfg.reward not in REWARDS:
        raise UserError(f"--reward {cfg.reward}: expected one of {', '.join(REWARDS)}")


def grade_samples(samples, cfg, grader):
    """Wait for the verdicts, and set the rewards of this rank's samples (reward).

    -> (the samples of all ranks, without their runs; seconds waited)
    """
    began = time.time()
    for s in samples:
        result = s.run.result()
        s.verdict = result.verdict
        s.seconds = result.seconds
        s.apart = result.apart
    rewards = REWARDS[cfg.reward](samples, cfg, grader)
    for s, reward in zip(samples, rewards, strict=True):
        s.reward = reward
    waited = time.time() - began
    G = cfg.completions
    if parallel.world() > 1:
        samples = [dataclasses.replace(s, run=None) for s in samples]
    groups = parallel.unshard([samples[i : i + G] for i in range(0, len(samples), G)])
    return [s for group in groups for s in group], waited


# ---------------------------------------------------------------- 3. credit


def group_advantages(R, std=True):
    """A_i of each completion from the rewards R (B, G) -> (B, G) (advantage).

    Example: [[1, 0, 0, 0]] -> [[1.73, -.58, -.58, -.58]], std=False: [[.75, -.25, -.25, -.25]]
    """
    A = np.where(has_signal(R)[:, None], R - R.mean(1, keepdims=True), 0.0)
    return A / (R.std(1, keepdims=True) + 1e-6) if std else A


def has_signal(R):
    """Which groups have unequal rewards. R (B, G) -> (B,) bool.

    The rewards are compared, and not with their mean, which may differ from them by rounding.
    """
    return (R != R[:, :1]).any(1)


def rewards_of(samples, G):
    """R (B, G) of samples whose groups are adjacent."""
    return np.array([s.reward for s in samples]).reshape(-1, G)


def credit_samples(samples, cfg):
    """Set the advantages of samples -> which samples are in a group with signal: (N,) bool."""
    R = rewards_of(samples, cfg.completions)
    for s, A in zip(samples, group_advantages(R, cfg.rl_std).flatten(), strict=True):
        s.advantage = float(A)
    return np.repeat(has_signal(R), cfg.completions)


def sample_groups(model, tok, train, cfg, first, grader, backend=FAST):
    """Sample, grade and credit what one update needs, in one round or several (departure 5).

    train: all problems; first: how many draws came before.
    -> (samples in the loss, all samples, seconds waited for the grader after sampling)
    """
    G = cfg.completions
    in_loss = []
    everything = []
    waited = 0.0
    for _ in range(cfg.rounds):
        missing = cfg.prompts - len(in_loss) // G
        if not missing:
            break
        drawn = first + len(everything) // G
        tasks = [train[i] for i in problem_order(len(train), cfg.seed, drawn, missing)]
        samples = sample_completions(model, tok, tasks, cfg, drawn, grader, backend)
        samples, seconds = grade_samples(samples, cfg, grader)
        signal = credit_samples(samples, cfg)
        everything += samples
        in_loss += [
            s for s, useful in zip(samples, signal, strict=True) if useful or cfg.rounds == 1
        ]
        waited += seconds
    return in_loss, everything, waited


# ---------------------------------------------------------------- 4. objective


def token_weights(lengths, norm, max_new):
    """w_i / Z of each completion, by the lengths of those in the loss: (N,).

    Example: token, [3, 1] -> [1/4, 1/4]; sequence -> [1/6, 1/2]
    """
    lengths = np.asarray(lengths, float)
    if norm == "sequence":
        return 1 / (lengths * len(lengths))
    Z = lengths.sum() if norm == "token" else len(lengths) * max_new
    return np.full(len(lengths), 1 / Z)


def surrogate(logp, old, A, low, high):
    """min(rho A, clip(rho) A) of every token (objective), and which were clipped.

    logp, old, A (M,) -> (M,), clipped from below (M,) bool, from above (M,) bool
    """
    rho = (logp - old).exp()  # ratio
    value = torch.minimum(rho * A, rho.clamp(1 - low, 1 + high) * A)  # clip
    return value, (rho < 1 - low) & (A < 0), (rho > 1 + high) & (A > 0)


def plain_scores(model, samples, forbid=(), amp=False, start=None, measured=(), kl_grad=False):
    """Score the tokens of completions -> CompletionScores; the twin of
    engine.gradients.score_completions, with its arguments, one completion at a time."""
    scores = CompletionScores(None, None, None, None, 0)
    logp, entropy, kl, marks = [], [], [], []
    for s, mark in zip(samples, measured or [False] * len(samples), strict=True):
        logq = completion_logprobs(model, s, forbid, amp)  # (n, V)
        targets = torch.tensor(s.ids, device=model.device)
        logp.append(logq.gather(1, targets[:, None])[:, 0])
        surprise = -(logq.exp() * logq.masked_fill(logq == -torch.inf, 0.0))  # (n, V)
        entropy.append(surprise.sum(1).detach())
        marks += [mark] * len(s.ids)
        scores.tokens += len(s.prompt + s.ids)
        if mark:
            with torch.no_grad():
                log_start = completion_logprobs(start, s, forbid, amp)  # (n, V)
            with torch.set_grad_enabled(kl_grad):
                away = (logq - log_start).masked_fill(logq == -torch.inf, 0.0)
                kl.append((logq.exp() * away).sum(1))
            scores.start_tokens += len(s.prompt + s.ids)
    scores.logp = torch.cat(logp)
    scores.entropy = torch.cat(entropy)
    scores.kl = torch.cat(kl) if kl else scores.logp.new_zeros(0)
    scores.measured = torch.tensor(marks, device=model.device).nonzero()[:, 0]
    return scores


def completion_logprobs(model, s, forbid, amp):
    """log pi of every token where a completion's tokens are predicted: (n, V).

    Tokens of `forbid` are left out of the softmax.
    """
    ids = torch.tensor([s.prompt + s.ids], device=model.device)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=amp):
        hidden = model(ids)[0, len(s.prompt) - 1 : -1]  # (n, D)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    logits = hidden.to(wide) @ model.head_weight.to(wide).T  # (n, V)
    if forbid:
        columns = torch.tensor(list(forbid), device=model.device)
        logits = logits.index_fill(1, columns, -torch.inf)
    return logits.log_softmax(-1)


# ---------------------------------------------------------------- 5. update


@dataclasses.dataclass
class MicroBatch:
    """Samples that go through the model at once."""

    samples: list
    weights: list  # w_i / Z of each sample
    measured: list  # bool of each: its KL is taken
    old: torch.Tensor = None  # (M,) log pi_old of the tokens; None: pi is pi_old


def batches(samples, most):
    """Micro-batches of this rank's share of samples: lists of indices.

    The completions of a prompt are together, and the prompt counts once.
    """
    share = parallel.shard_block(range(len(samples)))
    ids = [samples[i].prompt + samples[i].ids for i in share]
    return [[share[i] for i in part] for part in shared_parts(ids, most)]


def plan_minibatches(samples, cfg, seed):
    """Minibatches of whole groups in random order -> lists of MicroBatches.

    A minibatch without any advantage is left out (departure 6). With rl_kl = 0 the KL is only
    measured, on one completion a group.
    """
    last_of_group = {s.group: i for i, s in enumerate(samples)}
    measured = set(range(len(samples)) if cfg.rl_kl else last_of_group.values())
    order = np.random.default_rng(seed).permutation(list(last_of_group))
    plan = []
    for part in np.array_split(order, min(cfg.minibatches, len(order))):
        groups = set(part.tolist())
        indices = [i for i, s in enumerate(samples) if s.group in groups]
        members = [samples[i] for i in indices]
        if not any(s.advantage for s in members):
            continue
        weights = token_weights([len(s.ids) for s in members], cfg.rl_norm, cfg.max_new)
        plan.append(
            [
                MicroBatch(
                    [members[k] for k in micro],
                    [weights[k] for k in micro],
                    [indices[k] in measured for k in micro],
                )
                for micro in batches(members, cfg.micro_tokens)
            ]
        )
    return plan


def score_old(model, plan, cfg, forbid, backend):
    """Set log pi_old of every micro-batch, before the first update -> tokens read."""
    read = 0
    with torch.no_grad():
        for minibatch in plan:
            for micro in parallel.synced_batches(model, minibatch):
                scores = backend.score_completions(model, micro.samples, forbid, cfg.bf16)
                micro.old = scores.logp
                read += scores.tokens
    return read


def micro_loss(model, start, micro, cfg, forbid, backend=FAST):
    """-J of a micro-batch, with gradient, and sums over its tokens -> (loss, {name: number}).

    The sums may be tensors on the device: `read_sums`.
    """
    samples = micro.samples
    lengths = [len(s.ids) for s in samples]

    def by_token(values):
        row = torch.tensor(np.repeat(values, lengths), dtype=torch.float32)
        return to_device(row, model.device)  # (M,)

    weight = by_token(micro.weights)  # (M,) w_i / Z
    A = by_token([s.advantage for s in samples])  # (M,)
    recorded = torch.tensor([x for s in samples for x in s.logprobs])  # (M,)
    recorded = to_device(recorded, model.device)
    scores = backend.score_completions(
        model, samples, forbid, cfg.bf16, start, micro.measured, cfg.rl_kl > 0
    )
    old = scores.logp.detach() if micro.old is None else micro.old
    value, below, above = surrogate(scores.logp, old, A, cfg.clip_low, cfg.clip_high)  # (M,)
    loss = -(weight * value).sum()  # objective
    if cfg.rl_kl:
        loss = loss + cfg.rl_kl * (weight[scores.measured] * scores.kl).sum()  # objective
    gap = (old - recorded).abs()
    return loss, {
        "entropy": scores.entropy.sum(),
        "clip_low": below.sum(),
        "clip_high": above.sum(),
        "logp_gap": gap.sum(),
        "logp_gap_max": gap.max(),
        "ratio_off": ((old - recorded).expm1().abs() > 0.1).sum(),
        "tokens": sum(lengths),
        "kl_tokens": len(scores.kl),
        "kl_start": scores.kl.detach().sum(),
        "trained": scores.tokens,
        "scored": scores.start_tokens,
    }


def read_sums(sums):
    """Scalars, tensors on one device and numbers, as floats, in one copy from the device."""
    tensors = {key: x.double() for key, x in sums.items() if isinstance(x, torch.Tensor)}
    read = dict(zip(tensors, torch.stack(list(tensors.values())).tolist(), strict=True))
    return {key: read[key] if key in read else float(x) for key, x in sums.items()}


def add_sums(total, sums):
    """Add sums of a micro-batch or a rank to a Counter; of logp_gap_max the largest counts."""
    largest = max(total["logp_gap_max"], sums["logp_gap_max"])
    total.update(sums)
    total["logp_gap_max"] = largest


def update(model, start, opt, samples, cfg, seed, forbid=(), backend=FAST):
    """`epochs` x `minibatches` optimizer steps up J on samples with their advantages -> metrics.

    start: the model that the KL is taken to. A minibatch without signal is left out; without any
    signal nothing is done and nothing measured. Under torchrun, pass all samples on every rank.
    """
    samples = [s for s in samples if s.finished or not cfg.mask_overlong]
    plan = plan_minibatches(samples, cfg, seed) if samples else []
    total = collections.Counter(logp_gap_max=0.0)
    losses = []
    norms = []
    if cfg.epochs * len(plan) > 1:
        total["scored"] += score_old(model, plan, cfg, forbid, backend)
    for minibatch in plan * cfg.epochs:
        losses.append(0.0)
        for micro in parallel.synced_batches(model, minibatch):
            loss, sums = micro_loss(model, start, micro, cfg, forbid, backend)
            parallel.backward(loss)
            sums = read_sums({"loss": loss.detach(), **sums})
            losses[-1] += sums.pop("loss")
            add_sums(total, sums)
        norms.append(parallel.clip(model, cfg.grad_clip).item())
        opt.step()
        opt.zero_grad(set_to_none=True)
    return update_metrics(total, losses, norms)


def update_metrics(total, losses, norms):
    """The metrics of an update, over all ranks. None: nothing was measured."""
    ranks = parallel.all_gather((total, losses))
    total = collections.Counter(logp_gap_max=0.0)
    for sums, _ in ranks:
        add_sums(total, sums)
    losses = [sum(shares) for shares in zip(*(shares for _, shares in ranks), strict=True)]

    def mean(key, by="tokens"):
        return total[key] / total[by] if total[by] else None

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


# ---------------------------------------------------------------- the stage


def thought_share(tok, ids):
    """Share of tokens from one that begins with `#` to the end of its line."""
    inside = False
    n = 0
    for i in ids:
        inside = (inside or i in tok.thought_ids) and i not in tok.stop_ids
        n += inside
        inside = inside and i not in tok.closing_ids
    return n / max(1, len(ids))


def held_out(model, tok, tasks, cfg, backend=FAST):
    """Pass rate of a model on held-out problems, eval_samples programs each, and their verdicts."""
    rows = sample_and_grade(
        inference_copy(model, cfg),
        tok,
        tasks,
        n=cfg.eval_samples,
        temperature=cfg.temperature,
        max_new=cfg.max_new,
        seed=(cfg.seed, RLVR_HELDOUT),
        progress=False,
        forbid=() if cfg.thoughts else tok.thought_ids,
        backend=backend,
    )
    return {
        "pass@1": mean_pass_at_k(rows, cfg.eval_samples, (1,))["pass@1"],
        "comments": float(np.mean([row["completion"].count("#") for row in rows])),
        "verdicts": count_verdicts(rows),
    }


def show_completion(s):
    """A completion with its verdict, reward and advantage, its thoughts marked."""
    lines = (s.task.prompt + s.text).split("\n")
    marked = [("> " if line.lstrip().startswith("#") else "  ") + line for line in lines]
    head = f"--- {s.task.name}: {s.verdict}, reward {s.reward:g}, advantage {s.advantage:+.2f}"
    return "\n".join([f"{head}, {len(s.ids)} tokens", *marked])


@dataclasses.dataclass
class Position:
    """Where the stage stands: what its checkpoints and its metrics say of all steps so far."""

    step: int = 0
    drawn: int = 0  # groups sampled
    sampled_tokens: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0  # of all ranks
    flops: float = 0.0  # of all that came after pre-training


def rlvr(run, name):
    """The stage: cfg.rl_steps of GRPO from the model cfg.init of the run's folder -> NAME.pt."""
    cfg = run.cfg
    start, extra = run.load(cfg.init)
    model = copy.deepcopy(start)
    start.requires_grad_(False)
    train, held, counts = run.training_problems()
    problems = ", ".join(f"{kind} {n}" for kind, n in counts.items() if n)
    tqdm.write(f"{name}: from {cfg.init}; problems: {problems}; {len(held)} held out")
    position = Position(flops=0.0 if cfg.init == "base" else extra["flops"])
    state = run.restore(name)
    model, opt = training.prepare_training(
        model, cfg, lambda m: training.adamw(m, cfg.rl_lr, 0.0, (cfg.seed, ROUNDING, RLVR)), state
    )
    if state:
        position = Position(**{f.name: state[f.name] for f in dataclasses.fields(Position)})
    if not position.step:
        log_curve(run, name, model, held, position)
    bar = steps_bar(f"{name}: GRPO", position.step, cfg.rl_steps)
    with Grader(parallel.workers()) as grader:
        for step in bar:
            everything, m, clock = grpo_step(run, model, start, opt, train, position, grader)
            advance(position, everything, m, clock, cfg, work_size(model))
            log_step(run, name, bar, position, everything, m, clock)
            if cfg.eval_every and (step + 1) % cfg.eval_every == 0:
                show_two(everything)
            if cfg.eval_every and (step + 1) % cfg.eval_every == 0 or step + 1 == cfg.rl_steps:
                log_curve(run, name, model, held, position)
            if step + 1 < cfg.rl_steps and run.save_due(step):
                weights = {"weights": parallel.state(model), "opt": parallel.state(opt)}
                run.save_state(name, **weights, **dataclasses.asdict(position))
    run.save(
        name,
        parallel.unwrap(model),
        flops=position.flops,
        settings=run.settings,
        rl_seconds=position.seconds,
    )


def grpo_step(run, model, start, opt, train, position, grader):
    """One step: sample, grade, credit, update -> (all samples, metrics of the update, Clock)."""
    cfg = run.cfg
    clock = Clock()
    sampler = inference_copy(model, cfg)
    samples, everything, waited = sample_groups(  # sample, reward, advantage
        sampler, run.tok, train, cfg, position.drawn, grader, run.backend
    )
    clock.sampled(waited)
    lr = cfg.rl_lr * min(1.0, (position.step + 1) / max(1, cfg.rl_warmup))
    for group in opt.param_groups:
        group["lr"] = lr
    forbid = () if cfg.thoughts else tuple(run.tok.thought_ids)
    seed = seed_of(cfg.seed, SHUFFLE, position.step)
    m = update(model, start, opt, samples, cfg, seed, forbid, run.backend)  # objective
    clock.updated()
    return everything, {"lr": lr, **m}, clock


class Clock:
    """The seconds of one step, by part."""

    def __init__(self):
        self.began = time.time()
        self.cpu_began = time.process_time()

    def sampled(self, waited):
        self.waited = waited  # for the grader, after the last completion
        self.sample_s = time.time() - self.began - waited

    def updated(self):
        self.seconds = time.time() - self.began
        self.update_s = self.seconds - self.sample_s - self.waited
        self.cpu_s = sum(parallel.all_gather(time.process_time() - self.cpu_began))


def advance(position, samples, m, clock, cfg, work):
    """Add a step to the position. samples: all of its; m: its update's metrics; work: P."""
    written = sum(len(s.ids) for s in samples)
    prompts = sum(len(s.prompt) for s in samples) // cfg.completions  # tokens, each once
    position.step += 1
    position.drawn += len(samples) // cfg.completions
    position.sampled_tokens += written
    position.seconds += clock.seconds
    position.cpu_s += clock.cpu_s
    position.flops += work * (2 * (prompts + written + m["scored"]) + 6 * m["trained"])


def log_step(run, name, bar, position, samples, m, clock):
    """Log the metrics of a step, and show some of them."""
    R = rewards_of(samples, run.cfg.completions)  # (groups, G)
    verdicts = [s.verdict for s in samples]
    written = sum(len(s.ids) for s in samples)
    no_signal = float(1 - has_signal(R).mean())
    run.log(
        name,
        phase="rlvr",
        **dataclasses.asdict(position),
        reward=float(R.mean()),
        pass_rate=float(np.mean([verdict == "passed" for verdict in verdicts])),
        not_apart=float(np.mean([s.verdict == "passed" and not s.apart for s in samples])),
        no_signal=no_signal,
        length=written / len(samples),
        unfinished=float(np.mean([not s.finished for s in samples])),
        thought_tokens=float(np.mean([thought_share(run.tok, s.ids) for s in samples])),
        sample_s=clock.sample_s,
        grade_wait_s=clock.waited,
        grade_s=sum(s.seconds for s in samples),
        update_s=clock.update_s,
        sample_tokens_per_s=written / max(1e-9, clock.sample_s),
        train_tokens_per_s=m["trained"] / max(1e-9, clock.update_s),
        verdicts={verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))},
        **m,
    )
    bar.set_postfix(
        reward=f"{R.mean():.3f}",
        no_signal=f"{no_signal:.2f}",
        length=f"{written / len(samples):.0f}",
        tok_s=f"{written / max(1e-9, clock.seconds):.0f}",
        **compile_postfix(),
    )


def show_two(samples):
    """Print the best and the worst completion of a step."""
    ranked = sorted(samples, key=lambda s: (-s.reward, -s.advantage))
    tqdm.write(show_completion(ranked[0]) + "\n" + show_completion(ranked[-1]))


def log_curve(run, name, model, held, position):
    """Log the pass rate on held-out problems, if there are any and it is wanted."""
    if not run.cfg.eval_every or not held:
        return
    metrics = held_out(model, run.tok, held, run.cfg, run.backend)
    run.log(name, phase="rlvr-heldout", **dataclasses.asdict(position), **metrics)
    tqdm.write(
        f"{name}: after {position.step} steps, {position.sampled_tokens:,} tokens, "
        f"{position.seconds:.0f} s: held-out pass rate {metrics['pass@1']:.3f}"
    )
