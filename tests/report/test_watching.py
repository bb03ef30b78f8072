"""Looking at a run that somebody else writes: in a terminal, as a live page, from any state of its directory."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from tests.fake_run import fake_run
from tests.report.pages import charts_of, data_of
from troupe.errors import ConfigError, DataError
from troupe.files import last_lines, read_lines
from troupe.report.live_page import LiveServer
from troupe.report.report_data import read_run
from troupe.report.watch_screen import remaining_s, screen, sparkline
from troupe.report.watching import require_run, runs_in, signature, writer_is_gone


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a finished run, `quickstart`."""
    directory = tmp_path_factory.mktemp("watched")
    fake_run(directory, steps=12)
    return directory


def begun(directory: Path, name: str, *, step: int = 0, lines: int = 0) -> Path:
    """A run whose process is still at it, as far as its files say."""
    run = directory / name
    run.mkdir()
    (run / "config.yaml").write_text("seed: 0\n")
    status = {"state": "running", "step": step, "steps": 10, "updated": "2026-01-01T00:00:00.000Z"}
    (run / "status.json").write_text(json.dumps(status))
    metrics = [
        {"step": number, "wall_s": 2.0 * number, "reward/mean": 0.1 * number, "time/step_s": 2.0}
        for number in range(lines)
    ]
    if metrics:
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics) + '{"step": 9, "half')
    return run


def shown(run: Path, *, gone: bool = False) -> str:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(screen(read_run(run), width=100, gone=gone, moment=datetime(2026, 1, 1, 0, 1, 5, tzinfo=UTC)))
    return console.export_text()


def test_the_screen_of_a_finished_run_has_its_numbers_phases_events_and_its_last_sample(directory: Path) -> None:
    text = shown(directory / "quickstart")
    for expected in ("quickstart", "finished", "step 12 of 12", "Accuracy, held out", "Reward", "Tokens per second"):
        assert expected in text
    assert "rollout" in text
    assert "generator_restarted  engine 1" in text
    assert "rewards" in text
    assert "left" not in text


def test_the_screen_of_a_run_without_metrics_says_so_and_one_that_goes_tells_the_time_that_is_left(
    tmp_path: Path,
) -> None:
    assert "No step has ended yet" in shown(begun(tmp_path, "new"))
    going = begun(tmp_path, "going", step=4, lines=5)
    assert remaining_s(read_run(going)) == 12.0  # 6 of 10 steps, 2 s each; the line that is being written is not read
    text = shown(going)
    assert "step 4 of 10" in text
    assert "12s left" in text
    assert "last sign 1m05s ago" in text
    assert "its process is gone" in shown(going, gone=True)


def test_a_model_cannot_steer_the_terminal(tmp_path: Path) -> None:
    run = begun(tmp_path, "rude", step=1, lines=2)
    group = {
        "step": 1,
        "sample_id": "a",
        "prompt": "p",
        "branches": [{"text": "\x1b]0;title\x07[bold]x", "score": 1.0}],
    }
    (run / "rollouts.jsonl").write_text(json.dumps(group) + "\n")
    text = shown(run)
    assert "·]0;title·[bold]x" in text
    assert "\x1b" not in text


def test_a_sparkline_goes_from_the_lowest_to_the_highest_and_has_gaps() -> None:
    assert sparkline([0, 1, None, 7], 10) == "▁▂ █"
    assert sparkline([3, 3], 10) == "▄▄"
    assert len(sparkline(list(range(1000)), 20)) <= 20


def test_the_end_of_a_file_is_read_without_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.jsonl"
    path.write_text(
        "".join(json.dumps({"step": step, "text": "x" * 3000}) + "\n" for step in range(100)) + '{"step": 1'
    )
    assert [line["step"] for line in last_lines(path, 40)] == list(range(60, 100))
    assert last_lines(path, 1000) == read_lines(path)
    assert last_lines(tmp_path / "none.jsonl", 3) == []


def test_the_process_of_a_run_is_gone_when_its_lock_names_none_that_lives(tmp_path: Path) -> None:
    import os
    import socket

    run, lock = begun(tmp_path, "x"), tmp_path / ".x.lock"
    assert writer_is_gone(run)
    for holder, gone in (
        ({"pid": os.getpid(), "host": socket.gethostname()}, False),
        ({"pid": 2**22 + 1, "host": socket.gethostname()}, True),  # above the largest pid
        ({"pid": 1, "host": "another"}, False),
    ):
        lock.write_text(json.dumps(holder))
        assert writer_is_gone(run) == gone


def test_what_is_no_run_is_refused_with_those_that_there_are(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no config.yaml, so it is not a run directory; runs there: quickstart"):
        require_run(directory)
    with pytest.raises(DataError, match=r"/nun does not exist$"):
        require_run(tmp_path / "nun")


# -- the live page -------------------------------------------------------------------------------------------------


@pytest.fixture
def server(directory: Path) -> Iterator[LiveServer]:
    with LiveServer(directory) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def ask(server: LiveServer, path: str, **headers: str) -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=60)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), dict(answer.getheaders())


def test_the_page_is_the_report_and_is_loaded_again_only_when_a_file_has_changed(
    server: LiveServer, directory: Path
) -> None:
    assert server.server_address[0] == "127.0.0.1"
    status, page, _ = ask(server, "/quickstart")
    assert status == 200
    mark = signature(directory / "quickstart")
    assert data_of(page)["live"]["since"] == mark
    assert charts_of(page) == charts_of((directory / "quickstart" / "report.html").read_text())
    assert ask(server, f"/quickstart?since={mark}")[0] == 204
    with open(directory / "quickstart" / "events.jsonl", "a") as events:
        events.write(json.dumps({"at": "2026-01-01T00:00:00Z", "step": 12, "kind": "a_new_event"}) + "\n")
    assert ask(server, f"/quickstart?since={mark}")[0] == 200
    page = ask(server, "/quickstart")[1]
    assert "a_new_event" in page
    assert data_of(page)["live"]["since"] == signature(directory / "quickstart") != mark


def test_any_run_can_be_chosen_and_nothing_else_be_read(server: LiveServer, directory: Path) -> None:
    begun(directory, "an&other")
    assert runs_in(directory) == ["an&other", "quickstart"]
    _, page, _ = ask(server, "/quickstart")
    assert '<option value="/an%26other">an&amp;other</option>' in page
    assert "Its process is gone" in ask(server, "/an%26other")[1]
    assert ask(server, "/")[2]["Location"] == "/an%26other"
    for path in ("/nothing", "/..", "/%2e%2e/etc", "/quickstart/config.yaml", "/quickstart%2Fcheckpoints"):
        assert ask(server, path)[0] == 404
    assert ask(server, "/quickstart", Host="evil.example")[0] == 403


def test_beyond_loopback_the_page_wants_the_key_of_its_address(directory: Path) -> None:
    with LiveServer(directory, host="0.0.0.0") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            assert ask(server, "/quickstart")[0] == 401
            assert ask(server, "/quickstart?key=wrong")[0] == 401
            status, _, headers = ask(server, server.url("quickstart").partition(str(server.server_address[1]))[2])
            assert status == 200
            cookie = headers["Set-Cookie"].split(";")[0]
            assert ask(server, "/quickstart?since=x", Cookie=cookie)[0] == 200
        finally:
            server.shutdown()


def test_a_port_in_use_is_one_sentence(server: LiveServer, directory: Path) -> None:
    port = server.server_address[1]
    with pytest.raises(ConfigError, match=rf"cannot listen on 127.0.0.1:{port} \(Address already in use\); --port 0"):
        LiveServer(directory, port=port)
