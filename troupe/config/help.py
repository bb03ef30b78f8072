"""What `--help` prints of a recipe: an overview of its sections, one section, or all of it, as wide as the terminal."""

from __future__ import annotations

import difflib
import json
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pydantic.fields import FieldInfo

from troupe.config.fields import Cls, dotted_fields, kind_of, sections_of, tag_of
from troupe.config.mistakes import nearest
from troupe.errors import ConfigError
from troupe.project import call_of

if TYPE_CHECKING:
    from troupe.config.loader import Section

EVERYTHING = "all"
REQUIRED = "required"
MANY_TYPES = 3
"""A section of more types than this is shown as a list of them; `--help section.type` shows one."""


def help_text(cls: type[Section], program: str, topic: str = "") -> str:
    """Return the overview, or of a topic one section or field by its dotted name, or `all`. Raises ConfigError."""
    width = max(60, min(120, shutil.get_terminal_size((100, 24)).columns))
    if topic == "":
        lines = list(_overview(cls, program, width))
    elif topic == EVERYTHING:
        lines = list(_section(cls, "", None, width))
    else:
        lines = list(_topic(cls, program, topic, width))
    return "\n".join(lines)


def _overview(cls: type[Section], program: str, width: int) -> Iterator[str]:
    run = call_of(program)
    yield f"usage: {run} [recipe.yaml ...] [section.field=value ...] [--dry-run]"
    yield f"       {run} --help [section | section.field | {EVERYTHING}]"
    yield ""
    yield from textwrap.wrap(_words(cls.__doc__), width)
    sections = {name: info for name, info in cls.model_fields.items() if sections_of(info.annotation)}
    settings = {name: info for name, info in cls.model_fields.items() if name not in sections}
    column = max(map(len, cls.model_fields)) + 4
    for title, fields in (("settings", settings), ("sections", sections)):
        if fields:
            yield f"\n{title}:"
        for name, info in fields.items():
            default = "" if name in sections else f" [{_shown(_default(info))}]"
            sentence = _words(info.description).split(". ")[0].rstrip(".")
            room = width - column - len(default)
            yield f"  {name}".ljust(column) + textwrap.shorten(sentence, max(room, 20), placeholder=" ...") + default
    yield "\nexamples:"
    yield from (f"  {run} {example}".rstrip() for example in cls.examples)
    yield f"  {run} --help {next(iter(sections), next(iter(settings), EVERYTHING))}"
    yield ""
    yield from textwrap.wrap(
        "YAML files and settings are taken in order, later ones win; --dry-run shows what comes of them and starts "
        f"nothing. Every field, its unit and its default: --help {EVERYTHING}. More: {cls.page}",
        width,
    )


def _topic(cls: Cls, program: str, topic: str, width: int) -> Iterator[str]:
    known = dict(dotted_fields(cls))
    section, _, tag = topic.rpartition(".")
    typed = [one for one in sections_of(known[section].annotation) if tag_of(one) == tag] if section in known else []
    if typed:
        yield from _section(typed[0], f"{section}.", _default_at(cls, section), width)
    elif topic in known:
        yield from _field(topic, known[topic], _default_at(cls, topic), width, many_types=MANY_TYPES)
    else:
        near = nearest(topic, [*known, EVERYTHING]) or f"the nearest is {_least_far(topic, cls.model_fields)!r}"
        raise ConfigError(
            f"--help {topic}: there is no such section or field; {near}. `{call_of(program)} --help` lists them"
        )


def _section(cls: Cls, prefix: str, default: Any, width: int) -> Iterator[str]:
    """Yield a section's fields with the defaults that this job has (`default`, a section), or else the class."""
    if tag_of(cls) is not None:
        yield from textwrap.wrap(f"-- type: {tag_of(cls)} -- {_words(cls.__doc__)}", width, subsequent_indent="   ")
    for name, info in cls.model_fields.items():
        if name != "type" or tag_of(cls) is None:
            value = getattr(default, name) if isinstance(default, cls) else _default(info)
            yield from _field(f"{prefix}{name}", info, value, width)


def _field(name: str, info: FieldInfo, default: Any, width: int, *, many_types: int | None = None) -> Iterator[str]:
    """Yield a field with kind, default and sentence, and below it those of the section that it holds."""
    sections = sections_of(info.annotation)
    head = (
        name if sections else f"{name} = {_shown(default)}  ({', '.join([kind_of(info.annotation), *_bounds(info)])})"
    )
    yield from textwrap.wrap(head, width, subsequent_indent="        ", break_on_hyphens=False)
    yield from textwrap.wrap(_words(info.description), width, initial_indent="    ", subsequent_indent="    ")
    if many_types is not None and len(sections) > many_types:
        for section in sections:
            line = f"    type: {tag_of(section)} -- {_words(section.__doc__)}"
            yield from textwrap.wrap(line, width, subsequent_indent="        ")
        yield f"    `--help {name}.{tag_of(sections[0])}` shows the fields of one."
        return
    for section in sections:
        yield from _section(section, f"{name}{_between(info)}", default, width)


def _between(info: FieldInfo) -> str:
    """Return what stands between a field and the fields of the sections in it: a list's members, or names."""
    kind = kind_of(info.annotation)
    return "[]." if kind.startswith("a list") else ".<name>." if kind.startswith("a section of names") else "."


def _bounds(info: FieldInfo) -> Iterator[str]:
    """Yield the field's own bounds, such as `at least 1`."""
    for words, name in (
        ("at least", "ge"),
        ("above", "gt"),
        ("at most", "le"),
        ("below", "lt"),
        ("a multiple of", "multiple_of"),
    ):
        yield from (f"{words} {getattr(rule, name)}" for rule in info.metadata if getattr(rule, name, None) is not None)


def _default_at(cls: Cls, path: str, default: Any = None) -> Any:
    """Return the default of a field by its dotted name, where `default` is this job's of the section that holds it."""
    name, _, inner = path.partition(".")
    info = cls.model_fields[name]
    value = getattr(default, name) if isinstance(default, cls) else _default(info)
    if not inner:
        return value
    holding = next(one for one in sections_of(info.annotation) if inner in dict(dotted_fields(one)))
    return _default_at(holding, inner, value)


def _default(info: FieldInfo) -> Any:
    return REQUIRED if info.is_required() else info.get_default(call_default_factory=True)


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return repr(value) if (isinstance(value, str) and value != value.strip()) or value == "" else str(value)


def _least_far(name: str, known: Iterable[str]) -> str:
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def _words(text: str | None) -> str:
    return " ".join((text or "").split())
