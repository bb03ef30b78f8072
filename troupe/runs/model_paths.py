"""Where the model lies that a person named: in a run directory, in a directory of its own, in an object store, or on
the hub.
"""

from __future__ import annotations

from pathlib import Path

from troupe import runs
from troupe.errors import CheckpointError
from troupe.names import is_hub_name, step_of
from troupe.runs.checkpoint import MANIFEST, Check, CheckpointStore, Wanted, damage, model_damage


def locate(model: str, checkpoint: Wanted = "best", *, whole: bool = False) -> str:
    """Return the directory of a run's checkpoint, or the name as it was given, when that is no run; `s3://...` is
    fetched first.

    `best` is the latest where nothing was measured; a number is a step. A checkpoint's files are compared with its
    manifest, what only resuming needs when `whole`; of `best` and `latest` a damaged one is passed over. Raises
    CheckpointError for a run without a whole checkpoint of that kind, and for a path where nothing is.
    """
    if model.startswith("s3://"):
        return str(runs.fetch(model, checkpoint=checkpoint))
    checkpoints = Path(model) / "checkpoints"
    if not checkpoints.is_dir():
        if not Path(model).is_dir() and not is_hub_name(model):
            raise CheckpointError(
                f"there is no model at {model!r}; give a run directory, a checkpoint directory, s3://bucket/run or a "
                f"hub name such as Qwen/Qwen2.5-0.5B-Instruct"
            )
        _require_whole(Path(model), _damage_of_what_is_there if whole else model_damage, parts=whole)
        return model
    store = CheckpointStore(checkpoints)
    return str(store.path(store.choose(checkpoint, damage if whole else model_damage)))


def _require_whole(directory: Path, check: Check, *, parts: bool) -> None:
    """CheckpointError where `directory` is a damaged checkpoint, or a part of one; files may be gone where `parts`
    do.
    """
    directory = directory.resolve()  # `latest` and `best` are links
    for path in (directory, directory.parent):
        step = step_of(path.name)
        if step is not None and (path / MANIFEST).exists():
            if not parts:
                CheckpointStore(path.parent).verify(step)
            if (problem := check(path)) is not None:
                raise CheckpointError(f"{path} is damaged: {problem}; give another checkpoint, or copy it again")


def _damage_of_what_is_there(path: Path) -> str | None:
    """Return what is wrong with the files that are there: shards without safetensors can be exported."""
    return damage(path, mine=lambda name: (path / name).exists())
