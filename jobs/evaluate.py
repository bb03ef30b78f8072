"""Evaluate one or several models on the held-out side of a data set: metrics, a reward model, comparisons.

    python jobs/evaluate.py model=runs/quickstart [data.type=gsm8k ...] [recipe.yaml ...]
    python jobs/evaluate.py 'models={sft: runs/sft, ppo: runs/ppo}' rouge=true reward_model.path=runs/reward against=sft

First every model answers, then the answers are scored; they are kept in between, so a second call goes on from there.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: imports begin at the project, not in jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import rich

from troupe import evaluation
from troupe.config.evaluation import BenchmarkConfig, EvaluateConfig
from troupe.config.program import run_program


def evaluate(config: EvaluateConfig | BenchmarkConfig) -> evaluation.EvaluationResult:
    """Evaluate and print the tables."""
    from troupe.evaluation.evaluation_tables import print_tables

    result = evaluation.evaluate(config)
    rich.print(result.lead)
    print_tables(result.tables)
    rich.print(f"written to {result.output}")
    if isinstance(config, BenchmarkConfig):
        rich.print(f"report: {result.output / 'report.html'}")
        if config.upload is not None:
            rich.print(f"{result.uploaded} files copied to {config.upload}")
    return result


def rehearse(config: EvaluateConfig | BenchmarkConfig) -> list[str]:
    """Return what a dry run shows."""
    return evaluation.prepare(config).lines()


if __name__ == "__main__":
    run_program(evaluate, EvaluateConfig, "jobs/evaluate.py", rehearse=rehearse)
