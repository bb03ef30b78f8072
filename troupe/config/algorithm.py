"""From scores to a loss: advantages, clipping, aggregation, KL, importance correction; and the perplexity reward.

docs/algorithms.md has the formulas.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from troupe.config.loader import Section


class AdaptiveKLConfig(Section):
    """A KL coefficient that follows the KL: larger above the target, smaller below it."""

    target: float = Field(gt=0)
    """KL to hold, in nats per answer."""
    form: Literal["ziegler", "trlx"] = "ziegler"
    """ziegler: 1909.08593, section 2.2; trlx: that library's rule and KL estimate, to compare with its curves."""
    rate: float = Field(default=0.1, gt=0)
    """ziegler: the coefficient changes by at most a fifth of this share in a step."""
    horizon: int = Field(default=10_000, ge=1)
    """trlx: answers over which the coefficient may change by a fifth."""


class KLConfig(Section):
    """Divergence from the frozen reference (Schulman's estimators)."""

    coef: float = Field(default=0.0, ge=0)
    """Coefficient, with `adaptive` the first one; 0 turns the reference off and no frozen model is loaded."""
    adaptive: AdaptiveKLConfig | None = None
    """Controller of the coefficient; unset: it stays as it is."""
    estimator: Literal["auto", "k1", "k2", "k3"] = "auto"
    """k1 = -log r, k2 = (log r)^2 / 2, k3 = r - 1 - log r with r = pi_ref / pi; auto: k3 in the loss, k1 in the reward.
    """
    placement: Literal["loss", "reward"] = "loss"
    """In the loss (k1 is refused there: its gradient is zero in expectation), or subtracted from each token's reward.
    """

    @property
    def kind(self) -> Literal["k1", "k2", "k3"]:
        """The estimator, `auto` resolved."""
        if self.estimator == "auto":
            return "k3" if self.placement == "loss" else "k1"
        return self.estimator

    @model_validator(mode="after")
    def _k1_has_no_gradient(self) -> KLConfig:
        if self.coef > 0 and self.placement == "loss" and self.estimator == "k1":
            raise ValueError("estimator k1 in the loss has zero expected gradient; use k2 or k3, or placement: reward")
        return self


class ImportanceConfig(Section):
    """Correction for the gap between the sampler's and the trainer's probabilities of the same tokens."""

    type: Literal["none", "truncate", "mask"] = "none"
    """none; truncate: weight min(ratio, high) (TIS); mask: drop tokens whose ratio leaves [low, high] (IcePop). Both
    need `old_logprobs: recompute`.
    """
    low: float = Field(default=0.5, ge=0)
    """Lower bound of the ratio (mask)."""
    high: float = Field(default=2.0, gt=0)
    """Upper bound of the ratio."""


class OverlongConfig(Section):
    """The cost of a truncated or very long answer."""

    mask_truncated: bool = False
    """Whether truncated answers are left out of the loss (DAPO's overlong filtering)."""
    penalty_tokens: int = Field(default=0, ge=0)
    """L_cache of DAPO's soft overlong punishment in tokens: the reward falls linearly to -1 over the last so many
    tokens before the limit; 0 turns it off.
    """
    missing_eos_penalty: float = Field(default=0.0, ge=0)
    """Subtracted from the score of an answer that was cut off before its end-of-turn token."""


class AlgorithmConfig(Section):
    """From scores to a loss: GRPO by default; Dr. GRPO, RLOO, REINFORCE and DAPO are settings of it."""

    advantage: Literal["grpo", "dr_grpo", "rloo", "reinforce", "gae"] = "grpo"
    """grpo: (r - mean) / std of the group; dr_grpo: r - mean; rloo: r - mean of the others; reinforce: r - mean of the
    batch; gae: PPO's, with a critic (jobs/train_ppo.py).
    """
    score_clip: float | None = Field(default=None, gt=0)
    """Scores are clipped to [-score_clip, score_clip] before anything else; unset: they are not."""
    std: Literal["sample", "population"] = "sample"
    """Standard deviation of grpo: sample (ddof 1, as TRL and OpenRLHF) or population (as ART)."""
    std_epsilon: float = Field(default=1e-4, ge=0)
    """Added to the standard deviation."""
    clip_low: float = Field(default=0.2, ge=0)
    """Lower clip range of the ratio."""
    clip_high: float = Field(default=0.28, ge=0)
    """Upper clip range of the ratio (DAPO's clip-higher when above clip_low)."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Bound c of dual clip (1912.09729): with a negative advantage the objective is at least c times it."""
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = "token_mean"
    """token_mean: over all tokens of the optimizer step; sequence_mean: mean of each answer, then over answers;
    constant: sum over tokens / (answers x max_response_tokens), as Dr. GRPO.
    """
    ratio: Literal["token", "sequence"] = "token"
    """Unit of the importance ratio: each token, or the whole answer's summed log-probability (RLOO's one action; needs
    aggregation: sequence_mean).
    """
    entropy_coef: float = Field(default=0.0, ge=0)
    """Coefficient of an entropy bonus."""
    kl: KLConfig = KLConfig()
    """Divergence from the reference."""
    importance: ImportanceConfig = ImportanceConfig()
    """Sampler/trainer mismatch."""
    overlong: OverlongConfig = OverlongConfig()
    """Truncated and very long answers."""
    old_logprobs: Literal["rollout", "recompute"] = "rollout"
    """Denominator of the ratio: the sampler's log-probabilities, or the trainer's own before its first update of the
    step (one more forward pass).
    """
    minibatches: int = Field(default=4, ge=1)
    """Optimizer steps per rollout and epoch."""
    epochs: int = Field(default=1, ge=1)
    """Passes over a rollout."""

    @model_validator(mode="after")
    def _importance_needs_two_logprobs(self) -> AlgorithmConfig:
        if self.importance.type != "none" and self.old_logprobs != "recompute":
            raise ValueError(
                "importance.type needs old_logprobs: recompute, or the two sides of its ratio are the same numbers"
            )
        if self.ratio == "sequence" and self.aggregation != "sequence_mean":
            raise ValueError(
                "ratio: sequence treats an answer as one action and needs aggregation: sequence_mean (got "
                f"{self.aggregation}), or long answers would count more"
            )
        if self.importance.low >= self.importance.high:
            raise ValueError(
                f"importance.low ({self.importance.low}) must be below importance.high ({self.importance.high})"
            )
        return self


CONTEXT = "{context}"
"""What stands for the policy's answer in a context template; replaced and never formatted, since answers hold braces.
"""
PERPLEXITY_PARTS = ("perplexity/improvement", "perplexity/gold", "perplexity/nll", "perplexity/baseline")
"""What is measured beside the reward, `perplexity`: I in percent, the gold answer's perplexity with and without an
answer, and ln of the former.
"""


class ReadingConfig(Section):
    """The way a frozen model reads a sample's prompt and what another model wrote about it."""

    form: Literal["chat", "text"] = "chat"
    """How the frozen model reads a conversation: through its chat template, or the last user turn alone as plain text.
    A sample's field `scorer_prompt`, where there is one, takes the place of its prompt.
    """
    keep_system: bool = False
    """Whether the prompt's system turns are shown to it too; those of a `scorer_prompt` always are."""
    prompt_end: str = ""
    """Text put behind the prompt, with and without an answer: a line break after plain text, say."""
    place: Literal["assistant", "user"] = "assistant"
    """Where the answer stands: it opens the turn that the gold answer ends, or it ends the user's turn and the gold
    answer is the assistant's.
    """
    context_template: str | None = None
    """What is put between prompt and gold answer, `{context}` being the answer; null: the sample's own
    `context_template`, else the answer alone.
    """
    baseline_context: str = ""
    """What stands there without an answer; empty: the gold answer follows the prompt."""
    marker: list[str] | None = None
    """Texts after which the part of the answer begins that is handed over; the last one found counts. null: all."""

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
    """The help of the answer to a frozen model that foresees the gold answer; a part of the reward: `perplexity`."""

    path: str | None = None
    """The frozen model: a run directory, a directory or a hub name; null: the model that the run starts from."""
    kind: Literal["relative", "absolute", "hybrid", "improvement"] = "relative"
    """relative: max(0, 1 - PPL / PPL_base); absolute: 1 / PPL; hybrid: alpha x absolute + (1 - alpha) x relative;
    improvement: I = 100 (PPL_base - PPL) / PPL_base, transformed.
    """
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
    """JSONL or Parquet file of jobs/compute_baseline.py; null: the perplexity without an answer is computed with a
    sample's first answers, and kept.
    """
    max_length: int | None = Field(default=None, ge=2)
    """Most tokens that the frozen model reads at once; null: as its config.json. A longer answer loses its end."""
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
                f"{len(self.thresholds)} thresholds cut {len(self.thresholds) + 1} pieces, but there are "
                f"{len(self.values)} values"
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
