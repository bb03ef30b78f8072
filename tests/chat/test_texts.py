"""Conversations as text for people and as messages for endpoints: nothing is lost, and nothing that a model thinks is
sent.
"""

from __future__ import annotations

import copy
import json

import pytest

from troupe.chat import answer_text, demonstration_text, prompt_messages, prompt_text, turn_text
from troupe.records import Message, Sample

CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": {"at": "Köln", "n": 2}}}
CALLING: Message = {"role": "assistant", "content": None, "reasoning": "Hm.", "tool_calls": [CALL]}  # type: ignore[list-item]
TURNS: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where?"},
    CALLING,
    {"role": "tool", "content": "18", "tool_call_id": "1", "name": "look"},
]


def test_text_is_the_users_turn_and_turns_stay_what_they_are() -> None:
    assert prompt_messages(Sample(sample_id="s", prompt="2+2?")) == [{"role": "user", "content": "2+2?"}]
    sent = prompt_messages(Sample(sample_id="s", prompt=TURNS))
    assert [turn["role"] for turn in sent] == ["system", "user", "assistant", "tool"]
    assert sent[3] == TURNS[3]


def test_calls_are_sent_with_json_arguments_and_thoughts_are_not_sent() -> None:
    before = copy.deepcopy(TURNS)
    call = prompt_messages(Sample(sample_id="s", prompt=TURNS))[2]
    assert "reasoning" not in call
    (sent,) = call["tool_calls"]
    assert json.loads(str(sent["function"]["arguments"])) == {"at": "Köln", "n": 2}
    assert sent["id"] == "1"
    assert before == TURNS  # the sample is not touched


def test_a_prompt_for_people_names_every_role_but_the_users() -> None:
    assert prompt_text(Sample(sample_id="s", prompt="a\nb")) == "a\nb"
    assert prompt_text(Sample(sample_id="s", prompt=TURNS)) == (
        '[system] Be brief.\nWhere?\n[assistant] {"name": "look", "arguments": {"at": "Köln", "n": 2}}\n[tool] 18'
    )


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("plain", "plain"),
        ([{"role": "assistant", "content": "one"}], "one"),
        ([CALLING], '{"name": "look", "arguments": {"at": "Köln", "n": 2}}'),
        (
            [{"role": "assistant", "content": "one"}, {"role": "user", "content": "two"}],
            "assistant\none\nuser\ntwo",
        ),
        ([{"role": "assistant", "content": ""}], ""),
    ],
)
def test_an_answer_for_people_is_its_text_or_all_of_its_turns(answer, text: str) -> None:
    assert answer_text(answer) == text
    assert demonstration_text(Sample(sample_id="s", prompt="?", fields={"demonstration": answer})) == text


def test_calls_stand_behind_the_words_of_a_turn_a_line_each() -> None:
    other = {"type": "function", "function": {"name": "end", "arguments": {}}}
    turn: Message = {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL, other]}  # type: ignore[list-item]
    assert turn_text(turn).splitlines() == [
        "Let me see.",
        '{"name": "look", "arguments": {"at": "Köln", "n": 2}}',
        '{"name": "end", "arguments": {}}',
    ]
