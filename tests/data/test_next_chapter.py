import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.data.packages import FIXTURES
from troupe.config.published_data import NextChapterConfig
from troupe.data import DataSet, load_data
from troupe.errors import DataError
from troupe.records import Sample

STORIES = FIXTURES / "next_chapter"


def load(**settings: Any) -> DataSet:
    """The fixtures, whose chapters have about sixty words."""
    return load_data(NextChapterConfig(**{"path": str(STORIES), "min_chapter_words": 20, **settings}))


def row(**changes: Any) -> dict[str, Any]:
    """A chapter of 300 words in a story that has been told in 4."""
    fields: dict[str, Any] = {
        "story_id": "s",
        "chapter_index": 2,
        "story_text": "It was all quiet.",
        "last_n_chapters": "It was all quiet.",
        "prior_plot_summary": "Nothing happens.",
        "high_level_plot_summary": "Little happens.",
        "character_sheets": {"Ada": "Waits."},
        "next_chapter_synopsis": "Something happens.",
        "next_chapter_header": "Three",
        "next_chapter": "word " * 300,
    }
    return {**fields, **changes}


def write(directory: Path, train: list[dict[str, Any]], heldout: list[dict[str, Any]], split: str = "val") -> str:
    directory.mkdir(exist_ok=True)
    for name, rows in (("train", train), (split, heldout)):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    return str(directory)


def user_turn(sample: Sample) -> str:
    return sample.prompt[-1]["content"]  # type: ignore[index,return-value]


def test_a_row_becomes_sections_a_request_and_the_chapter_as_gold() -> None:
    sample = load().train[0]
    assert sample.sample_id == "next_chapter/lighthouse/2"
    assert [message["role"] for message in sample.prompt] == ["system", "user"]  # type: ignore[index]
    headings = [line[4:] for line in user_turn(sample).splitlines() if line.startswith("### ")]
    assert headings == [
        "Previous Chapters",
        "Plot Up to Here",
        "Plot of the Whole Story",
        "Characters",
        "Synopsis of the Next Chapter",
        "Heading of the Next Chapter",
        "Instructions",
    ]
    assert "**Marrow**\nThe ferryman. Says little" in user_turn(sample)
    assert str(sample.gold).startswith("Marrow would not look at the bundle.")
    assert (sample.fields["story_id"], sample.fields["chapter_index"], sample.fields["genre"]) == (
        "lighthouse",
        2,
        "mystery",
    )


def test_the_policy_is_asked_for_a_plan_behind_the_marker_and_the_scorer_for_the_chapter() -> None:
    sample = load(marker="Detailed Plan:").train[0]
    (_, scorer_turn) = sample.fields["scorer_prompt"]
    assert "Detailed Plan:" in user_turn(sample)
    assert "Detailed Plan:" not in scorer_turn["content"]
    # Both know the same sections; only what is asked differs.
    assert user_turn(sample).partition("### Instructions")[0] == scorer_turn["content"].partition("### Instructions")[0]
    assert "demonstration" not in sample.fields


def test_the_chapter_task_asks_what_the_scorer_is_asked_and_demonstrates_the_chapter() -> None:
    plan, chapter = load().train[0], load(task="chapter").train[0]
    assert chapter.prompt == plan.fields["scorer_prompt"] == chapter.fields["scorer_prompt"]
    assert chapter.fields["demonstration"] == chapter.gold == plan.gold


def test_sections_are_switched_and_ordered_by_the_recipe() -> None:
    turn = user_turn(load(sections=["next_chapter_synopsis", "last_n_chapters"]).train[0])
    assert turn.index("### Synopsis of the Next Chapter") < turn.index("### Previous Chapters")
    assert "### Characters" not in turn
    with pytest.raises(ValidationError, match="name each section once"):
        NextChapterConfig(path="x", sections=["story_text", "story_text"])


def test_without_a_system_role_its_text_opens_the_users_turn() -> None:
    with_role, without = load().train[0], load(system_role=False).train[0]
    assert [message["role"] for message in without.prompt] == ["user"]  # type: ignore[index]
    assert user_turn(without) == f"{with_role.prompt[0]['content']}\n\n{user_turn(with_role)}"  # type: ignore[index]


def test_lists_of_chapters_and_empty_sections_are_read(tmp_path: Path) -> None:
    path = write(
        tmp_path, [row(last_n_chapters=["One.", "Two."], next_chapter_header=None)], [row(story_id="other")], "test"
    )
    turn = user_turn(load_data(NextChapterConfig(path=path, heldout_split="test")).train[0])
    assert "### Previous Chapters\nOne.\n\nTwo.\n\n" in turn
    assert "### Heading of the Next Chapter" not in turn


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        # 200 < words(chapter) < 5000, words(story) < 5000, words(messages) < 10000, chapter_index >= 2.
        ({"next_chapter": "word " * 200}, "short_chapters"),
        ({"next_chapter": "word " * 5000}, "long_chapters"),
        ({"story_text": "word " * 5000}, "long_stories"),
        ({"prior_plot_summary": "word " * 9999}, "long_prompts"),
        ({"chapter_index": 1}, "early_chapters"),
        ({"prior_plot_summary": "As it was: " + "word " * 300}, "gold_in_prompt"),
    ],
)
def test_the_published_filters_leave_out_and_count(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    kept = row(story_id="kept", next_chapter="word " * 201, story_text="word " * 4999)
    path = write(tmp_path, [kept, row(**changes)], [row(story_id="other", next_chapter="word " * 4999)])
    data = load_data(NextChapterConfig(path=path))
    assert data.dropped == {reason: 1}
    assert [sample.sample_id for sample in (*data.train, *data.heldout)] == [
        "next_chapter/kept/2",
        "next_chapter/other/2",
    ]


def test_a_story_on_both_sides_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = write(tmp_path, [row()], [row(chapter_index=3)])
    with pytest.raises(DataError, match=r"1 stories are in training and held out \('s' the first\).*prepare_data\.py"):
        load_data(NextChapterConfig(path=path))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"chapter_index": "two"}, r"train\.jsonl line 1: field 'chapter_index' must be a whole number, got 'two'"),
        ({"next_chapter": " "}, "line 1: field 'next_chapter' must be a text that is not empty"),
        ({"character_sheets": {"Ada": 3}}, "line 1: field 'character_sheets' must be a text, a list of texts or texts"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_field(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    path = write(tmp_path, [row(**changes)], [row(story_id="other")])
    with pytest.raises(DataError, match=sentence):
        load_data(NextChapterConfig(path=path))


def test_a_section_that_a_row_lacks_is_an_error_unless_it_is_not_asked_for(tmp_path: Path) -> None:
    incomplete = {name: value for name, value in row().items() if name != "character_sheets"}
    path = write(tmp_path, [incomplete], [{**incomplete, "story_id": "other"}])
    with pytest.raises(DataError, match="field 'character_sheets' is missing"):
        load_data(NextChapterConfig(path=path))
    assert load_data(NextChapterConfig(path=path, sections=["last_n_chapters"])).train
