"""What the fields of a recipe are: their dotted names, the sections inside them, their kind in plain words.

`troupe.config.help` prints it and `troupe.config.mistakes` says it of a field that got something else. A section is any
pydantic model here, so that `troupe.config.loader` can use both.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

Cls = type[BaseModel]
LONGEST_SHOWN = 60
"""Characters of a value in a sentence."""
WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
    Any: "any value",
}
MANY = {
    "a whole number": "whole numbers",
    "a number": "numbers",
    "text": "texts",
    "any value": "any values",
    "a section": "sections",
}


def sections_of(annotation: Any) -> list[Cls]:
    """Return the sections inside an annotation such as `list[A]`, `A | None` or a discriminated union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, Annotated, list, tuple, dict):
        return [section for argument in get_args(annotation) for section in sections_of(argument)]
    return []


def tag_of(cls: Cls) -> str | None:
    """Return the value of `type` that chooses this section among others; where it has several, None."""
    values = get_args(cls.model_fields["type"].annotation) if "type" in cls.model_fields else ()
    return values[0] if len(values) == 1 else None


def dotted_fields(cls: Cls, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield (dotted name, field) of every field, those of nested sections after the field that holds them."""
    for name, info in cls.model_fields.items():
        yield f"{prefix}{name}", info
        for section in sections_of(info.annotation):
            yield from dotted_fields(section, f"{prefix}{name}.")


def type_at(annotation: Any, part: Any) -> Any:
    """Return the type of what `part` (field, index, name, a section's `type`) names inside a type, or None."""
    if get_origin(annotation) in (Annotated, Union, types.UnionType):
        tagged = [section for section in sections_of(annotation) if tag_of(section) == part]
        if tagged:
            return tagged[0]
        found = [inner for member in get_args(annotation) if (inner := type_at(member, part)) is not None]
        return Union[tuple(found)] if found else None  # noqa: UP007 - made from a list
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation.model_fields[part].annotation if part in annotation.model_fields else None
    if get_origin(annotation) in (list, tuple) and isinstance(part, int):
        return get_args(annotation)[0]
    return get_args(annotation)[1] if get_origin(annotation) is dict and part != "[key]" else None


def kind_of(annotation: Any) -> str:
    """Return what a value of this type is, in words.

    >>> kind_of(list[int] | None), kind_of(Literal["a", "b"])
    ('a list of whole numbers or null', 'one of a, b')
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind_of(arguments[0])
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else str(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(kind_of, arguments)))
    if origin is list:
        of = kind_of(arguments[0])
        return f"a list of {MANY.get(of, f'({of})')}"
    if origin is tuple:
        return f"a list of {len(arguments)} {MANY[kind_of(arguments[0])]}"
    if origin is dict:
        return f"a section of names, each with {kind_of(arguments[1])}"
    return WORDS.get(annotation, "a section" if sections_of(annotation) else str(annotation))


def flat_values(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys; lists are compared whole."""
    if not isinstance(values, Mapping) or not values:
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flat_values(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any], *, besides: Iterable[str] = ()) -> list[str]:
    """Return the keys of flat values that differ, without those that are or lie under one of `besides`."""
    differing = (key for key in sorted({*before, *after}) if before.get(key) != after.get(key))
    return [key for key in differing if not is_under(key, besides)]


def is_under(key: str, prefixes: Iterable[str]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)
