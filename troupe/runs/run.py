"""A run and its directory: what every job opens first, logs to, and leaves readable whatever happens.

`with Run.open(config) as run:` locks `runs/<name>`, saves the config, seeds, starts the progress display, and at the
end, also after an exception, writes the state. Observers get each step's metrics and the end: `troupe.report.observers`
has the report and the trackers. The files are described in docs/run_directory.md. What is computed, and when a
checkpoint is due, is the job's business.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import random
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import rich

from troupe import runs
from troupe.config.loader import Section
from troupe.config.program import user_error
from troupe.disk import patient
from troupe.errors import TroupeError
from troupe.files import JsonLines, keep_lines, last_lines, now, read_lines, to_json, write_atomically
from troupe.processes.progress import EVALUATED, build_progress
from troupe.processes.stopping import Interrupted, StopSignals
from troupe.processes.waiting import WAITS, waiting
from troupe.project import JOBS
from troupe.records import Group
from troupe.runs.call_log import CALLS_FILE, CallLog, Watch
from troupe.runs.checkpoint import CheckpointStore
from troupe.runs.run_directory import locked, open_directory
from troupe.runs.run_records import group_record
from troupe.runs.step_timer import PhaseClock
from troupe.timeline import RECORDER, Spans, StepTimelines

log = logging.getLogger(__name__)

State = Literal["finished", "stopped", "failed"]
STEP_FILES = ("metrics.jsonl", "rollouts.jsonl", "answers.jsonl", CALLS_FILE)


class Observer(Protocol):
    """A watcher of a run that never steers it: one that raises is dropped, with an event that states it."""

    name: str

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take a step's metrics, whose line in metrics.jsonl is written."""

    def on_close(self, state: State) -> None:
        """Take the end; status.json and the last event are written."""


class Run:
    """One run; built by `Run.open`."""

    def __init__(self, config: Section, *, changed: Sequence[str] | None) -> None:
        """Set up a run; `changed`: see `open_directory`."""
        self.config = config
        self.directory: Path = config.run.path  # type: ignore[attr-defined]
        self.continued, self._changed = changed is not None, list(changed or ())
        """Whether the directory existed; whether there is a checkpoint to resume from is `checkpoints.latest()`."""
        self.checkpoints = build_store(config, on_event=self.event)
        self.step = 0
        self._steps: int = getattr(config, "steps", None) or 0
        self._events = JsonLines(self.directory / "events.jsonl")
        self._calls = CallLog(self.directory, config.run.calls, model=_model_name(config))  # type: ignore[attr-defined]
        self._metrics: dict[str, float] = {}
        self._shown: dict[str, float] = {}
        self._clock = PhaseClock()
        watch = config.run.watch  # type: ignore[attr-defined]
        self._timelines = StepTimelines(self.directory, every=watch.timeline_every, steps=watch.timeline_steps)
        self._wall_s = 0.0
        self._wall_s_has_past = False
        self._past_is_cut = False
        self._signals = StopSignals()
        self._status_lock = threading.Lock()
        self._ended = False
        self._final: tuple[int, bool] | None = None
        self._progress: Any = None
        self._observers: list[Observer] = []
        self._backup: runs.Backup | None = None

    @classmethod
    @contextlib.contextmanager
    def open(cls, config: Section, observers: Callable[[Run], Sequence[Observer]] = lambda run: ()) -> Iterator[Run]:
        """Open the run of `config`, which has at least `run` and `seed`, and `steps` where there are training steps.

        `observers` are built when the directory is there. Raises ConfigError when another process writes it, or when it
        was begun with another recipe, and Interrupted after Ctrl-C or SIGTERM, also when the run was saved.
        """
        settings = config.run  # type: ignore[attr-defined]
        stored = runs.open_stored_run(settings) if settings.storage.url is not None else None
        with locked(settings.path):
            if stored is not None:
                runs.settle(stored, settings)
            store = build_store(config)
            if settings.resume != "never":
                store.require_some()
            run = cls(config, changed=open_directory(config, has_checkpoint=store.latest() is not None))
            if stored is not None:
                run._backup = runs.Backup(stored, settings.storage, run.checkpoints, run.event)
            try:
                with (
                    WAITS.listening(functools.partial(run._status, "running")),
                    patient(settings.wait_for_room_s, run._waited_for_room),
                ):
                    run._start()
                    run._observers += observers(run)
                    yield run
                    run.checkpoints.settle()
            except BaseException as error:
                run._close(error)
                if isinstance(error, KeyboardInterrupt):
                    raise Interrupted.by(error, run._advice()) from None
                raise
            run._close(None)
            if run.stop_requested:  # ended early and saved is still no reason for `train && evaluate` to go on
                raise Interrupted(run._signals.received or signal.SIGINT, run._advice())

    def _start(self) -> None:
        seed_everything(self.config.seed)  # type: ignore[attr-defined]
        self._status("running")
        self.event("opened", continued=self.continued, changed=self._changed)
        self._signals.install()

    def observe(self, observer: Observer) -> None:
        """Let one more observer see the steps from here on."""
        self._observers.append(observer)

    def add_spans(self, spans: Spans) -> None:
        """Take the workers' spans for the timelines, which only the actors can give."""
        self._timelines.workers.append(spans)

    # -- the steps -------------------------------------------------------------------------------------------

    def so_far(self) -> dict[str, float]:
        """Return what the current step has logged, and its seconds. With it in its checkpoint a step that a process has
        saved and not ended is ended by the next one.
        """
        return {**self._metrics, **self._clock.so_far()}

    def resume_from(self, step: int, so_far: Mapping[str, float] = {}, *, sampled: int = -1) -> bool:
        """Continue after `step`: what was written of later steps is dropped, save the calls of rollouts up to step
        `sampled`, whose groups are there.

        True where that process died before it had ended `step` itself: what it had logged is taken out of the
        checkpoint (`so_far`), its evaluation is forgotten, and the job evaluates where that is due and calls
        `end_step`.
        """
        self._forget_from(step + 1, sampled)
        self.step = step
        self.event("resumed", step=step)
        log.info("%s continues after step %d", self.directory, step)
        if self.last_ended == step:
            return False
        self.event("step_owed", step=step)
        log.info("step %d was saved and not ended: its evaluation and its line in metrics.jsonl follow", step)
        keep_lines(self.directory / "answers.jsonl", lambda record: record.get("step", -1) < step)
        keep_lines(
            self.directory / CALLS_FILE,
            lambda record: record.get("step", -1) < step or record.get("purpose") != "evaluation",
        )
        self._wall_s += self._clock.end_step()["time/step_s"]  # the start of this process is not the step's
        self._clock.carry({name: value for name, value in so_far.items() if name.startswith("time/")})
        self._metrics = {name: value for name, value in so_far.items() if not name.startswith("time/")}
        return True

    def start_again(self, error: Exception | None = None) -> None:
        """After a worker's death: what was not ended will be done anew; `error` is the reason that all roles do so."""
        if error is not None:
            self.event("restarted", **_told(error))
        self._past_is_cut = False
        self._metrics = {}

    @contextlib.contextmanager
    def replaying(self, first: int, last: int) -> Iterator[None]:
        """Forget what the block logs: it learns again what steps `first..last` learned, whose lines are written."""
        self.event("replayed", first=first, last=last)
        kept = dict(self._metrics)
        try:
            with self.timed("replay"):
                yield
        finally:
            self._metrics = kept

    @property
    def last_ended(self) -> int | None:
        """The last step that has its line in metrics.jsonl; None where none has."""
        lines = last_lines(self.directory / "metrics.jsonl", 1)
        return lines[-1].get("step") if lines else None

    def steps(self, first: int, last: int) -> Iterator[int]:
        """Yield the numbers of the training steps (step 0 is the state before them), until the last or a requested
        stop.

        The current step is always finished; `is_last` states whether it is the final one.
        """
        # ray.init takes SIGTERM for itself; from here on it is ours again.
        self._signals.install()
        self._signals.patient = True
        self._progress = build_progress(self.directory.name, first, last, rich.get_console())
        self._steps = last
        # What came before (starting actors, loading a checkpoint) is wall time, but not the first step's.
        self._wall_s += self._clock.end_step()["time/step_s"]
        self._timelines.begin_step()
        try:
            for step in range(first, last + 1):
                if self._stops_before(step):
                    break
                self.step = step
                yield step
        finally:
            self._progress.close()
            self._progress = None

    @property
    def stop_requested(self) -> bool:
        """Whether Ctrl-C or SIGTERM asked to end after the current step."""
        return self._signals.received is not None

    def is_last(self, step: int) -> bool:
        """Return whether `step` is the final one, so that the job evaluates and saves.

        The answer is a promise: a stop that is requested after a False ends the run one step later.
        """
        if self._final is None or self._final[0] != step:
            self._final = (step, step >= self._steps or self.stop_requested)
        return self._final[1]

    def _stops_before(self, step: int) -> bool:
        promised_more = self._final == (step - 1, False)
        return self.stop_requested and not promised_more

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the block's seconds as `time/<phase>_s` of the current step.

        A phase inside another takes its seconds from the outer one, so the phases of a step add up.
        """
        with self._clock.timed(phase), RECORDER.span(phase), waiting(phase):
            yield

    def log(self, metrics: Mapping[str, float]) -> None:
        """Add metrics to the current step; of a name that is given twice the later value counts."""
        self._metrics.update({name: float(value) for name, value in metrics.items()})

    def end_step(self, step: int) -> dict[str, float]:
        """Write the step's one line to metrics.jsonl, forward it, and begin the next; returns the metrics."""
        self._forget_from(step)
        phases = self._clock.end_step()
        self._timelines.end_step(step)
        self._wall_s += phases["time/step_s"]
        metrics = {**self._metrics, **phases}
        self._metrics = {}
        line = {"step": step, "at": now(), "wall_s": round(self._wall_s, 3), **metrics}
        JsonLines(self.directory / "metrics.jsonl").append(line)
        self.step = step
        self._notify(lambda observer: observer.on_step(step, metrics))
        self._show(step, metrics)
        if self._progress is not None:
            self._progress.update(step, self._shown)
        self._status("running")
        if self._backup is not None:
            self._backup.after_step(step)
        return metrics

    def _show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take metrics for the progress line, which shows the newest of each name."""
        self._shown |= metrics
        if any(name.startswith("eval/") for name in metrics):
            self._shown[EVALUATED] = step

    def _notify(self, call: Callable[[Observer], None]) -> None:
        """Call every observer; the trouble of one is not the run's, whose files have everything."""
        for observer in list(self._observers):
            try:
                call(observer)
            except Exception as error:
                self._observers.remove(observer)
                log.warning("%s failed and gets nothing more: %s", observer.name, error)
                self.event("tracker_failed", tracker=observer.name, error=_first_line(error))

    # -- what is kept beside the metrics ---------------------------------------------------------------------

    def event(self, kind: str, **fields: Any) -> None:
        """Append something that happened (restart, retry, deadline) to events.jsonl; callable from any thread."""
        self._events.append({"at": now(), "step": self.step, "kind": kind, **fields})

    def _waited_for_room(self, what: str, seconds: float) -> None:
        log.warning("there is room again: %s was written after %.0f s", what, seconds)
        self.event("waited_for_room", what=what, seconds=round(seconds, 1))

    def log_rollouts(
        self, step: int, groups: Sequence[Group], limit: int, decode: Callable[[Sequence[int]], str] | None = None
    ) -> None:
        """Append up to `limit` of the step's groups, drawn by seed, to rollouts.jsonl, as `group_record` makes them."""
        self._forget_from(step)
        drawn = random.Random(f"rollouts/{step}").sample(range(len(groups)), min(limit, len(groups)))
        lines = [{"step": step, **group_record(groups[index], decode)} for index in sorted(drawn)]
        JsonLines(self.directory / "rollouts.jsonl").append(*lines)

    def log_answers(self, step: int, set_name: str, rows: Sequence[Mapping[str, Any]], *, limit: int = 24) -> None:
        """Append up to `limit` held-out answers to answers.jsonl: the same samples at every step, whatever their order.

        A row has sample_id, prompt, gold, text and metrics (name -> value), as `answer_row` makes it.
        """
        self._forget_from(step)
        chosen = sorted(rows, key=lambda row: hashlib.sha256(row["sample_id"].encode()).digest())[:limit]
        lines = [{"step": step, "set": set_name, **row} for row in chosen]
        JsonLines(self.directory / "answers.jsonl").append(*lines)

    def watch_calls(self, step: int, purpose: str) -> Watch | None:
        """Return what is given the model calls of a step, for calls.jsonl; None where `run.calls` wants none."""
        self._forget_from(step)
        return self._calls.at(step, purpose)

    def write_placement(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep the table of which role has which devices in placement.json, for the report."""
        write_atomically(self.directory / "placement.json", to_json([dict(row) for row in rows], indent=2) + "\n")

    def _forget_from(self, step: int, sampled: int = -1) -> None:
        """Cut the directory's files where this process begins: later lines were another attempt's."""
        if self._past_is_cut:
            return
        self._past_is_cut = True

        def stays(record: Mapping[str, Any]) -> bool:
            at = record.get("step", -1)
            return bool(at < step or (at <= sampled and record.get("purpose") == "rollout"))

        for name in STEP_FILES:
            keep_lines(self.directory / name, stays)
        past = read_lines(self.directory / "metrics.jsonl")
        if not self._wall_s_has_past:
            self._wall_s += (past[-1].get("wall_s") or 0.0) if past else 0.0
            self._wall_s_has_past = True
        for line in past:
            self._show(line["step"], {name: value for name, value in line.items() if isinstance(value, int | float)})

    # -- the end ---------------------------------------------------------------------------------------------

    def _status(self, state: str, waits_for: str | None = None, waits_since: str | None = None) -> None:
        waits = {"waits_for": waits_for, "waits_since": waits_since} if waits_for else {}
        status = {"state": state, "step": self.step, "steps": self._steps, "updated": now(), **waits}
        with self._status_lock:  # the heartbeat writes it, too
            if state != "running":
                self._ended = True
            elif self._ended:
                return
            with contextlib.suppress(*([OSError] if state == "running" else [])):  # what counts waits for room
                write_atomically(self.directory / "status.json", to_json(status) + "\n", waits=False)

    def _close(self, error: BaseException | None) -> None:
        self._signals.restore()
        try:
            self.checkpoints.settle()
        except (TroupeError, OSError) as trouble:  # `error` is what ended the run
            log.error("the last checkpoint was not completed: %s", trouble)
        state = self._end_state(error)
        try:
            self.event(state, **_told(error))
            self._status(state)
        except OSError as trouble:  # a full disk, say, which may be what `error` is about
            if error is None:
                raise
            log.error("%s: the end of the run cannot be written (%s)", self.directory, trouble)
        self._notify(lambda observer: observer.on_close(state))
        if self._backup is not None:
            self._backup.finish(wait_s=0.0 if isinstance(error, KeyboardInterrupt) else None)

    def _advice(self) -> str:
        """Return how to go on after an interruption."""
        saved = self.checkpoints.latest()
        if saved is not None and saved >= self._steps > 0:
            return f"{self.directory} is at its end, step {saved}"
        job = Path(sys.argv[0])
        ours = job.resolve().parent == JOBS
        command = (
            f"python {job} {self.directory / 'config.yaml'}" if ours else f"a call with run.name={self.directory.name}"
        )
        command += " run.resume=auto" if self.config.run.resume == "never" else ""  # type: ignore[attr-defined]
        if saved is None:
            return f"{self.directory} has no checkpoint yet; it begins again with: {command}"
        return f"{self.directory} is saved at step {saved}; it goes on with: {command}"

    def _end_state(self, error: BaseException | None) -> State:
        if error is None:
            return "stopped" if self.stop_requested and self.step < self._steps else "finished"
        return "stopped" if isinstance(error, KeyboardInterrupt) else "failed"


def build_store(config: Section, *, on_event: Any = lambda kind, **fields: None) -> CheckpointStore:
    """Return the checkpoints of the run that `config` names."""
    settings = getattr(config, "checkpoint", None)
    directory = config.run.path / "checkpoints"  # type: ignore[attr-defined]
    return CheckpointStore(
        directory,
        keep_last=getattr(settings, "keep_last", 2),
        in_background=getattr(settings, "in_background", False),
        on_event=on_event,
    )


def _model_name(config: Section) -> str:
    """Return the path or hub name of the model that a run starts from, or its type where it is made here."""
    model = getattr(config, "model", None)
    return str(getattr(model, "path", None) or getattr(model, "type", "model"))


def seed_everything(seed: int) -> None:
    """Seed the generators of this process; what is sampled elsewhere derives its own seeds from names."""
    random.seed(seed)
    with contextlib.suppress(ImportError):
        import numpy

        numpy.random.seed(seed % 2**32)
    with contextlib.suppress(ImportError):
        import torch

        torch.manual_seed(seed)


def _told(error: BaseException | None) -> dict[str, str]:
    """Return what events.jsonl reports of an error; a traceback only where the user cannot have caused it."""
    if error is None:
        return {}
    cause = user_error(error)
    told = {"error": _first_line(cause)}
    if isinstance(cause, TroupeError) and cause.details:
        told["details"] = cause.details
    if not isinstance(cause, TroupeError | KeyboardInterrupt):
        told["traceback"] = "".join(traceback.format_exception(error))
    return told


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")
