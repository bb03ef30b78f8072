"""Small models made here: a byte-level BPE tokenizer trained on the data's own text, and a Qwen2-shaped model.

They are written in Hugging Face format, so everything downstream treats them like a downloaded model. Imports
torch and transformers only when called.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from troupe.chat import CHATML, demonstration_text, prompt_text
from troupe.config.models import ScratchModelConfig
from troupe.data.dataset import DataSet
from troupe.errors import DataError
from troupe.records import Sample
from troupe.tokenizer import LightTokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

SPECIAL = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "<|im_end|>"}
SPECIAL_TOKENS = ("<unk>", "<pad>", "<|im_start|>", "<|im_end|>")


def write_scratch_model(config: ScratchModelConfig, texts: Iterable[str], directory: str, seed: int) -> None:
    """Write a randomly initialised model and its tokenizer to `directory`; the same arguments give the same files."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # for a file of a few megabytes
    tokenizer = train_tokenizer(texts, config.vocab_size, config.max_length)
    heads = config.hidden_size // 64
    model_config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=3 * config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=config.max_length,
        tie_word_embeddings=config.tie_embeddings,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(model_config)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE on `texts`. Digits are tokens of their own, so that numbers are read digit by digit."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def light_tokenizer(texts: Iterable[str], vocab_size: int) -> LightTokenizer:
    """Train the tokenizer of `train_tokenizer`, for a process that does without transformers."""
    return LightTokenizer(train_bpe(texts, vocab_size), chat_template=CHATML, special=SPECIAL)


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerBase:
    """Train a tokenizer as transformers has them."""
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(texts, vocab_size), model_max_length=max_length, **SPECIAL
    )
    wrapped.chat_template = CHATML
    return wrapped


def demonstrations_of(data: DataSet) -> list[Sample]:
    """Return the training samples that a new model is warmed up with; DataError where there are none."""
    found = [sample for sample in data.train if sample.fields.get("demonstration")]
    if not found:
        raise DataError(
            f"{data.name} has no demonstrations to warm a new model up with; set model.type: pretrained, or "
            f"data.demonstration_field"
        )
    return found


def texts_of(demonstrations: Sequence[Sample]) -> list[str]:
    """Return the texts that a new model's tokenizer is made of."""
    return [text for sample in demonstrations[:5000] for text in (prompt_text(sample), demonstration_text(sample))]
