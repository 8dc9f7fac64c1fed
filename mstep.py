"""The M-step of RA3 (arXiv 2509.25810): next-token prediction on code with thoughts written in.

    z_t ~ q(. | s_t, z_<t) for the expert data                                          (infusion)
    J(pi) = sum_t log pi(z_t | s_t, z_<t) + log pi(a_t | s_t, z_<=t)                        (J)

Comments and code are both predicted; what is given (s_0) is context and is not. Without thoughts
this is J_NTP, plain next-token mid-training. The baseline runs this code with no thoughts, so
c = inf gives the baseline bit for bit (tested).

Departures from the paper
1. A thought that would make the text encode differently is left out (one that ends in a blank,
   say). Infused ids are always what the tokenizer makes of their text. `not_canonical` counts them.
2. Of K samples of q one is written in, drawn with probability proportional to exp(sum_t r_t). As K
   grows this becomes a draw from q(z) exp(sum_t r_t), normalised; K = 1 (`resample=1`) is a draw
   from q, the paper's. It is selection on top of the gradient. Where an iteration has no gradient
   (estep.py, departure 9) the best is written in.
3. A snippet that outgrows `block` tokens loses its last thoughts until it fits.

A step takes documents of about `rows` x `block` tokens, `micro_tokens` at a time. The gradients of
its parts add up to the gradient of the whole (tested). Documents stay on disk, mapped into memory.

Shapes: T tokens of a document, V vocabulary, M predicted tokens.
"""

import collections
import time

import numpy as np
import torch

from config import EXPERT_PART, MSTEP, ROUNDING, progress_bar, seed_of
from data import PROMPT, THOUGHT, canonical, infuse
from engine import documents, parallel, training
from engine.backend import FAST
from engine.machine import compile_postfix, compile_seconds, graphs, steps_bar
from model import work_size

# ---------------------------------------------------------------- infusion


def infuse_corpus(tok, snippets, numbers, propose, at_once, block, stats, saved=None):
    """Write proposed thoughts into expert snippets -> yields (ids, kinds) of each, in order.

    propose    (snippets, numbers) -> [{line: ids}], the thoughts of each (estep.proposals)
    numbers    one int a snippet, which seeds its draws
    at_once    snippets of a call, on each rank
    block      tokens of a document, at most
    stats      a Counter of thoughts, lines, tokens, ...
    saved      a documents.Batches: batches that are there are taken from it, others written to it

    Under torchrun, pass all snippets on every rank; each works on its share and gets all documents.
    """
    at_once *= parallel.world()
    total = collections.Counter()
    for start in progress_bar(
        range(0, len(snippets), at_once), desc="infuse", unit="batch", delay=2, leave=False
    ):
        batch = saved.load(start) if saved else None
        if batch is None:
            share = parallel.shard(snippets[start : start + at_once])
            seeds = parallel.shard(numbers[start : start + at_once])
            batch = infuse_batch(tok, list(share), list(seeds), propose, block, stats)
            if saved:
                saved.save(start, *batch)
        docs, counts = batch
        total.update(counts)
        yield from docs
    stats.clear()
    stats.update(total)


def infuse_batch(tok, share, seeds, propose, block, stats):
    """The documents of a batch, of all ranks, and its counts -> (list, Counter).

    share, seeds: the snippets and numbers of this rank.
    """
    before = stats.copy()
    proposed = propose(share, seeds) if share else []
    pairs = zip(share, proposed, strict=True)
    docs = parallel.unshard([write(tok, *pair, block, stats) for pair in pairs])
    return docs, sum(parallel.all_gather(stats - before), collections.Counter())


def write(tok, snip, thoughts, block, stats):
    """One snippet with its thoughts -> (ids, kinds); counts in stats what had to be left out."""
    written = canonical_thoughts(tok, snip, thoughts)
    stats["not_canonical"] += len(thoughts) - len(written)
    while len(infuse(tok, snip, written)[0]) > block:
        written.popitem()
        stats["cut"] += 1
    stats["think"] += len(written)
    stats["lines"] += len(snip.first)
    stats["thought_tokens"] += sum(map(len, written.values()))
    return infuse(tok, snip, written)


def canonical_thoughts(tok, snip, thoughts):
    """The thoughts whose infused ids are what the tokenizer makes of their text (departure 1)."""

    def is_canonical(subset):
        return not subset or canonical(tok, infuse(tok, snip, subset)[0])

    if is_canonical(thoughts):
        return dict(thoughts)
    alone = {t: z for t, z in thoughts.items() if is_canonical({t: z})}
    return alone if is_canonical(alone) else {}  # together they are, by construction


# ---------------------------------------------------------------- next-token loss


def next_token_loss(model, ids, kinds):
    """-log p of each predicted token of one document (J) -> (loss (M,), kinds of the tokens (M,)).

    Every token is predicted from those before it, but for the prompt and the first.
    """
    hidden = model(torch.tensor([ids], device=model.device))[0]  # (T, D)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    logits = (hidden @ model.head_weight.T).to(wide)  # (T, V): row j predicts ids[j + 1]
    targets = torch.tensor(ids[1:], device=model.device)  # (T-1,)
    loss = -logits[:-1].log_softmax(-1).gather(1, targets[:, None])[:, 0]  # (T-1,)
    kind = torch.tensor(kinds[1:], device=model.device)  # (T-1,)
    return loss[kind > PROMPT], kind[kind > PROMPT]  # J


def plain_ntp_gradient(model, docs, kinds, count, cfg):
    """Accumulate the gradient of 1/count sum of -log p over the documents' predicted tokens.

    The twin of engine.gradients.ntp_gradient, one document at a time -> (3,) sums of -log p in
    nats: of all tokens, of code, of thoughts.
    """
    sums = torch.zeros(3)
    for document in zip(docs, kinds, strict=True):
        with torch.autocast(model.device.type, torch.bfloat16, enabled=cfg.bf16):
            loss, kind = next_token_loss(model, *document)
        (loss.sum() / count).backward()
        loss = loss.detach()
        thought = kind == THOUGHT
        sums += torch.stack([loss.sum(), loss[~thought].sum(), loss[thought].sum()]).cpu()
    return sums


def ntp_step(model, opt, docs, kinds, lr, cfg, backend=FAST):
    """One optimizer step on documents, the loss a mean over all their predicted tokens -> metrics.

    ce_* are nats a token. Under torchrun, pass all documents on every rank.
    """
    for group in opt.param_groups:
        group["lr"] = lr
    predicted, thoughts = count_predicted(kinds)
    sums = backend.ntp_gradient(model, docs, kinds, predicted, cfg)  # (3,)
    norm = parallel.clip(model, cfg.grad_clip)
    opt.step()
    opt.zero_grad(set_to_none=True)
    counts = torch.tensor([predicted, predicted - thoughts, thoughts])
    loss, ce_code, ce_thought = (sums / counts).tolist()
    return {
        "loss": loss,
        "ce_code": ce_code,
        "ce_thought": ce_thought if thoughts else None,
        "grad_norm": norm.item(),
        "lr": lr,
        "tokens": sum(map(len, docs)),
        "graphs": graphs(),
        "compile_s": compile_seconds(),
    }


def count_predicted(kinds):
    """Predicted tokens of documents, and how many of them are of thoughts.

    Example: [[PROMPT, CODE, THOUGHT]] -> 2, 1
    """
    kind = np.concatenate([np.asarray(kind[1:], np.int8) for kind in kinds])  # (T - documents,)
    return int((kind > PROMPT).sum()), int((kind == THOUGHT).sum())


# ---------------------------------------------------------------- the loop


def expert_part(run, iteration):
    """Indices of the expert snippets of one M-step, cfg.infuse of them.

    The M-step goes over them as often as its steps need.
    """
    rng = np.random.default_rng(seed_of(run.cfg.seed, EXPERT_PART, iteration))
    return rng.permutation(len(run.expert))[: run.cfg.infuse]


def mstep(run, name, model, docs, iteration, steps, state, flops, more_state=dict):
    """The M-step: `steps` of next-token training on docs -> (model, FLOPs so far).

    docs         documents.Code or documents.Written
    state        where to go on (it is emptied), or None
    more_state   a function: what else its checkpoints hold
    """
    cfg = run.cfg
    start = 0
    seed = (cfg.seed, ROUNDING, MSTEP, iteration)
    model, opt = training.prepare_training(
        model, cfg, lambda m: training.adamw(m, cfg.lr, cfg.weight_decay, seed), state
    )
    if state:
        start = state["step"]
        flops = state["flops"]
        state.clear()  # or its weights would take memory until the end
    documents_of = documents.step_documents(
        docs.lengths, cfg.rows * cfg.block, (cfg.seed, MSTEP, iteration)
    )
    bar = steps_bar(f"{name}: M-step {iteration + 1}", start, steps)
    for step in bar:
        began = time.time()
        batch = zip(*(docs[i] for i in documents_of(step)), strict=True)  # ids, kinds
        lr = training.learning_rate(step, steps, cfg.lr, cfg.warmup)
        m = ntp_step(model, opt, *batch, lr, cfg, run.backend)
        flops += 6 * work_size(model) * m["tokens"]
        m["tokens_per_s"] = m["tokens"] / (time.time() - began)
        run.log(name, phase="mstep", iteration=iteration, step=step, flops=flops, **m)
        bar.set_postfix(
            loss=f"{m['loss']:.3f}", tok_s=f"{m['tokens_per_s']:.0f}", **compile_postfix()
        )
        if step + 1 < steps and run.save_due(step):
            run.save_state(
                name,
                phase="mstep",
                iteration=iteration,
                step=step + 1,
                flops=flops,
                weights=parallel.state(model),
                opt=parallel.state(opt),
                **more_state(),
            )
    return parallel.unwrap(model), flops
