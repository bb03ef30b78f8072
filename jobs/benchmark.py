"""Benchmark a run's checkpoints against its base model and other models on one validation split.

    python jobs/benchmark.py configs/benchmarks/quickstart.yaml trained=runs/quickstart
    python jobs/benchmark.py trained=runs/x 'endpoints.gpt={base_url: "https://api.openai.com/v1", model: gpt-4o}'

It is `jobs/evaluate.py` with another config: all candidates answer the same held-out prompts; then the answers are
scored. Every answer is on disk at once, so that a second call goes on from there and pays for nothing twice.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: imports begin at the project, not in jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from troupe.config.evaluation import BenchmarkConfig
from troupe.config.program import run_program
from troupe.jobs.evaluate import evaluate as benchmark, rehearse

if __name__ == "__main__":
    run_program(benchmark, BenchmarkConfig, "jobs/benchmark.py", rehearse=rehearse)
