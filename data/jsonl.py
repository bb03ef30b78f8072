"""Any JSONL file as a data set: the config says which field is the prompt, the gold answer, the demonstration.

A prompt is a string or a list of messages. Messages that end with an assistant's turn are a conversation with its
answer: that turn is taken off, so that the answer is never part of the prompt. Other fields travel in `fields`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.data_recipes import JsonlConfig
from core.errors import DataError
from core.records import Message, Sample
from data.dataset import DataSet, conversation
from data.lines import Row, field_of, read_rows, text_of

ROLES = ("system", "user", "assistant", "tool")


def load_jsonl(config: JsonlConfig) -> DataSet:
    path = Path(config.path)
    samples = _samples(path, config)
    if config.heldout_path is None:
        train, heldout = _split(samples, config)
    else:
        train, heldout = samples, _samples(Path(config.heldout_path), config)
    return DataSet(name="jsonl", train=train, heldout=heldout)


def _split(samples: list[Sample], config: JsonlConfig) -> tuple[list[Sample], list[Sample]]:
    if config.num_heldout >= len(samples):
        raise DataError(
            f"{config.path} has {len(samples)} samples, too few to hold out {config.num_heldout} and train on the others; "
            "lower data.num_heldout, or name a data.heldout_path"
        )
    shuffled = list(samples)
    random.Random(f"jsonl/{config.seed}").shuffle(shuffled)
    return shuffled[: -config.num_heldout], shuffled[-config.num_heldout :]


def _samples(path: Path, config: JsonlConfig) -> list[Sample]:
    return [_sample(path, number, row, config) for number, row in read_rows(path)]


def _sample(path: Path, number: int, row: Row, config: JsonlConfig) -> Sample:
    where = f"{path} line {number}"
    prompt, answer = _prompt(field_of(row, config.prompt_field, where), where, config)
    gold = answer if config.gold_field is None else text_of(row, config.gold_field, where)
    demonstration = answer or gold
    if config.demonstration_field is not None:
        demonstration = text_of(row, config.demonstration_field, where)
    named = {config.prompt_field, config.gold_field, config.demonstration_field, config.id_field}
    fields = {name: value for name, value in row.items() if name not in named}
    return Sample(
        sample_id=f"{path.name}:{number}" if config.id_field is None else text_of(row, config.id_field, where),
        prompt=prompt,
        gold=gold,
        fields=fields if demonstration is None else {**fields, "demonstration": demonstration},
    )


def _prompt(value: Any, where: str, config: JsonlConfig) -> tuple[str | list[Message], str | None]:
    """(prompt, the answer that ended its messages or None)."""
    if isinstance(value, str) and value.strip():
        return (
            (value, None) if config.system_prompt is None else (conversation(value, system=config.system_prompt), None)
        )
    if not isinstance(value, list) or not value:
        raise DataError(
            f"{where}: field {config.prompt_field!r} must be a text or a list of messages, not empty, got {value!r:.60}"
        )
    messages = [_message(turn, where, config.prompt_field) for turn in value]
    if messages[-1]["role"] != "assistant":
        return messages, None
    if len(messages) == 1:
        raise DataError(f"{where}: field {config.prompt_field!r} holds an assistant's turn alone; there is no prompt")
    return messages[:-1], messages[-1]["content"]


def _message(turn: Any, where: str, field: str) -> Message:
    if not isinstance(turn, Mapping) or turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
        raise DataError(
            f"{where}: each message in {field!r} needs a role ({', '.join(ROLES)}) and a text as content, got {turn!r:.60}"
        )
    return {"role": turn["role"], "content": turn["content"]}
