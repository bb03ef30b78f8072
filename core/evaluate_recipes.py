"""The recipe of an evaluation: which models answer which held-out prompts, and what is measured of the answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from core.answering_recipes import COMPARE_WITH_GOLD, ROUGE, AnsweringConfig, require_file_name
from core.environment_recipes import LABEL as ENVIRONMENT
from core.perplexity_recipes import ReadingConfig
from core.rollout_recipes import RewardConfig

REFERENCE = "reference"
"""The name under which the data's own answers take part in comparisons."""
REWARD_MODEL = "reward_model"
"""The name of the reward model as a judge."""
REWARD_TIE_MARGIN = 0.1
"""Scores of a reward model that are closer than this are a tie; those of a function tie when they are equal."""


class EvaluateConfig(AnsweringConfig):
    """One or several models on the held-out set of a data set."""

    examples = (
        "model=runs/quickstart",
        "'models={sft: runs/sft, ppo: runs/ppo}' rouge=true against=sft",
    )
    page = "docs/evaluation.md"

    model: str | None = None
    """A run directory (its best checkpoint), a directory in Hugging Face format, or a hub name; or name several in `models`."""
    models: dict[str, str] = {}
    """The models by the name that tables give them: `{sft: runs/sft, ppo: runs/ppo}`. A list of paths is named after the runs."""
    contexts: dict[str, str] = {}
    """Model -> JSONL file of another model's answers, such as this job writes: the model continues what a perplexity scorer would read, the sample's prompt and that answer. Models that are not named here get that prompt alone; with no file at all every model gets the data's own."""
    reading: ReadingConfig = ReadingConfig()
    """How prompt and context are put together, as in `perplexity_reward`."""
    references: bool = True
    """Whether the reward model scores the data's own answers too, and the difference to them is reported."""
    against: str | None = None
    """What each model is compared with: the name of a model, `reference` (the data's own answers), or a JSONL file of answers by `sample_id`."""
    judge: str | None = None
    """Who compares: `reward_model`, the name of a metric, a part of the environment's, or a reward function; the reward model when unset, else the first metric, else the environment, else `rouge`."""
    tie_margin: float | None = Field(default=None, ge=0)
    """Judgements closer than this are a tie, in both directions; 0.1 for the reward model and 0 for functions when unset."""

    @field_validator("models", mode="before")
    @classmethod
    def _named_after_their_runs(cls, models: Any) -> Any:
        if not isinstance(models, list | tuple) or not all(isinstance(path, str) for path in models):
            return models
        names = [run_name(path) for path in models]
        doubled = next((name for name in names if names.count(name) > 1), None)
        if doubled is not None:
            raise ValueError(
                f"two of the models would be called {doubled!r}; give them names: models={{a: ..., b: ...}}"
            )
        return dict(zip(names, models, strict=True))

    @field_validator("models")
    @classmethod
    def _names_are_file_names(cls, models: dict[str, str]) -> dict[str, str]:
        for name in models:
            require_file_name(name, REFERENCE)
        return models

    @model_validator(mode="after")
    def _settings_fit(self) -> EvaluateConfig:
        if (self.model is None) == (not self.models):
            raise ValueError("give either model (one) or models (several by name)")
        if REFERENCE in self.named_models:
            raise ValueError(
                f"{REFERENCE!r} means the data's own answers; give the model another name: models={{other: {self.model}}}"
            )
        if not self.all_metrics and self.reward_model is None and self.environment is None:
            raise ValueError(
                "nothing would be measured; name metrics, or set rouge: true, or reward_model.path, or environment"
            )
        if self.judge == REWARD_MODEL and self.reward_model is None:
            raise ValueError("judge reward_model needs reward_model.path")
        if self.judge is not None and self.against is None:
            raise ValueError(
                f"judge {self.judge!r} compares, and there is nothing to compare with; set against to a model's name, "
                f"{REFERENCE!r} or a JSONL file, or leave judge out"
            )
        self._check_against()
        self._check_contexts()
        if self._judged_by_games and self.against is not None and self.opponent not in self.named_models:
            raise ValueError(
                f"judge {self.judge_name!r} compares games, and {self.against!r} played none; set against to the name of a model"
            )
        self.check_scoring()
        return self

    def _check_against(self) -> None:
        named = list(self.named_models)
        if self.against is None or self.against == REFERENCE:
            return
        if self.against in named:
            if len(named) == 1:
                raise ValueError(
                    f"against {self.against!r} would compare that model with itself; name a second one in models"
                )
            return
        if not self.against.endswith((".jsonl", ".json")):
            raise ValueError(
                f"against {self.against!r} is not among the models ({', '.join(named)}); it may also be {REFERENCE!r}, or a JSONL file"
            )
        if self.opponent in (*named, REFERENCE):
            raise ValueError(
                f"against {self.against!r} would be called {self.opponent!r} in the tables, as something else is; rename the file or the model"
            )

    def _check_contexts(self) -> None:
        unknown = [name for name in self.contexts if name not in self.named_models]
        if unknown:
            raise ValueError(
                f"contexts names {unknown[0]!r}, which is not among the models ({', '.join(self.named_models)})"
            )
        if self.contexts and self.environment is not None:
            raise ValueError(
                "contexts are read before an answer, and games have no such place; leave out one of the two"
            )
        if not self.contexts and self.reading != ReadingConfig():
            raise ValueError("reading says how contexts are read, and there are none; name a file in contexts")

    @property
    def named_models(self) -> dict[str, str]:
        """Name -> path, of one model too."""
        return self.models if self.model is None else {run_name(self.model): self.model}

    @property
    def _judged_by_games(self) -> bool:
        """Whether models are compared by how their games ended."""
        return self.environment is not None and self.judge_name.partition("/")[0] == ENVIRONMENT

    @property
    def opponent(self) -> str | None:
        """The name of what the models are compared with; a file's is its stem."""
        if self.against is None or self.against in (*self.named_models, REFERENCE):
            return self.against
        return Path(self.against).stem

    @property
    def against_file(self) -> Path | None:
        """The JSONL file of answers, where `against` is one."""
        return Path(str(self.against)) if self.opponent != self.against else None

    @property
    def judge_name(self) -> str:
        """The judge, also where none is named."""
        if self.judge is not None:
            return self.judge
        if self.reward_model is not None:
            return REWARD_MODEL
        if self.metrics:
            return self.metrics[0].label
        return ENVIRONMENT if self.environment is not None else ROUGE.label

    @property
    def all_metrics(self) -> list[RewardConfig]:
        """Every function that is measured, the judge among them."""
        metrics = [*self.metrics, *([ROUGE] if self.rouge else [])]
        known = {REWARD_MODEL, *(metric.label for metric in metrics)}
        if self.against is not None and self.judge_name not in known and not self._judged_by_games:
            metrics.append(RewardConfig(fn=self.judge_name, name=self.judge_name))
        return metrics

    @property
    def margin(self) -> float:
        """The tie margin, also where none is given."""
        if self.tie_margin is not None:
            return self.tie_margin
        return REWARD_TIE_MARGIN if self.judge_name == REWARD_MODEL else 0.0

    @property
    def needs_gold(self) -> str | None:
        """The setting that cannot do without a reference answer for every sample, None when none."""
        if self.reward_model is not None and self.references:
            return "references"
        for metric in self.all_metrics:
            if metric.fn in COMPARE_WITH_GOLD:
                return f"the metric {metric.label}"
        return "against: reference" if self.opponent == REFERENCE else None

    def arithmetic(self) -> str:
        """What will be done, in a sentence."""
        steps = [
            f"{len(self.named_models)} model{'s' if len(self.named_models) > 1 else ''} answer held-out prompts of {self.data.type}"
        ]
        if self.reward_model is not None:
            steps.append(f"{self.reward_model.path} scores the answers")
        if self.against is not None:
            steps.append(f"{self.judge_name} compares them with {self.opponent}, ties within {self.margin:g}")
        return "; ".join(steps)


def run_name(path: str) -> str:
    """What a model is called after: its run, or the last part of its path.

    >>> run_name("runs/sft"), run_name("runs/sft/checkpoints/step-000010"), run_name("Qwen/Qwen2.5-0.5B")
    ('sft', 'sft', 'Qwen2.5-0.5B')
    """
    parts = Path(path).parts
    if "checkpoints" in parts[1:]:
        return parts[parts.index("checkpoints", 1) - 1]
    return Path(path).resolve().name if parts in ((), ("..",)) else parts[-1]
