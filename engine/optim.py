"""AdamW for weights that are kept in bfloat16 (`--weights bfloat16`): 8 bytes a parameter in training, gradient included, instead of float32's 16.

    m <- b1 m + (1 - b1) g,    v <- b2 v + (1 - b2) g^2,    w <- w (1 - lr decay) - lr m / (1 - b1^n) / (sqrt(v / (1 - b2^n)) + eps)        (arXiv 1711.05101)

A bfloat16 has 8 bits: rounded to the nearest, a weight would lose every step under a 512th of it, which at the learning rates of fine-tuning is nearly all.
So the new weight, computed in float32, is rounded up or down at random, with the probabilities that keep its expectation (arXiv 2010.06192). The
moments are rounded to the nearest: with b2 = 0.95 v moves by a twentieth a step, far more than a rounding.
"""

import torch

AT_ONCE = 2**24  # numbers of a weight that are worked on at once, in float32


def rounded(x, seed):
    """A float32 tensor rounded to bfloat16 at random, up or down, unbiased. Example: 1 + 2^-9 -> 1 + 2^-7 once in four, else 1"""
    noise = torch.empty_like(x, dtype=torch.int32).random_(
        0, 2**16, generator=torch.Generator(x.device).manual_seed(seed)
    )
    return (
        ((x.view(torch.int32) + noise) & -(2**16)).view(torch.float32).bfloat16()
    )  # the upper 16 bits are the bfloat16


class RoundedAdamW(torch.optim.Optimizer):
    """The draws are a function of the step, the weight and the seed alone, so a resumed run goes on with the same ones, and all ranks draw alike."""

    def __init__(self, params, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        number = 0
        for group in self.param_groups:
            (b1, b2), lr = group["betas"], group["lr"]
            for p in group["params"]:
                number += 1
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state.update(
                        step=torch.zeros(()),
                        exp_avg=torch.zeros_like(p),
                        exp_avg_sq=torch.zeros_like(p),
                    )
                state["step"] += 1
                n, flat = (
                    int(state["step"]),
                    [
                        x.view(-1)
                        for x in (p, p.grad.contiguous(), state["exp_avg"], state["exp_avg_sq"])
                    ],
                )
                for k in range(0, p.numel(), AT_ONCE):
                    w16, g16, m16, v16 = (x[k : k + AT_ONCE] for x in flat)
                    g = g16.float()
                    m = m16.float().lerp_(g, 1 - b1)
                    v = v16.float().mul_(b2).addcmul_(g, g, value=1 - b2)
                    w = w16.float().mul_(1 - lr * group["weight_decay"])
                    w.addcdiv_(
                        m / (1 - b1**n), (v / (1 - b2**n)).sqrt_().add_(group["eps"]), value=-lr
                    )
                    w16.copy_(rounded(w, (n * 10**6 + number) * 10**4 + k // AT_ONCE))
                    m16.copy_(m), v16.copy_(v)
