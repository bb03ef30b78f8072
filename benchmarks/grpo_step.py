"""Seconds of a GRPO step: this project beside TRL's GRPOTrainer, and beside the limit of each phase.

    python benchmarks/grpo_step.py [--workloads short,long_prompt,long_tail] [--steps 8] [--output
    benchmarks/results/x.json]

Same model (random weights, so answers have the lengths that the workload asks for), same prompts, same batch, one
optimizer step per rollout, fp32, same machine, one run. TRL generates by itself, as it does without a GPU. Each
part runs in a process of its own, one after the other. Ratios count; seconds depend on the machine and its mood.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

WARM_UP = 2
PHASES = ("rollout", "logprobs", "advantage", "update", "publish", "other")


@dataclasses.dataclass(frozen=True)
class Workload:
    """Sizes in tokens; an answer ends at a token of the end set or at the limit."""

    prompt: int
    answer: int
    prompts: int
    group: int
    mean_answer: int | None
    """Mean length of an answer that no limit cuts: so many of the nearly equally likely tokens end it. None: one
    does.
    """
    aim: float


WORKLOADS = {
    "short": Workload(prompt=20, answer=12, prompts=64, group=8, mean_answer=None, aim=2.0),
    "long_prompt": Workload(prompt=1024, answer=64, prompts=8, group=8, mean_answer=None, aim=5.0),
    "long_tail": Workload(prompt=64, answer=256, prompts=16, group=8, mean_answer=40, aim=3.0),
}


def reward(sample: Any, branch: Any) -> float:
    """Share of even tokens: cheap, and never equal for all answers."""
    return even_share(branch.token_ids)


def even_share(token_ids: Any) -> float:
    return sum(token % 2 == 0 for token in token_ids) / max(1, len(token_ids))


# -- the common ground ------------------------------------------------------------------------------------


def prepare(workload: Workload, directory: Path, steps: int) -> None:
    """Model, tokenizer and prompts of a workload; a prompt is a string of digits, each of which is one token."""
    from troupe.config.models import ScratchModelConfig
    from troupe.training.scratch import write_scratch_model

    rng = random.Random(0)
    texts = ["".join(rng.choices("0123456789", k=40)) + " one two three" for _ in range(200)]
    write_scratch_model(
        ScratchModelConfig(hidden_size=128, num_layers=4, vocab_size=512, max_length=2048), texts, str(directory), 0
    )
    settings_file = directory / "generation_config.json"
    settings = json.loads(settings_file.read_text()) if settings_file.exists() else {}
    tokens = json.loads((directory / "config.json").read_text())["vocab_size"]
    num_ends = 1 if workload.mean_answer is None else round(tokens / workload.mean_answer)
    ends = [3, *rng.sample(range(20, tokens), num_ends - 1)]
    settings_file.write_text(json.dumps({**settings, "eos_token_id": ends}))
    lines = [
        {"prompt": "".join(rng.choices("0123456789", k=workload.prompt))} for _ in range(workload.prompts * (steps + 2))
    ]
    (directory / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_prompts(directory: Path) -> list[str]:
    return [json.loads(line)["prompt"] for line in (directory / "prompts.jsonl").read_text().splitlines()]


# -- parts, each in a process of its own -------------------------------------------------------------------


def run_troupe(workload: Workload, directory: Path, steps: int) -> dict[str, Any]:
    """Median seconds of a step and of its phases, from the run's own metrics."""
    from troupe.config.grpo import GRPOConfig
    from troupe.config.loader import load_config
    from troupe.jobs.train_grpo import train

    tokens = workload.prompts * workload.group * (workload.prompt + workload.answer)
    overrides = [
        f"steps={steps}",
        "model.type=pretrained",
        f"model.path={directory}",
        "data.type=jsonl",
        f"data.path={directory / 'prompts.jsonl'}",
        "data.num_heldout=8",
        "rewards=[{fn: 'benchmarks.grpo_step:reward'}]",
        "evaluation.metrics=[{fn: 'benchmarks.grpo_step:reward', name: even}]",
        "evaluation.every=0",
        "checkpoint.every=0",
        f"rollout.prompts_per_step={workload.prompts}",
        f"rollout.group_size={workload.group}",
        f"rollout.max_prompt_tokens={workload.prompt}",
        f"rollout.max_response_tokens={workload.answer}",
        "algorithm.minibatches=1",
        "policy.precision=fp32",
        "policy.row_tokens=4096",
        "generator.max_running=512" if tokens < 2**17 else "generator.max_running=128",
        "run.name=bench",
        f"run.directory={directory / 'runs'}",
    ]
    train(load_config(GRPOConfig, overrides))
    lines = [json.loads(line) for line in (directory / "runs" / "bench" / "metrics.jsonl").read_text().splitlines()]
    # Step 0 is the start, the last one also evaluates and saves.
    measured = [line for line in lines if WARM_UP < line["step"] < steps]
    phases = {phase: statistics.median(line.get(f"time/{phase}_s", 0.0) for line in measured) for phase in PHASES}
    return {
        "step_s": statistics.median(line["time/step_s"] for line in measured),
        "phases_s": phases,
        "answer_tokens": statistics.mean(line["rollout/response_tokens"] for line in measured),
    }


def run_trl(workload: Workload, directory: Path, steps: int) -> dict[str, Any]:
    """Measure TRL's trainer on the model of this directory, in fp32."""
    ends = json.loads((directory / "generation_config.json").read_text())["eos_token_id"]
    branches = workload.prompts * workload.group
    per_pass = min(branches, 128)
    return trl_steps(
        str(directory),
        "float32",
        read_prompts(directory),
        output_dir=str(directory / "trl"),
        per_device_train_batch_size=per_pass,
        gradient_accumulation_steps=branches // per_pass,
        num_generations=workload.group,
        max_completion_length=workload.answer,
        generation_kwargs={"eos_token_id": ends},
        learning_rate=1e-4,
        max_steps=steps,
    )


def trl_steps(model: str, dtype: str, prompts: Sequence[Any], **settings: Any) -> dict[str, Any]:
    """Return median seconds between optimizer steps of TRL's trainer with its own generation, and tokens an answer."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(os.cpu_count() or 1)
    lengths: list[int] = []

    def score(completion_ids: list[list[int]], **_: Any) -> list[float]:
        lengths.extend(len(ids) for ids in completion_ids)
        return [even_share(ids) for ids in completion_ids]

    config = GRPOConfig(
        use_cpu=True,
        bf16=False,
        beta=0.0,
        temperature=1.0,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        gradient_checkpointing=False,
        disable_tqdm=True,
        **settings,
    )
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)),
        reward_funcs=score,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=AutoTokenizer.from_pretrained(model),
        callbacks=[Clock()],
    )
    trainer.train()
    steps_s = [end - start for start, end in itertools.pairwise(times)][WARM_UP - 1 :]
    return {"step_s": statistics.median(steps_s), "answer_tokens": statistics.mean(lengths)}


def run_bare_generation(workload: Workload, directory: Path, steps: int) -> dict[str, Any]:
    """Median seconds of vLLM alone for a step's requests: its offline engine, no Ray, nothing else in the way."""
    from troupe.hardware import LOOPBACK, set_up_generator

    set_up_generator(0, 1, None, LOOPBACK)
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams

    tokenizer = AutoTokenizer.from_pretrained(directory)
    llm = LLM(
        str(directory),
        dtype="float32",
        enforce_eager=True,
        max_model_len=workload.prompt + workload.answer,
        max_num_seqs=512 if workload.prompts * workload.group * (workload.prompt + workload.answer) < 2**17 else 128,
        enable_chunked_prefill=False,
        max_num_batched_tokens=16384,
        kv_cache_memory_bytes=2**30,
        logprobs_mode="processed_logprobs",
        seed=0,
    )
    prompts = read_prompts(directory)
    seconds = []
    for step in range(steps):
        texts = prompts[step * workload.prompts : (step + 1) * workload.prompts]
        requests = [{"prompt_token_ids": tokenizer(text)["input_ids"]} for text in texts]
        sampling = [
            SamplingParams(
                n=workload.group,
                temperature=1.0,
                max_tokens=workload.answer,
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
                seed=index,
            )
            for index in range(len(requests))
        ]
        started = time.perf_counter()
        llm.generate(requests, sampling, use_tqdm=False)
        seconds.append(time.perf_counter() - started)
    return {"generation_s": statistics.median(seconds[WARM_UP:])}


def run_bare_update(workload: Workload, directory: Path, steps: int) -> dict[str, Any]:
    """Median seconds of one update: our engine under ZeRO-3, and a bare PyTorch loop on the same packed rows."""
    from troupe.hardware import set_up_process

    set_up_process(master_port=29_555)
    import torch

    from troupe.actors.engine import Engine
    from troupe.actors.process_group import prepare_extension
    from troupe.algorithms.advantage_stage import with_loss_weights
    from troupe.algorithms.loading import load_model
    from troupe.algorithms.logprobs import PackedModel
    from troupe.algorithms.objective import PolicyObjective
    from troupe.algorithms.packing import Batch, pack
    from troupe.config.algorithm import AlgorithmConfig
    from troupe.config.models import PolicyConfig
    from troupe.records import Branch, Group, Sample

    prepare_extension()
    rng = random.Random(0)
    groups = [
        Group(
            sample=Sample(sample_id=str(index), prompt=""),
            prompt_ids=[rng.randrange(4, 200) for _ in range(workload.prompt)],
            branches=[
                Branch(token_ids=[rng.randrange(4, 200) for _ in range(_length(rng, workload))])
                for _ in range(workload.group)
            ],
        )
        for index in range(workload.prompts)
    ]
    batch = with_loss_weights(Batch.from_groups(groups), "token_mean")
    batch = batch.with_columns(
        advantages=torch.randn(batch.num_tokens), old_logprobs=torch.full((batch.num_tokens,), -6.0)
    )
    config = PolicyConfig(precision="fp32", row_tokens=4096)
    engine = Engine(str(directory), config, total_steps=1000)
    objective = PolicyObjective(AlgorithmConfig())
    bare = PackedModel(load_model(str(directory), "fp32"))
    optimizer = torch.optim.AdamW(bare.parameters(), lr=1e-4)
    rows, branch_ids = pack(batch, config.row_tokens), batch.branch_ids

    def bare_step() -> None:
        for row in rows:
            logprobs, entropy = bare(row)
            columns = {name: column[row.token_index] for name, column in batch.columns.items()}
            loss, _ = objective(logprobs, entropy, {**columns, "branch_ids": branch_ids[row.token_index]})
            loss.backward()
        torch.nn.utils.clip_grad_norm_(bare.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    ours, limit = _in_turn(lambda: engine.update(batch, objective), bare_step, steps)
    weights = [tensor.clone() for tensor in bare.parameters()]
    copies = _seconds(lambda: [tensor.clone() for tensor in weights], steps)
    engine.close()
    return {
        "engine_s": ours,
        "bare_update_s": limit,
        "copy_s": copies,
        "bytes": sum(tensor.nbytes for tensor in weights),
    }


def _length(rng: random.Random, workload: Workload) -> int:
    if workload.mean_answer is None:
        return workload.answer
    return max(1, min(workload.answer, int(rng.expovariate(1 / workload.mean_answer))))


def _in_turn(first: Callable[[], Any], second: Callable[[], Any], times: int) -> tuple[float, float]:
    """Median seconds of two calls made alternately, so that a slow minute of the machine meets both."""
    pairs = [(_once(first), _once(second)) for _ in range(times + WARM_UP)][WARM_UP:]
    return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)


def _seconds(call: Callable[[], Any], times: int) -> float:
    return statistics.median(_once(call) for _ in range(times))


def _once(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


PARTS = {"troupe": run_troupe, "trl": run_trl, "bare_generation": run_bare_generation, "bare_update": run_bare_update}


# -- the driver ---------------------------------------------------------------------------------------------


def measure(name: str, steps: int, parts: list[str]) -> dict[str, Any]:
    """Every part of one workload, and the ratios."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        prepare(WORKLOADS[name], directory, steps)
        found: dict[str, Any] = {}
        for part in parts:
            output = directory / f"{part}.json"
            command = [
                sys.executable,
                __file__,
                "--part",
                part,
                "--workloads",
                name,
                "--steps",
                str(steps),
                "--output",
                str(output),
                "--directory",
                scratch,
            ]
            print(f"{name}: {part} ...", flush=True)
            log = directory / f"{part}.log"
            with log.open("w") as stream:
                code = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT).returncode
            if code != 0:
                tail = "\n".join(log.read_text().splitlines()[-12:])
                raise SystemExit(f"{name}: {part} ended with {code}:\n{tail}")
            found[part] = json.loads(output.read_text())
    return {**found, "ratios": ratios(WORKLOADS[name], found)}


def ratios(workload: Workload, found: dict[str, Any]) -> dict[str, float]:
    """TRL / Troupe of a step; limit / ours of each phase (1 is the limit itself)."""
    result: dict[str, float] = {}
    roles = found.get("troupe")
    if roles and "trl" in found:
        result["step: TRL / Troupe"] = found["trl"]["step_s"] / roles["step_s"]
        result["aim"] = workload.aim
    if roles and "bare_generation" in found:
        result["generation: bare vLLM / Troupe"] = (
            found["bare_generation"]["generation_s"] / roles["phases_s"]["rollout"]
        )
    if "bare_update" in found:
        bare = found["bare_update"]
        result["update: bare PyTorch / engine"] = bare["bare_update_s"] / bare["engine_s"]
        if roles:
            result["sync: copy of the bytes / sync"] = bare["copy_s"] / roles["phases_s"]["publish"]
    if roles:
        phases = roles["phases_s"]
        named = phases["rollout"] + phases["update"] + phases["publish"]
        result["share outside generation, update and sync"] = max(0.0, 1 - named / roles["step_s"])
    return result


def machine() -> dict[str, Any]:
    from troupe.hardware import cpu_features, hardware

    known = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")
    return {
        "cores": hardware().num_cores,
        "instructions": next((name for name in known if name in cpu_features()), "unknown"),
        "platform": platform.platform(),
        "gpus": hardware().num_gpus,
        "load_average": os.getloadavg()[2],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds of a GRPO step beside TRL and beside each phase's limit.")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="comma-separated")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated: " + ", ".join(PARTS))
    parser.add_argument("--steps", type=int, default=8, help="steps of each part; the first two are not counted")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "grpo_step.json")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    names = given.workloads.split(",")
    if given.part:
        found = PARTS[given.part](WORKLOADS[names[0]], given.directory, given.steps)
        given.output.write_text(json.dumps(found))
        return
    results: dict[str, Any] = {}
    given.output.parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        results[name] = measure(name, given.steps, given.parts.split(","))
        # After each workload: one can take many minutes, and what is measured should not be lost with the next.
        facts = {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "steps": given.steps}
        given.output.write_text(json.dumps({**facts, "workloads": results}, indent=2) + "\n")
    for name, result in results.items():
        print(name, json.dumps({label: round(value, 3) for label, value in result["ratios"].items()}, indent=2))


if __name__ == "__main__":
    main()
