"""From a causal language model and a packed row to log-probabilities and entropies of the branch tokens.

Logits are computed only at the positions that are read, in chunks when they would be large, so no [S, V]
tensor ever exists. The module is what DeepSpeed wraps; its only submodule is the Hugging Face model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from troupe.algorithms.heads import in_one_call, prepare_head
from troupe.algorithms.hidden import hidden_states, inner_model, own_logits, path_of
from troupe.algorithms.packing import Row
from troupe.algorithms.token_logprobs import Known, token_logprobs


class PackedModel(torch.nn.Module):
    """A causal language model whose forward pass takes a packed row."""

    def __init__(self, model: PreTrainedModel, *, logits_chunk: int = 2**27) -> None:
        super().__init__()
        self.model = model
        self.logits_chunk = logits_chunk
        if not path_of(inner_model(model)).own_logits:
            prepare_head(inner_model(model).get_output_embeddings())

    def forward(
        self, row: Row, *, temperature: float = 1.0, entropy_grad: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (log pi(token | what it sees) [n], entropy of the distribution it was drawn from [n]), both fp32.

        The entropy carries a gradient only with `entropy_grad`.
        """
        causal = inner_model(self.model)
        device = next(self.model.parameters()).device
        targets = row.target_ids.to(device)  # [n]
        if path_of(causal).own_logits:
            logits = own_logits(causal, row, row.read_positions)
            return token_logprobs(logits, targets, scale=1 / temperature, entropy_grad=entropy_grad)
        hidden = hidden_states(causal, row, row.read_positions)  # [n, H]

        config = causal.config.get_text_config()
        read_logits = functools.partial(
            token_logprobs,
            softcap=getattr(config, "final_logit_softcapping", None),
            scale=_logit_scale(config) / temperature,
            entropy_grad=entropy_grad,
        )
        tokens_per_chunk = max(1, self.logits_chunk // config.vocab_size)

        def loop(head: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            def read(known: Known, tokens: torch.Tensor, *states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                return read_logits(head(*states), tokens, known=known)  # [chunk, H] -> [chunk, V]

            if len(targets) <= tokens_per_chunk:
                return read(Known(), targets, *inputs)
            chunks = zip(*(tensor.split(tokens_per_chunk) for tensor in (targets, *inputs)), strict=True)
            results = [checkpoint(read, Known(), *chunk, use_reentrant=False) for chunk in chunks]
            logprobs, entropies = zip(*results, strict=True)
            return torch.cat(logprobs), torch.cat(entropies)

        return in_one_call(causal.get_output_embeddings(), hidden, loop)


def _logit_scale(config: object) -> float:
    """Granite divides, Cohere multiplies its logits by a constant."""
    return (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
