"""Fast inference, one new token per row and step, on static buffers; samples share a prompt's keys.

A prompt is run once, and its keys and values are stored once; those of a row's own tokens are
stored apart. One softmax goes over the scores of both.

Rows are driven through four methods:

    start_prompts   rows begin at prompts: run the prompts, draw the rows' first tokens
    start           rows go on from tokens of their own, on caches that a `Reader` filled
    next            more tokens for each row
    keep            only these rows go on; the batch shrinks once a quarter of it is free

A row has a slot in the buffers, and the decoder alone knows which. `Decoder.step` writes in place.

On a CPU the samples of a prompt attend to it together, as one matrix product a head (arXiv
2402.05099), the buffers grow as needed, and every token is looked at.

On a GPU attention is one kernel (kernels.py), which reads all lengths there. So the number of slots
alone decides what a step is: it is recorded as a CUDA graph when a number, a power of two, comes
the second time, and replayed from then on. Tokens are looked at every eight steps: each look waits
for the GPU. What a row draws behind its end is thrown away. A decoder that is small beside the
GPU's memory stays from call to call, with its graphs (`decoder_for`).

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
import weakref

import numpy as np
import torch
import torch.nn.functional as F

from engine.kernels import Rows, step_attention
from engine.layers import stacked_model, tensors_of
from engine.machine import download, tokens_at_once, upload
from model import Cache, attention_bias, block

LOOK = 8  # steps between two looks at the tokens, on a GPU
STAYS = 1 / 20  # a decoder stays on a GPU if it takes at most so much of its memory
STANDING = []  # the decoder that stays, at most one


class Step(typing.NamedTuple):
    """What attention needs in every layer of a decode step on a CPU."""

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
        self.cfg = model.cfg
        self.rows = rows
        self.prompts = prompts
        self.new = new
        device = model.device
        ids = (np.array(list(group), np.int64) for group in (forbid, synonyms))
        self.forbid, synonyms = upload(device, *ids)
        self.pick = functools.partial(pick, temperature=temperature, top_p=top_p, synonyms=synonyms)
        self.weights = stacked_model(model)
        # on a CPU buffers grow; on a GPU they stay where they are, for the graphs
        self.grow_buffers = device.type != "cuda"
        self.quantum = 16 if self.grow_buffers else 128  # lengths are multiples of it
        self.look = 1 if self.grow_buffers else LOOK
        self.steps = collections.Counter()  # by slots
        self.graphs = {}  # by slots
        self.pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self.rope = model.cos, model.sin  # (max_len, E/2) each
        self._make_buffers(prefix, torch.empty(0, dtype=model.dtype, device=device))
        self.begin(model)

    def begin(self, model):
        """All rows are free; the prompts are run by this model, whose weights these are."""
        rows = self.rows
        self.model = model
        self.B = rows
        self.Sp = self.shared.slots
        self.Sn = self.own.slots
        self.prompt_slot = {}  # prompt -> its slot
        self.prompts_stay = False  # in their slots: a Reader reads them too
        self.prompt_of = np.full(rows, -1)  # the prompt of each row; -1: the row is free
        self.drawn_count = np.zeros(rows, np.int64)  # own tokens of each row
        self.slot_of = np.arange(rows)  # the slot of each row
        self.row_of = np.arange(rows)  # the row of each slot
        # tokens of its prompt that a row attends to, `share`
        self.prefix = np.zeros(rows, np.int64)
        self.room = 0  # own tokens that every step has room for

    def _make_buffers(self, prefix, like):
        """The tensors that `step` reads and writes: by slot, but for the prompts'."""
        cfg = self.cfg
        rows = self.rows
        slots = self.quantum if self.grow_buffers else self.round_up(self.new)
        self.own = Cache(cfg, rows, slots, like)
        self.shared = Cache(cfg, self.prompts, self.round_up(prefix), like)
        zeros = functools.partial(torch.zeros, dtype=torch.int64, device=like.device)
        self.token = zeros(rows)  # the last one
        self.count = zeros(rows) + 1  # own tokens
        self.length = zeros(rows) + 1  # tokens of its prompt that a row attends to
        self.prompt_slots = zeros(rows)
        # token and log-probability of the last steps, the last one first
        self.drawn = torch.zeros(self.look, 2, rows, dtype=torch.float64, device=like.device)
        self.uniforms = torch.zeros(rows, self.new, device=like.device)
        # the state behind the last token of each prompt
        self.hidden = like.new_zeros(self.prompts, cfg.d_model)
        if self.grow_buffers:
            self.cells = zeros(self.prompts * cfg.n_kv_head * rows)  # see `_arrange_cells`
            self.back = zeros(rows * cfg.n_kv_head)
            self._make_rope_tables()

    def _make_rope_tables(self):
        """Rotary tables of q, k and v heads, cos and sin: (max_len, 2, 1, E) each."""
        cos, sin = self.rope
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
        table = np.zeros((len(rows), self.new), np.float32)
        for line, u in zip(table, uniforms, strict=True):
            line[: len(u)] = u
        lengths = [len(prompts[i]) for i in prompt_of[rows]]
        slots, lengths = upload(device, self.slot_of[rows], lengths)  # (n,) each
        (self.uniforms[slots],) = upload(device, table)
        self.length[slots] = lengths
        self.count[slots] = 1
        self.drawn_count[rows] = 1
        token, logprob = self.draw(self.hidden[self.prompt_slots[slots]], self.uniforms[slots, 0])
        self.token[slots] = token
        tokens, logprobs = download(token, logprob)
        return tokens.astype(np.int64), logprobs

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
        self.length[:], self.count[:], slots, tokens, columns = upload(
            self.token.device,
            np.maximum(1, self.prefix)[self.row_of],
            (known + 1)[self.row_of],
            self.slot_of[rows],
            tokens,
            known[rows][:, None] + 1 + np.arange(steps),
        )
        (values,) = upload(slots.device, uniforms.astype(np.float32))
        self.token[slots] = tokens
        self.uniforms[slots[:, None], columns] = values

    def next(self, rows, steps=1):
        """More tokens for each of the rows -> (tokens (steps, n), log-probabilities (steps, n)).

        steps: at most `look`.
        """
        most = max(self.room, int(self.drawn_count[rows].max()) + steps - 1)
        self.reserve(most)
        self.drawn_count[rows] += steps
        self.Sn = self.own.slots
        for _ in range(steps):
            self._run()
        drawn = self.drawn[:steps, :, : self.B].cpu().numpy()[::-1, :, self.slot_of[rows]]
        return drawn[:, 0].astype(np.int64), drawn[:, 1]

    def keep(self, rows):
        """Only these rows go on. The batch shrinks if a quarter of its slots is free."""
        if 4 * len(rows) > 3 * self.B or self._bucket(len(rows)) >= self.B:
            return
        if self.grow_buffers and not self.prompts_stay:
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
        T = max(len(p) for p in prompts)
        ids = [p + [0] * (T - len(p)) for p in prompts]
        last = [len(p) - 1 for p in prompts]
        ids, slots, last = upload(device, ids, slots, last)  # (p, T), (p,), (p,)
        pos = torch.arange(T, device=device).expand(len(prompts), T)
        cache = self.model.new_cache(len(prompts), T)
        hidden = self.model(ids, pos=pos, cache=cache)  # (p, T, D)
        self.shared.put(slots, cache)
        self.hidden[slots] = hidden[torch.arange(len(prompts), device=device), last]  # (p, D)

    def _compact_prompts(self):
        """Move the prompts that rows are at to the first slots, as attention on a CPU wants it."""
        prompts = [i for i in self.prompt_slot if i in self.prompt_of]
        (slots,) = upload(self.model.device, [self.prompt_slot[i] for i in prompts])
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
            to, now = upload(self.model.device, target, source)
            for x in (*self.own.k, *self.own.v, self.token, self.count, self.uniforms, self.length):
                x[to] = x[now]
        self.row_of[target] = self.row_of[source]
        self.slot_of[self.row_of] = np.arange(self.rows)
        self._arrange(self._bucket(n), n)

    def _arrange(self, B, n=None):
        """Run steps on the first B slots, at the prompts of their rows.

        n: slots behind it are free (default: those of free rows). Free slots attend to what they
        do not need.
        """
        prompt_of = self.prompt_of[self.row_of[:B]]  # (B,)
        live = prompt_of >= 0
        live[B if n is None else n :] = False
        live = np.flatnonzero(live)
        slot = np.zeros(B, np.int64)  # of the prompt
        slot[live] = [self.prompt_slot.get(i, 0) for i in prompt_of[live].tolist()]
        self.B = B
        (self.prompt_slots[:B],) = upload(self.token.device, slot)
        if self.grow_buffers:
            self._arrange_cells(slot, live)

    def _arrange_cells(self, slot, live):
        """Lay slots out by prompt for attention on a CPU: P prompts with M places each.

        `cells` has the (slot, head) at each (prompt, head, place), `back` the (prompt, head, place)
        of each (slot, head). slot (B,): of each prompt; live: slots that are not free.
        """
        place = np.zeros(len(slot), np.int64)
        for s in set(slot[live].tolist()):
            together = live[slot[live] == s]
            place[together] = np.arange(len(together))
        self.P = max(self.prompt_slot.values()) + 1
        self.M = int(place.max()) + 1
        head = np.arange(self.cfg.n_kv_head)
        cells = np.zeros((self.P, len(head), self.M), np.int64)
        cells[slot[live], :, place[live]] = live[:, None] * len(head) + head
        back = (slot[:, None] * len(head) + head) * self.M + place[:, None]  # (B, K)
        for buffer, values in ((self.cells, cells), (self.back, back)):
            buffer[: values.size] = torch.from_numpy(values.ravel())

    # ------------------------------------------------------------ a step

    def _run(self):
        """`step`, or on a GPU its graph: one eager step warms up what a graph cannot record."""
        self.steps[self.B] += 1
        if self.pool is None or self.steps[self.B] == 1:
            self.step(self.B)
            return
        if self.B not in self.graphs:
            self.graphs[self.B] = self._record()
        self.graphs[self.B].replay()

    def _record(self):
        """The CUDA graph of a step. Raises the step's own error, not that of the broken graph."""
        graph = torch.cuda.CUDAGraph()
        error = None
        try:
            with torch.cuda.graph(graph, pool=self.pool):
                try:
                    self.step(self.B)
                except RuntimeError as first:
                    error = first
        except RuntimeError as later:  # a broken recording leaves its stream behind
            torch.cuda.set_stream(torch.cuda.default_stream())
            error = error or later
        try:
            if error:
                raise error
        finally:
            error = None  # it knows this frame: without a cycle its tensors are freed at once
        return graph

    def step(self, B):
        """One decode step of the first B slots. Reads and writes the buffers in place."""
        stream = torch.promote_types(self.weights.embed.dtype, torch.float32)
        x = F.embedding(self.token[:B], self.weights.embed).to(stream)  # (B, D)
        attend = self._attention(B)
        for number, layer in enumerate(self.weights.layers):
            x = block(x, layer, functools.partial(attend, number))
        column = self.count[:B].clamp(max=self.new - 1)[:, None]  # (B, 1)
        uniforms = self.uniforms[:B].gather(1, column)[:, 0]
        token, logprob = self.draw(self.weights.norm(x), uniforms)
        if self.look > 1:
            self.drawn.copy_(self.drawn.roll(1, 0))
        self.drawn[0, 0, :B] = token
        self.drawn[0, 1, :B] = logprob
        self.token[:B] = token
        self.count[:B] += 1

    def _attention(self, B):
        """Attention of a step: the function (layer, qkv (B, (H + 2K) E)) -> (B, H E)."""
        if self.grow_buffers:
            return functools.partial(self._attend_by_prompt, self._prepare(B))
        rows = Rows(self.prompt_slots[:B], self.length[:B], self.count[:B], *self.rope)

        def attend(number, qkv):
            own = self.own.k[number], self.own.v[number]
            shared = self.shared.k[number], self.shared.v[number]
            return step_attention(qkv, rows, own, shared)

        return attend

    def _prepare(self, B):
        """Positions, rotary tables and bias: what all layers of a step on a CPU share."""
        cfg = self.cfg
        device = self.token.device
        K = cfg.n_kv_head
        length = self.length[:B]
        count = self.count[:B]
        position = (count - 1).clamp(max=self.Sn - 1)  # (B,); rows that ended may be further
        pos = (length + count - 1).clamp(max=cfg.max_len - 1)
        heads = (
            self.rope_q[pos].expand(-1, -1, cfg.n_head, -1),
            self.rope_k[pos].expand(-1, -1, K, -1),
            self.rope_v.expand(B, 2, K, self.rope_k.shape[-1]),
        )
        cos, sin = torch.cat(heads, 2).unbind(1)  # (B, H + 2K, E) each
        in_prefix = torch.arange(self.Sp, device=device) < length[:, None]  # (B, Sp)
        in_own = torch.arange(self.Sn, device=device) <= position[:, None]  # (B, Sn)
        mask = torch.cat((in_prefix, in_own), 1)
        bias = attention_bias(mask, self.own.k[0].dtype)[:, None, None]  # (B, 1, 1, Sp + Sn)
        row = torch.arange(B, device=device)
        return Step(row, position, cos, sin, bias)

    def _attend_by_prompt(self, step, number, qkv):
        """Attention on a CPU: the rows of a prompt go to its keys together."""
        H, K = self.cfg.n_head, self.cfg.n_kv_head
        B = len(step.row)
        P = self.P
        M = self.M
        Sp = self.Sp
        Sn = self.Sn
        heads = qkv.view(B, H + 2 * K, -1)  # (B, H + 2K, E)
        turned = heads.roll(heads.shape[-1] // 2, -1)
        heads = (heads.float() * step.cos).addcmul_(turned, step.sin).to(self.own.k[number].dtype)
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

    def nbytes(self):
        """Bytes of weights and caches."""
        caches = (*self.own.k, *self.own.v, *self.shared.k, *self.shared.v)
        return sum(x.nbytes for x in (*caches, *tensors_of(self.weights)))

    def draw(self, hidden, uniforms):
        """A token per row and its log-probability: (N,), (N,). hidden (N, D), uniforms (N,)."""
        logits = self.weights.head(hidden)  # (N, V)
        if len(self.forbid):
            logits.index_fill_(1, self.forbid, -torch.inf)
        # on a CPU as many rows at a time as its cache holds
        size = max(1, 2**20 // logits.shape[1]) if self.grow_buffers else len(logits)
        chunks = zip(logits.split(size), uniforms.split(size), strict=True)
        tokens, logprobs = zip(*(self.pick(x, u) for x, u in chunks), strict=True)
        return torch.cat(tokens), torch.cat(logprobs)


def decoder_for(model, rows, prompts, prefix, new, **settings):
    """A Decoder, new or on a GPU the one that stays, with this model's weights.

    rows, prompts, prefix, new, settings: as Decoder takes them; sizes may come out larger.
    """
    if model.device.type != "cuda":
        return Decoder(model, rows, prompts, prefix, new, **settings)
    kind = (model.cfg, model.dtype, model.device, rows, settings)
    standing = STANDING.pop() if STANDING else None
    if standing and standing.kind == kind:
        room = (standing.prompts, standing.shared.slots, standing.new)
        if prompts <= room[0] and prefix <= room[1] and new <= room[2]:
            copy_weights(standing.weights, model)
            standing.begin(weakref.proxy(model))  # one that stays keeps no model alive
            STANDING.append(standing)
            return standing
        prompts, prefix, new = map(max, room, (prompts, prefix, new))
    standing = None  # its memory is free
    decoder = Decoder(model, rows, prompts, prefix, new, **settings)
    decoder.kind = kind
    memory = torch.cuda.get_device_properties(model.device).total_memory
    if decoder.nbytes() <= STAYS * memory:
        decoder.begin(weakref.proxy(model))
        STANDING.append(decoder)
    return decoder


def copy_weights(weights, model):
    """Write a model's weights into a StackedModel of its shape."""
    for old, new in zip(tensors_of(weights), tensors_of(stacked_model(model)), strict=True):
        old.copy_(new)


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
