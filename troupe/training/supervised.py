"""The loop that SFT, reward models and DPO share; what differs between them is a `SupervisedTask`.

A step draws the next samples that can be encoded, gives the engine one batch, and logs. The held-out loss is measured
before the first step, every n steps and after the last; it, or a metric of generated answers, chooses the best checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from troupe.actors.placement import RankPlacement, policy_placement
from troupe.actors.trained import TrainedModel
from troupe.algorithms.objective import Objective
from troupe.algorithms.packing import Batch
from troupe.config.supervised import GeneratingConfig, SupervisedConfig
from troupe.data import PromptStream, position_in
from troupe.errors import DataError
from troupe.records import Group, Sample
from troupe.runs.checkpoint import save_state
from troupe.runs.run import Run
from troupe.training.held_out import HeldOutAnswers
from troupe.training.perform import RunContext, perform
from troupe.training.preparation import Prepared, prepare
from troupe.training.roles import RoleStarter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


class SupervisedTask(ABC):
    """What one kind of supervised training adds to the loop."""

    name: str
    """Before metrics without a path of their own, such as sft/grad_norm."""
    head = "vocabulary"
    objective: Objective
    best: str
    """Held-out metric of the best checkpoint, unless the recipe names another."""

    @abstractmethod
    def encode(self, tokenizer: PreTrainedTokenizerBase, sample: Sample) -> Group | None:
        """The sample as a group, or None when it cannot be trained on."""

    @abstractmethod
    def prepare(self, batch: Batch, groups: Sequence[Group], course: SupervisedContext) -> Batch:
        """The batch of one optimizer step with the columns that the objective reads."""

    def begin(self, course: SupervisedContext, *, steps: int) -> None:  # noqa: B027 - most lessons need nothing here
        """With the starting weights in place, before the first step or a resume."""

    def evaluate(self, course: SupervisedContext) -> dict[str, float]:
        """Held-out metrics by their last name."""
        metrics = course.model.measure(course.heldout, self.objective)
        return {name.rpartition("/")[2]: value for name, value in metrics.items() if name.rpartition("/")[2] != "loss"}

    def before_save(self, course: SupervisedContext) -> None:  # noqa: B027
        """Before every checkpoint."""

    def state(self) -> dict[str, Any]:
        """What a resume needs beside weights, step and position."""
        return {}

    def restore(self, state: dict[str, Any], course: SupervisedContext) -> None:  # noqa: B027
        """Take up what `state` gave."""


class Examples:
    """Training samples as groups, in seeded order; those that cannot be encoded are passed over and counted."""

    def __init__(
        self, samples: Sequence[Sample], lesson: SupervisedTask, tokenizer: PreTrainedTokenizerBase, *, seed: int
    ) -> None:
        self._samples, self._lesson, self._tokenizer, self._seed = samples, lesson, tokenizer, seed
        self.stream = PromptStream(samples, seed)
        self._encoded: dict[str, Group | None] = {}
        self.left_out = 0
        """Samples met so far that cannot be trained on."""

    def start_at(self, position: int) -> None:
        self.stream = PromptStream(self._samples, self._seed, position=position)

    def draw(self, count: int, stream: PromptStream | None = None) -> list[Group]:
        """The next `count` groups."""
        stream = stream or self.stream
        groups: list[Group] = []
        misses = 0
        while len(groups) < count:
            (sample,) = stream.take(1)
            group = self.encode(sample)
            if group is not None:
                groups.append(group)
                misses = 0
                continue
            misses += 1
            if misses >= len(self._samples):
                raise DataError(
                    f"none of the {len(self._samples)} training samples can be used: each is longer than max_length, or "
                    "its answers are equal within it; raise max_length"
                )
        return groups

    def encode(self, sample: Sample) -> Group | None:
        """The group of a sample, remembered."""
        if sample.sample_id not in self._encoded:
            self._encoded[sample.sample_id] = self._lesson.encode(self._tokenizer, sample)
            self.left_out += self._encoded[sample.sample_id] is None
        return self._encoded[sample.sample_id]

    def of_the_run(self, count: int) -> list[Group]:
        """Every group among the first `count` draws of the run, once each."""
        stream = PromptStream(self._samples, self._seed)
        seen: dict[str, Group] = {}
        for _ in range(count):
            (group,) = self.draw(1, stream)
            seen[group.sample.sample_id] = group
            if stream.position >= len(self._samples) and count >= len(self._samples):
                break  # an epoch is over: all there are
        return list(seen.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedContext:
    """Who and what takes part in supervised training."""

    config: Any
    scene: RunContext
    model: TrainedModel[Any]
    tokenizer: PreTrainedTokenizerBase
    examples: Examples
    heldout_groups: Sequence[Group]
    heldout: Batch
    answers: HeldOutAnswers | None = None

    @property
    def run(self) -> Run:
        return self.scene.run


def train_supervised(config: SupervisedConfig, lesson: SupervisedTask) -> None:
    """Run a supervised job from opening its directory to its summary."""
    perform(
        config,
        prepare_lesson(config, lesson),
        table=lambda device: _seats(config, device),
        cast=lambda scene: _start_task(config, lesson, scene),
        play=lambda scene, course: teach(config, lesson, course),
        init_timeout_s=config.engine.init_timeout_s,
    )


def prepare_lesson(config: SupervisedConfig, lesson: SupervisedTask) -> Prepared:
    """All that is found out before the first process."""
    generation = config.generation if isinstance(config, GeneratingConfig) else None
    return prepare(config, metrics=generation.metrics if generation is not None else (), encode=lesson.encode)


def _seats(config: SupervisedConfig, device: str) -> list[RankPlacement]:
    generator = config.generator if isinstance(config, GeneratingConfig) and config.generation is not None else None
    colocated = config.placement.mode == "colocated"
    return policy_placement(config.engine.num_ranks, generator, colocated=colocated, gpu=int(device == "cuda"))


@contextlib.contextmanager
def _start_task(config: SupervisedConfig, lesson: SupervisedTask, scene: RunContext) -> Iterator[SupervisedContext]:
    """Start the model, and the engine of held-out answers where the recipe wants them."""
    with contextlib.ExitStack() as stack:
        casting = RoleStarter(
            stack,
            scene.cluster,
            config.model,
            scene.model_path,
            colocated=config.placement.mode == "colocated",
            precision=scene.precision,
            seed=config.seed,
        )
        total = config.num_steps(len(scene.data.train))
        generation = config.generation if isinstance(config, GeneratingConfig) else None
        answers = None
        model: TrainedModel[Any]
        if generation is None:
            model = casting.trained(config.engine, name=lesson.name, head=lesson.head, total_steps=total)
        else:
            assert isinstance(config, GeneratingConfig)
            model = policy = casting.policy(config.engine, total_steps=total, name=lesson.name)
            answers = HeldOutAnswers.cast(stack, casting, config, generation, scene.data, policy)
        examples = Examples(scene.data.train, lesson, casting.tokenizer, seed=config.seed)
        heldout = _heldout(config, lesson, scene, casting.tokenizer)
        course = SupervisedContext(
            config=config,
            scene=scene,
            model=model,
            tokenizer=casting.tokenizer,
            examples=examples,
            heldout_groups=heldout,
            heldout=Batch.from_groups(heldout),
            answers=answers,
        )
        if answers is not None:
            answers.start(casting.transport)
        model.ready()
        yield course


def _heldout(
    config: SupervisedConfig, lesson: SupervisedTask, scene: RunContext, tokenizer: PreTrainedTokenizerBase
) -> list[Group]:
    samples = scene.data.heldout[: config.evaluation.num_samples]
    groups = [group for sample in samples if (group := lesson.encode(tokenizer, sample)) is not None]
    if not groups:
        raise DataError(
            f"none of the {len(samples)} held-out samples of {scene.data.name} can be used within max_length ({config.max_length}); raise it"
        )
    if len(groups) < len(samples):
        log.info(
            "%d of %d held-out samples are left out: too long, or equal answers",
            len(samples) - len(groups),
            len(samples),
        )
    return groups


def teach(config: SupervisedConfig, lesson: SupervisedTask, course: SupervisedContext) -> None:
    """Every step from the last checkpoint, or from the beginning, to the end."""
    run, examples = course.run, course.examples
    steps = config.num_steps(len(course.scene.data.train))
    lesson.begin(course, steps=steps)
    first, owed = resume(lesson, course)
    if first == 0:
        evaluate(config, lesson, course, step=0)
        run.end_step(0)
    elif owed:
        finish(config, lesson, course, first, last=first >= steps)
    for step in run.steps(first + 1, steps):
        started = time.perf_counter()
        with run.timed("draw"):
            groups = examples.draw(config.batch_size)
            batch = Batch.from_groups(groups)
        with run.timed("prepare"):
            batch = lesson.prepare(batch, groups, course)
        with run.timed("update"):
            run.log(course.model.step([batch], lesson.objective))
        tokens = int(batch.packed_sizes.sum())
        run.log({"data/tokens": tokens, "data/left_out": examples.left_out})
        run.log({"tokens_per_second": tokens / (time.perf_counter() - started)})
        last = run.is_last(step)
        if last or (config.checkpoint.every and step % config.checkpoint.every == 0):
            save(lesson, course, step)
        finish(config, lesson, course, step, last=last)


def finish(
    config: SupervisedConfig, lesson: SupervisedTask, course: SupervisedContext, step: int, *, last: bool
) -> None:
    """Evaluate where it is due and write the step's line. A step whose process died between its checkpoint and here owes
    this, and the next process begins with it."""
    if last or (config.evaluation.every and step % config.evaluation.every == 0):
        value, higher = evaluate(config, lesson, course, step)
        course.run.checkpoints.record_metric(step, value, higher)
    course.run.end_step(step)


def evaluate(
    config: SupervisedConfig, lesson: SupervisedTask, course: SupervisedContext, step: int
) -> tuple[float, bool]:
    """Measure the held-out set; the metric that chooses the best checkpoint, and whether higher is better."""
    run, name = course.run, course.scene.data.name
    with run.timed("evaluate"):
        metrics = {f"eval/{name}/{metric}": value for metric, value in lesson.evaluate(course).items()}
    if course.answers is not None:
        metrics |= course.answers.evaluate(run, step).metrics
    run.log(metrics)
    best = config.evaluation.best_metric or lesson.best
    if f"eval/{name}/{best}" not in metrics:
        known = ", ".join(metric.rpartition("/")[2] for metric in metrics)
        raise DataError(f"evaluation.best_metric {best!r} is not measured; known here: {known}")
    return metrics[f"eval/{name}/{best}"], config.evaluation.higher_is_better and best != "nll"


def save(lesson: SupervisedTask, course: SupervisedContext, step: int) -> None:
    """Write a checkpoint: weights in Hugging Face format, and all that `resume` needs."""
    run = course.run
    with run.timed("checkpoint"):
        lesson.before_save(course)
        facts = course.model.facts
        identity = {"model": facts["identity"]}
        with run.checkpoints.writing(step, metadata=identity, needs=facts["checkpoint_bytes"]) as path:
            course.model.save(str(path))
            stream = course.examples.stream
            place = {"position": stream.position, "samples": stream.size}
            save_state(path, {"step": step, **place, "lesson": lesson.state(), "so_far": run.so_far()})


def resume(lesson: SupervisedTask, course: SupervisedContext) -> tuple[int, bool]:
    """The step to go on from, that of the newest whole checkpoint, or 0; and whether that step still owes its end."""
    run = course.run
    step = run.checkpoints.resumable(course.model.damage, model=course.model.facts["identity"])
    if step is None:
        return 0, False
    state = run.checkpoints.load_state(step, position=int, lesson=dict)
    course.model.load(str(run.checkpoints.path(step)))
    course.examples.start_at(position_in(state, course.examples.stream.size))
    lesson.restore(state["lesson"], course)
    return step, run.resume_from(step, state.get("so_far", {}))
