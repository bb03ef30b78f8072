"""Trained models: a worker per rank around the engine, and the facade that shards batches over the ranks.

The policy, a critic, a reward model in training and a supervised model are all one of these; what is minimised is
handed over as an objective. A worker sees only its shard and talks to its peers through ZeRO's collectives.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import re
import socket
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from troupe.actors.layout import described
from troupe.actors.meters import working
from troupe.actors.trainer_state import LAYOUT, TRAINER_STATE
from troupe.actors.workers import Workers, own_address
from troupe.algorithms.hidden import inner_model
from troupe.algorithms.objective import Objective
from troupe.algorithms.packing import Batch
from troupe.algorithms.padding import pad_apart
from troupe.chat import tokenizer_record
from troupe.config.models import PolicyConfig
from troupe.errors import WorkerError
from troupe.files import read_json
from troupe.hardware import set_up_process
from troupe.processes.waiting import waiting
from troupe.runs.checkpoint import damage, model_identity
from troupe.timeline import RECORDER

log = logging.getLogger(__name__)

RENDEZVOUS_PORTS = (20_000, 32_000)
"""Above those of Ray's workers, below those that Linux gives to connections."""


def file_rank(name: str) -> int:
    """Return the rank that reads a file of a checkpoint: of ZeRO's its owner, of the others one or another."""
    found = re.search(r"pp_rank_(\d+)_", name)
    return int(found[1]) if found else zlib.crc32(name.encode())


class TrainedWorker:
    """One rank of a trained model."""

    def __init__(self, *, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        self._engine: Any = None
        self._away = False

    def address(self) -> tuple[str, int]:
        """Return a host and a free port of this rank's machine, for a rendezvous."""
        host = own_address()
        # The ranks meet there only once their libraries are loaded. A port that the system hands out by itself would
        # often be somebody else's by then.
        ports = random.SystemRandom().sample(range(*RENDEZVOUS_PORTS), 100)
        for port in ports:
            with contextlib.suppress(OSError), socket.socket() as probe:
                probe.bind((host, port))
                return host, port
        raise WorkerError(
            f"none of {len(ports)} ports tried between {RENDEZVOUS_PORTS[0]} and {RENDEZVOUS_PORTS[1]} of {host} is "
            f"free"
        )

    def devices(self) -> tuple[str, list[str]]:
        """Return (machine, GPU ids) of this rank, for a generator that shares them."""
        return own_address(), [part for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part]

    def start(
        self,
        hosts: Sequence[str],
        port: int,
        *,
        model_path: str,
        config: PolicyConfig,
        head: str,
        total_steps: int,
        seed: int,
        trust_remote_code: bool,
        keep_start: bool,
        chat: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        """Join the other ranks, which sit at `hosts`, at the first one's `port`, and load the model; facts about it."""
        set_up_process(rank=self.rank, hosts=hosts, master_port=port)
        from transformers import AutoTokenizer

        from troupe.actors.engine import Engine
        from troupe.actors.process_group import prepare_extension

        prepare_extension()
        self._tokenizer = AutoTokenizer.from_pretrained(model_path, trust_remote_code=trust_remote_code)
        if chat is not None:
            tokenizer_record(self._tokenizer, chat)
        num_tokens, scalar = len(self._tokenizer), head == "scalar"
        self._engine = Engine(
            model_path,
            config,
            head="scalar" if scalar else "vocabulary",
            pad_token=pad_apart(self._tokenizer) if scalar else None,
            total_steps=total_steps,
            trust_remote_code=trust_remote_code,
            seed=seed,
            keep_start=keep_start,
        )
        if chat is not None:
            keep_ends(inner_model(self._engine.model), chat["stop_ids"])
        shapes = self._engine.weight_shapes()
        return {
            "parameters": sum(int(torch.Size(shape).numel()) for _, _, shape in shapes),
            "bytes": sum(int(torch.Size(shape).numel()) * dtype.itemsize for _, dtype, shape in shapes),
            "checkpoint_bytes": self._engine.checkpoint_bytes(),
            "identity": model_identity(self._engine.model.config.to_dict(), num_tokens),
            "forward_path": str(self._engine.forward_path),
            "layout": self._engine.layout(),
        }

    def outputs(self, batch: Batch, *, at_start: bool = False, **options: Any) -> torch.Tensor:
        """Return [N]: the head's output at this rank's tokens; `at_start`: under the weights that the model started
        from. The other options are those of `Engine.outputs`.
        """
        self._back()
        with working("read"), self._engine.at_start() if at_start else contextlib.nullcontext():
            return self._engine.outputs(batch, **options)

    def update(self, minibatches: Sequence[Batch], *, objective: Objective) -> list[dict[str, float]]:
        """Make an optimizer step per minibatch; return the metrics of each."""
        self._back()
        metrics = []
        with working("update"):
            for batch in minibatches:
                with RECORDER.span("optimizer step"):
                    metrics.append(self._engine.update(batch, objective, **objective.options))
        return metrics

    def evaluate_loss(self, batch: Batch, *, objective: Objective) -> dict[str, float]:
        """Return the objective's metrics; nothing is trained."""
        self._back()
        with working("measure"):
            return self._engine.evaluate_loss(batch, objective, **objective.options)

    def set_score_mean(self, mean: float) -> None:
        """Set what a scalar head's output is lessened by, from now on and in what is saved."""
        self._engine.model.config.score_mean = mean

    def leave(self) -> None:
        """Free the device for the generators that share it."""
        self._engine.offload()
        self._away = True

    def save(self, directory: str, *, trainer_state: bool) -> None:
        self._back()
        with working("save"):
            self._engine.save(directory, self._tokenizer, trainer_state=trainer_state)

    def damage(self, directory: str) -> str | None:
        """Return what is wrong with this rank's share of a checkpoint's files: what the rank reads when it loads."""
        return damage(Path(directory), mine=lambda name: file_rank(name) % self.world_size == self.rank)

    def load(self, directory: str) -> None:
        self._engine.load(directory)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _back(self) -> None:
        if self._away:
            self._engine.reload()
            self._away = False


def keep_ends(model: Any, stop_ids: Sequence[int]) -> None:
    """Have generation_config.json, which engines read, name every token at which an answer ends."""
    generation = getattr(model, "generation_config", None)
    if generation is None:
        return
    own = generation.eos_token_id
    known = own if isinstance(own, list) else [] if own is None else [own]
    if not set(stop_ids) <= set(known):
        generation.eos_token_id = list(dict.fromkeys([*known, *stop_ids]))


W = TypeVar("W", bound=TrainedWorker)


class TrainedModel(Generic[W]):
    """A trained model, whatever number of ranks holds it."""

    def __init__(self, workers: Workers[W], config: PolicyConfig, *, name: str, head: str = "vocabulary") -> None:
        """Set up the model; `name` goes before metrics without a path of their own, such as `policy/grad_norm`."""
        self.workers, self.config = workers, config
        self.name, self.head = name, head
        self.facts: dict[str, Any] = {}

    def start(
        self,
        model_path: str,
        *,
        total_steps: int,
        seed: int,
        trust_remote_code: bool = False,
        keep_start: bool = False,
        chat: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin loading on every rank; `ready` waits for it. `keep_start`: see `Engine`. `chat`: what
        checkpoints keep of the conversation form.
        """
        self._options: dict[str, Any] = {
            "model_path": model_path,
            "config": self.config,
            "head": self.head,
            "total_steps": total_steps,
            "seed": seed,
            "trust_remote_code": trust_remote_code,
            "keep_start": keep_start,
            "chat": chat,
        }
        self._load()

    def _load(self) -> None:
        places = self._places()
        hosts, port = [host for host, _ in places], places[0][1]
        self._starting: list[Future[Any]] = self.workers.start(TrainedWorker.start, hosts, port, **self._options)

    def restart(self) -> None:
        """Start every rank again, with the weights that the model began with; all of them, because they hold shards of
        one another."""
        self.workers.restart(range(self.workers.size))
        self._load()
        self.ready()

    def ready(self) -> None:
        self.facts = self.workers.gather(self._starting, self.config.init_timeout_s, "loading the model")[0]

    def _places(self) -> list[tuple[str, int]]:
        """Return a host and a free port of every rank's machine; the ranks meet at rank 0's."""
        return self.workers.gather(self.workers.start(TrainedWorker.address), self.config.init_timeout_s, "its start")

    def outputs(self, batch: Batch, **options: Any) -> torch.Tensor:
        """Return [N]: the head's output at the batch's tokens, computed on all ranks."""
        shards = batch.split(self.workers.size)
        slim = [batch.select(shard).without_columns() for shard in shards]
        results = self.workers.scatter(TrainedWorker.outputs, slim, **options)
        values = torch.zeros(batch.num_tokens)
        for shard, result in zip(shards, results, strict=True):
            values[batch.tokens_of(shard)] = result
        return values

    def update(self, minibatches: Sequence[Batch], objective: Objective) -> dict[str, float]:
        """Make an optimizer step per batch (with `loss_weights`), sharded over the ranks by tokens; mean metrics."""
        sharded = [[batch.select(shard) for shard in batch.split(self.workers.size)] for batch in minibatches]
        by_rank = [list(shards) for shards in zip(*sharded, strict=True)]
        results = self.workers.scatter(TrainedWorker.update, by_rank, objective=objective)[0]
        names = {name for metrics in results for name in metrics}
        return self._named({name: sum(metrics.get(name, 0.0) for metrics in results) / len(results) for name in names})

    def evaluate_loss(self, batch: Batch, objective: Objective) -> dict[str, float]:
        """Return what `update` would log of this batch, with the weights as they are."""
        shards = [batch.select(shard) for shard in batch.split(self.workers.size)]
        return self._named(self.workers.scatter(TrainedWorker.evaluate_loss, shards, objective=objective)[0])

    def _named(self, metrics: dict[str, float]) -> dict[str, float]:
        return {name if "/" in name else f"{self.name}/{name}": value for name, value in metrics.items()}

    def set_score_mean(self, mean: float) -> None:
        """Make reference answers score 0 on average: what a scalar head's output is lessened by."""
        self.workers.call(TrainedWorker.set_score_mean, mean)

    def save(self, directory: str, *, trainer_state: bool = True) -> None:
        """Write Hugging Face format and, unless asked otherwise, what resuming needs."""
        self.workers.call(TrainedWorker.save, directory, trainer_state=trainer_state)

    def damage(self, directory: Path) -> str | None:
        """Return what is wrong with a checkpoint's files, all of which some rank reads; None where nothing is."""
        return next((problem for problem in self.workers.call(TrainedWorker.damage, str(directory)) if problem), None)

    def load(self, directory: str) -> None:
        """Continue from what `save` wrote, whatever its number of ranks, ZeRO stage and precision."""
        saved, here = read_json(Path(directory) / TRAINER_STATE / LAYOUT), self.facts["layout"]
        if saved is None or saved == here:
            self.workers.call(TrainedWorker.load, directory)
            return
        change = f"{self.name}: the checkpoint of {described(saved)} is laid out for {described(here)}"
        log.info("%s", change)
        with waiting(change):
            self.workers.call(TrainedWorker.load, directory)

    def shutdown(self) -> None:
        self.workers.shutdown()
