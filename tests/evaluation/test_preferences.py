"""Pairs of answers under a judge: who meets whom, what an empty answer is worth, and rates counted by hand."""

from __future__ import annotations

from typing import Any

import pytest

from troupe.config.evaluation import PreferencesConfig
from troupe.config.rollout import RewardConfig
from troupe.errors import RewardError
from troupe.evaluation.bradley_terry import Duel
from troupe.evaluation.preferences import Preferences, compare_pairs, preference_tables, summarize
from troupe.records import Branch, Sample, Score
from troupe.rewards.build import build_rewards

SAMPLES = [
    Sample(sample_id="s/1", prompt="?", fields={"genre": "tale"}),
    Sample(sample_id="s/2", prompt="?", fields={"genre": "poem"}),
    Sample(sample_id="s/3", prompt="?"),
]


def longer(sample: Sample, branch: Branch) -> float | Score:
    """A judge that likes long answers, says nothing of `silent` and something impossible of `broken`."""
    other = str(sample.fields["against"])
    if branch.text == "silent":
        return Score(value=None)
    if branch.text == "broken":
        return 1.5
    return 0.5 if len(branch.text) == len(other) else float(len(branch.text) > len(other))


def compared(answers: dict[str, list[str | None]], **given: Any) -> Preferences:
    """The texts of each model by sample; None where it has no answer."""
    judge = RewardConfig(fn="tests.evaluation.test_preferences:longer")
    settings = PreferencesConfig(**{"judge": judge, "dimensions": {"length": "x"}, "genre_field": "genre", **given})
    branches = {
        name: {
            sample.sample_id: Branch(token_ids=(), text=text)
            for sample, text in zip(SAMPLES, texts, strict=True)
            if text is not None
        }
        for name, texts in answers.items()
    }
    return compare_pairs(settings, SAMPLES, branches, build_rewards(settings.judges()), max_concurrency=2, seed=0)


def test_every_pair_meets_once_on_each_sample_that_both_answered() -> None:
    found = compared({"a": ["xx", "x", "x"], "b": ["x", "x", None], "c": ["x", "xxx", "xx"]})
    met = [(line["first"], line["second"], line["sample_id"], line["length"]) for line in found.lines]
    assert met == [
        ("a", "b", "s/1", 1.0),
        ("a", "b", "s/2", 0.5),
        ("a", "c", "s/1", 1.0),
        ("a", "c", "s/2", 0.0),
        ("a", "c", "s/3", 0.0),
        ("b", "c", "s/1", 0.5),
        ("b", "c", "s/2", 0.0),
    ]
    assert found.missing == 0
    pairs = found.results["length"]["pairs"]
    assert (pairs["a over b"]["win_rate"]["mean"], pairs["b over a"]["win_rate"]["mean"]) == (0.5, 0.0)
    assert (pairs["a over b"]["tie_rate"]["mean"], pairs["b over a"]["loss_rate"]["mean"]) == (0.5, 0.5)
    assert pairs["a over c"]["samples"] == 3


def test_only_the_first_samples_are_compared_where_a_number_is_given() -> None:
    found = compared({"a": ["x", "x", "x"], "b": ["x", "x", "x"]}, num_samples=2)
    assert [line["sample_id"] for line in found.lines] == ["s/1", "s/2"]


def test_an_empty_answer_loses_unasked_and_two_are_as_good() -> None:
    # The judge would say nothing of `silent`, and is not asked where the other answer is empty.
    found = compared({"a": ["silent", " ", "x"], "b": ["", "\n", ""]})
    assert [line["length"] for line in found.lines] == [1.0, 0.5, 1.0]
    assert found.missing == 0


def test_a_judgement_that_is_missing_is_counted_and_left_out() -> None:
    found = compared({"a": ["silent", "xx", "silent"], "b": ["x", "x", "x"]})
    assert found.missing == 2
    assert ["length" in line for line in found.lines] == [False, True, False]
    assert found.results["length"]["judgements"] == 1
    nothing = compared({"a": ["silent"] * 3, "b": ["x"] * 3})
    assert nothing.results == {"length": {"judgements": 0}}
    assert preference_tables(nothing.results) == []


def test_a_judge_that_says_no_comparison_is_named_with_the_sample() -> None:
    with pytest.raises(RewardError, match=r"said 1\.5 of length on sample s/2; a comparison is 1 \(better\), 0\.5"):
        compared({"a": ["x", "broken", "x"], "b": ["x", "x", "x"]})


def test_rates_are_split_by_genre_where_a_sample_has_one() -> None:
    found = compared({"a": ["xx", "x", "xx"], "b": ["x", "xx", "x"]})
    pair = found.results["length"]["pairs"]["a over b"]
    assert {genre: one["win_rate"]["mean"] for genre, one in pair["genres"].items()} == {"tale": 1.0, "poem": 0.0}
    assert {genre: one["samples"] for genre, one in pair["genres"].items()} == {"tale": 1, "poem": 1}
    titles = [table.title for table in preference_tables(found.results)]
    assert titles[-1] == "Win rate by genre: length"
    plain = compared({"a": ["xx", "x", "xx"], "b": ["x", "xx", "x"]}, genre_field=None)
    assert plain.results["length"]["pairs"]["a over b"]["genres"] == {}
    assert len(preference_tables(plain.results)) == 3


def test_dimensions_are_judged_each_and_are_columns_of_the_tables() -> None:
    found = compared({"a": ["xx", "x", "xx"], "b": ["x", "xx", "x"]}, dimensions={"one": "x", "two": "y"})
    assert [(line["one"], line["two"]) for line in found.lines] == [(1.0, 1.0), (0.0, 0.0), (1.0, 1.0)]
    strengths, preferences, rates, *_ = preference_tables(found.results)
    assert strengths.columns == ["one", "two"]
    assert list(strengths.rows) == ["a", "b"]
    # 2 wins of 3: the strength of a is 2/3, and so is the probability that it is preferred.
    assert strengths.rows["a"][0].startswith("0.667")
    assert preferences.rows["a over b"][1].startswith("0.667")
    assert rates.rows["b over a"][0].startswith("0.333")


def duel(prompt: str, value: float, first: str = "a", second: str = "b") -> Duel:
    return Duel(prompt=prompt, first=first, second=second, value=value)


def test_it_does_not_matter_which_side_of_a_duel_is_named_first() -> None:
    duels = [duel("p1", 1.0), duel("p2", 0.0), duel("p3", 0.5), duel("p4", 1.0)]
    turned = [duel(one.prompt, 1 - one.value, first="b", second="a") for one in duels]
    genres = {"p1": "tale", "p4": "tale"}
    assert summarize(duels, genres=genres, ties="half", seed=3) == summarize(turned, genres=genres, ties="half", seed=3)


def test_a_sure_judge_and_an_unsure_one_count_alike() -> None:
    sure, unsure = [duel("p1", 1.0), duel("p2", 0.0)], [duel("p1", 0.6), duel("p2", 0.1)]
    assert summarize(sure, genres={}, ties="half", seed=0) == summarize(unsure, genres={}, ties="half", seed=0)


def test_ties_that_are_dropped_move_the_strength_and_not_the_rates() -> None:
    duels = [duel("p1", 1.0), duel("p2", 1.0), duel("p3", 0.0), duel("p4", 0.5)]
    half, drop = (summarize(duels, genres={}, ties=ties, seed=0) for ties in ("half", "drop"))
    assert half["strengths"]["a"]["mean"] == pytest.approx(2.5 / 4)
    assert drop["strengths"]["a"]["mean"] == pytest.approx(2 / 3)
    assert half["pairs"]["a over b"]["win_rate"] == drop["pairs"]["a over b"]["win_rate"]
