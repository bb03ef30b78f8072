"""Exactness over the chat templates that models come with, as the installed TRL stores them.

The oracle of masks is TRL's own: its training templates mark what the model generates. Of its marks two things are
left out: what the model is given before it goes on (the generation prompt), and what stands behind the end of a turn.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import Any

import pytest

from tests.chat.templates import byte_tokenizer, folder, source, stock
from troupe.chat import ChatForm, TurnEncoder, encode_conversation
from troupe.chat.form import CALLING, PROBE, TOLD, TOOL
from troupe.errors import DataError
from troupe.records import Sample

if not stock():
    pytest.skip("TRL, whose templates these are, is not installed", allow_module_level=True)

ASKED = {"role": "user", "content": "Ask one?"}
AGAIN = {"role": "user", "content": "Ask two?"}
FIRST = {"role": "assistant", "content": "First answer."}
LAST = {"role": "assistant", "content": "Second one."}
THOUGHTS = "<think>\nHm.\n</think>\n\n"
CONVERSATIONS: dict[str, tuple[list[Any], Any]] = {
    "two turns": ([ASKED, FIRST, AGAIN], None),
    "a system turn": ([{"role": "system", "content": "Be brief."}, ASKED], None),
    "thoughts in tags": ([ASKED], {**LAST, "content": THOUGHTS + "Second one."}),
    "thoughts apart": ([ASKED], {**LAST, "reasoning": "Hm."}),
    "a call": ([ASKED], CALLING),
    "a call's result": ([ASKED, CALLING, TOLD], None),
}
REFUSED = {
    ("cohere", "a call"): "refuses its turns|does not show",
    ("cohere", "a call's result"): "refuses its turns|does not show",
    ("cohere2", "a call"): "refuses its turns|does not show",
    ("cohere2", "a call's result"): "refuses its turns|does not show",
    ("gemma", "a system turn"): "System role not supported",
    ("gemma", "a call"): "refuses its turns|does not show",
    ("gemma", "a call's result"): "refuses its turns|does not show",
    ("gemma3", "a call"): "refuses its turns|does not show",
    ("gemma3", "a call's result"): "refuses its turns|does not show",
    ("idefics3", "a call"): "refuses its turns|does not show",
    ("idefics3", "a call's result"): "refuses its turns|does not show",
    ("lfm2", "a call"): "refuses its turns|does not show",
    ("lfm2", "a call's result"): "refuses its turns|does not show",
    ("llama3", "a call"): "does not show its|refuses its turns",
    ("llama3", "a call's result"): "does not show its|refuses its turns",
    ("llava_next", "a call"): "refuses its turns|does not show",
    ("llava_next", "a call's result"): "refuses its turns|does not show",
    ("phi3", "a call"): "refuses its turns|does not show",
    ("phi3", "a call's result"): "refuses its turns|does not show",
    ("phi3_5", "a call"): "refuses its turns|does not show",
    ("phi3_5", "a call's result"): "refuses its turns|does not show",
    ("qwen2_5_vl", "a call"): "refuses its turns|does not show",
    ("qwen2_5_vl", "a call's result"): "refuses its turns|does not show",
    ("smolvlm", "a call"): "refuses its turns|does not show",
    ("smolvlm", "a call's result"): "refuses its turns|does not show",
}
"""What a template does not know is a sentence that names the sample."""
NOT_AS_TRL = {
    ("deepseek_r1_distill", "thoughts apart"): "TRL trains the answer without its thoughts",
    ("deepseek_r1_distill", "a call's result"): "TRL trains a mark that the template writes before the model goes on",
    ("deepseekv3", "thoughts apart"): "TRL trains the answer without its thoughts",
    ("deepseekv3", "thoughts in tags"): "TRL trains the answer without its thoughts",
    ("deepseekv3", "a call"): "TRL writes the JSON of a JSON text as arguments",
    ("deepseekv3", "a call's result"): "TRL writes the JSON of a JSON text as arguments",
    ("diffusion_gemma", "a call"): "<|tool_response>, where the model stops, is trained here",
    ("diffusion_gemma", "a call's result"): "<|tool_response>, where the model stops, is trained here",
}


def form_of(name: str) -> ChatForm:
    return ChatForm(byte_tokenizer(source(name)))


def trained(form: ChatForm, ids: Sequence[int], mask: Sequence[Any]) -> list[str]:
    """The stretches of a conversation that are trained, as text with special tokens."""
    stretches = itertools.groupby(zip(ids, mask, strict=True), key=lambda pair: bool(pair[1]))
    return [form.tokenizer.decode([token for token, _ in pairs]) for marked, pairs in stretches if marked]


def oracle(name: str, form: ChatForm, messages: Sequence[Any], tools: Any) -> tuple[str, list[str]] | None:
    """(the text, what is trained of it) as TRL's training template shows it; None where there is none."""
    directory = folder()
    assert directory is not None
    path = directory / f"{name}_training.jinja"
    own = path.read_text() if path.exists() else source(name)
    if "endgeneration" not in own:
        return None
    shown = [form._for_template(turn, parts=form._in_parts) for turn in messages]
    options = {"chat_template": own, "tools": tools}
    encoded = form.tokenizer.apply_chat_template(
        shown, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **options
    )
    ids, mask = list(encoded["input_ids"]), list(encoded["assistant_masks"])
    for index, turn in enumerate(messages):
        if turn["role"] == "assistant":
            given = form.tokenizer.apply_chat_template(
                shown[:index], tokenize=True, return_dict=False, add_generation_prompt=True, **options
            )
            same = next((i for i, pair in enumerate(zip(ids, given, strict=False)) if pair[0] != pair[1]), len(given))
            before = len(form.tokenizer.apply_chat_template(shown[:index], return_dict=False, **options))
            for place in range(min(before, same), same):
                mask[place] = 0
    ends = [mark for mark in (*form.ends.answer, *form.ends.earlier) if mark]
    stretches = [_up_to_end(text, ends) for text in trained(form, ids, mask)]
    return form.tokenizer.decode(ids), [text for text in stretches if text]


def _up_to_end(text: str, ends: Sequence[str]) -> str:
    """Cut what stands behind the end of a turn: a line's end, or the end token of a whole text."""
    places = [text.rfind(end) + len(end) for end in ends if end in text]
    return text[: max(places)] if places else text.strip().removesuffix("<EOS>").strip()


@pytest.mark.parametrize("kind", CONVERSATIONS)
@pytest.mark.parametrize("name", stock())
def test_what_is_trained_is_what_trl_marks(name: str, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    form, (prompt, answer) = form_of(name), CONVERSATIONS[kind]
    turn = answer or LAST
    tools = [TOOL] if "call" in kind else None
    sample = Sample(sample_id="talk.jsonl:7", prompt=prompt, tools=tools)
    if (name, kind) in REFUSED:
        with pytest.raises(DataError, match=rf"talk\.jsonl:7: .*({REFUSED[name, kind]})"):
            encode_conversation(form, sample, [turn], every_turn=True)
        return
    ids, mask = encode_conversation(form, sample, [turn], every_turn=True)
    ours = trained(form, ids, mask)
    assert ids[-1] in form.stop_ids  # one end is trained, and nothing after it
    assert mask[-1]
    wanted = oracle(name, form, [*prompt, turn], tools)
    if wanted is None or (name, kind) in NOT_AS_TRL:
        assert len(ours) == sum(each["role"] == "assistant" for each in [*prompt, turn])
        assert "Second one." in ours[-1] or PROBE in ours[-1]
        return
    text, theirs = wanted
    if form.tokenizer.decode(ids).strip() in text:
        assert ours == theirs
    else:  # the training template shows earlier turns in another form than the model's own does
        assert ours[-1] == theirs[-1]


@pytest.mark.parametrize("name", stock())
def test_the_tokens_are_those_of_the_template(name: str) -> None:
    form = form_of(name)
    ids, _ = encode_conversation(form, Sample(sample_id="s", prompt=[ASKED, FIRST, AGAIN]), "Second one.")
    shown = [form._for_template(turn, parts=form._in_parts) for turn in (ASKED, FIRST, AGAIN, LAST)]
    whole = form.tokenizer.apply_chat_template(shown, tokenize=False)
    cut = form.tokenizer.decode(ids)
    assert whole.startswith(cut) or cut == whole.rstrip() + form.ends.answer[0]


NO_GAMES = {
    "deepseek_r1_distill": "thoughts are dropped from every turn",
    "deepseekv3": "thoughts are dropped from every turn",
    "diffusion_gemma": "a tool's turn needs a call before it",
    "gemma4_v5": "a tool's turn needs a call before it",
    "glm4moe": "the next role's mark ends a turn",
    "gptoss": "thoughts are dropped, and a turn ends otherwise once others follow",
}
TOOLS_TURN = {
    "lfm2_2_5", "lfm2_2_5_v2", "lfm2_2_5_vl", "nemotron_3_5_lightning", "nemotron_3_nano", "nemotron_3_super",
    "nemotron_3_ultra", "qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6",
}  # fmt: skip


@pytest.mark.parametrize("name", stock())
def test_a_game_of_three_turns_is_the_conversation_as_the_template_shows_it(name: str) -> None:
    form = form_of(name)
    if name in NO_GAMES:
        with pytest.raises(DataError, match="shows an assistant's turn differently once a user's or a tool's turn"):
            TurnEncoder(form)
        return
    turns = TurnEncoder(form)
    assert turns.role == ("tool" if name in TOOLS_TURN else "user")
    prompt = [ASKED]
    ids = form.prompt(Sample(sample_id="s", prompt=prompt))
    messages: list[Any] = [*prompt]
    for number in range(3):
        # What a model that thinks samples: behind `<think>` where the template writes that itself.
        said = f"<think>\nHm {number}.\n</think>\n\nMove {number}."
        opened = form.render(prompt, generation=True).rstrip().endswith("<think>")
        plain = turns.role == "user" and not opened
        content = f"Move {number}." if plain or name == "qwen3_5_nothink" else said
        last = form.render([*messages, {"role": "assistant", "content": content}])
        before = form.render(messages, generation=True)
        assert last.startswith(before)
        answer = last[len(before) :].partition(form.ends.answer[0])[0] + form.ends.answer[0]
        sampled = form.marks.encode(answer)
        ids += sampled + turns.after_answer(sampled[-1], f"Seen {number}.")
        messages += [{"role": "assistant", "content": content}, turns._turn(f"Seen {number}.", turns.role)]
    assert form.tokenizer.decode(ids) == form.render(messages, generation=True)
    assert ids == form.marks.encode(form.render(messages, generation=True))


def test_two_ends_where_a_template_writes_two() -> None:
    ends = {name: form_of(name).ends.answer for name in ("gptoss", "llama3_1", "qwen2_5", "gemma", "phi3", "llama3")}
    assert ends == {
        "gptoss": ("<|return|>", "<|call|>"),
        "llama3_1": ("<|eot_id|>", "<|eom_id|>"),
        "qwen2_5": ("<|im_end|>",),
        "gemma": ("<end_of_turn>",),
        "phi3": ("<|end|>",),
        "llama3": ("<|eot_id|>",),
    }


@pytest.mark.parametrize("name", ["qwen2_5", "gemma", "phi3", "llama3"])
def test_a_base_models_own_end_token_is_not_trained_and_stops_all_the_same(name: str) -> None:
    form = form_of(name)
    ids, mask = encode_conversation(form, Sample(sample_id="s", prompt=[ASKED]), "Yes.")
    assert (
        form.tokenizer.decode([token for token, own in zip(ids, mask, strict=True) if own])
        == "Yes." + (form.ends.answer[0])
    )
    assert form.tokenizer.eos_token_id not in ids
    assert form.stop_ids == (form.end_id, form.tokenizer.eos_token_id)
