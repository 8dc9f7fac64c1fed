"""The E-step: rollouts and rewards, the whole step in units of a step of next-token training, and how the cost grows.

Snippets of SmolLM2-135M's shape with random bfloat16 weights: n tokens, a sixth of them prompt, lines of 11, thoughts of 14 tokens at `rate` before every line.
Peers of rollouts with rewards (q is pi, G rollouts of each of B snippets; what is compared is sum_t r_t, and so without gains):
    line by line     transformers: before each line `generate` on the G rollouts, those that think; then a forward over context and line for its likelihood.
                     Measured on a few lines spread over a snippet and scaled to all of them.
    token by token   ours without any of it: each token, code too, through one step on a cache, the N rows in lockstep. Measured on a part of the steps
                     and scaled; the whole of it is what the tests compare rollouts with.
Limit: 2 P tokens / F for what must be read (each snippet once, each row from its first thought on, its thoughts' tokens excluded; for gains the code from each
later thought on again), the head only where code is predicted; decoding, at best all rows side by side, max(2 P rows / F, (2 P + cache) / W) a step
for as many steps as the row with the most thoughts takes. F and W are the measured rates.

NOISE (`values` of the row "rounding"): the largest and the root mean square difference, in nats, between log pi of a line in the trunk and of the same line
in the same context read as a value (the only thing that differs is the shape of the forward).

What was tried (core-seconds; SmolLM2 in bfloat16, six functions of 153 to 230 tokens, G = 4, thoughts of 14, before 10 / 40 / 100% of the lines, gains included; an
AMD EPYC without AMX, busy with other processes; before: caches copied a row, all lines behind a thought forwarded, weights not packed)
    all of what follows, q is not pi                23.2 / 65.0 / 140.8 -> 13.2 / 35.9 / 81.7; q is pi: 15.7 / 48.0 / 95.8 -> 11.8 / 35.3 / 66.8      kept
    the same on the tiny preset, bfloat16           1.11 / 3.79 / 8.38 -> 0.67 / 2.34 / 4.83; float32, q is pi: 0.91 / 3.14 / 6.48 -> 0.66 / 2.51 / 5.21
    tokens read, q is not pi                        6,298 / 19,072 / 43,736 -> 5,569 / 14,010 / 28,852
    look-ahead to the next u_t < P(think)           tokens of q: 2% more than a line at a time, which is the least; all lines: 53% more (q's own, 27% of lines)   kept
    look-ahead of a fixed number of lines           three lines: 17% more; kept for tests (`window`)                                 kept
    matrix products without padding                 attention alone is padded, in batches of like length                             kept
    rows swapped in the cache, not moved            3% of the tiny preset's run                                                      kept
    values after sampling instead of on the way     the same tokens, in a few full batches instead of one a thought                  kept
    equal beginnings read once by the update        at the rates of a base model most rollouts never think                           kept
What the whole E-step must read (4 snippets of 250 tokens, G = 4, thoughts before 20%, in units of the 3 x 1,000 tokens, forward and twice back, of an NTP step): q
while sampling 1.4, pi for the rewards 1.5, values 1.7 (credit by prefix only), the update 4.0, equal beginnings once: 8.6, or 6.9 with credit by group. Six would
take the update's forward from the sampler's, which keeps nothing to go back through.
Where the time goes (SmolLM2, 40%, q is pi, with gains, 25.6 core-s): bfloat16 products 42%, the float32 head 27%, attention 8% and the decode step's own 7%.
"""

import copy
import dataclasses
import functools

import numpy as np
import torch

import data
import mstep
from config import make
from elbo import line_logprobs
from engine import documents, training
from engine.reader import Reader
from engine.rollouts import draw_uniforms, read_trunk, rollout
from estep import advantages, one_row, policy_gradient
from formats import tokenizers
from model import ModelConfig, Transformer, work_size
from speed.measure import absent, installed, interleaved
from speed.sampling import SMOLLM2, hf_model

THOUGHT, LINE = 14, 11  # tokens
TINY = ModelConfig(vocab_size=512, max_len=4096)


def snippets(B, n, vocab, seed=0):
    """B snippets of n random tokens and a Tokenizer for them, in which two tokens begin a comment and only eos ends one."""
    rng = np.random.default_rng(seed)
    tok = tokenizers.Tokenizer(None, vocab - 1, [1, 2], [vocab - 1], np.ones(vocab, dtype=np.int64))
    prompt = n // 6
    first = list(range(prompt + 1, n - LINE // 2, LINE))
    return [
        data.Snippet(
            rng.integers(3, vocab - 1, n - 1).tolist() + [tok.eos],
            prompt,
            first,
            [[3]] * len(first),
        )
        for _ in range(B)
    ], tok


# ---------------------------------------------------------------- the slow ways


@torch.inference_mode()
def token_by_token(model, tok, snips, G, think_max, seed, rate=None, horizon=0, steps=0):
    """G rollouts of each snippet with `one_row`, all rows in lockstep on a cache; the same uniforms as `rollout`. steps: stop after so many; 0: at the end.
    -> (what the rows returned, the largest number of steps that a row would take: known once all ended)."""
    rows = [
        one_row(
            tok, s, draw_uniforms(seed, b, g, len(s.first), think_max), think_max, rate, horizon
        )
        for b, s in enumerate(snips)
        for g in range(G)
    ]
    most = max(len(s.ids) + sum(think_max + len(sep) for sep in s.sep) for s in snips) + 1
    cache, done, at, head = (
        model.new_cache(len(rows), most),
        [None] * len(rows),
        np.zeros(len(rows), dtype=np.int64),
        model.head_weight.float(),
    )
    tokens = [next(row) for row in rows]
    while any(tokens):
        T = max(map(len, tokens))
        ids = torch.tensor([x + [0] * (T - len(x)) for x in tokens])  # (N, T)
        pos = torch.from_numpy(at)[:, None] + torch.arange(T)
        reach = int(max(at) + T)
        hidden = model(ids.to(model.device), pos=pos.to(model.device), cache=cache, reach=reach)[
            torch.arange(len(rows)), [len(x) - 1 for x in tokens]
        ]
        logp = (hidden.float() @ head.T).double().log_softmax(-1).cpu().numpy()  # (N, V)
        at += [len(x) for x in tokens]
        for n, row in enumerate(rows):
            if done[n] is None:
                try:
                    tokens[n] = row.send(logp[n])
                except StopIteration as end:
                    done[n], tokens[n] = end.value, []
        steps -= 1
        if steps == 0:
            break
    return done


@torch.inference_mode()
def line_by_line(model, snip, G, rate, lines, eos):
    """transformers, before and on some lines of a snippet: thoughts of the rollouts that think, and the likelihood of the line after all."""
    rng, total = np.random.default_rng(0), 0.0
    for t in lines:
        a, b = snip.first[t], (snip.first[1:] + [len(snip.ids)])[t]
        before = int(round(rate * t))  # thoughts that stand in the context already
        context = torch.tensor(
            [snip.ids[:a] + [5] * ((THOUGHT + 1) * before)] * G, device=model.device
        )  # (G, T)
        thinks = int((rng.random(G) < rate).sum())
        if thinks:
            model.generate(
                context[:thinks],
                attention_mask=torch.ones_like(context[:thinks]),
                max_new_tokens=THOUGHT,
                min_new_tokens=THOUGHT,
                do_sample=True,
                top_k=0,
                eos_token_id=eos,
            )
        line = torch.tensor([snip.ids[a:b]] * G, device=model.device)
        whole = torch.cat(
            [context, context[:, : THOUGHT + 1], line], 1
        )  # as if all of them thought
        whole = whole if thinks else torch.cat([context, line], 1)
        logits = (
            model(whole, logits_to_keep=line.shape[1] + 1).logits[:, :-1].float()
        )  # (G, tokens of the line, V)
        total += float(logits.log_softmax(-1).gather(2, line[:, :, None]).sum())
    return total


# ---------------------------------------------------------------- limits


def limit(rolls, model, rates, same, gains):
    """Seconds that these rollouts must take: see the top."""
    cfg, rows, head = model.cfg, rolls.rows, model.head_weight.numel()
    blocks, snips = work_size(model) - head, [row.snip for row in rows[:: rolls.G]]
    thinkers = [(row, sorted(row.thoughts)) for row in rows if row.thoughts]
    rest = lambda row, t: len(row.snip.ids) - row.snip.first[t]
    read = (2 - same) * sum(len(s.ids) - 1 for s in snips)
    scored = sum(len(s.ids) - s.first[0] for s in snips)
    for row, lines in thinkers:
        suffix, thought = len(row.ids) - 1 - row.prefix, sum(len(z) for z in row.thoughts.values())
        read += suffix - thought + (0 if same else suffix)
        scored += rest(row, lines[0])
        if gains:
            read, scored = (x + sum(rest(row, t) for t in lines[1:]) for x in (read, scored))
    decoded = [sum(len(z) for z in row.thoughts.values()) for row in rows]
    kv = 2 * cfg.n_layer * cfg.n_kv_head * cfg.d_model // cfg.n_head * 2  # bytes a token
    steps, cache = max(max(decoded), 1), kv * (sum(len(s.ids) for s in snips) + sum(decoded) / 2)
    step = max(
        2 * (blocks + head) * sum(decoded) / steps / rates.flops,
        (2 * (blocks + head) + cache) / rates.bytes,
    )
    return (2 * blocks * read + 2 * head * scored) / rates.flops + (steps * step if thinkers else 0)


def rounding(model, tok, snips):
    """(root mean square, largest) difference in nats between a line in the trunk and the same line read on the trunk's keys, over all lines but the first."""

    with torch.inference_mode():
        net, cache = (
            Reader(model),
            model.new_cache(len(snips), max(len(s.ids) for s in snips)),
        )
        base, _, _ = read_trunk(net, cache, snips, tok, scored=True)
        cut = [s.first[len(s.first) // 2] - 1 for s in snips]
        off = []
        for which, at, hidden in net.read(
            [s.ids[c:-1] for s, c in zip(snips, cut)],
            np.array(cut),
            [(cache, np.arange(len(snips)), np.array(cut))],
        ):
            pieces = [
                (snips[b].ids, snips[b].first, cut[b], len(snips[b].ids) - 1, a)
                for b, a in zip(which, at)
            ]
            for b, logp in zip(which, line_logprobs(net, hidden, pieces, tok)):
                off.append((logp - base[b])[len(base[b]) // 2 :])
    off = np.concatenate(off)
    return float((off**2).mean() ** 0.5), float(np.abs(off).max())


# ---------------------------------------------------------------- rows


def a_model(cfg, device, seed=0):
    return Transformer(cfg).init_weights(seed).to(device)


def rollout_rows(quick, rates):
    model = a_model(SMOLLM2, rates.device).bfloat16()
    note = absent("transformers")
    theirs = (
        hf_model(SMOLLM2).bfloat16().eval().to(rates.device) if installed("transformers") else None
    )
    for n, G, rate in (
        [(250, 4, 0.4)]
        if quick
        else [(250, 4, 0.1), (250, 4, 0.4), (250, 4, 1.0), (250, 8, 0.4), (512, 4, 0.4)]
    ):
        B = 1 if quick else 4
        snips, tok = snippets(B, n, SMOLLM2.vocab_size)
        L, some, kept = len(snips[0].first), 2 if quick else 4, []
        lines = [int(x) for x in np.linspace(L / (2 * some), L - L / (2 * some), some)]
        part = 16  # steps of token by token, after that which reads the prompts
        ours = lambda need: functools.partial(
            lambda: kept.append(
                rollout(model, model, tok, snips, G, THOUGHT, (0,), rate=rate, need=need)
            )
        )
        peers = (
            {"ours": ours("rewards")}
            if quick
            else {"ours": ours("rewards"), "with gains": ours("gains")}
        )
        if theirs is not None:
            peers["line by line"] = lambda: line_by_line(theirs, snips[0], G, rate, lines, tok.eos)
        for k, name in () if quick else ((1, "prompts"), (1 + part, "token by token")):
            peers[name] = functools.partial(
                token_by_token, model, tok, snips, G, THOUGHT, (0,), rate, steps=k
            )
        seconds = interleaved(
            peers, 1 if quick else 5, rates, desc=f"rollouts {n} {G} {rate}", warm=False
        )
        rolls = kept[-1]
        if theirs is not None:
            seconds["line by line"] *= B * L / some
        longest, tokens = (
            max(len(row.ids) - row.snip.prompt for row in rolls.rows),
            sum(len(row.ids) for row in rolls.rows),
        )
        if not quick:
            start = seconds.pop("prompts")
            seconds["token by token"] = start + (seconds["token by token"] - start) / part * longest
        gains = seconds.pop("with gains", None)
        yield {
            "row": f"rollouts, {n} tokens, G={G}, thoughts before {rate:.0%}",
            "work": tokens,
            "unit": "tokens",
            "seconds": seconds,
            "limit_s": limit(rolls, model, rates, True, False),
            "target": {"line by line": 20, "limit": 0.4},
            "note": note,
            "values": {"read": kept[0].forward_tokens / tokens},
        }
        if quick:
            return
        yield {
            "row": f"the same with gains, {n}, G={G}, {rate:.0%}",
            "work": tokens,
            "unit": "tokens",
            "seconds": {"ours": gains},
            "limit_s": limit(rolls, model, rates, True, True),
            "target": {"limit": 0.4},
            "values": {"read": rolls.forward_tokens / tokens},
        }
    rms, most = rounding(model, tok, snips)
    yield {"row": "rounding, nats a line", "values": {"root mean square": rms, "largest": most}}


def estep(q, pi, opt, tok, snips, G, rate, credit="prefix", kl=0.3, cast=True):
    """One E-step as train.py takes it -> Rollouts, (seconds are the caller's)."""
    inference_copy = lambda m: copy.deepcopy(m).bfloat16() if cast else m
    rolls = rollout(
        inference_copy(q),
        pi,
        tok,
        snips,
        G,
        THOUGHT,
        (0,),
        rate=rate,
        need="gains" if credit == "prefix" else "rewards",
        states=kl > 0,
    )
    A = advantages(
        rolls.lines(lambda r: r.line_logp),
        rolls.lines(lambda r: r.gain),
        rolls.think,
        rolls.valid,
        G,
        0.05,
        credit,
    )
    policy_gradient(q, pi, tok, rolls, A, kl, cast)
    opt.step()
    opt.zero_grad(set_to_none=True)
    return rolls


def step_rows(quick, rates):
    """The whole E-step, its parts, and a step of next-token training on the same snippets."""
    cfg = dataclasses.replace(SMOLLM2)
    q = a_model(cfg, rates.device)
    pi, G, rate, B = copy.deepcopy(q).bfloat16().requires_grad_(False), 4, 0.2, 1 if quick else 4
    snips, tok = snippets(B, 250, cfg.vocab_size)
    opt = training.adamw(q, 1e-6, 0.0)
    (docs, kinds), settings = (
        zip(*documents.Code(tok, snips, [len(s.ids) for s in snips])),
        make("smollm2"),
    )
    peers = {
        "ours": lambda: estep(q, pi, opt, tok, snips, G, rate),
        "rollouts": lambda: rollout(
            copy.deepcopy(q).bfloat16(), pi, tok, snips, G, THOUGHT, (0,), rate=rate
        ),
        "rewards": lambda: rollout(
            copy.deepcopy(q).bfloat16(), pi, tok, snips, G, THOUGHT, (0,), rate=rate, need="rewards"
        ),
        "NTP step": lambda: mstep.ntp_step(q, opt, docs, kinds, 1e-6, settings),
    }
    seconds = interleaved(peers, 1 if quick else 5, rates, desc="E-step", warm=False)
    yield {
        "row": f"E-step, credit by prefix, G={G}, thoughts before {rate:.0%}",
        "work": B,
        "unit": "snippets",
        "seconds": {"ours": seconds["ours"]},
        "values": {
            "NTP steps": seconds["ours"] / seconds["NTP step"],
            "rollouts in NTP steps": seconds["rollouts"] / seconds["NTP step"],
            "NTP steps with credit by group": (
                seconds["ours"] - seconds["rollouts"] + seconds["rewards"]
            )
            / seconds["NTP step"],
        },
        "note": "aim 6 NTP steps",
    }


def attention_share(model, rolls):
    """Share of attention's products in the FLOPs of the finished rows and the trunk."""
    cfg, snips = model.cfg, [row.snip for row in rolls.rows[:: rolls.G]]
    spans = [(0, len(s.ids)) for s in snips] + [
        (row.prefix, len(row.ids)) for row in rolls.rows if row.thoughts
    ]
    attention = sum(4 * cfg.n_layer * cfg.d_model * (b * b - a * a) / 2 for a, b in spans)
    return attention / (attention + 2 * work_size(model) * sum(b - a for a, b in spans))


def scaling_rows(rates):
    """A model of 0.8 M parameters, float32: 1, 2 and 4 times the tokens of a snippet, and the rollouts; exponents fitted in the logarithms."""
    q, pi = a_model(TINY, rates.device), a_model(TINY, rates.device, 1)
    opt, sizes = torch.optim.AdamW(q.parameters(), lr=1e-6), (1, 2, 4)
    for name, case in (("tokens", lambda k: (150 * k, 4)), ("G", lambda k: (150, 4 * k))):
        for credit in ("prefix", "group"):
            made, kept = {}, {}
            for k in sizes:
                ((n, G),) = [case(k)]
                snips, tok = snippets(4, n, TINY.vocab_size)
                made[str(k)] = functools.partial(
                    lambda k, *args: kept.update(
                        {k: estep(q, pi, opt, *args, 0.2, credit, cast=False)}
                    ),
                    k,
                    tok,
                    snips,
                    G,
                )
            seconds = interleaved(made, 5, rates, desc=f"scaling {name}")
            slope = lambda ys: float(np.polyfit(np.log(sizes), np.log(ys), 1)[0])
            yield {
                "row": f"E-step by {name}, credit by {credit}",
                "values": {
                    "exponent": slope(list(seconds.values())),
                    "exponent of tokens read": slope([kept[k].forward_tokens for k in sizes]),
                    **{f"{k} x, seconds": seconds[str(k)] for k in sizes},
                    **{f"{k} x, attention's share": attention_share(q, kept[k]) for k in sizes},
                },
            }


def rows(quick, rates, args):
    yield from rollout_rows(quick, rates)
    yield from step_rows(quick, rates)
    if not quick:
        yield from scaling_rows(rates)
