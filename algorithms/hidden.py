"""Hidden states of a packed row, the same for every head that is put on them."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from algorithms.attention import layout_of
from algorithms.packing import Row


def hidden_states(model: PreTrainedModel, row: Row, positions: torch.Tensor) -> torch.Tensor:
    """The backbone's last hidden states at these positions of the flattened row; [n] -> [n, H]."""
    backbone = getattr(model, model.base_model_prefix)
    device = next(model.parameters()).device
    arguments = {"packed_layout": layout} if (layout := layout_of(row, device)) is not None else {}
    hidden = backbone(
        input_ids=row.input_ids.to(device),
        position_ids=row.position_ids.to(device),
        attention_mask=None if row.attention_mask is None else row.attention_mask.to(device),
        use_cache=False,
        **arguments,
    ).last_hidden_state.flatten(0, 1)  # [R, S, H] -> [R * S, H]
    return hidden.index_select(0, positions.to(device))


def inner_model(model: torch.nn.Module) -> PreTrainedModel:
    """The model itself, from inside a peft wrapper if there is one (its layers stay adapted)."""
    base = getattr(model, "get_base_model", None)
    return base() if base is not None else model
