"""What a run's processes print is in its directory: whole lines, without secrets, and not without end."""

from __future__ import annotations

from pathlib import Path

import pytest

from troupe.processes.logs import MAX_BYTES, ProcessLogs


def test_lines_are_copied_whole_once_and_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted_secret")
    source = tmp_path / "worker.err"
    logs = ProcessLogs(tmp_path / "run")
    logs.add("policy-0", source, tmp_path / "not there yet")
    source.write_text("begins with hf_planted_secret\nhalf a li")
    logs.copy()
    assert logs.path("policy-0").read_text() == "begins with $HF_TOKEN\n"
    source.write_text("begins with hf_planted_secret\nhalf a line\n\x1b[31mred\x1b[0m\n")
    logs.close()
    assert logs.path("policy-0").read_text() == "begins with $HF_TOKEN\nhalf a line\nred\n"
    assert logs.path("policy-0").stat().st_mode & 0o077 == 0


def test_a_restarted_process_goes_on_in_the_same_log(tmp_path: Path) -> None:
    logs = ProcessLogs(tmp_path / "run")
    for name in ("first", "second"):
        (tmp_path / name).write_text(f"{name}\n")
        logs.add("policy-0", tmp_path / name)
        logs.copy()
    logs.close()
    assert logs.path("policy-0").read_text() == "first\nsecond\n"


def test_a_long_log_is_moved_aside_once(tmp_path: Path) -> None:
    source = tmp_path / "worker.err"
    logs = ProcessLogs(tmp_path / "run")
    logs.add("policy-0", source)
    for number in range(4):
        with open(source, "a") as file:
            file.write(f"{number}" * MAX_BYTES + "\n")
        logs.copy()
    logs.close()
    assert sorted(path.name for path in logs.directory.iterdir()) == ["policy-0.log", "policy-0.log.1"]
    assert logs.path("policy-0").read_text().startswith("3")
