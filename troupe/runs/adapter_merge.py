"""LoRA directories: the base model with the adapter merged, as a directory of its own.

`troupe.runs.model_paths.locate` asks here for every job, so that an adapter is trained further, evaluated and served as
the model that it makes of its base. peft is imported only where there is something to merge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from troupe.errors import CheckpointError, TroupeError, first_line
from troupe.files import read_json
from troupe.runs.conversion import FORM, MODELS, digest_of, once

ADAPTER = "adapter_config.json"
SAME = 1e-3
"""Largest |difference| of log-probabilities between an adapter on its base and the merged model, in fp32."""
PROBE = 64
"""Tokens on which the two are compared."""


def directory_of_adapter(adapter: Path, locate: Callable[[str], str]) -> str:
    """Return the directory of an adapter's base model with the adapter merged; `locate` finds the base.

    Raises CheckpointError where the base is not there, and where merging gives another model.
    """
    settings = read_json(adapter / ADAPTER)
    weights = next((adapter / f"adapter_model.{end}" for end in ("safetensors", "bin")
                    if (adapter / f"adapter_model.{end}").is_file()), None)  # fmt: skip
    if not isinstance(settings, dict) or weights is None:
        raise CheckpointError(f"{adapter} is no whole adapter; copy {ADAPTER} and adapter_model.safetensors again")
    if settings.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{adapter} holds a {settings.get('peft_type')} adapter, which cannot be merged here; give a LoRA, or a "
            f"model"
        )
    base = _base_of(adapter, settings, locate)
    digest = hashlib.sha256(f"{FORM}\0{base}\0{digest_of(weights)}".encode())
    files = [adapter / ADAPTER, *sorted(Path(base).glob("*.json"))] if Path(base).is_dir() else [adapter / ADAPTER]
    for file in files:
        digest.update(file.read_bytes())
    for file in sorted(Path(base).glob("*.safetensors")) if Path(base).is_dir() else ():
        digest.update(f"{file.name}\0{file.stat().st_size}\0{file.stat().st_mtime_ns}".encode())
    return once(
        MODELS / f"{adapter.resolve().name}-merged-{digest.hexdigest()[:12]}",
        lambda directory: merge_adapter(adapter, base, directory, scalar=settings.get("task_type") == "SEQ_CLS"),
        f"the adapter {adapter} on {base}",
    )


def _base_of(adapter: Path, settings: Mapping[str, Any], locate: Callable[[str], str]) -> str:
    """Return the directory or hub name of an adapter's base: `base` beside it, where jobs/export.py put one, or what
    its settings name.
    """
    if (adapter / "base" / "config.json").is_file():
        return str(adapter / "base")
    named = settings.get("base_model_name_or_path")
    remedy = f"put the base there, or name it as base_model_name_or_path in {adapter / ADAPTER}"
    if not named:
        raise CheckpointError(f"{adapter} is an adapter that names no base model; {remedy}")
    try:
        return locate(str(named))
    except TroupeError as error:
        raise CheckpointError(f"{adapter} is an adapter on {named}, which cannot be used: {error}; {remedy}") from None


def merge_adapter(adapter: Path, base: str, directory: Path, *, scalar: bool) -> None:
    """Write the base with the adapter added into its weights, in the base's precision, and its tokenizer.

    What was merged must give what the adapter on its base gives: it does not where one weight is read in two places
    and the adapter stands at one of them.
    """
    import peft
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    config = AutoConfig.from_pretrained(base)
    scalar = scalar or any(kind.endswith("ForSequenceClassification") for kind in config.architectures or [])
    kind = AutoModelForSequenceClassification if scalar else AutoModelForCausalLM
    options = {"num_labels": 1} if scalar else {}
    whole = kind.from_pretrained(base, dtype=torch.float32, **options)
    try:
        model = peft.PeftModel.from_pretrained(whole, adapter).eval()
    except (ValueError, RuntimeError, OSError) as error:
        raise CheckpointError(
            f"{adapter} does not fit its base {base}: {first_line(error)}; give its own base"
        ) from None
    ids = torch.arange(PROBE)[None] * 7919 % config.get_text_config().vocab_size
    with torch.no_grad():
        expected = model(input_ids=ids).logits.log_softmax(-1)
        merged = model.merge_and_unload()
        gap = float((merged(input_ids=ids).logits.log_softmax(-1) - expected).abs().max())
    if not gap <= SAME:  # NaN fails, too
        raise CheckpointError(
            f"{adapter} cannot be merged into {base}: log-probabilities differ by {gap:.2g} (allowed: {SAME:g}), as "
            f"with target_modules whose weight the embedding and the output head share; train the adapter without them"
        )
    merged.to(config.dtype if config.dtype in (torch.bfloat16, torch.float32) else torch.bfloat16)
    merged.config.dtype = merged.dtype
    merged.save_pretrained(directory)
    own = any(adapter.glob("tokenizer*"))
    AutoTokenizer.from_pretrained(adapter if own else base).save_pretrained(directory)
