"""The recipe of a benchmark: a run's checkpoints, its base model and models behind endpoints on one validation split."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from core.answering_recipes import COMPARE_WITH_GOLD, ROUGE, AnsweringConfig, require_file_name
from core.config import Section
from core.evaluate_recipes import REWARD_MODEL, run_name
from core.preference_recipes import PreferencesConfig
from core.rollout_recipes import RewardConfig
from core.storage_recipes import check_address

START = "start"
"""As `base`: what the run's recipe starts from."""
NAMED_STEPS = ("first", "last", "best", "all")


class EndpointModelConfig(Section):
    """A model behind an OpenAI-compatible chat endpoint."""

    base_url: str
    """Address up to `/chat/completions`, such as https://api.openai.com/v1."""
    model: str
    """The model's name at the endpoint."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; null for an endpoint without one."""
    options: dict[str, Any] = {}
    """Further fields of the request, over temperature and max_tokens; null leaves one of these out, for models that refuse it."""
    prompt_price: float = Field(default=0.0, ge=0)
    """Price of a million prompt tokens."""
    completion_price: float = Field(default=0.0, ge=0)
    """Price of a million tokens of answers."""
    max_cost: float | None = Field(default=None, gt=0)
    """Cost of one call of the job after which the model is asked no more."""
    max_concurrency: int = Field(default=16, ge=1)
    """Requests in flight."""
    timeout_s: float = Field(default=120, gt=0)
    """Seconds that one request may take."""
    patience_s: float = Field(default=300, ge=0)
    """Seconds that an endpoint which is down, or keeps refusing, is waited for; after them its answers are missing."""
    backoff_s: float = Field(default=1, gt=0)
    """Seconds before the first retry; doubled for each further one, less up to one half at random."""

    @model_validator(mode="after")
    def _cost_needs_prices(self) -> EndpointModelConfig:
        if self.max_cost is not None and not (self.prompt_price or self.completion_price):
            raise ValueError(
                f"max_cost ({self.max_cost:g}) needs prompt_price and completion_price, or nothing would ever cost anything"
            )
        return self


class BenchmarkConfig(AnsweringConfig):
    """A run's checkpoints, its base model and other models on the same held-out samples."""

    examples = (
        "configs/benchmarks/quickstart.yaml trained=runs/quickstart",
        "trained=runs/quickstart steps=[first,best] base=start",
    )
    page = "docs/evaluation.md"

    trained: str | None = None
    """Run directory whose trained model takes part, or a checkpoint in it."""
    trained_as: str | None = None
    """What the trained model is called; its run's name when unset."""
    steps: list[int | Literal["first", "last", "best", "all"]] = ["all"]
    """Steps of the run: numbers, or first, last, best, all of those that have a checkpoint or stored answers."""
    stored_answers: bool = True
    """Take answers of a step from the run's answers.jsonl, where prompts and sampling agree and all samples are there (the run's evaluation.keep_answers says how many it keeps)."""
    kept_samples_only: bool = False
    """Ask only the samples whose answers the run has kept, so that every step it evaluated takes part without its weights."""
    base: str | None = None
    """The model before training: a directory or hub name, or `start`, what the run's recipe starts from."""
    models: dict[str, str] = {}
    """Other models that run here, by name: run directory (its best checkpoint), directory or hub name."""
    endpoints: dict[str, EndpointModelConfig] = {}
    """Models behind chat endpoints, by name."""
    repeats: int = Field(default=1, ge=1)
    """Answers of each model to a sample; they count as their mean, and intervals are over samples."""
    max_missing: float = Field(default=0.1, ge=0, le=1)
    """Share of a model's answers that may be missing; beyond it the model is not measured, and its row says so."""
    charts: list[str] | None = None
    """Metrics that are drawn, by label or `<label>/<part>`; unset: every metric by its label, rouge, and `reward` of the reward model."""
    preferences: PreferencesConfig | None = None
    """Pairwise comparison by a judge; unset: none."""
    diversity: bool = True
    """Report words, unique words, unseen trigrams, distinct n-grams, ROUGE-L to gold and to the prompt's sections."""
    output: str | None = None
    """Directory of everything written; when unset `<run>/benchmark`, without a run `benchmark`."""
    upload: str | None = None
    """s3://bucket/prefix that gets a copy of everything written; credentials come from the environment."""

    @field_validator("steps", mode="before")
    @classmethod
    def _one_step_is_a_list(cls, steps: Any) -> Any:
        return steps if isinstance(steps, list | tuple) else [steps]

    @field_validator("upload")
    @classmethod
    def _upload_is_an_address(cls, upload: str | None) -> str | None:
        return upload and check_address(upload, "upload")

    @model_validator(mode="after")
    def _settings_fit(self) -> BenchmarkConfig:
        names = [*([self.trained_name] if self.trained is not None else []), *self.others]
        if not names:
            raise ValueError("nobody would answer; name trained, base, models or endpoints")
        doubled = next((name for name in names if names.count(name) > 1), None)
        if doubled is not None:
            raise ValueError(f"two of the models are called {doubled!r}; give them names of their own")
        for name in names:
            require_file_name(name)
        if self.environment is not None:
            raise ValueError(
                "environment: a benchmark compares answers and plays no games, which models behind endpoints and stored "
                "answers could not; leave it out, and play with jobs/evaluate.py"
            )
        if self.base == START and self.trained is None:
            raise ValueError("base start means what the run's recipe starts from, and trained names none; name a model")
        if self.kept_samples_only and (self.trained is None or not self.stored_answers):
            raise ValueError(
                "kept_samples_only means those of a run's answers.jsonl; name a run as trained, with stored_answers: true"
            )
        if not self.steps and self.trained is not None:
            raise ValueError(f"steps names none; give numbers, or {', '.join(NAMED_STEPS)}")
        if not self.all_metrics and self.reward_model is None:
            raise ValueError("nothing would be measured; name metrics, or set rouge: true, or reward_model.path")
        if self.repeats > 1 and self.temperature == 0:
            raise ValueError(
                f"repeats ({self.repeats}) at temperature 0 would pay for the same answer again; raise temperature, or set repeats: 1"
            )
        # What a reward reports beside its value is `<label>/<part>`, which only an answer shows.
        unknown = [metric for metric in self.charts or [] if metric.partition("/")[0] not in self.drawable]
        if unknown:
            raise ValueError(
                f"charts names {unknown[0]!r}, which is not measured; there are {', '.join(self.drawable)}"
            )
        self.check_scoring()
        if self.preferences is not None:
            self.preferences.check(names)
        return self

    @property
    def trained_name(self) -> str:
        return self.trained_as or run_name(str(self.trained))

    @property
    def others(self) -> list[str]:
        """The names of everybody but the trained model, in the order of tables."""
        return [*(["base"] if self.base is not None else []), *self.models, *self.endpoints]

    @property
    def all_metrics(self) -> list[RewardConfig]:
        return [*self.metrics, *([ROUGE] if self.rouge else [])]

    @property
    def drawable(self) -> list[str]:
        reward = ["reward"] if self.reward_model is not None else []
        return [*(metric.label for metric in self.all_metrics), *reward]

    @property
    def drawn(self) -> list[str]:
        return self.drawable if self.charts is None else self.charts

    @property
    def needs_gold(self) -> str | None:
        """The setting that cannot do without a reference answer for every sample, None when none."""
        found = (f"the metric {metric.label}" for metric in self.all_metrics if metric.fn in COMPARE_WITH_GOLD)
        return next(found, None)

    def arithmetic(self) -> str:
        """What will be done, in a sentence."""
        who = [f"{self.trained_name} at steps {', '.join(map(str, self.steps))}"] if self.trained is not None else []
        who += self.others
        words = f"{len(who)} models answer held-out prompts of {self.data.type}, {self.repeats} each: {'; '.join(who)}"
        if self.reward_model is not None:
            words += f"; {self.reward_model.path} scores the answers as {REWARD_MODEL}"
        if self.preferences is not None:
            words += f"; {self.preferences.judge.label} compares every pair by {', '.join(self.preferences.dimensions)}"
        return words
