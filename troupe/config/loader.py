"""How a recipe becomes a typed, checked config: YAML files, then `section.field=value` overrides, later wins.

Sections are frozen pydantic models that refuse unknown keys; the sentence under each field, with its unit, is
its documentation and what `--help` prints. The fields of the jobs live in `troupe.config.grpo` and its sections.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from troupe.config.fields import LONGEST_SHOWN, sections_of, tag_of
from troupe.config.values import check_value
from troupe.config.yaml_text import read_yaml
from troupe.errors import ConfigError, first_line
from troupe.names import is_hub_name
from troupe.secrets import public_values, refuse_secrets


class Section(BaseModel):
    """A part of a recipe: frozen, closed, its fields documented by the string under each of them."""

    # Strict: no `yes`, `1.0` or "1" for a whole number.
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
    )
    examples: ClassVar[tuple[str, ...]] = ()
    """Command lines of a job that `--help` shows, without the program."""
    page: ClassVar[str] = "docs/"
    """Page of the documentation that goes on from there."""

    @field_validator("*")
    @classmethod
    def _is_possible(cls, value: Any, info: ValidationInfo) -> Any:
        check_value(str(info.field_name), value)
        return value


C = TypeVar("C", bound=Section)


def load_config(config_cls: type[C], arguments: Sequence[str]) -> C:
    """Build a config from command-line `arguments`: YAML paths and `a.b=value` overrides, later ones win.

    Values are read as YAML, so `steps=2`, `run.name=x` and `rewards=[{fn: length}]` do what they say.
    Raises ConfigError with one sentence per mistake.
    """
    try:
        values = OmegaConf.to_container(OmegaConf.create(read_layers(arguments)), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the recipe cannot be resolved: {first_line(error)}") from None
    refuse_secrets(values)
    try:
        return config_cls.model_validate(_onto_defaults(config_cls, values))
    except ValidationError as error:
        from troupe.config.mistakes import sentences

        raise ConfigError(sentences(config_cls, error)) from None


def read_layers(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the values of YAML files and overrides, each laid onto those before it; references are not resolved."""
    values: dict[str, Any] = {}
    for argument in arguments:
        is_override = "=" in argument and not argument.endswith((".yaml", ".yml"))
        values = laid_onto(values, _override(argument) if is_override else _recipe_file(argument))
    return values


def laid_onto(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """Return `top` over `base`: sections field by field; whatever else meets, `top`'s is taken, and checked later."""
    both = {name: laid_onto(base[name], value) for name, value in top.items() if _are_sections(base.get(name), value)}
    return {**base, **top, **both}


def _are_sections(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)


def _onto_defaults(config_cls: type[Section], values: Any) -> Any:
    """Return `data.num_train=100` alone means the default data set, and `algorithm.epochs=2` the recipe's other
    settings: a section that is given in part is laid onto what the recipe's default sets, unless it has another `type`.
    """
    if not isinstance(values, dict):
        return values
    merged = dict(values)
    for name, info in config_cls.model_fields.items():
        given, types = merged.get(name), [one for one in sections_of(info.annotation) if tag_of(one) is not None]
        if isinstance(given, list) and types:
            merged[name] = [with_type(types, None, item) for item in given]
        if isinstance(given, dict):
            given = with_type(types, info.default, given) if types else given
            merged[name] = _onto_section(info.default, given) if isinstance(info.default, Section) else given
    return merged


def with_type(types: Sequence[type[BaseModel]], default: Any, given: Any) -> Any:
    """Return `given` with the `type` that its fields mean, where it names none: the default's, if that has them all."""
    if not isinstance(given, dict) or "type" in given:
        return given
    fitting = [one for one in types if given.keys() <= one.model_fields.keys()]
    if type(default) in fitting or not fitting:
        return given
    # `data.path=openai/gsm8k` names what is one type's default; else the last one is the general one.
    known = [one for one in fitting if "path" in given and given["path"] == one.model_fields["path"].default]
    hub = [one for one in fitting if tag_of(one) == "hub" and _is_hub_data(given.get("path"))]
    chosen = (known or hub or fitting)[-1]
    lacks = any(info.is_required() and name not in given for name, info in chosen.model_fields.items())
    return given if lacks else {"type": tag_of(chosen), **given}


def _is_hub_data(path: Any) -> bool:
    """Return whether a path is a hub name or a directory rather than a file of rows."""
    if not isinstance(path, str) or path.removesuffix(".gz").endswith((".jsonl", ".json", ".csv", ".tsv", ".parquet")):
        return False
    return is_hub_name(path) or Path(path).is_dir()


def _onto_section(default: Section, given: dict[str, Any]) -> dict[str, Any]:
    """Return `given` over what `default` sets, section by section; a section of another `type` stays as it is."""
    tag = tag_of(type(default))
    if tag is not None and given.get("type", tag) != tag:
        return given
    merged = {name: getattr(default, name) for name in default.model_fields_set} | given
    if tag is not None:
        merged["type"] = tag
    for name, info in type(default).model_fields.items():
        below = getattr(default, name) if name in default.model_fields_set else info.default
        if isinstance(below, Section) and isinstance(given.get(name), dict):
            merged[name] = _onto_section(below, given[name])
    return merged


def dump_config(config: Section) -> str:
    """Return the resolved config as YAML, itself a valid recipe; secrets of the environment are only named."""
    return OmegaConf.to_yaml(OmegaConf.create(public_values(config, escaped=True)))


def _override(argument: str) -> dict[str, Any]:
    """Return `a.b=value` as {a: {b: value}}."""
    if any("\ud800" <= letter <= "\udfff" for letter in argument):
        raise ConfigError(f"{argument!r} is not text in UTF-8")
    key, _, text = argument.partition("=")
    names = key.split(".")
    if not all(name.strip() for name in names):
        raise ConfigError(f"{argument!r} is not an override of the form section.field=value")
    try:
        value = read_yaml(text)
    except ValueError as error:
        shown = text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
        raise ConfigError(f"{key}: {shown!r} is not valid YAML: {error}") from None
    for name in reversed(names):
        value = {name: value}
    return dict(value)


def _recipe_file(argument: str) -> dict[str, Any]:
    path = Path(argument)
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise ConfigError(
            f"there is no recipe file {argument!r}; give a YAML file, or an override of the form section.field=value"
        ) from None
    except OSError as error:
        raise ConfigError(f"{argument} cannot be read: {error.strerror}") from None
    except ValueError as error:  # UnicodeDecodeError is one
        raise ConfigError(f"{argument} is not valid YAML: {error}") from None
    if values is not None and not isinstance(values, dict):
        raise ConfigError(
            f"{argument} is not a recipe: it holds {type(values).__name__}, not settings as `name: value`"
        )
    return values or {}


DRY_RUN, RECIPE_ONLY = "--dry-run", "--recipe-only"


def wanted_help(arguments: Sequence[str]) -> str | None:
    """Return what the command line wants help about: "" for the overview, None where it asks for none.

    >>> wanted_help(["--help", "rollout"]), wanted_help(["recipe.yaml", "--help"]), wanted_help(["steps=3"])
    ('rollout', '', None)
    """
    for index, argument in enumerate(arguments):
        if argument in ("--help", "-h"):
            following = arguments[index + 1 : index + 2]
            return next((one for one in following if "=" not in one and not one.endswith((".yaml", ".yml"))), "")
        if argument.startswith("--help="):
            return argument.removeprefix("--help=")
    return None


def parse_command_line(config_cls: type[C], program: str) -> tuple[C, set[str]]:
    """Return (config, flags) from `sys.argv`; prints help and exits on `--help`.

    `--dry-run` tries what the job would read, and starts nothing; with `--recipe-only` it reads the recipe alone, for
    pipelines, whose later stages read what is not there yet.
    """
    arguments = sys.argv[1:]
    topic = wanted_help(arguments)
    if topic is not None:
        from troupe.config.help import help_text

        print(help_text(config_cls, program, topic))
        raise SystemExit(0)
    flags = {DRY_RUN, RECIPE_ONLY}.intersection(arguments)
    return load_config(config_cls, [argument for argument in arguments if argument not in flags]), flags
