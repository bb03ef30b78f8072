"""Files of baselines: what is written is found again, a file of something else is refused with both hashes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from troupe.errors import CheckpointError, DataError
from troupe.rewards.baselines import Baseline, BaselineFile, Identity

IDENTITY = Identity(model="m1", tokenizer="k1", template="t1", precision="fp32")
ROWS = [
    Baseline(sample_id=f"task/{index}", nll=0.1 + index / 3, num_tokens=index + 1, digest=f"d{index}")
    for index in range(4)
]


@pytest.fixture(params=["jsonl", "parquet"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / "deep" / f"baselines.{request.param}"


def test_what_is_added_is_there_in_another_process_to_the_last_bit(path: Path) -> None:
    BaselineFile(path, IDENTITY).add(ROWS)
    file = BaselineFile(path, IDENTITY)
    assert [file.nll(row.sample_id, row.digest) for row in ROWS] == [row.nll for row in ROWS]
    assert len(file) == 4
    assert "task/3" in file
    assert "task/4" not in file


def test_a_file_grows_over_several_calls(path: Path) -> None:
    BaselineFile(path, IDENTITY).add(ROWS[:1])
    half = BaselineFile(path, IDENTITY)
    half.add(ROWS[1:3])
    half.add(ROWS[3:])
    BaselineFile(path, IDENTITY).require([row.sample_id for row in ROWS])


@pytest.mark.parametrize("field", ["model", "tokenizer", "template", "precision"])
def test_a_stale_file_is_refused_with_both_hashes(path: Path, field: str) -> None:
    BaselineFile(path, IDENTITY).add(ROWS)
    was = getattr(IDENTITY, field)
    with pytest.raises(CheckpointError, match=rf"is stale \({field} {was} in the file and other now\); remove it"):
        BaselineFile(path, dataclasses.replace(IDENTITY, **{field: "other"}))


def test_a_baseline_of_another_gold_answer_is_refused(path: Path) -> None:
    file = BaselineFile(path, IDENTITY)
    file.add(ROWS)
    with pytest.raises(CheckpointError, match=r"for task/1 \(d1 in the file, d9 now\)"):
        file.nll("task/1", "d9")


def test_samples_without_a_baseline_are_named_with_the_remedy(path: Path) -> None:
    file = BaselineFile(path, IDENTITY)
    file.add(ROWS)
    with pytest.raises(
        DataError, match=r"lacks the baselines of 2 of 3 samples, task/8 the first; run jobs/compute_baseline"
    ):
        file.require(["task/0", "task/8", "task/9"])


def test_any_other_file_is_not_taken_for_one(path: Path) -> None:
    path.parent.mkdir()
    path.write_text('{"sample_id": "task/0", "nll": 1.0, "num_tokens": 1, "digest": "d0"}\n')
    with pytest.raises(CheckpointError, match=r"does not say what it belongs to|cannot be read"):
        BaselineFile(path, IDENTITY)


def test_a_line_that_a_killed_writer_left_unfinished_is_computed_again(tmp_path: Path) -> None:
    path = tmp_path / "baselines.jsonl"
    BaselineFile(path, IDENTITY).add(ROWS[:2])
    whole = path.read_text()
    path.write_text(whole[:-20])
    file = BaselineFile(path, IDENTITY)
    assert len(file) == 1
    file.add(ROWS[1:2])
    assert BaselineFile(path, IDENTITY).nll("task/1", "d1") == ROWS[1].nll


def test_perplexities_are_the_exponentials_and_overflow_nothing(tmp_path: Path) -> None:
    file = BaselineFile(tmp_path / "baselines.jsonl", IDENTITY)
    file.add(
        [
            Baseline(sample_id="a", nll=0.0, num_tokens=1, digest="d"),
            Baseline(sample_id="b", nll=9999.0, num_tokens=1, digest="d"),
        ]
    )
    assert file.perplexities() == [1.0, pytest.approx(5.54e34, rel=1e-2)]
