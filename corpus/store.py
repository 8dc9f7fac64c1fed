"""A prepared corpus on disk: files mapped into memory, a Snippet made when it is asked for."""

import json
import os
import pathlib

import numpy as np

from config import CORPUS, UserError, seed_of
from data import Snippet


class Corpus:
    """Snippets of a folder that `prepare_corpus` made, all or some of them.

    Length, indices, slices and iteration are those of a list; a Snippet is made on demand.
    """

    def __init__(self, folder, numbers=None):
        """numbers: which snippets, in which order; None: all."""
        self.folder = pathlib.Path(folder)
        self.manifest = json.loads((self.folder / "manifest.json").read_text())
        self.docs = np.load(self.folder / "docs.npy", mmap_mode="r")
        self.ids = mapped(self.folder / "ids.bin", self.manifest["dtype"])
        self.first = mapped(self.folder / "first.bin", "u4")
        self.sep = mapped(self.folder / "sep.bin", "u4")
        self.names = mapped(self.folder / "names.bin", "u1")
        if numbers is None:
            dtype = np.int32 if len(self.docs) < 2**31 else np.int64
            numbers = np.arange(len(self.docs), dtype=dtype)
        self.numbers = numbers

    def take(self, numbers):
        """The snippets of these numbers, in this order."""
        subset = object.__new__(Corpus)
        subset.__dict__.update(self.__dict__, numbers=self.numbers[numbers])
        return subset

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.take(index)
        doc = self.docs[self.numbers[index]]
        lines = slice(doc["lines"], doc["lines"] + doc["n_lines"])
        name = self.names[doc["name"] : doc["name"] + doc["n_name"]].tobytes()
        return Snippet(
            ids=self.ids[doc["ids"] : doc["ids"] + doc["n_ids"]].tolist(),
            prompt=int(doc["prompt"]),
            first=self.first[lines].tolist(),
            sep=[list(self.manifest["seps"][s]) for s in self.sep[lines]],
            name=name.decode("utf-8", "surrogateescape"),
        )

    def held(self):
        """(n,) bool: which are held out."""
        return self.docs["held"][self.numbers]

    def sizes(self):
        """Three (n,) arrays: tokens of each snippet, its lines, tokens of all its separators."""
        return tuple(self.docs[key][self.numbers] for key in ("n_ids", "n_lines", "n_sep"))

    def contamination(self):
        """The report of decontaminate.Checker."""
        return json.loads((self.folder / "contamination.json").read_text())


def mapped(path, dtype):
    """A file as an array mapped into memory. An empty file, which cannot be mapped, is read."""
    return np.memmap(path, dtype=dtype, mode="r") if os.path.getsize(path) else np.zeros(0, dtype)


def snippet_sizes(snippets):
    """Corpus.sizes of a Corpus or of a list of Snippets."""
    if isinstance(snippets, Corpus):
        return snippets.sizes()
    rows = [(len(s.ids), len(s.first), sum(map(len, s.sep))) for s in snippets]
    return tuple(np.array(column) for column in zip(*rows, strict=True))


def take(snippets, numbers):
    """The snippets of these numbers, in this order, of a Corpus or of a list of Snippets."""
    if isinstance(snippets, Corpus):
        return snippets.take(numbers)
    return [snippets[i] for i in numbers]


def order(n, seed, epoch=0):
    """The numbers 0 … n-1 in random order, a function of (seed, epoch).

    A run that stopped is a position in it.
    """
    return np.random.default_rng(seed_of(seed, CORPUS, epoch)).permutation(n)


def split_heldout(corpus, seed, n_expert=0, n_heldout=0):
    """A Corpus -> (to train on, held out), both in random order, at most so many (0: all).

    Raises UserError if one of them is empty.
    """
    shuffled = order(len(corpus), seed)
    held = corpus.held()[shuffled]
    expert = shuffled[~held][: n_expert or None]
    heldout = shuffled[held][: n_heldout or None]
    if not len(expert) or not len(heldout):
        raise UserError(
            f"--data: {len(corpus)} usable functions, of which {len(heldout)} fall to the held-out "
            "tenth; expected at least one on either side; give more code"
        )
    return corpus.take(expert), corpus.take(heldout)
