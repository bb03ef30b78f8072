"""The order of training prompts: seeded, without replacement within an epoch, restorable from one number.

The order of an epoch depends on (seed, epoch) alone, so a stream that is built at a position continues
exactly where another stopped. Jobs keep the position in the checkpoint.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from troupe.errors import DataError
from troupe.records import Sample


def position_in(state: Mapping[str, Any], size: int) -> int:
    """Return where a stream over `size` samples goes on after a checkpoint's `{"position": 250, "samples": 100}`.

    With another number of samples than then, orders are other ones: the epoch that was under way ends, and the next
    begins, over all samples. Example: after 250 of 100 samples a stream over 150 goes on at 3 epochs, 450.
    """
    before = state.get("samples", size)
    return int(state["position"]) if before == size else -(-state["position"] // before) * size


class PromptStream:
    """Endless samples in epochs; `position` counts the samples that were taken since the start.

    Example: with three samples, `PromptStream(samples, seed=0).take(5)` is one shuffle of all three followed by
    the first two of another; `PromptStream(samples, seed=0, position=5)` goes on with that one's third.
    """

    def __init__(self, samples: Sequence[Sample], seed: int, position: int = 0) -> None:
        if not samples:
            raise DataError("there are no training samples to draw prompts from")
        if position < 0:
            raise ValueError(f"a position counts samples from 0, got {position}")
        self.position = position
        self._samples = samples
        self._seed = seed
        self._epoch = -1
        self._order: list[int] = []

    @property
    def size(self) -> int:
        """Samples of an epoch."""
        return len(self._samples)

    def take(self, count: int) -> list[Sample]:
        """Return the next `count` samples."""
        return [self._next() for _ in range(count)]

    def _next(self) -> Sample:
        epoch, offset = divmod(self.position, len(self._samples))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._order_of(epoch)
        self.position += 1
        return self._samples[self._order[offset]]

    def _order_of(self, epoch: int) -> list[int]:
        order = list(range(len(self._samples)))
        random.Random(f"order/{self._seed}/{epoch}").shuffle(order)
        return order
