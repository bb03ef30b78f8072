"""What every data set's section shares."""

from __future__ import annotations

from troupe.config.loader import Section


class DataSection(Section):
    """A data set, and what stands before each of its prompts."""

    type: str
    system_prompt: str | None = None
    """System message put before every prompt, such as the form that answers must have; a string prompt then becomes a
    user message.
    """
    system_prompt_wins: bool = False
    """Whether it replaces the system message that a prompt of messages has of its own."""
