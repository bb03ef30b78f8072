"""From a reward's config to a function that can be called: found, imported, and its arguments checked.

Everything that can be wrong with a reward's name and arguments is a ConfigError here, before anything starts.
Calling it is `rewards.calls`'s.
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

from core.errors import ConfigError
from core.recipes import RewardConfig
from rewards.answers import math_answer
from rewards.form import length, regex_format
from rewards.overlap import rouge

BUILT_IN: dict[str, Callable[..., Any]] = {
    "math_answer": math_answer,
    "regex_format": regex_format,
    "length": length,
    "rouge": rouge,
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
    function = _import(config.fn) if ":" in config.fn else _built_in(config.fn)
    if not callable(function):
        raise ConfigError(f"rewards: {config.fn} is a {type(function).__name__}, not a function")
    signature = _signature(config.fn, function)
    per_group = _judges_groups(config.fn, signature)
    arguments = _checked_arguments(config, function, signature)
    return Reward(
        config=config,
        call=partial(function, **arguments),
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


def _checked_arguments(
    config: RewardConfig, function: Callable[..., Any], signature: inspect.Signature
) -> dict[str, Any]:
    """The configured arguments, each as its annotation says: a pattern is compiled, a choice is one of the choices."""
    accepted = list(signature.parameters.values())[2:]
    known = f"its arguments are: {', '.join(parameter.name for parameter in accepted) or 'none'}"
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in accepted):
        for name in config.args.keys() - {parameter.name for parameter in accepted}:
            raise ConfigError(f"rewards: {config.fn}: unknown argument {name!r}; {known}")
    try:
        signature.bind(None, None, **config.args)
    except TypeError as error:
        raise ConfigError(f"rewards: {config.fn}: {error}; {known}") from None
    annotations = _annotations(function)
    return {
        name: _checked(config.fn, name, value, annotations[name]) if name in annotations else value
        for name, value in config.args.items()
    }


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    target = function if inspect.isroutine(function) else type(function).__call__
    try:
        return typing.get_type_hints(target, include_extras=True)
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
