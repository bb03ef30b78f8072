"""A new run that begins where another one stood: its checkpoint, its lines up to that step, and its recipe."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from troupe.config.fields import changed_keys, flat_values, is_under
from troupe.config.loader import laid_onto, read_layers
from troupe.disk import disk_errors
from troupe.errors import ConfigError
from troupe.files import JsonLines, keep_lines, now, read_json, to_json, write_atomically
from troupe.runs.checkpoint import INDEX, CheckpointStore, Wanted, checked_index
from troupe.runs.run_directory import ENGINES, value_in
from troupe.runs.stored_run import CHECKPOINTS, StoredRun, run_files

TAKEN_OVER = ("config.yaml", "environment.json", "metrics.jsonl", "rollouts.jsonl", "answers.jsonl", "calls.jsonl")
"""The rest (events, state, report, identities of trackers) is the other run's own."""
WHAT_IS_TRAINED = [f"{engine}.{part}" for engine in ENGINES for part in ("lora", "frozen_layers")]
"""Settings that decide which weights a checkpoint has the moments of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forked:
    """The new run: its directory, the step it stands at, and the job that goes on with it."""

    path: Path
    step: int
    program: str


def fork(source: StoredRun | Path, path: Path, *, step: Wanted, overrides: Sequence[str] = ()) -> Forked:
    """Make the run `path` from a step of `source`; the source stays as it is.

    ConfigError where the new run exists or an override cannot be read; the job checks the recipe as a whole.
    """
    if path.exists():
        raise ConfigError(f"{path} exists; choose another name, or remove it: python jobs/runs.py delete {path}")
    aside = path.with_name(f".forking-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    with disk_errors("the new run", path):
        try:
            number = _pulled(source, aside, step) if isinstance(source, StoredRun) else _copied(source, aside, step)
            _cut(aside, number)
            _write_recipe(aside / "config.yaml", path, overrides)
            name = source.bucket.address if isinstance(source, StoredRun) else str(source)
            JsonLines(aside / "events.jsonl").append(
                {"at": now(), "step": number, "kind": "forked", "source": name, "changed": list(overrides)}
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            os.rename(aside, path)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    program = (read_json(path / "environment.json") or {}).get("program", "train_grpo.py")
    return Forked(path=path, step=number, program=program)


def _pulled(source: StoredRun, aside: Path, step: Wanted) -> int:
    manifests = source.manifests()
    number = source.choose(step, sorted(manifests))
    for name in (*TAKEN_OVER, f"{CHECKPOINTS}/{INDEX}"):
        if name in source.bucket.sizes(name):
            source.bucket.get(name, aside / name)
    source.pull_step(number, manifests[number], aside)
    return number


def _copied(source: Path, aside: Path, step: Wanted) -> int:
    store = CheckpointStore(source / CHECKPOINTS)
    number = store.choose(step)
    for file in run_files(source):
        if file.name in (*TAKEN_OVER, f"{CHECKPOINTS}/{INDEX}"):
            place = aside / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file.path, place)  # no link: the new run appends to it
    place = CheckpointStore(aside / CHECKPOINTS).path(number)
    place.mkdir(parents=True)
    if store.set_aside(number, place) != place:
        shutil.copytree(store.path(number), place)
    return number


def _cut(path: Path, step: int) -> None:
    """Drop what the other run did after `step`."""
    for name in TAKEN_OVER:
        if name.endswith(".jsonl"):
            keep_lines(path / name, lambda record: record.get("step", -1) <= step)
    file = path / CHECKPOINTS / INDEX
    index = checked_index(read_json(file))
    if index["metrics"]:
        index["metrics"] = {number: value for number, value in index["metrics"].items() if int(number) <= step}
        write_atomically(file, to_json(index, indent=2) + "\n")


def _write_recipe(file: Path, path: Path, overrides: Sequence[str]) -> None:
    own = {"run": {"name": path.name, "directory": str(path.parent), "resume": "auto"}}
    # Unresolved: references to secrets of the environment stay references.
    values = laid_onto(read_layers([str(file), *overrides]), own)
    before, after = flat_values(read_layers([str(file)])), flat_values(values)
    for key in changed_keys(before, after):
        if key in after and is_under(key, WHAT_IS_TRAINED):
            raise ConfigError(
                f"a fork cannot change {key} ({value_in(before, key)} -> {value_in(after, key)}), since it goes on "
                "with the weights that were trained; begin a new run with the checkpoint as model.path"
            )
    write_atomically(file, OmegaConf.to_yaml(OmegaConf.create(values)))
