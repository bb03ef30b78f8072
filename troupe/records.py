"""The records that travel between the stages: samples, branches, groups, scores.

They are frozen: a stage returns a new record. Ragged data are lists here; `troupe.algorithms.packing.Batch` turns
groups into flat tensors. Letters used for shapes everywhere: G groups, B branches, N branch tokens of a batch,
S tokens of a packed row, V vocabulary, H hidden size.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, Required, TypeAlias, TypedDict


class FunctionCall(TypedDict):
    """The name of a tool and what it is called with."""

    name: str
    arguments: dict[str, Any]


class ToolCall(TypedDict):
    """One call of a tool, in OpenAI's form save that the arguments are a mapping and not its JSON."""

    id: NotRequired[str]
    type: Literal["function"]
    function: FunctionCall


class Message(TypedDict, total=False):
    """One turn of a conversation; `troupe.chat` gives it to the model's chat template.

    Example: `{"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name":
    "get_weather", "arguments": {"city": "Paris"}}}]}`.
    """

    role: Required[str]
    """system, developer, user, assistant or tool."""
    content: Required[str | None]
    """Parts of text are joined; None only beside calls."""
    tool_calls: list[ToolCall]
    reasoning: str
    """What the assistant thought before it answered."""
    name: str
    tool_call_id: str


Answer: TypeAlias = str | Sequence[Message]
"""An assistant's answer: its text, or turns of which the first is the assistant's (one with calls or reasoning; a game;
what follows a shared beginning)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One task: a prompt and what is known about its answer. Its identity is `sample_id`, never its text.

    Example: `Sample(sample_id="word_problems/17", prompt="Tom has 3 pens ...", gold="8",
    fields={"demonstration": "3+5=8\\n#### 8"})`.
    """

    sample_id: str
    prompt: str | Sequence[Message]
    """Raw text (encoded as it is), or messages (encoded through the tokenizer's chat template)."""
    gold: str | None = None
    """The reference answer that rewards and metrics compare with; never part of the prompt."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else the data set knows; `demonstration` is the Answer that supervised training imitates, `answers` are
    Answers to choose between."""
    tools: Sequence[Mapping[str, Any]] | None = None
    """Descriptions of the tools that the model may call, in OpenAI's form, for the chat template."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSpan:
    """The tokens [start, end) of a branch were sampled with the weights of `version` (the trainer's step)."""

    version: int
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """One continuation of a prompt, T tokens long, its end-of-turn token included."""

    token_ids: Sequence[int]
    """[T]."""
    text: str = ""
    """`token_ids` decoded without special tokens."""
    raw_text: str = ""
    """`token_ids` decoded with special tokens, such as those that mark a call of a tool."""
    loss_mask: Sequence[bool] | None = None
    """[T]; True where the model is trained. None: on every token."""
    logprobs: Sequence[float] | None = None
    """[T]; log-probabilities under the policy that sampled, at the sampling temperature."""
    finish_reason: str = "stop"
    """`stop`: it ended by itself; `length`: it hit the limit and is truncated."""
    weight_versions: Sequence[WeightSpan] = ()
    outcome: Score | None = None
    """What the environment gave for it, where it is a game with one."""
    turns: Sequence[tuple[str, int]] = ()
    """(speaker, tokens) of each turn in order, such as ("assistant", 12), ("tool calculator", 9); empty: all tokens
    are one answer."""

    @property
    def truncated(self) -> bool:
        return self.finish_reason == "length"

    @property
    def num_sampled(self) -> int:
        """Tokens of the model; what an environment said in between is not among them."""
        return len(self.token_ids) if self.loss_mask is None else sum(self.loss_mask)

    @property
    def oldest_version(self) -> int | None:
        """The oldest weights that sampled any of its tokens; None when it was not sampled."""
        return min((span.version for span in self.weight_versions), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeCall:
    """One request to a remote judge and what came back, for the log of calls; no header is in it, so no key either."""

    host: str
    model: str
    messages: Sequence[Message]
    status: int | str
    """The HTTP status, or what kept the request from getting one."""
    requested_at: float
    """Seconds since 1970, UTC."""
    latency_s: float
    text: str | None = None
    """The reply; None where there is none."""
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Tokens as the endpoint counts them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A reward's judgement of one branch: the weighted sum, and the unweighted parts for the logs.

    `value` is None when the judgement is missing (a judge that did not answer); missing is counted, never 0.
    """

    value: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    calls: Sequence[JudgeCall] = field(default=(), compare=False, repr=False)
    """The requests that were made for it."""
    reason: str = field(default="", compare=False)
    """A sentence on why the judgement is missing, where the reward did not come to its end."""

    @property
    def trouble(self) -> str | None:
        """Why the judgement is missing, where that is known; what the last request came to."""
        if self.value is not None or not (self.calls or self.reason):
            return None
        if self.reason:
            return self.reason
        last = self.calls[-1]
        said = f"{last.status}" if last.text is None else f"{last.status} and said {last.text[-80:]!r}"
        return (
            f"the judge at {last.host} answered {said}"
            if isinstance(last.status, int)
            else f"the judge at {last.host}: {said}"
        )

    def __post_init__(self) -> None:
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"a score must be finite, got {self.value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The unit of everything: one prompt and the branches that continue it, with a score per branch once scored."""

    sample: Sample
    prompt_ids: Sequence[int]
    branches: Sequence[Branch]
    scores: Sequence[Score] = ()

    def with_scores(self, scores: Sequence[Score]) -> Group:
        if len(scores) != len(self.branches):
            raise ValueError(f"{self.sample.sample_id}: {len(scores)} scores for {len(self.branches)} branches")
        return dataclasses.replace(self, scores=tuple(scores))

    @property
    def num_tokens(self) -> int:
        """Tokens of the packed group: the prompt once, then every branch."""
        return len(self.prompt_ids) + sum(len(branch.token_ids) for branch in self.branches)
