"""Who answers the model when an answer is a turn: environments, which the recipe's `environment` section names.

An environment is a class with `reset` and `step` (`troupe.environments.turn`). The built-in ones are `BUILT_IN`, your
own is `package.module:Class` (docs/environments.md). How games are played many at a time is
`troupe.training.episodes`'s business.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from troupe.config.rollout import ANSWER, LABEL, EnvironmentConfig
from troupe.environments.turn import Environment, SampledText, Turn
from troupe.errors import ConfigError
from troupe.lazy import lazy_exports
from troupe.resolve import class_arguments, find, instance, signature_of

if TYPE_CHECKING:
    from troupe.environments.tools import build_tools as build_tools, with_tools as with_tools

__getattr__ = lazy_exports(__name__, __file__)
__all__ = ["Environment", "Games", "SampledText", "Turn", "build_environment"]

BUILT_IN = {
    ANSWER: "troupe.environments.turn:OneAnswer",
    "tic_tac_toe": "troupe.environments.tic_tac_toe:TicTacToe",
}
LIBRARIES = {"textarena": "troupe.environments.textarena:TextArena"}
"""By the environment's `type`; the class takes the `name`."""
METHODS = {"reset": ("sample", "seed"), "step": ("answer",)}


@dataclass(frozen=True, slots=True)
class Games:
    """Makes games: a class and its checked arguments."""

    name: str
    cls: type
    arguments: dict[str, Any]

    def new(self) -> Environment:
        """Another game; raises ConfigError when the constructor refuses."""
        return instance(self.name, self.cls, self.arguments, section=LABEL)

    @property
    def parts(self) -> Sequence[str] | None:
        """Names of the parts that a game gives; None where the class does not say."""
        return getattr(self.cls, "parts", None)

    def require_metric(self, metric: str) -> None:
        """Raise ConfigError when a held-out metric is to be a part that no game gives."""
        known = self.parts
        part = metric.removeprefix(f"{LABEL}/")
        if known is not None and part != metric and part not in (*known, "failed"):
            raise ConfigError(
                f"evaluation.best_metric {metric!r}: {self.name} gives no {part!r}; its parts are {', '.join(known)}"
            )


def build_environment(config: EnvironmentConfig) -> Games:
    """Return what makes the games of `config`; ConfigError for names, imports and arguments that are wrong.

    One game is built and dropped here, so that what the constructor refuses is found before anything starts.
    """
    name, args = config.fn, config.args
    if config.type != "class":
        name, args = LIBRARIES[config.type], {"name": config.name, **args}
    found = find(name, BUILT_IN, section=LABEL, noun="environment", form="package.module:Class")
    if not inspect.isclass(found):
        raise ConfigError(f"environment: {config.fn} is a {type(found).__name__}, not a class")
    for method, expected in METHODS.items():
        _require_method(config.fn, found, method, expected)
    if config.timeout_s is not None and not all(inspect.iscoroutinefunction(getattr(found, name)) for name in METHODS):
        raise ConfigError(
            f"environment: timeout_s ({config.timeout_s:g}) can only end calls that wait, and {config.fn} is not "
            "async; write `async def reset` and `async def step`, or leave timeout_s out"
        )
    games = Games(config.title, found, class_arguments(config.title, found, args, section=LABEL))
    games.new()
    return games


def _require_method(name: str, cls: type, method: str, expected: tuple[str, ...]) -> None:
    function = getattr(cls, method, None)
    wanted = f"{method}(self, {', '.join(expected)})"
    if not callable(function):
        raise ConfigError(f"environment: {name} has no {method}; write {wanted}")
    try:
        signature_of(name, function, section=LABEL).bind(None, *expected)
    except TypeError as error:
        raise ConfigError(f"environment: {name}.{method} must take what {wanted} takes: {error}") from None
