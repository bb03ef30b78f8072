"""A run: its name and directory, trackers, checkpoints, storage, the call log, and how it is watched."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from troupe.config.loader import Section


class WatchConfig(Section):
    """The timeline of steps, and where Prometheus finds the metrics."""

    timeline_steps: list[int] = [1, 2]
    """Steps whose timeline is written to timeline.json; `python jobs/watch.py <run> --timeline` asks for another one.
    """
    timeline_every: int = Field(default=0, ge=0)
    """Steps between further timelines; 0: none."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Port where a Ray that is started here shows metrics to Prometheus; 0: a free one, named in prometheus.json."""


def check_address(address: str, field: str) -> str:
    """Return `address`, or ValueError unless it is written s3://bucket or s3://bucket/prefix."""
    if not address.startswith("s3://") or not address.removeprefix("s3://").split("/")[0]:
        raise ValueError(f"{field} is written s3://bucket/prefix")
    return address


class StorageConfig(Section):
    """Backup of the run to an S3-compatible store. Credentials come from the environment alone, as boto3 finds them."""

    url: str | None = None
    """s3://bucket/prefix that holds the runs, as `run.directory` does; the run is `<url>/<run.name>`. null: no backup.
    """
    endpoint_url: str | None = None
    """Address of another store than Amazon's; null: AWS_ENDPOINT_URL of the environment, else Amazon's."""
    region: str | None = None
    """Region of the bucket; null: AWS_REGION or AWS_DEFAULT_REGION of the environment, else us-east-1."""
    every: int | None = Field(default=None, ge=0)
    """Steps between backups of the newest and the best checkpoint; null: whenever there is a new one; 0: at the end."""
    keep: int | None = Field(default=2, ge=1)
    """Newest checkpoints kept in the store, beside the best; null: all."""
    queue: int = Field(default=2, ge=1)
    """Backups that may wait for the one that is going on; beyond it the oldest is left out, and no step ever waits."""
    wait_s: float = Field(default=600, ge=0)
    """Seconds that the end of the run waits for its backup; then it says what is not backed up."""
    timeout_s: float = Field(default=60, gt=0)
    """Seconds of silence after which a request to the store is given up and tried again."""

    @field_validator("url")
    @classmethod
    def _url_is_an_address(cls, url: str | None) -> str | None:
        return url and check_address(url, "url")

    @field_validator("endpoint_url")
    @classmethod
    def _endpoint_has_no_secret(cls, endpoint_url: str | None) -> str | None:
        if endpoint_url is None:
            return None
        scheme, _, rest = endpoint_url.partition("://")
        if scheme not in ("http", "https") or not rest:
            raise ValueError("endpoint_url is written https://host[:port]")
        if "@" in rest.split("/")[0]:
            raise ValueError("endpoint_url holds no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        return endpoint_url


class WandbConfig(Section):
    """Weights & Biases, where `run.trackers` names it. The key is WANDB_API_KEY or that of `wandb login`."""

    project: str | None = None
    """Project; null: WANDB_PROJECT of the environment, else troupe."""
    entity: str | None = None
    """User or team that owns the project; null: WANDB_ENTITY of the environment, else the key's own."""
    group: str | None = None
    """Runs that are shown together; null: the directory that holds the run (a pipeline, say), unless it is `runs`."""
    tags: list[str] = []
    """Tags beside those of every run: method, model and data."""
    artifacts: Literal["none", "report", "best", "final", "all"] = "none"
    """What is uploaded at the end: report.html with a table of samples; the best checkpoint as well; the final one as
    well; or each when it is complete. Without the trainer's state.
    """
    mode: Literal["online", "offline"] | None = None
    """offline: keep it in `<run>/wandb` until `wandb sync`; null: WANDB_MODE of the environment, else online."""


class CallLogConfig(Section):
    """The log of model calls, calls.jsonl in the run directory."""

    fraction: float = Field(default=1.0, ge=0, le=1)
    """Share of the prompts whose calls, judges' included, are written; 0: no file. Drawn by sample and step."""
    console_fraction: float = Field(default=0.0, ge=0, le=1)
    """Share of the prompts whose calls are shown on the console."""


class RunConfig(Section):
    """Name and directory of a run, and its observers."""

    name: str = "quickstart"
    """Name of the run; its directory is `<directory>/<name>`."""
    directory: str = "runs"
    """Directory that holds the runs."""
    resume: Literal["auto", "never", "must"] = "auto"
    """auto: continue, or start; never: start anew, the old run is moved aside; must: refuse to start anew."""
    trackers: list[Literal["wandb", "tensorboard"]] = []
    """Trackers beside the run directory; their keys come from the environment."""
    wandb: WandbConfig = WandbConfig()
    """Where and how Weights & Biases shows the run."""
    max_restarts: int = Field(default=2, ge=0)
    """Times that a run whose worker died starts its roles again and goes on from the last checkpoint."""
    wait_for_room_s: float = Field(default=3600.0, ge=0)
    """Seconds that a run pauses for room on a full disk before it ends with an error; 0: it ends at once."""
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
    """Checkpoints: when they are written, how many are kept."""

    every: int = Field(default=20, ge=0)
    """Steps between checkpoints; 0: only after the last step."""
    keep_last: int = Field(default=2, ge=1)
    """Newest checkpoints kept, beside the best."""
    in_background: bool = True
    """Whether a thread syncs a checkpoint to the disk and digests it while the run goes on; what is killed meanwhile
    goes on from the one before.
    """
