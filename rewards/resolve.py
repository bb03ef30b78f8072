"""From a reward's config to something that can be called: found, imported, and its arguments checked.

A class is built here, with the configured arguments; its instance is the reward and may keep what it likes. Everything
that can be wrong with a reward's name and arguments is a ConfigError, before anything starts; calling is `rewards.calls`'s.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from core.errors import ConfigError, TroupeError
from core.recipes import RewardConfig
from rewards.answers import math_answer
from rewards.form import Length, regex_format
from rewards.judge_qa import JudgeQA
from rewards.overlap import rouge
from rewards.remote import RemoteComparison, RemoteReward

BUILT_IN: dict[str, Callable[..., Any]] = {
    "math_answer": math_answer,
    "regex_format": regex_format,
    "length": Length,
    "rouge": rouge,
    "remote_reward": RemoteReward,
    "remote_comparison": RemoteComparison,
    "judge_qa": JudgeQA,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """One part of the weighted sum: its config and the function, which takes (sample, branch or branches)."""

    config: RewardConfig
    call: Callable[..., Any]
    per_group: bool
    """Whether it judges all branches of a prompt in one call."""
    is_async: bool

    @property
    def label(self) -> str:
        return self.config.label


def resolve(config: RewardConfig) -> Reward:
    """Example: `resolve(RewardConfig(fn="length", args={"limit": 40}))`."""
    found = _import(config.fn) if ":" in config.fn else _built_in(config.fn)
    if not callable(found):
        raise ConfigError(f"rewards: {config.fn} is a {type(found).__name__}, not a function or a class")
    function = _instance(config, found) if inspect.isclass(found) else found
    signature = _signature(config.fn, function)
    per_group = _judges_groups(config.fn, signature)
    if not inspect.isclass(found):
        arguments = _checked_arguments(config, signature, _annotations(function), judged=2)
        call: Callable[..., Any] = partial(function, **arguments)
    else:
        call = function
    return Reward(
        config=config,
        call=call,
        per_group=per_group,
        is_async=inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__),
    )


def _built_in(name: str) -> Callable[..., Any]:
    if name not in BUILT_IN:
        near = difflib.get_close_matches(name, BUILT_IN, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"rewards: unknown reward {name!r}; {hint}built in are {', '.join(BUILT_IN)}, your own is written package.module:function"
        )
    return BUILT_IN[name]


def _import(address: str) -> Any:
    module_name, _, function_name = address.partition(":")
    if os.getcwd() not in sys.path:  # the user's own module lies there; last, so that it hides nothing
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module does while it is imported
        raise ConfigError(
            f"rewards: cannot import {module_name!r} of {address!r} ({type(error).__name__}: {error}); "
            "it must be importable from the directory the job is started in"
        ) from error
    try:
        return getattr(module, function_name)
    except AttributeError:
        raise ConfigError(f"rewards: module {module_name!r} has no function {function_name!r}") from None


def _signature(name: str, function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        raise ConfigError(
            f"rewards: the parameters of {name} cannot be inspected; wrap it in a Python function"
        ) from None


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
    """The reward that the class makes of the configured arguments; what its constructor refuses is a mistake in them."""
    annotations = _hints(cls.__init__)  # type: ignore[misc]
    arguments = _checked_arguments(config, _signature(config.fn, cls), annotations, judged=0)
    try:
        instance = cls(**arguments)
    except TroupeError:
        raise
    except ValidationError as error:
        raise ConfigError(
            "\n".join(f"rewards: {config.fn}: {_sentence(detail)}" for detail in error.errors())
        ) from None
    except ValueError as error:
        raise ConfigError(f"rewards: {config.fn}: {error}") from None
    except Exception as error:  # whatever the user's class does while it is built
        raise ConfigError(f"rewards: {config.fn} cannot be built ({type(error).__name__}: {error})") from error
    if not callable(instance):
        raise ConfigError(f"rewards: {config.fn} is a class without __call__; write __call__(self, sample, branch)")
    return instance


def _sentence(detail: ErrorDetails) -> str:
    """One mistake in a section that a constructor builds; the value of an unknown argument might be a secret."""
    name = ".".join(map(str, detail["loc"]))
    if detail["type"] == "extra_forbidden":
        return f"unknown argument {name!r}"
    if detail["type"] == "missing":
        return f"missing a required argument: {name!r}"
    return f"argument {name}: {detail['msg']} (got {detail['input']!r})"


def _checked_arguments(
    config: RewardConfig, signature: inspect.Signature, annotations: dict[str, Any], *, judged: int
) -> dict[str, Any]:
    """The configured arguments, each as its annotation says: a pattern is compiled, a choice is one of the choices.

    The first `judged` parameters are what is judged; they are not for the recipe to set.
    """
    accepted = list(signature.parameters.values())[judged:]
    known = f"its arguments are: {', '.join(parameter.name for parameter in accepted) or 'none'}"
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in accepted):
        for name in config.args.keys() - {parameter.name for parameter in accepted}:
            raise ConfigError(f"rewards: {config.fn}: unknown argument {name!r}; {known}")
    try:
        signature.bind(*[None] * judged, **config.args)
    except TypeError as error:
        raise ConfigError(f"rewards: {config.fn}: {error}; {known}") from None
    return {
        name: _checked(config.fn, name, value, annotations[name]) if name in annotations else value
        for name, value in config.args.items()
    }


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    return _hints(function if inspect.isroutine(function) else type(function).__call__)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:  # annotations that only a type checker can resolve are no mistake of the user
        return {}


def _checked(function: str, name: str, value: Any, annotation: Any) -> Any:
    try:
        return TypeAdapter(annotation).validate_python(value)
    except PydanticSchemaGenerationError:
        return value
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ConfigError(f"rewards: {function}: argument {name}: {reason} (got {value!r})") from None
