"""The data section: which type a path means, what a data set refuses, mixtures and further held-out sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from troupe.config.data import Source
from troupe.config.fields import sections_of, tag_of
from troupe.config.grpo import GRPOConfig
from troupe.config.loader import Section, load_config
from troupe.config.made_data import (
    DocstringPairsConfig,
    DocstringSectionsConfig,
    DocumentsConfig,
    ShortStoriesConfig,
    TicTacToeConfig,
    WordProblemsConfig,
)
from troupe.config.own_data import FunctionConfig, HubConfig, JsonlConfig, MappedConfig, MessagesConfig, RowFilterConfig
from troupe.config.published_data import (
    GSM8KConfig,
    NextChapterConfig,
    RepliqaConfig,
    SmolTalkConfig,
    TldrComparisonsConfig,
    UltraFeedbackConfig,
)
from troupe.config.supervised import DPOConfig, SFTConfig
from troupe.data import load_data
from troupe.errors import ConfigError

SOURCES = "data={type: mixture, sources: {a: {path: a.jsonl}, b: {path: openai/gsm8k}}"


def test_every_source_has_a_type_of_its_own_and_a_loader_of_that_name() -> None:
    types = [tag_of(section) for section in get_args(Source)]
    assert None not in types
    assert len(set(types)) == len(types)
    modules = {file.stem for file in Path(load_data.__code__.co_filename).parent.glob("*.py")}
    # Chats are read by the module of messages' neighbours, pairs and sections by that of what they are made from.
    elsewhere = {"messages", "docstring_pairs", "tldr_comparisons", "jsonl", "hub", "function"}
    assert {str(one) for one in types} - modules <= elsewhere


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("openai/gsm8k", "gsm8k"),
        ("HuggingFaceTB/smol-smoltalk", "smoltalk"),
        ("HuggingFaceH4/ultrafeedback_binarized", "ultrafeedback"),
        ("CarperAI/openai_summarize_tldr", "tldr"),
        ("CarperAI/openai_summarize_comparisons", "tldr_comparisons"),
        ("ServiceNow/repliqa", "repliqa"),
        ("nobody/nothing", "hub"),
        ("mine.jsonl", "jsonl"),
        ("mine.csv", "jsonl"),
        ("mine.parquet", "jsonl"),
        ("mine.jsonl.gz", "jsonl"),
        ("a/b.json", "jsonl"),
        ("data/rows", "hub"),  # the form of a hub name
        ("/nowhere/rows", "jsonl"),
    ],
)
def test_a_path_alone_means_a_type(path: str, kind: str) -> None:
    assert load_config(SFTConfig, [f"data.path={path}"]).data.type == kind


def test_a_hub_name_or_a_directory_needs_no_type(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    paths = {"nobody/nothing": "hub", str(tmp_path / "folder"): "hub", "mine/rows.jsonl": "jsonl", "rows": "jsonl"}
    assert {path: load_config(SFTConfig, [f"data.path={path}"]).data.type for path in paths} == paths


@pytest.mark.parametrize(
    ("section", "given", "sentence"),
    [
        # Rows of one's own.
        (RowFilterConfig, {"field": "x"}, "the filter of 'x' bounds nothing; set min_words, max_words, at_least, at_most or one_of"),
        (RowFilterConfig, {"field": "x", "min_words": 5, "max_words": 4}, "the filter of 'x' lets nothing through: 5 is above 4"),
        (RowFilterConfig, {"field": "x", "at_least": 0.5, "at_most": 0.25}, "lets nothing through: 0.5 is above 0.25"),
        (JsonlConfig, {"path": "a", "chosen_field": "c"}, "chosen_field and rejected_field belong together; name both or neither"),
        (JsonlConfig, {"path": "a", "rejected_field": "r"}, "chosen_field and rejected_field belong together"),
        (HubConfig, {"path": "a/b", "chosen_field": "c", "rejected_field": "r", "answers_field": "x"}, "name answers_field, or chosen_field and rejected_field, not both"),
        (JsonlConfig, {"path": "a", "ranks_field": "r"}, "ranks_field ranks the answers of answers_field; name that too"),
        (FunctionConfig, {"fn": "a:b", "margin_field": "m"}, "margin_field needs the answers it is about"),
        (JsonlConfig, {"path": "a", "num_heldout": 0}, "greater than or equal to 1"),
        (JsonlConfig, {"path": "a", "format": "xml"}, "'auto', 'fields'"),
        (MessagesConfig, {"path": "a", "context_template": "Plan:"}, r"the template needs \{context\} where the plan goes"),
        # Data made here.
        (WordProblemsConfig, {"largest": 3}, "greater than or equal to 4"),
        (WordProblemsConfig, {"unformatted_fraction": 1.1}, "less than or equal to 1"),
        (ShortStoriesConfig, {"marker": ""}, "at least 1 character"),
        (TicTacToeConfig, {"tag": "a b"}, "should match pattern"),
        (DocstringPairsConfig, {"kinds": []}, "name each kind of damage once, and at least one: corrupted, truncated, wrong"),
        (DocstringPairsConfig, {"kinds": ["wrong", "wrong"]}, "name each kind of damage once"),
        (DocumentsConfig, {"min_questions": 6}, r"min_questions \(6\) must be at most max_questions \(5\)"),
        (DocumentsConfig, {"unanswerable_fraction": 1.0}, "less than 1"),
        (DocstringSectionsConfig, {"min_gold_chars": 201}, r"min_gold_chars \(201\) must be at most max_gold_chars \(200\)"),
        # Published ones.
        (NextChapterConfig, {"path": "a", "sections": []}, "name each section once, and at least one"),
        (NextChapterConfig, {"path": "a", "sections": ["story_text"] * 2}, "without them there is nothing to reason about"),
        (NextChapterConfig, {"path": "a", "min_chapter_words": 50, "max_chapter_words": 49}, r"min_chapter_words \(50\) must be at most max_chapter_words \(49\)"),
        (NextChapterConfig, {}, "Field required"),
        (RepliqaConfig, {"unanswerable": "(not"}, "it must be a regular expression"),
        (RepliqaConfig, {"limit_unit": "tokens"}, "'characters' or 'words'"),
        (TldrComparisonsConfig, {"min_answer_words": 0}, "greater than or equal to 1"),
        (UltraFeedbackConfig, {"margin_scale": 0.0}, "greater than 0"),
        (GSM8KConfig, {"num_train": 0}, "greater than or equal to 1"),
    ],
)  # fmt: skip
def test_settings_that_would_leave_nothing_or_contradict_each_other_are_refused(
    section: type[Section], given: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValidationError, match=sentence):
        section(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"min_words": 3, "max_words": 3},
        {"at_least": -1.0},
        {"at_most": 0.0},
        {"one_of": []},  # lets nothing through on purpose
        {"min_words": 0},
        {"one_of": ["maths", 3, True]},
    ],
)
def test_a_filter_with_one_bound_is_one(given: dict[str, Any]) -> None:
    assert RowFilterConfig(field="x", **given).model_dump(exclude_unset=True) == {"field": "x", **given}


@pytest.mark.parametrize(
    "given",
    [
        {"chosen_field": "c", "rejected_field": "r", "margin_field": "m"},
        {"answers_field": "a", "ranks_field": "r", "margin_field": "m"},
        {"answers_field": "a"},
        {"gold_field": "g", "demonstration_field": "d"},
    ],
)
def test_preferences_are_named_one_way(given: dict[str, Any]) -> None:
    for config in (
        JsonlConfig(path="a.jsonl", **given),
        HubConfig(path="a/b", **given),
        FunctionConfig(fn="a:b", **given),
    ):
        assert isinstance(config, MappedConfig)
        assert {name: getattr(config, name) for name in given} == given


def test_the_template_of_a_plan_keeps_its_braces() -> None:
    assert MessagesConfig(path="a", context_template="{x} {context} {{y}}").context_template == "{x} {context} {{y}}"


def test_a_data_set_by_its_type_has_the_defaults_of_that_type() -> None:
    config = load_config(DPOConfig, ["data={type: ultrafeedback, num_train: 5}"])
    assert config.data == UltraFeedbackConfig(num_train=5)
    assert load_config(SFTConfig, ["data.single_turn=true"]).data == SmolTalkConfig(single_turn=True)


# -- mixtures ----------------------------------------------------------------------------------------------------------


def test_the_type_of_a_source_follows_from_its_path_as_that_of_data_does() -> None:
    config = load_config(SFTConfig, [f"{SOURCES}, weights: {{a: 2, b: 1}}}}", "heldout={c: {path: c.jsonl}}"])
    assert [source.type for source in config.data.sources.values()] == ["jsonl", "gsm8k"]  # type: ignore[union-attr]
    assert config.heldout["c"].type == "jsonl"


def test_a_mixture_is_of_two_or_more_sources_and_of_no_mixtures() -> None:
    with pytest.raises(ConfigError, match=r"data\.sources"):
        load_config(SFTConfig, ["data={type: mixture, sources: {a: {path: a.jsonl}}}"])
    with pytest.raises(ConfigError, match="there is no type 'mixture'"):
        load_config(SFTConfig, ["data={type: mixture, sources: {a: {path: a.jsonl}, b: {type: mixture}}}"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([f"{SOURCES}, weights: {{a: 1}}}}"], "weights names a, and the sources are a, b; give each a weight, or none"),
        ([f"{SOURCES}, weights: {{a: 1, b: 0}}}}"], r"data\.weights\.b: it must be above 0"),
        ([f"{SOURCES}}}", "rewards=[{fn: length, args: {limit: 3}, sources: [a]}]"], "no reward judges .* source b"),
        ([f"{SOURCES}}}", "rewards=[{fn: math_answer, sources: [c]}]"], "math_answer: sources names 'c'; .* a, b"),
        (["rewards=[{fn: math_answer, sources: [c]}]"], "sources here: none, since the data is no mixture"),
        (
            ["heldout={c: {path: c.jsonl}}", "evaluation.best_metric=d/accuracy"],
            "best_metric 'd/accuracy' is not among",
        ),
    ],
)
def test_what_does_not_fit_a_mixture_is_refused(arguments: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_config(GRPOConfig, arguments)
    load_config(GRPOConfig, ["heldout={c: {path: c.jsonl}}", "evaluation.best_metric=c/accuracy"])


def test_the_held_out_sets_of_a_run_are_its_sources_and_what_is_named_besides() -> None:
    config = load_config(GRPOConfig, [f"{SOURCES}}}", "heldout={c: {path: c.jsonl}}"])
    assert config.heldout_names == ["a", "b", "c"]
    assert load_config(GRPOConfig, []).heldout_names == []
    assert [tag_of(section) for section in sections_of(type(config).model_fields["heldout"].annotation)][-1] == "jsonl"
