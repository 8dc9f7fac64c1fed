"""Documents of an M-step, read as they are needed: files mapped into memory, and which documents a step reads."""

import array
import functools
import os

import numpy as np

from config import UserError
from data import infuse
from engine import parallel


class Code:
    """Snippets, a list or a corpus, of these lengths (n,) in tokens, as documents without thoughts: len, and code[i] -> (ids, kinds)."""

    def __init__(self, tok, snippets, lengths):
        self.tok, self.snippets, self.lengths = tok, snippets, lengths

    def __len__(self):
        return len(self.snippets)

    def __getitem__(self, i):
        return infuse(self.tok, self.snippets[i], {})


class Written:
    """The documents of a file that `write_documents` made: len, lengths (n,) and written[i] -> (ids, kinds). Raises UserError if there is no such file."""

    def __init__(self, path):
        try:
            self.words = np.memmap(path, np.uint32, "r")
        except (OSError, ValueError):
            raise UserError(
                f"{path}: expected the documents of an unfinished M-step, found none; leave out --resume to start over"
            ) from None
        n = int(self.words[-1])
        self.lengths = np.array(self.words[-1 - n : -1])  # (n,)
        self.ends = self.lengths.cumsum(dtype=np.int64)  # (n,)

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, i):
        words = self.words[self.ends[i] - self.lengths[i] : self.ends[i]]
        return (words >> 2).tolist(), (words & 3).tolist()


def write_documents(path, docs):
    """Documents, an iterable of (ids, kinds), to a file, whole or not at all: 4 id + kind of every token, the documents' lengths, their number, all uint32.
    Every rank goes through all documents, and rank 0 writes."""
    first, lengths = parallel.rank() == 0, array.array("I")
    with open(f"{path}.part" if first else os.devnull, "wb") as f:
        for ids, kinds in docs:
            f.write((np.array(ids, np.uint32) << 2 | np.array(kinds, np.uint32)).tobytes())
            lengths.append(len(ids))
        f.write(np.append(lengths, len(lengths)).astype(np.uint32).tobytes())
        f.flush()
        if first:
            os.fsync(f.fileno())
            os.replace(f.name, path)
    parallel.all_gather(None)


def step_documents(lengths, size, seed):
    """-> a function: step -> indices of its documents, which depend on nothing else, so that a resumed run sees the same data. The epochs, each of
    every document once in an order of its own, are one endless stream of tokens; step s takes the documents that begin at its tokens
    s size, ..., (s + 1) size - 1.   Example: four documents of 3 tokens, size 6 -> two a step, two steps an epoch
    """
    lengths = np.asarray(lengths, np.int64)
    total = int(lengths.sum())

    @functools.lru_cache(maxsize=1)  # most steps are in the epoch of the step before
    def epoch(n):
        order = np.random.default_rng([*seed, n]).permutation(len(lengths))
        return order, n * total + lengths[order].cumsum() - lengths[
            order
        ]  # where each document begins

    def of_step(step):
        begin, chosen = step * size, []
        for n in range(begin // total, (begin + size - 1) // total + 1):
            order, at = epoch(n)
            chosen += order[slice(*np.searchsorted(at, (begin, begin + size)))].tolist()
        return chosen

    return of_step
