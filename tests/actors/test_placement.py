"""What a Ray that a job starts for itself needs of the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from troupe.actors.placement import bring_token


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")


@pytest.mark.parametrize("home", ["/proc", "/proc/none"])
def test_where_the_home_directory_cannot_be_written_a_run_has_a_token_of_its_own(monkeypatch, home):
    monkeypatch.setenv("HOME", home)
    bring_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


@pytest.mark.parametrize("kept", [True, False])
def test_a_home_directory_keeps_the_token_that_ray_reads_or_writes(monkeypatch, tmp_path: Path, kept: bool):
    monkeypatch.setenv("HOME", str(tmp_path))
    if kept:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("mine")
    bring_token()
    assert os.environ["RAY_AUTH_TOKEN"] == ""


def test_a_token_that_was_given_stays(monkeypatch):
    monkeypatch.setenv("HOME", "/proc/none")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "given")
    bring_token()
    assert os.environ["RAY_AUTH_TOKEN"] == "given"
