"""A GPU that is not there: tensors that say they are on cuda:0, and hold their numbers on the CPU.

    with pretended_cuda.on() as log:    # torch.cuda.is_available() is True, device="cuda" works
        ...                             # any torch program; its numbers are right

It raises where a GPU would:

- an operation takes tensors of both devices (numbers, and indices on the CPU, pass as in torch);
- .numpy() of a tensor on the GPU;
- while a graph is recorded, something waits for the GPU or copies between devices;
- varlen_attn gets inputs that its kernel refuses.

`log` counts, by line of the program: synchronisations, where the host waits for the GPU (.item(),
.tolist(), .cpu(), copies of pageable memory, nonzero, boolean masks, ...), and launches, about one
kernel an aten operation that is no view. A copy from pinned memory with non_blocking=True is no
synchronisation.

A CUDA graph is recorded as the list of its operations. While it is recorded nothing is computed
that can be seen afterwards: buffers are put back, and results are filled with NaN. A replay runs
the list on the same memory. A graph that depends on a number of Python's, or reads a buffer that
was replaced later, is as wrong here as on a GPU.

Not pretended: the rounding of kernels, streams, memory limits, torch.compile (leave it off).
"""

import collections
import contextlib
import dataclasses
import math
import pathlib
import sys

import torch
import torch._dynamo  # what it imports must not meet the stand-ins below
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
DEVICE = torch.device("cuda:0")
ROOT = f"{pathlib.Path(__file__).resolve().parent.parent}/"  # the project's folder
GROUPED = torch._C._group_tensors_by_device_and_dtype
LOG = None  # of the GPU that is on


# ---------------------------------------------------------------- what is counted


@dataclasses.dataclass
class Log:
    """What the GPU was asked for. A place is "file:line" of the innermost line of the project."""

    syncs: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    kernels: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    copied: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # bytes
    attention: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    graphs: list = dataclasses.field(default_factory=list)  # the recorded ones
    replays: int = 0
    recording: object = None  # the graph that is being recorded
    quiet: bool = False  # operations of a kernel's stand-in are not launches
    pinned: dict = dataclasses.field(default_factory=dict)  # address -> tensor, so that it stays

    @property
    def synchronisations(self):
        return sum(self.syncs.values())

    @property
    def launches(self):
        return sum(self.kernels.values())

    def sync(self, what):
        """The host waits for the GPU. Raises RuntimeError while a graph is recorded."""
        if self.recording is not None:
            raise RuntimeError(
                "CUDA error: operation not permitted when stream is capturing "
                f"({what} at {place()})"
            )
        self.syncs[what, place()] += 1

    def launch(self, name):
        if not self.quiet:
            self.kernels[name, place()] += 1

    def reset(self):
        """Count from zero. Graphs and pinned memory stay."""
        for counter in (self.syncs, self.kernels, self.copied, self.attention):
            counter.clear()
        self.replays = 0

    def table(self, counter):
        """A counter as text, the largest first, a line each."""
        return "\n".join(f"{n:6} {' '.join(key)}" for key, n in counter.most_common())


def place():
    """The innermost line of the project that is running, this file apart. Example: elbo.py:71"""
    frame = sys._getframe(1)
    while frame:
        path = frame.f_code.co_filename
        if path.startswith(ROOT) and path != __file__ and "site-packages" not in path:
            return f"{path[len(ROOT) :]}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


# ---------------------------------------------------------------- tensors


class PretendedTensor(torch.Tensor):
    """To Python a tensor on cuda:0; to C++ one on the CPU, so that no driver is asked for."""

    @staticmethod
    def __new__(cls, inner):
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=inner.device,
        )
        self.inner = inner
        return self

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __tensor_flatten__(self):  # by these two nn.Module.to knows that it has to swap tensors
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(parts, meta, size, stride):
        return PretendedTensor(parts["inner"])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})

    def get_device(self):
        return 0

    def to(self, *args, **kwargs):
        return tensor_to(self, *args, **kwargs)

    def cpu(self):
        return tensor_to(self, "cpu")

    def cuda(self):
        return self

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def __array__(self, *args, **kwargs):
        return self.numpy()

    def pin_memory(self):
        raise RuntimeError("cannot pin 'torch.cuda' tensor; only dense CPU tensors can be pinned")

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            LOG.launch("clone")
            copy = PretendedTensor(self.inner.detach().clone())
            is_parameter = getattr(self, "_is_param", False)
            copy = torch.nn.Parameter(copy) if is_parameter else copy
            memo[id(self)] = copy.requires_grad_(self.requires_grad)
        return memo[id(self)]

    def __reduce_ex__(self, protocol):
        return self.cpu().detach().__reduce_ex__(protocol)

    def __repr__(self, **kwargs):
        return f"PretendedTensor({self.inner!r})"


def tensor_to(x, *args, copy=False, other=None, **kwargs):
    """Tensor.to, of tensors on either device."""
    if args and isinstance(args[0], torch.Tensor):
        other, *args = args
    if other is not None:
        args = (other.device, other.dtype, *args)
    device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
    device = torch.device(device if device is not None else x.device)
    dtype = dtype or x.dtype
    if device.type == x.device.type and dtype == x.dtype and not copy:
        return x
    return aten._to_copy.default(x, dtype=dtype, device=device, non_blocking=non_blocking)


def is_cuda(device):
    return device is not None and torch.device(device).type == "cuda"


def is_pretended(x):
    return isinstance(x, PretendedTensor)


def inner_of(x):
    return x.inner if is_pretended(x) else x


def outer_of(x):
    return PretendedTensor(x) if isinstance(x, torch.Tensor) else x


def leaves(x):
    """The values in lists, tuples and dictionaries of values."""
    if isinstance(x, dict):
        x = tuple(x.values())
    if not isinstance(x, (list, tuple)):
        return [x]
    return [leaf for part in x for leaf in leaves(part)]


def mapped(function, x):
    """The same lists, tuples and dictionaries, of function(value)."""
    if isinstance(x, dict):
        return {key: mapped(function, value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return type(x)([mapped(function, value) for value in x])
    return function(x)


def pin(x):
    """A copy of a CPU tensor that counts as pinned memory."""
    copy = x.clone()
    LOG.pinned[copy.untyped_storage().data_ptr()] = copy
    return copy


def is_pinned(x):
    return x.untyped_storage().data_ptr() in LOG.pinned


# ---------------------------------------------------------------- operations

VIEWS = {"detach", "alias", "lift", "lift_fresh", "set_", "_unsafe_view", "_reshape_alias"}
EMPTY = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}
WAITS = {"nonzero", "_unique2", "unique_dim", "unique_consecutive", "masked_select", "bincount"}
WAITS |= {"equal", "is_nonzero", "_local_scalar_dense"}
INDEXED = {"index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"}
NO_NUMBERS = {"embedding", "gather", "index_select", "scatter", "mm"}  # not even of dimension 0

# operations that the CPU does not have: their results
KERNELS = {aten.mm.dtype: lambda a, b, dtype: a.to(dtype) @ b.to(dtype)}


def name_of(func):
    return func._schema.name.split("::")[1]


def run(func, args, kwargs):
    """One aten operation."""
    if torch.is_inference_mode_enabled() and func._can_decompose() and name_of(func) != "detach":
        with Dispatch():  # else autograd's layer has taken it apart before it comes here
            return func.decompose(*args, **kwargs)
    name = name_of(func)
    tensors = [x for x in leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    ours = any(is_pretended(x) for x in tensors)
    backward = torch._C._current_autograd_node() is not None
    asked = kwargs.get("device")
    if name in ("zeros", "ones", "full") and backward:
        asked = DEVICE  # a missing gradient, made where C++ believes the others are
    if not ours and not is_cuda(asked):
        return func(*args, **kwargs)
    if name == "_to_copy":
        return copy_of(func, args, kwargs, backward)
    if name == "copy_":
        return copy_into(func, args, kwargs)
    if "torch_attn" in func._schema.name:
        return varlen(func, args, kwargs)
    if ours:
        check_devices(func, args, tensors)
    count_waits(func, args, kwargs)
    if asked is not None:
        kwargs = {key: x for key, x in kwargs.items() if key != "pin_memory"} | {"device": "cpu"}
    return compute(func, args, kwargs)


def check_devices(func, args, tensors):
    """Raise RuntimeError where an operation takes tensors of both devices."""
    name = name_of(func)
    indices = [x for x in args[1] if x is not None] if name in INDEXED else []
    wrong = [
        x
        for x in tensors
        if not is_pretended(x)
        and (x.dim() or name in NO_NUMBERS)
        and not any(x is index for index in indices)
    ]
    if wrong:
        shapes = [tuple(x.shape) for x in wrong]
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"cuda:0 and cpu! ({func}, {shapes} on the CPU, at {place()})"
        )


def count_waits(func, args, kwargs):
    """Count an operation that waits for the GPU: its result's shape, or a number, is needed."""
    name = name_of(func)
    for index in args[1] if name in INDEXED else ():
        if index is not None and not is_pretended(index):
            LOG.sync("index on the CPU")
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            LOG.sync("boolean mask")
    counted = name == "repeat_interleave" and func._overloadname == "Tensor"
    if name in WAITS or counted and kwargs.get("output_size") is None:
        LOG.sync("item" if name == "_local_scalar_dense" else name)


def compute(func, args, kwargs):
    """The result of an operation: now, or while a graph is recorded at every replay."""
    schema = func._schema
    inner_args = mapped(inner_of, args)
    inner_kwargs = mapped(inner_of, kwargs)
    if func.is_view or name_of(func) in VIEWS | EMPTY:
        result = func(*inner_args, **inner_kwargs)
    else:
        LOG.launch(name_of(func))
        kernel = KERNELS.get(func, func)
        if LOG.recording is not None:
            kernel = LOG.recording.recorder(kernel, schema)
        result = kernel(*inner_args, **inner_kwargs)
    if schema.is_mutable and any(r.alias_info is not None for r in schema.returns):
        return kwargs.get("out", args[0] if args else None)
    # a view of an ordinary tensor is an ordinary tensor in inference mode too
    base = next((x for x in args if is_pretended(x)), None) if func.is_view else None
    mode = torch.is_inference_mode_enabled() if base is None else base.is_inference()
    with torch.inference_mode(mode):
        return mapped(outer_of, result)


# ---------------------------------------------------------------- copies


def copy_of(func, args, kwargs, backward):
    """aten._to_copy: to another device, or to another type."""
    x = args[0]
    asked = kwargs.get("device")
    if is_pretended(x) and backward:
        asked = asked and DEVICE  # C++ asks for the device that it believes the input had
    to_gpu = is_pretended(x) if asked is None else is_cuda(asked)
    if asked is not None:
        kwargs = dict(kwargs, device=torch.device("cpu"))
    if is_pretended(x) and to_gpu:
        return compute(func, args, kwargs)
    non_blocking = kwargs.get("non_blocking")
    count_copy(x, to_gpu, non_blocking and (is_pretended(x) or is_pinned(x)))
    result = func(inner_of(x), **kwargs)
    if to_gpu:
        return PretendedTensor(result)
    return pin(result) if non_blocking else result  # torch gives it pinned memory


def copy_into(func, args, kwargs):
    """aten.copy_: onto either device."""
    target, source, *options = args
    if is_pretended(target) and (is_pretended(source) or not source.dim()):
        return compute(func, args, kwargs)  # a number is an argument of the kernel
    host = source if is_pretended(target) else target
    count_copy(source, is_pretended(target), any(options) and is_pinned(host))
    func(inner_of(target), inner_of(source), *options, **kwargs)
    return target


def count_copy(x, to_gpu, free):
    """Count a copy between devices. free: the host does not wait for it."""
    direction = "to the GPU" if to_gpu else "to the host"
    if not free or LOG.recording is not None:
        LOG.sync(direction)
    LOG.copied[(direction,)] += x.nbytes
    LOG.launch("memcpy")


# ---------------------------------------------------------------- attention kernels

LOW = (torch.float16, torch.bfloat16)


def varlen(func, args, kwargs):
    """torch.nn.attention.varlen's operator, forward and backward."""
    schema = func._schema
    named = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    named |= dict(zip((a.name for a in schema.arguments), args, strict=False)) | kwargs
    LOG.launch(name_of(func))
    check_varlen(named)
    inner = {name: inner_of(value) for name, value in named.items()}
    if "backward" in name_of(func):
        return tuple(PretendedTensor(x) for x in varlen_backward(inner))
    y, lse = varlen_forward(inner)
    state = torch.zeros(2, dtype=torch.uint64)
    return PretendedTensor(y), PretendedTensor(lse), PretendedTensor(state)


def check_varlen(named):
    """Raise RuntimeError for inputs that the kernel refuses."""
    wrong = []
    for name in ("query", "key", "value"):
        x = named[name]
        if not is_pretended(x) or x.dtype not in LOW or x.stride(-1) != 1:
            wrong.append(f"{name}: expected fp16 or bf16 on the GPU, contiguous heads")
        if x.shape[-1] % 8 or x.shape[-1] > 256:
            wrong.append(f"{name}: heads of width {x.shape[-1]}")
    for name, length, longest in (("cu_seq_q", "query", "max_q"), ("cu_seq_k", "key", "max_k")):
        bounds = named[name]
        if not is_pretended(bounds) or bounds.dtype != torch.int32 or not bounds.is_contiguous():
            wrong.append(f"{name}: expected contiguous int32 on the GPU")
        sizes = inner_of(bounds).diff()
        ends = (int(inner_of(bounds)[0]), int(inner_of(bounds)[-1]))
        if ends != (0, len(named[length])) or (sizes < 0).any() or sizes.max() > named[longest]:
            wrong.append(f"{name}, {longest}: not those of the tokens")
    if named["query"].shape[1] % named["key"].shape[1]:
        wrong.append("number of heads in key/value must divide number of heads in query")
    if list(named["window_size"] or (-1, -1)) not in ([-1, -1], [-1, 0]):
        wrong.append("a window that is not pretended")
    if named.get("block_table") is not None or named.get("seqused_k") is not None:
        wrong.append("pages of keys are not pretended")
    if wrong:
        raise RuntimeError("varlen_attn: " + "; ".join(wrong))


def varlen_documents(named):
    """Of each document: the ranges of its queries and keys, its inputs, and p: (H, n, S)."""
    q, k, v = (named[name].float() for name in ("query", "key", "value"))
    group = q.shape[1] // k.shape[1]
    scale = named["scale"] or q.shape[-1] ** -0.5
    starts, key_starts = named["cu_seq_q"].tolist(), named["cu_seq_k"].tolist()
    bounds = zip(starts, starts[1:], key_starts, key_starts[1:], strict=False)
    for first, last, key_first, key_last in bounds:
        own = slice(first, last)
        seen = slice(key_first, key_last)
        qi = q[own].transpose(0, 1)  # (H, n, E)
        ki = k[seen].transpose(0, 1).repeat_interleave(group, 0)  # (H, S, E)
        vi = v[seen].transpose(0, 1).repeat_interleave(group, 0)
        scores = qi @ ki.mT * scale  # (H, n, S)
        if list(named["window_size"] or (-1, -1)) == [-1, 0]:  # causal, to the lower right
            ahead = scores.shape[2] - scores.shape[1]
            causal = torch.ones(scores.shape[1:], dtype=torch.bool).tril(ahead)
            scores = scores.masked_fill(~causal, -math.inf)
        yield own, seen, (qi, ki, vi), scores


def varlen_forward(named):
    ys, sums = [], []
    for *_, (_, _, v), scores in varlen_documents(named):
        ys.append((scores.softmax(-1) @ v).transpose(0, 1))  # (n, H, E)
        sums.append(scores.logsumexp(-1))
    return torch.cat(ys).to(named["query"].dtype), torch.cat(sums, 1)


def varlen_backward(named):
    """d p = d y v^T;  d scores = p (d p - sum p d p);  autograd is off where this runs."""
    inputs = [named[name] for name in ("query", "key", "value")]
    d_q, d_k, d_v = (torch.zeros(x.shape) for x in inputs)
    d_y = named["grad_out"].float()
    scale = named["scale"] or inputs[0].shape[-1] ** -0.5
    K = inputs[1].shape[1]

    def by_key_head(x):  # (H, S, E) -> (S, K, E)
        return x.unflatten(0, (K, -1)).sum(1).transpose(0, 1)

    for own, seen, (q, k, v), scores in varlen_documents(named):
        p = scores.softmax(-1)
        d = d_y[own].transpose(0, 1)  # (H, n, E)
        d_p = d @ v.mT
        d_scores = p * (d_p - (d_p * p).sum(-1, keepdim=True)) * scale
        d_q[own] = (d_scores @ k).transpose(0, 1)
        d_k[seen] += by_key_head(d_scores.mT @ q)
        d_v[seen] += by_key_head(p.mT @ d)
    return tuple(d.to(x.dtype) for d, x in zip((d_q, d_k, d_v), inputs, strict=True))


def attention_kernel(q, k, bias):
    """Which kernel of scaled_dot_product_attention torch takes on an H100."""
    grouped = q.shape[1] != k.shape[1]
    low = q.dtype in LOW
    if bias is None and low:
        return "flash"
    if grouped:
        return "cuDNN or math" if low else "math"
    return "memory-efficient"


def sdpa(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """F.scaled_dot_product_attention, without dropout."""
    if attn_mask is not None and not is_pretended(attn_mask):
        raise RuntimeError("attn_mask is on the CPU")
    if attn_mask is not None and attn_mask.dtype not in (torch.bool, q.dtype):
        raise RuntimeError(f"attn_mask is {attn_mask.dtype}, the query {q.dtype}")
    if not q.dtype == k.dtype == v.dtype or q.shape[1] != k.shape[1] and not enable_gqa:
        raise RuntimeError(f"q {q.dtype} {q.shape}, k {k.dtype} {k.shape}, v {v.dtype} {v.shape}")
    LOG.attention[(attention_kernel(q, k, attn_mask),)] += 1
    LOG.launch("sdpa")
    LOG.quiet = True
    try:
        group = q.shape[1] // k.shape[1]
        k = k.repeat_interleave(group, 1)
        v = v.repeat_interleave(group, 1)
        scores = (q.float() @ k.float().mT) * (scale or q.shape[-1] ** -0.5)  # (B, H, T, S)
        if is_causal:
            causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=DEVICE).tril()
            scores = scores.masked_fill(causal.logical_not(), -math.inf)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(attn_mask.logical_not(), -math.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask
        return (scores.softmax(-1) @ v.float()).to(q.dtype)
    finally:
        LOG.quiet = False


# ---------------------------------------------------------------- graphs


class Graph:
    """torch.cuda.CUDAGraph: operations, on the tensors that they had."""

    def __init__(self, keep_graph=False):
        self.operations = []  # (kernel, args, kwargs, its results, or None: it writes in place)
        self.before = []  # (tensor, its numbers before the operation that wrote to it)

    def recorder(self, kernel, schema):
        """The function that records a call of a kernel, and computes its result for now."""

        def record(*args, **kwargs):
            for argument, x in zip(schema.arguments, args, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self.before += [(t, t.clone()) for t in leaves(x)]
            result = kernel(*args, **kwargs)
            self.operations.append((kernel, args, kwargs, None if schema.is_mutable else result))
            return result

        return record

    def end(self):
        """Undo what recording has computed."""
        for x, before in reversed(self.before):
            x.copy_(before)
        for *_, result in self.operations:
            for x in leaves(result):
                if isinstance(x, torch.Tensor) and x.is_floating_point():
                    x.fill_(math.nan)

    def replay(self):
        LOG.replays += 1
        for kernel, args, kwargs, result in self.operations:
            again = kernel(*args, **kwargs)
            for x, y in zip(leaves(result), leaves(again), strict=False):
                if isinstance(x, torch.Tensor):
                    x.copy_(y)


@contextlib.contextmanager
def recording(graph, pool=None, stream=None, capture_error_mode="global"):
    """torch.cuda.graph"""
    LOG.sync("recording of a graph")
    LOG.recording = graph
    try:
        yield
    finally:
        LOG.recording = None
        graph.end()
    LOG.graphs.append(graph)


# ---------------------------------------------------------------- the GPU, on


class Dispatch(TorchDispatchMode):
    """Operations on tensors of the CPU that ask for a result on the GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class Functions(TorchFunctionMode):
    """What C++ decides by the device of a tensor, or by asking the GPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and is_pretended(args[0]):
            return sdpa(*args, **kwargs)
        if func is torch.Tensor.to:
            return tensor_to(*args, **kwargs)
        if func is torch.Tensor.cuda:
            return tensor_to(args[0], "cuda")
        if func is torch.Tensor.pin_memory:
            return pin(args[0])
        if func is torch.Tensor.is_pinned:
            return is_pinned(args[0])
        if kwargs.get("pin_memory") and not is_cuda(kwargs.get("device")):
            return pin(func(*args, **dict(kwargs, pin_memory=False)))
        if func in (torch.tensor, torch.as_tensor) and is_cuda(kwargs.get("device")):
            on_cpu = dict(kwargs, device="cpu")
            x = args[0] if is_pretended(args[0]) else func(*args, **on_cpu)
            return tensor_to(x, "cuda", kwargs.get("dtype") or x.dtype)
        return func(*args, **kwargs)


class Autocast(torch.autocast):
    """torch.autocast("cuda"): its state, and the casts of the CPU's, nearly the same ones."""

    def __init__(self, device_type, dtype=None, enabled=True, cache_enabled=None):
        super().__init__(device_type, dtype, enabled, cache_enabled)
        self.casts = contextlib.nullcontext()
        if device_type == "cuda":
            dtype = dtype or torch.bfloat16
            self.casts = torch.amp.autocast_mode.autocast("cpu", dtype, enabled, cache_enabled)

    def __enter__(self):
        super().__enter__()
        self.casts.__enter__()
        return self

    def __exit__(self, *error):
        self.casts.__exit__(*error)
        return super().__exit__(*error)


class Properties:
    name = "a GPU that is not there"
    major, minor = 9, 0
    multi_processor_count = 132
    total_memory = 80 * 2**30


class Event:
    """torch.cuda.Event. Everything before it is done at once."""

    def __init__(self, **options):
        pass

    def record(self, stream=None):
        pass

    def query(self):
        return True

    def synchronize(self):
        LOG.sync("event")

    def elapsed_time(self, end):
        return 0.0


def grouped(tensorlists, with_indices=False):
    """torch._C._group_tensors_by_device_and_dtype, which asks C++ for the device."""
    groups = GROUPED(tensorlists, with_indices)
    pretended = any(is_pretended(x) for x in leaves(tensorlists))
    return {(DEVICE if pretended else d, dtype): g for (d, dtype), g in groups.items()}


def generator_class(generator):
    """torch.Generator, whatever device it is asked for."""
    return type("Generator", (), {"__new__": lambda cls, device="cpu": generator()})


def stand_ins():
    """[(module, name, what stands there while the GPU is on)]."""
    cuda = torch.cuda
    return [
        (cuda, "is_available", lambda: True),
        (cuda, "is_initialized", lambda: True),
        (cuda, "_lazy_init", lambda: None),
        (cuda, "device_count", lambda: 1),
        (cuda, "current_device", lambda: 0),
        (cuda, "set_device", lambda device: None),
        (cuda, "is_bf16_supported", lambda *args, **kwargs: True),
        (cuda, "synchronize", lambda *device: LOG.sync("synchronize")),
        (cuda, "empty_cache", lambda: None),
        (cuda, "get_device_properties", lambda *device: Properties),
        (cuda, "get_device_name", lambda *device: Properties.name),
        (cuda, "get_device_capability", lambda *device: (Properties.major, Properties.minor)),
        (cuda, "is_current_stream_capturing", lambda: LOG.recording is not None),
        (cuda, "max_memory_allocated", lambda *device: 0),
        (cuda, "reset_peak_memory_stats", lambda *device: None),
        (cuda, "graph_pool_handle", lambda: (0, 1)),
        (cuda, "Event", Event),
        (cuda, "CUDAGraph", Graph),
        (cuda, "graph", recording),
        (torch._C, "_group_tensors_by_device_and_dtype", grouped),
        (cuda.amp.common, "amp_definitely_not_available", lambda: False),
        (torch, "Generator", generator_class(torch.Generator)),
        (torch, "autocast", Autocast),
    ]


@contextlib.contextmanager
def on():
    """Pretend, within -> the Log."""
    global LOG
    LOG = Log()
    torch._C._ensureCUDADeviceGuardSet()  # one that does nothing where there is no driver
    lift = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(device="cuda") comes by the CPU
    with contextlib.ExitStack() as stack:
        stack.callback(torch._C._set_only_lift_cpu_tensors, lift)
        for module, name, value in stand_ins():
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)
        stack.enter_context(Dispatch())
        stack.enter_context(Functions())
        yield LOG
