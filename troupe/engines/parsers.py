"""Which of vLLM's parsers read calls of tools and thoughts out of a model's answers.

A parser belongs to a way of writing, and the chat template shows which one a model has: each row here is a parser of
vLLM's and what a template that writes so contains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from troupe.errors import ConfigError

Kind = Literal["tool_call_parser", "reasoning_parser"]

WRITTEN: Mapping[Kind, Mapping[str, str]] = {
    "tool_call_parser": {
        "openai": "<|channel|>commentary",
        "kimi_k2": "<|tool_calls_section_begin|>",
        "deepseek_v3": "<｜tool▁calls▁begin｜>",
        "mistral": "[TOOL_CALLS]",
        "gemma4": "<|tool_call>",
        "lfm2": "<|tool_call_start|>",
        "glm45": "<arg_key>",
        "qwen3_coder": "<function=",
        "hermes": "<tool_call>",
        "llama3_json": '"parameters": ',
    },
    "reasoning_parser": {
        "openai_gptoss": "<|channel|>analysis",
        "gemma4": "<|channel>thought",
        "qwen3": "</think>",
        "deepseek_r1": "</think>",
        "glm45": "</think>",
        "nemotron_v3": "</think>",
    },
}


def chosen_parser(kind: Kind, wanted: str | None, template: str | None, known: Sequence[str], model: str) -> str | None:
    """Return the parser that the recipe names, or with `auto` the first whose way of writing the template shows.

    Raises ConfigError for a parser that vLLM does not know, or that reads another way of writing than the model's.
    """
    if wanted is None or (wanted == "auto" and template is None):
        return None
    rows = {name: mark for name, mark in WRITTEN[kind].items() if name in known}
    if wanted == "auto":
        return next((name for name, mark in rows.items() if mark in str(template)), None)
    if wanted not in known:
        raise ConfigError(f"{kind} {wanted!r} is none that vLLM knows; name auto, or one of {', '.join(known)}")
    mark = rows.get(wanted)
    if template is None or (mark is not None and mark not in template):
        fit = [name for name, each in rows.items() if each in (template or "")]
        raise ConfigError(
            f"{kind} {wanted!r} reads {mark or 'calls'!s}, which the chat template of {model} does not write; "
            + (f"name {' or '.join(fit)}, or auto" if fit else "leave it out, since no parser fits that template")
        )
    return wanted
