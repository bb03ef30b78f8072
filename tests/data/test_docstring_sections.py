from pathlib import Path
from typing import Any

import pytest

from tests.data.packages import write_paragraphs
from troupe.config.made_data import DocstringSectionsConfig
from troupe.data import DataSet
from troupe.data.docstring_sections import load_docstring_sections, paragraphs_of
from troupe.records import Sample


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_paragraphs(tmp_path / "source")


def load(source: Path, **settings: Any) -> DataSet:
    config = DocstringSectionsConfig(**{"roots": [str(source)], "num_heldout": 10, "plan_share": 1.0, **settings})
    return load_docstring_sections(config, cache=source.parent / "cache")


def text(sample: Sample) -> str:
    return sample.prompt[0]["content"]  # type: ignore[index,return-value]


def test_the_prompt_is_the_docstring_up_to_a_paragraph_and_the_gold_is_that_paragraph(source: Path) -> None:
    sample = next(s for s in load(source).train if s.sample_id.endswith("/module.py:2"))
    package = sample.fields["package"]
    whole = (source / package / "module.py").read_text().split('"""')[1].replace("\n    ", "\n")
    before, request = text(sample).rsplit("\n\n", 1)
    assert f"{before}\n\n{sample.gold}" in whole
    assert before.startswith(f"Describe {package} with rule 0.")
    assert request == "Name what comes next."


def test_every_prompt_and_gold_keeps_its_limits(source: Path) -> None:
    data = load(source, max_prompt_chars=150, min_gold_chars=60, max_gold_chars=250)
    requests = len("\n\nName what comes next.")
    for sample in (*data.train, *data.heldout):
        assert len(text(sample)) <= 150 + requests
        assert 60 <= len(str(sample.gold)) <= 250


def test_held_out_packages_occur_nowhere_in_training(source: Path) -> None:
    data = load(source)
    train, heldout = ({sample.fields["package"] for sample in side} for side in (data.train, data.heldout))
    assert len(heldout) >= 2
    assert not train & heldout


def test_a_plan_names_words_of_the_gold_behind_the_marker_for_the_asked_share_of_training_alone(source: Path) -> None:
    data = load(source, plan_words=3)
    for sample in data.train:
        assert sample.fields["demonstration"].startswith("In summary: ")
        words = sample.fields["demonstration"].removeprefix("In summary: ").split(", ")
        assert 1 <= len(words) <= 3
        assert all(word in str(sample.gold).lower() for word in words)
    assert not any("demonstration" in sample.fields for sample in data.heldout)
    some = sum("demonstration" in sample.fields for sample in load(source, plan_share=0.5).train)
    assert 0 < some < len(data.train)
    assert not any("demonstration" in sample.fields for sample in load(source, plan_share=0).train)


def test_both_tasks_have_the_same_golds_and_scorer_prompts(source: Path) -> None:
    plan, section = load(source), load(source, task="section", plan_share=0)
    for one, other in zip((*plan.train, *plan.heldout), (*section.train, *section.heldout), strict=True):
        assert (one.sample_id, one.gold, one.fields["scorer_prompt"]) == (
            other.sample_id,
            other.gold,
            other.fields["scorer_prompt"],
        )
        assert other.prompt == other.fields["scorer_prompt"]
        assert other.fields["demonstration"] == other.gold


def test_a_plan_in_the_section_task_stands_where_the_frozen_model_will_find_it(source: Path) -> None:
    for sample in load(source, task="section").train:
        scorer = sample.fields["scorer_prompt"][0]["content"]
        plan = text(sample).removeprefix(scorer).removeprefix("\n\nKey words: ")
        assert text(sample) == scorer + sample.fields["context_template"].replace("{context}", plan)


def test_headings_belong_to_what_stands_under_them() -> None:
    docstring = "What it does.\n\nArgs:\n\n  x: a number\n\nNotes\n-----\n\nIt is slow.\n\nSee also\n========"
    assert paragraphs_of(docstring) == ["What it does.", "Args:\n  x: a number", "Notes\n-----\nIt is slow."]


def test_docstrings_without_a_fitting_paragraph_are_counted(source: Path) -> None:
    (source / "parsers" / "short.py").write_text(f'"""Describe nothing in particular here.\n\n{"x" * 300}\n"""\n')
    assert load(source, max_gold_chars=250).dropped == {"no_paragraph_of_that_length": 1}
