"""What requests for a score look like, and what scorers are handed: a prompt and the answer that is to be scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from troupe.config.loader import Section
from troupe.errors import DataError
from troupe.records import Branch, Group, Message, Sample


class TooLongError(DataError):
    """A conversation has more tokens than the model reads."""


class Body(BaseModel):
    """A part of a request: closed like a recipe's section, but its texts are models' and users', which hold any
    character.
    """

    model_config = Section.model_config


class Turn(BaseModel):
    """One message of a chat; what else clients put into a message is not read."""

    model_config = ConfigDict(frozen=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    """Who speaks."""
    content: str
    """What is said."""


def _listed(value: Any) -> str:
    return "turns" if isinstance(value, list) else "whole"


# The tag is chosen by the form, so that a mistake inside is told as what it is.
Prompt = Annotated[
    Annotated[str, Field(min_length=1), Tag("whole")] | Annotated[list[Turn], Field(min_length=1), Tag("turns")],
    Discriminator(_listed),
]
"""Plain text as it is, or the turns before the answer, read through the chat template."""

TAGS = {"turns", "whole"}
"""Parts of a mistake's place that no field is called."""


class Conversation(Body):
    """A prompt and an answer to it, with what rewards may want to know of the task."""

    prompt: Prompt
    """Text, or turns."""
    response: str
    """The answer, finished: it is read with the end of turn behind it, as in training."""
    gold: str | None = None
    """The reference answer, for rewards that compare with one."""
    fields: dict[str, Any] = {}
    """What else the data set knows of the task."""

    def group(self, prompt_ids: Sequence[int] = (), token_ids: Sequence[int] = ()) -> Group:
        """Return the conversation as rewards are handed it."""
        prompt = self.prompt if isinstance(self.prompt, str) else [_message(turn) for turn in self.prompt]
        sample = Sample(sample_id="request", prompt=prompt, gold=self.gold, fields=self.fields)
        return Group(sample=sample, prompt_ids=prompt_ids, branches=[Branch(token_ids=token_ids, text=self.response)])


class Pair(Body):
    """Two answers to a prompt."""

    prompt: Prompt
    """As in Conversation."""
    chosen: str
    """The answer that is believed to be better."""
    rejected: str
    """The other one."""

    def conversations(self) -> list[Conversation]:
        return [Conversation(prompt=self.prompt, response=answer) for answer in (self.chosen, self.rejected)]


Item = Annotated[Annotated[Conversation, Tag("whole")] | Annotated[list[Turn], Tag("turns")], Discriminator(_listed)]


class ScoreRequest(Body):
    """The body of `POST /v1/score`: either `input` or `pairs`."""

    model: str | None = None
    """Who scores; null where there is one scorer only."""
    input: list[Item] | None = Field(default=None, min_length=1, max_length=1024)
    """Conversations, each with its answer, or as messages of which the last is the assistant's."""
    pairs: list[Pair] | None = Field(default=None, min_length=1, max_length=512)
    """Pairs of answers."""

    @model_validator(mode="after")
    def _one_of_two(self) -> ScoreRequest:
        if (self.input is None) == (self.pairs is None):
            raise ValueError("a request has either input or pairs; send one of them")
        return self

    def conversations(self) -> list[Conversation]:
        """Return all answers that are to be scored, in order; of a pair the chosen one first."""
        if self.pairs is not None:
            return [conversation for pair in self.pairs for conversation in pair.conversations()]
        return [item if isinstance(item, Conversation) else conversation_of(item) for item in self.input or ()]


def conversation_of(messages: Sequence[Turn]) -> Conversation:
    """Messages of which the last is the answer. Raises DataError where it is not the assistant's, or answers
    nothing.
    """
    if len(messages) < 2 or messages[-1].role != "assistant":
        raise DataError("messages to be scored end with the assistant's answer behind at least one other turn")
    return Conversation(prompt=list(messages[:-1]), response=messages[-1].content)


def _message(turn: Turn) -> Message:
    return Message(role=turn.role, content=turn.content)
