"""Tools in an episode: which calls an answer makes, and what the model reads of their results."""

from __future__ import annotations

from collections.abc import Sequence

from troupe.chat import ChatForm, TurnEncoder
from troupe.config.agents import ToolConfig
from troupe.engines.tool_calls import CallReader, MalformedCall
from troupe.environments.tools import build_tools, call_all
from troupe.records import Message

CALLS, FAILED, MALFORMED = "tools/calls", "tools/failed", "tools/malformed"
"""Counted for each episode: its calls, those of them that failed, and calls that could not be read."""


class ToolUse:
    """The tools of a config behind a model's template."""

    def __init__(self, configs: Sequence[ToolConfig], form: ChatForm, turns: TurnEncoder) -> None:
        turns.require_tools()
        self._tools, self._form = build_tools(configs), form
        schemas = [tool.schema for tool in self._tools.values()]
        self._calls = CallReader(form.tokenizer, form.template, schemas)

    def close(self) -> None:
        """End the processes of the tools."""
        for tool in self._tools.values():
            tool.close()

    async def results(self, answer: Sequence[int], counts: dict[str, float]) -> list[Message] | None:
        """Return the results of the calls in an answer as a tool's turns, counted; None where it calls nothing."""
        for name in (CALLS, FAILED, MALFORMED):
            counts.setdefault(name, 0.0)
        said = answer[:-1] if answer and answer[-1] in self._form.stop_ids else answer
        try:
            _, calls = self._calls.read(self._form.tokenizer.decode(said, skip_special_tokens=False))
        except MalformedCall as error:
            counts[MALFORMED] += 1
            told = f"error: {error}; write it again in the form of the instructions"
            return [{"role": "tool", "name": next(iter(self._tools)), "content": told}]
        if not calls:
            return None
        results = await call_all(self._tools, [call["function"] for call in calls])
        counts[CALLS] += len(results)
        counts[FAILED] += sum(result.failed for result in results)
        return [{"role": "tool", "name": result.name, "content": result.content} for result in results]
