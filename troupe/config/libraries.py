"""Settings of tasks and games that other libraries hold: reasoning_gym, TextArena.

Each library is an extra of the install (`pip install 'troupe[games]'`); nothing of them is imported to read a config.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from troupe.config.data_section import DataSection
from troupe.config.loader import Section


class CurriculumConfig(Section):
    """From easy to hard by pass rate: each task goes up or down a level on its own."""

    raise_at: float = Field(default=0.75, gt=0, le=1)
    """Pass rate from which on the task's next level is drawn."""
    lower_at: float = Field(default=0.1, ge=0, lt=1)
    """Pass rate below which the level before is drawn again."""
    window: int = Field(default=16, ge=1)
    """Groups of the level over which the pass rate is taken; a level begins with none."""
    part: str = "reasoning_gym"
    """The reward that decides, by its name in the logs."""
    passes_at: float = Field(default=0.99, allow_inf_nan=False)
    """Value of that reward from which on an answer passes."""

    @model_validator(mode="after")
    def _rates_leave_room(self) -> CurriculumConfig:
        if self.lower_at >= self.raise_at:
            raise ValueError(f"lower_at ({self.lower_at}) must be below raise_at ({self.raise_at})")
        return self


class ReasoningGymConfig(DataSection):
    """Tasks of reasoning_gym, made from a seed, with scorers of their own (the reward `reasoning_gym`)."""

    type: Literal["reasoning_gym"] = "reasoning_gym"
    tasks: dict[str, dict[str, Any]] = Field(min_length=1)
    """Tasks by their names in the library, each with its own arguments: `{chain_sum: {max_terms: 3}, dice: {}}`.
    """
    weights: dict[str, Annotated[float, Field(gt=0)]] = {}
    """How often each task is drawn, in proportion; unset: alike."""
    curriculum: CurriculumConfig | None = None
    """Whether tasks climb through the library's levels, which then set the arguments they are about; unset: no."""
    num_train: int = Field(default=1000, ge=1)
    """Training samples of each task, with a curriculum of each level."""
    num_heldout: int = Field(default=64, ge=1)
    """Held-out samples of each task, with a curriculum spread over its levels."""
    system_prompt: str | None = (
        "Think step by step, then give the final answer alone between <answer> and </answer>, in the form that the "
        "question asks for."
    )
    """System message; null leaves it out."""
    seed: int = Field(default=0, ge=0)
    """Seed of the tasks; independent of the run's seed."""

    @property
    def source_names(self) -> list[str]:
        """The tasks, each of which is a source and a held-out set."""
        return list(self.tasks)

    @model_validator(mode="after")
    def _every_task_has_a_weight(self) -> ReasoningGymConfig:
        if self.weights and self.weights.keys() != self.tasks.keys():
            raise ValueError(
                f"weights names {', '.join(self.weights)}, and the tasks are {', '.join(self.tasks)}; give each a "
                "weight, or none"
            )
        return self


class TextArenaConfig(DataSection):
    """Openings of a game of TextArena, for the environment of that type and name."""

    type: Literal["textarena"] = "textarena"
    name: str
    """The game, such as `GuessTheNumber-v0`."""
    args: dict[str, Any] = {}
    """Its settings, the same as environment.args."""
    num_train: int = Field(default=1000, ge=1)
    """Training games; some may begin alike, and differ in what is hidden."""
    num_heldout: int = Field(default=48, ge=1)
    """Held-out games."""
    seed: int = Field(default=0, ge=0)
    """Seed of the games; independent of the run's seed."""
