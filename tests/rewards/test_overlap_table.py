"""The ROUGE table of one answer, counted by hand, and that it agrees with the reward of the same name."""

from __future__ import annotations

import pytest

from tests.rewards.conftest import branch
from troupe.records import Sample
from troupe.rewards.overlap import VARIANTS, rouge, rouge_table

GOLD = Sample(sample_id="s", prompt="?", gold="the cat sat on the mat")
ANSWER = branch("the cat sat")
# Words: 3 of 3 are in the gold's 6, so P 1, R 1/2, F1 2/3; pairs: 2 of 2 in the gold's 5, so P 1, R 2/5, F1 4/7; order
# as words.


def test_three_variants_with_recall_and_precision_and_the_mean_of_the_f1() -> None:
    score = rouge_table(GOLD, ANSWER)
    assert {name: pytest.approx(value) for name, value in score.parts.items()} == {
        "rouge1": 2 / 3,
        "rouge1_recall": 1 / 2,
        "rouge1_precision": 1.0,
        "rouge2": 4 / 7,
        "rouge2_recall": 2 / 5,
        "rouge2_precision": 1.0,
        "rougeL": 2 / 3,
        "rougeL_recall": 1 / 2,
        "rougeL_precision": 1.0,
    }
    assert score.value == pytest.approx((2 / 3 + 4 / 7 + 2 / 3) / 3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_agrees_with_the_reward_where_that_one_does_not_stem(variant: str) -> None:
    answer = branch("a cat sat on mats")
    alone = rouge(GOLD, answer, variant=variant, use_stemmer=False)  # type: ignore[arg-type]
    assert rouge_table(GOLD, answer).parts[variant] == pytest.approx(alone)
    assert rouge_table(GOLD, answer, use_stemmer=True).parts[variant] == pytest.approx(
        rouge(GOLD, answer, variant=variant)  # type: ignore[arg-type]
    )


def test_a_truncated_answer_counts_as_it_stands_and_an_empty_one_is_0() -> None:
    assert rouge_table(GOLD, branch("the cat sat", finish_reason="length")) == rouge_table(GOLD, ANSWER)
    assert rouge_table(GOLD, branch("")).value == 0.0


def test_a_sample_without_gold_is_a_bug() -> None:
    with pytest.raises(ValueError, match="no gold text"):
        rouge_table(Sample(sample_id="s", prompt="?"), ANSWER)
