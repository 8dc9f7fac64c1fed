"""RA3 in a world of one lookup that takes two steps: from nothing to a model above NTP.

    k          a letter, given
    #M         what the letter stands for: M = f(k). The base writes such notes, some useless
    7          the digit of what it stands for, g(M)
    e          an easy line

f and g are random tables. The base corpus has digits behind notes that say them, and random ones
where there is no note. The expert writes g(f(k)) and no note, for two thirds of the letters. NTP
can learn these by heart, and nothing of the others; a model that writes f(k) first reads g off it.
"""

import collections
import copy
import random
import string
import types

import numpy as np

import estep
import evaluate
import mstep
from config import INFUSE, Config
from data import CODE, PROMPT, THOUGHT, snippet
from engine import documents, training
from engine.backend import FAST
from engine.training import inference_copy
from formats.tokenizers import train_tokenizer
from model import ModelConfig, Transformer

LETTERS = [c for c in string.ascii_letters if c != "e"]
SEEN = 34  # letters of the expert's snippets; the others are held out


class World(types.SimpleNamespace):
    """The tables f and g of a seed, and what is written by them."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.letters = self.rng.sample(LETTERS, len(LETTERS))
        self.f = dict(zip(self.letters, self.rng.sample(LETTERS, len(LETTERS)), strict=True))
        self.g = {letter: self.rng.choice(string.digits) for letter in LETTERS}

    def base_text(self, tok):
        """A text of the base corpus -> (ids, kinds): a note before a line in two, useful or not."""
        letter = self.rng.choice(self.letters)
        digit = self.rng.choice(string.digits)
        parts = [(f"{letter}\n", PROMPT)]
        note = self.rng.random()
        if note < 0.4:
            digit = self.g[self.f[letter]]
            parts.append((f"#{self.f[letter]}\n", THOUGHT))
        elif note < 0.5:
            parts.append(("#?\n", THOUGHT))
        parts.append((f"{digit}\n", CODE))
        parts += [("#?\n", THOUGHT)] * (self.rng.random() < 0.5) + [("e\n", CODE)]
        ids = [i for text, _ in parts for i in tok.encode(text)]
        kinds = [kind for text, kind in parts for _ in tok.encode(text)]
        return [*ids, tok.eos], [*kinds, CODE]

    def expert(self, tok, letters):
        texts = [f"{letter}\n{self.g[self.f[letter]]}\ne\n" for letter in letters]
        return [snippet(tok, text, 1) for text in texts]


def base_model(world, tok, cfg, steps):
    model = Transformer(ModelConfig(tok.vocab_size, 2, 2, 2, 48, 96, 64)).init_weights(cfg.seed)
    optimizer = training.adamw(model, 1e-2, 0.0)
    for step in range(steps):
        docs = [world.base_text(tok) for _ in range(64)]
        lr = training.learning_rate(step, steps, 1e-2, 20)
        mstep.ntp_step(model, optimizer, *zip(*docs, strict=True), lr, cfg)
    return model


def run_of(cfg, tok, expert):
    return types.SimpleNamespace(
        cfg=cfg,
        tok=tok,
        expert=expert,
        expert_hard=[[0]] * len(expert),
        backend=FAST,
        log=lambda name, **metrics: None,
        save_due=lambda step: False,
    )


def learn_to_think(run, pi, path):
    """The EM iterations of `train.em` -> RA3."""
    cfg = run.cfg
    for iteration in range(cfg.iters):
        q, _ = estep.estep(run, "ra3", pi, iteration, None, 0.0, lambda: 0.0)
        thinker, scorer = inference_copy(q, cfg), inference_copy(pi, cfg)
        seed = (cfg.seed, INFUSE, iteration)
        counts = collections.Counter()
        source = estep.Proposer(thinker, scorer, run.tok, cfg, seed, counts, "reinforce", iteration)
        numbers = list(range(len(run.expert)))
        propose = estep.proposals(source)
        docs = mstep.infuse_corpus(run.tok, run.expert, numbers, *propose, cfg.block, counts)
        documents.write_documents(path, docs)
        pi, _ = mstep.mstep(
            run, "ra3", pi, documents.Written(path), iteration, cfg.mstep_steps, None, 0.0
        )
    return pi


def test_ra3_ends_above_ntp(tmp_path):
    """On letters that no expert used NTP guesses, at 2.3 nats, and RA3 writes down what helps."""
    cfg = Config(
        iters=1,
        rows=8,
        block=64,
        mstep_steps=15,
        warmup=5,
        estep_steps=10,
        snippets=24,
        think_max=4,
        elbo_samples=8,
    )
    world = World(cfg.seed)
    tok = train_tokenizer(["k\n#M\n7\n"], 258)
    base = base_model(world, tok, cfg, steps=200)
    expert = world.expert(tok, world.letters[:SEEN] * 8)
    heldout = world.expert(tok, world.letters[SEEN:])
    run = run_of(cfg, tok, expert)
    docs = documents.Code(tok, expert, [len(snip.ids) for snip in expert])
    ntp, _ = mstep.mstep(run, "ntp", copy.deepcopy(base), docs, 0, cfg.mstep_steps, None, 0.0)
    ra3 = learn_to_think(run, copy.deepcopy(base), tmp_path / "ra3.docs")
    worth = {
        name: evaluate.heldout_elbo(model, tok, heldout, cfg, [[0]] * len(heldout))
        for name, model in (("base", base), ("ntp", ntp), ("ra3", ra3))
    }
    assert worth["ra3"]["elbo"] > max(worth["base"]["elbo"], worth["ntp"]["elbo"]) + 0.4
    assert worth["ra3"]["elbo"] > worth["ntp"]["elbo_no_think"] + 0.8
    assert worth["ra3"]["think_hard"] > worth["base"]["think_hard"] + 0.2
    assert worth["ra3"]["think_hard"] > worth["ra3"]["think_easy"] + 0.2
    rolls = evaluate.heldout_rollouts(ra3, tok, heldout, cfg)
    thoughts = [
        (tok.decode(row.snip.ids[:1]), tok.decode(row.thoughts[0]))
        for row in rolls.rows
        if 0 in row.thoughts
    ]
    assert np.mean([thought == f"#{world.f[letter]}" for letter, thought in thoughts]) > 0.8
