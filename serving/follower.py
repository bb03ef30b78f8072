"""Which checkpoint of a run should be served: the newest that is better, or the newest of all, and is not broken."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from core.checkpoint import CheckpointStore
from core.errors import CheckpointError
from core.served_models import require_whole


class Follower:
    """Looks at a run's checkpoints for one replica. What it refuses it names once and does not try again."""

    def __init__(self, run: str, wanted: Literal["best", "latest"], *, path: str, step: int) -> None:
        self.path = Path(path)
        """What is served."""
        self.step = step
        self.refused: dict[int, str] = {}
        """Step -> why it is not served."""
        self._store = CheckpointStore(Path(run) / "checkpoints")
        self._wanted = wanted

    def newer(self) -> Path | None:
        """A whole checkpoint to serve instead of the present one; None while there is none. Reads every byte of it."""
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
