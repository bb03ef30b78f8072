"""The door of the endpoint, in front of a model that is a few lines: who gets in, and what errors look like."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import pytest

from troupe.serving.ingress import IngressSettings, Model, build_app, hash_key
from troupe.serving.messages import Message
from troupe.serving.openai_error import ModelUnavailable

KEY = "a-token-of-sixteen"


class Echo:
    """Answers with what it was asked, or as the prompt says."""

    def __init__(self) -> None:
        self.closed = False

    async def answer(self, path: str, content_type: str, body: bytes) -> AsyncIterator[list[Message]]:
        asked = json.loads(body)
        prompt = asked.get("prompt")
        try:
            if prompt == "busy":
                raise ModelUnavailable(429, "tiny has as many requests waiting as it takes")
            if prompt == "refuse":
                error = {
                    "error": {
                        "message": "temperature must be >= 0",
                        "type": "BadRequestError",
                        "param": None,
                        "code": 400,
                    }
                }
                yield response(400, "application/json", json.dumps(error).encode())
            elif prompt == "too long":
                error = {
                    "error": {
                        "message": "This model's maximum context length is 9 tokens.",
                        "type": "BadRequestError",
                        "code": 400,
                    }
                }
                yield response(400, "application/json", json.dumps(error).encode())
            elif prompt == "die":
                yield []
            elif asked.get("stream"):
                yield response(200, "text/event-stream", b"data: 1\n\n", more=True)
                yield [{"type": "http.response.body", "body": b"data: 2\n\n", "more_body": True}]
                if prompt == "die later":
                    raise ModelUnavailable(503, "tiny is being started again")
                yield [{"type": "http.response.body", "body": b"", "more_body": False}]
            else:
                yield response(200, "application/json", json.dumps({"path": path, "asked": asked}).encode())
        finally:
            self.closed = True

    async def card(self) -> dict[str, Any]:
        return {"id": "tiny", "object": "model", "step": 10, "metadata": {"base": True}}

    async def is_there(self) -> bool:
        return True


class Silent(Echo):
    async def card(self) -> dict[str, Any]:
        raise ModelUnavailable(503, "does not answer")

    async def is_there(self) -> bool:
        return False


def response(status: int, kind: str, body: bytes, *, more: bool = False) -> list[Message]:
    return [
        {"type": "http.response.start", "status": status, "headers": [(b"content-type", kind.encode())]},
        {"type": "http.response.body", "body": body, "more_body": more},
    ]


def ask(
    method: str,
    path: str,
    *,
    key: str | None = KEY,
    auth: bool = True,
    models: Mapping[str, Model] = {"tiny": Echo(), "silent": Silent()},
    **request: Any,
) -> httpx.Response:
    """One request to an endpoint with these models, and an adapter on tiny."""
    door = IngressSettings(key_hash=hash_key(KEY) if auth else None, max_bytes=1000, adapters={"poet": "tiny"})
    app = build_app(models, door)
    headers = {b"authorization": f"Bearer {key}".encode()} if key is not None else {}

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://endpoint") as client:
            return await client.request(method, path, headers=headers, **request)

    return asyncio.run(send())


def complete(**body: Any) -> httpx.Response:
    return ask("POST", "/v1/completions", json={"model": "tiny", **body})


def error_of(reply: httpx.Response) -> dict[str, Any]:
    """The error, which has the four keys that OpenAI's have, and no others."""
    error = reply.json()["error"]
    assert set(reply.json()) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] is None or isinstance(error["code"], str)
    return error


@pytest.mark.parametrize("key", [None, "", "wrong", KEY + "x", KEY[:-1], "ключ"])
def test_without_the_token_nothing_is_answered(key):
    reply = ask("GET", "/v1/models", key=key)
    assert reply.status_code == 401
    assert error_of(reply)["code"] == "invalid_api_key"
    assert reply.headers["www-authenticate"] == "Bearer"
    assert KEY not in reply.text


def test_auth_off_asks_for_no_token():
    assert ask("GET", "/v1/models", key=None, auth=False).status_code == 200


def test_health_needs_no_token_and_names_the_models_that_nothing_answers_for():
    reply = ask("GET", "/health", key=None, models={"tiny": Echo()})
    assert (reply.status_code, reply.json()) == (200, {"status": "ok"})
    reply = ask("GET", "/health", key=None)
    assert (reply.status_code, reply.json()) == (503, {"status": "unavailable", "models": ["silent"]})


def test_a_request_reaches_the_model_as_it_came():
    reply = complete(prompt="x", seed=3)
    assert reply.json() == {"path": "/v1/completions", "asked": {"model": "tiny", "prompt": "x", "seed": 3}}


def test_an_adapter_is_answered_by_the_model_it_sits_on():
    assert complete(model="poet", prompt="x").json()["asked"]["model"] == "poet"


def test_a_stream_is_passed_on_whole():
    reply = complete(prompt="x", stream=True)
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.text == "data: 1\n\ndata: 2\n\n"


def test_a_stream_whose_model_dies_ends_with_an_error_that_clients_read():
    *_, last = complete(prompt="die later", stream=True).text.strip().split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "unavailable"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b'{"model": ', 400, "invalid_json"),
        (b"[" * 900, 400, "invalid_json"),
        (b"\xff", 400, "invalid_json"),
        (b'{"model": "tiny", "prompt": "x", "stop": "\\ud800"}', 400, "invalid_json"),
        (b'{"model": "tiny", "prompt": "\xed\xa0\x80"}', 400, "invalid_json"),
        (b"[1]", 400, None),
        (b'{"prompt": "x"}', 400, None),
        (b'{"model": "gpt", "prompt": "x"}', 404, "model_not_found"),
        (b'{"model": "tiny", "prompt": "refuse"}', 400, None),
        (b'{"model": "tiny", "prompt": "too long"}', 400, "context_length_exceeded"),
        (b'{"model": "tiny", "prompt": "busy"}', 429, "overloaded"),
        (b'{"model": "tiny", "prompt": "die"}', 500, "internal_error"),
        (b'{"model": "tiny", "prompt": "' + b"x" * 1000 + b'"}', 400, "context_length_exceeded"),
    ],
)
def test_every_error_has_openais_shape(body, status, code):
    reply = ask("POST", "/v1/completions", content=body)
    assert reply.status_code == status
    assert error_of(reply)["code"] == code


def test_both_halves_of_a_surrogate_pair_are_a_character():
    body = b'{"model": "tiny", "prompt": "\\ud83d\\ude00"}'
    assert ask("POST", "/v1/completions", content=body).json()["asked"]["prompt"] == "\N{GRINNING FACE}"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "foo", "content": "x"}, "messages[1].role"),
        ({"content": "x"}, "messages[1].role"),
        ({"role": "user"}, "messages[1].content"),
        ({"role": "user", "content": None}, "messages[1].content"),
        ({"role": "assistant", "tool_calls": []}, "messages[1].content"),
        ({"role": "assistant", "content": ""}, None),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, None),
        ({"role": "user", "content": [{"type": "text", "text": "x"}]}, None),
    ],
)
def test_a_message_that_openais_api_refuses_is_refused(message, param):
    messages = [{"role": "system", "content": "x"}, message]
    reply = ask("POST", "/v1/chat/completions", json={"model": "tiny", "messages": messages})
    assert reply.status_code == (200 if param is None else 400)
    if param is not None:
        assert error_of(reply)["param"] == param


ENDLESS = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/a"}]}}}
TREE = {"$defs": {"n": {"type": "object", "properties": {"in": {"type": "array", "items": {"$ref": "#/$defs/n"}}}}}}


@pytest.mark.parametrize(
    ("schema", "refused"),
    [
        ({"$ref": "#"}, True),
        ({"anyOf": [{"$ref": "#"}]}, True),
        ({**ENDLESS, "$ref": "#/$defs/a"}, True),
        ({**TREE, "$ref": "#/$defs/n"}, False),
        ({"anyOf": [{"$ref": "#/$defs/n"}, {"$ref": "#/$defs/n"}], **TREE}, False),
        ({"type": "object", "properties": {"next": {"$ref": "#"}, "$ref": {"type": "string"}}}, False),
    ],
)
def test_a_schema_that_refers_to_itself_alone_is_refused_and_a_tree_is_not(schema, refused):
    for asked in (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
        {"structured_outputs": {"json": schema}},
        {"structured_outputs": {"json": json.dumps(schema)}},
    ):
        reply = complete(prompt="x", **asked)
        assert reply.status_code == (400 if refused else 200)
        if refused:
            assert error_of(reply)["param"] == next(iter(asked))


def test_a_body_of_undeclared_size_is_read_no_further_than_the_limit():
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 100
            yield b"x" * 100

    assert ask("POST", "/v1/completions", content=endless()).status_code == 400
    assert read <= 1200


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/nothing", 404), ("GET", "/v1/completions", 405)])
def test_other_addresses_are_refused_in_the_same_shape(method, path, status):
    reply = ask(method, path)
    assert reply.status_code == status
    assert error_of(reply)["code"] == "unknown_url"


def test_the_list_names_models_and_adapters_and_the_served_step():
    cards = {card["id"]: card for card in ask("GET", "/v1/models").json()["data"]}
    assert list(cards) == ["tiny", "silent", "poet"]
    assert (cards["tiny"]["step"], cards["poet"]["parent"]) == (10, "tiny")
    assert ask("GET", "/v1/models/poet").json()["id"] == "poet"
    assert ask("GET", "/v1/models/other").status_code == 404


def test_a_client_that_hangs_up_before_a_whole_answer_ends_the_work():
    class Slow(Echo):
        async def answer(self, path: str, content_type: str, body: bytes) -> AsyncIterator[list[Message]]:
            try:
                await asyncio.Event().wait()
                yield []
            finally:
                self.closed = True

    model = Slow()
    app = build_app({"tiny": model}, IngressSettings(key_hash=None, max_bytes=1000))
    received = iter([{"type": "http.request", "body": b'{"model": "tiny"}'}, {"type": "http.disconnect"}])

    async def receive() -> Message:
        await asyncio.sleep(0.01)
        return next(received)

    async def send(message: Message) -> None:
        pass

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "query_string": b""}

    async def hang_up() -> None:
        await asyncio.wait_for(app({**scope, "root_path": "", "http_version": "1.1"}, receive, send), 5)
        await asyncio.sleep(0.05)

    asyncio.run(hang_up())
    assert model.closed
