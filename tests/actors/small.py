"""Models of a few hundred kilobytes and groups of random tokens, for tests that start real engines."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, Qwen2Config

from troupe.algorithms.packing import Batch
from troupe.config.made_data import WordProblemsConfig
from troupe.config.models import ScratchModelConfig
from troupe.data import load_data
from troupe.records import Branch, Group, Sample
from troupe.training.scratch import write_scratch_model

VOCAB = 1024
SMALL = Qwen2Config(
    vocab_size=VOCAB,
    # 1024 x 128 embedding elements: ZeRO-3 leaves smaller parameters (up to 100,000 elements) whole on every rank.
    hidden_size=128,
    intermediate_size=192,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=256,
    tie_word_embeddings=True,
)


def write_weights(config: PreTrainedConfig, directory: Path, seed: int = 0) -> str:
    """A random model without tokenizer, its matrices six times the usual size: nearly uniform attention hides
    mistakes.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).float()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(6)
    model.save_pretrained(directory)
    return str(directory)


def write_model(directory: Path, *, tied: bool, hidden_size: int = 64, vocab_size: int = 320, seed: int = 0) -> str:
    """A model with a tokenizer of word problems, as a recipe with `model: scratch` makes it before its warm start."""
    problems = load_data(WordProblemsConfig(num_train=200, num_heldout=8)).train
    texts = [text for sample in problems for text in (str(sample.prompt), sample.fields["demonstration"])]
    config = ScratchModelConfig(
        hidden_size=hidden_size, num_layers=2, vocab_size=vocab_size, max_length=128, tie_embeddings=tied
    )
    write_scratch_model(config, texts, str(directory), seed)
    return str(directory)


def random_group(prompt: int, branches: Sequence[int], *, vocab: int = VOCAB, name: str = "") -> Group:
    """A group of random tokens with these lengths, drawn from its name."""
    rng = random.Random(f"{prompt}/{list(branches)}/{name}")
    tokens = [[rng.randrange(4, vocab) for _ in range(length)] for length in (prompt, *branches)]
    sample = Sample(sample_id=f"random/{prompt}-{name}", prompt="")
    return Group(sample=sample, prompt_ids=tokens[0], branches=[Branch(token_ids=branch) for branch in tokens[1:]])


def ragged(vocab: int = VOCAB) -> list[Group]:
    """A prompt of one token, branches of one token, a single branch, equal and unequal lengths."""
    shapes = [(1, [5, 1, 7]), (12, [1]), (9, [4, 4, 4, 4]), (30, [20, 2, 11]), (8, [6, 3, 5, 4])]
    return [random_group(prompt, branches, vocab=vocab) for prompt, branches in shapes]


def with_targets(groups: Sequence[Group]) -> Batch:
    """The batch of `groups` with advantages, old log-probabilities and weights that sum to 1, drawn by token id.

    Each value depends on its own token and group alone, so that it travels with the group when groups change places.
    """
    batch = Batch.from_groups(groups)
    marks = torch.cat(
        [
            torch.rand(
                sum(len(branch.token_ids) for branch in group.branches),
                generator=torch.Generator().manual_seed(len(group.prompt_ids)),
            )
            for group in groups
        ]
    )
    weights = torch.full((batch.num_tokens,), 1 / batch.num_tokens)
    return batch.with_columns(
        advantages=4 * marks - 2, old_logprobs=-7 + marks, loss_weights=weights, metric_weights=weights
    )
