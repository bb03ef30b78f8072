"""Stories become rows of `next_chapter`: a model on loopback writes the sections, and each is asked for once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.rewards.chat_server import Answer, ChatServer
from troupe.chat import prompt_text
from troupe.config.published_data import NextChapterConfig
from troupe.config.tools import PrepareConfig
from troupe.data import load_data
from troupe.data.story_sections import sheets_of
from troupe.errors import ConfigError, DataError, RewardError
from troupe.files import read_lines
from troupe.jobs.prepare_data import prepare


def chapter(story: str, number: int) -> str:
    return f"In chapter {number} of {story} somebody finds thing-{story}-{number} and keeps it."


def write(body: dict[str, Any], number: int) -> Answer | str:
    """What an honest model writes: it names the things that it has read of."""
    (message,) = body["messages"]
    asked = message["content"]
    things = " ".join(re.findall(r"thing-\w+-\d+", asked))
    if "Write a sheet" in asked:
        return "\n".join(f"### {name}\nKnows {things}." for name in ("Ines", "**Marrow**", "Otto"))
    kind = "plot" if "plot of the whole" in asked else "synopsis" if "still to write it" in asked else "summary"
    return f"  {kind} of {things}\n"


def write_stories(path: Path, stories: dict[str, int]) -> str:
    lines = [
        {"story_id": story, "genre": "mystery",
         "chapters": [{"header": "Dawn", "text": chapter(story, 0)}, *(chapter(story, n) for n in range(1, count))]}
        for story, count in stories.items()
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer(write).running() as running:
        yield running


def recipe(directory: Path, server: ChatServer, **given: Any) -> PrepareConfig:
    endpoint = {"base_url": server.url, "model": "m", "api_key_env": None, "backoff_s": 0.01, "patience_s": 0.2}
    settings = {
        "file": write_stories(directory / "books.jsonl", {"a": 6, "b": 5, "c": 5, "tale": 4}),
        "sections": {"endpoint": {**endpoint, "cache": str(directory / "replies.sqlite")}},
        "output": str(directory / "out"),
    }
    return PrepareConfig(**(settings | given))


def rows_of(directory: Path) -> dict[tuple[str, int], dict[str, Any]]:
    rows = [row for file in (directory / "out").glob("*.jsonl") for row in read_lines(file)]
    return {(row["story_id"], row["chapter_index"]): row for row in rows}


def test_a_row_has_what_its_sections_say_and_nothing_of_what_comes_after(tmp_path: Path, server: ChatServer) -> None:
    prepare(recipe(tmp_path, server))
    rows = rows_of(tmp_path)
    # From the third chapter on, without the last two; a tale of four chapters has none.
    assert sorted(rows) == [("a", 2), ("a", 3), ("b", 2), ("c", 2)]
    row = rows["a", 3]
    assert row["last_n_chapters"] == [chapter("a", 2)]
    assert (row["story_text"], row["next_chapter"]) == (chapter("a", 2), chapter("a", 3))
    assert row["next_chapter_header"] == "Chapter 4"
    so_far = "Dawn: summary of thing-a-0\n\nChapter 2: summary of thing-a-1\n\nChapter 3: summary of thing-a-2"
    assert row["prior_plot_summary"] == so_far
    assert row["high_level_plot_summary"] == "plot of " + " ".join(f"thing-a-{n}" for n in range(6))
    assert row["character_sheets"] == dict.fromkeys(("Ines", "Marrow", "Otto"), "Knows thing-a-0 thing-a-1 thing-a-2.")
    assert row["next_chapter_synopsis"] == "synopsis of thing-a-3"
    assert row["genre"] == "mystery"


def test_the_files_are_those_of_next_chapter_and_no_story_is_in_two(tmp_path: Path, server: ChatServer) -> None:
    prepare(recipe(tmp_path, server))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["load_with"] == {"type": "next_chapter", "path": str(tmp_path / "out")}
    assert manifest["dropped"] == {"short_stories": 1}
    data = load_data(NextChapterConfig(path=str(tmp_path / "out"), min_chapter_words=5))
    assert len(data.train) + len(data.heldout) + len(read_lines(tmp_path / "out" / "test.jsonl")) == 4
    for sample in (*data.train, *data.heldout):
        assert str(sample.gold) not in prompt_text(sample)


def test_a_second_call_asks_only_for_what_is_missing_and_writes_the_same(tmp_path: Path, server: ChatServer) -> None:
    broken = True

    def forgetful(body: dict[str, Any], number: int) -> Answer | str:
        wants_sheets = "Write a sheet" in body["messages"][0]["content"]
        return "### Ines\nAlone." if broken and wants_sheets else write(body, number)

    server.respond = forgetful
    sentence = (
        r"books\.jsonl line 1: 3 character sheets before 'Chapter 3' could not be had, and sections of 3 of 4 "
        "stories are missing; what was written is in .*replies.sqlite: call it again"
    )
    with pytest.raises(DataError, match=sentence):
        prepare(recipe(tmp_path, server))
    assert not (tmp_path / "out").exists()
    broken, before = False, len(server.bodies)
    prepare(recipe(tmp_path, server))
    assert len(server.bodies) - before == 4  # the sheets of four rows
    first = rows_of(tmp_path)
    prepare(recipe(tmp_path, server))
    assert (len(server.bodies) - before, rows_of(tmp_path)) == (4, first)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"story_id": "a"}', "line 2: field 'chapters' is missing; the line has story_id"),
        ('{"story_id": "a", "chapters": "One."}', r"line 2: chapters must be a list of texts, .* got 'One\.'"),
        (
            '{"story_id": "a", "chapters": ["One.", " "]}',
            "line 2: chapters must be a list of texts, .* none of them em",
        ),
        ('{"story_id": "a", "chapters": []}', r"line 2: chapters must be a list .* got \[\]"),
        ('{"story_id": " ", "chapters": ["One."]}', "line 2: field 'story_id' must be a text that is not empty"),
        ('{"story_id": "first", "chapters": ["One."]}', "line 2: story_id 'first' stands twice; a story is one line"),
    ],
)
def test_a_line_that_is_no_story_is_named_before_anything_is_asked(
    tmp_path: Path, server: ChatServer, line: str, sentence: str
) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"story_id": "first", "chapters": ["One."]}\n' + line + "\n")
    with pytest.raises(DataError, match=sentence):
        prepare(recipe(tmp_path, server, file=str(file)))
    assert server.bodies == []


def test_stories_that_are_all_too_short_and_a_key_that_is_refused_are_named(tmp_path: Path, server: ChatServer) -> None:
    short = write_stories(tmp_path / "short.jsonl", {"a": 3, "b": 2})
    with pytest.raises(DataError, match=r"the filters left out all rows, \{'short_stories': 2\}"):
        prepare(recipe(tmp_path, server, file=short))
    server.respond = lambda body, number: Answer(status=401, raw="wrong key")
    with pytest.raises(RewardError, match="answered 401 Unauthorized: wrong key"):
        prepare(recipe(tmp_path, server))
    endpoint = {"base_url": server.url, "model": "m", "api_key_env": "NO_SUCH_KEY", "cache": None}
    with pytest.raises(ConfigError, match=r"sections\.endpoint: the environment variable NO_SUCH_KEY"):
        prepare(recipe(tmp_path, server, sections={"endpoint": endpoint}))


def test_sections_are_of_a_files_stories() -> None:
    endpoint = {"base_url": "http://127.0.0.1/v1", "model": "m"}
    for given in ({"data": {"type": "word_problems"}}, {"file": "a", "key": "genre"}):
        with pytest.raises(ValidationError, match="sections are written for the stories of a file, which story_id"):
            PrepareConfig(output="out", sections={"endpoint": endpoint}, **given)
    assert (
        "no story_id in two files"
        in PrepareConfig(output="out", file="a", sections={"endpoint": endpoint}).arithmetic()
    )


@pytest.mark.parametrize(
    ("reply", "sheets"),
    [
        ("Here they are.\n\n## Ines\nShe.\n\nMore.\n\n## Otto\nHe.", {"Ines": "She.\n\nMore.", "Otto": "He."}),
        ("### Ines\nShe.\n### Otto\n### Marrow\nThey.", {"Ines": "She.", "Marrow": "They."}),
        ("### Ines\nShe.\n### Otto\nHe.\n### Marrow\nThey.", {"Ines": "She.", "Otto": "He."}),
        ("### Ines\nShe.", None),
        ("Ines: she.", None),
    ],
)
def test_sheets_are_read_by_their_headings(reply: str, sheets: dict[str, str] | None) -> None:
    assert sheets_of(reply, 2) == sheets
