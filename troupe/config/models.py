"""Which models a run uses, in which precision, where: trained ones, frozen ones, engines, and the devices they get."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field

from troupe.chat import ChatSettings
from troupe.config.loader import Section
from troupe.errors import ConfigError

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


class ConversationConfig(Section):
    """The way a model reads prompts and conversations."""

    chat: Literal["auto", "template", "raw"] = "auto"
    """A prompt that is text: template makes it a user's turn, raw sends it as it is. auto: template, where the model
    has a chat template and was not trained raw here.
    """
    chat_template: str | None = None
    """File with a jinja template in place of the tokenizer's own; checkpoints keep it."""
    chat_template_kwargs: dict[str, Any] = {}
    """What the template is given besides, such as {enable_thinking: false}; checkpoints keep it."""
    system_turn: Literal["keep", "fold"] = "keep"
    """fold: a system turn becomes the beginning of the user's, for templates that refuse one."""

    @property
    def chat_settings(self) -> ChatSettings:
        """The settings with the template read; ConfigError where there is no such file."""
        template = None
        if self.chat_template is not None:
            try:
                template = Path(self.chat_template).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(
                    f"chat_template {self.chat_template} cannot be read ({error}); name a file with a jinja template"
                ) from None
        return ChatSettings(
            chat=self.chat, template=template, template_kwargs=self.chat_template_kwargs, system_turn=self.system_turn
        )


class ScratchModelConfig(ConversationConfig):
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


class PretrainedModelConfig(ConversationConfig):
    """A model from a local directory (a run's checkpoint, say), a file, or by its hub name."""

    type: Literal["pretrained"] = "pretrained"
    path: str
    """Directory in Hugging Face format, a run, s3://bucket/run, a `.gguf` file, a LoRA directory (it is merged into its
    base), or a hub name such as Qwen/Qwen2.5-3B-Instruct.
    """
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""


ModelConfig = Annotated[ScratchModelConfig | PretrainedModelConfig, Field(discriminator="type")]


Decay = Annotated[float, Field(ge=0, lt=1)]


class LoraConfig(Section):
    """Low-rank adapters through peft; published merged, switched off they are the reference."""

    rank: int = Field(default=16, ge=1)
    """Rank r."""
    alpha: float = Field(default=16, gt=0)
    """Scale alpha; the update is multiplied by alpha / r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Modules that get an adapter."""


class PolicyConfig(Section):
    """The trained model: DeepSpeed ZeRO, optimizer and schedule."""

    num_ranks: int = Field(default=1, ge=1)
    """Processes (one per GPU); a resumed run may have another number."""
    zero_stage: int = Field(default=3, ge=0, le=3)
    """ZeRO stage: 1 shards optimizer states, 2 also gradients, 3 also parameters; a resumed run may have another."""
    precision: Precision = "auto"
    """auto: bf16 where the processor computes in it, fp32 elsewhere. Masters are always fp32."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate of AdamW; a resumed run may have another from there on."""
    betas: tuple[Decay, Decay] = Field(default=(0.9, 0.99), strict=False)  # YAML has lists alone
    """AdamW's decay rates."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this global norm."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Learning rate after warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps of linear warm-up."""
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    """Where linear and cosine schedules end, as a share of the peak."""
    row_tokens: int = Field(default=2560, ge=16)
    """Token budget of a packed row, the unit of one forward and backward pass; a larger group gets a row of its own."""
    logits_chunk: int = Field(default=2**27, ge=1)
    """Most logits (tokens x vocabulary) held at once, and as many gradients, in the model's precision; beyond it the
    head runs in chunks and recomputes in the backward pass.
    """
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    frozen_layers: float = Field(default=0.0, ge=0, lt=1)
    """Share of the lowest layers, and with them the embedding, whose weights stay as they are."""
    offload: Literal["none", "optimizer", "optimizer_and_parameters"] = "none"
    """What ZeRO keeps in host memory."""
    lora: LoraConfig | None = None
    """Train adapters instead of all weights."""
    init_timeout_s: float = Field(default=600, gt=0)
    """Seconds the workers may take to start."""
    collective_timeout_s: float = Field(default=1800, gt=0)
    """Seconds that a rank waits for the others in one collective call, such as a gather of ZeRO's."""

    @property
    def dropouts(self) -> dict[str, float]:
        """Dropout above 0 by its field."""
        return {"lora.dropout": self.lora.dropout} if self.lora and self.lora.dropout > 0 else {}


class SFTEngineConfig(PolicyConfig):
    """The engine of SFT, where no two passes over the same tokens are compared."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout wherever the architecture has one, whatever the model's config says; above 0 without packed attention."""

    @property
    def dropouts(self) -> dict[str, float]:
        return super().dropouts | ({"dropout": self.dropout} if self.dropout > 0 else {})


C = TypeVar("C", bound=PolicyConfig)


def _without_dropout(config: C) -> C:
    for name, rate in config.dropouts.items():
        raise ValueError(
            f"{name} ({rate:g}) must be 0: outputs of two passes are compared here, and dropout would count as a "
            "change of the weights; only SFT may have it"
        )
    return config


WithoutDropout = AfterValidator(_without_dropout)
"""Of an engine whose log-probabilities or scores are compared between passes."""


class RewardModelConfig(Section):
    """A frozen reward model whose score is part of the reward, and of the held-out metrics, as `reward_model`."""

    path: str
    """Directory or hub name of a model with a trained scalar head; its tokenizer must be the policy's."""
    weight: float = 1.0
    """Its weight in the sum of rewards."""
    relative_to_reference: bool = False
    """Whether the score of the sample's reference answer (its gold) is subtracted, joined by the sample's id."""
    num_ranks: int = Field(default=1, ge=1)
    """Processes."""
    precision: Precision = "auto"
    """Precision of its weights."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""


class ReferenceConfig(Section):
    """The frozen model of the KL term; used only when kl.coef > 0."""

    source: Literal["own_weights", "adapter_off", "shared_trunk"] = "own_weights"
    """own_weights: a second copy of the starting model; adapter_off: the policy without its LoRA adapter; shared_trunk:
    the policy's frozen layers (policy.frozen_layers) under copies of the others as they started.
    """
    num_ranks: int = Field(default=1, ge=1)
    """Processes of a reference with its own weights."""


class EngineConfig(Section):
    """A vLLM engine."""

    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs per engine."""
    max_running: int = Field(default=256, ge=1)
    """Sequences that an engine runs at once."""
    memory_fraction: float = Field(default=0.85, gt=0, lt=1)
    """GPU memory share of an engine."""
    cpu_cache_gib: float = Field(default=1.0, gt=0)
    """KV cache in GiB on a CPU."""
    enforce_eager: bool = False
    """Run without CUDA graphs (always so on a CPU)."""
    init_timeout_s: float = Field(default=600, gt=0)
    """Seconds an engine may take to start."""


class GeneratorConfig(EngineConfig):
    """The vLLM engines that sample."""

    num_engines: int = Field(default=1, ge=1)
    """Engines."""
    sync_timeout_s: float = Field(default=300, gt=0)
    """Seconds each phase of a weight sync may take."""


class PlacementConfig(Section):
    """Devices of each role; the resulting table is printed at the start and kept in the report."""

    mode: Literal["colocated", "separate"] = "colocated"
    """colocated: policy and generators share devices in time (vLLM sleeps while the policy trains; CUDA IPC); separate:
    each role has its own (NCCL). On a CPU the transport is gloo in both.
    """
    address: str | None = None
    """Ray address; unset: a running cluster if RAY_ADDRESS names one, else one of our own on loopback."""
    backend: Literal["ray", "inline"] = "ray"
    """ray: one process per rank; inline: policy in this process, for debugging."""
    call_timeout_s: float = Field(default=3600, gt=0)
    """Seconds that a worker may take for one call, such as a step's update; then the error has its stack."""
    reply_timeout_s: float = Field(default=10, gt=0)
    """Seconds for a sign of life of a worker whose peer failed, for its last lines, stack, and timeline."""


class ConsistencyConfig(Section):
    """The gate: after a sync the generator holds the weights that were sent, and log-probabilities of probes agree."""

    num_probes: int = Field(default=4, ge=1)
    """Probes: answers that the starting policy sampled."""
    max_gap: float | None = Field(default=None, gt=0)
    """Largest allowed mean |difference| in nats; unset: 1e-3 in fp32; in bf16 4 times the measured difference of the
    trainer's own bf16 from fp32, between 1e-3 and 0.5.
    """
