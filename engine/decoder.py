"""One token a row: the decode step on static buffers, with prompts that their samples share, and the draw of a token.

A prompt is read once and its keys and values are kept once: its samples read them together, as one matrix product a head (arXiv 2402.05099).
What a row wrote itself is kept apart; one softmax goes over the scores of both parts.

`Decoder.step` has static shapes and writes in place. On a GPU it is recorded as a CUDA graph when a shape comes the third time, and replayed
from then on; lengths are rounded up to multiples of 128 and counts to powers of two, so that there are few shapes. On the CPU the same function
runs eagerly, on caches that are exactly as long as needed and on weights that are packed once a call.

The other half, for tokens that are known, is reader.py.

Numbers: the residual stream and the logits are float32, whatever the weights' type; the head is a float32 copy. With bfloat16 weights 1.3% of
the tokens of SmolLM2 are recorded with a probability that is off by more than a tenth from that of one forward of the whole row. It would be
3.7% with a head in bfloat16, and 4.2% with a residual stream in bfloat16.

Shapes: B seats, P prompts that seats are at, M seats of a prompt at most, Sp slots of prompts, Sn slots of own tokens, D width, H query
heads, K key/value heads, G = H/K, E head width, V vocabulary, N rows that draw a token.
"""

import collections
import functools

import numpy as np
import torch
import torch.nn.functional as F

from engine.reader import linear, packed
from model import Cache


class Decoder:
    """The model's decode step for up to `rows` rows that read up to `prompts` prompts of up to `prefix` tokens and write `new` each. forbid: token ids that
    cannot be written; ends: ids that mean the same (`pick`)."""

    def __init__(self, model, rows, prompts, prefix, new, temperature, top_p, forbid, ends=()):
        cfg, device = model.cfg, model.device
        self.model, self.rows, self.prompts, self.new, self.temperature, self.top_p = (
            model,
            rows,
            prompts,
            new,
            temperature,
            top_p,
        )
        self.B, self.slot_of, self.steps, self.graphs = rows, {}, collections.Counter(), {}
        self.exact = device.type != "cuda"  # else few shapes, and buffers that stay where they are
        self.quantum = 16 if self.exact else 128  # lengths are rounded up to multiples of it
        self.pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self.forbid, self.ends = (
            torch.tensor(list(ids), dtype=torch.int64, device=device) for ids in (forbid, ends)
        )
        like = torch.empty(0, dtype=model.dtype, device=device)
        self.own = Cache(cfg, rows, self.quantum if self.exact else self.round(new), like)
        self.shared = Cache(cfg, prompts, self.round(prefix), like)
        zeros = functools.partial(torch.zeros, dtype=torch.int64, device=device)
        self.token, self.count, self.slot = (
            zeros(rows),
            zeros(rows),
            zeros(rows),
        )  # the last token; tokens drawn so far; the prompt's slot
        self.cells, self.back = (
            zeros(prompts * cfg.n_kv_head * rows),
            zeros(rows * cfg.n_kv_head),
        )  # see `arrange`
        self.length = zeros(rows) + 1  # tokens of its prompt that a row sees
        self.said = torch.zeros(
            2, rows, dtype=torch.float64, device=device
        )  # token and log-probability
        self.uniforms = torch.zeros(rows, new, device=device)
        self.hidden = torch.zeros(
            prompts, cfg.d_model, dtype=model.dtype, device=device
        )  # of each prompt's last token
        rope = torch.stack(
            (torch.cat((model.cos, model.cos), -1), torch.cat((-model.sin, model.sin), -1)), 1
        )[:, :, None]  # (max_len, 2, 1, E)
        scaled, H, K = rope * (cfg.d_model // cfg.n_head) ** -0.5, cfg.n_head, cfg.n_kv_head
        still = torch.tensor([1.0, 0.0], device=device)[
            None, :, None, None
        ]  # values are rotated by nothing
        self.rope = lambda pos: torch.cat(
            (
                scaled[pos].expand(-1, -1, H, -1),
                rope[pos].expand(-1, -1, K, -1),
                still.expand(len(pos), 2, K, rope.shape[-1]),
            ),
            2,
        ).unbind(1)  # 2 x (B, H + 2K, E)
        self.layers = packed(model, model.dtype)
        self.head = linear([model.head or model.embed], torch.float32)

    def round(self, n):
        return -(-n // self.quantum) * self.quantum

    def bucket(self, n):
        """Rows that a step is made for when n are left: on a GPU a power of two."""
        return n if self.exact else min(self.rows, 1 << (n - 1).bit_length())

    def told(self):
        return f", {len(self.graphs)} graphs" if self.graphs else ""

    def seat(self, seats, prompt_of, prompts, uniforms):
        """Put rows on `seats` and draw their first tokens. prompt_of (B,): prompt index of every seat, -1 if free. uniforms: an array a new row."""
        wanted = list(dict.fromkeys(i for i in prompt_of[seats].tolist() if i not in self.slot_of))
        self.slot_of = {i: s for i, s in self.slot_of.items() if i in prompt_of}
        self.Sp = self.round(max(len(prompts[i]) for i in (*self.slot_of, *wanted)))
        if self.exact:
            self.shared.fit(self.Sp)
        free = sorted(set(range(self.prompts)) - set(self.slot_of.values()))
        while wanted:
            some = wanted[: max(1, 4096 // len(prompts[wanted[0]]))]
            slots, free, wanted = free[: len(some)], free[len(some) :], wanted[len(some) :]
            self.prefill([prompts[i] for i in some], torch.tensor(slots, device=self.model.device))
            self.slot_of.update(zip(some, slots))
        self.arrange(prompt_of)
        at, new = (
            torch.tensor(seats, device=self.model.device),
            np.zeros((len(seats), self.new), np.float32),
        )
        for row, u in zip(new, uniforms):
            row[: len(u)] = u
        self.uniforms[at] = torch.from_numpy(new).to(at.device)
        self.count[at], self.length[at] = (
            1,
            torch.tensor([len(prompts[i]) for i in prompt_of[seats]], device=at.device),
        )
        token, logprob = self.draw(self.hidden[self.slot[at]], self.uniforms[at, 0])
        self.token[at] = token
        return torch.stack((token.double(), logprob.double())).cpu().numpy()

    def prefill(self, prompts, slots):
        """Read some prompts into the given slots (p,) of the shared cache."""
        lengths = torch.tensor([len(p) for p in prompts], device=slots.device)  # (p,)
        T = max(len(p) for p in prompts)
        ids = torch.tensor([p + [0] * (T - len(p)) for p in prompts], device=slots.device)  # (p, T)
        cache = self.model.new_cache(len(prompts), T)
        hidden = self.model(
            ids, pos=torch.arange(T, device=slots.device).expand(len(prompts), T), cache=cache
        )  # (p, T, D)
        self.shared.put(slots, cache)
        self.hidden[slots] = hidden[
            torch.arange(len(prompts), device=slots.device), lengths - 1
        ]  # (p, D)

    def arrange(self, prompt_of):
        """Lay the rows out by prompt, for attention to the prompts: P prompts with M places each. `cells` says which (row, head) is at (prompt,
        head, place), `back` which of these a (row, head) is at. Free seats and empty places read what they do not need."""
        slot = np.array([self.slot_of.get(i, 0) for i in prompt_of.tolist()])  # (B,)
        place, live = np.zeros_like(slot), np.flatnonzero(prompt_of >= 0)
        for s in set(slot[live]):
            mine = live[slot[live] == s]
            place[mine] = np.arange(len(mine))
        self.B, self.P, self.M = len(slot), max(self.slot_of.values()) + 1, int(place.max()) + 1
        if not self.exact:
            self.P, self.M = (
                min(self.prompts, 1 << (self.P - 1).bit_length()),
                min(self.rows, 1 << (self.M - 1).bit_length()),
            )
        head = np.arange(self.model.cfg.n_kv_head)
        cells = np.zeros((self.P, len(head), self.M), np.int64)
        cells[slot[live], :, place[live]] = live[:, None] * len(head) + head
        back = (slot[:, None] * len(head) + head) * self.M + place[:, None]  # (B, K)
        for mine, new in (
            (self.slot, slot),
            (self.cells, cells.ravel()),
            (self.back, back.ravel()),
        ):
            mine[: len(new)] = torch.from_numpy(new).to(mine.device)

    def move(self, kept, prompt_of):
        """Move the rows of the seats `kept` to the first seats, their prompts to the first slots, and go on with as many seats as prompt_of has."""
        kept, prompts = (
            torch.tensor(kept, device=self.model.device),
            [i for i in self.slot_of if i in prompt_of],
        )
        slots = torch.tensor([self.slot_of[i] for i in prompts], device=self.model.device)
        for which, some in ((kept, self.of_rows()), (slots, (*self.shared.k, *self.shared.v))):
            for x in some:
                x[: len(which)] = x[which]
        self.slot_of = {i: s for s, i in enumerate(prompts)}
        self.arrange(prompt_of)

    def of_rows(self):
        return *self.own.k, *self.own.v, self.token, self.count, self.uniforms, self.length

    def front(self, seats):
        """Swap rows so that those of some seats have the first ones; nothing is lost. -> (rows,) int: the seat that each row had before."""
        order, outside = np.arange(self.rows), [s for s in seats if s >= len(seats)]
        inside = sorted(set(range(len(seats))) - set(seats))
        order[inside], order[outside] = outside, inside
        to, now = (
            torch.tensor(x, dtype=torch.int64, device=self.model.device)
            for x in (inside + outside, outside + inside)
        )
        for x in self.of_rows() if outside else ():
            x[to] = x[now]
        return order

    def reserve(self, most):
        """Room for so many own tokens a row: on the CPU hardly more than needed, because what is sliced is copied first."""
        if self.exact and most > self.own.slots:
            self.own.fit(self.round(most + most // 8))

    def next(self, most):
        """One more token in each seat -> (2, B) float64 array: tokens and log-probabilities. most: tokens that any row has so far."""
        self.reserve(most)
        shape = self.B, self.P, self.M, self.Sp, self.own.slots if self.exact else self.round(most)
        self.steps[shape] += 1
        if (
            self.pool is None or self.steps[shape] < 3
        ):  # on a GPU the first two warm up what a graph cannot record
            self.step(*shape)
        else:
            if shape not in self.graphs:
                self.graphs[shape] = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graphs[shape], pool=self.pool):
                    self.step(*shape)
            self.graphs[shape].replay()
        return self.said[:, : self.B].cpu().numpy()

    def step(self, B, P, M, Sp, Sn):
        """The decode step. Static shapes; reads and writes the buffers in place."""
        cfg, device = self.model.cfg, self.model.device
        H, K, E = cfg.n_head, cfg.n_kv_head, cfg.d_model // cfg.n_head
        row, length, count = torch.arange(B, device=device), self.length[:B], self.count[:B]
        at = (count - 1).clamp(max=Sn - 1)  # (B,) where the token goes; ended rows may be further
        cos, sin = self.rope((length + count - 1).clamp(max=cfg.max_len - 1))

        def by_prompt(y):  # (B, K, G, S) -> (P, K, M * G, S)
            return (
                y.reshape(B * K, -1)
                .index_select(0, self.cells[: P * K * M])
                .view(P, K, M * (H // K), -1)
            )

        def by_row(y):  # (P, K, M * G, S) -> (B, K, G, S)
            return y.view(P * K * M, -1).index_select(0, self.back[: B * K]).view(B, K, H // K, -1)

        seen = torch.cat(
            (
                torch.arange(Sp, device=device) < length[:, None],
                torch.arange(Sn, device=device) <= at[:, None],
            ),
            1,
        )
        bias = torch.zeros(seen.shape, dtype=self.model.dtype, device=device).masked_fill_(
            ~seen, -torch.inf
        )[:, None, None]  # (B, 1, 1, Sp + Sn)
        x = self.model.embed(self.token[:B]).to(
            torch.promote_types(self.model.dtype, torch.float32)
        )  # (B, D)
        for layer, (norm, qkv, out, mlp_norm, gate_up, down) in enumerate(self.layers):
            h = qkv(norm(x)).view(B, H + 2 * K, E)
            h = (h.float() * cos).addcmul_(h.roll(E // 2, -1), sin).to(self.model.dtype)
            q = h[:, :H].view(B, K, H // K, E)
            ck, cv = self.own.k[layer][:B], self.own.v[layer][:B]
            ck[row, :, at], cv[row, :, at] = h[:, H : H + K], h[:, H + K :]
            pk, pv = (
                self.shared.k[layer][:P, :, :Sp],
                self.shared.v[layer][:P, :, :Sp],
            )  # (P, K, Sp, E)
            far = by_row(by_prompt(q) @ pk.mT)  # (B, K, G, Sp)
            p = (torch.cat((far, q @ ck[:, :, :Sn].mT), -1) + bias).softmax(
                -1
            )  # (B, K, G, Sp + Sn)
            y = by_row(by_prompt(p[..., :Sp]) @ pv) + p[..., Sp:] @ cv[:, :, :Sn]  # (B, K, G, E)
            x = x + out(y.view(B, H * E))
            gate, up = gate_up(mlp_norm(x)).chunk(2, -1)
            x = x + down(F.silu(gate) * up)
        token, logprob = self.draw(
            self.model.norm(x),
            self.uniforms[:B].gather(1, count.clamp(max=self.new - 1)[:, None])[:, 0],
        )
        self.said[0, :B], self.said[1, :B] = token, logprob
        self.token[:B] = token
        count += 1

    def draw(self, hidden, uniforms):
        """A token a row and its log-probability. hidden (N, D), uniforms (N,). On the CPU some rows at a time, which its cache holds."""
        logits = self.head(hidden.float())  # (N, V)
        if len(self.forbid):
            logits.index_fill_(1, self.forbid, -torch.inf)
        some = max(1, 2**20 // logits.shape[1]) if self.exact else len(logits)
        parts = [
            pick(l, u, self.temperature, self.top_p, self.ends)
            for l, u in zip(logits.split(some), uniforms.split(some))
        ]
        return tuple(torch.cat(p) for p in zip(*parts))  # (N,), (N,)


def pick(logits, uniforms, temperature, top_p, ends=()):
    """A token a row by inverse CDF, and its log-probability at temperature 1. logits (N, V) float32; N floats in [0, 1). ends (K,): token ids
    that mean the same: each has the log-probability of them all.

    Example: pick(log [.5, .5, 0], [.7], 1, 1) -> [1], [log .5]
    """
    probs = logits.softmax(-1)  # (N, V)
    if temperature == 0:
        token = logits.argmax(-1, keepdim=True)  # (N, 1)
    else:
        cut, names = (
            probs if temperature == 1 else (logits / temperature).softmax(-1),
            None,
        )  # (N, V)
        if top_p < 1:  # the smallest set of likeliest tokens that holds top_p
            few = (
                None if cut.is_cuda else cut.topk(min(256, cut.shape[1]))
            )  # on the CPU sorting them all is slow
            cut, names = (
                few if few and (few.values.sum(-1) > top_p).all() else cut.sort(-1, True)
            )  # (N, V or less)
            cut = cut.masked_fill(cut.cumsum(-1) - cut >= top_p, 0)
        cdf = cut.cumsum(-1)  # (N, V)
        u = (
            torch.as_tensor(uniforms, dtype=cdf.dtype, device=cdf.device).clamp(max=1 - 2**-24)[
                :, None
            ]
            * cdf[:, -1:]
        )
        token = torch.searchsorted(cdf, u, right=True).clamp_(
            max=cdf.shape[-1] - 1
        )  # (N, 1): the first with cdf > u
        if names is not None:
            token = names.gather(-1, token)
    chosen = probs.gather(-1, token)[:, 0]  # (N,)
    if len(ends):
        chosen = torch.where((token == ends).any(1), probs.index_select(1, ends).sum(-1), chosen)
    return token[:, 0], chosen.log()  # (N,), (N,)
