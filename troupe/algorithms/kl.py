"""Estimators of KL(pi || pi_ref) from the log-probabilities of sampled tokens, and the coefficient that holds it.

From Schulman, "Approximating KL Divergence" (http://joschu.net/blog/kl-approx.html, 2020), with r = pi_ref / pi at a
token sampled from pi. Whether an estimator is summed into a reward or averaged into a loss is decided elsewhere.

A good value is not a good gradient (E over tokens from pi):
    k1: E[grad k1] = 0: in a loss it does nothing. Right in the reward, where the score function supplies the gradient.
    k2: E[grad k2] = grad KL(pi || pi_ref).
    k3: E[grad k3] = grad KL(pi_ref || pi), the other direction; GRPO's choice.
Off-policy, values and gradients are those of pi only after multiplication with the importance ratio.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]
Adaptation = Literal["ziegler", "trlx"]

MAX_LOG_RATIO = 10.0
"""Upper clamp of log r inside exp. OpenRLHF clamps the estimate to [-10, 10], verl also log r to [-20, 20]. Here only
log r is clamped, and only from above, where exp explodes: below, k3 is linear and harmless, and a clamp would take
the pull back to the reference from the very tokens that have left it furthest. Beyond the clamp the gradient is 0."""


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """k1 = -log r; [N]. Unbiased, of high variance, and negative on many tokens."""
    return logprobs - ref_logprobs


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """k2 = (log r)^2 / 2; [N]. Biased, of low variance, never negative."""
    return (logprobs - ref_logprobs).square() / 2


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """k3 = r - 1 - log r; [N]. Unbiased, never negative; log r is clamped at MAX_LOG_RATIO (GRPO's Eq. 4)."""
    log_r = (ref_logprobs - logprobs).clamp(max=MAX_LOG_RATIO)
    return torch.expm1(log_r) - log_r  # expm1: close to the reference, exp(log_r) - 1 is all rounding error


def trlx_kl(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return 1/r - 1 + log r; [N]. What trlx reports as KL, for comparison with its curves only.

    With tokens from pi its mean is E[pi / pi_ref] - 1 - KL(pi || pi_ref), which is not a KL divergence.
    """
    return k3(ref_logprobs, logprobs)


ESTIMATORS: dict[Estimator, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


def adapted_coef(
    coef: float,
    kl: float,
    *,
    target: float,
    form: Adaptation,
    rate: float = 0.1,
    horizon: int = 10_000,
    num_sequences: int | None = None,
) -> float:
    """Return the next step's KL coefficient: larger where the KL was above its target, smaller where it was below.

        e = clip(KL / target - 1, -0.2, 0.2)
        ziegler: coef (1 + rate e). 1909.08593, section 2.2, where rate is 0.1: at most 2 % a step.
        trlx:    coef (1 + e num_sequences / horizon). trlx's AdaptiveKLController, for comparison with its runs.

    `kl` and `target` are nats per answer: an estimate summed over its tokens, averaged over the step's `num_sequences`
    answers. Ziegler's is k1; what trlx feeds its controller is `trlx_kl`.
    """
    if math.isnan(kl) or target <= 0:
        raise ValueError(f"the KL ({kl}) must be a number and its target ({target}) greater than 0")
    error = min(max(kl / target - 1, -0.2), 0.2)
    if form == "ziegler":
        return coef * (1 + rate * error)
    if num_sequences is None:
        raise ValueError("the form trlx grows with num_sequences, the answers of the step, which is missing")
    return coef * (1 + error * num_sequences / horizon)
