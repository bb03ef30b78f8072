"""A kernel that dies in a real engine gives way to the next one."""

from __future__ import annotations

import os
import sys

import pytest

from tests.conftest import ROOT
from troupe.engines.trial import Trial, engine_trial, settle_engine
from troupe.hardware import HIDE_AMX, hardware

CLAIMS_AMX = ROOT / "tests" / "fixtures" / "claims_amx"


@pytest.mark.skipif(hardware().device == "cuda", reason="vLLM's kernels for CPUs are not installed")
def test_where_the_amx_kernel_dies_the_next_one_answers_and_engines_take_it(tmp_path, monkeypatch):
    """The child believes in AMX and in its permission, so vLLM's own AMX kernel meets a processor that refuses it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # nothing is remembered
    monkeypatch.setenv(HIDE_AMX, "")
    monkeypatch.delenv(HIDE_AMX)
    monkeypatch.setenv("PYTHONPATH", str(CLAIMS_AMX))
    monkeypatch.setenv("CLAIMS_AMX", str(tmp_path / "asked"))
    monkeypatch.setenv("GRANTS_AMX", "1")
    trial = engine_trial("bf16")
    assert trial == Trial(precision="bf16", kernel="vec", hides_amx=True, deaths=("amx by SIGILL",))
    assert str(trial) == "vLLM computes attention with its kernel vec in bf16; amx by SIGILL on this processor"
    # The first engine's process asked for AMX; that of the second, from which it was hidden, did not.
    assert len((tmp_path / "asked").read_text().splitlines()) == 1
    monkeypatch.setattr(sys, "executable", "/no more children")
    assert engine_trial("bf16") == trial
    settle_engine("bf16")
    assert os.environ[HIDE_AMX] == "1"
