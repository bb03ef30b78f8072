"""Rollouts: from prompts to scored groups, on-policy or a bounded number of steps ahead of the trainer.

`Rollouts.next_batch(step)` is the whole interface. Prompts of step s are handed to the generators once version s - 1 -
max_lag is published and not before, so no token can be older than `max_lag` steps when it is trained on; nothing has to
be thrown away to keep that bound. Groups are consumed in the order of their prompts, whatever order they finish in.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from troupe.actors.generator import Request, branch_seed
from troupe.actors.generators import Generators
from troupe.actors.rewarder import Rewarder
from troupe.algorithms.advantages import has_signal
from troupe.chat import AnyTokenizer, ChatForm, form_of
from troupe.config.rollout import RolloutConfig
from troupe.data import MixedStream, PromptStream
from troupe.data.dataset import SOURCE
from troupe.errors import DataError, PeerError, RewardError, WorkerError
from troupe.processes.futures import then, wait_all
from troupe.records import Group, Sample
from troupe.runs.call_log import Watch
from troupe.training.sampled_answers import Answers, SingleTurns, with_outcomes

log = logging.getLogger(__name__)

MAX_MISSING = 0.5
"""A step in which more than this share of the judgements is missing would train on what the judge happened to answer.
"""


Recover = Callable[[PeerError], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """The groups that a step trains on, and what was measured while they were made."""

    groups: Sequence[Group]
    metrics: Mapping[str, float]


class CallWatcher(Protocol):
    """A log of the calls of models: `Run`."""

    def watch_calls(self, step: int, purpose: str) -> Watch | None:
        """Return what takes each call of `step`; None where nothing is logged."""


@dataclass(slots=True)
class _Draw:
    """A step's prompts in flight: where they start in the stream, and the groups to come."""

    start: Mapping[str, Any]
    since: float = field(default_factory=time.monotonic)
    """When its prompts were handed over; with steps ahead, long before anybody waits for them."""
    until: float = 0.0
    """When its last group so far was scored."""
    groups: list[Future[Group]] = field(default_factory=list)
    taken: Counter[str] = field(default_factory=Counter)
    """Groups so far by sample: with fewer samples than prompts in a step some come again."""


class Rollouts:
    """Draws prompts, has them continued and scored, and hands out steps."""

    def __init__(
        self,
        prompts: PromptStream | MixedStream,
        reader: AnyTokenizer | ChatForm,
        generators: Generators,
        rewarder: Rewarder,
        config: RolloutConfig,
        *,
        seed: int,
        last_step: int,
        requires_group: bool,
        calls: CallWatcher | None = None,
        answers: Answers | None = None,
        recover: Recover | None = None,
    ) -> None:
        """Prepare to sample; with `requires_group` a group that keeps fewer than two answers is dropped.

        `calls` logs the calls of the models. `answers` continues the prompts; without it each is one turn of the
        generators. `recover` mends a process that died or is late while groups are waited for, or raises.
        """
        self._prompts, self._form = prompts, form_of(reader)
        self._generators, self._rewarder = generators, rewarder
        self._answers = answers or SingleTurns(generators)
        self._config, self._seed, self._last_step = config, seed, last_step
        self._fewest = 2 if requires_group else 1
        self._in_flight: dict[int, _Draw] = {}
        self._dropped_prompts = 0
        self._calls, self._recover = calls, recover
        self._trouble: Counter[str] = Counter()
        """What judges of missing scores answered in this step."""
        self._missing = 0
        """Branches of this step whose score is missing."""

    def prefetch(self, version: int) -> None:
        """Start every step that may see the weights of `version`: those up to version + 1 + max_lag."""
        for step in range(version + 1, min(version + 1 + self._config.max_lag, self._last_step) + 1):
            if step not in self._in_flight:
                draw = self._in_flight[step] = _Draw(self._prompts.state())
                draw.groups = self._start(step, self._config.prompts_per_step)

    def next_batch(self, step: int) -> Rollout:
        """Return the scored groups of `step`; what went wrong on the way is an error with a name or a metric."""
        self.prefetch(step - 1)
        self._trouble.clear()
        self._missing = 0
        groups = [self._complete(group) for group in self._await(self._in_flight[step].groups)]
        judged = groups  # all that the rewards saw, also what dynamic sampling replaces
        if self._config.dynamic_sampling.enabled:
            groups, replacements = self._replace(step, groups)
            judged = [*judged, *replacements]
        self._prompts.observe(judged)
        kept = [group for group in groups if len(group.branches) >= self._fewest]
        metrics = self._measure(step, judged, kept)
        metrics["rollout/replaced_prompts"] = len(judged) - self._config.prompts_per_step
        draw = self._in_flight[step]
        sampled = sum(branch.num_sampled for group in judged for branch in group.branches)
        metrics["rollout/tokens_per_second"] = sampled / max(draw.until - draw.since, 1e-3)
        if metrics["reward/missing_fraction"] > MAX_MISSING:
            raise RewardError(
                f"{metrics['reward/missing_fraction']:.0%} of the judgements of step {step} are missing (at most "
                f"{MAX_MISSING:.0%} may be); {self._reason()}look at the judge: its address, its key, its timeout_s "
                "and retries"
            )
        del self._in_flight[step]  # from here on a checkpoint's position is behind these prompts
        return Rollout(groups=kept, metrics=metrics)

    def state(self) -> dict[str, Any]:
        """Return what resuming needs: the stream's size, and position before prompts drawn but not trained on."""
        places = [*(draw.start for draw in self._in_flight.values()), self._prompts.state()]
        return dict(min(places, key=lambda place: place["position"]))

    # -- drawing ------------------------------------------------------------------------------------------

    def _start(self, step: int, count: int) -> list[Future[Group]]:
        draw = self._in_flight[step]
        drawn, taken = self._draw(count), draw.taken
        requests = []
        for sample, ids in drawn:
            requests.append(self._request(step, sample, ids, copy=taken[sample.sample_id]))
            taken[sample.sample_id] += 1
        # Strictly on-policy nothing is asked ahead, so a batch can have the engines to itself and repeat bit by bit.
        groups = self._answers.submit(requests, [sample for sample, _ in drawn], alone=self._config.max_lag == 0)
        tell = self._calls.watch_calls(step, "rollout") if self._calls is not None else None

        def watch(group: Group, requested_at: float, received_at: float) -> None:
            draw.until = max(draw.until, time.monotonic())
            if tell is not None:
                tell(group, requested_at, received_at)

        return [chain(group, self._rewarder, watch) for group in groups]

    def _draw(self, count: int) -> list[tuple[Sample, list[int]]]:
        """Return the next prompts that fit; longer ones are dropped and counted, or refused."""
        drawn: list[tuple[Sample, list[int]]] = []
        dropped_in_a_row = 0
        while len(drawn) < count:
            (sample,) = self._prompts.take(1)
            ids = self._form.prompt(sample)
            if len(ids) <= self._config.max_prompt_tokens:
                drawn.append((sample, ids))
                dropped_in_a_row = 0
                continue
            if self._config.long_prompts == "refuse":
                raise DataError(
                    f"{sample.sample_id}: its prompt has {len(ids)} tokens, more than rollout.max_prompt_tokens "
                    f"({self._config.max_prompt_tokens}); raise the limit, or set rollout.long_prompts: drop"
                )
            self._dropped_prompts += 1
            dropped_in_a_row += 1
            if dropped_in_a_row >= 2 * self._prompts.size:  # from the first of an epoch to the last of the next
                raise DataError(
                    f"all {self._prompts.size} prompts are longer than rollout.max_prompt_tokens "
                    f"({self._config.max_prompt_tokens}); raise the limit"
                )
        return drawn

    def _request(self, step: int, sample: Sample, prompt_ids: list[int], *, copy: int) -> Request:
        return Request(
            prompt_ids=prompt_ids,
            num_branches=self._config.group_size,
            max_tokens=self._config.max_response_tokens,
            temperature=self._config.temperature,
            seed=branch_seed(self._seed, step, sample.sample_id, copy),
            stop=tuple(self._config.stop),
            stop_ids=self._form.stop_ids,
        )

    # -- collecting ---------------------------------------------------------------------------------------

    def _await(self, futures: Sequence[Future[Group]]) -> list[Group]:
        """Results in the order of the prompts; raises the first failure at once."""
        return await_groups(
            futures,
            self._generators,
            self._rewarder,
            timeout_s=self._config.timeout_s,
            what="the step's groups (rollout.timeout_s)",
            recover=self._recover,
        )

    def _complete(self, group: Group) -> Group:
        """Return the group without branches whose score is missing."""
        kept = [index for index, score in enumerate(group.scores) if score.value is not None]
        if len(kept) == len(group.branches):
            return group
        self._missing += len(group.branches) - len(kept)
        self._trouble.update(trouble for score in group.scores if (trouble := score.trouble) is not None)
        return replace(group, branches=[group.branches[i] for i in kept], scores=[group.scores[i] for i in kept])

    def _reason(self) -> str:
        """Return what most judges of missing scores answered, where any did."""
        return f"mostly {self._trouble.most_common(1)[0][0]}; " if self._trouble else ""

    def _replace(self, step: int, groups: list[Group]) -> tuple[list[Group], list[Group]]:
        """Return (groups with signal, all replacements): new prompts are drawn until the step is full or the bound is
        met.

        Rounds, not a race: which prompts are drawn does not depend on which group finishes first.
        """
        bound = self._config.dynamic_sampling.max_extra_prompts
        wanted = self._config.prompts_per_step
        useful = [group for group in groups if self._signals(group)]
        replacements: list[Group] = []
        while len(useful) < wanted and len(replacements) < bound:
            count = min(wanted - len(useful), bound - len(replacements))
            fresh = [self._complete(group) for group in self._await(self._start(step, count))]
            replacements += fresh
            useful += [group for group in fresh if self._signals(group)]
        return useful, replacements

    def _signals(self, group: Group) -> bool:
        if len(group.branches) < self._fewest:
            return False
        scores = torch.tensor([score.value for score in group.scores])
        return bool(has_signal(scores, torch.zeros(len(scores), dtype=torch.int64))[0])

    def _measure(self, step: int, judged: Sequence[Group], kept: Sequence[Group]) -> dict[str, float]:
        branches = [branch for group in kept for branch in group.branches]
        scores = [score for group in kept for score in group.scores]
        values = [score.value for score in scores if score.value is not None]
        judged_branches = sum(len(group.branches) for group in judged)  # an agent's episode may have several
        lags = [step - 1 - version for branch in branches if (version := branch.oldest_version) is not None]
        metrics = {
            "reward/mean": _mean(values),
            "reward/std": _mean([statistics.pstdev(_values(group)) for group in kept]),
            "reward/missing_fraction": self._missing / (self._missing + judged_branches),
            "rollout/groups": len(kept),
            "rollout/no_signal_fraction": _mean([not self._signals(group) for group in kept]),
            "rollout/response_tokens": _mean([branch.num_sampled for branch in branches]),
            "rollout/prompt_tokens": _mean([len(group.prompt_ids) for group in kept]),
            "rollout/truncated_fraction": _mean([branch.truncated for branch in branches]),
            "rollout/tokens": sum(branch.num_sampled for branch in branches),
            "rollout/dropped_prompts": self._dropped_prompts,
            "rollout/lag": _mean(lags),
            "rollout/lag_max": max(lags, default=0),
        }
        heard = sum(len(branch.token_ids) - branch.num_sampled for branch in branches)
        if heard:
            metrics["rollout/environment_tokens"] = heard / len(branches)
        for name in sorted({name for score in scores for name in score.parts}):
            metrics[f"reward/{name}"] = _mean([score.parts[name] for score in scores if name in score.parts])
        metrics |= self._prompts.metrics()
        for source in self._prompts.sources:
            own = [group for group in kept if group.sample.fields[SOURCE] == source]
            metrics[f"rollout/{source}/groups"] = len(own)
            if own:
                metrics[f"reward/{source}/mean"] = _mean([value for group in own for value in _values(group)])
        if metrics["rollout/lag_max"] > self._config.max_lag:
            raise WorkerError(
                f"a token of step {step} was sampled {metrics['rollout/lag_max']:.0f} versions ago, rollout.max_lag "
                f"is {self._config.max_lag}"
            )
        return metrics


def await_groups(
    futures: Sequence[Future[Group]],
    generators: Generators,
    rewarder: Rewarder,
    *,
    timeout_s: float,
    what: str,
    recover: Recover | None = None,
) -> list[Group]:
    """Return scored groups in order. An engine that is lost, and what is behind at the deadline, is an error with a
    name, or is mended by `recover`, after which the time begins again.
    """

    def late(positions: list[int]) -> BaseException:
        count = f"{len(positions)} of {what}"
        if generators.in_flight:
            return generators.late(count, timeout_s)
        idle = f"{count} were not finished within {timeout_s:.0f} s, and no engine and no reward works on them"
        return rewarder.late(count, timeout_s) or WorkerError(f"{idle}: an environment hangs")

    while True:
        try:
            return wait_all(futures, timeout_s, late=late, look=generators.require_alive)
        except PeerError as error:
            if recover is None:
                raise
            recover(error)


def chain(answered: Future[Group], rewarder: Rewarder, watch: Watch | None = None) -> Future[Group]:
    """Score the group once its branches are there; scoring begins the moment they are, whatever the driver does."""
    requested_at = time.time()

    def score(group: Group) -> Future[Group]:
        received_at = time.time()

        def finish(scored: Group) -> Group:
            whole = with_outcomes(scored)
            if watch is not None:
                watch(whole, requested_at, received_at)
            return whole

        return then(rewarder.score(group), finish)

    return then(answered, score)


def _values(group: Group) -> list[float]:
    return [score.value for score in group.scores if score.value is not None]


def _mean(values: Sequence[float]) -> float:
    return float(sum(values) / len(values)) if values else 0.0
