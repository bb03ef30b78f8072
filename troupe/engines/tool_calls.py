"""Calls of tools, read out of a model's answers by the parser of vLLM that fits its chat template."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from troupe.engines.parsers import WRITTEN, chosen_parser
from troupe.errors import ConfigError
from troupe.records import ToolCall


class MalformedCall(Exception):
    """An answer that begins a call and does not write it as the template does."""


class CallReader:
    """Reads calls; `tokenizer` and `template` are the model's, `wanted` is the parser of the config, or auto."""

    def __init__(
        self, tokenizer: Any, template: str | None, tools: Sequence[Mapping[str, Any]], wanted: str = "auto"
    ) -> None:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.tool_parsers import ToolParserManager

        known = sorted(ToolParserManager.list_registered())
        name = chosen_parser("tool_call_parser", wanted, template, known, "the model")
        if name is None:
            raise ConfigError(
                "no parser of vLLM fits the way in which the model's chat template writes calls of tools; use a model "
                "that knows tools, or a template of your own (model.chat_template) that writes "
                '<tool_call>{"name": ..., "arguments": ...}</tool_call>'
            )
        # A call that cannot be read is an answer like any other here; vLLM logs a traceback for each.
        logging.getLogger("vllm.tool_parsers").setLevel(logging.CRITICAL)
        self._tokenizer, self._parser = tokenizer, ToolParserManager.get_tool_parser(name)
        self._mark = WRITTEN["tool_call_parser"].get(name)
        self._request = ChatCompletionRequest(
            messages=[{"role": "user", "content": ""}], model="policy", tools=list(tools), tool_choice="auto"
        )

    def read(self, text: str) -> tuple[str, list[ToolCall]]:
        """Return (what was said beside the calls, the calls); MalformedCall where one was begun and cannot be read."""
        parser = self._parser(self._tokenizer, self._request.tools)  # a parser keeps what it has seen
        found = parser.extract_tool_calls(text, self._request)
        if not found.tools_called:
            if self._mark is not None and self._mark in text:
                raise MalformedCall("the call cannot be read")
            return text, []
        calls = list[ToolCall]()
        for number, call in enumerate(found.tool_calls):
            try:
                arguments = json.loads(call.function.arguments or "{}")
            except ValueError:
                arguments = None
            if not isinstance(arguments, dict) or not isinstance(call.function.name, str):
                raise MalformedCall("its arguments are no JSON object")
            function = {"name": call.function.name, "arguments": arguments}
            calls.append({"id": f"call{number:05d}", "type": "function", "function": function})  # type: ignore[typeddict-item]
        return found.content or "", calls
