"""The two theorems of RA3 on mid-training, run on small tabular tasks without a model.

    python theory.py --figure bounds.png

RA3 is arXiv 2509.25810. M is a task, Z a set of options (primitive actions or abstractions), tau
the duration of an option. Rewards are scaled by 1 - gamma: no value is above 1.

    Delta(M, Z') = V_M(Z) - V_M(Z'),   V_M(Z) the best value of M with the options Z        (error)
    Z_eps is the smallest Z' with E_M Delta(M, Z') <= eps
    Z' is (eps, sigma)-suboptimal if P_M( Delta(M, Z') > eps ) >= sigma
    |D_E| = |Z_eps| log( |Z| / delta ) / sigma                                            (pruning)
    V_{n+1}(s) = max_z r_z(s) + sum_s' F_z(s, s') V_n(s')                               (iteration)
    r_z(s) = E sum_{i < tau} gamma^i r_i,   F_z(s, s') = E gamma^tau 1[s_tau = s']         (option)
    N >= 1 / (1 - gbar) log( R_max / (eps (1 - gbar)) ),   gbar = max E gamma^tau     (convergence)

(option): Sutton, Precup and Singh (1999). (convergence): V_0 = 0 is at most R_max / (1 - gbar) off,
and each iteration shrinks that by gbar <= exp(gbar - 1).

Departures from the paper
1. Sets of |Z_eps| options are pruned, not single ones. At most |Z|^|Z_eps| are suboptimal (their
   number gives `counted`). One outlives n demonstrations with at most (1 - sigma)^n: (pruning).
2. A demonstration shows a task and the expert's value in it. A set that loses more than eps of that
   value is pruned. What sampled trajectories and imitation lose besides is left out.
3. R_max is the largest r_z(s), the reward of a decision. With that of a step (`by step`) the bound
   fails, here from two steps on.
4. N counts iterations until max_s |V*_Z - V_N| <= eps, over one set of options. What that set loses
   against primitive actions, max_s V* - V*_Z, is `lost`.

Shapes: M tasks, Z options, A actions, S states, B subsets, K members of a subset, N sequences.
"""

import itertools

import numpy as np

import config

GAMMA = 0.95  # discount of one step
WORLDS = (
    *({}, {"cells": 1}, {"cells": 3}, {"rooms": 4}, {"useful": 4}, {"useful": 4, "total": 24}),
    *({"skills": 1}, {"skills": 4}, {"sigma": 0.05}, {"sigma": 0.2}),
)  # what differs from the defaults of draw_rooms and measure_pruning
STEPS = {"primitive": 1, "option": 3}  # durations in the tasks of (pruning)
KINDS = ("repeated action", "skill", "skill, random tau")


def lengthen(reward, transition, steps, end=0.0):
    """(option) of a policy: r_z (..., S) and F_z (..., S, S), from those of its first step.

    tau is `steps`, or less: the option ends after each step with probability `end`.
    """
    alive = np.broadcast_to(np.eye(reward.shape[-1]), transition.shape)
    total = np.zeros_like(reward)
    ended = np.zeros_like(transition)
    for _ in range(steps):
        total = total + (alive @ reward[..., None])[..., 0]
        ended = ended + end * alive @ transition
        alive = (1 - end) * alive @ transition
    return total, ended + alive


def action_values(values, rewards, transitions):
    """What (iteration) maximises: (..., S), (..., Z, S), (..., Z, S, S) -> (..., Z, S)."""
    return rewards + (transitions @ values[..., None, :, None])[..., 0]


def optimal_values(rewards, transitions):
    """V*_Z (..., S), by policy iteration: exact but for rounding."""
    values = np.zeros(rewards.shape[:-2] + rewards.shape[-1:])
    while ((Q := action_values(values, rewards, transitions)).max(-2) - values).max() > 1e-10:
        best = Q.argmax(-2)[..., None, :]  # (..., 1, S)
        reward = np.take_along_axis(rewards, best, -2).swapaxes(-1, -2)  # (..., S, 1)
        transition = np.take_along_axis(transitions, best[..., None], -3)[..., 0, :, :]
        values = np.linalg.solve(np.eye(reward.shape[-2]) - transition, reward)[..., 0]
    return values


def draw_rooms(rng, skills=2, rooms=8, cells=2, useful=10, total=12):
    """P(M) (M,), and {kind: one step of each policy: rewards (M, Z, S), transitions (M, Z, S, S)}.

    Rooms are closed. A skill is one of `useful` actions for every cell. A task is a room and the
    skill rewarded in it, the k-th in proportion to 1 / k. Options are the skills and decoys, which
    do as a skill in half of the rooms, `total` in all. Primitive are the `total` actions.
    """
    P = GAMMA * rng.dirichlet(np.ones(cells), size=(rooms, total, cells))  # (rooms, A, S, S)
    skill = rng.integers(useful, size=(skills, rooms, cells))
    copied = skill[rng.integers(skills, size=(total - skills, rooms)), np.arange(rooms)]
    noise = rng.integers(total, size=copied.shape)
    decoy = np.where(rng.random((total - skills, rooms, 1)) < 0.5, copied, noise)
    constant = np.broadcast_to(np.arange(total)[:, None, None], (total, rooms, cells))
    steps = {}
    for kind, policies in ("primitive", constant), ("option", np.concatenate([skill, decoy])):
        right = (policies == skill[:, None]).swapaxes(1, 2)  # (skills, rooms, Z, S)
        transitions = P[np.arange(rooms)[:, None], policies, np.arange(cells)]  # (Z, rooms, S, S)
        rewards = (1 - GAMMA) * right.reshape(-1, total, cells)  # (M, Z, S)
        steps[kind] = rewards, np.concatenate([transitions.swapaxes(0, 1)] * skills)
    weight = np.repeat(1 / np.arange(1, skills + 1), rooms)
    return weight / weight.sum(), steps


def smallest_subsets(rewards, transitions, probability, eps):
    """|Z_eps|, and Delta of all sets of that size, from a start in any state (error): (B, M)."""
    full = optimal_values(rewards, transitions).mean(-1)
    for size in itertools.count(1):
        subsets = np.array(list(itertools.combinations(range(rewards.shape[1]), size)))  # (B, K)
        tasks = zip(rewards, transitions, strict=True)
        values = [optimal_values(r[subsets], F[subsets]).mean(-1) for r, F in tasks]
        errors = full - np.stack(values, 1)  # (B, M)
        if (errors @ probability).min() <= eps:
            return size, errors


def demonstrations(fails, probability, delta, rng, draws=1000, length=500):
    """The n by which 1 - delta of `draws` sequences of tasks prune all sets, or inf past `length`.

    fails (B, M): is a set pruned by a task?
    """
    tasks = rng.choice(len(probability), size=(draws, length), p=probability)
    shown = tasks == np.arange(len(probability))[:, None, None]  # (M, N, length)
    first = np.where(shown.any(-1), shown.argmax(-1) + 1, np.inf)  # (M, N)
    last = [first[row].min(0, initial=np.inf) for row in np.unique(fails, axis=0)]
    needed = np.max([np.zeros(draws), *last], 0)  # (N,)
    return float(np.quantile(needed, 1 - delta, method="inverted_cdf"))


def pruning_bound(size, total, delta, sigma):
    """|D_E| of (pruning).   Example: 2, 12, 0.1, 0.1 -> 95.7"""
    return size * np.log(total / delta) / sigma


def measure_pruning(seed, kind, sigma=0.1, eps=0.05, delta=0.1, **world):
    """Demonstrations needed in one world of draw_rooms, and their bounds. kind: one of STEPS."""
    rng = np.random.default_rng(config.seed_of(seed, config.THEORY))
    probability, models = draw_rooms(rng, **world)
    rewards, transitions = lengthen(*models[kind], STEPS[kind])
    size, errors = smallest_subsets(rewards, transitions, probability, eps)
    fails = errors > eps
    suboptimal = fails[fails @ probability >= sigma]
    return {
        "|Z|": rewards.shape[1],
        "|Z_eps|": size,
        "needed": demonstrations(suboptimal, probability, delta, rng),
        "counted": pruning_bound(1, max(1, len(suboptimal)), delta, sigma),
        "bound": pruning_bound(size, rewards.shape[1], delta, sigma),
    }


def garnet(rng, states=30, actions=4, successors=3):
    """Transitions (A, S, S): a Garnet problem (Archibald, McKinnon and Thomas 1995)."""
    P = np.zeros((actions, states, states))
    for row in P.reshape(-1, states):
        row[rng.choice(states, successors, replace=False)] = rng.dirichlet(np.ones(successors))
    return P


def convergence_bound(gbar, largest, eps):
    """N of (convergence); `largest` is R_max.   Example: 0.95, 0.05, 0.05 -> 59.9"""
    return np.log(largest / (eps * (1 - gbar))) / (1 - gbar)


def iterations(rewards, transitions, eps):
    """The first n with max_s |V*_Z - V_n| <= eps, from V_0 = 0 (iteration)."""
    best = optimal_values(rewards, transitions)
    values = np.zeros_like(best)
    for n in itertools.count():
        if abs(best - values).max() <= eps:
            return n
        values = action_values(values, rewards, transitions).max(-2)


def measure_convergence(seed, kind, steps, eps=0.05):
    """Iterations needed in one Garnet problem, and their bounds. kind: one of KINDS."""
    rng = np.random.default_rng(config.seed_of(seed, config.THEORY))
    P = GAMMA * garnet(rng)
    R = (1 - GAMMA) * rng.random((4, *P.shape[:2]))  # (M, A, S), the problem itself the first
    transitions = np.stack([P] * len(R))
    optimal = optimal_values(R, transitions)
    skills = action_values(optimal, R, transitions).argmax(1)  # (M, S), the best policies
    states = np.arange(P.shape[1])
    step = (R[0], P) if kind == KINDS[0] else (R[0][skills, states], P[skills, states])
    rewards, transitions = lengthen(*step, steps, 1 / steps if kind == KINDS[2] else 0.0)
    gbar = transitions.sum(-1).max()
    return {
        "gbar": gbar,
        "needed": iterations(rewards, transitions, eps),
        "bound": convergence_bound(gbar, rewards.max(), eps),
        "by step": convergence_bound(gbar, R[0].max(), eps),
        "lost": (optimal[0] - optimal_values(rewards, transitions)).max().round(6),
    }


def seed_means(seeds, measure, *setting, **world):
    """The means of what `measure` returns for each seed, and the largest needed / bound."""
    rows = [measure(seed, *setting, **world) for seed in range(seeds)]
    means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    return means | {"worst": max(row["needed"] / row["bound"] for row in rows)}


def print_rows(rows):
    """Print [{column: text or number}, ...], numbers with four digits."""
    cells = [[x if isinstance(x, str) else f"{x:.4g}" for x in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(rows[0], *cells, strict=True)]
    for line in [rows[0], *cells]:
        print("  ".join(map(str.rjust, line, widths)))


def draw_bounds(tables, path):
    """Write a .png file: what was needed over the bounds, a panel a table. Raises UserError."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        message = "figures need matplotlib (extra report): pip install matplotlib==3.11.2"
        raise config.UserError(message) from None
    figure = Figure((10, 4.2), layout="constrained")
    for axis, (unit, rows) in zip(figure.subplots(1, 2), tables.items(), strict=True):
        for kind in dict.fromkeys(row["kind"] for row in rows):
            points = [(row["bound"], row["needed"]) for row in rows if row["kind"] == kind]
            axis.loglog(*zip(*points, strict=True), "o", label=kind, alpha=0.6)
        limits = 1, 2 * max(row["bound"] for row in rows)
        axis.plot(limits, limits, color="black", linewidth=0.8, label="the bound")
        axis.set(xlabel="bound", ylabel=f"{unit} needed", xlim=limits, ylim=limits)
        axis.legend(frameon=False)
    with config.writing(path, "--figure", "give another path"):
        figure.savefig(path, format="png", dpi=130)


def main(argv):
    parser = config.Parser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds a row (default 5)")
    parser.add_argument("--figure", default="", metavar="FILE", help="a .png: needed over bounds")
    args = parser.parse_args(argv)
    config.check_number("--seeds", args.seeds, config.Limits(least=1))
    config.check_output("--figure", args.figure, ".png")
    tables = {"demonstrations": [], "iterations": []}
    for world, kind in itertools.product(WORLDS, STEPS):
        label = " ".join(f"{name} {number}" for name, number in world.items()) or "-"
        row = seed_means(args.seeds, measure_pruning, kind, **world)
        tables["demonstrations"].append({"kind": kind, "world": label} | row)
    for kind, steps in itertools.product(KINDS, (1, 2, 4, 8, 16, 32)):
        row = seed_means(args.seeds, measure_convergence, kind, steps)
        tables["iterations"].append({"kind": kind, "steps": str(steps)} | row)
    for unit, rows in tables.items():
        print(f"\n{unit}\n")
        print_rows(rows)
    if args.figure:
        draw_bounds(tables, args.figure)


if __name__ == "__main__":
    config.command(main)
