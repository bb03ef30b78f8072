"""Means of several answers to a sample, and of samples that lack a value: counted by hand."""

from __future__ import annotations

import math

import pytest

from troupe.evaluation.estimates import estimate_columns, means_by_sample
from troupe.evaluation.scores import AnswerRow, estimate_metrics, lengths
from troupe.records import Branch


def test_several_answers_to_a_sample_count_as_their_mean() -> None:
    table = means_by_sample(["s/1", "s/2", "s/1"], [{"x": 1.0}, {"x": 5.0}, {"x": 4.0}])
    assert list(table.index) == ["s/1", "s/2"]
    assert list(table["x"]) == [2.5, 5.0]
    # (2.5 + 5) / 2, and not the mean of the three answers.
    assert estimate_columns(table, seed=0)["x"].mean == 3.75


def test_a_value_that_an_answer_lacks_is_left_out_and_not_0() -> None:
    table = means_by_sample(["a", "a", "b"], [{"x": 2.0, "y": None}, {"x": None}, {"y": 6.0}])
    assert table.loc["a", "x"] == 2.0
    assert math.isnan(table.loc["a", "y"])
    found = estimate_columns(table, seed=0)
    assert {name: one.mean for name, one in found.items()} == {"x": 2.0, "y": 6.0}


def test_a_metric_that_nobody_has_is_no_column_of_the_result() -> None:
    table = means_by_sample(["a", "b"], [{"x": None}, {"x": None}])
    assert estimate_columns(table, seed=0) == {}
    assert estimate_columns(means_by_sample([], []), seed=0) == {}


@pytest.mark.parametrize("ids", [["s\ud83d", "s\ude00"], ["1", "01"], ["", " "]])
def test_samples_are_told_apart_by_their_ids_as_they_are(ids: list[str]) -> None:
    table = means_by_sample(ids, [{"x": 1.0}, {"x": 3.0}])
    assert list(table["x"]) == [1.0, 3.0]


def test_an_interval_holds_the_mean_lies_within_the_values_and_follows_the_seed() -> None:
    ids, values = [str(n) for n in range(30)], [{"x": float(n % 7)} for n in range(30)]
    one = estimate_columns(means_by_sample(ids, values), seed=1)["x"]
    assert 0 <= one.low <= one.mean <= one.high <= 6
    assert estimate_columns(means_by_sample(ids, values), seed=1)["x"] == one
    assert estimate_columns(means_by_sample(ids, values), seed=2)["x"] != one
    (alone,) = estimate_columns(means_by_sample(["a"], [{"x": 2.0}]), seed=0).values()
    assert (alone.low, alone.mean, alone.high) == (2.0, 2.0, 2.0)


# -- rows of answers ---------------------------------------------------------------------------------------------------


def row(
    sample: str, repeat: int = 0, own: float | None = None, other: float | None = None, **metrics: float
) -> AnswerRow:
    return AnswerRow(
        sample_id=sample,
        prompt="?",
        reference=None,
        prediction="!",
        finish_reason="stop",
        repeat=repeat,
        score_prediction=own,
        score_reference=other,
        metrics=metrics,
    )


def test_repeats_are_averaged_before_the_difference_to_the_references_is_taken() -> None:
    rows = [
        row("a", 0, 1.0, 2.0),
        row("a", 1, 5.0, 2.0),
        row("b", 0, 0.0, 1.0),
        row("b", 1, 0.0, 1.0),
        row("c", 0, 9.0),
    ]
    found = estimate_metrics(rows, seed=0)
    assert found["reward"].mean == (3 + 0 + 9) / 3
    assert found["reward_reference"].mean == (2 + 1) / 2
    assert found["reward_difference"].mean == ((3 - 2) + (0 - 1)) / 2  # c has no reference


def test_without_a_reward_model_there_is_no_reward() -> None:
    assert estimate_metrics([row("a", accuracy=1.0), row("b", accuracy=0.0)], seed=0).keys() == {"accuracy"}


@pytest.mark.parametrize(
    ("branch", "found"),
    [
        (
            Branch(token_ids=[1, 2, 3], text="two words"),
            {"response_words": 2, "truncated_fraction": 0, "response_tokens": 3},
        ),
        (
            Branch(token_ids=[1], text="", finish_reason="length"),
            {"response_words": 0, "truncated_fraction": 1, "response_tokens": 1},
        ),
        # A game: tokens of the environment are not the model's.
        (
            Branch(token_ids=[1, 2, 3, 4], text="a", loss_mask=[True, False, False, True]),
            {"response_words": 1, "truncated_fraction": 0, "response_tokens": 2},
        ),
        # An endpoint's answer has no tokens, one of answers.jsonl does not say how it ended either.
        (Branch(token_ids=(), text=" a  b\nc "), {"response_words": 3, "truncated_fraction": 0}),
        (Branch(token_ids=(), text="a", finish_reason="unknown"), {"response_words": 1}),
    ],
)
def test_lengths_are_those_that_are_known(branch: Branch, found: dict[str, float]) -> None:
    assert lengths(branch) == found
