import pytest

from tests.rewards.conftest import branch
from troupe.records import Sample
from troupe.rewards.overlap import rouge

GOLD = Sample(sample_id="s", prompt="?", gold="the cat sat on the mat")
ANSWER = branch("the cat lay on a mat")
# Words in common: the, cat, on, mat = 4 of 6 on both sides, in the same order. Pairs in common: "the cat" = 1 of 5.


@pytest.mark.parametrize(("variant", "expected"), [("rouge1", 4 / 6), ("rouge2", 1 / 5), ("rougeL", 4 / 6)])
def test_the_variants_count_words_pairs_and_the_longest_common_order(variant: str, expected: float) -> None:
    assert rouge(GOLD, ANSWER, variant=variant) == pytest.approx(expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(("statistic", "expected"), [("precision", 1.0), ("recall", 2 / 6), ("f1", 0.5)])
def test_the_statistics_of_a_short_answer(statistic: str, expected: float) -> None:
    # 2 of its 2 words, 2 of the gold's 6; f1 = 2 * 1 * (1/3) / (1 + 1/3) = 1/2.
    assert rouge(GOLD, branch("the cat"), statistic=statistic) == pytest.approx(expected)  # type: ignore[arg-type]


def test_rouge_l_is_about_order() -> None:
    # Backwards, no two words keep their order: the longest common subsequence is one word of four.
    gold, backwards = Sample(sample_id="s", prompt="?", gold="north east south west"), branch("west south east north")
    assert rouge(gold, backwards, variant="rouge1") == 1.0
    assert rouge(gold, backwards) == 1 / 4


def test_the_stemmer_joins_word_forms() -> None:
    gold = Sample(sample_id="s", prompt="?", gold="returns values")
    assert rouge(gold, branch("return value")) == 1.0
    assert rouge(gold, branch("return value"), use_stemmer=False) == 0.0


def test_a_truncated_answer_earns_nothing_unless_asked() -> None:
    truncated = branch("the cat sat", finish_reason="length")
    assert rouge(GOLD, truncated) == 0.0
    assert rouge(GOLD, truncated, zero_if_truncated=False) > 0.5


def test_an_answer_of_too_many_tokens_earns_nothing() -> None:
    assert rouge(GOLD, branch(GOLD.gold or ""), max_tokens=6) == 1.0
    assert rouge(GOLD, branch(GOLD.gold or ""), max_tokens=5) == 0.0


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_answer_earns_nothing(text: str) -> None:
    assert rouge(GOLD, branch(text)) == 0.0


def test_a_sample_without_gold_is_a_bug() -> None:
    with pytest.raises(ValueError, match="no gold text"):
        rouge(Sample(sample_id="s", prompt="?"), ANSWER)
