"""Models out of checkpoints, with the attention and the head that packed rows need, for training and serving."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from troupe.algorithms.forward_paths import forward_path
from troupe.errors import CheckpointError

Head = Literal["vocabulary", "scalar"]
"""What is read off the hidden states: log-probabilities of tokens, or one number."""


DROPOUT = re.compile("dropout|pdrop")
OTHER_NOISE = re.compile("layerdrop|drop_path|jitter")
"""Names of settings in a model's config.json, of every architecture, that make its training passes random."""


class ScalarHead(torch.nn.Linear):
    """A head that computes in fp32, whatever its weights are kept in: [n, H] -> [n, 1].

    Scores of good answers lie close together, and a bf16 number has three digits: two answers in five would tie.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(
            input.float(), self.weight.float(), None if self.bias is None else self.bias.float()
        )


class SummedEmbedding(torch.nn.Embedding):
    """An embedding whose gradient adds the places of a token in fp32.

    On a CPU torch adds them one by one in the weights' own precision: in bf16 the gradient of a token that stands in a
    row hundreds of times is off by several per cent.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        if weight.dtype != torch.bfloat16 or weight.device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(input)
        return torch.nn.functional.embedding(input, weight.float(), self.padding_idx).to(weight.dtype)


def load_model(
    path: str,
    precision: str,
    *,
    head: Head = "vocabulary",
    trained_head: bool = False,
    trust_remote_code: bool = False,
    dropout: float = 0.0,
) -> PreTrainedModel:
    """Return a model that is run, as its `forward_path` states, the fastest way that gives its own log-probabilities.

    Whatever its config states, a training pass has `dropout` in all places where the architecture has one, and no other
    noise: two passes over the same tokens are compared nearly everywhere. `as_published` gives its config back.

    A scalar head that the checkpoint lacks starts at zero, so that training starts from a value of 0 for everything;
    with `trained_head` it is refused.
    """
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    replaced = _set_noise(config, dropout)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    # Packed attention has no dropout.
    way = forward_path(config, name=path, packed=not dropout, trust_remote_code=trust_remote_code)
    if way.attention is not None:
        options["attn_implementation"] = way.attention
    model = _load(path, config, precision, head, trained_head=trained_head, **options)
    model.replaced_settings, model.forward_path = replaced, way
    if type(embedding := model.get_input_embeddings()) is torch.nn.Embedding:  # others scale what they look up
        embedding.__class__ = SummedEmbedding
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):  # those of a number that is in no config, too
            module.p = dropout
    return model


@contextlib.contextmanager
def as_published(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model's config names what its checkpoint said of dropout and other noise."""
    config = model.config.get_text_config()
    mine = {name: getattr(config, name) for name in model.replaced_settings}
    config.update(model.replaced_settings)
    yield
    config.update(mine)


def _set_noise(config: PreTrainedConfig, dropout: float) -> dict[str, Any]:
    """Set every dropout of a config to one value and other noise to 0; the settings that were replaced."""
    inner = config.get_text_config()
    noise = {name: 0.0 for name in vars(inner) if OTHER_NOISE.search(name)}
    noise |= {name: dropout for name in vars(inner) if DROPOUT.search(name)}
    replaced = {name: getattr(inner, name) for name in noise if isinstance(getattr(inner, name), int | float)}
    inner.update({name: noise[name] for name in replaced})
    return replaced


def _load(
    path: str, config: PreTrainedConfig, precision: str, head: Head, *, trained_head: bool, **options: Any
) -> PreTrainedModel:
    options |= {"config": config, "dtype": torch.bfloat16 if precision == "bf16" else torch.float32}
    if head == "vocabulary":
        return AutoModelForCausalLM.from_pretrained(path, **options)
    config.num_labels = 1
    model, info = AutoModelForSequenceClassification.from_pretrained(path, output_loading_info=True, **options)
    if not isinstance(getattr(model, "score", None), torch.nn.Linear):
        raise CheckpointError(
            f"{path} is a {type(model).__name__}, whose head is not one linear layer called score; use a model of "
            f"another family"
        )
    if "score.weight" in info["missing_keys"]:
        if trained_head:
            raise CheckpointError(
                f"{path} has no trained scalar head, so it cannot score answers; train one with "
                f"jobs/train_reward_model.py"
            )
        torch.nn.init.zeros_(model.score.weight)
    model.score = ScalarHead(model.score)
    return model
