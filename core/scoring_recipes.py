"""What a recipe says of scores that are served: by a reward model, or by reward functions.

How many copies there are, and under which address, is the endpoint's.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from core.config import Section
from core.model_recipes import Precision
from core.rollout_recipes import RewardConfig


class BatchingConfig(Section):
    """Conversations that are asked about at the same time are read together."""

    row_tokens: int = Field(default=4096, ge=16)
    """Tokens that are read in one forward pass; a longer conversation has its own."""
    max_batch: int = Field(default=64, ge=1)
    """Most requests that are read together."""
    wait_s: float = Field(default=0.005, ge=0)
    """Seconds that a request waits for others to come."""


class ServedRewardModelConfig(Section):
    """A reward model behind `/v1/score`, and behind `/v1/chat/completions` as a judge that replies `reward:<number>`."""

    type: Literal["reward_model"] = "reward_model"
    path: str
    """Run directory, checkpoint directory or hub name of a model with a trained scalar head."""
    name: str = "reward_model"
    """What requests call it."""
    precision: Precision = "auto"
    """Precision of its weights."""
    max_length: int | None = Field(default=None, ge=2)
    """Most tokens of prompt and answer; null: what the model's positions reach."""
    single_turn: Literal["template", "text"] = "template"
    """How a chat with one user turn is read: through the chat template, or as the plain text that some data sets train on."""
    batching: BatchingConfig = BatchingConfig()
    """What is read together."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""


class ServedRewardsConfig(Section):
    """Reward functions behind `/v1/score`: the weighted sum that a recipe trains with."""

    type: Literal["rewards"] = "rewards"
    rewards: list[RewardConfig] = Field(min_length=1)
    """The functions and their weights."""
    name: str = "rewards"
    """What requests call it."""
    tokenizer: str | None = None
    """Run directory, checkpoint directory or hub name whose tokenizer counts tokens; null: for functions that count none."""


ScorerConfig = Annotated[ServedRewardModelConfig | ServedRewardsConfig, Field(discriminator="type")]
"""Who scores."""
