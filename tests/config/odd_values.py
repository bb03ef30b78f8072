"""Random settings from a seed: values that a field may have, and odd ones; what the tests of all recipes draw from."""

from __future__ import annotations

import random
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from troupe.config.fields import sections_of

TEXTS = [
    "plain", "yes", "null", "~x", "1e5", "0x1F", "12:30:45", "010", "1_000", "2026-01-01", "#x", "a: b", "- a", "{a}", "[a",
    "it's", '"', "\\", "a\nb", "a\tb", " x ", "ü → 日本", "${a}", "\\${a}", "\\\\${a.b}", "${", "$", "a}${oc.env:X}", "!x", "&a", "*a",
    "%", "@", "`", "|", ">", "?", "=", "<<", ".inf", "True", "", "x" * 200,
]  # fmt: skip
NUMBERS = [0, 1, 2, 3, 7, 16, 64, 100, 512, 4096, -1, 0.0, 0.5, 1e-6, 0.1, 1.0, 2.5, 1e5, 3e-8, 123456.789]
ODD = [
    "", "null", "true", "yes", "1", "-1", "0", "1.0", "1e400", "1e26", ".inf", ".nan", "12:30:45", "0x1F", "010", "x", "'$(id)'", '"\\0"',
    '"\\ud800"', "[]", "[1]", "[x]", "[[1]]", "{}", "{a: 1}", "{1: 2}", "{a: {b: [1]}}", "[{fn: x}]", "[{fn: [1]}]", "[null]", "{type: " "x}",
    "{type: [1]}", "{type: null}", "{type: {a: 1}}", "{path: x}", "{path: [x]}", "{fn: x, weight: .inf}", "[", "{", "a: " "b: " "c", "&a " "[*a]", "*a",
    "!!binary aGk=", "!!set {a}", "!!python/object:os.system x", "2026-01-01", "${x}", "${run.name}", "${oc.env:NO_SUCH}", "${a.b", "${oc.decode:'['}",
    "9" * 400, "9" * 5000, "[" * 3000, "|", "? x", "\x00", "\ud800", "@", "%", "- a", "{a: ${run}}", "${run}", "${data.path}", "''", "' '",
]  # fmt: skip


def odd_argument(rng: random.Random, fields: list[str]) -> str:
    """A setting as nobody should write it: any value for a field, a part of one, a list's member, or a name that is
    not there.
    """
    name = rng.choice(fields)
    shape = rng.randrange(8)
    if shape == 0:
        name = f"{name}.{rng.choice(['x', 'type', '0', 'path', 'a.b', ''])}"
    elif shape == 1:
        name = rng.choice(
            ["", ".", "x", "a..b", f"{name}x", f"{name}[0]", "--help", f"{name[:-1]}", name.upper(), "\ud800", "type"]
        )
    return f"{name}={rng.choice(ODD)}"


def value_for(info: FieldInfo, rng: random.Random) -> Any:
    """A value of the field's type; its bounds, and rules between fields, may refuse it."""
    return _of(info.annotation, rng)


def _of(annotation: Any, rng: random.Random) -> Any:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _of(arguments[0], rng)
    if origin in (Union, types.UnionType):
        return _of(rng.choice(arguments), rng)
    if origin is Literal:
        return rng.choice(arguments)
    if origin is list:
        return [_of(arguments[0], rng) for _ in range(rng.randrange(3))]
    if origin is tuple:
        return [_of(argument, rng) for argument in arguments]
    if origin is dict:
        return {rng.choice(["a", "b", "yes", "1", "a b"]): _of(arguments[1], rng) for _ in range(rng.randrange(3))}
    if sections_of(annotation):
        fields = annotation.model_fields
        return {
            name: _of(info.annotation, rng)
            for name, info in fields.items()
            if info.is_required() or name == "type" or rng.random() < 0.1
        }
    if annotation is Any:
        return rng.choice([*TEXTS, *NUMBERS, True, None, [1, "x"], {"a": {"b": None}}])
    return {
        int: lambda: int(rng.choice(NUMBERS)),
        float: lambda: rng.choice(NUMBERS),
        bool: lambda: rng.random() < 0.5,
        str: lambda: rng.choice(TEXTS),
    }.get(annotation, lambda: None)()
