"""Where the seconds of a step go: `with clock.timed("rollout")`, phases that add up to the step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping


class PhaseClock:
    """Seconds per phase since the last `end_step`; for one thread, the one that runs the loop."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._phases: dict[str, float] = {}
        self._inner_s: list[float] = []
        """For each phase that is open now: the seconds that phases inside it took."""
        self._begun = self._clock()

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the block's seconds, less those of phases inside it, also when it raises."""
        begun = self._clock()
        self._inner_s.append(0.0)
        try:
            yield
        finally:
            elapsed_s = self._clock() - begun
            own_s = elapsed_s - self._inner_s.pop()
            self._phases[phase] = self._phases.get(phase, 0.0) + own_s
            if self._inner_s:
                self._inner_s[-1] += elapsed_s

    def carry(self, times: Mapping[str, float]) -> None:
        """Begin the step with the seconds that another process, which did not end it, spent on it (`so_far`)."""
        seconds = {name.removeprefix("time/").removesuffix("_s"): value for name, value in times.items()}
        self._begun = self._clock() - seconds.pop("step", 0.0)
        self._phases = seconds

    def so_far(self) -> dict[str, float]:
        """Return `time/<phase>_s` of the phases that have ended, and `time/step_s` until now."""
        times = {f"time/{phase}_s": seconds for phase, seconds in self._phases.items()}
        return {**times, "time/step_s": self._clock() - self._begun}

    def end_step(self) -> dict[str, float]:
        """Return `time/<phase>_s` of every phase, `time/step_s`, and `time/other_s`: the rest of the step."""
        moment = self._clock()
        step_s = moment - self._begun
        times = {f"time/{phase}_s": seconds for phase, seconds in self._phases.items()}
        times["time/other_s"] = max(step_s - sum(self._phases.values()), 0.0)
        times["time/step_s"] = step_s
        self._phases, self._begun = {}, moment
        return times
