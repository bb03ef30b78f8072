"""What is done when a process of a run dies or hangs: one table, and a bound, so that nothing is tried for ever.

Frozen models and rewarders are Ray's to start again (`RayWorkers.restarts`); of a machine that is lost Ray places the
bundles where there is room. What Ray cannot know, which weights a process must have, is here.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from troupe.errors import PeerError
from troupe.runs.run import Run

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The loss that a role's death means, and what makes up for it."""

    lost: str
    done: str


BY_RAY = Rule(lost="the calls that it was in", done="Ray starts it again and repeats them")
RULES: Mapping[str, Rule] = {
    "generator": Rule(
        lost="the answers that it was sampling",
        done="it alone starts again, gets the current weights, and samples them with the same seeds",
    ),
    "policy": Rule(
        lost="what it learned since the checkpoint",
        done="its ranks alone start again from the checkpoint and learn again from the groups that were kept",
    ),
    "critic": Rule(
        lost="what it learned since the checkpoint",
        done="its ranks alone start again; policy and critic go back to the checkpoint and learn again from the groups "
        "that were kept",
    ),
    "reference": BY_RAY,
    "reward_model": BY_RAY,
    "perplexity": BY_RAY,
    "rewarder": BY_RAY,
    "driver": Rule(
        lost="every process", done="the same command goes on from the checkpoint and the groups that were kept"
    ),
}
"""Role -> rule. A role that is not here, or fails too often, ends all roles, which start again from the checkpoint."""
TRAINED = ("policy", "critic")


class Recovery:
    """The recoveries of a run so far, and whether one more is allowed."""

    def __init__(self, run: Run, *, limit: int) -> None:
        """Allow `limit` recoveries of one role in one step."""
        self._run, self._limit = run, limit
        self._counts: Counter[tuple[str, int]] = Counter()
        self.version = 0
        """Of the weights that were last given to the generators."""

    def allow(self, error: PeerError) -> None:
        """Note a recovery from `error`; raise it where its role has failed too often in this step."""
        place = (error.role, self._run.step)
        self._counts[place] += 1
        if self._counts[place] > self._limit:
            raise error
        rule = RULES[error.role]
        log.warning("%s; lost: %s; %s", error, rule.lost, rule.done)
        self._run.event(
            "recovered",
            role=error.role,
            ranks=list(error.ranks),
            error=str(error),
            details=error.details,
            done=rule.done,
        )
