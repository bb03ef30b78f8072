"""Imported first by the jobs: tells that libraries load, which takes up to half a minute, until the program begins."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from troupe.processes.waiting import waiting
from troupe.project import JOBS

LOADING = contextlib.ExitStack()
"""Closed by `troupe.config.program`."""

if Path(sys.argv[0]).resolve().parent == JOBS:
    LOADING.enter_context(waiting("libraries load"))
