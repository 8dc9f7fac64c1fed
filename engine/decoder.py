"""Fast inference, one new token per row and step, on static buffers; samples share a prompt's keys.

A prompt is run once, and its keys and values are stored once. Its samples attend to them together,
as one matrix product a head (arXiv 2402.05099). The keys of a row's own tokens are stored apart;
one softmax goes over the scores of both parts.

Rows are driven through four methods:

    start_prompts   rows begin at prompts: run the prompts, draw the rows' first tokens
    start           rows go on from tokens of their own, on caches that a `Reader` filled
    next            one more token for each row
    keep            only these rows go on; the batch shrinks once a quarter of it is free

A row has a slot in the buffers, and the decoder alone knows which. `Decoder.step` has static shapes
and writes in place. On a GPU it is recorded as a CUDA graph when a shape comes the third time, and
replayed from then on; lengths are rounded up to multiples of 128 and counts to powers of two, so
that there are few shapes. On a CPU the same function runs eagerly, on buffers that grow as needed.

Numbers: the residual stream and the logits are float32, whatever the weights' type. With bfloat16
weights, 1.3% of the tokens of SmolLM2 are recorded with a probability off by more than a tenth from
that of one forward pass over the row. With a head in bfloat16 it would be 3.7%, and with a residual
stream in bfloat16 4.2%.

Shapes: B slots in use, P prompts that rows are at, M rows of a prompt at most, Sp slots of prompts,
Sn slots of own tokens, D width, H query heads, K key/value heads, G = H/K, E head width,
V vocabulary, N rows that draw a token.
"""

import collections
import functools
import typing

import numpy as np
import torch

from engine.layers import head_product, stacked_layers
from engine.machine import tokens_at_once
from model import Cache, attention_bias, block


class Step(typing.NamedTuple):
    """What attention needs in every layer of a decode step."""

    prompts: int  # P
    rows: int  # M, rows of a prompt
    prefix: int  # Sp
    own: int  # Sn
    row: torch.Tensor  # (B,) 0..B-1
    position: torch.Tensor  # (B,) the slot of own tokens that the new keys are written to
    cos: torch.Tensor  # (B, H + 2K, E); for q scaled by E^-1/2, for v 1
    sin: torch.Tensor  # (B, H + 2K, E); for v 0
    bias: torch.Tensor  # (B, 1, 1, Sp + Sn)


class Decoder:
    """Decoding for up to `rows` rows that attend to up to `prompts` prompts."""

    def __init__(
        self,
        model,
        rows,
        prompts,
        prefix,
        new,
        *,
        temperature=1.0,
        top_p=1.0,
        forbid=(),
        synonyms=(),
    ):
        """prefix: tokens of a prompt at most; new: own tokens of a row at most.

        temperature, top_p, synonyms: as `pick` takes them. forbid: token ids that are not drawn.
        """
        self.model = model
        self.rows = rows
        self.prompts = prompts
        self.new = new
        device = model.device
        ids = functools.partial(torch.tensor, dtype=torch.int64, device=device)
        self.forbid = ids(list(forbid))
        self.pick = functools.partial(
            pick, temperature=temperature, top_p=top_p, synonyms=ids(list(synonyms))
        )
        self.layers = stacked_layers(model)
        self.head = head_product(model)
        # on a CPU buffers grow; on a GPU they stay where they are, for the graphs
        self.grow_buffers = device.type != "cuda"
        self.quantum = 16 if self.grow_buffers else 128  # lengths are multiples of it
        self.steps = collections.Counter()  # by shape
        self.graphs = {}  # by shape
        self.pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self._make_buffers(prefix)
        self._make_rope_tables()
        self.B = rows
        self.prompt_slot = {}  # prompt -> its slot
        self.prompts_stay = False  # in their slots: a Reader reads them too
        self.prompt_of = np.full(rows, -1)  # the prompt of each row; -1: the row is free
        self.drawn_count = np.zeros(rows, np.int64)  # own tokens of each row
        self.slot_of = np.arange(rows)  # the slot of each row
        self.row_of = np.arange(rows)  # the row of each slot
        self.prefix = np.zeros(
            rows, np.int64
        )  # tokens of its prompt that a row attends to, `share`
        self.room = 0  # own tokens that every step has room for

    def _make_buffers(self, prefix):
        """The tensors that `step` reads and writes: by slot, but for the prompts'."""
        model = self.model
        cfg = model.cfg
        rows = self.rows
        like = torch.empty(0, dtype=model.dtype, device=model.device)
        self.own = Cache(
            cfg, rows, self.quantum if self.grow_buffers else self.round_up(self.new), like
        )
        self.shared = Cache(cfg, self.prompts, self.round_up(prefix), like)
        self.Sp = self.shared.slots
        zeros = functools.partial(torch.zeros, dtype=torch.int64, device=model.device)
        self.token = zeros(rows)  # the last one
        self.count = zeros(rows)  # own tokens
        self.length = zeros(rows) + 1  # tokens of its prompt that a row attends to
        self.prompt_slots = zeros(rows)
        self.cells = zeros(self.prompts * cfg.n_kv_head * rows)  # see `_arrange`
        self.back = zeros(rows * cfg.n_kv_head)
        # token and log-probability, of the last step
        self.drawn = torch.zeros(2, rows, dtype=torch.float64, device=model.device)
        self.uniforms = torch.zeros(rows, self.new, device=model.device)
        # the state behind the last token of each prompt
        self.hidden = torch.zeros(self.prompts, cfg.d_model, dtype=model.dtype, device=model.device)

    def _make_rope_tables(self):
        """Rotary tables of q, k and v heads, cos and sin: (max_len, 2, 1, E) each."""
        cos = self.model.cos
        sin = self.model.sin
        self.rope_k = torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)), 1)
        self.rope_k = self.rope_k[:, :, None]  # (max_len, 2, 1, E)
        self.rope_q = self.rope_k * self.rope_k.shape[-1] ** -0.5
        still = torch.tensor([1.0, 0.0], device=cos.device)
        self.rope_v = still[None, :, None, None]  # (1, 2, 1, 1): values are not rotated

    # ------------------------------------------------------------ rows

    def start_prompts(self, rows, prompt_of, prompts, uniforms):
        """Let rows begin at prompts -> (tokens (n,), log-probabilities (n,)), their first ones.

        rows       (n,) ints
        prompt_of  (rows,) the index of the prompt of every row; -1: the row is free
        prompts    lists of token ids
        uniforms   n arrays: of each new row the uniforms of its tokens
        """
        device = self.model.device
        self.prompt_of[:] = prompt_of
        self._read_prompts(list(dict.fromkeys(prompt_of[rows].tolist())), prompts)
        self._arrange(self.B)
        slots = torch.tensor(self.slot_of[rows], device=device)  # (n,)
        table = np.zeros((len(rows), self.new), np.float32)
        for line, u in zip(table, uniforms, strict=True):
            line[: len(u)] = u
        self.uniforms[slots] = torch.from_numpy(table).to(device)
        lengths = [len(prompts[i]) for i in prompt_of[rows]]
        self.length[slots] = torch.tensor(lengths, device=device)
        self.count[slots] = 1
        self.drawn_count[rows] = 1
        token, logprob = self.draw(self.hidden[self.prompt_slots[slots]], self.uniforms[slots, 0])
        self.token[slots] = token
        drawn = torch.stack((token.double(), logprob.double())).cpu().numpy()
        return drawn[0].astype(np.int64), drawn[1]

    def share(self, prompt_of, lengths):
        """Say what all rows attend to, before `start`: the shared cache is filled by a Reader.

        prompt_of (rows,): the slot of each row's prompt; lengths (rows,): its tokens that the row
        attends to.
        """
        self.prompts_stay = True
        self.prompt_of[:] = prompt_of
        self.prompt_slot = {int(b): int(b) for b in set(prompt_of[lengths > 0].tolist())}
        self.prefix = lengths
        if self.grow_buffers:
            self.shared.fit(self.round_up(int(lengths.max()) or 1))
        self.Sp = self.shared.slots

    def start(self, rows, tokens, uniforms, known):
        """Let rows go on from tokens whose keys are not known yet.

        rows      (n,) ints
        tokens    (n,) ids
        uniforms  (n, steps): of the tokens to be drawn
        known     (rows,): of every row, own tokens whose keys are in the cache. Free slots of the
                  batch write behind these
        """
        n, steps = uniforms.shape
        self._to_front(rows)
        self.room = int(known.max()) + steps + 2
        self.reserve(self.room)
        self.drawn_count[:] = known + 1
        self.length[:] = self._by_slot(np.maximum(1, self.prefix))
        self.count[:] = self._by_slot(known + 1)
        slots = torch.from_numpy(self.slot_of[rows]).to(self.token.device)  # (n,)
        self.token[slots] = torch.from_numpy(tokens).to(slots.device)
        columns = torch.from_numpy(known[rows][:, None] + 1 + np.arange(steps)).to(slots.device)
        values = torch.from_numpy(uniforms.astype(np.float32)).to(slots.device)
        self.uniforms[slots[:, None], columns] = values

    def _by_slot(self, values):
        return torch.from_numpy(values[self.row_of]).to(self.token.device)  # (rows,)

    def next(self, rows):
        """One more token for each of the rows -> (tokens (n,), log-probabilities (n,))."""
        most = max(self.room, int(self.drawn_count[rows].max()))
        self.reserve(most)
        self.drawn_count[rows] += 1
        Sn = self.own.slots if self.grow_buffers else self.round_up(most)
        self._run((self.B, self.P, self.M, self.Sp, Sn))
        drawn = self.drawn[:, : self.B].cpu().numpy()[:, self.slot_of[rows]]
        return drawn[0].astype(np.int64), drawn[1]

    def keep(self, rows):
        """Only these rows go on. The batch shrinks if a quarter of its slots is free."""
        if 4 * len(rows) > 3 * self.B or self._bucket(len(rows)) >= self.B:
            return
        if not self.prompts_stay:
            free = np.ones(self.rows, bool)
            free[rows] = False
            self.prompt_of[free] = -1
            self._compact_prompts()
        self._to_front(self.row_of[np.sort(self.slot_of[rows])])

    def context(self, rows, own, reach):
        """The caches that rows attend to, as `Reader.read` takes them -> (prompt part, own part).

        own (n,): own tokens of each row that it attends to; reach: room for so many own tokens.
        """
        self.reserve(reach)
        prompts = self.prompt_of[rows], self.prefix[rows]
        return (self.shared, *prompts), (self.own, self.slot_of[rows], own)

    # ------------------------------------------------------------ slots

    def round_up(self, n):
        return -(-n // self.quantum) * self.quantum

    def _bucket(self, n):
        """Slots that a step is made for when n rows are left: on a GPU a power of two."""
        return n if self.grow_buffers else min(self.rows, 1 << (n - 1).bit_length())

    def reserve(self, most):
        """Room for so many own tokens. Buffers grow by little: a step copies what it slices."""
        if self.grow_buffers and most > self.own.slots:
            self.own.fit(self.round_up(most + most // 8))

    def _read_prompts(self, wanted, prompts):
        """Run the prompts of these indices that are not in the shared cache yet."""
        self.prompt_slot = {i: s for i, s in self.prompt_slot.items() if i in self.prompt_of}
        wanted = [i for i in wanted if i not in self.prompt_slot]
        self.Sp = self.round_up(max(len(prompts[i]) for i in (*self.prompt_slot, *wanted)))
        if self.grow_buffers:
            self.shared.fit(self.Sp)
        free = sorted(set(range(self.prompts)) - set(self.prompt_slot.values()))
        while wanted:
            count = max(1, tokens_at_once(self.model.device) // len(prompts[wanted[0]]))
            batch = wanted[:count]
            slots = free[: len(batch)]
            self._read_batch([prompts[i] for i in batch], slots)
            self.prompt_slot.update(zip(batch, slots, strict=True))
            wanted = wanted[count:]
            free = free[len(batch) :]

    def _read_batch(self, prompts, slots):
        """Run prompts, padded, into slots (p,) of the shared cache."""
        device = self.model.device
        slots = torch.tensor(slots, device=device)
        T = max(len(p) for p in prompts)
        ids = torch.tensor([p + [0] * (T - len(p)) for p in prompts], device=device)  # (p, T)
        pos = torch.arange(T, device=device).expand(len(prompts), T)
        cache = self.model.new_cache(len(prompts), T)
        hidden = self.model(ids, pos=pos, cache=cache)  # (p, T, D)
        self.shared.put(slots, cache)
        last = torch.tensor([len(p) for p in prompts], device=device) - 1  # (p,)
        self.hidden[slots] = hidden[torch.arange(len(prompts), device=device), last]  # (p, D)

    def _compact_prompts(self):
        """Move the prompts that rows are at to the first slots of the shared cache."""
        prompts = [i for i in self.prompt_slot if i in self.prompt_of]
        slots = torch.tensor([self.prompt_slot[i] for i in prompts], device=self.model.device)
        for x in (*self.shared.k, *self.shared.v):
            x[: len(prompts)] = x[slots]
        self.prompt_slot = {i: s for s, i in enumerate(prompts)}

    def _to_front(self, rows):
        """Swap rows so that these have the first slots, and run steps on those alone."""
        n = len(rows)
        slots = set(self.slot_of[rows].tolist())
        outside = [s for s in self.slot_of[rows].tolist() if s >= n]
        holes = sorted(set(range(n)) - slots)
        target = holes + outside
        source = outside + holes
        if outside:
            to = torch.tensor(target, device=self.model.device)
            now = torch.tensor(source, device=self.model.device)
            for x in (*self.own.k, *self.own.v, self.token, self.count, self.uniforms, self.length):
                x[to] = x[now]
        self.row_of[target] = self.row_of[source]
        self.slot_of[self.row_of] = np.arange(self.rows)
        self._arrange(self._bucket(n), n)

    def _arrange(self, B, n=None):
        """Lay the first B slots out by prompt: P prompts with M places each, for attention.

        `cells` has the (slot, head) at each (prompt, head, place), `back` the (prompt, head, place)
        of each (slot, head). Free slots and places attend to what they do not need. n: slots
        behind it are free (default: those of free rows).
        """
        prompt_of = self.prompt_of[self.row_of[:B]]  # (B,)
        live = prompt_of >= 0
        live[B if n is None else n :] = False
        live = np.flatnonzero(live)
        slot = np.zeros(B, np.int64)  # of the prompt
        slot[live] = [self.prompt_slot.get(i, 0) for i in prompt_of[live].tolist()]
        place = np.zeros(B, np.int64)
        for s in set(slot[live].tolist()):
            together = live[slot[live] == s]
            place[together] = np.arange(len(together))
        self.B = B
        self.P = max(self.prompt_slot.values()) + 1
        self.M = int(place.max()) + 1
        if not self.grow_buffers:
            self.P = min(self.prompts, 1 << (self.P - 1).bit_length())
            self.M = min(self.rows, 1 << (self.M - 1).bit_length())
        head = np.arange(self.model.cfg.n_kv_head)
        cells = np.zeros((self.P, len(head), self.M), np.int64)
        cells[slot[live], :, place[live]] = live[:, None] * len(head) + head
        back = (slot[:, None] * len(head) + head) * self.M + place[:, None]  # (B, K)
        for buffer, values in (
            (self.prompt_slots, slot),
            (self.cells, cells.ravel()),
            (self.back, back.ravel()),
        ):
            buffer[: len(values)] = torch.from_numpy(values).to(buffer.device)

    # ------------------------------------------------------------ a step

    def _run(self, shape):
        """`step`, or on a GPU its graph: two eager steps warm up what a graph cannot record."""
        self.steps[shape] += 1
        if self.pool is None or self.steps[shape] < 3:
            self.step(*shape)
            return
        if shape not in self.graphs:
            self.graphs[shape] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graphs[shape], pool=self.pool):
                self.step(*shape)
        self.graphs[shape].replay()

    def step(self, B, P, M, Sp, Sn):
        """One decode step. Static shapes; reads and writes the buffers in place."""
        step = self._prepare(B, P, M, Sp, Sn)
        x = self.model.embeddings(self.token[:B])  # (B, D)
        for number, layer in enumerate(self.layers):
            x = block(x, layer, functools.partial(self._attend, number, step))
        column = self.count[:B].clamp(max=self.new - 1)[:, None]  # (B, 1)
        uniforms = self.uniforms[:B].gather(1, column)[:, 0]
        token, logprob = self.draw(self.model.norm(x), uniforms)
        self.drawn[0, :B] = token
        self.drawn[1, :B] = logprob
        self.token[:B] = token
        self.count[:B] += 1

    def _prepare(self, B, P, M, Sp, Sn):
        """Positions, rotary tables and bias: what all layers of a step share."""
        cfg = self.model.cfg
        device = self.model.device
        K = cfg.n_kv_head
        length = self.length[:B]
        count = self.count[:B]
        position = (count - 1).clamp(max=Sn - 1)  # (B,); rows that ended may be further
        pos = (length + count - 1).clamp(max=cfg.max_len - 1)
        heads = (
            self.rope_q[pos].expand(-1, -1, cfg.n_head, -1),
            self.rope_k[pos].expand(-1, -1, K, -1),
            self.rope_v.expand(B, 2, K, self.rope_k.shape[-1]),
        )
        cos, sin = torch.cat(heads, 2).unbind(1)  # (B, H + 2K, E) each
        in_prefix = torch.arange(Sp, device=device) < length[:, None]  # (B, Sp)
        in_own = torch.arange(Sn, device=device) <= position[:, None]  # (B, Sn)
        mask = torch.cat((in_prefix, in_own), 1)
        bias = attention_bias(mask, self.model.dtype)[:, None, None]  # (B, 1, 1, Sp + Sn)
        row = torch.arange(B, device=device)
        return Step(P, M, Sp, Sn, row, position, cos, sin, bias)

    def _attend(self, number, step, qkv):
        """Attention of a layer to prompts and own tokens: qkv (B, (H + 2K) E) -> (B, H E)."""
        H, K = self.model.cfg.n_head, self.model.cfg.n_kv_head
        B = len(step.row)
        P = step.prompts
        M = step.rows
        Sp = step.prefix
        Sn = step.own
        heads = qkv.view(B, H + 2 * K, -1)  # (B, H + 2K, E)
        turned = heads.roll(heads.shape[-1] // 2, -1)
        heads = (heads.float() * step.cos).addcmul_(turned, step.sin).to(self.model.dtype)
        q = heads[:, :H].view(B, K, H // K, -1)  # (B, K, G, E)
        own_k = self.own.k[number][:B]  # (B, K, slots, E)
        own_v = self.own.v[number][:B]
        own_k[step.row, :, step.position] = heads[:, H : H + K]
        own_v[step.row, :, step.position] = heads[:, H + K :]
        prompt_k = self.shared.k[number][:P, :, :Sp]  # (P, K, Sp, E)
        prompt_v = self.shared.v[number][:P, :, :Sp]
        cells = self.cells[: P * K * M]
        back = self.back[: B * K]

        def by_prompt(y):  # (B, K, G, S) -> (P, K, M G, S)
            y = y.reshape(B * K, -1).index_select(0, cells)
            return y.view(P, K, M * (H // K), -1)

        def by_row(y):  # (P, K, M G, S) -> (B, K, G, S)
            return y.view(P * K * M, -1).index_select(0, back).view(B, K, H // K, -1)

        far = by_row(by_prompt(q) @ prompt_k.mT)  # (B, K, G, Sp)
        near = q @ own_k[:, :, :Sn].mT  # (B, K, G, Sn)
        p = (torch.cat((far, near), -1) + step.bias).softmax(-1)  # (B, K, G, Sp + Sn)
        y = by_row(by_prompt(p[..., :Sp]) @ prompt_v) + p[..., Sp:] @ own_v[:, :, :Sn]
        return y.view(B, -1)  # (B, H E)

    def draw(self, hidden, uniforms):
        """A token per row and its log-probability: (N,), (N,). hidden (N, D), uniforms (N,)."""
        logits = self.head(hidden)  # (N, V)
        if len(self.forbid):
            logits.index_fill_(1, self.forbid, -torch.inf)
        # on a CPU as many rows at a time as its cache holds
        size = max(1, 2**20 // logits.shape[1]) if self.grow_buffers else len(logits)
        chunks = zip(logits.split(size), uniforms.split(size), strict=True)
        tokens, logprobs = zip(*(self.pick(x, u) for x, u in chunks), strict=True)
        return torch.cat(tokens), torch.cat(logprobs)


def pick(logits, uniforms, temperature=1.0, top_p=1.0, synonyms=()):
    """A token per row by inverse CDF, and its log-probability at temperature 1: (N,), (N,).

    logits (N, V) float32; uniforms: N floats in [0, 1). temperature 0: the likeliest token. top_p:
    draw from the smallest set of likeliest tokens that holds so much probability. synonyms (K,):
    token ids that mean the same; each is recorded with the log-probability of them all.

    Example: pick(log [.5, .5, 0], [.7]) -> [1], [log .5]
    """
    probs = logits.softmax(-1)  # (N, V)
    if temperature == 0:
        token = logits.argmax(-1, keepdim=True)  # (N, 1)
    else:
        tempered = probs if temperature == 1 else (logits / temperature).softmax(-1)
        token = (
            inverse_cdf(tempered, uniforms) if top_p == 1 else nucleus(tempered, uniforms, top_p)
        )
    prob = probs.gather(-1, token)[:, 0]  # (N,)
    if len(synonyms):
        together = probs.index_select(1, synonyms).sum(-1)
        prob = torch.where((token == synonyms).any(1), together, prob)
    return token[:, 0], prob.log()  # (N,), (N,)


def inverse_cdf(probs, uniforms):
    """The first index whose cumulative probability passes u: (N, 1). probs (N, V) may sum to less.

    Example: [.5, .5, 0], .7 -> 1
    """
    cdf = probs.cumsum(-1)  # (N, V)
    u = torch.as_tensor(uniforms, dtype=cdf.dtype, device=cdf.device)
    u = u.clamp(max=1 - 2**-24)[:, None] * cdf[:, -1:]  # (N, 1)
    return torch.searchsorted(cdf, u, right=True).clamp_(max=cdf.shape[-1] - 1)


def nucleus(probs, uniforms, top_p):
    """A token per row from the smallest set of likeliest tokens that holds top_p: (N, 1)."""
    ranked = None
    if not probs.is_cuda:  # on a CPU sorting them all is slow
        ranked = probs.topk(min(256, probs.shape[1]))
    if ranked is None or not (ranked.values.sum(-1) > top_p).all():
        ranked = probs.sort(-1, True)
    values, names = ranked  # (N, V or less) each
    values = values.masked_fill(values.cumsum(-1) - values >= top_p, 0)
    return names.gather(-1, inverse_cdf(values, uniforms))
