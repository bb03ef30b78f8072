"""calls.jsonl has every call of a run, of the policy and of judges, and no secret."""

from __future__ import annotations

import concurrent.futures
import pickle
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.rewards.chat_server import Answer, ChatServer
from troupe.actors.generator import Request
from troupe.actors.rewarder import Rewarder
from troupe.config.grpo import GRPOConfig
from troupe.config.rollout import RewardConfig, RolloutConfig
from troupe.config.run import CallLogConfig
from troupe.data import PromptStream
from troupe.errors import RewardError
from troupe.files import read_lines
from troupe.records import Branch, Group, JudgeCall, Sample, Score, WeightSpan
from troupe.report.observers import open_run
from troupe.runs.call_log import CallLog
from troupe.runs.run import Run
from troupe.training.rollouts import Rollouts, chain
from troupe.training.scratch import train_tokenizer

KEY = "sk-planted-0123456789abcdef"
MESSAGES = [{"role": "user", "content": "2+2?"}]
SAMPLE = Sample(sample_id="toy/1", prompt=MESSAGES, gold="4")
NOON = 1_800_000_000.25
"""Seconds since 1970."""


def group(sample_id: str = "toy/1", said: str = "1") -> Group:
    """Two answers with weights of version 6; a judge was asked about the second, twice."""
    call = JudgeCall(
        host="judge.example:8000",
        model="m",
        messages=MESSAGES,
        status=200,
        requested_at=NOON + 3,
        latency_s=0.5,
        text=said,
        finish_reason="stop",
        prompt_tokens=11,
        completion_tokens=1,
    )
    busy = JudgeCall(
        host="judge.example:8000", model="m", messages=MESSAGES, status=429, requested_at=NOON, latency_s=0.1
    )
    spans = (WeightSpan(version=6, start=0, end=2),)
    branches = [
        Branch(token_ids=[1, 2], text="4", weight_versions=spans),
        Branch(token_ids=[3], text="5", finish_reason="length", weight_versions=spans),
    ]
    sample = Sample(sample_id=sample_id, prompt=MESSAGES, gold="4")
    scores = [Score(value=1.0, parts={"right": 1.0}), Score(value=0.0, parts={"right": 0.0}, calls=[busy, call])]
    return Group(sample=sample, prompt_ids=[7, 8, 9], branches=branches, scores=scores)


def logged(directory: Path, *groups: Group, step: int = 7, **settings: float) -> list[dict[str, Any]]:
    watch = CallLog(directory, CallLogConfig(**settings), model="some/model").at(step, "rollout")
    for each in groups:
        if watch is not None:
            watch(each, NOON, NOON + 2.5)
    return read_lines(directory / "calls.jsonl")


def test_a_call_of_the_policy_is_a_line_with_all_that_was_asked_and_answered(tmp_path: Path) -> None:
    assert logged(tmp_path, group())[0] == {
        "step": 7,
        "purpose": "rollout",
        "sample_id": "toy/1",
        "kind": "policy",
        "requested_at": 1_800_000_000_250,
        "received_at": 1_800_000_002_750,
        "latency_s": 2.5,
        "model": "some/model",
        "weight_versions": [6],
        "messages": MESSAGES,
        "prompt_tokens": 3,
        "answers": [
            {"text": "4", "finish_reason": "stop", "tokens": 2, "reward": 1.0, "parts": {"right": 1.0}},
            {"text": "5", "finish_reason": "length", "tokens": 1, "reward": 0.0, "parts": {"right": 0.0}},
        ],
    }


def test_the_calls_of_judges_follow_with_the_answer_they_were_made_for_and_failures_among_them(tmp_path: Path) -> None:
    _, busy, answered = logged(tmp_path, group())
    assert answered == {
        "step": 7,
        "purpose": "rollout",
        "sample_id": "toy/1",
        "kind": "judge",
        "branch": 1,
        "requested_at": 1_800_000_003_250,
        "received_at": 1_800_000_003_750,
        "latency_s": 0.5,
        "endpoint": "judge.example:8000",
        "model": "m",
        "status": 200,
        "messages": MESSAGES,
        "answer": "1",
        "finish_reason": "stop",
        "prompt_tokens": 11,
        "completion_tokens": 1,
    }
    assert (busy["status"], busy["answer"], busy["branch"]) == (429, None, 1)


def test_a_fraction_draws_prompts_with_their_judge_calls_and_the_same_ones_again(tmp_path: Path) -> None:
    groups = [group(f"toy/{number}") for number in range(200)]
    first, second = (
        logged(tmp_path / name, *groups, fraction=0.3) for name in ("a", "b") if (tmp_path / name).mkdir() is None
    )
    drawn = [line["sample_id"] for line in first if line["kind"] == "policy"]
    assert 40 <= len(drawn) <= 80
    assert [line["sample_id"] for line in first if line["kind"] == "judge"] == [
        name for name in drawn for _ in range(2)
    ]
    assert first == second


def test_nothing_is_written_where_nothing_is_wanted(tmp_path: Path) -> None:
    assert logged(tmp_path, group(), fraction=0) == []
    assert list(tmp_path.iterdir()) == []


def test_a_share_is_shown_on_the_console(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logged(tmp_path, group(), fraction=0, console_fraction=1)
    shown = capsys.readouterr().out
    assert "step 7 rollout toy/1: 2.5 s, 2 answers, 2 judge calls; reward of the first 1" in " ".join(shown.split())
    logged(tmp_path, group(), console_fraction=0)
    assert capsys.readouterr().out == ""


def test_a_secret_of_the_environment_is_named_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", KEY)
    logged(tmp_path, group(said=f"your key is {KEY}"))
    text = (tmp_path / "calls.jsonl").read_text()
    assert KEY not in text
    assert "your key is $SOME_API_KEY" in text


def test_a_log_that_cannot_be_written_is_told_once_and_costs_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "calls.jsonl").mkdir()
    log = CallLog(tmp_path, CallLogConfig(), model="m")
    for step in (1, 2):
        watch = log.at(step, "rollout")
        assert watch is not None
        watch(group(), NOON, NOON)
    assert caplog.text.count("cannot be written") == 1


# -- in a run
# ------------------------------------------------------------------------------------------------------------


def calls_of(config: GRPOConfig) -> list[int]:
    return [line["step"] for line in read_lines(config.run.path / "calls.jsonl") if line["kind"] == "policy"]


def play(run: Run, *steps: int) -> None:
    for step in steps:
        watch = run.watch_calls(step, "rollout")
        assert watch is not None
        watch(group(), NOON, NOON)
        run.end_step(step)


def test_a_resumed_run_keeps_the_calls_up_to_its_checkpoint_and_writes_the_others_anew(recipe) -> None:
    config = recipe()
    with open_run(config) as run:
        play(run, 0, 1, 2, 3)
    with open_run(config) as run:
        run.resume_from(1)
        assert calls_of(config) == [0, 1]
        play(run, 2)
    assert calls_of(config) == [0, 1, 2]


def test_a_run_that_begins_again_forgets_the_calls_of_the_attempt_before(recipe) -> None:
    config = recipe()
    for _ in range(2):
        with open_run(config) as run:  # without a checkpoint both begin at step 0
            play(run, 0, 1)
    assert calls_of(config) == [0, 1]


def rewarder_of(server: ChatServer) -> Rewarder:
    args = {"base_url": server.url, "model": "m", "cache": None, "backoff_s": 0.01, "patience_s": 0.05}
    return Rewarder([RewardConfig(fn="remote_reward", name="judge", args=args)])


def test_what_the_rollouts_and_a_real_judge_did_is_in_the_file_and_no_key(
    recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    config = recipe()
    with ExitStack() as stack:
        server = stack.enter_context(ChatServer(lambda body, number: f"{KEY}? reward:2", key=KEY).running())
        run = stack.enter_context(open_run(config))
        rewarder = rewarder_of(server)
        stack.callback(rewarder.shutdown)
        answered: Future[Group] = Future()
        answer = chain(answered, rewarder, run.watch_calls(1, "rollout"))
        branches = [Branch(token_ids=[5], text=f"my key is {KEY}"), Branch(token_ids=[6], text="B")]
        answered.set_result(Group(sample=SAMPLE, prompt_ids=[1, 2], branches=branches))
        scored = answer.result(30)
    policy, *judged = read_lines(config.run.path / "calls.jsonl")
    assert [found["reward"] for found in policy["answers"]] == [2.0, 2.0]
    assert policy["received_at"] >= policy["requested_at"]
    assert policy["model"] == "scratch"
    assert [(call["branch"], call["status"]) for call in judged] == [(0, 200), (1, 200)]
    assert [call["messages"][-1]["role"] for call in judged] == ["assistant", "assistant"]
    assert all(f"http://{call['endpoint']}/v1" == server.url for call in judged)
    for file in config.run.path.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file
    # A reward worker hands its groups over by pickling; the calls travel with the scores.
    assert [len(score.calls) for score in pickle.loads(pickle.dumps(scored)).scores] == [1, 1]


class Ready:
    """Generators whose answers are there at once."""

    in_flight = 0

    def require_alive(self) -> None:
        """Its engines do not die."""

    def submit(self, requests: Sequence[Request], *, alone: bool) -> list[Future[list[Branch]]]:
        answers: list[Future[list[Branch]]] = [Future() for _ in requests]
        for answer, request in zip(answers, requests, strict=True):
            answer.set_result([Branch(token_ids=[1], text=f"{i}") for i in range(request.num_branches)])
        return answers


def test_a_step_without_judgements_stops_the_run_with_what_the_judge_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with ChatServer(lambda body, number: Answer(status=503)).running() as server:
        rewarder = rewarder_of(server)
        rollouts = Rollouts(
            PromptStream([SAMPLE], 0),
            train_tokenizer(["2+2?"], 300, 64),
            Ready(),  # type: ignore[arg-type]
            rewarder,
            RolloutConfig(prompts_per_step=1, group_size=2),
            seed=0,
            last_step=1,
            requires_group=True,
        )
        with pytest.raises(
            RewardError, match=r"100% of .* missing .*; mostly the judge at 127\.0\.0\.1:\d+ answered 503; look"
        ):
            rollouts.next_batch(1)
        rewarder.shutdown()


def test_a_log_that_has_a_bug_leaves_nobody_waiting() -> None:
    def broken(group: Group, requested_at: float, received_at: float) -> None:
        raise ZeroDivisionError

    rewarder = Rewarder([])
    answered: Future[Group] = Future()
    answer = chain(answered, rewarder, broken)
    answered.set_result(Group(sample=SAMPLE, prompt_ids=[1], branches=[Branch(token_ids=[1])]))
    done, _ = concurrent.futures.wait([answer], timeout=10)
    rewarder.shutdown()
    assert done
