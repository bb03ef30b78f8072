"""Which checkpoint of a run should be served: the newest that is better, or the newest of all, and is not broken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from core.checkpoint import CheckpointStore, step_of
from core.errors import CheckpointError
from core.model_paths import locate
from core.served_models import Served, require_whole

Wanted = Literal["best", "latest"]


def newest(served: Served, wanted: Wanted) -> Served:
    """The followed run's checkpoint of this moment, for a replica that starts long after the endpoint did: what was
    served then may not be kept any more. As it was where there is nothing better."""
    try:
        path = Path(locate(str(served.run), wanted))
        require_whole(path, like=Path(served.path) if Path(served.path).is_dir() else None)
    except CheckpointError:
        return served
    return replace(served, path=str(path), step=step_of(path.name))


class Follower:
    """Looks at a run's checkpoints for one replica. What it refuses it names once and does not try again."""

    def __init__(self, run: str, wanted: Wanted, *, path: str, step: int) -> None:
        self.path = Path(path)
        """What is served."""
        self.step = step
        self.refused: dict[int, str] = {}
        """Step -> why it is not served."""
        self._store = CheckpointStore(Path(run) / "checkpoints")
        self._wanted = wanted

    def newer(self) -> Path | None:
        """A whole checkpoint to serve instead of the present one; None while there is none. Reads every byte of it.

        OSError where a file cannot be read, or has been removed meanwhile: the next look may find another.
        """
        best = self._store.best() if self._wanted == "best" else None
        step = best if best is not None else self._store.latest()
        if step is None or step == self.step or step in self.refused:
            return None
        path = self._store.path(step)
        try:
            require_whole(path, like=self.path if self.path.is_dir() else None)
        except CheckpointError as error:
            self.refuse(step, str(error))
            return None
        return path

    def refuse(self, step: int, reason: str) -> None:
        """The present checkpoint stays, and this step is not looked at again."""
        self.refused[step] = reason

    def served(self, path: Path, step: int) -> None:
        """`path` is what is served now."""
        self.path, self.step = path, step
