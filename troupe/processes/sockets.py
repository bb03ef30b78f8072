"""Who listens on this machine for Troupe: jobs, Ray's processes, vLLM's engines, each with address, port and purpose.

`jobs/doctor.py` shows the list; docs/operations.md has the table of all ports with the settings that move them. Nothing
here needs Ray, only psutil, and only processes whose connections this user may see are found. `listen` opens a port on
one address only.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass

PURPOSES = {
    r"gcs_server": "Ray: the head's table of nodes, actors and keys (GCS)",
    r"/raylet|^raylet": "Ray: the node's scheduler and object store (raylet)",
    r"dashboard/dashboard\.py|DashboardHead": "Ray: dashboard and job submission",
    r"autoscaler/_private/monitor\.py": "Ray: metrics of the autoscaler",
    r"DashboardAgent|dashboard/agent\.py": "Ray: agent of a node, with its metrics",
    r"RuntimeEnvAgent|runtime_env/agent": "Ray: agent that prepares environments",
    r"util/client/server|ray_client_server": "Ray: client server",
    r"ray::(Serve\S*:)?ProxyActor|HTTPProxy": "Ray Serve: the endpoint's door",
    r"ray::Serve": "Ray Serve: a replica or the controller",
    r"VLLM::": "vLLM: processes of an engine among themselves",
    r"ray::": "Ray: a worker; with several ranks also where they meet (torch)",
    r"jobs/serve\.py": "Troupe: the job that serves",
    r"jobs/watch\.py": "Troupe: the live page of a run",
    r"jobs/\w+\.py": "Troupe: a job, for its Ray",
}
"""What a process's command line says it is, the first that fits."""

PORTS = {
    6379: "GCS",
    8265: "dashboard",
    8000: "endpoint",
    10001: "client server",
    52365: "agent",
    44217: "metrics",
    44227: "metrics",
}
"""Ports that are the same on every machine unless set otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A port that is open on this machine."""

    address: str
    """Of the interface; `0.0.0.0` and `::` mean every one."""
    port: int
    pid: int
    command: str

    @property
    def ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        """The address, an IPv4 one also where the system writes it as IPv6 (`::ffff:127.0.0.1`)."""
        ip = ipaddress.ip_address(self.address.partition("%")[0])
        return (ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None) or ip

    @property
    def purpose(self) -> str | None:
        """None for a process that is not ours."""
        return next((told for pattern, told in PURPOSES.items() if re.search(pattern, self.command)), None)

    def told(self) -> str:
        host = f"[{self.ip}]" if self.ip.version == 6 else str(self.ip)
        name = f" ({PORTS[self.port]})" if self.port in PORTS else ""
        return f"{host}:{self.port}{name}  {self.purpose}, pid {self.pid}"


def listen(host: str, port: int) -> socket.socket:
    """Return a socket on this one address, for torch's stores, which by themselves listen on all of them."""
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


def all_listeners() -> Iterable[Listener]:
    """Yield every TCP port that a process of this user listens on, as far as the system shows."""
    import psutil  # doctor imports this file where nothing is installed

    for connection in psutil.net_connections("tcp"):
        if connection.status != psutil.CONN_LISTEN or connection.pid is None:
            continue
        try:
            command = " ".join(psutil.Process(connection.pid).cmdline())
        except psutil.Error:  # it just ended
            continue
        yield Listener(
            address=connection.laddr.ip, port=connection.laddr.port, pid=connection.pid, command=command.strip()
        )


def our_listeners(found: Callable[[], Iterable[Listener]] = all_listeners) -> list[Listener]:
    """Return those of Troupe, Ray and vLLM but this process, those beyond loopback first, then by port."""
    ours = {listener for listener in found() if listener.purpose is not None and listener.pid != os.getpid()}
    return sorted(ours, key=lambda listener: (listener.ip.is_loopback, listener.port, listener.address))
