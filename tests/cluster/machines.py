"""Machines for the cluster tests: namespaces of this one, each with its address, processes, home and ssh server.

They share this machine's file system, save for each home, `/tmp/ray` and `/dev/shm`; so the environment need not be
installed again, and a directory outside those is one that all machines mount.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

NETWORK = "10.77.0"
HOME = "/srv/ubuntu"
"""On each machine a directory of its own."""
BRIDGE = "machines"

SSHD = """\
ListenAddress {address}
HostKey {scratch}/host_key
AuthorizedKeysFile {scratch}/key.pub
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PidFile none
"""

BOOT = """\
set -e
hostname {name}
mount --bind {directory}/passwd /etc/passwd
mount --bind {directory}/hosts /etc/hosts
mkdir -p /run/sshd /tmp/ray
mount -t tmpfs tmpfs /tmp/ray
mount -t tmpfs tmpfs /srv
mkdir {home}
mount -t tmpfs tmpfs /dev/shm
touch {home}/.bashrc
ip link set lo up
until ip link show eth0 > /dev/null 2>&1; do sleep 0.05; done
ip address add {address}/24 dev eth0
ip link set eth0 up
ip route add default via {network}.1
{service}
true  # so that this shell stays and collects the dead
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One of them, as long as its process lives."""

    name: str
    address: str
    process: subprocess.Popen[bytes]

    def command(self, text: str) -> list[str]:
        """Return the command that has a shell on this machine run `text`."""
        (first,) = psutil.Process(self.process.pid).children()
        own = ["env", "--unset=RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", f"HOME={HOME}"]
        return ["nsenter", "--target", str(first.pid), "--all", *own, "bash", "-c", text]

    def lose(self) -> None:
        """Cut its cable and end all that runs on it, so that no other machine hears of its end."""
        run("ip", "link", "set", self.name, "down")
        self.process.kill()
        self.process.wait()


def boot(scratch: Path, count: int, *, ssh: bool = True) -> list[Machine]:
    """Machines at 10.77.0.11 and following, on a network of their own; with `ssh` each lets in whoever has
    `scratch/key`.
    """
    for key in ("key", "host_key") if ssh else ():
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(scratch / key))
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "address", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    # What a machine asks of the rest of the world fails at once, instead of waiting for answers.
    run("ip", "route", "add", "unreachable", "default")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    return [boot_one(scratch, index, ssh=ssh) for index in range(count)]


def boot_one(scratch: Path, index: int, *, ssh: bool) -> Machine:
    """One more machine on that network."""
    name, address = f"machine{index}", f"{NETWORK}.{11 + index}"
    directory = scratch / name
    directory.mkdir()
    accounts = Path("/etc/passwd").read_text().splitlines(keepends=True)
    others = [line for line in accounts if not line.startswith("root:")]
    (directory / "passwd").write_text("".join([f"root:x:0:0:root:{HOME}:/bin/bash\n", *others]))
    # As Debian and Ubuntu write it: the machine's own name is an address at which no other machine finds it.
    (directory / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n")
    (directory / "sshd_config").write_text(SSHD.format(address=address, scratch=scratch))
    service = f"/usr/sbin/sshd -D -e -f {directory}/sshd_config" if ssh else "sleep infinity"
    script = BOOT.format(name=name, address=address, directory=directory, network=NETWORK, home=HOME, service=service)
    namespaces = ["--net", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"]
    with open(directory / "log", "wb") as log:
        process = subprocess.Popen(["unshare", *namespaces, "bash", "-c", script], stdout=log, stderr=log)
    while os.readlink(f"/proc/{process.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
        time.sleep(0.01)
    run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(process.pid))
    run("ip", "link", "set", name, "master", BRIDGE, "up")
    deadline = time.monotonic() + 10
    while not _answers(address, ssh=ssh):
        assert time.monotonic() < deadline, (directory / "log").read_text()
        time.sleep(0.05)
    return Machine(name=name, address=address, process=process)


def _answers(address: str, *, ssh: bool) -> bool:
    """Whether it lets in, or refuses by itself where it need not."""
    try:
        with socket.create_connection((address, 22), timeout=1):
            return True
    except OSError as error:
        return isinstance(error, ConnectionRefusedError) and not ssh


def on(machine: Machine, command: str) -> str:
    """What a command says on a machine."""
    return run(*machine.command(command))


def run(*command: str) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{' '.join(command)}: {ended.stderr}"
    return ended.stdout
