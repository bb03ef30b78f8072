from typing import Any

from tests.data.packages import FIXTURES
from troupe.config.published_data import TldrComparisonsConfig, TldrConfig
from troupe.data import DataSet, load_data
from troupe.data.tldr import post, summary


def load(**settings: Any) -> DataSet:
    return load_data(TldrConfig(path=str(FIXTURES / "tldr"), **settings))


def load_comparisons(**settings: Any) -> DataSet:
    return load_data(TldrComparisonsConfig(path=str(FIXTURES / "tldr_comparisons"), **settings))


def test_a_post_is_raw_text_up_to_its_suffix_and_the_summary_follows_with_a_space() -> None:
    sample = load().train[0]
    assert sample.sample_id == "tldr/train/0"
    assert isinstance(sample.prompt, str)
    assert sample.prompt.startswith("SUBREDDIT: r/pets\nTITLE: My parrot answers the phone\nPOST: He learned")
    assert sample.prompt.endswith("They delivered it.\nTL;DR:")
    assert sample.gold == sample.fields["demonstration"] == " Parrot copied my voice and got a pizza delivered."


def test_a_label_that_begins_with_its_space_is_the_same_label() -> None:
    assert load().train[1].gold == " Followed every neighbour's tip, got tomato plants without tomatoes."
    assert summary("He ate it.") == summary(" He ate it.\n") == summary("TL;DR: He ate it.") == " He ate it."


def test_a_long_post_is_cut_at_a_lines_end_and_keeps_its_suffix() -> None:
    prompt = load(max_prompt_chars=600).train[1].prompt
    assert isinstance(prompt, str)
    assert 500 < len(prompt) <= 600
    *lines, last_line, suffix = prompt.split("\n")
    assert suffix == "TL;DR:"
    assert last_line.endswith("and I followed all of it.")
    assert lines[0] == "SUBREDDIT: r/gardening"
    assert len(load(max_prompt_chars=100).train[0].prompt) <= 100


def test_a_prompt_of_exactly_the_longest_length_is_not_cut() -> None:
    # 20 letters, a line's end and 6 characters of suffix: 27.
    assert post("x" * 20 + "\nTL;DR:", 27) == "x" * 20 + "\nTL;DR:"
    assert post("x" * 20, 26) == "x" * 19 + "\nTL;DR:"


def test_the_held_out_split_can_be_chosen() -> None:
    assert [sample.sample_id for sample in load().heldout] == ["tldr/valid/0"]
    assert [sample.sample_id for sample in load(heldout_split="test").heldout] == ["tldr/test/0"]
    for split in ("valid1", "valid2", "test"):
        data = load_comparisons(heldout_split=split)
        assert [sample.sample_id for sample in data.heldout] == [f"tldr_comparisons/{split}/0"]


def test_a_comparison_has_its_suffix_in_the_prompt_and_not_in_the_answers() -> None:
    sample = load_comparisons().train[0]
    assert sample.prompt == load().train[0].prompt
    assert sample.fields["answers"] == [
        " Parrot imitates me on the phone and a pizza came.",
        " I have a parrot and it is green and talks.",
    ]
    assert sample.gold is None  # the better summary is a model's as often as a person's


def test_equal_pairs_and_short_summaries_are_left_out_and_counted() -> None:
    data = load_comparisons()
    # Row 1 has twice the same summary, row 2 "No fruit." with two words.
    assert [sample.sample_id for sample in data.train] == [f"tldr_comparisons/train/{i}" for i in (0, 3, 4)]
    assert data.dropped == {"equal_answers": 1, "short_answers": 1}


def test_the_suffix_is_no_word_of_a_summary() -> None:
    # "Advice from everyone spoiled my tomatoes." has six words, seven with TL;DR:.
    assert "tldr_comparisons/train/3" in {s.sample_id for s in load_comparisons(min_answer_words=6).train}
    assert "tldr_comparisons/train/3" not in {s.sample_id for s in load_comparisons(min_answer_words=7).train}
