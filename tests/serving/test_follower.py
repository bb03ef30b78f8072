"""Which checkpoint of a run takes over: the better one, once it is whole, and no broken one twice."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.serving.test_served_models import save
from troupe.errors import CheckpointError
from troupe.runs.checkpoint import MANIFEST
from troupe.serving.follower import Follower
from troupe.serving.served_models import Served


def served(path: Path) -> Served:
    return Served(name="a", path=str(path), step=1, max_length=64, run=str(path.parents[1]))


def following(run, wanted="best") -> Follower:
    follower = Follower(served(save(run, 1, 0.5)), wanted)
    follower.first()
    return follower


def damage(path: Path) -> None:
    weights = bytearray((path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (path / "model.safetensors").write_bytes(weights)


def test_best_waits_for_a_better_one_and_latest_takes_each(tmp_path):
    best, latest = following(tmp_path / "a"), following(tmp_path / "b", "latest")
    assert best.newer() is latest.newer() is None
    save(tmp_path / "a", 2, 0.4)
    newest = save(tmp_path / "b", 2, 0.4)
    assert (best.newer(), latest.newer()) == (None, newest)
    better = save(tmp_path / "a", 3, 0.6)
    assert best.newer() == better
    best.serves(better, 3)
    assert best.newer() is None


def test_a_run_that_measures_nothing_is_followed_to_its_latest(tmp_path):
    follower = Follower(served(save(tmp_path / "a", 1)), "best")
    assert follower.first().step == 1
    assert follower.newer() is None
    second = save(tmp_path / "a", 2)
    assert follower.newer() == second


def test_what_is_refused_is_not_tried_again_and_a_later_one_is(tmp_path):
    follower = following(tmp_path / "a", "latest")
    save(tmp_path / "a", 2, size=8)
    assert follower.newer() is follower.newer() is None
    assert "not a later step of the model" in follower.refused[2]
    third = save(tmp_path / "a", 3)
    assert follower.newer() == third
    assert list(follower.refused) == [2]


def test_what_was_refused_is_looked_at_again_when_the_run_has_written_it_anew(tmp_path):
    follower = following(tmp_path / "a", "latest")
    second = save(tmp_path / "a", 2)
    damage(second)
    assert follower.newer() is None
    shutil.rmtree(second)
    save(tmp_path / "a", 2)
    os.utime(second / MANIFEST, ns=(1, 1))  # another time, however coarse the file system's clock
    assert follower.newer() == second
    follower.serves(second, 2)
    assert follower.refused == {}


def test_a_checkpoint_that_vanished_is_no_reason_to_stop(tmp_path):
    follower = following(tmp_path / "a")
    better = save(tmp_path / "a", 2, 0.9)
    (better / "model.safetensors").unlink()
    assert follower.newer() is None


@pytest.mark.parametrize("wanted", ["best", "latest"])
def test_where_the_newest_is_damaged_the_one_before_it_takes_over(tmp_path, wanted):
    follower = following(tmp_path / "a", wanted)
    second = save(tmp_path / "a", 2, 0.6)
    damage(save(tmp_path / "a", 3, 0.9))
    assert follower.newer() == second
    follower.serves(second, 2)
    # The run keeps it no longer; what is in memory is still newer than what is left.
    shutil.rmtree(second)
    assert follower.newer() is None


@pytest.mark.parametrize("wanted", ["best", "latest"])
def test_a_replica_that_starts_late_serves_the_newest_whole_checkpoint_of_that_moment(tmp_path, wanted):
    first = save(tmp_path / "a", 1, 0.5)
    assert Follower(served(first), wanted).first() == served(first)
    second = save(tmp_path / "a", 2, 0.6)
    damage(save(tmp_path / "a", 3, 0.9))
    save(tmp_path / "a", 4, 1.0, size=8)  # another model
    late = Follower(served(first), wanted)
    assert (late.first().path, late.step) == (str(second), 2)
    assert sorted(late.refused) == [3, 4]

    shutil.rmtree(first)  # retired: it is not asked for any more
    (tmp_path / "a/checkpoints/step-000004").rename(tmp_path / "elsewhere")
    assert Follower(served(first), wanted).first().path == str(second)
    damage(second)
    with pytest.raises(CheckpointError, match=r"no checkpoint that can be served: .*step-000003 .*another SHA-256"):
        Follower(served(first), wanted).first()
