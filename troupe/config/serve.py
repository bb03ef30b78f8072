"""The recipe of an endpoint: which models it serves, where it listens, how many replicas, which run it follows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from troupe.config.evaluation import run_name
from troupe.config.loader import Section, wanted_help
from troupe.config.models import EngineConfig, PlacementConfig, Precision
from troupe.config.rollout import ScorerConfig, ServedRewardModelConfig
from troupe.files import to_json
from troupe.names import is_hub_name, step_of


class ServedModelConfig(Section):
    """A model that the endpoint answers for."""

    path: str
    """A run directory, `runs/x@10` (that step of it), a checkpoint's directory, a hub name, or s3://bucket/prefix."""
    name: str | None = None
    """What requests call it; unset: the run's or directory's name, `@step` where asked for, or the hub name."""
    adapters: dict[str, str] = {}
    """Name -> peft directory: LoRA adapters on this model, each served under its own name by the same engine."""

    tool_call_parser: str | None = "auto"
    """vLLM's parser of calls of tools, by name; auto: the one that reads what the chat template writes, where there is
    one; null: calls stay text.
    """
    reasoning_parser: str | None = "auto"
    """vLLM's parser that parts thoughts from answers, likewise."""
    chat_template: str | None = None
    """File with a jinja template in place of the model's own."""
    chat_template_kwargs: dict[str, Any] = {}
    """What the template is given where a request says nothing else; unset: what a model trained here was given."""

    @field_validator("path")
    @classmethod
    def _step_is_a_number(cls, path: str) -> str:
        step = path.rpartition("@")[2] if "@" in path else "0"
        if not step.isdigit():
            raise ValueError(f"what follows @ is a step of the run, a number, not {step!r}")
        return path

    @property
    def source(self) -> str:
        """The path without its step."""
        return self.path.rpartition("@")[0] if "@" in self.path else self.path

    @property
    def step(self) -> int | None:
        """The step that was asked for; None: the run's best checkpoint, its latest where nothing was measured."""
        return int(self.path.rpartition("@")[2]) if "@" in self.path else None

    @property
    def label(self) -> str:
        """What requests call it."""
        if self.name is not None:
            return self.name
        name = self.source if is_hub_name(self.source) else run_name(self.source.rstrip("/"))
        step = self.step if self.step is not None else step_of(Path(self.source).name)
        return name if step is None else f"{name}@{step}"


class FollowConfig(Section):
    """The way a followed run's newer checkpoints take the place of the one that is served."""

    checkpoint: Literal["best", "latest"] = "best"
    """best: each checkpoint that is better than all before; latest: each one."""
    every_s: float = Field(default=2.0, gt=0)
    """Seconds between looks at the run's directory."""
    drain_s: float = Field(default=30.0, ge=0)
    """Seconds that running answers get to end before the weights change; longer ones go on with the new weights."""


class ServeConfig(Section):
    """Trained checkpoints behind an OpenAI-compatible endpoint on Ray Serve."""

    examples = (
        "runs/quickstart",
        "runs/quickstart@10 runs/quickstart port=9000",
        "follow=runs/quickstart",
    )
    page = "docs/serving.md"

    models: list[ServedModelConfig] = []
    """What is served; paths on the command line are added to it."""
    follow: str | None = None
    """A run directory: served under its name, and each new checkpoint takes the place of the one before."""
    following: FollowConfig = FollowConfig()
    """How `follow` follows."""
    reward_model: str | None = None
    """A reward model (run, checkpoint or hub name) behind /v1/score and the playground; short for `scorers`."""
    scorers: list[ScorerConfig] = []
    """Reward models and reward functions behind /v1/score."""
    playground: bool = True
    """Whether / shows a page for prompts and answers side by side."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in, which is asked for on purpose."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port to listen on."""
    auth: bool = True
    """Whether a request needs the bearer token: TROUPE_API_KEY of the environment, or one made and printed once."""
    min_replicas: int = Field(default=1, ge=1)
    """Engines of each model that are always there."""
    max_replicas: int | None = Field(default=None, ge=1)
    """Engines of each model under load; unset: min_replicas."""
    target_requests: float = Field(default=64, gt=0)
    """Running requests an engine is meant to have; more of them start another replica, up to max_replicas."""
    scale_up_after_s: float = Field(default=30, ge=0)
    """Seconds of more requests than that before another replica starts."""
    scale_down_after_s: float = Field(default=600, ge=0)
    """Seconds of fewer requests before a replica ends; its start is paid again when they come back."""
    max_queued: int = Field(default=1024, ge=1)
    """Requests that a model has running or waiting; more are answered with 429."""
    stream_parts_per_s: float = Field(default=150, gt=0)
    """Parts a second in which an engine passes on its streams, all together: a lone stream comes token by token, many
    come in larger parts. The first token comes at once.
    """
    max_length: int | None = Field(default=None, ge=2)
    """Prompt and answer in tokens; unset: what the model takes, on a CPU at most 8,192."""
    max_request_mib: float = Field(default=8.0, gt=0)
    """Largest request body in MiB; a larger one is answered with 400 before it is read to its end."""
    request_timeout_s: float = Field(default=60.0, gt=0)
    """Seconds that a client may take to send a request; a slower one is answered with 408 and hung up on."""
    reply_timeout_s: float = Field(default=120.0, gt=0)
    """Seconds that an engine may take for a sign of life, between two of its steps, before it is ended and started
    again."""
    precision: Precision = "auto"
    """Precision of the weights."""
    engine: EngineConfig = EngineConfig()
    """Every model's vLLM engine."""
    seed: int = 0
    """Seed of requests that name none."""
    trust_remote_code: bool = False
    """Whether code that comes with the models may run."""
    placement: PlacementConfig = PlacementConfig()
    """The Ray cluster."""

    @model_validator(mode="after")
    def _models_have_names_of_their_own(self) -> ServeConfig:
        if not self.served and not self.all_scorers:
            raise ValueError(
                "nothing would be served; give a run, a checkpoint directory or a hub name: python jobs/serve.py "
                "runs/quickstart"
            )
        names = [name for model in self.served for name in (model.label, *model.adapters)]
        names += [scorer.name for scorer in self.all_scorers]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"two models are called {twice[0]!r}; name them: models='[{{name: a, path: ...}}, {{name: b, path: "
                f"...}}]'"
            )
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas ({self.max_replicas}) must be at least min_replicas ({self.min_replicas})")
        return self

    @property
    def served(self) -> list[ServedModelConfig]:
        """Every model, the followed one first."""
        return [*([] if self.follow is None else [ServedModelConfig(path=self.follow)]), *self.models]

    @property
    def all_scorers(self) -> list[ScorerConfig]:
        """The scorers, `reward_model` among them."""
        short = [] if self.reward_model is None else [ServedRewardModelConfig(path=self.reward_model)]
        return [*short, *self.scorers]

    def arithmetic(self) -> str:
        """Return what would be started, in one sentence."""
        names = ", ".join([model.label for model in self.served] + [scorer.name for scorer in self.all_scorers])
        most = self.max_replicas or self.min_replicas
        replicas = f"{self.min_replicas}" if most == self.min_replicas else f"{self.min_replicas} to {most}"
        return f"{names} at http://{self.host}:{self.port}/v1, {replicas} engine(s) a model"


def with_sources(arguments: Sequence[str]) -> list[str]:
    """Return the command line with its plain paths as an override of `models`.

    >>> with_sources(["runs/a", "port=9000", "runs/a@10"])
    ['port=9000', 'models=[{"path": "runs/a"}, {"path": "runs/a@10"}]']
    """
    if wanted_help(arguments) is not None:
        return list(arguments)
    plain = [
        argument
        for argument in arguments
        if "=" not in argument and not argument.startswith("-") and not argument.endswith((".yaml", ".yml"))
    ]
    rest = [argument for argument in arguments if argument not in plain]
    listed = to_json([{"path": path} for path in plain])
    return [*rest, f"models={listed}"] if plain else rest
