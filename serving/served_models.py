"""From what a person named to what an engine loads: where the model lies, and whether it can be served at all.

Everything that can be known from its files is asked here, before Ray and vLLM start: whether the checkpoint is whole,
whether vLLM knows the architecture, whether it fits in memory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from troupe.chat import load_form
from troupe.config.models import ConversationConfig
from troupe.config.rollout import ServedRewardModelConfig
from troupe.config.serve import ServeConfig, ServedModelConfig
from troupe.engines.parsers import Kind, chosen_parser
from troupe.errors import CheckpointError, ConfigError
from troupe.files import read_json
from troupe.hardware import available_memory_gib, hardware
from troupe.names import step_of
from troupe.runs.checkpoint import MANIFEST, CheckpointStore, model_damage
from troupe.runs.model_check import (
    SCALAR,
    check_model,
    kinds_of,
    longest_of,
    model_settings,
    require_vllm_knows,
)
from troupe.runs.model_paths import locate
from troupe.serving.games import Playable

CPU_LENGTH = 8192
"""Longest prompt and answer on a CPU where the recipe names none: prompts are prefilled whole there."""
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model that an engine can load."""

    name: str
    """What requests call it."""
    path: str
    """Directory, or hub name."""
    step: int | None
    """The training step of its weights, where its path says so."""
    max_length: int
    """Tokens of prompt and answer."""
    stored: str | None = None
    """Its address in an object store, for machines where `path` is not."""
    run: str | None = None
    """The run directory whose newer checkpoints take its place."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Name -> peft directory."""
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    chat_template: str | None = None
    """The text of a template in place of the model's own."""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What else /v1/models says of it."""
    game: Playable | None = None
    """What of its run can be played."""


def served_models(config: ServeConfig) -> list[Served]:
    """Return every model of the recipe, found and checked; CheckpointError or ConfigError names which cannot be served
    and why.
    """
    found = [
        _found(config, model, follow=config.follow if position == 0 else None)
        for position, model in enumerate(config.served)
    ]
    for scorer in config.all_scorers:
        if isinstance(scorer, ServedRewardModelConfig):
            check_model(scorer.path, field="reward_model", scalar=True, trust_remote_code=scorer.trust_remote_code)
    _require_memory(config, found)
    return found


def on_this_machine(served: Served) -> Served:
    """Fetched from the object store where the machine that asked for it is another one."""
    if served.stored is None or Path(served.path).is_dir():
        return served
    path = locate(served.stored, "best" if served.step is None else served.step)
    return replace(served, path=_absolute(path))


def require_whole(path: Path, *, tensors: Mapping[str, Sequence[int]] | None = None) -> None:
    """CheckpointError unless the model's files in `path` are those that its manifest names, byte by byte; and, where
    given, unless its tensors have these names and shapes.
    """
    path = path.resolve()  # `latest` and `best` are links
    step = step_of(path.name)
    if step is not None and (path / MANIFEST).exists():
        CheckpointStore(path.parent).verify(step)
        problem = model_damage(path)
        if problem is not None:
            raise CheckpointError(f"{path} cannot be used: {problem}; remove it, and an older checkpoint is taken")
    if tensors is None:
        return
    ours = tensor_shapes(path)
    for name in sorted({*ours, *tensors}):
        if ours.get(name) != tensors.get(name):
            raise CheckpointError(
                f"{path} is not a later step of the model that is served: {name} is {_shape(ours, name)} there and "
                f"{_shape(tensors, name)} in the model"
            )


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape, from the headers of the safetensors files of a directory."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(file, "np") as tensors:
                shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from None
    if not shapes:
        raise CheckpointError(f"{path} has no safetensors file; a model is served from one or several of them")
    return shapes


def _shape(shapes: Mapping[str, Sequence[int]], name: str) -> str:
    return f"of shape {list(shapes[name])}" if name in shapes else "absent"


def _found(config: ServeConfig, model: ServedModelConfig, *, follow: str | None) -> Served:
    checkpoint = model.step if model.step is not None else (config.following.checkpoint if follow else "best")
    if follow is not None and not (Path(follow) / "checkpoints").is_dir():
        raise ConfigError(
            f"follow needs a run directory, and {follow} is none; give one that has a directory checkpoints, or "
            f"leave follow out"
        )
    path = locate(model.source, checkpoint)
    settings = _settings(path)
    if any(kind.endswith(SCALAR) for kind in kinds_of(settings)):
        raise ConfigError(f"{path} is a reward model and writes no text; serve it as reward_model={path}")
    require_vllm_knows(path, settings)
    for name, adapter in model.adapters.items():
        if not (Path(adapter) / "adapter_config.json").is_file():
            raise CheckpointError(
                f"adapter {name!r}: there is no adapter_config.json in {adapter}; give a peft directory, as "
                f"jobs/export.py writes "
                "with adapter=apart"
            )
    step = step_of(Path(path).resolve().name)
    return Served(
        name=model.label,
        path=_absolute(path),
        step=step,
        max_length=_max_length(config, path, settings),
        stored=model.source if model.source.startswith("s3://") else None,
        run=None if follow is None else _absolute(follow),
        adapters={name: _absolute(adapter) for name, adapter in model.adapters.items()},
        metadata={"base": follow is None and step is None},
        **_conversations(config, model, path),
    )


def _conversations(config: ServeConfig, model: ServedModelConfig, path: str) -> dict[str, Any]:
    """Return the template, its settings and the parsers of a model; ConfigError for one that it does not have."""
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    settings = ConversationConfig(chat_template=model.chat_template, chat_template_kwargs=model.chat_template_kwargs)
    form = load_form(path, settings.chat_settings, trust_remote_code=config.trust_remote_code)
    known: dict[Kind, list[str]] = {
        "tool_call_parser": sorted(ToolParserManager.list_registered()),
        "reasoning_parser": sorted(ReasoningParserManager.list_registered()),
    }
    return {
        "chat_template": settings.chat_settings.template,
        "chat_template_kwargs": form.record["template_kwargs"],
        **{
            kind: chosen_parser(kind, getattr(model, kind), form.template, names, model.label)
            for kind, names in known.items()
        },
    }


def _absolute(path: str) -> str:
    """Return a directory as replicas find it, whose processes may have been started elsewhere; a hub name as it is."""
    return str(Path(path).absolute()) if Path(path).is_dir() else path


def _settings(path: str) -> dict[str, Any]:
    """Return the model's config.json; CheckpointError where the directory is no whole model."""
    if Path(path).is_dir():
        require_whole(Path(path))
    return model_settings(path)


def _max_length(config: ServeConfig, path: str, settings: Mapping[str, Any]) -> int:
    own = longest_of(settings)
    if config.max_length is not None:
        if own is not None and config.max_length > own:
            raise ConfigError(f"max_length ({config.max_length}) is more than {path} takes ({own}); lower it")
        return config.max_length
    longest = int(own or CPU_LENGTH)
    return min(longest, CPU_LENGTH) if _on_this_cpu(config) else longest


def _on_this_cpu(config: ServeConfig) -> bool:
    """Return whether the engines will run on this machine, without a GPU; what a cluster's machines have is not known
    yet.
    """
    elsewhere = config.placement.address or os.environ.get("RAY_ADDRESS")
    return hardware().device == "cpu" and elsewhere is None


def _require_memory(config: ServeConfig, models: Sequence[Served]) -> None:
    """Check memory on a CPU, which holds weights and caches; vLLM checks a GPU's itself."""
    if not _on_this_cpu(config):
        return
    width = 2 if hardware().precision(config.precision) == "bf16" else 4
    weights = {model.name: _parameters(Path(model.path)) * width / 2**30 for model in models}
    caches = len(models) * config.engine.cpu_cache_gib
    needed, available = (sum(weights.values()) + caches) * config.min_replicas, available_memory_gib()
    if needed > available:
        each = ", ".join(f"{name} {gib:.1f} GiB" for name, gib in weights.items())
        raise ConfigError(
            f"weights ({each}) and KV caches ({caches:.1f} GiB), {config.min_replicas} time(s), need {needed:.1f} "
            f"GiB, and "
            f"{available:.1f} GiB are available; serve fewer or smaller models, precision=bf16, or a smaller "
            f"engine.cpu_cache_gib"
        )


def _parameters(directory: Path) -> float:
    """Weights of a model in a directory; 0 for a hub name, whose files are not here yet."""
    files = list(directory.glob("*.safetensors")) or list(directory.glob("*.bin"))
    settings = read_json(directory / "config.json") or {}
    dtype = settings.get("dtype") or settings.get("torch_dtype") or "float32"
    return sum(file.stat().st_size for file in files) / BYTES.get(str(dtype), 4)
