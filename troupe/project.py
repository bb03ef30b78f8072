"""Where this project lies: in a checkout, or installed among other packages."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The folder from which `import troupe` works: the checkout, or site-packages."""
IS_CHECKOUT = (ROOT / "install.py").is_file()
JOBS = ROOT / "jobs" if IS_CHECKOUT else ROOT / "troupe" / "jobs"
CONSOLE_COMMAND: list[str] = []
"""The console script's command, such as `troupe train grpo`, where that started this process."""
CACHE = ROOT / ".cache" if IS_CHECKOUT else Path("~/.cache/troupe").expanduser()


def call_of(program: str) -> str:
    """Return how `program` (jobs/train_grpo.py) is called: as it was in this process."""
    return CONSOLE_COMMAND[0] if CONSOLE_COMMAND else f"python {program}"
