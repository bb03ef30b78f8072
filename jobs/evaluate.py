"""Evaluate a checkpoint or a hub model on the held-out side of a data set.

    python jobs/evaluate.py model=runs/quickstart [data.type=gsm8k ...] [recipe.yaml ...]

Prints a table; writes metrics.json (means with 95 % bootstrap intervals) and answers.jsonl (prompt, gold, answer, parts).
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import rich
from rich.table import Table

from actors.evaluator import Evaluation, Evaluator
from actors.generator import Generators, GeneratorWorker, generator_arguments, start_generators
from actors.placement import Stage
from actors.rewarder import Rewarder
from core.checkpoint import CheckpointStore
from core.errors import CheckpointError
from core.files import to_json, write_atomically
from core.program import run_program
from core.recipes import EvaluateConfig
from core.statistics import bootstrap_interval
from data import load_data


def evaluate(config: EvaluateConfig) -> None:
    model_path = locate(config.model)
    rewarder = Rewarder(config.metrics)
    data = load_data(config.data)
    stage = Stage(config.placement)
    with contextlib.ExitStack() as stack:
        stack.callback(stage.close)
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model_path, trust_remote_code=config.trust_remote_code)
        arguments = generator_arguments(
            model_path,
            config.generator,
            max_length=config.max_prompt_tokens + config.max_response_tokens,
            precision=stage.machine.precision(config.precision),
            transport=stage.machine.weight_transport(colocated=False),
            sleep=False,
            seed=config.seed,
            trust_remote_code=config.trust_remote_code,
        )
        group = stage.group(GeneratorWorker, arguments, role="generator", max_concurrency=1000)
        generators = Generators(group, config.generator, sleeps=False)
        stack.callback(generators.shutdown)
        evaluator = Evaluator(
            data.name,
            data.heldout[: config.num_samples],
            tokenizer,
            generators,
            rewarder,
            max_prompt_tokens=config.max_prompt_tokens,
            max_response_tokens=config.max_response_tokens,
            temperature=config.temperature,
            seed=config.seed,
        )
        start_generators(group, config.generator)
        report(config, model_path, evaluator, evaluator.evaluate())


def locate(model: str) -> str:
    """The directory of a run's best (else latest) checkpoint, or the name as it was given."""
    checkpoints = Path(model) / "checkpoints"
    if not checkpoints.is_dir():
        if not Path(model).is_dir() and (model.count("/") != 1 or model.startswith((".", "/", "runs/"))):
            raise CheckpointError(
                f"there is no model at {model!r}; give a run directory, a checkpoint directory or a hub name such as Qwen/Qwen2.5-0.5B-Instruct"
            )
        return model
    store = CheckpointStore(checkpoints)
    best = store.best()
    step = best if best is not None else store.latest()
    if step is None:
        raise CheckpointError(
            f"{model} has no complete checkpoint yet; let the run write one, or give a checkpoint directory"
        )
    return str(store.path(step))


def report(config: EvaluateConfig, model_path: str, evaluator: Evaluator, evaluation: Evaluation) -> None:
    """Print the table and write the files."""
    default = Path(config.model) / "evaluation" if (Path(config.model) / "checkpoints").is_dir() else Path("evaluation")
    output = Path(config.output) if config.output else default
    output.mkdir(parents=True, exist_ok=True)
    rows = evaluation.rows()
    table = Table(title=f"{model_path} on {evaluator.name} ({len(rows)} samples)", title_justify="left")
    for column in ("metric", "mean", "95 % interval"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    summary: dict[str, object] = {"model": model_path, "samples": len(rows), "prompts_too_long": evaluator.num_too_long}
    for name, mean in sorted(evaluation.metrics.items()):
        label = name.rpartition("/")[2]
        values = [row["metrics"][label] for row in rows if label in row["metrics"]]
        low, high = bootstrap_interval(values, seed=config.seed) if values else (mean, mean)
        table.add_row(label, f"{mean:.4f}", f"{low:.4f} .. {high:.4f}" if values else "")
        summary[label] = {"mean": mean, "low": low, "high": high} if values else {"mean": mean}
    write_atomically(output / "metrics.json", json.dumps(summary, indent=2) + "\n")
    write_atomically(output / "answers.jsonl", "".join(to_json(row) + "\n" for row in rows))
    rich.print(table)
    if evaluator.num_too_long:
        rich.print(f"{evaluator.num_too_long} prompts were longer than {config.max_prompt_tokens} tokens and left out")
    rich.print(f"written to {output}")


if __name__ == "__main__":
    run_program(evaluate, EvaluateConfig, "jobs/evaluate.py")
