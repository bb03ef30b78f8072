"""The address of the agents: a token names an episode, strangers are refused, and nobody beyond this machine hears it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from troupe.agents.address import Address
from troupe.agents.protocol import Ask, Choice, RequestRefused
from troupe.processes.sockets import all_listeners
from troupe.records import Branch


class Echo:
    """An episode that answers with the number of its request, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Ask] = []
        self.scores: list[Any] = []
        self.wait: asyncio.Event | None = None

    async def answer(self, ask: Ask) -> tuple[list[Choice], int]:
        self.asked.append(ask)
        number = len(self.asked)
        if self.wait is not None:
            await self.wait.wait()
        branch = Branch(token_ids=[1], text=f"answer {number}", logprobs=[-0.5])
        return [Choice(branch=branch, text=branch.text, calls=(), tokens=())] * ask.count, 3

    def score(self, reward: Any) -> None:
        if not isinstance(reward, dict):
            raise RequestRefused("a score is a number")
        self.scores.append(reward)


class Open:
    """The address on a loop of its own thread, as a run has it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.address = Address(model="policy", vocabulary=100)
        self.do(self.address.start())

    def do(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    def client(self, token: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.address.base_url, api_key=token, max_retries=0, timeout=10)

    def post(self, path: str, body: bytes, token: str) -> tuple[int, Any]:
        """Status and answer of a request that no client would send."""
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.address.base_url + path, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())


@pytest.fixture(scope="module")
def opened() -> Iterator[Open]:
    opened = Open()
    yield opened
    opened.do(opened.address.stop())
    opened.loop.call_soon_threadsafe(opened.loop.stop)


@pytest.fixture
def episode(opened: Open) -> tuple[Echo, str]:
    episode = Echo()
    return episode, opened.address.open(episode)


def port_of(opened: Open) -> int:
    return int(opened.address.base_url.rpartition(":")[2].partition("/")[0])


HELLO: Any = [{"role": "user", "content": "Hello."}]


def test_it_listens_on_loopback_alone(opened: Open) -> None:
    assert [each.address for each in all_listeners() if each.port == port_of(opened)] == ["127.0.0.1"]


def test_each_token_reaches_its_own_episode(opened: Open) -> None:
    episodes = [Echo(), Echo()]
    tokens = [opened.address.open(each) for each in episodes]
    assert len(set(tokens)) == 2
    for token, words in zip(tokens, ("one", "two"), strict=True):
        said: Any = [{"role": "user", "content": words}]
        answer = opened.client(token).chat.completions.create(model="policy", messages=said)
        assert answer.choices[0].message.content == "answer 1"
    assert [each.asked[0].messages[0]["content"] for each in episodes] == ["one", "two"]


def test_a_stranger_and_an_episode_that_is_over_are_refused_everywhere(opened: Open) -> None:
    episode = Echo()
    token = opened.address.open(episode)
    opened.address.close(token)
    opened.address.close(token)
    for key in (token, "sk-of-openai", token[:-1]):
        client = opened.client(key)
        with pytest.raises(openai.AuthenticationError, match="names no episode that is going on"):
            client.models.list()
        with pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(model="policy", messages=HELLO)
        with pytest.raises(openai.AuthenticationError):
            client.completions.create(model="policy", prompt="x")
        assert opened.post("/score", b'{"reward": 1}', key)[0] == 401
    assert (episode.asked, episode.scores) == ([], [])


def test_a_client_finds_the_one_model(opened: Open, episode: tuple[Echo, str]) -> None:
    assert [model.id for model in opened.client(episode[1]).models.list()] == ["policy"]


def test_what_is_wrong_with_a_request_reaches_the_program_as_its_clients_error(
    opened: Open, episode: tuple[Echo, str]
) -> None:
    client = opened.client(episode[1])
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4o' here"):
        client.chat.completions.create(model="gpt-4o", messages=HELLO)
    with pytest.raises(openai.BadRequestError, match="max_tokens must be a whole number from 1, got 0"):
        client.chat.completions.create(model="policy", messages=HELLO, max_tokens=0)
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="policy", input="x")
    assert episode[0].asked == []


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"no JSON", b"[1, 2]"])
def test_a_body_that_is_no_json_object_is_refused_and_the_address_goes_on(
    opened: Open, episode: tuple[Echo, str], body: bytes
) -> None:
    status, told = opened.post("/chat/completions", body, episode[1])
    assert status == 400
    assert "JSON" in told["error"]["message"]
    assert opened.client(episode[1]).chat.completions.create(model="policy", messages=HELLO).choices


def test_a_score_is_posted_and_one_that_is_none_is_refused(opened: Open, episode: tuple[Echo, str]) -> None:
    assert opened.post("/score", b'{"reward": 0.5}', episode[1]) == (200, {})
    status, told = opened.post("/score", b"[]", episode[1])
    assert (status, told["error"]["message"]) == (400, "a score is a number")
    assert episode[0].scores == [{"reward": 0.5}]


def test_requests_of_one_episode_are_answered_side_by_side(opened: Open, episode: tuple[Echo, str]) -> None:
    echo, token = episode

    async def prepare() -> None:
        echo.wait = asyncio.Event()

    async def all_of_them() -> set[str | None]:
        client = openai.AsyncOpenAI(base_url=opened.address.base_url, api_key=token, max_retries=0, timeout=10)
        asked = [
            asyncio.ensure_future(client.chat.completions.create(model="policy", messages=HELLO)) for _ in range(20)
        ]
        while len(echo.asked) < 20:  # all are in before the first is answered
            await asyncio.sleep(0.01)
        assert echo.wait is not None
        opened.loop.call_soon_threadsafe(echo.wait.set)
        answers = await asyncio.gather(*asked)
        await client.close()
        return {answer.choices[0].message.content for answer in answers}

    opened.do(prepare())
    assert asyncio.run(asyncio.wait_for(all_of_them(), 20)) == {f"answer {number}" for number in range(1, 21)}


def test_a_stream_is_sent_as_events(opened: Open, episode: tuple[Echo, str]) -> None:
    stream = opened.client(episode[1]).chat.completions.create(model="policy", messages=HELLO, n=2, stream=True)
    pieces = [(part.index, part.delta.content) for chunk in stream for part in chunk.choices if part.delta.content]
    assert pieces == [(0, "answer 1"), (1, "answer 1")]


def test_it_stops_although_an_agent_still_asks() -> None:
    opened, echo = Open(), Echo()
    token = opened.address.open(echo)

    async def prepare() -> None:
        echo.wait = asyncio.Event()  # never set

    opened.do(prepare())

    def ask() -> None:
        with contextlib.suppress(openai.APIError):
            opened.client(token).chat.completions.create(model="policy", messages=HELLO)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    while not echo.asked:
        time.sleep(0.01)
    opened.do(opened.address.stop())  # within its ten seconds
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port_of(opened)), 1):
        pass
    assert echo.wait is not None
    opened.loop.call_soon_threadsafe(echo.wait.set)
    asking.join(20)
    opened.loop.call_soon_threadsafe(opened.loop.stop)
