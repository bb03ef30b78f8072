"""The program that becomes a sandbox and then runs another one; a file of its own, with the standard library alone.

Settings come as JSON on standard input. It leaves for namespaces of its own, makes the disk read-only but for one
directory, forks, bounds the child and runs the code there. As process 1 of its namespace the child takes whatever it
started along when it ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

NAMESPACES = {"user": 0x10000000, "mount": 0x00020000, "process": 0x20000000, "network": 0x40000000, "ipc": 0x08000000}
MS_PRIVATE, MS_REC = 1 << 18, 1 << 14
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, ATTR_READ_ONLY = 442, -100, 0x8000, 1
PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_SET_NO_NEW_PRIVS = 1, 8, 38
CAPABILITY_VERSION, READ_ALL = 0x20080522, 1 << 2
NOBODY = 65534
LIBC = ctypes.CDLL(None, use_errno=True)


def leave(user: int, group: int) -> list[str]:
    """Enter namespaces of this process's own; the names of those that the system refuses."""
    refused = []
    for name, flag in NAMESPACES.items():
        if name == "user" and user == 0:  # root needs none, and could not become another user in its own
            continue
        if LIBC.unshare(flag) != 0:
            refused.append(name)
        elif name == "user":
            for file, text in (
                ("setgroups", "deny"),
                ("uid_map", f"{user} {user} 1"),
                ("gid_map", f"{group} {group} 1"),
            ):
                try:
                    with open(f"/proc/self/{file}", "w") as proc:
                        proc.write(text)
                except OSError:
                    refused.append("user map")
    return refused


def close_disk(directory: str, size: int) -> bool:
    """Make every mounted file system read-only here, and `directory` an empty one in memory; whether it worked."""
    attributes = (ctypes.c_uint64 * 4)(ATTR_READ_ONLY, 0, 0, 0)
    return (
        LIBC.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0
        and LIBC.syscall(MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, ctypes.byref(attributes), 32) == 0
        and LIBC.mount(b"tmpfs", directory.encode(), b"tmpfs", 0, f"size={size},mode=700".encode()) == 0
    )


def bound(settings: dict[str, Any], *, in_namespaces: bool) -> None:
    """Take limits that nothing in this process can raise again, and every privilege away."""
    most = {
        resource.RLIMIT_AS: settings["memory"],
        resource.RLIMIT_FSIZE: settings["disk"],
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    if in_namespaces or os.getuid() == 0:  # elsewhere all processes of the user count
        most[resource.RLIMIT_NPROC] = settings["processes"]
    for what, value in most.items():
        resource.setrlimit(what, (value, value))
    cpu_s = int(settings["seconds"]) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))  # SIGXCPU, which states why, before SIGKILL
    LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    drop_privileges()
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # a change of user would clear it


def run(settings: dict[str, Any]) -> None:
    """Run the code as the main program of this process."""
    os.chdir(settings["directory"])
    for name, text in settings["files"].items():
        with open(os.path.basename(name), "w") as file:
            file.write(text)
    with open(".stdin", "w+b") as given:
        given.write(settings["stdin"].encode())
        given.seek(0)
        os.unlink(".stdin")
        os.dup2(given.fileno(), 0)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - it lasts as long as the process
    sys.argv, sys.path = ["program.py"], [settings["directory"], *sys.path[1:]]
    exec(compile(settings["code"], "program.py", "exec"), {"__name__": "__main__"})


def drop_privileges() -> None:
    """Become nobody where this is root, whose processes nothing counts; keep no capability but that of reading Python's
    files, where they are root's alone."""
    kept = 0
    if os.getuid() == 0:
        kept = 0 if all(os.stat(path).st_mode & 0o001 for path in parents(os.path.dirname(os.__file__))) else READ_ALL
        LIBC.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    LIBC.capset(ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)(kept, kept)))


def parents(path: str) -> list[str]:
    """Return the directories above a path."""
    above = os.path.dirname(os.path.realpath(path))
    return [above] if above == "/" else [above, *parents(above)]


def main() -> None:
    """Read the settings and become the sandbox; with `--try` print what the system refuses."""
    settings = None if "--try" in sys.argv else json.loads(sys.stdin.buffer.read())
    directory = "/tmp" if settings is None else settings["directory"]
    refused = leave(os.getuid(), os.getgid())
    own_disk = close_disk(directory, 1 << 20 if settings is None else settings["disk"])
    if os.getuid() == 0 and settings is not None:
        os.chown(directory, NOBODY, NOBODY)
    if settings is None:
        print(", ".join([f"{name} namespace" for name in refused] + ([] if own_disk else ["disk of its own"])))
        return
    supervise(lambda: supervise(lambda: program(settings, in_namespaces=own_disk)))


def program(settings: dict[str, Any], *, in_namespaces: bool) -> None:
    bound(settings, in_namespaces=in_namespaces)
    signal.alarm(int(settings["seconds"]) + 1)
    run(settings)
    sys.stdout.flush()
    sys.stderr.flush()


def supervise(work: Callable[[], None]) -> None:
    """Do the work in a child and end as it ends, a signal as 128 and its number, as shells do.

    The outer child is process 1 of its namespace, which signals without a handler do not reach; so another one works.
    """
    if (child := os.fork()) == 0:
        work()
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os._exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
