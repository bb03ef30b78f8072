"""Replies of remote judges on disk, so that nothing is paid for twice: one SQLite file for any number of processes.

A reply is kept under the hash of the whole question; neither prompts nor keys are in the file. Which questions and
replies these are is decided in `troupe.rewards.chat_endpoint`.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

LOCK_TIMEOUT_S = 10.0
"""Seconds to wait for another process that writes."""


class ReplyCache:
    """A file of replies by the hash of their question.

    A file that cannot be opened is a ValueError at once. Failures later, of a full disk for example, are logged once
    and cost only money: a question that is not found is asked.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._failed = False
        self._writing = threading.Lock()  # threads that wait here do not poll the file's lock
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._run("CREATE TABLE IF NOT EXISTS replies (question TEXT PRIMARY KEY, reply TEXT, model TEXT, at TEXT)")
        except (OSError, sqlite3.Error) as error:
            raise ValueError(
                f"the cache {path} cannot be opened ({error}); name another file, or none (null)"
            ) from None

    def get(self, question: str) -> str | None:
        found = self._try("SELECT reply FROM replies WHERE question = ?", question)
        return None if found is None else str(found[0])

    def put(self, question: str, reply: str, *, model: str) -> None:
        with self._writing:
            self._try("INSERT OR REPLACE INTO replies VALUES (?, ?, ?, datetime('now'))", question, reply, model)

    def _run(self, statement: str, *values: str) -> tuple[Any, ...] | None:
        # Opened for each use: a read takes a fraction of a millisecond, and no thread has to own a connection. The
        # rollback journal stays (a write takes milliseconds), because the faster WAL mode breaks on shared file
        # systems.
        with contextlib.closing(sqlite3.connect(self._path, timeout=LOCK_TIMEOUT_S, isolation_level=None)) as database:
            row: tuple[Any, ...] | None = database.execute(statement, values).fetchone()
            return row

    def _try(self, statement: str, *values: str) -> tuple[Any, ...] | None:
        try:
            return self._run(statement, *values)
        except (sqlite3.Error, UnicodeEncodeError) as error:  # the latter of half characters in a reply
            if not self._failed:
                log.warning("the cache of judgements %s failed (%s); the run goes on without it", self._path, error)
            self._failed = True
            return None
