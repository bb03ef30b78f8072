"""What every job sets that lets models answer held-out prompts: the data, the sampling, the metrics, the engines."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from core.data_recipes import DataConfig, WordProblemsConfig
from core.environment_recipes import EnvironmentConfig
from core.model_recipes import Precision
from core.role_recipes import GeneratorConfig, PlacementConfig, RewardModelConfig
from core.rollout_recipes import RewardConfig, SamplingConfig
from core.run_recipes import WandbConfig

ROUGE = RewardConfig(fn="rewards.overlap_table:rouge_table", name="rouge")
"""What `rouge: true` adds to the metrics."""
COMPARE_WITH_GOLD = (ROUGE.fn, "rouge", "math_answer")
"""Functions that mean nothing without a reference answer."""


class AnsweringConfig(SamplingConfig):
    """Held-out prompts, who answers them on which devices, and what is measured of the answers."""

    data: DataConfig = WordProblemsConfig()
    """The data set; its held-out side is answered."""
    num_samples: int | None = Field(default=None, ge=1)
    """Held-out samples; all when unset."""
    max_prompt_tokens: int = Field(default=256, ge=1)
    """A prompt that is longer for any of the models is left out for all of them, and counted."""
    max_response_tokens: int = Field(default=40, ge=1)
    """Longest answer in tokens; with an environment the longest game, both sides' tokens counted."""
    seed: int = 0
    """Seed of sampling, and of the intervals."""
    metrics: list[RewardConfig] = [RewardConfig(fn="math_answer", name="accuracy")]
    """Reward functions whose means are reported. With `against`, a sample's field `against` holds the other answer."""
    rouge: bool = False
    """Report ROUGE-1, -2 and -L as F1, recall and precision, and the mean of the three F1 (unstemmed, as `evaluate` computes them)."""
    reward_model: RewardModelConfig | None = None
    """A reward model that scores the answers once all of them are there; `path` may be a run directory."""
    environment: EnvironmentConfig | None = None
    """Who answers the models in games of several turns: one game per held-out sample; its reward and parts are reported as `environment` and `environment/<part>`."""
    precision: Precision = "auto"
    """Precision of the engines."""
    generator: GeneratorConfig = GeneratorConfig()
    """The engines; those of one model are gone before the next one's start."""
    placement: PlacementConfig = PlacementConfig()
    """Where everything runs."""
    trust_remote_code: bool = False
    """Whether code that comes with the models may run."""
    timeout_s: float = Field(default=7200, gt=0)
    """Seconds that a model may take to answer everything."""
    max_concurrency: int = Field(default=32, ge=1)
    """Answers that metrics judge at once, for those that wait on a network."""
    trackers: list[Literal["wandb", "tensorboard"]] = []
    """Trackers that get the means beside metrics.json."""
    wandb: WandbConfig = WandbConfig()
    """What W&B is told, when it is one of them."""
    output: str | None = None
    """Directory of everything written; when unset `<run>/evaluation` for one run, `evaluation` otherwise."""

    @property
    def longest_sequence(self) -> tuple[int, str]:
        """Tokens of the longest prompt and answer, and the fields that say so."""
        return self.max_prompt_tokens + self.max_response_tokens, "max_prompt_tokens + max_response_tokens"

    def check_scoring(self) -> None:
        """Raise ValueError for a reward model that is set as in training, and for more ranks than one process has, and for games that cannot fit."""
        if self.environment is not None:
            self.environment.check_limit(self.max_response_tokens, "max_response_tokens")
        if self.reward_model is not None and (self.reward_model.relative_to_reference or self.reward_model.weight != 1):
            raise ValueError(
                "reward_model.weight and relative_to_reference belong to training; an evaluation reports scores as they are, "
                "and the difference to the references beside them, so leave both out"
            )
        ranks = 1 if self.reward_model is None else self.reward_model.num_ranks
        if self.placement.backend == "inline" and (ranks > 1 or self.generator.num_engines > 1):
            raise ValueError(
                "placement.backend inline runs one engine and one reward-model rank; use backend: ray for more"
            )


def require_file_name(name: str, *taken: str) -> None:
    """Raise ValueError unless `name` can name a model: it becomes a file's."""
    if not name or "/" in name or name.startswith(".") or name in taken:
        raise ValueError(
            f"{name!r} cannot name a model: a name becomes a file's, so it is not empty, has no '/', does not start with '.', "
            + (f"and {taken[0]!r} means the data's own answers" if taken else "and stands once")
        )
