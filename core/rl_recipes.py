"""The recipes of RLOO and PPO: GRPO's sections with other defaults, and what PPO adds."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from core.algorithm_recipes import AlgorithmConfig, KLConfig
from core.config import Section
from core.recipes import GRPOConfig
from core.role_recipes import PolicyConfig, WithoutDropout
from core.rollout_recipes import RolloutConfig
from core.run_recipes import RunConfig


class RLOOConfig(GRPOConfig):
    """REINFORCE with a leave-one-out baseline (RLOO, 2402.14740): the GRPO job with other settings."""

    examples = (
        "configs/cs224r/small/rloo.yaml run.name=mine",
        "rollout.group_size=4 --dry-run",
    )

    run: RunConfig = RunConfig(name="rloo")
    """Where the run lives."""
    rollout: RolloutConfig = RolloutConfig(group_size=4)
    """What is sampled; k is group_size."""
    algorithm: AlgorithmConfig = AlgorithmConfig(
        advantage="rloo",
        ratio="sequence",
        aggregation="sequence_mean",
        minibatches=1,
        kl=KLConfig(coef=0.05, placement="reward"),
    )
    """The whole answer is one action, the KL is in its reward, and a rollout is used once."""


class CriticConfig(PolicyConfig):
    """The critic: a model of its own with a scalar head, its optimizer and schedule."""

    start: str = "policy"
    """What it starts from: `policy` (the starting model), `reward_model`, or a directory or hub name."""
    value_clip: float | None = Field(default=0.2, gt=0)
    """How far a value may move from the old one before its error stops counting; unset: no bound."""


class GAEConfig(Section):
    """Generalised advantage estimation (1506.02438)."""

    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount of a token's reward per token."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """lambda: 0 trusts the critic, 1 the rewards."""
    whiten: bool = True
    """Whether advantages are brought to mean 0 and variance 1 over the whole step."""


class PPOConfig(GRPOConfig):
    """Proximal policy optimisation (1707.06347) with a critic and token-level rewards, as in RLHF (2009.01325)."""

    examples = (
        "configs/tldr/small/ppo.yaml run.name=mine",
        "gae.lam=0.9 --dry-run",
    )

    has_critic: ClassVar[bool] = True

    run: RunConfig = RunConfig(name="ppo")
    """Where the run lives."""
    rollout: RolloutConfig = RolloutConfig(group_size=1)
    """What is sampled; one answer per prompt is enough, since the critic is the baseline."""
    algorithm: AlgorithmConfig = AlgorithmConfig(
        advantage="gae", clip_high=0.2, epochs=4, minibatches=2, kl=KLConfig(coef=0.05, placement="reward")
    )
    """From scores to a loss; the critic learns from the same minibatches."""
    gae: GAEConfig = GAEConfig()
    """From token rewards and values to advantages."""
    critic: Annotated[CriticConfig, WithoutDropout] = CriticConfig()
    """The critic."""

    @model_validator(mode="after")
    def _a_critic_is_the_baseline(self) -> PPOConfig:
        kl = self.algorithm.kl
        if self.algorithm.advantage != "gae":
            raise ValueError(
                f"algorithm.advantage {self.algorithm.advantage!r} needs no critic; use jobs/train_grpo.py, or leave it at gae"
            )
        if kl.coef > 0 and kl.placement == "reward" and kl.kind != "k1":
            raise ValueError(f"algorithm.kl.estimator {kl.kind!r} in PPO's token rewards is biased; use k1 (auto)")
        if self.critic.start == "reward_model" and self.reward_model is None:
            raise ValueError("critic.start reward_model needs reward_model.path; set it, or critic.start: policy")
        return self
