"""Corpora of real Python: sources to functions to snippets, prepared once, on disk.

    python -m corpus --data stdlib,sympy --preset smollm2

prepares, and prints the account; train.py --data stdlib,sympy then uses it.

1. Items (files, records; sources.py) are cut into functions and methods, or taken whole (--unit;
   functions.py). Comments are stripped, so that every comment is a latent; --keep-comments true
   keeps them, and a comment then belongs to the line before it. Docstrings stay. The prompt (s_0)
   is decorators, signature and docstring, or a file's docstring.
2. These are dropped: what changes its meaning when dedented, texts that came before, what holds a
   benchmark's problem (decontaminate.py), what is too long or too short, what has no docstring
   (--docstrings true), and near-duplicates. A faulty source never ends the preparation: it is
   counted.
3. Near-duplicates share --near-duplicate of their runs of five tokens with one before them
   (near.py).
4. One snippet in ten, by a checksum of its text, is held out. Near-duplicates are removed first, so
   no training snippet nearly equals a held-out one.

Several processes work on about a megabyte of code at a time. Each part is written to a file of its
own, so an interrupted preparation goes on where it stopped. The parts are then joined into files
that are mapped into memory, and a Snippet is made when it is asked for. Memory holds about a
hundred bytes a function while joining, and a few a snippet after.

The folder's name is a hash of all that decides its content: sources by path, size and time,
settings, tokenizer, benchmarks, Python's version. The folder is complete or absent.

    manifest.json          settings; by source its version, licence, sha256, and counts: items,
                           found, each reason of dropping, kept, tokens
    contamination.json     functions dropped for a benchmark, and why
    ids.bin                tokens, uint16 or uint32
    first.bin, sep.bin     by line: index of its first token; which separator (see the manifest)
    names.bin, docs.npy    names; by snippet where all of these begin
"""

from config import UserError, command, parse
from corpus.functions import DROPPED
from corpus.prepare import arguments_of, prepare_corpus, tokenizer_of
from corpus.sources import BAD

HEADS = (
    "source",
    "licence",
    "items",
    "found",
    "kept",
    "tokens",
    "duplicates",
    "near",
    "contaminated",
)
COLUMNS = ("items", "found", "kept", "tokens", "duplicate", "near_duplicate", "contaminated")


def account(corpus):
    """The account of a corpus as text: a row a source, then why units were dropped."""
    counts = corpus.manifest["counts"]
    rows = [list(HEADS)]
    for origin in corpus.manifest["sources"] + [{"data": "all", "counts": counts}]:
        name = f"{origin['data']} {origin.get('version', '')}".strip()
        numbers = [f"{origin['counts'][key]:,}" for key in COLUMNS]
        rows.append([name, origin.get("licence", "")[:40], *numbers])
    dropped = ", ".join(f"{key} {counts[key]:,}" for key in BAD + DROPPED if counts[key])
    return "\n".join(
        [
            *aligned(rows),
            "",
            f"left out: {dropped or 'nothing'}",
            f"held out: {corpus.manifest['held_out']:,} of {len(corpus):,} snippets; "
            f"in {corpus.folder}",
        ]
    )


def aligned(rows):
    """Rows of cells as lines: two columns of text to the left, numbers to the right."""
    width = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        text = [cell.ljust(w) for cell, w in zip(row[:2], width[:2], strict=True)]
        numbers = [cell.rjust(w) for cell, w in zip(row[2:], width[2:], strict=True)]
        lines.append("  ".join(text + numbers).rstrip())
    return lines


def main(argv):
    cfg, _ = parse(argv, {}, __doc__)
    if cfg.data == "domain":
        raise UserError(
            "--data domain: the built-in domain is made as it is needed; give stdlib, packages, "
            "folders or files"
        )
    print(account(prepare_corpus(**arguments_of(cfg, tokenizer_of(cfg)))))


if __name__ == "__main__":
    command(main, "stopped; the same command goes on")
