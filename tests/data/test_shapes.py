"""The shapes in which data sets are passed around become prompts and answers by name, and what looks wrong is said."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from troupe.config.own_data import JsonlConfig, RowFilterConfig
from troupe.data import DataSet, load_data
from troupe.errors import DataError
from troupe.records import Sample

HH_FILE = Path(__file__).resolve().parents[3] / "shared" / "data" / "hh_rlhf" / "harmless_test.jsonl.gz"


def load(tmp_path: Path, *rows: Any, **settings: Any) -> DataSet:
    path, heldout = tmp_path / "train.jsonl", tmp_path / "heldout.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    heldout.write_text(json.dumps(rows[0]) + "\n")
    return load_data(JsonlConfig(path=str(path), heldout_path=str(heldout), **settings))


def first(tmp_path: Path, *rows: Any, **settings: Any) -> Sample:
    return load(tmp_path, *rows, **settings).train[0]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def test_sharegpt_speakers_become_roles_and_its_last_turn_the_answer(tmp_path: Path) -> None:
    turns = [("human", "hi"), ("gpt", "Hello."), ("human", "2+2?"), ("gpt", "4")]
    row = {"system": "Be brief.", "conversations": [{"from": who, "value": text} for who, text in turns]}
    sample = first(tmp_path, row)
    assert sample.prompt == [{"role": "system", "content": "Be brief."}, user("hi"), assistant("Hello."), user("2+2?")]
    assert sample.gold == sample.fields["demonstration"] == "4"


def test_sharegpt_calls_of_functions_become_calls_of_tools(tmp_path: Path) -> None:
    call = json.dumps({"name": "get_weather", "arguments": {"city": "Paris"}})
    turns = [("human", "Weather?"), ("function_call", call), ("observation", "18 C"), ("gpt", "It is 18 C.")]
    sample = first(tmp_path, {"conversations": [{"from": who, "value": text} for who, text in turns]})
    assert sample.prompt[1]["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": {"city": "Paris"}}  # type: ignore[index,typeddict-item]
    assert sample.prompt[2] == {"role": "tool", "content": "18 C"}


def test_alpacas_input_is_part_of_the_prompt_and_an_empty_one_is_not(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Translate.", "input": "The harbour is quiet.", "output": "Der Hafen ist ruhig."},
        {"instruction": "Name a colour.", "input": "", "output": "Blue"},
    ]
    translate, colour = load(tmp_path, *rows).train
    assert translate.prompt == "Translate.\n\nThe harbour is quiet."
    assert translate.gold == translate.fields["demonstration"] == "Der Hafen ist ruhig."
    assert (colour.prompt, colour.gold) == ("Name a colour.", "Blue")


def test_strings_of_hh_rlhf_are_split_into_turns_and_the_sides_where_they_part(tmp_path: Path) -> None:
    start = "\n\nHuman: An egg?\n\nAssistant: Boil it.\n\nHuman: How long?\n\nAssistant:"
    sample = first(tmp_path, {"chosen": f"{start} Eight minutes.", "rejected": f"{start} No idea."})
    assert sample.prompt == [user("An egg?"), assistant("Boil it."), user("How long?")]
    assert sample.fields == {"answers": ["Eight minutes.", "No idea."], "demonstration": "Eight minutes."}


def test_broken_rows_of_hh_rlhf_are_left_out_and_counted(tmp_path: Path) -> None:
    good = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
    broken = {**good, "rejected": "\n\nHuman: a\n\nAssistant:"}
    assert load(tmp_path, good, broken).dropped == {"empty_answers": 1}


@pytest.mark.skipif(not HH_FILE.is_file(), reason="../shared/data/hh_rlhf is not on this machine")
def test_the_published_file_of_hh_rlhf_is_read_whole() -> None:
    data = load_data(JsonlConfig(path=str(HH_FILE)))
    assert len(data.train) + len(data.heldout) + sum(data.dropped.values()) == 2312
    assert all(sample.prompt[-1]["role"] == "user" for sample in data.heldout)  # type: ignore[index,typeddict-item]


def test_whole_dialogues_are_split_where_they_part_and_all_that_follows_is_the_answer(tmp_path: Path) -> None:
    sides = {"chosen": ("4", "Yes."), "rejected": ("5", "No.")}
    row: dict[str, Any] = {
        name: [user("2+2?"), assistant(one), user("sure?"), assistant(two)] for name, (one, two) in sides.items()
    }
    answers = [[assistant(one), user("sure?"), assistant(two)] for one, two in sides.values()]
    for prompt in ({}, {"prompt": [user("2+2?")]}, {"prompt": "2+2?"}):
        sample = first(tmp_path, {**prompt, **row})
        assert sample.prompt == [user("2+2?")]
        assert sample.fields == {"answers": answers, "demonstration": answers[0]}
    named = first(tmp_path, {"prompt": [user("2+2?")], **row}, chosen_field="chosen", rejected_field="rejected")
    assert named.fields == {"answers": answers}


def test_sides_that_hold_the_answer_alone_follow_the_prompt(tmp_path: Path) -> None:
    row = {"prompt": [user("2+2?")], "chosen": [assistant("4")], "rejected": [assistant("5")]}
    assert first(tmp_path, row).prompt == [user("2+2?")]
    assert first(tmp_path, row).fields["answers"] == ["4", "5"]
    plain = first(tmp_path, {"prompt": "2+2=", "chosen": "4", "rejected": "5"})
    assert (plain.prompt, plain.fields["answers"]) == ("2+2=", ["4", "5"])


def test_turns_that_both_sides_share_beyond_the_prompt_belong_to_the_prompt(tmp_path: Path) -> None:
    shared = [user("hi"), assistant("Hello."), user("2+2?")]
    row = {"prompt": shared[:1], "chosen": [*shared, assistant("4")], "rejected": [*shared, assistant("5")]}
    assert first(tmp_path, row).prompt == shared


def test_a_system_turn_of_the_prompt_column_is_kept_where_the_sides_lack_it(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    row = {
        "prompt": [system, user("2+2?")],
        "chosen": [user("2+2?"), assistant("4")],
        "rejected": [user("2+2?"), assistant("5")],
    }
    assert first(tmp_path, row).prompt == [system, user("2+2?")]


def test_prompt_and_completion_and_messages_are_known_by_their_columns(tmp_path: Path) -> None:
    assert first(tmp_path, {"prompt": "2+2=", "completion": "4"}).fields == {"demonstration": "4"}
    tools = [{"type": "function", "function": {"name": "add"}}]
    sample = first(tmp_path, {"messages": [user("2+2?"), assistant("4")], "tools": tools})
    assert (sample.prompt, sample.gold, sample.tools) == ([user("2+2?")], "4", tools)


def test_a_recipe_that_names_a_field_means_it_whatever_the_columns_are_called(tmp_path: Path) -> None:
    row = {"instruction": "a", "output": "b", "prompt": "c", "answer": "d"}
    assert first(tmp_path, row, gold_field="answer").prompt == "c"
    assert first(tmp_path, row, format="alpaca").prompt == "a"


PART = [user("2+2?"), assistant("4")]


@pytest.mark.parametrize(
    ("row", "settings", "sentence"),
    [
        ({"conversations": [{"from": "cat", "value": "miaow"}]}, {}, r"line 2: turn 1 of 'conversations' needs `from`"),
        ({"conversations": []}, {}, "line 2: field 'conversations' must be a list of turns"),
        (
            {"conversations": [{"from": "function_call", "value": "{"}]},
            {},
            "turn 1 .* is a function_call that is no JSON",
        ),
        ({"input": "x"}, {"format": "alpaca"}, "line 2: field 'instruction' is missing"),
        (
            {"instruction": "x", "input": 3},
            {"format": "alpaca"},
            "line 2: field 'input' must be a text, or empty, got 3",
        ),
        ({"chosen": "hi", "rejected": "ho"}, {"format": "hh"}, r"field 'chosen' must be a dialogue that begins with"),
        ({"chosen": PART, "rejected": [user("3+2?"), assistant("5")]}, {"format": "pairs"}, "share no turn"),
        (
            {"chosen": [*PART, user("sure?"), assistant("Yes.")], "rejected": [*PART, user("no?"), assistant("No.")]},
            {"format": "pairs"},
            "line 2: the two sides part at turn 3 of 'chosen', which is not the assistant's",
        ),
        ({"chosen": PART, "rejected": [*PART, assistant("!")]}, {"format": "pairs"}, "'chosen' ends where the other"),
        ({"chosen": PART, "rejected": [user("2+2?"), assistant(" ")]}, {"format": "pairs"}, "that is not empty"),
        (
            {"messages": [user("2+2?"), assistant("")]},
            {"format": "messages"},
            "must end with an assistant's turn that is not empty, or",
        ),
    ],
)
def test_a_bad_row_of_a_shape_is_named_with_its_line_and_field(
    tmp_path: Path, row: Any, settings: dict[str, Any], sentence: str
) -> None:
    good: dict[str, Any] = {
        "conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}],
        "messages": PART,
        "instruction": "2+2?",
        "output": "4",
        "chosen": "\n\nHuman: a\n\nAssistant: b" if settings.get("format") == "hh" else PART,
        "rejected": "\n\nHuman: a\n\nAssistant: c"
        if settings.get("format") == "hh"
        else [user("2+2?"), assistant("5")],
    }
    shape = {"format": "sharegpt"} if "conversations" in row else settings
    with pytest.raises(DataError, match=sentence):
        load(tmp_path, good, row, **shape)


def test_the_shape_and_the_columns_that_nothing_reads_are_said(tmp_path: Path, caplog: Any) -> None:
    with caplog.at_level(logging.INFO):
        load(tmp_path, {"instruction": "a", "output": "b", "level": 3})
        load(tmp_path, {"prompt": "a", "answer": "b", "level": 3}, filters=[RowFilterConfig(field="level", at_least=1)])
    assert "train.jsonl: read as Alpaca (data.format=alpaca)" in caplog.text
    assert "no setting names the columns level; they travel in sample.fields" in caplog.text
    assert "no setting names the columns answer; they travel" in caplog.text


@pytest.mark.parametrize(
    ("row", "settings"),
    [
        ({"chosen": "\n\nHuman: a\n\nAssistant: b"}, {"prompt_field": "chosen"}),
        ({"prompt": "Q: 2+2? A: two and two are four, so 4", "g": "two and two are four, so 4"}, {"gold_field": "g"}),
    ],
)
def test_a_prompt_that_contains_its_own_answer_is_named(tmp_path: Path, caplog: Any, row: Any, settings: Any) -> None:
    with caplog.at_level(logging.WARNING):
        load(tmp_path, row, **settings)
    assert "in 2 of 2 rows the prompt contains its own answer" in caplog.text
    assert "train.jsonl:1 the first" in caplog.text


def test_system_turns_that_templates_treat_differently_are_counted(tmp_path: Path, caplog: Any) -> None:
    system = {"role": "system", "content": "Be brief."}
    with caplog.at_level(logging.WARNING):
        load(tmp_path, {"prompt": [user("a"), system]}, {"prompt": [system]}, {"prompt": [system, user("a")]})
    assert "in 2 of 4 rows a system turn is not the first, which some chat templates refuse" in caplog.text
    assert "in 1 of 4 rows a system turn is the whole prompt" in caplog.text


def test_filters_leave_rows_out_and_count_them(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "level": n, "topic": "maths" if n % 2 else "code"} for n in range(6)]
    filters = [RowFilterConfig(field="level", at_least=2), RowFilterConfig(field="topic", one_of=["maths"])]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = load_data(JsonlConfig(path=str(path), num_heldout=1, filters=filters))
    assert sorted(sample.prompt for sample in (*data.train, *data.heldout)) == ["q3", "q5"]  # type: ignore[type-var]
    assert data.dropped == {"low_level": 2, "other_topic": 2}
