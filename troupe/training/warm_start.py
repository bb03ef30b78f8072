"""The model a run starts from: a given one, or a small one made here and warmed up on the data's demonstrations.

What is made is cached under a hash of everything that determines it, written once, atomically.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from troupe.actors.placement import Cluster
from troupe.actors.trained import TrainedModel, TrainedWorker
from troupe.algorithms.advantage_stage import with_loss_weights
from troupe.algorithms.objective import SupervisedObjective
from troupe.algorithms.packing import Batch
from troupe.chat import ChatForm, demonstration_text, load_form, prompt_text
from troupe.config.models import ConversationConfig, ModelConfig, PolicyConfig, ScratchModelConfig
from troupe.data import DataSet
from troupe.disk import made_once
from troupe.records import Group, Sample
from troupe.runs.model_paths import locate
from troupe.training.examples import demonstration
from troupe.training.lengths import AT_LEAST, Limit, count_left_out
from troupe.training.scratch import demonstrations_of, texts_of, write_scratch_model

Progress = Callable[[int, int, dict[str, float]], None]
"""(step, steps, metrics) after each supervised step."""

STEPS_PER_CALL = 5
"""Supervised steps in one call to the worker, so that calls cost nothing beside them."""


def starting_model(
    config: ModelConfig, data: DataSet, cluster: Cluster, *, precision: str, seed: int, progress: Progress
) -> str:
    """Return the directory (or hub name) of the model to start from; of a run its best checkpoint."""
    if not isinstance(config, ScratchModelConfig):
        return locate(config.path)
    demonstrations = demonstrations_of(data)
    key = _cache_key(config, demonstrations, precision, seed)
    target = Path(config.cache) / key
    if (target / "config.json").is_file():
        return str(target)
    with made_once(target, "the model that a run starts from") as building:
        write_scratch_model(config, texts_of(demonstrations), str(building), seed)
        if config.warm_start.steps:
            _supervise(
                config, demonstrations, str(building), cluster, precision=precision, seed=seed, progress=progress
            )
    return str(target)


def _cache_key(config: ScratchModelConfig, demonstrations: Sequence[Sample], precision: str, seed: int) -> str:
    """Return a hash of all that determines the weights: settings, the demonstrations themselves, precision, seed."""
    # As they always were, so that models of before are found again.
    usual = {name for name in ConversationConfig.model_fields if name not in config.model_fields_set}
    digest = hashlib.sha256(json.dumps([config.model_dump(exclude={"cache", *usual}), precision, seed]).encode())
    for sample in demonstrations:
        digest.update(f"{prompt_text(sample)}\0{demonstration_text(sample)}\0".encode())
    return digest.hexdigest()[:16]


def _supervise(
    config: ScratchModelConfig,
    samples: Sequence[Sample],
    directory: str,
    cluster: Cluster,
    *,
    precision: str,
    seed: int,
    progress: Progress,
) -> None:
    """Train the model in `directory` on demonstrations and write it back."""
    warm, form = config.warm_start, load_form(directory, config.chat_settings)
    engine = PolicyConfig(
        zero_stage=1,
        precision="bf16" if precision == "bf16" else "fp32",
        learning_rate=warm.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=0.01,
        schedule="linear",
        warmup_steps=min(50, warm.steps // 4),
        min_lr_ratio=0.05,
        row_tokens=2048,
    )
    group = cluster.workers(TrainedWorker, [{"rank": 0, "world_size": 1}], role="warm start")
    policy = TrainedModel(group, engine, name="sft")
    try:
        policy.start(directory, total_steps=warm.steps, seed=seed, chat=form.record)
        batches = _demonstration_batches(
            samples,
            form,
            config,
            prompt_weight=warm.prompt_weight,
            size=warm.demonstrations_per_step,
            seed=seed,
        )
        policy.ready()
        for done in range(0, warm.steps, STEPS_PER_CALL):
            count = min(STEPS_PER_CALL, warm.steps - done)
            metrics = policy.update([next(batches) for _ in range(count)], SupervisedObjective())
            progress(done + count, warm.steps, metrics)
        policy.save(directory, trainer_state=False)
    finally:
        policy.shutdown()


def _demonstration_batches(
    samples: Sequence[Sample], form: ChatForm, config: ScratchModelConfig, *, prompt_weight: float, size: int, seed: int
) -> Iterator[Batch]:
    """Yield batches of demonstrations in seeded order, with loss weights; those longer than the model are left out."""
    encoded: dict[str, Group] = {}

    def encode(sample: Sample) -> Group | None:
        if sample.sample_id not in encoded:
            encoded[sample.sample_id] = demonstration(form, sample, whole=prompt_weight > 0)
        group = encoded[sample.sample_id]
        return group if group.num_tokens <= config.max_length else None

    def excess(sample: Sample) -> int | None:
        return encoded[sample.sample_id].num_tokens if encode(sample) is None else None

    limit = Limit(tokens=config.max_length, field="model.max_length")
    count_left_out("demonstrations of the warm start", samples, excess, limit, enough=AT_LEAST)
    rng = random.Random(f"warm start/{seed}")
    order: list[int] = []
    while True:
        groups: list[Group] = []
        while len(groups) < size:
            if not order:
                order = list(range(len(samples)))
                rng.shuffle(order)
            group = encode(samples[order.pop()])
            if group is not None:
                groups.append(group)
        yield with_loss_weights(Batch.from_groups(groups), "token_mean", prompt_weight=prompt_weight)
