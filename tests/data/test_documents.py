"""Documents of packages written here: what is asked of them is known by hand, and a judge by rules finds it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from troupe.chat import prompt_text
from troupe.config.made_data import DocumentsConfig
from troupe.data.dataset import DataSet
from troupe.data.documents import Fact, load_documents, split_facts
from troupe.records import Branch, Sample
from troupe.rewards.judge_qa import JudgeQA

TOPICS = ("looms", "ferries", "mosses", "organs", "kites", "clocks", "bridges", "stoves")


def function(topic: str, number: int) -> str:
    """A docstring of 4 facts in Google's form, in words that no other (topic, number) has."""
    own = f"{topic}{number}"
    facts = "\n".join(
        f"        {own}{letter} (int): the {letter}most {own} shown beside row {number} of {own}{letter}table."
        for letter in "abc"
    )
    return (
        f'def f{number}(x):\n    """Arrange {topic} by plan {number} of them.\n\n    Those of {own}plan are '
        f"left alone, and nobody counts them twice.\n\n    Args:\n{facts}\n\n    Returns:\n"
        f'        unrelated\n    """\n\n\n'
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_documents(tmp_path / "source")


def write_documents(root: Path) -> Path:
    """Eight packages of four documents each."""
    for topic in TOPICS:
        package = root / topic
        package.mkdir(parents=True)
        (package / "module.py").write_text("".join(function(topic, number) for number in range(4)))
    return root


def load(source: Path, **settings: Any) -> DataSet:
    config = DocumentsConfig(roots=[str(source)], **{"num_heldout": 8, "unanswerable_fraction": 0, **settings})
    return load_documents(config, source.parent / "cache")


def score(sample: Sample, text: str, **args: Any) -> float | None:
    reward = JudgeQA(judge="rules", score="fraction", **args)
    return asyncio.run(reward(sample, Branch(token_ids=(), text=text))).value


def test_a_document_is_the_summary_the_prose_and_a_line_for_each_parameter(source: Path) -> None:
    data = load(source)
    sample = next(s for s in (*data.train, *data.heldout) if s.sample_id == "documents/looms/module.py:2")
    assert sample.fields["document"].splitlines() == [
        "Arrange looms by plan 0 of them.",
        "Those of looms0plan are left alone, and nobody counts them twice.",
        *(f"looms0{letter}: the {letter}most looms0 shown beside row 0 of looms0{letter}table." for letter in "abc"),
    ]
    assert sample.fields["questions"][1] == {
        "question": "What is looms0b?",
        "answer": "the bmost looms0 shown beside row 0 of looms0btable",
        "answerable": True,
    }


def test_the_prompt_is_the_document_and_the_limit(source: Path) -> None:
    for sample in load(source, limit_chars=120).train:
        assert prompt_text(sample) == f"Summarise in 120 characters:\n{sample.fields['document']}"
        assert all(question["question"] not in prompt_text(sample) for question in sample.fields["questions"])


def test_packages_are_held_out_whole_and_the_same_settings_give_the_same_samples(source: Path) -> None:
    data = load(source)
    trained, held = ({sample.fields["package"] for sample in side} for side in (data.train, data.heldout))
    assert trained.isdisjoint(held)
    assert trained | held == set(TOPICS)
    assert len(data.heldout) == 8
    again = load(source)
    assert (again.train, again.heldout) == (data.train, data.heldout)


def test_the_whole_document_answers_every_question_and_its_line_answers_one(source: Path) -> None:
    for sample in load(source).heldout:
        assert score(sample, sample.fields["document"]) == 1.0
        lines = sample.fields["document"].splitlines()
        assert score(sample, lines[-1]) == pytest.approx(1 / 3)
        assert score(sample, "\n".join(lines[:2])) == 0.0


def test_an_unanswerable_question_asks_for_what_only_another_document_tells(source: Path) -> None:
    data = load(source, unanswerable_fraction=0.5)
    questions = [(sample, question) for sample in data.train for question in sample.fields["questions"]]
    unknown = [(sample, question) for sample, question in questions if not question["answerable"]]
    assert 0.2 < len(unknown) / len(questions) < 0.5  # one of three is always answerable, half of the others is
    for sample, question in unknown:
        assert question["question"].removeprefix("What is ").rstrip("?") not in sample.fields["document"]
        assert score(sample, sample.fields["document"]) == 1.0  # the judge finds that the document does not say


def test_a_demonstration_keeps_to_the_limit_and_copies_lines_in_their_order(source: Path) -> None:
    for sample in load(source, limit_chars=150).train:
        lines, chosen = sample.fields["document"].splitlines(), sample.fields["demonstration"].splitlines()
        assert len(sample.fields["demonstration"]) <= 150
        assert [line for line in lines if line in chosen] == chosen


def test_as_lines_a_summary_is_the_numbers_of_lines_that_fit_and_the_judge_reads_those_lines(source: Path) -> None:
    for sample, plain in zip(load(source, form="lines").train, load(source).train, strict=True):
        assert {**sample.fields, "demonstration": ""} == {**plain.fields, "demonstration": ""}
        lines = sample.fields["document"].splitlines()
        numbered = [f"{number} {line}" for number, line in enumerate(lines, 1)]
        assert prompt_text(sample).splitlines()[1:] == numbered
        chosen = [lines[int(number) - 1] for number in sample.fields["demonstration"].split()]
        assert "\n".join(chosen) == plain.fields["demonstration"]
        assert score(sample, f"{len(lines)} 9", extract=True) == pytest.approx(1 / 3)  # there is no line 9
        assert score(sample, "1 2 3 4 5", extract=True, max_length=len(sample.fields["document"])) == 1.0
        assert score(sample, "1 2 3 4 5", extract=True, max_length=len(sample.fields["document"]) - 1) == 0.0


def test_a_document_keeps_to_its_length_and_needs_enough_questions(source: Path) -> None:
    longest = max(len(sample.fields["document"]) for sample in load(source).train)
    short = load(source, max_prompt_chars=longest - 1, min_questions=1, num_heldout=4)
    assert all(len(sample.fields["document"]) < longest for sample in short.train)
    with pytest.raises(ValidationError, match=r"min_questions \(6\) must be at most max_questions \(5\)"):
        DocumentsConfig(min_questions=6)


@pytest.mark.parametrize(
    "text",
    [
        "Rows are skipped.\n\nParameters\n----------\naxis : int, optional\n    Axis along which they are counted. "
        "More.\n",
        "Rows are skipped.\n\nArgs:\n    axis (int, optional): Axis along which\n        they are counted. More.\n   "
        " n: rows\n",
        "Rows are skipped.\n\n:param int axis: Axis along which they are counted. More.\n:param n: rows\n",
    ],
    ids=["numpy", "google", "sphinx"],
)
def test_three_forms_of_docstrings_tell_the_same_facts(text: str) -> None:
    assert split_facts(text) == ("Rows are skipped.", [Fact(name="axis", text="Axis along which they are counted")])


def test_a_colon_without_a_header_is_no_fact() -> None:
    text = "Notes follow.\n\n    see: the other function of this long module\n"
    assert split_facts(text) == (text, [])
