"""What the scorer of a perplexity reward reads: a prompt that all branches share, then context and gold answer of each.

Pieces are tokenised apart and joined as tokens: [prompt][context][close][gold]. So the gold answer has the same tokens
whatever stands before it, and perplexities with and without an answer are over the same tokens; a mask by lengths
marks them. The price is that a token which would span two pieces is not used, in both of them alike.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from troupe.chat import AnyTokenizer, ChatForm, form_of, turn_text
from troupe.config.algorithm import CONTEXT, PerplexityRewardConfig, ReadingConfig
from troupe.errors import DataError
from troupe.records import Branch, Message, Sample

log = logging.getLogger(__name__)

PLACE = "<the answer stands here: 8c1f5d>"
"""Put into a conversation where the answer goes, to find that place in what the chat template made of it."""
BASELINE_FIELDS = ("form", "keep_system", "prompt_end", "place", "baseline_context", "end_of_turn")
"""The settings on which the perplexity without an answer depends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A sample as the scorer reads it, but for the answer.

    Example, `place: user`: prompt_ids of `<|im_start|>user ... synopsis`, close_ids of `<|im_end|>
    <|im_start|>assistant`, gold_ids of the chapter.
    """

    sample: Sample
    prompt_ids: Sequence[int]
    """What all branches share."""
    close_ids: Sequence[int]
    """What the chat template puts behind the answer; empty with `place: assistant`."""
    gold_ids: Sequence[int]
    """What is foreseen."""
    before: str
    """Text before the answer."""
    after: str
    """Text behind it."""

    @property
    def digest(self) -> str:
        """A hash of what the perplexity without an answer is computed of, the settings' own text apart."""
        tokens = [list(self.prompt_ids), list(self.close_ids), list(self.gold_ids)]
        return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:16]


class ScorerPrompt:
    """Frames samples, and puts answers into the frames."""

    def __init__(self, reader: AnyTokenizer | ChatForm, config: PerplexityRewardConfig, *, max_length: int) -> None:
        """Take the scorer's own tokenizer, which need not be of the policy's family; `max_length` is in tokens."""
        self._form, self._config, self._max_length = form_of(reader), config, max_length
        self._tokenizer = self._form.tokenizer
        self._has_cut = False

    @property
    def fingerprint(self) -> str:
        """A hash of the settings that the perplexity without an answer depends on, the tokenizer's apart."""
        facts = {name: getattr(self._config, name) for name in BASELINE_FIELDS}
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def frame(self, sample: Sample) -> Frame:
        """Frame a sample. Raises DataError for one without a gold answer, or too long without any answer."""
        gold_ids = self._gold(sample)
        prompt_ids, close_ids = self._surroundings(sample)
        before, after = _template(sample, self._config)
        fixed = max(len(self._plain(before)) + len(self._plain(after)), len(self._plain(self._config.baseline_context)))
        length = len(prompt_ids) + fixed + len(close_ids) + len(gold_ids)
        if length >= self._max_length:
            raise DataError(
                f"{sample.sample_id}: its prompt and gold answer take {length} tokens of the perplexity scorer, which "
                f"reads {self._max_length}, and the answer must fit in too; choose a scorer that reads more, shorten "
                "the data's documents, or raise perplexity_reward.max_length if the model allows it"
            )
        return Frame(
            sample=sample, prompt_ids=prompt_ids, close_ids=close_ids, gold_ids=gold_ids, before=before, after=after
        )

    def without_answer(self, frame: Frame) -> Branch:
        """Return the gold answer with nothing to go by but the prompt."""
        return self._branch(frame, self._plain(self._config.baseline_context))

    def with_answer(self, frame: Frame, answer: str) -> Branch:
        """Return the gold answer after an answer; one that is too long loses its end."""
        ids, after = self._plain(frame.before + answer), self._plain(frame.after)
        room = self._max_length - len(frame.prompt_ids) - len(after) - len(frame.close_ids) - len(frame.gold_ids)
        if len(ids) > room and not self._has_cut:
            self._has_cut = True
            log.warning(
                "an answer to %s is cut: with it the scorer would read more than %d tokens; this is said once",
                frame.sample.sample_id,
                self._max_length,
            )
        return self._branch(frame, [*ids[:room], *after])

    def handed_over(self, text: str) -> str | None:
        """Return the part of an answer that the scorer sees; None without a marker, or with nothing behind it.

        With the marker `In summary:`, of "He is cornered. In summary: he leaves." it is "he leaves."
        """
        return handed_over(text, self._config)

    # -- pieces -------------------------------------------------------------------------------------------------

    def _branch(self, frame: Frame, context: Sequence[int]) -> Branch:
        read = [*context, *frame.close_ids]
        return Branch(
            token_ids=[*read, *frame.gold_ids],
            loss_mask=[False] * len(read) + [True] * len(frame.gold_ids),
            text=str(frame.sample.gold),
        )

    def _gold(self, sample: Sample) -> list[int]:
        ids = self._plain(sample.gold or "")
        if not ids:
            raise DataError(
                f"{sample.sample_id} has a gold answer of zero tokens, and perplexity_reward measures how well it is "
                "foreseen; use a data set with gold answers, or leave such samples out"
            )
        return [*ids, *self._form.stop_ids[:1]] if self._config.end_of_turn else ids

    def _surroundings(self, sample: Sample) -> tuple[list[int], list[int]]:
        """Return token ids of the prompt, and of what the chat template puts behind the answer."""
        prompt = _conversation(sample, self._config)
        if isinstance(prompt, str):
            ids = list(self._tokenizer(prompt + self._config.prompt_end)["input_ids"])
            if not ids:
                raise DataError(f"{sample.sample_id} has an empty prompt; the scorer needs a token to continue")
            return ids, []
        if self._config.place == "assistant":
            whole = Sample(sample_id=sample.sample_id, prompt=prompt)
            return [*self._form.prompt(whole), *self._plain(self._config.prompt_end)], []
        return self._split_at_the_answer(sample, prompt)

    def _split_at_the_answer(self, sample: Sample, prompt: Sequence[Message]) -> tuple[list[int], list[int]]:
        _require_a_users_turn(sample, prompt)
        if self._form.template is None:
            raise DataError(
                f"{sample.sample_id}: the scorer's tokenizer has no chat template; use an instruction-tuned scorer, "
                f"or form: text"
            )
        last: Message = {"role": "user", "content": turn_text(prompt[-1]) + self._config.prompt_end + PLACE}
        pieces = self._form.render([*prompt[:-1], last], generation=True).split(PLACE)
        if len(pieces) != 2:
            raise DataError(
                f"{sample.sample_id}: the scorer's chat template shows the last user turn {len(pieces) - 1} times, so "
                "the answer has no one place in it; use place: assistant"
            )
        head, tail = map(self._form.marks.encode, pieces)
        return head, tail

    def _plain(self, text: str) -> list[int]:
        """Return token ids of text that is only text: what looks like a special token cannot end a turn."""
        return list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def prompt_with(sample: Sample, answer: str | None, config: ReadingConfig) -> Sample:
    """Return the sample for a model that writes what a scorer would foresee.

    The prompt, then another model's answer or the part of it that is handed over; without one the prompt alone."""
    context = None if answer is None else handed_over(answer, config)
    before, after = _template(sample, config)
    end = config.prompt_end + (config.baseline_context if context is None else before + context + after)
    prompt = _conversation(sample, config)
    if isinstance(prompt, str):
        return replace(sample, prompt=prompt + end)
    if config.place == "user":
        _require_a_users_turn(sample, prompt)
        return replace(sample, prompt=[*prompt[:-1], {"role": "user", "content": turn_text(prompt[-1]) + end}])
    return replace(sample, prompt=[*prompt, {"role": "assistant", "content": end}] if end else prompt)


def handed_over(text: str, config: ReadingConfig) -> str | None:
    """Return the part of an answer that is read; None without a marker, or with nothing behind it."""
    if config.marker is None:
        return text.strip()
    ends = [place + len(marker) for marker in config.marker if (place := text.rfind(marker)) >= 0]
    return (text[max(ends) :].strip() or None) if ends else None


def _template(sample: Sample, config: ReadingConfig) -> tuple[str, str]:
    """Return what stands before the answer, and behind it."""
    template = config.context_template or sample.fields.get("context_template") or CONTEXT
    before, place, after = str(template).partition(CONTEXT)
    if not place:
        raise DataError(f"{sample.sample_id}: its field context_template lacks {CONTEXT}, where the answer goes")
    return before, after


def _conversation(sample: Sample, config: ReadingConfig) -> str | Sequence[Message]:
    given = sample.fields.get("scorer_prompt")
    prompt = sample.prompt if given is None else given
    if isinstance(prompt, str):
        return prompt
    turns = [turn for turn in prompt if given is not None or config.keep_system or turn["role"] != "system"]
    if not turns:
        raise DataError(f"{sample.sample_id}: its prompt has system turns alone; set keep_system")
    return turn_text(turns[-1]) if config.form == "text" else turns


def _require_a_users_turn(sample: Sample, prompt: Sequence[Message]) -> None:
    if prompt[-1]["role"] != "user":
        raise DataError(
            f"{sample.sample_id}: place: user puts the answer behind the last turn, which is the "
            f"{prompt[-1]['role']}'s; use place: assistant"
        )
