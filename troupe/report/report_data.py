"""A run directory read once: its files, and what follows from their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from troupe.errors import DataError
from troupe.files import last_lines, read_json, read_lines
from troupe.runs.logprob_gap import allowed_gap
from troupe.timeline import TIMELINE_FILE

Point = tuple[float, float | None]
"""(step, value); None where the value was not a finite number."""
NOT_METRICS = ("step", "at", "wall_s")
DEFAULT_BEST = {"sft/nll": "nll", "reward_model/accuracy": "accuracy", "dpo/accuracy": "accuracy"}
"""The deciding metric of supervised training, where the recipe names none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A run directory in memory. A file that is missing is an empty list or mapping."""

    directory: Path
    name: str
    config_text: str
    config: Mapping[str, Any]
    status: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    """The lines of metrics.jsonl, by step."""
    events: list[dict[str, Any]]
    rollouts: list[dict[str, Any]]
    """The last group of rollouts.jsonl; `troupe.report.samples` reads the others."""
    answers: list[dict[str, Any]]
    environment: Mapping[str, Any]
    placement: list[dict[str, Any]]
    timeline: Mapping[str, Any]
    """The trace of timeline.json."""
    calibration: list[dict[str, Any]]
    """A reward model's held-out pairs by confidence, as troupe.evaluation.calibration makes them."""

    @property
    def state(self) -> str:
        return str(self.status.get("state", "unknown"))

    @property
    def last_step(self) -> int:
        return self.metrics[-1]["step"] if self.metrics else 0

    @property
    def training(self) -> list[dict[str, Any]]:
        """Return the lines of the training steps, without step 0."""
        return [line for line in self.metrics if line["step"] > 0]

    @property
    def wall_s(self) -> float:
        """Return the seconds that processes worked on the run, all of them together."""
        return float(self.metrics[-1].get("wall_s") or 0.0) if self.metrics else 0.0

    def names(self) -> list[str]:
        """Return every metric in order of appearance."""
        return list(dict.fromkeys(name for line in self.metrics for name in line if name not in NOT_METRICS))

    def points(self, name: str) -> list[Point]:
        """Return (step, value) where the metric was logged; None where it was not a finite number."""
        return [(line["step"], line[name]) for line in self.metrics if name in line]

    def values(self, name: str) -> list[float]:
        """Return the finite values of a metric in training steps."""
        return [line[name] for line in self.training if isinstance(line.get(name), int | float)]

    def mean(self, name: str) -> float | None:
        values = self.values(name)
        return sum(values) / len(values) if values else None

    @property
    def best_name(self) -> str | None:
        """Return the held-out metric that decides which checkpoint is best."""
        evaluation = self.config.get("evaluation") or {}
        if evaluation.get("best_metric"):
            return str(evaluation["best_metric"])
        metrics = evaluation.get("metrics") or []
        if metrics:
            return metrics[0].get("name") or metrics[0].get("fn")
        return next((best for name, best in DEFAULT_BEST.items() if any(self.points(name))), None)

    @property
    def headline(self) -> str | None:
        """Return `eval/<set>/<best metric>`, or the first held-out metric there is."""
        held_out = [name for name in self.names() if name.startswith("eval/")]
        chosen = [name for name in held_out if name.rpartition("/")[2] == self.best_name]
        return next(iter([*chosen, *held_out]), None)

    def first_and_last(self, name: str) -> tuple[float, float] | None:
        known = [value for _, value in self.points(name) if value is not None]
        return (known[0], known[-1]) if known else None

    @property
    def method(self) -> str:
        """Return the job: `sft`, `reward_model`, `grpo`; `run` where it is not known."""
        program = str(self.environment.get("program") or "")
        return program.removeprefix("train_").removesuffix(".py") if program.startswith("train_") else "run"

    @property
    def restarts(self) -> int:
        """Count how often workers died and were started again."""
        return sum(event.get("kind") == "restarted" for event in self.events)

    @property
    def phases(self) -> list[str]:
        """Return the timed phases of training steps in order of appearance, `other` last."""
        found = dict.fromkeys(
            name.removeprefix("time/").removesuffix("_s")
            for line in self.training
            for name in line
            if name.startswith("time/") and name.endswith("_s") and name != "time/step_s"
        )
        return [phase for phase in found if phase != "other"] + (["other"] if "other" in found else [])

    def seconds(self, phase: str) -> float:
        """Return the mean over all training steps, also over those without the phase."""
        return sum(self.values(f"time/{phase}_s")) / max(len(self.training), 1)

    def tokens_per_second(self, phase: str) -> float | None:
        """Return a phase's mean speed: logged as `<phase>/tokens_per_second`, or `<phase>/tokens` over its seconds."""
        logged = self.mean(f"{phase}/tokens_per_second")
        if logged is not None:
            return logged
        tokens, seconds = sum(self.values(f"{phase}/tokens")), sum(self.values(f"time/{phase}_s"))
        return tokens / seconds if tokens and seconds else None

    @property
    def consistency_bound(self) -> float | None:
        """Return the gate's largest bound: as logged, as set, or that of fp32 where the recipe names it."""
        logged = [value for _, value in self.points("consistency/max_gap") if value is not None]
        configured = (self.config.get("consistency") or {}).get("max_gap")
        in_fp32 = (self.config.get("policy") or {}).get("precision") == "fp32"
        return max(logged, default=None) or configured or (allowed_gap(0.0) if in_fp32 else None)


def read_run(directory: Path) -> RunRecord:
    """Read the run in `directory`; it may still be running, and any file but config.yaml may be missing."""
    directory = Path(directory)
    config_file = directory / "config.yaml"
    if not config_file.is_file():
        raise DataError(f"{directory} is not a run directory: it has no config.yaml")
    config_text = config_file.read_text(encoding="utf-8")
    config = OmegaConf.to_container(OmegaConf.create(config_text), resolve=False)
    lines = [line for line in read_lines(directory / "metrics.jsonl") if isinstance(line.get("step"), int)]
    return RunRecord(
        directory=directory,
        name=directory.resolve().name,
        config_text=config_text,
        config=config if isinstance(config, dict) else {},
        status=read_json(directory / "status.json") or {},
        metrics=sorted(lines, key=lambda line: line["step"]),
        events=read_lines(directory / "events.jsonl"),
        rollouts=last_lines(directory / "rollouts.jsonl", 1),
        answers=read_lines(directory / "answers.jsonl"),
        environment=read_json(directory / "environment.json") or {},
        placement=read_json(directory / "placement.json") or [],
        timeline=read_json(directory / TIMELINE_FILE) or {},
        calibration=_bins(read_json(directory / "calibration.json")),
    )


def _bins(found: Any) -> list[dict[str, Any]]:
    """Return the bins of calibration.json that have all their numbers."""
    return [
        one
        for one in (found if isinstance(found, list) else [])
        if isinstance(one, dict)
        and all(isinstance(one.get(key), int | float) for key in ("low", "high", "count", "confidence", "accuracy"))
        and one["count"] > 0
    ]


def day_and_time(at: str) -> str:
    """Return `2026-03-01 12:30:05` from the ISO time that the files hold; UTC."""
    try:
        return datetime.fromisoformat(at).strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return at
