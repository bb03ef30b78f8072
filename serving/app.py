"""The endpoint as a Ray Serve application: a deployment for each model, and the ingress in front of them."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from typing import Any, cast

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ServeStatus

from troupe.config.rollout import ScorerConfig
from troupe.config.serve import ServeConfig
from troupe.serving.conversations import Conversation
from troupe.serving.ingress import IngressSettings, build_app
from troupe.serving.messages import Message, NoReplica, complete
from troupe.serving.model_server import ModelServer
from troupe.serving.openai_error import ModelUnavailable
from troupe.serving.scorer import scorer_app
from troupe.serving.served_models import Served

NAME = "troupe"
"""Of the application."""
HEALTH_SLACK_S = 30.0
"""A replica that does not answer for so long beyond its engine's deadline is replaced; a tokenizer at work on a long
text is not dead."""
HEALTH_PERIOD_S = 2.0
"""Seconds between health checks; Serve replaces a replica whose engine three of them found dead."""
LOOK_S = 1.0
"""Seconds that a request waits before Serve is asked whether a replica runs that could answer it."""
INGRESS_REQUESTS = 4096
"""Requests that the ingress has open at once."""


class Presence:
    """The deployments of the application that have a running replica.

    A Serve handle keeps a request until there is one, for minutes where an engine starts again; its sender should hear
    of that at once. Serve's controller is asked only while a request waits, about all deployments together.
    """

    def __init__(self, application: str) -> None:
        self._application = application
        self._absent: set[str] = set()
        self._looked = -math.inf
        self._looking = asyncio.Lock()

    async def require(self, deployment: str) -> None:
        """NoReplica where the last look found none and a new look neither."""
        if deployment in self._absent:
            await self._look()
        if deployment in self._absent:
            raise NoReplica

    async def has(self, deployment: str) -> bool:
        """Return whether a replica takes requests."""
        await self._look()
        return deployment not in self._absent

    async def first(self, deployment: str, awaited: Awaitable[Any]) -> Any:
        """Return what is awaited of a deployment; NoReplica as soon as no replica of it runs."""
        task = asyncio.ensure_future(awaited)
        try:
            while not (await asyncio.wait([task], timeout=LOOK_S))[0]:
                await self._look()
                await self.require(deployment)
            return task.result()
        finally:
            task.cancel()

    async def _look(self) -> None:
        async with self._looking:
            if time.monotonic() - self._looked >= LOOK_S:
                self._absent = absent(await asyncio.to_thread(serve.status), self._application)
                self._looked = time.monotonic()


def absent(status: ServeStatus, application: str) -> set[str]:
    """Return the application's deployments without a replica that takes requests."""
    found = status.applications.get(application)
    return {
        name
        for name, deployment in (found.deployments if found is not None else {}).items()
        if not any(count for state, count in deployment.replica_states.items() if state not in ("STARTING", "STOPPING"))
    }


class Replicas:
    """A model or a scorer behind a Serve handle, as the ingress sees it; raises Unavailable where it cannot answer."""

    def __init__(self, name: str, handle: DeploymentHandle, presence: Presence) -> None:
        self._name, self._handle = name, handle
        self._answer = handle.options(method_name="answer", stream=True)
        self._presence = presence

    async def answer(self, path: str, content_type: str, body: bytes) -> AsyncIterator[list[Message]]:
        """Cancelled in the replica as soon as nobody reads on."""
        with self._unavailable():
            await self._presence.require(self._handle.deployment_name)
            response = self._answer.remote(path, content_type, body)
            done = False
            try:
                messages = await self._presence.first(self._handle.deployment_name, anext(response, []))
                while not done:
                    done = not messages or complete(messages)
                    yield messages
                    messages = [] if done else await anext(response, [])
            finally:
                if not done:
                    response.cancel()

    async def card(self) -> dict[str, Any]:
        """Return what `ModelServer.card` gives."""
        try:
            return dict(await self._call(self._handle.card))
        except RayTaskError:
            raise ModelUnavailable(503, f"{self._name} does not answer") from None

    async def is_there(self) -> bool:
        """Return whether a replica takes requests."""
        return await self._presence.has(self._handle.deployment_name)

    async def score(self, conversations: Sequence[Conversation]) -> Sequence[float | None]:
        """Return what a scorer's `score` gives."""
        return cast(Sequence[float | None], await self._call(self._handle.score, conversations))

    async def _call(self, method: DeploymentHandle, *arguments: Any) -> Any:
        with self._unavailable():
            await self._presence.require(self._handle.deployment_name)
            response = method.remote(*arguments)
            try:
                return await self._presence.first(self._handle.deployment_name, response)
            except (NoReplica, asyncio.CancelledError):
                response.cancel()
                raise

    @contextlib.contextmanager
    def _unavailable(self) -> Iterator[None]:
        try:
            yield
        except BackPressureError:
            raise ModelUnavailable(
                429, f"{self._name} has as many requests waiting as it takes; try again later"
            ) from None
        except (NoReplica, RayActorError, DeploymentUnavailableError):
            raise ModelUnavailable(503, f"{self._name} is being started again; try again in a minute") from None


class Ingress:
    """The deployment that the HTTP proxy calls; Serve asks it for its application when it starts."""

    def __init__(
        self, models: Mapping[str, DeploymentHandle], scorers: Mapping[str, DeploymentHandle], door: IngressSettings
    ) -> None:
        presence = Presence(serve.get_replica_context().app_name)
        self._models = {name: Replicas(name, handle, presence) for name, handle in models.items()}
        self._scorers = {name: Replicas(name, handle, presence).score for name, handle in scorers.items()}
        self._door = door

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_app(self._models, self._door, scorers=self._scorers)


def build_application(config: ServeConfig, models: Sequence[Served], key_hash: str | None) -> serve.Application:
    """Return what `serve.run` runs."""
    door = IngressSettings(
        key_hash=key_hash,
        max_bytes=int(config.max_request_mib * 2**20),
        adapters={adapter: model.name for model in models for adapter in model.adapters},
        playground=config.playground,
        games={model.name: model.game for model in models if model.game is not None},
    )
    handles = {
        model.name: serve.deployment(ModelServer, **_options(config), name=f"model-{position}").bind(model, config)
        for position, model in enumerate(models)
    }
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name="ingress",
        max_ongoing_requests=INGRESS_REQUESTS,
        ray_actor_options={"num_cpus": 0},
    )
    scorers = {scorer.name: scorer_app(scorer, _scorer_options(scorer)) for scorer in config.all_scorers}
    return ingress.bind(handles, scorers, door)


def _scorer_options(scorer: ScorerConfig) -> dict[str, Any]:
    """Return the resources of a scorer's deployment: a GPU where there are some, for a model."""
    reads = scorer.type == "reward_model" and _has_gpus()
    return {"ray_actor_options": {"num_cpus": 1, "num_gpus": int(reads)}, "max_constructor_retry_count": 1}


def _has_gpus() -> bool:
    """Return whether the cluster has GPUs: this process may sit on a machine without one."""
    return ray.cluster_resources().get("GPU", 0) > 0


def _options(config: ServeConfig) -> dict[str, Any]:
    """Return the resources of a model's deployment."""
    gpus = config.engine.tensor_parallel_size if _has_gpus() else 0
    most = config.max_replicas or config.min_replicas
    scaling: dict[str, Any] = {"num_replicas": config.min_replicas}
    if most > config.min_replicas:
        scaling = {
            "autoscaling_config": {
                "min_replicas": config.min_replicas,
                "max_replicas": most,
                "target_ongoing_requests": config.target_requests,
                "upscale_delay_s": config.scale_up_after_s,
                "downscale_delay_s": config.scale_down_after_s,
            }
        }
    return {
        **scaling,
        "ray_actor_options": {"num_cpus": 1, "num_gpus": gpus},
        "max_ongoing_requests": config.engine.max_running,
        "max_queued_requests": config.max_queued,
        "health_check_period_s": HEALTH_PERIOD_S,
        "health_check_timeout_s": config.reply_timeout_s + HEALTH_SLACK_S,
        "graceful_shutdown_timeout_s": 5.0,
        # What fails at its start fails again; whoever waits should hear of it.
        "max_constructor_retry_count": 1,
    }
