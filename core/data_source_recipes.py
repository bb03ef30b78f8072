"""What several data sections share: where published rows lie, and how installed packages are harvested."""

from __future__ import annotations

from pydantic import Field

from core.config import Section


class PublishedConfig(Section):
    """A data set of the Hugging Face hub, or local JSONL files with the same fields; docs/data.md says how they lie."""

    type: str
    path: str
    """Hub name, or a directory with one JSONL file per split, or one JSONL file (then some of its rows are held out)."""
    num_train: int | None = Field(default=None, ge=1)
    """First n training rows that pass the filters; all of them when unset. Pairs found equal are missing from the n."""
    num_heldout: int | None = Field(default=None, ge=1)
    """First n held-out rows that pass the filters; all of them when unset (of one file a tenth, at most 256)."""


class HarvestConfig(Section):
    """What the data sets from docstrings share: where to harvest, and how the packages are split."""

    type: str
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
