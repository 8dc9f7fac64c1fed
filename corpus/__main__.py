"""Corpora of real Python: sources to functions to snippets, prepared once, on disk.

    python -m corpus --data stdlib,sympy --preset smollm2            prepare, and print the account; train.py --data stdlib,sympy then uses it

1. Items (files, records; sources.py) are cut into functions and methods, or taken whole (--unit; functions.py). Comments are stripped, so that every
   comment is a latent (--keep-comments true keeps them: a comment then belongs to the line before it); docstrings stay. What is given (s_0) is
   decorators, signature and docstring, or a file's docstring.
2. Dropped are: what does not mean the same once it is dedented, texts that came before, what holds a benchmark's problem (decontaminate.py), what is
   too long or too short, what has no docstring (--docstrings true), and near-duplicates. Nothing that can be wrong with a source ends the
   preparation: it is counted.
3. Near-duplicates: those that share --near-duplicate of their runs of five tokens with one before them (near.py).
4. One snippet in ten, by a checksum of its text, is held out. As near-duplicates are gone by then, none of it is left to be trained on.

The work is done by several processes, about a megabyte of code at a time, each part written to a file of its own: an interrupted preparation goes on
where it stopped. The parts are then joined into files that are mapped into memory, and a Snippet is made when it is asked for. What stays in memory is
about a hundred bytes a function while joining, and a few a snippet after. The folder's name is a hash of all that decides its content (sources by path,
size and time, settings, tokenizer, benchmarks, Python's version); it is there whole or not at all.

    manifest.json          settings; by source its version, licence, sha256, and counts: items, found, each reason of dropping, kept, tokens
    contamination.json     functions dropped for a benchmark, and why
    ids.bin                tokens, uint16 or uint32
    first.bin, sep.bin     by line: index of its first token; which separator (listed in the manifest)
    names.bin, docs.npy    names; by snippet where all of these begin
"""

from config import UserError, command, parse
from corpus.functions import DROPPED
from corpus.prepare import arguments_of, prepare, tokenizer_of
from corpus.sources import BAD


def said(whole):
    """The account of a corpus as lines of text: a row a source, then why what was dropped was dropped."""
    rows = [
        [
            "source",
            "licence",
            "items",
            "found",
            "kept",
            "tokens",
            "duplicates",
            "near",
            "contaminated",
        ]
    ]
    for one in whole.manifest["sources"] + [{"data": "all", "counts": whole.manifest["counts"]}]:
        of = one["counts"]
        rows.append(
            [
                f"{one['data']} {one.get('version', '')}".strip(),
                one.get("licence", "")[:40],
                *(
                    f"{of[k]:,}"
                    for k in (
                        "items",
                        "found",
                        "kept",
                        "tokens",
                        "duplicate",
                        "near_duplicate",
                        "contaminated",
                    )
                ),
            ]
        )
    width = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        "  ".join(
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, width))
        ).rstrip()
        for row in rows
    ]
    counts = whole.manifest["counts"]
    return "\n".join(
        [
            *lines,
            "",
            "left out: "
            + (", ".join(f"{k} {counts[k]:,}" for k in BAD + DROPPED if counts[k]) or "nothing"),
            f"held out: {whole.manifest['held_out']:,} of {len(whole):,} snippets; in {whole.folder}",
        ]
    )


def main(argv):
    cfg, _ = parse(argv, {}, __doc__)
    if cfg.data == "domain":
        raise UserError(
            "--data domain: the built-in domain is made as it is needed; give stdlib, packages, folders or files"
        )
    print(said(prepare(**arguments_of(cfg, tokenizer_of(cfg)))))


if __name__ == "__main__":
    command(main, "stopped; the same command goes on")
