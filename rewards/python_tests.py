"""The reward that runs an answer's Python code against the sample's tests, in a sandbox."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from troupe.processes.sandbox import Limits, run_python_aside
from troupe.records import Branch, Sample, Score

FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
HARNESS = """
import json, os, sys
answer, tests, mark = json.loads({given!r})
names = {{"__name__": "__main__"}}
exec(compile(answer, "answer.py", "exec"), names)
for index, test in enumerate(tests):
    try:
        exec(compile(test, "test.py", "exec"), names)
    except BaseException as error:
        print(type(error).__name__, error)
    else:
        print(f"\\n{{mark}} {{index}}", flush=True)
"""


class PythonTests:
    """The answer's last fenced block of code, or all of it without one, against the tests of the sample.

    Tests are in the sample's field `tests`: Python code that raises where the answer is wrong, a text or a list of
    them, run behind the answer's code; or a list of `{input, output}`, whose output a program must print. `score: all`
    is 1 where every test passes, `fraction` the share that does. Part: `passed`, that share.
    """

    def __init__(
        self,
        *,
        tests: str = "tests",
        score: Literal["all", "fraction"] = "all",
        seconds: Annotated[float, Field(gt=0)] = 10.0,
        memory_mib: Annotated[int, Field(ge=64)] = 1024,
    ) -> None:
        self._field, self._score = tests, score
        self._limits = Limits(seconds=seconds, memory_mib=memory_mib)

    def check(self, sample: Sample) -> None:
        """Raise ValueError for a sample without tests."""
        tests = self._tests(sample)
        if not tests or not all(isinstance(test, str) or _is_dialogue(test) for test in tests):
            raise ValueError(
                f"the field {self._field!r} holds no tests: a text of Python, a list of them, or a list of "
                "{input, output}; name the column in args.tests"
            )

    async def __call__(self, sample: Sample, branch: Branch) -> Score:
        tests, code = self._tests(sample), code_of(branch.text)
        passed = [await self._prints(code, test) for test in tests if not isinstance(test, str)]
        passed += await self._holds(code, [test for test in tests if isinstance(test, str)])
        share = sum(passed) / len(tests)
        return Score(value=share if self._score == "fraction" else float(share == 1), parts={"passed": share})

    def _tests(self, sample: Sample) -> Sequence[Any]:
        tests = sample.fields.get(self._field)
        return [tests] if isinstance(tests, str) else tests if isinstance(tests, Sequence) else []

    async def _prints(self, code: str, test: Mapping[str, Any]) -> bool:
        ended = await run_python_aside(code, limits=self._limits, stdin=str(test["input"]))
        return ended.status == 0 and ended.output.split() == str(test["output"]).split()

    async def _holds(self, code: str, tests: Sequence[str]) -> list[bool]:
        """Return whether each test ran to its end; a mark that the answer cannot know states that it did."""
        if not tests:
            return []
        mark = secrets.token_hex(16)
        program = HARNESS.format(given=json.dumps([code, list(tests), mark]))
        lines = (await run_python_aside(program, limits=self._limits)).output.splitlines()
        return [f"{mark} {index}" in lines for index in range(len(tests))]


def code_of(text: str) -> str:
    """Return the code of an answer.

    >>> code_of("First:\\n```python\\nx = 1\\n```\\nBetter:\\n```\\nx = 2\\n```")
    'x = 2\\n'
    """
    blocks = FENCED.findall(text)
    return str(blocks[-1]) if blocks else text


def _is_dialogue(test: Any) -> bool:
    return isinstance(test, Mapping) and {"input", "output"} <= test.keys()
