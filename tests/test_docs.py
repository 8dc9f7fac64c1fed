"""README.md, CONTRIBUTING.md and docs/ against the code.

python tests/test_docs.py      writes docs/settings.md again from config.py
"""

import ast
import contextlib
import dataclasses
import importlib
import io
import json
import pathlib
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent  # the project's folder
sys.path.insert(0, str(ROOT))

import config  # noqa: E402

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
COMMAND = re.compile(
    r"(?:torchrun (?:--\S+ )*|python )"
    r"(?:-m (?P<module>[\w.]+)|(?P<script>[\w/]+)\.py)(?P<rest>.*)"
)
NOT_OURS = {"pytest", "tests.test_docs"}  # without a main of their own
OPTIONAL = "transformers,accelerate,gguf,safetensors,huggingface_hub,rensa,pyarrow,matplotlib"
OPTIONAL += ",tensorboard,wandb,trackio,playwright"


def read(path):
    return path.read_text(encoding="utf-8")


# ---------------------------------------------------------------- commands


def code_of(text):
    """The indented lines, the fenced blocks that are not Python, and what stands in backticks."""
    fenced = re.findall(r"^```(?!python)\w*\n(.*?)^```", text, re.M | re.S)
    indented = re.findall(r"^    .*$", text, re.M)
    inline = re.findall(r"(?<!`)`(python [^`\n]+)`(?!`)", text)
    return [*"\n".join(fenced).split("\n"), *indented, *inline]


def commands(text):
    """[(module, arguments)] of a page, shell variables replaced."""
    found = []
    variables = {
        name: " ".join(value.split()) for name, value in re.findall(r'\b([A-Z])="([^"]*)"', text)
    }
    for line in code_of(text):
        line = re.sub(r"\$([A-Z])\b", lambda m: variables.get(m[1], ""), line.split(" #")[0])
        line = line.replace("$s", "0").replace("$i", "base")
        line = re.sub(r"(--\S+) \.\.\.", r"\1 NAMES", line).replace(" ...", "")
        for part in re.split(r"&&|;", line):
            if match := COMMAND.search(part):
                module = match["module"] or match["script"].replace("/", ".")
                found.append((module, shlex.split(match["rest"])))
    return found


ALL = sorted({(page.name, m, " ".join(a)) for page in PAGES for m, a in commands(read(page))})


def called(module, argv):
    """What a command prints with --help behind its arguments; they are parsed before that."""
    name = module if (ROOT / f"{module.replace('.', '/')}.py").exists() else f"{module}.__main__"
    main = importlib.import_module(name).main
    out = io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(SystemExit) as stop,
    ):
        patch.setattr(sys, "argv", [module, *argv, "--help"])
        main(*[sys.argv[1:]][: main.__code__.co_argcount])
    assert not stop.value.code, out.getvalue()
    return out.getvalue()


def settings_among(argv):
    """A command's settings, as config.make takes them; capitals stand for any value."""
    types = {f"--{f.name.replace('_', '-')}": f for f in dataclasses.fields(config.Config)}
    pairs = [(types[a], b) for a, b in zip(argv, argv[1:], strict=False) if a in types]
    return {
        f.name: config.convert(f.name, f.type, value)
        for f, value in pairs
        if not re.fullmatch("[A-Z]+", value) and not value.startswith("--")
    }


@pytest.mark.parametrize("page, module, line", ALL)
def test_commands_parse(page, module, line):
    if module in NOT_OURS:
        return
    argv = shlex.split(line)
    known = called(module, argv)
    options = [a.split("=")[0] for a in argv if a.startswith("--")]
    assert [a for a in options if not re.search(rf"{a}(?![\w-])", known)] == []
    if module in ("train", "hindsight", "corpus"):  # in evaluate.py suites have a wider meaning
        config.make(**settings_among(argv))


def test_a_wrong_command_is_seen():
    text = "    python train.py --stage em --no-such 1; python -m corpus --data stdlib   # a note\n"
    assert commands(text) == [
        ("train", ["--stage", "em", "--no-such", "1"]),
        ("corpus", ["--data", "stdlib"]),
    ]
    assert "--no-such" not in called("train", ["--stage", "em"])
    with pytest.raises(config.UserError, match="invalid choice"):
        called("train", ["--stage", "emm"])


# ---------------------------------------------------------------- pages


def anchors(path):
    """The anchors of a page's headings.   Example: "## How it works" -> "how-it-works" """
    heads = re.findall(r"^#+ (.*)$", read(path), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in heads}


def defined(path):
    """Names of the functions, classes and constants of a file."""
    tree = ast.parse(read(path))
    names = {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    return names | {t.id for n in tree.body if isinstance(n, ast.Assign) for t in names_in(n)}


def names_in(node):
    return [n for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)]


def broken_links(page):
    broken = []
    for text, target in re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", read(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        path = page.parent / path if path else page
        if not path.exists():
            broken.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(path):
            broken.append(f"{target}: no such heading")
        elif path.suffix == ".py" and (name := re.fullmatch(r"`(\w+)`", text)):
            if name[1] not in defined(path):
                broken.append(f"{target}: {name[1]} is not defined there")
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links(page):
    assert broken_links(page) == []


def test_broken_links_are_seen(tmp_path):
    page = tmp_path / "page.md"
    (tmp_path / "code.py").write_text("def known():\n    pass\n")
    page.write_text("# A b\n[x](nowhere.md) [`known`](code.py) [`gone`](code.py) [y](#a-b) [z](#c)")
    assert [line.split(":")[0] for line in broken_links(page)] == ["nowhere.md", "code.py", "#c"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_named_in_backticks_are_there(page):
    """Paths of .py files; those that are gone are named in the log only."""
    named = re.findall(r"`((?:[\w]+/)*\w+\.py)`", read(page))
    absent = {name for name in named if not list(ROOT.glob(f"**/{name}"))}
    assert page.name == "log.md" or not absent


def test_readme_and_contributing_are_short():
    assert len(read(ROOT / "README.md").splitlines()) <= 250
    assert len(read(ROOT / "CONTRIBUTING.md").splitlines()) <= 60


def test_a_program_of_the_readme_is_in_it():
    readme = read(ROOT / "README.md")
    names = [n for page in PAGES for n in re.findall(r"program `(\w+)` in \[README\]", read(page))]
    assert names and all(f"def {name}(" in readme for name in names)


def test_every_page_is_reached_from_the_readme():
    """In one step or two."""
    readme = read(ROOT / "README.md")
    pages = {p.name for p in ROOT.glob("docs/*.md")}
    assert {name for name in pages if f"docs/{name}" not in readme} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_prose_is_narrow(page):
    """100 columns, but for tables, code and quoted programs."""
    prose = re.sub(r"^```.*?^```", "", read(page), flags=re.M | re.S)
    lines = [line for line in prose.split("\n") if not line.startswith(("|", "    ", "`S=", "!["))]
    if page.parent.name != "figures":
        assert [line for line in lines if len(line) > 100] == []


# ---------------------------------------------------------------- quoted code


def quotes(text):
    """[(file, quoted lines)] of the blocks that name their file.   Example: ```python elbo.py"""
    return re.findall(r"^```python (\S+)\n(.*?)^```", text, re.M | re.S)


def stands_in(quoted, source):
    """Do the quoted lines stand in the source, one after the other, at one indentation?

    A line of the quote that is "..." leaves lines of the source out.
    """
    lines = [line.rstrip() for line in source.split("\n")]
    pieces = [p.strip("\n").split("\n") for p in re.split(r"^ *\.\.\.$", quoted, flags=re.M)]
    begin = 0
    for piece in pieces:
        begin = position(piece, lines, begin)
        if begin is None:
            return False
        begin += len(piece)
    return True


def position(piece, lines, begin):
    for i in range(begin, len(lines) - len(piece) + 1):
        indent = len(lines[i]) - len(lines[i].lstrip()) - (len(piece[0]) - len(piece[0].lstrip()))
        if indent >= 0 and all(
            lines[i + k] == (" " * indent + line if line.strip() else "")
            for k, line in enumerate(piece)
        ):
            return i
    return None


@pytest.mark.parametrize(
    "page, file, quoted", [(p.name, f, q) for p in PAGES for f, q in quotes(read(p))]
)
def test_quoted_code_is_the_code(page, file, quoted):
    assert stands_in(quoted, read(ROOT / file)), f"{page} quotes {file} as it is no more"


def test_quotes_that_differ_are_seen():
    source = "def f(x):\n    y = x\n\n    z = y\n    return z\n"
    assert stands_in("y = x\n\nz = y\n", source)
    assert stands_in("def f(x):\n    ...\n    return z\n", source)
    assert not stands_in("y = x\nz = y\n", source)
    assert not stands_in("return z\n...\ny = x\n", source)
    assert not stands_in("y = x \n", source.replace("y = x", "y = w"))


# ---------------------------------------------------------------- settings


def cell(value):
    return f"`{value!r}`".replace("|", "\\|")


def settings_page():
    """docs/settings.md: every setting with its default and text, then what each preset changes."""
    lines = [
        "# Settings",
        "",
        "Any setting can be set on the command line, `--key value`; dashes and underscores are",
        "alike. The order is: defaults, the preset, the command line. `python train.py --help`",
        "prints the same, presets apart. This page is written by `python tests/test_docs.py`.",
    ]
    for field in dataclasses.fields(config.Config):
        if field.name in config.SECTIONS:
            title = config.SECTIONS[field.name]
            lines += ["", f"## {title[0].upper()}{title[1:]}", ""]
            lines += ["| setting | default | meaning |", "|---|---|---|"]
        text = field.metadata["help"].replace("%%", "%").replace("|", "\\|")
        lines.append(f"| `--{field.name.replace('_', '-')}` | {cell(field.default)} | {text} |")
    lines += ["", "## Presets", "", "What each changes of the defaults."]
    for name, changes in config.PRESETS.items():
        settings = ", ".join(f"`{key}={value!r}`" for key, value in changes.items())
        lines += ["", *textwrap.wrap(f"**{name}**: {settings or 'nothing'}", 100)]
    return "\n".join(lines) + "\n"


def test_settings_page():
    assert read(ROOT / "docs/settings.md") == settings_page(), "run python tests/test_docs.py"


# ---------------------------------------------------------------- the core alone

BLOCKED = """
import sys
blocked = sys.argv.pop(1).split(",")
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
from config import UserError
"""


def blocked(code, *argv):
    """Run code where the optional packages cannot be imported -> the finished process."""
    return subprocess.run(
        [sys.executable, "-c", BLOCKED + code, OPTIONAL, *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def modules():
    """The names of all modules but grader.boot, a script that its parent starts."""
    paths = [*ROOT.glob("[a-z]*.py"), *ROOT.glob("[a-z]*/*.py")]
    names = [p.relative_to(ROOT).with_suffix("") for p in paths]
    dotted = [".".join(n.parts) for n in names if n.parts[0] != "tests" and n.name != "__init__"]
    return [m for m in dotted if m != "grader.boot"]


WITHOUT = {
    "rensa": ("corpora", "from corpus.near import minhash; minhash()"),
    "pyarrow": ("corpora", "from corpus.sources import open_parquet; open_parquet('x.parquet')"),
    "gguf": ("hf", "from formats.gguf import open_gguf; open_gguf('x.gguf')"),
    "safetensors": ("hf", "from formats.huggingface import weight_files; weight_files('x')"),
    "tensorboard": (
        "track",
        "from formats.track import check_tracker; check_tracker('tensorboard')",
    ),
    "wandb": ("track", "from formats.track import check_tracker; check_tracker('wandb')"),
    "trackio": ("track", "from formats.track import check_tracker; check_tracker('trackio')"),
    "matplotlib": ("report", "from report.figures import new_figure; new_figure(4, 3)"),
    "playwright": ("report", "from report.picture import picture_of; picture_of('x.html')"),
}


TINY = (
    "--stage em --n-layer 1 --n-head 2 --d-model 16 --d-ff 16 --vocab-size 300 --pretrain-steps 2 "
    "--rows 2 --n-expert 6 --n-heldout 2 --mstep-steps 2 --warmup 1 --iters 1 --infuse 4 "
    "--estep-steps 1 --snippets 2 --group 2 --eval-tasks 1 --samples 1 --max-new 4 "
    "--elbo-samples 2 --threads 1 --base-check false --report false"
).split()

REPORT = """
import importlib, json
failures, mistakes = {}, {}
modules, lines = json.loads(sys.argv.pop(1)), json.loads(sys.argv.pop(1))
for module in modules:
    try:
        importlib.import_module(module)
    except Exception as e:
        failures[module] = repr(e)
for package, line in lines.items():
    try:
        exec(line, {})
    except UserError as e:
        mistakes[package] = str(e)
print(json.dumps([failures, mistakes]), flush=True)
import train
train.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process with the core only -> (failed imports, mistakes, EM's log, its folder).

    It imports every module, then asks for each package, then trains.
    """
    out = tmp_path_factory.mktemp("core") / "run"
    lines = {package: line for package, (_, line) in WITHOUT.items()}
    done = blocked(REPORT, json.dumps(modules()), json.dumps(lines), *TINY, "--out", str(out))
    assert done.returncode == 0, done.stderr
    report, _, log = done.stdout.partition("\n")
    return *json.loads(report), log + done.stderr, out


def test_every_module_imports_with_the_core_only(alone):
    assert {"train", "formats.gguf", "report.figures", "corpus.near"} <= set(modules())
    assert alone[0] == {}


@pytest.mark.parametrize("package", WITHOUT)
def test_a_missing_package_is_told_with_its_extra(package, alone):
    """One line: the package, its extra (which pyproject.toml has), the command that installs it."""
    extra, text = WITHOUT[package][0], alone[1][package]
    assert f"package {package} (extra {extra})" in text and "\n" not in text
    extras = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]["optional-dependencies"]
    assert any(line.startswith(package) for line in extras[extra])
    pinned = re.search(rf"^{package}==[\d.]+", read(ROOT / "requirements-dev.txt"), re.M)
    assert pinned and f"pip install {pinned[0]}" in text


def test_em_runs_with_the_core_only(alone):
    """train.py --stage em, smallest size, from nothing to the table."""
    _, _, log, out = alone
    results = json.loads((out / "results.json").read_text())
    assert list(results) == ["base", "ntp", "ra3"]
    assert "\r" not in log and "\x1b" not in log and len(log.splitlines()) < 100  # no bars in it


def test_requirements_are_the_core():
    names = re.findall(r"^([\w-]+)==", read(ROOT / "requirements.txt"), re.M)
    assert names == ["torch", "numpy", "tiktoken", "tqdm"]


if __name__ == "__main__":
    (ROOT / "docs/settings.md").write_text(settings_page(), encoding="utf-8")
