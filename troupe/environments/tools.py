"""Tools: typed functions that the model may call in the middle of an answer, and what it reads of each call.

Whatever goes wrong with a call (an unknown name, arguments of another type, an exception, a call that takes too long)
is a text for the model and costs no more; a tool that cannot be described to it is a ConfigError at the start.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ConfigDict, ValidationError, create_model

from troupe.config.agents import ToolConfig
from troupe.errors import ConfigError, first_line
from troupe.processes.call_pool import CallLost, CallPool
from troupe.processes.futures import contained, run_aside
from troupe.records import FunctionCall, Sample
from troupe.resolve import checked_arguments, find, handed_over, signature_of, type_hints

BUILT_IN = {
    "calculator": "troupe.environments.calculator:calculator",
    "python": "troupe.environments.python_tool:python",
}
SECTION = "tools"


@dataclass(frozen=True, slots=True)
class ToolResult:
    """A text that the model reads for one call."""

    name: str
    content: str
    failed: bool = False
    """Whether the content is an error."""


class Tool:
    """A function, its description for the model, and the bounds of its calls."""

    def __init__(self, config: ToolConfig) -> None:
        function = find(config.fn, BUILT_IN, section=SECTION, noun="tool", form="package.module:function")
        if not callable(function) or inspect.isclass(function):
            raise ConfigError(f"tools: {config.fn} is a {type(function).__name__}, not a function")
        self._config = config
        signature, hints = signature_of(config.fn, function, section=SECTION), type_hints(function)
        given = checked_arguments_of(config, signature, hints)
        # What stands behind a `*` is the config's to set, whether it does or not.
        own = {name for name, each in signature.parameters.items() if each.kind is inspect.Parameter.KEYWORD_ONLY}
        fixed = {*given, *own}
        self._call = functools.partial(function, **given)
        self._is_async = inspect.iscoroutinefunction(function)
        # What this project brings is bounded itself, and what a program handed over no other process can import.
        apart = not self._is_async and config.fn not in BUILT_IN and config.fn not in handed_over()
        self._pool = CallPool(config.processes) if apart and config.processes else None
        fields: dict[str, Any] = {
            name: (hints.get(name, Any), ... if each.default is each.empty else each.default)
            for name, each in signature.parameters.items()
            if name not in fixed
        }
        self._arguments = create_model("Arguments", __config__=ConfigDict(extra="forbid"), **fields)
        self._slots: asyncio.Semaphore | None = None
        self.schema = describe(config.fn, function, fixed)
        """Its description in OpenAI's form."""
        self.name: str = self.schema["function"]["name"]

    async def __call__(self, arguments: Mapping[str, Any]) -> ToolResult:
        """Call it with the model's arguments; an error is a result too."""
        if self._slots is None:
            self._slots = asyncio.Semaphore(self._config.max_concurrency)
        try:
            checked = self._arguments.model_validate(dict(arguments))
            given = {name: getattr(checked, name) for name in checked.model_fields_set}
            # In a process of its own a call is ended there, and its time begins when it does.
            async with self._slots, asyncio.timeout(None if self._pool is not None else self._config.timeout_s):
                result = await self._result(given)
        except ValidationError as error:
            (first, *_) = error.errors()
            return self._error(f"argument {'.'.join(map(str, first['loc']))}: {first['msg']} (got {arguments!r:.200})")
        except TimeoutError:
            return self._error(f"the call took longer than {self._config.timeout_s:g} s")
        except CallLost as lost:
            return self._error(f"the call {lost}")
        except Exception as error:  # whatever the function does, the model may try again
            return self._error(f"{type(error).__name__}: {error}")
        return ToolResult(self.name, self._cut(result if isinstance(result, str) else as_json(result)))

    def close(self) -> None:
        """End its processes."""
        if self._pool is not None:
            self._pool.close()

    async def _result(self, arguments: Mapping[str, Any]) -> Any:
        if self._pool is not None:
            given = {**self._config.args, **arguments}
            called = self._pool.submit(call_at, self._config.fn, given, timeout_s=self._config.timeout_s)
            return await asyncio.wrap_future(called)
        if self._is_async or self._config.fn in BUILT_IN:
            result = self._call(**arguments)
        else:
            result = await run_aside(functools.partial(self._call, **arguments), name=f"tool {self.name}")
        return await contained(result) if inspect.isawaitable(result) else result

    def _error(self, text: str) -> ToolResult:
        return ToolResult(self.name, self._cut(f"error: {text}"), failed=True)

    def _cut(self, text: str) -> str:
        most = self._config.max_result_chars
        return text if len(text) <= most else f"{text[:most]}\n[cut: {len(text):,} characters in all]"


def call_at(address: str, arguments: Mapping[str, Any]) -> Any:
    """Call the function at an address, in a process of the pool."""
    return find(address, BUILT_IN, section=SECTION, noun="tool", form="package.module:function")(**arguments)


def build_tools(configs: Sequence[ToolConfig]) -> dict[str, Tool]:
    """Return the tools by the names that the model calls them; ConfigError for what cannot be called or described."""
    tools: dict[str, Tool] = {}
    for config in configs:
        tool = Tool(config)
        if tool.name in tools:
            raise ConfigError(f"tools: two are called {tool.name!r}; the model could not tell them apart")
        tools[tool.name] = tool
    return tools


def with_tools(samples: Sequence[Sample], tools: Mapping[str, Tool]) -> list[Sample]:
    """Return the samples with the tools' descriptions in their prompts, behind others that they have of their own."""
    schemas = [tool.schema for tool in tools.values()]
    if not schemas:
        return list(samples)
    return [replace(sample, tools=[*_others(sample, tools), *schemas]) for sample in samples]


def _others(sample: Sample, tools: Mapping[str, Tool]) -> list[Mapping[str, Any]]:
    return [each for each in sample.tools or () if each.get("function", each).get("name") not in tools]


async def call_all(tools: Mapping[str, Tool], calls: Sequence[FunctionCall]) -> list[ToolResult]:
    """Return the results of calls that the model made in one answer, in their order; they run at the same time."""
    return list(await asyncio.gather(*(_call(tools, call) for call in calls)))


async def _call(tools: Mapping[str, Tool], call: FunctionCall) -> ToolResult:
    tool = tools.get(call["name"])
    if tool is None:
        known = ", ".join(tools)
        return ToolResult(call["name"], f"error: there is no tool {call['name']!r:.60}; the tools are {known}", True)
    return await tool(call["arguments"])


def checked_arguments_of(config: ToolConfig, signature: inspect.Signature, hints: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that the config sets; the others stay the model's."""
    unset = {name for name in signature.parameters if name not in config.args}
    partial = signature.replace(
        parameters=[
            each.replace(default=None) if each.name in unset and each.default is each.empty else each
            for each in signature.parameters.values()
        ]
    )
    return checked_arguments(config.fn, config.args, partial, hints, section=SECTION)


def describe(name: str, function: Callable[..., Any], fixed: Collection[str] = ()) -> dict[str, Any]:
    """Return the function's description for the model, without the arguments that the config sets."""
    from transformers.utils import get_json_schema

    try:
        schema: dict[str, Any] = get_json_schema(function)
    except Exception as error:  # missing types or docstrings, under several names
        raise ConfigError(
            f"tools: {name} cannot be described to the model: {first_line(error)}; give every argument a type and a "
            "line under `Args:` in its docstring"
        ) from None
    parameters = schema["function"]["parameters"]
    parameters["properties"] = {key: value for key, value in parameters["properties"].items() if key not in fixed}
    if "required" in parameters:
        parameters["required"] = [key for key in parameters["required"] if key not in fixed]
    return schema


def as_json(value: Any) -> str:
    """Return a result as text.

    >>> as_json({"sum": 3}), as_json({1, 2})
    ('{"sum": 3}', '{1, 2}')
    """
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(value)
