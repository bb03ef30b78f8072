"""Where a checkpoint is from: its run, step and recipe, and the model that the runs before it began with."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from troupe.errors import CheckpointError
from troupe.files import read_json
from troupe.runs.checkpoint import INDEX, checked_index, read_manifest
from troupe.runs.model_paths import locate

LONGEST_CHAIN = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Example: `Provenance(directory=Path("runs/ppo/checkpoints/step-000040"), run=Path("runs/ppo"), step=40,
    chain=("runs/ppo", "runs/sft", "EleutherAI/gpt-j-6b"), recipe={...}, ...)`."""

    directory: Path
    run: Path | None = None
    """None for a model that no run of ours wrote."""
    step: int | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """The run's resolved recipe."""
    program: str | None = None
    """The job that wrote it, `train_grpo.py`."""
    metric: float | None = None
    """What was measured at the step, where that chose the best checkpoint."""
    chain: tuple[str, ...] = ()
    """This run, the one that it started from, and so on to a model that is no run; `scratch` for one made here."""

    @property
    def engine(self) -> Mapping[str, Any]:
        """Return the recipe's section of the trained model: critic, policy, or a supervised job's engine."""
        name = "critic" if self.directory.name == "critic" else "policy" if "policy" in self.recipe else "engine"
        return self.recipe.get(name) or {}


def provenance(directory: str) -> Provenance:
    """Return what is known of the checkpoint (or part of one) in `directory`; of a foreign model its name alone."""
    # Links such as `best` lead to the step; a relative path has no parents to look through.
    path = Path(directory).resolve() if Path(directory).exists() else Path(directory)
    run = next((parent.parent for parent in path.parents if parent.name == "checkpoints"), None)
    if run is None or not (run / "config.yaml").is_file():
        return Provenance(directory=path, chain=(directory,))
    recipe = _recipe(run)
    step_directory = path.parent if path.name == "critic" else path
    step = (read_manifest(step_directory) or {}).get("step")
    metrics = checked_index(read_json(run / "checkpoints" / INDEX))["metrics"]
    return Provenance(
        directory=path,
        run=run,
        step=step,
        recipe=recipe,
        program=(read_json(run / "environment.json") or {}).get("program"),
        metric=metrics.get(str(step)),
        chain=(run.name, *_beginnings(recipe)),
    )


def _recipe(run: Path) -> dict[str, Any]:
    # Unresolved: a recipe may name secrets of the environment, and none is needed here.
    values = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"), resolve=False)
    return values if isinstance(values, dict) else {}


def _beginnings(recipe: Mapping[str, Any]) -> list[str]:
    """Return the models before a run's: run by run, to one that is none."""
    found: list[str] = []
    for _ in range(LONGEST_CHAIN):
        model = recipe.get("model") or {}
        if model.get("type", "pretrained") == "scratch":
            return [*found, "scratch"]
        start = str(model.get("path", "unknown"))
        if start.startswith("s3://"):  # its address says enough; nothing is fetched for it
            return [*found, start]
        with contextlib.suppress(CheckpointError):  # the earlier run may be gone; its name is still known
            start = locate(start)
        run = next((parent.parent for parent in Path(start).parents if parent.name == "checkpoints"), None)
        if run is None:
            return [*found, start]
        found.append(run.name)
        if not (run / "config.yaml").is_file():
            return found
        recipe = _recipe(run)
    return found


def hub_name(name: str) -> bool:
    """Return whether a model's name can only be one of the hub: `owner/name`, and there is no such path."""
    return name.count("/") == 1 and not name.startswith((".", "/", "runs/")) and not Path(name).exists()
