"""The observers of a run: the report that is built at its end, and the trackers that its config names."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from troupe.config.loader import Section
from troupe.runs.run import Observer, Run, State
from troupe.secrets import public_values

log = logging.getLogger(__name__)


@contextlib.contextmanager
def open_run(config: Section) -> Iterator[Run]:
    """Open the run of `config` with its observers. Raises what `Run.open` and `check_trackers` do."""
    settings = config.run  # type: ignore[attr-defined]
    if settings.trackers:
        from troupe.report.trackers import check_trackers

        check_trackers(settings.trackers, mode=settings.wandb.mode)
    with Run.open(config, observers=_observers) as run:
        yield run


def _observers(run: Run) -> list[Observer]:
    report = ReportObserver(run)
    settings = run.config.run  # type: ignore[attr-defined]
    if not settings.trackers:
        return [report]
    from troupe.report.trackers import build_trackers

    trackers = build_trackers(settings.trackers, directory=run.directory, values=public_values(run.config))
    # The report first, since trackers take it along; and last, with what went wrong among them.
    return [report, *trackers, ReportObserver(run, again=True)]


class ReportObserver:
    """Writes report.html at the end of a run; what is drawn is loaded then."""

    name = "the report"

    def __init__(self, run: Run, *, again: bool = False) -> None:
        self._run, self._again = run, again

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Do nothing: `jobs/watch.py` shows a run that goes on."""

    def on_close(self, state: State) -> None:
        """Build the report, `again` only where something happened since; where it fails, `jobs/report.py` can do it."""
        directory = self._run.directory
        if self._again and _is_newer(directory / "report.html", directory / "events.jsonl"):
            return
        from troupe.report.report import build_report

        try:
            report = build_report(directory)
        except Exception:
            log.exception("the report of %s could not be built; jobs/report.py rebuilds it", directory)
        else:
            if not self._again:
                log.info("%s at step %d; report: %s", state, self._run.step, report)


def _is_newer(file: Path, than: Path) -> bool:
    return file.exists() and file.stat().st_mtime_ns >= than.stat().st_mtime_ns
