"""jobs/launch.py against a dashboard that is there: what is submitted, how following ends, and what the console says."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from troupe.jobs import launch
from troupe.ops.launching import Jobs

AT = ["--address", "http://127.0.0.1:9"]


class Dashboard(Jobs):
    """Ray's job API as `Jobs` calls it, with the jobs that a test puts there."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:9")
        self.submitted: list[dict[str, Any]] = []
        self.stopped: list[str] = []
        self.known: dict[str, SimpleNamespace] = {}
        self.interrupted = False

    def add(self, job: str, status: str, *, message: str = "", exit_code: int | None = None, at: int = 0) -> None:
        self.known[job] = SimpleNamespace(
            status=status, message=message, driver_exit_code=exit_code, submission_id=job, start_time=at
        )

    @property
    def _client(self) -> Dashboard:  # type: ignore[override]
        return self

    def submit_job(self, **request: Any) -> str:
        self.submitted.append(request)
        return "job1"

    def list_jobs(self) -> list[SimpleNamespace]:
        return list(self.known.values())

    def get_job_info(self, job: str) -> SimpleNamespace:
        if job not in self.known:
            raise RuntimeError(f"Request failed with status code 404:\nJob {job} does not exist")
        return self.known[job]

    def stop_job(self, job: str) -> None:
        self.stopped.append(job)
        self.known[job].status = "STOPPED"

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        if self.interrupted:
            raise KeyboardInterrupt
        yield f"output of {job}\n"


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Dashboard:
    dashboard = Dashboard()
    monkeypatch.setattr(launch, "Jobs", lambda url: dashboard)
    monkeypatch.setattr(launch, "env_file", dict)
    return dashboard


def test_what_follows_two_dashes_is_the_command_whatever_is_in_it(
    dashboard: Dashboard, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["python", "x.py", "--detach", "a b", "name='it'", "--", "-h"]
    assert launch.main(["submit", *AT, "--detach", "--", *command]) == 0
    (request,) = dashboard.submitted
    assert shlex.split(request["entrypoint"]) == command
    told = capsys.readouterr().out
    assert told.startswith("job job1: python x.py")
    assert f"python jobs/launch.py logs job1 {' '.join(AT)}" in told  # and how to follow it later


def test_a_secret_goes_with_the_copy_and_not_with_the_request(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "env_file", lambda: {"HF_TOKEN": "hf-planted-secret"})
    launch.main(["submit", *AT, "--detach", "--", "python", "x.py"])
    assert "planted" not in str(dashboard.submitted)
    told = capsys.readouterr().out
    assert "with HF_TOKEN of .env" in told
    assert "planted" not in told


@pytest.mark.parametrize(
    ("status", "exit_code", "told", "expected"),
    [
        ("SUCCEEDED", 0, "job job1: SUCCEEDED\n", 0),
        ("FAILED", 2, "job job1: FAILED (it broke)\n", 1),
        ("FAILED", 130, "job job1: INTERRUPTED (it broke)\n", 130),
        ("FAILED", 143, "job job1: INTERRUPTED (it broke)\n", 130),
        ("STOPPED", None, "job job1: STOPPED (it broke)\n", 143),
    ],
)
def test_following_a_job_ends_as_the_job_ended(
    dashboard: Dashboard,
    capsys: pytest.CaptureFixture[str],
    status: str,
    exit_code: int | None,
    told: str,
    expected: int,
) -> None:
    dashboard.add("job1", status, message="it broke\nwith a traceback", exit_code=exit_code)
    assert launch.main(["logs", *AT, "job1"]) == expected
    assert capsys.readouterr().out == f"output of job1\n{told}"


def test_the_newest_job_is_the_one_that_is_meant(dashboard: Dashboard, capsys: pytest.CaptureFixture[str]) -> None:
    for job, at in (("old", 1), ("new", 3), ("middle", 2)):
        dashboard.add(job, "RUNNING", at=at)
    assert launch.main(["stop", *AT, "--timeout", "5"]) == 0
    assert dashboard.stopped == ["new"]
    assert capsys.readouterr().out == "job new: STOPPED\n"


def test_ctrl_c_leaves_the_job_and_says_how_to_come_back(
    dashboard: Dashboard, capsys: pytest.CaptureFixture[str]
) -> None:
    dashboard.add("job1", "RUNNING")
    dashboard.interrupted = True
    with pytest.raises(SystemExit) as ended:
        launch.main(["logs", *AT, "job1"])
    assert ended.value.code == 130
    told = capsys.readouterr().err
    assert "no longer followed; the job goes on. To follow it: python jobs/launch.py logs job1" in told
    assert dashboard.stopped == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["logs", *AT, "job9"], "error: the cluster knows no job 'job9': Job job9 does not exist\n"),
        (["stop", *AT], "error: the cluster has had no job; python jobs/launch.py submit -- COMMAND starts one\n"),
        (["submit", *AT, "--", "python", "jobs/train_sft.py"], "error: where is the run directory to lie on the"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_status_2(
    dashboard: Dashboard, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert launch.main(arguments) == 2
    assert capsys.readouterr().err.startswith(sentence)
    assert dashboard.submitted == []


def test_each_verb_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        launch.main(["--help"])
    assert ended.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    for call, _ in launch.VERBS.values():
        assert str(call.__doc__) in told
