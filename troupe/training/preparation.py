"""What a training job finds out before its first process, and `--dry-run` shows: one function for both.

Rewards, models, data and the chat template are tried here, on the first and the last samples. Whatever is wrong with
them is one sentence, seconds after the start; what only looks wrong is a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from troupe import chat, environments
from troupe.chat import ChatForm, encode_prompt, load_tokenizer, mark_older
from troupe.config.agents import ToolConfig
from troupe.config.models import PolicyConfig
from troupe.config.rollout import RewardConfig
from troupe.data import DataSet, load_data
from troupe.errors import ConfigError, DataError
from troupe.processes.waiting import waiting
from troupe.records import Group, Sample
from troupe.rewards.build import build_rewards
from troupe.runs.model_check import check_models, model_settings
from troupe.runs.model_paths import locate
from troupe.tokenizer import read_tokenizer
from troupe.training.fitting import fit_of
from troupe.training.lengths import AT_LEAST, Limit, count_left_out

if TYPE_CHECKING:
    from troupe.algorithms.loading import Head

log = logging.getLogger(__name__)

Encode = Callable[[ChatForm, Sample], Any]


PRETRAINED_WIDTH = 512
"""Hidden size from which on a model is one that was trained on much text; what is made here is narrower."""
HIGHEST_RATE = {"rollout": 2e-5, "supervised": 1e-4}
"""Of full fine-tuning of such a model; published recipes take 1e-6 to 1e-5 and 1e-5 to 5e-5."""
SHORTEST_ANSWERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The data of a job, and how its model reads it."""

    data: DataSet
    form: ChatForm
    prompts: Sequence[Sequence[int]]
    """Token ids of the first and the last prompt, in training and held out."""
    encoded: Mapping[str, Group | None] = field(default_factory=dict)
    """Of supervised training, what each sample that was read became, by its id; None: it cannot be trained on."""

    def lines(self) -> list[str]:
        """Return what a dry run shows."""
        train, heldout = self.data.train, self.data.heldout
        sizes = ", ".join(str(len(ids)) for ids in self.prompts)
        return [
            f"{len(train):,} training and {len(heldout):,} held-out samples of {self.data.name}; tokens of the first "
            f"and last prompts: {sizes}",
            self.form.described(),
            *prompt_lines(self.form, train[0], self.prompts[0]),
        ]


def prompt_lines(form: ChatForm, sample: Sample, ids: Sequence[int]) -> list[str]:
    """Return one prompt as its model reads it, special tokens and all."""
    text = str(form.tokenizer.decode(ids)).splitlines()
    return [
        f"the prompt of {sample.sample_id}, {len(ids)} tokens, as the model reads it:",
        *(f"| {each}" for each in text),
    ]


@waiting("data, model and rewards are tried")
def prepare(
    config: Any,
    *,
    rewards: Sequence[RewardConfig] = (),
    metrics: Sequence[RewardConfig] = (),
    encode: Encode = encode_prompt,
) -> Prepared:
    """Try everything that the job will read. `encode` is what it makes of a sample, `rewards` are for training samples
    and `metrics` for held-out ones."""
    judges = [build_rewards(functions) if functions else None for functions in (rewards, metrics)]
    check_models(config)
    require_fit(config)
    data = data_with_tools(load_data(config.data, config.heldout), getattr(config, "tools", ()))
    heldout = [sample for own in data.heldout_sets(None).values() for sample in own]
    for judge, samples in zip(judges, (data.train, heldout), strict=True):
        if judge is not None:
            judge.check(samples)
    form = starting_form(config.model, data)
    tried = [data.train[0], data.train[-1], data.heldout[0], data.heldout[-1]]
    for sample in tried:
        encode(form, sample)
    if getattr(config, "dialogue", None) is not None:
        turns = chat.TurnEncoder(form)
        if config.tools:
            turns.require_tools()
    if config.model.type != "scratch":
        log.info("%s", form.described())
    prepared = Prepared(data=data, form=form, prompts=[form.prompt(each) for each in tried])
    if hasattr(config, "rollout"):
        measure_prompts(config, data, form)
    if config.model.type != "scratch":
        prompt = str(form.tokenizer.decode(prepared.prompts[0]))
        for misfit in misfits(config, model_settings(locate(config.model.path)), prompt):
            log.warning("%s", misfit)
    return prepared


def data_with_tools(data: DataSet, tools: Sequence[ToolConfig]) -> DataSet:
    """Return the data with the tools' descriptions in every prompt; ConfigError for a tool that has none."""
    if not tools:
        return data
    built = environments.build_tools(tools)
    return replace(
        data,
        train=environments.with_tools(data.train, built),
        heldout=environments.with_tools(data.heldout, built),
        others={name: environments.with_tools(samples, built) for name, samples in data.others.items()},
    )


def measure_prompts(config: Any, data: DataSet, form: ChatForm) -> None:
    """Warn of prompts that are longer than a rollout takes, which are dropped; DataError where they are refused."""
    limit = Limit(tokens=config.rollout.max_prompt_tokens, field="rollout.max_prompt_tokens")

    def excess(sample: Sample) -> int | None:
        tokens = len(form.prompt(sample))
        return tokens if tokens > limit.tokens else None

    dropped = count_left_out(f"training prompts of {data.name}", data.train, excess, limit, enough=AT_LEAST)
    if dropped and config.rollout.long_prompts == "refuse":
        raise DataError(
            f"{dropped} training prompts are longer than rollout.max_prompt_tokens ({limit.tokens}); raise the limit, "
            "or set rollout.long_prompts: drop"
        )
    for name, samples in data.heldout_sets(config.evaluation.num_samples).items():
        if name not in data.weights:  # a part of the mixture's own set
            count_left_out(f"held-out prompts of {name}", samples, excess, limit, enough=len(samples))


def require_fit(config: Any) -> None:
    """Raise unless every model takes its adapter and its log-probabilities are its own; remember how it is run."""
    longest, fields = config.longest_sequence
    for path, head, trust, trained in given_models(config):
        fit = fit_of(path, head, None if trained is None else trained.lora, trust_remote_code=trust)
        reach = fit.reach
        apart = fit.alone and (reach is None or longest > reach)
        # Its ranks gather together, and so must make the same number of passes.
        if apart and trained is not None and trained.zero_stage == 3 and trained.num_ranks > 1:
            beyond, lower = (f" beyond {reach} tokens", f", or lower {fields} ({longest})") if reach else ("", "")
            raise ConfigError(
                f"{path} needs a pass for each sequence{beyond}, which ZeRO stage 3 on {trained.num_ranks} ranks "
                f"cannot do in step; set zero_stage: 2{lower}"
            )


def given_models(config: Any) -> Iterator[tuple[str, Head, bool, PolicyConfig | None]]:
    """Yield (name, head, trust_remote_code, engine) of each model not made here; a frozen one has no engine."""
    model, critic = config.model, getattr(config, "critic", None)
    engine, scores = getattr(config, "policy", None), getattr(config, "reward_model", None)
    trust = getattr(model, "trust_remote_code", False)
    path = getattr(model, "path", None)
    if path is not None:
        writes = engine is not None or hasattr(config, "generation")
        yield locate(path), "vocabulary" if writes else "scalar", trust, engine or config.engine
    if scores is not None:
        yield locate(scores.path), "scalar", scores.trust_remote_code, None
    if critic is not None:
        start = {"policy": path, "reward_model": scores and scores.path}.get(critic.start, critic.start)
        if start is not None:
            yield locate(start), "scalar", trust, critic
    scorer = getattr(config, "perplexity_reward", None)
    if scorer is not None and scorer.path is not None:
        yield locate(scorer.path), "vocabulary", scorer.trust_remote_code, None


def starting_form(config: Any, data: DataSet) -> ChatForm:
    """Return the way that the model a run starts from reads conversations; of one made here, the way it will."""
    if config.type == "scratch":
        from troupe.training.scratch import demonstrations_of, light_tokenizer, texts_of

        tokenizer = light_tokenizer(texts_of(demonstrations_of(data)), config.vocab_size)
        return ChatForm(tokenizer, config.chat_settings)
    path = locate(config.path)
    given = read_tokenizer(Path(path)) or load_tokenizer(path, trust_remote_code=config.trust_remote_code)
    mark_older(given, Path(path))
    form = ChatForm(given, config.chat_settings)
    if not form.stop_ids:
        raise ConfigError(
            f"the tokenizer of model.path {config.path} has no end token, so no answer could ever end; name the token "
            "that ends a turn as eos_token in its tokenizer_config.json, or use an instruction-tuned model"
        )
    return form


def misfits(config: Any, settings: Mapping[str, Any], prompt: str) -> Iterator[str]:
    """Settings that suit models made here and not a pretrained one of `settings`, each with its rule and remedy."""
    inner = settings.get("text_config") or settings
    if (inner.get("hidden_size") or inner.get("n_embd") or 0) < PRETRAINED_WIDTH:
        return
    samples = hasattr(config, "rollout")
    section, engine = ("policy", config.policy) if samples else ("engine", config.engine)
    highest = HIGHEST_RATE["rollout" if samples else "supervised"]
    if engine.lora is None and engine.learning_rate > highest:
        yield (
            f"{section}.learning_rate {engine.learning_rate:g} is for small models made here: full fine-tuning of a "
            f"pretrained model mostly breaks it above {highest:g}; set {section}.learning_rate={highest / 10:g}, or "
            f"train an adapter ({section}.lora)"
        )
    if not samples:
        return
    if "####" not in prompt and any(
        each.fn == "math_answer" and each.args.get("strict", True) for each in config.rewards
    ):
        yield (
            "strict math_answer wants a last line '#### <number>', and the first prompt does not ask for it, so that "
            "every answer may earn 0; say it in data.system_prompt, or set rewards: [{fn: math_answer, args: "
            "{strict: false}}]"
        )
    if config.rollout.max_response_tokens < SHORTEST_ANSWERS and config.dialogue is None:
        yield (
            f"rollout.max_response_tokens {config.rollout.max_response_tokens} is for small models made here: most "
            "answers of a pretrained model are longer and would be cut; set rollout.max_response_tokens=256 or more, "
            "unless short answers are the task"
        )
