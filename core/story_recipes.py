"""Data sections of tasks whose reward is how well a frozen model foresees the gold text: stories, jokes, docstrings.

A sample of theirs has two prompts: the policy's, which asks for reasoning, and in `fields["scorer_prompt"]` the frozen
model's, which asks for the gold text itself. `fields["context_template"]` says how the policy's plan joins the latter.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from core.config import Section
from core.data_source_recipes import HarvestConfig, PublishedConfig

CONTEXT = "{context}"
"""What stands for the plan in a context template; replaced, never formatted, since plans may hold braces."""

StorySection = Literal[
    "story_text",
    "high_level_plot_summary",
    "prior_plot_summary",
    "character_sheets",
    "last_n_chapters",
    "next_chapter_synopsis",
    "next_chapter_header",
]


class NextChapterConfig(PublishedConfig):
    """Stories and the chapter that follows (Gurung and Lapata 2025, 2503.22828): one row for each chapter to foresee."""

    type: Literal["next_chapter"] = "next_chapter"
    path: str
    """Hub name, or a directory with train.jsonl and the held-out split's file, or one JSONL file (then split at its end)."""
    heldout_split: Literal["val", "validation", "test"] = "val"
    """Split that is held out; on the hub, files called val.jsonl are the split validation."""
    task: Literal["plan", "chapter"] = "plan"
    """plan: the policy reasons and ends with a plan; chapter: it writes the chapter, which is then also the demonstration."""
    sections: list[StorySection] = [
        "last_n_chapters",
        "prior_plot_summary",
        "high_level_plot_summary",
        "character_sheets",
        "next_chapter_synopsis",
        "next_chapter_header",
    ]
    """Fields that the prompt shows, in this order, each under a heading; one that is empty in a row is passed over."""
    system_prompt: str = (
        "You are an experienced novelist who plans with care and writes in the voice of the story at hand."
    )
    """What the model is told to be."""
    system_role: bool = True
    """Whether that is a system message; false: it opens the user's turn, for models without such a role."""
    marker: str = Field(default="In summary:", min_length=1)
    """What the policy is asked to put before its plan."""
    min_chapter_words: int = Field(default=201, ge=1)
    """Rows whose next chapter has fewer words are left out."""
    max_chapter_words: int = Field(default=4999, ge=1)
    """Rows whose next chapter has more words are left out."""
    max_story_words: int = Field(default=4999, ge=1)
    """Rows whose story_text has more words are left out."""
    max_prompt_words: int = Field(default=9999, ge=1)
    """Rows whose prompt has more words, over all its turns, are left out."""
    first_chapter_index: int = 2
    """Rows with a smaller chapter_index are left out: too little has happened."""

    @field_validator("sections")
    @classmethod
    def _sections_are_distinct(cls, sections: list[StorySection]) -> list[StorySection]:
        if not sections or len(set(sections)) < len(sections):
            raise ValueError("name each section once, and at least one; without them there is nothing to reason about")
        return sections

    @model_validator(mode="after")
    def _lengths_fit(self) -> NextChapterConfig:
        if self.min_chapter_words > self.max_chapter_words:
            raise ValueError(
                f"min_chapter_words ({self.min_chapter_words}) must be at most max_chapter_words ({self.max_chapter_words})"
            )
        return self


class MessagesConfig(Section):
    """Chats as JSONL, `{"messages": [...]}` on each line: the assistant's last turn is the gold answer."""

    type: Literal["messages"] = "messages"
    path: str
    """Training file."""
    heldout_path: str | None = None
    """Held-out file; unset: lines of the training file are held out, whichever their content and the seed say."""
    num_heldout: int | None = Field(default=None, ge=1)
    """Held-out samples when no file is given; unset: a tenth of the file, at most 256."""
    id_field: str | None = None
    """Field with a stable id; unset: the file's name and line number."""
    instruction: str | None = None
    """Put behind the last user turn of the policy's prompt, and of it alone, such as a request for reasoning that ends in
    `In summary:`. With it the gold answer is no demonstration any more."""
    context_template: str = "\n\nNotes for your answer:\n{context}"
    """How a plan is put behind the last user turn of the frozen model's prompt."""
    seed: int = 0
    """Seed of the split."""

    @field_validator("context_template")
    @classmethod
    def _has_a_place_for_the_plan(cls, template: str) -> str:
        if CONTEXT not in template:
            raise ValueError(f"the template needs {CONTEXT} where the plan goes")
        return template


class ShortStoriesConfig(Section):
    """Stories of three sentences, made from a seed, whose next chapter follows from a calculation over their sections."""

    type: Literal["short_stories"] = "short_stories"
    task: Literal["plan", "chapter"] = "plan"
    """plan: the policy says what the next chapter will tell; chapter: it writes the chapter, which is then also the demonstration."""
    num_train: int = Field(default=20_000, ge=1)
    """Training stories."""
    num_heldout: int = Field(default=256, ge=1)
    """Held-out stories."""
    marker: str = Field(default="In summary:", min_length=1)
    """What stands before the plan in demonstrations."""
    guessed_fraction: float = Field(default=0.75, ge=0, le=1)
    """Task plan: share of the demonstrations whose plan is a guess; the others work it out first."""
    plan_share: float = Field(default=0.5, ge=0, le=1)
    """Task chapter: share of the training prompts that end with a plan, so that a frozen model learns what plans are for."""
    wrong_plan_fraction: float = Field(default=0.15, ge=0, le=1)
    """Task chapter: share of these plans that are guesses, so that it learns how far to trust one."""
    seed: int = 0
    """Seed of the generator; independent of the run's seed so that runs share their data."""


class DocstringSectionsConfig(HarvestConfig):
    """Real text to foresee without a download: the next paragraph of a docstring, from its earlier ones."""

    type: Literal["docstring_sections"] = "docstring_sections"
    task: Literal["plan", "section"] = "plan"
    """plan: the policy names what comes next; section: it writes the next paragraph, which is then also the demonstration."""
    min_gold_chars: int = Field(default=60, ge=10)
    """Shortest next paragraph in characters."""
    max_gold_chars: int = Field(default=200, ge=20)
    """Longest next paragraph in characters."""
    marker: str = Field(default="In summary:", min_length=1)
    """What stands before the plan in demonstrations, and what the policy is asked for."""
    plan_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the training texts with a plan made of words of the gold paragraph. Task plan: only these have a
    demonstration. Task section: only these show that plan in their prompt, so that a frozen model learns what plans are for."""
    plan_words: int = Field(default=5, ge=1)
    """Most words in such a plan."""

    @model_validator(mode="after")
    def _lengths_fit(self) -> DocstringSectionsConfig:
        if self.min_gold_chars > self.max_gold_chars:
            raise ValueError(
                f"min_gold_chars ({self.min_gold_chars}) must be at most max_gold_chars ({self.max_gold_chars})"
            )
        return self
