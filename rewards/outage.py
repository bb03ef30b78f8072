"""How long a judge that does not answer is waited for: one memory of its trouble, shared by all who ask it.

Kept by `troupe.rewards.chat_endpoint`, on its thread.
"""

from __future__ import annotations

import logging
import math
import time

log = logging.getLogger(__name__)

WARNING_INTERVAL_S = 60.0
"""A judge that comes and goes is reported once in this time."""


class Outage:
    """Since when an endpoint has not answered anybody, and whether it is still waited for."""

    def __init__(self, *, url: str, patience_s: float) -> None:
        self._url, self._patience_s = url, patience_s
        self._since: float | None = None
        self._warned = -math.inf
        self._said_lost = False
        self.last_failure = -math.inf

    def is_given_up(self) -> bool:
        return self._since is not None and time.monotonic() - self._since > self._patience_s

    def may_wait(self, pause_s: float, *, since: float) -> bool:
        """Whether a question that has failed since `since` may wait for `pause_s` more; no outage outlasts the patience."""
        first = since if self._since is None else min(since, self._since)
        may = time.monotonic() + pause_s <= first + self._patience_s
        if not may and not self._said_lost:
            log.warning(
                "the judge at %s is waited for no longer than %g s: what it does not answer is missing",
                self._url,
                self._patience_s,
            )
            self._said_lost = True
        return may

    def note(self, reason: str) -> None:
        self.last_failure = time.monotonic()
        if self._since is None:
            self._since = self.last_failure
        elif self.last_failure - self._warned > WARNING_INTERVAL_S:  # one failure alone is everyday life
            log.warning(
                "the judge at %s does not answer (%s); it is waited for up to %g s", self._url, reason, self._patience_s
            )
            self._warned = self.last_failure

    def end(self) -> None:
        if self._said_lost:
            log.warning("the judge at %s answers again", self._url)
        self._since, self._said_lost = None, False
