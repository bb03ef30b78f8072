"""Supervised examples as groups: a demonstration is one branch, ranked answers are the branches of their prompt."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from troupe.chat import TurnEncoder, answer_spans, answer_text, demonstration_text, encode_answer, encode_prompt
from troupe.errors import DataError
from troupe.records import Answer, Branch, Group, Sample, Score

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def demonstration(
    tokenizer: PreTrainedTokenizerBase, sample: Sample, *, every_turn: bool = False, whole: bool = False
) -> Group:
    """Return the sample's demonstration; with `every_turn` also the assistant's earlier turns are in the loss mask.

    With `whole` the branch begins behind the prompt's first token, so that the loss can also weigh the prompt.
    """
    prompt = encode_prompt(tokenizer, sample)
    answer, mask = _encoded(tokenizer, sample.fields["demonstration"])
    spans = answer_spans(tokenizer, sample, prompt) if every_turn else []
    trained = [False] * len(prompt) + mask
    for span in spans:
        trained[span.start : span.stop] = [True] * len(span)
    start = 1 if whole else max(1, trained.index(True))
    ids = [*prompt, *answer]
    branch = Branch(token_ids=ids[start:], text=demonstration_text(sample), loss_mask=trained[start:])
    return Group(sample=sample, prompt_ids=ids[:start], branches=[branch])


def _encoded(tokenizer: PreTrainedTokenizerBase, answer: Answer) -> tuple[list[int], list[bool]]:
    """Return the token ids of an answer, and which of them are the model's: of several turns its own, as in a game."""
    if isinstance(answer, str):
        ids = encode_answer(tokenizer, answer)
        return ids, [True] * len(ids)
    turns = _turn_encoder(tokenizer)
    ids, mask = [], list[bool]()
    for turn in answer:
        if turn["role"] == "assistant":
            said = encode_answer(tokenizer, turn["content"] or "")
        else:
            said = turns.after_answer(ids[-1], turn["content"] or "")
        ids += said
        mask += [turn["role"] == "assistant"] * len(said)
    return ids, mask


@functools.lru_cache(maxsize=1)
def _turn_encoder(tokenizer: PreTrainedTokenizerBase) -> TurnEncoder:
    return TurnEncoder(tokenizer)


def ranked_answers(tokenizer: PreTrainedTokenizerBase, sample: Sample, *, max_length: int) -> Group | None:
    """Return the sample's ranked answers, scored by their rank, higher is better; None when nothing is left to compare.

    Answers are cut where prompt and answer exceed `max_length` tokens. Of answers that are then equal the best stays.
    """
    prompt = encode_prompt(tokenizer, sample)
    answers: Sequence[Answer] = sample.fields["answers"]
    ranks: Sequence[float] = sample.fields.get("ranks") or range(len(answers))
    room = max(0, max_length - len(prompt))
    branches: dict[tuple[int, ...], tuple[Branch, Score]] = {}
    for answer, rank in sorted(zip(answers, ranks, strict=True), key=lambda pair: pair[1]):
        branch = _branch(tokenizer, answer, room)
        if branch.num_sampled and branch.token_ids not in branches:
            branches[tuple(branch.token_ids)] = (branch, Score(value=-float(rank)))
    scores = [score for _, score in branches.values()]
    if len({score.value for score in scores}) < 2:
        return None
    return Group(sample=sample, prompt_ids=prompt, branches=[branch for branch, _ in branches.values()], scores=scores)


def answer_branch(tokenizer: PreTrainedTokenizerBase, group: Group, max_length: int) -> Branch:
    """Return the sample's reference answer, or the best of its ranked ones, as a branch, cut like ranked answers."""
    answer = group.sample.gold or group.sample.fields["answers"][0]
    return _branch(tokenizer, answer, max_length - len(group.prompt_ids))


def _branch(tokenizer: PreTrainedTokenizerBase, answer: Answer, room: int) -> Branch:
    """Return an answer as a branch of at most `room` tokens; of several turns the assistant's alone are trained."""
    ids, mask = _encoded(tokenizer, answer)
    return Branch(token_ids=tuple(ids[:room]), text=answer_text(answer), loss_mask=None if all(mask) else mask[:room])


def require_answers(sample: Sample) -> None:
    """Raise DataError unless the sample has answers to choose between."""
    if len(sample.fields.get("answers") or ()) < 2:
        raise DataError(
            f"{sample.sample_id} has no ranked answers; use a data set with preferences (docs/data.md), or name "
            f"data.chosen_field "
            "and data.rejected_field"
        )
