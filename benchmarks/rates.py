"""Pass rates of graded completions, and how sure they are.

    pass@k = 1 - C(n - c, k) / C(n, k),    n samples of a problem, c of them correct
                                           (arXiv 2107.03374; unbiased)

Rows are those of evaluate.py: {"task_id", "completion", "verdict", "seconds"}, n a problem.

Intervals are 95% intervals over problems, taken as drawn from a larger set.
`rate_interval` is Wilson's score interval (1927) with an effective number of problems,

    n_eff = p (1 - p) / (s^2 / N),    N <= n_eff <= n N,    p, s^2: mean, variance of N rates

which with one sample a problem is Wilson's own. `paired_interval` is the interval of the difference
of two such means, by Newcombe's square-and-add rule for pairs (1998, method 10).
A percentile bootstrap covers too little where few problems pass; tests measure that these cover.
"""

import math
import statistics

import numpy as np

Z = statistics.NormalDist().inv_cdf(0.975)


def pass_at_k(n, c, k):
    """Unbiased probability that one of k samples is correct. Raises ValueError if n < k.

    Example: pass_at_k(5, 2, 1) -> 0.4
    """
    if n < k:
        raise ValueError(f"pass@{k} needs at least {k} samples a problem; there are {n}")
    if n - c < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def pass_rates(rows, n, k):
    """pass@k of each problem: (problems,)."""
    passed = np.array([row["verdict"] == "passed" for row in rows]).reshape(-1, n).sum(1)
    return np.array([pass_at_k(n, int(c), k) for c in passed])


def mean_pass_at_k(rows, n, ks=(1, 5)):
    """{pass@k: mean over problems} for every k <= n."""
    return {f"pass@{k}": float(np.mean(pass_rates(rows, n, k))) for k in ks if k <= n}


def intervals_at_k(rows, n, ks=(1, 5)):
    """{pass@k: its 95% interval, a list of two} for every k <= n."""
    return {f"pass@{k}": list(rate_interval(pass_rates(rows, n, k), n)) for k in ks if k <= n}


def rate_interval(rates, n):
    """95% interval of the mean of some problems' rates -> (low, high).

    rates: pass@k of each problem (problems,), from n samples each.
    """
    N, p = len(rates), float(np.mean(rates))
    effective = N
    if N > 1 and 0 < p < 1:
        noise = float(np.var(rates, ddof=1)) / N
        effective = min(n * N, max(N, p * (1 - p) / max(noise, 1e-12)))
    centre = (p + Z**2 / (2 * effective)) / (1 + Z**2 / effective)
    half = Z / (1 + Z**2 / effective)
    half *= math.sqrt(p * (1 - p) / effective + Z**2 / (4 * effective**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_interval(a, b, n):
    """95% interval of mean(a) - mean(b) -> (low, high).

    a, b: rates of the same problems, in one order, from n samples each.
    """
    p, q = float(np.mean(a)), float(np.mean(b))
    (low_p, high_p), (low_q, high_q) = rate_interval(a, n), rate_interval(b, n)
    varied = len(a) > 1 and np.std(a) > 0 and np.std(b) > 0
    r = float(np.corrcoef(a, b)[0, 1]) if varied else 0.0

    def distance(x, y):
        return math.sqrt(max(0.0, x * x - 2 * r * x * y + y * y))

    return p - q - distance(p - low_p, high_q - q), p - q + distance(high_p - p, q - low_q)


# Student's t, 97.5%, for 1 to 10 degrees of freedom
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def seed_interval(values):
    """95% interval of the mean of some seeds' values, by Student's t -> (low, high).

    Example: [1.0, 3.0] -> (-10.7, 14.7)
    """
    degrees = len(values) - 1
    if degrees <= len(STUDENT):
        t = STUDENT[degrees - 1]
    else:  # the expansion of the quantile in 1 / degrees; three digits hold here
        t = Z + (Z**3 + Z) / (4 * degrees) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * degrees**2)
    half = t * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    mean = float(np.mean(values))
    return mean - half, mean + half
