"""Whatever a model calls, it gets a text: the result, or what was wrong; what cannot be described is refused at the start."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any, Literal

import pytest

from troupe.config.agents import ToolConfig
from troupe.environments.calculator import calculator
from troupe.environments.tools import ToolResult, build_tools, call_all
from troupe.errors import ConfigError

HERE = "tests.environments.test_tools"


def weather(city: str, unit: Literal["C", "F"] = "C", *, table: dict[str, int] | None = None) -> str:
    """
    Look up the weather.

    Args:
        city: The city.
        unit: Degrees to tell it in.
        table: What is known.
    """
    if city == "Atlantis":
        raise LookupError("no such city\nanywhere")
    return f"{(table or {}).get(city, 20)} {unit}"


async def pause(seconds: float) -> dict[str, float]:
    """
    Wait.

    Args:
        seconds: How long.
    """
    await asyncio.sleep(seconds)
    return {"waited": seconds}


def hang() -> str:
    """Never return."""
    threading.Event().wait()
    return ""


def flood() -> str:
    """Say much."""
    return "x" * 3_000_000


def untyped(city):
    """
    Look.

    Args:
        city: The city.
    """


def undescribed(city: str) -> str:
    """Look."""
    return city


def results(calls: list[tuple[str, dict[str, Any]]], **settings: Any) -> list[ToolResult]:
    tools = build_tools(
        [
            ToolConfig(fn="calculator"),
            *(ToolConfig(fn=f"{HERE}:{name}", **settings) for name in ("pause", "hang", "flood")),
            ToolConfig(fn=f"{HERE}:weather", args={"table": {"Paris": 30}}),
        ]
    )
    return asyncio.run(call_all(tools, [{"name": name, "arguments": arguments} for name, arguments in calls]))


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("48/2", "24"),
        ("9,999 + 1", "10000"),
        ("-(2 + 3) * 4", "-20"),
        ("2^10", "1024"),
        ("7 // 2 + 7 % 2", "4"),
        ("1/3", "0.333333333"),
        ("0.1 + 0.2", "0.3"),
        ("2 ** 0.5", "1.41421356"),
    ],
)
def test_the_calculator_computes(expression: str, result: str) -> None:
    assert calculator(expression) == result


@pytest.mark.parametrize(
    "expression", ["", "x + 1", "__import__('os')", "9**9**9", "[1]", "1 if 1 else 2", "(" * 500, "1/0"]
)
def test_the_calculator_does_nothing_else(expression: str) -> None:
    with pytest.raises((ValueError, ZeroDivisionError)):
        calculator(expression)


def test_calls_of_one_answer_run_at_the_same_time_and_keep_their_order() -> None:
    started = time.monotonic()
    found = results([("pause", {"seconds": 0.3}), ("calculator", {"expression": "1+1"}), ("pause", {"seconds": 0.3})])
    assert time.monotonic() - started < 10
    assert [each.content for each in found] == ['{"waited": 0.3}', "2", '{"waited": 0.3}']
    assert not any(each.failed for each in found)


def test_arguments_of_the_config_are_neither_seen_nor_given_by_the_model() -> None:
    assert [each.content for each in results([("weather", {"city": "Paris"})])] == ["30 C"]
    (tool,) = build_tools([ToolConfig(fn=f"{HERE}:weather", args={"table": {}})]).values()
    assert set(tool.schema["function"]["parameters"]["properties"]) == {"city", "unit"}
    (refused,) = results([("weather", {"city": "Paris", "table": {"Paris": 1}})])
    assert refused.failed
    assert "argument table: Extra inputs are not permitted" in refused.content


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (("weathr", {}), "error: there is no tool 'weathr'; the tools are calculator, pause, hang, flood, weather"),
        (("weather", {}), "error: argument city: Field required"),
        (("weather", {"city": ["Paris"]}), "error: argument city: Input should be a valid string"),
        (("weather", {"city": "Paris", "unit": "K"}), "error: argument unit: Input should be 'C' or 'F'"),
        (("weather", {"city": "Atlantis"}), "error: LookupError: no such city"),
        (("calculator", {"expression": "two"}), "error: ValueError: only numbers"),
        (("hang", {}), "error: the call took longer than 0.2 s"),
        (("pause", {"seconds": 30}), "error: the call took longer than 0.2 s"),
    ],
)
def test_what_goes_wrong_is_told_to_the_model(call: tuple[str, dict[str, Any]], sentence: str) -> None:
    (found,) = results([call], timeout_s=0.2)
    assert found.failed
    assert found.content.startswith(sentence)


def spin() -> str:
    """Compute for ever."""
    while True:
        pass


def test_a_function_that_never_ends_is_killed_in_its_process() -> None:
    tools = build_tools([ToolConfig(fn=f"{HERE}:spin", timeout_s=0.5, processes=1)])
    for _ in range(2):  # the next call gets another process
        (found,) = asyncio.run(call_all(tools, [{"name": "spin", "arguments": {}}]))
        assert found.content == "error: the call took longer than 0.5 s"
    tools["spin"].close()


def test_python_runs_in_the_sandbox_and_shows_what_it_printed() -> None:
    tools = build_tools([ToolConfig(fn="python", args={"seconds": 2.0})])
    assert set(tools["python"].schema["function"]["parameters"]["properties"]) == {"code"}

    def run(code: str) -> ToolResult:
        return asyncio.run(call_all(tools, [{"name": "python", "arguments": {"code": code}}]))[0]

    assert run("print(sum(range(10)))").content == "45\n"
    failed = run("print('so far')\nraise KeyError('gone')")
    assert failed.failed
    assert "so far" in failed.content
    assert "KeyError: 'gone'" in failed.content
    assert "the program was killed; it may take 2 s and 512 MiB" in run("while True: pass").content


def test_megabytes_are_cut() -> None:
    (found,) = results([("flood", {})], max_result_chars=10)
    assert found.content == "xxxxxxxxxx\n[cut: 3,000,000 characters in all]"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"fn": "calculater"}, "tools: unknown tool 'calculater'; did you mean 'calculator'"),
        ({"fn": f"{HERE}:untyped"}, "untyped cannot be described to the model: .*give every argument a type"),
        ({"fn": f"{HERE}:undescribed"}, "undescribed cannot be described to the model: .*a line under `Args:`"),
        ({"fn": f"{HERE}:HERE"}, "HERE is a str, not a function"),
        (
            {"fn": f"{HERE}:weather", "args": {"tabel": {}}},
            "unknown argument 'tabel'; its arguments are: city, unit, table",
        ),
        ({"fn": f"{HERE}:weather", "args": {"table": 3}}, "argument table"),
    ],
)
def test_a_tool_that_cannot_work_is_refused_at_the_start(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build_tools([ToolConfig(**settings)])


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two are called 'calculator'"):
        build_tools([ToolConfig(fn="calculator"), ToolConfig(fn="calculator")])
