"""When each process worked and waited: spans of the driver and of every worker, and `timeline.json` for chosen steps.

Each process has one `RECORDER`. It is always on, since an entry costs a microsecond or two and the oldest fall off; the
steps that are to be seen are chosen afterwards, when the driver asks the workers for theirs. There is one clock,
`time.time_ns`: across machines a timeline is as exact as their clocks agree.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from troupe.files import read_json, to_json, write_atomically

log = logging.getLogger(__name__)

TIMELINE_FILE = "timeline.json"
REQUEST_FILE = "timeline.request"
"""A file of this name in the run directory requests the timeline of the step that is running."""
MOST_ENTRIES = 20_000
"""What a process remembers, a few megabytes."""
MOST_STEPS = 16
"""Steps that timeline.json keeps, the newest; a few hundred kilobytes each at most."""
DRIVER = "driver"

TRACK: ContextVar[str] = ContextVar("track", default=DRIVER)
"""The track of the work that is recorded here, where one process has several roles: `generator 0`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Work with a beginning and an end, in nanoseconds since 1970."""

    track: str
    name: str
    begun_ns: int
    ended_ns: int

    def within(self, whole: Span) -> Span | None:
        """Return the part within another span, if there is one."""
        begun, ended = max(self.begun_ns, whole.begun_ns), min(self.ended_ns, whole.ended_ns)
        return replace(self, begun_ns=begun, ended_ns=ended) if begun < ended else None

    def event(self, lane: int) -> dict[str, Any]:
        """Return Chrome's complete event, in whole microseconds: both ends rounded down keep what is nested so."""
        begun, ended = self.begun_ns // 1000, self.ended_ns // 1000
        return {"ph": "X", "name": self.name, "cat": "troupe", "tid": lane, "ts": begun, "dur": ended - begun}


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """A count from `at_ns` on, until the next of its track and name."""

    track: str
    name: str
    at_ns: int
    count: int

    @property
    def ended_ns(self) -> int:
        return self.at_ns

    def within(self, whole: Span) -> Counter | None:
        return self if whole.begun_ns <= self.at_ns <= whole.ended_ns else None

    def event(self) -> dict[str, Any]:
        """Return Chrome's counter event."""
        count = {self.name: self.count}
        return {"ph": "C", "name": self.name, "cat": "troupe", "ts": self.at_ns // 1000, "args": count}


Entry = Span | Counter
Spans = Callable[[int], Iterable[Entry]]
"""since_ns -> what ended, or still went on, after that moment."""


class Recorder:
    """The newest entries of one process, from whatever thread."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque(maxlen=MOST_ENTRIES)
        self._open: dict[int, Span] = {}
        self._names = itertools.count()

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Record the block, also when it raises."""
        begun = self.begin(name)
        try:
            yield
        finally:
            self.end(begun)

    def begin(self, name: str, *, track: str | None = None) -> int:
        """Begin a span that `end` ends, perhaps on another thread."""
        key, moment = next(self._names), time.time_ns()
        self._open[key] = Span(track=track or TRACK.get(), name=name, begun_ns=moment, ended_ns=moment)
        return key

    def end(self, key: int) -> float:
        """End it and return its seconds."""
        span = replace(self._open.pop(key), ended_ns=time.time_ns())
        self._entries.append(span)
        return (span.ended_ns - span.begun_ns) / 1e9

    def level(self, name: str, count: int, *, track: str | None = None) -> None:
        self._entries.append(Counter(track=track or TRACK.get(), name=name, at_ns=time.time_ns(), count=count))

    def since(self, since_ns: int) -> list[Entry]:
        """Return what ended after `since_ns`, and what still goes on, up to now."""
        moment = time.time_ns()
        done = [entry for entry in list(self._entries) if entry.ended_ns > since_ns]
        return done + [replace(span, ended_ns=moment) for span in list(self._open.values())]


RECORDER = Recorder()
"""This process's."""


class InFlight:
    """Things under way at the same time, such as requests: one span from the first to the last, and their number."""

    def __init__(self, name: str, *, track: str | None = None) -> None:
        """Count something; `track` is where it is drawn, if not with the work that calls `change`."""
        self._name, self._track, self._span = name, track, 0
        self.count = 0
        self._lock = threading.Lock()

    def change(self, by: int) -> int:
        """Count so many more, or fewer; return how many there are now."""
        with self._lock:
            before, self.count = self.count, self.count + by
            if before == 0 and self.count:
                self._span = RECORDER.begin(self._name, track=self._track)
            elif before and self.count == 0:
                RECORDER.end(self._span)
            RECORDER.level("in flight", self.count, track=self._track)
            return self.count


class StepTimelines:
    """The timelines of a run: `timed` around its phases, `end_step` behind each step."""

    def __init__(self, directory: Path, *, every: int, steps: Collection[int]) -> None:
        self._directory, self._every, self._steps = directory, every, steps
        self.workers: list[Spans] = []
        """Where the workers' spans come from; the driver's own are known."""
        self.begin_step()

    def begin_step(self) -> None:
        """Begin the next step: what came before does not belong to it."""
        self._begun_ns = time.time_ns()

    def end_step(self, step: int) -> None:
        """Write the step to timeline.json if it is to be seen; the next begins here."""
        begun_ns, ended_ns = self._begun_ns, time.time_ns()
        self._begun_ns = ended_ns
        if self._wanted(step):
            whole = Span(track=DRIVER, name=f"step {step}", begun_ns=begun_ns, ended_ns=ended_ns)
            try:
                found = [entry for source in (RECORDER.since, *self.workers) for entry in source(begun_ns)]
                write_step(self._directory / TIMELINE_FILE, step, whole, found)
            except Exception as error:  # whatever a cluster does to those who ask: the run is worth more
                log.warning("the timeline of step %d is missing: %s", step, error)

    def _wanted(self, step: int) -> bool:
        request = self._directory / REQUEST_FILE
        asked = request.exists()
        request.unlink(missing_ok=True)
        return asked or step in self._steps or bool(self._every and step and step % self._every == 0)


# -- the file ----------------------------------------------------------------------------------------------------


def write_step(path: Path, step: int, whole: Span, found: Iterable[Entry]) -> None:
    """Add a step to the trace at `path`, in the place of what it had of this step and later ones.

    The format is Chrome's trace events, which ui.perfetto.dev and chrome://tracing open: complete events (`X`) in
    microseconds since 1970, counters (`C`), and the names of the tracks as processes (`M`).
    """
    before = read_json(path) or {}
    known = [event for event in before.get("traceEvents", []) if event["ph"] != "M" and event["step"] < step]
    kept = sorted({event["step"] for event in known})[-(MOST_STEPS - 1) :]
    tracks = [DRIVER, *(name for name in before.get("tracks", []) if name != DRIVER)]
    fresh = [part for entry in found if (part := entry.within(whole)) is not None]
    tracks = list(dict.fromkeys([*tracks, *sorted({entry.track for entry in fresh}, key=_order)]))
    events = [event for event in known if event["step"] in kept]
    for pid, track in enumerate(tracks):
        mine = [entry for entry in fresh if entry.track == track]
        spans = [entry for entry in mine if isinstance(entry, Span)] + ([whole] if track == DRIVER else [])
        made = [span.event(lane) for lane, span in lanes(spans)]
        made += [entry.event() for entry in mine if isinstance(entry, Counter)]
        events += [{**event, "pid": pid, "step": step} for event in made]
    names = [
        {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": track}}
        for pid, track in enumerate(tracks)
    ]
    content = {"traceEvents": names + events, "tracks": tracks, "displayTimeUnit": "ms"}
    write_atomically(path, to_json(content) + "\n")


def lanes(spans: Sequence[Span]) -> Iterator[tuple[int, Span]]:
    """Yield (lane, span): within a lane, spans follow or contain one another, as the viewers want it."""
    ends: list[list[int]] = []
    for span in sorted(spans, key=lambda span: (span.begun_ns, -span.ended_ns)):
        for open_ends in ends:
            while open_ends and open_ends[-1] <= span.begun_ns:
                open_ends.pop()
        free = (lane for lane, open_ends in enumerate(ends) if not open_ends or span.ended_ns <= open_ends[-1])
        lane = next(free, len(ends))
        if lane == len(ends):
            ends.append([])
        ends[lane].append(span.ended_ns)
        yield lane, span


def _order(track: str) -> tuple[int, str]:
    """Order tracks: the policy first, then the roles that work for it."""
    roles = ("policy", "critic", "generator", "rewarder")
    role = track.split(" ")[0]
    return (roles.index(role) if role in roles else len(roles), track)
