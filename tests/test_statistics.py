"""Bootstrap intervals: what they must contain, what pairing does to them, and that a seed fixes them."""

from __future__ import annotations

import math
import random

import pytest

from troupe import statistics
from troupe.statistics import estimate_difference, estimate_mean, estimate_ratio

RNG = random.Random(3)
NOISY = [RNG.gauss(5, 2) for _ in range(200)]


def test_equal_values_have_no_uncertainty() -> None:
    estimate = estimate_mean([0.5] * 40)
    assert (estimate.mean, estimate.low, estimate.high) == (0.5, 0.5, 0.5)


def test_the_interval_of_a_share_is_that_of_the_normal_approximation() -> None:
    # 50 of 100: the standard error is sqrt(0.5 * 0.5 / 100) = 0.05, the interval 0.5 -+ 1.96 * 0.05 = 0.402 .. 0.598.
    # A bound of 1000 resamples is itself uncertain by about 0.005.
    estimate = estimate_mean([1.0] * 50 + [0.0] * 50)
    assert estimate.mean == 0.5
    assert estimate.low == pytest.approx(0.402, abs=0.02)
    assert estimate.high == pytest.approx(0.598, abs=0.02)


def test_an_interval_excludes_what_lies_outside_of_it() -> None:
    estimate = estimate_mean([1.0] * 50 + [0.0] * 50)
    assert estimate.excludes(0.2)
    assert not estimate.excludes(0.5)


def test_a_seed_gives_the_same_interval_and_another_seed_another() -> None:
    assert estimate_mean(NOISY, seed=1) == estimate_mean(NOISY, seed=1)
    assert estimate_mean(NOISY, seed=1) != estimate_mean(NOISY, seed=2)


def test_the_same_rows_are_drawn_however_many_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = estimate_mean(NOISY)
    monkeypatch.setattr(statistics, "CHUNK", 7 * len(NOISY))  # 1000 resamples in parts of 7
    # Up to the last digit, in which sums of another shape may differ.
    parts = estimate_mean(NOISY)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), rel=1e-12)


def test_a_wider_confidence_contains_a_narrower_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "CONFIDENCE", 0.5)
    inner = estimate_mean(NOISY)
    monkeypatch.setattr(statistics, "CONFIDENCE", 0.99)
    outer = estimate_mean(NOISY)
    assert outer.low < inner.low < inner.high < outer.high


def test_a_difference_is_paired_so_what_both_share_does_not_widen_it() -> None:
    # Each value is its partner's plus 0.1: whatever is drawn, the difference is 0.1, though both vary by 2.
    estimate = estimate_difference([value + 0.1 for value in NOISY], NOISY)
    assert estimate.mean == pytest.approx(0.1)
    assert estimate.low == pytest.approx(0.1)
    assert estimate.high == pytest.approx(0.1)
    assert estimate_mean(NOISY).high - estimate_mean(NOISY).low > 0.4  # about 2 * 1.96 * 2 / sqrt(200) = 0.55


def test_swapping_the_two_sides_of_a_difference_turns_its_interval_around() -> None:
    others = [value * 1.1 for value in reversed(NOISY)]
    forward, backward = estimate_difference(NOISY, others), estimate_difference(others, NOISY)
    assert forward.mean == pytest.approx(-backward.mean)
    assert forward.low == pytest.approx(-backward.high)
    assert forward.high == pytest.approx(-backward.low)


def test_a_ratio_is_of_the_means_not_the_mean_of_ratios() -> None:
    # (2 + 10) / (4 + 2) = 2, where the mean of 2/4 and 10/2 would be 2.75.
    assert estimate_ratio([2, 10], [4, 2]).mean == 2.0
    twice = estimate_ratio([2 * value for value in NOISY], NOISY)
    assert (twice.low, twice.high) == (pytest.approx(2), pytest.approx(2))


def test_a_ratio_to_nothing_is_infinite() -> None:
    assert math.isinf(estimate_ratio([1, 2], [0, 0]).mean)


def test_one_value_is_its_own_interval_and_none_has_none() -> None:
    estimate = estimate_mean([3.0])
    assert (estimate.low, estimate.high) == (3.0, 3.0)
    with pytest.raises(ValueError, match="at least one value"):
        estimate_mean([])
