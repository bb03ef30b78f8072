"""Any JSONL file as a data set: the config says which field is the prompt, the gold answer, the demonstration.

A prompt is a string or a list of messages. Messages that end with an assistant's turn are a conversation with its
answer: that turn is taken off, so that the answer is never part of the prompt, unless the config says that the model
goes on from it. Other fields travel in `fields`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from troupe.chat import answer_text
from troupe.config.data import JsonlConfig
from troupe.data.dataset import DataSet, conversation, hold_out
from troupe.data.lines import Entry, Row, field_of, read_rows, text_of
from troupe.data.messages import answer_of, as_answer, messages_of, part, tools_of, with_system
from troupe.errors import DataError
from troupe.records import Answer, Message, Sample


def load_jsonl(config: JsonlConfig) -> DataSet:
    path = Path(config.path)
    whole = DataSet(
        name="jsonl", train=_samples(path, config), heldout=(), own_ids=config.id_field is not None, from_one_file=True
    )
    if config.heldout_path is not None:
        heldout = _samples(Path(config.heldout_path), config)
        return dataclasses.replace(whole, heldout=heldout, from_one_file=False)
    train, held = hold_out(whole.train, config.num_heldout, f"jsonl/{config.seed}", whole.key)
    if not train:
        raise DataError(
            f"{config.path} has {len(held)} samples, too few different ones to hold out {config.num_heldout or 1} "
            f"and train on the others; "
            "lower data.num_heldout, or name a data.heldout_path"
        )
    return dataclasses.replace(whole, train=train, heldout=held)


def _samples(path: Path, config: JsonlConfig) -> list[Sample]:
    return [_sample(path, entry, config) for entry in read_rows(path)]


def _sample(path: Path, entry: Entry, config: JsonlConfig) -> Sample:
    number, where, row = entry
    prompt, answer = _prompt(row, where, config)
    gold = None if answer is None else answer["content"]
    if config.gold_field is not None:
        gold = answer_text(answer_of(row, config.gold_field, where))
    demonstration: Answer | None = gold if answer is None else as_answer([answer])
    if config.demonstration_field is not None:
        demonstration = answer_of(row, config.demonstration_field, where)
    elif "demonstration" in row:
        demonstration = None if row["demonstration"] is None else answer_of(row, "demonstration", where)
    named = {getattr(config, name) for name in type(config).model_fields if name.endswith("_field")}
    fields = {name: value for name, value in row.items() if name not in {*named, "demonstration"}} | _preference(
        row, where, config
    )
    return Sample(
        sample_id=f"{path.name}:{number}" if config.id_field is None else text_of(row, config.id_field, where),
        prompt=prompt,
        gold=gold,
        fields=fields if not demonstration else {**fields, "demonstration": demonstration},
        tools=tools_of(row, config.tools_field, where),
    )


def _prompt(row: Row, where: str, config: JsonlConfig) -> tuple[str | list[Message], Message | None]:
    """Return (prompt, the answer that ended its messages or None)."""
    name = config.prompt_field
    value = field_of(row, name, where)
    if isinstance(value, str) and value.strip():
        return (value if config.system_prompt is None else conversation(value, system=config.system_prompt)), None
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: field {name!r} must be a text or a list of messages, not empty, got {value!r:.60}")
    messages = messages_of(row, name, where)
    if config.system_prompt is not None:
        messages = with_system(messages, config.system_prompt, wins=config.system_prompt_wins)
    prompt, answer = (messages, None) if config.continue_final_message else part(messages)
    if answer is not None and config.continue_final_message is None and config.gold_field is not None:
        raise DataError(
            f"{where}: {name!r} ends with an assistant's turn, and gold_field names another answer; set "
            "data.continue_final_message=true if the model is to go on from that turn, or =false if it is a "
            "demonstration and no part of the prompt"
        )
    if not any(turn["role"] != "assistant" for turn in prompt):
        raise DataError(f"{where}: field {name!r} holds an assistant's turn alone; there is no prompt")
    return prompt, answer


def _preference(row: Row, where: str, config: JsonlConfig) -> dict[str, Any]:
    """Return answers, ranks and margin from the fields that the config names.

    `troupe.data.preference_pairs` checks them.
    """
    fields: dict[str, Any] = {}
    if config.chosen_field is not None and config.rejected_field is not None:
        fields["answers"] = [answer_of(row, name, where) for name in (config.chosen_field, config.rejected_field)]
    if config.answers_field is not None:
        fields["answers"] = field_of(row, config.answers_field, where)
    if config.ranks_field is not None:
        fields["ranks"] = field_of(row, config.ranks_field, where)
    if config.margin_field is not None:
        fields["margin"] = field_of(row, config.margin_field, where)
    return fields
