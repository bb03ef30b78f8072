import pytest

from troupe.records import Branch, Group, Sample


@pytest.fixture
def sample() -> Sample:
    return Sample(sample_id="word_problems/17", prompt="Tom has 3 pens and buys 5 more. How many?", gold="8")


def branch(text: str, **known: object) -> Branch:
    return Branch(token_ids=tuple(range(len(text.split()))), text=text, **known)  # type: ignore[arg-type]


def group_of(sample: Sample, *texts: str) -> Group:
    return Group(sample=sample, prompt_ids=(1, 2), branches=[branch(text) for text in texts])
