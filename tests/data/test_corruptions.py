import random
from collections import Counter
from pathlib import Path

import pytest

from troupe.data.corruptions import corrupted, damaged, truncated

SUMMARY = "Return the largest key of a sorted mapping."


def generators(count: int = 200) -> list[random.Random]:
    return [random.Random(f"test/{i}") for i in range(count)]


def test_a_corrupted_summary_keeps_its_ends_and_its_vocabulary() -> None:
    words = SUMMARY.split()
    for rng in generators():
        worse = (corrupted(SUMMARY, rng) or "").split()
        assert (worse[0], worse[-1]) == ("Return", "mapping.")
        assert set(worse) <= set(words)
        # Eight words have 1 + 8 // 4 = 3 changes, and each adds a word, takes one or keeps their number.
        assert abs(len(worse) - len(words)) <= 3


def test_corruption_swaps_doubles_and_drops() -> None:
    lengths = Counter(len((corrupted(SUMMARY, rng) or "").split()) for rng in generators())
    assert set(lengths) == {5, 6, 7, 8, 9, 10, 11}


def test_the_one_inner_word_of_three_can_only_be_doubled() -> None:
    assert corrupted("Parse a file", random.Random(0)) == "Parse a a file"
    assert corrupted("Parse files", random.Random(0)) is None


@pytest.mark.parametrize("length", range(3, 30))
def test_a_summary_of_any_length_can_be_corrupted(length: int) -> None:
    text = " ".join(f"w{i}" for i in range(length))
    assert all(corrupted(text, rng) for rng in generators(50))


def test_a_truncated_summary_is_a_beginning_that_stops_in_mid_sentence() -> None:
    # Seven words: two (a third) to four (two thirds) stay. Two would end with "it." where a sentence ends.
    cuts = {truncated("Do it. Then stop at once now.", rng) for rng in generators()}
    assert cuts == {"Do it. Then", "Do it. Then stop"}


def test_no_punctuation_is_left_at_the_cut() -> None:
    # Six words, two to four stay.
    cuts = {truncated("Open files, read - and close them", rng) for rng in generators()}
    assert cuts == {"Open files", "Open files, read"}


def test_a_summary_of_two_words_cannot_be_truncated() -> None:
    assert truncated("Parses input.", random.Random(0)) is None
    assert truncated("Stop. Now. At. Once.", random.Random(0)) is None


def test_each_kind_gets_its_turn_and_no_two_damages_are_alike() -> None:
    others = [SUMMARY, "Open the archive.", "Close every socket of the pool."]
    for rng in generators(50):
        found = damaged(SUMMARY, others, ["corrupted", "truncated", "wrong"], 6, rng)
        assert SUMMARY not in found
        assert all(text in others for text, kind in found.items() if kind == "wrong")
        assert set(list(found.values())[:3]) == {"corrupted", "truncated", "wrong"}


def test_the_first_kind_is_drawn_evenly() -> None:
    others = [f"Another summary of number {i}." for i in range(20)]
    kinds = Counter(
        next(iter(damaged(SUMMARY, others, ["corrupted", "truncated", "wrong"], 1, rng).values()))
        for rng in generators(600)
    )
    # 600 draws at a third: standard deviation sqrt(600 * 1/3 * 2/3) = 11.5; four of them.
    assert all(abs(count - 200) <= 46 for count in kinds.values())


def test_a_kind_without_a_grip_leaves_its_turn_to_the_next() -> None:
    for rng in generators(20):
        assert set(damaged("Parses input.", ["Sorts a list."], ["truncated", "wrong"], 1, rng)) == {"Sorts a list."}
    assert not damaged("Parses input.", [], ["corrupted", "truncated", "wrong"], 1, random.Random(0))


def test_the_documented_examples_are_what_is_made() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text()
    for example in (SUMMARY, corrupted(SUMMARY, random.Random(4)), truncated(SUMMARY, random.Random(0))):
        assert f"*{example}*" in page
