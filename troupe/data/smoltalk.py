"""Conversations for supervised training: HuggingFaceTB/smol-smoltalk (Allal et al. 2025, 2502.02737).

A row has `messages` and `source`. Everything before the assistant's last turn is the prompt, earlier answers
included; that last turn is the gold answer and the demonstration.
"""

from __future__ import annotations

from functools import partial

from troupe.config.published_data import SmolTalkConfig
from troupe.data.dataset import DataSet, Dropped
from troupe.data.lines import Row
from troupe.data.messages import as_answer, is_empty, messages_of, num_chars, part
from troupe.data.published import load_published
from troupe.records import Sample


def load_smoltalk(config: SmolTalkConfig) -> DataSet:
    return load_published(config, partial(_sample, config))


def _sample(config: SmolTalkConfig, sample_id: str, where: str, row: Row) -> Sample | Dropped:
    messages = messages_of(row, "messages", where)
    prompt, answer = part(messages)
    if answer is None or is_empty(answer):
        return Dropped("no_answer")
    if not prompt:
        return Dropped("no_prompt")
    if config.single_turn and [message["role"] for message in messages] != ["user", "assistant"]:
        return Dropped("more_than_one_turn")
    if config.max_prompt_chars is not None and num_chars(prompt) > config.max_prompt_chars:
        return Dropped("long_prompts")
    return Sample(
        sample_id=sample_id,
        prompt=prompt,
        gold=answer["content"],
        fields={"demonstration": as_answer([answer]), "source": row.get("source")},
    )
