"""Who takes part in a benchmark: found and checked before anything starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from troupe.actors.reward_model import require_same_tokenizer
from troupe.chat import load_tokenizer
from troupe.config.evaluation import START, BenchmarkConfig
from troupe.config.models import RewardModelConfig
from troupe.data import load_data
from troupe.errors import ConfigError
from troupe.evaluation.benchmark_results import Contestant
from troupe.evaluation.checkpoint_sources import TrainedRun
from troupe.evaluation.endpoint_answers import AnsweringEndpoint
from troupe.evaluation.plan import fitting_samples, require_gold
from troupe.evaluation.stored_answers import Answers
from troupe.records import Sample
from troupe.report.trackers import check_trackers
from troupe.rewards.build import Rewards, build_rewards
from troupe.runs.bucket import Bucket
from troupe.runs.model_check import check_answerer, locate_reward_model
from troupe.runs.model_paths import locate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrants:
    """Who takes part and in what; whatever can be wrong with it was found when it was made."""

    samples: Sequence[Sample]
    too_long: int
    contestants: Sequence[Contestant]
    stored: Mapping[str, Answers]
    """Answers that a run has written itself."""
    tokenizers: Mapping[str, PreTrainedTokenizerBase]
    """Of the models that answer here."""
    endpoints: Mapping[str, AnsweringEndpoint]
    rewards: Rewards | None
    judges: Rewards | None
    compared: Sequence[str]
    """Whose answers the judges compare."""
    reward_model: RewardModelConfig | None
    bucket: Bucket | None


def prepare(config: BenchmarkConfig) -> Entrants:
    """Everything that is read and checked before a device is taken or a question is paid for."""
    check_trackers(config.trackers, mode=config.wandb.mode)
    rewards = build_rewards(config.all_metrics) if config.all_metrics else None
    judges = build_rewards(config.preferences.judges()) if config.preferences is not None else None
    endpoints = {
        name: AnsweringEndpoint(
            name, settings, max_response_tokens=config.max_response_tokens, sampling=config.sampling
        )
        for name, settings in config.endpoints.items()
    }
    bucket = None if config.upload is None else Bucket(config.upload)
    reward_model = locate_reward_model(config.reward_model) if config.reward_model is not None else None
    run = None if config.trained is None else TrainedRun(Path(config.trained))
    here = {name: check_answerer(path, f"models.{name}", config) for name, path in config.models.items()}
    if config.base is not None:
        base = run.start if run is not None and config.base == START else config.base
        here = {"base": check_answerer(base, "base", config), **here}
    heldout = load_data(config.data).heldout
    samples = (run.kept_samples(heldout) if run and config.kept_samples_only else heldout)[: config.num_samples]
    require_gold(config.needs_gold, samples)
    if rewards is not None:
        rewards.check(samples)

    # The tokenizer of a run is that of all of its steps; it also says which prompts the run has left out.
    readers = {**here, **({config.trained_name: run.any_checkpoint} if run and run.any_checkpoint else {})}
    tokenizers = {
        name: load_tokenizer(path, trust_remote_code=config.trust_remote_code) for name, path in readers.items()
    }
    fitting = fitting_samples(config, samples, tokenizers)
    stored = run.stored_answers(config, fitting) if run and config.stored_answers and config.repeats == 1 else {}
    contestants = []
    for step in run.steps(config.steps, fitting, stored) if run is not None else ():
        name = f"{config.trained_name}@{step.step}"
        contestants.append(Contestant(name=name, kind="trained", step=step.step, path=step.path and locate(step.path)))
    contestants += [
        Contestant(name=name, kind="base" if name == "base" else "model", path=path) for name, path in here.items()
    ]
    contestants += [Contestant(name=name, kind="endpoint") for name in endpoints]
    own = {one.name: stored[one.step] for one in contestants if one.step in stored}
    if reward_model is not None:
        require_readable(config, reward_model, tokenizers)
    return Entrants(
        samples=fitting,
        too_long=len(samples) - len(fitting),
        contestants=contestants,
        stored=own,
        tokenizers={
            one.name: tokenizers[config.trained_name if one.kind == "trained" else one.name]
            for one in contestants
            if one.path is not None
        },
        endpoints=endpoints,
        rewards=rewards,
        judges=judges,
        compared=compared(config, contestants),
        reward_model=reward_model,
        bucket=bucket,
    )


def compared(config: BenchmarkConfig, contestants: Sequence[Contestant]) -> list[str]:
    """Those that the recipe names, else everybody; of the trained model one step, the last where none is named."""
    if config.preferences is None:
        return []
    trained = [one.name for one in contestants if one.kind == "trained"]
    everybody = [one.name for one in contestants if one.name not in trained[:-1]]
    last = {config.trained_name: trained[-1]} if trained else {}
    chosen = [last.get(name, name) for name in config.preferences.between] or everybody
    there = [one.name for one in contestants]
    absent = next((name for name in chosen if name not in there), None)
    if absent is not None:
        raise ConfigError(f"preferences.between names {absent!r}; there are {', '.join(there)}")
    return list(dict.fromkeys(chosen))


def require_readable(
    config: BenchmarkConfig, reward_model: RewardModelConfig, tokenizers: Mapping[str, PreTrainedTokenizerBase]
) -> None:
    """The reward model reads sampled tokens where there are some, so these must be its own."""
    own = load_tokenizer(reward_model.path, trust_remote_code=reward_model.trust_remote_code)
    for tokenizer in tokenizers.values():
        require_same_tokenizer(tokenizer, own, reward_model.path, "reward_model.path")
