"""Trackers beside the run directory: Weights & Biases and TensorBoard, the only place that imports them.

A tracker is handed what metrics.jsonl gets, and reads texts and checkpoints from the run directory. It may be missing
a line, it may never stop a run: `troupe.runs.run` drops one that fails and says so in events.jsonl. Keys come from the
environment alone.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import queue
import re
import shutil
import sys
import tempfile
import threading
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from troupe.errors import ConfigError, first_line
from troupe.files import read_lines
from troupe.report.tracker_tables import (
    NewLines,
    Table,
    answer_tables,
    evaluation_metrics,
    evaluation_tables,
    labels,
    rewards_of,
    rollout_table,
    sample_table,
)
from troupe.runs.checkpoint import MANIFEST, ONLY_TO_RESUME, CheckpointStore
from troupe.runs.run import Observer, State
from troupe.secrets import hide_login

log = logging.getLogger(__name__)

NOT_UPLOADED = (*ONLY_TO_RESUME, MANIFEST)
"""The parts of a checkpoint that only resuming needs; the trainer's state is several times the weights."""
MOST_ROLLOUT_ROWS = 512
"""Rollouts between two evaluations that a table and a histogram hold, the latest ones."""
WANDB_KEY = "WANDB_API_KEY"
UPLOAD_S = 1800.0
"""Seconds that the end of a run waits for checkpoints that are still being uploaded."""
FINISH_S = 600.0
"""And then for everything else; what is left lies in `<run>/wandb` for `wandb sync`."""


class Tracker(Observer, Protocol):
    """A place for metrics beside metrics.jsonl."""

    def log_tables(self, step: int, tables: Mapping[str, Table]) -> None:
        """Show tables beside the metrics of `step`."""


def check_trackers(names: Sequence[str], *, mode: str | None = None) -> None:
    """Find out what a tracker lacks before anything starts; `mode` is the recipe's `run.wandb.mode`."""
    for name in names:
        module = {"wandb": "wandb", "tensorboard": "tensorboard"}[name]
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"run.trackers names {name}, but the package {module} is not installed")
    online = (mode or os.environ.get("WANDB_MODE", "online")) == "online"
    if "wandb" in names and online and not os.environ.get(WANDB_KEY) and not find_wandb_login():
        raise ConfigError(
            f"run.trackers names wandb, but there is neither {WANDB_KEY} in the environment nor a login; set it, or "
            "run `wandb login`, or set WANDB_MODE=offline"
        )


def find_wandb_login() -> bool:
    """Return whether W&B finds a login: of `wandb login` in its settings or ~/.netrc, or an identity token's file.

    Nothing is asked of the user or the network. A key that is found is masked from now on like one of the environment.
    """
    import wandb

    try:
        found = wandb.setup(wandb.Settings(silent=True)) and wandb.login(prompt=False, verify=False)
        key = wandb.setup().settings.api_key
    except wandb.errors.Error as error:
        raise ConfigError(f"the login of wandb cannot be used: {first_line(error)}; run `wandb login`") from None
    finally:
        wandb.teardown()  # or wandb.init would know the environment of now alone
    if key:
        hide_login(WANDB_KEY, key)
    return bool(found)


def build_trackers(names: Sequence[str], *, directory: Path, values: Mapping[str, Any]) -> list[Tracker]:
    """Return the trackers of the run in `directory`, whose recipe is `values`."""
    builders: dict[str, type[WandbTracker] | type[TensorBoardTracker]] = {
        "wandb": WandbTracker,
        "tensorboard": TensorBoardTracker,
    }
    return [builders[name](directory, values) for name in dict.fromkeys(names)]


def log_evaluation(
    names: Sequence[str], *, directory: Path, values: Mapping[str, Any], measured: Mapping[str, Any]
) -> None:
    """Show what an evaluation `measured` (the content of its metrics.json) as numbers and tables of models and pairs.

    `directory` is where the evaluation was written and `values` its recipe. A tracker's trouble is a warning.
    """
    try:
        for tracker in build_trackers(names, directory=directory, values=values):
            tracker.on_step(0, evaluation_metrics(measured))
            tracker.log_tables(0, evaluation_tables(measured))
            tracker.on_close("finished")
    except Exception as error:  # whatever a tracker's library does; everything is on disk already
        log.warning("a tracker failed, everything is in %s: %s", directory, error)


# -- Weights & Biases --------------------------------------------------------------------------------------------


class WandbTracker:
    """Weights & Biases by `run.wandb`; offline runs lie in `<run>/wandb`.

    Beside the metrics it gets, with every evaluation, the answers and the sampled rollouts as tables and their rewards
    as histograms, and checkpoints as artifacts.
    """

    name = "wandb"

    def __init__(self, directory: Path, values: Mapping[str, Any]) -> None:
        import wandb

        self._wandb = wandb
        settings = (values.get("run") or values).get("wandb") or {}
        called = labels(directory, values, program=sys.argv[0])
        run_id = _stable_id(directory / "wandb_id")
        try:
            self._run = wandb.init(
                project=settings.get("project") or os.environ.get("WANDB_PROJECT", "troupe"),
                entity=settings.get("entity"),
                name=called.name,
                group=settings.get("group") or called.group,
                job_type=called.method,
                tags=list(dict.fromkeys([*called.tags, *settings.get("tags", [])])),
                mode=settings.get("mode"),
                id=run_id,
                resume="allow",
                dir=str(directory),
                config=dict(values),
                settings=wandb.Settings(console="off", silent=True, save_code=False, finish_timeout=FINISH_S),
            )
        except wandb.errors.Error as error:
            raise ConfigError(
                f"wandb does not start: {first_line(error)}; WANDB_MODE=offline keeps the run on this machine"
            ) from error
        # W&B's own counter refuses steps that it has seen, which a resumed run writes again.
        self._run.define_metric("*", step_metric="step")
        self._answers = NewLines(directory / "answers.jsonl")
        self._rollouts = NewLines(directory / "rollouts.jsonl")
        self._sampled: list[Mapping[str, Any]] = []
        self._directory = directory
        self._wanted = settings.get("artifacts", "none")
        self._called = re.sub(r"[^\w.-]", "-", f"{called.name}-{run_id[:6]}")
        uploads = self._wanted in ("best", "final", "all")
        self._artifacts = _Artifacts(self._run, directory, self._called) if uploads else None

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        self._sampled = [*self._sampled, *self._rollouts.of_step(step)][-MOST_ROLLOUT_ROWS:]
        answers = answer_tables(self._answers.of_step(step))
        shown: dict[str, Any] = {"step": step, **metrics}
        if answers or any(name.startswith("eval/") for name in metrics):
            shown |= {name: self._table(table) for name, table in answers.items()} | self._of_rollouts()
        self._run.log(shown)
        if self._artifacts is not None and self._wanted == "all":
            self._artifacts.take_new()

    def log_tables(self, step: int, tables: Mapping[str, Table]) -> None:
        self._run.log({"step": step, **{name: self._table(table) for name, table in tables.items()}})

    def on_close(self, state: State) -> None:
        if self._wanted != "none":
            self._log_report()
        final = self._wanted in ("final", "all")
        problems = self._artifacts.finish(final=final) if self._artifacts is not None else []
        self._run.finish(exit_code=1 if state == "failed" else 0)
        if problems:
            raise RuntimeError(f"{len(problems)} checkpoints were not uploaded, the first: {problems[0]}")

    def _log_report(self) -> None:
        """Log the report, and what the model answered before and after, as an artifact of their own."""
        artifact = self._wandb.Artifact(f"{self._called}-report", type="report")
        report = self._directory / "report.html"
        if report.is_file():
            artifact.add_file(str(report))
        samples = sample_table(read_lines(self._directory / "answers.jsonl"))
        if samples.rows:
            artifact.add(self._table(samples), "samples")
        self._run.log_artifact(artifact)

    def _of_rollouts(self) -> dict[str, Any]:
        """Return the rollouts since the last evaluation, and the distribution of their rewards."""
        table, self._sampled = rollout_table(self._sampled), []
        if not table.rows:
            return {}
        latest = Table(columns=table.columns, rows=table.rows[-MOST_ROLLOUT_ROWS:])
        shown: dict[str, Any] = {"rollouts/answers": self._table(latest)}
        rewards = rewards_of(table)
        return {**shown, "rollouts/rewards": self._wandb.Histogram(rewards)} if rewards else shown

    def _table(self, table: Table) -> Any:
        rows = [list(row) for row in table.rows]
        return self._wandb.Table(columns=list(table.columns), data=rows, allow_mixed_types=True)


class _Artifacts:
    """Uploads checkpoints from a thread of its own, so that no step waits.

    A checkpoint is linked aside first: the run may remove its own directory long before a slow upload has read it.
    """

    def __init__(self, run: Any, directory: Path, name: str) -> None:
        self._run, self._name = run, name
        self._store = CheckpointStore(directory / "checkpoints")
        self._aside = directory / "wandb" / "checkpoints"
        self._taken: set[int] = set()
        self._problems: list[str] = []
        self._queue: queue.SimpleQueue[tuple[int, Path, list[str]] | None] = queue.SimpleQueue()
        # A daemon: whatever an upload hangs on, the process can end.
        self._thread = threading.Thread(target=self._work, name="wandb artifacts", daemon=True)
        self._thread.start()

    def take_new(self) -> None:
        """Queue every complete checkpoint that was not there the last time."""
        for step in self._store.steps():
            if step not in self._taken:
                self._take(step, [f"step-{step}"])

    def finish(self, *, final: bool = False) -> list[str]:
        """Queue the best checkpoint, or the newest where none was measured, and the `final` one if it is wanted; wait;
        what could not be uploaded."""
        best, latest = self._store.best(), self._store.latest()
        aliases: dict[int, list[str]] = {}
        if latest is not None and (final or best is None):
            aliases[latest] = ["final"] if final else []
        if best is not None:
            aliases.setdefault(best, []).append("best")
        for step, names in sorted(aliases.items()):
            self._take(step, [f"step-{step}", *names])
        self._queue.put(None)
        self._thread.join(UPLOAD_S)
        if self._thread.is_alive():
            self._problems.append(f"the upload took longer than {UPLOAD_S:g} s")
        return self._problems

    def _take(self, step: int, aliases: list[str]) -> None:
        self._taken.add(step)
        self._aside.mkdir(parents=True, exist_ok=True)
        # A new name each time: a run that was restarted may write the same step again.
        aside = Path(tempfile.mkdtemp(prefix=f"{self._store.path(step).name}-", dir=self._aside))
        aside = self._store.set_aside(step, aside, leave_out=NOT_UPLOADED)
        self._queue.put((step, aside, aliases))

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            step, path, aliases = item
            try:
                self._upload(step, path, aliases)
            except Exception as error:
                log.warning("the checkpoint of step %d was not uploaded: %s", step, error)
                self._problems.append(f"step {step}: {type(error).__name__}: {error}")

    def _upload(self, step: int, path: Path, aliases: list[str]) -> None:
        import wandb

        artifact = wandb.Artifact(self._name, type="model", metadata={"step": step})
        for file in sorted(path.rglob("*")):
            relative = file.relative_to(path)
            if file.is_file() and relative.parts[0] not in NOT_UPLOADED:
                # Read in place: neither a copy in W&B's staging directory nor one in its cache.
                artifact.add_file(str(file), name=relative.as_posix(), policy="immutable", skip_cache=True)
        logged = self._run.log_artifact(artifact, aliases=aliases)
        if self._run.offline:
            return  # `wandb sync` reads the files later
        logged.wait(timeout=int(UPLOAD_S))
        if path.is_relative_to(self._aside):
            shutil.rmtree(path, ignore_errors=True)


def _stable_id(file: Path) -> str:
    """Return the id under which W&B knows this run directory, so that a resumed run continues its curves."""
    if not file.is_file():
        file.write_text(uuid.uuid4().hex[:12] + "\n")
    return file.read_text().strip()


# -- TensorBoard -------------------------------------------------------------------------------------------------


class TensorBoardTracker:
    """TensorBoard event files in `<run>/tensorboard`."""

    name = "tensorboard"

    def __init__(self, directory: Path, values: Mapping[str, Any]) -> None:
        self._directory = directory / "tensorboard"
        self._writer: Any = None

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        writer = self._started(step)
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    def log_tables(self, step: int, tables: Mapping[str, Table]) -> None:
        writer = self._started(step)
        for name, table in tables.items():
            writer.add_text(name, _markdown(table), step)
        writer.flush()

    def on_close(self, state: State) -> None:
        if self._writer is not None:
            self._writer.close()

    def _started(self, step: int) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # A resumed run takes back what an earlier process wrote from this step on.
            self._writer = SummaryWriter(str(self._directory), purge_step=step)
        return self._writer


def _markdown(table: Table) -> str:
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    cells = [
        ["" if cell is None else f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in line]
        for line in lines
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
