"""The E-step of RA3 (arXiv 2509.25810), by definition: learn *when* to think, and *what*.

The expert's lines are given. Only the latents between them are sampled.

    z_t ~ q(. | s_t, z_<t)     <act>, or <think> and the tokens of a comment            (latent)
    r_t = log pi(a_t | s_t, z_t) - kl_t        pi is frozen; kl_t = c 1[z_t != <act>]   (reward)
    J(q) = E_{z ~ q} sum_t r_t                                                       (objective)
    dJ = E sum_t A_t d log q(z_t | s_t, z_<t)                                         (gradient)

Two ways to credit a decision leave the expected gradient as it is at discount 1 (tested):

    group     A_t = R_t - mean of R_t over the other rollouts of the snippet       (the paper's)
              R_t = sum_{s>=t} discount^{s-t} r_s
    prefix    A_t = D_t - mean of D_t over the other rollouts of the snippet              (ours)
              D_t = sum_{s>=t} discount^{s-t} delta_s,     delta_t = gain_t - kl_t
              gain_t = V(s_t, z_<=t) - V(s_t, z_<t), 0 for <act>                          (gain)
              V(prefix) = sum_{s>=t} log pi(a_s | prefix, no thought from here on)

gain_t is what the thought at t did for *all* lines from t on, before anything later is thought.
The differences telescope: at discount 1, D_t = R_t - V(prefix before t). So V is a baseline that
knows which thoughts stand in the context already; a mean over the group does not.

The first half of this file is slow: one forward a sampled token, and one a score. With
`--engine true` engine/rollouts.py and engine/gradients.py compute the same in a few large forwards
(tests/test_estep.py holds them equal).

Departures from the paper
1. A comment stands at the indentation of its line, and before a line there is at most one.
2. log pi of a line is conditional on the decision (elbo.py, departure 1).
3. The baseline of a rollout is the mean of the *other* rollouts, which is unbiased.
4. The tokens of a thought are compared with other thoughts only.
5. Advantages are divided by their standard deviation over the batch, not over the group. Groups
   that hardly differ would be blown up.
6. The credit by prefix is ours.
7. `kl` adds KL(q || pi) on the tokens of thoughts, not on decisions. A decision is learned within
   ten steps; without this term the noise of its gradient unlearns what thoughts should say.
   It is the bound's KL for a prior whose thoughts come from pi and not from U.
8. The gradient of that term lacks the score term: thoughts are drawn from q too, and how q changes
   which prefixes are visited is left out. It is the gradient at each sampled prefix alone.
9. `estep=best-of-n` optimises the same bound without a gradient: it takes the best of `best_of`
   rollouts.
10. `horizon=1`: one latent a snippet, before its first line. This is BRiTE.
11. `gain_floor` bounds what one bad thought can cost. A wrong worked note costs five nats, a right
    one brings two. Without the floor, thinking dies before lines where two of three are right.
12. `choose_by=line` gives the M-step the latents that are best line by line, of several rollouts,
    as if what a thought is worth did not depend on the thoughts before it. The chance that one
    rollout has all H notes right falls as p^H; that one of n has each right does not.
13. `estep=auto` takes the policy gradient only where the model's own thoughts have a positive
    credit in the mean, and best-of-n elsewhere (`way_of`).
14. Only the first iteration of the small model takes the gradient (`estep=auto,best-of-n`). It
    teaches when to think. Later the model knows, and selection costs less and does no worse. The
    presets of large models take the gradient in each iteration, as the paper does.

Shapes: B snippets, G rollouts each, N = B*G rows, L lines, T tokens, V vocabulary, D width.
"""

import collections
import contextlib
import copy
import dataclasses
import functools
import math
import time

import numpy as np
import torch
from tqdm import tqdm

from config import (
    DIAGNOSE,
    ESTEP,
    ESTEP_BATCH,
    ROUNDING,
    estep_of,
    progress_bar,
    seed_of,
    selection_of,
)
from data import ends_itself, infuse, inserted
from elbo import kl_sample, never_thinks, prior_of, summary
from engine import parallel, training
from engine.backend import FAST, Backend
from engine.gradients import GradientStats
from engine.machine import compile_postfix, steps_bar
from engine.rollouts import EVENT, Rollouts, Row, draw_uniforms
from engine.training import inference_copy
from evaluate import rollouts_of
from hindsight.propose import choose
from model import work_size

# ---------------------------------------------------------------- latents: z ~ q


def all_logits(model, ids):
    """Logits of every next token, (T, V) in float32 or better: row j predicts ids[j + 1]."""
    hidden = model(torch.tensor([ids], device=model.device))[0]  # (T, D)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    return hidden.to(wide) @ model.head_weight.to(wide).T  # (T, V)


def without(logits, ids):
    """Logits of a distribution that these ids are left out of (..., V)."""
    return logits.index_fill(-1, torch.tensor(ids, device=logits.device), -math.inf)


def act_logprob(logits, thought_ids):
    """log q(<act>): no comment begins. q(<think>) is the rest, the mass of thought_ids."""
    return without(logits, thought_ids).logsumexp(-1) - logits.logsumexp(-1)


def draw_token(logprobs, u):
    """The index at which the cumulative distribution passes u. Example: log [.5, .5], .7 -> 1"""
    cdf = logprobs.exp().cumsum(-1)
    return min(int(torch.searchsorted(cdf, u * cdf[-1], right=True)), len(cdf) - 1)


def draw_latents(q, tok, snip, uniforms, think_max, rate=None, horizon=0):
    """Draw a latent before every line (latent) -> (thoughts, logq).

    uniforms   (L,) for the decisions, (L, think_max + 1) for the thoughts' tokens
    rate       probability of <think> in place of q's own; horizon: lines that may think, 0: all
    thoughts   {line: token ids}; a line without an entry is <act>
    logq       (L,) log q(z_t | s_t, z_<t); 0 for lines behind the horizon
    """
    thoughts = {}
    logq = np.zeros(len(snip.first))
    ids = snip.ids[: snip.first[0]]
    for t, (begin, end) in enumerate(line_spans(snip)):
        if t < (horizon or len(snip.first)):
            logits = all_logits(q, ids)[-1]  # (V,)
            opening = logits.log_softmax(-1)[tok.thought_ids]  # (H,) tokens that begin a comment
            p_think = opening.double().exp().sum().item() if rate is None else rate  # q(<think>)
            if uniforms[0][t] < p_think:
                thoughts[t], logq[t] = draw_thought(q, tok, ids, opening, uniforms[1][t], think_max)
                ids = ids + inserted(tok, thoughts[t], snip.sep[t])
            else:
                logq[t] = act_logprob(logits, tok.thought_ids)
        ids = ids + snip.ids[begin:end]  # a_t, the expert's line
    return thoughts, logq


def draw_thought(q, tok, ids, opening, uniforms, think_max):
    """Draw the tokens of a thought behind ids -> (token ids, log q of them and of the end).

    It ends before a stop token, with a closing token, or at think_max tokens.
    """
    k = draw_token(opening, uniforms[0])
    thought = [tok.thought_ids[k]]
    logq = float(opening[k])
    while not ends_itself(tok, thought, think_max):
        logprobs = all_logits(q, ids + thought)[-1].log_softmax(-1)  # (V,)
        token = draw_token(logprobs, uniforms[len(thought)])
        if token in tok.stop_ids:
            return thought, logq + float(logprobs[tok.stop_ids].logsumexp(-1))
        logq += float(logprobs[token])
        thought.append(token)
    return thought, logq


def line_spans(snip):
    """(begin, end) of every line's tokens in the snippet."""
    return list(zip(snip.first, snip.first[1:] + [len(snip.ids)], strict=True))


def infused_spans(tok, snip, thoughts):
    """(decision, begin, end) of every line in the ids with thoughts written in.

    The decision falls at the index where a thought begins, or the line's code without one.
    """
    spans = []
    shift = 0
    for t, (begin, end) in enumerate(line_spans(snip)):
        decision = begin + shift
        shift += len(inserted(tok, thoughts[t], snip.sep[t])) if t in thoughts else 0
        spans.append((decision, begin + shift, end + shift))
    return spans


# ---------------------------------------------------------------- likelihood and gains


def score_lines(pi, tok, snip, thoughts):
    """log pi(a_t | s_t, z_t) of every line, the thoughts written in: (L,).

    A line's first token is scored given that no comment begins (elbo.py, departure 1).
    """
    ids, _ = infuse(tok, snip, thoughts)
    logits = all_logits(pi, ids)  # (T, V)
    lines = []
    for _, begin, end in infused_spans(tok, snip, thoughts):
        given_act = without(logits[begin - 1], tok.thought_ids).log_softmax(-1)  # (V,)
        further = logits[begin : end - 1].log_softmax(-1)  # (n - 1, V)
        tokens = torch.tensor(ids[begin + 1 : end], dtype=torch.int64, device=logits.device)
        lines.append(given_act[ids[begin]] + further.gather(1, tokens[:, None]).sum())
    return torch.stack(lines)


def gains(pi, tok, snip, thoughts):
    """gain_t of each thought: V(s_t, z_<=t) - V(s_t, z_<t), nats (gain): {line: float}."""
    gain = {}
    for t in thoughts:
        earlier = {s: z for s, z in thoughts.items() if s < t}
        with_it = score_lines(pi, tok, snip, earlier | {t: thoughts[t]})[t:].sum()
        without_it = score_lines(pi, tok, snip, earlier)[t:].sum()
        gain[t] = float(with_it - without_it)
    return gain


def roll_out(q, pi, tok, snip, uniforms, think_max, need, **options):
    """One rollout over a snippet, with what `need` asks for -> Row. options: of draw_latents."""
    L = len(snip.first)
    thoughts, logq = draw_latents(q, tok, snip, uniforms, think_max, **options)
    line_logp = np.full(L, math.nan)
    gain = np.zeros(L)
    gain[list(thoughts)] = math.nan
    if need != "latents":
        line_logp = score_lines(pi, tok, snip, thoughts).double().cpu().numpy()
    if need == "gains":
        gain[list(thoughts)] = list(gains(pi, tok, snip, thoughts).values())
    return Row(
        snip=snip,
        group=0,
        uniforms=uniforms,
        ids=infuse(tok, snip, thoughts)[0],
        first=[begin for _, begin, _ in infused_spans(tok, snip, thoughts)],
        line_logp=line_logp,
        thoughts=thoughts,
        gain=gain,
        logq=logq,
        free=min(L, options.get("horizon") or L),
    )


@torch.inference_mode()
def plain_rollouts(
    q, pi, tok, snippets, G, think_max, seed, *, numbers, need="gains", desc="", **options
):
    """G rollouts over each snippet, by definition -> Rollouts.

    The twin of engine.rollouts.rollouts, with its arguments. need: latents, rewards or gains, each
    with those before it. What makes the twin fast (at_once, states) is unused.
    """
    options = {key: options[key] for key in ("rate", "horizon") if key in options}
    rows = []
    base_logp = []
    with count_tokens(q, pi) as counts:
        for snip, number in zip(
            snippets, progress_bar(numbers, desc=desc, leave=False), strict=True
        ):
            for g in range(G):
                uniforms = draw_uniforms(seed, number, g, len(snip.first), think_max)
                rows.append(roll_out(q, pi, tok, snip, uniforms, think_max, need, **options))
                rows[-1].group = len(base_logp)
            base = torch.full((len(snip.first),), math.nan)
            if need != "latents":
                base = score_lines(pi, tok, snip, {})  # when nothing is ever thought
            base_logp.append(base.double().cpu().numpy())
    return Rollouts(rows, G, base_logp, np.zeros(0, EVENT), np.zeros(0), counts["tokens"])


@contextlib.contextmanager
def count_tokens(*models):
    """Count the tokens that some models forward in the meantime -> {"tokens": number}."""
    counts = collections.Counter()

    def add(module, arguments, output):
        counts["tokens"] += arguments[0].numel()

    hooks = [model.register_forward_hook(add) for model in dict.fromkeys(models)]
    yield counts
    for hook in hooks:
        hook.remove()


# ---------------------------------------------------------------- credit


def line_credit(rolls, prior, credit="prefix", floor=math.inf):
    """What the latent before each line is credited with: r_t by group, delta_t by prefix: (N, L).

    floor: by prefix, a thought's loss counts as so many nats at most (departure 11).
    """
    if credit == "group":
        return rolls.rewards(prior)  # r_t
    gain = np.maximum(rolls.lines(lambda row: row.gain), -floor)  # gain_t, 0 for <act>
    delta = gain - kl_sample(rolls.think, rolls.line_logq, prior)  # delta_t
    return np.where(rolls.possible, delta, 0.0)


def returns(r, discount=1.0):
    """R_t = sum_{s>=t} discount^(s-t) r_s of each row. Example: [[1, 2, 3]] -> [[6, 5, 3]]"""
    R = np.zeros(r.shape)
    later = np.zeros(len(r))
    for t in reversed(range(r.shape[1])):
        later = r[:, t] + discount * later
        R[:, t] = later
    return R


def credit(r, think, possible, G, discount=1.0, normalise=True):
    """A_t of every decision and of every thought's tokens: (2, N, L) float64.

    r          (N, L) as from `line_credit`; the G rows of a snippet are adjacent
    think      (N, L) bool: the line has a thought
    possible   (N, L) bool: the line could have one

    A decision is compared with the mean return of the *other* rollouts of its snippet. The tokens
    behind the first are chosen when the decision is made, so they are compared with other thoughts:
    of the snippet's other rollouts that think before this line; if none does, of all other
    rollouts of the batch. No baseline holds anything of the rollout itself: none biases the
    gradient. normalise: divide by the standard deviation over the possible decisions.
    """
    R = returns(r, discount)  # (N, L)
    groups = R.reshape(-1, G, R.shape[1])  # (B, G, L)
    thinks = think.reshape(groups.shape)  # (B, G, L)
    decision = groups - (groups.sum(1, keepdims=True) - groups) / max(1, G - 1)
    n = thinks.sum(1, keepdims=True) - thinks  # the others that think before this line
    thinking = groups * thinks
    others = (thinking.sum(1, keepdims=True) - thinking) / np.maximum(1, n)
    n_elsewhere = np.maximum(1, think.sum() - think.sum(1))  # (N,)
    elsewhere = ((R * think).sum() - (R * think).sum(1)) / n_elsewhere  # (N,)
    tokens = groups - np.where(n > 0, others, elsewhere.reshape(-1, G, 1))
    A = np.stack(
        [
            np.where(possible, decision.reshape(R.shape), 0.0),  # A_t of decisions
            np.where(think, tokens.reshape(R.shape), 0.0),  # A_t of thoughts' tokens
        ]
    )
    return A / (A[0][possible].std() + 1e-6) if normalise else A


# ---------------------------------------------------------------- gradient


def thought_events(tok, snip, thoughts, think_max):
    """The choices within thoughts, behind their first token -> [(line, state, outcomes)].

    Logits number `state` of the infused ids predict the choice; outcomes: the token ids that all
    mean what was drawn. They are one token, or at the end of a thought all stop tokens.
    """
    events = []
    spans = infused_spans(tok, snip, thoughts)
    for t, thought in thoughts.items():
        decision = spans[t][0]
        events += [(t, decision + k - 1, [thought[k]]) for k in range(1, len(thought))]
        if not ends_itself(tok, thought, think_max):
            events.append((t, decision + len(thought) - 1, tok.stop_ids))
    return events


def log_q(logits, tok, snip, thoughts, think_max, free):
    """log q of each decision, and of each thought's further tokens -> ((free,), {line: scalar}).

    logits (T, V) of q for the infused ids; free: the number of first lines that may think.
    """
    decisions = []
    for t, (decision, _, _) in enumerate(infused_spans(tok, snip, thoughts)[:free]):
        state = logits[decision - 1]  # (V,)
        if t in thoughts:
            decisions.append(state.log_softmax(-1)[thoughts[t][0]])  # <think>, and its first token
        else:
            decisions.append(act_logprob(state, tok.thought_ids))  # <act>
    tokens = {t: logits.new_zeros(()) for t in thoughts}
    for t, state, outcomes in thought_events(tok, snip, thoughts, think_max):
        tokens[t] = tokens[t] + logits[state].log_softmax(-1)[outcomes].logsumexp(-1)
    return torch.stack(decisions), tokens


def thought_kls(logits, pi_logits, tok, snip, thoughts, think_max):
    """KL(q || pi) at every choice within a thought behind its first token: a list of scalars."""
    kls = []
    for _, state, _ in thought_events(tok, snip, thoughts, think_max):
        logq = logits[state].log_softmax(-1)  # (V,)
        logp = pi_logits[state].log_softmax(-1)  # (V,)
        kls.append((logq.exp() * (logq - logp)).sum())
    return kls


def row_loss(q, pi, tok, row, A, think_max, kl=0.0):
    """The loss of one rollout -> (loss, KLs of its thoughts' tokens, log q of its latents).

    -sum_t A_t log q(z_t | s_t, z_<t) + kl sum over thoughts' tokens of KL(q || pi)      (gradient)
    A (2, L): A_t of the decision, and of the thought's tokens.
    """
    ids, _ = infuse(tok, row.snip, row.thoughts)
    logits = all_logits(q, ids)  # (T, V)
    decisions, tokens = log_q(logits, tok, row.snip, row.thoughts, think_max, row.free)
    weight = torch.as_tensor(A, dtype=decisions.dtype, device=decisions.device)
    loss = -(weight[0, : row.free] * decisions).sum()  # gradient
    logq = [x.detach().item() for x in decisions]
    for t, logprob in tokens.items():
        loss = loss - weight[1, t] * logprob  # gradient
        logq[t] += logprob.detach().item()
    kls = []
    if kl:
        with torch.no_grad():
            pi_logits = all_logits(pi, ids)  # (T, V)
        kls = thought_kls(logits, pi_logits, tok, row.snip, row.thoughts, think_max)
        loss = loss + kl * sum(kls, logits.new_zeros(()))
    return loss, [float(x.detach()) for x in kls], logq


def plain_policy_gradient(q, pi, tok, rolls, A, think_max, *, kl=0.0, amp=False, micro_tokens=0):
    """Accumulate in q's parameters the gradient of the mean of `row_loss` over the rows.

    The twin of engine.gradients.policy_gradient, with its arguments -> GradientStats.
    """
    stats = GradientStats()
    kls = []
    with count_tokens(q) as counts:
        for n, row in enumerate(rolls.rows):
            with torch.autocast(q.device.type, torch.bfloat16, enabled=amp):
                loss, row_kls, logq = row_loss(q, pi, tok, row, A[:, n], think_max, kl)
            loss = loss / len(rolls.rows)
            loss.backward()
            stats.loss += float(loss.detach())
            gap = np.abs(np.array(logq) - row.logq[: row.free]).max()
            stats.logq_gap = max(stats.logq_gap, float(gap))
            kls += row_kls
    stats.kl = sum(kls) / max(1, len(kls))
    stats.tokens = counts["tokens"]
    return stats


# ---------------------------------------------------------------- the loop


def draw_snippets(run, iteration, step):
    """Numbers of a step's expert snippets, a function of the seed and the step."""
    cfg = run.cfg
    rng = np.random.default_rng(seed_of(cfg.seed, ESTEP_BATCH, iteration, step))
    size = min(cfg.snippets, len(run.expert))
    return rng.choice(len(run.expert), size, replace=False)


def estep(run, name, pi, iteration, state, flops, seconds):
    """The E-step by policy gradient, from a copy of pi -> (q, FLOPs so far).

    state: where to go on, or None. seconds(): the stage's time so far, for its checkpoints.
    """
    cfg = run.cfg
    start = state["step"] if state else 0
    q, opt = training.prepare_training(
        copy.deepcopy(pi),
        cfg,
        lambda m: training.adamw(m, cfg.estep_lr, 0.0, (cfg.seed, ROUNDING, ESTEP, iteration)),
        state if start else None,
        "q",
    )
    pi.requires_grad_(False)  # or the KL's gradient would wait in pi for the M-step's first step
    pi_fixed = inference_copy(pi, cfg)
    bar = steps_bar(f"{name}: E-step {iteration + 1}", start, cfg.estep_steps)
    for step in bar:
        m, work = estep_step(run, q, pi, pi_fixed, opt, iteration, step)
        flops += work
        run.log(name, phase="estep", iteration=iteration, step=step, flops=flops, **m)
        show_progress(bar, m)
        if run.save_due(step):
            run.save_state(
                name,
                phase="estep",
                iteration=iteration,
                step=step + 1,
                flops=flops,
                q=parallel.state(q),
                opt=parallel.state(opt),
                weights=pi.state_dict(),
                seconds=seconds(),
            )
    pi.requires_grad_(True)
    return parallel.unwrap(q), flops


def estep_step(run, q, pi, pi_fixed, opt, iteration, step):
    """One step of policy gradient on q -> (metrics, FLOPs). pi_fixed: pi as it scores."""
    cfg = run.cfg
    began = time.time()
    peak = cfg.estep_lr * cfg.estep_lr_decay**iteration
    for group in opt.param_groups:
        group["lr"] = training.learning_rate(step, cfg.estep_steps, peak, 1)
    numbers = draw_snippets(run, iteration, step)
    rolls = sample_rollouts(run, q, pi_fixed, numbers, (cfg.seed, ESTEP, iteration, step))
    sampled = time.time()
    prior = prior_of(cfg, run.tok, pi.cfg.vocab_size)
    r = line_credit(rolls, prior, cfg.credit, cfg.gain_floor)  # r_t or delta_t
    A = credit(r, rolls.think, rolls.possible, rolls.G, cfg.discount, cfg.normalise)  # A_t
    options = dict(kl=cfg.kl, amp=cfg.bf16, micro_tokens=cfg.micro_tokens)
    stats = run.backend.policy_gradient(q, pi, run.tok, rolls, A, cfg.think_max, **options)
    norm = parallel.clip(q, cfg.grad_clip).item()
    opt.step()
    opt.zero_grad(set_to_none=True)
    hard = run.expert_hard and [run.expert_hard[i] for i in numbers]
    m = step_metrics(summary(rolls, prior, hard), rolls, stats, norm, began, sampled)
    return m, work_size(q) * (2 * rolls.forward_tokens + 6 * stats.tokens)


def sample_rollouts(run, q, pi_fixed, numbers, seed):
    """G rollouts of q over each of a step's snippets, with what the credit needs -> Rollouts."""
    cfg = run.cfg
    return run.backend.rollouts(
        inference_copy(q, cfg),
        pi_fixed,
        run.tok,
        [run.expert[i] for i in numbers],
        cfg.group,
        cfg.think_max,
        seed,
        numbers=numbers.tolist(),
        at_once=cfg.snippets,
        horizon=cfg.horizon,
        need="gains" if cfg.credit == "prefix" else "rewards",
        states=cfg.kl > 0,
    )


def step_metrics(said, rolls, stats, norm, began, sampled):
    """The metrics of a step. said: `summary` of its rollouts; began, sampled: times in seconds."""
    tokens = rolls.forward_tokens + stats.tokens
    now = time.time()
    return {
        "reward": said["elbo"],
        "loss": stats.loss,
        "kl": stats.kl,
        "grad_norm": norm,
        "logq_gap": stats.logq_gap,
        "rollout_s": sampled - began,
        "update_s": now - sampled,
        "tokens": tokens,
        "tokens_per_s": tokens / (now - began),
        **{key: said[key] for key in said if key not in ("elbo", "ce_code")},
    }


def show_progress(bar, metrics):
    # measured with credit by prefix
    gain = {"gain": f"{metrics['gain']:+.2f}"} if "gain" in metrics else {}
    bar.set_postfix(
        reward=f"{metrics['reward']:.2f}",
        think=f"{metrics['think_share']:.2f}",
        **gain,
        tok_s=f"{metrics['tokens_per_s']:.0f}",
        **compile_postfix(),
    )


def way_of(run, name, pi, iteration, state):
    """How an EM iteration finds its thoughts, one of PROPOSALS. Tells what pi's own are worth.

    auto: a policy gradient if the model's own thoughts have a positive credit in the mean, else
    best-of-n. With a negative one the gradient learns silence before it learns what to say; a
    selection is not drawn to silence. state: of a stage that goes on, or None.
    """
    cfg = run.cfg
    way = estep_of(cfg, iteration)
    if way not in ("auto", "reinforce") or never_thinks(cfg):
        return way
    if state and state["step"]:
        return "reinforce"  # its E-step has begun
    worth = diagnose(run, pi)
    if way == "auto":
        way = "reinforce" if worth["credit"] > 0 else "best-of-n"
        if way == "best-of-n":
            tqdm.write(
                f"their mean credit is {worth['credit']:+.2f} nats, and a gradient would end them: "
                f"this iteration takes the best of {cfg.best_of} rollouts (--estep auto)"
            )
    elif cfg.kl_prior == "penalty" and worth["gain"] < cfg.c:
        tqdm.write(
            f"warning: the mean gain is below c = {cfg.c:g}: the bound is served best by thinking "
            "less, and thinking may die out"
        )
    run.log(name, phase="diagnose", iteration=iteration, estep=way, **worth)
    return way


def diagnose(run, pi):
    """Print and return what the model's own thoughts are worth before the E-step."""
    cfg = run.cfg
    seed = (cfg.seed, DIAGNOSE)
    rolls = rollouts_of(pi, run.tok, run.expert[:32], 4, cfg, seed, "diagnose", run.backend)
    prior = prior_of(cfg, run.tok, pi.cfg.vocab_size)
    s = summary(rolls, prior)
    credits = line_credit(rolls, prior, "prefix", cfg.gain_floor)[rolls.think]  # delta_t
    by_word = collections.defaultdict(list)
    for row in rolls.rows:
        for t, ids in row.thoughts.items():
            word = run.tok.decode(ids[1:3]).strip().split(" ")[0] or "(empty)"
            by_word[word].append(row.gain[t])
    frequent = sorted(by_word.items(), key=lambda item: -len(item[1]))[:6]
    price = f"c = {cfg.c:g}" if cfg.kl_prior == "penalty" else "their KL to the prior"
    words = ", ".join(f"{word!r} {np.mean(x):+.2f} ({len(x)})" for word, x in frequent)
    tqdm.write(
        f"thoughts of the model as it is: before {s['think_share']:.1%} of lines, "
        f"gain {s['gain']:+.2f} nats each, {s['gain_above_c']:.0%} of them above {price}; "
        f"by first word: {words}"
    )
    worth = {k: s[k] for k in ("think_share", "gain", "gain_above_c", "elbo", "elbo_no_think")}
    return {**worth, "credit": float(credits.mean()) if credits.size else 0.0}


# ---------------------------------------------------------------- thoughts for the M-step


@dataclasses.dataclass
class Proposer:
    """Who thinks for the M-step, who scores, and what fixes their draws."""

    q: object  # the model that thinks
    pi: object  # the model that scores
    tok: object
    cfg: object
    seed: tuple  # ints; the other part of a draw's seed is the snippet's number
    stats: collections.Counter  # `forward_tokens` counts the tokens forwarded
    way: str  # one of PROPOSALS
    iteration: int = 0
    tasks: list = ()  # the built-in domain's tasks, by number of the snippet
    backend: Backend = FAST


def rolled_out(source, snippets, numbers, n, rate=None, need="latents"):
    """n rollouts of q over each snippet -> Rollouts. need: nothing but latents if n is 1."""
    cfg = source.cfg
    rolls = source.backend.rollout(
        source.q,
        source.pi,
        source.tok,
        snippets,
        n,
        cfg.think_max,
        source.seed,
        numbers=numbers,
        horizon=cfg.horizon,
        need=need if n > 1 else "latents",
        rate=rate,
    )
    source.stats["forward_tokens"] += rolls.forward_tokens
    return rolls


def resampled(source, snippets, numbers):
    """Of cfg.resample rollouts of q, a draw in proportion to exp(reward). Of one: a sample of q."""
    n = source.cfg.resample
    noise = [np.random.default_rng(seed_of(*source.seed, i)) for i in numbers]
    # Gumbel: argmax of reward + noise is a draw from softmax(reward)
    return choose_rollouts(
        source, snippets, numbers, n, lambda b, shape: noise[b].gumbel(size=shape)
    )


def best_of_n(source, snippets, numbers):
    """Of cfg.best_of rollouts of the frozen model (q is pi) the best by reward."""
    return choose_rollouts(
        source, snippets, numbers, source.cfg.best_of, lambda b, shape: np.zeros(shape)
    )


def choose_rollouts(source, snippets, numbers, n, noise):
    """Of n rollouts of each snippet, the latents with the largest reward + noise(b, shape).

    choose_by=snippet   one rollout as it is, by sum_t r_t
    choose_by=line      before each line the latent of one rollout, by delta_t (departure 12)
    """
    by_line = source.cfg.choose_by == "line"
    rolls = rolled_out(source, snippets, numbers, n, need="gains" if by_line else "rewards")
    prior = prior_of(source.cfg, source.tok, source.pi.cfg.vocab_size)
    if by_line:
        rewards = line_credit(rolls, prior).reshape(len(snippets), n, -1)  # (B, n, L) delta_t
    else:
        rewards = rolls.rewards(prior).sum(1).reshape(-1, n, 1)  # (B, n, 1) sum_t r_t
    thoughts = []
    for b, snip in enumerate(snippets):
        best = (rewards[b] + noise(b, rewards[b].shape)).argmax(0)  # (L,) or (1,)
        lines = range(len(snip.first))
        rows = [rolls.rows[b * n + best[t if by_line else 0]] for t in lines]
        thoughts.append({t: rows[t].thoughts[t] for t in lines if t in rows[t].thoughts})
    return thoughts


def in_hindsight(source, snippets, numbers):
    """Thoughts proposed after seeing the line, weighed as cfg.selection says for this iteration."""
    cfg = source.cfg
    which = selection_of(cfg, source.iteration)
    thoughts, tokens = choose(source.pi, source.tok, snippets, cfg, which, source.seed, numbers)
    source.stats["forward_tokens"] += tokens
    return thoughts


def sampled(source, snippets, numbers):
    """The model's own thoughts, one sample as it is."""
    return [row.thoughts for row in rolled_out(source, snippets, numbers, 1).rows]


def sampled_at_rate(source, snippets, numbers):
    """The model's own thoughts before each line with probability cfg.rate."""
    rolls = rolled_out(source, snippets, numbers, 1, source.cfg.rate)
    return [row.thoughts for row in rolls.rows]


def oracle(source, snippets, numbers):
    """The worked notes of the built-in domain's tasks."""
    encode = source.tok.encode
    return [{t: encode(f" # {note}") for t, note in source.tasks[i].notes} for i in numbers]


def never(source, snippets, numbers):
    """No thought at all, as with c = inf."""
    return [{} for _ in snippets]


# cfg.estep -> a function (source, snippets, numbers) -> [{line: ids}]
PROPOSALS = {
    "reinforce": resampled,
    "best-of-n": best_of_n,
    "hindsight": in_hindsight,
    "none": sampled,
    "random": sampled_at_rate,
    "oracle": oracle,
}


def proposals(source):
    """-> (function (snippets, numbers) -> [{line: ids}], how many snippets to give it at once)."""
    cfg = source.cfg
    way = source.way
    rows = {"best-of-n": cfg.best_of, "reinforce": cfg.resample, "hindsight": cfg.proposals}
    silent = never_thinks(cfg) and way != "oracle"
    propose = never if silent else PROPOSALS[way]
    return functools.partial(propose, source), max(1, 256 // rows.get(way, 1))
