"""A process that computes for vLLM may use AMX, or does not know of it."""

from __future__ import annotations

import os

import pytest
import torch

from troupe.engines.arguments import _share_cores
from troupe.hardware import cpu_features, use_amx


@pytest.fixture
def amx_of_torch(monkeypatch):
    """Torch as it was, and no variable of a user's."""
    monkeypatch.delenv("TROUPE_HIDE_AMX", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", torch.cpu._is_amx_tile_supported)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "ALL")
    return monkeypatch


def test_a_processor_without_amx_is_asked_for_nothing(amx_of_torch):
    asked = []
    amx_of_torch.setattr(torch.cpu, "_init_amx", lambda: asked.append("asked"))
    amx_of_torch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not use_amx()
    assert asked == []


@pytest.mark.skipif("amx_tile" not in cpu_features(), reason="this processor has no AMX")
def test_linux_grants_amx_and_a_variable_hides_it(amx_of_torch):
    assert use_amx()
    amx_of_torch.setenv("TROUPE_HIDE_AMX", "1")
    assert not use_amx()
    assert not torch.cpu._is_amx_tile_supported()


def test_an_amx_that_linux_refuses_is_hidden_from_vllm(amx_of_torch):
    amx_of_torch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    amx_of_torch.setattr(torch.cpu, "_init_amx", lambda: False)
    assert not use_amx()
    assert not torch.cpu._is_amx_tile_supported()


@pytest.mark.parametrize(
    ("cores", "ranks", "told"),
    [("0,1,2,3", 2, "0,1|2,3"), ("0,1", 2, "0|1"), ("4", 2, "4|4"), ("0,1,2", 2, "0|1")],
)
def test_the_ranks_of_an_engine_share_its_cores_as_vllm_wants_them_told(monkeypatch, cores, ranks, told):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", cores)
    _share_cores(ranks)
    assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == told
