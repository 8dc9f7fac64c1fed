"""What each setting decides, and its smallest value, as metadata of the fields of Config.

The names here are frozen: runs made so far are taken up again, or refused, by them. A new setting
that decides a result is added here too; one that changes sides makes unfinished runs useless.
"""

import ast
import dataclasses
import math
import pathlib
import re

import numpy as np
import pytest

import config
from config import PRESETS, RESULTS, Config, UserError, deciding, make, seed_of, setting
from run import rlvr_settings, stage_settings

FROZEN = {
    "pretrain": "base_check base_stages exercises pretrain_lr pretrain_steps useful".split(),
    "base": """
    bf16 block d_ff d_model grad_clip max_len n_head n_layer rows seed vocab_size weight_decay
    weights
    """.split(),
    "ntp": """
    data data_dir decontaminate docstrings infuse iters keep_comments lr match max_tokens
    min_lines model mstep_steps n_expert n_heldout near_duplicate preset stages text_column unit
    warmup
    """.split(),
    "em": """
    alpha best_of c choose_by credit discount estep estep_lr estep_lr_decay estep_steps floor
    gain_floor group horizon kl kl_prior name normalise own proposals rate reach resample
    rollout_bf16 selection snippets think_max tried
    """.split(),
    "rlvr": """
    bf16 clip_high clip_low completions data_dir decontaminate epochs eval_every eval_samples
    eval_split eval_suite eval_tasks grad_clip init mask_overlong max_new micro_tokens
    minibatches model n_rl preset prompts reward reward_apart reward_time rl_kl rl_lr rl_norm rl_std
    stages rl_steps rl_warmup rollout_bf16 rounds seed suite temperature thoughts weights
    """.split(),
}
POSITIVE = """
    best_of block completions d_ff d_model elbo_samples epochs eval_samples eval_tasks group infuse
    iters max_len max_new max_tokens micro_tokens min_lines minibatches n_head n_heldout
    n_layer n_rl prompts proposals resample rounds rows samples save_every snippets think_max
    """.split()
ABOVE = """
    alpha estep_lr estep_lr_decay grad_clip lr pretrain_lr reward_time rl_lr tried
""".split()
SHARES = """
    alpha clip_low discount exercises floor near_duplicate rate tried useful weight_decay
""".split()
INFINITE = "c gain_floor grad_clip".split()
NUMBERS = [f for f in dataclasses.fields(Config) if f.type in (int, float)]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_settings_of_a_run_are_what_they_were(preset):
    cfg = make(preset)
    names = [name for word in RESULTS["em"] for name in FROZEN[word]]
    assert stage_settings(cfg) == {name: getattr(cfg, name) for name in names}
    assert rlvr_settings(cfg) == {name: getattr(cfg, name) for name in FROZEN["rlvr"]}


@pytest.mark.parametrize("result", RESULTS)
def test_what_decides_a_result(result):
    names = deciding(result)
    assert len(set(names)) == len(names)
    assert set(names) == {name for word in RESULTS[result] for name in FROZEN[word]}


def refused(name, value):
    """What `make` says of a setting's value; "" if it takes it."""
    try:
        make(**{name: value})
    except UserError as e:
        option = "--" + name.replace("_", "-")
        assert str(e).startswith(f"{option} {value}: expected ") and "\n" not in str(e)
        return str(e).removeprefix(f"{option} {value}: expected ")
    return ""


@pytest.mark.parametrize("field", NUMBERS, ids=lambda field: field.name)
def test_a_number_has_its_range(field):
    """Every number: no negative one, no NaN, infinity where INFINITE says so, its own bounds."""
    name = field.name
    lowest = "above 0" if name in ABOVE else f"of at least {int(name in POSITIVE)}"
    assert refused(name, field.type(-1)) == f"a number {lowest}"
    if name in POSITIVE + ABOVE:
        assert refused(name, field.type(0)) == f"a number {lowest}"
    if field.type is int:
        assert refused(name, 2**63).startswith("at most ")
        assert refused(name, 10**400).startswith("at most ")
        return
    assert refused(name, math.nan) == f"a number {lowest}"
    assert refused(name, -math.inf) == f"a number {lowest}"
    assert refused(name, math.inf) == ("" if name in INFINITE else "a finite number")
    assert refused(name, 1.5) == {"floor": "a number below 1"}.get(
        name, "at most 1" if name in SHARES else ""
    )
    if name in SHARES:
        assert refused(name, 1.0) == ("a number below 1" if name == "floor" else "")


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("seed", 2**63 - 1, ""),
        ("seed", 2**64, f"at most {2**63 - 1}"),
        ("threads", 100_000, "at most 1024"),
        ("useful", 3.0, "at most 1"),
        ("rate", 7.0, "at most 1"),
        ("clip_low", 2.0, "at most 1"),
        ("lr", 0.0, "a number above 0"),
        ("grad_clip", 0.0, "a number above 0"),
        ("c", math.inf, ""),
        ("warmup", 0, ""),
    ],
)
def test_ranges_by_example(name, value, expected):
    assert refused(name, value) == expected


def test_defaults_and_presets_are_in_range():
    for preset in PRESETS:
        cfg = make(preset)
        for f in NUMBERS:
            limits = f.metadata["limits"]
            assert not limits.expected(getattr(cfg, f.name)), f.name
            if f.type is float:
                assert (
                    limits.most == 1 or limits.below == 1 or f.name not in SHARES
                ) and limits.infinite == (f.name in INFINITE)


def test_long_programs_have_room():
    """Settings that follow from the number of stages: as many tokens a step and M-step, or less."""
    names = "block rows max_new snippets infuse".split()
    usual = {name: getattr(Config(), name) for name in names}
    assert [getattr(make(stages="1,2,3"), name) for name in names] == [*usual.values()]
    for longest in (4, 6, 9):
        cfg = make(stages=f"2,{longest}")
        assert cfg.block == cfg.max_new == config.TOKENS_A_STAGE * longest
        for each, number in (
            (cfg.block, "rows"),
            (longest / 3, "snippets"),
            (longest / 3, "infuse"),
        ):
            most = usual[number] * (usual["block"] if number == "rows" else 1)
            assert most - each < getattr(cfg, number) * each <= most
    cfg = make(stages="2", base_stages="2,8", rows=5, infuse=7)
    assert (cfg.block, cfg.rows, cfg.snippets, cfg.infuse) == (768, 5, usual["snippets"], 7)
    for block in (480, 576, 700):  # a step keeps its tokens
        tokens = make(stages="6", block=block).rows * block
        assert usual["rows"] * usual["block"] - block < tokens <= usual["rows"] * usual["block"]
    cfg = make(stages="6", data="stdlib")
    assert (cfg.snippets, cfg.infuse) == (usual["snippets"], usual["infuse"])


def test_a_setting_says_what_it_decides():
    with pytest.raises(TypeError):
        setting(1, "something")
    with pytest.raises(ValueError, match="mstep is none of"):
        setting(1, "something", of="base mstep")
    assert setting(1, "something", of="base rlvr", least=1).metadata["of"] == ("base", "rlvr")


# ---------------------------------------------------------------- seeds

ROOT = pathlib.Path(config.__file__).resolve().parent
PURPOSES = re.findall(r"^([A-Z_]+) = \d+  # ", (ROOT / "config.py").read_text(), re.M)
STREAMS = [
    (0, 2),
    (0, 2, 0),
    (0, 2, 0, 0),
    (0, 0, 2),
    (2, 0),
    (2, 0, 0, 1),
    (2**32, 1),
    (0, 1, 1),
    (1, 1, 2**32),
    (1, 1, 0, 1),
    (1, 1, 1),
    (2**63 - 1, 18, *[2**64 - 1] * 8),
]


def first_numbers(words):
    return tuple(np.random.default_rng(words).integers(2**63, size=4).tolist())


def test_streams_are_apart():
    """Seeds that numpy takes for one another as lists: a trailing zero, a number of 64 bits."""
    assert first_numbers([0, 2]) == first_numbers([0, 2, 0])
    assert first_numbers([2**32, 1]) == first_numbers([0, 1, 1])
    seeds = {tuple(seed_of(*stream)) for stream in STREAMS}
    assert len(seeds) == len(STREAMS) == len({first_numbers(seed) for seed in seeds})
    assert len({len(seed) for seed in seeds}) == 1 and max(map(max, seeds)) < 2**32


@pytest.mark.parametrize("counters", [[-1], [2**64], [0] * 9, [1.5, -2]])
def test_seeds_out_of_range(counters):
    with pytest.raises(ValueError, match="expected at most 8 counters from 0 to"):
        seed_of(0, 1, *counters)


def test_purposes_are_apart():
    assert len(PURPOSES) > 15 and "COUNTERS" in PURPOSES
    words = [getattr(config, name) for name in PURPOSES if name != "COUNTERS"]
    assert sorted(words) == list(range(len(words)))


def test_numpy_is_seeded_by_seed_of():
    """No call of default_rng in the project is given a list that was made on the spot."""
    paths = [*ROOT.glob("*.py"), *ROOT.glob("[a-z]*/*.py")]
    calls = [
        (path, node)
        for path in paths
        if path.parent.name != "tests"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("default_rng")
    ]
    assert len(calls) > 8
    made_here = (ast.List, ast.Tuple, ast.ListComp)
    assert [(str(p), n.lineno) for p, n in calls if isinstance(n.args[0], made_here)] == []
    seeds = [ast.unparse(node.args[0]) for _, node in calls]
    assert sum(seed.startswith("seed_of(") for seed in seeds) > 8
