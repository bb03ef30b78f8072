"""What is sampled and how it is scored: rollouts, environments of several turns, rewards, served scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from troupe.config.agents import ToolConfig
from troupe.config.loader import Section
from troupe.config.models import Precision


class RewardConfig(Section):
    """One reward function of the weighted sum."""

    fn: str
    """A reward of this project (math_answer, regex_format, length, rouge, remote_reward, remote_comparison, judge_qa,
    python_tests), or `package.module:function` or `package.module:Class`; see docs/rewards.md.
    """
    name: str | None = None
    """Name in the logs; the function's by default."""
    weight: float = 1.0
    """Its weight in the sum."""
    args: dict[str, Any] = {}
    """Keyword arguments handed to it."""
    sources: list[str] | None = Field(default=None, min_length=1)
    """Sources of a mixture, or further held-out sets, whose answers it judges; unset: all."""
    timeout_s: Annotated[float, Field(gt=0)] | Literal["auto"] | None = "auto"
    """Seconds after which a call is ended and its judgement is missing; null: no limit; auto: 30 for a plain function
    or object, none for what is awaited.
    """
    retries: int = Field(default=0, ge=0)
    """Further attempts after a timeout."""

    @property
    def label(self) -> str:
        return reward_label(self.fn, self.name)


def reward_label(fn: str, name: str | None = None) -> str:
    """Return what a reward is called in the logs."""
    return name or fn.rpartition(":")[2].rpartition(".")[2]


class DynamicSamplingConfig(Section):
    """DAPO's dynamic sampling (2503.14476): groups whose rewards are all equal carry no signal and are replaced."""

    enabled: bool = False
    """Whether to drop and replace them."""
    max_extra_prompts: int = Field(default=128, ge=0)
    """Bound on the replacement prompts of one step; beyond it the step goes on with the groups it has."""


class RolloutConfig(Section):
    """Prompts and answers of a step."""

    prompts_per_step: int = Field(default=64, ge=1)
    """Prompts (groups) in a step."""
    group_size: int = Field(default=8, ge=1)
    """Branches sampled for each prompt."""
    max_prompt_tokens: int = Field(default=256, ge=1)
    """Longest prompt in tokens."""
    long_prompts: Literal["drop", "refuse"] = "drop"
    """What happens to longer prompts: dropped and counted, or the run is refused."""
    max_response_tokens: int = Field(default=40, ge=1)
    """Longest answer in tokens, its end of turn included; with an environment the longest game, both sides counted."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature; the trainer divides its logits by it too. top_p, top_k and min_p stay off: they would make
    the sampled distribution another one than the policy's.
    """
    stop: list[str] = []
    """Strings that end an answer, beside the end-of-turn token."""
    max_lag: int = Field(default=0, ge=0)
    """Hard bound, in steps, on the age of the weights that sampled a token: 0 is strictly on-policy; k lets generation
    run ahead while the policy trains.
    """
    dynamic_sampling: DynamicSamplingConfig = DynamicSamplingConfig()
    """Replacement of groups without signal."""
    timeout_s: float = Field(default=1800, gt=0)
    """Seconds a step's generation may take before the run stops and names the engines that are behind."""

    @property
    def branches_per_step(self) -> int:
        return self.prompts_per_step * self.group_size


class RewarderConfig(Section):
    """Processes that run the rewards."""

    num_workers: int = Field(default=0, ge=0)
    """Processes; 0 scores in the driver, which is best for cheap rewards on few cores."""
    max_concurrency: int = Field(default=32, ge=1)
    """Groups in flight per worker, for rewards that wait on a network."""
    processes: int | None = Field(default=None, ge=1, le=1000)
    """Processes in which plain functions are called, per worker; unset: one for two cores, at most 4. An object has one
    of its own.
    """
    memory_gib: float = Field(default=4.0, gt=0)
    """Private memory of each of them; a call that takes more is a missing judgement."""


class SamplingConfig(Section):
    """Sampling of held-out answers; rollouts have the temperature alone: a ratio needs the sampler's distribution."""

    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy; above it one answer is sampled for each prompt."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Tokens are sampled from the likeliest that have this share of the probability together."""
    top_k: int = Field(default=0, ge=0)
    """Tokens are sampled from so many of the likeliest; 0: from all."""

    @model_validator(mode="after")
    def _greedy_answers_need_no_more(self) -> Self:
        if self.temperature == 0 and self.sampling.keys() > {"temperature"}:
            raise ValueError("top_p and top_k say nothing about greedy answers; raise temperature, or leave them out")
        return self

    @property
    def sampling(self) -> dict[str, float]:
        """The settings that are not off, as an engine or an endpoint calls them."""
        given = {"top_p": (self.top_p, 1.0), "top_k": (self.top_k, 0)}
        return {
            "temperature": self.temperature,
            **{name: value for name, (value, off) in given.items() if value != off},
        }

    @property
    def in_words(self) -> str:
        """How answers are given, such as "at temperature 0.7, top_p 0.8"."""
        if self.temperature == 0:
            return "greedily"
        return "at " + ", ".join(f"{name} {value:g}" for name, value in self.sampling.items())


class EvaluationConfig(SamplingConfig):
    """Held-out evaluation during the run: before the first step, every n steps, after the last."""

    every: int = Field(default=10, ge=0)
    """Steps between evaluations; 0: only before the first and after the last step."""
    num_samples: int | None = Field(default=None, ge=1)
    """Held-out samples; all when unset."""
    max_response_tokens: int | None = Field(default=None, ge=1)
    """Longest answer; rollout.max_response_tokens when unset."""
    keep_answers: int = Field(default=256, ge=0)
    """Held-out answers of an evaluation that go into answers.jsonl, the same samples each time: the interval at the end
    is over them, and jobs/benchmark.py uses them where all of its samples are there.
    """
    metrics: list[RewardConfig] = [RewardConfig(fn="math_answer", name="accuracy")]
    """Reward functions whose held-out mean is reported as eval/<set>/<name>; a reward model and a perplexity reward are
    measured without being named.
    """
    best_metric: str | None = None
    """Metric of the best checkpoint, `environment/win` say; unset: the first of `metrics`, else the reward model."""
    higher_is_better: bool = True
    """Direction of best_metric."""

    @property
    def best(self) -> str:
        return self.best_metric or (self.metrics[0].label if self.metrics else "reward_model")

    def best_in(self, sets: Sequence[str]) -> tuple[str | None, str]:
        """Return the held-out set that the best checkpoint's metric names, None where it names none, and the metric."""
        name, _, metric = self.best.partition("/")
        return (name, metric) if metric and name in sets else (None, self.best)

    def check(self, model_parts: Sequence[str], sets: Sequence[str] = ()) -> None:
        """Raise ValueError unless a function or one of `model_parts` measures the best checkpoint's metric.

        `sets` are the names of further held-out sets, one of which may stand before the metric.
        """
        names = [*(metric.label for metric in self.metrics), *model_parts]
        if not names:
            raise ValueError("evaluation.metrics must name at least one metric")
        if self.best not in names and self.best_metric is None:
            raise ValueError(
                f"evaluation.metrics is empty; name the metric of the best checkpoint in evaluation.best_metric "
                f"({', '.join(names)})"
            )
        # What a part like environment/win is called, only the environment knows.
        metric = self.best_in(sets)[1]
        if metric not in names and metric.partition("/")[0] not in names:
            raise ValueError(f"best_metric {self.best!r} is not among the metrics ({', '.join(names)})")


ANSWER = "answer"
"""The environment that says nothing."""
LABEL = "environment"
"""Its name in the logs: `reward/environment`, `eval/<set>/environment/win`."""
TURN_TOKENS = 128


class EnvironmentConfig(Section):
    """An environment that the model plays with, turn by turn; each branch of a prompt is one game."""

    type: Literal["class", "textarena"] = "class"
    """class: what `fn` names; textarena: the game of that library that `name` names."""
    fn: str = ANSWER
    """An environment of this project (tic_tac_toe), or `package.module:Class`; see docs/environments.md. answer: none,
    the model's first answer that calls no tool is the end.
    """
    name: str | None = None
    """Name of the game in its library, such as `GuessTheNumber-v0`."""
    args: dict[str, Any] = {}
    """Keyword arguments of its constructor."""
    order: Literal["rounds", "free"] = "rounds"
    """rounds: engines answer all open games of a batch together, so that a run repeats to the bit, and wait for the
    slowest; free: every game goes on by itself. With rollout.max_lag above 0 games are always free.
    """
    max_turns: int = Field(default=16, ge=1)
    """Answers of the model in a game; a game that is not over by then is cut off and counts as truncated."""
    max_turn_tokens: int | None = Field(default=None, ge=1)
    """Longest answer of one turn in tokens, its end-of-turn token included; unset: 128, or what is left of the game.
    rollout.max_response_tokens bounds the whole game, the environment's tokens included.
    """
    unfinished_reward: float = Field(default=0.0, allow_inf_nan=False)
    """Added to the reward of a game that was cut off."""
    on_error: Literal["outcome", "stop"] = "outcome"
    """When the environment raises: outcome: the game ends with error_reward and is counted; stop: the run stops."""
    error_reward: float = Field(default=0.0, allow_inf_nan=False)
    """Reward of a game whose environment raised."""
    max_error_fraction: float = Field(default=0.1, ge=0, le=1)
    """Share of a step's (or an evaluation's) games that may end that way; beyond it the run stops."""
    timeout_s: float | None = Field(default=None, gt=0)
    """Seconds that one call of an async environment may take before it counts as raised; unset: no limit."""

    @property
    def turn_tokens(self) -> int:
        """Most tokens of a turn, where the game has room for them."""
        return self.max_turn_tokens or TURN_TOKENS

    @property
    def plays(self) -> bool:
        """Whether something besides tools replies to the model."""
        return self.type != "class" or self.fn != ANSWER

    @property
    def title(self) -> str:
        """Its name for people."""
        return self.fn if self.type == "class" else f"{self.type} {self.name}"

    @model_validator(mode="after")
    def _is_named_one_way(self) -> Self:
        if self.type == "class" and self.name is not None:
            raise ValueError("name belongs to type textarena; name a class in fn")
        if self.type != "class" and (self.name is None or self.fn != ANSWER):
            raise ValueError(f"type {self.type} needs the name of a game of that library, and no fn")
        return self

    def check_limit(self, max_response_tokens: int, name: str = "rollout.max_response_tokens") -> None:
        """Raise ValueError unless a turn fits into a game."""
        if self.max_turn_tokens is not None and self.max_turn_tokens > max_response_tokens:
            raise ValueError(
                f"environment.max_turn_tokens ({self.max_turn_tokens}) must be at most {name} ({max_response_tokens}), "
                "which bounds the whole game: all answers and what the environment says in between"
            )


def dialogue_of(
    environment: EnvironmentConfig | None, tools: Sequence[ToolConfig], max_tokens: int
) -> EnvironmentConfig | None:
    """Return how answers of several turns go on; None where every answer is one turn."""
    return EnvironmentConfig(max_turn_tokens=max_tokens) if environment is None and tools else environment


class BatchingConfig(Section):
    """Conversations that are asked about at the same time are read together."""

    row_tokens: int = Field(default=4096, ge=16)
    """Tokens that are read in one forward pass; a longer conversation has its own."""
    max_batch: int = Field(default=64, ge=1)
    """Most requests that are read together."""
    wait_s: float = Field(default=0.005, ge=0)
    """Seconds that a request waits for others to come."""


class ServedRewardModelConfig(Section):
    """A reward model behind `/v1/score`, and behind `/v1/chat/completions` as a judge: `reward:<number>`."""

    type: Literal["reward_model"] = "reward_model"
    path: str
    """Run directory, checkpoint directory or hub name of a model with a trained scalar head."""
    name: str = "reward_model"
    """What requests call it."""
    precision: Precision = "auto"
    """Precision of its weights."""
    max_length: int | None = Field(default=None, ge=2)
    """Most tokens of prompt and answer; null: what the model's positions reach."""
    single_turn: Literal["template", "text"] = "template"
    """How a chat with one user turn is read: through the chat template, or as the plain text of some data sets."""
    batching: BatchingConfig = BatchingConfig()
    """What is read together."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""


class ServedRewardsConfig(Section):
    """Reward functions behind `/v1/score`: the weighted sum that a recipe trains with."""

    type: Literal["rewards"] = "rewards"
    rewards: list[RewardConfig] = Field(min_length=1)
    """The functions and their weights."""
    name: str = "rewards"
    """What requests call it."""
    tokenizer: str | None = None
    """Run, checkpoint directory or hub name whose tokenizer counts tokens; null: for functions that count none."""


ScorerConfig = Annotated[ServedRewardModelConfig | ServedRewardsConfig, Field(discriminator="type")]
"""Who scores."""
