"""The endpoint where something else runs Ray Serve, KubeRay's RayService say: `import_path:
troupe.serving.builder:application`.

`jobs/serve.py` is the way for people; here the recipe comes as `args`, and host and port are that Serve's own.
"""

from __future__ import annotations

import os
from typing import Any

from ray import serve

from troupe.config.serve import ServeConfig
from troupe.errors import ConfigError
from troupe.secrets import SHORTEST_SECRET
from troupe.serving.app import build_application
from troupe.serving.ingress import hash_key
from troupe.serving.served_models import served_models


def application(arguments: dict[str, Any]) -> serve.Application:
    """Return what Serve is to run for a recipe; the bearer token is TROUPE_API_KEY of the environment."""
    config = ServeConfig.model_validate(arguments)
    key = os.environ.get("TROUPE_API_KEY", "")
    if config.auth and len(key) < SHORTEST_SECRET:
        raise ConfigError(
            f"TROUPE_API_KEY must be set for every pod, to {SHORTEST_SECRET} characters or more; put it into the "
            f"secret troupe-env, or set auth: false"
        )
    return build_application(config, served_models(config), hash_key(key) if config.auth else None)
