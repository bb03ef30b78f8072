"""A pad token that no text has, for models with a scalar head: plain transformers takes the last token that is no
padding for the end of a text, so a pad token that is also the end token would hide it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MADE = "<|pad|>"
"""What a pad token is called where the tokenizer has none that can be taken."""
RESERVED = re.compile(r"pad|reserved|unused|extra_id", re.IGNORECASE)
"""Names of special tokens that models leave for such uses."""


def pad_apart(tokenizer: PreTrainedTokenizerBase) -> int:
    """Give the tokenizer a pad token that stands in no text, its own where it has one; the token's id."""
    written = {tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token}
    template = str(tokenizer.chat_template or "")
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    options = [tokenizer.pad_token, *(token for token in added if RESERVED.search(token))]
    free = [token for token in options if token is not None and token not in written and token not in template]
    if free:
        tokenizer.pad_token = free[0]
    else:
        tokenizer.add_special_tokens({"pad_token": MADE})
    return int(tokenizer.pad_token_id)


def use_pad_token(model: PreTrainedModel, token: int) -> None:
    """Let the model's config name the pad token, and its embedding have a row for it."""
    if token >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(token + 1, mean_resizing=False)
    model.config.pad_token_id = token
    model.config.get_text_config().pad_token_id = token
