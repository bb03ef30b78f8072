"""Names of a package that are imported when they are first used (PEP 562), so that torch and Ray load late."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def lazy_exports(package: str, file: str) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package: its names are those that `file` imports under TYPE_CHECKING.

    So each name is written once, where type checkers and editors look for it.
    """
    imports = [node for node in ast.walk(ast.parse(Path(file).read_text())) if isinstance(node, ast.ImportFrom)]
    owners = {alias.name: node.module for node in imports for alias in node.names if node.module}

    def load(name: str) -> Any:
        if not owners.get(name, "").startswith(f"{package}."):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(owners[name]), name)
        setattr(sys.modules[package], name, found)
        return found

    return load
