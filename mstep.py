"""The M-step of RA3 (arXiv 2509.25810): write thoughts into the expert's code, and fine-tune on the result by next-token prediction.

    z_t ~ q(. | s_t, z_<t)  for the expert data,   J(pi) = sum_t  log pi(z_t | ...) + log pi(a_t | s_t, z_t)     comments and code both predicted

What is given (s_0) is context and not predicted. Without thoughts this is J_NTP, plain next-token mid-training: the baseline runs the very
same code with an empty set of thoughts, so c = inf gives the baseline bit for bit (tested).

Departures from the paper
1. A thought that would make the text encode differently (one that ends in a blank, say) is left out, so that infused ids are
   always what the tokenizer makes of their text. How many is logged (`not_canonical`).
2. Of several samples of q one is kept, drawn with probability proportional to exp(sum_t r_t) (`resample`): selection on top of the gradient.
   What is written in then comes from q(z) exp(sum_t r_t) rather than from q(z); `resample=1` is the paper's.
3. A snippet that outgrows `block` tokens loses its last thoughts until it fits.

A step takes documents of about `rows` x `block` real tokens, and works on them without padding, up to `micro_tokens` tokens at a time; the sum of the
micro-batches' gradients is the gradient of the whole (tested). Documents stay on disk, mapped into memory: the expert's own in the corpus, infused ones in a
file of the run's folder. A step reads its own and no other; of all, 36 bytes a document are in memory.

Shapes: T tokens of a packed row, M predicted tokens.
"""

import array
import collections
import functools
import os

import numpy as np
import torch
from tqdm import tqdm

import parallel
from config import UserError, selection_of
from corpus import sizes
from data import PROMPT, THOUGHT, canonical, infuse, one_row
from elbo import token_logprobs
from hindsight import choose
from model import compile_blocks, graphs
from optim import RoundedAdamW
from rollouts import rollout


# ---------------------------------------------------------------- infusion


def infuse_corpus(q, pi, tok, snippets, cfg, seed, numbers, stats, iteration=0):
    """Sample thoughts for expert snippets and write them in -> yields (ids, kinds) of each, in order. stats: a Counter of thoughts, lines, tokens, ...

    cfg.estep says how. reinforce draws one of cfg.resample rollouts of q with probability proportional to exp(sum_t r_t), rewards from pi; for
    cfg.resample = 1 that is a plain sample of q. best-of-n takes, of cfg.group rollouts of the frozen model (q is pi), the one with the best
    sum_t r_t. hindsight proposes thoughts after seeing the line, and weighs them as cfg.selection says for this iteration (hindsight.py). none takes one
    sample as it is; so does random, which thinks before each line with probability cfg.rate.
    numbers: one int a snippet, seeds its draws with `seed`, a tuple of ints. Ranks share the snippets out, and all get all documents.
    """
    never = cfg.c == float("inf")
    n = {"best-of-n": cfg.group, "reinforce": cfg.resample, "hindsight": cfg.proposals}.get(
        cfg.estep, 1
    )
    at_once = max(1, 256 // n) * parallel.world()
    for start in tqdm(
        range(0, len(snippets), at_once), desc="infuse", unit="batch", delay=2, leave=False
    ):
        part, of_part = (
            list(parallel.mine(x[start : start + at_once])) for x in (snippets, numbers)
        )
        if never or not part:
            chosen = [{}] * len(part)
        elif cfg.estep == "hindsight":
            chosen, tokens = choose(pi, tok, part, cfg, selection_of(cfg, iteration), seed, of_part)
            stats["forward_tokens"] += tokens
        else:
            rolls = rollout(
                q,
                pi,
                tok,
                part,
                n,
                cfg.think_max,
                seed,
                horizon=cfg.horizon,
                need="rewards" if n > 1 else "latents",
                rate=cfg.rate if cfg.estep == "random" else None,
                numbers=of_part,
            )
            stats["forward_tokens"] += rolls.forward_tokens
            reward = rolls.reward(cfg.c).reshape(-1, n)  # (B, n)
            if cfg.estep == "best-of-n":
                best = reward.argmax(1)
            else:  # Gumbel: argmax of reward + noise is a draw from softmax(reward)
                noise = [np.random.default_rng([*seed, i]).gumbel(size=n) for i in of_part]
                best = (reward + np.array(noise)).argmax(1)
            chosen = [rolls.rows[b * n + k].thoughts for b, k in enumerate(best)]
        yield from parallel.gather(
            [write(tok, snip, thoughts, cfg.block, stats) for snip, thoughts in zip(part, chosen)]
        )
    total = sum(parallel.everyone(stats), collections.Counter())
    stats.clear()
    stats.update(total)


def write(tok, snip, thoughts, block, stats):
    """One snippet with its thoughts -> (ids, kinds); counts in stats what had to be left out."""

    def fine(some):
        return not some or canonical(tok, infuse(tok, snip, some)[0])

    kept = dict(thoughts)
    if not fine(kept):
        kept = {t: z for t, z in kept.items() if fine({t: z})}
        kept = (
            kept if fine(kept) else {}
        )  # thoughts that are fine alone and not together: does not happen by construction
    stats["not_canonical"] += len(thoughts) - len(kept)
    while len(infuse(tok, snip, kept)[0]) > block:
        kept.popitem()
        stats["cut"] += 1
    stats["think"] += len(kept)
    stats["lines"] += len(snip.first)
    stats["thought_tokens"] += sum(map(len, kept.values()))
    return infuse(tok, snip, kept)


# ---------------------------------------------------------------- documents, read as they are needed


class Code:
    """Snippets, a list or a corpus.Corpus, as documents without thoughts: len, lengths (n,) in tokens, and code[i] -> (ids, kinds)."""

    def __init__(self, tok, snippets):
        self.tok, self.snippets, self.lengths = tok, snippets, sizes(snippets)[0]

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
    parallel.everyone(None)


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


# ---------------------------------------------------------------- next-token training


def ntp_loss(model, ids, pos, doc, kind):
    """-log p of each predicted token of packed rows -> (loss (M,) with gradient, kind (M,)). ids, pos, doc, kind (1, T), as from `one_row`.

    A token is predicted from the earlier tokens of its own document; the first of a document is not, nor is padding, nor what is given. The end-of-text token is.
    """
    inside = predicted(doc, kind)  # (1, T-1)
    hidden = model(ids, pos, doc)[:, :-1][inside]  # (M, D)
    return -token_logprobs(hidden, model.head_weight, ids[:, 1:][inside])[0], kind[:, 1:][
        inside
    ]  # (M,): J


def predicted(doc, kind):
    """Which tokens from the second on are predicted. doc, kind (1, T) -> (1, T-1) bool."""
    return (doc[:, 1:] == doc[:, :-1]) & (kind[:, 1:] > PROMPT)


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


def learning_rate(step, steps, peak, warmup):
    """Linear warm-up, constant, linear decay over the last 40% of the steps. Example: half-way through the decay -> peak / 2"""
    return peak * min(1.0, (step + 1) / max(1, warmup), (steps - step) / max(1.0, 0.4 * steps))


def adamw(model, lr, weight_decay):
    """AdamW with decay on matrices only; for bfloat16 weights that of optim.py."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if model.dtype == torch.bfloat16:
        return RoundedAdamW(groups, lr)
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)


def trained(model, cfg, optimizer, state=None, weights="weights"):
    """(the model as it is trained, its optimizer), both as in a state, if there is one. optimizer: model -> Optimizer. What the model was before
    must not be used until `parallel.whole` gives it back."""
    if state:
        model.load_state_dict(state[weights])
    model.checkpoint = cfg.checkpoint
    compile_blocks(model, cfg)
    model = parallel.spread(model, cfg.shard)
    opt = optimizer(model)
    if state:
        parallel.restore(opt, state["opt"])
    return model, opt


def ntp_step(model, opt, docs, kinds, lr, cfg):
    """One optimizer step on documents, the loss a mean over all their predicted tokens. Returns metrics; ce_* are nats a token. Memory is that of
    cfg.micro_tokens tokens. With several ranks each takes its share of the documents, which all give whole."""
    for group in opt.param_groups:
        group["lr"] = lr
    predict = torch.tensor([k for kind in kinds for k in kind[1:] if k > PROMPT])  # (M,)
    n = [
        len(predict),
        int((predict != THOUGHT).sum()),
        int((predict == THOUGHT).sum()),
    ]  # predicted tokens; of code; of thoughts
    order = sorted(range(len(docs)), key=lambda i: -len(docs[i]))  # so that shares are alike
    share = [parallel.mine([xs[i] for i in order]) for xs in (docs, kinds)]
    sums, cuda = torch.zeros(3, device=model.device), model.device.type == "cuda"
    for some in parallel.turns(model, micro_batches(*share, cfg.micro_tokens)):
        row = [
            x.to(model.device, non_blocking=True)
            for x in one_row(*some, multiple=256 if cuda else 1)
        ]
        with torch.autocast(model.device.type, torch.bfloat16, enabled=cfg.bf16):
            loss, kind = ntp_loss(model, *row)
        parallel.backward(loss.sum() / n[0])
        loss, thought = loss.detach(), kind == THOUGHT
        sums += torch.stack([loss.sum(), loss[~thought].sum(), loss[thought].sum()])  # (3,)
    norm = parallel.clip(model, cfg.grad_clip)
    opt.step()
    opt.zero_grad(set_to_none=True)
    said = (torch.stack(parallel.everyone(sums.cpu())).sum(0) / torch.tensor(n)).tolist()
    return {
        "loss": said[0],
        "ce_code": said[1],
        "ce_thought": said[2] if n[2] else None,
        "grad_norm": norm.item(),
        "lr": lr,
        "tokens": sum(map(len, docs)),
        "graphs": graphs(),
    }
