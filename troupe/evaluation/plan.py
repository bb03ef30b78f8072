"""What is asked of whom in an evaluation: found and checked before a device is taken."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from troupe.actors.reward_model import require_same_tokenizer
from troupe.chat import encode_prompt, load_tokenizer
from troupe.config.evaluation import REFERENCE, AnsweringConfig, EvaluateConfig
from troupe.config.models import RewardModelConfig
from troupe.data import load_data
from troupe.data.reference_answers import read_answers
from troupe.environments import build_environment
from troupe.errors import DataError
from troupe.evaluation.stored_answers import Answers
from troupe.records import Branch, Sample
from troupe.report.trackers import check_trackers
from troupe.rewards.build import Rewards, build_rewards
from troupe.rewards.scorer_prompt import handed_over, prompt_with
from troupe.runs.fingerprint import tokenizer_fingerprint, weights_fingerprint
from troupe.runs.model_check import check_answerer, locate_reward_model
from troupe.training.preparation import prompt_lines

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What is asked of whom; whatever can be wrong with it was found when it was made."""

    samples: Sequence[Sample]
    """The held-out samples whose prompts fit every model."""
    asked: Mapping[str, Sequence[Sample]]
    """Model name -> these samples with the prompt that it gets."""
    too_long: int
    paths: Mapping[str, str]
    """Model name -> directory or hub name."""
    tokenizers: Mapping[str, PreTrainedTokenizerBase]
    given: Mapping[str, Answers]
    """Answers that no model has to give: the references, and those of a file."""
    rewards: Rewards | None
    reward_model: RewardModelConfig | None

    @property
    def contestants(self) -> list[str]:
        """Whose answers are measured: the models, and the file."""
        return [*self.paths, *(name for name in self.given if name != REFERENCE)]

    def lines(self) -> list[str]:
        """What a dry run shows."""
        shown = [f"{len(self.samples)} held-out prompts, {self.too_long} more are too long"]
        for name, tokenizer in self.tokenizers.items():
            first = self.asked[name][0]
            shown += [f"{name}: {self.paths[name]}", *prompt_lines(tokenizer, first, encode_prompt(tokenizer, first))]
        return shown


def prepare(config: EvaluateConfig) -> Examination:
    """Everything that is read before a device is taken; see docs/evaluation.md for what is refused."""
    check_trackers(config.trackers, mode=config.wandb.mode)
    rewards = build_rewards(config.all_metrics) if config.all_metrics else None
    if config.environment is not None:
        build_environment(config.environment)
    paths = {name: check_answerer(path, f"models.{name}", config) for name, path in config.named_models.items()}
    reward_model = locate_reward_model(config.reward_model) if config.reward_model is not None else None
    samples = load_data(config.data).heldout[: config.num_samples]
    require_gold(config.needs_gold, samples)
    if rewards is not None:
        rewards.check(samples)
    tokenizers = {
        name: load_tokenizer(path, trust_remote_code=config.trust_remote_code) for name, path in paths.items()
    }
    if reward_model is not None:
        own = load_tokenizer(reward_model.path, trust_remote_code=reward_model.trust_remote_code)
        for tokenizer in tokenizers.values():
            require_same_tokenizer(tokenizer, own, reward_model.path, "reward_model.path")
    asked = asked_samples(config, samples, tokenizers)
    fitting = fitting_samples(config, samples, tokenizers, asked)
    kept = {sample.sample_id for sample in fitting}
    return Examination(
        samples=fitting,
        asked={name: [sample for sample in each if sample.sample_id in kept] for name, each in asked.items()},
        too_long=len(samples) - len(fitting),
        paths=paths,
        tokenizers=tokenizers,
        given=given_answers(config, fitting),
        rewards=rewards,
        reward_model=reward_model,
    )


def require_gold(needed_by: str | None, samples: Sequence[Sample]) -> None:
    """DataError where the setting `needed_by` needs a gold answer and a sample has none."""
    lacking = [sample.sample_id for sample in samples if not (sample.gold or "").strip()]
    if lacking and needed_by is not None:
        raise DataError(
            f"{needed_by} needs a reference answer for every sample, and {len(lacking)} of {len(samples)} have none, "
            f"{lacking[0]} the first; use a data set with gold answers, or leave it out (metrics: [], rouge: false, references: false)"
        )


def asked_samples(
    config: EvaluateConfig, samples: Sequence[Sample], tokenizers: Mapping[str, PreTrainedTokenizerBase]
) -> dict[str, list[Sample]]:
    """Model name -> the samples with its prompts: the data's own, or what another model wrote behind them."""
    if not config.contexts:
        return {name: list(samples) for name in tokenizers}
    files = {name: read_answers(Path(file), samples) for name, file in config.contexts.items()}
    missing = {
        name: sum(handed_over(answer.text, config.reading) is None for answer in answers.values())
        for name, answers in files.items()
    }
    for name, count in missing.items():
        if count:
            log.warning("%d of %d contexts of %s lack the marker and are not read", count, len(samples), name)
    return {
        name: [
            prompt_with(
                sample,
                files[name][sample.sample_id].text if name in files else None,
                config.reading,
                tokenizer,
            )
            for sample in samples
        ]
        for name, tokenizer in tokenizers.items()
    }


def fitting_samples(
    config: AnsweringConfig,
    samples: Sequence[Sample],
    tokenizers: Mapping[str, PreTrainedTokenizerBase],
    asked: Mapping[str, Sequence[Sample]] | None = None,
) -> list[Sample]:
    """The samples whose prompt is short enough for every model, so that all are measured on the same ones. `asked`: the
    samples with each model's prompts, where these are not the data's own."""
    fitting = [
        sample
        for position, sample in enumerate(samples)
        if all(
            len(encode_prompt(tokenizer, asked[name][position] if asked else sample)) <= config.max_prompt_tokens
            for name, tokenizer in tokenizers.items()
        )
    ]
    if not fitting:
        raise DataError(
            f"all {len(samples)} held-out prompts are longer than max_prompt_tokens ({config.max_prompt_tokens}); raise it"
        )
    return fitting


def given_answers(config: EvaluateConfig, samples: Sequence[Sample]) -> dict[str, Answers]:
    """The references where anybody asks for them, and the answers of a file."""
    given: dict[str, Answers] = {}
    if config.opponent == REFERENCE or (config.reward_model is not None and config.references):
        given[REFERENCE] = {sample.sample_id: Branch(token_ids=(), text=str(sample.gold)) for sample in samples}
    if config.against_file is not None:
        given[str(config.opponent)] = read_answers(config.against_file, samples)
    return given


def answer_settings(
    config: AnsweringConfig, path: str, samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """What a model's answers depend on."""
    prompts = [[sample.sample_id, encode_prompt(tokenizer, sample)] for sample in samples]
    return {
        "weights": weights_fingerprint(path),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "prompts": hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16],
        "max_response_tokens": config.max_response_tokens,
        **config.sampling,
        "seed": config.seed,
        "precision": config.precision,
        **({} if config.environment is None else {"environment": config.environment.model_dump()}),
    }


def with_opponent(sample: Sample, other: Answers) -> Sample:
    """The sample with the other answer in its field `against`, for judges that see both."""
    if sample.sample_id not in other:
        return sample
    return replace(sample, fields={**sample.fields, "against": other[sample.sample_id].text})
