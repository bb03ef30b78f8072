"""Where samples come from: one file per data set, and `load_data`, which checks what every data set must hold.

`troupe.data.stream` puts training samples in their order. Rewards and metrics join what they know by `sample_id`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

from troupe.chat import prompt_text
from troupe.config.data import DataConfig
from troupe.data.chats import load_messages
from troupe.data.dataset import DataSet
from troupe.data.docstring_pairs import load_docstring_pairs
from troupe.data.docstring_sections import load_docstring_sections
from troupe.data.docstrings import load_docstrings
from troupe.data.documents import load_documents
from troupe.data.gsm8k import load_gsm8k
from troupe.data.jsonl import load_jsonl
from troupe.data.next_chapter import load_next_chapter
from troupe.data.preference_pairs import settled
from troupe.data.repliqa import load_repliqa
from troupe.data.short_stories import load_short_stories
from troupe.data.smoltalk import load_smoltalk
from troupe.data.stream import PromptStream, position_in
from troupe.data.tic_tac_toe import load_tic_tac_toe
from troupe.data.tldr import load_tldr, load_tldr_comparisons
from troupe.data.ultrafeedback import load_ultrafeedback
from troupe.data.word_problems import load_word_problems
from troupe.errors import DataError
from troupe.records import Sample

__all__ = ["DataSet", "PromptStream", "load_data", "position_in"]

log = logging.getLogger(__name__)

LOADERS: dict[str, Callable[[Any], DataSet]] = {
    "word_problems": load_word_problems,
    "gsm8k": load_gsm8k,
    "smoltalk": load_smoltalk,
    "ultrafeedback": load_ultrafeedback,
    "tldr": load_tldr,
    "tldr_comparisons": load_tldr_comparisons,
    "docstrings": load_docstrings,
    "docstring_pairs": load_docstring_pairs,
    "documents": load_documents,
    "repliqa": load_repliqa,
    "tic_tac_toe": load_tic_tac_toe,
    "next_chapter": load_next_chapter,
    "messages": load_messages,
    "short_stories": load_short_stories,
    "docstring_sections": load_docstring_sections,
    "jsonl": load_jsonl,
}


def load_data(config: DataConfig) -> DataSet:
    """The data set of a config; the same config (and files) gives the same samples in every process.

    Answers come best first; what a filter left out is logged and in `dropped`. Raises DataError, in one sentence, for
    whatever is missing, malformed, or not identified by its id.
    """
    data = settled(LOADERS[config.type](config))
    if data.dropped:
        log.info("%s: left out %s", data.name, ", ".join(f"{count} {reason}" for reason, count in data.dropped.items()))
    for side, samples in (("training", data.train), ("held-out", data.heldout)):
        if not samples:
            left_out = f"; filters left out {dict(data.dropped)}" if data.dropped else ""
            raise DataError(f"{data.name}: there are no {side} samples{left_out}")
    _refuse_shared_ids(data)
    _warn_of_overlap(data)
    return data


def _refuse_shared_ids(data: DataSet) -> None:
    counts = Counter(sample.sample_id for sample in (*data.train, *data.heldout))
    sample_id, count = counts.most_common(1)[0]
    if count > 1:
        raise DataError(
            f"{data.name}: {count} samples have the id {sample_id!r}; an id names one sample, in training and held out together"
        )


def _warn_of_overlap(data: DataSet) -> None:
    trained = {_task(sample) for sample in data.train}
    overlap = sum(_task(sample) in trained for sample in data.heldout)
    if overlap:
        log.warning("%s: %d of %d held-out prompts also occur in training", data.name, overlap, len(data.heldout))


def _task(sample: Sample) -> tuple[str, Any]:
    """What is asked; games that begin alike are told apart by their seed."""
    return prompt_text(sample), sample.fields.get("seed")
