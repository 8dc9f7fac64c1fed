"""Is what a device computes what a CPU computes? Small cases of everything, in float32.

Each check is a function of a device that returns numbers: {quantity: tensor}. References are the
same functions on a CPU, computed beforehand (`cpu_references`) or here. Token ids must be equal,
and other numbers as close as the check's tolerance says, by the norm of the difference relative to
the norm of the reference. In bfloat16 rounding decides which token is drawn, so that no two
machines agree there: only losses and gradients are compared, and the tolerance is wide.

A line of parity.jsonl: check, quantity, difference, tolerance, agrees.
"""

import pathlib
import random
import tempfile
import traceback
import types
import typing

import torch

import config
import data
import domain
import logprobs
import mstep
import rlvr
import train
from config import UserError
from elbo import Prior
from engine import documents, training
from engine.gradients import policy_gradient
from engine.rollouts import rollout
from engine.sample import generate
from estep import credit, line_credit
from formats import tokenizers
from formats.gguf import load_gguf, smollm2_path
from model import ModelConfig, Transformer
from run import Run

FILE = "references.pt"  # in a pack
THINK_MAX = 8
G = 3
CHANGE = "change of the weights"  # behind AdamW, which makes little of a gradient large
CHANGE_TOLERANCE = 5e-2
STRIDE = 7  # of the numbers of a model that are compared
FLOAT32 = dict(bf16=False, rollout_bf16=False, compile="false")


# ---------------------------------------------------------------- a small world


def small_world():
    """A tokenizer and snippets of the built-in domain, the same on every machine."""
    rng = random.Random(1)
    tok = tokenizers.train_tokenizer(["".join(domain.base_text(rng)) for _ in range(100)], 400)
    tasks = [domain.expert_task(0, i, "train") for i in range(12)]
    snippets = [data.snippet(tok, t.prompt + t.solution, len(t.prompt)) for t in tasks]
    return types.SimpleNamespace(tok=tok, snippets=snippets)


def small_model(world, device, seed=0):
    shape = ModelConfig(world.tok.vocab_size, 3, 4, 2, 128, 192, 1024)
    return Transformer(shape).init_weights(seed).to(device)


def prompts_of(world, n):
    return [snip.ids[: snip.first[0]] for snip in world.snippets[:n]]


def numbers(values):
    """Floats as a tensor of the CPU."""
    return torch.as_tensor(values, dtype=torch.float64).detach().cpu().flatten()


def tokens_of(lists):
    """Lists of token ids as one tensor, -1 behind each."""
    return torch.tensor([i for ids in lists for i in [*ids, -1]])


def weights_of(model):
    """Every STRIDE-th weight."""
    return torch.cat([numbers(p) for p in model.parameters()])[::STRIDE]


def gradients_of(model):
    """Every STRIDE-th number of the gradient."""
    gradient = [numbers(p.grad) for p in model.parameters() if p.grad is not None]
    return torch.cat(gradient)[::STRIDE]


# ---------------------------------------------------------------- checks


def check_logits(world, device):
    """All logits of a snippet."""
    model = small_model(world, device)
    ids = torch.tensor([world.snippets[0].ids], device=device)
    with torch.no_grad():
        return {"tokens": ids[0].cpu(), "logits": numbers(model(ids)[0] @ model.head_weight.T)}


def check_log_probabilities(world, device):
    """token_logprobs of a snippet, sums over sets and entropy, with the gradient."""
    model = small_model(world, device)
    ids = torch.tensor([world.snippets[1].ids], device=device)
    hidden = model(ids)[0, :-1].detach().requires_grad_()  # (T-1, D)
    sets = [world.tok.thought_ids, list(range(10, 60))]
    logp = logprobs.token_logprobs(hidden, model.head_weight, ids[0, 1:], sets, entropy=True)
    logp[:3].sum().backward()
    return {"log-probabilities": numbers(logp), "gradient": numbers(hidden.grad)}


def check_ntp(world, device, **settings):
    """Two steps of next-token training: losses, norms and what became of the weights."""
    cfg = config.make(**{**FLOAT32, "micro_tokens": 2000, **settings})
    model = small_model(world, device)
    before = weights_of(model)
    model, opt = training.prepare_training(model, cfg, lambda m: training.adamw(m, 1e-3, 0.1))
    lengths = [len(snip.ids) for snip in world.snippets]
    batch = list(zip(*documents.Code(world.tok, world.snippets, lengths), strict=True))
    metrics = [mstep.ntp_step(model, opt, *batch, 1e-3, cfg) for _ in range(2)]
    change = {} if cfg.bf16 else {CHANGE: weights_of(model) - before}
    return {
        "losses": numbers([m["loss"] for m in metrics]),
        "norms of the gradient": numbers([m["grad_norm"] for m in metrics]),
        **change,
    }


def check_gradients(world, device):
    """The gradient of next-token training, number by number."""
    cfg = config.make(**FLOAT32)
    model = small_model(world, device)
    lengths = [len(snip.ids) for snip in world.snippets]
    batch = list(zip(*documents.Code(world.tok, world.snippets, lengths), strict=True))
    train.FAST.ntp_gradient(model, *batch, 1000, cfg)
    return {"gradient": gradients_of(model)}


def check_greedy(world, device):
    """Greedy completions."""
    model = small_model(world, device)
    completions = generate(model, prompts_of(world, 5), 40, world.tok.eos, temperature=0.0)
    return {"tokens": tokens_of([c.ids for group in completions for c in group])}


def check_sampled(world, device):
    """Completions drawn with the same uniforms, in a batch that is refilled."""
    model = small_model(world, device)
    drawn = generate(
        model,
        prompts_of(world, 5),
        40,
        world.tok.eos,
        seed=3,
        n=3,
        batch=6,
        stop=["\ndef"],
        decode=world.tok.decode,
    )
    completions = [c for group in drawn for c in group]
    return {
        "tokens": tokens_of([c.ids for c in completions]),
        "log-probabilities": numbers([x for c in completions for x in c.logprobs]),
    }


def draw_rollouts(world, device, need="gains"):
    """Rollouts of q with pi as the scorer -> (q, pi, Rollouts)."""
    q = small_model(world, device)
    pi = small_model(world, device, 1).requires_grad_(False)
    options = dict(rate=0.3, need=need, states=True)
    rolls = rollout(q, pi, world.tok, world.snippets[:4], G, THINK_MAX, (5,), **options)
    return q, pi, rolls


def check_rollouts(world, device):
    """Rollouts with the same uniforms: tokens, rewards and gains."""
    _, _, rolls = draw_rollouts(world, device)
    return {
        "tokens": tokens_of([row.ids for row in rolls.rows]),
        "log-likelihoods of lines": numbers(rolls.lines(lambda row: row.line_logp)),
        "gains": numbers(rolls.lines(lambda row: row.gain)),
        "log q": numbers(rolls.logq),
    }


def check_estep(world, device, amp=False):
    """An E-step: rollouts, credit, policy gradient with KL, and AdamW's step."""
    q, pi, rolls = draw_rollouts(world, device)
    A = credit(line_credit(rolls, Prior(0.05), floor=1.0), rolls.think, rolls.possible, G)
    options = dict(kl=0.3, amp=amp, micro_tokens=500)
    stats = policy_gradient(q, pi, world.tok, rolls, A, THINK_MAX, **options)
    gradient = gradients_of(q)
    before = weights_of(q)
    training.adamw(q, 1e-4, 0.0).step()
    change = {} if amp else {CHANGE: weights_of(q) - before}
    return {"loss and KL": numbers([stats.loss, stats.kl]), "gradient": gradient, **change}


def check_grpo(world, device):
    """A GRPO step with a KL to the start, two passes, and comments forbidden."""
    cfg = config.make(**FLOAT32, rl_kl=0.1, epochs=2, minibatches=2, micro_tokens=400)
    model = small_model(world, device)
    start = small_model(world, device, 1).requires_grad_(False)
    prompts = prompts_of(world, 4)
    forbid = tuple(world.tok.thought_ids)
    drawn = generate(model, prompts, 16, world.tok.eos, n=G, seed=1, forbid=forbid)
    samples = [
        rlvr.Sample(None, prompts[i], c.ids, c.logprobs, True, i, "", None, float(k == 0))
        for i, group in enumerate(drawn)
        for k, c in enumerate(group)
    ]
    A = rlvr.group_advantages(rlvr.rewards_of(samples, G)).flatten()
    for sample, advantage in zip(samples, A, strict=True):
        sample.advantage = float(advantage)
    opt = training.adamw(model, 1e-3, 0.0)
    before = weights_of(model)
    metrics = rlvr.update(model, start, opt, samples, cfg, 0, forbid)
    names = ("loss", "grad_norm", "entropy", "kl_start")
    return {
        "tokens": tokens_of([s.ids for s in samples]),
        "metrics": numbers([metrics[name] for name in names]),
        CHANGE: weights_of(model) - before,
    }


class Stopped(Exception):
    """A run that was stopped on purpose."""


def pretrained(out, device, stop_after=0, resume=False):
    """Pre-train a small base in a folder -> (losses, its Run). stop_after: lines of metrics."""
    cfg = config.make(
        **FLOAT32,
        out=str(out),
        device=str(device),
        resume=resume,
        n_layer=1,
        n_head=2,
        d_model=32,
        d_ff=64,
        vocab_size=400,
        rows=2,
        n_expert=8,
        n_heldout=2,
        pretrain_steps=8,
        save_every=1,
        base_check=False,
    )
    run = Run(cfg, "pretrain")
    run.begin()
    log = run.log

    def log_and_stop(name, **metrics):
        log(name, **metrics)
        if run.lines == stop_after:
            raise Stopped

    run.log = log_and_stop
    try:
        train.pretrain(run)
    except Stopped:
        return pretrained(out, device, resume=True)
    losses = [m["loss"] for m in run.metrics("base") if m["phase"] == "pretrain"]
    return losses, run


def check_stop_and_resume(world, device):
    """A run that is stopped and resumed, against one that is not, on the same device."""
    with tempfile.TemporaryDirectory() as folder:
        losses, whole = pretrained(pathlib.Path(folder, "whole"), device)
        resumed_losses, resumed = pretrained(pathlib.Path(folder, "resumed"), device, 7)
        models = [run.load("base")[0] for run in (whole, resumed)]
    pairs = zip(*(model.parameters() for model in models), strict=True)
    apart = [float((a - b).detach().abs().max()) for a, b in pairs]
    return {
        "losses": numbers(losses),
        "losses, resumed": numbers(resumed_losses),
        "largest difference of a weight": numbers([max(apart)]),
    }


def check_smollm2(world, device):
    """SmolLM2 in float32: log-probabilities of a function, and greedy completions."""
    path = smollm2_path()
    tok = tokenizers.gguf_tokenizer(path)
    model = load_gguf(path)[0].to(device)
    task = domain.expert_task(0, 0, "train")
    ids = torch.tensor([tok.encode(task.prompt + task.solution)], device=device)
    with torch.no_grad():
        hidden = model(ids)[0, :-1]
        logp = logprobs.token_logprobs(hidden, model.head_weight, ids[0, 1:])
    texts = ['def fibonacci(n):\n    """', "import json\n\n\ndef read(path):\n"]
    completions = generate(model, [tok.encode(t) for t in texts], 24, tok.eos, temperature=0.0)
    return {
        "log-probabilities": numbers(logp),
        "tokens": tokens_of([c.ids for group in completions for c in group]),
    }


class Check(typing.NamedTuple):
    """A check, and how far its numbers may be from the reference."""

    run: typing.Callable  # (world, device) -> {quantity: tensor}
    tolerance: float = 1e-4


def check_compiled_mstep(world, device):
    """Next-token training as on a GPU: compiled, in bfloat16, by variable-length attention."""
    return check_ntp(world, device, bf16=True, compile="auto")


CHECKS = {
    "logits": Check(check_logits),
    "log-probabilities": Check(check_log_probabilities),
    "gradients": Check(check_gradients, 1e-3),
    "greedy completions": Check(check_greedy),
    "sampled completions": Check(check_sampled),
    "rollouts": Check(check_rollouts, 1e-3),
    "E-step": Check(check_estep, 1e-3),
    "M-step": Check(check_ntp, 1e-3),
    "GRPO step": Check(check_grpo, 5e-3),
    "stop and resume": Check(check_stop_and_resume, 1e-3),
    "SmolLM2": Check(check_smollm2, 1e-3),
    "E-step's update, bfloat16": Check(
        lambda world, device: check_estep(world, device, True), 5e-2
    ),
    "M-step, bfloat16": Check(lambda world, device: check_ntp(world, device, bf16=True), 5e-2),
    "M-step, bfloat16, compiled": Check(check_compiled_mstep, 5e-2),
}


# ---------------------------------------------------------------- references, and the comparison


def cpu_references():
    """{check: {quantity: tensor}} of a CPU. A check that needs what is not here is left out."""
    world = small_world()
    results = {}
    for name, check in CHECKS.items():
        try:
            results[name] = check.run(world, torch.device("cpu"))
        except UserError as e:
            print(f"parity: no reference of {name}: {e}")
    return results


def difference(ours, reference):
    """How far numbers are from the reference: see the top. Ids: the share that differs."""
    if ours.shape != reference.shape:
        return float("inf")
    if not reference.is_floating_point():
        return float((ours != reference).double().mean())
    away = float((ours - reference).nan_to_num().norm())
    norm = float(reference.nan_to_num().norm())
    same_gaps = bool((ours.isnan() == reference.isnan()).all())
    return away / (norm or 1.0) if same_gaps else float("inf")


def compare(job, name, check, ours, reference):
    """Write a line for each quantity of a check."""
    for quantity, values in reference.items():
        tolerance = CHANGE_TOLERANCE if quantity == CHANGE else check.tolerance
        tolerance = tolerance if values.is_floating_point() else 0.0
        away = difference(ours[quantity], values)
        job.write(
            "parity",
            check=name,
            quantity=quantity,
            difference=away,
            tolerance=tolerance,
            agrees=away <= tolerance,
        )


def expected_numbers(job):
    """The references of the pack, or computed here."""
    if job.packed and (job.packed / FILE).exists():
        return torch.load(job.packed / FILE, weights_only=True)
    return cpu_references()


def parity_stage(job):
    """Run all checks on the device, and write parity.jsonl; a check that fails is a line too."""
    device = job.torch_device()
    compiles = logprobs.COMPILE
    logprobs.COMPILE = False
    expected = expected_numbers(job)
    world = small_world()
    for name, check in CHECKS.items():
        if "compiled" in name:
            if device.type == "cpu" or job.compile == "false":
                continue
            logprobs.COMPILE = compiles
        if name not in expected:
            job.write("parity", check=name, note="no reference")
            continue
        try:
            ours = check.run(world, device)
        except Exception as e:
            job.write("parity", check=name, agrees=False, error=f"{type(e).__name__}: {e}")
            with open(job.out / "parity.traceback", "a") as f:
                f.write(f"{name}\n{traceback.format_exc()}\n")
            continue
        compare(job, name, check, ours, expected[name])
