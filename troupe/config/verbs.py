"""Command lines with a verb (`jobs/runs.py list`, `jobs/launch.py up`), each a function of the parsed arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

Arguments = Mapping[str, Mapping[str, Any]]
"""Name of an argument -> the options of `argparse.ArgumentParser.add_argument`."""


def verb_parser(description: str, verbs: Mapping[str, tuple[Callable[..., Any], Arguments]]) -> argparse.ArgumentParser:
    """Return a parser that sets `call` to the function of the verb, whose docstring is the verb's help."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    subparsers = parser.add_subparsers(required=True, metavar="|".join(verbs))
    for name, (call, arguments) in verbs.items():
        verb = subparsers.add_parser(name, help=call.__doc__, description=call.__doc__)
        verb.set_defaults(call=call)
        for argument, options in arguments.items():
            verb.add_argument(argument, **options)
    return parser
