"""A run served out of an object store, by two replicas, and a third that load calls for."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from ray import serve

from tests.s3 import CREDENTIALS, client
from tests.serving.ports import free_port
from tests.serving.served_run import LENGTH, PROMPT, Run
from tests.serving.waiting import wait_until
from troupe.actors.placement import Cluster
from troupe.config.loader import load_config
from troupe.config.serve import ServeConfig
from troupe.runs.bucket import Bucket
from troupe.runs.stored_run import StoredRun, run_files
from troupe.serving.app import NAME
from troupe.serving.endpoint import Endpoint
from troupe.serving.ingress import hash_key
from troupe.serving.served_models import Served, on_this_machine, served_models

KEY = "a-token-of-sixteen"


@pytest.fixture(scope="module")
def models(s3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServeConfig, list[Served]]]:
    """Two steps of a run lie in the store alone; the first is asked for."""
    directory = tmp_path_factory.mktemp("stored")
    run = Run(directory / "tiny")
    steps = {step: run.save(step) for step in (1, 2)}
    client(s3).create_bucket(Bucket="replicas")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", s3)
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        StoredRun(Bucket("s3://replicas/runs/tiny")).push(steps, run_files(run.directory))
        shutil.rmtree(run.directory)
        patch.chdir(directory)  # where what is fetched is kept
        config = load_config(
            ServeConfig,
            [
                "models=[{path: s3://replicas/runs/tiny@1}]",
                f"port={free_port()}",
                "precision=fp32",
                "engine.cpu_cache_gib=0.25",
                "engine.max_running=1",
                "min_replicas=2",
                "max_replicas=3",
                "target_requests=1",
                "scale_up_after_s=0",
                "scale_down_after_s=0",
            ],
        )
        yield config, served_models(config)


@pytest.fixture(scope="module")
def openai_client(cluster: Cluster, models: tuple[ServeConfig, list[Served]]) -> Iterator[openai.OpenAI]:
    config, served = models
    endpoint = Endpoint(config, served, hash_key(KEY))
    yield openai.OpenAI(base_url=f"http://127.0.0.1:{config.port}/v1", api_key=KEY, max_retries=0, timeout=120)
    endpoint.close()


def test_a_machine_that_has_not_fetched_the_model_does(models: tuple[ServeConfig, list[Served]]) -> None:
    (served,) = models[1]
    assert (served.name, served.step) == ("tiny@1", 1)
    whole = sorted(path.name for path in Path(served.path).iterdir())
    assert on_this_machine(served) is served
    shutil.rmtree(".cache")
    again = on_this_machine(served)
    assert sorted(path.name for path in Path(again.path).iterdir()) == whole
    assert again == served


def stream(client: openai.OpenAI) -> Any:
    """The longest answer, of which nobody reads more than a part."""
    asked: Any = {"model": "tiny@1", "prompt": PROMPT, "max_tokens": LENGTH - 20, "stream": True}
    return client.completions.create(**asked, extra_body={"ignore_eos": True})


def test_replicas_answer_at_the_same_time(openai_client: openai.OpenAI) -> None:
    assert openai_client.completions.create(model="tiny@1", prompt=PROMPT, max_tokens=2).system_fingerprint == "tiny@1"
    # An engine answers one request at a time here, so two answers at once are of two engines.
    with stream(openai_client) as one, stream(openai_client) as other:
        for answer in (one, other, one, other):
            assert next(iter(answer)).choices


def test_load_calls_for_a_third_replica_which_ends_with_it(openai_client: openai.OpenAI) -> None:
    def keep_asking() -> None:
        while not enough.is_set():
            with stream(openai_client) as parts:
                for _ in parts:
                    if enough.is_set():
                        break

    assert replicas() == {"RUNNING": 2}
    enough = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        clients = [pool.submit(keep_asking) for _ in range(3)]
        try:
            # Its engine would start for a minute beside two that work on the same cores; that it is called is enough.
            wait_until(lambda: sum(replicas().values()) == 3, seconds=60)
        finally:
            enough.set()
        for one in clients:
            one.result()
    wait_until(lambda: replicas() == {"RUNNING": 2}, seconds=120)


def replicas() -> dict[str, int]:
    """State -> how many of the model's replicas are in it."""
    return {
        str(state): count
        for state, count in serve.status().applications[NAME].deployments["model-0"].replica_states.items()
    }
