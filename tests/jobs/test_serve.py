"""What jobs/serve.py settles before Ray starts: the token, the port, and what it says."""

from __future__ import annotations

import json
import shlex
import socket

import pytest

from troupe.config.loader import load_config
from troupe.config.serve import ServeConfig, with_sources
from troupe.errors import ConfigError
from troupe.jobs.serve import KEY, announce, api_key, require_free_port


def recipe(*arguments: str) -> ServeConfig:
    return load_config(ServeConfig, with_sources(arguments))


def test_the_token_is_the_environments_or_one_that_is_made(monkeypatch):
    monkeypatch.setenv(KEY, "mine-and-long-enough")
    assert api_key(recipe("runs/a")) == ("mine-and-long-enough", False)
    assert api_key(recipe("runs/a", "auth=off")) == (None, False)
    monkeypatch.delenv(KEY)
    (first, made), (second, _) = api_key(recipe("runs/a")), api_key(recipe("runs/a"))
    assert made
    assert first != second
    assert len(str(first)) >= 32


@pytest.mark.parametrize("key", ["short", "with a blank in it", "schlüssel-schlüssel"])
def test_what_is_no_token_is_refused_without_being_shown(monkeypatch, key):
    monkeypatch.setenv(KEY, key)
    with pytest.raises(ConfigError, match="is no token") as refused:
        api_key(recipe("runs/a"))
    assert key not in str(refused.value)


def test_a_taken_port_and_a_foreign_address_are_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=f"port {port} on 127.0.0.1 is taken by .*; give another one, port={port + 1}"
        ):
            require_free_port("127.0.0.1", port)
    require_free_port("127.0.0.1", port)
    with pytest.raises(ConfigError, match="cannot be listened on"):
        require_free_port("192.0.2.77", port)


def test_plain_paths_are_models_beside_those_of_a_recipe():
    served = recipe("runs/a", "runs/a@10", "follow=runs/b", "port=9000").served
    assert [(model.path, model.label) for model in served] == [("runs/b", "b"), ("runs/a", "a"), ("runs/a@10", "a@10")]
    assert recipe("Qwen/Qwen2.5-0.5B-Instruct").served[0].label == "Qwen/Qwen2.5-0.5B-Instruct"


def test_the_console_says_how_to_call_it_and_shows_only_a_token_that_was_made(capsys, monkeypatch):
    monkeypatch.setenv(KEY, "mine-and-long-enough")
    card = {
        "id": "a",
        "step": 3,
        "max_model_len": 64,
        "root": "runs/a/checkpoints/step-000003",
        "metadata": {"chat": False},
    }
    announce(recipe("runs/a"), [card], seconds=9.6, key=None)
    said = capsys.readouterr().out
    assert "ready after 10 s at http://127.0.0.1:8000/v1" in said
    assert 'curl http://127.0.0.1:8000/v1/completions -H "Authorization: Bearer $TROUPE_API_KEY"' in said
    assert "mine-and-long-enough" not in said
    assert "playground: http://127.0.0.1:8000/\n" in said
    announce(recipe("runs/a"), [card], seconds=1, key="m+a/d=e")
    assert "playground: http://127.0.0.1:8000/#token=m%2Ba%2Fd%3De\n" in capsys.readouterr().out
    announce(recipe("models=[{path: runs/a, adapters: {poet: x}}]", "playground=false"), [card], seconds=1, key="made")
    said = capsys.readouterr().out
    assert "export TROUPE_API_KEY=made" in said
    assert "poet, an adapter on a" in said
    assert "playground" not in said


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),  # which is no address to call
        ("::1", "http://[::1]:8000"),
        ("10.0.0.7", "http://10.0.0.7:8000"),
    ],
)
def test_the_address_that_is_shown_can_be_called(host: str, url: str, capsys):
    announce(recipe("runs/a", f"host='{host}'"), [], seconds=1, key=None)
    said = capsys.readouterr().out
    assert f"ready after 1 s at {url}/v1\n" in said
    assert f"playground: {url}/\n" in said
    assert said.endswith("\nCtrl-C ends it\n")


def test_an_endpoint_without_a_token_says_so_and_asks_for_none(capsys):
    card = {"id": "a", "step": None, "max_model_len": 64, "root": "Qwen/Qwen2", "metadata": {"chat": True}}
    config = recipe("runs/a", "auth=off", "reward_model=runs/rm")
    announce(config, [card], seconds=1, key=None)
    said = capsys.readouterr().out
    assert "no token is asked for (auth=off): whoever reaches the port may use it" in said
    assert "Authorization" not in said
    assert "  a, up to 64 tokens, from Qwen/Qwen2\n" in said  # a model of no run has no step
    assert f"  {config.all_scorers[0].name}, which scores, at http://127.0.0.1:8000/v1/score\n" in said
    command = said[said.index("curl ") : said.index("\n\nCtrl-C")]
    url, *_, body = shlex.split(command.replace("\\\n", " "))[1:]
    assert url == "http://127.0.0.1:8000/v1/chat/completions"
    assert json.loads(body) == {"model": "a", "messages": [{"role": "user", "content": "Hello"}]}
