"""How well a frozen model foresees the gold answer, as a part of the reward: groups in, one score per branch out.

The scorer reads a group's prompt once, and behind it, as branches, the gold answer after each of the policy's answers;
the gold answer without any rides along until it is known. What it reads is `troupe.rewards.scorer_prompt`'s, what the
numbers are worth `troupe.algorithms.perplexity`'s.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from troupe.actors.frozen import FrozenModel
from troupe.algorithms import perplexity as ppl
from troupe.algorithms.packing import Batch
from troupe.config.algorithm import PerplexityRewardConfig
from troupe.errors import ConfigError, RewardError
from troupe.records import Branch, Group, Sample
from troupe.rewards.baselines import Baseline, BaselineFile, Identity
from troupe.rewards.scorer_prompt import Frame, ScorerPrompt
from troupe.runs.fingerprint import tokenizer_fingerprint, weights_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

LABEL = "perplexity"
WATCHED = 256
"""Answers over which the share without a marker is taken."""
FREQUENT = 0.5
"""Share of answers without a marker above which a person is told."""


class PerplexityReward:
    """Scores branches by what they do to the perplexity of their sample's gold answer."""

    label = LABEL

    def __init__(self, frozen: FrozenModel, plan: ScorerPlan) -> None:
        """Baselines are taken from the plan's file, or computed with a sample's first answers where there is none."""
        config = plan.config
        self.weight = config.weight
        self._frozen, self._config, self._prompt, self._file = frozen, config, plan.prompt, plan.baselines
        self._thread = ThreadPoolExecutor(frozen.workers.size, thread_name_prefix="perplexity")
        self._baselines: dict[str, float] = {}
        self._watch = MarkerWatch(config.marker)

    def score(self, group: Group) -> Future[list[Mapping[str, float]]]:
        """Return the parts of each branch: `perplexity` (the reward), and under it `improvement` (I, in percent),
        `gold` and `baseline` (the gold answer's perplexity with and without the answer), `nll` (ln of the former, in
        nats per token), and `marker_missing` where there is a marker.
        """
        return self._thread.submit(self._score, group)

    def _score(self, group: Group) -> list[Mapping[str, float]]:
        frame = self._prompt.frame(group.sample)
        parts = [self._prompt.handed_over(branch.text) for branch in group.branches]
        self._watch.saw([part is None for part in parts])
        baseline = self._known_baseline(frame)
        # Answers that are equal are read once, so that they cannot differ by rounding.
        distinct = list(dict.fromkeys(part for part in parts if part is not None))
        branches = [self._prompt.with_answer(frame, part) for part in distinct]
        if baseline is None:
            *found, baseline = gold_nll(self._frozen, [packed(frame, [*branches, self._prompt.without_answer(frame)])])
            self._baselines[group.sample.sample_id] = baseline
        else:
            found = gold_nll(self._frozen, [packed(frame, branches)]) if branches else []
        after = dict(zip(distinct, found, strict=True))
        # An answer that hands nothing over leaves the gold answer as likely as it was.
        nll = [baseline if part is None else after[part] for part in parts]
        return self._worth(torch.tensor(nll, dtype=torch.float64), baseline, missing=[part is None for part in parts])

    def _known_baseline(self, frame: Frame) -> float | None:
        sample_id = frame.sample.sample_id
        if self._file is not None:
            return self._file.nll(sample_id, frame.digest)
        return self._baselines.get(sample_id)

    def _worth(self, nll: torch.Tensor, baseline_nll: float, *, missing: Sequence[bool]) -> list[Mapping[str, float]]:
        """Return the parts of each branch; [B] -> B mappings."""
        baseline = torch.full_like(nll, baseline_nll)
        columns = {
            LABEL: rewards(nll, baseline, self._config),
            f"{LABEL}/improvement": ppl.improvement(nll, baseline),
            f"{LABEL}/gold": ppl.perplexity(nll),
            f"{LABEL}/nll": nll,
            f"{LABEL}/baseline": ppl.perplexity(baseline),
        }
        if self._config.marker is not None:
            lacks = torch.tensor(missing)
            columns[LABEL] = columns[LABEL].masked_fill(lacks, self._config.missing_marker_score)
            columns[f"{LABEL}/marker_missing"] = lacks.double()
        return [{name: float(column[index]) for name, column in columns.items()} for index in range(len(nll))]

    def shutdown(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def rewards(nll: torch.Tensor, baseline: torch.Tensor, config: PerplexityRewardConfig) -> torch.Tensor:
    """Return the recipe's reward of mean NLLs with and without an answer, in nats; [B], [B] -> [B]."""
    if config.kind == "relative":
        return ppl.relative(nll, baseline)
    if config.kind == "absolute":
        return ppl.absolute(nll)
    if config.kind == "hybrid":
        return ppl.hybrid(nll, baseline, config.alpha)
    percent = ppl.improvement(nll, baseline)
    if config.transform == "piecewise":
        return ppl.piecewise(percent, config.thresholds, config.values)
    transforms = {"raw": lambda same: same, "relu": ppl.relu, "binary": ppl.binary}
    return transforms[config.transform](percent)


def packed(frame: Frame, branches: Sequence[Branch]) -> Group:
    """Return the prompt once, and all that is scored after it."""
    return Group(sample=frame.sample, prompt_ids=frame.prompt_ids, branches=branches)


def gold_nll(frozen: FrozenModel, groups: Sequence[Group]) -> list[float]:
    """Return the gold answer's mean NLL in each of the groups' branches, in nats."""
    batch = Batch.from_groups(groups)
    gold = batch["loss_mask"]
    logprobs = frozen.logprobs(batch, wanted=gold)  # [N]
    nll = ppl.mean_nll(logprobs, batch.branch_ids, gold, batch.num_branches)  # [N] -> [B]
    if not bool(torch.isfinite(nll).all()):
        first = int((~torch.isfinite(nll)).nonzero()[0])
        raise RewardError(
            f"the perplexity scorer gives the gold answer of {groups[int(batch.group_ids[first])].sample.sample_id} a "
            f"mean log-likelihood of {-float(nll[first])}; look at perplexity_reward.path, and at its precision"
        )
    return nll.tolist()


def baselines_of(frozen: FrozenModel, prompt: ScorerPrompt, samples: Sequence[Sample]) -> list[Baseline]:
    """Return what a baseline file holds of these samples; they are read together, which keeps every rank busy."""
    frames = [prompt.frame(sample) for sample in samples]
    nll = gold_nll(frozen, [packed(frame, [prompt.without_answer(frame)]) for frame in frames])
    return [
        Baseline(sample_id=frame.sample.sample_id, nll=value, num_tokens=len(frame.gold_ids), digest=frame.digest)
        for frame, value in zip(frames, nll, strict=True)
    ]


class MarkerWatch:
    """States once, and again whenever it has become better and worse again, that most answers lack the marker."""

    def __init__(self, markers: Sequence[str] | None) -> None:
        self._markers = markers
        self._lock = threading.Lock()
        self._seen = self._missing = 0
        self._told = False

    def saw(self, missing: Sequence[bool]) -> None:
        if self._markers is None:
            return
        with self._lock:
            self._seen += len(missing)
            self._missing += sum(missing)
            if self._seen < WATCHED:
                return
            share, self._seen, self._missing = self._missing / self._seen, 0, 0
            if share > FREQUENT and not self._told:
                log.warning(
                    "%.0f %% of the last answers have no marker (%s), so the scorer sees nothing of them and they "
                    "earn perplexity_reward.missing_marker_score; ask for it in the prompt, warm the policy up on "
                    "answers that have it, or raise rollout.max_response_tokens",
                    100 * share,
                    " or ".join(map(repr, self._markers)),
                )
            self._told = share > FREQUENT


# -- what is known before anything starts -----------------------------------------------------------------------


def scorer_length(path: str, config: PerplexityRewardConfig) -> int:
    """Tokens that the scorer reads at most. Raises ConfigError where the recipe asks for more than the model has."""
    from transformers import AutoConfig

    found = AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code)
    limit = getattr(found.get_text_config(), "max_position_embeddings", None)
    if limit is not None and config.max_length is not None and config.max_length > limit:
        raise ConfigError(
            f"perplexity_reward.max_length ({config.max_length}) is more than {path} has positions for ({limit}); "
            f"lower it"
        )
    return config.max_length or limit or 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerPlan:
    """A scorer whose every question is known to be answerable, not yet loaded."""

    config: PerplexityRewardConfig
    path: str
    precision: str
    prompt: ScorerPrompt
    baselines: BaselineFile | None


def plan_scorer(
    config: PerplexityRewardConfig,
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    samples: Iterable[Sample],
    *,
    precision: str,
    complete: bool = True,
) -> ScorerPlan:
    """Check everything that can be wrong before a device is taken; see docs/rewards.md for what is refused.

    `path` is where the model is, `tokenizer` its own. With `complete` the baseline file, where there is one, must hold
    every sample.
    """
    prompt = ScorerPrompt(tokenizer, config, max_length=scorer_length(path, config))
    ids = [prompt.frame(sample).sample.sample_id for sample in samples]
    baselines = None
    if config.baseline_file is not None:
        identity = Identity(
            model=weights_fingerprint(path),
            tokenizer=tokenizer_fingerprint(tokenizer),
            template=prompt.fingerprint,
            precision=precision,
        )
        baselines = BaselineFile(Path(config.baseline_file), identity)
        if complete:
            baselines.require(ids)
    return ScorerPlan(config=config, path=path, precision=precision, prompt=prompt, baselines=baselines)
