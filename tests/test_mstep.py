"""The M-step: packing, the loss on packed rows, infusion, and what is left out of it."""
import dataclasses

import pytest
import torch

import config
import mstep
import tasks
from data import CODE, PROMPT, THOUGHT, batch_rows, canonical, infuse, pack, snippet
from rollouts import rollout
from test_estep import thinker

torch.set_num_threads(1)
SEED = (5, 1)


@pytest.fixture(scope="module")
def snips(tok):
    found = [tasks.expert_task(0, i, "train") for i in range(6)]
    return [snippet(tok, t.prompt + t.solution, len(t.prompt)) for t in found]


@pytest.fixture(scope="module")
def model(tok):
    m = thinker(tok, 3)
    m.cfg = dataclasses.replace(m.cfg, max_len=4096)
    return m


def settings(**given):
    return config.make(**{"group": 3, "think_max": 6, "block": 1000, "c": 0.05, **given})


def empty():
    return {"think": 0, "lines": 0, "thought_tokens": 0, "not_canonical": 0, "cut": 0}


# ---------------------------------------------------------------- batches

@pytest.mark.parametrize("rows", [1, 2])
def test_an_epoch_is_every_document_once(rows):
    """The documents in the batches of each epoch against the list of documents; each epoch has an order of its own. With two rows a
    step the row that fills no batch is missing. Many short-lived lists, because one may lie in memory where another lay."""
    for n in range(1, 12):
        docs = [[100 * n + i] * (3 + i * n % 7) for i in range(20)]                          # a document is one token, repeated
        steps = len(pack(docs, 16)) // rows
        epochs = []
        for e in range(3):
            batches = [mstep.packed_batch(docs, None, rows, 16, 0, SEED, s)[0] for s in range(e * steps, (e + 1) * steps)]
            epochs.append([t for ids in batches for t in ids.flatten().tolist() if t])
            assert all(epochs[-1].count(d[0]) in ((len(d),) if rows == 1 else (0, len(d))) for d in docs)
            assert len(set(epochs[-1])) >= len(docs) - (rows - 1) * 5
        assert epochs[0] != epochs[1] != epochs[2]
        docs = None                                          # the next list may take its place in memory


def test_batches_are_a_function_of_seed_and_step():
    """A step asked for alone, from equal documents elsewhere in memory, against the same step after all before it."""
    docs = [[i] * (3 + i % 5) for i in range(30)]
    kinds = [[PROMPT] + [CODE] * (len(d) - 1) for d in docs]
    there = [mstep.packed_batch(docs, kinds, 2, 16, 0, SEED, s) for s in range(20)]
    for s in (17, 3, 11):
        again = mstep.packed_batch([list(d) for d in docs], [list(k) for k in kinds], 2, 16, 0, SEED, s)
        assert all(torch.equal(a, b) for a, b in zip(there[s], again))
    other = mstep.packed_batch(docs, kinds, 2, 16, 0, (5, 2), 0)
    assert not torch.equal(there[0][0], other[0])


# ---------------------------------------------------------------- the loss

def by_hand(model, ids, kinds):
    """-log p of each token that is not given, from a plain softmax over one document alone."""
    logp = (model(torch.tensor([ids]))[0] @ model.head_weight.T).log_softmax(-1)             # (T, V)
    return torch.stack([-logp[j - 1, ids[j]] for j in range(1, len(ids)) if kinds[j] != PROMPT])


@torch.no_grad()
def test_loss_of_packed_rows(tok, snips, model):
    """Packed rows against one document at a time: token by token, in the mean, whatever the padding is. The end of text is predicted,
    what is given is not."""
    pairs = [infuse(s, {1: tok.encode(" # note"), 3: tok.encode(" # x y")}) for s in snips[:4]]
    docs, kinds = [p[0] for p in pairs], [p[1] for p in pairs]
    rows = [[0, 2], [3], [1]]
    want = [by_hand(model, docs[i], kinds[i]) for row in rows for i in row]
    length = max(sum(len(docs[i]) for i in row) for row in rows)
    for extra, pad in ((0, tok.eos), (9, tok.eos), (9, 5)):
        loss, kind = mstep.ntp_loss(model, *batch_rows(docs, kinds, rows, length + extra, pad))
        assert loss.shape == torch.cat(want).shape and (loss - torch.cat(want)).abs().max() < 1e-4
        assert abs(loss.mean() - torch.cat(want).mean()) < 1e-5
    assert kind.tolist() == [k for row in rows for i in row for k in kinds[i] if k != PROMPT]
    assert docs[0][-1] == tok.eos and kinds[0][-1] == CODE                                   # the last of `want[0]` is the end of text


def test_a_step_reports_its_loss(tok, snips, model):
    """The metrics of a step against the loss computed beforehand, split by kind; the weights move."""
    m = thinker(tok, 4)
    docs, kinds = zip(*[infuse(s, {1: tok.encode(" # note")}) for s in snips[:2]])
    batch = batch_rows(docs, kinds, [[0], [1]], 300, tok.eos)
    loss, kind = mstep.ntp_loss(m, *batch)
    before = m.embed.weight.clone()
    said = mstep.ntp_step(m, mstep.adamw(m, 1e-3, 0.1), batch, 1e-3, settings(bf16=False))
    assert said["loss"] == pytest.approx(loss.mean().item(), abs=1e-5)
    assert said["ce_thought"] == pytest.approx(loss[kind == THOUGHT].mean().item(), abs=1e-5)
    assert said["ce_code"] == pytest.approx(loss[kind == CODE].mean().item(), abs=1e-5)
    assert said["tokens"] == sum(map(len, docs)) and not torch.equal(before, m.embed.weight)


def test_learning_rate():
    """Warm-up, plateau and decay against numbers worked by hand; it is never 0, and at its end nearly so."""
    rates = [mstep.learning_rate(s, 100, 2.0, 10) for s in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == rates[10] == rates[60] == 2.0
    assert rates[80] == pytest.approx(1.0) and rates[99] == pytest.approx(0.05)
    assert min(rates) > 0 and mstep.learning_rate(0, 1, 2.0, 0) == 2.0


# ---------------------------------------------------------------- infusion

def test_write_leaves_out_what_is_not_canonical(tok, snips):
    """A thought whose ids are not those of its text (spelled in bytes) goes, the good one beside it stays; without its thoughts the
    document is the expert's."""
    good, bad, stats = tok.encode(" # note"), tok.encode(" #") + list(b" for x in"), empty()
    assert tok.decode(bad) == " # for x in" and tok.encode(" # for x in") != bad
    ids, kinds = mstep.write(tok, snips[0], {1: bad, 2: good}, 1000, stats)
    assert (ids, kinds) == infuse(snips[0], {2: good}) and canonical(tok, ids)
    assert [i for i, k in zip(ids, kinds) if k != THOUGHT] == snips[0].ids
    assert stats == {"think": 1, "lines": len(snips[0].first), "thought_tokens": len(good), "not_canonical": 1, "cut": 0}


def test_write_leaves_out_what_does_not_fit(tok, snips):
    """The last thoughts go until the document fits its row: one token too many costs one thought, no room at all costs both."""
    thoughts = {1: tok.encode(" # one"), 2: tok.encode(" # two")}
    full = len(infuse(snips[0], thoughts)[0])
    for block, kept in ((full, [1, 2]), (full - 1, [1]), (len(snips[0].ids), [])):
        stats = empty()
        ids, kinds = mstep.write(tok, snips[0], dict(thoughts), block, stats)
        assert (ids, kinds) == infuse(snips[0], {t: thoughts[t] for t in kept})
        assert stats["cut"] == 2 - len(kept) and stats["think"] == len(kept) and len(ids) <= block


def infused(model, tok, snips, cfg):
    return mstep.infuse_corpus(model, model, tok, snips, cfg, SEED, [10 + i for i in range(len(snips))], progress=False)


def rolled(model, tok, snips, cfg, n, rate=None):
    return rollout(model, model, tok, snips, n, cfg.think_max, SEED, rate=rate, numbers=[10 + i for i in range(len(snips))])


def test_infusion_without_selection(tok, snips, model):
    """estep=none against one rollout a snippet with the same seeds; the expert's ids are inside every document."""
    cfg = settings(estep="none")
    docs, kinds, stats = infused(model, tok, snips, cfg)
    count = empty()
    want = [mstep.write(tok, row.snip, row.thoughts, cfg.block, count) for row in rolled(model, tok, snips, cfg, 1).rows]
    assert list(zip(docs, kinds)) == want and {k: stats[k] for k in count} == count
    assert stats["think"] > 0 and all(canonical(tok, d) for d in docs)
    for snip, ids, kind in zip(snips, docs, kinds):
        assert [i for i, k in zip(ids, kind) if k != THOUGHT] == snip.ids


def test_infusion_at_random(tok, snips, model):
    """estep=random at rate 1 thinks before each line, at rate 0 never."""
    docs, kinds, stats = infused(model, tok, snips, settings(estep="random", rate=1.0))
    lines = sum(len(s.first) for s in snips)
    assert stats["lines"] == stats["think"] + stats["not_canonical"] == lines and stats["think"] > lines / 4
    assert infused(model, tok, snips, settings(estep="random", rate=0.0))[0] == [s.ids for s in snips]


@pytest.mark.parametrize("c", [0.05, 3.0])
def test_best_of_n(tok, snips, model, c):
    """The rollout that best-of-n writes has the largest sum_t r_t of its group, by the rewards of the same rollouts drawn again."""
    cfg = settings(estep="best-of-n", c=c)
    docs = infused(model, tok, snips, cfg)[0]
    rows, unlike = rolled(model, tok, snips, cfg, 3).rows, 0
    for b, doc in enumerate(docs):
        group = rows[3 * b:3 * b + 3]
        r = [sum(row.line_logp[t] - c * (t in row.thoughts) for t in range(len(row.first))) for row in group]
        best = group[max(range(3), key=lambda g: r[g])]
        assert doc == mstep.write(tok, snips[b], best.thoughts, cfg.block, empty())[0]
        unlike += len({str(row.thoughts) for row in group}) > 1
    assert unlike >= 3                                       # there was something to choose from


def test_infinite_c_infuses_nothing(tok, snips, model):
    """At c = inf the documents are the expert's own, whatever the E-step, and no model is asked."""
    for estep in ("reinforce", "best-of-n", "none", "random"):
        docs, kinds, stats = infused(None, tok, snips, settings(estep=estep, c=float("inf")))
        assert docs == [s.ids for s in snips] and stats["think"] == stats["forward_tokens"] == 0
        assert kinds == [[PROMPT] * s.prompt + [CODE] * (len(s.ids) - s.prompt) for s in snips]
