"""Which machine is this: device, transports, precision, threads. Asked here and nowhere else.

A role calls `set_up_process` first thing in its process and then uses what `Hardware` says; nothing outside
this file looks at CUDA, instruction sets or core counts.
"""

from __future__ import annotations

import functools
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from troupe.extension import use_environment_cache

Device = Literal["cpu", "cuda"]

LOOPBACK = "127.0.0.1"
WORKER_ROLE = "TROUPE_ROLE"
"""Environment variable of a worker that runs as a Ray actor: `policy-0`."""
HIDE_AMX = "TROUPE_HIDE_AMX"
"""Environment variable: where it is 1, vLLM's processes do not know that the processor has AMX."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What the machine offers to the roles."""

    device: Device
    num_gpus: int
    num_cores: int
    fast_bf16: bool
    """Whether the processor multiplies bf16 matrices in hardware; in software bf16 is slower than fp32."""

    @property
    def collective_backend(self) -> str:
        """torch.distributed's backend among the ranks of one role."""
        return "nccl" if self.device == "cuda" else "gloo"

    def precision(self, wanted: str) -> Literal["bf16", "fp32"]:
        """Return `auto` resolved: bf16 where it is fast."""
        if wanted == "auto":
            return "bf16" if self.fast_bf16 else "fp32"
        return "bf16" if wanted == "bf16" else "fp32"

    def weight_transport(self, *, colocated: bool) -> Literal["gloo", "nccl", "ipc"]:
        """Return how weights reach the generators: CUDA IPC on shared GPUs, NCCL between GPUs, gloo on CPUs."""
        if self.device == "cpu":
            return "gloo"
        return "ipc" if colocated else "nccl"


@functools.cache
def hardware() -> Hardware:
    """Return this machine, measured once per process; does not import torch (a driver needs no 2 s for it)."""
    num_gpus = _num_gpus()
    return Hardware(
        device="cuda" if num_gpus else "cpu",
        num_gpus=num_gpus,
        num_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        fast_bf16=bool(num_gpus) or bool(cpu_features() & {"avx512_bf16", "amx_bf16", "bf16"}),
    )


def cpu_features() -> set[str]:
    """Return the instruction-set flags that the kernel reports; empty where it reports none."""
    return set(_cpu_info("flags", "Features").split())


def processor_name() -> str:
    """Return the processor's model as the kernel reports it; the machine's kind where it reports none."""
    return _cpu_info("model name") or platform.machine()


def _cpu_info(*fields: str) -> str:
    """Return the first of /proc/cpuinfo's lines that begins with one of `fields`, without its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(fields)), "")


def _num_gpus() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([part for part in visible.split(",") if part.strip() and part.strip() != "-1"])
    devices = Path("/dev")
    return len([path for path in devices.glob("nvidia[0-9]*") if path.name[6:].isdigit()])


def set_up_driver() -> None:
    """Environment of a program that directs workers and holds no device itself.

    Without it DeepSpeed, which other libraries import, warns of a missing GPU on every machine that has none.
    """
    if hardware().device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def set_up_process(*, rank: int = 0, hosts: Sequence[str] = (LOOPBACK,), master_port: int = 0) -> None:
    """Environment and thread counts of a worker process, before torch or deepspeed start their own.

    `hosts` holds the address of every rank's machine; the ranks meet at the first. On a CPU each rank gets its share
    of its machine's cores: more threads than cores make the ranks wait for each other.
    """
    machine, here = hardware(), hosts[rank]
    neighbours = hosts.count(here)
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(len(hosts)),
        # DeepSpeed takes LOCAL_SIZE = WORLD_SIZE for "all ranks share this machine's memory".
        LOCAL_RANK="0" if machine.device == "cuda" else str(hosts[:rank].count(here)),
        LOCAL_SIZE="1" if machine.device == "cuda" else str(neighbours),
        MASTER_ADDR=hosts[0],
        MASTER_PORT=str(master_port),
        TOKENIZERS_PARALLELISM="false",
    )
    use_interface_of(here)
    if machine.device == "cpu":
        # DeepSpeed asks its accelerator, not torch; without this it looks for CUDA first and warns.
        os.environ["DS_ACCELERATOR"] = "cpu"
        use_environment_cache()
        import torch

        torch.set_num_threads(max(1, machine.num_cores // neighbours))


def use_interface_of(address: str) -> None:
    """Make gloo listen at `address`, under which Ray knows this machine, unless GLOO_SOCKET_IFNAME is set.

    By itself gloo takes what the machine's name resolves to: on Debian and Ubuntu that is 127.0.1.1, where no other
    machine finds it, and elsewhere an address that a run on loopback must not listen at.
    """
    import psutil  # here: the doctor asks about machines on which nothing is installed

    for name, addresses in psutil.net_if_addrs().items():
        if address in [interface.address for interface in addresses]:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def set_up_generator(index: int, num_engines: int, visible_devices: str | None, address: str) -> None:
    """Environment of engine `index` on the machine at `address`, before vLLM is imported in its process.

    `visible_devices` are the GPUs it shares with the policy's ranks. On a CPU vLLM binds its threads to cores;
    engines on one machine get cores of their own where there are enough.
    """
    # A worker's output goes to the run's logs, this process's to the user.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO" if WORKER_ROLE in os.environ else "ERROR")
    os.environ.update(VLLM_NO_USAGE_STATS="1", TOKENIZERS_PARALLELISM="false")
    use_interface_of(address)
    if visible_devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible_devices
    machine = hardware()
    if machine.device == "cuda":
        return
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(machine.num_cores))
    share = len(cores) // num_engines
    mine = cores[index * share : (index + 1) * share] if share else [cores[index % len(cores)]]
    os.environ.update(VLLM_CPU_OMP_THREADS_BIND=",".join(map(str, mine)), OMP_NUM_THREADS=str(len(mine)))


def use_amx() -> bool:
    """Ask Linux for AMX's tile registers in this process, before vLLM's first forward pass; hide AMX where they are
    refused or TROUPE_HIDE_AMX is 1. Return whether vLLM may use AMX.

    vLLM takes AMX kernels wherever the processor has them and never asks. Without the permission their first
    instruction ends the process by SIGILL. It is per process, kept by fork and lost by exec: each asks for itself.
    """
    import torch

    if not torch.cpu._is_amx_tile_supported():
        return False
    if os.environ.get(HIDE_AMX) != "1" and torch.cpu._init_amx():
        return True
    torch.cpu._is_amx_tile_supported = lambda: False  # the question by which vLLM chooses its kernels
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16")  # the most that oneDNN has below AMX
    return False


def available_memory_gib(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Return what the kernel can still hand out, or what the container is allowed if that is less."""
    values = dict(re.findall(r"^(\w+):\s+(\d+) kB", meminfo.read_text(), flags=re.MULTILINE))
    free = int(values["MemAvailable"]) * 1024
    try:
        limit = int((cgroup / "memory.max").read_text()) - int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        limit = free
    return min(free, limit) / 2**30
