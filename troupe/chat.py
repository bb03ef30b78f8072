"""Prompts as token ids: a sample's text as it is, its messages through the tokenizer's chat template.

What stands between two answers of the model in a game, an environment's turn, comes through the same template.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from troupe.errors import DataError
from troupe.records import Answer, Message, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from troupe.tokenizer import LightTokenizer

    AnyTokenizer: TypeAlias = PreTrainedTokenizerBase | LightTokenizer

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The chat template of models made here."""


def encode_prompt(tokenizer: AnyTokenizer, sample: Sample) -> list[int]:
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


def encode_answer(tokenizer: AnyTokenizer, text: str) -> list[int]:
    """Token ids of an answer as a model would have sampled it: the text and the end-of-turn token."""
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def answer_spans(tokenizer: AnyTokenizer, sample: Sample, prompt_ids: Sequence[int]) -> list[range]:
    """Find the prompt's own assistant turns in `prompt_ids`, each from its first token to its end of turn.

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
                f"{sample.sample_id}: the chat template shows turn {index + 1} differently once others follow, so it "
                f"cannot be "
                "trained in place; set turns: last to train on the last turn alone"
            )
        ends = [place for place in range(len(before), len(after)) if after[place] == tokenizer.eos_token_id]
        spans.append(range(len(before), ends[-1] + 1 if ends else len(after)))
    return spans


class TurnEncoder:
    """Token ids of an environment's turns, so that a game grows as one sequence: what the model sampled stays as it is,
    and only what follows is encoded."""

    def __init__(self, tokenizer: AnyTokenizer) -> None:
        """Raises DataError unless the chat template shows a turn the same way once others follow."""
        self._tokenizer = tokenizer
        if tokenizer.chat_template is None:
            raise DataError(
                "an environment answers in turns, but the tokenizer has no chat template; use an instruction-tuned "
                "model"
            )
        for answer in PROBES:
            self._after(answer, "Next.")
        self._encoded = functools.lru_cache(maxsize=4096)(self._encode)  # games meet the same boards again and again

    def after_answer(self, last_token: int, observation: str) -> list[int]:
        """Return what follows an answer that ended with `last_token`, up to where the model's next answer begins.

        It begins with the end of turn where the answer was cut off and has none of its own. Example, in ChatML:
        `<|im_end|>` is sampled, `\n<|im_start|>user\n...<|im_end|>\n<|im_start|>assistant\n` is returned.
        """
        ids = self._encoded(observation)
        return list(ids[1:] if ids[0] == last_token else ids)

    def opening(self, sample: Sample, observation: str | None) -> tuple[list[int], list[int]]:
        """Return (the prompt that the branches of a group share, what one of them begins with), where some of them
        begin with an observation: then the assistant's header is not the prompt's any more.
        """
        assert not isinstance(sample.prompt, str)
        turns = [] if observation is None else [_user(observation)]
        prompt = _template(self._tokenizer, sample.prompt, generation=False)
        whole = _template(self._tokenizer, [*sample.prompt, *turns], generation=True)
        if whole[: len(prompt)] != prompt or not prompt:
            raise DataError(
                f"{sample.sample_id}: the chat template shows the prompt differently once the environment's first "
                f"turn follows; "
                "let reset return None and say it in the prompt"
            )
        return prompt, whole[len(prompt) :]

    def _encode(self, observation: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(self._after("Yes.", observation), add_special_tokens=False)["input_ids"])

    def _after(self, answer: str, observation: str) -> str:
        """Return the template's text behind an answer, its end of turn included."""
        asked = [_user("Begin.")]
        before = _rendered(self._tokenizer, asked)
        whole = _rendered(self._tokenizer, [*asked, {"role": "assistant", "content": answer}, _user(observation)])
        # Some templates put a space before an answer, which the model samples itself.
        said = whole.removeprefix(before).lstrip()
        if not whole.startswith(before) or not said.startswith(answer):
            raise DataError(
                "the tokenizer's chat template shows an assistant's turn differently once others follow (it drops "
                "reasoning, say), "
                "so that the turns of a game cannot grow one sequence; use a model whose template keeps earlier "
                "turns as they were"
            )
        return said.removeprefix(answer)


PROBES = ("Yes.", "<think>\nPerhaps.\n</think>\n\nYes.")
"""Answers that a template must leave as they are: a plain one, and one with the reasoning that some templates drop."""


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _rendered(tokenizer: AnyTokenizer, messages: Sequence[Message]) -> str:
    return str(tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False))


def _template(tokenizer: AnyTokenizer, messages: Sequence[Message], *, generation: bool) -> list[int]:
    return list(
        tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=generation, tokenize=True, return_dict=False
        )
    )


def prompt_messages(sample: Sample) -> list[Message]:
    """Return the prompt as a chat endpoint takes it: its turns, or the text as the user's."""
    if isinstance(sample.prompt, str):
        return [{"role": "user", "content": sample.prompt}]
    return [_for_endpoint(turn) for turn in sample.prompt]


def _for_endpoint(turn: Message) -> Message:
    """Return a turn in OpenAI's form, where a call's arguments are JSON; thoughts are no part of it."""
    sent: dict[str, Any] = {name: value for name, value in turn.items() if name != "reasoning"}
    if "tool_calls" in turn:
        sent["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
            for call in turn["tool_calls"]
        ]
    return cast(Message, sent)


def prompt_text(sample: Sample) -> str:
    """Return the prompt for people: the text, or the turns one after the other."""
    if isinstance(sample.prompt, str):
        return sample.prompt
    return "\n".join(
        turn_text(turn) if turn["role"] == "user" else f"[{turn['role']}] {turn_text(turn)}" for turn in sample.prompt
    )


def demonstration_text(sample: Sample) -> str:
    """Return the demonstration as text."""
    return answer_text(sample.fields["demonstration"])


def answer_text(answer: Answer) -> str:
    """Return an answer for people; of one in several turns all of them, each behind its role."""
    if isinstance(answer, str):
        return answer
    if len(answer) == 1:
        return turn_text(answer[0])
    return "\n".join(f"{turn['role']}\n{turn_text(turn)}" for turn in answer)


def turn_text(turn: Message) -> str:
    """Return a turn for people: its text, then each call as a line of JSON."""
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in turn.get("tool_calls", ())]
    return "\n".join([turn["content"], *calls] if turn["content"] else calls)


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model directory or hub name."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
