"""What a training job gives back: the run directory, read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from troupe.files import read_lines


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """A run that has ended."""

    directory: Path
    metrics: Sequence[Mapping[str, float]]
    """The lines of metrics.jsonl, one per step."""
    checkpoint: Path
    """The best checkpoint, the newest where none was measured: a model in Hugging Face format."""

    @property
    def heldout(self) -> Mapping[str, float]:
        """The newest held-out figures: `eval/<data set>/<metric>` -> value."""
        found = {name: line[name] for line in self.metrics for name in line if name.startswith("eval/")}
        return dict(sorted(found.items()))

    @property
    def report(self) -> Path:
        return self.directory / "report.html"


def read_result(directory: Path) -> TrainingResult:
    """Read the run in `directory`."""
    checkpoints = directory / "checkpoints"
    best = checkpoints / "best"
    return TrainingResult(
        directory=directory,
        metrics=read_lines(directory / "metrics.jsonl"),
        checkpoint=(best if best.exists() else checkpoints / "latest").resolve(),
    )
