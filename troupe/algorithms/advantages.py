"""From the scores of branches to their advantages: how much better an answer is than its baseline.

Runs once per step on all scores [B] of the step; the losses take the result spread over tokens (`to_tokens`). A missing
score is the caller's business: the branch is dropped before, and with it a group that has fewer than two branches left.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Std = Literal["sample", "population"]


def grpo(scores: Tensor, group_ids: Tensor, *, std: Std = "sample", epsilon: float = 1e-4) -> Tensor:
    """A_i = (r_i - mean r) / (std r + epsilon) within the group; [B] -> [B]. DeepSeekMath, 2402.03300, section 4.1.2.

    The paper does not say which standard deviation: `sample` divides by G - 1 (TRL, OpenRLHF), `population` by G (ART).
    A group of equal scores gets exactly 0.
    """
    _require_company(group_ids, "grpo")
    centred, count = _centred(scores, group_ids)
    degrees = count - 1 if std == "sample" else count
    variance = sum_by(centred.square(), group_ids, len(count)) / degrees  # [B] -> [G]
    spread = variance.sqrt()[group_ids] + epsilon  # [G] -> [B]
    # In a group of equal scores the spread may be 0 as well: 0 / 1, not 0 / 0.
    return (centred / torch.where(centred == 0, 1.0, spread)).to(scores.dtype)


def dr_grpo(scores: Tensor, group_ids: Tensor) -> Tensor:
    """A_i = r_i - mean r within the group; [B] -> [B]. Dr. GRPO, 2503.20783: no division by the deviation."""
    _require_company(group_ids, "dr_grpo")
    return _centred(scores, group_ids)[0].to(scores.dtype)


def rloo(scores: Tensor, group_ids: Tensor) -> Tensor:
    """A_i = r_i - mean of the others' r within the group; [B] -> [B]. RLOO, 2402.14740 (Kool et al. 2019).

    Computed as k / (k - 1) (r_i - mean r), which is the same number for a group of k.
    """
    _require_company(group_ids, "rloo")
    centred, count = _centred(scores, group_ids)
    return (centred * (count / (count - 1))[group_ids]).to(scores.dtype)


def reinforce(scores: Tensor) -> Tensor:
    """A_i = r_i - mean r over the whole batch; [B] -> [B]. Williams 1992; groups of one are welcome."""
    one_group = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
    return _centred(scores, one_group)[0].to(scores.dtype)


def has_signal(scores: Tensor, group_ids: Tensor) -> Tensor:
    """Return whether the scores of a group differ, [B] -> bool [G]; DAPO (2503.14476) replaces the groups where they do
    not.

    A spread within rounding error is none: at most 1e-8, or 8 units in the last place for coarser types than float64,
    relative to the group's largest |score| or to 1. (The floor of 1 is for scores that are sums with cancellation:
    0.1 + 0.2 - 0.3 is 5.6e-17, and GRPO without epsilon would inflate it to an advantage of 1.)
    """
    _require_scores(scores)
    num_groups = count_of(group_ids)
    precise = scores.double()
    highest = _reduce(precise, group_ids, num_groups, "amax")  # [B] -> [G]
    lowest = _reduce(precise, group_ids, num_groups, "amin")  # [B] -> [G]
    largest = _reduce(precise.abs(), group_ids, num_groups, "amax")  # [B] -> [G]
    tolerance = max(1e-8, 8 * torch.finfo(scores.dtype).eps)
    return highest - lowest > tolerance * largest.clamp(min=1)


def to_tokens(branch_values: Tensor, branch_ids: Tensor) -> Tensor:
    """Give every token its branch's value; [B], [N] -> [N]."""
    return branch_values[branch_ids]


def sum_by(values: Tensor, ids: Tensor, num_sums: int) -> Tensor:
    """Sums of the values that share an id: tokens to branches, or branches to groups; [N], [N] -> [num_sums]."""
    return values.new_zeros(num_sums).index_add(0, ids, values)


def count_of(ids: Tensor) -> int:
    """Return how many branches (or groups) ids 0 .. n-1 name; 0 for no ids."""
    return int(ids.max()) + 1 if ids.numel() else 0


def _centred(scores: Tensor, group_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Scores minus their group's mean in float64 [B], exactly 0 without signal; and the groups' sizes [G]."""
    signal = has_signal(scores, group_ids)
    precise = scores.double()
    count = sum_by(torch.ones_like(precise), group_ids, len(signal))  # [B] -> [G]
    mean = sum_by(precise, group_ids, len(signal)) / count  # [B] -> [G]
    return torch.where(signal[group_ids], precise - mean[group_ids], 0.0), count


def _reduce(values: Tensor, ids: Tensor, num_results: int, kind: str) -> Tensor:
    return values.new_zeros(num_results).scatter_reduce(0, ids, values, kind, include_self=False)


def _require_scores(scores: Tensor) -> None:
    missing = scores.isnan().nonzero().flatten()
    if len(missing):
        raise ValueError(
            f"the score of branch {int(missing[0])} is NaN ({len(missing)} of {len(scores)} are); "
            "drop branches whose score is missing before computing advantages"
        )


def _require_company(group_ids: Tensor, advantage: str) -> None:
    alone = (torch.bincount(group_ids) == 1).nonzero().flatten()
    if len(alone):
        raise ValueError(
            f"{advantage} compares the branches of a group, but group {int(alone[0])} has only one "
            f"({len(alone)} such groups); sample at least 2 per prompt, drop the group, or use reinforce"
        )
