"""What `prepare_data` writes can be trusted and loaded: hashes, whole stories, the same samples as before."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from tests.actors.small import write_model
from tests.data.packages import FIXTURES, write_paragraphs
from troupe.config.data import DataConfig
from troupe.config.made_data import DocstringSectionsConfig, WordProblemsConfig
from troupe.config.own_data import MessagesConfig
from troupe.config.published_data import NextChapterConfig
from troupe.config.tools import PrepareConfig
from troupe.data import load_data
from troupe.errors import ConfigError, DataError
from troupe.jobs.prepare_data import prepare


def joined(name: str, file: Path) -> str:
    """The fixture's files as one."""
    file.write_text("".join(part.read_text() for part in sorted((FIXTURES / name).glob("*.jsonl"))))
    return str(file)


def manifest(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "manifest.json").read_text())  # type: ignore[no-any-return]


def test_stories_are_split_whole_and_loaded_as_next_chapter(tmp_path: Path) -> None:
    output = tmp_path / "out"
    prepare(PrepareConfig(file=joined("next_chapter", tmp_path / "all.jsonl"), key="story_id", output=str(output)))
    stories = [
        {json.loads(line)["story_id"] for line in (output / f"{name}.jsonl").read_text().splitlines()}
        for name in ("train", "val", "test")
    ]
    assert [len(each) for each in stories] == [2, 1, 1]
    assert len(set().union(*stories)) == 4
    assert manifest(output)["load_with"] == {"type": "next_chapter", "path": str(output)}
    data = load_data(NextChapterConfig(path=str(output), min_chapter_words=20))
    assert len(data.train) == manifest(output)["statistics"]["train"]["rows"]


def test_jokes_are_split_into_chats_that_messages_reads(tmp_path: Path) -> None:
    output = tmp_path / "out"
    prepare(PrepareConfig(file=joined("messages", tmp_path / "jokes.jsonl"), seed=42, output=str(output)))
    facts = manifest(output)
    assert {name: part["rows"] for name, part in facts["statistics"].items()} == {"train": 3, "val": 1, "test": 1}
    data = load_data(TypeAdapter(DataConfig).validate_python(facts["load_with"]))
    assert isinstance(MessagesConfig(**facts["load_with"]), MessagesConfig)
    assert (len(data.train), len(data.heldout)) == (3, 1)


def test_a_data_set_comes_back_sample_by_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sections = DocstringSectionsConfig(roots=[str(write_paragraphs(tmp_path / "source"))], num_heldout=10)
    prepare(PrepareConfig(data=sections, key="package", shares={"train": 0.75, "val": 0.25}, output="out"))
    before = load_data(sections)
    after = load_data(TypeAdapter(DataConfig).validate_python(manifest(Path("out"))["load_with"]))
    known = {sample.sample_id: sample for sample in (*before.train, *before.heldout)}
    assert {sample.sample_id for sample in (*after.train, *after.heldout)} == known.keys()
    # Those without a demonstration come back without one: the gold paragraph must not take its place.
    assert any("demonstration" not in sample.fields for sample in after.train)
    assert all(sample == known[sample.sample_id] for sample in (*after.train, *after.heldout))
    packages = [{sample.fields["package"] for sample in side} for side in (after.train, after.heldout)]
    assert not packages[0] & packages[1]


def test_the_manifest_has_the_hashes_of_what_was_read_and_written(tmp_path: Path) -> None:
    file, output = joined("messages", tmp_path / "jokes.jsonl"), tmp_path / "out"
    prepare(PrepareConfig(file=file, output=str(output)))
    facts = manifest(output)
    assert facts["inputs"][file]["sha256"] == hashlib.sha256(Path(file).read_bytes()).hexdigest()
    for name, entry in facts["files"].items():
        assert entry["sha256"] == hashlib.sha256((output / name).read_bytes()).hexdigest()
    assert facts["config"]["seed"] == 0
    assert "python" in facts["environment"]


def test_the_same_again_writes_the_same_and_anything_else_is_refused(tmp_path: Path) -> None:
    file, output = joined("messages", tmp_path / "jokes.jsonl"), tmp_path / "out"
    config = PrepareConfig(file=file, output=str(output))
    prepare(config)
    before = manifest(output)["files"]
    prepare(config)
    assert manifest(output)["files"] == before
    with pytest.raises(ConfigError, match="was prepared from other config; runs may depend on it"):
        prepare(config.model_copy(update={"seed": 1}))
    Path(file).write_text(Path(file).read_text() + '{"messages": []}\n')
    with pytest.raises(ConfigError, match="was prepared from other inputs and rows_sha256"):
        prepare(config)
    assert manifest(output)["files"] == before


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("Years of work.")
    with pytest.raises(ConfigError, match=r"holds files, and no manifest\.json of prepared data"):
        prepare(PrepareConfig(file=str(tmp_path / "nowhere.jsonl"), output=str(tmp_path)))


def test_statistics_are_in_words_and_with_a_tokenizer_in_tokens(tmp_path: Path) -> None:
    tokenizer = write_model(tmp_path / "model", tied=True)
    config = PrepareConfig(
        data=WordProblemsConfig(num_train=30, num_heldout=10), tokenizer=tokenizer, output=str(tmp_path / "out")
    )
    prepare(config)
    texts = manifest(tmp_path / "out")["statistics"]["train"]["texts"]
    assert texts.keys() == {"prompt", "gold", "demonstration"}
    # A gold is one word of one digit or two, and every digit is a token of its own.
    assert texts["gold"]["words"]["max"] == 1
    assert texts["gold"]["tokens"]["max"] == 2
    assert texts["prompt"]["tokens"]["min"] > texts["prompt"]["words"]["min"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "give either file .* or data"),
        ({"file": "a", "data": {"type": "word_problems"}}, "give either file .* or data"),
        ({"file": "a", "shares": {"train": 0.8, "val": 0.1}}, "add up to 0.9; they must add up to 1"),
        ({"file": "a", "shares": {"train": 1.0, "val": 0.0}}, "share val: 0.0 is not possible"),
        (
            {"data": {"type": "word_problems"}, "filters": [{"field": "x", "max_words": 1}]},
            "filters are for rows of a file",
        ),
        ({"file": "a", "filters": [{"field": "x"}]}, "the filter of 'x' bounds nothing"),
        (
            {"file": "a", "filters": [{"field": "x", "min_words": 3, "max_words": 2}]},
            "lets nothing through: 3 is above 2",
        ),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        PrepareConfig(output="out", **settings)


def test_filters_that_leave_nothing_and_a_tokenizer_that_is_not_there_are_named(tmp_path: Path) -> None:
    file = joined("messages", tmp_path / "jokes.jsonl")
    config = PrepareConfig(file=file, output=str(tmp_path / "out"), filters=[{"field": "messages", "min_words": 999}])  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"the filters left out all rows, \{'short_messages': 5\}"):
        prepare(config)
    with pytest.raises(ConfigError, match=r"tokenizer '.*nowhere' cannot be loaded"):
        prepare(PrepareConfig(file=file, output=str(tmp_path / "out"), tokenizer=str(tmp_path / "nowhere")))
    assert not (tmp_path / "out").exists()
