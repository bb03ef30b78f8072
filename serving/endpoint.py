"""The endpoint from the outside: started on a Ray cluster, watched, and ended without leaving anything behind."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.schema import LoggingConfig

from core.errors import ConfigError, WorkerError
from core.serve_recipes import ServeConfig
from core.served_models import Served
from serving.app import NAME, build_application

POLL_S = 0.5
CARD_TIMEOUT_S = 60.0
"""Seconds that a model has to describe itself; one that takes new weights does it when it is done."""


class Endpoint:
    """Ray Serve with our application. Ray itself is up already, and is somebody else's to end."""

    def __init__(self, config: ServeConfig, models: Sequence[Served], key_hash: str | None) -> None:
        """Start it, and wait until every model answers; WorkerError says what failed or took too long."""
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        if serve.status().proxies:
            raise ConfigError(
                "Ray Serve runs on this cluster already, with its own address and port; end it (serve shutdown), or unset "
                "RAY_ADDRESS to have a Ray of our own"
            )
        self._models = {model.name: f"model-{position}" for position, model in enumerate(models)}
        self._told: set[tuple[str, int, str]] = set()
        try:
            serve.start(ProxyLocation.HeadOnly, HTTPOptions(host=config.host, port=config.port))
            target = serve.RunTarget(
                target=build_application(config, models, key_hash),
                name=NAME,
                logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
            )
            serve.run_many([target], wait_for_applications_running=False)
            self._wait(config.engine.init_timeout_s)
        except BaseException:
            self.close()
            raise

    def _wait(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            application = serve.status().applications.get(NAME)
            if application is not None and application.status == "RUNNING":
                return
            if application is not None and application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                messages = [deployment.message for deployment in application.deployments.values() if deployment.message]
                raise WorkerError(f"the endpoint did not start: {_reason(messages or [application.message])}")
            if time.monotonic() > deadline:
                raise WorkerError(
                    f"the endpoint did not start within engine.init_timeout_s ({timeout_s:.0f} s); `python jobs/doctor.py` checks "
                    "memory, versions and devices"
                )
            time.sleep(POLL_S)

    def cards(self) -> list[dict[str, Any]]:
        """What each model says of itself; of one with several replicas, what one of them says."""
        asked = [serve.get_deployment_handle(name, NAME).card.remote() for name in self._models.values()]
        return [dict(card.result(timeout_s=CARD_TIMEOUT_S)) for card in asked]

    def news(self) -> Iterator[str]:
        """What has happened to followed runs since the last call, each once."""
        for card in self.cards():
            facts = [
                (int(step), f"refused, {card['step']} stays: {why}") for step, why in card.get("refused", {}).items()
            ]
            if "following" in card:
                facts.append((card["step"], "is served"))
            for step, what in facts:
                if (card["id"], step, what) not in self._told:
                    self._told.add((card["id"], step, what))
                    yield f"{card['following']}: step {step} {what}"

    def close(self) -> None:
        """End Serve and all its processes."""
        serve.shutdown()


def _reason(messages: Sequence[str]) -> str:
    """The last line of a replica's traceback that names an error."""
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line.split(":")[0] and ": " in line]
    return (named or lines or ["Ray Serve gave no reason"])[-1]
