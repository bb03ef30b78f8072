"""What every training job has in common: the run, its data, the machines, the model it starts from, and starting again.

A job says who plays (`cast`, a context manager) and what is played (`play`). When a worker dies in the middle, all roles
are ended, started again and go on from the last checkpoint, as often as the recipe allows.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

from actors.meters import PrometheusTracker, targets_told
from actors.placement import Seat, Stage
from actors.warm_start import starting_model
from core.errors import SyncError, WorkerError
from core.run import Run
from core.waiting import waiting
from data import DataSet
from jobs.closing import print_opening, print_summary, warm_start_progress
from jobs.kept_data import data_of_run, model_of_run
from jobs.preparation import Prepared

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a job has before its roles start."""

    run: Run
    stage: Stage
    data: DataSet
    model_path: str
    """Directory or hub name of the model to start from."""
    precision: str


def perform(
    config: Any,
    prepared: Prepared,
    *,
    table: Callable[[str], list[Seat]],
    cast: Callable[[Scene], AbstractContextManager[T]],
    play: Callable[[Scene, T], None],
    init_timeout_s: float,
) -> None:
    """Run a training job from opening its directory to its summary; `table` gives the seats on a device."""
    with Run.open(config) as run:
        data = data_of_run(run, prepared.data)
        with _watched_stage(config, run) as stage:
            precision = stage.machine.precision(config.model_precision)
            seats = table(stage.machine.device)

            def start() -> str:
                with warm_start_progress() as progress:
                    return starting_model(
                        config.model, data, stage, precision=precision, seed=config.seed, progress=progress
                    )

            made_here = config.model.type == "scratch"
            model_path = model_of_run(run, data, start) if made_here else start()
            stage.reserve(seats, init_timeout_s)
            stage.require_shared(run.directory)
            print_opening(config, stage, precision)
            run.write_placement(stage.rows())
            scene = Scene(run=run, stage=stage, data=data, model_path=model_path, precision=precision)
            restarts = 0
            while (error := _attempt(scene, cast, play)) is not None:
                restarts += 1
                if restarts > config.run.max_restarts or run.stop_requested:
                    raise error
                log.warning(
                    "%s; starting again from the last checkpoint (%d of %d)", error, restarts, config.run.max_restarts
                )
                run.start_again(error)
        print_summary(run.directory)


@contextlib.contextmanager
def _watched_stage(config: Any, run: Run) -> Iterator[Stage]:
    """The stage of a run, whose workers show what they do to Prometheus and in the timelines."""
    stage = Stage(config.placement, config.run)
    try:
        run.attach(stage.spans, [] if stage.inline else [PrometheusTracker(config.run.name)])
        with targets_told(run.directory, config.run.name, stage.metrics_addresses()):
            yield stage
    finally:
        stage.close()


def _attempt(
    scene: Scene, cast: Callable[[Scene], AbstractContextManager[T]], play: Callable[[Scene, T], None]
) -> WorkerError | SyncError | None:
    """Play once; the failure of a worker that had started, or None. A role that cannot even start is an error at once."""
    with contextlib.ExitStack() as stack:
        with waiting("the roles start"):
            troupe = stack.enter_context(cast(scene))
        try:
            play(scene, troupe)
        except (WorkerError, SyncError) as error:
            return error
    return None
