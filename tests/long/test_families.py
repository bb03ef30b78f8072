"""Models of other families, random and of two layers: trained, synced, saved, and read again by those who know them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.long.families import FAMILIES, MARK

CHOSEN = ("phi3", "gpt2", "gemma3@2")
"""Those that `make test-long` tries: fused matrices; Conv1D and learned positions; windows, scaled embeddings and norms of
its own on two ranks of ZeRO-3.
"""
EXACT = 1e-4
"""Nats, in fp32."""


def names() -> tuple[str, ...]:
    """What TROUPE_TEST_FAMILIES names, `all` or some with commas between."""
    wanted = os.environ.get("TROUPE_TEST_FAMILIES", ",".join(CHOSEN))
    return (*FAMILIES, "gemma3@2") if wanted == "all" else tuple(wanted.split(","))


def told(phase: str, directory: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.long.families", phase, str(directory), *names()]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)
    found = [json.loads(line.removeprefix(MARK)) for line in ran.stdout.splitlines() if line.startswith(MARK)]
    assert len(found) == len(names()), ran.stderr[-3000:]
    return {facts["family"]: facts for facts in found}


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    directory = tmp_path_factory.mktemp("families")
    trained, read = told("train", directory), told("read", directory)
    return {name: {"trained": trained[name], "read": read[name]} for name in trained}


@pytest.mark.parametrize("name", names())
def test_a_family_is_trained_synced_saved_and_is_the_same_model_to_transformers_and_to_vllm(
    figures: dict[str, dict[str, Any]], name: str
) -> None:
    trained, read = figures[name]["trained"], figures[name]["read"]
    assert "error" not in trained | read, trained | read
    assert all(gap < EXACT for gap in trained["gaps"])
    assert all(norm > 0 for norm in trained["moved"])
    assert read["keys"] == []
    assert read["vllm_gap"] < EXACT < read["spread"], "and not because all tokens are alike"
