"""What engines are started with: the settings of a recipe in vLLM's words, on a CPU and on a GPU."""

from __future__ import annotations

import os

import pytest

from troupe.config.models import EngineConfig
from troupe.engines.arguments import engine_arguments
from troupe.hardware import Hardware

CPU = Hardware(device="cpu", num_gpus=0, num_cores=4, fast_bf16=True)
GPU = Hardware(device="cuda", num_gpus=2, num_cores=4, fast_bf16=True)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch):
    """Lets the machine be another one."""

    def choose(machine: Hardware) -> None:
        monkeypatch.setattr("troupe.engines.arguments.hardware", lambda: machine)
        monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0,1,2,3")

    return choose


def test_on_a_gpu_an_engine_gets_its_share_of_memory_and_keeps_vllms_own_ways(on) -> None:
    on(GPU)
    engine = EngineConfig(memory_fraction=0.5, max_running=7, tensor_parallel_size=2)
    assert engine_arguments(engine, max_length=100, precision="bf16") == {
        "dtype": "bfloat16",
        "enforce_eager": False,
        "max_model_len": 100,
        "max_num_seqs": 7,
        "tensor_parallel_size": 2,
        "gpu_memory_utilization": 0.5,
    }
    assert engine_arguments(EngineConfig(enforce_eager=True), max_length=1, precision="fp32")["enforce_eager"]


def test_on_a_cpu_there_are_no_graphs_and_no_prompt_is_read_in_chunks(on) -> None:
    on(CPU)
    found = engine_arguments(EngineConfig(cpu_cache_gib=0.5, tensor_parallel_size=2), max_length=64, precision="fp32")
    assert found["dtype"] == "float32"
    assert found["enforce_eager"] is True
    # A seeded request whose prompt is prefilled in chunks crashes vLLM's CPU engine.
    assert found["enable_chunked_prefill"] is False
    assert found["kv_cache_memory_bytes"] == 2**29
    assert "gpu_memory_utilization" not in found
    assert "distributed_executor_backend" not in found  # two ranks are two processes
    assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == "0,1|2,3"


@pytest.mark.parametrize(("longest", "batched"), [(64, 16384), (16384, 16384), (40000, 40000)])
def test_a_batch_holds_the_longest_prompt_whole(on, longest: int, batched: int) -> None:
    on(CPU)
    found = engine_arguments(EngineConfig(tensor_parallel_size=2), max_length=longest, precision="bf16")
    assert (found["max_num_batched_tokens"], found["max_model_len"]) == (batched, longest)
