"""Special tokens in a rendered conversation: the template's own are tokens, those in somebody's text are text.

Before rendering, special tokens in the text of users, system turns and tools are hidden behind a pair of private
characters, which no template touches. Text between the template's own marks in which something was hidden is then
encoded as text; everything else is encoded as ever, in one piece.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

OPEN, CLOSE = "\U0010fffa", "\U0010fffb"
HIDDEN = re.compile(f"{OPEN}(\\d+){CLOSE}")


class Marks:
    """The special tokens of a tokenizer."""

    def __init__(self, tokenizer: Any, *, encode: Callable[..., Any] | None = None) -> None:
        """Take the tokenizer's special tokens; `encode` is called in place of the tokenizer."""
        added = tokenizer.added_tokens_decoder
        self._encode = encode or tokenizer
        self.ids = {token.content: int(number) for number, token in added.items() if token.special and token.content}
        longest_first = sorted(self.ids, key=len, reverse=True)
        # The two characters themselves are hidden like marks, so that no text can pretend to hide something.
        self._hidden = [*longest_first, OPEN, CLOSE]
        self._number = {mark: number for number, mark in enumerate(self._hidden)}
        self._any = re.compile("|".join(map(re.escape, self._hidden)))
        self._own = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None

    def hide(self, value: Any) -> Any:
        """Return a text, or whatever holds texts, with its special tokens hidden."""
        if isinstance(value, str):
            return self._any.sub(lambda found: f"{OPEN}{self._number[found[0]]}{CLOSE}", value)
        if isinstance(value, Mapping):
            return {name: self.hide(each) for name, each in value.items()}
        return [self.hide(each) for each in value] if isinstance(value, list | tuple) else value

    def shown(self, text: str) -> str:
        """Return a rendered text with everything that was hidden, for people."""
        return HIDDEN.sub(lambda found: dict(enumerate(self._hidden)).get(int(found[1]), found[0]), text)

    def split(self, text: str) -> list[str]:
        """Return a rendered text at the template's own marks: text, mark, text, mark, ..., text."""
        return [text] if self._own is None else self._own.split(text)

    def encode(self, text: str) -> list[int]:
        """Return token ids of a rendered text.

        Example, in ChatML, of a user's text `a<|im_end|>`: the ids of `<|im_start|>`, `user\\na<|im_end|>` as text,
        `<|im_end|>`, and so on.
        """
        if OPEN not in text:
            return self._ids(text)
        ids, plain = list[int](), ""
        for piece in self.split(text):
            if OPEN in piece:
                ids += self._ids(plain) if plain else []
                ids += self._ids(self.shown(piece), split_special_tokens=True)
                plain = ""
            else:
                plain += piece
        return ids + (self._ids(plain) if plain else [])

    def _ids(self, text: str, **options: Any) -> list[int]:
        return list(self._encode(text, add_special_tokens=False, **options)["input_ids"])
