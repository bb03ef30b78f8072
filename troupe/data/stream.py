"""The order of training prompts: seeded, without replacement within an epoch, restorable from a checkpoint.

The order of an epoch depends on (seed, epoch) alone, so a stream that is built at a position continues exactly where
another stopped. A mixture is a stream for each source, and takes from them by weight; with a curriculum, a source draws
from one of its levels at a time.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any

from troupe.config.libraries import CurriculumConfig
from troupe.data.dataset import LEVEL, SOURCE, DataSet
from troupe.errors import DataError, RewardError
from troupe.records import Group, Sample

log = logging.getLogger(__name__)


def stream_of(
    data: DataSet, seed: int, state: Mapping[str, Any] | None = None, *, climbs: bool = False
) -> PromptStream | MixedStream:
    """Return the order of a data set's training samples, from its beginning or from a checkpoint's `state`.

    One that `climbs` follows the data set's curriculum, if it has one, and wants to `observe` scored groups.
    """
    if not data.weights:
        return PromptStream(data.train, seed, 0 if state is None else position_in(state, len(data.train)))
    parts: dict[str, list[Sample]] = {name: [] for name in data.weights}
    for sample in data.train:
        parts[sample.fields[SOURCE]].append(sample)
    return MixedStream(parts, data.weights, seed, state, curriculum=data.curriculum if climbs else None)


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

    sources: Sequence[str] = ()

    def __init__(self, samples: Sequence[Sample], seed: int | str, position: int = 0) -> None:
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

    def state(self) -> dict[str, Any]:
        """Return what goes into a checkpoint."""
        return {"position": self.position, "samples": self.size}

    def metrics(self) -> Mapping[str, float]:
        """Return, of a mixture, the passes over each source so far, and the levels of those that climb."""
        return {}

    def observe(self, groups: Sequence[Group]) -> None:
        """Take note of scored groups; only a curriculum's order depends on them."""

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


class MixedStream:
    """Endless samples of several sources, each in its own epochs, taken so that every stretch holds their shares.

    Example: with weights 2 and 1 any six samples in a row hold four of the first source and two of the second, give or
    take one.
    """

    def __init__(
        self,
        parts: Mapping[str, Sequence[Sample]],
        weights: Mapping[str, float],
        seed: int,
        state: Mapping[str, Any] | None = None,
        curriculum: CurriculumConfig | None = None,
    ) -> None:
        """Go on from a checkpoint's `state`; with other weights than then, the new ones count from there on."""
        before = (state or {}).get("sources", {})
        self._streams: dict[str, PromptStream | LevelStream] = {}
        for name, samples in parts.items():
            if curriculum is not None:
                self._streams[name] = LevelStream(name, samples, f"{seed}/{name}", curriculum, before.get(name))
                continue
            place = position_in(before[name], len(samples)) if name in before else 0
            self._streams[name] = PromptStream(samples, f"{seed}/{name}", place)
        self._shares = {name: weights[name] / sum(weights.values()) for name in parts}
        # A source that is owed most comes next. The seed says which comes first where nothing is owed.
        phase = random.Random(f"mixture/{seed}")
        self._owed = {name: phase.random() * 1e-3 for name in parts}
        self.position = int(state["position"]) if state else 0
        if state and state.get("shares") == self._shares:
            self._owed = dict(state["owed"])
        elif state:
            log.warning("%s", _changed(state.get("shares", {}), self._shares))

    @property
    def sources(self) -> Sequence[str]:
        """Their names."""
        return list(self._streams)

    @property
    def size(self) -> int:
        """Samples of all sources together."""
        return sum(stream.size for stream in self._streams.values())

    def state(self) -> dict[str, Any]:
        """Return what goes into a checkpoint: the position in each source, and what each is owed."""
        return {
            "position": self.position,
            "samples": self.size,
            "sources": {name: stream.state() for name, stream in self._streams.items()},
            "shares": dict(self._shares),
            "owed": dict(self._owed),
        }

    def metrics(self) -> Mapping[str, float]:
        """Return the passes over each source so far, and the levels of those that climb."""
        passes = {f"data/{name}/epochs": stream.position / stream.size for name, stream in self._streams.items()}
        climbing = {name: stream for name, stream in self._streams.items() if isinstance(stream, LevelStream)}
        return passes | {f"data/{name}/level": stream.level for name, stream in climbing.items()}

    def observe(self, groups: Sequence[Group]) -> None:
        """Let the sources that climb take note of their scored groups."""
        for group in groups:
            stream = self._streams[group.sample.fields[SOURCE]]
            if isinstance(stream, LevelStream):
                stream.observe(group)

    def take(self, count: int) -> list[Sample]:
        """Return the next `count` samples."""
        return [self._next() for _ in range(count)]

    def _next(self) -> Sample:
        for name, share in self._shares.items():
            self._owed[name] += share
        chosen = max(self._owed, key=lambda name: self._owed[name])
        self._owed[chosen] -= 1
        self.position += 1
        (sample,) = self._streams[chosen].take(1)
        return sample


class LevelStream:
    """Endless samples of a source's current level, each level in epochs of its own.

    The pass rate of the last groups of the level moves it, so the order depends on what the run scored, and on nothing
    else; a checkpoint keeps it.
    """

    def __init__(
        self,
        name: str,
        samples: Sequence[Sample],
        seed: int | str,
        config: CurriculumConfig,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._name, self._config, before = name, config, state or {}
        levels: dict[int, list[Sample]] = {}
        for sample in samples:
            levels.setdefault(sample.fields.get(LEVEL, 0), []).append(sample)
        parts = [levels[level] for level in sorted(levels)]
        places = [*before.get("levels", ()), *[{"position": 0}] * len(parts)]
        self._levels = [
            PromptStream(part, f"{seed}/{level}", position_in(place, len(part)))
            for level, (part, place) in enumerate(zip(parts, places, strict=False))
        ]
        self.level = min(int(before.get("level", 0)), len(self._levels) - 1)
        self._rates = list(before.get("rates", ()))
        """Pass rates of the last groups of this level."""

    @property
    def size(self) -> int:
        """Samples of all levels together."""
        return sum(level.size for level in self._levels)

    @property
    def position(self) -> int:
        """Samples that were taken since the start."""
        return sum(level.position for level in self._levels)

    def state(self) -> dict[str, Any]:
        """Return what goes into a checkpoint."""
        return {
            "position": self.position,
            "samples": self.size,
            "level": self.level,
            "rates": list(self._rates),
            "levels": [level.state() for level in self._levels],
        }

    def take(self, count: int) -> list[Sample]:
        """Return the next `count` samples of the current level."""
        return self._levels[self.level].take(count)

    def observe(self, group: Group) -> None:
        """Take note of a scored group; a full window of its level may move the level."""
        if group.sample.fields.get(LEVEL, 0) != self.level:
            return  # asked ahead, before the level changed
        passed = [_value(group, score.parts, self._config.part) for score in group.scores if score.value is not None]
        if not passed:
            return
        self._rates.append(sum(value >= self._config.passes_at for value in passed) / len(passed))
        if len(self._rates) < self._config.window:
            return
        rate = sum(self._rates) / len(self._rates)
        step = int(rate >= self._config.raise_at) - int(rate < self._config.lower_at)
        level = max(0, min(self.level + step, len(self._levels) - 1))
        if level != self.level:
            log.info("%s goes from level %d to %d at a pass rate of %.2f", self._name, self.level, level, rate)
            self.level, self._rates = level, []
        else:
            self._rates.pop(0)


def _value(group: Group, parts: Mapping[str, float], part: str) -> float:
    if part not in parts:
        raise RewardError(
            f"data.curriculum.part {part!r} is no reward of {group.sample.sample_id}; its rewards are "
            f"{', '.join(parts) or 'none'}: name one of them"
        )
    return parts[part]


def _changed(before: Mapping[str, float], now: Mapping[str, float]) -> str:
    """Return what changed of a mixture since a checkpoint, for people."""
    changes = [
        f"{name} {before.get(name, 0):.0%} -> {now.get(name, 0):.0%}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]
    return (
        f"the mixture changed since the checkpoint ({', '.join(changes)}): from here on samples are drawn by the new "
        "shares, and each source goes on where it was"
    )
