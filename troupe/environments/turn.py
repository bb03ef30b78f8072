"""What an environment is: something that a game is begun with, and that answers the model turn by turn."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from troupe.records import Sample


class SampledText(str):
    """The model's answer as text without special tokens; `raw_text` has them."""

    raw_text: str

    def __new__(cls, text: str, raw_text: str) -> SampledText:
        """Make a text that has the raw one beside it."""
        made = super().__new__(cls, text)
        made.raw_text = raw_text
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """The outcome of an answer of the model.

    Example: `Turn(observation="A x . .")` goes on; `Turn(done=True, reward=1.0, parts={"win": 1.0})` is the end.
    """

    observation: str | None = None
    """What the model reads next, as a user's turn; None only when the game is over."""
    done: bool = False
    reward: float = 0.0
    """Added to the game's reward."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Measurements for the logs; of a name that several turns give, the last value counts."""

    def __post_init__(self) -> None:
        if not self.done and not isinstance(self.observation, str):
            raise ValueError(f"a turn that does not end the game needs an observation, got {self.observation!r:.40}")
        for name, value in {"reward": self.reward, **self.parts}.items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{name} of a turn must be a finite number, got {value!r:.40}")


class Environment(Protocol):
    """One game. Every game has an object of its own, built with the recipe's `args`; both methods may be `async`.

    A class may also have `parts`, a sequence with the names of all parts it gives, so that a recipe's `best_metric` can
    be checked; and `close()`, which is called when its game is over, however it ended.
    """

    def reset(self, sample: Sample, seed: int) -> str | Awaitable[str | None] | None:
        """Begin. What is to be said before the model's first turn besides the prompt, None for nothing.

        All branches of a sample share the prompt; `seed` is another one for each branch and step, and the same when a
        run is repeated.
        """

    def step(self, answer: str) -> Turn | Awaitable[Turn]:
        """Return what comes of the model's answer, a `SampledText`: its text without special tokens."""


class OneAnswer:
    """The environment of answers that nothing but tools reply to: the first without a call is the end."""

    parts = ()

    def reset(self, sample: Sample, seed: int) -> None:
        """Say nothing."""

    def step(self, answer: str) -> Turn:
        """End."""
        return Turn(done=True)
