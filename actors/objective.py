"""From scores to what is minimised: the columns that a batch needs, and the loss over them.

The mathematics is in `algorithms`; here an AlgorithmConfig chooses among it. Objectives are small picklable
callables, so that the driver hands them to the workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from algorithms import advantages as adv
from algorithms import kl, losses, shaping
from algorithms.packing import Batch
from core.errors import RewardError
from core.recipes import AlgorithmConfig
from core.records import Group

Loss = tuple[torch.Tensor, dict[str, torch.Tensor]]
Columns = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class PolicyObjective:
    """Clipped surrogate, KL in the loss and entropy bonus, as the settings say."""

    settings: AlgorithmConfig

    @property
    def entropy_grad(self) -> bool:
        return self.settings.entropy_coef > 0

    def __call__(self, logprobs: torch.Tensor, entropy: torch.Tensor, columns: Columns) -> Loss:
        settings = self.settings
        weights, metric_weights = columns["loss_weights"], columns["metric_weights"]
        loss, metrics = losses.policy_loss(
            logprobs,
            columns["old_logprobs"],
            columns["advantages"],
            weights,
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
            dual_clip=settings.dual_clip,
            importance_weights=columns.get("importance_weights"),
            ratio=settings.ratio,
            branch_ids=columns["branch_ids"],
            metric_weights=metric_weights,
        )
        bonus, entropy_metrics = losses.entropy_loss(entropy, weights, metric_weights=metric_weights)
        metrics |= entropy_metrics
        if settings.entropy_coef > 0:
            loss = loss + settings.entropy_coef * bonus
        if "ref_logprobs" in columns and settings.kl.placement == "loss":
            divergence, kl_metrics = losses.kl_loss(
                logprobs, columns["ref_logprobs"], weights, settings.kl.kind, metric_weights=metric_weights
            )
            loss = loss + settings.kl.coef * divergence
            metrics |= kl_metrics
        return loss, metrics


@dataclass(frozen=True)
class SupervisedObjective:
    """Cross-entropy."""

    entropy_grad = False

    def __call__(self, logprobs: torch.Tensor, entropy: torch.Tensor, columns: Columns) -> Loss:
        return losses.sft_loss(logprobs, columns["loss_weights"], metric_weights=columns["metric_weights"])


Objective = PolicyObjective | SupervisedObjective


def with_advantages(
    batch: Batch, groups: Sequence[Group], settings: AlgorithmConfig, *, max_response_tokens: int
) -> tuple[Batch, dict[str, float]]:
    """The batch with `advantages`, and a `loss_mask` without what the settings leave out, and metrics about both.

    Needs every score (branches without one are dropped before), and `ref_logprobs` when the KL is in the reward.
    """
    branches = [branch for group in groups for branch in group.branches]
    scores = torch.tensor(
        [_value(score.value) for group in groups for score in group.scores], dtype=torch.float32
    )  # [B]
    truncated = torch.tensor([branch.truncated for branch in branches], dtype=torch.bool)  # [B]
    branch_ids, group_ids = batch.branch_ids, batch.group_ids
    metrics: dict[str, float] = {}
    if settings.overlong.penalty_tokens:
        penalty = shaping.overlong_penalty(batch.branch_lengths, max_response_tokens, settings.overlong.penalty_tokens)
        scores = scores + penalty
        metrics["reward/overlong_penalty"] = float(penalty.mean())
    if settings.kl.coef > 0 and settings.kl.placement == "reward":
        token_kl = kl.ESTIMATORS[settings.kl.kind](batch["old_logprobs"], batch["ref_logprobs"])
        scores = shaping.kl_in_reward(scores, token_kl, batch["loss_mask"], branch_ids, settings.kl.coef)
        mask = batch["loss_mask"]
        metrics["policy/kl"] = float(kl.k3(batch["old_logprobs"], batch["ref_logprobs"])[mask].mean())
        metrics["reward/shaped"] = float(scores.mean())
    per_branch = _branch_advantages(scores, group_ids, settings)
    mask = batch["loss_mask"]
    if settings.overlong.mask_truncated:
        mask = shaping.mask_truncated(mask, branch_ids, truncated)
    metrics["policy/advantage_max"] = float(per_branch.abs().max())
    return batch.with_columns(advantages=adv.to_tokens(per_branch, branch_ids), loss_mask=mask), metrics


def with_importance(batch: Batch, settings: AlgorithmConfig) -> tuple[Batch, dict[str, float]]:
    """The batch with `importance_weights` for the sampler's mismatch, when the settings ask for them."""
    if settings.importance.type == "none":
        return batch, {}
    weights, metrics = losses.importance_weights(
        batch["old_logprobs"],
        batch["rollout_logprobs"],
        settings.importance.type,
        low=settings.importance.low,
        high=settings.importance.high,
        metric_weights=losses.loss_weights(batch["loss_mask"], batch.branch_ids, "token_mean"),
    )
    return batch.with_columns(importance_weights=weights), {name: float(value) for name, value in metrics.items()}


def with_loss_weights(
    batch: Batch, aggregation: losses.Aggregation, *, max_response_tokens: int | None = None
) -> Batch:
    """The batch of one optimizer step with what each token counts in its loss and in its metrics."""
    mask, branch_ids = batch["loss_mask"], batch.branch_ids
    weights = losses.loss_weights(
        mask, branch_ids, aggregation, max_response_tokens=max_response_tokens, num_branches=batch.num_branches
    )
    return batch.with_columns(loss_weights=weights, metric_weights=losses.loss_weights(mask, branch_ids, "token_mean"))


def _branch_advantages(scores: torch.Tensor, group_ids: torch.Tensor, settings: AlgorithmConfig) -> torch.Tensor:
    if settings.advantage == "grpo":
        return adv.grpo(scores, group_ids, std=settings.std, epsilon=settings.std_epsilon)
    if settings.advantage == "dr_grpo":
        return adv.dr_grpo(scores, group_ids)
    return adv.rloo(scores, group_ids) if settings.advantage == "rloo" else adv.reinforce(scores)


def _value(score: float | None) -> Any:
    if score is None:
        raise RewardError("a branch without a score reached the advantages; missing scores are dropped in the rollout")
    return score
