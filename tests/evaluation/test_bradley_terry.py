"""Bradley-Terry strengths against numbers derived by hand, and what must not change them."""

from __future__ import annotations

import itertools
import math
import random

import numpy
import pytest

from troupe.evaluation.bradley_terry import Duel, fit, strengths


def duels(first: str, second: str, values: list[float], *, start: int = 0) -> list[Duel]:
    return [
        Duel(prompt=f"p/{start + index}", first=first, second=second, value=value) for index, value in enumerate(values)
    ]


def test_of_two_models_the_strength_is_the_share_of_wins() -> None:
    """The likelihood p^7 (1 - p)^3 is largest at p = 7/10."""
    found = strengths(duels("rl", "base", [1.0] * 7 + [0.0] * 3))
    assert found.strengths["rl"].mean == pytest.approx(0.7)
    assert found.preferences["rl", "base"].mean == pytest.approx(0.7)
    assert found.preferences["base", "rl"].mean == pytest.approx(0.3)
    assert found.preferences["rl", "base"].low < 0.7 < found.preferences["rl", "base"].high
    assert not found.separated


def test_a_tie_is_half_a_win_for_each_or_left_out() -> None:
    judged = duels("a", "b", [1.0] * 3 + [0.0] + [0.5] * 2)
    assert strengths(judged).preferences["a", "b"].mean == pytest.approx((3 + 1) / 6)
    assert strengths(judged, ties="drop").preferences["a", "b"].mean == pytest.approx(3 / 4)


def test_how_sure_the_judge_was_does_not_count_and_a_contradiction_is_a_tie() -> None:
    sure, unsure = duels("a", "b", [1.0, 1.0, 0.0, 0.5]), duels("a", "b", [0.75, 1.0, 0.25, 0.5])
    assert strengths(unsure).strengths == strengths(sure).strengths


def test_of_three_models_odds_multiply() -> None:
    """Wins that agree with strengths 6 : 3 : 1 in every pair are fitted exactly."""
    wins = numpy.array([[0.0, 60.0, 60.0], [30.0, 0.0, 75.0], [10.0, 25.0, 0.0]])
    # a:b = 60:30, a:c = 60:10, b:c = 75:25, each the odds of 6 : 3 : 1
    assert fit(wins) == pytest.approx(numpy.array([0.6, 0.3, 0.1]), abs=1e-8)


def test_at_the_maximum_everybody_has_won_as_often_as_expected() -> None:
    """The derivative of the likelihood is zero: wins_i = sum_j n_ij s_i / (s_i + s_j)."""
    wins = numpy.random.default_rng(1).integers(1, 9, (5, 5)).astype(float)
    numpy.fill_diagonal(wins, 0)
    s, played = fit(wins), wins + wins.T
    expected = (played * s[:, None] / (s[:, None] + s[None, :])).sum(axis=1)
    assert expected == pytest.approx(wins.sum(axis=1), rel=1e-6)


def test_who_wins_everything_gets_a_bounded_strength() -> None:
    found = strengths(duels("rl", "base", [1.0] * 10))
    assert found.separated
    assert found.preferences["rl", "base"].mean == pytest.approx(10.5 / 11)
    assert found.preferences["rl", "base"].high == pytest.approx(10.5 / 11)


def test_more_wins_are_never_a_lower_strength_also_across_the_border_of_the_prior() -> None:
    shares = [float(fit(numpy.array([[0.0, wins], [8.0 - wins, 0.0]]))[0]) for wins in range(9)]
    assert shares == sorted(shares)
    assert all(0 < share < 1 for share in shares)


def test_models_that_were_never_compared_have_finite_strengths() -> None:
    found = strengths(duels("a", "b", [1.0, 0.0]) + duels("c", "d", [1.0, 0.0]))
    assert found.separated
    assert all(math.isfinite(one.mean) and one.mean > 0 for one in found.strengths.values())
    assert found.preferences["a", "c"].mean == pytest.approx(0.5)


def test_neither_the_order_of_models_nor_of_judgements_nor_which_side_is_named_first_matters() -> None:
    rng = random.Random(3)
    judged = [
        Duel(prompt=f"p/{prompt}", first=first, second=second, value=rng.choice([0.0, 0.5, 1.0, 1.0]))
        for prompt in range(20)
        for first, second in itertools.combinations("abc", 2)
    ]
    expected = strengths(judged)
    turned = [
        Duel(prompt=one.prompt, first=one.second, second=one.first, value=1 - one.value)
        for one in rng.sample(judged, len(judged))
    ]
    found = strengths(turned)
    for pair, estimate in expected.preferences.items():
        other = found.preferences[pair]
        assert (other.mean, other.low, other.high) == pytest.approx((estimate.mean, estimate.low, estimate.high))


def test_no_comparisons_and_a_model_against_itself_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one comparison"):
        strengths([])
    with pytest.raises(ValueError, match="a is compared with itself on p/0"):
        strengths(duels("a", "a", [1.0]))
