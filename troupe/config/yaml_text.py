"""How the text of a recipe or an override is read: YAML, in which only decimal digits are numbers.

YAML 1.1 also reads `12:30:45` (base 60), `0x1F` and `010` (base 8) as numbers; here they are texts, which a number's
field refuses.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import yaml
from omegaconf._yaml import (
    get_yaml_loader,  # private, but its only loader that bounds aliases and refuses a key given twice
)

INT, FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
DIGITS = "[0-9](?:_?[0-9])*"
NUMBERS = {
    INT: re.compile("[-+]?(?:0|[1-9](?:_?[0-9])*)$"),
    FLOAT: re.compile(
        rf"[-+]?(?:{DIGITS}\.(?:{DIGITS})?(?:[eE][-+]?[0-9]+)?|{DIGITS}[eE][-+]?[0-9]+|\.{DIGITS}(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))$"
        r"|\.(?:nan|NaN|NAN)$"
    ),
}


def read_yaml(text: str) -> Any:
    """Return the value of a YAML text, None of an empty one. ValueError with one line for what is not YAML."""
    try:
        return yaml.load(text, Loader=_loader())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except Exception as error:  # yaml's errors, and those of int() and unhashable keys, have no common base
        problem = getattr(error, "problem", None) or str(error)
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise ValueError(f"{str(problem).splitlines()[0]}{place}") from None


@functools.cache
def _loader() -> Any:
    loader = get_yaml_loader()
    loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in NUMBERS]
        for first, resolvers in loader.yaml_implicit_resolvers.items()
    }
    for tag, pattern in NUMBERS.items():
        loader.add_implicit_resolver(tag, pattern, list("-+0123456789."))
    return loader
