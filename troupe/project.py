"""Where this project lies: in a checkout, or installed among other packages."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The folder from which `import troupe` works: the checkout, or site-packages."""
IS_CHECKOUT = (ROOT / "install.py").is_file()
JOBS = ROOT / "jobs" if IS_CHECKOUT else ROOT / "troupe" / "jobs"
CACHE = ROOT / ".cache" if IS_CHECKOUT else Path("~/.cache/troupe").expanduser()
