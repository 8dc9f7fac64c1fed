"""Sources to functions to snippets, prepared once, on disk; the steps are listed in __main__.py.

Several processes write parts, one file each; the parts are then joined.

Shapes: n snippets.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import signal
import sys
import threading
import tokenize
import zlib
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
from tqdm import tqdm

import config
from config import UserError, progress_bar
from corpus.decontaminate import checker
from corpus.functions import COUNTED, DROPPED, checksum, documented, units
from corpus.near import (
    LEADERS,
    PERMUTATIONS,
    SHINGLE,
    bands_of,
    minhash,
    near_duplicates,
    signatures,
)
from corpus.sources import chunks, sources
from corpus.store import Corpus
from data import snippet
from domain import base_text
from formats import huggingface, tokenizers

FORMAT = 2  # of the files and of what is dropped; a new number makes old ones useless
FATES = ("kept", *DROPPED)
DOC = np.dtype(
    [
        ("ids", "i8"),
        ("lines", "i8"),
        ("name", "i8"),
        ("n_ids", "i4"),
        ("n_lines", "i4"),
        ("n_name", "i4"),
        ("n_sep", "i4"),
        ("prompt", "i4"),
        ("source", "i2"),
        ("held", "?"),
    ]
)


# ---------------------------------------------------------------- preparation


def prepare_corpus(
    spec,
    tok,
    max_tokens,
    *,
    min_lines=2,
    unit="definitions",
    docstrings=False,
    keep_comments=False,
    near=0.8,
    column="text",
    check=None,
    cache="runs/corpora",
    progress=True,
    cores=None,
    make=True,
):
    """The Corpus of the sources in `spec` (see sources.py).

    max_tokens     longer snippets are left out (eos counts).
    min_lines      so are snippets with fewer lines that can take a thought.
    unit           see functions.functions; so for keep_comments.
    docstrings     leave out what has no docstring.
    near           least Jaccard similarity of near-duplicates; 1: only equal sets of shingles are
                   dropped; 0: none is looked for.
    column         of records, which holds the code.
    check          the decontaminate.Checker that says which functions to drop; None: none.
    cache          the folder of prepared corpora.
    cores          processes; None: as many as there are cores.
    make           False: None where it is not prepared yet.

    The same arguments and sources give the same files, however often the work was interrupted.
    Raises UserError if a source does not exist, or nothing is left.
    """
    origins = sources(spec, column)
    settings = dict(
        max_tokens=max_tokens,
        min_lines=min_lines,
        unit=unit,
        docstrings=docstrings,
        keep_comments=keep_comments,
        near=near,
        column=column,
    )
    job = Preparation(origins, tok, settings, check, progress, cores or config.cores())
    if not make and not pathlib.Path(cache, fingerprint(job)).exists():
        return None
    warn_of_sources(origins)
    try:
        corpus, counts = open_or_make(job, cache)
    except OSError as e:
        raise UserError(
            f"--cache {cache}: cannot be used ({e.strerror or e}); give another folder"
        ) from None
    if corpus is not None:
        return corpus
    account = ", ".join(f"{key} {n}" for key, n in counts.items() if n) or "nothing in it"
    raise UserError(
        f"corpus {spec!r}: no function of {min_lines} or more lines and at most {max_tokens} "
        f"tokens ({account}); give other code, or change --max-tokens or --min-lines"
    )


@dataclasses.dataclass
class Preparation:
    """A corpus to prepare."""

    origins: list  # of sources.Source
    tok: tokenizers.Tokenizer
    settings: dict  # those that decide the content
    check: object  # a Checker or None
    progress: bool
    cores: int


def warn_of_sources(origins):
    """Print a line for each source that is empty or whose licence is not permissive."""
    for origin in origins:
        if not origin.about.get("permissive", True):
            tqdm.write(
                f"corpus {origin.spec}: its licence is {origin.about['licence']!r}, which is not "
                "one of the permissive ones (MIT, BSD, Apache, ISC, zlib, PSF, Unlicense, CC0, "
                "Boost, HPND); what it allows is yours to check",
                file=sys.stderr,
            )
        if not origin.files:
            tqdm.write(f"corpus {origin.spec}: nothing in it", file=sys.stderr)


def open_or_make(job, cache):
    """The Corpus of a job from the folder `cache`, where it is made if absent -> (Corpus, None).

    If nothing is left of it: (None, counts), and the cache is as it was. Raises OSError.
    """
    key = fingerprint(job)
    folder = pathlib.Path(cache, key)
    parts = pathlib.Path(cache, f"{key}.unfinished")
    lock = pathlib.Path(cache, f"{key}.lock")
    existed = os.path.exists(cache)
    counts = None
    os.makedirs(cache, exist_ok=True)
    with exclusive(lock):
        if not folder.exists():
            os.makedirs(parts, exist_ok=True)
            n_parts = make_parts(parts, job)
            counts = join_parts(parts, n_parts, job)
            if counts["kept"]:
                os.rename(parts / "whole", folder)
        shutil.rmtree(parts, ignore_errors=True)
    if folder.exists():
        return Corpus(folder), None
    lock.unlink()
    if not existed and not os.listdir(cache):
        os.rmdir(cache)
    return None, counts


def fingerprint(job):
    """A name for all that decides a corpus: a hash in 16 hexadecimal digits.

    The tokenizer is known by its tokens' lengths, its special ids, and its ids of a page of signs.
    """
    near = job.settings["near"]
    signature = near and [minhash().ALGORITHM_VERSION, PERMUTATIONS, SHINGLE, LEADERS]
    content = json.dumps(
        [
            FORMAT,
            sys.version_info[:2],
            job.settings,
            [(origin.spec, files_with_times(origin)) for origin in job.origins],
            tokenizers.identity(job.tok),
            job.check and problem_texts(job.check),
            signature,
        ]
    )
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def files_with_times(origin):
    """(name, size, time of the last change) of a source's files."""
    return [(name, size, path.stat().st_mtime_ns) for name, path, size in origin.files]


def problem_texts(check):
    """What a Checker checks against, as JSON values."""
    return [
        (benchmark, task.name, task.prompt, task.solution, task.entry_point)
        for benchmark, tasks in check.benchmarks.items()
        for task in tasks
    ]


@contextlib.contextmanager
def exclusive(path):
    """Hold a lock file. It is released when the process ends, however it ends."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tqdm.write("another process is preparing this corpus; waiting for it", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# ---------------------------------------------------------------- parts


def make_parts(folder, job):
    """Work on all items, a chunk a file, unless its file exists -> the number of files."""
    global JOB, FOLDER
    JOB = job  # forked processes inherit both
    FOLDER = folder
    if job.check is not None:
        job.check.ready()
    pool = open_pool(job.cores)
    bar = bytes_bar(job)
    queue = []  # of (future, bytes)
    count = 0
    try:
        for number, origin in enumerate(job.origins):
            for size, batch in chunks(origin, job.settings["column"]):
                if (folder / f"{count}.npz").exists():
                    bar.update(size)
                elif pool is None:
                    work(count, number, batch)
                    bar.update(size)
                else:
                    queue.append((pool.submit(work, count, number, batch), size))
                count += 1
                collect(queue, 2 * job.cores, bar)
        collect(queue, 0, bar)
    except BrokenProcessPool:
        raise UserError(
            f"corpus {job.origins[number].spec!r}: a process that worked on it died (killed for "
            "memory?); the same command goes on"
        ) from None
    finally:
        bar.close()
        if pool is not None:
            pool.shutdown(cancel_futures=True)
    return count


def bytes_bar(job):
    """A bar over the bytes of all sources."""
    total = sum(size for origin in job.origins for _, _, size in origin.files)
    return progress_bar(
        total=total,
        desc="preparing",
        unit="B",
        unit_scale=True,
        disable=not job.progress,
        delay=2,
        leave=False,
    )


def open_pool(cores):
    """Processes that work on parts; None for one core: the work is then done in this process."""
    if cores == 1:
        return None
    fork = multiprocessing.get_context("fork")
    return ProcessPoolExecutor(cores, fork, initializer=follow_parent)


def collect(queue, limit, bar):
    """Wait for the oldest jobs of a queue until at most `limit` are left."""
    while len(queue) > limit:
        future, size = queue.pop(0)
        future.result()
        bar.update(size)


def follow_parent():
    """In a process of the pool: leave an interruption to the parent, and end when it ends."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()


def work(number, source, items):
    """Items -> the file of a part: every unit's checksum and fate, and the snippets kept."""
    part = Part(source)
    settings = JOB.settings
    for item in items:
        found, raw = units(item, part.counts, settings["unit"], settings["keep_comments"])
        part.digest.update(hashlib.sha256(raw).digest())
        for name, text, prompt in found:
            if text is None:
                part.counts["rewritten"] += 1
            elif (key := checksum(text)) in part.fates:
                part.counts["duplicate"] += 1
            else:
                part.fates[key] = part.fate(name, text, prompt, JOB)
    write_part(FOLDER / f"{number}.npz", part, JOB.tok, settings["near"])


class Part:
    """A chunk of a source: its counts, and what became of each of its units."""

    def __init__(self, source):
        self.source = source  # its number
        self.counts = dict.fromkeys(COUNTED, 0)
        self.digest = hashlib.sha256()  # of the items' bytes
        self.fates = {}  # checksum of a text -> one of FATES, in order
        self.docs = []  # (Snippet, held) of those whose fate is "kept"
        self.dropped = []  # why units are contaminated

    def fate(self, name, text, prompt, job):
        """Why a unit is dropped, or "kept"; a snippet that is kept, and a hit, are noted."""
        tok = job.tok
        settings = job.settings
        if why := contamination(text, job):
            self.dropped.append({"key": checksum(text), "name": name, "why": why, "text": text})
            return "contaminated"
        if settings["docstrings"] and not documented(text, settings["unit"]):
            return "no_docstring"
        longest = settings["max_tokens"]
        if len(text) > longest and len(tok.encode(text)) >= longest:
            return "too_long"
        try:
            snip = snippet(tok, text, prompt, name)
        except (SyntaxError, tokenize.TokenError):  # the parser takes it, the tokenizer does not
            return "no_line"
        if snip is None:
            return "no_line"
        if len(snip.ids) > longest:
            return "too_long"
        if len(snip.first) < settings["min_lines"]:
            return "too_short"
        held = zlib.crc32(text.encode()) % 10 == 0  # a text is on one side in every run
        self.docs.append((snip, held))
        return "kept"


def contamination(text, job):
    """Why a unit holds a benchmark's problem -> hits."""
    if job.check is None:
        return []
    return job.check.hits(text, job.settings["keep_comments"])


def write_part(path, part, tok, near):
    """Write a Part: tables and flat arrays, whole or not at all."""
    snippets = [snip for snip, _ in part.docs]
    names = [snip.name.encode("utf-8", "surrogateescape") for snip in snippets]
    table = np.zeros(len(snippets), DOC)
    for row, name, (snip, held) in zip(table, names, part.docs, strict=True):
        row["n_ids"] = len(snip.ids)
        row["n_lines"] = len(snip.first)
        row["n_name"] = len(name)
        row["n_sep"] = sum(map(len, snip.sep))
        row["prompt"] = snip.prompt
        row["source"] = part.source
        row["held"] = held
    seps = {}  # separator -> its number
    numbers = [seps.setdefault(tuple(sep), len(seps)) for snip in snippets for sep in snip.sep]
    meta = dict(
        source=part.source,
        counts=part.counts,
        digest=part.digest.hexdigest(),
        dropped=part.dropped,
        seps=list(seps),
    )
    with open(f"{path}.half", "wb") as f:
        np.savez(
            f,
            meta=np.frombuffer(json.dumps(meta).encode("utf-8", "surrogatepass"), np.uint8),
            keys=np.fromiter(part.fates, np.uint64, len(part.fates)),
            fates=np.array([FATES.index(fate) for fate in part.fates.values()], np.uint8),
            docs=table,
            ids=flattened((snip.ids for snip in snippets), id_type(tok)),
            first=flattened((snip.first for snip in snippets), np.uint32),
            sep=np.array(numbers, np.uint32),
            names=np.frombuffer(b"".join(names), np.uint8),
            bands=signatures([snip.ids[:-1] for snip in snippets], near, id_type(tok)),
        )
    os.replace(f"{path}.half", path)


def flattened(lists, dtype):
    """Lists of numbers, one after another, as an array."""
    return np.fromiter((number for numbers in lists for number in numbers), dtype)


def id_type(tok):
    """The type that holds the tokenizer's ids."""
    return np.dtype(np.uint16 if tok.vocab_size <= 1 << 16 else np.uint32)


# ---------------------------------------------------------------- the parts, joined


def join_parts(parts, n_parts, job):
    """Parts -> the folder parts/whole, and the counts.

    Texts that an earlier part holds are dropped here, and near-duplicates.
    """
    folder = parts / "whole"
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    near = job.settings["near"]
    writer = CorpusWriter(folder, len(job.origins), bands_of(near)[0])
    with writer:
        for n, fresh in enumerate(
            progress_bar(
                first_occurrences(parts, n_parts),
                desc="joining",
                unit="part",
                disable=not job.progress,
                delay=2,
                leave=False,
            )
        ):
            with np.load(parts / f"{n}.npz") as archive:
                writer.add({name: archive[name] for name in archive.files}, fresh)
    table = writer.table()
    duplicate = near_duplicates(folder, table, id_type(job.tok), near, job.progress)
    count_kept(writer.counts, table, duplicate)
    table = table[~duplicate]
    np.save(folder / "docs.npy", table)
    total = {key: sum(counts[key] for counts in writer.counts) for key in COUNTED}
    report = {"benchmarks": {}}
    if job.check is not None:
        n_units = total["found"] - total["rewritten"] - total["duplicate"]
        report = job.check.account(n_units, writer.dropped)
    (folder / "contamination.json").write_text(json.dumps(report, indent=1))
    manifest = make_manifest(job, writer, table, total)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    return total


def first_occurrences(parts, n_parts):
    """For each part a bool array: which of its units have a text that no unit before them has."""
    keys = [read_array(parts / f"{n}.npz", "keys") for n in range(n_parts)]
    ends = np.cumsum([len(k) for k in keys])
    fresh = np.zeros(ends[-1] if n_parts else 0, bool)
    _, first = np.unique(np.concatenate([np.zeros(0, np.uint64), *keys]), return_index=True)
    fresh[first] = True
    return np.split(fresh, ends[:-1]) if n_parts else []


def read_array(path, name):
    """One array of an .npz file."""
    with np.load(path) as archive:
        return archive[name]


class CorpusWriter:
    """The files of a corpus while its parts are joined."""

    def __init__(self, folder, n_sources, n_bands):
        self.folder = folder
        self.counts = [dict.fromkeys(COUNTED, 0) for _ in range(n_sources)]
        self.digests = [hashlib.sha256() for _ in range(n_sources)]
        self.dropped = []  # why units are contaminated
        self.seps = {}  # separator -> its number
        self.tables = []  # of DOC
        self.ends = dict.fromkeys(("ids", "lines", "name"), 0)
        self.names = ("ids", "first", "sep", "names")
        self.n_bands = n_bands

    def __enter__(self):
        self.files = contextlib.ExitStack()
        self.out = {name: self.create(self.folder / f"{name}.bin") for name in self.names}
        bands = [self.folder.parent / f"band{b}.bin" for b in range(self.n_bands)]
        self.bands = [self.create(path) for path in bands]
        return self

    def create(self, path):
        return self.files.enter_context(open(path, "wb"))

    def __exit__(self, *error):
        self.files.close()

    def add(self, part, fresh):
        """Append a part, a dict of `write_part`'s arrays. fresh: which texts are new (bool)."""
        meta = json.loads(part["meta"].tobytes().decode("utf-8", "surrogatepass"))
        self.digests[meta["source"]].update(bytes.fromhex(meta["digest"]))
        self.count(part, meta, fresh)
        table = part["docs"]
        kept = fresh[part["fates"] == 0]  # (docs of the part,)
        numbers = [self.seps.setdefault(tuple(sep), len(self.seps)) for sep in meta["seps"]]
        renumbered = np.array(numbers + [0], np.uint32)[part["sep"]]
        for name, flat, lengths in (
            ("ids", part["ids"], table["n_ids"]),
            ("first", part["first"], table["n_lines"]),
            ("sep", renumbered, table["n_lines"]),
            ("names", part["names"], table["n_name"]),
        ):
            flat[np.repeat(kept, lengths)].tofile(self.out[name])
        for b, file in enumerate(self.bands):
            part["bands"][kept, b].tofile(file)
        self.place(table[kept])

    def count(self, part, meta, fresh):
        """Add a part's counts, and the reasons of what it dropped."""
        counts = self.counts[meta["source"]]
        for key, n in meta["counts"].items():
            counts[key] += n
        counts["duplicate"] += int((~fresh).sum())
        fates = np.bincount(part["fates"][fresh], minlength=len(FATES))
        for fate, n in zip(DROPPED, fates[1:].tolist(), strict=True):
            counts[fate] += n
        keys = set(part["keys"][fresh].tolist())
        for hit in meta["dropped"]:
            if hit.pop("key") in keys:
                self.dropped.append(hit)

    def place(self, table):
        """Enter where the ids, lines and names of these snippets begin in the files."""
        for key, size in (("ids", "n_ids"), ("lines", "n_lines"), ("name", "n_name")):
            table[key] = self.ends[key] + np.cumsum(table[size]) - table[size]
            self.ends[key] += int(table[size].sum())
        self.tables.append(table)

    def table(self):
        """The table of all snippets: (n,) of DOC. The parts' tables are released."""
        table = np.concatenate([np.zeros(0, DOC), *self.tables])
        self.tables = []
        return table


def count_kept(counts, table, duplicate):
    """Enter near-duplicates, snippets and tokens kept into the counts of each source."""
    for n, of_source in enumerate(counts):
        member = table["source"] == n
        kept = member & ~duplicate
        of_source["near_duplicate"] = int((member & duplicate).sum())
        of_source["kept"] = int(kept.sum())
        of_source["tokens"] = int(table["n_ids"][kept].sum())


def make_manifest(job, writer, table, total):
    """The content of manifest.json."""
    rows = []
    for origin, digest, counts in zip(job.origins, writer.digests, writer.counts, strict=True):
        rows.append(
            {
                "data": origin.spec,
                **origin.about,
                "files": len(origin.files),
                "sha256": digest.hexdigest(),
                "counts": counts,
            }
        )
    files = [path for path in sorted(writer.folder.iterdir()) if path.name != "manifest.json"]
    return {
        "settings": job.settings,
        "sources": rows,
        "counts": total,
        "held_out": int(table["held"].sum()),
        "dtype": id_type(job.tok).str,
        "seps": list(writer.seps),
        "sha256": {path.name: file_digest(path) for path in files},
    }


def file_digest(path):
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


# ---------------------------------------------------------------- by the settings


def arguments_of(cfg, tok):
    """The keyword arguments of `prepare_corpus` for the settings."""
    return dict(
        spec=cfg.data,
        tok=tok,
        max_tokens=cfg.max_tokens,
        min_lines=cfg.min_lines,
        unit=cfg.unit,
        docstrings=cfg.docstrings,
        keep_comments=cfg.keep_comments,
        near=cfg.near_duplicate,
        column=cfg.text_column,
        check=checker(cfg.data_dir) if cfg.decontaminate else None,
        cache=cfg.cache,
    )


def tokenizer_of(cfg):
    """The Tokenizer of the settings: the model's own, or the built-in domain's.

    The latter is trained if the run's folder holds none.
    """
    if cfg.preset != "tiny":
        return huggingface.open_tokenizer(huggingface.find(cfg))
    path = os.path.join(cfg.out, "tokenizer.txt")
    if os.path.exists(path):
        return tokenizers.load_tokenizer(path)
    rng = random.Random("tokenizer")
    lengths = config.stages_of(cfg.base_stages)
    texts = ["".join(base_text(rng, lengths=lengths)) for _ in range(2000)]
    return tokenizers.train_tokenizer(texts, cfg.vocab_size)
