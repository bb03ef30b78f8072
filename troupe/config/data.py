"""The `data` section of every config: one data set, chosen by its `type`, or a mixture of several.

The loader of the same name is in `troupe/data/`; each gives a training side and a held-out side. A sample of a task
whose reward is a perplexity has two prompts: the policy's, which asks for reasoning, and in `fields["scorer_prompt"]`
the frozen model's, which asks for the gold text itself. `fields["context_template"]` is how the policy's plan joins the
latter.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import BeforeValidator, Field, model_validator

from troupe.config.libraries import ReasoningGymConfig, TextArenaConfig
from troupe.config.loader import Section, with_type
from troupe.config.made_data import (
    DocstringPairsConfig,
    DocstringsConfig,
    DocstringSectionsConfig,
    DocumentsConfig,
    ShortStoriesConfig,
    TicTacToeConfig,
    WordProblemsConfig,
)
from troupe.config.own_data import (
    FunctionConfig,
    HubConfig,
    JsonlConfig,
    MessagesConfig,
)
from troupe.config.published_data import (
    GSM8KConfig,
    NextChapterConfig,
    RepliqaConfig,
    SmolTalkConfig,
    TldrComparisonsConfig,
    TldrConfig,
    UltraFeedbackConfig,
)

# The last one is the general one: what `data.path=my.jsonl` alone means.
Source: TypeAlias = (
    WordProblemsConfig
    | GSM8KConfig
    | SmolTalkConfig
    | UltraFeedbackConfig
    | TldrConfig
    | TldrComparisonsConfig
    | DocstringsConfig
    | DocstringPairsConfig
    | DocumentsConfig
    | RepliqaConfig
    | TicTacToeConfig
    | ReasoningGymConfig
    | TextArenaConfig
    | NextChapterConfig
    | MessagesConfig
    | ShortStoriesConfig
    | DocstringSectionsConfig
    | FunctionConfig
    | HubConfig
    | JsonlConfig
)
SourceConfig = Annotated[Source, Field(discriminator="type")]


def _typed(sources: Any) -> Any:
    """Return sections of data sets, each with the `type` that its fields mean."""
    if not isinstance(sources, dict):
        return sources
    return {name: with_type(get_args(Source), None, given) for name, given in sources.items()}


Sources = Annotated[dict[str, SourceConfig], BeforeValidator(_typed)]
"""Data sets by names of one's own."""


class MixtureConfig(Section):
    """Several data sets in one run, drawn from by weight."""

    type: Literal["mixture"] = "mixture"
    sources: Sources = Field(min_length=2)
    """Data sets by name; the name is in each sample's `fields["source"]` and in metrics."""
    weights: dict[str, Annotated[float, Field(gt=0)]] = {}
    """How often each source is drawn from, in proportion: `{maths: 3, chats: 1}`; unset: by their samples."""

    @property
    def source_names(self) -> list[str]:
        """The names of the data sets."""
        return list(self.sources)

    @model_validator(mode="after")
    def _every_source_has_a_weight(self) -> MixtureConfig:
        if self.weights and self.weights.keys() != self.sources.keys():
            raise ValueError(
                f"weights names {', '.join(self.weights)}, and the sources are {', '.join(self.sources)}; give each a "
                "weight, or none"
            )
        return self


DataConfig = Annotated[MixtureConfig | Source, Field(discriminator="type")]
