"""Export, data preparation and pipelines: the configs of the jobs around training."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from troupe.config.data import DataConfig
from troupe.config.endpoint import EndpointConfig
from troupe.config.evaluation import run_name
from troupe.config.fields import flat_values
from troupe.config.loader import Section
from troupe.config.own_data import RowFilterConfig

EXAMPLES = [
    "The harbour was quiet, and the ferryman counted his coins.",
    "Return the number of rows that match, or zero if there are none.",
    "Ana has 12 shells and gives away 5. How many shells are left?",
]


class ExportConfig(Section):
    """A checkpoint as safetensors that transformers and vLLM load, checked by loading it."""

    examples = (
        "model=runs/quickstart output=exported",
        "model=runs/quickstart checkpoint=20 dtype=fp32 adapter=apart",
    )
    page = "docs/export.md"

    model: str
    """A run directory, a checkpoint's directory, or a hub name; `<checkpoint>/critic` is PPO's critic."""
    checkpoint: Literal["best", "latest"] | int = "best"
    """Which checkpoint of a run: best (latest where nothing was measured), latest, or a step."""
    output: str | None = None
    """Directory that gets the model; unset: `exports/<run>-<dtype>`, with `-adapter` for an adapter apart."""
    dtype: Literal["fp32", "bf16"] = "bf16"
    """Precision of the weights."""
    source: Literal["auto", "weights", "shards"] = "auto"
    """weights: the checkpoint's safetensors; shards: its ZeRO state, whose masters are fp32; auto: shards where only
    they have what is asked (an adapter apart, fp32 of a bf16 run, no safetensors), else weights.
    """
    adapter: Literal["merged", "apart"] = "merged"
    """merged: one model; apart: a peft directory, and the base model in `base` below it unless that is on the hub."""
    max_shard_gb: float = Field(default=5.0, gt=0)
    """Largest safetensors file in GB."""
    prompts: list[str] = Field(default=EXAMPLES, min_length=1)
    """Texts whose log-probabilities (scores, of a reward model) are compared with the source's."""
    max_gap: float | None = Field(default=None, gt=0)
    """Largest allowed mean |difference| in nats a token; unset: 1e-4 where all is fp32; where bf16 rounds 4 times what
    computing in bf16 makes of the model, between 1e-3 and 0.5.
    """
    base_model: str | None = None
    """Hub name of the model that training began with, for the model card; unset: as the runs' recipes say."""
    license: str | None = None
    """Licence identifier of the model card, such as apache-2.0; unset: the card says that none was given."""
    push: str | None = None
    """Repository `owner/name` on the Hugging Face hub that gets the directory; needs HF_TOKEN or `hf auth login`."""
    private: bool = True
    """Whether a repository that `push` creates is private."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""

    @field_validator("prompts")
    @classmethod
    def _prompts_have_something_to_predict(cls, prompts: list[str]) -> list[str]:
        for prompt in prompts:
            if len(prompt.split()) < 2:
                raise ValueError(f"prompt {prompt!r} is too short to compare log-probabilities; give two words or more")
        return prompts

    @field_validator("push")
    @classmethod
    def _push_names_a_repository(cls, push: str | None) -> str | None:
        if push is not None and (push.count("/") != 1 or not all(push.split("/"))):
            raise ValueError("push names a repository as owner/name")
        return push

    @property
    def path(self) -> Path:
        if self.output is not None:
            return Path(self.output)
        return Path("exports") / f"{run_name(self.model)}-{self.dtype}{'-adapter' if self.adapter == 'apart' else ''}"

    def arithmetic(self) -> str:
        """Return what will be done, in a sentence."""
        which = f", checkpoint {self.checkpoint}" if self.checkpoint != "best" else ""
        form = "adapter apart" if self.adapter == "apart" else "one model"
        target = f", then to {self.push} on the hub" if self.push else ""
        return f"{self.model}{which} -> {self.path}: {self.dtype}, {form}{target}"


class StorySectionsConfig(Section):
    """Summaries, synopses and character sheets that another model writes of stories: rows of `type: next_chapter`."""

    endpoint: EndpointConfig
    """The model that writes; its cache remembers replies, so that a second call asks only for what is missing."""
    characters: int = Field(default=3, ge=1)
    """Character sheets of each row."""
    last_chapters: int = Field(default=1, ge=1)
    """Chapters before the next one that a row holds whole."""
    first_chapter: int = Field(default=2, ge=1)
    """Index of the first chapter that is to be foreseen; the story's first chapter has 0."""
    skip_last: int = Field(default=2, ge=0)
    """Chapters at the end of each story that are not."""


class PrepareConfig(Section):
    """Split a file or a data set into JSONL files by story, document or row, with statistics and hashes."""

    examples = (
        "file=stories.jsonl key=story_id output=data/stories",
        "'data={type: docstring_sections}' key=package output=data/sections",
        "file=books.jsonl 'sections.endpoint={base_url: \"http://127.0.0.1:8000/v1\", model: m}' output=data/books",
    )
    page = "docs/data.md"

    file: str | None = None
    """JSONL file whose rows are split as they are; or give `data`."""
    sections: StorySectionsConfig | None = None
    """Make rows of `type: next_chapter`: `file` has a story a line, `{"story_id", "chapters": [text, ...]}`, and
    another model writes the sections around its chapters; unset: rows are as they are.
    """
    data: DataConfig | None = None
    """Data set whose samples, both sides of it, are split and written with id, prompt, gold and their other fields."""
    key: str | None = None
    """Field of what must not be torn apart, such as story_id or document_id: no value of it is in two files. Unset:
    equal prompts stay together (`data`), each row is on its own (`file`).
    """
    filters: list[RowFilterConfig] = []
    """Bounds on the rows of `file`; a data set has filters of its own."""
    shares: dict[str, float] = {"train": 0.8, "val": 0.1, "test": 0.1}
    """Share of the rows of each file, by its name; none of them stays empty."""
    seed: int = 0
    """Seed of the split."""
    tokenizer: str | None = None
    """Directory or hub name of a tokenizer; with it the statistics are in tokens too."""
    output: str
    """Directory that gets `<name>.jsonl` for each share, and manifest.json."""

    @field_validator("shares")
    @classmethod
    def _shares_are_shares(cls, shares: dict[str, float]) -> dict[str, float]:
        for name, share in shares.items():
            if not name or "/" in name or name.startswith(".") or not 0 < share <= 1:
                raise ValueError(
                    f"share {name}: {share} is not possible: a share is above 0 and at most 1, and its name is a file's"
                )
        if abs(sum(shares.values()) - 1) > 1e-6:
            raise ValueError(f"the shares {shares} add up to {sum(shares.values()):g}; they must add up to 1")
        return shares

    @model_validator(mode="after")
    def _one_source(self) -> PrepareConfig:
        if (self.file is None) == (self.data is None):
            raise ValueError("give either file (rows stay as they are) or data (a data set of this project)")
        if self.data is not None and self.filters:
            raise ValueError(
                f"filters are for rows of a file; {self.data.type} has settings of its own that leave rows out"
            )
        if self.sections is not None and (self.data is not None or self.split_key != "story_id"):
            raise ValueError(
                "sections are written for the stories of a file, which story_id keeps together; give file, and no "
                "other key"
            )
        return self

    @property
    def path(self) -> Path:
        return Path(self.output)

    @property
    def split_key(self) -> str | None:
        """The key, also where sections decide it."""
        return "story_id" if self.sections is not None and self.key is None else self.key

    def arithmetic(self) -> str:
        """Return what will be done, in a sentence."""
        source = self.file if self.data is None else self.data.type
        together = f", no {self.split_key} in two files" if self.split_key else ""
        shares = " / ".join(f"{name} {100 * share:g} %" for name, share in self.shares.items())
        return f"{source} -> {self.output}: {shares}{together}"


STAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
GIVEN = ("run.name", "run.directory", "output")
"""What a stage gets from its pipeline, so that its results lie where the next stage and the report look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """An input that a stage takes from an earlier one: its hand-over, or a file inside it."""

    stage: str
    inside: str = ""

    @classmethod
    def read(cls, text: str) -> Reference:
        """Return `sft`, or `evaluate_sft/answers.jsonl`."""
        stage, _, inside = text.partition("/")
        return cls(stage=stage, inside=inside)


class StageConfig(Section):
    """One stage: a job with its recipe."""

    job: str
    """File in `jobs/` without `.py`: train_sft, train_reward_model, train_dpo, train_grpo, evaluate, score, ..."""
    recipe: str | None = None
    """Recipe of the job, a YAML file; unset: the job's defaults."""
    set: dict[str, Any] = {}
    """Settings over the recipe, by their dotted names: `{steps: 40, policy.learning_rate: 1e-5}`."""
    inputs: dict[str, Any] = {}
    """Settings that come from earlier stages: dotted name -> stage, `stage/file`, or a list of them. A stage of
    training hands over its best checkpoint, else its latest; another one its output.
    """

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
