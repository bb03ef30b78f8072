"""The groups of the steps since the last checkpoint, on the disk: what is learned again after a process was lost.

A file per step, written before the step learns from it and removed once a checkpoint holds what was learned. Files are
read without running what they may hold.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from troupe.disk import when_there_is_room
from troupe.records import Branch, Group, JudgeCall, Sample, Score, WeightSpan
from troupe.training.rollouts import Rollout

FOLDER = "kept_rollouts"
RECORDS: list[Any] = [Rollout, Group, Sample, Branch, Score, WeightSpan, JudgeCall]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A step's groups, and where the prompts go on behind them."""

    rollout: Rollout
    place: Mapping[str, Any]


class KeptRollouts:
    """The kept groups of a run."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / FOLDER

    def keep(self, step: int, kept: Kept) -> None:
        """Write a step's groups; waits for room on a full disk."""
        when_there_is_room(lambda: self._write(step, kept), f"what step {step} sampled", self._directory.parent)

    def _write(self, step: int, kept: Kept) -> None:
        self._directory.mkdir(exist_ok=True)
        temporary = self._directory / f"writing-{os.getpid()}.pt"
        torch.save({"rollout": kept.rollout, "place": dict(kept.place)}, temporary)
        os.replace(temporary, self._path(step))

    def get(self, step: int) -> Kept | None:
        """Return a step's groups; None where they are not there, or not whole."""
        try:
            with torch.serialization.safe_globals(RECORDS):
                found = torch.load(self._path(step), weights_only=True)
            return Kept(rollout=found["rollout"], place=found["place"])
        except Exception:  # whatever a damaged file makes torch raise: the step is sampled again
            return None

    def after(self, step: int) -> dict[int, Kept]:
        """Return the steps after `step` that are kept without a gap."""
        found: dict[int, Kept] = {}
        while (kept := self.get(step + len(found) + 1)) is not None:
            found[step + len(found) + 1] = kept
        return found

    def forget(self, *, up_to: int) -> None:
        """Remove the groups of steps up to one that a checkpoint holds."""
        for path in self._directory.glob("step-*.pt"):
            if path <= self._path(up_to):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # later steps are there, or it never was
            self._directory.rmdir()

    def _path(self, step: int) -> Path:
        return self._directory / f"step-{step:06d}.pt"
