"""A model's tokenizer and conversation form from its directory, and what a checkpoint keeps of the form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from troupe.chat.form import RAW, RECORD, AnyTokenizer, ChatForm, ChatSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model directory or hub name."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    mark_older(tokenizer, Path(path))
    return tokenizer


def load_form(path: str, settings: ChatSettings | None = None, *, trust_remote_code: bool = False) -> ChatForm:
    """Load the conversation form of a model directory or hub name."""
    return ChatForm(load_tokenizer(path, trust_remote_code=trust_remote_code), settings)


def mark_older(tokenizer: AnyTokenizer, directory: Path) -> None:
    """Give the tokenizer of a checkpoint from before there was a record its record: it was trained on raw text."""
    if (directory / "manifest.json").is_file() and RECORD not in tokenizer.init_kwargs:
        tokenizer.init_kwargs[RECORD] = dict(RAW)


def tokenizer_record(tokenizer: AnyTokenizer, record: Mapping[str, Any]) -> None:
    """Put a form's record, and its template, where `save_pretrained` writes them."""
    template = record.get("template")
    if template is not None:
        tokenizer.chat_template = template
    tokenizer.init_kwargs[RECORD] = {
        name: value for name, value in record.items() if name not in ("template", "stop_ids")
    }
