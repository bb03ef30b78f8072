"""What every training job stands on: the run, its data, the cluster, the model it starts from; and starting again.

    with open_context(config, prepared, init_timeout_s=...) as context:
        for attempt in attempts(context):
            with start_roles(config, context) as roles, attempt:
                train_loop(config, context, roles)

When a worker dies in the middle and its role cannot be mended alone (`troupe.training.recovery`), all roles end, start
again and go on from the last checkpoint, as often as the config allows.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from troupe.actors.meters import PrometheusTracker, write_prometheus_targets
from troupe.actors.placement import Cluster, placement_table, starts_on_this_cpu
from troupe.data import DataSet
from troupe.engines.trial import EngineDiesError, Trial, trial_beside
from troupe.errors import PeerError, SyncError, WorkerError
from troupe.ops.doctor import require_shared_memory
from troupe.processes.waiting import WAITS
from troupe.records import Group
from troupe.report.observers import open_run
from troupe.runs.run import Run
from troupe.training.console import print_opening, print_summary, warm_start_progress
from troupe.training.kept_data import data_of_run, model_of_run
from troupe.training.preparation import Prepared
from troupe.training.recovery import TRAINED
from troupe.training.warm_start import starting_model

if TYPE_CHECKING:
    from troupe.training.roles import Roles

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """A run before its roles start."""

    run: Run
    cluster: Cluster
    data: DataSet
    model_path: str
    """Directory or hub name of the model to start from."""
    precision: str
    encoded: Mapping[str, Group | None] = field(default_factory=dict)
    """What `Prepared.encoded` is."""


@contextlib.contextmanager
def open_context(config: Any, prepared: Prepared, *, init_timeout_s: float) -> Iterator[RunContext]:
    """Open the run of `config`, its data, the cluster and the model it starts from; print the summary after its end.

    Raises ConfigError where the cluster lacks what the placement needs, and what `Run.open` and the warm start raise.
    """
    if starts_on_this_cpu(config.placement):
        require_shared_memory(sum(rank.role in TRAINED for rank in placement_table(config, device="cpu")))
    with open_run(config) as run:
        data = data_of_run(run, prepared.data)
        with _observed_cluster(config, run) as cluster:
            precision: str = cluster.machine.precision(config.model_precision)
            table = placement_table(config, device=cluster.machine.device)
            samples = any(rank.role == "generator" for rank in table)
            find_model = _tried_model if samples and cluster.computes_here else _starting_model
            model_path, precision = find_model(config, run, data, cluster, precision)
            cluster.reserve(table, init_timeout_s)
            cluster.require_shared(run.directory)
            print_opening(config, cluster, precision)
            run.write_placement(cluster.rows())
            with WAITS.listening(lambda *_: _follow_machines(cluster, run)):
                yield RunContext(
                    run=run,
                    cluster=cluster,
                    data=data,
                    model_path=model_path,
                    precision=precision,
                    encoded=prepared.encoded,
                )
        print_summary(run.directory)


def _follow_machines(cluster: Cluster, run: Run) -> None:
    """Say when a machine is lost, and where its roles go."""
    moves = cluster.moves()
    for sentence in moves:
        log.warning("%s", sentence)
        run.event("moved", what=sentence)
    if moves:
        run.write_placement(cluster.rows())


class Recoverable:
    """A block that trains; an error that blames a trained role ends the block and is kept."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.error: PeerError | None = None

    def __enter__(self) -> Recoverable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if isinstance(error, PeerError) and error.role in TRAINED and not self._run.stop_requested:
            self.error = error
        return self.error is not None


class Attempt:
    """A block that trains; the death of a worker in it ends the block and is kept, unless it was the last attempt."""

    def __init__(self, run: Run, *, is_last: bool) -> None:
        self._run, self._is_last = run, is_last
        self.error: WorkerError | SyncError | None = None

    def __enter__(self) -> Attempt:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if not isinstance(error, WorkerError | SyncError) or self._is_last or self._run.stop_requested:
            return False
        self.error = error
        return True


def attempts(context: RunContext) -> Iterator[Attempt]:
    """Yield attempts, at most `run.max_restarts` after the first, until one ends without the death of a worker.

    Roles start before the attempt is entered: one that cannot even start is an error at once.
    """
    run = context.run
    limit: int = run.config.run.max_restarts  # type: ignore[attr-defined]
    for restarts in range(limit + 1):
        attempt = Attempt(run, is_last=restarts == limit)
        yield attempt
        if attempt.error is None:
            return
        log.warning("%s; starting again from the last checkpoint (%d of %d)", attempt.error, restarts + 1, limit)
        run.start_again(attempt.error)


def recoveries(context: RunContext, roles: Roles) -> Iterator[Recoverable]:
    """Yield blocks in which the policy's or the critic's ranks may die: they alone start again, and the next block goes
    on from the checkpoint and the groups that were kept.
    """
    run = context.run
    while True:
        block = Recoverable(run)
        yield block
        if block.error is None:
            return
        roles.restart_trained(block.error, from_checkpoint=run.checkpoints.latest() is not None)
        run.start_again()


def _tried_model(config: Any, run: Run, data: DataSet, cluster: Cluster, precision: str) -> tuple[str, str]:
    """Return the model to start from, and the precision: fp32 where engines die in bf16 and the recipe does not name
    it.

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
    """Return the model to start from; the failure of the trial beside it ends the warm start at its next step."""
    with warm_start_progress() as progress:

        def report(step: int, steps: int, metrics: dict[str, float]) -> None:
            if beside is not None and beside.done():
                beside.result()
            progress(step, steps, metrics)

        def make() -> str:
            for restarts in range(config.run.max_restarts + 1):
                try:
                    return starting_model(
                        config.model, data, cluster, precision=precision, seed=config.seed, progress=report
                    )
                except EngineDiesError:
                    raise
                except WorkerError as error:
                    if _has_failed(beside) or restarts == config.run.max_restarts or run.stop_requested:
                        raise
                    log.warning("%s; the warm start begins again (%d)", error, restarts + 1)
                    run.start_again(error)
            raise AssertionError("the last attempt returns or raises")

        return model_of_run(run, data, make) if config.model.type == "scratch" else make(), precision


def _has_failed(trial: Future[Trial] | None) -> bool:
    return trial is not None and trial.done() and trial.exception() is not None


@contextlib.contextmanager
def _observed_cluster(config: Any, run: Run) -> Iterator[Cluster]:
    """Provide the cluster of a run, whose workers show what they do to Prometheus and in the timelines."""
    cluster = Cluster(config.placement, config.run)
    try:
        run.add_spans(cluster.spans)
        if not cluster.inline:
            run.observe(PrometheusTracker(config.run.name))
        with write_prometheus_targets(run.directory, config.run.name, cluster.metrics_addresses()):
            yield cluster
    finally:
        cluster.close()
