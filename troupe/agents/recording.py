"""What an episode says and hears as token sequences: the model's tokens as they were sampled, all others masked.

`Recording` finds, for each request of an agent, the sequence that it goes on from. A request that goes on from none (a
sub-agent, a context that was compacted) begins another. Nothing that was sampled is tokenised again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from troupe.chat import ChatForm, TurnEncoder
from troupe.records import Branch, Message, Sample, Score, WeightSpan

Tools = Sequence[Mapping[str, Any]] | None


@dataclass(slots=True, kw_only=True)
class TokenSequence:
    """A branch in the making."""

    token_ids: list[int] = field(default_factory=list)
    loss_mask: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    spans: list[WeightSpan] = field(default_factory=list)
    speakers: list[tuple[str, int]] = field(default_factory=list)
    """(role, tokens) of each turn so far."""
    turns: int = 0
    """Answers of the model so far."""
    finish_reason: str = "length"

    def hear(self, ids: Sequence[int], speaker: str = "user") -> None:
        """Add tokens that are read, not trained."""
        self.speakers.append((speaker, len(ids)))
        self.token_ids += ids
        self.loss_mask += [False] * len(ids)
        self.logprobs += [0.0] * len(ids)

    def say(self, answer: Branch) -> None:
        """Add the model's tokens, with what is known of how they were sampled."""
        start = len(self.token_ids)
        self.speakers.append(("assistant", len(answer.token_ids)))
        self.token_ids += answer.token_ids
        self.loss_mask += [True] * len(answer.token_ids)
        assert answer.logprobs is not None  # engines give them with every answer
        self.logprobs += answer.logprobs
        self.spans += [replace(span, start=start + span.start, end=start + span.end) for span in answer.weight_versions]
        self.turns += 1

    def take_back(self) -> None:
        """Drop what was read behind the model's last answer."""
        size = len(self.loss_mask)
        while size and not self.loss_mask[size - 1]:
            size -= 1
        del self.token_ids[size:], self.loss_mask[size:], self.logprobs[size:]

    @property
    def last_said(self) -> list[int]:
        """The tokens of the model's last answer."""
        behind = len(self.loss_mask)
        while behind and self.loss_mask[behind - 1]:
            behind -= 1
        return self.token_ids[behind:]

    def branch(self, form: ChatForm, outcome: Score, *, text_ids: Sequence[int], before: Sequence[int] = ()) -> Branch:
        """Return the branch, whose text is that of `text_ids`; `before` are masked tokens in front of all others."""
        whole = [*before, *self.token_ids]
        return Branch(
            token_ids=whole,
            text=form.tokenizer.decode(text_ids, skip_special_tokens=True),
            raw_text=form.tokenizer.decode(whole, skip_special_tokens=False),
            loss_mask=[*[False] * len(before), *self.loss_mask],
            logprobs=[*[0.0] * len(before), *self.logprobs],
            finish_reason=self.finish_reason,
            weight_versions=tuple(
                replace(span, start=span.start + len(before), end=span.end + len(before)) for span in self.spans
            ),
            outcome=outcome,
            turns=[*([("prompt", len(before))] if before else []), *self.speakers],
        )


@dataclass(slots=True, kw_only=True)
class Line(TokenSequence):
    """One sequence of an agent's episode: the prompt of its first request, and what followed."""

    prompt_ids: Sequence[int]
    messages: Sequence[Message] = ()
    """The conversation up to the model's last answer; none where the agent asks by text or token ids."""
    tools: Tools = None
    text: str = ""
    """Of a text that the agent asks to continue, the text up to the model's last answer."""
    busy: bool = False
    """Whether its next answer is being sampled."""
    asked: int = 0
    """Which request of the episode was its last."""

    @property
    def ids(self) -> list[int]:
        """All tokens so far."""
        return [*self.prompt_ids, *self.token_ids]


class Recording:
    """The lines of one episode."""

    def __init__(self, form: ChatForm, turns: TurnEncoder) -> None:
        self._form, self._turns = form, turns
        self.lines: list[Line] = []

    def chat(self, messages: Sequence[Message], tools: Tools) -> Line:
        """Return the line that a request for the next turn of a conversation goes on from, or a new one."""
        line = self._longest(lambda each: self._goes_on(each, messages, tools))
        if line is not None:
            heard = messages[len(line.messages) :]
            line.hear(self._turns.after_turns(line.token_ids[-1], heard), speakers_of(heard))
        else:
            sample = Sample(sample_id="a request of the agent", prompt=messages, tools=tools)
            line = Line(prompt_ids=self._form.prompt(sample), tools=tools)
            self.lines.append(line)
        line.busy = True
        return line

    def complete(self, prompt: str | Sequence[int]) -> Line:
        """Return the line that a request to continue a text, or token ids, goes on from, or a new one."""
        if isinstance(prompt, str):
            line = self._longest(lambda each: not each.messages and bool(each.text) and prompt.startswith(each.text))
            rest = prompt if line is None else prompt[len(line.text) :]
            ids = self._form.text_ids(rest) if rest else []
        else:
            asked = list(prompt)
            line = self._longest(lambda each: not each.messages and asked[: len(each.ids)] == each.ids)
            ids = asked if line is None else asked[len(line.ids) :]
        if line is None:
            line = Line(prompt_ids=ids)
            self.lines.append(line)
        else:
            line.hear(ids, "prompt")
        line.busy = True
        return line

    def _longest(self, fits: Any) -> Line | None:
        fitting = [each for each in self.lines if each.turns and not each.busy and fits(each)]
        return max(fitting, key=lambda each: len(each.ids), default=None)

    def _goes_on(self, line: Line, messages: Sequence[Message], tools: Tools) -> bool:
        """Return whether the conversation is the line's, with turns behind it that can be added to what was sampled."""
        size = len(line.messages)
        behind = messages[size:]
        if not size or not behind or (line.tools or None) != (tools or None):
            return False
        same = all(_key(one) == _key(other) for one, other in zip(line.messages, messages[:size], strict=True))
        return same and self._turns.can_follow([turn["role"] for turn in behind])


def shared_prompt(lines: Sequence[Line], otherwise: Sequence[int]) -> Sequence[int]:
    """Return the beginning that the prompts of all lines have in common; `otherwise` where there are no lines."""
    prompts = [line.prompt_ids for line in lines]
    if not prompts:
        return otherwise
    shortest = min(prompts, key=len)
    size = next((i for i in range(len(shortest)) if any(each[i] != shortest[i] for each in prompts)), len(shortest))
    return list(shortest[:size])


def speakers_of(turns: Sequence[Message]) -> str:
    """Return the speakers of turns, tools by name.

    >>> speakers_of([{"role": "tool", "name": "calculator", "content": "3"}, {"role": "user", "content": "And?"}])
    'tool calculator, user'
    """
    return ", ".join(f"{turn['role']} {turn.get('name', '')}".strip() for turn in turns)


def _key(turn: Message) -> tuple[Any, ...]:
    """Return what makes a turn the same turn: agents strip texts, and ids of calls differ between libraries."""
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in turn.get("tool_calls", ())]
    return turn["role"], (turn["content"] or "").strip(), calls
