"""A frozen reward model as a part of the reward: groups in, one score per branch out, read at the last token.

Groups are scored as they finish, each as one packed row with the reference answer as a further branch, so a score never
depends on which groups happened to arrive together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from troupe.actors.frozen import FrozenModel
from troupe.algorithms.packing import Batch
from troupe.chat import AnyTokenizer, ChatForm, answer_behind, form_of
from troupe.config.models import RewardModelConfig
from troupe.errors import ConfigError, DataError, RewardError
from troupe.records import Branch, Group

LABEL = "reward_model"


class RewardModel:
    """Scores branches; with `relative_to_reference`, by how much they beat the sample's reference answer."""

    label = LABEL

    def __init__(self, frozen: FrozenModel, config: RewardModelConfig, reader: AnyTokenizer | ChatForm) -> None:
        self.weight = config.weight
        self._relative = config.relative_to_reference
        self._frozen, self._form = frozen, form_of(reader)
        self._thread = ThreadPoolExecutor(frozen.workers.size, thread_name_prefix="reward-model")
        self._references: dict[str, float] = {}

    def score(self, group: Group) -> Future[list[Mapping[str, float]]]:
        """Return each branch's parts: `reward_model`; when relative `reward_model/raw` and `.../reference` too."""
        return self._thread.submit(self._score, group)

    def _score(self, group: Group) -> list[Mapping[str, float]]:
        if not self._relative:
            return [{LABEL: score} for score in self._read(group)]
        sample = group.sample
        if sample.sample_id in self._references:
            scores, reference = self._read(group), self._references[sample.sample_id]
        else:
            *scores, reference = self._read(group, [self.reference_branch(group)])
            self._references[sample.sample_id] = reference
        return [{LABEL: score - reference, f"{LABEL}/raw": score, f"{LABEL}/reference": reference} for score in scores]

    def _read(self, group: Group, further: Sequence[Branch] = ()) -> list[float]:
        whole = Group(sample=group.sample, prompt_ids=group.prompt_ids, branches=[*group.branches, *further])
        scores: list[float] = self._frozen.scores(Batch.from_groups([whole])).tolist()
        for score in scores:
            if not math.isfinite(score):
                raise RewardError(
                    f"the reward model's score of {group.sample.sample_id} is {score}; look at reward_model.path, "
                    f"and at its precision"
                )
        return scores

    def reference_branch(self, group: Group) -> Branch:
        """Return the sample's reference answer as a branch."""
        gold = group.sample.gold
        if not gold:
            raise DataError(
                f"{group.sample.sample_id} has no reference answer, and reward_model.relative_to_reference compares "
                "with one; use a data set with gold answers, or set it to false"
            )
        ids, _ = answer_behind(self._form, group.sample, group.prompt_ids, gold)
        return Branch(token_ids=ids, text=gold)

    def shutdown(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def require_same_tokenizer(
    policy: AnyTokenizer | ChatForm, other: AnyTokenizer | ChatForm, path: str, field: str
) -> None:
    """Raise ConfigError, naming the `field`, unless `other`, which reads the policy's tokens, gives each the same id;
    added tokens of its own, such as a pad token, do no harm.
    """
    reads, theirs = form_of(policy), form_of(other)
    mine, its = reads.tokenizer, theirs.tokenizer
    same = mine.get_vocab().items() <= its.get_vocab().items()
    own = its.get_vocab().keys() - mine.get_vocab().keys()
    # A tokenizer without a template was not trained on conversations, so only its own end can be compared.
    both = reads.template is not None and theirs.template is not None
    ends = (reads.end_id, theirs.end_id) if both else (mine.eos_token_id, its.eos_token_id)
    if not same or not own <= its.get_added_vocab().keys() or ends[0] != ends[1]:
        raise ConfigError(
            f"{field} {path} has another tokenizer ({len(its)} tokens, end of turn {_token(its, ends[1])}) than the "
            f"policy ({len(mine)}, {_token(mine, ends[0])}), whose tokens it reads; use a model that was trained from "
            "the policy's family"
        )


def _token(tokenizer: AnyTokenizer, number: int | None) -> str:
    return repr(None if number is None else tokenizer.decode([number]))
