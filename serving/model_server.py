"""One replica of a model: vLLM's AsyncLLM behind vLLM's own OpenAI application, carried by Ray Serve.

The ingress hands a request over as bytes and gets back what the application sends, so that validation, templates,
sampling, logprobs and streaming are vLLM's own. New weights of a followed run are loaded in place, between requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray

from troupe.config.serve import ServeConfig
from troupe.engines.arguments import engine_arguments, pack_again
from troupe.engines.process import EngineProcess
from troupe.errors import ConfigError, WorkerError
from troupe.files import read_json
from troupe.hardware import hardware, set_up_generator
from troupe.names import step_of
from troupe.runs.run_directory import locked
from troupe.serving.follower import Follower
from troupe.serving.guarded_tokenizer import guard
from troupe.serving.messages import Message, NoReplica, complete
from troupe.serving.served_models import Served, on_this_machine

log = logging.getLogger(__name__)

HANG_UP_S = 2.0
"""Seconds that vLLM's application has to end a request whose client is gone."""


class ReloadExtension:
    """Named to vLLM as its worker extension, so that an engine can be made to load another checkpoint."""

    def load_checkpoint(self, path: str) -> None:
        self.reload_weights(weights_path=path)  # type: ignore[attr-defined]
        if hardware().device == "cpu":
            pack_again(self.model_runner.get_model())  # type: ignore[attr-defined]


class ModelServer:
    """A Serve deployment; its methods are called through handles."""

    async def __init__(self, served: Served, config: ServeConfig) -> None:  # type: ignore[misc]
        """Ready to answer when it returns."""
        self._follower = None if served.run is None else Follower(served, config.following.checkpoint)
        self._served = on_this_machine(served) if self._follower is None else self._follower.first()
        self._config = config
        self._created = int(time.time())
        self._broken: Exception | None = None
        self._running = 0
        self._open = asyncio.Event()
        """Whether requests may begin; not while new weights are loaded."""
        self._open.set()
        self._idle = asyncio.Event()
        self._idle.set()
        await self._start()
        if self._follower is not None:
            self._following = asyncio.create_task(self._follow())

    async def _start(self) -> None:
        set_up_generator(0, 1, None, ray.util.get_node_ip_address())
        os.environ["VLLM_ENGINE_READY_TIMEOUT_S"] = str(math.ceil(self._config.engine.init_timeout_s))
        from vllm import AsyncEngineArgs
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.app import build_app
        from vllm.entrypoints.launchers.cli_args import FrontendArgs
        from vllm.entrypoints.openai.models.protocol import LoRAModulePath

        served, config = self._served, self._config
        adapters = [LoRAModulePath(name=name, path=path) for name, path in served.adapters.items()]
        arguments = AsyncEngineArgs(
            model=served.path,
            served_model_name=[served.name],
            seed=config.seed,
            trust_remote_code=config.trust_remote_code,
            worker_extension_cls="troupe.serving.model_server.ReloadExtension",
            disable_log_stats=True,
            reasoning_parser=served.reasoning_parser or "",
            enable_lora=bool(adapters),
            max_loras=max(1, len(adapters)),
            max_lora_rank=_largest_rank(served),
            **engine_arguments(
                config.engine, max_length=served.max_length, precision=hardware().precision(config.precision)
            ),
        )
        self._process = EngineProcess(f"the engine of {served.name}")
        self._engine = self._process.start(arguments)
        front = FrontendArgs(
            lora_modules=adapters or None,
            enable_auto_tool_choice=served.tool_call_parser is not None,
            tool_call_parser=served.tool_call_parser,
            chat_template=served.chat_template,
            default_chat_template_kwargs=dict(served.chat_template_kwargs) or None,
        )
        settings = Namespace(**vars(front) | vars(arguments))
        guard(self._engine.get_tokenizer())
        tasks = await self._engine.get_supported_tasks()
        self._app = build_app(settings, tasks, self._engine.model_config)
        # vLLM's handler of a dead engine tells its own web server to exit; here Serve asks `check_health` instead.
        self._app.state.server = SimpleNamespace()
        await init_app_state(self._engine, self._app.state, settings, tasks)
        self._sign(served.step)
        self._sampling = self._engine.model_config.get_diff_sampling_param()
        for path, asked in warm_up(chats=self._chats):
            body = json.dumps({"model": served.name, "max_tokens": 2, **asked}).encode()
            async for _ in self.answer(path, "application/json", body):
                pass

    @property
    def _chats(self) -> bool:
        """Whether the tokenizer has a template for conversations."""
        return getattr(self._engine.get_tokenizer(), "chat_template", None) is not None

    def _sign(self, step: int | None) -> None:
        """Responses carry the served step as `system_fingerprint`: "quickstart@30"."""
        name = self._served.name
        label = name if step is None or name.endswith(f"@{step}") else f"{name}@{step}"
        for serving in ("openai_serving_chat", "openai_serving_completion"):
            getattr(self._app.state, serving).system_fingerprint = label

    # -- requests --------------------------------------------------------------------------------------------

    async def answer(self, path: str, content_type: str, body: bytes) -> AsyncIterator[list[Message]]:
        """POST `body` to vLLM's application at `path`; what it has sent since the last item, until it is done.

        A client that stops reading has hung up: the application hears of it, and vLLM ends the generation. NoReplica
        where the engine is dead, instead of what vLLM states then.
        """
        await self._open.wait()
        self._require_engine()
        with self._counted():
            sent: asyncio.Queue[Message | None] = asyncio.Queue()
            gone = asyncio.Event()
            task = asyncio.create_task(self._app(_scope(path, content_type), _receiver(body, gone), _sender(sent)))
            task.add_done_callback(lambda _: sent.put_nowait(None))
            try:
                while (messages := await _arrived(sent)) and not complete(messages):
                    self._require_engine()
                    yield messages
                    # What comes meanwhile travels together: a message costs three processes a millisecond of their
                    # time.
                    await asyncio.wait([task], timeout=self._running / self._config.stream_parts_per_s)
                self._require_engine()
                await task
                yield messages
            finally:
                gone.set()
                # vLLM's handlers end their work when they hear of it; one that is cancelled first leaves it running.
                await asyncio.wait([task], timeout=HANG_UP_S)
                if not task.done():
                    task.cancel()
                    await asyncio.wait([task])

    def _require_engine(self) -> None:
        if self._engine.errored:
            raise NoReplica

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self._running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def card(self) -> dict[str, Any]:
        """Return what /v1/models reports of this model."""
        served, follower = self._served, self._follower
        following = {} if follower is None else {"following": served.run, "refused": follower.refused}
        return {
            "id": served.name,
            "object": "model",
            "created": self._created,
            "owned_by": "troupe",
            "root": served.path if follower is None else str(follower.path),
            "max_model_len": served.max_length,
            "step": served.step if follower is None else follower.step,
            "running": self._engine.output_processor.get_num_unfinished_requests(),
            **following,
            "metadata": {**served.metadata, "task": "generate", "chat": self._chats, "sampling": self._sampling},
        }

    async def check_health(self) -> None:
        """Called by Serve, which replaces a replica that raises here."""
        if self._broken is not None:
            raise self._broken
        await self._process.run("answering", self._engine.check_health())
        if self._open.is_set():  # an engine that loads weights answers nothing else, and has a deadline of its own
            try:
                await self._process.require_reply(self._engine.is_sleeping(), self._config.reply_timeout_s)
            except WorkerError as error:
                log.error("%s\n%s", error, error.details)
                raise

    def __del__(self) -> None:
        engine = getattr(self, "_engine", None)
        if engine is not None:
            engine.shutdown()

    # -- a followed run --------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        assert self._follower is not None
        while True:
            await asyncio.sleep(self._config.following.every_s)
            path = None
            with contextlib.suppress(OSError):
                path = await asyncio.to_thread(self._follower.newer)
            try:
                if path is not None:
                    with self._my_turn():
                        await self._swap(path)
            except ConfigError:  # another replica is at it; this one looks again
                continue
            except Exception as error:
                log.exception("cannot follow %s", self._served.run)
                self._broken = self._broken or error
                return

    def _my_turn(self) -> contextlib.AbstractContextManager[None]:
        """Replicas take new weights one after the other, so that the others answer meanwhile."""
        alone = (self._config.max_replicas or self._config.min_replicas) == 1
        return contextlib.nullcontext() if alone else locked(Path(str(self._served.run)) / "serving")

    async def _swap(self, path: Path) -> None:
        """Load a checkpoint in place of the present one. Requests that arrive meanwhile wait; none fails."""
        assert self._follower is not None
        step, before = step_of(path.name), self._follower.path
        assert step is not None
        self._open.clear()
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), self._config.following.drain_s)
            # What still runs is frozen, and goes on with the new weights.
            pausing = self._engine.pause_generation(mode="keep", clear_cache=False)
            await self._process.require_reply(pausing, self._config.reply_timeout_s)
            try:
                await self._load(path)
            except Exception as error:
                self._follower.refuse(step, f"{path} does not load: {str(error).splitlines()[0]}")
                await self._load(before)  # part of the weights may be the new ones already
            else:
                self._follower.serves(path, step)
                self._sign(step)
            # What was computed with the old weights is forgotten, that of frozen requests too.
            await self._engine.reset_prefix_cache(reset_running_requests=True)
            await self._engine.resume_generation()
        finally:
            self._open.set()

    async def _load(self, path: Path) -> None:
        loading = self._engine.collective_rpc("load_checkpoint", args=(str(path),))
        await self._process.require_reply(loading, self._config.engine.init_timeout_s)


def warm_up(*, chats: bool) -> list[tuple[str, dict[str, Any]]]:
    """Return (path, body) of requests that ask once for whatever a request may ask for.

    The first request of a kind initialises or compiles, logprobs for half a minute on a CPU, and the engine answers
    nobody meanwhile; so that is done before the replica takes requests.
    """
    shaped = {"top_k": 9, "top_p": 0.9, "min_p": 0.01, "presence_penalty": 0.1, "frequency_penalty": 0.1}
    requests: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", {"prompt": [0]}),
        ("/v1/completions", {"prompt": [0, 0], "temperature": 0, "logprobs": 1, "echo": True}),
        ("/v1/completions", {"prompt": [0, 0], "n": 2, "seed": 1, "logprobs": 1, "stop": ["."], **shaped}),
        ("/v1/completions", {"prompt": [0], "response_format": {"type": "json_object"}}),
    ]
    if chats:
        chat = {"messages": [{"role": "user", "content": "1"}], "logprobs": True, "top_logprobs": 1}
        requests.append(("/v1/chat/completions", chat))
    return requests


def _largest_rank(served: Served) -> int:
    """Return the least of vLLM's LoRA ranks that every adapter fits."""
    ranks = [int(read_json(Path(path) / "adapter_config.json")["r"]) for path in served.adapters.values()]
    return next(rank for rank in (8, 16, 32, 64, 128, 256, 320, 512) if rank >= max(ranks, default=8))


async def _arrived(sent: asyncio.Queue[Message | None]) -> list[Message]:
    """Return all that was sent since the last call, at least one message; nothing when the application has ended."""
    messages = [await sent.get()]
    while not sent.empty():
        messages.append(sent.get_nowait())
    if messages[-1] is None:
        sent.put_nowait(None)  # for the next call, which then has nothing
    return [message for message in messages if message is not None]


def _scope(path: str, content_type: str) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", content_type.encode())],
        "client": None,
        "server": None,
    }


def _receiver(body: bytes, gone: asyncio.Event) -> Any:
    """ASGI's `receive`: the body at once, then nothing until the client is gone."""
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Message:
        for message in messages:
            return message
        await gone.wait()
        return {"type": "http.disconnect"}

    return receive


def _sender(sent: asyncio.Queue[Message | None]) -> Any:
    async def send(message: Message) -> None:
        sent.put_nowait(message)

    return send
