"""Documents of an M-step, read as they are needed, and which of them each step trains on."""

import array
import collections
import functools
import os

import numpy as np
import torch

from config import UserError, seed_of, writing
from data import infuse
from engine import parallel
from formats.checkpoints import DAMAGED, write_whole


class Code:
    """Snippets as documents without thoughts: len, and code[i] -> (ids, kinds).

    snippets: a list or a corpus; lengths (n,): their tokens.
    """

    def __init__(self, tok, snippets, lengths):
        self.tok = tok
        self.snippets = snippets
        self.lengths = lengths

    def __len__(self):
        return len(self.snippets)

    def __getitem__(self, i):
        return infuse(self.tok, self.snippets[i], {})


class Written:
    """The documents of a file of `write_documents`: len, lengths (n,), written[i] -> (ids, kinds).

    Raises UserError if there is no such file.
    """

    def __init__(self, path):
        try:
            self.words = np.memmap(path, np.uint32, "r")
        except (OSError, ValueError):
            raise UserError(
                f"{path}: expected the documents of an unfinished M-step, found none; "
                "leave out --resume to start over"
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
    """Write documents, an iterable of (ids, kinds), to a file: all of them, or no file.

    As uint32: 4 id + kind of every token, the lengths of the documents, their number. Every rank
    goes through all documents, and rank 0 writes.
    """
    writes = parallel.rank() == 0
    lengths = array.array("I")
    with writing(path), open(f"{path}.part" if writes else os.devnull, "wb") as f:
        for ids, kinds in docs:
            words = np.array(ids, np.uint32) << 2 | np.array(kinds, np.uint32)
            f.write(words.tobytes())
            lengths.append(len(ids))
        f.write(np.append(lengths, len(lengths)).astype(np.uint32).tobytes())
        f.flush()
        if writes:
            os.fsync(f.fileno())
            os.replace(f.name, path)
    parallel.all_gather(None)


class Batches:
    """Batches of documents that are being written, a file each, so that a killed run goes on.

    PATH.START holds the documents of the batch that begins at snippet START, and its counts. A
    batch depends on nothing but the settings and the model that thinks: there is no other state.
    """

    def __init__(self, path, settings):
        """settings: plain values; a batch of others is none of these."""
        self.path = path
        self.settings = settings

    def load(self, start):
        """(documents, Counter) of a batch, or None if it is not there. The ranks agree on it."""
        record = None
        try:
            record = torch.load(f"{self.path}.{start}", weights_only=True)
        except DAMAGED:
            pass
        usable = record is not None and record["settings"] == self.settings
        if not all(parallel.all_gather(usable)):
            return None
        return record["documents"], collections.Counter(record["counts"])

    @parallel.rank0_only
    def save(self, start, docs, counts):
        record = {"settings": self.settings, "counts": dict(counts), "documents": docs}
        write_whole(record, f"{self.path}.{start}")


def step_documents(lengths, size, seed):
    """Which documents a step trains on -> a function, step -> indices.

    They depend on nothing else, so a resumed run sees the same data. An epoch has every document
    once, in an order of its own. The epochs are one endless stream of tokens; step s takes the
    documents that begin at its tokens s size, ..., (s + 1) size - 1.
    Example: four documents of 3 tokens, size 6 -> two a step, two steps an epoch
    """
    lengths = np.asarray(lengths, np.int64)
    total = int(lengths.sum())

    @functools.lru_cache(maxsize=1)  # most steps are in the epoch of the step before
    def epoch(n):
        order = np.random.default_rng(seed_of(*seed, n)).permutation(len(lengths))
        starts = n * total + lengths[order].cumsum() - lengths[order]
        return order, starts

    def of_step(step):
        begin = step * size
        indices = []
        for n in range(begin // total, (begin + size - 1) // total + 1):
            order, starts = epoch(n)
            first, last = np.searchsorted(starts, (begin, begin + size))
            indices += order[first:last].tolist()
        return indices

    return of_step
