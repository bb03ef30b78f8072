"""Trackers beside the run directory: Weights & Biases and TensorBoard, the only place that imports them.

A tracker is handed what metrics.jsonl gets. It may be missing a line, it may never stop a run: `core.run` drops
one that fails and says so in events.jsonl. Keys come from the environment alone.
"""

from __future__ import annotations

import importlib.util
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from core.errors import ConfigError


class Tracker(Protocol):
    """Where metrics go beside metrics.jsonl."""

    name: str

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def finish(self, *, failed: bool) -> None: ...


def check_trackers(names: Sequence[str]) -> None:
    """Find out what a tracker lacks before anything starts."""
    for name in names:
        module = {"wandb": "wandb", "tensorboard": "tensorboard"}[name]
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"run.trackers names {name}, but the package {module} is not installed")
    online = os.environ.get("WANDB_MODE", "online") == "online"
    if "wandb" in names and online and not os.environ.get("WANDB_API_KEY"):
        raise ConfigError(
            "run.trackers names wandb, but WANDB_API_KEY is not in the environment; set it, or WANDB_MODE=offline"
        )


def build_trackers(names: Sequence[str], *, directory: Path, values: Mapping[str, Any]) -> list[Tracker]:
    """The trackers of the run in `directory`, whose recipe is `values`."""
    builders: dict[str, type[WandbTracker] | type[TensorBoardTracker]] = {
        "wandb": WandbTracker,
        "tensorboard": TensorBoardTracker,
    }
    return [builders[name](directory, values) for name in dict.fromkeys(names)]


class WandbTracker:
    """Weights & Biases; the project is WANDB_PROJECT, or troupe. Offline runs lie in `<run>/wandb`."""

    name = "wandb"

    def __init__(self, directory: Path, values: Mapping[str, Any]) -> None:
        import wandb

        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "troupe"),
                name=directory.name,
                id=_stable_id(directory / "wandb_id"),
                resume="allow",
                dir=str(directory),
                config=dict(values),
                settings=wandb.Settings(console="off", silent=True, save_code=False),
            )
        except wandb.errors.Error as error:
            raise ConfigError(
                f"wandb does not start: {str(error).splitlines()[0]}; WANDB_MODE=offline keeps the run on this machine"
            ) from error
        # W&B's own counter refuses steps that it has seen, which a resumed run writes again.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"step": step, **metrics})

    def finish(self, *, failed: bool) -> None:
        self._run.finish(exit_code=1 if failed else 0)


def _stable_id(file: Path) -> str:
    """The id under which W&B knows this run directory, so that a resumed run continues its curves."""
    if not file.is_file():
        file.write_text(uuid.uuid4().hex[:12] + "\n")
    return file.read_text().strip()


class TensorBoardTracker:
    """TensorBoard event files in `<run>/tensorboard`."""

    name = "tensorboard"

    def __init__(self, directory: Path, values: Mapping[str, Any]) -> None:
        self._directory = directory / "tensorboard"
        self._writer: Any = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # A resumed run takes back what an earlier process wrote from this step on.
            self._writer = SummaryWriter(str(self._directory), purge_step=step)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self, *, failed: bool) -> None:
        if self._writer is not None:
            self._writer.close()
