"""The endpoint's tokenizer: it encodes conversations as training does, so that a user's text is never a special token.

vLLM renders a conversation and encodes the text in two calls to its tokenizer; both are overridden here.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from troupe.chat.marks import OPEN, Marks


def guard(tokenizer: Any) -> None:
    """Change the tokenizer in place, as vLLM does to make it safe for threads."""
    base: Any = type(tokenizer)
    marks = Marks(tokenizer, encode=functools.partial(base.__call__, tokenizer))

    class Guarded(base):
        """A tokenizer with the special tokens of other people's text hidden until it is encoded."""

        def apply_chat_template(
            self, conversation: Sequence[Mapping[str, Any]], *, tools: Any = None, tokenize: bool = True, **options: Any
        ) -> Any:
            turns = [turn if turn["role"] == "assistant" else marks.hide(turn) for turn in conversation]
            hidden = marks.hide(list(tools)) if tools else tools
            shown = super().apply_chat_template(turns, tools=hidden, tokenize=False, **options)
            return marks.encode(shown) if tokenize else shown

        def __call__(self, text: Any, *arguments: Any, **options: Any) -> Any:
            if not isinstance(text, str) or OPEN not in text:
                return super().__call__(text, *arguments, **options)
            ids = marks.encode(text)
            return {"input_ids": ids, "attention_mask": [1] * len(ids), "offset_mapping": [(0, 0)] * len(ids)}

    tokenizer.__class__ = Guarded
