"""The generators: vLLM engines that continue prompts and take new weights while they run.

`GeneratorWorker` wraps one AsyncLLM; `Generators` is the facade over N of them that the jobs hold: it hands
each request to the least loaded engine and answers with futures, so groups stream back as they finish.
"""

from __future__ import annotations

import functools
import hashlib
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from actors.group import Group
from core.errors import SyncError, TroupeError, WorkerError
from core.hardware import hardware, set_up_generator
from core.recipes import GeneratorConfig
from core.records import Branch, WeightSpan

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest

PROBE_TOKENS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Branches to sample for one prompt."""

    prompt_ids: Sequence[int]
    num_branches: int
    max_tokens: int
    temperature: float
    """0 is greedy."""
    seed: int
    """Branch i is sampled with seed + i, whatever else runs in the engine."""
    stop: tuple[str, ...] = ()


def branch_seed(run_seed: int, step: int, sample_id: str) -> int:
    """The seed of a group's first branch: a hash, so that no two groups of a run share a random stream."""
    digest = hashlib.sha256(f"{run_seed}/{step}/{sample_id}".encode()).digest()
    return int.from_bytes(digest[:6], "little")


class GeneratorWorker:
    """One vLLM engine in a process of its own. Async: control calls pass between running generations."""

    def __init__(
        self,
        model_path: str,
        config: GeneratorConfig,
        *,
        index: int,
        max_length: int,
        precision: str,
        transport: str,
        sleep: bool,
        seed: int,
        num_engines: int,
        visible_devices: str | None,
        trust_remote_code: bool,
    ) -> None:
        set_up_generator(index, num_engines, visible_devices)
        from vllm import AsyncEngineArgs

        on_cpu = hardware().device == "cpu"
        extra: dict[str, Any] = {}
        if on_cpu:
            extra = {
                # Seeded requests crash when a prompt is prefilled in chunks: the CPU generator takes no offset.
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(max_length, 16384),
                # With an explicit size vLLM skips its warm-up run.
                "kv_cache_memory_bytes": int(config.cpu_cache_gib * 2**30),
            }
        else:
            extra = {"gpu_memory_utilization": config.memory_fraction, "enable_sleep_mode": sleep}
        self._index = index
        self._arguments = AsyncEngineArgs(
            model=model_path,
            dtype="bfloat16" if precision == "bf16" else "float32",
            enforce_eager=config.enforce_eager or on_cpu,
            max_model_len=max_length,
            max_num_seqs=config.max_running,
            tensor_parallel_size=config.tensor_parallel_size,
            trust_remote_code=trust_remote_code,
            seed=seed,
            # Log-probabilities of the distribution that was sampled, temperature included.
            logprobs_mode="processed_logprobs",
            weight_transfer_config={"backend": transport},
            # Registers the gloo transport inside vLLM's own worker process.
            worker_extension_cls="actors.weight_sync.WeightSyncExtension",
            disable_log_stats=True,
            **extra,
        )
        self._llm: Any = None
        self._requests = 0

    async def start(self) -> str:
        """Start the engine; its version of vLLM when it is ready to generate."""
        from transformers import AutoTokenizer
        from vllm import __version__
        from vllm.v1.engine.async_llm import AsyncLLM

        self._tokenizer = AutoTokenizer.from_pretrained(
            self._arguments.model, trust_remote_code=self._arguments.trust_remote_code
        )
        self._llm = AsyncLLM.from_engine_args(self._arguments)
        # The first request initialises lazily for seconds; nobody should wait for that later.
        await self.generate(Request(prompt_ids=[0, 0], num_branches=2, max_tokens=2, temperature=1.0, seed=0))
        return str(__version__)

    async def generate(self, request: Request) -> list[Branch]:
        """The request's branches, in order, with log-probabilities and the weight version of every token."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = SamplingParams(
            n=request.num_branches,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            seed=request.seed,
            stop=list(request.stop) or None,
            logprobs=0,
            flat_logprobs=True,
            # Texts are decoded once at the end; stop strings alone need them on the way.
            detokenize=bool(request.stop),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        output = await self._run(list(request.prompt_ids), sampling)
        texts = self._tokenizer.batch_decode([list(c.token_ids) for c in output.outputs], skip_special_tokens=True)
        return [
            Branch(
                token_ids=list(completion.token_ids),
                text=text,
                logprobs=list(completion.logprobs.logprobs),
                finish_reason=completion.finish_reason,
                weight_versions=tuple(
                    WeightSpan(version=_version(span.version), start=span.start, end=span.end)
                    for span in completion.weight_versions or ()
                ),
            )
            for completion, text in zip(output.outputs, texts, strict=True)
        ]

    async def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probabilities of token_ids[1:], each given those before it, in one prefill at temperature 1."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = SamplingParams(
            max_tokens=PROBE_TOKENS,
            temperature=0,
            prompt_logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        output = await self._run(list(token_ids), sampling)
        steps = zip(output.prompt_logprobs[1:], token_ids[1:], strict=True)
        return [float(step[token].logprob) for step, token in steps]

    async def _run(self, prompt_ids: list[int], sampling: SamplingParams) -> Any:
        self._requests += 1
        output = None
        answers = self._llm.generate(
            {"prompt_token_ids": prompt_ids}, sampling, request_id=f"{self._index}-{self._requests}"
        )
        async for answer in answers:
            output = answer
        assert output is not None, "vLLM ended a request without an output"
        return output

    # -- weights: vLLM's own protocol, forwarded ----------------------------------------------------------

    async def init_weight_transfer_engine(self, request: WeightTransferInitRequest) -> None:
        await self._llm.init_weight_transfer_engine(request)

    async def start_weight_update(self) -> None:
        await self._llm.start_weight_update()

    async def update_weights(self, request: WeightTransferUpdateRequest) -> None:
        await self._llm.update_weights(request)

    async def finish_weight_update(self) -> None:
        await self._llm.finish_weight_update()

    async def pause(self) -> None:
        """Freeze running requests where they are; their next tokens come from whatever weights are there then."""
        await self._llm.pause_generation(mode="keep", clear_cache=False)

    async def receive(self, version: int) -> None:
        """Label new weights, forget prefixes computed with the old ones, and go on generating."""
        await self._llm.update_weight_version(str(version))
        await self._llm.reset_prefix_cache()
        await self._llm.resume_generation()

    async def sleep(self) -> None:
        """Free the device for the trainer: weights are dropped (they come back by sync), so is the KV cache."""
        await self._llm.sleep(level=2)

    async def wake(self, tag: str) -> None:
        """Allocate again: `weights` before a sync, `kv_cache` after it."""
        await self._llm.wake_up([tag])

    async def alive(self) -> bool:
        await self._llm.check_health()
        return True

    def close(self) -> None:
        if self._llm is not None:
            self._llm.shutdown()
            self._llm = None


def _version(label: str) -> int:
    """vLLM calls the weights it loaded itself `default`; they are version 0 of a run."""
    return int(label) if label.lstrip("-").isdigit() else 0


@dataclass(slots=True)
class _Engine:
    """What the dispatcher knows of one engine."""

    index: int
    load: int = 0
    """Branches it works on."""
    waiting: set[int] = field(default_factory=set)


class Generators:
    """N engines behind one door. Requests go to the least loaded engine, and wait here once all are full."""

    def __init__(self, group: Group[GeneratorWorker], config: GeneratorConfig, *, sleeps: bool) -> None:
        self.group = group
        self.config = config
        self.sleeps = sleeps
        """Whether the engines share their devices with the trainer and sleep while it works."""
        self._engines = [_Engine(index) for index in range(group.size)]
        self._queue: deque[tuple[Request, Future[list[Branch]]]] = deque()
        self._lock = threading.Lock()

    def submit(self, request: Request) -> Future[list[Branch]]:
        """Start (or queue) a request; the future holds its branches."""
        answer: Future[list[Branch]] = Future()
        with self._lock:
            self._queue.append((request, answer))
        self._dispatch()
        return answer

    @property
    def in_flight(self) -> int:
        """Branches that engines work on or that wait for one."""
        with self._lock:
            return sum(engine.load for engine in self._engines) + sum(r.num_branches for r, _ in self._queue)

    def loads(self) -> list[int]:
        """Branches in flight on each engine, for error messages."""
        with self._lock:
            return [engine.load for engine in self._engines]

    def logprobs(self, engine: int, token_ids: Sequence[int]) -> Future[list[float]]:
        return self.group.submit(engine, GeneratorWorker.logprobs, token_ids)

    def pause(self) -> None:
        if self.in_flight:
            self._control(GeneratorWorker.pause, phase="pause")

    def receive(self, version: int) -> None:
        self._control(GeneratorWorker.receive, version, phase="receive")

    def sleep(self) -> None:
        if self.sleeps:
            self._control(GeneratorWorker.sleep, phase="sleep")

    def wake(self, tag: str) -> None:
        if self.sleeps:
            self._control(GeneratorWorker.wake, tag, phase="wake")

    def shutdown(self) -> None:
        self.group.shutdown()

    def _control(self, method: Any, *args: Any, phase: str) -> None:
        try:
            self.group.gather(self.group.start(method, *args), self.config.sync_timeout_s, phase)
        except TroupeError as error:
            raise SyncError(f"weight sync failed in phase {phase!r}: {error}") from None

    def _dispatch(self) -> None:
        """Hand queued requests out until every engine is full; an engine takes one more wave than it can run, so
        that it never idles while an answer travels here and the next request back."""
        full = 2 * self.config.max_running
        while True:
            with self._lock:
                engine = min(self._engines, key=lambda candidate: candidate.load)
                if not self._queue or (engine.load and engine.load + self._queue[0][0].num_branches > full):
                    return
                request, answer = self._queue.popleft()
                engine.load += request.num_branches
            running = self.group.submit(engine.index, GeneratorWorker.generate, request)
            running.add_done_callback(functools.partial(self._finished, engine, request, answer))

    def _finished(
        self, engine: _Engine, request: Request, answer: Future[list[Branch]], done: Future[list[Branch]]
    ) -> None:
        with self._lock:
            engine.load -= request.num_branches
        error = done.exception()
        if error is not None:
            answer.set_exception(self.group.translate(error, engine.index))
        else:
            answer.set_result(done.result())
        self._dispatch()


def start_generators(group: Group[GeneratorWorker], config: GeneratorConfig) -> None:
    """Wait until every engine generates; a WorkerError names the ones that did not come up."""
    started = time.monotonic()
    try:
        group.gather(group.start(GeneratorWorker.start), config.init_timeout_s, "its start")
    except TroupeError as error:
        waited = time.monotonic() - started
        raise WorkerError(
            f"{error} (after {waited:.0f} s); `python jobs/doctor.py` checks memory, versions and devices"
        ) from None


def generator_arguments(
    model_path: str,
    config: GeneratorConfig,
    *,
    max_length: int,
    precision: str,
    transport: str,
    sleep: bool,
    seed: int,
    trust_remote_code: bool = False,
) -> list[dict[str, Any]]:
    """Constructor arguments of every engine's worker."""
    return [
        {
            "model_path": model_path,
            "config": config,
            "index": index,
            "max_length": max_length,
            "precision": precision,
            "transport": transport,
            "sleep": sleep,
            "seed": seed,
            "num_engines": config.num_engines,
            "visible_devices": None,
            "trust_remote_code": trust_remote_code,
        }
        for index in range(config.num_engines)
    ]
