"""bf16 weights computed in fp32 are transformers' own fp32 model of the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig

from tests.actors.small import SMALL, write_weights
from troupe.algorithms.in_fp32 import InFloat32

GPT2 = GPT2Config(vocab_size=256, n_embd=64, n_layer=2, n_head=2, n_positions=64)
LLAMA = LlamaConfig(
    vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, tie_word_embeddings=False,
)  # fmt: skip


@pytest.mark.parametrize("config", [SMALL, LLAMA, GPT2], ids=["qwen2", "llama", "gpt2"])
def test_bf16_weights_computed_in_fp32_give_what_an_fp32_model_of_them_gives(
    config: PreTrainedConfig, tmp_path: Path
) -> None:
    path = write_weights(config, tmp_path / "model")
    rounded = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
    ids = torch.arange(4, 44)[None]
    with torch.no_grad():
        own = rounded(input_ids=ids).logits
        with InFloat32():
            widened = rounded(input_ids=ids).logits
        exact = rounded.float()(input_ids=ids).logits
    assert widened.dtype == torch.float32
    torch.testing.assert_close(widened, exact, atol=1e-4, rtol=1e-5)
    assert (own.float() - exact).abs().max() > 1e-2  # which is what the rounding costs
