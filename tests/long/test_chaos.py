"""Eight faults, of which no run dies and no weight differs; `make chaos` has forty."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT


def test_eight_faults_are_survived_with_equal_weights() -> None:
    command = [sys.executable, "-m", "tests.chaos", "--faults", "8", "--runs", "2"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1500)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-2000:]
    assert ran.stdout.splitlines()[-1] == "8 of 8"
