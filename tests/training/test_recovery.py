"""A role is mended so often in one step, and no oftener; every role of a run has its rule."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from troupe.actors.placement import placement_table
from troupe.config.grpo import GRPOConfig, PPOConfig
from troupe.errors import WorkerError
from troupe.files import read_lines
from troupe.report.observers import open_run
from troupe.training.recovery import RULES, Recovery


def test_a_role_that_fails_at_the_same_place_again_and_again_is_an_error_with_its_cause(
    recipe: Callable[..., GRPOConfig],
) -> None:
    config = recipe()
    with open_run(config) as run:
        recovery = Recovery(run, limit=2)
        death = WorkerError("generator rank 1 died", details="its last lines", role="generator", ranks=[1])
        for _ in range(2):
            recovery.allow(death)
        with pytest.raises(WorkerError, match="generator rank 1 died"):
            recovery.allow(death)
        run.step = 7  # elsewhere it is another story
        recovery.allow(death)
    events = [event for event in read_lines(config.run.path / "events.jsonl") if event["kind"] == "recovered"]
    assert [(event["role"], event["ranks"], event["step"]) for event in events] == [("generator", [1], 0)] * 2 + [
        ("generator", [1], 7)
    ]
    assert events[0]["details"] == "its last lines"


def test_every_role_has_a_rule() -> None:
    config = PPOConfig(
        algorithm={"advantage": "gae", "kl": {"coef": 0.1}},
        reward_model={"path": "rm"},
        perplexity_reward={"path": "scorer"},
        rewarder={"num_workers": 1},
    )
    assert {place.role for place in placement_table(config, device="cpu")} == set(RULES) - {"driver"}
