"""The columns of a step: shaped scores, advantages of every kind, loss weights and ranks, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from troupe.algorithms.advantage_stage import with_advantages, with_gae, with_loss_weights, with_preference_pairs
from troupe.algorithms.packing import Batch
from troupe.config.algorithm import AlgorithmConfig, KLConfig, OverlongConfig
from troupe.config.grpo import GAEConfig
from troupe.errors import RewardError
from troupe.records import Branch, Group, Sample, Score

LIMIT = 10


def group(name: str, *answers: tuple[int, float | None, str], **fields: Any) -> Group:
    """Answers as (tokens, score, finish reason)."""
    branches = [Branch(token_ids=[5] * length, finish_reason=reason) for length, _, reason in answers]
    scores = [Score(value=score) for _, score, _ in answers]
    sample = Sample(sample_id=name, prompt="", fields=fields)
    return Group(sample=sample, prompt_ids=[1, 2], branches=branches, scores=scores)


def settings(**others: Any) -> AlgorithmConfig:
    return AlgorithmConfig(**{"advantage": "rloo", **others})


def approx(*values: float) -> Any:
    return pytest.approx(values, abs=1e-6)


# -- advantages --------------------------------------------------------------------------------------------------


def test_every_token_of_an_answer_has_its_advantage_over_the_others_of_its_group() -> None:
    groups = [
        group("a", (2, 1.0, "stop"), (1, 0.0, "stop"), (1, 0.5, "stop")),
        group("b", (1, 3.0, "stop"), (1, 1.0, "stop")),
    ]
    batch, _ = with_advantages(Batch.from_groups(groups), groups, settings(), max_response_tokens=LIMIT)
    # RLOO, a: 1 - (0 + 0.5) / 2, 0 - (1 + 0.5) / 2, 0.5 - (1 + 0) / 2; b: 3 - 1, 1 - 3.
    assert batch["advantages"].tolist() == approx(0.75, 0.75, -0.75, 0.0, 2.0, -2.0)


def test_a_missing_end_costs_its_penalty_after_the_clip() -> None:
    groups = [group("a", (1, 9.0, "stop"), (1, -9.0, "length"))]
    shaped = settings(score_clip=2.0, overlong=OverlongConfig(missing_eos_penalty=0.5))
    batch, metrics = with_advantages(Batch.from_groups(groups), groups, shaped, max_response_tokens=LIMIT)
    # Clipped to 2 and -2; the second was cut off: -2.5. Their difference is 4.5.
    assert batch["advantages"].tolist() == approx(4.5, -4.5)
    assert metrics["reward/clipped_fraction"] == 1.0


def test_the_clipped_fraction_counts_only_scores_beyond_the_limit() -> None:
    groups = [group("a", (1, 2.0, "stop"), (1, 2.5, "stop"), (1, -1.0, "stop"), (1, -7.0, "stop"))]
    _, metrics = with_advantages(Batch.from_groups(groups), groups, settings(score_clip=2.0), max_response_tokens=LIMIT)
    assert metrics["reward/clipped_fraction"] == 0.5


def test_a_masked_answer_keeps_its_advantage_and_leaves_the_loss() -> None:
    groups = [group("a", (2, 1.0, "length"), (1, 0.0, "stop"))]
    masked = settings(overlong=OverlongConfig(mask_truncated=True))
    batch, _ = with_advantages(Batch.from_groups(groups), groups, masked, max_response_tokens=LIMIT)
    assert batch["loss_mask"].tolist() == [False, False, True]
    assert batch["advantages"].tolist() == approx(1.0, 1.0, -1.0)


def test_kl_in_the_reward_is_taken_from_each_answers_score() -> None:
    groups = [group("a", (2, 1.0, "stop"), (1, 0.0, "stop"))]
    batch = Batch.from_groups(groups).with_columns(
        old_logprobs=torch.tensor([-1.0, -2.0, -3.0]), ref_logprobs=torch.tensor([-2.0, -1.5, -1.0])
    )
    # k1 = log pi - log ref: 1 - 0.5 = 0.5 and -2; scores 1 - 0.1 x 0.5 = 0.95 and 0 + 0.2.
    batch, metrics = with_advantages(
        batch, groups, settings(kl=KLConfig(coef=0.1, placement="reward")), max_response_tokens=LIMIT
    )
    assert batch["advantages"].tolist() == approx(0.75, 0.75, -0.75)
    assert metrics["reward/shaped"] == pytest.approx((0.95 + 0.2) / 2)


def test_an_answer_without_a_judgement_is_a_mistake_here() -> None:
    groups = [group("a", (1, None, "stop"), (1, 0.0, "stop"))]
    with pytest.raises(RewardError, match="a branch without a score reached the advantages"):
        with_advantages(Batch.from_groups(groups), groups, settings(), max_response_tokens=LIMIT)


# -- PPO ---------------------------------------------------------------------------------------------------------


def valued(groups: list[Group], values: list[float], old: list[float], reference: list[float]) -> Batch:
    columns = {"old_values": values, "old_logprobs": old, "ref_logprobs": reference}
    return Batch.from_groups(groups).with_columns(**{name: torch.tensor(column) for name, column in columns.items()})


def test_token_rewards_and_values_become_advantages_and_returns() -> None:
    groups = [group("a", (3, 5.0, "stop")), group("b", (1, 1.0, "length"))]
    batch = valued(groups, [0.5, 1.0, 2.0, 0.25], [-1.0, -1.0, -1.0, -2.0], [-2.0, -1.0, -0.5, -2.0])
    ppo = settings(
        advantage="gae",
        score_clip=4.0,
        kl=KLConfig(coef=0.2, placement="reward"),
        overlong=OverlongConfig(missing_eos_penalty=0.75),
    )
    batch, metrics = with_gae(
        batch, groups, ppo, GAEConfig(gamma=1.0, lam=0.5, whiten=False), max_response_tokens=LIMIT
    )
    # k1 = [1, 0, -0.5] and [0]; rewards -0.2 k1, and at the last token the clipped score 4: [-0.2, 0, 4.1]; b was cut
    # off: 1 - 0.75 = 0.25.
    # deltas: 4.1 - 2 = 2.1; 0 + 2 - 1 = 1; -0.2 + 1 - 0.5 = 0.3. A: 2.1; 1 + 0.5 x 2.1 = 2.05; 0.3 + 0.5 x 2.05 =
    # 1.325.
    assert batch["advantages"].tolist() == approx(1.325, 2.05, 2.1, 0.0)
    assert batch["returns"].tolist() == approx(1.825, 3.05, 4.1, 0.25)
    assert metrics["value/return"] == pytest.approx((1.825 + 3.05 + 4.1 + 0.25) / 4)
    assert metrics["reward/shaped"] == pytest.approx((3.9 + 0.25) / 2)  # 4 - 0.2 (1 + 0 - 0.5) = 3.9
    assert metrics["policy/advantage_max"] == pytest.approx(2.1)


def test_without_a_kl_term_no_reference_is_needed() -> None:
    groups = [group("a", (2, 1.0, "stop"))]
    batch = Batch.from_groups(groups).with_columns(old_values=torch.tensor([0.5, 0.5]))
    config = GAEConfig(gamma=1.0, lam=1.0, whiten=False)
    batch, metrics = with_gae(batch, groups, settings(advantage="gae"), config, max_response_tokens=LIMIT)
    assert batch["returns"].tolist() == approx(1.0, 1.0)
    assert batch["advantages"].tolist() == approx(0.5, 0.5)
    assert "policy/kl" not in metrics


def test_whitened_advantages_have_mean_0_and_variance_1_over_what_is_trained() -> None:
    groups = [group("a", (3, 5.0, "stop")), group("b", (2, -1.0, "stop")), group("c", (2, 9.0, "length"))]
    batch = Batch.from_groups(groups).with_columns(old_values=torch.linspace(-1, 1, 7))
    masked = settings(advantage="gae", overlong=OverlongConfig(mask_truncated=True))
    batch, _ = with_gae(batch, groups, masked, GAEConfig(), max_response_tokens=LIMIT)
    trained = batch["advantages"][batch["loss_mask"]]
    assert len(trained) == 5
    assert (float(trained.mean()), float(trained.var(correction=0))) == approx(0.0, 1.0)
    assert torch.count_nonzero(batch["advantages"][5:]) == 0


# -- supervised --------------------------------------------------------------------------------------------------


def masked_batch() -> Batch:
    branches = [
        Branch(token_ids=[5] * 4, loss_mask=[False, False, True, True]),
        Branch(token_ids=[5], loss_mask=[True]),
    ]
    return Batch.from_groups(
        [Group(sample=Sample(sample_id="a", prompt=""), prompt_ids=[1], branches=[branch]) for branch in branches]
    )


def test_a_prompts_token_counts_its_share_of_an_answers() -> None:
    batch = with_loss_weights(masked_batch(), "token_mean", prompt_weight=0.5)
    # 3 tokens of answers and 2 of prompts at one half: 4 in all.
    assert batch["loss_weights"].tolist() == approx(0.125, 0.125, 0.25, 0.25, 0.25)
    assert batch["metric_weights"].tolist() == approx(0, 0, 1 / 3, 1 / 3, 1 / 3)


def test_without_a_prompt_weight_answers_count_alone() -> None:
    batch = with_loss_weights(masked_batch(), "token_mean")
    assert batch["loss_weights"].tolist() == approx(0, 0, 1 / 3, 1 / 3, 1 / 3)


def test_ranks_margins_and_a_groups_share_reach_every_token() -> None:
    groups = [
        group("a", (2, 0.0, "stop"), (1, -1.0, "stop"), margin=0.5),
        group("b", (1, 0.0, "stop"), (1, -3.0, "stop")),
    ]
    batch = with_preference_pairs(Batch.from_groups(groups), groups)
    assert batch["ranks"].tolist() == [0, 0, 1, 0, 3]
    assert batch["group_weights"].tolist() == approx(*[0.5] * 5)
    # A group without a margin asks for none.
    assert batch["margins"].tolist() == [0.5, 0.5, 0.5, 0, 0]
    assert "margins" not in with_preference_pairs(Batch.from_groups(groups[1:]), groups[1:]).columns
