"""Errors that are meant for the user: one sentence that names the value, the rule and the remedy.

`jobs` print such an error without a traceback and exit with status 2; any other exception is a bug of
ours and keeps its traceback. `assert` guards what only we can break.
"""

from collections.abc import Sequence


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text; its class's name where it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


class TroupeError(Exception):
    """Base of everything the user can cause and can mend."""

    details: str = ""
    """What is shown below the sentence: the last lines of a process, the path of its log."""

    def __init__(self, message: object = "", *, details: str = "") -> None:
        super().__init__(message)
        if details:
            self.details = details


class ConfigError(TroupeError):
    """A recipe or an override is wrong: unknown key, bad value, numbers that do not fit."""


class DataError(TroupeError):
    """A data set is missing, empty, lacks a field, or a prompt does not fit the model."""


class RewardError(TroupeError):
    """A reward raised, or returned something that is not a finite number."""


class PlayError(TroupeError):
    """An environment raised, or its turns are not what turns should be, in too many games."""


class CheckpointError(TroupeError):
    """A checkpoint is incomplete, of another model, or cannot be written."""


class StorageError(TroupeError):
    """An object store cannot be reached, refuses, or does not hold what was asked of it."""


class PeerError(TroupeError):
    """Another process of the run is the cause."""

    def __init__(self, message: object = "", *, details: str = "", role: str = "", ranks: Sequence[int] = ()) -> None:
        """Name the role and its ranks that died or are late, where they are known."""
        super().__init__(message, details=details)
        self.role, self.ranks = role, tuple(ranks)


class WorkerError(PeerError):
    """A worker process failed to start, died, or did not answer in time."""


class SyncError(PeerError):
    """Weights did not reach a generator in time."""


def sync_error(message: str, cause: TroupeError) -> SyncError:
    """Return the failure of a sync, with the process that `cause` names."""
    role, ranks = (cause.role, cause.ranks) if isinstance(cause, PeerError) else ("", ())
    return SyncError(message, details=cause.details, role=role, ranks=ranks)


class ConsistencyError(TroupeError):
    """Trainer and generator disagree about the log-probabilities of the same tokens."""


class WorkerBug(TroupeError):
    """A worker lives and raised what nobody expected, a bug of ours or of a library; `details` has its traceback."""


class ClusterError(TroupeError):
    """A cluster does not come up, cannot be reached, or refuses a job."""


class NumericalError(TroupeError):
    """A loss or a gradient is NaN or infinite."""
