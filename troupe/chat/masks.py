"""Conversations with their answers as token ids, and which of them are the model's: what supervised training reads.

The whole conversation is rendered once, as the template shows it, and each assistant's turn is found in it: it begins
where the template would have let the model go on, and ends with the template's end of turn. What is trained is cut off
from what stands before it, so that it has the tokens that the model would have sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from troupe.chat.form import ASKED, PLAIN, PROBE, ChatForm, encode_answer, named, say_once, without_overlap
from troupe.chat.texts import answer_text
from troupe.errors import DataError
from troupe.records import Answer, Message, Sample

Ids = list[int]


@dataclass(frozen=True, slots=True)
class Span:
    """The characters [start, end) of a rendered conversation that are the model's."""

    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedAnswers:
    """Answers to one prompt, as a model would have sampled them."""

    prompt_ids: Ids
    answers: Sequence[Ids]
    masks: Sequence[list[bool] | None]
    """Which tokens of each answer are the model's; None: all."""


def encode_answers(form: ChatForm, sample: Sample, answers: Sequence[Answer]) -> EncodedAnswers:
    """Encode answers to the sample's prompt; the prompt is what all of them have in common."""
    encoded = [encode_conversation(form, sample, answer) for answer in answers]
    prompts = [ids[: mask.index(True)] for ids, mask in encoded]
    size = min(shared(prompts[0], prompt) for prompt in prompts)
    return EncodedAnswers(
        prompt_ids=prompts[0][:size],
        answers=[ids[size:] for ids, _ in encoded],
        masks=[None if all(mask[size:]) else mask[size:] for _, mask in encoded],
    )


def answer_behind(
    form: ChatForm, sample: Sample, prompt_ids: Sequence[int], answer: Answer
) -> tuple[Ids, list[bool] | None]:
    """Return an answer as a model would have sampled it behind these ids of the sample's prompt, and its mask."""
    ids, mask = encode_conversation(form, sample, answer)
    size = len(prompt_ids)
    if ids[:size] != list(prompt_ids):
        return encode_answer(form, answer_text(answer)), None
    return ids[size:], None if all(mask[size:]) else mask[size:]


def encode_conversation(
    form: ChatForm, sample: Sample, answer: Answer, *, every_turn: bool = False
) -> tuple[Ids, list[bool]]:
    """Return token ids of prompt and answer, and which are the model's; with `every_turn` also those in the prompt."""
    begun = not isinstance(sample.prompt, str) and sample.prompt[-1]["role"] == "assistant"
    if form.reads_raw(sample) or begun:
        return _behind_the_prompt(form, sample, answer)
    with named(sample):
        turns: list[Message] = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else list(answer)
        asked = form.messages(sample)
        whole = [*asked, *turns]
        text = form.render(whole, tools=sample.tools)
        form.require_shown(text, sample.tools or [], whole)
        spans = list[Span]()
        # A turn that opens the conversation answers nothing, and no template shows what precedes it.
        for index in range(1 if every_turn else len(asked), len(whole)):
            if whole[index]["role"] != "assistant":
                continue
            span = _find(form, whole, index, text, sample, spans[-1].end if spans else 0)
            if span is not None:
                spans.append(span)
            elif index >= len(asked):
                return _behind_the_prompt(form, sample, answer)
        return _encode_spans(form, text, spans, whole[-1])


def shared(first: str | Ids, second: str | Ids) -> int:
    """Return how long the beginning is that both have in common.

    >>> shared("turn one", "turn two")
    5
    """
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _behind_the_prompt(form: ChatForm, sample: Sample, answer: Answer) -> tuple[Ids, list[bool]]:
    """Put the answer's text behind the prompt, where no template shows both together."""
    if not isinstance(answer, str) and len(answer) > 1:
        raise DataError(
            f"{sample.sample_id}: its answer has {len(answer)} turns, which the chat template cannot show behind this "
            "prompt; give prompts that are messages, or an answer of one turn"
        )
    prompt, text = form.prompt(sample), answer_text(answer)
    if not form.reads_raw(sample):
        before = form.prompt_text(sample)
        thoughts = "" if isinstance(answer, str) else answer[0].get("reasoning", "")
        if thoughts and before.rstrip().endswith("<think>"):
            text = f"<think>\n{thoughts}\n</think>\n\n{text}"
        text = without_overlap(before, text)
    ids = encode_answer(form, text)
    return prompt + ids, [False] * len(prompt) + [True] * len(ids)


def _find(
    form: ChatForm, messages: Sequence[Message], index: int, text: str, sample: Sample, after: int
) -> Span | None:
    """Find the turn at `index` in the rendered conversation; None where the template does not show it as it was said.

    `after` is where the turn before it ended.
    """
    other = form.render([*messages[:index], _altered(messages[index]), *messages[index + 1 :]], tools=sample.tools)
    same = shared(text, other)
    tail = shared(text[same:][::-1], other[same:][::-1])
    said_end = len(text) - tail
    before = form.render(messages[:index], generation=True, tools=sample.tools)
    start = len(before) if text.startswith(before) else _behind_header(form, text[:same], after)
    if start is None or said_end <= same:
        _not_found(sample, index)
        return None
    end = _end_of_turn(form, text, said_end)
    form.require_shown(text[start:end], [], messages[index : index + 1])
    shown = _squashed(text[start:said_end])
    lost = [each for each in _said(messages[index]) if _squashed(each) not in shown]
    thoughts = messages[index].get("reasoning", "")
    if index == len(messages) - 1:
        # Thoughts that the template begins itself can be trained behind the prompt; others it does not know.
        if lost or (_squashed(thoughts) not in shown and before.rstrip().endswith("<think>")):
            _not_found(sample, index)
            return None
    elif lost or not text.startswith(before):
        say_once("the chat template shows earlier turns in another form than the last one; that form is trained")
    if _squashed(thoughts) not in shown:
        say_once("the chat template does not show all thoughts (reasoning), so these are not trained")
    return Span(start, len(text.rstrip()) if end is None and index == len(messages) - 1 else end or said_end)


def _not_found(sample: Sample, index: int) -> None:
    say_once(
        f"the chat template does not show turn {index + 1} of {sample.sample_id} as it was said; of such conversations "
        "the last turn alone is trained"
    )


def _altered(turn: Message) -> Message:
    """Return the turn with other words, so that comparison shows where they are."""
    other: Message = {**turn}
    if turn["content"] or not turn.get("tool_calls"):
        other["content"] = _other_words(turn["content"] or "")
    if "tool_calls" in turn:
        other["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": {PROBE: PROBE}}} for call in turn["tool_calls"]
        ]
    return other


def _other_words(text: str) -> str:
    """Return words that neither begin nor end as `text` does, so that a comparison finds all of it.

    >>> _other_words("a matrix")
    'jwk'
    """
    said = text.strip()
    return next(each for each in (PROBE, "jwk", "zfb") if each[0] != said[:1] and each[-1] != said[-1:])


def _said(turn: Message) -> list[str]:
    """Return what must be found of a turn: its paragraphs, tags of thoughts apart."""
    return (turn["content"] or "").replace("<think>", "").replace("</think>", "\n\n").split("\n\n")


def _squashed(text: str) -> str:
    return "".join(text.split())


def _behind_header(form: ChatForm, text: str, after: int) -> int | None:
    """Return where the model's words begin at the end of `text`: behind as much of the template's header as is there.

    Example: Qwen3.5 lets the model go on behind `<|im_start|>assistant\\n<think>\\n`; an earlier turn has the first
    line of it alone.
    """
    header, core = _header(form)
    place = text.rfind(core, after) if core else -1
    if place < 0:
        return None
    reach = place
    for piece in form.marks.split(header):
        for part in [piece] if piece in form.marks.ids else piece:
            if not text.startswith(part, reach):
                return max(reach, place + len(core))
            reach += len(part)
    return reach


def _header(form: ChatForm) -> tuple[str, str]:
    """Return (what stands between a user's turn and the model's words, the part of it that every such turn has)."""
    asked = form.render([ASKED])
    header = form.render([ASKED], generation=True)
    shown = [form.render([ASKED, PLAIN]), form.render([ASKED, PLAIN, ASKED])]
    size = shared(asked, header)
    core = min(shared(header, each.partition(PROBE)[0]) for each in shown)
    return header[size:], header[size:core]


def _end_of_turn(form: ChatForm, text: str, place: int) -> int | None:
    """Return the place behind the first end of turn from `place` on; None where there is none."""
    reach = place
    ends = {*form.ends.answer, *form.ends.earlier}
    for piece in form.marks.split(text[place:]):
        reach += len(piece)
        if piece in ends:
            return reach
    return None


def _encode_spans(form: ChatForm, text: str, spans: Sequence[Span], last_turn: Message) -> tuple[Ids, list[bool]]:
    """Encode a rendered conversation up to its last span, cut where spans begin."""
    ids, mask = form.marks.encode(text[: spans[0].start]), list[bool]()
    mask = [False] * len(ids)
    for number, span in enumerate(spans):
        last = number == len(spans) - 1
        # Together with what follows, because some marks take the white space behind them.
        piece = form.marks.encode(text[span.start : None if last else spans[number + 1].start])
        size = _size(form, text[span.start : span.end], piece)
        ids += piece[:size] if last else piece
        mask += [True] * size + ([] if last else [False] * (len(piece) - size))
    # Where the next turn's beginning ends a turn, nothing stands behind the last one yet.
    if form.stop_ids and ids[-1] not in form.stop_ids:
        follows = min(len(form.ends.answer) - 1, 1) if "tool_calls" in last_turn else 0
        ids, mask = [*ids, form.stop_ids[max(0, follows)]], [*mask, True]
    return ids, mask


def _size(form: ChatForm, said: str, ids: Ids) -> int:
    """Return how many of the ids that begin with `said` are its own: up to its end mark, if it has one."""
    pieces = form.marks.split(said)
    if len(pieces) == 1 or pieces[-1]:
        return len(form.marks.encode(said))
    end = form.marks.ids[pieces[-2]]
    wanted = pieces.count(pieces[-2])
    places = [place for place, each in enumerate(ids) if each == end]
    return places[wanted - 1] + 1
