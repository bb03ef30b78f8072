"""The evaluator: held-out answers and their metrics, with the generators of the run or any others."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from troupe.actors.generator import Request, branch_seed
from troupe.actors.generators import Generators
from troupe.actors.rewarder import Rewarder
from troupe.chat import AnyTokenizer, ChatForm, form_of
from troupe.config.rollout import SamplingConfig
from troupe.errors import DataError, WorkerError
from troupe.records import Group, Sample
from troupe.runs.call_log import Watch
from troupe.runs.run_records import answer_row
from troupe.training.rollouts import chain
from troupe.training.sampled_answers import Answers, SingleTurns

GREEDY = SamplingConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Means over a held-out set, and the answers behind them."""

    metrics: dict[str, float]
    """`eval/<set>/<metric>`."""
    groups: Sequence[Group]

    def rows(self) -> list[dict[str, Any]]:
        """Return one record per answer, for answers.jsonl and for people."""
        return [answer_row(group) for group in self.groups]


class Evaluator:
    """Answers a fixed held-out set and scores the answers."""

    def __init__(
        self,
        name: str,
        samples: Sequence[Sample],
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
        """Prompts longer than `max_prompt_tokens` are left out, at every evaluation the same ones. `answers`: what has
        prompts continued; each with one turn of the generators unless it is given."""
        form = form_of(reader)
        self._stop_ids = form.stop_ids
        encoded = [(sample, form.prompt(sample)) for sample in samples]
        self.prompts = [(sample, ids) for sample, ids in encoded if len(ids) <= max_prompt_tokens]
        self.num_too_long = len(encoded) - len(self.prompts)
        if not self.prompts:
            raise DataError(
                f"all {len(encoded)} held-out prompts of {name} are longer than {max_prompt_tokens} tokens; raise "
                f"rollout.max_prompt_tokens"
            )
        self.name = name
        self._answers, self._rewarder = answers or SingleTurns(generators), rewarder
        self._max_tokens, self._sampling, self._seed = max_response_tokens, sampling, seed
        self._stop, self._timeout_s = tuple(stop), timeout_s

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
        done, waiting = concurrent.futures.wait(futures, self._timeout_s, concurrent.futures.FIRST_EXCEPTION)
        for future in done:
            future.result()
        if waiting:
            raise WorkerError(
                f"{len(waiting)} of {len(futures)} held-out answers were not finished within {self._timeout_s:.0f} s"
            )
        groups = [future.result() for future in futures]
        return Evaluation(metrics=self._metrics(groups), groups=groups)

    def _metrics(self, groups: Sequence[Group]) -> dict[str, float]:
        scores = [score for group in groups for score in group.scores]
        branches = [branch for group in groups for branch in group.branches]
        parts = {name for score in scores for name in score.parts}
        metrics = {}
        for name in sorted(parts):
            values = [score.parts[name] for score in scores if name in score.parts]
            metrics[f"eval/{self.name}/{name}"] = sum(values) / len(values)
        metrics[f"eval/{self.name}/response_tokens"] = sum(branch.num_sampled for branch in branches) / len(branches)
        metrics[f"eval/{self.name}/truncated_fraction"] = sum(branch.truncated for branch in branches) / len(branches)
        missing = sum(score.value is None for score in scores)
        if missing:
            metrics[f"eval/{self.name}/missing_fraction"] = missing / len(scores)
        return metrics
