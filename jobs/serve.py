"""Serve models behind an OpenAI-compatible endpoint: runs, checkpoints, hub models, several at once.

    python jobs/serve.py runs/quickstart                        # its best checkpoint, at http://127.0.0.1:8000/v1
    python jobs/serve.py runs/quickstart@10 runs/quickstart     # two steps of it side by side
    python jobs/serve.py follow=runs/quickstart                 # each better checkpoint takes the place of the one
    before

The bearer token is TROUPE_API_KEY of the environment, or one that is made and shown once. docs/serving.md says more.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

if not __package__:  # run as a file: imports begin at the project, not in jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import rich
from pydantic import TypeAdapter

import troupe.processes.starting  # noqa: F401 - before what takes long
from troupe.actors.placement import Cluster
from troupe.config.data import DataConfig
from troupe.config.program import run_program
from troupe.config.rollout import EnvironmentConfig
from troupe.config.serve import ServeConfig, with_sources
from troupe.data import load_data
from troupe.environments import build_environment
from troupe.errors import ConfigError, TroupeError, first_line
from troupe.evaluation.checkpoint_sources import run_of
from troupe.ops.doctor import port_holder
from troupe.processes.stopping import StopSignals
from troupe.report.report_data import read_run
from troupe.secrets import SHORTEST_SECRET
from troupe.serving.games import Playable
from troupe.serving.playground import run_examples
from troupe.serving.served_models import Served, served_models
from troupe.serving.slow_senders import proxy_environment

KEY = "TROUPE_API_KEY"
GAMES = 64
"""Held-out samples of a run that games begin with."""
WATCH_S = 2.0
"""Seconds between two looks at what the endpoint has to tell."""


def serve(config: ServeConfig) -> None:
    models = served_models(config)
    if config.playground:
        models = [with_game(with_examples(model)) for model in models]
    require_free_port(config.host, config.port)
    key, made = api_key(config)
    rich.print(f"starting {config.arithmetic()}")

    signals = StopSignals()
    signals.install()
    started = time.monotonic()
    # Ray's processes inherit them: how long a proxy may take to start before another replaces it, and a client to send.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", str(config.engine.init_timeout_s))
    os.environ.update(proxy_environment(config.request_timeout_s))
    cluster = Cluster(config.placement)
    try:
        signals.install()  # Ray takes SIGTERM for itself
        from troupe.serving.endpoint import Endpoint
        from troupe.serving.ingress import hash_key

        endpoint = Endpoint(config, models, None if key is None else hash_key(key))
        try:
            announce(config, endpoint.started(), seconds=time.monotonic() - started, key=key if made else None)
            while True:
                for line in endpoint.news():
                    rich.print(line)
                time.sleep(WATCH_S)
        finally:
            endpoint.close()
    except KeyboardInterrupt:
        rich.print("stopped")
    finally:
        cluster.close()
        signals.restore()


def rehearse(config: ServeConfig) -> list[str]:
    """Return what a dry run shows."""
    return [f"{model.name}: {model.path}" for model in served_models(config)]


def with_examples(model: Served) -> Served:
    """Add prompts of its run's held-out set, for the playground."""
    examples = run_examples(run_of(Path(model.path)))
    return replace(model, metadata={**model.metadata, "examples": examples})


def with_game(model: Served) -> Served:
    """Add the environment of its run and samples to begin games with, for the playground."""
    run = run_of(Path(model.path))
    recipe = read_run(run).config if (run / "config.yaml").is_file() else {}
    if not recipe.get("environment"):
        return model
    try:
        environment = EnvironmentConfig.model_validate(recipe["environment"])
        build_environment(environment)
        samples = load_data(TypeAdapter(DataConfig).validate_python(recipe.get("data") or {})).heldout[:GAMES]
    except (TroupeError, ValueError) as error:  # code or data of another machine, say: the model is served all the same
        rich.print(f"{model.name}: its run's environment cannot be played here: {first_line(error)}")
        return model
    if not environment.plays or not samples:
        return model
    game = Playable(config=environment, samples=samples)
    return replace(model, game=game, metadata={**model.metadata, "game": environment.title})


def require_free_port(host: str, port: int) -> None:
    """ConfigError unless we may listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            taken = (
                f"is taken by {port_holder(port)}" if error.errno == 98 else f"cannot be listened on ({error.strerror})"
            )
            raise ConfigError(
                f"port {port} on {host} {taken}; give another one, port={port + 1} say, or end it"
            ) from None


def api_key(config: ServeConfig) -> tuple[str | None, bool]:
    """Return (bearer token or None, whether it was made here)."""
    if not config.auth:
        return None, False
    given = os.environ.get(KEY, "")
    if not given:
        return secrets.token_urlsafe(24), True
    if len(given) < SHORTEST_SECRET or not given.isascii() or any(sign.isspace() for sign in given):
        raise ConfigError(
            f"{KEY} of the environment is no token: it needs {SHORTEST_SECRET} or more ASCII characters without "
            "blanks; set another one, or unset it to have one made"
        )
    return given, False


def announce(config: ServeConfig, cards: list[dict[str, Any]], *, seconds: float, key: str | None) -> None:
    """Print what is served, where, and how to call it."""
    host = "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host
    url = f"http://{f'[{host}]' if ':' in host else host}:{config.port}"
    print(f"\nready after {seconds:.0f} s at {url}/v1")
    for card in cards:
        step = "" if card["step"] is None else f", step {card['step']}"
        print(f"  {card['id']}{step}, up to {card['max_model_len']} tokens, from {card['root']}")
    if config.playground:
        # Behind the # it reaches no server and no log; a token of the environment is not shown.
        print(f"  playground: {url}/" + (f"#token={quote(key, safe='')}" if key is not None else ""))
    if key is not None:
        print(f"\nthe token, made for this time and not shown again:\n  export {KEY}={key}")
    if not config.auth:
        print("\nno token is asked for (auth=off): whoever reaches the port may use it")
    for model in config.served:
        for adapter in model.adapters:
            print(f"  {adapter}, an adapter on {model.label}")
    for scorer in config.all_scorers:
        print(f"  {scorer.name}, which scores, at {url}/v1/score")
    if not cards:
        print("\nCtrl-C ends it", flush=True)
        return
    first = cards[0]
    chat = first["metadata"]["chat"]
    route = "chat/completions" if chat else "completions"
    asked = '"messages": [{"role": "user", "content": "Hello"}]' if chat else '"prompt": "Hello"'
    bearer = f' -H "Authorization: Bearer ${KEY}"' if config.auth else ""
    print(
        f"\ncurl {url}/v1/{route}{bearer} -H 'Content-Type: application/json' \\\n"
        f'  -d \'{{"model": "{first["id"]}", {asked}}}\'\n\nCtrl-C ends it',
        flush=True,
    )


if __name__ == "__main__":
    sys.argv[1:] = with_sources(sys.argv[1:])
    run_program(serve, ServeConfig, "jobs/serve.py", rehearse=rehearse)
