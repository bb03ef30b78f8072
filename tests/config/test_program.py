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
from troupe.config.program import describe, program, run_program, user_error
from troupe.config.supervised import SFTConfig
from troupe.config.tools import ExportConfig
from troupe.errors import DataError, TroupeError
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


def test_a_recipe_alone_is_described_without_what_the_job_would_read(monkeypatch, capsys) -> None:
    def rehearse(config: GRPOConfig):
        yield f"{config.steps} steps rehearsed"

    for flags, lines in ((["--dry-run"], ["# 3 steps rehearsed"]), (["--dry-run", "--recipe-only"], [])):
        monkeypatch.setattr(sys, "argv", ["train.py", "steps=3", *flags])
        run_program(refuse, GRPOConfig, "jobs/train.py", rehearse=rehearse)
        printed = capsys.readouterr().out.splitlines()
        assert [line for line in printed if "rehearsed" in line] == lines


def test_what_a_rehearsal_refuses_is_one_sentence_and_status_2(monkeypatch, capsys) -> None:
    def rehearse(config: GRPOConfig):
        raise DataError("mine.jsonl has no field 'prompt'")

    monkeypatch.setattr(sys, "argv", ["train.py", "--dry-run"])
    with pytest.raises(SystemExit) as exit_:
        run_program(refuse, GRPOConfig, "jobs/train.py", rehearse=rehearse)
    captured = capsys.readouterr()
    assert (exit_.value.code, captured.err) == (2, "error: mine.jsonl has no field 'prompt'\n")
    assert "steps:" not in captured.out


def test_a_description_begins_with_comments_and_is_a_recipe(capsys, tmp_path: Path) -> None:
    for config in (SFTConfig(steps=2), ExportConfig(model="runs/x")):
        describe(config, ["found this"])
        printed = capsys.readouterr().out
        comments = [line for line in printed.splitlines() if line.startswith("# ")]
        assert comments[0] == f"# {config.arithmetic()}"
        assert comments[-1] == "# found this"
        file = tmp_path / "printed.yaml"
        file.write_text(printed)
        assert load_config(type(config), [str(file)]) == config


def test_the_details_of_an_error_come_below_its_sentence(capsys) -> None:
    with pytest.raises(SystemExit), program():
        raise TroupeError("it failed", details="line 1\nline 2")
    assert capsys.readouterr().err == "error: it failed\nline 1\nline 2\n"


def test_the_error_of_a_worker_is_the_users_and_another_is_itself() -> None:
    remote, bare = RemoteError("a remote traceback"), ValueError("x")
    assert user_error(remote) is RemoteError.cause
    assert user_error(bare) is bare


def test_a_reader_that_has_read_enough_is_no_failure(start_python) -> None:
    process = start_python(
        "import sys; from troupe.config.program import program\nwith program():\n    for n in range(10**6): print(n)\n"
    )
    assert [process.stdout.readline() for _ in range(2)] == ["0\n", "1\n"]
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr.read() == ""


def test_a_secret_on_the_command_line_is_masked_before_trackers_keep_it(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MY_JUDGE_TOKEN", "open-sesame-0123")
    seen = []
    start(monkeypatch, seen.append, "run.name=x-open-sesame-0123")
    assert "open-sesame-0123" not in " ".join(sys.argv)
    assert [config.run.name for config in seen] == ["x-open-sesame-0123"]
