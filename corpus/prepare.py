"""Sources to functions to snippets, prepared once, on disk: several processes, parts, the parts joined. __main__.py says what is done and in which order."""

import contextlib
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
from config import UserError
from corpus.decontaminate import checker
from corpus.functions import COUNTED, DROPPED, checksum, documented, functions, units
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

FORMAT = 1  # of the files; a new number makes old ones useless
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


def prepare(
    spec,
    tok,
    max_tokens,
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
):
    """The Corpus of the sources in `spec` (see sources.py). Same arguments, same sources: same files, however often it was interrupted.

    max_tokens  longer snippets are left out (eos counts); min_lines: so are those with fewer lines that can take a thought; docstrings: so are those
                without a docstring.
    near        least Jaccard similarity of near-duplicates; 1: only equal sets of shingles go; 0: none is looked for.
    check       says of a function's (name, text) whether it is to be dropped (`decontaminate.Checker`); None: all stay.
    cache       the folder of prepared corpora; cores: processes (default: as many as there are cores).
    Raises UserError if a source is not there, or nothing is left.
    """
    found = sources(spec, column)
    for one in found:
        if not one.about.get("permissive", True):
            tqdm.write(
                f"corpus {one.spec}: its licence is {one.about['licence']!r}, which is not one of the permissive ones (MIT, BSD, Apache, ISC, "
                "zlib, PSF, Unlicense, CC0, Boost, HPND); what it allows is yours to check",
                file=sys.stderr,
            )
        if not one.files:
            tqdm.write(f"corpus {one.spec}: nothing in it", file=sys.stderr)
    settings = dict(
        max_tokens=max_tokens,
        min_lines=min_lines,
        unit=unit,
        docstrings=docstrings,
        keep_comments=keep_comments,
        near=near,
        column=column,
    )
    key = fingerprint(found, settings, tok, check)
    folder, parts, lock = (
        pathlib.Path(cache, key + ending) for ending in ("", ".unfinished", ".lock")
    )
    there = os.path.exists(cache)
    try:
        os.makedirs(cache, exist_ok=True)
        with alone(lock):
            if not folder.exists():
                os.makedirs(parts, exist_ok=True)
                count = make_parts(parts, found, tok, settings, check, progress, cores)
                counts = join(parts, count, found, settings, tok, check, progress)
                if counts["kept"]:
                    os.rename(parts / "whole", folder)
            shutil.rmtree(parts, ignore_errors=True)
        if folder.exists():
            return Corpus(folder)
        lock.unlink()  # a mistake leaves nothing behind
        if not there and not os.listdir(cache):
            os.rmdir(cache)
    except OSError as e:
        raise UserError(
            f"--cache {cache}: cannot be used ({e.strerror or e}); give another folder"
        ) from None
    said = ", ".join(f"{k} {n}" for k, n in counts.items() if n)
    raise UserError(
        f"corpus {spec!r}: no function of {min_lines} or more lines and at most {max_tokens} tokens ({said or 'nothing in it'}); "
        "give other code, or change --max-tokens or --min-lines"
    )


def fingerprint(found, settings, tok, check):
    """A name for all that decides a corpus. The tokenizer is known by its tokens' lengths, its special ids, and how it cuts a page of signs."""
    signs = (
        "".join(map(chr, range(9, 1000)))
        + "def f(x):\n    return  x + 1234\n\n\tif y: don't\r\n"
        + " " * 40
    )
    of_tok = [
        tok.eos,
        tok.thought_ids,
        tok.stop_ids,
        tok.encode(signs),
        hashlib.sha256(np.asarray(tok.nbytes, np.int64).tobytes()).hexdigest(),
    ]
    files = [
        (one.spec, [(name, size, path.stat().st_mtime_ns) for name, path, size in one.files])
        for one in found
    ]
    problems = check and [
        (b, t.name, t.prompt, t.solution, t.entry_point)
        for b, some in check.found.items()
        for t in some
    ]
    what = json.dumps(
        [
            FORMAT,
            sys.version_info[:2],
            settings,
            files,
            of_tok,
            problems,
            settings["near"] and [minhash().ALGORITHM_VERSION, PERMUTATIONS, SHINGLE, LEADERS],
        ]
    )
    return hashlib.sha256(what.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@contextlib.contextmanager
def alone(path):
    """Hold a lock that others of the machine respect, and that the end of the process, however it ends, gives back."""
    with open(path, "w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tqdm.write("another process is preparing this corpus; waiting for it", file=sys.stderr)
            fcntl.flock(f, fcntl.LOCK_EX)
        yield


def make_parts(folder, found, tok, settings, check, progress, cores):
    """Work on all items, a chunk a file, unless its file is there -> the number of files."""
    global HERE
    HERE = dict(
        folder=folder, tok=tok, settings=settings, check=check
    )  # forked processes find it there, without its being sent
    if check is not None:
        check.ready()
    cores = cores or config.cores()
    pool = (
        ProcessPoolExecutor(cores, multiprocessing.get_context("fork"), initializer=obey)
        if cores > 1
        else None
    )
    waiting, count = [], 0
    bar = tqdm(
        total=sum(size for one in found for _, _, size in one.files),
        desc="preparing",
        unit="B",
        unit_scale=True,
        disable=not progress,
        delay=2,
        leave=False,
    )
    try:
        for number, one in enumerate(found):
            for size, some in chunks(one, settings["column"]):
                if not (folder / f"{count}.npz").exists():
                    waiting.append(
                        (
                            pool.submit(work, count, number, some)
                            if pool
                            else work(count, number, some),
                            size,
                        )
                    )
                else:
                    bar.update(size)
                count += 1
                while len(waiting) > 2 * cores or waiting and not pool:
                    finish(waiting.pop(0), bar)
        while waiting:
            finish(waiting.pop(0), bar)
    except BrokenProcessPool:
        raise UserError(
            f"corpus {found[number].spec!r}: a process that worked on it died (killed for memory?); the same command goes on"
        ) from None
    finally:
        bar.close()
        if pool:
            pool.shutdown(cancel_futures=True)
    return count


def finish(job, bar):
    if job[0]:
        job[0].result()
    bar.update(job[1])


def obey():
    """In a process of the pool: leave an interruption to the parent, and end when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(
        target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True
    ).start()


def work(count, source, items):
    """Items -> the file of a part: every unit's checksum and fate, and the snippets that are left so far."""
    tok, check, settings = HERE["tok"], HERE["check"], HERE["settings"]
    counts, digest, seps, fates, docs, dropped = (
        dict.fromkeys(COUNTED, 0),
        hashlib.sha256(),
        {},
        {},
        [],
        [],
    )

    def fate(name, text, prompt):
        """Why a unit is dropped, or "kept"."""
        inside = (
            []
            if check is None or settings["unit"] != "files"
            else [f for f in functions(text, keep_comments=settings["keep_comments"]) if f[1]]
        )
        for part, code, _ in (
            [(name, text, prompt), *inside] if check is not None else ()
        ):  # a file may hold a solution by its name
            if why := check.hits(part, code, settings["keep_comments"]):
                dropped.append({"key": checksum(text), "name": name, "why": why, "text": text})
                return "contaminated"
        if settings["docstrings"] and not documented(text, settings["unit"]):
            return "no_docstring"
        if len(text) > settings["max_tokens"] and len(tok.encode(text)) >= settings["max_tokens"]:
            return "too_long"
        try:
            snip = snippet(tok, text, prompt, name)
        except (
            SyntaxError,
            tokenize.TokenError,
        ):  # what the parser takes and the tokenizer does not
            snip = None
        if (
            snip is None
            or len(snip.ids) > settings["max_tokens"]
            or len(snip.first) < settings["min_lines"]
        ):
            return (
                "no_line"
                if snip is None
                else "too_long"
                if len(snip.ids) > settings["max_tokens"]
                else "too_short"
            )
        docs.append(
            (snip, zlib.crc32(text.encode()) % 10 == 0)
        )  # by checksum: a text is on one side in every run, whatever the tokenizer
        return "kept"

    for item in items:
        found, raw = units(item, counts, settings["unit"], settings["keep_comments"])
        digest.update(hashlib.sha256(raw).digest())
        for name, text, prompt in found:
            if text is None:
                counts["rewritten"] += 1
            elif (key := checksum(text)) in fates:
                counts["duplicate"] += 1
            else:
                fates[key] = fate(name, text, prompt)
    write_part(
        HERE["folder"] / f"{count}.npz",
        source,
        counts,
        digest.hexdigest(),
        fates,
        docs,
        dropped,
        tok,
        settings["near"],
        seps,
    )


def write_part(path, source, counts, digest, fates, docs, dropped, tok, near, seps):
    """fates: {checksum: fate} in order; docs: (Snippet, held) of those whose fate is "kept"."""
    names = [s.name.encode("utf-8", "surrogateescape") for s, _ in docs]
    table = np.zeros(len(docs), DOC)
    for row, name, (s, held) in zip(table, names, docs):
        row["n_ids"], row["n_lines"], row["n_name"], row["n_sep"] = (
            len(s.ids),
            len(s.first),
            len(name),
            sum(map(len, s.sep)),
        )
        row["prompt"], row["source"], row["held"] = s.prompt, source, held
    flat = lambda parts, dtype: np.fromiter((x for part in parts for x in part), dtype)  # noqa: E731
    sep = flat(
        ([seps.setdefault(tuple(sep), len(seps)) for sep in s.sep] for s, _ in docs), np.uint32
    )
    meta = dict(source=source, counts=counts, digest=digest, dropped=dropped, seps=list(seps))
    with open(f"{path}.half", "wb") as f:
        np.savez(
            f,
            meta=np.frombuffer(json.dumps(meta).encode("utf-8", "surrogatepass"), np.uint8),
            keys=np.fromiter(fates, np.uint64, len(fates)),
            fates=np.array([FATES.index(x) for x in fates.values()], np.uint8),
            docs=table,
            ids=flat((s.ids for s, _ in docs), id_type(tok)),
            first=flat((s.first for s, _ in docs), np.uint32),
            sep=sep,
            names=np.frombuffer(b"".join(names), np.uint8),
            bands=signatures([s.ids[:-1] for s, _ in docs], near, id_type(tok)),
        )
    os.replace(f"{path}.half", path)


FATES = ("kept", *DROPPED)


def id_type(tok):
    return np.dtype(np.uint16 if tok.vocab_size <= 1 << 16 else np.uint32)


# ---------------------------------------------------------------- the parts, joined


def join(parts, count, found, settings, tok, check, progress):
    """Parts -> the folder parts/whole, and the counts. Texts that an earlier part holds are dropped here, and near-duplicates."""
    folder, dtype = parts / "whole", id_type(tok)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    counts = [dict.fromkeys(COUNTED, 0) for _ in found]
    digests, dropped, seps, tables = [hashlib.sha256() for _ in found], [], {}, []
    keys = [part(parts, n, "keys") for n in range(count)]
    ends = np.cumsum([0] + [len(k) for k in keys])
    fresh = np.zeros(ends[-1], bool)  # is it the first unit with this text?
    fresh[np.unique(np.concatenate([np.zeros(0, np.uint64), *keys]), return_index=True)[1]] = True
    del keys
    at = dict.fromkeys(("ids", "lines", "name"), 0)
    with contextlib.ExitStack() as files:
        out = {
            name: files.enter_context(open(folder / f"{name}.bin", "wb"))
            for name in ("ids", "first", "sep", "names")
        }
        bands = [
            files.enter_context(open(parts / f"band{b}.bin", "wb"))
            for b in range(bands_of(settings["near"])[0])
        ]
        for n in tqdm(
            range(count), desc="joining", unit="part", disable=not progress, delay=2, leave=False
        ):
            with np.load(parts / f"{n}.npz") as z:
                some = {name: z[name] for name in z.files}
            meta, new, kept = (
                json.loads(some["meta"].tobytes().decode("utf-8", "surrogatepass")),
                fresh[ends[n] : ends[n + 1]],
                some["fates"] == 0,
            )
            of = counts[meta["source"]]
            for key in meta["counts"]:
                of[key] += meta["counts"][key]
            of["duplicate"] += int((~new).sum())
            for fate in (
                np.flatnonzero(np.bincount(some["fates"][new], minlength=len(FATES))[1:]) + 1
            ):
                of[FATES[fate]] += int((some["fates"][new] == fate).sum())
            known = set(some["keys"][new].tolist())
            dropped += [
                {k: v for k, v in d.items() if k != "key"}
                for d in meta["dropped"]
                if d["key"] in known
            ]
            digests[meta["source"]].update(bytes.fromhex(meta["digest"]))
            table, stay = some["docs"], new[kept]
            own = np.array(
                [seps.setdefault(tuple(s), len(seps)) for s in meta["seps"]] + [0], np.uint32
            )
            for name, flat, sizes_of in (
                ("ids", some["ids"], table["n_ids"]),
                ("first", some["first"], table["n_lines"]),
                ("sep", own[some["sep"]], table["n_lines"]),
                ("names", some["names"], table["n_name"]),
            ):
                flat[np.repeat(stay, sizes_of)].tofile(out[name])
            for b, f in enumerate(bands):
                some["bands"][stay, b].tofile(f)
            table = table[stay]
            for key, size in (("ids", "n_ids"), ("lines", "n_lines"), ("name", "n_name")):
                table[key] = at[key] + np.cumsum(table[size]) - table[size]
                at[key] += int(table[size].sum())
            tables.append(table)
    table = np.concatenate([np.zeros(0, DOC), *tables])
    del tables
    gone = near_duplicates(folder, table, dtype, settings["near"], progress)
    for n, of in enumerate(counts):
        mine = table["source"] == n
        of["near_duplicate"], of["kept"], of["tokens"] = (
            int(x)
            for x in ((mine & gone).sum(), (mine & ~gone).sum(), table["n_ids"][mine & ~gone].sum())
        )
    table = table[~gone]
    np.save(folder / "docs.npy", table)
    total = {key: sum(of[key] for of in counts) for key in COUNTED}
    report = (
        {"benchmarks": {}}
        if check is None
        else check.account(total["found"] - total["rewritten"] - total["duplicate"], dropped)
    )
    (folder / "contamination.json").write_text(json.dumps(report, indent=1))
    manifest = {
        "settings": settings,
        "sources": [
            {
                "data": one.spec,
                **one.about,
                "files": len(one.files),
                "sha256": digest.hexdigest(),
                "counts": of,
            }
            for one, digest, of in zip(found, digests, counts)
        ],
        "counts": total,
        "held_out": int(table["held"].sum()),
        "dtype": dtype.str,
        "seps": list(seps),
        "sha256": {
            p.name: file_digest(p) for p in sorted(folder.iterdir()) if p.name != "manifest.json"
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    return total


def part(parts, n, name):
    with np.load(parts / f"{n}.npz") as z:
        return z[name]


def file_digest(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


# ---------------------------------------------------------------- by the settings


def arguments_of(cfg, tok):
    """The keyword arguments of `prepare` for the settings."""
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
    """The Tokenizer of the settings: the model's own, or the built-in domain's, which is trained if the run's folder holds none."""
    if cfg.preset != "tiny":
        return huggingface.open_tokenizer(huggingface.find(cfg))
    path = os.path.join(cfg.out, "tokenizer.txt")
    if os.path.exists(path):
        return tokenizers.load_tokenizer(path)
    rng = random.Random("tokenizer")
    return tokenizers.train_tokenizer(
        ["".join(base_text(rng)) for _ in range(2000)], cfg.vocab_size
    )
