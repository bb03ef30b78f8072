"""Published data sets, each with the fields it has on the Hugging Face hub; local files of the same form do as well."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from troupe.config.data_section import DataSection


class PublishedConfig(DataSection):
    """A data set of the Hugging Face hub, or local JSONL files with the same fields; docs/data.md states how they
    lie.
    """

    path: str
    """Hub name, or a directory with one JSONL file per split, or one JSONL file (then some of its rows are held out).
    """
    num_train: int | None = Field(default=None, ge=1)
    """First n training rows that pass the filters; all of them when unset. Pairs found equal are missing from the n."""
    num_heldout: int | None = Field(default=None, ge=1)
    """First n held-out rows that pass the filters; all of them when unset (of one file a tenth, at most 256)."""


class GSM8KConfig(PublishedConfig):
    """Grade-school mathematics (Cobbe et al. 2021): question, worked answer, gold number after `####`."""

    type: Literal["gsm8k"] = "gsm8k"
    path: str = "openai/gsm8k"
    """Hub name, or a directory with train.jsonl and test.jsonl of the same fields, or one JSONL file (then split)."""
    system_prompt: str | None = "Solve the problem step by step. End with a line '#### ' followed by the number alone."
    """System message; null leaves it out."""
    calculator: bool = False
    """Whether prompts describe the tool calculator, and demonstrations call it where the worked answers have their
    `<<48/2=24>>`.
    """


class SmolTalkConfig(PublishedConfig):
    """Conversations for supervised training (Allal et al. 2025): `messages`, `source`."""

    type: Literal["smoltalk"] = "smoltalk"
    path: str = "HuggingFaceTB/smol-smoltalk"
    """Hub name, or a directory with train.jsonl and test.jsonl of the same fields, or one JSONL file (then split)."""
    num_heldout: int | None = Field(default=1000, ge=1)
    """First n held-out rows that pass the filters; all 24,229 when null."""
    single_turn: bool = False
    """Keep only conversations of exactly two messages, the user's and the assistant's."""
    max_prompt_chars: int | None = Field(default=None, ge=1)
    """Leave out conversations whose turns before the last answer have more characters than this."""


class UltraFeedbackConfig(PublishedConfig):
    """Prompts with a better and a worse answer (Cui et al. 2023, binarized): `chosen`, `rejected`, their scores."""

    type: Literal["ultrafeedback"] = "ultrafeedback"
    path: str = "HuggingFaceH4/ultrafeedback_binarized"
    """Hub name, or a directory with train_prefs.jsonl and test_prefs.jsonl, or one JSONL file (then split)."""
    max_prompt_chars: int | None = Field(default=None, ge=1)
    """Leave out pairs whose prompt has more characters than this."""
    margin_scale: float | None = Field(default=None, gt=0)
    """Margin of a pair in reward units: this times (score_chosen - score_rejected); null gives no margins."""


class TldrConfig(PublishedConfig):
    """Reddit posts and their authors' summaries (Völske et al. 2017, Stiennon et al. 2020): `prompt`, `label`."""

    type: Literal["tldr"] = "tldr"
    path: str = "CarperAI/openai_summarize_tldr"
    """Hub name, or a directory with train.jsonl and the held-out split's file, or one JSONL file (then split)."""
    num_heldout: int | None = Field(default=1000, ge=1)
    """First n held-out posts; all when null (valid 6,447, test 6,553)."""
    heldout_split: Literal["valid", "test"] = "valid"
    """Split that is held out: valid while choosing, test for a table."""
    max_prompt_chars: int = Field(default=2000, ge=100)
    """Longest prompt in characters; a longer post is cut, and `TL;DR:` still ends the prompt."""


class TldrComparisonsConfig(PublishedConfig):
    """Pairs of summaries compared by people (Stiennon et al. 2020): `prompt`, `chosen`, `rejected`."""

    type: Literal["tldr_comparisons"] = "tldr_comparisons"
    path: str = "CarperAI/openai_summarize_comparisons"
    """Hub name, or a directory with train.jsonl and the held-out split's file, or one JSONL file (then split)."""
    num_heldout: int | None = Field(default=5000, ge=1)
    """First n held-out pairs that pass the filters; all when null."""
    heldout_split: Literal["valid1", "valid2", "test"] = "valid1"
    """Split that is held out: valid1 or valid2 while choosing, test for a table."""
    max_prompt_chars: int = Field(default=2000, ge=100)
    """Longest prompt in characters; the same cut as that of `tldr`, so that a policy's posts and a reward model's
    agree.
    """
    min_answer_words: int = Field(default=5, ge=1)
    """Pairs with fewer words than this in either summary are left out; `TL;DR:` does not count."""


class RepliqaConfig(DataSection):
    """Documents about invented people and places, five questions each (Monteiro et al. 2024, 2406.11811)."""

    type: Literal["repliqa"] = "repliqa"
    path: str = "ServiceNow/repliqa"
    """Hub name, or a directory with `<split>.jsonl` of the same fields, or one JSONL file."""
    split: str = "repliqa_0"
    """Split of the data set, repliqa_0 to repliqa_4."""
    num_train: int | None = Field(default=None, ge=1)
    """First n training documents in seeded order; all of them when unset."""
    num_heldout: int = Field(default=91, ge=1)
    """Documents held out, the first ones in seeded order."""
    seed: int = 80
    """Seed of the order of documents; the original's."""
    max_document_chars: int | None = Field(default=20_000, ge=200)
    """Longest document in characters; null: no limit."""
    long_documents: Literal["cut", "drop"] = "drop"
    """What happens to longer ones: dropped and counted, or cut at a line's end, after which questions about the rest
    have no answer.
    """
    limit: int | None = Field(default=3000, ge=1)
    """Length of a summary that the prompt asks for; null: none is told, as in the original, whose reward had a limit
    all the same.
    """
    limit_unit: Literal["characters", "words"] = "characters"
    """Unit of that length."""
    unanswerable: str = r"(?i)not (found|contained|mentioned|provided|available|given|stated) in the (document|text)"
    """Regular expression of the gold answers that say that the document holds no answer."""
    demonstrations: str | None = None
    """JSONL file with summaries by another model (`sample_id`, and `prediction`, `answer` or `text`), which SFT
    imitates; documents without one are left out, on both sides. jobs/distil.py writes it.
    """

    @field_validator("unanswerable")
    @classmethod
    def _is_a_pattern(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"it must be a regular expression ({error})") from None
        return pattern


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
    """Stories and the chapter that follows (Gurung and Lapata 2025, 2503.22828): one row for each chapter to
    foresee.
    """

    type: Literal["next_chapter"] = "next_chapter"
    path: str
    """Hub name, or a directory with train.jsonl and the held-out split's file, or one JSONL file (then split at its
    end).
    """
    heldout_split: Literal["val", "validation", "test"] = "val"
    """Split that is held out; on the hub, files called val.jsonl are the split validation."""
    task: Literal["plan", "chapter"] = "plan"
    """plan: the policy reasons and ends with a plan; chapter: it writes the chapter, which is then also the
    demonstration.
    """
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
                f"min_chapter_words ({self.min_chapter_words}) must be at most max_chapter_words "
                f"({self.max_chapter_words})"
            )
        return self
