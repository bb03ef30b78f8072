"""OpenAI's chat and completion requests as this address takes them, and its answers, whole or as a stream.

Sampling is the run's alone: a temperature or top_p of a request changes nothing, because the policy is trained on the
distribution that was sampled. What would change it (a schema, a call that must be made) is refused.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from troupe.records import Branch, Message, ToolCall

Kind = Literal["chat", "text"]
KINDS: Mapping[type, str] = {dict: "an object", list: "a list", str: "a text"}
"""JSON's kinds of values as a refusal names them."""


class RequestRefused(Exception):
    """A request that is answered with an error of OpenAI's form."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status

    @property
    def body(self) -> dict[str, Any]:
        """What the client reads."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": None, "code": None}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request."""

    kind: Kind
    messages: Sequence[Message] = ()
    prompt: str | Sequence[int] = ""
    tools: Sequence[Mapping[str, Any]] = ()
    max_tokens: int | None = None
    count: int = 1
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    stream: bool = False
    with_usage: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One answer: the branch, and what was read out of it."""

    branch: Branch
    text: str
    calls: Sequence[ToolCall]
    tokens: Sequence[str]
    """The text of each token, where log-probabilities were asked for."""

    @property
    def finish_reason(self) -> str:
        """`tool_calls`, `length` or `stop`."""
        return "tool_calls" if self.calls and not self.branch.truncated else self.branch.finish_reason


def read_ask(kind: Kind, body: Any, *, model: str, vocabulary: int) -> Ask:
    """Return the request in a body; RequestRefused for what cannot be answered."""
    if not isinstance(body, dict):
        raise RequestRefused("the body must be a JSON object")
    wanted = body.get("model")
    if wanted != model:
        raise RequestRefused(f"there is no model {wanted!r} here, only {model!r}; name it in agent.model", 404)
    shape = (_given(body, "response_format", dict) or {}).get("type", "text")
    if shape != "text":
        raise RequestRefused(f"response_format {shape!r} would change what is sampled; ask for the form in the prompt")
    choice = body.get("tool_choice") or "auto"
    if choice not in ("auto", "none"):
        raise RequestRefused("tool_choice can be auto or none: a call that must be made is not the policy's")
    common: dict[str, Any] = {
        "max_tokens": _positive(body, "max_completion_tokens") or _positive(body, "max_tokens"),
        "count": _positive(body, "n") or 1,
        "stop": _stop(body),
        "logprobs": not (body.get("logprobs") is None or body["logprobs"] is False),  # of texts a number, 0 too
        "stream": bool(body.get("stream")),
        "with_usage": bool((_given(body, "stream_options", dict) or {}).get("include_usage")),
    }
    if kind == "text":
        return Ask(kind=kind, prompt=_prompt(body.get("prompt"), vocabulary), **common)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestRefused("messages must be a list of at least one message")
    tools = () if choice == "none" else _tools(body)
    return Ask(kind=kind, messages=[_message(turn) for turn in messages], tools=tools, **common)


def _given(body: Mapping[str, Any], name: str, *kinds: type) -> Any:
    """Return a field, None where it is missing; RequestRefused where it is of no such kind."""
    value = body.get(name)
    if value is not None and not isinstance(value, kinds):
        wanted = " or ".join(KINDS[kind] for kind in kinds)
        raise RequestRefused(f"{name} must be {wanted}, got {value!r:.40}")
    return value


def _stop(body: Mapping[str, Any]) -> tuple[str, ...]:
    stop = _given(body, "stop", str, list) or []
    ends = [stop] if isinstance(stop, str) else stop
    if not all(isinstance(end, str) and end for end in ends):
        raise RequestRefused(f"stop must be a text or a list of texts that are not empty, got {stop!r:.40}")
    return tuple(ends)


def _tools(body: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    tools = _given(body, "tools", list) or []
    for tool in tools:
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RequestRefused(f"a tool must be an object with a function that has a name, got {tool!r:.80}")
        _given(function, "parameters", dict)
    return tuple(tools)


def _positive(body: Mapping[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is not None and (not isinstance(value, int) or value < 1):
        raise RequestRefused(f"{name} must be a whole number from 1, got {value!r:.40}")
    return value


def _prompt(prompt: Any, vocabulary: int) -> str | list[int]:
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        (prompt,) = prompt
    if isinstance(prompt, str) and prompt:
        return prompt
    if not isinstance(prompt, list) or not prompt or not all(type(each) is int for each in prompt):
        raise RequestRefused("prompt must be one text, or one list of token ids, that is not empty")
    foreign = [each for each in prompt if not 0 <= each < vocabulary]
    if foreign:
        raise RequestRefused(f"{foreign[0]} is no token id of this model, which has {vocabulary}: another tokenizer's?")
    return prompt


def _message(turn: Any) -> Message:
    """Return a turn of ours; a client's other fields (refusal, annotations) are left out."""
    if not isinstance(turn, dict) or turn.get("role") not in ("system", "developer", "user", "assistant", "tool"):
        raise RequestRefused(f"a message needs one of OpenAI's roles, got {turn!r:.80}")
    message: Message = {"role": turn["role"], "content": _text(turn.get("content"))}
    if turn["role"] == "tool":
        message["tool_call_id"] = str(turn.get("tool_call_id", ""))
    if turn.get("name"):
        message["name"] = str(turn["name"])
    calls = _given(turn, "tool_calls", list)
    if calls:
        message["tool_calls"] = [_call(call) for call in calls]
    return message


def _text(content: Any) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return "".join(str(part.get("text", "")) for part in content)
    raise RequestRefused("the content of a message must be text, or parts of text")


def _call(call: Any) -> ToolCall:
    try:
        arguments = json.loads(call["function"]["arguments"] or "{}")
        name = str(call["function"]["name"])
    except (KeyError, TypeError, ValueError):
        raise RequestRefused(f"a call of a tool cannot be read: {call!r:.120}") from None
    return {
        "id": str(call.get("id", "")),
        "type": "function",
        "function": {"name": name, "arguments": arguments if isinstance(arguments, dict) else {}},
    }


# -- answers ------------------------------------------------------------------------------------------------------


def answer_body(ask: Ask, choices: Sequence[Choice], prompt_tokens: int, model: str) -> dict[str, Any]:
    """Return the whole answer to a request."""
    name = "chat.completion" if ask.kind == "chat" else "text_completion"
    made = [_choice(ask, index, choice) for index, choice in enumerate(choices)]
    return {**_head(ask, name, model), "choices": made, "usage": _usage(choices, prompt_tokens)}


def answer_stream(ask: Ask, choices: Sequence[Choice], prompt_tokens: int, model: str) -> Iterator[str]:
    """Yield the answer as server-sent events; each choice comes in one piece, since it is sampled before it is sent."""
    head = _head(ask, "chat.completion.chunk" if ask.kind == "chat" else "text_completion", model)
    for index, choice in enumerate(choices):
        whole = _choice(ask, index, choice)
        end = whole.pop("finish_reason")
        if ask.kind == "chat":
            delta = whole.pop("message")
            for number, call in enumerate(delta.get("tool_calls", ())):
                call["index"] = number
            whole["delta"] = delta
            last: dict[str, Any] = {"index": index, "delta": {}, "finish_reason": end}
        else:
            last = {"index": index, "text": "", "finish_reason": end}
        yield _event({**head, "choices": [{**whole, "finish_reason": None}]})
        yield _event({**head, "choices": [last]})
    if ask.with_usage:
        yield _event({**head, "choices": [], "usage": _usage(choices, prompt_tokens)})
    yield "data: [DONE]\n\n"


def message_of(choice: Choice) -> Message:
    """Return the model's turn as a later request will repeat it."""
    message: Message = {"role": "assistant", "content": choice.text or (None if choice.calls else "")}
    if choice.calls:
        message["tool_calls"] = list(choice.calls)
    return message


def _head(ask: Ask, name: str, model: str) -> dict[str, Any]:
    return {"id": f"{ask.kind}-{uuid.uuid4().hex}", "object": name, "created": int(time.time()), "model": model}


def _event(body: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


def _usage(choices: Sequence[Choice], prompt_tokens: int) -> dict[str, int]:
    sampled = sum(len(choice.branch.token_ids) for choice in choices)
    return {"prompt_tokens": prompt_tokens, "completion_tokens": sampled, "total_tokens": prompt_tokens + sampled}


def _choice(ask: Ask, index: int, choice: Choice) -> dict[str, Any]:
    body: dict[str, Any] = {"index": index, "finish_reason": choice.finish_reason, "logprobs": None}
    values = list(choice.branch.logprobs or ())
    if ask.kind == "text":
        logprobs = {"tokens": list(choice.tokens), "token_logprobs": values, "top_logprobs": None, "text_offset": []}
        return {**body, "text": choice.text, "logprobs": logprobs if ask.logprobs else None}
    turn: dict[str, Any] = {**message_of(choice)}
    if choice.calls:
        turn["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
            for call in choice.calls
        ]
    if ask.logprobs:
        body["logprobs"] = {
            "content": [
                {"token": token, "logprob": value, "bytes": None, "top_logprobs": []}
                for token, value in zip(choice.tokens, values, strict=True)
            ]
        }
    return {**body, "message": turn}
