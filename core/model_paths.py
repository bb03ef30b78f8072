"""Where the model lies that a person named: in a run directory, in a directory of its own, in an object store, or on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from core.checkpoint import CheckpointStore
from core.errors import CheckpointError
from core.storage import fetch


def locate(model: str, checkpoint: Literal["best", "latest"] | int = "best") -> str:
    """The directory of a run's checkpoint, or the name as it was given, when that is no run; `s3://...` is fetched first.

    `best` is the latest where nothing was measured; a number is a step. Raises CheckpointError for a run without a
    complete checkpoint of that kind, and for a path where nothing is.
    """
    if model.startswith("s3://"):
        return str(fetch(model, checkpoint=checkpoint))
    checkpoints = Path(model) / "checkpoints"
    if not checkpoints.is_dir():
        if not Path(model).is_dir() and not is_hub_name(model):
            raise CheckpointError(
                f"there is no model at {model!r}; give a run directory, a checkpoint directory, s3://bucket/run or a hub name such as Qwen/Qwen2.5-0.5B-Instruct"
            )
        return model
    store = CheckpointStore(checkpoints)
    if isinstance(checkpoint, int):
        steps = store.steps()
        if checkpoint not in steps:
            raise CheckpointError(
                f"{model} has no complete checkpoint of step {checkpoint}; it has {', '.join(map(str, steps)) or 'none'}"
            )
        return str(store.path(checkpoint))
    best = store.best() if checkpoint == "best" else None
    step = best if best is not None else store.latest()
    if step is None:
        raise CheckpointError(
            f"{model} has no complete checkpoint yet; let the run write one, or give a checkpoint directory"
        )
    return str(store.path(step))


def is_hub_name(model: str) -> bool:
    """Whether `model` is a repository of the hub rather than a path: nothing is there, and it has a hub name's form."""
    return not Path(model).exists() and model.count("/") == 1 and not model.startswith((".", "/", "runs/"))
