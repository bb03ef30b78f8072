"""Libraries that only some runs need: imported where they are used, and named in a sentence where they are missing."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from troupe.errors import ConfigError

EXTRA = "games"
"""The extra of this project with all of them."""


def optional(module: str, purpose: str) -> Any:
    """Import an optional library; ConfigError with the command that installs it, where it is missing or broken."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of old packages that they need
            return importlib.import_module(module)
    except ImportError as error:
        missing = getattr(error, "name", None) == module
        why = "is not installed" if missing else f"cannot be imported ({type(error).__name__}: {error})"
        raise ConfigError(
            f"{purpose} needs the library {module}, which {why}; install it with pip install 'troupe[{EXTRA}]'"
        ) from error
