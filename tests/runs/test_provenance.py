"""A checkpoint knows its run, its step and the models before it; the card says so, and whose terms apply."""

import shutil
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from troupe.config.tools import ExportConfig
from troupe.errors import CheckpointError, ConfigError
from troupe.runs.checkpoint import CheckpointStore
from troupe.runs.hub import require_token
from troupe.runs.model_card import model_card
from troupe.runs.model_paths import locate
from troupe.runs.provenance import provenance

FACTS = {
    "dtype": "bf16",
    "adapter": "merged",
    "source": "safetensors",
    "head": "vocabulary",
    "num_tokens": 60,
    "num_prompts": 3,
    "mean_gap": 0.0042,
    "largest_gap": 0.013,
    "bound": 0.05,
}


def run(path: Path, recipe: str, *, metrics: dict[int, float]) -> Path:
    """A run directory with a checkpoint for every metric."""
    store = CheckpointStore(path / "checkpoints", keep_last=10)
    for step, value in metrics.items():
        with store.writing(step) as checkpoint:
            (checkpoint / "config.json").write_text("{}")
        store.record_metric(step, value)
    (path / "config.yaml").write_text(recipe)
    (path / "environment.json").write_text('{"program": "train_grpo.py"}')
    return path


@pytest.fixture
def grpo(tmp_path: Path) -> Path:
    sft = run(tmp_path / "sft", "model: {type: pretrained, path: Qwen/Qwen2.5-0.5B}", metrics={5: 1.0})
    recipe = (
        f"model: {{type: pretrained, path: {sft}/checkpoints/best}}\ndata: {{type: gsm8k}}\npolicy: {{lora: "
        f"{{rank: 4}}}}"
    )
    return run(tmp_path / "grpo", recipe, metrics={10: 0.25, 20: 0.75, 30: 0.5})


def test_a_checkpoint_is_the_best_the_latest_or_that_of_a_step(grpo: Path) -> None:
    assert Path(locate(str(grpo))).name == "step-000020"
    assert Path(locate(str(grpo), "latest")).name == "step-000030"
    assert Path(locate(str(grpo), 10)).name == "step-000010"
    with pytest.raises(CheckpointError, match="has no complete checkpoint of step 15; it has 10, 20, 30"):
        locate(str(grpo), 15)


def test_the_models_before_a_run_are_followed_to_one_of_the_hub(grpo: Path) -> None:
    known = provenance(locate(str(grpo)))
    assert known.chain == ("grpo", "sft", "Qwen/Qwen2.5-0.5B")
    assert (known.step, known.metric, known.program) == (20, 0.75, "train_grpo.py")
    assert known.engine == {"lora": {"rank": 4}}


def test_the_link_best_leads_to_its_step_and_a_critic_to_its_run(grpo: Path) -> None:
    assert provenance(str(grpo / "checkpoints" / "best")).step == 20
    (grpo / "checkpoints" / "step-000010" / "critic").mkdir()
    critic = provenance(str(grpo / "checkpoints" / "step-000010" / "critic"))
    assert (critic.run, critic.step, critic.engine) == (grpo, 10, {})


def test_a_foreign_model_is_known_by_its_name_alone(tmp_path: Path) -> None:
    assert provenance("Qwen/Qwen2.5-0.5B").chain == ("Qwen/Qwen2.5-0.5B",)
    assert provenance(str(tmp_path)).run is None


def test_the_card_names_base_run_step_check_and_terms(grpo: Path) -> None:
    card = model_card(provenance(locate(str(grpo))), name="grpo-bf16", base_model=None, license_name=None, facts=FACTS)
    header, body = card.split("---\n")[1:3]
    assert 'base_model: "Qwen/Qwen2.5-0.5B"' in header
    assert "license" not in header
    for said in (
        "| runs, latest first | grpo <- sft <- Qwen/Qwen2.5-0.5B |",
        "| step | 20 |",
        "| metric at that step | 0.75 |",
        "| training data | gsm8k |",
        "No licence was given for these weights. The terms of Qwen/Qwen2.5-0.5B apply to what was made from it",
        "mean |difference| 0.0042, largest 0.013 (bound of the mean: 0.05)",
    ):
        assert said in body
    given = model_card(provenance("x"), name="x", base_model="a/b", license_name="apache-2.0", facts=FACTS)
    assert 'license: "apache-2.0"' in given
    assert "| base model | a/b |" in given


def test_the_card_of_an_adapter_shows_how_to_load_it(grpo: Path) -> None:
    facts = {**FACTS, "adapter": "apart"}
    card = model_card(provenance(locate(str(grpo))), name="x", base_model=None, license_name=None, facts=facts)
    assert 'library_name: "peft"' in card
    assert 'AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-0.5B")' in card
    assert "PeftModel.from_pretrained(model," in card


@pytest.mark.parametrize(
    ("model", "behind"),
    [
        ("{type: scratch}", ("scratch",)),
        ("{path: 's3://bucket/run'}", ("s3://bucket/run",)),  # nothing is fetched for its name
        ("{path: /gone/model}", ("/gone/model",)),
        ("{}", ("unknown",)),
    ],
)
def test_the_models_before_a_run_are_followed_as_far_as_they_are_known(
    tmp_path: Path, model: str, behind: tuple[str, ...]
) -> None:
    made = run(tmp_path / "sft", f"model: {model}", metrics={5: 1.0})
    assert provenance(str(made / "checkpoints" / "latest")).chain == ("sft", *behind)


def test_a_run_before_it_that_is_gone_or_lost_its_recipe_is_still_named(grpo: Path) -> None:
    checkpoint = locate(str(grpo))
    (grpo.parent / "sft" / "config.yaml").unlink()
    assert provenance(checkpoint).chain == ("grpo", "sft")
    shutil.rmtree(grpo.parent / "sft")
    assert provenance(checkpoint).chain == ("grpo", "sft")


def test_a_recipe_with_a_secret_of_the_environment_is_read_without_it(tmp_path: Path) -> None:
    recipe = "model: {path: a/b}\ndata: {token: '${oc.env:NOT_SET_HERE}'}"
    known = provenance(str(run(tmp_path / "x", recipe, metrics={1: 0.5}) / "checkpoints" / "best"))
    assert known.chain == ("x", "a/b")
    assert known.recipe["data"]["token"] == "${oc.env:NOT_SET_HERE}"


def test_a_run_whose_index_and_environment_are_lost_is_known_without_them(grpo: Path) -> None:
    (grpo / "checkpoints" / "index.json").write_text("{")
    (grpo / "environment.json").unlink()
    known = provenance(str(grpo / "checkpoints" / "step-000010"))
    assert (known.step, known.metric, known.program) == (10, None, None)
    card = model_card(known, name="x", base_model=None, license_name=None, facts=FACTS)
    assert "| step | 10 |" in card
    assert "metric at that step" not in card
    assert "| job |" not in card


@pytest.mark.parametrize("licence", ["apache-2.0", "other: mine", "yes", 'of "us"', "3.0"])
def test_the_header_of_a_card_is_yaml_that_gives_back_what_was_given(grpo: Path, licence: str) -> None:
    card = model_card(provenance(locate(str(grpo))), name="x", base_model="a/b", license_name=licence, facts=FACTS)
    header = yaml.safe_load(card.split("---\n")[1])
    assert header == {"license": licence, "base_model": "a/b", "library_name": "transformers", "tags": ["troupe"]}


def test_the_card_of_a_model_that_scores_or_was_made_here_says_so(tmp_path: Path) -> None:
    made = run(tmp_path / "rm", "model: {type: scratch}", metrics={5: 1.0})
    facts = {**FACTS, "head": "scalar", "adapter": "apart"}
    card = model_card(provenance(locate(str(made))), name="rm", base_model=None, license_name=None, facts=facts)
    assert "| base model | made from scratch |" in card
    assert "base_model" not in card.split("---\n")[1]
    assert "The terms of the base model, if it has one, apply" in card
    assert "Scores of 3 texts, loaded from these files" in card
    assert 'AutoModelForSequenceClassification.from_pretrained("<this directory>/base")' in card
    assert "| weights | bf16, adapter apart, from the safetensors |" in card


def test_outputs_are_named_after_run_precision_and_form() -> None:
    assert ExportConfig(model="runs/grpo").path == Path("exports/grpo-bf16")
    assert ExportConfig(model="runs/grpo/checkpoints/step-000010", dtype="fp32", adapter="apart").path == Path(
        "exports/grpo-fp32-adapter"
    )


def test_what_cannot_be_pushed_or_compared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="push names a repository as owner/name"):
        ExportConfig(model="runs/grpo", push="name")
    with pytest.raises(ValidationError, match="prompt 'Hi' is too short"):
        ExportConfig(model="runs/grpo", prompts=["Hi"])
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere")
    with pytest.raises(ConfigError, match="push needs a token that may write"):
        require_token()
