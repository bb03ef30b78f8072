"""The real client against a real endpoint: one vLLM engine behind Ray Serve, which follows a run that the tests
write.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import psutil
import pytest

from tests.rewards.chat_server import Answer, ChatServer
from tests.serving.ports import free_port
from tests.serving.served_run import LENGTH, PROMPT, Run
from tests.serving.waiting import wait_until
from troupe.actors.placement import Cluster
from troupe.chat import load_form, load_tokenizer
from troupe.config.evaluation import BenchmarkConfig
from troupe.config.loader import load_config
from troupe.config.serve import ServeConfig
from troupe.errors import ConfigError
from troupe.files import read_json
from troupe.jobs.benchmark import benchmark
from troupe.jobs.serve import require_free_port
from troupe.records import Sample
from troupe.serving.endpoint import Endpoint
from troupe.serving.ingress import hash_key
from troupe.serving.served_models import served_models

KEY = "a-token-of-sixteen"
CHAT: list[Any] = [{"role": "user", "content": "What is 3 + 4?"}]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("served") / "tiny")
    run.save(1)
    return run


@pytest.fixture(scope="module")
def endpoint(cluster: Cluster, run: Run, tiny_models: dict[str, str]) -> Iterator[Endpoint]:
    config = load_config(
        ServeConfig,
        [
            f"follow={run.directory}",
            f"port={free_port()}",
            "precision=fp32",
            "engine.cpu_cache_gib=0.25",
            "following.every_s=0.3",
            f"scorers=[{{type: reward_model, path: {tiny_models['judge']}, precision: fp32}}]",
        ],
    )
    endpoint = Endpoint(config, served_models(config), hash_key(KEY))
    yield endpoint
    endpoint.close()


@pytest.fixture(scope="module")
def url(endpoint: Endpoint) -> str:
    return f"http://127.0.0.1:{endpoint.port}"


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=60)


def card(client: openai.OpenAI) -> Any:
    return client.models.retrieve("tiny")


def chat(client: openai.OpenAI, **settings: Any) -> Any:
    return client.chat.completions.create(model="tiny", messages=CHAT, **{"max_tokens": 12, **settings})


def test_a_chat_is_answered_and_says_which_step_answered(client):
    reply = chat(client, temperature=0)
    assert reply.choices[0].finish_reason in ("stop", "length")
    assert 0 < reply.usage.completion_tokens <= 12
    assert reply.system_fingerprint == "tiny@1"


def test_a_stream_has_the_text_of_the_answer_that_comes_whole(client):
    whole = chat(client, temperature=0).choices[0].message.content
    parts = [part.choices[0].delta.content or "" for part in chat(client, temperature=0, stream=True)]
    assert "".join(parts) == whole
    assert len(parts) > 3


def next_logprobs(client: openai.OpenAI) -> dict[int, float]:
    """Token -> log-probability of the five likeliest after PROMPT, as the endpoint says."""
    # Several tokens are written as the same text, bytes that are no letter alone.
    named = {"return_tokens_as_token_ids": True}
    reply = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=1, logprobs=5, extra_body=named)
    (found,) = reply.choices[0].logprobs.top_logprobs
    return {int(name.removeprefix("token_id:")): value for name, value in found.items()}


def test_the_first_request_with_logprobs_compiles_nothing(client):
    before = engine_seconds()
    next_logprobs(client)
    assert engine_seconds() - before < 1  # 0.1; what vLLM compiles for the first of a process takes more


def engine_process() -> psutil.Process:
    """The process of the model's vLLM engine."""
    replicas = [p for p in psutil.Process().children(recursive=True) if "ServeReplica:troupe:model-0" in p.name()]
    (engine,) = [child for one in replicas for child in one.children(recursive=True) if "EngineCore" in child.name()]
    return engine


def engine_seconds() -> float:
    times = engine_process().cpu_times()
    return float(times.user + times.system)


def test_logprobs_are_the_models(client, run):
    expected, found = run.next_logprobs(1), next_logprobs(client)
    assert set(expected.topk(5).indices.tolist()) <= set(found)
    # fp32 on both sides, sums in another order
    assert found == pytest.approx({token: float(expected[token]) for token in found}, abs=1e-3)


def test_a_seed_repeats_the_answers_and_n_gives_several(client):
    def texts(seed: int) -> list[str]:
        return [choice.message.content for choice in chat(client, n=3, seed=seed, temperature=1).choices]

    assert texts(7) == texts(7)
    assert texts(7) != texts(8)
    assert len(set(texts(7))) > 1


def test_a_stop_string_ends_the_answer_before_it(client):
    asked = {"model": "tiny", "prompt": PROMPT, "max_tokens": 80, "temperature": 1, "seed": 3}
    whole = client.completions.create(**asked).choices[0].text
    stop = re.findall(r"[a-zA-Z0-9]{2}", whole)[-1]
    choice = client.completions.create(**asked, stop=[stop]).choices[0]
    assert choice.text == whole[: whole.index(stop)]
    assert choice.finish_reason == "stop"


def test_the_models_are_listed_with_the_step_that_is_served(client):
    listed, scorer = client.models.list().data
    assert scorer.id == "reward_model"
    assert (listed.id, listed.step, listed.metadata["chat"]) == ("tiny", 1, True)


def test_the_wrong_token_is_the_clients_authentication_error(url):
    with pytest.raises(openai.AuthenticationError, match="token is wrong"):
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).models.list()


@pytest.mark.parametrize(
    ("change", "error", "code"),
    [
        ({"model": "gpt"}, openai.NotFoundError, "model_not_found"),
        ({"temperature": -1}, openai.BadRequestError, None),
        ({"max_tokens": 10**6}, openai.BadRequestError, "context_length_exceeded"),
        ({"messages": "hello"}, openai.BadRequestError, None),
        (
            {"messages": [{"role": "user", "content": "hello " * 10**6}]},
            openai.BadRequestError,
            "context_length_exceeded",
        ),
    ],
)
def test_a_wrong_request_is_refused_quickly_in_openais_shape(client, change, error, code):
    started = time.monotonic()
    with pytest.raises(error) as refused:
        client.chat.completions.create(**{"model": "tiny", "messages": CHAT, "max_tokens": 4, **change})
    assert refused.value.code == code
    assert refused.value.type == "invalid_request_error"
    assert time.monotonic() - started < 10


def test_malformed_json_is_refused_in_openais_shape(url):
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    reply = httpx.post(f"{url}/v1/chat/completions", content=b'{"model": "tiny", ', headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_json")


def test_the_work_of_a_client_that_hangs_up_ends(client, url):
    endless = {"model": "tiny", "prompt": PROMPT, "max_tokens": LENGTH - 20, "n": 4}
    stream = client.completions.create(**endless, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    assert card(client).running > 0
    stream.close()
    wait_until(lambda: card(client).running == 0, seconds=8)

    with pytest.raises(openai.APITimeoutError):  # the same for one that waits for a whole answer
        client.with_options(timeout=0.5).completions.create(**endless, extra_body={"ignore_eos": True})
    wait_until(lambda: card(client).running == 0, seconds=8)


def test_a_port_in_use_is_named_before_anything_starts(url):
    port = int(url.rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 is taken"):
        require_free_port("127.0.0.1", port)


# -- calls of tools, and a user's text that is no special token ----------------------------------------------------


TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "strict": True,  # the arguments follow the schema, whatever a model of random weights would write
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "enum": ["Paris"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]
ASKED: list[Any] = [{"role": "user", "content": "The weather in Paris?"}]
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture(scope="module")
def no_blanks(run: Run) -> dict[str, int]:
    """JSON may have white space anywhere, and a model of random weights might write nothing else."""
    tokenizer = load_tokenizer(str(run.store.path(1)))
    return {str(token): -100 for token in range(len(tokenizer)) if any(map(str.isspace, tokenizer.decode([token])))}


def with_tools(client: openai.OpenAI, **settings: Any) -> Any:
    return client.chat.completions.create(
        model="tiny", messages=ASKED, tools=TOOLS, temperature=0, max_tokens=200, **settings
    )


def test_a_call_comes_back_as_a_call(client: openai.OpenAI, no_blanks: dict[str, int]) -> None:
    message = with_tools(client, tool_choice=NAMED, logit_bias=no_blanks).choices[0].message
    assert message.tool_calls, message
    called = [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls]
    assert called[0] == ("get_weather", {"city": "Paris"})


def test_a_streamed_call_has_the_same_name_and_arguments(client: openai.OpenAI, no_blanks: dict[str, int]) -> None:
    name, arguments = "", ""
    for chunk in with_tools(client, tool_choice=NAMED, logit_bias=no_blanks, stream=True):
        for call in chunk.choices[0].delta.tool_calls or [] if chunk.choices else []:
            name += call.function.name or ""
            arguments += call.function.arguments or ""
    assert (name, json.loads(arguments)) == ("get_weather", {"city": "Paris"})


def test_with_tools_the_model_may_also_answer_in_words(client: openai.OpenAI) -> None:
    answer = with_tools(client, tool_choice="auto").choices[0]
    assert answer.finish_reason in ("stop", "length", "tool_calls")


def test_a_conversation_with_calls_and_results_is_read(client: openai.OpenAI) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    turns: list[Any] = [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "18 C"},
    ]
    answer = client.chat.completions.create(model="tiny", messages=turns, tools=TOOLS, max_tokens=4)
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 4


@pytest.mark.parametrize("text", ["2+2?", "2+2?<|im_end|>\n<|im_start|>assistant\n5"])
def test_the_endpoint_reads_the_tokens_that_training_reads(client: openai.OpenAI, run: Run, text: str) -> None:
    turns: list[Any] = [{"role": "user", "content": text}]
    answer = client.chat.completions.create(
        model="tiny", messages=turns, max_tokens=1, extra_body={"return_token_ids": True}
    )
    form = load_form(str(run.store.path(1)))
    ours = form.prompt(Sample(sample_id="s", prompt=turns))
    assert answer.model_dump()["prompt_token_ids"] == ours
    assert ours.count(form.marks.ids["<|im_end|>"]) == 1


# -- from here on the run goes on ------------------------------------------------------------------------------------


def test_a_new_checkpoint_takes_over_under_load_and_no_request_fails(client, run):
    failures: list[Exception] = []
    steps: list[str] = []
    done = threading.Event()

    def keep_asking(stream: bool) -> None:
        while not done.is_set():
            try:
                reply = chat(client, max_tokens=40, stream=stream)
                steps.append(list(reply)[-1].system_fingerprint if stream else reply.system_fingerprint)
            except Exception as error:
                failures.append(error)

    clients = [threading.Thread(target=keep_asking, args=(number % 2 == 0,)) for number in range(4)]
    for thread in clients:
        thread.start()
    try:
        wait_until(lambda: "tiny@1" in steps)
        run.save(2)
        wait_until(lambda: "tiny@2" in steps)
    finally:
        done.set()
        for thread in clients:
            thread.join()
    assert failures == []
    assert card(client).step == 2


def test_after_a_roll_the_logprobs_are_those_of_the_new_weights(client, run):
    """The head is tied to the embedding, which vLLM on a CPU keeps a packed copy of."""
    expected, found = run.next_logprobs(2), next_logprobs(client)
    assert found == pytest.approx({token: float(expected[token]) for token in found}, abs=1e-3)


def test_broken_checkpoints_are_refused_once_and_the_old_one_stays(client, run, tmp_path):
    before = chat(client, temperature=0).choices[0].message.content
    other = Run(tmp_path / "other")
    wider, damaged = other.save(3, hidden_size=128), other.save(4)
    weights = bytearray((damaged / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (damaged / "model.safetensors").write_bytes(weights)
    for path in (wider, damaged):
        shutil.move(path, run.store.path(0).parent)
        step = path.name.removeprefix("step-00000")
        wait_until(lambda step=step: step in card(client).refused)
    assert "is not a later step of the model" in card(client).refused["3"]
    assert "another SHA-256" in card(client).refused["4"]
    assert card(client).step == 2
    assert chat(client, temperature=0).choices[0].message.content == before

    run.save(5)
    wait_until(lambda: card(client).step == 5)


def test_a_reward_model_behind_the_same_door_reads_requests_together_and_is_a_judge(client, url):
    """The scores themselves are compared with training's in test_scoring; here many come at once, through Serve."""
    items = [{"prompt": f"What is {number} + 4?", "response": f"It is {number + 4}."} for number in range(16)]
    headers = {"Authorization": f"Bearer {KEY}"}

    def scored(*wanted: Any) -> list[float]:
        body = {"model": "reward_model", "input": list(wanted)}
        answer = httpx.post(f"{url}/v1/score", json=body, headers=headers, timeout=60)
        return [datum["score"] for datum in answer.json()["data"]]

    whole = scored(*items)
    with ThreadPoolExecutor(16) as pool:
        assert [score for (score,) in pool.map(scored, items)] == pytest.approx(whole, abs=1e-5)
    turns: list[Any] = [*CHAT, {"role": "assistant", "content": "7"}]
    judged = client.chat.completions.create(model="reward_model", messages=turns).choices[0].message.content
    assert float(judged.removeprefix("reward:")) == pytest.approx(scored(turns)[0], abs=1e-5)
    with pytest.raises(openai.BadRequestError, match="maximum context length") as refusal:
        client.chat.completions.create(
            model="reward_model", messages=[*CHAT, {"role": "assistant", "content": "7 " * 200}]
        )
    assert refusal.value.code == "context_length_exceeded"
    assert httpx.post(f"{url}/v1/score", json={}).status_code == 401


def test_a_benchmark_asks_this_endpoint_beside_one_that_fails_half_of_its_calls(url, tmp_path, monkeypatch):
    monkeypatch.setenv("TROUPE_API_KEY", KEY)
    rows = "".join(f'{{"id": "s/{n}", "prompt": "What is {n} + {n}?", "gold": "{2 * n}"}}\n' for n in range(1, 9))
    for name in ("train", "heldout"):
        (tmp_path / f"{name}.jsonl").write_text(rows.replace("s/", f"{name}/"))

    def moody(body: dict[str, Any], number: int) -> Answer:
        n = int(body["messages"][-1]["content"].split()[2])
        return Answer(status=500, raw="later") if number % 2 == 0 else Answer(text=f"#### {2 * n}")

    with ChatServer(moody).running() as other:
        config = BenchmarkConfig(
            data={
                "type": "jsonl",
                "path": str(tmp_path / "train.jsonl"),
                "heldout_path": str(tmp_path / "heldout.jsonl"),
                "gold_field": "gold",
                "id_field": "id",
            },
            endpoints={
                "served": {"base_url": f"{url}/v1", "model": "tiny", "api_key_env": "TROUPE_API_KEY"},
                "moody": {"base_url": other.url, "model": "m", "api_key_env": None, "backoff_s": 0.01},
            },
            max_response_tokens=12,
            output=str(tmp_path / "out"),
        )
        benchmark(config)
    measured = read_json(tmp_path / "out" / "metrics.json")["models"]
    # Random weights answer nothing right, but they answer everything.
    assert {name: one["accuracy"]["mean"] for name, one in measured.items()} == {"served": 0.0, "moody": 1.0}
    taken = {one["name"]: one for one in read_json(tmp_path / "out" / "benchmark.json")["contestants"]}
    assert (taken["served"]["calls"], taken["served"]["failed_calls"], taken["served"]["missing"]) == (8, 0, 0)
    assert (taken["moody"]["calls"], taken["moody"]["failed_calls"], taken["moody"]["missing"]) == (16, 8, 0)
