"""What is too long for a run, counted once at its start: samples that would be left out are said with the remedy.

Training passes over them later, by the same limits; a run that could use none of its samples ends here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.progress import track

from troupe.errors import DataError
from troupe.records import Sample

log = logging.getLogger(__name__)

AT_LEAST = 1000
"""Samples that are read at the start, where a run does not need to know about all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """The most tokens that fit, and the name of the setting: `Limit(tokens=512, field="max_length")`."""

    tokens: int
    field: str
    also: str = ""
    """Another reason why samples are left out, for people."""


def count_left_out(
    what: str, samples: Sequence[Sample], excess: Callable[[Sample], int | None], limit: Limit, *, enough: int
) -> int:
    """Count the samples that a run leaves out, and warn of them; DataError where it could use none.

    `excess` returns the tokens of one that is left out, None of one that fits. At least the first `enough` are read,
    and more where none of them fits. `what` names the samples: "training samples of gsm8k".
    """
    lengths: list[int] = []
    read = 0
    for sample in track(samples, description=f"measuring {what}", transient=True, disable=len(samples) < AT_LEAST):
        if read >= enough and len(lengths) < read:
            break
        read += 1
        tokens = excess(sample)
        if tokens is not None:
            lengths.append(tokens)
    if not lengths:
        return 0
    reason = f"longer than {limit.field} ({limit.tokens:,}){limit.also}"
    if len(lengths) == len(samples):
        raise DataError(
            f"none of the {len(samples):,} {what} can be used: each is {reason}, the shortest with {min(lengths):,} "
            f"tokens; raise {limit.field}, shorten them, or use other ones"
        )
    of = f"{read:,}" if read == len(samples) else f"the first {read:,}"
    log.warning(
        f"{len(lengths):,} of {of} {what} are left out: {reason}, the longest with {max(lengths):,} tokens; raise "
        f"{limit.field} to use them"
    )
    return len(lengths)
