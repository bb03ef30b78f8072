"""What the whole session shares."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def one_rank() -> Iterator[None]:
    """A process group of this process alone, and the environment put back for the modules that follow.

    The group itself stays until the session ends: DeepSpeed keeps groups that belong to it in globals, and no second
    process group would know them.
    """
    import deepspeed
    import torch.distributed

    from actors.engine import prepare_extension
    from core.hardware import set_up_process

    before = dict(os.environ)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    set_up_process(master_port=port)
    prepare_extension()
    if not torch.distributed.is_initialized():
        deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    yield
    os.environ.clear()
    os.environ.update(before)
