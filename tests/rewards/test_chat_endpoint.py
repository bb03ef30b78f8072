import asyncio
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from tests.rewards.chat_server import Answer, ChatServer
from troupe.errors import RewardError
from troupe.records import Message
from troupe.rewards.cache import ReplyCache
from troupe.rewards.chat_endpoint import ChatEndpoint, EndpointConfig, Judgement, parse_retry_after
from troupe.rewards.remote import read_number

KEY = "sk-very-secret-0123456789"

Serve = Callable[..., ChatServer]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with ExitStack() as stack:
        yield lambda respond: stack.enter_context(ChatServer(respond, key=KEY).running())


def endpoint_of(url: str, **settings: Any) -> ChatEndpoint:
    quick = {"timeout_s": 5, "patience_s": 5, "backoff_s": 0.01, "cache": None}
    config = EndpointConfig(**{"base_url": url, "model": "m", "api_key_env": "JUDGE_KEY", **quick, **settings})
    return ChatEndpoint(config)


def question(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def ask(endpoint: ChatEndpoint, *texts: str) -> list[Judgement[float]]:
    """All at once, in a fresh event loop, as callers without a loop of their own do."""

    async def together() -> list[Judgement[float]]:
        return await asyncio.gather(*(endpoint.ask(question(text), read_number) for text in texts))

    return asyncio.run(together())


def at_first(*trouble: Answer | str, then: str = "reward:1") -> Callable[[dict[str, Any], int], Answer | str]:
    return lambda body, number: trouble[number] if number < len(trouble) else then


# -- retries ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble",
    [
        [Answer(status=500), Answer(status=502), Answer(status=503)],
        [Answer(status=429), Answer(status=408)],
        [Answer(hang_up=True), Answer(hang_up=True)],
    ],
    ids=["5xx", "busy", "hangs up"],
)
def test_trouble_that_passes_is_waited_for(serve: Serve, trouble: list[Answer]) -> None:
    server = serve(at_first(*trouble))
    endpoint = endpoint_of(server.url)
    assert ask(endpoint, "?") == [Judgement(value=1.0, retries=len(trouble), tokens=7)]
    assert endpoint.counters == {"requests": len(trouble) + 1, "retries": len(trouble), "tokens": 7}


def test_a_reply_that_takes_too_long_is_not_waited_for_but_asked_for_again(serve: Serve) -> None:
    server = serve(at_first(Answer(text="reward:9", delay_s=1.0)))
    (judgement,) = ask(endpoint_of(server.url, timeout_s=0.3), "?")
    assert judgement.value == 1.0
    assert judgement.retries >= 1  # more where the machine itself is slow


def test_the_pauses_grow(serve: Serve) -> None:
    server = serve(at_first(*[Answer(status=500)] * 3))
    ask(endpoint_of(server.url, backoff_s=0.04), "?")
    pauses = [later - earlier for earlier, later in zip(server.arrivals, server.arrivals[1:], strict=False)]
    # At least half of 0.04, 0.08, 0.16; the upper bounds are the machine's business.
    assert [pause >= least for pause, least in zip(pauses, (0.02, 0.04, 0.08), strict=True)] == [True] * 3


def test_a_judge_that_names_a_time_is_left_alone_until_then(serve: Serve) -> None:
    server = serve(at_first(Answer(status=429, headers={"Retry-After": "0.3"})))
    assert ask(endpoint_of(server.url), "?")[0].value == 1.0
    assert server.arrivals[1] - server.arrivals[0] >= 0.3


def test_a_time_beyond_the_patience_is_not_waited_for(serve: Serve) -> None:
    server = serve(at_first(Answer(status=429, headers={"Retry-After": "3600"})))
    assert ask(endpoint_of(server.url), "?") == [Judgement(value=None)]
    assert len(server.bodies) == 1


def test_retry_after_is_seconds_or_a_date() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert 50 < parse_retry_after(soon) <= 60
    assert [parse_retry_after(header) for header in ("2.5", "-1", "nan", "soon", "", None)] == [2.5, 0, 0, 0, 0, 0]
    assert parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_refusal_for_good_is_one_sentence_and_is_not_repeated(serve: Serve, status: int) -> None:
    server = serve(lambda body, number: Answer(status=status, raw=f"no,\n not with {KEY}"))
    with pytest.raises(RewardError) as refused:
        ask(endpoint_of(server.url), "?")
    sentence = str(refused.value)
    assert sentence.startswith(f"the judge at {server.url}/chat/completions answered {status} ")
    assert ": no, not with $JUDGE_KEY; check " in sentence
    assert "environment variable JUDGE_KEY" in sentence
    assert KEY not in sentence
    assert len(server.bodies) == 1


def test_a_wrong_address_is_such_a_refusal(serve: Serve) -> None:
    server = serve(at_first())
    with pytest.raises(RewardError, match=r"answered 404 .*there is nothing at /v2/chat/completions; check base_url"):
        ask(endpoint_of(server.url.replace("v1", "v2")), "?")


def test_an_endpoint_without_a_key_is_sent_none(serve: Serve) -> None:
    server = serve(at_first())
    with pytest.raises(RewardError, match="wrong key in 'None'; no key was sent"):
        ask(endpoint_of(server.url, api_key_env=None), "?")


def test_an_answer_too_long_for_the_judge_is_missing_and_the_run_goes_on(serve: Serve) -> None:
    refusal = Answer(status=400, raw='{"error": {"code": "context_length_exceeded"}}')
    server = serve(lambda body, number: refusal if body["messages"][0]["content"] == "long" else "reward:1")
    endpoint = endpoint_of(server.url)
    assert [judgement.value for judgement in ask(endpoint, "long", "short")] == [None, 1.0]
    assert endpoint.counters["missing"] == 1
    assert len(server.bodies) == 2


# -- nonsense --------------------------------------------------------------------------------------------------------

NONSENSE: list[Answer | str] = [
    "I would rather not say.",
    "",
    Answer(raw="<html>welcome</html>"),
    Answer(raw="[]"),
    Answer(raw='{"choices": []}'),
    Answer(raw='{"choices": [{"message": {"content": null}}], "usage": null}'),
    Answer(raw='{"choices": [{"message": "reward:1"}]}'),
]


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_nonsense_is_asked_once_more_and_then_missing(serve: Serve, nonsense: Answer | str) -> None:
    server = serve(at_first(nonsense, then="reward:1"))
    assert ask(endpoint_of(server.url), "?")[0].value == 1.0
    server.respond = lambda body, number: nonsense
    endpoint = endpoint_of(server.url)
    assert ask(endpoint, "?")[0].value is None
    assert len(server.bodies) == 2 + 2
    assert (endpoint.counters["unreadable"], endpoint.counters["missing"]) == (2, 1)


# -- outages ---------------------------------------------------------------------------------------------------------


def test_a_judge_that_is_down_for_good_is_missing_once_the_patience_is_over(caplog: pytest.LogCaptureFixture) -> None:
    endpoint = endpoint_of("http://127.0.0.1:9/v1", api_key_env=None, patience_s=0.2, max_concurrency=2)
    with caplog.at_level(logging.WARNING):
        assert [judgement.value for judgement in ask(endpoint, *"abcdefgh")] == [None] * 8
    assert endpoint.counters["missing"] == 8
    assert "does not answer (ConnectError" in caplog.text
    assert caplog.text.count("is waited for no longer than 0.2 s") == 1

    # From then on a wave of questions costs an attempt (another for a question that comes after it failed), not one
    # each.
    requests = endpoint.counters["requests"]
    time.sleep(0.25)
    assert [judgement.value for judgement in ask(endpoint, *"abcdefgh")] == [None] * 8
    assert 1 <= endpoint.counters["requests"] - requests < 8


def test_a_judge_that_was_given_up_and_came_back_answers_every_question_of_the_next_wave(serve: Serve) -> None:
    server = serve(lambda body, number: Answer(status=503))
    endpoint = endpoint_of(server.url, patience_s=0.1)
    assert ask(endpoint, "?")[0].value is None
    time.sleep(0.15)
    server.respond = at_first()
    assert [judgement.value for judgement in ask(endpoint, *"abcdefgh")] == [1.0] * 8


def test_an_outage_that_ended_does_not_shorten_the_patience_of_the_next(serve: Serve) -> None:
    server = serve(at_first(Answer(status=503)))
    endpoint = endpoint_of(server.url, patience_s=0.5)
    assert ask(endpoint, "a") == [Judgement(value=1.0, retries=1, tokens=7)]
    time.sleep(0.6)
    server.respond = lambda body, number: Answer(status=503) if number == 2 else "reward:1"
    assert ask(endpoint, "b") == [Judgement(value=1.0, retries=1, tokens=7)]


def test_one_question_that_the_judge_cannot_take_is_given_up_while_others_are_answered(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("troupe.rewards.chat_endpoint.MAX_PAUSE_S", 0.02)
    server = serve(lambda body, number: Answer(status=500) if body["messages"][0]["content"] == "x" else "reward:1")
    endpoint = endpoint_of(server.url, patience_s=0.3)
    waiting: list[Judgement[float]] = []
    thread = threading.Thread(target=lambda: waiting.extend(ask(endpoint, "x")), daemon=True)
    thread.start()
    for number in range(1000):  # every answer to another question ends the outage, but not this question's patience
        if not thread.is_alive():
            break
        assert ask(endpoint, str(number))[0].value == 1.0
    assert [judgement.value for judgement in waiting] == [None]
    assert waiting[0].retries > 1


# -- limits and loops ------------------------------------------------------------------------------------------------


def test_no_more_requests_are_in_flight_than_allowed(serve: Serve) -> None:
    server = serve(lambda body, number: Answer(text="reward:1", delay_s=0.02))
    ask(endpoint_of(server.url, max_concurrency=3), *map(str, range(12)))
    assert server.most_at_once == 3


def test_fresh_event_loops_and_threads_share_the_limit_and_the_connections(serve: Serve) -> None:
    server = serve(lambda body, number: Answer(text="reward:1", delay_s=0.02))
    endpoint = endpoint_of(server.url, max_concurrency=2)
    threads = [threading.Thread(target=ask, args=(endpoint, f"{n}a", f"{n}b", f"{n}c")) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.most_at_once == 2
    assert [ask(endpoint, f"once more {n}")[0].value for n in range(3)] == [1.0] * 3


def test_a_caller_that_leaves_does_not_waste_the_question(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda body, number: Answer(text="reward:5", delay_s=0.2))
    endpoint = endpoint_of(server.url, cache=str(tmp_path / "c.sqlite"))

    async def leave() -> None:
        async with asyncio.timeout(0.05):
            await endpoint.ask(question("?"), read_number)

    with pytest.raises(TimeoutError):
        asyncio.run(leave())
    assert ask(endpoint, "?") == [Judgement(value=5.0, cached=True)]
    assert len(server.bodies) == 1


# -- the cache -------------------------------------------------------------------------------------------------------


def test_what_was_judged_is_not_asked_again_by_anyone(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda body, number: f"reward:-{number + 1}.5")
    cache = str(tmp_path / "deep" / "c.sqlite")
    assert ask(endpoint_of(server.url, cache=cache), "a")[0].value == -1.5
    again = endpoint_of(server.url, cache=cache)
    assert ask(again, "a") == [Judgement(value=-1.5, cached=True)]
    assert again.counters == {"cached": 1}
    # Another model, other options, another question are other questions.
    for other, text in ((again, "b"), (endpoint_of(server.url, cache=cache, model="n"), "a"),
                        (endpoint_of(server.url, cache=cache, options={"temperature": 0}), "a")):  # fmt: skip
        assert ask(other, text)[0].cached is False
    assert len(server.bodies) == 4


def test_nonsense_is_not_remembered(serve: Serve, tmp_path: Path) -> None:
    server = serve(at_first("hm", "hm"))
    endpoint = endpoint_of(server.url, cache=str(tmp_path / "c.sqlite"))
    assert [ask(endpoint, "?")[0].value for _ in range(2)] == [None, 1.0]


def test_neither_key_nor_question_is_in_the_cache(serve: Serve, tmp_path: Path) -> None:
    server = serve(at_first())
    ask(endpoint_of(server.url, cache=str(tmp_path / "c.sqlite")), "a private question")
    written = (tmp_path / "c.sqlite").read_bytes()
    assert b"reward:1" in written
    assert KEY.encode() not in written
    assert b"private" not in written


def test_several_processes_may_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    script = (
        "import sys; from pathlib import Path; from troupe.rewards.cache import ReplyCache\n"
        "for n in range(8): ReplyCache(Path(sys.argv[1])).put(f'{sys.argv[2]}{n}', f'reply {n}', model='m')\n"
    )
    command = [sys.executable, "-c", script, str(path)]
    writers = [subprocess.Popen([*command, name], cwd=Path(__file__).resolve().parents[2]) for name in "ab"]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    cache = ReplyCache(path)
    assert [cache.get(f"{name}{n}") for name in "ab" for n in range(8)] == [f"reply {n}" for n in range(8)] * 2


def test_a_cache_that_breaks_during_the_run_costs_money_but_not_the_run(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(at_first())
    endpoint = endpoint_of(server.url, cache=str(tmp_path / "c.sqlite"))
    (tmp_path / "c.sqlite").write_text("no database any more")
    with caplog.at_level(logging.WARNING):
        assert [ask(endpoint, "?")[0].value for _ in range(2)] == [1.0, 1.0]
    assert caplog.text.count("the run goes on without it") == 1
    assert len(server.bodies) == 2


def test_a_file_that_is_no_cache_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database, but long enough to look like something that matters" * 10)
    with pytest.raises(ValueError, match=r"the cache .*notes.txt cannot be opened \(file is not a database\)"):
        ReplyCache(tmp_path / "notes.txt")
