from collections import Counter

import pytest

from troupe.data import PromptStream, position_in
from troupe.errors import DataError
from troupe.records import Sample

SAMPLES = [Sample(sample_id=f"s{i}", prompt=f"prompt {i}") for i in range(7)]


def ids(samples: list[Sample]) -> list[str]:
    return [sample.sample_id for sample in samples]


def test_every_sample_comes_once_in_each_epoch() -> None:
    stream = PromptStream(SAMPLES, seed=0)
    for _ in range(3):
        assert sorted(ids(stream.take(7))) == [f"s{i}" for i in range(7)]


def test_epochs_have_different_orders() -> None:
    stream = PromptStream(SAMPLES, seed=0)
    assert ids(stream.take(7)) != ids(stream.take(7))


def test_a_take_may_cross_epochs_and_even_exceed_one() -> None:
    # 7 samples, 17 taken: two whole epochs and 3 of a third, so 3 ids come three times and 4 come twice.
    counts = Counter(ids(PromptStream(SAMPLES, seed=1).take(17)))
    assert sorted(counts.values()) == [2, 2, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("position", [0, 1, 6, 7, 8, 20])
def test_a_stream_built_at_a_position_continues_where_another_stopped(position: int) -> None:
    stopped = PromptStream(SAMPLES, seed=3)
    stopped.take(position)
    assert stopped.position == position
    assert ids(PromptStream(SAMPLES, seed=3, position=position).take(15)) == ids(stopped.take(15))


def test_how_the_samples_are_taken_does_not_change_their_order() -> None:
    one_by_one, at_once = PromptStream(SAMPLES, seed=5), PromptStream(SAMPLES, seed=5)
    assert [sample.sample_id for _ in range(20) for sample in one_by_one.take(1)] == ids(at_once.take(20))


def test_the_seed_decides_the_order() -> None:
    assert ids(PromptStream(SAMPLES, seed=0).take(7)) != ids(PromptStream(SAMPLES, seed=1).take(7))


def test_the_order_is_the_same_in_every_version_of_this_code() -> None:
    # A resumed run depends on it: recorded once, from the first version.
    assert ids(PromptStream(SAMPLES, seed=0).take(7)) == ["s5", "s4", "s1", "s2", "s0", "s3", "s6"]


def test_a_stream_without_samples_is_refused() -> None:
    with pytest.raises(DataError, match="no training samples"):
        PromptStream([], seed=0)


@pytest.mark.parametrize(
    ("position", "before", "now", "expected"),
    [(250, 100, 100, 250), (250, 100, 150, 450), (200, 100, 150, 300), (1, 100, 40, 40), (0, 100, 150, 0)],
)
def test_a_stream_over_other_samples_goes_on_with_the_next_epoch(
    position: int, before: int, now: int, expected: int
) -> None:
    # 250 of 100 is in the third epoch; the fourth over 150 begins at 3 x 150.
    assert position_in({"position": position, "samples": before}, now) == expected
    assert position_in({"position": position}, now) == position  # a checkpoint that does not say goes on as it was
