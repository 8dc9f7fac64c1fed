"""Batched sampling: one engine for evaluation and for reinforcement learning.

    y_k ~ softmax(logits(x, y_<k) / temperature), cut to its top_p nucleus;    recorded: log softmax(logits(x, y_<k))[y_k]

Rows are independent. Sample j of prompt i draws its uniforms from a generator seeded by (seed, i, j) and picks tokens by inverse
CDF, so a completion depends neither on the batch it was made in nor on the number of samples asked for (up to float rounding,
which in fp32 practically never moves a draw across a boundary; in bf16 it may).

A prompt is prefilled once, and its keys and values are kept once: its samples read them together, as one matrix product a head. What a
row wrote itself is kept apart, and the two parts of its attention are merged by their normalisers (arXiv 2402.05099):

    o = w o_prompt + (1 - w) o_own,    w = Z_prompt / (Z_prompt + Z_own) = sigmoid(log Z_prompt - log Z_own)

A finished row leaves its seat, and once a quarter of the seats is free, waiting samples take them; when nobody waits, the rows move
together instead. Longest prompts go first. Out of memory halves the batch; finished rows stay, the others begin again.

The decode step (`Decoder.step`) has static shapes and writes in place, so that on a GPU it is recorded once a shape as a CUDA graph
and replayed. On the CPU the same function runs eagerly, on weights that are packed once a call.

Logits are computed in float32 outside of autocast, from the last position's hidden state and a float32 copy of the head. Drawing
needs the whole distribution, so the log-probability of a drawn token is read off here; in fp32 it equals the trainer's.

Shapes: B seats, P prompts that seats are at, M seats of a prompt at most, S slots (Sp of prompts, Sn of own tokens), D width, H query
heads, K key/value heads, G = H/K, E head width, V vocabulary, N rows that draw a token.
"""
import collections
import dataclasses
import functools
import sys

import numpy as np
import torch
import torch.nn.functional as F

from config import UserError
from model import Cache


@dataclasses.dataclass
class Completion:
    ids: list        # as sampled: the EOS and the tokens of a stop string are included
    logprobs: list   # of each token, under the model's distribution at temperature 1, uncut
    finished: bool   # ended by EOS or a stop string, not by length


@torch.inference_mode()
def generate(model, prompts, max_new, eos, temperature=1.0, top_p=1.0, seed=0, seeds=None, n=1, batch=64, stop=None, decode=None,
             progress=False, desc="sampling", amp=False, forbid=(), on_done=None):
    """n Completions for each prompt: a list of lists, in the order of `prompts`.

    prompts      lists of token ids, of any lengths. A prompt and its completion together never exceed model.cfg.max_len.
    eos          the token id that ends a row.
    temperature  0 is greedy.
    seeds        one int a prompt, used instead of its index: so that a prompt keeps its samples when others are left out.
    batch        rows sampled at once; halved as often as memory runs out.
    stop         strings; a row ends with the token that completes one (the caller cuts the text). Needs `decode`: ids -> str.
    amp          the model's forward runs under bfloat16 autocast.
    forbid       token ids that the model cannot write: the distribution is the model's, given that the next token is none of them.
    on_done      called as on_done(prompt index, sample index, Completion) as soon as a row ends.
    Raises ValueError for an empty prompt, one of max_len tokens or more, and settings out of range; UserError if memory does not even
    suffice for one row.
    """
    stop = [stop] if isinstance(stop, str) else list(stop or [])
    check(model, prompts, max_new, temperature, top_p, seeds, n, batch, stop, decode)
    out = [[None] * n for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    bar = None
    if progress:
        import tqdm
        bar = tqdm.tqdm(total=len(prompts) * n, desc=desc, unit="sample")

    def done(i, j, completion):
        out[i][j] = completion
        if on_done:
            on_done(i, j, completion)
        if bar:
            bar.update()

    def uniforms(i, j):
        return np.random.default_rng([seed, i if seeds is None else seeds[i], j]).random(min(max_new, model.cfg.max_len - len(prompts[i])))

    ends = Ends(stop, decode, eos, model.cfg.vocab_size)
    try:
        while queue := [(i, j) for i in order for j in range(n) if out[i][j] is None][::-1]:     # the next one is the last
            batch = min(batch, len(queue))
            try:
                prefix, new = len(prompts[queue[-1][0]]), min(max_new, model.cfg.max_len - len(prompts[queue[0][0]]))
                decoder = Decoder(model, batch, min(batch, len(prompts)), prefix, new, temperature, top_p, forbid, amp)
                serve(decoder, prompts, queue, uniforms, ends, done, bar)
            except RuntimeError as e:                             # torch.OutOfMemoryError is one
                if not (isinstance(e, torch.OutOfMemoryError) or "can't allocate memory" in str(e) or "DefaultCPUAllocator" in str(e)):
                    raise
                if batch == 1:
                    raise UserError(f"out of memory with one row of {prefix + new} tokens: it needs {Decoder.bytes(model, prefix + new) / 2**20:.0f} "
                                    f"MiB besides the model; expected shorter prompts, a smaller max_new or more memory") from None
                decoder = None
            else:
                break
            batch //= 2                                           # here nothing holds the tensors of the failed attempt any more
            (bar.write if bar else functools.partial(print, file=sys.stderr))(f"{desc}: out of memory; going on with {batch} rows at once")
            if model.device.type == "cuda":
                torch.cuda.empty_cache()
    finally:
        if bar:
            bar.close()
    return out

def serve(decoder, prompts, queue, uniforms, ends, done, bar):
    """Sample the whole queue, [(prompt index, sample index)], from its end; tell done(i, j, Completion) of each."""
    B, tokens = decoder.rows, 0
    who = np.full((B, 2), -1)                                     # prompt index and sample index of a seat's row; -1: free
    ids, logprobs = np.zeros((B, decoder.new), np.int64), np.zeros((B, decoder.new), np.float32)
    count, limit = np.zeros(B, np.int64), np.zeros(B, np.int64)   # tokens that a row has, and may have

    def note(seats, said):
        """One more token for each of the seats: said (2, N), tokens and log-probabilities. A row that ends gives up its seat."""
        nonlocal tokens
        token = said[0].astype(np.int64)
        ids[seats, count[seats]], logprobs[seats, count[seats]] = token, said[1]
        count[seats] += 1
        tokens += len(seats)
        for k in seats[ends.may(token) | (count[seats] == limit[seats])]:
            finished = ends.here(ids[k, :count[k]])
            if finished or count[k] == limit[k]:
                i, j = who[k].tolist()
                who[k] = -1
                done(i, j, Completion(ids[k, :count[k]].tolist(), logprobs[k, :count[k]].tolist(), finished))
                if bar:
                    bar.set_postfix_str(f"{tokens / max(bar.format_dict['elapsed'], 1e-9):.0f} tokens/s{decoder.told()}", refresh=False)

    while queue or (who >= 0).any():
        live = np.flatnonzero(who[:B, 0] >= 0)
        if queue and 4 * len(live) <= 3 * B:
            taken = np.flatnonzero(who[:B, 0] < 0)[:len(queue)]
            who[taken] = [queue.pop() for _ in taken]
            drawn = [uniforms(*pair) for pair in who[taken].tolist()]
            count[taken], limit[taken] = 0, [len(u) for u in drawn]
            note(taken, decoder.seat(taken, who[:B, 0], prompts, drawn))
        elif 4 * len(live) <= 3 * B and decoder.bucket(len(live)) < B:
            B = decoder.bucket(len(live))
            for x in (who, ids, logprobs, count, limit):
                x[:len(live)] = x[live]
            who[len(live):] = -1
            decoder.move(live, who[:B, 0])
        else:
            note(live, decoder.next(int(count[live].max()))[:, live])


class Ends:
    """What ends a row: the EOS or a stop string. Text is decoded only at tokens that could complete a stop string."""

    def __init__(self, stop, decode, eos, vocab):
        self.stop, self.decode, self.eos = stop, decode, eos
        self.tail = max((len(s.encode()) for s in stop), default=0) + 4   # tokens that surely hold a stop string: one has at least a byte
        self.kind = np.full(vocab, 2 if stop else 0, np.int8)             # (V,) 0: ends nothing, 1: may, 2: not known yet
        if 0 <= eos < vocab:
            self.kind[eos] = 1

    def may(self, tokens):
        """Whether each token may end its row: (N,) bool. It completes a stop string only if it contains it or begins with the end of it."""
        for t in set(tokens[self.kind[tokens] == 2].tolist()):
            text = self.decode([t])                                       # "" or "\\ufffd": a part of a character, or a blank that decode strips
            self.kind[t] = not text or "\ufffd" in text or any(s in text or text.startswith(tuple(s[k:] for k in range(1, len(s)))) for s in self.stop)
        return self.kind[tokens] > 0

    def here(self, ids):
        """Whether the last of the ids (n,) ends the row."""
        return bool(ids[-1] == self.eos) or bool(self.stop) and contains(self.decode(ids[-self.tail:].tolist()), self.stop)


class Decoder:
    """The model's decode step for up to `rows` rows that read up to `prompts` prompts of up to `prefix` tokens and write `new` each."""

    def __init__(self, model, rows, prompts, prefix, new, temperature, top_p, forbid, amp):
        cfg, device = model.cfg, model.device
        self.model, self.rows, self.new, self.amp, self.temperature, self.top_p = model, rows, new, amp, temperature, top_p
        self.dtype = torch.bfloat16 if amp else model.dtype
        self.B, self.slot_of, self.steps, self.graphs = rows, {}, collections.Counter(), {}
        self.exact = device.type != "cuda"                                               # else few shapes, and buffers that stay where they are
        self.quantum = 16 if self.exact else 128                                         # lengths are rounded up to multiples of it
        self.forbid = torch.tensor(list(forbid), dtype=torch.int64, device=device)
        like = torch.empty(0, dtype=self.dtype, device=device)
        self.own = Cache(cfg, rows, self.quantum if self.exact else self.round(new), like)
        self.shared = Cache(cfg, prompts, self.round(prefix), like)
        zeros = functools.partial(torch.zeros, dtype=torch.int64, device=device)
        self.token, self.count, self.slot = zeros(rows), zeros(rows), zeros(rows)        # the last token; tokens drawn so far; the prompt's slot
        self.cells, self.back = zeros(prompts * cfg.n_kv_head * rows), zeros(rows * cfg.n_kv_head)      # see `arrange`
        self.length = zeros(prompts) + 1
        self.said = torch.zeros(2, rows, dtype=torch.float64, device=device)             # token and log-probability
        self.uniforms = torch.zeros(rows, new, device=device)
        self.hidden = torch.zeros(prompts, cfg.d_model, dtype=model.dtype, device=device)     # of each prompt's last token
        rope = torch.stack((torch.cat((model.cos, model.cos), -1), torch.cat((-model.sin, model.sin), -1)), 1)[:, :, None]   # (max_len, 2, 1, E)
        scaled, H, K = rope * (cfg.d_model // cfg.n_head) ** -0.5, cfg.n_head, cfg.n_kv_head
        still = torch.tensor([1.0, 0.0], device=device)[None, :, None, None]             # values are rotated by nothing
        self.rope = lambda pos: torch.cat((scaled[pos].expand(-1, -1, H, -1), rope[pos].expand(-1, -1, K, -1),
                                           still.expand(len(pos), 2, K, rope.shape[-1])), 2).unbind(1)      # 2 x (B, H + 2K, E)
        self.layers = [(b.attn_norm, linear([b.q, b.k, b.v], self.dtype), linear([b.o], self.dtype),
                        b.mlp_norm, linear([b.gate, b.up], self.dtype), linear([b.down], self.dtype)) for b in model.blocks]
        self.head = linear([model.head or model.embed], torch.float32)

    def round(self, n):
        return -(-n // self.quantum) * self.quantum

    def bucket(self, n):
        """Rows that a step is made for when n are left: on a GPU a power of two."""
        return min(self.rows, 1 << (n - 1).bit_length()) if not self.exact else n

    def told(self):
        return f", {len(self.graphs)} graphs" if self.graphs else ""

    def seat(self, seats, prompt_of, prompts, uniforms):
        """Put rows on `seats` and draw their first tokens. prompt_of (B,): prompt index of every seat, -1 if free. uniforms: an array a new row."""
        wanted = list(dict.fromkeys(i for i in prompt_of[seats].tolist() if i not in self.slot_of))
        self.slot_of = {i: s for i, s in self.slot_of.items() if i in prompt_of}
        self.Sp = self.round(max(len(prompts[i]) for i in (*self.slot_of, *wanted)))
        if self.exact:
            self.shared.fit(self.Sp)
        free = sorted(set(range(len(self.length))) - set(self.slot_of.values()))
        while wanted:
            some = wanted[:max(1, 4096 // len(prompts[wanted[0]]))]
            slots, free, wanted = free[:len(some)], free[len(some):], wanted[len(some):]
            self.prefill([prompts[i] for i in some], torch.tensor(slots, device=self.model.device))
            self.slot_of.update(zip(some, slots))
        self.arrange(prompt_of)
        at, new = torch.tensor(seats, device=self.model.device), np.zeros((len(seats), self.new), np.float32)
        for row, u in zip(new, uniforms):
            row[:len(u)] = u
        self.uniforms[at] = torch.from_numpy(new).to(at.device)
        self.count[at] = 1
        token, logprob = self.draw(self.hidden[self.slot[at]], self.uniforms[at, 0])
        self.token[at] = token
        return torch.stack((token.double(), logprob.double())).cpu().numpy()

    def prefill(self, prompts, slots):
        """Read some prompts into the given slots (p,) of the shared cache."""
        lengths = torch.tensor([len(p) for p in prompts], device=slots.device)                # (p,)
        T = max(len(p) for p in prompts)
        ids = torch.tensor([p + [0] * (T - len(p)) for p in prompts], device=slots.device)    # (p, T)
        cache = self.model.new_cache(len(prompts), T)
        with torch.autocast(slots.device.type, dtype=torch.bfloat16, enabled=self.amp):
            hidden = self.model(ids, pos=torch.arange(T, device=slots.device).expand(len(prompts), T), cache=cache)       # (p, T, D)
        self.shared.put(slots, cache)
        self.length[slots] = lengths
        self.hidden[slots] = hidden[torch.arange(len(prompts), device=slots.device), lengths - 1].to(self.hidden.dtype)   # (p, D)

    def arrange(self, prompt_of):
        """Lay the rows out by prompt, for attention to the prompts: P prompts with M places each. `cells` says which (row, head) is at (prompt,
        head, place), `back` which of these a (row, head) is at. Free seats and empty places read what they do not need."""
        slot = np.array([self.slot_of.get(i, 0) for i in prompt_of.tolist()])                 # (B,)
        place, live = np.zeros_like(slot), np.flatnonzero(prompt_of >= 0)
        for s in set(slot[live]):
            mine = live[slot[live] == s]
            place[mine] = np.arange(len(mine))
        self.B, self.P, self.M = len(slot), max(self.slot_of.values()) + 1, int(place.max()) + 1
        if not self.exact:
            self.P, self.M = min(len(self.length), 1 << (self.P - 1).bit_length()), min(self.rows, 1 << (self.M - 1).bit_length())
        head = np.arange(self.model.cfg.n_kv_head)
        cells = np.zeros((self.P, len(head), self.M), np.int64)
        cells[slot[live], :, place[live]] = live[:, None] * len(head) + head
        back = (slot[:, None] * len(head) + head) * self.M + place[:, None]                   # (B, K)
        for mine, new in ((self.slot, slot), (self.cells, cells.ravel()), (self.back, back.ravel())):
            mine[:len(new)] = torch.from_numpy(new).to(mine.device)

    def move(self, kept, prompt_of):
        """Move the rows of the seats `kept` to the first seats, and go on with as many as prompt_of has."""
        kept = torch.tensor(kept, device=self.model.device)
        for x in (*self.own.k, *self.own.v, self.token, self.count, self.uniforms):
            x[:len(kept)] = x[kept]
        self.arrange(prompt_of)

    def next(self, most):
        """One more token in each seat -> (2, B) float64 array: tokens and log-probabilities. most: tokens that any row has so far."""
        if self.exact and most > self.own.slots:
            self.own.fit(self.round(most + most // 8))
        shape = self.B, self.P, self.M, self.Sp, self.own.slots if self.exact else self.round(most)
        self.steps[shape] += 1
        self.step(*shape)
        return self.said[:, :self.B].cpu().numpy()

    def step(self, B, P, M, Sp, Sn):
        """The decode step. Static shapes; reads and writes the buffers in place."""
        cfg, device = self.model.cfg, self.model.device
        H, K, E = cfg.n_head, cfg.n_kv_head, cfg.d_model // cfg.n_head
        row, slot, count = torch.arange(B, device=device), self.slot[:B], self.count[:B]
        at = (count - 1).clamp(max=Sn - 1)                                               # (B,) where the token goes; ended rows may be further
        cos, sin = self.rope((self.length[slot] + count - 1).clamp(max=cfg.max_len - 1))
        def by_prompt(y):                                                                # (B, K, G, S) -> (P, K, M * G, S)
            return y.reshape(B * K, -1).index_select(0, self.cells[:P * K * M]).view(P, K, M * (H // K), -1)

        def by_row(y):                                                                   # (P, K, M * G, S) -> (B, K, G, S)
            return y.view(P * K * M, -1).index_select(0, self.back[:B * K]).view(B, K, H // K, -1)

        seen = torch.cat((torch.arange(Sp, device=device) < self.length[slot, None], torch.arange(Sn, device=device) <= at[:, None]), 1)
        bias = torch.zeros(seen.shape, dtype=self.dtype, device=device).masked_fill_(~seen, -torch.inf)[:, None, None]     # (B, 1, 1, Sp + Sn)
        x = self.model.embed(self.token[:B]).to(torch.promote_types(self.model.dtype, torch.float32))     # (B, D)
        for layer, (norm, qkv, out, mlp_norm, gate_up, down) in enumerate(self.layers):
            h = qkv(norm(x).to(self.dtype)).view(B, H + 2 * K, E)
            h = (h.float() * cos).addcmul_(h.roll(E // 2, -1), sin).to(self.dtype)
            q = h[:, :H].view(B, K, H // K, E)
            ck, cv = self.own.k[layer][:B], self.own.v[layer][:B]
            ck[row, :, at], cv[row, :, at] = h[:, H:H + K], h[:, H + K:]
            pk, pv = self.shared.k[layer][:P, :, :Sp], self.shared.v[layer][:P, :, :Sp]  # (P, K, Sp, E)
            far = by_row(by_prompt(q) @ pk.mT)                                           # (B, K, G, Sp)
            p = (torch.cat((far, q @ ck[:, :, :Sn].mT), -1) + bias).softmax(-1)          # (B, K, G, Sp + Sn)
            y = by_row(by_prompt(p[..., :Sp]) @ pv) + p[..., Sp:] @ cv[:, :, :Sn]        # (B, K, G, E)
            x = x + out(y.view(B, H * E))
            gate, up = gate_up(mlp_norm(x).to(self.dtype)).chunk(2, -1)
            x = x + down(F.silu(gate) * up)
        token, logprob = self.draw(self.model.norm(x), self.uniforms[:B].gather(1, count.clamp(max=self.new - 1)[:, None])[:, 0])
        self.said[0, :B], self.said[1, :B] = token, logprob
        self.token[:B] = token
        count += 1

    def draw(self, hidden, uniforms):
        """A token a row and its log-probability. hidden (N, D), uniforms (N,). On the CPU some rows at a time, which its cache holds."""
        logits = self.head(hidden.float())                                               # (N, V)
        if len(self.forbid):
            logits.index_fill_(1, self.forbid, -torch.inf)
        some = max(1, 2**20 // logits.shape[1]) if self.exact else len(logits)
        parts = [pick(l, u, self.temperature, self.top_p) for l, u in zip(logits.split(some), uniforms.split(some))]
        return tuple(torch.cat(p) for p in zip(*parts))                                  # (N,), (N,)


def linear(modules, dtype):
    """x -> x W^T + b for the stacked weights of some modules, in a dtype; on the CPU in the layout of its matrix product."""
    with torch.no_grad():
        w = torch.cat([m.weight for m in modules]).to(dtype)
        b = None if getattr(modules[0], "bias", None) is None else torch.cat([m.bias for m in modules]).to(dtype)
    if w.device.type != "cpu" or not torch.backends.mkldnn.is_available() or not (
            torch.ops.mkldnn._is_mkldnn_bf16_supported() if dtype == torch.bfloat16 else w.numel() >= 2**20):
        return lambda x: F.linear(x, w, b)
    packed = torch.ops.mkldnn._reorder_linear_weight(w)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, b, "none", [], "")


def pick(logits, uniforms, temperature, top_p):
    """A token a row by inverse CDF, and its log-probability at temperature 1. logits (N, V) float32; N floats in [0, 1).

    Example: pick(log [.5, .5, 0], [.7], 1, 1) -> [1], [log .5]
    """
    probs = logits.softmax(-1)                                                            # (N, V)
    if temperature == 0:
        token = logits.argmax(-1, keepdim=True)                                           # (N, 1)
    else:
        cut, names = probs if temperature == 1 else (logits / temperature).softmax(-1), None                # (N, V)
        if top_p < 1:                                # the smallest set of likeliest tokens that holds top_p
            cut, names = cut.sort(dim=-1, descending=True, stable=True)
            cut = cut.masked_fill(cut.cumsum(-1) - cut >= top_p, 0)
        cdf = cut.cumsum(-1)                                                              # (N, V)
        u = torch.as_tensor(uniforms, dtype=cdf.dtype, device=cdf.device).clamp(max=1 - 2**-24)[:, None] * cdf[:, -1:]
        token = torch.searchsorted(cdf, u, right=True).clamp_(max=logits.shape[-1] - 1)   # (N, 1): the first with cdf > u
        if names is not None:
            token = names.gather(-1, token)
    return token[:, 0], probs.gather(-1, token)[:, 0].log()                               # (N,), (N,)


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
