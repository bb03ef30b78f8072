"""Conversations as text for people, for rewards and for chat endpoints; no template has a part in it."""

from __future__ import annotations

import json
from typing import Any, cast

from troupe.records import Answer, Message, Sample


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
