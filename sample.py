"""Batched sampling: one engine for evaluation and for reinforcement learning.

    y_k ~ softmax(logits(x, y_<k) / temperature), cut to its top_p nucleus;    recorded: log softmax(logits(x, y_<k))[y_k]

Rows are independent. Sample j of prompt i draws its uniforms from a generator seeded by (seed, i, j) and picks tokens by inverse
CDF, so a completion depends neither on the batch it was made in nor on the number of samples asked for (up to float rounding,
which in fp32 practically never moves a draw across a boundary; in bf16 it may).

A prompt is prefilled once and its cache copied to its n samples. A finished row leaves its seat, and once a quarter of the seats
is free, waiting samples take them; when nobody waits, the cache shrinks instead. Longest prompts go first.

Logits are computed in float32 outside of autocast, from the last position's hidden state and a float32 copy of the head. Drawing
needs the whole distribution, so the log-probability of a drawn token is read off here; in fp32 it equals the trainer's.

Shapes: B seats, P prompts of a prefill, T its tokens, D width, V vocabulary, N rows that draw a token.
"""
import dataclasses

import numpy as np
import torch


@dataclasses.dataclass
class Completion:
    ids: list        # as sampled: the EOS and the tokens of a stop string are included
    logprobs: list   # of each token, under the model's distribution at temperature 1, uncut
    finished: bool   # ended by EOS or a stop string, not by length


@dataclasses.dataclass
class Row:
    """A sample in the making: where it belongs, its limits and its randomness."""
    prompt: int
    number: int
    length: int              # of the prompt
    limit: int               # new tokens, at most
    uniforms: np.ndarray     # (limit,)
    done: Completion

    @property
    def pos(self):           # of the last sampled token, which the model has not seen yet
        return self.length + len(self.done.ids) - 1


@torch.inference_mode()
def generate(model, prompts, max_new, eos, temperature=1.0, top_p=1.0, seed=0, seeds=None, n=1, batch=64, stop=None, decode=None,
             progress=False, desc="sampling", amp=False, forbid=(), on_done=None):
    """n Completions for each prompt: a list of lists, in the order of `prompts`.

    prompts      lists of token ids, of any lengths. A prompt and its completion together never exceed model.cfg.max_len.
    eos          the token id that ends a row.
    temperature  0 is greedy.
    seeds        one int a prompt, used instead of its index: so that a prompt keeps its samples when others are left out.
    batch        rows sampled at once.
    stop         strings; a row ends with the token that completes one (the caller cuts the text). Needs `decode`: ids -> str.
    amp          the model's forward runs under bfloat16 autocast.
    forbid       token ids that the model cannot write: the distribution is the model's, given that the next token is none of them.
    on_done      called as on_done(prompt index, sample index, Completion) as soon as a row ends.
    Raises ValueError for an empty prompt, one of max_len tokens or more, and settings out of range.
    """
    stop = [stop] if isinstance(stop, str) else list(stop or [])
    check(model, prompts, max_new, temperature, top_p, seeds, n, batch, stop, decode)
    device, cfg = model.device, model.cfg
    head = model.head_weight.float()                                                     # (V, D)
    forbid = torch.tensor(forbid, dtype=torch.int64, device=device)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    queue = [(i, j) for i in order for j in range(n)][::-1]                              # the next one is the last
    if not queue:
        return [[] for _ in prompts]
    limits = [min(max_new, cfg.max_len - len(p)) for p in prompts]
    slots = max(len(p) + m for p, m in zip(prompts, limits))
    seats = [None] * min(batch, len(queue))                                              # Row or None
    cache = model.new_cache(len(seats), slots)
    tail = max((len(s.encode()) for s in stop), default=0) + 4    # tokens that surely hold a stop string: one has at least a byte
    out = [[None] * n for _ in prompts]
    base, base_hidden, base_row = None, None, {}                  # the last prefill: cache, (P, D), prompt -> row of it
    bar = None
    if progress:
        import tqdm
        bar = tqdm.tqdm(total=len(queue), desc=desc, unit="sample")
    tokens = 0

    def forward(ids, pos, cache, reach):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp):
            return model(ids, pos=pos, cache=cache, reach=reach)                         # (B, T, D)

    def draw(chosen, hidden):
        """Give each of the chosen seats its next token; a row that ends gives up its seat. hidden (N, D)."""
        nonlocal tokens
        uniforms = [seats[k].uniforms[len(seats[k].done.ids)] for k in chosen]
        logits = (hidden.float() @ head.T).index_fill_(1, forbid, -torch.inf)            # (N, V)
        picked, logprobs = pick(logits, uniforms, temperature, top_p)                    # (N,), (N,)
        tokens += len(chosen)
        for k, token, logprob in zip(chosen, picked.tolist(), logprobs.tolist()):
            row, done = seats[k], seats[k].done
            done.ids.append(token)
            done.logprobs.append(logprob)
            done.finished = token == eos or bool(stop) and contains(decode(done.ids[-tail:]), stop)
            if done.finished or len(done.ids) == row.limit:
                out[row.prompt][row.number], seats[k] = done, None
                if on_done:
                    on_done(row.prompt, row.number, done)
                if bar:
                    bar.update()
                    bar.set_postfix_str(f"{tokens / max(bar.format_dict['elapsed'], 1e-9):.0f} tokens/s", refresh=False)

    try:
        while queue or any(seats):
            free = [k for k, row in enumerate(seats) if row is None]
            if queue and 4 * len(free) >= len(seats):
                if queue[-1][0] not in base_row:
                    wanted = list(dict.fromkeys(i for i, _ in queue[:-len(free) - 1:-1]))
                    base = None                                                          # free it before the next is made
                    base, base_hidden = prefill(model, [prompts[i] for i in wanted], slots, forward)
                    base_row = {i: r for r, i in enumerate(wanted)}
                taken, source = [], []
                while queue and len(taken) < len(free) and queue[-1][0] in base_row:
                    i, j = queue.pop()
                    rng = np.random.default_rng([seed, i if seeds is None else seeds[i], j])
                    k = free[len(taken)]
                    seats[k] = Row(i, j, len(prompts[i]), limits[i], rng.random(limits[i]), Completion([], [], False))
                    taken.append(k)
                    source.append(base_row[i])
                source = torch.tensor(source, device=device)
                cache.put(torch.tensor(taken, device=device), base.select(source))
                draw(taken, base_hidden[source])                                         # (N, D)
                continue
            if not queue and 4 * len(free) >= len(seats):
                base = None
                kept = [k for k, row in enumerate(seats) if row is not None]
                seats, cache = [seats[k] for k in kept], cache.select(torch.tensor(kept, device=device))
            live = [k for k, row in enumerate(seats) if row is not None]
            last = torch.tensor([row.done.ids[-1] if row else 0 for row in seats], device=device)[:, None]     # (B, 1)
            pos = torch.tensor([row.pos if row else 0 for row in seats], device=device)[:, None]               # (B, 1)
            hidden = forward(last, pos, cache, max(seats[k].pos for k in live) + 1)[:, -1]                     # (B, D)
            draw(live, hidden if len(live) == len(seats) else hidden[torch.tensor(live, device=device)])
    finally:
        if bar:
            bar.close()
    return out


def prefill(model, prompts, slots, forward):
    """The cache of some prompts and the hidden state of each one's last token: Cache of P rows, (P, D)."""
    lengths = torch.tensor([len(p) for p in prompts], device=model.device)                # (P,)
    T = max(len(p) for p in prompts)
    ids = torch.tensor([p + [0] * (T - len(p)) for p in prompts], device=model.device)    # (P, T)
    pos = torch.arange(T, device=model.device).expand(len(prompts), T)                    # (P, T)
    cache = model.new_cache(len(prompts), slots)
    hidden = forward(ids, pos, cache, T)                                                  # (P, T, D)
    return cache, hidden[torch.arange(len(prompts), device=model.device), lengths - 1]    # (P, D)


def pick(logits, uniforms, temperature, top_p):
    """A token a row by inverse CDF, and its log-probability at temperature 1. logits (N, V) float32; N floats in [0, 1).

    Example: pick(log [.5, .5, 0], [.7], 1, 1) -> [1], [log .5]
    """
    logprobs = logits.log_softmax(-1)                                                     # (N, V)
    if temperature == 0:
        token = logits.argmax(-1, keepdim=True)                                           # (N, 1)
    else:
        probs, names = (logits / temperature).softmax(-1).double(), None                  # (N, V)
        if top_p < 1:                                # the smallest set of likeliest tokens that holds top_p
            probs, names = probs.sort(dim=-1, descending=True, stable=True)
            probs = probs.masked_fill(probs.cumsum(-1) - probs >= top_p, 0)
        cdf = probs.cumsum(-1)                                                            # (N, V)
        u = torch.tensor(uniforms, dtype=cdf.dtype, device=cdf.device)[:, None] * cdf[:, -1:]
        token = torch.searchsorted(cdf, u, right=True).clamp_(max=logits.shape[-1] - 1)   # (N, 1): the first with cdf > u
        if names is not None:
            token = names.gather(-1, token)
    return token[:, 0], logprobs.gather(-1, token)[:, 0]                                  # (N,), (N,)


def contains(text, stop):
    """Example: contains("x\\ndef", ["\\ndef"]) -> True"""
    return any(s in text for s in stop)


def check(model, prompts, max_new, temperature, top_p, seeds, n, batch, stop, decode):
    for i, prompt in enumerate(prompts):
        if not 0 < len(prompt) < model.cfg.max_len:
            raise ValueError(f"prompt {i} has {len(prompt)} tokens; it must have 1 to max_len - 1 = {model.cfg.max_len - 1}")
    for name, value, low in (("max_new", max_new, 1), ("n", n, 1), ("batch", batch, 1), ("temperature", temperature, 0)):
        if value < low:
            raise ValueError(f"{name}={value} must be at least {low}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} must be above 0 and at most 1")
    if seeds is not None and len(seeds) != len(prompts):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one a prompt")
    if stop and (decode is None or "" in stop):
        raise ValueError("stop strings must not be empty, and need decode: ids -> str")
