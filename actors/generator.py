"""A generator: one vLLM engine that continues prompts and takes new weights while it runs.

`GeneratorWorker` wraps an AsyncLLM in a process of its own. Requests travel in batches, which the engine sees whole
before it runs the first. The jobs hold `Generators`, the facade over N of them, in `actors/generators.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from troupe.actors.meters import Throughput, working
from troupe.actors.workers import own_address
from troupe.config.models import GeneratorConfig
from troupe.engines.arguments import engine_arguments
from troupe.engines.process import EngineProcess
from troupe.hardware import hardware, set_up_generator
from troupe.records import Branch, WeightSpan

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest

PROBE_TOKENS = 1
FIRST_REQUEST = -1
"""The batch of an engine's first request, which tries it."""


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
    stop_ids: tuple[int, ...] = ()
    """End tokens of the model's conversation form, besides those that the engine knows of the model."""
    top_p: float = 1.0
    top_k: int = 0
    """Off; held-out answers alone may have them on, since ratios need the whole distribution."""


def branch_seed(run_seed: int, step: int, sample_id: str, copy: int = 0) -> int:
    """Return the seed of a group's first branch: a hash, so that no two groups of a run share a random stream.

    `copy` counts the groups of one sample in one step, where a step takes more prompts than there are samples.
    """
    again = f"\0{copy}" if copy else ""  # no id has a NUL, so no two groups have the same text
    digest = hashlib.sha256(f"{run_seed}/{step}/{sample_id}{again}".encode()).digest()
    return int.from_bytes(digest[:6], "little")


class _Inbox:
    """Answers of a batch in an engine's process, until they are fetched."""

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self._arrived: asyncio.Queue[tuple[int, list[Branch]] | Exception] = asyncio.Queue()

    def put(self, answer: tuple[int, list[Branch]] | Exception) -> None:
        self._arrived.put_nowait(answer)

    async def take(self) -> list[tuple[int, list[Branch]]]:
        """Return what has arrived, at least one answer; raises what went wrong."""
        taken: list[tuple[int, list[Branch]]] = []
        while not taken or not self._arrived.empty():
            answer = await self._arrived.get()
            if isinstance(answer, Exception):
                raise answer
            taken.append(answer)
        self.expected -= len(taken)
        return taken


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
        set_up_generator(index, num_engines, visible_devices, own_address())
        from vllm import AsyncEngineArgs

        self._index = index
        self._arguments = AsyncEngineArgs(
            model=model_path,
            trust_remote_code=trust_remote_code,
            seed=seed,
            # Log-probabilities of the distribution that was sampled, temperature included.
            logprobs_mode="processed_logprobs",
            weight_transfer_config={"backend": transport},
            # Registers the gloo transport inside vLLM's own worker process.
            worker_extension_cls="troupe.actors.weight_sync.WeightSyncExtension",
            disable_log_stats=True,
            **({} if hardware().device == "cpu" else {"enable_sleep_mode": sleep}),
            **engine_arguments(config, max_length=max_length, precision=precision),
        )
        self._engine = EngineProcess(f"generator rank {index}'s engine")
        self._llm: Any = None
        self._requests = 0
        self._inboxes: dict[int, _Inbox] = {}
        self._counted = Throughput()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        """Start the engine; its version of vLLM when it is ready to generate."""
        from transformers import AutoTokenizer
        from vllm import __version__

        self._tokenizer = AutoTokenizer.from_pretrained(
            self._arguments.model, trust_remote_code=self._arguments.trust_remote_code
        )
        # Calls that are waiting (who this process is, where it logs) go first: the next line holds the loop for long.
        await asyncio.sleep(0.1)
        self._llm = self._engine.start(self._arguments)
        self._turn = asyncio.Lock()
        # The first request initialises lazily for seconds; nobody should wait for that later.
        first = Request(prompt_ids=[0, 0], num_branches=2, max_tokens=2, temperature=1.0, seed=0)
        await self.submit(FIRST_REQUEST, [first], alone=True)
        await self.poll(FIRST_REQUEST)
        return str(__version__)

    async def submit(self, batch: int, requests: Sequence[Request], *, alone: bool) -> None:
        """Start a batch; `finished` has its answers. One that runs `alone` waits until those before it have ended, and
        those behind it wait for its end: what shares an engine step with what is then a function of the requests."""
        self._inboxes[batch] = _Inbox(len(requests))
        task = asyncio.create_task(self._work(batch, requests, alone))
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)

    async def poll(self, batch: int) -> list[tuple[int, list[Branch]]]:
        """Return (position, branches in order) of the batch's requests that have finished since the last call, at least
        one; with log-probabilities and the weight version of every token.
        """
        answers = await self._inboxes[batch].take()
        if not self._inboxes[batch].expected:
            del self._inboxes[batch]
        return answers

    async def _work(self, batch: int, requests: Sequence[Request], alone: bool) -> None:
        inbox = self._inboxes[batch]
        answers = sum(request.num_branches for request in requests)
        doing = "answering its first request" if batch == FIRST_REQUEST else f"sampling {answers} answers"
        try:
            await self._engine.run(doing, self._sample(inbox, requests, alone))
        except Exception as error:
            inbox.put(error)

    async def _sample(self, inbox: _Inbox, requests: Sequence[Request], alone: bool) -> None:
        prompts = [(request.prompt_ids, _sampling(request)) for request in requests]
        async with self._turn:
            collectors = await (self._enter(prompts) if alone else self._add(prompts))
            if alone:
                await self._deliver(inbox, collectors)
        if not alone:
            await self._deliver(inbox, collectors)

    async def _enter(self, prompts: Sequence[tuple[Sequence[int], SamplingParams]]) -> list[Any]:
        """Hand the prompts to vLLM, which schedules none before it has all of them."""
        await self._llm.engine_core.pause_scheduler_async("keep", False)
        collectors = await self._add(prompts)
        await self._llm.engine_core.resume_scheduler_async()
        return collectors

    async def _add(self, prompts: Sequence[tuple[Sequence[int], SamplingParams]]) -> list[Any]:
        from vllm.inputs import tokens_input

        collectors = []
        for ids, sampling in prompts:
            self._requests += 1
            name = f"{self._index}-{self._requests}"
            collectors.append(await self._llm.add_request(name, tokens_input(list(ids)), sampling))
        return collectors

    async def _deliver(self, inbox: _Inbox, collectors: Sequence[Any]) -> None:
        async def one(position: int) -> None:
            branches = self._branches(await _last(collectors[position]))
            self._counted.finished(sum(len(branch.token_ids) for branch in branches))
            inbox.put((position, branches))

        self._counted.asked(len(collectors))
        await asyncio.gather(*(one(position) for position in range(len(collectors))))

    def _branches(self, output: Any) -> list[Branch]:
        ids = [list(completion.token_ids) for completion in output.outputs]
        texts, raw = (self._tokenizer.batch_decode(ids, skip_special_tokens=skip) for skip in (True, False))
        return [
            Branch(
                token_ids=list(completion.token_ids),
                text=text,
                raw_text=raw_text,
                logprobs=list(completion.logprobs.logprobs),
                finish_reason=completion.finish_reason,
                weight_versions=tuple(
                    WeightSpan(version=_version(span.version), start=span.start, end=span.end)
                    for span in completion.weight_versions or ()
                ),
            )
            for completion, text, raw_text in zip(output.outputs, texts, raw, strict=True)
        ]

    async def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return the log-probabilities of each sequence's tokens but its first, from one prefill at temperature 1."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = SamplingParams(
            max_tokens=PROBE_TOKENS,
            temperature=0,
            prompt_logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

        async def probe() -> list[Any]:
            async with self._turn:
                with working("probe"):
                    return [await _last(asked) for asked in await self._enter([(ids, sampling) for ids in sequences])]

        outputs = await self._engine.run("scoring the probes of the consistency gate", probe())
        return [
            [float(step[token].logprob) for step, token in zip(output.prompt_logprobs[1:], ids[1:], strict=True)]
            for output, ids in zip(outputs, sequences, strict=True)
        ]

    # -- weights: vLLM's own protocol, forwarded ----------------------------------------------------------

    async def init_weight_transfer_engine(self, request: WeightTransferInitRequest) -> None:
        await self._engine.run("connecting to the trainer", self._llm.init_weight_transfer_engine(request))

    async def start_weight_update(self) -> None:
        await self._engine.run("receiving weights", self._llm.start_weight_update())

    async def update_weights(self, request: WeightTransferUpdateRequest) -> None:
        with working("receive weights"):
            await self._engine.run("receiving weights", self._llm.update_weights(request))

    async def finish_weight_update(self) -> None:
        await self._engine.run("receiving weights", self._llm.finish_weight_update())

    async def load_weights(self, request: WeightTransferUpdateRequest) -> None:
        """Make one update from start to end. vLLM takes calls in order, so none waits for another's answer."""
        await asyncio.gather(self.start_weight_update(), self.update_weights(request), self.finish_weight_update())

    async def arrived(self) -> list[tuple[dict[str, int], list[str]]]:
        """Return, for each worker, digests of what it received in the last sync and what of it it does not hold."""
        with working("check weights"):
            return list(await self._llm.collective_rpc("arrived"))

    async def pause(self) -> None:
        """Freeze running requests where they are; their next tokens come from whatever weights are there then."""
        await self._engine.run("pausing", self._llm.pause_generation(mode="keep", clear_cache=False))

    async def receive(self, version: int) -> None:
        """Label new weights, forget prefixes computed with the old ones, and go on generating."""
        calls = asyncio.gather(
            self._llm.update_weight_version(str(version)),
            self._llm.reset_prefix_cache(),
            self._llm.resume_generation(),
        )
        await self._engine.run("taking up new weights", calls)

    async def sleep(self) -> None:
        """Free the device for the trainer: weights are dropped (they come back by sync), so is the KV cache."""
        await self._engine.run("going to sleep", self._llm.sleep(level=2))

    async def wake(self, tag: str) -> None:
        """Allocate again: `weights` before a sync, `kv_cache` after it."""
        await self._engine.run("waking up", self._llm.wake_up([tag]))

    def close(self) -> None:
        from vllm.utils.async_utils import cancel_task_threadsafe

        if self._llm is not None:
            # vLLM ends its engine first, and this task, where it runs on a loop of another thread, reports that as a
            # failure.
            cancel_task_threadsafe(self._llm.output_handler)
            self._llm.shutdown()
            self._llm = None


def _sampling(request: Request) -> SamplingParams:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        n=request.num_branches,
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        seed=request.seed,
        stop=list(request.stop) or None,
        stop_token_ids=list(request.stop_ids) or None,
        logprobs=0,
        flat_logprobs=True,
        # Texts are decoded once at the end; stop strings alone need them on the way.
        detokenize=bool(request.stop),
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


async def _last(collector: Any) -> Any:
    """Return what a request's collector holds when all its branches have ended; raises what ended the engine."""
    while True:
        output = await collector.get()
        if output.finished:
            return output


def _version(label: str) -> int:
    """vLLM calls the weights it loaded itself `default`; they are version 0 of a run."""
    return int(label) if label.lstrip("-").isdigit() else 0
