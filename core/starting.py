"""Imported first by the jobs: tells that libraries load, which takes up to half a minute, until the program begins."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from core.waiting import waiting

LOADING = contextlib.ExitStack()
"""Closed by `core.program`."""

if Path(sys.argv[0]).resolve().parent == Path(__file__).resolve().parents[1] / "jobs":
    LOADING.enter_context(waiting("libraries load"))
