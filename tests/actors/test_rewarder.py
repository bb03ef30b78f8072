"""The rewarder in the driver: judges of different groups are waited for side by side."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import Future

import pytest

from troupe.actors.rewarder import Rewarder
from troupe.config.rollout import RewardConfig
from troupe.errors import RewardError
from troupe.records import Branch, Group, Sample, Score


class Meeting:
    """Answers when the answers of two groups are here: one group at a time would wait for ever."""

    def __init__(self) -> None:
        self._arrived = 0
        self._complete = asyncio.Event()

    async def __call__(self, sample: Sample, branch: Branch) -> float:
        self._arrived += 1
        if self._arrived == 2:
            self._complete.set()
        await self._complete.wait()
        return float(len(branch.text))


def test_a_group_does_not_wait_for_the_judge_of_another() -> None:
    rewarder = Rewarder([RewardConfig(fn="tests.actors.test_rewarder:Meeting", timeout_s=30)])
    try:
        groups = [
            Group(
                sample=Sample(sample_id=text, prompt="?"), prompt_ids=[1], branches=[Branch(token_ids=[2], text=text)]
            )
            for text in ("one", "four")
        ]
        scored = [future.result(timeout=60) for future in [rewarder.score(group) for group in groups]]
        assert [group.scores[0].value for group in scored] == [3.0, 4.0]
    finally:
        rewarder.shutdown()


def group(*texts: str, sample_id: str = "s0") -> Group:
    branches = [Branch(token_ids=[2], text=text) for text in texts]
    return Group(sample=Sample(sample_id=sample_id, prompt="?"), prompt_ids=[1], branches=branches)


async def never(sample: Sample, branch: Branch) -> float:
    await asyncio.sleep(3600)
    return 1.0


async def letters(sample: Sample, branch: Branch) -> float | Score:
    return float(len(branch.text)) if branch.text else Score(value=None, reason="it says nothing")


def test_judgements_that_do_not_come_are_named_with_their_function_and_sample_and_given_up_at_the_end() -> None:
    rewarder = Rewarder([RewardConfig(fn="tests.actors.test_rewarder:never")])
    assert rewarder.late("scoring", 5) is None  # nothing is under way
    waiting = [rewarder.score(group("a", sample_id=f"s{number}")) for number in range(3)]
    deadline = time.monotonic() + 10
    while (late := rewarder.late("scoring", 5)) is None or "(a model)" in str(late):
        assert time.monotonic() < deadline, late
        time.sleep(0.01)
    assert str(late).startswith(
        "scoring did not end within 5 s: 3 groups wait for their rewards (never), that of sample s0 for 0 s; give a "
    )
    rewarder.shutdown()
    for answer in waiting:
        with pytest.raises(RewardError, match="were given up with the run"):
            answer.result(10)
    assert rewarder.late("scoring", 5) is None


class Model:
    """A part that knows what it will answer."""

    def __init__(self, label: str, weight: float, *answers: Mapping[str, float]) -> None:
        self.label, self.weight = label, weight
        self.answer: Future[list[Mapping[str, float]]] = Future()
        self._answers = list(answers)

    def score(self, group: Group) -> Future[list[Mapping[str, float]]]:
        return self.answer

    def speak(self) -> None:
        self.answer.set_result(self._answers)


def test_the_sum_is_that_of_functions_and_models_by_weight_and_what_is_missing_stays_missing() -> None:
    first = Model("reward_model", 0.5, {"reward_model": 2.0}, {"reward_model": -4.0}, {"reward_model": 1.0})
    second = Model(
        "perplexity", -1.0, {"perplexity": 3.0, "perplexity/tokens": 7.0}, {"other": 1.0}, {"perplexity": 0.0}
    )
    rewarder = Rewarder([RewardConfig(fn="tests.actors.test_rewarder:letters", weight=2.0)], parts=[first, second])
    try:
        answer = rewarder.score(group("abc", "abcd", ""))
        second.speak()  # in whatever order
        assert not answer.done()
        first.speak()
        scores = answer.result(10).scores
    finally:
        rewarder.shutdown()
    # 2 * 3 + 0.5 * 2 - 1 * 3; the second model did not judge the second answer, the function not the third.
    assert [score.value for score in scores] == [4.0, None, None]
    assert scores[0].parts == {"letters": 3.0, "reward_model": 2.0, "perplexity": 3.0, "perplexity/tokens": 7.0}
    assert scores[1].parts["reward_model"] == -4.0


def test_a_model_alone_may_judge_and_its_failure_is_that_of_the_group() -> None:
    model = Model("reward_model", 1.0, {"reward_model": 0.25})
    rewarder = Rewarder([], parts=[model])
    try:
        answer = rewarder.score(group("a"))
        model.speak()
        assert [score.value for score in answer.result(10).scores] == [0.25]
        broken = Model("reward_model", 1.0)
        broken.answer.set_exception(RewardError("no score"))
        other = Rewarder([], parts=[broken])
        with pytest.raises(RewardError, match="no score"):
            other.score(group("a")).result(10)
        assert other.late("scoring", 5) is None
        other.shutdown()
    finally:
        rewarder.shutdown()
