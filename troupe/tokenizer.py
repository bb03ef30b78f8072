"""A tokenizer of `tokenizer.json` without transformers, whose import takes seconds: what a dry run needs of one.

`tokenizers` reads the file and jinja2 its chat template, set up as transformers sets it up (its
`utils/chat_template_utils.py`), so that both give the same ids.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from troupe.files import read_json

SAME_AS_FILE = {
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
    "Qwen2Tokenizer",
    "Qwen2TokenizerFast",
    "GPT2Tokenizer",
    "GPT2TokenizerFast",
}
"""Classes of transformers that take `tokenizer.json` as it is; others change what it adds to a text."""


class LightTokenizer:
    """The part of transformers' interface that `troupe.chat` calls."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        chat_template: str | None,
        special: Mapping[str, str],
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Wrap a tokenizer; `special` has the names of special tokens (`eos_token`) and their texts, `settings` are
        those of its tokenizer_config.json.
        """
        self._tokenizer, self._special = tokenizer, dict(special)
        self.chat_template = chat_template
        self.init_kwargs = dict(settings or {})
        self.added_tokens_decoder: dict[int, Any] = tokenizer.get_added_tokens_decoder()
        self.bos_token, self.eos_token = special.get("bos_token"), special.get("eos_token")
        self.eos_token_id = None if self.eos_token is None else tokenizer.token_to_id(self.eos_token)

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def __call__(
        self, text: str, *, add_special_tokens: bool = True, split_special_tokens: bool = False
    ) -> dict[str, list[int]]:
        self._tokenizer.encode_special_tokens = split_special_tokens
        try:
            return {"input_ids": list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)}
        finally:
            self._tokenizer.encode_special_tokens = False

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the ids, special tokens included."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        return_dict: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        **settings: Any,
    ) -> Any:
        """Render a conversation: its text, or with `tokenize` its ids."""
        template = _compiled(chat_template or str(self.chat_template))
        facts = {"messages": messages, "tools": tools, "documents": None, **self._special, **settings}
        text = template.render(add_generation_prompt=add_generation_prompt, **facts)
        return self(text, add_special_tokens=False)["input_ids"] if tokenize else text


def read_tokenizer(directory: Path) -> LightTokenizer | None:
    """Read the tokenizer of a model's directory; None where only transformers knows how."""
    settings = read_json(directory / "tokenizer_config.json") or {}
    if settings.get("tokenizer_class") not in SAME_AS_FILE or "auto_map" in settings:
        return None
    template_file = directory / "chat_template.jinja"
    template = template_file.read_text(encoding="utf-8") if template_file.is_file() else settings.get("chat_template")
    if not (directory / "tokenizer.json").is_file() or not isinstance(template, str | None):
        return None
    if template is not None and "{% generation" in template.replace("{%-", "{%"):  # a tag of transformers
        return None
    from tokenizers import Tokenizer

    named = {name: settings[name] for name in settings if name.endswith("_token")}
    special = {name: value["content"] if isinstance(value, dict) else value for name, value in named.items() if value}
    return LightTokenizer(
        Tokenizer.from_file(str(directory / "tokenizer.json")),
        chat_template=template,
        special={name: value for name, value in special.items() if isinstance(value, str)},
        settings=settings,
    )


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    return _environment().from_string(template)


def _environment() -> Any:
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _raise(message: str) -> NoReturn:
    from jinja2.exceptions import TemplateError

    raise TemplateError(message)
