"""The weights of blocks in the layout of fast inference: fewer and packed matrix products.

q, k and v are one product, gate and up another. On a CPU weights are packed for its matrix product
once, not at every call. `model.block` runs on these layers as on the model's own.

Letters: D width, F width of the feed-forward layer, H query heads, K key/value heads, E head width.
"""

import dataclasses

import torch
import torch.nn.functional as F


@dataclasses.dataclass
class StackedLayer:
    """The weights of one block, for `model.block`. Each linear map is a function of a tensor."""

    attn_norm: object
    qkv: object  # (..., D) -> (..., (H + 2 K) E): heads of q, then of k, then of v
    o: object
    mlp_norm: object
    stacked_gate_up: object  # (..., D) -> (..., 2 F)
    down: object

    def gate_up(self, h):
        return self.stacked_gate_up(h).chunk(2, -1)  # 2 x (..., F)


def stacked_layers(model, dtype=None):
    """The StackedLayers of a model's blocks, in a dtype (default: the model's)."""
    dtype = dtype or model.dtype
    return [
        StackedLayer(
            part.attn_norm,
            stacked_linear([part.q, part.k, part.v], dtype),
            stacked_linear([part.o], dtype),
            part.mlp_norm,
            stacked_linear([part.gate, part.up], dtype),
            stacked_linear([part.down], dtype),
        )
        for part in model.blocks
    ]


def stacked_linear(modules, dtype):
    """The function x -> x W^T + b for the stacked weights of linear modules, in a dtype.

    On a CPU the weights are packed for its matrix product where that is faster.
    """
    with torch.no_grad():
        weight = torch.cat([m.weight for m in modules]).to(dtype)
        bias = None
        if getattr(modules[0], "bias", None) is not None:
            bias = torch.cat([m.bias for m in modules]).to(dtype)

    def plain(x):
        return F.linear(x, weight, bias)

    if not packing_helps(weight):
        return plain
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)

    def product(x):
        return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")

    return product


def scoring_head(model):
    """(V, D) the head for log-probabilities of `model`'s states: in float32 at least.

    On a GPU one in bfloat16 stays as it is: `logprobs.exact_on_gpu` takes it so.
    """
    weight = model.head_weight
    if weight.is_cuda and weight.dtype == torch.bfloat16:
        return weight
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def head_product(model):
    """The function hidden (N, D) -> logits (N, V), a float32 product of states in the model's type.

    bfloat16 on a GPU: tensor cores multiply bfloat16 numbers exactly, and sum in float32.
    """
    if model.device.type == "cuda" and model.dtype == torch.bfloat16:
        weight = model.head_weight
        return lambda hidden: torch.mm(hidden, weight.T, out_dtype=torch.float32)
    product = stacked_linear([model.head or model.embed], torch.float32)
    return lambda hidden: product(hidden.float())


def packing_helps(weight):
    """Is the product faster with weights in oneDNN's layout?"""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.numel() >= 2**20
