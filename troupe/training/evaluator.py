"""The evaluator: held-out answers and their metrics, with the generators of the run or any others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from troupe.actors.generator import Request, branch_seed
from troupe.actors.generators import Generators
from troupe.actors.rewarder import Rewarder
from troupe.chat import AnyTokenizer, ChatForm, form_of
from troupe.config.rollout import SamplingConfig
from troupe.errors import DataError
from troupe.records import Group, Sample
from troupe.runs.call_log import Watch
from troupe.runs.run_records import Decode, answer_row
from troupe.training.rollouts import Recover, await_groups, chain
from troupe.training.sampled_answers import Answers, SingleTurns

GREEDY = SamplingConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Means over held-out sets, and the answers behind them."""

    metrics: dict[str, float]
    """`eval/<set>/<metric>`."""
    groups: Mapping[str, Sequence[Group]]
    """By set; the parts of a mixture's set are not here again."""

    def rows(self, decode: Decode | None = None) -> dict[str, list[dict[str, Any]]]:
        """Return one record per answer of each set, for answers.jsonl and for people; with `decode` also its turns."""
        return {name: [answer_row(group, decode) for group in groups] for name, groups in self.groups.items()}

    @property
    def num_sampled(self) -> int:
        """Tokens that were sampled."""
        return sum(branch.num_sampled for each in self.groups.values() for group in each for branch in group.branches)


class Evaluator:
    """Answers fixed held-out sets and scores the answers."""

    def __init__(
        self,
        sets: Mapping[str, Sequence[Sample]],
        reader: AnyTokenizer | ChatForm,
        generators: Generators,
        rewarder: Rewarder,
        *,
        max_prompt_tokens: int,
        max_response_tokens: int,
        sampling: SamplingConfig = GREEDY,
        seed: int = 0,
        stop: Sequence[str] = (),
        timeout_s: float = 1800,
        answers: Answers | None = None,
    ) -> None:
        """Take the sets by name, the run's own first; a sample may be in several, and is answered once.

        Prompts longer than `max_prompt_tokens` are left out, at every evaluation the same ones. `answers`: what has
        prompts continued; each with one turn of the generators unless it is given.
        """
        form = form_of(reader)
        self._stop_ids = form.stop_ids
        samples = {sample.sample_id: sample for each in sets.values() for sample in each}
        encoded = [(sample, form.prompt(sample)) for sample in samples.values()]
        self.prompts = [(sample, ids) for sample, ids in encoded if len(ids) <= max_prompt_tokens]
        self.num_too_long = len(encoded) - len(self.prompts)
        fitting = {sample.sample_id for sample, _ in self.prompts}
        self._sets = {name: [each.sample_id for each in own if each.sample_id in fitting] for name, own in sets.items()}
        for name, ids in self._sets.items():
            if not ids:
                raise DataError(
                    f"all {len(sets[name])} held-out prompts of {name} are longer than {max_prompt_tokens} tokens; "
                    "raise rollout.max_prompt_tokens"
                )
        self.name = next(iter(sets))
        self._answers, self._generators, self._rewarder = answers or SingleTurns(generators), generators, rewarder
        self._max_tokens, self._sampling, self._seed = max_response_tokens, sampling, seed
        self._stop, self._timeout_s = tuple(stop), timeout_s
        self.recover: Recover | None = None
        """What mends a process that died or is late while answers are waited for."""

    def evaluate(self, watch: Watch | None = None) -> Evaluation:
        """Answer every prompt once with the generators' current weights; `watch` is given the calls."""
        requests = [
            Request(
                prompt_ids=ids,
                num_branches=1,
                max_tokens=self._max_tokens,
                temperature=self._sampling.temperature,
                top_p=self._sampling.top_p,
                top_k=self._sampling.top_k,
                seed=branch_seed(self._seed, -1, sample.sample_id),
                stop=self._stop,
                stop_ids=self._stop_ids,
            )
            for sample, ids in self.prompts
        ]
        answered = self._answers.submit(requests, [sample for sample, _ in self.prompts])
        futures = [chain(group, self._rewarder, watch) for group in answered]
        scored = await_groups(
            futures,
            self._generators,
            self._rewarder,
            timeout_s=self._timeout_s,
            what="the held-out answers",
            recover=self.recover,
        )
        groups = {group.sample.sample_id: _as_one_answer(group) for group in scored}
        metrics: dict[str, float] = {}
        for name, ids in self._sets.items():
            metrics |= _means(name, [groups[each] for each in ids])
        own = set(self._sets[self.name])
        whole = {name: ids for name, ids in self._sets.items() if name == self.name or not own.issuperset(ids)}
        return Evaluation(metrics=metrics, groups={name: [groups[each] for each in ids] for name, ids in whole.items()})


def _as_one_answer(group: Group) -> Group:
    """Return the group with an agent's conversations, a branch each, as one: all tokens, the last one's text and score.

    So each sample counts once, however many conversations the agent had about it.
    """
    if len(group.branches) == 1:
        return group
    branches = group.branches
    whole = replace(
        branches[-1],
        token_ids=[token for each in branches for token in each.token_ids],
        loss_mask=[each for branch in branches for each in branch.loss_mask or [True] * len(branch.token_ids)],
        logprobs=[each for branch in branches for each in branch.logprobs or ()],
        turns=[turn for each in branches for turn in each.turns],
        weight_versions=(),
    )
    return replace(group, branches=[whole], scores=group.scores[-1:])


def _means(name: str, groups: Sequence[Group]) -> dict[str, float]:
    """Return the metrics of one set."""
    scores = [score for group in groups for score in group.scores]
    branches = [branch for group in groups for branch in group.branches]
    parts = {part for score in scores for part in score.parts}
    metrics = {}
    for part in sorted(parts):
        values = [score.parts[part] for score in scores if part in score.parts]
        metrics[f"eval/{name}/{part}"] = sum(values) / len(values)
    metrics[f"eval/{name}/response_tokens"] = sum(branch.num_sampled for branch in branches) / len(branches)
    metrics[f"eval/{name}/truncated_fraction"] = sum(branch.truncated for branch in branches) / len(branches)
    missing = sum(score.value is None for score in scores)
    if missing:
        metrics[f"eval/{name}/missing_fraction"] = missing / len(scores)
    return metrics
