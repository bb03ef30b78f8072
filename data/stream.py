"""The order of training prompts: seeded, without replacement within an epoch, restorable from one number.

The order of an epoch depends on (seed, epoch) alone, so a stream that is built at a position continues
exactly where another stopped. Jobs keep the position in the checkpoint.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from core.errors import DataError
from core.records import Sample


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

    def take(self, count: int) -> list[Sample]:
        """The next `count` samples."""
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
