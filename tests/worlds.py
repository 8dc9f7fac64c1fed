"""What several tests share: tiny worlds, small models, the slow ways, the smallest runs."""

import hashlib
import itertools
import json
import pathlib
import types

import numpy as np
import torch

import estep
import evaluate
import mstep
import rlvr
from config import estep_of
from data import Snippet
from engine.backend import FAST
from model import ModelConfig, Transformer

# ---------------------------------------------------------------- the enumerated world: five
# tokens, two lines, 11 latents a line

HASH, NEWLINE, V, THINK_MAX = (0, 4), 1, 5, 2
TOK = types.SimpleNamespace(thought_ids=list(HASH), stop_ids=[NEWLINE], closing_ids=[])
SNIP = Snippet(ids=[2, 3, 1, 3, 2, 1, 2, 3, 3], prompt=2, first=[3, 6], sep=[[NEWLINE], [NEWLINE]])
CONTENT_IDS = [i for i in range(V) if i != NEWLINE]
LATENTS = (
    [()] + [(h,) for h in HASH] + [(h, w) for h in HASH for w in CONTENT_IDS]
)  # () is <act>; Z of them


def tiny_model(seed):
    cfg = ModelConfig(
        vocab_size=V, n_layer=2, n_head=2, n_kv_head=1, d_model=16, d_ff=24, max_len=24
    )
    return Transformer(cfg).init_weights(seed).double()


def softmaxed(model, ids):
    """log p(next token), (T, V): row t is the distribution of token t + 1."""
    return (model(torch.tensor([ids]))[0] @ model.head_weight.T).log_softmax(-1)


def with_thoughts(z0, z1):
    """The snippet with latents z0, z1 written in -> ids, (begin, end) of each latent, (begin, end)
    of each line.
    """
    ids, latents, lines = SNIP.ids[:3], [], []
    for z, line in ((z0, SNIP.ids[3:6]), (z1, SNIP.ids[6:])):
        latents.append((len(ids), len(ids) + len(z)))
        ids = ids + list(z) + [NEWLINE] * bool(z)
        lines.append((len(ids), len(ids) + len(line)))
        ids = ids + line
    return ids, latents, lines


def log_pi(model):
    """log pi(a_t | s_t, z_t), summed by hand, of every latent sequence:

    (Z, Z, 2), indexed by z_0, z_1, t.
    """
    out = torch.zeros(len(LATENTS), len(LATENTS), 2, dtype=torch.float64)
    for (i, z0), (j, z1) in itertools.product(enumerate(LATENTS), repeat=2):
        ids, _, lines = with_thoughts(z0, z1)
        logp = softmaxed(model, ids).detach()
        for t, (a, b) in enumerate(lines):
            out[i, j, t] = (
                sum(logp[k - 1, ids[k]] for k in range(a, b))
                - (1 - logp[a - 1, list(HASH)].exp().sum()).log()
            )
    return out


def random_q(seed):
    """Logits of an arbitrary q: (Z,) of z_0 and (Z, Z) of z_1 given z_0."""
    gen = torch.Generator().manual_seed(seed)
    return [
        (2 * torch.randn(shape, generator=gen, dtype=torch.float64)).requires_grad_()
        for shape in ((len(LATENTS),), (len(LATENTS),) * 2)
    ]


# ---------------------------------------------------------------- a model that thinks, and its
# rollouts token by token


def thinker(tok, seed):
    """A random Transformer that thinks before about one line in three and ends a thought with about
    every fourth token. Coordinate 0 of the residual stream is the same for every token, so that
    column 0 of the head acts as a bias.
    """
    cfg = ModelConfig(
        vocab_size=tok.vocab_size,
        n_layer=2,
        n_head=4,
        n_kv_head=2,
        d_model=32,
        d_ff=48,
        max_len=512,
        tied=False,
    )
    model = Transformer(cfg).init_weights(seed)
    with torch.no_grad():
        for block in model.blocks:
            block.q.weight *= 5  # attend to some tokens, not to all alike
            block.o.weight[0] = block.down.weight[0] = 0
        model.embed.weight[:, 0] = 1.5
        model.head.weight[:, 0] = 0
        model.head.weight[tok.thought_ids, 0] = 2.5
        model.head.weight[tok.stop_ids, 0] = 2.2
    return model


@torch.no_grad()
def distributions(model, ids):
    """(T, V) float64: row t is the distribution of token t + 1."""
    return (model(torch.tensor([ids]))[0] @ model.head_weight.T).double().softmax(-1).numpy()


@torch.no_grad()
def next_token(model, ids):
    """The last row of `distributions`, (V,)."""
    return (model(torch.tensor([ids]))[0, -1] @ model.head_weight.T).double().softmax(-1).numpy()


def inverse_cdf(p, u):
    return int(np.flatnonzero(np.cumsum(p) > u * p.sum())[0])


def after(tok, snip, t, thought):
    """What stands between a thought and its line: a newline, unless the thought ends with one, and
    the indentation.
    """
    return snip.sep[t][tok.decode(thought).endswith("\n") :]


def score(pi, tok, snip, thoughts):
    """log pi(a_t | s_t, z_t) of all lines with these thoughts in the context: the line's tokens,
    the first given that it is no '#'.
    """
    ids, spans = list(snip.ids[: snip.first[0]]), []
    for t, (a, b) in enumerate(zip(snip.first, snip.first[1:] + [len(snip.ids)], strict=False)):
        ids += thoughts[t] + after(tok, snip, t, thoughts[t]) if t in thoughts else []
        spans.append((len(ids), len(ids) + b - a))
        ids += snip.ids[a:b]
    p = distributions(pi, ids)
    return np.array(
        [
            sum(np.log(p[k - 1, ids[k]]) for k in range(a, b))
            - np.log(1 - p[a - 1, tok.thought_ids].sum())
            for a, b in spans
        ]
    )


def sequential(q, tok, snip, uniforms, think_max, rate=None, horizon=0):
    """Sample the latents of one snippet, forwarding the whole prefix for every token -> ids,
    thoughts, log q of each event.
    """
    ids, thoughts, logq = list(snip.ids[: snip.first[0]]), {}, []
    for t, (a, b) in enumerate(zip(snip.first, snip.first[1:] + [len(snip.ids)], strict=False)):
        if not horizon or t < horizon:
            p = next_token(q, ids)
            begin = p[tok.thought_ids]
            if uniforms[0][t] < (begin.sum() if rate is None else rate):
                k = inverse_cdf(begin, uniforms[1][t, 0])
                thought = thoughts[t] = [tok.thought_ids[k]]
                logq.append(np.log(begin[k]))
                while len(thought) < think_max:
                    p = next_token(q, ids + thought)
                    token = inverse_cdf(p, uniforms[1][t, len(thought)])
                    if token in tok.stop_ids:
                        logq.append(np.log(p[tok.stop_ids].sum()))
                        break
                    logq.append(np.log(p[token]))
                    thought.append(token)
                    if "\n" in tok.decode([token]):
                        break
                ids += thought + after(tok, snip, t, thought)
            else:
                logq.append(np.log(1 - begin.sum()))
        ids += snip.ids[a:b]
    return ids, thoughts, logq


# ---------------------------------------------------------------- texts and thoughts

TEXT = '''@cache
def area(w, h=1):
    """Area of a box,

    in squares."""
    sizes = [w,
             h]

    if "#" in """x
  # not a comment""":
        total = 0; total += 1
    else:
        return None
    return w * h'''


ODD = [
    "",
    " ",
    "\n\n\n",
    "   ",
    "x   ",
    "\n    5",
    "a  5 b",
    " 's it's don't  'll",
    "x\t\t7 y\x0b",
    "é中文😀 ²½Ⅷ",
    "\xa0\u3000 a",
    "  12\n 3",
    "e\u0301",
    "a\r\n  b",
    "#" * 40,
    " " * 70 + "x",
    "ſ",
    "ǅa 1٣",
    "'S 'LL",
    "\u200b#",
    "def f(x):\n\treturn x\n",
    "#\n#",
    "a\x00b",
]


WORDS = (
    "the a next first count of sum list loop over each value key check if empty return result "
    "x y i n 10 () = [i] , . : -> don't é"
).split()


def some_thoughts(tok, snip, rng):
    """A random comment, as the tokenizer writes it at that place, before each line with probability
    1/2.
    """
    thoughts = []
    for sep in snip.sep:
        text = " ".join(rng.choices(WORDS, k=rng.randint(1, 8))).rstrip()
        blank = tok.encode("\n    #")[-1] in tok.encode(" #") and tok.decode(sep) != "\n"
        thoughts.append(
            tok.encode((" # " if blank else "# ") + text) if rng.random() < 0.5 else None
        )
    return thoughts


# ---------------------------------------------------------------- the smallest runs

HERE = pathlib.Path(__file__).resolve().parent.parent  # the project's folder
TINY = (
    "--threads 1 --device cpu --n-layer 1 --n-head 2 --d-model 32 --d-ff 64 --vocab-size 400 "
    "--max-len 4096 --pretrain-steps 60 --base-check false --pretrain-lr 1e-2 "
    "--exercises 0.15 --rows 2 --n-expert 24 --n-heldout 4 --iters 2 --estep reinforce "
    "--estep-steps 4 --estep-lr 1e-4 --snippets 4 --group 2 --think-max 6 --mstep-steps 6 "
    "--eval-tasks 2 --samples 5 --max-new 20 --report false --elbo-samples 2 "
    "--n-rl 20"
).split()


def metrics(out):
    """The lines of a run's metrics, without what a clock says, and what torch.compile has made in
    this process.
    """
    lines = [json.loads(line) for line in open(out / "metrics.jsonl")]
    return [
        {
            k: v
            for k, v in line.items()
            if k not in ("seconds", "tokens_per_s", "graphs") and not k.endswith("_s")
        }
        for line in lines
    ]


def weights(path):
    return torch.load(path, weights_only=True)["weights"]


def same_weights(a, b):
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def listing(folder):
    """What lies under a folder, with a checksum of each file."""
    return {
        str(p.relative_to(folder)): p.is_file() and hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
    }


class Stop(Exception):
    pass


# ---------------------------------------------------------------- infusion


def infused(model, tok, snippets, cfg, seed, numbers, stats, iteration=0):
    """The documents that estep.PROPOSALS[cfg.estep] makes, with the model as q and as pi."""
    way = estep_of(cfg, iteration)
    source = estep.Proposer(model, model, tok, cfg, seed, stats, way, iteration)
    return mstep.infuse_corpus(tok, snippets, numbers, *estep.proposals(source), cfg.block, stats)


# ---------------------------------------------------------------- sampling


def credited(prompts, groups):
    """Completions of prompts, three each, as samples of GRPO: the first of a group is paid."""
    return [
        rlvr.Sample(
            task=None,
            prompt=prompt,
            ids=completion.ids,
            logprobs=completion.logprobs,
            finished=True,
            group=number,
            text="",
            run=None,
            advantage=advantage,
        )
        for number, (prompt, group) in enumerate(zip(prompts, groups, strict=True))
        for completion, advantage in zip(group, (1.4, -0.7, -0.7), strict=True)
    ]


def write_with(monkeypatch, generate):
    """Let evaluate.py's programs be written by a function in place of engine.sample.generate."""
    backend = FAST._replace(generate=generate)
    monkeypatch.setitem(evaluate.sample_programs.__kwdefaults__, "backend", backend)
