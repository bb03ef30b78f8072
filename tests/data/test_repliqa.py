import json
import logging
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.data.packages import FIXTURES
from troupe.chat import prompt_text
from troupe.config.published_data import RepliqaConfig
from troupe.data import DataSet, load_data
from troupe.data.lines import write_rows
from troupe.errors import DataError


def load(path: Path = FIXTURES / "repliqa", **settings: Any) -> DataSet:
    return load_data(RepliqaConfig(path=str(path), **{"num_heldout": 1, **settings}))


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FIXTURES / "repliqa" / "repliqa_0.jsonl").read_text().splitlines()]


def ids(data: DataSet) -> list[str]:
    return [sample.sample_id for sample in (*data.heldout, *data.train)]


def test_the_rows_of_a_document_are_one_sample_wherever_they_stand() -> None:
    data = load()
    assert sorted(ids(data)) == [f"repliqa/{name}" for name in ("ferrylark", "hollisplum", "kvornmill", "tollbridge")]
    (mill,) = [sample for sample in (*data.heldout, *data.train) if sample.sample_id == "repliqa/kvornmill"]
    assert [question["question_id"] for question in mill.fields["questions"]] == [
        f"kvornmill-q{i}" for i in range(1, 6)
    ]
    assert [question["answerable"] for question in mill.fields["questions"]] == [True] * 4 + [False]
    assert mill.fields["document"].startswith("Kvorn Mill Turns Again")
    assert mill.gold is None


def test_the_prompt_holds_the_document_and_the_limit_and_nothing_of_what_will_be_asked() -> None:
    for sample in load().train:
        prompt = prompt_text(sample)
        assert sample.fields["document"] in prompt
        assert "3000 characters at most" in prompt
        rest = prompt.replace(sample.fields["document"], "")
        for question in sample.fields["questions"]:
            assert question["question"] not in prompt
            assert question["answer"] not in rest


def test_the_limit_may_count_words_or_stay_untold_as_in_the_original() -> None:
    assert "350 words at most" in prompt_text(load(limit=350, limit_unit="words").train[0])
    assert "at most" not in prompt_text(load(limit=None).train[0])


def test_the_seed_orders_the_documents_and_the_first_are_held_out_whatever_is_trained_on() -> None:
    every, fewer = load(num_heldout=2), load(num_heldout=2, num_train=1)
    assert ids(fewer) == ids(every)[:3]
    assert len({tuple(ids(load(seed=seed))) for seed in range(8)}) > 1
    assert ids(load(seed=3)) == ids(load(seed=3))


def test_long_documents_are_dropped_and_counted_or_cut_with_what_is_judged(caplog: pytest.LogCaptureFixture) -> None:
    lengths = {row["document_id"]: len(row["document_extracted"]) for row in rows()}
    limit = sorted(lengths.values())[1]  # two documents are longer
    assert load(max_document_chars=limit).dropped == {"long_documents": 2}
    with caplog.at_level(logging.INFO):
        data = load(max_document_chars=limit, long_documents="cut")
    assert "cut 2 documents" in caplog.text
    assert data.dropped == {}
    assert all(len(sample.fields["document"]) <= limit for sample in (*data.train, *data.heldout))


def test_the_share_of_unanswerable_questions_is_told_and_a_pattern_without_a_match_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        load()
        assert "20 questions, 20 % of them without an answer" in caplog.text
        load(unanswerable="nobody knows")
    assert "check data.unanswerable" in caplog.text


def test_summaries_of_another_model_become_demonstrations_by_id(tmp_path: Path) -> None:
    plain = load()
    trained = plain.train[0].sample_id
    file = tmp_path / "teacher.jsonl"
    known = (trained, plain.heldout[0].sample_id, "repliqa/elsewhere")
    write_rows(file, [{"sample_id": name, "text": "A summary."} for name in known])
    data = load(demonstrations=str(file))
    assert data.heldout[0].fields["demonstration"] == "A summary."
    assert [(sample.sample_id, sample.fields["demonstration"]) for sample in data.train] == [(trained, "A summary.")]
    assert data.dropped == {"no_demonstration": 2}


def test_bad_data_is_refused_in_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    first, second = rows()[:2]
    write_rows(file, [first, {**second, "document_id": first["document_id"], "document_extracted": "Another text."}])
    with pytest.raises(DataError, match="has another text here than at"):
        load(file)
    write_rows(file, [{name: value for name, value in first.items() if name != "question"}])
    with pytest.raises(DataError, match="line 1: field 'question' is missing"):
        load(file)
    with pytest.raises(DataError, match="4 documents, too few to hold out 4"):
        load(num_heldout=4)
    with pytest.raises(ValidationError, match="must be a regular expression"):
        RepliqaConfig(unanswerable="(")
