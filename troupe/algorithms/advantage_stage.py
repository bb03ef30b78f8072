"""What the driver computes between a rollout and an update: the columns of a batch, from scores, values and settings.

Everything here runs once on the whole batch of a step, so that no split into rows or ranks can change it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from troupe.algorithms import advantages as adv, gae, kl, losses, shaping
from troupe.algorithms.packing import Batch
from troupe.config.algorithm import AlgorithmConfig
from troupe.config.grpo import GAEConfig
from troupe.errors import RewardError
from troupe.records import Group


def with_advantages(
    batch: Batch, groups: Sequence[Group], settings: AlgorithmConfig, *, max_response_tokens: int
) -> tuple[Batch, dict[str, float]]:
    """Return the batch with `advantages`, and a `loss_mask` without what the settings leave out, and metrics about
    both.

    Needs every score (branches without one are dropped before), and `ref_logprobs` when the KL is in the reward.
    """
    scores, mask, metrics = _shaped(batch, groups, settings, max_response_tokens=max_response_tokens)
    branch_ids = batch.branch_ids
    if settings.kl.coef > 0 and settings.kl.placement == "reward":
        token_kl = kl.ESTIMATORS[settings.kl.kind](batch["old_logprobs"], batch["ref_logprobs"])
        scores = shaping.kl_in_reward(scores, token_kl, batch["loss_mask"], branch_ids, settings.kl.coef)
        metrics |= {"policy/kl": _sampled_kl(batch), "reward/shaped": float(scores.mean())}
    per_branch = _branch_advantages(scores, batch.group_ids, settings)
    metrics["policy/advantage_max"] = float(per_branch.abs().max())
    return batch.with_columns(advantages=adv.to_tokens(per_branch, branch_ids), loss_mask=mask), metrics


def with_gae(
    batch: Batch, groups: Sequence[Group], settings: AlgorithmConfig, config: GAEConfig, *, max_response_tokens: int
) -> tuple[Batch, dict[str, float]]:
    """Return the batch with `advantages` and `returns` from token rewards and `old_values`, and metrics about them.

    Needs every score, `old_values`, and `ref_logprobs` when the KL is in the reward.
    """
    scores, mask, metrics = _shaped(batch, groups, settings, max_response_tokens=max_response_tokens)
    branch_ids, whole = batch.branch_ids, batch["loss_mask"]
    in_reward = settings.kl.coef > 0 and settings.kl.placement == "reward"
    token_kl = kl.k1(batch["old_logprobs"], batch["ref_logprobs"]) if in_reward else torch.zeros(batch.num_tokens)
    rewards = gae.token_rewards(scores, token_kl, whole, branch_ids, settings.kl.coef if in_reward else 0.0)
    advantages, returns = gae.gae(rewards, batch["old_values"], whole, branch_ids, gamma=config.gamma, lam=config.lam)
    metrics |= {
        "value/explained_variance": float(gae.explained_variance(batch["old_values"], returns, whole)),
        "value/return": float(returns[whole].mean()),
        "policy/advantage_max": float(advantages.abs().max()),
    }
    if in_reward:
        shaped = torch.zeros(batch.num_branches).index_add(0, branch_ids, rewards)
        metrics |= {"policy/kl": _sampled_kl(batch), "reward/shaped": float(shaped.mean())}
    if config.whiten:
        advantages = gae.whiten(advantages, mask)
    return batch.with_columns(advantages=advantages, returns=returns, loss_mask=mask), metrics


def _shaped(
    batch: Batch, groups: Sequence[Group], settings: AlgorithmConfig, *, max_response_tokens: int
) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
    """Scores [B] after clipping and penalties, the loss mask [N] without what is left out, and metrics."""
    truncated = torch.tensor([branch.truncated for group in groups for branch in group.branches], dtype=torch.bool)
    scores = torch.tensor([_value(score.value) for group in groups for score in group.scores], dtype=torch.float32)
    metrics: dict[str, float] = {}
    if settings.score_clip is not None:
        metrics["reward/clipped_fraction"] = float((scores.abs() > settings.score_clip).float().mean())
        scores = shaping.clip_scores(scores, settings.score_clip)
    overlong = settings.overlong
    if overlong.penalty_tokens:
        penalty = shaping.overlong_penalty(batch.branch_lengths, max_response_tokens, overlong.penalty_tokens)
        scores = scores + penalty
        metrics["reward/overlong_penalty"] = float(penalty.mean())
    if overlong.missing_eos_penalty:
        scores = shaping.missing_eos_penalty(scores, truncated, overlong.missing_eos_penalty)
    mask = batch["loss_mask"]
    if overlong.mask_truncated:
        mask = shaping.mask_truncated(mask, batch.branch_ids, truncated)
    return scores, mask, metrics


def _sampled_kl(batch: Batch) -> float:
    """Mean k3 over the trained tokens: KL(pi || pi_ref) in nats per token, at the policy that sampled."""
    return float(kl.k3(batch["old_logprobs"], batch["ref_logprobs"])[batch["loss_mask"]].mean())


def with_importance(batch: Batch, settings: AlgorithmConfig) -> tuple[Batch, dict[str, float]]:
    """Return the batch with `importance_weights` for the sampler's mismatch, when the settings ask for them."""
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
    batch: Batch,
    aggregation: losses.Aggregation,
    *,
    max_response_tokens: int | None = None,
    prompt_weight: float = 0.0,
) -> Batch:
    """Return the batch of one optimizer step with what each token counts in its loss and in its metrics.

    With `prompt_weight` (of token_mean alone) the tokens outside the loss mask count that much of one inside it.
    """
    mask, branch_ids = batch["loss_mask"], batch.branch_ids
    if prompt_weight > 0:
        weights = torch.where(mask, 1.0, prompt_weight)
        weights = weights / weights.sum()
    else:
        weights = losses.loss_weights(
            mask, branch_ids, aggregation, max_response_tokens=max_response_tokens, num_branches=batch.num_branches
        )
    return batch.with_columns(loss_weights=weights, metric_weights=losses.loss_weights(mask, branch_ids, "token_mean"))


def with_preference_pairs(batch: Batch, groups: Sequence[Group]) -> Batch:
    """Return the batch of one optimizer step over ranked branches: a branch's score is how good it is, higher is
    better.

    Every group counts 1 / groups. `margins` come along where a sample's fields have a `margin`.
    """
    scores = torch.tensor([_value(score.value) for group in groups for score in group.scores])
    branch_ids = batch.branch_ids
    columns = {
        "ranks": -scores[branch_ids],
        "group_weights": torch.full((batch.num_tokens,), 1 / batch.num_groups),
    }
    margins = [float(group.sample.fields.get("margin") or 0.0) for group in groups]
    if any(margins):
        columns["margins"] = torch.tensor(margins)[batch.group_ids][branch_ids]
    return batch.with_columns(**columns)


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


def split_minibatches(batch: Batch, settings: AlgorithmConfig, *, max_response_tokens: int, seed: int) -> list[Batch]:
    """Split a batch, with loss weights, into `epochs` passes of `minibatches` optimizer steps, drawn by seed."""
    return [
        with_loss_weights(batch.select(part), settings.aggregation, max_response_tokens=max_response_tokens)
        for epoch in range(settings.epochs)
        for part in _parts(batch, settings.minibatches, seed=seed * settings.epochs + epoch)
    ]


def _parts(batch: Batch, count: int, *, seed: int) -> list[list[int]]:
    """Group indices of each minibatch, drawn by seed; as equal in number as can be."""
    order = torch.randperm(batch.num_groups, generator=torch.Generator().manual_seed(seed)).tolist()
    count = min(count, batch.num_groups)
    bounds = [len(order) * part // count for part in range(count + 1)]
    return [order[start:end] for start, end in itertools.pairwise(bounds)]
