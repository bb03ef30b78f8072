"""Supervised examples as groups: a demonstration is one branch, ranked answers are the branches of their prompt."""

from __future__ import annotations

from collections.abc import Sequence

from troupe.chat import (
    AnyTokenizer,
    ChatForm,
    answer_behind,
    answer_text,
    demonstration_text,
    encode_answers,
    encode_conversation,
    form_of,
)
from troupe.errors import DataError
from troupe.records import Answer, Branch, Group, Sample, Score


def demonstration(
    reader: AnyTokenizer | ChatForm, sample: Sample, *, every_turn: bool = False, whole: bool = False
) -> Group:
    """Return the sample's demonstration; with `every_turn` also the assistant's earlier turns are in the loss mask.

    With `whole` the branch begins behind the prompt's first token, so that the loss can also weigh the prompt.
    """
    answer: Answer = sample.fields["demonstration"]
    ids, trained = encode_conversation(form_of(reader), sample, answer, every_turn=every_turn)
    start = 1 if whole else max(1, trained.index(True))
    branch = Branch(token_ids=ids[start:], text=demonstration_text(sample), loss_mask=trained[start:])
    return Group(sample=sample, prompt_ids=ids[:start], branches=[branch])


def ranked_answers(reader: AnyTokenizer | ChatForm, sample: Sample, *, max_length: int) -> Group | None:
    """Return the sample's ranked answers, scored by their rank, higher is better; None when nothing is left to compare.

    Answers are cut where prompt and answer exceed `max_length` tokens. Of answers that are then equal the best stays.
    """
    answers: Sequence[Answer] = sample.fields["answers"]
    ranks: Sequence[float] = sample.fields.get("ranks") or range(len(answers))
    encoded = encode_answers(form_of(reader), sample, answers)
    room = max(0, max_length - len(encoded.prompt_ids))
    branches: dict[tuple[int, ...], tuple[Branch, Score]] = {}
    told = zip(answers, encoded.answers, encoded.masks, ranks, strict=True)
    for answer, whole, mask, rank in sorted(told, key=lambda each: each[-1]):
        ids = tuple(whole[:room])
        branch = Branch(token_ids=ids, text=answer_text(answer), loss_mask=mask and mask[:room])
        if branch.num_sampled and ids not in branches:
            branches[ids] = (branch, Score(value=-float(rank)))
    scores = [score for _, score in branches.values()]
    if len({score.value for score in scores}) < 2:
        return None
    return Group(
        sample=sample,
        prompt_ids=encoded.prompt_ids,
        branches=[branch for branch, _ in branches.values()],
        scores=scores,
    )


def num_tokens(reader: AnyTokenizer | ChatForm, sample: Sample, column: str) -> int:
    """Count the tokens of a sample's prompt and demonstration, or of the longest of its `answers`."""
    answers = sample.fields["answers"] if column == "answers" else [sample.fields[column]]
    encoded = encode_answers(form_of(reader), sample, answers)
    return len(encoded.prompt_ids) + max(map(len, encoded.answers))


def answer_branch(reader: AnyTokenizer | ChatForm, group: Group, max_length: int) -> Branch:
    """Return the sample's reference answer, or the best of its ranked ones, as a branch, cut like ranked answers."""
    answer: Answer = group.sample.gold or group.sample.fields["answers"][0]
    room = max_length - len(group.prompt_ids)
    ids, mask = answer_behind(form_of(reader), group.sample, group.prompt_ids, answer)
    return Branch(token_ids=ids[:room], text=answer_text(answer), loss_mask=mask and mask[:room])


def require_answers(sample: Sample) -> None:
    """Raise DataError unless the sample has answers to choose between."""
    if len(sample.fields.get("answers") or ()) < 2:
        raise DataError(
            f"{sample.sample_id} has no ranked answers; use a data set with preferences (docs/data.md), or name "
            f"data.chosen_field "
            "and data.rejected_field"
        )
