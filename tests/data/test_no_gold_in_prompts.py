"""A prompt is made from the prompt's fields alone: it holds no gold answer, and another gold answer changes none."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.data.packages import FIXTURES
from tests.data.test_load_data import TYPES, configs, samples_of
from troupe.chat import demonstration_text, prompt_text
from troupe.data.near_duplicates import plain
from troupe.records import Sample

__all__ = ["configs"]  # a fixture of pytest's is found by its name here

Row = dict[str, Any]


def prompts_of(sample: Sample) -> list[str]:
    """Everything that a model reads before it answers: the policy's prompt, and the frozen scorer's where there is
    one.
    """
    prompts = [sample.prompt, *([sample.fields["scorer_prompt"]] if "scorer_prompt" in sample.fields else [])]
    return [prompt_text(Sample(sample_id=sample.sample_id, prompt=prompt)) for prompt in prompts]


WITHOUT_GOLD = ("documents", "repliqa", "textarena")
"""A document is there to be summarised: what its questions ask for stands in it, and there is no gold summary. A game
has no answer."""


@pytest.mark.parametrize("name", [name for name in TYPES if name not in WITHOUT_GOLD])
def test_no_prompt_contains_what_is_to_be_answered(name: str, configs: dict[str, Row]) -> None:
    for sample in samples_of(configs[name]):
        # "Tom has 8 pens and gives 4 away" names the number 4 that remains: there, the worked answer must not be told.
        golds = [] if name in ("word_problems", "gsm8k", "mixture", "reasoning_gym") else [sample.gold]
        demonstrated = [demonstration_text(sample)] if sample.fields.get("demonstration") else []
        secrets = [*golds, *demonstrated, *sample.fields.get("answers", [])[:1]]
        assert any(secrets)
        for prompt in prompts_of(sample):
            assert not any(plain(secret) in plain(prompt) for secret in secrets if secret)


def another(field: str) -> Callable[[Row], Row]:
    """The row with other words in the field of its gold answer."""
    return lambda row: {**row, field: f"Quite other words, {len(row[field])} of them. " * 8 + "#### 1"}


def another_last_turn(*fields: str) -> Callable[[Row], Row]:
    def change(row: Row) -> Row:
        turns = {name: [*row[name][:-1], {**row[name][-1], "content": f"other words of {name}"}] for name in fields}
        return {**row, **turns}

    return change


OTHER_GOLDS = {
    "gsm8k": another("answer"),
    "jsonl": another("better"),
    "tldr": another("label"),
    "next_chapter": another("next_chapter"),
    "messages": another_last_turn("messages"),
    "smoltalk": another_last_turn("messages"),
    "ultrafeedback": another_last_turn("chosen", "rejected"),
}


@pytest.mark.parametrize("name", OTHER_GOLDS)
def test_another_gold_answer_changes_no_prompt(name: str, configs: dict[str, Row], tmp_path: Path) -> None:
    before = {sample.sample_id: sample for sample in samples_of(configs[name])}
    config = with_other_golds(configs[name], tmp_path / "changed", OTHER_GOLDS[name])
    after = {sample.sample_id: sample for sample in samples_of(config)}
    assert after.keys() >= before.keys()  # and rows that were left out because their answers were empty
    for sample_id, sample in before.items():
        assert prompts_of(after[sample_id]) == prompts_of(sample)
        assert after[sample_id].gold != sample.gold


def with_other_golds(config: Row, directory: Path, change: Callable[[Row], Row]) -> Row:
    """The config of a copy of the data whose every row has been changed."""
    source = Path(config["path"])
    folder = source if source.is_dir() else source.parent
    shutil.copytree(
        folder, directory, ignore=shutil.ignore_patterns("changed", "source", "paragraphs", "documents", ".cache")
    )
    for file in directory.glob("*.jsonl"):
        if source.is_dir() or file.name in {
            Path(config[key]).name for key in ("path", "heldout_path") if key in config
        }:
            rows = [change(json.loads(line)) for line in file.read_text().splitlines()]
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    moved = {key: str(directory / Path(config[key]).name) for key in ("path", "heldout_path") if key in config}
    return {**config, **({"path": str(directory)} if source.is_dir() else moved)}


def test_the_words_of_a_gold_that_a_docstring_plan_shows_are_in_training_prompts_alone(configs: dict[str, Row]) -> None:
    """A small frozen model has to learn what plans are for; it may not be shown one where anything is measured."""
    from troupe.config.made_data import DocstringSectionsConfig
    from troupe.data import load_data

    settings = {key: value for key, value in configs["docstring_sections"].items() if key != "type"}
    data = load_data(DocstringSectionsConfig(**settings, task="section", plan_share=1.0))
    assert all("Key words: " in prompt_text(sample) for sample in data.train)
    for sample in (*data.train, *data.heldout):
        assert "Key words: " not in prompts_of(sample)[1]
    assert not any("Key words: " in prompt_text(sample) for sample in data.heldout)


def test_a_chapter_that_its_row_shows_already_is_left_out_and_counted(tmp_path: Path) -> None:
    from troupe.config.published_data import NextChapterConfig
    from troupe.data import load_data

    shutil.copytree(FIXTURES / "next_chapter", tmp_path / "stories")
    file = tmp_path / "stories" / "train.jsonl"
    first, *others = [json.loads(line) for line in file.read_text().splitlines()]
    first["last_n_chapters"] += "\n\n" + first["next_chapter"].replace(" ", "\n")
    file.write_text("".join(json.dumps(row) + "\n" for row in (first, *others)))
    data = load_data(NextChapterConfig(path=str(tmp_path / "stories"), min_chapter_words=20))
    assert data.dropped == {"gold_in_prompt": 1}
    assert [sample.fields["chapter_index"] for sample in data.train] == [3, 2]
