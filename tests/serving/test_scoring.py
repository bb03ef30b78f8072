"""Scores over HTTP: those of training, for single answers and pairs, for the reward that asks a judge, and for
nobody's nonsense.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.serving.tiny_api import TinyApi
from troupe.actors.frozen import FrozenModel, FrozenWorker
from troupe.actors.workers import InlineWorkers
from troupe.algorithms.packing import Batch
from troupe.chat import encode_answer, encode_prompt
from troupe.config.rollout import RewardConfig, ServedRewardModelConfig, ServedRewardsConfig
from troupe.errors import CheckpointError
from troupe.records import Branch, Group, Sample
from troupe.rewards.build import build_rewards
from troupe.serving.conversations import Conversation
from troupe.serving.scorer import FunctionScorer, ModelScorer, one_group_per_prompt
from troupe.serving.scoring import scoring_router

PROMPT = "Tom has 3 pens and buys 5 more. How many pens now?"
ANSWERS = ["3+5=8\n#### 8", "That makes 9.", "8", "", "So the answer is 8. So the answer is 8."]
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]


@pytest.fixture(scope="module")
def judge(tiny_models: dict[str, str]) -> ModelScorer:
    return ModelScorer(ServedRewardModelConfig(path=tiny_models["judge"], name="judge", precision="fp32"))


@pytest.fixture(scope="module")
def url(judge: ModelScorer) -> Iterator[str]:
    functions = FunctionScorer(ServedRewardsConfig(rewards=[RewardConfig(fn="math_answer")]))
    with TinyApi(models={}, scorers={"judge": judge.score, "rewards": functions.score}).running() as address:
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def in_training(tiny_models: dict[str, str]) -> Iterator[Any]:
    """(prompt, answer) -> the score that a run with this reward model would see."""
    frozen = FrozenModel(InlineWorkers(FrozenWorker, [{"rank": 0, "world_size": 1}], role="reward_model"), scalar=True)
    frozen.start(tiny_models["judge"], precision="fp32", row_tokens=256, offload=False)
    frozen.ready(60)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_models["judge"])

    def score(prompt: Any, answer: str) -> float:
        sample = Sample(sample_id="x", prompt=prompt)
        branch = Branch(token_ids=encode_answer(tokenizer, answer))
        group = Group(sample=sample, prompt_ids=encode_prompt(tokenizer, sample), branches=[branch])
        return float(frozen.scores(Batch.from_groups([group]))[0])

    yield score
    frozen.shutdown()


def ask(url: str, body: Any) -> dict[str, Any]:
    answer = httpx.post(f"{url}/score", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def refused(url: str, body: Any) -> tuple[int, dict[str, Any]]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = httpx.post(f"{url}/score", content=content, timeout=60)
    assert answer.json().keys() == {"error"}
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    return answer.status_code, answer.json()["error"]


# -- the scores ------------------------------------------------------------------------------------------------------


def test_an_answer_has_the_score_that_it_has_in_training(url: str, in_training: Any) -> None:
    items = [{"prompt": PROMPT, "response": answer} for answer in ANSWERS]
    items += [{"prompt": CHAT, "response": answer} for answer in ANSWERS]
    answer = ask(url, {"model": "judge", "input": items})
    expected = [in_training(item["prompt"], item["response"]) for item in items]
    assert [datum["score"] for datum in answer["data"]] == pytest.approx(expected, abs=1e-5)
    assert torch.tensor(expected).std() > 0.1  # or 1e-5 would prove little
    assert answer["model"] == "judge"
    assert [datum["index"] for datum in answer["data"]] == list(range(10))


def test_prompts_and_answers_may_hold_any_character(url: str, in_training: Any) -> None:
    prompt, answer = "3+5?\b\x1b", " a\0\x08\N{GRINNING FACE} "
    (datum,) = ask(url, {"model": "judge", "input": [{"prompt": prompt, "response": answer}]})["data"]
    assert datum["score"] == pytest.approx(in_training(prompt, answer), abs=1e-5)


def test_messages_are_scored_by_their_last_turn(url: str, in_training: Any) -> None:
    messages = [*CHAT, {"role": "assistant", "content": "8", "name": "what clients may add"}]
    (datum,) = ask(url, {"model": "judge", "input": [messages]})["data"]
    assert datum["score"] == pytest.approx(in_training(CHAT, "8"), abs=1e-5)


def test_a_pair_has_a_margin_and_bradley_terrys_probability(url: str, in_training: Any) -> None:
    pair = {"prompt": PROMPT, "chosen": ANSWERS[0], "rejected": ANSWERS[1]}
    (datum,) = ask(url, {"model": "judge", "pairs": [pair]})["data"]
    margin = in_training(PROMPT, ANSWERS[0]) - in_training(PROMPT, ANSWERS[1])
    assert datum["margin"] == pytest.approx(margin, abs=2e-5) == datum["chosen"] - datum["rejected"]
    assert datum["probability"] == pytest.approx(1 / (1 + math.exp(-margin)), abs=1e-5)


def test_requests_that_are_read_together_have_the_scores_that_they_have_alone(judge: ModelScorer) -> None:
    requests = [
        judge._encode(
            [
                Conversation(prompt=f"{PROMPT}{' Really?' * (number % 3)}", response=answer)
                for answer in ANSWERS[number:]
            ]
        )
        for number in range(4)
    ]
    together = asyncio.run(judge._read_together(requests))
    alone = [[judge._read([group])[0] for group in groups] for groups in requests]
    assert [len(scores) for scores in together] == [5, 4, 3, 2]
    for one, other in zip(together, alone, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_branches_of_one_prompt_are_one_group_and_come_back_in_order() -> None:
    def group(prompt: int, answer: int) -> Group:
        return Group(
            sample=Sample(sample_id="x", prompt="x"), prompt_ids=[prompt], branches=[Branch(token_ids=[answer])]
        )

    asked = [group(1, 10), group(2, 20), group(1, 11), group(3, 30), group(2, 21)]
    merged, places = one_group_per_prompt(asked)
    flat = [branch.token_ids[0] for group in merged for branch in group.branches]
    assert [len(group.branches) for group in merged] == [2, 2, 1]
    assert [flat[place] for place in places] == [10, 20, 11, 30, 21]


def test_reward_functions_are_served_as_a_recipe_names_them(url: str) -> None:
    items = [{"prompt": PROMPT, "response": answer, "gold": "8"} for answer in ("#### 8", "#### 9")]
    answer = ask(url, {"model": "rewards", "input": items})
    assert [datum["score"] for datum in answer["data"]] == [1.0, 0.0]


# -- as a judge
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [PROMPT, CHAT])
def test_a_recipe_can_name_it_as_the_judge_of_remote_reward(url: str, in_training: Any, prompt: Any) -> None:
    endpoint = {"base_url": url, "model": "judge", "api_key_env": None, "cache": None, "patience_s": 0}
    rewards = build_rewards([RewardConfig(fn="remote_reward", args=endpoint)])
    branches = [Branch(token_ids=[1], text=answer) for answer in ANSWERS if answer]
    group = Group(sample=Sample(sample_id="x", prompt=prompt), prompt_ids=[1], branches=branches)
    scores = asyncio.run(rewards.score(group))
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt  # as the client sends it
    expected = [in_training(turns, answer) for answer in ANSWERS if answer]
    assert [score.value for score in scores] == pytest.approx(expected, abs=1e-5)


def test_a_model_of_plain_text_prompts_reads_a_single_turn_as_text(
    tiny_models: dict[str, str], in_training: Any
) -> None:
    plain = ModelScorer(ServedRewardModelConfig(path=tiny_models["judge"], precision="fp32", single_turn="text"))
    told = Conversation.model_validate({"prompt": [{"role": "user", "content": PROMPT}], "response": "8"})
    (group,) = plain._encode([told])
    assert plain._read([group]) == pytest.approx([in_training(PROMPT, "8")], abs=1e-5)


def test_openais_client_reads_the_judge_streamed_or_not(url: str) -> None:
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    asked: Any = {"model": "judge", "messages": [*CHAT, {"role": "assistant", "content": "8"}], "temperature": 0}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    pieces = [event.choices[0].delta.content or "" for event in client.chat.completions.create(**asked, stream=True)]
    assert whole == "".join(pieces)
    assert whole is not None
    assert whole.startswith("reward:")
    with pytest.raises(openai.BadRequestError, match="end with the assistant's answer"):
        client.chat.completions.create(model="judge", messages=CHAT)  # type: ignore[arg-type]


def test_an_answer_that_is_too_long_is_missing_and_does_not_stop_a_run(url: str) -> None:
    endpoint = {"base_url": url, "model": "judge", "api_key_env": None, "cache": None, "patience_s": 0}
    rewards = build_rewards([RewardConfig(fn="remote_reward", args=endpoint)])
    branches = [Branch(token_ids=[1], text="8 " * 400), Branch(token_ids=[1], text="8")]
    group = Group(sample=Sample(sample_id="x", prompt=PROMPT), prompt_ids=[1], branches=branches)
    long, short = asyncio.run(rewards.score(group))
    assert long.value is None
    assert short.value is not None


# -- what cannot be answered
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b'{"model": ', 400, "the body is not JSON"),
        (b"[" * 100_000, 400, "the body is not JSON"),
        (b"\xff", 400, "the body is not JSON"),
        ([], 400, "valid dictionary"),
        ({"model": "judge"}, 400, "either input or pairs"),
        ({"model": "judge", "input": [], "pairs": []}, 400, "input: List should have at least 1 item"),
        ({"model": "judge", "input": [{"prompt": "x", "answer": "y"}]}, 400, "input.0.response: Field required"),
        ({"model": "judge", "input": [{"prompt": 3, "response": "y"}]}, 400, "input.0.prompt: Input should be a valid"),
        ({"model": "judge", "input": [[{"role": "usr", "content": "x"}]]}, 400, "input.0.0.role: Input should be"),
        ({"model": "judge", "input": [[{"role": "user", "content": "x"}]]}, 400, "end with the assistant's answer"),
        ({"model": "judge", "input": [{"prompt": "", "response": "y"}]}, 400, "input.0.prompt: String should have"),
        ({"model": "judge", "pairs": [{"prompt": "x", "chosen": "y"}]}, 400, "pairs.0.rejected: Field required"),
        ({"model": "jugde", "input": [{"prompt": "x", "response": "y"}]}, 404, "there are: judge, rewards"),
        ({"input": [{"prompt": "x", "response": "y"}]}, 404, "there are: judge, rewards"),
        ({"model": "judge", "input": [{"prompt": "x", "response": "8 " * 400}]}, 400, "maximum context length of " "judge " "is 128"),
        ({"model": "judge", "input": [{"prompt": "x", "response": "8" * 2**24}]}, 400, "larger than"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_in_one_sentence(url: str, body: Any, status: int, said: str) -> None:
    got, error = refused(url, body)
    assert (got, said in error["message"]) == (status, True), error
    assert error["type"] == "invalid_request_error"
    if "maximum context" in said:
        assert error["code"] == "context_length_exceeded"


def test_a_reward_function_that_fails_is_the_servers_fault_and_told(url: str) -> None:
    status, error = refused(url, {"model": "rewards", "input": [{"prompt": "x", "response": "y"}]})  # no gold
    assert status == 500
    assert "gold" in error["message"]


def test_a_model_without_a_trained_head_is_not_served(tiny_models: dict[str, str]) -> None:
    with pytest.raises(CheckpointError, match="has no trained scalar"):
        ModelScorer(ServedRewardModelConfig(path=tiny_models["base"]))


def test_a_pair_that_could_not_be_judged_has_no_probability() -> None:
    async def undecided(conversations: Any) -> list[float | None]:
        return [1.0, None]

    app = FastAPI()
    app.include_router(scoring_router({"x": undecided}))
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    (datum,) = TestClient(app).post("/v1/score", json={"pairs": [pair]}).json()["data"]
    assert (datum["chosen"], datum["rejected"], datum["margin"], datum["probability"]) == (1.0, None, None, None)
