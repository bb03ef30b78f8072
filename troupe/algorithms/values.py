"""From a model with a scalar head and a packed row to one number per branch token: a critic's values, a reward model's
scores.

The format is Hugging Face's `...ForSequenceClassification` with one label and no bias. Which position is read is
decided here and nowhere else, so training, evaluation, PPO and serving cannot differ.
"""

from __future__ import annotations

from typing import Literal

import torch
from transformers import PreTrainedModel

from troupe.algorithms.hidden import hidden_states, inner_model
from troupe.algorithms.packing import Row

Reads = Literal["before", "after"]
"""before: the state that predicts the token (a critic's V of the state in which it is chosen); after: the state that
has seen it (a reward model's score; that of the branch is the one at its last token).
"""


class PackedScalarModel(torch.nn.Module):
    """A model with a scalar head whose forward pass takes a packed row."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, row: Row, *, reads: Reads = "after") -> tuple[torch.Tensor]:
        """Return (the head's output at each branch token, less `score_mean` of the model's config; [n] fp32)."""
        model = inner_model(self.model)
        hidden = hidden_states(model, row, row.read_positions if reads == "before" else row.token_positions)
        return (model.score(hidden)[:, 0] - score_mean(model),)  # [n, H] -> [n]


def score_mean(model: PreTrainedModel) -> float:
    """Return what is subtracted so that reference answers score 0 on average (Stiennon et al. 2009.01325, 3.4)."""
    return float(getattr(model.config, "score_mean", 0.0))
