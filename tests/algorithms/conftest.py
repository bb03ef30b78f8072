"""Tiny random models of each architecture, and groups of random tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from troupe.algorithms.attention import PACKED_ATTENTION
from troupe.records import Branch, Group, Sample

VOCAB = 97
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
CONFIGS = {
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, head_dim=32),
    "llama": LlamaConfig(**SIZES),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    # Gemma's heads: one key-value head, wider than hidden_size / heads.
    "gemma": GemmaConfig(**{**SIZES, "num_key_value_heads": 1}, head_dim=48),
}


def build_model(config: object, attention: str | None = PACKED_ATTENTION) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    # Small random weights give nearly uniform attention, which would hide a wrong mask.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    return model.float().eval()


def make_group(prompt: int, branches: Sequence[int], seed: int = 0) -> Group:
    rng = random.Random(f"{prompt}/{branches}/{seed}")
    tokens = [[rng.randrange(VOCAB) for _ in range(length)] for length in (prompt, *branches)]
    sample = Sample(sample_id=f"{prompt}-{seed}", prompt="")
    return Group(sample=sample, prompt_ids=tokens[0], branches=[Branch(token_ids=branch) for branch in tokens[1:]])


@pytest.fixture
def ragged_groups() -> list[Group]:
    """A prompt of one token, branches of one token, a single branch, equal and unequal lengths."""
    return [
        make_group(1, [5, 1, 7]),
        make_group(12, [1]),
        make_group(9, [4, 4, 4, 4]),
        make_group(30, [20, 2, 11]),
        make_group(8, [6, 3, 5, 4]),
    ]
