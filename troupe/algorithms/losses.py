"""The losses, as sums over branch tokens: loss = sum_n loss_weights[n] * term[n], returned with their metrics.

`loss_weights` is computed once per optimizer step on the whole step's batch and contains the division by the global
count. Losses and metrics of any parts of the batch (whole branches each) therefore add up to those of the batch, and
no micro-batch, rank or order can change the gradient.

Tokens of weight 0 are outside of everything: whatever their log-probabilities are, NaN too, nothing comes of it.
Metrics are 0-d, detached, and weighted by `metric_weights`, which should sum to 1 over the step: those of token_mean
are a mean over tokens. They default to the loss weights.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from troupe.algorithms import kl
from troupe.algorithms.advantages import count_of, sum_by

Aggregation = Literal["token_mean", "sequence_mean", "constant"]
Ratio = Literal["token", "sequence"]
Correction = Literal["truncate", "mask"]
Metrics = dict[str, Tensor]

MAX_LOG_RATIO = 20.0
"""Upper clamp of the log ratio inside exp, so that no ratio overflows (verl clamps at the same number)."""


def loss_weights(
    loss_mask: Tensor,
    branch_ids: Tensor,
    aggregation: Aggregation,
    *,
    max_response_tokens: int | None = None,
    num_branches: int | None = None,
) -> Tensor:
    """Return what each token counts in a loss over the whole step; bool [N], [N] -> float32 [N], 0 outside the mask.

    token_mean:    1 / (trained tokens of the step). DAPO, 2503.14476.
    sequence_mean: 1 / (trained tokens of the branch x branches that have at least one). GRPO, 2402.03300.
    constant:      1 / (num_branches x max_response_tokens). Dr. GRPO, 2503.20783. All branches count, also those whose
                   tokens are all masked, or masking some would raise the weight of the others; num_branches is the
                   highest branch id + 1 unless given.
    If no token is trained, all weights are 0.
    """
    if num_branches is None:
        num_branches = count_of(branch_ids)
    if aggregation == "token_mean":
        divisor = loss_mask.sum()
    elif aggregation == "sequence_mean":
        per_branch = sum_by(loss_mask.long(), branch_ids, num_branches)  # [N] -> [B]
        divisor = per_branch[branch_ids] * (per_branch > 0).sum()  # [B] -> [N]
    elif max_response_tokens is None:
        raise ValueError("aggregation constant divides by max_response_tokens, which is missing")
    else:
        divisor = torch.tensor(num_branches * max_response_tokens, device=loss_mask.device)
    return loss_mask.float() / divisor.clamp(min=1)


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    loss_weights: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    importance_weights: Tensor | None = None,
    ratio: Ratio = "token",
    branch_ids: Tensor | None = None,
    metric_weights: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """Return the clipped surrogate; every tensor [N] -> 0-d loss and metrics.

        loss = -sum_n w_n c_n min(rho_n A_n, clip(rho_n, 1 - clip_low, 1 + clip_high) A_n)

    PPO, 1707.06347, Eq. 7; two clip ranges: DAPO, 2503.14476. With `dual_clip` c the objective of a negative advantage
    is at least c A_n (1912.09729, Eq. 5). `importance_weights` c_n are constants (see the function of that name).

    ratio "token":    rho_n = pi(n) / pi_old(n).
    ratio "sequence": rho_n = product of the token ratios over the trained tokens of n's branch, the same for each of
        them: the whole answer is one action (RLOO, 2402.14740). Branches must be complete in the tokens handed over.
        Branch i then counts with weight W_i = sum of its tokens' w_n, and at rho = 1 the gradient is
        -sum_i W_i A_i grad log pi(y_i). Under sequence_mean, W_i = 1 / branches: exactly RLOO, each answer once. Under
        token_mean and constant, W_i grows with the answer's length, which is no published method.
    """
    counted = loss_weights != 0
    log_ratio = torch.where(counted, logprobs - old_logprobs, 0.0)
    advantages = torch.where(counted, advantages, 0.0)
    rho = _sequence_sums(log_ratio, branch_ids) if ratio == "sequence" else log_ratio
    rho = rho.clamp(max=MAX_LOG_RATIO).exp()

    objective = torch.minimum(rho * advantages, rho.clamp(1 - clip_low, 1 + clip_high) * advantages)
    if dual_clip is not None:
        objective = torch.where(advantages < 0, torch.maximum(objective, dual_clip * advantages), objective)
    if importance_weights is not None:
        objective = objective * torch.where(counted, importance_weights.detach(), 0.0)

    low = (rho < 1 - clip_low) & (advantages < 0)
    high = (rho > 1 + clip_high) & (advantages > 0)
    metrics = {
        "policy/clip_fraction": low | high,
        "policy/clip_low_fraction": low,
        "policy/clip_high_fraction": high,
        "policy/ratio_mean": rho,
        # The tokens come from pi_old, so the estimate is KL(pi_old || pi), and it is per token whatever the ratio is.
        "policy/old_kl": kl.k3(torch.zeros_like(log_ratio), log_ratio.detach()),
    }
    if dual_clip is not None:
        metrics["policy/dual_clip_fraction"] = (rho > dual_clip) & (advantages < 0)
    return -weighted_sum(objective, loss_weights), weighted_metrics(metrics, loss_weights, metric_weights)


def kl_loss(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    loss_weights: Tensor,
    estimator: kl.Estimator,
    *,
    metric_weights: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """sum_n w_n k(n), k2 or k3 of `troupe.algorithms.kl`; [N] -> 0-d. Multiply by the coefficient outside.

    The metric policy/kl is k3 whatever the estimator, so that it means the same in every run.
    """
    if estimator == "k1":
        raise ValueError(
            "estimator k1 in the loss has zero expected gradient; use k2 or k3, or put the KL in the reward"
        )
    counted = loss_weights != 0
    logprobs, ref_logprobs = torch.where(counted, logprobs, 0.0), torch.where(counted, ref_logprobs, 0.0)
    loss = weighted_sum(kl.ESTIMATORS[estimator](logprobs, ref_logprobs), loss_weights)
    return loss, weighted_metrics({"policy/kl": kl.k3(logprobs, ref_logprobs)}, loss_weights, metric_weights)


def entropy_loss(
    entropy: Tensor, loss_weights: Tensor, *, metric_weights: Tensor | None = None
) -> tuple[Tensor, Metrics]:
    """Return -sum_n w_n H(n): minimising it raises the entropy; [N] -> 0-d. PPO, 1707.06347, Eq. 9, the term S."""
    return -weighted_sum(entropy, loss_weights), weighted_metrics(
        {"policy/entropy": entropy}, loss_weights, metric_weights
    )


def sft_loss(logprobs: Tensor, loss_weights: Tensor, *, metric_weights: Tensor | None = None) -> tuple[Tensor, Metrics]:
    """Cross-entropy -sum_n w_n log pi(n); [N] -> 0-d. The metric sft/nll is the negative log-likelihood per token."""
    return -weighted_sum(logprobs, loss_weights), weighted_metrics({"sft/nll": -logprobs}, loss_weights, metric_weights)


def importance_weights(
    old_logprobs: Tensor,
    rollout_logprobs: Tensor,
    kind: Correction,
    *,
    low: float,
    high: float,
    metric_weights: Tensor,
) -> tuple[Tensor, Metrics]:
    """Constants that correct for the sampler's probabilities not being the trainer's; [N] -> [N], detached.

    With q = pi_old / pi_rollout of a token, both of the same weights:
    truncate: min(q, high); `low` plays no part. TIS, Yao et al. 2025, "Your efficient RL framework secretly brings you
              off-policy RL training".
    mask:     q within [low, high], 0 outside. IcePop, 2510.18855. A dropped token stays in the loss's divisor.
    Tokens whose metric weight is 0 may hold anything and get 1.
    """
    counted = metric_weights != 0
    log_q = torch.where(counted, old_logprobs - rollout_logprobs, 0.0).detach()
    q = log_q.clamp(max=MAX_LOG_RATIO).exp()
    metrics = {
        "importance/ratio_mean": q,
        # The tokens come from the sampler: KL(pi_rollout || pi_old).
        "importance/kl": kl.k3(torch.zeros_like(log_q), log_q),
    }
    if kind == "truncate":
        weights = q.clamp(max=high)
        metrics["importance/truncated_fraction"] = q > high
    else:
        outside = (q < low) | (q > high)
        weights = q.masked_fill(outside, 0.0)
        metrics["importance/masked_fraction"] = outside
    return torch.where(counted, weights, 1.0), weighted_metrics(metrics, metric_weights, None)


def _sequence_sums(log_ratio: Tensor, branch_ids: Tensor | None) -> Tensor:
    """Give each token the sum over its branch; [N] -> [N]."""
    if branch_ids is None:
        raise ValueError("ratio sequence needs branch_ids: which branch each token belongs to")
    return sum_by(log_ratio, branch_ids, count_of(branch_ids))[branch_ids]  # [N] -> [B] -> [N]


def weighted_sum(terms: Tensor, weights: Tensor) -> Tensor:
    # where, not only a product: 0 * NaN is NaN.
    return (torch.where(weights != 0, terms, 0.0) * weights).sum()


def weighted_metrics(terms: Metrics, loss_weights: Tensor, metric_weights: Tensor | None) -> Metrics:
    weights = loss_weights if metric_weights is None else torch.where(loss_weights != 0, metric_weights, 0.0)
    return {name: weighted_sum(term.detach().to(weights.dtype), weights) for name, term in terms.items()}
