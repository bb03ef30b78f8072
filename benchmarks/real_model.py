"""Seconds of a GRPO step on a real model: this project beside TRL's GRPOTrainer, vLLM alone, and the machine's limit.

    make smollm2
    python benchmarks/real_model.py [--shapes short,long_prompt,long_answers] [--steps 5] [--output x.json]

SmolLM2-135M-Instruct in bf16; same chat prompts, groups, lengths and optimizer steps, same machine, one call. TRL
generates by itself, as it does without a GPU, with bf16 weights, its fastest way there. Each part runs in a process of
its own, one after the other. Ratios count; the share of the machine is the update's GFLOP a second over those of a
matrix product measured in the same call.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.grpo_step import WARM_UP, even_share, machine, trl_steps  # noqa: E402  (not installed everywhere)
from troupe.files import read_lines  # noqa: E402

PHASES = ("rollout", "update", "publish", "other")
MODEL = ROOT / ".cache" / "models" / "smollm2-135m-instruct"


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a step; `prompt` and `answer` in tokens at most."""

    prompt: int
    answer: int
    prompts: int
    group: int
    aim: float
    """Of TRL's seconds over ours."""


SHAPES = {
    "short": Shape(prompt=96, answer=64, prompts=4, group=8, aim=2.8),
    "long_prompt": Shape(prompt=832, answer=64, prompts=4, group=8, aim=8.0),
    "long_answers": Shape(prompt=96, answer=256, prompts=8, group=8, aim=2.5),
}


def prepare(shape: Shape, model: str, directory: Path, steps: int) -> None:
    """Write prompts.jsonl: one user's turn each, worked examples in front until it is nearly `shape.prompt` long."""
    from troupe.chat import load_form
    from troupe.config.made_data import WordProblemsConfig
    from troupe.data import load_data
    from troupe.records import Sample

    form, rng = load_form(model), random.Random(0)
    samples = load_data(WordProblemsConfig(num_train=2000)).train
    lines = []
    for sample in itertools.islice(itertools.cycle(samples), shape.prompts * (steps + 1)):
        text = f"{sample.prompt} Explain every step of your solution in full sentences."
        while True:
            shown = rng.choice(samples)
            longer = f"{shown.prompt} The answer is {shown.gold}.\n\n{text}"
            prompt = [{"role": "user", "content": longer}]
            if len(form.prompt(Sample(sample_id="", prompt=prompt))) > shape.prompt:
                break
            text = longer
        lines.append({"prompt": [{"role": "user", "content": text}]})
    (directory / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def reward(sample: Any, branch: Any) -> float:
    """Share of even tokens: cheap, and never equal for all answers."""
    return even_share(branch.token_ids)


# -- parts, each in a process of its own ---------------------------------------------------------------------------


def run_troupe(shape: Shape, model: str, directory: Path, steps: int) -> dict[str, Any]:
    """Measure the run's own step and phases."""
    from troupe.config.grpo import GRPOConfig
    from troupe.config.loader import load_config
    from troupe.jobs.train_grpo import train

    overrides = [
        f"steps={steps}",
        f"model.path={model}",
        f"data.path={directory / 'prompts.jsonl'}",
        "data.num_heldout=1",
        "rewards=[{fn: 'benchmarks.real_model:reward'}]",
        "evaluation.metrics=[{fn: 'benchmarks.real_model:reward', name: even}]",
        "evaluation.every=0",
        "checkpoint.every=0",
        f"rollout.prompts_per_step={shape.prompts}",
        f"rollout.group_size={shape.group}",
        f"rollout.max_prompt_tokens={shape.prompt}",
        f"rollout.max_response_tokens={shape.answer}",
        "algorithm.minibatches=1",
        "policy.precision=bf16",
        "policy.zero_stage=1",
        "policy.learning_rate=1e-6",
        "run.name=bench",
        f"run.directory={directory / 'runs'}",
    ]
    train(load_config(GRPOConfig, overrides))
    lines = read_lines(directory / "runs" / "bench" / "metrics.jsonl")
    measured = [line for line in lines if WARM_UP < line["step"] < steps]  # the last one also saves
    (first,) = [line for line in lines if line["step"] == 1]
    numbers = [name for name, value in measured[0].items() if isinstance(value, float)]
    middle = {name: statistics.median(line[name] for line in measured) for name in numbers}
    return {
        "step_s": middle["time/step_s"],
        "phases_s": {phase: middle.get(f"time/{phase}_s", 0.0) for phase in PHASES},
        "answer_tokens": middle["rollout/response_tokens"],
        "update_gflop": gflop(model, shape.prompts * middle["rollout/prompt_tokens"], middle["rollout/tokens"]),
        "start_s": first["wall_s"] - first["time/step_s"],
    }


def gflop(model: str, prompt_tokens: float, answer_tokens: float) -> float:
    """Estimate an update's GFLOP: 6 a weight and token, the head's at answer tokens alone; attention is left out."""
    from troupe.config.memory_estimate import shape_of

    sizes = shape_of(model)
    assert sizes is not None
    layers = sizes.layers * sizes.layer_parameters
    head = sizes.width * sizes.vocab_size
    return 6 * (layers * (prompt_tokens + answer_tokens) + head * answer_tokens) / 1e9


def run_trl(shape: Shape, model: str, directory: Path, steps: int) -> dict[str, Any]:
    """Measure TRL's trainer with bf16 weights."""
    return trl_steps(
        model,
        "bfloat16",
        [line["prompt"] for line in read_lines(directory / "prompts.jsonl")],
        output_dir=str(directory / "trl"),
        per_device_train_batch_size=shape.group,
        gradient_accumulation_steps=shape.prompts,
        num_generations=shape.group,
        max_completion_length=shape.answer,
        learning_rate=1e-6,
        max_steps=steps,
    )


def run_generation(shape: Shape, model: str, directory: Path, steps: int) -> dict[str, Any]:
    """Measure vLLM's offline engine alone on a step's requests, with our engine's arguments."""
    from troupe.hardware import LOOPBACK, set_up_generator, use_amx

    set_up_generator(0, 1, None, LOOPBACK)
    use_amx()
    from vllm import LLM, SamplingParams

    from troupe.chat import load_form
    from troupe.config.models import GeneratorConfig
    from troupe.engines.arguments import engine_arguments
    from troupe.records import Sample

    form = load_form(model)
    prompts = [line["prompt"] for line in read_lines(directory / "prompts.jsonl")]
    arguments = engine_arguments(GeneratorConfig(), max_length=shape.prompt + shape.answer, precision="bf16")
    llm = LLM(model, logprobs_mode="processed_logprobs", seed=0, **arguments)
    sampling = SamplingParams(
        n=shape.group, temperature=1.0, max_tokens=shape.answer, logprobs=0, flat_logprobs=True, detokenize=False
    )
    seconds = []
    for step in range(steps):
        chosen = prompts[step * shape.prompts : (step + 1) * shape.prompts]
        requests = [{"prompt_token_ids": form.prompt(Sample(sample_id="", prompt=prompt))} for prompt in chosen]
        started = time.perf_counter()
        llm.generate(requests, sampling, use_tqdm=False)
        seconds.append(time.perf_counter() - started)
    return {"generation_s": statistics.median(seconds[WARM_UP:])}


def run_products(shape: Shape, model: str, directory: Path, steps: int) -> dict[str, Any]:
    """Measure GFLOP a second of a bf16 matrix product of the model's size: 2,048 tokens by its MLP."""
    import torch

    from troupe.config.memory_estimate import shape_of

    torch.set_num_threads(os.cpu_count() or 1)
    sizes = shape_of(model)
    assert sizes is not None
    left = torch.randn(2048, sizes.width).bfloat16()
    right = torch.randn(sizes.width, sizes.mlp_width).bfloat16()
    seconds = []
    for _ in range(200):
        started = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - started)
    return {"gflop_per_s": 2 * 2048 * sizes.width * sizes.mlp_width / statistics.median(seconds) / 1e9}


PARTS = {"troupe": run_troupe, "trl": run_trl, "generation": run_generation, "products": run_products}


# -- the driver -----------------------------------------------------------------------------------------------------


def measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Run every part of one shape, and compare."""
    with tempfile.TemporaryDirectory() as scratch:
        prepare(SHAPES[name], given.model, Path(scratch), given.steps)
        found = {part: _part(name, part, scratch, given) for part in given.parts.split(",")}
    return {**found, "ratios": ratios(SHAPES[name], found)}


def _part(name: str, part: str, scratch: str, given: argparse.Namespace) -> dict[str, Any]:
    output, log = Path(scratch) / f"{part}.json", Path(scratch) / f"{part}.log"
    command = [sys.executable, __file__, "--part", part, "--shapes", name, "--steps", str(given.steps)]
    command += ["--output", str(output), "--directory", scratch, "--model", given.model]
    print(f"{name}: {part} ...", flush=True)
    with log.open("w") as stream:
        code = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT).returncode
    if code != 0:
        tail = "\n".join(log.read_text().splitlines()[-12:])
        raise SystemExit(f"{name}: {part} ended with {code}:\n{tail}")
    return dict(json.loads(output.read_text()))


def ratios(shape: Shape, found: dict[str, Any]) -> dict[str, float]:
    """Return TRL / Troupe of a step, and each phase beside its limit."""
    ours, result = found.get("troupe"), dict[str, float]()
    if ours is None:
        return result
    phases = ours["phases_s"]
    if "trl" in found:
        result |= {"step: TRL / Troupe": found["trl"]["step_s"] / ours["step_s"], "aim": shape.aim}
    if "generation" in found:
        result["generation: bare vLLM / Troupe"] = found["generation"]["generation_s"] / phases["rollout"]
    if "products" in found:
        rate = ours["update_gflop"] / phases["update"]
        result["update: share of the machine's matrix products"] = rate / found["products"]["gflop_per_s"]
    result["sync and gate: share of a step"] = phases["publish"] / ours["step_s"]
    named = sum(phases[phase] for phase in ("rollout", "update", "publish"))
    result["outside rollout, update and sync: share of a step"] = max(0.0, 1 - named / ours["step_s"])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds of a GRPO step on a real model, beside TRL and the machine.")
    parser.add_argument("--shapes", default=",".join(SHAPES), help="comma-separated")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated: " + ", ".join(PARTS))
    parser.add_argument("--steps", type=int, default=5, help="steps of each part; the first two are not counted")
    parser.add_argument("--model", default=str(MODEL), help="directory of the model (make smollm2 makes the default)")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "real_model.json")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    names = given.shapes.split(",")
    if given.part:
        found = PARTS[given.part](SHAPES[names[0]], given.model, given.directory, given.steps)
        given.output.write_text(json.dumps(found))
        return
    if not Path(given.model).is_dir():
        raise SystemExit(f"there is no model at {given.model}; make it with `make smollm2`, or name one with --model")
    results: dict[str, Any] = {}
    given.output.parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        results[name] = measure(name, given)
        # After each shape: one can take many minutes, and what is measured should not be lost with the next.
        facts = {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "steps": given.steps}
        given.output.write_text(json.dumps({**facts, "shapes": results}, indent=2) + "\n")
    for name, result in results.items():
        print(name, json.dumps({label: round(value, 3) for label, value in result["ratios"].items()}, indent=2))


if __name__ == "__main__":
    main()
