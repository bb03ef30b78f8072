"""The worker that computes in every vLLM engine on a CPU, for training and serving alike.

`engine_arguments` names it to vLLM, which imports it in whichever process holds the model: the engine's own, or one for
each rank of a tensor-parallel engine. Nothing of ours imports it, since it imports vLLM.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker

from troupe.hardware import use_amx


class EngineWorker(CPUWorker):
    """vLLM's worker, in a process that may use AMX or does not know of it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        use_amx()
        super().__init__(*args, **kwargs)

    def attention_kernel(self) -> str:
        """Return the name of the kernel that vLLM chose for the model's attention: amx, vec, vec16, neon, ..."""
        names = {module.isa for module in self.model_runner.get_model().modules() if hasattr(module, "isa")}
        return ", ".join(sorted(names)) or "unknown"
