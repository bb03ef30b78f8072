"""The loop that SFT, reward models and DPO share; what differs between them is a `SupervisedTask`.

A step draws the next samples that can be encoded, gives the engine one batch, and logs. The held-out loss is measured
before the first step, every n steps and after the last; it, or a metric of generated answers, chooses the best
checkpoint.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from troupe.actors.trained import TrainedModel
from troupe.algorithms.packing import Batch
from troupe.chat import ChatForm
from troupe.config.supervised import GeneratingConfig, SupervisedConfig
from troupe.data import DataSet, MixedStream, PromptStream, stream_of
from troupe.errors import DataError
from troupe.processes.waiting import waiting
from troupe.records import Group, Sample
from troupe.runs.checkpoint import save_state
from troupe.runs.run import Run
from troupe.training.context import RunContext, attempts, open_context
from troupe.training.held_out import HeldOutAnswers
from troupe.training.result import TrainingResult, read_result
from troupe.training.roles import RoleStarter
from troupe.training.task import SupervisedTask, prepare_task


class Examples:
    """Training samples as groups, in seeded order; those that cannot be encoded are passed over and counted."""

    def __init__(
        self,
        data: DataSet,
        task: SupervisedTask,
        form: ChatForm,
        *,
        seed: int,
        encoded: Mapping[str, Group | None] | None = None,
    ) -> None:
        """Prepare to draw; `encoded` are groups of samples, by their ids, that were made before."""
        self._data, self._samples, self._seed = data, data.train, seed
        self._task, self._form = task, form
        self.stream = stream_of(data, seed)
        self._encoded = dict(encoded or {})
        self._unusable: set[str] = set()

    @property
    def left_out(self) -> int:
        """Samples met so far that cannot be trained on."""
        return len(self._unusable)

    @property
    def num_usable(self) -> int:
        """Samples that can be trained on: an epoch of the run."""
        return sum(self.encode(sample) is not None for sample in self._samples)

    def start_at(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.stream = stream_of(self._data, self._seed, state)

    def draw(self, count: int, stream: PromptStream | MixedStream | None = None) -> list[Group]:
        """Return the next `count` groups."""
        stream = stream or self.stream
        groups: list[Group] = []
        while len(groups) < count:
            (sample,) = stream.take(1)
            group = self.encode(sample)
            if group is not None:
                groups.append(group)
            elif self.left_out == len(self._samples):
                raise DataError(
                    f"none of the {len(self._samples)} training samples can be used: each is longer than max_length, "
                    "or its answers are equal within it; raise max_length"
                )
        return groups

    def encode(self, sample: Sample) -> Group | None:
        """Return the group of a sample, remembered."""
        if sample.sample_id not in self._encoded:
            self._encoded[sample.sample_id] = self._task.encode(self._form, sample)
        if self._encoded[sample.sample_id] is None:
            self._unusable.add(sample.sample_id)
        return self._encoded[sample.sample_id]

    def of_the_run(self, count: int) -> list[Group]:
        """Return every group among the first `count` draws of the run, once each."""
        if self._data.weights:  # other weights after a resume would draw others
            return [group for sample in self._samples if (group := self.encode(sample)) is not None]
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
    """A model in supervised training, its examples, and the run that it belongs to."""

    context: RunContext
    model: TrainedModel[Any]
    form: ChatForm
    examples: Examples
    heldout_groups: Sequence[Group]
    heldout: Batch
    answers: HeldOutAnswers | None = None
    others: Mapping[str, Sequence[Group]] = field(default_factory=dict)
    """Further held-out sets, and the parts of a mixture's, by name."""
    part: str | None = None
    """Which of them the held-out groups are; None: the run's own set."""

    def measuring(self, name: str) -> SupervisedContext:
        """Return this with another of the sets as the held-out one."""
        groups = self.others[name]
        return replace(self, heldout_groups=groups, heldout=Batch.from_groups(groups), part=name)

    @property
    def run(self) -> Run:
        return self.context.run


def train_supervised(config: SupervisedConfig, task: SupervisedTask) -> TrainingResult:
    """Train `config` on `task`, from opening its directory to its summary."""
    with open_context(config, prepare_task(config, task), init_timeout_s=config.engine.init_timeout_s) as context:
        for attempt in attempts(context):
            with start_training(config, task, context) as supervised, attempt:
                train_loop(config, task, supervised)
    return read_result(config.run.path)


@contextlib.contextmanager
def start_training(config: SupervisedConfig, task: SupervisedTask, context: RunContext) -> Iterator[SupervisedContext]:
    """Start the model, and the engine of held-out answers where the config wants them."""
    with contextlib.ExitStack() as stack, contextlib.ExitStack() as starting:
        starting.enter_context(waiting("the roles start"))
        starter = RoleStarter.of(config, context, stack)
        examples = Examples(context.data, task, starter.form, seed=config.seed, encoded=context.encoded)
        total = config.steps or config.num_steps(examples.num_usable)
        generation = config.generation if isinstance(config, GeneratingConfig) else None
        answers = None
        model: TrainedModel[Any]
        if generation is None:
            model = starter.trained(config.engine, name=task.name, head=task.head, total_steps=total)
        else:
            assert isinstance(config, GeneratingConfig)
            model = policy = starter.policy(config.engine, total_steps=total, name=task.name)
            answers = HeldOutAnswers.place(stack, starter, config, generation, context.data, policy)
        sets = encode_heldout(config, task, context, starter.form)
        heldout = sets.pop(context.data.name)
        if answers is not None:
            answers.start(starter.transport)
        model.ready()
        starting.close()
        yield SupervisedContext(
            context=context,
            model=model,
            form=starter.form,
            examples=examples,
            heldout_groups=heldout,
            heldout=Batch.from_groups(heldout),
            answers=answers,
            others=sets,
        )


def encode_heldout(
    config: SupervisedConfig, task: SupervisedTask, context: RunContext, form: ChatForm
) -> dict[str, list[Group]]:
    """Return the samples of each held-out set that can be evaluated, as groups; DataError where a set has none."""
    known = context.encoded
    sets = {}
    for name, samples in context.data.heldout_sets(config.evaluation.num_samples).items():
        made = (known[each.sample_id] if each.sample_id in known else task.encode(form, each) for each in samples)
        sets[name] = [group for group in made if group is not None]
        if not sets[name]:
            raise DataError(
                f"none of the {len(samples)} held-out samples of {name} can be used within max_length "
                f"({config.max_length}); raise it"
            )
    return sets


def train_loop(config: SupervisedConfig, task: SupervisedTask, supervised: SupervisedContext) -> None:
    """Train every step from the last checkpoint, or from the beginning, to the end."""
    run, examples = supervised.run, supervised.examples
    steps = config.steps or config.num_steps(examples.num_usable)
    task.begin(supervised, steps=steps)
    first, owed = resume(task, supervised)
    if first == 0:
        evaluate(config, task, supervised, step=0)
        run.end_step(0)
    elif owed:
        finish(config, task, supervised, first, last=first >= steps)
    for step in run.steps(first + 1, steps):
        started = time.perf_counter()
        with run.timed("draw"):
            groups = examples.draw(config.batch_size)
            batch = Batch.from_groups(groups)
        with run.timed("prepare"):
            batch = task.prepare(batch, groups, supervised)
        with run.timed("update"):
            run.log(supervised.model.update([batch], task.objective))
        tokens = int(batch.packed_sizes.sum())
        run.log({"data/tokens": tokens, "data/left_out": examples.left_out})
        run.log(examples.stream.metrics())
        run.log({"tokens_per_second": tokens / (time.perf_counter() - started)})
        last = run.is_last(step)
        if last or (config.checkpoint.every and step % config.checkpoint.every == 0):
            save(task, supervised, step)
        finish(config, task, supervised, step, last=last)


def finish(
    config: SupervisedConfig, task: SupervisedTask, supervised: SupervisedContext, step: int, *, last: bool
) -> None:
    """Evaluate where it is due and write the step's line. A step whose process died between its checkpoint and here
    owes
    this, and the next process begins with it.
    """
    if last or (config.evaluation.every and step % config.evaluation.every == 0):
        value, higher = evaluate(config, task, supervised, step)
        supervised.run.checkpoints.record_metric(step, value, higher)
    supervised.run.end_step(step)


def evaluate(
    config: SupervisedConfig, task: SupervisedTask, supervised: SupervisedContext, step: int
) -> tuple[float, bool]:
    """Measure the held-out set; the metric that chooses the best checkpoint, and whether higher is better."""
    run, name = supervised.run, supervised.context.data.name
    with run.timed("evaluate"):
        sets = {**{other: supervised.measuring(other) for other in supervised.others}, name: supervised}
        metrics = {
            f"eval/{each}/{metric}": value
            for each, measured in sets.items()
            for metric, value in task.evaluate(measured).items()
        }
    if supervised.answers is not None:
        metrics |= supervised.answers.evaluate(run, step).metrics
    run.log(metrics)
    best = config.evaluation.best_metric or task.best
    value = metrics.get(f"eval/{best}", metrics.get(f"eval/{name}/{best}"))  # of a set that it names, else of its own
    if value is None:
        known = ", ".join(metric.removeprefix(f"eval/{name}/").removeprefix("eval/") for metric in metrics)
        raise DataError(f"evaluation.best_metric {best!r} is not measured; known here: {known}")
    return value, config.evaluation.higher_is_better and best.rpartition("/")[2] != "nll"


def save(task: SupervisedTask, supervised: SupervisedContext, step: int) -> None:
    """Write a checkpoint: weights in Hugging Face format, and all that `resume` needs."""
    run = supervised.run
    with run.timed("checkpoint"):
        task.before_save(supervised)
        facts = supervised.model.facts
        place = supervised.examples.stream.state()

        def fill(path: Path) -> None:
            supervised.model.save(str(path))
            save_state(path, {"step": step, **place, "lesson": task.state(), "so_far": run.so_far()})

        identity = {"model": facts["identity"]}
        run.checkpoints.write(step, fill, metadata=identity, needs=facts["checkpoint_bytes"])


def resume(task: SupervisedTask, supervised: SupervisedContext) -> tuple[int, bool]:
    """Return the step to go on from, that of the newest whole checkpoint, or 0; and whether that step still owes its
    end.
    """
    run = supervised.run
    step = run.checkpoints.resumable(supervised.model.damage, model=supervised.model.facts["identity"])
    if step is None:
        return 0, False
    state = run.checkpoints.load_state(step, position=int, lesson=dict)
    supervised.model.load(str(run.checkpoints.path(step)))
    supervised.examples.start_at(state)
    task.restore(state["lesson"], supervised)
    return step, run.resume_from(step, state.get("so_far", {}))
