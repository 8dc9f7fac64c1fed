"""The functions that a run computes with: FAST here, and train.PLAIN with `--engine false`."""

import typing

from engine.gradients import ntp_gradient, policy_gradient, score_completions
from engine.rollouts import rollout, rollouts
from engine.sample import generate


class Backend(typing.NamedTuple):
    """Functions of equal results: by definition, or fast."""

    rollout: typing.Callable  # latents over snippets, on this rank
    rollouts: typing.Callable  # the same, the ranks sharing the snippets
    policy_gradient: typing.Callable  # of the E-step
    ntp_gradient: typing.Callable  # of next-token training
    generate: typing.Callable  # completions of prompts
    score_completions: typing.Callable  # log pi, entropy and KL of completions


FAST = Backend(rollout, rollouts, policy_gradient, ntp_gradient, generate, score_completions)
