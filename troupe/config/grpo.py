"""GRPO, RLOO and PPO: the sections of a run that samples and learns, and the rules between them.

The defaults are the quickstart. Derived numbers are properties. A worker is handed its section, never the whole config.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from troupe.config.agents import LABEL as AGENT, AgentConfig, ToolConfig
from troupe.config.algorithm import PERPLEXITY_PARTS, AlgorithmConfig, KLConfig, PerplexityRewardConfig
from troupe.config.data import DataConfig, Sources
from troupe.config.loader import Section
from troupe.config.made_data import WordProblemsConfig
from troupe.config.models import (
    ConsistencyConfig,
    GeneratorConfig,
    ModelConfig,
    PlacementConfig,
    PolicyConfig,
    Precision,
    ReferenceConfig,
    RewardModelConfig,
    ScratchModelConfig,
    WithoutDropout,
)
from troupe.config.rollout import (
    LABEL as ENVIRONMENT,
    EnvironmentConfig,
    EvaluationConfig,
    RewardConfig,
    RewarderConfig,
    RolloutConfig,
    dialogue_of,
)
from troupe.config.run import CheckpointConfig, RunConfig


class GRPOConfig(Section):
    """Group-relative policy optimisation (DeepSeekMath, 2402.03300) and its relatives."""

    examples = (
        "configs/word_problems_dapo.yaml steps=20 run.name=mine",
        "model.path=Qwen/Qwen2.5-0.5B-Instruct data.path=my.jsonl --dry-run",
    )
    page = "docs/algorithms.md"

    has_critic: ClassVar[bool] = False

    steps: int = Field(default=30, ge=1)
    """Training steps: rollouts, each followed by its optimizer steps."""
    seed: int = 0
    """Seed of everything: data order, sampling, initialisation."""
    run: RunConfig = RunConfig()
    """Where the run lives."""
    model: ModelConfig = ScratchModelConfig()
    """The model that is trained."""
    data: DataConfig = WordProblemsConfig()
    """Prompts and held-out set."""
    heldout: Sources = {}
    """Further held-out sets by name, each measured as eval/<name>/<metric>: the held-out side of a data set, or all
    rows of a file that has none.
    """
    rewards: list[RewardConfig] = [RewardConfig(fn="math_answer")]
    """What a good answer is: a weighted sum."""
    reward_model: RewardModelConfig | None = None
    """A reward model, whose score is added to the sum."""
    perplexity_reward: PerplexityRewardConfig | None = None
    """How well a frozen model foresees the gold answer from the policy's, added to the sum."""
    environment: EnvironmentConfig | None = None
    """Who answers the model in games of several turns; its reward is added to the sum."""
    tools: list[ToolConfig] = []
    """Functions that the model may call while it answers; the results are read, not trained."""
    agent: AgentConfig | None = None
    """A program that asks the model over an address of its own; its score is added to the sum."""
    rollout: RolloutConfig = RolloutConfig()
    """What is sampled."""
    algorithm: AlgorithmConfig = AlgorithmConfig()
    """From scores to a loss."""
    policy: Annotated[PolicyConfig, WithoutDropout] = PolicyConfig()
    """The trained model's engine."""
    reference: ReferenceConfig = ReferenceConfig()
    """The frozen model of the KL term."""
    generator: GeneratorConfig = GeneratorConfig()
    """The engines that sample."""
    rewarder: RewarderConfig = RewarderConfig()
    """Where rewards run."""
    placement: PlacementConfig = PlacementConfig()
    """Which role gets which devices."""
    consistency: ConsistencyConfig = ConsistencyConfig()
    """The gate between trainer and generator."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Held-out evaluation."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When and how much is kept."""

    @model_validator(mode="after")
    def _numbers_fit(self) -> GRPOConfig:
        rollout, algorithm = self.rollout, self.algorithm
        if not self.rewards and not self.model_parts:
            raise ValueError(
                "rewards must name at least one function, such as {fn: math_answer}, or set reward_model, "
                "perplexity_reward or environment"
            )
        self.evaluation.check(self.model_parts, self.heldout_names)
        self._check_sources()
        if self.agent is not None:
            self.agent.check_alone(self.environment, self.tools)
        if self.environment is not None:
            self.environment.check_limit(rollout.max_response_tokens)
            if self.evaluation.max_response_tokens is not None:
                self.environment.check_limit(self.evaluation.max_response_tokens, "evaluation.max_response_tokens")
        if algorithm.advantage in ("grpo", "dr_grpo", "rloo") and rollout.group_size < 2:
            raise ValueError(
                f"algorithm.advantage {algorithm.advantage!r} compares answers of one prompt and needs "
                f"rollout.group_size >= 2 (got {rollout.group_size}); set group_size, or advantage: reinforce"
            )
        if algorithm.advantage == "gae" and not self.has_critic:
            raise ValueError("algorithm.advantage gae needs a critic; use jobs/train_ppo.py")
        if algorithm.kl.adaptive is not None and not algorithm.kl.coef:
            raise ValueError("algorithm.kl.adaptive needs a first coefficient; set algorithm.kl.coef above 0")
        if algorithm.minibatches > rollout.prompts_per_step:
            raise ValueError(
                f"algorithm.minibatches ({algorithm.minibatches}) must be at most rollout.prompts_per_step "
                f"({rollout.prompts_per_step}): a group is never split"
            )
        if self.policy.num_ranks * algorithm.minibatches > rollout.prompts_per_step:
            raise ValueError(
                f"policy.num_ranks x algorithm.minibatches ({self.policy.num_ranks} x {algorithm.minibatches}) must be "
                f"at most rollout.prompts_per_step ({rollout.prompts_per_step}), so that every rank has a group in "
                "every minibatch"
            )
        if algorithm.overlong.penalty_tokens >= rollout.max_response_tokens:
            raise ValueError(
                f"algorithm.overlong.penalty_tokens ({algorithm.overlong.penalty_tokens}) must be below "
                f"rollout.max_response_tokens ({rollout.max_response_tokens})"
            )
        if self.reference.source == "adapter_off" and algorithm.kl.coef > 0 and self.policy.lora is None:
            raise ValueError("reference.source adapter_off needs policy.lora; set it, or reference.source: own_weights")
        if self.reference.source == "shared_trunk" and (not self.policy.frozen_layers or self.policy.lora is not None):
            raise ValueError(
                "reference.source shared_trunk needs policy.frozen_layers above 0 and no policy.lora; set the "
                "former, or "
                + ("reference.source: own_weights" if self.policy.lora is None else "reference.source: adapter_off")
            )
        if isinstance(self.model, ScratchModelConfig):
            longest, fields = self.longest_sequence
            if longest > self.model.max_length:
                raise ValueError(f"{fields} ({longest}) must be at most model.max_length ({self.model.max_length})")
        if self.placement.backend == "inline" and (self.policy.num_ranks > 1 or self.generator.num_engines > 1):
            raise ValueError("placement.backend inline runs one policy rank and one engine; use backend: ray for more")
        return self

    def _check_sources(self) -> None:
        """Raise ValueError for a reward of a source that is not there, and for a source that no reward judges."""
        for reward in (*self.rewards, *self.evaluation.metrics):
            unknown = set(reward.sources or ()) - set(self.heldout_names)
            if unknown:
                known = ", ".join(self.heldout_names) or "none, since the data is no mixture"
                raise ValueError(f"{reward.label}: sources names {min(unknown)!r}; sources here: {known}")
        for source in self.source_names:
            if not self.model_parts and not any(
                each.sources is None or source in each.sources for each in self.rewards
            ):
                raise ValueError(f"no reward judges the answers of the source {source}; name it in a reward's sources")

    @property
    def heldout_names(self) -> list[str]:
        """Held-out sets beside the run's own: the sources of a mixture, and `heldout`."""
        return [*self.source_names, *self.heldout]

    @property
    def source_names(self) -> Sequence[str]:
        """The sources that the data are drawn from, where they have names."""
        return getattr(self.data, "source_names", ())

    @property
    def model_precision(self) -> Precision:
        return self.policy.precision

    @property
    def longest_sequence(self) -> tuple[int, str]:
        """Tokens of the longest prompt and answer, and the fields that say so."""
        longest = max(self.rollout.max_response_tokens, self.evaluation.max_response_tokens or 0)
        return self.rollout.max_prompt_tokens + longest, "rollout.max_prompt_tokens + max_response_tokens"

    @property
    def kl_needs_reference(self) -> bool:
        return self.algorithm.kl.coef > 0

    @property
    def model_parts(self) -> list[str]:
        """What is measured of every answer besides the functions, in training and held out, by its metric's name."""
        measured = ["reward_model"] if self.reward_model is not None else []
        measured += ["perplexity", *PERPLEXITY_PARTS] if self.perplexity_reward is not None else []
        measured += [ENVIRONMENT] if self.environment is not None and self.environment.plays else []
        return measured + ([AGENT] if self.agent is not None else [])

    @property
    def dialogue(self) -> EnvironmentConfig | None:
        """How answers of several turns go on; None where every answer is one turn."""
        return dialogue_of(self.environment, self.tools, self.rollout.max_response_tokens)

    @property
    def scorer_is_reference(self) -> bool:
        """Whether the perplexity reward can ask the reference: the same weights, in the same precision."""
        scorer = self.perplexity_reward
        return (
            scorer is not None
            and scorer.path is None
            and scorer.precision == self.policy.precision
            and self.kl_needs_reference
            and self.reference.source == "own_weights"
        )

    def arithmetic(self) -> str:
        """Return the derived numbers in one sentence, printed at the start."""
        rollout, algorithm = self.rollout, self.algorithm
        return (
            f"{rollout.prompts_per_step} prompts x {rollout.group_size} branches = {rollout.branches_per_step} "
            f"sequences a step, {algorithm.minibatches * algorithm.epochs} optimizer steps of about "
            f"{rollout.prompts_per_step // algorithm.minibatches} groups over {self.policy.num_ranks} "
            f"rank{'s' if self.policy.num_ranks > 1 else ''}, {self.steps} steps"
        )


class RLOOConfig(GRPOConfig):
    """REINFORCE with a leave-one-out baseline (RLOO, 2402.14740): the GRPO job with other settings."""

    examples = ("configs/cs224r/small/rloo.yaml run.name=mine", "rollout.group_size=4 --dry-run")

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

    examples = ("configs/tldr/small/ppo.yaml run.name=mine", "gae.lam=0.9 --dry-run")

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
                f"algorithm.advantage {self.algorithm.advantage!r} needs no critic; use jobs/train_grpo.py, or leave "
                f"it at gae"
            )
        if kl.coef > 0 and kl.placement == "reward" and kl.kind != "k1":
            raise ValueError(f"algorithm.kl.estimator {kl.kind!r} in PPO's token rewards is biased; use k1 (auto)")
        if self.critic.start == "reward_model" and self.reward_model is None:
            raise ValueError("critic.start reward_model needs reward_model.path; set it, or critic.start: policy")
        return self
