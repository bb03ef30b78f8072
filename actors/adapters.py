"""LoRA around a model, and out of it again: what is published are the base model's weights with the adapter merged.

Everything here takes a model without an adapter, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from algorithms.hidden import inner_model
from algorithms.loading import Head
from core.role_recipes import LoraConfig


def with_adapter(model: PreTrainedModel, lora: LoraConfig, head: Head) -> PreTrainedModel:
    """`model` in an adapter that learns in its place; a scalar head is trained whole."""
    import peft

    scalar = head == "scalar"
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        exclude_modules=["score"] if scalar else None,
        task_type=None if scalar else "CAUSAL_LM",
    )
    adapted = peft.get_peft_model(model, settings)
    if scalar:  # a head that may start at zero is trained whole
        adapted.get_base_model().score.requires_grad_(True)
    return adapted


def published(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """The base model's parameters by their Hugging Face names; adapters are not among them.

    `named_parameters` names a tied head once, under the embedding, as checkpoints and vLLM's loaders do.
    """
    parameters = inner_model(model).named_parameters()
    return {name.replace(".base_layer.", "."): parameter for name, parameter in parameters if ".lora_" not in name}


def adapted_layers(model: PreTrainedModel) -> Mapping[str, Any]:
    """Weight name -> the LoRA layer around it."""
    modules = inner_model(model).named_modules()
    return {f"{name}.weight": module for name, module in modules if hasattr(module, "lora_A") and len(module.lora_A)}


def adapter_of(layer: Any | None) -> list[torch.nn.Parameter]:
    """The two matrices of a LoRA layer; none where there is no layer."""
    return [] if layer is None else [layer.lora_A["default"].weight, layer.lora_B["default"].weight]


def merged(parameter: torch.nn.Parameter, layer: Any | None) -> torch.Tensor:
    """A copy of a weight with its adapter's update, W + (alpha / r) B A, in fp32: a small update would vanish in bf16's
    product before the sum."""
    weight = parameter.detach().clone()
    if layer is None:
        return weight
    a, b = (matrix.detach().float() for matrix in adapter_of(layer))
    return (weight.float() + layer.scaling["default"] * (b @ a)).to(weight.dtype)
