"""From a reward's config to something that can be called: found, imported, and its arguments checked.

A class is built here, with the configured arguments; its instance is the reward and may keep what it likes. Everything
that can be wrong with a reward's name and arguments is a ConfigError, before anything starts (`troupe.resolve`);
calling is `troupe.rewards.calls`'s.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from troupe.config.rollout import RewardConfig
from troupe.errors import ConfigError
from troupe.records import Sample
from troupe.resolve import checked_arguments, class_arguments, find, instance, signature_of, type_hints

BUILT_IN = {
    "math_answer": "troupe.rewards.answers:MathAnswer",
    "regex_format": "troupe.rewards.form:regex_format",
    "length": "troupe.rewards.form:Length",
    "rouge": "troupe.rewards.overlap:rouge",
    "remote_reward": "troupe.rewards.remote:RemoteReward",
    "remote_comparison": "troupe.rewards.remote:RemoteComparison",
    "judge_qa": "troupe.rewards.judge_qa:JudgeQA",
    "python_tests": "troupe.rewards.python_tests:PythonTests",
    "reasoning_gym": "troupe.rewards.reasoning_gym:ReasoningGym",
}
IN_THE_LOOP = "troupe.rewards."
"""Where built-in rewards are: plain text work of ours, which is called where it is asked for."""
HANGS = ("regex_format", "reasoning_gym")
"""Built-in rewards that a config's own argument, or an answer, can make hang."""
LIMIT_S = 30.0
"""Seconds for one call of a plain function whose config names no limit."""
SECTION = "rewards"
JUDGED = 2
"""Parameters of a reward that are what it judges."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """One part of the weighted sum: its config and the function, which takes (sample, branch or branches)."""

    config: RewardConfig
    call: Callable[..., Any]
    per_group: bool
    """Whether it judges all branches of a prompt in one call."""
    has_state: bool = False
    """Whether it is an instance, which keeps what it likes from call to call."""
    place: Literal["loop", "apart", "thread"] = "loop"
    """Where it is called: awaited or called at once, in a process of its own kind, or in a thread."""
    check: Callable[[Sample], None] | None = None
    """Raises ValueError for a sample on which no answer could be judged, where the reward has such a method."""

    @property
    def label(self) -> str:
        return self.config.label

    @property
    def limit_s(self) -> float | None:
        """Seconds for one call; None: what is awaited may have limits of its own."""
        if self.config.timeout_s != "auto":
            return self.config.timeout_s
        return None if self.place == "loop" else LIMIT_S


def resolve(config: RewardConfig) -> Reward:
    """Find the reward of a config. Example: `resolve(RewardConfig(fn="length", args={"limit": 40}))`."""
    found = find(config.fn, BUILT_IN, section=SECTION, noun="reward", form="package.module:function")
    if not callable(found):
        raise ConfigError(f"rewards: {config.fn} is a {type(found).__name__}, not a function or a class")
    function = _instance(config, found) if inspect.isclass(found) else found
    signature = signature_of(config.fn, function, section=SECTION)
    per_group = _judges_groups(config.fn, signature)
    if not inspect.isclass(found):
        arguments = checked_arguments(
            config.fn, config.args, signature, type_hints(function), section=SECTION, skip=JUDGED
        )
        call: Callable[..., Any] = partial(function, **arguments)
    else:
        call = function
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
    ours = BUILT_IN.get(config.fn, config.fn).startswith(IN_THE_LOOP) and config.fn not in HANGS
    return Reward(
        config=config,
        call=call,
        per_group=per_group,
        has_state=inspect.isclass(found),
        place="loop" if is_async or ours else "apart",
        check=getattr(function, "check", None),
    )


def _judges_groups(name: str, signature: inspect.Signature) -> bool:
    parameters = list(signature.parameters)
    second = parameters[1] if len(parameters) > 1 else None
    if second not in ("branch", "branches"):
        found = "is missing" if second is None else f"is called {second!r}"
        raise ConfigError(
            f"rewards: the second parameter of {name} {found}; call it 'branch' to judge one answer at a time, "
            "or 'branches' to judge all answers of a prompt together"
        )
    return second == "branches"


def _instance(config: RewardConfig, cls: type) -> Callable[..., Any]:
    """Return the reward that the class makes of the configured arguments."""
    made = instance(config.fn, cls, class_arguments(config.fn, cls, config.args, section=SECTION), section=SECTION)
    if not callable(made):
        raise ConfigError(f"rewards: {config.fn} is a class without __call__; write __call__(self, sample, branch)")
    return made
