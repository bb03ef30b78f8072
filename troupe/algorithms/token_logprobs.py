"""From logits to the log-probabilities of tokens and the entropies of their distributions, a few rows at a time.

Plain PyTorch makes a dozen passes over fp32 tensors [n, V], each larger than any cache. Here a block of rows goes
through all of them before the next begins, in place, and the backward pass keeps the logits and two numbers a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

BLOCK_NUMBERS = {"cpu": 2**19, "cuda": 2**26}
"""Logits of a block: on a CPU they stay in a core's cache, on a GPU few kernels matter more."""


class Known:
    """Results of a first forward pass, so that a recomputation for the backward pass does not compute them again."""

    def __init__(self) -> None:
        self.results: tuple[torch.Tensor, ...] | None = None


def token_logprobs(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    entropy_grad: bool = False,
    known: Known | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (log softmax(z)[token] [n], entropy of softmax(z) [n]), both fp32.

    z = scale * softcap(logits), softcap(x) = c tanh(x / c) where there is a c; logits [n, V] of any dtype, tokens [n].
    The entropy is logsumexp(z) - sum softmax(z) z; it carries a gradient only with `entropy_grad`.
    """
    results: tuple[torch.Tensor, torch.Tensor] = _TokenLogprobs.apply(
        logits, tokens, scale, softcap, entropy_grad, known or Known()
    )
    return results


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        tokens: torch.Tensor,
        scale: float,
        softcap: float | None,
        entropy_grad: bool,
        known: Known,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if known.results is None:
            known.results = _results(logits, tokens, scale, softcap)
        logprobs, entropies, normalisers = known.results
        ctx.save_for_backward(logits, tokens, normalisers, entropies)
        ctx.scale, ctx.softcap, ctx.entropy_grad = scale, softcap, entropy_grad
        logprobs, entropies = logprobs.clone(), entropies.clone()
        if not entropy_grad:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits, tokens, normalisers, entropies = ctx.saved_tensors
        of_logprob, of_entropy = gradients
        result = torch.empty_like(logits)
        for rows in _blocks(logits):
            z = _scores(logits[rows], ctx.scale, ctx.softcap)
            slope = None if ctx.softcap is None else ctx.scale * (1 - (z / (ctx.scale * ctx.softcap)) ** 2)
            probabilities = (
                torch.exp(z - normalisers[rows, None]) if ctx.entropy_grad else z.sub_(normalisers[rows, None]).exp_()
            )
            weights = -of_logprob[rows, None]
            if ctx.entropy_grad:
                # dH/dz = -p (z - sum p z), and sum p z = logsumexp(z) - H.
                weights = weights - of_entropy[rows, None] * (z - (normalisers - entropies)[rows, None])
            gradient = probabilities.mul_(weights)  # d log p[token]/dz = onehot - p
            gradient.scatter_add_(1, tokens[rows, None], of_logprob[rows, None])
            result[rows] = gradient.mul_(ctx.scale if slope is None else slope)
        return result, None, None, None, None, None


def _results(
    logits: torch.Tensor, tokens: torch.Tensor, scale: float, softcap: float | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return log-probabilities, entropies and normalisers logsumexp(z), [n] fp32 each."""
    logprobs, entropies, normalisers = (
        torch.empty(len(logits), dtype=torch.float32, device=logits.device) for _ in range(3)
    )
    for rows in _blocks(logits):
        z = _scores(logits[rows], scale, softcap)
        largest = z.amax(-1, keepdim=True)
        weights = torch.exp(z - largest)
        total = weights.sum(-1)
        normalisers[rows] = largest[:, 0] + total.log()
        logprobs[rows] = z.gather(-1, tokens[rows, None])[:, 0] - normalisers[rows]
        entropies[rows] = normalisers[rows] - weights.mul_(z).sum(-1) / total
    return logprobs, entropies, normalisers


def _scores(logits: torch.Tensor, scale: float, softcap: float | None) -> torch.Tensor:
    """Return z of some rows, a copy in fp32."""
    z = logits.to(torch.float32, copy=True)
    if softcap is not None:
        z = z.div_(softcap).tanh_().mul_(softcap)
    return z if scale == 1 else z.mul_(scale)


def _blocks(logits: torch.Tensor) -> Iterator[slice]:
    size = max(1, BLOCK_NUMBERS[logits.device.type] // logits.shape[1])
    return (slice(start, start + size) for start in range(0, len(logits), size))
