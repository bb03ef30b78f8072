"""Tools that the model may call while it answers, and agents that ask it over an address of their own."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from troupe.config.loader import Section

LABEL = "agent"
"""Its name in the logs: `reward/agent`, `eval/<set>/agent`."""


class ToolConfig(Section):
    """One tool: a typed function whose docstring is what the model reads about it."""

    fn: str
    """A tool of this project (calculator, python), or `package.module:function`, plain or async; see
    docs/environments.md.
    """
    args: dict[str, Any] = {}
    """Arguments that the config sets; the model neither sees nor gives them."""
    timeout_s: float = Field(default=10.0, gt=0)
    """Seconds that a call may take; then the model reads that it took too long."""
    max_concurrency: int = Field(default=16, ge=1)
    """Calls at the same time."""
    processes: int = Field(default=2, ge=0)
    """Processes that run a plain function of your own, and are killed when time is up; 0: threads of the driver."""
    max_result_chars: int = Field(default=2000, ge=1)
    """Longest result that the model reads, in characters; the rest is cut off."""


class AgentConfig(Section):
    """A program that asks the model over an OpenAI-compatible address; a run of it is an episode, for each branch."""

    fn: str | None = None
    """A function of (client, sample), plain or async, which returns the score; `package.module:function`."""
    command: list[str] = []
    """In place of fn a program and its arguments, started for each episode with OPENAI_BASE_URL, OPENAI_API_KEY,
    TROUPE_SAMPLE (JSON) and TROUPE_SCORE_URL in its environment.
    """
    args: dict[str, Any] = {}
    """Keyword arguments of fn that the config sets."""
    model: str = "policy"
    """The name that requests call the model by."""
    max_requests: int = Field(default=64, ge=1)
    """Requests of an episode; further ones are refused."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Seconds that an episode may take."""
    max_concurrency: int = Field(default=256, ge=1)
    """Episodes that run at the same time; in rounds all of a step do."""
    order: Literal["rounds", "free"] = "free"
    """free: every episode goes on by itself; rounds: engines answer all open episodes of a step together, and wait for
    the slowest, so that with rollout.max_lag 0 a run repeats to the bit.
    """
    on_error: Literal["outcome", "stop"] = "outcome"
    """When an episode raises, takes too long or ends without a score: outcome: it ends with error_reward and counts;
    stop: the run stops.
    """
    error_reward: float = Field(default=0.0, allow_inf_nan=False)
    """Reward of such an episode."""
    max_error_fraction: float = Field(default=0.1, ge=0, le=1)
    """Share of a step's (or an evaluation's) episodes that may end that way; beyond it the run stops."""

    @property
    def title(self) -> str:
        """Its name for people."""
        return self.fn or " ".join(self.command)

    def check_alone(self, *others: object) -> None:
        """Raise ValueError where the config's environment or tools, `others`, are set beside it."""
        if any(others):
            raise ValueError("an agent has tools and an environment of its own; leave out environment and tools")

    @model_validator(mode="after")
    def _is_one_program(self) -> AgentConfig:
        if (self.fn is None) == (not self.command):
            raise ValueError("name the agent by fn or by command, and not by both")
        if self.command and self.args:
            raise ValueError("args belong to fn; give a command its arguments in command")
        return self
