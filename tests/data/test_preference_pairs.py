import math
from typing import Any

import pytest

from troupe.data.dataset import DataSet
from troupe.data.preference_pairs import sort_answers
from troupe.errors import DataError
from troupe.records import Sample

HELDOUT = Sample(sample_id="heldout", prompt="h")


def preference(**fields: Any) -> Sample:
    return Sample(sample_id="s1", prompt="p", fields=fields)


def settle(*samples: Sample) -> DataSet:
    return sort_answers(DataSet(name="set", train=samples, heldout=[HELDOUT], dropped={"long_prompts": 2}))


def test_answers_come_best_first_and_ties_keep_their_order() -> None:
    (sample,) = settle(preference(answers=["c", "a", "d", "b"], ranks=[3, 1, 3, 2], level=4)).train
    assert sample.fields == {"answers": ["a", "b", "c", "d"], "ranks": [1, 2, 3, 3], "level": 4}


def test_answers_without_ranks_and_samples_without_answers_are_as_they_were() -> None:
    plain, pair = Sample(sample_id="s0", prompt="p"), preference(answers=["b", "a"], margin=0.5)
    assert settle(plain, pair).train == [plain, pair]


def test_answers_that_prefer_nothing_are_dropped_and_counted_beside_what_the_loader_left_out() -> None:
    good = preference(answers=["a", "b"])
    data = settle(
        good,
        preference(answers=["same", " same\n"]),  # equal but for the space around
        preference(answers=["same", "same", "same"], ranks=[0, 1, 1]),
        preference(answers=["a", "b"], ranks=[1, 1]),
    )
    assert data.train == [good]
    assert data.dropped == {"equal_answers": 2, "long_prompts": 2, "tied_answers": 1}


def test_one_pair_that_differs_in_text_and_rank_is_enough_to_keep_a_sample() -> None:
    # The equal texts 0 and 1 teach nothing, and neither does the tie of 1 and 2; 0 above 2 does.
    assert len(settle(preference(answers=["x", "x", "y"], ranks=[0, 1, 1])).train) == 1


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"answers": ["alone"]}, r"s1: a preference needs a list of two answers or more, got \['alone'\]"),
        ({"answers": {"text": ["a"]}}, "s1: a preference needs a list of two answers or more"),
        ({"answers": ["a", " "]}, "s1: answer 2 of 2 must be a text that is not empty, got ' '"),
        ({"answers": [None, "b"]}, "s1: answer 1 of 2 must be a text that is not empty, got None"),
        ({"answers": ["a", "b"], "ranks": [0, 1, 2]}, "s1: 3 ranks for 2 answers; give each answer one rank"),
        ({"answers": ["a", "b"], "ranks": [0, 0.5]}, r"s1: ranks must be a list of whole numbers.* got \[0, 0\.5\]"),
        ({"answers": ["a", "b"], "ranks": [False, True]}, "s1: ranks must be a list of whole numbers"),
        ({"answers": ["a", "b"], "margin": -1.0}, "s1: a margin must be a finite number that is not negative, got -1"),
        ({"answers": ["a", "b"], "margin": math.nan}, "s1: a margin must be a finite number"),
        ({"answers": ["a", "b"], "margin": "big"}, "s1: a margin must be a finite number"),
        ({"answers": ["a", "b", "c"], "margin": 1.0}, "s1: a margin is between two answers, but there are 3"),
    ],
)
def test_a_malformed_preference_is_refused_by_its_id(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        settle(preference(**fields))


def test_held_out_preferences_are_checked_too() -> None:
    with pytest.raises(DataError, match="s1: a preference needs"):
        sort_answers(DataSet(name="set", train=[HELDOUT], heldout=[preference(answers=[])]))
