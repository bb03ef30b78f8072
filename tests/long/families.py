"""Small random models of other families, trained for two steps by the real job in one process, saved and read again.

    python -m tests.long.families train DIRECTORY qwen3 gpt2 ...
    python -m tests.long.families read DIRECTORY qwen3 gpt2 ...

print a line of JSON for each: the gaps between trainer and engine after each sync; the keys that plain transformers
misses or does not know in the checkpoint, and the gap between its log-probabilities and those of vLLM that loads it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from tests.actors.small import write_model, write_weights
from troupe.config.grpo import GRPOConfig
from troupe.config.models import EngineConfig
from troupe.engines.arguments import engine_arguments
from troupe.jobs.train_grpo import train
from troupe.training.result import TrainingResult, read_result

MARK = "FAMILY "
COMMON = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 3,
    "pad_token_id": 1,
}
ROPE = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FAMILIES: dict[str, PreTrainedConfig] = {
    "qwen2": Qwen2Config(**COMMON, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**COMMON, tie_word_embeddings=True),
    "gemma3": Gemma3TextConfig(**COMMON, sliding_window=16, layer_types=["sliding_attention", "full_attention"]),
    "llama3": LlamaConfig(**COMMON, rope_parameters={**ROPE, "original_max_position_embeddings": 32}),
    "phi3": Phi3Config(**COMMON),
    "gpt2": GPT2Config(
        vocab_size=320, n_embd=128, n_layer=2, n_head=2, n_positions=256, bos_token_id=None, eos_token_id=3
    ),
    "mixtral": MixtralConfig(**COMMON, num_local_experts=4),
}


def write_family(name: str, directory: Path) -> str:
    """Write a random model of the family with the tokenizer of word problems."""
    path = write_model(directory, tied=True)
    (directory / "model.safetensors").unlink()
    return write_weights(FAMILIES[name], Path(path))


def trained(name: str, directory: Path) -> TrainingResult:
    """Train two steps, with the gate after each sync; `gemma3@2` on two ranks of ZeRO-3."""
    family, _, ranks = name.partition("@")
    model = write_family(family, directory / "models" / name)
    return train(
        GRPOConfig(
            steps=2,
            run={"name": name.replace("@", "-"), "directory": str(directory)},
            model={"type": "pretrained", "path": model},
            data={"type": "word_problems", "num_train": 50, "num_heldout": 8},
            rewards=[{"fn": "tests.light_rewards:variety"}],
            rollout={"prompts_per_step": 2, "group_size": 4, "max_prompt_tokens": 100, "max_response_tokens": 12},
            algorithm={"minibatches": 1},
            policy={"precision": "fp32", "learning_rate": 1e-3, "num_ranks": int(ranks or 1), "zero_stage": 3},
            generator={"cpu_cache_gib": 0.1},
            placement={"backend": "ray" if ranks else "inline"},
            evaluation={"every": 0},
        )
    )


def read_again(checkpoint: Path) -> dict[str, Any]:
    """Load a checkpoint with plain transformers, and with vLLM, and compare what they give for the same tokens."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine lives in this process: two less to start
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, sorted(os.sched_getaffinity(0)))))
    from vllm import LLM, SamplingParams, TokensPrompt

    model, info = AutoModelForCausalLM.from_pretrained(checkpoint, output_loading_info=True, dtype=torch.float32)
    ids = [number * 37 % 300 + 4 for number in range(40)]
    with torch.no_grad():
        logprobs = model.eval()(torch.tensor([ids])).logits[0].log_softmax(-1)
    engine = LLM(str(checkpoint), **engine_arguments(EngineConfig(cpu_cache_gib=0.1), max_length=64, precision="fp32"))
    (output,) = engine.generate(TokensPrompt(prompt_token_ids=ids), SamplingParams(max_tokens=1, prompt_logprobs=0))
    pairs = zip(output.prompt_logprobs[1:], ids[1:], logprobs, strict=False)
    gaps = [abs(found[token].logprob - float(row[token])) for found, token, row in pairs]
    assert len(gaps) == len(ids) - 1
    keys = sorted([*info["missing_keys"], *info["unexpected_keys"]])
    return {"keys": keys, "vllm_gap": max(gaps), "spread": float(logprobs.max(-1).values.std())}


def main(phase: str, directory: Path, names: list[str]) -> None:
    """Train the families one after the other, or read what was trained again; a process for each, for the engine that
    reads would end the process group of the next training.
    """
    for name in names:
        start, facts = time.monotonic(), {"family": name, "phase": phase}
        try:
            if phase == "train":
                run = trained(name, directory)
                facts["gaps"] = [line["consistency/logprob_gap"] for line in run.metrics]
                facts["moved"] = [line["policy/grad_norm"] for line in run.metrics[1:]]
            else:
                facts |= read_again(read_result(directory / name.replace("@", "-")).checkpoint)
        except Exception as error:  # told like a figure, and the next family is tried
            facts["error"] = f"{type(error).__name__}: {error}"
        facts["seconds"] = round(time.monotonic() - start, 1)
        print(MARK + json.dumps(facts), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:] or list(FAMILIES))
