"""Every recipe in configs/ can be started: it loads, its rewards exist, its numbers fit, and it says what it changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from actors.placement import seats
from core.config import Section, load_config
from core.recipes import GRPOConfig
from core.run_directory import flat_values
from rewards import build_rewards

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))
H100_RECIPES = [recipe for recipe in RECIPES if "8xh100" in recipe.stem]


def loaded(recipe: Path) -> GRPOConfig:
    return load_config(GRPOConfig, [str(recipe)])


def written(recipe: Path) -> Any:
    return OmegaConf.to_container(OmegaConf.load(recipe))


def unwritten_changes(section: Section, given: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Fields whose value is not the default of their section, although the recipe does not name them."""
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from unwritten_changes(value, given.get(name) or {}, f"{prefix}{name}.")
        elif name not in given and value != info.get_default(call_default_factory=True):
            yield f"{prefix}{name} = {value}"


def by_name(recipe: Path) -> str:
    return recipe.stem


@pytest.mark.parametrize("recipe", RECIPES, ids=by_name)
def test_a_recipe_loads_and_states_its_arithmetic(recipe: Path) -> None:
    config = loaded(recipe)
    assert f"= {config.rollout.prompts_per_step * config.rollout.group_size} sequences a step" in config.arithmetic()


@pytest.mark.parametrize("recipe", RECIPES, ids=by_name)
def test_a_recipe_differs_from_the_defaults_only_where_it_says_so(recipe: Path) -> None:
    assert list(unwritten_changes(loaded(recipe), written(recipe))) == []


@pytest.mark.parametrize("recipe", RECIPES, ids=by_name)
def test_the_rewards_and_metrics_of_a_recipe_exist_and_take_its_arguments(recipe: Path) -> None:
    config = loaded(recipe)
    build_rewards(config.rewards)
    build_rewards(config.evaluation.metrics)


def test_no_two_recipes_write_the_same_run_directory() -> None:
    assert len({loaded(recipe).run.path for recipe in RECIPES}) == len(RECIPES)


def test_the_quickstart_recipe_spells_out_the_defaults_and_all_of_them() -> None:
    recipe = ROOT / "configs" / "quickstart.yaml"
    defaults = flat_values(GRPOConfig().model_dump(mode="json"))
    assert flat_values(loaded(recipe).model_dump(mode="json")) == defaults
    assert sorted(flat_values(written(recipe))) == sorted(defaults)


@pytest.mark.parametrize("recipe", H100_RECIPES, ids=by_name)
def test_an_h100_recipe_takes_eight_gpus_and_overbooks_none(recipe: Path) -> None:
    table = seats(loaded(recipe), device="cuda")
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
