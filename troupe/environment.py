"""The file `.env`: what a job needs of the environment (tokens, keys, addresses), beside the code and never in a
recipe.

The syntax is python-dotenv's, which parses it: `NAME=value`, `export`, comments, quotes, escapes within double quotes.
Values are taken as they stand, nothing is expanded. What python-dotenv would skip in silence is an error here.
"""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

from troupe.errors import ConfigError

ENV_FILE = Path(".env")
"""In the directory where the job is started."""

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
ASSIGNMENT = re.compile(r"\s*(export\s+)?[A-Za-z_][A-Za-z0-9_]*\s*=\s*[^=\s]")
"""A line that begins another variable; the last line of a key in base64, which ends with `=`, is none."""
QUOTES = "put the whole value in single quotes, and write a quote within it as \\'"


def load_env_file(path: Path = ENV_FILE) -> list[str]:
    """Set what the file sets and the environment does not; the names that were set. No file, nothing to do."""
    if not path.is_file():
        return []
    missing = {name: value for name, value in read_env_file(path).items() if name not in os.environ}
    os.environ.update(missing)
    return list(missing)


def read_env_file(path: Path) -> dict[str, str]:
    """Return the variables of a `.env` file; of a name that stands twice the later value counts.

    Raises ConfigError with the line, the rule and the remedy, and never a value.
    """
    from dotenv.parser import parse_stream  # doctor imports this file where nothing is installed

    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; give a file of NAME=value lines") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    variables: dict[str, str] = {}
    for binding in parse_stream(io.StringIO(text, newline="")):
        written = binding.original.string.lstrip()
        skipped = binding.original.string[: -len(written) or None]
        where = f"{path} line {binding.original.line + len(skipped.splitlines())}"
        if binding.error:
            raise ConfigError(f"{where}: {_fault(written)}")
        if binding.key is None:  # a comment, or the blank end
            continue
        if binding.value is None:
            raise ConfigError(f"{where}: there is no `=`; write NAME=value, or # before a comment")
        if not NAME.fullmatch(binding.key):
            raise ConfigError(
                f"{where}: the name must be letters, digits and underscores, and not begin with a digit; rename it"
            )
        _check_value(binding.value, written, where)
        variables[binding.key] = binding.value
    return variables


def _fault(written: str) -> str:
    """Return what is wrong with a line that python-dotenv cannot parse."""
    value = written.partition("=")[2].lstrip()
    if value[:1] in ("'", '"'):
        return f"a quote is missing or something follows the closing one; {QUOTES}"
    return "this is not a variable; write NAME=value, or # before a comment"


def _check_value(value: str, written: str, where: str) -> None:
    """Refuse what can be read, but hardly was meant: the half of a pair of quotes, or one that closes lines later."""
    quoted = written.partition("=")[2].lstrip()[:1] in ("'", '"')
    if not quoted and ("'" in value or '"' in value):
        raise ConfigError(f"{where}: a quote stands in a value without quotes around it; {QUOTES}")
    if any(ASSIGNMENT.match(line) for line in value.splitlines()[1:]):
        raise ConfigError(f"{where}: the value swallows the next variable, so its closing quote is missing; add it")
    if "\0" in value:
        raise ConfigError(f"{where}: the value holds a NUL character, which no variable may; remove it")
