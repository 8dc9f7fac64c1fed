"""Documents and rows packed without padding: one behind the other, or as a tree in which equal beginnings stand once.

Shapes: T tokens of a packed row, M tokens whose prediction is asked for, D width.
"""

import numpy as np
import torch
import torch.nn.functional as F

from data import CODE


def pack(docs, kinds=None, multiple=1):
    """Documents one behind the other as a row of tensors: ids, pos, doc (1, T) int64 and kind (1, T) int8. T is their tokens.

    pos restarts at 0 in each document; doc numbers them. multiple: pad to a multiple of so many tokens; padding is a document of its own with ids 0,
    doc -1 and kind -1. kinds: a list like docs, or None (then kind is CODE).   Example: [[5, 6], [7]] -> ids [[5, 6, 7]], pos [[0, 1, 0]], doc [[0, 0, 1]]
    """
    sizes = [len(d) for d in docs]
    rest = -sum(sizes) % multiple
    pos = [torch.arange(size) for size in sizes] + [torch.arange(rest)]
    doc = torch.arange(len(docs)).repeat_interleave(torch.tensor(sizes, dtype=torch.int64))
    kinds = [[CODE] * size for size in sizes] if kinds is None else kinds
    ids, kind = (
        torch.tensor([i for d in lists for i in d], dtype=dtype)
        for lists, dtype in ((docs, torch.int64), (kinds, torch.int8))
    )
    return (
        F.pad(ids, (0, rest))[None],
        torch.cat(pos)[None],
        F.pad(doc, (0, rest), value=-1)[None],
        F.pad(kind, (0, rest), value=-1)[None],
    )


def pack_shared(rows):
    """Rows of ids as one packed row in which a beginning that several share stands once -> (ids, pos, doc (1, T) int64, before, where).

    A row is a document of the tokens in which it differs from the row before it, in lexicographic order; before: numbers of the tokens that stand before
    each document; where: (len(row),) numbers of the tokens of each row. So T is the number of nodes of the rows' trie.
    Example: [[5, 6, 7], [5, 6, 8]] -> ids [[5, 6, 7, 8]], pos [[0, 1, 2, 2]], doc [[0, 0, 0, 1]], before [[], [0, 1]], where [[0, 1, 2], [0, 1, 3]]
    """
    ids, pos, doc, before, where, last, path = (
        [],
        [],
        [],
        [],
        [None] * len(rows),
        np.zeros(0, np.int64),
        np.zeros(0, np.int64),
    )
    for n in sorted(range(len(rows)), key=lambda n: rows[n]):
        row = np.array(rows[n])
        m = common(last, row)
        path = path[:m]  # numbers of the tokens that it shares
        if m < len(row):  # else it is the same row again
            doc += [len(before)] * (len(row) - m)
            before.append(torch.from_numpy(path))
            path = np.concatenate([path, np.arange(len(ids), len(ids) + len(row) - m)])
            ids += rows[n][m:]
            pos += range(m, len(row))
        where[n], last = path, row
    return (
        *(torch.tensor(x)[None] for x in (ids, pos, doc)),
        before,
        [torch.from_numpy(w) for w in where],
    )


def tree_parts(rows, most):
    """Deal rows out to parts whose trees have at most so many tokens (or that are a single row), those with equal beginnings together -> lists of indices."""
    parts, last, room = [], np.zeros(0, np.int64), 0
    for n in sorted(range(len(rows)), key=lambda n: rows[n]):
        row = np.array(rows[n])
        new = len(row) - common(last, row)
        if not parts or new > room:
            parts.append([])
            new, room = len(row), max(most, len(row))
        parts[-1].append(n)
        room, last = room - new, row
    return parts


def common(a, b):
    """How many tokens two rows (numpy arrays) begin with alike.   Example: [5, 6, 7], [5, 6, 8] -> 2"""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


def hidden_before(model, rows, row, position, amp=False):
    """Run rows, shared prefixes once -> (states (T, D), node (M,)): states[node[m]] predicts the token
    at position[m] of rows[row[m]]. rows: lists of ids; row, position: (M,) ints."""
    ids, pos, doc, before, where = pack_shared(rows)  # (1, T)
    start = np.cumsum([0] + [len(w) for w in where])
    node = torch.cat(where)[start[row] + position - 1].to(model.device)  # (M,)
    ids, pos, doc = (x.to(model.device) for x in (ids, pos, doc))
    with torch.autocast(model.device.type, torch.bfloat16, enabled=amp):
        return model(ids, pos, doc, before=before)[0], node


def micro_batches(docs, kinds, most):
    """Deal documents out to as few parts as have at most `most` tokens each (or a single document) -> [(docs, kinds), ...].

    Dealt longest first, like cards, the parts differ by less than the longest document.   Example: lengths 5, 4, 2, 1, most 8 -> 5 + 2, 4 + 1
    """
    order = sorted(range(len(docs)), key=lambda i: -len(docs[i]))
    n = min(len(docs), -(-sum(map(len, docs)) // most))
    while (
        n < len(docs) and sum(len(docs[i]) for i in order[::n]) > most
    ):  # the first part is the largest
        n += 1
    return [([docs[i] for i in order[k::n]], [kinds[i] for i in order[k::n]]) for k in range(n)]
