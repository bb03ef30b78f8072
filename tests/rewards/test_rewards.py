import asyncio
import logging
import math
from pathlib import Path

import numpy as np
import pytest

from tests.rewards.conftest import group_of
from troupe.config.rollout import RewardConfig, RewarderConfig
from troupe.errors import RewardError
from troupe.records import Sample, Score
from troupe.rewards.build import Rewards, build_rewards
from troupe.rewards.resolve import resolve


def example(name: str, **settings: object) -> RewardConfig:
    return RewardConfig(fn=f"tests.rewards.example_rewards:{name}", **settings)  # type: ignore[arg-type]


def rewards_of(*configs: RewardConfig) -> Rewards:
    return build_rewards(configs)


def test_the_value_is_the_weighted_sum_and_the_parts_are_unweighted(sample: Sample) -> None:
    rewards = rewards_of(RewardConfig(fn="math_answer"), RewardConfig(fn="length", weight=-0.5, args={"limit": 2}))
    right, wrong = asyncio.run(rewards.score(group_of(sample, "#### 8", "nine or so pens")))
    assert right == Score(value=1.0 * 1 - 0.5 * 1, parts={"math_answer": 1.0, "length": 1.0})
    assert wrong == Score(value=1.0 * 0 - 0.5 * 0, parts={"math_answer": 0.0, "length": 0.0})


def test_a_name_replaces_the_functions_name_in_the_parts(sample: Sample) -> None:
    (score,) = asyncio.run(
        rewards_of(RewardConfig(fn="math_answer", name="accuracy")).score(group_of(sample, "#### 8"))
    )
    assert score.parts == {"accuracy": 1.0}


def test_sync_async_and_grouped_functions_are_called_alike(sample: Sample) -> None:
    rewards = rewards_of(*map(example, ("words", "words_async", "rank", "rank_async")))
    scores = asyncio.run(rewards.score(group_of(sample, "one two three", "one", "one two")))
    # 3 words, 1, 2; the ranks by length are 2, 0, 1.
    assert [dict(score.parts) for score in scores] == [
        {"words": w, "words_async": w, "rank": r, "rank_async": r, "rank_async/raw": r + 10}
        for w, r in ((3.0, 2.0), (1.0, 0.0), (2.0, 1.0))
    ]
    assert [score.value for score in scores] == [10.0, 2.0, 6.0]


@pytest.mark.parametrize(
    ("value", "number"), [(True, 1.0), (2, 2.0), (np.float32(0.5), 0.5), (Score(value=0.25), 0.25)]
)
def test_whatever_is_a_number_is_accepted(sample: Sample, value: object, number: float) -> None:
    (score,) = asyncio.run(rewards_of(example("constant", args={"value": value})).score(group_of(sample, "x")))
    assert score == Score(value=number, parts={"constant": number})
    assert type(score.value) is float


@pytest.mark.parametrize("value", [None, "1", [1.0], np.array([1.0]), Score(value=1.0, parts={"a": math.nan})])
def test_whatever_is_no_finite_number_stops_the_run_and_names_the_sample(sample: Sample, value: object) -> None:
    with pytest.raises(RewardError, match=r"reward constant .* not a finite number on sample word_problems/17"):
        asyncio.run(rewards_of(example("constant", args={"value": value})).score(group_of(sample, "x")))


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_nan_and_infinity_stop_the_run_and_name_the_sample(sample: Sample, number: str) -> None:
    with pytest.raises(RewardError, match=r"reward named .* not a finite number on sample word_problems/17"):
        asyncio.run(rewards_of(example("named", args={"number": number})).score(group_of(sample, "x")))


def test_an_exception_stops_the_run_and_names_function_place_sample_and_answer(sample: Sample) -> None:
    answer = "silence" * 20
    with pytest.raises(RewardError) as caught:
        asyncio.run(rewards_of(example("buggy")).score(group_of(sample, "fine", answer)))
    message = str(caught.value)
    assert "reward buggy (tests.rewards.example_rewards:buggy) raised ZeroDivisionError: division by zero" in message
    assert "(example_rewards.py line " in message
    assert "on sample word_problems/17" in message
    assert message.endswith(f"the answer begins {answer[:80]!r}")


@pytest.mark.parametrize("timeout_s", [None, 5.0])
def test_an_iterator_that_ends_inside_a_reward_is_an_exception_like_any_other(
    sample: Sample, timeout_s: float | None
) -> None:
    with pytest.raises(RewardError, match="StopIteration"):
        asyncio.run(rewards_of(example("exhausted", timeout_s=timeout_s)).score(group_of(sample, "x")))


def test_a_grouped_reward_must_return_a_score_per_branch(sample: Sample) -> None:
    with pytest.raises(RewardError, match="must return a list of 3 scores, got 2"):
        asyncio.run(rewards_of(example("one_too_few")).score(group_of(sample, "a", "b", "c")))
    with pytest.raises(RewardError, match="must return a list of 3 scores, got a float"):
        asyncio.run(rewards_of(example("one_number")).score(group_of(sample, "a", "b", "c")))


def test_a_missing_part_makes_the_score_missing_and_is_counted(sample: Sample) -> None:
    rewards = rewards_of(example("words"), example("missing_on_silence"))
    said, silent = asyncio.run(rewards.score(group_of(sample, "one two", "")))
    assert said == Score(
        value=3.0, parts={"words": 2.0, "missing_on_silence": 1.0, "missing_on_silence/confidence": 0.5}
    )
    assert silent == Score(value=None, parts={"words": 0.0})
    assert rewards.missing == {"missing_on_silence": 1}


@pytest.mark.parametrize(
    ("name", "what"),
    [("hangs", "took longer than 0.3 s"), ("hangs_async", "gave no answer in time"), ("gives_up", "gave no answer in time"),
     ("crashes", "was ended by SIGSEGV"), ("hoards", "took more memory than its process may have")],
)  # fmt: skip
def test_a_judgement_that_is_lost_is_missing_and_its_reason_is_known(
    sample: Sample, name: str, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    rewards = build_rewards(
        [example("words"), example(name, timeout_s=0.3 if "hangs" in name else 30, retries=1)],
        RewarderConfig(memory_gib=0.5),
    )
    with caplog.at_level(logging.WARNING):
        scores = asyncio.run(rewards.score(group_of(sample, "a b", "c")))
    assert scores == [Score(value=None, parts={"words": 2.0}), Score(value=None, parts={"words": 1.0})]
    assert rewards.missing == {name: 2}
    trouble = scores[1].trouble or ""
    assert trouble.startswith(f"reward {name} (tests.rewards.example_rewards:{name}) {what}")
    assert trouble.endswith("on sample word_problems/17; the answer begins 'c'")
    assert "(attempt 2 of 2)" in caplog.text
    rewards.close()


def test_a_plain_function_has_thirty_seconds_and_what_is_awaited_its_own_limits() -> None:
    limits = {
        each: resolve(example(each, **more)).limit_s
        for each, more in {
            "hangs": {},
            "hangs_async": {},
            "words": {"timeout_s": None},
            "rank": {"timeout_s": 3.0},
        }.items()
    }
    assert limits == {"hangs": 30.0, "hangs_async": None, "words": None, "rank": 3.0}


def test_a_timeout_is_retried_and_the_process_begins_anew(sample: Sample, tmp_path: Path) -> None:
    rewards = rewards_of(
        example("slow_at_first", timeout_s=0.5, retries=2, args={"slow_calls": 2, "counted_in": str(tmp_path)})
    )
    assert asyncio.run(rewards.score(group_of(sample, "x")))[0].value == 1.0
    assert not rewards.missing


def test_an_object_keeps_its_state_in_a_process_of_its_own(sample: Sample) -> None:
    rewards = rewards_of(RewardConfig(fn="tests.rewards.example_rewards:Novelty", name="novelty"))
    scores = [asyncio.run(rewards.score(group_of(sample, "a", "b", "a"))) for _ in range(2)]
    assert sorted(score.value for score in scores[0]) == [0.0, 1.0, 1.0]
    assert [score.value for score in scores[1]] == [0.0, 0.0, 0.0]
    assert rewards.counters["novelty/repeats"] == 4


def test_a_group_without_branches_has_no_scores(sample: Sample) -> None:
    assert asyncio.run(rewards_of(example("words"), example("rank")).score(group_of(sample))) == []
