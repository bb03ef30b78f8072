"""The endpoint as a Ray Serve application: a deployment for each model, and the ingress in front of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from core.scoring_recipes import ScorerConfig
from core.serve_recipes import ServeConfig
from core.served_models import Served
from serving.ingress import Door, Unavailable, build_app
from serving.messages import Message, complete
from serving.model_server import ModelServer
from serving.scorer import scorer_app

NAME = "troupe"
"""Of the application."""
HEALTH_TIMEOUT_S = 60.0
"""A replica that does not answer for so long is replaced; a tokenizer at work on a long text is not dead."""
INGRESS_REQUESTS = 4096
"""Requests that the ingress has open at once."""


class Replicas:
    """A model behind a Serve handle, as the ingress sees it."""

    def __init__(self, name: str, handle: DeploymentHandle) -> None:
        self._name = name
        self._answer = handle.options(method_name="answer", stream=True)
        self._card = handle.options(method_name="card")

    async def answer(self, path: str, content_type: str, body: bytes) -> AsyncIterator[list[Message]]:
        """Cancelled in the replica as soon as nobody reads on."""
        response = self._answer.remote(path, content_type, body)
        done = False
        try:
            async for messages in response:
                done = not messages or complete(messages)
                yield messages
        except BackPressureError:
            raise Unavailable(429, f"{self._name} has as many requests waiting as it takes; try again later") from None
        except (RayActorError, DeploymentUnavailableError):
            raise Unavailable(503, f"{self._name} is being started again; try again in a minute") from None
        finally:
            if not done:
                response.cancel()

    async def card(self) -> dict[str, Any]:
        try:
            return dict(await self._card.remote())
        except (RayActorError, RayTaskError, BackPressureError, DeploymentUnavailableError):
            raise Unavailable(503, f"{self._name} does not answer") from None


class Ingress:
    """The deployment that the HTTP proxy calls; Serve asks it for its application when it starts."""

    def __init__(
        self, models: Mapping[str, DeploymentHandle], scorers: Mapping[str, DeploymentHandle], door: Door
    ) -> None:
        self._models = {name: Replicas(name, handle) for name, handle in models.items()}
        self._scorers = {name: handle.score.remote for name, handle in scorers.items()}
        self._door = door

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_app(self._models, self._door, scorers=self._scorers)


def build_application(config: ServeConfig, models: Sequence[Served], key_hash: str | None) -> serve.Application:
    """What `serve.run` runs."""
    door = Door(
        key_hash=key_hash,
        max_bytes=int(config.max_request_mib * 2**20),
        adapters={adapter: model.name for model in models for adapter in model.adapters},
        playground=config.playground,
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
    """Of a scorer's deployment: a GPU where there are some, for a model."""
    reads = scorer.type == "reward_model" and _has_gpus()
    return {"ray_actor_options": {"num_cpus": 1, "num_gpus": int(reads)}, "max_constructor_retry_count": 1}


def _has_gpus() -> bool:
    """Of the cluster: this process may sit on a machine without one."""
    return ray.cluster_resources().get("GPU", 0) > 0


def _options(config: ServeConfig) -> dict[str, Any]:
    """Of a model's deployment."""
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
        "health_check_timeout_s": HEALTH_TIMEOUT_S,
        "graceful_shutdown_timeout_s": 5.0,
        # What fails at its start fails again; whoever waits should hear of it.
        "max_constructor_retry_count": 1,
    }
