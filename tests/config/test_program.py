"""What a job's command line does before, instead of and after the job."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from troupe.config.grpo import GRPOConfig
from troupe.config.loader import load_config
from troupe.config.program import run_program
from troupe.errors import DataError
from troupe.processes.stopping import Interrupted


def start(monkeypatch: pytest.MonkeyPatch, job, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    run_program(job, GRPOConfig, "jobs/train.py")


def refuse(config: GRPOConfig) -> None:
    raise AssertionError("the job must not start")


def test_the_job_gets_the_config_that_the_command_line_describes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    start(monkeypatch, seen.append, "steps=3")
    assert [config.steps for config in seen] == [3]


def test_a_dry_run_prints_arithmetic_and_a_recipe_and_starts_nothing(monkeypatch, capsys, tmp_path: Path) -> None:
    start(monkeypatch, refuse, "steps=3", "--dry-run")
    printed = capsys.readouterr().out
    assert printed.startswith("# 64 prompts x 8 branches = 512 sequences a step")
    recipe = tmp_path / "printed.yaml"
    recipe.write_text(printed)
    assert load_config(GRPOConfig, [str(recipe)]).steps == 3


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_a_wrong_recipe_is_one_sentence_and_status_2(monkeypatch, capsys, flags: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        start(monkeypatch, refuse, "stepz=3", *flags)
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "error: stepz: unknown key; did you mean 'steps'?\n"


def test_help_exits_with_status_0(monkeypatch, capsys) -> None:
    with pytest.raises(SystemExit) as exit_:
        start(monkeypatch, refuse, "--help")
    assert exit_.value.code == 0
    assert "usage: python jobs/train.py" in capsys.readouterr().out


class RemoteError(DataError):
    """As ray raises it: of the cause's class, its text a remote traceback, the original as `cause`."""

    cause = DataError("data.jsonl has no field 'prompt'")


def test_an_error_from_a_worker_is_told_by_its_own_sentence(monkeypatch, capsys) -> None:
    def job(config: GRPOConfig) -> None:
        raise RemoteError("ray::Worker() (pid=7)\nTraceback ...")

    with pytest.raises(SystemExit) as exit_:
        start(monkeypatch, job)
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "error: data.jsonl has no field 'prompt'\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_is_status_130_and_sigterm_143_and_what_was_begun_is_ended(monkeypatch, capsys, number: int) -> None:
    ended = []

    def job(config: GRPOConfig) -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(60)
        finally:
            ended.append(True)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as exit_:
        start(monkeypatch, job)
    assert (exit_.value.code, ended, capsys.readouterr().err) == (128 + number, [True], "interrupted\n")
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interruption_says_how_to_go_on(monkeypatch, capsys) -> None:
    def job(config: GRPOConfig) -> None:
        raise Interrupted(signal.SIGTERM, "it goes on with: x")

    with pytest.raises(SystemExit) as exit_:
        start(monkeypatch, job)
    assert (exit_.value.code, capsys.readouterr().err) == (143, "interrupted: it goes on with: x\n")


def test_a_full_disk_is_one_sentence(monkeypatch, capsys, tmp_path: Path) -> None:
    def job(config: GRPOConfig) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "metrics.jsonl"))

    with pytest.raises(SystemExit) as exit_:
        start(monkeypatch, job)
    assert exit_.value.code == 2
    assert re.fullmatch(
        r"error: .*/metrics\.jsonl cannot be written: No space left on device; .* are free there; .*\n",
        capsys.readouterr().err,
    )


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch) -> None:
    def job(config: GRPOConfig) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        start(monkeypatch, job)


def test_the_file_env_where_the_job_starts_is_read_before_the_recipe(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TROUPE_TEST_NAME", "kept for the end of the test")
    monkeypatch.delenv("TROUPE_TEST_NAME")
    (tmp_path / ".env").write_text("TROUPE_TEST_NAME=from_the_file\n")
    seen = []
    start(monkeypatch, seen.append, "run.name=${oc.env:TROUPE_TEST_NAME}")
    assert [config.run.name for config in seen] == ["from_the_file"]


def test_a_faulty_file_env_is_one_sentence_and_status_2(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("TOKEN='not for the eye\n")
    with pytest.raises(SystemExit) as exit_:
        start(monkeypatch, refuse)
    assert exit_.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: .env line 1: a quote is missing")
    assert "eye" not in told
