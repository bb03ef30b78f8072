"""A run that tests serve: checkpoints of random weights, and what transformers says of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from troupe.config.models import ScratchModelConfig
from troupe.runs.checkpoint import CheckpointStore
from troupe.training.scratch import write_scratch_model

LENGTH = 8192
PROMPT = [5, 6, 7, 8, 9, 10, 11, 12]
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "Call as <tool_call>{}</tool_call><|im_end|>\n{% endif %}"
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content or '' }}"
    "{% for call in turn.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML that shows tools and calls of them, as the tests' models have it."""


class Run:
    """A run directory with checkpoints of random weights, another seed for each step."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = CheckpointStore(directory / "checkpoints", keep_last=9)

    def save(self, step: int, *, hidden_size: int = 64) -> Path:
        source = self.directory.parent / f"model-{step}"
        config = ScratchModelConfig(hidden_size=hidden_size, num_layers=2, max_length=LENGTH)
        write_scratch_model(config, ["What is 3 + 4? It is 7."] * 9, str(source), step)
        model = AutoModelForCausalLM.from_pretrained(source)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(6 if parameter.dim() > 1 else 1)  # nearly uniform logits would hide mistakes
            model.get_input_embeddings().weight[model.config.eos_token_id] = 0  # a greedy answer is never empty
        model.save_pretrained(source)
        (source / "chat_template.jinja").write_text(TEMPLATE)
        with self.store.writing(step) as path:
            shutil.copytree(source, path, dirs_exist_ok=True)
        return self.store.path(step)

    def next_logprobs(self, step: int) -> torch.Tensor:
        """What transformers says of the token after PROMPT; [V]."""
        model = AutoModelForCausalLM.from_pretrained(self.store.path(step)).float()
        with torch.no_grad():
            return model(torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1)
