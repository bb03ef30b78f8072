"""An endpoint whose engine is killed, or stopped, refuses at once, is truthful about it, and comes back by itself."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from transformers import AutoConfig

from tests.actors.small import write_model
from tests.actors.test_values import write_scalar_model
from tests.serving.ports import free_port
from tests.serving.served_run import PROMPT, Run
from tests.serving.test_endpoint import KEY, engine_process
from tests.serving.waiting import wait_until
from troupe.actors.placement import Cluster
from troupe.config.loader import load_config
from troupe.config.serve import ServeConfig
from troupe.serving.endpoint import Endpoint
from troupe.serving.ingress import hash_key
from troupe.serving.served_models import served_models

HEADERS = {"Authorization": f"Bearer {KEY}"}
REPLY_S = 4.0
"""The engine's deadline for a sign of life."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("served") / "tiny")
    run.save(1)
    return run


@pytest.fixture(scope="module")
def endpoint(cluster: Cluster, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    judge = Path(write_model(tmp_path_factory.mktemp("judge"), tied=True))
    (judge / "model.safetensors").unlink()
    write_scalar_model(AutoConfig.from_pretrained(judge), judge, score_mean=0.75)
    config = load_config(
        ServeConfig,
        [
            f"follow={run.directory}",
            f"port={free_port()}",
            "precision=fp32",
            f"reply_timeout_s={REPLY_S}",
            "engine.cpu_cache_gib=0.25",
            "following.every_s=0.3",
            f"scorers=[{{type: reward_model, path: {judge}, precision: fp32}}]",
        ],
    )
    endpoint = Endpoint(config, served_models(config), hash_key(KEY))
    yield endpoint
    endpoint.close()


@pytest.mark.parametrize("fault", [signal.SIGSTOP, signal.SIGKILL])
def test_requests_are_refused_until_the_newest_whole_checkpoint_comes_back(
    endpoint: Endpoint, run: Run, tmp_path: Path, fault: signal.Signals
) -> None:
    url = f"http://127.0.0.1:{endpoint.port}"
    newest = 2 if fault == signal.SIGSTOP else 5
    run.save(newest)
    wait_until(lambda: f"{run.directory}: step {newest} is served" in list(endpoint.news()), 90)
    damaged = Run(tmp_path / "other").save(newest + 1)
    (damaged / "model.safetensors").write_bytes(b"0" * (damaged / "model.safetensors").stat().st_size)
    shutil.move(damaged, run.store.path(0).parent)
    run.store.remove(1 if newest == 2 else 2)  # what the endpoint began with is not kept any more
    os.kill(engine_process().pid, fault)

    told: list[str] = []
    waited: list[float] = []
    health: list[int] = []
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 2}
    judged = {"model": "reward_model", "input": [{"prompt": "3 + 4?", "response": "7"}]}
    started = time.monotonic()
    while True:
        reply = httpx.post(f"{url}/v1/completions", json=body, headers=HEADERS, timeout=120)
        if reply.status_code == 200 and waited:
            break
        if reply.status_code != 200:  # the first may come before the engine's death is known
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "unavailable")
            assert int(reply.headers["retry-after"]) > 0
            waited.append(reply.elapsed.total_seconds())
            health.append(httpx.get(f"{url}/health", timeout=60).status_code)
        assert httpx.post(f"{url}/v1/score", json=judged, headers=HEADERS, timeout=60).status_code == 200
        told += endpoint.news()
        assert time.monotonic() - started < 240
        time.sleep(0.5)
    assert reply.json()["system_fingerprint"] == f"tiny@{newest}"
    # A stopped engine is known after its deadline; on a busy machine a bit later. Others wait for no replica's start.
    assert max(waited) < 10 + (REPLY_S if fault == signal.SIGSTOP else 0)
    assert 503 in health
    assert httpx.get(f"{url}/health", timeout=60).status_code == 200
    told += endpoint.news()
    away, back = told.index("tiny: no replica runs; Serve starts another"), told.index("tiny: a replica runs again")
    assert away < back < told.index(f"{run.directory}: step {newest} is served")
    assert any(f"step {newest + 1} refused, {newest} stays" in line for line in told)
