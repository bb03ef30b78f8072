from pathlib import Path

import pytest

from tests.data.packages import write_packages


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Eight packages of six pairs each, to harvest."""
    return write_packages(tmp_path / "source")
