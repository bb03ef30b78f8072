"""The two parts of a row's attention, joined, are the attention that `visible` defines: outputs and gradients."""

from __future__ import annotations

import pytest
import torch

from tests.algorithms.conftest import make_group
from troupe.algorithms.attention import visible
from troupe.algorithms.cpu_attention import attend_segments, segment_layout
from troupe.algorithms.packing import Batch, Row, pack

SCALING = 0.25


def row_of(*shapes: tuple[int, list[int]]) -> Row:
    """One row of groups (tokens of the prompt, tokens of each branch)."""
    (row,) = pack(Batch.from_groups([make_group(prompt, branches) for prompt, branches in shapes]), 2**20)
    return row


def drawn(row: Row, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Queries of 4 heads, keys and values of 2, and a gradient of the outputs."""
    draw = torch.Generator().manual_seed(0)
    size = row.input_ids.shape[1]
    tensors = [torch.randn(size, heads, 16, generator=draw).to(dtype) for heads in (4, 2, 2, 4)]
    return [tensor.requires_grad_(index < 3) for index, tensor in enumerate(tensors)]


def defined(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: Row) -> torch.Tensor:
    """One mask [S, S] over the whole row, in float64."""
    heads = (tensor.double().transpose(0, 1)[None] for tensor in (query, key, value))
    attended = torch.nn.functional.scaled_dot_product_attention(
        *heads, attn_mask=visible(row), scale=SCALING, enable_gqa=True
    )
    return attended[0].transpose(0, 1)


@pytest.mark.parametrize(
    "shapes",
    [
        [(5, [3])],
        [(1, [1, 1])],
        [(7, [4, 4, 4]), (7, [4, 4, 4])],
        [(7, [4, 9, 1]), (30, [2]), (3, [40, 17, 18, 2]), (31, [5, 5])],
        [(300, [200, 3]), (8, [2] * 20)],
    ],
    ids=["one branch", "single tokens", "equal groups", "ragged groups", "longer than the kernel's blocks"],
)
def test_outputs_and_gradients_are_those_of_the_definition(shapes: list[tuple[int, list[int]]]) -> None:
    row = row_of(*shapes)
    *inputs, gradient = drawn(row)
    expected = defined(*inputs, row)
    expected_gradients = torch.autograd.grad(expected, inputs, gradient.double())
    actual = attend_segments(*inputs, segment_layout(row), SCALING)
    gradients = torch.autograd.grad(actual, inputs, gradient)
    torch.testing.assert_close(actual, expected.float(), atol=2e-6, rtol=1e-5)
    for mine, exact in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(mine, exact.float(), atol=5e-6, rtol=1e-5)


def test_bf16_is_rounded_once_on_the_way_in_and_once_on_the_way_out() -> None:
    row = row_of((7, [4, 9, 1]), (30, [2, 50]))
    *inputs, gradient = drawn(row, torch.bfloat16)
    expected = defined(*inputs, row)
    actual = attend_segments(*inputs, segment_layout(row), SCALING)
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual, expected.to(torch.bfloat16), atol=1e-6, rtol=2**-7)  # the last bit of bf16
    gradients = torch.autograd.grad(actual, inputs, gradient)
    exact = torch.autograd.grad(expected, inputs, gradient.double())
    for mine, right in zip(gradients, exact, strict=True):
        assert float((mine.double() - right).norm() / right.norm()) < 4e-3


def test_segments_share_a_batch_only_where_padding_costs_little() -> None:
    layout = segment_layout(row_of((80, [64, 64, 64]), (80, [64, 64])))
    # 80 x 80 x 4 = 25,600 pairs are 1.22 times the 2 x 80 x 80 + 2 x 64 x 64 = 20,992 of those segments; a fifth segment
    # would make it 1.28.
    assert sorted(tuple(part.queries.shape) for part in layout.own) == [(3, 64), (4, 80)]
    # 2 x 80 x 192 pairs are 1.2 times the 80 x 192 + 80 x 128 of the two groups.
    assert [tuple(part.queries.shape) for part in layout.prompts] == [(2, 192)]
    assert all(part.mask is None for part in layout.prompts)
