"""Python packages written for a test, with docstrings to harvest, and where the fixtures of the hub's data sets lie."""

from pathlib import Path

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
TOPICS = ("matrices", "sockets", "calendars", "parsers", "images", "queues", "colours", "graphs")


def words(topic: str, number: int) -> str:
    """150 characters and more that no other (topic, number) shares five words in a row with."""
    return " ".join(f"{topic}{number}word{i}" for i in range(10))


def function(topic: str, number: int) -> str:
    return (
        f'def f{number}(x):\n    """Summarise {topic} by rule {number}.\n\n    {words(topic, number)}\n'
        f'    second line about {topic}.\n    """\n    return x\n\n\n'
    )


def write_packages(root: Path) -> Path:
    """Eight packages of six pairs each."""
    for topic in TOPICS:
        package = root / topic
        package.mkdir(parents=True)
        (package / "module.py").write_text("".join(function(topic, number) for number in range(6)))
    return root


def paragraphs(topic: str, number: int) -> str:
    """A function whose docstring has three paragraphs of 60 characters and more below its summary, no two alike."""
    parts = [
        " ".join(f"{topic}{'abcdef'[number]}{order}{letter}" for letter in "abcdefghi")
        for order in ("first", "second", "third")
    ]
    text = "\n\n    ".join(f"Words of {part}." for part in parts)
    return f'def g{number}(x):\n    """Describe {topic} with rule {number}.\n\n    {text}\n    """\n    return x\n\n\n'


def write_paragraphs(root: Path) -> Path:
    """Eight packages of six docstrings with three paragraphs each."""
    for topic in TOPICS:
        package = root / topic
        package.mkdir(parents=True)
        (package / "module.py").write_text("".join(paragraphs(topic, number) for number in range(6)))
    return root
