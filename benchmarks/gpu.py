"""What a GPU machine can show in ten minutes without Ray, vLLM and DeepSpeed: packed rows, their speed and memory.

    python benchmarks/gpu.py [--minutes 10] [--output benchmarks/results/gpu.json]

It needs torch, transformers and this checkout. On CUDA: a model of Qwen2.5-0.5B's shape with random weights, packed
with FlexAttention beside one padded row for each answer with SDPA: largest differences of log-probabilities, update
steps with AdamW, their tokens and FLOP a second beside those of a matrix product (MFU), and peak memory beside the
estimate that a dry run prints. Without a GPU the same on a tiny shape, which a test runs.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402  (the checkout is not installed on such a machine)
from transformers import AutoModelForCausalLM, Qwen2Config  # noqa: E402

from troupe.algorithms.attention import PACKED_ATTENTION  # noqa: E402
from troupe.algorithms.logprobs import PackedModel  # noqa: E402
from troupe.algorithms.packing import Batch, Row, pack  # noqa: E402
from troupe.records import Branch, Group, Sample  # noqa: E402

SHAPES: dict[str, dict[str, Any]] = {
    "cuda": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
    },
    "cpu": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
}
BATCHES = {  # (prompt, answer, groups, answers of a group), in tokens
    "cuda": {"short": (128, 128, 16, 8), "long prompt": (1024, 128, 4, 8), "long answers": (128, 1024, 2, 8)},
    "cpu": {"short": (24, 16, 4, 4)},
}
ROW_TOKENS = 32_768
WARM_UP, STEPS = (2, 5) if torch.cuda.is_available() else (1, 2)


def build(device: str, attention: str, precision: torch.dtype) -> PackedModel:
    """Return a model with random weights, the same for each attention."""
    torch.manual_seed(0)
    config = Qwen2Config(**SHAPES[device], tie_word_embeddings=True, max_position_embeddings=4096)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=precision)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)  # weights so small that attention is nearly uniform would hide a wrong mask
    return PackedModel(model.to(device), logits_chunk=2**28)


def draw(device: str, prompt: int, answer: int, groups: int, answers: int) -> Batch:
    """Return groups of random tokens whose answers have between half and all of `answer` tokens."""
    rng, vocabulary = random.Random(0), SHAPES[device]["vocab_size"]

    def tokens(length: int) -> list[int]:
        return [rng.randrange(vocabulary) for _ in range(length)]

    return Batch.from_groups(
        [
            Group(
                sample=Sample(sample_id=str(index), prompt=""),
                prompt_ids=tokens(prompt),
                branches=[Branch(token_ids=tokens(rng.randint(answer // 2, answer))) for _ in range(answers)],
            )
            for index in range(groups)
        ]
    )


def difference(device: str, batch: Batch) -> dict[str, float]:
    """Return the largest difference of log-probabilities of packed and padded rows, in fp32."""
    values = []
    for attention, branches in ((PACKED_ATTENTION, True), ("sdpa", False)):
        model = build(device, attention, torch.float32)
        found = torch.zeros(batch.num_tokens)
        with torch.no_grad():
            for row in pack(batch, ROW_TOKENS, branches=branches):
                found[row.token_index] = model(row)[0].cpu()
        values.append(found)
    return {"largest_difference": float((values[0] - values[1]).abs().max()), "spread": float(values[1].std())}


def steps(device: str, batch: Batch, attention: str, *, branches: bool) -> dict[str, float]:
    """Return seconds, tokens and memory of update steps in bf16 with AdamW."""
    model = build(device, attention, torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    rows = pack(batch, ROW_TOKENS, branches=branches)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def update() -> None:
        for row in rows:
            (-model(row)[0].sum() / batch.num_tokens).backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = measured(device, update)
    found = {"step_s": seconds, "computed_tokens": float(sum(row.input_ids.numel() for row in rows))}
    found["tflop_per_s"] = flop(device, rows) / seconds / 1e12
    if device == "cuda":
        found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def flop(device: str, rows: Sequence[Row]) -> float:
    """Return 6 FLOP a weight and token: the layers' at every token, the head's where log-probabilities are read."""
    shape = SHAPES[device]
    width, size = shape["hidden_size"], shape["hidden_size"] // shape["num_attention_heads"]
    attention = 2 * width * width + 2 * width * shape["num_key_value_heads"] * size
    layers = shape["num_hidden_layers"] * (attention + 3 * width * shape["intermediate_size"])
    return sum(
        6.0 * (layers * row.input_ids.numel() + width * shape["vocab_size"] * len(row.target_ids)) for row in rows
    )


def products(device: str) -> float:
    """Return TFLOP a second of a bf16 matrix product."""
    size = 8192 if device == "cuda" else 512
    left, right = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    return 2 * size**3 / measured(device, lambda: left @ right, times=20) / 1e12


def measured(device: str, call: Callable[[], Any], *, times: int = STEPS) -> float:
    """Return the median seconds of a call."""
    seconds = []
    for _ in range(WARM_UP + times):
        started = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[WARM_UP:])


def estimated_gb(device: str) -> float | None:
    """Return what a dry run says that weights, gradients and optimizer take; None where pydantic is not installed."""
    try:
        from troupe.config.memory_estimate import Shape, state_bytes
        from troupe.config.models import PolicyConfig
    except ImportError:
        return None
    shape = SHAPES[device]
    sizes = Shape(
        width=shape["hidden_size"],
        layers=shape["num_hidden_layers"],
        heads=shape["num_attention_heads"],
        kv_heads=shape["num_key_value_heads"],
        head_size=shape["hidden_size"] // shape["num_attention_heads"],
        mlp_width=shape["intermediate_size"],
        vocab_size=shape["vocab_size"],
        tied=True,
    )
    return state_bytes(sizes, PolicyConfig(precision="bf16", zero_stage=0)) / 1e9


def run(device: str, minutes: float) -> dict[str, Any]:
    """Measure batch after batch while there is time."""
    began, peak = time.perf_counter(), products(device)
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    results: dict[str, Any] = {"device": name, "torch": torch.__version__, "product_tflop_per_s": peak}
    results["estimated_state_gb"] = estimated_gb(device)
    for label, sizes in BATCHES[device].items():
        if time.perf_counter() - began > 60 * minutes:
            print(f"{label}: no time left", flush=True)
            break
        batch = draw(device, *sizes)
        packed = steps(device, batch, PACKED_ATTENTION, branches=True)
        padded = steps(device, batch, "sdpa", branches=False)
        results[label] = {
            **difference(device, batch),
            "packed": packed,
            "padded": padded,
            "padded / packed": padded["step_s"] / packed["step_s"],
            "mfu": packed["tflop_per_s"] / peak,
        }
        print(label, json.dumps(results[label], indent=2), flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description="Packed rows on a GPU: exactness, speed, memory.")
    parser.add_argument("--minutes", type=float, default=10, help="no further batch begins after so many")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "gpu.json")
    given = parser.parse_args()
    results = run("cuda" if torch.cuda.is_available() else "cpu", given.minutes)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps({"date": time.strftime("%Y-%m-%d"), **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
