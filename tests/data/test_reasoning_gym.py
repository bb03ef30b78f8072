"""Tasks of reasoning_gym are the library's own, scored by its own scorers, and climb by pass rate alone."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from typing import Any

import pytest
import reasoning_gym

from troupe.config.data import MixtureConfig
from troupe.config.libraries import CurriculumConfig, ReasoningGymConfig
from troupe.config.made_data import WordProblemsConfig
from troupe.config.rollout import RewardConfig
from troupe.data import load_data, stream_of
from troupe.data.stream import LevelStream
from troupe.errors import ConfigError, DataError, RewardError
from troupe.records import Branch, Group, Sample, Score
from troupe.rewards.reasoning_gym import ReasoningGym
from troupe.rewards.resolve import resolve

TASKS = {"chain_sum": {"min_terms": 2, "max_terms": 2}, "leg_counting": {}, "spell_backward": {}}


def config(**settings: Any) -> ReasoningGymConfig:
    return ReasoningGymConfig(**{"tasks": TASKS, "num_train": 20, "num_heldout": 6, **settings})


def test_questions_are_the_librarys_and_no_held_out_one_is_trained() -> None:
    data = load_data(config())
    again = load_data(config())
    assert (list(data.train), list(data.heldout)) == (list(again.train), list(again.heldout))
    assert load_data(config(seed=1)).train[0] != data.train[0]
    assert Counter(sample.fields["source"] for sample in data.heldout) == dict.fromkeys(TASKS, 6)
    asked = {sample.fields["entry"]["question"] for sample in data.heldout}
    assert asked.isdisjoint(sample.fields["entry"]["question"] for sample in data.train)
    for sample in data.train:
        system, user = sample.prompt
        assert "<answer>" in system["content"]
        assert user["content"] == sample.fields["entry"]["question"]
        scorer = reasoning_gym.get_score_answer_fn(sample.fields["source"])
        assert scorer(sample.gold, sample.fields["entry"]) == 1.0
    assert set(data.heldout_sets(None)) == {"reasoning_gym", *TASKS}


def test_most_tasks_of_the_library_are_solved_by_their_gold_answers() -> None:
    tasks = sorted(reasoning_gym.factory.DATASETS)
    assert len(tasks) >= 100
    reward, solved = ReasoningGym(), 0
    for task in tasks[::5]:  # some take a second to make one question
        # A task may have one question in all, or be made of others that it wants to be named.
        with contextlib.suppress(DataError, ConfigError):
            (sample,) = load_data(ReasoningGymConfig(tasks={task: {}}, num_train=1, num_heldout=1)).train
            if sample.gold is not None:
                solved += reward(sample, Branch(token_ids=(), text=f"So <answer>{sample.gold}</answer>")) > 0.9
    assert solved >= 17


def test_answers_are_read_from_the_last_tag_and_a_scorer_that_fails_gives_nothing() -> None:
    sample = load_data(config()).train[0]
    reward = resolve(RewardConfig(fn="reasoning_gym"))
    right = f"<answer>{sample.gold}</answer>"
    assert reward.call(sample, Branch(token_ids=(), text=f"<answer>no</answer> {right}")) == 1.0
    assert reward.call(sample, Branch(token_ids=(), text=f"{sample.gold}")) < 0.1
    bare = resolve(RewardConfig(fn="reasoning_gym", args={"tag": None}))
    assert bare.call(sample, Branch(token_ids=(), text=f"{sample.gold}")) == 1.0
    broken = Sample(sample_id="s", prompt="?", fields={"entry": {"metadata": {"source_dataset": "chain_sum"}}})
    assert reward.call(broken, Branch(token_ids=(), text=right)) == 0.0
    assert reward.check is not None
    with pytest.raises(ValueError, match="no entry of the library"):
        reward.check(Sample(sample_id="s", prompt="?"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"tasks": {"chain_sums": {}}}, "unknown task 'chain_sums'; did you mean 'chain_sum'"),
        ({"tasks": {"chain_sum": {"max_term": 3}}}, r"data.tasks.chain_sum: .*max_term.*its arguments are min_terms"),
        ({"tasks": {"chain_sum": {"min_terms": 9}}}, r"data.tasks.chain_sum: .*got {'min_terms': 9}"),
        ({"tasks": {"chain_sum": {"seed": 3}}}, "seed is set by data.seed"),
    ],
)
def test_what_the_library_would_refuse_is_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_data(config(**settings))


def test_weights_name_every_task_and_a_curriculum_needs_room() -> None:
    with pytest.raises(ValueError, match="weights names chain_sum, and the tasks are"):
        config(weights={"chain_sum": 1.0})
    with pytest.raises(ValueError, match="lower_at"):
        CurriculumConfig(raise_at=0.2, lower_at=0.5)
    with pytest.raises(DataError, match="source gym of the mixture has a curriculum"):
        load_data(MixtureConfig(sources={"gym": config(curriculum=CurriculumConfig()), "words": WordProblemsConfig()}))


# -- the curriculum ----------------------------------------------------------------------------------------------


CLIMB = CurriculumConfig(raise_at=0.75, lower_at=0.25, window=2)


def scored(sample: Sample, *values: float) -> Group:
    scores = [Score(value=value, parts={"reasoning_gym": value}) for value in values]
    branches = [Branch(token_ids=(1,)) for _ in values]
    return Group(sample=sample, prompt_ids=(1,), branches=branches, scores=scores)


def test_levels_grow_harder_and_held_out_samples_are_of_all() -> None:
    data = load_data(config(tasks={"chain_sum": {}}, curriculum=CLIMB, num_heldout=12))
    terms = {
        level: [s.fields["entry"]["metadata"]["num_terms"] for s in data.train if s.fields["level"] == level]
        for level in {sample.fields["level"] for sample in data.train}
    }
    assert len(terms) >= 3
    assert all(len(samples) >= 15 for samples in terms.values())
    hardest = [max(terms[level]) for level in sorted(terms)]
    assert hardest == sorted(hardest)
    assert hardest[0] != hardest[-1]
    assert len({sample.fields["level"] for sample in data.heldout}) == len(terms)


def test_a_task_goes_up_when_its_window_passes_down_when_it_fails_and_its_state_goes_on() -> None:
    data = load_data(config(tasks={"chain_sum": {}, "spell_backward": {}}, curriculum=CLIMB))
    stream = stream_of(data, 0, climbs=True)

    def step(passes: float, count: int = 4) -> Counter[tuple[str, int]]:
        samples = stream.take(count)
        stream.observe(
            [scored(s, passes, passes) if s.fields["source"] == "chain_sum" else scored(s, 0.5) for s in samples]
        )
        return Counter((s.fields["source"], s.fields["level"]) for s in samples)

    assert step(1.0) == {("chain_sum", 0): 2, ("spell_backward", 0): 2}
    assert stream.metrics()["data/chain_sum/level"] == 1
    assert step(0.5) == {("chain_sum", 1): 2, ("spell_backward", 0): 2}
    kept = json.loads(json.dumps(stream.state()))
    assert step(0.0) == {
        ("chain_sum", 0 if stream.metrics()["data/chain_sum/level"] == 0 else 1): 2,
        ("spell_backward", 0): 2,
    }
    after = [sample.sample_id for sample in stream.take(6)]
    again = stream_of(data, 0, kept, climbs=True)
    samples = again.take(4)
    again.observe([scored(s, 0.0, 0.0) if s.fields["source"] == "chain_sum" else scored(s, 0.5) for s in samples])
    assert [sample.sample_id for sample in again.take(6)] == after


def test_a_group_passes_by_the_share_of_its_answers_and_levels_left_behind_count_no_more() -> None:
    samples = [
        Sample(sample_id=f"{level}/{n}", prompt="?", fields={"level": level}) for level in (0, 1) for n in (0, 1)
    ]
    stream = LevelStream("task", samples, 0, CLIMB)
    stream.observe(scored(samples[0], 1.0, 1.0, 1.0, 0.0))  # 0.75
    stream.observe(scored(samples[2], 0.0))  # of a level that is not the current one
    assert stream.level == 0
    stream.observe(scored(samples[1], 1.0, 1.0, 1.0, 0.0))
    assert stream.level == 1
    assert {sample.fields["level"] for sample in stream.take(5)} == {1}
    with pytest.raises(
        RewardError, match=r"curriculum\.part 'reasoning_gym' is no reward of 1/0; its rewards are length"
    ):
        stream.observe(
            Group(
                sample=samples[2],
                prompt_ids=(1,),
                branches=[Branch(token_ids=(1,))],
                scores=[Score(value=1.0, parts={"length": 1.0})],
            )
        )


def test_supervised_training_draws_all_levels() -> None:
    data = load_data(config(tasks={"chain_sum": {}}, curriculum=CLIMB))
    assert len({sample.fields["level"] for sample in stream_of(data, 0).take(60)}) >= 3
