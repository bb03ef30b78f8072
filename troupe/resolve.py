"""From a name in a recipe to something that can be called: found, imported, and its arguments checked.

What rewards and environments have in common: a built-in name, or `package.module:name` of the user's own, with `args`.
Everything that can be wrong with either is a ConfigError that begins with the recipe's section, before anything starts.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from troupe.errors import ConfigError, TroupeError
from troupe.moved_names import describe_move, imported_name, is_moved, new_name, second_copies

_HANDED_OVER: dict[str, Callable[..., Any]] = {}
"""What a Python program handed over instead of an address, by its address."""


def hand_over(function: Callable[..., Any]) -> str:
    """Remember a function or class of a Python program; return the address under which a config names it."""
    name = getattr(function, "__qualname__", type(function).__qualname__).replace("<locals>.", "").strip("<>")
    address = f"{function.__module__}:{name}"
    _HANDED_OVER[address] = function
    return address


def handed_over() -> Mapping[str, Callable[..., Any]]:
    """Return what was handed over, for a process that cannot import it."""
    return dict(_HANDED_OVER)


def take_over(functions: Mapping[str, Callable[..., Any]]) -> None:
    """Know what another process was handed."""
    _HANDED_OVER.update(functions)


def find(name: str, built_in: Mapping[str, Callable[..., Any] | str], *, section: str, noun: str, form: str) -> Any:
    """Return what `name` names: one of `built_in`, which may be addresses too, or what is at `package.module:name`.

    Example: `find("length", BUILT_IN, section="rewards", noun="reward", form="package.module:function")`.
    """
    if name in _HANDED_OVER:
        return _HANDED_OVER[name]
    if ":" in name:
        return _import(name, section)
    if name not in built_in:
        near = difflib.get_close_matches(name, built_in, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"{section}: unknown {noun} {name!r}; {hint}built in are {', '.join(built_in)}, your own is written {form}"
        )
    found = built_in[name]
    return _import(found, section) if isinstance(found, str) else found


def _import(address: str, section: str) -> Any:
    module_name, _, name = address.partition(":")
    if os.getcwd() not in sys.path:  # the user's own module lies there; last, so that it hides nothing
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module does while it is imported
        if is_moved(missing := getattr(error, "name", None)):
            if (renamed := new_name(module_name)) is not None:  # in a config that an earlier version wrote
                return _import(f"{renamed}:{name}", section)
            wanted = imported_name(error) or module_name
            if new_name(wanted) is not None or missing == "core":  # else a package of the user's own lacks something
                raise ConfigError(f"{section}: {describe_move(address, wanted)}") from error
        raise ConfigError(
            f"{section}: cannot import {module_name!r} of {address!r} ({type(error).__name__}: {error}); "
            "it must be importable from the directory the job is started in"
        ) from error
    for copy in second_copies():
        if copy == module_name:
            return _import(f"{new_name(copy)}:{name}", section)
        raise ConfigError(f"{section}: {describe_move(address, copy)}")
    try:
        return getattr(module, name)
    except AttributeError:
        raise ConfigError(f"{section}: module {module_name!r} has no function {name!r}") from None


def signature_of(name: str, function: Callable[..., Any], *, section: str) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        raise ConfigError(
            f"{section}: the parameters of {name} cannot be inspected; wrap it in a Python function"
        ) from None


def class_arguments(name: str, cls: type, args: Mapping[str, Any], *, section: str) -> dict[str, Any]:
    """Return the arguments of the class's constructor, each as its annotation states."""
    annotations = type_hints(cls.__init__)  # type: ignore[misc]
    return checked_arguments(name, args, signature_of(name, cls, section=section), annotations, section=section)


def instance(name: str, cls: type, arguments: Mapping[str, Any], *, section: str) -> Any:
    """Return what the class makes of its arguments; what its constructor refuses is a mistake in them."""
    try:
        return cls(**arguments)
    except TroupeError:
        raise
    except ValidationError as error:
        raise ConfigError("\n".join(f"{section}: {name}: {_sentence(detail)}" for detail in error.errors())) from None
    except ValueError as error:
        raise ConfigError(f"{section}: {name}: {error}") from None
    except Exception as error:  # whatever the user's class does while it is built
        raise ConfigError(f"{section}: {name} cannot be built ({type(error).__name__}: {error})") from error


def _sentence(detail: ErrorDetails) -> str:
    """Return one mistake in a section that a constructor builds; the value of an unknown argument might be a secret."""
    name = ".".join(map(str, detail["loc"]))
    if detail["type"] == "extra_forbidden":
        return f"unknown argument {name!r}"
    if detail["type"] == "missing":
        return f"missing a required argument: {name!r}"
    return f"argument {name}: {detail['msg']} (got {detail['input']!r})"


def checked_arguments(
    name: str,
    args: Mapping[str, Any],
    signature: inspect.Signature,
    annotations: Mapping[str, Any],
    *,
    section: str,
    skip: int = 0,
) -> dict[str, Any]:
    """Return the configured arguments, each as its annotation states: a pattern is compiled, a choice is one of the
    choices.

    The first `skip` parameters are not for the recipe to set: a reward's are what it judges.
    """
    accepted = list(signature.parameters.values())[skip:]
    known = f"its arguments are: {', '.join(parameter.name for parameter in accepted) or 'none'}"
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in accepted):
        for unknown in args.keys() - {parameter.name for parameter in accepted}:
            raise ConfigError(f"{section}: {name}: unknown argument {unknown!r}; {known}")
    try:
        signature.bind(*[None] * skip, **args)
    except TypeError as error:
        raise ConfigError(f"{section}: {name}: {error}; {known}") from None
    return {
        key: _checked(name, key, value, annotations[key], section) if key in annotations else value
        for key, value in args.items()
    }


def type_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a function, or of an object's `__call__`."""
    try:
        return typing.get_type_hints(
            function if inspect.isroutine(function) else type(function).__call__, include_extras=True
        )
    except Exception:  # annotations that only a type checker can resolve are no mistake of the user
        return {}


def _checked(function: str, name: str, value: Any, annotation: Any, section: str) -> Any:
    try:
        return TypeAdapter(annotation).validate_python(value)
    except PydanticSchemaGenerationError:
        return value
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ConfigError(f"{section}: {function}: argument {name}: {reason} (got {value!r})") from None
