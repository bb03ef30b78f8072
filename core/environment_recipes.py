"""The `environment` section: who answers the model when an answer is a turn and not the end."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from core.config import Section

LABEL = "environment"
"""Its name in the logs: `reward/environment`, `eval/<set>/environment/win`."""


class EnvironmentConfig(Section):
    """An environment that the model plays with, turn by turn; each branch of a prompt is one game."""

    fn: str
    """An environment of this project (tic_tac_toe), or `package.module:Class`; see docs/environments.md."""
    args: dict[str, Any] = {}
    """Keyword arguments of its constructor."""
    max_turns: int = Field(default=16, ge=1)
    """Answers of the model in a game; a game that is not over by then is cut off and counts as truncated."""
    max_turn_tokens: int = Field(default=128, ge=1)
    """Longest answer of one turn in tokens, its end-of-turn token included. rollout.max_response_tokens bounds the whole
    game, the environment's tokens included."""
    unfinished_reward: float = Field(default=0.0, allow_inf_nan=False)
    """Added to the reward of a game that was cut off."""
    on_error: Literal["outcome", "stop"] = "outcome"
    """When the environment raises: outcome: the game ends with error_reward and is counted; stop: the run stops."""
    error_reward: float = Field(default=0.0, allow_inf_nan=False)
    """Reward of a game whose environment raised."""
    max_error_fraction: float = Field(default=0.1, ge=0, le=1)
    """Share of a step's (or an evaluation's) games that may end that way; beyond it the run stops."""
    timeout_s: float | None = Field(default=None, gt=0)
    """Seconds that one call of an async environment may take before it counts as raised; unset: no limit."""

    def check_limit(self, max_response_tokens: int, name: str = "rollout.max_response_tokens") -> None:
        """Raise ValueError unless a turn fits into a game."""
        if self.max_turn_tokens > max_response_tokens:
            raise ValueError(
                f"environment.max_turn_tokens ({self.max_turn_tokens}) must be at most {name} ({max_response_tokens}), "
                "which bounds the whole game: all answers and what the environment says in between"
            )
