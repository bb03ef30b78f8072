"""Parsers of calls and thoughts: which one a template asks for, and those that a model does not have."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.serving.served_run import TEMPLATE, Run
from troupe.config.loader import load_config
from troupe.config.serve import ServeConfig
from troupe.engines.parsers import chosen_parser
from troupe.errors import ConfigError
from troupe.serving.served_models import served_models


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("tools") / "tiny")
    run.save(1)
    return run


def config_of(run: Run, **settings: str) -> ServeConfig:
    listed = ", ".join(f"{name}: {value}" for name, value in {"path": str(run.directory), **settings}.items())
    return load_config(ServeConfig, [f"models=[{{{listed}}}]", "max_length=2048"])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"tool_call_parser": "hermess"}, "tool_call_parser 'hermess' is none that vLLM knows; name auto, or one of"),
        ({"tool_call_parser": "mistral"}, r"reads \[TOOL_CALLS\], which the chat template of tiny does not write"),
        ({"reasoning_parser": "qwen3"}, "reasoning_parser 'qwen3' reads </think>, which the chat template of tiny"),
    ],
)
def test_a_parser_that_the_model_does_not_have_is_named_before_anything_starts(
    run: Run, settings: dict[str, str], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        served_models(config_of(run, **settings))


def test_the_parser_follows_from_what_the_template_writes(tmp_path: Path) -> None:
    known = ["hermes", "mistral", "llama3_json", "qwen3_coder"]
    chosen = [
        chosen_parser("tool_call_parser", "auto", template, known, "x")
        for template in (TEMPLATE, "[TOOL_CALLS]", "<tool_call>\n<function=look>", "nothing", None)
    ]
    assert chosen == ["hermes", "mistral", "qwen3_coder", None, None]
