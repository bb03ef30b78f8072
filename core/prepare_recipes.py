"""The recipe of prepared data: where rows come from, which are left out, and how they are split into files."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator, model_validator

from core.config import Section
from core.data_recipes import DataConfig


class RowFilterConfig(Section):
    """Bounds on one field of a row; a row outside them is left out and counted. All bounds are inclusive."""

    field: str
    """Field of the row; of one that holds several texts (messages, lists, texts by name) all words count."""
    min_words: int | None = Field(default=None, ge=0)
    """Fewest words."""
    max_words: int | None = Field(default=None, ge=0)
    """Most words."""
    at_least: float | None = None
    """Smallest number."""
    at_most: float | None = None
    """Largest number."""

    @model_validator(mode="after")
    def _bounds_something(self) -> RowFilterConfig:
        words, numbers = (self.min_words, self.max_words), (self.at_least, self.at_most)
        if not any(bound is not None for bound in (*words, *numbers)):
            raise ValueError(
                f"the filter of {self.field!r} bounds nothing; set min_words, max_words, at_least or at_most"
            )
        for low, high in (words, numbers):
            if low is not None and high is not None and low > high:
                raise ValueError(f"the filter of {self.field!r} lets nothing through: {low} is above {high}")
        return self


class PrepareConfig(Section):
    """Split a file or a data set into JSONL files by story, document or row, with statistics and a manifest of hashes."""

    examples = (
        "file=stories.jsonl key=story_id output=data/stories",
        "'data={type: docstring_sections}' key=package output=data/sections",
    )
    page = "docs/data.md"

    file: str | None = None
    """JSONL file whose rows are split as they are; or give `data`."""
    data: DataConfig | None = None
    """Data set whose samples, both sides of it, are split and written with id, prompt, gold and their other fields."""
    key: str | None = None
    """Field of what must not be torn apart, such as story_id or document_id: no value of it is in two files. Unset: equal prompts
    stay together (`data`), each row is on its own (`file`)."""
    filters: list[RowFilterConfig] = []
    """Bounds on the rows of `file`; a data set has filters of its own."""
    shares: dict[str, float] = {"train": 0.8, "val": 0.1, "test": 0.1}
    """Share of the rows of each file, by its name; none of them stays empty."""
    seed: int = 0
    """Seed of the split."""
    tokenizer: str | None = None
    """Directory or hub name of a tokenizer; with it the statistics are in tokens too."""
    output: str
    """Directory that gets `<name>.jsonl` for each share, and manifest.json."""

    @field_validator("shares")
    @classmethod
    def _shares_are_shares(cls, shares: dict[str, float]) -> dict[str, float]:
        for name, share in shares.items():
            if not name or "/" in name or name.startswith(".") or not 0 < share <= 1:
                raise ValueError(
                    f"share {name}: {share} is not possible: a share is above 0 and at most 1, and its name is a file's"
                )
        if abs(sum(shares.values()) - 1) > 1e-6:
            raise ValueError(f"the shares {shares} add up to {sum(shares.values()):g}; they must add up to 1")
        return shares

    @model_validator(mode="after")
    def _one_source(self) -> PrepareConfig:
        if (self.file is None) == (self.data is None):
            raise ValueError("give either file (rows stay as they are) or data (a data set of this project)")
        if self.data is not None and self.filters:
            raise ValueError(
                f"filters are for rows of a file; {self.data.type} has settings of its own that leave rows out"
            )
        return self

    @property
    def path(self) -> Path:
        return Path(self.output)

    def arithmetic(self) -> str:
        """What will be done, in a sentence."""
        source = self.file if self.data is None else self.data.type
        together = f", no {self.key} in two files" if self.key else ""
        shares = " / ".join(f"{name} {100 * share:g} %" for name, share in self.shares.items())
        return f"{source} -> {self.output}: {shares}{together}"
