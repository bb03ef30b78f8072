"""One Ray instance for this directory: its start takes longer than most tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from actors.placement import Stage
from core.recipes import PlacementConfig


@pytest.fixture(scope="package")
def stage() -> Iterator[Stage]:
    """A stage that keeps Ray alive; stages that a test or a job makes meanwhile join it."""
    stage = Stage(PlacementConfig())
    yield stage
    stage.close()
