"""Attention over packed groups: a branch token sees its prompt and the tokens before it in its own branch.

Registered in transformers under `PACKED_ATTENTION`, so a model runs its own code around it. On a CPU the
groups of a row are computed in tiles, which costs what the groups cost and not the square of the row; on CUDA
the same rule is a FlexAttention block mask. `supports_branches` says which architectures may be packed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from troupe.algorithms.packing import Row, Span

PACKED_ATTENTION = "troupe_packed"

BRANCHING_MODELS = ("qwen2", "qwen3", "llama", "mistral", "gemma", "smollm3", "olmo2", "phi3")
"""Model types whose attention layers are plain softmax attention that takes keyword arguments through to the
attention function. Others, and these with a sliding window, are packed one sequence per row."""

TILE_WASTE = 1.25
"""Groups share a tile while padding them to the largest costs at most this factor."""


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
class Tile:
    """Groups of similar size whose attention is computed together, padded to the largest of them."""

    prompt_slots: torch.Tensor
    """[g, P] row slots of the prompts; padding repeats a slot of the group."""
    branch_slots: torch.Tensor
    """[g, R] row slots of all branch tokens; padding repeats a slot of the group."""
    branch_mask: torch.Tensor
    """[g, 1, R, P + R] bool: what a branch token sees."""


@dataclass(frozen=True, slots=True)
class TileLayout:
    """All tiles of a row, and where each row slot is found among their outputs."""

    tiles: tuple[Tile, ...]
    gather: torch.Tensor
    """[S]: index of each row slot in the concatenated tile outputs."""

    def to(self, device: torch.device) -> TileLayout:
        return (
            self
            if device.type == "cpu"
            else TileLayout(
                tuple(Tile(*(getattr(tile, name).to(device) for name in Tile.__slots__)) for tile in self.tiles),
                self.gather.to(device),
            )
        )


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """The same rule as a FlexAttention block mask."""

    block_mask: Any


def layout_of(row: Row, device: torch.device) -> TileLayout | BlockLayout | None:
    """Return what the packed attention needs to know of `row`; None for rows of one sequence each."""
    if not row.spans:
        return None
    return _block_layout(row, device) if device.type == "cuda" else tile_layout(row).to(device)


def visible(row: Row) -> torch.Tensor:
    """Return [S, S] bool: which key (column) a query (row) sees; the definition that fast layouts are tested by."""
    group, branch = _owners(row)
    slots = torch.arange(len(group))
    causal = slots[:, None] >= slots[None, :]
    return causal & (group[:, None] == group) & ((branch[None, :] == 0) | (branch[:, None] == branch))


def tile_layout(row: Row) -> TileLayout:
    """Cut the groups of a row into tiles (groups of similar size) for the CPU."""
    tiles: list[Tile] = []
    gather = torch.empty(row.input_ids.shape[1], dtype=torch.int64)
    offset = 0
    for spans in _similar(row.spans):
        tile = _tile(spans)
        tiles.append(tile)
        for slots, lengths in (
            (tile.prompt_slots, [span.prompt_length for span in spans]),
            (tile.branch_slots, [sum(span.branch_lengths) for span in spans]),
        ):
            valid = torch.arange(slots.shape[1])[None] < torch.tensor(lengths)[:, None]
            places = offset + torch.arange(slots.numel()).view(slots.shape)
            gather[slots[valid]] = places[valid]
            offset += slots.numel()
    return TileLayout(tuple(tiles), gather)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    packed_layout: TileLayout | BlockLayout | None = None,
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
    outputs = [piece for tile in packed_layout.tiles for piece in _attend_tile(tile, query, key, value, scaling)]
    return torch.cat(outputs).index_select(0, packed_layout.gather)[None], None


def _attend_tile(
    tile: Tile, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs [g * P, heads, D] of the prompts and [g * R, heads, D] of the branches."""
    repeats = query.shape[1] // key.shape[1]
    prompt = [_take(tensor, tile.prompt_slots) for tensor in (query, key, value)]
    branch = [_take(tensor, tile.branch_slots) for tensor in (query, key, value)]
    (prompt_q, prompt_k, prompt_v), (branch_q, branch_k, branch_v) = prompt, branch
    if repeats > 1:
        prompt_k, prompt_v, branch_k, branch_v = (
            tensor.repeat_interleave(repeats, dim=1) for tensor in (prompt_k, prompt_v, branch_k, branch_v)
        )
    # Padding of a prompt lies behind it, where causal attention does not look.
    of_prompt = scaled_dot_product_attention(prompt_q, prompt_k, prompt_v, is_causal=True, scale=scaling)
    of_branch = scaled_dot_product_attention(
        branch_q,
        torch.cat((prompt_k, branch_k), dim=2),
        torch.cat((prompt_v, branch_v), dim=2),
        attn_mask=tile.branch_mask,
        scale=scaling,
    )
    return of_prompt.transpose(1, 2).flatten(0, 1), of_branch.transpose(1, 2).flatten(0, 1)


def _take(tensor: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    return (
        tensor.index_select(0, slots.flatten()).unflatten(0, slots.shape).transpose(1, 2)
    )  # [S, h, D] -> [g, h, L, D]


def _similar(spans: Sequence[Span]) -> list[list[Span]]:
    """Consecutive spans whose prompts and branches fit one tile without much padding."""
    tiles: list[list[Span]] = []
    ordered = sorted(spans, key=lambda span: (-span.size, -span.prompt_length))
    for span in ordered:
        if tiles and _padded(tiles[-1] + [span]) <= TILE_WASTE * sum(member.size for member in tiles[-1] + [span]):
            tiles[-1].append(span)
        else:
            tiles.append([span])
    return tiles


def _padded(spans: Sequence[Span]) -> int:
    longest = max(span.prompt_length for span in spans) + max(sum(span.branch_lengths) for span in spans)
    return longest * len(spans)


def _tile(spans: Sequence[Span]) -> Tile:
    prompts = [span.prompt_length for span in spans]
    tokens = [sum(span.branch_lengths) for span in spans]
    width, length = max(prompts), max(tokens)
    starts = torch.tensor([span.start for span in spans])[:, None]
    prompt_lengths = torch.tensor(prompts)[:, None]
    token_counts = torch.tensor(tokens)[:, None]
    prompt_slots = starts + torch.minimum(torch.arange(width)[None], prompt_lengths - 1)
    branch_slots = starts + prompt_lengths + torch.minimum(torch.arange(length)[None], token_counts - 1)
    mask = torch.zeros(len(spans), length, width + length, dtype=torch.bool)
    mask[:, :, :width] = (torch.arange(width)[None] < prompt_lengths)[:, None, :]
    for index, span in enumerate(spans):
        owner = torch.repeat_interleave(torch.arange(len(span.branch_lengths)), torch.tensor(span.branch_lengths))
        own = (owner[:, None] == owner).tril()
        mask[index, : len(owner), width : width + len(owner)] = own
    return Tile(prompt_slots, branch_slots, mask[:, None])


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
