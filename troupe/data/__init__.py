"""Where samples come from: one file per data set, and `load_data`, which checks what every data set must hold.

`troupe.data.stream` puts training samples in their order. Rewards and metrics join what they know by `sample_id`.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from troupe.chat import prompt_text
from troupe.config.data import DataConfig, MixtureConfig, SourceConfig
from troupe.config.published_data import NextChapterConfig
from troupe.data.dataset import DataSet, behind_system_prompt, named
from troupe.errors import DataError
from troupe.lazy import lazy_exports
from troupe.records import Sample

if TYPE_CHECKING:
    from troupe.data.stream import MixedStream, PromptStream, position_in, stream_of

__getattr__ = lazy_exports(__name__, __file__)
__all__ = ["DataSet", "MixedStream", "PromptStream", "load_data", "position_in", "stream_of"]

log = logging.getLogger(__name__)

MODULES = {"messages": "chats", "tldr_comparisons": "tldr", "docstring_pairs": "docstrings"}
"""The module of a data set whose name is not that of its `type`."""


def load_data(config: DataConfig, others: Mapping[str, SourceConfig] | None = None) -> DataSet:
    """Load the data set of a config; the same config (and files) gives the same samples in every process.

    Answers come best first; what a filter left out is logged and in `dropped`. Raises DataError, in one sentence, for
    whatever is missing, malformed, or not identified by its id. `others` are further held-out sets.
    """
    from troupe.data.preference_pairs import sort_answers

    module = importlib.import_module(f"troupe.data.{MODULES.get(config.type, config.type)}")
    data = _with_system_prompt(config, sort_answers(getattr(module, f"load_{config.type}")(config)))
    if data.dropped:
        log.info("%s: left out %s", data.name, ", ".join(f"{count} {reason}" for reason, count in data.dropped.items()))
    for side, samples in (("training", data.train), ("held-out", data.heldout)):
        if not samples:
            left_out = f"; filters left out {dict(data.dropped)}" if data.dropped else ""
            raise DataError(f"{data.name}: there are no {side} samples{left_out}")
    data = dataclasses.replace(data, others={name: _heldout(name, each) for name, each in (others or {}).items()})
    taken = {data.name, *data.weights} & data.others.keys()
    if taken:
        raise DataError(f"heldout: {min(taken)} is what the run's own held-out set is called; choose another name")
    _refuse_shared_ids(data)
    _warn_of_overlap(data)
    return data


def _with_system_prompt(config: DataConfig, data: DataSet) -> DataSet:
    """Return the data with the section's system prompt before every prompt, if there is one."""
    if isinstance(config, MixtureConfig | NextChapterConfig) or config.system_prompt is None:
        return data  # a mixture's sources have theirs; next_chapter's may open the user's turn

    def behind(sample: Sample) -> Sample:
        prompt = sample.prompt if isinstance(sample.prompt, str) else list(sample.prompt)
        return dataclasses.replace(sample, prompt=behind_system_prompt(prompt, config))

    return dataclasses.replace(data, train=[*map(behind, data.train)], heldout=[*map(behind, data.heldout)])


def _heldout(name: str, config: SourceConfig) -> list[Sample]:
    """Return the held-out side of a further set, known by its name; of one file all rows."""
    try:
        data = load_data(config)
    except DataError as error:
        raise DataError(f"heldout {name}: {error}") from None
    samples = [*data.train, *data.heldout] if data.from_one_file else data.heldout
    return named(name, samples)


def _refuse_shared_ids(data: DataSet) -> None:
    counts = Counter(sample.sample_id for sample in (*data.train, *data.heldout))
    sample_id, count = counts.most_common(1)[0]
    if count > 1:
        raise DataError(
            f"{data.name}: {count} samples have the id {sample_id!r}; an id names one sample, in training and held "
            f"out together"
        )


def _warn_of_overlap(data: DataSet) -> None:
    trained = {_task(sample) for sample in data.train}
    for name, samples in {data.name: data.heldout, **data.others}.items():
        overlap = sum(_task(sample) in trained for sample in samples)
        if overlap:
            log.warning("%s: %d of %d held-out prompts also occur in training", name, overlap, len(samples))


def _task(sample: Sample) -> tuple[str, Any]:
    """Return the task; games that begin alike differ by their seed."""
    return prompt_text(sample), sample.fields.get("seed")
