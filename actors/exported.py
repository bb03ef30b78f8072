"""Checkpoints as plain Hugging Face models: read from safetensors or gathered from ZeRO's shards, written, and
compared.

`jobs/export.py` decides what is exported; here is how. Everything happens in one process on the CPU, whatever number of
ranks wrote the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from troupe.actors.adapters import base_name, with_adapter
from troupe.actors.trainer_state import LAYOUT, TRAINER_STATE, gathered_state
from troupe.algorithms.loading import Head
from troupe.config.models import LoraConfig
from troupe.errors import CheckpointError, first_line
from troupe.files import read_json

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PEFT_PREFIX = "base_model.model."
MAX_TOKENS = 128
"""Most tokens of a text that are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """The content of a checkpoint's directory (or a hub name)."""

    path: str
    weights: bool
    """Whether there are weights in Hugging Face format; of a hub name that is assumed."""
    shards: bool
    precision: str | None
    """Of the training that wrote the shards."""
    zero_stage: int
    head: Head

    @property
    def has_masters(self) -> bool:
        """Whether the shards know the weights better than the safetensors, which have the training's precision."""
        return self.shards and self.precision == "bf16" and self.zero_stage > 0


def stored(path: str, *, trust_remote_code: bool = False) -> Stored:
    """Look, without loading weights. Raises CheckpointError where there is no config.json."""
    directory = Path(path)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} has no readable config.json ({first_line(error)}); give a checkpoint's directory, or put "
            "the config.json of its model there"
        ) from None
    found = read_json(directory / TRAINER_STATE / LAYOUT)
    layout = found if isinstance(found, dict) else {}
    kinds = config.architectures or []
    return Stored(
        path=path,
        weights=not directory.is_dir()
        or any(directory.glob("*.safetensors"))
        or any(directory.glob("pytorch_model*.bin")),
        shards=(directory / TRAINER_STATE / "state").is_dir(),
        precision=layout.get("precision"),
        zero_stage=layout.get("zero_stage", 0),
        head="scalar" if any(kind.endswith("ForSequenceClassification") for kind in kinds) else "vocabulary",
    )


def model_of_weights(source: Stored, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Return the model of a checkpoint's safetensors, in fp32."""
    return _class(source).from_pretrained(source.path, dtype=torch.float32, trust_remote_code=trust_remote_code)


def model_of_shards(source: Stored, lora: LoraConfig | None, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Return the model of a checkpoint's ZeRO shards, in fp32; inside a peft model where it was trained with adapters.

    Raises CheckpointError where the shards have adapters and `lora`, which states how they count, is not known.
    """
    state = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in gathered_state(source.path).items()
    }
    base = {_base_name(name): tensor for name, tensor in state.items() if ".lora_" not in name}
    config = AutoConfig.from_pretrained(source.path, trust_remote_code=trust_remote_code)
    options = {} if not trust_remote_code else {"trust_remote_code": True}
    model = _class(source).from_config(config, dtype=torch.float32, **options)
    _load(model, base, source.path)
    generation = Path(source.path) / "generation_config.json"
    if generation.is_file():
        model.generation_config = GenerationConfig.from_pretrained(source.path)
    adapters = {name: tensor for name, tensor in state.items() if ".lora_" in name}
    if not adapters:
        return model
    if lora is None:
        raise CheckpointError(
            f"the shards of {source.path} hold adapters, and no recipe beside them says their scale; export from "
            "within the run's directory, where config.yaml has it"
        )
    adapted = with_adapter(model, lora, source.head)
    _load(adapted, adapters, source.path, within=".lora_")
    return adapted


def _class(source: Stored) -> Any:
    return AutoModelForSequenceClassification if source.head == "scalar" else AutoModelForCausalLM


def _base_name(name: str) -> str:
    """Return a weight's name in the model before adapters were put around its layers."""
    return base_name(name.removeprefix(PEFT_PREFIX))


def _load(model: PreTrainedModel, state: Mapping[str, torch.Tensor], path: str, within: str = "") -> None:
    """Load all of `state` into the parameters whose names hold `within`, and see that each of them was given."""
    wanted = {name for name, _ in model.named_parameters() if within in name}  # a tied head is named once
    missing, unknown = wanted - state.keys(), set(model.load_state_dict(state, strict=False).unexpected_keys)
    if missing or unknown:
        raise CheckpointError(
            f"the shards of {path} do not fit its config.json: missing {sorted(missing)[:2] or 'nothing'}, unknown "
            f"{sorted(unknown)[:2] or 'nothing'}; put the config.json of the trained model there"
        )


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model with its adapters added into the weights, in fp32; itself where it has none."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def write_model(model: PreTrainedModel, directory: Path, *, dtype: str, max_shard_gb: float) -> None:
    """Safetensors and config.json; the model itself is converted."""
    converted = model.to(DTYPES[dtype])
    converted.config.dtype = DTYPES[dtype]
    converted.save_pretrained(directory, max_shard_size=f"{max_shard_gb}GB")


def write_adapter(model: Any, directory: Path, *, dtype: str, base: str) -> None:
    """Write a peft model's adapter in peft's format; `base` is where its configuration looks for the base model."""
    model.peft_config["default"].base_model_name_or_path = base
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.to(DTYPES[dtype])
    # Embeddings are never adapted here; asked to find out, peft would ask the hub.
    model.save_pretrained(directory, save_embedding_layers=False)


def read_back(source: Stored, directory: Path, *, base: str | None = None) -> PreTrainedModel:
    """Return what was written, in fp32 so that only its rounding differs; an adapter goes on `base`."""
    written = _class(source)
    if base is None:
        return written.from_pretrained(directory, dtype=torch.float32)
    import peft

    model = written.from_pretrained(base, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(model, directory).float()


def tokenizer_of(path: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Return the tokenizer beside a model. Raises CheckpointError where there is none."""
    directory, reason = Path(path), "no tokenizer.json"
    # Asked for one that is not there, transformers makes up a tokenizer without tokens.
    if not directory.is_dir() or any(directory.glob("tokenizer*")) or (directory / "vocab.json").is_file():
        try:
            return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        except (OSError, ValueError) as error:
            reason = first_line(error)
    raise CheckpointError(
        f"{path} has no tokenizer ({reason}); copy tokenizer.json and tokenizer_config.json of its base model there"
    )


@torch.no_grad()
def readings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], head: Head
) -> torch.Tensor:
    """Return [N]: log-probabilities of the texts' tokens behind their first, or with a scalar head their scores."""
    model.eval()
    values = []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"][:MAX_TOKENS]])
        logits = model(input_ids=ids).logits.float()
        if head == "scalar":
            values.append(logits[0])
        else:
            values.append(logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0])
    return torch.cat(values)
