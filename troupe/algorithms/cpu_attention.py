"""Attention over a packed row on a CPU, in two parts that are joined: a segment's own tokens, and its prompt.

A segment is a prompt or a branch. Each attends causally to itself; a branch attends to its prompt as well. Either part
is a plain flash attention without a mask over pairs, and the parts are joined by their log-sum-exps, as ring attention
joins the blocks of a long sequence (Liu et al. 2023, 2310.01889). So the cost is that of the pairs that see each other:
no branch meets another, and no prompt is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from troupe.algorithms.packing import Row, Span

WASTE = 1.25
"""Segments share a batch while padding them to the longest costs at most this factor of pairs."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, slots=True)
class Part:
    """Queries that attend to keys, many pairs of the same size at a time; slot S of a row stands for padding."""

    queries: torch.Tensor
    """[b, L] slots."""
    keys: torch.Tensor
    """[b, M] slots."""
    causal: bool
    mask: torch.Tensor | None
    """[b, 1, 1, M], minus infinity at padding; None where no query would see any."""


@dataclass(frozen=True, slots=True)
class SegmentLayout:
    """The parts of a row's attention, and where each row slot is found among their outputs."""

    own: tuple[Part, ...]
    """Segments, causal among themselves."""
    prompts: tuple[Part, ...]
    """All branch tokens of a group, and its prompt."""
    own_places: torch.Tensor
    """[S]: place of each row slot in the concatenated outputs of `own`."""
    branch_slots: torch.Tensor
    """[n]: slots of all branch tokens."""
    branch_places: torch.Tensor
    """[n]: place of each of them in the concatenated outputs of `prompts`."""
    prompt_slots: torch.Tensor
    """[p]: slots of all prompt tokens."""
    prompt_places: torch.Tensor
    """[p]: place of each of them in the concatenated keys of `prompts`."""


def segment_layout(row: Row) -> SegmentLayout:
    """Cut a row into batches of segments of similar length."""
    size = row.input_ids.shape[1]
    segments = [piece for span in row.spans for piece in _segments(span)]
    own = [_own_part(batch, size) for batch in _batches(segments)]
    prompts = [_prompt_part(batch, size) for batch in _group_batches(row.spans)]
    own_slots, own_places = _places([part.queries for part in own], size)
    branch_slots, branch_places = _places([part.queries for part in prompts], size)
    prompt_slots, prompt_places = _places([part.keys for part in prompts], size)
    return SegmentLayout(
        own=tuple(own),
        prompts=tuple(prompts),
        own_places=own_places[own_slots.argsort()],
        branch_slots=branch_slots,
        branch_places=branch_places,
        prompt_slots=prompt_slots,
        prompt_places=prompt_places,
    )


def attend_segments(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: SegmentLayout, scaling: float
) -> torch.Tensor:
    """Return the attention outputs of a row; query [S, heads, D], key and value [S, kv_heads, D] -> [S, heads, D]."""
    outputs: torch.Tensor = _Segments.apply(query, key, value, layout, scaling)
    return outputs


class _Segments(torch.autograd.Function):
    """Both parts, joined. In fp32 whatever comes in: the kernel is as fast, and joining rounds nothing."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: SegmentLayout, scaling: float
    ) -> torch.Tensor:
        q, k, v = (_widened(tensor) for tensor in (query, key, value))
        outputs, sums = _attend(layout.own, layout.own_places, q, k, v, scaling)  # [S, heads, D], [S, heads]
        past, past_sums = _attend(layout.prompts, layout.branch_places, q, k, v, scaling)  # [n, heads, D], [n, heads]
        own_sums = sums[layout.branch_slots]
        joined = torch.logaddexp(own_sums, past_sums)
        outputs.index_copy_(
            0,
            layout.branch_slots,
            torch.lerp(outputs[layout.branch_slots], past, torch.exp(past_sums - joined)[..., None]),
        )
        sums.index_copy_(0, layout.branch_slots, joined)
        outputs = outputs.to(query.dtype)
        ctx.save_for_backward(query, key, value, outputs, sums)
        ctx.layout, ctx.scaling = layout, scaling
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,), layout = gradients, ctx.layout
        query, key, value, outputs, sums = ctx.saved_tensors
        # Of the joined outputs and sums the kernel's backward pass gives each part's share of the gradient.
        read = [*(_widened(tensor) for tensor in (gradient, query, key, value, outputs)), _widened(sums)]
        own_q, own_k, own_v = (
            torch.cat(pieces).index_select(0, layout.own_places) for pieces in _gradients(layout.own, read, ctx.scaling)
        )
        past_q, past_k, past_v = (torch.cat(pieces) for pieces in _gradients(layout.prompts, read, ctx.scaling))
        for own, past, slots, places in (
            (own_q, past_q, layout.branch_slots, layout.branch_places),
            (own_k, past_k, layout.prompt_slots, layout.prompt_places),
            (own_v, past_v, layout.prompt_slots, layout.prompt_places),
        ):
            own.index_add_(0, slots, past.index_select(0, places))
        return own_q.to(query.dtype), own_k.to(key.dtype), own_v.to(value.dtype), None, None


def _attend(
    parts: Sequence[Part],
    places: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ([m, heads, D] outputs, [m, heads] log-sum-exps of the scores) at these places of the parts' outputs."""
    outputs, sums = [], []
    for part in parts:
        q, k, v = _take(query, part.queries), _take(key, part.keys), _take(value, part.keys)
        output, total = _flash(q, k, v, 0.0, part.causal, attn_mask=part.mask, scale=scaling)
        outputs.append(_flat(output))
        sums.append(_flat(total))
    return torch.cat(outputs).index_select(0, places), torch.cat(sums).index_select(0, places)


def _gradients(
    parts: Sequence[Part], read: Sequence[torch.Tensor], scaling: float
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Return the gradients of the queries, keys and values of each part, flat."""
    gradient, query, key, value, outputs, sums = read
    found: tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]] = ([], [], [])
    for part in parts:
        pieces = _flash_backward(
            _take(gradient, part.queries),
            _take(query, part.queries),
            _take(key, part.keys),
            _take(value, part.keys),
            _take(outputs, part.queries),
            _take(sums, part.queries),
            0.0,
            part.causal,
            attn_mask=part.mask,
            scale=scaling,
        )
        for listed, piece in zip(found, pieces, strict=True):
            listed.append(_flat(piece))
    return found


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    """Return the row in fp32 with one more slot, of zeros, for padding; [S, ...] -> [S + 1, ...]."""
    wide = torch.empty(len(tensor) + 1, *tensor.shape[1:], dtype=torch.float32)
    wide[:-1] = tensor
    wide[-1] = 0
    return wide


def _take(tensor: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    return tensor.index_select(0, slots.flatten()).unflatten(0, slots.shape).transpose(1, 2)  # -> [b, heads, L, ...]


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.transpose(1, 2).flatten(0, 1)  # [b, heads, L, ...] -> [b * L, heads, ...]


# -- the layout ------------------------------------------------------------------------------------------------


def _segments(span: Span) -> list[tuple[int, int]]:
    """Return (first slot, length) of a group's prompt and branches."""
    pieces, start = [], span.start
    for length in (span.prompt_length, *span.branch_lengths):
        pieces.append((start, length))
        start += length
    return pieces


def _batches(segments: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Return the segments in batches of similar length, longest first."""
    batches: list[list[tuple[int, int]]] = []
    pairs = 0
    for piece in sorted(segments, key=lambda piece: -piece[1]):
        squared = piece[1] ** 2
        if batches and batches[-1][0][1] ** 2 * (len(batches[-1]) + 1) <= WASTE * (pairs + squared):
            batches[-1].append(piece)
            pairs += squared
        else:
            batches.append([piece])
            pairs = squared
    return batches


def _group_batches(spans: Sequence[Span]) -> list[list[Span]]:
    """Return the groups in batches whose prompts and whose branches, all together, are of similar length."""
    batches: list[list[Span]] = []
    for span in sorted(spans, key=lambda span: (-span.size, -span.prompt_length)):
        wider = [*batches[-1], span] if batches else []
        if batches and _padded_pairs(wider) <= WASTE * sum(each.prompt_length * _answers(each) for each in wider):
            batches[-1].append(span)
        else:
            batches.append([span])
    return batches


def _answers(span: Span) -> int:
    return span.size - span.prompt_length


def _padded_pairs(spans: Sequence[Span]) -> int:
    return len(spans) * max(span.prompt_length for span in spans) * max(_answers(span) for span in spans)


def _own_part(segments: Sequence[tuple[int, int]], padding: int) -> Part:
    # Padding stands behind a segment, where causal attention does not look.
    slots = _slots(segments, padding)
    return Part(queries=slots, keys=slots, causal=True, mask=None)


def _prompt_part(spans: Sequence[Span], padding: int) -> Part:
    queries = _slots([(span.start + span.prompt_length, _answers(span)) for span in spans], padding)
    keys = _slots([(span.start, span.prompt_length) for span in spans], padding)
    padded = keys == padding
    mask = torch.zeros(keys.shape).masked_fill(padded, -torch.inf)[:, None, None] if padded.any() else None
    return Part(queries=queries, keys=keys, causal=False, mask=mask)


def _slots(pieces: Sequence[tuple[int, int]], padding: int) -> torch.Tensor:
    """Return [b, L] slots of pieces (first slot, length), padded to the longest."""
    steps = torch.arange(max(length for _, length in pieces))
    starts, lengths = (torch.tensor(column)[:, None] for column in zip(*pieces, strict=True))
    return torch.where(steps < lengths, starts + steps, padding)


def _places(slots: Sequence[torch.Tensor], padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (the slots without padding, where each stands in the concatenated slots)."""
    flat = torch.cat([each.flatten() for each in slots])
    places = (flat != padding).nonzero().flatten()
    return flat[places], places
