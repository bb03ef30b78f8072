"""What keeps a run on one machine off the network."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from troupe.actors.process_group import meeting_place
from troupe.processes.sockets import Listener, all_listeners

ROOT = Path(__file__).resolve().parents[2]


def test_the_ranks_meet_on_the_address_they_were_given_and_on_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    store = meeting_place()
    listening = [listener.address for listener in all_listeners() if listener.port == port]
    assert listening == ["127.0.0.1"]
    assert store.port == port


def test_jobs_leave_ray_alone_until_they_start() -> None:
    """Ray decides when it is imported whether it stays on loopback, so nothing may import it before a stage has said
    so.
    """
    jobs = sorted(file.stem for file in (ROOT / "jobs").glob("*.py") if file.stem != "__init__")
    program = (
        f"import importlib, sys\nfor job in {jobs!r}:\n    importlib.import_module('jobs.' + job)\nprint('ray' "
        f"in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.stdout.split() == ["False"], run.stderr[-2000:]


@pytest.mark.parametrize(
    ("address", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("0.0.0.0", False), ("::", False)],
)
def test_an_address_is_loopback_however_it_is_written(address: str, loopback: bool) -> None:
    assert Listener(address=address, port=1, pid=psutil.Process().pid, command="x").ip.is_loopback == loopback
