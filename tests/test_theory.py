"""The two theorems: their parts against enumerations, the bounds at every measured point."""

import itertools
import math
import sys

import numpy as np
import pytest

import theory
from config import UserError

PNG = b"\x89PNG\r\n\x1a\n"


def random_model(rng, options=3, states=4):
    """Rewards (Z, S) and transitions (Z, S, S) whose rows sum to .2 to .9."""
    F = rng.dirichlet(np.ones(states), size=(options, states))
    return rng.random((options, states)), F * rng.uniform(0.2, 0.9, (options, states, 1))


def policy_values(policy, rewards, transitions):
    """V of one option a state, by a linear solve."""
    states = np.arange(len(policy))
    F = transitions[policy, states]
    return np.linalg.solve(np.eye(len(policy)) - F, rewards[policy, states])


# ---------------------------------------------------------------- options


@pytest.mark.parametrize("end", [0.0, 0.4])
def test_an_option_by_its_paths(end):
    """r_z and F_z, summed over every duration and every path."""
    rng = np.random.default_rng(0)
    gamma, steps, S = 0.9, 4, 3
    reward, P = rng.random(S), rng.dirichlet(np.ones(S), size=S)
    total, arrived = np.zeros(S), np.zeros((S, S))
    for tau in range(1, steps + 1):
        stops = (1 - end) ** (tau - 1) * (end if tau < steps else 1.0)
        for path in itertools.product(range(S), repeat=tau + 1):
            chance = stops * math.prod(P[a, b] for a, b in itertools.pairwise(path))
            total[path[0]] += chance * sum(gamma**i * reward[path[i]] for i in range(tau))
            arrived[path[0], path[-1]] += chance * gamma**tau
    r, F = theory.lengthen(reward, gamma * P, steps, end)
    np.testing.assert_allclose(r, total)
    np.testing.assert_allclose(F, arrived)


def test_optimal_values_by_enumeration_and_by_iteration():
    """Policy iteration, every policy's linear solve, and value iteration agree."""
    rewards, transitions = random_model(np.random.default_rng(1))
    policies = itertools.product(range(3), repeat=4)
    best = np.max([policy_values(np.array(p), rewards, transitions) for p in policies], 0)
    values = np.zeros(4)
    for _ in range(300):
        values = theory.action_values(values, rewards, transitions).max(0)
    np.testing.assert_allclose(theory.optimal_values(rewards, transitions), best, atol=1e-9)
    np.testing.assert_allclose(values, best, atol=1e-9)


def test_optimal_values_of_a_batch():
    rng = np.random.default_rng(2)
    models = [random_model(rng) for _ in range(6)]
    rewards, transitions = (
        np.stack(x).reshape(2, 3, *x[0].shape) for x in zip(*models, strict=True)
    )
    single = [theory.optimal_values(*model) for model in models]
    batch = theory.optimal_values(rewards, transitions)
    np.testing.assert_allclose(batch.reshape(6, 4), single, atol=1e-9)


def test_an_iteration_rises_and_contracts():
    """From 0 the values rise, and the largest error shrinks by gbar at least."""
    rewards, transitions = random_model(np.random.default_rng(3))
    gbar = transitions.sum(-1).max()
    best = theory.optimal_values(rewards, transitions)
    values = np.zeros(4)
    for _ in range(20):
        updated = theory.action_values(values, rewards, transitions).max(0)
        assert (updated >= values).all()
        assert abs(best - updated).max() <= gbar * abs(best - values).max() + 1e-12
        values = updated


# ---------------------------------------------------------------- pruning


@pytest.fixture(scope="module")
def rooms():
    """A small world: P(M), and r_z, F_z by kind."""
    probability, models = theory.draw_rooms(np.random.default_rng(0), rooms=3, useful=4, total=5)
    return probability, {
        kind: theory.lengthen(*model, theory.STEPS[kind]) for kind, model in models.items()
    }


def test_tasks(rooms):
    probability, models = rooms
    np.testing.assert_allclose(probability, np.repeat([2 / 9, 1 / 9], 3))
    for rewards, transitions in models.values():
        assert rewards.shape == (6, 5, 2) and transitions.shape == (6, 5, 2, 2)
        np.testing.assert_allclose(theory.optimal_values(rewards, transitions), 1.0)
    rewards, transitions = models["option"]
    for task in range(6):  # its own skill alone is enough
        skill = [task // 3]
        alone = theory.optimal_values(rewards[task][skill], transitions[task][skill])
        np.testing.assert_allclose(alone, 1.0)


def test_decoys_do_as_a_skill_in_half_of_the_rooms():
    _, models = theory.draw_rooms(np.random.default_rng(0), 3, rooms=20, cells=4, total=60)
    right = models["option"][0].reshape(3, 20, 60, 4) > 0  # (skills, rooms, Z, S)
    copies = right.all(-1).any(0)  # (rooms, Z)
    assert copies[:, :3].all() and 0.45 < copies[:, 3:].mean() < 0.55


@pytest.mark.parametrize("kind", ["primitive", "option"])
def test_the_smallest_subset_by_enumeration(rooms, kind):
    """Every subset, each of its policies by a linear solve; and a larger set loses no more."""
    probability, models = rooms
    rewards, transitions = models[kind]
    error = {}
    for size in range(1, 6):
        for subset in itertools.combinations(range(5), size):
            values = [
                max(
                    policy_values(np.array(p), r, F).mean()
                    for p in itertools.product(subset, repeat=2)
                )
                for r, F in zip(rewards, transitions, strict=True)
            ]
            error[subset] = 1 - np.array(values)
    for eps in (0.02, 0.1, 0.3):
        small = min(len(s) for s, e in error.items() if e @ probability <= eps)
        size, errors = theory.smallest_subsets(rewards, transitions, probability, eps)
        expected = [e for s, e in error.items() if len(s) == small]
        assert size == small
        np.testing.assert_allclose(errors, expected, atol=1e-9)
    for small, large in itertools.product(error, error):
        if set(small) <= set(large):
            assert (error[large] <= error[small] + 1e-9).all()


def exact_demonstrations(fails, probability, delta):
    """The smallest n with P(n tasks prune all sets) >= 1 - delta, over every sequence of tasks."""
    for n in range(1, 9):
        chance = 0.0
        for tasks in itertools.product(range(len(probability)), repeat=n):
            if fails[:, tasks].any(1).all():
                chance += math.prod(probability[task] for task in tasks)
        if chance >= 1 - delta:
            return n, chance
    raise AssertionError("more sequences than can be enumerated")


@pytest.mark.parametrize("delta", [0.3, 0.15])
def test_demonstrations_by_enumeration(delta):
    probability = np.array([0.5, 0.3, 0.2])
    fails = np.array([[True, False, True], [False, True, True], [True, True, False]])
    n, chance = exact_demonstrations(fails, probability, delta)
    assert abs(chance - (1 - delta)) > 0.01  # no toss-up for 20,000 sequences
    rng = np.random.default_rng(0)
    assert theory.demonstrations(fails, probability, delta, rng, 20_000, 20) == n


def test_demonstrations_of_one_set_are_geometric():
    """One set that a task of probability sigma prunes: (1 - sigma)^n <= delta."""
    fails = np.array([[True, False]])
    rng = np.random.default_rng(0)
    needed = theory.demonstrations(fails, np.array([0.2, 0.8]), 0.1, rng, 20_000, 100)
    assert needed == math.ceil(math.log(0.1) / math.log(0.8)) == 11
    assert theory.demonstrations(fails[:0], np.array([0.2, 0.8]), 0.1, rng) == 0
    assert theory.demonstrations(~fails & fails, np.array([0.2, 0.8]), 0.1, rng) == math.inf


def test_the_pruning_bound_is_a_union_bound():
    """After so many demonstrations all sets together outlive them with at most delta."""
    assert theory.pruning_bound(2, 12, 0.1, 0.1) == pytest.approx(20 * math.log(120))
    for size, total, delta, sigma in itertools.product((1, 3), (4, 9), (0.3, 0.01), (0.05, 0.5)):
        n = theory.pruning_bound(size, total, delta, sigma)
        assert math.comb(total, size) * (1 - sigma) ** n <= delta


SMALL = [
    {"rooms": 3, "useful": 6, "total": 8},
    {"rooms": 4, "cells": 1, "skills": 3, "total": 10},
    {"rooms": 3, "skills": 1, "useful": 4, "total": 8, "sigma": 0.3},
    {"rooms": 3, "useful": 4, "total": 8, "sigma": 0.05, "delta": 0.02, "eps": 0.02},
]


@pytest.mark.parametrize("kind", ["primitive", "option"])
@pytest.mark.parametrize("world", SMALL, ids=str)
def test_the_pruning_bound_holds(world, kind):
    """Over seeds; and the number of suboptimal sets gives a bound between the two."""
    for seed in range(5):
        row = theory.measure_pruning(seed, kind, **world)
        assert 0 <= row["needed"] <= row["counted"] <= row["bound"]
        assert 1 <= row["|Z_eps|"] <= row["|Z|"] == world["total"]


def test_sets_that_are_not_pruned_lose_little(rooms):
    """A set that is not (eps, sigma)-suboptimal loses eps + sigma at most, in the mean."""
    probability, models = rooms
    eps, sigma = 0.1, 0.15
    for rewards, transitions in models.values():
        errors = theory.smallest_subsets(rewards, transitions, probability, eps)[1]
        remaining = errors[(errors > eps) @ probability < sigma]
        assert len(remaining) and (remaining @ probability <= eps + sigma).all()


# ---------------------------------------------------------------- convergence


def test_garnet_problems():
    P = theory.garnet(np.random.default_rng(0), states=6, actions=2, successors=3)
    np.testing.assert_allclose(P.sum(-1), 1.0)
    assert ((P > 0).sum(-1) == 3).all()


def test_iterations_of_a_geometric_series():
    """One state, reward 1 - g, V_n = 1 - g^n: the first n with g^n <= eps."""
    g, eps = 0.8, 0.05
    n = theory.iterations(np.array([[1 - g]]), np.array([[[g]]]), eps)
    assert n == math.ceil(math.log(eps) / math.log(g)) == 14
    assert n <= theory.convergence_bound(g, 1 - g, eps) == pytest.approx(math.log(20) / 0.2)


@pytest.mark.parametrize("kind", theory.KINDS)
def test_the_convergence_bound_holds(kind):
    """Over durations and seeds; longer options need fewer iterations, and skills lose nothing."""
    for seed in range(4):
        rows = [theory.measure_convergence(seed, kind, steps) for steps in (1, 2, 4, 8, 16, 32)]
        needed = [row["needed"] for row in rows]
        assert all(row["needed"] <= row["bound"] for row in rows)
        assert needed == sorted(needed, reverse=True) and needed[0] > 4 * needed[-1]
        lost = [row["lost"] for row in rows]
        assert lost[0] == 0
        assert lost[-1] > 0.1 if kind == theory.KINDS[0] else max(lost) == 0
        if kind != theory.KINDS[2]:
            powers = [theory.GAMMA**steps for steps in (1, 2, 4, 8, 16, 32)]
            np.testing.assert_allclose([row["gbar"] for row in rows], powers)


@pytest.mark.parametrize("steps", [2, 16])
def test_the_reward_of_a_step_is_no_bound(steps):
    """Departure 3: with R_max of one step the formula fails for longer options."""
    row = theory.measure_convergence(0, "skill", steps)
    assert row["by step"] < row["needed"] <= row["bound"]
    primitive = theory.measure_convergence(0, "repeated action", 1)
    assert primitive["needed"] <= primitive["by step"] == pytest.approx(primitive["bound"])


# ---------------------------------------------------------------- command


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(
        theory,
        "WORLDS",
        ({"rooms": 2, "useful": 3, "total": 4}, {"cells": 1, "total": 4, "useful": 2}),
    )


def test_tables_and_figure(quick, tmp_path, capsys):
    theory.main(["--seeds", "2", "--figure", str(tmp_path / "bounds.png")])
    lines = capsys.readouterr().out.split("\n")
    assert (tmp_path / "bounds.png").read_bytes().startswith(PNG)
    assert lines[3].split() == "kind world |Z| |Z_eps| needed counted bound worst".split()
    assert lines[4].split()[:7] == "primitive rooms 2 useful 3 total 4".split()
    worst = [float(line.split()[-1]) for line in lines if line[-1:].isdigit()]
    assert len(worst) == 4 + 18 and max(worst) <= 1


def test_means_over_seeds():
    row = theory.seed_means(3, lambda seed, x: {"needed": seed, "bound": x}, 4.0)
    assert row == {"needed": 1.0, "bound": 4.0, "worst": 0.5}


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--seeds", "0"], "--seeds 0: expected a number of at least 1"),
        (["--figure", "x.pdf"], "--figure x.pdf: expected a name that ends in .png"),
        (["--figure", "nowhere/x.png"], "--figure nowhere/x.png: expected a file in a folder"),
        (["--seed", "1"], "--seed: no such setting; did you mean --seeds?"),
        (["--seeds", "many"], "argument --seeds: invalid int value: 'many'"),
    ],
)
def test_mistakes_are_one_line(argv, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")) as error:
        theory.main(argv)
    assert "\n" not in str(error.value)


def test_a_figure_without_matplotlib(quick, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"\(extra report\): pip install matplotlib=="):
        theory.draw_bounds({}, tmp_path / "x.png")
