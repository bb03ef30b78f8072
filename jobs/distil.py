"""Have another model, behind a chat endpoint, answer a data set's prompts: demonstrations for SFT.

    python jobs/distil.py recipe.yaml [section.field=value ...]

Writes one line an answer, `{"sample_id", "text"}`, which `data.demonstrations` of `repliqa` reads. Replies are
remembered on disk, so a second call asks only for what is missing. `--help` lists the settings.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: imports begin at the project, not in jobs/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import rich
from pydantic import Field

from troupe.config.data import DataConfig
from troupe.config.loader import Section
from troupe.config.program import run_program
from troupe.config.published_data import RepliqaConfig
from troupe.data import load_data
from troupe.data.lines import write_rows
from troupe.errors import ConfigError, RewardError
from troupe.records import Message, Sample
from troupe.rewards.chat_endpoint import ChatEndpoint, EndpointConfig


class DistilConfig(Section):
    """Answers of another model as demonstrations."""

    examples = ("configs/summarizer/distil.yaml --dry-run",)
    page = "docs/data.md"

    data: DataConfig = RepliqaConfig()
    """Prompts; those of both sides, so that SFT has a held-out loss."""
    endpoint: EndpointConfig
    """The model that answers."""
    num_train: int = Field(default=200, ge=1)
    """First n training samples."""
    num_heldout: int = Field(default=20, ge=1)
    """First n held-out samples."""
    max_chars: int | None = Field(default=None, ge=1)
    """Longest answer in characters; longer ones are left out and counted; null: any length."""
    output: str
    """JSONL file that gets the answers."""

    def arithmetic(self) -> str:
        """Return the derived numbers in one sentence."""
        return f"{self.num_train} + {self.num_heldout} = {self.num_train + self.num_heldout} prompts"


def distil(config: DistilConfig) -> None:
    try:
        endpoint = ChatEndpoint(config.endpoint)
    except ValueError as error:
        raise ConfigError(f"endpoint: {error}") from None
    data = load_data(config.data)
    samples = [*data.train[: config.num_train], *data.heldout[: config.num_heldout]]
    answers = asyncio.run(ask_all(endpoint, samples))
    fitting = {
        sample_id: text
        for sample_id, text in answers.items()
        if text is not None and (config.max_chars is None or len(text) <= config.max_chars)
    }
    if not fitting:
        raise RewardError(
            f"none of {len(samples)} answers could be had or fits max_chars ({config.max_chars}); nothing was written"
        )
    write_rows(Path(config.output), ({"sample_id": name, "text": text} for name, text in fitting.items()))
    missing = sum(text is None for text in answers.values())
    spent = ", ".join(f"{value:g} {name}" for name, value in endpoint.counters.items())
    rich.print(
        f"{len(fitting)} answers written to {config.output}; {missing} could not be had, "
        f"{len(answers) - missing - len(fitting)} were too long ({spent or 'nothing was asked'})"
    )


async def ask_all(endpoint: ChatEndpoint, samples: Sequence[Sample]) -> dict[str, str | None]:
    """Return sample id -> answer; None where there was none to be had."""

    async def one(sample: Sample) -> str | None:
        prompt = [Message(role="user", content=sample.prompt)] if isinstance(sample.prompt, str) else sample.prompt
        return (await endpoint.ask(prompt, lambda reply: reply.strip() or None)).value

    answers = await asyncio.gather(*(one(sample) for sample in samples))
    return {sample.sample_id: answer for sample, answer in zip(samples, answers, strict=True)}


if __name__ == "__main__":
    run_program(distil, DistilConfig, "jobs/distil.py")
