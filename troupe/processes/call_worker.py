"""Loaded first in the process from which `call_pool` forks, and so part of every process that runs calls.

multiprocessing would import the program that was started into each of them: seconds, and for a script without a
`__main__` guard the script's work once more. Calls are functions of modules and need nothing of it.
"""

from __future__ import annotations

from multiprocessing import spawn
from typing import Any


def _leave_main_alone(*args: Any) -> None:
    """Do nothing in the place of an import of the main program."""


spawn._fixup_main_from_name = spawn._fixup_main_from_path = _leave_main_alone  # type: ignore[attr-defined]
