"""The phases of a step add up to the step."""

from __future__ import annotations

import pytest

from tests.fake_run import BorrowedClock
from troupe.runs.step_timer import PhaseClock


def test_phases_other_and_step_add_up_also_when_phases_nest_and_repeat() -> None:
    now = BorrowedClock()
    clock = PhaseClock(now)
    now.pass_by(1)  # outside of any phase
    with clock.timed("update"):
        now.pass_by(2)
        with clock.timed("sync"):
            now.pass_by(4)
    with clock.timed("sync"):
        now.pass_by(8)
    # By hand: update 2 of its own, sync 4 + 8, other 1, together 15.
    assert clock.end_step() == {"time/update_s": 2, "time/sync_s": 12, "time/other_s": 1, "time/step_s": 15}


def test_a_phase_that_raises_is_counted_and_the_next_step_begins_at_zero() -> None:
    now = BorrowedClock()
    clock = PhaseClock(now)

    def rollout() -> None:
        with clock.timed("rollout"):
            now.pass_by(3)
            raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        rollout()
    assert clock.end_step()["time/rollout_s"] == 3
    assert clock.end_step() == {"time/other_s": 0, "time/step_s": 0}


def test_a_step_that_another_process_began_has_the_seconds_of_both() -> None:
    now = BorrowedClock()
    first = PhaseClock(now)
    with first.timed("update"):
        now.pass_by(2)
    now.pass_by(1)
    told = first.so_far()
    assert told == {"time/update_s": 2, "time/step_s": 3}
    second = PhaseClock(now)
    now.pass_by(40)  # the second process starts
    second.end_step()
    second.carry(told)
    with second.timed("evaluate"):
        now.pass_by(5)
    with second.timed("update"):
        now.pass_by(1)
    assert second.end_step() == {"time/update_s": 3, "time/evaluate_s": 5, "time/other_s": 1, "time/step_s": 9}
