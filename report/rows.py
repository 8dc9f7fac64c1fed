"""What the tables of report.experiments hold: each row's model, and the command that makes it."""

import dataclasses

# half the snippets and steps: twenty rollouts a snippet are most of the time
WEAK = "--base-check false --infuse 600 --mstep-steps 30"
# hard lines a program -> steps of GRPO from the base: to the FLOPs at which that from ra3 ends, or
# to where its pass rate is level
LENGTHS = {1: 60, 2: 80, 3: 120, 4: 160, 6: 300, 8: 240}
# a base of programs of all these lengths, which seldom thinks
LONG_BASE = "--base-stages 1,2,3,4,6,8 --useful 0.1 --pretrain-steps 800"
SIX_STAGES = f"--stages 6 {LONG_BASE}"


@dataclasses.dataclass
class TableRow:
    """A row of a table: a model of a run's folder, and the command that makes it."""

    model: str  # its name in results.json, or rlvr-...: in metrics.jsonl
    command: str  # arguments of train.py, without --out and --seed
    needs: str = ""  # the row whose model it begins with


def em_row(name, options):
    """A row by EM with some options, in a folder whose base.pt and ntp.pt it shares."""
    return TableRow(name, f"--stage em --name {name} --models {name} --report false {options}")


def selection(n, by="snippet", options="", name=""):
    """A row by the best of n rollouts without a gradient: whole ones, or line by line."""
    name = name or f"best-of-{n}" + "-a-line" * (by == "line")
    return em_row(name, f"{options} --estep best-of-n --best-of {n} --choose-by {by}")


def grpo(start, options="", name=""):
    """A row by GRPO. name: where the start has another row already."""
    named = f"--name rlvr-{name} " if name else ""
    makes = {"base": ("pretrain",), "ntp": ("pretrain", "ntp")}.get(start, ())  # if missing
    stages = [f"--stage {stage} {options} && " for stage in makes]
    training = f"--stage rlvr --init {start} {named}{options}"
    return TableRow(f"rlvr-{name or start}", "".join(stages) + training, "" if makes else start)


def grpo_recipe(name, options=""):
    """GRPO from the base of `lengths` at six stages, which passes next to nothing."""
    return grpo("base", f"--rl-steps 240 {SIX_STAGES} {options}", name)


def weak_rows(option):
    """RA3 from a base that an option makes weak, and selection, also with more compute than RA3."""
    options = f"{WEAK} {option}"
    thrice = f"{options} --iters 3"  # NTP grows too
    return [
        selection(20, options=options),
        em_row("gradient-twice", f"{options} --estep auto"),
        em_row("ra3", options),
        selection(8, "line", options),
        selection(20, options=thrice, name="best-of-20-thrice"),
        selection(8, "line", thrice, "best-of-8-a-line-thrice"),
    ]


DEFAULT = TableRow("ra3", "--stage em")
# the default's E-steps, with a gradient even where `auto` would select
GRADIENT_FIRST = "--estep reinforce,best-of-n"
CONTROLS = [
    DEFAULT,
    TableRow("ntp-as-ra3", "--stage ntp --match ra3 && --stage eval --models ntp-as-ra3", "ra3"),
    em_row("none", "--estep none"),
    em_row("random", "--estep random"),
    em_row("oracle", "--estep oracle"),
    em_row("brite", f"{GRADIENT_FIRST} --horizon 1"),
    em_row("group", f"{GRADIENT_FIRST} --credit group"),
    em_row("next-line", f"{GRADIENT_FIRST} --credit group --discount 0"),
]
# name -> its rows, in the order in which they are run
EXPERIMENTS = {
    "default": [
        DEFAULT,
        em_row("gradient-twice", "--estep auto"),
        selection(20),
        selection(20, "line"),
    ],
    "controls": CONTROLS,
    # the default's c is .05
    "penalty": [DEFAULT, *(em_row(f"c-{c}", f"{GRADIENT_FIRST} --c {c}") for c in (0.01, 0.2, 1))],
    # at 160 steps no note is right, at 300 four in five are
    "weak-steps": weak_rows("--pretrain-steps 220"),
    "weak-notes": weak_rows("--useful 0.1"),
    "rlvr": [
        DEFAULT,
        *map(grpo, ("base", "ntp", "ra3")),
        grpo("base", "--rl-steps 40 --reward random", "base-random"),
        grpo("ra3", "--rl-steps 40 --thoughts false", "ra3-silent"),
    ],
    "recipes": [
        TableRow(
            "base", f"--stage pretrain {SIX_STAGES} && --stage eval --models base {SIX_STAGES}"
        ),
        grpo_recipe("default"),
        grpo_recipe("rate-4e-4", "--rl-lr 4e-4"),
        grpo_recipe("rate-8e-4", "--rl-lr 8e-4"),
        grpo_recipe("rounds", "--rounds 4"),  # dynamic sampling
        grpo_recipe("completions", "--prompts 4 --completions 32"),
        grpo_recipe("tests", "--reward tests"),  # partial credit
        TableRow(  # shorter programs first
            "rlvr-curriculum",
            f"--stage pretrain {SIX_STAGES} && "
            f"--stage rlvr --init base --name rlvr-short --rl-steps 80 --stages 2 {LONG_BASE} && "
            f"--stage rlvr --init rlvr-short --name rlvr-curriculum --rl-steps 60 {SIX_STAGES}",
        ),
    ],
    "lengths": [
        selection(20),
        selection(20, "line"),
        selection(8, "line"),  # at RA3's compute
        em_row("group", f"{GRADIENT_FIRST} --credit group"),
        em_row("ra3-a-line", "--choose-by line"),
        em_row("ra3", ""),
        grpo("base"),  # as many steps as LENGTHS has
        *(grpo(start, "--rl-steps 20") for start in ("best-of-20", "group", "ra3")),
        grpo("ntp", "--rl-steps 80"),
    ],
}
