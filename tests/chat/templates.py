"""The stock chat templates of the installed TRL, and a tokenizer of bytes for each, with its marks as special tokens."""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path
from typing import Any

MARK = re.compile(
    r"<\|[A-Za-z_]+\|>|<｜[^｜<>]+｜>|<\|(?:turn|tool_call|tool_response|channel|tool)>|<(?:turn|tool_call|tool_response|channel|tool)\|>"
    r"|<(?:start_of_turn|end_of_turn|end_of_utterance|sop|BOS|EOS|PAD|/s)>|\[gMASK\]|\[/?INST\]|</?think>"
)
"""What the templates write as single tokens of their models."""


def folder() -> Path | None:
    found = importlib.util.find_spec("trl")
    return None if found is None or found.origin is None else Path(found.origin).parent / "chat_templates"


def stock() -> list[str]:
    """Names of the templates that models come with."""
    directory = folder()
    names = [] if directory is None else sorted(path.stem for path in directory.glob("*.jinja"))
    return [name for name in names if not name.endswith("_training")]


def source(name: str) -> str:
    directory = folder()
    assert directory is not None
    return (directory / f"{name}.jinja").read_text(encoding="utf-8")


@functools.lru_cache(maxsize=100)
def byte_tokenizer(template: str) -> Any:
    """A tokenizer whose tokens are bytes and the marks of the template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={each: number for number, each in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = dict.fromkeys(["<BOS>", "<EOS>", "<PAD>", *MARK.findall(template)])
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<BOS>", eos_token="<EOS>", pad_token="<PAD>")
    whole.chat_template = template
    return whole
