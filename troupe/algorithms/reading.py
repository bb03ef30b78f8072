"""A model that is never trained, only asked: loaded whole, and read at the branch tokens of a batch, row by row.

The reference, reward models in training and reward models behind an endpoint are all this.
"""

from __future__ import annotations

from typing import Any

import torch

from troupe.algorithms.hidden import path_of
from troupe.algorithms.loading import Head, load_model
from troupe.algorithms.logprobs import PackedModel
from troupe.algorithms.packing import Batch, branch_scores, pack
from troupe.algorithms.values import PackedScalarModel


class InferenceModel:
    """A copy of a model in this process, on the CPU until `to`."""

    def __init__(
        self,
        path: str,
        *,
        head: Head,
        precision: str,
        row_tokens: int,
        logits_chunk: int = 2**27,
        trust_remote_code: bool = False,
    ) -> None:
        """Raises CheckpointError where a scalar head is asked for and was not trained."""
        model = load_model(path, precision, head=head, trained_head=True, trust_remote_code=trust_remote_code)
        self._branches = path_of(model).branches
        self._row_tokens = row_tokens
        model.requires_grad_(False)
        self._packed = (
            PackedScalarModel(model) if head == "scalar" else PackedModel(model, logits_chunk=logits_chunk)
        ).eval()

    @property
    def max_length(self) -> int | None:
        """Most tokens of a sequence that its positions reach; None where the architecture knows no such number."""
        return getattr(self._packed.model.config.get_text_config(), "max_position_embeddings", None)

    def to(self, device: str) -> None:
        self._packed.to(device)

    @torch.no_grad()
    def outputs(self, batch: Batch, *, wanted: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
        """Return [N] fp32 on the CPU: the head's output at the batch's tokens; 0 where `wanted`, bool [N], is false."""
        values = torch.zeros(batch.num_tokens)
        for whole in pack(batch, self._row_tokens, branches=self._branches):
            row = whole if wanted is None else whole.reading(wanted)
            values[row.token_index] = self._packed(row, **options)[0].float().cpu()
        return values

    def scores(self, batch: Batch) -> torch.Tensor:
        """Return [B]: the reward model's score of each branch."""
        return branch_scores(self.outputs(batch, reads="after"), batch.branch_ids)
