"""Compute what a perplexity reward compares with: the gold answers' perplexity without any answer before them.

    python jobs/compute_baseline.py configs/next_chapter/full.yaml [section.field=value ...]

It takes the recipe of the run, whose data, scorer and prompts it uses, and writes its
`perplexity_reward.baseline_file`. Samples that the file has are skipped, so a call that was interrupted goes on where
it ended.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

if not __package__:  # run as a file: imports begin at the project, not in jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import rich

import troupe.processes.starting  # noqa: F401 - before what takes long
from troupe.actors.frozen import FrozenModel
from troupe.actors.perplexity_reward import ScorerPlan, baselines_of
from troupe.actors.placement import Cluster, RankPlacement
from troupe.config.algorithm import PerplexityRewardConfig
from troupe.config.grpo import GRPOConfig
from troupe.config.program import run_program
from troupe.data import DataSet, load_data
from troupe.errors import ConfigError
from troupe.processes.progress import build_progress
from troupe.records import Sample
from troupe.rewards.baselines import BaselineFile
from troupe.runs.model_check import check_models
from troupe.runs.model_paths import locate
from troupe.training.console import warm_start_progress
from troupe.training.roles import RoleStarter
from troupe.training.warm_start import starting_model

SAMPLES_PER_READ = 32
"""What an interrupted call loses at most."""

T = TypeVar("T")


def compute_baseline(config: GRPOConfig) -> None:
    settings = required(config)
    data = load_data(config.data, config.heldout)
    sides = [data.train, *data.heldout_sets(config.evaluation.num_samples).values()]
    samples = list({sample.sample_id: sample for side in sides for sample in side}.values())
    with contextlib.ExitStack() as stack:
        cluster = Cluster(config.placement)
        stack.callback(cluster.close)
        casting = casting_of(config, settings, data, cluster, stack)
        plan = casting.scorer_plan(settings, samples, complete=False)
        assert plan.baselines is not None
        missing = [sample for sample in samples if sample.sample_id not in plan.baselines]
        rich.print(
            f"{len(samples)} samples of {data.name}, {len(samples) - len(missing)} of them in {plan.baselines.path}"
        )
        if missing:
            cluster.reserve(placement_table(settings, device=cluster.machine.device), config.policy.init_timeout_s)
            scorer = casting.scorer(plan, row_tokens=config.policy.row_tokens)
            scorer.ready(config.policy.init_timeout_s)
            fill(plan, plan.baselines, scorer, missing)
    rich.print(summary(plan.baselines))


def required(config: GRPOConfig) -> PerplexityRewardConfig:
    """Return the section with what to compute. Raises ConfigError where it is missing, or names no file."""
    settings = config.perplexity_reward
    if settings is None:
        raise ConfigError("the recipe has no perplexity_reward, so there is no baseline to compute; add that section")
    if settings.baseline_file is None:
        raise ConfigError(
            "perplexity_reward.baseline_file is not set, so there is nowhere to write; name a .jsonl or .parquet file"
        )
    check_models(config)
    return settings if settings.path is None else settings.model_copy(update={"path": locate(settings.path)})


def casting_of(
    config: GRPOConfig, settings: PerplexityRewardConfig, data: DataSet, cluster: Cluster, stack: contextlib.ExitStack
) -> RoleStarter:
    """Prepare the start of the scorer: the run's starting model, which is made where it does not exist yet."""
    precision = cluster.machine.precision(config.model_precision)
    if settings.path is not None:
        model_path = settings.path
    else:
        with warm_start_progress() as progress:
            model_path = starting_model(
                config.model, data, cluster, precision=precision, seed=config.seed, progress=progress
            )
    return RoleStarter(stack, cluster, config.model, model_path, colocated=False, precision=precision, seed=config.seed)


def placement_table(settings: PerplexityRewardConfig, *, device: str) -> list[RankPlacement]:
    """Return the scorer's ranks, each with a device of its own."""
    gpu = int(device == "cuda")
    return [
        RankPlacement(role="perplexity", rank=rank, bundle=rank, bundle_gpus=gpu, num_gpus=gpu)
        for rank in range(settings.num_ranks)
    ]


def fill(plan: ScorerPlan, file: BaselineFile, scorer: FrozenModel, samples: Sequence[Sample]) -> None:
    """Compute these samples' baselines, writing as it goes."""
    progress = build_progress(file.path.name, 1, len(samples), rich.get_console())
    try:
        done = 0
        for part in chunks(samples, SAMPLES_PER_READ):
            found = baselines_of(scorer, plan.prompt, part)
            file.add(found)
            done += len(part)
            progress.update(done, {"loss": statistics.fmean(baseline.nll for baseline in found)})
    finally:
        progress.close()


def chunks(items: Sequence[T], size: int) -> Iterator[list[T]]:
    """Yield `size` items at a time, the last ones fewer."""
    rest = iter(items)
    while part := list(itertools.islice(rest, size)):
        yield part


def summary(file: BaselineFile) -> str:
    """Describe what the file holds in a sentence."""
    perplexities = sorted(file.perplexities())
    return (
        f"{len(file)} baselines in {file.path}: perplexity of the gold answer {statistics.median(perplexities):.3g} in "
        f"the median, {perplexities[0]:.3g} to {perplexities[-1]:.3g}"
    )


if __name__ == "__main__":
    run_program(compute_baseline, GRPOConfig, "jobs/compute_baseline.py")
