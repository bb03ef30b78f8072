"""Names of a package that are imported when they are first used (PEP 562), so that torch and Ray load late."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_exports(package: str, owners: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the `__getattr__` of `package`, whose name `x` is in its module `owners["x"]`."""

    def load(name: str) -> Any:
        if name not in owners:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(f"{package}.{owners[name]}"), name)
        setattr(sys.modules[package], name, found)
        return found

    return load
