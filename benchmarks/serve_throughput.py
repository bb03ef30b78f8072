"""Tokens per second and first-token latency of the endpoint beside bare vLLM's own server: same model, same requests.

    python benchmarks/serve_throughput.py [--requests 32] [--prompt 128] [--answer 128] [--rounds 5]

Both servers run for the whole measurement and are asked in turns, by one client, over loopback: `--requests` at once,
streamed and
whole, greedy and with ignore_eos, so that both write the same number of tokens. Then one request at a time, for the
time to its first token.
Ratios are of a round to the bare server's round right before it: a busy machine slows both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

AIM = 0.85
"""What the endpoint's throughput may be of bare vLLM's at least."""
KEY = "a-token-for-the-benchmark"
START_S = 300
CACHE_GIB = 1


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def bare_command(model: Path, port: int, length: int) -> list[str]:
    """vLLM's own server, with the settings that the endpoint gives the engine."""
    return [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
        *("--served-model-name", "model", "--host", "127.0.0.1", "--port", str(port), "--api-key", KEY),
        *("--dtype", "float32", "--max-model-len", str(length), "--max-num-seqs", "256", "--enforce-eager"),
        *("--no-enable-chunked-prefill", "--max-num-batched-tokens", str(max(length, 16384))),
        *("--kv-cache-memory-bytes", str(CACHE_GIB * 2**30), "--disable-log-stats", "--disable-uvicorn-access-log"),
    ]


def our_command(model: Path, port: int, length: int) -> list[str]:
    served = f"models=[{{name: model, path: {model}}}]"
    limits = [f"max_length={length}", f"engine.cpu_cache_gib={CACHE_GIB}", "precision=fp32"]
    return [sys.executable, "jobs/serve.py", served, f"port={port}", *limits]


@contextmanager
def server(command: Sequence[str], port: int, log: Path) -> Iterator[str]:
    """Its address, once it answers."""
    environment = {**os.environ, "TROUPE_API_KEY": KEY, "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    with open(log, "wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_S
        while not answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{command[:4]} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.5)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def answers(url: str) -> bool:
    request = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": f"Bearer {KEY}"})
    try:
        with urllib.request.urlopen(request, timeout=5) as reply:
            return bool(reply.status == 200)
    except (OSError, urllib.error.HTTPError):
        return False


async def ask(url: str, body: dict[str, Any]) -> float:
    """One request, read with as little of the client's own work as possible; seconds to the answer's first bytes."""
    host, port = url.removeprefix("http://").split(":")
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection(host, int(port), limit=2**22)
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\nContent-Type: "
        f"application/json\r\n"
    )
    writer.write(f"{head}Content-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode() + content)
    header = await reader.readuntil(b"\r\n\r\n")
    assert b" 200 " in header.split(b"\r\n")[0], header + await reader.read()
    first_s = 0.0
    while await reader.read(2**16):
        first_s = first_s or time.perf_counter() - started
    writer.close()
    return first_s


def bodies(given: argparse.Namespace, count: int, *, stream: bool, seed: int) -> list[dict[str, Any]]:
    """Requests of `--prompt` random tokens each."""
    rng = random.Random(seed)
    return [
        {
            "model": "model",
            "prompt": [rng.randrange(10, 250) for _ in range(given.prompt)],
            "max_tokens": given.answer,
            "temperature": 0,
            "ignore_eos": True,
            "stream": stream,
        }
        for _ in range(count)
    ]


def together(url: str, requests: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """All at once: (tokens per second, median seconds to a first token)."""

    async def run() -> list[float]:
        return await asyncio.gather(*(ask(url, body) for body in requests))

    started = time.perf_counter()
    first = asyncio.run(run())
    seconds = time.perf_counter() - started
    expected = sum(body["max_tokens"] for body in requests)
    return expected / seconds, statistics.median(first)


def alone(url: str, requests: Sequence[dict[str, Any]]) -> float:
    """One after the other: median seconds to the first token."""
    return statistics.median(asyncio.run(ask(url, body)) for body in requests)


def measure(given: argparse.Namespace, urls: dict[str, str]) -> dict[str, Any]:
    speeds: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in urls} for kind in ("streamed", "whole")}
    first: dict[str, list[float]] = {name: [] for name in urls}
    single: dict[str, list[float]] = {name: [] for name in urls}
    for number in range(-1, given.rounds):  # round -1 warms both up
        for name, url in urls.items():
            for kind in speeds:
                requests = bodies(given, given.requests, stream=kind == "streamed", seed=number)
                speed, seconds = together(url, requests)
                if number >= 0:
                    speeds[kind][name].append(speed)
                    first[name] += [seconds] if kind == "streamed" else []
            seconds = alone(url, bodies(given, 8, stream=True, seed=100 + number))
            if number >= 0:
                single[name].append(seconds)

    def ratio(kind: str) -> float:
        return statistics.median(a / b for a, b in zip(speeds[kind]["endpoint"], speeds[kind]["bare"], strict=True))

    return {
        "tokens_per_second": {kind: medians(of_kind) for kind, of_kind in speeds.items()},
        "ratios": {"streamed": ratio("streamed"), "whole": ratio("whole"), "aim": AIM},
        "first_token_s": {"alone": medians(single), f"of {given.requests} together": medians(first)},
        "added_first_token_s": {
            "alone": statistics.median(a - b for a, b in zip(single["endpoint"], single["bare"], strict=True)),
            f"of {given.requests} together": statistics.median(
                a - b for a, b in zip(first["endpoint"], first["bare"], strict=True)
            ),
        },
    }


def medians(values: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(measured) for name, measured in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="The endpoint beside bare vLLM's own server.")
    parser.add_argument("--requests", type=int, default=32, help="at once")
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--answer", type=int, default=128, help="tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hidden-size", type=int, default=256, help="of the model, whose weights are random")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "serve_throughput.json")
    given = parser.parse_args()
    from benchmarks.grpo_step import machine
    from troupe.config.models import ScratchModelConfig
    from troupe.training.scratch import write_scratch_model

    with tempfile.TemporaryDirectory() as scratch, ExitStack() as servers:
        model, length = Path(scratch) / "model", 2 * (given.prompt + given.answer)
        shape = {"hidden_size": given.hidden_size, "num_layers": given.layers}
        config = ScratchModelConfig(**shape, max_length=length)
        write_scratch_model(config, ["one two three 0123456789", "four five six"], str(model), 0)
        ports = {"bare": free_port(), "endpoint": free_port()}
        commands = {"bare": bare_command, "endpoint": our_command}
        urls = {
            name: servers.enter_context(
                server(command(model, ports[name], length), ports[name], Path(scratch) / f"{name}.log")
            )
            for name, command in commands.items()
        }
        result = measure(given, urls)
    sizes = {name: getattr(given, name) for name in ("requests", "prompt", "answer", "rounds")}
    facts = {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "model": shape, "sizes": sizes}
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps({**facts, **result}, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
