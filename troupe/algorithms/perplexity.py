"""Perplexity of a gold answer, and the rewards made of it: pure functions of log-probabilities.

Everything is computed from the mean negative log-likelihood in nats per token, in float64 and in logarithms, so that
one unlikely token overflows nothing and a small improvement keeps its digits. What the tokens are is
`troupe.rewards.scorer_prompt`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MAX_NATS = 80.0
"""Bound of what is exponentiated: exp(80) = 5.5e34 is still a number in float32, which scores become."""
TOLERANCE = 1e-10
"""Added to an improvement before it is compared with a threshold, so that one which equals it in decimals reaches it.
"""


def mean_nll(logprobs: Tensor, branch_ids: Tensor, mask: Tensor, num_branches: int) -> Tensor:
    """Return -1/|y| sum over the completion's tokens of log p(y_t | c, y_<t); [N], [N], bool [N] -> float64 [B], in
    nats.

    `mask` is true at the completion's tokens; what stands elsewhere may be anything, NaN too. Raises ValueError for a
    branch without a completion: it has no perplexity.
    """
    counts = torch.zeros(num_branches, dtype=torch.int64).index_add(0, branch_ids, mask.long())  # [N] -> [B]
    if not bool(counts.all()):
        raise ValueError(f"branch {int(counts.argmin())} has no completion token, and so no perplexity")
    nats = torch.where(mask, -logprobs.double(), 0.0)
    return torch.zeros(num_branches, dtype=torch.float64).index_add(0, branch_ids, nats) / counts  # [N] -> [B]


def perplexity(nll: Tensor) -> Tensor:
    """exp(mean NLL), 1 at best; [B] -> [B]. Beyond MAX_NATS it stays at exp(MAX_NATS)."""
    return torch.exp(nll.clamp(max=MAX_NATS))


def _gain(nll: Tensor, baseline: Tensor) -> Tensor:
    """Return 1 - PPL / PPL_base; [B], [B] -> [B]. expm1 keeps the digits of ratios near 1, which plans have."""
    return -torch.expm1((nll - baseline).clamp(max=MAX_NATS))


# -- system 2: a context for a frozen reader ---------------------------------------------------------------------


def relative(nll: Tensor, baseline: Tensor) -> Tensor:
    """max(0, 1 - PPL / PPL_base), 0 to 1; [B], [B] -> [B]."""
    return _gain(nll, baseline).clamp(min=0)


def absolute(nll: Tensor) -> Tensor:
    """Return 1 / PPL, the geometric mean of the tokens' probabilities, 0 to 1; [B] -> [B]."""
    return torch.exp(-nll)


def hybrid(nll: Tensor, baseline: Tensor, alpha: float) -> Tensor:
    """alpha x absolute + (1 - alpha) x relative; [B], [B] -> [B]."""
    return alpha * absolute(nll) + (1 - alpha) * relative(nll, baseline)


# -- system 4: verifiable rewards by completion likelihood (VR-CLI, 2503.22828) ----------------------------------


def improvement(nll: Tensor, baseline: Tensor) -> Tensor:
    """I = 100 (PPL_base - PPL) / PPL_base, in percent; [B], [B] -> [B]. At most 100; negative where it hurts."""
    return 100 * _gain(nll, baseline)


def relu(percent: Tensor) -> Tensor:
    """max(I, 0)."""
    return percent.clamp(min=0)


def binary(percent: Tensor) -> Tensor:
    """Return 1 where I >= 0, else 0."""
    return (percent >= 0).double()


def piecewise(percent: Tensor, thresholds: Sequence[float], values: Sequence[float]) -> Tensor:
    """values[k] where k thresholds are at or below I (the paper's equation 7); [B] -> [B].

    With thresholds (0.05, 1, 2) and values (0, 0.5, 0.9, 1): 0 below 0.05, 0.5 below 1, 0.9 below 2, 1 from there on.
    """
    if len(values) != len(thresholds) + 1:
        raise ValueError(
            f"{len(thresholds)} thresholds cut {len(thresholds) + 1} pieces, but there are {len(values)} values"
        )
    steps = torch.tensor(thresholds, dtype=torch.float64)
    reached = torch.bucketize(percent.double() + TOLERANCE, steps, right=True)
    return torch.tensor(values, dtype=torch.float64)[reached]
