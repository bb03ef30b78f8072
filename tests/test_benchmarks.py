"""Benchmarks that are kept ready for other machines run here on a tiny shape."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_gpu_benchmark_finds_packed_and_padded_rows_equal_on_a_tiny_shape(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--output", str(output)]
    subprocess.run(command, check=True, cwd=tmp_path, env={"PATH": "", "CUDA_VISIBLE_DEVICES": ""})
    short = json.loads(output.read_text())["short"]
    assert short["spread"] > 0.1  # a model that gives everything the same probability would hide a difference
    assert short["largest_difference"] < 1e-4
    assert short["packed"]["computed_tokens"] < short["padded"]["computed_tokens"]
