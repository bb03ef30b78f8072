"""Where the model lies that a person named: in a run directory, in a directory of its own, in an object store, on the
hub, in a GGUF file, or in a LoRA directory and its base.
"""

from __future__ import annotations

from pathlib import Path

from troupe import runs
from troupe.errors import CheckpointError
from troupe.names import is_hub_name, step_of
from troupe.runs.checkpoint import MANIFEST, Check, CheckpointStore, Wanted, damage, model_damage

SMOLLM2 = Path(".cache/models/smollm2-135m-instruct")
"""Where `make smollm2` puts its model, and the recipes of configs/smollm2 look for it."""


def locate(model: str, checkpoint: Wanted = "best", *, whole: bool = False) -> str:
    """Return the directory of a run's checkpoint, or the name as it was given, when that is no run; `s3://...` is
    fetched first, and a GGUF file or an adapter is converted, once.

    `best` is the latest where nothing was measured; a number is a step. A checkpoint's files are compared with its
    manifest, what only resuming needs when `whole`; of `best` and `latest` a damaged one is passed over. Raises
    CheckpointError for a run without a whole checkpoint of that kind, and for a path where nothing is.
    """
    if model.startswith("s3://"):
        return str(runs.fetch(model, checkpoint=checkpoint))
    if model.endswith(".gguf"):
        from troupe.runs.gguf_files import directory_of_gguf

        return directory_of_gguf(Path(model))
    checkpoints = Path(model) / "checkpoints"
    if checkpoints.is_dir():
        store = CheckpointStore(checkpoints)
        return str(store.path(store.choose(checkpoint, damage if whole else model_damage)))
    if not Path(model).is_dir() and Path(model) == SMOLLM2:
        raise CheckpointError(
            f"{model} is not here yet: `make smollm2` makes it; with a Hugging Face hub at hand, name "
            f"HuggingFaceTB/SmolLM2-135M-Instruct in its place"
        )
    if not Path(model).is_dir() and not is_hub_name(model):
        raise CheckpointError(
            f"there is no model at {model!r}; give a run directory, a checkpoint directory, a .gguf file, "
            f"s3://bucket/run or a hub name such as Qwen/Qwen2.5-0.5B-Instruct"
        )
    _require_whole(Path(model), _damage_of_what_is_there if whole else model_damage, parts=whole)
    if not _is_adapter(Path(model)):
        return model
    from troupe.runs.adapter_merge import directory_of_adapter

    return directory_of_adapter(Path(model), locate)


def _is_adapter(directory: Path) -> bool:
    """Return whether a directory holds an adapter and no model of its own."""
    return (directory / "adapter_config.json").is_file() and not any(directory.glob("model*.safetensors"))


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
