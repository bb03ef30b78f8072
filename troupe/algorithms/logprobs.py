"""From a causal language model and a packed row to log-probabilities and entropies of the branch tokens.

Logits are computed only at the positions that are read, in chunks when they would be large, so no [S, V]
tensor ever exists. The module is what DeepSpeed wraps; its only submodule is the Hugging Face model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from troupe.algorithms.heads import in_one_call, prepare_head
from troupe.algorithms.hidden import hidden_states, inner_model, own_logits, path_of
from troupe.algorithms.packing import Row


class PackedModel(torch.nn.Module):
    """A causal language model whose forward pass takes a packed row."""

    def __init__(self, model: PreTrainedModel, *, logits_chunk: int = 2**26) -> None:
        super().__init__()
        self.model = model
        self.logits_chunk = logits_chunk
        if not path_of(inner_model(model)).own_logits:
            prepare_head(inner_model(model).get_output_embeddings())

    def forward(
        self, row: Row, *, temperature: float = 1.0, entropy_grad: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (log pi(token | what it sees) [n], entropy of the distribution it was drawn from [n]), both fp32.

        The entropy carries a gradient only with `entropy_grad`, which doubles the memory of a chunk.
        """
        causal = inner_model(self.model)
        device = next(self.model.parameters()).device
        targets = row.target_ids.to(device)  # [n]
        if path_of(causal).own_logits:
            return _read_logits(
                own_logits(causal, row, row.read_positions).float() / temperature, targets, entropy_grad
            )
        hidden = hidden_states(causal, row, row.read_positions)  # [n, H]

        config = causal.config.get_text_config()
        softcap = getattr(config, "final_logit_softcapping", None)
        scale = _logit_scale(config) / temperature
        tokens_per_chunk = max(1, self.logits_chunk // config.vocab_size)

        def loop(head: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            def read(tokens: torch.Tensor, *states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                logits = head(*states).float()  # [chunk, H] -> [chunk, V]
                if softcap is not None:
                    logits = softcap * torch.tanh(logits / softcap)
                return _read_logits(logits * scale, tokens, entropy_grad)

            if len(targets) <= tokens_per_chunk:
                return read(targets, *inputs)
            chunks = zip(*(tensor.split(tokens_per_chunk) for tensor in (targets, *inputs)), strict=True)
            logprobs, entropies = zip(*(checkpoint(read, *chunk, use_reentrant=False) for chunk in chunks), strict=True)
            return torch.cat(logprobs), torch.cat(entropies)

        return in_one_call(causal.get_output_embeddings(), hidden, loop)


def _read_logits(logits: torch.Tensor, tokens: torch.Tensor, entropy_grad: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens' log-probability [n] and the entropy [n] of logits [n, V]: H = logsumexp(z) - softmax(z) z."""
    normaliser = torch.logsumexp(logits, dim=-1)
    logprobs = logits.gather(-1, tokens[:, None])[:, 0] - normaliser
    with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
        probabilities = torch.exp(logits - normaliser[:, None])
        entropy = normaliser - (probabilities * logits).sum(-1)
    return logprobs, entropy


def _logit_scale(config: object) -> float:
    """Granite divides, Cohere multiplies its logits by a constant."""
    return (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
