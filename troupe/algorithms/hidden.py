"""What a model computes for a packed row: hidden states, the same for every head that is put on them, or its logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from troupe.algorithms.attention import layout_of, rope_reach
from troupe.algorithms.packing import Row


@dataclass(frozen=True, slots=True)
class ForwardPath:
    """One way to run a model."""

    branches: bool
    """Whether a prompt's branches are packed behind it; else each is a row with its own copy of the prompt."""
    alone: bool = False
    """Whether each sequence gets a pass of its own, without padding."""
    attention: str | None = None
    """transformers' name of the attention; None: the architecture's default."""
    own_logits: bool = False
    """Whether logits come from the model's own `forward`, at all positions, instead of its head where they are read."""

    def __str__(self) -> str:
        layout = "packed branches" if self.branches else "one sequence per pass" if self.alone else "padded rows"
        return layout + f", {self.attention} attention" * bool(self.attention) + ", its own logits" * self.own_logits


PLAIN = ForwardPath(branches=False)


def path_of(model: PreTrainedModel) -> ForwardPath:
    """Return how `model` is run: as `load_model` found out; of a model that came another way, as it is."""
    way: ForwardPath = getattr(model, "forward_path", PLAIN)
    return way


def hidden_states(model: PreTrainedModel, row: Row, positions: torch.Tensor) -> torch.Tensor:
    """Return the backbone's last hidden states at these positions of the flattened row; [n] -> [n, H]."""
    backbone = getattr(model, model.base_model_prefix)
    return _computed(model, backbone, "last_hidden_state", row, positions)


def own_logits(model: PreTrainedModel, row: Row, positions: torch.Tensor) -> torch.Tensor:
    """Return the model's own logits there, whatever it does behind its hidden states; [n] -> [n, V]."""
    return _computed(model, model, "logits", row, positions)


def _computed(
    model: PreTrainedModel, module: torch.nn.Module, name: str, row: Row, positions: torch.Tensor
) -> torch.Tensor:
    device = next(model.parameters()).device
    if row.attention_mask is not None and _needs_passes_of_its_own(model, row):
        values = _one_by_one(model, module, name, row, device)
    else:
        arguments = {"packed_layout": layout} if (layout := layout_of(row, device)) is not None else {}
        values = getattr(
            module(
                input_ids=row.input_ids.to(device),
                position_ids=row.position_ids.to(device),
                attention_mask=None if row.attention_mask is None else row.attention_mask.to(device),
                use_cache=False,
                **arguments,
            ),
            name,
        )
    return values.flatten(0, 1).index_select(0, positions.to(device))  # [R, S, H] -> [n, H]


def _needs_passes_of_its_own(model: PreTrainedModel, row: Row) -> bool:
    """Return whether sequences must not be padded: they do not bear it, or reach where a rotary embedding changes."""
    if not path_of(model).alone:
        return False
    forget_lengths(model)
    reach = rope_reach(model.config)
    return reach is None or row.input_ids.shape[1] > reach


def _one_by_one(
    model: PreTrainedModel, module: torch.nn.Module, name: str, row: Row, device: torch.device
) -> torch.Tensor:
    """Return [R, S, H] of sequences that each get a pass of their own."""
    assert row.attention_mask is not None
    values = []
    for ids, length in zip(row.input_ids, row.attention_mask.sum(1).tolist(), strict=True):
        forget_lengths(model)
        values.append(getattr(module(input_ids=ids[None, :length].to(device), use_cache=False), name)[0])
    return torch.nn.utils.rnn.pad_sequence(values, batch_first=True)


def forget_lengths(model: torch.nn.Module) -> None:
    """Set rotary embeddings that grow with the longest sequence seen (dynamic NTK) back to where they began."""
    module: Any
    for module in model.modules():
        if "dynamic" in str(getattr(module, "rope_type", "")):
            module.max_seq_len_cached = module.original_max_seq_len
            module.register_buffer("inv_freq", module.original_inv_freq.to(module.inv_freq.device), persistent=False)


def inner_model(model: torch.nn.Module) -> PreTrainedModel:
    """Return the model itself, from inside a peft wrapper if there is one (its layers stay adapted)."""
    base = getattr(model, "get_base_model", None)
    return base() if base is not None else model
