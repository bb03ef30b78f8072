"""What the whole session shares."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from actors.placement import Stage
from core.recipes import PlacementConfig


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in its own
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the two processes of `make test` one gets every file that needs Ray, so that Ray starts once."""
    need_ray = {item.path for item in items if "stage" in getattr(item, "fixturenames", ())}
    for item in items:
        item.add_marker(pytest.mark.xdist_group("ray" if item.path in need_ray else item.path.name))


@pytest.fixture(scope="session")
def stage() -> Iterator[Stage]:
    """A stage that keeps Ray alive, whose start takes longer than most tests; stages of jobs and tests join it."""
    stage = Stage(PlacementConfig())
    yield stage
    stage.close()


@pytest.fixture(scope="module")
def one_rank() -> Iterator[None]:
    """A process group of this process alone, and the environment put back for the modules that follow.

    The group itself stays until the session ends: DeepSpeed keeps groups that belong to it in globals, and no second
    process group would know them.
    """
    from actors.engine import join_process_group, prepare_extension
    from core.hardware import set_up_process

    before = dict(os.environ)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    set_up_process(master_port=port)
    prepare_extension()
    join_process_group()
    yield
    os.environ.clear()
    os.environ.update(before)
