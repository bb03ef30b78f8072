"""Who scores behind the endpoint, in a Ray Serve replica: a reward model, or reward functions.

A reward model is read by the code that read it in training (`troupe.algorithms.reading`, `troupe.chat`), so an answer
has the score that it has there. Requests that come at the same time are read together. HTTP is
`troupe.serving.scoring`'s.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import serve

from troupe.chat import ChatForm, ChatSettings, answer_behind, encode_answer, mark_older
from troupe.config.rollout import ScorerConfig, ServedRewardModelConfig, ServedRewardsConfig
from troupe.errors import CheckpointError, RewardError
from troupe.hardware import hardware, set_up_process
from troupe.records import Branch, Group
from troupe.rewards.build import build_rewards
from troupe.runs.model_check import check_model
from troupe.runs.model_paths import locate
from troupe.serving.conversations import Conversation, TooLongError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ModelScorer:
    """A reward model. Raises CheckpointError where the checkpoint is none."""

    def __init__(self, config: ServedRewardModelConfig) -> None:
        set_up_process()
        from troupe.algorithms.reading import InferenceModel

        path = check_model(
            config.path, field="reward_model.path", scalar=True, trust_remote_code=config.trust_remote_code
        )
        self._tokenizer = _tokenizer(path, trust_remote_code=config.trust_remote_code)
        plain = config.single_turn == "text"
        self._form = ChatForm(self._tokenizer, ChatSettings(chat="raw" if plain else "auto"))
        self._plain = plain or self._form.template is None
        self._name = config.name
        self._model = InferenceModel(
            path,
            head="scalar",
            precision=hardware().precision(config.precision),
            row_tokens=config.batching.row_tokens,
            trust_remote_code=config.trust_remote_code,
        )
        self._model.to(hardware().device)
        self._max_length = min(config.max_length or math.inf, self._model.max_length or math.inf)

    async def score(self, conversations: Sequence[Conversation]) -> list[float | None]:
        """Return one score per conversation. Raises TooLongError, and DataError for chats that the tokenizer has no
        template for.
        """
        (scores,) = await self._read_together([await asyncio.to_thread(self._encode, conversations)])
        return scores

    async def _read_together(self, requests: list[list[Group]]) -> list[list[float | None]]:
        """Return the scores of several requests, each request's own."""
        read = iter(await asyncio.to_thread(self._read, [group for groups in requests for group in groups]))
        return [[next(read) for _ in groups] for groups in requests]

    def _encode(self, conversations: Sequence[Conversation]) -> list[Group]:
        return [self._encoded(place, conversation) for place, conversation in enumerate(conversations)]

    def _encoded(self, place: int, conversation: Conversation) -> Group:
        prompt = conversation.prompt
        if self._plain and not isinstance(prompt, str) and len(prompt) == 1:
            conversation = conversation.model_copy(update={"prompt": prompt[0].content})
        sample = conversation.group().sample
        prompt_ids = self._form.prompt(sample)
        token_ids, _ = answer_behind(self._form, sample, prompt_ids, conversation.response)
        if (length := len(prompt_ids) + len(token_ids)) > self._max_length:
            raise TooLongError(
                f"conversation {place} has {length} tokens ({len(token_ids)} of the answer), and the maximum context "
                f"length of "
                f"{self._name} is {self._max_length}; shorten it"
            )
        return conversation.group(prompt_ids, token_ids)

    def _read(self, groups: Sequence[Group]) -> list[float]:
        from troupe.algorithms.packing import Batch

        merged, places = one_group_per_prompt(groups)
        scores = self._model.scores(Batch.from_groups(merged)).tolist()
        if not all(map(math.isfinite, scores)):
            raise RewardError(
                f"{self._name} gave a score that is no finite number; look at its checkpoint and precision"
            )
        return [scores[place] for place in places]


class BatchedModelScorer(ModelScorer):
    """The same in a Serve replica, where requests that come at the same time are read together."""

    def __init__(self, config: ServedRewardModelConfig) -> None:
        super().__init__(config)
        self._batched.set_max_batch_size(config.batching.max_batch)
        self._batched.set_batch_wait_timeout_s(config.batching.wait_s)

    async def score(self, conversations: Sequence[Conversation]) -> list[float | None]:
        return await self._batched(await asyncio.to_thread(self._encode, conversations))

    @serve.batch
    async def _batched(self, requests: list[list[Group]]) -> list[list[float | None]]:
        return await self._read_together(requests)


class FunctionScorer:
    """The weighted sum of reward functions; a missing judgement is None."""

    def __init__(self, config: ServedRewardsConfig) -> None:
        self._rewards = build_rewards(config.rewards)
        self._tokenizer = None if config.tokenizer is None else _tokenizer(locate(config.tokenizer))

    async def score(self, conversations: Sequence[Conversation]) -> list[float | None]:
        """Return one score per conversation. Raises RewardError where a function fails."""
        scored = await asyncio.gather(*(self._rewards.score(self._group(one)) for one in conversations))
        return [score.value for (score,) in scored]

    def _group(self, conversation: Conversation) -> Group:
        ids = [] if self._tokenizer is None else encode_answer(self._tokenizer, conversation.response)
        return conversation.group(token_ids=ids)


def one_group_per_prompt(groups: Sequence[Group]) -> tuple[list[Group], list[int]]:
    """Return (groups of all branches with the same prompt, where each given group's branch is among theirs).

    A judge is asked about the answers to a prompt one by one; read together, the prompt is computed once.
    """
    branches: dict[tuple[int, ...], list[tuple[int, Branch]]] = {}
    for index, group in enumerate(groups):
        branches.setdefault(tuple(group.prompt_ids), []).extend((index, branch) for branch in group.branches)
    merged = [
        Group(sample=groups[members[0][0]].sample, prompt_ids=prompt, branches=[branch for _, branch in members])
        for prompt, members in branches.items()
    ]
    order = [index for members in branches.values() for index, _ in members]
    return merged, sorted(range(len(order)), key=order.__getitem__)


def scorer_app(config: ScorerConfig, deployment: Mapping[str, Any] | None = None) -> serve.Application:
    """Return a Ray Serve application whose handle has `score`; `deployment` are Ray Serve's options for it."""
    options = {"name": f"scorer_{config.name}", **(deployment or {})}
    if isinstance(config, ServedRewardsConfig):
        return serve.deployment(**options)(FunctionScorer).bind(config)
    # Ray Serve lets five requests at a time into a replica, which would be the largest batch.
    options.setdefault("max_ongoing_requests", 2 * config.batching.max_batch)
    return serve.deployment(**options)(BatchedModelScorer).bind(config)


def _tokenizer(path: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        mark_older(tokenizer, Path(path))
        return tokenizer
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} has no tokenizer ({str(error).splitlines()[0]}); copy that of its base model there"
        ) from None
