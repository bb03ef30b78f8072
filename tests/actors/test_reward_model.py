"""A reward model in the reward: scores relative to the reference answer by id, in any order, beside reward
functions.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from tests.actors.small import write_model
from tests.actors.test_values import write_scalar_model
from troupe.actors.frozen import FrozenModel, FrozenWorker
from troupe.actors.reward_model import RewardModel, require_same_tokenizer
from troupe.actors.rewarder import Rewarder
from troupe.actors.workers import InlineWorkers
from troupe.algorithms.packing import Batch
from troupe.chat import encode_answer
from troupe.config.models import RewardModelConfig
from troupe.config.rollout import RewardConfig
from troupe.errors import ConfigError, DataError, RewardError
from troupe.records import Branch, Group, Sample
from troupe.training.scratch import train_tokenizer

PROMPTS = ["Tom has 3 pens and gets 5 more.", "Ada has 7 books.", "Lin gives 2 stamps away.", "Noor has 4."]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("reward_model")
    write_model(directory, tied=True)
    write_scalar_model(AutoConfig.from_pretrained(directory), directory)
    return str(directory)


@pytest.fixture(scope="module")
def tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


@pytest.fixture(scope="module")
def frozen(path: str) -> Iterator[FrozenModel]:
    model = FrozenModel(InlineWorkers(FrozenWorker, [{"rank": 0, "world_size": 1}], role="reward_model"), scalar=True)
    model.start(path, precision="fp32", row_tokens=256, offload=False)
    model.ready(60)
    yield model
    model.shutdown()


@pytest.fixture
def asked(frozen: FrozenModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many branches the frozen model was asked for, call by call."""
    calls: list[int] = []
    scores = frozen.scores

    def counted(batch: Batch) -> torch.Tensor:
        calls.append(batch.num_branches)
        return scores(batch)

    monkeypatch.setattr(frozen, "scores", counted)
    return calls


@pytest.fixture
def build(frozen: FrozenModel, tokenizer: Any) -> Iterator[Any]:
    """Builds reward models that share the frozen one."""
    built: list[RewardModel] = []

    def make(**settings: Any) -> RewardModel:
        built.append(RewardModel(frozen, RewardModelConfig(path="unused", **settings), tokenizer))
        return built[-1]

    yield make
    for model in built:
        model.shutdown()


def group(tokenizer: Any, index: int, *, answers: int = 2, gold: str | None = "") -> Group:
    rng = random.Random(f"{index}/{answers}")
    prompt = PROMPTS[index]
    sample = Sample(sample_id=f"task/{index}", prompt=prompt, gold=f"It is {index + 1}." if gold == "" else gold)
    branches = [Branch(token_ids=[rng.randrange(20, 300) for _ in range(rng.randrange(2, 9))]) for _ in range(answers)]
    return Group(sample=sample, prompt_ids=tokenizer(prompt)["input_ids"], branches=branches)


def alone(frozen: FrozenModel, group: Group, token_ids: Any) -> float:
    """The score of one answer with nothing beside it."""
    one = Group(sample=group.sample, prompt_ids=group.prompt_ids, branches=[Branch(token_ids=token_ids)])
    return float(frozen.scores(Batch.from_groups([one])))


# -- the model alone ---------------------------------------------------------------------------------------------


def test_an_answer_is_worth_its_score_less_that_of_the_reference_answer(
    build: Any, frozen: FrozenModel, tokenizer: Any
) -> None:
    asked_about = group(tokenizer, 0)
    raw = [alone(frozen, asked_about, branch.token_ids) for branch in asked_about.branches]
    reference = alone(frozen, asked_about, encode_answer(tokenizer, "It is 1."))
    plain = build().score(asked_about).result(60)
    assert [part["reward_model"] for part in plain] == pytest.approx(raw, abs=1e-5)
    assert set(plain[0]) == {"reward_model"}
    relative = build(relative_to_reference=True).score(asked_about).result(60)
    assert [part["reward_model"] for part in relative] == pytest.approx([one - reference for one in raw], abs=1e-5)
    assert [part["reward_model/raw"] for part in relative] == pytest.approx(raw, abs=1e-5)
    assert [part["reward_model/reference"] for part in relative] == pytest.approx([reference] * 2, abs=1e-5)


def test_the_reference_answer_scores_zero_against_itself(build: Any, tokenizer: Any) -> None:
    gold = group(tokenizer, 1, gold="It is 9.")
    itself = Branch(token_ids=encode_answer(tokenizer, "It is 9."))
    told = Group(sample=gold.sample, prompt_ids=gold.prompt_ids, branches=[*gold.branches, itself])
    parts = build(relative_to_reference=True).score(told).result(60)
    assert parts[-1]["reward_model"] == pytest.approx(0, abs=1e-5)


def test_a_reference_is_scored_once_for_all_answers_of_its_sample(build: Any, tokenizer: Any, asked: list[int]) -> None:
    model = build(relative_to_reference=True)
    for answers in (2, 3, 1):  # the same task in three steps
        model.score(group(tokenizer, 2, answers=answers)).result(60)
    model.score(group(tokenizer, 3)).result(60)
    assert asked == [2 + 1, 3, 1, 2 + 1]


def test_scores_do_not_depend_on_the_order_in_which_groups_arrive(build: Any, tokenizer: Any) -> None:
    groups = [group(tokenizer, index) for index in range(4)]
    # Two samples may have the same prompt; their references are joined by the id.
    twin = Sample(sample_id="task/twin", prompt=groups[0].sample.prompt, gold="It is 77, or more.")
    groups.append(Group(sample=twin, prompt_ids=groups[0].prompt_ids, branches=groups[0].branches))
    results = []
    for seed in range(2):
        order = list(range(len(groups)))
        random.Random(seed).shuffle(order)
        model = build(relative_to_reference=True)
        futures = {index: model.score(groups[index]) for index in order}
        results.append([[part["reward_model"] for part in futures[index].result(60)] for index in range(len(groups))])
    for one, other in zip(*results, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert results[0][0] != pytest.approx(results[0][4], abs=1e-3)


def test_a_sample_without_a_reference_answer_cannot_be_compared_with_one(build: Any, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"task/0 has no reference answer, .*set it to false"):
        build(relative_to_reference=True).score(group(tokenizer, 0, gold=None)).result(60)


def test_a_model_with_other_tokens_cannot_read_the_policys(tokenizer: Any) -> None:
    require_same_tokenizer(tokenizer, tokenizer, "here", "reward_model.path")
    other = train_tokenizer(["quite another text, with other words"], 300, 64)
    with pytest.raises(
        ConfigError, match=r"reward_model\.path there has another tokenizer .* trained from the policy's"
    ):
        require_same_tokenizer(tokenizer, other, "there", "reward_model.path")


# -- beside reward functions -------------------------------------------------------------------------------------

BREVITY = RewardConfig(fn="tests.light_rewards:brevity", weight=2.0)


@pytest.fixture
def rewarders() -> Iterator[list[Rewarder]]:
    built: list[Rewarder] = []
    yield built
    for rewarder in built:
        rewarder.shutdown()


def test_the_sum_is_that_of_functions_and_model_each_with_its_weight(
    build: Any, frozen: FrozenModel, tokenizer: Any, rewarders: list[Rewarder]
) -> None:
    rewarders.append(Rewarder([BREVITY], parts=[build(weight=0.5)]))
    asked_about = group(tokenizer, 0)
    scored = rewarders[0].score(asked_about).result(60)
    for branch, score in zip(asked_about.branches, scored.scores, strict=True):
        brief, judged = 1 / len(branch.token_ids), alone(frozen, asked_about, branch.token_ids)
        assert score.value == pytest.approx(2.0 * brief + 0.5 * judged, abs=1e-5)
        # The parts are as they were given, before any weight.
        assert score.parts == pytest.approx({"brevity": brief, "reward_model": judged}, abs=1e-5)


def test_the_model_may_be_the_whole_reward(
    build: Any, frozen: FrozenModel, tokenizer: Any, rewarders: list[Rewarder]
) -> None:
    rewarders.append(Rewarder([], parts=[build(weight=3.0)]))
    asked_about = group(tokenizer, 1)
    scored = rewarders[0].score(asked_about).result(60)
    expected = [3.0 * alone(frozen, asked_about, branch.token_ids) for branch in asked_about.branches]
    assert [score.value for score in scored.scores] == pytest.approx(expected, abs=1e-5)


def test_a_missing_judgement_stays_missing_whatever_the_model_says(
    build: Any, tokenizer: Any, rewarders: list[Rewarder]
) -> None:
    rewarders.append(Rewarder([BREVITY], parts=[build()]))
    given = group(tokenizer, 0)
    unlucky = Branch(token_ids=[13, 40, 41])
    asked_about = Group(sample=given.sample, prompt_ids=given.prompt_ids, branches=[given.branches[0], unlucky])
    first, second = rewarders[0].score(asked_about).result(60).scores
    assert first.value is not None
    assert second.value is None
    assert "reward_model" in second.parts


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_an_error_and_not_an_endless_wait(
    build: Any,
    frozen: FrozenModel,
    tokenizer: Any,
    rewarders: list[Rewarder],
    monkeypatch: pytest.MonkeyPatch,
    value: float,
) -> None:
    monkeypatch.setattr(frozen, "scores", lambda batch: torch.full((batch.num_branches,), value))
    rewarders.append(Rewarder([BREVITY], parts=[build()]))
    answer: Future[Group] = rewarders[0].score(group(tokenizer, 0))
    with pytest.raises(RewardError, match=rf"the reward model's score of task/0 is {value}"):
        answer.result(20)


def test_a_failure_of_the_model_reaches_whoever_waits_for_the_score(
    build: Any, tokenizer: Any, rewarders: list[Rewarder]
) -> None:
    rewarders.append(Rewarder([BREVITY], parts=[build(relative_to_reference=True)]))
    with pytest.raises(DataError, match="has no reference answer"):
        rewarders[0].score(group(tokenizer, 0, gold=None)).result(20)
