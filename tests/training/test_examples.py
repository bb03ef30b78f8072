"""Supervised examples: what is trained of a conversation, and which ranked answers remain to be compared."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from troupe.chat import CHATML, encode_answer, encode_prompt
from troupe.errors import DataError
from troupe.records import Group, Message, Sample
from troupe.training.examples import answer_branch, demonstration, ranked_answers, require_answers
from troupe.training.scratch import train_tokenizer

SYSTEM: Message = {"role": "system", "content": "Be brief."}
TURNS: list[Message] = [
    {"role": "user", "content": "Name a colour."},
    {"role": "assistant", "content": "Blue, as the sea."},
    {"role": "user", "content": "Another one?"},
    {"role": "assistant", "content": "Green."},
    {"role": "user", "content": "And a last one!"},
]
LAST = "Yellow, of course."
THINKING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'].split('</think>')[-1] if not loop.last else message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template that drops the reasoning of every turn but the last, as those of reasoning models do."""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    texts = [turn["content"] for turn in TURNS] + [LAST, SYSTEM["content"], "What is 3+5?"]
    return train_tokenizer(texts, vocab_size=300, max_length=128)


def conversation(prompt: Any, **fields: Any) -> Sample:
    return Sample(sample_id="talk/1", prompt=prompt, fields={"demonstration": LAST, **fields})


def trained_texts(tokenizer: Any, group: Group) -> list[str]:
    """The stretches of the branch that are in the loss, as text with special tokens."""
    (branch,) = group.branches
    mask = branch.loss_mask or [True] * len(branch.token_ids)
    stretches: list[list[int]] = []
    inside = False
    for token, counted in zip(branch.token_ids, mask, strict=True):
        if counted and not inside:
            stretches.append([])
        if counted:
            stretches[-1].append(token)
        inside = counted
    return [tokenizer.decode(stretch) for stretch in stretches]


def test_answers_of_several_turns_are_trained_on_the_assistants_alone(tokenizer: Any) -> None:
    said = [
        [{"role": "assistant", "content": one}, TURNS[2], {"role": "assistant", "content": "Green."}]
        for one in ("Blue, as the sea.", "Yellow, of course.")
    ]
    sample = Sample(sample_id="pair/1", prompt=TURNS[:1], fields={"answers": said})
    group = ranked_answers(tokenizer, sample, max_length=128)
    assert group is not None
    texts = [trained_texts(tokenizer, dataclasses.replace(group, branches=[branch])) for branch in group.branches]
    assert texts == [[f"{one}<|im_end|>", "Green.<|im_end|>"] for one in ("Blue, as the sea.", "Yellow, of course.")]
    whole = tokenizer.decode([*group.prompt_ids, *group.branches[1].token_ids])
    assert whole == tokenizer.apply_chat_template([*TURNS[:1], *said[1]], tokenize=False).removesuffix("\n")


def all_ids(group: Group) -> list[int]:
    return [*group.prompt_ids, *group.branches[0].token_ids]


# -- demonstrations ----------------------------------------------------------------------------------------------


def test_of_a_single_turn_the_answer_and_its_end_are_trained(tokenizer: Any) -> None:
    group = demonstration(tokenizer, conversation("What is 3+5?"))
    assert trained_texts(tokenizer, group) == [f"{LAST}<|im_end|>"]
    assert list(group.prompt_ids) == tokenizer("What is 3+5?")["input_ids"]


@pytest.mark.parametrize("system", [[], [SYSTEM]])
def test_every_assistant_turn_is_trained_with_its_end_and_nothing_else(tokenizer: Any, system: list[Message]) -> None:
    sample = conversation([*system, *TURNS])
    group = demonstration(tokenizer, sample, every_turn=True)
    assert trained_texts(tokenizer, group) == [
        "Blue, as the sea.<|im_end|>",
        "Green.<|im_end|>",
        f"{LAST}<|im_end|>",
    ]
    # What the model reads is the conversation as it is, in one piece.
    assert all_ids(group) == encode_prompt(tokenizer, sample) + encode_answer(tokenizer, LAST)
    # The branch begins with the first token that is trained; what is before it need not be predicted.
    assert tokenizer.decode(group.prompt_ids).endswith("Name a colour.<|im_end|>\n<|im_start|>assistant\n")


def test_of_the_last_turn_alone_the_earlier_ones_are_prompt(tokenizer: Any) -> None:
    group = demonstration(tokenizer, conversation(TURNS))
    assert trained_texts(tokenizer, group) == [f"{LAST}<|im_end|>"]
    assert list(group.prompt_ids) == encode_prompt(tokenizer, conversation(TURNS))


def test_a_turn_that_opens_the_conversation_answers_nothing_and_is_not_trained(tokenizer: Any) -> None:
    opened: list[Message] = [{"role": "assistant", "content": "Hello."}, *TURNS]
    group = demonstration(tokenizer, conversation(opened), every_turn=True)
    assert trained_texts(tokenizer, group)[0] == "Blue, as the sea.<|im_end|>"
    assert all_ids(group) == encode_prompt(tokenizer, conversation(opened)) + encode_answer(tokenizer, LAST)


def test_earlier_turns_are_trained_in_the_form_that_the_template_gives_them(tokenizer: Any) -> None:
    tokenizer.chat_template = THINKING
    try:
        turns = [dict(turn) for turn in TURNS]
        turns[1]["content"] = "<think>The sea?</think>Blue."
        group = demonstration(tokenizer, conversation(turns), every_turn=True)
        assert trained_texts(tokenizer, group) == ["Blue.<|im_end|>", "Green.<|im_end|>", f"{LAST}<|im_end|>"]
        # Of the last turn alone nothing is rewritten.
        group = demonstration(tokenizer, conversation(turns))
        assert trained_texts(tokenizer, group) == [f"{LAST}<|im_end|>"]
    finally:
        tokenizer.chat_template = CHATML


@pytest.mark.parametrize("every_turn", [False, True])
def test_whole_moves_the_prompt_into_the_branch_and_leaves_the_mask_where_it_was(
    tokenizer: Any, every_turn: bool
) -> None:
    sample = conversation(TURNS)
    part = demonstration(tokenizer, sample, every_turn=every_turn)
    group = demonstration(tokenizer, sample, every_turn=every_turn, whole=True)
    assert len(group.prompt_ids) == 1  # something must predict the first token of a branch
    assert all_ids(group) == all_ids(part)
    assert trained_texts(tokenizer, group) == trained_texts(tokenizer, part)


# -- ranked answers ----------------------------------------------------------------------------------------------


def preference(answers: list[str], **fields: Any) -> Sample:
    return Sample(sample_id="pair/1", prompt="Name a colour.", fields={"answers": answers, **fields})


def told(group: Group | None) -> list[tuple[str, float | None]]:
    assert group is not None
    return [(branch.text, score.value) for branch, score in zip(group.branches, group.scores, strict=True)]


def test_answers_without_ranks_come_best_first(tokenizer: Any) -> None:
    group = ranked_answers(tokenizer, preference(["Blue.", "Green.", "Sea."]), max_length=100)
    assert told(group) == [("Blue.", 0), ("Green.", -1), ("Sea.", -2)]
    assert group is not None
    assert [branch.token_ids[-1] for branch in group.branches] == [tokenizer.eos_token_id] * 3


def test_ranks_sort_the_answers_and_ties_have_one_score(tokenizer: Any) -> None:
    sample = preference(["Sea.", "Blue.", "Green.", "Last."], ranks=[7, 2, 7, 5])
    group = ranked_answers(tokenizer, sample, max_length=100)
    assert told(group) == [("Blue.", -2), ("Last.", -5), ("Sea.", -7), ("Green.", -7)]


def test_of_equal_answers_the_best_place_stays(tokenizer: Any) -> None:
    sample = preference(["Blue.", "Green.", "Blue.", "Sea."])
    assert told(ranked_answers(tokenizer, sample, max_length=100)) == [("Blue.", 0), ("Green.", -1), ("Sea.", -3)]


@pytest.mark.parametrize(
    ("answers", "fields"),
    [
        (["Blue.", "Blue."], {}),
        # All that is left after the doublet ties with itself.
        (["Blue.", "Blue.", "Green."], {"ranks": [0, 1, 0]}),
    ],
)
def test_answers_that_leave_nothing_to_compare_are_left_out(
    tokenizer: Any, answers: list[str], fields: dict[str, Any]
) -> None:
    assert ranked_answers(tokenizer, preference(answers, **fields), max_length=100) is None


def test_prompt_and_answer_are_cut_to_the_length_and_what_then_is_equal_is_one(tokenizer: Any) -> None:
    answers = ["Blue, as the sea.", "Blue, as the sky.", "Green."]
    prompt = len(tokenizer("Name a colour.")["input_ids"])
    ids = [tokenizer(answer)["input_ids"] for answer in answers]
    shared = next(index for index, (a, b) in enumerate(zip(ids[0], ids[1], strict=False)) if a != b)
    group = ranked_answers(tokenizer, preference(answers), max_length=prompt + shared + 1)
    assert group is not None
    assert [len(branch.token_ids) for branch in group.branches][:2] == [shared + 1, shared + 1]
    assert tokenizer.eos_token_id not in group.branches[0].token_ids  # it was cut before its end
    # One token less, and the first two are the same tokens: two of three answers are left.
    group = ranked_answers(tokenizer, preference(answers), max_length=prompt + shared)
    assert [value for _, value in told(group)] == [0, -2]
    # A prompt that fills the length leaves no room for any answer.
    assert ranked_answers(tokenizer, preference(answers), max_length=prompt) is None


def test_the_reference_answer_is_the_gold_one_or_else_the_best(tokenizer: Any) -> None:
    sample = preference(["Blue.", "Green."])
    group = ranked_answers(tokenizer, sample, max_length=100)
    assert group is not None
    assert answer_branch(tokenizer, group, 64).text == "Blue."
    gold = Sample(sample_id="pair/1", prompt=sample.prompt, gold="Red.", fields=sample.fields)
    branch = answer_branch(tokenizer, Group(sample=gold, prompt_ids=group.prompt_ids, branches=()), 64)
    assert list(branch.token_ids) == encode_answer(tokenizer, "Red.")


def test_a_data_set_without_preferences_is_told_what_to_name() -> None:
    with pytest.raises(DataError, match=r"talk/1 has no ranked answers; .* name data\.chosen_field"):
        require_answers(conversation("What is 3+5?"))
