"""The recipe of an export: which checkpoint, in which precision and form, and where it goes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from core.config import Section
from core.evaluate_recipes import run_name

EXAMPLES = [
    "The harbour was quiet, and the ferryman counted his coins.",
    "Return the number of rows that match, or zero if there are none.",
    "Ana has 12 shells and gives away 5. How many shells are left?",
]


class ExportConfig(Section):
    """A checkpoint as safetensors that transformers and vLLM load, checked by loading it."""

    examples = (
        "model=runs/quickstart output=exported",
        "model=runs/quickstart checkpoint=20 dtype=fp32 adapter=apart",
    )
    page = "docs/export.md"

    model: str
    """A run directory, a checkpoint's directory, or a hub name; `<checkpoint>/critic` is PPO's critic."""
    checkpoint: Literal["best", "latest"] | int = "best"
    """Which checkpoint of a run: best (latest where nothing was measured), latest, or a step."""
    output: str | None = None
    """Directory that gets the model; unset: `exports/<run>-<dtype>`, with `-adapter` for an adapter apart."""
    dtype: Literal["fp32", "bf16"] = "bf16"
    """Precision of the weights."""
    source: Literal["auto", "weights", "shards"] = "auto"
    """weights: the checkpoint's safetensors; shards: its ZeRO state, whose masters are fp32; auto: shards where only they have what is
    asked (an adapter apart, fp32 of a bf16 run, no safetensors), else weights."""
    adapter: Literal["merged", "apart"] = "merged"
    """merged: one model; apart: a peft directory, and the base model in `base` below it unless that is on the hub."""
    max_shard_gb: float = Field(default=5.0, gt=0)
    """Largest safetensors file in GB."""
    prompts: list[str] = Field(default=EXAMPLES, min_length=1)
    """Texts whose log-probabilities (scores, of a reward model) are compared with the source's."""
    max_gap: float | None = Field(default=None, gt=0)
    """Largest allowed mean |difference| in nats a token; unset: 1e-4 where all is fp32; where bf16 rounds 4 times what computing in bf16 makes of the model, between 1e-3 and 0.5."""
    base_model: str | None = None
    """Hub name of the model that training began with, for the model card; unset: as the runs' recipes say."""
    license: str | None = None
    """Licence identifier of the model card, such as apache-2.0; unset: the card says that none was given."""
    push: str | None = None
    """Repository `owner/name` on the Hugging Face hub that gets the directory; needs HF_TOKEN in the environment or `hf auth login`."""
    private: bool = True
    """Whether a repository that `push` creates is private."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""

    @field_validator("prompts")
    @classmethod
    def _prompts_have_something_to_predict(cls, prompts: list[str]) -> list[str]:
        for prompt in prompts:
            if len(prompt.split()) < 2:
                raise ValueError(f"prompt {prompt!r} is too short to compare log-probabilities; give two words or more")
        return prompts

    @field_validator("push")
    @classmethod
    def _push_names_a_repository(cls, push: str | None) -> str | None:
        if push is not None and (push.count("/") != 1 or not all(push.split("/"))):
            raise ValueError("push names a repository as owner/name")
        return push

    @property
    def path(self) -> Path:
        if self.output is not None:
            return Path(self.output)
        return Path("exports") / f"{run_name(self.model)}-{self.dtype}{'-adapter' if self.adapter == 'apart' else ''}"

    def arithmetic(self) -> str:
        """What will be done, in a sentence."""
        which = f", checkpoint {self.checkpoint}" if self.checkpoint != "best" else ""
        form = "adapter apart" if self.adapter == "apart" else "one model"
        target = f", then to {self.push} on the hub" if self.push else ""
        return f"{self.model}{which} -> {self.path}: {self.dtype}, {form}{target}"
