"""Placement: which role gets which devices, as a table that is printed at the start and kept in the report.

A role's rank runs in a bundle of one placement group. `colocated` gives policy and generators the same bundles,
used in turn; `separate` gives each role its own. On CPUs bundles only say where a process runs.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from troupe.actors.meters import RUN
from troupe.actors.workers import PRIVATE, Deadlines, InlineWorkers, RayWorkers, Slot, Workers, own_address
from troupe.config.grpo import GRPOConfig, PPOConfig
from troupe.config.models import GeneratorConfig, PlacementConfig
from troupe.config.run import RunConfig
from troupe.config.supervised import GeneratingConfig, SupervisedConfig
from troupe.errors import ConfigError, WorkerError
from troupe.hardware import Hardware, hardware
from troupe.processes.futures import wait_all
from troupe.processes.logs import ProcessLogs
from troupe.processes.stopping import keeping_sigterm
from troupe.processes.waiting import waiting
from troupe.project import ROOT
from troupe.timeline import Entry

log = logging.getLogger(__name__)

W = TypeVar("W")

START_ATTEMPTS = 3
SOCKET_PATH_BYTES = 107


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlacement:
    """One rank of a role: its bundle, and how many GPUs the bundle holds and the rank takes."""

    role: str
    rank: int
    bundle: int
    bundle_gpus: int
    num_gpus: float


GPU_SHARES = {"policy": 0.3, "critic": 0.2, "reference": 0.2, "reward_model": 0.15, "perplexity": 0.15}
"""What roles that work in turn take of a shared GPU in Ray's books; a generator, asleep meanwhile, takes nothing."""


def placement_table(config: GRPOConfig | SupervisedConfig, *, device: str) -> list[RankPlacement]:
    """Give every rank of every role its bundle. Raises ConfigError when the roles cannot share."""
    colocated = config.placement.mode == "colocated"
    if isinstance(config, SupervisedConfig):
        generator = config.generator if isinstance(config, GeneratingConfig) and config.generation is not None else None
        return policy_placement(config.engine.num_ranks, generator, colocated=colocated, gpu=int(device == "cuda"))
    if colocated and device == "cuda" and config.rollout.max_lag > 0:
        raise ConfigError(
            f"rollout.max_lag ({config.rollout.max_lag}) lets generation and training overlap, which on shared GPUs "
            "they cannot; set placement.mode: separate, or max_lag: 0"
        )
    others = {}
    if isinstance(config, PPOConfig):
        others["critic"] = config.critic.num_ranks
    if config.kl_needs_reference and config.reference.source == "own_weights":
        others["reference"] = config.reference.num_ranks
    if config.reward_model is not None:
        others["reward_model"] = config.reward_model.num_ranks
    if config.perplexity_reward is not None and not config.scorer_is_reference:
        others["perplexity"] = config.perplexity_reward.num_ranks
    table = policy_placement(
        config.policy.num_ranks, config.generator, others=others, colocated=colocated, gpu=int(device == "cuda")
    )
    return table + [
        RankPlacement(
            role="rewarder",
            rank=rank,
            bundle=rank % config.policy.num_ranks,
            bundle_gpus=table[0].bundle_gpus,
            num_gpus=0,
        )
        for rank in range(config.rewarder.num_workers)
    ]


def policy_placement(
    ranks: int, generator: GeneratorConfig | None, *, others: Mapping[str, int] = {}, colocated: bool, gpu: int
) -> list[RankPlacement]:
    """Place a policy with `ranks` ranks, its generators, and further roles by their number of ranks.

    Colocated roles share the policy's bundles; otherwise each rank has a bundle of its own. `gpu` is 1 or 0.
    """
    table = [
        RankPlacement(
            role="policy",
            rank=rank,
            bundle=rank,
            bundle_gpus=gpu,
            num_gpus=gpu * (GPU_SHARES["policy"] if colocated else 1),
        )
        for rank in range(ranks)
    ]
    next_bundle = ranks
    if generator is not None:
        engines, width = generator.num_engines, generator.tensor_parallel_size
        if colocated and gpu and engines * width > ranks:
            raise ConfigError(
                f"placement.mode colocated puts generator.num_engines x tensor_parallel_size ({engines} x {width}) on "
                f"the policy's GPUs, of which there are {ranks} (policy.num_ranks); lower the engines, raise the "
                "ranks, or set placement.mode: separate"
            )
        table += [
            RankPlacement(
                role="generator",
                rank=engine,
                bundle=(engine * width) % ranks if colocated else next_bundle + engine,
                bundle_gpus=gpu * (1 if colocated else width),
                num_gpus=0 if colocated else gpu * width,
            )
            for engine in range(engines)
        ]
        next_bundle += 0 if colocated else engines
    for role, count in others.items():
        table += [
            RankPlacement(
                role=role,
                rank=rank,
                bundle=rank % ranks if colocated else next_bundle + rank,
                bundle_gpus=gpu,
                num_gpus=gpu * (GPU_SHARES[role] if colocated else 1),
            )
            for rank in range(count)
        ]
        next_bundle += 0 if colocated else count
    _require_room(table, ranks)
    return table


def _require_room(table: Sequence[RankPlacement], ranks: int) -> None:
    """Raise ConfigError where roles take more of a shared GPU than there is: Ray would wait for it without end."""
    for bundle in range(ranks):
        sharing = [place for place in table if place.bundle == bundle]
        taken = sum(place.num_gpus for place in sharing)
        if taken > sharing[0].bundle_gpus + 1e-6:
            roles = [place.role for place in sharing]
            most = max(dict.fromkeys(roles), key=roles.count)
            section = "perplexity_reward" if most == "perplexity" else most
            raise ConfigError(
                f"placement.mode colocated puts all ranks of {section}.num_ranks on the policy's GPUs, of which there "
                f"are {ranks} (policy.num_ranks), and the roles on one of them take {taken:.2f} of it; set "
                f"{section}.num_ranks to {ranks}, or placement.mode: separate"
            )


class Cluster:
    """The place where roles run: a Ray cluster with reserved bundles, or this process."""

    def __init__(self, config: PlacementConfig, run: RunConfig | None = None) -> None:
        """Join or start Ray; workers record metrics and timelines for `run`."""
        self._config = config
        self._deadlines = Deadlines(call_s=config.call_timeout_s, reply_s=config.reply_timeout_s)
        self.inline = config.backend == "inline"
        self._temporary = None if self.inline else private_directory()
        self._env = {} if self._temporary is None else {"TMPDIR": str(self._temporary)}
        if run is not None:
            self._env[RUN] = run.name
        self._restarts = run.max_restarts if run is not None else 0
        self._logs = ProcessLogs(run.path) if run is not None else None
        self._workers: list[Workers[Any]] = []
        self._started_ray = False
        self._reservation: Any = None
        self._table: list[RankPlacement] = []
        self._machines: dict[int, str] = {}
        """Address of the machine that holds each bundle."""
        self._environ = dict(os.environ)
        if self._temporary is not None:
            metrics_port = run.watch.metrics_port if run is not None else 0
            with keeping_sigterm(), waiting("Ray starts"):
                self._started_ray = _connect(config.address, metrics_port, session_directory(self._temporary))
        self.machine: Hardware = hardware() if self.inline else _cluster_hardware()

    @property
    def computes_here(self) -> bool:
        """Whether this machine's processor computes everything: no GPU, no other machine."""
        if self.machine.device == "cuda" or self.inline:
            return self.machine.device == "cpu"
        import ray

        return all(node["NodeManagerAddress"] == own_address() for node in ray.nodes() if node["Alive"])

    def reserve(self, table: Sequence[RankPlacement], timeout_s: float) -> None:
        """Reserve the bundles of `table`; a WorkerError names what the cluster lacks."""
        self._table = list(table)
        if self.inline:
            return
        import ray
        from ray.util.placement_group import placement_group

        gpus = {place.bundle: place.bundle_gpus for place in sorted(table, key=lambda place: place.bundle)}
        bundles = [{"CPU": 1.0, **({"GPU": float(count)} if count else {})} for count in gpus.values()]
        wanted = {kind: sum(bundle.get(kind, 0.0) for bundle in bundles) for kind in ("CPU", "GPU")}
        offered = ray.cluster_resources()
        short = {kind: amount for kind, amount in wanted.items() if amount > offered.get(kind, 0.0)}
        if short:
            needs = ", ".join(
                f"{amount:g} {kind} (the cluster has {offered.get(kind, 0.0):g})" for kind, amount in short.items()
            )
            raise ConfigError(
                f"the placement needs {needs}; lower policy.num_ranks or generator.num_engines, set placement.mode: "
                f"colocated, or add machines"
            )
        self._reservation = placement_group(bundles, strategy="PACK")
        late = WorkerError(
            f"the cluster did not free {wanted} within {timeout_s:.0f} s; `ray status` shows who holds what"
        )
        with waiting("the cluster makes room"):
            wait_all([self._reservation.ready().future()], timeout_s, late=lambda _: late)
        self._machines = self._holders()

    def _holders(self) -> dict[int, str]:
        """Return the address of the machine that holds each bundle; `""` while none does."""
        import ray
        from ray.util.placement_group import placement_group_table

        alive = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
        held = placement_group_table(self._reservation)["bundles_to_node_id"]
        return {bundle: alive.get(node, "") for bundle, node in held.items()}

    def moves(self) -> list[str]:
        """Return sentences on the bundles that have another machine, or none, since the last look: those of a machine
        that is lost Ray places anew by itself, where and when there is room.
        """
        if set(self._machines.values()) <= {own_address()}:
            return []
        before, self._machines = self._machines, self._holders()
        sentences = []
        for bundle, machine in self._machines.items():
            if machine != before[bundle]:
                roles = ", ".join(f"{place.role} {place.rank}" for place in self._table if place.bundle == bundle)
                lost = f"the machine {before[bundle]} is lost, and " if before[bundle] else ""
                sentences.append(f"{lost}{roles} {f'go to {machine}' if machine else 'wait for a machine with room'}")
        return sentences

    def require_shared(self, directory: Path) -> None:
        """Raise ConfigError unless every machine of the reservation sees `directory`, which trainers write and read.

        Where all roles sit on the driver's machine this costs nothing.
        """
        away = {machine: bundle for bundle, machine in self._machines.items() if machine != own_address()}
        if not away:
            return
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".seen-") as probe:
            slots = [Slot(placement_group=self._reservation, bundle=bundle) for bundle in away.values()]
            looking = RayWorkers(PathProbe, [{}] * len(slots), role="witness", slots=slots)
            try:
                seen = looking.call(PathProbe.sees, str(Path(probe.name).resolve()))
            finally:
                looking.shutdown()
        blind = [machine for machine, sees in zip(away, seen, strict=True) if not sees]
        if blind:
            raise ConfigError(
                f"the run directory {directory} is not the same on {', '.join(blind)}, where roles of this run sit; "
                "set run.directory to a full path on a file system that all machines mount, or keep the run on one "
                "machine"
            )

    def workers(
        self,
        worker_cls: Callable[..., W],
        arguments: Sequence[dict[str, Any]],
        *,
        role: str,
        max_concurrency: int = 1,
        stateless: bool = False,
    ) -> Workers[W]:
        """Start the workers of a role in their placement; roles without a placement (a warm start) run anywhere.

        `stateless`: calls may be repeated on one that was started anew, which Ray does `run.max_restarts` times.
        """
        if self.inline:
            return InlineWorkers(worker_cls, arguments, role=role)
        places = {place.rank: place for place in self._table if place.role == role}
        slots = [
            Slot(
                placement_group=self._reservation,
                bundle=places[rank].bundle,
                num_gpus=places[rank].num_gpus,
                env=self._env,
            )
            if rank in places
            else Slot(num_gpus=1.0 if self.machine.device == "cuda" else 0.0, env=self._env)
            for rank in range(len(arguments))
        ]
        workers = RayWorkers(
            worker_cls,
            arguments,
            role=role,
            slots=slots,
            max_concurrency=max_concurrency,
            logs=self._logs,
            deadlines=self._deadlines,
            restarts=self._restarts if stateless else 0,
        )
        self._workers.append(workers)
        return workers

    def spans(self, since_ns: int) -> list[Entry]:
        """Return what the workers did after `since_ns`; inline they share the driver's record."""
        return [entry for workers in self._workers for entry in workers.spans(since_ns)]

    def metrics_addresses(self) -> list[str]:
        """Return where Ray's agents show the metrics of their machines to Prometheus: `host:port`."""
        if self.inline:
            return []
        import ray

        return [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes() if node["Alive"]]

    def rows(self) -> list[dict[str, Any]]:
        """Return the table for people and the report."""
        where = "this process" if self.inline else "bundle"
        return [
            {
                "role": place.role,
                "rank": place.rank,
                "place": where if self.inline else f"{where} {place.bundle}",
                "machine": "" if self.inline else self._machines[place.bundle],
                "device": f"{place.bundle_gpus} GPU, {'shared' if place.num_gpus < place.bundle_gpus else 'own'}"
                if place.bundle_gpus
                else "CPU",
            }
            for place in self._table
        ]

    def close(self) -> None:
        """Give the bundles back, end Ray if it was started here, and put this process's environment back."""
        if self._logs is not None:
            self._logs.close()
        if self._temporary is None:  # what roles set for themselves here would be inherited by the next run's
            os.environ.clear()
            os.environ.update(self._environ)
            return
        import ray

        if self._reservation is not None:
            ray.util.remove_placement_group(self._reservation)
            self._reservation = None
        if self._started_ray:
            ray.shutdown()
        shutil.rmtree(self._temporary, ignore_errors=True)


def private_directory() -> Path:
    """Make a directory for what the processes of a run leave in the temporary one, such as vLLM's sockets; remove those
    of runs whose drivers are gone. On another machine, where it is not, Python takes the usual one."""
    for path in Path(tempfile.gettempdir()).glob(f"{PRIVATE}*-*"):
        driver = path.name.removeprefix(PRIVATE).partition("-")[0]
        if driver.isdigit() and not psutil.pid_exists(int(driver)):
            shutil.rmtree(path, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{PRIVATE}{os.getpid()}-"))


def session_directory(private: Path) -> str | None:
    """Return where a Ray that is started here keeps its sessions, which it opens to every user of the machine: in a
    directory that is closed to them. None, for Ray's own choice, where RAY_TMPDIR names one or a socket's path would be
    too long.
    """
    directory = private / "ray"
    longest = directory / "session_2026-01-01_00-00-00_000000_4194304" / "sockets" / "plasma_store"
    fits = len(os.fsencode(longest)) <= SOCKET_PATH_BYTES
    return str(directory) if fits and "RAY_TMPDIR" not in os.environ else None


class PathProbe:
    """A process on a machine, asked what is there."""

    def sees(self, path: str) -> bool:
        return Path(path).exists()


def starts_on_this_cpu(config: PlacementConfig) -> bool:
    """Return whether a stage will start on this machine alone, which has no GPU: no Ray cluster is named."""
    named = config.address or os.environ.get("RAY_ADDRESS")
    return hardware().device == "cpu" and (config.backend == "inline" or not named)


def _connect(address: str | None, metrics_port: int, sessions: str | None) -> bool:
    """Join the cluster at `address` or RAY_ADDRESS, or start one on loopback; whether it was started here."""
    if not (address or os.environ.get("RAY_ADDRESS")):
        # Without it Ray takes the machine's own address in place of loopback; it is read when ray is imported.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    if ray.is_initialized():
        return False
    address = address or os.environ.get("RAY_ADDRESS")
    paths = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "runtime_env": {"env_vars": {"PYTHONPATH": paths}}}
    try:
        if address is not None:
            # A job's working directory is on its path already, on every machine.
            ray.init(
                address=address,
                **{**quiet, "runtime_env": {}} if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else quiet,
            )
            return False
        bring_token()
        _start_ray(_metrics_export_port=metrics_port or None, _temp_dir=sessions, **quiet)
    except Exception as error:  # a slow start is a bare Exception of Ray's
        where = f"the Ray cluster at {address!r}" if address else "a local Ray cluster"
        raise WorkerError(
            f"cannot reach {where}: {(str(error) or type(error).__name__).splitlines()[0]}; `ray status` shows "
            "clusters, `python jobs/doctor.py` checks ports and the authentication token (RAY_AUTH_MODE=token)"
        ) from None
    return address is None


def bring_token() -> None:
    """Give the Ray that is started here a token of its own where Ray could not keep one in the home directory."""
    if any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return
    try:
        kept = Path.home() / ".ray" / "auth_token"
        if kept.exists():
            kept.read_text()
            return
        kept.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=kept.parent):
            return
    except (OSError, RuntimeError):  # a home that cannot be written, or none
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _start_ray(**options: Any) -> None:
    """Start a Ray on loopback; again where it took more than the 30 s that Ray grants its own start."""
    import ray

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray gives its workers the lowest share of a busy machine (nice 15); here they are what the machine is for.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Where /dev/shm is small the object store lies in /tmp; by itself Ray refuses that on a machine of much memory.
    os.environ.setdefault("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE", "1")
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            # More workers than cores is fine: roles take turns. Nothing listens beyond loopback.
            ray.init(
                num_cpus=max(16, hardware().num_cores),
                include_dashboard=False,
                _node_ip_address="127.0.0.1",
                **options,
            )
            return
        except Exception as error:
            if attempt == START_ATTEMPTS or "timed out during startup" not in str(error):
                raise
            log.warning("Ray did not start within its 30 s, as on a busy machine; trying again")
            ray.shutdown()


def _cluster_hardware() -> Hardware:
    """Return what the workers run on; the driver itself may sit on a head node without GPUs."""
    import ray

    gpus = int(ray.cluster_resources().get("GPU", 0))
    if not gpus:
        return hardware()
    return Hardware(device="cuda", num_gpus=gpus, num_cores=hardware().num_cores, fast_bf16=True)
