"""Prompts as token ids: a sample's text as it is, its messages through the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Sequence
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
        ids = _template(tokenizer, sample.prompt, generation=True)
    if not ids:
        raise DataError(f"{sample.sample_id} has an empty prompt; the model needs at least one token to continue")
    return list(ids)


def encode_answer(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of an answer as a model would have sampled it: the text and the end-of-turn token."""
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def answer_spans(tokenizer: PreTrainedTokenizerBase, sample: Sample, prompt_ids: Sequence[int]) -> list[range]:
    """Where the prompt's own assistant turns lie in `prompt_ids`, each from its first token to its end of turn.

    A turn that opens the conversation is not among them: it answers nothing, and no template shows what precedes it.
    Raises DataError when the chat template shows an earlier turn differently once others follow (one that drops
    reasoning, say): then its tokens are not those that the model would have sampled.
    """
    if isinstance(sample.prompt, str):
        return []
    spans = []
    for index, message in enumerate(sample.prompt):
        if message["role"] != "assistant" or index == 0:
            continue
        before = _template(tokenizer, sample.prompt[:index], generation=True)
        after = _template(tokenizer, sample.prompt[: index + 1], generation=False)
        if list(prompt_ids[: len(after)]) != after or after[: len(before)] != before:
            raise DataError(
                f"{sample.sample_id}: the chat template shows turn {index + 1} differently once others follow, so it cannot be "
                "trained in place; set turns: last to train on the last turn alone"
            )
        ends = [place for place in range(len(before), len(after)) if after[place] == tokenizer.eos_token_id]
        spans.append(range(len(before), ends[-1] + 1 if ends else len(after)))
    return spans


def _template(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, generation: bool) -> list[int]:
    return list(
        tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=generation, tokenize=True, return_dict=False
        )
    )


def prompt_messages(sample: Sample) -> list[Message]:
    """The prompt as a chat endpoint takes it: its turns, or the text as the user's."""
    if isinstance(sample.prompt, str):
        return [Message(role="user", content=sample.prompt)]
    return [Message(role=turn["role"], content=turn["content"]) for turn in sample.prompt]


def prompt_text(sample: Sample) -> str:
    """The prompt for people: the text, or the turns one after the other."""
    if isinstance(sample.prompt, str):
        return sample.prompt
    return "\n".join(_turn(message) for message in sample.prompt)


def _turn(message: Message) -> str:
    return message["content"] if message["role"] == "user" else f"[{message['role']}] {message['content']}"
