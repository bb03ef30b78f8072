"""An answer's code earns what its tests allow, and cannot pass them without passing them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.rewards.conftest import branch
from troupe.config.rollout import RewardConfig
from troupe.errors import DataError
from troupe.records import Sample
from troupe.rewards.build import build_rewards
from troupe.rewards.python_tests import PythonTests

ADD = "Here it is:\n```python\ndef add(a, b):\n    return a + b\n```"
TESTS = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]


def judge(text: str, tests: Any, **args: Any) -> float | None:
    sample = Sample(sample_id="s", prompt="?", fields={"tests": tests})
    return asyncio.run(PythonTests(**args)(sample, branch(text))).value


@pytest.mark.parametrize(
    ("text", "tests", "all_pass", "share"),
    [
        (ADD, TESTS, 1.0, 1.0),
        (ADD, "\n".join(TESTS), 1.0, 1.0),
        (ADD.replace("+", "*"), TESTS, 0.0, 0.0),
        (ADD, [*TESTS, "assert add(1, 1) == 3"], 0.0, 2 / 3),
        (
            "print(sum(map(int, input().split())))",
            [{"input": "1 2", "output": "3"}, {"input": "4 5", "output": "8"}],
            0.0,
            0.5,
        ),
        ("no code at all", TESTS, 0.0, 0.0),
        ("```python\nimport os\nos._exit(0)\n```", TESTS, 0.0, 0.0),
        ("```python\nraise SystemExit\n```", TESTS, 0.0, 0.0),
        ("```python\nprint('0 1')\nimport sys\nsys.exit(0)\n```", TESTS, 0.0, 0.0),
    ],
)
def test_the_value_is_what_the_tests_say(text: str, tests: Any, all_pass: float, share: float) -> None:
    assert judge(text, tests) == all_pass
    assert judge(text, tests, score="fraction") == pytest.approx(share)


def test_code_that_hangs_fails() -> None:
    assert judge("```python\nwhile True: pass\n```", TESTS, seconds=1) == 0.0


@pytest.mark.parametrize("tests", [None, [], 3, [{"input": "1"}]])
def test_a_sample_without_tests_is_named_before_anything_runs(tests: Any) -> None:
    rewards = build_rewards([RewardConfig(fn="python_tests")])
    with pytest.raises(DataError, match=r"^own/1: reward python_tests: the field 'tests' holds no tests"):
        rewards.check([Sample(sample_id="own/1", prompt="?", fields={"tests": tests})])
