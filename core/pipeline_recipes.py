"""The recipe of a pipeline: its stages in order, what each sets, and whose results each takes.

Everything that can be wrong in the file alone is refused here; what needs the jobs themselves is asked of them by
`jobs/run_pipeline.py` before the first stage starts.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from core.config import Section
from core.run_directory import flat_values

STAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
GIVEN = ("run.name", "run.directory", "output")
"""What a stage gets from its pipeline, so that its results lie where the next stage and the report look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What a stage takes from an earlier one: its hand-over, or a file inside it."""

    stage: str
    inside: str = ""

    @classmethod
    def read(cls, text: str) -> Reference:
        """`sft`, or `evaluate_sft/answers.jsonl`."""
        stage, _, inside = text.partition("/")
        return cls(stage=stage, inside=inside)


class StageConfig(Section):
    """One stage: a job with its recipe."""

    job: str
    """File in `jobs/` without `.py`: train_sft, train_reward_model, train_dpo, train_grpo, train_rloo, train_ppo, evaluate, score."""
    recipe: str | None = None
    """Recipe of the job, a YAML file; unset: the job's defaults."""
    set: dict[str, Any] = {}
    """Settings over the recipe, by their dotted names: `{steps: 40, policy.learning_rate: 1e-5}`."""
    inputs: dict[str, Any] = {}
    """Settings that come from earlier stages: dotted name -> stage, `stage/file`, or a list of them. A stage of training hands over its best checkpoint, else its latest; another one its output."""

    @field_validator("set", "inputs", mode="before")
    @classmethod
    def _by_dotted_names(cls, values: Any) -> Any:
        return flat_values(values) if isinstance(values, Mapping) and values else values

    @field_validator("inputs")
    @classmethod
    def _inputs_are_names(cls, inputs: dict[str, Any]) -> dict[str, Any]:
        for key, value in inputs.items():
            names = value if isinstance(value, list) else [value]
            if not names or not all(isinstance(name, str) and name for name in names):
                raise ValueError(f"{key} must name a stage, `stage/file`, or a list of them (got {value!r})")
        return inputs

    @model_validator(mode="after")
    def _the_pipeline_gives_the_place(self) -> StageConfig:
        for key in (*self.set, *self.inputs):
            if key in GIVEN:
                raise ValueError(f"{key} is given by the pipeline, as <directory>/<name>/<stage>; leave it out")
        both = sorted(set_key for set_key in self.set if set_key in self.inputs)
        if both:
            raise ValueError(f"{both[0]} stands under both `set` and `inputs`; keep one")
        return self

    def references(self) -> dict[str, list[Reference]]:
        """Dotted name -> what goes there."""
        return {
            key: [Reference.read(name) for name in (value if isinstance(value, list) else [value])]
            for key, value in self.inputs.items()
        }

    @property
    def needs(self) -> list[str]:
        """The stages that this one takes something from, in the order of its inputs."""
        return list(dict.fromkeys(reference.stage for given in self.references().values() for reference in given))


class PipelineConfig(Section):
    """Stages that run one after the other, each in a process of its own; finished ones are skipped on the next call."""

    examples = (
        "configs/pipelines/word_problems.yaml --dry-run",
        "configs/pipelines/cs224r_small.yaml stages.sft.set.steps=10 until=dpo",
    )
    page = "docs/pipelines.md"

    name: str
    """Name of the pipeline; everything it writes is in `<directory>/<name>`."""
    directory: str = "runs"
    """Directory that holds it; with several machines one that all of them see."""
    stages: dict[str, StageConfig] = Field(min_length=1)
    """The stages by name, in their order. One is changed from the command line as `stages.sft.set.steps=10`."""
    only: list[str] = []
    """Run no stages but these; what they take from others must be finished. Empty: all."""
    until: str | None = None
    """The last stage to run; unset: all."""
    force: list[str] = []
    """Stages to run again although they are finished; their earlier runs are moved aside."""
    jobs: str | None = None
    """Directory of the job files; Troupe's own when unset."""

    @field_validator("name")
    @classmethod
    def _name_is_a_path_part(cls, name: str) -> str:
        if not name or "/" in name or name.startswith("."):
            raise ValueError("a pipeline's name is one directory name: not empty, without '/', not starting with '.'")
        return name

    @field_validator("stages")
    @classmethod
    def _stage_names_are_path_parts(cls, stages: dict[str, StageConfig]) -> dict[str, StageConfig]:
        for name in stages:
            if not STAGE_NAME.fullmatch(name):
                raise ValueError(f"the stage name {name!r} must be letters, digits, '_' and '-', as in 'sft'")
        return stages

    @model_validator(mode="after")
    def _names_are_known(self) -> PipelineConfig:
        names = list(self.stages)
        for index, (name, stage) in enumerate(self.stages.items()):
            for key, references in stage.references().items():
                for reference in references:
                    _refuse_unknown(f"stages.{name}.inputs: {key}", reference.stage, names[:index], names)
        for field, given in (("only", self.only), ("force", self.force), ("until", [self.until] if self.until else [])):
            for name in given:
                _refuse_unknown(field, name, names, names)
        return self

    @property
    def path(self) -> Path:
        return Path(self.directory) / self.name

    @property
    def selected(self) -> list[str]:
        """The stages of this call, in order."""
        names = list(self.stages)
        names = names[: names.index(self.until) + 1] if self.until else names
        return [name for name in names if not self.only or name in self.only]


def _refuse_unknown(where: str, name: str, allowed: Iterable[str], names: Iterable[str]) -> None:
    allowed = list(allowed)
    if name in allowed:
        return
    if name in names:
        raise ValueError(f"{where} takes {name!r}, which does not come before it; move that stage up")
    near = difflib.get_close_matches(name, allowed, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(allowed) or 'none'}"
    raise ValueError(f"{where} names the stage {name!r}, which is not there; {hint}")
