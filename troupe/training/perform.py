"""What every training job has in common: the run, its data, the machines, the model it starts from, and starting again.

A job says who plays (`cast`, a context manager) and what is played (`play`). When a worker dies in the middle, all roles
are ended, started again and go on from the last checkpoint, as often as the recipe allows.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

from troupe.actors.meters import PrometheusTracker, targets_told
from troupe.actors.placement import Cluster, RankPlacement, starts_on_this_cpu
from troupe.data import DataSet
from troupe.engines.trial import EngineDiesError, Trial, trial_beside
from troupe.errors import SyncError, WorkerError
from troupe.ops.doctor import require_shared_memory
from troupe.processes.waiting import waiting
from troupe.report.observers import open_run
from troupe.runs.run import Run
from troupe.training.console import print_opening, print_summary, warm_start_progress
from troupe.training.kept_data import data_of_run, model_of_run
from troupe.training.preparation import Prepared
from troupe.training.warm_start import starting_model

log = logging.getLogger(__name__)

T = TypeVar("T")

TRAINED = ("policy", "critic")
"""Roles whose ranks hold DeepSpeed's buffers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """What a job has before its roles start."""

    run: Run
    cluster: Cluster
    data: DataSet
    model_path: str
    """Directory or hub name of the model to start from."""
    precision: str


def perform(
    config: Any,
    prepared: Prepared,
    *,
    table: Callable[[str], list[RankPlacement]],
    cast: Callable[[RunContext], AbstractContextManager[T]],
    play: Callable[[RunContext, T], None],
    init_timeout_s: float,
) -> None:
    """Run a training job from opening its directory to its summary; `table` gives the seats on a device."""
    if starts_on_this_cpu(config.placement):
        require_shared_memory(sum(seat.role in TRAINED for seat in table("cpu")))
    with open_run(config) as run:
        data = data_of_run(run, prepared.data)
        with _watched_stage(config, run) as cluster:
            precision: str = cluster.machine.precision(config.model_precision)
            placement_table = table(cluster.machine.device)
            samples = any(seat.role == "generator" for seat in placement_table)
            start = _tried_model if samples and cluster.computes_here else _starting_model
            model_path, precision = start(config, run, data, cluster, precision)
            cluster.reserve(placement_table, init_timeout_s)
            cluster.require_shared(run.directory)
            print_opening(config, cluster, precision)
            run.write_placement(cluster.rows())
            scene = RunContext(run=run, cluster=cluster, data=data, model_path=model_path, precision=precision)
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


def _tried_model(config: Any, run: Run, data: DataSet, cluster: Cluster, precision: str) -> tuple[str, str]:
    """The model to start from, and the precision: fp32 where engines die in bf16 and the recipe does not name it.

    An engine's first request is tried beside the warm start, whose minutes would be lost where engines die.
    """
    try:
        with trial_beside(precision) as trial:
            model = _starting_model(config, run, data, cluster, precision, beside=trial)
            if trial.result().deaths:
                log.warning("%s", trial.result())
            return model
    except EngineDiesError as error:
        if config.model_precision != "auto" or precision == "fp32":
            raise
        log.warning("%s; this run goes on in fp32", error)
        return _tried_model(config, run, data, cluster, "fp32")


def _starting_model(
    config: Any, run: Run, data: DataSet, cluster: Cluster, precision: str, *, beside: Future[Trial] | None = None
) -> tuple[str, str]:
    """The model to start from; the failure of the trial beside it ends the warm start at its next step."""
    with warm_start_progress() as progress:

        def report(step: int, steps: int, metrics: dict[str, float]) -> None:
            if beside is not None and beside.done():
                beside.result()
            progress(step, steps, metrics)

        def make() -> str:
            return starting_model(config.model, data, cluster, precision=precision, seed=config.seed, progress=report)

        return model_of_run(run, data, make) if config.model.type == "scratch" else make(), precision


@contextlib.contextmanager
def _watched_stage(config: Any, run: Run) -> Iterator[Cluster]:
    """The stage of a run, whose workers show what they do to Prometheus and in the timelines."""
    cluster = Cluster(config.placement, config.run)
    try:
        run.add_spans(cluster.spans)
        if not cluster.inline:
            run.observe(PrometheusTracker(config.run.name))
        with targets_told(run.directory, config.run.name, cluster.metrics_addresses()):
            yield cluster
    finally:
        cluster.close()


def _attempt(
    scene: RunContext, cast: Callable[[RunContext], AbstractContextManager[T]], play: Callable[[RunContext, T], None]
) -> WorkerError | SyncError | None:
    """Play once; the failure of a worker that had started, or None. A role that cannot even start is an error at once."""
    with contextlib.ExitStack() as stack:
        with waiting("the roles start"):
            roles = stack.enter_context(cast(scene))
        try:
            play(scene, roles)
        except (WorkerError, SyncError) as error:
            return error
    return None
