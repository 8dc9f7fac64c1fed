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
micro-batches' gradients is the gradient of the whole (tested).

Shapes: T tokens of a packed row, M predicted tokens.
"""
import numpy as np
import torch
from tqdm import tqdm

import parallel
from data import PROMPT, THOUGHT, canonical, infuse, one_row
from elbo import token_logprobs
from hindsight import choose
from model import compile_blocks, graphs
from optim import RoundedAdamW
from rollouts import rollout


# ---------------------------------------------------------------- infusion

def infuse_corpus(q, pi, tok, snippets, cfg, seed, numbers, progress=True, iteration=0):
    """Sample thoughts for expert snippets and write them in -> (docs, kinds, stats).

    cfg.estep says how. reinforce draws one of cfg.resample rollouts of q with probability proportional to exp(sum_t r_t), rewards from pi; for
    cfg.resample = 1 that is a plain sample of q. best-of-n takes, of cfg.group rollouts of the frozen model (q is pi), the one with the best
    sum_t r_t. hindsight proposes thoughts after seeing the line, and weighs them as cfg.selection says for this iteration (hindsight.py). none takes one
    sample as it is; so does random, which thinks before each line with probability cfg.rate.
    numbers: one int a snippet, seeds its draws with `seed`, a tuple of ints. Ranks share the snippets out, and all get all documents.
    """
    docs, kinds = [], []
    stats = {"think": 0, "lines": 0, "thought_tokens": 0, "not_canonical": 0, "cut": 0, "forward_tokens": 0}
    never = cfg.c == float("inf")
    n = {"best-of-n": cfg.group, "reinforce": cfg.resample, "hindsight": cfg.proposals}.get(cfg.estep, 1)
    at_once = max(1, 256 // n)
    snippets, numbers = parallel.mine(snippets), parallel.mine(numbers)
    bar = tqdm(range(0, len(snippets), at_once), desc="infuse", unit="batch", disable=not progress, delay=2, leave=False)
    for start in bar:
        part = snippets[start:start + at_once]
        if never:
            chosen = [{}] * len(part)
        elif cfg.estep == "hindsight":
            which = cfg.selection.split(",")
            chosen, tokens = choose(pi, tok, part, cfg, which[min(iteration, len(which) - 1)], seed, numbers[start:start + at_once])
            stats["forward_tokens"] += tokens
        else:
            rolls = rollout(q, pi, tok, part, n, cfg.think_max, seed, horizon=cfg.horizon, need="rewards" if n > 1 else "latents",
                            rate=cfg.rate if cfg.estep == "random" else None, numbers=numbers[start:start + at_once])
            stats["forward_tokens"] += rolls.forward_tokens
            reward = np.array([row.line_logp.sum() - cfg.c * len(row.thoughts) for row in rolls.rows]).reshape(-1, n)     # (B, n)
            if cfg.estep == "best-of-n":
                best = reward.argmax(1)
            else:                                            # Gumbel: argmax of reward + noise is a draw from softmax(reward)
                noise = [np.random.default_rng([*seed, i]).gumbel(size=n) for i in numbers[start:start + at_once]]
                best = (reward + np.array(noise)).argmax(1)
            chosen = [rolls.rows[b * n + k].thoughts for b, k in enumerate(best)]
        for snip, thoughts in zip(part, chosen):
            ids, kind = write(tok, snip, thoughts, cfg.block, stats)
            docs.append(ids)
            kinds.append(kind)
    return parallel.gather(docs), parallel.gather(kinds), {key: sum(some[key] for some in parallel.everyone(stats)) for key in stats}


def write(tok, snip, thoughts, block, stats):
    """One snippet with its thoughts -> (ids, kinds); counts in stats what had to be left out."""
    kept = dict(thoughts)
    ids, kinds = infuse(tok, snip, kept)
    if kept and not canonical(tok, ids):
        kept = {t: z for t, z in kept.items() if canonical(tok, infuse(tok, snip, {t: z})[0])}
        ids, kinds = infuse(tok, snip, kept)
        if kept and not canonical(tok, ids):                 # thoughts that are fine alone and not together: does not happen by construction
            kept = {}
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
    """-log p of each predicted token of packed rows -> (loss (M,) with gradient, kind (M,)). ids, pos, doc, kind (1, T), as from `one_row`.

    A token is predicted from the earlier tokens of its own document; the first of a document is not, nor is padding, nor what is given. The end-of-text token is.
    """
    inside = predicted(doc, kind)                                         # (B, T-1)
    hidden = model(ids, pos, doc)[:, :-1][inside]                                                       # (M, D)
    return -token_logprobs(hidden, model.head_weight, ids[:, 1:][inside])[0], kind[:, 1:][inside]       # (M,): J


def predicted(doc, kind):
    """Which tokens from the second on are predicted. doc, kind (1, T) -> (1, T-1) bool."""
    return (doc[:, 1:] == doc[:, :-1]) & (kind[:, 1:] > PROMPT)


def step_documents(docs, size, seed, step):
    """Indices of the documents of a step, a pure function of the arguments, so that a resumed run sees the same data. The epochs, each of
    every document once in an order of its own, are one endless stream of tokens; step s takes the documents that begin at its tokens
    s size, ..., (s + 1) size - 1.   Example: four documents of 3 tokens, size 6 -> two a step, two steps an epoch
    """
    lengths = np.array([len(d) for d in docs])
    begin, chosen = step * size, []
    for epoch in range(begin // lengths.sum(), (begin + size - 1) // lengths.sum() + 1):
        order = np.random.default_rng([*seed, epoch]).permutation(len(docs))
        at = epoch * lengths.sum() + lengths[order].cumsum() - lengths[order]                # where each document begins
        chosen += order[(begin <= at) & (at < begin + size)].tolist()
    return chosen


def micro_batches(docs, kinds, most):
    """Deal documents out to as few parts as have at most `most` tokens each (or a single document) -> [(docs, kinds), ...].

    Dealt longest first, like cards, the parts differ by less than the longest document.   Example: lengths 5, 4, 2, 1, most 8 -> 5 + 2, 4 + 1
    """
    order = sorted(range(len(docs)), key=lambda i: -len(docs[i]))
    n = min(len(docs), -(-sum(map(len, docs)) // most))
    while n < len(docs) and sum(len(docs[i]) for i in order[::n]) > most:                    # the first part is the largest
        n += 1
    return [([docs[i] for i in order[k::n]], [kinds[i] for i in order[k::n]]) for k in range(n)]


def learning_rate(step, steps, peak, warmup):
    """Linear warm-up, constant, linear decay over the last 40% of the steps. Example: half-way through the decay -> peak / 2"""
    return peak * min(1.0, (step + 1) / max(1, warmup), (steps - step) / max(1.0, 0.4 * steps))


def adamw(model, lr, weight_decay):
    """AdamW with decay on matrices only; for bfloat16 weights that of optim.py."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
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
    predict = torch.tensor([k for kind in kinds for k in kind[1:] if k > PROMPT])                       # (M,)
    n = [len(predict), int((predict != THOUGHT).sum()), int((predict == THOUGHT).sum())]                # predicted tokens; of code; of thoughts
    order = sorted(range(len(docs)), key=lambda i: -len(docs[i]))                                       # so that shares are alike
    share = [parallel.mine([xs[i] for i in order]) for xs in (docs, kinds)]
    sums, cuda = torch.zeros(3, device=model.device), model.device.type == "cuda"
    for some in parallel.turns(model, micro_batches(*share, cfg.micro_tokens)):
        row = [x.to(model.device, non_blocking=True) for x in one_row(*some, multiple=256 if cuda else 1)]
        with torch.autocast(model.device.type, torch.bfloat16, enabled=cfg.bf16):
            loss, kind = ntp_loss(model, *row)
        parallel.backward(loss.sum() / n[0])
        loss, thought = loss.detach(), kind == THOUGHT
        sums += torch.stack([loss.sum(), loss[~thought].sum(), loss[thought].sum()])                    # (3,)
    norm = parallel.clip(model, cfg.grad_clip)
    opt.step()
    opt.zero_grad(set_to_none=True)
    said = (torch.stack(parallel.everyone(sums.cpu())).sum(0) / torch.tensor(n)).tolist()
    return {"loss": said[0], "ce_code": said[1], "ce_thought": said[2] if n[2] else None, "grad_norm": norm.item(), "lr": lr,
            "tokens": sum(map(len, docs)), "graphs": graphs()}
