"""The M-step: packing, the loss on packed rows, infusion, and what is left out of it."""

import collections
import copy
import dataclasses
import functools
import os
import random
import textwrap

import numpy as np
import pytest
import torch

import config
import domain
import estep
import mstep
from config import UserError, seed_of
from corpus import prepare, store
from data import CODE, PROMPT, THOUGHT, canonical, infuse, snippet
from engine import documents, packing, training
from engine.gradients import ntp_loss
from engine.machine import graphs
from engine.packing import pack
from engine.rollouts import rollout
from worlds import infused, thinker

torch.set_num_threads(1)
SEED = (5, 1)


@pytest.fixture(scope="module")
def snips(tok):
    found = [domain.expert_task(0, i, "train") for i in range(6)]
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


@pytest.mark.parametrize("size", [9, 16, 40, 1000])
def test_an_epoch_is_every_document_once(size):
    """The documents of consecutive steps, cut into epochs: each is every document once, in an order
    of its own, and no step is empty. A step has `size` tokens give or take a document, and on
    average exactly; more than an epoch if need be.
    """
    for n in range(1, 12):
        docs = [[0] * (1 + i * n % 9) for i in range(20)]
        lengths, total = [len(d) for d in docs], sum(map(len, docs))
        steps = [*map(documents.step_documents(lengths, size, SEED), range(6 * total // size + 2))]
        stream = sum(steps, [])
        epochs = [stream[20 * e : 20 * e + 20] for e in range(len(stream) // 20)]
        assert (
            len(epochs) >= 5
            and all(sorted(e) == list(range(20)) for e in epochs)
            and len({tuple(e) for e in epochs}) == len(epochs)
        )
        begun = 0
        for k, some in enumerate(steps):
            assert some and abs(sum(lengths[i] for i in some) - size) < 9
            begun += sum(lengths[i] for i in some)
            assert abs(begun - (k + 1) * size) < 9


def test_steps_are_a_function_of_seed_and_step():
    """A step asked for alone, or in any order, against the same step after all before it, and
    against the definition; another seed gives another.
    """
    lengths = [3 + i % 5 for i in range(30)]
    for size in (32, 400):  # 4.7 steps an epoch; 2.7 epochs a step
        there = [*map(documents.step_documents(lengths, size, SEED), range(20))]
        again = documents.step_documents(np.array(lengths, np.uint32), size, SEED)
        assert all(
            again(s) == there[s] == documents.step_documents(lengths, size, SEED)(s)
            for s in (17, 3, 11)
        )
        assert documents.step_documents(lengths, size, (5, 2))(0) != there[0]
        stream = [
            i
            for epoch in range(60)
            for i in np.random.default_rng(seed_of(*SEED, epoch)).permutation(30).tolist()
        ]
        begin, want = 0, [[] for _ in range(20)]
        for i in stream:
            if begin // size < 20:
                want[begin // size].append(i)
            begin += lengths[i]
        assert there == want and begin > 20 * size


def test_micro_batches():
    """Every document with its kinds once; no part beyond the limit but a single document; parts
    alike; one part where all fits; the docstring's example.
    """
    rng = random.Random(0)
    for most in (1, 20, 64, 300, 10**6):
        for n in (0, 1, 7, 50):
            docs = [[i] * rng.randint(1, 40) for i in range(n)]
            parts = packing.micro_batches(docs, [[-i for i in d] for d in docs], most)
            assert sorted(d for some, _ in parts for d in some) == docs and all(
                k == [[-i for i in d] for d in some] for some, k in parts
            )
            sizes = [sum(map(len, some)) for some, _ in parts]
            assert all(
                size <= most or len(some) == 1
                for size, (some, _) in zip(sizes, parts, strict=False)
            ) and (n == 0 or max(sizes) - min(sizes) <= 40)
            assert len(parts) <= max(1, 3 * sum(sizes) / most, n if most < 40 else 0)
    docs = [[0] * n for n in (1, 2, 5, 4)]
    assert [[len(d) for d in some] for some, _ in packing.micro_batches(docs, docs, 8)] == [
        [5, 2],
        [4, 1],
    ]


def test_documents_on_disk(tok, snips, tmp_path):
    """Written and read again, as they were, ids beyond 16 bits too; code as documents is what
    infusing nothing gives. Nothing that is there is half there.
    """
    docs = [(d, k) for d, k in zip(*infused_docs(tok, snips), strict=False)] + [
        ([2**30 - 1, 0, 70_000], [PROMPT, CODE, THOUGHT]),
        ([5], [CODE]),
    ]
    path = tmp_path / "ra3.docs"
    documents.write_documents(path, (pair for pair in docs))
    read = documents.Written(path)
    assert (
        [read[i] for i in range(len(read))] == docs
        and read.lengths.tolist() == [len(d) for d, _ in docs]
        and os.listdir(tmp_path) == ["ra3.docs"]
    )
    assert isinstance(read.words, np.memmap)
    code = documents.Code(tok, snips, store.snippet_sizes(snips)[0])
    assert [code[i] for i in range(len(code))] == [
        infuse(tok, s, {}) for s in snips
    ] and code.lengths.tolist() == [len(s.ids) for s in snips]

    def killed():
        yield docs[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        documents.write_documents(path, killed())
    assert len(documents.Written(path)) == len(docs)
    for content in (None, b""):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(
            UserError,
            match="ra3.docs: expected the documents of an unfinished M-step, found none; "
            "leave out --resume",
        ):
            documents.Written(path)


def test_a_corpus_is_read_as_it_is_needed(tok, tmp_path, monkeypatch):
    """Code on a part of a prepared corpus against the snippets of that part; a step reads its own
    documents and no other.
    """
    whole = prepare.prepare_corpus(
        textwrap.__file__, tok, 2048, near=0, cache=tmp_path, progress=False, cores=1
    )
    numbers = np.random.default_rng(0).permutation(len(whole))[:-2]
    some = store.take(whole, numbers)
    code = documents.Code(tok, some, store.snippet_sizes(some)[0])
    assert len(code) == len(numbers) > 3 and [code[i] for i in range(len(code))] == [
        infuse(tok, whole[n], {}) for n in numbers
    ]
    assert code.lengths.tolist() == [len(s.ids) for s in store.take([*whole], numbers)]
    read, one = [], store.Corpus.__getitem__
    monkeypatch.setattr(
        store.Corpus, "__getitem__", lambda self, i: (read.append(i), one(self, i))[1]
    )
    of_step = documents.step_documents(
        documents.Code(tok, some, store.snippet_sizes(some)[0]).lengths, 100, SEED
    )
    assert (
        read == []
        and len([code[i] for i in of_step(1)]) == len(read) < len(code)
        and read == of_step(1)
    )


# ---------------------------------------------------------------- the loss


def by_hand(model, ids, kinds):
    """-log p of each token that is not given, from a plain softmax over one document alone."""
    logp = (model(torch.tensor([ids]))[0] @ model.head_weight.T).log_softmax(-1)  # (T, V)
    return torch.stack([-logp[j - 1, ids[j]] for j in range(1, len(ids)) if kinds[j] != PROMPT])


def infused_docs(tok, snips):
    return zip(
        *[infuse(tok, s, {1: tok.encode(" # note"), 3: tok.encode(" # x y")}) for s in snips],
        strict=False,
    )


@torch.no_grad()
def test_loss_of_packed_rows(tok, snips, model):
    """A packed row against one document at a time: token by token, whatever the padding is.

    The end of text is predicted, what is given is not.
    """
    docs, kinds = infused_docs(tok, snips[:4])
    want = torch.cat([by_hand(model, d, k) for d, k in zip(docs, kinds, strict=False)])
    for multiple in (1, 100):
        loss, kind = ntp_loss(model, *pack(docs, kinds, multiple))
        assert loss.shape == want.shape and (loss - want).abs().max() < 1e-4
    assert kind.tolist() == [k for kind in kinds for k in kind if k != PROMPT]
    assert (
        docs[0][-1] == tok.eos and kinds[0][-1] == CODE
    )  # the last of its tokens is the end of text


def test_any_size_of_micro_batch_gives_the_same_step(tok, snips):
    """The gradient of a step, before clipping, in micro-batches of every size, against that of the
    mean over one document at a time; metrics too.
    """
    docs, kinds = infused_docs(tok, snips)
    alone = thinker(tok, 4)
    torch.cat([by_hand(alone, d, k) for d, k in zip(docs, kinds, strict=False)]).mean().backward()
    norm = torch.stack([p.grad.norm() for p in alone.parameters()]).norm()
    said, parts, total = [], [], sum(map(len, docs))
    for most in (1, total * 2 // 5, total * 2 // 3, total):
        m, found = thinker(tok, 4), []
        opt = torch.optim.SGD(m.parameters())

        def keep(*_, found=found, m=m):
            found.extend(p.grad.clone() for p in m.parameters())

        opt.register_step_pre_hook(keep)
        said.append(
            mstep.ntp_step(
                m, opt, docs, kinds, 1e-3, settings(bf16=False, micro_tokens=most, grad_clip=1e9)
            )
        )
        assert all(
            (a - p.grad).abs().max() < 1e-5 * norm
            for a, p in zip(found, alone.parameters(), strict=False)
        )
        parts.append(len(packing.micro_batches(docs, kinds, most)))
    assert (
        parts == sorted(parts, reverse=True)
        and parts[0] == len(docs)
        and parts[-1] == 1
        and len(set(parts)) == 4
    )
    assert all(s == pytest.approx(said[0], rel=1e-4) for s in said) and said[0][
        "grad_norm"
    ] == pytest.approx(float(norm), rel=1e-4)


def test_a_step_reports_its_loss(tok, snips, model):
    """The metrics of a step against the loss computed before, split by kind; the weights move."""
    m = thinker(tok, 4)
    docs, kinds = infused_docs(tok, snips[:2])
    loss, kind = ntp_loss(m, *pack(docs, kinds))
    before = m.embed.weight.clone()
    said = mstep.ntp_step(m, training.adamw(m, 1e-3, 0.1), docs, kinds, 1e-3, settings(bf16=False))
    assert said["loss"] == pytest.approx(loss.mean().item(), abs=1e-5)
    assert said["ce_thought"] == pytest.approx(loss[kind == THOUGHT].mean().item(), abs=1e-5)
    assert said["ce_code"] == pytest.approx(loss[kind == CODE].mean().item(), abs=1e-5)
    assert said["tokens"] == sum(map(len, docs)) and not torch.equal(before, m.embed.weight)


def test_compiled_steps(tok, snips, monkeypatch):
    """Blocks compiled (by a back end that needs no C++ compiler): the losses of uncompiled steps,
    and no new graph after the first step, whatever documents come; a copy is not compiled. What
    samples on a cache is not compiled either.
    """
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        functools.partialmethod(torch.nn.Module.compile, backend="aot_eager"),
    )
    docs, kinds = infused_docs(tok, snips)
    steps, losses, made = [(0, 2, 3), (1, 4), (5, 3, 2, 0), (2,), (0, 1, 2, 3, 4, 5)], [], []
    for how in ("false", "true"):
        cfg = settings(bf16=False, compile=how)
        m, opt = training.prepare_training(
            thinker(tok, 4), cfg, lambda m: training.adamw(m, 1e-3, 0.1)
        )
        said = [
            mstep.ntp_step(m, opt, [docs[i] for i in some], [kinds[i] for i in some], 1e-3, cfg)
            for some in steps
        ]
        losses.append([s["loss"] for s in said])
        made.append([s["graphs"] for s in said])
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert (
        made[0][0] == made[0][-1] < made[1][0]
        and made[1][1:] == [made[1][1]] * 4
        and made[1][1] - made[0][0] <= 4
    ), made
    before = graphs()
    with torch.no_grad():
        m(
            torch.tensor([docs[0]]),
            pos=torch.arange(len(docs[0]))[None],
            cache=m.new_cache(1, len(docs[0])),
        )
        copy.deepcopy(m)(torch.tensor([docs[1]]))
    assert graphs() == before


def test_learning_rate():
    """Warm-up, plateau and decay against numbers worked by hand; it is never 0, and at its end
    nearly so.
    """
    rates = [training.learning_rate(s, 100, 2.0, 10) for s in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == rates[10] == rates[60] == 2.0
    assert rates[80] == pytest.approx(1.0) and rates[99] == pytest.approx(0.05)
    assert min(rates) > 0 and training.learning_rate(0, 1, 2.0, 0) == 2.0


# ---------------------------------------------------------------- infusion


def test_write_leaves_out_what_is_not_canonical(tok, snips):
    """A thought whose ids are not those of its text (spelled in bytes) goes, the good one beside it
    stays; without its thoughts the document is the expert's.
    """
    good, bad, stats = tok.encode(" # note"), tok.encode(" #") + list(b" for x in"), empty()
    assert tok.decode(bad) == " # for x in" and tok.encode(" # for x in") != bad
    ids, kinds = mstep.write(tok, snips[0], {1: bad, 2: good}, 1000, stats)
    assert (ids, kinds) == infuse(tok, snips[0], {2: good}) and canonical(tok, ids)
    assert [i for i, k in zip(ids, kinds, strict=False) if k != THOUGHT] == snips[0].ids
    assert stats == {
        "think": 1,
        "lines": len(snips[0].first),
        "thought_tokens": len(good),
        "not_canonical": 1,
        "cut": 0,
    }


def test_write_leaves_out_what_does_not_fit(tok, snips):
    """The last thoughts go until the document fits its row: one token too many costs one thought,
    no room at all costs both.
    """
    thoughts = {1: tok.encode(" # one"), 2: tok.encode(" # two")}
    full = len(infuse(tok, snips[0], thoughts)[0])
    for block, kept in ((full, [1, 2]), (full - 1, [1]), (len(snips[0].ids), [])):
        stats = empty()
        ids, kinds = mstep.write(tok, snips[0], dict(thoughts), block, stats)
        assert (ids, kinds) == infuse(tok, snips[0], {t: thoughts[t] for t in kept})
        assert stats["cut"] == 2 - len(kept) and stats["think"] == len(kept) and len(ids) <= block


def documents_of(model, tok, snips, cfg):
    stats = collections.Counter()
    docs, kinds = zip(
        *infused(model, tok, snips, cfg, SEED, [10 + i for i in range(len(snips))], stats),
        strict=False,
    )
    return list(docs), list(kinds), stats


def rolled(model, tok, snips, cfg, n, rate=None):
    return rollout(
        model,
        model,
        tok,
        snips,
        n,
        cfg.think_max,
        SEED,
        rate=rate,
        numbers=[10 + i for i in range(len(snips))],
    )


def test_infusion_without_selection(tok, snips, model):
    """estep=none against one rollout a snippet with the same seeds; the expert's ids are inside
    every document.
    """
    cfg = settings(estep="none")
    docs, kinds, stats = documents_of(model, tok, snips, cfg)
    count = empty()
    want = [
        mstep.write(tok, row.snip, row.thoughts, cfg.block, count)
        for row in rolled(model, tok, snips, cfg, 1).rows
    ]
    assert list(zip(docs, kinds, strict=False)) == want and {k: stats[k] for k in count} == count
    assert stats["think"] > 0 and all(canonical(tok, d) for d in docs)
    for snip, ids, kind in zip(snips, docs, kinds, strict=False):
        assert [i for i, k in zip(ids, kind, strict=False) if k != THOUGHT] == snip.ids


def test_infusion_at_random(tok, snips, model):
    """estep=random at rate 1 thinks before each line, at rate 0 never."""
    docs, kinds, stats = documents_of(model, tok, snips, settings(estep="random", rate=1.0))
    lines = sum(len(s.first) for s in snips)
    assert (
        stats["lines"] == stats["think"] + stats["not_canonical"] == lines
        and stats["think"] > lines / 4
    )
    assert documents_of(model, tok, snips, settings(estep="random", rate=0.0))[0] == [
        s.ids for s in snips
    ]


@pytest.mark.parametrize("c", [0.05, 3.0])
def test_best_of_n(tok, snips, model, c):
    """The rollout that best-of-n writes has the largest sum_t r_t of its group, by the rewards of
    the same rollouts drawn again.
    """
    cfg = settings(estep="best-of-n", best_of=3, c=c, choose_by="snippet")
    docs = documents_of(model, tok, snips, cfg)[0]
    rows, unlike = rolled(model, tok, snips, cfg, 3).rows, 0
    for b, doc in enumerate(docs):
        group = rows[3 * b : 3 * b + 3]
        r = [
            sum(row.line_logp[t] - c * (t in row.thoughts) for t in range(len(row.first)))
            for row in group
        ]
        best = group[max(range(3), key=lambda g: r[g])]
        assert doc == mstep.write(tok, snips[b], best.thoughts, cfg.block, empty())[0]
        unlike += len({str(row.thoughts) for row in group}) > 1
    assert unlike >= 3  # there was something to choose from


@pytest.mark.parametrize("c", [0.05, 1.0])
def test_best_of_n_by_line(tok, snips, model, c):
    """Before each line the latent with the largest gain less c, 0 for <act>, by the definition."""
    cfg = settings(estep="best-of-n", best_of=3, c=c, choose_by="line")
    docs = documents_of(model, tok, snips, cfg)[0]
    rows = rolled(model, tok, snips, cfg, 3).rows
    mixed = 0
    for b, doc in enumerate(docs):
        group = [row.thoughts for row in rows[3 * b : 3 * b + 3]]
        gain = [estep.gains(model, tok, snips[b], thoughts) for thoughts in group]
        thoughts = {}
        for t in range(len(snips[b].first)):
            delta = [z[t] - c if t in z else 0.0 for z in gain]
            best = group[max(range(3), key=lambda g: delta[g])]
            thoughts |= {t: best[t]} if t in best else {}
        assert doc == mstep.write(tok, snips[b], thoughts, cfg.block, empty())[0]
        mixed += thoughts not in group
    assert mixed  # what no single rollout has


@pytest.mark.parametrize("choose_by", ["line", "snippet"])
def test_draws_are_in_proportion_to_exp_reward(tok, snips, model, monkeypatch, choose_by):
    """How often each of three rollouts is taken, of 600 draws: softmax of its reward."""
    cfg = settings(resample=3, c=0.3, choose_by=choose_by)
    rolls = rolled(model, tok, snips[:1], cfg, 3)
    for k, row in enumerate(rolls.rows):  # each thinks before line 1, and says its number
        row.thoughts = {1: tok.encode(f" # {k}")}
        row.gain = np.where(np.arange(len(row.first)) == 1, 0.7 * k, 0.0)
        row.line_logp = -np.ones(len(row.first)) + row.gain
    monkeypatch.setattr(estep, "rolled_out", lambda *arguments, **options: rolls)
    source = estep.Proposer(model, model, tok, cfg, SEED, collections.Counter(), "reinforce")
    drawn = [estep.resampled(source, snips[:1], [i])[0][1] for i in range(600)]
    share = [drawn.count(row.thoughts[1]) / 600 for row in rolls.rows]
    weights = np.exp([0.0, 0.7, 1.4])
    assert share == pytest.approx(weights / weights.sum(), abs=0.06)


def test_infinite_c_infuses_nothing(tok, snips, model):
    """At c = inf the documents are the expert's own, whatever the E-step, and no model is asked."""
    for way in ("reinforce", "best-of-n", "none", "random"):
        docs, kinds, stats = documents_of(None, tok, snips, settings(estep=way, c=float("inf")))
        assert docs == [s.ids for s in snips] and stats["think"] == stats["forward_tokens"] == 0
        assert kinds == [[PROMPT] * s.prompt + [CODE] * (len(s.ids) - s.prompt) for s in snips]
