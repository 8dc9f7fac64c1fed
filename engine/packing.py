"""Documents and rows packed without padding: end to end, or as a trie of shared prefixes.

Shapes: T tokens of a packed row, M tokens that are predicted, D width.
"""

import itertools

import numpy as np
import torch
import torch.nn.functional as F

from data import CODE
from model import Documents, to_device


def pack(docs, kinds=None, multiple=1):
    """Documents end to end as one row: ids, pos, doc (1, T) int64 and kind (1, T) int8.

    docs      lists of ids
    kinds     lists of kinds of token, or None: all are CODE
    multiple  pad T to a multiple of it; padding is a document with ids 0, doc -1 and kind -1

    pos restarts at 0 in each document; doc numbers them.
    Example: [[5, 6], [7]] -> ids [[5, 6, 7]], pos [[0, 1, 0]], doc [[0, 0, 1]]
    """
    sizes = [len(d) for d in docs]
    padding = -sum(sizes) % multiple
    kinds = [[CODE] * size for size in sizes] if kinds is None else kinds
    ids = torch.from_numpy(np.fromiter(itertools.chain(*docs), np.int64))
    kind = torch.from_numpy(np.fromiter(itertools.chain(*kinds), np.int8))
    pos = torch.cat([torch.arange(size) for size in (*sizes, padding)])  # (T,)
    doc = torch.arange(len(docs)).repeat_interleave(torch.tensor(sizes, dtype=torch.int64))
    ids = F.pad(ids, (0, padding))
    doc = F.pad(doc, (0, padding), value=-1)
    kind = F.pad(kind, (0, padding), value=-1)
    return ids[None], pos[None], doc[None], kind[None]  # (1, T) each


def pack_shared(rows):
    """Rows of ids as one row in which shared prefixes stand once: the trie of the rows.

    A row becomes a document of the tokens that differ from the row before it, in lexicographic
    order. T is the number of nodes of the trie. Returns

    ids, pos, doc  (1, T) int64
    before         per document, the numbers of the tokens before it: `model.Documents`
    where          per row, the numbers of its tokens: (len(row),)

    Example: [[5, 6, 7], [5, 6, 8]] -> ids [[5, 6, 7, 8]], pos [[0, 1, 2, 2]],
    doc [[0, 0, 0, 1]], before [[], [0, 1]], where [[0, 1, 2], [0, 1, 3]]
    """
    ids, pos, doc = [], [], []
    before = []
    where = [None] * len(rows)
    last = path = np.zeros(0, np.int64)  # the row before, and the numbers of its tokens
    for n in sorted(range(len(rows)), key=lambda n: rows[n]):
        row = np.array(rows[n])
        m = shared_length(last, row)
        path = path[:m]
        if m < len(row):  # else it is the same row again
            doc += [len(before)] * (len(row) - m)
            before.append(torch.from_numpy(path))
            path = np.concatenate([path, len(ids) + np.arange(len(row) - m)])
            ids += rows[n][m:]
            pos += range(m, len(row))
        where[n] = torch.from_numpy(path)
        last = row
    ids, pos, doc = (torch.tensor(x)[None] for x in (ids, pos, doc))  # (1, T) each
    return ids, pos, doc, before, where


def shared_parts(rows, max_tokens):
    """Split rows into parts that `pack_shared` packs to at most max_tokens each.

    Rows with shared prefixes come together. A longer row is a part of its own. Returns lists of
    indices.
    """
    parts = []
    last = np.zeros(0, np.int64)
    room = 0
    for n in sorted(range(len(rows)), key=lambda n: rows[n]):
        row = np.array(rows[n])
        size = len(row) - shared_length(last, row)
        if not parts or size > room:
            parts.append([])
            size = len(row)
            room = max(max_tokens, size)
        parts[-1].append(n)
        room -= size
        last = row
    return parts


def shared_length(a, b):
    """Length of the shared prefix of two rows (arrays).   Example: [5, 6, 7], [5, 6, 8] -> 2"""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


def hidden_before(model, rows, row, position, amp=False):
    """Run rows, shared prefixes once, for the states that predict tokens.

    rows: lists of ids; row, position: (M,) ints. Returns (states (T, D), node (M,) on the CPU):
    states[node[m]] predicts the token at position[m] of rows[row[m]].
    """
    ids, pos, doc, before, where = pack_shared(rows)  # (1, T)
    start = np.cumsum([0] + [len(w) for w in where])
    node = torch.cat(where)[start[row] + position - 1]  # (M,)
    docs = Documents(doc, before, model.device)
    ids = to_device(ids, model.device)
    pos = to_device(pos, model.device)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=amp):
        return model(ids, pos, docs)[0], node


def micro_batches(docs, kinds, max_tokens):
    """Deal documents out to as few parts as have at most max_tokens each -> [(docs, kinds), ...].

    A longer document is a part of its own. Dealt longest first, like cards, the parts differ by
    less than the longest document.   Example: lengths 5, 4, 2, 1, at most 8 -> 5 + 2, 4 + 1
    """
    order = sorted(range(len(docs)), key=lambda i: -len(docs[i]))
    n = min(len(docs), -(-sum(map(len, docs)) // max_tokens))
    while n < len(docs) and sum(len(docs[i]) for i in order[::n]) > max_tokens:
        n += 1  # the first part is the largest
    return [([docs[i] for i in order[k::n]], [kinds[i] for i in order[k::n]]) for k in range(n)]
