"""How much memory a recipe takes of each GPU, about, from the shape of its model: what `--dry-run` prints beside the
arithmetic.

The formulae are those of the papers that their functions name. Left out: biases and norms (well under a thousandth),
CUDA contexts and fragmentation (2 to 4 GB), and whatever a role without a known shape takes. GB are 10^9 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from troupe.config.grpo import GRPOConfig
from troupe.config.loader import Section
from troupe.config.models import PolicyConfig
from troupe.files import read_json

GPU_GB = 80
"""Of an H100."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A decoder with grouped-query attention and a gated MLP (Qwen 2 and 3, Llama, Mistral)."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    mlp_width: int
    vocab_size: int
    tied: bool
    """Whether the output head is the embedding."""

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """(in, out) of a layer's linear maps: query, key, value, output; gate, up, down."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        attention = [(self.width, queries), (self.width, keys), (self.width, keys), (queries, self.width)]
        return [*attention, *2 * [(self.width, self.mlp_width)], (self.mlp_width, self.width)]

    @property
    def layer_parameters(self) -> int:
        return sum(rows * columns for rows, columns in self.matrices)

    @property
    def embedding(self) -> int:
        return self.vocab_size * self.width

    @property
    def parameters(self) -> int:
        return self.layers * self.layer_parameters + self.embedding * (1 if self.tied else 2)

    def cache_bytes(self, value_bytes: int = 2) -> int:
        """Keys and values of one token in every layer."""
        return 2 * self.layers * self.kv_heads * self.head_size * value_bytes


def _shape(width: int, layers: int, heads: int, kv_heads: int, mlp: int, vocab: int, *, tied: bool = False) -> Shape:
    size = width // heads
    return Shape(
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_size=size,
        mlp_width=mlp,
        vocab_size=vocab,
        tied=tied,
    )


PUBLISHED = {
    "Qwen/Qwen2.5-0.5B": _shape(896, 24, 14, 2, 4864, 151936, tied=True),
    "Qwen/Qwen2.5-3B-Instruct": _shape(2048, 36, 16, 2, 11008, 151936, tied=True),
    "Qwen/Qwen2.5-7B-Instruct-1M": _shape(3584, 28, 28, 4, 18944, 152064),
    "meta-llama/Llama-3.1-8B-Instruct": _shape(4096, 32, 32, 8, 14336, 128256),
}
"""Shapes of hub models that recipes here name, from their config.json: a dry run asks no network."""


def shape_of(model: str) -> Shape | None:
    """Return the shape of a model's directory or of a published model; None where it is not known."""
    if model in PUBLISHED:
        return PUBLISHED[model]
    found = read_json(Path(model) / "config.json") if Path(model).is_dir() else None
    try:
        return _from_config(found) if found else None
    except (KeyError, TypeError):
        return None


def _from_config(found: Mapping[str, Any]) -> Shape:
    heads = found["num_attention_heads"]
    return Shape(
        width=found["hidden_size"],
        layers=found["num_hidden_layers"],
        heads=heads,
        kv_heads=found.get("num_key_value_heads") or heads,
        head_size=found.get("head_dim") or found["hidden_size"] // heads,
        mlp_width=found["intermediate_size"],
        vocab_size=found["vocab_size"],
        tied=bool(found.get("tie_word_embeddings", False)),
    )


# -- what a trained model takes of a GPU, in bytes
# -----------------------------------------------------------------------


def state_bytes(shape: Shape, config: PolicyConfig) -> float:
    """Weights, gradients, masters and AdamW's moments of one rank.

    Rajbhandari et al. 2020 (ZeRO), figure 1: 2 + 2 + 12 bytes a parameter; stage 1 divides the 12 among the ranks,
    stage 2 the gradients too, stage 3 all. Gradients are added in fp32, so with bf16 they take 4 bytes, of which ZeRO
    from stage 2 on leaves each rank its share, and below it 2 more for those of the row. In fp32 it is 4 + 4 + 8. With
    LoRA (Hu et al. 2021) the base has weights alone, and a matrix [in, out] trains rank x (in + out) parameters.
    """
    ranks, cluster = config.num_ranks, config.zero_stage
    weight, gradient, optimizer = (4, 4, 8) if config.precision == "fp32" else (2, 4 if cluster >= 2 else 6, 12)
    trained, frozen = float(shape.parameters), 0.0
    if config.lora is not None:
        frozen = trained
        trained = shape.layers * sum(config.lora.rank * (rows + columns) for rows, columns in shape.matrices)
    in_host = {"none": (), "optimizer": ("optimizer",), "optimizer_and_parameters": ("optimizer", "weights")}
    parts = {
        "weights": weight * (trained + frozen) / (ranks if cluster >= 3 else 1),
        "gradients": gradient * trained / (ranks if cluster >= 2 else 1),
        "optimizer": optimizer * trained / (ranks if cluster >= 1 else 1),
    }
    return sum(size for name, size in parts.items() if name not in in_host[config.offload])


def working_bytes(shape: Shape, config: PolicyConfig) -> float:
    """Return what a forward and backward pass over a row of s tokens adds.

    Korthikanti et al. 2022, equation 1: 34 x s x width bytes a layer in bf16 (the scores of attention are never stored
    here); with checkpointing 2 x s x width a layer and one layer in full. The logits of a chunk and their gradient.
    Under ZeRO-3 the largest module is gathered.
    """
    values = 2 if config.precision == "fp32" else 1
    tokens = config.row_tokens * shape.width * values
    full = 34 * tokens
    activations = shape.layers * 2 * tokens + full if config.gradient_checkpointing else shape.layers * full
    logits = 2 * 2 * values * min(config.logits_chunk, config.row_tokens * shape.vocab_size)
    gathered = 2 * values * max(shape.layer_parameters, shape.embedding) if config.zero_stage == 3 else 0
    return activations + logits + gathered


# -- in words
# ------------------------------------------------------------------------------------------------------------


def memory_lines(config: Section) -> list[str]:
    """Return a line for each role that is known; none for models that are made here, which are small."""
    path = getattr(getattr(config, "model", None), "path", None)
    trained = {name: getattr(config, name) for name in ("policy", "critic", "engine") if hasattr(config, name)}
    if path is None or not trained:
        return []
    shape = shape_of(path)
    if shape is None:
        return [f"memory: not estimated, the shape of {path} is not known here"]
    lines = [f"memory of each GPU, about, with {shape.parameters / 1e9:.2f}e9 parameters:"]
    for name, role in trained.items():
        state, working = state_bytes(shape, role) / 1e9, working_bytes(shape, role) / 1e9
        lines.append(
            f"  {name} on {role.num_ranks}: {state:.1f} GB of weights, gradients and optimizer, {working:.1f} GB "
            f"while it learns"
        )
    return [*lines, *(_engine_lines(shape, config) if isinstance(config, GRPOConfig) else [])]


def _engine_lines(shape: Shape, config: GRPOConfig) -> list[str]:
    rollout, generator = config.rollout, config.generator
    width = generator.tensor_parallel_size
    answers = min(generator.max_running, -(-rollout.branches_per_step // generator.num_engines))
    longest = rollout.max_prompt_tokens + rollout.max_response_tokens
    cache = answers * longest * shape.cache_bytes() / width / 1e9
    lines = [
        f"  generator on {generator.num_engines * width}: {generator.memory_fraction * GPU_GB:.1f} of {GPU_GB} GB; "
        f"{2 * shape.parameters / width / 1e9:.1f} GB of weights, {cache:.1f} GB of KV cache when {answers} answers "
        f"are {longest:,} tokens long"
    ]
    if config.kl_needs_reference and config.reference.source == "own_weights":
        share = 2 * shape.parameters / config.reference.num_ranks / 1e9
        lines.append(f"  reference on {config.reference.num_ranks}: {share:.1f} GB of weights")
    if config.kl_needs_reference and config.reference.source == "shared_trunk":
        share = 2 * shape.parameters * (1 - config.policy.frozen_layers) / config.policy.num_ranks / 1e9
        lines.append(f"  reference in the policy's {config.policy.num_ranks}: {share:.1f} GB of weights")
    return lines
