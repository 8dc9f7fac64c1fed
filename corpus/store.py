"""A prepared corpus on disk: files that are mapped into memory, a Snippet made when it is asked for."""

import json
import os
import pathlib

import numpy as np

from data import Snippet


class Corpus:
    """Snippets in a folder that `prepare` made, or some of them: len, indices, slices and iteration as of a list, each Snippet made when it is asked for."""

    def __init__(self, folder, numbers=None):
        """numbers: which snippets, in which order; None: all."""
        self.folder = pathlib.Path(folder)
        self.manifest = json.loads((self.folder / "manifest.json").read_text())
        self.docs = np.load(self.folder / "docs.npy", mmap_mode="r")
        self.ids, self.first, self.sep, self.names = (
            mapped(self.folder / f"{name}.bin", dtype)
            for name, dtype in (
                ("ids", self.manifest["dtype"]),
                ("first", "u4"),
                ("sep", "u4"),
                ("names", "u1"),
            )
        )
        self.numbers = (
            np.arange(len(self.docs), dtype=np.int32 if len(self.docs) < 2**31 else np.int64)
            if numbers is None
            else numbers
        )

    def take(self, numbers):
        """The snippets of these numbers, in this order."""
        some = object.__new__(Corpus)
        some.__dict__.update(self.__dict__, numbers=self.numbers[numbers])
        return some

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, at):
        if isinstance(at, slice):
            return self.take(at)
        doc = self.docs[self.numbers[at]]
        lines = slice(doc["lines"], doc["lines"] + doc["n_lines"])
        return Snippet(
            self.ids[doc["ids"] : doc["ids"] + doc["n_ids"]].tolist(),
            int(doc["prompt"]),
            self.first[lines].tolist(),
            [list(self.manifest["seps"][s]) for s in self.sep[lines]],
            self.names[doc["name"] : doc["name"] + doc["n_name"]]
            .tobytes()
            .decode("utf-8", "surrogateescape"),
        )

    def held(self):
        """(n,) bool: which are held out."""
        return self.docs["held"][self.numbers]

    def sizes(self):
        """(n,) tokens of each, lines, and tokens of all its separators."""
        return tuple(self.docs[key][self.numbers] for key in ("n_ids", "n_lines", "n_sep"))

    def contamination(self):
        """What decontaminate.Checker.report said."""
        return json.loads((self.folder / "contamination.json").read_text())


def mapped(path, dtype):
    return np.memmap(path, dtype=dtype, mode="r") if os.path.getsize(path) else np.zeros(0, dtype)


def sizes(snippets):
    """Of a Corpus or a list of Snippets: (n,) tokens of each, lines, and tokens of all its separators."""
    if isinstance(snippets, Corpus):
        return snippets.sizes()
    return tuple(
        np.array(x)
        for x in zip(*((len(s.ids), len(s.first), sum(map(len, s.sep))) for s in snippets))
    )


def take(snippets, numbers):
    """Of a Corpus or a list of Snippets: those of these numbers, in this order."""
    return (
        snippets.take(numbers) if isinstance(snippets, Corpus) else [snippets[i] for i in numbers]
    )


def order(n, seed, epoch=0):
    """The numbers 0 … n-1 in random order, a function of (seed, epoch): where a run stopped is a position in it."""
    return np.random.default_rng([seed, epoch]).permutation(n)


def split(whole, seed, n_expert=0, n_heldout=0):
    """A Corpus -> (to train on, held out), both in random order, at most so many (0: all)."""
    at = order(len(whole), seed)
    held = whole.held()[at]
    return whole.take(at[~held][: n_expert or None]), whole.take(at[held][: n_heldout or None])
