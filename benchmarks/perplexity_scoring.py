"""Seconds to score the answers of one prompt by the gold answer's perplexity: one packed group beside separate passes.

    python benchmarks/perplexity_scoring.py [--answers 8] [--prompt 1024] [--answer 64] [--gold 64] [--repeats 7]

Same model (random weights), same process, same threads, in turns. The packed side is the whole reward, texts to scores,
once
with a sample that is seen for the first time (its baseline rides along) and once with one that is known; the separate
side
is transformers' own forward pass over each sequence, with logits at the gold answer alone. Ratios count: those of
processor seconds with one thread, since other programs on the machine do not change them, and those of the clock
beside.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

AIM = 1 / 3
"""What packed may cost of separate at most."""
MODEL = {"hidden_size": 256, "num_layers": 6}


def digits(rng: random.Random, count: int) -> str:
    """Text of so many tokens: each digit is one."""
    return "".join(rng.choices("0123456789", k=count))


def start(directory: Path, length: int) -> tuple[Any, Any, Any]:
    """(frozen model behind the reward, transformers' own, tokenizer), of the same weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from troupe.actors.frozen import FrozenModel, FrozenWorker
    from troupe.actors.workers import InlineWorkers
    from troupe.config.models import ScratchModelConfig
    from troupe.training.scratch import write_scratch_model

    config = ScratchModelConfig(**MODEL, max_length=length)
    write_scratch_model(config, [digits(random.Random(0), 400) + " one two three"], str(directory), 0)
    frozen = FrozenModel(InlineWorkers(FrozenWorker, [{"rank": 0, "world_size": 1}], role="perplexity"))
    frozen.start(str(directory), precision="fp32", row_tokens=length, offload=False)
    frozen.ready(600)
    plain = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="sdpa").float().eval()
    return frozen, plain, AutoTokenizer.from_pretrained(directory)


def separate(model: Any, prompt: list[int], answers: list[list[int]], gold: list[int]) -> list[float]:
    """The gold answer's perplexity after each answer, one forward pass each."""
    import torch

    found = []
    for answer in answers:
        tokens = torch.tensor([[*prompt, *answer, *gold]])
        with torch.no_grad():
            logits = model(tokens, logits_to_keep=len(gold) + 1, use_cache=False).logits[0, :-1].float()
        logprobs = logits.log_softmax(-1).gather(-1, torch.tensor(gold)[:, None])
        found.append(math.exp(-float(logprobs.double().mean())))
    return found


def measure(given: argparse.Namespace, directory: Path) -> dict[str, Any]:
    import torch

    from troupe.actors.perplexity_reward import PerplexityReward, plan_scorer
    from troupe.config.algorithm import PerplexityRewardConfig
    from troupe.records import Branch, Group, Sample

    length = 2 * (given.prompt + given.answers * (given.answer + given.gold))
    frozen, plain, tokenizer = start(directory, length)
    rng = random.Random(1)
    prompt, gold = digits(rng, given.prompt), digits(rng, given.gold)
    answers = [digits(rng, given.answer) for _ in range(given.answers)]
    reward = PerplexityReward(
        frozen, plan_scorer(PerplexityRewardConfig(), str(directory), tokenizer, [], precision="fp32")
    )
    numbers = itertools.count()

    def group(name: str) -> Group:
        branches = [Branch(token_ids=[9], text=answer) for answer in answers]
        return Group(sample=Sample(sample_id=name, prompt=prompt, gold=gold), prompt_ids=[9], branches=branches)

    def tokens(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    answer_ids = [tokens(answer) for answer in answers]
    assert {len(tokens(prompt)), *map(len, answer_ids), len(tokens(gold))} == {given.prompt, given.answer, given.gold}
    sides: dict[str, Callable[[], list[float]]] = {
        "separate": lambda: separate(plain, tokens(prompt), answer_ids, tokens(gold)),
        "packed_known": lambda: scores(reward, group("known")),
        "packed_new": lambda: scores(reward, group(f"new/{next(numbers)}")),
    }
    torch.set_num_threads(given.threads)  # the worker took every core for itself
    clock: dict[str, list[float]] = {name: [] for name in sides}
    processor: dict[str, list[float]] = {name: [] for name in sides}
    values = {name: side() for name, side in sides.items()}  # the first pass of each is not counted
    for _ in range(given.repeats):
        for name, side in sides.items():
            started, used = time.perf_counter(), time.process_time()
            side()
            clock[name].append(time.perf_counter() - started)
            processor[name].append(time.process_time() - used)
    reward.shutdown()
    frozen.shutdown()
    return {
        "parameters": sum(weight.numel() for weight in plain.parameters()),
        "processor_seconds": medians(processor),
        "clock_seconds": medians(clock),
        "ratios": {
            "packed / separate, baseline known": ratio(processor, "packed_known"),
            "packed / separate, baseline computed too": ratio(processor, "packed_new"),
            "packed / separate, baseline known, by the clock": ratio(clock, "packed_known"),
            "aim": AIM,
        },
        "largest_relative_difference": max(
            abs(one / other - 1) for one, other in zip(values["packed_known"], values["separate"], strict=True)
        ),
    }


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(times) for name, times in seconds.items()}


def ratio(seconds: dict[str, list[float]], side: str) -> float:
    """Median over the rounds of what a side cost of the separate passes right before it: a busy machine slows both."""
    return statistics.median(one / other for one, other in zip(seconds[side], seconds["separate"], strict=True))


def scores(reward: Any, group: Any) -> list[float]:
    return [part["perplexity/gold"] for part in reward.score(group).result(600)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="One packed group beside separate passes, by perplexity of the gold answer."
    )
    parser.add_argument("--answers", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=1024, help="tokens")
    parser.add_argument("--answer", type=int, default=64, help="tokens")
    parser.add_argument("--gold", type=int, default=64, help="tokens")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="of torch, on both sides")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "perplexity_scoring.json")
    given = parser.parse_args()
    from benchmarks.grpo_step import machine

    with tempfile.TemporaryDirectory() as scratch:
        result = measure(given, Path(scratch))
    sizes = {name: getattr(given, name) for name in ("answers", "prompt", "answer", "gold", "repeats", "threads")}
    facts = {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "model": MODEL, "sizes": sizes}
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps({**facts, **result}, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
