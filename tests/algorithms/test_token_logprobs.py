"""Log-probabilities and entropies of tokens, beside the formulas written out with PyTorch's own functions."""

from __future__ import annotations

import pytest
import torch

from troupe.algorithms import token_logprobs as module
from troupe.algorithms.token_logprobs import Known, token_logprobs

N, V = 11, 37


def written_out(
    logits: torch.Tensor, tokens: torch.Tensor, scale: float, softcap: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    z = logits.double()
    z = scale * (z if softcap is None else softcap * torch.tanh(z / softcap))
    every = z.log_softmax(-1)
    return every.gather(-1, tokens[:, None])[:, 0], -(every.exp() * every).sum(-1)


def drawn(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    logits = (4 * torch.randn(N, V, generator=draw)).to(dtype).requires_grad_()
    return logits, torch.randint(0, V, (N,), generator=draw), torch.randn(2, N, generator=draw)


@pytest.mark.parametrize("block", [1, 4 * V, 2**19], ids=["row by row", "blocks of four", "one block"])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (1 / 0.7, None), (0.5, 3.0)])
@pytest.mark.parametrize("entropy_grad", [False, True])
def test_values_and_gradients_are_those_of_the_formulas(
    block: int, scale: float, softcap: float | None, entropy_grad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.BLOCK_NUMBERS, "cpu", block)
    logits, tokens, weights = drawn()
    expected = written_out(logits, tokens, scale, softcap)
    actual = token_logprobs(logits, tokens, scale=scale, softcap=softcap, entropy_grad=entropy_grad)
    for mine, right in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, right.float(), atol=1e-5, rtol=1e-5)
    assert actual[1].requires_grad == entropy_grad
    used = [0, 1] if entropy_grad else [0]
    mine, right = (
        torch.autograd.grad(sum((weights[i] * values[i]).sum() for i in used), logits) for values in (actual, expected)
    )
    torch.testing.assert_close(mine[0], right[0].float(), atol=1e-5, rtol=1e-5)


def test_bf16_logits_are_widened_before_anything_is_computed_of_them() -> None:
    logits, tokens, weights = drawn(torch.bfloat16)
    expected, _ = written_out(logits, tokens, 1.0, None)
    actual, _ = token_logprobs(logits, tokens)
    torch.testing.assert_close(actual, expected.float(), atol=1e-5, rtol=1e-5)
    (mine,) = torch.autograd.grad(actual, logits, weights[0])
    (right,) = torch.autograd.grad(expected, logits, weights[0].double())
    torch.testing.assert_close(mine, right, atol=1e-6, rtol=2**-7)  # rounded to bf16 once


def test_a_recomputation_takes_over_the_results_of_the_first_pass() -> None:
    logits, tokens, _ = drawn()
    known = Known()
    first = token_logprobs(logits, tokens, known=known)
    again = token_logprobs(torch.full_like(logits, torch.nan), tokens, known=known)
    assert torch.equal(torch.stack(first), torch.stack(again))


def test_no_tokens_are_no_results() -> None:
    logprobs, entropies = token_logprobs(torch.empty(0, V), torch.empty(0, dtype=torch.int64))
    assert logprobs.shape == entropies.shape == (0,)
