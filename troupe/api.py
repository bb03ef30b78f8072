"""Troupe from Python: configs, training and evaluation as functions that return what they found."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from troupe import evaluation
from troupe.config.evaluation import BenchmarkConfig, EvaluateConfig
from troupe.config.grpo import GRPOConfig, PPOConfig, RLOOConfig
from troupe.config.loader import Section, load_config as load
from troupe.config.rollout import RewardConfig
from troupe.config.supervised import DPOConfig, RewardModelTrainingConfig, SFTConfig
from troupe.errors import ConfigError
from troupe.resolve import hand_over

if TYPE_CHECKING:
    from troupe.evaluation import EvaluationResult
    from troupe.training import TrainingResult

METHODS: dict[str, tuple[type[Section], str]] = {
    "grpo": (GRPOConfig, "train_grpo:train"),
    "rloo": (RLOOConfig, "train_grpo:train"),
    "ppo": (PPOConfig, "train_grpo:train"),
    "sft": (SFTConfig, "train_sft:train_sft"),
    "dpo": (DPOConfig, "train_dpo:train_dpo"),
    "reward_model": (RewardModelTrainingConfig, "train_reward_model:train_reward_model"),
}
"""Method -> its config, and the job that trains it."""
CONFIGS: dict[str, type[Section]] = {
    **{method: config for method, (config, _) in METHODS.items()},
    "evaluate": EvaluateConfig,
    "benchmark": BenchmarkConfig,
}
"""What `load_config` makes."""


def load_config(kind: str, *arguments: str) -> Any:
    """Build a config from YAML files and `a.b=value` overrides, later ones win.

    Example: `load_config("grpo", "configs/quickstart.yaml", "steps=100")`, `load_config("evaluate",
    "model=runs/mine")`. Raises ConfigError with a sentence per mistake.
    """
    if kind not in CONFIGS:
        raise ConfigError(f"there is no config {kind!r}; known are {', '.join(CONFIGS)}")
    return load(CONFIGS[kind], arguments)


def evaluate(config: Any) -> EvaluationResult:
    """Answer held-out prompts and measure the answers, as `config` of `load_config("evaluate", ...)` describes."""
    if not isinstance(config, EvaluateConfig | BenchmarkConfig):
        raise ConfigError(f'{type(config).__name__} is no evaluation\'s config; load_config("evaluate", ...) makes one')
    return evaluation.evaluate(config)


def train(config: Any, *, rewards: Sequence[Callable[..., Any] | RewardConfig] | None = None) -> TrainingResult:
    """Train what `config` describes, in this process and those it starts; return what the run left.

    `rewards` take the place of the config's: functions of (sample, branch) that return a number, classes that are
    called like one, or `RewardConfig`. A resumed run is given the same functions again. Raises TroupeError with the
    sentence that the command line prints.
    """
    job = next((job for config_cls, job in METHODS.values() if type(config) is config_cls), None)
    if job is None:
        raise ConfigError(f"{type(config).__name__} is no training config; load_config makes one")
    if rewards is not None:
        if not isinstance(config, GRPOConfig):
            raise ConfigError(f"{type(config).__name__} has no rewards; grpo, rloo and ppo have")
        config = config.model_copy(update={"rewards": [_reward(each) for each in rewards]})
    module, _, function = job.partition(":")
    result: TrainingResult = getattr(importlib.import_module(f"troupe.jobs.{module}"), function)(config)
    return result


def _reward(given: Callable[..., Any] | RewardConfig) -> RewardConfig:
    return given if isinstance(given, RewardConfig) else RewardConfig(fn=hand_over(given))
