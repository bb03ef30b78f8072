"""The application that a Serve of somebody else's builds from a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray import serve

from tests.actors.small import write_model
from troupe.serving.builder import application

pytestmark = pytest.mark.usefixtures("cluster")


def test_a_recipe_becomes_an_application_that_serve_can_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TROUPE_API_KEY", "a-token-of-the-test")
    model = write_model(tmp_path / "model", tied=True)
    built = application({"models": [{"path": model}], "engine": {"cpu_cache_gib": 0.1}})
    assert isinstance(built, serve.Application)
