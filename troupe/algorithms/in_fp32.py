"""A model of bf16 weights, computed in fp32: what its own rounding costs is the difference.

Weights stay where and as they are, ZeRO's shards included: a weight is widened for the one operation that reads it, and
activations are fp32 from the embedding on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

HALVES = (torch.bfloat16, torch.float16)
WIDENED = frozenset(
    {
        functional.linear,
        functional.embedding,
        functional.layer_norm,
        functional.rms_norm,
        functional.conv1d,
        functional.scaled_dot_product_attention,
        torch.addmm,
        torch.matmul,
        torch.bmm,
        torch.baddbmm,
        torch.einsum,
        torch.Tensor.matmul,  # what DeepSpeed makes of `linear`
        torch.Tensor.__matmul__,
    }
)
"""Operations that want one dtype of all they read. Element-wise ones promote to fp32 by themselves; copies and views,
with which ZeRO gathers, must be left alone.
"""


class InFloat32(TorchFunctionMode):
    """Inside, products and look-ups read their half-precision arguments widened to fp32."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func not in WIDENED:
            return func(*args, **(kwargs or {}))
        return func(*tree_map(_widened, tuple(args)), **tree_map(_widened, kwargs or {}))


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype in HALVES else value
