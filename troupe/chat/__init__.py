"""What stands between a conversation and token ids: a model's chat template, its marks, and the ends of its turns.

`ChatForm` is the one object that knows how a model reads conversations; everything else asks it.
"""

from typing import TYPE_CHECKING

from troupe.lazy import lazy_exports

if TYPE_CHECKING:
    from troupe.chat.form import (
        CHATML,
        RAW,
        AnyTokenizer,
        ChatForm,
        ChatSettings,
        encode_answer,
        encode_prompt,
        form_of,
    )
    from troupe.chat.loading import load_form, load_tokenizer, mark_older, tokenizer_record
    from troupe.chat.masks import EncodedAnswers, answer_behind, encode_answers, encode_conversation
    from troupe.chat.texts import answer_text, demonstration_text, prompt_messages, prompt_text, turn_text
    from troupe.chat.turns import TurnEncoder

__getattr__ = lazy_exports(__name__, __file__)

__all__ = [
    "CHATML",
    "RAW",
    "AnyTokenizer",
    "ChatForm",
    "ChatSettings",
    "EncodedAnswers",
    "TurnEncoder",
    "answer_behind",
    "answer_text",
    "demonstration_text",
    "encode_answer",
    "encode_answers",
    "encode_conversation",
    "encode_prompt",
    "form_of",
    "load_form",
    "load_tokenizer",
    "mark_older",
    "prompt_messages",
    "prompt_text",
    "tokenizer_record",
    "turn_text",
]
