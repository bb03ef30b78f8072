"""LoRA around a model, and out of it again: what is published are the base model's weights with the adapter merged.

Everything here takes a model without an adapter, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from troupe.algorithms.hidden import inner_model
from troupe.algorithms.loading import Head
from troupe.config.models import LoraConfig
from troupe.errors import ConfigError

WRAPPED = re.compile(r"\.base_layer(?=\.|$)")
"""What peft puts into the name of a layer that it wraps, once for each wrapper."""


def with_adapter(model: PreTrainedModel, lora: LoraConfig, head: Head) -> PreTrainedModel:
    """Return `model` in an adapter that learns in its place; a scalar head is trained whole."""
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
    try:
        adapted = peft.get_peft_model(model, settings)
    except ValueError as error:  # peft's, of modules that are not there or cannot be adapted
        cause = " ".join(str(error).split())
        raise ConfigError(
            f"lora.target_modules {lora.target_modules} do not fit a {type(model).__name__}: {cause}"
        ) from None
    _require_mergeable(adapted)
    if scalar:  # a head that may start at zero is trained whole
        adapted.get_base_model().score.requires_grad_(True)
    return adapted


def check_adapter(path: str, lora: LoraConfig, head: Head, *, trust_remote_code: bool = False) -> None:
    """Raise ConfigError unless this adapter can train the model at a directory or hub name; no weight is read."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    kind = AutoModelForSequenceClassification if head == "scalar" else AutoModelForCausalLM
    options = {"trust_remote_code": True} if trust_remote_code else {}
    with torch.device("meta"):
        with_adapter(kind.from_config(config, **options), lora, head)


def _require_mergeable(model: Any) -> None:
    from peft.tuners.lora.layer import Embedding, Linear, LoraLayer, ParamWrapper

    inner = inner_model(model)
    for name, module in inner.named_modules():
        if isinstance(module, LoraLayer) and not isinstance(module, Linear | Embedding | ParamWrapper):
            raise ConfigError(
                f"lora.target_modules name {name}, a {type(module.get_base_layer()).__name__}, whose adapter cannot be "
                "published; leave it out"
            )
    head, embedding = inner.get_output_embeddings(), inner.get_input_embeddings()
    if head is not None and _weight(head) is _weight(embedding):
        for name, module in inner.named_modules():
            if module in (head, embedding) and isinstance(module, LoraLayer):
                raise ConfigError(
                    f"lora.target_modules name {name}, whose weight the embedding and the output head share, so that "
                    "one adapter on it would change both; leave it out, or give a model that was saved with "
                    "tie_word_embeddings: false"
                )


def _weight(module: Any) -> torch.Tensor:
    weight: torch.Tensor = getattr(module, "base_layer", module).weight
    return weight


def published(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """Return the base model's parameters by their names in its class; adapters are not among them.

    `named_parameters` names a tied head once, under the embedding, as checkpoints and vLLM's loaders do.
    """
    parameters = inner_model(model).named_parameters()
    return {base_name(name): parameter for name, parameter in parameters if ".lora_" not in name}


def in_checkpoint(model: PreTrainedModel, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return a published parameter as checkpoints have it: the fused experts of a mixture, say, one by one."""
    return dict(revert_weight_conversion(inner_model(model), {name: tensor}))


def base_name(name: str) -> str:
    """Return a weight's name before adapters were put around it: `mlp.base_layer.down_proj` -> `mlp.down_proj`."""
    return WRAPPED.sub("", name)


def adapted_layers(model: PreTrainedModel) -> Mapping[str, Any]:
    """Weight name -> the LoRA layer around it."""
    found = {}
    for name, module in inner_model(model).named_modules():
        if len(getattr(module, "lora_A", ())) or len(getattr(module, "lora_embedding_A", ())):
            # Adapters of parameters are nested, each around one of them.
            found[f"{base_name(name)}.{getattr(module, 'parameter_name', 'weight')}"] = module
    return found


def adapter_of(layer: Any | None) -> list[torch.nn.Parameter]:
    """Return the two matrices of a LoRA layer; none where there is no layer."""
    if layer is None:
        return []
    if len(layer.lora_A):
        return [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    return [layer.lora_embedding_A["default"], layer.lora_embedding_B["default"]]


def merged(parameter: torch.nn.Parameter, layer: Any | None) -> torch.Tensor:
    """Return W + (alpha / r) B A in fp32: in bf16 a small update would vanish before the sum."""
    weight = parameter.detach().clone()
    if layer is None:
        return weight
    return (weight.float() + layer.scaling["default"] * _update(layer)).to(weight.dtype)


def _update(layer: Any) -> torch.Tensor:
    """B A in the shape of the weight that the layer is around."""
    a, b = (matrix.detach().float() for matrix in adapter_of(layer))
    experts = getattr(layer, "num_experts", 1)
    if experts > 1:  # of all of them, as peft keeps them: A [E r, in], B [out, r E]
        a, b = a.unflatten(0, (experts, -1)), b.unflatten(1, (-1, experts))
        update = torch.einsum("ore,eri->eoi", b, a)
        return update if layer._did_swap_in_out_features else update.transpose(1, 2)
    transposed = not len(layer.lora_A) or layer.fan_in_fan_out  # embeddings, and GPT-2's Conv1D
    return (b @ a).T if transposed else b @ a
