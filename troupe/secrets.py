"""What must not be told, and the one place that takes it out of text: files of a run, logs, console, trackers, errors.

A secret is the value of an environment variable whose name says so (HF_TOKEN, OPENAI_API_KEY, ...) or that a recipe
names as one (`api_key_env`), a login that a library keeps (`hide_login`), what stands before the @ of an address, and
what follows `Bearer`. `troupe.files` masks the texts that it writes and `troupe.config.program` the console; whoever
sends text another way calls `public_text` or `public_record`.
"""

from __future__ import annotations

import html
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO
from urllib.parse import quote

from pydantic import BaseModel

from troupe.disk import unless_full
from troupe.errors import ConfigError

SECRET_NAME = re.compile(
    r"KEY(?!BOARD|RING)|TOKEN(?!IZ)|SECRET|PASSW|PASSPHRASE|CREDENTIAL|AUTHORIZATION|_PWD$", re.IGNORECASE
)
NOT_SECRET = re.compile(r"(PATH|FILE|DIR|HOME|SOCK|MODE)$", re.IGNORECASE)
SHORTEST_SECRET = 8
"""Characters; a shorter value would match ordinary text."""

USERINFO = re.compile(r"://[^/\s@\"'<>\\]+@")
BEARER = re.compile(r"([Bb]earer|Basic) +(?=[^\s\"']*\d)[\w.~+/=-]{12,}")
"""A token has a digit, words that follow `Bearer` or `Basic` in a text have none."""
SECRET_FIELD = re.compile(
    r"(.*_)?(api_?key|access_key|private_key|auth_token|access_token|secret|password|passwd|passphrase|credentials?)"
)
"""Names of settings that may hold nothing else."""

ESCAPES = re.compile(r"(?:\x1b|(?<!\\)\\u001b)(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*?(?:\x07|\x1b\\)|[@-Z^_])")
"""What moves a terminal's cursor or colours it, as it is and as JSON writes it."""

_named: set[str] = set()
_logins: dict[str, str] = {}


def name_secret(variable: str) -> None:
    """Treat the value of this environment variable as a secret, whatever its name states."""
    _named.add(variable)


def hide_login(variable: str, value: str) -> None:
    """Treat `value`, which a library keeps in its own file, as the secret of this environment variable."""
    _logins[variable] = value


def known_secrets() -> dict[str, str]:
    """Name -> value of the secrets in the environment and of logins, longest first: one may be part of another."""
    secrets = {
        name: value.strip()
        for name, value in (_logins | dict(os.environ)).items()
        if len(value.strip()) >= SHORTEST_SECRET
        and (name in _named or (SECRET_NAME.search(name) and not NOT_SECRET.search(name)))
    }
    return dict(sorted(secrets.items(), key=lambda item: -len(item[1])))


def public_text(text: str) -> str:
    """Return `text` with `$NAME` in place of the secrets that are in the environment, also where JSON, HTML or an
    address has escaped them, and `***` in place of passwords in addresses and tokens in headers.
    """
    for name, secret in known_secrets().items():
        for form in _forms(secret):
            text = text.replace(form, f"${name}")
    return _without_patterns(text)


def page_text(text: str) -> str:
    """Return `text` as files and pages take it: public, and without a terminal's escapes."""
    return without_escapes(public_text(text))


def without_escapes(text: str) -> str:
    """Return `text` without what moves a terminal's cursor or colours it."""
    return ESCAPES.sub("", text) if "\x1b" in text or "\\u001b" in text else text


def public_record(value: Any) -> Any:
    """Dictionaries, lists and texts with every text masked."""
    return _with_texts(value, public_text)


def _with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Return a value with `change` made to every text in its dictionaries and lists; a tuple becomes a list."""
    if isinstance(value, Mapping):
        return {key: _with_texts(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_texts(item, change) for item in value]
    return change(value) if isinstance(value, str) else value


def public_values(config: BaseModel, *, escaped: bool = False) -> Any:
    """Return the resolved recipe; a secret that came from the environment is named so that it is found again:
    `${oc.env:NAME}`.

    `escaped` is for what will be read as a recipe: a text's own `${` is written so that it does not become a reference.
    """
    values, secrets = config.model_dump(mode="json"), known_secrets()

    def named(text: str) -> str:
        # OmegaConf reads a `${` behind a backslash as text, and backslashes before that one as half as many.
        text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text) if escaped else text
        for name, secret in secrets.items():
            text = text.replace(secret, f"${{oc.env:{name}}}")
        return _without_patterns(text)

    return _with_texts(values, named)


def refuse_secrets(values: Any, where: str = "") -> None:
    """Raise ConfigError for a recipe that holds a key or a password itself: it is saved with the run."""
    if isinstance(values, list):
        for index, value in enumerate(values):
            refuse_secrets(value, f"{where}.{index}")
    if not isinstance(values, Mapping):
        return
    for key, value in values.items():
        path = f"{where}.{key}".lstrip(".")
        if isinstance(value, str) and value and SECRET_FIELD.fullmatch(str(key).lower()):
            variable = next((name for name, known in os.environ.items() if known == value), None)
            if variable is None:
                raise ConfigError(
                    f"{path}: a recipe is saved and shown, so it must not hold a secret; put it into .env or the "
                    f"environment and write {path}='${{oc.env:NAME}}'"
                )
            name_secret(variable)
        refuse_secrets(value, path)


# -- the console -------------------------------------------------------------------------------------------------------


class SecretFilter(logging.Filter):
    """For a handler: the message and the traceback of every record, masked."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = public_text(record.getMessage()), None
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = public_text(record.exc_text)
        return True


class MaskedStream:
    """A console that masks what is written to it; all else is the stream's own.

    It may be a file: where that disk is full a line is lost, and not what prints it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with unless_full():
            self._stream.write(public_text(text))
        return len(text)

    def flush(self) -> None:
        with unless_full():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def mask_console() -> None:
    """Mask what this process prints from now on, tracebacks included."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, MaskedStream):
            setattr(sys, name, MaskedStream(stream))


# -- how ---------------------------------------------------------------------------------------------------------------


def _forms(secret: str) -> set[str]:
    """Return a secret as it stands, in JSON, in HTML, and in an address."""
    escaped = json.dumps(secret, ensure_ascii=False)[1:-1]
    return {secret, escaped, html.escape(secret), html.escape(escaped), quote(secret, safe="")}


def _without_patterns(text: str) -> str:
    return BEARER.sub(r"\1 ***", USERINFO.sub("://***@", text))
