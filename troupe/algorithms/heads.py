"""A vocabulary head whose weights are gathered once for a row, however many chunks the row's logits are computed in.

ZeRO-3 gathers the weights of a layer whenever it is called, on all ranks together: a rank that called it more often
than another would wait for ever. So the whole loop over chunks runs inside one call of each layer of the head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from troupe.errors import CheckpointError

Loop = Callable[..., Any]
"""(logits of chunks of the inputs, the inputs [n, ...] one by one) -> anything made of tensors [n]."""


class _OneCall(torch.nn.Linear):
    """A linear layer that runs a function of its plain forward pass within one call of itself."""

    def forward(self, input: torch.Tensor, within: Loop | None = None) -> Any:
        plain = super().forward
        return plain(input) if within is None else within(plain, input)


def prepare_head(head: Any) -> None:
    """Make the layers of a head, and of an adapter on it, ready for `in_one_call`; else they stay as they are."""
    for layer in (_base(head), *getattr(head, "lora_B", {}).values()):
        if not isinstance(layer, torch.nn.Linear):
            raise CheckpointError(
                f"the model's output head is a {type(layer).__name__}, not a linear layer; use a model of another "
                f"family"
            )
        if not isinstance(layer, _OneCall):
            layer.__class__ = type(type(layer).__name__, (_OneCall, type(layer)), {})


def in_one_call(head: Any, hidden: torch.Tensor, loop: Loop) -> Any:
    """Return what `loop` makes of the head and the hidden states [n, H], while the head's weights are gathered."""
    base = _base(head)
    if base is head or head.disable_adapters:
        return base(hidden, within=loop)
    (name,) = head.active_adapters
    scale = head.scaling[name]
    low = head.lora_A[name](head.lora_dropout[name](hidden))  # [n, H] -> [n, rank]
    return head.lora_B[name](
        low,
        within=lambda up, low: base(
            hidden, within=lambda plain, hidden: loop(lambda h, z: plain(h) + scale * up(z), hidden, low)
        ),
    )


def _base(head: Any) -> Any:
    return getattr(head, "base_layer", head)
