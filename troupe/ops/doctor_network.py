"""What a run needs of its surroundings, as checks: open ports, a cluster that is up, the hub, secrets and `.env`.

As in `troupe.ops.doctor`: a check looks and never mends, and imports what may not be installed only where it uses it.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from troupe.environment import ENV_FILE, read_env_file
from troupe.errors import ConfigError
from troupe.ops.doctor import Finding, fail, info, ok, warn
from troupe.processes.sockets import Listener, all_listeners, our_listeners


def check_listening(found: Callable[[], Iterable[Listener]] = all_listeners) -> Finding:
    """Return every port that Troupe, Ray or vLLM have open now; beyond loopback they should be on purpose."""
    try:
        ours = our_listeners(found)
    except ImportError:
        return info("psutil is not installed, so open ports are not listed")
    lines = tuple(listener.told() for listener in ours)
    beyond = sum(not listener.ip.is_loopback for listener in ours)
    if not beyond:
        return ok(f"{len(ours)} ports open, none of them beyond loopback", details=lines)
    return warn(
        f"{len(ours)} ports open, {beyond} of them (listed first) to everybody who reaches this machine",
        "a Ray of one machine: start it with RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, which keeps it on loopback; a "
        "cluster of several: a private network or a firewall (docs/operations.md, Ports)",
        details=lines,
    )


def ray_token(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the token as Ray looks for it: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token."""
    if environment.get("RAY_AUTH_TOKEN"):
        return environment["RAY_AUTH_TOKEN"]
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    return (path.read_text().strip() or None) if path.is_file() else None


def check_cluster(
    dashboard: str = "http://127.0.0.1:8265", environment: Mapping[str, str] = os.environ, timeout_s: float = 3
) -> Finding:
    """Return whether a cluster runs here and would let a job in; Ray's dashboard answers both without importing Ray."""
    mode = _answer(f"{dashboard}/api/authentication_mode", {}, timeout_s)
    if mode is None or mode[0] != 200:
        return ok("no Ray cluster on this machine; a job starts its own")
    if "disabled" in mode[1]:
        remedy = "restart it with RAY_AUTH_MODE=token ray start --head (ray get-auth-token --generate makes the token)"
        return warn("a Ray cluster runs and lets everybody in who reaches it", remedy)
    token = ray_token(environment)
    if token is None:
        remedy = "put the cluster's token into ~/.ray/auth_token: ray get-auth-token prints it on the head"
        return fail("a Ray cluster runs and wants a token, and there is none here", remedy)
    reply = _answer(f"{dashboard}/api/version", {"Authorization": f"Bearer {token}"}, timeout_s)
    if reply is None or reply[0] != 200:
        remedy = "copy ~/.ray/auth_token from the head, or unset RAY_AUTH_TOKEN if it is of another cluster"
        return fail("a Ray cluster runs and refuses the token found here", remedy)
    if environment.get("RAY_AUTH_MODE") != "token":
        return warn(
            "a Ray cluster runs and takes our token, but RAY_AUTH_MODE is not set: ray job submit will be Unauthorized",
            "export RAY_AUTH_MODE=token",
        )
    return ok("a Ray cluster runs and takes our token")


def _answer(url: str, headers: Mapping[str, str], timeout_s: float) -> tuple[int, str] | None:
    """Return (status, body) of a GET that uses no proxy; None where nobody answers."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, headers=dict(headers)), timeout=timeout_s) as reply:
            return reply.status, reply.read(4096).decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, ""
    except (OSError, ValueError):
        return None


# --- what lies outside -----------------------------------------------------------------------------------------------

SECRETS = (
    "HF_TOKEN",
    "WANDB_API_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "OPENAI_API_KEY",
    "NVIDIA_API_KEY",
    "TROUPE_API_KEY",
)


def check_hub(environment: Mapping[str, str] = os.environ, timeout_s: float = 3) -> Finding:
    """Return only for information: the quickstart makes its data and its model itself."""
    if environment.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return info("HF_HUB_OFFLINE is set: only models and data already on this machine")
    hub = environment.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(hub, method="HEAD"), timeout=timeout_s).close()
    except urllib.error.HTTPError:
        pass  # it answered
    except (OSError, ValueError):
        return info(
            f"{hub} does not answer: recipes with hub models or data will not load",
            "local directories work everywhere; HF_HUB_OFFLINE=1 saves the waiting",
        )
    return info(f"{hub} answers")


def check_secrets(environment: Mapping[str, str] = os.environ) -> Finding:
    """Their names; a value is never read into a message."""
    present = [name for name in SECRETS if environment.get(name)]
    absent = [name for name in SECRETS if name not in present]
    return info(f"set: {', '.join(present) or 'none'}; not set: {', '.join(absent) or 'none'}")


def check_env_file(path: Path = ENV_FILE) -> Finding:
    """Return whether `.env` can be read, and by whom; the names in it."""
    if not path.is_file():
        return info(f"there is no {path} here; jobs take what the environment has")
    try:
        names = ", ".join(read_env_file(path)) or "nothing"
    except ConfigError as error:
        told, _, remedy = str(error).rpartition("; ")
        return fail(told, remedy)
    except ImportError:
        return info(f"python-dotenv is not installed, so {path} was not read")
    if path.stat().st_mode & 0o077:
        return warn(f"{path} sets {names} and others may read it", f"chmod 600 {path}")
    return ok(f"{path} sets {names}")
