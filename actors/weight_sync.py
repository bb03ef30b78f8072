"""Weights from the trainer's shards to running generators, by vLLM's own transfer protocol.

vLLM brings NCCL (separate GPUs) and CUDA IPC (shared GPUs); the gloo pair for CPUs is here. `ZeroSource`
feeds any of them from ZeRO shards, one layer at a time, and `WeightSender` is the one owner of a sync on the
trainer's side: every phase has a deadline, and an error names the phase and the engine. Every receiver follows what
arrives (`Followed`), so that the gate can ask whether the engine holds it.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, ClassVar

import torch
from vllm.distributed.utils import stateless_init_torch_distributed_process_group
from vllm.distributed.weight_transfer import (
    ParamMeta,
    TrainerWeightTransferEngine,
    WeightSource,
    WeightTransferEngine,
    WeightTransferEngineFactory,
    WeightTransferTrainerFactory,
)
from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    WeightTransferInitInfo,
    WeightTransferInitRequest,
    WeightTransferUpdateInfo,
    WeightTransferUpdateRequest,
    layerwise_groups,
)

from troupe.actors.adapters import in_checkpoint
from troupe.actors.arrivals import Arrivals, digest
from troupe.actors.engine import Engine
from troupe.actors.generator import GeneratorWorker
from troupe.actors.workers import DEATH_IS_KNOWN_S, Workers
from troupe.engines.arguments import pack_again
from troupe.errors import SyncError, TroupeError, first_line, sync_error
from troupe.hardware import hardware
from troupe.processes.sockets import listen
from troupe.timeline import RECORDER

Layer = list[tuple[str, str, list[int]]]
"""(name, dtype, shape) of each parameter of a layer."""


class ZeroSource(WeightSource):
    """The trainer's weights as vLLM's protocol wants them: gathered layer by layer, in the same order on every rank."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sent: dict[str, list[ParamMeta]] = {}
        """Name in the model -> what is sent of it, by the names of checkpoints, which vLLM's loaders read."""
        for name, dtype, shape in engine.weight_shapes():
            parts = in_checkpoint(engine.model, name, torch.empty(shape, dtype=dtype, device="meta"))
            self._sent[name] = [ParamMeta(part, dtype, tuple(tensor.shape)) for part, tensor in parts.items()]
        self.digests: dict[str, int] = {}
        """Of what rank 0 sent last, by name."""

    def metadata(self) -> list[ParamMeta]:
        return [part for parts in self._sent.values() for part in parts]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for names, tensors in self.iter_groups():
            yield from zip(names, tensors, strict=True)

    def iter_groups(self) -> Iterator[tuple[list[str], list[torch.Tensor]]]:
        groups = self._groups()
        for names, sent, tensors in zip(groups, self.groups(), self._engine.weights(groups), strict=True):
            parts = [part for name, tensor in zip(names, tensors, strict=True) for part in self._parts(name, tensor)]
            if self._engine.rank == 0:
                self.digests |= {name: digest(part) for name, part in zip(sent, parts, strict=True)}
            yield sent, parts

    def groups(self) -> list[list[str]]:
        """Return the names that are sent, layer by layer."""
        return [[part.name for name in names for part in self._sent[name]] for names in self._groups()]

    def _groups(self) -> list[list[str]]:
        return layerwise_groups(list(self._sent))

    def _parts(self, name: str, tensor: torch.Tensor) -> list[torch.Tensor]:
        if [part.name for part in self._sent[name]] == [name]:
            return [tensor]
        parts = in_checkpoint(self._engine.model, name, tensor)
        return [parts[part.name] for part in self._sent[name]]


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """All that a generator's worker needs to join the group: the trainer's rank 0 is rank 0 of it."""

    host: str
    port: int
    first_rank: int
    """Rank of this engine's first worker."""
    world_size: int
    timeout_s: float


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """The parameters of one update, in layer groups: each group arrives as one flat buffer."""

    groups: list[Layer]

    @property
    def names(self) -> list[str]:
        return [name for group in self.groups for name, _, _ in group]


class Followed(WeightTransferEngine[Any, Any]):
    """A receiver that knows what arrived; mixed in before vLLM's classes and ours."""

    _arrivals: Arrivals | None = None
    _turn = 0
    _announced: Sequence[str] = ()

    def start_weight_update(self) -> None:
        self._arrivals, self._announced = Arrivals(self.model, self._turn), []
        self._turn += 1
        super().start_weight_update()
        self._arrivals.begin()

    def receive_weights(self, update_info: Any) -> None:
        assert self._arrivals is not None
        self._announced = [*self._announced, *update_info.names]
        with self._arrivals.watching():
            super().receive_weights(update_info)

    def arrived(self) -> tuple[dict[str, int], list[str]]:
        """Return (digest of each tensor received, what this worker does not hold as it was sent) of the last sync."""
        assert self._arrivals is not None, "nothing was sent yet"
        arrivals, self._arrivals = self._arrivals, None
        return arrivals.report(self._announced, whole=self.parallel_config.world_size == 1)


class GlooReceiver(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """vLLM's side on a CPU."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo
    _group: Any = None

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        rank = init_info.first_rank + self.parallel_config.rank
        self._timeout = timedelta(seconds=init_info.timeout_s)
        self._group = _gloo_group(init_info.host, init_info.port, rank, init_info.world_size, self._timeout)

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # The base class synchronises an accelerator afterwards, which a CPU build does not have.
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        for members, flat in self._arriving(update_info.groups):
            pieces = zip(members, flat.split([_numel(shape) for _, shape in members]), strict=True)
            self.model.load_weights([(name, piece.view(shape)) for (name, shape), piece in pieces])

    def _arriving(self, groups: list[Layer]) -> Iterator[tuple[list[tuple[str, list[int]]], torch.Tensor]]:
        """Yield the members of each flat buffer and the buffer; the next one is on its way meanwhile."""
        awaited: deque[Any] = deque()
        for dtype, members in (part for group in groups for part in _by_dtype(group).items()):
            flat = torch.empty(sum(_numel(shape) for _, shape in members), dtype=getattr(torch, dtype))
            awaited.append((members, flat, self._group.broadcast(flat, 0)))
            if len(awaited) > 1:
                yield self._arrived(*awaited.popleft())
        yield from (self._arrived(*each) for each in awaited)

    def _arrived(self, members: Any, flat: torch.Tensor, work: Any) -> tuple[Any, torch.Tensor]:
        work.wait(self._timeout)
        return members, flat

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        pack_again(self.model)

    def shutdown(self) -> None:
        self._group = None


@dataclass
class GlooTrainerInitInfo(TrainerInitInfo):
    """The trainer's side of the same group."""

    backend: ClassVar[str] = "gloo"

    host: str
    port: int
    world_size: int
    timeout_s: float


class GlooSender(TrainerWeightTransferEngine[GlooTrainerInitInfo]):
    """The trainer's side on a CPU: rank 0 broadcasts each layer's flat buffer, the others join the gathers."""

    init_info_cls = GlooTrainerInitInfo
    _group: Any = None

    @classmethod
    def trainer_init(
        cls, init_info: GlooTrainerInitInfo, *, client: Any, source: WeightSource | None = None
    ) -> GlooSender:
        sender = cls(client=client, source=source, is_sender=init_info.is_sender)
        sender._timeout = timedelta(seconds=init_info.timeout_s)
        if sender.is_sender:
            settings = GlooInitInfo(
                host=init_info.host,
                port=init_info.port,
                first_rank=1,
                world_size=init_info.world_size,
                timeout_s=init_info.timeout_s,
            )
            # Both sides wait for each other in the rendezvous, so the call to the engines runs beside ours.
            with _beside(client.init_weight_transfer_engine, asdict(settings)):
                sender._group = _gloo_group(init_info.host, init_info.port, 0, init_info.world_size, sender._timeout)
        return sender

    def send_weights(self) -> None:
        assert isinstance(self.source, ZeroSource)
        if not self.is_sender:
            for _ in self.source.iter_groups():
                pass
            return
        meta = {info.name: info for info in self.source.metadata()}
        described = [
            [(name, str(meta[name].dtype).removeprefix("torch."), list(meta[name].shape)) for name in names]
            for names in self.source.groups()
        ]
        with _beside(self.client.load_weights, asdict(GlooUpdateInfo(groups=described))):
            on_their_way: deque[Any] = deque()
            for group, (_, tensors) in zip(described, self.source.iter_groups(), strict=True):
                by_name = {name: tensor for (name, _, _), tensor in zip(group, tensors, strict=True)}
                for members in _by_dtype(group).values():
                    flat = torch.cat([by_name[name].flatten() for name, _ in members]).cpu()
                    on_their_way.append(self._group.broadcast(flat, 0))
                    if len(on_their_way) > 1:  # the next layer is gathered while one travels
                        on_their_way.popleft().wait(self._timeout)
            for work in on_their_way:
                work.wait(self._timeout)


def _numel(shape: list[int]) -> int:
    return int(torch.Size(shape).numel())


def _by_dtype(group: Layer) -> dict[str, list[tuple[str, list[int]]]]:
    """Members of a layer by dtype, in order: one flat buffer holds one dtype."""
    members: dict[str, list[tuple[str, list[int]]]] = {}
    for name, dtype, shape in group:
        members.setdefault(dtype, []).append((name, shape))
    return members


def _gloo_group(host: str, port: int, rank: int, world_size: int, timeout: timedelta) -> Any:
    return stateless_init_torch_distributed_process_group(
        host,
        port,
        rank,
        world_size,
        backend="gloo",
        timeout=timeout,
        listen_socket=listen(host, port) if rank == 0 else None,
    )


class _beside:
    """Run a call in a thread while the body runs. Its error is the one that is raised: when an engine refuses or dies,
    our own side only sees a peer that went away, and sees it first. After the body failed, the call gets a few seconds:
    it may wait for us.
    """

    def __init__(self, call: Callable[..., Any], *args: Any) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._future = self._pool.submit(call, *args)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            if error is None:
                self._future.result()
            else:
                with contextlib.suppress(TimeoutError):
                    self._future.result(DEATH_IS_KNOWN_S)
        finally:
            self._pool.shutdown(wait=False)


class EngineClient:
    """vLLM's control calls to every engine of a generator group, each phase with its deadline."""

    def __init__(self, generators: Workers[GeneratorWorker], timeout_s: float) -> None:
        self._generators = generators
        self._timeout_s = timeout_s

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Join each engine at its own rank: vLLM's dict describes the first engine, the others follow it."""
        workers = (init_info.get("world_size", self._generators.size + 1) - 1) // self._generators.size
        rank_key = next((key for key in ("first_rank", "rank_offset") if key in init_info), None)
        futures = []
        for index in range(self._generators.size):
            info = dict(init_info)
            if rank_key is not None:
                info[rank_key] = init_info[rank_key] + index * workers
            request = WeightTransferInitRequest(init_info=info)
            futures.append(self._generators.submit(index, GeneratorWorker.init_weight_transfer_engine, request))
        self._wait(futures, "connect")

    def start_weight_update(self) -> None:
        self._wait(self._generators.start(GeneratorWorker.start_weight_update), "start")

    def update_weights(self, update_info: Any) -> None:
        request = WeightTransferUpdateRequest(update_info=update_info)
        self._wait(self._generators.start(GeneratorWorker.update_weights, request), "transfer")

    def load_weights(self, update_info: Any) -> None:
        """Make the three calls above and below as one: where a sync takes milliseconds, each call counts."""
        request = WeightTransferUpdateRequest(update_info=update_info)
        self._wait(self._generators.start(GeneratorWorker.load_weights, request), "transfer")

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._wait(self._generators.start(GeneratorWorker.finish_weight_update), "finish")

    def _wait(self, futures: list[Any], phase: str) -> None:
        try:
            with RECORDER.span(f"sync: {phase}"):
                self._generators.gather(futures, self._timeout_s, phase)
        except TroupeError as error:
            raise sync_error(f"weight sync failed in phase {phase!r}: {error}", error) from None


class WeightSender:
    """Owner of the sync in a trainer rank; `send` is a collective of all ranks."""

    def __init__(
        self,
        engine: Engine,
        generators: Workers[GeneratorWorker],
        *,
        transport: str,
        host: str,
        port: int,
        num_receivers: int,
        timeout_s: float,
    ) -> None:
        """Prepare to send; `num_receivers` counts the workers of all engines (engines x tensor-parallel size)."""
        register()
        info = _trainer_init_info(transport, engine.rank, host, port, num_receivers + 1, timeout_s)
        client = EngineClient(generators, timeout_s)
        self._source = ZeroSource(engine)
        self._sender = WeightTransferTrainerFactory.trainer_init(info, client=client, source=self._source)

    def send(self) -> dict[str, int]:
        """Push the current weights to every engine; the digest of each tensor, in rank 0. Raises SyncError, never waits
        for ever."""
        try:
            self._sender.send_weights()
        except RuntimeError as error:  # gloo's and NCCL's own timeouts and broken connections
            raise SyncError(f"weight sync failed in phase 'transfer': {first_line(error)}") from error
        return self._source.digests


def _trainer_init_info(
    transport: str, rank: int, host: str, port: int, world_size: int, timeout_s: float
) -> TrainerInitInfo:
    if transport == "gloo":
        return GlooTrainerInitInfo(rank=rank, host=host, port=port, world_size=world_size, timeout_s=timeout_s)
    if transport == "nccl":
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        return NCCLTrainerInitInfo(rank=rank, master_address=host, master_port=port, world_size=world_size)
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

    return IPCTrainerInitInfo(rank=rank, packed=True)


def register() -> None:
    """Make vLLM know the gloo transport, in this process; idempotent. Also vLLM's plugin entry point."""
    if "gloo" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("gloo", _followed(GlooReceiver))
        if hardware().device == "cuda":
            _follow_vllms_own()
    if "gloo" not in WeightTransferTrainerFactory._registry:
        WeightTransferTrainerFactory.register_engine("gloo", GlooSender)


def _follow_vllms_own() -> None:
    """Put followed receivers in the place of vLLM's for NCCL and CUDA IPC. Not run yet: it needs GPUs."""
    from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

    for name, receiver in (("nccl", NCCLWeightTransferEngine), ("ipc", IPCWeightTransferEngine)):
        del WeightTransferEngineFactory._registry[name]
        WeightTransferEngineFactory.register_engine(name, _followed(receiver))


def _followed(receiver: type[WeightTransferEngine[Any, Any]]) -> type[WeightTransferEngine[Any, Any]]:
    return type(f"Followed{receiver.__name__}", (Followed, receiver), {})


class WeightSyncExtension:
    """Named to vLLM as its worker extension: importing it registers the transport in vLLM's worker process, also
    where this code came with Ray's working directory and is not installed."""

    weight_transfer_engine: Followed

    def arrived(self) -> tuple[dict[str, int], list[str]]:
        """Return what this worker received in the last sync, and what of it it does not hold."""
        return self.weight_transfer_engine.arrived()


register()
