"""What torch.compile would make for an H100, compiled to its machine code without a GPU.

    python tests/sm90.py          a line a graph: its kernels, configurations compiled, MB moved

A driver that is not there stands in for CUDA's. Graphs are traced on the CPU, then handed to
Inductor with their inputs on the GPU; Triton's own ptxas makes sm_90 code. Needs torch for CUDA.
"""

import os
import sys
import tempfile
import types

os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp()
os.environ["TRITON_CACHE_DIR"] = tempfile.mkdtemp()
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"

import torch
import torch._dynamo.device_interface as device_interface
import torch._inductor.compile_fx as compile_fx
import torch._inductor.config as inductor
import torch._inductor.runtime.triton_heuristics as heuristics
import torch._subclasses.fake_tensor as fake_tensor
import triton
from torch._inductor import metrics
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.runtime import triton_helpers
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from triton.backends.compiler import GPUTarget

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import logprobs
from model import Block, ModelConfig, block, rotary, rotate

KERNELS = []  # (name, kind) of every configuration that was compiled

H100 = types.SimpleNamespace(
    name="NVIDIA H100",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=80 * 2**30,
    warp_size=32,
    L2_cache_size=50 * 2**20,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    shared_memory_per_block_optin=232448,
    shared_memory_per_block=49152,
    gcnArchName="",
)


class Driver:
    """Triton's driver of a GPU that is not there."""

    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_device_interface = staticmethod(lambda: torch.cuda)
    get_active_torch_device = staticmethod(lambda: torch.device("cuda", 0))
    is_active = staticmethod(lambda: True)


def always(value):
    return staticmethod(lambda *args, **kwargs: value)


def pretend():
    """Let torch, Inductor and Triton believe that there is an H100."""
    answers = {
        "get_device_properties": H100,
        "get_compute_capability": 90,
        "is_available": True,
        "current_device": 0,
        "device_count": 1,
        "is_bf16_supported": True,
        "exchange_device": 0,
        "maybe_exchange_device": 0,
        "set_device": None,
        "synchronize": None,
        "is_triton_capable": True,
        "raise_if_triton_unavailable": None,
        "get_raw_stream": 0,
    }
    for owner in (device_interface.CudaInterface, device_interface.CudaInterface.Worker):
        for name, value in answers.items():
            setattr(owner, name, always(value))
    answers |= {"get_device_capability": (9, 0), "_lazy_init": None, "set_rng_state": None}
    answers |= {"_exchange_device": 0, "_maybe_exchange_device": 0}
    answers["get_rng_state"] = torch.zeros(16, dtype=torch.uint8)
    for name, value in answers.items():
        setattr(torch.cuda, name, always(value))
    fake_tensor.init_gpu_context = lambda *args: None
    triton_helpers.set_driver_to_gpu = lambda *args: None
    triton.runtime.driver.set_active(Driver())
    torch._logging.set_logs(inductor_metrics=True)  # or Inductor does not count bytes
    inductor.fx_graph_cache = False
    inductor.compile_threads = 1
    inductor.triton.cudagraphs = False
    inductor.triton.autotune_at_compile_time = False
    heuristics.CachingAutotuner.precompile = precompile
    heuristics.CachingAutotuner._make_launchers = lambda self: None


def precompile(self, warm_cache_only=False, **kwargs):
    """In place of the autotuner's: compile every configuration, and time none."""
    self._precompile_worker()
    name = self.inductor_meta.get("kernel_name") or self.fn.__name__
    KERNELS.extend((name, type(result.kernel).__name__) for result in self.compile_results)


def compile_for_h100(function, inputs):
    """Compile a function of tensors for sm_90."""

    def tupled(*args):
        result = function(*args)
        return result if isinstance(result, tuple) else (result,)

    table = select_decomp_table()
    graph = make_fx(tupled, tracing_mode="real", decomposition_table=table)(*inputs)
    for node in graph.graph.nodes:  # what it makes, it makes on the GPU
        if node.kwargs.get("device") is not None:
            node.kwargs = dict(node.kwargs, device=torch.device("cuda"))
    graph.recompile()
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    with torch.no_grad(), mode:
        fakes = [
            torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda") for x in inputs
        ]
    with torch.no_grad():
        graph = make_fx(
            graph,
            decomposition_table=table,
            tracing_mode="symbolic",
            _allow_non_fake_inputs=True,
        )(*fakes)
        fakes = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
        mode = fakes[0].fake_mode
        with mode, torch._guards.tracing(torch._guards.TracingContext(mode)):
            compile_fx.compile_fx_inner(graph, fakes)


def with_gradient(function):
    """The function and its gradient: (tangent, *inputs) -> (result, *gradients)."""

    def joint(tangent, *args):
        args = [x.detach().requires_grad_() for x in args]
        y = function(*args)
        return (y, *torch.autograd.grad(y, args, tangent, allow_unused=True))

    return joint


# ---------------------------------------------------------------- what the project compiles


def softmax_graphs(low):
    """[(name, function, inputs)] of logprobs.py, with logits of a type."""
    n, C = 700, 8191
    state = [torch.zeros(n) for _ in range(3)]
    x, y = (torch.zeros(n, C, dtype=low) for _ in range(2))
    d = torch.zeros(n)
    add = logprobs.add_block
    back = torch.func.functionalize(logprobs.block_gradient)  # as torch.compile: x.mul_ fuses too
    return [
        ("add_block", lambda a, b, c, x: add(a, b, c, x, None, False), [*state, x]),
        ("add_block, entropy", lambda a, b, c, x: add(a, b, c, x, None, True), [*state, x]),
        ("add_block, KL", lambda a, b, c, x, y: add(a, b, c, x, y, True), [*state, x, y]),
        ("block_gradient", lambda a, b, c, d, x: back(a, b, c, d, None, x, None), [*state, d, x]),
        ("block_gradient, KL", lambda a, b, c, d, e, x, y: back(a, b, c, d, e, x, y),
         [*state, d, d.clone(), x, y]),
    ]  # fmt: skip


class AroundAttention(torch.nn.Module):
    """A block of the transformer without its attention, where torch.compile's graph ends."""

    def __init__(self, cfg):
        super().__init__()
        self.layer = Block(cfg)

    def forward(self, x, cos, sin):
        def attend(qkv):
            q, k, v = qkv  # (B, T, H, E), (B, T, K, E)
            q = rotate(q, (cos, sin))
            k = rotate(k, (cos, sin))
            return (q + (k + v).repeat_interleave(q.shape[2] // k.shape[2], 2)).flatten(2)

        with torch.autocast("cpu", torch.bfloat16):
            return block(x, self.layer, attend)


def block_graphs():
    """[(name, function, inputs)] of a block of SmolLM2's shape, forward, and back."""
    cfg = ModelConfig(49152, 1, 9, 3, 576, 1536, 2048)
    module = AroundAttention(cfg)
    names = [name for name, _ in module.named_parameters()]
    cos, sin = (table[None, :, None] for table in rotary(cfg))  # (1, T, 1, E/2)
    x = torch.zeros(1, cfg.max_len, cfg.d_model)

    def forward(x, cos, sin, *weights):
        named = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(module, named, (x, cos, sin))

    inputs = [x, cos, sin, *(p.detach() for p in module.parameters())]
    return [
        ("block", forward, inputs),
        ("block and back", with_gradient(forward), [x, *inputs]),
    ]


def main():
    pretend()
    graphs = softmax_graphs(torch.bfloat16) + softmax_graphs(torch.float32) + block_graphs()
    for name, function, inputs in graphs:
        KERNELS.clear()
        metrics.reset()
        compile_for_h100(function, inputs)
        print(
            f"{name}: {len(set(KERNELS))} kernels, {len(KERNELS)} configurations, "
            f"{metrics.num_bytes_accessed / 1e6:.1f} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()
