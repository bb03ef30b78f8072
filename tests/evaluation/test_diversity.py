"""Diversity against numbers counted by hand and against the library whose ROUGE-L it must equal."""

from __future__ import annotations

import random

import pytest
from rouge_score.rouge_scorer import RougeScorer

from troupe.evaluation.diversity import Text, diversity, rouge_l, sections, statistics_of, words_of


def text(answer: str, prompt: str = "", gold: str | None = None, sample_id: str = "s/0") -> Text:
    return Text(sample_id=sample_id, answer=answer, prompt=prompt, gold=gold)


def test_the_statistics_of_an_answer_are_counted_by_hand() -> None:
    found = statistics_of(text("The dog saw the dog run.", prompt="### Plot\nThe dog saw a cat.", gold="The dog ran"))
    assert found["words"] == 6
    assert found["unique_word_percent"] == pytest.approx(100 * 4 / 6)  # the dog saw run
    # trigrams: the dog saw, dog saw the, saw the dog, the dog run; only the first is in the prompt
    assert found["unseen_trigram_percent"] == 75
    assert found["rouge_l_precision"] == pytest.approx(2 / 6)  # the dog
    assert found["rouge_l_f1"] == pytest.approx(2 * (2 / 6) * (2 / 3) / (2 / 6 + 2 / 3))
    assert found["rouge_l_precision/Plot"] == pytest.approx(3 / 6)  # the dog saw


def test_rouge_l_is_that_of_the_library_on_any_text() -> None:
    rng = random.Random(0)
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    for _ in range(60):
        one, other = (" ".join(rng.choices(["Ada", "né", "saw", "x_1", "the,"], k=rng.randint(1, 90))) for _ in "ab")
        expected = scorer.score(other, one)["rougeL"]
        if words_of(one) and words_of(other):
            assert rouge_l(words_of(one), words_of(other)) == pytest.approx((expected.precision, expected.fmeasure))


def test_distinct_n_counts_over_all_answers_together() -> None:
    found = diversity([text("a b a", sample_id="s/0"), text("a b c", sample_id="s/1")])
    assert found.distinct["distinct_1"] == pytest.approx(3 / 6)  # a b c of six words
    assert found.distinct["distinct_2"] == pytest.approx(3 / 4)  # ab ba bc of ab ba ab bc
    assert found.distinct["distinct_3"] == 1


def test_the_order_of_answers_changes_no_mean_and_saying_all_twice_halves_distinct_n() -> None:
    texts = [text(f"word{i} stands here {i % 3}", sample_id=f"s/{i}") for i in range(9)]
    once = diversity(texts)
    assert {n: e.mean for n, e in diversity(texts[::-1]).means.items()} == pytest.approx(
        {n: e.mean for n, e in once.means.items()}
    )
    twice = diversity([*texts, *texts])
    assert twice.distinct["distinct_2"] == pytest.approx(once.distinct["distinct_2"] / 2)
    assert twice.means == once.means  # two answers to a sample count as their mean


def test_a_copy_of_the_prompt_has_no_unseen_trigram_and_new_words_have_no_other() -> None:
    prompt = "one two three four five"
    assert statistics_of(text(prompt, prompt=prompt))["unseen_trigram_percent"] == 0
    assert statistics_of(text("six seven eight", prompt=prompt))["unseen_trigram_percent"] == 100


def test_what_an_answer_cannot_have_is_left_out_not_zero() -> None:
    assert statistics_of(text("", gold="gold")) == {"words": 0}
    assert set(statistics_of(text("two words"))) == {"words", "unique_word_percent"}
    found = diversity([text("", sample_id="s/0"), text("a b c", sample_id="s/1")])
    assert found.means["words"].mean == 1.5
    assert found.means["unique_word_percent"].mean == 100  # of the one that has words


def test_sections_are_named_by_their_headings_wherever_hashes_stand() -> None:
    prompt = (
        "Read this.\n### Character Sheets ###\nAda # not a heading\n## Instructions\nWrite.\n### Character Sheets\nBo"
    )
    assert sections(prompt) == {"Character Sheets": "\nAda # not a heading\n\nBo", "Instructions": "\nWrite.\n"}
    assert sections("no headings, #hashtag") == {}
