"""AdamW for weights in bfloat16 (`--weights bfloat16`).

8 bytes a parameter, gradient included, where float32 needs 16.

    m <- b1 m + (1 - b1) g,    v <- b2 v + (1 - b2) g^2
    w <- w (1 - lr decay) - lr m / (1 - b1^n) / (sqrt(v / (1 - b2^n)) + eps)     (arXiv 1711.05101)

A bfloat16 has 8 bits: rounded to the nearest, a weight would lose every step under a 512th of it,
which at the learning rates of fine-tuning is nearly all. So the new weight, computed in float32, is
rounded up or down at random, with the probabilities that keep its expectation (arXiv 2010.06192).
The moments are rounded to the nearest: with b2 = 0.95 v moves by a twentieth a step, far more than
a rounding. This is the one part of engine/ that changes results, and it changes them by that.
"""

import numpy as np
import torch

from config import ROUNDING, seed_of

CHUNK = 2**24  # numbers of a weight that are updated at once, in float32


def rounded(x, seed):
    """A float32 tensor rounded to bfloat16 at random, up or down, unbiased.

    Example: 1 + 2^-9 -> 1 + 2^-7 once in four, else 1
    """
    generator = torch.Generator(x.device).manual_seed(seed)
    noise = torch.empty_like(x, dtype=torch.int32).random_(0, 2**16, generator=generator)
    upper = (x.view(torch.int32) + noise) & -(2**16)  # the upper 16 bits are the bfloat16
    return upper.view(torch.float32).bfloat16()


class RoundedAdamW(torch.optim.Optimizer):
    """AdamW whose new weights are rounded at random.

    seed  the beginning of a seed, as `config.seed_of` takes it

    The draws are a function of the seed, the step and the weight alone: a resumed run goes on with
    the same ones, all ranks draw alike, and runs and stages of other seeds draw otherwise.
    """

    def __init__(
        self, params, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, seed=(0, ROUNDING)
    ):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))
        self.seed = seed

    @torch.no_grad()
    def step(self):
        number = 0  # of the weight
        for group in self.param_groups:
            for p in group["params"]:
                number += 1
                if p.grad is not None:
                    self._update(p, group, number)

    def _update(self, p, group, number):
        """One step of one weight, a chunk at a time."""
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(p)
            state["exp_avg_sq"] = torch.zeros_like(p)
        state["step"] += 1
        n = int(state["step"])
        b1, b2 = group["betas"]
        tensors = (p, p.grad.contiguous(), state["exp_avg"], state["exp_avg_sq"])
        flat = [x.view(-1) for x in tensors]
        for k in range(0, p.numel(), CHUNK):
            w16, g16, m16, v16 = (x[k : k + CHUNK] for x in flat)
            g = g16.float()
            m = m16.float().lerp_(g, 1 - b1)
            v = v16.float().mul_(b2).addcmul_(g, g, value=1 - b2)
            w = w16.float().mul_(1 - group["lr"] * group["weight_decay"])
            scale = (v / (1 - b2**n)).sqrt_().add_(group["eps"])
            w.addcdiv_(m / (1 - b1**n), scale, value=-group["lr"])
            w16.copy_(rounded(w, self.noise_seed(n, number, k // CHUNK)))
            m16.copy_(m)
            v16.copy_(v)

    def noise_seed(self, *counters):
        """The seed of torch's generator for one chunk of one weight in one step."""
        words = seed_of(*self.seed, *counters)
        return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])
