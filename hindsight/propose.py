"""Thoughts in hindsight: an E-step that proposes a thought after seeing the line it is for.

Each proposal is weighed by what it would have cost before the line.
A model writes better comments behind a line than before it.
So the proposal for line t is its own continuation of

    s_t a_t "  #" -> z      a trailing comment, sampled up to the newline        q_h(z | s_t, a_t)

moved to where a thought stands, before the line. Importance weights make up for the peeking.
<act> is counted exactly; z_1 … z_K are drawn from the mixture (balance heuristic)

    m = (K_h q_h + K_c p(. | s_t, <think>)) / K

of K_h proposals in hindsight and K_c of the model's own:

    p(a | s) = p(<act> | s) pi(a | s)  +  sum_z p(z | s) pi(a | s, z)                     (marginal)
             = p(<act> | s) pi(a | s)  +  E 1/K sum_k w_k                                 (unbiased)
    w_k = p(z_k | s) pi(a | s, z_k) / m(z_k)
    log p(a | s)  >=  E log( p(<act> | s) pi(a | s) + 1/K sum_k w_k )                        (bound)

a is line t and what follows, `reach` lines of it. p(z | s) covers the decision, the thought's
tokens, and its end. How one of {<act>, z_1, …, z_K} is selected (`--selection`):

    exact      in proportion to {p(<act> | s) pi(a | s), w_1 / K, …, w_K / K}: a draw from the
               posterior as K grows
    penalty    RA3's prior in place of the model's: {pi(a | s), e^-c pi(a | s, z_k)}; without 1/K
               and 1/m, so that K proposals are K chances
    best       the largest of these
    act        proposes nothing

Densities are over token ids, not text: the product of p(token) over the ids after `#`, times the
total probability of the stop tokens (omitted if the thought has maximal length or ends in a closing
token). q_h conditions on the trailing `#`, p on the leading one: the token that `data.mark` gives
for the line's indentation. No text is encoded again, so no density is approximated.
Thoughts that begin with another token (`##`) are left out of the sum, which stays a lower bound.
Thoughts whose text in place would be encoded differently count in the bound, and are never drawn.

Approximations
1. Lines are treated one by one: a thought is proposed and weighed with no other thought in the
   context, and those selected are written in together. Exact where one line a snippet is tried.
2. The resampling is self-normalised: exact as K grows.

    python train.py --stage em --preset smollm2 --estep hindsight
    python -m hindsight --preset smollm2 --out runs/smollm2-0 --models base,ntp,ra3

The second prints what a model's own thoughts are worth on held-out code.

Results on SmolLM2-135M: M-steps of 42,600 tokens in all on functions of the standard library,
48 held-out functions, 8 thoughts at 3 lines of each; nats a line, ± one standard error over
functions. own: gain of the model's own thoughts on their line. bound: the marginal at the model's
own P(<think>), less never thinking. paid: the marginal less the likelihood of NTP (as many tokens,
the same functions) without thoughts.

    recipe                           P(<think>)  own            bound            paid
    NTP, 2 iterations                .002        -2.10 ± 0.20   +0.001 ± 0.001   +0.001 ± 0.001
    best, 1 iteration                .239        -1.47 ± 0.16   +0.218 ± 0.068   -1.04 ± 0.27
    exact, 2 iterations              .086        -1.24 ± 0.14   +0.066 ± 0.025   -0.134 ± 0.079
    best, then exact                 .111        -1.35 ± 0.17   +0.105 ± 0.042   -0.109 ± 0.105
    act (that is NTP), then exact    .075        -1.72 ± 0.15   +0.032 ± 0.022   -0.005 ± 0.081

With exact weights thinking survives, and the marginal is above never thinking. `exact` from the
start loses more on code without thoughts than it gains. After an iteration of NTP it is a draw with
NTP, also with 3.6 times the tokens and 96 held-out functions: bound +0.040 ± 0.014, paid
+0.034 ± 0.030, or +0.006 ± 0.022 if all lines say what the code lost (docs). No recipe is
clearly better than NTP, which takes less than half the compute.

Shapes: B snippets, M lines that are tried, K proposals at each, L lines, T tokens, D width, N rows.
"""

import dataclasses
import math

import numpy as np
import torch

from config import JUDGE, seed_of
from data import canonical, ends_itself, infuse, inserted, mark
from elbo import Prior, code_logprobs, reward
from engine.layers import scoring_head
from engine.machine import rows_at_once
from engine.sample import generate
from logprobs import none_logprobs, token_logprobs

# What is scored: a token; the end of a thought; a line's first token, given that no comment begins.
CONTENT, END, OPEN = range(3)
IN_HINDSIGHT, OWN, NOISE = range(3)  # last word of a seed


@dataclasses.dataclass
class Proposals:
    """K thoughts for each of M lines, and all that weighs them.

    Log-probabilities are in nats, float64. The last axis of `base` and `given` is the line itself
    and `reach` lines from it on.
    """

    snip: list  # (M,) index of the snippet
    line: list  # (M,) index of the line
    thoughts: list  # (M, K) token ids, the `#` included; first those in hindsight, then the own
    act: np.ndarray  # (M,) log p(<act> | s_t)
    think: np.ndarray  # (M,) log p(first token of a thought | s_t)
    logp: np.ndarray  # (M, K) log p(z | s_t)
    logq: np.ndarray  # (M, K) log q_h(z | s_t, a_t); nan if nothing is proposed in hindsight
    logm: np.ndarray  # (M, K) log of the mixture that proposed
    base: np.ndarray  # (M, 2) log pi(a_t | s_t) without a thought
    given: np.ndarray  # (M, K, 2) the same after the thought
    lines: list  # B arrays (L,): log pi of each line without thoughts
    forward_tokens: int


@dataclasses.dataclass
class Attempt:
    """A line at which thoughts are proposed."""

    b: int  # the snippet
    t: int  # the line
    head: int  # the first token of a comment before the line
    before: list  # ids up to that token, which it ends with: what a thought of the model continues
    after: list  # ids that a thought in hindsight continues (`hindsight_context`)


@dataclasses.dataclass
class ScoringJob:
    """A row of tokens to score, which goes on from a snippet in the cache."""

    b: int  # the snippet: its row of the cache holds ids[:start]
    ids: list
    start: int
    wanted: list  # (j, kind, part): CONTENT, END or OPEN of the token at j > start, added to a part


def line_end(snip, t):
    """The index in ids after the last token of line t."""
    return snip.first[t + 1] if t + 1 < len(snip.first) else len(snip.ids)


def hindsight_context(tok, snip, t):
    """Ids of everything up to the end of line t's code, and the `  #` of a trailing comment.

    They begin as the snippet does, with bos where the tokenizer has one.
    """
    return tok.bos + tok.encode(tok.decode(snip.ids[: line_end(snip, t)]).rstrip() + "  #")


def first_token(tok, snip, t):
    """The token with which a comment before line t begins. Example: four blanks -> ` #`"""
    content = tok.decode(snip.ids[snip.first[t] : snip.first[t] + 4])
    blank = content.startswith(" ")  # the last one of the indentation
    return mark(tok, tok.decode(snip.sep[t])[1:] + " " * blank)[0]


def forward(model, cache, rows):
    """Run ids[start:] of each row on its cache, which holds ids[:start] -> hidden (N, T, D).

    rows: [(ids, start)].
    """
    T = max(len(ids) - start for ids, start in rows)
    reach = max(len(ids) for ids, _ in rows) + 1  # the last slot takes what padding writes
    cache.reserve(reach)
    ids = torch.zeros(len(rows), T, dtype=torch.int64)  # (N, T)
    for n, (row, start) in enumerate(rows):
        ids[n, : len(row) - start] = torch.tensor(row[start:])
    starts = torch.tensor([start for _, start in rows])
    pos = (starts[:, None] + torch.arange(T)).clamp(max=reach - 1)  # (N, T)
    return model(ids.to(model.device), pos=pos.to(model.device), cache=cache, reach=reach)


# ---------------------------------------------------------------- log-probabilities


def float32_at_least(tensor):
    """A tensor in float32; one in float64 stays. States are scored so, as in elbo.py."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def score_jobs(model, tok, cache, jobs):
    """Sums of log-probabilities over the parts of rows -> ((N, parts) float64, tokens run).

    jobs: list of ScoringJob.
    """
    batch = rows_at_once(model.device) // 2  # each with a copy of its snippet's cache
    head = scoring_head(model)  # (V, D)
    parts = 1 + max(part for job in jobs for _, _, part in job.wanted)
    out = torch.zeros(len(jobs) * parts, dtype=torch.float64)
    tokens = 0
    order = sorted(
        range(len(jobs)), key=lambda n: (len(jobs[n].ids) - jobs[n].start, len(jobs[n].ids))
    )
    for i in range(0, len(order), batch):
        numbers = order[i : i + batch]
        chunk = [jobs[n] for n in numbers]
        slots = torch.tensor([job.b for job in chunk], device=model.device)
        rows = [(job.ids, job.start) for job in chunk]
        hidden = forward(model, cache.select(slots), rows)  # (n, T, D)
        table = []
        for row, (n, job) in enumerate(zip(numbers, chunk, strict=True)):
            for j, kind, part in job.wanted:
                target = job.ids[j] if j < len(job.ids) else 0
                table.append((row, j - 1 - job.start, target, kind, n * parts + part))
        row, j, target, kind, cell = torch.tensor(table, device=model.device).T  # (wanted,) each
        logp = score_tokens(head, tok, hidden[row, j], target, kind)
        out.index_add_(0, cell.cpu(), logp.double().cpu())
        tokens += sum(len(job.ids) - job.start for job in chunk)
    return out.view(-1, parts).numpy(), tokens


def score_tokens(head, tok, hidden, target, kind):
    """Log-probabilities of CONTENT, END or OPEN at states (N, D) -> (N,). head (V, D)."""
    hidden = float32_at_least(hidden)
    logp = code_logprobs(hidden, head, target, kind == OPEN, tok.thought_ids)  # (N,)
    end = token_logprobs(hidden, head, target, [tok.stop_ids])[1]  # (N,)
    return torch.where(kind == END, end, logp)


def wanted_thought(tok, first, z, think_max):
    """What to score of a thought z whose `#` is at `first`: its other tokens, and its end.

    The end is scored if a stop token ends it.
    """
    wanted = [(first + k, CONTENT, 0) for k in range(1, len(z))]
    if not ends_itself(tok, z, think_max):
        wanted.append((first + len(z), END, 0))
    return wanted


def wanted_lines(firsts, end):
    """What to score of lines from `firsts` to `end`: part 1 the first, 2 others."""
    wanted = []
    for t, (begin, stop) in enumerate(zip(firsts, firsts[1:] + [end], strict=True)):
        part = 1 if t == 0 else 2
        wanted.append((begin, OPEN, part))
        wanted += [(j, CONTENT, part) for j in range(begin + 1, stop)]
    return wanted


def score_code(model, tok, cache, snippets):
    """Snippets without thoughts, run into the cache -> (hidden, lines, acts).

    hidden  (B, T, D).
    lines   B arrays (L,): log pi(a_t | s_t), the decision apart.
    acts    B arrays (L,): log p(<act> | s_t).
    """
    hidden = forward(model, cache, [(snip.ids, 0) for snip in snippets])  # (B, T, D)
    table = []
    for b, snip in enumerate(snippets):
        for j in range(snip.first[0], len(snip.ids)):
            table.append((b, j - 1, snip.ids[j], j in snip.first))
    b, j, target, opens = torch.tensor(table, device=model.device).T  # (code tokens,) each
    states = float32_at_least(hidden[b, j])  # (code tokens, D)
    head = scoring_head(model)  # (V, D)
    opens = opens > 0
    logp = code_logprobs(states, head, target, opens, tok.thought_ids)
    act = torch.zeros_like(logp)  # (code tokens,)
    act[opens] = none_logprobs(states[opens], head, tok.thought_ids)
    logp = logp.double().cpu().numpy()
    act = act.double().cpu().numpy()
    owner = b.cpu().numpy()
    lines = []
    acts = []
    for n, snip in enumerate(snippets):
        rows = np.flatnonzero(owner == n)
        starts = np.array(snip.first) - snip.first[0]
        lines.append(np.add.reduceat(logp[rows], starts))  # (L,)
        acts.append(act[rows][starts])  # (L,)
    return hidden, lines, acts


# ---------------------------------------------------------------- proposals


@torch.inference_mode()
def propose(
    model,
    tok,
    snippets,
    lines,
    n_hindsight,
    n_own,
    think_max,
    *,
    reach=0,
    seed=(0, JUDGE),
    numbers=None,
    thoughts=None,
):
    """Thoughts for lines of each snippet, with their densities and what they do -> Proposals.

    lines        a function (b, logp) -> list: the lines of snippet b to try, from its (L,)
                 log-probabilities without thoughts.
    n_hindsight  thoughts proposed in hindsight; n_own: by the model before the line.
    think_max    tokens of a thought, at most.
    reach        how many lines from the thought on count; 0: all.
    seed         ints; with `numbers`, one int a snippet (default its index), it fixes the draws.
    thoughts     those to weigh instead of sampled ones: a list of K a line, in order.
    """
    slots = max(len(snip.ids) for snip in snippets) + think_max + 64
    cache = model.new_cache(len(snippets), slots)
    hidden, base, acts = score_code(model, tok, cache, snippets)
    tokens = sum(len(snip.ids) for snip in snippets)
    attempts = []
    for b, logp in enumerate(base):
        attempts += [make_attempt(tok, snippets[b], b, t) for t in lines(b, logp)]
    if thoughts is None:
        numbers = range(len(snippets)) if numbers is None else numbers
        seeds = [(int(numbers[a.b]) << 32) + a.t for a in attempts]
        counts = (n_hindsight, n_own)
        thoughts, n = draw_thoughts(model, tok, attempts, counts, think_max, seed, seeds)
        tokens += n
    think = log_think(model, hidden, snippets, attempts)  # (M,)
    jobs = []
    for a, of_line in zip(attempts, thoughts, strict=True):
        jobs += [own_job(tok, snippets[a.b], a, z, think_max, reach) for z in of_line]
    sums, n = score_jobs(model, tok, cache, jobs)
    tokens += n
    sums = np.pad(sums, ((0, 0), (0, 3 - sums.shape[1])))
    sums = sums.reshape(len(attempts), -1, 3)  # (M, K, 3)
    content = sums[..., 0]  # (M, K) log p(z | s_t, its first token)
    logq = np.full_like(content, np.nan)  # (M, K)
    if n_hindsight:
        logq, n = log_hindsight(model, tok, cache, snippets, attempts, thoughts, think_max)
        tokens += n
    return Proposals(
        snip=[a.b for a in attempts],
        line=[a.t for a in attempts],
        thoughts=thoughts,
        act=np.array([acts[a.b][a.t] for a in attempts]),
        think=think,
        logp=think[:, None] + content,
        logq=logq,
        logm=log_mixture(logq, content, n_hindsight, n_own),
        base=np.array([line_and_reach(base[a.b], a.t, reach) for a in attempts]),
        given=np.stack((sums[..., 1], sums[..., 1] + sums[..., 2]), -1),
        lines=base,
        forward_tokens=tokens,
    )


def make_attempt(tok, snip, b, t):
    """The Attempt at line t of snippet number b."""
    head = first_token(tok, snip, t)
    before = snip.ids[: snip.first[t]] + [head]
    return Attempt(b, t, head, before, hindsight_context(tok, snip, t))


def log_think(model, hidden, snippets, attempts):
    """log p(first token of a thought | s_t) at each line: (M,) float64. hidden (B, T, D)."""
    rows = [a.b for a in attempts]
    columns = [snippets[a.b].first[a.t] - 1 for a in attempts]
    heads = torch.tensor([a.head for a in attempts], device=model.device)
    states = float32_at_least(hidden[rows, columns])  # (M, D)
    logp = token_logprobs(states, scoring_head(model), heads)[0]
    return logp.double().cpu().numpy()


def draw_thoughts(model, tok, attempts, counts, think_max, seed, seeds):
    """Sample thoughts at each line -> (a list of K lists of ids for each, tokens run).

    counts: how many in hindsight, and of the model's own. seed: ints; seeds: one int a line.
    """
    thoughts = [[] for _ in attempts]
    tokens = 0
    contexts_of = ([a.after for a in attempts], [a.before for a in attempts])
    for kind, (contexts, n) in enumerate(zip(contexts_of, counts, strict=True)):
        if n == 0:
            continue
        if think_max == 1:  # a thought is its `#`
            completions = [[[]] * n for _ in attempts]
        else:
            rows = generate(
                model,
                contexts,
                think_max - 1,
                tok.eos,
                seed=(*seed, kind),
                seeds=seeds,
                n=n,
                stop=["\n", "\r"],
                decode=tok.decode,
            )
            completions = [[completion.ids for completion in row] for row in rows]
            tokens += sum(map(len, contexts)) + sum(len(z) for row in completions for z in row)
        for a, of_line, row in zip(attempts, thoughts, completions, strict=True):
            of_line += [[a.head] + without_stop(tok, z) for z in row]
    return thoughts, tokens


def without_stop(tok, ids):
    """A completion without the stop token that ended it."""
    return ids[:-1] if ids and ids[-1] in tok.stop_ids else ids


def own_job(tok, snip, a, z, think_max, reach):
    """Score a thought before its line (part 0), the line after it (1), and what follows (2)."""
    end_line = min(a.t + reach, len(snip.first)) if reach else len(snip.first)
    comment = inserted(tok, z, snip.sep[a.t])
    begin = snip.first[a.t]
    ids = snip.ids[:begin] + comment + snip.ids[begin : line_end(snip, end_line - 1)]
    firsts = [first + len(comment) for first in snip.first[a.t : end_line]]
    wanted = wanted_thought(tok, begin, z, think_max) + wanted_lines(firsts, len(ids))
    return ScoringJob(a.b, ids, begin, wanted)


def hindsight_job(tok, snip, a, z, think_max):
    """Score a thought behind its line. Its context shares a prefix with the cached snippet."""
    context = a.after
    shared = 0
    while shared < min(len(context) - 1, len(snip.ids)) and context[shared] == snip.ids[shared]:
        shared += 1
    wanted = wanted_thought(tok, len(context) - 1, z, think_max)
    return ScoringJob(a.b, context + z[1:], shared, wanted)


def log_hindsight(model, tok, cache, snippets, attempts, thoughts, think_max):
    """log q_h(z | s_t, a_t) -> ((M, K) float64, tokens run)."""
    jobs = []
    for a, of_line in zip(attempts, thoughts, strict=True):
        jobs += [hindsight_job(tok, snippets[a.b], a, z, think_max) for z in of_line]
    logq = np.zeros(len(jobs))  # of a thought of one token, at think_max = 1, nothing is drawn
    scored = [i for i, job in enumerate(jobs) if job.wanted]
    tokens = 0
    if scored:
        sums, tokens = score_jobs(model, tok, cache, [jobs[i] for i in scored])
        logq[scored] = sums[:, 0]
    return logq.reshape(len(attempts), -1), tokens


def log_mixture(logq, content, n_hindsight, n_own):
    """log m(z): (M, K). logq, content (M, K): log-densities in hindsight and before the line."""
    total = n_hindsight + n_own
    share_h = math.log(n_hindsight / total) if n_hindsight else -math.inf
    share_c = math.log(n_own / total) if n_own else -math.inf
    return np.logaddexp(share_h + np.nan_to_num(logq), share_c + content)


def line_and_reach(logp, t, reach):
    """Sums of (L,) log-probabilities over line t, and over `reach` lines from it on (0: all)."""
    return logp[t], logp[t : t + reach if reach else None].sum()


# ---------------------------------------------------------------- weights


def log_weights(proposals, which="exact", c=0.0, floor=0.0, part=1):
    """log of what each option is worth: (M, 1 + K), <act> first.

    which  the selection. The logsumexp of a row of `exact` is the bound.
    floor  with exact: lower bound on P(<think>), by whatever token, in the weights. p(z | s) is
           then that of a model which thinks that often.
    part   0: the line; 1: all of `reach`.
    """
    K = proposals.logp.shape[1]
    base = proposals.base[:, part]  # (M,)
    given = proposals.given[..., part]  # (M, K)
    if which != "exact":
        return np.concatenate((base[:, None], reward(given, True, Prior(c))), 1)
    rate = np.maximum(-np.expm1(proposals.act), np.exp(proposals.think))  # (M,) P(<think>)
    rate = np.maximum(rate, np.finfo(float).tiny)
    act = np.where(rate < floor, np.log1p(-floor), proposals.act)
    lift = np.log(np.maximum(rate, floor) / rate)
    weights = given + proposals.logp - proposals.logm + lift[:, None] - math.log(K)
    return np.concatenate(((act + base)[:, None], weights), 1)


def least_likely(share):
    """The lines to try: that share of a snippet's lines, rounded up, the least likely ones."""

    def lines(b, logp):
        ascending = np.argsort(logp, kind="stable")
        return sorted(ascending[: math.ceil(share * len(logp))].tolist())

    return lines


def choose(model, tok, snippets, cfg, which, seed, numbers):
    """One latent for every line of each snippet, drawn by weight -> ([{line: ids}], tokens run).

    which: the selection. Lines that are not tried are <act>.
    """
    if which == "act":
        return [{} for _ in snippets], 0
    proposals = propose(
        model,
        tok,
        snippets,
        least_likely(cfg.tried),
        cfg.proposals - cfg.own,
        cfg.own,
        cfg.think_max,
        reach=cfg.reach,
        seed=seed,
        numbers=numbers,
    )
    weights = log_weights(proposals, which, cfg.c, cfg.floor)  # (M, 1 + K)
    latents = [{} for _ in snippets]
    for m, (b, t) in enumerate(zip(proposals.snip, proposals.line, strict=True)):
        for k, z in enumerate(proposals.thoughts[m]):
            if not canonical(tok, infuse(tok, snippets[b], {t: z})[0]):
                weights[m, 1 + k] = -np.inf
        if which != "best":  # argmax of log weight + Gumbel noise: in proportion to the weights
            rng = np.random.default_rng(seed_of(*seed, NOISE, numbers[b], t))
            weights[m] += rng.gumbel(size=weights.shape[1])
        k = weights[m].argmax()
        if k:
            latents[b][t] = proposals.thoughts[m][k - 1]
    return latents, proposals.forward_tokens
