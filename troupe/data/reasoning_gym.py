"""Tasks of the library reasoning_gym: questions made from a seed, at one setting or at the levels of a curriculum.

A sample keeps the library's whole entry in `fields["entry"]`, from which the reward of that name scores an answer.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from troupe.config.libraries import ReasoningGymConfig
from troupe.data.dataset import LEVEL, SOURCE, DataSet, conversation
from troupe.errors import ConfigError
from troupe.optional import optional
from troupe.records import Sample


def load_reasoning_gym(config: ReasoningGymConfig) -> DataSet:
    """Make the samples of every task; a question that is held out is no training question."""
    tasks = [_Task(name, arguments, config) for name, arguments in config.tasks.items()]
    heldout = {task.name: list(task.samples("heldout", -(-config.num_heldout // task.num_levels))) for task in tasks}
    train, repeated = list[Sample](), 0
    for task in tasks:
        known = {_question(sample) for sample in heldout[task.name]}
        made = list(task.samples("train", config.num_train))
        kept = [sample for sample in made if _question(sample) not in known]
        train, repeated = train + kept, repeated + len(made) - len(kept)
    turns = itertools.zip_longest(*(_spread(samples, config.num_heldout) for samples in heldout.values()))
    return DataSet(
        name="reasoning_gym",
        train=train,
        heldout=[sample for turn in turns for sample in turn if sample is not None],
        dropped={"also_heldout": repeated} if repeated else {},
        weights=config.weights or dict.fromkeys(config.tasks, 1.0),
        curriculum=config.curriculum,
    )


class _Task:
    """One task at each of its levels; without a curriculum it has one."""

    def __init__(self, name: str, arguments: Mapping[str, Any], config: ReasoningGymConfig) -> None:
        self._library = optional("reasoning_gym", "data.type reasoning_gym")
        self.name, self._arguments, self._config = name, dict(arguments), config
        known = self._library.factory.DATASETS
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"data.tasks: unknown task {name!r}; {hint}reasoning_gym has {', '.join(sorted(known))}")
        reserved = {"seed", "size"} & self._arguments.keys()
        if reserved:
            raise ConfigError(
                f"data.tasks.{name}: {min(reserved)} is set by data.seed and data.num_train; leave it out"
            )
        self._cls, self._settings_cls = known[name]
        self._climb = self._library.factory.CURRICULA.get(name) if config.curriculum is not None else None
        self.num_levels = self._count_levels()

    def samples(self, side: str, count: int) -> Iterator[Sample]:
        """Yield `count` samples of every level, the easiest level first."""
        for level in range(self.num_levels):
            text = f"{self._config.seed}/{self.name}/{level}/{side}"
            made = self._made(level, int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big"), count)
            for index in range(count):
                yield self._sample(f"{self.name}/{side}/{level}/{index}", level, made[index])

    def _count_levels(self) -> int:
        attributes = self._climb().attributes.values() if self._climb is not None else ()
        return max((len(each.levels) for each in attributes), default=1)

    def _made(self, level: int, seed: int, count: int) -> Any:
        given = {**self._arguments, "seed": seed, "size": count}
        try:
            if self._climb is None:
                return self._cls(self._settings_cls(**given))
            climb = self._climb()
            climb.set_global_level(level)
            return self._cls(climb.generate_configuration(given))
        except (TypeError, ValueError, AssertionError) as error:
            names = [each.name for each in dataclasses.fields(self._settings_cls) if each.name not in ("seed", "size")]
            raise ConfigError(
                f"data.tasks.{self.name}: {error or 'the library refuses these arguments'} (got {self._arguments}); "
                f"its arguments are {', '.join(names)}"
            ) from error

    def _sample(self, name: str, level: int, entry: Mapping[str, Any]) -> Sample:
        fields: dict[str, Any] = {SOURCE: self.name, LEVEL: level, "entry": dict(entry)}
        answer = entry.get("answer")
        if answer is not None:
            fields["demonstration"] = f"<answer>{answer}</answer>"
        return Sample(
            sample_id=f"reasoning_gym/{name}",
            prompt=conversation(entry["question"]),
            gold=None if answer is None else str(answer),
            fields=fields,
        )


def _question(sample: Sample) -> str:
    return str(sample.fields["entry"]["question"])


def _spread(samples: list[Sample], count: int) -> list[Sample]:
    """Return `count` samples, in turns of every level."""
    levels: dict[int, list[Sample]] = {}
    for sample in samples:
        levels.setdefault(sample.fields[LEVEL], []).append(sample)
    return [sample for turn in zip(*levels.values(), strict=True) for sample in turn][:count]
