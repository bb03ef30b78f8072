"""Sums of bf16 gradients over the rows of a step, in fp32.

A bf16 number has eight bits: added to a sum 256 times as large, a gradient is lost. ZeRO keeps such sums itself from
stage 2 on.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch


class GradientSums:
    """Sums of a step's backward passes so far; rounded once, before the last of them."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._sums: dict[torch.nn.Parameter, torch.Tensor] = {}

    def take(self) -> None:
        """Add every parameter's gradient and leave it without one."""
        for parameter in self._parameters:
            if parameter.grad is None:
                continue
            if parameter in self._sums:
                self._sums[parameter].add_(parameter.grad)
            else:
                self._sums[parameter] = parameter.grad.float()
            parameter.grad = None

    def put_back(self) -> None:
        """Give every parameter its sum, which the last backward pass adds to and then reduces over the ranks."""
        for parameter, total in self._sums.items():
            parameter.grad = total.to(parameter.dtype)
        self._sums.clear()
