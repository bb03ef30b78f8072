"""Writes trl.json: losses and gradients of TRL's own `_compute_loss`, which test_losses.py compares with ours.

Run it where TRL is installed (`python tests/algorithms/recorded/record_trl.py`; the file says which version wrote it).
A stand-in takes the trainer's place and returns fixed log-probabilities instead of running a model; the arithmetic
from there on is TRL's, in float64. The tests themselves read the file and need no TRL.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import trl
from torch import Tensor
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer

LENGTHS = [3, 5, 1, 4]
MAX_RESPONSE_TOKENS = 6
SETTINGS: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo"},
    "bnpo": {"loss_type": "bnpo"},
    "dapo": {"loss_type": "dapo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "grpo, beta": {"loss_type": "grpo", "beta": 0.04},
    "dapo, beta": {"loss_type": "dapo", "beta": 0.04},
    "grpo, delta": {"loss_type": "grpo", "delta": 1.5},
    "dapo, importance": {"loss_type": "dapo", "importance": True},
    "rloo": {"loss_type": "rloo"},
}


class OneProcess:
    """What `_compute_loss` asks of accelerate, on a single process."""

    num_processes = 1
    device = torch.device("cpu")
    sync_gradients = True

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        return tensor

    gather_for_metrics = gather


class Anything(dict):
    """Metrics that nobody reads."""

    def __missing__(self, key: str) -> Any:
        self[key] = Anything() if key in ("train", "eval") else []
        return self[key]


def stand_in(logprobs: Tensor, setting: dict[str, Any]) -> SimpleNamespace:
    return SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (logprobs, torch.zeros_like(logprobs), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=setting.get("beta", 0.0),
        loss_type=setting["loss_type"],
        epsilon_low=0.2,
        epsilon_high=0.28,
        use_vllm="importance" in setting,
        vllm_importance_sampling_correction="importance" in setting,
        args=SimpleNamespace(delta=setting.get("delta"), use_bias_correction_kl=False, steps_per_generation=1),
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=MAX_RESPONSE_TOKENS,
        accelerator=OneProcess(),
        _entropy_bonus_enabled=False,
        _metrics=Anything(),
    )


def batch() -> dict[str, Tensor]:
    """Log-probabilities whose ratios lie on both sides of both clip ranges, padded with zeros, [B, T]."""
    torch.manual_seed(3)
    shape = (len(LENGTHS), max(LENGTHS))
    mask = torch.arange(shape[1])[None] < torch.tensor(LENGTHS)[:, None]
    logprobs = -3 * torch.rand(shape, dtype=torch.float64)
    columns = {
        "logprobs": logprobs,
        "old_logprobs": logprobs + 0.5 * torch.randn(shape, dtype=torch.float64),
        "ref_logprobs": logprobs + 0.5 * torch.randn(shape, dtype=torch.float64),
        "importance_weights": 2 * torch.rand(shape, dtype=torch.float64),
    }
    return {name: column * mask for name, column in columns.items()} | {"mask": mask}


def compute(columns: dict[str, Tensor], advantages: Tensor, setting: dict[str, Any]) -> dict[str, Any]:
    logprobs = columns["logprobs"].clone().requires_grad_()
    ids = torch.zeros_like(logprobs, dtype=torch.int64)
    inputs = {
        "prompt_ids": ids,
        "prompt_mask": ids,
        "completion_ids": ids,
        "completion_mask": columns["mask"].long(),
        "advantages": advantages,
        "old_per_token_logps": columns["old_logprobs"],
        "old_logps": columns["old_logprobs"].sum(1),
        "ref_per_token_logps": columns["ref_logprobs"],
        "importance_sampling_ratio": columns["importance_weights"],
        "num_items_in_batch": columns["mask"].sum(),
    }
    trainer: Any = RLOOTrainer if setting["loss_type"] == "rloo" else GRPOTrainer
    loss = trainer._compute_loss(stand_in(logprobs, setting), None, inputs)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return {"loss": loss.item(), "gradient": gradient[columns["mask"]].tolist()}


def main() -> None:
    columns, advantages = batch(), torch.tensor([1.0, -1.5, -0.5, 1.0], dtype=torch.float64)
    recorded = {
        "trl": trl.__version__,
        "lengths": LENGTHS,
        "max_response_tokens": MAX_RESPONSE_TOKENS,
        "advantages": advantages.tolist(),
        "columns": {name: column[columns["mask"]].tolist() for name, column in columns.items() if name != "mask"},
        "settings": {name: compute(columns, advantages, setting) for name, setting in SETTINGS.items()},
    }
    Path(__file__).with_name("trl.json").write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    main()
