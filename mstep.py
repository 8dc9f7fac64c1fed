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

import collections
import time

import numpy as np
import torch
from tqdm import tqdm

from config import MSTEP
from data import PROMPT, THOUGHT, canonical, infuse
from engine import documents, parallel, training
from engine.machine import graphs, steps_bar
from engine.packing import micro_batches, pack
from logprobs import token_logprobs
from model import work_size

# ---------------------------------------------------------------- infusion


def infuse_corpus(tok, snippets, numbers, propose, at_once, block, stats):
    """Write proposed thoughts into expert snippets -> yields (ids, kinds) of each, in order. stats: a Counter of thoughts, lines, tokens, ...

    propose: (snippets, numbers) -> [{line: ids}], the thoughts of each (estep.proposals); numbers: one int a snippet, which seeds its draws.
    at_once: snippets of a call on each rank. block: tokens of a document, at most. Ranks share the snippets out, and all get all documents.
    """
    at_once *= parallel.world()
    for start in tqdm(
        range(0, len(snippets), at_once), desc="infuse", unit="batch", delay=2, leave=False
    ):
        part, of_part = (
            list(parallel.shard(x[start : start + at_once])) for x in (snippets, numbers)
        )
        proposed = propose(part, of_part) if part else []
        yield from parallel.unshard(
            [write(tok, snip, thoughts, block, stats) for snip, thoughts in zip(part, proposed)]
        )
    total = sum(parallel.all_gather(stats), collections.Counter())
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


# ---------------------------------------------------------------- next-token training


def ntp_loss(model, ids, pos, doc, kind):
    """-log p of each predicted token of packed rows -> (loss (M,) with gradient, kind (M,)). ids, pos, doc, kind (1, T), as from `pack`.

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
    share = [parallel.shard([xs[i] for i in order]) for xs in (docs, kinds)]
    sums, cuda = torch.zeros(3, device=model.device), model.device.type == "cuda"
    for some in parallel.synced_batches(model, micro_batches(*share, cfg.micro_tokens)):
        row = [
            x.to(model.device, non_blocking=True) for x in pack(*some, multiple=256 if cuda else 1)
        ]
        with torch.autocast(model.device.type, torch.bfloat16, enabled=cfg.bf16):
            loss, kind = ntp_loss(model, *row)
        parallel.backward(loss.sum() / n[0])
        loss, thought = loss.detach(), kind == THOUGHT
        sums += torch.stack([loss.sum(), loss[~thought].sum(), loss[thought].sum()])  # (3,)
    norm = parallel.clip(model, cfg.grad_clip)
    opt.step()
    opt.zero_grad(set_to_none=True)
    said = (torch.stack(parallel.all_gather(sums.cpu())).sum(0) / torch.tensor(n)).tolist()
    return {
        "loss": said[0],
        "ce_code": said[1],
        "ce_thought": said[2] if n[2] else None,
        "grad_norm": norm.item(),
        "lr": lr,
        "tokens": sum(map(len, docs)),
        "graphs": graphs(),
    }


def expert_part(run, iteration):
    """Indices of the expert snippets of one M-step, cfg.infuse of them; the M-step goes over them as often as its steps need."""
    return np.random.default_rng([run.cfg.seed, MSTEP, iteration]).permutation(len(run.expert))[
        : run.cfg.infuse
    ]


def fine_tune(run, name, model, docs, iteration, steps, state, flops, keep=lambda: {}):
    """The M-step: `steps` of next-token training on docs, documents.Code or documents.Written. state: where to go on (it is emptied), or None; keep(): what else
    its checkpoints hold. Returns the model and the FLOPs so far."""
    cfg, start = run.cfg, 0
    model, opt = training.prepare_training(
        model, cfg, lambda m: training.adamw(m, cfg.lr, cfg.weight_decay), state
    )
    if state:
        start, flops = state["step"], state["flops"]
        state.clear()  # or its weights would take memory until the end
    of_step = documents.step_documents(
        docs.lengths, cfg.rows * cfg.block, (cfg.seed, MSTEP, iteration, 1)
    )
    bar = steps_bar(f"{name}: M-step {iteration + 1}", start, steps)
    for step in bar:
        began = time.time()
        some, kinds = zip(*(docs[i] for i in of_step(step)))
        m = ntp_step(
            model, opt, some, kinds, training.learning_rate(step, steps, cfg.lr, cfg.warmup), cfg
        )
        flops += 6 * work_size(model) * m["tokens"]
        m["tokens_per_s"] = m["tokens"] / (time.time() - began)
        run.log(name, phase="mstep", iteration=iteration, step=step, flops=flops, **m)
        bar.set_postfix(loss=f"{m['loss']:.3f}", tok_s=f"{m['tokens_per_s']:.0f}")
        if (step + 1) % cfg.save_every == 0 and step + 1 < steps:
            run.save_state(
                name,
                phase="mstep",
                iteration=iteration,
                step=step + 1,
                flops=flops,
                weights=parallel.state(model),
                opt=parallel.state(opt),
                **keep(),
            )
    return parallel.unwrap(model), flops
