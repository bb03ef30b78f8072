import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.data.packages import FIXTURES
from troupe.config.own_data import MessagesConfig
from troupe.data import DataSet, load_data
from troupe.errors import DataError

JOKES = FIXTURES / "messages"


def load(**settings: Any) -> DataSet:
    paths = {"path": str(JOKES / "train.jsonl"), "heldout_path": str(JOKES / "val.jsonl")}
    return load_data(MessagesConfig(**paths, **settings))


def write(path: Path, *turns: list[tuple[str, str]]) -> str:
    rows = [{"messages": [{"role": role, "content": text} for role, text in each]} for each in turns]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_last_assistant_turn_is_the_gold_and_the_others_are_the_prompt() -> None:
    sample = load().train[1]
    assert sample.sample_id == "train.jsonl:2"
    assert [message["role"] for message in sample.prompt] == ["system", "user"]  # type: ignore[index]
    assert sample.gold == "Je ménage mon entrée, le décor n'était pas prêt."
    assert sample.fields["demonstration"] == sample.gold
    assert sample.fields["scorer_prompt"] == sample.prompt


def test_an_instruction_is_the_policys_alone_and_then_the_gold_is_no_demonstration() -> None:
    plain, asked = load().train[0], load(instruction="Reason, then end with 'In summary:' and a hint.").train[0]
    assert asked.prompt[-1]["content"] == (  # type: ignore[index]
        "Mon voisin dit que je chante faux.\n\nReason, then end with 'In summary:' and a hint."
    )
    assert asked.fields["scorer_prompt"] == plain.prompt
    assert "demonstration" not in asked.fields
    assert asked.gold == plain.gold


def test_earlier_assistant_turns_stay_in_the_prompt(tmp_path: Path) -> None:
    turns = [("user", "Hi"), ("assistant", "Hello"), ("user", "A joke?"), ("assistant", "No.")]
    path = write(tmp_path / "chats.jsonl", turns, turns[:2])
    data = load_data(MessagesConfig(path=path, num_heldout=1))
    (sample,) = [sample for sample in (*data.train, *data.heldout) if sample.sample_id == "chats.jsonl:1"]
    assert [message["content"] for message in sample.prompt] == ["Hi", "Hello", "A joke?"]  # type: ignore[index]
    assert sample.gold == "No."


@pytest.mark.parametrize(
    ("turns", "sentence"),
    [
        ([("user", "Hi")], r"chats\.jsonl:2: 'messages' must end with an assistant's turn that is not empty"),
        ([("user", "Hi"), ("assistant", " ")], r"line 2: the messages in 'messages' must end with an assistant's turn"),
        ([("system", "Be brief."), ("assistant", "Hm.")], "must have a user's turn before the assistant's last one"),
    ],
)
def test_a_chat_without_question_or_answer_is_named(tmp_path: Path, turns: Any, sentence: str) -> None:
    path = write(tmp_path / "chats.jsonl", [("user", "Hi"), ("assistant", "Hello")], turns)
    with pytest.raises(DataError, match=sentence):
        load_data(MessagesConfig(path=path, num_heldout=1))


def test_a_template_without_a_place_for_the_plan_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"the template needs \{context\} where the plan goes"):
        MessagesConfig(path="x", context_template="Notes:")
