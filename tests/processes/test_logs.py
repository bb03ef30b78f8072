"""What a run's processes print is in its directory: whole lines, without secrets, and not without end."""

from __future__ import annotations

import time
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


def test_a_log_follows_its_process_by_itself_and_none_that_was_closed_follows_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("troupe.processes.logs.EVERY_S", 0.01)
    source = tmp_path / "worker.err"
    logs = ProcessLogs(tmp_path / "run")
    logs.add("policy-0", source)
    source.write_text("first\n")
    deadline = time.monotonic() + 10
    while not logs.path("policy-0").exists():
        assert time.monotonic() < deadline, "nobody copies"
        time.sleep(0.01)
    logs.close()
    logs.close()
    logs.add("policy-1", source)
    assert logs._thread is None
    assert logs.path("policy-0").read_text() == "first\n"


def test_the_last_words_of_a_process_are_kept_although_their_line_never_ended(tmp_path: Path) -> None:
    source = tmp_path / "worker.err"
    source.write_text("whole\nterminate called after")
    logs = ProcessLogs(tmp_path / "run")
    logs.add("policy-0", source)
    logs.copy()
    assert logs.path("policy-0").read_text() == "whole\n"
    logs.close()
    assert logs.path("policy-0").read_text() == "whole\nterminate called after\n"


def test_of_a_process_that_prints_too_much_at_once_the_newest_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("troupe.processes.logs.LONGEST_READ", 20)
    source = tmp_path / "worker.err"
    logs = ProcessLogs(tmp_path / "run")
    logs.add("policy-0", source)
    source.write_text("".join(f"line {number}\n" for number in range(1000)))
    logs.copy()
    assert logs.path("policy-0").read_text().splitlines()[-2:] == ["line 998", "line 999"]
    assert logs.path("policy-0").stat().st_size <= 20
    with open(source, "a") as file:
        file.write("line 1000\n")
    logs.close()
    assert logs.path("policy-0").read_text().splitlines()[-2:] == ["line 999", "line 1000"]  # and no line twice


def test_what_is_no_text_or_says_nothing_is_no_line(tmp_path: Path) -> None:
    source = tmp_path / "worker.err"
    logs = ProcessLogs(tmp_path / "run")
    logs.add("policy-0", source)
    source.write_bytes(b":job_id:01\n\n   \n:actor_name:x\n")
    logs.copy()
    assert not logs.path("policy-0").exists()
    with open(source, "ab") as file:
        file.write("für ".encode() + b"\xff\n")
    logs.close()
    assert logs.path("policy-0").read_text() == "für \ufffd\n"


def test_a_log_that_cannot_be_written_costs_no_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "logs").write_text("no directory")
    (tmp_path / "worker.err").write_text("a line\n")
    logs = ProcessLogs(tmp_path / "run")
    logs.add("policy-0", tmp_path / "worker.err")
    logs.close()
    assert (tmp_path / "run" / "logs").read_text() == "no directory"


def test_two_sources_of_one_process_are_one_log_and_a_source_is_copied_once(tmp_path: Path) -> None:
    for name in ("worker.err", "worker.engine"):
        (tmp_path / name).write_text(f"of {name}\n")
    logs = ProcessLogs(tmp_path / "run")
    for _ in range(2):
        logs.add("generator-0", tmp_path / "worker.err", tmp_path / "worker.engine")
    logs.close()
    assert logs.path("generator-0").read_text() == "of worker.err\nof worker.engine\n"
