"""Which model a run starts from: made here, or loaded; and in which precision."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from core.config import Section

Precision = Literal["auto", "bf16", "fp32"]


class WarmStartConfig(Section):
    """Supervised steps on the data's demonstrations before reinforcement learning; the result is cached."""

    steps: int = Field(default=400, ge=0)
    """Optimizer steps; 0 leaves the weights as they were initialised."""
    demonstrations_per_step: int = Field(default=64, ge=1)
    """Demonstrations in a step."""
    learning_rate: float = Field(default=4e-3, gt=0)
    """Peak learning rate; it warms up over 50 steps and decays linearly to a twentieth."""
    prompt_weight: float = Field(default=0.0, ge=0, le=1)
    """Loss weight of prompt tokens, 1 for the response; a model made from scratch learns language from both."""


class ScratchModelConfig(Section):
    """A small Qwen2-shaped model and its tokenizer, made from the data set's own text; nothing is downloaded."""

    type: Literal["scratch"] = "scratch"
    hidden_size: int = Field(default=128, ge=64, multiple_of=64)
    """Width; heads are 64 wide."""
    num_layers: int = Field(default=4, ge=1)
    """Decoder layers."""
    vocab_size: int = Field(default=512, ge=300)
    """Tokens of the byte-level BPE tokenizer."""
    max_length: int = Field(default=512, ge=32)
    """Longest sequence in tokens that the model takes."""
    tie_embeddings: bool = True
    """Whether the output head shares the embedding's weights."""
    warm_start: WarmStartConfig = WarmStartConfig()
    """Supervised steps on the data's demonstrations; cached by everything that determines them."""
    cache: str = ".cache/models"
    """Directory of the cache."""


class PretrainedModelConfig(Section):
    """A model from a local directory (a run's checkpoint, say) or by its hub name."""

    type: Literal["pretrained"] = "pretrained"
    path: str
    """Directory in Hugging Face format, a run, s3://bucket/run, or a hub name such as Qwen/Qwen2.5-3B-Instruct."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""


ModelConfig = Annotated[ScratchModelConfig | PretrainedModelConfig, Field(discriminator="type")]
