"""What thoughts are worth to a model on held-out code: figures by snippet, and their table.

Shapes: B snippets, M lines that are tried, K thoughts at each.
"""

import math
import typing

import numpy as np

from config import EXCHANGE, JUDGE, progress_bar, seed_of
from hindsight.propose import log_weights, propose

RATES = np.array([0.001, 0.003, 0.01, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0])


class Thought(typing.NamedTuple):
    """A thought before a line of a held-out snippet; gains in nats."""

    line_gain: float  # on its line
    rest_gain: float  # on all lines from it on
    think: float  # P(<think>) there
    snippet: int
    line: int
    ids: list


def judge_thoughts(
    model,
    tok,
    snippets,
    cfg,
    K=8,
    per=3,
    batch=16,
    *,
    in_hindsight=False,
    shuffle=False,
    desc="judge",
):
    """What K thoughts at lines of held-out snippets are worth -> (figures, list of Thought).

    per           lines of a snippet, drawn once for all models; 0: all.
    batch         snippets in a forward pass.
    in_hindsight  the thoughts are proposed in hindsight; else they are the model's own.
    shuffle       a control: each line gets thoughts of another snippet. What remains is what any
                  comment does.

    In hindsight `lifted` and `forced` are left out: plain means over proposals that saw the line
    bound nothing.

    The figures are a dict of (B,) arrays. `code` and `tokens` are of all lines of a snippet, the
    others sums over the lines drawn, in nats unless the table says otherwise:

        code, tokens  log pi of the code without thoughts; its tokens
        lines         how many lines were drawn
        never         log pi(a_t | s_t): never thinking
        bound         log( p(<act> | s_t) pi(a_t | s_t) + 1/K sum_k w_k ): the line's marginal under
                      the model's own prior
        think         P(<think>)
        line, rest    mean gain of a thought on its line; on all lines from it on. Every line is
                      made to think.
        wanted        the gain on the rest times P(<think>). Over `think` it is the mean gain where
                      the model itself would think.
        above_line    share of the thoughts whose gain on the line exceeds c; above: on the rest
        best_line     the largest of the K gains on the line; best: on the rest
        lifted        (B, 11): log( 1 - r + r/K sum_k pi(a | s_t, z_k) / pi(a | s_t) ) for every r
                      of RATES: the bound less never thinking, of a model that thinks with
                      probability r before every line. lifted_rest: of all lines from t on.
        forced        log 1/K sum_k pi(a_t | s_t, z_k) - log pi(a_t | s_t): always thinking.
                      forced_rest: of all lines from t on.
        rest_bound    bound - never of all lines from t on
        price         log p(z | s_t) - log q_h(z | s_t, a_t); nan if nothing is in hindsight
    """
    rows = []
    thoughts = []
    for start in progress_bar(
        range(0, len(snippets), batch),
        desc=desc,
        unit="batch",
        delay=2,
        leave=False,
        mininterval=10,
    ):
        chunk = snippets[start : start + batch]
        proposals = propose_at(model, tok, chunk, cfg, start, K, per, in_hindsight)
        if shuffle:
            exchanged = exchange(proposals, K, seed_of(cfg.seed, EXCHANGE, start))
            proposals = propose_at(
                model, tok, chunk, cfg, start, K, per, in_hindsight, thoughts=exchanged
            )
        figures = by_line(proposals, cfg.c)
        if not in_hindsight:
            figures |= always_and_at_rates(proposals)
        rows.append(sum_by_snippet(figures, proposals, chunk))
        thoughts += list_thoughts(proposals, start)
    return {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}, thoughts


def propose_at(model, tok, snippets, cfg, start, K, per, in_hindsight, **options):
    """K proposals at `per` random lines of each snippet. start: the number of the first snippet."""
    lines = []
    for number, snip in enumerate(snippets, start):
        shuffled = np.random.default_rng(seed_of(cfg.seed, JUDGE, number)).permutation(
            len(snip.first)
        )
        lines.append(sorted(shuffled[: per or None].tolist()))
    return propose(
        model,
        tok,
        snippets,
        lambda b, logp: lines[b],
        K if in_hindsight else 0,
        0 if in_hindsight else K,
        cfg.think_max,
        seed=(cfg.seed, JUDGE),
        numbers=range(start, start + len(snippets)),
        **options,
    )


def exchange(proposals, K, seed):
    """For each line, K thoughts of other snippets behind its own first token."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(proposals.snip, K)  # (M * K,)
    pool = [z[1:] for of_line in proposals.thoughts for z in of_line]
    result = []
    for b, of_line in zip(proposals.snip, proposals.thoughts, strict=True):
        foreign = np.flatnonzero(owner != b)
        result.append([[z[0]] + pool[rng.choice(foreign)] for z in of_line])
    return result


def by_line(proposals, c):
    """The figures of each line that was tried: {name: (M,) or (M, rates)}."""
    gain = proposals.given - proposals.base[:, None]  # (M, K, 2)
    line_gain = gain[..., 0]  # (M, K)
    rest_gain = gain[..., 1]  # (M, K)
    think = -np.expm1(proposals.act)  # (M,)
    bound = np.logaddexp.reduce(log_weights(proposals, part=0), axis=1)  # (M,)
    rest_bound = np.logaddexp.reduce(log_weights(proposals, part=1), axis=1)  # (M,)
    return {
        "lines": np.ones(len(think)),
        "never": proposals.base[:, 0],
        "bound": bound,
        "think": think,
        "line": line_gain.mean(1),
        "rest": rest_gain.mean(1),
        "wanted": think * rest_gain.mean(1),
        "above_line": (line_gain > c).mean(1),
        "above": (rest_gain > c).mean(1),
        "best_line": line_gain.max(1),
        "best": rest_gain.max(1),
        "rest_bound": rest_bound - proposals.base[:, 1],
        "price": (proposals.logp - proposals.logq).mean(1),
    }


def always_and_at_rates(proposals):
    """The bounds of a model that always thinks, or thinks at a constant rate: of own thoughts."""
    gain = proposals.given - proposals.base[:, None]  # (M, K, 2)
    forced = np.logaddexp.reduce(gain, axis=1) - math.log(gain.shape[1])  # (M, 2)
    return {
        "forced": forced[:, 0],
        "forced_rest": forced[:, 1],
        "lifted": at_rates(gain[..., 0]),
        "lifted_rest": at_rates(gain[..., 1]),
    }


def at_rates(gain):
    """log( 1 - r + r/K sum_k e^gain_k ) for every r of RATES: (M, rates). gain (M, K)."""
    return np.log1p(RATES * (np.exp(gain).mean(1) - 1)[:, None])


def sum_by_snippet(figures, proposals, snippets):
    """Sums of the lines' figures over each snippet, and what is known of all its lines."""
    sums = {}
    for name, values in figures.items():
        sums[name] = np.zeros((len(snippets), *values.shape[1:]))  # (B,) or (B, rates)
        np.add.at(sums[name], proposals.snip, values)
    sums["code"] = np.array([logp.sum() for logp in proposals.lines])
    sums["tokens"] = np.array([len(snip.ids) - snip.first[0] for snip in snippets])
    return sums


def list_thoughts(proposals, start):
    """The proposals as a list of Thought. start: the number of the first snippet."""
    gain = proposals.given - proposals.base[:, None]  # (M, K, 2)
    think = -np.expm1(proposals.act)  # (M,)
    result = []
    for m, (b, t) in enumerate(zip(proposals.snip, proposals.line, strict=True)):
        for k, z in enumerate(proposals.thoughts[m]):
            result.append(Thought(*gain[m, k], think[m], start + b, t, z))
    return result


# ---------------------------------------------------------------- the table


def ratio(x, n):
    """sum x / sum n over snippets and its standard error (delta method). x, n (B,)."""
    r = x.sum() / n.sum()
    variance = ((x - r * n) ** 2).sum() * len(x) / max(1, len(x) - 1)
    return float(r), float(np.sqrt(variance) / n.sum())


def best_rate(lifted):
    """The bound at the constant P(<think>) that suits the other half of the snippets best.

    lifted (B, rates) -> ((B,), the rates of both halves).
    """
    half = np.arange(len(lifted)) % 2
    rates = [lifted[half != h].sum(0).argmax() for h in (0, 1)]
    values = lifted[np.arange(len(lifted)), np.array(rates)[half]]  # (B,)
    return values, [float(RATES[r]) for r in rates]


def format_table(judged, against="ntp"):
    """Lines of text: a row a model, mean ± standard error over snippets. judged: {name: figures}.

    against: the model whose likelihood without thoughts the bounds are compared with.
    """
    reference = judged.get(against)
    rows = []
    for name, figures in judged.items():
        cells = {"": name, **table_row(figures)}
        if reference is not None:
            difference = figures["bound"] - reference["never"]
            cells[f"bound - {against}'s never, line"] = interval(difference, figures["lines"])
        price = figures["price"]
        known = np.isfinite(price).all()
        cells["log p - log q_h"] = interval(price, figures["lines"]) if known else "-"
        rows.append(cells)
    table = [list(rows[0]), *(list(row.values()) for row in rows)]
    width = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.rjust(w) for cell, w in zip(row, width, strict=True)) for row in table]


def interval(x, n):
    """Example: +0.125 ± 0.031"""
    return "{:+.3f} ± {:.3f}".format(*ratio(x, n))


def table_row(figures):
    """A model's cells by heading."""
    n = figures["lines"]
    cells = {
        "CE of code": "{:.4f} ± {:.4f}".format(*ratio(-figures["code"], figures["tokens"])),
        "P(think)": "{:.3f}".format(ratio(figures["think"], n)[0]),
        "gain, line": interval(figures["line"], n),
        "gain, rest": interval(figures["rest"], n),
        "where it would think": interval(figures["wanted"], figures["think"]),
        "above c": "{:.2f}".format(ratio(figures["above"], n)[0]),
        "best of K, line": interval(figures["best_line"], n),
        "best of K, rest": interval(figures["best"], n),
        "bound - never, line": interval(figures["bound"] - figures["never"], n),
        "bound - never, rest": interval(figures["rest_bound"], n),
    }
    if "forced" in figures:
        cells["forced, line"] = interval(figures["forced"], n)
        cells["forced, rest"] = interval(figures["forced_rest"], n)
        cells["at a rate that suits, line"] = rate_cell(figures["lifted"], n)
        cells["at a rate that suits, rest"] = rate_cell(figures["lifted_rest"], n)
    return cells


def rate_cell(lifted, n):
    """Example: +0.125 ± 0.031 (r = 0.1, 0.05)"""
    values, rates = best_rate(lifted)
    return "{} (r = {:g}, {:g})".format(interval(values, n), *rates)
