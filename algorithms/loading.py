"""Models out of checkpoints, with the attention and the head that packed rows need: for training, and for serving alike."""

from __future__ import annotations

from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from algorithms.attention import PACKED_ATTENTION, supports_branches
from core.errors import CheckpointError

Head = Literal["vocabulary", "scalar"]
"""What is read off the hidden states: log-probabilities of tokens, or one number."""


class ScalarHead(torch.nn.Linear):
    """A head that computes in fp32, whatever its weights are kept in: [n, H] -> [n, 1].

    Scores of good answers lie close together, and a bf16 number has three digits: two answers in five would tie.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(
            input.float(), self.weight.float(), None if self.bias is None else self.bias.float()
        )


def load_model(
    path: str,
    precision: str,
    *,
    head: Head = "vocabulary",
    trained_head: bool = False,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A language model with packed attention where its architecture allows, its own attention otherwise.

    A scalar head that the checkpoint lacks starts at zero, so that training starts from a value of 0 for everything;
    with `trained_head` it is refused.
    """
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    options: dict[str, Any] = {"dtype": torch.bfloat16 if precision == "bf16" else torch.float32}
    if supports_branches(config):
        options["attn_implementation"] = PACKED_ATTENTION
    if head == "vocabulary":
        return AutoModelForCausalLM.from_pretrained(path, config=config, trust_remote_code=trust_remote_code, **options)
    config.num_labels = 1
    model, info = AutoModelForSequenceClassification.from_pretrained(
        path, config=config, trust_remote_code=trust_remote_code, output_loading_info=True, **options
    )
    if not isinstance(getattr(model, "score", None), torch.nn.Linear):
        raise CheckpointError(
            f"{path} is a {type(model).__name__}, whose head is not one linear layer called score; use a model of another family"
        )
    if "score.weight" in info["missing_keys"]:
        if trained_head:
            raise CheckpointError(
                f"{path} has no trained scalar head, so it cannot score answers; train one with jobs/train_reward_model.py"
            )
        torch.nn.init.zeros_(model.score.weight)
    model.score = ScalarHead(model.score)
    return model
