"""A run on disk: its directory, checkpoints, metrics, events, and where they are stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from troupe.lazy import lazy_exports

if TYPE_CHECKING:
    from troupe.runs.backup import Backup as Backup, open_stored_run as open_stored_run, settle as settle
    from troupe.runs.storage import fetch as fetch

# boto3 loads where something is stored.
__getattr__ = lazy_exports(__name__, __file__)
