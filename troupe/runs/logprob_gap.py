"""How far two computations of the same log-probabilities may be apart: a function of what rounding alone makes.

The gate, the export and the report share it. Nothing is measured here.
"""

from __future__ import annotations

MULTIPLE = 4.0
"""Trainer and generator round independently, on other kernels: healthy gaps of real models reach 2 times the trainer's
own distance from fp32, so 4 leaves room. See docs/decisions/0014."""
LEAST, MOST = 1e-3, 0.5
"""Nats a token: what sums in another order stay far below, and what no healthy model needs."""


def allowed_gap(noise: float) -> float:
    """Return the largest mean |difference| in nats, where bf16 instead of fp32 makes `noise`; 0 in fp32."""
    return min(max(MULTIPLE * noise, LEAST), MOST)
