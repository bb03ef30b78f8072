"""Advantages: the numbers of shared/spec/mathematics.md 6.15, and what must not change them."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from troupe.algorithms import advantages

SCORES = torch.tensor([0.0, 1.0, 1.0, 4.0], dtype=torch.float64)
ONE_GROUP = torch.zeros(4, dtype=torch.int64)
GROUP_WISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grpo sample": lambda r, g: advantages.grpo(r, g, std="sample", epsilon=0),
    "grpo population": lambda r, g: advantages.grpo(r, g, std="population", epsilon=0),
    "dr_grpo": advantages.dr_grpo,
    "rloo": advantages.rloo,
}


def ragged_groups() -> tuple[Tensor, Tensor]:
    """Groups of 3, 2 and 5 branches with random scores, and one group of equal ones."""
    group_ids = torch.tensor([0] * 3 + [1] * 2 + [2] * 5 + [3] * 4)
    scores = torch.randn(14, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.where(group_ids == 3, 0.7, scores), group_ids


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # mean 1.5, squared deviations 2.25 + .25 + .25 + 6.25 = 9: population std sqrt(9 / 4) = 1.5, sample sqrt(9 / 3)
        ("grpo population", [-1, -1 / 3, -1 / 3, 5 / 3]),
        ("grpo sample", [-0.866025, -0.288675, -0.288675, 1.443376]),
        ("rloo", [-2, -2 / 3, -2 / 3, 10 / 3]),
        ("dr_grpo", [-1.5, -0.5, -0.5, 2.5]),
    ],
)
def test_the_numbers_of_the_specification(name: str, expected: list[float]) -> None:
    torch.testing.assert_close(GROUP_WISE[name](SCORES, ONE_GROUP), torch.tensor(expected).double(), atol=5e-7, rtol=0)


def test_epsilon_is_added_to_the_standard_deviation() -> None:
    # population std 1.5; -1.5 / (1.5 + 0.5) = -0.75
    assert advantages.grpo(SCORES, ONE_GROUP, std="population", epsilon=0.5)[0].item() == pytest.approx(-0.75)


@pytest.mark.parametrize("name", GROUP_WISE)
def test_a_group_is_judged_as_if_it_were_alone(name: str) -> None:
    scores, group_ids = ragged_groups()
    together = GROUP_WISE[name](scores, group_ids)
    for group in range(4):
        members = group_ids == group
        alone = GROUP_WISE[name](scores[members], torch.zeros(int(members.sum()), dtype=torch.int64))
        torch.testing.assert_close(together[members], alone)


@pytest.mark.parametrize("name", GROUP_WISE)
def test_the_order_of_the_branches_does_not_matter(name: str) -> None:
    scores, group_ids = ragged_groups()
    order = torch.randperm(14, generator=torch.Generator().manual_seed(2))
    shuffled = GROUP_WISE[name](scores[order], group_ids[order])
    torch.testing.assert_close(shuffled, GROUP_WISE[name](scores, group_ids)[order])


def test_grpo_agrees_with_the_statistics_module() -> None:
    scores, group_ids = ragged_groups()
    deviations: dict[advantages.Std, Callable[[list[float]], float]] = {
        "sample": statistics.stdev,
        "population": statistics.pstdev,
    }
    for std, deviation in deviations.items():
        result = advantages.grpo(scores, group_ids, std=std, epsilon=1e-4)
        for score, group, value in zip(scores.tolist(), group_ids.tolist(), result.tolist(), strict=True):
            members = scores[group_ids == group].tolist()
            expected = (score - statistics.fmean(members)) / (deviation(members) + 1e-4)
            assert value == pytest.approx(expected, abs=1e-9)


def test_rloo_subtracts_the_mean_of_the_others() -> None:
    scores, group_ids = ragged_groups()
    result = advantages.rloo(scores, group_ids)
    for i in range(14):
        others = [scores[j].item() for j in range(14) if j != i and group_ids[j] == group_ids[i]]
        assert result[i].item() == pytest.approx(scores[i].item() - statistics.fmean(others), abs=1e-12)


def test_dr_grpo_is_rloo_times_one_minus_one_over_the_group_size() -> None:
    scores, group_ids = ragged_groups()
    size = torch.bincount(group_ids)[group_ids]
    expected = advantages.rloo(scores, group_ids) * (size - 1) / size
    torch.testing.assert_close(advantages.dr_grpo(scores, group_ids), expected)


def test_reinforce_subtracts_the_mean_of_the_batch_and_takes_groups_of_one() -> None:
    torch.testing.assert_close(advantages.reinforce(SCORES), torch.tensor([-1.5, -0.5, -0.5, 2.5]).double())
    assert advantages.reinforce(torch.tensor([3.0])).tolist() == [0.0]


EQUAL = {
    "same": [0.3, 0.3, 0.3],
    "rounding": [0.1 + 0.2, 0.3, 0.3],
    "cancellation": [0.1 + 0.2 - 0.3, 0.0, 0.0],
    "large": [1e6 / 3, 1e6 * (1 / 3), 1e6 - 2e6 / 3],
    "zeros": [0.0, -0.0, 0.0],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scores", EQUAL.values(), ids=EQUAL)
@pytest.mark.parametrize("name", GROUP_WISE)
def test_equal_scores_give_exactly_zero_even_without_epsilon(
    name: str, scores: list[float], dtype: torch.dtype
) -> None:
    tensor, group_ids = torch.tensor(scores, dtype=dtype), torch.zeros(3, dtype=torch.int64)
    assert GROUP_WISE[name](tensor, group_ids).tolist() == [0.0, 0.0, 0.0]
    assert advantages.has_signal(tensor, group_ids).tolist() == [False]


def test_one_ulp_between_large_float32_scores_is_no_signal() -> None:
    score = torch.tensor(1000.1)
    scores = torch.stack([score, torch.nextafter(score, torch.tensor(2000.0))])
    assert advantages.has_signal(scores, torch.zeros(2, dtype=torch.int64)).tolist() == [False]


def test_small_differences_that_someone_meant_are_signal() -> None:
    # A length reward of weight 0.001 on answers of 100 and 101 tokens out of 400 beside a correct answer's 1.0.
    scores = torch.tensor([1 - 0.001 * 100 / 400, 1 - 0.001 * 101 / 400])
    assert advantages.has_signal(scores, torch.zeros(2, dtype=torch.int64)).tolist() == [True]


def test_has_signal_speaks_for_each_group() -> None:
    assert advantages.has_signal(*ragged_groups()).tolist() == [True, True, True, False]
    assert advantages.has_signal(torch.zeros(0), torch.zeros(0, dtype=torch.int64)).tolist() == []


@pytest.mark.parametrize("name", GROUP_WISE)
def test_a_group_of_one_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"group 1 has only one \(1 such groups\)"):
        GROUP_WISE[name](torch.tensor([0.0, 1.0, 1.0]), torch.tensor([0, 0, 1]))


def test_a_missing_score_is_refused() -> None:
    with pytest.raises(ValueError, match="score of branch 2 is NaN"):
        advantages.rloo(torch.tensor([0.0, 1.0, float("nan")]), torch.zeros(3, dtype=torch.int64))


def test_every_token_gets_the_value_of_its_branch() -> None:
    assert advantages.to_tokens(torch.tensor([5.0, 7.0]), torch.tensor([0, 0, 1])).tolist() == [5, 5, 7]
