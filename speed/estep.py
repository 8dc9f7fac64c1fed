"""The E-step: rollouts and rewards, the step in units of an NTP step, and how the cost grows.

Snippets of SmolLM2-135M's shape with random bfloat16 weights: n tokens, a sixth of them prompt,
lines of 11, thoughts of 14 tokens at `rate` before every line. Peers of rollouts with rewards (q is
pi, G rollouts of each of B snippets; what is compared is sum_t r_t, and so without gains):
    line by line
        transformers: before each line `generate` on the G rollouts, those that think; then a
        forward over context and line for its likelihood. Measured on a few lines spread over a
        snippet and scaled to all of them.
    token by token
        ours without any of it: each token, code too, through one step on a cache, the N rows in
        lockstep. Measured on a part of the steps and scaled; the whole of it is what the tests
        compare rollouts with.
Limit: 2 P tokens / F for what must be read (each snippet once, each row from its first thought on,
its thoughts' tokens excluded; for gains the code from each later thought on again), the head only
where code is predicted; decoding, at best all rows side by side, max(2 P rows / F, (2 P + cache) /
W) a step for as many steps as the row with the most thoughts takes. F and W are the measured rates.

NOISE (`values` of the row "rounding"): the largest and the root mean square difference, in nats,
between log pi of a line in the trunk and of the same line in the same context read as a value (the
only thing that differs is the shape of the forward).

What was tried (core-seconds; SmolLM2 in bfloat16, six functions of 153 to 230 tokens, G = 4,
thoughts of 14, before 10 / 40 / 100% of the lines, gains included; an AMD EPYC without AMX, busy
with other processes; before: caches copied a row, all lines behind a thought forwarded, weights not
packed)
    all of what follows, q is not pi
        23.2 / 65.0 / 140.8 -> 13.2 / 35.9 / 81.7; q is pi: 15.7 / 48.0 / 95.8 -> 11.8 / 35.3 / 66.8
        (kept)
    the same on the tiny preset, bfloat16
        1.11 / 3.79 / 8.38 -> 0.67 / 2.34 / 4.83; float32, q is pi: 0.91 / 3.14 / 6.48 -> 0.66 /
        2.51 / 5.21
    tokens read, q is not pi
        6,298 / 19,072 / 43,736 -> 5,569 / 14,010 / 28,852
    look-ahead to the next u_t < P(think)
        tokens of q: 2% more than a line at a time, which is the least; all lines: 53% more (q's
        own, 27% of lines) (kept)
    look-ahead of a fixed number of lines
        three lines: 17% more; kept for tests (`window`) (kept)
    matrix products without padding
        attention alone is padded, in batches of like length (kept)
    rows swapped in the cache, not moved
        3% of the tiny preset's run (kept)
    values after sampling instead of on the way
        the same tokens, in a few full batches instead of one a thought (kept)
    equal beginnings read once by the update
        at the rates of a base model most rollouts never think (kept)
What the whole E-step must read (4 snippets of 250 tokens, G = 4, thoughts before 20%, in units of
the 3 x 1,000 tokens, forward and twice back, of an NTP step): q while sampling 1.4, pi for the
rewards 1.5, values 1.7 (credit by prefix only), the update 4.0, equal beginnings once: 8.6, or 6.9
with credit by group. Six would take the update's forward from the sampler's, which keeps nothing to
go back through. Where the time goes (SmolLM2, 40%, q is pi, with gains, 25.6 core-s): bfloat16
products 42%, the float32 head 27%, attention 8% and the decode step's own 7%.
"""

import copy
import functools

import numpy as np
import torch

import data
import mstep
from config import make
from elbo import Prior, line_logprobs
from engine import documents, training
from engine.gradients import policy_gradient
from engine.reader import Reader
from engine.rollouts import draw_uniforms, read_trunk, rollout
from estep import credit as credit_of
from estep import line_credit
from formats import tokenizers
from model import ModelConfig, Transformer, work_size
from speed.measure import absent, installed, interleaved
from speed.sampling import SMOLLM2, hf_model

THOUGHT = 14  # tokens
LINE = 11
TINY = ModelConfig(vocab_size=512, max_len=4096)


def snippets(B, n, vocab, seed=0):
    """B snippets of n random tokens, and a Tokenizer for them.

    Two tokens begin a comment, and only eos ends one.
    """
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


def one_row(tok, snip, uniforms, think_max, rate=None, horizon=0):
    """Line by line and token by token, as the definition has it: a generator that yields tokens to
    read, gets the log-probabilities (V,) of the next one, and returns (ids, thoughts, log q of each
    event, log pi of each line).
    """
    ids, thoughts, logq, lines = [], {}, [], np.zeros(len(snip.first))

    def read(tokens):
        ids.extend(tokens)
        return (yield tokens)

    def pick(logp, u):
        cdf = np.cumsum(np.exp(logp))
        return min(int(np.searchsorted(cdf, u * cdf[-1], side="right")), len(cdf) - 1)

    logp = yield from read(snip.ids[: snip.first[0]])
    for t, (a, b) in enumerate(zip(snip.first, snip.first[1:] + [len(snip.ids)], strict=False)):
        if not horizon or t < horizon:
            begin = logp[tok.thought_ids]
            thinks = uniforms[0][t] < (np.exp(begin).sum() if rate is None else rate)
            logq.append(np.log1p(-np.exp(begin).sum()))
            if thinks:
                k = pick(begin, uniforms[1][t, 0])
                logq[-1], thoughts[t] = begin[k], [tok.thought_ids[k]]
                while len(thoughts[t]) < think_max:
                    logp = yield from read(thoughts[t][-1:])
                    token = pick(logp, uniforms[1][t, len(thoughts[t])])
                    if token in tok.stop_ids:
                        logq.append(np.log(np.exp(logp[tok.stop_ids]).sum()))
                        break
                    logq.append(logp[token])
                    thoughts[t].append(token)
                unread = thoughts[t][-1:] if len(thoughts[t]) == think_max else []
                logp = yield from read(unread + snip.sep[t])
        lines[t] = -np.log1p(-np.exp(logp[tok.thought_ids]).sum())
        for token in snip.ids[a:b]:
            lines[t] += logp[token]
            if len(ids) + 1 < len(snip.ids) + sum(
                len(z) + len(snip.sep[s]) for s, z in thoughts.items()
            ):  # nothing follows the last
                logp = yield from read([token])
    return ids + snip.ids[-1:], thoughts, logq, lines


@torch.inference_mode()
def token_by_token(model, tok, snips, G, think_max, seed, rate=None, horizon=0, steps=0):
    """G rollouts of each snippet with `one_row`, in lockstep on a cache -> what the rows returned.

    The uniforms are those of `rollout`. steps: stop after so many; 0: at the end.
    """
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
    """transformers on some lines of a snippet -> their log-likelihood.

    Before a line, the rollouts that think write a thought. Then the line is scored after all.
    """
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


def rollout_limit(rolls, model, rates, same, gains):
    """Seconds that these rollouts must take: see the top. same: q is pi."""
    cfg = model.cfg
    head = model.head_weight.numel()
    blocks = work_size(model) - head
    snips = [row.snip for row in rolls.rows[:: rolls.G]]
    read = (2 - same) * sum(len(s.ids) - 1 for s in snips)
    scored = sum(len(s.ids) - s.first[0] for s in snips)
    decoded = [sum(map(len, row.thoughts.values())) for row in rolls.rows]
    for row, thought in zip(rolls.rows, decoded, strict=True):
        if row.thoughts:
            suffix = len(row.ids) - 1 - row.prefix
            read += suffix - thought + (0 if same else suffix)
            # the code from each thought on; from later ones for gains only
            rest = [len(row.snip.ids) - row.snip.first[t] for t in sorted(row.thoughts)]
            scored += rest[0]
            if gains:
                read += sum(rest[1:])
                scored += sum(rest[1:])
    seconds = (2 * blocks * read + 2 * head * scored) / rates.flops
    if not any(decoded):
        return seconds
    kv = 2 * cfg.n_layer * cfg.n_kv_head * cfg.d_model // cfg.n_head * 2  # bytes a token
    cache = kv * (sum(len(s.ids) for s in snips) + sum(decoded) / 2)
    steps = max(decoded)
    step = max(
        2 * (blocks + head) * sum(decoded) / steps / rates.flops,
        (2 * (blocks + head) + cache) / rates.bytes,
    )
    return seconds + steps * step


def rounding(model, tok, snips):
    """(root mean square, largest) difference in nats between two readings of the same lines.

    One is in the trunk, the other on the trunk's keys; the later half of the lines counts.
    """
    differences = []
    with torch.inference_mode():
        net = Reader(model)
        cache = model.new_cache(len(snips), max(len(s.ids) for s in snips))
        base, _, _ = read_trunk(net, cache, snips, tok, scored=True)
        starts = np.array([s.first[len(s.first) // 2] - 1 for s in snips])
        rest = [s.ids[start:-1] for s, start in zip(snips, starts, strict=True)]
        shared = [(cache, np.arange(len(snips)), starts)]
        for rows, positions, hidden in net.read(rest, starts, shared):
            pieces = [
                (snips[b].ids, snips[b].first, starts[b], len(snips[b].ids) - 1, a)
                for b, a in zip(rows, positions, strict=True)
            ]
            again = line_logprobs(net, hidden, pieces, tok)
            for b, logp in zip(rows, again, strict=True):
                differences.append((logp - base[b])[len(base[b]) // 2 :])
    differences = np.concatenate(differences)
    return float((differences**2).mean() ** 0.5), float(np.abs(differences).max())


# ---------------------------------------------------------------- rows


def a_model(cfg, device, seed=0):
    return Transformer(cfg).init_weights(seed).to(device)


def rollout_rows(quick, rates):
    model = a_model(SMOLLM2, rates.device).bfloat16()
    theirs = None
    if installed("transformers"):
        theirs = hf_model(SMOLLM2).bfloat16().eval().to(rates.device)
    if quick:
        cases = [(250, 4, 0.4)]
    else:
        cases = [(250, 4, 0.1), (250, 4, 0.4), (250, 4, 1.0), (250, 8, 0.4), (512, 4, 0.4)]
    for n, G, rate in cases:
        yield from rollout_case(model, theirs, n, G, rate, quick, rates)
    if not quick:
        snips, tok = snippets(4, n, SMOLLM2.vocab_size)
        rms, largest = rounding(model, tok, snips)
        values = {"root mean square": rms, "largest": largest}
        yield {"row": "rounding, nats a line", "values": values}


STEPS = 16  # of token by token, after the one that reads the prompts


def rollout_case(model, theirs, n, G, rate, quick, rates):
    """Rollouts of snippets of n tokens with rewards, and with gains.

    theirs: transformers' model, or None.
    """
    snips, tok = snippets(1 if quick else 4, n, model.cfg.vocab_size)
    rolls = {}  # by what is computed

    def ours(need):
        rolls[need] = rollout(model, model, tok, snips, G, THOUGHT, (0,), rate=rate, need=need)

    peers = {"ours": functools.partial(ours, "rewards")}
    if not quick:
        peers["with gains"] = functools.partial(ours, "gains")
    L = len(snips[0].first)
    count = 2 if quick else 4  # lines that line by line is measured on
    if theirs is not None:
        lines = [int(x) for x in np.linspace(L / (2 * count), L - L / (2 * count), count)]
        arguments = (theirs, snips[0], G, rate, lines, tok.eos)
        peers["line by line"] = functools.partial(line_by_line, *arguments)
    if not quick:
        slow = functools.partial(token_by_token, model, tok, snips, G, THOUGHT, (0,), rate)
        peers["prompts"] = functools.partial(slow, steps=1)
        peers["token by token"] = functools.partial(slow, steps=1 + STEPS)
    desc = f"rollouts {n} {G} {rate}"
    seconds = interleaved(peers, 1 if quick else 5, rates, desc=desc, warm=False)
    if theirs is not None:
        seconds["line by line"] *= len(snips) * L / count
    if not quick:
        longest = max(len(row.ids) - row.snip.prompt for row in rolls["rewards"].rows)
        prompts = seconds.pop("prompts")
        step = (seconds["token by token"] - prompts) / STEPS
        seconds["token by token"] = prompts + step * longest
    with_gains = seconds.pop("with gains", None)
    shape = f"{n} tokens, G={G}, thoughts before {rate:.0%}"
    yield rollout_row(f"rollouts, {shape}", rolls["rewards"], seconds, model, rates, False)
    if not quick:
        name = f"the same with gains, {n}, G={G}, {rate:.0%}"
        yield rollout_row(name, rolls["gains"], {"ours": with_gains}, model, rates, True)


def rollout_row(name, rolls, seconds, model, rates, gains):
    tokens = sum(len(row.ids) for row in rolls.rows)
    row = {
        "row": name,
        "work": tokens,
        "unit": "tokens",
        "seconds": seconds,
        "limit_s": rollout_limit(rolls, model, rates, True, gains),
        "target": {"limit": 0.4} if gains else {"line by line": 20, "limit": 0.4},
        "values": {"read": rolls.forward_tokens / tokens},
    }
    return row if gains else {**row, "note": absent("transformers")}


def whole_estep(
    q, pi, opt, tok, snips, G, rate, *, credit="prefix", kl=0.3, cast=True, micro_tokens=6000
):
    """One E-step as train.py takes it -> Rollouts."""
    rolls = rollout(
        copy.deepcopy(q).bfloat16() if cast else q,
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
    r = line_credit(rolls, Prior(0.05), credit)
    A = credit_of(r, rolls.think, rolls.possible, G)
    policy_gradient(q, pi, tok, rolls, A, kl=kl, amp=cast, micro_tokens=micro_tokens)
    opt.step()
    opt.zero_grad(set_to_none=True)
    return rolls


def step_rows(quick, rates):
    """The whole E-step of SmolLM2's shape; on a GPU of as many snippets as its preset has."""
    if rates.device.type == "cuda":
        settings = make("smollm2-gpu")
        yield estep_row(SMOLLM2, settings.snippets, settings.group, settings, 5, rates)
        return
    yield estep_row(SMOLLM2, 1 if quick else 4, 4, make("smollm2"), 1 if quick else 5, rates)


def estep_row(cfg, B, G, settings, repeats, rates):
    """The whole E-step, its parts, and a step of next-token training on the same snippets."""
    q = a_model(cfg, rates.device)
    pi = copy.deepcopy(q).bfloat16().requires_grad_(False)
    rate = 0.2
    snips, tok = snippets(B, 250, cfg.vocab_size)
    opt = training.adamw(q, 1e-6, 0.0)
    code = documents.Code(tok, snips, [len(s.ids) for s in snips])
    docs, kinds = zip(*code, strict=True)

    def rollouts(need):
        sampler = copy.deepcopy(q).bfloat16()
        rollout(sampler, pi, tok, snips, G, THOUGHT, (0,), rate=rate, need=need)

    warm = rates.device.type == "cuda"
    options = dict(micro_tokens=settings.micro_tokens) if warm else {}
    peers = {
        "ours": lambda: whole_estep(q, pi, opt, tok, snips, G, rate, **options),
        "rollouts": lambda: rollouts("gains"),
        "rewards": lambda: rollouts("rewards"),
        "NTP step": lambda: mstep.ntp_step(q, opt, docs, kinds, 1e-6, settings),
    }
    seconds = interleaved(peers, repeats, rates, desc="E-step", warm=warm)
    unit = seconds["NTP step"]
    by_group = seconds["ours"] - seconds["rollouts"] + seconds["rewards"]
    return {
        "row": f"E-step, credit by prefix, G={G}, thoughts before {rate:.0%}",
        "work": B,
        "unit": "snippets",
        "seconds": {"ours": seconds["ours"]},
        "values": {
            "NTP steps": seconds["ours"] / unit,
            "rollouts in NTP steps": seconds["rollouts"] / unit,
            "NTP steps with credit by group": by_group / unit,
        },
        "note": "aim 6 NTP steps",
    }


def attention_share(model, rolls):
    """Share of attention's products in the FLOPs of the finished rows and the trunk."""
    cfg = model.cfg
    spans = [(0, len(row.snip.ids)) for row in rolls.rows[:: rolls.G]]
    spans += [(row.prefix, len(row.ids)) for row in rolls.rows if row.thoughts]
    attention = sum(4 * cfg.n_layer * cfg.d_model * (b * b - a * a) / 2 for a, b in spans)
    return attention / (attention + 2 * work_size(model) * sum(b - a for a, b in spans))


SIZES = (1, 2, 4)


def scaling_rows(rates):
    """1, 2 and 4 times the tokens of a snippet, and the rollouts; a model of 0.8 M parameters.

    The exponents are fitted in the logarithms.
    """
    q = a_model(TINY, rates.device)
    pi = a_model(TINY, rates.device, 1)
    opt = torch.optim.AdamW(q.parameters(), lr=1e-6)
    cases = {
        "tokens": [(150 * k, 4) for k in SIZES],
        "G": [(150, 4 * k) for k in SIZES],
    }
    for name, shapes in cases.items():
        for credit in ("prefix", "group"):
            yield scaling_row(name, shapes, credit, (q, pi, opt), rates)


def scaling_row(name, shapes, credit, models, rates):
    """shapes: (tokens of a snippet, G) for each size; models: q, pi and q's optimizer."""
    rolls = {}

    def step(size, snips, tok, G):
        rolls[size] = whole_estep(*models, tok, snips, G, 0.2, credit=credit, cast=False)

    calls = {}
    for k, (n, G) in zip(SIZES, shapes, strict=True):
        snips, tok = snippets(4, n, TINY.vocab_size)
        calls[str(k)] = functools.partial(step, k, snips, tok, G)
    seconds = interleaved(calls, 5, rates, desc=f"scaling {name}")
    read = [rolls[k].forward_tokens for k in SIZES]
    return {
        "row": f"E-step by {name}, credit by {credit}",
        "values": {
            "exponent": slope(list(seconds.values())),
            "exponent of tokens read": slope(read),
            **{f"{k} x, seconds": seconds[str(k)] for k in SIZES},
            **{f"{k} x, attention's share": attention_share(models[0], rolls[k]) for k in SIZES},
        },
    }


def slope(ys):
    """The exponent of growth over SIZES."""
    return float(np.polyfit(np.log(SIZES), np.log(ys), 1)[0])


def estep_rows(quick, rates, args):
    yield from rollout_rows(quick, rates)
    yield from step_rows(quick, rates)
    if not quick:
        yield from scaling_rows(rates)
