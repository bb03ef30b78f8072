"""How a recipe becomes a typed, checked config: YAML files, then `section.field=value` overrides, later wins.

Sections are frozen pydantic models that refuse unknown keys; the sentence under each field, with its unit, is
its documentation and what `--help` prints. The fields of the jobs live in `core.recipes` and its sections.
"""

from __future__ import annotations

import difflib
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, PydanticUndefined

from core.errors import ConfigError
from core.secrets import public_values, refuse_secrets


class Section(BaseModel):
    """A part of a recipe: frozen, closed, its fields documented by the string under each of them."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)


C = TypeVar("C", bound=Section)


def load_config(config_cls: type[C], arguments: Sequence[str]) -> C:
    """Build a config from command-line `arguments`: YAML paths and `a.b=value` overrides, later ones win.

    Values are read as YAML, so `steps=2`, `run.name=x` and `rewards=[{fn: length}]` do what they say.
    Raises ConfigError with one sentence per mistake.
    """
    merged = OmegaConf.create()
    for argument in arguments:
        if "=" in argument and not argument.endswith((".yaml", ".yml")):
            layer = _override(argument)
        else:
            layer = _recipe_file(argument)
        merged = OmegaConf.merge(merged, layer)
    try:
        values = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the recipe cannot be resolved: {str(error).splitlines()[0]}") from None
    refuse_secrets(values)
    try:
        return config_cls.model_validate(_onto_defaults(config_cls, values))
    except ValidationError as error:
        raise ConfigError("\n".join(_sentence(config_cls, detail) for detail in error.errors())) from None


def _onto_defaults(config_cls: type[Section], values: Any) -> Any:
    """`data.num_train=100` alone means the default data set, and `algorithm.epochs=2` the recipe's other settings: a
    section that is given in part is laid onto what the recipe's default sets, unless it names another `type`."""
    if not isinstance(values, dict):
        return values
    merged = dict(values)
    for name, info in config_cls.model_fields.items():
        given, default = merged.get(name), info.default
        if not isinstance(given, dict) or not isinstance(default, Section):
            continue
        tags = _tags(type(default))
        if tags and given.get("type", tags[0]) != tags[0]:
            continue
        tag = {"type": tags[0]} if tags else {}
        merged[name] = _onto_defaults(
            type(default), _laid_onto({**tag, **default.model_dump(exclude_unset=True)}, given)
        )
    return merged


def _laid_onto(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """`top` over `base`, section by section; a section of another `type` replaces the base's."""
    merged = dict(base)
    for name, value in top.items():
        below = base.get(name)
        nested = (
            isinstance(value, dict)
            and isinstance(below, dict)
            and value.get("type", below.get("type")) == below.get("type")
        )
        merged[name] = _laid_onto(below, value) if nested else value  # type: ignore[arg-type]
    return merged


def dump_config(config: Section) -> str:
    """The resolved config as YAML; it is itself a valid recipe. Secrets of the environment are named, not told."""
    return OmegaConf.to_yaml(OmegaConf.create(public_values(config)))


def _override(argument: str) -> Any:
    try:
        return OmegaConf.from_dotlist([argument])
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"{argument!r} is not an override of the form section.field=value: {error}") from None
    except Exception as error:  # yaml's scanner errors have no common base with omegaconf's
        raise ConfigError(f"the value of {argument!r} is not valid YAML: {str(error).splitlines()[0]}") from None


def _recipe_file(argument: str) -> Any:
    path = Path(argument)
    if not path.is_file():
        raise ConfigError(
            f"there is no recipe file {argument!r}; give a YAML file, or an override of the form section.field=value"
        )
    try:
        return OmegaConf.load(path)
    except Exception as error:
        raise ConfigError(f"{argument} is not valid YAML: {str(error).splitlines()[0]}") from None


def _sentence(config_cls: type[Section], detail: ErrorDetails) -> str:
    """One mistake in one sentence: the path, the value, the rule, and for unknown keys the nearest known one."""
    path = [str(part) for part in detail["loc"]]
    where = ".".join(path) or "the recipe"
    if detail["type"] == "extra_forbidden":
        known = _fields_at(config_cls, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"{where}: unknown key; {hint}"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "missing":
        return f"{where}: this field is required"
    shown = repr(detail["input"])
    return f"{where}: {message}" if len(shown) > 60 else f"{where}: {message} (got {shown})"


def _fields_at(config_cls: type[Section], path: Sequence[str]) -> list[str]:
    """The field names that are known at `path`; parts that are list indices or union tags are looked through."""
    candidates: list[type[Section]] = [config_cls]
    for part in path:
        nested = [
            section
            for cls in candidates
            if part in cls.model_fields
            for section in sections_of(cls.model_fields[part].annotation)
        ]
        candidates = nested or candidates
    tagged = [cls for cls in candidates if path and path[-1] in _tags(cls)]
    return sorted({name for cls in tagged or candidates for name in cls.model_fields})


def _tags(cls: type[Section]) -> tuple[Any, ...]:
    return get_args(cls.model_fields["type"].annotation) if "type" in cls.model_fields else ()


def sections_of(annotation: Any) -> list[type[Section]]:
    """The Section classes inside an annotation such as `list[A]`, `A | None` or a discriminated union."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, Annotated, list, tuple, dict):
        return [section for argument in get_args(annotation) for section in sections_of(argument)]
    return []


def help_text(config_cls: type[Section], program: str) -> str:
    """What `--help` prints: usage, then every field with type, default and sentence."""
    lines = [f"usage: python {program} [recipe.yaml ...] [section.field=value ...] [--dry-run]", ""]
    if config_cls.__doc__:
        lines += [config_cls.__doc__.strip(), ""]
    _help_fields(config_cls, "", lines)
    return "\n".join(lines)


def _help_fields(cls: type[Section], prefix: str, lines: list[str]) -> None:
    for name, info in cls.model_fields.items():
        sections = sections_of(info.annotation)
        described = " ".join((info.description or "").split())
        if not sections:
            default = (
                "required"
                if info.default is PydanticUndefined and info.default_factory is None
                else info.get_default(call_default_factory=True)
            )
            lines.append(f"  {prefix}{name}: {_type_name(info.annotation)} = {default}\n      {described}")
            continue
        lines.append(f"  {prefix}{name}: {described}")
        for section in sections:
            tag = _tags(section)
            if tag:
                lines.append(f"    -- type: {tag[0]} -- {(section.__doc__ or '').strip().splitlines()[0]}")
            _help_fields(section, f"{prefix}{name}.", lines)


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is typing.Literal:
        return " | ".join(map(str, get_args(annotation)))
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def parse_command_line(config_cls: type[C], program: str) -> tuple[C, bool]:
    """(config, dry_run) from `sys.argv`; prints help and exits on `--help`."""
    arguments = sys.argv[1:]
    if "--help" in arguments or "-h" in arguments:
        print(help_text(config_cls, program))
        raise SystemExit(0)
    dry_run = "--dry-run" in arguments
    return load_config(config_cls, [argument for argument in arguments if argument != "--dry-run"]), dry_run
