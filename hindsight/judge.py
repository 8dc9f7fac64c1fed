"""What thoughts are worth to a model on held-out code: figures by snippet, and their table.

Shapes: B snippets, M lines that are tried, K thoughts at each.
"""

import math

import numpy as np
from tqdm import tqdm

from hindsight.propose import log_weights, propose

RATES = np.array([0.001, 0.003, 0.01, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0])


def judge(
    model, tok, snippets, cfg, K=8, per=3, at_once=16, n_hindsight=0, shuffle=False, desc="judge"
):
    """What K thoughts at some lines of held-out snippets are worth to a model -> (figures by snippet, thoughts).

    per: lines of a snippet, drawn once for all models; 0: all. n_hindsight: of the K so many in hindsight, the rest the model's own. shuffle: each thought
    is given to a line of another snippet, a control: what remains is what any comment does.
    figures: dict of (B,) arrays; `code` and `tokens` are of all lines of a snippet, the others sums over those drawn, in nats unless said otherwise:
        code, tokens      log pi of the code without thoughts; its tokens
        lines             how many were drawn
        never             log pi(a_t | s_t): never thinking
        bound             log( p(<act> | s_t) pi(a_t | s_t) + 1/K sum_k w_k ): the line's marginal under the model's own prior
        think             P(<think>)
        line, rest        mean gain of a thought on its line; on all lines from it on; every line is made to think
        wanted            the gain on the rest times P(<think>): over `think`, the mean gain where the model itself would think
        above_line, above share of the thoughts whose gain exceeds c; on the line, on the rest
        best_line, best   the largest of the K gains
        lifted, lifted_rest   (B, 11): log( 1 - r + r/K sum_k pi(a | s_t, z_k) / pi(a | s_t) ) for every r of RATES: the bound less never thinking, of a model
                          that thinks with probability r before every line
        forced            log 1/K sum_k pi(a_t | s_t, z_k) - log pi(a_t | s_t): always thinking; forced_rest: of all lines from t on
        rest_bound        bound - never of all lines from t on
        price             log p(z | s_t) - log q_h(z | s_t, a_t); nan if nothing is proposed in hindsight
    thoughts: [(gain on the line, gain on the rest, P(<think>), snippet, line, ids)].
    """
    rows, kept = [], []
    for start in tqdm(
        range(0, len(snippets), at_once),
        desc=desc,
        unit="batch",
        delay=2,
        leave=False,
        mininterval=10,
    ):
        part = snippets[start : start + at_once]
        drawn = [
            np.random.default_rng([cfg.seed, 79, start + b]).permutation(len(s.first))[
                : per or None
            ]
            for b, s in enumerate(part)
        ]
        found = propose(
            model,
            tok,
            part,
            lambda b, logp: sorted(drawn[b].tolist()),
            n_hindsight,
            K - n_hindsight,
            cfg.think_max,
            seed=(cfg.seed, 79),
            numbers=range(start, start + len(part)),
        )
        if shuffle:
            rng, of = np.random.default_rng([cfg.seed, 80, start]), np.repeat(found.snip, K)
            pool = [z[1:] for some in found.thoughts for z in some]
            other = [
                [[z[0]] + pool[rng.choice(np.flatnonzero(of != b))] for z in some]
                for b, some in zip(found.snip, found.thoughts)
            ]
            found = propose(
                model,
                tok,
                part,
                lambda b, logp: sorted(drawn[b].tolist()),
                n_hindsight,
                K - n_hindsight,
                cfg.think_max,
                thoughts=other,
            )
        gain = found.given - found.base[:, None]  # (M, K, 2)
        line, rest = (
            np.logaddexp.reduce(log_weights(found, part=p), axis=1) for p in (0, 1)
        )  # (M,)
        think = -np.expm1(found.act)  # (M,)
        each = {
            "lines": np.ones(len(line)),
            "never": found.base[:, 0],
            "bound": line,
            "think": think,
            "line": gain[..., 0].mean(1),
            "rest": gain[..., 1].mean(1),
            "wanted": think * gain[..., 1].mean(1),
            "above_line": (gain[..., 0] > cfg.c).mean(1),
            "above": (gain[..., 1] > cfg.c).mean(1),
            "best_line": gain[..., 0].max(1),
            "best": gain[..., 1].max(1),
            "forced": np.logaddexp.reduce(gain[..., 0], axis=1) - math.log(K),
            "forced_rest": np.logaddexp.reduce(gain[..., 1], axis=1) - math.log(K),
            "rest_bound": rest - found.base[:, 1],
            "price": (found.logp - found.logq).mean(1),
        }
        for name, p in (("lifted", 0), ("lifted_rest", 1)):
            each[name] = np.log1p(RATES * (np.exp(gain[..., p]).mean(1) - 1)[:, None])  # (M, rates)
        sums = {k: np.zeros((len(part), *x.shape[1:])) for k, x in each.items()}
        for k, x in each.items():
            np.add.at(sums[k], found.snip, x)
        rows.append(
            sums
            | {
                "code": np.array([x.sum() for x in found.lines]),
                "tokens": np.array([len(s.ids) - s.first[0] for s in part]),
            }
        )
        kept += [
            (*gain[m, k], think[m], start + b, t, z)
            for m, (b, t) in enumerate(zip(found.snip, found.line))
            for k, z in enumerate(found.thoughts[m])
        ]
    return {k: np.concatenate([r[k] for r in rows]) for k in rows[0]}, kept


def ratio(x, n):
    """sum x / sum n over snippets and its standard error (delta method). x, n (B,)."""
    r = x.sum() / n.sum()
    return float(r), float(
        np.sqrt(((x - r * n) ** 2).sum() * len(x) / max(1, len(x) - 1)) / n.sum()
    )


def best_rate(lifted):
    """The bound at the constant P(<think>) that suits the other half of the snippets best -> ((B,), the rates of both halves). lifted (B, rates)."""
    half = np.arange(len(lifted)) % 2
    rates = [lifted[half != h].sum(0).argmax() for h in (0, 1)]
    return lifted[np.arange(len(lifted)), np.array(rates)[half]], [float(RATES[r]) for r in rates]


def table(judged, against="ntp"):
    """Lines of text: a row a model, mean ± standard error over snippets. judged: {name: figures}."""
    other = judged.get(against)
    heads = (
        [
            "",
            "CE of code",
            "P(think)",
            "gain, line",
            "gain, rest",
            "where it would think",
            "above c",
            "best of K, line",
            "rest",
            "forced, line",
            "rest",
            "bound - never, line",
            "rest",
            "at a rate that suits, line",
            "rest",
        ]
        + [f"bound - {against}'s never, line"] * (other is not None)
        + ["log p - log q_h"]
    )
    rows = [heads]
    for name, f in judged.items():
        n = f["lines"]
        say = lambda x, n=n: "{:+.3f} ± {:.3f}".format(*ratio(x, n))
        rows.append(
            [
                name,
                "{:.4f} ± {:.4f}".format(*ratio(-f["code"], f["tokens"])),
                "{:.3f}".format(ratio(f["think"], n)[0]),
                say(f["line"]),
                say(f["rest"]),
                say(f["wanted"], f["think"]),
                "{:.2f}".format(ratio(f["above"], n)[0]),
                say(f["best_line"]),
                say(f["best"]),
                say(f["forced"]),
                say(f["forced_rest"]),
                say(f["bound"] - f["never"]),
                say(f["rest_bound"]),
                *(
                    "{} (r = {:g}, {:g})".format(say(x), *r)
                    for x, r in (best_rate(f["lifted"]), best_rate(f["lifted_rest"]))
                ),
            ]
            + ([say(f["bound"] - other["never"])] if other is not None else [])
            + [say(f["price"]) if np.isfinite(f["price"]).all() else "-"]
        )
    width = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.rjust(w) for cell, w in zip(row, width)) for row in rows]
