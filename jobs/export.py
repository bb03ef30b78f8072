"""A checkpoint as safetensors that transformers and vLLM load: one model or an adapter apart, in fp32 or bf16, checked.

    python jobs/export.py model=runs/quickstart                                   # its best checkpoint, in bf16
    python jobs/export.py model=runs/big checkpoint=40 dtype=fp32 adapter=apart push=owner/name

Weights come from the checkpoint's safetensors, or from its ZeRO shards where only they have what is asked. What was
written is loaded again and must give the same log-probabilities as its source.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file: imports begin at the project, not in jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import rich

from troupe.config.models import LoraConfig
from troupe.config.program import run_program
from troupe.config.tools import ExportConfig
from troupe.disk import disk_errors
from troupe.errors import CheckpointError, ConfigError
from troupe.files import write_atomically
from troupe.runs.hub import require_token, upload
from troupe.runs.logprob_gap import allowed_gap
from troupe.runs.model_card import model_card
from troupe.runs.model_paths import locate
from troupe.runs.provenance import Provenance, hub_name, provenance

if TYPE_CHECKING:
    from troupe.actors.exported import Stored

SAME = 1e-4
"""Mean |difference| in nats that sums in another order can make in fp32."""


def export(config: ExportConfig) -> None:
    if config.push:
        require_token()
    if config.path.exists() and (not config.path.is_dir() or any(config.path.iterdir())):
        raise ConfigError(f"output {config.path} exists; choose another output, or remove it yourself")
    checkpoint = locate(config.model, config.checkpoint, whole=True)
    origin = provenance(checkpoint)

    from troupe.actors.exported import stored, tokenizer_of

    source = stored(checkpoint, trust_remote_code=config.trust_remote_code)
    kind = source_kind(config, source)
    tokenizer = tokenizer_of(checkpoint, trust_remote_code=config.trust_remote_code)
    rich.print(f"exporting {checkpoint} from its {kind}")

    writing = config.path.with_name(f".exporting-{config.path.name}")
    shutil.rmtree(writing, ignore_errors=True)
    with disk_errors("the export", config.path):
        try:
            expected = write(config, source, origin, kind, tokenizer, writing)
            facts = check(config, source, kind, tokenizer, writing, expected)
            tokenizer.save_pretrained(writing)
            card = model_card(
                origin, name=config.path.name, base_model=config.base_model, license_name=config.license, facts=facts
            )
            write_atomically(writing / "README.md", card)
            if config.path.is_dir():
                config.path.rmdir()  # it is empty
            writing.rename(config.path)
        finally:
            shutil.rmtree(writing, ignore_errors=True)
    rich.print(
        f"written to {config.path}: mean gap to the source {facts['mean_gap']:.2g}, largest {facts['largest_gap']:.2g} "
        f"over {facts['num_tokens']} {'scores' if source.head == 'scalar' else 'tokens'} (bound {facts['bound']:g})"
    )
    if config.push:
        rich.print(f"uploaded: {upload(config.path, config.push, private=config.private)}")


def source_kind(config: ExportConfig, source: Stored) -> str:
    """weights or shards: what the recipe asks for, else shards where only they have it."""
    if config.adapter == "apart" and config.source == "weights":
        raise ConfigError("adapter apart needs source: shards; the safetensors of a checkpoint hold the adapter merged")
    kind = config.source
    if kind == "auto":
        only_shards = config.adapter == "apart" or not source.weights or (config.dtype == "fp32" and source.has_masters)
        kind = "shards" if only_shards else "weights"
    there = {"weights": source.weights, "shards": source.shards}
    if not there[kind]:
        names = {"weights": "safetensors", "shards": "ZeRO shards (trainer_state)"}
        other = next((f", only {names[name]}" for name in there if there[name]), "")
        raise CheckpointError(
            f"{source.path} has no {names[kind]}{other}; set source to what it has, or give another checkpoint"
        )
    return kind


def write(config: ExportConfig, source: Stored, origin: Provenance, kind: str, tokenizer: Any, directory: Path) -> Any:
    """Write the model; what its source reports of the prompts, to be compared with."""
    from troupe.actors.exported import merged, model_of_shards, model_of_weights, readings, write_adapter, write_model

    options = {"trust_remote_code": config.trust_remote_code}
    model: Any = model_of_weights(source, **options) if source.weights else None
    # Safetensors are what evaluations have measured, so they are the measure even where shards are the source.
    expected = None if model is None else readings(model, tokenizer, config.prompts, source.head)
    if kind == "shards":
        del model  # before another one needs the memory
        settings = origin.engine.get("lora")
        model = model_of_shards(source, LoraConfig(**settings) if settings else None, **options)
        if expected is None:
            expected = readings(model, tokenizer, config.prompts, source.head)
    if config.adapter == "apart" and not hasattr(model, "peft_config"):
        raise ConfigError(f"{source.path} was trained without adapters; leave adapter at merged")
    if config.adapter == "merged":
        write_model(merged(model), directory, dtype=config.dtype, max_shard_gb=config.max_shard_gb)
        return expected
    # A scalar head is trained whole and lies in the base model's directory, so no other base will do.
    base = None if source.head == "scalar" else base_name(origin)
    write_adapter(model, directory, dtype=config.dtype, base=base or str(config.path / "base"))
    # Also where the base is on the hub: the check needs it, and asks no network.
    write_model(model.unload(), directory / "base", dtype=config.dtype, max_shard_gb=config.max_shard_gb)
    return expected


def base_name(origin: Provenance) -> str | None:
    """Return the hub name of the adapter's base model; None where that is another run's, or was made here."""
    start = origin.chain[1] if len(origin.chain) == 2 else ""
    return start if hub_name(start) else None


def check(
    config: ExportConfig, source: Stored, kind: str, tokenizer: Any, directory: Path, expected: Any
) -> dict[str, Any]:
    """Load what was written and compare; the facts of the model card. Raises CheckpointError above the bound."""
    from troupe.actors.exported import read_back, readings

    base = directory / "base"
    model = read_back(source, directory, base=str(base) if base.is_dir() else None)
    written = readings(model, tokenizer, config.prompts, source.head)
    gaps = (written - expected).abs()
    rounds = config.dtype == "bf16" or (kind == "shards" and source.weights and source.precision == "bf16")
    bound = config.max_gap or SAME
    if rounds and config.max_gap is None:  # as the gate: a multiple of what computing in bf16 makes of these weights
        rounded = readings(model.bfloat16(), tokenizer, config.prompts, source.head)
        bound = allowed_gap(float((rounded.float() - written).abs().mean()))
    mean = float(gaps.mean())
    if not mean <= bound:  # NaN fails too
        raise CheckpointError(
            f"what was written differs from its source by {mean:.3g} nats a token (allowed: {bound:.4g}), so it was "
            "removed; check that trainer_state and safetensors are of one step, or set max_gap"
        )
    return {
        "dtype": config.dtype,
        "adapter": config.adapter,
        "source": "ZeRO shards" if kind == "shards" else "safetensors",
        "head": source.head,
        "num_tokens": gaps.numel(),
        "num_prompts": len(config.prompts),
        "mean_gap": mean,
        "largest_gap": float(gaps.max()),
        "bound": bound,
    }


if __name__ == "__main__":
    run_program(export, ExportConfig, "jobs/export.py")
