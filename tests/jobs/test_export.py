"""Exports hold the weights that were trained: whatever stage, precision or adapter they come from, and nothing less
is kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.actors.small import ragged, with_targets, write_model
from troupe.actors.engine import Engine
from troupe.algorithms.objective import PolicyObjective
from troupe.config.algorithm import AlgorithmConfig
from troupe.config.loader import load_config
from troupe.config.models import LoraConfig, PolicyConfig
from troupe.config.tools import ExportConfig
from troupe.errors import CheckpointError, ConfigError
from troupe.jobs.export import export
from troupe.runs.checkpoint import CheckpointStore

pytestmark = pytest.mark.usefixtures("one_rank")

VOCAB = 320
SETTINGS: dict[str, dict[str, Any]] = {
    "whole": {"zero_stage": 3, "precision": "fp32"},
    "bf16": {"zero_stage": 2, "precision": "bf16"},
    # Stage 1 keeps frozen weights out of ZeRO's files; alpha is not the rank, so that a lost scale shows.
    "lora": {"zero_stage": 1, "precision": "fp32", "lora": LoraConfig(rank=4, alpha=12), "learning_rate": 0.02},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, one_rank: None) -> Callable[[str], Path]:
    """A run directory of each kind, trained for two steps, made when it is first asked for."""
    place = tmp_path_factory.mktemp("runs")
    start = write_model(place / "start", tied=True)
    made: dict[str, Path] = {}

    def run(kind: str) -> Path:
        if kind not in made:
            made[kind] = place / kind
            config = PolicyConfig(**{"learning_rate": 5e-3, "schedule": "constant", **SETTINGS[kind]})
            engine = Engine(start, config, total_steps=10)
            for _ in range(2):
                engine.update(with_targets(ragged(VOCAB)), PolicyObjective(AlgorithmConfig()))
            with CheckpointStore(place / kind / "checkpoints").writing(2) as path:
                engine.save(str(path), AutoTokenizer.from_pretrained(start))
            engine.close()
            recipe = {
                "model": {"type": "pretrained", "path": start},
                "data": {"type": "word_problems"},
                "policy": config.model_dump(mode="json"),
            }
            (place / kind / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(recipe)))
        return made[kind]

    return run


@pytest.fixture
def copied(trained: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A run directory to spoil."""
    return lambda kind: Path(shutil.copytree(trained(kind), tmp_path / "run", symlinks=True))


def checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "step-000002"


def exported(run: Path, output: Path, **settings: Any) -> Path:
    export(ExportConfig(model=str(run), output=str(output), **settings))
    return output


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def logprobs(model: Any) -> torch.Tensor:
    ids = torch.arange(4, 40)[None]
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits[0].float().log_softmax(-1)  # type: ignore[no-any-return]


def loaded(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def test_fp32_weights_come_through_to_the_bit_with_tokenizer_and_template(
    trained: Callable[[str], Path], tmp_path: Path
) -> None:
    run = trained("whole")
    output = exported(run, tmp_path / "out", dtype="fp32")
    before, after = weights(checkpoint(run)), weights(output)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(checkpoint(run)).chat_template
    assert "| step | 2 |" in (output / "README.md").read_text()


def test_bf16_rounds_every_weight_and_no_more(trained: Callable[[str], Path], tmp_path: Path) -> None:
    output = exported(trained("whole"), tmp_path / "out")
    for name, weight in weights(checkpoint(trained("whole"))).items():
        assert torch.equal(weights(output)[name], weight.bfloat16())
    assert AutoConfig.from_pretrained(output).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["whole", "lora"])
def test_shards_alone_give_the_weights_that_the_engine_had(
    copied: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    run = copied(kind)
    before = weights(checkpoint(run))
    (checkpoint(run) / "model.safetensors").unlink()
    export(ExportConfig(model=str(checkpoint(run)), output=str(tmp_path / "out"), dtype="fp32"))
    after = weights(tmp_path / "out")
    assert before.keys() == after.keys()
    for name in before:
        # An adapter is added in fp32 here as there; the product's order of sums may differ by an ulp.
        torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=1e-6)


def test_fp32_of_a_bf16_run_is_its_masters_which_round_to_what_was_saved(
    trained: Callable[[str], Path], tmp_path: Path
) -> None:
    run = trained("bf16")
    masters, saved = weights(exported(run, tmp_path / "out", dtype="fp32")), weights(checkpoint(run))
    assert all(weight.dtype == torch.float32 for weight in masters.values())
    assert any(not torch.equal(masters[name], saved[name].float()) for name in saved)
    assert all(torch.equal(masters[name].bfloat16(), saved[name]) for name in saved)
    assert "from the ZeRO shards" in (tmp_path / "out" / "README.md").read_text()


def test_an_adapter_apart_on_its_base_is_the_merged_model(trained: Callable[[str], Path], tmp_path: Path) -> None:
    import peft

    run = trained("lora")
    output = exported(run, tmp_path / "out", dtype="fp32", adapter="apart")
    settings = peft.PeftConfig.from_pretrained(output)
    assert (settings.r, settings.lora_alpha, settings.base_model_name_or_path) == (4, 12, str(output / "base"))
    assert all(".lora_" in name for name in load_file(output / "adapter_model.safetensors"))
    base = loaded(output / "base")
    before = logprobs(base)
    adapted = logprobs(peft.PeftModel.from_pretrained(base, output))
    assert (adapted - before).abs().max() > 0.05  # the adapter learnt something
    torch.testing.assert_close(adapted, logprobs(loaded(checkpoint(run))), atol=1e-4, rtol=0)


def test_a_reward_models_scores_are_compared(tmp_path: Path) -> None:
    start = write_model(tmp_path / "start", tied=True)
    model = AutoModelForSequenceClassification.from_pretrained(start, num_labels=1)
    model.save_pretrained(tmp_path / "judge")
    AutoTokenizer.from_pretrained(start).save_pretrained(tmp_path / "judge")
    output = exported(tmp_path / "judge", tmp_path / "out", dtype="fp32")
    assert "Scores of 3 texts" in (output / "README.md").read_text()
    assert torch.equal(weights(output)["score.weight"], model.score.weight.detach())


def test_what_differs_from_its_source_is_refused_and_removed(copied: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"differs from its source by .* nats a token \(allowed: 1e-12\), so it was removed"
    ):
        exported(copied("whole"), tmp_path / "out", max_gap=1e-12)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def refusals() -> Iterator[Any]:
    def spoil_nothing(run: Path) -> None: ...

    def lose_a_rank(run: Path) -> None:
        for file in (checkpoint(run) / "trainer_state" / "state").glob("*_optim_states.pt"):
            shutil.copy(file, file.with_name(file.name.replace("pp_rank_0", "pp_rank_1")))

    def lose_recipe(run: Path) -> None:
        (run / "config.yaml").unlink()

    def lose_tokenizer(run: Path) -> None:
        for file in checkpoint(run).glob("tokenizer*"):
            file.unlink()

    apart, whole = {"adapter": "apart"}, {"source": "shards", "dtype": "fp32"}
    yield pytest.param("whole", spoil_nothing, apart, ConfigError, "was trained without adapters", id="no adapter")
    yield pytest.param(
        "lora", lose_recipe, apart, CheckpointError, "no recipe beside them says their scale", id="no recipe"
    )
    yield pytest.param(
        "whole", lose_a_rank, whole, CheckpointError, "is not a whole ZeRO checkpoint: Expected 1", id="ranks"
    )
    yield pytest.param("whole", lose_tokenizer, {}, CheckpointError, "has no tokenizer", id="no tokenizer")
    yield pytest.param(
        "whole",
        spoil_nothing,
        {**apart, "source": "weights"},
        ConfigError,
        "adapter apart needs source: shards",
        id="weights",
    )


@pytest.mark.parametrize(("kind", "spoil", "settings", "error", "sentence"), list(refusals()))
def test_what_cannot_be_exported_is_said_and_leaves_nothing(
    copied: Callable[[str], Path], tmp_path: Path, kind: str, spoil: Any, settings: Any, error: Any, sentence: str
) -> None:
    run = copied(kind)
    spoil(run)
    with pytest.raises(error, match=sentence):
        export(ExportConfig(model=str(checkpoint(run)), output=str(tmp_path / "out"), **settings))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_directory_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("Years of work.")
    with pytest.raises(ConfigError, match=r"output .* exists; choose another output"):
        export(ExportConfig(model="runs/nowhere", output=str(tmp_path)))


def test_a_missing_token_is_found_before_anything_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere")
    with pytest.raises(ConfigError, match="push needs a token"):
        export(load_config(ExportConfig, ["model=runs/nowhere", "push=somebody/something"]))
