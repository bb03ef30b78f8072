"""Names of before everything moved under `troupe`, in configs and in users' files: where they lie now."""

from __future__ import annotations

import re
import sys
import traceback
from pathlib import Path

from troupe.project import IS_CHECKOUT, ROOT

OLD_PACKAGES = ("core", "algorithms", "data", "environments", "actors", "rewards", "serving", "jobs")

AT_THE_ROOT = ("actors", "rewards", "serving", "jobs")


def is_moved(module: str | None) -> bool:
    """Return whether a missing module is one that could be imported before."""
    return module is not None and module.partition(".")[0] in OLD_PACKAGES


def new_name(module: str) -> str | None:
    """Return a module's new name: `core.records` -> `troupe.records`; None for those that did not move."""
    if not is_moved(module):
        return None
    stem, here = module.rpartition(".")[2], Path(__file__).parent
    found = next((path for pattern in (f"{stem}.py", f"*/{stem}.py") for path in here.glob(pattern)), None)
    return None if found is None else ".".join(("troupe", *found.relative_to(here).with_suffix("").parts))


def imported_name(error: BaseException) -> str | None:
    """Return the dotted name in the import statement that raised `error`."""
    lines = [frame.line or "" for frame in traceback.extract_tb(error.__traceback__)]
    found = [match[1] for line in lines if (match := re.match(r"\s*(?:from|import)\s+([\w.]+)", line))]
    return found[-1] if found else None


def describe_move(address: str, old: str) -> str:
    """Return the sentence about an import of `old` in the module that `address` names."""
    now = new_name(old)
    remedy = f"change it to {now}" if now is not None else "docs/architecture.md lists what lies where"
    return f"the module of {address!r} imports {old}, but the modules of Troupe lie under `troupe` now: {remedy}"


def second_copies() -> list[str]:
    """Forget and return our modules imported by an old name (`rewards.answers`): their classes are others."""
    # Folders of these names elsewhere, in site-packages or beside ours, are other people's.
    folders = {ROOT / package for package in AT_THE_ROOT} if IS_CHECKOUT else set()
    found = [
        name
        for name, module in sys.modules.items()
        if is_moved(name) and "." in name and Path(getattr(module, "__file__", None) or "/").resolve().parent in folders
    ]
    for name in found:
        del sys.modules[name]
    return found
