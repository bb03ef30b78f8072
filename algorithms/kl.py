"""Estimators of KL(pi || pi_ref) from the log-probabilities of sampled tokens, one number per token.

From Schulman, "Approximating KL Divergence" (http://joschu.net/blog/kl-approx.html, 2020), with r = pi_ref / pi at a
token sampled from pi. Whether an estimator is summed into a reward or averaged into a loss is decided elsewhere.

A good value is not a good gradient (E over tokens from pi):
    k1: E[grad k1] = 0: in a loss it does nothing. Right in the reward, where the score function supplies the gradient.
    k2: E[grad k2] = grad KL(pi || pi_ref).
    k3: E[grad k3] = grad KL(pi_ref || pi), the other direction; GRPO's choice.
Off-policy, values and gradients are those of pi only after multiplication with the importance ratio.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]

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
    """k3 = r - 1 - log r; [N]. Unbiased, never negative; log r is clamped at MAX_LOG_RATIO. GRPO's Eq. 4, 2402.03300."""
    log_r = (ref_logprobs - logprobs).clamp(max=MAX_LOG_RATIO)
    return torch.expm1(log_r) - log_r  # expm1: close to the reference, exp(log_r) - 1 is all rounding error


def trlx_kl(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """1/r - 1 + log r; [N]. What trlx reports as KL, for comparison with its curves only.

    With tokens from pi its mean is E[pi / pi_ref] - 1 - KL(pi || pi_ref), which is not a KL divergence.
    """
    return k3(ref_logprobs, logprobs)


ESTIMATORS: dict[Estimator, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
