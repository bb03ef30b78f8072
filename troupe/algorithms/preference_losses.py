"""Losses on pairs of branches: Bradley-Terry for a reward model, DPO and IPO for a policy. B branches, P pairs.

As in `losses`, loss = sum_p weights[p] * term[p], where a weight already contains the division by the step's global
count; a part of the step that holds whole groups therefore adds up with the others. A pair of weight 0 is outside of
everything, NaN too; metrics are 0-d, detached, and weighted likewise, a mean if the step's weights sum to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from troupe.algorithms.advantages import sum_by
from troupe.algorithms.losses import Metrics, weighted_metrics, weighted_sum

PreferenceLoss = Literal["sigmoid", "ipo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """P comparisons between branches of the same group.

    Example: three answers ranked 0, 1, 2 have winners [0, 0, 1], losers [1, 2, 2], shares [1/3, 1/3, 1/3].
    """

    winners: Tensor
    """[P] int64: the better branch, an index into [B]."""
    losers: Tensor
    """[P] int64: the worse one."""
    shares: Tensor
    """[P] float32: 1 / (pairs of its group). Over a step they sum to the number of groups that have a pair; divided by
    that number they are the weights of InstructGPT's loss."""


def ranked_pairs(group_ids: Tensor, ranks: Tensor) -> Pairs:
    """Return every two branches of a group whose ranks differ, winner first; [B], [B] -> P pairs.

    A smaller rank is better; equal ranks make no pair. All pairs of a prompt are one element of the batch and share its
    weight equally: InstructGPT, 2203.02155, Eq. 1, with the number of pairs there are where that is not K (K - 1) / 2.
    Pairs are ordered by group id, then by winner, then by loser.
    """
    groups, sizes = torch.unique(group_ids, return_inverse=True, return_counts=True)[1:]  # [B], [G]
    by_group = torch.argsort(groups, stable=True)  # [B]
    starts = (sizes.cumsum(0) - sizes)[groups[by_group]]  # [B]: where the branch's group begins in by_group
    companions = sizes[groups[by_group]]  # [B]
    first = by_group.repeat_interleave(companions)  # [B] -> [sum of squared group sizes], every ordered pair
    block_starts = (companions.cumsum(0) - companions - starts).repeat_interleave(companions)
    second = by_group[torch.arange(len(first), device=first.device) - block_starts]
    better = ranks[first] < ranks[second]
    winners, losers = first[better], second[better]  # -> [P]
    pairs_of_group = torch.bincount(groups[winners], minlength=len(sizes))  # [G]
    return Pairs(winners=winners, losers=losers, shares=1 / pairs_of_group[groups[winners]].float())


def branch_sums(
    values: Tensor, mask: Tensor, branch_ids: Tensor, num_branches: int, *, normalise: bool = False
) -> Tensor:
    """Sum of each branch's values, or their mean with `normalise`, over the tokens whose mask is not 0.

    [n], bool or weights [n], [n] -> [num_branches]. Ids may come in any order and leave some out; a branch without
    tokens gets 0. For DPO hand over logprobs - ref_logprobs: the difference of two long sums would be rounding error.
    """
    counted = mask != 0
    sums = sum_by(torch.where(counted, values, 0.0).double(), branch_ids, num_branches)  # [n] -> [B]
    if normalise:
        sums = sums / sum_by(counted.long(), branch_ids, num_branches).clamp(min=1)
    return sums.to(values.dtype)


def bradley_terry_loss(
    scores: Tensor, pairs: Pairs, weights: Tensor, margins: Tensor | None = None
) -> tuple[Tensor, Metrics]:
    """Return -sum_p w_p log sigmoid(s_winner - s_loser - m_p); [B], P pairs, [P], [P] -> 0-d loss and metrics.

    InstructGPT, 2203.02155, Eq. 1; the margin m_p, how much better the winner should score: Llama 2, 2307.09288, Eq. 2.
    accuracy counts equal scores as one half. nll is -log sigmoid(s_winner - s_loser), the loss without margins.
    """
    counted = weights != 0
    chosen = torch.where(counted, scores[pairs.winners], 0.0)  # [B] -> [P]
    rejected = torch.where(counted, scores[pairs.losers], 0.0)
    difference = chosen - rejected
    required = 0.0 if margins is None else torch.where(counted, margins, 0.0)
    metrics = {
        "reward_model/accuracy": _share_right(difference),
        "reward_model/margin": difference,
        "reward_model/chosen": chosen,
        "reward_model/rejected": rejected,
        "reward_model/nll": -logsigmoid(difference),
    }
    return -weighted_sum(logsigmoid(difference - required), weights), weighted_metrics(metrics, weights, None)


def dpo_loss(
    log_ratios: Tensor,
    pairs: Pairs,
    weights: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    kind: PreferenceLoss = "sigmoid",
) -> tuple[Tensor, Metrics]:
    """sum_p w_p l(h_p), h_p = log ratio of the winner - that of the loser; [B], P pairs, [P] -> 0-d loss and metrics.

    log_ratios[b] = log pi(y_b) - log pi_ref(y_b), summed over the answer, or its mean per token (`branch_sums`).
    sigmoid: -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h). DPO, 2305.18290, Eq. 7, where e = 0; with label
             smoothing e: conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences"), e the share of
             labels believed to be flipped.
    ipo:     (h - 1 / (2 beta))^2. 2310.12036, Eq. 17 with tau = beta.
    chosen_reward and rejected_reward are beta * log ratio, margin their difference. nll is -log sigmoid(margin)
    whatever the kind; where the policy is the reference it is ln 2.
    """
    _require_setting(beta, label_smoothing, kind)
    counted = weights != 0
    chosen = torch.where(counted, log_ratios[pairs.winners], 0.0)  # [B] -> [P]
    rejected = torch.where(counted, log_ratios[pairs.losers], 0.0)
    margin = beta * (chosen - rejected)
    if kind == "ipo":
        terms = (chosen - rejected - 1 / (2 * beta)).square()
    else:
        terms = -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)
    metrics = {
        "dpo/accuracy": _share_right(margin),
        "dpo/margin": margin,
        "dpo/chosen_reward": beta * chosen,
        "dpo/rejected_reward": beta * rejected,
        "dpo/nll": -logsigmoid(margin),
    }
    return weighted_sum(terms, weights), weighted_metrics(metrics, weights, None)


def _share_right(difference: Tensor) -> Tensor:
    """Return 1 where the winner is ahead, 1/2 where both are equal, 0 elsewhere; [P] -> [P]."""
    return (difference.detach().sign() + 1) / 2


def _require_setting(beta: float, label_smoothing: float, kind: PreferenceLoss) -> None:
    if beta <= 0:
        raise ValueError(
            f"beta ({beta}) must be greater than 0: it divides by the strength of the pull to the reference"
        )
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(
            f"label_smoothing ({label_smoothing}) must be at least 0 and below 0.5, where labels say nothing"
        )
    if kind == "ipo" and label_smoothing:
        raise ValueError(f"label_smoothing ({label_smoothing}) belongs to the loss sigmoid; set it to 0 for ipo")
