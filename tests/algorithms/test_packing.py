"""A packed row says of every token what the model says of each sequence alone, and nothing else changes it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from transformers import Gemma2Config, MistralConfig, PreTrainedModel, Qwen2Config

from tests.algorithms.conftest import CONFIGS, SIZES, build_model, make_group
from troupe.algorithms.attention import (
    PACKED_ATTENTION,
    layout_of,
    mask_rule,
    segment_layout,
    supports_branches,
    visible,
)
from troupe.algorithms.logprobs import PackedModel
from troupe.algorithms.packing import Batch, pack
from troupe.records import Group


def logprobs_one_by_one(model: PreTrainedModel, groups: Sequence[Group]) -> torch.Tensor:
    """The definition: each prompt + branch alone through the model's own forward pass, no packing, no padding."""
    values = []
    for group in groups:
        for branch in group.branches:
            ids = torch.tensor([[*group.prompt_ids, *branch.token_ids]])
            logits = model(input_ids=ids).logits[0].float()
            start = len(group.prompt_ids)
            values.append(logits[start - 1 : -1].log_softmax(-1).gather(-1, ids[0, start:, None])[:, 0])
    return torch.cat(values)


def logprobs_padded(model: PreTrainedModel, groups: Sequence[Group]) -> torch.Tensor:
    """What other systems do: every branch a right-padded row with its own copy of the prompt."""
    rows = [
        ([*group.prompt_ids, *branch.token_ids], len(group.prompt_ids)) for group in groups for branch in group.branches
    ]
    longest = max(len(row) for row, _ in rows)
    ids = torch.tensor([row + [0] * (longest - len(row)) for row, _ in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row, _ in rows])
    logprobs = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float().log_softmax(-1)
    picked = logprobs.gather(-1, ids[:, 1:, None])[..., 0]
    return torch.cat([picked[index, start - 1 : len(row) - 1] for index, (row, start) in enumerate(rows)])


def logprobs_packed(
    model: PreTrainedModel, groups: Sequence[Group], row_tokens: int, branches: bool = True, chunk: int = 2**26
) -> torch.Tensor:
    batch = Batch.from_groups(groups)
    packed = PackedModel(model, logits_chunk=chunk)
    values = torch.zeros(batch.num_tokens)
    for row in pack(batch, row_tokens, branches=branches):
        values = values.index_put((row.token_index,), packed(row)[0])
    return values


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("row_tokens", [16, 64, 4096])
def test_packed_logprobs_equal_one_sequence_at_a_time(name: str, row_tokens: int, ragged_groups: list[Group]) -> None:
    assert supports_branches(CONFIGS[name])
    with torch.no_grad():
        expected = logprobs_one_by_one(build_model(CONFIGS[name], "sdpa"), ragged_groups)
        packed = logprobs_packed(build_model(CONFIGS[name]), ragged_groups, row_tokens)
    torch.testing.assert_close(packed, expected, atol=1e-5, rtol=0)


def test_the_gradient_equals_the_padded_reference_and_ignores_rows_and_order(ragged_groups: list[Group]) -> None:
    def gradient(values: torch.Tensor, model: PreTrainedModel) -> torch.Tensor:
        weights = torch.linspace(-1, 1, len(values))
        (values * weights).sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    reference = build_model(CONFIGS["qwen2"], "sdpa")
    expected = gradient(logprobs_padded(reference, ragged_groups), reference)
    for row_tokens in (1, 50, 4096):
        model = build_model(CONFIGS["qwen2"])
        actual = gradient(logprobs_packed(model, ragged_groups, row_tokens), model)
        assert (actual - expected).norm() <= 1e-5 * expected.norm()


def test_logits_in_chunks_change_neither_values_nor_gradients(ragged_groups: list[Group]) -> None:
    results = []
    for chunk in (7 * SIZES["vocab_size"], 2**26):
        model = build_model(CONFIGS["qwen3"])
        values = logprobs_packed(model, ragged_groups, 4096, chunk=chunk)
        values.square().sum().backward()
        results.append((values.detach(), model.get_input_embeddings().weight.grad))
    (values, gradient), (expected_values, expected_gradient) = results
    torch.testing.assert_close(values, expected_values, atol=1e-5, rtol=0)
    assert (gradient - expected_gradient).norm() <= 1e-5 * expected_gradient.norm()


def test_entropy_and_temperature_follow_their_definitions() -> None:
    group = make_group(5, [3])
    model = build_model(CONFIGS["llama"], "sdpa")
    (row,) = pack(Batch.from_groups([group]), 64)
    with torch.no_grad():
        logits = (
            model(input_ids=torch.tensor([[*group.prompt_ids, *group.branches[0].token_ids]])).logits[0, 4:7].float()
        )
        packed_logprobs, entropy = PackedModel(build_model(CONFIGS["llama"]))(row, temperature=0.7)
    probabilities = (logits / 0.7).softmax(-1)
    torch.testing.assert_close(entropy, -(probabilities * probabilities.log()).sum(-1), atol=1e-5, rtol=0)
    picked = probabilities.gather(-1, torch.tensor(group.branches[0].token_ids)[:, None])[:, 0]
    torch.testing.assert_close(packed_logprobs, picked.log(), atol=1e-5, rtol=0)


def test_models_with_sliding_windows_or_unknown_attention_are_packed_one_sequence_per_row(
    ragged_groups: list[Group],
) -> None:
    config = MistralConfig(**SIZES, sliding_window=6)
    assert not supports_branches(config)
    assert not supports_branches(Gemma2Config())
    assert not supports_branches(Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=1))
    with torch.no_grad():
        expected = logprobs_one_by_one(build_model(config, "sdpa"), ragged_groups)
        actual = logprobs_packed(build_model(config, "sdpa"), ragged_groups, 80, branches=False)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_tiles_and_flex_rule_implement_visibility(ragged_groups: list[Group]) -> None:
    (row,) = pack(Batch.from_groups(ragged_groups), 4096)
    allowed = visible(row)
    slots = torch.arange(len(allowed))
    rule = mask_rule(row, torch.device("cpu"))
    assert torch.equal(rule(slots, slots, slots[:, None], slots[None, :]), allowed)
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, len(slots), 16) for heads in (4, 2, 2))
    from troupe.algorithms.attention import packed_attention

    actual, _ = packed_attention(
        torch.nn.Module(), query, key, value, None, scaling=0.25, packed_layout=segment_layout(row)
    )
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=allowed, scale=0.25, enable_gqa=True
    )
    torch.testing.assert_close(actual, expected.transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_visibility_of_one_small_group_by_hand() -> None:
    """Prompt of 2 (slots 0, 1), branches of 1 (slot 2) and 2 (slots 3, 4)."""
    (row,) = pack(Batch.from_groups([make_group(2, [1, 2])]), 64)
    expected = [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 1],
    ]
    assert visible(row).int().tolist() == expected
    assert row.position_ids.tolist() == [[0, 1, 2, 2, 3]]
    assert row.read_positions.tolist() == [1, 1, 3]
    assert row.token_index.tolist() == [0, 1, 2]


def test_rows_hold_every_group_once_within_the_budget(ragged_groups: list[Group]) -> None:
    batch = Batch.from_groups(ragged_groups)
    rows = pack(batch, 40)
    assert sorted(torch.cat([row.token_index for row in rows]).tolist()) == list(range(batch.num_tokens))
    assert all(row.input_ids.numel() <= 40 or len(row.spans) == 1 for row in rows)
    assert sum(row.input_ids.numel() for row in rows) == int(batch.packed_sizes.sum())


def test_selecting_groups_keeps_their_columns_aligned(ragged_groups: list[Group]) -> None:
    batch = Batch.from_groups(ragged_groups)
    batch = batch.with_columns(marks=batch.token_ids * 2.0)
    part = batch.select([3, 0])
    assert torch.equal(part["marks"], part.token_ids * 2.0)
    assert part.branch_lengths.tolist() == [20, 2, 11, 5, 1, 7]
    assert part.group_ids.tolist() == [0, 0, 0, 1, 1, 1]
    shards = batch.split(2)
    assert sorted(shards[0] + shards[1]) == [0, 1, 2, 3, 4]


def test_empty_prompts_and_branches_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        Batch.from_groups([make_group(3, [2, 0])])


def test_a_row_without_layout_cannot_reach_the_packed_attention() -> None:
    model = build_model(CONFIGS["qwen2"])
    assert model.config._attn_implementation == PACKED_ATTENTION
    with pytest.raises(AssertionError, match="without a layout"):
        model(input_ids=torch.tensor([[1, 2, 3]]))
    (row,) = pack(Batch.from_groups([make_group(3, [2])]), 64, branches=False)
    assert layout_of(row, torch.device("cpu")) is None
