"""Grade-school mathematics (Cobbe et al. 2021, 2110.14168), from the hub or from files of the same fields.

A row has `question` and `answer`; the answer ends with `#### n`, which is the gold number, and carries
calculator notes such as `<<3+5=8>>`, which are no part of the demonstration, or calls of the tool there.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from troupe.config.published_data import GSM8KConfig
from troupe.data.dataset import DataSet, conversation
from troupe.data.lines import Row, text_of
from troupe.data.published import load_published
from troupe.environments.calculator import calculator
from troupe.environments.tools import describe
from troupe.errors import DataError
from troupe.records import Message, Sample, ToolCall

CALCULATOR_NOTE = re.compile(r"<<[^>]*>>")
CALCULATION = re.compile(r"<<([^>=]*)=[^>]*>>")
GOLD = re.compile(r"####[ \t]*(-?[\d,]*\.?\d+)\s*$")


def load_gsm8k(config: GSM8KConfig) -> DataSet:
    tools = [describe("calculator", calculator)] if config.calculator else None
    return load_published(config, partial(_sample, tools), subset="main")


def _sample(tools: Any, sample_id: str, where: str, row: Row) -> Sample:
    question, answer = text_of(row, "question", where), text_of(row, "answer", where)
    gold = GOLD.search(answer)
    if gold is None:
        raise DataError(f"{where}: field 'answer' must end with '#### ' and a number, it ends with {answer[-40:]!r}")
    return Sample(
        sample_id=sample_id,
        prompt=conversation(question),
        gold=gold[1].replace(",", ""),
        fields={"demonstration": CALCULATOR_NOTE.sub("", answer) if tools is None else with_calls(answer)},
        tools=tools,
    )


def with_calls(answer: str) -> list[Message]:
    """Return a worked answer as turns: a call for every note that can be computed, then its result.

    >>> [turn["content"] for turn in with_calls("It is 48/2 = <<48/2=24>>24 clips.\\n#### 24")]
    ['It is 48/2 =', '24', '24 clips.\\n#### 24']
    """
    turns: list[Message] = []
    said = 0
    for note in CALCULATION.finditer(answer):
        try:
            result = calculator(note[1])
        except (ValueError, ArithmeticError):
            continue  # a dozen of the 7,473 have words in them
        text = CALCULATOR_NOTE.sub("", answer[said : note.start()]).strip()
        turns += [
            {"role": "assistant", "content": text, "tool_calls": [_call(note[1])]},
            {"role": "tool", "name": "calculator", "content": result},
        ]
        said = note.end()
    return [*turns, {"role": "assistant", "content": CALCULATOR_NOTE.sub("", answer[said:]).strip()}]


def _call(expression: str) -> ToolCall:
    return {"type": "function", "function": {"name": "calculator", "arguments": {"expression": expression}}}
