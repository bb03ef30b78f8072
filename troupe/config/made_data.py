"""Data made on this machine: from a seed, or from the docstrings of what is installed; nothing is fetched."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from troupe.config.data_section import DataSection


class WordProblemsConfig(DataSection):
    """One-step arithmetic stories, generated from a seed; the held-out problems occur nowhere in training."""

    type: Literal["word_problems"] = "word_problems"
    num_train: int = Field(default=20_000, ge=1)
    """Training problems."""
    num_heldout: int = Field(default=256, ge=1)
    """Held-out problems."""
    largest: int = Field(default=12, ge=4)
    """Largest number in sums and differences; factors go up to half of it."""
    unformatted_fraction: float = Field(default=0.75, ge=0, le=1)
    """Share of demonstrations that lack the `#### n` line."""
    seed: int = 0
    """Seed of the generator; independent of the run's seed so that runs share their data."""


class ShortStoriesConfig(DataSection):
    """Stories of three sentences, made from a seed, whose next chapter follows from a calculation over their
    sections.
    """

    type: Literal["short_stories"] = "short_stories"
    task: Literal["plan", "chapter"] = "plan"
    """plan: the policy says what the next chapter will tell; chapter: it writes the chapter, which is then also the
    demonstration.
    """
    num_train: int = Field(default=20_000, ge=1)
    """Training stories."""
    num_heldout: int = Field(default=256, ge=1)
    """Held-out stories."""
    marker: str = Field(default="In summary:", min_length=1)
    """What stands before the plan in demonstrations."""
    guessed_fraction: float = Field(default=0.75, ge=0, le=1)
    """Task plan: share of the demonstrations whose plan is a guess; the others work it out first."""
    plan_share: float = Field(default=0.5, ge=0, le=1)
    """Task chapter: share of the training prompts that end with a plan, so that a frozen model learns what plans are
    for.
    """
    wrong_plan_fraction: float = Field(default=0.15, ge=0, le=1)
    """Task chapter: share of these plans that are guesses, so that it learns how far to trust one."""
    seed: int = 0
    """Seed of the generator; independent of the run's seed so that runs share their data."""


class TicTacToeConfig(DataSection):
    """Games of tic-tac-toe for the environment of that name: the agent's symbol, the opponent's opening, a seed."""

    type: Literal["tic_tac_toe"] = "tic_tac_toe"
    num_train: int = Field(default=5_000, ge=1)
    """Training games."""
    num_heldout: int = Field(default=48, ge=1)
    """Held-out games."""
    board: Literal["grid", "line", "names"] = "grid"
    """How boards are written: a grid, after a prompt that explains the rules; or, without a word, for models that are
    taught by demonstrations, a line of cells, or of cells in which a free one stands as its name.
    """
    tag: str | None = Field(default="move", pattern=r"^\w+$")
    """Tag that a move is written in, `<move>B2</move>`; null: the answer is the cell alone."""
    seed: int = 0
    """Seed of the games; independent of the run's seed."""


class HarvestConfig(DataSection):
    """Settings that the data sets from docstrings share: where to harvest, and how the packages are split."""

    roots: list[str] = []
    """Directories to harvest; empty: the standard library and site-packages."""
    max_prompt_chars: int = Field(default=600, ge=100)
    """Longest text in characters; longer ones are cut at a line's end."""
    max_summary_chars: int = Field(default=120, ge=20)
    """Longest summary in characters; pairs beyond it are left out."""
    num_heldout: int = Field(default=256, ge=1)
    """Held-out texts, from packages that occur nowhere in training."""
    seed: int = 0
    """Seed of the split by package; independent of the run's seed."""


class DocstringsConfig(HarvestConfig):
    """Human-written text to its one-line summary: docstrings of the installed Python packages and standard library."""

    type: Literal["docstrings"] = "docstrings"


Damage = Literal["corrupted", "truncated", "wrong"]


class DocstringPairsConfig(HarvestConfig):
    """Preferences for real text without a download: the human summary of a docstring against damaged ones."""

    type: Literal["docstring_pairs"] = "docstring_pairs"
    kinds: list[Damage] = ["corrupted", "truncated", "wrong"]
    """Kinds of damage to draw from: words moved, doubled or lost; cut in mid-sentence; the summary of another text."""
    pairs_per_text: int = Field(default=1, ge=1)
    """Damaged summaries per text, each ranked below the human one; several of them tie with each other."""
    half: Literal["all", "first", "second"] = "all"
    """Training texts to use: all, or one of two disjoint halves by `seed`, so that two reward models can share no text.
    """
    damage_seed: int = 0
    """Seed of the damage; `seed` alone decides what is held out, as for `docstrings`."""

    @field_validator("kinds")
    @classmethod
    def _kinds_are_distinct(cls, kinds: list[Damage]) -> list[Damage]:
        if not kinds or len(set(kinds)) < len(kinds):
            raise ValueError("name each kind of damage once, and at least one: corrupted, truncated, wrong")
        return kinds


class DocstringSectionsConfig(HarvestConfig):
    """Real text to foresee without a download: the next paragraph of a docstring, from its earlier ones."""

    type: Literal["docstring_sections"] = "docstring_sections"
    task: Literal["plan", "section"] = "plan"
    """plan: the policy names what comes next; section: it writes the next paragraph, which is then also the
    demonstration.
    """
    min_gold_chars: int = Field(default=60, ge=10)
    """Shortest next paragraph in characters."""
    max_gold_chars: int = Field(default=200, ge=20)
    """Longest next paragraph in characters."""
    marker: str = Field(default="In summary:", min_length=1)
    """What stands before the plan in demonstrations, and what the policy is asked for."""
    plan_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the training texts with a plan made of words of the gold paragraph. Task plan: only these have a
    demonstration. Task section: only these show that plan in their prompt, so that a frozen model learns what plans are
    for.
    """
    plan_words: int = Field(default=5, ge=1)
    """Most words in such a plan."""

    @model_validator(mode="after")
    def _lengths_fit(self) -> DocstringSectionsConfig:
        if self.min_gold_chars > self.max_gold_chars:
            raise ValueError(
                f"min_gold_chars ({self.min_gold_chars}) must be at most max_gold_chars ({self.max_gold_chars})"
            )
        return self


class DocumentsConfig(HarvestConfig):
    """Documents with questions and answers without a download: docstrings, asked what their parameters are."""

    type: Literal["documents"] = "documents"
    form: Literal["text", "lines"] = "text"
    """What a summary is: text of its own; or the numbers of the lines that it consists of, which a model too small to
    copy can learn to choose (give judge_qa `extract: true`).
    """
    limit_chars: int = Field(default=160, ge=40)
    """Length of a summary, in characters, that the prompt asks for and demonstrations keep; give the reward the same.
    """
    min_questions: int = Field(default=3, ge=1)
    """Documents with fewer questions are left out."""
    max_questions: int = Field(default=5, ge=1)
    """Questions per document at most."""
    unanswerable_fraction: float = Field(default=0.2, ge=0, lt=1)
    """Share of the questions that ask for what another document tells, as RepLiQA has them."""

    @model_validator(mode="after")
    def _questions_have_a_range(self) -> DocumentsConfig:
        if self.min_questions > self.max_questions:
            raise ValueError(
                f"min_questions ({self.min_questions}) must be at most max_questions ({self.max_questions})"
            )
        return self
