"""How a model is run is found out once for a config, an adapter and the code; what does not fit is refused each time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.actors.small import write_model
from troupe.config.models import LoraConfig
from troupe.errors import ConfigError
from troupe.training import fitting
from troupe.training.fitting import fit_of


@pytest.fixture
def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The questions that were answered by trying, counted around the real answer."""
    asked: list[Any] = []
    find = fitting._found
    monkeypatch.setattr(fitting, "FITS", tmp_path / "fits")
    monkeypatch.setattr(fitting, "_found", lambda *question: asked.append(question) or find(*question))
    return asked


def test_a_model_is_tried_once_and_again_when_its_config_or_its_adapter_is_another(tmp_path, tried):
    model = write_model(tmp_path / "model", tied=True)
    fit = fit_of(model, "vocabulary", None)
    assert (fit.alone, fit.reach, fit.slow) == (False, None, False)
    assert fit_of(model, "vocabulary", None) == fit
    assert len(tried) == 1
    fit_of(model, "vocabulary", LoraConfig())
    settings = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(settings | {"rope_parameters": None}))
    fit_of(model, "vocabulary", None)
    assert len(tried) == 3


def test_an_adapter_that_does_not_fit_is_refused_every_time(tmp_path, tried):
    model = write_model(tmp_path / "model", tied=True)
    for _ in range(2):
        with pytest.raises(ConfigError, match="lm_head"):
            fit_of(model, "vocabulary", LoraConfig(target_modules=["lm_head"]))
    assert len(tried) == 2
