"""What a pipeline remembers of its stages, and what follows from it: skip, go on, or run again, and why.

`pipeline.json` holds a record per stage with everything that its result depends on, so the reason for running a
stage again is a difference that can be named. Starting the stages is `jobs/run_pipeline.py`'s.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from troupe.config.fields import changed_keys, is_under
from troupe.config.tools import PipelineConfig, Reference
from troupe.errors import CheckpointError
from troupe.files import now, read_json, sha256_of, to_json, write_atomically
from troupe.runs.checkpoint import MANIFEST, CheckpointStore, model_damage
from troupe.runs.run_directory import MAY_CHANGE, value_in

STATE_FILE = "pipeline.json"
IGNORED = (*(key for key in MAY_CHANGE if key != "steps"), "output")
"""Settings of a finished stage that may change without it being run again: they decide no result."""
MOST_SHOWN = 3
"""Differences that are named in a line."""

UNFINISHED = {"running": "it was cut off", "stopped": "it was stopped", "failed": "it failed"}

State = Literal["waiting", "running", "finished", "stopped", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """A stage as it was run: with what, how that ended, and what it left."""

    job: str
    state: State = "waiting"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """The resolved recipe by dotted names, as JSON keeps it; without its inputs and its place."""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """Dotted name -> a mapping `stage`, `path`, `identity` for each thing that goes there."""
    begun: str | None = None
    """When its first process began, UTC."""
    seconds: float = 0.0
    """Wall time of all its processes."""
    output: str | None = None
    """Where it writes: a run directory, or what the job takes as `output`."""
    handover: str | None = None
    """What later stages take: a directory in Hugging Face format, or its output."""
    error: str | None = None
    """Why it failed, in a sentence."""
    tail: list[str] = field(default_factory=list)
    """The last lines of its log when it failed."""

    @classmethod
    def read(cls, values: Any) -> StageRecord | None:
        """Read a record from JSON; None where another version wrote it in a way that this one cannot read."""
        known = {name.name for name in fields(cls)}
        if not isinstance(values, dict) or "job" not in values:
            return None
        return cls(**{key: value for key, value in values.items() if key in known})


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The thing to do with a stage, and why in a few words."""

    action: Literal["skip", "run", "resume", "anew"]
    why: str

    def in_words(self) -> str:
        verb = {"skip": "skipped", "run": "runs", "resume": "goes on", "anew": "runs again"}[self.action]
        return f"{verb}: {self.why}" if self.why else verb


class PipelineState:
    """`pipeline.json`: the records of a pipeline's stages, written after every change."""

    def __init__(self, config: PipelineConfig) -> None:
        self._config = config
        self._file = config.path / STATE_FILE
        saved = (read_json(self._file) or {}).get("stages", {})
        records = {name: StageRecord.read(saved.get(name)) for name in config.stages}
        self._records = {name: records[name] or StageRecord(job=stage.job) for name, stage in config.stages.items()}

    def __getitem__(self, name: str) -> StageRecord:
        return self._records[name]

    def put(self, name: str, record: StageRecord) -> None:
        self._records[name] = record
        content = {
            "name": self._config.name,
            "updated": now(),
            "stages": {name: asdict(record) for name, record in self._records.items()},
        }
        write_atomically(self._file, to_json(content, indent=2) + "\n")

    def resolve(self, reference: Reference) -> dict[str, str]:
        """Return the stage, path and identity (a digest of the content) of what `reference` names.

        Raises CheckpointError when the stage is not finished, or what it handed over is not there.
        """
        record = self[reference.stage]
        if record.state != "finished" or record.handover is None:
            raise CheckpointError(
                f"the stage {reference.stage!r} has handed nothing over yet (it is {record.state}); run it first"
            )
        path = Path(record.handover, reference.inside) if reference.inside else Path(record.handover)
        if not path.exists():
            raise CheckpointError(
                f"the stage {reference.stage!r} should have left {path}, which is not there; "
                f"force=[{reference.stage}] runs it again"
            )
        return {"stage": reference.stage, "path": str(path), "identity": identity(path)}


def decide(
    record: StageRecord,
    *,
    job: str,
    recipe: Mapping[str, Any],
    inputs: Mapping[str, Any] | None,
    remade: Collection[str],
    forced: bool,
) -> Decision:
    """Decide whether a stage is skipped, goes on, or runs again.

    `inputs` are the resolved ones, None where a stage of `remade`, which will run before it, is among them.
    """
    if forced:
        return Decision(action="anew", why="forced")
    if record.state == "waiting":
        return Decision(action="run", why="")
    if job != record.job:
        return Decision(action="anew", why=f"its job was {record.job}")
    if inputs is None:
        return Decision(action="anew", why=f"{', '.join(remade)} before it {'run' if len(remade) > 1 else 'runs'}")
    changed = changed_keys(record.recipe, recipe, besides=IGNORED)
    # A run that was not at its end may have its length changed, as any run may that is resumed.
    if changed and not (changed == ["steps"] and record.state != "finished"):
        return Decision(action="anew", why=_differences(record.recipe, recipe, changed))
    others = [key for key in {**inputs, **record.inputs} if inputs.get(key) != record.inputs.get(key)]
    if others:
        return Decision(action="anew", why=f"{', '.join(others)} is another one than before")
    if record.state != "finished":
        return Decision(action="resume", why=UNFINISHED[record.state])
    if record.handover is not None and not Path(record.handover).exists():
        return Decision(action="resume", why=f"{record.handover} is gone")
    return Decision(action="skip", why="finished before")


def comparable(recipe: Mapping[str, Any], inputs: Iterable[str]) -> dict[str, Any]:
    """Return a flat recipe without the settings that inputs give, its values as they come back from a JSON file."""
    names = list(inputs)
    restored: dict[str, Any] = json.loads(to_json(recipe))
    return {key: value for key, value in restored.items() if not is_under(key, names)}


def handover(output: Path, *, is_run: bool) -> Path:
    """Return what a finished stage hands over: its best checkpoint, else its latest, else its output."""
    store = CheckpointStore(output / "checkpoints")
    return store.path(store.choose("best", model_damage)) if is_run and store.steps() else output


def identity(path: Path) -> str:
    """Return a digest of what is at `path`: of a checkpoint its manifest, else of all content."""
    digest = hashlib.sha256()
    files = [path / MANIFEST] if (path / MANIFEST).is_file() else [path]
    if files == [path] and path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        digest.update(str(file.relative_to(path)).encode() + b"\0" + bytes.fromhex(sha256_of(file)))
    return digest.hexdigest()[:16]


def begun_again(record: StageRecord, decision: Decision, **given: Any) -> StageRecord:
    """Return the record of a stage whose process is about to start; the time of the runs it continues stays counted."""
    kept = record if decision.action == "resume" else StageRecord(job=record.job)
    return replace(kept, **given, state="running", begun=kept.begun or now(), error=None, tail=[], handover=None)


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], keys: list[str]) -> str:
    shown_keys = [f"{key} was {value_in(before, key)}, is {value_in(after, key)}" for key in keys[:MOST_SHOWN]]
    return "; ".join(shown_keys) + (f"; and {len(keys) - MOST_SHOWN} more" if len(keys) > MOST_SHOWN else "")
