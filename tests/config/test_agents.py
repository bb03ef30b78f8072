"""Who else takes part in an answer: agents, tools and games, what they are called, and which of them go together."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from troupe.config.agents import AgentConfig
from troupe.config.data import MixtureConfig
from troupe.config.evaluation import BenchmarkConfig, EvaluateConfig
from troupe.config.grpo import GRPOConfig
from troupe.config.libraries import CurriculumConfig, ReasoningGymConfig
from troupe.config.loader import Section, load_config
from troupe.config.rollout import EnvironmentConfig
from troupe.errors import ConfigError

CALCULATOR = "tools=[{fn: calculator}]"
GAME = "environment={fn: tic_tac_toe, max_turn_tokens: 16}"
PROGRAM = "agent={command: [python, play.py]}"


def test_an_agent_is_called_after_its_function_or_its_command() -> None:
    assert AgentConfig(fn="my.games:play").title == "my.games:play"
    assert AgentConfig(command=["python", "play.py", "--fast"]).title == "python play.py --fast"


def test_the_arguments_of_a_command_are_its_words() -> None:
    with pytest.raises(ValidationError, match="args belong to fn; give a command its arguments in command"):
        AgentConfig(command=["python", "play.py"], args={"fast": True})


@pytest.mark.parametrize("other", [CALCULATOR, GAME])
def test_an_agent_brings_its_own_tools_and_environment(other: str) -> None:
    with pytest.raises(ConfigError, match="an agent has tools and an environment of its own"):
        load_config(GRPOConfig, [PROGRAM, other])


@pytest.mark.parametrize(
    ("kind", "arguments", "sentence"),
    [
        (EvaluateConfig, ["model=x", GAME], "an agent has tools and an environment of its own"),
        (EvaluateConfig, ["model=x", "reward_model.path=r"], "an agent asks prompts of its own; leave out one of"),
        (EvaluateConfig, ["model=x", "contexts={x: a.jsonl}"], "games and agents have no such place"),
        (EvaluateConfig, ["model=x", "metrics=[]", "against=reference"], "judge 'agent' compares an agent's episodes, and 'reference' played none"),
        (BenchmarkConfig, ["trained=x"], "agent: a benchmark gives none to models behind endpoints"),
    ],
)  # fmt: skip
def test_an_agents_evaluation_that_contradicts_itself_is_one_sentence(
    kind: type[Section], arguments: list[str], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_config(kind, [PROGRAM, *arguments])


def test_an_agents_score_is_measured_and_compares_models() -> None:
    config = load_config(EvaluateConfig, [PROGRAM, "models={a: x, b: y}", "metrics=[]", "against=a"])
    assert (config.judge_name, config.all_metrics) == ("agent", [])
    assert load_config(EvaluateConfig, [PROGRAM, "models={a: x, b: y}", "against=a", "judge=agent/won"]).margin == 0


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], []),
        ([CALCULATOR], []),
        (["environment={fn: answer, max_turn_tokens: 16}"], []),
        ([GAME], ["environment"]),
        ([GAME, CALCULATOR], ["environment"]),
        (["environment={type: textarena, name: GuessTheNumber-v0, max_turn_tokens: 16}"], ["environment"]),
        ([PROGRAM], ["agent"]),
    ],
)
def test_games_and_agents_score_and_tools_do_not(arguments: list[str], parts: list[str]) -> None:
    assert load_config(GRPOConfig, arguments).model_parts == parts


def test_tools_alone_make_an_answer_of_several_turns_up_to_the_limit_of_the_answer() -> None:
    assert load_config(GRPOConfig, []).dialogue is None

    trained = load_config(GRPOConfig, [CALCULATOR, "rollout.max_response_tokens=96"]).dialogue
    measured = load_config(EvaluateConfig, [CALCULATOR, "model=tiny", "max_response_tokens=80"]).dialogue

    assert trained is not None
    assert measured is not None
    assert (trained.plays, trained.max_turn_tokens) == (False, 96)
    assert (measured.plays, measured.max_turn_tokens) == (False, 80)


def test_a_game_keeps_its_own_limit_where_there_are_tools() -> None:
    dialogue = load_config(GRPOConfig, [GAME, CALCULATOR]).dialogue
    assert dialogue is not None
    assert (dialogue.plays, dialogue.title, dialogue.max_turn_tokens) == (True, "tic_tac_toe", 16)
    assert EnvironmentConfig(type="textarena", name="Chess-v0").title == "textarena Chess-v0"


def test_tasks_of_a_library_are_held_out_sets_as_the_sources_of_a_mixture_are() -> None:
    gym = "data={type: reasoning_gym, tasks: {chain_sum: {}, dice: {}}}"
    mixed = "data={type: mixture, sources: {sums: {type: word_problems}, plays: {type: tic_tac_toe}}}"
    rewards = "rewards=[{fn: format_answer}]"

    assert load_config(GRPOConfig, [gym, rewards]).heldout_names == ["chain_sum", "dice"]
    mixture = load_config(GRPOConfig, [mixed, rewards])
    assert isinstance(mixture.data, MixtureConfig)
    assert mixture.heldout_names == mixture.data.source_names == ["sums", "plays"]
    with pytest.raises(ConfigError, match="sources names 'maze'; sources here: chain_sum, dice"):
        load_config(GRPOConfig, [gym, "rewards=[{fn: format_answer, sources: [maze]}]"])


@pytest.mark.parametrize(
    "given",
    [{"raise_at": 0.0}, {"raise_at": 1.01}, {"lower_at": -0.1}, {"lower_at": 0.75}, {"raise_at": 0.1}, {"window": 0}],
)
def test_a_curriculum_goes_up_above_where_it_goes_down(given: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(given))):
        CurriculumConfig.model_validate(given)


def test_a_library_without_tasks_is_no_data() -> None:
    with pytest.raises(ValidationError, match="at least 1 item"):
        ReasoningGymConfig(tasks={})
