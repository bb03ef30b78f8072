"""Which checkpoint of a run should be served: the best or the newest of those that are whole."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Literal

from troupe.errors import CheckpointError
from troupe.names import step_of
from troupe.runs.checkpoint import MANIFEST, CheckpointStore
from troupe.serving.served_models import Served, require_whole, tensor_shapes

Wanted = Literal["best", "latest"]


class Follower:
    """Looks at a run's checkpoints for one replica. What it refuses it names once, and looks at again only where it was
    written anew."""

    def __init__(self, served: Served, wanted: Wanted) -> None:
        """Follow a run; `served` is what the endpoint found when it started: the run may not keep that any more."""
        self.path = Path(served.path)
        """What is served."""
        self.step: int | None = None
        """Its step; None: nothing is served yet."""
        self.refused: dict[int, str] = {}
        """Step -> why it is not served."""
        self._written: dict[int, int | None] = {}
        """Step -> when the manifest of what was refused was written."""
        self._served, self._wanted = served, wanted
        self._store = CheckpointStore(Path(str(served.run)) / "checkpoints")
        self._tensors: Mapping[str, tuple[int, ...]] | None = None
        with contextlib.suppress(CheckpointError):  # it was damaged or removed meanwhile
            self._tensors = tensor_shapes(self.path)

    def first(self) -> Served:
        """Return what a replica that starts now is to serve; CheckpointError where no checkpoint is whole."""
        path = self.newer()
        step = None if path is None else step_of(path.name)
        if path is None or step is None:
            why = "; ".join(self.refused.values()) or "the run keeps none"
            raise CheckpointError(f"{self._served.run} has no checkpoint that can be served: {why}")
        self.serves(path, step)
        return replace(self._served, path=str(path), step=step)

    def newer(self) -> Path | None:
        """Return a whole checkpoint to serve instead of the present one; None while there is none. Reads every byte of
        it.

        Where the one that is wanted is damaged, the next takes its place that is preferred to the present one.
        """
        present = () if self.step is None else (self.step,)
        for step in takewhile(lambda step: step != self.step, self._store.preferred(self._wanted, also=present)):
            if step in self.refused and self._written[step] == self._manifest_time(step):
                continue
            path = self._store.path(step)
            try:
                require_whole(path, tensors=self._tensors)
            except CheckpointError as error:
                self.refuse(step, str(error))
            except OSError:  # removed meanwhile, or a file system's passing trouble: the next look decides
                continue
            else:
                return path
        return None

    def refuse(self, step: int, reason: str) -> None:
        """Keep the present checkpoint, and do not look at this one again."""
        self.refused[step], self._written[step] = reason, self._manifest_time(step)

    def serves(self, path: Path, step: int) -> None:
        """Note that `path` is served now."""
        self.path, self.step = path, step
        self.refused.pop(step, None)

    def _manifest_time(self, step: int) -> int | None:
        try:
            return (self._store.path(step) / MANIFEST).stat().st_mtime_ns
        except OSError:
            return None
