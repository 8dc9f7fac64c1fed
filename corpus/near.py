"""Near-duplicates of token lists, by MinHash and then exactly.

The shingles S(x) of a snippet are its runs of five tokens; J(a, b) = |S(a) & S(b)| / |S(a) | S(b)|. MinHash (128 permutations) in bands finds the pairs
to look at, and J is then computed exactly: a snippet is dropped if J >= `near` with one before it. With B bands of R rows a pair is looked at with
probability 1 - (1 - J^R)^B: 0.95 at J = 0.8, 0.999 at 0.87. A chain a ~ b ~ c may drop c too.
"""

import os

import numpy as np
from tqdm import tqdm

from config import UserError

PERMUTATIONS, SHINGLE, LEADERS = (
    128,
    5,
    16,
)  # of MinHash; tokens; snippets of a bucket that others are compared with, at most


def minhash():
    """rensa's MinHash. Raises UserError if the package is missing."""
    try:
        from rensa import RMinHash
    except ImportError:
        raise UserError(
            "near-duplicates need the package rensa; pip install rensa==0.5.0, or leave them in with --near-duplicate 0"
        ) from None
    return RMinHash


def bands_of(near):
    """How 128 permutations are cut into (bands, rows): as few bands as find 94% of the pairs that are just similar enough. Example: 0.8 -> (16, 8)."""
    if near == 0:
        return 0, PERMUTATIONS
    rows = [
        r
        for r in (1, 2, 4, 8, 16, 32, 64)
        if r == 1 or 1 - (1 - near**r) ** (PERMUTATIONS // r) >= 0.94
    ]
    return PERMUTATIONS // rows[-1], rows[-1]


def shingles(raw, width):
    """S(x) of ids as bytes, `width` bytes a token; of fewer than five tokens: all of them as one."""
    return {
        raw[i : i + SHINGLE * width]
        for i in range(0, max(1, len(raw) - (SHINGLE - 1) * width), width)
    }


def signatures(docs, near, dtype):
    """MinHash of lists of ids -> (n, bands) uint64, equal where a band's rows are."""
    bands, rows = bands_of(near)
    found = np.zeros((len(docs), PERMUTATIONS), np.uint64)
    for i, ids in enumerate(docs if bands else ()):
        m = minhash()(num_perm=PERMUTATIONS, seed=1)
        m.update(list(shingles(np.asarray(ids, dtype).tobytes(), dtype.itemsize)))
        found[i] = m.digest()
    mixed = np.zeros((len(docs), bands), np.uint64)
    for row in range(rows if bands else 0):  # a polynomial in an odd number, modulo 2^64
        mixed = (mixed + found[:, row::rows]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed


def near_duplicates(folder, table, dtype, near, progress):
    """Which of the snippets written so far are near-duplicates of one before them -> (n,) bool. A bucket is the snippets that agree in a band; each is
    compared with those of its bucket that were not dropped for another one there."""
    gone = np.zeros(len(table), bool)
    fd, width = os.open(folder / "ids.bin", os.O_RDONLY), dtype.itemsize

    def look(i):
        doc = table[i]
        return shingles(
            os.pread(fd, (int(doc["n_ids"]) - 1) * width, int(doc["ids"]) * width), width
        )

    for band in tqdm(
        range(bands_of(near)[0]),
        desc="near-duplicates",
        unit="band",
        disable=not progress,
        delay=2,
        leave=False,
    ):
        keys = np.fromfile(folder.parent / f"band{band}.bin", np.uint64)
        left = np.flatnonzero(~gone)
        at = left[np.argsort(keys[left], kind="stable")]
        edges = (
            np.flatnonzero(np.concatenate([[True], keys[at[1:]] != keys[at[:-1]], [True]]))
            if len(at)
            else np.zeros(1, int)
        )
        for k in np.flatnonzero(np.diff(edges) > 1):
            leaders = []
            for i in at[edges[k] : edges[k + 1]]:
                mine = look(i)
                if any(len(mine & other) >= near * len(mine | other) for other in leaders):
                    gone[i] = True
                elif len(leaders) < LEADERS:
                    leaders.append(mine)
    os.close(fd)
    return gone
