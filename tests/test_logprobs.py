"""Log-probabilities and KL without the logits: types, gradients, memory and compiled code.

Plain values: tests/test_elbo.py.
"""

import shutil

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import logprobs
from logprobs import token_kl, token_logprobs

torch.set_num_threads(1)
SETS = ([4], [0, 7, 29], [7, 4, 4 + 25])  # they overlap


def draw(n, v, d, dtype=torch.float64, seed=0):
    """hidden (n, d), weight (v, d), targets (n,)."""
    gen = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, d, generator=gen, dtype=torch.float64).to(dtype),
        torch.randn(v, d, generator=gen, dtype=torch.float64).to(dtype),
        torch.randint(v, (n,), generator=gen),
    )


def leaves(*tensors):
    return [x.detach().clone().requires_grad_() for x in tensors]


@pytest.mark.parametrize("chunk, keep", [(3, 300), (4, 0), (4, 2**29), (1024, 0), (1024, 2**29)])
def test_gradients(monkeypatch, chunk, keep):
    """Finite differences in float64 agree with the gradients of target, sets and KL, whatever part
    of the logits is kept.
    """
    monkeypatch.setattr(logprobs, "KEEP", keep)
    hidden, weight, targets = draw(5, 30, 2)
    other, other_weight, _ = draw(5, 30, 2, seed=1)
    h, w = leaves(hidden, weight)
    assert torch.autograd.gradcheck(lambda h, w: token_logprobs(h, w, targets, SETS, chunk), (h, w))
    assert torch.autograd.gradcheck(lambda h, w: token_kl(h, w, other, other_weight, chunk), (h, w))


@pytest.mark.parametrize("chunk", [3, 1024])
def test_kl(chunk):
    """KL and its gradients equal those of two log_softmaxes in float64; nothing flows to p; of a
    distribution to itself it is 0, exactly.
    """
    hidden, weight, _ = draw(10, 30, 8)
    other, other_weight, _ = draw(10, 30, 8, seed=1)
    h, w, o, ow = leaves(hidden, weight, other, other_weight)
    logq, logp = (h @ w.T).log_softmax(-1), (o @ ow.T).log_softmax(-1).detach()
    want = (logq.exp() * (logq - logp)).sum(-1)
    want.pow(2).sum().backward()
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-4)):
        mine = leaves(*(x.to(dtype) for x in (hidden, weight, other, other_weight)))
        got = token_kl(*mine, chunk=chunk)
        got.pow(2).sum().backward()
        assert got.dtype == dtype and mine[2].grad is mine[3].grad is None
        for a, b in ((got, want), (mine[0].grad, h.grad), (mine[1].grad, w.grad)):
            assert (a - b).abs().max() < tolerance * b.abs().max()
        assert token_kl(*mine[:2], *mine[:2], chunk=chunk).eq(0).all()
    assert token_kl(h[:0], w, o[:0], ow).shape == (0,)


def test_bfloat16():
    """With bfloat16 factors: within 2e-5 of float64 on the very logits that bfloat16 gives, so that
    only the product is rounded; log_softmax in bfloat16 misses that by a hundredth and more.
    Entropy likewise.
    """
    hidden, weight, targets = draw(200, 3000, 16, torch.bfloat16)
    logp = (hidden @ weight.T).double().log_softmax(-1)  # (N, V)
    got = token_logprobs(hidden, weight, targets, [[1, 2, 3]], chunk=64, entropy=True).double()
    want = torch.stack(
        [logp[range(200), targets], logp[:, 1:4].logsumexp(-1), -(logp.exp() * logp).sum(-1)]
    )
    assert (got - want).abs().max() < 2e-5
    rough = (hidden @ weight.T).log_softmax(-1)[range(200), targets].double()
    assert (rough - want[0]).abs().max() > 0.01


def test_sums_over_blocks_are_float32():
    """The gradient of a bfloat16 weight over 256 blocks of states is within 1% of float64; added up
    in bfloat16 it is off by more than 5%.
    """
    hidden, weight, targets = draw(2048, 16, 8, torch.bfloat16)
    hidden = 0.3 * hidden.abs()  # so that the sum grows
    h, w = leaves(hidden, weight)
    token_logprobs(h, w, torch.zeros_like(targets), chunk=8)[0].sum().backward()
    h64, w64 = leaves(hidden.double(), weight.double())
    (h64 @ w64.T).log_softmax(-1)[:, 0].sum().backward()
    assert (w.grad - w64.grad).abs().max() < 0.01 * w64.grad.abs().max()
    assert (h.grad - h64.grad).abs().max() < 0.02 * h64.grad.abs().max()
    rough = leaves(weight)[0]
    for part in hidden.split(8):
        (part @ rough.T).float().log_softmax(-1)[:, 0].sum().backward()  # accumulates in rough.grad
    assert (rough.grad - w64.grad).abs().max() > 0.05 * w64.grad.abs().max()


class Watch(TorchDispatchMode):
    """Elements of the largest tensor that any operation gives out, and the types of matrix
    products.
    """

    def __enter__(self):
        self.elements, self.products = 0, set()
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        if func is torch.ops.aten.mm.default:
            self.products.add(out.dtype)
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return out


@pytest.mark.parametrize("blocks", [0, 5])
def test_memory(monkeypatch, blocks):
    """No operation, forward or back, gives out more elements than the gradients have; nothing
    larger is saved; and of logits no more than KEEP is kept.
    """
    monkeypatch.setattr(logprobs, "KEEP", blocks * 16 * 16 * 4 + 3)
    hidden, weight, targets = draw(
        160, 320, 4, torch.float32
    )  # 51,200 logits; 1,280 elements of the weight
    h, w = leaves(hidden, weight)
    other, other_weight, _ = draw(160, 320, 4, torch.float32, seed=1)
    saved = []
    with (
        Watch() as seen,
        torch.autograd.graph.saved_tensors_hooks(
            lambda x: saved.append(x.numel()) or x, lambda x: x
        ),
    ):
        out = token_logprobs(h, w, targets, SETS, chunk=16, entropy=True)
        kl = token_kl(h, w, other, other_weight, chunk=16)
        kept = [
            sum(x.nbytes for x in node.kept.values())
            for node in graph(out.sum() + kl.sum())
            if hasattr(node, "kept")
        ]
        (out.sum() + kl.sum()).backward()
    assert seen.elements <= max(weight.numel(), (1 + 3 + 4) * 160) and max(saved) <= weight.numel()
    assert kept == [blocks * 16 * 16 * 4] * 2
    logits, held = logprobs.Softmax.logits, []
    monkeypatch.setattr(
        logprobs.Softmax, "logits", lambda ctx, *xs: held.append(len(ctx.kept)) or logits(ctx, *xs)
    )
    with torch.no_grad(), Watch() as seen:
        token_logprobs(h, w, targets, chunk=16, entropy=True)
    assert seen.elements < weight.numel() and set(held) == {0} and w.grad.abs().sum() > 0


def graph(x):
    """All nodes of the autograd graph that x hangs on."""
    todo, seen = [x.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [n for n, _ in node.next_functions]
    return seen


def test_autocast_and_a_tied_head():
    """float32 weights under autocast, the head being the embedding: values are those of bfloat16
    factors to the bit, gradients are float32 and within 4% of float64; outside of autocast within
    1e-4.
    """
    _, weight, targets = draw(12, 30, 8, torch.float32)

    def loss(weight, f):
        return f(weight[targets].tanh() * 2, weight)[0].sum()

    w64 = leaves(weight.double())[0]
    loss(w64, lambda h, w: (h @ w.T).log_softmax(-1)[range(12), targets][None]).backward()
    for amp, tolerance in ((True, 0.04), (False, 1e-4)):
        w = leaves(weight)[0]
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            out = loss(w, lambda h, w: token_logprobs(h, w, targets, chunk=5))
        with Watch() as seen:
            out.backward()
        assert out.dtype == w.grad.dtype == torch.float32 and seen.products == {
            torch.bfloat16 if amp else torch.float32
        }
        assert (w.grad - w64.grad).abs().max() < tolerance * w64.grad.abs().max()
    h = weight[targets]
    with torch.autocast("cpu", torch.bfloat16):
        under = token_logprobs(h, weight, targets, SETS, entropy=True)
        assert token_logprobs(h.double(), weight.double(), targets).dtype == torch.float64
    assert torch.equal(
        under, token_logprobs(h.bfloat16(), weight.bfloat16(), targets, SETS, entropy=True)
    )
    with torch.inference_mode():
        assert torch.equal(
            under, token_logprobs(h.bfloat16(), weight.bfloat16(), targets, SETS, entropy=True)
        )


def test_one_gradient_or_none():
    """If only the states or only the weight take a gradient, it is the same as with both; without
    positions it is 0; strange ids give nan.
    """
    hidden, weight, targets = draw(10, 30, 8)
    both = leaves(hidden, weight)
    token_logprobs(*both, targets, SETS, chunk=4).sum().backward()
    for i in range(2):
        some = [x.clone().requires_grad_(i == k) for k, x in enumerate((hidden, weight))]
        token_logprobs(*some, targets, SETS, chunk=4).sum().backward()
        assert torch.equal(some[i].grad, both[i].grad) and some[1 - i].grad is None
    h, w = leaves(hidden[:0], weight)
    out = token_logprobs(h, w, targets[:0], SETS, entropy=True)
    assert out.shape == (5, 0)
    out.sum().backward()
    assert w.grad.eq(0).all() and h.grad.shape == (0, 8)
    assert not token_logprobs(hidden, weight, targets, SETS).requires_grad
    assert (
        token_logprobs(hidden, weight, torch.full_like(targets, -1))[0].isnan().all()
        and token_logprobs(hidden, weight, targets, [[30]])[1].isnan().all()
    )


@pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))),
    reason="torch.compile needs a C++ compiler on the CPU",
)
def test_compiled(monkeypatch):
    """Compiled and eager agree on values and gradients; after the first calls no number of states
    compiles anything again.
    """

    def both(n):
        hidden, weight, targets = draw(n, 50, 8, torch.float32, seed=n)
        results = []
        for compiled in (False, True):
            monkeypatch.setattr(logprobs, "COMPILE", compiled)
            h, w = leaves(hidden, weight)
            out = token_logprobs(h, w, targets, SETS, chunk=16)
            out.sum().backward()
            results.append((out.detach(), h.grad, w.grad))
        for want, got in zip(*results, strict=False):
            assert torch.allclose(want, got, rtol=1e-5, atol=1e-5)

    torch._dynamo.reset()
    both(40), both(64)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n in (23, 33, 64, 71, 5):
            both(n)
    assert logprobs.compiled.cache_info().currsize >= 2
    torch._dynamo.reset()
