"""The endpoint from the outside: started on a Ray cluster, watched, and ended without leaving anything behind."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from troupe.config.serve import ServeConfig
from troupe.errors import ConfigError, WorkerError
from troupe.serving.app import NAME, absent, build_application
from troupe.serving.served_models import Served

POLL_S = 0.5
CARD_TIMEOUT_S = 10.0
"""Seconds that a model has to describe itself between two looks; one that is busy does it at the next look."""


class Endpoint:
    """Ray Serve with our application. Ray itself is up already, and is somebody else's to end."""

    def __init__(self, config: ServeConfig, models: Sequence[Served], key_hash: str | None) -> None:
        """Start it, and wait until every model answers; WorkerError names what failed or took too long."""
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        if serve.status().proxies:
            raise ConfigError(
                "Ray Serve runs on this cluster already, with its own address and port; end it (serve shutdown), or "
                "unset "
                "RAY_ADDRESS to have a Ray of our own"
            )
        self.port = config.port
        self._models = {model.name: f"model-{position}" for position, model in enumerate(models)}
        self._told: set[tuple[str, int, str]] = set()
        self._away: set[str] = set()
        self._timeout_s = config.engine.init_timeout_s
        self._deadline = time.monotonic() + self._timeout_s
        try:
            self._listen(HTTPOptions(host=config.host, port=config.port))
            target = serve.RunTarget(
                target=build_application(config, models, key_hash),
                name=NAME,
                logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
            )
            with contextlib.suppress(TimeoutError):  # of Ray's 60 s for its proxy; the application is deployed by then
                serve.run_many([target], wait_for_applications_running=False)
            self._wait()
        except BaseException:
            self.close()
            raise

    def _listen(self, options: HTTPOptions) -> None:
        """Start Serve and its HTTP proxy.

        Serve itself waits 60 s and then gives up, and its controller replaces a proxy that is late, which ends the wait
        with an error. Busy cores need longer, so the start is tried until our own deadline.
        """
        while True:
            with contextlib.suppress(TimeoutError, RayActorError):
                serve.start(ProxyLocation.HeadOnly, options)
            proxies = serve.status().proxies.values()
            if proxies and all(proxy == "HEALTHY" for proxy in proxies):
                return
            self._require_time("Ray Serve's HTTP proxy")

    def _wait(self) -> None:
        while True:
            application = serve.status().applications.get(NAME)
            if application is not None and application.status == "RUNNING":
                return
            if application is not None and application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                messages = [deployment.message for deployment in application.deployments.values() if deployment.message]
                raise WorkerError(f"the endpoint did not start: {_reason(messages or [application.message])}")
            self._require_time("the endpoint")

    def _require_time(self, what: str) -> None:
        """Sleep until the next look; WorkerError where there is none, because the deadline has passed."""
        if time.monotonic() > self._deadline:
            raise WorkerError(
                f"{what} did not start within engine.init_timeout_s ({self._timeout_s:.0f} s); raise it where the "
                f"machine is "
                "busy or the model large, and let `python jobs/doctor.py` check memory, versions and devices"
            )
        time.sleep(POLL_S)

    def started(self) -> list[dict[str, Any]]:
        """Return what each model reports of itself once it has started; WorkerError where one does not within the
        start's deadline.
        """
        while len(cards := self.cards()) < len(self._models):
            self._require_time("a model of the endpoint")
        return cards

    def cards(self) -> list[dict[str, Any]]:
        """Return what each model reports of itself that can now; of one with several replicas, what one of them
        states.
        """
        here = [deployment for name, deployment in self._models.items() if name not in self._away]
        asked = [serve.get_deployment_handle(deployment, NAME).card.remote() for deployment in here]
        deadline = time.monotonic() + CARD_TIMEOUT_S
        cards = []
        for card in asked:
            try:
                cards.append(dict(card.result(timeout_s=max(0.0, deadline - time.monotonic()))))
            except (TimeoutError, RayError, RayServeException):  # starts again, or has as many requests as it takes
                card.cancel()
        return cards

    def news(self) -> Iterator[str]:
        """Yield what has happened since the last call: to models whose replica is away, and to followed runs, each
        once.
        """
        yield from self._presence()
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

    def _presence(self) -> Iterator[str]:
        """Yield which models have lost their last replica, and which have one again."""
        gone = absent(serve.status(), NAME)
        away = {name for name, deployment in self._models.items() if deployment in gone}
        yield from (f"{name}: no replica runs; Serve starts another" for name in sorted(away - self._away))
        yield from (f"{name}: a replica runs again" for name in sorted(self._away - away))
        # What a replica that was started again serves is news once more.
        self._told = {fact for fact in self._told if fact[0] not in away}
        self._away = away

    def close(self) -> None:
        """End Serve and all its processes."""
        serve.shutdown()


def _reason(messages: Sequence[str]) -> str:
    """Return the last line of a replica's traceback that names an error."""
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line.split(":")[0] and ": " in line]
    return (named or lines or ["Ray Serve gave no reason"])[-1]
