"""Rows that a user has: of a file, the hub, a function or a file of chats, and how they become samples."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from troupe.config.algorithm import CONTEXT
from troupe.config.data_section import DataSection
from troupe.config.loader import Section


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
    one_of: list[str | float | bool] | None = None
    """Values that stay, such as `[maths, code]`."""

    @model_validator(mode="after")
    def _bounds_something(self) -> RowFilterConfig:
        words, numbers = (self.min_words, self.max_words), (self.at_least, self.at_most)
        if not any(bound is not None for bound in (*words, *numbers, self.one_of)):
            raise ValueError(
                f"the filter of {self.field!r} bounds nothing; set min_words, max_words, at_least, at_most or one_of"
            )
        for low, high in (words, numbers):
            if low is not None and high is not None and low > high:
                raise ValueError(f"the filter of {self.field!r} lets nothing through: {low} is above {high}")
        return self


Format = Literal["auto", "fields", "messages", "completion", "pairs", "hh", "sharegpt", "alpaca"]


class MappedConfig(DataSection):
    """Rows of one's own, wherever they are read from, and how they become samples."""

    format: Format = "auto"
    """Shape of the rows. fields: as the `..._field` below say; messages: a column of that name; completion: `prompt`
    and `completion`; pairs: `chosen` and `rejected`, texts or whole dialogues; hh: the same as strings of hh-rlhf;
    sharegpt: `conversations`; alpaca: `instruction`, `input`, `output`. auto: as the columns show, and fields where the
    recipe names one of the prompt or the answers.
    """
    filters: list[RowFilterConfig] = []
    """Rows to leave out; they are counted."""
    num_heldout: int | None = Field(default=None, ge=1)
    """Held-out samples where no held-out side is named; unset: a tenth of the rows, at most 256."""
    prompt_field: str = "prompt"
    """Field with the prompt: a string, or a list of messages."""
    gold_field: str | None = None
    """Field with the reference answer."""
    id_field: str | None = None
    """Field with a stable id; unset: the file's name and line number."""
    demonstration_field: str | None = None
    """Field with the text that supervised training imitates; unset: a field called `demonstration` (null: none), else
    the gold answer.
    """
    chosen_field: str | None = None
    """Field with the better of two answers: a text, or messages whose last is the assistant's."""
    rejected_field: str | None = None
    """Field with the worse of two answers, of the same form."""
    answers_field: str | None = None
    """Field with a list of two or more answers, in place of chosen and rejected; best first, unless ranks say
    otherwise.
    Unset: a field called `answers` is taken for that.
    """
    ranks_field: str | None = None
    """Field with a list of whole numbers, one per answer: smaller is better, equal is a tie."""
    margin_field: str | None = None
    """Field with a number: by how much, in reward units, the better of two answers is better."""
    tools_field: str = "tools"
    """Field with descriptions of the tools that the model may call, in OpenAI's form; a row may lack it."""
    continue_final_message: bool | None = None
    """Whether the model goes on from an assistant's turn that ends a prompt. false: that turn is the answer; unset: the
    same, and refused where gold_field names another answer.
    """
    seed: int = 0
    """Seed of the split."""

    @model_validator(mode="after")
    def _preferences_are_named_one_way(self) -> MappedConfig:
        if (self.chosen_field is None) != (self.rejected_field is None):
            raise ValueError("chosen_field and rejected_field belong together; name both or neither")
        if self.chosen_field is not None and self.answers_field is not None:
            raise ValueError("name answers_field, or chosen_field and rejected_field, not both")
        if self.ranks_field is not None and self.answers_field is None:
            raise ValueError("ranks_field ranks the answers of answers_field; name that too")
        if self.margin_field is not None and self.answers_field is None and self.chosen_field is None:
            raise ValueError(
                "margin_field needs the answers it is about; name answers_field, or chosen_field and rejected_field"
            )
        return self


class JsonlConfig(MappedConfig):
    """A file of rows: JSONL, a JSON array, CSV or parquet, also packed with gzip."""

    type: Literal["jsonl"] = "jsonl"
    path: str
    """Training file."""
    heldout_path: str | None = None
    """Held-out file; unset: rows of the training file are held out, whichever their content and the seed say."""


class HubConfig(MappedConfig):
    """Any data set that the `datasets` library loads: of the Hugging Face hub, or a local directory of files."""

    type: Literal["hub"] = "hub"
    path: str
    """Hub name, or a directory or file of parquet, CSV, JSON or Arrow."""
    subset: str | None = None
    """Configuration of the data set, where it has several."""
    split: str = "train"
    """Training split; `train[:1000]` is its beginning."""
    heldout_split: str | None = None
    """Held-out split; unset: rows of the training split are held out."""


class FunctionConfig(MappedConfig):
    """A data set of one's own: a function that yields rows as mappings, or Samples."""

    type: Literal["function"] = "function"
    fn: str
    """The function, as `module:function`; it must be importable from the directory the job is started in."""
    args: dict[str, Any] = {}
    """Keyword arguments handed to it."""
    heldout_args: dict[str, Any] | None = None
    """Arguments that differ for the held-out side, such as `{split: test}`; unset: some of what it yields is held out.
    """


class MessagesConfig(DataSection):
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
    """Put behind the last user turn of the policy's prompt, and of it alone, such as a request for reasoning that ends
    in
    `In summary:`. With it the gold answer is no demonstration any more.
    """
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
