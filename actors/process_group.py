"""How ranks find one another before DeepSpeed starts: the extension that they need, and the process group they become.

Everything that DeepSpeed leaves open or behind at that moment (ports, shared memory, compile locks) is dealt with here.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from filelock import FileLock

from troupe.extension import extension_directory, extension_state, remove_stale_lock, use_environment_cache
from troupe.hardware import hardware
from troupe.processes.sockets import listen


def join_process_group(timeout_s: float = 1800.0) -> None:
    """Become a rank of the process group that the environment names, unless this process is in one already.

    A collective that lasts longer than `timeout_s` raises, because a rank hangs or is gone.
    """
    if dist.is_initialized():
        return
    import deepspeed

    store = meeting_place() if os.environ["RANK"] == "0" else None
    deepspeed.init_distributed(
        dist_backend=hardware().collective_backend, verbose=False, timeout=timedelta(seconds=timeout_s)
    )
    del store  # the process group has it
    if hardware().device == "cpu":
        dist.barrier()  # by now every rank has opened the buffers of all
        # DeepSpeed leaves each rank's buffer of 70 MB in shared memory for ever. Without its name it ends with the
        # processes that have it open, however they end.
        place = f"{os.environ['MASTER_ADDR']}_{os.environ['MASTER_PORT']}_{dist.get_rank()}"
        Path(f"/dev/shm/deepspeed_allreduce_buffer_{os.getuid()}_{place}").unlink(missing_ok=True)


def meeting_place() -> Any:
    """Return the store where the ranks meet, on rank 0's address alone; torch finds it by its port (`multi_tenant`)."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(  # type: ignore[attr-defined]  # torch exports it by name only
        host,
        port,
        int(os.environ["WORLD_SIZE"]),
        is_master=True,
        wait_for_workers=False,
        multi_tenant=True,
        master_listen_fd=listen(host, port).detach(),
    )


def prepare_extension() -> None:
    """Compile DeepSpeed's CPU extension in this process, before several workers would race for it."""
    if hardware().device != "cpu":
        return
    # torch runs ninja at every start. Another version than the one that built finds every command changed and builds
    # anew, for a minute each time, so it is always the one beside this Python, whatever is on PATH.
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    use_environment_cache()
    extension_directory().mkdir(parents=True, exist_ok=True)
    watch_stale_locks()
    # Ours is the kernel's, given back however its holder ends; torch's is a file that a killed builder leaves.
    with FileLock(extension_directory() / "troupe.lock"):
        remove_stale_lock()
        if extension_state() != "built":
            os.environ["DS_ACCELERATOR"] = "cpu"
            from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

            ShareMemCommBuilder().load(verbose=False)


def watch_stale_locks() -> None:
    """Let torch, in this process, wait for the lock of a build only as long as a process holds it."""
    from torch.utils.file_baton import FileBaton

    def wait(baton: FileBaton) -> None:
        lock = Path(baton.lock_file_path)
        while lock.exists() and remove_stale_lock(lock.parent) is None:
            time.sleep(baton.wait_seconds)

    def release(baton: FileBaton) -> None:
        if baton.fd is not None:
            os.close(baton.fd)
        # Another machine with the same environment does not see who holds a lock here, and may have removed it.
        Path(baton.lock_file_path).unlink(missing_ok=True)

    FileBaton.wait = wait  # type: ignore[method-assign,assignment]
    FileBaton.release = release  # type: ignore[method-assign,assignment]
