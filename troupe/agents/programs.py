"""How an agent is run for one episode: a function of the user's with an openai client, or a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import json
import os
import shutil
import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from troupe.config.agents import AgentConfig
from troupe.errors import ConfigError
from troupe.processes.futures import LOOK_S, contained, run_aside
from troupe.records import Sample
from troupe.resolve import checked_arguments, find, signature_of, type_hints

SECTION = "agent"
CLIENT: Mapping[str, Any] = {"base_url": "http://127.0.0.1", "api_key": "none", "max_retries": 0, "timeout": None}
TAIL = 300
"""Characters of a program's output that an error shows."""


class Program(Protocol):
    """An agent; what it returns is its score, None where it reports that to the address."""

    async def __call__(self, base_url: str, token: str, sample: Sample) -> Any:
        """Run one episode."""


def build_program(config: AgentConfig) -> Program:
    """Return the agent of a config; ConfigError for a name, an import or arguments that are wrong."""
    if config.command:
        if shutil.which(config.command[0]) is None:
            raise ConfigError(
                f"agent: there is no program {config.command[0]!r} that could be started; install it, or name it by "
                "its path in agent.command"
            )
        return CommandProgram(config.command)
    function = find(str(config.fn), {}, section=SECTION, noun="agent", form="package.module:function")
    if not callable(function):
        raise ConfigError(f"agent: {config.fn} is a {type(function).__name__}, not a function of (client, sample)")
    signature = signature_of(str(config.fn), function, section=SECTION)
    hints = type_hints(function)
    arguments = checked_arguments(str(config.fn), config.args, signature, hints, section=SECTION, skip=2)
    return FunctionProgram(function, arguments)


class FunctionProgram:
    """A function; a plain one runs in a thread and gets the client without async."""

    def __init__(self, function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
        self._call = functools.partial(function, **arguments)
        self._is_async = inspect.iscoroutinefunction(function)

    async def __call__(self, base_url: str, token: str, sample: Sample) -> Any:
        """Run it with a client of the address."""
        if self._is_async:
            client = self._async_client.with_options(base_url=base_url, api_key=token)
            return await contained(self._call(client, sample))
        client = self._client.with_options(base_url=base_url, api_key=token)
        result = await run_aside(functools.partial(self._call, client, sample), name="agent")
        return await contained(result) if isinstance(result, Awaitable) else result

    # One of each, whose connections all episodes share.

    @functools.cached_property
    def _async_client(self) -> Any:
        import openai

        return openai.AsyncOpenAI(**CLIENT)

    @functools.cached_property
    def _client(self) -> Any:
        import openai

        return openai.OpenAI(**CLIENT)


class CommandProgram:
    """A process, which finds the address, its token and the sample in its environment."""

    def __init__(self, command: list[str]) -> None:
        self._command = command

    async def __call__(self, base_url: str, token: str, sample: Sample) -> Any:
        """Run it to its end; RuntimeError with the end of its output where it fails."""
        told = {"sample_id": sample.sample_id, "prompt": sample.prompt, "gold": sample.gold, "fields": sample.fields}
        environment = {
            **os.environ,
            "OPENAI_BASE_URL": base_url,
            "OPENAI_API_KEY": token,
            "TROUPE_SAMPLE": json.dumps(told, default=str),
            "TROUPE_SCORE_URL": f"{base_url}/score",
        }
        process = await _started(self._command, environment)
        ending = asyncio.ensure_future(_end_what_it_leaves(process))
        try:
            assert process.stdout is not None
            tail = b""
            while chunk := await process.stdout.read(65536):
                tail = (tail + chunk)[-4 * TAIL :]
            status = await process.wait()
        finally:
            ending.cancel()
            _end_group(process.pid)
        if status:
            raise RuntimeError(f"exit status {status}: {tail.decode(errors='replace')[-TAIL:].strip()}")
        return None


async def _started(command: list[str], environment: Mapping[str, str]) -> asyncio.subprocess.Process:
    """Start a process in a group of its own; given up meanwhile, it is ended with what it has started by then."""
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *command,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        _end_group((await starting).pid)
        raise


async def _end_what_it_leaves(process: asyncio.subprocess.Process) -> None:
    """End the others of its group once it has ended: they may hold its output open for ever."""
    while process.returncode is None:
        await asyncio.sleep(LOOK_S)
    _end_group(process.pid)


def _end_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
