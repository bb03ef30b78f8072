"""A step's groups depend on the seed, the step and the prompts; never on which engine was quicker."""

from __future__ import annotations

import asyncio
import queue
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from troupe.actors.generator import GeneratorWorker, Request, branch_seed
from troupe.actors.generators import deal
from troupe.actors.meters import Throughput
from troupe.actors.rewarder import Rewarder
from troupe.chat import encode_prompt
from troupe.config.rollout import DynamicSamplingConfig, RewardConfig, RolloutConfig
from troupe.data import PromptStream
from troupe.errors import DataError, RewardError, WorkerError
from troupe.records import Branch, Sample, WeightSpan
from troupe.training.rollouts import Rollout, Rollouts
from troupe.training.scratch import train_tokenizer

TOKENIZER = train_tokenizer(["a number of words, and another"], 300, 512)
GROUP_SIZE = 4


class LastInFirstOut:
    """Generators that answer from prompt and seed alone, and finish what was asked last first.

    `version` is the version of the weights that they hold; answers are labelled with it, as vLLM labels its own.
    """

    def __init__(self) -> None:
        self.version = 0
        self.asked: list[tuple[int, Request]] = []
        """(version, request) in the order of submission."""
        self.finished: list[Request] = []
        self.broken: Exception | None = None
        self.silent = False
        self._inbox: queue.SimpleQueue[tuple[Request, list[Branch], Future[list[Branch]]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def submit(self, requests: Sequence[Request], *, alone: bool) -> list[Future[list[Branch]]]:
        self.alone = alone
        return [self._submit(request) for request in requests]

    def _submit(self, request: Request) -> Future[list[Branch]]:
        self.asked.append((self.version, request))
        answer: Future[list[Branch]] = Future()
        if not self.silent:
            self._inbox.put((request, [self._branch(request, i) for i in range(request.num_branches)], answer))
        return answer

    in_flight = 7

    def require_alive(self) -> None:
        """Its engines do not die."""

    def late(self, what: str, waited_s: float) -> WorkerError:
        return WorkerError(
            f"generator rank [0] did not finish {what} within {waited_s:g} s; branches in flight per engine: [7]"
        )

    def close(self) -> None:
        self._inbox.put(None)

    def _branch(self, request: Request, index: int) -> Branch:
        rng = random.Random(f"{list(request.prompt_ids)}/{request.seed + index}")
        tokens = [rng.randrange(10, 250) for _ in range(rng.randint(1, request.max_tokens))]
        span = WeightSpan(version=self.version, start=0, end=len(tokens))
        return Branch(token_ids=tokens, text=TOKENIZER.decode(tokens), weight_versions=(span,))

    def _work(self) -> None:
        while True:
            waiting = [self._inbox.get()]
            try:
                while True:
                    waiting.append(self._inbox.get(timeout=0.01))
            except queue.Empty:
                pass
            for work in reversed(waiting):
                if work is None:
                    return
                request, branches, answer = work
                self.finished.append(request)
                answer.set_exception(self.broken) if self.broken else answer.set_result(branches)


@pytest.fixture
def generators() -> Iterator[LastInFirstOut]:
    fake = LastInFirstOut()
    yield fake
    fake.close()


def samples(count: int, **fields: Sequence[object]) -> list[Sample]:
    """Samples with an id, a prompt of a few tokens, and the i-th value of each field."""
    return [
        Sample(
            sample_id=f"s{index}",
            prompt=f"number {index}",
            fields={name: values[index] for name, values in fields.items()},
        )
        for index in range(count)
    ]


def in_stream_order(count: int, **fields: Sequence[object]) -> list[Sample]:
    """Samples whose i-th value belongs to the i-th prompt that a stream of seed 0 hands out."""
    order = [int(sample.sample_id[1:]) for sample in PromptStream(samples(count), 0).take(count)]
    placed = {
        name: [value for _, value in sorted(zip(order, values, strict=True), key=lambda pair: pair[0])]
        for name, values in fields.items()
    }
    return samples(count, **placed)


def build(
    generators: LastInFirstOut,
    prompts: Sequence[Sample],
    *,
    reward: str = "token_sum",
    position: int = 0,
    seed: int = 0,
    last_step: int = 100,
    requires_group: bool = True,
    **settings: object,
) -> Rollouts:
    config = RolloutConfig(
        **{"prompts_per_step": 3, "group_size": GROUP_SIZE, "max_response_tokens": 9, "timeout_s": 60, **settings}
    )
    return Rollouts(
        PromptStream(prompts, 0, position=position),
        TOKENIZER,
        generators,  # type: ignore[arg-type]
        Rewarder([RewardConfig(fn=f"tests.light_rewards:{reward}")]),
        config,
        seed=seed,
        last_step=last_step,
        requires_group=requires_group,
    )


def ids(rollout: Rollout) -> list[str]:
    return [group.sample.sample_id for group in rollout.groups]


# -- rewards ---------------------------------------------------------------------------------------------------


# -- order and seeds -------------------------------------------------------------------------------------------


def test_groups_come_in_the_order_of_their_prompts_whatever_finishes_first(generators: LastInFirstOut) -> None:
    data = samples(10)
    rollout = build(generators, data, prompts_per_step=6).next_batch(1)
    expected = [sample.sample_id for sample in PromptStream(data, 0).take(6)]
    assert ids(rollout) == expected
    asked = [request.seed for _, request in generators.asked]
    assert [request.seed for request in generators.finished] == asked[::-1]
    for group in rollout.groups:
        # Each group holds the answers to its own prompt, and each score is its own branch's.
        assert list(group.prompt_ids) == TOKENIZER(group.sample.prompt)["input_ids"]
        assert [score.value for score in group.scores] == [sum(branch.token_ids) for branch in group.branches]
    tokens = sum(len(branch.token_ids) for group in rollout.groups for branch in group.branches)
    assert rollout.metrics["rollout/tokens"] == tokens
    assert rollout.metrics["rollout/response_tokens"] == pytest.approx(tokens / (6 * GROUP_SIZE))


def test_seeds_differ_between_steps_samples_and_runs_and_repeat_otherwise() -> None:
    def seeds(run_seed: int) -> list[int]:
        fake = LastInFirstOut()
        rollouts = build(fake, samples(2), prompts_per_step=2, seed=run_seed)
        for step in (1, 2, 3):  # every step draws both samples again
            fake.version = step - 1
            rollouts.next_batch(step)
        fake.close()
        return [request.seed for _, request in fake.asked]

    first, again, other = seeds(0), seeds(0), seeds(1)
    assert first == again
    # Branch i takes seed + i, so two groups must lie more than group_size apart to share no random stream.
    used = [seed + branch for seed in first + other for branch in range(GROUP_SIZE)]
    assert len(set(used)) == 2 * 3 * 2 * GROUP_SIZE


def test_copies_of_a_sample_in_a_step_are_answered_otherwise_and_the_first_as_if_alone(
    generators: LastInFirstOut,
) -> None:
    rollout = build(generators, samples(2), prompts_per_step=5).next_batch(1)
    groups = [
        (group.sample.sample_id, *(tuple(branch.token_ids) for branch in group.branches)) for group in rollout.groups
    ]
    assert len(groups) == len(set(groups)) == 5
    firsts = {tuple(request.prompt_ids): request.seed for _, request in reversed(generators.asked)}
    alone = {tuple(encode_prompt(TOKENIZER, sample)): branch_seed(0, 1, sample.sample_id) for sample in samples(2)}
    assert firsts == alone
    assert branch_seed(0, 1, "s0") == 142_083_589_850_183  # as before copies counted: runs repeat


def test_the_speed_of_a_rollout_is_that_of_its_answers_however_long_nobody_waited(generators: LastInFirstOut) -> None:
    rollouts = build(generators, samples(3), max_lag=1)
    begun = time.monotonic()
    rollouts.prefetch(0)
    time.sleep(0.5)  # as during an evaluation: the answers are there when the step begins, which then takes no time
    metrics = rollouts.next_batch(1).metrics
    seconds = metrics["rollout/tokens"] / metrics["rollout/tokens_per_second"]
    assert 0.005 < seconds < time.monotonic() - begun


def test_replacements_of_a_step_count_the_copies_on(generators: LastInFirstOut) -> None:
    build(generators, samples(1, signal=[False]), **{**dynamic(2), "prompts_per_step": 2}).next_batch(1)
    assert len({request.seed for _, request in generators.asked}) == len(generators.asked) == 4


# -- batches ---------------------------------------------------------------------------------------------------


def request(prompt: int = 0, branches: int = 1) -> Request:
    return Request(prompt_ids=[prompt], num_branches=branches, max_tokens=1, temperature=1.0, seed=0)


def test_requests_are_dealt_in_order_to_the_engine_with_the_fewest_branches() -> None:
    # Loads after each: (2, 0), (2, 3), (6, 3), (6, 4), (6, 5), (6, 6); the tie goes to the first engine.
    requests = [request(branches=count) for count in (2, 3, 4, 1, 1, 1, 1)]
    assert deal(requests, [0, 0]) == [[0, 2, 6], [1, 3, 4, 5]]
    # Six branches before: (6, 2), (6, 5), (6, 9), (7, 9), (8, 9), (9, 9), (10, 9).
    assert deal(requests, [6, 0]) == [[3, 4, 5, 6], [0, 1, 2]]


class Collector:
    """A request that ends when it is told to."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def get(self) -> Any:
        await self.ended.wait()
        return SimpleNamespace(finished=True, outputs=[])


class EngineDiary:
    """What a worker asks of vLLM's engine, in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.requests: dict[int, Collector] = {}
        self.engine_core = self

    async def has(self, line: str) -> None:
        async with asyncio.timeout(60):
            while line not in self.lines:
                await asyncio.sleep(0.001)

    async def pause_scheduler_async(self, mode: str, clear_cache: bool) -> None:
        self.lines.append("pause")

    async def resume_scheduler_async(self) -> None:
        self.lines.append("resume")

    async def add_request(self, name: str, prompt: Any, sampling: Any) -> Collector:
        (number,) = prompt["prompt_token_ids"]
        await asyncio.sleep(0.001)  # as long as it takes others to get in between
        self.lines.append(f"add {number}")
        self.requests[number] = Collector()
        return self.requests[number]


def worker_with(diary: EngineDiary) -> GeneratorWorker:
    worker = object.__new__(GeneratorWorker)
    worker._llm, worker._turn, worker._index, worker._requests = diary, asyncio.Lock(), 0, 0
    worker._inboxes, worker._tasks, worker._counted = {}, set(), Throughput()
    worker._engine = SimpleNamespace(run=lambda doing, work: work)  # type: ignore[assignment]
    worker._tokenizer = SimpleNamespace(batch_decode=lambda ids, **_: [])
    return worker


def test_an_engine_gets_a_whole_batch_before_it_runs_and_answers_request_by_request() -> None:
    async def story() -> list[str]:
        diary = EngineDiary()
        worker = worker_with(diary)
        await worker.submit(0, [request(1), request(2)], alone=True)
        await worker.submit(1, [request(3)], alone=True)
        await diary.has("resume")
        diary.requests[2].ended.set()
        assert await worker.poll(0) == [(1, [])]
        await asyncio.sleep(0.05)
        assert "add 3" not in diary.lines  # request 1 still runs
        diary.requests[1].ended.set()
        assert await worker.poll(0) == [(0, [])]
        await diary.has("add 3")
        diary.requests[3].ended.set()
        assert await worker.poll(1) == [(0, [])]
        assert worker._inboxes == {}
        return diary.lines

    assert asyncio.run(story()) == ["pause", "add 1", "add 2", "resume", "pause", "add 3", "resume"]


def test_what_is_asked_ahead_does_not_wait_for_a_straggler() -> None:
    async def story() -> list[str]:
        diary = EngineDiary()
        worker = worker_with(diary)
        await worker.submit(0, [request(1)], alone=False)
        await worker.submit(1, [request(2)], alone=False)
        await diary.has("add 2")
        return diary.lines

    assert asyncio.run(story()) == ["add 1", "add 2"]


@pytest.mark.parametrize(("max_lag", "alone"), [(0, True), (1, False)])
def test_a_step_has_the_engines_to_itself_unless_steps_overlap(
    generators: LastInFirstOut, max_lag: int, alone: bool
) -> None:
    build(generators, samples(7), max_lag=max_lag).next_batch(1)
    assert generators.alone is alone


# -- dynamic sampling ------------------------------------------------------------------------------------------


def dynamic(bound: int) -> dict[str, object]:
    return {
        "reward": "token_sum_where_asked",
        "dynamic_sampling": DynamicSamplingConfig(enabled=True, max_extra_prompts=bound),
    }


def test_groups_without_signal_are_replaced_by_the_next_prompts(generators: LastInFirstOut) -> None:
    # Three are wanted. Of prompts 0-2 one has signal, two are missing; of 3-4 one has; 5 completes the step.
    data = in_stream_order(8, signal=[1, 0, 0, 0, 1, 1, 1, 0])
    rollouts = build(generators, data, **dynamic(bound=10))
    rollout = rollouts.next_batch(1)
    order = [sample.sample_id for sample in PromptStream(data, 0).take(8)]
    assert ids(rollout) == [order[0], order[4], order[5]]
    assert rollout.metrics["rollout/replaced_prompts"] == 3
    assert rollout.metrics["rollout/no_signal_fraction"] == 0
    assert rollouts.state() == {"position": 6, "samples": len(data)}


def test_replacement_ends_at_its_bound(generators: LastInFirstOut) -> None:
    data = in_stream_order(8, signal=[1, 0, 0, 0, 1, 1, 1, 0])
    rollout = build(generators, data, **dynamic(bound=2)).next_batch(1)
    assert len(rollout.groups) == 2  # prompts 0 and 4; prompt 5 was not asked any more
    assert rollout.metrics["rollout/replaced_prompts"] == 2
    assert len(generators.asked) == 3 + 2


def test_a_step_without_any_signal_yields_no_groups_and_the_next_goes_on(generators: LastInFirstOut) -> None:
    data = in_stream_order(8, signal=[0, 0, 0, 0, 0, 1, 1, 1])
    rollouts = build(generators, data, **dynamic(bound=2))
    empty = rollouts.next_batch(1)
    assert list(empty.groups) == []
    assert (empty.metrics["rollout/groups"], empty.metrics["rollout/replaced_prompts"]) == (0, 2)
    generators.version = 1
    assert len(rollouts.next_batch(2).groups) == 3


def test_groups_without_signal_are_kept_and_counted_unless_told_otherwise(generators: LastInFirstOut) -> None:
    data = in_stream_order(4, signal=[1, 0, 1, 1])
    rollout = build(generators, data, prompts_per_step=4, reward="token_sum_where_asked").next_batch(1)
    assert len(rollout.groups) == 4
    assert rollout.metrics["rollout/no_signal_fraction"] == 0.25


# -- what does not fit or does not answer ----------------------------------------------------------------------


def with_long_prompts() -> list[Sample]:
    data = in_stream_order(6, long=[0, 1, 0, 1, 1, 0])
    return [
        Sample(sample_id=sample.sample_id, prompt="word " * 200 if sample.fields["long"] else sample.prompt)
        for sample in data
    ]


def test_long_prompts_are_dropped_and_counted(generators: LastInFirstOut) -> None:
    data = with_long_prompts()
    rollout = build(generators, data, max_prompt_tokens=50).next_batch(1)
    order = [sample.sample_id for sample in PromptStream(data, 0).take(6)]
    assert ids(rollout) == [order[0], order[2], order[5]]
    assert rollout.metrics["rollout/dropped_prompts"] == 3


def test_long_prompts_are_refused_where_the_recipe_says_so(generators: LastInFirstOut) -> None:
    rollouts = build(generators, with_long_prompts(), max_prompt_tokens=50, long_prompts="refuse")
    with pytest.raises(DataError, match=r"more than rollout\.max_prompt_tokens \(50\); raise the limit, or set"):
        rollouts.next_batch(1)


def test_a_data_set_of_long_prompts_alone_ends_the_run(generators: LastInFirstOut) -> None:
    rollouts = build(generators, samples(3), max_prompt_tokens=1)
    with pytest.raises(DataError, match="all 3 prompts are longer"):
        rollouts.next_batch(1)


@pytest.mark.parametrize(("requires_group", "sizes"), [(True, [3, 4]), (False, [3, 1, 4])])
def test_branches_without_a_score_are_dropped_and_groups_that_stay_alone_too(
    generators: LastInFirstOut, requires_group: bool, sizes: list[int]
) -> None:
    data = in_stream_order(3, missing=[(1,), (0, 1, 2), ()])
    rollouts = build(generators, data, reward="missing_where_asked", requires_group=requires_group)
    rollout = rollouts.next_batch(1)
    assert [len(group.branches) for group in rollout.groups] == sizes
    assert [score.value for score in rollout.groups[0].scores] == [0, 2, 3]
    assert rollout.metrics["reward/missing_fraction"] == pytest.approx(4 / 12)


def test_too_many_missing_scores_stop_the_run(generators: LastInFirstOut) -> None:
    data = in_stream_order(3, missing=[(0, 1, 2), (0, 1), (0, 1)])  # 7 of 12
    with pytest.raises(RewardError, match="58% of the judgements of step 1 are missing"):
        build(generators, data, reward="missing_where_asked").next_batch(1)


def test_a_judge_that_is_down_is_not_taken_for_groups_without_signal(generators: LastInFirstOut) -> None:
    data = in_stream_order(8, missing=[tuple(range(GROUP_SIZE))] * 8)
    sampling = DynamicSamplingConfig(enabled=True, max_extra_prompts=4)
    with pytest.raises(RewardError, match="100% of the judgements of step 1 are missing"):
        build(generators, data, reward="missing_where_asked", dynamic_sampling=sampling).next_batch(1)


@pytest.mark.parametrize("reward", ["not_a_number", "raises"])
def test_a_reward_that_fails_is_one_sentence_that_names_it(generators: LastInFirstOut, reward: str) -> None:
    with pytest.raises(RewardError) as failed:
        build(generators, samples(3), reward=reward).next_batch(1)
    assert reward in str(failed.value)
    assert "\n" not in str(failed.value)


def test_an_engine_that_fails_or_stays_silent_ends_the_step(generators: LastInFirstOut) -> None:
    generators.silent = True
    with pytest.raises(
        WorkerError,
        match=r"rank \[0\] did not finish 3 of the step's groups \(rollout\.timeout_s\) within 0\.1 s; .* engine: \[7\]",
    ):
        build(generators, samples(3), timeout_s=0.1).next_batch(1)
    generators.silent, generators.broken = False, WorkerError("generator rank 1 died")
    with pytest.raises(WorkerError, match="generator rank 1 died"):
        build(generators, samples(3)).next_batch(1)


# -- running ahead, and going on -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_lag", "versions", "lags"),
    [
        # Strictly on-policy: step s is asked when version s - 1 is there.
        (0, [0, 1, 2, 3, 4], [0, 0, 0, 0, 0]),
        (1, [0, 0, 1, 2, 3], [0, 1, 1, 1, 1]),
        # Steps 1-3 at once; step 4 may see version 1 and not an older one, step 5 version 2.
        (2, [0, 0, 0, 1, 2], [0, 1, 2, 2, 2]),
    ],
)
def test_a_step_is_asked_as_early_as_its_lag_allows_and_no_earlier(
    generators: LastInFirstOut, max_lag: int, versions: list[int], lags: list[int]
) -> None:
    rollouts = build(generators, samples(7), prompts_per_step=2, max_lag=max_lag, last_step=5)
    measured = []
    for step in range(1, 6):
        rollout = rollouts.next_batch(step)
        measured.append(rollout.metrics["rollout/lag_max"])
        assert rollout.metrics["rollout/lag"] == measured[-1]
        generators.version = step
        rollouts.prefetch(step)
    assert [version for version, _ in generators.asked] == [version for version in versions for _ in range(2)]
    assert measured == lags


def test_prompts_are_the_same_whatever_the_lag(generators: LastInFirstOut) -> None:
    data = samples(7)

    def prompts(max_lag: int) -> list[list[str]]:
        rollouts = build(generators, data, max_lag=max_lag, last_step=5)
        generators.version = 4  # fresh weights for all: this test is not about their age
        return [ids(rollouts.next_batch(step)) for step in range(1, 6)]

    assert prompts(0) == prompts(2)


def test_a_token_older_than_the_bound_stops_the_run(generators: LastInFirstOut) -> None:
    rollouts = build(generators, samples(7))
    rollouts.next_batch(1)
    # Version 1 was said to be published, but the engine still samples with version 0.
    with pytest.raises(WorkerError, match=r"a token of step 2 was sampled 1 versions ago, rollout\.max_lag is 0"):
        rollouts.next_batch(2)


@pytest.mark.parametrize("max_lag", [0, 2])
def test_a_resumed_run_draws_the_prompts_that_were_in_flight_again(generators: LastInFirstOut, max_lag: int) -> None:
    data, steps = samples(8), range(1, 6)

    def run(rollouts: Rollouts, chosen: Sequence[int]) -> list[tuple[list[str], list[list[int]]]]:
        seen = []
        for step in chosen:
            generators.version = step - 1
            rollouts.prefetch(step - 1)
            rollout = rollouts.next_batch(step)
            answers = [list(branch.token_ids) for group in rollout.groups for branch in group.branches]
            seen.append((ids(rollout), answers))
        return seen

    whole = run(build(generators, data, max_lag=max_lag, last_step=5), steps)
    first = build(generators, data, max_lag=max_lag, last_step=5)
    assert run(first, steps[:2]) == whole[:2]
    first.prefetch(2)  # as the job does before it saves
    position = first.state()["position"]
    assert position == 2 * 3  # two steps of three prompts are trained on; what is in flight is not
    second = build(generators, data, max_lag=max_lag, last_step=5, position=position)
    assert run(second, steps[2:]) == whole[2:]


def test_a_run_that_replaced_prompts_resumes_behind_them(generators: LastInFirstOut) -> None:
    data = in_stream_order(8, signal=[1, 0, 0, 0, 1, 1, 1, 1])
    rollouts = build(generators, data, **dynamic(bound=10))
    rollouts.next_batch(1)
    position = rollouts.state()["position"]
    generators.version = 1
    expected = ids(rollouts.next_batch(2))
    resumed = build(generators, data, position=position, **dynamic(bound=10))
    assert ids(resumed.next_batch(2)) == expected
