"""Thoughts in hindsight: an E-step that proposes a thought after seeing the line it is for, and weighs it by what it would have cost before.

A model writes better comments behind a line than before it. So the proposal for line t is its own continuation of

    s_t a_t "  #" -> z,                                      a trailing comment, sampled up to the newline                      q_h(z | s_t, a_t)

moved to where a thought stands, before the line. Importance weights make up for the peeking. With <act> counted exactly, and z_1 … z_K
drawn from the mixture m = (K_h q_h + K_c p(. | s_t, <think>)) / K of K_h proposals in hindsight and K_c of the model's own (balance heuristic)

    p(a | s) = p(<act> | s) pi(a | s)  +  sum_z p(z | s) pi(a | s, z)                                                        (marginal)
             = p(<act> | s) pi(a | s)  +  E 1/K sum_k w_k,     w_k = p(z_k | s) pi(a | s, z_k) / m(z_k)                      (unbiased)
    log p(a | s)  >=  E log( p(<act> | s) pi(a | s) + 1/K sum_k w_k )                                                        (bound)

and drawing one of {<act>, z_1, …, z_K} in proportion to {p(<act> | s) pi(a | s), w_1 / K, …, w_K / K} is a draw from the posterior as K grows
(`--selection exact`). `penalty` puts RA3's prior in place of the model's: {pi(a | s), e^-c pi(a | s, z_k)}, without 1/K and 1/m, so that K proposals are
K chances; `best` takes the largest of these; `act` proposes nothing. a: line t and what follows, `reach` lines of it. p(z | s): the decision, the
thought's tokens, its end.

Which density: a thought is a sequence of token ids that begins with the token that `data.mark` gives for the line's indentation, and q_h, p and m
are densities over such sequences, each the product of the model's probabilities of the very ids after that token, behind the trailing or the
leading `#`, times the mass of all tokens that stop it (nothing for a thought of the greatest length, or with a closing token: data.py). No text is
encoded again, so no density is approximated. Thoughts that begin with another token (`##`) are left out of the sum, which stays a lower bound. Thoughts
whose text in place would be encoded differently count in the bound, and are never chosen.

Approximations
1. Lines are treated one by one: a thought is proposed and weighed with no other thought in the context, and those chosen are written in together. Exact
where one line a snippet is tried.   2. The resampling is self-normalised: exact as K grows.

    python train.py --stage em --preset smollm2 --estep hindsight
    python -m hindsight --preset smollm2 --out runs/smollm2-0 --models base,ntp,ra3        what a model's own thoughts are worth on held-out code

What was found on SmolLM2-135M: M-steps of 42,600 tokens in all on functions of the standard library, 48 held-out functions, 8 thoughts at 3 lines of
each; nats a line, ± one standard error over functions. own: gain of the model's own thoughts on their line; bound: the marginal at the model's own
P(<think>), less never thinking; paid: the marginal less the likelihood of NTP (as many tokens, the same functions) without thoughts.

    recipe                           P(<think>)  own            bound            paid
    NTP, 2 iterations                .002        -2.10 ± 0.20   +0.001 ± 0.001   +0.001 ± 0.001
    best, 1 iteration                .239        -1.47 ± 0.16   +0.218 ± 0.068   -1.04 ± 0.27
    exact, 2 iterations              .086        -1.24 ± 0.14   +0.066 ± 0.025   -0.134 ± 0.079
    best, then exact                 .111        -1.35 ± 0.17   +0.105 ± 0.042   -0.109 ± 0.105
    act (that is NTP), then exact    .075        -1.72 ± 0.15   +0.032 ± 0.022   -0.005 ± 0.081

With exact weights thinking survives, and the marginal is above never thinking; `exact` from the start loses more on code without thoughts than it gains.
After an iteration of NTP it is a draw with NTP, also with 3.6 times the tokens and 96 held-out functions: bound +0.040 ± 0.014, paid +0.034 ± 0.030, or
+0.006 ± 0.022 if all lines tell what the code lost (README). No recipe is clearly better than NTP, which takes less than half the compute.

Shapes: B snippets, M lines that are tried, K proposals at each, L lines, T tokens, D width, N rows.
"""

import dataclasses
import math

import numpy as np
import torch

from data import canonical, ends_itself, infuse, inserted, mark
from elbo import Prior, code_logprobs, reward
from engine.sample import generate
from logprobs import none_logprobs, token_logprobs

CONTENT, END, OPEN = range(
    3
)  # what is scored: a token; the end of a thought; the first token of a line, given that no comment begins


@dataclasses.dataclass
class Proposals:
    """K thoughts for each of M lines, and all that weighs them. Log-probabilities in nats, float64."""

    snip: list  # (M,) index of the snippet
    line: list  # (M,) index of the line
    thoughts: list  # (M, K) token ids, the `#` included; the first K_h are in hindsight, the rest the model's own
    act: np.ndarray  # (M,) log p(<act> | s_t)
    think: np.ndarray  # (M,) log p(first token of a thought | s_t)
    logp: np.ndarray  # (M, K) log p(z | s_t)
    logq: np.ndarray  # (M, K) log q_h(z | s_t, a_t); nan if nothing is proposed in hindsight
    logm: np.ndarray  # (M, K) log of the mixture that proposed
    base: (
        np.ndarray
    )  # (M, 2) log pi(a_t | s_t) of the line, and of `reach` lines from it on, without a thought
    given: np.ndarray  # (M, K, 2) the same after the thought
    lines: list  # B arrays (L,): log pi of each line without thoughts
    forward_tokens: int


def hindsight_context(tok, snip, t):
    """Ids of everything up to the end of line t's code, and the `  #` of a trailing comment."""
    end = snip.first[t + 1] if t + 1 < len(snip.first) else len(snip.ids)
    return tok.encode(tok.decode(snip.ids[:end]).rstrip() + "  #")


def first_token(tok, snip, t):
    """The token with which a comment before line t begins. Example: four blanks -> ` #`"""
    blank = tok.decode(snip.ids[snip.first[t] : snip.first[t] + 4]).startswith(
        " "
    )  # the last one of the indentation
    return mark(tok, tok.decode(snip.sep[t])[1:] + " " * blank)[0]


def forward(model, cache, rows):
    """Forward ids[start:] of each row on its cache, which holds ids[:start]. rows: [(ids, start)] -> hidden (N, T, D)."""
    T, reach = max(len(ids) - start for ids, start in rows), max(len(ids) for ids, _ in rows) + 1
    cache.reserve(reach)  # the last slot takes what padding writes
    ids = torch.zeros(len(rows), T, dtype=torch.int64)  # (N, T)
    for n, (row, start) in enumerate(rows):
        ids[n, : len(row) - start] = torch.tensor(row[start:])
    pos = (torch.tensor([s for _, s in rows])[:, None] + torch.arange(T)).clamp(
        max=reach - 1
    )  # (N, T)
    return model(ids.to(model.device), pos=pos.to(model.device), cache=cache, reach=reach)


def score(model, tok, cache, jobs, at_once=64):
    """Sums of log-probabilities over parts of rows that go on from cached snippets -> ((N, parts) float64, tokens forwarded).

    jobs: [(snippet, ids, start, wanted)]: cache row `snippet` holds ids[:start]; wanted: [(j, kind, part)], kind CONTENT, END or OPEN of the
    token at j > start.
    """
    parts = 1 + max(part for *_, wanted in jobs for _, _, part in wanted)
    out, tokens = torch.zeros(len(jobs) * parts, dtype=torch.float64), 0
    order = sorted(range(len(jobs)), key=lambda n: (len(jobs[n][1]) - jobs[n][2], len(jobs[n][1])))
    for some in (order[i : i + at_once] for i in range(0, len(order), at_once)):
        rows = [(jobs[n][1], jobs[n][2]) for n in some]
        hidden = forward(
            model, cache.select(torch.tensor([jobs[n][0] for n in some], device=model.device)), rows
        )  # (n, T, D)
        at = [
            (i, j - 1 - start, ids[j] if j < len(ids) else 0, kind, n * parts + part)
            for i, n in enumerate(some)
            for _, ids, start, wanted in [jobs[n]]
            for j, kind, part in wanted
        ]
        row, j, target, kind, to = torch.tensor(at, device=model.device).T  # (wanted,) each
        states = hidden[row, j]  # (wanted, D)
        logp = code_logprobs(states, model.head_weight, target, kind == OPEN, tok.thought_ids)
        end = token_logprobs(states, model.head_weight, target, [tok.stop_ids])[1]  # (wanted,)
        logp = torch.where(kind == END, end, logp)
        out.index_add_(0, to.cpu(), logp.double().cpu())
        tokens += sum(len(ids) - start for ids, start in rows)
    return out.view(-1, parts).numpy(), tokens


def thought_wanted(tok, first, z, think_max):
    """What to score of a thought z whose `#` is at `first`: its other tokens, and its end where a stop token ends it."""
    n = len(z)
    return [(first + k, CONTENT, 0) for k in range(1, n)] + [(first + n, END, 0)] * (
        not ends_itself(tok, z, think_max)
    )


def lines_wanted(firsts, end, part):
    """What to score of lines that begin at `firsts` and run to `end`; part(t) of the t-th."""
    return [
        (j, OPEN if j == a else CONTENT, part(t))
        for t, (a, b) in enumerate(zip(firsts, firsts[1:] + [end]))
        for j in range(a, b)
    ]


@torch.inference_mode()
def propose(
    model,
    tok,
    snippets,
    lines,
    n_hindsight,
    n_own,
    think_max,
    reach=0,
    seed=(0,),
    numbers=None,
    thoughts=None,
):
    """Thoughts for some lines of each snippet, with their densities and what they do -> Proposals.

    lines     for each snippet, from its (L,) log-probabilities without thoughts, the indices of those to try: a function (snippet, logp) -> list.
    numbers   one int a snippet (default its index), which with seed, a tuple of ints, fixes its draws.
    reach     how many lines from the thought on count; 0: all.
    thoughts  the thoughts to weigh instead of sampled ones: a list of K for every line, in the order of the lines tried.
    """
    slots = max(len(s.ids) for s in snippets) + think_max + 64
    numbers = range(len(snippets)) if numbers is None else numbers
    cache = model.new_cache(len(snippets), slots)
    hidden = forward(model, cache, [(s.ids, 0) for s in snippets])  # (B, T, D)
    at = [
        (b, j - 1, s.ids[j], j in s.first)
        for b, s in enumerate(snippets)
        for j in range(s.first[0], len(s.ids))
    ]
    b, j, target, opens = torch.tensor(at, device=model.device).T  # (code tokens,) each
    states = hidden[b, j]  # (code tokens, D)
    opens = opens > 0
    logp = code_logprobs(states, model.head_weight, target, opens, tok.thought_ids)
    act = torch.zeros_like(logp)
    act[opens] = none_logprobs(states[opens], model.head_weight, tok.thought_ids)
    logp, act, tokens = (
        logp.double().cpu().numpy(),
        act.double().cpu().numpy(),
        sum(len(s.ids) for s in snippets),
    )
    base, acts = [], []  # B arrays (L,)
    for n, s in enumerate(snippets):
        mine, starts = np.flatnonzero(b.cpu().numpy() == n), np.array(s.first) - s.first[0]
        base.append(np.add.reduceat(logp[mine], starts))
        acts.append(act[mine][starts])
    tried = [(b, t) for b, logp in enumerate(base) for t in lines(b, logp)]
    heads = [first_token(tok, snippets[b], t) for b, t in tried]
    state = hidden[[b for b, _ in tried], [snippets[b].first[t] - 1 for b, t in tried]]  # (M, D)
    think = (
        token_logprobs(state, model.head_weight, torch.tensor(heads, device=model.device))[0]
        .double()
        .cpu()
        .numpy()
    )  # (M,)

    # draw
    after = [hindsight_context(tok, snippets[b], t) for b, t in tried]
    before = [snippets[b].ids[: snippets[b].first[t]] + [h] for (b, t), h in zip(tried, heads)]
    if thoughts is None:
        thoughts = [[] for _ in tried]
        for kind, (contexts, n) in enumerate(((after, n_hindsight), (before, n_own))):
            if n and think_max > 1:
                mix = int(np.random.default_rng([*seed, kind]).integers(2**31))
                done = generate(
                    model,
                    contexts,
                    think_max - 1,
                    tok.eos,
                    seed=mix,
                    seeds=[int(numbers[b]) * 1000 + t for b, t in tried],
                    n=n,
                    batch=128,
                    stop=["\n", "\r"],
                    decode=tok.decode,
                )
                tokens += sum(map(len, contexts)) + sum(len(d.ids) for some in done for d in some)
            for m, mine in enumerate(thoughts):
                some = [d.ids for d in done[m]] if n and think_max > 1 else [[]] * n
                mine += [[heads[m]] + (z[:-1] if z and z[-1] in tok.stop_ids else z) for z in some]

    # weigh: the causal context, with the lines after the thought; the same lines without; the context of the proposal
    jobs, hind = [], []
    for m, (b, t) in enumerate(tried):
        s = snippets[b]
        upto = min(t + reach, len(s.first)) if reach else len(s.first)
        end = s.first[upto] if upto < len(s.first) else len(s.ids)
        shared = next((i for i, (x, y) in enumerate(zip(after[m], s.ids)) if x != y), len(after[m]))
        for z in thoughts[m]:
            new = inserted(tok, z, s.sep[t])
            ids = s.ids[: s.first[t]] + new + s.ids[s.first[t] : end]
            wanted = lines_wanted(
                [f + len(new) for f in s.first[t:upto]], len(ids), lambda i: 1 if i == 0 else 2
            )
            jobs.append(
                (b, ids, s.first[t], thought_wanted(tok, s.first[t], z, think_max) + wanted)
            )
            hind.append(
                (
                    b,
                    after[m] + z[1:],
                    min(shared, len(after[m]) - 1),
                    thought_wanted(tok, len(after[m]) - 1, z, think_max),
                )
            )
    sums, more = score(model, tok, cache, jobs)
    sums = np.pad(sums, ((0, 0), (0, 3 - sums.shape[1]))).reshape(len(tried), -1, 3)  # (M, K, 3)
    content, tokens = sums[..., 0], tokens + more  # log p(z | s_t, its first token)
    logq = np.full_like(content, np.nan)  # (M, K)
    if n_hindsight:
        some = [(job, i) for i, job in enumerate(hind) if job[3]]  # think_max = 1: nothing is drawn
        logq[:] = 0.0
        if some:
            said, more = score(model, tok, cache, [job for job, _ in some])
            logq.reshape(-1)[[i for _, i in some]] = said[:, 0]
            tokens += more
    share = [math.log(n / (n_hindsight + n_own)) if n else -math.inf for n in (n_hindsight, n_own)]
    logm = np.logaddexp(share[0] + np.nan_to_num(logq), share[1] + content)  # (M, K)
    upto = [t + reach if reach else None for _, t in tried]
    return Proposals(
        [b for b, _ in tried],
        [t for _, t in tried],
        thoughts,
        np.array([acts[b][t] for b, t in tried]),
        think,
        think[:, None] + content,
        logq,
        logm,
        np.array([(base[b][t], base[b][t:u].sum()) for (b, t), u in zip(tried, upto)]),
        np.stack((sums[..., 1], sums[..., 1] + sums[..., 2]), -1),
        base,
        tokens,
    )


def log_weights(found, which="exact", c=0.0, floor=0.0, part=1):
    """log of what each choice is worth: (M, 1 + K), <act> first. The logsumexp of a row of `exact` is the bound. part: 0 the line, 1 all of `reach`.
    floor: P(<think>) counts as so much at least, that is, p(z | s) is that of a model which thinks so often."""
    K, base, given = found.logp.shape[1], found.base[:, part], found.given[..., part]
    if which != "exact":
        return np.concatenate((base[:, None], reward(given, True, Prior(c))), 1)
    rate = np.exp(found.think)  # (M,)
    lifted = np.clip(rate, floor, None)
    act = np.where(rate < floor, np.log1p(-np.minimum(lifted, 1 - 1e-12)), found.act)
    return np.concatenate(
        (
            (act + base)[:, None],
            given + found.logp - found.logm + (np.log(lifted) - found.think)[:, None] - math.log(K),
        ),
        1,
    )


def least_likely(share):
    """The lines to try: that share of a snippet's lines, rounded up, those with the lowest log-probability."""
    return lambda b, logp: sorted(
        np.argsort(logp, kind="stable")[: math.ceil(share * len(logp))].tolist()
    )


def choose(model, tok, snippets, cfg, which, seed, numbers):
    """One latent for every line of each snippet, drawn by weight -> (B dicts line -> ids, tokens forwarded). Lines not tried are <act>."""
    if which == "act":
        return [{} for _ in snippets], 0
    found = propose(
        model,
        tok,
        snippets,
        least_likely(cfg.tried),
        cfg.proposals - cfg.own,
        cfg.own,
        cfg.think_max,
        cfg.reach,
        seed,
        numbers,
    )
    weight = log_weights(found, which, cfg.c, cfg.floor)  # (M, 1 + K)
    for m, (b, t) in enumerate(zip(found.snip, found.line)):
        for k, z in enumerate(found.thoughts[m]):
            if not canonical(tok, infuse(tok, snippets[b], {t: z})[0]):
                weight[m, 1 + k] = -np.inf
        if (
            which != "best"
        ):  # Gumbel: argmax of log weight + noise is a draw in proportion to the weights
            weight[m] += np.random.default_rng([*seed, 2, numbers[b], t]).gumbel(
                size=weight.shape[1]
            )
    chosen = [{} for _ in snippets]
    for m, k in enumerate(weight.argmax(1)):
        if k:
            chosen[found.snip[m]][found.line[m]] = found.thoughts[m][k - 1]
    return chosen, found.forward_tokens
