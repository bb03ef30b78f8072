"""Every recipe in configs/ can be started: it loads, its rewards exist, its numbers fit, and it says what it changes.

Which job a recipe is for follows from its place: those of a system are named after their job or stage, pipelines have a
directory of their own, and the rest is GRPO's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from troupe.actors.placement import placement_table
from troupe.config.evaluation import AnsweringConfig, BenchmarkConfig, EvaluateConfig
from troupe.config.fields import flat_values
from troupe.config.grpo import GRPOConfig, PPOConfig, RLOOConfig
from troupe.config.loader import Section, load_config
from troupe.config.made_data import DocstringPairsConfig, HarvestConfig
from troupe.config.models import PretrainedModelConfig
from troupe.config.published_data import TldrComparisonsConfig, TldrConfig
from troupe.config.rollout import RewardConfig
from troupe.config.serve import ServeConfig
from troupe.config.supervised import DPOConfig, RewardModelTrainingConfig, SFTConfig, SupervisedConfig
from troupe.config.tools import PipelineConfig
from troupe.environments import build_environment
from troupe.jobs.distil import DistilConfig
from troupe.jobs.run_pipeline import check_command, checked_stage, missing_files
from troupe.ops.dry_runs import dry_runs
from troupe.rewards.build import build_rewards

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
PIPELINES = sorted((CONFIGS / "pipelines").glob("*.yaml"))
SHARING = ("word_problems", "calculator")
"""Pipelines whose stages take recipes of others, or one recipe twice."""
RECIPES = sorted(set(CONFIGS.rglob("*.yaml")) - set(PIPELINES))
H100_RECIPES = [recipe for recipe in RECIPES if "8xh100" in recipe.stem]
JOBS: dict[str, type[Section]] = {
    "sft": SFTConfig,
    "reward_model": RewardModelTrainingConfig,
    "judge": RewardModelTrainingConfig,
    "dpo": DPOConfig,
    "ppo": PPOConfig,
    "rloo": RLOOConfig,
    "evaluate": EvaluateConfig,
    "contexts": EvaluateConfig,
    "answers": EvaluateConfig,
    "plans": EvaluateConfig,
    "chapters": EvaluateConfig,
    "grpo": GRPOConfig,
    "full": GRPOConfig,
    "small": GRPOConfig,
    "word_problems": GRPOConfig,
    "perplexity": GRPOConfig,
    "perplexity_baseline": GRPOConfig,
    "distil": DistilConfig,
    "scorer": SFTConfig,
    "serve": ServeConfig,
}


def job_config(recipe: Path) -> type[Section]:
    if recipe.parent.name == "benchmarks":
        return BenchmarkConfig
    return GRPOConfig if recipe.parent == CONFIGS else JOBS[recipe.stem]


def loaded(recipe: Path) -> Any:
    return load_config(job_config(recipe), [str(recipe)])


def system(name: str) -> dict[str, Any]:
    """The loaded recipes of a system, `cs224r/small`, by their stage."""
    return {recipe.stem: loaded(recipe) for recipe in sorted((CONFIGS / name).glob("*.yaml"))}


def pipeline(path: Path) -> PipelineConfig:
    return load_config(PipelineConfig, [str(path)])


def written(recipe: Path) -> Any:
    return OmegaConf.to_container(OmegaConf.load(recipe))


def unwritten_changes(
    section: Section, given: Mapping[str, Any], usual: Section | None, prefix: str = ""
) -> Iterator[str]:
    """Fields that the recipe does not name and that are not what the job has by default (`usual`, else the section)."""
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        default = getattr(usual, name) if type(usual) is type(section) else info.get_default(call_default_factory=True)
        if isinstance(value, Section):
            below = default if isinstance(default, Section) else None
            yield from unwritten_changes(value, given.get(name) or {}, below, f"{prefix}{name}.")
        elif name not in given and value != default:
            yield f"{prefix}{name} = {value}"


def functions_of(config: Any) -> list[list[RewardConfig]]:
    """The reward functions that a recipe names: those of training, those of evaluation."""
    if isinstance(config, AnsweringConfig):
        lists = [config.all_metrics]
    elif isinstance(config, GRPOConfig):
        lists = [config.rewards, config.evaluation.metrics]
    else:
        generation = getattr(config, "generation", None)
        lists = [] if generation is None else [generation.metrics]
    return [functions for functions in lists if functions]


def place_of(config: Any) -> Path:
    if isinstance(config, ServeConfig):
        return Path("nowhere")
    return Path(str(config.output)) if isinstance(config, AnsweringConfig | DistilConfig) else config.run.path


def by_name(recipe: Path) -> str:
    return str(recipe.relative_to(CONFIGS).with_suffix(""))


@pytest.mark.parametrize("recipe", RECIPES, ids=by_name)
def test_a_recipe_loads_and_states_its_arithmetic(recipe: Path) -> None:
    config = loaded(recipe)
    if isinstance(config, GRPOConfig):
        said = f"= {config.rollout.prompts_per_step * config.rollout.group_size} sequences a step"
    elif isinstance(config, DistilConfig):
        said = f"= {config.num_train + config.num_heldout} prompts"
    elif isinstance(config, SupervisedConfig):
        said = f"{config.batch_size} samples a step"
    elif isinstance(config, BenchmarkConfig):
        said = "models answer held-out prompts"
    elif isinstance(config, ServeConfig):
        said = "at http://127.0.0.1:8000/v1"
    else:
        said = f"{len(config.named_models)} model"
    assert said in config.arithmetic()


@pytest.mark.parametrize("recipe", RECIPES, ids=by_name)
def test_a_recipe_differs_from_its_jobs_defaults_only_where_it_says_so(recipe: Path) -> None:
    job = job_config(recipe)
    # An evaluation or endpoint without a model does not exist.
    usual = None if issubclass(job, AnsweringConfig | DistilConfig | ServeConfig) else job()
    assert list(unwritten_changes(loaded(recipe), written(recipe), usual)) == []


@pytest.mark.parametrize("recipe", RECIPES, ids=by_name)
def test_the_rewards_and_metrics_of_a_recipe_exist_and_take_its_arguments(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for judge in ("NVIDIA", "OPENROUTER"):
        monkeypatch.setenv(f"{judge}_API_KEY", "not-a-key")
    for functions in functions_of(loaded(recipe)):
        build_rewards(functions)


def test_the_environment_of_a_recipe_exists_and_gives_the_metric_that_chooses_the_best_checkpoint() -> None:
    configs = [loaded(recipe) for recipe in RECIPES if job_config(recipe) is GRPOConfig]
    playing = [config for config in configs if config.environment is not None]
    assert len(playing) >= 2
    for config in playing:
        build_environment(config.environment).require_metric(config.evaluation.best)


def test_no_two_recipes_write_the_same_run_directory() -> None:
    assert len({place_of(loaded(recipe)) for recipe in RECIPES}) == len(RECIPES)


def test_the_quickstart_recipe_spells_out_the_defaults_and_all_of_them() -> None:
    recipe = CONFIGS / "quickstart.yaml"
    defaults = flat_values(GRPOConfig().model_dump(mode="json"))
    assert flat_values(loaded(recipe).model_dump(mode="json")) == defaults
    assert sorted(flat_values(written(recipe))) == sorted(defaults)


# -- eight H100 -------------------------------------------------------------------------------------------------

SAMPLING_ON_H100 = [
    *H100_RECIPES,
    CONFIGS / "cs224r/full/rloo.yaml",
    CONFIGS / "tldr/full/ppo.yaml",
    CONFIGS / "gsm8k_perplexity/full.yaml",
    CONFIGS / "next_chapter/full/grpo.yaml",
]


@pytest.mark.parametrize("recipe", SAMPLING_ON_H100, ids=by_name)
def test_an_h100_recipe_takes_eight_gpus_and_overbooks_none(recipe: Path) -> None:
    table = placement_table(loaded(recipe), device="cuda")
    gpus = {seat.bundle: seat.bundle_gpus for seat in table}
    taken = {bundle: sum(seat.num_gpus for seat in table if seat.bundle == bundle) for bundle in gpus}
    assert sum(gpus.values()) == 8
    assert all(taken[bundle] <= gpus[bundle] for bundle in gpus), taken
    assert all(seat.bundle_gpus == gpus[seat.bundle] for seat in table)


def test_the_two_h100_recipes_solve_the_same_task() -> None:
    """They are there to be compared: only placement and what follows from it may differ."""
    colocated, separate = (flat_values(loaded(recipe).model_dump(mode="json")) for recipe in H100_RECIPES)
    differing = {key for key in colocated if colocated[key] != separate[key]}
    assert differing == {
        "run.name",
        "rollout.max_lag",
        "policy.num_ranks",
        "generator.num_engines",
        "generator.memory_fraction",
        "placement.mode",
    }


def test_ppo_on_gpt_j_takes_the_originals_6400_optimizer_steps() -> None:
    """50 rollouts of 128 summaries, cut into batches of 4, four times over: 50 x 32 x 4."""
    ppo = system("tldr/full")["ppo"]
    assert ppo.rollout.branches_per_step // ppo.algorithm.minibatches == 4
    assert ppo.steps * ppo.algorithm.minibatches * ppo.algorithm.epochs == 6400


# -- the systems ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answers() -> dict[tuple[str, str], Any]:
    """(pipeline, stage) -> what the stage's job said to its dry run; all of them in one process, for it takes
    seconds.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        stages = [(path.stem, name) for path in PIPELINES for name in pipeline(path).stages]
        commands = [check_command(pipeline(CONFIGS / "pipelines" / f"{stem}.yaml"), name) for stem, name in stages]
        return dict(zip(stages, dry_runs(commands), strict=True))


@pytest.mark.parametrize("path", PIPELINES, ids=by_name)
def test_every_stage_of_a_pipeline_is_accepted_by_its_job(
    path: Path, answers: dict[tuple[str, str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    config = pipeline(path)
    assert config.name == path.stem
    for name in config.stages:
        assert list(missing_files(config, name)) == []
        checked_stage(config, name, answers[path.stem, name])


@pytest.mark.parametrize("path", [path for path in PIPELINES if path.stem not in SHARING], ids=by_name)
def test_a_stage_run_by_hand_reads_and_writes_where_its_pipeline_does(path: Path) -> None:
    config = pipeline(path)
    directory, size = path.stem.rsplit("_", 1)
    recipes = system(f"{directory}/{size}")
    assert list(recipes) == sorted(config.stages)
    for name, cluster in config.stages.items():
        assert cluster.recipe == f"configs/{directory}/{size}/{name}.yaml"
        assert place_of(recipes[name]) == config.path / name
        values = flat_values(recipes[name].model_dump(mode="json"))
        for setting, source in cluster.inputs.items():
            # A run for evaluations, which look for its best checkpoint; that checkpoint for everybody else.
            assert values[setting] in (
                f"runs/{config.name}/{source}",
                f"runs/{config.name}/{source}/checkpoints/best",
            )


@pytest.mark.parametrize("name", ["cs224r/small", "tldr/small", "summarizer/small", "next_chapter/docstrings"])
def test_all_stages_of_a_small_system_hold_out_the_same_texts(name: str) -> None:
    """Another seed or limit in one stage would let it train on what another is measured on."""
    chosen = [
        {field: getattr(config.data, field) for field in HarvestConfig.model_fields if field != "type"}
        for config in system(name).values()
    ]
    assert all(each == chosen[0] for each in chosen)


def test_the_stories_that_system_4_measures_plans_on_are_those_that_its_scorer_has_not_read() -> None:
    chosen = {
        (config.data.seed, config.data.num_heldout, config.data.num_train)
        for config in system("next_chapter/small").values()
    }
    assert len(chosen) == 1


def test_the_judge_of_the_small_system_1_has_seen_no_text_of_those_it_judges() -> None:
    stages = system("cs224r/small")
    halves = {
        name: config.data.half for name, config in stages.items() if isinstance(config.data, DocstringPairsConfig)
    }
    assert halves == {"dpo": "first", "judge": "second", "reward_model": "first"}
    assert stages["judge"].seed != stages["reward_model"].seed
    assert stages["evaluate"].reward_model.path == str(stages["judge"].run.path)
    assert stages["rloo"].reward_model.path == f"{stages['reward_model'].run.path}/checkpoints/best"


@pytest.mark.parametrize(
    "name", ["cs224r/full", "cs224r/small", "tldr/full", "tldr/small", "summarizer/full", "summarizer/small"]
)
def test_every_later_stage_starts_from_the_sft_model(name: str) -> None:
    stages = system(name)
    start = f"{stages['sft'].run.path}/checkpoints/best"
    later = {cluster: config.model for cluster, config in stages.items() if cluster not in ("sft", "evaluate")}
    assert all(isinstance(model, PretrainedModelConfig) and model.path == start for model in later.values()), later


def test_all_stages_of_the_full_system_3_read_the_same_posts() -> None:
    """A post cut elsewhere would be another text to the reward model than to the policy."""
    data = [config.data for config in system("tldr/full").values()]
    assert all(isinstance(each, TldrConfig | TldrComparisonsConfig) for each in data)
    assert {each.max_prompt_chars for each in data} == {2000}


@pytest.mark.parametrize("name", ["cs224r", "tldr"])
def test_what_a_reward_model_scores_is_no_longer_than_what_it_was_trained_on(name: str) -> None:
    for size in ("full", "small"):
        stages = system(f"{name}/{size}")
        limit = stages["reward_model"].max_length
        for cluster in ("ppo", "rloo"):
            if cluster in stages:
                rollout = stages[cluster].rollout
                assert rollout.max_prompt_tokens + rollout.max_response_tokens <= limit


@pytest.mark.parametrize("size", ["full", "small"])
def test_the_summarizer_is_told_the_limit_that_its_reward_has(size: str) -> None:
    """In training and evaluation, alone and in the pipeline: a gate that nobody told of would only cost groups."""
    recipes = {"alone": loaded(CONFIGS / f"summarizer/{size}.yaml"), **system(f"summarizer/{size}")}
    told = {name: getattr(config.data, "limit_chars", None) or config.data.limit for name, config in recipes.items()}
    gates = {
        args["max_length"] for config in recipes.values() for args in map(judge_arguments, functions_of(config)) if args
    }
    assert set(told.values()) == gates
    assert len(gates) == 1


def judge_arguments(functions: list[RewardConfig]) -> dict[str, Any]:
    return next((function.args for function in functions if function.fn == "judge_qa"), {})


@pytest.mark.parametrize("size", ["full", "small"])
def test_the_summarizers_pipeline_trains_as_its_recipe_alone_does(size: str) -> None:
    """But for the model that they start from: the supervised start is inside the one, a stage of the other."""
    alone, staged = (
        flat_values(config.model_dump(mode="json"))
        for config in (loaded(CONFIGS / f"summarizer/{size}.yaml"), system(f"summarizer/{size}")["grpo"])
    )
    differing = {key for key in alone.keys() | staged.keys() if alone.get(key) != staged.get(key)}
    assert {key.split(".")[0] for key in differing} <= {"run", "model"}


def test_the_scorer_of_the_full_system_4_is_its_reference_and_that_of_system_2_a_model_beside_it() -> None:
    """A second copy of 7B would need a ninth GPU; the adapter's reference is switched off while answers are scored."""
    system_4, system_2 = system("next_chapter/full")["grpo"], system("gsm8k_perplexity")["full"]
    assert system_4.scorer_is_reference
    assert not system_2.scorer_is_reference
    assert [seat.role for seat in placement_table(system_2, device="cuda")].count("perplexity") == 1


@pytest.mark.parametrize("size", ["small", "docstrings"])
def test_the_small_system_4_asks_for_the_marker_that_its_demonstrations_have(size: str) -> None:
    grpo = system(f"next_chapter/{size}")["grpo"]
    assert grpo.perplexity_reward.marker == [grpo.data.marker]
    assert (
        system("next_chapter/full")["grpo"].data.marker in system("next_chapter/full")["grpo"].perplexity_reward.marker
    )
