"""Which checkpoint of a run takes over: the better one, once it is whole, and no broken one twice."""

from __future__ import annotations

from core.served_models import Served
from serving.follower import Follower, newest
from tests.core.test_served_models import save


def following(run, wanted="best") -> Follower:
    first = save(run, 1, 0.5)
    return Follower(str(run), wanted, path=str(first), step=1)


def test_best_waits_for_a_better_one_and_latest_takes_each(tmp_path):
    best, latest = following(tmp_path / "a"), following(tmp_path / "b", "latest")
    assert best.newer() is latest.newer() is None
    save(tmp_path / "a", 2, 0.4)
    newest = save(tmp_path / "b", 2, 0.4)
    assert (best.newer(), latest.newer()) == (None, newest)
    better = save(tmp_path / "a", 3, 0.6)
    assert best.newer() == better
    best.served(better, 3)
    assert best.newer() is None


def test_a_run_that_measures_nothing_is_followed_to_its_latest(tmp_path):
    path = save(tmp_path / "a", 1)
    follower = Follower(str(tmp_path / "a"), "best", path=str(path), step=1)
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


def test_a_checkpoint_that_vanished_is_no_reason_to_stop(tmp_path):
    follower = following(tmp_path / "a")
    better = save(tmp_path / "a", 2, 0.9)
    (better / "model.safetensors").unlink()
    assert follower.newer() is None


def test_a_replica_that_starts_late_finds_what_is_kept_now(tmp_path):
    first = save(tmp_path / "a", 1, 0.5)
    served = Served(name="a", path=str(first), step=1, max_length=64, run=str(tmp_path / "a"))
    assert newest(served, "best") == served
    second = save(tmp_path / "a", 2, 0.9)
    assert (newest(served, "best").path, newest(served, "best").step) == (str(second), 2)
    save(tmp_path / "a", 3, 1.0, size=8)  # another model
    assert newest(served, "best") == served
