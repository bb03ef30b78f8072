"""Stories and the chapter that follows (Gurung and Lapata 2025, 2503.22828), from the hub or from files.

Two prompts are built from a row, neither of which sees the chapter: the policy's asks for reasoning that ends with a
plan, the frozen model's asks for the chapter and takes the plan at its end. A sample is named by story and chapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from troupe.chat import prompt_text
from troupe.config.algorithm import CONTEXT
from troupe.config.published_data import NextChapterConfig
from troupe.data.dataset import DataSet, Dropped, conversation
from troupe.data.lines import Row, field_of, text_of
from troupe.data.messages import num_words
from troupe.data.near_duplicates import plain
from troupe.data.published import load_published
from troupe.errors import DataError
from troupe.records import Message, Sample

HEADINGS = {
    "story_text": "The Story So Far",
    "high_level_plot_summary": "Plot of the Whole Story",
    "prior_plot_summary": "Plot Up to Here",
    "character_sheets": "Characters",
    "last_n_chapters": "Previous Chapters",
    "next_chapter_synopsis": "Synopsis of the Next Chapter",
    "next_chapter_header": "Heading of the Next Chapter",
}
CONTEXT_TEMPLATE = f"\n\n### Detailed Plan for the Next Chapter\n{CONTEXT}"
PLAN_REQUEST = (
    "Work out what the next chapter should do before anybody writes it. Take the sections above one after the other: "
    "quote a "
    "passage that matters, then say in a sentence or two what follows from it for the events, the people and the "
    "tone of the "
    "chapter. Do not write the chapter. When you are done, write '{marker}' and behind it a plan that a writer who "
    "knows "
    "the same sections can follow: scenes in their order, who acts, what changes, how it ends."
)
CHAPTER_REQUEST = (
    "Write the next chapter in full. Continue from where the previous chapter ends, keep its voice, tense and point "
    "of view, "
    "and give nothing but the text of the chapter."
)


def load_next_chapter(config: NextChapterConfig) -> DataSet:
    data = load_published(config, partial(_sample, config), heldout=config.heldout_split)
    _refuse_shared_stories(data)
    return data


def _sample(config: NextChapterConfig, row_id: str, where: str, row: Row) -> Sample | Dropped:
    chapter, story = text_of(row, "next_chapter", where).strip(), text_of(row, "story_id", where)
    index = field_of(row, "chapter_index", where)
    if not isinstance(index, int) or isinstance(index, bool):
        raise DataError(f"{where}: field 'chapter_index' must be a whole number, got {index!r:.60}")
    sections = sections_text(config.sections, where, row)
    if not sections:
        raise DataError(f"{where}: all of {', '.join(config.sections)} are empty; there is nothing to reason about")
    policy_prompt = _prompt(config, sections, PLAN_REQUEST.replace("{marker}", config.marker))
    writer_prompt = _prompt(config, sections, CHAPTER_REQUEST)
    prompt = policy_prompt if config.task == "plan" else writer_prompt
    sample = Sample(
        sample_id=f"next_chapter/{story}/{index}",
        prompt=prompt,
        gold=chapter,
        fields={
            "story_id": story,
            "chapter_index": index,
            "scorer_prompt": writer_prompt,
            "context_template": CONTEXT_TEMPLATE,
            **({"demonstration": chapter} if config.task == "chapter" else {}),
            **({"genre": row["genre"]} if row.get("genre") else {}),
        },
    )
    reason = _left_out(config, sample, prompt, row)
    return sample if reason is None else Dropped(reason)


def _left_out(config: NextChapterConfig, sample: Sample, prompt: list[Message], row: Row) -> str | None:
    """Return why a filter leaves the sample out, None when none does."""
    chapter_words = _num_words(sample.gold)
    if sample.fields["chapter_index"] < config.first_chapter_index:
        return "early_chapters"
    if chapter_words < config.min_chapter_words:
        return "short_chapters"
    if chapter_words > config.max_chapter_words:
        return "long_chapters"
    if _num_words(row.get("story_text")) > config.max_story_words:
        return "long_stories"
    if num_words(prompt) > config.max_prompt_words:
        return "long_prompts"
    # A row made carelessly holds the chapter among its previous ones; the prompt cannot be mended here.
    return "gold_in_prompt" if plain(str(sample.gold)) in plain(prompt_text(sample)) else None


def _num_words(text: Any) -> int:
    return len(text.split()) if isinstance(text, str) else 0


def sections_text(names: Sequence[str], where: str, row: Row) -> str:
    """Return the chosen fields under their headings.

    One that is empty or null is passed over, one that is absent is an error.
    """
    shown = [(HEADINGS[name], _section(name, field_of(row, name, where), where)) for name in names]
    return "\n\n".join(f"### {heading}\n{text}" for heading, text in shown if text)


def _section(name: str, value: Any, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, Mapping) and all(isinstance(text, str) for text in value.values()):  # character sheets by name
        return "\n\n".join(f"**{person}**\n{text.strip()}" for person, text in value.items())
    if isinstance(value, list) and all(isinstance(text, str) for text in value):  # chapters in their order
        return "\n\n".join(text.strip() for text in value)
    raise DataError(
        f"{where}: field {name!r} must be a text, a list of texts or texts by name, got {value!r:.60}; "
        "mend it, or leave it out of data.sections"
    )


def _prompt(config: NextChapterConfig, sections: str, request: str) -> list[Message]:
    """Put the request before the plan's place at the end, so that prompts with and without a plan begin alike."""
    body = f"{sections}\n\n### Instructions\n{request}"
    if config.system_role:
        return conversation(body, system=config.system_prompt)
    return conversation(f"{config.system_prompt}\n\n{body}")


def _refuse_shared_stories(data: DataSet) -> None:
    shared = _stories(data.train) & _stories(data.heldout)
    if shared:
        raise DataError(
            f"next_chapter: {len(shared)} stories are in training and held out ({min(shared)!r} the first), so what "
            f"is held out "
            "has been read; split them by story with jobs/prepare_data.py (key=story_id)"
        )


def _stories(samples: Sequence[Sample]) -> set[str]:
    return {sample.fields["story_id"] for sample in samples}
