"""Prompts as token ids: a sample's text as it is, its messages through the tokenizer's chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.errors import DataError
from core.records import Message, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The chat template of models made here."""


def encode_prompt(tokenizer: PreTrainedTokenizerBase, sample: Sample) -> list[int]:
    """Token ids of the sample's prompt, ready for the model to continue.

    Raises DataError for messages without a chat template and for an empty prompt.
    """
    if isinstance(sample.prompt, str):
        ids = tokenizer(sample.prompt)["input_ids"]
    elif tokenizer.chat_template is None:
        raise DataError(
            f"{sample.sample_id} is a conversation, but the tokenizer has no chat template; "
            "use an instruction-tuned model, or a data set whose prompts are plain text"
        )
    else:
        ids = tokenizer.apply_chat_template(
            list(sample.prompt), add_generation_prompt=True, tokenize=True, return_dict=False
        )
    if not ids:
        raise DataError(f"{sample.sample_id} has an empty prompt; the model needs at least one token to continue")
    return list(ids)


def prompt_text(sample: Sample) -> str:
    """The prompt for people: the text, or the turns one after the other."""
    if isinstance(sample.prompt, str):
        return sample.prompt
    return "\n".join(_turn(message) for message in sample.prompt)


def _turn(message: Message) -> str:
    return message["content"] if message["role"] == "user" else f"[{message['role']}] {message['content']}"
