from typing import Any

from tests.data.packages import FIXTURES
from troupe.config.published_data import SmolTalkConfig
from troupe.data import DataSet, load_data


def load(**settings: Any) -> DataSet:
    return load_data(SmolTalkConfig(path=str(FIXTURES / "smoltalk"), num_heldout=2, **settings))


def ids(data: DataSet) -> list[str]:
    return [sample.sample_id for sample in data.train]


def test_the_last_turn_of_a_conversation_is_gold_and_demonstration_and_the_rest_is_the_prompt() -> None:
    sample = load().train[1]
    assert sample.sample_id == "smoltalk/train/1"
    assert sample.prompt == [
        {"role": "user", "content": "Which gas do plants take in?"},
        {"role": "assistant", "content": "Carbon dioxide."},
        {"role": "user", "content": "And at night?"},
    ]
    assert sample.gold == sample.fields["demonstration"] == "At night they breathe out, as animals do."
    assert sample.fields["source"] == "everyday-conversations"


def test_a_conversation_without_an_answer_is_left_out_and_counted_and_moves_no_id() -> None:
    data = load()
    assert ids(data) == [f"smoltalk/train/{i}" for i in (0, 1, 2, 3, 5)]  # row 4 ends with a blank answer
    assert data.dropped == {"no_answer": 1}


def test_single_turn_keeps_exactly_one_question_and_one_answer() -> None:
    data = load(single_turn=True)
    # Row 1 has four messages, row 2 a system message, row 4 no answer; of the held-out rows the second has four.
    assert ids(data) == [f"smoltalk/train/{i}" for i in (0, 3, 5)]
    assert [sample.sample_id for sample in data.heldout] == ["smoltalk/test/0"]
    assert data.dropped == {"more_than_one_turn": 3, "no_answer": 1}


def test_long_prompts_are_left_out_by_the_characters_of_all_their_turns() -> None:
    # Row 1: 28 + 15 + 13 = 56 characters.
    assert "smoltalk/train/1" in ids(load(max_prompt_chars=56))
    assert "smoltalk/train/1" not in ids(load(max_prompt_chars=55))
