"""The weights of blocks in the layout of fast inference: fewer and packed matrix products.

q, k and v are one product, gate and up another. On a CPU weights are packed for its matrix product
once, not at every call. `model.block` runs on these layers as on the model's own.

Letters: D width, F width of the feed-forward layer, H query heads, K key/value heads, E head width.
"""

import dataclasses

import torch
import torch.nn.functional as F


@dataclasses.dataclass
class StackedLinear:
    """The linear map x -> x W^T + b of stacked weights."""

    weight: torch.Tensor | None  # (out, in); None where it is packed
    bias: torch.Tensor | None  # (out,)
    packed: torch.Tensor | None = None  # the weight in oneDNN's layout

    def __call__(self, x):
        if self.packed is None:
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


@dataclasses.dataclass
class StackedNorm:
    """`model.RMSNorm` with its weight in the type that it is used in."""

    weight: torch.Tensor  # (D,) float32 at least
    eps: float
    dtype: torch.dtype  # of the result

    def __call__(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps).to(self.dtype)


@dataclasses.dataclass
class StackedHead:
    """The function hidden (N, D) -> logits (N, V) in float32. hidden: in the model's type."""

    linear: StackedLinear

    def __call__(self, hidden):
        if self.linear.weight is not None and self.linear.weight.dtype == torch.bfloat16:
            # tensor cores multiply bfloat16 numbers exactly, and sum in float32
            return torch.mm(hidden, self.linear.weight.T, out_dtype=torch.float32)
        return self.linear(hidden.float())


@dataclasses.dataclass
class StackedLayer:
    """The weights of one block, for `model.block`."""

    attn_norm: StackedNorm
    qkv: StackedLinear  # (..., D) -> (..., (H + 2 K) E): heads of q, then of k, then of v
    o: StackedLinear
    mlp_norm: StackedNorm
    stacked_gate_up: StackedLinear  # (..., D) -> (..., 2 F)
    down: StackedLinear

    def gate_up(self, h):
        return self.stacked_gate_up(h).chunk(2, -1)  # 2 x (..., F)


@dataclasses.dataclass
class StackedModel:
    """All weights of a model, for decoding."""

    embed: torch.Tensor  # (V, D)
    layers: list
    norm: StackedNorm
    head: StackedHead


def stacked_model(model):
    """The StackedModel of a model. On a GPU no tensor in it belongs to the model."""
    embed = model.embed.weight.detach()
    if embed.is_cuda:
        embed = embed.clone()
    return StackedModel(embed, stacked_layers(model), stacked_norm(model.norm), stacked_head(model))


def stacked_layers(model):
    """The StackedLayers of a model's blocks."""
    return [
        StackedLayer(
            stacked_norm(part.attn_norm),
            stacked_linear([part.q, part.k, part.v]),
            stacked_linear([part.o]),
            stacked_norm(part.mlp_norm),
            stacked_linear([part.gate, part.up]),
            stacked_linear([part.down]),
        )
        for part in model.blocks
    ]


def stacked_norm(module):
    """The StackedNorm of a `model.RMSNorm`."""
    dtype = module.weight.dtype
    weight = module.weight.detach().to(torch.promote_types(dtype, torch.float32), copy=True)
    return StackedNorm(weight, module.eps, dtype)


def stacked_linear(modules, dtype=None):
    """The StackedLinear of linear modules, in a dtype (default: theirs).

    On a CPU the weights are packed for its matrix product where that is faster.
    """
    with torch.no_grad():
        weight = torch.cat([m.weight for m in modules]).to(dtype or modules[0].weight.dtype)
        bias = None
        if getattr(modules[0], "bias", None) is not None:
            bias = torch.cat([m.bias for m in modules]).to(weight.dtype)
    if not packing_helps(weight):
        return StackedLinear(weight, bias)
    return StackedLinear(None, bias, torch.ops.mkldnn._reorder_linear_weight(weight))


def stacked_head(model):
    """The StackedHead of a model: in float32, or on a GPU in bfloat16 where the model is."""
    low = model.device.type == "cuda" and model.dtype == torch.bfloat16
    return StackedHead(stacked_linear([model.head or model.embed], None if low else torch.float32))


def tensors_of(weights):
    """The tensors of stacked weights, in an order that depends on the model's shape only."""
    if isinstance(weights, torch.Tensor):
        yield weights
    elif isinstance(weights, list):
        for part in weights:
            yield from tensors_of(part)
    elif dataclasses.is_dataclass(weights):
        for field in dataclasses.fields(weights):
            yield from tensors_of(getattr(weights, field.name))


def scoring_head(model):
    """(V, D) the head for log-probabilities of `model`'s states: in float32 at least.

    On a GPU one in bfloat16 stays as it is: `logprobs.exact_on_gpu` takes it so.
    """
    weight = model.head_weight
    if weight.is_cuda and weight.dtype == torch.bfloat16:
        return weight
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def packing_helps(weight):
    """Is the product faster with weights in oneDNN's layout?"""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.numel() >= 2**20
