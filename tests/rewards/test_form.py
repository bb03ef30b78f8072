import re

import pytest

from tests.rewards.conftest import branch
from troupe.records import Branch, Sample
from troupe.rewards.form import Length, regex_format


@pytest.mark.parametrize(
    ("text", "match", "expected"),
    [
        ("<a>8</a>", "full", 1.0),
        ("It is <a>8</a>", "full", 0.0),
        ("It is <a>8</a>", "search", 1.0),
        ("8", "search", 0.0),
    ],
)
def test_a_pattern_must_match_the_whole_answer_or_be_found_in_it(
    sample: Sample, text: str, match: str, expected: float
) -> None:
    assert regex_format(sample, branch(text), pattern=re.compile(r"<a>\d+</a>"), match=match) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(("unit", "size"), [("tokens", 3), ("words", 3), ("chars", 13)])
def test_the_gate_opens_up_to_its_limit_in_the_chosen_unit(sample: Sample, unit: str, size: int) -> None:
    answer = branch("one two three")
    assert Length(limit=size, unit=unit)(sample, answer) == 1.0  # type: ignore[arg-type]
    assert Length(limit=size - 1, unit=unit)(sample, answer) == 0.0  # type: ignore[arg-type]


@pytest.mark.parametrize(("words", "expected"), [(0, 1.0), (4, 1.0), (5, 0.75), (6, 0.5), (8, 0.0), (50, 0.0)])
def test_between_target_and_limit_the_reward_falls_linearly(sample: Sample, words: int, expected: float) -> None:
    # target 4, limit 8: each word above 4 costs a quarter.
    assert Length(target=4, limit=8)(sample, branch("word " * words)) == expected


def test_tokens_are_counted_even_where_they_leave_no_text(sample: Sample) -> None:
    assert Length(limit=2)(sample, Branch(token_ids=(7, 7, 7), text="")) == 0.0


def test_an_answer_known_as_text_only_has_no_length_in_tokens(sample: Sample) -> None:
    with pytest.raises(ValueError, match="set unit: words or chars"):
        Length(limit=2)(sample, Branch(token_ids=(), text="one two"))
