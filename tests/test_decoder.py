"""Decoder and rollouts on a GPU that is not there: the kernel, graphs, what is waited for."""

import gc
import os
import subprocess
import sys
import textwrap
import weakref

import numpy as np
import pytest
import torch

import data
import domain
import logprobs
import pretended_cuda
from engine import decoder, machine, rollouts
from engine.sample import generate
from model import ModelConfig, Transformer
from worlds import thinker

torch.set_num_threads(1)
V = 29
PROMPTS = [[5], [1, 2, 3, 4, 5, 6, 7], [9, 8, 7], [9, 8], [3, 3, 3, 3, 3, 3], [2, 4]]


def network(seed=0, dtype=torch.float32, **shape):
    sizes = dict(n_layer=2, n_head=4, n_kv_head=2, d_model=32, d_ff=48, max_len=64) | shape
    return Transformer(ModelConfig(V, **sizes)).init_weights(seed).to(dtype)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No decoder stays from another test, and nothing is compiled for a driver."""
    decoder.STANDING.clear()
    monkeypatch.setattr(logprobs, "COMPILE", False)
    yield
    decoder.STANDING.clear()


def ids(groups):
    return [[c.ids for c in group] for group in groups]


# ---------------------------------------------------------------- the kernel

INTERPRETED = """
    import torch
    from engine import kernels

    gen = torch.Generator().manual_seed(1)
    for H, K, E in ((4, 2, 8), (9, 3, 64), (2, 2, 24)):
        for dtype in (torch.float32, torch.float16):
            qkv = torch.randn(5, (H + 2 * K) * E, generator=gen).to(dtype)
            own = [torch.randn(8, K, 90, E, generator=gen).to(dtype) for _ in range(2)]
            shared = [torch.randn(3, K, 150, E, generator=gen).to(dtype) for _ in range(2)]
            angle = torch.randn(300, E // 2, generator=gen)
            rows = kernels.Rows(
                prompt=torch.tensor([0, 2, 1, 1, 0]),
                length=torch.tensor([1, 150, 64, 65, 7]),
                count=torch.tensor([1, 2, 64, 91, 66]),
                cos=angle.cos().to(dtype),
                sin=angle.sin().to(dtype),
            )
            twin = [x.clone() for x in own]
            y = kernels.plain_attention(qkv, rows, twin, shared)
            off = 1e-5 if dtype == torch.float32 else 5e-3
            tolerance = dict(rtol=off, atol=off)
            torch.testing.assert_close(
                kernels.fused_attention(qkv, rows, own, shared), y, **tolerance
            )
            for written, x in zip(own, twin, strict=True):
                torch.testing.assert_close(written, x, **tolerance)
"""


def test_the_kernel_is_its_plain_twin():
    """In Triton's interpreter, on the CPU. That of 3.6 does not know NumPy 2.4."""
    run_with_triton(INTERPRETED, "3.7", TRITON_INTERPRET="1")


def run_with_triton(program, version, **environment):
    """Run a program in a process of its own, or skip."""
    pytest.importorskip("triton", version, reason="Triton comes with torch for CUDA")
    environment |= os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    program = textwrap.dedent(program)
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


COMPILED = """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from engine import kernels

    kernel = kernels.attention_kernel
    for number, block in (("bf16", 64), ("fp32", 32)):
        types = {name: f"*{number}" for name in kernel.arg_names}
        types |= dict.fromkeys(("prompts", "lengths", "counts"), "*i64")
        types |= dict.fromkeys(("own_slots", "shared_slots", "max_len"), "i32") | {"scale": "fp32"}
        sizes = dict(H=9, K=3, E=64, WIDTH=64, GROUP=16, BLOCK=block)
        types |= dict.fromkeys(sizes, "constexpr")
        source = ASTSource(kernel, types, sizes)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        assert compiled.asm["cubin"] and compiled.metadata.shared < 2**17
"""


def test_the_kernel_compiles_for_an_h100():
    """To machine code of sm_90, without a GPU."""
    run_with_triton(COMPILED, "3.6")


# ---------------------------------------------------------------- steps


def test_a_look_in_eight_steps():
    """A step is one replay; the host waits for a look, and when rows begin or go."""
    expected = generate(network(), PROMPTS, 40, -1, n=2, batch=12)
    with pretended_cuda.on() as log:
        model = network().to("cuda")
        generate(model, PROMPTS, 40, -1, n=2, batch=12)  # records
        graphs = len(log.graphs)
        log.reset()
        got = generate(model, PROMPTS, 40, -1, n=2, batch=12)
    assert ids(got) == ids(expected)
    assert len(log.graphs) == graphs == 1
    assert log.replays == 39  # the first token comes from the prompt
    looks = -(-39 // decoder.LOOK)
    assert log.synchronisations == looks + 1, log.table(log.syncs)


def test_kernels_of_a_step(monkeypatch):
    """At most 16 a layer, where attention and RMSNorm are one each."""

    def one_kernel(name, function):
        def stand_in(*args):
            pretended_cuda.LOG.launch(name)
            pretended_cuda.LOG.quiet = True
            try:
                return function(*args)
            finally:
                pretended_cuda.LOG.quiet = False

        return stand_in

    monkeypatch.setattr(decoder, "step_attention", one_kernel("attention", decoder.step_attention))
    monkeypatch.setattr(torch, "rms_norm", one_kernel("rms_norm", torch.rms_norm))

    @torch.inference_mode()
    def launches(layers, **shape):
        with pretended_cuda.on() as log:
            model = network(dtype=torch.bfloat16, n_layer=layers, **shape).to("cuda")
            d = decoder.Decoder(model, 4, 2, 8, 16)
            d.start_prompts(np.arange(4), np.array([0, 0, 1, 1]), PROMPTS[1:3], [[0.5] * 9] * 4)
            log.reset()
            d.step(4)
            return log.launches

    for bias in (False, True):
        a_layer = (launches(3, qkv_bias=bias) - launches(1, qkv_bias=bias)) / 2
        assert 8 <= a_layer <= 16
        assert launches(1, qkv_bias=bias) - a_layer <= 40


def test_a_decoder_that_stays():
    """A call with other weights goes on with the graphs of the call before."""
    models = [network(seed) for seed in (0, 1)]
    expected = [ids(generate(m, PROMPTS, 20, -1, n=2, batch=8)) for m in models]
    with pretended_cuda.on() as log:
        stood = []
        for model, want in zip(models, expected, strict=True):
            model.to("cuda")
            assert ids(generate(model, PROMPTS, 20, -1, n=2, batch=8)) == want
            stood.append((*decoder.STANDING, len(log.graphs)))
        assert stood[0] == stood[1] and stood[0][1] > 0
        models.clear()
        alive = weakref.ref(model)
        del model
        gc.collect()
        assert alive() is None  # the decoder has its own weights
        model = network().to("cuda")
        generate(model, PROMPTS, 20, -1, n=2, batch=8, temperature=0.5)
        assert decoder.STANDING != [stood[0][0]]  # other draws are other graphs


def test_a_large_decoder_does_not_stay(monkeypatch):
    monkeypatch.setattr(pretended_cuda.Properties, "total_memory", 2**20)
    with pretended_cuda.on():
        generate(network().to("cuda"), PROMPTS, 20, -1, n=2, batch=8)
    assert decoder.STANDING == []


@pytest.mark.parametrize("broken", [False, True])
def test_out_of_memory_while_a_graph_is_recorded(monkeypatch, capsys, broken):
    """The step's own error comes out, and the batch is halved.

    broken: the end of the recording raises another error, as CUDA does.
    """
    expected = generate(network(), PROMPTS, 20, -1, n=2)
    step = decoder.Decoder.step

    def step_without_memory(self, B):
        if torch.cuda.is_current_stream_capturing() and B > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        step(self, B)

    with pretended_cuda.on() as log:
        record = torch.cuda.graph

        class Recording:
            def __init__(self, *args, **settings):
                self.recording = record(*args, **settings)

            def __enter__(self):
                self.recording.__enter__()

            def __exit__(self, *error):
                self.recording.__exit__(*error)
                if broken and not pretended_cuda.LOG.graphs[-1].operations:
                    raise RuntimeError("operation failed due to a previous error during capture")

        monkeypatch.setattr(decoder.Decoder, "step", step_without_memory)
        monkeypatch.setattr(torch.cuda, "graph", Recording)
        monkeypatch.setattr(torch.cuda, "default_stream", lambda: None)
        monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
        got = generate(network().to("cuda"), PROMPTS, 20, -1, n=2, batch=8, desc="try")
        monkeypatch.undo()
    assert ids(got) == ids(expected)
    assert "try: out of memory; going on with 4 rows at once" in capsys.readouterr().err
    assert log.replays


# ---------------------------------------------------------------- rollouts


def waited():
    """How often the host has waited for the GPU so far. (Graphs are recorded once.)"""
    syncs = pretended_cuda.LOG.syncs
    return sum(n for (what, _), n in syncs.items() if what != "recording of a graph")


@pytest.fixture
def waits(monkeypatch):
    """[(function of a round, how often it waited)], call by call."""
    calls = []

    def counted(name):
        function = getattr(rollouts, name)

        def count(*args):
            before = waited()
            result = function(*args)
            calls.append((name, waited() - before))
            return result

        monkeypatch.setattr(rollouts, name, count)

    counted("write_thoughts")
    counted("read_lines")
    return calls


@pytest.mark.parametrize("same", [True, False])
def test_a_round_of_rollouts_waits_six_times_at_most(tok, waits, same):
    """A round: thoughts decoded, then lines read. No number of waits grows with the rows."""
    tasks = [domain.expert_task(0, i, "train") for i in range(2)]
    snips = [data.snippet(tok, t.prompt + t.solution, len(t.prompt)) for t in tasks]
    think_max = 2 + decoder.LOOK  # two looks
    outside = []
    for G in (2, 7):
        with pretended_cuda.on() as log:
            q = thinker(tok, 0).to("cuda")
            pi = q if same else thinker(tok, 1).to("cuda")
            log.reset()
            waits.clear()
            settings = dict(rate=0.3, states=not same)  # P(think) is known: no guess is wrong
            rollouts.rollout(q, pi, tok, snips, G, think_max, (5,), **settings)
            decoded = [n for name, n in waits if name == "write_thoughts"]
            read = [n for name, n in waits if name == "read_lines"]
            assert len(decoded) == len(read) > 2 and max(decoded) <= 2
            assert all(a + b <= 6 for a, b in zip(decoded, read, strict=True))
            outside.append(waited() - sum(decoded + read))
    assert outside[0] == outside[1] <= 6


# ---------------------------------------------------------------- copies


def test_arrays_go_up_and_come_down():
    """In one copy each; up from pinned memory, which nothing waits for."""
    arrays = np.arange(6).reshape(2, 3), np.zeros(0, np.int64), [7, 8]

    def there_and_back(device):
        parts = machine.upload(torch.device(device), *arrays)
        assert [x.device.type for x in parts] == [device] * 3
        assert [tuple(x.shape) for x in parts] == [(2, 3), (0,), (2,)]
        return machine.download(*parts)

    with pretended_cuda.on() as log:
        both = there_and_back("cpu"), there_and_back("cuda")
    assert log.syncs.total() == 1 and log.copied[("to the GPU",)] == 8 * 8
    for back in both:
        for x, array in zip(back, arrays, strict=True):
            assert x.dtype == np.float64 and (x == np.array(array)).all()
