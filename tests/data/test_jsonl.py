import json
import logging
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from troupe.config.own_data import JsonlConfig
from troupe.data import DataSet, load_data
from troupe.errors import DataError


def load(tmp_path: Path, *rows: Any, **settings: Any) -> DataSet:
    """The rows as training file; one more file holds out a sample, so that no row is split off."""
    path, heldout = tmp_path / "train.jsonl", tmp_path / "heldout.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    fixed: dict[str, Any] = {"prompt": "held out?", "messages": "held out?", "gold": "g", "key": "k", "solution": "s"}
    fixed |= {"better": "b", "worse": "w", "texts": ["b", "w"], "places": [1, 2], "lead": 1}
    heldout.write_text(json.dumps(fixed) + "\n")
    return load_data(JsonlConfig(path=str(path), heldout_path=str(heldout), **settings))


def test_a_string_prompt_stays_raw_text(tmp_path: Path) -> None:
    (sample,) = load(tmp_path, {"prompt": "2+2=", "gold": 4}, gold_field="gold").train
    assert sample.prompt == "2+2="
    assert sample.gold == "4"
    assert sample.fields["demonstration"] == "4"
    assert sample.sample_id == "train.jsonl:1"


def test_a_system_prompt_makes_a_conversation_of_a_string(tmp_path: Path) -> None:
    (sample,) = load(tmp_path, {"prompt": "2+2?"}, system_prompt="Answer briefly.").train
    assert sample.prompt == [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": "2+2?"}]


def test_the_assistants_last_turn_is_the_answer_and_never_part_of_the_prompt(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    (sample,) = load(tmp_path, {"messages": turns}, prompt_field="messages").train
    assert sample.prompt == turns[:1]
    assert sample.gold == sample.fields["demonstration"] == "4"


def test_ids_golds_and_demonstrations_come_from_the_named_fields_and_the_rest_travels_along(tmp_path: Path) -> None:
    row = {"key": "a-1", "prompt": "2+2?", "gold": "4", "solution": "2+2=4", "level": 1}
    settings = {"id_field": "key", "gold_field": "gold", "demonstration_field": "solution"}
    (sample,) = load(tmp_path, row, **settings).train
    assert (sample.sample_id, sample.gold) == ("a-1", "4")
    assert sample.fields == {"level": 1, "demonstration": "2+2=4"}


def test_without_a_held_out_file_the_seed_decides_the_split(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"prompt {i}"}) + "\n" for i in range(20)))
    first, again, other = (load_data(JsonlConfig(path=str(path), num_heldout=5, seed=s)) for s in (0, 0, 1))
    assert first == again
    assert {s.sample_id for s in first.heldout} != {s.sample_id for s in other.heldout}
    assert len(first.heldout) == 5
    assert {s.sample_id for s in (*first.train, *first.heldout)} == {f"all.jsonl:{n}" for n in range(1, 21)}


@pytest.mark.parametrize(
    ("row", "settings", "sentence"),
    [
        ({"question": "x"}, {}, r"train\.jsonl line 2: field 'prompt' is missing; the line has question"),
        ({"prompt": " "}, {}, r"line 2: field 'prompt' must be a text or a list of messages, not empty, got ' '"),
        ({"prompt": []}, {}, r"line 2: field 'prompt' must be a text or a list of messages"),
        ({"prompt": [{"role": "bot", "content": "x"}]}, {}, r"line 2: turn 1 of 'prompt' needs a role \(system"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, {}, "assistant's turn alone; there is no prompt"),
        ({"prompt": "x"}, {"gold_field": "gold"}, "line 2: field 'gold' is missing"),
        (
            {"prompt": "x", "gold": None},
            {"gold_field": "gold"},
            "field 'gold' must be a text that is not empty, got None",
        ),
        ("{'prompt': 1}", {}, "line 2: not valid JSON"),
        ("[1]", {}, r"line 2: expected a JSON object with fields, got '\[1\]'"),
    ],
)
def test_a_bad_line_is_named_with_its_field(tmp_path: Path, row: Any, settings: dict[str, str], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        load(tmp_path, {"prompt": "good", "gold": "good"}, row, **settings)


PAIR = {"chosen_field": "better", "rejected_field": "worse"}


def test_two_fields_make_a_pair_and_travel_only_as_answers(tmp_path: Path) -> None:
    row = {"prompt": "2+2?", "better": "4", "worse": "5", "lead": 2, "level": 1}
    (sample,) = load(tmp_path, row, **PAIR, margin_field="lead").train
    assert sample.fields == {"answers": ["4", "5"], "margin": 2, "level": 1}


def test_a_side_may_be_messages_of_which_the_last_is_the_answer(tmp_path: Path) -> None:
    question = {"role": "user", "content": "2+2?"}
    sides = {
        name: [question, {"role": "assistant", "content": text}] for name, text in (("better", "4"), ("worse", "5"))
    }
    (sample,) = load(tmp_path, {"prompt": [question], **sides}, **PAIR, demonstration_field="better").train
    assert sample.prompt == [question]
    assert sample.fields == {"answers": ["4", "5"], "demonstration": "4"}


def test_a_list_of_answers_comes_best_first_by_its_ranks(tmp_path: Path) -> None:
    row = {"prompt": "2+2?", "texts": ["5", "4", "6"], "places": [2, 1, 2]}
    (sample,) = load(tmp_path, row, answers_field="texts", ranks_field="places").train
    assert sample.fields == {"answers": ["4", "5", "6"], "ranks": [1, 2, 2]}


def test_pairs_that_are_equal_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "2+2?", "better": "4", "worse": worse} for worse in ("4", "5", "4")]
    data = load(tmp_path, *rows, **PAIR)
    assert [sample.sample_id for sample in data.train] == ["train.jsonl:2"]
    assert data.dropped == {"equal_answers": 2}


@pytest.mark.parametrize(
    ("row", "settings", "sentence"),
    [
        ({"better": "4"}, PAIR, r"train\.jsonl line 2: field 'worse' is missing; the line has prompt, better"),
        ({"better": "4", "worse": " "}, PAIR, "line 2: field 'worse' must be a text that is not empty, got ' '"),
        (
            {"better": "4", "worse": [{"role": "user", "content": "2+2?"}]},
            PAIR,
            "line 2: the messages in 'worse' must end with an assistant's turn that is not empty",
        ),
        ({"texts": ["4"]}, {"answers_field": "texts"}, r"train\.jsonl:2: a preference needs a list of two answers"),
        (
            {"texts": ["4", "5"], "places": [1]},
            {"answers_field": "texts", "ranks_field": "places"},
            r"train\.jsonl:2: 1 ranks for 2 answers",
        ),
    ],
)
def test_a_bad_preference_is_named_with_its_line(
    tmp_path: Path, row: dict[str, Any], settings: dict[str, str], sentence: str
) -> None:
    good = {"prompt": "2+2?", "better": "4", "worse": "5", "texts": ["4", "5"], "places": [1, 2]}
    with pytest.raises(DataError, match=sentence):
        load(tmp_path, good, {"prompt": "2+2?", **row}, **settings)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"chosen_field": "better"}, "chosen_field and rejected_field belong together"),
        ({**PAIR, "answers_field": "texts"}, "name answers_field, or chosen_field and rejected_field, not both"),
        ({"ranks_field": "places"}, "ranks_field ranks the answers of answers_field; name that too"),
        ({"margin_field": "lead"}, "margin_field needs the answers it is about"),
    ],
)
def test_fields_of_a_preference_that_do_not_go_together_are_refused(settings: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        JsonlConfig(path="pairs.jsonl", **settings)


def test_an_empty_or_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl is empty"):
        load(tmp_path)
    with pytest.raises(DataError, match="there is no file"):
        load_data(JsonlConfig(path=str(tmp_path / "nowhere.jsonl")))


def test_too_few_samples_for_the_split_are_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "few.jsonl"
    path.write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    with pytest.raises(DataError, match=r"2 samples, too few different ones to hold out 2 .* lower data\.num_heldout"):
        load_data(JsonlConfig(path=str(path), num_heldout=2))


def test_an_id_that_two_samples_share_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 samples have the id 'a'"):
        load(tmp_path, {"prompt": "x", "key": "a"}, {"prompt": "y", "key": "a"}, id_field="key")


def test_held_out_prompts_that_were_trained_on_are_counted_in_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        load(tmp_path, {"prompt": "held out?"}, {"prompt": "x"})
    assert "1 of 1 held-out prompts also occur in training" in caplog.text
