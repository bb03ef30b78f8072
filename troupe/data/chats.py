"""Chats as JSONL, `{"messages": [...]}` a line, with the last assistant's turn as the gold answer.

The lines are read by `troupe.data.jsonl`. Here the policy's prompt gets a request for reasoning, where one is wanted,
and the frozen model that judges the reasoning keeps the prompt as it was.
"""

from __future__ import annotations

import dataclasses

from troupe.config.own_data import JsonlConfig, MessagesConfig
from troupe.data.dataset import DataSet
from troupe.data.jsonl import load_jsonl
from troupe.errors import DataError
from troupe.records import Message, Sample


def load_messages(config: MessagesConfig) -> DataSet:
    settings = config.model_dump(include={"path", "heldout_path", "num_heldout", "id_field", "seed"})
    data = load_jsonl(JsonlConfig(**settings, prompt_field="messages"))
    train, heldout = ([_sample(config, sample) for sample in side] for side in (data.train, data.heldout))
    return dataclasses.replace(data, name="messages", train=train, heldout=heldout)


def _sample(config: MessagesConfig, sample: Sample) -> Sample:
    prompt = list(sample.prompt)
    if sample.gold is None or not sample.gold.strip():
        raise DataError(
            f"{sample.sample_id}: 'messages' must end with an assistant's turn that is not empty; it is the gold answer"
        )
    if prompt[-1]["role"] != "user":  # type: ignore[index]
        raise DataError(
            f"{sample.sample_id}: 'messages' must have a user's turn before the assistant's last one, "
            f"got one of {prompt[-1]['role']!r}"  # type: ignore[index]
        )
    fields = {**sample.fields, "scorer_prompt": prompt, "context_template": config.context_template}
    if config.instruction is None:
        return dataclasses.replace(sample, fields=fields)
    # Whoever is asked to reason must not be taught to answer at once.
    fields.pop("demonstration", None)
    return dataclasses.replace(sample, prompt=_asked(prompt, config.instruction), fields=fields)  # type: ignore[arg-type]


def _asked(prompt: list[Message], instruction: str) -> list[Message]:
    last = prompt[-1]
    return [*prompt[:-1], {"role": last["role"], "content": f"{last['content']}\n\n{instruction}"}]
