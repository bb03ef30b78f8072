"""Pairs and their losses: by hand, against plain loops, against TRL's own numbers, and under every split and order.

`Step` is a step of four groups whose branches have ranks, one of them without any pair. Untrained tokens hold NaN.
Weights are float32 and everything else float64, hence the tolerance of 1e-6.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from troupe.algorithms import losses, preference_losses as preferences
from troupe.algorithms.preference_losses import Pairs, branch_sums, ranked_pairs

NAN = math.nan
BETA = 0.3
KINDS: list[dict[str, Any]] = [{}, {"label_smoothing": 0.1}, {"kind": "ipo"}]


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def one_pair() -> Pairs:
    return Pairs(winners=torch.tensor([0]), losers=torch.tensor([1]), shares=torch.ones(1))


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def assert_same(result: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(result.double(), expected.double(), atol=1e-6, rtol=1e-6)


# The pairs


def test_pairs_by_hand() -> None:
    # Group 0 is branches 0, 2 and 4, ranked 1, 0, 2; group 7 is branches 1 and 3, the second of them better.
    pairs = ranked_pairs(torch.tensor([0, 7, 0, 7, 0]), torch.tensor([1, 5, 0, 3, 2]))
    assert pairs.winners.tolist() == [0, 2, 2, 3]
    assert pairs.losers.tolist() == [4, 0, 4, 1]
    assert pairs.shares.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1])


def test_ties_make_no_pair_and_the_others_share_the_weight() -> None:
    # Ranks 0, 1, 1 make two pairs, so each counts 1/2; in the second group all agree, and the third has one branch.
    pairs = ranked_pairs(torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 1, 1, 2, 2, 0]))
    assert list(zip(pairs.winners.tolist(), pairs.losers.tolist(), strict=True)) == [(0, 1), (0, 2)]
    assert pairs.shares.tolist() == [0.5, 0.5]


def test_pairs_are_those_of_a_loop_over_all_combinations() -> None:
    generator = torch.Generator().manual_seed(0)
    group_ids = torch.randint(0, 12, (60,), generator=generator)
    ranks = torch.randint(0, 4, (60,), generator=generator)
    expected = set()
    for a, b in itertools.permutations(range(60), 2):
        if group_ids[a] == group_ids[b] and ranks[a] < ranks[b]:
            expected.add((a, b))
    pairs = ranked_pairs(group_ids, ranks)
    found = list(zip(pairs.winners.tolist(), pairs.losers.tolist(), strict=True))
    assert len(found) == len(expected)
    assert set(found) == expected
    assert pairs.shares.sum().item() == pytest.approx(len({group_ids[a].item() for a, _ in expected}))


def test_no_branches_make_no_pairs() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    pairs = ranked_pairs(nothing, nothing)
    assert [len(pairs.winners), len(pairs.losers), len(pairs.shares)] == [0, 0, 0]


# Sums over branches


def test_branch_sums_and_means_by_hand() -> None:
    values = torch.tensor([1.0, NAN, 2.0, 4.0, NAN, 8.0])
    mask = torch.tensor([True, False, True, True, False, True])
    branch_ids = torch.tensor([2, 2, 0, 2, 3, 0])  # branch 1 is not here, branch 3 has no trained token
    assert branch_sums(values, mask, branch_ids, 4).tolist() == [10, 0, 5, 0]
    assert branch_sums(values, mask, branch_ids, 4, normalise=True).tolist() == [5, 0, 2.5, 0]
    weights = mask * 0.25  # loss weights say only which tokens count
    assert branch_sums(values, weights, branch_ids, 4).tolist() == [10, 0, 5, 0]


def test_the_gradient_of_a_branch_sum_stays_inside_the_mask() -> None:
    values = torch.tensor([1.0, NAN, 2.0], requires_grad=True)
    sums = branch_sums(values, torch.tensor([1, 0, 1]), torch.tensor([0, 0, 0]), 1, normalise=True)
    assert torch.autograd.grad(sums.sum(), values)[0].tolist() == [0.5, 0, 0.5]


# The reward model


def test_the_reward_model_loss_of_the_specification() -> None:
    loss, metrics = preferences.bradley_terry_loss(tensor(1.2, 0.2), one_pair(), torch.ones(1))
    assert loss.item() == pytest.approx(0.313262, abs=1e-6)
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {
            "reward_model/accuracy": 1,
            "reward_model/margin": 1.0,
            "reward_model/chosen": 1.2,
            "reward_model/rejected": 0.2,
            "reward_model/nll": 0.313262,
        },
        abs=1e-6,
    )


def test_the_loss_wants_the_margin_on_top_and_the_metrics_do_not() -> None:
    loss, metrics = preferences.bradley_terry_loss(tensor(1.2, 0.2), one_pair(), torch.ones(1), tensor(1.5))
    assert loss.item() == pytest.approx(-log_sigmoid(1.0 - 1.5))
    assert metrics["reward_model/margin"].item() == pytest.approx(1.0)
    assert metrics["reward_model/nll"].item() == pytest.approx(0.313262, abs=1e-6)


def test_equal_scores_are_half_right() -> None:
    # Right, wrong, equal: (1 + 0 + 1/2) / 3
    pairs = Pairs(winners=torch.tensor([0, 1, 0]), losers=torch.tensor([1, 0, 2]), shares=torch.ones(3))
    _, metrics = preferences.bradley_terry_loss(tensor(2, 1, 2), pairs, torch.full((3,), 1 / 3))
    assert metrics["reward_model/accuracy"].item() == pytest.approx(0.5)


def test_k_ranked_answers_weigh_as_much_as_a_single_pair() -> None:
    # InstructGPT, Eq. 1, over two prompts: three answers with scores 3, 1, 0 (three pairs), and two with 0, 2.
    group_ids, ranks = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 1, 2, 0, 1])
    pairs = ranked_pairs(group_ids, ranks)
    loss, metrics = preferences.bradley_terry_loss(tensor(3, 1, 0, 0, 2), pairs, pairs.shares / 2)
    of_three = (log_sigmoid(3 - 1) + log_sigmoid(3 - 0) + log_sigmoid(1 - 0)) / 3
    assert loss.item() == pytest.approx(-(of_three + log_sigmoid(0 - 2)) / 2, abs=1e-6)
    assert metrics["reward_model/accuracy"].item() == pytest.approx(0.5)  # all three right, the other one wrong


# DPO


def test_the_dpo_loss_of_the_specification() -> None:
    # -log sigmoid(.1 (2 - -1))
    loss, metrics = preferences.dpo_loss(tensor(2, -1), one_pair(), torch.ones(1), beta=0.1)
    assert loss.item() == pytest.approx(0.554355, abs=1e-6)
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {
            "dpo/accuracy": 1,
            "dpo/margin": 0.3,
            "dpo/chosen_reward": 0.2,
            "dpo/rejected_reward": -0.1,
            "dpo/nll": 0.554355,
        },
        abs=1e-6,
    )


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_where_the_policy_is_the_reference_dpo_is_ln_2(label_smoothing: float) -> None:
    pairs = ranked_pairs(torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 1, 2, 1, 0]))
    loss, metrics = preferences.dpo_loss(
        torch.zeros(5), pairs, pairs.shares / 2, beta=0.1, label_smoothing=label_smoothing
    )
    assert loss.item() == pytest.approx(math.log(2))
    assert metrics["dpo/nll"].item() == pytest.approx(math.log(2))
    assert metrics["dpo/accuracy"].item() == pytest.approx(0.5)


def test_where_the_policy_is_the_reference_ipo_is_a_quarter_of_one_over_beta_squared() -> None:
    # (0 - 1 / (2 beta))^2; nll is still ln 2.
    loss, metrics = preferences.dpo_loss(torch.zeros(2), one_pair(), torch.ones(1), beta=0.5, kind="ipo")
    assert loss.item() == pytest.approx(1 / (4 * 0.5**2))
    assert metrics["dpo/nll"].item() == pytest.approx(math.log(2))


def test_ipo_is_content_with_a_gap_of_one_over_two_beta_and_pulls_back_beyond() -> None:
    log_ratios = torch.tensor([0.75, -0.25], requires_grad=True)  # a gap of 1 = 1 / (2 * .5)
    assert preferences.dpo_loss(log_ratios, one_pair(), torch.ones(1), beta=0.5, kind="ipo")[0].item() == 0
    beyond, _ = preferences.dpo_loss(log_ratios + tensor(1, 0), one_pair(), torch.ones(1), beta=0.5, kind="ipo")
    # d (h - 1)^2 = 2 (h - 1) = 2 for the winner: descending lowers it
    assert torch.autograd.grad(beyond, log_ratios)[0].tolist() == [2, -2]


def test_label_smoothing_stops_wanting_more_where_the_labels_are_believed() -> None:
    # The minimum of -(1 - e) log s - e log(1 - s) is s = 1 - e: at margin log((1 - e) / e) there is no gradient.
    gap = math.log(0.9 / 0.1) / BETA
    log_ratios = torch.tensor([gap, 0.0], dtype=torch.float64, requires_grad=True)
    loss, _ = preferences.dpo_loss(log_ratios, one_pair(), torch.ones(1), beta=BETA, label_smoothing=0.1)
    assert_same(torch.autograd.grad(loss, log_ratios)[0], torch.zeros(2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, r"beta \(0.0\) must be greater than 0"),
        ({"beta": 0.1, "label_smoothing": 0.5}, r"label_smoothing \(0.5\) must be at least 0 and below 0.5"),
        ({"beta": 0.1, "label_smoothing": 0.1, "kind": "ipo"}, r"label_smoothing \(0.1\) belongs to the loss sigmoid"),
    ],
)
def test_settings_without_meaning_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preferences.dpo_loss(torch.zeros(2), one_pair(), torch.ones(1), **settings)


# Against a loop, and under every split and order


@dataclass(frozen=True, kw_only=True)
class Step:
    """Four groups; `log_ratios` [N] and `scores` [B] require gradient."""

    group_ids: Tensor
    ranks: Tensor
    branch_ids: Tensor
    loss_mask: Tensor
    log_ratios: Tensor
    scores: Tensor

    @property
    def num_branches(self) -> int:
        return len(self.group_ids)


GROUPS_WITH_PAIRS = 3


def make_step() -> Step:
    generator = torch.Generator().manual_seed(3)
    group_ids = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3, 3, 3, 3])
    lengths = torch.tensor([3, 1, 4, 2, 2, 5, 1, 2, 3, 4, 1])
    loss_mask = torch.rand(28, generator=generator) > 0.2
    log_ratios = torch.randn(28, generator=generator, dtype=torch.float64)
    return Step(
        group_ids=group_ids,
        ranks=torch.tensor([1, 0, 2, 0, 0, 4, 2, 0, 1, 1, 2]),  # group 1 has no pair, group 3 a tie
        branch_ids=torch.arange(11).repeat_interleave(lengths),
        loss_mask=loss_mask,
        log_ratios=torch.where(loss_mask, log_ratios, NAN).requires_grad_(),
        scores=torch.randn(11, generator=generator, dtype=torch.float64).requires_grad_(),
    )


def total(
    step: Step, branches: Sequence[int], *, normalise: bool = False, **settings: Any
) -> tuple[Tensor, losses.Metrics]:
    """A reward model's loss and DPO's over the chosen branches, in the order in which they are given."""
    chosen = torch.tensor(branches, dtype=torch.int64)
    pairs = ranked_pairs(step.group_ids[chosen], step.ranks[chosen])
    weights = pairs.shares / GROUPS_WITH_PAIRS
    margins = 0.1 * (step.ranks[chosen][pairs.losers] - step.ranks[chosen][pairs.winners]).double()
    tokens = torch.cat([torch.zeros(0, dtype=torch.int64), *((step.branch_ids == b).nonzero()[:, 0] for b in branches)])
    place = torch.zeros(step.num_branches, dtype=torch.int64)
    place[chosen] = torch.arange(len(branches))
    log_ratios = branch_sums(
        step.log_ratios[tokens],
        step.loss_mask[tokens],
        place[step.branch_ids[tokens]],
        len(branches),
        normalise=normalise,
    )
    scoring, scoring_metrics = preferences.bradley_terry_loss(step.scores[chosen], pairs, weights, margins)
    preferring, preferring_metrics = preferences.dpo_loss(log_ratios, pairs, weights, beta=BETA, **settings)
    return scoring + preferring, scoring_metrics | preferring_metrics


def gradients(loss: Tensor, step: Step) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, (step.log_ratios, step.scores), allow_unused=True, materialize_grads=True)


def loop(step: Step, normalise: bool, settings: dict[str, Any]) -> tuple[float, dict[str, float]]:
    """Both losses the slow way: one pair at a time, in Python floats."""
    values, mask, ids = step.log_ratios.tolist(), step.loss_mask.tolist(), step.branch_ids.tolist()
    groups, ranks, scores = step.group_ids.tolist(), step.ranks.tolist(), step.scores.tolist()
    ratio = []
    for branch in range(step.num_branches):
        trained = [value for value, inside, of in zip(values, mask, ids, strict=True) if inside and of == branch]
        ratio.append(sum(trained) / (max(len(trained), 1) if normalise else 1))
    loss, metrics = 0.0, dict.fromkeys(("rm right", "rm margin", "rm nll", "right", "margin", "chosen", "nll"), 0.0)
    for group in set(groups):
        members = [branch for branch in range(step.num_branches) if groups[branch] == group]
        pairs = [(a, b) for a in members for b in members if ranks[a] < ranks[b]]
        for better, worse in pairs:
            weight = 1 / len(pairs) / GROUPS_WITH_PAIRS
            gap, h = scores[better] - scores[worse], ratio[better] - ratio[worse]
            loss -= weight * log_sigmoid(gap - 0.1 * (ranks[worse] - ranks[better]))
            smoothing = settings.get("label_smoothing", 0.0)
            if settings.get("kind") == "ipo":
                loss += weight * (h - 1 / (2 * BETA)) ** 2
            else:
                loss -= weight * ((1 - smoothing) * log_sigmoid(BETA * h) + smoothing * log_sigmoid(-BETA * h))
            metrics["rm right"] += weight * (gap > 0)
            metrics["rm margin"] += weight * gap
            metrics["rm nll"] -= weight * log_sigmoid(gap)
            metrics["right"] += weight * (h > 0)
            metrics["margin"] += weight * BETA * h
            metrics["chosen"] += weight * BETA * ratio[better]
            metrics["nll"] -= weight * log_sigmoid(BETA * h)
    return loss, metrics


@pytest.mark.parametrize("settings", KINDS)
@pytest.mark.parametrize("normalise", [False, True])
def test_the_losses_are_what_a_loop_over_pairs_computes(settings: dict[str, Any], normalise: bool) -> None:
    step = make_step()
    loss, metrics = total(step, range(11), normalise=normalise, **settings)
    expected, expected_metrics = loop(step, normalise, settings)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    names = {
        "rm right": "reward_model/accuracy",
        "rm margin": "reward_model/margin",
        "rm nll": "reward_model/nll",
        "right": "dpo/accuracy",
        "margin": "dpo/margin",
        "chosen": "dpo/chosen_reward",
        "nll": "dpo/nll",
    }
    for short, name in names.items():
        assert metrics[name].item() == pytest.approx(expected_metrics[short], abs=1e-6), name


GROUPS = [[0, 1, 2], [3, 4], [5, 6], [7, 8, 9, 10]]


@pytest.mark.parametrize("settings", KINDS)
@pytest.mark.parametrize("parts", [[[3, 1, 0, 2]], [[2], [], [3, 0], [1]], [[0], [1], [2], [3]]])
def test_groups_in_any_order_and_split_add_up_to_the_whole(settings: dict[str, Any], parts: list[list[int]]) -> None:
    step = make_step()
    whole, whole_metrics = total(step, range(11), **settings)
    summed, summed_gradients = 0.0, [torch.zeros_like(step.log_ratios), torch.zeros_like(step.scores)]
    summed_metrics = dict.fromkeys(whole_metrics, 0.0)
    for part in parts:
        loss, metrics = total(step, [branch for group in part for branch in GROUPS[group]], **settings)
        summed += loss.item()
        summed_gradients = [a + b for a, b in zip(summed_gradients, gradients(loss, step), strict=True)]
        summed_metrics = {name: value + metrics[name].item() for name, value in summed_metrics.items()}
    assert summed == pytest.approx(whole.item(), abs=1e-6)
    for result, expected in zip(summed_gradients, gradients(whole, step), strict=True):
        assert_same(result, expected)
    assert summed_metrics == pytest.approx({name: value.item() for name, value in whole_metrics.items()}, abs=1e-6)


@pytest.mark.parametrize("strange", [NAN, math.inf])
def test_a_pair_of_weight_0_is_outside_of_everything(strange: float) -> None:
    pairs = Pairs(winners=torch.tensor([0, 2]), losers=torch.tensor([1, 3]), shares=torch.ones(2))
    weights = torch.tensor([1.0, 0.0])
    values = torch.tensor([1.2, 0.2, strange, strange], requires_grad=True)
    results = [
        preferences.bradley_terry_loss(values, pairs, weights, torch.tensor([0.1, strange])),
        *(preferences.dpo_loss(values, pairs, weights, beta=BETA, **settings) for settings in KINDS),
    ]
    for loss, metrics in results:
        assert loss.isfinite()
        assert all(value.isfinite() and not value.requires_grad and not value.dim() for value in metrics.values())
        gradient = torch.autograd.grad(loss, values)[0]
        assert gradient[2:].tolist() == [0, 0]
        assert gradient[0].item() == -gradient[1].item() != 0


def test_a_row_without_pairs_has_a_loss_of_zero_that_can_be_differentiated() -> None:
    # A rank that is short of a row runs one so that collectives stay in step; its backward must run.
    scores = torch.zeros(2, requires_grad=True)
    pairs = ranked_pairs(torch.tensor([0, 0]), torch.tensor([0, 0]))
    for loss, metrics in (
        preferences.bradley_terry_loss(scores, pairs, pairs.shares),
        preferences.dpo_loss(scores, pairs, pairs.shares, beta=0.1),
    ):
        assert torch.autograd.grad(loss, scores)[0].tolist() == [0, 0]
        assert all(value.item() == 0 for value in metrics.values())


# TRL computed the same (recorded/record_trl_preferences.py)

RECORDED = json.loads((Path(__file__).parent / "recorded" / "trl_preferences.json").read_text())
SAME_IN_TRL: dict[str, tuple[bool, dict[str, Any]]] = {
    "sigmoid": (False, {}),
    "sigmoid_norm": (True, {}),
    "ipo": (True, {"kind": "ipo"}),
    "cdpo": (False, {"label_smoothing": RECORDED["label_smoothing"]}),
}


def recorded_pairs() -> Pairs:
    """TRL has the three chosen answers first and then the rejected ones."""
    return ranked_pairs(torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0, 0, 0, 1, 1, 1]))


@pytest.mark.parametrize("name", SAME_IN_TRL)
def test_trl_computes_the_same_dpo_loss_gradient_and_metrics(name: str) -> None:
    normalise, settings = SAME_IN_TRL[name]
    logprobs = tensor(*RECORDED["logprobs"]).requires_grad_()
    branch_ids = torch.arange(6).repeat_interleave(torch.tensor(RECORDED["lengths"]))
    per_token = logprobs - tensor(*RECORDED["ref_logprobs"])
    log_ratios = branch_sums(per_token, torch.ones_like(branch_ids), branch_ids, 6, normalise=normalise)
    pairs = recorded_pairs()
    loss, metrics = preferences.dpo_loss(log_ratios, pairs, pairs.shares / 3, beta=RECORDED["beta"], **settings)
    recorded = RECORDED["dpo"][name]
    assert loss.item() == pytest.approx(recorded["loss"], abs=1e-6)
    assert_same(torch.autograd.grad(loss, logprobs)[0], tensor(*recorded["gradient"]))
    if name == "sigmoid":  # TRL's other rewards are of the sums too, whatever the loss is made of
        ours = {
            "rewards/accuracies": "dpo/accuracy",
            "rewards/margins": "dpo/margin",
            "rewards/chosen": "dpo/chosen_reward",
            "rewards/rejected": "dpo/rejected_reward",
        }
        for theirs, value in recorded["metrics"].items():
            assert metrics[ours[theirs]].item() == pytest.approx(value, abs=1e-6), theirs


@pytest.mark.parametrize("name", ["plain", "margin"])
def test_trl_computes_the_same_reward_model_loss_gradient_and_metrics(name: str) -> None:
    scores = tensor(*RECORDED["scores"]).requires_grad_()
    margins = tensor(*RECORDED["margins"]) if name == "margin" else None
    pairs = recorded_pairs()
    loss, metrics = preferences.bradley_terry_loss(scores, pairs, pairs.shares / 3, margins)
    recorded = RECORDED["reward_model"][name]
    assert loss.item() == pytest.approx(recorded["loss"], abs=1e-6)
    assert_same(torch.autograd.grad(loss, scores)[0], tensor(*recorded["gradient"]))
    for theirs, value in recorded["metrics"].items():
        assert metrics[f"reward_model/{theirs}"].item() == pytest.approx(value, abs=1e-6), theirs
