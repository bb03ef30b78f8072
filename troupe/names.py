"""What a name says by itself, without a look at what it names."""

from __future__ import annotations

from pathlib import Path


def step_name(step: int) -> str:
    """Return the directory of a step's checkpoint: step-000010."""
    return f"step-{step:06d}"


def step_of(name: str) -> int | None:
    """Return the step whose checkpoint a directory of that name is, None where it is none."""
    number = name.removeprefix("step-")
    return int(number) if name.startswith("step-") and number.isdigit() else None


def is_hub_name(model: str) -> bool:
    """Return whether `model` has the form of a repository on the hub and there is no such path."""
    return not Path(model).exists() and model.count("/") == 1 and not model.startswith((".", "/", "runs/"))
