"""Calibration: pairs by confidence, and how far confidence is from being right."""

from __future__ import annotations

import math

import pytest

from troupe.evaluation.calibration import Calibration


def margin(confidence: float) -> float:
    """The score difference of which the sigmoid is this."""
    return math.log(confidence / (1 - confidence))


def test_a_model_that_is_right_as_often_as_it_is_sure_has_no_error() -> None:
    # Sure of 0.8 in five pairs, right in four of them.
    result = Calibration.of([margin(0.8001)] * 4 + [-margin(0.8001)])
    (only,) = result.bins
    assert (only["low"], only["high"], only["count"]) == (pytest.approx(0.8), pytest.approx(0.85), 5)
    assert (only["confidence"], only["accuracy"]) == (pytest.approx(0.8001), 0.8)
    assert result.error == pytest.approx(0.0001)


def test_the_error_is_the_gap_of_every_bin_weighted_by_its_pairs() -> None:
    # 3 pairs at 0.62, 2 of them right: gap |2/3 - 0.62|. 1 pair at 0.97, wrong: gap 0.97.
    result = Calibration.of([margin(0.62), margin(0.62), -margin(0.62), -margin(0.97)])
    assert [one["count"] for one in result.bins] == [3, 1]
    assert result.error == pytest.approx((3 * (2 / 3 - 0.62) + 1 * 0.97) / 4)


def test_equal_scores_are_a_coin_toss_and_right_one_half() -> None:
    (only,) = Calibration.of([0.0, 0.0]).bins
    assert (only["confidence"], only["accuracy"]) == (0.5, 0.5)


@pytest.mark.parametrize("huge", [40.0, 800.0, 1e30])
def test_a_margin_of_any_size_is_in_the_last_bin(huge: float) -> None:
    result = Calibration.of([huge, -huge])
    assert [one["count"] for one in result.bins] == [2]
    # Fully sure, right in one of two.
    assert result.error == pytest.approx(0.5)


def test_every_pair_is_in_exactly_one_bin() -> None:
    margins = [index / 50 for index in range(-300, 300)]
    assert sum(one["count"] for one in Calibration.of(margins).bins) == len(margins)


def test_without_pairs_there_is_no_error() -> None:
    assert Calibration.of([]) == Calibration(bins=[], error=0.0)
