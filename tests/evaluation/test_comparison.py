"""Wins, ties, losses and what goes with them, on four pairs that can be counted by hand."""

from __future__ import annotations

import pytest

from troupe.evaluation.comparison import Comparison, compare, outcome

REWARDS = [1.0, 0.55, 0.5, -2.0]
REFERENCES = [0.0, 0.50, 0.55, 1.0]
# Differences +1, +0.05, -0.05, -3: with margin 0.1 a win, a tie, a tie, a loss; without it two wins and two losses.


def compared(margin: float = 0.1, *, swapped: bool = False) -> Comparison:
    sides = (REFERENCES, REWARDS) if swapped else (REWARDS, REFERENCES)
    return compare(*sides, words=[4, 4, 4, 0], reference_words=[2, 2, 2, 2], tie_margin=margin)


def test_shares_add_up_to_one_and_the_margin_holds_in_both_directions() -> None:
    found = compared()
    assert [found.win_share.mean, found.tie_share.mean, found.loss_share.mean] == [0.25, 0.5, 0.25]
    assert found.samples == 4


def test_the_plain_win_rate_knows_no_margin_and_the_other_counts_ties_half() -> None:
    found = compared()
    assert found.win_rate.mean == 0.5  # +1 and +0.05
    assert found.win_rate_ties_half.mean == 0.5  # (1 + 2/2) / 4


def test_rewards_and_their_improvement() -> None:
    found = compared()
    # (1 + 0.55 + 0.5 - 2) / 4 = 0.0125; (0 + 0.5 + 0.55 + 1) / 4 = 0.5125.
    assert found.average_reward.mean == pytest.approx(0.0125)
    assert found.average_reference_reward.mean == pytest.approx(0.5125)
    assert found.reward_improvement.mean == pytest.approx(-0.5)
    assert found.reward_improvement.low <= -0.5 <= found.reward_improvement.high


def test_the_length_ratio_is_of_mean_words() -> None:
    assert compared().length_ratio is not None
    assert compared().length_ratio.mean == 1.5  # type: ignore[union-attr]  # 12 words against 8
    silent = compare([1.0], [0.0], words=[3], reference_words=[0], tie_margin=0)
    assert silent.length_ratio is None
    assert "length_ratio" not in silent.as_dict()


def test_swapping_the_two_swaps_wins_and_losses() -> None:
    found, swapped = compared(), compared(swapped=True)
    assert swapped.win_share.mean == found.loss_share.mean
    assert swapped.tie_share == found.tie_share
    assert swapped.reward_improvement.mean == pytest.approx(-found.reward_improvement.mean)


def test_answers_that_are_judged_equal_are_all_ties_whatever_the_margin() -> None:
    for margin in (0.0, 0.1):
        found = compare(REWARDS, REWARDS, words=[1] * 4, reference_words=[1] * 4, tie_margin=margin)
        assert (found.tie_share.mean, found.win_rate.mean, found.win_rate_ties_half.mean) == (1.0, 0.0, 0.5)
        assert found.reward_improvement.low == found.reward_improvement.high == 0.0


def test_without_a_margin_the_smallest_difference_decides() -> None:
    assert outcome(1.0, 1.0 - 1e-9, 0.0) == "win"
    assert outcome(1.0 - 1e-9, 1.0, 0.0) == "loss"


def test_a_difference_of_exactly_the_margin_decides() -> None:
    assert outcome(0.75, 0.5, 0.25) == "win"
    assert outcome(0.5, 0.75, 0.25) == "loss"


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        compare([1.0, 2.0], [1.0], words=[1, 1], reference_words=[1, 1], tie_margin=0.1)
