"""Messages as people write them: parts, nulls, calls, thoughts; and the sentences for what cannot be one."""

import json
from pathlib import Path
from typing import Any

import pytest

from troupe.config.own_data import JsonlConfig
from troupe.data import load_data
from troupe.data.dataset import with_system
from troupe.data.messages import messages_of, part, tools_of
from troupe.errors import DataError
from troupe.records import Sample

CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
ASKED = {"role": "user", "content": "The weather in Paris?"}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
TOLD = {"role": "tool", "name": "get_weather", "tool_call_id": "c1", "content": "18 C"}


def read(*turns: Any) -> list[Any]:
    return list(messages_of({"messages": list(turns)}, "messages", "chat.jsonl line 7"))


def sample(tmp_path: Path, row: dict[str, Any], **settings: Any) -> Sample:
    path, heldout = tmp_path / "train.jsonl", tmp_path / "heldout.jsonl"
    path.write_text(json.dumps(row) + "\n")
    heldout.write_text(json.dumps({"prompt": "?", "messages": "?", "answer": "1"}) + "\n")
    (only,) = load_data(JsonlConfig(path=str(path), heldout_path=str(heldout), **settings)).train
    return only


def test_calls_thoughts_names_and_ids_stay_with_their_turns() -> None:
    turns = [ASKED, {**CALLING, "reasoning": "Look it up."}, TOLD]
    assert read(*turns) == turns


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": " 2+2?"}]
    assert read({"role": "user", "content": parts}) == [{"role": "user", "content": "What is 2+2?"}]


def test_arguments_may_be_json_and_a_call_its_function_alone() -> None:
    written = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    assert read(ASKED, {"role": "assistant", "content": None, "tool_calls": [written]})[1]["tool_calls"] == [CALL]


def test_columns_of_nulls_add_nothing() -> None:
    nulls = {"tool_calls": None, "reasoning_content": None, "name": None, "tool_call_id": None}
    assert read({**ASKED, **nulls}) == [ASKED]


def test_reasoning_content_is_reasoning() -> None:
    turn = {"role": "assistant", "content": "4", "reasoning_content": "2+2"}
    assert read(ASKED, turn)[1] == {"role": "assistant", "content": "4", "reasoning": "2+2"}


@pytest.mark.parametrize(
    ("turn", "sentence"),
    [
        ({"role": "bot", "content": "x"}, r"turn 2 of 'messages' needs a role \(system, developer, user, assistant"),
        ({"role": "user"}, "turn 2 of 'messages' needs a text as content, or calls of tools"),
        ({"role": "assistant", "content": None}, "needs a text as content, or calls of tools"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "has a part of type 'image_url'; models here read text only",
        ),
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "its role is 'user'; only an assistant calls tools"),
        (
            {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": "{city: Paris}"}]},
            "calls f with arguments that are no JSON",
        ),
        (
            {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": "[1]"}]},
            "calls f with arguments that are no mapping",
        ),
        ({"role": "assistant", "content": "", "tool_calls": [{}]}, "has a tool call without a function's name"),
        ({"role": "assistant", "content": "", "tool_calls": "f"}, "'tool_calls' must be a list"),
        (TOLD, "turn 2 of 'messages' is a tool's and stands behind user"),
    ],
)
def test_a_turn_that_cannot_be_one_is_named(turn: Any, sentence: str) -> None:
    with pytest.raises(DataError, match=f"chat.jsonl line 7: .*{sentence}"):
        read(ASKED, turn)


def test_a_call_is_a_demonstration_and_no_gold(tmp_path: Path) -> None:
    found = sample(tmp_path, {"messages": [ASKED, CALLING], "tools": TOOLS}, prompt_field="messages")
    assert (found.prompt, found.gold, found.fields["demonstration"]) == ([ASKED], None, [CALLING])
    assert found.tools == TOOLS


def test_tools_may_be_json_and_must_have_names() -> None:
    assert tools_of({"tools": json.dumps(TOOLS)}, "tools", "line 1") == TOOLS
    assert tools_of({"tools": ""}, "tools", "line 1") is None
    with pytest.raises(DataError, match="line 1: tool 1 in 'tools' needs a function with a name"):
        tools_of({"tools": [{"type": "function"}]}, "tools", "line 1")


def test_a_system_prompt_is_put_first_and_the_config_says_which_one_wins(tmp_path: Path) -> None:
    own = {"role": "system", "content": "Be kind."}
    brief = {"role": "system", "content": "Be brief."}
    assert sample(tmp_path, {"prompt": [ASKED]}, system_prompt="Be brief.").prompt == [brief, ASKED]
    assert with_system([own, ASKED], "Be brief.", wins=False) == [own, ASKED]  # type: ignore[list-item]
    assert with_system([own, ASKED], "Be brief.", wins=True) == [brief, ASKED]  # type: ignore[list-item]


def test_a_prompt_that_begins_the_answer_is_kept_where_the_config_says_so(tmp_path: Path) -> None:
    begun = {"role": "assistant", "content": "Step by step."}
    row, gold = {"prompt": [ASKED, begun], "answer": "18"}, {"gold_field": "answer"}
    kept = sample(tmp_path, row, continue_final_message=True, **gold)
    assert (kept.prompt, kept.gold, kept.fields["demonstration"]) == ([ASKED, begun], "18", "18")
    shown = sample(tmp_path, row, continue_final_message=False, **gold)
    assert (shown.prompt, shown.gold, shown.fields["demonstration"]) == ([ASKED], "18", "Step by step.")
    with pytest.raises(DataError, match=r"train.jsonl line 1: 'prompt' ends with an assistant's turn, and gold_field"):
        sample(tmp_path, row, **gold)


def test_an_empty_turn_is_told_by_text_and_calls() -> None:
    turns, answer = part(read(ASKED, CALLING))
    assert (turns, answer) == ([ASKED], CALLING)
