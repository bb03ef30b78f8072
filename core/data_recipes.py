"""The `data` section of every recipe: one class per data set, chosen by its `type`.

The loader of the same name lies in `data/`; each gives a training side and a held-out side.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from core.config import Section


class WordProblemsConfig(Section):
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


class GSM8KConfig(Section):
    """Grade-school mathematics (Cobbe et al. 2021): question, worked answer, gold number after `####`."""

    type: Literal["gsm8k"] = "gsm8k"
    path: str = "openai/gsm8k"
    """Hub name, or a directory with train.jsonl and test.jsonl of the same fields, or one JSONL file (then split)."""
    num_heldout: int | None = Field(default=None, ge=1)
    """First n test questions; all of them when unset."""
    system_prompt: str | None = "Solve the problem step by step. End with a line '#### ' followed by the number alone."
    """System message; null leaves it out."""


class DocstringsConfig(Section):
    """Human-written text to its one-line summary: docstrings of the installed Python packages and standard library."""

    type: Literal["docstrings"] = "docstrings"
    roots: list[str] = []
    """Directories to harvest; empty: the standard library and site-packages."""
    max_prompt_chars: int = Field(default=600, ge=100)
    """Longest text in characters; longer ones are cut at a line's end."""
    max_summary_chars: int = Field(default=120, ge=20)
    """Longest summary in characters; pairs beyond it are left out."""
    num_heldout: int = Field(default=256, ge=1)
    """Held-out pairs, from packages that occur nowhere in training."""
    seed: int = 0
    """Seed of the split by package."""


class JsonlConfig(Section):
    """Any JSONL file."""

    type: Literal["jsonl"] = "jsonl"
    path: str
    """Training file."""
    heldout_path: str | None = None
    """Held-out file; unset: the last `num_heldout` lines in seeded order are held out."""
    num_heldout: int = Field(default=256, ge=1)
    """Held-out samples when no file is given."""
    prompt_field: str = "prompt"
    """Field with the prompt: a string, or a list of messages."""
    gold_field: str | None = None
    """Field with the reference answer."""
    id_field: str | None = None
    """Field with a stable id; unset: the file's name and line number."""
    demonstration_field: str | None = None
    """Field with the text that supervised training imitates; unset: the gold answer."""
    system_prompt: str | None = None
    """System message put before a string prompt, which then becomes a user message."""
    seed: int = 0
    """Seed of the split."""


DataConfig = Annotated[WordProblemsConfig | GSM8KConfig | DocstringsConfig | JsonlConfig, Field(discriminator="type")]
