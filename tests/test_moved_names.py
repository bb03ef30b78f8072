"""Names of before: what is ours is found again, and what only has such a name is left alone."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from troupe.moved_names import new_name, second_copies
from troupe.project import ROOT


@pytest.mark.parametrize(
    ("old", "new"),
    [("core.records", "troupe.records"), ("data.short_stories", "troupe.data.short_stories"), ("core.recipes", None),
     ("numpy.random", None)],
)  # fmt: skip
def test_a_module_is_found_under_its_new_name(old: str, new: str | None) -> None:
    assert new_name(old) == new


def test_only_our_own_folders_hold_second_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's `data/` in the checkout, or an installed `data` package, is no copy of ours."""
    for name, folder in (("data.loader", "data"), ("rewards.answers", "rewards")):
        module = ModuleType(name)
        module.__file__ = str(ROOT / folder / f"{name.partition('.')[2]}.py")
        monkeypatch.setitem(sys.modules, name, module)
    assert second_copies() == ["rewards.answers"]
    assert "data.loader" in sys.modules
