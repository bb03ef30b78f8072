"""How long a judge that does not answer is waited for: one memory of its trouble, shared by all questions to it."""

from __future__ import annotations

import logging
import math
import time

log = logging.getLogger(__name__)

WARNING_INTERVAL_S = 60.0
"""A judge that comes and goes is reported once in this time."""


class Outage:
    """The time since which an endpoint has answered no question, and whether it is still waited for."""

    def __init__(self, *, url: str, patience_s: float) -> None:
        self._judge, self._patience_s = f"the judge at {url}", patience_s
        self._since: float | None = None
        self._warned = -math.inf
        self._is_lost = False
        self.last_failure = -math.inf

    def is_given_up(self) -> bool:
        return self._since is not None and time.monotonic() - self._since > self._patience_s

    def may_wait(self, pause_s: float, *, since: float) -> bool:
        """Return whether a question that fails since `since` may wait `pause_s`: no outage outlasts the patience."""
        first = since if self._since is None else min(since, self._since)
        may = time.monotonic() + pause_s <= first + self._patience_s
        if not may and not self._is_lost:
            log.warning(
                "%s is waited for no longer than %g s: what it does not answer is missing",
                self._judge,
                self._patience_s,
            )
            self._is_lost = True
        return may

    def note(self, reason: str) -> None:
        """Note a failure; the second one and then one a minute is in the log, for one alone is everyday life."""
        self.last_failure = time.monotonic()
        if self._since is None:
            self._since = self.last_failure
        elif self.last_failure - self._warned > WARNING_INTERVAL_S:
            patience = self._patience_s
            log.warning("%s does not answer (%s); it is waited for up to %g s", self._judge, reason, patience)
            self._warned = self.last_failure

    def end(self) -> None:
        if self._is_lost:
            log.warning("%s answers again", self._judge)
        self._since, self._is_lost = None, False
