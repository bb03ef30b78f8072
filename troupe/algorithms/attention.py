"""Attention over packed groups: a branch token sees its prompt and the tokens before it in its own branch.

Registered in transformers under `PACKED_ATTENTION`, so a model runs its own code around it. On a CPU the
segments of a row are computed in parts (`troupe.algorithms.cpu_attention`), which costs what the pairs that see each
other cost and not the square of the row; on CUDA the same rule is a FlexAttention block mask. `supports_branches` says
which architectures may be packed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from troupe.algorithms.cpu_attention import SegmentLayout, attend_segments, segment_layout
from troupe.algorithms.packing import Row

PACKED_ATTENTION = "troupe_packed"

BRANCHING_MODELS = ("qwen2", "qwen3", "llama", "mistral", "gemma", "smollm3", "olmo2", "phi3")
"""Model types whose attention layers are plain softmax attention that takes keyword arguments through to the
attention function. Others, and these with a sliding window, are packed one sequence per row."""


def supports_branches(config: PreTrainedConfig) -> bool:
    """Return whether every layer of a model with this config is full attention that can be packed with branches."""
    layer_types = getattr(config, "layer_types", None) or []
    if any(kind != "full_attention" for kind in layer_types):
        return False
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return (
        config.model_type in BRANCHING_MODELS and (window is None or bool(layer_types)) and rope_reach(config) is None
    )


def rope_reach(config: PreTrainedConfig) -> int | None:
    """Tokens up to which a rotary embedding ignores its row's length (dynamic NTK, long-rope); None for all others."""
    inner = config.get_text_config()
    rope = getattr(inner, "rope_parameters", None) or {}
    parts = [part for part in (rope, *rope.values()) if isinstance(part, dict)]
    dependent = [part for part in parts if part.get("rope_type") in ("dynamic", "longrope")]
    known = [part.get("original_max_position_embeddings") or inner.max_position_embeddings for part in dependent]
    return min(known, default=None)


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """The same rule as a FlexAttention block mask."""

    block_mask: Any


def layout_of(row: Row, device: torch.device) -> SegmentLayout | BlockLayout | None:
    """Return what the packed attention needs to know of `row`; None for rows of one sequence each."""
    if not row.spans:
        return None
    return _block_layout(row, device) if device.type == "cuda" else segment_layout(row)


def visible(row: Row) -> torch.Tensor:
    """Return [S, S] bool: which key (column) a query (row) sees; the definition that fast layouts are tested by."""
    group, branch = _owners(row)
    slots = torch.arange(len(group))
    causal = slots[:, None] >= slots[None, :]
    return causal & (group[:, None] == group) & ((branch[None, :] == 0) | (branch[:, None] == branch))


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    packed_layout: SegmentLayout | BlockLayout | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query [1, heads, S, D], key and value [1, kv_heads, S, D] -> [1, S, heads, D].

    `packed_layout` comes through the model's keyword arguments; without it the call is a programming error,
    because plain causal attention over a packed row would let groups see each other.
    """
    assert packed_layout is not None, "packed attention was called without a layout"
    if isinstance(packed_layout, BlockLayout):
        output = _compiled_flex()(
            query,
            key,
            value,
            block_mask=packed_layout.block_mask,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return output.transpose(1, 2).contiguous(), None
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [1, h, S, D] -> [S, h, D]
    return attend_segments(query, key, value, packed_layout, scaling)[None], None


def _owners(row: Row) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ([S] group of each slot, [S] branch of each slot; 0 is the prompt)."""
    group = torch.repeat_interleave(torch.arange(len(row.spans)), torch.tensor([span.size for span in row.spans]))
    pieces = [
        (number, length)
        for span in row.spans
        for number, length in enumerate((span.prompt_length, *span.branch_lengths))
    ]
    branch = torch.repeat_interleave(
        torch.tensor([n for n, _ in pieces]), torch.tensor([length for _, length in pieces])
    )
    return group, branch


def _block_layout(row: Row, device: torch.device) -> BlockLayout:
    from torch.nn.attention.flex_attention import create_block_mask

    size = row.input_ids.shape[1]
    return BlockLayout(
        create_block_mask(mask_rule(row, device), B=None, H=None, Q_LEN=size, KV_LEN=size, device=device)
    )


def mask_rule(row: Row, device: torch.device) -> Callable[..., torch.Tensor]:
    """Return `visible` as a FlexAttention mask function."""
    group, branch = (owner.to(device) for owner in _owners(row))

    def sees(_batch: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        own = (branch[key] == 0) | (branch[query] == branch[key])
        return (query >= key) & (group[query] == group[key]) & own

    return sees


@functools.cache
def _compiled_flex() -> Callable[..., torch.Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    # Rows differ in length from step to step; without dynamic shapes each length would compile anew.
    return torch.compile(flex_attention, dynamic=True)


ALL_ATTENTION_FUNCTIONS.register(PACKED_ATTENTION, packed_attention)
