"""The bound of the gate follows what rounding makes, within limits."""

from __future__ import annotations

import pytest

from troupe.runs.logprob_gap import allowed_gap


@pytest.mark.parametrize(
    ("noise", "bound"),
    [
        (0.0, 1e-3),  # fp32: nothing was measured
        (2e-4, 1e-3),  # 4 x 2e-4 is less than the least
        (0.045, 0.18),  # SmolLM2-135M, whose healthy gaps reach 0.09
        (0.2, 0.5),  # no more than the most
    ],
)
def test_the_bound_is_four_times_the_noise_within_its_limits(noise: float, bound: float) -> None:
    assert allowed_gap(noise) == pytest.approx(bound)
