"""Near-duplicates of token lists, by MinHash and then exactly.

The shingles S(x) of a snippet are its runs of five tokens; J(a, b) = |S(a) & S(b)| / |S(a) | S(b)|.
MinHash (128 permutations, cut into bands) finds candidate pairs; their J is computed exactly.
A snippet is dropped if J >= `near` with a snippet before it.
B bands of R rows find a pair with probability 1 - (1 - J^R)^B: 0.95 at J = 0.8, 0.999 at 0.87.
A chain a ~ b ~ c may drop c too.

Shapes: n snippets.
"""

import os

import numpy as np

from config import UserError, progress_bar

PERMUTATIONS = 128  # of MinHash
SHINGLE = 5  # tokens
LEADERS = 16  # snippets of a bucket that others are compared with, at most


def minhash():
    """rensa's MinHash. Raises UserError if the package is missing."""
    try:
        from rensa import RMinHash
    except ImportError:
        raise UserError(
            "near-duplicates need the package rensa (extra corpora): pip install rensa==0.5.0, "
            "or leave them in with --near-duplicate 0"
        ) from None
    return RMinHash


def bands_of(near):
    """How 128 permutations are cut -> (bands, rows a band).

    Fewest bands that find 94% of the pairs that are just similar enough.
    Example: 0.8 -> (16, 8).
    """
    if near == 0:
        return 0, PERMUTATIONS
    rows = [1]
    for r in (2, 4, 8, 16, 32, 64):
        if 1 - (1 - near**r) ** (PERMUTATIONS // r) >= 0.94:
            rows.append(r)
    return PERMUTATIONS // rows[-1], rows[-1]


def shingles(raw, width):
    """S(x) of ids as bytes, `width` bytes a token; fewer than five tokens are one shingle."""
    starts = range(0, max(1, len(raw) - (SHINGLE - 1) * width), width)
    return {raw[i : i + SHINGLE * width] for i in starts}


def signatures(docs, near, dtype):
    """MinHash of lists of ids -> (n, bands) uint64, equal where a band's rows are."""
    bands, rows = bands_of(near)
    digests = np.zeros((len(docs), PERMUTATIONS), np.uint64)
    mixed = np.zeros((len(docs), bands), np.uint64)
    if not bands:
        return mixed
    for i, ids in enumerate(docs):
        sketch = minhash()(num_perm=PERMUTATIONS, seed=1)
        sketch.update(list(shingles(np.asarray(ids, dtype).tobytes(), dtype.itemsize)))
        digests[i] = sketch.digest()
    for row in range(rows):  # a polynomial in an odd number, modulo 2^64
        mixed = (mixed + digests[:, row::rows]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed


def near_duplicates(folder, table, dtype, near, progress):
    """Which snippets are near-duplicates of one before them -> (n,) bool.

    folder  of the corpus being written: ids.bin in it, and beside it a file of keys for each band.
    table   its snippets (prepare.DOC).

    A bucket is the snippets that agree in a band.
    Each is compared with those of its bucket that were not dropped for another one there.
    """
    dropped = np.zeros(len(table), bool)
    with open(folder / "ids.bin", "rb") as file:

        def shingles_of(i):
            doc = table[i]
            size = (int(doc["n_ids"]) - 1) * dtype.itemsize
            offset = int(doc["ids"]) * dtype.itemsize
            return shingles(os.pread(file.fileno(), size, offset), dtype.itemsize)

        for band in progress_bar(
            range(bands_of(near)[0]),
            desc="near-duplicates",
            unit="band",
            disable=not progress,
            delay=2,
            leave=False,
        ):
            keys = np.fromfile(folder.parent / f"band{band}.bin", np.uint64)
            for bucket in buckets(keys, dropped):
                drop_similar(bucket, shingles_of, near, dropped)
    return dropped


def buckets(keys, dropped):
    """Snippets with equal keys, two or more, that are not dropped yet -> yields index arrays."""
    candidates = np.flatnonzero(~dropped)
    ordered = candidates[np.argsort(keys[candidates], kind="stable")]
    if not len(ordered):
        return
    begins = keys[ordered[1:]] != keys[ordered[:-1]]
    edges = np.flatnonzero(np.concatenate([[True], begins, [True]]))
    for k in np.flatnonzero(np.diff(edges) > 1):
        yield ordered[edges[k] : edges[k + 1]]


def drop_similar(bucket, shingles_of, near, dropped):
    """Mark in `dropped` the snippets of a bucket that are similar enough to one of its leaders."""
    leaders = []
    for i in bucket:
        grams = shingles_of(i)
        if any(len(grams & leader) >= near * len(grams | leader) for leader in leaders):
            dropped[i] = True
        elif len(leaders) < LEADERS:
            leaders.append(grams)
