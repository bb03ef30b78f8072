"""Writes trl_preferences.json: losses, gradients and metrics of TRL's DPOTrainer and RewardTrainer on fixed numbers.

As record_trl.py: a stand-in takes the trainer's place and returns fixed log-probabilities or scores instead of running
a model. test_preferences.py compares them with ours; run it again with `python` and this file's path.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import trl
from record_trl import Anything, OneProcess
from torch import Tensor
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.reward_trainer import RewardTrainer

CHOSEN_LENGTHS = [3, 5, 1]
REJECTED_LENGTHS = [4, 2, 6]
BETA = 0.3
LABEL_SMOOTHING = 0.1
MARGINS = [0.5, 0.0, 1.2]
METRICS = ("rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected")


class Fixed(torch.nn.Module):
    """A model whose answer is always the same."""

    is_gradient_checkpointing = False

    def __init__(self, **outputs: Tensor) -> None:
        super().__init__()
        self.outputs = SimpleNamespace(**outputs)

    def forward(self, **inputs: Any) -> SimpleNamespace:
        return self.outputs


def dpo_model(logprobs: Tensor) -> Fixed:
    nothing = torch.zeros_like(logprobs)
    return Fixed(log_probs=logprobs, entropy=nothing, mean_logits=nothing, is_top1=nothing > 0)


def stand_in(logprobs: Tensor, ref_logprobs: Tensor, loss_type: str) -> SimpleNamespace:
    return SimpleNamespace(
        model=dpo_model(logprobs),
        ref_model=dpo_model(ref_logprobs),
        accelerator=OneProcess(),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, center_rewards_coefficient=None),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=False,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        use_weighting=False,
        beta=BETA,
        label_smoothing=LABEL_SMOOTHING,
        _tp_size=1,
        _total_train_tokens=0,
        _metrics=Anything(),
    )


def dpo(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, loss_type: str) -> tuple[Tensor, dict[str, float]]:
    """TRL's loss of one batch, the chosen answers above the rejected; [2 P, T]. The prompt is one token."""
    trainer = stand_in(logprobs, ref_logprobs, loss_type)
    completion_mask = torch.nn.functional.pad(mask.long(), (1, 0))  # [2 P, 1 + T]
    ids = torch.zeros_like(completion_mask)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": completion_mask}
    loss = DPOTrainer._compute_loss(trainer, trainer.model, inputs, False)
    return loss, {name: trainer._metrics["train"][name][0] for name in METRICS}


def conservative_dpo(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """AOT sorts the log ratios of a batch; on one pair there is nothing to sort, and what is left is cDPO."""
    half = len(mask) // 2
    rows = [torch.tensor([pair, half + pair]) for pair in range(half)]
    return torch.stack([dpo(logprobs[row], ref_logprobs[row], mask[row], "aot")[0] for row in rows]).mean()


def reward_model(scores: Tensor, margins: list[float] | None) -> dict[str, Any]:
    scores = scores.clone().requires_grad_()
    trainer = stand_in(scores, scores, "sigmoid")
    trainer.model = Fixed(logits=scores[:, None])
    inputs: dict[str, Any] = {"attention_mask": torch.ones(len(scores), 1)}
    if margins is not None:
        inputs["margin"] = torch.tensor(margins, dtype=torch.float64)
    loss = RewardTrainer.compute_loss(trainer, trainer.model, inputs)
    (gradient,) = torch.autograd.grad(loss, scores)
    metrics = {name: trainer._metrics["train"][name][0] for name in ("accuracy", "margin")}
    return {"loss": loss.item(), "gradient": gradient.tolist(), "metrics": metrics}


def main() -> None:
    torch.manual_seed(7)
    lengths = torch.tensor(CHOSEN_LENGTHS + REJECTED_LENGTHS)
    mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]  # [2 P, T]
    ref_logprobs = -3 * torch.rand(mask.shape, dtype=torch.float64) * mask
    logprobs = ref_logprobs + torch.randn(mask.shape, dtype=torch.float64) * mask
    scores = torch.randn(len(mask), dtype=torch.float64)

    def compute(name: str) -> dict[str, Any]:
        leaf = logprobs.clone().requires_grad_()
        if name == "cdpo":
            loss, metrics = conservative_dpo(leaf, ref_logprobs, mask), {}
        else:
            loss, metrics = dpo(leaf, ref_logprobs, mask, name)
        (gradient,) = torch.autograd.grad(loss, leaf)
        return {"loss": loss.item(), "gradient": gradient[mask].tolist(), "metrics": metrics}

    recorded = {
        "trl": trl.__version__,
        "lengths": lengths.tolist(),
        "beta": BETA,
        "label_smoothing": LABEL_SMOOTHING,
        "margins": MARGINS,
        "logprobs": logprobs[mask].tolist(),
        "ref_logprobs": ref_logprobs[mask].tolist(),
        "scores": scores.tolist(),
        "dpo": {name: compute(name) for name in ("sigmoid", "sigmoid_norm", "ipo", "cdpo")},
        "reward_model": {"plain": reward_model(scores, None), "margin": reward_model(scores, MARGINS)},
    }
    Path(__file__).with_name("trl_preferences.json").write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    main()
