"""What a loaded model has that transformers' own has not."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Qwen2Config

from tests.actors.small import random_group, write_weights
from troupe.algorithms.loading import SummedEmbedding, load_model
from troupe.algorithms.logprobs import PackedModel
from troupe.algorithms.packing import Batch, pack


def test_the_bf16_gradient_of_an_embedding_is_rounded_once_however_often_a_token_stands_in_a_row(
    tmp_path: Path,
) -> None:
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=False,
        pad_token_id=7,  # torch gives it no gradient
    )
    path = write_weights(config, tmp_path)
    (row,) = pack(Batch.from_groups([random_group(100, [700], vocab=12)]), 4096)

    def gradient(model: torch.nn.Module) -> torch.Tensor:
        (-PackedModel(model)(row)[0].mean()).backward()
        return model.get_input_embeddings().weight.grad.float()

    model, plain = load_model(path, "bf16"), load_model(path, "bf16")
    assert type(model.get_input_embeddings()) is SummedEmbedding
    plain.get_input_embeddings().__class__ = torch.nn.Embedding
    exact = gradient(load_model(path, "bf16").float())
    error, before = ((gradient(m) - exact).norm() / exact.norm() for m in (model, plain))
    # A bf16 number has 8 bits; the products of the layer round as well. Each of 8 tokens stands there 100 times.
    assert error < 0.02
    assert before > 2 * error
    assert torch.count_nonzero(model.get_input_embeddings().weight.grad[7]) == 0
