"""The recipe section of a perplexity reward: which frozen model foresees the gold answer, what it reads, what that is worth.

`core.scorer_prompt` builds what it reads, `algorithms.perplexity` has the formulas, `actors.perplexity_reward` asks the model.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from core.config import Section

CONTEXT = "{context}"
"""What stands for the policy's answer in a context template; replaced and never formatted, since answers hold braces."""
PERPLEXITY_PARTS = ("perplexity/improvement", "perplexity/gold", "perplexity/nll", "perplexity/baseline")
"""What is measured beside the reward, `perplexity`: I in percent, the gold answer's perplexity with and without an answer, and ln of the former."""


class ReadingConfig(Section):
    """How a frozen model reads a sample's prompt and what another model wrote about it."""

    form: Literal["chat", "text"] = "chat"
    """How the frozen model reads a conversation: through its chat template, or the last user turn alone as plain text. A sample's field `scorer_prompt`, where there is one, takes the place of its prompt."""
    keep_system: bool = False
    """Whether the prompt's system turns are shown to it too; mostly they tell the policy how to answer. Those of a `scorer_prompt` always are."""
    prompt_end: str = ""
    """Text put behind the prompt, with and without an answer: a line break after plain text, say."""
    place: Literal["assistant", "user"] = "assistant"
    """Where the answer stands: it opens the turn that the gold answer ends, or it ends the user's turn and the gold answer is the assistant's."""
    context_template: str | None = None
    """What is put between prompt and gold answer, `{context}` being the answer; null: the sample's own `context_template`, else the answer alone."""
    baseline_context: str = ""
    """What stands there without an answer; empty: the gold answer follows the prompt."""
    marker: list[str] | None = None
    """Texts after which the part of the answer begins that is handed over; the last one found counts. null: all of the answer."""

    @field_validator("context_template")
    @classmethod
    def _the_answer_has_a_place(cls, template: str | None) -> str | None:
        if template is not None and template.count(CONTEXT) != 1:
            raise ValueError(f"context_template must hold {CONTEXT} once, where the answer goes")
        return template

    @field_validator("marker")
    @classmethod
    def _markers_are_texts(cls, marker: list[str] | None) -> list[str] | None:
        if marker is not None and (not marker or not all(text.strip() for text in marker)):
            raise ValueError("name at least one marker, none of them blank, or null for all of the answer")
        return marker

    @model_validator(mode="after")
    def _the_answer_has_a_turn(self) -> Self:
        if self.place == "user" and self.form == "text":
            raise ValueError(
                "place: user puts the answer into a turn, and form: text has none; use form: chat, or place: assistant"
            )
        return self


class PerplexityRewardConfig(ReadingConfig):
    """How much the policy's answer helps a frozen model to foresee the gold answer; a part of the reward, as `perplexity`."""

    path: str | None = None
    """The frozen model: a run directory, a directory or a hub name; null: the model that the run starts from."""
    kind: Literal["relative", "absolute", "hybrid", "improvement"] = "relative"
    """relative: max(0, 1 - PPL / PPL_base); absolute: 1 / PPL; hybrid: alpha x absolute + (1 - alpha) x relative; improvement: I = 100 (PPL_base - PPL) / PPL_base, transformed."""
    alpha: float = Field(default=0.5, ge=0, le=1)
    """hybrid: weight of the absolute part."""
    transform: Literal["raw", "relu", "binary", "piecewise"] = "relu"
    """improvement: I itself; max(I, 0); 1 where I >= 0; or `values` cut at `thresholds`. The raw I is always logged."""
    thresholds: list[float] = [0.05, 1.0, 2.0]
    """piecewise: where the pieces of I end, in percent, rising."""
    values: list[float] = [0.0, 0.5, 0.9, 1.0]
    """piecewise: the reward of each piece, one more than thresholds."""
    weight: float = 1.0
    """Its weight in the sum of rewards."""
    end_of_turn: bool = False
    """Whether the end-of-turn token counts as the last token of the gold answer."""
    missing_marker_score: float = 0.0
    """Reward of an answer that has no marker, or nothing behind it."""
    baseline_file: str | None = None
    """JSONL or Parquet file of jobs/compute_baseline.py; null: the perplexity without an answer is computed with a sample's first answers, and kept."""
    max_length: int | None = Field(default=None, ge=2)
    """Most tokens that the frozen model reads at once; null: what its config.json says. An answer that does not fit is cut at its end."""
    num_ranks: int = Field(default=1, ge=1)
    """Processes."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of its weights. Improvements of a hundredth of a percent are below bf16's rounding."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""

    @field_validator("baseline_file")
    @classmethod
    def _the_format_is_known(cls, path: str | None) -> str | None:
        if path is not None and not path.endswith((".jsonl", ".parquet")):
            raise ValueError("the suffix says how the file is written; end its name with .jsonl or .parquet")
        return path

    @model_validator(mode="after")
    def _settings_fit(self) -> PerplexityRewardConfig:
        if len(self.values) != len(self.thresholds) + 1:
            raise ValueError(
                f"{len(self.thresholds)} thresholds cut {len(self.thresholds) + 1} pieces, but there are {len(self.values)} values"
            )
        if self.thresholds != sorted(set(self.thresholds)):
            raise ValueError(f"thresholds must rise from each to the next (got {self.thresholds})")
        if self.kind != "improvement" and self.transform != "relu":
            raise ValueError(
                f"transform belongs to kind: improvement and would not be used with {self.kind!r}; leave it out"
            )
        if self.kind != "hybrid" and self.alpha != 0.5:
            raise ValueError(f"alpha belongs to kind: hybrid and would not be used with {self.kind!r}; leave it out")
        return self
