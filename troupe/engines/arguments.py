"""What every vLLM engine here is started with, whether it samples for training or serves.

The CPU needs the most words: chunked prefill off, one process, a head that is packed again after new weights. vLLM is
imported inside the functions, so that this file can be read where it is not installed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from troupe.config.models import EngineConfig
from troupe.hardware import hardware

if TYPE_CHECKING:
    from torch.nn import Module


def engine_arguments(engine: EngineConfig, *, max_length: int, precision: str) -> dict[str, Any]:
    """Keyword arguments of vLLM's AsyncEngineArgs. `max_length` counts the tokens of prompt and answer."""
    on_cpu = hardware().device == "cpu"
    arguments: dict[str, Any] = {
        "dtype": "bfloat16" if precision == "bf16" else "float32",
        "enforce_eager": engine.enforce_eager or on_cpu,
        "max_model_len": max_length,
        "max_num_seqs": engine.max_running,
        "tensor_parallel_size": engine.tensor_parallel_size,
    }
    if not on_cpu:
        return arguments | {"gpu_memory_utilization": engine.memory_fraction}
    arguments |= {
        "worker_cls": "troupe.engines.worker.EngineWorker",
        # Seeded requests crash when a prompt is prefilled in chunks: the CPU generator takes no offset.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(max_length, 16384),
        # With an explicit size vLLM skips its warm-up run.
        "kv_cache_memory_bytes": int(engine.cpu_cache_gib * 2**30),
    }
    if engine.tensor_parallel_size == 1:
        arguments["distributed_executor_backend"] = _one_process()
    else:
        _share_cores(engine.tensor_parallel_size)
    return arguments


def _one_process() -> type[Any]:
    """vLLM's executor that computes in the scheduler's own process, with the threads that vLLM would give a worker.

    The usual worker process and the scheduler spin on shared memory for a second after each message to one another,
    on cores that others need (a trainer's update, a server); here there is nobody to wait for, and one process less to
    start.
    """
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    os.environ.update(OMP_PLACES=f"{{{os.environ['VLLM_CPU_OMP_THREADS_BIND']}}}", OMP_PROC_BIND="true")
    return UniProcExecutor


def _share_cores(ranks: int) -> None:
    """Give each rank of an engine its part of the engine's cores, as vLLM wants them: "0,1|2,3"."""
    cores = os.environ["VLLM_CPU_OMP_THREADS_BIND"].split(",")
    share = max(1, len(cores) // ranks)
    parts = [cores[first % len(cores) :][:share] for first in range(0, ranks * share, share)]
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(",".join(part) for part in parts)


def pack_again(model: Module) -> None:
    """Call after new weights were loaded into a running model on a CPU.

    vLLM packs some weights for the CPU's kernels when it loads a model, and not when it loads new weights: a head tied
    to the embedding keeps its old packed copy, and experts hold the new weights unpacked, which their kernel misreads.
    """
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)
        kernel = getattr(getattr(module, "quant_method", None), "moe_kernel", None)
        experts = getattr(kernel, "fused_experts", None)
        if isinstance(experts, CPUUnquantizedExperts) and hasattr(module, "w13_weight"):
            experts.process_weights_after_loading(module)
