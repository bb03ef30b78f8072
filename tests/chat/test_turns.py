"""What stands between two answers of a game is what the chat template puts there, and nothing that was sampled
changes.
"""

from __future__ import annotations

from typing import Any

import pytest

from troupe.chat import CHATML, TurnEncoder, encode_prompt
from troupe.errors import DataError
from troupe.records import Message, Sample
from troupe.training.scratch import train_tokenizer

# Templates in the style of well-known model families, whose end of turn is `<|im_end|>` here.
HEADERS = (  # a system turn of its own, texts are trimmed, an end after each turn, no line between turns
    "{% if messages[0]['role'] != 'system' %}<head>system</head>\n\nBe brief.<|im_end|>{% endif %}"
    "{% for m in messages %}<head>{{ m['role'] }}</head>\n\n{{ m['content'] | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<head>assistant</head>\n\n{% endif %}"
)
BRACKETS = (  # roles must take turns; the model's next answer begins right behind the bracket
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}[Q] {{ m['content'] }} [/Q]{% else %} {{ m['content'] }}<|im_end|>{% endif %}{% "
    "endfor %}"
)
DROPS_REASONING_LATER = CHATML.replace(  # what was thought stays in the last turn alone
    "{{ message['content'] }}",
    "{% if loop.last %}{{ message['content'] }}{% else %}{{ message['content'].split('</think>')[-1] | trim }}{% "
    "endif %}",
)
DROPS_REASONING = CHATML.replace("{{ message['content'] }}", "{{ message['content'].split('</think>')[-1] }}")
THINKS_FIRST = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")

TURNS: list[Message] = [
    {"role": "user", "content": "Where do you play?"},
    {"role": "assistant", "content": "In the middle."},
    {"role": "user", "content": "Taken. Where else?"},
    {"role": "assistant", "content": "In a corner."},
    {"role": "user", "content": "Good. And then?"},
]


def tokenizer_of(template: str | None) -> Any:
    tokenizer = train_tokenizer([turn["content"] for turn in TURNS], 300, 512)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("template", [CHATML, HEADERS, BRACKETS], ids=["chatml", "headers", "brackets"])
def test_turns_that_grow_one_by_one_are_the_conversation_as_the_template_shows_it(template: str) -> None:
    tokenizer = tokenizer_of(template)
    encoder = TurnEncoder(tokenizer)
    ids = encode_prompt(tokenizer, Sample(sample_id="s", prompt=TURNS[:1]))
    for answer, observation in ((TURNS[1], TURNS[2]), (TURNS[3], TURNS[4])):
        text = f" {answer['content']}" if template == BRACKETS else answer["content"]
        said = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        ids += said + encoder.after_answer(said[-1], observation["content"])
    shown = tokenizer.apply_chat_template(TURNS, add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(ids) == shown
    assert ids == tokenizer(shown)["input_ids"]


def test_an_answer_that_was_cut_off_gets_the_end_of_turn_that_it_lacks() -> None:
    tokenizer = tokenizer_of(CHATML)
    encoder = TurnEncoder(tokenizer)
    whole = encoder.after_answer(tokenizer.eos_token_id, "Next?")
    cut = encoder.after_answer(tokenizer("middle")["input_ids"][-1], "Next?")
    assert cut == [tokenizer.eos_token_id, *whole]
    assert tokenizer.decode(whole) == "\n<|im_start|>user\nNext?<|im_end|>\n<|im_start|>assistant\n"


def test_an_opening_stands_between_the_shared_prompt_and_the_first_answer() -> None:
    tokenizer = tokenizer_of(CHATML)
    sample = Sample(sample_id="s", prompt=[{"role": "system", "content": "Play."}])
    prompt, opening = TurnEncoder(tokenizer).opening(sample, "You are x.")
    assert tokenizer.decode(prompt) == "<|im_start|>system\nPlay.<|im_end|>\n"
    assert tokenizer.decode(opening) == "<|im_start|>user\nYou are x.<|im_end|>\n<|im_start|>assistant\n"
    # A branch without an opening begins with the header alone, so that all share the same prompt.
    shared, header = TurnEncoder(tokenizer).opening(sample, None)
    assert shared == prompt
    assert [*shared, *header] == encode_prompt(tokenizer, sample)


@pytest.mark.parametrize("template", [DROPS_REASONING_LATER, DROPS_REASONING], ids=["later", "always"])
def test_a_template_that_rewrites_earlier_turns_is_refused(template: str) -> None:
    with pytest.raises(DataError, match="shows an assistant's turn differently once a user's or a tool's turn follows"):
        TurnEncoder(tokenizer_of(template))


def test_a_tokenizer_without_a_template_is_refused() -> None:
    with pytest.raises(DataError, match="has no chat template; use an instruction-tuned model"):
        TurnEncoder(tokenizer_of(None))


def test_a_template_that_begins_the_thoughts_itself_is_played_where_it_keeps_them() -> None:
    assert TurnEncoder(tokenizer_of(THINKS_FIRST)).role == "user"


def test_where_thoughts_stay_before_a_tool_alone_the_environment_is_a_tool() -> None:
    drops = CHATML.replace(
        "{{ message['content'] }}",
        "{% if messages[-1]['role'] == 'user' %}{{ message['content'].split('</think>')[-1] }}"
        "{% else %}{{ message['content'] }}{% endif %}",
    )
    tokenizer = tokenizer_of(drops)
    encoder = TurnEncoder(tokenizer)
    shown = tokenizer.decode(encoder.after_answer(tokenizer.eos_token_id, "Next?"))
    assert (encoder.role, shown) == ("tool", "\n<|im_start|>tool\nNext?<|im_end|>\n<|im_start|>assistant\n")


def test_special_tokens_in_what_an_environment_said_are_text() -> None:
    tokenizer = tokenizer_of(CHATML)
    ids = TurnEncoder(tokenizer).after_answer(tokenizer.eos_token_id, "<|im_end|>")
    assert ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(ids) == "\n<|im_start|>user\n<|im_end|><|im_end|>\n<|im_start|>assistant\n"
