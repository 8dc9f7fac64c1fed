"""Which part of the project may import which, read from the source with `ast`."""

import ast
import graphlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent  # the project's folder
BASE = "config model data logprobs grader"  # what every part above may import
# A part is a file of the top folder, or a folder.
# A name with a slash is a file that may import more than its folder.
ARROWS = {
    "config": "",
    "model": "",
    "data": "",
    "logprobs": "model",
    "grader": "",
    "grader/grade": "config",
    "grader/__main__": "config",
    "elbo": "logprobs",
    "formats": "model data config",
    "engine": "model data logprobs elbo formats config",
    "theory": "config",
    "tasks": "grader",
    "domain": "tasks",
    "benchmarks": "tasks grader data config",
    "corpus": "benchmarks domain formats data config",
    "sample": f"{BASE} formats engine evaluate",
    "mstep": f"{BASE} engine",
    "run": f"{BASE} corpus formats domain engine",
    "evaluate": f"{BASE} engine elbo benchmarks tasks domain formats",
    "hindsight": "engine elbo data logprobs config",
    "hindsight/__main__": "engine elbo data logprobs config run",
    "estep": f"{BASE} engine elbo evaluate hindsight",
    "rlvr": f"{BASE} engine evaluate tasks",
    "train": f"{BASE} elbo estep mstep rlvr sample evaluate run engine domain formats",
}
ANYTHING = ("speed", "report", "tests")  # may import anything; nothing imports them


def modules(root):
    """{dotted name of each file: its syntax tree}.

    Example: engine/rollouts.py -> "engine.rollouts"
    """
    paths = [*root.glob("*.py"), *root.glob("[a-z]*/*.py")]
    names = {path: ".".join(path.relative_to(root).with_suffix("").parts) for path in paths}
    return {
        name.removesuffix(".__init__"): ast.parse(path.read_text()) for path, name in names.items()
    }


def imported(node, known):
    """The modules of the project that an import statement names.

    A name that is no module counts as the module that holds it.
    Example: from engine import parallel -> {"engine.parallel"}
    Example: from engine.decoder import Decoder -> {"engine.decoder"}
    """
    if isinstance(node, ast.Import):
        named = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        joined = [f"{node.module}.{alias.name}" for alias in node.names]
        named = [name if name in known else node.module for name in joined]
    else:
        named = []
    return {name for name in named if name in known}


def imports_of(tree, known):
    """The modules of the project that a file imports, wherever in it."""
    return set().union(*(imported(node, known) for node in ast.walk(tree)))


def imports(trees):
    """{module: modules of the project that it imports}."""
    return {module: imports_of(tree, trees) for module, tree in trees.items()}


def wrong_arrows(graph):
    """["importer -> imported", ...] of all imports between parts that ARROWS does not name."""
    wrong = []
    for module, targets in graph.items():
        part = module.split(".")[0]
        allowed = ARROWS.get(module.replace(".", "/"), ARROWS.get(part, "")).split()
        for target in sorted(targets):
            other = target.split(".")[0]
            if other == part or part in ANYTHING and other != "tests":
                continue
            if other in ANYTHING or other not in allowed:
                wrong.append(f"{module} -> {target}")
    return wrong


def late_imports(trees, known):
    """["module: imported", ...] of imports of the modules `known` inside functions."""
    late = []
    for module, tree in trees.items():
        functions = [
            node
            for node in ast.walk(tree)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        ]
        inside = [node for function in functions for node in ast.walk(function)]
        late += [f"{module}: {name}" for node in inside for name in imported(node, known)]
    return late


@pytest.fixture(scope="module")
def trees():
    return modules(ROOT)


@pytest.fixture(scope="module")
def graph(trees):
    return imports(trees)


def test_arrows(graph):
    parts = {module.split(".")[0] for module in graph} - set(ANYTHING)
    assert parts <= set(ARROWS), "a part without arrows"
    assert wrong_arrows(graph) == []


def test_no_circles(graph):
    assert "engine.decoder" in graph["engine.rollouts"] and "grader.grade" in graph["evaluate"]
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(graph)


def test_no_late_imports(trees):
    assert late_imports(trees, trees) == []


def test_tests_do_not_import_each_other(trees):
    """What several tests share is in worlds.py, programs.py and tokenizers_like.py."""
    tests = {name: tree for name, tree in trees.items() if name.startswith("tests.")}
    known = {name.removeprefix("tests."): tree for name, tree in tests.items()}
    targets = {name: imports_of(tree, known) for name, tree in tests.items()}
    assert "worlds" in targets["tests.test_estep"]
    assert [name for name, found in targets.items() if any("test_" in x for x in found)] == []


@pytest.mark.parametrize(
    "module, source, wrong",
    [
        ("model", "from config import UserError", ["model -> config"]),
        ("engine.plan", "def f():\n    import speed.measure", ["engine.plan -> speed.measure"]),
        ("mstep", "from hindsight import propose", ["mstep -> hindsight.propose"]),
        ("hindsight.propose", "from run import Run", ["hindsight.propose -> run"]),
        ("hindsight.__main__", "from run import Run", []),
        ("grader.server", "import config", ["grader.server -> config"]),
        ("speed.rlvr", "import rlvr, train", []),
        ("train", "import json\nfrom engine.decoder import Decoder", []),
    ],
)
def test_wrong_arrows_are_seen(trees, graph, module, source, wrong):
    tree = ast.parse(source)
    assert wrong_arrows({**graph, module: imports_of(tree, trees)}) == wrong
    assert len(late_imports({module: tree}, trees)) == source.startswith("def")
