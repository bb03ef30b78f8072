"""What a client sends is read or refused in one sentence, and what it gets back is OpenAI's, whole or as a stream."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from troupe.agents.protocol import Ask, Choice, RequestRefused, answer_body, answer_stream, message_of, read_ask
from troupe.records import Branch

HELLO = [{"role": "user", "content": "Hello."}]
LOOK = {"type": "function", "function": {"name": "look", "parameters": {}}}
CALL = {"id": "call00000", "type": "function", "function": {"name": "look", "arguments": {"at": "it"}}}


def chat(**fields: Any) -> Ask:
    return read_ask("chat", {"model": "policy", "messages": HELLO, **fields}, model="policy", vocabulary=100)


def text(**fields: Any) -> Ask:
    return read_ask("text", {"model": "policy", "prompt": "Once", **fields}, model="policy", vocabulary=100)


# -- what is read --------------------------------------------------------------------------------------------------


def test_a_bare_request_is_one_answer_as_long_as_it_likes() -> None:
    assert chat() == Ask(kind="chat", messages=HELLO)  # type: ignore[arg-type]
    assert text() == Ask(kind="text", prompt="Once")


def test_settings_that_bound_an_answer_are_taken_and_those_of_sampling_change_nothing() -> None:
    asked = chat(max_tokens=9, n=2, stop="\n", stream=True, stream_options={"include_usage": True}, logprobs=True)
    assert (asked.max_tokens, asked.count, asked.stop) == (9, 2, ("\n",))
    assert asked.stream
    assert asked.with_usage
    assert asked.logprobs
    assert chat(max_completion_tokens=3, max_tokens=9).max_tokens == 3  # the newer name counts
    assert chat(temperature=0.1, top_p=0.5, seed=3, presence_penalty=1, user="me") == chat()
    nothing = ("max_tokens", "n", "stop", "tools", "response_format", "stream_options", "tool_choice", "logprobs")
    assert chat(**dict.fromkeys(nothing)) == chat()  # as clients send what was left out
    assert chat(stop=["a", "b"]).stop == ("a", "b")
    assert chat(response_format={"type": "text"}) == chat()


def test_logprobs_of_a_text_are_a_number_which_may_be_none() -> None:
    assert [text(logprobs=value).logprobs for value in (0, 5, None)] == [True, True, False]
    assert [chat(logprobs=value).logprobs for value in (True, False)] == [True, False]


@pytest.mark.parametrize(
    ("prompt", "read"),
    [("Once", "Once"), (["Once"], "Once"), ([5, 6], [5, 6]), ([[5, 6]], [5, 6]), ([0, 99], [0, 99])],
)
def test_a_prompt_is_a_text_or_token_ids_also_as_the_only_one_of_a_list(prompt: Any, read: Any) -> None:
    assert text(prompt=prompt).prompt == read


def test_turns_are_read_without_what_only_clients_know() -> None:
    turns = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "short."}]},
        {"role": "user", "content": "Look.", "name": "Ada"},
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "annotations": [],
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "it"}'}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "18"},
    ]
    assert list(chat(messages=turns).messages) == [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": "Look.", "name": "Ada"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"at": "it"}}}],
        },
        {"role": "tool", "content": "18", "tool_call_id": "c1"},
    ]


@pytest.mark.parametrize(("arguments", "read"), [("", {}), (None, {}), ("[1]", {}), ('{"a": 1}', {"a": 1})])
def test_a_call_without_an_object_of_arguments_has_none(arguments: Any, read: dict[str, Any]) -> None:
    turn = {"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": arguments}}]}
    (message,) = chat(messages=[turn]).messages
    assert message["tool_calls"][0]["function"] == {"name": "look", "arguments": read}


def test_tools_are_shown_unless_the_client_wants_none_called() -> None:
    assert chat(tools=[LOOK]).tools == (LOOK,)
    assert chat(tools=[LOOK], tool_choice="auto").tools == (LOOK,)
    assert chat(tools=[LOOK], tool_choice="none").tools == ()


# -- what is refused -----------------------------------------------------------------------------------------------

FORCED = {"type": "function", "function": {"name": "look"}}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"max_tokens": 0}, "max_tokens must be a whole number from 1, got 0"),
        ({"max_completion_tokens": "9"}, "max_completion_tokens must be a whole number from 1, got '9'"),
        ({"n": 1.5}, "n must be a whole number from 1, got 1.5"),
        ({"stop": 5}, "stop must be a text or a list, got 5"),
        ({"stop": ["a", 5]}, "stop must be a text or a list of texts that are not empty, got ['a', 5]"),
        ({"stop": [""]}, "stop must be a text or a list of texts that are not empty, got ['']"),
        ({"response_format": "json_object"}, "response_format must be an object, got 'json_object'"),
        ({"response_format": {"type": "json_object"}}, "response_format 'json_object' would change what is sampled"),
        ({"stream_options": True}, "stream_options must be an object, got True"),
        ({"tool_choice": "required"}, "tool_choice can be auto or none"),
        ({"tool_choice": FORCED}, "tool_choice can be auto or none"),
        ({"tools": "look"}, "tools must be a list, got 'look'"),
        ({"tools": ["look"]}, "a tool must be an object with a function that has a name, got 'look'"),
        ({"tools": [{"name": "look"}]}, "a tool must be an object with a function that has a name, got {'name':"),
        (
            {"tools": [{"type": "function", "function": {"name": "x", "parameters": []}}]},
            "parameters must be an object, got []",
        ),
        ({"messages": []}, "messages must be a list of at least one message"),
        ({"messages": "Hello."}, "messages must be a list of at least one message"),
        ({"messages": ["Hello."]}, "a message needs one of OpenAI's roles, got 'Hello.'"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "a message needs one of OpenAI's roles, got {'role': 'bot'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "must be text, or parts of text"),
        ({"messages": [{"role": "user", "content": 5}]}, "must be text, or parts of text"),
        ({"messages": [{"role": "assistant", "tool_calls": 5}]}, "tool_calls must be a list, got 5"),
        ({"messages": [{"role": "assistant", "tool_calls": ["x"]}]}, "a call of a tool cannot be read: 'x'"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": "{"}}]}]},
         "a call of a tool cannot be read: {'function'"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_one_sentence_with_the_value(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        chat(**fields)
    assert sentence in str(refused.value)
    assert refused.value.status == 400
    assert refused.value.body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("", "that is not empty"),
        ([], "that is not empty"),
        (None, "that is not empty"),
        (["one", "two"], "one text, or one list of token ids"),
        ([5, "x"], "one text, or one list of token ids"),
        ([True], "one text, or one list of token ids"),
        ([5, 100], "100 is no token id of this model, which has 100"),
        ([-1], "-1 is no token id"),
    ],
)
def test_a_prompt_that_no_model_could_continue_is_refused(prompt: Any, sentence: str) -> None:
    with pytest.raises(RequestRefused, match=sentence):
        text(prompt=prompt)


@pytest.mark.parametrize("body", [None, [], "x", 5])
def test_a_body_is_an_object(body: Any) -> None:
    with pytest.raises(RequestRefused, match="the body must be a JSON object"):
        read_ask("chat", body, model="policy", vocabulary=9)


def test_another_model_is_not_found_and_the_sentence_names_the_setting() -> None:
    with pytest.raises(RequestRefused, match=r"no model 'gpt' here, only 'policy'; name it in agent\.model") as refused:
        chat(model="gpt")
    assert (refused.value.status, refused.value.body["error"]["type"]) == (404, "not_found_error")


# -- what comes back -----------------------------------------------------------------------------------------------


def choice(*, calls: bool = False, words: str = "Hi", end: str = "stop", tokens: tuple[str, ...] = ()) -> Choice:
    branch = Branch(token_ids=[7, 8, 9], text=words, logprobs=[-0.5, -0.25, -1.0], finish_reason=end)
    return Choice(branch=branch, text=words, calls=[CALL] if calls else [], tokens=tokens)  # type: ignore[list-item]


def test_a_chat_answer_is_what_the_client_of_openai_reads() -> None:
    asked = chat(n=2, logprobs=True)
    tokens = ("H", "i", "<|im_end|>")
    body = answer_body(asked, [choice(tokens=tokens), choice(end="length", tokens=tokens)], 11, "policy")
    read = ChatCompletion.model_validate(body)
    assert [(each.index, each.finish_reason, each.message.content) for each in read.choices] == [
        (0, "stop", "Hi"),
        (1, "length", "Hi"),
    ]
    assert read.usage is not None
    assert (read.usage.prompt_tokens, read.usage.completion_tokens, read.usage.total_tokens) == (11, 6, 17)
    assert read.choices[0].logprobs is not None
    assert [(each.token, each.logprob) for each in read.choices[0].logprobs.content or ()] == [
        ("H", -0.5), ("i", -0.25), ("<|im_end|>", -1.0)
    ]  # fmt: skip
    assert ChatCompletion.model_validate(answer_body(chat(), [choice()], 11, "policy")).choices[0].logprobs is None


def test_calls_of_tools_have_their_arguments_as_json_and_end_the_turn() -> None:
    body = answer_body(chat(tools=[LOOK]), [choice(calls=True, words="")], 11, "policy")
    (read,) = ChatCompletion.model_validate(body).choices
    assert read.finish_reason == "tool_calls"
    assert read.message.content is None
    (call,) = read.message.tool_calls or ()
    assert (call.id, call.function.name, json.loads(call.function.arguments)) == ("call00000", "look", {"at": "it"})  # type: ignore[union-attr]
    # What a later request repeats of it is compared with the objects, not with their text.
    assert message_of(choice(calls=True, words=""))["tool_calls"] == [CALL]


def test_an_answer_that_was_cut_off_in_its_call_ended_by_length() -> None:
    assert choice(calls=True, end="length").finish_reason == "length"
    assert choice(calls=True, end="stop").finish_reason == "tool_calls"


def test_a_text_answer_has_its_logprobs_as_a_column_where_they_were_asked_for() -> None:
    read = Completion.model_validate(answer_body(text(logprobs=0), [choice(tokens=("a", "b", "c"))], 4, "policy"))
    assert read.choices[0].text == "Hi"
    assert read.choices[0].logprobs is not None
    assert read.choices[0].logprobs.token_logprobs == [-0.5, -0.25, -1.0]
    assert Completion.model_validate(answer_body(text(), [choice()], 4, "policy")).choices[0].logprobs is None


def events(asked: Ask, choices: list[Choice]) -> list[dict[str, Any]]:
    """What a stream sends, read as a client reads it."""
    sent = "".join(answer_stream(asked, choices, 11, "policy"))
    assert sent.endswith("\n\n")
    *bodies, done = [event.removeprefix("data: ") for event in sent.removesuffix("\n\n").split("\n\n")]
    assert done == "[DONE]"
    return [json.loads(body) for body in bodies]


@pytest.mark.parametrize("calls", [False, True])
def test_a_stream_put_together_is_the_whole_answer(calls: bool) -> None:
    asked, made = chat(tools=[LOOK], n=2), [choice(calls=calls), choice(words="Two\n\nlines")]
    whole = ChatCompletion.model_validate(answer_body(asked, made, 11, "policy"))
    chunks = [ChatCompletionChunk.model_validate(body) for body in events(asked, made)]
    assert len({chunk.id for chunk in chunks}) == 1
    for each in whole.choices:
        own = [part for chunk in chunks for part in chunk.choices if part.index == each.index]
        assert "".join(part.delta.content or "" for part in own) == each.message.content
        assert [part.finish_reason for part in own] == [None, each.finish_reason]
        assert own[0].delta.role == "assistant"
        streamed = [call for part in own for call in part.delta.tool_calls or ()]
        assert [call.index for call in streamed] == list(range(len(each.message.tool_calls or ())))
        for call, other in zip(streamed, each.message.tool_calls or (), strict=True):
            assert call.function is not None
            assert call.function.arguments == other.function.arguments  # type: ignore[union-attr]


def test_usage_is_a_last_event_without_choices_only_where_it_was_asked_for() -> None:
    *_, last = events(chat(stream_options={"include_usage": True}), [choice()])
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}
    assert all("usage" not in event for event in events(chat(), [choice()]))


def test_a_text_is_streamed_as_text() -> None:
    pieces = [part for event in events(text(), [choice()]) for part in event["choices"]]
    assert [(part["text"], part["finish_reason"]) for part in pieces] == [("Hi", None), ("", "stop")]
