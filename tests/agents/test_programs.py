"""Agents as functions and as processes: checked before anything starts, and contained whatever they do."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.processes.test_subprocesses import gone
from troupe.agents.programs import build_program
from troupe.config.agents import AgentConfig
from troupe.errors import ConfigError
from troupe.records import Sample

HERE = "tests.agents.test_programs"
SAMPLE = Sample(sample_id="s0", prompt="Count.", gold="3", fields={"level": 2})


def run(timeout_s: float = 20, **settings: Any) -> Any:
    """What an agent returns that asks nothing."""

    async def episode() -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                return await program("http://127.0.0.1:9/v1", "a token", SAMPLE)
        finally:
            await asyncio.sleep(0.05)  # in which the loop sees a process end

    program = build_program(AgentConfig(**settings))
    return asyncio.run(episode())


def python(source: str) -> list[str]:
    return [sys.executable, "-c", source]


# -- agents ------------------------------------------------------------------------------------------------------


async def given(client: Any, sample: Sample, *, depth: int = 1, mode: str = "plain") -> dict[str, Any]:
    return {"url": str(client.base_url), "key": client.api_key, "id": sample.sample_id, "depth": depth, "mode": mode}


def plain(client: Any, sample: Sample) -> str:
    return f"{type(client).__name__} {threading.current_thread().name}"


def plainly_async(client: Any, sample: Sample) -> Any:
    """As a decorator makes of an async function."""

    async def later() -> str:
        await asyncio.sleep(0)
        return "awaited"

    return later()


class Called:
    """An agent with a state."""

    def __call__(self, client: Any, sample: Sample) -> str:
        return "called"


CALLED = Called()
NO_AGENT = 3


def of_one(client: Any) -> float:
    return 1.0


async def leaves(client: Any, sample: Sample) -> float:
    sys.exit("usage: agent")


def leaves_its_thread(client: Any, sample: Sample) -> float:
    raise SystemExit(2)


async def cancels_itself(client: Any, sample: Sample) -> float:
    helper = asyncio.ensure_future(asyncio.sleep(600))
    await asyncio.sleep(0)
    helper.cancel()
    await helper
    return 1.0


async def waits(client: Any, sample: Sample) -> float:
    await asyncio.sleep(600)
    return 1.0


# -- functions ---------------------------------------------------------------------------------------------------


def test_a_function_gets_the_address_the_token_the_sample_and_the_configs_arguments() -> None:
    told = run(fn=f"{HERE}:given", args={"depth": "3"})  # as a command line gives it
    assert told == {"url": "http://127.0.0.1:9/v1/", "key": "a token", "id": "s0", "depth": 3, "mode": "plain"}


def test_a_plain_function_gets_a_plain_client_in_a_thread() -> None:
    assert run(fn=f"{HERE}:plain") == "OpenAI agent"
    assert run(fn=f"{HERE}:plainly_async") == "awaited"
    assert run(fn=f"{HERE}:CALLED") == "called"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"fn": "no_such_module:run"}, "agent: cannot import 'no_such_module' of 'no_such_module:run'"),
        ({"fn": f"{HERE}:nothing"}, f"agent: module '{HERE}' has no function 'nothing'"),
        ({"fn": f"{HERE}:NO_AGENT"}, "NO_AGENT is a int, not a function of (client, sample)"),
        ({"fn": f"{HERE}:of_one"}, "of_one: too many positional arguments; its arguments are: none"),
        ({"fn": f"{HERE}:given", "args": {"dept": 3}}, "unknown argument 'dept'; its arguments are: depth, mode"),
        ({"fn": f"{HERE}:given", "args": {"depth": "deep"}}, "argument depth: Input should be a valid integer"),
        ({"command": ["no-such-program", "x"]}, "agent: there is no program 'no-such-program' that could be started"),
        ({"command": [__file__]}, "that could be started; install it, or name it by its path in agent.command"),
    ],
)
def test_what_cannot_be_run_is_one_sentence_before_anything_starts(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build_program(AgentConfig(**settings))
    assert sentence in str(refused.value)


def test_a_command_has_no_arguments_of_a_function() -> None:
    with pytest.raises(ValueError, match="args belong to fn; give a command its arguments in command"):
        AgentConfig(command=["sh"], args={"depth": 3})
    with pytest.raises(ValueError, match="by fn or by command, and not by both"):
        AgentConfig(command=["sh"], fn=f"{HERE}:given")


@pytest.mark.parametrize(
    ("fn", "sentence"),
    [
        ("leaves", r"it raised SystemExit\('usage: agent'\)"),
        ("leaves_its_thread", r"it raised SystemExit\(2\)"),
        ("cancels_itself", r"it raised CancelledError\(\)"),
    ],
)
def test_an_agent_that_ends_the_program_ends_its_own_episode(fn: str, sentence: str) -> None:
    with pytest.raises(RuntimeError, match=sentence):
        run(fn=f"{HERE}:{fn}")


def test_an_agent_that_is_given_up_is_cancelled_and_not_called_wrong() -> None:
    with pytest.raises(TimeoutError):
        run(0.05, fn=f"{HERE}:waits")


# -- processes ---------------------------------------------------------------------------------------------------


def test_a_process_finds_its_episode_in_the_environment_and_reads_nothing() -> None:
    source = (
        "import json, os, sys\n"
        "sample = json.loads(os.environ['TROUPE_SAMPLE'])\n"
        "names = ('OPENAI_BASE_URL', 'OPENAI_API_KEY', 'TROUPE_SCORE_URL')\n"
        "raise SystemExit(' '.join([*map(os.environ.get, names), str(sample), repr(sys.stdin.read())]))"
    )
    with pytest.raises(RuntimeError) as failed:
        run(command=python(source))
    assert str(failed.value) == (
        "exit status 1: http://127.0.0.1:9/v1 a token http://127.0.0.1:9/v1/score "
        "{'sample_id': 's0', 'prompt': 'Count.', 'gold': '3', 'fields': {'level': 2}} ''"
    )


def test_a_process_that_ends_well_has_no_score_of_its_own_whatever_it_prints() -> None:
    assert run(command=python("print('x' * 10**6)")) is None  # more than a pipe holds


def test_of_a_process_that_fails_the_end_of_its_output_is_shown() -> None:
    with pytest.raises(RuntimeError) as failed:
        run(command=python("print('x' * 10**5); raise SystemExit('the cause')"))
    assert str(failed.value).startswith("exit status 1: xx")
    assert str(failed.value).endswith("\nthe cause")
    assert len(str(failed.value)) < 400
    with pytest.raises(RuntimeError, match="exit status -6"):
        run(command=python("import os; os.abort()"))


@pytest.mark.parametrize("ending", ["ends", "fails", "is given up"])
def test_what_a_process_started_ends_with_it_however_that_ends(tmp_path: Path, ending: str) -> None:
    """The child holds the output open, so nobody may wait for its end."""
    last = {"ends": "true", "fails": "exit 3", "is given up": "wait"}[ending]
    pid = tmp_path / "pid"
    command = ["sh", "-c", f"sleep 600 & echo $! > {pid}; {last}"]
    if ending == "ends":
        assert run(command=command) is None
    elif ending == "fails":
        with pytest.raises(RuntimeError, match="exit status 3"):
            run(command=command)
    else:
        asyncio.run(given_up(command, pid))
    assert gone(int(pid.read_text()))


async def given_up(command: list[str], pid: Path) -> None:
    """Cancel an agent's process once its child is known."""
    episode = asyncio.ensure_future(build_program(AgentConfig(command=command))("http://127.0.0.1:9/v1", "", SAMPLE))
    while not (pid.exists() and pid.read_text().strip()):
        await asyncio.sleep(0.01)
    episode.cancel()
    with pytest.raises(asyncio.CancelledError):
        await episode
    await asyncio.sleep(0.1)  # in which the loop sees the process end
