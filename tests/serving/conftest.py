from pathlib import Path

import pytest
from transformers import AutoConfig

from tests.actors.small import write_model
from tests.actors.test_values import write_scalar_model


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two causal models and a reward model with their tokenizers, all random."""
    root = tmp_path_factory.mktemp("served")
    paths = {
        name: write_model(root / name, tied=True, seed=seed) for seed, name in enumerate(("base", "tuned", "judge"))
    }
    judge = Path(paths["judge"])
    (judge / "model.safetensors").unlink()
    write_scalar_model(AutoConfig.from_pretrained(judge), judge, score_mean=0.75)
    return paths
