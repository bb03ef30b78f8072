"""A port is opened on one address, found with the process that holds it, and shown as a person reads it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from troupe.processes.sockets import Listener, all_listeners, listen, our_listeners

HAS_IPV6 = Path("/proc/net/if_inet6").exists() and "lo" in Path("/proc/net/if_inet6").read_text()


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        pytest.param("::1", marks=pytest.mark.skipif(not HAS_IPV6, reason="this machine has no IPv6")),
    ],
)
def test_a_port_is_open_on_its_address_and_on_no_other(host: str) -> None:
    with listen(host, 0) as opened:
        port = opened.getsockname()[1]
        with socket.create_connection((host, port), 5):
            pass
        (found,) = [each for each in all_listeners() if each.port == port]
        assert (str(found.ip), found.pid) == (host, os.getpid())
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", port), 0.5):
            pass


def test_a_port_that_is_taken_is_an_error() -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(OSError, match="in use"):
        listen("127.0.0.1", taken.getsockname()[1])


def test_a_listener_is_found_with_its_command_and_a_connection_is_none() -> None:
    source = (
        "import socket, sys\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "print(server.getsockname()[1], flush=True)\n"
        "taken, _ = server.accept()\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", source, "VLLM::EngineCore"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            ours = connection.getsockname()[1]
            found = list(all_listeners())
            (listener,) = [each for each in found if each.port == port]
            assert listener.pid == process.pid
            assert listener.purpose == "vLLM: processes of an engine among themselves"
            assert all(each.port != ours for each in found)


def listener(address: str, port: int, command: str = "ray::x", pid: int = 7) -> Listener:
    return Listener(address=address, port=port, pid=pid, command=command)


def test_a_port_is_shown_with_its_address_its_name_and_its_process() -> None:
    shown = [
        listener("::1", 8265, "python dashboard/dashboard.py").told(),
        listener("::ffff:10.0.0.1", 1234, "raylet").told(),
        listener("fe80::1%eth0", 8000, "python jobs/serve.py", pid=12).told(),
    ]
    assert shown == [
        "[::1]:8265 (dashboard)  Ray: dashboard and job submission, pid 7",
        "10.0.0.1:1234  Ray: the node's scheduler and object store (raylet), pid 7",
        "[fe80::1]:8000 (endpoint)  Troupe: the job that serves, pid 12",
    ]


def test_the_list_has_each_once_and_neither_this_process_nor_strangers() -> None:
    found = [
        listener("127.0.0.1", 9000),
        listener("127.0.0.1", 9000),  # a socket that two processes of one name share is seen twice
        listener("127.0.0.1", 8000, pid=os.getpid()),
        listener("127.0.0.1", 22, "/usr/sbin/sshd"),
        listener("10.0.0.1", 9999),
        listener("0.0.0.0", 9001),
    ]
    assert [(each.address, each.port) for each in our_listeners(lambda: found)] == [
        ("0.0.0.0", 9001),  # beyond loopback first
        ("10.0.0.1", 9999),
        ("127.0.0.1", 9000),
    ]
