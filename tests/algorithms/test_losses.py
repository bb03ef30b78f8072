"""Losses: against plain loops over tokens, against TRL's own numbers, and under every split and order.

`Tokens` is a step of six branches. Some tokens are outside the loss mask (a whole branch of them) and hold NaN, as a
column may where nothing was sampled. Everything is float64 except the weights, hence the tolerance of 1e-6.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from troupe.algorithms import advantages, kl, losses

AGGREGATIONS: tuple[losses.Aggregation, ...] = ("token_mean", "sequence_mean", "constant")
RATIOS: tuple[losses.Ratio, ...] = ("token", "sequence")
MAX_RESPONSE_TOKENS = 8
CLIPS: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.28}
NOT_CLIPPED: dict[str, Any] = {"clip_low": 1.0, "clip_high": math.inf}


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The columns [N] of a step; `logprobs` requires gradient."""

    branch_ids: Tensor
    loss_mask: Tensor
    logprobs: Tensor
    old_logprobs: Tensor
    ref_logprobs: Tensor
    importance_weights: Tensor
    advantages: Tensor

    def weights(self, aggregation: losses.Aggregation) -> Tensor:
        return losses.loss_weights(
            self.loss_mask, self.branch_ids, aggregation, max_response_tokens=MAX_RESPONSE_TOKENS
        )


def make_tokens(*, on_policy: bool = False, outside: float = math.nan) -> Tokens:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([3, 5, 1, 4, 2, 6])
    branch_ids = torch.arange(6).repeat_interleave(lengths)
    loss_mask = torch.rand(21, generator=generator) > 0.2
    loss_mask[branch_ids == 4] = False
    scores = torch.tensor([1.2, -0.7, 0.4, -1.5, 0.9, 2.0], dtype=torch.float64)

    def column(mean: float, deviation: float) -> Tensor:
        values = mean + deviation * torch.randn(21, generator=generator, dtype=torch.float64)
        return torch.where(loss_mask, values, outside)

    old = column(-2, 1)
    return Tokens(
        branch_ids=branch_ids,
        loss_mask=loss_mask,
        logprobs=(old.clone() if on_policy else old + column(0, 0.4)).requires_grad_(),
        old_logprobs=old,
        ref_logprobs=old + column(0, 0.4),
        importance_weights=column(1, 0.3),
        advantages=torch.where(loss_mask, advantages.to_tokens(scores, branch_ids), outside),
    )


def surrogate(
    tokens: Tokens, weights: Tensor, *, ratio: losses.Ratio = "token", **settings: Any
) -> tuple[Tensor, losses.Metrics]:
    return losses.policy_loss(
        tokens.logprobs,
        tokens.old_logprobs,
        tokens.advantages,
        weights,
        **{**CLIPS, "ratio": ratio, "branch_ids": tokens.branch_ids, **settings},
    )


def gradient(loss: Tensor, tokens: Tokens) -> Tensor:
    return torch.autograd.grad(loss, tokens.logprobs)[0]


def assert_same(result: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(result.double(), expected.double(), atol=1e-6, rtol=1e-6)


# The weights


def test_weights_by_hand() -> None:
    # Branches of 2 (one masked out), 3 and 1 (masked out) tokens: 4 trained tokens in 2 of 3 branches.
    loss_mask = torch.tensor([True, False, True, True, True, False])
    branch_ids = torch.tensor([0, 0, 1, 1, 1, 2])

    def weights(aggregation: losses.Aggregation, **sizes: int) -> list[float]:
        return losses.loss_weights(loss_mask, branch_ids, aggregation, **sizes).tolist()

    assert weights("token_mean") == pytest.approx([1 / 4, 0, 1 / 4, 1 / 4, 1 / 4, 0])
    assert weights("sequence_mean") == pytest.approx([1 / 2, 0, 1 / 6, 1 / 6, 1 / 6, 0])
    assert weights("constant", max_response_tokens=10) == pytest.approx([1 / 30, 0, 1 / 30, 1 / 30, 1 / 30, 0])
    assert weights("constant", max_response_tokens=10, num_branches=4)[0] == pytest.approx(1 / 40)


def test_token_mean_and_sequence_mean_sum_to_one() -> None:
    for aggregation in ("token_mean", "sequence_mean"):
        assert make_tokens().weights(aggregation).sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_if_nothing_is_trained_all_weights_are_zero(aggregation: losses.Aggregation) -> None:
    for size in (0, 3):
        nothing, branch_ids = torch.zeros(size, dtype=torch.bool), torch.zeros(size, dtype=torch.int64)
        assert losses.loss_weights(nothing, branch_ids, aggregation, max_response_tokens=5).tolist() == [0.0] * size


def test_constant_needs_the_longest_answer() -> None:
    with pytest.raises(ValueError, match="max_response_tokens"):
        losses.loss_weights(torch.tensor([True]), torch.tensor([0]), "constant")


# Every loss against a loop


def policy_loop(
    tokens: Tokens, weights: Tensor, ratio: str, dual_clip: float | None, importance: bool
) -> tuple[float, dict[str, float]]:
    """PPO's surrogate, written the slow way: one token at a time, in Python floats."""
    mask = tokens.loss_mask.tolist()
    ids, new, old = tokens.branch_ids.tolist(), tokens.logprobs.tolist(), tokens.old_logprobs.tolist()
    loss, metrics = 0.0, dict.fromkeys(("clip", "low", "high", "ratio", "kl", "dual"), 0.0)
    for n in range(len(ids)):
        if not mask[n]:
            continue
        same = [m for m in range(len(ids)) if mask[m] and ids[m] == ids[n]] if ratio == "sequence" else [n]
        rho = math.exp(sum(new[m] - old[m] for m in same))
        advantage, weight = tokens.advantages[n].item(), weights[n].item()
        clipped = min(max(rho, 0.8), 1.28)
        objective = min(rho * advantage, clipped * advantage)
        if dual_clip is not None and advantage < 0:
            objective = max(objective, dual_clip * advantage)
            metrics["dual"] += weight * (rho > dual_clip)
        loss -= weight * objective * (tokens.importance_weights[n].item() if importance else 1)
        low, high = rho < 0.8 and advantage < 0, rho > 1.28 and advantage > 0
        metrics["low"] += weight * low
        metrics["high"] += weight * high
        metrics["clip"] += weight * (low or high)
        metrics["ratio"] += weight * rho
        metrics["kl"] += weight * (math.exp(new[n] - old[n]) - 1 - (new[n] - old[n]))
    return loss, metrics


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("dual_clip", [None, 1.3])
@pytest.mark.parametrize("importance", [False, True])
def test_policy_loss_is_what_a_loop_over_tokens_computes(
    aggregation: losses.Aggregation, ratio: losses.Ratio, dual_clip: float | None, importance: bool
) -> None:
    tokens = make_tokens()
    weights = tokens.weights(aggregation)
    correction = tokens.importance_weights if importance else None
    loss, metrics = surrogate(tokens, weights, ratio=ratio, dual_clip=dual_clip, importance_weights=correction)
    expected, expected_metrics = policy_loop(tokens, weights, ratio, dual_clip, importance)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    names = {
        "clip": "policy/clip_fraction",
        "low": "policy/clip_low_fraction",
        "high": "policy/clip_high_fraction",
        "ratio": "policy/ratio_mean",
        "kl": "policy/old_kl",
    } | ({"dual": "policy/dual_clip_fraction"} if dual_clip else {})
    assert set(metrics) == set(names.values())
    for short, name in names.items():
        assert metrics[name].item() == pytest.approx(expected_metrics[short], abs=1e-6), name
    if ratio == "token":
        assert expected_metrics["low"] > 0, "the data should reach both clip ranges"
        assert expected_metrics["high"] > 0, "the data should reach both clip ranges"


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_kl_loss_is_what_a_loop_over_tokens_computes(estimator: kl.Estimator) -> None:
    tokens = make_tokens()
    weights = tokens.weights("sequence_mean")
    expected = {"k2": 0.0, "k3": 0.0}
    for weight, new, ref in zip(weights.tolist(), tokens.logprobs.tolist(), tokens.ref_logprobs.tolist(), strict=True):
        if weight:
            expected["k2"] += weight * (new - ref) ** 2 / 2
            expected["k3"] += weight * (math.exp(ref - new) - 1 - (ref - new))
    loss, metrics = losses.kl_loss(tokens.logprobs, tokens.ref_logprobs, weights, estimator)
    assert loss.item() == pytest.approx(expected[estimator], abs=1e-6)
    assert metrics["policy/kl"].item() == pytest.approx(expected["k3"], abs=1e-6)


def test_k1_is_refused_in_the_loss() -> None:
    with pytest.raises(ValueError, match="zero expected gradient"):
        losses.kl_loss(torch.zeros(1), torch.zeros(1), torch.ones(1), "k1")


def test_sft_and_entropy_losses_are_what_a_loop_over_tokens_computes() -> None:
    tokens = make_tokens()
    weights = tokens.weights("token_mean")
    pairs = zip(weights.tolist(), tokens.logprobs.tolist(), strict=True)
    expected = -sum(weight * value for weight, value in pairs if weight)
    for loss, metrics, sign in (
        (*losses.sft_loss(tokens.logprobs, weights), 1),
        (*losses.entropy_loss(tokens.logprobs, weights), -1),
    ):
        assert loss.item() == pytest.approx(expected, abs=1e-6)
        assert [value.item() for value in metrics.values()] == [pytest.approx(sign * expected, abs=1e-6)]
        assert_same(gradient(loss, tokens), -weights)


def test_minimising_the_entropy_loss_raises_the_entropy() -> None:
    logits = torch.tensor([2.0, 0.0, -1.0], requires_grad=True)

    def entropy(values: Tensor) -> Tensor:
        return -(values.softmax(0) * values.log_softmax(0)).sum()

    losses.entropy_loss(entropy(logits)[None], torch.ones(1))[0].backward()
    assert logits.grad is not None
    assert entropy(logits - 0.1 * logits.grad) > entropy(logits)


# What must not change anything


def total(tokens: Tokens, weights: Tensor, chosen: Tensor, ratio: losses.Ratio) -> tuple[Tensor, losses.Metrics]:
    """Everything the policy can be asked to minimise, over the chosen tokens in the chosen order."""
    new, ref, part = tokens.logprobs[chosen], tokens.ref_logprobs[chosen], weights[chosen]
    policy, policy_metrics = losses.policy_loss(
        new,
        tokens.old_logprobs[chosen],
        tokens.advantages[chosen],
        part,
        **CLIPS,
        dual_clip=1.5,
        ratio=ratio,
        branch_ids=tokens.branch_ids[chosen],
        importance_weights=tokens.importance_weights[chosen],
        metric_weights=tokens.weights("token_mean")[chosen],
    )
    squared, _ = losses.kl_loss(new, ref, part, "k2")
    divergence, divergence_metrics = losses.kl_loss(new, ref, part, "k3")
    entropy, entropy_metrics = losses.entropy_loss(new, part)
    nll, nll_metrics = losses.sft_loss(new, part)
    metrics = policy_metrics | divergence_metrics | entropy_metrics | nll_metrics
    return policy + 0.1 * (squared + divergence) + 0.01 * entropy + 0.2 * nll, metrics


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("parts", [[[0, 1, 2, 3, 4, 5]], [[5, 0], [4], [], [2, 3, 1]], [[i] for i in range(6)]])
def test_parts_in_any_order_add_up_to_the_whole(
    aggregation: losses.Aggregation, ratio: losses.Ratio, parts: Sequence[Sequence[int]]
) -> None:
    tokens = make_tokens()
    weights = tokens.weights(aggregation)
    whole, whole_metrics = total(tokens, weights, torch.arange(21), ratio)
    summed, summed_gradient = 0.0, torch.zeros(21, dtype=torch.float64)
    summed_metrics = dict.fromkeys(whole_metrics, 0.0)
    for branches in parts:
        of_branches = [torch.where(tokens.branch_ids == branch)[0] for branch in branches]
        chosen = torch.cat([torch.zeros(0, dtype=torch.int64), *of_branches])
        loss, metrics = total(tokens, weights, chosen, ratio)
        summed += loss.item()
        summed_gradient += gradient(loss, tokens)
        summed_metrics = {name: value + metrics[name].item() for name, value in summed_metrics.items()}
    assert summed == pytest.approx(whole.item(), abs=1e-6)
    assert_same(summed_gradient, gradient(whole, tokens))
    assert summed_metrics == pytest.approx({name: value.item() for name, value in whole_metrics.items()}, abs=1e-6)


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_order_of_the_tokens_does_not_matter(ratio: losses.Ratio) -> None:
    tokens = make_tokens()
    weights = tokens.weights("sequence_mean")
    order = torch.randperm(21, generator=torch.Generator().manual_seed(5))
    loss, metrics = total(tokens, weights, order, ratio)
    whole, whole_metrics = total(tokens, weights, torch.arange(21), ratio)
    assert_same(loss, whole)
    assert_same(gradient(loss, tokens), gradient(whole, tokens))
    for name, value in metrics.items():
        assert_same(value, whole_metrics[name])


@pytest.mark.parametrize("outside", [math.nan, math.inf, -1e4])
@pytest.mark.parametrize("ratio", RATIOS)
def test_what_stands_outside_the_mask_does_not_matter(ratio: losses.Ratio, outside: float) -> None:
    usual, strange = make_tokens(outside=0.0), make_tokens(outside=outside)
    weights = usual.weights("token_mean")
    expected, expected_metrics = total(usual, weights, torch.arange(21), ratio)
    loss, metrics = total(strange, weights, torch.arange(21), ratio)
    assert_same(loss, expected)
    assert_same(gradient(loss, strange), gradient(expected, usual))
    for name, value in metrics.items():
        assert_same(value, expected_metrics[name])


def test_metrics_are_about_trained_tokens_whatever_their_weights_say() -> None:
    tokens = make_tokens()
    everywhere = torch.full((21,), 1 / tokens.loss_mask.sum().item())
    _, metrics = surrogate(tokens, tokens.weights("constant"), metric_weights=everywhere)
    _, expected = surrogate(tokens, tokens.weights("token_mean"))
    for name, value in metrics.items():
        assert_same(value, expected[name])


def test_an_empty_row_has_a_loss_of_zero_that_can_be_differentiated() -> None:
    # A rank that is short of a row runs an empty one so that collectives stay in step; its backward must run.
    nothing = torch.zeros(0, requires_grad=True)
    loss, metrics = losses.policy_loss(
        nothing, nothing, nothing, torch.zeros(0), **CLIPS, ratio="sequence", branch_ids=torch.zeros(0).long()
    )
    loss.backward()
    assert loss.item() == 0
    assert all(value.item() == 0 for value in metrics.values())


def test_metrics_do_not_hold_the_graph() -> None:
    tokens = make_tokens()
    _, metrics = total(tokens, tokens.weights("constant"), torch.arange(21), "token")
    assert not any(value.requires_grad or value.dim() for value in metrics.values())


# What the gradients are


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_on_policy_the_clipped_loss_has_the_plain_policy_gradient(aggregation: losses.Aggregation) -> None:
    tokens = make_tokens(on_policy=True)
    weights = tokens.weights(aggregation)
    loss, metrics = surrogate(tokens, weights, dual_clip=3.0)
    # grad of -sum w A log pi
    assert_same(gradient(loss, tokens), torch.where(tokens.loss_mask, -weights * tokens.advantages, 0.0))
    assert metrics["policy/clip_fraction"].item() == 0
    assert metrics["policy/ratio_mean"].item() == pytest.approx(weights.sum().item())


def rloo_example(aggregation: losses.Aggregation) -> tuple[Tensor, Tensor]:
    """Gradient of one RLOO update [N] by our functions, and by the formula of 2402.14740 written out.

    Two prompts with three answers each, every token trained: (1 / 6) sum_i (R_i - mean of the others) grad log pi(y_i),
    where log pi is the sum over the answer's tokens.
    """
    rewards, lengths = [0.3, 1.0, -0.5, 2.0, 0.0, 0.1], [3, 5, 1, 4, 2, 6]
    group_ids, branch_ids = torch.tensor([0, 0, 0, 1, 1, 1]), torch.arange(6).repeat_interleave(torch.tensor(lengths))
    logprobs = -torch.rand(21, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = losses.loss_weights(
        torch.ones(21, dtype=torch.bool), branch_ids, aggregation, max_response_tokens=MAX_RESPONSE_TOKENS
    )

    ours = logprobs.clone().requires_grad_()
    scores = advantages.rloo(torch.tensor(rewards), group_ids)
    settings = {**CLIPS, "ratio": "sequence", "branch_ids": branch_ids}
    loss, _ = losses.policy_loss(ours, logprobs, advantages.to_tokens(scores, branch_ids), weights, **settings)
    loss.backward()
    assert ours.grad is not None

    by_hand = logprobs.clone().requires_grad_()
    objective = torch.zeros((), dtype=torch.float64)
    for i, reward in enumerate(rewards):
        first = i // 3 * 3
        others = [rewards[j] for j in range(first, first + 3) if j != i]
        objective = objective + (reward - sum(others) / 2) * by_hand[branch_ids == i].sum() / 6
    (-objective).backward()
    assert by_hand.grad is not None
    return ours.grad, by_hand.grad


def test_one_update_with_the_sequence_ratio_and_sequence_mean_is_rloo() -> None:
    ours, by_hand = rloo_example("sequence_mean")
    assert_same(ours, by_hand)


def test_with_token_mean_the_sequence_ratio_weighs_answers_by_their_length() -> None:
    # W_i = |y_i| / 21 instead of 1 / 6: the docstring's warning.
    ours, by_hand = rloo_example("token_mean")
    lengths = torch.tensor([3, 5, 1, 4, 2, 6])
    assert_same(ours, by_hand * (lengths * 6 / 21).repeat_interleave(lengths))


def test_without_clipping_the_sequence_ratio_is_the_likelihood_ratio_of_the_answer() -> None:
    # Two answers of one prompt; L = -(1/2) (pi/old (y_0) A_0 + pi/old (y_1) A_1), by its definition.
    logprobs, old = torch.tensor([-0.5, -1.0, -2.0]), torch.tensor([-0.9, -0.8, -1.0])
    branch_ids, mask = torch.tensor([0, 0, 1]), torch.ones(3, dtype=torch.bool)
    weights = losses.loss_weights(mask, branch_ids, "sequence_mean")
    settings = {**NOT_CLIPPED, "ratio": "sequence", "branch_ids": branch_ids}
    loss, _ = losses.policy_loss(logprobs, old, torch.tensor([2.0, 2.0, -1.0]), weights, **settings)
    assert loss.item() == pytest.approx(-(math.exp(0.2) * 2 - math.exp(-1)) / 2)


def test_the_sequence_ratio_needs_branch_ids() -> None:
    with pytest.raises(ValueError, match="branch_ids"):
        losses.policy_loss(torch.zeros(1), torch.zeros(1), torch.ones(1), torch.ones(1), **CLIPS, ratio="sequence")


@pytest.mark.parametrize("importance", [False, True])
def test_no_gradient_flows_through_anything_but_the_logprobs(importance: bool) -> None:
    constant = torch.tensor([1.5], requires_grad=True)
    logprobs = torch.tensor([-1.0], requires_grad=True)
    correction = constant if importance else None
    loss, _ = losses.policy_loss(
        logprobs, logprobs.detach(), torch.ones(1), torch.ones(1), **CLIPS, importance_weights=correction
    )
    loss.backward()
    assert constant.grad is None
    assert logprobs.grad is not None
    assert logprobs.grad.item() == pytest.approx(-1.5 if importance else -1)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "loss", "slope"),
    [
        (math.log(1.2), 1.0, -1.2, -1.2),  # inside
        (math.log(1.5), 1.0, -1.28, 0.0),  # good and already likelier than 1 + .28
        (math.log(0.5), 1.0, -0.5, -0.5),  # good and grown unlikely: pulled back
        (math.log(0.5), -1.0, 0.8, 0.0),  # bad and already unlikelier than 1 - .2
        (math.log(2.5), -1.0, 2.5, 2.5),  # bad and grown likely: pushed down
        (math.log(4.0), -1.0, 3.0, 0.0),  # beyond the dual clip of 3
        (200.0, 1.0, -1.28, 0.0),  # exp(200) overflows float32; clamped
    ],
)
def test_the_surrogate_by_hand(log_ratio: float, advantage: float, loss: float, slope: float) -> None:
    logprobs = torch.tensor([log_ratio - 1], requires_grad=True)
    result, _ = losses.policy_loss(
        logprobs, torch.tensor([-1.0]), torch.tensor([advantage]), torch.ones(1), **CLIPS, dual_clip=3.0
    )
    result.backward()
    assert result.item() == pytest.approx(loss, rel=1e-5)
    assert logprobs.grad is not None
    assert logprobs.grad.item() == pytest.approx(slope, rel=1e-5)


# The correction for the sampler


@pytest.mark.parametrize(
    ("kind", "expected", "name", "fraction"),
    [
        ("truncate", [1, 0.25, 2, 1], "importance/truncated_fraction", 0.2),
        ("mask", [1, 0, 0, 1], "importance/masked_fraction", 0.3 + 0.2),
    ],
)
def test_importance_weights_by_hand(kind: losses.Correction, expected: list[float], name: str, fraction: float) -> None:
    # q = 1, 1/4, 4 and a token outside of everything
    old = torch.tensor([-1.0, -1 - math.log(4), -1.0, math.nan])
    rollout = torch.tensor([-1.0, -1.0, -1 - math.log(4), 0.0])
    weights, metrics = losses.importance_weights(
        old, rollout, kind, low=0.5, high=2.0, metric_weights=torch.tensor([0.5, 0.3, 0.2, 0.0])
    )
    assert weights.tolist() == pytest.approx(expected)
    assert metrics[name].item() == pytest.approx(fraction)
    assert metrics["importance/ratio_mean"].item() == pytest.approx(0.5 + 0.3 / 4 + 0.2 * 4)
    # k3 = q - 1 - log q: 0, 1/4 - 1 + log 4, 4 - 1 - log 4
    mismatch = 0.3 * (0.25 - 1 + math.log(4)) + 0.2 * (3 - math.log(4))
    assert metrics["importance/kl"].item() == pytest.approx(mismatch, rel=1e-5)


def test_importance_weights_are_constants() -> None:
    old = torch.tensor([-1.0], requires_grad=True)
    weights, metrics = losses.importance_weights(
        old, torch.tensor([-1.1]), "truncate", low=0, high=2, metric_weights=torch.ones(1)
    )
    assert not weights.requires_grad
    assert not any(value.requires_grad for value in metrics.values())


# TRL computed the same (recorded/record_trl.py)

RECORDED = json.loads((Path(__file__).parent / "recorded" / "trl.json").read_text())
SAME_IN_TRL: dict[str, tuple[losses.Aggregation, dict[str, Any]]] = {
    "grpo": ("sequence_mean", {}),
    "bnpo": ("token_mean", {}),
    "dapo": ("token_mean", {}),
    "dr_grpo": ("constant", {}),
    "grpo, beta": ("sequence_mean", {}),
    "dapo, beta": ("token_mean", {}),
    "grpo, delta": ("sequence_mean", {"dual_clip": 1.5}),
    "dapo, importance": ("token_mean", {"importance_weights": None}),
    "rloo": ("sequence_mean", {"ratio": "sequence"}),
}


@pytest.mark.parametrize("name", SAME_IN_TRL)
def test_trl_computes_the_same_loss_and_gradient(name: str) -> None:
    aggregation, settings = SAME_IN_TRL[name]
    column = {key: torch.tensor(values, dtype=torch.float64) for key, values in RECORDED["columns"].items()}
    branch_ids = torch.arange(4).repeat_interleave(torch.tensor(RECORDED["lengths"]))
    logprobs = column["logprobs"].requires_grad_()
    weights = losses.loss_weights(
        torch.ones(len(branch_ids), dtype=torch.bool),
        branch_ids,
        aggregation,
        max_response_tokens=RECORDED["max_response_tokens"],
    )
    if "importance_weights" in settings:
        settings = {"importance_weights": column["importance_weights"]}
    token_advantages = advantages.to_tokens(torch.tensor(RECORDED["advantages"]).double(), branch_ids)
    loss, _ = losses.policy_loss(
        logprobs, column["old_logprobs"], token_advantages, weights, **CLIPS, branch_ids=branch_ids, **settings
    )
    if "beta" in name:
        loss = loss + 0.04 * losses.kl_loss(logprobs, column["ref_logprobs"], weights, "k3")[0]
    recorded = RECORDED["settings"][name]
    assert loss.item() == pytest.approx(recorded["loss"], abs=1e-6)
    assert_same(torch.autograd.grad(loss, logprobs)[0], torch.tensor(recorded["gradient"]))
