"""A run: its name and directory, who is told of it, when it saves, what it keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from core.call_log import CallLogConfig
from core.config import Section
from core.storage_recipes import StorageConfig
from core.watch_recipes import WatchConfig


class WandbConfig(Section):
    """Weights & Biases, where `run.trackers` names it. The key is WANDB_API_KEY in the environment or that of `wandb login`, never here."""

    project: str | None = None
    """Project; null: WANDB_PROJECT of the environment, else troupe."""
    entity: str | None = None
    """User or team that owns the project; null: WANDB_ENTITY of the environment, else the key's own."""
    group: str | None = None
    """Runs that are shown together; null: the directory that holds the run (a pipeline, say), unless it is `runs`."""
    tags: list[str] = []
    """Tags beside those of every run: method, model and data."""
    artifacts: Literal["none", "report", "best", "final", "all"] = "none"
    """What is uploaded at the end: report.html with a table of samples; the best checkpoint as well; the final one as well; or each when it is complete. Without the trainer's state."""
    mode: Literal["online", "offline"] | None = None
    """offline keeps it on this machine, in `<run>/wandb`, until `wandb sync`; null: WANDB_MODE of the environment, else online."""


class RunConfig(Section):
    """Where the run lives and how it is watched."""

    name: str = "quickstart"
    """Name of the run; its directory is `<directory>/<name>`."""
    directory: str = "runs"
    """Directory that holds the runs."""
    resume: Literal["auto", "never", "must"] = "auto"
    """auto: continue where the directory stands, or start; never: start anew, the old run is moved aside; must: refuse to start anew."""
    trackers: list[Literal["wandb", "tensorboard"]] = []
    """Trackers beside the run directory; their keys come from the environment."""
    wandb: WandbConfig = WandbConfig()
    """Where and how Weights & Biases shows the run."""
    max_restarts: int = Field(default=2, ge=0)
    """Times that a run whose worker died starts its roles again and goes on from the last checkpoint."""
    samples_per_step: int = Field(default=2, ge=0)
    """Groups whose texts are written to rollouts.jsonl at every step."""
    calls: CallLogConfig = CallLogConfig()
    """Log of model calls, of the policy and of judges."""
    watch: WatchConfig = WatchConfig()
    """The timeline of steps, and the port that Prometheus reads."""
    storage: StorageConfig = StorageConfig()
    """Backup to an S3-compatible store, from which `resume` goes on on another machine."""

    @field_validator("name")
    @classmethod
    def _name_is_a_path_part(cls, name: str) -> str:
        if not name or "/" in name or name.startswith("."):
            raise ValueError("a run's name is one directory name: not empty, without '/', not starting with '.'")
        return name

    @property
    def path(self) -> Path:
        return Path(self.directory) / self.name


class CheckpointConfig(Section):
    """When and how much is kept."""

    every: int = Field(default=20, ge=0)
    """Steps between checkpoints; 0: only after the last step."""
    keep_last: int = Field(default=2, ge=1)
    """Newest checkpoints kept, beside the best."""
